"""What a page has zlaunch do: as the terminal does it, and for nobody else's pages."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.rundir.directory import RunDir
from launcher.web.server import Site
from tests.launcher.web.conftest import Post, talking_run

ROOT = Path(__file__).parents[3]


def program(*words: str) -> RunDir:
    """A run of a program, started in the background."""
    command = [sys.executable, "-m", "launcher", "local", "--device", "cpu", "--detach", "--json", "--", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return RunDir(Path(json.loads(done.stdout.splitlines()[-1])["directory"]))


def ended(site: Site, run: RunDir, count: int = 1) -> list[dict[str, Any]]:
    """The commands of the run, once `count` of them have ended."""
    deadline = time.monotonic() + 90
    while sum(action["code"] is not None for action in site.app.state.actions.of(run.run_id)) < count:
        assert time.monotonic() < deadline, site.app.state.actions.of(run.run_id)
        time.sleep(0.1)
    found: list[dict[str, Any]] = site.app.state.actions.of(run.run_id)
    return found


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Origin": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"cookie": ""}, 403),
        ({"cookie": "wrong"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"method": "GET"}, 405),
        ({"method": "PUT"}, 405),
    ],
    ids=str,
)
def test_only_a_post_of_our_own_page_starts_anything(
    live_site: Site, post: Post, tmp_path: Path, change: dict[str, str], status: int
) -> None:
    run = talking_run(tmp_path / "runs", "one")
    for path in (f"/run/{run.run_id}/do/export", "/chat/hold"):
        assert post(path, [{"run": run.run_id}] if path == "/chat/hold" else {}, **change)[0] == status
    assert live_site.app.state.actions.of(run.run_id) == []


@pytest.mark.parametrize(
    ("path", "value", "status", "text"),
    [
        ("/run/one-20260101-000000-aaaa/do/rm", {}, 404, "no action rm"),
        ("/run/nothing/do/stop", {}, 404, "no run nothing"),
        ("/run/one-20260101-000000-aaaa/do/stop", {"now": "yes"}, 400, "`bool`"),
        ("/run/one-20260101-000000-aaaa/do/stop", {"force": True}, 400, "force"),
        ("/run/one-20260101-000000-aaaa/do/resume", {"epochs": -1}, 400, "epochs"),
        ("/run/one-20260101-000000-aaaa/do/resume", {"max_steps": 1.5}, 400, "max_steps"),
        ("/run/one-20260101-000000-aaaa/do/export", {"to": "--help"}, 400, "to"),
        ("/run/one-20260101-000000-aaaa/do/export", {"out": "here"}, 400, "relative"),
        ("/run/one-20260101-000000-aaaa/do/export", ["merged"], 400, "object"),
        ("/chat/hold", {"run": "x"}, 400, "array"),
        ("/chat/hold", [{"run": "x"}], 404, "no run x"),
        ("/chat/answer", {"run": "one", "turns": [["user", "a"]]}, 400, "has ended"),
        ("/chat/answer", {"run": "one", "turns": "a"}, 400, "array"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_its_reason(
    post: Post, tmp_path: Path, path: str, value: Any, status: int, text: str
) -> None:
    talking_run(tmp_path / "runs", "one")
    found, answer = post(path, value)
    assert (found, text in answer["error"]) == (status, True), answer


def test_a_run_is_stopped_and_resumed_and_its_commands_stay_on_its_page(live_site: Site, post: Post) -> None:
    run = program("sleep", "600")
    assert post(f"/run/{run.run_id}/do/stop", {"now": True}) == (200, {"started": "stop"})
    (stop,) = ended(live_site, run)
    assert (stop["code"], stop["command"]) == (0, f"zlaunch cancel {run.run_id} --now")
    assert run.record.state == "CANCELLED"
    assert post(f"/run/{run.run_id}/do/resume")[0] == 200
    assert ended(live_site, run, 2)[0]["code"] == 0
    assert post(f"/run/{run.run_id}/do/resume")[0] == 200
    refused = ended(live_site, run, 3)[0]
    assert refused["code"] == 2
    assert any(line.startswith("  -> cancel it first") for line, _ in refused["lines"])
    assert post(f"/run/{run.run_id}/do/stop", {"now": True})[0] == 200
    assert ended(live_site, run, 4)[0]["code"] == 0


def test_an_export_is_followed_refused_twice_at_once_and_ended_with_the_server(
    live_site: Site, post: Post, tmp_path: Path
) -> None:
    text = "import time\nprint('merging <script>', flush=True)\ntime.sleep(600)\n"
    run = talking_run(tmp_path / "runs", "one", f"#!{sys.executable}\n{text}")
    assert post(f"/run/{run.run_id}/do/export", {"to": "adapter", "out": str(tmp_path / "new")})[0] == 200
    deadline = time.monotonic() + 60
    while not (action := live_site.app.state.actions.of(run.run_id)[0])["lines"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert action["lines"] == [("merging <script>", "merging <script>")]
    assert action["command"] == f"zlaunch export {run.run_id} --to adapter --out={tmp_path / 'new'}"
    status, answer = post(f"/run/{run.run_id}/do/export")
    assert (status, answer["error"]) == (400, f"export is at work on {run.run_id} already")
    live_site.app.state.actions.close()
    assert ended(live_site, run)[0]["code"] != 0


def test_the_report_is_a_file_of_its_own(post: Post, tmp_path: Path) -> None:
    run = talking_run(tmp_path / "runs", "one")
    status, text = post(f"/run/{run.run_id}/report", method="GET")
    assert (status, "form-action &#39;none&#39;" in text, "EventSource" in text) == (200, True, False)
