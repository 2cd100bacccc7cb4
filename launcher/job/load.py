"""A job file, flags and `--set` overrides become a Job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from launcher.errors import SpecError
from launcher.job import notify_address, yamlfile
from launcher.job.explain import Refusal, is_section, known_keys, refusals, type_name
from launcher.job.paths import with_absolute_paths
from launcher.job.ranges import check_names, check_ranges
from launcher.job.spec import Job, JobSpec


def read_job(
    file: Path | None,
    overrides: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    overlay: Path | None = None,
) -> Job:
    """Merge `file`, `overlay`, `flags` (dotted key -> value; None is skipped) and `--set` texts; later ones win.

    Relative paths of a file are relative to that file, and those of flags to the working directory. Raises SpecError.
    """
    tree = _merge(*(read_tree(path) if path is not None else {} for path in (file, overlay)))
    values = {key: value for key, value in (flags or {}).items() if value is not None}
    sets = [parse_set(text) for text in overrides]
    given: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place, pairs in (("the command line", values.items()), ("--set", sets)):
        for key, value in pairs:
            if isinstance(value, str) and (reason := yamlfile.unusable(value)):
                raise SpecError(f"{place}: {key}: {reason}")
            put(given, key, value, where=f"{place}: {key}")
            places[key] = place
    tree = _merge(tree, with_absolute_paths(given, Path.cwd()))
    origin = str(file or overlay or "the command line")
    tree, held = notify_address.take_out(tree, places, origin)
    return Job(convert(tree, where=origin, places=places), tree, origin, held)


def read_tree(file: Path) -> dict[str, Any]:
    """The content of a job file, with absolute paths; not checked yet. Raises SpecError."""
    loaded = yamlfile.load(file, is_text=wants_text)
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SpecError(f"{file}: expected a mapping of sections, got {type_name(loaded)}")
    return with_absolute_paths(loaded, file.resolve().parent)


def convert(tree: Mapping[str, Any], *, where: str, places: Mapping[str, str] | None = None) -> JobSpec:
    """A mapping as JobSpec. Raises SpecError for an unknown key, a wrong type and a value out of range.

    `where` names the mapping in errors; `places` says where single keys or sections of it were given.
    """
    try:
        return checked(tree)
    except Refusal as refusal:
        place = _origin(refusal.key, places or {}) or where
        told = SpecError(f"{place}: {refusal}", hint=refusal.hint)
    raise told


def checked(tree: Mapping[str, Any]) -> JobSpec:
    """The same, for a caller that knows where the values come from. Raises Refusal."""
    accepted = _texts(_without_empty_sections(tree))
    try:
        spec = msgspec.convert(accepted, JobSpec, strict=False)
    except msgspec.ValidationError:
        refusal = next(refusals(accepted))
    else:
        check_ranges(spec)
        check_names(spec)
        return spec
    raise refusal


def dump_job(job: Job) -> str:
    """The text of job.yaml, flags merged in; read_job() of it gives the same job."""
    return f"# {job.origin}, with the flags of the command line\n{yamlfile.dumps(job.tree)}"


def _origin(key: str, places: Mapping[str, str]) -> str | None:
    """Where the key, its section, or a key below it was given."""
    given = [name for name in places if f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.")]
    return places[max(given, key=len)] if given and key else None


def parse_set(text: str) -> tuple[str, Any]:
    """`train.epochs=3` -> ("train.epochs", 3). Raises SpecError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SpecError(f"--set {text!r}: expected section.key=value", hint="for example --set train.epochs=3")
    key = key.strip()
    return key, yamlfile.loads(value, where=f"--set {key}", key=key, is_text=wants_text) if value else ""


def wants_text(key: str) -> bool:
    """Whether the job has a string there."""
    return known_keys().get(key) in (str, str | None) or key.startswith(("env.", "slurm.sbatch."))


def put(tree: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    """Set a dotted key of a mapping of sections. Raises SpecError where a section has a value of its own."""
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
    """An empty section (`ssh:`) means its defaults."""
    sections = {info.name for info in msgspec.structs.fields(JobSpec) if is_section(info.type)}
    return {key: value for key, value in tree.items() if not (value is None and key in sections)}


def _texts(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers, true and false become strings where the job has a string, also those of flags and sweeps."""

    def text(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _texts(value, f"{key}.")
        if wants_text(key) and isinstance(value, (bool, int, float)):
            return str(value).lower() if isinstance(value, bool) else str(value)
        return value

    return {key: text(f"{prefix}{key}", value) for key, value in tree.items()}
