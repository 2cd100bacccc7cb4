"""RunPlan -> {relative path: text}. Pure; holds the only Jinja environment of the project.

Undefined names are errors, and a value reaches a shell script only through the `sh` filter (shlex.quote).
"""

from __future__ import annotations

import functools
import json
import shlex
from pathlib import Path
from typing import Any

import jinja2
import msgspec

from launcher import assets, slurm_plan
from launcher.plan import RunPlan
from train import config as train_config


def render(plan: RunPlan) -> dict[str, str]:
    """Every file of the run directory that follows from the plan."""
    files = {
        "plan.json": msgspec.json.format(msgspec.json.encode(plan), indent=2).decode() + "\n",
        "hostfile": template("hostfile.j2").render(nodes=plan.launch.nodes),
        "node.sh": template("node.sh.j2").render(plan=plan, launch=plan.launch),
    }
    if plan.train is not None:
        files["train.json"] = train_config.dump(plan.train)
        if plan.train.train.zero_stage:
            files["ds_config.json"] = render_ds_config(plan)
        files["deepspeed.sh"] = template("deepspeed.sh.j2").render(plan=plan, launch=plan.launch)
    if plan.slurm is not None:
        files["train.sbatch"] = slurm_plan.script(plan.slurm, [plan.run_id])
    return files


def render_ds_config(plan: RunPlan) -> str:
    """ds_config.json, checked to be JSON and laid out plainly."""
    assert plan.train is not None
    config = plan.train
    text = template("ds_config.json.j2").render(train=config.train, dtype=config.model.dtype, device=config.device)
    return json.dumps(json.loads(text), indent=2) + "\n"


def template(name: str, file: Path | None = None) -> jinja2.Template:
    """The template `name` of the project, or a site's own `file`."""
    if file is not None:
        return environment().from_string(file.read_text(encoding="utf-8"))
    return environment().get_template(name)


@functools.cache
def environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader([assets.path("templates"), assets.path("slurm")]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the outputs are shell and JSON; `sh` and `tojson` quote for these
    )
    env.filters["sh"] = _sh
    env.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    return env


def _sh(value: Any) -> str:
    """A value, or a sequence of them, quoted for a POSIX shell."""
    if isinstance(value, (list, tuple)):
        return " ".join(shlex.quote(str(item)) for item in value)
    return shlex.quote(str(value))
