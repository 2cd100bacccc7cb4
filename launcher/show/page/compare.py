"""Several runs as one page: the best one and how sure that is, what differs between them, their curves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.show.page.gather import SHARES
from launcher.show.page.uncertainty import differ

SURE = 0.05
"""Two runs differ if equally good ones would differ as much in at most this share of cases."""
MOST_COLUMNS = 6
"""Differing settings beside the results; the others have a table of their own."""
_LOSSES = ("loss", "training_loss")


def comparison(pages: Sequence[Mapping[str, Any]], swept: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The page of several runs, from the page of each and its values in the sweep (empty: none)."""
    labels = _labels(pages, swept)
    rows = [_row(page, values, label) for page, values, label in zip(pages, swept, labels, strict=True)]
    _number_groups(rows, pages)
    different = differing([{**page["settings"]["used"], **_circumstances(page)} for page in pages])
    first = [key for key in dict.fromkeys(key for values in swept for key in values) if key in different]
    keys = [*first, *(key for key in different if key not in first)]
    metrics = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    chosen = primary(rows, metrics)
    return {
        "rows": rows,
        "keys": keys[:MOST_COLUMNS],
        "different": {key: different[key] for key in keys},
        "metrics": metrics,
        "axes": [key for key in keys if all(_is_plain(value) for value in different[key])],
        "metric": chosen,
        "best": best(rows, chosen, pages) if chosen else None,
    }


def _labels(pages: Sequence[Mapping[str, Any]], swept: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each run that no other has: the points of a sweep, and tries of one job, share theirs."""
    names = [str(page["name"]) for page in pages]
    points = [", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items()) for values in swept]
    ends = [str(page["id"]).rpartition("-")[2] for page in pages]
    for more in (points, ends):
        counts = Counter(names)
        names = [f"{name} {end}".strip() if counts[name] > 1 else name for name, end in zip(names, more, strict=True)]
    return names


def _row(page: Mapping[str, Any], values: Mapping[str, Any], label: str) -> dict[str, Any]:
    overall = {row["metric"]: row for row in page["scores"] if row["task"] is None}
    scores = {name: row["after"] for name, row in overall.items()}
    if page["loss_last"] is not None:
        scores["training_loss"] = page["loss_last"]
    return {
        "id": page["id"],
        "name": label,
        "state": page["state"],
        "seconds": page["seconds"],
        "values": dict(values),
        "scores": scores,
        "groups": {},
        "intervals": {name: row["interval"] for name, row in overall.items() if row["interval"]},
        "records": max((row["records"] for row in overall.values()), default=0),
    }


def _scored_on(page: Mapping[str, Any], metric: str) -> Any:
    """Equal for runs whose values of a metric can be compared: those over the same records.

    Records with answers are kept whole. Of others there are their place, their number and that of their tokens with
    loss, which a loss is a mean over: it differs between tokenizers, too.
    """
    part = "train" if metric == "training_loss" else "eval"
    if part == "eval" and (records := [key for key, _ in _records(page)]):
        asked: Any = records
    else:
        used = page["settings"]["used"]
        asked = {key: used[key] for key in used if key == f"data.{part}" or key.startswith(f"data.{part}.")}
        asked["eval.max_records"] = used.get("eval.max_records") if part == "eval" else None
    sizes = [(row["records"], row["loss_tokens"]) for row in page.get("data") or () if row["part"] == part]
    # A host that is sent its data has them below the directory of the run.
    return json.dumps([asked, sizes if metric in _LOSSES else None], default=str).replace(page["id"], "")


def _number_groups(rows: Sequence[Mapping[str, Any]], pages: Sequence[Mapping[str, Any]]) -> None:
    """Give each row {score: number of its group}: scores of one group can be compared."""
    for name in dict.fromkeys(name for row in rows for name in row["scores"]):
        keys = [_scored_on(page, name) for page in pages]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        for row, key in zip(rows, keys, strict=True):
            row["groups"][name] = numbers[key]


def _circumstances(page: Mapping[str, Any]) -> dict[str, Any]:
    return {"ranks": page["world_size"], "nodes": page["nodes"], "device": page["device"]}


def differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """{key: its value in each run} of the keys that do not have one value in all runs; None where a run lacks it."""
    keys = dict.fromkeys(key for one in settings for key in one)
    table = {key: [one.get(key) for one in settings] for key in keys}
    return {key: values for key, values in table.items() if len({json.dumps(value) for value in values}) > 1}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def primary(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str | None:
    """The metric that ranks the runs: shares of right answers where some are right, else losses."""
    for name in (*SHARES, "loss", "training_loss"):
        values = [row["scores"][name] for row in rows if name in row["scores"]]
        if name in metrics and values and (name in _LOSSES or max(values) > 0):
            return name
    return None


def best(rows: Sequence[Mapping[str, Any]], metric: str, pages: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """{"row", "value", "interval", "ties", "others", "of"} of the best run by a metric.

    It is the best of the largest group of runs scored on the same records. `ties`: runs that these do not tell apart
    from it. `others`: runs scored on other records. Both hold names.
    """
    scored = [place for place, row in enumerate(rows) if isinstance(row["scores"].get(metric), (int, float))]
    if not scored:
        return None
    compared = _largest_group(rows, metric, scored)
    top = compared[0]
    return {
        "row": top,
        "value": rows[top]["scores"][metric],
        "interval": rows[top]["intervals"].get(metric),
        "ties": [rows[place]["name"] for place in _ties(pages, compared)] if metric in SHARES else [],
        "others": [rows[place]["name"] for place in scored if place not in compared],
        "of": len(compared),
    }


def _largest_group(rows: Sequence[Mapping[str, Any]], metric: str, scored: Sequence[int]) -> list[int]:
    """Places of the runs that can be compared, the best first; of groups of one size, those of the best score."""
    sign = -1 if metric in _LOSSES else 1
    by_score = sorted(scored, key=lambda place: sign * rows[place]["scores"][metric], reverse=True)
    group = Counter(rows[place]["groups"][metric] for place in by_score).most_common(1)[0][0]
    return [place for place in by_score if rows[place]["groups"][metric] == group]


def _ties(pages: Sequence[Mapping[str, Any]], compared: Sequence[int]) -> list[int]:
    """Places of the runs whose right answers may be as many as those of the first by chance."""
    mine = [right for _, right in _records(pages[compared[0]])]
    theirs = {place: [right for _, right in _records(pages[place])] for place in sorted(compared[1:])}
    return [place for place, one in theirs.items() if mine and differ(mine, one) > SURE]


def _records(page: Mapping[str, Any]) -> list[tuple[tuple[str, str], bool]]:
    """((question, expected answer), whether the run answered right) of its own evaluation."""
    for one in page["answers"]:
        if one["name"] is None:
            return [((row["prompt"], row["expected"]), row["right"]) for row in one["rows"]]
    return []
