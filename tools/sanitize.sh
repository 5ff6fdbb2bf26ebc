#!/bin/sh
# Builds the native modules with AddressSanitizer and UBSan, beside the usual ones, and runs their tests on them. Arguments replace the list of tests.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
python=$(command -v "${PYTHON:-$root/.venv/bin/python}")
build=$root/build/sanitize
# What is needed is copied, so that neither the objects nor the modules of the usual build are touched.
rm -rf "$build/deviceplugin" "$build/native" "$build/plugins" "$build/tests"
mkdir -p "$build"
cp -R deviceplugin native plugins tests setup.py pyproject.toml "$build/"
find "$build/deviceplugin" "$build/plugins" -name '*.so*' -delete
cd "$build"
DEVICEPLUGIN_SANITIZE=1 DEVICEPLUGIN_WERROR=1 "$python" setup.py --quiet build_ext --inplace

[ $# -gt 0 ] || set -- tests/unit/native tests/unit/allocation tests/unit/events tests/unit/gpu_topology tests/unit/nvml
# Python and its libraries leak on exit, so leaks are not looked for; pymalloc is left out so that each object is an allocation that ASan knows.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 \
  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
  PYTHONMALLOC=malloc PYTHONPATH="$build" \
  exec "$python" -m pytest -q --timeout 150 "$@"
