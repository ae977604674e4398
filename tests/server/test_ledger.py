# SPDX-License-Identifier: BSD-3-Clause
"""Entries are append-only, and every counter is their sum."""

from __future__ import annotations

import json
import sqlite3
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from .running_bank import RunningBank, database_of, job

REFUSED = (sqlite3.IntegrityError, psycopg.errors.RestrictViolation)


def entries(bank: RunningBank, account: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(bank.shell("entries", account, "--json"))
    return rows


STATEMENTS = [
    "UPDATE bank_entry SET amount_csu = 1",
    "UPDATE bank_entry SET reason = 'x' WHERE id = (SELECT MIN(id) FROM bank_entry)",
    "DELETE FROM bank_entry WHERE id = (SELECT MIN(id) FROM bank_entry)",
    "DELETE FROM bank_entry",
]
SQLITE_STATEMENTS = ["INSERT OR REPLACE INTO bank_entry SELECT * FROM bank_entry LIMIT 1"]
POSTGRESQL_STATEMENTS = ["TRUNCATE bank_entry CASCADE"]


def test_database_refuses_to_change_or_delete_an_entry(bank: RunningBank, database: str) -> None:
    account = bank.account(su="100")
    before = entries(bank, account.name)
    assert before
    own = SQLITE_STATEMENTS if database == "sqlite" else POSTGRESQL_STATEMENTS
    with database_of(bank) as connection:
        for statement in [*STATEMENTS, *own]:
            with pytest.raises(REFUSED, match="append-only"):
                connection.execute(statement)
    assert entries(bank, account.name) == before


def test_balance_is_the_sum_of_entries_with_reason_actor_and_time(bank: RunningBank) -> None:
    account = bank.account(su="100")
    bank.shell("deposit", account.name, "20.5", "--reason", "more for spring")
    bank.shell("withdraw", account.name, "0.25", "--reason", "typo")
    sent = job(bank.fresh("j"), account, "10.00")
    bank.post(sent)
    bank.put({**sent, "amount": "4.00"})
    rows = entries(bank, account.name)
    assert [(row["kind"], row["amount_su"]) for row in rows] == [
        ("deposit", "100.00"),
        ("deposit", "20.50"),
        ("withdrawal", "-0.25"),
        ("charge", "-10.00"),
        ("adjustment", "6.00"),
    ]
    assert rows[-1]["balance_su"] == "116.25" == str(sum(Decimal(row["amount_su"]) for row in rows))
    assert all(row["reason"] and row["actor"] and row["time"] for row in rows)
    assert (rows[3]["actor"], rows[3]["job"], rows[3]["user"]) == (
        "token:test relay",
        sent["jobslurmid"],
        account.user,
    )
    (shown,) = json.loads(bank.shell("account", "show", account.name, "--json"))["allocations"]
    assert (shown["allocated_su"], shown["used_su"]) == ("120.25", "4.00")


def test_more_than_what_is_left_cannot_be_withdrawn(bank: RunningBank) -> None:
    account = bank.account(su="10")
    bank.post(job(bank.fresh("j"), account, "4.00"))
    refused = bank.try_shell("withdraw", account.name, "6.01", "--reason", "x")
    assert refused.status == 1 and "6.00 SU left" in refused.err
    bank.shell("withdraw", account.name, "6.00", "--reason", "x")


def test_replay_appends_nothing(bank: RunningBank) -> None:
    account = bank.account()
    sent = job(bank.fresh("j"), account, "10.00")
    bank.put(sent)
    before = entries(bank, account.name)
    bank.put(sent)
    bank.post(sent)
    assert entries(bank, account.name) == before


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE bank_allocation SET used_csu = used_csu + 1 WHERE account_id = {id}", "usage"),
        (
            "UPDATE bank_allocation SET amount_csu = amount_csu - 1 WHERE account_id = {id}",
            "amount",
        ),
        (
            "UPDATE bank_allocationuser SET used_csu = used_csu + 1 WHERE allocation_id IN"
            " (SELECT id FROM bank_allocation WHERE account_id = {id})",
            "user",
        ),
        ("UPDATE bank_job SET counted_csu = counted_csu + 1 WHERE account_id = {id}", "counted"),
        ("UPDATE bank_job SET amount_csu = amount_csu + 1 WHERE account_id = {id}", "instead of"),
    ],
)
def test_verify_finds_a_counter_that_is_not_its_sum(
    bank: RunningBank, statement: str, told: str
) -> None:
    account = bank.account()
    bank.put(job(bank.fresh("j"), account, "10.00"))
    assert bank.verified()
    with database_of(bank) as connection:
        (number,) = connection.execute(
            f"SELECT id FROM bank_account WHERE name = '{account.name}'"
        ).fetchone()
        statement = statement.format(id=number)
        connection.execute(statement)
        try:
            found = bank.try_shell("verify")
            as_json = json.loads(bank.try_shell("verify", "--json").out)
        finally:
            undo = {"+ 1": "- 1", "- 1": "+ 1"}
            sign = "+ 1" if "+ 1" in statement else "- 1"
            connection.execute(statement.replace(sign, undo[sign]))
    assert found.status == 1
    assert told in found.out and found.out.startswith("MISMATCH")
    assert as_json["ok"] is False
    assert all(
        account.name in one or account.user in one or "job" in one for one in as_json["mismatches"]
    )
    assert bank.verified()


def test_verify_finds_a_missing_trigger(bank: RunningBank, database: str) -> None:
    with database_of(bank) as connection:
        if database == "sqlite":
            (sql,) = connection.execute(
                "SELECT sql FROM sqlite_master WHERE name = 'bank_entry_no_update'"
            ).fetchone()
            connection.execute("DROP TRIGGER bank_entry_no_update")
        else:
            sql = "ALTER TABLE bank_entry ENABLE TRIGGER bank_entry_no_change"
            connection.execute("ALTER TABLE bank_entry DISABLE TRIGGER bank_entry_no_change")
        try:
            found = bank.try_shell("verify")
        finally:
            connection.execute(sql)
    assert found.status == 1 and "trigger" in found.out
    assert bank.verified()
