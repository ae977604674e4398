# SPDX-License-Identifier: BSD-3-Clause
"""Confirm and sweep: make the ledger follow Slurm's queue and slurmdbd.

A hook proposes, the queue disposes. Here a lien is confirmed, lowered, moved or ended, and only on evidence:

* what the queue shows confirms a lien, settles its update, and starts its runs;
* a lien whose job is in no complete snapshot, twice in a row, from a controller that was not just restarted, and older
  than the grace, is looked up in slurmdbd. A run there is charged. Nothing there ends the lien. No answer: it waits;
* should that end many confirmed liens at once without a trace of their jobs, none is ended and an operator is told.

Reading comes first, in short transactions that hold nobody up, and finds what needs a look. Each look is then taken
again inside the transaction that writes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple, TypeVar

from slurm_banking import policy, settle, tokens
from slurm_banking.charge import allocated
from slurm_banking.config import Config
from slurm_banking.errors import EntryConflict, SlurmUnavailable
from slurm_banking.ledger import Ledger, LedgerRun, Lien, Transaction
from slurm_banking.ledger.transaction import LOST
from slurm_banking.records import UNKNOWN_RESTART, UNLIMITED, Estimate, QueuedJob, Run
from slurm_banking.slurm.runaway import is_made_up, is_made_up_of_lost, is_overdue
from slurm_banking.slurm.sacct import Accounting
from slurm_banking.slurm.squeue import QueueSnapshot, is_pending, is_started
from slurm_banking.tres import Tres, parse_tres

log = logging.getLogger("slurm_banking.relay")

ACTOR = "relay"

#: Each transaction writes about this many jobs; slurmctld gets its turn in the pause after it.
JOBS_PER_TRANSACTION = 20
PAUSE_S = 0.005
ROWS_PER_READ = 500

#: Seconds after which an update that the queue does not show was refused by Slurm.
PROPOSAL_S = 5
#: Seconds that a controller must have been up before a job that it does not show is missed.
CONTROLLER_UP_S = 15
#: Snapshots without its job after which a lien may end.
TIMES_MISSED = 2
#: By how many seconds a lien's time is later than now that was written by a clock that was ahead: it is as old as any.
AHEAD_S = 60
#: More liens than both of these in one sweep are not ended without an operator's word.
MANY_LIENS = 20
MANY_PERCENT = 5
#: Seconds between two questions to slurmdbd about one run that neither the queue nor slurmdbd says has ended.
ASK_AGAIN_S = 60

#: Seconds for which slurmdbd has to answer that it knows no end of a run, before the run counts as lost in a crash.
LOST_S = 900
#: The same of a run that slurmctld was not restarted after, and whose limit does not say that it is over.
LOST_ANYHOW_S = 86400

#: The sacct window reaches this far back behind what was read before, and not closer to now than slurmdbd may lag.
WINDOW_OVERLAP_S = 600
WINDOW_LAG_S = 10
WINDOW_STEP_S = 6 * 3600
#: Marks of runs that slurmctld could not write: how long slurmdbd may not know them. It may have been away for days.
RESCAN_PATIENCE_S = 7 * 86400
RESCAN_NAME = "rescan"
_RESCAN_MAX_BYTES = 16 * 1024 * 1024

_MAX_TOLD = 10_000

#: What of a waiting job is kept with its lien; the first three are what a first sighting is compared with. Of its
#: resources without billing: that follows from the others, and a new weight is no change of the job.
_SEEN = ("time_limit_min", "partition", "qos", "cpus", "nodes", "tres")

#: Whose change a lien's own resources follow.
_PARTS = ("cpus", "memory_mb", "nodes", "gpus")

T = TypeVar("T")


@dataclass
class SweepState:
    """What the relay remembers between sweeps; losing it costs a little time, never a lien."""

    taken_at: int = 0
    boot_time: int = 0
    more_tasks: Dict[str, int] = field(default_factory=dict)  #: lien -> tasks, more than it has
    ask_run_at: Dict[int, float] = field(default_factory=dict)  #: run id -> not before
    #: run id -> since when slurmdbd answers that it knows no end of it
    endless_since: Dict[int, float] = field(default_factory=dict)
    #: lien -> since when slurmdbd has its job as running, and the queue does not have it
    runaway_since: Dict[str, float] = field(default_factory=dict)
    told: Set[Tuple[object, ...]] = field(default_factory=set)

    def tell_once(self, *what: object) -> bool:
        """True the first time."""
        if what in self.told:
            return False
        if len(self.told) >= _MAX_TOLD:
            self.told.clear()
        self.told.add(what)
        return True


@dataclass
class SweepReport:
    """What a sweep did, and what it could not."""

    jobs: int = 0  #: records in the snapshot
    confirmed: int = 0  #: liens confirmed or moved to what the queue shows
    opened: Dict[str, int] = field(default_factory=dict)  #: origin -> liens opened
    started: int = 0
    reamounted: int = 0  #: running runs moved to what the queue shows
    ended: int = 0  #: runs that slurmdbd told the end of
    lost: int = 0  #: runs that slurmctld forgot in a crash
    voided: int = 0
    expired: int = 0
    waiting: int = (
        0  #: liens and runs that are gone from the queue and that slurmdbd could not speak about
    )
    skipped: str = ""  #: why nothing was done
    alarm: Optional[str] = None  #: an operator must look; the sweep ends no more liens until then
    problems: List[str] = field(default_factory=list)

    def as_dict(self) -> Dict[str, Any]:
        return dataclasses.asdict(self)

    def line(self) -> str:
        opened = ",".join(f"{origin}:{count}" for origin, count in sorted(self.opened.items()))
        return (
            f"sweep jobs={self.jobs} confirmed={self.confirmed} opened={opened or 0} started={self.started} "
            f"reamounted={self.reamounted} ended={self.ended} lost={self.lost} voided={self.voided} expired={self.expired} "
            f"waiting={self.waiting}"
        )

    @property
    def changed(self) -> bool:
        return bool(
            self.confirmed
            or self.opened
            or self.started
            or self.reamounted
            or self.ended
            or self.lost
            or self.voided
            or self.expired
        )


@dataclass
class WindowReport:
    """What a look at slurmdbd's ended runs did."""

    read: int = 0
    charged: int = 0  #: runs that had left no record
    voided: int = 0
    #: Runs that were over before there was this ledger, and were another's by their tokens.
    earlier: int = 0
    drift: List[str] = field(default_factory=list)  #: ended runs that slurmdbd tells otherwise
    rescanned: int = 0  #: marks settled
    until: int = 0  #: everything that ended before is settled
    problems: List[str] = field(default_factory=list)

    def as_dict(self) -> Dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass
class _Group:
    """Pending records that one lien stands for: a job, or what is left of an array."""

    jobs: List[QueuedJob]
    lien_id: Optional[str]

    @property
    def tasks(self) -> int:
        return sum(job.tasks for job in self.jobs)


class _View:
    """Open liens and running runs as just read: to find what needs a look."""

    def __init__(self, liens: Sequence[Lien], runs: Sequence[LedgerRun]) -> None:
        self.liens = {lien.lien_id: lien for lien in liens}
        self.runs = {(run.job_id, run.submit_time, run.restart_count): run for run in runs}
        self._by_job: Dict[int, List[Lien]] = {}
        for lien in liens:
            if lien.job_id is not None:
                self._by_job.setdefault(lien.job_id, []).append(lien)

    def lien_of(self, job: QueuedJob) -> Optional[Lien]:
        """As :meth:`Transaction.find_lien` finds it."""
        near = self._by_job.get(job.job_id, [])
        if job.array_job_id is not None and job.array_job_id != job.job_id:
            near = near + self._by_job.get(job.array_job_id, [])
        found = [lien for lien in near if _is_for(lien, job)]
        if found:
            return max(found, key=lambda lien: (lien.job_id == job.job_id, lien.created_us))
        token = tokens.parse(job.admin_comment)
        lien = None if token is None else self.liens.get(token.lien_id)
        if lien is not None and lien.job_id is None and _same_owner(lien, job):
            return lien
        return None


def _same_owner(lien: Lien, job: QueuedJob) -> bool:
    return lien.account == job.account and lien.user_id == job.user_id


def _is_for(lien: Lien, job: QueuedJob) -> bool:
    return _same_owner(lien, job) and lien.speaks_of(job.submit_time)


# -- the queue ----------------------------------------------------------------------------------------------------------


def confirm_and_sweep(
    ledger: Ledger,
    config: Config,
    snapshot: QueueSnapshot,
    sacct: Accounting,
    state: SweepState,
    now: float,
    *,
    force: bool = False,
) -> SweepReport:
    """One round. ``force``: an operator has looked, and many liens may end at once.

    :raises LedgerError: the ledger cannot be used; what was done before that stays done.
    """
    report = SweepReport(jobs=len(snapshot.jobs))
    if snapshot.taken_at < state.taken_at:
        report.skipped = "an older snapshot than the last one"
        state.taken_at = (
            snapshot.taken_at
        )  # should the clock have been set back: on with the next one
        return report
    settled = (
        snapshot.complete
        and snapshot.boot_time == state.boot_time
        and snapshot.taken_at - snapshot.boot_time > CONTROLLER_UP_S
    )
    view = adopt(ledger, config, snapshot, state, report)
    present = {(job.job_id, job.submit_time) for job in snapshot.jobs}
    gone = _gone_runs(view, present, snapshot, state, now)
    missing: List[Lien] = []
    if settled:
        missing = _count_missed(ledger, config, view, snapshot, now)
    _ask_accounting(
        ledger, config, sacct, gone, missing, len(view.liens), state, now, force, report
    )
    if settled:
        _end_lost(ledger, config, snapshot, sacct, gone, state, now, force, report)
    state.taken_at = snapshot.taken_at
    state.boot_time = snapshot.boot_time
    if report.alarm:
        log.error("sweep_stopped reason=%r", report.alarm)
    if report.changed:
        log.info("%s", report.line())
    return report


def adopt(
    ledger: Ledger,
    config: Config,
    snapshot: QueueSnapshot,
    state: SweepState,
    report: SweepReport,
) -> _View:
    """Make the ledger follow what the snapshot shows; ends nothing. What was open before."""
    view = _read_view(ledger)
    jobs = [job for job in snapshot.jobs if not _exempt(config, job)]
    started = [job for job in jobs if is_started(job) and not _run_is_settled(view, job)]

    def start(tx: Transaction, job: QueuedJob) -> None:
        _start(tx, config, job, snapshot, state, report)

    _write(ledger, started, start)
    groups = _groups(view, [job for job in jobs if is_pending(job)])
    moved = [group for group in groups if not _is_settled(view, group)]
    # What moved to another account leaves the old lien before that is counted anew.
    moved.sort(key=lambda group: not _supersedes(view, group))

    def confirm(tx: Transaction, group: _Group) -> None:
        _confirm_group(tx, config, group, snapshot, state, report)

    _write(ledger, moved, confirm)
    return view


def _read_view(ledger: Ledger) -> _View:
    liens: List[Lien] = []
    runs: List[LedgerRun] = []
    with ledger.transaction(write=False) as tx:
        liens += tx.open_liens_unbound()
    while True:
        with ledger.transaction(write=False) as tx:
            page = tx.open_liens_page(
                liens[-1] if liens and liens[-1].job_id is not None else None, ROWS_PER_READ
            )
        liens += page
        if len(page) < ROWS_PER_READ:
            break
    while True:
        with ledger.transaction(write=False) as tx:
            more = tx.running_runs_page(runs[-1] if runs else None, ROWS_PER_READ)
        runs += more
        if len(more) < ROWS_PER_READ:
            break
    return _View(liens, runs)


def _write(ledger: Ledger, items: Sequence[T], each: Callable[[Transaction, T], None]) -> None:
    for first in range(0, len(items), JOBS_PER_TRANSACTION):
        if first:
            time.sleep(PAUSE_S)
        with ledger.transaction() as tx:
            for item in items[first : first + JOBS_PER_TRANSACTION]:
                each(tx, item)


def _exempt(config: Config, job: QueuedJob) -> bool:
    return policy.is_exempt(
        config, account=job.account, user_name=job.user_name, user_id=job.user_id, qos=job.qos
    )


def _at_prices_of(tx: Transaction, config: Config, at: Optional[int]) -> Config:
    """The configuration with the prices that were in force at a time."""
    return config.with_prices(settle.prices_for(tx, config, at))


# -- started jobs -------------------------------------------------------------------------------------------------------


def _run_is_settled(view: _View, job: QueuedJob) -> bool:
    run = view.runs.get((job.job_id, job.submit_time, job.restart_count))
    return (
        run is not None
        and run.proposed_csu is None
        and (run.user_id, run.account) == (job.user_id, job.account)
        and run.inputs.get("partition") == job.partition
        and run.inputs.get("qos") == job.qos
        and _has_those(run.inputs, job)
        and run.time_limit_min == job.time_limit_min
        and (
            job.time_limit_min == UNLIMITED
            or run.inputs.get("time_limit_min") == job.time_limit_min
        )
    )


def _has_those(inputs: Mapping[str, Any], job: QueuedJob) -> bool:
    """Whether the run's share was counted with the resources that the queue shows; where it shows none, with the CPUs."""
    if job.tres.cpus:
        return bool(inputs.get("tres") == str(job.tres))
    return bool(inputs.get("cpus") == max(1, job.nodes, job.cpus))


def _start(
    tx: Transaction,
    config: Config,
    job: QueuedJob,
    snapshot: QueueSnapshot,
    state: SweepState,
    report: SweepReport,
) -> None:
    """Idempotent: a start by the run's key, then its share moved to what was really allocated."""
    try:
        run, new = settle.start_run(tx, as_run(job, snapshot.cluster), config, actor=ACTOR)
    except EntryConflict as error:
        _problem(state, report, f"run_conflict job_id={job.job_id} {error}")
        return
    report.started += int(new)
    if run.state != "running" or _is_young(run.proposed_us, snapshot):
        return
    estimate = settle.queued_estimate(_at_prices_of(tx, config, run.start_time), job)
    inputs = estimate.inputs()
    differs = run.time_limit_min != job.time_limit_min or any(
        run.inputs.get(key) != inputs[key] for key in ("time_limit_min", "partition", "qos", "tres")
    )
    if not differs and run.proposed_csu is None:
        return
    given_back_csu = settle.given_back_csu(tx, run, estimate.tres, estimate.price)
    tx.reamount_run(
        run,
        lien_csu=estimate.per_task_lien_csu + given_back_csu,
        inputs=inputs,
        time_limit_min=job.time_limit_min,
        cpus=job.cpus,
        partition=job.partition,
        qos=job.qos,
        actor=ACTOR,
        reason="as allocated" if new else "as the queue shows it",
    )
    report.reamounted += 1


def as_run(job: QueuedJob, cluster: str) -> Run:
    """A started job of the queue as the run that it is."""
    return Run(
        cluster=cluster,
        job_id=job.job_id,
        submit_time=job.submit_time,
        restart_count=job.restart_count,
        user_id=job.user_id,
        user_name=job.user_name,
        account=job.account,
        partition=job.partition,
        qos=job.qos,
        state=job.state,
        start_time=job.start_time,
        end_time=None,
        elapsed_s=0,
        cpus=job.cpus,
        started=True,
        nodes=job.node_list,
        node_count=job.nodes,
        tres=job.tres,
        array_job_id=job.array_job_id,
        array_task_id=job.array_task_id,
        het_job_id=job.het_job_id,
        time_limit_min=job.time_limit_min,
        name=job.name,
        admin_comment=job.admin_comment,
        source="squeue",
    )


# -- pending jobs -------------------------------------------------------------------------------------------------------


def _groups(view: _View, jobs: Sequence[QueuedJob]) -> List[_Group]:
    """Pending records by the lien that they have, or should have. Requeued tasks of an array have liens of their own."""
    groups: Dict[Tuple[object, ...], _Group] = {}
    for job in jobs:
        lien = view.lien_of(job)
        key: Tuple[object, ...]
        if lien is not None:
            key = (lien.lien_id,)
        elif job.array_job_id is not None and job.restart_count == 0:
            key = ("array", job.array_job_id, job.user_id, job.account)
        else:
            key = ("job", job.job_id, job.user_id, job.account)
        group = groups.setdefault(key, _Group([], None if lien is None else lien.lien_id))
        group.jobs.append(job)
    return list(groups.values())


def _seen(job: QueuedJob) -> Mapping[str, Any]:
    seen = {key: getattr(job, key) for key in _SEEN}
    return {**seen, "tres": str(replace(job.tres, billing=0))}


def _is_settled(view: _View, group: _Group) -> bool:
    if group.lien_id is None or len(group.jobs) != 1:
        return False
    lien = view.liens[group.lien_id]
    return (
        lien.state == "confirmed"
        and lien.missed == 0
        and lien.proposed_csu is None
        and lien.tasks_left == group.tasks
        and lien.seen_inputs == _seen(group.jobs[0])
    )


def _supersedes(view: _View, group: _Group) -> bool:
    return group.lien_id is not None and view.liens[group.lien_id].supersedes is not None


def _is_young(proposed_us: Optional[int], snapshot: QueueSnapshot) -> bool:
    """Whether Slurm may not have decided about an update when the snapshot was taken."""
    return proposed_us is not None and proposed_us > (snapshot.taken_at - PROPOSAL_S) * 1_000_000


def _confirm_group(
    tx: Transaction,
    config: Config,
    group: _Group,
    snapshot: QueueSnapshot,
    state: SweepState,
    report: SweepReport,
) -> None:
    job = group.jobs[0]
    if group.lien_id is not None:
        lien = tx.lien(group.lien_id)
        if lien is not None and lien.open:
            _confirm(tx, config, lien, group, snapshot, state, report)
        return  # ended since: the next snapshot tells
    token = tokens.parse(job.admin_comment)
    found = tx.find_lien(
        job_id=job.job_id,
        array_job_id=job.array_job_id,
        account=job.account,
        user_id=job.user_id,
        submit_time=job.submit_time,
        token_lien_id=None if token is None else token.lien_id,
    )
    if found is None and token is not None and _ended_after(tx, token, job, snapshot):
        return  # the next snapshot tells
    known = tx.find_run(job.job_id, job.submit_time)
    if found is None and (known is None or known.user_id != job.user_id):
        _open(tx, config, group, token, state, report)


def _ended_after(
    tx: Transaction, token: tokens.Token, job: QueuedJob, snapshot: QueueSnapshot
) -> bool:
    """Whether the job's lien ended after the snapshot was taken, which still shows its job: cancelled in between."""
    lien = tx.lien(token.lien_id)
    return (
        lien is not None
        and lien.ended_us is not None
        and _same_owner(lien, job)
        and _was_for(lien, job)
        and snapshot.taken_at * 1_000_000 <= lien.ended_us <= tx.now_us + AHEAD_S * 1_000_000
    )


def _dearest(config: Config, jobs: Sequence[QueuedJob]) -> Tuple[QueuedJob, Estimate]:
    found = [(job, settle.queued_estimate(config, job)) for job in jobs]
    return max(found, key=lambda pair: (pair[1].per_task_csu, -pair[0].job_id))


def _confirm(
    tx: Transaction,
    config: Config,
    lien: Lien,
    group: _Group,
    snapshot: QueueSnapshot,
    state: SweepState,
    report: SweepReport,
) -> None:
    config = _at_prices_of(tx, config, lien.created_us // 1_000_000)
    job, estimate = _dearest(config, _as_handed_out(lien, group.jobs))
    seen = _seen(next(shown for shown in group.jobs if shown.job_id == job.job_id))
    young = _is_young(lien.proposed_us, snapshot)
    keep = young
    per_task_csu, inputs, reason = lien.per_task_csu, lien.inputs, "as before"
    if lien.seen_inputs is None:
        reason = "seen in the queue"
        changed = {key for key in _SEEN[:3] if _differs(lien.inputs, seen, key)}
        if estimate.per_task_lien_csu > per_task_csu:
            per_task_csu, inputs = estimate.per_task_lien_csu, estimate.inputs()
    else:
        changed = {key for key in _SEEN if lien.seen_inputs.get(key) != seen[key]}
        if changed:
            reason = "changed in the queue: " + ",".join(sorted(changed))
            priced = settle.queued_estimate(config, _with_changes(lien, job, changed))
            per_task_csu, inputs = priced.per_task_lien_csu, priced.inputs()
        elif lien.proposed_csu is not None and not young:
            reason = "an update that Slurm did not make"
    if lien.proposed_csu is not None and _agrees(lien.proposed_inputs or {}, seen, changed):
        per_task_csu, inputs = lien.proposed_csu, dict(lien.proposed_inputs or {})
        keep, reason = False, "an update that Slurm made"
    tasks = _believed_tasks(lien, group.tasks, state)
    if tasks != lien.tasks_left and reason == "as before":
        reason = f"{tasks} tasks left in the queue, not {lien.tasks_left}"
    if (
        lien.state == "confirmed"
        and lien.seen_inputs == seen
        and tasks == lien.tasks_left
        and per_task_csu == lien.per_task_csu
        and (lien.proposed_csu is None or keep)
    ):
        if lien.missed:
            tx.set_missed(lien, 0)
        return
    tx.confirm(
        lien,
        job_id=job.job_id if job.array_job_id is None or job.restart_count else job.array_job_id,
        submit_time=job.submit_time,
        restart_count=job.restart_count,
        tasks_left=tasks,
        per_task_csu=per_task_csu,
        inputs=inputs,
        seen_inputs=seen,
        keep_proposal=keep,
        actor=ACTOR,
        reason=reason,
    )
    report.confirmed += 1


def _as_handed_out(lien: Lien, jobs: Sequence[QueuedJob]) -> Sequence[QueuedJob]:
    """Without memory where the lien's estimate has none: Slurm does not hand it out there. With GPUs, no more than it has.

    squeue shows a waiting job with all memory of its nodes where memory is not handed out, or is by GPU.
    """
    own = _tres_of(lien.inputs)
    if not lien.inputs.get("tres") or (own.memory_mb and not own.gpus):
        return jobs
    return [
        replace(
            job,
            tres=replace(
                job.tres,
                memory_mb=min(job.tres.memory_mb, own.memory_mb),
                billing=min(job.tres.billing, own.billing) if own.gpus else job.tres.billing,
            ),
        )
        for job in jobs
    ]


def _believed_tasks(lien: Lien, tasks: int, state: SweepState) -> int:
    """More tasks than before only if two snapshots say so: some may have started and ended since this one was taken."""
    if tasks <= lien.tasks_left:
        state.more_tasks.pop(lien.lien_id, None)
        return tasks
    before = state.more_tasks.get(lien.lien_id, 0)
    if len(state.more_tasks) >= _MAX_TOLD:
        state.more_tasks.clear()
    state.more_tasks[lien.lien_id] = tasks
    return max(lien.tasks_left, min(before, tasks))


def _differs(inputs: Mapping[str, Any], seen: Mapping[str, Any], key: str) -> bool:
    """Whether what the queue shows is not what an estimate was made from."""
    if key == "partition":
        return inputs.get(key) not in str(seen[key]).split(",")
    if key == "time_limit_min" and seen[key] == UNLIMITED:
        return False
    if key == "cpus":
        return int(inputs.get(key) or 0) < int(seen[key])
    if key == "tres":
        return _asks_more(parse_tres(str(seen[key])), _tres_of(inputs))
    return bool(inputs.get(key) != seen[key])


def _agrees(proposed: Mapping[str, Any], seen: Mapping[str, Any], changed: Set[str]) -> bool:
    """Whether what changed in the queue is the update that was proposed."""
    keys = ("time_limit_min", "partition", "qos", "cpus", "tres")
    return bool(changed & set(keys)) and not any(_differs(proposed, seen, key) for key in keys)


def _tres_of(inputs: Mapping[str, Any]) -> Tres:
    """What an estimate was made from."""
    text = inputs.get("tres")
    if text:
        return parse_tres(str(text))
    return Tres(cpus=int(inputs.get("cpus") or 0), nodes=int(inputs.get("nodes") or 0))


def _asks_more(asked: Tres, estimated: Tres) -> bool:
    """Whether a waiting job asks for more of something than its estimate has, where the estimate knows of it."""
    return (
        asked.cpus > estimated.cpus
        or asked.nodes > estimated.nodes > 0
        or (asked.memory_mb > estimated.memory_mb > 0 and not estimated.gpus)
        or asked.gpu_count > estimated.gpu_count
    )


def _with_changes(lien: Lien, job: QueuedJob, changed: Set[str]) -> QueuedJob:
    """The job as its estimate had it, with what the queue shows changed since it was confirmed.

    What the queue shows of a waiting job's resources is less than Slurm may allocate; so of each of these the estimate's
    own number stays, unless it changed. Billing, which follows from them, is not lowered by what the queue shows.
    """
    values: Dict[str, Any] = {
        key: lien.inputs[key]
        for key in ("time_limit_min", "partition", "qos", "cpus", "nodes")
        if key not in changed and lien.inputs.get(key) is not None
    }
    own = _tres_of(lien.inputs)
    if own.cpus:
        before = parse_tres(str((lien.seen_inputs or {}).get("tres") or ""))
        parts = {
            part: getattr(job.tres, part)
            for part in _PARTS
            if job.tres.cpus and getattr(job.tres, part) != getattr(before, part)
        }
        for key in {"cpus", "nodes"} & changed:
            parts.setdefault(key, getattr(job, key))
        if parts or "partition" in changed:
            parts["billing"] = max(own.billing, job.tres.billing)
        values["tres"] = replace(own, **parts)
    return replace(job, **values)


def _open(
    tx: Transaction,
    config: Config,
    group: _Group,
    token: Optional[tokens.Token],
    state: SweepState,
    report: SweepReport,
) -> None:
    """A queued job without a lien: from before us, of a ledger that was lost, or past us."""
    mode = config.policy.mode
    if mode not in policy.CHECKED_MODES:
        return
    job, estimate = _dearest(config, group.jobs)
    per_task_csu, inputs = estimate.per_task_lien_csu, estimate.inputs()
    origin, lien_id = "found", None
    named = None if token is None else tx.lien(token.lien_id)
    if token is not None and named is None:
        # Its lien is not here: the ledger was lost or is younger than the job. The token carries what it cost.
        origin, lien_id = "rebuilt", token.lien_id
        if token.per_task_csu > per_task_csu:
            per_task_csu = token.per_task_csu
            inputs = {**inputs, "price_version": token.price_version, "from_token": True}
    elif named is not None and _same_owner(named, job) and _was_for(named, job):
        if named.per_task_csu > per_task_csu:
            per_task_csu, inputs = named.per_task_csu, named.inputs
    elif named is not None and state.tell_once("token", job.job_id, job.submit_time):
        _problem(
            state,
            report,
            f"token_ignored job_id={job.job_id} job_user={job.user_id} account={job.account} "
            f"lien={named.lien_id} lien_job={named.job_id} lien_user={named.user_id} "
            f"lien_account={named.account}",
        )
    created = tx.meta("created")
    if origin == "found" and token is None and created and job.submit_time < int(created):
        origin = "grandfathered"
    counted = origin != "grandfathered" and policy.counts_while_queued(mode)
    seen = _seen(job)
    lien_id = tx.open_lien(
        account=job.account,
        user_id=job.user_id,
        user_name=job.user_name,
        per_task_csu=per_task_csu,
        tasks=group.tasks,
        origin=origin,
        inputs=inputs,
        reason=f"{origin}: in the queue without a lien",
        actor=ACTOR,
        lien_id=lien_id,
        counted=counted,
        name=job.name,
        job_id=job.job_id if job.array_job_id is None or job.restart_count else job.array_job_id,
        submit_time=job.submit_time,
        restart_count=job.restart_count,
        confirmed=True,
    )
    opened = tx.lien(lien_id)
    assert opened is not None
    tx.confirm(
        opened,
        job_id=opened.job_id or job.job_id,
        submit_time=opened.submit_time,
        restart_count=opened.restart_count,
        tasks_left=opened.tasks_left,
        per_task_csu=opened.per_task_csu,
        inputs=opened.inputs,
        seen_inputs=seen,
        keep_proposal=False,
        actor=ACTOR,
        reason=origin,
    )
    report.opened[origin] = report.opened.get(origin, 0) + 1


def _was_for(lien: Lien, job: QueuedJob) -> bool:
    return lien.job_id in (None, job.job_id, job.array_job_id)


# -- what is gone -------------------------------------------------------------------------------------------------------


def _gone_runs(
    view: _View,
    present: Set[Tuple[int, int]],
    snapshot: QueueSnapshot,
    state: SweepState,
    now: float,
) -> List[LedgerRun]:
    """Running here, not in the queue, and slurmdbd not asked about lately."""
    if not snapshot.complete:
        return []
    gone = [
        run
        for (job_id, submit_time, _), run in view.runs.items()
        if (job_id, submit_time) not in present
        and (run.start_time is None or run.start_time < snapshot.taken_at - PROPOSAL_S)
    ]
    asked = {
        run.run_id: state.ask_run_at[run.run_id] for run in gone if run.run_id in state.ask_run_at
    }
    state.ask_run_at = asked
    absent = {run.run_id for run in gone}
    state.endless_since = {
        run_id: since for run_id, since in state.endless_since.items() if run_id in absent
    }
    return [run for run in gone if asked.get(run.run_id, 0.0) <= now]


def _count_missed(
    ledger: Ledger, config: Config, view: _View, snapshot: QueueSnapshot, now: float
) -> List[Lien]:
    """Counts the liens that the snapshot does not show; those that may end by now."""
    shown = set()
    for job in snapshot.jobs:
        if not is_started(
            job
        ):  # a started task has left the lien; what is left of it waits, or is gone
            lien = view.lien_of(job)
            if lien is not None:
                shown.add(lien.lien_id)
    absent = [
        lien
        for lien in view.liens.values()
        if lien.lien_id not in shown
        and (lien.created_us < snapshot.taken_at * 1_000_000 or _age_s(lien, now) < -AHEAD_S)
    ]
    candidates: List[Lien] = []

    def miss(tx: Transaction, lien: Lien) -> None:
        current = tx.lien(lien.lien_id)
        if current is None or not current.open:
            return
        if current.job_id is not None and lien.job_id is None:
            return  # bound since
        if current.missed < TIMES_MISSED:
            tx.set_missed(current, current.missed + 1)
        age_s = _age_s(current, now)
        old = age_s > config.relay.lien_grace_s or age_s < -AHEAD_S
        if current.missed + 1 >= TIMES_MISSED and old:
            candidates.append(current)

    _write(ledger, absent, miss)
    return candidates


def _age_s(lien: Lien, now: float) -> float:
    """Since it was opened, or seen in the queue; below 0 if a clock was set back since."""
    return now - max(lien.created_us, lien.confirmed_us or 0) / 1_000_000


def _ask_accounting(
    ledger: Ledger,
    config: Config,
    sacct: Accounting,
    gone: Sequence[LedgerRun],
    missing: Sequence[Lien],
    open_liens: int,
    state: SweepState,
    now: float,
    force: bool,
    report: SweepReport,
) -> None:
    if not gone and not missing:
        return
    job_ids = {run.job_id for run in gone} | {
        lien.job_id for lien in missing if lien.job_id is not None
    }
    told: Mapping[int, Tuple[Run, ...]] = {}
    if job_ids:
        try:
            told = sacct.read_jobs(sorted(job_ids))
        except SlurmUnavailable as error:
            unbound = [lien for lien in missing if lien.job_id is None]
            report.waiting += len(gone) + len(missing) - len(unbound)
            _problem(state, report, f"accounting_unavailable {error}")
            missing = unbound  # slurmdbd has nothing to say about a job without an id
            gone = []
    by_array: Dict[int, List[Run]] = {}
    for runs in told.values():
        for row in runs:
            if row.array_job_id is not None and row.array_job_id != row.job_id:
                by_array.setdefault(row.array_job_id, []).append(row)

    def finish(tx: Transaction, run: LedgerRun) -> None:
        for row in told.get(run.job_id, ()):
            # slurmctld, killed, may give a job id again in the same second, to another user's job.
            same = (row.submit_time, row.user_id) == (run.submit_time, run.user_id)
            if same and row.end_time is not None:
                if _end_from_accounting(tx, config, row, state, report.problems):
                    report.ended += 1
                state.ask_run_at.pop(run.run_id, None)
                state.endless_since.pop(run.run_id, None)
                return
        state.endless_since.setdefault(run.run_id, now)
        state.ask_run_at[run.run_id] = now + ASK_AGAIN_S
        report.waiting += 1

    _write(ledger, gone, finish)

    rows_of: Dict[str, List[Run]] = {}
    for lien in missing:
        near = (
            []
            if lien.job_id is None
            else [*told.get(lien.job_id, ()), *by_array.get(lien.job_id, ())]
        )
        rows_of[lien.lien_id] = [row for row in near if _row_is_for(lien, row)]
    traceless = [
        lien
        for lien in missing
        if lien.state == "confirmed"
        and not any(_explains(row) or _exempt_run(config, row) for row in rows_of[lien.lien_id])
    ]
    if (
        len(traceless) > MANY_LIENS
        and len(traceless) * 100 > open_liens * MANY_PERCENT
        and not force
    ):
        report.alarm = (
            f"{len(traceless)} of {open_liens} open liens would end because neither Slurm's queue nor accounting "
            "has a trace of their jobs; none was ended. Look, then: slurm-banking sweep --force"
        )
        stopped = {lien.lien_id for lien in traceless}
        missing = [lien for lien in missing if lien.lien_id not in stopped]

    absent = {lien.lien_id for lien in missing}
    state.runaway_since = {
        lien_id: since for lien_id, since in state.runaway_since.items() if lien_id in absent
    }

    def end(tx: Transaction, lien: Lien) -> None:
        _end_lien(tx, config, lien, rows_of[lien.lien_id], state, report, now)

    _write(ledger, missing, end)


def _end_lost(
    ledger: Ledger,
    config: Config,
    snapshot: QueueSnapshot,
    sacct: Accounting,
    gone: Sequence[LedgerRun],
    state: SweepState,
    now: float,
    force: bool,
    report: SweepReport,
) -> None:
    """End the runs that slurmctld forgot: killed before it had saved or told them, it does not know them any more.

    As evidence, slurmdbd has answered for LOST_S that it knows no end of them (it has no row, or one that sacctmgr calls
    runaway); and slurmctld was restarted since they began, or they must have ended a day ago by their limit. Without
    either, it has for LOST_ANYHOW_S. Should it tell one later, that is charged.

    If slurmdbd never got their start, and has their times alone, those are charged, in the partition that is known here.
    Of the others nobody will tell the end, and nobody knows how long they were on their nodes: nothing is charged.
    """
    lost = [
        run
        for run in gone
        if state.ask_run_at.get(run.run_id, now) > now  # slurmdbd has just answered
        and _is_lost(
            run.start_time,
            run.time_limit_min,
            now - state.endless_since.get(run.run_id, now),
            snapshot.boot_time,
            now,
        )
    ]
    if lost:
        try:
            lost = _end_by_times(ledger, config, sacct, lost, state, report)
        except SlurmUnavailable as error:
            _problem(state, report, f"accounting_unavailable {error}")
            return
    if len(lost) > MANY_LIENS and not force:
        report.alarm = report.alarm or (
            f"{len(lost)} running jobs are not in Slurm's queue, and accounting has no end of them; none was ended. Look, then: "
            "slurm-banking sweep --force"
        )
        return

    def end(tx: Transaction, run: LedgerRun) -> None:
        current = tx.run(run.run_id)
        if current is None or current.state != "running":
            return
        tx.lose_run(current, lost_at=int(now), actor=ACTOR)
        log.warning("run_lost job_id=%d submit_time=%d", run.job_id, run.submit_time)
        report.lost += 1

    _write(ledger, lost, end)
    for run in lost:
        state.endless_since.pop(run.run_id, None)


def _end_by_times(
    ledger: Ledger,
    config: Config,
    sacct: Accounting,
    lost: Sequence[LedgerRun],
    state: SweepState,
    report: SweepReport,
) -> List[LedgerRun]:
    """Charge those of which slurmdbd has start and end, and not what it would have got with the start; the others.

    :raises SlurmUnavailable: nothing was written.
    """
    rows = sacct.rows_by_key(sorted({run.job_id for run in lost}))
    told: List[Tuple[LedgerRun, Run]] = []
    for run in lost:
        row = rows.get((run.job_id, run.submit_time))
        if row is None or row.whole or row.run.account != run.account:
            continue
        if row.run.started and row.run.end_time is not None:
            told.append((run, row.run))

    def end(tx: Transaction, item: Tuple[LedgerRun, Run]) -> None:
        run, times = item
        current = tx.run(run.run_id)
        if current is None or current.state != "running":
            return
        whole = replace(
            times,
            user_id=run.user_id,
            user_name=run.user_name,
            account=run.account,
            partition=run.partition,
            qos=run.qos,
            restart_count=run.restart_count,
            time_limit_min=run.time_limit_min,
            cpus=times.tres.cpus or run.cpus,
            tres=times.tres if times.tres.cpus else Tres(cpus=run.cpus),
            array_job_id=run.array_job_id,
            array_task_id=run.array_task_id,
        )
        if _end_from_accounting(tx, config, whole, state, report.problems):
            log.warning(
                "run_ended_by_times job_id=%d submit_time=%d elapsed_s=%d",
                run.job_id,
                run.submit_time,
                times.elapsed_s,
            )
            report.ended += 1

    _write(ledger, told, end)
    ended = {run.run_id for run, _ in told}
    for run_id in ended:
        state.endless_since.pop(run_id, None)
    return [run for run in lost if run.run_id not in ended]


def _is_lost(
    start_time: Optional[int],
    time_limit_min: Optional[int],
    endless_s: float,
    boot_time: int,
    now: float,
) -> bool:
    """Whether what is not in the queue, and of which slurmdbd has told no end for ``endless_s``, is over all the same."""
    if start_time is None or endless_s < LOST_S:
        return False
    return (
        start_time <= boot_time  # in whole seconds: it was killed and started again in one
        or is_overdue(start_time, time_limit_min, now)
        or endless_s >= LOST_ANYHOW_S
    )


def _row_is_for(lien: Lien, row: Run) -> bool:
    return (
        row.account == lien.account
        and row.user_id == lien.user_id
        and (
            lien.submit_time is None
            or lien.submit_time == row.submit_time
            or lien.origin in ("requeue", "update")
        )
    )


def _explains(row: Run) -> bool:
    """Whether a row of slurmdbd says by itself that its lien is over."""
    return row.end_time is not None and (not row.started or row.array_job_id is None)


def _end_lien(
    tx: Transaction,
    config: Config,
    lien: Lien,
    rows: Sequence[Run],
    state: SweepState,
    report: SweepReport,
    now: float,
) -> None:
    current = tx.lien(lien.lien_id)
    if (
        current is None
        or not current.open
        or current.missed != lien.missed + (1 if lien.missed < TIMES_MISSED else 0)
    ):
        return  # seen or ended since
    # A job that became exempt while it waited is not charged, and needs no lien while it runs.
    exempt = [row for row in rows if _exempt_run(config, row) and _unknown_run(tx, row)]
    rows = [row for row in rows if row not in exempt]
    for row in rows:
        if row.end_time is not None and _end_from_accounting(
            tx, config, row, state, report.problems
        ):
            report.ended += 1
    current = tx.lien(lien.lien_id)
    if current is None or not current.open:
        report.voided += int(current is not None and current.end_kind == "lien_voided")
        return
    running = [row for row in rows if row.started and row.end_time is None]
    running = [row for row in running if _unknown_run(tx, row)]
    endless_s = now - state.runaway_since.setdefault(lien.lien_id, now) if running else 0.0
    if not all(
        _is_lost(row.start_time, row.time_limit_min, endless_s, state.boot_time, now)
        for row in running
    ):
        report.waiting += 1  # slurmdbd believes that it runs
        return
    if current.state == "unconfirmed":
        tx.end_lien(
            current, "lien_expired", reason="never seen in the queue or accounting", actor=ACTOR
        )
        report.expired += 1
    else:
        cancelled = any(not row.started and row.end_time is not None for row in rows)
        reason = "cancelled while queued" if cancelled else "not in queue nor accounting"
        if running:
            reason = "runaway: accounting has it as running, and Slurm does not know it"
        if any(row.started for row in exempt):
            reason = "its job is exempt by now"
        tx.end_lien(current, "lien_voided", reason=reason, actor=ACTOR)
        report.voided += 1


def _exempt_run(config: Config, row: Run) -> bool:
    return policy.is_exempt(
        config, account=row.account, user_name=row.user_name, user_id=row.user_id, qos=row.qos
    )


def _unknown_run(tx: Transaction, row: Run) -> bool:
    """Whether the run that slurmdbd has is not a run here (one that is has its share apart from the lien)."""
    return _run_of(tx, row, row.restart_count) is None


def _run_of(tx: Transaction, row: Run, restart_count: Optional[int] = None) -> Optional[LedgerRun]:
    """The run here of a row of slurmdbd. Another user's under the same key is another run: whose it is, the ledger decides."""
    found = tx.find_run(row.job_id, row.submit_time, restart_count)
    return found if found is not None and found.user_id == row.user_id else None


def _is_half_of_another(tx: Transaction, row: Run) -> bool:
    """Whether it has the start of one run and the end of another: slurmdbd writes the later one over the earlier one."""
    return (
        row.started
        and row.start_time is not None
        and row.end_time is not None
        and row.end_time < row.start_time
        and any(
            (run.job_id, run.submit_time) == (row.job_id, row.submit_time)
            and run.user_id != row.user_id
            for run in tx.runs_by_job(row.job_id)
        )
    )


def _end_from_accounting(
    tx: Transaction,
    config: Config,
    row: Run,
    state: SweepState,
    problems: List[str],
    drift: Optional[List[str]] = None,
) -> bool:
    """Settle an ended run that slurmdbd tells of; True if that ended a run here.

    What has ended here stays as it is, but for two kinds: see :func:`_may_restate`. An end that Slurm made up for a
    runaway job says nothing about how long it ran: no time is charged.
    """
    if is_made_up(row):
        if state.tell_once("made_up", row.job_id, row.submit_time):
            log.warning(
                "run_end_made_up job_id=%d submit_time=%d elapsed_s=%d time_limit_min=%s state=%s charged=0",
                row.job_id,
                row.submit_time,
                row.elapsed_s,
                row.time_limit_min,
                row.state,
            )
        row = replace(row, elapsed_s=0, segments=())
    if _is_half_of_another(tx, row):
        return False
    existing = _run_of(tx, row, row.restart_count)
    if existing is None and row.restart_count != UNKNOWN_RESTART:
        # Job and submit time name one run; a rank among slurmdbd's rows may not be the restart count.
        existing = _run_of(tx, row)
    if existing is not None:
        if existing.state == "ended" and not _may_restate(existing, row):
            _tell_drift(existing, row, state, drift)
            return False
        row = replace(row, restart_count=existing.restart_count)
        if not row.started:
            # It ran, and after a crash Slurm knows it as one that never did: nothing is charged.
            row = replace(row, started=True, start_time=existing.start_time, elapsed_s=0)
    try:
        result = settle.end_run(tx, row, config, actor=ACTOR)
    except EntryConflict as error:
        if state.tell_once("conflict", row.job_id, row.submit_time):
            log.error("run_conflict job_id=%d %s", row.job_id, error)
            problems.append(f"run_conflict job_id={row.job_id} {error}")
        return False
    return result.kind in ("charged", "restated")


def _may_restate(existing: LedgerRun, row: Run) -> bool:
    """Whether slurmdbd knows better.

    Of a run that was resized it may have a part that was missed here; but of one that was requeued after a resize it
    has the end of the next run. One taken for lost was not, unless its end was made up after that; one whose start had
    failed has run since. And of one that it had as never started, when slurmctld had come back with an older state, it
    may have the times by now.
    """
    lost = existing.slurm_state == LOST
    if lost and is_made_up_of_lost(row, existing.inputs.get("lost_at")):
        return False
    timeless = existing.source == row.source and not existing.elapsed_s
    return len(row.segments) > len(existing.inputs.get("segments") or ()) or (
        row.started
        and (lost or existing.returned or (timeless and row.elapsed_s > 0 and not is_made_up(row)))
    )


def _tell_drift(
    existing: LedgerRun, row: Run, state: SweepState, drift: Optional[List[str]]
) -> None:
    if drift is None or not row.started:
        return
    charged, told = _tres_of(existing.inputs), allocated(row)
    same = charged == told
    if Tres(cpus=charged.cpus, nodes=charged.nodes) in (charged, told):
        same = charged.cpus == told.cpus  # one of them knows of nothing else
    if same and existing.elapsed_s == row.elapsed_s:
        return
    if not state.tell_once("drift", row.job_id, row.submit_time, row.elapsed_s, told):
        return
    line = (
        f"accounting_differs job_id={row.job_id} submit_time={row.submit_time} ledger_elapsed_s={existing.elapsed_s} "
        f"sacct_elapsed_s={row.elapsed_s} ledger_tres={charged} sacct_tres={told} state={row.state}"
    )
    log.warning("%s", line)
    drift.append(line)


def _problem(state: SweepState, report: SweepReport, line: str) -> None:
    report.problems.append(line)
    if state.tell_once("problem", line):
        log.warning("%s", line)


# -- slurmdbd's ended runs ----------------------------------------------------------------------------------------------


def charge_unrecorded(
    ledger: Ledger,
    config: Config,
    sacct: Accounting,
    state: SweepState,
    now: float,
    *,
    since: Optional[int] = None,
) -> WindowReport:
    """Charge runs that slurmdbd says have ended and that left no record here.

    ``since``: from then on instead of from where the last window ended.

    :raises SlurmUnavailable: slurmdbd cannot be asked; the next call starts where this one stopped.
    :raises LedgerError: the ledger cannot be used.
    """
    report = WindowReport()
    marks = _take_marks(ledger.state_dir)
    if marks:
        marked = sacct.read_jobs(sorted({job_id for job_id, _, _ in marks}))
        rows = [row for runs in marked.values() for row in runs]
        _settle_rows(ledger, config, sacct, rows, state, report)
        over = {(row.job_id, row.submit_time) for row in rows if row.end_time is not None}
        _keep_marks(ledger, marks, over, now, report)
    with ledger.transaction(write=False) as tx:
        watermark = tx.meta("sacct_watermark")
        created = int(tx.meta("created") or 0)
    first = created - config.relay.sacct_lookback_h * 3600
    position = int(watermark) if watermark is not None else first
    if since is not None:
        position = min(position, since + WINDOW_OVERLAP_S)
    end = int(now) - WINDOW_LAG_S
    report.until = position
    while position < end:
        until = min(end, position + WINDOW_STEP_S)
        rows = list(sacct.read_ended_runs(position - WINDOW_OVERLAP_S, until))
        report.read += len(rows)
        _settle_rows(ledger, config, sacct, rows, state, report)
        with ledger.transaction() as tx:
            if until > int(tx.meta("sacct_watermark") or 0):
                tx.set_meta("sacct_watermark", str(until))
        report.until = position = until
    if report.charged or report.voided or report.rescanned:
        log.info(
            "sacct_window read=%d charged=%d voided=%d rescanned=%d until=%d",
            report.read,
            report.charged,
            report.voided,
            report.rescanned,
            report.until,
        )
    return report


def _settle_rows(
    ledger: Ledger,
    config: Config,
    sacct: Accounting,
    rows: Sequence[Run],
    state: SweepState,
    report: WindowReport,
) -> None:
    wanted: List[Run] = []
    for first in range(0, len(rows), ROWS_PER_READ):
        with ledger.transaction(write=False) as tx:
            created = int(tx.meta("created") or 0)
            for row in rows[first : first + ROWS_PER_READ]:
                if row.end_time is None or row.resizing:
                    continue
                existing = _run_of(tx, row)
                if (
                    existing is not None
                    and existing.state == "ended"
                    and not _may_restate(existing, row)
                ):
                    _tell_drift(existing, row, state, report.drift)
                elif existing is not None or _is_ours(config, row, created):
                    wanted.append(row)
                    report.earlier += int(existing is None and row.end_time < created)
    unranked = sorted(
        {
            row.job_id
            for row in wanted
            if row.started
            and (row.restart_count == UNKNOWN_RESTART or row.start_time == row.submit_time)
        }
    )
    if unranked:
        told = sacct.read_jobs(unranked)
        wanted = list(dict.fromkeys(_whole(row, told.get(row.job_id, ())) for row in wanted))

    def settle_one(tx: Transaction, row: Run) -> None:
        open_before = _open_lien_of(tx, row) if not row.started else None
        if _end_from_accounting(tx, config, row, state, report.problems, report.drift):
            report.charged += 1
        elif open_before is not None:
            after = tx.lien(open_before)
            report.voided += int(after is not None and not after.open)

    _write(ledger, wanted, settle_one)


def _whole(row: Run, runs: Sequence[Run]) -> Run:
    """The run that a row of slurmdbd is, with its restart count; or the resized one that it is the last part of."""
    for run in runs:
        if run.submit_time == row.submit_time:
            return replace(row, restart_count=run.restart_count)
    for run in runs:
        if run.segments and run.submit_time < row.submit_time and run.end_time == row.end_time:
            return run
    return row


def _open_lien_of(tx: Transaction, row: Run) -> Optional[str]:
    lien = tx.find_lien(
        job_id=row.job_id,
        array_job_id=row.array_job_id,
        account=row.account,
        user_id=row.user_id,
        submit_time=row.submit_time,
    )
    return None if lien is None else lien.lien_id


def _is_ours(config: Config, row: Run, created: int) -> bool:
    """Whether a run that is not here should be: not exempt, and not over before there was a ledger, unless it has a token."""
    if _exempt_run(config, row):
        return False
    assert row.end_time is not None
    return row.end_time >= created or tokens.parse(row.admin_comment) is not None


# -- marks of slurmctld -------------------------------------------------------------------------------------------------


def rescan_wanted(state_dir: str) -> bool:
    """Whether slurmctld left marks of runs that it could not write."""
    return os.path.exists(os.path.join(state_dir, RESCAN_NAME))


_Mark = Tuple[int, int, int]  #: job id, submit time, when


def _take_marks(state_dir: str) -> List[_Mark]:
    """The marks, taken out of slurmctld's way by a rename; those that were kept from before among them."""
    path = os.path.join(state_dir, RESCAN_NAME)
    taken, moved = path + ".taken", path + ".moved"
    if os.path.exists(path) and not os.path.exists(
        moved
    ):  # else this was interrupted: first what it left
        os.replace(path, moved)
        time.sleep(0.05)  # for a writer that had it open
    marks = _read_marks(taken)
    if os.path.exists(moved):
        marks += _read_marks(moved)
        _write_marks(taken, marks)
        os.unlink(moved)
    return list(dict.fromkeys(marks))


def _read_marks(path: str) -> List[_Mark]:
    try:
        with open(path, "rb") as file:
            lines = file.read(_RESCAN_MAX_BYTES).splitlines()
    except FileNotFoundError:
        return []
    marks: List[_Mark] = []
    for line in lines:
        try:
            mark = json.loads(line)
            marks.append((int(mark["job_id"]), int(mark["submit_time"]), int(mark["at"])))
        except (ValueError, KeyError, TypeError):
            log.warning("rescan_mark_unreadable line=%r", line[:100])
    return marks


def _write_marks(path: str, marks: Sequence[_Mark]) -> None:
    new = path + ".new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        for job_id, submit_time, at in marks:
            file.write(json.dumps({"job_id": job_id, "submit_time": submit_time, "at": at}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _keep_marks(
    ledger: Ledger,
    marks: Sequence[_Mark],
    over: Set[Tuple[int, int]],
    now: float,
    report: WindowReport,
) -> None:
    """Marks whose run slurmdbd does not know as ended yet (``over``: those that it does) stay for the next time."""
    kept: List[_Mark] = []
    with ledger.transaction(write=False) as tx:
        for mark in marks:
            run = tx.find_run(mark[0], mark[1])
            if (run is not None and run.state == "ended") or mark[:2] in over:
                report.rescanned += 1
            elif now - mark[2] < RESCAN_PATIENCE_S:
                kept.append(mark)
            else:
                log.error("rescan_given_up job_id=%d submit_time=%d", mark[0], mark[1])
    path = os.path.join(ledger.state_dir, RESCAN_NAME + ".taken")
    if kept:
        _write_marks(path, kept)
    elif os.path.exists(path):
        os.unlink(path)


__all__ = [
    "SweepReport",
    "SweepState",
    "WindowReport",
    "adopt",
    "as_run",
    "charge_unrecorded",
    "confirm_and_sweep",
    "rescan_wanted",
]
