# SPDX-License-Identifier: BSD-3-Clause
"""Funds on request: within the caller's budget, one question at a time, none while the bank is away."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from slurm_banking.errors import BankUnavailable
from slurm_banking.relay.desk import MAX_FLIGHTS, SLOW_S, FundsDesk


class Bank:
    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.asked: List[Tuple[str, int]] = []
        self.read: Dict[Tuple[str, int], int] = {}
        self.until: Optional[float] = None
        self.error: Optional[Exception] = None
        self.desk = FundsDesk(
            refresh=self.refresh,
            read_at=lambda account, user_id: self.read.get((account, user_id), 0),
            away_until=lambda: self.until,
        )

    def refresh(self, account: str, user_id: int) -> None:
        self.asked.append((account, user_id))
        time.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        self.read[account, user_id] = int(time.time())

    def ask(self, account: str = "astro", budget_s: float = 2.0, max_age_s: float = 3) -> Any:
        return self.desk.ask(account, 7, max_age_s=max_age_s, budget_s=budget_s)


def timed(question: Callable[[], Any]) -> Tuple[float, Any]:
    began = time.monotonic()
    answer = question()
    return time.monotonic() - began, answer


def test_fresh_funds_are_not_asked_for_again() -> None:
    bank = Bank()
    assert bank.ask()["fresh"] and bank.ask()["fresh"]
    assert len(bank.asked) == 1


def test_old_funds_are_asked_for_again() -> None:
    bank = Bank()
    bank.read["astro", 7] = int(time.time()) - 60
    assert bank.ask()["fresh"]
    assert len(bank.asked) == 1


def test_who_asks_while_somebody_does_waits_for_that_answer() -> None:
    bank = Bank(delay_s=0.2)
    answers: List[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(bank.ask())) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bank.asked) == 1
    assert all(answer["fresh"] for answer in answers)


def test_a_slow_bank_does_not_take_more_than_the_budget() -> None:
    bank = Bank(delay_s=3)
    took_s, answer = timed(lambda: bank.ask(budget_s=0.2))
    assert took_s < 0.4
    assert (answer["ok"], answer["fresh"]) == (True, False)


def test_an_answer_that_came_too_late_serves_the_next_one() -> None:
    bank = Bank(delay_s=0.3)
    assert not bank.ask(budget_s=0.1)["fresh"]
    time.sleep(0.4)
    assert bank.ask(budget_s=0.1)["fresh"]
    assert len(bank.asked) == 1


def test_a_bank_that_takes_seconds_is_told_as_away() -> None:
    bank = Bank(delay_s=5)
    bank.ask(budget_s=0.1)
    time.sleep(SLOW_S)
    took_s, answer = timed(lambda: bank.ask(budget_s=0.1))
    assert answer["away"] and answer["until"] > time.time()
    assert took_s < 0.3


def test_questions_to_a_hung_bank_do_not_pile_up() -> None:
    bank = Bank(delay_s=5)
    for number in range(MAX_FLIGHTS):
        bank.ask(f"account{number}", budget_s=0.05)
    took_s, answer = timed(lambda: bank.ask("another", budget_s=2))
    assert answer["away"]
    assert took_s < 0.1
    assert len(bank.asked) == MAX_FLIGHTS


def test_a_bank_known_to_be_away_is_not_asked() -> None:
    bank = Bank()
    bank.until = time.time() + 30
    took_s, answer = timed(bank.ask)
    assert answer["away"] and answer["until"] >= bank.until - 1
    assert took_s < 0.1
    assert bank.asked == []


def test_a_failed_question_is_no_fresh_answer_and_says_why() -> None:
    bank = Bank()
    bank.error = BankUnavailable("bank: 503")
    answer = bank.ask()
    assert not answer["fresh"]
    assert answer["problem"] == "bank: 503"


def test_a_mistake_of_ours_leaves_the_desk_usable() -> None:
    bank = Bank()
    bank.error = KeyError("x")
    assert bank.ask()["problem"] == "internal error"
    bank.error = None
    assert bank.ask()["fresh"]
