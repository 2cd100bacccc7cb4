#!/usr/bin/env bash
# PID 1 of one simulated host, in its own namespaces: build the host's file system, enter it, run sshd.
# usage: BIND="/dir ..." GPUS=[G] DISK=1g lab-host-init.sh ROOT I        (see lab-up.sh)
set -euo pipefail
ROOT=$1 I=$2 HERE=$(cd "$(dirname "$0")" && pwd)
hostname "node$I"
mount --make-rprivate /
disk=$ROOT/upper/node$I
mkdir -p "$disk"
mount -t tmpfs -o size=$DISK,mode=755 tmpfs "$disk"
mkdir "$disk"/{up,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$disk/up,workdir=$disk/work" "$disk/root"
new=$disk/root
mount -t proc proc "$new/proc"
if [ -n "$GPUS" ]; then
  . "$HERE/gpuhosts/own-dev.sh"
else
  mount --rbind /sys "$new/sys"
  mount --rbind /dev "$new/dev"
  mount -t tmpfs -o mode=1777 tmpfs "$new/dev/shm"          # every host has its own shared memory
fi
mount -t tmpfs -o mode=755 tmpfs "$new/run"
mkdir -p "$new/run/sshd"
mount -t tmpfs -o mode=700 tmpfs "$new/root"                # an empty home without a ~/.bashrc
mount -t tmpfs -o mode=1777 tmpfs "$new/tmp"
mkdir -p "$new$ROOT"
mount -t tmpfs -o mode=755 tmpfs "$new$ROOT"                # of the lab, a host sees only what is bound below
for directory in "$ROOT/ssh" "$ROOT/shared" $BIND; do
  if [ -d "$directory" ]; then mkdir -p "$new$directory"; else mkdir -p "$(dirname "$new$directory")"; touch "$new$directory"; fi
  mount --bind "$directory" "$new$directory"
done
sed -i 's/^root:![^:]*:/root:*:/' "$new/etc/shadow"        # sshd without PAM refuses a locked account
cp "$ROOT/hosts" "$new/etc/hosts"
echo "node$I" > "$new/etc/hostname"
: > "$new/etc/resolv.conf"
cd "$new"
# As PID 1 bash reaps the orphans of this host: `wait -n` returns when sshd ends or a child was collected.
exec chroot "$new" /bin/bash -c '
  trap "exit 0" TERM
  /usr/sbin/sshd -D -e -f "$0/ssh/sshd$1.conf" &
  while :; do wait -n || sleep 1; sleep 0.2; done' "$ROOT" "$I"
