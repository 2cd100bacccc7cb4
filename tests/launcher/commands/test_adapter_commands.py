"""eval, export, chat, generate and convert: which program they start, with what, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.errors import UsageError
from launcher.rundir.directory import RunDir

FAKE = r"""#!/bin/sh
printf '%s\n' "$PYTHONPATH" "$@" > "$0.called"
while [ $# -gt 1 ]; do
    if [ "$1" = --out ]; then
        mkdir -p "$2"
        tasks='{"qa": {"records": 2, "exact_match": 0.5}}'
        echo '{"records": 2, "loss": 1.5, "accuracy": 0.5, "data": "d", "tasks": '"$tasks}" > "$2/scores.json"
    fi
    shift
done
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A finished run whose interpreter only notes what it is asked to do."""
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    run = RunDir(tmp_path / "runs" / "demo-20261124-120000-abcd")
    run.adapter.mkdir(parents=True)
    (run.adapter / "adapter_config.json").write_text("{}")
    python = tmp_path / "their python"
    python.write_text(FAKE)
    python.chmod(0o755)
    run.plan_json.write_text(json.dumps({"launch": {"python": str(python)}}))
    return run


def called(run: RunDir) -> list[str]:
    python = run.read_json(run.plan_json)["launch"]["python"]
    return Path(f"{python}.called").read_text().splitlines()


def zlaunch(*words: str) -> str:
    done = CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)
    assert done.return_value in (0, None), done.output
    return done.output


def test_eval_prints_a_table_or_the_scores(run: RunDir, tmp_path: Path) -> None:
    data = tmp_path / "更多 data.jsonl"
    data.write_text("{}\n")
    output = zlaunch("eval", "last", "--data", str(data), "--device", "cpu", "--max-records", "5")
    (place,) = (run.path / "evaluations").iterdir()
    assert place.name.startswith("更多 data-")
    assert "exact_match" in output
    assert str(place / "predictions.jsonl") in output.replace("\n", "")
    path, *words = called(run)
    assert path == str(run.code)  # another environment gets the run's own snapshot
    assert words == ["-m", "train.evaluate", "--run-dir", str(run.path), "--device", "cpu", "--out", str(place),
                     "--data", str(data), "--max-records", "5"]  # fmt: skip
    zlaunch("eval", "last", "--data", "hub:owner/set:test", "--device", "cpu")
    words = called(run)
    assert words[words.index("--data") + 1] == "hub:owner/set:test"
    assert words[words.index("--out") + 1] == str(run.path / "evaluations" / "hub-owner--set-test")
    assert json.loads(zlaunch("eval", "demo", "--json"))["tasks"]["qa"]["exact_match"] == 0.5


def test_evaluations_on_other_files_of_the_same_name_lie_apart(run: RunDir, tmp_path: Path) -> None:
    zlaunch("eval", "last")  # the job's own data.eval
    for folder in ("x", "y", "x"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "eval.jsonl").write_text("{}\n")
        zlaunch("eval", "last", "--data", str(tmp_path / folder / "eval.jsonl"))
    assert len({path.name for path in (run.path / "evaluations").iterdir()}) == 3


def test_export_goes_into_the_run_unless_told_elsewhere(run: RunDir, tmp_path: Path) -> None:
    zlaunch("export", "demo", "--to", "ollama")
    assert called(run)[1:] == ["-m", "train.export", "--run-dir", str(run.path), "--to", "ollama", "--out",
                               str(run.path / "export-ollama")]  # fmt: skip
    zlaunch("export", "demo", "--out", str(tmp_path / "x"))
    assert called(run)[-3:] == ["merged", "--out", str(tmp_path / "x")]


def test_chat_and_generate_hand_their_settings_on(run: RunDir) -> None:
    zlaunch("chat", "demo", "--temperature", "0.7", "--base", "--system", "简短", "--device", "cpu")
    module, *words = called(run)[2:]
    assert module == "train.chat"
    assert set(words) == {"--run-dir", str(run.path), "--max-new-tokens=512", "--temperature=0.7", "--base",
                          "--system=简短", "--device=cpu"}  # fmt: skip
    zlaunch("generate", "demo", "你好 $(x)", "--temperature", "0.7", "--base")
    module, *words = called(run)[2:]
    assert module == "train.generate"
    assert set(words) == {"--run-dir", str(run.path), "--prompt=你好 $(x)", "--max-new-tokens=256",
                          "--temperature=0.7", "--base", "--device=auto"}  # fmt: skip


@pytest.mark.parametrize("words", [["chat", "demo"], ["generate", "demo", "--", "-x"]])
def test_texts_that_begin_with_a_dash_are_no_options_of_the_child(run: RunDir, words: list[str]) -> None:
    zlaunch(*words[:2], "--system", "-x", *words[2:])
    assert "--system=-x" in called(run)
    assert ("--prompt=-x" in called(run)) == (words[0] == "generate")


def test_a_number_of_tokens_that_is_none_is_refused_here(run: RunDir) -> None:
    done = CliRunner().invoke(cli, ["chat", "demo", "--max-new-tokens", "0"])
    assert done.exit_code == 2


@pytest.mark.parametrize("words", [["eval"], ["export"], ["chat"]])
def test_a_run_without_an_adapter_is_refused(run: RunDir, words: list[str]) -> None:
    (run.adapter / "adapter_config.json").unlink()
    with pytest.raises(UsageError, match="has no adapter yet"):
        CliRunner().invoke(cli, [*words, "demo"], standalone_mode=False, catch_exceptions=False)


def test_convert_runs_this_projects_converter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    source = tmp_path / "a model"
    source.mkdir()
    done = CliRunner().invoke(cli, ["convert", str(source), str(tmp_path / "out")], standalone_mode=False)
    assert done.return_value == 2
    assert "no config.json in it" in capfd.readouterr().err
