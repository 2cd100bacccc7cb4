"""Which files of a run travel between the launcher's machine and a login host of the cluster."""

from __future__ import annotations

from launcher.node import run_files as names

MIRRORED = (names.NODES, names.EVENTS, names.METRICS, names.ERRORS, names.LOGS, names.SLURM_LOG, names.HOSTFILE)
"""What the launcher's copy of a run is kept up to date with while the run lasts."""
RESULTS = (*MIRRORED, names.RESULT, names.PREDICTIONS, names.ADAPTER)
"""What is copied here when the run is over."""
CHECKPOINTS = names.CHECKPOINTS
"""Fetches the complete ones."""
NOT_SENT = frozenset({names.CHECKPOINTS, names.ADAPTER, names.LOGS, names.METRICS, names.CURVES, names.RESULT,
                      names.PREDICTIONS, names.SLURM_LOG, "inputs", names.BEFORE,
                      names.RECORD, names.RECORD_LOCK, names.START_LOCK, names.PULL_LOCK, names.CLAIMS})  # fmt: skip
"""What the run itself writes on the cluster, or only the launcher reads."""
STORE = ".inputs"
"""Directory beside the run directories on the login host: input files by the hash of their content."""
