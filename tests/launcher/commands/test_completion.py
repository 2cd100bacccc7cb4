"""TAB in real shells: commands, options, runs and keys; and what is offered where."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.commands import completing
from launcher.rundir.directory import RunDir, RunRecord

ROOT = Path(__file__).parents[3]
RUN = "情感分类-20260101-000000-abcd"
ESCAPES = re.compile(r"\x1b\[[0-9;?>=]*[A-Za-z]|\x1b[()=>][0-9A-B]?|\x1b\][^\x07\x1b]*(\x07|\x1b\\)|[\x07\x08\r]")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with runs, and `zlaunch` on the path."""
    runs = tmp_path / "runs"
    for run_id, started in ((RUN, True), ("demo-20260101-000001-abcd", True), ("dry-20260101-000002-abcd", False)):
        run = RunDir(runs / run_id)
        run.write({"plan.json": '{"train": {"train": {}}}'})
        if started:
            run.save_record(RunRecord(run_id=run_id, name="x", backend="local", created=1.0))
    odd = os.fsencode(runs) + b"/\xc7\xe9-20260101-000004-abcd"  # GBK
    os.mkdir(odd)  # noqa: PTH102 - no path in this locale
    shutil.copy(os.fsencode(runs / RUN / "run.json"), odd)
    (runs / "sweeps" / "网格-sweep-20260101-000003-abcd").mkdir(parents=True)
    (runs / "sweeps" / "网格-sweep-20260101-000003-abcd" / "sweep.json").touch()
    program = tmp_path / "bin" / "zlaunch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m launcher "$@"\n')
    program.chmod(0o755)
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR", "COMP_LINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "HOME": tmp_path, "ZLAUNCH_RUNS": runs, "XDG_CACHE_HOME": tmp_path / "cache", "TERM": "xterm",
        "PATH": f"{program.parent}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    return tmp_path


def offered(line: str) -> list[str]:
    """What a shell that replaces whole words is offered."""
    found = completing.table(cli)
    os.environ["COMP_LINE"] = line
    command = completing.command_of("zlaunch", found["command"], found["keys"])
    shell = completing.Fish(command, {}, "zlaunch", completing.VARIABLE)
    return [item.value for item in shell.get_completions(*shell.get_completion_args())]


def test_what_is_offered_fits_its_place(home: Path) -> None:
    assert offered("zlaunch stat") == ["status"]
    assert {"local", "ui", "completion"} < set(offered("zlaunch "))
    assert offered("zlaunch status ") == ["last", "demo-20260101-000001-abcd", RUN]  # no dry run, the newest first
    assert offered("zlaunch status 情") == [RUN]
    assert offered("zlaunch cancel 网") == ["网格-sweep-20260101-000003-abcd"]
    assert offered("zlaunch status 网") == []
    assert offered(f"zlaunch report {RUN} 情") == []
    assert offered("zlaunch logs --ra") == ["--rank"]
    assert offered("zlaunch keys train.zero_st") == ["train.zero_stage"]
    assert offered("zlaunch local --set train.zero_st") == ["train.zero_stage="]
    assert offered("zlaunch slurm --set=train.off") == ["--set=train.offload=", "--set=train.offload_param="]
    assert offered("zlaunch local --set train.offload=") == ["train.offload=none", "train.offload=cpu"]
    assert offered("zlaunch local --sweep train.zero_stage=0,a") == ["train.zero_stage=0,auto"]
    assert offered("zlaunch resume 情感 --set train.tens") == ["train.tensorboard="]
    assert offered("zlaunch local --engine ") == ["auto", "fused", "unsloth", "peft"]
    assert offered("zlaunch export last --to=o") == ["--to=ollama"]
    assert offered("zlaunch doctor s") == ["slurm", "ssh"]
    assert offered("zlaunch explain ZL-GPU-0") == ["ZL-GPU-01", "ZL-GPU-02", "ZL-GPU-03", "ZL-GPU-04"]
    assert offered("zlaunch completion install --shell ") == ["bash", "zsh", "fish"]
    assert offered("zlaunch status ./") == ["./"]  # a path: the shell completes directories
    assert offered("zlaunch local -- python tr") == ["tr"]
    assert "--max-steps" in offered("zlaunch ssh --smoke --")
    assert offered('zlaunch local --set "train.off') == ["train.offload=", "train.offload_param="]


def test_every_argument_that_means_a_run_completes_runs(home: Path) -> None:
    without = {"local", "ssh", "slurm", "plan", "init", "convert"}  # their arguments are files
    others = {"keys": "key", "explain": "choice"}
    for name, command in completing.table(cli)["command"]["commands"].items():
        arguments = [param for param in command["params"] if "flag" not in param]
        assert not arguments or name in without or arguments[0]["kind"] == others.get(name, "run"), name


def test_the_table_is_read_from_the_cache_and_made_again_after_a_change(home: Path) -> None:
    first = completing.table(cli)
    completing.cache_file().write_text(json.dumps({**first, "keys": {"a": []}}))
    assert completing.table(cli)["keys"] == {"a": []}
    for content in (json.dumps({**first, "stamp": "older", "keys": {}}), "", "[]", '{"stamp": 1}'):
        completing.cache_file().write_text(content)
        assert completing.table(cli) == first
    completing.cache_file().unlink()
    completing.cache_file().mkdir()  # it cannot be written
    assert completing.table(cli) == first


def test_a_completion_imports_little_and_prints_nothing_else(home: Path) -> None:
    completing.table(cli)
    code = (
        "import os, sys; os.environ.update(COMP_LINE='zlaunch status 情', _ZLAUNCH_COMPLETE='bash_complete')\n"
        "import launcher.cli, atexit\n"
        "slow = {'torch', 'rich', 'jinja2', 'yaml', 'fabric', 'paramiko', 'launcher.job.spec'}\n"
        "atexit.register(lambda: print(sorted(slow & set(sys.modules))))\n"
        "launcher.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"plain\t{RUN}\t", "[]"]
    assert done.stderr == ""


def install(shell: str) -> str:
    done = CliRunner().invoke(cli, ["completion", "install", "--shell", shell], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize(
    "shell", [pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason=f"no {name} here"))
              for name in ("bash", "zsh", "fish")],
)  # fmt: skip
@pytest.mark.timeout(120)
def test_a_tab_in_a_real_shell_completes_runs_keys_and_values(home: Path, shell: str) -> None:
    (home / ".bashrc").write_text("PS1='$ '")  # without an end of line
    (home / ".zshrc").write_text("PS1='%% '\n")
    install(shell)
    install(shell)
    startup = {"bash": home / ".bashrc", "zsh": home / ".zshrc"}.get(shell)
    assert startup is None or startup.read_text().count("# completion of zlaunch\n") == 1
    with Terminal(shell, home) as terminal:
        terminal.type("zlaunch status 情\t", RUN)
        terminal.type("\x15zlaunch cance\t", "zlaunch cancel ")
        terminal.type("\x15zlaunch local --set train.zero_st\t", "train.zero_stage=")
        terminal.type("a\t", "uto ")
        terminal.type("\x15zlaunch local --engine=uns\t", "--engine=unsloth")
        (home / "a file.yaml").touch()
        terminal.type("\x15zlaunch local a\\ fi\t", "a\\ file.yaml")


class Terminal:
    """An interactive shell on a terminal of its own."""

    def __init__(self, shell: str, home: Path) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(home)
            os.execvp(shell, [shell, "-i"])
        self.seen = ""

    def __enter__(self) -> Terminal:
        self.type("echo rea''dy\r", "ready")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)

    def type(self, text: str, expected: str) -> None:
        """Type, and wait until the shell shows `expected`."""
        self.seen = ""
        os.write(self.descriptor, text.encode())
        end = time.monotonic() + 20
        while expected not in ESCAPES.sub("", self.seen):
            assert time.monotonic() < end, f"after {text!r} the terminal shows {self.seen!r}"
            if select.select([self.descriptor], [], [], 0.2)[0]:
                self.seen += os.read(self.descriptor, 65536).decode("utf-8", "replace")


def test_the_running_shell_is_recognized_or_must_be_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    shown = CliRunner().invoke(cli, ["completion", "show"], catch_exceptions=False).output
    assert "complete --no-files" in shown or "compdef" in shown or "complete -o nosort" in shown
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    done = CliRunner().invoke(cli, ["completion", "install"], standalone_mode=False)
    assert "no shell with completion" in str(done.exception)
