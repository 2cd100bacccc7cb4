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


def answer(model: Any) -> list[int]:
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        return model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0].tolist()


def main() -> None:
    world = dist.from_environment("cpu")
    world = replace(world, node_rank=world.rank // 2)  # of three ranks, two are on one host and one on another
    dist.start(world, deepspeed=False)
    for name, inside_hosts in (("llama", False), ("qwen2", False), ("llama", True)):  # qwen2 has biases
        own, shared = build(name, layers=5), build(name, layers=5)
        whole, parts = fuse(own), fuse(shared, world=world, inside_hosts=inside_hosts)
        for checkpointing in (False, True):
            whole.checkpointing = parts.checkpointing = checkpointing
            for _ in range(2):  # the second pass starts with what the first one left in the buffers
                loss, gradients = loss_and_gradients(whole, own)
                other, others = loss_and_gradients(parts, shared)
                assert abs(loss - other) < 1e-9 * abs(loss), (loss, other)
                assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(gradients, others, strict=True))
                assert answer(own) == answer(shared)
        kept = sum(p.numel() for n, p in shared.named_parameters() if n.endswith("_proj.base_layer.weight"))
        assert kept == 0, "a layer's weights are still whole"
        layer = sum(linear.buffer.numel() for linear in whole.layers[0].linears)
        sharers = (2, 2, 1)[world.rank] if inside_hosts else world.world_size
        assert parts.layers[0].shards.shards[0].numel() == -(-layer // sharers)
    dist.stop()
    print("equal")


if __name__ == "__main__":
    main()
    dist.leave(0)
