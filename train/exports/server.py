"""Ask a server with OpenAI's HTTP interface: vLLM, SGLang, Ollama, llama.cpp and others."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from train.errors import TrainError, UserError

_SECONDS = 600
"""For one answer; some servers load the model at the first request."""


class ServerError(TrainError):
    """The server failed, which says nothing about the model."""

    cause = "bad_configuration"
    code = "ZL-EXPORT-03"


@dataclass(frozen=True)
class Server:
    """`url` with or without /v1; `model` is the name that it serves the model under."""

    url: str
    model: str

    @staticmethod
    def at(url: str, model: str | None) -> Server:
        """The server and the model to ask. Raises UserError if that is not clear, ServerError if it does not answer."""
        root = url.rstrip("/").removesuffix("/v1")
        if urllib.parse.urlsplit(root).scheme not in ("http", "https"):
            raise UserError(
                f"--server: {url} is not a URL", "give one such as http://127.0.0.1:8000", code="ZL-EXPORT-03"
            )
        names = [str(found.get("id")) for found in _call(f"{root}/v1/models").get("data") or []]
        if model is None and len(names) != 1:
            raise UserError(
                f"--server: {url} serves {len(names)} models: {', '.join(names) or 'none'}",
                "name the export's with --server-model",
                code="ZL-EXPORT-03",
            )
        return Server(root, names[0] if model is None else model)

    def ask(self, turns: list[dict[str, str]], max_new_tokens: int) -> dict[str, Any]:
        """{"answer", "prompt_ids" or None, "prompt_tokens" or None}: not every server tells the last two."""
        request = {"model": self.model, "messages": turns, "temperature": 0, "max_tokens": max_new_tokens}
        told = _call(f"{self.url}/v1/chat/completions", request)
        try:
            answer = told["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError):
            raise ServerError(f"{self.url} sent no chat completion: {json.dumps(told)[:200]}") from None
        tokens = (told.get("usage") or {}).get("prompt_tokens")
        return {"answer": str(answer).strip(), "prompt_ids": self._tokens(turns), "prompt_tokens": tokens}

    def _tokens(self, turns: list[dict[str, str]]) -> list[int] | None:
        """The ids of the prompt by vLLM's /tokenize; None where there is no such thing."""
        request = {"model": self.model, "messages": turns, "add_generation_prompt": True}
        try:
            found = _call(f"{self.url}/tokenize", request).get("tokens")
        except ServerError:
            return None
        return found if isinstance(found, list) and all(isinstance(token, int) for token in found) else None


def _call(url: str, content: Any = None) -> dict[str, Any]:
    """The JSON object at a URL; POST if there is content. Raises ServerError."""
    body = None if content is None else json.dumps(content).encode()
    address = urllib.parse.urlsplit(url)
    if address.scheme not in ("http", "https"):
        raise ServerError(f"{url}: expected http:// or https://")
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - checked above
    local = address.hostname in ("localhost", "127.0.0.1", "::1")
    handlers = [urllib.request.ProxyHandler({})] if local else []
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=_SECONDS) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        said = error.read(300).decode("utf-8", "replace").strip()
        raise ServerError(f"{url} answered {error.code} {error.reason}: {said}") from error
    except (OSError, ValueError) as error:
        raise ServerError(f"{url} does not answer: {getattr(error, 'reason', error)}") from error
    if not isinstance(found, dict):
        raise ServerError(f"{url} sent no JSON object")
    return found
