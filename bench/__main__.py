# SPDX-License-Identifier: Apache-2.0
"""``python -m bench [SECTION ...]``: runs the sections (all of them by default) and prints their tables."""

from __future__ import annotations

import importlib
import sys

from bench.report import machine

SECTIONS = ("core", "native", "linkset", "nvml", "gpu", "llc", "fpga", "mic", "pfs")
LONG = ("idle", "soak")
"""Minutes of waiting, a quarter of an hour: only when they are named."""


def main() -> None:
    chosen = sys.argv[1:] or SECTIONS
    unknown = set(chosen) - {*SECTIONS, *LONG}
    if unknown:
        sys.exit(f"bench: no section {', '.join(sorted(unknown))}; there are {', '.join((*SECTIONS, *LONG))}")
    print(machine(), flush=True)
    for name in chosen:
        print(f"running {name} ...", file=sys.stderr, flush=True)
        print(importlib.import_module(f"bench.{name}").report(), flush=True)


if __name__ == "__main__":
    main()
