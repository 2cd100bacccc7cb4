"""The trackers of a job, and the variables of each that other machines need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TRACKERS = ("tensorboard", "wandb", "swanlab", "mlflow", "trackio")
PREFIXES = {
    "wandb": ("WANDB_",),
    "swanlab": ("SWANLAB_",),
    "mlflow": ("MLFLOW_", "DATABRICKS_"),
    "trackio": ("TRACKIO_", "HF_TOKEN"),
}
"""{tracker: beginnings of the variables with its account, project and mode}"""
_NOT_PASSED = ("WANDB_SERVICE", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_NAME", "MLFLOW_RUN_ID", "SWANLAB_RUN_ID")
"""They belong to another run, in whose process or shell zlaunch was called."""
ELSEWHERE = ("azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "neptune", "aim")
"""What transformers and accelerate know besides."""


def trackers_of(report_to: str | Iterable[str] | None, *, tensorboard: bool = False) -> tuple[str, ...]:
    """The trackers of `train.report_to`, each once. Raises ValueError with what to write instead."""
    words = report_to.split(",") if isinstance(report_to, str) else report_to or ()
    names = [word.strip() for word in words]
    found = ["tensorboard"] * tensorboard
    for name in names:
        if name in TRACKERS:
            found.append(name)
        elif name == "all":
            raise ValueError("`all` would start every tracker that happens to be installed: name those that you want")
        elif name in ELSEWHERE:
            raise ValueError(f"{name} is not supported; known: {', '.join(TRACKERS)}")
        elif name != "none" or len(names) > 1:
            raise ValueError(f"expected {', '.join(TRACKERS)} or none, got {name!r}")
    return tuple(dict.fromkeys(found))


def variables_of(trackers: Iterable[str], environ: Mapping[str, str], job: Mapping[str, str]) -> dict[str, str]:
    """This shell's variables for the trackers, without those that the job sets itself or that belong to another run."""
    prefixes = tuple(prefix for tracker in trackers for prefix in PREFIXES.get(tracker, ()))
    return {
        name: value
        for name, value in environ.items()
        if prefixes and name.startswith(prefixes) and name not in job and name not in _NOT_PASSED
    }
