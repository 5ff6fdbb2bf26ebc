# SPDX-License-Identifier: Apache-2.0
"""The options of the generic plugin: which device files, grouped how, under which names.

Keys are those of generic-device-plugin where it has them.
"""

from __future__ import annotations

import posixpath
import re
import string
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_USB_ID = re.compile(r"[0-9A-Fa-f]{4}")
_ATTRIBUTE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*(/[A-Za-z0-9_][A-Za-z0-9_.:-]*)*")
_WILD = re.compile(r"[*?\[]")

PLACEHOLDERS = ("id", "name", "path", "containerPath", "basename", "serial")
"""What a template may hold between braces."""


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Check(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """One thing that must hold for a device to be healthy: exactly one of ``exists``, ``openable`` and ``attribute``."""

    exists: str = ""
    """Another file of the host that must be there."""
    openable: bool = False
    """The device file can be opened for reading. To be busy is to be well."""
    attribute: str = ""
    """A sysfs attribute of the device or the nearest device above it; its value must fit ``equals``, ``in`` or ``min`` and ``max``."""
    equals: str | int | None = None
    any_of: list[str | int] | None = msgspec.field(name="in", default=None)
    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        kinds = [name for name, given in (("exists", self.exists), ("openable", self.openable), ("attribute", self.attribute)) if given]
        if len(kinds) != 1:
            raise ValueError(f"a check has exactly one of exists, openable and attribute, this one has {' and '.join(kinds) or 'none'}")
        ranged = self.min is not None or self.max is not None
        wants = [name for name, given in (("equals", self.equals is not None), ("in", self.any_of is not None), ("min or max", ranged)) if given]
        if self.attribute and len(wants) != 1:
            raise ValueError(
                f"attribute {self.attribute}: say what it must be with one of equals, in, and min or max, not {' and '.join(wants) or 'none'}"
            )
        if not self.attribute and wants:
            raise ValueError(f"{wants[0]} goes with attribute, not with {kinds[0]}")
        if self.attribute:
            _check_attribute(self.attribute)
        if self.exists:
            _check_path("exists", self.exists)
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"attribute {self.attribute}: min {self.min:g} is above max {self.max:g}")


class _Member(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What an entry of ``paths`` and one of ``usb`` have in common."""

    mount_path: str = ""
    """Where the container sees it, by default where the host does; with ``/`` at the end, the directory, and the name stays."""
    permissions: str | None = None
    """What the container may do with a device file: of r (read), w (write) and m (make such files), by default rw."""
    limit: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1
    """In how many devices of this group one match may be, where another entry has more matches."""
    optional: bool = False
    """The group's devices are there without it too."""
    shared: bool = False
    """The same file may be in devices of other groups, if they say so as well."""
    health: list[Check] = []

    def _check(self) -> None:
        if self.mount_path:
            _check_path("mountPath", self.mount_path)
        if self.permissions is not None and (not re.fullmatch("[rwm]{1,3}", self.permissions) or len(set(self.permissions)) != len(self.permissions)):
            raise ValueError(f"permissions {self.permissions!r} must be of r (read), w (write) and m (make), each at most once")


class Path(_Member, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Files of the host."""

    path: str = ""
    """A path, or a glob: ``*``, ``?`` and ``[...]`` match within one directory."""
    regex: str = ""
    """In place of ``path``: a directory, and a regular expression that the whole name of a file in it must match."""
    type: Literal["Device", "Mount"] = "Device"
    read_only: bool = False
    """Of a Mount."""
    match: dict[str, str | int | list[str | int]] = {}
    """sysfs attributes, and a glob (or several, one of which is enough) that each must match, in either case."""

    def __post_init__(self) -> None:
        if bool(self.path) == bool(self.regex):
            raise ValueError("an entry of paths has one of path and regex")
        self._check()
        if self.path:
            _check_path("path", self.path)
            if "[^" in self.path:
                raise ValueError(f"path {self.path!r}: write [!...] for characters that must not match")
        else:
            directory, _, name = self.regex.rpartition("/")
            _check_path("regex", self.regex)
            if not re.fullmatch(r"(/[\w.:-]+)+", directory) or not name:
                raise ValueError(f"regex {self.regex!r} must be a plain directory and an expression for the names in it, as in /dev/video[0-9]+")
            try:
                re.compile(name)
            except re.error as error:
                raise ValueError(f"regex {self.regex!r}: {name!r} is not a regular expression: {error}") from error
        if self.type == "Mount":
            self._check_mount()
        elif self.read_only:
            raise ValueError(f"{self.text}: readOnly is for type: Mount; for a device file write permissions: r")
        for name, wanted in self.match.items():
            _check_attribute(name)
            if any(isinstance(one, int) for one in (wanted if isinstance(wanted, list) else [wanted])):
                raise ValueError(f"match {name}: put the value in quotes: YAML reads numbers as decimal or octal, which sysfs does not write")
        if self.text.rpartition("/")[2].startswith("watchdog") and any(check.openable for check in self.health):
            raise ValueError(f"{self.text}: openable would start the watchdog, which then resets the machine")

    def _check_mount(self) -> None:
        for name, given in (("permissions", self.permissions is not None), ("match", self.match), ("shared", self.shared)):
            if given:
                raise ValueError(f"{self.text}: {name} is for device files, not for type: Mount")
        if any(check.openable or check.attribute for check in self.health):
            raise ValueError(f"{self.text}: a Mount can be checked with exists only")

    @property
    def text(self) -> str:
        """The path or the expression, for messages."""
        return self.path or self.regex

    @property
    def literal(self) -> bool:
        """Whether it can match one file only."""
        return bool(self.path) and not _WILD.search(self.path)

    @property
    def watched(self) -> str:
        """The path whose coming and going decides what is matched: the file, or the directory before the first wildcard."""
        if self.literal:
            return self.path
        wild = _WILD.search(self.path) if self.path else None
        return posixpath.dirname(self.path[: wild.start()] if wild else self.regex)


class Usb(_Member, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """USB devices as such, ``/dev/bus/usb/...``, for programs that talk USB themselves."""

    vendor: str | int
    product: str | int
    serial: str | int = ""

    def __post_init__(self) -> None:
        self._check()
        for key, value in (("vendor", self.vendor), ("product", self.product)):
            if isinstance(value, int):
                raise ValueError(f"{key}: put the four hexadecimal digits in quotes, as in '0403': YAML reads a bare {value} as a number")
            if not _USB_ID.fullmatch(value):
                raise ValueError(f"{key} {value!r} must be four hexadecimal digits, as in '0403'")
        if isinstance(self.serial, int):
            raise ValueError("serial: put it in quotes: YAML drops the zeros before a number")

    @property
    def text(self) -> str:
        return f"USB device {self.vendor}:{self.product}" + (f" with serial {self.serial}" if self.serial else "")


Entry = Path | Usb


class Group(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Files that go into a container together: each device of the group has one match of every entry."""

    paths: list[Path] = []
    usb: list[Usb] = []
    count: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1
    """How many containers may hold each device at a time. They share it: nothing keeps them apart."""
    identity: Literal["hardware", "port", "path"] = "hardware"
    """What a device's id is made of: its serial number, else where it is plugged in; always where it is plugged in; the path that matched."""
    envs: dict[str, str] = {}
    annotations: dict[str, str] = {}
    cdi: list[str] = []
    """Names of CDI devices that the container gets as well."""

    def __post_init__(self) -> None:
        if not self.paths and not self.usb:
            raise ValueError("a group needs paths or usb")
        if self.paths and self.usb:
            raise ValueError("a group has paths or usb, not both: put them into two groups, or find the USB device's file with match")
        for template in (*self.envs.values(), *self.annotations.values(), *self.cdi):
            check_template(template)

    @property
    def entries(self) -> list[Entry]:
        return [*self.paths, *self.usb]


class DeviceSpec(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """One resource, ``<domain>/<name>``; or with ``naming: per-device``, one for each device."""

    name: str
    groups: list[Group]
    """Any of them will do: their devices form one pool."""
    naming: Literal["pooled", "per-device"] = "pooled"
    resource_name: str = ""
    """With ``naming: per-device``, the template of the name after the slash, by default ``{id}``."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name {self.name!r} must be at most 63 letters, digits, '-', '_' and '.', and start and end with a letter or digit; "
                "what comes before the slash is domain"
            )
        if not self.groups:
            raise ValueError(f"device {self.name} needs at least one group")
        if self.resource_name and self.naming == "pooled":
            raise ValueError(f"device {self.name}: resourceName goes with naming: per-device")
        check_template(self.resource_name)


class GenericConfig(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The plugin's options."""

    domain: str = "devices.local"
    """What comes before the slash in the names of the resources."""
    devices: list[DeviceSpec] = []

    def __post_init__(self) -> None:
        if not _DOMAIN.fullmatch(self.domain) or len(self.domain) > 244:
            raise ValueError(f"domain {self.domain!r} must be a DNS name: lower-case letters, digits, '-' and '.', as in vendor.example")
        if self.domain == "kubernetes.io" or self.domain.endswith(".kubernetes.io"):
            raise ValueError(f"domain {self.domain!r} is reserved: use a domain of your own")
        names: set[str] = set()
        for device in self.devices:
            if device.name in names:
                raise ValueError(f"two devices are called {device.name!r}: make them groups of one device, or give one another name")
            names.add(device.name)
        self._check_twice()

    def _check_twice(self) -> None:
        """Finds what is a mistake on every machine; what depends on the machine is found at each look."""
        owners: dict[str, tuple[str, bool]] = {}
        for name, number, path in self._device_paths():
            place = f"group {number} of {name}"
            if path.text in owners:
                other, shared = owners[path.text]
                if not (shared and path.shared):
                    raise ValueError(
                        f"{path.text} is there twice, in {other} and in {place}: a device file can be in one device only; "
                        "leave one out, or say shared: true in both"
                    )
            owners[path.text] = (place, path.shared)

    def _device_paths(self) -> Iterator[tuple[str, int, Path]]:
        for device in self.devices:
            for number, group in enumerate(device.groups, 1):
                for path in group.paths:
                    if path.type == "Device" and not path.match:
                        yield device.name, number, path


def fill(template: str, values: dict[str, str]) -> str:
    """The template with its placeholders replaced."""
    return template.format_map(values)


def check_template(template: str) -> None:
    """Raises ValueError for anything but text, doubled braces and known placeholders."""
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"template {template!r}: {error}; write {{{{ and }}}} for braces") from error
    for name, spec, conversion in fields:
        if name not in PLACEHOLDERS or spec or conversion:
            raise ValueError(f"template {template!r}: {{{name}}} is not known; known: {', '.join(f'{{{p}}}' for p in PLACEHOLDERS)}")


def _check_path(key: str, path: str) -> None:
    if not path.startswith("/"):
        raise ValueError(f"{key} {path!r} must be an absolute path, as in /dev/fuse")
    if ".." in path.split("/") or "\0" in path:
        raise ValueError(f"{key} {path!r} must not have '..' in it")


def _check_attribute(name: str) -> None:
    if not _ATTRIBUTE.fullmatch(name):
        raise ValueError(f"attribute {name!r} must be the name of a file in sysfs, as in idVendor or power/control")
