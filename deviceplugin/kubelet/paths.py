# SPDX-License-Identifier: Apache-2.0
"""Where the kubelet's sockets are, below an injectable root, and what our own are called."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat

from msgspec import Struct

SUN_PATH_MAX = 107
"""Characters in the path of a unix socket (sockaddr_un.sun_path less its final zero)."""

NAME_MAX = 75
"""Characters in the name of our socket: what sun_path leaves after ``/var/lib/kubelet/device-plugins/``."""


SOCKET_NAME = re.compile(r"\.?(.+)-[0-9a-f]{8}-[0-9]+\.sock")
"""What our sockets are called: the resource, something random and a number."""


class Paths(Struct, frozen=True):
    """The node's directories as this process sees them."""

    device_plugins: str
    plugins_registry: str
    pod_resources: str
    locks: str
    state: str

    @property
    def kubelet_socket(self) -> str:
        return os.path.join(self.device_plugins, "kubelet.sock")

    @classmethod
    def below(cls, root: str) -> Paths:
        """The usual places. The device-plugins directory is fixed in the kubelet, whatever its --root-dir says."""

        def at(path: str) -> str:
            return os.path.join(root, path)

        return cls(
            device_plugins=at("var/lib/kubelet/device-plugins"),
            plugins_registry=at("var/lib/kubelet/plugins_registry"),
            pod_resources=at("var/lib/kubelet/pod-resources/kubelet.sock"),
            locks=at("run/deviceplugin"),
            state=at("var/lib/deviceplugin"),
        )


def socket_stem(resource: str, limit: int) -> str:
    """``resource`` as the first part of a file name of at most ``limit`` characters: no slash, and nothing that a URL would take for more than a path
    (the kubelet parses the socket's path as one).
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", resource)
    if len(plain) <= limit:
        return plain
    import hashlib  # 5 ms, for few

    digest = hashlib.sha256(resource.encode()).hexdigest()[:10]
    return f"{plain[: limit - 11]}-{digest}"


class SocketId(Struct, frozen=True):
    """Which socket a path leads to. The inode number alone is no proof: file systems use it again at once."""

    device: int
    inode: int
    changed_ns: int

    def same_file(self, other: SocketId | None) -> bool:
        """Whether both are one inode, though somebody may have changed its mode or owner in between."""
        return other is not None and (self.device, self.inode) == (other.device, other.inode)


def identify(path: str) -> SocketId | None:
    """The socket at ``path``, None if there is none. A symbolic link is not followed: nobody may point us elsewhere."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return SocketId(found.st_dev, found.st_ino, found.st_ctime_ns) if stat.S_ISSOCK(found.st_mode) else None


def listening(path: str) -> bool:
    """Whether somebody accepts connections on the socket at ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def abandoned(path: str) -> bool:
    """Whether ``path`` is a socket whose server is gone for good. A server that is only slow to accept is not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # A file that is no socket refuses connections too.
        return identify(path) is not None and probe.connect_ex(path) == errno.ECONNREFUSED
