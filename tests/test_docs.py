"""The documents are true of the tree: links lead somewhere, named files exist, every file of a run is described."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path

import pytest

from launcher.node import run_files
from launcher.rundir import directory
from train.rundir import run_files as rundir

ROOT = Path(__file__).parent.parent
FOLDERS = ("launcher", "train", "tests", "templates", "docker", "slurm", "docs", ".github")
HISTORY = ("CHANGELOG.md",)
"""Pages that name files of earlier releases."""


def pages() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, check=False, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    return listed or sorted(
        str(path.relative_to(ROOT)) for folder in (".", *FOLDERS) for path in (ROOT / folder).glob("*.md")
    )


def prose(page: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Fragments that lead to a heading of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", pages())
def test_relative_links_lead_to_a_file_and_to_a_heading_of_it(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (fragment and fragment not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", [page for page in pages() if page not in HISTORY])
def test_files_that_a_page_names_exist(page):
    named = re.findall(rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*)`", prose(page))
    assert [path for path in named if not (ROOT / path).exists()] == []


def names_of_a_run() -> set[str]:
    """The last part of every name that launcher, agent and training program have for a file of a run."""
    ours = [value for name, value in vars(run_files).items() if name.isupper() and isinstance(value, str)]
    made = [run_files.node_record(0), run_files.node_logs(0), run_files.rank_log(0, 0), run_files.rank_error(0)]
    ours += [*made, run_files.signals(0), run_files.tracker_log("<name>")]
    ours += [item.name for item in vars(directory.RunDir).values() if isinstance(item, directory.RunFile)]
    theirs = [str(value) for name, value in vars(rundir.RunDir("/run")).items() if name not in ("path", "node", "rank")]
    return {name.rpartition("/")[2] for name in ours + theirs}


def test_the_page_of_a_runs_files_has_every_name():
    page = (ROOT / "docs/run-directory.md").read_text(encoding="utf-8")
    quoted = " ".join(re.findall(r"`([^`\n]+)`", page))
    shown = {part.strip("/") for text in quoted.split() for part in text.split("/")}
    numbered = {re.sub(r"<[rR]>", "0", name) for name in shown}
    assert names_of_a_run() - shown - numbered == set()
    assert len(names_of_a_run()) > 30


def test_what_is_made_from_the_schema_of_a_job_is_current():
    code = runpy.run_path(str(ROOT / "docs/generate.py"))
    stale = [name for name, text in code["files"]().items() if (ROOT / name).read_text(encoding="utf-8") != text]
    assert stale == [], "run `make reference`"
