"""Whole runs on two CPU ranks with a DeepSpeed configuration of the user's own: ZeRO-2, ZeRO-3, offloading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from launcher.render import texts
from tests.beds.plans import make
from tests.beds.ranks import metrics, result, train

pytestmark = pytest.mark.train

FILES: dict[str, dict[str, Any]] = {
    "offload": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}, "round_robin_gradients": True},
    "weights": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "sub_group_size": 0,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
        "stage3_prefetch_bucket_size": "auto",
        "reduce_bucket_size": "auto",
    },
}


@pytest.fixture(scope="module")
def runs(configure: Any) -> dict[str, Path]:
    """{name: run of 6 steps}; `plain` has no ZeRO, the others resume after step 3 of each other's."""
    found = {"plain": configure("plain", 2, verify_adapter=True)}
    for name, zero in FILES.items():
        plan = make(tree={"train.ds_config": {"zero_optimization": zero, "train_batch_size": "auto"}})
        assert plan.train is not None
        settings = {
            f"train.{key}": getattr(plan.train.train, key) for key in ("zero_stage", "offload", "offload_param")
        }
        for run in (name, f"{name}-resumed"):
            found[run] = configure(run, 2, verify_adapter=True, **settings)
            (found[run] / "ds_config.json").write_text(texts.render(plan)["ds_config.json"], encoding="utf-8")
    first = [found["plain"], *(found[name] for name in FILES)]
    train(found["plain"], world_size=2)
    for name in FILES:
        shutil.copytree(found["plain"] / "base_model", found[name] / "base_model")
    train(*first[1:], world_size=2)
    for name, source in zip(FILES, reversed(FILES), strict=True):
        for part in ("base_model", "checkpoints"):
            shutil.copytree(found[source] / part, found[f"{name}-resumed"] / part)
        shutil.rmtree(found[f"{name}-resumed"] / "checkpoints" / "step-6")
    train(*(found[f"{name}-resumed"] for name in FILES), world_size=2)
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_users_configuration_trains_saves_and_resumes_as_without_zero(runs: dict[str, Path], name: str) -> None:
    assert metrics(runs[name]) == pytest.approx(metrics(runs["plain"]), rel=1e-4)
    assert metrics(runs[f"{name}-resumed"]) == pytest.approx(metrics(runs["plain"])[3:], rel=1e-4)
    for run in (runs[name], runs[f"{name}-resumed"]):
        assert result(run)["adapter_reloads"] is True
    written = json.loads((runs[name] / "ds_config.json").read_text())["zero_optimization"]
    assert written["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
