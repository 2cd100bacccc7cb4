"""Whole runs of the training program on a CPU; the runs of a module-scoped fixture share their processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.beds.ranks import ROOT, Ranks, events, metrics, result, train

pytestmark = pytest.mark.train

FILES = (
    "step",
    "loss",
    "grad_norm",
    "learning_rate",
    "tokens",
    "tokens_per_second",
    "peak_memory_bytes",
    "time",
    "epoch",
)


def copy_run(source: Path, configure: Any, name: str, world_size: int = 1, **over: Any) -> Path:
    """A run directory that continues a copy of `source`'s run from its checkpoint of step 3."""
    place = configure(name, world_size, **over)
    for part in ("checkpoints", "base_model", "metrics.jsonl"):
        target = place / part
        if (source / part).is_dir():
            shutil.copytree(source / part, target)
        else:
            shutil.copy(source / part, target)
    shutil.rmtree(place / "checkpoints" / "step-6")
    return place


def weights(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / "adapter" / "adapter_model.safetensors")


SPLIT = {"data.eval": "30%", "data.max_samples": 36, "eval.every": 2}


@pytest.fixture(scope="module")
def alone(configure: Any) -> dict[str, Path]:
    """Runs on one process, by name: plain, with a part of the records held out, dropout with LoRA+, packed, bfloat16,
    nf4, ZeRO-3, fused layers."""
    runs = {
        "plain": configure("plain", verify_adapter=True, **{"eval.before": True}),
        "split": configure("split", **SPLIT),
        "dropout": configure("dropout", **{"lora.dropout": 0.2, "lora.plus_ratio": 4.0, "train.packing": "none"}),
        "packed": configure("packed", **{"train.packing": "pack"}),
        "bf16": configure("bf16", verify_adapter=True, **{"model.dtype": "bfloat16"}),
        "nf4": configure("nf4", verify_adapter=True, **{"model.quantization": "nf4"}),
        "zero3": configure("zero3-alone", **{"train.zero_stage": 3}),
        "fused-nf4": configure("fused-nf4", **{"model.quantization": "nf4", "train.engine": "fused"}),
        "fused-nf4-bf16": configure(
            "fused-nf4-bf16",
            verify_adapter=True,
            **{"model.quantization": "nf4", "train.engine": "fused", "model.dtype": "bfloat16"},
        ),
    }
    train(*runs.values())
    return runs


@pytest.fixture(scope="module")
def pair(configure: Any, alone: dict[str, Path]) -> dict[str, Path]:
    """Runs on two processes: plain and fused at ZeRO stages, and plain ones that resume from one process."""
    runs = {f"zero{stage}": configure(f"zero{stage}", 2, **{"train.zero_stage": stage}) for stage in range(4)}
    fused = {
        f"fused{stage}": configure(f"fused{stage}", 2, **{"train.zero_stage": stage, "train.engine": "fused"})
        for stage in (0, 2, 3)
    }
    fused["fused3-again"] = configure(
        "fused3-again",
        2,
        **{"train.zero_stage": 3, "train.engine": "fused", "train.gradient_checkpointing": True},
    )
    runs |= {
        f"continued{stage}": copy_run(alone["plain"], configure, f"continued{stage}", 2, **{"train.zero_stage": stage})
        for stage in range(4)
    }
    for run in (*(runs[f"zero{stage}"] for stage in range(4)), *fused.values()):
        # any rank may make the random model, but none can once the ranks form a group
        shutil.copytree(alone["plain"] / "base_model", run / "base_model")
    runs |= fused
    train(*runs.values(), world_size=2)
    return runs


def test_a_run_records_all_it_did(alone: dict[str, Path]) -> None:
    run = alone["plain"]
    summary = result(run)
    assert summary["state"] == "succeeded"
    assert summary["steps"] == 6
    assert summary["loss_last"] < summary["loss_first"]
    assert summary["grad_norm_min"] > 0
    assert summary["adapter_reloads"] is True
    assert summary["engine"] == "peft"
    assert 0 < summary["seconds_to_first_step"] < summary["seconds"]
    assert summary["peak_memory_bytes"]["measured"] > 10**8
    assert summary["eval"]["before"]["records"] == summary["eval"]["after"]["tasks"]["sentiment"]["records"] == 6
    assert [set(sample) for sample in summary["samples"]] == [{"prompt", "expected", "before", "after"}] * 2
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[0]) == set(FILES)
    names = [event["name"] for event in events(run, "phase")]
    assert names == ["model", "adapter", "data", "evaluate_before", "train", "evaluate_after", "save"]
    assert [event["step"] for event in events(run, "checkpoint")] == [3, 6]
    assert len((run / "predictions.jsonl").read_text().splitlines()) == 6


def test_the_adapter_loads_with_plain_peft(alone: dict[str, Path]) -> None:
    """In a process without this project on its path."""
    code = (
        "import json, sys; from peft import PeftModel; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "place = sys.argv[1]; base = json.load(open(place + '/adapter_config.json'))['base_model_name_or_path']\n"
        "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), place)\n"
        "assert any(p.abs().sum() > 0 for n, p in model.named_parameters() if 'lora_B' in n)\n"
        "assert AutoTokenizer.from_pretrained(place).chat_template\n"
    )
    run = alone["plain"]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(run / "adapter")], env=clean, cwd=run, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["nf4", "bf16", "zero3", "dropout", "fused-nf4-bf16"])
def test_every_precision_and_setting_learns_with_nonzero_gradients(alone: dict[str, Path], name: str) -> None:
    summary = result(alone[name])
    assert summary["grad_norm_min"] > 0
    assert summary["loss_last"] < summary["loss_first"]
    assert summary["adapter_reloads"] in (True, None)


def test_packing_does_not_change_the_losses(alone: dict[str, Path]) -> None:
    assert metrics(alone["packed"]) == pytest.approx(metrics(alone["plain"]), rel=1e-4)


@pytest.mark.parametrize("stage", range(4))
def test_two_processes_at_any_zero_stage_give_the_losses_of_one(
    alone: dict[str, Path], pair: dict[str, Path], stage: int
) -> None:
    run = pair[f"zero{stage}"]
    assert metrics(run) == pytest.approx(metrics(alone["plain"]), rel=1e-3)
    assert metrics(run, "grad_norm") == pytest.approx(metrics(alone["plain"], "grad_norm"), rel=1e-2)
    assert result(run)["eval"]["after"]["loss"] == pytest.approx(
        result(alone["plain"])["eval"]["after"]["loss"], rel=1e-3
    )


@pytest.mark.parametrize("name", ["fused0", "fused2", "fused3", "fused3-again"])
def test_the_fused_layers_on_two_processes_give_the_losses_of_plain_peft(
    alone: dict[str, Path], pair: dict[str, Path], name: str
) -> None:
    """fused3: a rank holds a layer's weights only while that layer computes."""
    assert result(pair[name])["engine"] == "fused"
    assert metrics(pair[name]) == pytest.approx(metrics(alone["plain"]), rel=1e-3)
    assert metrics(pair[name], "grad_norm") == pytest.approx(metrics(alone["plain"], "grad_norm"), rel=1e-2)


def test_the_fused_layers_read_nf4_weights_like_plain_peft(alone: dict[str, Path]) -> None:
    assert metrics(alone["fused-nf4"]) == pytest.approx(metrics(alone["nf4"]), rel=1e-3)
    assert metrics(alone["fused-nf4-bf16"]) == pytest.approx(metrics(alone["nf4"]), rel=2e-2)


@pytest.mark.parametrize("stage", range(4))
def test_a_run_on_one_process_resumes_on_two(alone: dict[str, Path], pair: dict[str, Path], stage: int) -> None:
    run = pair[f"continued{stage}"]
    assert [event["step"] for event in events(run, "resumed")] == [3]
    assert metrics(run) == pytest.approx(metrics(alone["plain"]), rel=1e-3)


def test_a_run_on_two_processes_resumes_on_four(alone: dict[str, Path], pair: dict[str, Path], configure: Any) -> None:
    """At every ZeRO stage, from the checkpoint of another stage."""
    runs = {
        stage: copy_run(pair[f"zero{(stage + 2) % 4}"], configure, f"four{stage}", 4, **{"train.zero_stage": stage})
        for stage in range(4)
    }
    train(*runs.values(), world_size=4)
    for run in runs.values():
        assert [event["step"] for event in events(run, "resumed")] == [3]
        assert metrics(run) == pytest.approx(metrics(alone["plain"]), rel=1e-3)


def test_a_resumed_run_ends_with_the_same_adapter_to_the_bit(
    alone: dict[str, Path], pair: dict[str, Path], configure: Any
) -> None:
    """Also with dropout, and from a ZeRO-3 checkpoint of two processes."""
    again = {
        "plain": copy_run(alone["plain"], configure, "again"),
        "split": copy_run(alone["split"], configure, "again-split", **SPLIT),
        "dropout": copy_run(
            alone["dropout"],
            configure,
            "again-dropout",
            **{"lora.dropout": 0.2, "lora.plus_ratio": 4.0, "train.packing": "none"},
        ),
        "zero3": copy_run(alone["zero3"], configure, "again-zero3", **{"train.zero_stage": 3}),
    }
    shrunk = copy_run(pair["zero3"], configure, "shrunk")
    train(*again.values(), shrunk)
    for name, run in again.items():
        assert metrics(run) == metrics(alone[name])
        assert metrics(run, "eval_loss") == metrics(alone[name], "eval_loss")
        mine, theirs = weights(run), weights(alone[name])
        assert mine.keys() == theirs.keys()
        assert all(mine[key].equal(theirs[key]) for key in mine)
    assert metrics(shrunk) == pytest.approx(metrics(alone["plain"]), rel=1e-3)
    trained, held = (result(again["split"])["data"][part]["records"] for part in ("train", "eval"))
    assert (trained + held, result(again["split"])["data"]["eval"]["in_training"]) == (36, 0)
    assert 0 < held < 30


def test_unsloth_is_the_engine_unless_a_rule_excludes_it(configure: Any, alone: dict[str, Path]) -> None:
    runs = [
        configure("unsloth", verify_adapter=True, **{"train.engine": "auto"}),
        configure("unsloth-nf4", **{"train.engine": "unsloth", "model.quantization": "nf4"}),
    ]
    output = train(*runs, first=("unsloth",))[0]
    for run in runs:
        summary = result(run)
        assert summary["engine"] == "unsloth"
        assert summary["engine_reason"] in output
        assert summary["grad_norm_min"] > 0
        assert summary["loss_last"] < summary["loss_first"]
    assert result(runs[0])["adapter_reloads"] is True
    assert metrics(runs[0]) == pytest.approx(metrics(alone["plain"]), rel=1e-3)


def test_a_stop_request_saves_on_all_ranks_at_one_step_and_the_run_resumes_there(
    configure: Any, alone: dict[str, Path]
) -> None:
    run = configure("stopped", 2, **{"train.checkpoint_every": 0})
    (run / "control").mkdir()
    (run / "control" / "stop").write_text('{"by": "a test"}')
    train(run, world_size=2, expect=75)
    assert result(run)["state"] == "stopped"
    assert [event["by"] for event in events(run, "request")] == ["a test"]
    assert not (run / "control" / "stop").exists()
    assert (run / "checkpoints" / "step-1" / "COMPLETE").exists()
    configure("stopped", 1, run=run)
    train(run)
    assert result(run)["state"] == "succeeded"
    assert metrics(run) == pytest.approx(metrics(alone["plain"]), rel=1e-3)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("lora.r", 8, "was made with lora.r 4, but this run has 8"), ("lora.alpha", 16, "was made with lora.alpha 8")],
)
def test_a_run_does_not_resume_with_an_adapter_of_another_size_or_scale(
    configure: Any, alone: dict[str, Path], key: str, value: int, message: str
) -> None:
    run = copy_run(alone["plain"], configure, "another-rank", **{key: value})
    ranks = Ranks(1, ["-m", "train", "--config", str(run / "train.json")])
    assert ranks.wait() == [2]
    assert message in ranks.output[0]
    assert "Traceback" not in ranks.output[0]


def test_a_run_that_resumes_with_other_records_warns(
    configure: Any, alone: dict[str, Path], records: dict[str, str], tmp_path: Path
) -> None:
    more = tmp_path / "train.jsonl"
    lines = Path(records["train"]).read_text(encoding="utf-8")
    more.write_text(lines + '{"instruction": "q", "output": "a"}\n', encoding="utf-8")
    run = copy_run(alone["plain"], configure, "more-records", **{"data.train": str(more), "train.max_steps": 7})
    ranks = Ranks(1, ["-m", "train", "--config", str(run / "train.json")])
    assert ranks.wait() == [0]
    assert "data.train has changed: 41 sequences" in ranks.output[0]
    (event,) = events(run, "data_changed")
    assert (event["now"]["sequences"], event["then"]["sequences"]) == (41, 40)


def test_a_checkpoint_request_saves_without_stopping(configure: Any) -> None:
    run = configure("asked", **{"train.checkpoint_every": 0})
    (run / "control").mkdir()
    (run / "control" / "checkpoint").write_text("{}")
    train(run)
    assert [event["step"] for event in events(run, "checkpoint")] == [1, 6]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"data.train": "/nowhere/train.jsonl"}, "no such data file: /nowhere/train.jsonl"),
        ({"model": {"source": "huggingface", "path": "/nowhere/model"}}, "there is no directory /nowhere/model"),
        ({"train.micro_batch_size": 3}, "global_batch_size 8 is not micro_batch_size 3"),
        ({"world_size": 2}, "planned for 2 ranks, but 1 were started"),
        ({"train.epochs": "many"}, "Expected `float`, got `str`"),
        ({"train.epochs": 0}, "train.json: train.epochs: expected above 0, got 0.0"),
    ],
)
def test_a_users_mistake_exits_with_2_and_no_traceback(configure: Any, over: dict[str, Any], message: str) -> None:
    run = configure("mistake", **over)
    ranks = Ranks(1, ["-m", "train", "--config", str(run / "train.json")])
    assert ranks.wait() == [2]
    assert message in ranks.output[0]
    assert "Traceback" not in ranks.output[0]
    if "epochs" not in str(over):  # without a readable train.json there is no run directory to write to
        account = json.loads((run / "errors" / "rank-0.json").read_text())
        assert message in account["message"]
        assert account["cause"] in ("data", "bad_configuration")


def test_a_killed_run_never_loses_its_last_complete_checkpoint(configure: Any) -> None:
    """SIGKILL during a run that saves after every step; each start resumes from what the last one left."""
    run = configure("killed", **{"train.max_steps": 4000, "train.checkpoint_every": 1, "train.keep_checkpoints": 1})
    from train.rundir.checkpoints import complete

    reached = 0
    for attempt in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "train", "--config", str(run / "train.json")],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while not (found := complete(run / "checkpoints")) or int(found[-1].name[5:]) < reached + 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.037 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = complete(run / "checkpoints")
        assert left
        assert int(left[-1].name[5:]) >= reached + 3
        reached = int(left[-1].name[5:])
    assert len(events(run, "resumed")) == 2
