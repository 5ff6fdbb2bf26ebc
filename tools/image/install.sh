#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# install.sh FOLDER: builds our wheel from the current directory and installs it with its dependencies (from /wheels) into a root file system.
# VERSION and SOURCE_DATE_EPOCH are set. Run by the Containerfile.
set -eu
root=$1
site=usr/local/lib/python3.11/dist-packages
# No debugging information: Python's own flags ask for it.
export PYTHONHASHSEED=0 PIP_DISABLE_PIP_VERSION_CHECK=1 LDFLAGS=-s

sed -i "s/^__version__ = .*/__version__ = \"$VERSION\"/" deviceplugin/__init__.py
/tools/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels .
/tools/bin/pip install --quiet --no-index --no-compile --find-links /wheels --target "$root/$site" deviceplugin
# Extension modules are found without their sources and stubs; the test kit stays, for `deviceplugin demo`.
rm -rf "$root/$site/bin"
find "$root/$site" \( -name '*.pxd' -o -name '*.pyx' -o -name '*.pxi' \) -delete

# -I keeps Python from files and variables of the user's.
printf '#!/usr/bin/python3.11 -I\nimport sys\n\nfrom deviceplugin.cli import main\n\nsys.exit(main())\n' >"$root/usr/local/bin/deviceplugin"
chmod 755 "$root/usr/local/bin/deviceplugin"
mkdir -p "$root/etc/deviceplugin" "$root/usr/share/doc/deviceplugin"
cp LICENSE "$root/usr/share/doc/deviceplugin/"

# With hashes of the sources that nobody checks, byte code depends on no time, and none is written when the daemon runs.
find "$root" -name __pycache__ -prune -exec rm -rf {} +
/usr/bin/python3 -m compileall -q -j 1 --invalidation-mode unchecked-hash -s "$root" -p / "$root/usr/lib/python3.11" "$root/$site"
/usr/bin/python3 tools/image/sbom.py "$root" "$VERSION" >"$root/usr/share/doc/deviceplugin/sbom.cdx.json"
chown -R 0:0 "$root"
find "$root" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
