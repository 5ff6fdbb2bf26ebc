# SPDX-License-Identifier: Apache-2.0
"""The options of the FPGA plugin. See docs/fpga.md."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

Mode = Literal["af", "region", "regiondevel"]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]

_UUID = re.compile(r"[0-9a-f]{32}")
_KIND = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


def _uuid(what: str, text: str) -> str:
    """An id as sysfs writes it: people and JSON write it with hyphens and capitals."""
    plain = text.replace("-", "").lower()
    if not _UUID.fullmatch(plain):
        raise ValueError(f"{what} {text!r} must have 32 hexadecimal digits, with or without hyphens")
    return plain


class Function(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Which accelerator function some ports are to have. The first that matches a port counts."""

    afu: str
    """The id of the function; with the port's interface id it names the bitstream."""
    interface: str = ""
    """Only ports whose card has this interface id."""
    address: str = "*"
    """Only ports of cards at such PCI addresses, ``0000:3b:*``."""
    ports: list[Annotated[int, msgspec.Meta(ge=0)]] = []
    """Only ports with these numbers; all, if empty."""
    sha256: str = ""
    """The digest that the bitstream must have, in place of the one that is beside it."""

    def __post_init__(self) -> None:
        _uuid("afu", self.afu)
        if self.interface:
            _uuid("interface", self.interface)
        if self.sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", self.sha256):
            raise ValueError(f"sha256 {self.sha256!r} must have 64 hexadecimal digits")

    @property
    def afu_id(self) -> str:
        return _uuid("afu", self.afu)

    @property
    def interface_id(self) -> str:
        return _uuid("interface", self.interface) if self.interface else ""


class ManagerFiles(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The device files that belong to an FPGA of the kernel's fpga_manager class, and what they are called together."""

    resource: str
    """What comes after the domain's slash."""
    nodes: list[str]
    name: str = "*"
    """Only managers with such a name, as in their ``name`` attribute."""
    device: str = "*"
    """Only managers of such a device: the name of its directory in sysfs, ``f8007000.devcfg``."""

    def __post_init__(self) -> None:
        if not _KIND.fullmatch(self.resource):
            raise ValueError(
                f"resource {self.resource!r} must be at most 63 letters, digits, '-', '_' and '.', and start and end with a letter or digit"
            )
        if not self.nodes:
            raise ValueError(f"managers: {self.resource} has no nodes: there would be nothing to hold a container to")
        for node in self.nodes:
            if not node.startswith("/dev/") or "/.." in node:
                raise ValueError(f"nodes: {node!r} must be a path below /dev")


class FpgaConfig(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What of the FPGAs is offered, and how it is programmed."""

    mode: Mode = "af"
    """``af``: ports by the function that they have; ``region``: ports by their interface; ``regiondevel``: whole cards, with what programs them."""
    domain: str = "fpga.intel.com"
    """Before the slash of DFL's, OPAE's and the managers' resources."""
    xrt_domain: str = "xilinx.com"
    """Before the slash of XRT's."""
    functions: list[Function] = []
    """What ports are programmed with before a container starts. Ports that none matches are given as they are."""
    bitstreams: str = "/srv/intel.com/fpga"
    """The directory of the bitstreams: ``<interface>/<afu>.gbs``, and ``<afu>.gbs.sha256`` beside it."""
    require_digest: bool = True
    """Whether a bitstream without a digest, in the configuration or beside it, is refused."""
    largest_bitstream: Annotated[int, msgspec.Meta(ge=1, le=(1 << 32) - 1)] = 512 << 20
    """Bytes; a larger file is refused before it is read."""
    managers: list[ManagerFiles] = []
    state_directory: str = "/var/lib/deviceplugin/fpga"
    """Where it is kept what is being programmed, what each port is offered as, and which errors were there before."""
    busy_timeout: Seconds = 60
    """Seconds that a port may be in reset before it is unknown."""
    settle: Seconds = 15
    """Seconds that a port is offered to nobody before it goes from one resource to another."""

    def __post_init__(self) -> None:
        for what, domain in (("domain", self.domain), ("xrtDomain", self.xrt_domain)):
            if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", domain) or "kubernetes.io" in domain:
                raise ValueError(f"{what} {domain!r} must be a DNS name other than kubernetes.io")
        for what, path in (("bitstreams", self.bitstreams), ("stateDirectory", self.state_directory)):
            if not path.startswith("/"):
                raise ValueError(f"{what} {path!r} must be an absolute path")
        if self.functions and self.mode == "regiondevel":
            raise ValueError("functions: in mode regiondevel the container itself programs its card: leave functions out, or take mode af or region")
