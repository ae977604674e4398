# SPDX-License-Identifier: BSD-3-Clause
"""What the bank says replaces what the ledger has only if no delivery of the account was under way while it was asked."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence, Tuple

import pytest

from slurm_banking.errors import BankUnavailable
from slurm_banking.records import Funds
from slurm_banking.relay.deliver import adopt_outbox
from slurm_banking.relay.funds import refresh_account, refresh_funds, write_funds
from tests.builders import SUBMITTED
from tests.unit.test_deliver import USER, Desk

PAIR = ("fc_alpha", USER)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


class Between:
    """The bank, with something happening between its answer and the next step, once."""

    def __init__(self, desk: Desk, happens: Callable[[], Any]) -> None:
        self.desk = desk
        self.happens: Optional[Callable[[], Any]] = happens
        self.asked = 0

    def account_funds(
        self, account: str, user_ids: Sequence[int]
    ) -> Tuple[Funds, Mapping[int, Funds]]:
        self.asked += 1
        answer = self.desk.bank.account_funds(account, user_ids)
        happens, self.happens = self.happens, None
        if happens is not None:
            happens()
        return answer


def available(desk: Desk, user_id: int = USER) -> Optional[int]:
    with desk.ledger.transaction(write=False) as tx:
        return tx.funds_view("fc_alpha", user_id).available_csu


def refresh(desk: Desk, bank: Any = None) -> Any:
    return refresh_funds(desk.ledger, bank or desk.bank, desk.book, [PAIR], desk.now)


def test_a_refresh_brings_what_the_bank_says(desk: Desk) -> None:
    assert refresh(desk).refreshed == 1
    assert available(desk) == 100_000
    desk.project.limit_csu = 500
    assert available(desk) == 100_000
    assert refresh_account(desk.ledger, desk.bank, desk.book, *PAIR, desk.now)
    assert available(desk) == 500


def test_an_answer_is_thrown_away_when_a_delivery_came_between(desk: Desk) -> None:
    """Else the bank's old word would forget the delivery that the ledger knows to have been counted."""
    refresh(desk)
    desk.start(1, lien_csu=100)
    bank = Between(desk, desk.deliver)
    assert refresh(desk, bank).refreshed == 1
    assert bank.asked == 2
    assert available(desk) == 99_900
    assert desk.run(1).bank_csu == 100


def test_nothing_is_applied_while_a_reply_is_missing(desk: Desk) -> None:
    refresh(desk)
    desk.start(1)
    desk.deliver()
    desk.end(1, charge_csu=40)
    desk.portal.faults = ["lose_reply"]
    desk.deliver()
    desk.now += 400
    report = refresh(desk)
    assert (report.refreshed, report.stale) == (0, 1)
    assert available(desk) == 99_960
    desk.deliver()
    assert refresh(desk).refreshed == 1
    assert available(desk) == 99_960


def test_an_older_answer_does_not_replace_a_newer_one(desk: Desk) -> None:
    adopt_outbox(desk.ledger, desk.book)
    marker = desk.book.refresh_marker("fc_alpha")
    assert marker is not None
    old = desk.bank.account_funds("fc_alpha", [USER])
    desk.project.limit_csu = 500
    refresh(desk)
    assert not desk.book.apply_refresh(marker, lambda: write_funds(desk.ledger, *old))
    assert available(desk) == 500


def test_a_bank_that_is_away_is_not_asked(desk: Desk) -> None:
    desk.portal.faults = ["maintenance"]
    assert "503" in refresh(desk).bank_away
    asked = len(desk.portal.requests)
    assert "503" in refresh(desk).bank_away
    with pytest.raises(BankUnavailable):
        refresh_account(desk.ledger, desk.bank, desk.book, *PAIR, desk.now)
    assert len(desk.portal.requests) == asked
    desk.now += 2
    assert refresh(desk).refreshed == 1
    assert desk.book.away is None


def test_a_question_that_the_bank_cannot_take_is_an_alarm_and_the_others_go_on(desk: Desk) -> None:
    handle = desk.portal._handle

    def refuses(method: str, path: str, query: Any, body: Any) -> Any:
        if query.get("project") == ["fc_beta"]:
            return 400, {"resources": ["Select a valid choice."]}
        return handle(method, path, query, body)

    desk.portal._handle = refuses  # type: ignore[method-assign]
    report = refresh_funds(desk.ledger, desk.bank, desk.book, [("fc_beta", USER), PAIR], desk.now)
    assert report.refreshed == 1
    assert len(report.alarms) == 1 and "resource" in report.alarms[0]


def test_a_new_period_takes_the_runs_that_started_in_it_and_forgets_the_users_of_the_old(
    desk: Desk,
) -> None:
    """A run that starts after the renewal, before the relay has heard of it, is the new period's."""
    day = datetime.datetime.fromtimestamp(SUBMITTED, datetime.timezone.utc).date()
    midnight = int(
        datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.timezone.utc).timestamp()
    )
    refresh_funds(desk.ledger, desk.bank, desk.book, [PAIR, ("fc_alpha", 1002)], desk.now)
    desk.start(1, submit_time=midnight - 3000, start_time=midnight - 2000)
    desk.start(2, submit_time=midnight - 3000, start_time=midnight + 20, user_id=1002)
    assert available(desk) == 99_800
    desk.project.start, desk.project.limit_csu = day, 1000
    desk.project.members["1001"].limit_csu = 1000
    refresh(desk)
    with desk.ledger.transaction() as tx:
        assert tx.funds_view("fc_alpha", USER).account_available_csu == 900
        assert tx.funds_view("fc_alpha", USER).user_available_csu == 1000
        assert tx.funds("fc_alpha", 1002)[1] is None
        assert tx.check() == []
