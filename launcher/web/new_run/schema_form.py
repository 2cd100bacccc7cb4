"""The fields of the form, read from the schema of a job: types, choices, defaults, ranges, and the schema's own help.

A new key of the schema is in the form without a change here. Only its place is chosen: the tables below say to which
step a section belongs, and which keys are seen before "more" is opened.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from launcher.job import yamlfile
from launcher.job.explain import is_section
from launcher.job.ranges import JOB_RANGES
from launcher.job.spec import JobSpec, TrainSpec
from train.config import Training

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
SAME_AS = {TrainSpec: Training}
"""Help of a key that a section does not describe itself is that of the same key there."""


@dataclass(frozen=True)
class Field:
    key: str
    kind: Kind
    default: str
    """As the form holds it; empty: null, or nothing."""
    choices: tuple[str, ...] = ()
    help: str = ""
    range: str = ""
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
    return {field.key: field for field in _fields(JobSpec, "") if field.key not in NOT_HERE}


def _fields(section: type[msgspec.Struct], prefix: str) -> list[Field]:
    found, help_of = [], described(section)
    for info in msgspec.structs.fields(section):
        key = prefix + info.name
        if is_section(info.type):
            found += _fields(info.type, f"{key}.")
            continue
        default = info.default_factory() if info.default is msgspec.NODEFAULT else info.default
        kind, choices = shape(info.type)
        told = help_of.get(info.name, ""), str(JOB_RANGES.get(key) or "")
        listed = _listed(info.type)
        mapped = any(is_section(one) for several in listed for one in _options(get_args(several)[0]))
        single = bool(listed) and str in _options(info.type)
        found.append(Field(key, kind, as_text(kind, default), choices, *told, single, mapped))
    return found


def _options(kind: Any) -> tuple[Any, ...]:
    """The types of a union, without null; of another type, itself."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(one for one in options if one is not NoneType)


def _listed(kind: Any) -> list[Any]:
    return [one for one in _options(kind) if get_origin(one) is tuple]


def described(section: type[msgspec.Struct]) -> dict[str, str]:
    """{key: the text below it} of a section: what the schema says of its keys."""
    texts = described(SAME_AS[section]) if section in SAME_AS else {}
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(after, ast.Expr):
            value = after.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts[before.target.id] = " ".join(value.value.split())
    return texts


def shape(kind: Any) -> tuple[Kind, tuple[str, ...]]:
    """(kind, choices) of a type of the schema."""
    options = _options(kind)
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
