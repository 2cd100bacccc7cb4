"""The alternatives that stay with transformers and PEFT: Liger's kernels, and torchao's float8 products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bench.gpu.cases import Case
from tests.bench.gpu.models import build
from tests.bench.gpu.others import dense_or_padded_steps
from tests.bench.gpu.tables import result
from train.memory import SHAPES


def run_plain(case: Case, place: Path) -> dict[str, Any]:
    """A model of its own; `torchao`: its frozen layers in float8, rowwise, compiled."""
    import torch

    if case.engine == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(fused_linear_cross_entropy=True)
    model = build(case)
    if case.engine == "torchao":
        model = in_float8(model, emulate=not torch.cuda.is_available())
        if torch.cuda.is_available():  # its documentation: float8 needs torch.compile to gain anything
            for layer in model.base_model.model.model.layers:
                layer.compile()
    model.train()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    seconds, tokens, records, losses = dense_or_padded_steps(case, model, None, place)
    step = sorted(seconds[case.warmup :])[len(seconds[case.warmup :]) // 2]
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 1
    line = result(case, SHAPES[case.shape], tokens / step, step, peak, seconds[0], losses)
    return {**line, "records_per_second": round(records / step, 1)}


def in_float8(model: Any, *, emulate: bool) -> Any:
    """The PEFT model with the frozen linear layers of its decoder layers as torchao's Float8Linear."""
    from dataclasses import replace

    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = replace(Float8LinearConfig.from_recipe_name("rowwise"), emulate=emulate)

    def chosen(_module: Any, name: str) -> bool:
        return ".layers." in name and name.endswith("base_layer")

    return convert_to_float8_training(model, config=config, module_filter_fn=chosen)
