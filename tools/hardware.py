#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the GPU plugin against the machine's NVIDIA driver, with a fake kubelet, and the rules of resctrl against its kernel, and writes down what
came of it.

Exit status: 0 all well, 1 a test failed, 2 a mistake in the arguments, 77 neither a driver with a GPU nor resctrl here.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from deviceplugin._native.nvml import Nvml  # noqa: E402
from tests.hardware.machine import Machine, NoDriver  # noqa: E402
from tests.hardware.test_resctrl import missing  # noqa: E402

NOTHING = 77
MARK = "<!-- tools/hardware.py writes what follows -->\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the plugins against the machine's own hardware.", allow_abbrev=False)
    parser.add_argument("--library", metavar="PATH", default="", help="another libnvidia-ml.so.1, as the simulator's")
    parser.add_argument("--host-root", metavar="DIR", default="/", help="where the files are that belong to it")
    parser.add_argument("-k", metavar="EXPRESSION", default="", help="only these tests, as pytest selects them")
    parser.add_argument("--record", metavar="FILE", help="write the result into this page")
    args = parser.parse_args()
    own = not args.library and args.host_root == "/"
    if args.record and not own:
        parser.error("--record is for the machine's own driver: leave out --library and --host-root")
    machine, without = None, ""
    try:
        machine = Machine.find(args.library, args.host_root)
    except NoDriver as error:
        without = f"no NVIDIA driver here: {error}"
    cache = missing() if own else "missing: only the library is asked"
    if machine is None and cache:
        print(without, *([f"no resctrl here: {cache}"] if own else []), sep="\n", file=sys.stderr)
        return NOTHING
    what = {**(describe(machine) if machine is not None else {"GPUs": without}), **surroundings(), "resctrl": cache or "mounted"}
    print("\n".join(f"{name}: {value}" for name, value in what.items()), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        report = os.path.join(scratch, "report.xml")
        options = ["-k", args.k, f"--library={args.library}", f"--host-root={args.host_root}", f"--junitxml={report}"]
        status = subprocess.run([sys.executable, "-m", "pytest", "-v", "-rs", "tests/hardware", *options], cwd=ROOT, check=False).returncode
        results = read(report) if os.path.exists(report) else []
    if args.record:
        record(Path(args.record), what, results)
    return 0 if status == 0 else 1


def describe(machine: Machine) -> dict[str, str]:
    """What was tested, for people."""
    with Nvml(machine.library) as nvml:
        snapshot = nvml.snapshot(topology=False)
    models = Counter(gpu.name for gpu in snapshot.gpus)
    return {
        "GPUs": ", ".join(f"{count} x {name}" for name, count in sorted(models.items())),
        "driver": snapshot.driver_version,
        "CUDA": "{}.{}".format(*snapshot.cuda_version) if snapshot.cuda_version else "not said",
        "library": machine.library,
    }


def surroundings() -> dict[str, str]:
    """What it was tested on."""
    return {"kernel": os.uname().release, "user": "root" if os.geteuid() == 0 else "not root"}


def read(report: str) -> list[tuple[str, str]]:
    """What became of each test, in order."""
    results = []
    for case in ET.parse(report).iter("testcase"):  # pytest wrote it a moment ago
        ends = {child.tag: child.get("message", "") for child in case}
        failed = next((tag for tag in ("failure", "error") if tag in ends), "")
        name = case.get("name", "").removeprefix("test_").replace("_", " ")
        results.append((name, "**failed**" if failed else f"skipped: {ends['skipped']}" if "skipped" in ends else "passed"))
    return results


def record(page: Path, what: dict[str, str], results: list[tuple[str, str]]) -> None:
    """Replaces what follows the mark."""
    head, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise SystemExit(f"{page} has no line {MARK.strip()!r}: nothing was written")
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    facts = [("date", day), *what.items()]
    lines = ["| Machine | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts), ""]
    lines += ["| Test | Result |", "|---|---|", *(f"| {name} | {end} |" for name, end in results)]
    page.write_text(head + mark + "\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
