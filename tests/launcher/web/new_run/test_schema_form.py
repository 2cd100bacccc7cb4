"""The form is the schema: every key, with its type and default."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import UsageError
from launcher.job.explain import is_section, known_keys
from launcher.job.load import checked, read_tree
from launcher.job.spec import JobSpec
from launcher.lifecycle.job_file import demo_job
from launcher.machine import installation
from launcher.web.new_run.form_values import Problem, job_of, values_of
from launcher.web.new_run.schema_form import AT_FIRST, NOT_HERE, Field, fields

HERE = Path("/work dir")


def test_every_key_of_the_schema_is_a_field() -> None:
    keys = {key for key, kind in known_keys().items() if not is_section(kind)} - set(NOT_HERE)
    assert set(fields()) == keys
    assert set(AT_FIRST) <= keys


@pytest.mark.parametrize(
    ("key", "kind", "default", "choices"),
    [
        ("model.quantization", "choice", "none", ("none", "nf4", "int8", "fp8", "published")),
        ("train.zero_stage", "choice", "auto", ("auto", "0", "1", "2", "3")),
        ("train.gradient_checkpointing", "choice", "auto", ("auto", "true", "false")),
        ("eval.after", "switch", "true", ()),
        ("train.learning_rate", "number", "0.0002", ()),
        ("train.epochs", "number", "1", ()),
        ("train.micro_batch_size", "number", "auto", ("auto",)),
        ("train.global_batch_size", "number", "auto", ()),
        ("slurm.gpus_per_node", "number", "", ()),
        ("model.path", "word", "", ()),
        ("data.system", "text", "", ()),
        ("data.train", "lines", "", ()),
        ("lora.target_modules", "lines", "auto", ()),
        ("env", "mapping", "", ()),
    ],
)
def test_a_type_of_the_schema_is_a_kind_of_field(key: str, kind: str, default: str, choices: tuple[str, ...]) -> None:
    field = fields()[key]
    assert (field.kind, field.default, field.choices) == (kind, default, choices)


def test_the_defaults_of_the_form_are_those_of_an_empty_job() -> None:
    filled = job_of({key: field.default for key, field in fields().items()}, HERE)
    assert filled.problems == ()
    assert filled.spec == JobSpec()


@pytest.mark.parametrize(
    ("values", "tree"),
    [
        ({"train.epochs": "3", "train.learning_rate": "2e-5"}, {"train": {"epochs": 3, "learning_rate": 2e-5}}),
        ({"train.epochs": " ", "model.source": "huggingface", "eval.after": "true"}, {}),
        ({"eval.after": "false", "train.zero_stage": "2"}, {"train": {"zero_stage": 2}, "eval": {"after": False}}),
        ({"data.train": "a.jsonl"}, {"data": {"train": "/work dir/a.jsonl"}}),
        ({"data.train": "a b.jsonl\n\n  /c #1: {d}.jsonl \r\n"},
         {"data": {"train": ["/work dir/a b.jsonl", "/c #1: {d}.jsonl"]}}),
        ({"data.train": "hub:o/n:train[:5%]"}, {"data": {"train": "hub:o/n:train[:5%]"}}),
        ({"data.train": "{path: a, weight: 0.5}\nb"},
         {"data": {"train": [{"path": "/work dir/a", "weight": 0.5}, "/work dir/b"]}}),
        ({"lora.target_modules": "[qv]_proj|k"}, {"lora": {"target_modules": "[qv]_proj|k"}}),
        ({"lora.target_modules": "[q_proj]"}, {"lora": {"target_modules": ["q_proj"]}}),
        ({"lora.target_modules": "q_proj\nv_proj"}, {"lora": {"target_modules": ["q_proj", "v_proj"]}}),
        ({"ssh.setup": "[ -d x ]"}, {"ssh": {"setup": ["[ -d x ]"]}}),
        ({"secrets": "HF_TOKEN"}, {"secrets": ["HF_TOKEN"]}),
        ({"env": "A: 010\nB: 'x: y'"}, {"env": {"A": "010", "B": "x: y"}}),
        ({"data.system": " 你好：\n# no comment "}, {"data": {"system": " 你好：\n# no comment "}}),
        ({"name": "007", "slurm.time": "1:00"}, {"name": "007", "slurm": {"time": "1:00"}}),
        ({"slurm.gpus_per_node": "h200:2", "train.global_batch_size": "about 8"},
         {"train": {"global_batch_size": "about 8"}, "slurm": {"gpus_per_node": "h200:2"}}),
        ({"model.path": "~nobody-here/x"}, None),
    ],
)  # fmt: skip
def test_a_form_isread_tree_as_a_job_file_is(values: dict[str, str], tree: dict[str, object] | None) -> None:
    filled = job_of(values, HERE)
    if tree is None:
        assert filled.problems
        return
    assert filled.problems == ()
    assert filled.tree == tree
    assert list(filled.tree) == [name for name in JobSpec.__struct_fields__ if name in tree]
    assert job_of(values_of(tree), Path("/elsewhere")).tree == tree


def test_every_error_stands_at_its_field_with_the_words_of_a_job_file() -> None:
    values = {
        "train.epochs": "many",
        "lora.r": "0",
        "train.zero_stage": "5",
        "data.columns": "a: [",
        "data.system": "x\0",
        "data.train": "{path: a, wieght: 2}",
        "secrets": "TOKEN=abc",
        "env": "A B: 1",
        "train.typo": "1",
        "lora": "x",
        "lora.alpha": "[1, 2]",
    }
    filled = job_of(values, HERE)
    assert filled.spec is None
    found = {problem.key: problem.message for problem in filled.problems}
    assert set(found) == set(values)
    assert found["train.epochs"] == "expected a number, got 'many'"
    assert found["lora.r"] == "expected at least 1, got 0"
    assert "expected auto or 0, 1, 2, 3" in found["train.zero_stage"] or "0, 1, 2, 3" in found["train.zero_stage"]
    assert "wieght" in found["data.train"]
    assert "abc" not in found["secrets"]
    assert "typo" in found["train.typo"]


def test_settings_are_judged_together_and_a_secret_is_not_repeated() -> None:
    both = job_of({"notify.sign": "$KEY", "notify.url": "https://hooks.example/abc"}, HERE)
    assert both.problems == ()
    assert both.spec is not None
    assert both.spec.notify.url == "$ZLAUNCH_NOTIFY_URL"  # as of a job file that holds an address
    alone = job_of({"notify.sign": "$KEY", "lora.r": "0"}, HERE)
    assert {problem.key for problem in alone.problems} == {"notify.sign", "lora.r"}
    (wrong,) = job_of({"notify.url": "ftp://abc-secret"}, HERE).problems
    assert wrong.key == "notify.url"
    assert "abc-secret" not in wrong.message


def test_the_job_of_the_demo_is_held_by_the_form() -> None:
    for file in (demo_job(), installation.path("templates") / "smoke.yaml"):
        tree = {key: value for key, value in read_tree(file).items() if key not in NOT_HERE}
        filled = job_of(values_of(tree), HERE)
        assert filled.spec == checked(tree)


def test_what_the_form_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="program of its own"):
        values_of({"program": ["train.py"]})
    with pytest.raises(UsageError, match=r"ssh\.setup: the form cannot hold"):
        values_of({"ssh": {"setup": ["if x\nthen y; fi"]}})


def test_a_new_key_needs_no_change_of_the_form() -> None:
    field = Field("train.new_key", "number", "3")
    assert (field.step, field.at_first, field.backend) == ("train", False, "")
    assert (fields()["ssh.hosts"].backend, fields()["data.turns"].step) == ("ssh", "data")


@pytest.mark.parametrize(
    ("message", "hint", "fixes"),
    [
        (
            "none of the keys 'messages' (found: a, b); data.columns could be {instruction: a, output: b}",
            "correct these lines, or set data.on_error=skip to leave them out",
            {"data.columns": "{instruction: a, output: b}", "data.on_error": "skip"},
        ),
        (
            "DoRA needs 16 bits",
            "set train.engine: auto, model.quantization: none",
            {"train.engine": "auto", "model.quantization": "none"},
        ),
        ("train.epochs: 'x'", "no.such=key, and data.trains=1", {}),
        ("data.train is not set", None, {}),
    ],
)
def test_what_an_advice_names_can_be_filled_in(message: str, hint: str | None, fixes: dict[str, str]) -> None:
    assert Problem("", message, hint).sent()["fixes"] == fixes
