"""What the training program reports about the records of a job, from a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from launcher.backends.local.devices import assumed_target
from launcher.backends.ssh.requirements import FOR_RECORDS
from launcher.errors import UsageError
from launcher.job.spec import JobSpec
from launcher.lifecycle import checks
from launcher.machine import facts, output, process, trainer
from launcher.machine.language import spoken
from launcher.machine.process import CommandError
from launcher.plan.resolve import plan
from train.config import dump


def inspect(
    wanted: JobSpec, *arguments: str, timeout: float | None = None, shown: bool = False
) -> tuple[int, dict[str, Any]]:
    """(exit code, report) of train.datacheck for a job. `shown`: it writes how far it is to standard error.

    Raises UsageError, TargetError for an environment without the packages, and CommandError also if it takes longer
    than `timeout` seconds.
    """
    target = assumed_target(wanted)
    checks.check_inputs(wanted, "local")
    model = facts.model_files(wanted.model.path, wanted.env)
    planned = plan(wanted, target, run_id="check", model_config=model.config).train
    if planned is None:
        raise UsageError(
            "the job runs a program, which reads its own data: there are no records to check", code="ZL-OPT-01"
        )
    facts.check_python(target.python, FOR_RECORDS)
    return _run(target.python, dump(planned), *arguments, timeout=timeout, shown=shown)


def _run(python: str, config: str, *arguments: str, timeout: float | None, shown: bool) -> tuple[int, dict[str, Any]]:
    """The check by the training environment."""
    with tempfile.TemporaryDirectory(prefix="zlaunch-") as directory, contextlib.ExitStack() as stack:
        file = Path(directory) / "train.json"
        file.write_text(config, encoding="utf-8")
        argv = [python, "-m", "train.datacheck", "--config", str(file), "--json", *arguments]
        env = {**trainer.environment(), "TMPDIR": directory}
        descriptors = []
        number = stack.enter_context(spoken.heard()) if shown else None
        if shown and (number := number or output.error_descriptor()) is not None:
            descriptors = [os.dup(number)]  # beside its own standard error, which says why it refuses
            stack.callback(os.close, descriptors[0])
            argv.append(f"--lines-to={descriptors[0]}")
        result = process.run(argv, env=env, cwd=directory, check=False, timeout=timeout, descriptors=descriptors)
    try:
        found = json.loads(result.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        told = trainer.told(result.stderr)
        if result.code == 2 and told.message:
            raise UsageError(told.message[0], hint=told.hint, code=told.code) from None
        raise CommandError(result, f"exit status {result.code}") from None
    return result.code, found
