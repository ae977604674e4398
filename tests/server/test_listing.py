# SPDX-License-Identifier: BSD-3-Clause
"""The client's listing of rows and its counters, against the bundled bank; and against one whose pages do not stand still."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from requests.adapters import BaseAdapter

from slurm_banking.bank import Bank, NoListing, listing
from slurm_banking.bank.transport import Transport
from tests.server.running_bank import DAY, TODAY, Account, RunningBank, database_of

START = int(
    datetime.datetime.combine(
        TODAY - DAY, datetime.time(11), tzinfo=datetime.timezone.utc
    ).timestamp()
)


def client(bank: RunningBank) -> Bank:
    return Bank(bank.url.rstrip("/"), bank.keys["relay"], timeout_s=30)


def _iso(at: int) -> str:
    return datetime.datetime.fromtimestamp(at, tz=datetime.timezone.utc).isoformat()


def put(bank: RunningBank, account: Account, name: str, start: int, amount: str = "1.25") -> None:
    answer = bank.put(
        {
            "jobslurmid": name,
            "userid": account.uid,
            "accountid": account.name,
            "amount": amount,
            "submitdate": _iso(start - 60),
            "startdate": _iso(start),
            "enddate": _iso(start + 60),
            "jobstatus": "COMPLETED",
        }
    )
    assert answer.status_code == 200, answer.text


_STATEMENTS = """
import json, sys
import django

django.setup()
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

token, path = sys.argv[1:]
with CaptureQueriesContext(connection) as asked:
    answer = Client().get(path, HTTP_HOST="127.0.0.1", HTTP_AUTHORIZATION=f"Token {token}")
print(json.dumps([answer.json()["count"], [one["sql"] for one in asked]]))
"""


def test_a_page_reads_no_more_rows_of_the_database_than_it_has(bank: RunningBank) -> None:
    account = bank.account()
    for number in range(3):
        put(bank, account, f"{account.name}:{number}", START + number)
    asked = subprocess.run(
        [
            *(sys.executable, "-c", _STATEMENTS, bank.keys["read"]),
            f"/api/jobs/?account={account.name}&start_time={START}&page_size=2",
        ],
        env={**bank.environment, "DJANGO_SETTINGS_MODULE": "slurm_banking.server.settings"},
        capture_output=True,
        text=True,
        check=True,
    )
    count, statements = json.loads(asked.stdout)
    of_rows = [text for text in statements if "jobslurmid" in text]
    assert count == 3 and len(of_rows) == 1
    assert "LIMIT 2" in of_rows[0]


def test_every_row_of_a_time_is_listed_once(
    bank: RunningBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over more pages than one, many of one second, and cut into smaller windows."""
    account = bank.account()
    for number in range(130):
        put(bank, account, f"{account.name}:{number}", START + (0 if number < 110 else number))
    put(bank, account, f"{account.name}:late", START + 1000)
    made = client(bank)
    try:
        for most_rows in (2000, 40):
            monkeypatch.setattr(listing, "MOST_ROWS", most_rows)
            names = [
                row.bank_job_id
                for row in made.list_runs(since=START, until=START + 1000, account=account.name)
            ]
            assert sorted(names) == sorted(f"{account.name}:{number}" for number in range(130))
        assert not list(made.list_runs(since=START - 1000, until=START, account=account.name)), (
            "the end of a window is not in it"
        )
        total = made.total(account.name, since=START, until=START + 1001)
        assert (total.rows, total.amount_csu) == (131, 131 * 125)
        usage = made.usage(account.name)
        assert usage is not None and usage.used_csu == 131 * 125
        assert usage.period.start_high <= START
    finally:
        made.close()


def test_a_counter_that_was_changed_by_hand_is_told_as_it_is(bank: RunningBank) -> None:
    account = bank.account()
    put(bank, account, f"{account.name}:1", START)
    change = (
        "UPDATE bank_allocation SET used_csu = used_csu + {} WHERE account_id = "
        f"(SELECT id FROM bank_account WHERE name = '{account.name}')"
    )
    with database_of(bank) as connection:
        connection.execute(change.format(500))
    made = client(bank)
    try:
        usage = made.usage(account.name)
        assert usage is not None and usage.used_csu == 625
        assert made.total(account.name, since=START, until=START + 1).amount_csu == 125
    finally:
        made.close()
        with database_of(bank) as connection:
            connection.execute(change.format(-500))


def test_an_account_that_the_bank_does_not_have_has_no_usage(bank: RunningBank) -> None:
    made = client(bank)
    try:
        assert made.usage("nobody_s") is None
    finally:
        made.close()


class Pages(BaseAdapter):
    """A bank that answers each list with the next of these pages."""

    def __init__(self, *pages: tuple[list[int], int, bool]) -> None:
        """Of each: the numbers of its rows, the count that it claims, and whether there is another."""
        super().__init__()
        self._pages = list(pages)
        self.asked: list[dict[str, list[str]]] = []

    def send(self, request: Any, *_: Any, **__: Any) -> requests.Response:
        self.asked.append(parse_qs(urlsplit(request.url).query))
        numbers, count, more = self._pages.pop(0)
        rows = [
            {
                "jobslurmid": str(number),
                "userid": "1",
                "accountid": "a",
                "startdate": _iso(START + number),
                "amount": "1.00",
            }
            for number in numbers
        ]
        body = {"count": count, "next": "x" if more else None, "results": rows}
        response = requests.Response()
        response.status_code = 200
        response.headers["Content-Type"] = "application/json"
        response._content = json.dumps(body).encode()
        response.raw = _Raw(json.dumps(body).encode())
        response.request = request
        return response

    def close(self) -> None:
        pass


class _Raw:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self.headers = {"Content-Type": "application/json"}

    def stream(self, *_: Any, **__: Any) -> Any:
        yield self._content

    def read(self, *_: Any, **__: Any) -> bytes:
        content, self._content = self._content, b""
        return content

    def close(self) -> None:
        pass

    def release_conn(self) -> None:
        pass


class Steady(BaseAdapter):
    """A bank that lists by time; a row starts every second. It counts what it sends."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0

    def send(self, request: Any, *_: Any, **__: Any) -> requests.Response:
        query = {
            name: int(values[0]) for name, values in parse_qs(urlsplit(request.url).query).items()
        }
        low, high, size = query["start_time"], query["end_time"] + 1, query["page_size"]
        first = low + (query.get("page", 1) - 1) * size
        numbers = [start - START for start in range(first, min(first + size, high))]
        self.sent += len(numbers)
        return Pages((numbers, high - low, first + size < high)).send(request)

    def close(self) -> None:
        pass


def test_a_long_time_is_cut_once_into_parts_of_a_few_pages() -> None:
    """A part that proved too large was asked for in vain."""
    bank = Steady()
    assert _listed(bank, START + 30_000) == [str(number) for number in range(30_000)]
    assert bank.sent < 1.1 * 30_000


def _listed(pages: BaseAdapter, until: int = START + 1000) -> list[str]:
    session = requests.Session()
    session.mount("http://", pages)
    transport = Transport("http://bank.test/api", "k", timeout_s=5, session=session)
    found = listing.rows(transport, since=START, until=until, pause=lambda _: None)
    return [row.bank_job_id for row in found]


def test_rows_that_change_places_between_pages_are_read_again() -> None:
    pages = Pages(([1, 2], 3, True), ([2], 3, False), ([1, 3], 3, True), ([2], 3, False))
    assert sorted(_listed(pages)) == ["1", "2", "3"]
    assert len(pages.asked) == 4


def test_a_bank_that_does_not_filter_by_time_is_not_listed() -> None:
    with pytest.raises(NoListing):
        _listed(Pages(([-5000, 1], 2, False)))


def test_a_row_in_the_last_part_of_a_window_s_last_second_is_in_it(bank: RunningBank) -> None:
    account = bank.account()
    put(bank, account, f"{account.name}:1", START)
    with database_of(bank) as connection:
        connection.execute(
            f"UPDATE bank_job SET startdate = '{_iso(START)[:19].replace('T', ' ')}.700' "
            f"WHERE jobslurmid = '{account.name}:1'"
        )
    made = client(bank)
    try:
        listed = [
            [
                row.bank_job_id
                for row in made.list_runs(since=low, until=low + 1, account=account.name)
            ]
            for low in (START - 1, START, START + 1)
        ]
        assert listed == [[], [f"{account.name}:1"], []]
    finally:
        made.close()
