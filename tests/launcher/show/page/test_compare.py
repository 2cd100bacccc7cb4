"""Several runs: the best, how sure that is, and what differs."""

from __future__ import annotations

from typing import Any

from launcher.show.page.compare import comparison, differing


def page(name: str, *, right: int = 0, of: int = 0, loss: float | None = None, **changed: Any) -> Any:
    scores = []
    rows = [{"prompt": f"q{i}", "expected": "a", "right": i < right} for i in range(of)]
    if of:
        scores.append({"task": None, "metric": "accuracy", "after": right / of, "interval": (0.0, 1.0), "records": of})
    if loss is not None:
        scores.append({"task": None, "metric": "loss", "after": loss, "interval": None, "records": of})
    used = changed.pop("used", {})
    return {
        "id": f"{name}-id", "name": name, "state": "SUCCEEDED", "seconds": 1.0, "scores": scores, "curves": {},
        "loss_last": 1.0, "answers": [{"name": None, "rows": rows}] if of else [], "settings": {"used": used},
        "world_size": 1, "nodes": 1, "device": "cpu", **changed,
    }  # fmt: skip


def best(*pages: Any) -> Any:
    found = comparison(pages, [{}] * len(pages))
    return found["metric"], pages[found["best"]["row"]]["name"], found["best"]["ties"], found["best"]["others"]


def test_the_most_right_answers_win_and_runs_that_the_records_cannot_tell_apart_are_named() -> None:
    pages = page("a", right=10, of=64), page("b", right=50, of=64, loss=3.0), page("c", right=47, of=64, loss=0.1)
    assert best(*pages) == ("accuracy", "b", ["c"], [])


def test_without_right_answers_the_smallest_held_out_loss_wins() -> None:
    assert best(page("a", of=4, loss=2.0), page("b", of=4, loss=1.0)) == ("loss", "b", [], [])


def test_without_held_out_records_the_training_loss_ranks_and_a_run_without_any_is_left_out() -> None:
    assert best(page("a", loss_last=2.0), page("b", loss_last=1.0), page("c", loss_last=None)) == (
        "training_loss",
        "b",
        [],
        [],
    )
    assert comparison([page("a", loss_last=None)], [{}])["best"] is None


def test_scores_on_other_records_are_not_compared() -> None:
    assert best(page("a", right=3, of=4), page("b", right=3, of=8))[3] == ["b"]


def eval_of(name: str, records: int, loss_tokens: int = 900) -> dict[str, Any]:
    data = [{"part": "eval", "records": records, "loss_tokens": loss_tokens}]
    return {"used": {"data.eval": f"/w/runs/{name}-id/inputs/held.jsonl", "x": name}, "data": data}


def test_losses_over_other_records_or_other_tokens_are_not_ranked_together() -> None:
    pages = [
        page("a", loss=2.0, **eval_of("a", 64)),
        page("b", loss=1.5, **eval_of("b", 64)),
        page("other", loss=0.1, **eval_of("other", 32)),
        page("tokens", loss=0.2, **eval_of("tokens", 64, 400)),
    ]
    assert best(*pages) == ("loss", "b", [], ["other", "tokens"])
    groups = [row["groups"] for row in comparison(pages, [{}] * 4)["rows"]]
    assert [one["loss"] for one in groups] == [0, 0, 1, 2]
    assert {one["training_loss"] for one in groups} == {0}  # of one data.train


def test_training_losses_of_other_training_data_are_not_ranked_together() -> None:
    pages = [page("a", loss_last=2.0, used={"data.train": "x"}), page("b", loss_last=1.0, used={"data.train": "y"})]
    pages.append(page("c", loss_last=1.5, used={"data.train": "x"}))
    assert best(*pages) == ("training_loss", "c", [], ["b"])


def test_runs_of_one_name_are_told_apart_by_their_point_or_the_end_of_their_id() -> None:
    pages = [page("grid", id=f"grid-2026-{end}", loss=1.0) for end in ("aa11", "bb22", "cc33")]
    pages.append(page("alone", loss=2.0))
    points: list[dict[str, Any]] = [{"lora.r": 4, "train.seed": 1}, {"lora.r": 8, "train.seed": 1}, {}, {}]
    names = [row["name"] for row in comparison(pages, points)["rows"]]
    assert names == ["grid r=4, seed=1", "grid r=8, seed=1", "grid", "alone"]
    names = [row["name"] for row in comparison(pages, [{}] * 4)["rows"]]
    assert names == ["grid aa11", "grid bb22", "grid cc33", "alone"]


def test_only_settings_that_differ_are_listed_and_swept_keys_come_first() -> None:
    used = [{"lora.r": 8, "train.seed": 1, "x": [1]}, {"lora.r": 16, "train.seed": 2, "x": [1], "new": None}]
    assert differing(used) == {"lora.r": [8, 16], "train.seed": [1, 2]}
    pages = [page(str(i), used=one) for i, one in enumerate(used)]
    found = comparison(pages, [{"train.seed": 1}, {"train.seed": 2}])
    assert (found["keys"], found["axes"]) == (["train.seed", "lora.r"], ["train.seed", "lora.r"])
