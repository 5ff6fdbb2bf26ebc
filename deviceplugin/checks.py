# SPDX-License-Identifier: Apache-2.0
"""What the kubelet would not accept, or would accept and regret: names of resources, ids and contents of devices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from deviceplugin.model import Device, DeviceNode, Health, Mount

MAX_ID_BYTES = 255
"""No longer id is listed. The kubelet has no limit, but ids go into its checkpoint, pod status and container variables; its API says 63."""

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""grpc-go's default limit on what a client receives, which the kubelet leaves as it is: a longer list ends the stream for good."""

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_ATTRIBUTE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
_CDI = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?=[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")


def resource_name_error(name: str) -> str:
    """Why the kubelet would refuse ``name`` as an extended resource, empty if it would not.

    Mirrors IsExtendedResourceName (pkg/apis/core/v1/helper/helpers.go): ``requests.<name>`` must be a label key outside ``kubernetes.io/``.
    """
    domain, slash, kind = name.partition("/")
    if not slash or "/" in kind:
        return f"resource name {name!r} must have the form vendor.example/device, with exactly one slash"
    if "kubernetes.io/" in name:
        return f"resource name {name!r} is in kubernetes.io, which is reserved: use a domain of your own"
    if name.startswith("requests."):
        return f"resource name {name!r} must not start with 'requests.'"
    if len(domain) > 244:
        return f"resource name {name!r}: the domain has {len(domain)} characters, at most 244 are allowed"
    if not _SUBDOMAIN.fullmatch(domain):
        return f"resource name {name!r}: {domain!r} is not a DNS name: lower-case letters, digits, '-' and '.', as in vendor.example"
    if not 1 <= len(kind) <= 63:
        return f"resource name {name!r}: the part after the slash has {len(kind)} characters, 1 to 63 are allowed"
    if not _NAME.fullmatch(kind):
        return f"resource name {name!r}: {kind!r} must be letters, digits, '-', '_' and '.', and start and end with a letter or digit"
    return ""


def id_error(device_id: object) -> str:
    """Why an id cannot be listed, empty if it can."""
    if not isinstance(device_id, str):
        return f"device id {device_id!r} is {type(device_id).__name__}, not a string"
    if not device_id:
        return "device id is empty"
    try:
        encoded = device_id.encode()
    except UnicodeEncodeError:
        # Go refuses a message with such a string and drops the connection, and with it every device of the resource.
        return f"device id {device_id!r} is not valid UTF-8"
    if len(encoded) > MAX_ID_BYTES:
        return f"device id {device_id[:32]!r}... has {len(encoded)} bytes, at most {MAX_ID_BYTES} are allowed"
    if any(ord(c) < 32 or ord(c) == 127 for c in device_id):
        return f"device id {device_id!r} has control characters"
    if "::" in device_id:
        return f"device id {device_id!r} has '::' in it, which separates a device from the number of its replica"
    return ""


def device_errors(device: Device) -> Iterator[str]:
    """What keeps a device from being listed, in words."""
    bad_id = id_error(device.id)
    if bad_id:
        yield bad_id
        return
    if wrong := list(_wrong_types(device)):
        yield from wrong
        return
    for node in device.nodes:
        if not _absolute(node.path) or not _absolute(node.container_path):
            yield f"device {device.id}: device file {node.path!r} as {node.container_path!r}: both must be absolute paths in UTF-8"
        if not node.permissions or set(node.permissions) - set("rwm") or len(set(node.permissions)) != len(node.permissions):
            yield f"device {device.id}: permissions {node.permissions!r} of {node.path} must be of r, w and m, each at most once"
    for mount in device.mounts:
        if not _absolute(mount.path) or not _absolute(mount.container_path):
            yield f"device {device.id}: mount {mount.path!r} as {mount.container_path!r}: both must be absolute paths in UTF-8"
    for key, value in (*device.envs.items(), *device.annotations.items()):
        if not key or "=" in key or "\0" in key + value or not _encodes(key + value):
            yield f"device {device.id}: variable or annotation {key!r} cannot be passed to a container"
    for name in device.cdi:
        if not _CDI.fullmatch(name):
            yield f"device {device.id}: CDI device {name!r} must have the form vendor.example/class=name"
    for key in device.attributes:
        if not _ATTRIBUTE.fullmatch(key):
            yield f"device {device.id}: attribute {key!r} must be a C identifier of at most 32 characters"


def device_warnings(device: Device) -> Iterator[str]:
    """What a device's maker should know, though the kubelet takes it."""
    if len(device.id.encode()) > 63:
        yield f"device id {device.id[:32]!r}... has {len(device.id.encode())} bytes; the kubelet's API asks for at most 63"
    if "," in device.id:
        yield f"device id {device.id!r} has a comma, which separates ids where several are joined in one variable"
    if any(not 0 <= n <= 63 for n in device.numa_nodes):
        yield f"device {device.id}: NUMA nodes {sorted(device.numa_nodes)} outside 0 to 63 are left out"


def _wrong_types(device: Device) -> Iterator[str]:
    """Fields that hold something else than declared. Python lets it pass; a comparison or protobuf would fail later, and for all devices at once."""
    fields: tuple[tuple[str, Iterable[object], type], ...] = (
        ("unit, resource, cause or incarnation", (device.unit, device.resource, device.cause, device.incarnation), str),
        ("health", (device.health,), Health),
        ("numa_nodes", device.numa_nodes, int),
        ("nodes", device.nodes, DeviceNode),
        ("mounts", device.mounts, Mount),
        ("nodes", (part for node in device.nodes for part in (node.path, node.container_path, node.permissions)), str),
        ("mounts", (part for mount in device.mounts for part in (mount.path, mount.container_path)), str),
        ("envs", (*device.envs, *device.envs.values()), str),
        ("annotations", (*device.annotations, *device.annotations.values()), str),
        ("cdi", device.cdi, str),
        ("attributes", device.attributes, str),
    )
    for name, values, kind in fields:
        for value in values:
            if not isinstance(value, kind):
                yield f"device {device.id}: {name} must hold {kind.__name__}, not {type(value).__name__}"
                return


def _absolute(path: str) -> bool:
    return path.startswith("/") and "\0" not in path and _encodes(path)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
