# SPDX-License-Identifier: Apache-2.0
"""The native modules beside their plain Python twins: the median of 15 rounds, after the two sides have given the same answer.

The twins are written to be plain, not fast: the one of the policies looks at the whole list each time, where the native table is made once for each
list.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.report import table
from deviceplugin._native import encoding, inotify, sysfs
from deviceplugin.allocation import POLICIES, Row, Table
from tests.oracles import allocation as allocation_oracle
from tests.oracles import encoding as encoding_oracle
from tests.oracles import inotify as inotify_oracle
from tests.oracles import sysfs as sysfs_oracle

Case = tuple[str, Callable[[], object], Callable[[], object]]


def encodings() -> Iterator[Case]:
    for count in (8, 10_000):
        rows = [f"GPU-0b3f2c1e-5a8d-4c1b-9a52-{i:012x}" for i in range(count)], [i % 7 != 0 for i in range(count)], [(i % 2,) for i in range(count)]
        yield f"encode a list of {count:,} devices", partial(encoding.encode_list, *rows), partial(encoding_oracle.encode_list, *rows)


def choices() -> Iterator[Case]:
    lists: list[tuple[str, list[Row], int]] = [
        ("8 devices on 2 NUMA nodes", [(f"GPU-{u}", f"GPU-{u}", (u % 2,)) for u in range(8)], 4),
        ("10,000 replicas on 8", [(f"GPU-{u}::{k}", f"GPU-{u}", (u % 8,)) for u in range(100) for k in range(100)], 8),
    ]
    for what, rows, size in lists:
        free = random.Random(1).sample([row[0] for row in rows], len(rows) * 3 // 4)
        table = Table(rows)
        for policy in POLICIES:
            yield (
                f"{policy}: {size} of {what}",
                partial(table.choose, policy, free, [], size),
                partial(allocation_oracle.choose, rows, policy, free, [], size),
            )


def events() -> Iterator[Case]:
    data = b"".join(inotify_oracle.HEAD.pack(1, inotify.CREATE, 0, 16) + f"nvidia{i}".encode().ljust(16, b"\0") for i in range(500))
    yield "parse 500 inotify events", partial(inotify.parse, data), partial(inotify_oracle.parse, data)
    with tempfile.TemporaryDirectory() as directory, inotify.Inotify() as native, contextlib.closing(inotify_oracle.Inotify()) as twin:

        def seen_by(side: inotify.Inotify | inotify_oracle.Inotify, name: str) -> Callable[[], object]:
            path = Path(directory, name)
            path.touch()
            side.add(str(path), inotify.ATTRIB)

            def one() -> object:
                os.utime(path)
                return side.read(1)

            return one

        yield "set a file's times and read of it", seen_by(native, "native"), seen_by(twin, "twin")


def attributes() -> Iterator[Case]:
    """64 devices with 20 attributes each, as links in a class lead to them: plain files, then what this machine has in sysfs."""
    with tempfile.TemporaryDirectory() as root:
        names = [f"attribute{number}" for number in range(20)]
        devices = [f"/sys/devices/pci0000:00/0000:{number:02x}:00.0" for number in range(64)]
        links = [f"/sys/class/accel/accel{number}" for number in range(64)]
        os.makedirs(f"{root}/sys/class/accel")
        for link, device in zip(links, devices, strict=True):
            os.makedirs(root + device)
            os.symlink(device, root + link)
            for name in names:
                Path(f"{root}{device}/{name}").write_text(f"{name} of {device}\n")
        files = [f"{device}/{name}" for device in devices for name in names]
        top = f"{root}/"
        yield "read 64 x 20 files", partial(sysfs.read, top, files, 4096), partial(sysfs_oracle.read, top, files, 4096)
        yield "read one file", partial(sysfs.read, top, files[:1], 4096), partial(sysfs_oracle.read, top, files[:1], 4096)
        yield "list 64 directories of 20", partial(sysfs.names, top, devices), partial(sysfs_oracle.names, top, devices)
        yield "resolve 64 links", partial(sysfs.resolve, top, links), partial(sysfs_oracle.resolve, top, links)
    found = [str(path) for path in sorted(Path("/sys/class").glob("*/*/*")) if path.is_file() and os.access(path, os.R_OK)][:1280]
    looks = []
    for _ in range(5):
        looks.append(sysfs.read("", found, 4096))
        time.sleep(0.2)
    real = [path for path, *seen in zip(found, *looks, strict=True) if seen.count(seen[0]) == len(seen)]  # without counters that count
    yield f"read {len(real):,} attributes of this machine", partial(sysfs.read, "", real, 4096), partial(sysfs_oracle.read, "", real, 4096)


def median(call: Callable[[], object], rounds: int) -> float:
    """Microseconds for one call; short ones are timed many at a time."""
    start = time.perf_counter()
    call()
    times = max(1, int(0.002 / (time.perf_counter() - start)))
    figures = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(times):
            call()
        figures.append((time.perf_counter() - start) / times * 1e6)
    return statistics.median(figures)


def report(rounds: int = 15) -> str:
    rows: list[list[object]] = []
    for cases in (encodings(), choices(), events(), attributes()):
        for what, native, twin in cases:
            if native() != twin():
                raise SystemExit(f"{what}: the two do not agree")
            fast, slow = median(native, rounds), median(twin, rounds)
            rows.append([what, f"{fast:,.1f}", f"{slow:,.1f}", f"{slow / fast:.1f}"])
    return table("Native code and its twin in Python, us", ["what", "native", "twin", "twin / native"], rows)
