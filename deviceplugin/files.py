# SPDX-License-Identifier: Apache-2.0
"""Files that others read while we write them."""

from __future__ import annotations

import contextlib
import os


def replace(path: str, content: bytes, mode: int = 0o644) -> bool:
    """Puts ``content`` into the file, whole or not at all, also after a crash; False if it holds it already. Makes the directory. Raises OSError.

    Until it is whole the content is in a file beside it whose name starts with a dot and ends in ``.tmp``: those that read directories by patterns,
    as container runtimes and Node Feature Discovery do, pass over it.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(content) + 1) == content:
                return False
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    directory, name = os.path.split(path)
    # Not by process id: instances in containers have the same, and share the directory.
    temporary = os.path.join(directory, f".{name}.{os.urandom(6).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return True
