#!/usr/bin/env bash
# Start N simulated hosts, node1..nodeN at NET.11, NET.12, ... Each has its own network, hostname, processes, IPC, private
# writable file system (an overlay on tmpfs over that of this machine) and a real sshd. ROOT/shared is their NFS.
# usage: TAG=zl0 NET=10.97.0 [BIND="/dir /dir"] lab-up.sh ROOT N        (stops an older lab of the same ROOT first)
#   GPUS=G   a /dev of its own for every host, with G of this machine's GPUs that no other host has (0: without any)
#   MTU=9000 of the network (default: the kernel's); DISK=24g size of a host's disk in memory (default 1g)
# The bridge is named TAGbr, the cables TAGv1.., the network namespaces TAG-node1..; two labs need different TAG and NET.
set -euo pipefail
ROOT=${1:?} N=${2:?}; : "${TAG:?}" "${NET:?}"
HERE=$(cd "$(dirname "$0")" && pwd)
. "$HERE/common.sh"
bash "$HERE/lab-down.sh" "$ROOT"
mkdir -p "$ROOT"/{ssh,run,shared,upper}
chmod 755 "$ROOT" "$ROOT/ssh"
# With GPUs, hosts also see what this machine has mounted below its system directories: drivers and CUDA often are.
[ -z "${GPUS:-}" ] || BIND="${BIND:-} $(findmnt -rn -o TARGET | grep -E '^/(opt|usr|lib)' | tr '\n' ' ' || true)"
printf 'TAG=%q\nNET=%q\nN=%q\nBIND=%q\nGPUS=%q\nDISK=%q\n' "$TAG" "$NET" "$N" "${BIND:-}" "${GPUS:-}" "${DISK:-1g}" \
  > "$ROOT/lab.env"

# While a host is down, nothing may leak to the default route: a lab address without a cable is unreachable.
ip route replace blackhole "$NET.0/24" metric 4096
ip link add "${TAG}br" type bridge
ip addr add "$NET.1/24" dev "${TAG}br"
ip link set "${TAG}br" ${MTU:+mtu "$MTU"} up
ip link set lo up    # a bare virtual machine may lack even this one

ssh-keygen -q -t ed25519 -N '' -C testbed -f "$ROOT/ssh/id_ed25519"
cp "$ROOT/ssh/id_ed25519.pub" "$ROOT/ssh/authorized_keys"
{ echo "127.0.0.1 localhost"; echo "$NET.1 ctl"; for i in $(seq 1 "$N"); do echo "$NET.$((10 + i)) node$i"; done; } > "$ROOT/hosts"

for i in $(seq 1 "$N"); do
  address=$NET.$((10 + i)) namespace=$TAG-node$i
  ip netns add "$namespace"
  ip link add "${TAG}v$i" type veth peer name eth0 netns "$namespace"
  ip link set "${TAG}v$i" master "${TAG}br" ${MTU:+mtu "$MTU"} up
  ip -n "$namespace" addr add "$address/24" dev eth0
  ip -n "$namespace" link set eth0 ${MTU:+mtu "$MTU"} up
  ip -n "$namespace" link set lo up

  ssh-keygen -q -t ed25519 -N '' -C "node$i" -f "$ROOT/ssh/hostkey$i"
  key=$(cut -d' ' -f1,2 "$ROOT/ssh/hostkey$i.pub")
  printf '%s %s\n' "node$i" "$key" "$address" "$key" >> "$ROOT/ssh/known_hosts"
  printf 'Host node%s\n  HostName %s\n  HostKeyAlias node%s\n' "$i" "$address" "$i" >> "$ROOT/ssh/config"
  { printf 'Port 22\nListenAddress %s\nHostKey %s\nPidFile none\n' "$address" "$ROOT/ssh/hostkey$i"
    sshd_options "$ROOT/ssh/authorized_keys"; } > "$ROOT/ssh/sshd$i.conf"
done
ssh_client_options "$ROOT/ssh" >> "$ROOT/ssh/config"

for i in $(seq 1 "$N"); do bash "$HERE/lab-host.sh" "$ROOT" "$i" nowait; done
for i in $(seq 1 "$N"); do
  wait_for 10 bash -c "exec 3<>/dev/tcp/$NET.$((10 + i))/22" || { cat "$ROOT/run/node$i.log" >&2; exit 1; }
done
