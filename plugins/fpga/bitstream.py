# SPDX-License-Identifier: Apache-2.0
"""Bitstreams on the node: where they are, what is in them, and whether they are what somebody vouched for.

A GBS file is a header of 20 bytes, metadata in JSON, and the image for the card. It says which interface it fits and which function it holds, but not
how long it is: that one is whole, only a digest can tell.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from typing import Annotated

import msgspec

from deviceplugin import Host

_HEAD = struct.Struct("<QQI")
_MAGIC = (0x414750466E6F6558, 0x31303076534247B7)
_METADATA = 4096
"""The metadata has fewer bytes than this, as for Intel's tools."""
_DIGEST = re.compile(rb"([0-9a-fA-F]{64})([ \t\r\n]|$)")
_CHUNK = 1 << 20

_Uuid = Annotated[str, msgspec.Meta(pattern="^[0-9A-Fa-f]{8}-?([0-9A-Fa-f]{4}-?){3}[0-9A-Fa-f]{12}$")]


class BitstreamError(Exception):
    """A bitstream must not be used. The text names the file and says why and what to do."""


class _Cluster(msgspec.Struct):
    uuid: _Uuid = msgspec.field(name="accelerator-type-uuid")


class _Image(msgspec.Struct):
    interface: _Uuid = msgspec.field(name="interface-uuid")
    clusters: list[_Cluster] = msgspec.field(name="accelerator-clusters")


class _Metadata(msgspec.Struct):
    image: _Image = msgspec.field(name="afu-image")


class Bitstream(msgspec.Struct, frozen=True):
    """A bitstream in memory: nobody can replace it any more. ``image`` is the part for the card."""

    interface: str
    afu: str
    image: memoryview


def parse(data: bytes, where: str, size: int = 0) -> Bitstream:
    """A GBS file, or the beginning of one that has ``size`` bytes. ``where`` is for the errors. Raises BitstreamError."""
    size = size or len(data)
    if len(data) < _HEAD.size:
        raise BitstreamError(f"{where} has {len(data)} bytes, fewer than the header of a GBS file")
    *magic, length = _HEAD.unpack_from(data)
    if tuple(magic) != _MAGIC:
        raise BitstreamError(f"{where} is no GBS file: it starts with {data[:16].hex()}")
    if not 0 < length < _METADATA:
        raise BitstreamError(f"{where}: its metadata would have {length} bytes, 1 to {_METADATA - 1} are allowed")
    if size <= _HEAD.size + length:
        raise BitstreamError(f"{where} ends after {size} bytes, before its image: it is truncated")
    try:
        image = msgspec.json.decode(data[_HEAD.size : _HEAD.size + length].rstrip(b"\0"), type=_Metadata).image
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # a ValidationError is a DecodeError
        raise BitstreamError(f"{where}: its metadata cannot be used: {error}") from error
    if len(image.clusters) != 1:
        raise BitstreamError(f"{where} has {len(image.clusters)} accelerator clusters in its metadata, exactly one is allowed")
    return Bitstream(_plain(image.interface), _plain(image.clusters[0].uuid), memoryview(data)[_HEAD.size + length :])


class Store:
    """The directory of bitstreams, ``<interface>/<afu>.gbs``, as Intel's plugin has it. For any thread."""

    def __init__(self, host: Host, directory: str, *, require_digest: bool, largest: int) -> None:
        self._host = host
        self._directory = directory
        self._require = require_digest
        self._largest = largest
        self._checked: dict[tuple[str, str, str], tuple[object, str]] = {}

    def path(self, interface: str, afu: str) -> str:
        """Where the host has the bitstream of a function for an interface."""
        return f"{self._directory}/{interface}/{afu}.gbs"

    def check(self, interface: str, afu: str, sha256: str = "") -> str:
        """Why the bitstream cannot be used, empty if it can. The file is read again only when it or its digest has changed."""
        key = (interface, afu, sha256)
        path = self.path(interface, afu)
        state = tuple(_state(self._host.path(one)) for one in (path, f"{path}.sha256"))
        known = self._checked.get(key)
        if known is None or known[0] != state:
            try:
                self._examine(interface, afu, sha256, _HEAD.size + _METADATA)
                known = (state, "")
            except BitstreamError as error:
                known = (state, str(error))
            self._checked[key] = known
        return known[1]

    def load(self, interface: str, afu: str, sha256: str = "") -> Bitstream:
        """Reads the bitstream and makes sure of it: size, digest, format, interface and function. Raises BitstreamError."""
        return self._examine(interface, afu, sha256, self._largest)

    def _examine(self, interface: str, afu: str, sha256: str, keep: int) -> Bitstream:
        """All of the file is looked at; so many bytes of it are kept."""
        path = self.path(interface, afu)
        expected = sha256.lower() or self._digest(path)
        data, size, actual = self._read(path, keep)
        if expected and actual != expected:
            raise BitstreamError(
                f"{path} has the sha256 {actual}, and should have {expected}: it is truncated, damaged or another file; copy it anew"
            )
        found = parse(data, path, size)
        if found.interface != interface:
            raise BitstreamError(f"{path} is for cards with interface {found.interface}, not {interface}")
        if found.afu != afu:
            raise BitstreamError(f"{path} holds the function {found.afu}, not {afu}")
        return found

    def _digest(self, path: str) -> str:
        """What sha256sum wrote beside the bitstream; empty if there need not be one. Raises BitstreamError."""
        try:
            with open(self._host.path(f"{path}.sha256"), "rb") as file:
                found = _DIGEST.match(file.read(256))
        except FileNotFoundError:
            if self._require:
                raise BitstreamError(
                    f"{path} has no digest: put what sha256sum says of it into a file .sha256 beside it, or say requireDigest: false"
                ) from None
            return ""
        except OSError as error:
            raise BitstreamError(f"{path}.sha256 cannot be read: {error.strerror}") from error
        if found is None:
            raise BitstreamError(f"{path}.sha256 does not start with 64 hexadecimal digits, as sha256sum writes them")
        return found[1].decode("ascii").lower()

    def _read(self, path: str, keep: int) -> tuple[bytes, int, str]:
        """The beginning of a file, how many bytes all of it has, and their digest, if nobody changed it meanwhile. Raises BitstreamError."""
        at = self._host.path(path)
        try:
            # Whatever else stands there, a FIFO for one, must not block.
            with open(os.open(at, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise BitstreamError(f"{path} is not a regular file")
                if before.st_size > self._largest:
                    raise BitstreamError(f"{path} has {before.st_size} bytes, more than largestBitstream, {self._largest}")
                parts, size, digest = [], 0, hashlib.sha256()
                while size <= before.st_size and (part := file.read(_CHUNK)):
                    digest.update(part)
                    if size < keep:
                        parts.append(part[: keep - size])
                    size += len(part)
                after = _key(os.fstat(file.fileno()))
        except OSError as error:
            raise BitstreamError(f"{path} cannot be read: {error.strerror}; put the bitstream there") from error
        if size != before.st_size or after != _key(before) or _state(at) != after:
            raise BitstreamError(f"{path} was changed or replaced while it was read; the next try reads it anew")
        return b"".join(parts), size, digest.hexdigest()


def _state(path: str) -> object:
    """Something that differs once the file is another or has changed; None if there is none."""
    try:
        return _key(os.stat(path))
    except OSError:
        return None


def _key(status: os.stat_result) -> object:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _plain(uuid: str) -> str:
    return uuid.replace("-", "").lower()
