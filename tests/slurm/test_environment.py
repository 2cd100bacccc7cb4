"""What the job says wins over what the shell says to Slurm, and the agents get what the batch script found."""

from __future__ import annotations

import pytest

from launcher.machine import installation
from tests.slurm.conftest import Zl, wait

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]


def test_variables_of_sbatch_do_not_override_the_job_and_are_reported(zl: Zl) -> None:
    zl.environ |= {
        "SBATCH_TIMELIMIT": "1", "SBATCH_PARTITION": "short", "SBATCH_JOB_NAME": "mine", "SBATCH_ARRAY_INX": "0-3",
        "SBATCH_HOLD": "1", "SBATCH_WAIT": "1", "SLURM_TIME_FORMAT": "relative",
        "SQUEUE_PARTITION": "none", "SLURM_CPU_BIND": "verbose",
    }  # fmt: skip
    run = zl.submit("sleep 60", "--partition", "gpu", "--time", "00:30:00")
    asked = ["squeue", "-h", "-j", run.record.ids[0], "-o", "%P %l %j %A"]
    assert zl.cluster.run(asked).stdout.split() == ["gpu", "30:00", run.run_id, run.record.ids[0]]
    wait(lambda: zl.state(run) == "RUNNING")  # a filter of squeue does not hide the job
    zl("cancel", str(run.path))
    left_open = zl.submit("sleep 60", "--detach")
    asked = ["squeue", "-h", "-j", left_open.record.ids[0], "-o", "%P %l"]
    assert zl.cluster.run(asked).stdout.split() == ["short", "1:00"]
    zl("cancel", str(left_open.path))
    output = zl("slurm", "--device", "cpu", "--time", "00:30:00", "--dry-run", "--", "true")
    assert "SBATCH_TIMELIMIT=1 of this shell has no effect" in output
    assert "SBATCH_PARTITION=short of this shell applies to the job" in output


@pytest.mark.parametrize("words", [["--sbatch", "export=NONE"], ["--sbatch", "export=PATH,HOME"], []])
def test_agents_meet_whatever_environment_the_job_begins_with(zl: Zl, words: list[str]) -> None:
    if not words:
        zl.environ["SBATCH_EXPORT"] = "NONE"
    run = zl.submit('echo "rank $RANK"', "--nodes", "2", *words)
    wait(lambda: zl.state(run) in ("SUCCEEDED", "FAILED"))
    assert zl.state(run) == "SUCCEEDED", run.path.joinpath("slurm.log").read_text()
    assert sorted(log.read_text().strip() for log in run.logs_dir.glob("node-*/rank-*.log")) == ["rank 0", "rank 1"]


def test_an_agent_whose_first_node_did_not_come_through_refuses_the_placeholder(zl: Zl) -> None:
    """A site's own template may pass nothing on."""
    own = zl.home / "own.sbatch.j2"
    text = (installation.path("slurm") / "train.sbatch.j2").read_text(encoding="utf-8")
    own.write_text(text.replace("srun {{ slurm.srun | sh }}", "srun {{ slurm.srun | sh }} --export=PATH,HOME"))
    run = zl.submit("true", "--nodes", "2", "--template", str(own))
    wait(lambda: zl.state(run) == "FAILED")
    assert "ZLAUNCH_MASTER_ADDR did not come" in run.path.joinpath("slurm.log").read_text()
