"""An unusable model, adapter or evaluation file is a user's mistake: the error names it, without a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.beds.ranks import tools

pytestmark = pytest.mark.train

Spoil = Callable[[Path], Any]


def config(**over: Any) -> Spoil:
    def spoil(place: Path) -> None:
        file = place / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **over}))

    return spoil


MODELS: tuple[tuple[Spoil, str], ...] = (
    (config(model_type="nosuch"), "cannot be loaded: The checkpoint you are trying to load has model type `nosuch`"),
    (config(model_type="t5"), "cannot be loaded: Unrecognized configuration class"),
    (config(hidden_size=32), "cannot be loaded: the sizes of its weights differ from its config.json"),
    (config(model_type="own", auto_map={"AutoConfig": "c.C"}), "  -> set model.trust_remote_code: true"),
    (lambda place: (place / "model.safetensors").unlink(), "cannot be loaded: Error no file named model.safetensors"),
    (lambda place: (place / "model.safetensors").write_bytes(b"x" * 99), "cannot be loaded: Error while deserializing"),
    (lambda place: (place / "tokenizer.json").write_text("{"), "cannot be loaded: Expecting property name"),
)
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
ADAPTERS: tuple[tuple[dict[str, str], str], ...] = (
    ({}, "has no adapter_config.json\n  -> name the adapter/ of a finished run"),
    ({"adapter_config.json": json.dumps(LORA)}, "has no adapter_model.safetensors"),
    ({"adapter_config.json": "[]", "adapter_model.safetensors": ""}, "is not of a LoRA adapter (peft_type: None)"),
    (
        {"adapter_config.json": json.dumps({**LORA, "peft_type": "IA3"}), "adapter_model.safetensors": ""},
        "is not of a LoRA adapter (peft_type: IA3)",
    ),
    (
        {"adapter_config.json": json.dumps(LORA), "adapter_model.safetensors": "x" * 99},
        "does not fit this base model: Error while deserializing",
    ),
)


def refused(place: Path, runs: list[Path], messages: list[str]) -> None:
    results = tools(place, *(("train.__main__", ["--config", str(run / "train.json")]) for run in runs))
    for (status, output), words in zip(results, messages, strict=True):
        assert status == 2, output
        assert words in output
        assert "Traceback" not in output


@pytest.mark.parametrize("engine", ["unsloth", "peft"])
def test_an_unusable_model_is_named(configure: Any, tmp_path: Path, engine: str) -> None:
    if engine == "unsloth" and find_spec("unsloth") is None:
        pytest.skip("Unsloth is not installed here")
    from train.model.random import make_random

    make_random(tmp_path / "base", ["天气好吗", "好"], seed=1)
    runs = []
    for number, (spoil, _) in enumerate(MODELS):
        place = tmp_path / f"model-{number}"
        shutil.copytree(tmp_path / "base", place)
        spoil(place)
        runs.append(configure("spoilt", model={"path": str(place)}, **{"train.engine": engine}))
    refused(tmp_path, runs, [message for _, message in MODELS])


def test_an_unusable_adapter_or_evaluation_file_is_named(configure: Any, tmp_path: Path) -> None:
    runs = []
    for number, (files, _) in enumerate(ADAPTERS):
        place = tmp_path / f"adapter-{number}"
        place.mkdir()
        for name, text in files.items():
            (place / name).write_text(text)
        runs.append(configure("spoilt", **{"lora.adapter": str(place)}))
    (tmp_path / "empty.jsonl").touch()
    runs.append(configure("nothing", **{"data.eval": str(tmp_path / "empty.jsonl")}))
    refused(
        tmp_path,
        runs,
        [*(messages for _, messages in ADAPTERS), "error[ZL-DATA-03]: data.eval holds no record that can be evaluated"],
    )
