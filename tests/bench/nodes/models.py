"""Write random models: python -m tests.bench.nodes.models PLACE SHAPE..."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.bench.gpu.models import checkpoint
from train.memory import SHAPES, Shape

TINY = Shape(layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2, head_dim=16, vocab=300)
"""The shape `tiny`, for a CPU."""


def main(place: str, *shapes: str) -> None:
    SHAPES["tiny"] = TINY
    for shape in shapes:
        checkpoint(shape, Path(place))


if __name__ == "__main__":
    main(*sys.argv[1:])
