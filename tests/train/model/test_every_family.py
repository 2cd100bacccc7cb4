"""Each row of the family table goes from its published layout to an exported model that answers without this project.

The steps are train, resume, evaluate, generate, chat and export. Models are small and random; runs share processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.beds.models import MODELS
from tests.beds.ranks import events, metrics, result, tools, train
from train import families

pytestmark = pytest.mark.train

NAMES = tuple(MODELS)
WITH_UNSLOTH = ("llama3", "qwen2", "baichuan2")
CONVERTED = ("chatglm2", "chatglm3", "baichuan", "baichuan2", "baichuan2-13b")


@dataclass(frozen=True)
class Bed:
    place: Path
    runs: dict[str, Path]
    resumed: dict[str, Path]
    output: str

    @property
    def cache(self) -> str:
        return str(self.place / "cache")


@pytest.fixture(scope="module")
def bed(configure: Any, tmp_path_factory: pytest.TempPathFactory) -> Bed:
    """A run of every model with plain PEFT, and one that resumes from the middle of the first."""
    place = tmp_path_factory.mktemp("models")
    settings = {"train.max_steps": 4, "train.checkpoint_every": 2, "eval.max_new_tokens": 8}
    runs, resumed = {}, {}
    for name, (_, make) in MODELS.items():
        model = {"path": str(make(place / name))}
        runs[name] = configure(name, model=model, verify_adapter=True, **settings)
        middle = str(runs[name] / "checkpoints" / "step-2")
        over = {"eval.after": False, "train.checkpoint_every": 0}
        resumed[name] = configure(f"{name}-resumed", model=model, init_from=middle, **{**settings, **over})
    output = train(*runs.values(), *resumed.values(), ZLAUNCH_CACHE=str(place / "cache"))
    return Bed(place, runs, resumed, output[0])


@pytest.fixture(scope="module")
def used(bed: Bed) -> dict[str, dict[str, tuple[int, str]]]:
    """(status, output) of evaluate, generate, export and chat on each run."""
    prompts = {name: predictions(bed.runs[name])[0]["prompt"] for name in NAMES}
    commands = [
        (name, command, [f"train.{command}", ["--run-dir", str(bed.runs[name]), "--device", "cpu", *more]])
        for name in NAMES
        for command, more in (
            ("evaluate", ["--out", str(bed.place / f"{name}-scores")]),
            ("generate", ["--prompt", prompts[name], "--max-new-tokens", "8"]),
        )
    ]
    commands += [
        (name, "export", ["train.export", ["--run-dir", str(run), "--to", "merged", "--out", exported(bed, name)]])
        for name, run in bed.runs.items()
    ]
    commands += [
        (name, "chat", ["train.chat", ["--run-dir", str(run), "--device", "cpu", "--max-new-tokens", "8"]])
        for name, run in bed.runs.items()
    ]
    stdin = "判断情感\n/reset\n判断情感\n再说一遍\n"
    results = tools(bed.place, *[(m, words) for _, _, (m, words) in commands], stdin=stdin, ZLAUNCH_CACHE=bed.cache)
    by_name: dict[str, dict[str, tuple[int, str]]] = {name: {} for name in NAMES}
    for (name, command, _), found in zip(commands, results, strict=True):
        by_name[name][command] = found
    return by_name


def exported(bed: Bed, name: str) -> str:
    return str(bed.place / f"{name}-merged")


def predictions(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_row_of_the_table_is_covered() -> None:
    assert {family for family, _ in MODELS.values()} == {family.name for family in families.FAMILIES}


@pytest.mark.parametrize("name", NAMES)
def test_its_family_is_recognized_and_it_learns(bed: Bed, name: str) -> None:
    summary = result(bed.runs[name])
    assert summary["loss_last"] < summary["loss_first"]
    assert summary["grad_norm_min"] > 0
    assert summary["adapter_reloads"] is True
    recorded = json.loads((bed.runs[name] / "adapter" / "adapter_config.json").read_text())
    base = Path(recorded["base_model_name_or_path"])
    config = json.loads((base / "config.json").read_text())
    assert families.family_of(config).name == MODELS[name][0]
    wanted = families.family_of(config).lora_targets
    assert set(recorded["target_modules"]) == set(wanted) or not wanted
    assert (base.parent == bed.place / "cache" / "converted") is (name in CONVERTED)


@pytest.mark.parametrize("name", CONVERTED)
def test_it_is_converted_once_and_the_run_reports_it(bed: Bed, name: str) -> None:
    first = [event["message"] for event in events(bed.runs[name], "convert")]
    again = [event["message"] for event in events(bed.resumed[name], "convert")]
    assert "converting it once" in first[0]
    assert first[0] in bed.output
    assert len(again) == 1
    assert "using its conversion" in again[0]


@pytest.mark.parametrize("name", NAMES)
def test_it_resumes_with_the_losses_of_the_undisturbed_run(bed: Bed, name: str) -> None:
    assert [event["step"] for event in events(bed.resumed[name], "resumed")] == [2]
    assert metrics(bed.resumed[name]) == metrics(bed.runs[name])[2:]


@pytest.mark.parametrize("name", NAMES)
def test_a_separate_evaluation_gives_the_scores_and_answers_of_the_run(bed: Bed, used: Any, name: str) -> None:
    status, output = used[name]["evaluate"]
    assert status == 0, output
    scores = json.loads((bed.place / f"{name}-scores" / "scores.json").read_text())
    ours = result(bed.runs[name])["eval"]["after"]
    assert scores["loss"] == pytest.approx(ours["loss"], rel=1e-4)
    assert scores["tasks"] == ours["tasks"]
    assert set(ours["tasks"]["sentiment"]) == {"records", "accuracy", "macro_f1"}
    assert predictions(bed.place / f"{name}-scores") == predictions(bed.runs[name])


@pytest.mark.parametrize("name", NAMES)
def test_generate_gives_the_answer_of_the_evaluation(bed: Bed, used: Any, name: str) -> None:
    status, output = used[name]["generate"]
    assert status == 0, output
    assert output.strip() == predictions(bed.runs[name])[0]["given"]


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_answers_the_same_after_a_reset(used: Any, name: str) -> None:
    status, output = used[name]["chat"]
    assert status == 0, output
    first, second = output.split("(new conversation)\n")
    assert first.endswith("\n")
    assert second.startswith(first)
    assert len(second) > len(first)


PLAIN = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
answers = []
for place, prompt in json.load(open(sys.argv[1])):
    own = {"trust_remote_code": "13b" in place}  # ALiBi: the class travels with the model
    tokenizer, model = AutoTokenizer.from_pretrained(place, **own), AutoModelForCausalLM.from_pretrained(place, **own)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(input_ids=inputs["input_ids"], max_new_tokens=8)[0, inputs["input_ids"].shape[1]:]
    answers.append(tokenizer.decode(out, skip_special_tokens=True).strip())
assert "train" not in sys.modules
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def plain(bed: Bed, used: Any) -> dict[str, str]:
    """The answers of the exported models, in a process without this project on its path."""
    for name in NAMES:
        assert used[name]["export"][0] == 0, used[name]["export"][1]
    asked = bed.place / "asked.json"
    asked.write_text(json.dumps([[exported(bed, n), predictions(bed.runs[n])[0]["prompt"]] for n in NAMES]))
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", PLAIN, str(asked)]
    clean["HF_HOME"] = str(bed.place / "hf")
    done = subprocess.run(command, env=clean, cwd=bed.place, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return dict(zip(NAMES, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_export_gives_the_same_answer_in_plain_transformers(bed: Bed, plain: dict[str, str], name: str) -> None:
    assert plain[name] == predictions(bed.runs[name])[0]["given"]


@pytest.mark.parametrize("name", NAMES)
def test_the_export_reports_a_small_difference_of_logits(used: Any, name: str) -> None:
    output = used[name]["export"][1]
    difference = float(output.partition("largest difference ")[2].split(",")[0])
    assert difference < 1e-3


def test_unsloth_gives_the_same_losses_for_the_families_it_has_fast_paths_for(bed: Bed, configure: Any) -> None:
    runs = {
        name: configure(
            f"{name}-unsloth",
            model={"path": str(bed.place / name)},
            **{"train.engine": "auto", "train.max_steps": 4, "eval.after": False},
        )
        for name in WITH_UNSLOTH
    }
    train(*runs.values(), first=("unsloth",), ZLAUNCH_CACHE=bed.cache)
    for name, run in runs.items():
        assert result(run)["engine"] == "unsloth"
        assert metrics(run) == pytest.approx(metrics(bed.runs[name]), rel=1e-3)
