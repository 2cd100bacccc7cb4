"""model.rope_scaling: the embeddings are transformers' own, rows may be longer, and exports have it in config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.beds.architectures import make
from tests.beds.ranks import events, metrics, result, tools, train
from tests.train.conftest import write_records
from train import families
from train.config import Data, Model

pytestmark = pytest.mark.train
torch = pytest.importorskip("torch")

POSITIONS = 512
"""Of the tiny checkpoints."""
LLAMA = {"model_type": "llama", "max_position_embeddings": 4096, "rope_theta": 5e5}


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
@pytest.mark.parametrize("name", ["llama3", "phi4", "glm4", "qwen3-moe"])
def test_a_loaded_model_rotates_as_transformers_says_for_that_scaling(kind: str, name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from train.model.load import load_plain

    place = make(name, tmp_path / name)
    asked = _config(place, kind, 4.0)
    model = load_plain(asked, place, torch.float32, device="cpu")
    wanted = AutoConfig.from_pretrained(place)
    wanted.rope_parameters = {
        **wanted.rope_parameters, "rope_type": kind, "factor": 4.0, "original_max_position_embeddings": POSITIONS,
        **({"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}),
    }  # fmt: skip
    if name == "phi4":
        wanted.original_max_position_embeddings = POSITIONS
    expected, _ = ROPE_INIT_FUNCTIONS[kind](wanted, "cpu")
    assert torch.equal(model.model.rotary_emb.inv_freq, expected)
    plain = AutoModelForCausalLM.from_pretrained(place, config=wanted, dtype=torch.float32)
    ids = torch.randint(5, 690, (1, 40))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        assert torch.equal(logits, plain(input_ids=ids).logits)
        unscaled = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)(input_ids=ids).logits
    assert torch.equal(logits, unscaled) is (kind == "dynamic")  # which changes rows beyond the positions only
    assert families.max_positions(model.config.to_dict()) == 4 * POSITIONS


def _config(place: Path, kind: str, factor: float | str) -> Any:
    from train.config import Lora, TrainConfig, Training

    numbers = Training(global_batch_size=1, micro_batch_size=1, gradient_accumulation_steps=1)
    model = Model(path=str(place), rope_scaling=kind, rope_factor=factor)  # type: ignore[arg-type]
    data = Data(train="a.jsonl", max_length=2000)
    return TrainConfig(run_id="r", device="cpu", model=model, data=data, lora=Lora(), train=numbers)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_the_fused_layers_rotate_alike(kind: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from train.fused.model import fuse
    from train.model.load import load_plain
    from train.training.loss import AnswerLoss

    place = make("llama3", tmp_path / "model")
    model = load_plain(_config(place, kind, "auto"), place, torch.float32, device="cpu")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    ids, labels = torch.randint(5, 690, (1, 700)), torch.randint(5, 690, (1, 700))
    with torch.no_grad():
        wanted = AnswerLoss(adapted, fused=False).eval()(ids, labels)
        assert fuse(adapted)(ids, labels).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("config", "factor", "length", "found"),
    [
        (LLAMA, "auto", 16_384, 4.0),
        (LLAMA, "auto", 10_000, 3.0),
        (LLAMA, 8.0, 10_000, 8.0),
        (LLAMA, "auto", 4096, "are enough"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "auto", 10**6, "scaled already: llama3"),
        ({**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "auto", 8192, 2.0),
        ({"model_type": "llama"}, 4.0, 8192, "how many positions"),
        ({"model_type": "alibi_llama", "max_position_embeddings": 4096}, 4.0, 8192, "rotary"),
        ({**LLAMA, families.MARKER: "chatglm2"}, 4.0, 8192, "transformers' own layout"),
        ({**LLAMA, "rope_parameters": {"full_attention": {"rope_type": "default"}}}, 4.0, 8192, "several"),
        ({"model_type": "qwen2_5_vl", "text_config": {**LLAMA, "rope_scaling": {"mrope_section": [2]}}}, 4.0, 8192,
         "several"),
        ({"model_type": "mistral3", "text_config": LLAMA}, "auto", 16_384, 4.0),
    ],
    ids=str,
)  # fmt: skip
def test_the_factor_is_what_the_rows_need_and_what_cannot_be_scaled_is_refused(
    config: dict[str, Any], factor: float | str, length: int, found: float | str
) -> None:
    for kind in ("linear", "dynamic", "yarn", "llama3"):
        if isinstance(found, str):
            with pytest.raises(ValueError, match=found):
                families.with_rope(config, kind, factor, length)
            continue
        scaled = families.with_rope(config, kind, factor, length)
        text = scaled.get("text_config", scaled)
        assert text["rope_parameters"]["factor"] == found
        assert text["rope_parameters"]["rope_theta"] in (5e5, 1e4)
        assert families.max_positions(scaled) == found * 4096
        with pytest.raises(ValueError, match="scaled already"):
            families.with_rope(scaled, kind, 2.0, 10**6)
    assert families.with_rope(config, "none", "auto", length) is config


def test_rows_beyond_the_positions_train_resume_answer_and_are_exported_with_the_scaling(
    configure: Any, tmp_path: Path
) -> None:
    place = make("llama3", tmp_path / "model")
    settings = {
        "data.train": str(write_records(tmp_path / "train.jsonl", 4)),
        "data.max_length": 1400,
        "data.system": " ".join(map(str, range(300, 620))),  # a record of more tokens than the model has positions
        "train.max_steps": 3,
        "train.checkpoint_every": 2,
        "train.global_batch_size": 4,
        "train.gradient_accumulation_steps": 2,
    }
    model = {"path": str(place), "rope_scaling": "yarn"}
    run = configure("yarn", model=model, verify_adapter=True, **settings)
    middle = str(run / "checkpoints" / "step-2")
    again = configure("again", model=model, init_from=middle, **settings)
    refused = configure("refused", model={"path": str(place)}, **settings)
    train(run)
    train(again)
    train(refused, expect=1)
    found = result(run)
    assert found["tokens"] / 12 > POSITIONS
    assert found["loss_last"] < found["loss_first"]
    assert found["adapter_reloads"] is True
    assert metrics(again) == metrics(run)[2:]
    assert any('"factor": 3.0' in event["text"] for event in events(run, "warning"))
    assert "rope_parameters" in (run / "adapter" / "README.md").read_text()
    out = tmp_path / "merged"
    ((status, said),) = tools(tmp_path, ("train.export", ["--run-dir", str(run), "--to", "merged", "--out", str(out)]))
    assert status == 0, said
    written = json.loads((out / "config.json").read_text())
    assert written["rope_parameters"]["rope_type"] == "yarn"
    assert families.max_positions(written) == 3 * POSITIONS
