# SPDX-License-Identifier: BSD-3-Clause
"""Verdicts: pure functions of a cost, what counts against funds, and the configured policy."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Optional, Sequence

from slurm_banking.config import Config
from slurm_banking.ledger.rows import FundsView
from slurm_banking.records import Funds, FundsKind, Mode, Outcome, Reason

#: Modes in which a submission is checked at all.
CHECKED_MODES = frozenset({Mode.STRICT_ALLOCATION, Mode.FAST_ALLOCATION})

#: Refusals that the bank's word alone is the reason of: worth one question before they are told.
FUNDS_REASONS = frozenset(
    {
        Reason.INSUFFICIENT_FUNDS,
        Reason.INSUFFICIENT_USER_FUNDS,
        Reason.UNKNOWN_ACCOUNT,
        Reason.UNKNOWN_USER,
        Reason.NO_ALLOCATION,
        Reason.FUNDS_UNKNOWN,
    }
)


@dataclass(frozen=True)
class Decision:
    outcome: Outcome
    reason: Reason
    available_csu: Optional[int] = None  #: before this job; None: not limited, or unknown


def counts_while_queued(mode: Mode) -> bool:
    """Whether a queued job's lien counts against funds (in the other modes it is kept, but only shown)."""
    return mode is Mode.STRICT_ALLOCATION


def decide(
    lien_csu: int,
    view: FundsView,
    mode: Mode,
    *,
    freed_csu: int = 0,
    overdraft_csu: int = 0,
) -> Decision:
    """Whether a lien of ``lien_csu`` fits.

    ``freed_csu``: what is already set aside for the same job and would be freed (an update of it). An update that costs
    no more than that is accepted whatever the funds are. ``overdraft_csu``: how far the account, and the user inside it,
    may go below zero.
    """
    if mode not in CHECKED_MODES:
        return Decision(Outcome.ACCEPTED, Reason.NOT_CHECKED, view.available_csu)
    if lien_csu == 0:
        return Decision(Outcome.ACCEPTED, Reason.FREE_PARTITION, view.available_csu)
    needed = lien_csu - freed_csu
    if needed <= 0:
        return Decision(Outcome.ACCEPTED, Reason.FITS, view.available_csu)
    account, user = view.account, view.user
    if account is None or account.kind is FundsKind.UNKNOWN:
        return Decision(Outcome.UNDECIDED, Reason.FUNDS_UNKNOWN)
    if account.reason is not None:
        return Decision(Outcome.REFUSED, account.reason, 0)
    if account.kind is FundsKind.NOT_BANKED:
        return Decision(Outcome.ACCEPTED, Reason.NOT_BANKED)
    if user is None or user.kind is FundsKind.UNKNOWN:
        return Decision(Outcome.UNDECIDED, Reason.FUNDS_UNKNOWN)
    if user.reason is not None:
        return Decision(Outcome.REFUSED, user.reason, 0)
    of_account, of_user = view.account_available_csu, view.user_available_csu
    if of_account is not None and of_account + overdraft_csu < needed:
        return Decision(Outcome.REFUSED, Reason.INSUFFICIENT_FUNDS, view.available_csu)
    if of_user is not None and of_user + overdraft_csu < needed:
        return Decision(Outcome.REFUSED, Reason.INSUFFICIENT_USER_FUNDS, view.available_csu)
    if of_account is None and of_user is None:
        return Decision(Outcome.ACCEPTED, Reason.UNLIMITED_FUNDS)
    return Decision(Outcome.ACCEPTED, Reason.FITS, view.available_csu)


def low_funds(view: FundsView, spent_csu: int, warn_below: Decimal) -> Sequence[Funds]:
    """The account, and the user inside it, if less than ``warn_below`` of its limit is left after ``spent_csu``."""
    if not warn_below:
        return ()
    sides = (
        (view.account, view.account_available_csu),
        (view.user, view.user_available_csu),
    )
    return [
        funds
        for funds, available_csu in sides
        if funds is not None
        and funds.limit_csu is not None
        and available_csu is not None
        and available_csu - spent_csu < warn_below * funds.limit_csu
    ]


def is_exempt(
    config: Config, *, account: Optional[str], user_name: str, user_id: int, qos: Optional[str]
) -> bool:
    """Neither checked nor charged, by configuration. A user is exempt by name or by numeric id."""
    policy = config.policy
    return (
        (account is not None and account.lower() in policy.exempt_accounts)
        or (bool(user_name) and user_name in policy.exempt_users)
        or str(user_id) in policy.exempt_users
        or (qos is not None and qos.lower() in policy.exempt_qos)
    )
