#!/usr/bin/env bash
# Make a base image without a registry: this machine's CPython, its C library, a static busybox and pip. Takes seconds.
# usage: DOCKER_HOST=... [PYTHON=python3] docker-base.sh TAG
set -euo pipefail
TAG=${1:?} PYTHON=${PYTHON:-python3}
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
prefix=$("$PYTHON" -c 'import sys; print(sys.base_prefix)')
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

mkdir -p "$tree"/{bin,usr/bin,usr/local/bin,lib64,etc/ssl/certs,tmp,root,proc,sys,dev,var/tmp} "$tree$prefix"/{lib,bin}
chmod 755 "$tree" # mktemp makes it 700, and only root could run in the image
chmod 1777 "$tree/tmp"
cp "$(command -v busybox)" "$tree/bin/busybox"
for applet in $("$tree/bin/busybox" --list); do [ -e "$tree/bin/$applet" ] || ln -s busybox "$tree/bin/$applet"; done
ln -s /bin/env "$tree/usr/bin/env"
# The setup.py of deepspeed calls `bash -c`; busybox's shell is enough for that.
printf '#!/bin/sh\nexec /bin/sh "$@"\n' > "$tree/bin/bash"
chmod 755 "$tree/bin/bash"

cp "$prefix/bin/python$version" "$tree$prefix/bin/"
cp -a "$prefix"/lib/libpython* "$tree$prefix/lib/" 2>/dev/null || true
tar -C "$prefix/lib" --exclude=test --exclude=tests --exclude=site-packages --exclude=__pycache__ --exclude=idlelib \
  --exclude=tkinter --exclude=lib2to3 --exclude='config-*' --exclude=turtledemo -cf - "python$version" | tar -C "$tree$prefix/lib" -xf -
mkdir -p "$tree$prefix/lib/python$version/site-packages"
# Copy every shared library that the interpreter and its extension modules name, to the path where they expect it.
for binary in "$prefix/bin/python$version" "$prefix/lib/python$version"/lib-dynload/*.so; do
  ldd "$binary" 2>/dev/null | awk '/=> \//{print $3} /^\t\/lib64/{print $1}'
done | sort -u | while read -r library; do
  case "$library" in "$prefix"/*) continue ;; esac
  mkdir -p "$tree$(dirname "$library")"
  cp -L "$library" "$tree$library"
done
# Only packages ask for these: name resolution, and the C++ run time of torch and others.
for library in /lib/*-linux-gnu/libnss_{dns,files}.so.2 /lib/*-linux-gnu/libresolv.so.2 \
  /lib/*-linux-gnu/lib{gcc_s.so.1,m.so.6,rt.so.1,dl.so.2,pthread.so.0,util.so.1} /usr/lib/*-linux-gnu/libstdc++.so.6; do
  if [ -e "$library" ]; then mkdir -p "$tree$(dirname "$library")"; cp -L "$library" "$tree$library"; fi
done
for name in python python3 "python$version"; do ln -s "$prefix/bin/python$version" "$tree/usr/local/bin/$name"; done
echo 'root:x:0:0:root:/root:/bin/sh' > "$tree/etc/passwd"
echo 'root:x:0:' > "$tree/etc/group"
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then cp -L /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/"; fi
"$PYTHON" -m zipfile -e "$prefix/lib/python$version/ensurepip/_bundled/"pip-*.whl "$tree$prefix/lib/python$version/site-packages/"
tar -C "$tree" -c . | docker import -c 'ENV PATH=/usr/local/bin:/usr/bin:/bin' -c 'CMD ["python3"]' - "$TAG" >/dev/null
