"""RunPlan -> {relative path: text}. Pure."""

from __future__ import annotations

import json

import msgspec

from launcher.node import run_files
from launcher.plan.types import RunPlan
from launcher.render import sbatch
from launcher.render.jinja import template
from train.config import TrainConfig, dump


def render(plan: RunPlan) -> dict[str, str]:
    """Every file of the run directory that the plan decides."""
    files = {run_files.PLAN: msgspec.json.format(msgspec.json.encode(plan), indent=2).decode() + "\n"}
    if plan.train is not None:
        if plan.train.train.zero_stage:
            files[run_files.DS_CONFIG] = ds_config(plan.train)
        files[run_files.TRAIN] = dump(plan.train)
        files[run_files.DEEPSPEED_SH] = template("deepspeed.sh.j2").render(plan=plan, launch=plan.launch)
    files[run_files.HOSTFILE] = template("hostfile.j2").render(nodes=plan.launch.nodes)
    files[run_files.NODE_SH] = template("node.sh.j2").render(plan=plan, launch=plan.launch)
    if plan.slurm is not None:
        files[run_files.SBATCH] = sbatch.script(plan.slurm, [plan.run_id])
    return files


def ds_config(config: TrainConfig) -> str:
    """ds_config.json, parsed once so that it is valid JSON."""
    text = template("ds_config.json.j2").render(train=config.train, dtype=config.model.dtype, device=config.device)
    return json.dumps(json.loads(text), indent=2) + "\n"
