"""When the ranks form their group: before or after the model is loaded."""

from __future__ import annotations

import pytest

from train.dist import from_environment, starts_early


@pytest.mark.parametrize(
    ("kind", "engine", "zero_stage", "early"),
    [
        ("cpu", "unsloth", 0, True),  # gloo is there without a device
        ("cuda", "peft", 3, True),  # zero.Init shares parameters over the group while they are loaded
        ("cuda", "fused", 3, True),
        ("cuda", "unsloth", 3, False),  # loads whole, and before there is a group
        ("cuda", "fused", 2, False),
        ("cuda", "peft", 0, False),
    ],
)
def test_the_group_is_there_before_the_model_where_the_model_is_loaded_in_parts(
    kind: str, engine: str, zero_stage: int, early: bool
) -> None:
    world = from_environment(kind, {"WORLD_SIZE": "2", "RANK": "0"})
    assert starts_early(world, engine=engine, zero_stage=zero_stage) is early
