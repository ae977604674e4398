# SPDX-License-Identifier: BSD-3-Clause
"""Pauses by kind of failure: they grow where growing helps, are never longer than the site allows, and are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, List

import pytest

from slurm_banking.relay.backoff import Pauses
from slurm_banking.relay.book import FILE_NAME, DeliveryBook

NOW = 1_795_000_000.0


def least(low: float, high: float) -> float:
    return low


def most(low: float, high: float) -> float:
    return high


@pytest.fixture
def book(tmp_path: Path) -> Iterator[DeliveryBook]:
    made = DeliveryBook(str(tmp_path / FILE_NAME), uniform=most)
    yield made
    made.close()


def test_pauses_double_up_to_what_the_site_allows() -> None:
    pauses = Pauses(longest_s=300, uniform=most)
    assert [pauses.bank_away(n) for n in (1, 2, 3, 9, 10, 10_000)] == [1, 2, 4, 256, 300, 300]
    assert [pauses.delivery(n) for n in (1, 2, 8, 9)] == [2, 4, 256, 300]
    assert [pauses.unauthorized(n) for n in (1, 2, 3, 4)] == [60, 120, 240, 300]
    assert [pauses.account(n) for n in (1, 2, 10)] == [1, 2, 300]
    assert [pauses.account(n, answered=False) for n in (1, 2, 10)] == [4, 8, 30]
    assert pauses.healing() == 180
    assert Pauses(longest_s=2, uniform=most).healing() == 2
    assert Pauses(longest_s=2, uniform=most).unauthorized(1) == 2


def test_jitter_shortens_each_pause_by_its_own_share() -> None:
    pauses = Pauses(longest_s=300, uniform=least)
    assert pauses.bank_away(2) == pytest.approx(1.4)
    assert pauses.delivery(2) == 2
    assert pauses.healing() == pytest.approx(144)


@pytest.mark.parametrize(
    ("asked_s", "uniform", "paused_s"),
    [
        (0, least, 0.7),  # the bank asks for less than what is waited anyway
        (30, least, 30),  # never less than it asks for
        (30, most, 33),
        (86_400, least, 300),  # but for what the site allows
    ],
)
def test_a_bank_that_says_for_how_long_is_left_alone_for_as_long(
    asked_s: float, uniform: object, paused_s: float
) -> None:
    pauses = Pauses(longest_s=300, uniform=uniform)  # type: ignore[arg-type]
    assert pauses.bank_away(1, asked_s) == pytest.approx(paused_s)


def test_what_several_threads_meet_at_once_is_one_failure(book: DeliveryBook) -> None:
    for _ in range(4):
        assert book.bank_failed(NOW, "down", longest_s=300).until == NOW + 1
    assert book.bank_failed(NOW + 1, "down", longest_s=300).until == NOW + 3
    assert book.bank_failed(NOW + 2, "503", longest_s=300, retry_after_s=50).until == NOW + 57
    assert book.bank_failed(NOW + 2, "503", longest_s=300, retry_after_s=5).until == NOW + 57
    book.bank_answered()
    assert book.bank_failed(NOW + 60, "down", longest_s=300).until == NOW + 61


@pytest.mark.parametrize("delivering", [True, False])
def test_a_refused_token_keeps_its_first_words_until_the_bank_takes_one(
    book: DeliveryBook, delivering: bool
) -> None:
    def fail(at: float, reason: str, unauthorized: bool = True) -> None:
        book.bank_failed(
            at, reason, longest_s=300, unauthorized=unauthorized, delivering=delivering
        )

    told: List[object] = []
    fail(NOW, "401 expired")
    told.append(book.token_problem)
    fail(NOW + 61, "403 forbidden")
    told.append(book.token_problem)
    fail(NOW + 300, "connection refused", unauthorized=False)
    told.append(book.token_problem)
    assert told == ["401 expired"] * 3
    book.bank_answered("fc_alpha")
    assert book.token_problem is None


def test_a_token_that_may_only_read_stays_a_problem_while_questions_are_answered(
    book: DeliveryBook,
) -> None:
    book.bank_failed(NOW, "403 no", longest_s=300, unauthorized=True, delivering=True)
    book.bank_answered()
    assert book.may_try(NOW + 1), "funds may be read"
    assert book.may_deliver(NOW + 1) == "403 no" and book.token_problem == "403 no"
    assert book.may_deliver(NOW + 61) is None
    book.bank_failed(NOW + 61, "403 no", longest_s=300, unauthorized=True, delivering=True)
    book.bank_answered()
    assert book.may_deliver(NOW + 61 + 119) == "403 no", "longer each time"
    book.try_now()
    assert book.may_deliver(NOW + 62) is None
    book.bank_answered("fc_alpha")
    assert book.token_problem is None


def test_a_token_that_may_not_even_read_is_no_problem_once_questions_are_answered(
    book: DeliveryBook,
) -> None:
    book.bank_failed(NOW, "401 no", longest_s=300, unauthorized=True)
    assert book.token_problem == "401 no"
    book.bank_answered()
    assert book.token_problem is None and book.may_deliver(NOW) is None


def test_accounts_that_failed_together_were_not_the_trouble(book: DeliveryBook) -> None:
    for account in ("fc_alpha", "fc_beta"):
        book.account_failed(account, NOW, longest_s=300, answered=False)
    assert book.account_until("fc_alpha") == NOW + 4
    book.bank_answered("fc_gamma")
    assert book.account_until("fc_alpha") == book.account_until("fc_beta") == 0


def test_an_account_that_fails_alone_waits_on_while_others_are_answered(book: DeliveryBook) -> None:
    for answered, pause_s in ((True, 1), (False, 4)):
        book.account_failed("fc_alpha", NOW, longest_s=300, answered=answered)
        book.bank_failed(NOW, "no answer", longest_s=300)
        book.bank_answered("fc_beta")
        assert book.account_until("fc_alpha") == NOW + pause_s
        book.bank_answered("fc_alpha")
        assert book.account_until("fc_alpha") == 0


def test_an_operators_retry_does_not_wait_for_its_accounts_pause(book: DeliveryBook) -> None:
    book.account_failed("fc_alpha", NOW, longest_s=300)
    book.try_now("fc_alpha")
    assert book.account_until("fc_alpha") == 0
