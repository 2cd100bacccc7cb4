"""A job file, flags and `--set` overrides become a Job."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from launcher.errors import SpecError
from launcher.job import notify_address, yamlfile
from launcher.job.deepspeed import ds_settings
from launcher.job.explain import Refusal, is_section, known_keys, refusals, type_name
from launcher.job.paths import with_absolute_paths
from launcher.job.ranges import numbers_out_of_range, unusable_names
from launcher.job.spec import Job, JobSpec


def read_job(
    file: Path | None,
    overrides: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    overlay: Path | None = None,
    given_by: str = "the command line",
) -> Job:
    """Merge `file`, `overlay`, `flags` (dotted key -> value; None is skipped) and `--set` texts; later ones win.

    Relative paths of a file are relative to that file, and those of flags to the working directory. `given_by`: where
    the flags come from, for messages. Raises SpecError.
    """
    wrong = Mistakes(str(file or overlay or given_by), file)
    tree = _merge(*(wrong.in_file(path) if path is not None else {} for path in (file, overlay)))
    values = {key: value for key, value in (flags or {}).items() if value is not None}
    given: dict[str, Any] = {}
    sets = [pair for text in overrides for pair in wrong.in_setting(text)]
    for place, pairs in ((given_by, values.items()), ("--set", sets)):
        for key, value in pairs:
            if isinstance(value, str) and (reason := yamlfile.unusable(value)):
                raise SpecError(f"{place}: {key}: {reason}")
            put(given, key, value, where=f"{place}: {key}")
            wrong.places[key] = place
    tree = _merge(tree, with_absolute_paths(given, Path.cwd()))
    tree, held = wrong.without_secrets(tree)
    return Job(wrong.convert(tree), tree, wrong.origin, held)


FOREIGN = 4
"""A file with so many unknown keys outside of the sections may be a configuration of another program."""


class Mistakes:
    """What is wrong with a job, collected so that all of it is reported at once, each with its place."""

    def __init__(self, origin: str, file: Path | None = None, places: Mapping[str, str] | None = None) -> None:
        self.origin = origin
        self.file = file
        self.places = dict(places or {})
        """Where single keys or sections were given, other than in the file."""
        self.found: list[SpecError] = []
        self.advice: str | None = None
        """About all of them."""

    def in_file(self, file: Path) -> dict[str, Any]:
        """The content of a job file; of a key that stands twice, the last value. Raises SpecError."""
        try:
            return read_tree(file)
        except yamlfile.Repeated as repeated:
            self.found += [SpecError(": ".join(line), hint=repeated.hint) for line in repeated.lines]
            return _checked_tree(repeated.value, file)

    def in_setting(self, text: str) -> list[tuple[str, Any]]:
        """A `--set` as key and value; none if it is malformed."""
        try:
            return [parse_set(text)]
        except SpecError as error:
            self.found.append(error)
            return []

    def without_secrets(self, tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """The mapping with names of variables where it held secrets, and these; of an unusable address, without it."""
        try:
            return notify_address.take_out(tree, self.places, self.origin)
        except SpecError as error:
            self.found.append(error)
            return {**tree, "notify": {**tree["notify"], "url": None, "sign": None}}, {}

    def convert(self, tree: Mapping[str, Any]) -> JobSpec:
        """The mapping as JobSpec. Raises SpecError for all that is wrong."""
        try:
            spec = checked(tree)
        except Refusal:
            lines = yamlfile.lines(self.file) if self.file is not None else {}
            refused = every_refusal(tree)
            if (
                self.file
                and sum("." not in one.key and str(one).startswith("unknown key") for one in refused) >= FOREIGN
            ):
                self.advice = f"of another program? zlaunch init new.yaml --from {shlex.quote(str(self.file))}"
            placed = [(*self._place(refusal, lines), refusal) for refusal in refused]
            for line, place, refusal in sorted(placed, key=lambda one: one[0]):
                place = f"{place}, line {line}" if line else place
                self.found.append(SpecError(f"{place}: {refusal}", hint=refusal.hint))
        if not self.found:
            return spec
        if len(self.found) == 1:
            raise self.found[0]
        listed = "".join("\n  " + error.text.replace("\n", "\n  ") for error in self.found)
        raise SpecError(f"{len(self.found)} mistakes in the job:{listed}", hint=self.advice)

    def _place(self, refusal: Refusal, lines: Mapping[str, int]) -> tuple[int, str]:
        """(line or 0, where): where the key, its section, or a key below it was given."""
        key, place = refusal.key, refusal.place
        given = [name for name in self.places if f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.")]
        if given and key:
            return 0, self.places[max(given, key=len)]
        while place and place not in lines:
            place = place.rpartition("[" if place.endswith("]") else ".")[0]
        return lines.get(place, 0), self.origin


def read_tree(file: Path) -> dict[str, Any]:
    """The content of a job file, with absolute paths; not checked yet. Raises SpecError."""
    return _checked_tree(yamlfile.load(file, is_text=wants_text), file)


def _checked_tree(loaded: Any, file: Path) -> dict[str, Any]:
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SpecError(f"{file}: expected a mapping of sections, got {type_name(loaded)}")
    return with_absolute_paths(loaded, file.resolve().parent)


def convert(tree: Mapping[str, Any], *, where: str, places: Mapping[str, str] | None = None) -> JobSpec:
    """A mapping as JobSpec. Raises SpecError for every unknown key, wrong type and value out of range.

    `where` names the mapping in errors; `places` says where single keys or sections of it were given.
    """
    return Mistakes(where, places=places).convert(tree)


def checked(tree: Mapping[str, Any]) -> JobSpec:
    """The same, for a caller that knows where the values come from. Raises Refusal for the first mistake."""
    accepted = _texts(_without_empty_sections(tree))
    try:
        spec = msgspec.convert(accepted, JobSpec, strict=False)
    except msgspec.ValidationError:
        refusal = next(refusals(accepted))
    else:
        in_values = next(_in_values(spec), None)
        if in_values is None:
            return ds_settings.applied(spec, accepted)
        refusal = in_values
    raise refusal


def every_refusal(tree: Mapping[str, Any]) -> list[Refusal]:
    """Every mistake. What is refused is left out, so that the values of the rest are checked too."""
    accepted = _texts(_without_empty_sections(tree))
    found = list(refusals(accepted))
    kept: dict[str, Any] = {}
    for name, value in accepted.items():
        if is_section(known_keys().get(name)) and isinstance(value, dict):
            kept[name] = {key: inner for key, inner in value.items() if not _is_refused(f"{name}.{key}", found)}
        elif not _is_refused(str(name), found):
            kept[name] = value
    sections = {refusal.key.partition(".")[0] for refusal in found}
    try:
        spec = msgspec.convert(kept, JobSpec, strict=False)
        values = [*_in_values(spec), *_in_ds_config(spec, kept)]
    except msgspec.ValidationError:  # of a key whose name cannot be told from a place, such as `a[0]`
        values = []
    return found + [one for one in values if one.key.partition(".")[0] != "notify" or "notify" not in sections]


def _in_ds_config(spec: JobSpec, tree: Mapping[str, Any]) -> Iterator[Refusal]:
    try:
        ds_settings.applied(spec, tree)
    except Refusal as refusal:
        yield refusal


def _is_refused(key: str, found: Iterable[Refusal]) -> bool:
    """Whether the value of `section.key`, or of a key without a section, has a mistake in it."""
    return any(f"{refusal.key}.".startswith(f"{key}.") for refusal in found)


def _in_values(spec: JobSpec) -> Iterator[Refusal]:
    yield from numbers_out_of_range(spec)
    yield from unusable_names(spec)


def dump_job(job: Job) -> str:
    """The text of job.yaml, flags merged in; read_job() of it gives the same job."""
    return f"# {job.origin}, with the flags of the command line\n{yamlfile.dumps(job.tree)}"


def parse_set(text: str) -> tuple[str, Any]:
    """`train.epochs=3` -> ("train.epochs", 3). Raises SpecError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SpecError(
            f"--set {text!r}: expected section.key=value", hint="for example --set train.epochs=3", code="ZL-OPT-02"
        )
    key = key.strip()
    where = f"--set {key if key.isprintable() else repr(key)}"
    return key, yamlfile.loads(value, where=where, key=key, is_text=wants_text) if value else ""


def wants_text(key: str) -> bool:
    """Whether the job has a string there."""
    return known_keys().get(key) in (str, str | None) or key.startswith(("env.", "slurm.sbatch."))


def put(tree: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    """Set a dotted key of a mapping of sections. Raises SpecError where a section has a value of its own."""
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise SpecError(f"{where}: {section} already has a value", code="ZL-OPT-02")
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
