# SPDX-License-Identifier: Apache-2.0
"""The options of the MIC plugin. See docs/mic.md."""

from __future__ import annotations

import posixpath
import re
from typing import Annotated, Literal

import msgspec

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_RESOURCE = re.compile(rf"{_LABEL}(\.{_LABEL})*/[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Library(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A directory or file of the host that containers see, read-only."""

    path: str
    container_path: str = ""
    """Where they see it, by default where the host does."""

    def __post_init__(self) -> None:
        _check_path("libraries: path", self.path)
        if self.container_path:
            _check_path("libraries: containerPath", self.container_path)


class Boot(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """How a card is booted. MPSS 3 must be told what; the other drivers have it from their own configuration."""

    image: str = ""
    """The kernel for the card, for MPSS 3: a path on the host. ``{card}`` is the card's name, ``mic0``."""
    initramfs: str = ""
    """Its initial file system, likewise."""
    timeout: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 300.0
    """Seconds that a reset and a boot may take, over several tries of the kubelet, before the card counts as broken."""

    def __post_init__(self) -> None:
        for name, path in (("image", self.image), ("initramfs", self.initramfs)):
            if path:
                _check_path(f"boot: {name}", path)
                if ":" in path:  # the driver splits there
                    raise ValueError(f"boot: {name} {path!r} must be without ':'")
        if self.initramfs and not self.image:
            raise ValueError("boot: initramfs goes with image")


class MicConfig(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The options of the plugin ``mic``."""

    resource: str = "intel.com/mic"
    """Cards that containers reach through SCIF."""
    vfio_resource: str = "intel.com/mic-vfio"
    """Cards that are bound to vfio-pci."""
    host_resource: str = ""
    """Where the host is itself a Xeon Phi: the resource of the one device that stands for it. None without a name."""
    identity: Literal["serial", "slot"] = "serial"
    """What ids are made of: the serial number where the driver tells it, else the PCI address; or always that."""
    prepare: Literal["none", "online", "boot", "reset"] = "online"
    """What is done before each start of a container: nothing; wait for the card to be online; boot it if it is not; reset and boot it."""
    prepare_timeout: Annotated[float, msgspec.Meta(ge=0.1, le=24)] = 20.0
    """Seconds that a start of a container waits for its cards; it is tried again after that. The framework's own limit is 25."""
    boot: Boot = Boot()
    libraries: list[Library] = []
    """What offload programs need of the host, such as the COI and SCIF libraries."""
    env_prefix: str = ""
    """``MIC_ENV_PREFIX`` in the container, if given: the variables that start so reach the card."""
    labels: bool = False
    """Whether to tell Node Feature Discovery of the cards, and of the host: a file in its features.d, which must be mounted."""
    record: str = "/var/lib/deviceplugin/mic-told.json"
    """Where what containers were told is kept."""

    def __post_init__(self) -> None:
        names = {"resource": self.resource, "vfioResource": self.vfio_resource}
        if self.host_resource:
            names["hostResource"] = self.host_resource
        for key, name in names.items():
            if not _RESOURCE.fullmatch(name):
                raise ValueError(f"{key} {name!r} must be a resource name, as in intel.com/mic")
        if len(set(names.values())) < len(names):
            raise ValueError(f"{', '.join(names)} must differ: what one container can use, another cannot")
        if self.env_prefix and not _PREFIX.fullmatch(self.env_prefix):
            raise ValueError(f"envPrefix {self.env_prefix!r} must be the start of a variable's name: letters, digits and '_'")
        _check_path("record", self.record)


def _check_path(key: str, path: str) -> None:
    if not path.startswith("/") or posixpath.normpath(path) != path or "\0" in path:
        raise ValueError(f"{key} {path!r} must be an absolute path without '..', '//' or a '/' at the end")
