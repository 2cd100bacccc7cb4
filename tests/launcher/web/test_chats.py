"""Chats: one process per model, answers as they come, and nothing left behind."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.node import processes
from launcher.rundir.directory import RunDir
from launcher.web import chats
from launcher.web.server import Site
from tests.launcher.web.conftest import Post, talking_run


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def ready(post: Post, *models: dict[str, Any]) -> None:
    until(lambda: all(one["state"] == "ready" for one in post("/chat/hold", list(models))[1]), "loading")


def processes_of(run: RunDir) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(run.path).encode() in place.read_bytes():
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_and_its_base_answer_the_same_question(live_site: Site, post: Post, tmp_path: Path) -> None:
    run = talking_run(tmp_path / "runs", "one-")
    models = [{"run": run.run_id, "base": False}, {"run": run.run_id, "base": True}]
    assert [one["state"] for one in post("/chat/hold", models)[1]] == ["loading", "loading"]
    ready(post, *models)
    for model, name in zip(models, ("one-", "base"), strict=True):
        status, text = post("/chat/answer", {**model, "turns": [["user", "你好\n<b>"]], "temperature": 0.5})
        assert status == 200
        assert lines(text) == [{"piece": name}, {"piece": ": "}, {"piece": "你好\n<b>"}, {"end": "done"}]
    assert processes_of(run)
    live_site.app.state.chats.close()
    until(lambda: not processes_of(run), "processes left")


def test_a_browser_that_goes_away_cuts_the_answer_and_the_next_one_is_whole(
    live_site: Site, post: Post, tmp_path: Path
) -> None:
    run = talking_run(tmp_path / "runs", "one-")
    ready(post, {"run": run.run_id})
    connection = http.client.HTTPConnection("127.0.0.1", live_site.port, timeout=60)
    headers = {
        "Cookie": f"{live_site.cookie}={live_site.token}",
        "Origin": f"http://127.0.0.1:{live_site.port}",
    }
    body = json.dumps({"run": run.run_id, "turns": [["user", "slow"]]})
    connection.request("POST", "/chat/answer", body=body, headers=headers)
    assert connection.getresponse().readline() == b'{"piece": "0 "}\n'
    status, busy = post("/chat/answer", {"run": run.run_id, "turns": [["user", "x"]]})
    assert (status, "answers another question" in busy["error"]) == (400, True)
    connection.close()
    status, text = until(
        lambda: (answer := post("/chat/answer", {"run": run.run_id, "turns": [["user", "x"]]}))[0] == 200 and answer,
        "still busy",
    )
    assert lines(text) == [{"piece": "one-"}, {"piece": ": "}, {"piece": "x"}, {"end": "done"}]


def test_a_model_ends_after_its_page_has_left(live_site: Site, post: Post, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(chats, "LEAVE_SECONDS", 0.1)
    run = talking_run(tmp_path / "runs", "one-")
    ready(post, {"run": run.run_id})
    assert post("/chat/leave", [{"run": run.run_id}])[0] == 200
    until(lambda: not processes_of(run), "processes left")
    status, answer = post("/chat/answer", {"run": run.run_id, "turns": [["user", "x"]]})
    assert (status, answer["hint"]) == (400, "load the page again")


def test_a_model_that_cannot_be_loaded_or_dies_says_why_and_may_start_again(
    live_site: Site, post: Post, tmp_path: Path
) -> None:
    run = talking_run(tmp_path / "runs", "fail")
    failed = until(lambda: (one := post("/chat/hold", [{"run": run.run_id}])[1][0])["state"] == "failed" and one, "")
    assert (failed["error"], failed["advice"]) == ("no such model", "name another")
    assert post("/chat/hold", [{"run": run.run_id}])[1][0]["state"] == "loading"
    other = talking_run(tmp_path / "runs", "one-")
    ready(post, {"run": other.run_id})
    for pid in processes_of(other):
        processes.kill_quietly(pid, 9)
    until(lambda: not processes_of(other), "alive")
    status, answer = post("/chat/answer", {"run": other.run_id, "turns": [["user", "x"]]})
    assert status in (200, 400)
    assert "ended with status" in (lines(answer)[0] if status == 200 else answer)["error"]
    ready(post, {"run": other.run_id})
