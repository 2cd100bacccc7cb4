"""JobSpec: what the user asked for. Errors name the field, the value and what is accepted.

    job.yaml + flags + --set  ->  one mapping  ->  checked keys  ->  JobSpec
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import msgspec

from launcher import yamlfile
from launcher.errors import SpecError
from train.config import POSITIVE, RANGES, Data, Engine, Evaluation, Lora, Model, Packing, Range, Section, Source

Auto = Literal["auto"]


class TrainSpec(Section, frozen=True):
    epochs: float = 1.0
    max_steps: int | None = None
    learning_rate: float = 2e-4
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 3407
    global_batch_size: int = 64
    micro_batch_size: int | Auto = "auto"
    zero_stage: Literal[0, 1, 2, 3] | Auto = "auto"
    offload: Literal["none", "cpu"] = "none"
    engine: Engine = "auto"
    packing: Packing | Auto = "auto"
    gradient_checkpointing: bool | Auto = "auto"
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    log_every: int = 1
    tensorboard: bool = False


class ContainerSpec(Section, frozen=True):
    runtime: Literal["auto", "docker", "podman", "apptainer", "enroot", "charliecloud", "pyxis", "none"] = "auto"
    """auto: none without an image; with one, the first engine that the target has."""
    image: str | None = None
    mounts: tuple[str, ...] = ()
    """Further mounts, `host:container` each; read-only unless `:rw` follows."""
    args: tuple[str, ...] = ()
    """Further arguments for the engine's run command."""


class LocalSpec(Section, frozen=True):
    gpus: int | None = None
    """Ranks, one a GPU; null: every GPU of the machine."""
    procs: int | None = None
    """Ranks on a machine without GPUs, or with `device: cpu`; null: 1."""
    python: str | None = None
    """Interpreter of the training environment; null: the one zlaunch runs in."""


class SshSpec(Section, frozen=True):
    hosts: str | tuple[str, ...] | None = None
    """`a,b,user@c:2222`, a list of the same, or a hostfile in DeepSpeed's format."""
    hostfile: str | None = None
    include: str | None = None
    exclude: str | None = None
    slots: int | None = None
    """Ranks a host where the hostfile does not say; null: as many as the host has GPUs (CPU: 1)."""
    workdir: str = "~/zlaunch"
    python: str = "python3"
    ssh_config: str | None = None
    accept_new_host_keys: bool = False
    connect_timeout: float = 10.0
    master_addr: str | None = None


class SlurmSpec(Section, frozen=True):
    nodes: int = 1
    gpus_per_node: int | None = None
    """null: 8 on GPUs; on a CPU the number of ranks a node is procs_per_node."""
    procs_per_node: int = 1
    cpus_per_task: int | None = None
    gpu: str | None = None
    """GPU of the nodes, as `zlaunch plan` takes it (h100), or its memory (24GiB): it cannot be looked at before."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    mem: str | None = None
    array_limit: int | None = None
    """Sweep points that run at once (`%N` of --array)."""
    signal_before: int = 120
    """Seconds before the end of the time limit at which Slurm asks for the last checkpoint."""
    max_requeues: int = 20
    """Times a job is queued again after a preemption, a time limit or a lost node, unless `max_restarts` is given,
    which bounds it then; 0: never."""
    sbatch: dict[str, str | None] = {}
    """Any further option of sbatch, without dashes."""
    setup: tuple[str, ...] = ()
    """Shell lines run on every node before the agent: module load, conda activate."""
    python: str | None = None
    login: str | None = None
    workdir: str | None = None
    template: str | None = None


class JobSpec(Section, frozen=True):
    name: str = "run"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    model: Model = Model()
    data: Data = Data()
    lora: Lora = Lora()
    train: TrainSpec = TrainSpec()
    eval: Evaluation = Evaluation()
    container: ContainerSpec = ContainerSpec()
    local: LocalSpec = LocalSpec()
    ssh: SshSpec = SshSpec()
    slurm: SlurmSpec = SlurmSpec()
    env: dict[str, str] = {}
    secrets: tuple[str, ...] = ()
    """Names of environment variables that the ranks get; zlaunch writes their values to no file and command line."""
    verify_adapter: bool = False
    """Load the saved adapter into a fresh base model at the end and compare its logits."""
    max_restarts: int = 0
    elastic: bool = False
    heartbeat_timeout: float = 60.0
    stop_deadline: float = 25.0
    """Seconds a requested stop may take before processes are ended."""
    program: tuple[str, ...] = ()
    """A program of the user's own instead of the training program (what stands after `--`)."""


@dataclass(frozen=True)
class Job:
    """A job as it was asked for."""

    spec: JobSpec
    tree: dict[str, Any]
    """The file and the flags merged, paths absolute; what job.yaml of the run directory holds."""
    origin: str


def load(
    file: Path | None,
    overrides: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    overlay: Path | None = None,
) -> Job:
    """The job of `file`, then `overlay`, then `flags` (dotted key -> value, None skipped), then `--set` texts.

    Relative data and model paths of a file are relative to the file, those of flags to the working directory.
    Raises SpecError.
    """
    tree = _merge(*(_read(path) if path is not None else {} for path in (file, overlay)))
    values = {key: value for key, value in (flags or {}).items() if value is not None}
    sets = [parse_set(text) for text in overrides]
    check_keys(values, where="--sweep")  # a flag stands for a key that is known; a sweep names its keys itself
    check_keys(dict(sets), where="--set")
    given: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place, pairs in (("the command line", values.items()), ("--set", sets)):
        for key, value in pairs:
            _put(given, key, value, where=f"{place}: {key}")
            places[key] = place
    tree = _merge(tree, _absolute(given, Path.cwd()))
    origin = str(file or overlay or "the command line")
    return Job(convert(tree, where=origin, places=places), tree, origin)


def _read(file: Path) -> dict[str, Any]:
    loaded = yamlfile.load(file)
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SpecError(f"{file}: expected a mapping of sections, got {_kind(loaded)}")
    check_keys(loaded, where=str(file))
    return _absolute(loaded, file.resolve().parent)


def convert(tree: Mapping[str, Any], *, where: str, places: Mapping[str, str] | None = None) -> JobSpec:
    """A checked mapping as JobSpec; values out of range and of the wrong type raise SpecError with the field.

    `where` names the mapping in errors, `places` where single keys or sections of it come from.
    """
    try:
        spec = msgspec.convert(_texts(_without_empty_sections(tree)), JobSpec, strict=False)
        _check_ranges(spec)
        _check_names(spec)
    except msgspec.ValidationError as error:
        refusal = _explain(str(error), tree)
    except _Refusal as error:
        refusal = error
    else:
        return spec
    raise SpecError(f"{_place(refusal.key, places or {}) or where}: {refusal}", hint=refusal.hint)


class _Refusal(SpecError):
    """What is wrong with the value of `key`; who knows where it was given puts that before it."""

    def __init__(self, key: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{key or 'the job'}: {message}", hint=hint)
        self.key = key


def _place(key: str, places: Mapping[str, str]) -> str | None:
    """Where the key, or the section it is in, was given."""
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key)


def parse_set(text: str) -> tuple[str, Any]:
    """`train.epochs=3` -> ("train.epochs", 3). Raises SpecError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SpecError(f"--set {text!r}: expected section.key=value", hint="for example --set train.epochs=3")
    return key.strip(), yamlfile.loads(value, where=f"--set {key}") if value else ""


def check_keys(tree: Mapping[str, Any], *, where: str) -> None:
    """Raise SpecError for the first unknown key, naming the nearest known one."""
    known = known_keys()
    for key in _keys(tree):
        if key not in known and not _open_ended(key):
            nearest = _nearest(key, known)
            section = key.rpartition(".")[0]
            siblings = sorted(k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section)
            hint = f"did you mean `{nearest}`?" if nearest else f"known here: {', '.join(siblings)}"
            raise SpecError(f"{where}: unknown key `{key}`", hint=hint)


def known_keys() -> dict[str, Any]:
    """Every dotted key of a job and its type."""
    found: dict[str, Any] = {}

    def walk(struct: type[msgspec.Struct], prefix: str) -> None:
        for info in msgspec.structs.fields(struct):
            found[prefix + info.name] = info.type
            if isinstance(info.type, type) and issubclass(info.type, msgspec.Struct):
                walk(info.type, f"{prefix}{info.name}.")

    walk(JobSpec, "")
    return found


_RANGES: dict[str, Range] = {
    **RANGES,
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
"""Every number of a job, but those that are chosen from a few."""


def _check_ranges(spec: JobSpec) -> None:
    for key, accepted in _RANGES.items():
        value: Any = spec
        for part in key.split("."):
            value = getattr(value, part)
        if isinstance(value, (int, float)) and not accepted.holds(value):
            raise _Refusal(key, f"{value!r} is out of range; accepted: {accepted}")
    for key, sources in (("data.train", spec.data.train), ("data.eval", spec.data.eval)):
        for source in sources if isinstance(sources, tuple) else ():
            if not isinstance(source, str) and not POSITIVE.holds(source.weight):
                said = f"weight {source.weight!r} of {source.path} is out of range; accepted: {POSITIVE}"
                raise _Refusal(key, said)


def _check_names(spec: JobSpec) -> None:
    if "\0" in spec.name:
        raise _Refusal("name", "a NUL character cannot stand in a name")
    for name in spec.env:
        if not _VARIABLE.fullmatch(name):
            raise _Refusal("env", f"{name!r} is not a name for an environment variable")
    for number, name in enumerate(spec.secrets, start=1):
        if not _VARIABLE.fullmatch(name):  # not shown: it may well be NAME=value, or the value itself
            raise _Refusal(
                "secrets",
                f"entry {number} is not a name for an environment variable",
                hint="names only, for example [HF_TOKEN]; the values are taken from the environment",
            )


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH_KEYS = (("data", "train"), ("data", "eval"))


def _absolute(tree: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """`tree` with the data paths, and a model path that exists there, made absolute against `base`."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for section, key in _PATH_KEYS:
        part = result.get(section)
        if isinstance(part, dict) and key in part:
            part[key] = _absolute_sources(part[key], base)
    model = result.get("model")
    if isinstance(model, dict) and isinstance(model.get("path"), str):
        path = model["path"]
        if path.startswith((".", "~")) or (path and (base / path).exists()):
            model["path"] = str((base / Path(path).expanduser()).resolve())
    for section, key in (("ssh", "hostfile"), ("ssh", "ssh_config"), ("slurm", "template"), ("lora", "adapter")):
        part = result.get(section)
        if isinstance(part, dict) and isinstance(part.get(key), str):
            part[key] = str(base / Path(part[key]).expanduser())
    local = result.get("local")
    if isinstance(local, dict) and isinstance(local.get("python"), str) and "/" in local["python"]:  # else on the PATH
        local["python"] = str(base / Path(local["python"]).expanduser())
    return result


def _absolute_sources(value: Any, base: Path) -> Any:
    if isinstance(value, str) and value and "://" not in value and not value.startswith("hub:"):
        return str(base / Path(value).expanduser())
    if isinstance(value, (list, tuple)):
        return [_absolute_sources(item, base) for item in value]
    if isinstance(value, dict) and "path" in value:
        return {**value, "path": _absolute_sources(value["path"], base)}
    return value


def source_paths(sources: Any) -> list[str]:
    """The paths that data.train or data.eval names."""
    items = [sources] if isinstance(sources, (str, Source)) else sources or ()
    return [item if isinstance(item, str) else item.path for item in items]


def _put(tree: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise SpecError(f"{where}: {section} already has a value")
    tree[last] = value


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _without_empty_sections(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A section with nothing under it (`ssh:`) means its defaults."""
    sections = {info.name for info in msgspec.structs.fields(JobSpec) if _is_section(info.type)}
    return {key: value for key, value in tree.items() if not (value is None and key in sections)}


def _texts(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and truth values as texts where a text is meant: `env: {NCCL_DEBUG: 1}`, `name: 2026`."""
    known = known_keys()

    def text(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _texts(value, f"{key}.")
        wants_text = known.get(key) in (str, str | None) or key.startswith(("env.", "slurm.sbatch."))
        if wants_text and isinstance(value, (bool, int, float)):
            return str(value).lower() if isinstance(value, bool) else str(value)
        return value

    return {key: text(f"{prefix}{key}", value) for key, value in tree.items()}


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _keys(tree: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict) and not _open_ended(f"{prefix}{key}."):
            yield from _keys(value, f"{prefix}{key}.")


def _open_ended(key: str) -> bool:
    return key.startswith(("env.", "slurm.sbatch.", "data.train.", "data.eval."))


def _nearest(key: str, known: Mapping[str, Any]) -> str | None:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if not close:  # the right word in the wrong section
        last = key.rpartition(".")[2]
        by_last = {k.rpartition(".")[2]: k for k in known}
        close = [by_last[name] for name in difflib.get_close_matches(last, by_last, n=1, cutoff=0.75)]
    return close[0] if close else None


def _explain(message: str, tree: Mapping[str, Any]) -> _Refusal:
    """msgspec's "Expected `int`, got `str` - at `$.train.epochs`" in the words of a job file."""
    path = re.findall(r"\w+|\[.*?\]", message.rpartition("`$")[2])
    key = ".".join(part for part in path if part[0] != "[")
    if unknown := re.match(r"Object contains unknown field `(.*?)`", message):
        # of a source: check_keys has seen all others
        near = difflib.get_close_matches(unknown[1], Source.__struct_fields__, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(Source.__struct_fields__)}"
        return _Refusal(key, f"unknown key `{unknown[1]}`", hint=hint)
    if missing := re.match(r"Object missing required field `(.*?)`", message):
        return _Refusal(key, f"an entry has no `{missing[1]}`", hint=f"each is a text or {_words(Source)[0]}")
    if " - at `key` in " in message:
        return _Refusal(key, "a name here is no text", hint="put it in quotes")
    kind, value = {**known_keys(), **_SOURCE_KEYS}.get(key), _value_at(path, tree)
    if path and path[-1][0] == "[":
        kind = _entry_of(kind)
    if path and path[-1] == "[...]":
        name, value = next((name, entry) for name, entry in value.items() if not _fits(entry, kind))
        key = f"{key}.{name}"
    accepted = ", ".join(_words(kind))
    return _Refusal(key, f"{_shown(key, value)} cannot stand here" + (f"; accepted: {accepted}" if accepted else ""))


_SOURCE_KEYS = {
    f"data.{part}.{info.name}": info.type for part in ("train", "eval") for info in msgspec.structs.fields(Source)
}


def _value_at(path: Iterable[str], value: Any) -> Any:
    for part in path:
        if part[0] != "[":
            value = value.get(part) if isinstance(value, dict) else None
        elif part != "[...]":
            value = value[int(part[1:-1])]
    return value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value, with numbers as texts, is of a type."""
    try:
        msgspec.convert(str(value) if isinstance(value, (bool, int, float)) else value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _shown(key: str, value: Any) -> str:
    """A value as a job file has it; of what may be secret only the kind."""
    if key.partition(".")[0] in ("secrets", "env"):
        return _kind(value)
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true, false", NoneType: "null"}


def _words(kind: Any) -> list[str]:
    """What a key of this type accepts."""
    if kind in _WORDS:
        return [_WORDS[kind]]
    if _is_section(kind):
        return [f"a mapping like {{{', '.join(f'{name}: ...' for name in kind.__struct_fields__[:2])}}}"]
    origin, options = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [str(option) for option in options]
    if origin is tuple:
        return ["a list like [a, b]"]
    if origin is dict:
        return ["a mapping like {name: value}"]
    return [word for option in options for word in _words(option)]


def _entry_of(kind: Any) -> Any:
    """The type of the entries of a list or a mapping, where `kind` accepts one."""
    if get_origin(kind) in (tuple, dict):
        return [option for option in get_args(kind) if option is not Ellipsis][-1]
    return next((found for option in get_args(kind) if (found := _entry_of(option)) is not None), None)


def _kind(value: Any) -> str:
    names = {"dict": "a mapping", "list": "a list", "str": "a text", "NoneType": "null", "bool": "a truth value"}
    return names.get(type(value).__name__, "a number")
