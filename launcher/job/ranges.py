"""Ranges of numbers and valid names: what a job accepts beyond its types."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.job.explain import Refusal, value_hint
from launcher.job.network_rate import bytes_per_second
from launcher.job.spec import JobSpec
from train.config import POSITIVE, RANGES, Range
from train.families import template_of

JOB_RANGES: dict[str, Range] = {
    **RANGES,
    "train.reduce_bucket_size": Range(1),
    "train.allgather_bucket_size": Range(1),
    "train.prefetch_bucket_size": Range(0),
    "train.sub_group_size": Range(0),
    "local.gpus": Range(1),
    "local.procs": Range(1),
    "ssh.slots": Range(1),
    "ssh.connect_timeout": Range(1),
    "slurm.nodes": Range(1),
    "slurm.gpus_per_node": Range(1),
    "slurm.procs_per_node": Range(1),
    "slurm.cpus_per_task": Range(1),
    "slurm.array_limit": Range(1),
    "slurm.signal_before": Range(1, 65535),
    "slurm.max_requeues": Range(0),
    "max_restarts": Range(0),
    "heartbeat_timeout": Range(1),
    "stop_deadline": Range(1),
}
"""The range of every number of a job, except numbers with a list of accepted values."""


def numbers_out_of_range(spec: JobSpec) -> Iterator[Refusal]:
    """Every number out of its range."""
    for key, accepted in JOB_RANGES.items():
        value: Any = spec
        for part in key.split("."):
            value = getattr(value, part)
        named = {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
        if isinstance(value, tuple):
            named = {f"{key}[{number}]": each for number, each in enumerate(value)}
        for place, number in named.items():
            if isinstance(number, (int, float)) and not accepted.holds(number):
                yield Refusal(place, f"expected {accepted}, got {_shown(number)}", hint=value_hint(key, number))
    if spec.train.batch_tokens and spec.train.global_batch_size != "auto":
        yield Refusal("train.batch_tokens", "train.global_batch_size is given too; a step is counted in one of them")
    yield from _unusable_sources(spec)
    yield from _unmeasured_best(spec)


def _unmeasured_best(spec: JobSpec) -> Iterator[Refusal]:
    """Keys that compare measurements on data.eval, in a job that measures nothing."""
    patience, chosen = spec.train.early_stopping_patience, spec.eval.keep_best
    wants = [("train.early_stopping_patience", patience), ("eval.keep_best", chosen not in ("auto", "none"))]
    for key in (key for key, wanted in wants if wanted):
        if not spec.data.eval:
            yield Refusal(key, "there is no data.eval to measure on", hint="hold a part out: data.eval: 5%")
        elif spec.eval.every == 0:
            yield Refusal(key, "eval.every is 0: nothing is measured during the training", hint="eval.every: auto")
    if patience and chosen == "none":
        yield Refusal("train.early_stopping_patience", "eval.keep_best is none, so no measurement is the best one")


def _unusable_sources(spec: JobSpec) -> Iterator[Refusal]:
    """Weights and limits of data.train and data.eval, and a part of data.train that cannot be held out."""
    if spec.data.mix == "shares" and spec.data.mix_temperature != 1.0:
        told = "data.mix is shares, so the weights are the shares already"
        yield Refusal("data.mix_temperature", told, hint="data.mix: repeats")
    if spec.data.document_overlap >= spec.data.max_length:
        told = f"expected less than data.max_length, {spec.data.max_length}, got {spec.data.document_overlap}"
        yield Refusal("data.document_overlap", told)
    held = spec.data.held_out
    if held and held.number is None and not 0 < held.share < 1:
        yield Refusal("data.eval", f"expected a share above 0% and below 100%, got {spec.data.eval}")
    if held and held.number == 0 and not isinstance(spec.data.eval, int):
        yield Refusal("data.eval", f"expected {Range(1)}, got {spec.data.eval}")
    for key, sources in (("data.train", spec.data.train), ("data.eval", spec.data.eval)):
        for number, source in enumerate(sources if isinstance(sources, tuple) else ()):
            if not isinstance(source, str) and not POSITIVE.holds(source.weight):
                yield Refusal(f"{key}[{number}].weight", f"expected {POSITIVE}, got {source.weight!r}")
            if not isinstance(source, str) and source.first is not None:
                if key == "data.eval":
                    yield Refusal(f"{key}[{number}].first", "only data.train has it", hint="set eval.max_records")
                if not Range(1).holds(source.first):
                    yield Refusal(f"{key}[{number}].first", f"expected {Range(1)}, got {source.first!r}")


def unusable_names(spec: JobSpec) -> Iterator[Refusal]:
    """Every name that the environment, a file system or the table of chat templates cannot have."""
    if spec.network != "auto":
        try:
            bytes_per_second(spec.network)
        except ValueError as error:
            yield Refusal("network", str(error), hint="for example 25Gb, 200Gb or 3.1GB")
    for name in spec.env:
        if not _VARIABLE.fullmatch(name):
            yield Refusal("env", f"{name!r} is not a valid name of an environment variable")
    yield from _unusable_patterns(spec)
    if "" in spec.data.replace:
        yield Refusal("data.replace", "an empty text stands everywhere; name the text to replace")
    if spec.data.chat_template:
        try:
            template_of(spec.data.chat_template)
        except ValueError as error:
            yield Refusal("data.chat_template", str(error))
    try:
        _ = spec.train.trackers
    except ValueError as error:
        yield Refusal("train.report_to", str(error), hint="for example [tensorboard, wandb]")
    if spec.notify.sign and not spec.notify.url:
        yield Refusal("notify.sign", "there is no notify.url that it signs for")
    for number, name in enumerate(spec.secrets, start=1):
        if not _VARIABLE.fullmatch(name):  # not shown: it may be NAME=value, or the value itself
            yield Refusal(
                "secrets",
                f"entry {number} is not a valid name of an environment variable",
                hint="list names only, for example [HF_TOKEN]; zlaunch reads the values from the environment",
            )


def _unusable_patterns(spec: JobSpec) -> Iterator[Refusal]:
    """Patterns for names of modules that are no regular expressions, and keys of LoRA that exclude each other."""
    lora = spec.lora
    patterns: dict[str, Mapping[str, float]] = {
        "train.learning_rates": spec.train.learning_rates,
        "lora.rank_pattern": lora.rank_pattern,
        "lora.alpha_pattern": lora.alpha_pattern,
    }
    for key, mapping in patterns.items():
        for pattern in mapping:
            try:
                re.compile(pattern)
            except re.error as error:
                yield Refusal(key, f"{pattern!r} is not a regular expression: {error}")
    if lora.init == "orthogonal":
        ranks = {"lora.r": lora.r, **{f"lora.rank_pattern.{name}": rank for name, rank in lora.rank_pattern.items()}}
        for key, rank in ranks.items():
            if rank % 2:
                yield Refusal(
                    key, f"lora.init: orthogonal takes half of a rank for A and half for B, and {rank} is odd"
                )
    if (
        lora.layers_to_transform
        and isinstance(lora.target_modules, str)
        and lora.target_modules not in ("auto", "all-linear")
    ):
        yield Refusal(
            "lora.layers_to_transform",
            "lora.target_modules is a regular expression, which can name the layers itself",
            hint=r"for example lora.target_modules: '.*\.layers\.(30|31)\..*(q_proj|v_proj)'",
        )


def _shown(number: float) -> str:
    text = repr(number)
    return text if len(text) <= 30 else f"a number of {len(text)} digits"


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
