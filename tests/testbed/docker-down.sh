#!/usr/bin/env bash
# Stop a private dockerd by its recorded pid, undo its mounts, delete its data. Idempotent.   usage: docker-down.sh ROOT
set -uo pipefail
ROOT=${1:?}
[ -d "$ROOT" ] || exit 0
. "$(cd "$(dirname "$0")" && pwd)/common.sh"
if [ -s "$ROOT/dockerd.pid" ] && ours "$(cat "$ROOT/dockerd.pid")"; then
  containers=$(DOCKER_HOST=unix://$ROOT/docker.sock timeout 10 docker ps -q 2>/dev/null)
  # shellcheck disable=SC2086 # a list of container ids
  [ -z "$containers" ] || DOCKER_HOST=unix://$ROOT/docker.sock timeout 20 docker kill $containers >/dev/null 2>&1
fi
stop_recorded TERM "$ROOT/dockerd.pid"
awk -v root="$ROOT/" 'index($2, root) == 1 {print $2}' /proc/self/mounts | sort -r | while read -r point; do umount "$point"; done
grep -qF " $ROOT/" /proc/self/mounts || rm -rf "$ROOT"
exit 0
