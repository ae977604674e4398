# SPDX-License-Identifier: BSD-3-Clause
"""Make a ledger that is new, lost or unclean whole again before it decides.

Open liens come from Slurm's queue (the token in ``admin_comment`` carries id, cost and price version; jobs from before
us are grandfathered), ended runs from slurmdbd, and what was delivered already from the bank. The bank may be away: what
is not known then counts as not delivered, which sets aside too much rather than too little, and the delivery, which
takes "already exists" for an answer, sets it right.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, List, Optional, Protocol

from slurm_banking.bank import BankRun
from slurm_banking.config import Config
from slurm_banking.errors import BankError, BankRefused
from slurm_banking.ledger import Delivery, Ledger, LedgerRun
from slurm_banking.relay import take_over
from slurm_banking.relay.sweep import (
    ACTOR,
    JOBS_PER_TRANSACTION,
    SweepReport,
    SweepState,
    adopt,
    charge_unrecorded,
)
from slurm_banking.slurm.sacct import Accounting
from slurm_banking.slurm.squeue import QueueSnapshot

log = logging.getLogger("slurm_banking.relay")

#: Seconds that the bank is asked for; what is left after them is for the delivery.
BANK_BUDGET_S = 60.0


class RunsAtBank(Protocol):
    def find_run(self, run: LedgerRun) -> Optional[BankRun]: ...


@dataclass
class RebuildReport:
    needed: bool = False  #: False: the ledger was whole
    complete: bool = False
    waiting: str = ""  #: why it is not complete yet
    opened: Dict[str, int] = field(
        default_factory=dict
    )  #: origin -> liens taken over from the queue
    started: int = 0  #: running jobs taken over
    charged: int = 0  #: ended runs taken over from slurmdbd
    at_bank: int = 0  #: runs that the bank had already
    bank_away: str = ""  #: why the bank was not asked about all
    problems: List[str] = field(default_factory=list)

    def as_dict(self) -> Dict[str, Any]:
        return dataclasses.asdict(self)

    def line(self) -> str:
        opened = ",".join(f"{origin}:{count}" for origin, count in sorted(self.opened.items()))
        return (
            f"ledger_rebuilt opened={opened or 0} started={self.started} charged={self.charged} "
            f"at_bank={self.at_bank} bank_away={self.bank_away!r}"
        )


def rebuild(
    ledger: Ledger,
    config: Config,
    snapshot: QueueSnapshot,
    sacct: Accounting,
    bank: Optional[RunsAtBank],
    now: float,
    state: Optional[SweepState] = None,
    *,
    bank_budget_s: float = BANK_BUDGET_S,
    clock: Callable[[], float] = time.monotonic,
) -> RebuildReport:
    """Does nothing to a ledger that is complete. ``bank``: None if it is known to be away.

    :raises SlurmUnavailable: slurmdbd cannot be asked: not complete, to be called again.
    :raises LedgerError: the ledger cannot be used.
    """
    report = RebuildReport()
    with ledger.transaction(write=False) as tx:
        if tx.complete:
            report.complete = True
            return report
    report.needed = True
    if not snapshot.complete:
        report.waiting = "the queue does not show all jobs: run the relay as SlurmUser"
        log.error("ledger_incomplete reason=%r", report.waiting)
        return report
    state = state if state is not None else SweepState()
    swept = SweepReport()
    adopt(ledger, config, snapshot, state, swept)
    since = int(now) - config.relay.sacct_lookback_h * 3600
    window = charge_unrecorded(ledger, config, sacct, state, now, since=since)
    report.opened, report.started, report.charged = swept.opened, swept.started, window.charged
    report.problems = swept.problems + window.problems
    _ask_bank(ledger, bank, report, bank_budget_s, clock)
    with ledger.transaction() as tx:
        take_over.want(tx, since, int(now) + 1, ended=window.earlier > 0)
        tx.set_meta("complete", "1")
    report.complete = True
    log.info("%s", report.line())
    return report


def _ask_bank(
    ledger: Ledger,
    bank: Optional[RunsAtBank],
    report: RebuildReport,
    budget_s: float,
    clock: Callable[[], float],
) -> None:
    """Runs that wait for delivery and that the bank may have had before the ledger was lost."""
    if bank is None:
        report.bank_away = "not asked"
        return
    until = clock() + budget_s
    asked: set[int] = set()
    after = 0
    while True:
        with ledger.transaction(write=False) as tx:
            page = tx.next_deliveries(after, JOBS_PER_TRANSACTION)
        if not page:
            return
        for delivery in page:
            after = delivery.seq
            run = delivery.run
            if run.bank_job_id is not None or run.run_id in asked:
                continue
            asked.add(run.run_id)
            if clock() > until:
                report.bank_away = f"not asked about all within {budget_s:g} s"
                return
            try:
                row = bank.find_run(run)
            except BankRefused as error:
                report.problems.append(f"bank_run job_id={run.job_id} {error}")
                continue
            except BankError as error:
                report.bank_away = str(error)
                return
            if row is not None:
                _adopt_row(ledger, delivery, row, report)


def _adopt_row(ledger: Ledger, delivery: Delivery, row: BankRun, report: RebuildReport) -> None:
    with ledger.transaction() as tx:
        run = tx.run(delivery.run.run_id)
        if run is None or run.bank_job_id is not None:
            return
        # As for an acknowledgement that was lost: what remains moves too. If the bank was asked for it since, it is too
        # small by this run until the next refresh; the other way round it would be too large.
        if run.state == "ended" and run.source == "sacct" and row.has_the_end_of(run):
            # Charged just now from slurmdbd, perhaps at another price than then: what the user was told stands.
            if row.amount_csu != run.charge_csu:
                run = tx.adopt_charge(run, row.amount_csu, actor=ACTOR, reason="as the bank has it")
        final = run.state == "ended" and row.is_final_for(run)
        tx.acknowledge(
            replace(delivery, run=run, phase="end" if final else "start"),
            bank_csu=row.held_csu,
            bank_job_id=row.bank_job_id,
            actor=ACTOR,
            reason="found",
        )
    report.at_bank += 1
