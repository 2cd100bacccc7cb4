"""What the benchmarks build is what transformers reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytestmark = pytest.mark.train
NARROW = {"hidden": 64, "intermediate": 128, "heads": 4, "kv_heads": 2, "head_dim": 16}
torch = pytest.importorskip("torch")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_large_checkpoint_is_one_random_layer_written_many_times(
    quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.bench.gpu import models

    small = replace(models.SHAPES["llama3-70b"], layers=3, vocab=300, **NARROW)
    monkeypatch.setitem(models.SHAPES, "small", small)
    place = models.checkpoint("small", tmp_path, quantization)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16)
    ups = [layer.mlp.up_proj.weight for layer in model.model.layers]
    assert len(ups) == 3
    assert all(torch.equal(up.data, ups[0].data) for up in ups)
    assert hasattr(ups[2], "quant_state") is (quantization == "nf4")
    ids = AutoTokenizer.from_pretrained(place)("ab", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(input_ids=ids).logits).all()


@pytest.mark.parametrize("shape", ["llama3-8b", "glm2-6b", "qwen3-8b", "mistral-7b", "qwen2.5-7b"])
def test_the_random_models_are_ones_that_the_fused_layers_take(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.bench.gpu import cases, models, ours
    from train.fused.model import fuse

    small = replace(models.SHAPES[shape], layers=1, vocab=300, **NARROW)
    monkeypatch.setitem(models.SHAPES, shape, small)
    case = cases.Case(shape=shape, workload="dense:2x16")
    model = fuse(models.build(case))
    tokens = ours.data_of(case, 300).tokens
    ids = torch.tensor(tokens.sequence(0)[0][None].astype("int64"))
    loss = model(ids[:, :-1], ids[:, 1:])
    loss.backward()
    assert loss.item() > 0
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_cases_run_in_processes_that_import_ahead_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    """A real small model on a CPU; then a case of a model that is not there; then the first again, elsewhere."""
    from tests.bench.gpu import cases, children

    small = cases.Case(shape="smollm2-135m", workload="dense:1x16", steps=1, warmup=1)
    wrong = replace(small, shape="no-such-shape")
    results = list(children.answers([[small, wrong], [replace(small, engine="peft")]], tmp_path, tmp_path, 400))
    good, bad, other = (line for _, line in results)
    assert "failed" not in good
    assert good["losses"]
    assert "no-such-shape" in bad["failed"]
    assert other["losses"] == pytest.approx(good["losses"], rel=1e-2)
    assert sorted(path.name for path in tmp_path.glob("*.log")) == ["00-ours.log", "01-ours.log"]


def test_a_case_that_takes_too_long_or_dies_is_reported_as_failed(tmp_path: Path) -> None:
    import os
    import signal

    from tests.bench.gpu import cases, children

    child = children.Child([cases.Case()], tmp_path, tmp_path, 0)
    os.kill(child.process.pid, signal.SIGKILL)
    assert "exit code -9" in child.ask(cases.Case(), 60)["failed"]
    child.close()


def test_a_table_sets_ours_beside_each_alternative() -> None:
    from tests.bench.gpu import cases, tables

    line = {"records_per_second": 1.0, "peak_gib": 20.0, "predicted_gib": 21.0, "error": 0.05, "share_of_limit": 0.5,
            "first_step_seconds": 1.0, "device": "a card", "torch": "2"}  # fmt: skip
    ours, slower, full = cases.Case(), cases.Case(engine="trl"), cases.Case(engine="unsloth")
    found = [(ours, {**line, "tokens_per_second": 900}), (slower, {**line, "tokens_per_second": 300}),
             (full, {"out_of_memory": True})]  # fmt: skip
    text = tables.markdown("speed", found)
    assert "| records | Unsloth + TRL packing | 300 | 1.0 | 3.00 times |" in text
    assert "| records | Unsloth | out of memory |" in text
    assert tables.markdown("memory", found[:1]).endswith("Largest differences: +5.0% and +5.0%.")


def test_a_profile_says_how_long_the_gpu_computed_talked_and_waited() -> None:
    from tests.bench.gpu.profile import described

    kernel = {"cat": "kernel", "name": "gemm"}
    events = [
        {**kernel, "ts": 0.0, "dur": 400.0},
        {**kernel, "ts": 600.0, "dur": 400.0},
        {"cat": "kernel", "name": "ncclDevKernel_AllGather", "ts": 300.0, "dur": 200.0},
        {"cat": "cpu_op", "name": "aten::mm", "ts": 0.0, "dur": 5000.0},
    ]
    assert described(events).splitlines() == [
        "1.0 ms from the first kernel to the last one",
        "80.0% computing, 10.0% waiting, 10.0% only communicating",
        "0.2 ms of NCCL, 0.1 of them hidden behind computation",
    ]


def test_cases_in_fp8_each_have_their_own_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fp8 layers take the weights out of the model: a second case of the shape found none."""
    from tests.bench.gpu import cases, models, ours

    monkeypatch.setitem(models.SHAPES, "small", replace(models.SHAPES["llama3-8b"], layers=2, vocab=300, **NARROW))
    held, lines = ours.Held(), []
    for workload in ("dense:2x16", "dense:1x32", "dense:2x16"):
        case = cases.Case(shape="small", workload=workload, quantization="fp8", steps=1, warmup=1)
        lines.append(ours.run_case(case, held, tmp_path))
    assert lines[0]["losses"] == lines[2]["losses"] != lines[1]["losses"]


def test_a_step_that_still_compiles_does_not_slow_the_rate_of_a_run() -> None:
    from tests.bench.multi import settled_rate

    seconds = [60.0, 9.0, 1.0, 1.0, 7.0, 1.0, 1.1, 0.9]
    times = [sum(seconds[: at + 1]) for at in range(len(seconds))]
    assert settled_rate([{"tokens": 500 * (at + 1), "time": time} for at, time in enumerate(times)]) == pytest.approx(
        500
    )
