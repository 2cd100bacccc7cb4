"""What Slurm's tools print, in the shapes of old and new versions."""

import json
import time

import pytest

from launcher.backends.slurm.states import expand, parse_json, parse_sacct, parse_squeue, run_state
from launcher.rundir.state import RunState

OLD_SQUEUE = {  # squeue --json of Slurm 22.05, cut to what matters
    "jobs": [
        {"job_id": 17, "array_job_id": 16, "array_task_id": 0, "array_task_string": "", "job_state": "RUNNING",
         "state_reason": "None", "start_time": 1795477713, "nodes": "node1", "exit_code": 0},
        {"job_id": 16, "array_job_id": 16, "array_task_id": None, "array_task_string": "2-3%2",
         "job_state": "PENDING", "state_reason": "JobArrayTaskLimit", "start_time": 0, "nodes": "", "exit_code": 0},
        {"job_id": 20, "array_job_id": 0, "array_task_id": None, "array_task_string": "", "job_state": "NODE_FAIL",
         "state_reason": "None", "start_time": 1795477713, "nodes": "node[2-3]", "exit_code": 256},
    ]
}  # fmt: skip


def number(value: int | None) -> dict[str, object]:
    """A number as Slurm 23.02 and later write it."""
    return {"set": value is not None, "infinite": False, "number": value or 0}


NEW_SQUEUE = {
    "jobs": [
        {"job_id": 17, "array_job_id": number(16), "array_task_id": number(0), "array_task_string": "",
         "job_state": ["RUNNING"], "state_reason": "None", "start_time": number(1795477713), "nodes": "node1",
         "exit_code": {"status": ["SUCCESS"], "return_code": number(0)}},
        {"job_id": 16, "array_job_id": number(16), "array_task_id": number(None), "array_task_string": "2-3%2",
         "job_state": ["PENDING"], "state_reason": "JobArrayTaskLimit", "start_time": number(0), "nodes": "",
         "exit_code": {"status": ["SUCCESS"], "return_code": number(0)}},
        {"job_id": 20, "array_job_id": number(0), "array_task_id": number(None), "array_task_string": "",
         "job_state": ["NODE_FAIL", "COMPLETING"], "state_reason": "None", "start_time": number(1795477713),
         "nodes": "node[2-3]", "exit_code": {"status": ["ERROR"], "return_code": number(1)}},
    ]
}  # fmt: skip


@pytest.mark.parametrize("document", [OLD_SQUEUE, NEW_SQUEUE], ids=["words", "lists"])
def test_squeue_json_of_old_and_new_versions_says_the_same(document: dict[str, object]) -> None:
    jobs = parse_json(json.dumps(document))
    assert {job_id: info.native for job_id, info in jobs.items()} == {
        "16_0": "RUNNING",
        "16_2": "PENDING",
        "16_3": "PENDING",
        "20": "NODE_FAIL",
    }
    assert jobs["16_0"].start == 1795477713.0
    assert jobs["16_0"].nodes == "node1"
    assert jobs["16_0"].reason == ""
    assert jobs["16_3"].reason == "JobArrayTaskLimit"
    assert jobs["16_3"].start is None
    assert jobs["20"].state is RunState.FAILED


OLD_SACCT = {
    "jobs": [
        {"job_id": 31, "array": {"job_id": 0, "task_id": None}, "state": {"current": "CANCELLED", "reason": "None"},
         "time": {"start": 1795477713}, "nodes": "node1", "exit_code": {"status": "SUCCESS", "return_code": 0}},
        {"job_id": 33, "array": {"job_id": 32, "task_id": 1},
         "state": {"current": "FAILED", "reason": "NonZeroExitCode"},
         "time": {"start": 1795477713}, "nodes": "node2", "exit_code": {"status": "ERROR", "return_code": 3}},
    ]
}  # fmt: skip
NEW_SACCT = {
    "jobs": [
        {"job_id": 31, "array": {"job_id": 0, "task_id": number(None), "task": ""},
         "state": {"current": ["CANCELLED"], "reason": "None"}, "time": {"start": 1795477713}, "nodes": "node1",
         "exit_code": {"status": ["SUCCESS"], "return_code": number(0)}},
        {"job_id": 33, "array": {"job_id": 32, "task_id": number(1), "task": ""},
         "state": {"current": ["FAILED"], "reason": "NonZeroExitCode"}, "time": {"start": 1795477713}, "nodes": "node2",
         "exit_code": {"status": ["ERROR"], "return_code": number(3)}},
    ]
}  # fmt: skip


@pytest.mark.parametrize("document", [OLD_SACCT, NEW_SACCT], ids=["words", "lists"])
def test_sacct_json_of_old_and_new_versions_says_the_same(document: dict[str, object]) -> None:
    jobs = parse_json(json.dumps(document))
    assert jobs["31"].state is RunState.CANCELLED
    assert (jobs["32_1"].native, jobs["32_1"].exit_code, jobs["32_1"].reason) == ("FAILED", 3, "NonZeroExitCode")


def test_text_that_is_no_list_of_jobs_is_an_error() -> None:
    for text in ("", "slurm_load_jobs error", "[]", '{"jobs": 3}'):
        with pytest.raises(ValueError):
            parse_json(text)


def test_squeue_text_gives_state_start_nodes_and_a_reason_that_may_hold_anything() -> None:
    text = (
        "12|RUNNING|2026-11-23T23:48:32|node[1-4]|None\n"
        "13|PENDING|N/A||(Nodes required for job are DOWN, DRAINED | or reserved)\n"
        "16_[2-3,7%2]|PENDING|2026-11-24T01:00:00||Resources\n\n"
    )
    jobs = parse_squeue(text)
    assert jobs["12"].start == time.mktime((2026, 11, 23, 23, 48, 32, 0, 0, -1))
    assert jobs["13"].reason == "Nodes required for job are DOWN, DRAINED | or reserved"
    assert [job_id for job_id in jobs if job_id.startswith("16")] == ["16_2", "16_3", "16_7"]


def test_sacct_text_leaves_out_steps_and_reads_cancelled_by() -> None:
    text = (
        "5|CANCELLED by 1000|2026-11-23T23:48:32|None assigned|0:15|None\n"
        "6|OUT_OF_MEMORY|Unknown|node1|0:125|\n6.batch|FAILED|Unknown|node1|1:0|\n"
    )
    jobs = parse_sacct(text)
    assert set(jobs) == {"5", "6"}
    assert (jobs["5"].native, jobs["5"].state, jobs["5"].nodes) == ("CANCELLED", RunState.CANCELLED, "")
    assert jobs["6"].state is RunState.FAILED


@pytest.mark.parametrize(
    ("native", "state"),
    [
        ("REQUEUED", RunState.PENDING),
        ("COMPLETING", RunState.RUNNING),
        ("CANCELLED+", RunState.CANCELLED),
        ("preempted", RunState.FAILED),
        (["PENDING", "REQUEUED"], RunState.PENDING),
        (["RUNNING", "COMPLETING"], RunState.RUNNING),
    ],
)
def test_states_are_a_table(native: str, state: RunState) -> None:
    assert run_state(native) is state


def test_a_state_of_a_later_slurm_does_not_end_a_run() -> None:
    assert run_state("HIBERNATING") is RunState.RUNNING


def test_array_ids_with_steps_and_limits_are_spread_out() -> None:
    assert list(expand("7_[0-8:4,11%3]")) == ["7_0", "7_4", "7_8", "7_11"]
    assert list(expand("7_4")) == ["7_4"]
