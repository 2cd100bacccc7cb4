from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from train.config import Training, steps_between
from train.data.schedule import Sampler, deal, learning_rate, spread, warmup_steps

RNG = np.random.default_rng(0)
SHAPES = [(1, 1), (1, 4), (2, 2), (4, 1), (3, 2), (8, 3)]


def test_an_epoch_holds_every_record_once() -> None:
    sampler = Sampler((7, 5), (1.0, 1.0), seed=1)
    for number in range(3):
        assert sorted(sampler.epoch(number)) == list(range(12))


def test_weights_say_how_often_a_source_is_seen() -> None:
    sampler = Sampler((10, 4), (0.5, 2.0), seed=1)
    assert sampler.epoch_size == 13
    first, second = sampler.epoch(0), sampler.epoch(1)
    assert sorted(first[first >= 10]) == sorted([10, 11, 12, 13] * 2)
    half = set(first[first < 10])
    assert len(half) == 5
    assert half != set(second[second < 10])  # another half each epoch


def test_steps_walk_through_the_epochs_without_gap_or_repetition() -> None:
    sampler = Sampler((10,), (1.0,), seed=3)
    walked = np.concatenate([sampler.step(k, 4) for k in range(5)])
    assert np.array_equal(walked, np.concatenate([sampler.epoch(0), sampler.epoch(1)]))
    assert len(sampler.step(0, 25)) == 25  # more than an epoch at once


def test_the_records_of_a_step_depend_on_seed_and_step_alone() -> None:
    assert np.array_equal(Sampler((50,), (1.0,), 5).step(9, 8), Sampler((50,), (1.0,), 5).step(9, 8))
    assert not np.array_equal(Sampler((50,), (1.0,), 5).step(9, 8), Sampler((50,), (1.0,), 6).step(9, 8))


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 3), (2.0, 5), (0.01, 1), (0.8, 2)])
def test_epochs_become_whole_steps(epochs: float, steps: int) -> None:
    assert Sampler((10,), (1.0,), 0).steps(epochs, 4) == steps


@pytest.mark.parametrize("order", ["none", "bucket", "pack"])
@pytest.mark.parametrize(("world", "micro"), SHAPES)
def test_every_record_of_a_step_goes_to_exactly_one_micro_batch(world: int, micro: int, order: str) -> None:
    records = RNG.permutation(1000)[: world * micro * 4]
    shares = deal(records, RNG.integers(8, 500, len(records)), world_size=world, micro_batch_size=micro, order=order)  # type: ignore[arg-type]
    assert [len(share) for share in shares] == [4] * world
    assert all(len(batch) == micro for share in shares for batch in share)
    assert sorted(np.concatenate([batch for share in shares for batch in share])) == sorted(records)


@pytest.mark.parametrize(("world", "micro"), [(2, 4), (4, 8)])
def test_buckets_pad_less_and_share_the_tokens_evenly(world: int, micro: int) -> None:
    records = np.arange(world * micro * 6)
    lengths = np.round(RNG.lognormal(5, 0.7, len(records))).astype(int)

    def padded(order: str) -> list[int]:
        shares = deal(records, lengths, world_size=world, micro_batch_size=micro, order=order)  # type: ignore[arg-type]
        return [sum(int(lengths[batch].max()) * len(batch) for batch in share) for share in shares]

    assert sum(padded("bucket")) < 0.8 * sum(padded("none"))
    assert max(padded("bucket")) < 1.15 * min(padded("bucket"))


def test_a_step_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        deal(np.arange(7), np.ones(7), world_size=2, micro_batch_size=2, order="none")


@pytest.mark.parametrize(("count", "world", "size"), [(10, 3, 4), (1, 4, 8), (16, 2, 4), (0, 2, 4)])
def test_evaluation_gives_every_rank_equally_many_batches_and_every_record_once(
    count: int, world: int, size: int
) -> None:
    shares = spread(count, world, size)
    assert len({len(share) for share in shares}) == 1
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(count))


def _numbers(**changes: object) -> Training:
    """A run with a peak of 2e-4, without a warm-up."""
    needed = {"global_batch_size": 1, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "warmup_ratio": 0.0}
    return Training(**{**needed, **changes})  # type: ignore[arg-type]


SHAPES: dict[str, tuple[str, dict[str, float], dict[str, object]]] = {
    # name: (the name that transformers has, its keyword arguments, ours)
    "linear": ("linear", {}, {}),
    "cosine": ("cosine", {}, {}),
    "constant": ("constant_with_warmup", {}, {}),
    "inverse_sqrt": ("inverse_sqrt", {}, {}),
    "polynomial": ("polynomial", {"power": 2.0, "lr_end": 1e-5}, {"scheduler_power": 2.0, "min_lr_ratio": 0.05}),
    "cosine with a floor": ("cosine_with_min_lr", {"min_lr_rate": 0.1}, {"scheduler": "cosine", "min_lr_ratio": 0.1}),
    "cosine_with_restarts": ("cosine_with_restarts", {"num_cycles": 3}, {"scheduler_cycles": 3}),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("total", "ratio"), [(100, 0.1), (100, 0.07), (37, 0.03), (2, 0.03), (5, 0.999), (9, 0.0), (1, 0.0)]
)
def test_the_learning_rate_is_that_of_transformers_step_by_step(
    shape: str, total: int, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)  # tests before leave theirs, and transformers would be a rank
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.TrainingArguments(output_dir="unused", warmup_steps=ratio, use_cpu=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    name, options, own = SHAPES[shape]
    warmup = theirs.get_warmup_steps(total)
    scheduler = transformers.get_scheduler(name, optimizer, warmup, total, scheduler_specific_kwargs=options)
    for step in range(total):
        ours = learning_rate(_numbers(**{"scheduler": shape, "warmup_ratio": ratio, **own}), step, total)
        assert ours == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=1e-18)
        optimizer.step()
        if step + 1 < total:  # transformers divides by zero after a warm-up of all steps
            scheduler.step()


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("total", "warmup", "decay"), [(60, 6, 12), (10, 0, 3), (9, 2, 7), (5, 1, 0), (1, 0, 1)])
def test_a_rate_that_stays_and_then_falls_is_that_of_transformers(
    total: int, warmup: int, decay: int, floor: float
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    options = {"num_decay_steps": decay, "min_lr_ratio": floor}
    scheduler = transformers.get_scheduler(
        "warmup_stable_decay", optimizer, warmup, total, scheduler_specific_kwargs=options
    )
    numbers = _numbers(scheduler="warmup_stable_decay", warmup_steps=warmup, decay_steps=decay, min_lr_ratio=floor)
    for step in range(total):
        assert learning_rate(numbers, step, total) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("total", [1, 2, 3])
def test_warm_up_leaves_a_step_that_trains(total: int) -> None:
    """Trainer would give the only step of a run a rate of zero."""
    assert any(learning_rate(_numbers(scheduler="cosine", warmup_ratio=0.03), k, total) for k in range(total))


def test_a_number_of_warm_up_steps_overrides_their_share() -> None:
    assert warmup_steps(100, 0.03) == 3
    assert warmup_steps(100, 0.03, 0) == 0
    assert warmup_steps(100, 0.03, 40) == 40


def test_only_the_first_records_of_a_source_take_part() -> None:
    sampler = Sampler((10, 6), (1.0, 2.0), 1, used=(4, 6))
    assert sampler.epoch_size == 4 + 12
    assert sorted(sampler.epoch(0).tolist()) == sorted([0, 1, 2, 3, *(2 * list(range(10, 16)))])


@pytest.mark.parametrize(
    ("every", "steps"), [(7, 7), (0, 0), ("epoch", 13), ("0.25 epochs", 4), ("2 epochs", 25), ("1 epoch", 13)]
)
def test_a_time_in_epochs_is_counted_in_whole_batches(every: int | str, steps: int) -> None:
    assert steps_between(every, records=100, global_batch_size=8) == steps


SOURCES = ({"path": "a", "weight": 3.0}, {"path": "b"}, {"path": "c", "weight": 0.5})


@pytest.mark.parametrize("counts", [(100, 900, 7000), (0, 5, 5), (1, 1, 1), (3, 0, 100_000)])
@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"mix": "shares"}, lambda weight, count: weight),
        ({"mix_temperature": 2.0}, lambda weight, count: (weight * count) ** 0.5),
        ({"mix_temperature": 5.0}, lambda weight, count: (weight * count) ** 0.2),
        ({}, lambda weight, count: weight * count),
    ],
)
def test_sources_have_their_shares_of_an_epoch_that_keeps_its_size(
    counts: tuple[int, ...], settings: dict[str, Any], share: Any
) -> None:
    """Against the shares computed in fractions, as T5's and mBERT's papers define them."""
    from train.config import Data, Source, quotas

    data = Data(train=tuple(Source(**source) for source in SOURCES), **settings)
    found = quotas(data, counts)
    weights = [source.weight for source in data.train_sources]
    shares = np.array([share(weight, count) if count else 0 for weight, count in zip(weights, counts, strict=True)])
    whole = sum(counts) if data.mix == "shares" else sum(weight * c for weight, c in zip(weights, counts, strict=True))
    assert abs(np.array(found) - whole * shares / shares.sum()).max() <= 1
    assert abs(sum(found) - whole) <= 1.5
    sampler = Sampler.of(data, counts, counts, seed=3)
    origin = np.searchsorted(np.cumsum(counts), sampler.epoch(1), side="right")
    assert np.bincount(origin, minlength=3).tolist() == found
    for source in range(3):  # no record of a source is repeated before each of them was taken as often
        times = np.bincount(sampler.epoch(1))[sum(counts[:source]) : sum(counts[: source + 1])]
        assert not len(times) or times.max() - times.min() <= 1 or len(times) < counts[source]


def test_records_are_ordered_as_given_or_by_length() -> None:
    from train.config import Data, Source

    lengths = np.random.default_rng(0).integers(1, 9, 30)
    sources = (Source(path="a", weight=2.0), Source(path="b", weight=0.5, first=10))
    given = Sampler.of(Data(train=sources, order="given"), (10, 20), (10, 10), 5)
    epoch = given.epoch(0).tolist()
    assert epoch[:20] == [*range(10), *range(10)]
    assert epoch[20:] == sorted(epoch[20:])
    assert set(epoch[20:]) <= set(range(10, 20))
    assert given.epoch(1)[20:].tolist() != epoch[20:]
    short = Sampler.of(Data(train=sources, order="shortest_first"), (10, 20), (10, 10), 5, lengths)
    taken = short.epoch(0)
    assert (np.diff(lengths[taken]) >= 0).all()
    shuffled = Sampler.of(Data(train=sources), (10, 20), (10, 10), 5, lengths)
    assert sorted(taken.tolist()) == sorted(shuffled.epoch(0).tolist())
    assert (
        taken.tolist()
        != Sampler.of(Data(train=sources, order="shortest_first"), (10, 20), (10, 10), 5, -lengths).epoch(0).tolist()
    )
