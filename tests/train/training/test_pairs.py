"""Every pair of settings that train/compat.py allows trains, on two CPU ranks, in as few runs as cover all pairs.

Each run gives the losses of the plain run (PEFT, no ZeRO, bucketed) with the same model and quantization.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.beds.forked import Forkserver
from tests.beds.models import MODELS
from tests.beds.ranks import metrics, result
from train import compat, families

pytestmark = pytest.mark.train

FAMILY = {family.name: family for family in families.FAMILIES}
KINDS = ("llama3", "qwen2", "glm4", "baichuan2-13b", "gpt-neox")
"""Rotary embeddings, the same with biases, GLM, ALiBi, and an unknown family."""
WORLD = 2


@dataclass(frozen=True)
class Combination:
    kind: str
    engine: str = "peft"
    quantization: str = "none"
    zero_stage: int = 0
    packing: str = "bucket"

    def allowed(self) -> bool:
        asked = {name: value for name, value in vars(self).items() if name != "kind"}
        return compat.check(compat.Combination(family=FAMILY[MODELS[self.kind][0]], device="cpu", **asked)) == []

    def pairs(self) -> set[Any]:
        return set(itertools.combinations(vars(self).items(), 2))

    def __str__(self) -> str:
        return f"{self.kind}-{self.engine}-{self.quantization}-zero{self.zero_stage}-{self.packing}"


def covering() -> list[Combination]:
    """Allowed combinations that cover every allowed pair: a greedy cover, most new pairs first."""
    values = (KINDS, ("fused", "unsloth", "peft"), ("none", "nf4", "int8"), range(4), ("none", "bucket", "pack"))
    allowed = [one for one in itertools.starmap(Combination, itertools.product(*values)) if one.allowed()]
    missing, chosen = set().union(*(one.pairs() for one in allowed)), []
    while missing:
        chosen.append(max(allowed, key=lambda one: len(one.pairs() & missing)))
        missing -= chosen[-1].pairs()
    return sorted(chosen, key=str)


CHOSEN = covering()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    place = tmp_path_factory.mktemp("models")

    def made(kind: str) -> Path:
        return place / kind if (place / kind).exists() else MODELS[kind][1](place / kind)

    return made


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Forkserver]]:
    """The process that forks the ranks of an engine. Unsloth has its own, because it patches transformers."""
    cache, running = str(tmp_path_factory.mktemp("cache")), dict[bool, Forkserver]()

    def server(engine: str) -> Forkserver:
        unsloth = engine == "unsloth"
        if unsloth not in running:
            running[unsloth] = Forkserver(*(["unsloth"] if unsloth else []), ZLAUNCH_CACHE=cache)
        return running[unsloth]

    yield server
    for one in running.values():
        one.__exit__(None, None, None)


@pytest.fixture(scope="module")
def losses(models: Any, servers: Any, configure: Any) -> Callable[[Combination], list[float]]:
    """The losses of a combination's three steps; each combination runs once."""
    known: dict[Combination, list[float]] = {}

    def run(one: Combination) -> list[float]:
        if one not in known:
            place = configure(
                str(one), WORLD, model={"path": str(models(one.kind)), "quantization": one.quantization},
                **{"train.engine": one.engine, "train.zero_stage": one.zero_stage, "train.packing": one.packing},
                **{"train.max_steps": 3, "train.checkpoint_every": 0, "data.eval": None},
            )  # fmt: skip
            servers(one.engine).start(place, WORLD)
            assert servers(one.engine).wait() == [0] * WORLD, (place / "ranks.log").read_text()
            assert result(place)["engine"] == one.engine
            assert result(place)["grad_norm_min"] > 0
            adapter = json.loads((place / "adapter" / "adapter_config.json").read_text())
            assert adapter["peft_type"] == "LORA"
            known[one] = metrics(place)
        return known[one]

    return run


@pytest.mark.parametrize("one", CHOSEN, ids=str)
def test_an_allowed_combination_gives_the_losses_of_the_plain_one(one: Combination, losses: Any) -> None:
    plain = losses(Combination(one.kind, quantization=one.quantization))
    assert losses(one) == pytest.approx(plain, rel=2e-2 if one.quantization == "int8" else 2e-3)
    assert plain[-1] < plain[0]
