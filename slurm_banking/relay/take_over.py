# SPDX-License-Identifier: BSD-3-Clause
"""Runs that the bank has as running and that a ledger made anew does not know.

They began before the ledger was lost. Slurm's queue does not have them, or has their job as one that waits: else the
rebuilding would have taken them over. And slurmdbd has no end of them that names our token, or they would be charged: slurmctld was killed before it had told
all of it. Left alone, the bank would hold their estimates for ever. As runs of the ledger they end like any other that
slurmctld forgot (:func:`slurm_banking.relay.sweep.confirm_and_sweep`), and the bank is told.

A row is taken only if slurmdbd has a row of that job, submitted then, however little it knows of it: other clusters may
share the bank.
"""

from __future__ import annotations

import logging
from typing import Callable, Dict, FrozenSet, Iterator, List, Optional, Protocol, Sequence, Tuple

from slurm_banking.bank import BankRun, NoListing
from slurm_banking.config import Config
from slurm_banking.ledger import Ledger, Transaction
from slurm_banking.reconcile.compare import RowNames
from slurm_banking.records import Run
from slurm_banking.relay.sweep import ACTOR
from slurm_banking.slurm.squeue import QueueSnapshot, is_started
from slurm_banking.tres import Tres

log = logging.getLogger("slurm_banking.relay")

#: In the ledger's meta: "SINCE:UNTIL", unix seconds of starts, while the bank's rows are still to be looked at.
META = "open_rows"


class OpenAtBank(Protocol):
    def open_runs(self, *, since: int, until: int) -> Iterator[BankRun]: ...


class Submitted(Protocol):
    def submitted(self, job_ids: Sequence[int]) -> FrozenSet[Tuple[int, int]]: ...


def want(tx: Transaction, since: int, until: int) -> None:
    """Look at the bank's rows that started then, once it answers."""
    tx.set_meta(META, f"{since}:{until}")


def take_over(
    ledger: Ledger,
    config: Config,
    snapshot: QueueSnapshot,
    accounting: Submitted,
    bank: Callable[[], OpenAtBank],
) -> Optional[int]:
    """How many runs were taken over. None: nothing is to be looked at.

    :raises SlurmUnavailable, BankError: to be called again; nothing was written.
    :raises LedgerError: the ledger cannot be used.
    """
    with ledger.transaction(write=False) as tx:
        wanted = tx.meta(META)
    if not wanted:
        return None
    since, until = (int(text) for text in wanted.split(":"))
    names = RowNames(config.api.job_id_format, ledger.cluster)
    # Of a job that waits by the queue the bank may have a run: slurmctld forgot its start.
    running = {(job.job_id, job.submit_time) for job in snapshot.jobs if is_started(job)}
    found: List[Run] = []
    rows: Dict[Tuple[int, int], BankRun] = {}
    try:
        for row in bank().open_runs(since=since, until=until):
            run = _as_run(row, names, ledger.cluster)
            if run is not None and (run.job_id, run.submit_time) not in running:
                found.append(run)
                rows[run.job_id, run.submit_time] = row
    except NoListing as error:
        log.warning("bank_rows_not_listed problem=%s", error)
    known: FrozenSet[Tuple[int, int]] = frozenset()
    if found:
        known = accounting.submitted(sorted({run.job_id for run in found}))
    taken = 0
    for run in found:
        key = run.job_id, run.submit_time
        if key not in known:
            log.warning(
                "bank_row_of_nobody bank_job=%s: it runs on there, and neither Slurm nor the ledger knows it",
                rows[key].bank_job_id,
            )
            continue
        with ledger.transaction() as tx:
            taken += _take(tx, run, rows[key])
    with ledger.transaction() as tx:
        tx.set_meta(META, "")
    log.info("bank_rows_looked_at rows=%d taken_over=%d", len(found), taken)
    return taken


def _as_run(row: BankRun, names: RowNames, cluster: str) -> Optional[Run]:
    """None: a node's report, which holds nothing; or not a run as we tell them."""
    job_id, restart_count = names.job_id(row.bank_job_id), names.restart_count(row.bank_job_id)
    if job_id is None or row.told_by_node or row.end_time is not None:
        return None
    if row.submit_time is None or row.start_time is None:
        return None
    if not (row.user_id.isascii() and row.user_id.isdigit()):
        return None
    return Run(
        cluster=cluster,
        job_id=job_id,
        submit_time=row.submit_time,
        restart_count=restart_count,
        user_id=int(row.user_id),
        account=row.account,
        partition=row.partition,
        qos=row.qos,
        state="RUNNING",
        start_time=row.start_time,
        end_time=None,
        elapsed_s=0,
        cpus=row.cpus,
        started=True,
        tres=Tres(cpus=row.cpus),
        source="bank",
    )


def _take(tx: Transaction, run: Run, row: BankRun) -> bool:
    """Whether it was not there yet."""
    for known in tx.runs_by_job(run.job_id):
        if known.submit_time == run.submit_time or known.bank_job_id == row.bank_job_id:
            return False
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
