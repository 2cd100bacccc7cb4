"""The section `slurm` of a plan -> the batch script. Pure, except that it reads a site's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.render import jinja

ARRAY_LOG = "slurm-%a.log"


def script(
    slurm: Mapping[str, Any], run_ids: Sequence[str], directories: Sequence[str] = (".",), name: str | None = None
) -> str:
    """The batch script of one run, or of an array with one task per entry of `directories`.

    `name` is the job name of an array. Raises SpecError if a site's own template cannot be used.
    """
    own = slurm["asked"]["template"]
    array = len(directories) > 1 or directories[0] != "."
    context = {
        "slurm": slurm,
        "sbatch": [sbatch_line(*line) for line in _options_of(slurm, name, len(directories) if array else 0)],
        "run_ids": list(run_ids),
        "directories": list(directories),
        "array": array,
    }
    return jinja.rendered("train.sbatch.j2", own, "slurm.template", context)


def _options_of(slurm: Mapping[str, Any], name: str | None, tasks: int) -> list[tuple[str, str | None]]:
    """The options of a run, or of an array of `tasks` runs."""
    lines: list[tuple[str, str | None]] = [(option, value) for option, value in slurm["options"]]
    if not tasks:
        return lines
    most = slurm["asked"]["array_limit"]
    limit = f"%{most}" if most else ""
    changed = {"output": ARRAY_LOG, **({"job-name": name} if name else {})}
    return [*((option, changed.get(option, value)) for option, value in lines), ("array", f"0-{tasks - 1}{limit}")]


def sbatch_line(option: str, value: str | None = None) -> str:
    """`--option="value"`, quoted as sbatch reads #SBATCH lines; no shell reads them."""
    if value is None:
        return f"--{option}"
    if value and all(char.isalnum() or char in "._-+:/@=,%" for char in value):
        return f"--{option}={value}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'--{option}="{escaped}"'
