"""What sites configure: typed GPUs, unlike nodes, small arrays, several clusters, on a real Slurm."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.rundir.directory import RunDir
from tests.slurm.conftest import Zl, events, wait
from tests.testbed.bed import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]


def planned(zl: Zl, *words: str) -> tuple[dict[str, Any], str]:
    """({setting: value} of what Slurm says, everything printed) of a dry run."""
    printed = zl("slurm", "--dry-run", "--json", *words, "--", "true")
    plan = json.loads((RunDir(Path(json.loads(printed.splitlines()[-1])["directory"])).plan_json).read_text())
    return {r["setting"]: r["value"] for r in plan["reasons"] if r["setting"].startswith("slurm")}, printed


def test_gpu_and_cores_of_the_plan_are_those_of_the_partition(zl: Zl) -> None:
    assert planned(zl, "--gpus-per-node", "1")[0] == {"slurm.gpu": "NVIDIA H200", "slurm.cpus_per_task": 2}
    mixed, printed = planned(zl, "-p", "mixed", "--gpus-per-node", "4")
    assert mixed == {"slurm.gpu": "NVIDIA A10", "slurm.cpus_per_task": 8}
    assert "8000 to 64000 MB of memory" in printed
    assert planned(zl, "-p", "mixed", "--gpus-per-node", "h100:4")[0] == {
        "slurm.gpu": "NVIDIA H100 80GB", "slurm.cpus_per_task": 16,
    }  # fmt: skip
    assert planned(zl, "-p", "plain", "--gpus-per-node", "4")[0] == {
        "slurm.gpu": "NVIDIA A100 40GB", "slurm.cpus_per_task": 6,
    }  # fmt: skip
    assert planned(zl, "-p", "odd", "--gpus-per-node", "2")[0] == {"slurm.cpus_per_task": 6}
    assert planned(zl, "--gpus-per-node", "1", "--cpus-per-task", "1")[0] == {"slurm.gpu": "NVIDIA H200"}


def test_a_typed_gpu_is_allocated_with_its_cores(zl: Zl) -> None:
    words = ["--gpus-per-node", "h200:2", "--json", "--", "sleep", "300"]
    run = RunDir(Path(json.loads(zl("slurm", *words).splitlines()[-1])["directory"]))
    shown = zl.cluster.run(["scontrol", "show", "job", "--oneliner", run.record.ids[0]]).stdout
    assert "TresPerNode=gres:gpu:h200:2" in shown
    assert "CPUs/Task=4" in shown
    zl("cancel", "--now", run.run_id)
    refused = zl("slurm", "--gpus-per-node", "a100:2", "--", "true", code=1)
    assert "has 2 of type a100" in refused
    assert "gpu:h200:2" in refused


@pytest.fixture
def zl_other(zl_accounting: Zl, slurm_other: Slurm) -> Zl:
    """`zl` on the first of two clusters; `other` is idle again afterwards."""
    return zl_accounting


def queue_of(zl: Zl, cluster: str) -> list[str]:
    words = ["squeue", "-h", "--array", "-M", cluster, "-o", "%i"]
    return [line for line in zl.cluster.run(words).stdout.split() if line[0].isdigit()]


def test_a_job_of_another_cluster_is_followed_and_cancelled_there(zl_other: Zl) -> None:
    zl = zl_other
    here = zl.submit("sleep 300", "--sbatch", "hold")
    run = zl.submit("sleep 300", "--cluster", "other")
    job, _, cluster = run.record.ids[0].partition(";")
    assert (cluster, queue_of(zl, "other")) == ("other", [job])
    wait(lambda: events(run, "ranks_started"))
    assert zl.state(run) == "RUNNING"
    assert {json.loads(line)["state"] for line in zl("list", "--json").splitlines()} == {"RUNNING", "PENDING"}
    run.update_record(ids=())  # as if the launcher had died before it could record the job
    zl.environ["SLURM_CLUSTERS"] = "zlaunch"
    assert zl.state(run) == "RUNNING"
    assert run.record.ids == (f"{job};other",)
    assert "CANCELLED" in zl("cancel", run.run_id)
    assert queue_of(zl, "other") == []
    assert len(queue_of(zl, "zlaunch")) == 1
    zl("resume", run.run_id, "--detach")
    assert len(queue_of(zl, "other")) == 1
    zl("cancel", "--now", run.run_id)
    zl("cancel", here.run_id)
    assert "No cluster 'nowhere'" in zl("slurm", "--device", "cpu", "--cluster", "nowhere", "--", "true", code=1)


def test_the_cluster_that_sbatch_chose_of_several_is_kept(zl_other: Zl) -> None:
    run = zl_other.submit("sleep 300", "--cluster", "zlaunch,other", "--nodes", "2")  # the other one has one node
    job, _, cluster = run.record.ids[0].partition(";")
    assert (cluster, queue_of(zl_other, "zlaunch")) == ("zlaunch", [job])
    wait(lambda: zl_other.state(run) == "RUNNING")
    assert "CANCELLED" in zl_other("cancel", "--now", run.run_id)
    assert queue_of(zl_other, "zlaunch") == []


@pytest.fixture
def federation(zl_other: Zl, slurm_other: Slurm) -> Iterator[Zl]:
    """`zl` on the first of two clusters that are a federation until the end of the test."""
    clusters = (zl_other.cluster, slurm_other)

    def shown(text: str) -> bool:
        return all(text in cluster.run(["scontrol", "show", "federation"]).stdout for cluster in clusters)

    clusters[0].run(["sacctmgr", "-i", "add", "federation", "both", "clusters=zlaunch,other"])
    try:
        wait(lambda: shown("Synced:Yes"))
        yield zl_other
    finally:
        for cluster in clusters:
            cluster.run(["scancel", "--user=root"], check=False)
        clusters[0].run(["sacctmgr", "-i", "delete", "federation", "both"])
        wait(lambda: not shown("Sibling:"))


def test_a_federated_run_is_followed_cancelled_and_resumed_where_it_runs(federation: Zl) -> None:
    zl = federation
    here = zl.submit("sleep 300", "--nodes", "4", "--sbatch", "exclusive")  # the other cluster has one node
    assert int(here.record.ids[0]) > 1 << 26
    wait(lambda: events(here, "ranks_started"))
    assert zl.state(here) == "RUNNING"
    there = zl.submit("sleep 300")  # the cluster that queues it is full: its sibling starts it
    wait(lambda: events(there, "ranks_started"))
    assert queue_of(zl, "other") == list(there.record.ids)
    assert zl.squeue(there) == "REVOKED"
    assert zl.state(there) == "RUNNING"
    there.update_record(ids=())  # as if the launcher had died before it could record the job
    assert "is RUNNING" in zl("resume", there.run_id, code=2)
    assert int(there.record.ids[0]) > 1 << 26
    assert "CANCELLED" in zl("cancel", there.run_id)
    assert queue_of(zl, "other") == []
    zl("resume", there.run_id, "--detach")
    wait(lambda: queue_of(zl, "other") == list(there.record.ids))
    zl("cancel", "--now", there.run_id)
    assert queue_of(zl, "other") == []


def test_a_sweep_larger_than_an_array_is_several_arrays_which_every_command_knows(zl_other: Zl) -> None:
    zl = zl_other
    again = zl.home / "let-it-pass"
    program = f'case "$POINT" in d) [ -e {again} ] || exit 3;; esac; echo "$POINT"'
    words = ["--sweep", "env.POINT=a,b,c,d,e", "--", "bash", "-c", program]
    answer = json.loads(zl("slurm", "--device", "cpu", "--cluster", "other", "--json", *words).splitlines()[-1])
    runs = [RunDir(zl.runs / name) for name in answer["runs"]]
    assert len(answer["jobs"]) == 3
    ids = [run.record.ids[0] for run in runs]
    assert ids == [f"{answer['jobs'][i // 2].partition(';')[0]}_{i % 2};other" for i in range(5)]
    wait(lambda: all(events(run, "slurm_end") for run in runs))
    states = {json.loads(line)["env.POINT"]: json.loads(line)["state"]
              for line in zl("report", answer["sweep"], "--json").splitlines()}  # fmt: skip
    assert states == {"a": "SUCCEEDED", "b": "SUCCEEDED", "c": "SUCCEEDED", "d": "FAILED", "e": "SUCCEEDED"}
    assert [(run.logs_dir / "node-0/rank-0.log").read_text() for run in runs] == ["a\n", "b\n", "c\n", "", "e\n"]
    wait(lambda: queue_of(zl, "other") == [])
    again.touch()
    second = json.loads(zl("resume", answer["sweep"], "--json").splitlines()[-1])
    assert second["runs"] == [runs[3].run_id]
    wait(lambda: zl.state(runs[3]) == "SUCCEEDED")
    assert (runs[3].logs_dir / "node-0/rank-0.log").read_text() == "d\n"


def test_a_limited_sweep_of_several_arrays_runs_one_array_after_another(zl_other: Zl) -> None:
    zl = zl_other
    words = ["--sweep", "env.POINT=a,b,c", "--array-limit", "1", "--", "sleep", "300"]
    answer = json.loads(zl("slurm", "--device", "cpu", "--cluster", "other", "--json", *words).splitlines()[-1])
    last = RunDir(zl.runs / answer["runs"][2])
    job = last.record.ids[0].partition(";")[0]
    shown = zl.cluster.run(["scontrol", "-M", "other", "show", "job", "--oneliner", job]).stdout
    assert f"Dependency=afterany:{answer['jobs'][0].partition(';')[0]}" in shown
    points = json.loads(zl("cancel", "--now", answer["sweep"], "--json"))["points"]
    assert {point["state"] for point in points} == {"CANCELLED"}
    assert queue_of(zl, "other") == []


KILLED = """#!/bin/sh
case "$*" in *test-only*) exec {sbatch} "$@" ;; esac
{sbatch} "$@"; kill -KILL $PPID
"""


def test_a_sweep_whose_launcher_dies_right_after_sbatch_is_found_by_name(zl: Zl) -> None:
    place = zl.home / "site"
    place.mkdir()
    (place / "sbatch").write_text(KILLED.format(sbatch=shutil.which("sbatch")))
    (place / "sbatch").chmod(0o755)
    path = zl.environ["PATH"]
    zl.environ["PATH"] = f"{place}:{os.environ['PATH']}"
    words = ["slurm", "--device", "cpu", "--sbatch", "hold", "--sweep", "env.POINT=a,b", "--", "sleep", "300"]
    assert zl.start(*words).wait(60) == -9
    zl.environ["PATH"] = path
    (sweep,) = (zl.runs / "sweeps").iterdir()
    runs = [RunDir(zl.runs / point["run"]) for point in json.loads((sweep / "sweep.json").read_text())["points"]]
    assert [run.record.ids for run in runs] == [(), ()]
    refused = zl("resume", sweep.name, code=2)
    assert "still queued or running" in refused
    found = [run.record.ids[0] for run in runs]
    (job,) = {name.partition("_")[0] for name in found}
    assert found == [f"{job}_0", f"{job}_1"]
    points = json.loads(zl("cancel", sweep.name, "--json"))["points"]
    assert [point["state"] for point in points] == ["CANCELLED", "CANCELLED"]
    assert zl.cluster.run(["squeue", "-h"]).stdout == ""


def test_a_refused_array_leaves_failed_points_and_a_refused_resume_what_was(zl: Zl) -> None:
    words = ["slurm", "--device", "cpu", "--sweep", "env.POINT=a,b", "--constraint", "nvlink", "--", "true"]
    assert "use --constraint" in zl(*words, code=1)
    (sweep,) = (zl.runs / "sweeps").iterdir()
    states = [json.loads(line)["state"] for line in zl("report", sweep.name, "--json").splitlines()]
    assert states == ["FAILED", "FAILED"]
    runs = [RunDir(zl.runs / point["run"]) for point in json.loads((sweep / "sweep.json").read_text())["points"]]
    for run in runs:
        run.update_record(state="CANCELLED")
    assert "use --constraint" in zl("resume", sweep.name, code=1)
    assert [run.record.state for run in runs] == ["CANCELLED", "CANCELLED"]
