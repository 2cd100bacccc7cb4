"""Weights are copied to the device while libraries are imported, and from_pretrained takes them from there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.train
torch = pytest.importorskip("torch")

from safetensors import SafetensorError  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, modeling_utils  # noqa: E402

from train.config import Data, Lora, Model, TrainConfig, Training  # noqa: E402
from train.dist import World  # noqa: E402
from train.errors import UserError  # noqa: E402
from train.model.base import BaseModel  # noqa: E402
from train.model.load import load_plain  # noqa: E402
from train.model.read_ahead import EarlyWeights, begin_copying, handed_to_transformers  # noqa: E402

GPU = World(0, 0, 1, 1, 0, "cuda:0", "nccl")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in several files, with tied embeddings."""
    place = tmp_path_factory.mktemp("saved")
    shape = AutoConfig.for_model(
        "llama", vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(shape).save_pretrained(place, max_shard_size="100KB")
    assert len(list(place.glob("*.safetensors"))) > 1
    return place


def config(model: Model, **training: Any) -> TrainConfig:
    numbers = Training(global_batch_size=1, micro_batch_size=1, gradient_accumulation_steps=1, **training)
    return TrainConfig(run_id="early", device="cpu", model=model, data=Data(), lora=Lora(), train=numbers)


def load(place: Path, early: EarlyWeights | None) -> Any:
    with handed_to_transformers(early):
        return load_plain(config(Model()), place, torch.float32, device="cpu")


def equal(model: Any, other: Any) -> bool:
    found, wanted = model.state_dict(), other.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_model_is_the_same_and_reads_nothing_twice(saved: Path, tmp_path: Path) -> None:
    whole = load(saved, None)
    copied = tmp_path / "copied"
    shutil.copytree(saved, copied)
    early = EarlyWeights(copied, "cpu", "F32")
    tensors = {name: future.result() for (_, name), future in waited(early).items()}
    model = load(copied, early)
    assert equal(model, whole)
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == tensors[name].data_ptr(), name
    assert not early.found


def waited(early: EarlyWeights) -> dict[Any, Any]:
    early._listed.wait()
    return dict(early.found)


def test_what_cannot_be_copied_is_loaded_as_ever(saved: Path) -> None:
    """No such device, as on a GPU without memory for it; tensors of another type; a directory without files."""
    whole = load(saved, None)
    assert equal(load(saved, EarlyWeights(saved, "cuda:99", "F32")), whole)
    other = EarlyWeights(saved, "cpu", "BF16")
    assert not waited(other)
    assert equal(load(saved, other), whole)
    assert equal(load(saved, EarlyWeights(saved / "none", "cpu", "F32")), whole)


@pytest.mark.parametrize("damage", ["half", "empty"])
def test_damaged_files_are_reported_as_ever(saved: Path, tmp_path: Path, damage: str) -> None:
    place = tmp_path / "damaged"
    shutil.copytree(saved, place)
    file = sorted(place.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 if damage == "half" else 0])
    said = []
    for early in (None, EarlyWeights(place, "cpu", "F32")):
        with pytest.raises((OSError, ValueError, RuntimeError, SafetensorError)) as raised:
            load(place, early)
        said.append((type(raised.value), str(raised.value)))
    assert said[0] == said[1]


def test_transformers_reads_files_itself_again_afterwards(saved: Path) -> None:
    before = modeling_utils.safe_open, modeling_utils.caching_allocator_warmup
    load(saved, EarlyWeights(saved, "cpu", "F32"))
    with pytest.raises(UserError, match="stop"), handed_to_transformers(EarlyWeights(saved, "cpu", "F32")):
        raise UserError("stop")
    assert (modeling_utils.safe_open, modeling_utils.caching_allocator_warmup) == before


def test_only_a_rank_that_holds_the_weights_as_they_are_copies_them(saved: Path, tmp_path: Path) -> None:
    def begun(world: World = GPU, engine: str = "fused", place: Path = saved, **settings: Any) -> bool:
        model = Model(dtype="float32", quantization=settings.pop("quantization", "none"))
        found = begin_copying(config(model, **settings), world, engine, place)
        if found is not None:
            found.close()
        return found is not None

    two = World(0, 0, 2, 2, 0, "cuda:0", "nccl")
    assert begun()
    assert begun(quantization="fp8")
    assert begun(two, zero_stage=2)
    assert begun(zero_stage=3)
    assert not begun(two, zero_stage=3)
    assert not begun(quantization="nf4")
    assert not begun(engine="peft")
    assert not begun(World(0, 0, 1, 1, 0, "cpu", "gloo"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chatglm"}))
    assert not begun(place=BaseModel(tmp_path, "original").directory)
