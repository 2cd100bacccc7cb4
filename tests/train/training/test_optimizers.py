"""Each optimizer makes the steps of its source, and a run with it resumes to the bit; NEFTune and label smoothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.beds.ranks import Ranks, events, metrics, result, train
from train.config import Lora, Model, TrainConfig, Training

pytestmark = pytest.mark.train
torch = pytest.importorskip("torch")

OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "muon")


def config(**train: Any) -> TrainConfig:
    """Of a run on a CPU, with the numbers of the tests below."""
    numbers = {"global_batch_size": 1, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "weight_decay": 0.1,
               "learning_rate": 1e-2, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-7}  # fmt: skip
    data: Any = {}
    return TrainConfig(
        run_id="r", device="cpu", model=Model(), data=data, lora=Lora(), train=Training(**{**numbers, **train})
    )


class Weights(torch.nn.Module):  # type: ignore[misc]
    """Two matrices of an adapter, one of the vocabulary, and a vector, of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lora_A = torch.nn.Parameter(torch.randn(8, 600))
        self.lora_B = torch.nn.Parameter(torch.randn(96, 8))
        self.embed_tokens = torch.nn.Embedding(300, 16)
        self.magnitude = torch.nn.Parameter(torch.randn(40))


def steps(optimizer: Any, model: Weights, number: int, begin: int = 0) -> None:
    """Steps with gradients that are a function of the step."""
    for step in range(begin, begin + number):
        torch.manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) + 0.3 * parameter.detach()
        optimizer.step()


class Reference:
    """The rules as their papers have them, one parameter at a time, in double precision."""

    def __init__(self, kind: str, name: str, value: Any, numbers: Training) -> None:
        self.kind, self.value, self.numbers = kind, value.double(), numbers
        if kind == "muon" and (value.ndim != 2 or "embed" in name):
            self.kind = "adamw"
        self.first = self.second = torch.zeros_like(self.value)
        self.rows = self.columns = None
        self.step = 0

    def update(self, gradient: Any) -> None:
        numbers, gradient = self.numbers, gradient.double()
        rate, beta1, beta2 = numbers.learning_rate, numbers.adam_beta1, numbers.adam_beta2
        self.step += 1
        before = self.value
        if self.kind == "lion":
            change = (beta1 * self.first + (1 - beta1) * gradient).sign()
            self.first = beta2 * self.first + (1 - beta2) * gradient
        elif self.kind == "muon":
            change = self._orthogonal(gradient) * 0.2 * math.sqrt(max(gradient.shape))
        elif self.kind == "adafactor":
            change = self._factored(gradient)
        else:
            self.first = beta1 * self.first + (1 - beta1) * gradient
            self.second = beta2 * self.second + (1 - beta2) * gradient**2
            mean, square = self.first / (1 - beta1**self.step), self.second / (1 - beta2**self.step)
            change = mean / (square.sqrt() + numbers.adam_epsilon)
        self.value = before - rate * change - rate * numbers.weight_decay * before

    def _orthogonal(self, gradient: Any) -> Any:
        """Moonlight's Muon: Nesterov's momentum, and five steps of Newton and Schulz, which run in bfloat16."""
        self.first = 0.95 * self.first + gradient
        x = (gradient + 0.95 * self.first).bfloat16()
        turned = x.shape[0] > x.shape[1]
        x = x.T if turned else x
        x = x / x.norm()
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return (x.T if turned else x).double()

    def _factored(self, gradient: Any) -> Any:
        """Adafactor (arXiv 1804.04235) with a given rate: second moments of rows and columns, updates of norm one."""
        share, square = 1 - self.step**-0.8, gradient**2 + 1e-30
        if gradient.ndim == 1:
            self.second = share * self.second + (1 - share) * square
            change = gradient / self.second.sqrt()
        else:
            zeros = (torch.zeros(gradient.shape[0]).double(), torch.zeros(gradient.shape[1]).double())
            rows, columns = zeros if self.rows is None else (self.rows, self.columns)
            self.rows = share * rows + (1 - share) * square.mean(1)
            self.columns = share * columns + (1 - share) * square.mean(0)
            change = gradient / torch.sqrt(torch.outer(self.rows, self.columns) / self.rows.mean())
        return change / max(1.0, float(change.square().mean().sqrt()))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_makes_the_steps_of_its_source(kind: str) -> None:
    """Those with 8 bits are AdamW within the rounding of their states."""
    from train.training.optimizer import make_optimizer

    model, asked = Weights(), config(optimizer=kind)
    reference = {n: Reference(kind, n, p.detach().clone(), asked.train) for n, p in model.named_parameters()}
    optimizer = make_optimizer(asked, model)
    for step in range(6):
        torch.manual_seed(step)
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            reference[name].update(parameter.grad)
        optimizer.step()
    for name, parameter in model.named_parameters():
        away = (parameter.detach().double() - reference[name].value).abs().max()
        rounded = "8bit" in kind and "lora" in name
        assert away < (2e-2 if rounded else 1e-2 if kind == "muon" else 1e-5), name


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_restored_state_goes_on_to_the_bit(kind: str) -> None:
    from train.training.optimizer import make_optimizer, set_state, state_of

    whole, asked = Weights(), config(optimizer=kind)
    optimizer = make_optimizer(asked, whole)
    steps(optimizer, whole, 3)
    kept: dict[str, Any] = {}
    for name, parameter in whole.named_parameters():
        kept |= {key: value.clone() for key, value in state_of(optimizer, name, parameter).items()}
    other = Weights()
    other.load_state_dict(whole.state_dict())
    steps(optimizer, whole, 3, begin=3)
    resumed = make_optimizer(asked, other)
    for name, parameter in other.named_parameters():
        set_state(resumed, name, parameter, kept, 3)
    steps(resumed, other, 3, begin=3)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def test_a_pattern_gives_weights_a_rate_of_their_own() -> None:
    from train.errors import UserError
    from train.training.optimizer import check_rates, make_optimizer, set_learning_rate

    asked = config(learning_rates={"embed": 1e-4, r"lora_[AB]$": 4e-2, "lora": 1.0})
    model = Weights()
    optimizer = make_optimizer(asked, model)
    set_learning_rate(optimizer, 5e-3)  # half of the peak
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert named == pytest.approx({"lora_A": 2e-2, "lora_B": 2e-2, "embed_tokens.weight": 5e-5, "magnitude": 5e-3})
    check_rates(asked, model)
    with pytest.raises(UserError, match="no trained weight has 'lm_haed' in its name"):
        check_rates(config(learning_rates={"lm_haed": 1e-4}), model)


def _tiny() -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    return get_peft_model(AutoModelForCausalLM.from_config(shape), LoraConfig(r=2, target_modules=["q_proj"]))


def test_label_smoothing_is_that_of_transformers_and_measures_leave_it_out() -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    from train.training.loss import AnswerLoss

    model = _tiny()
    ids, labels = torch.randint(0, 50, (2, 12)), torch.randint(0, 50, (2, 12))
    labels[:, :5] = -100
    outputs = model(input_ids=ids)
    theirs = LabelSmoother(epsilon=0.2)(outputs, labels) * int((labels != -100).sum())
    for split in (True, False):
        loss = AnswerLoss(model, fused=False, smoothing=0.2)
        loss.split = split
        assert float(loss(ids, labels).detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
        with torch.no_grad():
            plain = AnswerLoss(model, fused=False)(ids, labels)
            assert torch.equal(loss(ids, labels), plain)


def test_the_noise_of_neftune_is_that_of_transformers_and_only_in_training() -> None:
    from transformers.integrations import neftune

    from train.training.loss import AnswerLoss

    ours, theirs = _tiny().train(), _tiny().train()
    ids, labels = torch.randint(0, 50, (3, 12)), torch.randint(0, 50, (3, 12))
    loss = AnswerLoss(ours, fused=False, noise=5.0)
    embeddings = theirs.get_input_embeddings()
    embeddings.neftune_noise_alpha = 5.0
    embeddings.register_forward_hook(neftune.neftune_post_forward_hook)
    found = []
    for model in (loss, AnswerLoss(theirs, fused=False)):
        torch.manual_seed(7)
        found.append(model(ids, labels))
        found[-1].backward()
    plain = AnswerLoss(_tiny(), fused=False)(ids, labels)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], plain)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert one.grad is None or torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-9)
    assert torch.equal(loss.eval()(ids, labels), plain)


KINDS: dict[str, dict[str, Any]] = {
    **{kind: {"train.optimizer": kind} for kind in OPTIMIZERS[1:]},
    "8bit-whole": {"train.optimizer": "adamw_8bit", "lora.modules_to_save": ["embed_tokens"]},
    "muon-whole": {"train.optimizer": "muon", "lora.modules_to_save": ["lm_head"]},
    "noise": {"train.neftune_alpha": 5.0, "train.label_smoothing": 0.1},
    "rates": {"train.learning_rates": {"q_proj": 1e-3, "lora_B": 2e-2}, "train.scheduler": "warmup_stable_decay"},
}


@pytest.fixture(scope="module")
def runs(configure: Any) -> dict[str, Path]:
    """A run of each kind, its second half once more from the checkpoint, and one on two ranks."""
    common = {"train.max_steps": 4, "train.checkpoint_every": 2, "eval.after": False}
    common |= {"train.learning_rate": 3e-3, "lora.r": 8}
    made = {name: configure(name, **common, **over) for name, over in KINDS.items()}
    for name, over in KINDS.items():
        middle = str(made[name] / "checkpoints" / "step-2")
        made[f"{name}-resumed"] = configure(f"{name}-resumed", init_from=middle, **common, **over)
    train(*made.values())
    two = ("adamw_8bit", "muon", "adafactor")
    local = {"path": str(made["lion"] / "base_model")}
    pairs = {f"{name}-two": configure(f"{name}-two", 2, model=local, **common, **KINDS[name]) for name in two}
    train(*pairs.values(), world_size=2)
    return made | pairs


@pytest.mark.parametrize("name", KINDS)
def test_a_run_learns_and_resumes_to_the_bit(runs: dict[str, Path], name: str) -> None:
    from safetensors.torch import load_file

    summary = result(runs[name])
    assert summary["loss_last"] < summary["loss_first"]
    assert [event["step"] for event in events(runs[f"{name}-resumed"], "resumed")] == [2]
    assert metrics(runs[f"{name}-resumed"]) == metrics(runs[name])[2:]
    whole, again = (load_file(runs[run] / "adapter" / "adapter_model.safetensors") for run in (name, f"{name}-resumed"))
    assert all(torch.equal(value, again[key]) for key, value in whole.items())


@pytest.mark.parametrize("name", ["adamw_8bit", "muon", "adafactor"])
def test_two_ranks_train_as_one_does(runs: dict[str, Path], name: str) -> None:
    assert metrics(runs[f"{name}-two"]) == pytest.approx(metrics(runs[name]), rel=2e-3)


def test_a_checkpoint_of_another_optimizer_is_refused(configure: Any, runs: dict[str, Path]) -> None:
    middle = str(runs["lion"] / "checkpoints" / "step-2")
    run = configure("other", init_from=middle, **{"train.max_steps": 4, "train.learning_rate": 3e-3, "lora.r": 8})
    ranks = Ranks(1, ["-m", "train", "--config", str(run / "train.json")])
    assert ranks.wait() == [2], ranks.output[0]
    assert "was made with train.optimizer lion, but this run has adamw" in ranks.output[0]
