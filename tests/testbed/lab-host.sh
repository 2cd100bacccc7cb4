#!/usr/bin/env bash
# Switch one host of the lab on (again). Its disk is new and empty, as after a reinstallation.
# usage: lab-host.sh ROOT I [nowait]
set -euo pipefail
ROOT=${1:?} I=${2:?}
HERE=$(cd "$(dirname "$0")" && pwd)
. "$HERE/common.sh"
. "$ROOT/lab.env"
# --kill-child: the pid recorded here is the host's power switch. Killing it ends every process of the host.
ip netns exec "$TAG-node$I" setsid unshare --uts --ipc --pid --mount --fork --kill-child=KILL \
  env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin BIND="$BIND" GPUS="$GPUS" DISK="$DISK" \
  bash "$HERE/lab-host-init.sh" "$ROOT" "$I" </dev/null >"$ROOT/run/node$I.log" 2>&1 &
echo $! > "$ROOT/run/node$I.pid"
[ "${3:-}" = nowait ] || wait_for 10 bash -c "exec 3<>/dev/tcp/$NET.$((10 + I))/22"
