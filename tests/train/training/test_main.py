"""Whole runs with disturbances: requests at odd moments, records that change, a directory that is a link."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.beds.forked import Forkserver
from tests.beds.ranks import Ranks, events, result
from tests.train.conftest import write_records

pytestmark = pytest.mark.train

SHORT = {"train.max_steps": 2, "train.checkpoint_every": 0}


def go(server: Forkserver, run: Path, world_size: int = 1) -> list[int]:
    server.start(run, world_size, grace=60)
    return server.wait()


def request(run: Path, name: str) -> None:
    (run / "control").mkdir(exist_ok=True)
    (run / "control" / name).write_text('{"by": "a te')  # cut off


def predictions(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_stop_at_the_last_step_leaves_the_evaluation_to_the_next_start(
    forkserver: Forkserver, configure: Any
) -> None:
    run = configure("stop-last", 2, **SHORT | {"train.max_steps": 1})
    request(run, "stop")
    assert go(forkserver, run, 2) == [75, 75], (run / "ranks.log").read_text()
    assert (result(run)["state"], result(run)["steps"]) == ("stopped", 1)
    assert not (run / "control" / "stop").exists()
    assert go(forkserver, run, 2) == [0, 0], (run / "ranks.log").read_text()
    assert result(run)["eval"]["after"]["records"] == 6


def test_a_run_without_evaluation_succeeds_if_it_is_stopped_at_the_last_step(
    forkserver: Forkserver, configure: Any
) -> None:
    run = configure("stop-end", **SHORT, **{"eval.after": False})
    configure("stop-end", run=run, **SHORT | {"train.max_steps": 1, "eval.after": False})
    request(run, "stop")
    assert go(forkserver, run) == [0], (run / "ranks.log").read_text()
    assert result(run)["state"] == "succeeded"
    assert not (run / "control" / "stop").exists()


def test_answers_are_compared_with_the_records_of_the_start(
    forkserver: Forkserver, configure: Any, tmp_path: Path
) -> None:
    """Editing data.eval during the run does not change the measurement."""
    asked = write_records(tmp_path / "eval.jsonl", 6, start=100)
    run = configure("edited", **{"data.eval": str(asked), "train.max_steps": 60, "train.checkpoint_every": 0})
    (tmp_path / "elsewhere").mkdir()
    (run / "adapter").symlink_to(tmp_path / "elsewhere")  # and the adapter replaces a link
    forkserver.start(run, 1)
    limit = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists():
        assert time.monotonic() < limit, (run / "ranks.log").read_text()
        time.sleep(0.001)
    write_records(asked, 6, start=101)
    assert forkserver.wait() == [0], (run / "ranks.log").read_text()
    assert [line["expected"] for line in predictions(run)] == ["负面", "正面"] * 3
    assert (run / "adapter" / "adapter_model.safetensors").is_file()


def test_an_evaluation_before_training_on_other_records_is_not_reused(
    forkserver: Forkserver, configure: Any, tmp_path: Path
) -> None:
    asked = write_records(tmp_path / "eval.jsonl", 2, start=100)
    over = {"data.eval": str(asked), "eval.before": True, "eval.samples": 4}
    run = configure("more-to-ask", **SHORT, **over)
    assert go(forkserver, run) == [0], (run / "ranks.log").read_text()
    assert result(run)["eval"]["before"]["records"] == 2
    assert go(forkserver, run) == [0]
    assert result(run)["eval"]["before"]["records"] == 2  # once per run
    write_records(asked, 8, start=100)
    configure("more-to-ask", run=run, **SHORT | {"train.max_steps": 3}, **over)
    assert go(forkserver, run) == [0], (run / "ranks.log").read_text()
    content = result(run)
    assert (content["eval"]["before"], content["eval"]["after"]["records"], len(content["samples"])) == (None, 8, 4)


def test_a_start_without_resume_refuses_a_directory_with_older_checkpoints(
    forkserver: Forkserver, configure: Any
) -> None:
    run = configure("anew", **SHORT)
    assert go(forkserver, run) == [0], (run / "ranks.log").read_text()
    configure("anew", run=run, **SHORT | {"train.max_steps": 1, "resume": False})
    assert go(forkserver, run) == [2]
    assert "holds checkpoints of an earlier start" in (run / "ranks.log").read_text()
    assert [event["step"] for event in events(run, "checkpoint")] == [2]


def test_a_run_does_not_resume_with_other_modules_of_the_same_size(forkserver: Forkserver, configure: Any) -> None:
    over = {"data.eval": None, "lora.modules_to_save": ["lm_head"]}
    run = configure("others", **SHORT, **over, **{"lora.target_modules": ["q_proj", "k_proj"]})
    assert go(forkserver, run) == [0], (run / "ranks.log").read_text()
    configure("others", run=run, **SHORT, **over, **{"lora.target_modules": ["q_proj", "v_proj"]})
    assert go(forkserver, run) == [2]
    message = "was made with trained_modules k_proj, lm_head, q_proj, but this run has lm_head, q_proj, v_proj"
    assert message in (run / "ranks.log").read_text()


@pytest.mark.parametrize(
    "over",
    [
        {"train.engine": "fused", "train.zero_stage": 3},  # no other rank to share with
        {"lora.init": "pissa", "lora.target_modules": ["q_proj", "embed_tokens"]},
    ],
)
def test_unusual_settings_train_evaluate_and_reload_on_one_rank(
    forkserver: Forkserver, configure: Any, over: dict[str, Any]
) -> None:
    run = configure("odd", verify_adapter=True, **SHORT, **over)
    assert go(forkserver, run) == [0], (run / "ranks.log").read_text()
    assert result(run)["adapter_reloads"] is True
    assert result(run)["eval"]["after"]["records"] == 6


DISAGREE = """
from train import dist
from train.training.start import check_ranks_agree
from train.errors import UserError, report

world = dist.from_environment("cpu")
dist.start(world, deepspeed=False)
try:
    check_ranks_agree(world, {"steps": 6, "data.train": "40 of 900 tokens" if world.first else "41 of 920 tokens"})
except UserError as error:
    dist.leave(report(error, None, None, world.rank))
dist.leave(0)
"""


def test_a_node_with_other_records_reports_it() -> None:
    ranks = Ranks(2, ["-c", DISAGREE])
    assert ranks.wait() == [0, 2], ranks.output
    assert "other records than node 0: data.train is 41 of 920 tokens here, 40 of 900 tokens there" in ranks.output[1]
