"""When two short answers are the same: `normalize` turns each into a text, and equal texts are equal answers.

Not compared: full and half width, case, blanks, and the punctuation of prose and Markdown (，。！“”() **, hyphens).

Compared, because it changes what is meant:

numbers     -5 is not 5, .5 is 0.5 and not 5, 1,000 is 1000, 3-5 and 3~5 are one range and not 35; numbers that stand
            side by side stay apart, however they are separated: 1, 2 and 1、2 and 1 2, but not 12
            An answer that is only a number is compared by value: 3.0 is 3, +5 is 5. Within a text it is compared
            as it is written, because 3.10 may be a version.
fractions   1/2 is 1 / 2 and ½, not 12 and not 1:2
ratios      1:2 is 1 : 2 and 1：2; a time is 9:05 as well as 09:05
dates       2024-01-02, 2024/1/2 and 2024年1月2日 are one date
units       5% is 5 % and 5％, not 5; 10℃ is 10°C, not 10; $5 is not 5; 10² is 10^2, not 102
code        C, C# and C++; .py, a.b, x:y, a[0], f(x), a_b, *p, -v, !=; A+, A- and A
"""

from __future__ import annotations

import re
import unicodedata

_ALIKE = str.maketrans(
    {"\u2010": "-", "\u2012": "-", "\u2013": "-", "\u2212": "-", "\u2044": "/", "\u2215": "/", "\u2236": ":"}
    | {"\u301c": "~", "`": " "}
)
"""Hyphens and minus signs; fraction slashes; the ratio sign; the wave dash. Backquotes only mark code."""
_VULGAR = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_POWER = re.compile(r"(?<=\d)[\u00b2\u00b3\u00b9\u2070\u2074-\u2079]+")
_EMPHASIS = re.compile(r"(?<![a-z0-9*])(\*{1,3})(?=\S)(.+?)(?<=\S)\1(?![a-z0-9*])")
_ABBREVIATION = re.compile(r"(?<![a-z0-9.])(?:(?:[a-z]\.){2,}(?![a-z0-9])|[a-z](?:\.[a-z]){2,}(?![a-z0-9]))")
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])")
_DATE = re.compile(
    r"(?<![0-9])([0-9]{4})\s*([-/. 年])\s*0?([1-9]|1[0-2])\s*(?:\2|月)\s*0?([1-9]|[12][0-9]|3[01])(?![0-9])(?:\s*日)?"
)
_EARLY = re.compile(r"(?<![0-9:.])0(?=[0-9]:[0-5][0-9](?![0-9]))")
_NO_ZERO = re.compile(r"(?<![a-z0-9.)\]])\.(?=[0-9])")
_RANGE = re.compile(r"(?<=[0-9])\s*[~\u2014\u2015]+\s*(?=[0-9])")
_MEANT = re.compile(
    r"[%‰‱/\\&@]"
    r"|(?<=[a-z0-9])\.(?=[a-z0-9])|(?<![a-z0-9.])\.(?=[a-z])"  # a decimal point, a file name, .py
    r"|(?<=[a-z0-9])[:(\[{](?=[a-z0-9])|(?<=[0-9]) *: *(?=[0-9])"  # 12:30, x:y, a[0], f(x)
    r"|(?<=[0-9])\s*-+\s*(?=[0-9])"  # a range, a difference
    r"|(?<![0-9a-z.)\]-])-(?=\.?[0-9∞])|(?<=[0-9]e)-(?=[0-9])"  # -5, 1e-5
    r"|(?<!\S)--?(?=[a-z])|(?<=[a-z0-9])-+(?=$|[\s,.;!?)])"  # -v, A-
    r"|(?<=[a-z0-9])[ \t]*#|#(?=[a-z0-9])|[_*](?=[a-z0-9])|(?<=[a-z0-9])[_*]|(?<=[0-9])\s*[*·]\s*(?=[0-9])"
    r"|(?<=[0-9])['′″]+|!(?==)"
)
"""Punctuation that means something where it stands."""
_NUMBER = re.compile(r"\+?(-?[$¥€£]?[0-9]+)(?:\.([0-9]*?)0*)?(%|‰|°[cf]?|[$¥€£])?")


def normalize(text: str) -> str:
    """What a short answer says, for comparison. A text of nothing but punctuation is only stripped."""
    folded = _folded(text)
    meant = {place for found in _MEANT.finditer(folded) for place in range(*found.span())}
    kept = ""
    gap = False
    for place, char in enumerate(folded):
        if char.isspace() or (place not in meant and _is_prose(char, folded[place + 1 : place + 2])):
            gap = True
            continue
        if gap and kept[-1:].isdigit() and char.isdigit():
            kept += ","
        kept += char
        gap = False
    number = _NUMBER.fullmatch(kept)
    if number:
        whole, decimals, unit = number.groups()
        kept = f"{whole}{'.' if decimals else ''}{decimals or ''}{unit or ''}"
    return kept or folded.strip()


def _folded(text: str) -> str:
    """One spelling for everything that has several."""
    text = _VULGAR.sub(" ", text)
    text = _POWER.sub(lambda power: f"^{power[0]}", text)
    text = unicodedata.normalize("NFKC", text).casefold().translate(_ALIKE)
    text = _EMPHASIS.sub(r"\2", text)
    text = _ABBREVIATION.sub(lambda letters: letters[0].replace(".", ""), text)
    text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    text = _DATE.sub(r"\1-\3-\4", text)
    text = _EARLY.sub("", text)
    text = _NO_ZERO.sub("0.", text)
    return _RANGE.sub("-", text)


def _is_prose(char: str, following: str) -> bool:
    """Whether a character is punctuation; a tilde is, unless something like 5 or / follows (好的~)."""
    if char == "~":
        return not (following.isalnum() or following == "/")
    return unicodedata.category(char).startswith("P")
