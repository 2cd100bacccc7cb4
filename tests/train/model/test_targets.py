"""Names of modules in a job must exist and support LoRA, whichever engine trains."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.beds.ranks import tools
from train.model.targets import check_names

pytestmark = pytest.mark.train

NAMES = (
    (
        {"lora.target_modules": ["nosuch"]},
        "error[ZL-MODEL-06]: lora.target_modules: this model has no module 'nosuch'\n  -> it has ",
    ),
    ({"lora.target_modules": ["q_proj", "k_porj"]}, "no module 'k_porj'\n  -> it has k_proj, "),
    ({"lora.modules_to_save": ["nosuch"]}, "[ZL-MODEL-06]: lora.modules_to_save: this model has no module 'nosuch'"),
    ({"lora.modules_to_save": ["lm_haed"]}, "no module 'lm_haed'\n  -> it has lm_head, "),
    ({"lora.modules_to_save": ["proj"]}, "no module 'proj'"),  # PEFT would accept all names with this ending
    ({"lora.target_modules": "*["}, "'*[' is not a regular expression: nothing to repeat"),
    ({"lora.target_modules": "q_proj"}, "'q_proj' matches the full name of no module\n  -> a full name is "),
    ({"lora.target_modules": ""}, "'' matches the full name of no module"),
    ({"lora.target_modules": []}, "lora.target_modules: No `target_modules` passed"),
    ({"lora.target_modules": ["input_layernorm"]}, "LoRA does not support modules of type LlamaRMSNorm"),
    ({"lora.target_modules": ["self_attn"]}, "LoRA does not support modules of type LlamaAttention"),
    ({"lora.modules_to_save": ["layers"]}, "lora.target_modules: No modules were targeted"),  # all are in `layers`
)
PEFT = (
    *NAMES,
    (
        {"lora.target_modules": ["lm_head"], "lora.modules_to_save": ["layers"]},
        "lora.modules_to_save: modules_to_save cannot be applied to modules of type",
    ),
)
FUSED = (({"lora.target_modules": ["q_proj", "gate_up_proj"]}, "no module 'gate_up_proj'\n  -> it has gate_proj, "),)


@pytest.mark.parametrize(("engine", "cases"), [("unsloth", NAMES), ("peft", PEFT), ("fused", FUSED)])
def test_wrong_names_of_modules_are_a_users_mistake(
    configure: Any, tmp_path: Path, engine: str, cases: tuple[tuple[dict[str, Any], str], ...]
) -> None:
    if engine == "unsloth" and find_spec("unsloth") is None:
        pytest.skip("Unsloth is not installed here")
    runs = [configure("mistake", **over, **{"train.engine": engine}) for over, _ in cases]
    commands = [("train.__main__", ["--config", str(run / "train.json")]) for run in runs]
    results = tools(tmp_path, *commands, first=("unsloth",) if engine == "unsloth" else ())
    for (over, message), (status, output) in zip(cases, results, strict=True):
        assert status == 2, (over, output)
        assert message in output
        assert "Traceback" not in output


def test_all_forms_that_peft_accepts_are_accepted() -> None:
    from torch import nn

    from train.config import Lora

    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(2, 2)})]), "norm": nn.LayerNorm(2)})
    for targets in ("auto", "all-linear", r"layers\.\d+\.q", ("q",), ("layers.0.q",), ("0.q",)):
        check_names(Lora(target_modules=targets, modules_to_save=("norm",)), model)


def test_names_of_expert_parameters_are_accepted_for_unsloth_only() -> None:
    from torch import nn

    from train.config import Lora
    from train.errors import UserError

    model = nn.ModuleDict({"mlp": nn.ModuleDict({"gate": nn.Linear(2, 2), "experts": nn.ParameterList()})})
    check_names(Lora(target_modules=("gate", "down_proj")), model, "unsloth")
    with pytest.raises(UserError, match="no module 'down_proj'"):
        check_names(Lora(target_modules=("gate", "down_proj")), model, "peft")


def test_an_engine_error_about_something_else_is_not_explained_as_a_name() -> None:
    from train.model.targets import explain

    assert explain(ValueError("shapes do not match")) is None
    error = explain(TypeError("Unsloth: Module = q_proj is not allowed. Only 'lm_head' and ... are allowed."))
    assert error is not None
    assert str(error).startswith("lora.modules_to_save: Unsloth: Module = q_proj is not allowed")
    assert error.advice == ("set train.engine: peft",)
