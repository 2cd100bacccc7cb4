"""What was meant by a key or a flag that does not exist: a word of other programs, or a slip of the pen.

A hint must never be of another meaning: `train.min_steps` is not `train.max_steps`. So a word is only taken for a
misspelled one where every part of it is nearly the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from launcher.job.reference import peer_words
from launcher.job.reference.peer_words import Meaning

BACKENDS = ("local", "ssh", "slurm")
COUNTERPARTS = (
    {"local": "local.gpus", "ssh": "ssh.slots", "slurm": "slurm.gpus_per_node"},
    {"ssh": "ssh.hosts", "slurm": "slurm.nodes"},
    {"local": "local.procs", "ssh": "ssh.slots", "slurm": "slurm.procs_per_node"},
)
"""Keys of the same meaning for each way to start."""
LONG = 6
"""Shorter words are not taken for misspelled ones of another section or program."""
MOST_LISTED = 12
"""More keys of a section than these are not listed in an error."""


def hint(name: str, place: str, siblings: Collection[str], known: Collection[str]) -> str:
    """What to write instead of the key `name` in the section `place`, which has the keys `siblings`."""
    found = meanings(name, place)
    if not found:
        prefix = f"{place}." if place else ""
        close = [prefix + near for near in misspelled(name, siblings)]
        anywhere: dict[str, list[str]] = {}
        for key in known:
            anywhere.setdefault(key.rpartition(".")[2], []).append(key)
        close = close or anywhere.get(name) or []
        if not close and len(name) >= LONG:
            close = [key for near in misspelled(name, anywhere) for key in anywhere[near]]
        if close:
            return f"did you mean {' or '.join(f'`{key}`' for key in close[:3])}?"
        for near in misspelled(name, peer_words.names()) if len(name) >= LONG else ():
            return f"did you mean `{near}`? It is {', or '.join(one.text for one in meanings(near, place))}"
        if len(siblings) > MOST_LISTED:
            return f"`zlaunch keys {place}`".replace(" `", "`") + " lists the keys that are known here"
        return f"known here: {', '.join(sorted(siblings))}"
    return "; ".join(f"`{name}` is {meaning.text}" for meaning in found)


def meanings(name: str, place: str) -> list[Meaning]:
    """What a word of other programs means in that section: of keys for one way to start, those for this one."""
    return [fitting for meaning in peer_words.find(name) if (fitting := _for_backend(meaning, place))]


def counts_in(key: str, place: str) -> bool:
    """Whether a key counts for what the section `place` describes: not if it is of another way to start."""
    section = key.rpartition(".")[0]
    return place not in BACKENDS or section not in BACKENDS or section == place


def _for_backend(meaning: Meaning, place: str) -> Meaning | None:
    section = meaning.key.rpartition(".")[0]
    same = next((same for same in COUNTERPARTS if meaning.key and meaning.key in same.values()), {})
    if counts_in(meaning.key, place):  # without the note, which names the other places
        return Meaning(meaning.key, "") if place in same and "SSH" in meaning.note else meaning
    return Meaning(same[place], "") if place in same and section else None


def misspelled(word: str, known: Iterable[str]) -> list[str]:
    """The known words of which `word` is a misspelling, the likeliest first."""
    distances = {name: distance for name in known if (distance := _distance(word, name)) is not None}
    return sorted(distances, key=lambda name: distances[name])[:1]


def _distance(word: str, name: str) -> int | None:
    """How many letters are wrong; None: these are different words."""
    ours, theirs = _parts(word), _parts(name)
    if "".join(ours) == "".join(theirs):
        return 0
    if sorted(ours) == sorted(theirs):
        return 1
    if _digits(word) != _digits(name):
        return None
    if len(ours) != len(theirs):  # `learningrte`
        return 1 if len("".join(ours)) >= LONG and _edits("".join(ours), "".join(theirs)) == 1 else None
    wrong = 0
    for one, other in zip(ours, theirs, strict=True):
        longest = max(len(one), len(other))
        edits = 1 if one + "s" == other or other + "s" == one else _edits(one, other)
        allowed = 2 if longest >= 8 else 1 if longest >= 4 or one + "s" == other or other + "s" == one else 0
        if edits > allowed:
            return None
        wrong += edits
    return wrong if wrong <= 2 else None


def _parts(word: str) -> list[str]:
    return [part for part in peer_words.plain(word).split("_") if part]


def _digits(word: str) -> str:
    return "".join(filter(str.isdigit, word))


def _edits(one: str, other: str) -> int:
    """Letters to insert, remove, replace, or swap with their neighbor, to make one word of the other."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, start=1):
        earlier, before, row = before, row, [place]
        for number, wanted in enumerate(other, start=1):
            cost = min(before[number] + 1, row[-1] + 1, before[number - 1] + (letter != wanted))
            if place > 1 and number > 1 and letter == other[number - 2] and one[place - 2] == wanted:
                cost = min(cost, earlier[number - 2] + 1)
            row.append(cost)
    return row[-1]
