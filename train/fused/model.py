"""LoRA training of Llama-like models, with one hand-written backward pass per layer; forms.py has how they differ.

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
from train.fused.forms import Tables, form_of, norm_weight, tables
from train.fused.fp8 import Fp8Linear, Quantized
from train.fused.linears import Linear
from train.fused.sharded import Shards, free, gathered, unshard
from train.memory import CHUNK_BYTES

IGNORED = -100
Attend = Callable[[Any, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, attention.Backward]]
"""(the layer, query, key, value, out) -> as train.fused.attention.forward."""
SCALE_ROWS = 2048
"""Rows of the gradient that are converted to float32 at a time."""


@dataclass(frozen=True)
class Batch:
    """What all layers share in one forward and backward pass."""

    positions: Tensor
    """[tokens]"""
    tables: Tables
    attend: Attend


def packed_attention(layout: PackedLayout) -> Attend:
    """Attention within the records of a packed row."""
    return lambda layer, q, k, v, out: attention.forward(q, k, v, layout, out, layer.form.attention)


@dataclass
class _Saved:
    """What a layer saves for its backward pass."""

    inverse_rms1: Tensor | None  # 1/rms before attention
    qkv: Tensor  # rotated in place; as projected if heads are normalized
    rotated: Tensor  # qkv itself, or the normalized and rotated queries and keys
    attended: Tensor
    attention_backward: attention.Backward
    post_attention: Tensor  # the residual stream after attention
    inverse_rms2: Tensor | None  # 1/rms before the MLP
    gate_up: Tensor
    lora_inner: tuple[Tensor, Tensor, Tensor, Tensor]  # X A' of qkv, o, gate_up, down
    added: tuple[_Added, _Added]


_Added = tuple[Tensor, Tensor] | None
"""Output of attention or of the MLP and its 1/rms, if a norm stands behind it."""


class _Layer:
    """A decoder layer: its weights, forward and backward pass."""

    def __init__(self, index: int, layer: Any, config: Any, *, sharded: bool, fp8: bool) -> None:
        self.index = index
        self.form = form_of(index, layer, config)
        self.dim, self.queries, self.keys = self.form.dim, self.form.queries, self.form.keys
        linear = partial(Fp8Linear if fp8 else Linear, sharded=sharded)
        module, mlp = layer.self_attn, layer.mlp
        merged = hasattr(module, "qkv_proj")  # Phi-3
        self.qkv = linear([module.qkv_proj] if merged else [module.q_proj, module.k_proj, module.v_proj])
        self.o = linear([module.o_proj])
        merged = hasattr(mlp, "gate_up_proj")  # layers of GLM and Phi-3 have one linear layer for both
        self.gate_up = linear([mlp.gate_up_proj] if merged else [mlp.gate_proj, mlp.up_proj])
        self.down = linear([mlp.down_proj])
        self.fp8 = fp8
        self.shards: Shards | None = None

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
        form, tokens = self.form, x.shape[0]
        workspace = self.qkv.workspace(tokens)
        inverse_rms1, quantized = self._norm(self.qkv, x, form.before_attention, workspace)
        qkv, lora_inner_qkv = self.qkv.forward(workspace, quantized=quantized)
        del workspace, quantized
        heads = qkv.view(tokens, -1, self.dim)
        rope_heads = self.queries + self.keys
        rotated = self._rotate(heads, batch)
        q, k, v = rotated[:, : self.queries], rotated[:, self.queries : rope_heads], heads[:, rope_heads:]
        workspace = self.o.workspace(tokens)
        out = workspace[:, : self.o.inputs].unflatten(1, (self.queries, self.dim))
        attended, attention_backward = batch.attend(self, q, k, v, out)
        post_attention, lora_inner_o, added1 = self._add(self.o, workspace, x, form.behind_attention)
        del workspace, out
        workspace = self.gate_up.workspace(tokens)
        inverse_rms2, quantized = self._norm(self.gate_up, post_attention, form.before_mlp, workspace)
        out = self.gate_up.gradient_workspace(tokens)
        gate_up, lora_inner_up = self.gate_up.forward(workspace, out=out, quantized=quantized)
        del workspace, out, quantized
        workspace = self.down.workspace(tokens)
        quantized = self.down.quantized_workspace(tokens)
        kernels.swiglu(gate_up, workspace[:, : self.down.inputs], quantized, gelu=form.gelu)
        hidden, lora_inner_down, added2 = self._add(self.down, workspace, post_attention, form.behind_mlp, quantized)
        saved = _Saved(
            inverse_rms1,
            heads,
            rotated,
            attended.flatten(1),
            attention_backward,
            post_attention,
            inverse_rms2,
            gate_up,
            (lora_inner_qkv, lora_inner_o, lora_inner_up, lora_inner_down),
            (added1, added2),
        )
        return hidden, saved

    def _norm(
        self, linear: Linear, x: Tensor, weight: Tensor | None, workspace: Tensor
    ) -> tuple[Tensor | None, Quantized | None]:
        """Write the input of `linear` to its workspace; return (1/rms, the input in fp8), None where there is none."""
        out = workspace[:, : linear.inputs]
        if weight is None:
            out.copy_(x)
            return None, None
        quantized = linear.quantized_workspace(len(x))
        return kernels.rms_norm(x, weight, self.form.eps, out, quantized), quantized

    def _rotate(self, heads: Tensor, batch: Batch) -> Tensor:
        """Normalize and rotate queries and keys: in place, or to a new tensor if heads are normalized."""
        form, rope_heads = self.form, self.queries + self.keys
        if form.rope == "none":
            return heads
        cos, sin = batch.tables[form.table]
        if form.rope != "halves":
            rotate = kernels.apply_rope_interleaved if form.rope == "pairs" else kernels.apply_rope_in_part
            rotate(heads[:, :rope_heads], cos, sin, batch.positions)
            return heads
        rotated = heads if form.head_norms is None else torch.empty_like(heads[:, :rope_heads])
        kernels.apply_rope(heads, rotated, cos, sin, batch.positions, self.queries, self.keys, form.head_norms)
        return rotated

    def _add(
        self,
        linear: Linear,
        workspace: Tensor,
        residual: Tensor,
        norm: Tensor | None,
        quantized: Quantized | None = None,
    ) -> tuple[Tensor, Tensor, _Added]:
        """(the residual stream with the output of `linear`, X A' of `linear`, what a norm behind it needs)."""
        form = self.form
        if norm is None and form.residual == 1.0:
            total, lora_inner = linear.forward(workspace, residual=residual, quantized=quantized)
            return total, lora_inner, None
        output, lora_inner = linear.forward(workspace, quantized=quantized)
        if norm is None:
            return torch.add(residual, output, alpha=form.residual), lora_inner, None
        normed = torch.empty_like(residual)
        inverse_rms = kernels.rms_norm(output, norm, form.eps, normed)
        return normed.add_(residual), lora_inner, (output, inverse_rms)

    def _add_backward(self, linear: Linear, grad: Tensor, norm: Tensor | None, added: _Added) -> Tensor:
        """Gradient of the residual stream -> gradient of the output of `linear`."""
        if norm is not None:
            assert added is not None
            out = linear.gradient_workspace(len(grad))
            return kernels.rms_norm_backward(grad, added[0], norm, added[1], None, out)
        if self.form.residual == 1.0:
            return grad
        return torch.mul(grad, self.form.residual, out=linear.gradient_workspace(len(grad)))

    def backward(
        self, grad: Tensor, x: Tensor, saved: _Saved, batch: Batch, *, needs_input_grad: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """grad, x [tokens, hidden] -> (gradient of x, gradients of `parameters`). Overwrites tensors of `saved`."""
        form = self.form
        lora_inner_qkv, lora_inner_o, lora_inner_up, lora_inner_down = saved.lora_inner
        tokens = grad.shape[0]
        d_output = self._add_backward(self.down, grad, form.behind_mlp, saved.added[1])
        d_activation, d_lora_inner = self.down.backward(d_output, quantized=_quantized_of(d_output))
        assert d_activation is not None
        quantized = self.gate_up.quantized_gradient_workspace(tokens)
        # d_activation then holds the activation itself
        kernels.swiglu_backward(saved.gate_up, d_activation, quantized, gelu=form.gelu)
        down_grads = self.down.gradients(d_activation, lora_inner_down, d_output, d_lora_inner)
        del d_activation, d_output
        d_norm, d_lora_inner = self.gate_up.backward(saved.gate_up, quantized=quantized)
        assert d_norm is not None
        del quantized
        normed = self._normed(saved.post_attention, form.before_mlp, saved.inverse_rms2)
        up_grads = self.gate_up.gradients(normed, lora_inner_up, saved.gate_up, d_lora_inner)
        del normed
        grad = _norm_backward(self.o, d_norm, saved.post_attention, form.before_mlp, saved.inverse_rms2, grad)
        del d_norm
        d_output = self._add_backward(self.o, grad, form.behind_attention, saved.added[0])
        d_attended, d_lora_inner = self.o.backward(d_output, quantized=_quantized_of(d_output))
        assert d_attended is not None
        o_grads = self.o.gradients(saved.attended, lora_inner_o, d_output, d_lora_inner)
        del d_output
        d_qkv = self._attention_backward(d_attended, saved, batch)
        del d_attended
        d_norm, d_lora_inner = self.qkv.backward(d_qkv, needs_input_grad=needs_input_grad)
        normed = self._normed(x, form.before_attention, saved.inverse_rms1)
        qkv_grads = self.qkv.gradients(normed, lora_inner_qkv, d_qkv, d_lora_inner)
        result = None
        if d_norm is not None:
            # the backward pass of the previous layer begins with its `down`, which has the same shape
            result = _norm_backward(self.down, d_norm, x, form.before_attention, saved.inverse_rms1, grad)
        return result, [*qkv_grads, *o_grads, *up_grads, *down_grads]

    def _normed(self, x: Tensor, weight: Tensor | None, inverse_rms: Tensor | None) -> Tensor:
        if weight is None or inverse_rms is None:
            return x
        return kernels.recompute_rms_norm(x, weight, inverse_rms)

    def _attention_backward(self, grad: Tensor, saved: _Saved, batch: Batch) -> Tensor:
        """Gradient of attention's output -> gradient of the output of `self.qkv`, [tokens, N]."""
        form, tokens = self.form, grad.shape[0]
        rope_heads = self.queries + self.keys
        out = self.qkv.gradient_workspace(tokens).view(saved.qkv.shape)
        dq, dk, dv = saved.attention_backward(grad.view(tokens, self.queries, self.dim), out)
        raw = None if form.head_norms is None else saved.qkv
        weights = (None, None) if form.head_norms is None else form.head_norms[:2]
        for first_head, part, weight in ((0, dq, weights[0]), (self.queries, dk, weights[1])):
            if form.rope == "halves":
                cos, sin = batch.tables[form.table]
                norm = None if weight is None else (weight, form.eps)
                kernels.apply_rope_backward(part, first_head, raw, out, cos, sin, batch.positions, norm)
                continue
            head_grads = out[:, first_head : first_head + part.shape[1]]
            if part.data_ptr() != head_grads.data_ptr():
                head_grads.copy_(part)
            if form.rope != "none":
                cos, sin = batch.tables[form.table]
                rotate = kernels.apply_rope_interleaved if form.rope == "pairs" else kernels.apply_rope_in_part
                rotate(head_grads, cos, sin, batch.positions, inverse=True)
        if dv.data_ptr() != out[:, rope_heads:].data_ptr():
            out[:, rope_heads:] = dv
        return out.flatten(1)


def _norm_backward(
    following: Linear, grad: Tensor, x: Tensor, weight: Tensor | None, inverse_rms: Tensor | None, skip: Tensor
) -> Tensor:
    """Gradient of the input of a norm, or of what stands there without one, plus that of the residual connection.

    `following`: whose backward pass comes next, and may take the gradient in fp8.
    """
    out = following.gradient_workspace(len(grad))
    if weight is None or inverse_rms is None:
        return torch.add(grad, skip, out=out)
    quantized = following.quantized_gradient_workspace(len(grad))
    found = kernels.rms_norm_backward(grad, x, weight, inverse_rms, skip, out, quantized)
    _hand_on(found, quantized)
    return found


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
        ctx: Any,
        x: Tensor,
        label_positions: Tensor,
        targets: Tensor,
        head: Tensor,
        norm: Tensor,
        eps: float,
        scale: float = 1.0,
    ) -> Tensor:
        all_labeled = len(label_positions) == len(x)
        labeled = x if all_labeled else x.index_select(0, label_positions)
        normed = torch.empty_like(labeled)
        inverse = kernels.rms_norm(labeled, norm, eps, normed)
        rows = max(1, CHUNK_BYTES // (head.shape[0] * head.element_size()))
        losses = []
        for part, labels in zip(normed.split(rows), targets.split(rows), strict=True):
            logits = part @ head.t()
            if scale != 1.0:
                logits.mul_(scale)
            losses.append(kernels.cross_entropy(logits, labels))
            if ctx.needs_input_grad[0]:
                torch.mm(logits, head, out=part)  # overwrite the normed states with their gradient
                if scale != 1.0:
                    part.mul_(scale)
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
        return scaled, None, None, None, None, None, None


_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")
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
        decoder, config = base.get_decoder(), base.config.get_text_config()
        self.eps = float(config.rms_norm_eps)
        self._base = [base]  # in a list, so that it is not registered twice: self.model contains it
        self._decoder = [decoder]
        if world is not None:
            shared = {id(p) for name, p in decoder.layers.named_parameters() if name.endswith(_SHARDED)}
            unshard(p for p in base.parameters() if id(p) not in shared)
        sharded = world is not None
        self.layers = [
            _Layer(index, layer, config, sharded=sharded, fp8=fp8) for index, layer in enumerate(decoder.layers)
        ]
        if world is not None:
            self._shard(decoder, world, inside_hosts, fp8)
        self.norm = norm_weight(decoder.norm)
        """The weight of the norm before the output head, [hidden]."""
        self.embedding_scale = float(getattr(decoder, "embedding_multiplier", 1.0))
        self.logit_scale = 1.0 / float(getattr(config, "logits_scaling", 1.0))
        self._tables: Tables | None = None
        self._positions = 0

    @property
    def embedding(self) -> nn.Module:
        return self._decoder[0].embed_tokens  # type: ignore[no-any-return]

    def embed(self, input_ids: Tensor) -> Tensor:
        """[tokens] -> the residual stream before the first layer, [tokens, hidden]."""
        found: Tensor = self.embedding(input_ids)
        return found if self.embedding_scale == 1.0 else found * self.embedding_scale

    @property
    def head(self) -> Tensor:
        """The output head, [vocabulary, hidden]."""
        return self._base[0].get_output_embeddings().weight  # type: ignore[no-any-return]

    def _shard(self, decoder: Any, world: World, inside_hosts: bool, fp8: bool) -> None:
        """Shard the layers' weights across the ranks (train/fused/sharded.py)."""
        sharers = dist.on_my_host(world) if inside_hosts else dist.everyone(world)
        shards = Shards(sharers, self._whole_weights(), transposes=fp8)
        for layer, hf_layer in zip(self.layers, decoder.layers, strict=True):
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
        tables = self.rotary(layout.longest, input_ids.device)
        batch = Batch(position_ids.reshape(-1), tables, packed_attention(layout))
        hidden = self.embed(input_ids.reshape(-1))
        for layer in self.layers:
            layer.refresh()
            hidden = _LayerFunction.apply(hidden, layer, batch, self.checkpointing, *layer.parameters)
        return _HeadFunction.apply(  # type: ignore[no-any-return]
            hidden, label_positions, flat[label_positions], self.head, self.norm, self.eps, self.logit_scale
        )

    def rotary(self, length: int, device: torch.device) -> Tables:
        """Return cos and sin for at least `length` positions."""
        if self._tables is None or self._positions < length:
            self._positions = max(length, 4096)
            self._tables = tables(self._decoder[0], self._positions, device)
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
