"""The pages of docs/guide: every command on them is run, and both languages say the same.

Files that a page shows with a title are there. What starts a run is run dry, with a tiny random model in place of the
page's, so that no hub, host or GPU is needed. Commands about `last` have one finished run of that kind.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from tests.beds.places import ROOT

GUIDE = ROOT / "docs/guide"
PAGES = sorted(path.name for path in GUIDE.glob("*.md") if not path.name.endswith(".zh-CN.md"))
ELSEWHERE = {
    "git clone <this repository> zlaunch && cd zlaunch": "has no address",
    "make env": "made the environment of this test",
    "source .venv/bin/activate": "changes a shell",
    "make demo": "minutes; CI runs it",
    'pip config set global.index-url "$MIRROR"': "changes the user's settings",
    "PIP_FIND_LINKS=/data/wheels make env": "installs",
    "pip install modelscope": "installs",
    "zlaunch resume last": "refused: the run of this test has succeeded",
    "zlaunch resume last --set train.epochs=5": "trains; tests of resume do",
    "zlaunch resume last --gpus 1": "needs a GPU",
    "zlaunch doctor net --hosts node1,node2": "needs hosts; tests/ssh does",
    "zlaunch build": "takes minutes; tests/container does",
    "zlaunch local job.yaml --container docker --image zlaunch:dev": "needs docker; tests/container does",
    "zlaunch image save zlaunch:dev zlaunch.tar": "needs an image; tests/container does",
    "zlaunch image load zlaunch.tar": "needs an image; tests/container does",
    "vllm serve merged --served-model-name reviews": "needs a GPU and vLLM",
    "vllm serve Qwen/Qwen3-0.6B --enable-lora --lora-modules reviews=adapter": "needs a GPU and vLLM",
    "python -m sglang.launch_server --model-path merged": "needs a GPU and SGLang",
    "zlaunch export last --verify --server http://127.0.0.1:8000 --server-model reviews": "tests/train/exports does",
    "ollama create reviews -f ollama-model/Modelfile": "needs Ollama",
}
"""Commands that are not run here, and why."""
STARTING = ("local", "ssh", "slurm")
TINY = ["--set", "model.source=random", "--set", "model.quantization=none"]


class Block(NamedTuple):
    language: str
    title: str | None
    text: str


def blocks(page: str) -> list[Block]:
    found = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', (GUIDE / page).read_text("utf-8"), re.M | re.S)
    return [Block(language, title or None, text) for language, title, text in found]


def commands(page: str) -> list[str]:
    lines = [line.strip() for block in blocks(page) if block.language == "bash" for line in block.text.splitlines()]
    return [line for line in lines if line]


def chinese(page: str) -> str:
    return page.replace(".md", ".zh-CN.md")


def write_files(page: str, folder: Path) -> None:
    for block in blocks(page):
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text, encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A directory of runs with one that is over."""
    folder = tmp_path_factory.mktemp("finished")
    write_files("first-steps.md", folder)
    argv = ["local", "job.yaml", "--device", "cpu", "--set", "model.source=random", "--max-steps", "4"]
    done = subprocess.run(
        [shutil.which("zlaunch", path=str(ROOT / ".venv/bin")) or "zlaunch", *argv],
        cwd=folder, env={**os.environ, "ZLAUNCH_RUNS": str(folder / "runs")},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs"


def test_there_are_pages():
    assert len(PAGES) >= 15


@pytest.mark.parametrize("page", PAGES)
def test_the_chinese_page_shows_the_same_files_and_commands(page):
    assert blocks(chinese(page)) == blocks(page)


@pytest.mark.parametrize("page", PAGES)
def test_each_page_names_its_other_language(page):
    assert f"]({chinese(page)})" in (GUIDE / page).read_text("utf-8")
    assert f"]({page})" in (GUIDE / chinese(page)).read_text("utf-8")


@pytest.mark.train
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_do_what_it_says(page, finished, tmp_path, monkeypatch):
    for shown in ("first-steps.md", page):  # whose job.yaml stands for the reader's own
        write_files(shown, tmp_path)
    (tmp_path / "train.py").write_text("print('my own program')\n")
    (tmp_path / "records.csv").write_bytes("instruction,output\n好,坏\n".encode("gb18030"))
    for line in commands(page):
        if line in ELSEWHERE:
            continue
        if not line.startswith("zlaunch "):
            subprocess.run(line, shell=True, cwd=tmp_path, check=True, timeout=120, env=with_our_python())
            continue
        words = shlex.split(line)[1:]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ZLAUNCH_RUNS", str(finished if "last" in words else tmp_path / "runs"))
        result = CliRunner().invoke(cli, as_a_trial(words), input="")
        if words[0] == "doctor":  # what it finds depends on the machine
            assert not isinstance(result.exception, Exception), line
        else:
            assert result.exit_code == 0, f"{line}\n{result.output}"


README = ("README.md", "README.zh-CN.md")
OF_README = ("init", "ui")
"""Not run: the one would write over the job, the other serves."""


def readme_commands(page: str) -> list[list[str]]:
    text = "\n".join(block.text for block in blocks(f"../../{page}") if block.language == "bash")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words for words in lines if words]


def test_both_readmes_show_the_same_commands():
    first, second = ([words for words in readme_commands(page) if words[0] != "git"] for page in README)
    assert first == second


@pytest.mark.train
def test_the_commands_of_the_readme_work(finished, tmp_path, monkeypatch):
    write_files("first-steps.md", tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("train", "eval"):
        shutil.copy(tmp_path / "train.jsonl", tmp_path / f"data/{name}.jsonl")
    job = next(block.text for block in blocks(f"../../{README[0]}") if block.language == "yaml")
    (tmp_path / "job.yaml").write_text(job.replace("Qwen/Qwen3-8B", "qwen3-8b"))
    monkeypatch.chdir(tmp_path)
    for words in readme_commands(README[0]):
        if words[0] == "zlaunch" and words[1] not in OF_README:
            of_last = words[1] == "watch" or "last" in words
            monkeypatch.setenv("ZLAUNCH_RUNS", str(finished if of_last else tmp_path / "runs"))
            result = CliRunner().invoke(cli, as_a_trial(words[1:]), input="")
            assert result.exit_code == 0, f"{words}\n{result.output}"


def with_our_python() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def as_a_trial(words: list[str]) -> list[str]:
    """The command on CPUs and without weights; one that would start a run as a dry run."""
    if words[0] == "data":
        return [*words, *TINY]
    if words[0] not in STARTING:
        return words
    words, program = (words[: words.index("--")], words[words.index("--") :]) if "--" in words else (words, [])
    if "--gpus" in words:
        place = words.index("--gpus")
        words = [*words[:place], *words[place + 2 :]]
    own = [] if program else TINY
    here = ["--device", "cpu"] if words[0] == "local" and "--device" not in words else []
    here += (
        ["--slots", "2"] if words[0] == "ssh" and "--hostfile" not in words and not program else []
    )  # a dry run asks no host how many GPUs it has
    dry = [] if "--dry-run" in words else ["--dry-run"]
    return [*words, *here, *own, *dry, *program]


def test_every_exception_is_on_a_page():
    assert set(ELSEWHERE) <= {line for page in PAGES for line in commands(page)}
