"""Which files of a run travel between the launcher's machine and a login host of the cluster."""

from __future__ import annotations

MIRRORED = ("nodes", "events.jsonl", "metrics.jsonl", "errors", "logs", "slurm.log", "hostfile")
"""What the launcher's copy of a run is kept up to date with while it runs."""
RESULTS = (*MIRRORED, "result.json", "predictions.jsonl", "adapter")
"""What comes home when it is over."""
CHECKPOINTS = "checkpoints"
"""Fetches the complete ones."""
NOT_SENT = frozenset({"checkpoints", "adapter", "logs", "metrics.jsonl", "result.json", "predictions.jsonl",
                      "slurm.log", "inputs", "before", "run.json", ".run.json.lock"})  # fmt: skip
"""What the run itself writes on the cluster, or only the launcher reads."""
STORE = ".inputs"
"""Input files that were sent to the login host, by the hash of their content; beside the run directories there."""
