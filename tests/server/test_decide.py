# SPDX-License-Identifier: BSD-3-Clause
"""can_submit_job: 200 with the decision, 400 for what the bank does not know or cannot read."""

from __future__ import annotations

import pytest

from .running_bank import DAY, TODAY, Account, RunningBank, job


def test_job_that_fits_exactly_is_accepted(bank: RunningBank) -> None:
    account = bank.account(su="100.00")
    assert bank.put(job(bank.fresh("j"), account, "40.01")).status_code == 200
    answer = bank.can_submit("59.99", account)
    assert (answer.status_code, answer.json()["success"]) == (200, True)


def test_job_a_hundredth_over_the_allocation_is_refused_with_numbers(bank: RunningBank) -> None:
    account = bank.account(su="100.00")
    bank.put(job(bank.fresh("j"), account, "40.01"))
    answer = bank.can_submit("60.00", account)
    assert (answer.status_code, answer.json()["success"]) == (200, False)
    for number in ("60.00", "40.01", "100.00", account.name):
        assert number in answer.json()["message"]


def test_job_over_the_users_limit_is_refused_though_the_account_could_pay(
    bank: RunningBank,
) -> None:
    account = bank.account(su="1000", limit="10")
    assert bank.can_submit("10.00", account).json()["success"] is True
    refused = bank.can_submit("10.01", account)
    assert (refused.status_code, refused.json()["success"]) == (200, False)
    assert account.user in refused.json()["message"]


def test_refusals_that_are_answers_not_errors(bank: RunningBank) -> None:
    account = bank.account()
    stranger = bank.account()
    never = bank.account(su="")
    over = bank.account(start=TODAY - 9 * DAY, end=TODAY - DAY)
    early = bank.account(start=TODAY + DAY, end=TODAY + 9 * DAY)
    closed = bank.account()
    bank.shell("allocation", "expire", closed.name)
    removed = bank.account()
    bank.shell("user", "remove", removed.user, "--account", removed.name)
    cases = [
        Account(name=account.name, user=stranger.user, uid=stranger.uid),
        never,
        over,
        early,
        closed,
        removed,
    ]
    for case in cases:
        answer = bank.can_submit("1.00", case)
        assert (answer.status_code, answer.json()["success"]) == (200, False), case
        assert answer.json()["message"]


def test_closed_period_can_be_opened_again(bank: RunningBank) -> None:
    account = bank.account()
    bank.shell("allocation", "expire", account.name)
    bank.shell("allocation", "activate", account.name)
    assert bank.can_submit("1.00", account).json()["success"] is True


def test_unlimited_account_accepts_any_cost(bank: RunningBank) -> None:
    name = bank.fresh("co_")
    bank.shell("account", "add", name, "--unlimited")
    account = bank.member(name)
    assert bank.can_submit("100000000.00", account).json()["success"] is True
    assert bank.put(job(bank.fresh("j"), account, "5.00")).status_code == 200
    (row,) = bank.get("allocations/", project=name)["results"]
    (attribute,) = bank.get(f"allocations/{row['id']}/attributes/")["results"]
    assert (attribute["value"], attribute["usage"]["value"]) == ("100000000.00", "5.00")


@pytest.mark.parametrize(
    "cost",
    [
        "NaN",
        "Infinity",
        "-1",
        "+1",
        "1e3",
        "10.000",
        "123456789012",
        "1234567890.12",
        "",
        "x",
        "１",
    ],
)
def test_cost_that_is_no_amount_is_400(bank: RunningBank, cost: str) -> None:
    account = bank.account()
    answer = bank.request("GET", f"can_submit_job/{cost or '%20'}/{account.uid}/{account.name}/")
    assert answer.status_code == 400, answer.text
    assert answer.json()["success"] is False and answer.json()["message"]


@pytest.mark.parametrize("cost", ["0", "0.00", "1.", ".5", "123456789.01", "00001.50"])
def test_cost_in_any_plain_notation_is_read(bank: RunningBank, cost: str) -> None:
    account = bank.account(su="100000000")
    assert bank.can_submit(cost, account).status_code == 200


def test_unknown_user_or_account_is_400(bank: RunningBank) -> None:
    account = bank.account()
    for uid, name in (
        ("4294967294", account.name),
        (account.uid, "fc_none"),
        ("x", "y"),
        ("'", '"'),
    ):
        answer = bank.request("GET", f"can_submit_job/1.00/{uid}/{name}/")
        assert (answer.status_code, answer.json()["success"]) == (400, False)


def test_only_get_is_allowed(bank: RunningBank) -> None:
    answer = bank.request("POST", "can_submit_job/1.00/1/x/")
    assert answer.status_code == 405
    assert "detail" in answer.json()
