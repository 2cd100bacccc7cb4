"""Gradients, the optimizer's step and its state, with and without DeepSpeed, behind one small interface.

PlainEngine       every rank holds the whole adapter; gradients are summed in one message a step. ZeRO stage 0, and
                  stage 3 of the fused layers, which share the frozen weights themselves (train/sharded.py)
DeepSpeedEngine   ZeRO stages 1 to 3 from ds_config.json; the optimizer is torch's AdamW, so nothing is compiled

Both take losses that are sums over tokens, multiplied by a scale that already holds the number of tokens of the whole
global batch; so gradients are summed over ranks and micro batches, never averaged.

The state of a run is {"param/<name>", "exp_avg/<name>", "exp_avg_sq/<name>": float32 tensor} with the names of the PEFT
model's trainable parameters: no trace of the number of ranks or of the ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from train import dist
from train.config import TrainConfig
from train.dist import World
from train.errors import UserError
from train.loss import AnswerLoss
from train.memory import shares_itself

MOMENTS = ("exp_avg", "exp_avg_sq")
State = dict[str, torch.Tensor]


class Engine(Protocol):
    loss: nn.Module
    """The module that gives a micro batch's loss; called as it is for evaluation."""
    skips: bool
    """Whether a step whose gradient is no number leaves the weights as they were, and is not the end of them."""

    def backward(self, inputs: dict[str, torch.Tensor], scale: float, *, last: bool) -> torch.Tensor:
        """Forward and backward of one micro batch; the loss (a sum, unscaled, detached). `last` of this step?"""
        ...

    def step(self, rate: float) -> torch.Tensor | float:
        """One optimizer step with learning rate `rate`; the norm of the gradient before clipping.

        Reading a tensor's value waits for the GPU; what can be done meanwhile is done first (train/loop.py).
        """
        ...

    def gather(self) -> State:
        """The whole state, on the CPU (a collective; only rank 0's return value is whole)."""
        ...

    def restore(self, state: State, step: int) -> None:
        """Put a state back (every rank gets the same one) that was taken after `step` optimizer steps."""
        ...

    def evaluation(self) -> Any:
        """A context for forward passes without gradients in the right precision."""
        ...


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def optimizer_of(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; with LoRA+ the B matrices are a group with a rate of their own."""
    train, ratio = config.train, config.lora.plus_ratio
    named = list(trainable(model))
    groups: list[dict[str, Any]] = [{"params": [p for _, p in named], "rate_factor": 1.0}]
    if ratio is not None:
        b_side = [p for name, p in named if "lora_B" in name or "lora_embedding_B" in name]
        ids = {id(p) for p in b_side}
        groups = [
            {"params": [p for _, p in named if id(p) not in ids], "rate_factor": 1.0},
            {"params": b_side, "rate_factor": ratio},
        ]
    fused = config.device == "cuda" and train.offload == "none"
    return torch.optim.AdamW(
        groups, lr=train.learning_rate, betas=(0.9, 0.999), weight_decay=train.weight_decay, fused=fused
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


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
    from train.fused import fuse

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
        self.autocast = _autocast(world, dtype)
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
            self.optimizer.state[parameter] = {"step": _adam_step(self.optimizer, step, parameter), **values}

    def evaluation(self) -> Any:
        return _no_grad(self.autocast)


class DeepSpeedEngine:
    skips = True

    def __init__(
        self, config: TrainConfig, world: World, loss: Any, dtype: torch.dtype, ds_config: dict[str, Any]
    ) -> None:
        import deepspeed

        self.world = world
        self.stage = config.train.zero_stage
        half = ds_config.get("bf16", {}).get("enabled") or ds_config.get("fp16", {}).get("enabled")
        self.autocast = nullcontext if half else _autocast(world, dtype)
        self.names = {id(parameter): name for name, parameter in trainable(loss.model)}
        self.parameters = [parameter for _, parameter in trainable(loss.model)]
        with dist.quiet():
            self.engine, *_ = deepspeed.initialize(
                model=loss, optimizer=optimizer_of(config, loss.model), config=ds_config
            )
        self.loss = self.engine
        if config.lora.plus_ratio is not None:
            # With several groups DeepSpeed looks for the moments after the first one's step, when only that one has
            # them (`_optimizer_step` in stage_1_and_2.py); made beforehand, all are found.
            self._create_moments()

    def backward(self, inputs: dict[str, torch.Tensor], scale: float, *, last: bool) -> torch.Tensor:
        self.engine.set_gradient_accumulation_boundary(last)
        with self.autocast():
            loss = self.engine(**inputs)
        # DeepSpeed averages over ranks and, unless told not to, over micro batches; ours is a sum already divided.
        self.engine.backward(loss * (scale * self.world.world_size), scale_wrt_gas=False)
        return loss.detach()

    def step(self, rate: float) -> float:
        set_rate(self.engine.optimizer, rate)
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def gather(self) -> State:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self._create_moments()
        state: State = {}
        for parameter in self.parameters:
            name = self.names[id(parameter)]
            state[f"param/{name}"] = safe_get_full_fp32_param(parameter).detach().cpu()
            for moment in MOMENTS:
                state[f"{moment}/{name}"] = safe_get_full_optimizer_state(parameter, moment).detach().cpu()
        return state

    def restore(self, state: State, step: int) -> None:
        import deepspeed

        self._create_moments()
        for parameter in self.parameters:
            name = self.names[id(parameter)]
            self._put(parameter, state[f"param/{name}"], None)
            for moment in MOMENTS:
                self._put(parameter, state[f"{moment}/{name}"], moment)
            # The masters alone are not enough: the next forward uses the model's own copy.
            sharded = [parameter] if self.stage == 3 else []
            with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0, enabled=bool(sharded)):
                parameter.data.copy_(state[f"param/{name}"])
        for values in self._adam().state.values():
            values["step"] = torch.as_tensor(float(step), device=values["step"].device)

    def evaluation(self) -> Any:
        return _no_grad(self.autocast)

    def _put(self, parameter: nn.Parameter, value: torch.Tensor, moment: str | None) -> None:
        """This rank's part of a whole value into the float32 master (`moment` None) or a moment."""
        from deepspeed import utils

        value = value.to(self.world.device)
        if self.stage < 3:
            if moment is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, moment)
            return
        # `safe_set_full_*` of stage 3 fails where the ranks do not divide the parameter; the local ones do not.
        size = parameter.ds_tensor.numel()
        flat = nn.functional.pad(value.flatten(), (0, size * self.world.world_size - value.numel()))
        part = flat[size * self.world.rank : size * (self.world.rank + 1)]
        if moment is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, moment)

    def _adam(self) -> torch.optim.Optimizer:
        return self.engine.optimizer.optimizer

    def _create_moments(self) -> None:
        """The moments exist only after the first step; before it, make the zeros that AdamW would."""
        optimizer = self.engine.optimizer
        if self.stage == 3:
            masters = optimizer.fp32_partitioned_groups_flat
        else:
            masters = optimizer.single_partition_of_fp32_groups
        missing = [master for master in masters if not self._adam().state.get(master)]
        for master in missing:
            zeros = {moment: torch.zeros_like(master.data) for moment in MOMENTS}
            self._adam().state[master] = {"step": _adam_step(self._adam(), 0, master), **zeros}
        if missing and self.stage < 3:
            optimizer._lazy_init_hp_params_optimizer_state()  # the map from names to parts of the moments


def _adam_step(optimizer: torch.optim.Optimizer, step: int, parameter: torch.Tensor) -> torch.Tensor:
    """AdamW keeps its step on the device only when it is fused."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return torch.tensor(float(step), dtype=torch.float32, device=parameter.device if fused else "cpu")


def _autocast(world: World, dtype: torch.dtype) -> Any:
    """A context factory: autocast where the model is in half precision, nothing in float32."""
    if dtype == torch.float32:
        return nullcontext
    return lambda: torch.autocast(world.device.partition(":")[0], dtype=dtype)


class _no_grad:
    def __init__(self, autocast: Any) -> None:
        self.contexts = (torch.no_grad(), autocast())

    def __enter__(self) -> None:
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *details: Any) -> None:
        for context in reversed(self.contexts):
            context.__exit__(*details)
