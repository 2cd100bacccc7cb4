"""A rank of test_sharded.py: compare fused layers with shared weights to fused layers with whole ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tests.train.fused.test_model import build, packed
from train import dist
from train.fused.model import fuse


def loss_and_gradients(fused: Any, model: Any) -> tuple[float, list[torch.Tensor]]:
    loss = fused(**packed((9, 1, 20)))
    loss.backward()
    found = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    for parameter in model.parameters():
        parameter.grad = None
    return float(loss), found


def alike(a: torch.Tensor, b: torch.Tensor, *, fp8: bool) -> bool:
    """Whole weights in fp8 are quantized twice, once for each direction; shared ones once, for both."""
    return float((a - b).norm() / a.norm()) < 0.1 if fp8 else torch.allclose(a, b, rtol=1e-9)


def answer(model: Any) -> list[int]:
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        return model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0].tolist()


def main() -> None:
    world = dist.from_environment("cpu")
    world = replace(world, node_rank=world.rank // 2)  # of three ranks, two are on one host and one on another
    dist.start(world, deepspeed=False)
    # qwen2 has biases
    for name, inside_hosts, fp8 in (("llama", False, False), ("qwen2", False, False), ("llama", True, False),
                                    ("qwen2", False, True), ("llama", True, True)):  # fmt: skip
        own, shared = build(name, layers=5), build(name, layers=5)
        whole, parts = fuse(own, fp8=fp8), fuse(shared, world=world, inside_hosts=inside_hosts, fp8=fp8)
        for checkpointing in (False, True):
            whole.checkpointing = parts.checkpointing = checkpointing
            for _ in range(2):  # the second pass starts with what the first one left in the buffers
                loss, gradients = loss_and_gradients(whole, own)
                other, others = loss_and_gradients(parts, shared)
                assert abs(loss - other) < 1e-9 * abs(loss), (loss, other)
                assert all(alike(*each, fp8=fp8) for each in zip(gradients, others, strict=True))
                assert answer(own) == answer(shared)
        kept = sum(p.numel() for n, p in shared.named_parameters() if n.endswith("_proj.base_layer.weight"))
        assert kept == 0, "a layer's weights are still whole"
        weights = [linear.weight[0] if fp8 else linear.buffer for linear in whole.layers[0].linears]
        sharers = (2, 2, 1)[world.rank] if inside_hosts else world.world_size
        shard = parts.layers[0].shards.shards[0]
        assert shard.numel() == -(-sum(weight.numel() for weight in weights) // sharers)
        assert shard.element_size() == (1 if fp8 else 8)
    dist.stop()
    print("equal")


if __name__ == "__main__":
    main()
    dist.leave(0)
