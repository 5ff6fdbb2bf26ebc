"""A real kubelet with its own containerd on this machine, for end-to-end tests.

    node = Node(bin_dir)
    node.start()
    with node.pod(Pod.single("one", limits={"example.com/fuse": 1}, command=probe("/dev/fuse"))):
        assert node.probe("one").devices == {"/dev/fuse": "ok"}
    node.stop()

Order matters with a kubelet that has no API server: a pod that names a resource no plugin has yet listed starts without devices. So:
start the node, start the plugin, `node.wait_resource(...)`, then create pods.
"""

from tests.e2e.harness.node import Node, Probe
from tests.e2e.harness.podresources import PodResources
from tests.e2e.harness.pods import Container, Pod, PodStatus, probe
from tests.e2e.harness.settings import Runtime
from tests.e2e.harness.waiting import WaitError, wait_for

__all__ = ["Container", "Node", "Pod", "PodResources", "PodStatus", "Probe", "Runtime", "WaitError", "probe", "wait_for"]
