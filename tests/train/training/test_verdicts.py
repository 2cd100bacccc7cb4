"""The verdict over real trainings of a tiny model, and what they report on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.rundir import reading
from launcher.rundir.directory import RunDir
from launcher.rundir.picture import Picture
from launcher.rundir.state import RunState
from launcher.show import frame
from tests.beds.ranks import events, metrics, train
from tests.train.conftest import WORDS, write_records

pytestmark = pytest.mark.train


def write_echoes(path: Path, numbers: range) -> str:
    """Records whose answer repeats the question, of which a small model learns a part."""
    lines = []
    for number in numbers:
        text = "".join(WORDS[(number * factor) % 10] for factor in (1, 3, 7))
        lines.append({"instruction": "重复", "input": text, "output": f"{text}，{text}，{text}。"})
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def write_noise(path: Path, numbers: range) -> str:
    """Records whose answers follow from nothing."""
    lines = []
    for number in numbers:
        text = "".join(WORDS[(number**2 + 3 * place * number) % 10] for place in range(6))
        lines.append({"instruction": "猜", "input": str(number), "output": text})
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def write_english(path: Path, numbers: range) -> str:
    """Records of another kind than those in Chinese."""
    words = ("table", "river", "green", "morning", "seven", "paper", "quick", "garden", "winter", "stone")
    lines = []
    for number in numbers:
        text = " ".join(words[(number * factor + factor) % 10] for factor in (1, 3, 7, 9))
        lines.append({"instruction": "say", "input": str(number), "output": text})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, configure: Callable[..., Path]) -> dict[str, Picture]:
    place = tmp_path_factory.mktemp("verdicts")
    echoes = {
        "data.train": write_echoes(place / "echoes.jsonl", range(80)),
        "data.eval": write_echoes(place / "same-echoes.jsonl", range(100, 116)),  # they repeat every ten
    }
    noise = {
        "data.train": write_noise(place / "noise.jsonl", range(12)),
        "data.eval": write_noise(place / "more-noise.jsonl", range(100, 112)),
    }
    labels = {"data.eval": str(write_records(place / "labels.jsonl", 20, start=100))}
    usual = {"train.max_steps": 30, "train.checkpoint_every": 0, "lora.r": 8, "train.learning_rate": 2e-2}
    # Only with a head of its own has the tiny model room to learn by heart, or to go astray: its norms bound the rest.
    head = {"lora.modules_to_save": ["lm_head"], "eval.after": False}
    settings: dict[str, dict[str, Any]] = {
        "learned": {**noise, "train.max_steps": 60, "train.learning_rate": 3e-2},  # which characters answers have
        "training and held-out data overlap": echoes,
        "not learning": {**echoes, "train.learning_rate": 1e-9, "train.max_steps": 10},
        "no better than the majority class": labels,
        "too few held-out records to judge": {
            **noise,
            "data.eval": write_noise(place / "few.jsonl", range(100, 104)),
            "train.max_steps": 60,
            "train.learning_rate": 3e-2,
        },
        "overfits": {
            **noise,
            **head,
            "data.eval": write_english(place / "english.jsonl", range(12)),
            "train.learning_rate": 1e-2,
            "eval.every": 6,
        },
        "diverged": {**noise, **head, "train.learning_rate": 1.0, "train.scheduler": "constant", "train.max_steps": 15},
        "answers": noise,  # the token that ends an answer is learned before the others
    }
    runs = {name: configure(name, **{**usual, **chosen}) for name, chosen in settings.items()}
    train(*runs.values())
    return {name: reading.read(RunDir(run), RunState.SUCCEEDED) for name, run in runs.items()}


RULES = (
    "learned", "not learning", "training and held-out data overlap", "no better than the majority class",
    "too few held-out records to judge", "answers", "overfits", "diverged",
)  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_real_training_gets_its_verdict(pictures: dict[str, Picture], rule: str) -> None:
    found = pictures[rule]
    assert found.verdict is not None
    assert found.verdict.rule == rule, (found.verdict, [(p.step, p.loss) for p in found.held_out], found.loss_last)


def test_overfitting_names_the_step_from_which_the_held_out_loss_rose(pictures: dict[str, Picture]) -> None:
    found = pictures["overfits"]
    assert found.verdict is not None
    best = min(found.held_out, key=lambda point: point.loss)
    assert found.verdict.line.startswith(f"overfits since step {best.step}: held-out loss {best.loss:.2f} to ")
    assert best.step < found.held_out[-1].step
    assert found.best is not None
    assert (found.best.step, found.best.metric, found.adapter_step) == (best.step, "loss", best.step)
    assert found.best.value == best.loss
    assert found.verdict.reason.startswith(f"the adapter is that of step {best.step};")
    shown = "\n".join(line.plain for line in frame.report(found, width=100))
    assert f"step {best.step}, loss {best.loss:.4f}, the adapter" in shown


def test_answers_that_are_empty_are_counted(pictures: dict[str, Picture]) -> None:
    found = pictures["answers"].verdict
    assert found is not None
    assert found.line == "answers are empty: 12 of 12"


def test_the_held_out_loss_is_measured_during_the_training_for_little_work(pictures: dict[str, Picture]) -> None:
    found = pictures["learned"]
    directory = Path(found.directory)
    (schedule,) = events(directory, "loss_schedule")
    assert schedule["every"] > 0
    measured = [point for point in found.held_out if point.seconds is not None]
    assert [point.step for point in measured][:2] == [0, schedule["every"]]
    work = sum(point.records or 12 for point in measured) / 2
    assert work <= 0.05 * 60 * 8
    assert len(metrics(directory)) == 60


def test_a_training_reports_its_phases_its_length_and_its_memory(pictures: dict[str, Picture]) -> None:
    found = pictures["learned"]
    assert [phase.name for phase in found.phases] == [
        "model", "adapter", "data", "train", "evaluate_after", "save", "ended",
    ]  # fmt: skip
    assert (found.step, found.total_steps) == (60, 60)
    (memory, *_) = events(Path(found.directory), "memory")
    assert memory["peak_bytes"] > 10**7
    (evaluation,) = events(Path(found.directory), "evaluation")
    assert (evaluation["when"], evaluation["step"]) == ("after", found.adapter_step)
