"""Texts of ours in Chinese: numbers stay, no reason or advice is forgotten, and an unknown text stays as it is."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from launcher.job import explain, ranges
from launcher.machine.language import verdict_rows
from launcher.machine.language.bilingual import in_chinese
from launcher.node.agent.causes import CAUSES, Cause
from launcher.plan import autos, batch, training
from launcher.rundir.verdict import RULES, Rule
from tests.beds.places import ROOT
from train import compat, families

NUMBERS = r"\d[\d.e-]*\d|\d"


def is_chinese(text: str) -> bool:
    return bool(re.search("[\u4e00-\u9fff]", text))


@pytest.mark.parametrize(
    "text",
    [
        "learned: 4.72 to 1.69 on the held-out records",
        "overfits since step 9: held-out loss 1.60 to 2.31, training loss 0.02",
        "not learning: the training loss is flat (2.31 to 2.30)",
        "diverged: the training loss rose from 2.10 to 9.87",
        "no better than the majority class: 52% right, and 55% by always saying 'yes'",
        "too few held-out records to judge: 4: 5.71 to 5.49 on the held-out records",
        "answers never end: 60 of 64 are longer than eval.max_new_tokens, and those expected are not",
        "is train.learning_rate too small (1.0e-07)? or does the model know these records already?",
        "the held-out loss was smallest after step 40",
        "training and held-out data overlap: 9 of 64 held-out records are training records too",
        "256 tokens per pass, of 8 records per rank and step; needs 18.8 GiB of the 21.4 GiB that NVIDIA L4 has free",
        "6 measurements of the loss on 8 of 64 records of data.eval cost at most 5% of the training",
        "data.train: 1 step; each record 3 times, because the last step takes 4 records more than train.epochs asks "
        "for; set train.global_batch_size below 8 for more steps",
        "gpu:h200:2 of partition 'big': the smallest of 2",
        "/images/a.sif is a .sif file; use --container ENGINE for another engine",
        "model.quantization: nf4, train.micro_batch_size: auto, 4 GPUs like this one (ZeRO-3 shares the weights)",
    ],
)
def test_a_text_is_said_in_chinese_with_its_numbers(text: str) -> None:
    found = in_chinese(text)
    assert is_chinese(found)
    assert sorted(re.findall(NUMBERS, found)) == sorted(re.findall(NUMBERS, text))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_has_a_headline_in_chinese(rule: Rule) -> None:
    assert any(pattern.startswith(rule.name) for pattern, _ in verdict_rows.ROWS)


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.name)
def test_the_advice_for_every_cause_is_there_in_chinese(cause: Cause) -> None:
    assert is_chinese(in_chinese(cause.advice))


@pytest.mark.parametrize(
    "why", sorted({family.why for family in families.FAMILIES} | {"Unsloth is not installed here"})
)
def test_why_an_engine_trains_a_family_is_there_in_chinese(why: str) -> None:
    assert is_chinese(in_chinese(f"engine peft: {why} (its CPU backend here)"))


@pytest.mark.parametrize(
    "line",
    [
        "loading the base model: 5 s so far",
        "answering: 40 of 500 records, 12 s left",
        "loading the base model: 120 of 300 weights, 2 s left",
        "fetching hub:owner/set: 31.5 MB, 3.1 MB/s",
        "fetching the base model: 31.5 of 2,130.0 MB, 12.0 MB/s, 20 s left",
        "copying results from node1: 31.5 MB of 2.13 GB, 3.0 MB/s, 20 s left",
        "login: copying results: 31.5 MB, 3.0 MB/s",
        "logits of the merged model (torch.float32) and of the trained one (not quantized): largest difference "
        "1.2e-06, 0.01% of the largest logit",
        "merged: /runs/demo/export-merged",
        "error: /runs/demo/export-merged exists already",
        "  -> name a new directory with --out, or remove this one",
        "from the checkpoint of step 12",
        "error: demo-1 has succeeded",
        "owner/tiny is not in the cache, and https://hub.example does not answer: [Errno -2] Name or service not known",
    ],
)
def test_what_a_command_behind_a_button_prints_is_there_in_chinese(line: str) -> None:
    found = in_chinese(line)
    assert is_chinese(found)
    assert not re.search("so far|left|of the|exists|records|weights", found)
    assert sorted(re.findall(NUMBERS, found)) == sorted(re.findall(NUMBERS, line))


def works() -> Iterator[str]:
    """What a command may be at: the texts given to train.rundir.counter.doing."""
    for file in (ROOT / "train").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "doing":
                text = node.args[0]
                if isinstance(text, ast.Constant):
                    yield str(text.value)
                elif isinstance(text, ast.JoinedStr):
                    yield "".join(str(one.value) if isinstance(one, ast.Constant) else "train" for one in text.values)


@pytest.mark.parametrize("work", sorted(set(works())))
def test_every_work_of_a_command_is_there_in_chinese(work: str) -> None:
    assert is_chinese(in_chinese(work))


VALUES = ("3", "1.5 GiB", "'x'", "DoRA", "", "5% of the training", "2 ranks", "a number", "6 and 8", "4 of 8")
"""What may stand in a sentence where the source computes something."""


def sentences(module: ModuleType, where: Callable[[ast.AST], bool]) -> Iterator[list[str]]:
    """The sentences in the parts of a module's source for which `where` holds, each in several fillings."""
    for part in filter(where, ast.walk(ast.parse(inspect.getsource(module)))):
        inner = {id(node) for found in ast.walk(part) if isinstance(found, ast.JoinedStr) for node in found.values}
        for node in ast.walk(part):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                if node.value.count(" ") > 1 and node.value[-1] not in " .":
                    yield [node.value]
            elif isinstance(node, ast.JoinedStr):
                pieces = [[piece.value] if isinstance(piece, ast.Constant) else VALUES for piece in node.values]
                texts = ["".join(map(str, chosen)) for chosen in itertools.product(*pieces)]
                if texts[0].count(" ") > 2 and texts[0][0] != " ":
                    yield texts


def in_function(*names: str) -> Callable[[ast.AST], bool]:
    return lambda node: isinstance(node, ast.FunctionDef) and node.name.startswith(names) and _undocumented(node)


def _undocumented(node: ast.FunctionDef) -> bool:
    if ast.get_docstring(node):
        del node.body[0]
    return True


def in_table(name: str) -> Callable[[ast.AST], bool]:
    return lambda node: isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name


def in_call(name: str) -> Callable[[ast.AST], bool]:
    return lambda node: isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


@pytest.mark.parametrize(
    ("module", "where"),
    [
        (autos, in_function("_why")),
        (training, in_function("loss_reason")),
        (compat, in_table("RULES")),
        (compat, in_function("warnings", "check_length")),
        (batch, in_call("BatchError")),
        (explain, in_call("Refusal")),
        (ranges, in_call("Refusal")),
    ],
)
def test_no_reason_and_no_refusal_of_a_job_is_without_chinese(module: ModuleType, where: Any) -> None:
    found = list(sentences(module, where))
    assert found
    missing = [texts[0] for texts in found if not any(is_chinese(in_chinese(text)) for text in texts)]
    assert missing == []


def test_lines_places_and_joined_texts_are_texts_in_turn() -> None:
    text = (
        "3 records of /a.jsonl cannot be used:\n"
        "  /a.jsonl:7: none of the keys 'messages', 'conversations', 'instruction' and their like (found: frage, answ);"
        " data.columns could be {instruction: frage, output: answ}\n"
        "  ... and 2 more"
    )
    found = in_chinese(text).split("\n")
    assert [is_chinese(line) for line in found] == [True, True, True]
    assert "/a.jsonl:7:" in found[1]
    assert "{instruction: frage, output: answ}" in found[1]
    assert (
        in_chinese("train.epochs: expected a number or null, got 'many'")
        == "train.epochs: 应为数字 或 null，得到的是 'many'"
    )
    assert in_chinese("expected above 0, at most 1, got -1") == "应大于 0，至多为 1，得到的是 -1"


@pytest.mark.parametrize(
    "text",
    [
        "learned: a lot",
        "Some library says: this or that",
        "a: b: c",
        "",
        " ",
        "x; y",
        "a or b",
        "\\1 \\g<t>",
        "x" * 5000,
    ],
)
def test_another_text_stays(text: str) -> None:
    assert in_chinese(text) == text


def test_a_text_with_backslashes_stays_whole_within_a_row() -> None:
    assert "C:\\1\\g<t>" in in_chinese("cannot read C:\\1\\g<t>: No such file or directory")
