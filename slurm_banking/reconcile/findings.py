# SPDX-License-Identifier: BSD-3-Clause
"""What a comparison found: one record for each run, place and difference.

slurmdbd is what really happened, the ledger is what was charged, the bank is what people see. ``where`` names the place
that differs from what it should have: "ledger" or "bank". Of several differences at one place the most telling one is
reported, in the order of :data:`KINDS`; the text says the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Optional

from slurm_banking.bank import BankRun
from slurm_banking.records import Run

LEDGER = "ledger"
BANK = "bank"
PLACES = (LEDGER, BANK)

#: Two charged runs in the ledger for one of slurmdbd, or two rows at the bank for one run. The finding is the one too many.
DOUBLED = "doubled"
#: Account or user are not those that slurmdbd has (of the bank: those that the run has).
WRONG_HOLDER = "wrong_holder"
#: slurmdbd has the run, ``where`` does not. At the bank also a run that the ledger has, and whose delivery does not wait.
MISSING = "missing"
#: ``where`` has it, and slurmdbd does not.
UNKNOWN = "unknown"
#: It ended by slurmdbd, and goes on at ``where``.
STILL_RUNNING = "still_running"
#: Charged by another price version than the one in force at its start.
OTHER_PRICES = "other_prices"
#: slurmdbd says otherwise now than what the charge was made from.
RESTATED = "restated"
#: The charge is not what its figures cost at the price in force at its start. At the bank: the row is not what the ledger
#: has: another amount, or other dates under the same amount.
MISCHARGED = "mischarged"
#: Of an account and allocation period, not of a run. At the ledger: what the ledger believes the bank's usage to hold is not
#: what the bank's own counter says. At the bank: its rows do not add up to its counter.
DRIFT = "drift"

KINDS = (
    DOUBLED,
    WRONG_HOLDER,
    MISSING,
    UNKNOWN,
    STILL_RUNNING,
    OTHER_PRICES,
    RESTATED,
    MISCHARGED,
    DRIFT,
)


@dataclass(frozen=True)
class Finding:
    """One difference. Which fields are set depends on what there is: a run that is missing at the ledger has no ``run_id``."""

    kind: str  #: one of :data:`KINDS`
    where: str  #: "ledger" or "bank"
    job_id: Optional[int]  #: None: of no run (drift), or a bank's row whose id says no job
    submit_time: Optional[int]  #: None: as above, or the bank's row has none
    account: str  #: as ``where`` has it; of what is missing there, as it should be
    user_id: Optional[
        int
    ]  #: as ``account``; None: of the whole account (drift), or not a number at the bank
    run_id: Optional[int]  #: the ledger's run; None: it has none
    bank_job_id: Optional[str]  #: the row at the bank that this is about; None: there is none
    #: What should be there: slurmdbd's figures at the price in force at the start (at the ledger; 0 for what should not be
    #: there), the ledger's charge (at the bank). Drift: the sum that the bank's counter was held against. None: not known.
    expected_csu: Optional[int]
    ledger_csu: Optional[int]  #: the charge, of a running one its lien; None: the ledger has none
    #: The row's amount. Drift: the bank's counter. None: the bank has none.
    bank_csu: Optional[int]
    slurm: Optional[Run]  #: slurmdbd's run; of an unknown one another run of that job id, if any
    text: str  #: one line for people: what differs
    row: Optional[BankRun] = (
        None  #: the bank's row as it was seen; None: the bank has none, or it was not looked at
    )
    period: str = ""  #: drift: the allocation's id at the bank

    @property
    def difference_csu(self) -> int:
        """By how much ``where`` has too much (or, negative, too little)."""
        found = self.ledger_csu if self.where == LEDGER else self.bank_csu
        if self.kind == DRIFT:
            return (self.bank_csu or 0) - (self.expected_csu or 0)
        return (found or 0) - (self.expected_csu or 0)

    def as_dict(self) -> Dict[str, Any]:
        """For ``--json``; money in hundredths of a service unit."""
        run = self.slurm
        slurm = None
        if run is not None:
            slurm = {
                "job_id": run.job_id,
                "submit_time": run.submit_time,
                "account": run.account,
                "user_id": run.user_id,
                "start_time": run.start_time,
                "end_time": run.end_time,
                "elapsed_s": run.elapsed_s,
                "state": run.state,
            }
        return {
            "kind": self.kind,
            "where": self.where,
            "job_id": self.job_id,
            "submit_time": self.submit_time,
            "account": self.account,
            "user_id": self.user_id,
            "run_id": self.run_id,
            "bank_job_id": self.bank_job_id,
            "expected_csu": self.expected_csu,
            "ledger_csu": self.ledger_csu,
            "bank_csu": self.bank_csu,
            "difference_csu": self.difference_csu,
            "period": self.period,
            "slurm": slurm,
            "text": self.text,
        }


__all__ = [
    "BANK",
    "DOUBLED",
    "DRIFT",
    "KINDS",
    "LEDGER",
    "MISCHARGED",
    "MISSING",
    "OTHER_PRICES",
    "PLACES",
    "RESTATED",
    "STILL_RUNNING",
    "UNKNOWN",
    "WRONG_HOLDER",
    "Finding",
]
