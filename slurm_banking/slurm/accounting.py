# SPDX-License-Identifier: BSD-3-Clause
"""What slurmdbd holds about jobs, whichever way it is asked: one Run for each run, requeued runs included.

Ways to ask it are classes over :class:`Slurmdbd`, which only give raw rows: :class:`slurm_banking.slurm.sacct.Sacct`,
:class:`slurm_banking.slurm.sacct_json.SacctJson` and :class:`slurm_banking.slurm.slurmdb_rest.SlurmdbRest`. What rows mean
is here, and equal for all:

* A requeue makes a new row with the requeue's time as submit time. (job id, submit time) names one run.
* A resize makes a new row too, with the resize's time as submit time and the run's own start time, or the resize's: put
  together with the rows before it, so that a run stays one. By itself only the former kind can be told from a run, by its
  start before the submit; :meth:`Slurmdbd.read_jobs` knows both.
* A job requeued after it had ended gets its row's end moved to the requeue.
* A job cancelled while pending has no nodes; its start is None or the cancellation. Of tasks cancelled while they are
  part of a pending array's record there is no row at all.
* Before slurmctld has reported the start (every five seconds), a row has an end and no partition: left out here, read
  the next time.
* Whoever ended a job is told by uid or by name; slurmctld itself, when it cancels one, is root.

This is what slurmdbd of 22.05 does, as seen on real daemons.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from sys import intern
from typing import (
    Callable,
    Collection,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Set,
    Tuple,
)

from slurm_banking.charge import allocated, segments_of
from slurm_banking.records import UNKNOWN_RESTART, Run
from slurm_banking.tres import Tres, parse_tres

#: How many job ids one question is for.
JOBS_PER_CALL = 200

#: After which Slurm does not run the job again under the same record.
_FINAL_STATES = frozenset(
    {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY"}
)
_OPEN_STATES = frozenset({"PENDING", "RUNNING", "SUSPENDED", "RESIZING"})
_WITHOUT_END = _OPEN_STATES - {"RESIZING"}

#: What rows say where a job has no nodes.
NO_NODES = frozenset({"None assigned", "None", "(null)", ""})

#: Users with authority over all jobs, by uid; see :class:`slurm_banking.slurm.control.Operators`.
OperatorUids = Callable[[], Collection[int]]


def only_root() -> FrozenSet[int]:
    return frozenset({0})


class Accounting(Protocol):
    """What the sweep asks of slurmdbd; :class:`Slurmdbd`, or a recording of it. All raise SlurmUnavailable."""

    def read_ended_runs(self, since: int, until: int) -> Tuple[Run, ...]: ...

    def read_jobs(self, job_ids: Sequence[int]) -> Mapping[int, Tuple[Run, ...]]: ...

    def rows_by_key(self, job_ids: Sequence[int]) -> Mapping[Tuple[int, int], Row]: ...


class AccountingSource(Accounting, Protocol):
    """What reconciling asks beyond that."""

    def read_window(self, since: int, until: int, *, open_runs: bool = True) -> Iterator[Run]: ...

    def read_run(self, job_id: int, submit_time: int) -> Optional[Run]: ...


@dataclass(frozen=True)
class Row:
    """One row of slurmdbd's as a run; not yet put together with others of its job."""

    run: Run
    whole: bool  #: slurmdbd knows the start too


class Slurmdbd:
    """One cluster's jobs. ``operators``: whose cancellations of others' jobs are the system's.

    A way to ask implements the three methods without a body; each may give more rows than asked for. All raise
    SlurmUnavailable, and give either every row or none.
    """

    def __init__(self, cluster: str, *, operators: OperatorUids = only_root) -> None:
        self.cluster = cluster
        self._operators = operators

    def _rows_ended(self, since: int, until: int) -> Iterable[Row]:
        """At least all rows that ended in [since, until), whatever ended them."""
        raise NotImplementedError

    def _rows_overlapping(self, since: int, until: int) -> Iterable[Row]:
        """At least all rows of jobs that ran at any time in [since, until)."""
        raise NotImplementedError

    def _rows_of(self, job_ids: Sequence[int]) -> Iterable[Row]:
        """All rows of these jobs, of any time; asked for an array's job id, those of its tasks too."""
        raise NotImplementedError

    def read_ended_runs(self, since: int, until: int) -> Tuple[Run, ...]:
        """Runs that ended in [since, until), unix seconds, oldest end first; cancelled pending jobs among them.

        ``restart_count`` is UNKNOWN_RESTART where slurmdbd does not tell it: :meth:`read_jobs` counts.

        :raises SlurmUnavailable: slurmdbd cannot be asked, or the answer could not be read whole.
        """
        runs: List[Run] = []
        resized = set()
        for row in self._rows_ended(since, until):
            if not row.whole or not _over(row.run):
                continue
            if _continues(row.run):
                resized.add(row.run.job_id)
            else:
                runs.append(row.run)
        told = self._resized(runs, resized)
        if resized:
            runs = [run for run in runs if run.job_id not in resized & told.keys()]
            runs += [
                run for job_id in sorted(resized) for run in told.get(job_id, ()) if _over(run)
            ]
        runs = [run for run in runs if run.end_time is not None and since <= run.end_time < until]
        return tuple(sorted(runs, key=lambda run: (run.end_time or 0, run.job_id, run.submit_time)))

    def _resized(self, runs: Sequence[Run], resized: Set[int]) -> Mapping[int, Tuple[Run, ...]]:
        """All runs of the jobs in ``resized``, to which those are added of which a run here is only the part after a resize.

        Of such a part slurmdbd may have the run's own start, or (often with 24.11) that of the resize, which looks like any
        job that started in the second in which it was submitted: those are asked for by id.
        """
        doubted = {run.job_id for run in runs if run.started and run.start_time == run.submit_time}
        told = self.read_jobs(sorted(resized | doubted)) if resized or doubted else {}
        for run in runs:
            if run.job_id in doubted and run.job_id in told:
                if all(whole.submit_time != run.submit_time for whole in told[run.job_id]):
                    resized.add(run.job_id)
        return told

    def rows_by_key(self, job_ids: Sequence[int]) -> Mapping[Tuple[int, int], Row]:
        """Each row of these jobs by (job id, submit time), also those that slurmdbd has in part only.

        A run that was resized is several rows here.

        :raises SlurmUnavailable: as above.
        """
        found = {}
        for first in range(0, len(job_ids), JOBS_PER_CALL):
            for row in self._rows_of(job_ids[first : first + JOBS_PER_CALL]):
                found[row.run.job_id, row.run.submit_time] = row
        return found

    def read_window(self, since: int, until: int, *, open_runs: bool = True) -> Iterator[Run]:
        """Runs that ended in [since, until), in order of their end; then those that had started before ``until`` and have
        not ended, in order of their start.

        Windows side by side give every ended run exactly once, by its end as slurmdbd has it now (a requeue after the end
        moves it). A run that has not ended is given by every window that begins after its start or has it inside, so of
        several windows ask the last one alone for them, the others with ``open_runs=False``. "Not ended" is of now,
        whenever ``until`` was. Never given: what has not started and is still queued, and what slurmdbd does not know whole
        yet (the first five seconds). ``restart_count`` as with :meth:`read_ended_runs`.

        All of a window is in memory at once, about 2 kB for each run, and in text while it is read: let windows have some
        10,000 runs.

        :raises SlurmUnavailable: as above.
        """
        yield from self.read_ended_runs(since, until)
        if open_runs:
            yield from self.read_open_runs(until)

    def read_open_runs(self, until: int) -> Tuple[Run, ...]:
        """Runs that had started before ``until`` and have not ended, in order of their start; see :meth:`read_window`."""
        runs: List[Run] = []
        continued = set()
        for row in self._rows_overlapping(until - 1, until):
            run = row.run
            if not row.whole or not run.started:
                continue
            if run.resizing or _continues(run):  # part of a run
                continued.add(run.job_id)
            elif run.end_time is None:
                runs.append(run)
        told = self._resized(runs, continued)
        if continued:
            runs = [run for run in runs if run.job_id not in continued & told.keys()]
            for job_id in sorted(continued):
                runs += [run for run in told.get(job_id, ()) if run.end_time is None]
        runs = [run for run in runs if run.start_time is not None and run.start_time < until]
        return tuple(sorted(runs, key=lambda run: (run.start_time or 0, run.job_id)))

    def read_jobs(self, job_ids: Sequence[int]) -> Mapping[int, Tuple[Run, ...]]:
        """Every run of these jobs that slurmdbd has, ended or not, oldest first, with its restart count.

        By the run's own job id. Asked for an array's job id, the runs of all its tasks are there too. A job id that
        slurmdbd does not know is missing. ``end_time`` is None for what has not ended.

        :raises SlurmUnavailable: as above.
        """
        found: Dict[int, List[Run]] = {}
        for first in range(0, len(job_ids), JOBS_PER_CALL):
            wanted = frozenset(job_ids[first : first + JOBS_PER_CALL])
            told: Dict[int, List[Run]] = {}
            for row in self._rows_of(sorted(wanted)):
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


def make_row(
    *,
    cluster: str,
    operators: Collection[int],
    job_id: int,
    submit_time: Optional[int],
    start_time: Optional[int],
    end_time: Optional[int],
    elapsed_s: int,
    state: str,
    ended_by: Optional[int],
    user_id: int,
    user_name: str,
    account: str,
    partition: str,
    qos: str,
    cpus: int,
    node_count: int,
    nodes: str,
    tres: str,
    time_limit_min: Optional[int],
    array_job_id: Optional[int],
    array_task_id: Optional[int],
    het_job_id: Optional[int],
    restart_count: int,
    admin_comment: str,
) -> Row:
    """A row from its fields as slurmdbd has them. ``ended_by``: the uid after "CANCELLED by"; ``tres``: as AllocTRES.

    :raises ValueError: ``tres`` cannot be read.
    """
    nodes = "" if nodes in NO_NODES else nodes
    started = start_time is not None and bool(nodes)
    run = Run(
        cluster=cluster,
        job_id=job_id,
        submit_time=submit_time or 0,
        restart_count=restart_count,
        user_id=user_id,
        user_name=intern(user_name),
        account=intern(account),
        partition=intern(partition),
        qos=intern(qos) if qos else None,
        state=intern(state),
        start_time=start_time if started else None,
        end_time=None if state in _WITHOUT_END else end_time,
        elapsed_s=elapsed_s if started else 0,
        cpus=cpus if started else 0,
        started=started,
        nodes=nodes,
        node_count=node_count,
        tres=_tres(tres) if started else Tres(),
        array_job_id=array_job_id,
        array_task_id=array_task_id,
        het_job_id=het_job_id,
        time_limit_min=time_limit_min,
        resizing=state == "RESIZING",
        # As slurmctld's plugin tells it: ended by root, SlurmUser or an operator, and not as a job of their own.
        cancelled_by_admin=state == "CANCELLED"
        and ended_by is not None
        and ended_by != user_id
        and ended_by in operators,
        admin_comment=admin_comment,
        source="sacct",
    )
    return Row(run=run, whole=bool(submit_time and partition))


@lru_cache(maxsize=4096)
def _tres(text: str) -> Tres:
    return parse_tres(text)


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
    """Restart counts, by rank, where slurmdbd gave none.

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
