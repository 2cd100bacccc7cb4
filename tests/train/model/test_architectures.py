"""Every architecture that people train this year goes from its checkpoint to an exported model, by PEFT.

The steps are train, resume, evaluate, generate and export. Checkpoints are tiny and random; runs share processes.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.beds.architectures import ROWS, make, pack_in_mxfp4
from tests.beds.campaigns import WHOLE
from tests.beds.ranks import events, metrics, result, tools, train
from tests.train.conftest import write_records
from train import compat, families, memory
from train.compat import Combination
from train.config import Lora, load
from train.data.tokens import IGNORED
from train.fused.attention import PackedLayout
from train.fused.model import fuse
from train.fused.model import unsupported_reason as fused_reason
from train.model.load import load_plain
from train.model.lora_places import places
from train.training.loss import AnswerLoss
from train.training.strategy import _attends_by_lengths

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
    assert any(re.search(r"experts(\.base_layer)?$", one) for one in found) is row.mixture
    assert any("routers stay frozen" in text for text in warned) is row.mixture


@pytest.mark.parametrize("name", NAMES)
def test_an_export_is_the_same_model_to_anybody(bed: Bed, used: Any, name: str) -> None:
    """Its architecture is the published one, and its weights are the base's and the adapter's."""
    assert used[name, "export"][0] == 0, used[name, "export"][1]
    before, after = (
        json.loads((place / "config.json").read_text()) for place in (bed.place / name, bed.place / f"{name}-merged")
    )
    assert after["architectures"] == before["architectures"]
    assert after["model_type"] == before["model_type"]


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_architectures_says_what_its_checkpoint_is(bed: Bed, name: str) -> None:
    config = json.loads((bed.place / name / "config.json").read_text())
    family, row = families.family_of(config), ROWS[name]
    known = [one for one in families.ARCHITECTURES if config["model_type"] in one.model_types]
    assert known or family.name != families.ANY.name
    assert family.experts is (row.mixture and family.name == families.ANY.name)
    for one in known:
        assert family.title == one.title
        assert one.mixture or not row.mixture or name == "gemma4-moe"
        assert one.sees or row.vision is None


def test_every_architecture_of_the_table_has_a_checkpoint(bed: Bed) -> None:
    made = {json.loads((bed.place / name / "config.json").read_text())["model_type"] for name in NAMES}
    assert {kind for one in families.ARCHITECTURES for kind in one.model_types} <= made


@pytest.mark.parametrize("name", NAMES)
def test_the_planner_counts_its_weights(bed: Bed, name: str) -> None:
    from safetensors import safe_open

    config = json.loads((bed.place / name / "config.json").read_text())
    if name == "lfm2":
        with pytest.raises(memory.UnknownShape):
            memory.from_config(config)
        return
    with safe_open(bed.place / name / "model.safetensors", "pt") as file:
        sizes = {key: math.prod(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no dict
    text = sum(size for key, size in sizes.items() if not re.search("vision|visual|multi_modal|projector", key))
    shape = memory.from_config(config)
    planned = shape.parameters if ROWS[name].vision is None else shape.parameters - shape.beside
    if name == "hunyuan-moe":  # its config.json does not tell of the shared MLP
        planned += 2 * 3 * 48 * 64
    if name == "mistral3":  # the head is the embedding, which only the whole checkpoint's config.json says
        planned -= 700 * 48
    if name == "gemma4":
        planned = shape.parameters
    assert planned == pytest.approx(text, rel=0.07)


LENGTHS = (23, 7, 31, 12)


@pytest.mark.parametrize("name", NAMES)
def test_packed_rows_give_the_losses_and_gradients_of_single_records_or_are_refused(bed: Bed, name: str) -> None:
    import torch

    config = json.loads((bed.place / name / "config.json").read_text())
    refused = compat.check(Combination(family=families.family_of(config), engine="peft", packing="pack"))
    generator = torch.Generator().manual_seed(1)
    records = [torch.randint(5, 690, (length,), generator=generator) for length in LENGTHS]
    loss = _adapted_loss(bed, name)
    single = [_loss_and_gradient(loss, input_ids=ids[None], labels=_shifted(ids)[None]) for ids in records]
    loss.takes_layout = _attends_by_lengths(load(bed.runs[name] / "train.json"), loss.model)
    row = {
        "layout": PackedLayout.from_lengths(LENGTHS, "cpu") if loss.takes_layout else None,
        "input_ids": torch.cat(records)[None],
        "labels": torch.cat(list(map(_shifted, records)))[None],
        "position_ids": torch.cat([torch.arange(len(ids)) for ids in records])[None],
    }
    packed, gradient = _loss_and_gradient(loss, **row)
    separate = sum(one for one, _ in single)
    whole = sum(gradient for _, gradient in single)
    same = packed == pytest.approx(separate, rel=1e-5) and float((gradient - whole).norm() / whole.norm()) < 1e-3
    assert same is not bool(refused)
    family = families.family_of(config)
    assert not loss.takes_layout or not family.masked
    assert loss.takes_layout or family.masked or refused
    assert ("fused" in family.engines) is (fused_reason(loss.model) is None)
    if "fused" in family.engines:
        value, fast = _loss_and_gradient(
            fuse(loss.model), **{**row, "layout": PackedLayout.from_lengths(LENGTHS, "cpu")}
        )
        assert value == pytest.approx(separate, rel=1e-5)
        assert float((fast - whole).norm() / whole.norm()) < 1e-3
    again, _ = _loss_and_gradient(loss, input_ids=records[0][None], labels=_shifted(records[0])[None])
    assert again == pytest.approx(single[0][0], rel=1e-5)  # a padded row after packed ones


def _shifted(ids: Any) -> Any:
    import torch

    labels = torch.full_like(ids, IGNORED)
    labels[:-1] = ids[1:]
    return labels


def _adapted_loss(bed: Bed, name: str) -> Any:
    """The loss of a checkpoint with random LoRA weights, without the dropout that some models have."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = load_plain(load(bed.runs[name] / "train.json"), bed.place / name, torch.float32, device="cpu")
    found = places(model, "all-linear", "peft", Lora())
    parameters = {"target_parameters": list(found.parameters)} if found.parameters else {}
    torch.manual_seed(0)
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=found.modules, init_lora_weights=False, **parameters)
    )
    return AnswerLoss(adapted, fused=False).eval()


def _loss_and_gradient(loss: Any, **inputs: Any) -> tuple[float, Any]:
    import torch

    value = loss(**inputs)
    value.backward()
    trained = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    gradient = torch.cat(
        [torch.zeros_like(one).flatten() if one.grad is None else one.grad.flatten() for one in trained]
    )
    loss.zero_grad()
    return value.item(), gradient


SHORT = {"eval.before": False, "eval.after": False, "train.checkpoint_every": 0, "train.max_steps": 3}
DENSE = tuple(name for name in NAMES if not ROWS[name].mixture) if WHOLE else ("phi4", "gemma3")
SHARED = NAMES if WHOLE else ("qwen3-moe", "llama4")


@pytest.mark.long
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_dense_architectures_learn_on_quantized_weights(bed: Bed, configure: Any, quantization: str) -> None:
    runs = {}
    for name in DENSE:
        model = {"path": str(bed.place / name), "quantization": quantization}
        data = {"data.train": str(bed.place / "train.jsonl"), "train.global_batch_size": 4}
        runs[name] = configure(
            f"{name}-{quantization}", model=model, **SHORT, **data, **{"train.gradient_accumulation_steps": 2}
        )
    train(*runs.values(), ZLAUNCH_CACHE=str(bed.place / "cache"))
    for name, run in runs.items():
        assert result(run)["loss_last"] < result(run)["loss_first"], name
        assert result(run)["grad_norm_min"] > 0, name


@pytest.mark.long
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_gives_the_losses_of_one_rank(bed: Bed, configure: Any, stage: int) -> None:
    runs = {}
    for name in SHARED:
        data = {"data.train": str(bed.place / "train.jsonl"), "train.global_batch_size": 4}
        more = {**SHORT, **data, "train.gradient_accumulation_steps": 1, "train.zero_stage": stage}
        runs[name] = configure(f"{name}-zero{stage}", 2, model={"path": str(bed.place / name)}, **more)
    train(*runs.values(), world_size=2, ZLAUNCH_CACHE=str(bed.place / "cache"))
    differ = [name for name, run in runs.items() if metrics(run) != pytest.approx(metrics(bed.runs[name]), rel=1e-3)]
    assert differ == []


def test_a_start_shows_the_reason_of_the_plan_for_the_engine_that_the_plan_chose(bed: Bed, configure: Any) -> None:
    """The plan's train.json names an engine; only without a reason did the job do so."""
    planned = "plain transformers and PEFT: the planner's reason"
    run = configure("planned", model={"path": str(bed.place / "phi4")}, engine_reason=planned, **SHORT)
    assert train(run)[0].splitlines()[0] == f"engine peft: {planned}"
    assert result(run)["engine_reason"] == planned
    assert events(bed.runs["phi4"], "engine")[0]["reason"] == "train.engine=peft in the job"


def test_gpt_oss_as_it_is_published_in_mxfp4_trains_and_is_exported_in_16_bits(
    bed: Bed, configure: Any, tmp_path: Path
) -> None:
    """Experts are unpacked at loading, also where kernels could multiply with packed ones: LoRA needs the weights."""
    place = make("gpt-oss-wide", bed.place / "gpt-oss-mxfp4")
    pack_in_mxfp4(place)
    data = {"data.train": str(bed.place / "train.jsonl"), "train.global_batch_size": 4}
    model = {"path": str(place)}
    run = configure("mxfp4", model=model, **SHORT, **data, **{"train.gradient_accumulation_steps": 2})
    train(run)
    assert result(run)["loss_last"] < result(run)["loss_first"]
    assert [one for one in adapted(run) if "experts" in one]
    out = str(tmp_path / "merged")
    ((status, output),) = tools(tmp_path, ("train.export", ["--run-dir", str(run), "--to", "merged", "--out", out]))
    assert status == 0, output
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
