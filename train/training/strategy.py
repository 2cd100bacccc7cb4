"""Gradients, the optimizer's step and its state, with and without DeepSpeed, behind one small interface.

PlainEngine       every rank holds the whole adapter; gradients are summed in one message a step. ZeRO stage 0, and
                  stage 3 of the fused layers, which share the frozen weights themselves (train/fused/sharded.py)
DeepSpeedEngine   ZeRO stages 1 to 3 from ds_config.json; the optimizer is torch's AdamW, so nothing is compiled

Both take losses that are sums over tokens, multiplied by a scale that already holds the number of tokens of the whole
global batch; so gradients are summed over ranks and micro batches, never averaged.

The state of a run is {"param/<name>", "exp_avg/<name>", "exp_avg_sq/<name>": float32 tensor} with the names of the PEFT
model's trainable parameters: no trace of the number of ranks or of the ZeRO stage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from train import dist
from train.config import TrainConfig
from train.dist import World
from train.errors import UserError
from train.memory import shares_itself
from train.training.deepspeed import DeepSpeedEngine
from train.training.loss import AnswerLoss
from train.training.optimizer import (
    MOMENTS,
    Engine,
    State,
    adam_step,
    autocast_of,
    no_grad,
    optimizer_of,
    set_rate,
    trainable,
)


def build(
    config: TrainConfig, world: World, model: nn.Module, dtype: torch.dtype, ds_config: dict[str, Any] | None, name: str
) -> Engine:
    """The engine of this run; every rank starts from rank 0's adapter."""
    loss = _loss(config, world, model, name)
    if ds_config is None or shares_itself(name, config.train.zero_stage):
        return PlainEngine(config, world, loss, dtype)
    return DeepSpeedEngine(config, world, loss, dtype, ds_config)


def _loss(config: TrainConfig, world: World, model: nn.Module, name: str) -> nn.Module:
    if name != "fused":
        return AnswerLoss(model, fused=name == "unsloth" and config.device == "cuda")
    from train.fused.model import fuse

    stage, checkpointing = config.train.zero_stage, config.train.gradient_checkpointing
    try:
        # under ZeRO-1 and 2 DeepSpeed sends every parameter to the other ranks, and NCCL takes no strided ones
        sharing = world if shares_itself(name, stage) and world.many else None
        return fuse(model, checkpointing=checkpointing, wide=stage in (0, 3) and sharing is None, world=sharing)
    except ValueError as error:
        advice = "set train.engine: unsloth or peft"
        raise UserError(f"the fused layers do not fit this model: {error}", advice) from error


class PlainEngine:
    def __init__(self, config: TrainConfig, world: World, loss: Any, dtype: torch.dtype) -> None:
        self.loss = loss
        self.world = world
        self.max_norm = config.train.max_grad_norm
        self.named = list(trainable(loss.model))
        for _, parameter in self.named:
            dist.share_tensor(world, parameter.data)
        self.optimizer = optimizer_of(config, loss.model)
        self.autocast = autocast_of(world, dtype)
        self.skips = dtype == torch.float16
        self.scaler = torch.amp.GradScaler(world.device.partition(":")[0], enabled=self.skips)

    def backward(self, inputs: dict[str, torch.Tensor], scale: float, *, last: bool) -> torch.Tensor:
        with self.autocast():
            loss = self.loss(**inputs)
        self.scaler.scale(loss * scale).backward()
        return loss.detach()

    def step(self, rate: float) -> torch.Tensor:
        for _, parameter in self.named:
            if parameter.grad is None:  # no record of this rank reached it; the sum over ranks needs it all the same
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for _, parameter in self.named if parameter.grad is not None]
        dist.sum_tensors(self.world, gradients)
        self.scaler.unscale_(self.optimizer)
        limit = self.max_norm if self.max_norm > 0 else float("inf")
        norm = nn.utils.clip_grad_norm_([parameter for _, parameter in self.named], limit)
        set_rate(self.optimizer, rate)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def gather(self) -> State:
        state: State = {}
        for name, parameter in self.named:
            state[f"param/{name}"] = parameter.detach().float().cpu()
            for moment in MOMENTS:
                value = self.optimizer.state.get(parameter, {}).get(moment, torch.zeros_like(parameter))
                state[f"{moment}/{name}"] = value.detach().float().cpu()
        return state

    def restore(self, state: State, step: int) -> None:
        for name, parameter in self.named:
            parameter.data.copy_(state[f"param/{name}"])
            values = {m: state[f"{m}/{name}"].to(parameter.device, copy=True) for m in MOMENTS}
            self.optimizer.state[parameter] = {"step": adam_step(self.optimizer, step, parameter), **values}

    def evaluation(self) -> Any:
        return no_grad(self.autocast)
