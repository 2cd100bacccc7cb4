"""Checkpoints whose weights are quantized already train as what they hold, or are refused with what to set."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.beds.packed import packed
from tests.beds.ranks import Ranks, metrics, result, train

pytestmark = pytest.mark.train

SHORT = {"train.max_steps": 3, "train.checkpoint_every": 2, "eval.after": False}
NEEDS = all(importlib.util.find_spec(name) for name in ("gptqmodel", "optimum"))


@pytest.fixture(scope="module")
def bases(configure: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint, and the same in nf4, and packed by GPTQ and AWQ."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    run = configure("plain", **SHORT)
    train(run)
    place = tmp_path_factory.mktemp("published")
    made = {"plain": run / "base_model", **{kind: place / kind for kind in ("nf4", "gptq", "awq")}}
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="float32"
    )
    model = AutoModelForCausalLM.from_pretrained(made["plain"], dtype=torch.float32, quantization_config=settings)
    shutil.copytree(made["plain"], made["nf4"])
    (made["nf4"] / "model.safetensors").unlink()
    model.save_pretrained(made["nf4"])
    for kind in ("gptq", "awq"):
        packed(kind, made["plain"], made[kind])
    return made


def test_weights_in_nf4_train_as_those_that_become_nf4_at_loading(configure: Any, bases: dict[str, Path]) -> None:
    runs = {
        name: configure(name, model={"path": str(bases[base]), "quantization": "nf4"}, verify_adapter=True, **SHORT)
        for name, base in (("made", "plain"), ("found", "nf4"))
    }
    train(*runs.values())
    assert metrics(runs["found"]) == metrics(runs["made"])
    assert result(runs["found"])["adapter_reloads"] is True


@pytest.mark.skipif(not NEEDS, reason="gptqmodel and optimum are not installed")
@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_packed_weights_train_as_the_numbers_that_they_stand_for(
    configure: Any, bases: dict[str, Path], kind: str
) -> None:
    plain = bases[kind].with_name(f"{kind}-plain")
    runs = {
        "packed": configure("packed", model={"path": str(bases[kind]), "quantization": "published"}, **SHORT),
        "plain": configure("plain", model={"path": str(plain)}, **SHORT),
    }
    middle = str(runs["packed"] / "checkpoints/step-2")
    model = {"path": str(bases[kind]), "quantization": "published"}
    runs["again"] = configure("again", model=model, init_from=middle, **SHORT)
    train(*runs.values())
    assert metrics(runs["packed"]) == pytest.approx(metrics(runs["plain"]), rel=2e-2)
    assert metrics(runs["again"]) == metrics(runs["packed"])[2:]


@pytest.mark.parametrize(
    ("base", "quantization", "says"),
    [
        ("nf4", "none", "are in nf4 already"),
        ("nf4", "int8", "set model.quantization: nf4"),
        ("gptq", "nf4", "set model.quantization: published"),
        ("plain", "published", "are not quantized"),
    ],
)
def test_a_checkpoint_in_another_form_is_refused_with_the_setting_to_change(
    configure: Any, bases: dict[str, Path], base: str, quantization: str, says: str
) -> None:
    run = configure("refused", model={"path": str(bases[base]), "quantization": quantization}, **SHORT)
    ranks = Ranks(1, ["-m", "train", "--config", str(run / "train.json")])
    assert ranks.wait() == [2], ranks.output[0]
    assert says in ranks.output[0]


@pytest.mark.skipif(NEEDS, reason="gptqmodel and optimum are installed")
def test_a_package_that_is_missing_is_named(configure: Any, bases: dict[str, Path]) -> None:
    run = configure("lacks", model={"path": str(bases["awq"]), "quantization": "published"}, **SHORT)
    ranks = Ranks(1, ["-m", "train", "--config", str(run / "train.json")])
    assert ranks.wait() == [2], ranks.output[0]
    assert "needs a package that is not here" in ranks.output[0]


@pytest.mark.parametrize(
    ("settings", "form"),
    [
        (None, None), ({"quant_method": "mxfp4"}, None), ({"load_in_8bit": True}, "int8"),
        ({"quant_method": "bitsandbytes", "_load_in_4bit": True}, "fp4"), ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
    ],
)  # fmt: skip
def test_the_form_of_weights_is_read_from_the_configuration(settings: dict[str, Any] | None, form: str | None) -> None:
    from train.errors import UserError
    from train.model.load import check_form, form_of_weights

    found = json.loads(json.dumps({} if settings is None else {"quantization_config": settings}))
    assert form_of_weights(found) == form
    if form in ("fp4", "hqq"):
        with pytest.raises(UserError, match="beside which LoRA is not trained here"):
            check_form("published", found, "a/b")
