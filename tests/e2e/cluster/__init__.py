# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes of two nodes on this machine, for end-to-end tests of what runs in a cluster.

etcd, API server, scheduler and controller manager, and two nodes, each a kubelet with its own containerd in a mount namespace of its own. All of them
share one network namespace that has no way out, so no address in it can meet one of this machine, and no packet leaves. From outside it is reached
through a unix socket (`cluster.api`) and `cluster.kubectl`. There is no cluster DNS and no kube-proxy: services have no address that works.
"""

from tests.e2e.cluster.api import Api, ApiError, Object
from tests.e2e.cluster.cluster import PODS, Cluster, is_ready, phase
from tests.e2e.cluster.worker import Worker

__all__ = ["PODS", "Api", "ApiError", "Cluster", "Object", "Worker", "is_ready", "phase"]
