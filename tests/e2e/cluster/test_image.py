# SPDX-License-Identifier: Apache-2.0
"""What is in the image, and what is not."""

from __future__ import annotations

import json
import stat
import tarfile

import pytest

from tests.e2e.cluster.image import Image

MOST_BYTES = 90 * 10**6
SITE = "usr/local/lib/python3.11/dist-packages"
SBOM = "usr/share/doc/deviceplugin/sbom.cdx.json"
NOT_INSIDE = ("grpc_tools", "Cython", "pip", "pytest", "setuptools", "tests")


@pytest.fixture(scope="module")
def members(image: Image) -> dict[str, tarfile.TarInfo]:
    return image.members()


def test_it_is_small_and_the_same_each_time(image: Image, rebuilt_image: Image) -> None:
    size = image.compressed_size()
    print(f"image: {size / 1e6:.1f} MB compressed, {sum(member.size for member in image.members().values()) / 1e6:.1f} MB unpacked")
    assert size < MOST_BYTES
    before, after = image.digests(), rebuilt_image.digests()
    assert {path for path in before | after if before.get(path) != after.get(path)} == set()
    assert image.archive.read_bytes() == rebuilt_image.archive.read_bytes(), "the files are the same, their order or attributes are not"


def test_only_python_and_our_command_can_be_run(members: dict[str, tarfile.TarInfo]) -> None:
    folders = ("usr/bin/", "usr/sbin/", "usr/local/bin/", "bin/", "sbin/")
    assert {path for path in members if path.startswith(folders)} == {"usr/bin/nsenter", "usr/bin/python3.11", "usr/local/bin/deviceplugin"}
    assert {path for path, member in members.items() if member.mode & (stat.S_ISUID | stat.S_ISGID)} == set()
    assert {member.uname or member.uid for member in members.values()} <= {"root", 0}


def test_what_only_builds_and_tests_need_is_left_out(members: dict[str, tarfile.TarInfo]) -> None:
    packages = {path.removeprefix(f"{SITE}/").split("/")[0] for path in members if path.startswith(f"{SITE}/")}
    assert {"deviceplugin", "google", "grpc", "msgspec", "prometheus_client", "yaml"} <= packages
    assert packages.isdisjoint(NOT_INSIDE)
    assert not any(path.startswith(f"{SITE}/deviceplugin/") and path.endswith((".c", ".h", ".pyx", ".pxd")) for path in members)


def test_all_is_compiled_and_nothing_has_a_time_of_its_own(image: Image, members: dict[str, tarfile.TarInfo]) -> None:
    sources = [path for path in members if path.startswith((f"{SITE}/deviceplugin/", f"{SITE}/grpc/")) and path.endswith(".py")]
    compiled = {f"{folder}/__pycache__/{name[:-3]}.cpython-311.pyc" for folder, _, name in (path.rpartition("/") for path in sources)}
    assert sources
    assert compiled <= members.keys()
    assert len({member.mtime for member in members.values()}) == 1
    assert image.config["config"]["Labels"]["org.opencontainers.image.revision"]


def test_parts_and_licences_are_told(image: Image, members: dict[str, tarfile.TarInfo]) -> None:
    bill = json.loads(image.read(SBOM))
    told = {one["purl"].split("@")[0] for one in bill["components"]}
    assert {"pkg:pypi/deviceplugin", "pkg:pypi/grpcio", "pkg:deb/debian/libc6", "pkg:deb/debian/libssl3"} <= told
    assert all(one.get("licenses") for one in bill["components"]), [one["name"] for one in bill["components"] if not one.get("licenses")]
    for package in (one["name"] for one in bill["components"] if one["purl"].startswith("pkg:deb/")):
        assert f"usr/share/doc/{package}/copyright" in members or members[f"usr/share/doc/{package}"].issym(), package
    for package in {path.split("/")[-2] for path in members if path.startswith(f"{SITE}/") and path.endswith(".dist-info/METADATA")}:
        assert any(path.startswith(f"{SITE}/{package}/") and "LICENSE" in path.upper() for path in members), package
    assert image.config["config"]["Labels"]["org.opencontainers.image.version"] == bill["metadata"]["component"]["version"]
