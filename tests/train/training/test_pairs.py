"""Settings that train/compat.py allows together train, on two CPU ranks, in as few runs as cover them.

`make long` covers every allowed pair of settings, the suite every allowed setting and every engine with ZeRO. Each run
gives the losses of the plain run (PEFT, no ZeRO, bucketed) with the same model and quantization.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.beds import forked
from tests.beds.campaigns import WHOLE
from tests.beds.models import MODELS
from tests.beds.ranks import metrics, result
from train import compat, families

pytestmark = [pytest.mark.train, pytest.mark.long]

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

    def covered(self) -> set[Any]:
        pairs = set(itertools.combinations(vars(self).items(), 2))
        return pairs if WHOLE else {*vars(self).items(), (self.engine, self.zero_stage > 0)}

    def __str__(self) -> str:
        return f"{self.kind}-{self.engine}-{self.quantization}-zero{self.zero_stage}-{self.packing}"


def covering() -> list[Combination]:
    """Allowed combinations that cover what any allowed one does: a greedy cover, most new first."""
    values = (KINDS, ("fused", "unsloth", "peft"), ("none", "nf4", "int8"), range(4), ("none", "bucket", "pack"))
    allowed = [one for one in itertools.starmap(Combination, itertools.product(*values)) if one.allowed()]
    missing, chosen = set().union(*(one.covered() for one in allowed)), []
    while missing:
        chosen.append(max(allowed, key=lambda one: len(one.covered() & missing)))
        missing -= chosen[-1].covered()
    return sorted(chosen, key=str)


CHOSEN = covering()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    place = tmp_path_factory.mktemp("models")

    def made(kind: str) -> Path:
        return place / kind if (place / kind).exists() else MODELS[kind][1](place / kind)

    return made


@pytest.fixture(scope="module")
def losses(models: Any, configure: Any) -> Callable[[Combination], list[float]]:
    """The losses of a combination's three steps; each combination runs once."""
    known: dict[Combination, list[float]] = {}

    def run(one: Combination) -> list[float]:
        if one not in known:
            place = configure(
                str(one), WORLD, model={"path": str(models(one.kind)), "quantization": one.quantization},
                **{"train.engine": one.engine, "train.zero_stage": one.zero_stage, "train.packing": one.packing},
                **{"train.max_steps": 3, "train.checkpoint_every": 0, "data.eval": None},
            )  # fmt: skip
            server = forked.shared(*(["unsloth"] if one.engine == "unsloth" else []))
            server.start(place, WORLD)
            assert server.wait() == [0] * WORLD, (place / "ranks.log").read_text()
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
