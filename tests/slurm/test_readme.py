"""The README's lines for Slurm on a real cluster, word for word except for the cluster's size."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launcher.rundir.directory import RunDir
from tests.slurm.conftest import Zl
from tests.train.conftest import write_records

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]
OUR_SIZE = {"8": "2", "04:00:00": "00:30:00"}
"""Four nodes of eight GPUs for four hours are more than the test cluster has."""


def zlaunch_lines(readme: str) -> list[list[str]]:
    """Return the words of the page's `zlaunch init` and `zlaunch slurm`."""
    lines = (ROOT / readme).read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if re.match(r"zlaunch (init|slurm) ", line)]
    return [[OUR_SIZE.get(word, word) for word in shlex.split(line, comments=True)[1:]] for line in wanted]


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_lines_of_the_readme_lead_to_a_queued_job_of_four_nodes(zl: Zl, readme: str) -> None:
    init, slurm = zlaunch_lines(readme)
    zl(*init)
    job = zl.home / "job.yaml"
    (zl.home / "data").mkdir()
    text = job.read_text(encoding="utf-8")
    for name in re.findall(r"data/\w+\.jsonl", text):
        write_records(zl.home / name, 80)
    assert "#SBATCH --nodes=4" in zl(*slurm, "--print-script")
    zl(*slurm, "--detach")
    run = RunDir(max(zl.runs.glob("*/run.json")).parent)
    assert run.record.ids[0].isdigit()
    assert run.run_id in zl("status", "last")
    assert zl.cluster.run(["scontrol", "show", "job", run.record.ids[0]]).stdout.count("NumNodes=4") == 1
