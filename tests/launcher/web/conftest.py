"""What the tests of the server share: its thread, requests of a page, and a run whose model is a small program."""

from __future__ import annotations

import http.client
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launcher.backends import current_state
from launcher.rundir import find
from launcher.rundir.directory import RunDir, RunRecord
from launcher.web.server import Site

MODEL = f"""#!{sys.executable}
import json, sys, time
kind = "base" if "--base" in sys.argv else sys.argv[sys.argv.index("--run-dir") + 1].rsplit("/", 1)[1][:4]
if kind == "fail":
    sys.exit("error: no such model\\n  -> name another")
print("noise of a library")
print(json.dumps({{"ready": True}}), flush=True)
while line := sys.stdin.readline():
    turns = json.loads(line)["turns"]
    try:
        for piece in [kind, ": ", turns[-1][1]] if turns[-1][1] != "slow" else (f"{{n}} " for n in range(3000)):
            print(json.dumps({{"piece": piece}}), flush=True)
            time.sleep(0.02)
        print(json.dumps({{"end": "done"}}), flush=True)
    except KeyboardInterrupt:
        print(json.dumps({{"end": "cut"}}), flush=True)
"""
"""Speaks the JSON of `zlaunch chat --json`, in the place of the run's interpreter."""


def talking_run(root: Path, name: str, model: str = MODEL) -> RunDir:
    """A finished run with an adapter, whose interpreter is `model`."""
    run = RunDir(root / f"{name}-20260101-000000-aaaa")
    program = root / "model.py"
    program.write_text(model)
    program.chmod(0o755)
    run.write({"plan.json": json.dumps({"backend": "local", "launch": {"python": str(program)}})})
    run.write({"adapter/adapter_config.json": "{}", "train.json": "{}"})
    run.save_record(
        RunRecord(run_id=run.run_id, name=name, backend="local", created=1.0, submitted=2.0, state="SUCCEEDED")
    )
    return run


@contextmanager
def served() -> Iterator[Site]:
    """The server of `zlaunch ui` over $ZLAUNCH_RUNS."""
    site = Site(
        "127.0.0.1", 0,
        lambda: [run for run in find.list_runs(find.runs_root()) if run.run_json.exists()],
        lambda run: current_state.last_seen(run)[0],
    )  # fmt: skip
    thread = threading.Thread(target=site.serve, daemon=True)
    thread.start()
    yield site
    site.end()
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def live_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()
    with served() as site:
        yield site


Post = Callable[..., tuple[int, Any]]


@pytest.fixture
def post(live_site: Site) -> Post:
    def post(path: str, value: Any = None, *, method: str = "POST", cookie: str | None = None, **headers: str) -> Any:
        """(status, JSON or text of the answer) to a request as a page of ours makes it, but for what is given."""
        connection = http.client.HTTPConnection("127.0.0.1", live_site.port, timeout=60)
        ours = {
            "Cookie": f"{live_site.cookie}={live_site.token if cookie is None else cookie}",
            "Origin": f"http://127.0.0.1:{live_site.port}",
        }
        given = {key: text for key, text in {**ours, **headers}.items() if text}
        connection.request(method, path, body=None if method == "GET" else json.dumps(value or {}), headers=given)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        is_json = (answer.headers["Content-Type"] or "").startswith("application/json")
        return answer.status, json.loads(text) if is_json else text

    return post
