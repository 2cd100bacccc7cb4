"""Training through DeepSpeed: ZeRO stages 1 to 3 from ds_config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train import dist
from train.config import TrainConfig
from train.dist import World
from train.errors import UserError
from train.training.loss import autocast_for, inference
from train.training.optimizer import (
    MOMENTS,
    Scaling,
    State,
    make_optimizer,
    scaling_state,
    set_learning_rate,
    step_count,
    trainable,
)


def read_ds_config(path: Path, config: TrainConfig, world_size: int) -> dict[str, Any]:
    """ds_config.json of the run directory, with the batch of this start. Raises UserError."""
    try:
        ds_config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"train.zero_stage={config.train.zero_stage} needs {path}, which does not exist", code="ZL-TRAIN-05"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}", code="ZL-TRAIN-05") from None
    stage = ds_config.get("zero_optimization", {}).get("stage")
    if stage != config.train.zero_stage:
        raise UserError(
            f"{path} is for ZeRO stage {stage}, but train.json for {config.train.zero_stage}", code="ZL-TRAIN-05"
        )
    train = config.train
    return {
        **ds_config,
        "train_batch_size": train.micro_batch_size * train.gradient_accumulation_steps * world_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_clipping": train.max_grad_norm,
    }


@contextmanager
def strided_kept_back(module: nn.Module) -> Iterator[None]:
    """Hide frozen parameters with gaps between their rows: LoRA's weights lie there (train/fused/linears.py).

    DeepSpeed sends every parameter to the other ranks when it starts, and NCCL takes no strided ones. Each rank has
    read the frozen ones from the same files, as without ZeRO, where nothing sends them either.
    """
    kept = [(p, p.data) for p in module.parameters() if not (p.requires_grad or p.is_contiguous())]
    for parameter, data in kept:
        parameter.data = data.new_zeros(1)
    try:
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def _link_in_round_robin(optimizer: Any) -> None:
    """Tell where the master of each parameter lies when the ranks take turns (round_robin_gradients).

    DeepSpeed 0.19 looks for the masters in the model's order then, unless parameters are padded
    (`_link_all_hp_params` in stage_1_and_2.py). Checkpoints and the adapter would hold other parameters' weights.
    """
    padding = optimizer.round_robin_bit16_padding
    optimizer.round_robin_bit16_padding = [[True] for _ in padding]
    optimizer._link_all_hp_params()
    optimizer.round_robin_bit16_padding = padding


class DeepSpeedStrategy:
    """DeepSpeed's engine around torch's AdamW, so that nothing has to be compiled."""

    skips = True

    def __init__(
        self, config: TrainConfig, world: World, loss: Any, dtype: torch.dtype, ds_config: dict[str, Any]
    ) -> None:
        import deepspeed

        self.world = world
        self.stage = config.train.zero_stage
        half = ds_config.get("bf16", {}).get("enabled") or ds_config.get("fp16", {}).get("enabled")
        self.autocast = nullcontext if half else autocast_for(world, dtype)
        self.names = {id(parameter): name for name, parameter in trainable(loss.model)}
        self.parameters = [parameter for _, parameter in trainable(loss.model)]
        with dist.quiet(), strided_kept_back(loss):
            self.engine, *_ = deepspeed.initialize(
                model=loss, optimizer=make_optimizer(config, loss.model), config=ds_config
            )
        self.loss = self.engine
        if ds_config["zero_optimization"].get("round_robin_gradients") and self.stage < 3:
            _link_in_round_robin(self.engine.optimizer)
        if len(self._adam().param_groups) > 1:
            # With several groups DeepSpeed reads all moments after the first group's step, when only that group has
            # some (`_optimizer_step` in stage_1_and_2.py). So they are made beforehand.
            self._create_moments()

    def backward(self, inputs: dict[str, torch.Tensor], scale: float, *, last: bool) -> torch.Tensor:
        self.engine.set_gradient_accumulation_boundary(last)
        with self.autocast():
            loss = self.engine(**inputs)
        # DeepSpeed would average over ranks and micro batches; our scale has divided the sum already.
        self.engine.backward(loss * (scale * self.world.world_size), scale_wrt_gas=False)
        return loss.detach()

    def step(self, rate: float) -> float:
        set_learning_rate(self.engine.optimizer, rate)
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
        return state | self._scaling()

    def _scaling(self) -> State:
        """The state of loss scaling; empty where losses are not scaled."""
        scaler = self.engine.optimizer.loss_scaler
        if not scaler.dynamic:
            return {}
        updates = max(float(values["step"]) for values in self._adam().state.values())
        good = scaler.cur_iter - scaler.last_overflow_iter - 1
        return scaling_state(scaler.cur_scale, good, updates, scaler.cur_hysteresis)

    def restore(self, state: State, step: int) -> None:
        import deepspeed

        self._create_moments()
        for parameter in self.parameters:
            name = self.names[id(parameter)]
            self._put(parameter, state[f"param/{name}"], None)
            for moment in MOMENTS:
                self._put(parameter, state[f"{moment}/{name}"], moment)
            # The next forward pass reads the model's own copy, not the masters.
            sharded = [parameter] if self.stage == 3 else []
            with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0, enabled=bool(sharded)):
                parameter.data.copy_(state[f"param/{name}"])
        scaling = Scaling.of(state, step)
        for values in self._adam().state.values():
            values["step"] = torch.as_tensor(float(scaling.updates), device=values["step"].device)
        scaler = self.engine.optimizer.loss_scaler
        if scaling.known and scaler.dynamic:
            scaler.cur_scale, scaler.cur_hysteresis = scaling.scale, scaling.patience
            scaler.cur_iter, scaler.last_overflow_iter = step, step - 1 - scaling.good_steps

    def evaluation(self) -> AbstractContextManager[None]:
        return inference(self.autocast)

    def _put(self, parameter: nn.Parameter, value: torch.Tensor, moment: str | None) -> None:
        """Set this rank's part of a whole value in the float32 master (`moment` None) or in a moment."""
        from deepspeed import utils

        value = value.to(self.world.device)
        if self.stage < 3:
            if moment is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, moment)
            return
        # In stage 3 `safe_set_full_*` fails for a size that is not a multiple of the ranks; the local ones work.
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
        """Make the moments before the first step, as zeros; AdamW itself would only make them then."""
        optimizer = self.engine.optimizer
        if self.stage == 3:
            masters = optimizer.fp32_partitioned_groups_flat
        else:
            masters = optimizer.single_partition_of_fp32_groups
        missing = [master for master in masters if not self._adam().state.get(master)]
        for master in missing:
            zeros = {moment: torch.zeros_like(master.data) for moment in MOMENTS}
            self._adam().state[master] = {"step": step_count(self._adam(), 0, master), **zeros}
        if missing and self.stage < 3:
            optimizer._lazy_init_hp_params_optimizer_state()  # maps names to parts of the moments
