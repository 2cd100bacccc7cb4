"""An adapter on a hub: huggingface_hub's own client against a server that answers as the hub does."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.beds.ranks import ROOT, train

pytestmark = pytest.mark.train
pytest.importorskip("torch")
TOKEN = "hf_secret"


class Hub(BaseHTTPRequestHandler):
    """Creating repositories, LFS for weights, commits: https://huggingface.co/docs/hub/api."""

    stored: dict[str, bytes] = {}
    objects: dict[str, bytes] = {}
    asked: list[tuple[str, Any]] = []

    def log_message(self, *arguments: Any) -> None:
        pass

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer({"error": "Entry not found"}, 404)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self.objects[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_POST(self) -> None:
        body = self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials"}, 401)
            return
        url = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.asked.append((self.path, asked))
            self.answer({"url": f"{url}/{asked.get('organization')}/{asked['name']}"})
        elif "/preupload/" in self.path:
            modes = {"safetensors": "lfs"}
            files = [
                {"path": one["path"], "uploadMode": modes.get(one["path"].rpartition(".")[2], "regular"),
                 "shouldIgnore": False, "oid": None}
                for one in json.loads(body)["files"]
            ]  # fmt: skip
            self.answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            actions = [{**one, "actions": {"upload": {"href": f"{url}/put/{one['oid']}"}}} for one in wanted]
            self.answer({"transfer": "basic", "objects": actions})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.stored[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.stored[value["path"]] = self.objects[value["oid"]]
            self.answer({"commitUrl": f"{url}/x/y/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None})
        else:
            self.answer({"errors": [], "warnings": []})


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.stored, Hub.objects, Hub.asked = {}, {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def push(run: Path, hub: str, *more: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    env.pop("HF_HUB_OFFLINE", None)
    argv = [sys.executable, "-m", "train.exports.push", "--run-dir", str(run), "--to", "someone/my-adapter", *more]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)


def test_the_adapter_and_its_card_arrive_and_name_no_path_of_this_machine(configure: Any, hub: str) -> None:
    run: Path = configure("pushed", **{"eval.after": False, "data.eval": None})
    train(run)
    wrong = push(run, hub, "--base-model=some/base", token="hf_other")
    assert (wrong.returncode, Hub.stored) == (2, {})
    assert "set HF_TOKEN to a token that may write there" in wrong.stderr
    assert "Traceback" not in wrong.stderr

    done = push(run, hub, "--base-model=some/base", "--private")
    assert (done.returncode, done.stdout.strip()) == (0, f"{hub}/someone/my-adapter"), done.stderr
    assert "private" in (
        Hub.asked[-1][1].get("visibility"),
        *(key for key, value in Hub.asked[-1][1].items() if value is True),
    )
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert Hub.stored["adapter_model.safetensors"] == weights
    assert json.loads(Hub.stored["adapter_config.json"])["base_model_name_or_path"] == "some/base"
    card = Hub.stored["README.md"].decode()
    assert card.startswith("---\nbase_model: some/base\nlibrary_name: ")
    assert 'base, adapter = "some/base", "."' in card
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= Hub.stored.keys()
    assert "export.json" not in Hub.stored
    for name, content in Hub.stored.items():
        assert str(run).encode() not in content, name


def test_a_base_model_of_this_machine_must_be_named(tmp_path: Path) -> None:
    from train.errors import UserError
    from train.exports.push import name_base

    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    with pytest.raises(UserError, match="a local directory, models, which nobody else can load"):
        name_base(tmp_path, "/home/someone/models", None)
    name_base(tmp_path, "Qwen/Qwen3-8B", None)
    assert "Qwen/Qwen3-8B" in (tmp_path / "adapter_config.json").read_text()
