"""The fields of the form, read from the schema of a job: types, choices, defaults, and how each is filled in.

A new key of the schema is in the form without a change here. Only its place is chosen: the tables below say to which
step a section belongs, and which keys are seen before "more" is opened.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from launcher.job import yamlfile
from launcher.job.explain import is_section
from launcher.job.reference.key_reference import Key, keys, options_of

Kind = Literal["choice", "switch", "number", "word", "text", "lines", "mapping"]
"""choice: one of several. switch: true or false. number: also with words, such as auto. word: a text of one line.
lines: a list, one entry per line. mapping: names and values, as YAML."""

STEPS = ("model", "data", "train")
STEP_OF = {"model": "model", "data": "data"}
"""The step of a section; all others belong to `train`."""
AT_FIRST = (
    "model.path", "model.source", "model.quantization", "data.train", "data.eval", "data.max_length", "name",
    "train.epochs", "train.learning_rate", "train.global_batch_size", "lora.r", "local.gpus", "ssh.hosts",
    "slurm.partition", "slurm.nodes", "slurm.gpus_per_node", "slurm.time",
)  # fmt: skip
"""Keys that are seen without "more", in the order of the form."""
BACKENDS = ("local", "ssh", "slurm")
"""Sections that count for one way to start only."""
NOT_HERE = ("program",)
"""The form trains a model."""


@dataclass(frozen=True)
class Field:
    key: str
    kind: Kind
    default: str
    """As the form holds it; empty: null, or nothing."""
    choices: tuple[str, ...] = ()
    single: bool = False
    """Of lines: one line is that text, and no list."""
    mapped: bool = False
    """Of lines: an entry may be a mapping."""

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def step(self) -> str:
        return STEP_OF.get(self.section, "train")

    @property
    def at_first(self) -> bool:
        return self.key in AT_FIRST

    @property
    def backend(self) -> str:
        """The only way to start for which the key counts; empty: all."""
        return self.section if self.section in BACKENDS else ""


@functools.cache
def fields() -> dict[str, Field]:
    """{dotted key: its field}, in the order of the schema."""
    return {name: _field(key) for name, key in keys().items() if name not in NOT_HERE}


def _field(key: Key) -> Field:
    kind, choices = shape(key.kind)
    listed = _listed(key.kind)
    mapped = any(is_section(one) for several in listed for one in options_of(get_args(several)[0]))
    single = bool(listed) and str in options_of(key.kind)
    return Field(key.name, kind, as_text(kind, key.default), choices, single, mapped)


def _listed(kind: Any) -> list[Any]:
    return [one for one in options_of(kind) if get_origin(one) is tuple]


def shape(kind: Any) -> tuple[Kind, tuple[str, ...]]:
    """(kind, choices) of a type of the schema."""
    options = options_of(kind)
    words = [str(word) for one in options if get_origin(one) is Literal for word in get_args(one)]
    if _listed(kind):
        return "lines", ()
    if any(get_origin(one) is dict for one in options):
        return "mapping", ()
    if options == (bool,):
        return "switch", ()
    if int in options or float in options:
        return "number", tuple(words)
    if words:
        rest = [word for word in words if word != "auto"] + (["true", "false"] if bool in options else [])
        return "choice", (("auto", *rest) if "auto" in words else tuple(rest))
    return ("word" if kind is str else "text"), ()


def as_text(kind: Kind, value: Any, *, single: bool = False) -> str:
    """A value of a job as the form holds it; form_values.value_of reads it back.

    `single`: one line would be a text, so a list of one entry is written in brackets.
    """
    if value is None:
        return ""
    if kind == "lines":
        entries = [value] if isinstance(value, str) else list(value)
        if single and len(entries) == 1 and not isinstance(value, str):
            return yamlfile.dumps(entries, flow=True)
        return "\n".join(one if isinstance(one, str) else yamlfile.dumps(one, flow=True) for one in entries)
    if kind == "mapping":
        return yamlfile.dumps(value) if value else ""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value).lower() if isinstance(value, bool) else str(value)
