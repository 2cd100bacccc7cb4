"""Data sets of LLaMA-Factory: names in `dataset`, looked up in dataset_info.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.job.importing import peer_data
from launcher.job.importing.draft import Context, Note, Words, parsed_json
from launcher.job.importing.peer_data import Sources

INFO = "dataset_info.json"
MEDIA = ("images", "videos", "audios")


def carry(words: Words, context: Context) -> None:
    """dataset, eval_dataset, dataset_dir, max_samples, val_size, and the names of columns and roles."""
    draft = words.draft
    folder = words.take("dataset_dir", "data")
    entries, base = _entries(folder, context)
    limit = words.whole("max_samples")
    for word, key in (("dataset", "data.train"), ("eval_dataset", "data.eval")):
        sources = Sources(draft, word)
        for name in words.names(word):
            _add(sources, name, entries, base, folder, context)
        if key == "data.train" and (share := words.number("val_size")):
            sources.hold_out(share, "val_size")
        sources.finish(key)
        if key == "data.eval" and limit and sources.found:
            draft.set("eval.max_records", limit, "max_samples")
    if limit:
        draft.set("data.max_samples", limit, "max_samples")
    if words.text("mix_strategy", "concat") != "concat":
        draft.lost.append(Note("mix_strategy", words.tree["mix_strategy"], "give the sources weights in data.train"))
    words.lost("give the sources weights in data.train", "interleave_probs")
    words.lost("zlaunch reads files, not streams", "streaming")


def _entries(folder: Any, context: Context) -> tuple[Mapping[str, Any] | None, Path | None]:
    """(the entries of dataset_info.json, its folder); None: not found. A folder may be the mapping itself."""
    if isinstance(folder, Mapping):
        return folder, context.here
    place = context.find(str(folder)) if not str(folder).startswith("REMOTE:") else None
    file = None if place is None else place / INFO
    if file is None or not file.is_file():
        return None, None
    found = parsed_json(file.read_bytes(), str(file))
    return (found, file.parent) if isinstance(found, dict) else (None, None)


def _asks_modelscope(context: Context) -> bool:
    return context.environment.get("USE_MODELSCOPE_HUB", "").lower() in ("1", "true", "y")


def _add(
    sources: Sources, name: str, entries: Mapping[str, Any] | None, base: Path | None, folder: Any, context: Context
) -> None:
    """Add the data set of that name; a note where it cannot be had."""
    draft, word = sources.draft, sources.word
    if folder == "ONLINE":
        sources.add(peer_data.modelscope(name) if _asks_modelscope(context) else peer_data.hub(name))
        return
    if entries is None or base is None:
        reason = f"no {INFO} in {folder}: run this where LLaMA-Factory runs, or name the file in data.train"
        if str(folder).startswith("REMOTE:"):
            reason = f"its {INFO} is on the hub: download {str(folder)[7:]}, and set dataset_dir to the folder"
        draft.lost.append(Note(word, name, reason))
        sources.add(f"data/{name}.json")
        return
    entry = entries.get(name)
    if not isinstance(entry, Mapping):
        draft.refused.append(Note(word, name, f"not in {base / INFO}"))
        return
    if other := _other_data(entry):
        draft.refused.append(Note(word, name, other))
        return
    path = _path(entry, base, prefers_modelscope=_asks_modelscope(context))
    if path is None:
        reason = "only on OpenMind or a cloud store, or made by a script: save its records as a file"
        draft.lost.append(Note(word, name, reason))
        return
    sources.add(path, entry.get("num_samples"))
    if number := entry.get("num_samples"):
        draft.differs.append(Note(f"{word}: {name}: num_samples", number, "the first records, not random ones"))
    if entry.get("folder"):
        draft.lost.append(Note(f"{word}: {name}: folder", entry["folder"], "name its files in data.train"))
    sources.rename(name, *_names(entry))


def _other_data(entry: Mapping[str, Any]) -> str | None:
    columns = entry.get("columns") or {}
    if entry.get("ranking"):
        return "preference data; zlaunch trains on one answer per question"
    if columns.get("kto_tag"):
        return "KTO data; zlaunch trains on one answer per question"
    media = [kind for kind in MEDIA if columns.get(kind)]
    return f"{media[0]}: zlaunch trains on text only" if media else None


def _path(entry: Mapping[str, Any], base: Path, *, prefers_modelscope: bool) -> str | None:
    there, name = entry.get("ms_hub_url"), entry.get("hf_hub_url")
    if there and (prefers_modelscope or not name):
        return peer_data.modelscope(str(there), entry.get("subset"), entry.get("split"))
    if name:
        return peer_data.hub(str(name), entry.get("subset"), entry.get("split"))
    if "om_hub_url" in entry or not entry.get("file_name"):
        return None
    return str(base / str(entry["file_name"]))


def _names(entry: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    if entry.get("formatting", "alpaca") == "alpaca":
        names = {"instruction": "prompt", "input": "query", "output": "response", "system": "system",
                 "history": "history"}  # fmt: skip
        return peer_data.pair_names({ours: columns.get(theirs) for ours, theirs in names.items()}), {}
    roles = {"user": "user_tag", "assistant": "assistant_tag", "system": "system_tag", "tool": "observation_tag",
             "function_call": "function_tag"}  # fmt: skip
    found, renamed = peer_data.turn_names(
        columns.get("messages", "conversations"),
        tags.get("role_tag"),
        tags.get("content_tag"),
        {ours: tags.get(theirs) for ours, theirs in roles.items()},
    )
    found |= peer_data.pair_names({"system": columns.get("system"), "tools": columns.get("tools")})
    return found, renamed
