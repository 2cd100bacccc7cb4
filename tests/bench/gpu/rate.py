"""The rate of a large matrix product on this GPU, from which the limit is computed."""

from __future__ import annotations

from typing import Any

from tests.bench.gpu.models import device_kind


def heading() -> dict[str, Any]:
    """The device, torch's version and the matrix rate in TFLOP/s."""
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": card, "torch": torch.__version__, "matrix_tflops": round(matrix_rate() / 1e12, 1)}


def matrix_rate() -> float:
    """FLOP/s of an 8192 x 8192 x 8192 bf16 product of random numbers."""
    import torch

    if device_kind() == "cpu":
        return 1e11
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(20):
        a @ b
    end.record()
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (begin.elapsed_time(end) / 1000)
