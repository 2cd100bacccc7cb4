"""RunPlan -> {relative path: text}. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from launcher.errors import SpecError
from launcher.node import run_files
from launcher.plan.types import RunPlan
from launcher.render import jinja, sbatch
from launcher.render.jinja import template
from train.config import TrainConfig, dump


def render(plan: RunPlan) -> dict[str, str]:
    """Every file of the run directory that the plan decides."""
    files = {run_files.PLAN: msgspec.json.format(msgspec.json.encode(plan), indent=2).decode() + "\n"}
    if plan.train is not None:
        if plan.train.train.zero_stage:
            files[run_files.DS_CONFIG] = ds_config(plan.train, plan.deepspeed)
        files[run_files.TRAIN] = dump(plan.train)
        files[run_files.DEEPSPEED_SH] = template("deepspeed.sh.j2").render(plan=plan, launch=plan.launch)
    files[run_files.HOSTFILE] = template("hostfile.j2").render(nodes=plan.launch.nodes)
    files[run_files.NODE_SH] = node_sh(plan)
    if plan.slurm is not None:
        files[run_files.SBATCH] = sbatch.script(plan.slurm, [plan.run_id])
    return files


def node_sh(plan: RunPlan) -> str:
    """The command of a node. Raises SpecError for a template of the user's that starts no agent."""
    text = jinja.rendered("node.sh.j2", plan.node_template, "node_template", {"plan": plan, "launch": plan.launch})
    if AGENT not in text:
        raise SpecError(
            f"node_template: {plan.node_template}: it does not start {AGENT}, which starts the ranks", code="ZL-JOB-08"
        )
    return text


AGENT = "code/node/agent/__main__.py"


def ds_config(config: TrainConfig, own: Mapping[str, Any]) -> str:
    """ds_config.json: the template, with the keys of `own` over those that the template has too."""
    text = template("ds_config.json.j2").render(train=config.train, dtype=config.model.dtype, device=config.device)
    return json.dumps(_over(json.loads(text), own), indent=2) + "\n"


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    blocks = {key: _over(base.get(key, {}), value) for key, value in own.items() if isinstance(value, Mapping)}
    return {**base, **own, **blocks}
