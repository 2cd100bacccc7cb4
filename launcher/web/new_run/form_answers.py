"""What the page asks the server for: a check of the form, records as they are trained, and the start of the run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import TargetError, UsageError, ZlaunchError
from launcher.job import yamlfile
from launcher.job.spec import JobSpec
from launcher.lifecycle import checks, forecast, records_report
from launcher.machine import process, trainer
from launcher.web import zlaunch
from launcher.web.new_run import form_work
from launcher.web.new_run.form_values import Filled, Problem, at_field, job_of
from launcher.web.new_run.gpu_plan import plan_of
from launcher.web.new_run.schema_form import BACKENDS

RECORDS_SECONDS = 300.0
"""For the preview of records: loading a tokenizer, perhaps from a hub, on a slow disk."""
MOST_TOKENS, MOST_SEQUENCES = 1500, 24
"""Of a preview."""


def check(values: Mapping[str, str], backend: str, gpu: str, base: Path) -> dict[str, Any]:
    """The job that the form says, its command, its plan, and every problem at its field."""
    filled = job_of(values, base)
    problems = [*filled.problems, *_missing(filled, backend)]
    return {
        "problems": [problem.sent() for problem in problems],
        "job": yamlfile.dumps(filled.tree),
        "command": f"zlaunch {_backend(backend)} job.yaml",
        "plan": plan_of(filled.spec, backend, gpu) if filled.spec else {"kind": "none"},
    }


def _backend(name: str) -> str:
    if name not in BACKENDS:
        raise UsageError(f"no backend {name!r}; known: {', '.join(BACKENDS)}", code="ZL-WEB-01")
    return name


def _missing(filled: Filled, backend: str) -> list[Problem]:
    """Hosts and inputs that the job does not name, or that are not there."""
    if filled.spec is None:
        return []
    found = []
    for check_, key in ((_check_hosts, "ssh.hosts"), (checks.check_inputs, "")):
        try:
            check_(filled.spec, backend)
        except UsageError as error:
            found.append(at_field(error, key))
    return found


def _check_hosts(job: JobSpec, backend: str) -> None:
    if backend == "ssh":
        forecast.ranks_of(job, backend)


def work(values: Mapping[str, str], backend: str, gpu: str, base: Path) -> dict[str, Any]:
    """Steps and hours of the job that the form says (form_work.work_of); empty while it has errors."""
    spec = job_of(values, base).spec
    return form_work.work_of(spec, backend, gpu) if spec else {}


def records(values: Mapping[str, str], first: int, base: Path) -> dict[str, Any]:
    """The first records as training sees them: {"records": [...], "problems": [...]}, as `zlaunch data show` has them.

    Tokens that follow each other with or without loss are lists of texts: {"loss": true, "texts": ["a", " b"]}. Raises
    TargetError if the check fails or takes too long.
    """
    filled = job_of({key: text for key, text in values.items() if key != "data.eval"}, base)
    if filled.spec is None:
        return {"records": [], "problems": [problem.sent() for problem in filled.problems]}
    try:
        _, found = records_report.inspect(filled.spec, f"--show={first}", timeout=RECORDS_SECONDS)
    except UsageError as error:
        return {"records": [], "problems": [at_field(error).sent()]}
    shown = [_record(record) for record in found["records"][:MOST_SEQUENCES]]
    return {"records": shown, "problems": [], "more": max(0, len(found["records"]) - len(shown))}


def _record(record: Mapping[str, Any]) -> dict[str, Any]:
    spans: list[dict[str, Any]] = []
    for token in record["tokens"][:MOST_TOKENS]:
        if not spans or spans[-1]["loss"] != token["loss"]:
            spans.append({"loss": token["loss"], "texts": []})
        spans[-1]["texts"].append(token["text"])
    tokens = record["tokens"]
    return {
        "place": f"{record['file']}:{record['line']}",
        "problem": Problem("", record["problem"]).sent() if record.get("problem") else None,
        "tokens": len(tokens),
        "trained": sum(token["loss"] for token in tokens),
        "left_out": max(0, len(tokens) - MOST_TOKENS),
        "read": record["honoured"],
        "ignored": record["ignored"],
        "spans": spans,
    }


def start(values: Mapping[str, str], backend: str, base: Path) -> dict[str, Any]:
    """Start the run as the terminal does, by `zlaunch BACKEND job.yaml --detach`: {"run": id} or {"problems": [...]}.

    Raises TargetError for what the target refuses.
    """
    filled = job_of(values, base)
    problems = [*filled.problems, *_missing(filled, backend)]
    if problems:
        return {"problems": [problem.sent() for problem in problems]}
    with tempfile.TemporaryDirectory(prefix="zlaunch-") as folder:
        file = Path(folder) / "job.yaml"
        file.write_text(yamlfile.dumps(filled.tree), encoding="utf-8")
        result = zlaunch.run([_backend(backend), str(file), "--detach", "--json"])
    try:
        if result.code == 0:
            return {"run": str(json.loads(result.stdout.splitlines()[-1])["run"])}
        raise refusal(result)
    except UsageError as error:
        return {"problems": [at_field(error).sent()]}


def refusal(result: process.Result) -> ZlaunchError:
    """The error that a command of ours printed, as the error that it was."""
    told = trainer.told(result.stderr)
    if not told.message:  # a bug of ours: its traceback is on the terminal's side
        return process.CommandError(result, f"exit status {result.code}")
    kind = UsageError if result.code == UsageError.exit_code else TargetError
    return kind("\n".join(told.message), hint=told.hint, code=told.code)
