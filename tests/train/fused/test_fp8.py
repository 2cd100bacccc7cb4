"""fp8 linear layers on a CPU, where torch computes what the Triton kernels compute on a GPU (test_gpu.py)."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.train
torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from train.fused import fp8  # noqa: E402
from train.fused import model as model_module  # noqa: E402
from train.fused.model import fuse  # noqa: E402
from train.training.loss import AnswerLoss  # noqa: E402

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def small(kind: str = "llama", dtype: Any = torch.float32, targets: list[str] = TARGETS) -> Any:
    torch.manual_seed(2)
    config = AutoConfig.for_model(
        kind, vocab_size=96, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config, dtype=dtype), LoraConfig(task_type="CAUSAL_LM", target_modules=targets)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def exact(quantized: tuple[Any, Any]) -> Any:
    return quantized[0].float() * quantized[1][:, None]


def test_a_row_is_scaled_to_the_largest_number_and_a_row_of_zeros_stays() -> None:
    x = torch.randn(5, 64) * torch.tensor([1.0, 1e-6, 1e6, 0.0, 3.0])[:, None]
    x[4, 7] = 500.0
    values, scales = fp8.quantize_rows(x)
    assert values.dtype == torch.float8_e4m3fn
    assert values.float().abs().amax(1).tolist() == [448.0, 448.0, 448.0, 0.0, 448.0]
    error = (exact((values, scales)) - x).abs()
    # half a unit of three bits of mantissa, or of the smallest number
    assert (error <= torch.maximum(x.abs() / 16, scales[:, None] * 2**-10) * 1.001).all()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_product_adds_the_weights_lora_the_bias_and_the_residual_in_one_sum(kind: str) -> None:
    module = small(kind).base_model.model.model.layers[0].self_attn
    modules = [module.q_proj, module.k_proj, module.v_proj]
    if kind == "qwen2":
        for each in modules:
            torch.nn.init.normal_(each.base_layer.bias)
    weight = torch.cat([each.base_layer.weight.data for each in modules]).clone()
    linear = fp8.Fp8Linear(modules)
    linear.refresh()
    x, residual, grad = torch.randn(7, 64), torch.randn(7, 128), torch.randn(7, 128)
    x8, w8 = exact(fp8.quantize_rows(x)), exact(fp8.quantize_rows(weight))
    wanted = x8 @ w8.t() + x @ linear.a.t() @ linear.b.t() + residual
    wanted = wanted if linear.bias is None else wanted + linear.bias
    found, inner = linear.forward(x, residual=residual)
    assert torch.allclose(found, wanted, atol=1e-5)
    dx, d_inner = linear.backward(grad)
    transposed = exact(fp8.quantize_rows(weight.t().contiguous()))
    assert torch.allclose(dx, exact(fp8.quantize_rows(grad)) @ transposed.t() + grad @ linear.b @ linear.a, atol=1e-5)
    da = (grad @ linear.b).t() @ x
    assert torch.allclose(linear.gradients(x, inner, grad, d_inner)[0], da[:8], atol=1e-5)


def test_weights_that_ranks_share_are_transposed_and_their_scales_go_into_the_gradient() -> None:
    module = small().base_model.model.model.layers[0].mlp
    modules = [module.gate_proj, module.up_proj]
    weight = torch.cat([each.base_layer.weight.data for each in modules])
    weight *= torch.logspace(-2, 2, len(weight))[:, None]  # scales that differ much
    for each, part in zip(modules, weight.split(160), strict=True):
        each.base_layer.weight.data = part.clone()
    linear = fp8.Fp8Linear(modules, sharded=True)
    held = linear.whole_weight()
    linear.refresh()
    linear.set_buffers(held, held.t().contiguous())
    x, grad = torch.randn(7, 64), torch.randn(7, 320)
    w8 = exact(fp8.quantize_rows(weight))
    found, _ = linear.forward(x)
    assert torch.allclose(found, exact(fp8.quantize_rows(x)) @ w8.t() + x @ linear.a.t() @ linear.b.t(), rtol=1e-4)
    dx, _ = linear.backward(grad)
    scales = fp8.quantize_rows(weight)[1]
    scaled = exact(fp8.quantize_rows(grad, scales))
    assert torch.allclose(dx, scaled @ (w8 / scales[:, None]) + grad @ linear.b @ linear.a, rtol=1e-4, atol=1e-3)
    error = (dx - grad @ linear.b @ linear.a - grad @ w8).norm() / (grad @ w8).norm()
    assert error < 0.06
    linear.drop_buffers()
    assert not linear.weight[0].numel()
    assert not linear.transposed[0].numel()


@pytest.mark.parametrize(
    ("kind", "targets"), [("llama", TARGETS), ("qwen3", TARGETS), ("qwen2", ["q_proj", "up_proj"])]
)
def test_the_model_learns_in_fp8_as_without(kind: str, targets: list[str]) -> None:
    ids = torch.randint(0, 96, (3, 20))
    labels = torch.cat([ids[:, 1:], torch.full((3, 1), -100)], 1)
    curves = []
    for quantized in (False, True):
        model = small(kind, targets=targets)
        loss_of = fuse(model, fp8=True) if quantized else AnswerLoss(model, fused=False)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        curves.append([])
        for _ in range(15):
            loss = loss_of(ids, labels) / 57
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curves[-1].append(float(loss.detach()))
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert all(abs(a - b) < 0.02 * a for a, b in zip(*curves, strict=True)), curves


def test_only_inputs_without_a_kernel_before_them_are_quantized_in_passes_of_their_own(monkeypatch: Any) -> None:
    """Attention's output in both layers, the gradients of q, k and v in the upper one, and the gradient of the loss."""
    model, ids = fuse(small(), fp8=True), torch.randint(0, 96, (3, 20))
    passes: list[int] = []
    pass_of_its_own = fp8.quantize_rows

    def counted(x: Any, factors: Any = None) -> Any:
        passes.append(x.shape[1])
        return pass_of_its_own(x, factors)

    monkeypatch.setattr(fp8, "quantize_rows", counted)
    model(ids, ids).backward()
    assert passes == [64, 64, 64, 128]
    found = {name: p.grad.clone() for name, p in model.model.named_parameters() if p.grad is not None}
    model.model.zero_grad()
    monkeypatch.setattr("train.fused.model._quantized_of", lambda grad: None)
    monkeypatch.setattr(fp8.Fp8Linear, "quantized_workspace", lambda *_: None)
    monkeypatch.setattr(fp8.Fp8Linear, "quantized_gradient_workspace", lambda *_: None)
    passes.clear()
    model(ids, ids).backward()
    assert len(passes) == 15
    assert all(torch.equal(p.grad, found[name]) for name, p in model.model.named_parameters() if name in found)


def test_a_gradient_that_was_changed_on_the_way_is_quantized_again() -> None:
    grad = torch.randn(3, 16)
    model_module._hand_on(grad, fp8.quantize_rows(grad))
    assert model_module._quantized_of(grad) is not None
    assert model_module._quantized_of(grad.clone()) is None
    grad.mul_(2)
    assert model_module._quantized_of(grad) is None


def test_generation_reads_the_quantized_weights_which_are_the_only_ones() -> None:
    model = small()
    plain = model(torch.arange(12)[None]).logits
    fuse(model, fp8=True)
    found = model(torch.arange(12)[None]).logits
    assert 0 < float((found - plain).norm() / plain.norm()) < 0.05
    layer = model.base_model.model.model.layers[0]
    assert not layer.mlp.up_proj.base_layer.weight.numel()


def test_widths_that_fp8_rows_cannot_have_are_refused() -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=96, hidden_size=40, intermediate_size=160, num_hidden_layers=1, num_attention_heads=5,
        num_key_value_heads=5,
    )  # fmt: skip
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config), LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS)
    )
    with pytest.raises(ValueError, match=r"multiples of 16, and .*q_proj.* is 40 x 40"):
        fuse(model, fp8=True)
