"""The names of a run directory's files. Launcher and agent take every name from here.

train/rundir/run_files.py has its own list, and a test holds the two together.
"""

# Rendered by the launcher for a start.
JOB = "job.yaml"
PLAN = "plan.json"
TRAIN = "train.json"
DS_CONFIG = "ds_config.json"
HOSTFILE = "hostfile"
NODE_SH = "node.sh"
DEEPSPEED_SH = "deepspeed.sh"
SBATCH = "train.sbatch"
CODE = "code"
RENDERED = (JOB, PLAN, TRAIN, DS_CONFIG, HOSTFILE, NODE_SH, DEEPSPEED_SH, SBATCH, CODE)

# Kept by the launcher.
RECORD = "run.json"
RECORD_LOCK = ".run.json.lock"
START_LOCK = ".start.lock"
PULL_LOCK = ".pull.lock"
CLAIMS = ".claims"
BEFORE = "before"
REPORT = "report.html"

# Written while the run lasts, by agents, ranks and launcher.
EVENTS = "events.jsonl"
NODES = "nodes"
LOGS = "logs"
AGENT_LOG = "agent.log"
ERRORS = "errors"
CONTROL = "control"
STOP = "stop"
CHECKPOINT = "checkpoint"

# Written by the training program.
METRICS = "metrics.jsonl"
CURVES = ".curves.json"
"""Kept by the launcher: what it has read of long metrics."""
CHECKPOINTS = "checkpoints"
COMPLETE = "COMPLETE"
"""Marks a checkpoint that is whole; a directory without it may be half written."""
ADAPTER = "adapter"
RESULT = "result.json"
PREDICTIONS = "predictions.jsonl"
EVALUATIONS = "evaluations"

# Slurm only.
SLURM_LOG = "slurm.log"
SLURM_ERROR = ERRORS + "/slurm.json"
"""What Slurm said of a failed job whose agents could not write."""
CANCELLED = "cancelled"


def node_record(node_rank: int) -> str:
    return "%s/node-%d.json" % (NODES, node_rank)


def node_logs(node_rank: int) -> str:
    return "%s/node-%d" % (LOGS, node_rank)


def rank_log(node_rank: int, rank: int) -> str:
    return "%s/rank-%d.log" % (node_logs(node_rank), rank)


def noticed(start: str) -> str:
    """The mark that the end of a job's start on Slurm was reported."""
    return "%s/noticed-%s" % (CONTROL, start)


def tracker_log(tracker: str) -> str:
    return "%s/tracker-%s.log" % (node_logs(0), tracker)


def rank_stack(node_rank: int, rank: int) -> str:
    return "%s/stack-%d.txt" % (node_logs(node_rank), rank)


def rank_error(rank: int) -> str:
    return "%s/rank-%d.json" % (ERRORS, rank)


def signals(node_rank: int) -> str:
    """Where a batch script leaves Slurm's signals for the agent."""
    return "%s/signals-%d" % (CONTROL, node_rank)
