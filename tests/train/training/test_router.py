"""The loss of routers is that of transformers, is logged beside the cross entropy, and reaches the adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.beds.architectures import ROWS, make
from tests.beds.ranks import events, result, train
from tests.train.conftest import write_records
from train import compat, families
from train.compat import Combination
from train.errors import UserError

pytestmark = pytest.mark.train
torch = pytest.importorskip("torch")

BALANCED = (
    "qwen2-moe", "qwen3-moe", "qwen3-next", "qwen3.5-moe", "qwen3.5-moe-sees", "mixtral", "gpt-oss", "ernie4.5-moe",
)  # fmt: skip
UNBALANCED = tuple(name for name, row in ROWS.items() if row.mixture and name not in (*BALANCED, "gpt-oss-wide"))
LENGTHS = (17, 9, 13)


def adapted(place: Path, weight: float | str) -> Any:
    """The loss of a checkpoint in training mode, with random LoRA weights and no dropout."""
    from peft import LoraConfig, get_peft_model

    from train.config import Lora
    from train.model.lora_places import places
    from train.training.loss import AnswerLoss
    from train.training.router import RouterLoss

    model = loaded(place)
    found = places(model, "all-linear", "peft", Lora())
    torch.manual_seed(0)
    more = {"target_parameters": list(found.parameters)} if found.parameters else {}
    options = LoraConfig(r=4, target_modules=found.modules, init_lora_weights=False, **more)
    peft = get_peft_model(model, options)
    for module in peft.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return AnswerLoss(peft, fused=False, router=RouterLoss(model, weight)).train()


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The losses of each step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: line[key] for key in ("step", "loss", "router_loss") if key in line} for line in lines]


def loaded(place: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(place)
    kind = AutoModelForCausalLM if config.get_text_config() is config else AutoModelForImageTextToText
    return kind.from_pretrained(place, dtype=torch.float32)


def gradient(loss: Any) -> Any:
    found = [one.grad.flatten() for one in loss.parameters() if one.grad is not None]
    loss.zero_grad()
    return torch.cat(found)


@pytest.mark.parametrize("name", BALANCED)
def test_a_micro_batch_has_the_loss_and_gradient_of_transformers_with_output_router_logits(
    name: str, tmp_path: Path
) -> None:
    from train.data.tokens import IGNORED

    loss = adapted(make(name, tmp_path / name), "auto")
    config = loss.model.get_base_model().config.get_text_config()
    assert loss.router.weight == config.router_aux_loss_coef > 0
    loss.router.weight = config.router_aux_loss_coef = loss.model.get_base_model().router_aux_loss_coef = 0.5
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 690, (len(LENGTHS), max(LENGTHS)), generator=generator)
    real = (torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]).long()
    labels = torch.where(real == 1, ids, IGNORED)
    labels[:, :4] = IGNORED
    theirs = loss.model(input_ids=ids, attention_mask=real, labels=labels, output_router_logits=True)
    theirs.loss.backward()
    expected, count = gradient(loss), int((labels[:, 1:] != IGNORED).sum())
    shifted = torch.full_like(labels, IGNORED)
    shifted[:, :-1] = labels[:, 1:]
    ours = loss(input_ids=ids, labels=shifted, real=real) / count
    ours.backward()
    assert ours.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert float(loss.router.taken()) / count == pytest.approx(theirs.aux_loss.item(), rel=1e-5)
    found = gradient(loss)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    without = loss.eval()(input_ids=ids, labels=shifted) / count
    assert without.item() == pytest.approx(theirs.loss.item() - 0.5 * theirs.aux_loss.item(), rel=1e-5)


@pytest.mark.parametrize("name", UNBALANCED)
def test_a_mixture_for_which_transformers_has_none_is_refused_before_and_after_loading(
    name: str, tmp_path: Path
) -> None:
    from train.training.router import RouterLoss

    place = make(name, tmp_path / name)
    family = families.family_of(json.loads((place / "config.json").read_text()))
    (refusal,) = compat.check(Combination(family=family, router_loss=True))
    assert "transformers computes no such loss" in refusal.reason
    assert refusal.instead == "train.router_loss: 0"
    model, ids = loaded(place), torch.arange(5, 12)[None]
    with pytest.raises(UserError, match="computes no such loss"):
        RouterLoss(model, 0.1).of(model(input_ids=ids, output_router_logits=True).router_logits, None, 1)


def test_a_run_logs_it_beside_the_cross_entropy_however_the_batch_is_cut_and_resumed(
    configure: Any, tmp_path: Path
) -> None:
    model = {"path": str(make("qwen3-moe", tmp_path / "model"))}
    shared = {
        "data.train": str(write_records(tmp_path / "train.jsonl", 4)),
        "train.max_steps": 3,
        "train.checkpoint_every": 2,
        "train.global_batch_size": 4,
        "train.micro_batch_size": 4,
        "train.gradient_accumulation_steps": 1,
    }
    runs = {}
    for name, more in (
        ("none", {}),
        ("whole", {"train.router_loss": 5.0}),
        ("checkpointing", {"train.router_loss": 5.0, "train.gradient_checkpointing": True}),
        ("parts", {"train.router_loss": 5.0, "train.micro_batch_size": 2, "train.gradient_accumulation_steps": 2}),
        ("packed", {"train.router_loss": 5.0, "train.packing": "pack"}),
        ("auto", {"train.router_loss": "auto"}),
    ):
        runs[name] = configure(name, model=model, **{**shared, **more})
    runs["resumed"] = configure(
        "resumed", model=model, init_from=str(runs["whole"] / "checkpoints" / "step-2"),
        **{**shared, "train.router_loss": 5.0},
    )  # fmt: skip
    runs["two"] = configure("two", 2, model=model, **{**shared, "train.micro_batch_size": 2, "train.router_loss": 5.0})
    single = [run for name, run in runs.items() if name not in ("resumed", "two")]
    out = train(*single)
    train(runs["resumed"])
    train(runs["two"], world_size=2)
    found = {name: lines_of(run) for name, run in runs.items()}
    assert all("router_loss" not in line for line in found["none"])
    first = {name: lines[0] for name, lines in found.items() if name != "resumed"}
    for line in first.values():
        assert line["loss"] == pytest.approx(first["none"]["loss"], rel=1e-5)
    assert found["whole"][-1]["loss"] != pytest.approx(found["none"][-1]["loss"], rel=1e-6)
    for name in ("checkpointing", "packed"):
        for one, other in zip(found[name], found["whole"], strict=True):
            assert one["router_loss"] == pytest.approx(other["router_loss"], rel=1e-4)
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert found["two"][-1]["router_loss"] == pytest.approx(found["parts"][-1]["router_loss"], rel=1e-3)
    assert found["resumed"] == found["whole"][2:]
    assert events(runs["whole"], "router_loss")[0]["weight"] == 5.0
    assert events(runs["auto"], "router_loss")[0]["weight"] == 0.001
    assert any("router loss: weight 5;" in text for text in out)
    assert any("train.router_loss: 0" in event["text"] for event in events(runs["none"], "warning"))
    assert "Router loss" in (runs["whole"] / "adapter" / "README.md").read_text()
    assert result(runs["whole"])["adapter_reloads"] is not False
