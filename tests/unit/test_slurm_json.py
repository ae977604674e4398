# SPDX-License-Identifier: BSD-3-Clause
"""slurmdbd's JSON, from ``sacct --json`` and slurmrestd: the same runs as sacct's columns tell.

The v0.0.38 shape is what 22.05.8 printed; that of v0.0.42 (numbers with "set", states as lists) is made from its description.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any, Dict, List, Mapping, Optional, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_banking.errors import SlurmUnavailable
from slurm_banking.records import UNKNOWN_RESTART, UNLIMITED, Run
from slurm_banking.slurm.accounting import Row
from slurm_banking.slurm.json_rows import PIECE_ROWS, Pieces, Uids
from slurm_banking.slurm.rest import RestTooMuch
from slurm_banking.slurm.sacct import Sacct
from slurm_banking.slurm.sacct_json import SacctJson
from slurm_banking.tres import Tres

ALL = (1795261000, 1795262000)
UIDS = {"root": 0, "sb-alice": 1001, "sb-bob": 1002, "sb-oper": 1005}


def job_38(**changes: Any) -> Dict[str, Any]:
    job: Dict[str, Any] = {
        "account": "fc_alpha",
        "comment": {"administrator": None, "job": None, "system": None},
        "allocation_nodes": 1,
        "array": {"job_id": 0, "task": None, "task_id": None},
        "association": {"account": "fc_alpha", "cluster": "rig", "user": "sb-alice"},
        "cluster": "rig",
        "time": {
            "elapsed": 4,
            "eligible": 1795261164,
            "submission": 1795261164,
            "start": 1795261165,
            "end": 1795261169,
            "suspended": 0,
            "limit": 5,
        },
        "het": {"job_id": 0, "job_offset": None},
        "job_id": 1,
        "name": 'x","job_id":7,"jobs":[{',
        "nodes": "n1",
        "partition": "main",
        "qos": "normal",
        "required": {"CPUs": 2, "memory": 2600},
        "kill_request_user": None,
        "state": {"current": "COMPLETED", "reason": "None"},
        "steps": [],
        "tres": {
            "allocated": [
                {"type": "cpu", "name": None, "id": 1, "count": 2},
                {"type": "mem", "name": None, "id": 2, "count": 2600},
                {"type": "node", "name": None, "id": 4, "count": 1},
                {"type": "billing", "name": None, "id": 5, "count": 2},
            ],
            "requested": [{"type": "cpu", "name": None, "id": 1, "count": 2}],
        },
        "user": "sb-alice",
    }
    for path, value in changes.items():
        place = job
        *groups, last = path.split("__")
        for group in groups:
            place = place[group]
        place[last] = value
    return job


def tri(value: Any) -> Dict[str, Any]:
    if value is None:
        return {"set": False, "infinite": False, "number": 0}
    return {"set": True, "infinite": value == UNLIMITED, "number": max(value, 0)}


def job_42(job: Mapping[str, Any]) -> Dict[str, Any]:
    """The same job as a newer release says it."""
    new = copy.deepcopy(dict(job))
    new["time"]["limit"] = tri(job["time"]["limit"])
    new["array"]["task_id"] = tri(job["array"]["task_id"])
    new["het"]["job_offset"] = tri(job["het"]["job_offset"])
    new["state"]["current"] = [job["state"]["current"]]
    if job["state"]["current"] == "REQUEUED":
        new["state"]["current"] = ["PENDING", "REQUEUED"]
    new["kill_request_user"] = job["kill_request_user"] or ""
    for comment in ("administrator", "job", "system"):
        new["comment"][comment] = job["comment"][comment] or ""
    for row in (*new["tres"]["allocated"], *new["tres"]["requested"]):
        row["name"] = row["name"] or ""
    return new


class Recorded:
    """sacct --json, which answers with these jobs."""

    def __init__(
        self, jobs: Sequence[Any], errors: Sequence[Any] = (), text: Optional[str] = None
    ) -> None:
        meta = {"plugin": {"type": "openapi/dbv0.0.38"}}
        body = {"meta": meta, "errors": list(errors), "jobs": list(jobs)}
        self.text = json.dumps(body, indent=2) if text is None else text
        self.calls: List[Sequence[str]] = []
        self.environment: Mapping[str, str] = {}

    def __call__(self, argv: Sequence[str], **others: Any) -> str:
        self.calls.append(argv)
        self.environment = others["extra_env"]
        return self.text


def source(run: Recorded, operators: Sequence[int] = (0, 1005)) -> SacctJson:
    return SacctJson("rig", run=run, operators=lambda: operators, uids=Uids(UIDS.__getitem__))


def ended(*jobs: Any) -> List[Run]:
    return list(source(Recorded(jobs)).read_ended_runs(*ALL))


#: Of sacct's columns, and the same of its JSON, both as 22.05.8 printed them.
COLUMNS = (
    "1~s~{shown}~s~1001~s~sb-alice~s~fc_alpha~s~{partition}~s~normal~s~{state}~s~1795261164~s~{start}~s~1795261169~s~"
    "{elapsed}~s~{cpus}~s~{nodes}~s~{tres}~s~{names}~s~{limit}~s~{comment}~s~\n"
)
PLAIN = {
    "shown": "1",
    "partition": "main",
    "state": "COMPLETED",
    "start": "1795261165",
    "elapsed": "4",
    "cpus": "2",
    "nodes": "1",
    "tres": "billing=2,cpu=2,mem=2600M,node=1",
    "names": "n1",
    "limit": "5",
    "comment": "",
}
NEVER_STARTED_38 = {
    "state__current": "CANCELLED",
    "time__elapsed": 0,
    "time__start": 1795261169,
    "nodes": "None assigned",
    "allocation_nodes": 0,
    "tres__allocated": [],
}
NEVER_STARTED = {
    "elapsed": "0",
    "start": "1795261169",
    "nodes": "0",
    "tres": "",
    "names": "None assigned",
}

SAME = {
    "completed": ({}, {}),
    "failed": ({"state__current": "FAILED"}, {"state": "FAILED"}),
    "requeued": ({"state__current": "REQUEUED"}, {"state": "REQUEUED"}),
    "suspended time": ({"time__elapsed": 1, "time__suspended": 3}, {"elapsed": "1"}),
    "ended by an operator": (
        {"state__current": "CANCELLED", "kill_request_user": "sb-oper"},
        {"state": "CANCELLED by 1005"},
    ),
    "ended by its user": (
        {"state__current": "CANCELLED", "kill_request_user": "sb-alice"},
        {"state": "CANCELLED by 1001"},
    ),
    "ended by nobody known": (
        {"state__current": "CANCELLED", "kill_request_user": None},
        {"state": "CANCELLED by 4294967294"},
    ),
    "never started": (NEVER_STARTED_38, {**NEVER_STARTED, "state": "CANCELLED"}),
    "never had a start": (
        {**NEVER_STARTED_38, "time__start": 0},
        {**NEVER_STARTED, "state": "CANCELLED", "start": "Unknown"},
    ),
    "a task": ({"array__job_id": 9, "array__task_id": 0}, {"shown": "9_0"}),
    "the last tasks": ({"array__job_id": 9, "array__task": "4-9"}, {"shown": "9_[4-9]"}),
    "a component": ({"het__job_id": 1, "het__job_offset": 0}, {"shown": "1+0"}),
    "without a limit": ({"time__limit": None}, {"limit": "Partition_Limit"}),
    "an admin comment": (
        {"comment__administrator": 'x\n"y"\t€'},
        {"comment": 'x\n"y"\t€'},
    ),
    "with GPUs": (
        {
            "tres__allocated": [
                {"type": "cpu", "name": None, "id": 1, "count": 2},
                {"type": "gres", "name": "gpu", "id": 1001, "count": 2},
                {"type": "gres", "name": "gpu:a100", "id": 1002, "count": 2},
            ]
        },
        {"tres": "cpu=2,gres/gpu:a100=2,gres/gpu=2"},
    ),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("newer", [False, True], ids=["v0.0.38", "v0.0.42"])
def test_a_run_is_the_same_from_json_and_from_columns(name: str, newer: bool) -> None:
    changes, columns = SAME[name]

    def run_sacct(argv: Sequence[str], **_: Any) -> str:
        if "--helpformat" in argv:
            return "JobID"
        (separator,) = (word[12:] for word in argv if word.startswith("--delimiter="))
        return COLUMNS.format(**{**PLAIN, **columns}).replace("~s~", separator)

    job = job_38(**changes)
    told = ended(job_42(job) if newer else job)
    expected = Sacct("rig", run=run_sacct, operators=lambda: (0, 1005)).read_ended_runs(*ALL)
    assert len(told) == 1 and told == list(expected)


def test_a_limit_of_unlimited_is_told_by_newer_releases_only() -> None:
    (new,) = ended(job_42(job_38(time__limit=UNLIMITED)))
    (old,) = ended(job_38(time__limit=None))
    assert new.time_limit_min == UNLIMITED and old == replace(new, time_limit_min=None)


def test_a_restart_count_is_taken_where_it_is_told() -> None:
    assert ended(job_38())[0].restart_count == UNKNOWN_RESTART
    assert ended({**job_42(job_38()), "restart_cnt": 3})[0].restart_count == 3
    assert source(Recorded([job_38()])).read_jobs([1])[1][0].restart_count == 0


def test_a_task_id_without_an_array_is_none() -> None:
    (run,) = ended(job_38(array__task_id=0))
    assert (run.array_job_id, run.array_task_id) == (None, None)


def test_a_row_without_a_partition_waits() -> None:
    assert ended(job_38(partition="")) == [] == ended(job_38(partition=None))


def test_a_running_job_has_no_end() -> None:
    (run,) = source(Recorded([job_38(state__current="RUNNING", time__end=0)])).read_jobs([1])[1]
    assert run.started and run.end_time is None
    (open_run,) = source(Recorded([job_38(state__current="RUNNING", time__end=0)])).read_open_runs(
        ALL[1]
    )
    assert open_run.job_id == run.job_id


def test_a_resized_run_is_put_together() -> None:
    first = job_38(state__current="RESIZING", time__end=1795261167, time__elapsed=2)
    second = job_38(time__submission=1795261167, time__elapsed=4)
    second["tres"]["allocated"][0]["count"] = 1
    (run,) = ended(first, second)
    assert (run.submit_time, run.elapsed_s, run.tres.cpus) == (1795261164, 4, 1)
    assert [(part.tres.cpus, part.seconds) for part in run.segments] == [(2, 2), (1, 2)]


def test_an_open_run_that_was_resized_after_the_window_is_given_whole() -> None:
    first = job_38(state__current="RESIZING", time__end=1795261167, time__elapsed=2)
    second = job_38(
        state__current="RUNNING", time__submission=1795261167, time__elapsed=9, time__end=0
    )
    window, both = Recorded([first]), Recorded([first, second])

    def run_sacct(argv: Sequence[str], **others: Any) -> str:
        """The later row was submitted, by the resize, after the window."""
        return (both if "--jobs" in argv else window)(argv, **others)

    slurm = SacctJson("rig", run=run_sacct, uids=Uids(UIDS.__getitem__))
    (run,) = slurm.read_open_runs(1795261166)
    assert (run.submit_time, run.start_time, run.end_time) == (1795261164, 1795261165, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"user": "sb-gone"}, "job 1: user 'sb-gone' is not known on this host"),
        ({"user": None, "association": None}, "job 1: slurmdbd does not tell its user"),
        ({"job_id": None}, "job None: it has no job_id"),
        ({"state__current": None}, "job 1: it has no state"),
        ({"time__elapsed": "4 s"}, "job 1: '4 s' is not a number"),
        ({"tres__allocated": [{"count": 1}]}, "job 1: .* a resource without a type"),
    ],
)
def test_a_job_that_cannot_be_read_is_named_and_nothing_is_used(changes: Any, said: str) -> None:
    with pytest.raises(SlurmUnavailable, match=f"^sacct --json: {said}"):
        ended(job_38(), job_38(**changes))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text[:-1],
        lambda text: text + "}",
        lambda text: "sacct: error: slurmdbd is away",
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"jobs"', '"job"'),
        lambda text: text.replace('"jobs": [', '"jobs": [1,'),
        lambda text: text.replace('"jobs": [', '"jobs": [,'),
    ],
)
def test_an_answer_that_cannot_be_read_whole_is_not_used(damage: Any) -> None:
    text = Recorded([job_38()]).text
    assert damage(text) != text
    with pytest.raises(SlurmUnavailable, match="^sacct --json: "):
        source(Recorded([], text=damage(text))).read_ended_runs(*ALL)


def test_an_error_beside_an_empty_list_is_no_empty_list() -> None:
    away = [{"error_number": 7002, "error": "Unable to connect to database", "source": "x"}]
    with pytest.raises(SlurmUnavailable, match=r"Unable to connect to database \(7002\)"):
        source(Recorded([], away)).read_ended_runs(*ALL)


def test_nothing_found_is_an_answer() -> None:
    nothing = [{"error_number": 9003, "error": "Nothing found with query"}]
    assert source(Recorded([], nothing)).read_ended_runs(*ALL) == ()
    assert source(Recorded([])).read_jobs([1]) == {}


def test_bytes_that_are_no_text_do_not_end_the_reading() -> None:
    text = Recorded([job_38(name="\x00\x1f\ufffd")]).text.replace("\\u0000", "\x01")
    (run,) = source(Recorded([], text=text)).read_ended_runs(*ALL)
    assert run.job_id == 1


def test_sacct_hands_its_times_on_without_a_time_zone() -> None:
    recorded = Recorded([])
    source(recorded).read_ended_runs(*ALL)
    assert recorded.environment == {"SLURM_TIME_FORMAT": "uts%s"}
    assert "--allocations" in recorded.calls[0] and "--duplicates" in recorded.calls[0]


def test_operators_are_only_asked_for_where_somebody_ended_a_job() -> None:
    asked = []

    def operators() -> Sequence[int]:
        asked.append(1)
        return (0,)

    def read(job: Any) -> None:
        SacctJson(
            "rig", run=Recorded([job]), operators=operators, uids=Uids(UIDS.__getitem__)
        ).read_ended_runs(*ALL)

    read(job_38())
    assert not asked
    read(job_38(state__current="CANCELLED", kill_request_user="root"))
    assert asked


def test_each_users_name_is_looked_up_once() -> None:
    asked: List[str] = []

    def look_up(name: str) -> int:
        asked.append(name)
        return UIDS[name]

    uids = Uids(look_up)
    assert [uids.get(name) for name in ("sb-bob", "nobody", "sb-bob", "nobody")] == [
        1002,
        None,
        1002,
        None,
    ]
    assert asked == ["sb-bob", "nobody"]


def test_tres_of_an_ended_run_are_those_allocated() -> None:
    (run,) = ended(job_38())
    assert run.tres == Tres(cpus=2, memory_mb=2600, nodes=1, billing=2)


def rows_ended(ends: Sequence[int]) -> List[Row]:
    (run,) = ended(job_38())
    return [
        Row(run=replace(run, job_id=number, end_time=end), whole=True)
        for number, end in enumerate(ends)
    ]


@given(
    ends=st.lists(st.integers(999, 500_000), max_size=60),
    since=st.integers(1000, 300_000),
    length=st.integers(0, 400_000),
)
def test_a_period_in_pieces_gives_each_row_of_it_once(
    ends: List[int], since: int, length: int
) -> None:
    rows = rows_ended(ends)

    def ask(low: int, high: int) -> List[Row]:
        return [row for row in rows if low - 50 <= (row.run.end_time or 0) <= high + 50]

    told = list(Pieces().read(since, since + length, ask))
    assert sorted(row.run.job_id for row in told) == [
        number for number, end in enumerate(ends) if since <= end < since + length
    ]


def test_a_row_on_the_edge_of_two_pieces_is_given_once() -> None:
    rows = rows_ended([0, 599, 600, 601, 3000, 5000])
    told = list(Pieces().read(0, 5000, lambda low, high: rows))
    assert [row.run.end_time for row in told] == [0, 599, 600, 601, 3000]


def test_pieces_become_shorter_where_much_ended_and_longer_where_nothing_did() -> None:
    busy = rows_ended([100_000 + number // 10 for number in range(40_000)])
    asked: List[int] = []
    widths: List[int] = []

    def ask(low: int, high: int) -> List[Row]:
        found = [row for row in busy if low <= (row.run.end_time or 0) < high]
        asked.append(len(found))
        widths.append(high - low)
        return found

    assert sum(1 for _ in Pieces().read(0, 30 * 86_400, ask)) == 40_000
    assert sorted(asked)[-3] <= PIECE_ROWS, "once it is known how busy it is"
    assert len(asked) < 60 and max(widths) == 2 * 86_400


def test_a_piece_that_is_too_much_is_asked_for_again_in_shorter_ones() -> None:
    busy = rows_ended([number % 600 for number in range(2000)])

    def ask(low: int, high: int) -> List[Row]:
        if high - low > 100:
            raise RestTooMuch("no complete answer within 60 s")
        return [row for row in busy if low <= (row.run.end_time or 0) < high]

    assert len({row.run.job_id for row in Pieces().read(0, 600, ask)}) == 2000


def test_a_server_that_never_answers_is_given_up() -> None:
    asked = []

    def ask(low: int, high: int) -> List[Row]:
        asked.append(high - low)
        raise RestTooMuch("no complete answer within 60 s")

    with pytest.raises(RestTooMuch):
        list(Pieces().read(0, 86_400, ask))
    assert asked == [600, 75, 15]


@pytest.mark.parametrize("text", ["sacct: slurmdbd is away\n", "1"])
def test_columns_that_are_no_row_are_not_used(text: str) -> None:
    def run_sacct(argv: Sequence[str], **_: Any) -> str:
        return "JobID" if "--helpformat" in argv else text

    with pytest.raises(SlurmUnavailable, match="^sacct: the answer ends inside a row"):
        Sacct("rig", run=run_sacct).read_ended_runs(*ALL)
