# SPDX-License-Identifier: BSD-3-Clause
"""slurmrestd's dialects, v0.0.38 as 22.05.8 speaks it and v0.0.39 to v0.0.46 as documented, become the same plain values."""

from __future__ import annotations

import json
from typing import Any, Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_banking.records import UNLIMITED
from slurm_banking.slurm.rest import flatten
from slurm_banking.slurm.rest.flatten import Problem
from slurm_banking.tres import Tres


def tri(value: Any = 0, *, is_set: bool = True, infinite: bool = False) -> Dict[str, Any]:
    return {"set": is_set, "infinite": infinite, "number": value}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, 5),
        (0, 0),
        ("17", 17),
        (3.0, 3),
        (tri(5), 5),
        ({"number": 5}, 5),
        (None, None),
        ("", None),
        (tri(0, is_set=False), None),
        (tri(4294967294, is_set=False), None),
        ({"set": True, "infinite": False}, None),
        (2**32 - 2, None),
        (2**64 - 2, None),
        (-2, None),
        (tri(0, infinite=True), UNLIMITED),
        (tri(0, is_set=False, infinite=True), UNLIMITED),
        (2**32 - 1, UNLIMITED),
        (2**64 - 1, UNLIMITED),
        (-1, UNLIMITED),
    ],
)
def test_a_number_is_the_same_in_every_dialect(value: Any, expected: Any) -> None:
    assert flatten.number(value) == expected


@pytest.mark.parametrize("value", ["five", "1.5", "٣", [5], {"number": "x"}, "9" * 30])
def test_what_is_no_number_is_not_guessed(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        flatten.number(value)


def test_a_time_that_has_not_come_is_none_in_every_dialect() -> None:
    for value in (0, None, tri(0), tri(0, is_set=False), 2**32 - 2, tri(0, infinite=True)):
        assert flatten.time_of(value) is None
    assert flatten.time_of(1795295849) == flatten.time_of(tri(1795295849)) == 1795295849


@pytest.mark.parametrize(
    ("value", "states"),
    [
        ("PENDING", ("PENDING",)),
        (["PENDING", "REQUEUED"], ("PENDING", "REQUEUED")),
        ("idle", ("IDLE",)),
        ("IDLE+DRAIN", ("IDLE", "DRAIN")),
        (None, ()),
        ([None, "RUNNING"], ("RUNNING",)),
    ],
)
def test_states_are_words_in_upper_case(value: Any, states: Any) -> None:
    assert flatten.states(value) == states


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("REQUEUED", "REQUEUED"),
        (["PENDING", "REQUEUED"], "REQUEUED"),
        (["RUNNING", "RESIZING"], "RESIZING"),
        (["COMPLETED"], "COMPLETED"),
        (["CANCELLED", "COMPLETING"], "COMPLETING"),
        ([], ""),
    ],
)
def test_of_several_states_the_one_that_slurms_commands_show_is_taken(
    value: Any, word: str
) -> None:
    assert flatten.shown_state(value) == word


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"error_number": 2017, "error": "Invalid job id"}, Problem(2017, "Invalid job id")),
        ({"error_code": 2050, "error": "Job violates"}, Problem(2050, "Job violates")),
        ({"errno": 5, "error": "Input/output error"}, Problem(5, "Input/output error")),
        ({"error": 9000}, Problem(9000, "error without a text")),
        ({"error_number": -1, "error": "Unspecified error"}, Problem(-1, "Unspecified error")),
        (
            {"error_number": 2017, "error": "Invalid job id", "description": "no job 7"},
            Problem(2017, "no job 7: Invalid job id"),
        ),
        (
            {"description": "cannot end 7: Invalid job id", "error": "Invalid job id"},
            Problem(None, "cannot end 7: Invalid job id"),
        ),
        ("plain text\nof two lines", Problem(None, "plain text of two lines")),
    ],
)
def test_an_error_has_one_number_and_one_line_whatever_its_keys(row: Any, problem: Problem) -> None:
    assert flatten.problems([row]) == (problem,)


def test_a_submission_with_a_job_id_is_one_even_with_errors() -> None:
    old = {"job_id": 7, "job_submit_user_msg": "up to 1 SU", "errors": [{"error_code": 2068}]}
    new = {
        "result": {"job_id": 7, "job_submit_user_msg": "up to 1 SU"},
        "errors": [],
        "warnings": [{"description": "node is down", "source": "x"}],
    }
    for body, problem in (
        (old, Problem(2068, "error without a text")),
        (new, Problem(None, "node is down")),
    ):
        told = flatten.submitted(body)
        assert told is not None
        assert (told.job_id, told.message, told.problems) == (7, "up to 1 SU", (problem,))


def test_a_submission_without_a_job_id_is_none() -> None:
    assert flatten.submitted({"job_id": 0, "errors": []}) is None
    assert flatten.submitted({"errors": [{"error_code": 2050}]}) is None


def test_resources_allocated_are_read_alike_from_text_and_from_the_databases_list() -> None:
    listed = [
        {"type": "cpu", "name": None, "id": 1, "count": 4},
        {"type": "mem", "name": "", "id": 2, "count": 8000},
        {"type": "node", "name": None, "id": 4, "count": 2},
        {"type": "billing", "name": None, "id": 5, "count": 4},
        {"type": "gres", "name": "gpu", "id": 1001, "count": 3},
        {"type": "gres", "name": "gpu:a100", "id": 1002, "count": 2},
        {"type": "license", "name": 'a=b,cpu=9,"', "id": 1003, "count": 1},
        {"type": "fs", "name": "disk", "id": 6, "count": 2**64 - 2},
    ]
    text = flatten.tres_text(listed)
    assert text == "cpu=4,mem=8000,node=2,billing=4,gres/gpu=3,gres/gpu:a100=2"
    from slurm_banking.tres import parse_tres

    assert parse_tres(text) == Tres(
        cpus=4, memory_mb=8000, nodes=2, billing=4, gpus=(("", 1), ("a100", 2))
    )
    assert parse_tres(flatten.tres_text([])) == Tres()


FLAT = {
    "name": "main",
    "state": "UP",
    "nodes": "n[1-2]",
    "total_nodes": 2,
    "total_cpus": 16,
    "default_time_limit": None,
    "max_time_limit": -1,
    "flags": ["default"],
}
GROUPED = {
    "name": "main",
    "partition": {"state": ["UP"]},
    "nodes": {"configured": "n[1-2]", "total": 2},
    "cpus": {"total": 16},
    "defaults": {"time": tri(0, is_set=False)},
    "maximums": {"time": tri(0, infinite=True)},
}


def test_a_partition_is_the_same_flat_and_in_groups() -> None:
    old, new = flatten.partition(FLAT), flatten.partition(GROUPED)
    assert old.default is True and new.default is None
    for told in (old, new):
        assert (told.name, told.states, told.nodes) == ("main", ("UP",), "n[1-2]")
        assert (told.total_nodes, told.total_cpus) == (2, 16)
        assert (told.default_time_min, told.max_time_min) == (None, UNLIMITED)


def test_a_node_has_its_base_state_first() -> None:
    old = flatten.node({"name": "n1", "state": "idle", "state_flags": ["DRAIN"], "cpus": 8})
    new = flatten.node({"name": "n1", "state": ["IDLE", "DRAIN"], "cpus": 8})
    assert old.states == new.states == ("IDLE", "DRAIN")


JOB_38 = {
    "job_id": 12,
    "name": "x",
    "user_id": 1001,
    "user_name": "sb-alice",
    "job_state": "RUNNING",
    "time_limit": 5,
    "submit_time": 1795295849,
    "start_time": 1795295850,
    "end_time": 0,
    "array_job_id": 0,
    "array_task_id": None,
    "het_job_id": 0,
    "het_job_offset": 0,
    "restart_cnt": 1,
    "cpus": 2,
    "tres_alloc_str": "cpu=2,mem=100M,node=1,billing=2",
}
JOB_42 = {
    **JOB_38,
    "job_state": ["RUNNING"],
    "time_limit": tri(5),
    "submit_time": tri(1795295849),
    "start_time": tri(1795295850),
    "end_time": tri(0),
    "array_job_id": tri(0),
    "array_task_id": tri(0, is_set=False),
    "het_job_id": tri(0),
    "het_job_offset": tri(0),
    "cpus": tri(2),
}


def test_a_queued_job_is_the_same_in_both_dialects() -> None:
    job = flatten.queue_job(JOB_38)
    assert job == flatten.queue_job(JOB_42)
    assert (job.state, job.time_limit_min, job.end_time) == ("RUNNING", 5, None)
    assert (job.array_job_id, job.het_job_id, job.het_job_offset) == (None, None, None)
    assert job.tres == Tres(cpus=2, memory_mb=100, nodes=1, billing=2)


def test_the_first_component_of_a_het_job_and_the_first_task_of_an_array_are_not_lost() -> None:
    job = flatten.queue_job({**JOB_38, "het_job_id": 12, "het_job_offset": 0})
    assert (job.het_job_id, job.het_job_offset) == (12, 0)
    task = flatten.queue_job({**JOB_42, "array_job_id": tri(12), "array_task_id": tri(0)})
    assert (task.array_job_id, task.array_task_id) == (12, 0)


def test_a_ping_is_up_in_every_dialect() -> None:
    old = {"pings": [{"hostname": "ctl", "ping": "UP", "status": 0, "mode": "primary"}]}
    new = {"pings": [{"hostname": "ctl", "pinged": "UP", "latency": 90, "mode": "primary"}]}
    newest = {"pings": [{"hostname": "ctl", "responding": True, "mode": "primary"}]}
    assert flatten.pings(old) == flatten.pings(new) == flatten.pings(newest)
    assert flatten.pings(old)[0].up
    assert not flatten.pings({"pings": [{"hostname": "ctl", "ping": "DOWN"}]})[0].up


def test_figures_lose_their_wrapping() -> None:
    body = {"statistics": {"jobs_pending": 3, "req_time": tri(5), "rpcs": [{"count": tri(1)}]}}
    assert flatten.statistics(body) == {"jobs_pending": 3, "req_time": 5, "rpcs": [{"count": 1}]}


@pytest.mark.parametrize("given", [{"PATH": "/bin", "A": "x=y"}, ["PATH=/bin", "A=x=y"]])
def test_a_jobs_environment_is_sent_as_the_version_wants_it(given: Any) -> None:
    body = {"job": {"name": "x", "environment": given}, "script": "#!/bin/sh"}
    old = flatten.job_request(body, 38)
    assert old["job"]["environment"] == {"PATH": "/bin", "A": "x=y"}
    assert flatten.job_request(body, 39)["job"]["environment"] == ["PATH=/bin", "A=x=y"]
    assert old["script"] == "#!/bin/sh" and body["job"]["environment"] is given


@pytest.mark.parametrize(
    "body", [{}, {"job": []}, {"job": {"environment": "PATH"}}, {"job": {"environment": ["PATH"]}}]
)
def test_what_is_no_submission_is_not_sent(body: Any) -> None:
    with pytest.raises(ValueError, match="submission|environment"):
        flatten.job_request(body, 38)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["set", "infinite", "number", "job_id", "name", "errors", "error", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(json_values)
def test_no_answer_whatever_it_is_breaks_more_than_the_reading_of_it(value: Any) -> None:
    body = {name: value for name in ("errors", "pings", "statistics", "job_id", "result", "nodes")}
    row = {name: value for name in {*JOB_38, *FLAT, *GROUPED}}
    json.dumps([str(problem) for problem in flatten.problems(value)])
    for read in (
        lambda: flatten.pings(body),
        lambda: flatten.statistics(body),
        lambda: flatten.submitted(body),
        lambda: flatten.queue_job(row),
        lambda: flatten.partition(row),
        lambda: flatten.node(row),
        lambda: flatten.tres_text(value),
    ):
        try:
            read()
        except ValueError:
            pass
