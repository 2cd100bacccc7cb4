"""Small runs of the training program: configurations and records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.beds import forked

WORDS = ("好", "坏", "高兴", "难过", "天气", "电影", "快递", "朋友", "房间", "服务")


def write_records(path: Path, count: int, start: int = 0) -> Path:
    lines = []
    for i in range(start, start + count):
        text = "".join(WORDS[(i * 7 + j * 3) % 10] for j in range(2 + i % 5)) + str(i)
        lines.append(
            {"instruction": "判断情感", "input": text, "output": "正面" if i % 2 else "负面", "task": "sentiment"}
        )
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("records 数据")
    return {
        "train": str(write_records(place / "train.jsonl", 40)),
        "eval": str(write_records(place / "eval.jsonl", 6, start=100)),
    }


@pytest.fixture(scope="session")
def forkserver() -> forked.Forkserver:
    return forked.shared()


Configure = Callable[..., Path]


@pytest.fixture(scope="session")
def configure(tmp_path_factory: pytest.TempPathFactory, records: dict[str, str]) -> Configure:
    """configure(name, world_size, **{"train.zero_stage": 2, ...}) -> the run directory, train.json written."""

    def make(name: str, world_size: int = 1, run: Path | None = None, **over: Any) -> Path:
        place = run or tmp_path_factory.mktemp(name.replace(" ", "-")) / "a run's $(dir)"
        place.mkdir(exist_ok=True)
        config: dict[str, Any] = {
            "run_id": name,
            "run_dir": str(place),
            "device": "cpu",
            "world_size": world_size,
            "model": {"source": "random"},
            "data": {**records, "max_length": 128},
            "lora": {"r": 4, "alpha": 8},
            "train": {
                "max_steps": 6,
                "global_batch_size": 8,
                "micro_batch_size": 2,
                "gradient_accumulation_steps": 4 // world_size,
                "learning_rate": 1e-2,
                "checkpoint_every": 3,
                "engine": "peft",
            },
            "eval": {"max_new_tokens": 4, "samples": 2, "batch_size": 4},
        }
        for key, value in over.items():
            section = config
            *parents, last = key.split(".")
            for parent in parents:
                section = section[parent]
            section[last] = value
        (place / "train.json").write_text(json.dumps(config), encoding="utf-8")
        stage = config["train"].get("zero_stage", 0)
        if stage:
            zero = {
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                # the model is so small that DeepSpeed would leave all of it whole on every rank
                "zero_optimization": {
                    "stage": stage,
                    "overlap_comm": False,
                    "stage3_param_persistence_threshold": 0,
                },
                "steps_per_print": 1000000000,
            }
            (place / "ds_config.json").write_text(json.dumps(zero), encoding="utf-8")
        return place

    return make
