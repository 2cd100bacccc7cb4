"""Text from hosts, models and data stays text: no command gives a terminal a control sequence that is not ours."""

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

from launcher.machine import output
from launcher.rundir.directory import RunDir, RunRecord
from train import errors

ROOT = Path(__file__).parent.parent.parent.parent
TITLE, CLIPBOARD, CLEAR = "\x1b]0;title\x1b\\", "\x1b]52;c;RVZJTA==\x07", "\x1b[2J"
C1, BIDI = "\x9b2J\x9d0;t\x9c", "\u202e\u2066"
EVIL = f"a{CLIPBOARD}b{TITLE}c{CLEAR}d{C1}e{BIDI}f\rg\x08h\x0bi\x7fj\x1b[31mEVIL\x1b[8m"
OURS = re.compile(rb"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]?[AKG]|\r\n|\r(?=\x1b\[2K)")
"""What rich writes for colors, and for a bar that it draws again; and line ends of a terminal."""
RUN = "x\x1b[2J\x1b]0;t\x07\u202e-20261127-120000-abcd"
PROGRAM = [sys.executable, "-c", f"print({EVIL!r}); exit({EVIL!r})"]
COMMANDS = (
    ["status", RUN], ["status", RUN, "--json"], ["list"], ["list", "--json"], ["logs", RUN], ["logs", "-f", RUN],
    ["report", RUN], ["cancel", RUN], ["pull", RUN], ["resume", RUN, "--dry-run"], ["status", EVIL],
    ["nonsense" + EVIL], ["data", "show", "job.yaml"], ["data", "check", "job.yaml"],
    ["doctor", "ssh", "--hosts", f"h{EVIL}"],
    ["local", f"{EVIL}.yaml"], ["logs", RUN, "--rank", "9"],
    ["local", "--name", EVIL, "--device", "cpu", "--procs", "1", "--", *PROGRAM],
)  # fmt: skip


def problems(written: bytes) -> list[bytes]:
    """Control sequences in the output that are not ours."""
    rest = OURS.sub(b"", written)
    text = rest.decode("utf-8", "replace").replace("\n", "").replace("\t", "")
    found = [match[0].encode() for match in output.CONTROL.finditer(text)]
    return found + re.findall(rb"\x1b\[31mEVIL|\x1b\[8m", written)


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "ZLAUNCH_RUNS": str(folder / "runs"), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}


def on_a_terminal(arguments: list[str], folder: Path) -> bytes:
    """What a command writes to a terminal, standard error included."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "launcher", *arguments],
        stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, env=environment(folder), cwd=folder,
    )  # fmt: skip
    os.close(slave)
    written = b""
    try:
        while select.select([master], [], [], 120)[0]:
            written += os.read(master, 65536)
    except OSError:  # the end of a terminal
        pass
    finally:
        os.close(master)
        child.wait(60)
    return written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a failed run, every text of which holds control sequences."""
    folder = tmp_path_factory.mktemp("foreign")
    run = RunDir(folder / "runs" / RUN)
    failure = {
        "rank": 0, "node_rank": 0, "host": EVIL, "exit_code": 1, "signal": None, "cause": f"bug{EVIL}"[:60],
        "message": EVIL, "advice": [EVIL], "log_tail": [EVIL, EVIL],
    }  # fmt: skip
    record = {
        "node_rank": 0, "state": "FAILED", "host": EVIL, "boot_id": "b", "pid": 5, "start_time": 1, "heartbeat": 1.0,
        "ranks": [{"rank": 0, "pid": 6, "exit_code": 1}], "failure": failure, "ended": 2.0,
    }  # fmt: skip
    plan = {"name": EVIL, "backend": "local", "train": {"model": {"path": EVIL}}}
    texts = dict.fromkeys(("text", "name", "reason", "host", "error", "hint"), EVIL)
    names = ("note", "phase", "restart", "node_lost", "not_started", EVIL)
    samples = [{"prompt": EVIL, "expected": EVIL}]
    metrics = ({"step": 1, "loss": 2.0, "evil": EVIL}, {"step": EVIL, "loss": EVIL})
    run.write(
        {
            "plan.json": json.dumps({**plan, "launch": {"nodes": [], "python": sys.executable}}),
            "job.yaml": json.dumps({"name": EVIL, "model": {"path": EVIL}}),
            "nodes/node-0.json": json.dumps(record),
            "logs/node-0/rank-0.log": f"{EVIL}\n{EVIL}",
            "logs/node-0/agent.log": f"{EVIL}\n",
            "events.jsonl": "".join(json.dumps({"time": 1.0, "event": name, **texts}) + "\n" for name in names),
            "metrics.jsonl": "".join(json.dumps(metric) + "\n" for metric in metrics),
            "result.json": json.dumps({"samples": samples, "eval": {"after": {EVIL: 1.0}}}),
        }
    )
    run.save_record(RunRecord(run_id=RUN, name=EVIL, backend="local", ids=(EVIL,), created=1.0, state="FAILED"))
    (folder / "data.jsonl").write_text(json.dumps({"instruction": EVIL, "output": EVIL, EVIL: EVIL}) + "\n")
    model = str(folder / EVIL.replace("/", ""))
    (folder / "job.yaml").write_text(json.dumps({"data": {"train": "data.jsonl"}, "model": {"path": model}}))
    return folder


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda words: output.printable(" ".join(words))[:40])
def test_no_command_gives_a_terminal_a_sequence_of_somebody_else(arguments: list[str], folder: Path) -> None:
    written = on_a_terminal(arguments, folder)
    assert written
    assert problems(written) == []


def test_json_stays_json(folder: Path) -> None:
    argv = [sys.executable, "-m", "launcher", "status", RUN, "--json"]
    done = subprocess.run(argv, env=environment(folder), cwd=folder, capture_output=True)
    assert json.loads(done.stdout)["failure"]["message"] == EVIL
    assert problems(done.stdout) == []


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_a_real_terminal_keeps_its_title_and_its_clipboard(folder: Path) -> None:
    tmux = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]

    def ask(*words: str) -> str:
        return subprocess.run([*tmux, *words], capture_output=True, text=True, env=environment(folder)).stdout

    subprocess.run([*tmux, "new-session", "-d", "-x", "200", "-y", "50", "cat"], check=True, env=environment(folder))
    try:
        ask("set", "-g", "set-clipboard", "on")
        ask("set", "-g", "remain-on-exit", "on")
        title = ask("display", "-p", "#{pane_title}")
        ask("respawn-pane", "-k", "-c", str(folder), sys.executable, "-m", "launcher", "logs", RUN)
        shown, end = "", time.monotonic() + 60
        while "EVIL" not in shown and time.monotonic() < end:
            time.sleep(0.2)
            shown = ask("capture-pane", "-p")
        assert "\\u001b[31mEVIL" in shown
        assert ask("display", "-p", "#{pane_title}") == title
        assert ask("list-buffers") == ""
    finally:
        ask("kill-server")


def test_answers_of_a_model_are_text_too() -> None:
    code = f"from train.errors import guard_output; guard_output(); print({EVIL!r}, end='', flush=True)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert problems(done.stdout) == []
    assert done.stdout.decode() == output.printable(EVIL)


def test_both_packages_escape_the_same() -> None:
    assert errors.CONTROL.pattern == output.CONTROL.pattern
    every = "".join(map(chr, [*range(0x3000), *range(0xFE00, 0x10000)]))
    utf8 = [char for char in every if output.has_control(f"好 {char}\u2588".encode())]
    assert utf8 == output.CONTROL.findall(every)


def test_rich_is_used_through_our_console_only() -> None:
    texts = {path.name: path.read_text("utf-8") for path in (ROOT / "launcher").rglob("*.py")}
    assert [name for name, text in texts.items() if "rich.console import Console" in text] == []
