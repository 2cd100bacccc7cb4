"""Options that have no effect on some jobs. A command line that gives one is refused; a job file may hold them, because
it serves several backends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from launcher.errors import UsageError
from launcher.job.load import parse_set
from launcher.job.spec import JobSpec


class IgnoredOption(NamedTuple):
    """Keys, or whole sections, that have no effect when `when` holds."""

    keys: tuple[str, ...]
    when: Callable[[JobSpec], bool]
    reason: str
    hint: str


IGNORED = (
    IgnoredOption(
        ("model", "data", "lora", "train", "eval", "verify_adapter"),
        lambda job: bool(job.program),
        "the job runs a program, which reads no training keys",
        "leave it out, or pass it to the program after `--`",
    ),
    IgnoredOption(
        ("train.epochs",),
        lambda job: job.train.max_steps is not None,
        "train.max_steps is set and takes precedence",
        "leave out one of them; --set train.max_steps=null overrides the job file",
    ),
    IgnoredOption(
        ("container.args", "container.omit", "container.mounts"),
        lambda job: job.container.runtime == "none" or (job.container.runtime == "auto" and not job.container.image),
        "the run is in no container",
        "name an image with --image",
    ),
    IgnoredOption(
        ("container.image",),
        lambda job: job.container.runtime == "none",
        "container.runtime is none",
        "leave out one of them; --container auto chooses the engine that fits the image",
    ),
)
SSH = (
    IgnoredOption(
        ("ssh.slots",),
        lambda job: job.ssh.hostfile is not None,
        "the hostfile sets the ranks per host",
        "set the slots in the hostfile, or choose hosts with --include and --exclude",
    ),
)
SLURM = (
    IgnoredOption(
        ("slurm.procs_per_node",),
        lambda job: job.device != "cpu",
        "it sets the number of CPU ranks",
        "use --gpus-per-node N, or --device cpu",
    ),
    IgnoredOption(
        ("slurm.gpus_per_node",),
        lambda job: job.device == "cpu",
        "the run uses CPUs",
        "use --procs-per-node N, or --device cuda",
    ),
    IgnoredOption(
        ("slurm.gpu",),
        lambda job: job.device == "cpu" or bool(job.program),
        "it names the GPU that a training is planned for",
        "leave it out",
    ),
    IgnoredOption(
        ("slurm.workdir",),
        lambda job: job.slurm.login is None,
        "without a login host, the run directory is on this machine",
        "add --login USER@HOST, or choose the place of the runs with ZLAUNCH_RUNS=/shared/runs",
    ),
)
SLURM_SINGLE = (
    IgnoredOption(("slurm.array_limit",), lambda job: True, "a single run is not an array", "use it with --sweep"),
)


def refuse_ignored(
    job: JobSpec, rules: Collection[IgnoredOption], flags: Mapping[str, Any], overrides: Collection[str]
) -> None:
    """Raise UsageError if this command line sets a key, by a flag or by --set, that has no effect on the job."""
    given = {key: f"--set {key}" for key, _ in map(parse_set, overrides)}
    given |= {key: _flag(key) for key, value in flags.items() if value is not None}
    for rule in rules:
        ignored = [name for key, name in given.items() if key in rule.keys or key.partition(".")[0] in rule.keys]
        if ignored and rule.when(job):
            verb = "has" if len(ignored) == 1 else "have"
            raise UsageError(f"{', '.join(ignored)} {verb} no effect: {rule.reason}", hint=rule.hint, code="ZL-OPT-01")


FLAG_NAMES = {"model.path": "--model", "data.train": "--train-data", "data.eval": "--eval-data", "lora.r": "--lora-r",
              "container.runtime": "--container"}  # fmt: skip
"""Flags that are not called as the last word of their key."""


def _flag(key: str) -> str:
    return FLAG_NAMES.get(key, "--" + key.rpartition(".")[2].replace("_", "-"))
