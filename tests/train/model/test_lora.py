"""Each kind of LoRA through the whole training program: it learns, resumes, fits the base and can be exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.beds.ranks import Ranks, events, metrics, result, tools, train
from train import memory
from train.config import Lora, load

pytestmark = pytest.mark.train

KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"lora.rslora": True},
    "dora": {"lora.dora": True},
    "plus": {"lora.plus_ratio": 16.0},
    "pissa": {"lora.init": "pissa"},
    "olora": {"lora.init": "olora"},
    "usual-and-head": {"lora.target_modules": ["auto", "lm_head"]},
    "pissa-rslora": {"lora.init": "pissa", "lora.rslora": True},
    "whole": {"lora.modules_to_save": ["lm_head", "embed_tokens"]},
    "names": {"lora.target_modules": ["q_proj", "v_proj"]},
    "regex": {"lora.target_modules": r".*layers\.1\..*(up|down)_proj"},
    "decayed": {"lora.modules_to_save": ["norm"], "train.weight_decay": 10.0},
    "nf4-dora": {"lora.dora": True, "model.quantization": "nf4"},
    "gaussian": {"lora.init": "gaussian"},
    "orthogonal": {"lora.init": "orthogonal"},
    "ranked": {
        "lora.rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\.(up|down)_proj": 2}, "lora.alpha_pattern": {"q_proj": 4.0},
    },
    "ranked-pissa": {"lora.rank_pattern": {"k_proj": 2}, "lora.alpha_pattern": {"v_proj": 4.0}, "lora.init": "pissa"},
    "layers": {"lora.layers_to_transform": [1]},
}  # fmt: skip


RESUMED = ("dora", "pissa", "plus", "whole", "olora", "ranked")
SHARDED = (("pissa", 2), ("dora", 2), ("whole", 3), ("plus", 2), ("decayed", 2), ("decayed", 3), ("ranked", 3))
"""(kind, ZeRO stage) of further runs."""


@pytest.fixture(scope="module")
def runs(configure: Any) -> dict[str, Path]:
    """A run of each kind, one that continues an adapter, some that resume, and some under ZeRO."""
    common = {"train.max_steps": 4, "train.checkpoint_every": 2, "verify_adapter": True, "eval.after": False}
    made = {name: configure(name, **common, **over) for name, over in KINDS.items()}
    base = made["rslora"] / "base_model"
    local = {"path": str(base)}
    first = {"lora.adapter": str(made["rslora"] / "adapter")}
    made["continued"] = configure("continued", model=local, **common, **first)
    asked = {"lora.target_modules": "all-linear", "lora.dropout": 0.2}
    made["continued-alike"] = configure("continued-alike", model=local, **common, **first, **asked)
    for name in RESUMED:
        middle = str(made[name] / "checkpoints" / "step-2")
        made[f"{name}-resumed"] = configure(f"{name}-resumed", init_from=middle, **common, **KINDS[name])
    for name in ("ranked", "layers"):
        made[f"{name}-fused"] = configure(f"{name}-fused", **common, **KINDS[name], **{"train.engine": "fused"})
    for name, stage in SHARDED:
        over = {**KINDS[name], "train.zero_stage": stage}
        made[f"{name}-zero{stage}"] = configure(f"{name}-zero{stage}", **common, **over)
    train(*made.values())
    return made


def recorded(run: Path) -> dict[str, Any]:
    return json.loads((run / "adapter" / "adapter_config.json").read_text())


def weights(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_learns_and_its_adapter_fits_the_original_base(runs: dict[str, Path], name: str) -> None:
    summary = result(runs[name])
    assert summary["loss_last"] < summary["loss_first"]
    assert summary["adapter_reloads"] is True


@pytest.mark.parametrize("name", RESUMED)
def test_each_kind_resumes_with_the_losses_of_the_undisturbed_run(runs: dict[str, Path], name: str) -> None:
    assert [event["step"] for event in events(runs[f"{name}-resumed"], "resumed")] == [2]
    assert metrics(runs[f"{name}-resumed"]) == pytest.approx(metrics(runs[name])[2:], rel=1e-6)


def test_adapters_record_their_kind_and_targets(runs: dict[str, Path]) -> None:
    assert recorded(runs["rslora"])["use_rslora"] is True
    assert recorded(runs["dora"])["use_dora"] is True
    assert any("magnitude" in name for name in weights(runs["dora"]))
    assert {name.split(".")[-3] for name in weights(runs["names"])} == {"q_proj", "v_proj"}
    assert {tuple(name.split(".")[4:7:2]) for name in weights(runs["regex"])} == {("1", "up_proj"), ("1", "down_proj")}
    usual = {name.split(".")[-3] for name in weights(runs["usual-and-head"])}
    assert usual == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}
    assert {"lm_head", "embed_tokens"} <= {name.split(".")[-2] for name in weights(runs["whole"])}


@pytest.mark.parametrize(("name", "alpha"), [("pissa", 16), ("olora", 16), ("pissa-rslora", 8 * 2**0.5)])
def test_pissa_and_olora_are_saved_as_a_plain_lora_of_twice_the_rank(
    runs: dict[str, Path], name: str, alpha: float
) -> None:
    config = recorded(runs[name])
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    assert config["lora_alpha"] == pytest.approx(alpha)
    assert all(8 in value.shape for value in weights(runs[name]).values())


@pytest.mark.parametrize("name", ["pissa", "olora", "orthogonal", "ranked-pissa"])
def test_an_adapter_starts_as_the_base_model(runs: dict[str, Path], name: str) -> None:
    assert metrics(runs[name])[0] == pytest.approx(metrics(runs["names"])[0], rel=1e-4)


def test_modules_have_ranks_and_scales_of_their_own(runs: dict[str, Path]) -> None:
    found = {}
    for name, value in weights(runs["ranked"]).items():
        if "lora_A" in name:
            _, _, layer, _, module, *_ = name.removeprefix("base_model.model.").split(".")
            found[layer, module] = value.shape[0]
    for (layer, module), rank in found.items():
        narrow = layer == "1" and module in ("up_proj", "down_proj")
        assert rank == (8 if module == "q_proj" else 2 if narrow else 4)
    # PEFT itself reads the same ranks and scales from the file.
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(runs["rslora"] / "base_model")
    model = PeftModel.from_pretrained(base, runs["ranked"] / "adapter")
    scales = {name.rpartition(".")[2]: module.scaling["default"] for name, module in model.named_modules()
              if hasattr(module, "lora_A")}  # fmt: skip
    assert (scales["q_proj"], scales["k_proj"]) == (4.0 / 8, 8.0 / 4)


@pytest.mark.parametrize("name", ["ranked", "layers", "names"])
def test_the_planner_counts_the_weights_of_the_adapter(runs: dict[str, Path], name: str) -> None:
    shape = memory.from_config(json.loads((runs["rslora"] / "base_model" / "config.json").read_text()))
    over = KINDS[name]
    own = memory.OwnRanks(
        tuple(over.get("lora.rank_pattern", {}).items()), tuple(over.get("lora.layers_to_transform", ()))
    )
    names = over.get("lora.target_modules")
    counted = memory.lora_parameters(shape, 4, tuple(names) if names else None, own)
    assert counted == sum(value.numel() for value in weights(runs[name]).values())
    assert own.widest(4) == (8 if name == "ranked" else 4)


def test_a_pissa_adapter_with_ranks_of_its_own_doubles_each(runs: dict[str, Path]) -> None:
    config = recorded(runs["ranked-pissa"])
    assert (config["r"], config["rank_pattern"], config["lora_alpha"]) == (8, {"k_proj": 4}, 16)
    assert config["alpha_pattern"] == {"v_proj": 8.0}


def test_only_the_layers_that_the_job_names_have_an_adapter(runs: dict[str, Path]) -> None:
    assert {name.split(".")[4] for name in weights(runs["layers"])} == {"1"}


@pytest.mark.parametrize("name", ["ranked", "layers"])
def test_the_fused_layers_train_the_same_as_peft(runs: dict[str, Path], name: str) -> None:
    assert (result(runs[name])["engine"], result(runs[f"{name}-fused"])["engine"]) == ("peft", "fused")
    assert metrics(runs[name]) == pytest.approx(metrics(runs[f"{name}-fused"]), rel=1e-4)


@pytest.mark.parametrize(("name", "stage"), SHARDED)
def test_zero_does_not_change_the_losses(runs: dict[str, Path], name: str, stage: int) -> None:
    assert metrics(runs[f"{name}-zero{stage}"]) == pytest.approx(metrics(runs[name]), rel=1e-3)
    assert result(runs[f"{name}-zero{stage}"])["adapter_reloads"] is True


def test_a_continued_adapter_starts_where_the_first_run_ended(runs: dict[str, Path]) -> None:
    run = runs["continued"]
    assert recorded(run)["use_rslora"] is True  # the adapter's own settings, not the job's
    assert metrics(run)[0] < metrics(runs["rslora"])[0]
    assert metrics(run)[0] == pytest.approx(result(runs["rslora"])["loss_last"], rel=0.5)
    assert result(run)["adapter_reloads"] is True


def test_settings_of_a_continued_adapter_are_taken_and_reported(runs: dict[str, Path]) -> None:
    (warning,) = events(runs["continued"], "warning")
    assert warning["text"].startswith("lora.adapter: its settings are taken: lora.rslora: true, lora.target_modules: [")


def test_a_pattern_for_the_modules_of_the_adapter_and_another_dropout_are_accepted(runs: dict[str, Path]) -> None:
    alike = recorded(runs["continued-alike"])
    assert (alike["lora_dropout"], alike["r"]) == (0.2, 4)
    assert set(alike["target_modules"]) == set(recorded(runs["rslora"])["target_modules"])


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {"lora.r": 32, "lora.target_modules": ["q_proj"]},
            "lora.r is 32, but the adapter's is 4; lora.target_modules",
        ),
        ({"lora.target_modules": r".*q_proj"}, "lora.target_modules names other modules than the adapter"),
    ],
)
def test_an_adapter_is_continued_as_it_is_or_not_at_all(
    configure: Any, runs: dict[str, Path], over: dict[str, Any], message: str
) -> None:
    local = {"path": str(runs["rslora"] / "base_model")}
    over = {"lora.adapter": str(runs["rslora"] / "adapter"), **over}
    run = configure("otherwise", model=local, **over)
    ranks = Ranks(1, ["-m", "train", "--config", str(run / "train.json")])
    assert ranks.wait() == [2], ranks.output[0]
    assert message in ranks.output[0]
    assert "Traceback" not in ranks.output[0]


def test_lora_plus_gives_the_b_matrices_a_higher_learning_rate(runs: dict[str, Path]) -> None:
    import torch

    from train.training.optimizer import make_optimizer, set_learning_rate

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lora_A, self.lora_B = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)

    config = load(runs["plus"] / "train.json")
    assert config.lora == Lora(r=4, alpha=8, plus_ratio=16.0)
    model = Two()
    optimizer = make_optimizer(config, model)
    set_learning_rate(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {id(model.lora_A.weight): 1e-3, id(model.lora_B.weight): pytest.approx(1.6e-2)}


@pytest.mark.parametrize("run", ["decayed", "decayed-zero2", "decayed-zero3"])
def test_weight_decay_leaves_norms_alone(runs: dict[str, Path], run: str) -> None:
    """Decayed, a norm of ones would be 0.75 after four steps; AdamW moves it by less than the sum of the rates."""
    norms = [value for name, value in weights(runs[run]).items() if "norm" in name]
    assert norms
    assert all(float((norm - 1).abs().max()) < 0.04 for norm in norms)


def test_weight_decay_is_given_to_the_parameters_that_trainer_gives_it_to() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, GPT2Config, Qwen3Config, Trainer

    from train.training.optimizer import undecayed

    shape: dict[str, Any] = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for config, whole in (
        (GPT2Config(**shape), ["ln_f", "wte"]),
        (Qwen3Config(**shape), ["norm", "q_norm", "lm_head"]),
    ):
        options = LoraConfig(target_modules="all-linear", modules_to_save=whole, bias="all", use_dora=True)
        model = get_peft_model(AutoModelForCausalLM.from_config(config), options)
        decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]  # it reads no attribute
        names = {name for name, _ in model.named_parameters()}
        assert undecayed(model) == names - decayed
        assert decayed


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"lora.rank_pattern": {"q_prj": 8}}, "lora.rank_pattern: 'q_prj' fits no adapted module"),
        (
            {"lora.alpha_pattern": {"o_proj": 8.0}, "lora.target_modules": ["q_proj"]},
            "lora.alpha_pattern: 'o_proj' fits no adapted module",
        ),
        ({"lora.layers_to_transform": [0, 7]}, "the model has the layers 0 to 1, and no 7"),
        ({"lora.adapter": "/nowhere"}, "has no adapter_config.json"),
        ({"lora.dora": True, "train.engine": "unsloth"}, "set train.engine: peft"),
    ],
)
def test_settings_that_cannot_be_trained_are_a_users_mistake(
    configure: Any, over: dict[str, Any], message: str
) -> None:
    run = configure("mistake", **over)
    ranks = Ranks(1, ["-m", "train", "--config", str(run / "train.json")])
    assert ranks.wait() == [2]
    assert message in ranks.output[0]
    assert "Traceback" not in ranks.output[0]


def test_exports_merge_every_kind_and_qlora_in_16_bits(runs: dict[str, Path], tmp_path: Path) -> None:
    names = ("dora", "pissa", "whole", "nf4-dora")
    commands = [
        ("train.export", ["--run-dir", str(runs[name]), "--to", "ollama", "--out", str(tmp_path / name)])
        for name in names
    ]
    commands += [("train.export", ["--run-dir", str(runs["dora"]), "--to", "adapter", "--out", str(tmp_path / "own")])]
    commands += [commands[0]]  # into a directory that exists by now
    *results, again = tools(tmp_path, *commands)
    for name, (status, output) in zip((*names, "own"), results, strict=True):
        assert status == 0, output
        if name != "own":
            share = float(output.partition("largest difference ")[2].partition(", ")[2].partition("%")[0])
            assert share < (5 if "nf4" in name else 0.01)
            assert "TEMPLATE" in (tmp_path / name / "Modelfile").read_text()
            config = json.loads((tmp_path / name / "config.json").read_text())
            assert "quantization_config" not in config
            assert config["dtype"] == ("bfloat16" if "nf4" in name else "float32")
            assert json.loads((tmp_path / name / "generation_config.json").read_text())["eos_token_id"] is not None
    assert (tmp_path / "own" / "adapter_model.safetensors").is_file()
    assert again[0] == 2
    assert "exists already" in again[1]


def test_two_ranks_give_the_evaluation_of_one(runs: dict[str, Path], tmp_path: Path) -> None:
    (run, *words) = (str(runs["nf4-dora"]), "--device", "cpu")
    events = (runs["nf4-dora"] / "events.jsonl").read_bytes()
    one = tools(tmp_path, ("train.evaluate", ["--run-dir", run, *words, "--out", str(tmp_path / "one")]))
    assert one[0][0] == 0, one[0][1]
    ranks = Ranks(2, ["-m", "train.evaluate", "--run-dir", run, *words, "--out", str(tmp_path / "two")])
    assert ranks.wait() == [0, 0], "\n".join(ranks.output)
    scores = [json.loads((tmp_path / name / "scores.json").read_text()) for name in ("one", "two")]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-5)
    assert scores[0]["tasks"] == scores[1]["tasks"]
    lines = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("one", "two")]
    assert lines[0] == lines[1]
    assert (runs["nf4-dora"] / "events.jsonl").read_bytes() == events  # the run is over
