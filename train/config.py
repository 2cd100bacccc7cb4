"""TrainConfig: the one schema of train.json.

The launcher writes it, with every `auto` of the user's job resolved, and the training program reads it. Nothing else
passes between the two. This module imports only msgspec, so the launcher can use its types without torch.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

Device = Literal["cuda", "cpu"]
Engine = Literal["auto", "fused", "unsloth", "peft"]
Packing = Literal["none", "bucket", "pack"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "muon"]
Scheduler = Literal[
    "cosine", "linear", "constant", "polynomial", "inverse_sqrt", "warmup_stable_decay", "cosine_with_restarts"
]
Epochs = Annotated[
    str, msgspec.Meta(pattern=r"^(?=.*[1-9e])(\d+(\.\d+)? )?epochs?$", description="epoch, a number of epochs")
]
"""A time between two events that follows the size of the data: `epoch`, `0.25 epochs`."""
AutoOrEpochs = Annotated[
    str,
    msgspec.Meta(pattern=r"^(auto|(?=.*[1-9e])(\d+(\.\d+)? )?epochs?)$", description="auto, epoch, a number of epochs"),
]

EXIT_STOPPED = 75
"""Exit status of a rank that saved a checkpoint and stopped on request of `control/stop` (EX_TEMPFAIL)."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """A section of the job file: immutable, without unknown keys."""


class Model(Section, frozen=True):
    path: str = ""
    """Hub id, local directory, or (source `package`) the name of an installed Python package that ships a GGUF file."""
    source: Literal["huggingface", "modelscope", "package", "random"] = "huggingface"
    """Where `path` is. `random` generates a tiny untrained model and a tokenizer, for smoke runs."""
    revision: str | None = None
    """Branch, tag or commit of the hub; null: the newest."""
    quantization: Literal["none", "nf4", "int8", "fp8", "published"] = "none"
    """Form of the frozen weights. nf4 (QLoRA) and int8: loaded in bitsandbytes' formats. fp8: loaded as they are, and
    multiplied in fp8 by the fused layers, twice as fast as in bfloat16 (Ada, Hopper and newer GPUs). published: as the
    checkpoint has them (GPTQ, AWQ); one of bitsandbytes is nf4 or int8."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the numbers in the computation. auto: bfloat16 on a GPU that has it, float16 on an older GPU, float32 on
    a CPU."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    rope_scaling: Literal["none", "linear", "dynamic", "yarn", "llama3"] = "none"
    """How to stretch the rotary embedding (RoPE) over rows that are longer than the model's positions. A merged export
    has it in its config.json; an adapter needs it wherever its base model is loaded."""
    rope_factor: float | Literal["auto"] = "auto"
    """How many times as many positions `rope_scaling` gives. auto: as many as data.max_length needs, rounded up."""
    thinking: Literal["auto", "on", "off"] = "auto"
    """Whether answers begin with thoughts, for chat templates whose prompts differ for them. auto: on if a training
    record has thoughts. off: thoughts of records are left out."""

    @property
    def loads_quantized(self) -> bool:
        """Whether the frozen weights are quantized where they are loaded, also for generation and export."""
        return self.quantization in ("nf4", "int8", "published")


class Source(Section, frozen=True, kw_only=True):
    """A file or hub data set and its weight in the mixture (1.0: each record once per epoch)."""

    path: str
    """As in `data.train`."""
    weight: float = 1.0
    """1.0: each record once per epoch."""
    first: int | None = None
    """Train only on the first records of the source, this many; null: on all."""

    def limited(self, records: int) -> int:
        """How many of `records` take part."""
        return min(records, self.first or records)


class HeldOut(NamedTuple):
    """How many records of data.train are set apart: a share of them, or a number of different ones."""

    share: float
    number: int | None

    def of(self, records: int) -> int:
        """About how many of this many records."""
        return round(self.share * records) if self.number is None else min(self.number, records)


def held_out(value: Any) -> HeldOut | None:
    """What `5%` or a number as data.eval asks for; None for anything else."""
    if not isinstance(value, (int, str)) or not (found := re.fullmatch(r"(\d+)(\.\d+)?(%?)", str(value))):
        return None
    if found[3]:
        return HeldOut(float(found[1] + (found[2] or "")) / 100, None)
    return None if found[2] else HeldOut(0.0, int(found[1]))


class Data(Section, frozen=True):
    train: str | tuple[str | Source, ...] = ""
    """Training records: a file, a directory, `hub:OWNER/NAME`, `ms:OWNER/NAME` (ModelScope), or a list of these. A file
    of such a data set: `hub:OWNER/NAME/FILE`. An entry may be `{path: FILE,
    weight: 2, first: 1000}`, and `FILE#1000` means its first 1000 records."""
    eval: str | int | tuple[str | Source, ...] | None = None
    """Held-out records, in the same form. Their loss and answers are measured. `5%` or a number instead sets so many
    records of data.train apart, by their hash: equal records stay together, and an added record moves no other."""
    max_samples: int | None = None
    """Train on at most this many records of each source, its first ones; null: on all."""
    mix: Literal["repeats", "shares"] = "repeats"
    """What the weights of sources are. repeats: how many times an epoch sees each record. shares: the shares of the
    sources in an epoch, which has as many records as all sources together."""
    mix_temperature: float = 1.0
    """Above 1: sources come nearer to equal shares of an epoch, by (weight x records) ^ (1 / temperature). Needs `mix:
    repeats`."""
    order: Literal["shuffled", "given", "shortest_first"] = "shuffled"
    """Order of the records in an epoch. shuffled: by train.seed. given: as they stand in the sources. shortest_first:
    by their tokens, as a curriculum."""
    max_length: int = 2048
    """Maximum tokens of a record, prompt and answer together."""
    overlong: Literal["cut", "drop"] = "cut"
    """What to do about longer records. cut: remove the end of the answer and its end token; drop a record whose prompt
    alone is too long. drop: drop them."""
    turns: Literal["auto", "joined", "each", "last"] = "auto"
    """How answers of a conversation become sequences. joined: all answers in one. each: one sequence per answer. last:
    only the last answer. auto: joined, unless the chat template writes past turns otherwise than the present one; then
    each."""
    documents: bool = False
    """Take records of a text alone (`{"text": ...}`, .txt and .md files) as documents, and train all of their tokens:
    continued pretraining. Longer ones than max_length become several sequences."""
    document_overlap: int = 0
    """Tokens that a part of a long document repeats of the part before it, as context without loss."""
    train_on_prompt: bool = False
    """Train on every token of a sequence, not only on answers. The loss on data.eval is that of answers."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do about unreadable records (bad JSON, missing keys, empty answers). Duplicates are only reported."""
    system: str | None = None
    """System message for records without their own."""
    columns: dict[str, str | tuple[str, ...]] = {}
    """Names of the data for our keys, as in {instruction: 问题, output: 答案}. Several are joined as lines."""
    roles: dict[str, str | tuple[str, ...]] = {}
    """Names of the data for our roles, as in {user: [客户, 买家], assistant: 客服}."""
    replace: dict[str, str | tuple[str, str]] = {}
    """Texts of the records to replace, as in {'{{NAME}}': Ada}. Of two, as in [小爱, Ada], the first is for records
    with Chinese characters."""
    chat_template: str | None = None
    """A Jinja chat template instead of the tokenizer's own. A job may name one (`chatml`, ...) or its file."""

    @property
    def train_sources(self) -> tuple[Source, ...]:
        """`train` as sources with weights, and no longer than max_samples."""
        return tuple(
            source
            if self.max_samples is None
            else msgspec.structs.replace(source, first=min(source.first or self.max_samples, self.max_samples))
            for source in _as_sources(self.train)
        )

    @property
    def held_out(self) -> HeldOut | None:
        """What part of data.train is held out; None: `eval` names records of its own, or none."""
        return held_out(self.eval)

    @property
    def eval_sources(self) -> tuple[Source, ...]:
        """Empty also where a part of data.train is held out."""
        return () if isinstance(self.eval, int) or self.held_out else _as_sources(self.eval)

    @property
    def sources(self) -> list[tuple[str, str]]:
        """(key, source) of each file, directory, split of a directory or hub data set, as the job writes it."""
        parts = (("data.train", self.train_sources), ("data.eval", self.eval_sources))
        return [(key, source.path) for key, sources in parts for source in sources]

    @property
    def paths(self) -> list[tuple[str, str]]:
        """The same, where a split of a directory (DIR:train) is named by the directory."""
        return [(key, split_of(path)[0]) for key, path in self.sources]


def quotas(data: Data, counts: Sequence[int]) -> list[int]:
    """Records of an epoch from each source of data.train that has so many that take part.

    Shares are rounded so that the epoch keeps its size; a source without records has none.
    """
    weights = [source.weight for source in data.train_sources]
    parts = [weight * count for weight, count in zip(weights, counts, strict=True)]
    if data.mix == "repeats" and data.mix_temperature == 1.0:
        return [round(part) for part in parts]
    total = sum(counts) if data.mix == "shares" else round(sum(parts))
    if data.mix == "shares":
        sizes = [weight if count else 0.0 for weight, count in zip(weights, counts, strict=True)]
    else:
        sizes = [part ** (1 / data.mix_temperature) if part else 0.0 for part in parts]
    exact = [total * size / sum(sizes) if size else 0.0 for size in sizes]
    found = [int(value) for value in exact]
    for place in sorted(range(len(exact)), key=lambda i: (found[i] - exact[i], i))[: total - sum(found)]:
        found[place] += 1
    return found


def _as_sources(value: str | tuple[str | Source, ...] | None) -> tuple[Source, ...]:
    listed = (value,) if isinstance(value, str) else value or ()
    return tuple(Source(path=item) if isinstance(item, str) else item for item in listed if item)


HUBS = ("hub:", "ms:")
"""How the name of a data set on Hugging Face's hub begins, and that of one on ModelScope."""


def split_of(path: str) -> tuple[str, str | None]:
    """(directory, split) of a path such as DIR:train; (path, None) of any other path."""
    folder, _, split = path.rpartition(":")
    if folder and split and os.path.isdir(folder) and not os.path.exists(path):  # noqa: PTH110, PTH112 - a path as text
        return folder, split
    return path, None


class Lora(Section, frozen=True):
    r: int = 16
    """Rank: the adapter holds two matrices of this width per adapted module."""
    alpha: float = 32
    """Scale: the output of the adapter is multiplied by `alpha / r` (rslora: by `alpha / sqrt(r)`)."""
    dropout: float = 0.0
    """Share of the adapter's inputs that each step drops at random."""
    target_modules: str | tuple[str, ...] = "auto"
    """Modules to adapt: a list of names, or a regular expression for whole names. auto: by the model's family. In a
    list, `auto` stands for these: [auto, embed_tokens, lm_head]."""
    rslora: bool = False
    """Scale by `alpha / sqrt(r)`, which keeps large ranks stable (Kalajdzievski 2023, arXiv 2312.03732)."""
    dora: bool = False
    """Train magnitude and direction apart (Liu et al. 2024, arXiv 2402.09353)."""
    plus_ratio: float | None = None
    """LoRA+: learning rate of B over that of A (Hayou et al. 2024, arXiv 2402.12354)."""
    rank_pattern: dict[str, int] = {}
    """Ranks of their own for some modules: {end of a name, or a regular expression for it: rank}. The first that fits
    counts. Scales keep `alpha`, unless `alpha_pattern` has one."""
    alpha_pattern: dict[str, float] = {}
    """Values of `alpha` of their own for some modules, named as in `rank_pattern`."""
    layers_to_transform: tuple[int, ...] = ()
    """Numbers of the layers that get LoRA, from 0; empty: all."""
    init: Literal["default", "gaussian", "orthogonal", "olora", "pissa"] = "default"
    """Initial values. default: A random, B zero. gaussian: A normal. orthogonal: A and B of orthogonal vectors whose
    product is zero. olora: the QR decomposition of the weights (Büyükakyüz 2024, arXiv 2406.01775). pissa: their
    largest singular values (Meng et al. 2024, arXiv 2404.02948)."""
    modules_to_save: tuple[str, ...] = ()
    """Modules to train whole beside the adapter, as in [embed_tokens, lm_head]."""
    adapter: str | None = None
    """Directory of an existing adapter (PEFT format) to continue from."""

    @property
    def has_own_ranks(self) -> bool:
        """Whether modules or layers have another rank or scale than the others, or no adapter."""
        return bool(self.rank_pattern or self.alpha_pattern or self.layers_to_transform)


class Training(Section, frozen=True, kw_only=True):
    """Resolved numbers: global_batch_size = micro_batch_size * gradient_accumulation_steps * world_size."""

    epochs: float = 1.0
    """Passes over the records."""
    max_steps: int | None = None
    """Optimizer steps; overrides epochs."""
    global_batch_size: int
    micro_batch_size: int
    """Records per forward pass of a rank."""
    batch_tokens: int | None = None
    """Tokens per optimizer step, about, in place of global_batch_size: as many records as have them on average."""
    gradient_accumulation_steps: int
    learning_rate: float = 2e-4
    """Learning rate at its peak, after the warm-up."""
    learning_rates: dict[str, float] = {}
    """Peaks of their own for some weights: {regular expression: rate}. The first that is found in a name counts."""
    scheduler: Scheduler = "cosine"
    """How the learning rate falls after the warm-up. inverse_sqrt: with the root of the steps, counted in warm-ups.
    warmup_stable_decay: it stays, and falls as a cosine in the last steps."""
    min_lr_ratio: float = 0.0
    """The learning rate falls to this share of its peak instead of 0. warmup_stable_decay also begins there."""
    scheduler_power: float = 1.0
    """Exponent of `scheduler: polynomial`; 1: the same as linear."""
    scheduler_cycles: int = 1
    """How often `scheduler: cosine_with_restarts` falls; 1: the same as cosine."""
    decay_ratio: float = 0.1
    """Share of the steps in which `scheduler: warmup_stable_decay` falls."""
    decay_steps: int | None = None
    """Steps in which `scheduler: warmup_stable_decay` falls; overrides decay_ratio."""
    warmup_ratio: float = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    warmup_steps: int | None = None
    """Steps in which the learning rate rises from 0; overrides warmup_ratio."""
    optimizer: Optimizer = "adamw"
    """What changes the weights. 8bit: AdamW with states in 8 bits; paged: in memory that the driver may move to the
    host. adafactor: states of rows and columns only. lion, muon: other rules, one state (docs/optimizers.md)."""
    weight_decay: float = 0.0
    """Share of a weight, times the learning rate, that each step takes off it."""
    adam_beta1: float = 0.9
    """How slowly AdamW's and Lion's mean of the gradient moves."""
    adam_beta2: float = 0.999
    """How slowly AdamW's mean of the squared gradient moves, or Lion's second mean."""
    adam_epsilon: float = 1e-8
    """AdamW adds it to the root of its mean of the squared gradient."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over the whole vocabulary; it changes the training's loss only."""
    neftune_alpha: float | None = None
    """NEFTune: size of the noise on the embeddings during training (Jain et al. 2023, arXiv 2310.05914); null: none."""
    max_grad_norm: float = 1.0
    """Gradient clipping: scale gradients of a larger norm down to this norm; 0: never."""
    seed: int = 3407
    """The same seed gives the same records in the same order."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What DeepSpeed ZeRO shares among the ranks. 0: nothing. 1: optimizer states. 2: and gradients. 3: and weights."""
    zero_group: Literal["auto", "host", "all"] = "auto"
    """Which ranks share the weights of the fused layers under ZeRO-3. host: those of one host, so that no weights cross
    the network. auto: those of one host where that fits, else all."""
    offload: Literal["none", "cpu"] = "none"
    """Where the optimizer states are. cpu: in the memory of the host."""
    offload_param: Literal["none", "cpu"] = "none"
    """Where ZeRO-3 keeps the weights between uses. none: on the GPUs; cpu: in the memory of the host."""
    engine: Engine = "auto"
    """Implementation of the layers. fused: our own for NVIDIA GPUs; unsloth and peft: those packages."""
    packing: Packing = "bucket"
    """How records share a batch. none: padded. bucket: records of similar length together. pack: in rows without
    padding."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, about a third slower."""
    router_loss: float | Literal["auto"] = 0.0
    """Weight of the loss that balances the load of a mixture's experts; 0: none. auto: the weight in the model's
    config.json."""
    checkpoint_every: int | Epochs = 200
    """Optimizer steps between checkpoints, or `epoch`, `0.25 epochs`; 0: only the last one and those on request."""
    keep_checkpoints: int = 2
    """Checkpoints to keep, and the best one beside them; older ones are deleted."""
    early_stopping_patience: int | None = None
    """Stop after this many measurements in a row that are no better than the best one before; null: never."""
    early_stopping_min_delta: float = 0.0
    """By how much a measurement must be better to count for early_stopping_patience."""
    checkpoint_copies: int | Literal["auto"] = "auto"
    """Hosts that keep each checkpoint, where they share no file system (train/training/copies.py). auto: 2."""
    log_every: int = 1
    """Steps between lines of metrics.jsonl."""
    hang_timeout: float | Literal["auto"] = "auto"
    """Seconds without a step after which the ranks hang; see train/rundir/heartbeat.py."""
    tensorboard: bool = False
    """Read for the sake of older runs; the launcher starts trackers, by train.report_to."""


KeepBest = Literal["auto", "loss", "accuracy", "macro_f1", "bleu", "rouge_l", "none"]
"""What measurements during the training are compared by."""


class Evaluation(Section, frozen=True):
    before: bool = False
    """Also generate answers for data.eval before training, for comparison."""
    after: bool = True
    """Generate answers for data.eval after training, and score them."""
    every: int | AutoOrEpochs = "auto"
    """Optimizer steps between measurements of the loss on data.eval, or `epoch`, `0.25 epochs`. auto: about ten in the
    run, at a cost of 5% at most. 0: only at the end."""
    keep_best: KeepBest = "auto"
    """Which step the adapter is of: the one that measured best on data.eval by this, smallest loss or largest score.
    auto: loss, where it is measured during the training. none: the last step."""
    scored_records: int = 64
    """Records of data.eval, spread over all of it, that each measurement answers where keep_best is a score."""
    max_records: int | None = None
    """Records of data.eval that are answered; null: all."""
    max_new_tokens: int = 64
    """The most tokens of an answer."""
    batch_size: int | Literal["auto"] = "auto"
    """Records that are answered together; auto: 16, and with the fused layers on a GPU as many as fit, at most 64."""
    samples: int = 4
    """Answers in result.json for people to read."""


class TrainConfig(Section, frozen=True, kw_only=True):
    schema: int = 1
    run_id: str
    run_dir: str = "."
    """Directory of control/, metrics.jsonl, checkpoints/ etc. Relative paths refer to the working directory."""
    device: Device
    world_size: int = 1
    """The planned number of ranks; the program refuses to start with another number."""
    model: Model
    data: Data
    lora: Lora
    train: Training
    eval: Evaluation = Evaluation()
    resume: bool = True
    """Continue from the newest complete checkpoint of run_dir, if there is one."""
    init_from: str | None = None
    """Checkpoint directory (checkpoints/step-<n>) of another run to start from, if this run has no checkpoint.

    For a train.json written by hand. The launcher leaves it empty; `zlaunch resume` continues from the run's own.
    """
    engine_reason: str = ""
    """Why the plan has this train.engine; empty: the job names it, or the training program chooses."""
    predicted_peak_bytes: int | None = None
    predicted_tokens_per_second: float | None = None
    """Of all ranks together."""
    verify_adapter: bool = False
    """At the end, load the adapter into a fresh base model and compare logits (result.json: adapter_reloads)."""

    @property
    def best_metric(self) -> str | None:
        """What `eval.keep_best` compares, once eval.every is settled; None: nothing, and the last step is kept."""
        wanted = self.eval.keep_best
        if wanted == "none" or not self.data.eval or not self.eval.every:
            return None
        return "loss" if wanted == "auto" else wanted

    @property
    def compares(self) -> bool:
        """Whether the job itself asks to compare measurements, whatever they cost."""
        return self.eval.keep_best not in ("auto", "none") or self.train.early_stopping_patience is not None


MOST = 10**12
"""Upper bound of every number of a job; it also excludes infinity and not-a-number."""


class Range(NamedTuple):
    low: float
    high: float = math.inf
    above: bool = False
    """Whether `low` itself is excluded."""

    def holds(self, value: float) -> bool:
        if not abs(value) < MOST:
            return False
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if self.above:
            return f"above {self.low}" + (f", at most {self.high}" if self.high < math.inf else "")
        return f"{self.low} to {self.high}" if self.high < math.inf else f"at least {self.low}"


POSITIVE = Range(0, above=True)
RANGES: dict[str, Range] = {
    "data.eval": Range(1),
    "data.max_length": Range(8),
    "data.max_samples": Range(1),
    "data.mix_temperature": POSITIVE,
    "data.document_overlap": Range(0),
    "lora.r": Range(1),
    "lora.alpha": POSITIVE,
    "lora.rank_pattern": Range(1),  # of each
    "lora.alpha_pattern": POSITIVE,  # of each
    "lora.layers_to_transform": Range(0),  # of each
    "lora.dropout": Range(0, 0.99),
    "lora.plus_ratio": POSITIVE,
    "model.rope_factor": Range(1, above=True),
    "train.epochs": POSITIVE,
    "train.max_steps": Range(1),
    "train.learning_rate": Range(0, 1, above=True),
    "train.warmup_ratio": Range(0, 1),
    "train.warmup_steps": Range(0),
    "train.learning_rates": Range(0, 1, above=True),  # of each
    "train.min_lr_ratio": Range(0, 1),
    "train.scheduler_power": POSITIVE,
    "train.scheduler_cycles": Range(1),
    "train.decay_ratio": Range(0, 1),
    "train.decay_steps": Range(0),
    "train.weight_decay": Range(0),
    "train.label_smoothing": Range(0, 0.99),
    "train.neftune_alpha": POSITIVE,
    "train.adam_beta1": Range(0, 0.999999),
    "train.adam_beta2": Range(0, 0.999999999),
    "train.adam_epsilon": POSITIVE,
    "train.max_grad_norm": Range(0),
    "train.seed": Range(0, 2**32 - 1),  # what NumPy takes
    "train.global_batch_size": Range(1),
    "train.micro_batch_size": Range(1),
    "train.batch_tokens": Range(8),
    "train.router_loss": Range(0),
    "train.checkpoint_every": Range(0),
    "train.keep_checkpoints": Range(1),
    "train.early_stopping_patience": Range(1),
    "train.early_stopping_min_delta": Range(0),
    "train.checkpoint_copies": Range(1),
    "train.log_every": Range(1),
    "train.hang_timeout": Range(1),
    "eval.every": Range(0),
    "eval.scored_records": Range(1),
    "eval.max_records": Range(1),
    "eval.max_new_tokens": Range(1),
    "eval.batch_size": Range(1),
    "eval.samples": Range(0),
}
"""Ranges of the numbers that a job has too; launcher/job/ranges.py checks a job against them first."""
_OWN_RANGES = {"world_size": Range(1), "train.gradient_accumulation_steps": Range(1)}


def load(path: str | os.PathLike[str]) -> TrainConfig:
    """Read train.json. Raises OSError or msgspec.ValidationError (which names the field)."""
    config = msgspec.json.decode(Path(path).read_bytes(), type=TrainConfig)
    for key, accepted in (RANGES | _OWN_RANGES).items():
        value = attrgetter(key)(config)
        if isinstance(value, (int, float)) and not accepted.holds(value):  # not `auto`
            raise msgspec.ValidationError(f"{key}: expected {accepted}, got {value!r}")
    return config


def dump(config: TrainConfig) -> str:
    """The text of train.json: indented, with keys in the order of declaration."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2).decode() + "\n"


class LossSchedule(NamedTuple):
    """When the loss on data.eval is measured during the training."""

    every: int
    """Steps between two measurements, the first before step 1; 0: never."""
    records: int
    """Of data.eval, spread over all of it."""


MEASUREMENTS = 10
"""Measurements of the held-out loss during a run, where they cost little enough."""
MOST_COST = 0.05
"""Their share of the work of the training, at most."""
FORWARD_COST = 0.5
"""Work of a forward pass over that of a training step on the same tokens; a third where activations are recomputed."""
FEWEST_RECORDS = 8
"""Fewer records than these say little about a loss; rather measure less often."""
COMPARED_RECORDS = 64
"""On so many records, at least, is measured where the job asks for the best step, whatever that costs."""


def loss_schedule(steps: int, work: float, records: int, each: float = 1.0, *, wanted: bool = False) -> LossSchedule:
    """What `eval.every: auto` means for a run of `steps` steps.

    `work`: records, or tokens, that the steps train on together. `records`: those of data.eval; `each`: work of one.
    `wanted`: the job compares measurements, and so they are made also where they cost more.
    """
    passes = MOST_COST * work / (FORWARD_COST * max(each, 1e-9))
    measured = min(records, int(passes / (MEASUREMENTS + 1)))
    times = MEASUREMENTS + 1
    if measured < min(records, FEWEST_RECORDS):
        measured = min(records, FEWEST_RECORDS)
        times = int(passes / measured) if measured else 0
    if wanted:
        measured, times = max(measured, min(records, COMPARED_RECORDS)), MEASUREMENTS + 1
    return LossSchedule(math.ceil(steps / (times - 1)), measured) if times >= 2 else LossSchedule(0, 0)


FEW_STEPS = 10
"""A learning rate that rises and falls needs more steps than these."""


def steps_of(epochs: float, records: int, global_batch_size: int) -> int:
    """Optimizer steps that cover `epochs`, at least one. Each takes a whole batch."""
    return max(1, math.ceil(epochs * records / global_batch_size - 1e-9))


def records_of(batch_tokens: int | None, tokens: float, global_batch_size: int) -> int:
    """Records per optimizer step: global_batch_size; with `batch_tokens`, the multiple of it nearest to these tokens.

    `tokens`: those of a record, on average.
    """
    if batch_tokens is None:
        return global_batch_size
    return max(1, round(batch_tokens / max(tokens, 1e-9) / global_batch_size)) * global_batch_size


def steps_between(every: int | str, records: int, global_batch_size: int) -> int:
    """Steps between two events: a number of steps as it is, `0.25 epochs` by the records of an epoch; at least one."""
    if isinstance(every, int):
        return every
    number, _, _ = every.rpartition(" ")
    return steps_of(float(number or 1), records, global_batch_size)


def remark_on_steps(records: int, epochs: float, max_steps: int | None, global_batch_size: int) -> str | None:
    """What a user would not expect of so few records; None: nothing.

    `records` are those of one epoch. Steps are filled from an endless chain of epochs, so a batch that is larger than
    an epoch holds each record several times, and the last step goes on into an epoch that nobody asked for.
    """
    if not records:
        return None
    steps = max_steps or steps_of(epochs, records, global_batch_size)
    seen = steps * global_batch_size / records
    said = f"{steps} step{'s' if steps > 1 else ''}; each record {seen:.3g} times"
    if global_batch_size > records:
        return f"{said}; set train.global_batch_size {f'below {records}' if records > 1 else 'to 1'}"
    if max_steps is not None or steps >= FEW_STEPS:
        return None
    excess = round(steps * global_batch_size - epochs * records)
    beyond = f", because the last step takes {excess} records more than train.epochs asks for" if excess > 0 else ""
    return f"{said}{beyond}; set train.global_batch_size below {global_batch_size} for more steps"
