"""Faults at random moments of real runs: on this machine, over SSH, in Slurm; and what must hold afterwards.

No process is left, the state is true, the newest checkpoint loads, a resume reaches the losses of the uninterrupted
run, nothing outside the run directory has changed, and the run's secret is in no file and no command line. Most runs
are of imitation.py, which writes what the training program writes and needs no torch; some train a tiny model.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.node.agent.launch import DEFAULTS
from tests.torture import evidence
from tests.torture.bounded import Outcome, Tally, Wrong, outcome, source
from tests.torture.fault_beds import PATIENCE, PROGRAM, Case, SshBed, TrainingBed, beds, wait_for
from tests.torture.imitation import next_state
from train.rundir.checkpoints import complete, damage

NAME = "faults"
TRIED = (
    "signals to ranks, agents, wardens and launchers, cancels, cut cables, hosts switched off, full disks, clocks that "
    "jump, controllers that end, damaged files; on this machine, over SSH and in Slurm"
)
STEPS, EVERY = 12, 3
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
TARGETS = (
    *("rank0", "rank1", "agent", "warden", "launcher", "rank0 agent", "agent warden", "launcher agent warden"),
    "rank0 rank1",
)
LOCAL = (
    "signal",
    "signal",
    "signal",
    "signal",
    "cancel",
    "cancel now",
    "interrupt",
    "disk",
    "clock",
    "damage",
    "request",
)
SSH = ("signal", "signal", "signal", "cancel", "cancel now", "interrupt", "cable", "power")
SLURM = ("signal", "signal", "signal", "cancel", "cancel now", "scancel", "controller")
TRAINING = tuple(fault for fault in LOCAL if fault != "clock")  # libfaketime and torch's threads do not get on
FAULTS = {"local": LOCAL, "ssh": SSH, "slurm": SLURM, "training": TRAINING}
EACH_TRAINING = 20
"""Of so many cases there is one more, with real training."""
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


def kind_of(number: int) -> str:
    """Of ten cases six are on this machine, two over SSH, two in Slurm."""
    return ("local", "local", "ssh", "local", "slurm", "local", "local", "ssh", "local", "slurm")[number % 10]


@functools.cache
def expected(bed: Any) -> dict[int, float]:
    """{step: loss} of the uninterrupted run."""
    if isinstance(bed, TrainingBed):
        return bed.uninterrupted(STEPS, EVERY)
    state, found = "start", {}
    for step in range(1, STEPS + 1):
        state, found[step] = next_state(state)
    return found


def one(bed: Any, folder: Path, seed: int, number: int) -> str:
    """Run a case; return what became of it. Raises Wrong."""
    rnd = source(seed, f"{NAME} {bed.name}", number)
    case = Case(bed, folder, f"secret-{rnd.randrange(10**12)}-value")
    fault = rnd.choice(FAULTS[bed.name])
    if fault == "clock" and not FAKETIME.exists():
        fault = "signal"
    shown = f"{bed.name}, {fault}"
    mounted = fault == "disk" and _small_disk(case)
    if fault == "clock":
        (folder / "clock").write_text("+0\n")
        # of the ranks only: libfaketime breaks the time.sleep of the launcher, which real clocks do not
        clock = {"LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": folder / "clock", "FAKETIME_NO_CACHE": 1}
        clock["DONT_FAKE_MONOTONIC"] = 1
        case.words = [word for name, value in clock.items() for word in ("--set", f"env.{name}={value}")]
    try:
        _begin(case, rnd)
        shown += f" {_apply(case, fault, rnd)}"
        before = _outside(case)
        _check_secret(case, shown)
        case.end_launcher()
        return _after(case, shown, fault, before, rnd)
    except Wrong as wrong:
        raise Wrong(f"{wrong}; evidence in {evidence.take(case, number, str(wrong))}") from wrong
    except Exception as error:
        evidence.take(case, number, repr(error))
        raise
    finally:
        _clean(case, mounted)


def _begin(case: Case, rnd: random.Random) -> None:
    """Start the run and wait for the moment of the fault."""
    over = lambda: case.launcher is not None and case.launcher.poll() is not None  # noqa: E731
    pace, moment = rnd.choice((0.05, 0.15, 0.3)), rnd.random()
    if isinstance(case.bed, TrainingBed):
        case.words += case.bed.words(STEPS, EVERY)
        case.begin([])
        lines = round(moment * STEPS)  # its start takes most of its time, so wait for a step
        wait_for(lambda: over() or len(_lines(case.run / "metrics.jsonl")) >= lines, 2 * PATIENCE)
        time.sleep(pace)
        return
    case.begin([sys.executable, str(PROGRAM), str(STEPS), f"{pace}", str(EVERY)])
    wait_for(lambda: case.run.is_dir() or over())
    time.sleep(moment * 3.5)


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _after(case: Case, shown: str, fault: str, before: set[str], rnd: random.Random) -> str:
    """What must hold after the fault, and after a resume."""
    if "launcher/" in case.output.partition("Traceback")[2].partition("Error")[0]:  # not one of the program
        raise Wrong(f"traceback of the launcher: {shown}: {case.output[-400:]}")
    if not case.run.is_dir():
        return "never started"
    if left := wait_for(lambda: not case.bed.left(case), _seconds_to_end(case)) is None and case.bed.left(case):
        raise Wrong(f"processes left: {shown}: {left[:3]}: {case.output[-300:]}")
    case.environ.clear()
    state = _state(case, shown)
    if state == "never submitted":  # the launcher ended before it; status says how to start it
        return state
    case.bed.collect(case)
    if state in ("RUNNING", "PENDING"):
        raise Wrong(f"{state} without a process: {shown}")
    if state == "SUCCEEDED":
        _check_losses(case, f"{shown}: SUCCEEDED")
        verdict = "succeeded all the same"
    else:
        if fault == "damage":
            shown += _damage_checkpoint(case, rnd)
        elif found := [reason for path in complete(case.run / "checkpoints")[-1:] if (reason := damage(path))]:
            raise Wrong(f"the newest checkpoint is damaged: {shown}: {found}")
        code, output = case.zlaunch("resume", case.run.name, timeout=2 * case.patience)
        if code != 0 or "Traceback" in output:
            raise Wrong(f"resume failed: {shown}, {state}: exit {code}: {output[-500:]}")
        case.bed.collect(case)
        _check_losses(case, f"{shown}, {state}, resumed")
        verdict = "resumed to the same losses"
    if left := wait_for(lambda: not case.bed.left(case), 30) is None and case.bed.left(case):
        raise Wrong(f"processes left after the resume: {shown}: {left[:3]}")
    _check_secret(case, shown)
    if new := _outside(case) - before:
        raise Wrong(f"files outside of the run: {shown}: {sorted(new)[:5]}")
    return verdict


def _seconds_to_end(case: Case) -> float:
    """In which a run must be over, whatever was done to it."""
    if case.bed.name == "slurm":
        return 180  # a controller that was down hears late that a job has ended
    started = any('"ranks_started"' in line for line in _lines(case.run / "events.jsonl"))
    # A host that goes off between its agent's start and that agent's first word to the first node is waited for.
    return 60 if started or case.bed.name != "ssh" else 60 + float(DEFAULTS["start_timeout"])


def _apply(case: Case, fault: str, rnd: random.Random) -> str:
    """Do the fault; return what it was."""
    if fault == "signal":
        return _signals(case, rnd)
    if fault.startswith("cancel"):
        code, output = case.zlaunch("cancel", case.run.name, *(["--now"] if fault.endswith("now") else []))
        if "Traceback" in output or code not in (0, 1, 2):
            raise Wrong(f"cancel: exit {code}: {output[-400:]}")
        return f"exit {code}"
    if fault == "interrupt":
        signum = rnd.choice((signal.SIGINT, signal.SIGHUP, signal.SIGTERM))
        _to_launcher(case, signum)
        return signum.name
    if fault == "disk":
        with contextlib.suppress(OSError), (case.runs / "filler").open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
        time.sleep(2)
        case.end_launcher()
        (case.runs / "filler").unlink()
        return ""
    if fault == "clock":
        jump = rnd.choice(("+3600", "-3600", "+40d", "-40d", "+90", "-90"))
        (case.folder / "clock").write_text(f"{jump}\n")
        case.environ = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": jump, "DONT_FAKE_MONOTONIC": "1"}
        state = _state(case, f"clock {jump}")
        case.environ = {}
        return f"{jump} {state}"
    if fault == "damage":
        for pid in [pid for name in ("rank0", "agent", "warden") for _, pid in case.bed.victims(case).get(name, ())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return ""
    if fault == "request":
        (case.run / "control").mkdir(exist_ok=True)
        (case.run / "control" / rnd.choice(("stop", "checkpoint"))).touch()
        return ""
    return _far_fault(case, fault, rnd)


def _far_fault(case: Case, fault: str, rnd: random.Random) -> str:
    """Faults that only hosts and clusters have."""
    bed = case.bed
    if isinstance(bed, SshBed):
        host = rnd.choice(bed.hosts) if fault == "cable" else bed.hosts[1]  # the disk of the first has the checkpoints
        seconds = rnd.choice((1, 4, 14))
        (bed.lab.cut if fault == "cable" else bed.lab.kill_host)(host)
        time.sleep(seconds)
        if fault == "power":
            case.end_launcher()
        bed.lab.restore(host)
        return f"{host} for {seconds} s"
    if fault == "scancel":
        ids = json.loads((case.run / "run.json").read_text())["ids"] if (case.run / "run.json").exists() else []
        for job in ids:
            words = ["scancel", *rnd.choice(([], ["--signal=KILL", "--full"], ["--signal=TERM", "--full"])), job]
            bed.cluster.run(words, check=False)  # type: ignore[attr-defined]
        return ""
    with _CONTROLLER:
        bed.cluster.stop_controller()  # type: ignore[attr-defined]
        time.sleep(rnd.choice((0.5, 3)))
        bed.cluster.start_controller()  # type: ignore[attr-defined]
    return ""


_CONTROLLER = threading.Lock()


def _signals(case: Case, rnd: random.Random) -> str:
    names, signum = rnd.choice(TARGETS).split(), rnd.choice(SIGNALS)
    victims = case.bed.victims(case)
    chosen = [victim for name in names for victim in victims.get(name, ())]
    if signum == signal.SIGSTOP:
        _stop_for_a_while(case, names, chosen, rnd)
    else:
        for victim in chosen:
            case.bed.kill(victim, signum)
        if "launcher" in names:
            _to_launcher(case, signum)
    return f"{'+'.join(names)} {signum.name}"


def _stop_for_a_while(case: Case, names: list[str], chosen: list[Any], rnd: random.Random) -> None:
    for victim in chosen:
        case.bed.kill(victim, signal.SIGSTOP)
    if "launcher" in names:
        _to_launcher(case, signal.SIGSTOP)
    time.sleep(rnd.choice((0.5, 2)))
    if rnd.random() < 0.4 and "launcher" not in names:  # it stays stopped: a cancel must end it all the same
        case.zlaunch("cancel", "--now", case.run.name)
        return
    for victim in chosen:
        case.bed.kill(victim, signal.SIGCONT)
    if "launcher" in names:
        _to_launcher(case, signal.SIGCONT)


def _to_launcher(case: Case, signum: int) -> None:
    if case.launcher is not None and case.launcher.poll() is None:
        os.kill(case.launcher.pid, signum)


def _state(case: Case, shown: str) -> str:
    code, output = case.zlaunch("status", case.run.name, "--json")
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if code != 0 or not lines:
        if "was rendered (--dry-run) but not submitted" in output:
            return "never submitted"
        raise Wrong(f"no state: {shown}: exit {code}: {output[-400:]}")
    return str(json.loads(lines[-1])["state"])


def _check_losses(case: Case, shown: str) -> None:
    try:
        lines = (case.run / "metrics.jsonl").read_text(errors="replace").splitlines()
        result = json.loads((case.run / "result.json").read_text())
    except (OSError, ValueError) as error:
        raise Wrong(f"no results: {shown}: {error}") from None
    found: dict[int, float] = {}
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            metric = json.loads(line)
            found[metric["step"]] = metric["loss"]
    losses = expected(case.bed)
    wrong = {step for step, loss in losses.items() if found.get(step) != loss}
    if wrong or result["loss_last"] != losses[STEPS]:
        raise Wrong(f"other losses: {shown}: steps {sorted(wrong)} of {sorted(found)}")


def _damage_checkpoint(case: Case, rnd: random.Random) -> str:
    """Damage the newest checkpoint, and sometimes the logs of the run."""
    whole = complete(case.run / "checkpoints")
    if whole:
        file = rnd.choice([path for path in sorted(whole[-1].iterdir()) if path.is_file()])
        data = bytearray(file.read_bytes())
        match rnd.randrange(3):
            case 0:
                data[rnd.randrange(len(data))] ^= 1 << rnd.randrange(8)
            case 1:
                del data[rnd.randrange(len(data)) :]
            case _:
                data = bytearray(rnd.randbytes(len(data)))
        file.write_bytes(data)
    for name in rnd.sample(("metrics.jsonl", "events.jsonl"), rnd.randrange(3)):
        with (case.run / name).open("ab") as lines:
            lines.write(
                rnd.choice((b'{"step": 4, "lo', b"\xff\xfe\n", b"[[[\n", b"5\n", b'{"step": "x", "loss": []}\n'))
            )
    return f" of {whole[-1].name}" if whole else " of nothing"


def _outside(case: Case) -> set[str]:
    """Files of the case's folder that are not in the run directory."""
    run = case.run
    found = set()
    for path in _files(case.folder):
        if path.is_relative_to(run) or path.name in ("clock", "filler"):
            continue
        if path.is_relative_to(case.folder / "home" / ".cache"):  # tokens, and what a cluster said of itself
            continue
        found.add(path.relative_to(case.folder).as_posix())
    return found


def _files(folder: Path) -> list[Path]:
    """Return the files below a folder in which a run may be writing and removing at the same time."""
    return [Path(place) / name for place, _, names in os.walk(folder) for name in names]


def _check_secret(case: Case, shown: str) -> None:
    secret = case.secret.encode()
    for path in _files(case.folder):
        with contextlib.suppress(OSError):
            if path.is_file() and ".secrets" not in path.parts and secret in path.read_bytes():
                raise Wrong(f"the secret is in a file: {shown}: {path.relative_to(case.folder)}")
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and secret in (entry / "cmdline").read_bytes():
                raise Wrong(f"the secret is in a command line: {shown}")


def _small_disk(case: Case) -> bool:
    case.runs.mkdir(parents=True)
    if os.geteuid() != 0:
        return False
    words = ["mount", "-t", "tmpfs", "-o", "size=24m", "torture", str(case.runs)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _clean(case: Case, mounted: bool) -> None:
    """End what a failed case left, so that the next one starts clean."""
    if case.launcher is not None and case.launcher.poll() is None:
        os.killpg(case.launcher.pid, signal.SIGKILL)
        case.launcher.communicate()
    if case.run.is_dir():
        with contextlib.suppress(Exception):
            if case.bed.left(case):
                case.zlaunch("cancel", "--now", case.run.name)
    if mounted:
        subprocess.run(["umount", "-l", str(case.runs)], check=False)
    if isinstance(case.bed, SshBed):
        for host in case.bed.hosts:
            case.bed.lab.restore(host)
    shutil.rmtree(case.folder, ignore_errors=True)


def campaign(numbers: dict[str, list[int]], seed: int, run: Callable[[Any, Path, int, int], str]) -> Tally:
    """Run the cases of each kind on the beds of that kind, at the same time."""
    tally, lock = Tally(collections.Counter(), {}), threading.Lock()

    def work(bed: Any, todo: queue.SimpleQueue[int], root: Path) -> None:
        while True:
            try:
                number = todo.get_nowait()
            except queue.Empty:
                return
            verdict, kind, text = _judged(run, bed, root / f"{bed.name}-{number}", seed, number)
            with lock:
                if kind:
                    count, first, example = tally.found.get(kind, (0, number, text))
                    tally.found[kind] = (count + 1, first, example)
                    print(f"  case {number}: {kind}: {text}", file=sys.stderr, flush=True)
                else:
                    tally.verdicts[f"{bed.name}: {verdict}"] += 1

    kinds = {kind for kind, cases in numbers.items() if cases}
    with tempfile.TemporaryDirectory(prefix="torture-") as folder, beds(kinds) as found:
        threads = []
        for kind, places in found.items():
            todo: queue.SimpleQueue[int] = queue.SimpleQueue()
            for number in numbers.get(kind, ()):
                todo.put(number)
            threads += [threading.Thread(target=work, args=(bed, todo, Path(folder))) for bed in places]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return tally


def _judged(run: Callable[..., str], bed: Any, folder: Path, seed: int, number: int) -> tuple[str, str, str]:
    try:
        folder.mkdir()
        return run(bed, folder, seed, number), "", ""
    except Wrong as wrong:
        kind, _, text = str(wrong).partition(": ")
        return "", kind, text
    except Exception as error:
        return "", f"{type(error).__name__} of the campaign", "".join(traceback.format_exception(error))[-600:]


def main(
    count: int, seed: int, kinds: tuple[str, ...] = ("local", "ssh", "slurm", "training"), first: int = 0
) -> Outcome:
    """Do `count` faults, and some more with real training."""
    numbers: dict[str, list[int]] = {kind: [] for kind in kinds}
    for number in range(first, first + count):
        if kind_of(number) in numbers:
            numbers[kind_of(number)].append(number)
        if "training" in numbers and number % EACH_TRAINING == 0:
            numbers["training"].append(number)
    tally = campaign(numbers, seed, one)
    return outcome(NAME, TRIED, sum(map(len, numbers.values())), seed, tally)


if __name__ == "__main__":
    words = sys.argv[1:]
    made = main(int(words[0]), int(words[1]), tuple(words[2].split(",")), int(words[3]) if len(words) > 3 else 0)
    print(made.summary, made.row, *made.found, sep="\n  ")
