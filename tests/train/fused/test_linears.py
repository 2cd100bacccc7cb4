"""A small LoRA update keeps its effect in bfloat16, wherever the weights come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.train
torch = pytest.importorskip("torch")
pytest.importorskip("peft")

RATE = 2e-4
"""The usual learning rate: after one step of Adam each element of B has moved by this much."""
TOKENS, INPUTS, OUTPUTS = 512, 1024, (768, 256)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _on_the_device() -> Iterator[None]:
    with torch.device(DEVICE):
        yield


def modules(rank: int, quantized: bool) -> list[Any]:
    """Two frozen maps of one input with LoRA beside them, bfloat16; B is still zero."""
    from peft.tuners.lora import LoraConfig
    from peft.tuners.lora.layer import Linear as LoraLinear

    torch.manual_seed(0)
    found = []
    for outputs in OUTPUTS:
        base = torch.nn.Linear(INPUTS, outputs, bias=False, dtype=torch.bfloat16)
        base.weight.data.normal_(std=0.02)
        if quantized:
            base.weight = four_bit(base.weight)
        config = LoraConfig(r=rank, lora_alpha=2 * rank)
        found.append(LoraLinear(base, "default", config, r=rank, lora_alpha=2 * rank).float())
        if not quantized:
            base.to(DEVICE, torch.bfloat16)
    return found


def four_bit(weight: Any) -> Any:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    return bitsandbytes.nn.Params4bit(weight.data, requires_grad=False, quant_type="nf4").to(DEVICE)


def joined(rank: int, kind: str) -> Any:
    from train.fused.linears import Linear

    made = Linear(modules(rank, kind == "nf4"), sharded=kind == "shared")
    if kind == "shared":
        made.shared_buffer = made.whole_weight()
    return made


def ready(linear: Any) -> None:
    linear.refresh()
    if hasattr(linear, "shared_buffer"):
        linear.set_buffers(linear.shared_buffer, None)


def kept(linear: Any, run: Any, wanted: Any, gradient: Any) -> float:
    """Share of the change `wanted` along `gradient` that the outputs of `run` show once B has moved by a step."""
    ready(linear)
    before = run().float()
    change = moved(linear, run) - before
    return float((gradient * change).sum().detach() / (gradient * wanted()).sum().detach())


def moved(linear: Any, run: Any) -> Any:
    torch.manual_seed(1)
    for adapter in linear.adapters:
        adapter.b.data = RATE * torch.randn_like(adapter.b).sign()
    ready(linear)
    return run().float()


@pytest.mark.parametrize("rank", [16, 5])
@pytest.mark.parametrize("kind", ["own", "shared", "nf4"])
@pytest.mark.parametrize("residual", [False, True])
def test_the_effect_of_the_first_update_on_the_output_survives(kind: str, rank: int, residual: bool) -> None:
    """Added to an output that is rounded already, 53% of it do."""
    linear = joined(rank, kind)
    x = torch.randn(TOKENS, INPUTS).bfloat16()
    plus = torch.randn(TOKENS, sum(OUTPUTS)).bfloat16() if residual else None

    def run() -> Any:
        workspace = linear.workspace(TOKENS)
        workspace[:, :INPUTS] = x
        return linear.forward(workspace, plus)[0]

    def update() -> Any:
        return torch.cat([2 * x.float() @ a.a.float().T @ a.b.float().T for a in linear.adapters], 1)

    torch.manual_seed(1)
    directions = [RATE * torch.randn_like(adapter.b).sign() for adapter in linear.adapters]
    gradient = torch.cat([x.float() @ a.a.T @ b.T for a, b in zip(linear.adapters, directions, strict=True)], 1).sign()
    assert kept(linear, run, update, gradient) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["own", "shared", "nf4"])
def test_lora_and_the_frozen_weights_are_one_sum_in_the_gradient_of_the_input(kind: str) -> None:
    linear = joined(16, kind)
    grad = torch.randn(TOKENS, sum(OUTPUTS)).bfloat16()
    torch.manual_seed(1)
    directions = [RATE * torch.randn_like(adapter.b).sign() for adapter in linear.adapters]
    parts = grad.float().split(OUTPUTS, 1)
    exact = sum(2 * g @ b @ a.a for g, b, a in zip(parts, directions, linear.adapters, strict=True))

    def run() -> Any:
        return linear.backward(grad)[0]

    assert kept(linear, run, lambda: exact, exact.sign()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["own", "shared", "nf4"])
@pytest.mark.parametrize("rank", [16, 5])
def test_products_equal_those_in_float64(kind: str, rank: int) -> None:
    linear = joined(rank, kind)
    for adapter in linear.adapters:
        adapter.b.data = torch.randn_like(adapter.b) * 0.1
    ready(linear)
    x, grad = torch.randn(9, INPUTS).bfloat16(), torch.randn(9, sum(OUTPUTS)).bfloat16()
    workspace = linear.workspace(9)
    workspace[:, :INPUTS] = x
    out, lora_inner = linear.forward(workspace)
    weight = linear._backward_weight()[: sum(OUTPUTS)].double()
    rows = [2 * (a.b.bfloat16().double() @ a.a.bfloat16().double()) for a in linear.adapters]
    whole = weight + torch.cat(rows)
    assert torch.linalg.norm(out.double() - x.double() @ whole.T) < 5e-3 * torch.linalg.norm(out.double())
    back, grad_lora_inner = linear.backward(grad)
    assert torch.linalg.norm(back.double() - grad.double() @ whole) < 5e-3 * torch.linalg.norm(back.double())
    gradients = linear.gradients(x, lora_inner, grad, grad_lora_inner)
    assert [g.shape for g in gradients] == [p.shape for p in linear.parameters]
    db = torch.cat([gradients[1], gradients[3]])
    wanted = torch.cat([2 * g.double().T @ (x.double() @ a.a.double().T)
                        for g, a in zip(grad.split(OUTPUTS, 1), linear.adapters, strict=True)])  # fmt: skip
    assert torch.linalg.norm(db.double() - wanted) < 1e-2 * torch.linalg.norm(wanted)
