"""Sweeps without a cluster: points, files and order."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.commands.report import table
from launcher.commands.templates import TEMPLATES
from launcher.errors import RunFailed, SpecError, UsageError
from launcher.job import inputs
from launcher.job.load import read_job
from launcher.job.spec import Job
from launcher.lifecycle import checks, sweep, sweep_array, sweep_in_turn
from launcher.render import texts
from launcher.rundir.claims import Claim
from launcher.rundir.directory import RunDir, RunRecord
from tests.beds.plans import make


def load(values: dict[str, Any]) -> Job:
    return read_job(None, [], {"program": ("true",), "name": "zh", **values})


def test_values_are_read_as_yaml_and_lists_stand_in_brackets() -> None:
    assert sweep.parse(
        ["lora.r=8,16", "train.learning_rate=1e-4,2e-4", "lora.target_modules=auto,[q_proj,v_proj]"]
    ) == {
        "lora.r": [8, 16],
        "train.learning_rate": [1e-4, 2e-4],
        "lora.target_modules": ["auto", ["q_proj", "v_proj"]],
    }


def test_points_that_read_the_same_records_have_them_checked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"instruction": "1 + 1", "output": "2"}\n')
    seen: list[tuple[Any, str]] = []
    monkeypatch.setattr(checks, "check_records", lambda job, _: seen.append((job.data.train, job.model.path)))

    def load(values: dict[str, Any]) -> Job:
        return read_job(None, [], {"device": "cpu", "model.path": "m", "data.train": f"{tmp_path}/a.jsonl", **values})

    texts = ["lora.r=8,16,32", f"data.train={tmp_path}/a.jsonl,{tmp_path}/b.jsonl"]
    assert sweep_array.submit_sweep(texts, load, [], dry_run=True, follow=False, as_json=False) == 0
    assert seen == [(f"{tmp_path}/{name}.jsonl", "m") for name in ("a", "b")]
    assert len(list((tmp_path / "runs").glob("run-*/plan.json"))) == 6


def test_a_file_that_several_points_read_is_hashed_once_for_a_login_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"instruction": "{name}", "output": "2"}}\n')
    seen: list[str] = []
    really = inputs._sha256
    monkeypatch.setattr(inputs, "_sha256", lambda path: [seen.append(path.name), really(path)][1])
    flags = {"device": "cpu", "model.path": "m", "slurm.login": "me@login", "data.eval": f"{tmp_path}/b.jsonl"}

    def load(values: dict[str, Any]) -> Job:
        return read_job(None, [], {**flags, "data.train": f"{tmp_path}/a.jsonl", **values})

    texts = ["lora.r=8,16", f"data.train={tmp_path}/a.jsonl,{tmp_path}/b.jsonl"]
    assert sweep_array.submit_sweep(texts, load, [], dry_run=True, follow=False, as_json=True) == 0
    assert sorted(seen) == ["a.jsonl", "b.jsonl"]
    plans = [json.loads(path.read_text()) for path in sorted((tmp_path / "runs").glob("run-*/plan.json"))]
    places = [plan["slurm"]["inputs"] for plan in plans]
    assert all(len({place[str(tmp_path / name)] for place in places if str(tmp_path / name) in place}) == 1
               for name in ("a.jsonl", "b.jsonl"))  # fmt: skip


def test_a_dry_run_in_json_is_one_object_with_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    assert (
        sweep_array.submit_sweep(["lora.r=8,16"], load, [], dry_run=True, quiet=True, follow=False, as_json=True) == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["runs"]) == 2
    assert (Path(printed["directory"]) / "sweep.sbatch").exists()


@pytest.mark.parametrize("texts", [["lora.r"], ["=3"], ["lora.r="], ["lora.r=1", "lora.r=2"]])
def test_a_malformed_sweep_is_an_error(texts: list[str]) -> None:
    with pytest.raises(SpecError):
        sweep.parse(texts)


def test_points_are_every_combination_with_the_last_key_fastest() -> None:
    assert sweep.combinations({"a": [1, 2], "b": [3, 4]}) == [
        {"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4},
    ]  # fmt: skip


def test_each_point_is_a_checked_job_with_its_own_name() -> None:
    points = sweep.make_points(["lora.r=8,16"], load, [])
    assert [(job.spec.name, job.spec.lora.r, values) for job, values in points] == [
        ("zh-0", 8, {"lora.r": 8}),
        ("zh-1", 16, {"lora.r": 16}),
    ]
    with pytest.raises(SpecError, match=r"lora\.r"):
        sweep.make_points(["lora.r=8,0"], load, [])


def test_a_sweep_over_what_all_points_share_is_refused() -> None:
    with pytest.raises(SpecError, match="both --sweep and --set"):
        sweep.make_points(["lora.r=8,16"], load, ["lora.r=4"])
    with pytest.raises(SpecError, match="must share it"):
        sweep.make_points(["slurm.nodes=1,2"], load, [], fixed=("slurm",))


def test_points_run_one_after_another_and_a_failed_point_does_not_stop_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    seen: list[int] = []

    def start(job: Job, run: RunDir, is_cancelled: sweep.IsCancelled) -> int:
        seen.append(job.spec.lora.r)
        if job.spec.lora.r == 8:
            raise RunFailed("no")
        run.path.mkdir()
        run.save_record(RunRecord(run_id=run.run_id, name="zh", backend="local", created=1.0, state="SUCCEEDED"))
        run.metrics.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0}\n')
        return 0

    code = sweep_in_turn.run_sweep(["lora.r=8,16,32"], load, [], start, backend="local")
    assert (code, seen) == (1, [8, 16, 32])
    (name,) = (path.name for path in (tmp_path / "sweeps").iterdir())
    result = CliRunner().invoke(cli, ["report", name, "--json"], catch_exceptions=False)
    rows = [json.loads(line) for line in result.output.splitlines()]
    assert [(row["lora.r"], row["state"], row.get("loss_last")) for row in rows] == [
        (8, "not started", None), (16, "SUCCEEDED", 2.0), (32, "SUCCEEDED", 2.0),
    ]  # fmt: skip


def test_a_sweep_of_only_wrong_requests_exits_with_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))

    def start(job: Job, run: RunDir, is_cancelled: sweep.IsCancelled) -> int:
        raise UsageError("no such file") if job.spec.lora.r == 8 else RunFailed("no")

    assert sweep_in_turn.run_sweep(["lora.r=8"], load, [], start, backend="local") == 2
    assert sweep_in_turn.run_sweep(["lora.r=8,16"], load, [], start, backend="local") == 1


def test_an_option_without_effect_on_a_sweep_is_refused_and_nothing_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    points = sweep.new_sweep("zh", "local", [(RunDir(tmp_path / "zh-0-20260101-000000-aaaa"), {"lora.r": 8})])
    sweep.save(points)
    for flags in (["--dry-run"], ["--set", "lora.r=4"], ["--gpus", "2"], ["--detach"]):
        with pytest.raises(UsageError, match=flags[0]):
            CliRunner().invoke(cli, ["resume", points.sweep_id, *flags], standalone_mode=False, catch_exceptions=False)


def test_a_failed_point_shows_its_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))

    def start(job: Job, run: RunDir, is_cancelled: sweep.IsCancelled) -> int:
        raise RunFailed("no", hint="try another")

    assert sweep_in_turn.run_sweep(["lora.r=8"], load, [], start, backend="local") == 1
    assert "error[ZL-RUN-05]: no\n  -> try another\n" in capsys.readouterr().err


def test_ctrl_c_ends_the_whole_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    codes = iter([0, 130, 0])
    assert sweep_in_turn.run_sweep(["lora.r=1,2,3"], load, [], lambda *_: next(codes), backend="local") == 130
    assert next(codes) == 0  # the third never started
    (name,) = (path.name for path in (tmp_path / "sweeps").iterdir())
    found = sweep.find_sweep(name)
    assert found is not None
    asked = []

    def again(job: Job, run: RunDir, is_cancelled: sweep.IsCancelled) -> int:
        asked.append((job.spec.lora.r, run.run_id))
        return 0

    assert sweep_in_turn.resume_sweep(found, again) == 0
    assert asked == [(r, point.run) for r, point in zip((1, 2, 3), found.points, strict=True)]


def test_ctrl_c_while_waiting_for_an_array_says_that_it_continues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: RunDir) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_array, "state_of", interrupted)
    point = sweep.Point(run="a-20260101-000000-aaaa", values={})
    waited_for = sweep.Sweep(sweep_id="s-20260101-000000-bbbb", backend="slurm", created=1.0, points=(point,))
    with pytest.raises(KeyboardInterrupt):
        sweep_array.wait(waited_for)
    assert f"{waited_for.sweep_id} continues" in capsys.readouterr().err


@pytest.mark.parametrize(("states", "code"), [(["SUCCEEDED"] * 2, 0), (["SUCCEEDED", "CANCELLED"], 130)])
def test_waiting_for_a_cancelled_array_is_not_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: list[str], code: int
) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    made = []
    for number, state in enumerate(states):
        run = RunDir(tmp_path / f"zh-{number}-20260101-000000-aaaa")
        run.save_record(RunRecord(run_id=run.run_id, name="zh", backend="slurm", created=1.0, state=state))
        made.append((run, {"lora.r": number}))
    assert sweep_array.wait(sweep.new_sweep("zh", "slurm", made)) == code


def test_only_a_later_cancel_stops_a_resumed_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    points = sweep.new_sweep("zh", "local", [])
    first = sweep.watch_cancelled(points)
    assert not first()
    sweep.mark_cancelled(points)
    resumed = sweep.watch_cancelled(points)
    assert (first(), resumed()) == (True, False)
    sweep.mark_cancelled(points)
    assert (first(), resumed()) == (True, True)


def test_a_cancel_as_soon_as_the_sweep_can_be_found_starts_no_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    save, claim = sweep.save, sweep.claim

    def save_and_cancel(points: sweep.Sweep) -> None:
        save(points)
        sweep.mark_cancelled(points)

    def cancel_and_claim(points: sweep.Sweep, doing: str, **how: bool) -> Claim:
        sweep.mark_cancelled(points)
        return claim(points, doing, **how)

    monkeypatch.setattr(sweep, "save", save_and_cancel)
    assert sweep_in_turn.run_sweep(["lora.r=1,2"], load, [], lambda *_: pytest.fail("started"), backend="local") == 130
    (name,) = (path.name for path in (tmp_path / "sweeps").iterdir())
    found = sweep.find_sweep(name)
    assert found is not None
    monkeypatch.setattr(sweep, "claim", cancel_and_claim)
    assert sweep_in_turn.resume_sweep(found, lambda *_: pytest.fail("started")) == 130


def test_the_table_has_a_dash_where_a_run_has_no_value() -> None:
    text = table(
        [{"run": "a", "lora.r": 8, "state": "SUCCEEDED", "loss_last": 1.23456}, {"run": "b", "state": "FAILED"}]
    )
    assert text.splitlines() == [
        "run  lora.r  state      loss_last",
        "a    8       SUCCEEDED  1.2346",
        "b    -       FAILED     -",
    ]


def test_templates_eject_and_diff_show_what_a_site_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    assert run(cli, ["templates", "eject"], catch_exceptions=False, standalone_mode=False).exit_code == 0
    with pytest.raises(UsageError, match="cannot write"):
        run(cli, ["templates", "eject", "--to", "nowhere/x"], catch_exceptions=False, standalone_mode=False)
    own = tmp_path / "train.sbatch.j2"
    same = run(cli, ["templates", "diff", str(own)], catch_exceptions=False, standalone_mode=False)
    assert (same.return_value, same.output) == (0, "")
    own.write_text(own.read_text().replace("set -uo pipefail", "set -euo pipefail"))
    changed = run(cli, ["templates", "diff", str(own)], catch_exceptions=False, standalone_mode=False)
    assert changed.return_value == 1
    assert "-set -uo pipefail\n+set -euo pipefail\n" in changed.output


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_ejected_file_is_accepted_by_its_key_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ejected = CliRunner().invoke(cli, ["templates", "eject", name], standalone_mode=False)
    assert TEMPLATES[name].key in ejected.output or "--template" in ejected.output or "--hostfile" in ejected.output
    key = TEMPLATES[name].key
    spec = read_job(None, (), {key: name}).spec
    assert spec != read_job(None).spec
    if name == "node.sh.j2":
        stock = texts.render(make())["node.sh"]
        assert texts.render(make(tree={key: name}))["node.sh"] == stock
        Path(name).write_text("echo {{ plan.run_id }}\n")
        with pytest.raises(SpecError, match="does not start"):
            texts.render(make(tree={key: str(Path(name).absolute())}))
        Path(name).write_text("{{ nothing }}\n")
        with pytest.raises(SpecError, match=r"node_template: .*nothing"):
            texts.render(make(tree={key: str(Path(name).absolute())}))


def test_a_local_sweep_runs_its_points_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = [
        "local",
        "--device",
        "cpu",
        "--sweep",
        "env.POINT=one,two",
        "--",
        "bash",
        "-c",
        'echo "$POINT"; [ "$POINT" = two ] || [ -e "$HERE/let-it-pass" ]',
    ]
    monkeypatch.setenv("HERE", str(tmp_path))
    result = CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)
    assert result.return_value == 1
    logs = sorted(path.read_text() for path in tmp_path.glob("run-*/logs/node-0/rank-0.log"))
    assert logs == ["one\n", "two\n"]
    (name,) = (path.name for path in (tmp_path / "sweeps").iterdir())
    rows = CliRunner().invoke(cli, ["report", name, "--json"], catch_exceptions=False).output.splitlines()
    assert [json.loads(row)["state"] for row in rows] == ["FAILED", "SUCCEEDED"]
    (tmp_path / "let-it-pass").touch()
    assert CliRunner().invoke(cli, ["resume", name], standalone_mode=False, catch_exceptions=False).return_value == 0
    rows = CliRunner().invoke(cli, ["report", name, "--json"], catch_exceptions=False).output.splitlines()
    assert [json.loads(row)["state"] for row in rows] == ["SUCCEEDED", "SUCCEEDED"]
    with pytest.raises(UsageError, match="have succeeded"):
        CliRunner().invoke(cli, ["resume", name], standalone_mode=False, catch_exceptions=False)
