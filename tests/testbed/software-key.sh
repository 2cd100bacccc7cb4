#!/usr/bin/env bash
# Build the key in software of OpenSSH's own tests, sk-dummy.so, from Debian's source package. It stands for a hardware key.
# usage: software-key.sh DIR
set -euo pipefail
mkdir -p "${1:?}/lists/partial" "$1/cache/archives/partial"
cd "$1"
. /etc/os-release
options=()
if [ "$ID" = debian ]; then # an image mostly has no deb-src line
  echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $VERSION_CODENAME main" > sources.list
  options=(-o "Dir::Etc::sourcelist=$PWD/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$PWD/lists"
    -o "Dir::Cache=$PWD/cache")
  apt-get "${options[@]}" update
fi
apt-get "${options[@]}" source --download-only openssh
rm -rf openssh && dpkg-source --no-check -x openssh_*.dsc openssh
cd openssh
touch configure config.h.in aclocal.m4 # Debian's patches are newer, and autoconf may be absent
./configure > /dev/null
make openbsd-compat/libopenbsd-compat.a regress/misc/sk-dummy/sk-dummy.so > /dev/null
cp regress/misc/sk-dummy/sk-dummy.so ..
