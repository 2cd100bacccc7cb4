"""faults, resume and slurm: what happens to runs, and whether anything of them stays."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.bench.multi import TOLERANCE
from tests.bench.nodes.runs import RunFailedError, Runner, losses, tail

FURTHER = 6
"""Steps that a continued run makes."""
REQUEUE = 130
"""Seconds that a job may wait in the queue after a requeue."""
ELASTIC = ["--max-restarts", "1", "--set", "elastic=true", "--set", "train.checkpoint_every=3"]


def faults(runner: Runner) -> None:
    _killed_rank(runner)
    if runner.hosts.lab is None:
        runner.table.add("faults", "a host dies", note="not run: only simulated hosts are switched off")
    else:
        process, run = runner.training([*runner.hosts.words(), *runner.long_job(), *ELASTIC], steps=6)
        _host_dies(runner, "faults", "a host dies, elastic: true", run)
        process.send_signal(signal.SIGINT)
        runner.ended(process, 60)


def _killed_rank(runner: Runner) -> None:
    process, run = runner.training([*runner.hosts.words(), *runner.long_job()])
    host = runner.hosts.names[-1]
    lines = runner.hosts.processes(f"ZLAUNCH_RUN_ID={run.name}")[host]
    rank = max(int(line.split()[0]) for line in lines if "-m train" in line)
    started = time.monotonic()
    runner.hosts.run(host, ["kill", "-9", str(rank)])
    code = runner.ended(process, 60)
    seconds = time.monotonic() - started
    left = runner.left(run.name)
    note = f"exit status {code}; left: {left or 'nothing'}"
    runner.table.add("faults", f"kill -9 of a rank on {host}", ok=code == 1 and not left, seconds=seconds, note=note)


def elastic(runner: Runner) -> None:
    """The first host dies, and the run goes on from the copy of the checkpoint on another; then the host joins again.
    The losses are those of a run that nobody disturbed."""
    hosts = runner.hosts
    if hosts.lab is None:
        runner.table.add("elastic", "all", note="not run: only simulated hosts are switched off")
        return
    process, run = runner.training([*hosts.words(), *runner.long_job(), *ELASTIC], steps=8)
    _host_dies(runner, "elastic", "the first host dies", run, hosts.names[0])
    started = time.monotonic()
    again, log = runner.start(["resume", run.name, "--rejoin"])
    runner.ended(process, 60)

    def trains_on() -> list[str]:
        ranks = hosts.processes(f"ZLAUNCH_RUN_ID={run.name}")
        return [name for name, found in ranks.items() if any("-m train" in line for line in found)]

    on = (
        runner.wait(lambda: trains_on() == hosts.names or again.poll() is not None, runner.sizes.seconds)
        and trains_on()
    )
    before = max(line["step"] for line in losses(run))
    steps = runner.wait(
        lambda: max(line["step"] for line in losses(run)) > before + 3 or again.poll(), runner.sizes.seconds
    )
    seconds = time.monotonic() - started
    again.send_signal(signal.SIGINT)
    code = runner.ended(again, 60)
    ok = bool(steps) and on == hosts.names and code == 130
    note = f"trains on {', '.join(on)}; left: {runner.left(run.name) or 'nothing'}" if ok else tail(log, 600)
    runner.table.add("elastic", "the host joins again", ok=ok, seconds=seconds, note=note)
    _undisturbed(runner, "elastic", run, [*hosts.words(), *runner.long_job()])


def _host_dies(runner: Runner, part: str, what: str, run: Path, host: str | None = None) -> None:
    """Switch a host off, the last one by default: the run must go on with the others, from its newest checkpoint."""
    lab, host = runner.hosts.lab, host or runner.hosts.names[-1]
    assert lab is not None
    before, started = len(losses(run)), time.monotonic()
    lab.kill_host(host)
    try:

        def restarted() -> list[dict[str, Any]]:
            lines = losses(run)
            steps = [line["step"] for line in lines]
            return lines if len(lines) > before + 1 and (steps[-1] < len(lines) or steps[-1] > before + 2) else []

        lines = runner.wait(restarted, runner.sizes.seconds)
        others = [name for name in runner.hosts.names if name != host]
        ranks = runner.hosts.processes(f"ZLAUNCH_RUN_ID={run.name}", others) if lines else {}
        on = [name for name, found in ranks.items() if any("-m train" in line for line in found)]
        ok = bool(lines) and on == others
        note = f"at step {before}; trains on {', '.join(on)}" if lines else "it did not go on"
        runner.table.add(part, what, ok=ok, seconds=time.monotonic() - started, note=note)
    finally:
        lab.restore(host)
        if runner.hosts.slurm is not None:
            runner.hosts.slurm.start_node(host)


def resume(runner: Runner) -> None:
    """Ctrl-C on all hosts, and a resume of the checkpoint on the first host alone."""
    hosts = runner.hosts
    process, run = runner.training([*hosts.words(), *runner.long_job()])
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    code = runner.ended(process, 60)
    seconds, left, saved = time.monotonic() - started, runner.left(run.name), len(losses(run))
    note = f"exit status {code} at step {saved}; left: {left or 'nothing'}"
    runner.table.add("resume", "Ctrl-C", ok=code == 130 and not left, seconds=seconds, note=note)
    fewer = ["--set", f"ssh.hosts={hosts.names[0]}", "--set", f"train.max_steps={saved + FURTHER}"]
    started = time.monotonic()
    answer = runner.zlaunch("resume", run.name, *fewer)
    lines = losses(run)
    ok = [line["step"] for line in lines] == list(range(1, saved + FURTHER + 1))
    ok = ok and answer["world_size"] == hosts.per_host
    around = ", ".join(f"{line['loss']:.3f}" for line in lines[saved - 2 : saved + 2])
    note = f"{hosts.ranks} ranks' checkpoint on {answer['world_size']}; losses around it {around}"
    runner.table.add("resume", "resumed on one host", ok=ok, seconds=time.monotonic() - started, note=note)


def slurm(runner: Runner) -> None:
    if runner.hosts.slurm is None and runner.hosts.lab is not None:
        runner.table.add("slurm", "all", note="not run: Slurm is not installed")
        return
    answer = runner.zlaunch(*runner.hosts.slurm_words(), "--wait", "--smoke", *runner.extra)
    ok = answer["state"] == "SUCCEEDED" and answer["world_size"] == runner.hosts.ranks
    runner.table.add("slurm", "zlaunch slurm --smoke", ok=ok, note=f"{answer['world_size']} ranks")
    preempt(runner)
    if runner.hosts.lab is not None:
        answer = runner.zlaunch(*runner.hosts.slurm_words(), *runner.long_job(), *ELASTIC)
        run = Path(answer["directory"])
        _trains(runner, run, 6)
        _host_dies(runner, "slurm", "a node dies, elastic: true", run)
        _zlaunch_cancel(runner, run)


def preempt(runner: Runner) -> None:
    """The warning before a preemption or time limit: checkpoint, requeue, resume; then cancel. The losses are those of
    a run that nobody disturbed."""
    answer = runner.zlaunch(*runner.hosts.slurm_words(), *runner.long_job())
    run, job = Path(answer["directory"]), str(answer["job"])
    _trains(runner, run, 3)
    started = time.monotonic()
    _slurm(runner, "scancel", "--batch", "--signal=USR2", job)
    queued = runner.wait(lambda: _slurm(runner, "squeue", "-h", "-j", job, "-o", "%T").startswith("PENDING"), 60)
    seconds, saved = time.monotonic() - started, len(losses(run))
    whole = [file.parent.name for file in run.glob("checkpoints/*/COMPLETE")]
    left = runner.left(run.name)
    note = f"at step {saved}; checkpoint {', '.join(whole) or 'none'}; left: {left or 'nothing'}"
    runner.table.add(
        "slurm", "USR2: saved and requeued", ok=bool(queued and whole and not left), seconds=seconds, note=note
    )
    # Slurm itself waits twice the lifetime of a credential before it starts the job again: by default two minutes.
    # A job that is started sooner (`scontrol update starttime=now`) may be killed for a revoked credential.
    ok = runner.wait(lambda: len(losses(run)) >= saved + 3, runner.sizes.seconds + REQUEUE)
    steps = [line["step"] for line in losses(run)]
    ok = bool(ok) and steps == list(range(1, len(steps) + 1))
    note = "no step lost or repeated" if ok else f"{len(steps)} steps, the last {steps[-1:]}"
    runner.table.add("slurm", "resumed after the requeue", ok=ok, seconds=time.monotonic() - started, note=note)
    _zlaunch_cancel(runner, run)
    _undisturbed(runner, "slurm", run, [*runner.hosts.words(), *runner.long_job()])


def _undisturbed(runner: Runner, part: str, run: Path, words: list[str]) -> None:
    """Hold the losses of a run, which something happened to, against those of the same run that was left alone."""
    found = {line["step"]: line["loss"] for line in losses(run)}
    process, other = runner.training(words, len(found))
    process.send_signal(signal.SIGINT)
    runner.ended(process, 60)
    wanted = {line["step"]: line["loss"] for line in losses(other)}
    off = [abs(found[step] - loss) / abs(loss) for step, loss in wanted.items() if step in found]
    runner.table.add(
        part, f"losses of {len(off)} steps beside an undisturbed run", ok=statistics.fmean(off) <= TOLERANCE,
        losses_mean=statistics.fmean(off), losses_worst=max(off),
    )  # fmt: skip


def _zlaunch_cancel(runner: Runner, run: Path) -> None:
    started = time.monotonic()
    process, log = runner.start(["cancel", run.name])
    code, seconds = runner.ended(process, 150), time.monotonic() - started
    left = runner.left(run.name)
    note = f"left: {left or 'nothing'}" if code == 0 else tail(log, 300)
    runner.table.add("slurm", "zlaunch cancel", ok=code == 0 and not left, seconds=seconds, note=note)


def _trains(runner: Runner, run: Path, steps: int) -> None:
    if not runner.wait(lambda: len(losses(run)) >= steps, runner.sizes.seconds):
        log = run / "slurm.log"
        raise RunFailedError(f"it did not begin to train: {tail(log) if log.is_file() else 'no slurm.log'}")


def _slurm(runner: Runner, *argv: str) -> str:
    environ = {**os.environ, **(runner.hosts.slurm.environment if runner.hosts.slurm else {})}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip()
