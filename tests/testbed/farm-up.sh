#!/usr/bin/env bash
# Start N real sshd on this machine, node1..nodeN, one loopback address each: to count connections, not to separate hosts.
# usage: NET=127.97.0 [PORT=2222] farm-up.sh ROOT N        (stops an older farm of the same ROOT first)
set -euo pipefail
ROOT=${1:?} N=${2:?} PORT=${PORT:-2222}; : "${NET:?}"
HERE=$(cd "$(dirname "$0")" && pwd)
. "$HERE/common.sh"
bash "$HERE/farm-down.sh" "$ROOT"
mkdir -p "$ROOT" /run/sshd
ssh-keygen -q -t ed25519 -N '' -C testbed -f "$ROOT/id_ed25519"
cp "$ROOT/id_ed25519.pub" "$ROOT/authorized_keys"
IFS=. read -r one two three <<< "$NET"
for i in $(seq 1 "$N"); do
  address=$one.$((two + (i - 1) / 250)).$three.$(((i - 1) % 250 + 1)) home=$ROOT/node$i # past 250: the next network
  mkdir -p "$home"
  ssh-keygen -q -t ed25519 -N '' -C "node$i" -f "$home/hostkey"
  printf '[%s]:%s %s\n' "$address" "$PORT" "$(cut -d' ' -f1,2 "$home/hostkey.pub")" >> "$ROOT/known_hosts"
  printf 'Host node%s\n  HostName %s\n  Port %s\n' "$i" "$address" "$PORT" >> "$ROOT/config"
  # Each host has its own home, so that `~` differs between hosts as in reality.
  { printf 'ListenAddress %s:%s\nHostKey %s\nPidFile %s\nSetEnv FARM_HOST=node%s HOME=%s\n' \
      "$address" "$PORT" "$home/hostkey" "$home/sshd.pid" "$i" "$home"
    sshd_options "$ROOT/authorized_keys"; } > "$home/sshd_config"
  /usr/sbin/sshd -f "$home/sshd_config" -E "$home/sshd.log"
done
ssh_client_options "$ROOT" >> "$ROOT/config"
