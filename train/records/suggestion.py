"""Guess which keys of an unknown format hold the question and the answer, for the advice in a refusal. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WORDS = {
    "system": ("system", "系统", "角色设定"),
    "output": (
        *("output", "answer", "response", "reply", "completion", "target", "assistant", "bot", "chosen", "solution"),
        *("答案", "回答", "答复", "回复", "输出", "应答", "答", "译文", "摘要", "結果", "结果"),
    ),
    "input": ("input", "context", "passage", "背景", "上下文", "材料", "输入"),
    "instruction": (
        *("instruction", "question", "query", "prompt", "problem", "ask", "user", "human", "source", "title"),
        *("问题", "提问", "指令", "问", "題", "题目", "原文", "标题", "输入"),
    ),
    "messages": ("messages", "conversation", "dialog", "turns", "chat", "对话", "聊天"),
}
"""Our key -> words that its counterpart may contain, in any case; the order of the keys decides between them."""
_SHORT = {"q": "instruction", "a": "output"}


_TURN_WORDS = {
    "role": ("role", "speaker", "sender", "author", "from", "角色", "说话人"),
    "content": ("content", "text", "value", "message", "utterance", "内容", "文本"),
}


def _is_like(ours: str, key: str, item: Any) -> bool:
    named = any(word in key for word in _WORDS[ours]) or _SHORT.get(key) == ours
    if key.endswith(("id", "type", "index", "score", "time")):
        return False
    if ours == "messages":
        if not isinstance(item, list) or not item or not isinstance(item[0], (list, Mapping)):
            return False
        return named or (len(item) > 1 and not {"role", "from"}.isdisjoint(item[0]))
    return named and not isinstance(item, (list, Mapping))


def _turn_columns(turn: Mapping[str, Any]) -> dict[str, str]:
    """The role and the content of a turn with other keys."""
    found: dict[str, str] = {}
    for ours, words in _TURN_WORDS.items():
        like = (str(key) for key, item in turn.items() if isinstance(item, str) and str(key) not in found.values())
        key = next((key for key in like if any(word in key.lower() for word in words)), None)
        if key is not None:
            found[ours] = key
    return found if len(found) == 2 else {}


def _written(found: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{ours}: {theirs}" for ours, theirs in found.items()) + "}" if found else ""


def suggest_columns(value: Mapping[str, Any]) -> str:
    """A value for data.columns as in a job file; empty if the keys say nothing."""
    like: dict[str, list[str]] = {}
    for ours in ("messages", "output", "system", "instruction", "input"):
        used = {theirs for names in like.values() for theirs in names}
        names = [str(key) for key, item in value.items() if key not in used and _is_like(ours, str(key).lower(), item)]
        # Several keys may be parts of one question; of the others, the first is the most likely.
        like[ours] = names if ours in ("instruction", "input") else names[:1]
    if like["messages"]:
        (key,) = like["messages"]
        first = value[key][0]
        inner = _turn_columns(first) if isinstance(first, Mapping) and {"role", "from"}.isdisjoint(first) else {}
        return _written({"messages": key, **inner})
    if not like["instruction"] and (turn := _turn_columns(value)):
        return _written(turn)
    return _written(_pair_columns(value, like))


def _pair_columns(value: Mapping[str, Any], like: Mapping[str, list[str]]) -> dict[str, str]:
    """Names for a question and an answer, and what belongs to them; empty if one of the two is not found."""
    question = [str(key) for key in value if str(key) in (*like["instruction"], *like["input"])]
    if len(like["instruction"]) == 1 and len(like["input"]) <= 1:
        question = [*like["instruction"], *like["input"]]
        found = dict(zip(("instruction", "input"), question, strict=False))
    else:
        found = {"instruction": question[0] if len(question) == 1 else f"[{', '.join(question)}]"} if question else {}
    found |= {ours: like[ours][0] for ours in ("output", "system") if like[ours]}
    if not {"instruction", "output"} <= found.keys():
        texts = [str(key) for key, item in value.items() if isinstance(item, str)]
        if len(texts) != 2 or len(value) != 2:
            return {}
        rest = sorted({"instruction", "output"} - found.keys())
        found |= dict(zip(rest, (key for key in texts if key not in found.values()), strict=False))
    return found
