"""LoRA training of Llama-like models (Llama, Mistral, Qwen, GLM), with one hand-written backward pass per layer.

A decoder layer is a single autograd function. Compared to a layer of many functions it
  - saves fewer activations: the residual stream twice, rotated queries/keys/values, attention's output, gate and up;
    it recomputes what is cheap (norms, silu);
  - uses fewer matrix products: one for q, k, v, another for gate and up. Their weights share a buffer, and the model's
    own parameters are views of it;
  - computes LoRA in the same products: A and the scaled B are stored next to W, the activations X A' next to X, and
    their gradients next to the gradient G. One product gives X W' + s (X A') B', and one gives G W + s (G B) A;
  - never masks or pads: records are packed (train/fused/attention.py).
The arithmetic equals that of transformers + PEFT: same order of operations, float32 inside norms, softmax and loss.

    model = fuse(peft_model)                              raises ValueError if the model is not supported
    loss = model(input_ids, labels, position_ids=...)     summed over labeled tokens, as train.training.loss.AnswerLoss
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from train import dist
from train.dist import World
from train.families import FUSED_TYPES, unfused_reason
from train.fused import attention, kernels
from train.fused.attention import PackedLayout
from train.fused.fp8 import Fp8Linear, Quantized
from train.fused.linears import Linear
from train.fused.sharded import Shards, free, gathered, unshard
from train.memory import CHUNK_BYTES

IGNORED = -100
Attend = Callable[[int, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, attention.Backward]]
"""(index of the layer, query, key, value, out) -> as train.fused.attention.forward."""
SCALE_ROWS = 2048
"""Rows of the gradient that are converted to float32 at a time."""


@dataclass(frozen=True)
class Batch:
    """What all layers share in one forward and backward pass."""

    positions: Tensor
    """[tokens]"""
    cos: Tensor
    sin: Tensor
    """[positions, dim / 2]"""
    attend: Attend


def packed_attention(layout: PackedLayout) -> Attend:
    """Attention within the records of a packed row."""
    return lambda _layer, q, k, v, out: attention.forward(q, k, v, layout, out)


@dataclass
class _Saved:
    """What a layer saves for its backward pass."""

    inverse_rms1: Tensor  # 1/rms before attention
    qkv: Tensor  # rotated in place; as projected if heads are normalized
    rotated: Tensor  # qkv itself, or the normalized and rotated queries and keys
    attended: Tensor
    attention_backward: attention.Backward
    post_attention: Tensor  # the residual stream after attention
    inverse_rms2: Tensor  # 1/rms before the MLP
    gate_up: Tensor
    lora_inner: tuple[Tensor, Tensor, Tensor, Tensor]  # X A' of qkv, o, gate_up, down


class _Layer:
    """A decoder layer: its weights, forward and backward pass."""

    def __init__(self, index: int, layer: Any, config: Any, *, sharded: bool, fp8: bool) -> None:
        self.index = index
        attention_module = layer.self_attn
        self.dim: int = attention_module.head_dim
        self.queries = config.num_attention_heads
        self.keys = config.num_key_value_heads
        linear = partial(Fp8Linear if fp8 else Linear, sharded=sharded)
        self.qkv = linear([attention_module.q_proj, attention_module.k_proj, attention_module.v_proj])
        self.o = linear([attention_module.o_proj])
        merged = hasattr(layer.mlp, "gate_up_proj")  # GLM's layers have one linear layer for both
        gate_up_modules = [layer.mlp.gate_up_proj] if merged else [layer.mlp.gate_proj, layer.mlp.up_proj]
        self.gate_up = linear(gate_up_modules)
        self.interleaved_rope = config.model_type == "glm"
        """Whether adjacent elements of a head are rotated as pairs, instead of one element of each half."""
        self.down = linear([layer.mlp.down_proj])
        self.fp8 = fp8
        self.shards: Shards | None = None
        self.norm1, self.norm2 = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.eps = float(config.rms_norm_eps)
        self.head_norms: tuple[Tensor, Tensor, float] | None = None
        if hasattr(attention_module, "q_norm"):
            self.head_norms = (attention_module.q_norm.weight, attention_module.k_norm.weight, self.eps)

    @contextmanager
    def weights_gathered(self, *, direction: int, transposed: bool = False) -> Iterator[None]:
        """Gather the weights while this layer runs, and prefetch the next layer: +1 or -1 from here."""
        if self.shards is None:
            yield
            return
        self.gather(self.index + direction, transposed=transposed)
        yield
        self.drop()

    def gather(self, ahead: int, *, transposed: bool = False) -> None:
        assert self.shards is not None
        found = self.shards.gather(self.index, ahead=ahead, transposed=transposed and self.fp8)
        for linear, buffers in zip(self.linears, found, strict=True):
            linear.set_buffers(*buffers)

    def drop(self) -> None:
        assert self.shards is not None
        self.shards.release(self.index)
        for linear in self.linears:
            linear.drop_buffers()

    def refresh(self) -> None:
        """Copy the trained A and B to their low-precision versions.

        Called per layer just before use: launching the copies of all layers first would leave the GPU idle.
        """
        for linear in self.linears:
            linear.refresh()

    @property
    def linears(self) -> tuple[Linear, Linear, Linear, Linear]:
        return self.qkv, self.o, self.gate_up, self.down

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for linear in self.linears for parameter in linear.parameters]

    def forward(self, x: Tensor, batch: Batch) -> tuple[Tensor, _Saved]:
        """x [tokens, hidden] -> (output of the same shape, what the backward pass needs)."""
        tokens = x.shape[0]
        workspace = self.qkv.workspace(tokens)
        quantized = self.qkv.quantized_workspace(tokens)
        inverse_rms1 = kernels.rms_norm(x, self.norm1, self.eps, workspace[:, : self.qkv.inputs], quantized)
        qkv, lora_inner_qkv = self.qkv.forward(workspace, quantized=quantized)
        del workspace, quantized
        heads = qkv.view(tokens, -1, self.dim)
        rope_heads = self.queries + self.keys
        rotated = heads if self.head_norms is None else torch.empty_like(heads[:, :rope_heads])
        if self.interleaved_rope:
            kernels.apply_rope_interleaved(heads[:, :rope_heads], batch.cos, batch.sin, batch.positions)
        else:
            kernels.apply_rope(
                heads, rotated, batch.cos, batch.sin, batch.positions, self.queries, self.keys, self.head_norms
            )
        q, k, v = rotated[:, : self.queries], rotated[:, self.queries : rope_heads], heads[:, rope_heads:]
        workspace = self.o.workspace(tokens)
        out = workspace[:, : self.o.inputs].unflatten(1, (self.queries, self.dim))
        attended, attention_backward = batch.attend(self.index, q, k, v, out)
        post_attention, lora_inner_o = self.o.forward(workspace, residual=x)
        del workspace, out
        workspace = self.gate_up.workspace(tokens)
        quantized = self.gate_up.quantized_workspace(tokens)
        normed = workspace[:, : self.gate_up.inputs]
        inverse_rms2 = kernels.rms_norm(post_attention, self.norm2, self.eps, normed, quantized)
        out = self.gate_up.gradient_workspace(tokens)
        gate_up, lora_inner_up = self.gate_up.forward(workspace, out=out, quantized=quantized)
        del workspace, normed, out, quantized
        workspace = self.down.workspace(tokens)
        quantized = self.down.quantized_workspace(tokens)
        kernels.swiglu(gate_up, workspace[:, : self.down.inputs], quantized)
        hidden, lora_inner_down = self.down.forward(workspace, residual=post_attention, quantized=quantized)
        lora_inner = (lora_inner_qkv, lora_inner_o, lora_inner_up, lora_inner_down)
        saved = _Saved(
            inverse_rms1,
            heads,
            rotated,
            attended.flatten(1),
            attention_backward,
            post_attention,
            inverse_rms2,
            gate_up,
            lora_inner,
        )
        return hidden, saved

    def backward(
        self, grad: Tensor, x: Tensor, saved: _Saved, batch: Batch, *, needs_input_grad: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """grad, x [tokens, hidden] -> (gradient of x, gradients of `parameters`). Overwrites tensors of `saved`."""
        lora_inner_qkv, lora_inner_o, lora_inner_up, lora_inner_down = saved.lora_inner
        tokens = grad.shape[0]
        d_activation, d_lora_inner = self.down.backward(grad, quantized=_quantized_of(grad))
        assert d_activation is not None
        quantized = self.gate_up.quantized_gradient_workspace(tokens)
        kernels.swiglu_backward(saved.gate_up, d_activation, quantized)  # d_activation now holds the activation itself
        down_grads = self.down.gradients(d_activation, lora_inner_down, grad, d_lora_inner)
        del d_activation
        d_norm, d_lora_inner = self.gate_up.backward(saved.gate_up, quantized=quantized)
        assert d_norm is not None
        del quantized
        normed = kernels.recompute_rms_norm(saved.post_attention, self.norm2, saved.inverse_rms2)
        up_grads = self.gate_up.gradients(normed, lora_inner_up, saved.gate_up, d_lora_inner)
        del normed
        out = self.o.gradient_workspace(tokens)
        quantized = self.o.quantized_gradient_workspace(tokens)
        grad = kernels.rms_norm_backward(
            d_norm, saved.post_attention, self.norm2, saved.inverse_rms2, grad, out, quantized
        )
        del d_norm
        d_attended, d_lora_inner = self.o.backward(grad, quantized=quantized)
        assert d_attended is not None
        del quantized
        o_grads = self.o.gradients(saved.attended, lora_inner_o, grad, d_lora_inner)
        d_qkv = self._attention_backward(d_attended, saved, batch)
        del d_attended
        d_norm, d_lora_inner = self.qkv.backward(d_qkv, needs_input_grad=needs_input_grad)
        normed = kernels.recompute_rms_norm(x, self.norm1, saved.inverse_rms1)
        qkv_grads = self.qkv.gradients(normed, lora_inner_qkv, d_qkv, d_lora_inner)
        result = None
        if d_norm is not None:
            # the backward pass of the previous layer begins with its `down`, which has the same shape
            out = self.down.gradient_workspace(tokens)
            quantized = self.down.quantized_gradient_workspace(tokens)
            result = kernels.rms_norm_backward(d_norm, x, self.norm1, saved.inverse_rms1, grad, out, quantized)
            _hand_on(result, quantized)
        return result, [*qkv_grads, *o_grads, *up_grads, *down_grads]

    def _attention_backward(self, grad: Tensor, saved: _Saved, batch: Batch) -> Tensor:
        """Gradient of attention's output -> gradient of the output of `self.qkv`, [tokens, N]."""
        tokens = grad.shape[0]
        rope_heads = self.queries + self.keys
        out = self.qkv.gradient_workspace(tokens).view(saved.qkv.shape)
        dq, dk, dv = saved.attention_backward(grad.view(tokens, self.queries, self.dim), out)
        raw = None if self.head_norms is None else saved.qkv
        weights = (None, None) if self.head_norms is None else self.head_norms[:2]
        for first_head, part, weight in ((0, dq, weights[0]), (self.queries, dk, weights[1])):
            norm = None if weight is None else (weight, self.eps)
            if self.interleaved_rope:
                head_grads = out[:, first_head : first_head + part.shape[1]]
                if part.data_ptr() != head_grads.data_ptr():
                    head_grads.copy_(part)
                kernels.apply_rope_interleaved(head_grads, batch.cos, batch.sin, batch.positions, inverse=True)
                continue
            kernels.apply_rope_backward(part, first_head, raw, out, batch.cos, batch.sin, batch.positions, norm)
        if dv.data_ptr() != out[:, rope_heads:].data_ptr():
            out[:, rope_heads:] = dv
        return out.flatten(1)


def _hand_on(grad: Tensor, quantized: Quantized | None) -> None:
    """Keep a gradient's fp8 form with it: autograd hands the same tensor to the previous layer."""
    if quantized is not None:
        grad.fp8_form = quantized, grad._version  # type: ignore[attr-defined]


def _quantized_of(grad: Tensor) -> Quantized | None:
    """The fp8 form of a gradient, if `_hand_on` left one and nothing has changed the gradient since."""
    quantized, version = getattr(grad, "fp8_form", (None, None))
    return quantized if version == grad._version else None


class _LayerFunction(torch.autograd.Function):
    """`_Layer` for autograd. Its parameters are arguments, so that each gradient triggers its parameter's hooks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Layer, batch: Batch, recompute: bool, *parameters: Tensor) -> Tensor:
        with layer.weights_gathered(direction=1):
            out, saved = layer.forward(x, batch)
        ctx.layer, ctx.batch = layer, batch
        ctx.saved = None if recompute else saved
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        saved, ctx.saved = ctx.saved, None
        with ctx.layer.weights_gathered(direction=-1, transposed=True):
            if saved is None:
                _, saved = ctx.layer.forward(x, ctx.batch)
            dx, parameter_grads = ctx.layer.backward(
                grads[0], x, saved, ctx.batch, needs_input_grad=ctx.needs_input_grad[0]
            )
        return dx, None, None, None, *parameter_grads


class _HeadFunction(torch.autograd.Function):
    """Final norm, output head and cross entropy at the labeled positions, one chunk of logits at a time.

    Head and norm are frozen, so the backward pass needs only the gradient of the hidden states. The forward pass
    computes it while the logits exist.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, label_positions: Tensor, targets: Tensor, head: Tensor, norm: Tensor, eps: float
    ) -> Tensor:
        all_labeled = len(label_positions) == len(x)
        labeled = x if all_labeled else x.index_select(0, label_positions)
        normed = torch.empty_like(labeled)
        inverse = kernels.rms_norm(labeled, norm, eps, normed)
        rows = max(1, CHUNK_BYTES // (head.shape[0] * head.element_size()))
        losses = []
        for part, labels in zip(normed.split(rows), targets.split(rows), strict=True):
            logits = part @ head.t()
            losses.append(kernels.cross_entropy(logits, labels))
            if ctx.needs_input_grad[0]:
                torch.mm(logits, head, out=part)  # overwrite the normed states with their gradient
            del logits
        if ctx.needs_input_grad[0]:
            dx = kernels.rms_norm_backward(normed, labeled, norm, inverse, None, torch.empty_like(labeled))
            if not all_labeled:
                dx = torch.zeros_like(x).index_copy_(0, label_positions, dx)
            ctx.save_for_backward(dx)
        return torch.cat(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dx,) = ctx.saved_tensors
        scaled = torch.empty_like(dx)
        for part, out in zip(dx.split(SCALE_ROWS), scaled.split(SCALE_ROWS), strict=True):
            # The factor stays in float32: rounded to bfloat16 it would change every gradient of a step by up to 0.4%.
            torch.mul(part.to(torch.promote_types(part.dtype, torch.float32)), grads[0], out=out)
        return scaled, None, None, None, None, None


_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")
_SHARDED = tuple(f"{name}{part}.weight" for name in _MAPS for part in ("", ".base_layer"))
"""Name suffixes of the weights that ranks shard under ZeRO-3."""


class FusedModel(nn.Module):
    """A PEFT model with its loss: forward returns the summed cross entropy of the labeled tokens, float32."""

    takes_layout = True
    """Batches may come from train.fused.inputs.to_device."""

    @property
    def writes_answers(self) -> bool:
        """Whether train.fused.decoding takes it: ranks that share weights do not write answers token by token."""
        return all(layer.shards is None for layer in self.layers)

    def __init__(self, model: Any, *, checkpointing: bool, world: World | None, inside_hosts: bool, fp8: bool) -> None:
        super().__init__()
        self.model = model
        self.checkpointing = checkpointing
        base = _base_of(model)
        self.eps = float(base.config.rms_norm_eps)
        self._base = [base]  # in a list, so that it is not registered twice: self.model contains it
        if world is not None:
            unshard(p for name, p in base.named_parameters() if not name.endswith(_SHARDED))
        sharded = world is not None
        self.layers = [
            _Layer(index, layer, base.config, sharded=sharded, fp8=fp8) for index, layer in enumerate(base.model.layers)
        ]
        if world is not None:
            self._shard(base, world, inside_hosts, fp8)
        self._tables: tuple[Tensor, Tensor] | None = None

    @property
    def embedding(self) -> nn.Module:
        return self._base[0].model.embed_tokens  # type: ignore[no-any-return]

    @property
    def norm(self) -> Tensor:
        """The weight of the norm before the output head, [hidden]."""
        return self._base[0].model.norm.weight  # type: ignore[no-any-return]

    @property
    def head(self) -> Tensor:
        """The output head, [vocabulary, hidden]."""
        return self._base[0].lm_head.weight  # type: ignore[no-any-return]

    def _shard(self, base: Any, world: World, inside_hosts: bool, fp8: bool) -> None:
        """Shard the layers' weights across the ranks (train/fused/sharded.py)."""
        sharers = dist.on_my_host(world) if inside_hosts else dist.everyone(world)
        shards = Shards(sharers, self._whole_weights(), transposes=fp8)
        for layer, hf_layer in zip(self.layers, base.model.layers, strict=True):
            layer.shards = shards
            # generation calls transformers' own layers for each token: after the last layer comes the first again
            following = (layer.index + 1) % len(self.layers)
            hf_layer.register_forward_pre_hook(lambda *_, each=layer, n=following: each.gather(n))
            hf_layer.register_forward_hook(lambda *_, each=layer: each.drop())

    def _whole_weights(self) -> Iterator[list[Tensor]]:
        """The weights of each layer, which the model gives up afterwards."""
        for layer in self.layers:
            parameters = [base.weight for linear in layer.linears for base in linear.bases]
            with gathered(parameters):
                yield [linear.whole_weight() for linear in layer.linears]
            for parameter in parameters:
                free(parameter)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor | None = None,
        layout: PackedLayout | None = None,
        label_positions: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Return the summed cross entropy.

        input_ids, labels [rows, length]; labels are already shifted, IGNORED marks positions without one. position_ids
        restart at each record of a packed row. layout and label_positions (indices into the flattened labels) are
        computed from these if not given, which synchronizes with the GPU once.
        """
        if layout is None:
            layout = PackedLayout.from_lengths(record_lengths(input_ids, position_ids), input_ids.device)
        flat = labels.reshape(-1)
        if label_positions is None:
            label_positions = torch.nonzero(flat != IGNORED).flatten()
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        cos, sin = self.rotary(layout.longest, input_ids.device)
        batch = Batch(position_ids.reshape(-1), cos, sin, packed_attention(layout))
        hidden = self.embedding(input_ids.reshape(-1))
        for layer in self.layers:
            layer.refresh()
            hidden = _LayerFunction.apply(hidden, layer, batch, self.checkpointing, *layer.parameters)
        return _HeadFunction.apply(  # type: ignore[no-any-return]
            hidden, label_positions, flat[label_positions], self.head, self.norm, self.eps
        )

    def rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cos and sin for at least `length` positions, [positions, dim / 2] float32."""
        if self._tables is None or len(self._tables[0]) < length:
            at = torch.arange(max(length, 4096), device=device)[None]
            cos, sin = self._base[0].model.rotary_emb(torch.zeros(1, device=device, dtype=torch.float32), at)
            half = cos.shape[-1] // 2
            self._tables = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
        return self._tables


def record_lengths(input_ids: Tensor, position_ids: Tensor | None) -> tuple[int, ...]:
    """Tokens per record. A record is a row, or starts where position_ids restart. Synchronizes with the GPU."""
    rows, length = input_ids.shape
    if position_ids is None:
        return (length,) * rows
    starts = torch.nonzero(position_ids.reshape(-1) == 0).flatten().tolist()
    ends = [*starts[1:], rows * length]
    return tuple(end - start for start, end in zip(starts, ends, strict=True))


def unsupported_reason(model: Any, *, training: bool = True) -> str | None:
    """Return why a model, with a PEFT adapter or without, cannot be fused, or None."""
    config = _base_of(model).config
    if config.model_type not in FUSED_TYPES:
        return f"no fused layers for model type {config.model_type}"
    return unfused_reason(config.to_dict()) or _unsupported_adapter(model, training=training)


def _base_of(model: Any) -> Any:
    """The base model of a PEFT model; the model itself if it has no adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def unaligned_reason(model: Any) -> str | None:
    """Return why a model has no fp8 layers, or None: rows of fp8 start at multiples of 16 bytes."""
    for name, module in model.named_modules():
        if name.endswith(_MAPS) and (module.in_features % 16 or module.out_features % 16):
            return f"fp8 products take multiples of 16, and {name} is {module.in_features} x {module.out_features}"
    return None


def _unsupported_adapter(model: Any, *, training: bool) -> str | None:
    for name, parameter in model.named_parameters():
        known = any(f".{target}.lora_A." in name or f".{target}.lora_B." in name for target in _MAPS)
        if "lora_magnitude" in name:
            return "its adapter uses DoRA"
        if not known and ((parameter.requires_grad and training) or ".lora_" in name or ".modules_to_save." in name):
            return f"{name} is trained"
    for name, module in model.named_modules():
        dropout = getattr(module, "lora_dropout", {}) if training else {}
        if any(getattr(part, "p", 0) > 0 for part in dropout.values()):
            return "its adapter uses dropout"
        base = getattr(module, "base_layer", module)
        if name.endswith(_MAPS) and type(base).__name__ not in ("Linear", "Linear4bit"):
            return f"{name} is a {type(base).__name__}"
    return None


def fuse(
    model: Any,
    *,
    checkpointing: bool = False,
    world: World | None = None,
    inside_hosts: bool = False,
    fp8: bool = False,
    training: bool = True,
) -> FusedModel:
    """Return the model with fused layers. Raise ValueError with the reason if it is not supported (see
    `unsupported_reason`).

    `world`: the ranks that shard the layers' frozen weights (ZeRO-3); None: every rank has all of them. `inside_hosts`:
    the ranks of each host shard all of them. `fp8`: multiply in fp8 (train/fused/fp8.py). `training`: False only for
    answers.
    """
    reason = unsupported_reason(model, training=training) or (unaligned_reason(model) if fp8 else None)
    if reason is not None:
        raise ValueError(reason)
    return FusedModel(model, checkpointing=checkpointing, world=world, inside_hosts=inside_hosts, fp8=fp8)
