"""Data sets of ms-swift: `--dataset name:subset#count`, on ModelScope or as files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from launcher.job.importing import peer_data
from launcher.job.importing.draft import Context, Note, Words
from launcher.job.importing.peer_data import Sources

ELSEWHERE = {
    "AI-ModelScope/alpaca-gpt4-data-en": "vicgalle/alpaca-gpt4",
    "AI-ModelScope/alpaca-gpt4-data-zh": "llm-wizard/alpaca-gpt4-data-zh",
    "AI-ModelScope/LongAlpaca-12k": "Yukang/LongAlpaca-12k",
    "AI-ModelScope/function-calling-chatml": "Locutusque/function-calling-chatml",
    "AI-ModelScope/blossom-math-v2": "Azure99/blossom-math-v2",
    "AI-ModelScope/Magpie-Qwen2-Pro-200K-Chinese": "Magpie-Align/Magpie-Qwen2-Pro-200K-Chinese",
    "AI-ModelScope/Magpie-Qwen2-Pro-200K-English": "Magpie-Align/Magpie-Qwen2-Pro-200K-English",
    "AI-ModelScope/Magpie-Qwen2-Pro-300K-Filtered": "Magpie-Align/Magpie-Qwen2-Pro-300K-Filtered",
    "liucong/Chinese-DeepSeek-R1-Distill-data-110k-SFT": "Congliu/Chinese-DeepSeek-R1-Distill-data-110k-SFT",
    "lvjianjin/AdvertiseGen": "shibing624/AdvertiseGen",
    "swift/self-cognition": "modelscope/self-cognition",
}
"""Data sets of ModelScope that ms-swift itself finds on Hugging Face's hub by another name."""
COGNITION = ("swift/self-cognition", "modelscope/self-cognition")
"""ms-swift makes subsets of it: empty thoughts before the answers, and a mark behind the questions."""
SAME_NAME = ("AI-MO", "open-thoughts", "open-r1", "ServiceNow-AI", "sentence-transformers", "nvidia", "OpenGVLab")
"""Owners with the same names on both hubs."""
_NAME = re.compile(r"(?:(HF|MS|hf|ms)::)?([^#]+?)(?::([^:#/\\]+(?:/[^:#]+)?))?(?:#(\d+))?$")


def carry(words: Words, context: Context) -> None:
    """dataset, val_dataset, split_dataset_ratio, columns, and the names of self-cognition."""
    draft = words.draft
    of_hub = words.flag("use_hf") or context.environment.get("USE_HF", "").lower() in ("1", "true")
    for word, key in (("dataset", "data.train"), ("val_dataset", "data.eval")):
        sources = Sources(draft, word)
        value = words.take(word, [])
        for name in value if isinstance(value, list) else str(value).split():
            _add(sources, str(name), context, of_hub=of_hub)
        share = words.number("split_dataset_ratio") if key == "data.train" else None
        if share and not words.given("val_dataset"):
            sources.hold_out(share, "split_dataset_ratio")
        sources.finish(key)
    _columns(words)
    _names(words)
    words.unused("zlaunch tokenizes in the background and keeps it", "dataset_num_proc", "load_from_cache_file",
                 "lazy_tokenize", "download_mode", "shuffle_buffer_size", "packing_num_proc", "packing_length",
                 "data_shard")  # fmt: skip
    if not words.flag("dataset_shuffle", default=True):
        draft.set("data.order", "given", "dataset_shuffle")
    words.unused("train.seed also orders the records", "val_dataset_shuffle", "data_seed",
                 "train_dataloader_shuffle")  # fmt: skip
    if words.flag("streaming"):
        reason = "the whole data set is read and shuffled"
        draft.differs.append(Note("streaming", True, reason))
    words.lost("give the sources weights in data.train", "interleave_prob")
    words.unused("only with interleave_prob", "stopping_strategy")
    words.lost("name the files in data.train", "custom_dataset_info", "cached_dataset", "cached_val_dataset")
    if words.flag("strict"):
        draft.set("data.on_error", "stop", "strict")
    else:
        draft.set("data.on_error", "skip", "strict: false in ms-swift")


def _add(sources: Sources, text: str, context: Context, *, of_hub: bool) -> None:
    draft = sources.draft
    limit = int(text.rpartition("#")[2]) if re.search(r"#\d+$", text) else None
    if (found := context.find(text.partition("#")[0])) is not None:
        sources.add(str(found), limit)
        return
    match = _NAME.match(text)
    if match is None or not peer_data.is_hub_name(match[2]):
        sources.add(text.partition("#")[0], limit)
        return
    hub, name, subset, _ = match.groups()
    on_hf = (hub or ("HF" if of_hub else "MS")).upper() == "HF"
    elsewhere = name if on_hf or name.split("/")[0] in SAME_NAME else ELSEWHERE.get(name)
    if subset and "/" in subset:
        draft.lost.append(Note(sources.word, text, "several subsets: name each in data.train"))
        subset = subset.split("/")[0]
    if name in COGNITION and subset in ("empty_think", "qwen3"):
        if subset == "qwen3":
            draft.lost.append(Note(sources.word, text, "`/no_think` is not added to the questions"))
        reason = "model.thinking: an empty thought is part of the prompt here, without loss"
        draft.differs.append(Note(sources.word, text, reason))
        subset = None
    subset = subset if subset not in ("default", "all") else None
    sources.add(peer_data.hub(elsewhere, subset) if elsewhere else peer_data.modelscope(name, subset), limit)
    if elsewhere and elsewhere != name:
        draft.differs.append(Note(sources.word, name, f"as {elsewhere} on Hugging Face's hub"))
    if limit:
        draft.differs.append(Note(sources.word, text, f"the first {limit} records, not random ones"))


def _columns(words: Words) -> None:
    """`--columns '{"their": "ours"}'`, with ms-swift's names for ours."""
    value = words.take("columns")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, Mapping):
        return
    ours = {"query": "instruction", "response": "output", "prompt": "instruction", "system": "system",
            "messages": "messages", "history": "history", "tools": "tools"}  # fmt: skip
    found = {ours[named]: theirs for theirs, named in value.items() if named in ours and theirs != named}
    unknown = {theirs: named for theirs, named in value.items() if named not in ours}
    if unknown:
        words.draft.lost.append(Note("columns", unknown, "no columns of a conversation"))
    if found:
        words.draft.set("data.columns", {**words.draft.value("data.columns", {}), **found}, "columns")


def _names(words: Words) -> None:
    """model_name and model_author, which stand for {{NAME}} and {{AUTHOR}} in swift/self-cognition."""
    draft, found = words.draft, dict[str, Any]()
    used = "self-cognition" in str(words.tree.get("dataset"))
    for word, mark in (("model_name", "{{NAME}}"), ("model_author", "{{AUTHOR}}")):
        value: Any = words.take(word)
        named = [str(name) for name in (value if isinstance(value, list) else [value]) if name is not None]
        if not named:
            continue
        if not used:
            draft.unused.append(Note(word, value, "only for swift/self-cognition"))
            continue
        found[mark] = named[:2] if len(set(named)) > 1 else named[0]
    if found:
        draft.set("data.replace", found, "model_name, model_author")
