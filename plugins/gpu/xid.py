# SPDX-License-Identifier: Apache-2.0
"""What each XID means, and whether a GPU may be used after it.

XIDs are the numbers of the driver's error reports. The table follows the immediate action in NVIDIA's XID catalog: an error that a restart of the
application cures is the application's and says nothing of the GPU; one that calls for a reset, a reboot or a repair takes the GPU out of service.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Literal

Action = Literal["ignore", "reset", "never"] | float
"""What a fault does to a GPU: nothing; unhealthy until a reset; unhealthy for good; or unhealthy until nothing was seen of it for so many seconds."""

MAX_CODE: Final = 9999
"""NVIDIA numbers XIDs from 1 upwards and has not passed 200. A larger number is taken for a slip of the pen."""

DEFAULT: Final[Action] = "reset"
"""For a code that is not in the table: what is not known to be harmless is not."""

CONTAINED: Final = 300.0
"""Seconds of quiet after an error that the GPU has contained by itself, since such errors seldom come alone."""

_ENGINES = "a copy, video, image or optical flow engine reported an error of its work"

_TABLE: dict[int, tuple[str, Action]] = {
    8: ("GPU stopped processing", "ignore"),
    11: ("invalid or corrupted push buffer", "ignore"),
    13: ("graphics engine exception", "ignore"),
    25: ("invalid or illegal push buffer", "ignore"),
    31: ("GPU memory page fault", "ignore"),
    32: ("invalid or corrupted push buffer", "ignore"),
    37: ("driver firmware error", "ignore"),
    38: ("driver firmware error", "ignore"),
    43: ("GPU stopped processing", "ignore"),
    44: ("graphics engine fault during context switch", "ignore"),
    45: ("preemptive cleanup after an earlier error or the end of a process", "ignore"),
    46: ("GPU stopped processing", "reset"),
    48: ("double-bit ECC error", "reset"),
    54: ("auxiliary power is not connected", "reset"),
    60: ("video processor exception", "ignore"),
    61: ("internal micro-controller breakpoint", "reset"),
    62: ("internal micro-controller halt", "reset"),
    63: ("a memory row was remapped or a page retired", "ignore"),
    64: ("a memory row could not be remapped or a page not retired", "reset"),
    66: ("illegal access by the driver", "ignore"),
    67: ("illegal access by the driver", "ignore"),
    69: ("graphics engine class error", "ignore"),
    74: ("NVLink error", "reset"),
    78: ("vGPU start error", CONTAINED),
    79: ("GPU has fallen off the bus", "reset"),
    80: ("corrupted data sent to the GPU", "ignore"),
    92: ("high rate of single-bit ECC errors", "ignore"),
    93: ("wear limit of the InfoROM passed", "ignore"),
    94: ("contained memory error", CONTAINED),
    95: ("uncontained memory error", "reset"),
    106: ("test message", "ignore"),
    107: ("test message", "ignore"),
    108: ("NVLink remote translation error", "ignore"),
    109: ("context switch timeout", "ignore"),
    110: ("security fault", "reset"),
    119: ("GSP did not answer in time", "reset"),
    120: ("GSP error", "reset"),
    121: ("chip-to-chip link error, corrected", "ignore"),
    136: ("NVLink training failed", "reset"),
    137: ("NVLink access by a faulty or ended peer", "ignore"),
    140: ("unrecovered ECC error", "reset"),
    141: ("CUDA fast path error", "ignore"),
    143: ("GPU initialisation error", "reset"),
    151: ("key rotation error", "reset"),
    152: ("DLA memory management error", "ignore"),
    153: ("DLA timeout", "ignore"),
    154: ("the recovery action changed; another XID says why", "ignore"),
    155: ("NVLink error defined by software", "reset"),
    156: ("a resource was retired", "reset"),
    157: ("a resource could not be retired", "ignore"),
    158: ("fatal GPU timeout", "reset"),
    159: ("coherent interconnect error", CONTAINED),
    160: ("a channel was retired", "ignore"),
    161: ("a channel could not be retired", "ignore"),
    162: ("power smoothing engaged again", "ignore"),
    163: ("power smoothing disengaged", "ignore"),
    164: ("power smoothing nears the end of its life", "ignore"),
    166: ("NVLink traffic before encryption was set up", "reset"),
    167: ("fatal PCIe timeout", "reset"),
    168: ("reduced memory capacity", "reset"),
    169: ("internal micro-controller halt", "reset"),
    170: ("NVLink interrupt in confidential computing mode", "reset"),
    171: ("uncorrectable DRAM error", "reset"),
    172: ("uncorrectable SRAM error", "reset"),
    **dict.fromkeys((*range(39, 42), 68, *range(70, 73), *range(75, 78), *range(82, 87), 88, 89), (_ENGINES, "ignore")),
    **dict.fromkeys((*range(96, 106), *range(126, 136), 139, 142), (_ENGINES, "ignore")),
    **dict.fromkeys(range(144, 151), ("NVLink 5 error, of a kind that the event does not tell", "reset")),
}

TABLE: Final = MappingProxyType(dict(sorted(_TABLE.items())))
"""Meaning and default action of each known code."""


def meaning(code: int) -> str:
    """A few words on what the code says."""
    return TABLE[code][0] if code in TABLE else "not in this version's table"
