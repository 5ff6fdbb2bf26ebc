# SPDX-License-Identifier: Apache-2.0
"""Who has which address. All of them exist in the cluster's own network namespace only, which has no way out: a loopback interface, and for each pod
that is not on its node's network a pair of virtual interfaces.

The addresses that are not 127.0.0.1 are of the block that is set aside for documentation (RFC 5737), so they are nobody's elsewhere. They are needed
because Kubernetes takes no loopback address for a node or a pod.
"""

from __future__ import annotations

import json
from pathlib import Path

API_SERVER = "127.0.0.1:6443"
ETCD = "http://127.0.0.1:2379"
ETCD_PEERS = "http://127.0.0.1:2380"
CONTROL_PLANE = "198.51.100.1"
SERVICES = "198.51.100.128/26"


def node_address(number: int) -> str:
    """The address of a node, from 1 on."""
    return f"198.51.100.{1 + number}"


def pod_range(number: int) -> str:
    """The addresses of a node's pods."""
    return f"198.51.100.{32 * number}/27"


def network_plugin(number: int, records: Path) -> str:
    """The CNI configuration of a node. records: the folder for who has which address."""
    ranges = [[{"subnet": pod_range(number)}]]
    routes = [{"dst": f"{CONTROL_PLANE}/32"}]
    plugin = {"type": "ptp", "ipam": {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": str(records)}}
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]})
