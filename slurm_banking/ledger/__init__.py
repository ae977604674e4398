# SPDX-License-Identifier: BSD-3-Clause
"""The ledger: entries, liens, runs, funds and the outbox, in one SQLite file that the controller host owns.

``store`` opens the file and hands out transactions; ``transaction`` is everything that may happen in one.
"""

from __future__ import annotations

from slurm_banking.ledger.rows import (
    Delivery,
    EndResult,
    FundsView,
    LedgerEntry,
    LedgerRun,
    Lien,
    Posting,
    SetAside,
    new_lien_id,
)
from slurm_banking.ledger.store import Ledger
from slurm_banking.ledger.transaction import Transaction

__all__ = [
    "Delivery",
    "EndResult",
    "FundsView",
    "Ledger",
    "LedgerEntry",
    "LedgerRun",
    "Lien",
    "Posting",
    "SetAside",
    "Transaction",
    "new_lien_id",
]
