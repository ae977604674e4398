# SPDX-License-Identifier: BSD-3-Clause
"""Rows of slurmdbd's out of JSON: ``sacct --json`` and slurmrestd's ``/slurmdb/`` say the same in the same words.

What this JSON does not tell, or tells otherwise than sacct's columns (22.05):

* no uid, only the user's name: looked up here, in this host's user database;
* no restart count (newer releases have it);
* a time limit of UNLIMITED is null, like none at all;
* exit code 0 and status 200 also when slurmdbd could not be asked: then ``errors`` is not empty.
"""

from __future__ import annotations

import json
import pwd
import re
from typing import Any, Callable, Collection, Dict, Iterator, List, Mapping, Optional, Tuple

from slurm_banking.errors import SlurmUnavailable
from slurm_banking.records import UNKNOWN_RESTART
from slurm_banking.slurm.accounting import Row, make_row
from slurm_banking.slurm.rest import flatten
from slurm_banking.slurm.rest.errors import RestTooMuch
from slurm_banking.slurm.rest.flatten import Problem
from slurm_banking.tres import parse_tres

#: Seconds of a first, a shortest and a longest piece, and how many rows one should have.
FIRST_PIECE_S = 600
SHORTEST_PIECE_S = 15
LONGEST_PIECE_S = 2 * 86_400
PIECE_ROWS = 3000

#: How often a piece is made shorter because it was too much, one time after the other.
TOO_MUCH_TRIES = 4

_SPACE = re.compile(r"[ \t\r\n]*")


class Pieces:
    """A period in pieces of some thousand rows each, whatever its length.

    Slurm makes such an answer in memory, whole, at 3 kB for a row, and slurmrestd of 22.05 needs several times as long for
    a row of 30,000 as for one of 5,000. How long a piece may be is learned from those before.
    """

    def __init__(self) -> None:
        self._width_s = FIRST_PIECE_S

    def read(self, since: int, until: int, ask: Callable[[int, int], List[Row]]) -> Iterator[Row]:
        """Rows that ended in [since, until), each once. ``ask(low, high)`` gives at least those that ended in [low, high)."""
        low = since
        again = TOO_MUCH_TRIES
        while low < until:
            high = min(low + self._width_s, until)
            try:
                rows = ask(low, high)
            except RestTooMuch:
                if again == 0 or high - low <= SHORTEST_PIECE_S:
                    raise
                again -= 1
                self._width_s = max((high - low) // 8, SHORTEST_PIECE_S)
                continue
            again = TOO_MUCH_TRIES
            ended = 0
            for row in rows:
                if row.run.end_time is not None and low <= row.run.end_time < high:
                    ended += 1
                    yield row
            # Longer by no more than a few times, for the next may be busier; a piece cut short by the end says less.
            fitting = (high - low) * PIECE_ROWS // max(ended, 1)
            longest = 4 * self._width_s if high - low == self._width_s else self._width_s
            self._width_s = max(min(fitting, longest, LONGEST_PIECE_S), SHORTEST_PIECE_S)
            low = high


class Uids:
    """uid by user name, from this host's user database; asked once for each name."""

    def __init__(self, look_up: Optional[Callable[[str], int]] = None) -> None:
        self._look_up = look_up or (lambda name: pwd.getpwnam(name).pw_uid)
        self._known: Dict[str, Optional[int]] = {}

    def get(self, name: str) -> Optional[int]:
        """None: there is no such user here."""
        if name not in self._known:
            try:
                self._known[name] = self._look_up(name)
            except (KeyError, ValueError):
                self._known[name] = None
        return self._known[name]


def read_rows(
    text: str, *, cluster: str, operators: Callable[[], Collection[int]], uids: Uids, source: str
) -> Tuple[List[Row], Tuple[Problem, ...]]:
    """The jobs of an answer, one after the other so that only one of them is in memory as parsed; and its errors.

    :raises SlurmUnavailable: it is no such answer, ends early, or has a job that cannot be read; nothing of it is used.
    """
    rows: List[Row] = []
    problems: Tuple[Problem, ...] = ()
    authority: Optional[Collection[int]] = None
    listed = False
    for key, value in _members(text, source):
        if key == "errors":
            problems = flatten.problems(value)
        elif key == "jobs":
            listed = True
            if value is None:
                continue
            if not isinstance(value, dict):
                raise SlurmUnavailable(f"{source}: a job is no object")
            if authority is None and flatten.text(value.get("kill_request_user")):
                authority = operators()
            try:
                rows.append(_row(value, cluster, authority or (), uids))
            except ValueError as error:
                job_id = str(value.get("job_id"))[:20]
                raise SlurmUnavailable(f"{source}: job {job_id}: {error}") from None
    if not listed and not problems:
        raise SlurmUnavailable(f"{source}: the answer has no jobs in it, not even none")
    return rows, problems


def _members(text: str, source: str) -> Iterator[Tuple[str, Any]]:
    """The members of the object in ``text``; of the list "jobs" each entry by itself, None first to say that it is there."""
    decoder = json.JSONDecoder(strict=False)

    def after_space(at: int) -> int:
        match = _SPACE.match(text, at)
        return match.end() if match is not None else at

    def expect(at: int, character: str) -> int:
        if not text.startswith(character, at):
            raise ValueError(f"expected {character!r} at character {at}")
        return after_space(at + 1)

    try:
        at = expect(after_space(0), "{")
        while not text.startswith("}", at):
            key, at = decoder.raw_decode(text, at)
            at = expect(after_space(at), ":")
            if key == "jobs" and text.startswith("[", at):
                yield "jobs", None
                at = after_space(at + 1)
                while not text.startswith("]", at):
                    value, at = decoder.raw_decode(text, at)
                    yield "jobs", value
                    at = after_space(at)
                    if not text.startswith("]", at):
                        at = expect(at, ",")
                at += 1
            else:
                value, at = decoder.raw_decode(text, at)
                yield str(key), value
            at = after_space(at)
            if not text.startswith("}", at):
                at = expect(at, ",")
        if after_space(at + 1) != len(text):
            raise ValueError("something comes after the end")
    except (ValueError, RecursionError) as error:
        raise SlurmUnavailable(f"{source}: not the JSON that was expected: {error}") from None


def _row(job: Mapping[str, Any], cluster: str, operators: Collection[int], uids: Uids) -> Row:
    """:raises ValueError: a field is missing or of another kind than expected."""
    job_id = flatten.count(job.get("job_id"))
    if not job_id:
        raise ValueError("it has no job_id")
    user_name = flatten.text(job.get("user")) or flatten.text(
        flatten.part(job, "association", "user")
    )
    user_id = uids.get(user_name) if user_name else None
    if user_id is None:
        raise ValueError(
            f"user {user_name[:60]!r} is not known on this host, and this source tells no uid: the source sacct does"
            if user_name
            else "slurmdbd does not tell its user: the source sacct tells the uid"
        )
    state = flatten.shown_state(flatten.part(job, "state", "current"))
    if not state:
        raise ValueError("it has no state")
    allocated = flatten.tres_text(flatten.part(job, "tres", "allocated"))
    array_job_id = flatten.count(flatten.part(job, "array", "job_id")) or None
    het_job_id = flatten.count(flatten.part(job, "het", "job_id")) or None
    ended_by = flatten.text(job.get("kill_request_user"))
    restarts = flatten.number(job.get("restart_cnt"))
    # sacct counts what was asked for where nothing was allocated.
    cpus = allocated or flatten.tres_text(flatten.part(job, "tres", "requested"))
    return make_row(
        cluster=cluster,
        operators=operators,
        job_id=job_id,
        submit_time=flatten.time_of(flatten.part(job, "time", "submission")),
        start_time=flatten.time_of(flatten.part(job, "time", "start")),
        end_time=flatten.time_of(flatten.part(job, "time", "end")),
        elapsed_s=flatten.count(flatten.part(job, "time", "elapsed")),
        state=state,
        ended_by=uids.get(ended_by) if ended_by else None,
        user_id=user_id,
        user_name=user_name,
        account=flatten.text(job.get("account")),
        partition=flatten.text(job.get("partition")),
        qos=flatten.text(job.get("qos")),
        cpus=parse_tres(cpus).cpus,
        node_count=flatten.count(job.get("allocation_nodes")),
        nodes=flatten.text(job.get("nodes")),
        tres=allocated,
        time_limit_min=flatten.number(flatten.part(job, "time", "limit")) or None,
        array_job_id=array_job_id,
        array_task_id=(
            flatten.number(flatten.part(job, "array", "task_id")) if array_job_id else None
        ),
        het_job_id=het_job_id if array_job_id is None else None,
        restart_count=UNKNOWN_RESTART if restarts is None else restarts,
        admin_comment=flatten.text(flatten.part(job, "comment", "administrator")),
    )
