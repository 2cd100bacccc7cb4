"""What lora.target_modules means in a model with experts, routers or a part for images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.beds.architectures import ROWS, make
from train.config import Lora
from train.errors import UserError
from train.model.lora_places import places

pytestmark = pytest.mark.train

ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]
BOTH = ("experts.down_proj", "experts.gate_up_proj")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    place, made = tmp_path_factory.mktemp("places"), {}

    def load(name: str) -> Any:
        if name not in made:
            kind = AutoModelForCausalLM if ROWS[name].vision is None else AutoModelForImageTextToText
            made[name] = kind.from_pretrained(make(name, place / name))
        return made[name]

    return load


@pytest.mark.parametrize(
    ("name", "asked", "modules", "parameters"),
    [
        ("qwen3-moe", ATTENTION, ATTENTION, ()),
        ("qwen3-moe", [*ATTENTION, "gate_proj", "up_proj", "down_proj"], ATTENTION, BOTH),
        ("qwen3-moe", [*ATTENTION, "down_proj"], ATTENTION, BOTH[:1]),
        ("qwen3-moe", ["q_proj", "gate_up_proj"], ["q_proj"], BOTH[1:]),
        ("qwen3-moe", ["q_proj", "gate"], ["q_proj"], ()),
        ("qwen3-moe", ["down_proj", "gate_proj", "up_proj"], [], BOTH),
        ("qwen3-moe", r".*layers\.1\..*v_proj", ["model.layers.1.self_attn.v_proj"], ()),
        ("qwen3-moe", r".*(q_proj|gate)", ["q_proj"], ()),
        ("mixtral", ["q_proj", "w1", "w2", "w3"], ["q_proj"], BOTH),
        ("gpt-oss", ["q_proj", "router"], ["q_proj"], ()),
        ("llama4", ["q_proj", "router"], ["model.language_model"], ()),
        ("gemma3", ["q_proj"], ["model.language_model"], ()),
        ("glm4.5-air", ["q_proj", "down_proj"], ["q_proj"], BOTH[:1]),
        ("llama3", ["q_proj", "v_proj"], ["q_proj", "v_proj"], ()),
        ("llama3", r".*\.q_proj", r".*\.q_proj", ()),
    ],
)  # fmt: skip
def test_names_and_patterns_mean_layers_and_experts_and_never_routers(
    model: Any, name: str, asked: Any, modules: Any, parameters: tuple[str, ...]
) -> None:
    found = places(model(name), asked, "peft", Lora())
    if modules == ["model.language_model"]:  # of several parts with the same names, the text model is taken
        assert found.modules
        assert all("language_model" in one and one.endswith("q_proj") for one in found.modules) or name == "llama4"
        assert not any("vision" in one for one in found.modules)
    else:
        assert found.modules == modules
    assert found.parameters == parameters


@pytest.mark.parametrize("name", [name for name in ROWS if any("expert" in key for key in ROWS[name].shape)])
@pytest.mark.parametrize(
    "asked", ["all-linear", ".*", [*ATTENTION, "gate", "router", "wg", "gate_proj", "up_proj"]], ids=str
)
def test_peft_adapts_no_router_however_it_is_asked(model: Any, tmp_path: Path, name: str, asked: Any) -> None:
    import copy

    from peft import LoraConfig, get_peft_model

    found = places(model(name), asked, "peft", Lora())
    parameters = {"target_parameters": list(found.parameters)} if found.parameters else {}
    adapted = get_peft_model(copy.deepcopy(model(name)), LoraConfig(target_modules=found.modules, **parameters))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained
    assert not [
        one for one in trained if any(f".{router}." in one for router in ("gate", "router", "wg", "shared_expert_gate"))
    ]
    assert any("routers stay frozen" in sentence for sentence in found.left_out)


def test_half_of_a_fused_product_is_refused(model: Any) -> None:
    with pytest.raises(UserError, match="gate_proj without up_proj"):
        places(model("qwen3-moe"), ["q_proj", "gate_proj"], "peft", Lora())


def test_dropout_leaves_experts_out_or_is_refused_where_they_are_named(model: Any) -> None:
    found = places(model("qwen3-moe"), "all-linear", "peft", Lora(dropout=0.1))
    assert found.parameters == ()
    assert any("PEFT has no lora.dropout" in sentence for sentence in found.left_out)
    with pytest.raises(UserError, match=r"lora\.dropout"):
        places(model("qwen3-moe"), ["q_proj", "down_proj"], "peft", Lora(dropout=0.1))
