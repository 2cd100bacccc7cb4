"""train.report_to and notify: what a job accepts, and that an address never leaves the memory of the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import SpecError, UsageError
from launcher.job.load import dump_job, read_job
from launcher.job.trackers import TRACKERS, trackers_of, variables_of
from launcher.lifecycle import checks
from launcher.plan.agent_plan import notify_of, reporting_lines
from tests.beds.hook import SECRET
from tests.beds.places import ROOT
from train.trackers.services import SERVICES

ADDRESS = f"https://hooks.slack.com/services/{SECRET}"


def job_file(folder: Path, text: str) -> Path:
    file = folder / "job.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_launcher_and_training_program_know_the_same_trackers() -> None:
    assert set(TRACKERS) == set(SERVICES)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("none", ()), (None, ()), ([], ()), ("", None), ("wandb", ("wandb",)),
        ("wandb,tensorboard", ("wandb", "tensorboard")),
        (["wandb", "wandb"], ("wandb",)), (["none"], ()), ("all", None), (["all"], None), ("comet_ml", None),
        (["none", "wandb"], None), ("Wandb", None), ("neptune", None), ("wanbd", None),
    ],
)  # fmt: skip
def test_names_of_trackers_are_those_of_transformers(given: Any, found: tuple[str, ...] | None) -> None:
    if found is not None:
        assert trackers_of(given) == found
        return
    with pytest.raises(ValueError, match=r"name those that you want|not supported; known|expected tensorboard, wandb"):
        trackers_of(given)


def test_a_wrong_tracker_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"--set: train.report_to: `all` would start every tracker"):
        read_job(None, ["train.report_to=all"])
    with pytest.raises(SpecError, match=r"train.report_to: comet_ml is not supported"):
        read_job(job_file(tmp_path, "train: {report_to: [comet_ml]}"))


def test_tensorboard_true_of_earlier_jobs_is_a_tracker() -> None:
    job = read_job(None, ["train.tensorboard=true", "train.report_to=[wandb]"])
    assert job.spec.train.trackers == ("tensorboard", "wandb")


def test_only_the_variables_of_the_jobs_trackers_are_taken_from_the_shell() -> None:
    shell = {"WANDB_API_KEY": "k", "WANDB_PROJECT": "p", "WANDB_SERVICE": "s", "MLFLOW_TRACKING_URI": "u", "HOME": "/"}
    assert variables_of(("wandb",), shell, {"WANDB_PROJECT": "mine"}) == {"WANDB_API_KEY": "k"}
    assert variables_of((), shell, {}) == {}
    assert variables_of(("tensorboard",), shell, {}) == {}
    job = read_job(None, ["train.report_to=mlflow", "secrets=[TOKEN]"])
    assert checks.read_secrets(job, {**shell, "TOKEN": "t"}) == {"MLFLOW_TRACKING_URI": "u", "TOKEN": "t"}


@pytest.mark.parametrize("url", ["$HOOK", "${HOOK}"])
def test_an_address_is_the_value_of_a_variable(tmp_path: Path, url: str) -> None:
    job = read_job(job_file(tmp_path, f"notify: {{url: '{url}'}}"))
    assert checks.read_secrets(job, {"HOOK": ADDRESS}) == {"HOOK": ADDRESS}
    notify = notify_of(job.spec)
    assert notify is not None
    assert (notify.url, notify.on) == ("HOOK", ("end", "failure", "preemption", "hang"))
    assert reporting_lines((), notify) == ["notices: end, failure, preemption, hang; to the address in $HOOK"]


def test_an_address_in_a_job_file_is_taken_out(tmp_path: Path) -> None:
    job = read_job(job_file(tmp_path, f"notify: {{url: '{ADDRESS}', sign: {SECRET}, on: failure}}"))
    shown = repr(job) + dump_job(job) + str(job.tree) + repr(job.spec)
    assert SECRET not in shown
    assert checks.read_secrets(job, {}) == {"ZLAUNCH_NOTIFY_URL": ADDRESS, "ZLAUNCH_NOTIFY_SIGN": SECRET}
    again = read_job(job_file(tmp_path, dump_job(job)))  # as `zlaunch resume` does
    assert again.spec == job.spec
    with pytest.raises(UsageError, match="ZLAUNCH_NOTIFY_URL") as error:
        checks.read_secrets(again, {})
    assert "--set notify.url=null" in str(error.value.hint)


@pytest.mark.parametrize("key", ["url", "sign"])
def test_an_address_on_the_command_line_is_refused_and_not_shown(tmp_path: Path, key: str) -> None:
    with pytest.raises(SpecError, match="can be read by every user") as error:
        read_job(job_file(tmp_path, "notify: {url: $HOOK}"), [f"notify.{key}={ADDRESS}"])
    assert SECRET not in error.value.text


@pytest.mark.parametrize(
    "text",
    [
        f"notify: {{url: ftp://h/{SECRET}}}", f"notify: {{url: '{SECRET}'}}", f"notify: {{url: 'https:///{SECRET}'}}",
        f"notify: {{url: 'https://h/ {SECRET}'}}", f"notify: {{url: 'https://u:{SECRET}@h/'}}",
        f"notify: {{url: 'https://h:{SECRET}/'}}", f"notify: https://h/{SECRET}", f"notify: {{url: [{ADDRESS}]}}",
        f"notify: {{sign: {SECRET}}}", f"notify: {{url: {{a: {SECRET}}}}}", f"notify: {{url: 'https://h/训{SECRET}'}}",
        f"notify: {{url: '{ADDRESS}', format: mattermost}}", f"notify: {{url: '{ADDRESS}', on: [never]}}",
        f"notify: {{url: '{ADDRESS}', ur: 1}}", f"notify: {{url: '{ADDRESS}'\n  on: x}}",
    ],
)  # fmt: skip
def test_a_wrong_address_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError) as error:
        read_job(job_file(tmp_path, text))
    assert SECRET not in error.value.text


def test_a_variable_without_an_address_is_an_error_that_does_not_show_it(tmp_path: Path) -> None:
    job = read_job(job_file(tmp_path, "notify: {url: $HOOK}"))
    with pytest.raises(UsageError, match=r"notify.url: HOOK: not an address") as error:
        checks.read_secrets(job, {"HOOK": SECRET})
    assert SECRET not in error.value.text


def test_a_dry_run_shows_trackers_and_notices_and_writes_no_address(tmp_path: Path) -> None:
    job_file(tmp_path, f"notify: {{url: '{ADDRESS}'}}\ntrain: {{report_to: [wandb, tensorboard]}}")
    argv = [sys.executable, "-m", "launcher", "local", "job.yaml", "--smoke", "--dry-run", "--device", "cpu"]
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "trackers: wandb, tensorboard" in done.stdout
    assert "to the address in $ZLAUNCH_NOTIFY_URL" in done.stdout
    assert SECRET not in done.stdout + done.stderr
    (plan,) = tmp_path.glob("runs/*/plan.json")
    launch = json.loads(plan.read_text())["launch"]
    assert (launch["trackers"], launch["secrets"]) == (["wandb", "tensorboard"], ["ZLAUNCH_NOTIFY_URL"])
    assert [
        file for file in plan.parent.rglob("*") if file.is_file() and SECRET in file.read_text(errors="replace")
    ] == []
