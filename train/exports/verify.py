"""Compare an export, or a server that has it, with the run: the tokens of prompts, and greedy answers.

The export is asked in a process of its own (fresh.py), a server over HTTP (server.py). Two answers may part where the
run's own model finds two tokens equally likely but for rounding; that is told and passes. Anything else does not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from train.answers.generation import generation_config
from train.answers.trained import TrainedAdapter, find_adapter, load_adapted, trained_stop_ids
from train.data.prompts import as_messages
from train.data.recipe import Recipe
from train.data.tokenizer import Tokenizer
from train.errors import TrainError, UserError
from train.exports.merge import TOLERANCE
from train.exports.server import Server
from train.model.load import quantization_options

Turns = list[tuple[str, str]]
Same = Literal["same", "rounding", "different"]

PROBES: tuple[Turns, ...] = (
    [("user", "What is 12 + 30?")],
    [("user", "你好"), ("assistant", "你好！"), ("user", "再见\n\n- a\n- b")],
    [("system", "Answer briefly."), ("user", "  Hello ")],
)
"""Asked after the prompts of the run's own evaluation."""


@dataclass(frozen=True)
class Row:
    """One conversation, asked of both."""

    messages: list[dict[str, str]]
    prompt_ids: list[int]
    export_prompt_ids: list[int] | None
    """None if the server does not tell."""
    same_prompt: bool | None
    """By the ids, else by their number; None if the server tells neither."""
    answer: str
    export_answer: str
    answers: Same

    @property
    def agrees(self) -> bool:
        return self.same_prompt is not False and self.answers != "different"


@dataclass(frozen=True)
class Verification:
    against: str
    rows: list[Row]

    @property
    def agrees(self) -> bool:
        return all(row.agrees for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        rows = [{**asdict(row), "agrees": row.agrees} for row in self.rows]
        return {"against": self.against, "agrees": self.agrees, "prompts": rows}

    def lines(self) -> list[str]:
        """For people: a line per prompt, and both sides of a difference."""
        prompt = {True: "same", False: "DIFFERENT", None: "not told"}
        answers = {"same": "same", "rounding": "same but for rounding", "different": "DIFFERENT"}
        made = []
        for row in self.rows:
            asked = json.dumps(row.messages[-1]["content"], ensure_ascii=False)
            shown = asked if len(asked) <= 40 else f"{asked[:37]}..."
            made.append(f"prompt {prompt[row.same_prompt]}, answer {answers[row.answers]}: {shown}")
            if row.same_prompt is False and row.export_prompt_ids is not None:
                made += [f"    run's tokens     {row.prompt_ids}", f"    export's tokens  {row.export_prompt_ids}"]
            if row.answers != "same":
                made += [f"    run     {row.answer!r}", f"    export  {row.export_answer!r}"]
        passed = sum(row.agrees for row in self.rows)
        return [*made, f"{passed} of {len(self.rows)} prompts agree with {self.against}"]


def verify_directory(
    run: Path, directory: Path, count: int, max_new_tokens: int, which: str | None = None
) -> Verification:
    """Compare an exported directory. Raises UserError, and TrainError if it cannot be loaded by itself."""
    adapter = find_adapter(run.resolve(), which)
    own = _Own(adapter, max_new_tokens)
    conversations = _conversations(run, own, count)
    trusted = adapter.config.model.trust_remote_code or (directory / "alibi.py").is_file()
    is_adapter = (directory / "adapter_config.json").is_file()
    request = {
        "directory": str(directory),
        "conversations": [as_messages(turns) for turns in conversations],
        "max_new_tokens": max_new_tokens,
        "trust_remote_code": trusted or (is_adapter and (Path(adapter.base) / "alibi.py").is_file()),
        "quantization": _quantization(adapter) if is_adapter else None,
    }
    told = _fresh(request)
    return Verification(
        str(directory), [own.compare(turns, found) for turns, found in zip(conversations, told, strict=True)]
    )


def verify_server(run: Path, server: Server, count: int, max_new_tokens: int, which: str | None = None) -> Verification:
    """Compare what a server answers. Raises UserError and ServerError."""
    own = _Own(find_adapter(run.resolve(), which), max_new_tokens)
    rows = [
        own.compare(turns, server.ask(as_messages(turns), max_new_tokens)) for turns in _conversations(run, own, count)
    ]
    return Verification(f"{server.url} ({server.model})", rows)


def _quantization(adapter: TrainedAdapter) -> dict[str, Any] | None:
    """How training quantized the base, and so how an adapter wants it, as JSON."""
    import torch

    options = quantization_options(adapter.config, torch.float32)
    return options["quantization_config"].to_dict() if options else None


def _fresh(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers of the directory in a process of its own, outside this project."""
    command = [sys.executable, str(Path(__file__).with_name("fresh.py"))]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, cwd=request["directory"])
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise TrainError(f"{request['directory']} cannot be loaded and asked by itself: {last[0]}", code="ZL-EXPORT-02")
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _conversations(run: Path, own: _Own, count: int) -> list[Turns]:
    """Questions of the run's evaluation, then PROBES, as far as the template takes them; `count` in all."""
    asked = [[*own.system, ("user", text)] for text in _evaluated(run)[: max(1, count - len(PROBES))]]
    found: list[Turns] = []
    for turns in [*asked, *PROBES]:
        try:
            own.prompt_ids(turns)
        except UserError:  # a template may take no system message
            continue
        found.append(turns)
    return found[:count]


def _evaluated(run: Path) -> list[str]:
    """The different questions of predictions.jsonl, in its order; none if the run was not evaluated."""
    file = run / "predictions.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return list(dict.fromkeys(str(json.loads(line)["prompt"]) for line in lines))


class _Own:
    """The run's own model: base and adapter as they were trained."""

    def __init__(self, adapter: TrainedAdapter, max_new_tokens: int) -> None:
        self.model, self.tokenizer = load_adapted(adapter, device="cpu")
        self.stop = trained_stop_ids(adapter, self.tokenizer, self.model.config)
        self.max_new_tokens = max_new_tokens
        self._rendering = Tokenizer(Recipe.of(self.tokenizer, max_length=max_new_tokens))
        system = adapter.config.data.system
        self.system: Turns = [("system", system)] if system else []
        quantized = adapter.config.model.loads_quantized
        self.dtype = "bfloat16" if quantized else str(self.model.config.dtype or "float32").removeprefix("torch.")

    def prompt_ids(self, turns: Turns) -> list[int]:
        """As in training and in `zlaunch generate`. Raises UserError."""
        return self._rendering.prompt_ids(turns)

    def compare(self, turns: Turns, found: dict[str, Any]) -> Row:
        """`found`: what fresh.py or Server.ask tells."""
        ids = self.prompt_ids(turns)
        answer_ids = self._answer(ids)
        answer = self._text(answer_ids)
        theirs = found["prompt_ids"]
        same = None if theirs is None else theirs == ids
        if same is None and found.get("prompt_tokens"):
            same = found["prompt_tokens"] == len(ids)
        answers: Same = "same"
        if found["answer"] != answer:
            their_ids = found.get("answer_ids")
            if their_ids is None:
                their_ids = self.tokenizer(found["answer"], add_special_tokens=False)["input_ids"]
            answers = "rounding" if self._is_tie(ids, answer_ids, their_ids) else "different"
        return Row(as_messages(turns), ids, theirs, same, answer, found["answer"], answers)

    def _answer(self, ids: list[int]) -> list[int]:
        import torch

        config = generation_config(self.tokenizer, self.max_new_tokens, self.stop)
        inputs = torch.tensor([ids], device=self.model.device)
        with torch.no_grad():
            out = self.model.generate(
                input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config
            )
        answer: list[int] = out[0, len(ids) :].tolist()
        return answer

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _is_tie(self, prompt: list[int], ours: Sequence[int], theirs: Sequence[int]) -> bool:
        """Whether the run's model finds the first two tokens that differ equally likely, but for rounding."""
        import torch

        place = next((at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
        if place is None:
            return False
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([[*prompt, *ours[:place]]])).logits[0, -1].float()
        gap = (logits[ours[place]] - logits[theirs[place]]).abs()
        return bool(gap <= TOLERANCE.get(self.dtype, TOLERANCE["float32"]) * logits.abs().max())
