"""A rank of test_load_shares.py: load models under ZeRO-3, as transformers does and by each rank's share.

usage: python -m tests.beds.loading_ranks PLACE      prints "equal" at the end
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

from train import dist
from train.fused.sharded import gathered
from train.model.load_shares import each_rank_reads_its_share

ZERO3 = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1, "train_batch_size": 3}
SHAPE = {
    "vocab_size": 97, "hidden_size": 40, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def made(place: Path, rank: int) -> dict[str, Any]:
    """Whole models by directory; rank 0 writes them."""
    found = {}
    for kind, tied, dtype in (("llama", False, torch.float32), ("qwen2", True, torch.float32),
                              ("glm", False, torch.bfloat16)):  # fmt: skip
        torch.manual_seed(3)
        more = {"pad_token_id": 0} if kind == "glm" else {}
        config = AutoConfig.for_model(kind, tie_word_embeddings=tied, **SHAPE, **more)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        found[str(place / kind)] = model
        if rank == 0:
            model.save_pretrained(place / kind)
    headless = place / "headless"  # a checkpoint of the layers alone: names without a prefix, and the head is missing
    if rank == 0:
        found[str(place / "llama")].model.save_pretrained(headless)
    return found


def loaded(directory: str, *, by_share: bool) -> tuple[Any, set[str], int]:
    """(model, missing keys, broadcasts)"""
    sent = 0
    theirs = torch.distributed.broadcast

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal sent
        sent += 1
        return theirs(*args, **kwargs)

    torch.distributed.broadcast = counted
    try:
        with each_rank_reads_its_share() if by_share else nullcontext():
            model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    finally:
        torch.distributed.broadcast = theirs
    return model, set(info["missing_keys"]), sent


def main(place: Path) -> None:
    world = dist.from_environment("cpu")
    dist.start(world, deepspeed=True)
    whole = made(place, world.rank)
    dist.wait(world)
    keep = HfDeepSpeedConfig(ZERO3)
    for directory, model in whole.items():
        _, missing, sent = loaded(directory, by_share=False)
        found, found_missing, found_sent = loaded(directory, by_share=True)
        assert found_missing == missing == set()
        assert (sent > 0, found_sent) == (True, 0), f"weights went over the network: {sent}, {found_sent}"
        for (name, parameter), other in zip(found.named_parameters(), model.parameters(), strict=True):
            with gathered([parameter]):
                assert torch.equal(parameter.data, other.data.float()), name
    assert loaded(str(place / "headless"), by_share=True)[1] == {"lm_head.weight"}
    config = AutoConfig.for_model("llama", tie_word_embeddings=False, **{**SHAPE, "intermediate_size": 32})
    with pytest.raises(RuntimeError, match="size mismatch"), each_rank_reads_its_share():
        AutoModelForCausalLM.from_pretrained(place / "llama", config=config)
    del keep
    dist.stop()
    print("equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    dist.leave(0)
