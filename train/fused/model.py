"""LoRA training of Llama-shaped models (Llama, Mistral, Qwen, GLM), one hand-written backward pass a layer.

A layer is one autograd function. Against a layer of many functions it
  - keeps less: the residual stream twice, rotated queries/keys/values, attention's output, gate and up; what is cheap
    to compute again (norms, silu) is computed again;
  - multiplies once where it can: q, k, v share one matrix product, gate and up another (their weights lie in one
    buffer, the model's own parameters are views of it);
  - has LoRA ride along: A and the scaled B lie beside W, the inner activations beside X and the inner gradients beside
    the gradient, so that one product gives X W' + s (X A') B', and backward one gives G W + s (G B) A;
  - never masks or pads: records lie end to end (train/fused/attention.py).
The arithmetic is that of transformers + PEFT: same order of operations, float32 inside norms, softmax and loss.

    model = fuse(peft_model)               None where the model is of another build (the reason is logged by the caller)
    loss = model(input_ids, labels, position_ids=...)     like train.loss.AnswerLoss: the sum over labelled tokens
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.dist import World
from train.families import FUSED_TYPES
from train.fused import attention, kernels
from train.fused.attention import Layout
from train.fused.linears import Linear
from train.fused.sharded import Shards, keep_whole

IGNORED = -100
SCALED_AT_ONCE = 2048
"""Rows of the gradient that are float32 at a time."""
CHUNK_BYTES = 512 * 2**20
"""Logits held at a time (train.memory counts them)."""


@dataclass(frozen=True)
class _Pass:
    """What is the same for all layers of one pass."""

    layout: Layout
    positions: Tensor
    cos: Tensor
    sin: Tensor


@dataclass
class _Kept:
    """What a layer keeps for its backward pass."""

    first: Tensor  # 1/rms before attention
    qkv: Tensor  # rotated in place, or as projected where heads are normalised
    rotated: Tensor  # qkv itself, or the normalised and rotated queries and keys
    attended: Tensor
    attention_backward: attention.Backward
    middle: Tensor  # the residual stream after attention
    second: Tensor  # 1/rms before the MLP
    both: Tensor  # gate and up
    inner: tuple[Tensor, Tensor, Tensor, Tensor]  # X A' of qkv, o, gate and up, down


class _Layer:
    """A decoder layer's weights and its two directions."""

    def __init__(self, layer: Any, config: Any, *, sharded: bool) -> None:
        heads = layer.self_attn
        self.dim: int = heads.head_dim
        self.queries = config.num_attention_heads
        self.keys = config.num_key_value_heads
        self.qkv = Linear([heads.q_proj, heads.k_proj, heads.v_proj], sharded=sharded)
        self.o = Linear([heads.o_proj], sharded=sharded)
        joined = hasattr(layer.mlp, "gate_up_proj")  # GLM's own layers have one map for both
        gate_and_up = [layer.mlp.gate_up_proj] if joined else [layer.mlp.gate_proj, layer.mlp.up_proj]
        self.up = Linear(gate_and_up, sharded=sharded)
        self.neighbours = config.model_type == "glm"
        """Whether neighbouring elements of a head are rotated together, not one of each half."""
        self.down = Linear([layer.mlp.down_proj], sharded=sharded)
        self.shards: Shards | None = None
        self.index = 0
        self.norm1, self.norm2 = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.eps = float(config.rms_norm_eps)
        self.head_norms: tuple[Tensor, Tensor, float] | None = None
        if hasattr(heads, "q_norm"):
            self.head_norms = (heads.q_norm.weight, heads.k_norm.weight, self.eps)

    @contextmanager
    def at_work(self, *, towards: int) -> Iterator[None]:
        """Its weights are here; `towards` +1 or -1 says which layer is next."""
        if self.shards is None:
            yield
            return
        for linear, whole in zip(self.linears, self.shards.take(self.index, ahead=self.index + towards), strict=True):
            linear.lend(whole)
        yield
        self.shards.done(self.index)

    def refresh(self) -> None:
        """Bring the low-precision copies of A and B up to date with the trained parameters.

        Layer by layer just before use: launching all of a model's copies at once would keep the GPU waiting for them.
        """
        for linear in self.linears:
            linear.refresh()

    @property
    def linears(self) -> tuple[Linear, Linear, Linear, Linear]:
        return self.qkv, self.o, self.up, self.down

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for linear in self.linears for parameter in linear.parameters]

    def forward(self, x: Tensor, run: _Pass) -> tuple[Tensor, _Kept]:
        """x [tokens, hidden] -> the same shape, and what the backward pass needs."""
        tokens = x.shape[0]
        room = self.qkv.room(tokens)
        first = kernels.rms_norm(x, self.norm1, self.eps, room[:, : self.qkv.inputs])
        qkv, inner_qkv = self.qkv.forward(room)
        del room
        heads = qkv.view(tokens, -1, self.dim)
        turning = self.queries + self.keys
        rotated = heads if self.head_norms is None else torch.empty_like(heads[:, :turning])
        if self.neighbours:
            kernels.rotate_neighbours(heads[:, :turning], run.cos, run.sin, run.positions)
        else:
            kernels.rotate(heads, rotated, run.cos, run.sin, run.positions, self.queries, self.keys, self.head_norms)
        q, k, v = rotated[:, : self.queries], rotated[:, self.queries : turning], heads[:, turning:]
        room = self.o.room(tokens)
        into = room[:, : self.o.inputs].unflatten(1, (self.queries, self.dim))
        attended, attention_backward = attention.run(q, k, v, run.layout, into)
        middle, inner_o = self.o.forward(room, plus=x)
        del room, into
        room = self.up.room(tokens)
        second = kernels.rms_norm(middle, self.norm2, self.eps, room[:, : self.up.inputs])
        both, inner_up = self.up.forward(room, out=self.up.gradient_room(tokens))
        del room
        room = self.down.room(tokens)
        kernels.swiglu(both, room[:, : self.down.inputs])
        out, inner_down = self.down.forward(room, plus=middle)
        inner = (inner_qkv, inner_o, inner_up, inner_down)
        kept = _Kept(first, heads, rotated, attended.flatten(1), attention_backward, middle, second, both, inner)
        return out, kept

    def backward(
        self, grad: Tensor, x: Tensor, kept: _Kept, run: _Pass, *, inputs: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """grad, x [tokens, hidden] -> (gradient of x, gradients of `parameters`). Overwrites what was kept."""
        inner_qkv, inner_o, inner_up, inner_down = kept.inner
        product, d_inner = self.down.backward(grad)
        assert product is not None
        kernels.swiglu_backward(kept.both, product)
        of_down = self.down.gradients(product, inner_down, grad, d_inner)
        del product
        d_norm, d_inner = self.up.backward(kept.both)
        assert d_norm is not None
        normed = kernels.rms_norm_again(kept.middle, self.norm2, kept.second)
        of_up = self.up.gradients(normed, inner_up, kept.both, d_inner)
        del normed
        tokens = grad.shape[0]
        into = self.o.gradient_room(tokens)
        grad = kernels.rms_norm_backward(d_norm, kept.middle, self.norm2, kept.second, grad, into)
        del d_norm
        d_attended, d_inner = self.o.backward(grad)
        assert d_attended is not None
        of_o = self.o.gradients(kept.attended, inner_o, grad, d_inner)
        d_qkv = self._attention_backward(d_attended, kept, run)
        del d_attended
        d_norm, d_inner = self.qkv.backward(d_qkv, inputs=inputs)
        normed = kernels.rms_norm_again(x, self.norm1, kept.first)
        of_qkv = self.qkv.gradients(normed, inner_qkv, d_qkv, d_inner)
        result = None
        if d_norm is not None:
            # the layer below begins with its `down`, which is like ours
            into = self.down.gradient_room(tokens)
            result = kernels.rms_norm_backward(d_norm, x, self.norm1, kept.first, grad, into)
        return result, [*of_qkv, *of_o, *of_up, *of_down]

    def _attention_backward(self, grad: Tensor, kept: _Kept, run: _Pass) -> Tensor:
        """The gradient of the attention's output as that of the joined projections, [tokens, N of qkv]."""
        tokens = grad.shape[0]
        turning = self.queries + self.keys
        out = self.qkv.gradient_room(tokens).view(kept.qkv.shape)
        dq, dk, dv = kept.attention_backward(grad.view(tokens, self.queries, self.dim), out)
        raw = None if self.head_norms is None else kept.qkv
        weights = (None, None) if self.head_norms is None else self.head_norms[:2]
        for first, part, weight in ((0, dq, weights[0]), (self.queries, dk, weights[1])):
            norm = None if weight is None else (weight, self.eps)
            if self.neighbours:
                of_heads = out[:, first : first + part.shape[1]]
                if part.data_ptr() != of_heads.data_ptr():
                    of_heads.copy_(part)
                kernels.rotate_neighbours(of_heads, run.cos, run.sin, run.positions, back=True)
                continue
            kernels.rotate_backward(part, first, raw, out, run.cos, run.sin, run.positions, norm)
        if dv.data_ptr() != out[:, turning:].data_ptr():
            out[:, turning:] = dv
        return out.flatten(1)


class _LayerFunction(torch.autograd.Function):
    """`_Layer` for autograd. Its parameters are arguments, so that their gradients reach their hooks one by one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Layer, run: _Pass, again: bool, *parameters: Tensor) -> Tensor:
        with layer.at_work(towards=1):
            out, kept = layer.forward(x, run)
        ctx.layer, ctx.run = layer, run
        ctx.kept = None if again else kept
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None
        with ctx.layer.at_work(towards=-1):
            if kept is None:
                _, kept = ctx.layer.forward(x, ctx.run)
            dx, found = ctx.layer.backward(grads[0], x, kept, ctx.run, inputs=ctx.needs_input_grad[0])
        return dx, None, None, None, *found


class _HeadFunction(torch.autograd.Function):
    """Final norm, output head and cross entropy of the labelled positions, a chunk of logits at a time.

    Head and norm are frozen, so the gradient of the hidden states is all that the backward pass needs, and it is
    computed here, while the logits are at hand.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, targets: Tensor, head: Tensor, norm: Tensor, eps: float) -> Tensor:
        whole = len(places) == len(x)
        chosen = x if whole else x.index_select(0, places)
        normed = torch.empty_like(chosen)
        inverse = kernels.rms_norm(chosen, norm, eps, normed)
        rows = max(1, CHUNK_BYTES // (head.shape[0] * head.element_size()))
        losses = []
        for part, wanted in zip(normed.split(rows), targets.split(rows), strict=True):
            logits = part @ head.t()
            losses.append(kernels.cross_entropy(logits, wanted))
            if ctx.needs_input_grad[0]:
                torch.mm(logits, head, out=part)  # the gradient takes the place of what it is the gradient of
            del logits
        if ctx.needs_input_grad[0]:
            dx = kernels.rms_norm_backward(normed, chosen, norm, inverse, None, torch.empty_like(chosen))
            if not whole:
                dx = torch.zeros_like(x).index_copy_(0, places, dx)
            ctx.save_for_backward(dx)
        return torch.cat(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dx,) = ctx.saved_tensors
        scaled = torch.empty_like(dx)
        for part, out in zip(dx.split(SCALED_AT_ONCE), scaled.split(SCALED_AT_ONCE), strict=True):
            # The factor stays in float32: rounded to bfloat16 it would change every gradient of a step by up to 0.4%.
            torch.mul(part.to(torch.promote_types(part.dtype, torch.float32)), grads[0], out=out)
        return scaled, None, None, None, None, None


_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")
_SHARED = tuple(f"{name}{part}.weight" for name in _MAPS for part in ("", ".base_layer"))
"""Ends of the names of the weights that ranks share under ZeRO-3."""


class FusedModel(nn.Module):
    """A PEFT model with its loss; forward gives the sum of the cross entropy of the labelled tokens, float32."""

    takes_layout = True
    """Batches may come from train.packing.to_device."""

    def __init__(self, model: Any, *, checkpointing: bool, world: World | None) -> None:
        super().__init__()
        self.model = model
        self.checkpointing = checkpointing
        base = model.get_base_model()
        self.eps = float(base.config.rms_norm_eps)
        self._base = [base]  # in a list: registered under self.model already
        if world is not None:
            keep_whole(p for name, p in base.named_parameters() if not name.endswith(_SHARED))
        self.layers = [_Layer(layer, base.config, sharded=world is not None) for layer in base.model.layers]
        if world is not None:
            self._share(base, world)
        self._tables: tuple[Tensor, Tensor] | None = None

    def _share(self, base: Any, world: World) -> None:
        """Leave each rank its part of the layers' weights (train/fused/sharded.py)."""
        weights = [[[part.weight for part in linear.bases] for linear in layer.linears] for layer in self.layers]
        shards = Shards(world, weights, [linear.inner for linear in self.layers[0].linears])
        for index, (layer, plain) in enumerate(zip(self.layers, base.model.layers, strict=True)):
            layer.shards, layer.index = shards, index
            # generation goes through transformers' own layers, token after token: behind the last comes the first
            after = (index + 1) % len(self.layers)
            plain.register_forward_pre_hook(lambda *_, i=index, n=after: shards.take(i, ahead=n) and None)
            plain.register_forward_hook(lambda *_, i=index: shards.done(i))

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor | None = None,
        layout: Layout | None = None,
        places: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Sum of the cross entropy.

        input_ids, labels [rows, length] (labels already shifted, IGNORED where none); position_ids start anew at each
        record of a packed row. layout and places (flat positions of the labels) are found from these if not given,
        which waits for the GPU once.
        """
        if layout is None:
            layout = Layout.of(record_lengths(input_ids, position_ids), input_ids.device)
        flat = labels.reshape(-1)
        if places is None:
            places = torch.nonzero(flat != IGNORED).flatten()
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        cos, sin = self._rotary(layout.longest, input_ids.device)
        run = _Pass(layout, position_ids.reshape(-1), cos, sin)
        (base,) = self._base
        hidden = base.model.embed_tokens(input_ids.reshape(-1))
        for layer in self.layers:
            layer.refresh()
            hidden = _LayerFunction.apply(hidden, layer, run, self.checkpointing, *layer.parameters)
        return _HeadFunction.apply(  # type: ignore[no-any-return]
            hidden, places, flat[places], base.lm_head.weight, base.model.norm.weight, self.eps
        )

    def _rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin of all positions up to `length`, [positions, dim / 2] float32."""
        if self._tables is None or len(self._tables[0]) < length:
            at = torch.arange(max(length, 4096), device=device)[None]
            cos, sin = self._base[0].model.rotary_emb(torch.zeros(1, device=device, dtype=torch.float32), at)
            half = cos.shape[-1] // 2
            self._tables = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
        return self._tables


def record_lengths(input_ids: Tensor, position_ids: Tensor | None) -> tuple[int, ...]:
    """Tokens of each record: a row each, or where position_ids start anew. Waits for the GPU."""
    rows, length = input_ids.shape
    if position_ids is None:
        return (length,) * rows
    starts = torch.nonzero(position_ids.reshape(-1) == 0).flatten().tolist()
    ends = [*starts[1:], rows * length]
    return tuple(end - start for start, end in zip(starts, ends, strict=True))


def obstacle(model: Any, config: Any = None) -> str | None:
    """Why a PEFT model cannot be fused, or None."""
    base = model.get_base_model()
    c = base.config
    checks = (
        (c.model_type not in FUSED_TYPES, f"no fused layers for model type {c.model_type}"),
        (getattr(c, "hidden_act", "silu") != "silu", "its activation is not silu"),
        (bool(getattr(c, "mlp_bias", False)), "its MLP has biases"),
        (bool(getattr(c, "use_sliding_window", False)), "it attends within a sliding window"),
        (c.model_type == "mistral" and c.sliding_window is not None, "it attends within a sliding window"),
        (float(getattr(c, "attention_dropout", 0.0)) > 0, "its attention has dropout"),
        (_rope_type(c) in ("dynamic", "longrope"), "its rotary embedding depends on the length"),
    )
    for failed, reason in checks:
        if failed:
            return reason
    return _adapter_obstacle(model)


def _rope_type(config: Any) -> str:
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(parameters.get("rope_type", "default"))


def _adapter_obstacle(model: Any) -> str | None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not any(f".{target}.lora_" in name for target in _MAPS):
            return f"{name} is trained too"
        if parameter.requires_grad and "lora_magnitude" in name:
            return "DoRA"
    for name, module in model.named_modules():
        if hasattr(module, "lora_dropout") and any(getattr(d, "p", 0) > 0 for d in module.lora_dropout.values()):
            return "LoRA dropout"
        base = getattr(module, "base_layer", None)
        if base is not None and name.endswith(_MAPS) and type(base).__name__ not in ("Linear", "Linear4bit"):
            return f"{name} is a {type(base).__name__}"
    return None


def fuse(model: Any, *, checkpointing: bool = False, world: World | None = None) -> FusedModel:
    """The model on the fast path. Raises ValueError with the reason where it cannot be (see `obstacle`).

    `world`: the ranks that share the layers' frozen weights (ZeRO-3); None: each has them all.
    """
    reason = obstacle(model)
    if reason is not None:
        raise ValueError(reason)
    return FusedModel(model, checkpointing=checkpointing, world=world)
