# SPDX-License-Identifier: BSD-3-Clause
"""Verdicts from numbers alone: what fits, what an overdraft adds, and when little is left."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from slurm_banking.ledger import FundsView
from slurm_banking.policy import decide, low_funds
from slurm_banking.records import Mode, Outcome, Reason
from tests.builders import funds_of

CSU = st.integers(-10_000, 10_000)
STRICT = Mode.STRICT_ALLOCATION


def view_of(account_csu: int, user_csu: int, aside_csu: int = 0) -> FundsView:
    return FundsView(
        account=funds_of("fc_alpha", account_csu),
        user=funds_of("fc_alpha", user_csu, user_id=1001),
        account_exposure_csu=aside_csu,
        user_exposure_csu=aside_csu,
    )


@given(st.integers(0, 10_000), CSU, CSU, st.integers(0, 5_000), st.integers(0, 5_000))
def test_what_is_accepted_leaves_nobody_further_below_zero_than_the_overdraft(
    cost: int, account: int, user: int, freed: int, overdraft: int
) -> None:
    decision = decide(cost, view_of(account, user), STRICT, freed_csu=freed, overdraft_csu=overdraft)  # fmt: skip
    needed = cost - freed
    fits = min(account, user) - needed >= -overdraft
    accepted = decision.outcome is Outcome.ACCEPTED
    assert accepted == (cost == 0 or needed <= 0 or fits)


@given(st.integers(1, 10_000), CSU, st.integers(0, 5_000))
def test_what_is_told_as_available_does_not_have_the_overdraft_in_it(
    cost: int, account: int, overdraft: int
) -> None:
    decision = decide(cost, view_of(account, account), STRICT, overdraft_csu=overdraft)
    assert decision.available_csu == account


def test_an_overdraft_does_not_help_an_account_without_an_allocation() -> None:
    gone = replace(view_of(0, 0), account=funds_of("fc_alpha", 0, reason=Reason.NO_ALLOCATION))
    decision = decide(1, gone, STRICT, overdraft_csu=1_000)
    assert (decision.outcome, decision.reason) == (Outcome.REFUSED, Reason.NO_ALLOCATION)


def low(view: FundsView, spent_csu: int, share: str) -> list[int | None]:
    return [funds.user_id for funds in low_funds(view, spent_csu, Decimal(share))]


def test_little_is_left_below_the_share_and_not_at_it() -> None:
    assert low(view_of(1_000, 10_000), 900, "0.1") == []
    assert low(view_of(1_000, 10_000), 901, "0.1") == [None]
    assert low(view_of(1_000, 500, aside_csu=460), 0, "0.1") == [1001]
    assert low(view_of(1_000, 500), 2_000, "0.1") == [None, 1001]


def test_nothing_is_little_where_no_share_is_configured() -> None:
    assert low(view_of(1_000, 500), 2_000, "0") == []
