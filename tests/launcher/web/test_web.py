"""The server of `zlaunch ui`: whom it answers, and with what."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState
from launcher.web.server import Site

ROOT = Path(__file__).parents[3]


def a_run(folder: Path, name: str) -> RunDir:
    run = RunDir(folder / f"{name}-20260101-000000-aaaa")
    run.write({"plan.json": '{"train": {"train": {}}}', "logs/node-0/rank-0.log": "one\ntwo\n"})
    run.save_record(RunRecord(run_id=run.run_id, name=name, backend="local", created=1.0, submitted=2.0))
    return run


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    runs = [a_run(tmp_path, "one"), a_run(tmp_path, "two"), a_run(tmp_path, "torn")]
    runs[2].run_json.write_text("{torn")
    made = Site("127.0.0.1", 0, lambda: runs, lambda run: RunState.RUNNING)
    threading.Thread(target=made.serve, daemon=True).start()
    yield made
    made.end()


def get(
    site: Site, path: str, *, method: str = "GET", cookie: str | None = None, **headers: str
) -> tuple[int, str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    ours = {"Cookie": f"{site.cookie}={site.token if cookie is None else cookie}", **headers}
    connection.request(method, path, headers=ours)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), answer.headers
    connection.close()
    return found


@pytest.mark.parametrize(
    "path", ["/", "/stream", "/run/one-20260101-000000-aaaa", "/?token=wrong", "/?token=", "/nothing"]
)
def test_without_the_token_nothing_is_answered(site: Site, path: str) -> None:
    for cookie in ("", "wrong", site.token[:-1]):
        assert get(site, path, cookie=cookie)[0] == 403


def test_the_address_that_is_printed_sets_the_cookie(site: Site) -> None:
    status, _, headers = get(site, site.url.partition(str(site.port))[2], cookie="")
    assert (status, headers["Set-Cookie"]) == (200, f"{site.cookie}={site.token}; HttpOnly; Path=/; SameSite=strict")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Host": ""},
    ],
)
def test_pages_of_others_and_other_names_are_refused_even_with_the_token(site: Site, headers: dict[str, str]) -> None:
    assert get(site, "/", **headers)[0] == 403


def test_requests_from_its_own_pages_are_answered_under_each_of_its_names(site: Site) -> None:
    for name in ("127.0.0.1", "localhost", "[::1]"):
        host = f"{name}:{site.port}"
        assert get(site, "/", Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_only_reads(site: Site, method: str) -> None:
    assert get(site, "/", method=method)[0] == 403  # without an origin
    assert get(site, "/", method=method, Origin=f"http://127.0.0.1:{site.port}")[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/run/one", "/run/..", "/run/%2e%2e", "/run/..%2f..", "/run/one-20260101-000000-aaaa/log/0/../../run.json",
        "/run", "/run/one-20260101-000000-aaaa/log/0/-1", "/x",
        "/compare", "/compare?run=one-20260101-000000-aaaa",
    ],
)  # fmt: skip
def test_only_runs_of_the_list_are_found(site: Site, path: str) -> None:
    assert get(site, path)[0] == 404


def test_logs_pages_and_comparisons_are_served_and_a_damaged_run_hides_no_other(site: Site) -> None:
    run = "/run/one-20260101-000000-aaaa"
    assert get(site, f"{run}/log/0/0")[:2] == (200, "one\ntwo\n")
    assert get(site, f"{run}/log/5/7")[:2] == (200, "\n")
    assert get(site, run)[0] == 200
    assert get(site, "/compare?run=one-20260101-000000-aaaa&run=two-20260101-000000-aaaa")[0] == 200
    rows = site.board.rows()
    assert [row["state"] for row in rows] == [None, "RUNNING", "RUNNING"]
    assert "cannot read" in rows[0]["error"]
    assert get(site, "/run/torn-20260101-000000-aaaa")[0] == 404


def test_a_stream_sends_what_has_changed(site: Site, tmp_path: Path) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    headers = {"Cookie": f"{site.cookie}={site.token}"}
    connection.request("GET", "/run/one-20260101-000000-aaaa/stream", headers=headers)
    answer = connection.getresponse()
    first = json.loads(answer.readline().removeprefix(b"data: "))
    assert (first["curves"], first["final"]) == ({}, False)
    answer.readline()
    metrics = tmp_path / "one-20260101-000000-aaaa/metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.5}\n')
    second = json.loads(answer.readline().removeprefix(b"data: "))
    assert second["curves"]["loss"] == {"step": [1], "value": [2.5]}
    connection.close()


def test_the_command_prints_its_address_serves_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    a_run(tmp_path, "one")
    environment = {**os.environ, "ZLAUNCH_RUNS": str(tmp_path), "DISPLAY": "", "WAYLAND_DISPLAY": ""}
    command = [sys.executable, "-m", "launcher", "ui"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)\n", process.stdout.readline())
        assert found
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
        connection.request("GET", "/", headers={"Cookie": f"zlaunch-{found[1]}={found[2]}"})
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0


def test_a_port_that_is_taken_is_a_clear_error(site: Site) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "ui", "--no-browser", "--port", str(site.port)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{site.port}" in done.stderr


def test_without_the_extra_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from launcher.cli import main; sys.argv[1:] = ['ui']; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "this Python has no uvicorn" in done.stderr
    assert "-m pip install starlette uvicorn" in done.stderr


def test_a_damaged_file_is_reported_on_its_stream_which_goes_on(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "one-20260101-000000-aaaa"
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    connection.request("GET", f"/run/{run.name}/stream", headers={"Cookie": f"{site.cookie}={site.token}"})
    answer = connection.getresponse()
    assert "error" not in json.loads(answer.readline().removeprefix(b"data: "))
    answer.readline()
    (run / "plan.json").write_text("{torn")
    assert "plan.json" in json.loads(answer.readline().removeprefix(b"data: "))["error"]
    answer.readline()
    (run / "plan.json").write_text('{"train": {"train": {}}}')
    assert "error" not in json.loads(answer.readline().removeprefix(b"data: "))
    connection.close()
