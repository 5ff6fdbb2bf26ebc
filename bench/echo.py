# SPDX-License-Identifier: Apache-2.0
"""A bare grpcio server that answers Allocate with a constant: what any Python plugin pays. ``python -m bench.echo SOCKET``."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb


def allocate(request: pb.AllocateRequest, _context: grpc.ServicerContext) -> pb.AllocateResponse:
    spec = pb.DeviceSpec(container_path="/dev/fuse", host_path="/dev/fuse", permissions="rw")
    return pb.AllocateResponse(container_responses=[pb.ContainerAllocateResponse(devices=[spec]) for _ in request.container_requests])


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(4))
    handler = grpc.unary_unary_rpc_method_handler(allocate, pb.AllocateRequest.FromString, pb.AllocateResponse.SerializeToString)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1beta1.DevicePlugin", {"Allocate": handler}),))
    server.add_insecure_port(f"unix:{sys.argv[1]}")
    server.start()
    signal.pause()  # server.wait_for_termination() looks ten times a second whether it is over, which is no cost of gRPC's


if __name__ == "__main__":
    main()
