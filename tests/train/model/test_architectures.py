"""Every architecture that people train this year goes from its checkpoint to an exported model, by PEFT.

The steps are train, resume, evaluate, generate and export. Checkpoints are tiny and random; runs share processes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.beds.architectures import ROWS, make
from tests.beds.ranks import events, metrics, result, tools, train
from tests.train.conftest import write_records

pytestmark = pytest.mark.train

NAMES = tuple(ROWS)
ROUTERS = re.compile(r"(^|\.)(gate|router|wg|shared_expert_gate)(\.|$)")


@dataclass(frozen=True)
class Bed:
    place: Path
    runs: dict[str, Path]
    resumed: dict[str, Path]


@pytest.fixture(scope="module")
def bed(configure: Any, tmp_path_factory: pytest.TempPathFactory) -> Bed:
    """A run of every checkpoint, and one that resumes from the middle of the first."""
    place = tmp_path_factory.mktemp("architectures")
    evaluated = str(write_records(place / "eval.jsonl", 3, start=100))
    settings = {
        "data.train": str(write_records(place / "train.jsonl", 4)),  # each step sees all of them
        "data.eval": evaluated,
        "train.max_steps": 3,
        "train.global_batch_size": 4,
        "train.gradient_accumulation_steps": 2,
        "train.checkpoint_every": 2,
        "eval.before": False,
    }
    runs, resumed = {}, {}
    for name in NAMES:
        model = {"path": str(make(name, place / name))}
        runs[name] = configure(name, model=model, verify_adapter=True, **settings)
        middle = str(runs[name] / "checkpoints" / "step-2")
        over = {"eval.after": False, "train.checkpoint_every": 0}
        resumed[name] = configure(f"{name}-resumed", model=model, init_from=middle, **{**settings, **over})
    train(*runs.values(), *resumed.values(), ZLAUNCH_CACHE=str(place / "cache"))
    return Bed(place, runs, resumed)


@pytest.fixture(scope="module")
def used(bed: Bed) -> dict[tuple[str, str], tuple[int, str]]:
    """(status, output) of evaluate, generate and export on each run, by (row, command)."""
    commands: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for name, run in bed.runs.items():
        whose = ["--run-dir", str(run)]
        scores, merged = str(bed.place / f"{name}-scores"), str(bed.place / f"{name}-merged")
        prompt = predictions(run)[0]["prompt"]
        commands[name, "evaluate"] = ("train.evaluate", [*whose, "--device", "cpu", "--out", scores])
        more = ["--device", "cpu", "--prompt", prompt, "--max-new-tokens", "4"]
        commands[name, "generate"] = ("train.generate", [*whose, *more])
        commands[name, "export"] = ("train.export", [*whose, "--to", "merged", "--out", merged])
    found = tools(bed.place, *commands.values(), ZLAUNCH_CACHE=str(bed.place / "cache"))
    return dict(zip(commands, found, strict=True))


def predictions(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def adapted(run: Path) -> list[str]:
    """Full names of what has LoRA weights in the run's adapter."""
    from safetensors import safe_open

    with safe_open(run / "adapter" / "adapter_model.safetensors", "pt") as file:
        return sorted({re.split(r"\.lora_", name)[0].removeprefix("base_model.model.") for name in file.keys()})  # noqa: SIM118 - no dict


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_resumes_answers_and_is_exported(bed: Bed, used: Any, name: str) -> None:
    run, summary = bed.runs[name], result(bed.runs[name])
    assert summary["loss_last"] < summary["loss_first"]
    assert summary["grad_norm_min"] > 0
    assert summary["adapter_reloads"] is True
    assert metrics(bed.resumed[name]) == metrics(run)[2:]
    for command in ("evaluate", "generate", "export"):
        assert used[name, command][0] == 0, used[name, command][1]
    assert predictions(bed.place / f"{name}-scores") == predictions(run)
    assert used[name, "generate"][1].strip() == predictions(run)[0]["given"]
    difference = float(used[name, "export"][1].partition("largest difference ")[2].split(",")[0])
    assert difference < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_lora_is_on_attention_mlp_and_experts_and_on_nothing_else(bed: Bed, name: str) -> None:
    found, row = adapted(bed.runs[name]), ROWS[name]
    assert not [one for one in found if ROUTERS.search(one) or "lm_head" in one or "embed" in one]
    assert not [one for one in found if re.search("vision|visual|multi_modal", one)]
    warned = [event["text"] for event in events(bed.runs[name], "warning")]
    assert any("only the text model" in text for text in warned) is (row.vision is not None)
    mixture = any("expert" in key for key in row.shape)
    assert any(re.search(r"experts(\.base_layer)?$", one) for one in found) is mixture
    assert any("routers stay frozen" in text for text in warned) is mixture


@pytest.mark.parametrize("name", NAMES)
def test_an_export_is_the_same_model_to_anybody(bed: Bed, used: Any, name: str) -> None:
    """Its architecture is the published one, and its weights are the base's and the adapter's."""
    assert used[name, "export"][0] == 0, used[name, "export"][1]
    before, after = (
        json.loads((place / "config.json").read_text()) for place in (bed.place / name, bed.place / f"{name}-merged")
    )
    assert after["architectures"] == before["architectures"]
    assert after["model_type"] == before["model_type"]
