"""`export --verify` and `--server` compare an export or a server with the run, and see what was changed."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.beds.adapters import adapter_run
from tests.beds.models import CHATML, native

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("verify")
    base = native(place / "base", "Qwen2Config", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", CHATML)
    made = adapter_run(place / "run", base)
    asked = [
        {"prompt": text, "expected": "", "given": ""} for text in ("今天天气很好", "the quick brown fox", "x", "x")
    ]
    (made / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def merged(run: Path) -> Path:
    from train.exports.kinds import export

    export(run, "merged", run / "x", lambda _: None)
    return run / "x"


def verified(run: Path, *args: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    from train import export

    capsys.readouterr()
    status = export.main(["--run-dir", str(run), "--json", "--max-new-tokens", "8", *args])
    printed = capsys.readouterr()
    return status, json.loads(printed.out) if printed.out else {"error": printed.err}


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_an_export_is_written_and_agrees_with_its_run(
    run: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / kind
    status, result = verified(run, "--to", kind, "--out", str(out), "--verify", capsys=capsys)
    assert status == 0, result
    assert result["agrees"] is True
    assert result["against"] == str(out)
    assert [row["messages"][-1]["content"] for row in result["prompts"][:3]] == [
        "今天天气很好",
        "the quick brown fox",
        "x",
    ]
    assert [len(row["messages"]) for row in result["prompts"]] == [1, 1, 1, 1, 3, 2]
    for row in result["prompts"]:
        assert row["prompt_ids"] == row["export_prompt_ids"]
        assert row["answers"] == "same"
        assert row["answer"] == row["export_answer"]
    assert any(row["answer"] for row in result["prompts"])
    assert (out / "tokenizer.json").is_file()


def test_answers_end_where_the_adapter_says(run: Path, tmp_path: Path) -> None:
    from train.answers.trained import find_adapter
    from train.exports.verify import _Own

    trained = shutil.copytree(run, tmp_path / "run")
    own = _Own(find_adapter(trained), 8)
    prompt = own.prompt_ids([("user", "x")])
    answer = own._answer(prompt)
    end = next(place for place, token in enumerate(answer) if token not in own.stop)
    (trained / "adapter/generation_config.json").write_text(json.dumps({"eos_token_id": answer[end]}))
    assert _Own(find_adapter(trained), 8)._answer(prompt) == answer[: end + 1]


def test_another_template_is_seen(run: Path, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shutil.copytree(merged, tmp_path / "x")
    (out / "chat_template.jinja").write_text(CHATML.replace("<|im_start|>assistant", "<|im_start|>bot"))
    status, result = verified(run, "--to", "merged", "--out", str(out), "--verify", "--prompts", "3", capsys=capsys)
    assert status == 1
    assert {row["same_prompt"] for row in result["prompts"]} == {False}


def test_other_weights_are_seen_and_shown(
    run: Path, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    from train import export

    out = shutil.copytree(merged, tmp_path / "x")
    weights = load_file(out / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].flip(0) * -1
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    args = ["--run-dir", str(run), "--to", "merged", "--out", str(out), "--verify", "--prompts", "2"]
    assert export.main(args) == 1
    printed = capsys.readouterr().out
    assert "prompt same, answer DIFFERENT" in printed
    assert "0 of 2 prompts agree with" in printed


def test_a_directory_that_does_not_load_is_an_error(
    run: Path, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(merged, tmp_path / "x")
    (out / "model.safetensors").unlink()
    status, result = verified(run, "--to", "merged", "--out", str(out), "--verify", capsys=capsys)
    assert status == 1
    assert "cannot be loaded and asked by itself" in result["error"]


def test_two_answers_may_part_at_a_tie_only(run: Path) -> None:
    import torch

    from train.answers.trained import find_adapter
    from train.exports.verify import _Own

    own = _Own(find_adapter(run), 8)
    ids = own.prompt_ids([("user", "x")])
    answer = own._answer(ids)
    with torch.no_grad():
        logits = own.model(input_ids=torch.tensor([ids])).logits[0, -1]
    far = int(logits.argmin())
    assert not own._is_tie(ids, answer, [far])
    head = own.model.get_output_embeddings()  # all-linear leaves it alone
    head.weight.data[far] = head.weight.data[answer[0]]
    assert own._is_tie(ids, answer, [far])


# A server -------------------------------------------------------------------------------------------------------------


class _Model(BaseHTTPRequestHandler):
    """An exported model behind OpenAI's interface. The server object holds model, tokenizer and what it leaves out."""

    server: Any

    def do_GET(self) -> None:
        self._send({"data": [{"id": name} for name in self.server.names]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        template = self.server.template
        ids = self.server.tokenizer.apply_chat_template(
            asked["messages"], chat_template=template, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"]
        if self.path == "/tokenize" and self.server.tokenizes:
            self._send({"tokens": ids[0].tolist()})
        elif self.path == "/v1/chat/completions":
            assert asked["model"] in self.server.names
            assert asked["temperature"] == 0
            out = self.server.model.generate(input_ids=ids, max_new_tokens=asked["max_tokens"], do_sample=False)
            text = self.server.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            usage = {"prompt_tokens": ids.shape[1]}
            self._send({"choices": [{"message": {"content": text}}], "usage": usage})
        else:
            self.send_error(404)

    def _send(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(merged: Path) -> Iterator[Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    made.model, made.tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    made.template, made.names, made.tokenizes = made.tokenizer.chat_template, ["served"], True
    made.url = f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.mark.parametrize("tokenizes", [True, False])
def test_a_server_with_the_export_agrees(
    run: Path, server: Any, tokenizes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    server.tokenizes = tokenizes
    status, result = verified(run, "--server", f"{server.url}/v1", "--prompts", "4", capsys=capsys)
    assert status == 0, result
    assert result["against"] == f"{server.url} (served)"
    assert {row["same_prompt"] for row in result["prompts"]} == {True}
    assert all((row["export_prompt_ids"] == row["prompt_ids"]) is tokenizes for row in result["prompts"])


@pytest.mark.parametrize("tokenizes", [True, False])
def test_a_server_that_asks_otherwise_is_seen(
    run: Path, server: Any, tokenizes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    server.tokenizes = tokenizes
    server.template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    status, result = verified(run, "--server", server.url, "--prompts", "3", capsys=capsys)
    assert status == 1
    assert {row["same_prompt"] for row in result["prompts"]} == {False}


def test_of_several_models_one_must_be_named(run: Path, server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.names = ["base", "adapter"]
    status, result = verified(run, "--server", server.url, capsys=capsys)
    assert status == 2
    assert "serves 2 models: base, adapter" in result["error"]
    args = ("--server-model", "adapter", "--prompts", "1")
    assert verified(run, "--server", server.url, *args, capsys=capsys)[0] == 0


@pytest.mark.parametrize(
    ("url", "status", "why"), [("127.0.0.1:9", 2, "is not a URL"), ("http://127.0.0.1:9", 1, "does not answer")]
)
def test_no_server_is_an_error(run: Path, url: str, status: int, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, result = verified(run, "--server", url, capsys=capsys)
    assert (found, why in result["error"]) == (status, True)
