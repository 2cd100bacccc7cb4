"""The documents are true of the tree: links lead somewhere, named files exist, every file of a run is described, every
text of a command has its Chinese, and every error a code that is explained."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.machine.language import catalogue
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
    theirs = [str(value) for value in vars(rundir.RunDir("/run")).values() if isinstance(value, Path)]
    return {name.rpartition("/")[2] for name in ours + theirs} - {"run"}


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


MESSAGES = runpy.run_path(str(ROOT / "docs/messages.py"))
HOW = "run `make messages`, then write the Chinese of each new msgid in launcher/machine/language/{}.po"


@pytest.fixture(scope="module", params=list(MESSAGES["AREAS"]))
def area(request: pytest.FixtureRequest) -> tuple[str, set[str]]:
    """A catalogue and the texts that the source has for it."""
    return request.param, MESSAGES["AREAS"][request.param]()


def test_every_text_of_the_source_is_in_its_catalogue(area: tuple[str, set[str]]) -> None:
    name, texts = area
    assert sorted(texts ^ set(catalogue.of(name))) == [], HOW.format(name)


@pytest.mark.parametrize("name", MESSAGES["AREAS"])
def test_every_text_has_its_chinese(name: str) -> None:
    assert [msgid for msgid, msgstr in catalogue.of(name).items() if not msgstr] == [], HOW.format(name)


@pytest.mark.parametrize("package", ["launcher", "train"])
def test_every_error_of_a_user_has_a_code(package: str) -> None:
    missing = [
        place
        for place, call, code in error_calls(package)
        if not code and not any(one.arg == "code" for one in call.keywords)
    ]
    assert missing == [], 'give `code="ZL-AREA-NN"`: the kind of launcher/machine/language/error_codes.py that it is of'


def error_calls(package: str) -> Iterator[tuple[str, ast.Call, str]]:
    """(place, call, default code of its class) of every error that a user can see."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / package).rglob("*.py"))}
    classes = {node.name: node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for path, tree in trees.items():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            code = class_code(call.func.id, classes) if isinstance(call.func, ast.Name) else None
            if code is not None:
                yield f"{path.relative_to(ROOT)}:{call.lineno}", call, code


def class_code(name: str, classes: dict[str, ast.ClassDef]) -> str | None:
    """The code that a class gives its errors; None: it is no error for users."""
    if name in ("ZlaunchError", "TrainError"):
        return ""
    if name not in classes:
        return None
    above = [
        class_code(base.id, classes) for base in classes[name].bases if isinstance(base, ast.Name) and base.id != name
    ]
    if not (known := [code for code in above if code is not None]):
        return None
    own = [
        node.value.value
        for node in classes[name].body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.targets[0].id == "code"  # type: ignore[attr-defined]
    ]
    return own[0] if own else known[0]
