# SPDX-License-Identifier: BSD-3-Clause
"""What the bank says may still be spent goes into the ledger, unless a delivery was under way while it was asked."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Dict, Iterable, List, Mapping, Protocol, Sequence, Tuple

from slurm_banking.errors import BankError, BankUnauthorized, BankUnavailable
from slurm_banking.ledger import Ledger
from slurm_banking.records import Funds
from slurm_banking.relay.book import DeliveryBook
from slurm_banking.relay.deliver import adopt_outbox

log = logging.getLogger("slurm_banking.relay")

#: Users of one account asked about in one go.
_USERS_AT_ONCE = 50
#: Seconds for deliveries of an account to land when they keep its refresh from being applied.
_HOLD_S = 2.0
#: The longest pause after the bank did not answer.
LONGEST_PAUSE_S = 300.0


class FundsBank(Protocol):
    """What a refresh needs of :class:`slurm_banking.bank.Bank`."""

    def account_funds(
        self, account: str, user_ids: Sequence[int]
    ) -> Tuple[Funds, Mapping[int, Funds]]: ...


@dataclass
class RefreshReport:
    refreshed: int = 0  #: accounts
    stale: int = 0  #: accounts with a delivery under way: next time
    bank_away: str = ""
    alarms: List[str] = field(default_factory=list)


def refresh_funds(
    ledger: Ledger,
    bank: FundsBank,
    book: DeliveryBook,
    accounts: Iterable[Tuple[str, int]],
    now: float,
    *,
    budget_s: float = 30.0,
    longest_pause_s: float = LONGEST_PAUSE_S,
) -> RefreshReport:
    """Refresh (account, user) pairs, as :meth:`Transaction.accounts_in_use` has them.

    Stops at once when the bank does not answer, and after ``budget_s``: pass the longest unread first.

    :raises LedgerError: ledger or book cannot be used.
    """
    report = RefreshReport()
    by_account: Dict[str, List[int]] = {}
    for account, user_id in accounts:
        by_account.setdefault(account, []).append(user_id)
    begun = time.monotonic()
    adopt_outbox(ledger, book)
    for account, user_ids in by_account.items():
        clock = now + time.monotonic() - begun
        if time.monotonic() - begun > budget_s:
            break
        if not book.may_try(clock):
            report.bank_away = book.away.reason if book.away is not None else ""
            break
        try:
            applied = all(
                [
                    _refresh(ledger, bank, book, account, user_ids[at : at + _USERS_AT_ONCE])
                    for at in range(0, len(user_ids), _USERS_AT_ONCE)
                ]
            )
        except BankError as error:
            if not note_failure(book, error, clock, longest_pause_s):
                report.alarms.append(f"funds of account {account}: {error}")
                continue
            report.bank_away = str(error)
            break
        book.bank_answered()
        report.refreshed += applied
        report.stale += not applied
    return report


def refresh_account(
    ledger: Ledger,
    bank: FundsBank,
    book: DeliveryBook,
    account: str,
    user_id: int,
    now: float,
    *,
    longest_pause_s: float = LONGEST_PAUSE_S,
) -> bool:
    """One account and user, for whoever answers a question; False: a delivery of the account is under way.

    :raises BankError: the book knows by then whether the bank is away.
    """
    adopt_outbox(ledger, book)
    away = book.away
    if away is not None and not book.may_try(now):
        raise BankUnavailable(away.reason)
    try:
        applied = _refresh(ledger, bank, book, account, [user_id])
    except BankError as error:
        note_failure(book, error, now, longest_pause_s)
        raise
    book.bank_answered()
    return applied


def note_failure(
    book: DeliveryBook, error: BankError, now: float, longest_pause_s: float = LONGEST_PAUSE_S
) -> bool:
    """Tell the book that the bank is away, if that is what the error says; otherwise False."""
    if not isinstance(error, (BankUnavailable, BankUnauthorized)):
        return False
    if book.away is None:
        log.warning("bank_away reason=%r", str(error))
    book.bank_failed(
        now,
        str(error),
        longest_s=longest_pause_s,
        unauthorized=isinstance(error, BankUnauthorized),
        retry_after_s=error.retry_after_s if isinstance(error, BankUnavailable) else None,
    )
    return True


def _refresh(
    ledger: Ledger, bank: FundsBank, book: DeliveryBook, account: str, user_ids: Sequence[int]
) -> bool:
    """Ask and apply; if a delivery came between, once more while the account's deliveries wait."""
    if _ask_and_apply(ledger, bank, book, account, user_ids):
        return True
    with book.hold(account, _HOLD_S):
        return _ask_and_apply(ledger, bank, book, account, user_ids)


def _ask_and_apply(
    ledger: Ledger, bank: FundsBank, book: DeliveryBook, account: str, user_ids: Sequence[int]
) -> bool:
    marker = book.refresh_marker(account)
    if marker is None:
        return False
    of_account, users = bank.account_funds(account, user_ids)
    return book.apply_refresh(marker, lambda: write_funds(ledger, of_account, users))


def write_funds(ledger: Ledger, of_account: Funds, users: Mapping[int, Funds]) -> None:
    """In one transaction: an account's row and its users' rows speak of the same period."""
    with ledger.transaction() as tx:
        tx.put_funds(of_account)
        for funds in users.values():
            tx.put_funds(funds)
