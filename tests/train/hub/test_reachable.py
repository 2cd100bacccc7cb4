"""A look at records must not wait for a hub that does not answer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.beds.ranks import ROOT
from train.errors import UserError
from train.hub.cache_places import places_of
from train.hub.reachable import stay_offline_unless_reachable, why_unreachable


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def silent() -> Iterator[str]:
    """A hub that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class Refusing(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(403)

    def log_message(self, *args: object) -> None:
        pass


def test_a_hub_is_there_if_it_answers_with_any_status() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert why_unreachable(f"http://127.0.0.1:{server.server_port}") is None
        server.shutdown()


def test_each_way_of_not_answering_is_named(silent: str) -> None:
    assert "refused" in str(why_unreachable("http://127.0.0.1:9"))
    assert "not known" in str(why_unreachable("http://no.such.host.invalid", 60))
    assert "no answer within 0.2 s" in str(why_unreachable(silent, 0.2))
    assert why_unreachable("nonsense") is not None


def test_what_is_in_no_cache_is_refused_and_what_is_cached_goes_on_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"hub:owner.MySet is not in the cache, and http:..127.0.0.1:9 does not answer"):
        stay_offline_unless_reachable([], ["owner/MySet"])
    with pytest.raises(UserError, match=r"model.path: owner/tiny is not in the cache"):
        stay_offline_unless_reachable(["owner/tiny"], [])
    (tmp_path / "hf/datasets/owner___my_set").mkdir(parents=True)
    (tmp_path / "hf/hub/models--owner--tiny").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert "only what is in the cache" in str(stay_offline_unless_reachable(["owner/tiny"], ["owner/MySet"]))
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert len(places_of("datasets", "owner/MySet")) == 2


def test_files_of_this_machine_ask_no_hub(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", silent)
    assert stay_offline_unless_reachable([], []) is None


def test_records_of_a_hub_without_a_network_are_refused_within_seconds(tmp_path: Path, silent: str) -> None:
    (tmp_path / "job.yaml").write_text("model: {source: random}\ndata: {train: hub:owner/name}\n")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": silent}
    command = [sys.executable, "-m", "launcher", "data", "show", "job.yaml"]
    started = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-2].startswith("error[ZL-MODEL-09]: hub:owner/name is not in the cache, and http://127.0.0.1")
    assert lines[-2].endswith("does not answer: no answer within 5 s")
    assert lines[-1].startswith("  -> set HF_ENDPOINT to a mirror")
    assert lines[0].startswith("asking the hub: ")
    assert time.monotonic() - started < 45  # 5 s and the start of Python, which a busy machine makes long
