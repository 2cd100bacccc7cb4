"""The JSON Schema accepts what zlaunch accepts, and refuses the mistakes that an editor can see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from launcher.errors import SpecError
from launcher.job import yamlfile
from launcher.job.explain import known_keys
from launcher.job.load import checked, put
from launcher.job.reference import json_schema
from launcher.job.reference.commented import commented
from launcher.job.reference.key_reference import Key, keys
from tests.beds.places import ROOT

VALIDATOR = jsonschema.Draft7Validator(json_schema.schema())


def read(text: str) -> Any:
    return yamlfile.loads(text, where="job")


def is_accepted(tree: Any) -> bool:
    try:
        checked(tree or {})
    except SpecError:
        return False
    return True


def test_it_is_a_schema_of_every_key_with_its_text() -> None:
    jsonschema.Draft7Validator.check_schema(json_schema.schema())
    properties = json_schema.schema()["properties"]
    for name in known_keys():
        section, _, last = name.rpartition(".")
        if name in keys():
            entry = properties[section]["properties"][last] if section else properties[last]
            assert entry["description"] == keys()[name].text
            assert "default" in entry


@pytest.mark.parametrize("key", keys().values(), ids=lambda key: key.name)
def test_examples_and_defaults_are_accepted(key: Key) -> None:
    for value in (read(key.row.example), read(key.default_text)):
        tree: dict[str, Any] = {}
        put(tree, key.name, value, where=key.name)
        assert [error.message for error in VALIDATOR.iter_errors(tree)] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name: 007\n",
        "ssh:\nslurm:\n",
        "train: {global_batch_size: about 8, zero_stage: auto, micro_batch_size: 4}\n",
        "train: {zero_stage: 3, gradient_checkpointing: true, learning_rate: 2e-4}\n",
        "train: {checkpoint_every: 0.5 epochs, report_to: [wandb, tensorboard]}\n",
        "eval: {every: epoch, max_records: null}\n",
        "data: {train: [a.jsonl, {path: b.jsonl, weight: 0.5}], columns: {instruction: [问题, 补充], output: 答案}}\n",
        "lora: {target_modules: '.*proj', alpha: 64, modules_to_save: [lm_head]}\n",
        "slurm: {gpus_per_node: h200:8, time: 04:00:00, mem: 0, sbatch: {exclusive: null, nice: 5}}\n",
        "env: {A: no, B: 1.0, C: true}\nsecrets: [HF_TOKEN]\n",
        "notify: {url: https://hooks.example/abc, on: [end, failure]}\nssh: {hosts: 'a,b'}\n",
        "ssh: {hosts: [a, 'b:22'], setup: [module load cuda]}\n",
    ],
)
def test_jobs_that_zlaunch_accepts_are_accepted(text: str) -> None:
    tree = read(text)
    assert is_accepted(tree)
    assert [error.message for error in VALIDATOR.iter_errors(tree)] == []


@pytest.mark.parametrize(
    "text",
    [
        "nam: x\n",
        "train: {warmup: 1}\n",
        "train: {epochs: 0}\n",
        "train: {epochs: many}\n",
        "train: {learning_rate: 2}\n",
        "train: {zero_stage: 4}\n",
        "train: {micro_batch_size: 0}\n",
        "train: {global_batch_size: around 8}\n",
        "train: {max_steps: 1.5}\n",
        "train: {checkpoint_every: 2 weeks}\n",
        "train: {gradient_checkpointing: 2}\n",
        "train: [1]\n",
        "model: {quantization: nf5}\n",
        "lora: {dropout: 1.0, r: 8}\n",
        "lora: {modules_to_save: lm_head}\n",
        "data: {train: [{weight: 2}]}\n",
        "data: {train: [{path: a, weigt: 2}]}\n",
        "data: {train: [{path: a, weight: 0}]}\n",
        "slurm: {gpus_per_node: h200:0}\n",
        "slurm: {signal_before: 70000}\n",
        "notify: {on: [never]}\n",
        "secrets: HF_TOKEN\n",
        "env: [A]\n",
        "- a\n",
    ],
)
def test_mistakes_are_refused_as_zlaunch_refuses_them(text: str) -> None:
    tree = read(text)
    assert not isinstance(tree, dict) or not is_accepted(tree)
    assert list(VALIDATOR.iter_errors(tree))


@pytest.mark.parametrize("full", [False, True])
def test_the_job_files_that_come_with_zlaunch_are_accepted(full: bool) -> None:
    texts = [commented({}, full=full), *(file.read_text() for file in JOB_FILES)]
    assert [error.message for text in texts for error in VALIDATOR.iter_errors(read(text))] == []


JOB_FILES: list[Path] = sorted([*(ROOT / "templates").glob("**/*.yaml")])
