"""Character encodings of data files: what is accepted, and how to mend the rest."""

from __future__ import annotations

import json
from typing import Any

UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


def conversion_advice(encoding: str) -> str:
    return f"save the file as UTF-8 (iconv -f {encoding} -t UTF-8 OLD > NEW)"


def describe_encoding_error(error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return f"not UTF-8 (byte 0x{byte:02x}: {error.reason}); {conversion_advice('GB18030')}"


def lone_surrogate(value: Any) -> str | None:
    """Why a decoded JSON value is not valid text, or None.

    JSON can name half of a surrogate pair (`"\\ud83d"`, an emoji cut in two), which no tokenizer accepts.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        return f"holds half of a character (\\u{half:04x} without its other half)"
    return None
