"""What Slurm tells of the nodes, and what follows for a job; what it does not tell stays unknown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from launcher.backends.slurm.allocation import slurm_target
from launcher.backends.slurm.jobs import ranges
from launcher.backends.slurm.partitions import parse_partitions
from launcher.backends.slurm.site import NO_GPUS, Site, able_kinds, ask, look, parse_array_limit, parse_nodes
from launcher.job.spec import JobSpec, Model, SlurmSpec
from launcher.machine.process import Result
from launcher.plan.gpus import GPUS
from launcher.plan.resolve import plan

PARTITIONS = """\
PartitionName=gpu Default=YES State=UP TotalNodes=8 MaxCPUsPerNode=UNLIMITED JobDefaults=(null)
PartitionName=told Default=NO State=UP TotalNodes=1 MaxCPUsPerNode=UNLIMITED JobDefaults=DefCpuPerGPU=3
PartitionName=cap Default=NO State=UP TotalNodes=1 MaxCPUsPerNode=20 JobDefaults=(null)
"""
NODES = """\
gpu|4|96|1000000|gpu:h200:8(S:0-1)|node[1-4]|(null)
gpu|2|32|64000|gpu:a10:4|old[1-2]|slow,ib
told|1|64|64000|gpu:secret:4|odd1|(null)
cap|1|64|64000|gpu:4|plain1|gpu_a100_40gb
cpus|9|64|64000|(null)|c[1-9]|(null)
"""


def site(nodes: str = NODES) -> Site:
    return Site(parse_partitions(PARTITIONS), parse_nodes(nodes))


def found(**slurm: Any) -> tuple[str | None, int | None, str]:
    finding = look(site(), SlurmSpec(**slurm))
    return finding.gpu.key if finding.gpu else None, finding.cpus_per_task, finding.unknown


@pytest.mark.parametrize(
    ("slurm", "gpu", "cores"),
    [
        ({"gpus_per_node": 8}, "h200", 96),  # only those have eight
        ({"gpus_per_node": 4}, "a10", 32),  # either: the smaller GPU, the fewer cores
        ({"gpus_per_node": "h200:4"}, "h200", 48),
        ({"gpus_per_node": 2, "constraint": "ib&slow"}, "a10", 16),
        ({"gpus_per_node": 2, "constraint": "ib|fast"}, "a10", 16),
        ({"gpus_per_node": 2, "mem": "100G"}, "h200", 24),
        ({"gpus_per_node": 2, "exclude": "old[1-2],x"}, "h200", 24),
        ({"gpus_per_node": 2, "exclude": "old1"}, "a10", 16),
        ({"gpus_per_node": 2, "nodelist": "node3"}, "h200", 24),
        ({"gpus_per_node": 4, "cpus_per_task": 40}, "h200", None),
        ({"gpus_per_node": 4, "partition": "cap"}, "a100-40", 20),
        ({"gpus_per_node": 1, "partition": "cap"}, "a100-40", 16),
    ],
)
def test_the_planner_gets_the_smallest_gpu_and_the_fewest_cores_that_the_request_can_meet(
    slurm: dict[str, Any], gpu: str, cores: int | None
) -> None:
    assert found(**slurm) == (gpu, cores, "")


@pytest.mark.parametrize(
    ("slurm", "cores", "why"),
    [
        ({"gpus_per_node": 2, "partition": "told"}, 6, "gpu:secret:4 of partition 'told'"),
        ({"gpus_per_node": 2, "partition": "told,gpu"}, 6, "gpu:secret:4 of partition 'told'"),
        ({"gpus_per_node": 16}, None, "no node that Slurm lists can run this"),
        ({"gpus_per_node": 2, "partition": "cpus"}, None, "no node"),
        ({"gpus_per_node": 2, "partition": "nowhere"}, None, "no node"),
    ],
)
def test_what_slurm_does_not_tell_is_unknown(slurm: dict[str, Any], cores: int | None, why: str) -> None:
    gpu, has, unknown = found(**slurm)
    assert (gpu, has) == (None, cores)
    assert why in unknown


def test_a_known_type_in_the_request_needs_no_answer_of_slurm() -> None:
    finding = look(Site({}, (), "no answer"), SlurmSpec(gpus_per_node="h200:2"))
    assert finding.gpu == GPUS["h200"]
    assert (finding.cpus_per_task, finding.reasons[0].reason) == (None, "slurm.gpus_per_node: h200:2")


@pytest.mark.parametrize(
    ("gpu", "told"),
    [("h200", ""), ("141GiB", ""), ("h100", "the job says h100, and Slurm says NVIDIA H200"), ("24GiB", "24GiB")],
)
def test_the_jobs_own_gpu_counts_and_a_contradiction_is_reported(gpu: str, told: str) -> None:
    job = JobSpec(device="cuda", model=Model(path="/m"), slurm=SlurmSpec(gpus_per_node="h200:8", gpu=gpu))
    target = slurm_target(job, site=site())
    notes = [note for note in target.notes if note.startswith("slurm.gpu")]
    assert [told in note for note in notes] == ([True] if told else [])
    assert (target.gpu_name == "NVIDIA H200") == (gpu == "h200")


def test_the_plan_names_gpu_and_cores_with_their_reasons() -> None:
    job = JobSpec(device="cuda", program=("true",), slurm=SlurmSpec(gpus_per_node="h200:4"))
    made = plan(job, slurm_target(job, site=site()), run_id="r")
    assert {reason.setting: reason.value for reason in made.reasons} == {
        "slurm.gpu": "NVIDIA H200",
        "slurm.cpus_per_task": 48,
    }
    assert made.slurm is not None
    assert ["gpus-per-node", "h200:4"] in made.slurm["options"]
    assert ["cpus-per-task", "48"] in made.slurm["options"]
    assert "--cpus-per-task=48" in made.slurm["srun"]
    assert made.launch.world_size == 4


@pytest.mark.parametrize(
    ("slurm", "warned"),
    [
        ({"procs_per_node": 4}, True),
        ({"procs_per_node": 4, "cpus_per_task": 1}, True),
        ({"procs_per_node": 4, "cpus_per_task": 4}, False),
        ({"procs_per_node": 1}, False),
        ({"procs_per_node": 4, "sbatch": {"cpus-per-task": "4"}}, False),
    ],
)
def test_ranks_that_share_one_core_are_reported(slurm: dict[str, Any], warned: bool) -> None:
    job = JobSpec(device="cpu", program=("true",), slurm=SlurmSpec(**slurm))
    assert any("share one core" in note for note in slurm_target(job).notes) is warned


def test_what_the_shell_gives_sbatch_counts_where_the_job_leaves_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "cap")
    monkeypatch.setenv("SBATCH_CPUS_PER_GPU", "2")
    job = JobSpec(device="cuda", program=("true",), slurm=SlurmSpec(gpus_per_node=2))
    target = slurm_target(job, site=site())
    assert (target.gpu_name, target.cpus_per_task) == ("NVIDIA A100 40GB", None)


@pytest.mark.parametrize("constraint", ["[rack1|rack2]", "ib*2&slow*2", "(a|b)&c", "a&b|c", "!ib"])
def test_a_constraint_that_only_slurm_understands_leaves_every_node_in(constraint: str) -> None:
    assert len(able_kinds(site(), SlurmSpec(gpus_per_node=2, constraint=constraint))) == 2


class Answers:
    name = "answers"

    def __init__(self, **texts: str | None) -> None:
        self.texts = texts

    def run(self, argv: Sequence[str], **_: Any) -> Result:
        text = self.texts.get("_".join(word for word in argv[:3] if word.isalpha()))
        return Result(tuple(argv), 1 if text is None else 0, text or "", "" if text else "no answer", 0.0)


def test_cores_that_the_site_keeps_for_itself_are_not_requested() -> None:
    shell = Answers(
        scontrol_show_partition=PARTITIONS,
        sinfo=NODES,
        scontrol_show_node="NodeName=node1 CoreSpecCount=4 CPUEfctv=88 CPUTot=96 ThreadsPerCore=2\n"
        "NodeName=old1 CPUTot=32 CoreSpecCount=2 ThreadsPerCore=2\n",
    )
    cpus = {kind.names: kind.cpus for kind in ask(shell).kinds}  # type: ignore[arg-type]
    assert (cpus["node[1-4]"], cpus["old[1-2]"], cpus["odd1"]) == (88, 28, 64)


@pytest.mark.parametrize(("select", "noted"), [("linear", True), ("cons_res", False), ("cons_tres", False)])
def test_a_site_that_gives_no_gpus_is_noted_before_the_job_is_queued(select: str, noted: bool) -> None:
    config = f"SelectType              = select/{select}\nSelectTypeParameters    = CR_CORE\n"
    told = ask(Answers(scontrol_show_partition=PARTITIONS, scontrol_show_config=config, sinfo=NODES))  # type: ignore[arg-type]
    notes = look(told, SlurmSpec(gpus_per_node=2, mem="1G")).notes
    assert [note for note in notes if "select/linear" in note] == ([NO_GPUS] if noted else [])


def test_a_silent_sinfo_leaves_nodes_unknown_and_limits_known() -> None:
    told = ask(Answers(scontrol_show_partition=PARTITIONS))  # type: ignore[arg-type]
    assert (told.partitions["gpu"].max_nodes, told.partitions["gpu"].max_gpus, told.kinds) == (8, None, ())
    assert "no answer" in look(told, SlurmSpec(gpus_per_node=2)).unknown


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ("MaxArraySize            = 1001\nSchedulerParameters     = (null)\n", 1001),
        ("MaxArraySize = 5000\nSchedulerParameters = bf_continue,max_array_tasks=100,defer\n", 100),
        ("MaxArraySize = 0\n", None),
        ("", None),
    ],
)
def test_the_size_of_arrays_is_the_smaller_of_both_limits(config: str, most: int | None) -> None:
    assert parse_array_limit(config) == most


def test_indices_of_an_array_are_written_as_ranges() -> None:
    assert [ranges(indices) for indices in ([3], [0, 1, 2, 3], [0, 2, 3, 7])] == ["3", "0-3", "0,2-3,7"]
