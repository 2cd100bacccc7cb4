"""The best checkpoint and early stopping: against transformers' own callback, and in runs of one and more ranks."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.beds.ranks import events, result, train
from tests.train.training.test_loop import Counting, loop_over

pytestmark = pytest.mark.train
pytest.importorskip("torch")


def transformers_own(values: list[float], metric: str, patience: int, min_delta: float) -> tuple[int, int]:
    """(best measurement, the last one before the stop) as Trainer and EarlyStoppingCallback have them, from 1."""
    from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

    callback = EarlyStoppingCallback(patience, min_delta)
    arguments = TrainingArguments(
        output_dir="/nonexistent", use_cpu=True, load_best_model_at_end=False, metric_for_best_model=metric,
        greater_is_better=metric != "loss", eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    state, control, best = TrainerState(), TrainerControl(), 0
    for number, value in enumerate(values, start=1):
        callback.on_evaluate(arguments, state, control, metrics={f"eval_{metric}": value})
        better = state.best_metric is None or (value < state.best_metric) == (metric == "loss")
        if better and value != state.best_metric:  # Trainer._determine_best_metric
            state.best_metric, best = value, number
        if control.should_training_stop:
            return best, number
    return best, len(values)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
@pytest.mark.parametrize("seed", range(6))
def test_the_best_step_and_the_end_are_those_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, seed: int
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # TrainingArguments would join the group that they speak of
        monkeypatch.delenv(name, raising=False)
    from msgspec.structs import replace

    from train.rundir.best import Best
    from train.training.checkpoint import Progress

    chance = random.Random(seed)
    values = [round(chance.choice([0.5, 0.55, 0.6, 0.7, chance.random()]), 2) for _ in range(9)]
    patience, min_delta = chance.choice([1, 2, 3]), chance.choice([0.0, 0.05, 0.2])
    strategy, saved = Counting(), []
    loop = loop_over(tmp_path, strategy, saved, lambda records: {"loss": 9.0, metric: values[strategy.steps - 1]})
    config = loop.config
    settings = {"early_stopping_patience": patience, "early_stopping_min_delta": min_delta}
    config = replace(config, train=replace(config.train, **settings), eval=replace(config.eval, every=1))
    loop = type(loop)(**{**vars(loop), "config": config, "also_at": (9,)})
    progress, stopped = loop.run(Progress(step=0, measured=0, best=Best(metric, 9, "data")))
    expected = transformers_own(values, metric, patience, min_delta)
    assert (progress.best.step, progress.step, stopped) == (*expected, False)
    assert {expected[0], expected[1]} <= {step for step, _ in saved}


def test_a_value_that_is_no_number_is_never_the_best() -> None:
    from train.rundir.best import Best

    best = Best("loss", 1, "data").after(1, float("nan"), 0.0)
    assert (best.step, best.waited) == (None, 1)
    best = best.after(2, 3.0, 0.0).after(3, float("nan"), 0.0)
    assert (best.step, best.value, best.waited) == (2, 3.0, 1)


RISING: dict[str, Any] = {
    "train.max_steps": 6, "train.checkpoint_every": 3, "train.keep_checkpoints": 1, "train.learning_rate": 0.2,
    "train.scheduler": "constant", "train.warmup_ratio": 0.0, "eval.every": 1, "eval.keep_best": "loss",
}  # fmt: skip
"""Steps so large that the held-out loss soon rises."""


def measured(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
    assert len(dict(found)) == len(found)  # no step twice
    return dict(found)


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.parent.name[5:]) for path in (run / "checkpoints").glob("step-*/COMPLETE"))


def adapter_of(place: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(place / "adapter" / "adapter_model.safetensors"))


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


@pytest.fixture(scope="module")
def rising(configure: Any, records: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs whose held-out loss rises, as half of the answers are none of training: by the loss, by a score of answers,
    and one that stops early."""
    held_out = [json.loads(line) for line in Path(records["eval"]).read_text(encoding="utf-8").splitlines()]
    other = [{**record, "output": "快递房间"} for record in held_out]
    file = tmp_path_factory.mktemp("held-out") / "eval.jsonl"
    file.write_text("".join(f"{json.dumps(record)}\n" for record in [*held_out, *other]), encoding="utf-8")
    RISING["data.eval"] = str(file)
    runs = {
        "loss": configure("best-loss", **{**RISING, "train.keep_checkpoints": 9}),
        "kept": configure("best-kept", **RISING),
        "accuracy": configure("best-accuracy", **{**RISING, "eval.keep_best": "accuracy", "eval.scored_records": 4}),
        "early": configure("best-early", **{**RISING, "train.early_stopping_patience": 1, "train.max_steps": 20}),
    }
    train(*runs.values())
    return runs


def test_the_adapter_is_that_of_the_best_step_and_rotation_keeps_its_checkpoint(rising: dict[str, Path]) -> None:
    run = rising["kept"]
    losses, said = measured(run), result(run)
    lowest = min((step for step in losses if step), key=lambda step: losses[step])
    assert 0 < lowest < 6
    assert (said["adapter_step"], said["best"]["step"], said["steps"]) == (lowest, lowest, 6)
    assert said["best"]["value"] == losses[lowest]
    assert said["eval"]["after"]["loss"] == pytest.approx(losses[lowest], abs=1e-6)  # measured on that adapter
    assert checkpoints(run) == sorted({lowest, 6})
    assert same(adapter_of(run), adapter_of(run / "checkpoints" / f"step-{lowest}"))
    assert not same(adapter_of(run), adapter_of(run / "checkpoints" / "step-6"))
    assert f"| Steps | {lowest} |" in (run / "adapter" / "README.md").read_text()


def test_a_score_of_answers_chooses_the_step(rising: dict[str, Path]) -> None:
    said = result(rising["accuracy"])
    lines = [json.loads(line) for line in (rising["accuracy"] / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["accuracy"] for line in lines if "accuracy" in line}
    assert sorted(scores) == [1, 2, 3, 4, 5, 6]
    assert said["best"] == {
        "step": max(scores, key=lambda step: (scores[step], -step)), "metric": "accuracy",
        "value": max(scores.values()), "records": 4,
    }  # fmt: skip
    assert said["adapter_step"] == said["best"]["step"]


def test_early_stopping_ends_the_run_with_the_best_adapter_and_a_resume_trains_no_further(
    rising: dict[str, Path], configure: Any
) -> None:
    run = rising["early"]
    said, losses = result(run), measured(run)
    assert (said["state"], said["ended_early"]) == ("succeeded", True)
    assert said["steps"] == said["best"]["step"] + 1 < 20
    assert said["steps"] in checkpoints(run)
    (event,) = events(run, "early_stopping")
    assert (event["step"], event["best"], event["total_steps"]) == (said["steps"], said["adapter_step"], 20)
    again = copy_until(run, configure, "early-again", said["steps"], **json_over(run))
    longer = copy_until(
        run, configure, "early-longer", said["steps"], **json_over(run) | {"train.early_stopping_patience": 3}
    )
    train(again, longer)
    assert same(adapter_of(again), adapter_of(run))
    assert (measured(again), result(again)["steps"]) == (losses, said["steps"])
    assert result(longer)["steps"] > said["steps"]


def json_over(run: Path) -> dict[str, Any]:
    """The settings of a run of this file."""
    config = json.loads((run / "train.json").read_text())
    names = [*RISING, "train.early_stopping_patience"]
    return {name: config[name.split(".")[0]].get(name.split(".")[1]) for name in names}


def copy_until(source: Path, configure: Any, name: str, step: int, world_size: int = 1, **over: Any) -> Path:
    """A run directory that continues from a copy of the checkpoint of a step, the newest it has."""
    place: Path = configure(name, world_size, **over)
    shutil.copytree(source / "base_model", place / "base_model")
    for number in checkpoints(source):
        if number <= step:
            shutil.copytree(source / "checkpoints" / f"step-{number}", place / "checkpoints" / f"step-{number}")
    shutil.copy(source / "metrics.jsonl", place)
    return place


def test_a_resumed_run_ends_with_the_same_best_step_to_the_bit(rising: dict[str, Path], configure: Any) -> None:
    """From the checkpoint of step 3, saved before its measurement, and from that of the best step, saved after it."""
    source = rising["loss"]
    lowest = result(source)["adapter_step"]
    runs = [copy_until(source, configure, f"again-{step}", step, **json_over(source)) for step in {3, lowest}]
    train(*runs)
    for run in runs:
        assert measured(run) == measured(source)
        assert result(run)["best"] == result(source)["best"]
        assert same(adapter_of(run), adapter_of(source))


def test_ranks_choose_the_step_of_one_process_at_every_zero_stage(rising: dict[str, Path], configure: Any) -> None:
    """Also a run of one process that two go on with; and the fused layers."""
    source = rising["loss"]
    cases = {f"zero{stage}": {"train.zero_stage": stage} for stage in (0, 2, 3)}
    cases |= {"fused": {"train.engine": "fused"}, "fused3": {"train.engine": "fused", "train.zero_stage": 3}}
    runs = {
        name: configure(f"ranks-{name}", 2, **{**json_over(source), "train.gradient_accumulation_steps": 2, **over})
        for name, over in cases.items()
    }
    for run in runs.values():
        shutil.copytree(source / "base_model", run / "base_model")
    runs["continued"] = copy_until(
        source, configure, "ranks-continued", 3, 2, **{**json_over(source), "train.zero_stage": 2}
    )
    train(*runs.values(), world_size=2)
    expected = result(source)["best"]
    for run in runs.values():
        said = result(run)
        assert said["adapter_step"] == said["best"]["step"] == expected["step"]
        assert said["best"]["value"] == pytest.approx(expected["value"], rel=2e-3)
        assert said["eval"]["after"]["loss"] == pytest.approx(said["best"]["value"], rel=1e-4)
        assert same(adapter_of(run), adapter_of(run / "checkpoints" / f"step-{expected['step']}"))


def test_a_best_checkpoint_that_is_damaged_is_told_and_the_last_step_is_kept(
    rising: dict[str, Path], configure: Any
) -> None:
    source = rising["loss"]
    lowest = result(source)["adapter_step"]
    run = copy_until(source, configure, "damaged-best", 6, **json_over(source))
    with (run / "checkpoints" / f"step-{lowest}" / "state.safetensors").open("r+b") as file:
        file.write(b"x")
    output = train(run)[0]
    assert f"the adapter is that of step 6, not of the best step {lowest}" in output
    assert result(run)["adapter_step"] == 6
    assert same(adapter_of(run), adapter_of(run / "checkpoints" / "step-6"))


def test_a_checkpoint_is_used_by_name_and_the_average_is_the_mean_of_the_last_ones(rising: dict[str, Path]) -> None:
    import numpy as np
    from safetensors.numpy import load_file

    from train.answers.trained import find_adapter
    from train.errors import UserError

    run = rising["loss"]
    steps, lowest = checkpoints(run), result(run)["adapter_step"]
    places = {"best": f"step-{lowest}", "last": "step-6", "step-3": "step-3"}
    for which, name in places.items():
        assert find_adapter(run, which).directory == run / "checkpoints" / name / "adapter"
    assert find_adapter(run).directory == run / "adapter"
    mean = load_file(find_adapter(run, "average:last:3").directory / "adapter_model.safetensors")
    parts = [load_file(run / f"checkpoints/step-{step}/adapter/adapter_model.safetensors") for step in steps[-3:]]
    for name, value in mean.items():
        np.testing.assert_allclose(value, np.mean([part[name] for part in parts], axis=0, dtype=np.float64), rtol=1e-6)
    with pytest.raises(UserError, match="has no complete checkpoint step-77 here; it has: step-"):
        find_adapter(run, "step-77")
    with pytest.raises(UserError, match=f"has {len(steps)} of the 30 checkpoints to average"):
        find_adapter(run, "average:last:30")


def test_an_average_is_exported_and_scored(rising: dict[str, Path], tmp_path: Path) -> None:
    """Plain PEFT on the average has the loss that its scores say, within rounding."""
    from train import evaluate, export

    run = rising["loss"]
    options = ["--run-dir", str(run), "--checkpoint=average:last:2"]
    assert evaluate.main([*options, "--device", "cpu", "--out", str(tmp_path / "scores")]) == 0
    assert export.main([*options, "--to", "adapter", "--out", str(tmp_path / "adapter")]) == 0
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["loss"] == pytest.approx(plain_loss(run, tmp_path / "adapter"), rel=1e-4)
    assert "the mean of those of step-" in (tmp_path / "adapter" / "README.md").read_text()


def plain_loss(run: Path, adapter: Path) -> float:
    """Loss per token of the answers of data.eval, by transformers and PEFT alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(adapter)
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    total, count = 0.0, 0
    for line in Path(json.loads((run / "train.json").read_text())["data"]["eval"]).read_text().splitlines():
        record = json.loads(line)
        asked = [{"role": "user", "content": f"{record['instruction']}\n{record['input']}"}]
        said = [*asked, {"role": "assistant", "content": record["output"]}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        text = tokenizer.apply_chat_template(said, tokenize=False).rstrip("\n")
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logits = model(ids).logits[0, start - 1 : -1].double()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum"))
        count += ids.shape[1] - start
    return total / count
