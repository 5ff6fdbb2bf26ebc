#!/bin/sh
# Generates deviceplugin/kubelet/*_pb2.py and .pyi from proto/. With --check it compares instead and fails when they differ.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"$python" -m grpc_tools.protoc --proto_path=deviceplugin/kubelet=proto --python_out="$out" --pyi_out="$out" \
  proto/deviceplugin_v1beta1.proto proto/pluginregistration_v1.proto proto/podresources_v1.proto
if [ "${1:-}" = --check ]; then
  for made in "$out"/deviceplugin/kubelet/*; do
    cmp -s "$made" "deviceplugin/kubelet/$(basename "$made")" || {
      echo "generated code is stale: $(basename "$made") does not match proto/; run 'make protos'" >&2
      exit 1
    }
  done
else
  cp "$out"/deviceplugin/kubelet/* deviceplugin/kubelet/
fi
