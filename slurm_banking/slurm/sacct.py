# SPDX-License-Identifier: BSD-3-Clause
"""What slurmdbd holds about jobs, through sacct: one row for each run, requeued runs included.

Job names are not asked for: they are the one free text here that users choose. The separator is random nevertheless.

What 22.05's slurmdbd does, as seen on real daemons:

* A requeue makes a new row with the requeue's time as submit time. (job id, submit time) names one run.
* A resize makes a new row too, with the resize's time as submit time and the run's own start time, or the resize's: put
  together with the rows before it, so that a run stays one. By itself only the former kind can be told from a run, by its
  start before the submit; :meth:`Sacct.read_jobs` knows both.
* A job requeued after it had ended gets its row's end moved to the requeue.
* A job cancelled while pending has no nodes; its start is None or the cancellation. Of tasks cancelled while they are
  part of a pending array's record there is no row at all.
* Before slurmctld has reported the start (every five seconds), a row has an end and no partition: left out here, read
  the next time.
* Memory in AllocTRES is a whole number of MB only with --noconvert ("mem=8000M"); else units are changed, and of a
  terabyte and more two places are left.
* "CANCELLED by UID" names whoever ended the job; slurmctld itself, when it cancels one, is root.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import (
    Callable,
    Collection,
    Dict,
    FrozenSet,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Tuple,
)

from slurm_banking.charge import allocated, segments_of
from slurm_banking.errors import SlurmUnavailable
from slurm_banking.records import Run
from slurm_banking.slurm import commands
from slurm_banking.slurm.commands import Runner
from slurm_banking.tres import Tres, parse_tres

MAX_OUTPUT_BYTES = 1024 * 1024 * 1024
TIMEOUT_S = 180.0

#: How many job ids one command is asked for.
JOBS_PER_CALL = 200

#: Slurm's states of a run that is over; "RS" only marks the segments of one that was resized.
_ENDED_STATES = "BF,CA,CD,DL,F,NF,OOM,PR,RQ,RV,TO"
#: After which Slurm does not run the job again under the same record.
_FINAL_STATES = frozenset(
    {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY"}
)
_OPEN_STATES = frozenset({"PENDING", "RUNNING", "SUSPENDED", "RESIZING"})

_FIELDS = (
    "JobIDRaw",
    "JobID",
    "UID",
    "User",
    "Account",
    "Partition",
    "QOS",
    "State",
    "Submit",
    "Start",
    "End",
    "ElapsedRaw",
    "AllocCPUS",
    "AllocNodes",
    "AllocTRES",
    "NodeList",
    "TimelimitRaw",
)
#: Newer releases have it.
_RESTARTS = "Restarts"
_LAST_FIELD = "AdminComment"

#: For restart_count: not known.
UNKNOWN_RESTART = -1

_CANCELLED_BY = "CANCELLED by "

#: Users with authority over all jobs, by uid; see :class:`slurm_banking.slurm.control.Operators`.
OperatorUids = Callable[[], Collection[int]]


def only_root() -> FrozenSet[int]:
    return frozenset({0})


class Accounting(Protocol):
    """What the sweep asks of slurmdbd; :class:`Sacct`, or a recording of it. All raise SlurmUnavailable."""

    def read_ended_runs(self, since: int, until: int) -> Tuple[Run, ...]: ...

    def read_jobs(self, job_ids: Sequence[int]) -> Mapping[int, Tuple[Run, ...]]: ...


@dataclass(frozen=True)
class _Row:
    run: Run
    whole: bool  #: slurmdbd knows the start too


class Sacct:
    """sacct of one cluster. ``operators``: whose cancellations of others' jobs are the system's."""

    def __init__(
        self, cluster: str, *, run: Runner = commands.run, operators: OperatorUids = only_root
    ) -> None:
        self.cluster = cluster
        self._run = run
        self._operators = operators
        self._fields: Tuple[str, ...] = ()

    def read_ended_runs(self, since: int, until: int) -> Tuple[Run, ...]:
        """Runs that ended in [since, until), unix seconds, oldest end first; cancelled pending jobs among them.

        ``restart_count`` is UNKNOWN_RESTART where sacct has no field for it: :meth:`read_jobs` counts.

        :raises SlurmUnavailable: slurmdbd cannot be asked, or the answer could not be read whole.
        """
        arguments = ["--state", _ENDED_STATES, "--starttime", _time(since)]
        # sacct's end is inclusive and its clock starts where ours may not have got to.
        arguments += ["--endtime", _time(until + 1)]
        rows = [row for row in self._read(arguments) if row.whole and _over(row.run)]
        resized = sorted({row.run.job_id for row in rows if _continues(row.run)})
        runs = [row.run for row in rows if not _continues(row.run)]
        if resized:
            told = self.read_jobs(resized)
            runs = [run for run in runs if run.job_id not in told]
            runs += [run for job_id in resized for run in told.get(job_id, ()) if _over(run)]
        runs = [run for run in runs if run.end_time is not None and since <= run.end_time < until]
        return tuple(sorted(runs, key=lambda run: (run.end_time or 0, run.job_id, run.submit_time)))

    def read_jobs(self, job_ids: Sequence[int]) -> Mapping[int, Tuple[Run, ...]]:
        """Every run of these jobs that slurmdbd has, ended or not, oldest first, with its restart count.

        By the run's own job id. Asked for an array's job id, the runs of all its tasks are there too. A job id that
        slurmdbd does not know is missing. ``end_time`` is None for what has not ended.

        :raises SlurmUnavailable: as above.
        """
        found: Dict[int, List[Run]] = {}
        for first in range(0, len(job_ids), JOBS_PER_CALL):
            wanted = frozenset(job_ids[first : first + JOBS_PER_CALL])
            arguments = ["--jobs", ",".join(str(job_id) for job_id in sorted(wanted))]
            told: Dict[int, List[Run]] = {}
            for row in self._read([*arguments, "--starttime", _time(86400)]):
                run = row.run
                if row.whole and (run.job_id in wanted or run.array_job_id in wanted):
                    told.setdefault(run.job_id, []).append(run)
            found.update(told)
        return {job_id: _counted(_joined(runs)) for job_id, runs in found.items()}

    def read_run(self, job_id: int, submit_time: int) -> Optional[Run]:
        """One run by its key; None: slurmdbd does not have it (yet)."""
        for run in self.read_jobs([job_id]).get(job_id, ()):
            if run.submit_time == submit_time:
                return run
        return None

    def _read(self, arguments: Sequence[str]) -> List[_Row]:
        fields = self._known_fields()
        separator = f"~{os.urandom(6).hex()}s"
        output = self._run(
            ["sacct", "--allusers", "--allocations", "--duplicates", "--noheader", "--parsable"]
            + ["--noconvert"]
            + [f"--delimiter={separator}", f"--format={','.join(fields)}", *arguments],
            timeout_s=TIMEOUT_S,
            max_bytes=MAX_OUTPUT_BYTES,
        )
        operators = self._operators() if _CANCELLED_BY in output else ()
        return parse_rows(output, self.cluster, fields, separator, operators)

    def _known_fields(self) -> Tuple[str, ...]:
        """What this sacct is asked for; looked up once."""
        if not self._fields:
            known = self._run(["sacct", "--helpformat"]).split()
            restarts = (_RESTARTS,) if _RESTARTS in known else ()
            self._fields = (*_FIELDS, *restarts, _LAST_FIELD)
        return self._fields


def parse_rows(
    output: str,
    cluster: str,
    fields: Sequence[str],
    separator: str,
    operators: Collection[int] = (0,),
) -> List[_Row]:
    """:raises SlurmUnavailable: a row is not as expected; nothing of such an answer is used."""
    values = output.split(separator)
    if values.pop().strip() or len(values) % len(fields):
        raise SlurmUnavailable("sacct: the answer ends inside a row")
    rows = []
    for first in range(0, len(values), len(fields)):
        row = dict(zip(fields, values[first : first + len(fields)]))
        row[fields[0]] = row[fields[0]].lstrip("\n")
        try:
            rows.append(_row(row, cluster, operators))
        except ValueError as error:
            raise SlurmUnavailable(f"sacct: row {first // len(fields) + 1}: {error}") from None
    return rows


def _row(row: Mapping[str, str], cluster: str, operators: Collection[int]) -> _Row:
    state = row["State"].split(" ")[0]
    start_time = commands.parse_time(row["Start"])
    end_time = None if state in _OPEN_STATES - {"RESIZING"} else commands.parse_time(row["End"])
    submit_time = commands.parse_time(row["Submit"])
    node_count = _number(row["AllocNodes"])
    nodes = "" if row["NodeList"] in ("None assigned", "None", "(null)") else row["NodeList"]
    started = start_time is not None and bool(nodes)
    array_job_id, array_task_id, het_job_id = _kinship(row["JobID"])
    limit = row["TimelimitRaw"]
    user_id = _number(row["UID"])
    tres = parse_tres(row["AllocTRES"])
    run = Run(
        cluster=cluster,
        job_id=_number(row["JobIDRaw"]),
        submit_time=submit_time or 0,
        restart_count=_number(row.get(_RESTARTS, "") or str(UNKNOWN_RESTART)),
        user_id=user_id,
        user_name=row["User"],
        account=row["Account"],
        partition=row["Partition"],
        qos=row["QOS"] or None,
        state=state,
        start_time=start_time if started else None,
        end_time=end_time,
        elapsed_s=_number(row["ElapsedRaw"]) if started else 0,
        cpus=_number(row["AllocCPUS"]),
        started=started,
        nodes=nodes,
        node_count=node_count,
        tres=tres if started else Tres(),
        array_job_id=array_job_id,
        array_task_id=array_task_id,
        het_job_id=het_job_id,
        time_limit_min=None if limit == "Partition_Limit" else _limit(limit),
        resizing=state == "RESIZING",
        cancelled_by_admin=_by_admin(row["State"], user_id, operators),
        admin_comment=row[_LAST_FIELD],
        source="sacct",
    )
    return _Row(run=run, whole=bool(submit_time and run.partition))


def _by_admin(state: str, user_id: int, operators: Collection[int]) -> bool:
    """As slurmctld's plugin tells it: ended by root, SlurmUser or an operator, and not as a job of their own."""
    uid = state[len(_CANCELLED_BY) :] if state.startswith(_CANCELLED_BY) else ""
    return (
        uid.isascii()
        and uid.isdigit()
        and len(uid) <= 10
        and int(uid) != user_id
        and int(uid) in operators
    )


def _over(run: Run) -> bool:
    return run.end_time is not None and not run.resizing


def _continues(run: Run) -> bool:
    """Whether the row is what came after a resize: it "was submitted" after it had started."""
    return run.started and run.start_time is not None and run.submit_time > run.start_time


def _joined(rows: Sequence[Run]) -> List[Run]:
    """One job's rows with those of a resized run made one: the last one's figures under the first one's submit time.

    A row after a resize was submitted when the one before it ended. It has the run's own start, and counts from then, or
    that of the resize. A job whose nodes were all given to another (``--dependency=expand``) ends with a row without any.
    """
    joined: List[Run] = []
    first: Optional[Run] = None
    last: Optional[Run] = None
    resizes: List[Tuple[Tres, int]] = []
    for run in sorted(rows, key=lambda run: (run.submit_time, run.end_time or 1 << 40)):
        if (
            first is not None
            and last is not None
            and (run.start_time == first.start_time or run.submit_time == last.end_time)
        ):
            before_s = resizes[-1][1]
            if not run.started and run.state not in _OPEN_STATES:
                resizes.pop()
                run = replace(last, state=run.state, resizing=False, elapsed_s=before_s)
            elif run.started and run.start_time != first.start_time:
                run = replace(run, elapsed_s=before_s + run.elapsed_s)
            run = replace(run, submit_time=first.submit_time, start_time=first.start_time)
        else:
            first, resizes = None, []
        if run.resizing:
            first, last = first or run, run
            resizes.append((allocated(run), run.elapsed_s))
            continue
        if resizes:
            run = replace(run, segments=segments_of(resizes, allocated(run), run.elapsed_s))
        first, last, resizes = None, None, []
        joined.append(run)
    return joined


def _counted(runs: Sequence[Run]) -> Tuple[Run, ...]:
    """Restart counts, by rank, where sacct gave none.

    Job ids are given again after StateSaveLocation was lost: what is another user's, account's or array's is another job,
    and so is what comes after a row that ended for good. Of a job that it puts back into the queue, Slurm closes the row
    as REQUEUED, or by what made it do so (NODE_FAIL, BOOT_FAIL, PREEMPTED).
    """
    counted = []
    ranks: Dict[Tuple[int, str, Optional[int], Optional[int]], int] = {}
    for run in runs:
        key = (run.user_id, run.account, run.array_job_id, run.het_job_id)
        rank = ranks.get(key, 0)
        ranks[key] = 0 if run.state in _FINAL_STATES else rank + 1
        counted.append(
            replace(run, restart_count=rank) if run.restart_count == UNKNOWN_RESTART else run
        )
    return tuple(counted)


def _kinship(job_id: str) -> Tuple[Optional[int], Optional[int], Optional[int]]:
    """(array job, array task, het job) of sacct's ``JobID``: ``12``, ``12_3``, ``12_[4-9]``, ``12+1``."""
    if "_" in job_id:
        job, _, task = job_id.partition("_")
        return _number(job), _number(task) if task.isdigit() else None, None
    if "+" in job_id:
        return None, None, _number(job_id.partition("+")[0])
    return None, None, None


def _number(value: str) -> int:
    digits = value[1:] if value.startswith("-") else value
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise ValueError(f"{value[:40]!r} is not a number")
    return int(value)


def _limit(value: str) -> Optional[int]:
    """TimelimitRaw: minutes."""
    if value.isascii() and value.isdigit() and len(value) <= 10:
        return int(value)
    return commands.parse_minutes(value)


def _time(unix_s: int) -> str:
    """As sacct reads it, its TZ being UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(max(unix_s, 0)))
