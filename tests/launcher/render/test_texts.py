"""Rendered files against tests/golden/run (rewrite with: ZLAUNCH_GOLDEN=write pytest tests/launcher/render)."""

from __future__ import annotations

import json
import os
import shlex
import subprocess

import jinja2
import pytest

from launcher.render import jinja, texts
from tests.beds.places import GOLDEN
from tests.beds.plans import make

FILES = GOLDEN / "run"
ODD = "/opt/a b/'q\"$(touch pwned)`x`;\n训练/python3"


def plans():
    return {
        "local-zero2": make("train.zero_stage=2", "env.NCCL_DEBUG=WARN"),
        "ssh-zero3": make(
            "train.zero_stage=3",
            "train.offload=cpu",
            backend="ssh",
            device="cuda",
            hosts=(("node1", 4), ("node2", 2), ("node3", 2)),
            master_addr="10.0.0.1",
            gpu_memory_bytes=80 * 2**30,
        ),
        "program": make(tree={"program": ("echo", "it's", "$HOME", "a\nb")}),
    }


@pytest.mark.parametrize("name", list(plans()))
def test_rendered_files_are_the_reviewed_ones(name):
    rendered = texts.render(plans()[name])
    directory = FILES / name
    if os.environ.get("ZLAUNCH_GOLDEN") == "write":
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in rendered.items():
            (directory / file).write_text(text, encoding="utf-8")
    reviewed = {path.name: path.read_text(encoding="utf-8") for path in directory.iterdir()}
    assert rendered == reviewed


@pytest.mark.parametrize("python", ["/usr/bin/python3", ODD])
def test_scripts_are_valid_shell_with_any_path_and_value(tmp_path, python):
    plan = make("env.A=x'y\"$(touch pwned)", python=python)
    for name, text in texts.render(plan).items():
        if name.endswith(".sh"):
            script = tmp_path / name
            script.write_text(text, encoding="utf-8")
            subprocess.run(["bash", "-n", script], check=True)


def test_an_odd_interpreter_path_is_run_and_not_interpreted(tmp_path):
    directory = tmp_path / "a b'\"$(touch pwned)\n训练"
    directory.mkdir()
    interpreter = directory / "python3"
    interpreter.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    interpreter.chmod(0o755)
    run = tmp_path / "run ;$(touch pwned)"
    run.mkdir()
    (run / "node.sh").write_text(texts.render(make(python=str(interpreter)))["node.sh"], encoding="utf-8")
    done = subprocess.run(
        ["bash", run / "node.sh", "0", "--detach"], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "-X|utf8|-S|code/node/agent/__main__.py|--run-dir|.|--node-rank|0|--detach|"
    assert not list(tmp_path.rglob("pwned"))


def test_values_reach_a_shell_unchanged():
    for value in ("plain", "a b", "it's", "$(x)", "`x`", "a\nb", "中文", "", "*"):
        quoted = jinja._environment().from_string("{{ v | sh }}").render(v=value)
        assert shlex.split(quoted) == [value]


def test_an_undefined_name_in_a_template_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        jinja._environment().from_string("{{ nothing }}").render()


def test_the_ds_config_is_for_the_planned_batch():
    config = json.loads(texts.render(plans()["ssh-zero3"])["ds_config.json"])
    product = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 8
    assert config["train_batch_size"] == product == 8
    assert "optimizer" not in config  # DeepSpeed would compile FusedAdam at the start


def test_no_rendered_file_contains_a_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_do_not_leak")
    assert not [name for name, text in texts.render(make("secrets=[HF_TOKEN]")).items() if "hf_do_not_leak" in text]
