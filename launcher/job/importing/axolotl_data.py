"""Data sets of axolotl: `datasets: - path: type:`, chat templates, and the Alpaca prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher.job.importing import peer_data
from launcher.job.importing.draft import Context, Note, Setting, Words, is_off
from launcher.job.importing.peer_data import Sources

TEMPLATES = {
    "llama3": "llama3", "chatml": "chatml", "gemma": "gemma", "phi_3": "phi3", "alpaca": "alpaca",
    "mistral_v1": "mistral", "mistral_v2v3": "mistral", "inst": "mistral",
}  # fmt: skip
"""Chat templates that zlaunch has by a name; for others the model's own is used."""
ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
BUILDERS = ("json", "csv", "parquet", "arrow")
"""Paths that name a kind of file; the files are in data_files."""


def carry(words: Words, context: Context) -> None:
    """datasets, test_datasets, val_set_size and the chat template."""
    draft = words.draft
    kinds: set[str] = set()
    for word, key in (("datasets", "data.train"), ("test_datasets", "data.eval")):
        sources = Sources(draft, word)
        listed = words.take(word, [])
        for entry in listed if isinstance(listed, list) else [listed]:
            if isinstance(entry, Mapping):
                kinds.add(_add(sources, entry, context))
        if key == "data.train" and (share := words.number("val_set_size")) and not words.given("test_datasets"):
            sources.hold_out(share, "val_set_size")
        sources.finish(key)
    words.unused("there are test_datasets", "val_set_size")
    _template(words, kinds - {""}, context)
    if words.flag("train_on_inputs"):
        draft.set("data.train_on_prompt", True, "train_on_inputs")
    words.refuse("pre-training on plain text; zlaunch does supervised fine-tuning", "pretraining_dataset")
    words.unused("zlaunch tokenizes in the background, shuffles, and reports duplicates", "dataset_prepared_path",
                 "shuffle_merged_datasets", "shuffle_before_merging_datasets", "dataset_processes", "dataset_num_proc",
                 "dataset_keep_in_memory", "dataset_exact_deduplication", "skip_prepare_dataset", "dataset_shard_num",
                 "push_dataset_to_hub", "preprocess_iterable", "streaming_multipack_buffer_size",
                 "remove_unused_columns", "dataloader_num_workers", "dataloader_pin_memory",
                 "dataloader_prefetch_factor", "timeout_preprocess", "memory_preprocess", "total_num_tokens",
                 "min_sample_len", "shuffle_buffer")  # fmt: skip
    words.lost("zlaunch reads files, not streams", "streaming")
    if words.flag("curriculum_sampling"):
        draft.set("data.order", "given", "curriculum_sampling")


def _add(sources: Sources, entry: Mapping[str, Any], context: Context) -> str:
    """Add a data set; returns what its type makes of the records: `alpaca`, `chat`, or nothing."""
    draft = sources.draft
    words = Words(entry, draft, f"{sources.word}: ")
    path = words.text("path", "") or ""
    kind = words.take("type", "chat_template")
    style = _style(words, kind)
    if style:
        _place(sources, words, path, context)
        sources.rename(path, *_names(words, kind))
    words.lost("all records of the data set are used", "shards", "shards_idx", "preprocess_shards")
    if (trained := words.names("roles_to_train")) and set(trained) != {"assistant", "gpt"} & set(trained):
        draft.lost.append(Note(f"{words.prefix}roles_to_train", list(trained), "answers of the assistant carry loss"))
    if words.text("train_on_eos", "turn") not in ("turn", "true"):
        draft.differs.append(
            Note(f"{words.prefix}train_on_eos", entry["train_on_eos"], "the end of an answer is learned")
        )
    words.lost("system messages of records are kept", "drop_system_message")
    words.lost("whole answers carry loss", "message_field_training", "message_field_training_detail")
    words.lost("the prompt is made by the chat template", "input_transform", "input_format", "conversation")
    words.unused("read as the chat template shows it", "field_thinking", "template_thinking_key", "chat_template",
                 "chat_template_jinja", "split_thinking", "eot_tokens", "train_on_eot")  # fmt: skip
    words.unused("revisions of data sets are those of the cache", "trust_remote_code")
    words.lost("the newest revision is used", "revision")
    words.finish()
    return style


def _style(words: Words, kind: Any) -> str:
    """What the type makes of a record; a refusal where zlaunch cannot train on it."""
    draft = words.draft
    if isinstance(kind, Mapping):
        for word in ("format", "no_input_format", "system_format", "system_prompt"):
            if not is_off(kind.get(word)):
                reason = "write the prompt as Jinja into data.chat_template"
                draft.lost.append(Note(f"{words.prefix}type.{word}", kind[word], reason))
        return "alpaca"
    name = str(kind)
    if name in ("chat_template", "chat_template.default", "sharegpt", "sharegpt.load_role", "oasst", "messages"):
        return "chat"
    if name in ("alpaca", "alpaca:", "gpteacher", "alpaca.load_open_orca", "alpaca_w_system"):
        return "alpaca"
    if name == "alpaca:chat":
        draft.differs.append(Note(f"{words.prefix}type", name, "the prompt is that of Vicuna: USER: and ASSISTANT:"))
        return "vicuna"
    if name.startswith("completion") or name in ("pretrain", "raw_samples"):
        draft.refused.append(Note(f"{words.prefix}type", name, "plain text; zlaunch trains on questions and answers"))
    elif re.search(r"dpo|kto|orpo|bradley|reward|argilla|ultra|chosen|stepwise|intel", name):
        draft.refused.append(Note(f"{words.prefix}type", name, "preference data; zlaunch trains on one answer"))
    else:
        draft.lost.append(
            Note(f"{words.prefix}type", name, "a prompt style that zlaunch lacks: set data.chat_template")
        )
        return "alpaca"
    return ""


def _place(sources: Sources, words: Words, path: str, context: Context) -> None:
    """The file, directory or data set of the hub."""
    files = words.names("data_files")
    split, config = words.text("split"), words.text("name")
    words.unused("told by the suffix of the file", "ds_type")
    if path in BUILDERS and files:
        for file in files:
            sources.add(str(context.find(file) or file))
    elif context.find(path) is not None or re.search(r"\.(jsonl?|csv|tsv|parquet|arrow|xlsx)$", path):
        folder = context.find(path)
        if files and folder is not None and folder.is_dir():
            for file in files:
                sources.add(str(folder / file))
        else:
            sources.add(str(folder or path))
    elif re.match(r"\w+://", path):
        sources.draft.lost.append(Note(f"{words.prefix}path", path, "download it, and name the files in data.train"))
    else:
        for file in files:
            sources.add(f"hub:{path}/{file}")
        if not files:
            sources.add(peer_data.hub(path, config, split))


def _names(words: Words, kind: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    if isinstance(kind, Mapping):
        names = {"instruction": "field_instruction", "input": "field_input", "output": "field_output",
                 "system": "field_system"}  # fmt: skip
        return peer_data.pair_names({ours: kind.get(theirs) for ours, theirs in names.items()}), {}
    mapping = words.mapping("message_property_mappings")
    role = words.text("message_field_role") or mapping.get("role")
    content = words.text("message_field_content") or mapping.get("content")
    for name in mapping:
        if name not in ("role", "content", "reasoning_content", "tool_calls", "name", "tool_call_id"):
            reason = "turns have role, content, reasoning and tool calls"
            words.draft.lost.append(Note(f"{words.prefix}message_property_mappings", {name: mapping[name]}, reason))
    roles = words.mapping("roles")
    columns, renamed = peer_data.turn_names(words.text("field_messages"), role, content, roles)
    columns |= peer_data.pair_names({"tools": words.text("field_tools"), "system": words.text("field_system")})
    return columns, renamed


def _template(words: Words, kinds: set[str], context: Context) -> None:
    draft = words.draft
    name, jinja = words.text("chat_template"), words.text("chat_template_jinja")
    words.carry("data.system", "default_system_message", words.text)
    if len(kinds) > 1:
        reason = f"types that need {' and '.join(sorted(kinds))} prompts in one job: make the files alike"
        draft.lost.append(Note("datasets", None, reason))
    elif kinds == {"alpaca"}:
        draft.set("data.chat_template", "alpaca", "datasets: type")
        draft.settings.setdefault("data.system", Setting(ALPACA_SYSTEM, "axolotl's Alpaca prompt begins so"))
        draft.differs.append(Note("type", "alpaca", "an input stands below its instruction, without ### Input:"))
        words.unused("records of this type have a prompt of their own", "chat_template", "chat_template_jinja")
    elif kinds == {"vicuna"}:
        draft.set("data.chat_template", "vicuna", "datasets: type")
    elif jinja and (name in (None, "jinja")):
        place = context.find(jinja) if len(jinja) < 200 and "{" not in jinja else None
        draft.set("data.chat_template", str(place or jinja), "chat_template_jinja")
    elif name in TEMPLATES:
        draft.set("data.chat_template", TEMPLATES[name], "chat_template")
    elif name not in (None, "tokenizer_default"):
        draft.differs.append(Note("chat_template", name, "the chat template of the model itself"))
    words.unused("the end of a turn is that of the chat template", "eot_tokens", "default_system_message")
