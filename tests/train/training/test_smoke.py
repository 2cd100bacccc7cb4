"""`zlaunch local` from the command to the adapter, with real training on the CPU."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launcher.commands.test_cli import command, environment, processes_of, wait_for, zlaunch

pytestmark = pytest.mark.train
SMOKE = ("local", "--smoke", "--device", "cpu", "--engine", "peft")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    cwd = tmp_path_factory.mktemp("smoke")
    done = zlaunch(cwd, *SMOKE, "--json")
    return cwd, json.loads(done.stdout.splitlines()[-1])


def test_a_smoke_run_passes_and_reports_what_ci_needs(smoke):
    summary = smoke[1]
    assert summary["state"] == "SUCCEEDED"
    assert summary["loss_last"] < summary["loss_first"]
    assert summary["world_size"] == 1
    assert summary["seconds"] > 0
    assert (Path(summary["adapter"]) / "adapter_config.json").exists()
    assert summary["smoke_problems"] == []
    result = json.loads((Path(summary["directory"]) / "result.json").read_text())
    assert result["grad_norm_min"] > 0
    assert result["adapter_reloads"] is True


def test_a_smoke_run_that_learns_nothing_fails(tmp_path):
    done = zlaunch(tmp_path, *SMOKE, "--set", "train.learning_rate=1e-30", "--json", code=1)
    assert "the loss did not fall" in done.stderr


def test_generate_answers_with_the_adapter_and_without_it(smoke):
    cwd, summary = smoke
    words = ("generate", summary["run"], "判断情感：正面或负面。", "--max-new-tokens", "6")
    assert zlaunch(cwd, *words).stdout == zlaunch(cwd, *words).stdout
    zlaunch(cwd, *words, "--base", "--temperature", "0.5")


def test_a_run_resumed_after_ctrl_c_ends_with_the_adapter_of_an_undisturbed_run(tmp_path):
    words = (*SMOKE, "--max-steps", "60", "--set", "train.checkpoint_every=0")
    attached = subprocess.Popen(
        command(*words),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: [f for f in tmp_path.glob("runs/*/metrics.jsonl") if f.read_text().count("\n") >= 3], 300)
    attached.send_signal(signal.SIGINT)
    out, _ = attached.communicate(timeout=200)
    run = next(tmp_path.glob("runs/*"))
    assert attached.returncode == 130, out
    assert processes_of(run.name) == []
    saved = {int(place.parent.name[5:]) for place in run.glob("checkpoints/step-*/COMPLETE")}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = [event["step"] for event in map(json.loads, (run / "events.jsonl").open()) if event["event"] == "best"]
    assert saved == {max(line["step"] for line in lines), *best[-1:]}  # where it stopped, and the best step
    resumed = json.loads(zlaunch(tmp_path, "resume", run.name, "--json").stdout.splitlines()[-1])
    assert resumed["state"] == "SUCCEEDED"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, 61))
    whole = json.loads(zlaunch(tmp_path, *words, "--json").stdout.splitlines()[-1])
    name = "adapter_model.safetensors"
    assert (run / "adapter" / name).read_bytes() == (Path(whole["adapter"]) / name).read_bytes()
    again = zlaunch(tmp_path, "resume", run.name, code=2)
    assert "to train longer" in again.stderr
    longer = zlaunch(tmp_path, "resume", run.name, "--set", "train.max_steps=64")
    assert "64 steps in total instead of 60" in longer.stdout + longer.stderr
    assert (run / "metrics.jsonl").read_text().count('"loss"') == 64
