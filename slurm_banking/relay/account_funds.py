# SPDX-License-Identifier: BSD-3-Clause
"""What whole accounts have left, many at once, for whoever mirrors balances into limits: operators only."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Mapping, Protocol, Sequence, Tuple

from slurm_banking.ledger import Ledger
from slurm_banking.ledger.rows import WHOLE_ACCOUNT

#: Accounts in one question: its answer has to come within a connection's ten seconds.
MAX_ACCOUNTS = 200
#: Seconds for the bank, all accounts together; the others are answered with what the ledger knows.
BUDGET_S = 6.0
_EACH_S = 2.0


class Desk(Protocol):
    """What is asked of :class:`slurm_banking.relay.desk.FundsDesk`."""

    def ask(
        self, account: str, user_id: int, *, max_age_s: float, budget_s: float
    ) -> Dict[str, Any]: ...


def pairs(value: Any) -> List[Tuple[str, int]]:
    """``[[ACCOUNT, UID], ...]``: the bank is asked about an account and a user of it; -1: it is not asked.

    :raises ValueError: something else.
    """
    expected = f"accounts: expected 1 to {MAX_ACCOUNTS} pairs of an account and the uid of a user of it, or -1"
    if not isinstance(value, list) or not 0 < len(value) <= MAX_ACCOUNTS:
        raise ValueError(expected)
    found = []
    for item in value:
        if not isinstance(item, list) or len(item) != 2:
            raise ValueError(expected)
        account, user_id = item
        if not isinstance(account, str) or not 0 < len(account) <= 255 or not account.isprintable():
            raise ValueError(expected)
        if isinstance(user_id, bool) or not isinstance(user_id, int) or not -1 <= user_id < 2**32:
            raise ValueError(expected)
        found.append((account.lower(), user_id))
    return found


def read(
    ledger: Ledger,
    desk: Desk,
    asked: Sequence[Tuple[str, int]],
    *,
    max_age_s: float,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.monotonic,
) -> List[Dict[str, Any]]:
    """A row for each: what the bank said last, asked again if that is old, and what of it is set aside.

    :raises LedgerError: the ledger cannot be read.
    """
    until = clock() + budget_s
    rows = []
    for account, user_id in asked:
        left_s = until - clock()
        if user_id != WHOLE_ACCOUNT and left_s > 0.05:
            said: Mapping[str, Any] = desk.ask(
                account, user_id, max_age_s=max_age_s, budget_s=min(left_s, _EACH_S)
            )
            if said.get("away"):
                until = clock()  # it would be away for the others too
        with ledger.transaction(write=False) as tx:
            view = tx.funds_view(account, WHOLE_ACCOUNT)
            aside = tx.set_aside(account)
        funds = view.account
        rows.append(
            {
                "account": account,
                "kind": None if funds is None else funds.kind.value,
                "reason": None if funds is None or funds.reason is None else funds.reason.value,
                "available_csu": view.account_available_csu,
                "queued_csu": aside.queued_csu,
                "grandfathered_csu": aside.grandfathered_csu,
                "read_at": 0 if funds is None else funds.read_at,
            }
        )
    return rows
