"""SBATCH_ and SLURM_ variables of the user's shell never override what the batch script says."""

from __future__ import annotations

import subprocess

import pytest

from launcher.backends.slurm.sbatch_variables import CLEAN, is_foreign, notes, overruled, script_options

SCRIPT = """#!/bin/bash
# a run
#SBATCH --job-name=x
#SBATCH -p gpu
#SBATCH --time="1:00"
#SBATCH   --mem=4G
#SBATCH --no-requeue

echo
#SBATCH --account=too-late
"""


def test_options_are_those_before_the_first_command() -> None:
    assert script_options(SCRIPT) == {"job-name", "partition", "time", "mem", "no-requeue"}


@pytest.mark.parametrize(
    "name",
    ["SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SBATCH_JOB_NAME", "SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU",
     "SBATCH_REQUEUE", "SBATCH_ARRAY_INX", "SBATCH_WAIT", "SBATCH_OUTPUT",
     "SBATCH_ERROR", "SBATCH_GPUS", "SBATCH_GRES", "SBATCH_SIGNAL"],
)  # fmt: skip
def test_variables_of_options_that_the_script_has_or_zlaunch_owns_are_taken_away(name: str) -> None:
    assert name in overruled(script_options(SCRIPT))


@pytest.mark.parametrize(
    "name", ["SBATCH_ACCOUNT", "SBATCH_QOS", "SBATCH_CONSTRAINT", "SBATCH_EXPORT", "SBATCH_COMMENT"]
)
def test_variables_of_what_the_script_leaves_open_count(name: str) -> None:
    assert name not in overruled(script_options(SCRIPT))


def test_both_are_reported() -> None:
    assert notes({"SBATCH_QOS": "low", "SBATCH_TIMELIMIT": "5", "HOME": "/"}, ["time"]) == (
        "SBATCH_QOS=low of this shell applies to the job, which leaves it open",
        "SBATCH_TIMELIMIT=5 of this shell has no effect: the job says otherwise",
    )


def test_what_describes_another_job_or_filters_answers_is_taken_away_here_and_on_a_login_host() -> None:
    names = ["SLURM_JOB_ID", "SLURM_CPU_BIND", "SLURM_TIME_FORMAT", "SQUEUE_PARTITION", "SACCT_FORMAT",
             "SCANCEL_INTERACTIVE", "SLURM_CONF", "SLURM_CLUSTERS", "SBATCH_ACCOUNT", "MY_SLURM_X"]  # fmt: skip
    kept = ["MY_SLURM_X", "SBATCH_ACCOUNT", "SLURM_CLUSTERS", "SLURM_CONF"]
    assert sorted(name for name in names if not is_foreign(name)) == kept
    environ = {**dict.fromkeys(names, "1"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", f"{CLEAN}; env"], env=environ, capture_output=True, text=True, check=True)
    assert (
        sorted(
            line.partition("=")[0] for line in done.stdout.splitlines() if line.endswith("=1") and "SHLVL" not in line
        )
        == kept
    )
