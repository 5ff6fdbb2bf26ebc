#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# root.sh FOLDER: a root file system with Debian's Python and what it loads, and no program but Python and nsenter. Run inside Debian, by the
# Containerfile.
set -eu
root=$1

# Python's parts that need more than these libraries are left out below: no data bases, no terminal input, no user interface.
packages="base-files libc6 libgcc-s1 gcc-12-base libstdc++6 zlib1g libbz2-1.0 liblzma5 libexpat1 libffi8 libssl3 libuuid1
python3.11-minimal libpython3.11-minimal libpython3.11-stdlib
util-linux libselinux1 libpcre2-8-0"

mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/usr/lib64" "$root/var/lib/dpkg/status.d" /tmp/debs
for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$root/$folder"; done
cd /tmp/debs
# shellcheck disable=SC2086 # a list
apt-get download -qq $packages
for package in $packages; do
  # Into folders that are links: what has not moved to /usr yet must not replace them.
  dpkg-deb --fsys-tarfile "${package}"_*.deb | tar -x --keep-directory-symlink --no-same-owner -C "$root"
  # Where scanners look for Debian's packages in an image without dpkg.
  dpkg-deb --field "${package}"_*.deb >"$root/var/lib/dpkg/status.d/$package"
done
cd "$root"

# Of util-linux one program: the pfs plugin runs the node's own mount and stat, in the node's mount namespace.
find usr/bin usr/sbin -type f ! -name nsenter ! -name 'python3.11' -delete
find usr/bin usr/sbin -type l -delete

# The licences stay; what else is documentation goes, and what no program here uses.
find usr/share/doc -mindepth 2 ! -name copyright -delete
(cd usr/share && rm -rf applications apport base-files binfmts bug dict gcc gdb info lintian locale man misc pixmaps python3)
rm -rf usr/include usr/lib/*/gconv usr/lib/*/perl-base usr/lib/binfmt.d usr/lib/ssl/misc
(cd etc && rm -rf default dpkg init.d profile.d skel update-motd.d)
for module in _crypt _curses _curses_panel _dbm _sqlite3 nis readline; do rm -f usr/lib/python3.11/lib-dynload/$module.*; done
python=usr/lib/python3.11
rm -rf "$python"/config-3.11-* "$python"/test "$python"/unittest/test "$python"/idlelib "$python"/tkinter "$python"/turtle* "$python"/lib2to3 \
  "$python"/ensurepip "$python"/distutils "$python"/pydoc* "$python"/sqlite3 "$python"/curses "$python"/dbm "$python"/venv "$python"/xmlrpc \
  "$python"/__pycache__

mv var/lib/dpkg /tmp/dpkg
rm -rf home media mnt opt srv boot root usr/games usr/local usr/src usr/sbin/* tmp var run
mkdir -p dev proc sys run tmp etc usr/local/bin var/lib
mv /tmp/dpkg var/lib/
chmod 1777 tmp
ln -s ../run var/run
echo 'root:x:0:0:root:/:/nonexistent' >etc/passwd
echo 'root:x:0:' >etc/group
echo 'hosts: files dns' >etc/nsswitch.conf
