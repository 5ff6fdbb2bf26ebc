# SPDX-License-Identifier: Apache-2.0
"""A kubelet.sock that accepts every registration and keeps the stream open: all that a plugin needs. ``python -m bench.registrar DIRECTORY``."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb


def main() -> None:
    directory = sys.argv[1]

    def register(request: pb.RegisterRequest, _context: grpc.ServicerContext) -> pb.Empty:
        channel = grpc.insecure_channel(f"unix:{os.path.join(directory, request.endpoint)}")
        listen = channel.unary_stream("/v1beta1.DevicePlugin/ListAndWatch", request_serializer=pb.Empty.SerializeToString)

        def read() -> None:
            try:
                for _ in listen(pb.Empty()):
                    continue
            except grpc.RpcError:
                channel.close()

        threading.Thread(target=read, daemon=True).start()
        return pb.Empty()

    server = grpc.server(ThreadPoolExecutor(4))
    handler = grpc.unary_unary_rpc_method_handler(register, pb.RegisterRequest.FromString, pb.Empty.SerializeToString)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1beta1.Registration", {"Register": handler}),))
    server.add_insecure_port(f"unix:{os.path.join(directory, 'kubelet.sock')}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
