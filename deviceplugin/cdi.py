# SPDX-License-Identifier: Apache-2.0
"""Container Device Interface: spec values, and the files from which runtimes read them.

A plugin says what a container gets in a :class:`Spec`, keeps it on the disk with :meth:`SpecDirectory.write`, and names the devices in
``Edits.cdi`` with :func:`qualified`. A runtime looks a name up each time it creates a container, so a file must be there before a device that it
describes is advertised, and must stay for as long as a container may be restarted.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from msgspec import Struct, field

from deviceplugin import files
from deviceplugin.model import DeviceNode, Edits, Host, Mount

DYNAMIC = "/var/run/cdi"
"""Where software puts specs. A tmpfs on most machines: what is there must be written again after a reboot."""
STATIC = "/etc/cdi"
"""Where administrators put specs. One below :data:`DYNAMIC` wins over one here that describes the same device."""

MAX_BYTES = 16 << 20

# Mirrors ValidateVendorName, ValidateClassName and ValidateDeviceName (pkg/parser/parser.go of the container device interface).
_VENDOR = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_CLASS = _VENDOR
_DEVICE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_READ_ONLY = ("ro", "nosuid", "nodev", "rbind", "rprivate")
_READ_WRITE = ("rw", "nosuid", "nodev", "rbind", "rprivate")


class CdiError(Exception):
    """A spec that runtimes would refuse, or a file that cannot be written or read. The text says which and what to do.

    ``errno`` is the system's number for the failure (``errno.ENOSPC``, ``errno.EROFS``), 0 where a spec is invalid.
    """

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.errno = number


class Hook(Struct, frozen=True, kw_only=True):
    """A program on the host that the runtime runs. ``args`` holds its name first, as in execve; ``timeout`` is seconds, None for no limit."""

    stage: str
    path: str
    args: tuple[str, ...] = ()
    envs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    timeout: int | None = None


class IntelRdt(Struct, frozen=True, kw_only=True):
    """The resctrl group a container joins. Of several devices of one container the last one's counts: give it to one device at most."""

    clos_id: str = ""
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerEdits(Edits):
    """What a spec can ask of the runtime besides variables, device files and mounts. ``annotations`` and ``cdi`` have no place in a spec."""

    hooks: tuple[Hook, ...] = ()
    additional_gids: tuple[int, ...] = ()
    intel_rdt: IntelRdt | None = None


_NOTHING = ContainerEdits()


class Spec(Struct, frozen=True, kw_only=True):
    """The devices of one kind. ``common`` is what a container gets once if it gets any of them."""

    kind: str
    devices: Mapping[str, ContainerEdits]
    common: ContainerEdits = _NOTHING

    @property
    def file_name(self) -> str:
        """``vendor.example-class.json``, as the CDI specification recommends: one kind, one file."""
        return _file_name(self.kind)

    def to_json(self) -> bytes:
        """The file's content: the same bytes for equal specs. Raises CdiError for what a runtime would refuse."""
        _check(self)
        content: dict[str, Any] = {"cdiVersion": _version(self), "kind": self.kind}
        content["devices"] = [{"name": name, "containerEdits": _edits(self.devices[name])} for name in sorted(self.devices)]
        if common := _edits(self.common):
            content["containerEdits"] = common
        return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def qualified(kind: str, name: str) -> str:
    """``vendor.example/class=name``: how a device is named to a runtime."""
    return f"{kind}={name}"


def is_device_name(name: str) -> bool:
    """Whether a device of a spec can be called so."""
    return _DEVICE.fullmatch(name) is not None


class SpecDirectory:
    """The spec files of this process. ``path`` is the host's; every access goes through ``host``."""

    def __init__(self, host: Host, path: str = DYNAMIC) -> None:
        self._path = path
        self._at = host.path(path)

    def write(self, spec: Spec) -> bool:
        """Puts the spec into its file, whole or not at all, mode 0644; False if the file holds it already. Raises CdiError."""
        content, target = spec.to_json(), os.path.join(self._at, spec.file_name)
        try:
            return files.replace(target, content)
        except OSError as error:
            raise CdiError(f"CDI spec {self._path}/{spec.file_name} cannot be written: {_advice(error)}", error.errno or 0) from error

    def has(self, kind: str) -> bool:
        """Whether the file that :meth:`write` makes for ``kind`` is there and describes it. Raises CdiError."""
        name = _file_name(kind)
        try:
            with open(os.path.join(self._at, name), "rb") as file:
                return _is_of_kind(file.read(MAX_BYTES), kind)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise CdiError(f"CDI spec {self._path}/{name} cannot be read: {_advice(error)}", error.errno or 0) from error

    def remove(self, kind: str) -> bool:
        """Removes the file that :meth:`write` makes for ``kind``; False if there is none. Others that describe the kind stay. Raises CdiError."""
        name = _file_name(kind)
        try:
            if not self.has(kind):
                return False
            os.unlink(os.path.join(self._at, name))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise CdiError(f"CDI spec {self._path}/{name} cannot be removed: {_advice(error)}", error.errno or 0) from error
        return True

    def leftovers(self, kinds: Iterable[str], remove: bool) -> Iterator[str]:
        """For :meth:`deviceplugin.Plugin.uninstall`: a line for each file of these kinds, removed if so wished. Raises CdiError."""
        for kind in kinds:
            if self.remove(kind) if remove else self.has(kind):
                yield f"CDI spec {self._path}/{_file_name(kind)}"


def published(path: str, kind: str) -> frozenset[str]:
    """The names of the devices of ``kind`` in a spec file, JSON or YAML, that others wrote; ``path`` is where this process finds it.

    None of them if the file is gone or describes another kind. Raises CdiError for a file that cannot be read as a spec.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES)
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise CdiError(f"CDI spec {path} cannot be read: {error.strerror}", error.errno or 0) from error
    raw = _parsed(path, content)
    if not isinstance(raw, dict) or not isinstance(raw.get("devices"), list):
        raise CdiError(f"CDI spec {path} cannot be used: it holds no list of devices")
    if raw.get("kind") != kind:
        return frozenset()
    return frozenset(name for entry in raw["devices"] if isinstance(entry, dict) and isinstance(name := entry.get("name"), str))


def _parsed(path: str, content: bytes) -> Any:
    if path.endswith(".json"):
        try:
            return json.loads(content)
        except ValueError as error:
            raise CdiError(f"CDI spec {path} is not valid JSON: {error}") from error
    import yaml  # 14 ms that only machines with such files spend

    try:
        return yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - the safe loader, in C where built
    except yaml.YAMLError as error:
        raise CdiError(f"CDI spec {path} is not valid YAML: {' '.join(str(error).split())}") from error


def _is_of_kind(content: bytes, kind: str) -> bool:
    try:
        raw = json.loads(content)
    except ValueError:
        return False
    return isinstance(raw, dict) and raw.get("kind") == kind


def _file_name(kind: str) -> str:
    return kind.replace("/", "-") + ".json"


def _advice(error: OSError) -> str:
    what = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what}: free some space there"
    if error.errno == errno.EROFS:
        return f"{what}: mount the directory read-write into this container"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{what}: the directory must be writable for this user"
    return what


def _edits(edits: ContainerEdits) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if edits.envs:
        content["env"] = [f"{key}={edits.envs[key]}" for key in sorted(edits.envs)]
    if edits.nodes:
        content["deviceNodes"] = [_node(node) for node in edits.nodes]
    if edits.mounts:
        content["mounts"] = [_mount(mount) for mount in edits.mounts]
    if edits.hooks:
        content["hooks"] = [_hook(hook) for hook in edits.hooks]
    if edits.additional_gids:
        content["additionalGids"] = list(edits.additional_gids)
    if rdt := edits.intel_rdt:
        values = {"closID": rdt.clos_id, "l3CacheSchema": rdt.l3_cache_schema, "memBwSchema": rdt.mem_bw_schema}
        content["intelRdt"] = {key: value for key, value in values.items() if value}
    return content


def _node(node: DeviceNode) -> dict[str, str]:
    host = {"hostPath": node.path} if node.path != node.container_path else {}
    return {"path": node.container_path, **host, "permissions": node.permissions}


def _mount(mount: Mount) -> dict[str, Any]:
    return {"hostPath": mount.path, "containerPath": mount.container_path, "options": list(_READ_ONLY if mount.read_only else _READ_WRITE)}


def _hook(hook: Hook) -> dict[str, Any]:
    content: dict[str, Any] = {"hookName": hook.stage, "path": hook.path}
    if hook.args:
        content["args"] = list(hook.args)
    if hook.envs:
        content["env"] = [f"{key}={hook.envs[key]}" for key in sorted(hook.envs)]
    if hook.timeout is not None:
        content["timeout"] = hook.timeout
    return content


def _version(spec: Spec) -> str:
    """The lowest version that has all that is used: a runtime refuses a version it does not know, and a field too new for the version.

    Mirrors MinimumRequiredVersion (specs-go/version.go).
    """
    everything = [spec.common, *spec.devices.values()]
    if any(edits.additional_gids or edits.intel_rdt for edits in everything):
        return "0.7.0"
    if "." in spec.kind.partition("/")[2]:
        return "0.6.0"
    if any(name[0].isdecimal() for name in spec.devices) or any(node.path != node.container_path for edits in everything for node in edits.nodes):
        return "0.5.0"
    return "0.3.0"


def _check(spec: Spec) -> None:
    vendor, slash, kind = spec.kind.partition("/")
    if not slash or not _VENDOR.fullmatch(vendor) or not _CLASS.fullmatch(kind):
        raise CdiError(f"CDI kind {spec.kind!r} must have the form vendor.example/class")
    if not spec.devices:
        raise CdiError(f"CDI spec of {spec.kind} describes no device: runtimes refuse such a file")
    for name, edits in spec.devices.items():
        place = qualified(spec.kind, name)
        if not is_device_name(name):
            raise CdiError(f"CDI device {place!r}: a name is letters, digits and '_.:-', and starts and ends with a letter or digit")
        if not _edits(edits):
            raise CdiError(f"CDI device {place} changes nothing: runtimes refuse that")
        for mistake in _mistakes(edits):
            raise CdiError(f"CDI device {place}: {mistake}")
    for mistake in _mistakes(spec.common):
        raise CdiError(f"CDI spec of {spec.kind}: {mistake}")


def _mistakes(edits: ContainerEdits) -> Iterator[str]:
    if edits.annotations or edits.cdi:
        yield "annotations and names of other CDI devices have no place in a spec"
    for key in (*edits.envs, *(key for hook in edits.hooks for key in hook.envs)):
        if not key or "=" in key:
            yield f"variable {key!r} must be a name without '='"
    for node in edits.nodes:
        if not node.path.startswith("/") or not node.container_path.startswith("/"):
            yield f"device file {node.path!r} as {node.container_path!r}: both must be absolute paths"
        if not node.permissions or set(node.permissions) - set("rwm"):
            yield f"device file {node.path}: permissions {node.permissions!r} must be of r, w and m"
    for mount in edits.mounts:
        if not mount.path.startswith("/") or not mount.container_path.startswith("/"):
            yield f"mount {mount.path!r} as {mount.container_path!r}: both must be absolute paths"
    for hook in edits.hooks:
        if hook.stage not in _HOOKS:
            yield f"hook {hook.path}: {hook.stage!r} is not one of {', '.join(_HOOKS)}"
        if not hook.path.startswith("/"):
            yield f"hook {hook.path!r} must be an absolute path"
    if any(gid <= 0 for gid in edits.additional_gids):
        yield "additional groups must be above 0"
    if (rdt := edits.intel_rdt) and (len(rdt.clos_id) >= 4096 or (rdt.clos_id != "/" and re.search(r"^\.{1,2}$|[/\n]", rdt.clos_id))):
        # ValidateIntelRdt (pkg/cdi/container-edits.go)
        yield f"resctrl group {rdt.clos_id[:64]!r} must be the name of a directory"
