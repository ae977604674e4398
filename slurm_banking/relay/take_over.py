# SPDX-License-Identifier: BSD-3-Clause
"""Runs that the bank has and that a ledger made anew does not know.

They began before the ledger was lost. Slurm's queue does not have them, or has their job as one that waits: else the
rebuilding would have taken them over. And slurmdbd has no end of them that names our token, or they would be charged:
slurmctld was killed before it had told all of it.

* What runs on at the bank would be held there at its estimate for ever. As runs of the ledger they end like any other
  that slurmctld forgot (:func:`slurm_banking.relay.sweep.confirm_and_sweep`), and the bank is told.
* What has ended there was charged by the ledger that was lost: it is charged here as the bank has it. Only where there
  was such a ledger, by the tokens that the rebuilding saw: what a bank has from before us is not ours.

A row is taken only if slurmdbd has a row of that job, submitted then, however little it knows of it: other clusters may
share the bank.
"""

from __future__ import annotations

import logging
from typing import Callable, Iterator, List, Mapping, Optional, Protocol, Sequence, Tuple

from slurm_banking import settle
from slurm_banking.bank import BankRun, NoListing
from slurm_banking.config import Config
from slurm_banking.errors import EntryConflict
from slurm_banking.ledger import Ledger, Transaction
from slurm_banking.ledger.rows import RETURNED, STRUCK
from slurm_banking.reconcile.compare import RowNames
from slurm_banking.records import Run
from slurm_banking.relay.sweep import ACTOR, ROWS_PER_READ
from slurm_banking.slurm.accounting import Row
from slurm_banking.slurm.squeue import QueueSnapshot, is_started
from slurm_banking.tres import Tres

log = logging.getLogger("slurm_banking.relay")

#: In the ledger's meta: "SINCE:UNTIL" or "SINCE:UNTIL:ended", unix seconds of starts, while the bank's rows are still to
#: be looked at; with the word, those that have ended too.
META = "open_rows"
_ENDED = "ended"

#: Seconds of starts that the bank is asked for at once. What was read of one window is written before the next.
WINDOW_S = 6 * 3600

#: States of rows of what never ran, or was found never to have been.
NO_RUN = frozenset({RETURNED, STRUCK})

Key = Tuple[int, int]  #: job id, submit time


class RowsOfBank(Protocol):
    def open_runs(self, *, since: int, until: int) -> Iterator[BankRun]: ...

    def list_runs(self, *, since: int, until: int) -> Iterator[BankRun]: ...


class RowsOfSlurmdbd(Protocol):
    def rows_by_key(self, job_ids: Sequence[int]) -> Mapping[Key, Row]: ...


def want(tx: Transaction, since: int, until: int, *, ended: bool) -> None:
    """Look at the bank's rows that started then, once it answers."""
    tx.set_meta(META, f"{since}:{until}" + (f":{_ENDED}" if ended else ""))


def take_over(
    ledger: Ledger,
    config: Config,
    snapshot: QueueSnapshot,
    accounting: RowsOfSlurmdbd,
    bank: Callable[[], RowsOfBank],
) -> Optional[int]:
    """How many runs were taken over. None: nothing is to be looked at.

    :raises SlurmUnavailable, BankError: to be called again; goes on with the window where it stopped.
    :raises LedgerError: the ledger cannot be used.
    """
    with ledger.transaction(write=False) as tx:
        wanted = tx.meta(META)
    if not wanted:
        return None
    since, until, *words = wanted.split(":")
    position, end, ended_too = int(since), int(until), _ENDED in words
    seen = taken = 0
    while position < end:
        upper = min(position + WINDOW_S, end)
        try:
            rows = _unknown_rows(ledger, config, snapshot, bank(), position, upper, ended_too)
        except NoListing as error:
            log.warning("bank_rows_not_listed problem=%s", error)
            rows, upper = [], end
        known = accounting.rows_by_key(sorted({run.job_id for _, run in rows})) if rows else {}
        seen += len(rows)
        for row, run in rows:
            if (run.job_id, run.submit_time) in known:
                try:
                    with ledger.transaction() as tx:
                        taken += _take(tx, config, run, row)
                    continue
                except EntryConflict:
                    pass  # slurmctld gave its job id again: slurmdbd's row is another user's
            if run.end_time is None:
                log.warning(
                    "bank_row_of_nobody bank_job=%s: it runs on there, and neither Slurm nor the ledger knows it",
                    row.bank_job_id,
                )
        position = upper
        with ledger.transaction() as tx:
            if position < end:
                want(tx, position, end, ended=ended_too)
            else:
                tx.set_meta(META, "")
    log.info("bank_rows_looked_at rows=%d taken_over=%d", seen, taken)
    return taken


def _unknown_rows(
    ledger: Ledger,
    config: Config,
    snapshot: QueueSnapshot,
    bank: RowsOfBank,
    since: int,
    until: int,
    ended_too: bool,
) -> List[Tuple[BankRun, Run]]:
    """Rows of runs that neither the queue nor the ledger has.

    :raises NoListing: a bank of the original generation.
    """
    names = RowNames(config.api.job_id_format, ledger.cluster)
    # Of a job that waits by the queue the bank may have a run that has not ended: slurmctld forgot its start.
    present = {(job.job_id, job.submit_time) for job in snapshot.jobs}
    running = {(job.job_id, job.submit_time) for job in snapshot.jobs if is_started(job)}
    found: List[Tuple[BankRun, Run]] = []
    for row in bank.open_runs(since=since, until=until):
        run = _as_run(row, names, ledger.cluster)
        if run is not None and run.end_time is None:
            if (run.job_id, run.submit_time) not in running:
                found.append((row, run))
    for row in bank.list_runs(since=since, until=until) if ended_too else ():
        run = _as_run(row, names, ledger.cluster)
        if run is not None and run.end_time is not None and run.state not in NO_RUN:
            if (run.job_id, run.submit_time) not in present:
                found.append((row, run))
    unknown: List[Tuple[BankRun, Run]] = []
    for first in range(0, len(found), ROWS_PER_READ):
        with ledger.transaction(write=False) as tx:
            unknown += [
                (row, run)
                for row, run in found[first : first + ROWS_PER_READ]
                if not _is_known(tx, run, row)
            ]
    return unknown


def _as_run(row: BankRun, names: RowNames, cluster: str) -> Optional[Run]:
    """None: a node's report, which holds nothing; or not a run as we tell them."""
    job_id, restart_count = names.job_id(row.bank_job_id), names.restart_count(row.bank_job_id)
    if job_id is None or row.told_by_node:
        return None
    if row.submit_time is None or row.start_time is None:
        return None
    if not (row.user_id.isascii() and row.user_id.isdigit()):
        return None
    end_time = None if row.end_time is None else max(row.end_time, row.start_time)
    return Run(
        cluster=cluster,
        job_id=job_id,
        submit_time=row.submit_time,
        restart_count=restart_count,
        user_id=int(row.user_id),
        account=row.account,
        partition=row.partition,
        qos=row.qos,
        state="RUNNING" if end_time is None else row.state,
        start_time=row.start_time,
        end_time=end_time,
        elapsed_s=0 if end_time is None else end_time - row.start_time,
        cpus=row.cpus,
        started=True,
        tres=Tres(cpus=row.cpus),
        source="bank",
    )


def _is_known(tx: Transaction, run: Run, row: BankRun) -> bool:
    return any(
        (known.job_id, known.submit_time, known.user_id)
        == (run.job_id, run.submit_time, run.user_id)
        or known.bank_job_id == row.bank_job_id
        for known in tx.runs_by_job(run.job_id)
    )


def _take(tx: Transaction, config: Config, run: Run, row: BankRun) -> bool:
    """Whether it was not there yet."""
    if _is_known(tx, run, row):
        return False
    if run.end_time is not None:
        # Its delivery finds it there already.
        ended = settle.end_run(tx, run, config, actor=ACTOR).run
        if ended is not None and ended.charge_csu != row.amount_csu:
            tx.adopt_charge(ended, row.amount_csu, actor=ACTOR, reason="as the bank has it")
        return True
    inputs = {"bank_job_id": row.bank_job_id, "lien_csu": row.amount_csu}
    started, _ = tx.start_run(run, share_csu=row.amount_csu, inputs=inputs, actor=ACTOR)
    delivery = tx.delivery_of(started.run_id)
    assert delivery is not None
    tx.acknowledge(
        delivery,
        bank_csu=row.held_csu,
        bank_job_id=row.bank_job_id,
        actor=ACTOR,
        reason="found",
    )
    return True
