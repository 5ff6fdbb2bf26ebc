# SPDX-License-Identifier: Apache-2.0
"""What docs/operate.md says is typed, box by box, by somebody who believes it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.cluster.image import Image
from tests.e2e.harness.images import PROBE_IMAGE

TOP = Path(__file__).resolve().parents[3]
PAGE = TOP / "docs" / "operate.md"
BOX_SECONDS = 300.0  # the kubelet alone takes a minute or two to bring a ConfigMap


def boxes() -> list[tuple[str, str]]:
    """What is to be typed, each with the heading above it."""
    found, heading = [], ""
    for part in re.finditer(r"^## ([^\n]*)$|^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        heading = part[1] or heading
        if part[2]:
            found.append((heading, part[2]))
    return found


@pytest.fixture
def reader(cluster: Cluster, image: Image, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Types a box and returns what is printed. The nodes have the images that the page speaks of, and /dev/fuse."""
    cluster.load(image.named([f"docker.io/library/deviceplugin:{tag}" for tag in ("latest", "next")], tmp_path))
    for node in cluster.nodes:
        node.ctr("images", "tag", "--force", PROBE_IMAGE, "docker.io/library/busybox:1.36")
        node.make_device("/dev/fuse", 10, 229)

    plane = cluster.plane
    environ = {**os.environ, "KUBECONFIG": str(plane.kubeconfig("reader", "system:masters")), "PATH": f"{plane.bin_dir}:{os.environ['PATH']}"}

    def read(box: str) -> str:
        argv = plane.inside(["bash", "-euo", "pipefail", "-c", box], cwd=TOP)
        done = subprocess.run(argv, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BOX_SECONDS, check=False)
        assert done.returncode == 0, f"{box}\nended with status {done.returncode}:\n{done.stdout}\n{done.stderr}\n{cluster.events()}"
        return done.stdout + done.stderr

    yield read
    cluster.kubectl("-n", "kube-system", "delete", "--ignore-not-found", "daemonset/deviceplugin", "configmap/deviceplugin")
    cluster.kubectl("delete", "--ignore-not-found", "pod/fuse-example")


@pytest.mark.timeout(900, func_only=True)
def test_the_page_can_be_followed_to_the_letter(reader: Callable[[str], str]) -> None:
    said: dict[str, str] = {}
    for heading, box in boxes():
        said[heading] = said.get(heading, "") + reader(box)
    assert "no devices" in said["Install"]
    assert re.search(r"^c\S+ .* /dev/fuse$", said["Configure"], re.MULTILINE)
    assert "default/fuse-example/main" in said["Configure"]
    assert "unknown key 'devcies', did you mean 'devices'?" in said["Configure"]
    assert "refused, as it should be" in said["Configure"]
    assert "[+] config: applied" in said["Observe"]
    assert 'deviceplugin_devices{health="healthy",resource="devices.local/fuse"} 10.0' in said["Observe"]
    assert re.search("fuse-example +1/1 +Running +0", said["Upgrade"]), "the pod lived through both updates"
    assert len(re.findall("^removed file /run/deviceplugin/devices.local_fuse.lock$", said["Uninstall"], re.MULTILINE)) == 2, said["Uninstall"]
    assert said["Uninstall"].count("condition met") == 2


def test_boxes_are_found() -> None:
    assert [heading for heading, _ in boxes()].count("Configure") >= 4
    assert os.path.exists(TOP / "examples" / "uninstall.yaml")
    assert subprocess.run(["bash", "-n"], input="\n".join(box for _, box in boxes()), text=True, check=False).returncode == 0
