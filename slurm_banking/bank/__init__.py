# SPDX-License-Identifier: BSD-3-Clause
"""The bank, as the relay sees it: the only importer of ``mybrc_client`` and ``requests``.

``transport`` makes one call and says which kind of failure it was; ``wire`` is a run in the bank's words; ``funds``
reads what may still be spent; ``listing`` reads its rows by time; ``adapter`` has the rules for starts and ends.
"""

from __future__ import annotations

from slurm_banking.bank.adapter import Acknowledgement, Bank
from slurm_banking.bank.funds import Usage
from slurm_banking.bank.listing import NoListing, Total
from slurm_banking.bank.wire import BankRun

__all__ = ["Acknowledgement", "Bank", "BankRun", "NoListing", "Total", "Usage"]
