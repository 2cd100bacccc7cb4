"""The batch script: its options, its quoting, its limits, and its text (ZLAUNCH_GOLDEN=write rewrites tests/golden)."""

import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.slurm.allocation import slurm_target
from launcher.backends.slurm.login_shell import sendable
from launcher.backends.slurm.partitions import Partition, check_limits
from launcher.backends.slurm.submit_checks import cluster_paths
from launcher.errors import CompatibilityError, SpecError, TargetError
from launcher.job.load import read_job
from launcher.job.spec import JobSpec, SlurmSpec
from launcher.lifecycle import checks
from launcher.plan import batch_job
from launcher.plan.container import NO_CONTAINER, ContainerChoice
from launcher.plan.resolve import plan
from launcher.plan.types import RunPlan
from launcher.render import texts
from launcher.render.sbatch import sbatch_line, script
from tests.beds.places import GOLDEN

FILES = GOLDEN / "slurm"
RUN = "zh-20261101-120000-abcd"


def job(*overrides: str, **flags: Any) -> JobSpec:
    return read_job(None, overrides, {"program": ("true",), **flags}).spec


def planned(*overrides: str) -> RunPlan:
    asked = job(*overrides)
    image = asked.container.image
    container = ContainerChoice("pyxis", image) if image else NO_CONTAINER
    return plan(asked, slurm_target(asked), run_id=RUN, container=container)


JOBS = {
    "cpu": ("device=cpu", "slurm.nodes=4", "slurm.procs_per_node=2"),
    "gpu": (
        "slurm.nodes=4", "slurm.gpus_per_node=8", "slurm.partition=gpu", "slurm.account=lab", "slurm.time=04:00:00",
        "slurm.cpus_per_task=32", "secrets=[HF_TOKEN]",
        'slurm.sbatch={mail-type: END, comment: "it\'s \\"odd\\" $(id) 中文 #1", exclusive: null}',
    ),
    "elastic": ("device=cpu", "slurm.nodes=2", "elastic=true", "slurm.max_requeues=0"),
    "pyxis": (
        "slurm.nodes=2", "secrets=[HF_TOKEN]", "container.runtime=pyxis",
        "container.image=registry.example.com/team/zlaunch:0.1.0", "container.mounts=['/data/it''s 中文:/data']",
        "container.args=['--container-remap-root']", "program=[]", "model.path=/models/m", "data.train=/data/a.jsonl",
    ),
}  # fmt: skip


def is_reviewed_and_parses(text: str, name: str) -> bool:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    if os.environ.get("ZLAUNCH_GOLDEN") == "write":
        (FILES / f"{name}.sbatch").write_text(text, encoding="utf-8")
    return text == (FILES / f"{name}.sbatch").read_text(encoding="utf-8")


def verdict(state: str) -> str:
    """A command that writes the record of the first node's agent."""
    return f"""echo '{{"state": "{state}"}}' > nodes/node-0.json"""


def job_environment(place: Path, **commands: str) -> dict[str, str]:
    """The environment of a batch script whose Slurm commands do this."""
    tools = place / "bin"
    tools.mkdir()
    for name, does in {"scontrol": "echo node1", **commands}.items():
        (tools / name).write_text(f"#!/bin/sh\n{does}\n")
        (tools / name).chmod(0o755)
    return {**os.environ, "PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1"}


RUNNING = "echo 'JobId=7 JobState=RUNNING Restarts=0 x'"


@pytest.mark.parametrize(
    ("does", "status", "slurm", "word"),
    [
        (verdict("SUCCEEDED"), 0, RUNNING, "succeeded"),
        (verdict("SUCCEEDED"), 1, RUNNING, "succeeded"),
        (verdict("CANCELLED"), 0, RUNNING, "stopped without a new checkpoint"),
        (verdict("CANCELLED"), 0, RUNNING.replace("=0", "=1"), "Slurm has queued the job again itself"),
        (verdict("RUNNING"), 0, RUNNING.replace("=0", "=1"), "Slurm has queued the job again itself"),
        (verdict("RUNNING"), 0, RUNNING, "the agents left no verdict"),
        ("true", 0, RUNNING, "the agents left no verdict"),
        ("kill -TERM $PPID; sleep 1", 143, RUNNING, "ended by SIGTERM before the agents could say how"),
        ("kill -TERM $PPID; sleep 1", 143, RUNNING.replace("RUNNING", "CANCELLED"), "Slurm has ended the job"),
        (verdict("STOPPED"), 75, RUNNING.replace("RUNNING", "CANCELLED"), "Slurm has ended the job"),
        (verdict("STOPPED"), 75, "exit 1", "Slurm does not answer"),
    ],
)
def test_a_script_believes_the_agent_and_not_sruns_status(
    tmp_path: Path, does: str, status: int, slurm: str, word: str
) -> None:
    """srun exits with 0 also when a node failed."""
    (tmp_path / "plan.json").touch()
    (tmp_path / "node.sh").touch()
    answers = f'case "$1 $2" in "show job") {slurm};; *) echo node1;; esac'
    environ = job_environment(tmp_path, srun=f"{does}; exit {status}", scontrol=answers)
    text = texts.render(planned(*JOBS["cpu"]))["train.sbatch"]
    subprocess.run(["bash", "-s"], input=text, text=True, cwd=tmp_path, env=environ, check=False)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert word in events[-1]["reason"]
    again = word.startswith(("Slurm has queued the job again itself", "stopped without", "ended by SIGTERM"))
    assert events[-1]["event"] == ("slurm_requeue" if again else "slurm_end")


@pytest.mark.parametrize("name", JOBS)
def test_the_script_is_the_reviewed_one_and_parses(name: str) -> None:
    assert is_reviewed_and_parses(texts.render(planned(*JOBS[name]))["train.sbatch"], name)


def test_under_pyxis_the_file_of_secrets_is_in_the_container_as_well(tmp_path: Path) -> None:
    run = tmp_path / "runs of $ME" / RUN
    (run.parent / ".secrets").mkdir(parents=True)
    secret = run.parent / ".secrets" / f"{RUN}.json"
    secret.write_text("{}")
    run.mkdir()
    for name in ("plan.json", "node.sh"):
        (run / name).touch()
    environ = job_environment(tmp_path, srun=f'printf "%s\\n" "$@" > srun.words; {verdict("SUCCEEDED")}')
    script = texts.render(planned(*JOBS["pyxis"]))["train.sbatch"]
    subprocess.run(["bash", "-s"], input=script, text=True, cwd=run, env=environ, check=True)
    (mounts,) = (word for word in (run / "srun.words").read_text().splitlines() if "container-mounts" in word)
    assert mounts.startswith(f"--container-mounts={run}:{run},{secret}:{secret}:ro,/data/a.jsonl:/data/a.jsonl:ro,")
    assert mounts.endswith(",/data/it's 中文:/data:ro")
    assert not secret.exists()


def test_the_script_of_a_sweep_is_the_reviewed_one_and_parses() -> None:
    names = [f"zh-{index}-20261101-120000-abcd" for index in range(3)]
    section = planned("device=cpu", "slurm.array_limit=2", "secrets=[HF_TOKEN]").slurm
    assert section is not None
    text = script(section, names, [f"../../{name}" for name in names], "zh-sweep-20261101-120000-abcd")
    assert is_reviewed_and_parses(text, "sweep")


def test_a_slurm_run_differs_from_an_ssh_run_on_as_many_hosts_only_in_names_and_ports() -> None:
    asked = read_job(None, ["device=cpu", "slurm.nodes=4", "train.zero_stage=2"], {"model.source": "random"}).spec
    on_slurm = slurm_target(asked)
    changes = {"backend": "ssh", "hosts": tuple((f"h{i}", 1) for i in range(4)), "master_addr": "10.0.0.1"}
    over_ssh = type(on_slurm)(**{**{f: getattr(on_slurm, f) for f in on_slurm.__struct_fields__}, **changes})
    first, second = (plan(asked, target, run_id=RUN) for target in (on_slurm, over_ssh))
    table = [[(n.node_rank, n.procs, n.first_rank) for n in p.launch.nodes] for p in (first, second)]
    assert table[0] == table[1] == [(0, 1, 0), (1, 1, 1), (2, 1, 2), (3, 1, 3)]
    assert first.launch.env == second.launch.env
    assert first.launch.argv == second.launch.argv
    files = [texts.render(p) for p in (first, second)]
    assert files[0]["ds_config.json"] == files[1]["ds_config.json"]
    assert files[0]["train.json"] == files[1]["train.json"]
    assert files[0]["node.sh"] == files[1]["node.sh"]


def test_a_requested_stop_may_take_as_long_as_slurms_warning_allows() -> None:
    assert planned("slurm.signal_before=300").launch.stop_deadline == 280.0
    assert planned("slurm.signal_before=10").launch.stop_deadline == 25.0


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("gpu", "--partition=gpu"),
        ("a b", '--partition="a b"'),
        ('q"x\\', '--partition="q\\"x\\\\"'),
        ("$(id)", '--partition="$(id)"'),
        ("", '--partition=""'),
        (None, "--partition"),
    ],
)
def test_values_are_quoted_as_sbatch_reads_them(value: str | None, line: str) -> None:
    assert sbatch_line("partition", value) == line


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["slurm.sbatch={nodes: 3}"], "slurm.nodes"),
        (["slurm.sbatch={output: x}"], "slurm.log"),
        (["slurm.sbatch={'a b': x}"], "not a valid name"),
        (['slurm.partition="a\\nb"'], "line break"),
        (["slurm.time=4h"], "time limit"),
    ],
)
def test_what_no_cluster_accepts_is_refused_before_anything_is_written(overrides: list[str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        planned(*overrides)
    assert message in f"{caught.value} {caught.value.hint}"


def test_a_warning_longer_than_the_time_limit_is_refused() -> None:
    with pytest.raises(CompatibilityError, match="signal_before 120 s leaves nothing"):
        planned("slurm.time=00:02:00")


GPU = Partition("gpu", True, True, 3600.0, 300.0, 4, 2)
SHORT = Partition("short", False, True, 120.0, 60.0, 4, 0)
DOWN = Partition("down", False, False, None, None, 4, 2)
ALL = {"gpu": GPU, "short": SHORT, "down": DOWN}


@pytest.mark.parametrize(
    ("asked", "gpus", "parts"),
    [
        (SlurmSpec(partition="gpx"), 0, ("no partition 'gpx'", "did you mean 'gpu'", "down, gpu, short")),
        (SlurmSpec(partition="down"), 0, ("is down",)),
        (SlurmSpec(nodes=9), 0, ("9 nodes", "at most 4", "--nodes 4")),
        (SlurmSpec(), 8, ("8 requested", "at most 2", "--gpus-per-node 2")),
        (SlurmSpec(partition="short"), 1, ("has none", "--device cpu")),
        (SlurmSpec(time="02:00:00"), 0, ("allows 01:00:00", "requeues itself")),
        (SlurmSpec(partition="short"), 0, ("00:01:00 by default", "--time")),
    ],
)
def test_what_the_partitions_cannot_run_is_refused_with_what_they_can(
    asked: SlurmSpec, gpus: int, parts: tuple[str, ...]
) -> None:
    with pytest.raises(TargetError) as caught:
        check_limits(asked, gpus, ALL)
    for part in parts:
        assert part in f"{caught.value} {caught.value.hint}"


def test_one_of_several_partitions_that_can_run_the_job_is_enough() -> None:
    check_limits(SlurmSpec(partition="gpu,short", time="00:30:00"), 2, ALL)
    check_limits(SlurmSpec(nodes=99), 8, {})  # nothing known, nothing refused


def test_a_sites_own_template_is_used_and_its_mistakes_are_reported(tmp_path: Path) -> None:
    own = tmp_path / "own.j2"
    own.write_text("#!/bin/bash\n{% for line in sbatch %}\n#SBATCH {{ line }}\n{% endfor %}\necho {{ run_ids | sh }}\n")
    assert texts.render(planned(f"slurm.template={own}"))["train.sbatch"].endswith(f"echo {RUN}\n")
    for text, reason in (
        ("{{ sbtach }}", r"sbtach.*line 1 of the template"),
        ("a\n{% for %}", "line 2 of the template"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 4 s"),
        ("{{ 'a' * 10 ** 11 }}", "1 GiB"),
    ):
        own.write_text(text)
        with pytest.raises(SpecError, match=reason):
            texts.render(planned(f"slurm.template={own}"))


def test_no_file_of_the_run_contains_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_never_written")
    assert "hf_never_written" not in json.dumps(texts.render(planned("secrets=[HF_TOKEN]")))


def test_seconds_are_written_as_slurm_reads_them() -> None:
    assert [batch_job.format_seconds(value) for value in (59, 3600, 90061)] == ["00:00:59", "01:00:00", "1-01:01:01"]


@pytest.mark.parametrize(
    ("overrides", "bound", "setting"),
    [
        ((), 20, "slurm.max_requeues"),
        (("slurm.max_requeues=3",), 3, "slurm.max_requeues"),
        (("max_restarts=2",), 2, "max_restarts"),
        (("max_restarts=2", "slurm.max_requeues=0"), 0, "slurm.max_requeues"),
    ],
)
def test_max_restarts_limits_the_requeues(overrides: tuple[str, ...], bound: int, setting: str) -> None:
    text = texts.render(planned("device=cpu", *overrides))["train.sbatch"]
    assert f"all {bound} requeues are used ({setting})" in text
    assert f'[ "$restart" -lt {bound} ]' in text


def test_a_run_behind_a_login_host_takes_its_data_along_and_not_its_interpreter(tmp_path: Path) -> None:
    here = tmp_path / "here.jsonl"
    here.write_text("{}\n")
    sets = [f"data.train={here}", "data.eval=/only/there.jsonl", "slurm.login=me@login", "device=cpu"]
    asked = read_job(None, sets, {"model.source": "random"}).spec
    target = slurm_target(asked)
    assert target.python == "python3"
    checks.check_inputs(asked, "slurm")
    made = plan(asked, target, run_id=RUN)
    assert made.train is not None
    assert made.slurm is not None
    assert made.slurm["inputs"] == {str(here): made.train.data.train}
    assert cluster_paths(made) == {"/only/there.jsonl": "data.eval"}


@pytest.mark.parametrize(
    ("name", "is_sent"),
    [("run", True), ("run/code/train/training/adapter.py", True), ("run/adapter", False), ("run/checkpoints", False)],
)
def test_what_a_run_made_stays_and_code_of_the_same_name_is_sent(name: str, is_sent: bool) -> None:
    assert (sendable(tarfile.TarInfo(name)) is not None) is is_sent
