"""Plans with fixed ports, token and names, for tests that compare texts."""

from __future__ import annotations

from typing import Any

from launcher.job.load import read_job
from launcher.plan.resolve import plan
from launcher.plan.types import RunPlan, Target

RUN_ID = "demo-20261123-120000-abcd"


def target(**changes: Any) -> Target:
    facts: dict[str, Any] = {
        "backend": "local",
        "device": "cpu",
        "hosts": (("localhost", 2),),
        "python": "/usr/bin/python3",
        "master_port": 29500,
        "control_port": 29600,
        "token": "0123456789abcdef",
        "cwd": "/home/user",
    }
    return Target(**{**facts, **changes})


def make(
    *settings: str,
    tree: dict[str, Any] | None = None,
    model_config: dict[str, Any] | None = None,
    adapter_config: dict[str, Any] | None = None,
    **changes: Any,
) -> RunPlan:
    flags = {"model.path": "/models/m", "data.train": "/data/train.jsonl", "train.global_batch_size": 8, **(tree or {})}
    job = read_job(None, settings, flags).spec
    return plan(job, target(**changes), run_id=RUN_ID, model_config=model_config, adapter_config=adapter_config)
