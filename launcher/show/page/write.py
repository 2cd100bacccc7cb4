"""Write the report page of a run, or the comparison of several."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher import __version__
from launcher.machine.storage import written
from launcher.rundir.directory import RunDir, write_atomic
from launcher.rundir.state import RunState
from launcher.show.page import compare, gather, html, words


def write_report(run: RunDir, state: RunState, file: Path | None = None) -> Path:
    """Write the page of a run, by default into its directory. Returns its path.

    Raises RunNotFound for damaged files, StorageError if the file cannot be written.
    """
    page = gather.run_page(run, state)
    return write(file or run.report, run_text(page))


def write_if_new(run: RunDir, state: RunState) -> Path | None:
    """Write the page of a run that has ended, unless it is there and as new as the run. None: there is no page.

    A page must not change how a command ends: a problem is a warning.
    """
    if not state.is_final:
        return None
    try:
        if _age(run.report) > max(_age(run.events), _age(run.result_json)):
            return run.report
        return write_report(run, state)
    except Exception as error:  # whatever it is, the run itself has ended and is unharmed
        print(f"warning: the report page was not written: {error or type(error).__name__}", file=sys.stderr)
        return None


def _age(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def run_text(page: dict[str, Any], *, live: Sequence[Any] | None = None) -> str:
    """The page of one run. `live`: what the page was made from, for one that `zlaunch ui` serves (web.live)."""
    data = {"curves": page["curves"], "answers": page["answers"]}
    if live is not None:
        data |= {"words": words.WORDS, "whole": live}
    return html.render("run.html", page, data, live=live is not None, more=() if live is None else ("actions.js",))


def runs_text() -> str:
    """The page of all runs, of `zlaunch ui` only; its rows come by a stream."""
    page = {"title": "", "version": __version__}
    return html.render("runs.html", page, {"words": words.WORDS}, live=True)


def chat_text(models: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> str:
    """The page of a chat, of `zlaunch ui` only. `models`: one or two of {"run", "base", "name"}; `runs`: the choice."""
    page = {"title": models[0]["name"], "version": __version__, "models": models, "runs": runs}
    return html.render("chat.html", page, {"words": words.WORDS, "models": models}, live=True, more=("chat.js",))


def write_comparison(
    title: str, pages: Sequence[dict[str, Any]], swept: Sequence[dict[str, Any]], missing: Sequence[str], file: Path
) -> Path:
    """Write the page of several runs; see comparison_text. Raises StorageError if the file cannot be written."""
    return write(file, comparison_text(title, pages, swept, missing))


def comparison_text(
    title: str,
    pages: Sequence[dict[str, Any]],
    swept: Sequence[dict[str, Any]],
    missing: Sequence[str],
    *,
    live: bool = False,
) -> str:
    """The page of several runs, from `gather.run_page` of each and its values in the sweep (empty: none).

    `missing`: texts about runs that have nothing to show.
    """
    found = compare.comparison(pages, swept)
    shown = {
        **found,
        "title": title,
        "version": __version__,
        "curves": any(page["curves"] for page in pages),
        "missing": missing,
    }
    rows = zip(pages, found["rows"], strict=True)
    data = {
        "runs": [
            {"name": row["name"], "curves": page["curves"], "scores": row["scores"], "groups": row["groups"]}
            for page, row in rows
        ],
        "settings": {key: found["different"][key] for key in found["axes"]},
        "axes": found["axes"],
        "metrics": found["metrics"],
        "metric": found["metric"],
        "words": {name: words.both(name) for name in found["metrics"]},
    }
    return html.render("compare.html", shown, data, live=live)


def write(file: Path, text: str) -> Path:
    with written(file):
        write_atomic(file, text)
    return file
