from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from launcher.errors import RunNotFound
from launcher.machine import installation
from launcher.node import run_files
from launcher.node.agent.launch import Names
from launcher.plan import batch_job
from launcher.render import snapshot
from launcher.rundir import directory, find
from launcher.rundir.directory import RunDir, RunRecord
from train.rundir import run_files as training
from train.rundir.checkpoints import MARKER


def make_run(root, run_id):
    run = RunDir(root / run_id)
    run.write({"plan.json": '{"train": {"train": {}}}'})
    run.save_record(RunRecord(run_id=run_id, name="x", backend="local", created=1.0))
    return run


def test_a_run_is_found_by_id_prefix_path_and_last(tmp_path):
    first = make_run(tmp_path, "demo-20260101-000000-aaaa")
    second = make_run(tmp_path, "other-20260102-000000-bbbb")
    assert find.find_run(first.run_id, tmp_path).path == first.path
    assert find.find_run("oth", tmp_path).path == second.path
    assert find.find_run("last", tmp_path).path == second.path
    assert find.find_run(str(first.path), tmp_path).path == first.path


def test_an_ambiguous_or_absent_run_says_which_there_are(tmp_path):
    with pytest.raises(RunNotFound, match="no runs in"):
        find.find_run("last", tmp_path)
    make_run(tmp_path, "demo-20260101-000000-aaaa")
    make_run(tmp_path, "demo-20260101-000001-aaab")
    with pytest.raises(RunNotFound, match="2 runs"):
        find.find_run("demo", tmp_path)
    with pytest.raises(RunNotFound) as caught:
        find.find_run("zzz", tmp_path)
    assert "demo-20260101-000001-aaab" in str(caught.value.hint)


def test_events_of_many_writers_never_mix(tmp_path):
    run = make_run(tmp_path, "demo-20260101-000000-aaaa")
    threads = [
        threading.Thread(target=lambda i=i: [run.event("x", writer=i, text="y" * 500) for _ in range(50)])
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(run.read_events()) == 400


def test_a_torn_last_line_is_left_out(tmp_path):
    file = tmp_path / "m.jsonl"
    for torn in (b'{"step"', b"17", b'"step'):
        file.write_bytes(b'{"step": 1}\n' + torn)
        assert list(directory.read_jsonl(file)) == [{"step": 1}]


def test_concurrent_changes_of_the_record_are_all_kept(tmp_path):
    run = make_run(tmp_path, "demo-20260101-000000-aaaa")
    others = [{"ids": ("7",)}, {"submitted": 2.0}, {"extra": {"sweep": "s"}}, {"state": "RUNNING"}, {"zlaunch": "1"}]
    for _ in range(20):
        run.save_record(RunRecord(run_id=run.run_id, name="x", backend="local", created=1.0))
        threads = [threading.Thread(target=run.update_record, kwargs=change) for change in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        record = run.record
        assert [(next(iter(change)), getattr(record, next(iter(change)))) for change in others] == [
            next(iter(change.items())) for change in others
        ]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "run.json"
    directory.write_atomic(file, "old")
    with pytest.raises(UnicodeEncodeError):
        directory.write_atomic(file, "new \udc80")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_only_the_owner_can_read_a_run_directory(tmp_path):
    run = make_run(tmp_path, "demo-20260101-000000-aaaa")
    assert run.path.stat().st_mode & 0o077 == 0


def test_the_code_snapshot_has_the_files_as_they_are_now(tmp_path):
    source = tmp_path / "src"
    (source / "sub").mkdir(parents=True)
    (source / "a.py").write_text("a = 1\n")
    (source / "sub" / "b.py").write_text("b = 1\n")
    run, sources = RunDir(tmp_path / "one"), {"train": source, "agent.py": source / "a.py"}
    snapshot.snapshot_code(run.code, sources)
    assert (run.code / "train" / "sub" / "b.py").read_text() == "b = 1\n"
    (source / "a.py").write_text("a = 2\n")
    (source / "sub" / "b.py").unlink()
    snapshot.snapshot_code(run.code, sources)
    assert (run.code / "agent.py").read_text() == "a = 2\n"
    assert not (run.code / "train" / "sub" / "b.py").exists()


def test_the_compiled_agent_is_used_by_our_python_whatever_the_times_of_its_files(tmp_path):
    run = RunDir(tmp_path / "one")
    snapshot.snapshot_code(run.code, installation.agent_sources())
    snapshot.compile_code(run.code / "node")
    os.utime(run.code / "node" / "agent" / "startup.py", (1, 1))
    argv = [sys.executable, "-S", "-v", "code/node/agent/__main__.py"]
    stderr = subprocess.run(argv, cwd=run.path, capture_output=True, text=True).stderr
    assert "/code/node/agent/__pycache__/startup.cpython" in stderr
    assert "# wrote" not in stderr


@pytest.mark.parametrize(
    ("plan", "seconds"),
    [
        ('{"launch": {"stop_deadline": 90, "kill_after": 1}}', (90.0, 1.0)),
        ('{"launch": {', (25.0, 5.0)),
        (None, (25.0, 5.0)),
    ],
)
def test_a_run_can_be_stopped_whatever_became_of_its_plan(tmp_path, plan, seconds):
    run = make_run(tmp_path, "demo-20260101-000000-aaaa")
    if plan is not None:
        run.plan_json.write_text(plan)
    else:
        run.plan_json.unlink(missing_ok=True)
    assert run.stop_seconds() == seconds


def test_only_first_keeps_an_existing_record(tmp_path):
    run = make_run(tmp_path, "demo-20260101-000000-aaaa")
    late = RunRecord(run_id=run.run_id, name="late", backend="local", created=2.0)
    assert (run.save_record(late, only_first=True), run.record.name) == (False, "x")
    run.run_json.unlink()
    assert (run.save_record(late, only_first=True), run.record.name) == (True, "late")


def test_the_last_run_is_the_one_that_was_started_or_resumed_last(tmp_path):
    older, newer, damaged = (make_run(tmp_path, f"a-2026010{day}-000000-aaaa") for day in (1, 2, 3))
    older.update_record(created=1.0, submitted=9.0)  # a resume
    newer.update_record(created=5.0, submitted=6.0)
    damaged.run_json.write_text("{")
    assert find.find_run("last", tmp_path).run_id == older.run_id
    newer.update_record(submitted=None)  # on its way
    assert find.find_run("last", tmp_path).run_id == newer.run_id


def test_an_ambiguous_name_and_a_run_that_was_never_started_say_what_to_do(tmp_path):
    for number in (1, 2):
        make_run(tmp_path, f"demo-2026010{number}-000000-aaaa")
    with pytest.raises(RunNotFound, match="2 runs") as caught:
        find.find_run("demo", tmp_path)
    assert "more of the name" in str(caught.value.hint)
    rendered = RunDir(tmp_path / "a b-20260101-000000-aaaa")
    rendered.write({"plan.json": '{"backend": "slurm"}'})
    with pytest.raises(RunNotFound, match="--dry-run") as caught:
        _ = rendered.record
    assert caught.value.hint == f"start it: zlaunch slurm '{rendered.path}/job.yaml'"


def test_the_training_program_calls_the_files_of_a_run_by_the_same_names(tmp_path):
    ours, theirs = RunDir(tmp_path / "run"), training.RunDir(tmp_path / "run")
    shared = {"metrics", "events", "checkpoints", "adapter", "ds_config", "evaluations"}
    assert {name: getattr(theirs, name) for name in shared} == {name: getattr(ours, name) for name in shared}
    assert theirs.result == ours.result_json
    assert theirs.predictions == ours.path / run_files.PREDICTIONS
    assert theirs.error(3) == ours.path / run_files.rank_error(3)
    assert MARKER == run_files.COMPLETE
    assert [theirs.control(request) for request in training.REQUESTS] == [
        ours.control_dir / request for request in (run_files.CHECKPOINT, run_files.STOP)
    ]
    (theirs.checkpoints / "step-12").mkdir(parents=True)
    (theirs.checkpoints / "step-12" / MARKER).touch()
    assert ours.checkpoint_steps() == [12]


def test_what_the_launcher_and_the_agent_render_and_read_has_one_list_of_names(tmp_path):
    run, agent = RunDir(tmp_path), Names(tmp_path, 1)
    assert agent.plan == str(run.plan_json)
    assert agent.record == str(run.node_record(1))
    assert agent.rank_log(7) == str(run.rank_log(1, 7))
    assert agent.rank_error(7) == str(run.path / "errors" / "rank-7.json")
    assert batch_job.LOG == run_files.SLURM_LOG


@pytest.mark.parametrize("content", ["{torn", "[1]", "7"])
def test_a_file_that_is_no_json_object_is_named(tmp_path, content):
    run = make_run(tmp_path, "demo-20260101-000000-aaaa")
    run.result_json.write_text(content)
    with pytest.raises(RunNotFound, match=r"cannot read .*result\.json"):
        run.read_json(run.result_json)
