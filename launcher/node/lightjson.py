"""JSON by the two parts in C of the module json, whose import costs a host as much as starting the interpreter.

The agent and the far end of an SSH session read and write with it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Grammar:
    """What json.JSONDecoder tells its scanner."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


def loads(text: str) -> Any:
    """json.loads. Raises ValueError."""
    text = text.strip()
    try:
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    except (StopIteration, SystemError):  # the scanner's ways to say no while json.decoder is not loaded
        pass
    import json

    return json.loads(text)  # says what is wrong with it


def dumps(value: Any, between: str = ", ") -> str:
    """json.dumps; `between` stands between the items of a list or an object."""
    return "".join(_make_encoder({}, _refuse, _quote, None, ": ", between, False, False, True)(value, 0))


def _refuse(value: Any) -> Any:
    raise TypeError("%r cannot be written as JSON" % (value,))


try:
    from _json import encode_basestring_ascii as _quote
    from _json import make_encoder as _make_encoder
    from _json import make_scanner as _make_scanner

    _scan = _make_scanner(_Grammar)  # type: ignore[arg-type] # it asks for these attributes only
    if loads(dumps([{"a": 0.5}, None])) != [{"a": 0.5}, None]:
        raise ImportError
except (ImportError, TypeError, AttributeError, ValueError):  # another Python's parts are put together otherwise
    from json import loads  # type: ignore[assignment]

    def dumps(value: Any, between: str = ", ") -> str:
        import json

        return json.dumps(value, separators=(between, ": "))
