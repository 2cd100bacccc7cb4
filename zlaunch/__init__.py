"""zlaunch from Python: the same jobs, plans and runs as its commands.

    import zlaunch

    job = zlaunch.Job("job.yaml", train={"epochs": 3})
    print(zlaunch.plan(job, gpu="h100", gpus_per_node=8).tokens_per_second)
    run = zlaunch.run(job)              # or on="ssh", on="slurm"
    print(run.result()["loss_last"])

docs/python.md has the rest.
"""

from launcher import __version__
from launcher.errors import RunFailed, RunNotFound, SpecError, TargetError, UsageError, ZlaunchError
from launcher.lifecycle.api import Job, Plan, Run, Setting, find_run, plan, run, runs

__all__ = [
    "Job",
    "Plan",
    "Run",
    "RunFailed",
    "RunNotFound",
    "Setting",
    "SpecError",
    "TargetError",
    "UsageError",
    "ZlaunchError",
    "__version__",
    "find_run",
    "plan",
    "run",
    "runs",
]
