"""Gradients, optimizer steps and their state behind one small interface, with and without DeepSpeed.

ReplicatedStrategy  every rank holds the whole adapter; one message per step sums the gradients. For ZeRO stage 0, and
                    for stage 3 of the fused layers, which share the frozen weights themselves (train/fused/sharded.py)
DeepSpeedStrategy   ZeRO stages 1 to 3, from ds_config.json (train/training/deepspeed.py)

Losses are sums over tokens. Their scale already holds the number of labeled tokens of the whole global batch, so
gradients are summed over ranks and micro batches, never averaged.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from train import dist
from train.config import TrainConfig
from train.dist import World
from train.errors import UserError
from train.memory import shares_itself
from train.training.deepspeed import DeepSpeedStrategy
from train.training.loss import AnswerLoss, autocast_for, inference
from train.training.optimizer import (
    Scaling,
    State,
    check_rates,
    make_optimizer,
    scaling_state,
    set_learning_rate,
    set_state,
    state_of,
    trainable,
)
from train.training.router import RouterLoss


class Inference(Protocol):
    """What an evaluation needs."""

    @property
    def loss(self) -> Any:
        """The module that returns the loss of a micro batch."""
        ...

    def evaluation(self) -> AbstractContextManager[None]:
        """A context for forward passes without gradients, in the right precision."""
        ...


class Strategy(Inference, Protocol):
    """What the training loop and checkpoints need."""

    skips: bool
    """Whether a step with a gradient that is not finite leaves the weights as they were, instead of ruining them."""

    def backward(self, inputs: dict[str, torch.Tensor], scale: float, *, last: bool) -> torch.Tensor:
        """Forward and backward pass of one micro batch; `last` of its step?

        Returns the loss: a sum over tokens, unscaled, detached.
        """
        ...

    def step(self, rate: float) -> torch.Tensor | float:
        """Make one optimizer step with learning rate `rate`; returns the norm of the gradient before clipping.

        The norm may be a tensor on the GPU, because reading it waits for the GPU: the loop has other work to do first.
        """
        ...

    def gather(self) -> State:
        """The whole state on the CPU (a collective; only rank 0's return value is whole)."""
        ...

    def restore(self, state: State, step: int) -> None:
        """Set the state of after `step` optimizer steps; every rank gets the same one."""
        ...


def build(
    config: TrainConfig, world: World, model: nn.Module, dtype: torch.dtype, ds_config: dict[str, Any] | None, name: str
) -> Strategy:
    """The strategy for a model of the engine `name`, in training mode; every rank starts from rank 0's adapter."""
    loss = _loss(config, world, model, name)
    check_rates(config, model)
    strategy: Strategy
    if ds_config is None or shares_itself(name, config.train.zero_stage):
        strategy = ReplicatedStrategy(config, world, loss, dtype)
    else:
        strategy = DeepSpeedStrategy(config, world, loss, dtype, ds_config)
    # from_pretrained leaves a model in evaluation mode, where dropout and gradient checkpointing do nothing
    strategy.loss.train()
    return strategy


def _loss(config: TrainConfig, world: World, model: nn.Module, name: str) -> nn.Module:
    if name != "fused":
        if config.model.quantization == "fp8":
            raise UserError(
                f"only the fused layers multiply in fp8, not {name}", "set model.quantization: none", code="ZL-TRAIN-06"
            )
        return AnswerLoss(
            model,
            fused=name == "unsloth" and config.device == "cuda",
            smoothing=config.train.label_smoothing,
            noise=config.train.neftune_alpha,
            router=RouterLoss(model.get_base_model(), config.train.router_loss) if config.train.router_loss else None,
            takes_layout=name == "peft" and config.train.packing == "pack" and _attends_by_lengths(config, model),
        )
    from train.fused.model import fuse

    stage, checkpointing = config.train.zero_stage, config.train.gradient_checkpointing
    try:
        sharing = world if shares_itself(name, stage) and world.many else None
        fp8, inside = config.model.quantization == "fp8", config.train.zero_group == "host"
        return fuse(model, checkpointing=checkpointing, world=sharing, inside_hosts=inside, fp8=fp8)
    except ValueError as error:
        advice = "set train.engine: unsloth or peft"
        raise UserError(f"the fused layers do not support this model: {error}", advice, code="ZL-TRAIN-06") from error


def _attends_by_lengths(config: TrainConfig, model: Any) -> bool:
    """Let transformers' layers attend within the records of packed rows without masks, if they can."""
    from train.fused import plain

    base = model.get_base_model()
    if plain.unfit_reason(base, config.data.max_length):
        return False
    plain.use(base)
    return True


class ReplicatedStrategy:
    """Every rank holds the whole adapter and its optimizer state."""

    def __init__(self, config: TrainConfig, world: World, loss: Any, dtype: torch.dtype) -> None:
        self.loss = loss
        self.world = world
        self.max_norm = config.train.max_grad_norm
        self.named = list(trainable(loss.model))
        for _, parameter in self.named:
            dist.share_tensor(world, parameter.data)
        self.optimizer = make_optimizer(config, loss.model)
        self.autocast = autocast_for(world, dtype)
        self.skips = dtype == torch.float16
        self.scaler = torch.amp.GradScaler(world.device.partition(":")[0], enabled=self.skips)

    def backward(self, inputs: dict[str, torch.Tensor], scale: float, *, last: bool) -> torch.Tensor:
        with self.autocast():
            loss = self.loss(**inputs)
        self.scaler.scale(loss * scale).backward()
        return loss.detach()

    def step(self, rate: float) -> torch.Tensor:
        for _, parameter in self.named:
            if parameter.grad is None:  # no record of this rank reached it, but the sum over ranks needs it
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for _, parameter in self.named if parameter.grad is not None]
        dist.sum_tensors(self.world, gradients)
        self.scaler.unscale_(self.optimizer)
        limit = self.max_norm if self.max_norm > 0 else float("inf")
        norm = nn.utils.clip_grad_norm_([parameter for _, parameter in self.named], limit)
        set_learning_rate(self.optimizer, rate)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def gather(self) -> State:
        state: State = {}
        for name, parameter in self.named:
            state[f"param/{name}"] = parameter.detach().float().cpu()
            state |= state_of(self.optimizer, name, parameter)
        return state | self._scaling()

    def _scaling(self) -> State:
        """The state of loss scaling; empty where losses are not scaled."""
        if not self.scaler.is_enabled():
            return {}
        known = self.scaler.state_dict()
        updates = [float(values["step"]) for values in self.optimizer.state.values()]
        return scaling_state(known["scale"], known["_growth_tracker"], max(updates, default=0.0))

    def restore(self, state: State, step: int) -> None:
        scaling = Scaling.of(state, step)
        if scaling.known and self.scaler.is_enabled():
            told = {"scale": scaling.scale, "_growth_tracker": scaling.good_steps}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **told})
        for name, parameter in self.named:
            parameter.data.copy_(state[f"param/{name}"])
            set_state(self.optimizer, name, parameter, state, scaling.updates)

    def evaluation(self) -> AbstractContextManager[None]:
        return inference(self.autocast)
