#!/usr/bin/env bash
# Start a real Slurm cluster of N nodes on one machine. All of its state lies under ROOT.
#   flat:    N slurmd on this machine (several slurmd, one file system)
#   LAB=DIR  one slurmd inside each host of a lab; ROOT must then lie under DIR/shared
# usage: BASE_PORT=26800 [LAB=DIR] [DBD=ROOT CLUSTER=NAME] slurm-up.sh ROOT N [accounting]
#   DBD: root of a cluster with accounting; this one is then a second cluster CLUSTER of the same slurmdbd, for -M.
# Ports: controller BASE_PORT, slurmdbd +1, MariaDB +2, slurmd i +100+i.
# Other knobs (environment): CRED_EXPIRE seconds (a requeued job waits at least twice that), SLURMD_TIMEOUT seconds.
set -euo pipefail
ROOT=${1:?} N=${2:?} ACCOUNTING=${3:-}; : "${BASE_PORT:?}"
LAB=${LAB:-}
HERE=$(cd "$(dirname "$0")" && pwd)
. "$HERE/common.sh"
bash "$HERE/slurm-down.sh" "$ROOT"
mkdir -p "$ROOT"/{etc,log,run,state,spool,munge,munge-run,dev}
chmod 755 "$ROOT" "$ROOT"/*
chmod 700 "$ROOT/munge"
controller=127.0.0.1
if [ -n "$LAB" ]; then . "$LAB/lab.env"; controller=$NET.1; : > "$ROOT/lab"; fi

# Two GPUs per node that are only device files (with the numbers of /dev/null): enough for --gres, never used. Hosts of
# a lab that have real GPUs offer these.
for gpu in 0 1; do mknod -m 666 "$ROOT/dev/nvidia$gpu" c 1 3; done
G=${GPUS:-0}
if [ "$G" = 0 ]; then
  cpus=4 memory=4000 gres="gpu:h200:2" devices="NodeName=node[1-$N] Name=gpu Type=h200 File=$ROOT/dev/nvidia[0-1]"
else
  cpus=$(($(nproc) / N)) memory=$(($(awk "/^MemTotal:/ {print \$2}" /proc/meminfo) / 1024 / N)) gres="gpu:$G"
  devices=$(for i in $(seq 1 "$N"); do echo "NodeName=node$i Name=gpu File=/dev/nvidia[$(((i - 1) * G))-$((i * G - 1))]"; done)
fi

CLUSTER=${CLUSTER:-zlaunch} DBD=${DBD:-}
MUNGE=${DBD:-$ROOT}/munge-run/munge.socket # clusters of one slurmdbd share a key
DBD_PORT=$((BASE_PORT + 1))
[ -z "$DBD" ] || DBD_PORT=$(sed -n 's/^AccountingStoragePort=//p' "$DBD/etc/slurm.conf")
# munge with its own key and socket. It requires directories that only their owner may write.
if [ -z "$DBD" ]; then
  dd if=/dev/urandom of="$ROOT/munge/munge.key" bs=1 count=1024 status=none
  chmod 400 "$ROOT/munge/munge.key"
  munged --key-file="$ROOT/munge/munge.key" --socket="$MUNGE" --pid-file="$ROOT/munge/munged.pid" \
    --log-file="$ROOT/munge/munged.log" --seed-file="$ROOT/munge/munged.seed" --force 2>/dev/null
fi

if [ -n "$ACCOUNTING$DBD" ]; then
  storage="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=$DBD_PORT
AccountingStoragePass=$MUNGE
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5"
else
  storage="AccountingStorageType=accounting_storage/none"
fi
hardware="CPUs=$cpus Boards=1 SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$memory Gres=$gres State=UNKNOWN"
if [ -n "$LAB" ]; then
  nodes=$(for i in $(seq 1 "$N"); do echo "NodeName=node$i NodeAddr=$NET.$((10 + i)) Port=$((BASE_PORT + 100)) $hardware"; done)
else
  nodes="NodeName=node[1-$N] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[$((BASE_PORT + 101))-$((BASE_PORT + 100 + N))] $hardware"
fi
# Nodes on paper, which never answer: what Slurm tells of partitions with unlike nodes.
paper="NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((BASE_PORT + 99)) Boards=1 SocketsPerBoard=1 ThreadsPerCore=1 State=DOWN"
cat > "$ROOT/etc/slurm.conf" <<CONF
ClusterName=$CLUSTER
SlurmctldHost=$(hostname -s)($controller)
SlurmctldPort=$BASE_PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$MUNGE,cred_expire=${CRED_EXPIRE:-6}
CredType=cred/munge
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool/%n
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd-%n.pid
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=10000
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=${SLURMD_TIMEOUT:-10}
InactiveLimit=0
MaxArraySize=${MAX_ARRAY:-1001}
MinJobAge=600
KillWait=3
Waittime=0
BatchStartTimeout=5
MessageTimeout=10
TCPTimeout=2
GresTypes=gpu
PropagateResourceLimitsExcept=MEMLOCK
$storage
$nodes
NodeName=mixed1 CoresPerSocket=16 RealMemory=8000 Gres=gpu:h100:4 Feature=fabric $paper
NodeName=mixed2 CoresPerSocket=8 RealMemory=64000 Gres=gpu:a10:4 $paper
NodeName=plain[1-2] CoresPerSocket=8 RealMemory=8000 Gres=gpu:4 Feature=gpu_a100_40gb $paper
NodeName=odd1 CoresPerSocket=8 RealMemory=8000 Gres=gpu:secret:4 $paper
PartitionName=gpu Nodes=node[1-$N] Default=YES MaxTime=01:00:00 DefaultTime=00:05:00 State=UP
PartitionName=short Nodes=node[1-$N] MaxTime=00:02:00 DefaultTime=00:01:00 State=UP
PartitionName=mixed Nodes=mixed[1-2] State=UP
PartitionName=plain Nodes=plain[1-2] State=UP MaxCPUsPerNode=6
PartitionName=odd Nodes=odd1 State=UP DefCpuPerGPU=3
CONF
cat > "$ROOT/etc/gres.conf" <<CONF
AutoDetect=off
$devices
NodeName=mixed1 Name=gpu Type=h100 Count=4
NodeName=mixed2 Name=gpu Type=a10 Count=4
NodeName=plain[1-2] Name=gpu Count=4
NodeName=odd1 Name=gpu Type=secret Count=4
CONF
cat > "$ROOT/etc/cgroup.conf" <<CONF
CgroupPlugin=cgroup/v1
CgroupAutomount=no
ConstrainCores=no
ConstrainDevices=no
ConstrainRAMSpace=no
CONF

export SLURM_CONF=$ROOT/etc/slurm.conf
[ -z "$ACCOUNTING" ] || bash "$HERE/slurm-accounting.sh" "$ROOT" "$BASE_PORT"
[ -z "$DBD" ] || { sacctmgr -i add cluster "$CLUSTER"; sacctmgr -i add account lab Cluster="$CLUSTER"
  sacctmgr -i add user root Account=lab Cluster="$CLUSTER"; } >/dev/null
slurmctld -f "$SLURM_CONF" >/dev/null 2>&1
for i in $(seq 1 "$N"); do
  mkdir -p "$ROOT/spool/node$i"
  if [ -n "$LAB" ]; then
    ssh -n -F "$LAB/ssh/config" "node$i" "/usr/sbin/slurmd -f $SLURM_CONF -N node$i >/dev/null 2>&1"
  else
    slurmd -f "$SLURM_CONF" -N "node$i" >/dev/null 2>&1
  fi
done
idle() { [ "$(timeout 5 sinfo -h -p gpu -t idle -o %D 2>/dev/null)" = "$N" ]; }
wait_for 20 idle || { sinfo -N -l >&2; tail -n 5 "$ROOT"/log/slurm*.log >&2; exit 1; }
