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


def _is_like(ours: str, key: str, item: Any) -> bool:
    named = any(word in key for word in _WORDS[ours]) or _SHORT.get(key) == ours
    return named and isinstance(item, list) == (ours == "messages")


def suggest_columns(value: Mapping[str, Any]) -> str:
    """A value for data.columns as in a job file; empty if the keys say nothing."""
    found: dict[str, str] = {}
    for ours in ("messages", "output", "system", "instruction", "input"):
        for key, item in value.items():
            if ours not in found and key not in found.values() and _is_like(ours, str(key).lower(), item):
                found[ours] = str(key)
    if "messages" in found:
        return f"{{messages: {found['messages']}}}"
    if "instruction" not in found and "input" in found:
        found["instruction"] = found.pop("input")
    if not {"instruction", "output"} <= found.keys():
        texts = [str(key) for key, item in value.items() if isinstance(item, str)]
        if len(texts) != 2 or len(value) != 2:
            return ""
        rest = {"instruction", "output"} - found.keys()
        free = [key for key in texts if key not in found.values()]
        found |= dict(zip(sorted(rest), free, strict=False))
    order = ("instruction", "input", "output", "system")
    return "{" + ", ".join(f"{ours}: {found[ours]}" for ours in order if ours in found) + "}"
