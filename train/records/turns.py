"""Read lists of turns in the dialects of the field: OpenAI, ShareGPT, ChatGLM3, question-answer pairs, tool calls."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from train.records.conversation import Details, Messages, RecordOptions, Unreadable
from train.records.suggestion import suggest_columns

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_call": "function_call",
    "tool_call": "function_call",
}
"""Role of the data -> role of a message. The value of a `function_call` turn is the JSON of an assistant's call."""
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value")
QUESTION_KEYS = ("human", "user", "instruction", "prompt", "query", "question", "input")
ANSWER_KEYS = ("assistant", "gpt", "bot", "output", "response", "answer", "completion", "target")
LOSS_KEYS = ("weight", "loss", "train", "training", "loss_weight")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
SHOWN_KEYS = 12
CALL_PARTS = ("tool_call", "tool_calls", "function_call")
MEDIA_KEYS = ("images", "image", "image_path", "videos", "video", "audios", "audio")
_TURN_KEYS = frozenset({*ROLE_KEYS, *CONTENT_KEYS, *LOSS_KEYS, *REASONING_KEYS, "tool_calls", "function_call", "label"})


@functools.lru_cache(maxsize=8)
def role_names(options: RecordOptions) -> Mapping[str, str]:
    return {**ROLES, **dict(options.roles)}


@dataclass
class TurnReader:
    """Collects the turns of one record."""

    options: RecordOptions
    messages: Messages = field(default_factory=list)
    fields: dict[int, dict[str, Any]] = field(default_factory=dict)
    untrained: set[int] = field(default_factory=set)
    tools: tuple[Mapping[str, Any], ...] = ()
    ignored: dict[str, None] = field(default_factory=dict)
    """Keys that nothing reads, each once, in order."""

    def details(self) -> Details | None:
        if not (self.tools or self.fields or self.untrained):
            return None
        return Details(self.tools, self.fields, frozenset(self.untrained))

    def add(self, role: str, text: str, **fields: Any) -> None:
        if fields:
            self.fields[len(self.messages)] = fields
        self.messages.append((role, text))

    def read(self, value: Any, where: str) -> None:
        """Add the turns of a list: objects with a role each, or pairs of a question and an answer.

        `data.columns` also names keys of turns, as in {role: speaker, content: text}.
        """
        columns = dict(self.options.columns)
        for number, turn in enumerate(as_list(value, where), 1):
            place = f"{where}: turn {number}"
            if isinstance(turn, Mapping):
                self._turn(renamed(turn, columns)[0] if columns and not _is_turn(turn) else turn, place, where)
            elif isinstance(turn, (list, tuple)) and len(turn) == 2:
                self.add("user", as_text(turn[0], f"{place}: the question"))
                self.add("assistant", as_text(turn[1], f"{place}: the answer"))
            else:
                raise Unreadable(f"{place} is neither an object nor a [question, answer] pair")

    def _turn(self, turn: Mapping[str, Any], place: str, where: str) -> None:
        key, text_key = ("role", "content") if "role" in turn else ("from", "value")
        role, content = turn.get(key), turn.get(text_key)
        if len(turn) == 2 and isinstance(role, str) and type(content) is str:  # most turns: no time is lost on these
            name = role_names(self.options).get(role)
            if name in ("user", "assistant", "system"):
                self.messages.append((name, unix(content)))
                return
        if role is None and "role" not in turn and "from" not in turn:
            self._pair(turn, place, where)
            return
        if not isinstance(role, str):
            raise Unreadable(f"{place} has no {key!r}")
        name = role_names(self.options).get(role)
        if name is None:
            raise Unreadable(_unknown_role(role, place, self.options))
        before = len(self.messages)
        known = _TURN_KEYS
        if name == "tool":
            known = known | self._tool_turn(turn, place)
        elif name == "function_call":
            self._call(tool_calls(_content_of(turn), f"{place}: function_call"), trained(turn, place))
        else:
            self._message(name, turn, place)
        self._loss(turn, place, before)
        self.ignore((item for item in turn if item not in known), turn, f"{where}[].")

    def _message(self, role: str, turn: Mapping[str, Any], place: str) -> None:
        content = _content_of(turn)
        fields: dict[str, Any] = {}
        if role == "assistant":
            calls = turn.get("tool_calls") or turn.get("function_call")
            if calls:
                fields["tool_calls"] = tool_calls(calls, f"{place}: tool_calls")
            thought = next((turn[key] for key in REASONING_KEYS if not is_absent(turn.get(key))), None)
            if isinstance(content, list):
                content, thoughts, called = _split_parts(content, f"{place}: tool_calls")
                thought = thought or thoughts
                if called:
                    fields["tool_calls"] = [*fields.get("tool_calls", ()), *called]
            if thought:
                fields["reasoning_content"] = as_text(thought, f"{place}: the reasoning")
        if content is None and "tool_calls" in fields:
            content = ""
        if content is None:
            key = next((key for key in CONTENT_KEYS if key in turn), "content" if "role" in turn else "value")
            raise Unreadable(f"{place}: the key {key!r} is missing{describe_keys(turn) if key not in turn else ''}")
        self.add(role, as_text(content, f"{place}: the content"), **fields)

    def _call(self, calls: list[dict[str, Any]], is_trained: bool) -> None:
        """A call as a turn of its own belongs to the answer before it, if there is one."""
        last = len(self.messages) - 1
        follows = last >= 0 and self.messages[last][0] == "assistant" and is_trained and last not in self.untrained
        if follows and "tool_calls" not in self.fields.get(last, ()):
            self.fields.setdefault(last, {})["tool_calls"] = calls
        else:
            self.add("assistant", "", tool_calls=calls)

    def _tool_turn(self, turn: Mapping[str, Any], place: str) -> frozenset[str]:
        """The result of a tool. ChatGLM3 writes the call and its result as one turn. Returns the keys it read."""
        if "observation" in turn and "name" in turn:
            call = {"name": turn["name"], "arguments": turn.get("parameters") or {}}
            self._call(tool_calls(call, place), trained(turn, place))
            self.add("tool", _json_or_text(turn["observation"]), name=turn["name"])
            return frozenset({"name", "parameters", "observation"})
        content = _content_of(turn)
        if content is None:
            raise Unreadable(f"{place}: the result of the tool is missing")
        content = _json_or_text(content) if isinstance(content, Mapping) else as_text(content, f"{place}: the content")
        named = {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
        self.add("tool", content, **named)
        return frozenset({"name", "tool_call_id"})

    def _pair(self, turn: Mapping[str, Any], place: str, where: str) -> None:
        question = next((key for key in QUESTION_KEYS if key in turn), None)
        answer = next((key for key in ANSWER_KEYS if key in turn), None)
        if question is None or answer is None:
            raise Unreadable(f"{place} has no 'role' and no 'from'{describe_keys(turn)}")
        if not is_absent(turn.get("system")):  # xtuner's first turn
            self.add("system", as_text(turn["system"], f"{place}: 'system'"))
        self.add("user", as_text(turn[question], f"{place}: {question!r}"))
        before = len(self.messages)
        self.add("assistant", as_text(turn[answer], f"{place}: {answer!r}"))
        self._loss(turn, place, before)
        known = {question, answer, "system", *LOSS_KEYS}
        self.ignore((key for key in turn if key not in known), turn, f"{where}[].")

    def _loss(self, turn: Mapping[str, Any], place: str, before: int) -> None:
        """Mark the turns from `before` on as untrained if a flag of the turn says so."""
        if not trained(turn, place, (*LOSS_KEYS, "label")):
            self.untrained.update(range(before, len(self.messages)))

    def ignore(self, keys: Iterable[str], value: Mapping[str, Any], prefix: str = "") -> None:
        """Note keys that nothing reads, unless they are empty."""
        for key in keys:
            if key in MEDIA_KEYS and not is_absent(value[key]):
                raise Unreadable(f"{prefix}{key}: this is {key} data, and only text can be trained on")
            if not is_absent(value[key]):
                self.ignored[f"{prefix}{key}"] = None


def _is_turn(turn: Mapping[str, Any]) -> bool:
    return any(key in turn for key in ROLE_KEYS) and any(key in turn for key in CONTENT_KEYS)


def trained(value: Mapping[str, Any], place: str, keys: Iterable[str] = LOSS_KEYS) -> bool:
    """Whether the flags of a turn or record leave its answers in the loss. A null means that they are trained."""
    for key in keys:
        flag = value.get(key)
        if isinstance(flag, str) and flag.lower() in _FLAG_WORDS:  # a cell of a table
            flag = _FLAG_WORDS[flag.lower()]
        if flag is None or not isinstance(flag, (bool, int, float)) or flag == 1:
            continue
        if flag != 0:
            raise Unreadable(f"{place}: {key} is {flag}, but an answer is trained (1) or not (0), without a weight")
        return False
    return True


_FLAG_WORDS = {"true": True, "false": False, "0": 0, "1": 1, "0.0": 0, "1.0": 1}


def _content_of(turn: Mapping[str, Any]) -> Any:
    return next((turn[key] for key in CONTENT_KEYS if turn.get(key) is not None), None)


def _unknown_role(role: str, place: str, options: RecordOptions) -> str:
    known = ", ".join(role_names(options))
    return f"{place} has the unknown role {role!r}; known: {known}; data.roles names others, as in {{user: {role}}}"


def renamed(value: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """(the object with our keys, {our key: key of the data}). A key whose name is taken keeps its value aside.

    Several keys of the data for one of ours are joined as lines, in the order of `columns`.
    """
    taken = {columns[key] for key in value if key in columns}
    found: dict[str, Any] = {}
    shown: dict[str, str] = {}
    for key in (*(key for key in columns if key in value), *(key for key in value if key not in columns)):
        name = columns.get(key) or (f"{key} (replaced by data.columns)" if key in taken else key)
        parts = [item for item in (found.get(name), value[key]) if not is_absent(item)]
        found[name] = "\n".join(as_text(part, repr(key)) for part in parts) if len(parts) > 1 else (parts or [None])[0]
        shown.setdefault(name, key)
    return found, shown


def describe_keys(value: Mapping[str, Any], shown: Mapping[str, str] | None = None) -> str:
    """The keys of an object that could not be read, by the data's names (`shown`), and data.columns that could fit."""
    found = {(shown or {}).get(key, key): item for key, item in value.items()}
    names = [str(name) if len(str(name)) <= 40 else f"{str(name)[:37]}..." for name in found]
    more = f" and {len(names) - SHOWN_KEYS} more" if len(names) > SHOWN_KEYS else ""
    hint = suggest_columns(found)
    return f" (found: {', '.join(names[:SHOWN_KEYS])}{more})" + (f"; data.columns could be {hint}" if hint else "")


def as_list(value: Any, where: str) -> list[Any]:
    """A list, or the JSON text of one, as tables hold it."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise Unreadable(f"{where} is a text but not a JSON list ({error})") from None
    if not isinstance(value, list):
        raise Unreadable(f"{where} must be a list, got {type(value).__name__}")
    return value


def as_text(value: Any, where: str) -> str:
    """Text, a number as its JSON text, or the joined text of content parts."""
    if isinstance(value, str):
        return unix(value)
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, list):
        return "".join(_part(part, where) for part in value)
    raise Unreadable(f"{where} must be a text, got {type(value).__name__}")


def unix(text: str) -> str:
    return text.replace("\r\n", "\n") if "\r" in text else text


def is_absent(value: Any) -> bool:
    """None, NaN (an empty cell of pandas), and empty texts, lists and objects."""
    return value is None or value in ("", [], {}, ()) or (isinstance(value, float) and math.isnan(value))


def _part(part: Any, where: str) -> str:
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    text = _text_of(part) if kind in ("text", "input_text", "output_text") else None
    if isinstance(text, str):
        return unix(text)
    if isinstance(kind, str) and any(word in kind for word in ("image", "audio", "video", "file")):
        raise Unreadable(f"{where} holds a part of type {kind!r}: only text can be trained on")
    raise Unreadable(f"{where} holds a part that is not text")


def _text_of(part: Mapping[str, Any]) -> Any:
    """OpenAI writes a part's text under `text`, LLaMA-Factory under `value`."""
    return next((part[key] for key in ("text", "value", "content", "thinking", "reasoning") if key in part), None)


def _split_parts(parts: list[Any], where: str) -> tuple[list[Any], str, list[dict[str, Any]]]:
    """(other parts, thoughts, tool calls) of a content in parts."""
    others, thoughts, calls = [], [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in REASONING_KEYS:
            thoughts.append(as_text(_text_of(part), where))
        elif kind in CALL_PARTS:
            calls += tool_calls(_text_of(part), where)
        else:
            others.append(part)
    return others, "".join(thoughts), calls


def _json_or_text(value: Any) -> str:
    return unix(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def as_tools(value: Any, where: str = "tools") -> tuple[Mapping[str, Any], ...]:
    """Tool declarations, also as JSON text or without OpenAI's wrapper."""
    return tuple(_tool(tool, f"{where}: tool {number}") for number, tool in enumerate(as_list(value, where), 1))


def _tool(tool: Any, place: str) -> Mapping[str, Any]:
    if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping):
        return tool
    if isinstance(tool, Mapping) and isinstance(tool.get("name"), str):
        return {"type": "function", "function": tool}
    raise Unreadable(f"{place} is not a declaration with a name")


def tool_calls(value: Any, place: str) -> list[dict[str, Any]]:
    """Calls in OpenAI's form with arguments as objects, which is what chat templates read."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise Unreadable(f"{place} is not JSON ({error})") from None
    return [_tool_call(call, place) for call in (value if isinstance(value, list) else [value])]


def _tool_call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Unreadable(f"{place}: a call has no name")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str) and arguments:
        try:
            arguments = msgspec.json.decode(arguments)
        except msgspec.DecodeError as error:
            raise Unreadable(f"{place}: the arguments of {function['name']} are not JSON ({error})") from None
    if not isinstance(arguments or {}, Mapping):
        raise Unreadable(f"{place}: the arguments of {function['name']} are not an object")
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}
    return {**({"id": call["id"]} if isinstance(call.get("id"), str) else {}), **made}
