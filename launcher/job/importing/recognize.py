"""Which program a file or a command belongs to, and what it says as a draft."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.errors import SpecError
from launcher.job import yamlfile
from launcher.job.explain import type_name
from launcher.job.importing import axolotl, command_words, deepspeed_words, llamafactory, swift, trainer_arguments, trl
from launcher.job.importing.draft import Context, Draft, parsed_json

Reader = Callable[[Mapping[str, Any], Context], Draft]
KNOWN = "LLaMA-Factory, axolotl, ms-swift, TRL, transformers' TrainingArguments, DeepSpeed"


def read(source: str, gpus: int | None = None, here: Path | None = None) -> Draft:
    """The draft of a file (YAML, JSON, a shell script) or of a command line. Raises SpecError.

    `gpus`: how many the run has, where the configuration does not say.
    """
    context = Context(here=here or Path.cwd(), gpus=gpus)
    file = context.here / Path(source).expanduser()
    if len(source) < 1024 and "\n" not in source and file.is_file():
        context = replace(context, origin=file)
        draft = _of_file(file, context)
        name = re.sub(r"[^\w.-]+", "-", file.stem).strip("-.")
    elif len(source.split()) < 2:
        raise SpecError(
            f"no such file: {source}", hint="name a file, or give a whole command in quotes", code="ZL-JOB-06"
        )
    else:
        draft, name = _of_script(source, "the command", context), ""
    if name and "name" not in draft.settings:
        draft.set("name", name, "the name of the imported file")
    _settle_paths(draft, context)
    return draft


def _settle_paths(draft: Draft, context: Context) -> None:
    """Other programs read paths from the working directory, and a job file from its own."""
    for key in ("model.path", "lora.adapter"):
        path = draft.value(key)
        if not isinstance(path, str):
            continue
        found = context.find(path)
        if found is not None or path.startswith((".", "~")):
            place = found or context.here / Path(path).expanduser()
            draft.settings[key] = draft.settings[key]._replace(value=str(place.resolve()))


def _of_file(file: Path, context: Context) -> Draft:
    suffix = file.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return _of_tree(yamlfile.load(file), str(file), context)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {file}: {error}", code="ZL-JOB-06") from None
    if suffix == ".json" or text.lstrip().startswith("{"):
        return _of_tree(parsed_json(text, str(file)), str(file), context)
    return _of_script(text, str(file), context)


def _of_tree(tree: Any, where: str, context: Context) -> Draft:
    if not isinstance(tree, dict):
        raise SpecError(f"{where}: expected a mapping of settings, got {type_name(tree)}", code="ZL-JOB-06")
    reader = reader_of(tree)
    if reader is None:
        raise SpecError(
            f"{where}: no configuration of a program that zlaunch knows",
            hint=f"known: {KNOWN}; a job of zlaunch needs no import",
            code="ZL-JOB-06",
        )
    return reader(tree, context)


def reader_of(tree: Mapping[str, Any]) -> Reader | None:
    """By words that only one program has."""
    if {"zero_optimization", "train_micro_batch_size_per_gpu", "train_batch_size"} & set(tree):
        return deepspeed_words.read
    if "base_model" in tree and ("datasets" in tree or "adapter" in tree):
        return axolotl.read
    if any(word in tree for word in llamafactory.V1_MARKS):
        return llamafactory.read
    if "model_name_or_path" in tree and any(word in tree for word in llamafactory.MARKS):
        return llamafactory.read
    if "model" in tree and any(word in tree for word in swift.MARKS):
        return swift.read
    if "model_name_or_path" in tree and any(word in tree for word in trl.MARKS):
        return trl.read
    return trl.read_arguments if trainer_arguments.is_meant(tree) else None


def _of_script(text: str, where: str, context: Context) -> Draft:
    """The first training command of a script, or of a command line."""
    found = command_words.training_commands(text)
    for command in found:
        context = replace(context, environment=command.environment, gpus=context.gpus or command.gpus)
        reader = _COMMANDS[command.program]
        draft = reader(command.tree(_file_tree(command, context)), context)
        draft.lost += command.lost
        return draft
    raise SpecError(
        f"{where}: no training command that zlaunch knows",
        hint=f"known: {', '.join(command_words.EXAMPLES)}",
        code="ZL-JOB-06",
    )


def _file_tree(command: command_words.Command, context: Context) -> dict[str, Any]:
    """What the configuration file of a command says."""
    if command.file is None:
        return {}
    place = context.find(command.file)
    if place is None:
        raise SpecError(f"the command reads {command.file}, and there is no such file here", code="ZL-JOB-06")
    loaded = yamlfile.load(place) if place.suffix != ".json" else parsed_json(place.read_bytes(), str(place))
    return loaded if isinstance(loaded, dict) else {}


_COMMANDS: dict[str, Reader] = {
    "llamafactory": llamafactory.read,
    "axolotl": axolotl.read,
    "swift": swift.read,
    "trl": trl.read,
}
