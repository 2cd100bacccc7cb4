#!/usr/bin/env bash
# Stop a lab: its hosts by their recorded pids, its namespaces, cables and bridge by the names it gave them. Idempotent.
# usage: lab-down.sh ROOT
set -uo pipefail
ROOT=${1:?}
[ -f "$ROOT/lab.env" ] || { rm -rf "$ROOT"/{run,ssh,upper,shared}; exit 0; }
HERE=$(cd "$(dirname "$0")" && pwd)
. "$HERE/common.sh"
. "$ROOT/lab.env"
bash "$HERE/slurm-down.sh" "$ROOT/shared/slurm"     # a cluster inside the lab that a killed test run left
stop_recorded KILL "$ROOT"/run/node*.pid
for i in $(seq 1 "$N"); do
  ip link del "${TAG}v$i" 2>/dev/null
  ip netns del "$TAG-node$i" 2>/dev/null
done
ip link del "${TAG}br" 2>/dev/null
ip route del blackhole "$NET.0/24" metric 4096 2>/dev/null
# Delete only when no mount is left below, never through a mount. A host that is still ending keeps its mounts.
grep -qF " $ROOT/" /proc/self/mounts || rm -rf "$ROOT"
exit 0
