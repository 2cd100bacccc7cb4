"""Tokens are made once, by one process or many, and mapped afterwards; counts and warnings are right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.beds import bpe
from tests.train.templating.test_chat_template import SMOLLM2
from train.data import cache, workers
from train.data.recipe import Recipe
from train.data.schedule import Sampler
from train.data.tokens import first
from train.errors import DataError, TrainError
from train.records import files, json_text
from train.records.conversation import RecordOptions


@pytest.fixture
def recipe() -> Recipe:
    return bpe.recipe(SMOLLM2)


def record(question: str, answer: str) -> dict[str, Any]:
    return {"instruction": question, "output": answer}


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return str(path)


def test_an_entry_is_made_once_and_then_mapped(tmp_path: Path, recipe: Recipe) -> None:
    path = write(tmp_path / "a.jsonl", *(record(f"hello {i}", f"again {i}") for i in range(20)))
    made = cache.entry([path], recipe, tmp_path / "cache")
    again = cache.entry([path], recipe, tmp_path / "cache")
    assert (made.made, again.made) == (True, False)
    assert isinstance(again.tokens.tokens, np.memmap)
    assert len(again.tokens) == 20
    assert np.array_equal(made.tokens.tokens, again.tokens.tokens)
    assert again.tokens.loss_tokens.tolist() == [int(again.tokens.sequence(i)[1].sum()) for i in range(20)]
    assert [place.name for place in (tmp_path / "cache").iterdir() if place.name.endswith(".tmp")] == []


@pytest.mark.parametrize("change", ["content", "template", "max_length", "turns", "system"])
def test_whatever_changes_the_tokens_makes_another_entry(tmp_path: Path, recipe: Recipe, change: str) -> None:
    path = write(tmp_path / "a.jsonl", record("hello", "again"))
    cache.entry([path], recipe, tmp_path / "cache")
    fields = {**recipe.__dict__}
    if change == "content":
        write(tmp_path / "a.jsonl", record("hello", "agaim"))  # as long as before
    else:
        fields |= {
            "template": {"template": SMOLLM2 + " "},
            "max_length": {"max_length": 9},
            "turns": {"turns": "last"},
            "system": {"options": RecordOptions("be brief")},
        }[change]
    assert cache.entry([path], Recipe(**fields), tmp_path / "cache").made


def test_the_same_content_under_another_name_is_the_same_entry(tmp_path: Path, recipe: Recipe) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, record("hello", "again"))
    assert cache.entry([str(tmp_path / "a.jsonl")], recipe, tmp_path / "cache").made
    assert not cache.entry([str(tmp_path / "b.jsonl")], recipe, tmp_path / "cache").made


def test_many_processes_and_small_chunks_make_the_same_tokens(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", *(record(f"hello {i}", f"again {i}" * (i % 5 + 1)) for i in range(200)))
    alone = cache.entry([path], recipe, tmp_path / "one", processes=1)
    monkeypatch.setattr(json_text, "CHUNK_BYTES", 512)
    shared = cache.entry([path], recipe, tmp_path / "two", processes=2)
    assert np.array_equal(alone.tokens.tokens, shared.tokens.tokens)
    assert np.array_equal(alone.tokens.labelled, shared.tokens.labelled)
    assert np.array_equal(alone.tokens.kept, shared.tokens.kept)
    assert alone.meta == shared.meta


def test_a_child_that_dies_is_an_error_and_not_a_wait(tmp_path: Path, recipe: Recipe) -> None:
    path = write(tmp_path / "a.jsonl", record("hello", "again"))
    with workers._Children(recipe, 1.0, 1) as children:
        children.processes[0].kill()
        with pytest.raises(TrainError, match=r"died \(exit status -9\)"):
            children.do(next(files.chunks(path)))


def test_duplicates_and_conflicts_are_found_across_sources_and_blanks(tmp_path: Path, recipe: Recipe) -> None:
    one = write(tmp_path / "a.jsonl", record("q", "a"), record("q", " a"), record("r", "a"))
    two = write(tmp_path / "b.jsonl", record("q ", "b"), record("s", "a"), record("q", "b"))
    meta = cache.entry([one, two], recipe, tmp_path / "cache").meta
    assert meta.records == (3, 3)
    assert (meta.duplicates, meta.conflicts) == (2, 1)
    assert [str(warning) for warning in meta.warnings] == [
        f"{one}:2: the same record as in line 1",
        f"{two}:3: the same record as in line 1",
        f"{two}:1: the question of {one}:1 with another answer",
    ]


def test_unreadable_records_are_remembered_with_the_entry(tmp_path: Path, recipe: Recipe) -> None:
    path = write(tmp_path / "a.jsonl", record("q", "a"), {"instruction": "q"}, record("q", " "))
    for _ in range(2):
        meta = cache.entry([path], recipe, tmp_path / "cache").meta
        assert (meta.unreadable, meta.empty, meta.sequences) == (2, 1, 1)
        with pytest.raises(DataError, match=r"2 records of x cannot be used:\n.*a\.jsonl:2: the key 'output'"):
            cache.refuse_problems(meta, "x", "stop")
        cache.refuse_problems(meta, "x", "skip")


def test_counts_by_source_follow_the_sequences_that_are_kept(tmp_path: Path, recipe: Recipe) -> None:
    one = write(tmp_path / "a.jsonl", record("q", "a"), record("hello " * 600, "b"), record("r", "a"))
    two = write(tmp_path / "b.jsonl", *(record(f"s{i}", "a") for i in range(4)))
    found = cache.entry([one, two], recipe, tmp_path / "cache")
    assert found.meta.too_long == 1
    assert found.counts(found.tokens.kept) == (2, 4)
    limited = first(found.tokens, 4)
    assert found.counts(limited.kept) == (2, 1)
    assert len(limited) == 3


def test_a_sample_is_chosen_by_hash_and_still_counts_every_record(tmp_path: Path, recipe: Recipe) -> None:
    path = write(tmp_path / "a.jsonl", *(record(f"hello {i}", "again") for i in range(400)))
    some = cache.entry([path], recipe, tmp_path / "cache", share=0.25)
    assert some.meta.records == (400,)
    assert 60 < some.meta.sequences < 140
    everything = cache.entry([path], recipe, tmp_path / "cache")
    assert everything.made
    assert everything.meta.sequences == 400


def test_an_empty_file_is_an_entry_without_sequences(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "a.jsonl").write_text("")
    assert len(cache.entry([str(tmp_path / "a.jsonl")], recipe, tmp_path / "cache").tokens) == 0


def test_weights_repeat_records_or_take_a_share_that_the_seed_alone_decides() -> None:
    sampler = Sampler((10, 10), (2.0, 0.5), seed=3)
    seen = sampler.epoch(0).tolist()
    assert sorted(seen)[:20] == sorted([*range(10)] * 2)
    assert len(seen) == 25
    assert len({place for place in seen if place >= 10}) == 5
    assert seen == Sampler((10, 10), (2.0, 0.5), seed=3).epoch(0).tolist()
    assert seen != Sampler((10, 10), (2.0, 0.5), seed=4).epoch(0).tolist()


def test_making_tokens_needs_no_torch() -> None:
    code = (
        "import sys, train.data.cache, train.data.workers; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_record_that_the_template_refuses_does_not_shift_the_answers_of_those_behind_it(tmp_path: Path) -> None:
    from train.config import Source
    from train.data.dataset import Part

    refuse = "{% if 'forbidden' in messages[0]['content'] %}{{ raise_exception('not this one') }}{% endif %}"
    path = write(tmp_path / "a.jsonl", record("hello", "a0"), record("forbidden", "a1"), record("again", "a2"))
    entry = cache.entry([path], bpe.recipe(refuse + SMOLLM2), tmp_path / "cache")
    assert entry.meta.unreadable == 1
    assert len(entry.tokens) == 2
    part = Part((Source(path=path),), entry.tokens, (2,), (1.0,))
    assert [found.answer for found in part.records] == ["a0", "a2"]


def test_a_file_that_got_the_right_name_is_read_again(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "a.jsonl").write_text("instruction,output\nhello,again\n")
    assert cache.entry([str(tmp_path / "a.jsonl")], recipe, tmp_path / "cache").meta.unreadable == 2
    (tmp_path / "a.jsonl").rename(tmp_path / "a.csv")
    assert cache.entry([str(tmp_path / "a.csv")], recipe, tmp_path / "cache").meta.records == (1,)


def test_problems_name_the_file_as_the_user_named_it(tmp_path: Path, recipe: Recipe) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        paths = [
            write(tmp_path / name / "a.jsonl", record("hello", "again"), {"x": 1}),
            write(tmp_path / name / "b.jsonl", record("hello", "again")),
        ]
        found = cache.entry(paths, recipe, tmp_path / "cache")
    assert not found.made
    assert [problem.file for problem in found.meta.problems] == [paths[0]]
    assert [(warning.file, warning.text) for warning in found.meta.warnings] == [
        (paths[1], f"the same record as in {paths[0]}:1")
    ]


def test_the_same_files_in_other_sources_are_counted_by_source(tmp_path: Path, recipe: Recipe) -> None:
    for number in (1, 2, 3):
        for place in ("one", "many"):
            (tmp_path / place).mkdir(exist_ok=True)
            write(tmp_path / place / f"{number}.jsonl", *[record(f"{number} {i}", "a") for i in range(number)])
    both = [str(tmp_path / "both"), str(tmp_path / "one" / "3.jsonl")]
    (tmp_path / "both").mkdir()
    for number in (1, 2):
        (tmp_path / "many" / f"{number}.jsonl").rename(tmp_path / "both" / f"{number}.jsonl")
    assert cache.entry(both, recipe, tmp_path / "cache").meta.records == (3, 3)
    (tmp_path / "one" / "1.jsonl").rename(tmp_path / "1.jsonl")
    assert cache.entry([str(tmp_path / "1.jsonl"), str(tmp_path / "one")], recipe, tmp_path / "cache").meta.records == (
        1,
        5,
    )


def test_a_sample_of_records_that_all_ask_the_same_is_a_sample(tmp_path: Path, recipe: Recipe) -> None:
    path = write(tmp_path / "a.jsonl", *(record("tell a story", f"again {i}") for i in range(400)))
    assert 60 < cache.entry([path], recipe, tmp_path / "cache", share=0.25).meta.sequences < 140


@pytest.mark.parametrize("name", ["tokens.bin", "answered.npy", "meta.json"])
def test_an_entry_that_lost_a_file_is_made_again(tmp_path: Path, recipe: Recipe, name: str) -> None:
    """Scratch file systems clear away what nobody has read for weeks, file by file."""
    path = write(tmp_path / "a.jsonl", *(record(f"hello {i}", f"again {i}") for i in range(20)))
    (cache.entry([path], recipe, tmp_path / "cache").place / name).unlink()
    again = cache.entry([path], recipe, tmp_path / "cache")
    assert again.made
    assert len(again.array("answered")) == len(again.tokens) == 20


def test_a_file_that_changes_while_it_is_read_leaves_no_entry(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = write(tmp_path / "a.jsonl", record("hello", "again")), files.chunks

    def chunks(place: str) -> Any:
        write(Path(place), record("hello", "other"))
        yield from read(place)

    monkeypatch.setattr(files, "chunks", chunks)
    with pytest.raises(DataError, match=r"a\.jsonl: changed while being read"):
        cache.entry([path], recipe, tmp_path / "cache")
    monkeypatch.setattr(files, "chunks", read)
    write(tmp_path / "a.jsonl", record("hello", "again"))
    assert cache.entry([path], recipe, tmp_path / "cache").made


@pytest.mark.parametrize("name", ["tokens.bin", "labelled.bin", "offsets.npy", "kept.npy", "counted.npy"])
def test_a_full_disk_is_reported_whatever_file_is_the_last_that_finds_room(
    tmp_path: Path, recipe: Recipe, name: str
) -> None:
    path = write(tmp_path / "a.jsonl", record("hello", "again"))
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        cache._write(tmp_path, [path], (path,), recipe, 1.0, 1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("at_once", [1, 7, 64, 1000])
def test_repeats_are_found_group_by_group_as_a_dictionary_finds_them(seed: int, at_once: int) -> None:
    rng = np.random.default_rng(seed)
    spread = rng.integers(0, 2**64, 40, dtype=np.uint64)
    asked, answered = spread[rng.integers(0, 40, 300)], rng.integers(0, 4, 300).astype(np.uint64)
    first_pair: dict[tuple[int, int], int] = {}
    first_question: dict[int, int] = {}
    same, other = [], []
    for record, (question, answer) in enumerate(zip(asked.tolist(), answered.tolist(), strict=True)):
        if (question, answer) in first_pair:
            same.append([record, first_pair[question, answer]])
        elif question in first_question:
            other.append([record, first_question[question]])
        first_pair.setdefault((question, answer), record)
        first_question.setdefault(question, record)
    found = cache._find_duplicates(asked, answered, at_once)
    assert (found.sames, found.conflicts) == (len(same), len(other))
    assert found.same.tolist() == same[: cache.SHOWN_PROBLEMS]
    assert found.conflicting.tolist() == other[: cache.SHOWN_PROBLEMS]
    nothing = cache._find_duplicates(asked[:0], answered[:0], at_once)
    assert (nothing.sames, nothing.same.tolist()) == (0, [])
