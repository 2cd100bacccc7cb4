"""`zlaunch eval`: how the evaluation is started, and where its scores go."""

from __future__ import annotations

import json
from pathlib import Path

from tests.launcher.commands.conftest import AdapterRun


def test_eval_prints_a_table_or_the_scores(adapter_run: AdapterRun, tmp_path: Path) -> None:
    run, zlaunch = adapter_run.run, adapter_run.zlaunch
    data = tmp_path / "更多 data.jsonl"
    data.write_text("{}\n")
    output = zlaunch("eval", "last", "--data", str(data), "--device", "cpu", "--max-records", "5")
    (place,) = run.evaluations.iterdir()
    assert place.name.startswith("更多 data-")
    assert "exact_match" in output
    assert str(place / "predictions.jsonl") in output.replace("\n", "")
    path, *words = adapter_run.called()
    assert path == str(run.code)  # another environment gets the run's own snapshot
    assert words == ["-m", "train.evaluate", "--run-dir", str(run.path), "--device", "cpu", "--out", str(place),
                     "--data", str(data), "--max-records", "5"]  # fmt: skip
    zlaunch("eval", "last", "--data", "hub:owner/set:test", "--device", "cpu")
    words = adapter_run.called()
    assert words[words.index("--data") + 1] == "hub:owner/set:test"
    assert words[words.index("--out") + 1] == str(run.evaluations / "hub-owner--set-test")
    assert json.loads(zlaunch("eval", "demo", "--json"))["tasks"]["qa"]["exact_match"] == 0.5


def test_evaluations_on_files_of_the_same_name_get_separate_directories(
    adapter_run: AdapterRun, tmp_path: Path
) -> None:
    adapter_run.zlaunch("eval", "last")  # the job's own data.eval
    for folder in ("x", "y", "x"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "eval.jsonl").write_text("{}\n")
        adapter_run.zlaunch("eval", "last", "--data", str(tmp_path / folder / "eval.jsonl"))
    assert len({path.name for path in adapter_run.run.evaluations.iterdir()}) == 3
