"""Under ZeRO-3, each rank reads its own share of the weights from the files.

DeepSpeed sends every parameter of a new model from rank 0, though its content does not count yet. transformers then has
rank 0 read the files: it gathers each parameter, and sends rank 0's weights to all ranks, which keep a part each. Four
ranks on two hosts so send a model of 140 GB through the network three times before the first step. Here no weight is
sent: the files are mapped, and a rank copies from them what it keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_LOAD = "_load_state_dict_into_zero3_model"
_SHARD = "_zero_init_param"


@contextmanager
def each_rank_reads_its_share() -> Iterator[None]:
    """While this is active, from_pretrained so loads a model that zero.Init shards.

    There is no public place for that: functions of transformers and DeepSpeed are replaced. Versions without them load
    as they do.
    """
    import deepspeed
    from transformers import modeling_utils

    theirs = getattr(modeling_utils, _LOAD, None)
    if theirs is None or not hasattr(deepspeed.zero.Init, _SHARD):
        yield
        return

    def load(model: Any, state: dict[str, torch.Tensor], load_config: Any = None) -> Any:
        named = _named(model, state)
        if named is None or not all(map(_is_plain, model.parameters())):
            return theirs(model, state, load_config)
        return _load(model, named)

    replaced = [(modeling_utils, _LOAD, load), (deepspeed.zero.Init, _SHARD, _shard)]
    before = [getattr(place, name) for place, name, _ in replaced]
    for place, name, ours in replaced:
        setattr(place, name, ours)
    try:
        yield
    finally:
        for (place, name, _), kept in zip(replaced, before, strict=True):
            setattr(place, name, kept)


def _named(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """The files' tensors by the model's names. None: the files lack the name of a parameter, so that transformers must
    rename or convert what there is, or say what is missing."""
    names, prefix = set(model.state_dict()), model.base_model_prefix
    # a checkpoint of the model without its head has names without the prefix
    named = {f"{prefix}.{name}" if f"{prefix}.{name}" in names else name: part for name, part in state.items()}
    tied = getattr(model, "all_tied_weights_keys", {})
    wanted = {name for name, _ in model.named_parameters()}
    return named if wanted <= named.keys() | tied else None


def _shard(init: Any, parameter: Any) -> None:
    init._convert_to_deepspeed_param(parameter)
    parameter.partition()


def _is_plain(parameter: Any) -> bool:
    """Whether a rank's share is an equal slice in memory: not on a disk or quantized, and no second copy per host."""
    share = getattr(parameter, "ds_tensor", None)
    if share is None or share.final_location is not None or hasattr(share, "ds_quant_scale"):
        return False
    return getattr(parameter, "ds_secondary_tensor", None) is None


def _load(model: Any, state: dict[str, torch.Tensor]) -> tuple[list[str], set[str]]:
    """(errors as of `load_state_dict`, names without weights)"""
    missing, errors = set(model.state_dict()), []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in state:
            continue
        missing.discard(name)
        parameter._is_hf_initialized = True
        if state[name].shape != parameter.ds_shape:
            shapes = (
                f"copying a param with shape {state[name].shape} from checkpoint, the shape is {parameter.ds_shape}"
            )
            errors.append(f"size mismatch for {name}: {shapes}.")
            continue
        share = parameter.ds_tensor
        size = share.ds_numel
        first = size * torch.distributed.get_rank(group=parameter.ds_process_group)
        mine = state[name].flatten()[first : first + size]
        with torch.no_grad():
            share.view(-1)[: mine.numel()].copy_(mine)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in state:
            missing.discard(name)
            with torch.no_grad():
                buffer.copy_(state[name])
            buffer._is_hf_initialized = True
    return errors, missing
