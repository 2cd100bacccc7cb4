"""A directory counts as a model if transformers would load it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from train.errors import UserError
from train.model.base import _check_complete


def index(place: Path, name: str, *shards: str) -> None:
    (place / name).write_text(json.dumps({"weight_map": {f"t{i}": shard for i, shard in enumerate(shards)}}))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    index(tmp_path, "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin")
    return tmp_path


@pytest.mark.parametrize("names", [("model.safetensors",), ("model-1.safetensors", "model-2.safetensors")])
def test_an_index_beside_other_complete_weights_is_ignored(model: Path, names: tuple[str, ...]) -> None:
    if len(names) > 1:
        index(model, "model.safetensors.index.json", *names)
    for name in names:
        (model / name).touch()
    _check_complete(model)


def test_a_missing_shard_is_named(model: Path) -> None:
    with pytest.raises(UserError, match=r"lacks pytorch_model-00001-of-00001.bin, which pytorch_model.bin.index.json"):
        _check_complete(model)


def test_an_unreadable_index_is_a_users_mistake(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="not a readable index"):
        _check_complete(model)


@pytest.mark.parametrize("text", ["{", "[]", "version https://git-lfs.github.com/spec/v1"])
def test_an_unreadable_config_is_a_users_mistake(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    with pytest.raises(UserError, match="is not a JSON object"):
        _check_complete(model)


def test_an_adapter_in_place_of_a_model_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter, not a model") as refused:
        _check_complete(tmp_path)
    assert "lora.adapter" in refused.value.advice[0]
