"""Launching on a real Slurm cluster of four nodes, with programs that need no torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from launcher.backends.slurm.query import JobWatch
from launcher.backends.slurm.shell import LocalShell
from launcher.rundir import logs, state
from launcher.rundir.directory import RunDir, RunRecord
from tests.slurm.conftest import Zl, events, reasons, wait

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

TELL = 'echo "rank=$RANK/$WORLD_SIZE local=$LOCAL_RANK/$LOCAL_WORLD_SIZE node=$NODE_RANK at=$MASTER_ADDR:$MASTER_PORT"'
UNTIL_SECOND_START = 'if [ -e "$ZLAUNCH_RUN_DIR/seen-$RANK" ]; then echo again; exit 0; fi; touch "$ZLAUNCH_RUN_DIR/seen-$RANK"; echo first; sleep 60'  # noqa: E501 - one program


def all_idle(zl: Zl) -> bool:
    return zl.cluster.run(["sinfo", "-h", "-p", "gpu", "-t", "idle", "-o", "%D"], check=False).stdout == "4\n"


def test_four_nodes_run_to_the_end_with_the_same_ranks_as_on_other_backends(zl: Zl) -> None:
    output = zl("slurm", "--device", "cpu", "--nodes", "4", "--procs-per-node", "2", "--wait", "--json",
                "--", "bash", "-c", TELL)  # fmt: skip
    result = json.loads(output.splitlines()[-1])
    assert (result["state"], result["world_size"]) == ("SUCCEEDED", 8)
    run = RunDir(Path(result["directory"]))
    lines = {block.rank: block.lines[-1] for block in logs.follow_logs(run) if block.rank is not None}
    address = lines[0].rpartition("at=")[2]
    assert lines == {r: f"rank={r}/8 local={r % 2}/2 node={r // 2} at={address}" for r in range(8)}
    port = int(address.rpartition(":")[2])
    assert 10_000 <= port < 32_768
    assert run.hostfile.read_text().splitlines()[1:] == [f"{node} slots=2" for node in zl.cluster.nodes]
    wait(lambda: events(run, "slurm_end"))  # the batch script writes it after the agents' last records
    assert [event["event"] for event in run.read_events() if event["event"].startswith("slurm_")] == [
        "slurm_submit", "slurm_start", "slurm_end",
    ]  # fmt: skip
    assert "SUCCEEDED (slurm" in zl("status", run.run_id)
    assert "rank=3/8" in zl("logs", run.run_id, "--rank", "3")


def test_secrets_reach_the_ranks_and_no_file_and_are_gone_at_the_end(zl: Zl) -> None:
    zl.environ["TOKEN_OF_THE_TEST"] = "never-to-be-written"
    run = zl.submit("sleep 2; test ${#TOKEN_OF_THE_TEST} = 19", "--nodes", "2", "--set", "secrets=[TOKEN_OF_THE_TEST]")
    secret = zl.runs / ".secrets" / f"{run.run_id}.json"
    assert (secret.stat().st_mode & 0o777, secret.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    wait(lambda: zl.state(run) == "SUCCEEDED")
    assert not secret.exists()
    for top in (zl.runs, zl.cluster.root / "state", zl.cluster.root / "log"):
        found = subprocess.run(["grep", "-rl", "never-to-be-written", top], capture_output=True, text=True, check=False)
        assert found.stdout == ""


def test_a_waiting_job_says_why_and_is_cancelled_at_once(zl: Zl) -> None:
    run = zl.submit("echo never", "--sbatch", "begin=now+1hour")
    watching = zl.start("logs", "-f", run.run_id)
    assert zl.state(run) == "PENDING"
    started = time.monotonic()
    assert "CANCELLED" in zl("cancel", run.run_id)
    assert time.monotonic() - started < 10
    assert zl.squeue(run) == ""
    assert "already CANCELLED" in zl("cancel", run.run_id)
    assert "never" not in watching.communicate(timeout=30)[0]
    assert not run.nodes_dir.exists() or not any(run.nodes_dir.iterdir())


def test_cancelling_a_running_job_leaves_no_process_and_requeues_nothing(zl: Zl) -> None:
    run = zl.submit("sleep 300 & sleep 300", "--nodes", "4")
    wait(lambda: len(events(run, "ranks_started")) == 4)
    assert len(zl.leftovers(run)) >= 8
    assert "CANCELLED" in zl("cancel", run.run_id)
    assert zl.leftovers(run) == []
    assert zl.squeue(run) == ""
    assert events(run, "slurm_requeue") == []


def test_a_killed_rank_fails_the_run_on_all_nodes_with_its_cause(zl: Zl) -> None:
    run = zl.submit("sleep 300", "--nodes", "4")
    wait(lambda: len(events(run, "ranks_started")) == 4)
    record = wait(lambda: (state.node_records(run).get(2) or {}).get("ranks"))
    os.kill(record[0]["pid"], signal.SIGKILL)
    wait(lambda: events(run, "slurm_end"))
    assert zl.state(run) == "FAILED"
    failure = state.first_failure(run)
    assert failure is not None
    assert (failure["rank"], failure["cause"]) == (2, "killed")
    assert reasons(run, "slurm_end") == ["failed: killed"]
    wait(lambda: zl.squeue(run) == "")
    assert zl.leftovers(run) == []


def test_configuration_errors_and_lack_of_memory_are_not_requeued(zl: Zl) -> None:
    programs = {
        "bad_configuration": "sleep 1; exit 2",
        "out_of_memory": "echo 'torch.OutOfMemoryError: CUDA out of memory.' >&2; exit 1",
    }
    runs = {cause: zl.submit(program, "--max-requeues", "5") for cause, program in programs.items()}
    for cause, run in runs.items():
        wait(lambda run=run: events(run, "slurm_end"))
        assert reasons(run, "slurm_end") == [f"failed: {cause}"]
        assert zl.state(run) == "FAILED"
        assert zl.squeue(run) == ""


def test_setup_lines_prepare_the_ranks_and_may_read_unset_variables_as_conda_does(zl: Zl) -> None:
    lines = '["test -z \\"$NEVER_SET\\"", "export FROM_SETUP=yes"]'
    run = zl.submit("test $FROM_SETUP = yes", "--set", f"slurm.setup={lines}")
    wait(lambda: zl.state(run) in ("SUCCEEDED", "FAILED"))
    assert zl.state(run) == "SUCCEEDED"


def test_a_setup_that_fails_fails_the_job_and_shows_the_end_of_its_log(zl: Zl) -> None:
    run = zl.submit("true", "--set", 'slurm.setup=["module load no-such-module"]')
    wait(lambda: zl.state(run) == "FAILED")
    status = zl("status", run.run_id)
    assert "the agents left no verdict" in status
    assert "module" in status


def test_a_preempted_run_is_requeued_and_continues_in_the_same_logs(zl: Zl) -> None:
    run = zl.submit(UNTIL_SECOND_START, "--nodes", "4")
    wait(lambda: len(events(run, "ranks_started")) == 4)
    zl.cluster.run(["scancel", "--signal=USR2", "--batch", run.record.ids[0]])  # what Slurm itself sends
    wait(lambda: events(run, "slurm_requeue"))
    assert reasons(run, "slurm_requeue") == ["stopped without a new checkpoint on SIGUSR2"]
    assert zl.state(run) in ("PENDING", "RUNNING")  # before its second start, which is over in a moment
    zl.hurry(run)
    wait(lambda: events(run, "slurm_end"))
    assert zl.state(run) == "SUCCEEDED"
    assert [event["start"] for event in events(run, "slurm_start")] == [0, 1]
    assert (run.logs_dir / "node-3" / "rank-3.log").read_text() == "first\nagain\n"
    assert "start 0" in (log := (run.path / "slurm.log").read_text())
    assert "start 1" in log


def test_a_job_that_may_not_be_requeued_ends_and_says_so(zl: Zl) -> None:
    run = zl.submit(UNTIL_SECOND_START, "--max-requeues", "0")
    wait(lambda: events(run, "ranks_started"))
    zl.cluster.run(["scancel", "--signal=USR2", "--batch", run.record.ids[0]])
    wait(lambda: events(run, "slurm_end"))
    assert "all 0 requeues are used" in reasons(run, "slurm_end")[0]
    assert zl.state(run) == "CANCELLED"
    wait(lambda: zl.squeue(run) == "")
    output = zl("resume", run.run_id)  # by hand it continues
    assert run.run_id in output
    wait(lambda: zl.state(run) == "SUCCEEDED")


def test_a_user_who_cancels_in_slurm_itself_is_obeyed(zl: Zl) -> None:
    run = zl.submit("trap '' TERM; sleep 300", "--nodes", "2")
    wait(lambda: len(events(run, "ranks_started")) == 2)
    zl.cluster.run(["scancel", run.record.ids[0]])
    wait(lambda: zl.squeue(run) == "", 40)
    assert events(run, "slurm_requeue") == []
    wait(lambda: zl.state(run) in ("CANCELLED", "FAILED"), 40)
    assert zl.leftovers(run) == []


def test_the_time_limit_chains_a_run_until_it_is_done(zl: Zl) -> None:
    """Slurm sends the signal up to a minute early: with 50 s of 60 it comes after about 15 s."""
    run = zl.submit(UNTIL_SECOND_START, "--time", "1", "--signal-before", "50")
    wait(lambda: events(run, "slurm_requeue"), 60)
    zl.hurry(run)
    wait(lambda: events(run, "slurm_end"))
    assert zl.state(run) == "SUCCEEDED"
    assert [event["reason"] for event in events(run, "signal") if "start" in event] == ["USR2"]


def test_a_run_whose_node_goes_down_is_requeued_and_finishes(zl: Zl) -> None:
    zl.environ["TOKEN_OF_THE_TEST"] = "never-to-be-written"
    run = zl.submit(UNTIL_SECOND_START, "--nodes", "2", "--set", "secrets=[TOKEN_OF_THE_TEST]")
    wait(lambda: len(events(run, "ranks_started")) == 2)
    node = (run.path / "hostfile").read_text().split()[-2]  # not the one with the batch script
    zl.cluster.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"])
    # The script's own event may be missing: Slurm kills it a few seconds later. srun then often returns 0.
    wait(lambda: zl.squeue(run) == "PENDING")
    assert all("Slurm has queued the job again itself" in reason for reason in reasons(run, "slurm_requeue"))
    assert events(run, "slurm_end") == [], (run.path / "slurm.log").read_text()
    time.sleep(3)  # this node is not really down: its slurmd refuses a second start until the first is cleared away
    zl.hurry(run)
    wait(lambda: len(events(run, "slurm_start")) == 2)
    wait(lambda: events(run, "slurm_end"))
    assert zl.state(run) == "SUCCEEDED", (run.path / "slurm.log").read_text()
    assert [event["start"] for event in events(run, "slurm_start")] == [0, 1]
    zl.cluster.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)  # unless it is up again
    wait(lambda: all_idle(zl))


def test_a_signal_of_slurm_while_the_script_asks_about_the_job_does_not_end_the_run(zl: Zl) -> None:
    """Slurm kills the processes of a job whose node failed, and with them the script's calls of scontrol."""
    tools = zl.home / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(
        f'#!/bin/bash\n[ "$1 $2" != "show job" ] || kill -TERM $$\nexec {shutil.which("scontrol")} "$@"\n'
    )
    (tools / "scontrol").chmod(0o755)
    zl.environ["PATH"] = f"{tools}:{zl.environ['PATH']}"
    run = zl.submit(UNTIL_SECOND_START)
    wait(lambda: events(run, "ranks_started"))
    zl.cluster.run(["scancel", "--signal=USR2", "--batch", run.record.ids[0]])
    wait(lambda: events(run, "slurm_requeue", "slurm_end"))
    assert reasons(run, "slurm_end") == []
    zl.hurry(run)
    wait(lambda: events(run, "slurm_end"))
    assert zl.state(run) == "SUCCEEDED"


def test_a_sweep_is_one_array_and_resume_starts_only_failed_points(zl: Zl) -> None:
    again = zl.home / "let-it-pass"
    program = f'case "$POINT" in two) [ -e {again} ] || exit 3;; esac; echo "$POINT"'
    output = zl("slurm", "--device", "cpu", "--json", "--array-limit", "2", "--sweep", "env.POINT=one,two,three",
                "--", "bash", "-c", program)  # fmt: skip
    answer = json.loads(output.splitlines()[-1])
    runs = [RunDir(zl.runs / name) for name in answer["runs"]]
    assert [run.record.ids[0] for run in runs] == [f"{answer['job']}_{index}" for index in range(3)]
    wait(lambda: all(events(run, "slurm_end") for run in runs))
    assert zl("report", answer["sweep"]).splitlines()[0].split()[:3] == ["run", "env.POINT", "state"]
    rows = [json.loads(line) for line in zl("report", answer["sweep"], "--json").splitlines()]
    assert [(row["env.POINT"], row["state"]) for row in rows] == [
        ("one", "SUCCEEDED"), ("two", "FAILED"), ("three", "SUCCEEDED"),
    ]  # fmt: skip
    wait(lambda: zl.squeue(runs[1]) == "")
    again.touch()
    second = json.loads(zl("resume", answer["sweep"], "--json").splitlines()[-1])
    assert second["runs"] == [runs[1].run_id]
    wait(lambda: zl.state(runs[1]) == "SUCCEEDED")
    assert [len(events(run, "slurm_start")) for run in runs] == [1, 2, 1]


@pytest.mark.parametrize(("stopped", "now"), [("warden", True), ("both", False)])
def test_cancel_lets_stopped_agents_and_wardens_go_on_and_end_the_job(zl: Zl, stopped: str, now: bool) -> None:
    run = zl.submit('until [ -e "$ZLAUNCH_RUN_DIR/control/stop" ]; do sleep 0.1; done; exit 75')
    wait(lambda: events(run, "ranks_started"))
    record = json.loads(run.node_record(0).read_text())
    for process in [record["warden"], *([record] if stopped == "both" else [])]:
        os.kill(process["pid"], signal.SIGSTOP)
    began = time.monotonic()
    assert zl("cancel", run.run_id, *(["--now"] if now else [])) == f"{run.run_id}: CANCELLED\n"
    assert time.monotonic() - began < 60  # a stop_deadline and Slurm's KillWait are longer together
    assert zl.squeue(run) == ""
    assert zl.leftovers(run) == []


def test_a_cancelled_sweep_leaves_nothing_running_or_queued_and_can_be_resumed(zl: Zl) -> None:
    tools, calls = zl.home / "tools", zl.home / "calls"
    tools.mkdir()
    (tools / "scancel").write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec {shutil.which("scancel")} "$@"\n')
    (tools / "scancel").chmod(0o755)
    zl.environ["PATH"] = f"{tools}:{zl.environ['PATH']}"
    go = zl.home / "go"
    program = f'until [ -e {go} ]; do sleep 0.2; done; echo "$POINT"'
    output = zl("slurm", "--device", "cpu", "--json", "--array-limit", "2", "--sweep", "env.POINT=one,two,three",
                "--", "bash", "-c", program)  # fmt: skip
    answer = json.loads(output.splitlines()[-1])
    runs = [RunDir(zl.runs / name) for name in answer["runs"]]
    wait(lambda: all(events(run, "ranks_started") for run in runs[:2]))
    assert zl.squeue(runs[2]) == "PENDING"
    runs[0].update_record(state="FAILED")  # the launcher took its own trouble for the job's
    points = json.loads(zl("cancel", answer["sweep"], "--json"))
    assert [(point["was"], point["state"]) for point in points["points"]] == [
        ("RUNNING", "CANCELLED"), ("RUNNING", "CANCELLED"), ("PENDING", "CANCELLED"),
    ]  # fmt: skip
    assert zl.cluster.run(["squeue", "-h"]).stdout == ""
    assert [zl.leftovers(run) for run in runs] == [[], [], []]
    assert [len(events(run, "slurm_start")) for run in runs] == [1, 1, 0]
    assert [len(events(run, "slurm_requeue")) for run in runs] == [0, 0, 0]
    assert calls.read_text().splitlines()[0] == runs[2].record.ids[0]  # before the end of another point starts it
    assert len(calls.read_text().splitlines()) <= 3  # one of them wakes what was stopped
    assert zl("cancel", answer["sweep"]) == "".join(f"{run.run_id}: already CANCELLED\n" for run in runs)
    assert {json.loads(line)["state"] for line in zl("list", "--json").splitlines()} == {"CANCELLED"}
    go.touch()
    second = json.loads(zl("resume", answer["sweep"], "--json").splitlines()[-1])
    assert second["runs"] == answer["runs"]
    wait(lambda: all(zl.state(run) == "SUCCEEDED" for run in runs))
    assert [len(events(run, "slurm_start")) for run in runs] == [2, 2, 1]


def test_a_controller_that_is_down_is_reported_and_loses_nothing(zl: Zl) -> None:
    run = zl.submit('while [ ! -e "$ZLAUNCH_RUN_DIR/go" ]; do sleep 0.1; done')
    wait(lambda: events(run, "ranks_started"))
    zl.cluster.stop_controller()
    try:
        assert zl.state(run) == "RUNNING"  # by the run's own files
        refused = zl("slurm", "--device", "cpu", "--", "true", code=1)
        assert "Slurm does not answer" in refused
        assert "zlaunch resume" in refused
        assert "Traceback" not in refused
    finally:
        zl.cluster.start_controller()
        wait(lambda: zl.cluster.run(["sinfo", "-h", "-t", "idle", "-o", "%D"], check=False).stdout.startswith("3\n"))
    (run.path / "go").touch()
    wait(lambda: zl.state(run) == "SUCCEEDED")
    (kept,) = (path for path in zl.runs.glob("run-*") if path != run.path)
    wait(lambda: all_idle(zl))
    zl("resume", kept.name)
    wait(lambda: zl.state(RunDir(kept)) == "SUCCEEDED", 40)


def test_names_paths_and_values_with_odd_characters_reach_slurm_unchanged(zl: Zl) -> None:
    odd = 'it\'s "odd" $(touch pwned) `id` 中文 #1\\'
    zl.runs = zl.home / "runs of $HOME; 'x' 中文"
    zl.environ["ZLAUNCH_RUNS"] = str(zl.runs)
    run = zl.submit(
        'echo "$VALUE"', "--name", odd, "--sbatch", f"comment={odd}", "--set", f"env.VALUE={json.dumps(odd)}"
    )
    assert f"Comment={odd}" in zl.cluster.run(["scontrol", "show", "job", run.record.ids[0]]).stdout
    wait(lambda: zl.state(run) == "SUCCEEDED")
    assert (run.logs_dir / "node-0" / "rank-0.log").read_text() == odd + "\n"
    assert not list(zl.home.rglob("pwned"))
    refused = zl("slurm", "--device", "cpu", "--partition", odd, "--", "true", code=1)
    assert f"no partition {odd!r}" in refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--partition", "gpx"), "did you mean 'gpu'?"),
        (("--nodes", "9"), "allows at most 4 per job"),
        (("--time", "2:00:00"), "allows 01:00:00"),
        (("--constraint", "nvlink"), "use --constraint"),
    ],
)
def test_a_job_that_the_cluster_cannot_run_is_refused_before_it_is_queued(
    zl: Zl, words: tuple[str, ...], message: str
) -> None:
    refused = zl("slurm", "--device", "cpu", *words, "--", "true", code=1)
    assert message in refused
    assert zl.cluster.run(["squeue", "-h"]).stdout == ""


def test_a_job_whose_nodes_are_drained_is_queued_and_says_what_it_waits_for(zl: Zl) -> None:
    def nodes(state: str) -> None:
        zl.cluster.run(["scontrol", "update", "node=node[2-4]", f"state={state}", "reason=test"])

    nodes("drain")
    try:
        # sbatch --test-only refuses both of these; only the second can never run
        run = zl.submit("true", "--nodes", "2")
        refused = zl("slurm", "--device", "cpu", "--set", "slurm.cpus_per_task=99", "--", "true", code=1)
        doctor = zl("doctor", "slurm", "--device", "cpu", "--nodes", "2", "--wait", "0")
    finally:
        nodes("resume")
    assert "node configuration is not available" in refused
    assert "3 drained" in doctor
    assert "3 drained" in run.events.read_text()
    wait(lambda: zl.state(run) == "SUCCEEDED")


def test_more_gpus_than_a_node_has_are_refused_and_as_many_as_it_has_are_requested(zl: Zl) -> None:
    assert "at most 2" in zl("slurm", "--gpus-per-node", "8", "--", "true", code=1)
    shown = zl("slurm", "--gpus-per-node", "2", "--print-script", "--", "true")
    assert "#SBATCH --gpus-per-node=2\n" in shown


def test_a_printed_script_runs_with_plain_sbatch_in_a_copied_run_directory(zl: Zl) -> None:
    script = zl("slurm", "--device", "cpu", "--nodes", "2", "--print-script", "--", "bash", "-c", TELL)
    (rendered,) = zl.runs.iterdir()
    script, message = script.split(f"rendered {rendered}")  # on standard error
    assert "nothing was submitted" in message
    assert (rendered / "train.sbatch").read_text() == script
    copy = zl.home / "elsewhere" / "copy"
    shutil.copytree(rendered, copy)
    (copy / "train.sbatch").write_text(script)
    subprocess.run(["sbatch", "train.sbatch"], cwd=copy, env=zl.environ, check=True, capture_output=True)
    wait(lambda: "succeeded" in "".join(reasons(RunDir(copy), "slurm_end")))
    assert "rank=1/2" in (copy / "logs/node-1/rank-1.log").read_text()


class Counted(LocalShell):
    """Runs Slurm's tools and counts the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def run(self, argv, **options):  # type: ignore[no-untyped-def]
        if "--version" not in argv:
            self.calls.append(argv[0])
        return super().run(argv, **options)


@pytest.mark.parametrize("cluster", ["zl", "zl_accounting"], ids=["without accounting", "with accounting"])
def test_two_hundred_runs_are_listed_with_at_most_two_calls(request: pytest.FixtureRequest, cluster: str) -> None:
    zl: Zl = request.getfixturevalue(cluster)
    live = zl.submit("sleep 60")
    wait(lambda: events(live, "ranks_started"))
    for number in range(200):
        run = RunDir(zl.runs / f"old-20260101-000000-{number:04x}")
        run.path.mkdir(parents=True)
        run.save_record(
            RunRecord(run_id=run.run_id, name="old", backend="slurm", ids=(str(9000 + number),), created=1.0)
        )
    calls = zl.home / "calls"
    tools = zl.home / "bin"
    tools.mkdir()
    for tool in ("squeue", "sacct", "scontrol", "sinfo"):
        (tools / tool).write_text(
            f'#!/bin/sh\n[ "$1" = --version ] || echo {tool} >> {calls}\nexec {shutil.which(tool)} "$@"\n'
        )
        (tools / tool).chmod(0o755)
    zl.environ["PATH"] = f"{tools}:{zl.environ['PATH']}"
    started = time.monotonic()
    rows = [json.loads(line) for line in zl("list", "--json").splitlines()]
    assert time.monotonic() - started < 8
    assert len(rows) == 201
    assert next(row["state"] for row in rows if row["run"] == live.run_id) == "RUNNING"
    assert {row["state"] for row in rows if row["run"] != live.run_id} == {"LOST"}
    assert calls.read_text().split() == ["squeue", "sacct"]
    zl("list")
    assert len(calls.read_text().split()) == 2
    zl("cancel", "--now", live.run_id)


def test_accounting_knows_a_job_that_squeue_and_the_runs_files_have_forgotten(
    zl_accounting: Zl, monkeypatch: pytest.MonkeyPatch
) -> None:
    zl = zl_accounting
    run = zl.submit("exit 3", "--name", "情感𠮷")  # the database may not know characters of four bytes
    wait(lambda: events(run, "slurm_end"))
    monkeypatch.setenv("SLURM_CONF", zl.environ["SLURM_CONF"])

    class Forgetful(Counted):
        def run(self, argv, **options):  # type: ignore[no-untyped-def]
            return super().run([*argv, "--states=PENDING"] if argv[0] == "squeue" else argv, **options)

    def known() -> str:
        shell = Forgetful()
        watch = JobWatch(shell, folder=zl.home, clock=lambda: time.time() + 100 * len(shell.calls))
        job = watch.snapshot(run.record.ids[0]).job
        (zl.home / "cache-cleared").touch()
        for file in zl.home.glob("slurm-*.json"):
            file.unlink()
        return job.native if job else ""

    # The controller informs the accounting daemon with a delay; until then the daemon reports PENDING or RUNNING.
    wait(lambda: known() == "FAILED", 60)


def test_a_sites_own_template_is_used(zl: Zl) -> None:
    zl("templates", "eject")
    own = zl.home / "train.sbatch.j2"
    own.write_text(own.read_text().replace("set -uo pipefail\n", "set -uo pipefail\ntouch site-was-here\n", 1))
    run = zl.submit("true", "--template", str(own))
    wait(lambda: zl.state(run) == "SUCCEEDED")
    assert (run.path / "site-was-here").exists()
