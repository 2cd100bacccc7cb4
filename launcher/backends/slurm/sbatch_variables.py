"""Variables by which a shell changes what Slurm's commands do: which ones count, and which zlaunch takes away. Pure.

sbatch reads SBATCH_TIMELIMIT and its like, and they win over the #SBATCH lines of a script. What the user told zlaunch
is in those lines, so a variable may only add what they leave open.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from launcher.plan.batch_job import OPTIONS, OWNED

FOREIGN = ("SLURM_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_", "SRUN_")
"""Prefixes of variables that describe the job in which zlaunch runs itself (salloc), hold options of srun, or filter
and reformat the answers that zlaunch reads."""
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_SACK_KEY", "SLURM_SACK_SOCKET")
"""They say which cluster answers, and prove who asks."""
CLEAN = (
    f"for v in {' '.join(f'${{!{prefix}@}}' for prefix in FOREIGN)}; do "
    f'case $v in {"|".join(KEPT)}) ;; *) unset "$v" ;; esac; done'
)
"""bash: the same for a login host, whose profile may set such variables."""
LETTERS = {
    "A": "account", "a": "array", "C": "constraint", "c": "cpus-per-task", "D": "chdir", "e": "error", "J": "job-name",
    "N": "nodes", "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "t": "time", "w": "nodelist",
    "x": "exclude", "W": "wait", "M": "clusters",
}  # fmt: skip
NAMES = {"time": ("TIMELIMIT",), "array": ("ARRAY_INX",), "mem": ("MEM_PER_NODE",)}
"""Options whose variable is not SBATCH_ and the option in capitals."""
FAMILIES = (
    ("mem", "mem-per-cpu", "mem-per-gpu"),
    ("requeue", "no-requeue"),
    ("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "ntasks-per-gpu", "tres-per-task"),
    ("cpus-per-task", "cpus-per-gpu"),
    ("ntasks-per-node", "ntasks", "ntasks-per-core", "ntasks-per-socket"),
    ("exclusive", "oversubscribe"),
)
"""Options that exclude or change each other: one of them in the script makes the variables of all have no effect."""


def is_foreign(name: str) -> bool:
    """Whether none of Slurm's commands may see this variable of the user's shell."""
    return name.startswith(FOREIGN) and name not in KEPT


def script_options(script: str) -> set[str]:
    """Return the options in the #SBATCH lines of a batch script, which end at its first command."""
    found = set()
    for line in script.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        option = re.match(r"#SBATCH\s+(?:--([a-z-]+)|-([A-Za-z]))", line)
        if option:
            found.add(option[1] or LETTERS.get(option[2], option[2]))
    return found


def overruled(options: Iterable[str]) -> list[str]:
    """Return the variables that must not change a job with these options, or that zlaunch decides itself."""
    # Of SBATCH_CLUSTERS the shell takes care (ClusterShell): it counts where the job names no cluster.
    told = {*options, *(OWNED.keys() - {*OPTIONS, "clusters", "cluster"})}
    for family in FAMILIES:
        if told & set(family):
            told |= set(family)
    return sorted(
        f"SBATCH_{name}" for option in told for name in NAMES.get(option, (option.upper().replace("-", "_"),))
    )


def notes(environ: Mapping[str, str], options: Iterable[str]) -> tuple[str, ...]:
    """Return what this shell's SBATCH_ variables do to a job with these options, for people."""
    dropped = set(overruled(options))
    return tuple(
        f"{name}={value} of this shell has no effect: the job says otherwise"
        if name in dropped
        else f"{name}={value} of this shell applies to the job, which leaves it open"
        for name, value in sorted(environ.items())
        if name.startswith("SBATCH_")
    )
