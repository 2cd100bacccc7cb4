#!/usr/bin/env bash
# Stop a farm of sshd by their recorded pids. Idempotent.    usage: farm-down.sh ROOT
set -uo pipefail
ROOT=${1:?}
. "$(cd "$(dirname "$0")" && pwd)/common.sh"
stop_recorded TERM "$ROOT"/node*/sshd.pid
rm -rf "$ROOT"
