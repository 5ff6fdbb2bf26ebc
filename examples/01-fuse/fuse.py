# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator

from deviceplugin import Device, Plugin, run


class Fuse(Plugin):
    resource = "example.com/fuse"

    def discover(self) -> Iterator[Device]:
        yield Device("fuse", nodes=["/dev/fuse"])


if __name__ == "__main__":
    raise SystemExit(run(Fuse))
