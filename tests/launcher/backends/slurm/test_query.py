"""One question to Slurm for all runs and watchers, and what happens when it does not answer."""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from launcher.backends import backend_of, current_state
from launcher.backends.slurm.job_state import failure_record, merge_states, own_state, waiting_reason
from launcher.backends.slurm.jobs import SlurmBackend
from launcher.backends.slurm.query import JobWatch, Snapshot, cache_folder, explain_sbatch, job_of_sbatch, live_jobs
from launcher.backends.slurm.states import JobInfo, parse_time
from launcher.errors import TargetError
from launcher.machine.process import Result
from launcher.node import run_files
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState


class FakeShell:
    """Answers for each of Slurm's tools with a text, or refuses; records the questions."""

    name = "fake"

    def __init__(self, answers: Mapping[str, str | None]) -> None:
        self.answers = dict(answers)
        self.asked: list[list[str]] = []

    def run(self, argv: Sequence[str], *, cwd: str | None = None, hide: Sequence[str] = ()) -> Result:
        self.asked.append(list(argv))
        if "--version" in argv:
            return Result(tuple(argv), 0, self.answers.get("version") or "slurm-wlm 22.05.8", "", 0.0)
        text = self.answers.get(argv[0])
        if text is None:
            return Result(tuple(argv), 1, "", f"{argv[0]}: error: no answer", 0.0)
        return Result(tuple(argv), 0, text, "", 0.0)

    def path_there(self, path: Path) -> str:
        return str(path)

    def send(self, paths: Sequence[Path]) -> None: ...

    def link_inputs(self, run: RunDir, inputs: Mapping[str, str]) -> None: ...

    def fetch(self, run: RunDir, names: Sequence[str] = ()) -> list[str] | None: ...

    def write_secrets(self, path: Path, values: Mapping[str, str]) -> None: ...

    def remove(self, path: Path) -> None: ...

    def write(self, path: Path, text: str) -> None: ...

    def questions(self) -> list[str]:
        return [argv[0] for argv in self.asked if "--version" not in argv]


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


RUNNING = "1|RUNNING|2026-11-23T23:48:32|node1|None\n"


def test_all_runs_are_answered_by_one_question_in_ten_seconds(tmp_path: Path) -> None:
    shell, clock = FakeShell({"squeue": RUNNING + "2|PENDING|N/A||Resources\n"}), Clock()
    first, second = (JobWatch(shell, folder=tmp_path, clock=clock) for _ in range(2))  # two watchers of one machine
    start = parse_time("2026-11-23T23:48:32")
    assert first.snapshot("1", lambda: ["1", "2"]).job == JobInfo("1", "RUNNING", "", start, "node1")
    waiting = second.snapshot("2").job
    assert waiting is not None
    assert waiting.reason == "Resources"
    clock.now += 9.9
    second.snapshot("1")
    assert shell.questions() == ["squeue"]
    clock.now += 0.2
    first.snapshot("1")
    assert shell.questions() == ["squeue", "squeue"]


def test_watchers_that_come_at_once_ask_once(tmp_path: Path) -> None:
    shell, clock = FakeShell({"squeue": RUNNING}), Clock()
    watches = [JobWatch(shell, folder=tmp_path, clock=clock) for _ in range(8)]
    watchers = [threading.Thread(target=watch.snapshot, args=("1",)) for watch in watches]
    for watcher in watchers:
        watcher.start()
    for watcher in watchers:
        watcher.join()
    assert shell.questions() == ["squeue"]


def test_accounting_is_queried_once_for_all_jobs_that_squeue_lacks(tmp_path: Path) -> None:
    shell = FakeShell({"squeue": RUNNING, "sacct": "3|COMPLETED|Unknown|node1|0:0|\n4|TIMEOUT|Unknown|node1|0:0|\n"})
    watch = JobWatch(shell, folder=tmp_path, clock=Clock())
    assert watch.snapshot("3", lambda: ["1", "3", "4", "5"]).job == JobInfo("3", "COMPLETED", "", None, "node1", 0)
    gone = watch.snapshot("5")
    assert (gone.job, gone.searched) == (None, True)
    assert watch.snapshot("6").searched is False
    assert shell.questions() == ["squeue", "sacct"]


def test_a_cluster_without_accounting_is_not_asked_for_it_again_within_an_hour(tmp_path: Path) -> None:
    shell, clock = FakeShell({"squeue": RUNNING, "sacct": None}), Clock()
    watch = JobWatch(shell, folder=tmp_path, clock=clock)
    for _ in range(5):
        watch.snapshot("9")
        clock.now += 20
    assert shell.questions().count("sacct") == 1
    clock.now += 3600
    watch.snapshot("9")
    assert shell.questions().count("sacct") == 2


def test_a_newer_slurm_is_queried_with_json(tmp_path: Path) -> None:
    jobs = {"jobs": [{"job_id": 1, "job_state": ["RUNNING"], "state_reason": "None", "nodes": "n1"}]}
    shell = FakeShell({"version": "slurm 23.11.4", "squeue": json.dumps(jobs)})
    job = JobWatch(shell, folder=tmp_path, clock=Clock()).snapshot("1").job
    assert job is not None
    assert job.state is RunState.RUNNING
    assert "--json" in shell.asked[-1]


def test_a_job_that_has_ended_stays_known_after_slurm_forgets_it(tmp_path: Path) -> None:
    shell, clock = FakeShell({"squeue": "1|TIMEOUT|N/A||TimeLimit\n"}), Clock()
    watch = JobWatch(shell, folder=tmp_path, clock=clock)
    watch.snapshot("1")
    shell.answers["squeue"] = ""
    clock.now += 60
    kept = watch.snapshot("1").job
    assert kept is not None
    assert kept.native == "TIMEOUT"


def test_a_controller_that_is_down_is_not_asked_more_often_and_its_last_answer_counts(tmp_path: Path) -> None:
    shell, clock = FakeShell({"squeue": RUNNING}), Clock()
    watch = JobWatch(shell, folder=tmp_path, clock=clock)
    watch.snapshot("1")
    shell.answers["squeue"] = None
    clock.now += 11
    down = watch.snapshot("1")
    assert down.error == "squeue: squeue: error: no answer"
    assert down.job is not None
    watch.snapshot("1")
    assert shell.questions() == ["squeue", "squeue"]
    assert waiting_reason(down) == "Slurm does not answer: squeue: squeue: error: no answer"


FEDERATION = (
    "Federation: both\nSelf:       here:10.0.0.1:6817 ID:1 FedState:ACTIVE Features:\n"
    "Sibling:    there:10.0.0.2:6817 ID:2 FedState:ACTIVE Features: PersistConnSend/Recv:Yes/Yes Synced:Yes\n"
)
FEDERATED = str((1 << 26) + 7)


class FederationShell(FakeShell):
    """A cluster whose sibling has started job 7 of the federation; `there`: what squeue prints of the sibling."""

    there = f"CLUSTER: there\n{FEDERATED}|RUNNING|N/A|far1|None\nCLUSTER: here\n{FEDERATED}|REVOKED|N/A||None\n"

    def run(self, argv: Sequence[str], *, cwd: str | None = None, hide: Sequence[str] = ()) -> Result:
        done = super().run(argv, cwd=cwd, hide=hide)
        return Result(done.argv, 0, self.there, "", 0.0) if "--clusters=here,there" in argv else done


@pytest.mark.parametrize("version", ["slurm-wlm 22.05.8", "slurm 23.11.4"])
def test_a_job_that_another_cluster_of_the_federation_started_is_what_that_cluster_says(
    tmp_path: Path, version: str
) -> None:
    jobs = {"jobs": [{"job_id": int(FEDERATED), "job_state": ["REVOKED"]}, {"job_id": 1, "job_state": ["RUNNING"]}]}
    text = f"{RUNNING}{FEDERATED}|REVOKED|N/A||None\n"
    answers = {"squeue": json.dumps(jobs) if "23" in version else text, "scontrol": FEDERATION, "version": version}
    shell, clock = FederationShell(answers), Clock()
    watch = JobWatch(shell, folder=tmp_path, clock=clock)
    started = watch.snapshot(FEDERATED, lambda: ["1"]).job
    assert started == JobInfo(FEDERATED, "RUNNING", "", None, "far1")
    clock.now += 20
    shell.there = f"{FEDERATED}|REVOKED|N/A||None\n"  # that cluster has forgotten it: now accounting is asked
    shell.answers["sacct"] = f"{FEDERATED}|COMPLETED|Unknown|far1|0:0|\n" if "22" in version else '{"jobs": []}'
    ended = watch.snapshot(FEDERATED).job
    assert ended == (JobInfo(FEDERATED, "COMPLETED", "", None, "far1", 0) if "22" in version else None)
    assert shell.asked[-1][:5] == ["sacct", "--allocations", "--federation", "--jobs", FEDERATED]


def test_a_revoked_job_is_alive_while_another_cluster_has_it(tmp_path: Path) -> None:
    shell = FederationShell({"squeue": f"1|RUNNING|a\n{FEDERATED}|REVOKED|b\n", "scontrol": FEDERATION})
    shell.there = f"{FEDERATED}|RUNNING|b\n1|RUNNING|a\n{FEDERATED}|REVOKED|b\n"
    assert live_jobs(shell) == [("1", "a"), (FEDERATED, "b")]
    shell.there = f"1|RUNNING|a\n{FEDERATED}|REVOKED|b\n"
    assert live_jobs(shell) == [("1", "a")]
    shell.answers["scontrol"] = None
    with pytest.raises(TargetError, match="no answer"):
        live_jobs(shell)


def test_a_damaged_cache_leads_to_a_new_query(tmp_path: Path) -> None:
    shell = FakeShell({"squeue": RUNNING})
    watch = JobWatch(shell, folder=tmp_path, clock=Clock())
    watch.file.write_text("{torn")
    assert watch.snapshot("1").job is not None


# -------------------------------------------------------------------------------------- three sources of the state


def snapshot_of(native: str | None, *, at: float = 100.0, error: str | None = None, searched: bool = True) -> Snapshot:
    return Snapshot(at, JobInfo("1", native) if native else None, searched, error)


@pytest.mark.parametrize(
    ("own", "since", "slurm", "heartbeat", "state"),
    [
        ("RUNNING", 50.0, snapshot_of("RUNNING"), "RUNNING", "RUNNING"),
        ("RUNNING", 50.0, snapshot_of("PENDING"), "RUNNING", "PENDING"),  # Slurm queued it again after a node failure
        ("RUNNING", 50.0, snapshot_of("NODE_FAIL"), "RUNNING", "FAILED"),
        ("PENDING", 150.0, snapshot_of("RUNNING"), "RUNNING", "PENDING"),  # the script has just had it queued again
        ("RUNNING", 150.0, snapshot_of("PENDING"), "RUNNING", "RUNNING"),  # it started after we asked
        ("RUNNING", 50.0, snapshot_of("PENDING", error="down"), "RUNNING", "RUNNING"),
        ("PENDING", 50.0, snapshot_of(None, searched=False), "PENDING", "PENDING"),
        ("PENDING", 50.0, snapshot_of(None, at=80.0), "PENDING", "PENDING"),  # submitted moments ago
        ("RUNNING", 50.0, snapshot_of(None, at=500.0), "RUNNING", "RUNNING"),  # forgotten, and its agents beat
        ("RUNNING", 50.0, snapshot_of(None, at=500.0), "LOST", "LOST"),
        ("PENDING", 50.0, snapshot_of("CANCELLED"), "PENDING", "CANCELLED"),
    ],
)
def test_the_newest_statement_wins(own: str, since: float, slurm: Snapshot, heartbeat: str, state: str) -> None:
    assert merge_states(RunState(own), since, slurm, by_records=RunState(heartbeat)).value == state


def a_run(tmp_path: Path, *events: dict[str, object]) -> RunDir:
    run = RunDir(tmp_path / "zh-20261101-120000-abcd")
    run.path.mkdir()
    run.save_record(RunRecord(run_id=run.run_id, name="zh", backend="slurm", ids=("1",), created=1.0))
    for event in events:
        run.event(**event)  # type: ignore[arg-type]
    return run


@pytest.mark.parametrize(
    ("names", "state"),
    [
        ((), "PENDING"),
        (("slurm_submit",), "PENDING"),
        (("slurm_submit", "slurm_start"), "RUNNING"),
        (("slurm_submit", "slurm_start", "slurm_requeue"), "PENDING"),
        (("slurm_submit", "slurm_start", "slurm_requeue", "slurm_start", "slurm_end"), "FAILED"),
        (("slurm_submit", "slurm_start", "slurm_end", "slurm_submit"), "PENDING"),
    ],
)
def test_the_batch_scripts_last_event_is_the_runs_own_state(tmp_path: Path, names: tuple[str, ...], state: str) -> None:
    run = a_run(tmp_path, *({"name": name} for name in names))
    assert own_state(run)[0].value == state


def test_a_failure_that_no_agent_could_record_is_recorded_from_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = a_run(tmp_path, {"name": "slurm_submit"}, {"name": "slurm_start"})
    (run.path / "slurm.log").write_text("slurmstepd: error: *** JOB 1 CANCELLED DUE TO TIME LIMIT ***\n")
    events = run.events.read_text().replace('"time":1', '"time":0')  # long ago
    run.events.write_text(events)
    backend = SlurmBackend(FakeShell({"squeue": "1|TIMEOUT|N/A|node1|TimeLimit\n"}))
    assert backend.state(run) is RunState.FAILED
    recorded = json.loads((run.path / "errors" / "slurm.json").read_text())
    assert recorded["cause"] == "timeout"
    assert "time limit" in recorded["message"]
    assert "signal_before" in recorded["advice"][0]
    assert recorded["log_tail"] == ["slurmstepd: error: *** JOB 1 CANCELLED DUE TO TIME LIMIT ***"]


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
            "resume RUN",
        ),
        ("sbatch: error: invalid partition specified: gpx", "sinfo"),
        ("allocation failure: Requested node configuration is not available", "sinfo -N"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination", "--account"),
    ],
)
def test_a_refusal_of_sbatch_comes_with_advice(message: str, hint: str) -> None:
    error = explain_sbatch(Result(("sbatch",), 1, "", message + "\n", 0.0))
    assert isinstance(error, TargetError)
    assert error.hint is not None
    assert hint in error.hint
    assert message.removeprefix("sbatch: error: ") in str(error)


class RecordingShell(FakeShell):
    """A login host: files are fetched and removed there."""

    name = "login:there"

    def __init__(self, answers: Mapping[str, str | None]) -> None:
        super().__init__(answers)
        self.removed: list[Path] = []
        self.fetched = 0

    def remove(self, path: Path) -> None:
        self.removed.append(path)

    def fetch(self, run: RunDir, names: Sequence[str] = ()) -> list[str] | None:
        self.fetched += 1
        return []


@pytest.mark.parametrize("secrets", [True, False])
def test_secrets_of_a_job_that_slurm_ended_do_not_stay_on_the_login_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secrets: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = a_run(tmp_path)
    run.write({"plan.json": json.dumps({"slurm": {"secrets": secrets}})})
    shell = RecordingShell({"squeue": "1|CANCELLED|N/A|node1|None\n"})
    assert SlurmBackend(shell).state(run) is RunState.CANCELLED
    assert shell.removed == ([tmp_path / ".secrets" / f"{run.run_id}.json"] if secrets else [])


def test_one_command_fetches_a_runs_files_no_more_often_than_it_asks_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shell, run = RecordingShell({"squeue": RUNNING}), a_run(tmp_path)
    monkeypatch.setattr("launcher.backends.slurm.jobs.shell_of", lambda slurm: shell)
    backend_of.cache_clear()
    for _ in range(5):
        assert current_state.current(run) is RunState.RUNNING
    backend_of.cache_clear()
    assert (shell.questions(), shell.fetched) == (["squeue"], 1)


def test_a_job_without_a_known_id_is_looked_for_once_in_ten_seconds_and_again_for_a_cancel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = a_run(tmp_path)
    run.update_record(ids=())
    shell = RecordingShell({"squeue": ""})
    backend = SlurmBackend(shell)
    for _ in range(5):
        backend.state(run)
    by_name = ["squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i|%T|%j"]
    assert shell.asked.count(by_name) == 1
    backend.cancel(run, checkpoint=False)
    assert shell.asked.count(by_name) == 2


def test_an_interrupted_submission_has_no_job_to_cancel_but_must_not_start(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.update_record(ids=())
    written: list[Path] = []
    shell = RecordingShell({})
    shell.write = lambda path, text: written.append(path)  # type: ignore[method-assign]
    SlurmBackend(shell).cancel(run, checkpoint=False)
    assert written == [run.control_dir / "cancelled"]
    assert [words[0] for words in shell.asked] == ["squeue"]  # for a job of the run's name


def test_a_job_that_slurm_gave_no_gpus_says_so(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    error = "srun: error: Unable to create step for job 5: Invalid generic resource (gres) specification"
    (run.path / run_files.SLURM_LOG).write_text(f"job 5, start 0\n{error}\nnot queued again: no verdict\n")
    failure = failure_record(run, None)
    assert failure["message"] == "Slurm gave the job no GPUs, so its agents could not start"
    assert "SelectType" in failure["advice"][0]
    assert error in failure["log_tail"]
    (run.path / run_files.SLURM_LOG).write_text("srun: error: Unable to create step for job 5: Job is pending\n")
    assert failure_record(run, None)["advice"] == []


def test_a_squeue_without_json_is_queried_for_text(tmp_path: Path) -> None:
    class Wrapped(FakeShell):
        def run(self, argv: Sequence[str], *, cwd: str | None = None, hide: Sequence[str] = ()) -> Result:
            done = super().run(argv, cwd=cwd, hide=hide)
            return Result(done.argv, 0, "Welcome!\n{}", "", 0.0) if "--json" in argv else done

    shell, clock = Wrapped({"version": "slurm 23.11.4", "squeue": RUNNING}), Clock()
    watch = JobWatch(shell, folder=tmp_path, clock=clock)
    for _ in range(2):
        job = watch.snapshot("1").job
        assert job is not None
        assert job.state is RunState.RUNNING
        clock.now += 20
    assert [argv[-1] == "--json" for argv in shell.asked[1:]] == [True, False, False]  # it is not asked for again


def test_a_cache_directory_that_someone_else_laid_out_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "theirs").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = tmp_path / f"zlaunch-{os.getuid()}"
    assert cache_folder() == place
    place.rmdir()
    place.symlink_to(tmp_path / "theirs")
    with pytest.raises(TargetError, match="is not yours"):
        cache_folder()


@pytest.mark.parametrize(
    ("printed", "job"),
    [
        ("123\n", "123"),
        ("123;north\n", "123;north"),
        ("quota ok\n 45 \n--> charged: 4.0 GPU hours\n", "45"),
        ("2026\n77\n\n", "77"),
        ("Submitted batch job 9\n", ""),
        ("12 jobs left\n", ""),
        ("", ""),
    ],
)
def test_the_job_id_is_a_line_of_its_own(printed: str, job: str) -> None:
    assert job_of_sbatch(printed) == job
