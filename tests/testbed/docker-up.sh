#!/usr/bin/env bash
# Start a private dockerd: everything under ROOT, no bridge, no iptables. Containers and builds use --network=host.
# usage: docker-up.sh ROOT     then: DOCKER_HOST=unix://ROOT/docker.sock
set -euo pipefail
ROOT=${1:?}
HERE=$(cd "$(dirname "$0")" && pwd)
. "$HERE/common.sh"
bash "$HERE/docker-down.sh" "$ROOT"
mkdir -p "$ROOT"
setsid /usr/sbin/dockerd --data-root "$ROOT/data" --exec-root "$ROOT/exec" --pidfile "$ROOT/dockerd.pid" \
  -H "unix://$ROOT/docker.sock" --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false \
  --storage-driver=overlay2 --exec-opt native.cgroupdriver=cgroupfs --log-level=warn </dev/null >"$ROOT/dockerd.log" 2>&1 &
export DOCKER_HOST=unix://$ROOT/docker.sock
wait_for 20 docker version || { tail -n 20 "$ROOT/dockerd.log" >&2; exit 1; }
