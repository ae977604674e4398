# SPDX-License-Identifier: BSD-3-Clause
"""The portal's traps, each set by the bundled bank with ``--compat portal``, and each walked over by the relay's own
deliveries: ledger, delivery book and adapter are the real ones, and so are the server and its database.

The first half of each test lets a naive client fall into the trap, so that the switch is known to set it.
"""

from __future__ import annotations

import datetime
import random
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import pytest
import requests

from slurm_banking.bank import Bank
from slurm_banking.ledger import Ledger, LedgerRun
from slurm_banking.relay.book import FILE_NAME, DeliveryBook
from slurm_banking.relay.deliver import DeliverReport, deliver_due
from slurm_banking.relay.funds import refresh_funds
from tests.builders import a_run

from .running_bank import DAY, TODAY, Account, RunningBank, instant, job

CONFIG: Any = SimpleNamespace(relay=SimpleNamespace(deliver_retry_max_s=300))
END = {"enddate": instant(TODAY - DAY, 13), "jobstatus": "COMPLETED"}


class PortalBank(RunningBank):
    def start(self, *arguments: str) -> str:
        return super().start("--compat", "portal", *arguments)

    def job_sum(self, account: str) -> Decimal:
        """Of the rows of an account."""
        rows: list[Any] = []
        number = 1
        while True:
            page = self.get("jobs/", account=account, page=number)
            rows += page["results"]
            if not page["next"]:
                return sum((Decimal(row["amount"]) for row in rows), Decimal(0))
            number += 1


@pytest.fixture(scope="module")
def portal(request: pytest.FixtureRequest, database: str) -> Iterator[PortalBank]:
    url = None
    if database == "postgresql":
        server = request.getfixturevalue("postgresql")
        url = server.create_database(f"portal_{time.monotonic_ns()}")
    with PortalBank(url) as running:
        yield running


class Relay:
    """A ledger and its deliveries to the portal, of one account."""

    def __init__(self, directory: Path, portal: PortalBank, account: Account) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self.portal = portal
        self.account = account
        self.ledger = Ledger(str(directory), "c", check_directory=False)
        self.book = DeliveryBook(str(directory / FILE_NAME))
        self.bank = Bank(portal.url.rstrip("/"), portal.keys["relay"], timeout_s=10)
        self.now = time.time()
        self.submitted = int(self.now) - 7200
        deliver_due(
            self.ledger, self.bank, self.book, CONFIG, self.now
        )  # nothing waits to be adopted
        self.refresh()

    def close(self) -> None:
        self.ledger.close()
        self.book.close()
        self.bank.close()

    def refresh(self) -> None:
        uid = int(self.account.uid)
        refresh_funds(self.ledger, self.bank, self.book, [(self.account.name, uid)], self.now)

    def available_csu(self) -> Optional[int]:
        with self.ledger.transaction(write=False) as tx:
            return tx.funds_view(self.account.name, int(self.account.uid)).account_available_csu

    def _run(self, job_id: int, **changes: Any) -> Any:
        values = dict(
            submit_time=self.submitted, start_time=self.submitted + 10,
            user_id=int(self.account.uid), account=self.account.name,
        )  # fmt: skip
        return a_run(job_id=job_id, **{**values, **changes})

    def start(self, job_id: int, lien_csu: int, **changes: Any) -> None:
        run = self._run(job_id, state="RUNNING", end_time=None, **changes)
        with self.ledger.transaction() as tx:
            tx.start_run(run, share_csu=lien_csu, inputs={}, actor="test")

    def end(self, job_id: int, charge_csu: int, **changes: Any) -> None:
        changes.setdefault("end_time", changes.get("start_time", self.submitted + 10) + 60)
        run = self._run(job_id, **changes)
        with self.ledger.transaction() as tx:
            tx.end_run(run, charge_csu=charge_csu, share_csu=charge_csu, inputs={}, actor="test")

    def deliver(self, **options: Any) -> DeliverReport:
        self.now += 400  # whatever waited is due
        return deliver_due(self.ledger, self.bank, self.book, CONFIG, self.now, **options)

    def run(self, job_id: int) -> LedgerRun:
        with self.ledger.transaction(write=False) as tx:
            return tx.runs_by_job(job_id)[-1]

    def waiting(self) -> int:
        with self.ledger.transaction(write=False) as tx:
            return tx.outbox_size()[0]

    def agrees(self, csu: int) -> bool:
        """What the portal's usage says is what its rows amount to, and what the ledger charged."""
        usage = self.portal.usage(self.account)
        rows = self.portal.job_sum(self.account.name)
        with self.ledger.transaction(write=False) as tx:
            problems = tx.check()
        assert (usage * 100, rows * 100, problems) == (csu, csu, [])
        return True


@pytest.fixture
def relay(portal: PortalBank, tmp_path: Path) -> Iterator[Relay]:
    made = Relay(tmp_path / "state", portal, portal.account("1000"))
    yield made
    made.close()


_number = iter(range(1_000_000, 2_000_000))


@pytest.fixture
def job_id() -> int:
    """Not yet used at this portal."""
    return next(_number)


def test_an_amount_between_start_and_end_leaves_no_trace(
    portal: PortalBank, relay: Relay, job_id: int
) -> None:
    """Trap 1: a PUT without an end date changes the row and not the usage, and the next one counts from the row."""
    victim = portal.account()
    naive = job(portal.fresh("j"), victim)
    portal.post({**naive, "amount": "40.00"})
    portal.put({**naive, "amount": "10.00"})
    portal.put({**naive, "amount": "40.00", **END})
    assert portal.usage(victim) == Decimal("70.00")

    relay.start(job_id, 4000)
    relay.deliver()
    relay.end(job_id, 1000)
    relay.deliver()
    relay.end(job_id, 4000)  # told again, and otherwise
    relay.deliver()
    assert relay.waiting() == 0 and relay.agrees(4000)


def test_a_run_that_ends_after_its_allocation_is_told_to_an_operator(
    portal: PortalBank, tmp_path: Path, job_id: int
) -> None:
    """Trap 2, which no client can avoid: the usage keeps what the start counted, and no later PUT mends it."""
    ended = portal.account("1000", start=TODAY - 30 * DAY, end=TODAY - 2 * DAY)
    naive = job(
        portal.fresh("j"), ended, submitdate=instant(TODAY - 5 * DAY), startdate=instant(TODAY - 5 * DAY)
    )  # fmt: skip
    portal.post({**naive, "amount": "50.00"})
    portal.put({**naive, "amount": "20.00", "enddate": instant(TODAY)})
    portal.put({**naive, "amount": "20.00", "enddate": instant(TODAY - 3 * DAY)})
    assert portal.usage(ended) == Decimal("50.00")

    account = portal.account("1000", start=TODAY - 30 * DAY, end=TODAY - 2 * DAY)
    relay = Relay(tmp_path / "state", portal, account)
    start = int(datetime.datetime.now().timestamp()) - 5 * 86400
    dates = dict(submit_time=start, start_time=start)
    relay.start(job_id, 5000, **dates)
    relay.deliver()
    assert portal.usage(account) == Decimal("50.00")
    relay.end(job_id, 2000, **dates, end_time=start + 4 * 86400, elapsed_s=4 * 86400)
    report = relay.deliver()
    assert portal.usage(account) == Decimal("50.00"), "the portal counts nothing any more"
    assert portal.job_sum(account.name) == Decimal("20.00")
    (alarm,) = report.alarms
    assert f"job {job_id}" in alarm and "50.00" in alarm and "20.00" in alarm
    relay.refresh()
    available_csu = relay.available_csu()
    assert available_csu is not None and available_csu <= 100_000 - 2000, "never above the truth"
    relay.close()


def test_a_start_outside_of_the_allocation_is_counted_once_it_is_inside(
    portal: PortalBank, tmp_path: Path, job_id: int
) -> None:
    """Trap 3: a row stored without being counted, and then a PUT of the same amount: the difference is nothing."""
    late = portal.account(start=TODAY - 2 * DAY)
    naive = job(portal.fresh("j"), late, "9.00")
    early = {"submitdate": instant(TODAY - 5 * DAY), "startdate": instant(TODAY - 4 * DAY)}
    assert portal.post({**naive, **early}).status_code == 201
    portal.put({**naive, **END})
    assert portal.usage(late) == 0, "never charged"

    account = portal.account(start=TODAY - 2 * DAY)
    relay = Relay(tmp_path / "state", portal, account)
    before = int(time.time()) - 4 * 86400
    relay.start(job_id, 900, submit_time=before, start_time=before)
    relay.deliver()
    assert portal.usage(account) == 0
    # As when Slurm sets the start anew (a node that did not boot): the end has another, inside.
    relay.end(job_id, 900, submit_time=before, start_time=int(time.time()) - 7200)
    relay.deliver()
    assert relay.waiting() == 0 and relay.agrees(900)
    relay.close()


@pytest.mark.parametrize("who", ["user", "allocation"])
def test_an_end_that_is_refused_for_a_while_is_counted_when_it_is_not(
    portal: PortalBank, relay: Relay, job_id: int, who: str
) -> None:
    """Trap 4: membership and allocation are asked for at the end as well, and meanwhile the estimate stays charged."""
    account = relay.account
    relay.start(job_id, 10_000)
    relay.deliver()
    if who == "user":
        portal.shell("user", "remove", account.user, "--account", account.name)
    else:
        portal.shell("allocation", "expire", account.name)
    relay.end(job_id, 4000)
    report = relay.deliver()
    assert report.healing == 1 and report.parked == 0
    assert portal.usage(account) == Decimal("100.00"), "the estimate"
    assert relay.deliver().healing == 1
    if who == "user":
        portal.shell("user", "add", account.user, "--account", account.name)
    else:
        portal.shell("allocation", "activate", account.name)
    assert relay.deliver().ends == 1
    assert relay.waiting() == 0 and relay.agrees(4000)


def test_each_run_of_a_requeued_job_is_counted(
    portal: PortalBank, relay: Relay, job_id: int
) -> None:
    """Trap 5: under one id, the second run replaces the first."""
    victim = portal.account()
    naive = job(portal.fresh("j"), victim)
    portal.post({**naive, "amount": "100.00"})
    portal.put({**naive, "amount": "40.00", **END})
    assert portal.post({**naive, "amount": "100.00"}).status_code == 400
    portal.put({**naive, "amount": "30.00", **END})
    assert portal.usage(victim) == Decimal("30.00"), "the first run's 40 are lost"

    relay.start(job_id, 10_000)
    relay.deliver()
    relay.end(job_id, 4000, state="REQUEUED")
    relay.deliver()
    again = dict(restart_count=1, start_time=relay.submitted + 600)
    relay.start(job_id, 10_000, **again)
    relay.deliver()
    relay.end(job_id, 3000, **again)
    relay.deliver()
    assert relay.waiting() == 0 and relay.agrees(7000)


def test_what_is_sent_has_the_same_id_in_address_and_body(
    portal: PortalBank, relay: Relay, job_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 6: the id in the address is not looked at; another in the body makes, and charges, another job."""
    victim = portal.account()
    naive = job(portal.fresh("j"), victim, "5.00", **END)
    other = portal.fresh("j")
    put = portal.request("PUT", f"jobs/{other}/", json=naive)
    assert put.status_code == 200
    assert portal.request("GET", f"jobs/{other}/").status_code == 404
    assert portal.usage(victim) == Decimal("5.00")

    sent: list[tuple[str, str]] = []
    request = requests.Session.request

    def note(self: Any, method: str, url: str, **options: Any) -> Any:
        if method.upper() == "PUT":
            sent.append((url.rstrip("/").rsplit("/", 1)[1], options["json"]["jobslurmid"]))
        return request(self, method, url, **options)

    monkeypatch.setattr(requests.Session, "request", note)
    for number in range(3):
        whole = next(_number)
        relay.start(whole, 100)
        relay.deliver()
        relay.end(whole, 50, array_job_id=whole, array_task_id=number)
    relay.end(job_id, 50)
    relay.deliver()
    assert len(sent) == 4 and all(address == body for address, body in sent)
    assert relay.waiting() == 0 and relay.agrees(200)


def test_two_relays_that_deliver_the_same_runs_at_once_charge_them_once(
    portal: PortalBank, relay: Relay, tmp_path: Path
) -> None:
    """Trap 7: of those who make one job at the same time all but one get a page of HTML, status 500."""
    victim = portal.account()
    naive = job(portal.fresh("j"), victim, "5.00", **END)
    statuses: list[int] = []
    kinds: set[str] = set()
    ready = threading.Barrier(6)

    def put() -> None:
        ready.wait(10)
        answer = portal.put(naive)
        statuses.append(answer.status_code)
        if answer.status_code == 500:
            kinds.add(answer.headers["Content-Type"].split(";")[0])

    threads = [threading.Thread(target=put) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(statuses) == {200, 500} and kinds == {"text/html"}, statuses
    assert portal.usage(victim) == Decimal("5.00")

    twin = Relay(tmp_path / "twin", portal, relay.account)
    twin.submitted = relay.submitted
    ids = [next(_number) for _ in range(12)]
    for one in (relay, twin):
        for one_id in ids:
            one.end(one_id, 300)
    reports: list[DeliverReport] = []
    threads = [
        threading.Thread(target=lambda one=one: reports.append(one.deliver(workers=4)))  # type: ignore[misc]
        for one in (relay, twin)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(report.unanswered for report in reports) > 0, "nobody met the trap"
    for _ in range(40):
        for one in (relay, twin):
            if one.waiting():
                one.deliver()
    assert relay.waiting() == twin.waiting() == 0
    assert relay.agrees(300 * len(ids)) and twin.agrees(300 * len(ids))
    twin.close()


def test_a_long_partition_list_and_a_long_node_name_lose_no_charge(
    portal: PortalBank, relay: Relay, job_id: int
) -> None:
    """Trap 8: a partition over 50 characters, or a node's name over 30, and the whole job is refused."""
    victim = portal.account()
    for field in ({"partition": "p" * 51}, {"nodes": [{"name": "n" * 31}]}):
        assert portal.post(job(portal.fresh("j"), victim, **field)).status_code == 400

    long = dict(
        partition=",".join(["savio3_bigmem"] * 6), nodes="n" * 31 + "[1-3],n1", qos="q" * 60
    )
    relay.start(job_id, 1000, **long)
    relay.deliver()
    relay.end(job_id, 700, **long)
    relay.deliver()
    assert relay.waiting() == 0 and relay.agrees(700)
    assert portal.get(f"jobs/{job_id}/")["nodes"] == [{"name": "n1"}]


def test_a_page_of_html_is_an_outage_and_everything_arrives_after_it(
    portal: PortalBank, relay: Relay, job_id: int
) -> None:
    relay.start(job_id, 1000)
    (portal.data / "maintenance").write_text("120")
    try:
        page = portal.request("GET", "jobs/", scope="admin")
        assert page.status_code == 503 and page.headers["Content-Type"].startswith("text/html")
        report = relay.deliver()
        assert "503" in report.bank_away and relay.book.away is not None
        assert relay.book.away.until >= relay.now + 120, "it said for how long"
    finally:
        (portal.data / "maintenance").unlink()
    relay.end(job_id, 400)
    assert relay.deliver().ends == 1
    assert relay.agrees(400)


def test_errors_that_nobody_caught_are_pages(portal: PortalBank) -> None:
    account = portal.account()
    for path in (f"can_submit_job/NaN/{account.uid}/{account.name}/", "jobs/?user=nobody-at-all"):
        answer = portal.request("GET", path)
        assert answer.status_code == 500
        assert answer.headers["Content-Type"].startswith("text/html"), path


def test_an_address_without_its_last_slash_is_a_redirect_that_no_delivery_meets(
    portal: PortalBank, relay: Relay, job_id: int
) -> None:
    """A client that follows it turns a PUT into a GET, and takes the old row for an acknowledgement."""
    sent = job(portal.fresh("j"), relay.account, "1.00", **END)
    answer = portal.request("PUT", f"jobs/{sent['jobslurmid']}", json=sent, allow_redirects=False)
    assert answer.status_code == 301
    assert answer.headers["Location"].endswith(f"/jobs/{sent['jobslurmid']}/")
    assert portal.usage(relay.account) == 0
    relay.end(job_id, 100)
    assert relay.deliver().ends == 1
    assert relay.agrees(100)


def test_the_sum_of_a_page_is_a_float_and_an_amount_is_text(
    portal: PortalBank, relay: Relay, job_id: int
) -> None:
    relay.end(job_id, 1234)
    relay.deliver()
    page = portal.get("jobs/", account=relay.account.name)
    assert type(page["total_amount"]) is float and page["results"][0]["amount"] == "12.34"
    assert relay.bank.find_run(relay.run(job_id)).held_csu == 1234  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_lives_of_many_runs_in_any_order_leave_no_drift(
    portal: PortalBank, relay: Relay, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starts, ends, ends told again, requeues, a member who leaves and returns, maintenance, replies that are lost."""
    dice = random.Random(seed)
    running: list[tuple[int, int]] = []  # (job, restarts)
    charges: dict[tuple[int, int], int] = {}
    member, maintenance = True, portal.data / "maintenance"
    request = requests.Session.request

    def dates(restarts: int) -> dict[str, int]:
        return dict(restart_count=restarts, start_time=relay.submitted + 10 + 100 * restarts)

    def lose(self: Any, method: str, url: str, **options: Any) -> Any:
        answer = request(self, method, url, **options)
        if method.upper() != "GET" and url.startswith(portal.url) and dice.random() < 0.1:
            raise requests.exceptions.ConnectionError("the reply was lost")
        return answer

    monkeypatch.setattr(requests.Session, "request", lose)
    try:
        for _ in range(60):
            what = dice.choice(
                ["start", "start", "end", "end", "again", "requeue", "member", "down"]
            )
            if what == "start":
                running.append((next(_number), 0))
                relay.start(running[-1][0], dice.randrange(1, 5000))
            elif what in ("end", "requeue") and running:
                job_id, restarts = running.pop(dice.randrange(len(running)))
                charges[job_id, restarts] = dice.randrange(0, 5000)
                state = "REQUEUED" if what == "requeue" else "COMPLETED"
                charge_csu = charges[job_id, restarts]
                relay.end(job_id, charge_csu, state=state, **dates(restarts))
                if what == "requeue":
                    running.append((job_id, restarts + 1))
                    relay.start(job_id, dice.randrange(1, 5000), **dates(restarts + 1))
            elif what == "again" and charges:
                job_id, restarts = dice.choice(sorted(charges))
                charges[job_id, restarts] = dice.randrange(0, 5000)
                relay.end(job_id, charges[job_id, restarts], **dates(restarts))
            elif what == "member":
                verb = "remove" if member else "add"
                portal.shell("user", verb, relay.account.user, "--account", relay.account.name)
                member = not member
            elif what == "down":
                if maintenance.exists():
                    maintenance.unlink()
                else:
                    maintenance.write_text("")
            if dice.random() < 0.5:
                relay.deliver(workers=4)
        for job_id, restarts in running:
            charges[job_id, restarts] = dice.randrange(0, 5000)
            relay.end(job_id, charges[job_id, restarts], **dates(restarts))
    finally:
        maintenance.unlink(missing_ok=True)
        monkeypatch.undo()
    if not member:
        portal.shell("user", "add", relay.account.user, "--account", relay.account.name)
    for _ in range(20):
        relay.deliver(workers=4)
    assert relay.waiting() == 0 and relay.agrees(sum(charges.values()))


def test_nothing_of_this_without_the_switch(tmp_path: Path) -> None:
    with RunningBank(data=tmp_path / "bank") as safe:
        (safe.data / "maintenance").write_text("")
        account = safe.account()
        naive = job("1", account)
        safe.post({**naive, "amount": "40.00"})
        safe.put({**naive, "amount": "10.00"})
        safe.put({**naive, "amount": "40.00", **END})
        assert safe.usage(account) == Decimal("40.00")
        assert safe.request("PUT", "jobs/2/", json=naive).status_code == 400
        assert safe.request("GET", "jobs", allow_redirects=False).status_code == 200
        assert safe.request("GET", "jobs/?user=nobody-at-all").status_code == 200


def test_the_switch_is_told_at_start_and_must_be_one_that_is_known(tmp_path: Path) -> None:
    with PortalBank(data=tmp_path / "bank") as portal:
        assert "for tests only" in (portal.data / "server.log").read_text()
    bank = RunningBank(data=tmp_path / "bank")
    assert bank.command("serve", "--compat", "moab").status == 2
    refused = bank.command("account", "list", SLURM_BANK_COMPAT="moab")
    assert refused.status == 1 and "expected portal" in refused.err
