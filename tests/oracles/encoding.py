# SPDX-License-Identifier: Apache-2.0
"""deviceplugin._native.encoding with protobuf."""

from __future__ import annotations

from collections.abc import Sequence

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb


def encode_list(ids: Sequence[str], healthy: Sequence[bool], numa: Sequence[tuple[int, ...]]) -> bytes:
    message = pb.ListAndWatchResponse()
    for id_, good, nodes in zip(ids, healthy, numa, strict=True):
        device = message.devices.add(ID=id_, health="Healthy" if good else "Unhealthy")
        for node in nodes:
            device.topology.nodes.add(ID=node)
    return message.SerializeToString()
