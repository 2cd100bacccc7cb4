#!/usr/bin/env bash
# Stop a cluster of slurm-up.sh: its jobs, then its daemons by the pids they wrote. Idempotent.   usage: slurm-down.sh ROOT
# The slurmd of a cluster inside a lab live in the PID namespaces of its hosts. Stopping the lab ends them.
set -uo pipefail
ROOT=${1:?}
[ -d "$ROOT" ] || exit 0
. "$(cd "$(dirname "$0")" && pwd)/common.sh"
export SLURM_CONF=$ROOT/etc/slurm.conf
if [ -s "$ROOT/run/slurmctld.pid" ] && ours "$(cat "$ROOT/run/slurmctld.pid")"; then
  jobs=$(timeout 5 squeue -h -o %A 2>/dev/null)
  # shellcheck disable=SC2086 # a list of job numbers
  if [ -n "$jobs" ]; then timeout 5 scancel $jobs 2>/dev/null; sleep 1; fi
fi
[ -e "$ROOT/lab" ] || stop_recorded TERM "$ROOT"/run/slurmd-*.pid
# Steps whose slurmd a test has killed are in no pid file. Find them by the log file of this cluster, which they keep open.
for process in /proc/[0-9]*; do
  [ "$(cat "$process/comm" 2>/dev/null)" = slurmstepd ] || continue
  grep -qF " $ROOT/log/" <<< "$(ls -l "$process/fd" 2>/dev/null)" && kill -KILL "${process#/proc/}"
done
for pidfile in run/slurmctld.pid run/slurmdbd.pid mysql/mysqld.pid munge/munged.pid; do
  stop_recorded TERM "$ROOT/$pidfile"     # in this order: the controller writes to the database as it ends
done
rm -rf "$ROOT"
