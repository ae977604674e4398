# SPDX-License-Identifier: BSD-3-Clause
"""Deliveries: each run and phase once, whatever is lost; who must wait waits, and keeps nobody else waiting."""

from __future__ import annotations

import datetime
import json
import logging
import os
import sqlite3
import stat
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slurm_banking import config as configuration
from slurm_banking.bank import Acknowledgement, Bank
from slurm_banking.errors import BankRefused, BankUnavailable, LedgerError
from slurm_banking.ledger import Ledger, LedgerRun
from slurm_banking.relay.book import FILE_NAME, HEAL_RETRY_S, PARKED_LOOK_S, DeliveryBook
from slurm_banking.relay.deliver import WORKERS, DeliverReport, deliver_due, try_again
from slurm_banking.relay.funds import refresh_funds
from slurm_banking.relay.service import Service
from tests.builders import SUBMITTED, a_run
from tests.server.running_bank import RunningBank
from tests.unit.portal_model import Portal

CONFIG: Any = SimpleNamespace(relay=SimpleNamespace(deliver_retry_max_s=300))
USER = 1001


class Desk:
    """A ledger, a book and a portal, with a clock."""

    def __init__(self, directory: Path, workers: int = 1) -> None:
        directory.chmod(0o700)
        self.directory = directory
        self.workers = workers
        self.now = SUBMITTED + 10_000.0
        self.portal = Portal()
        self.project = self.portal.project("fc_alpha", 100_000)
        for uid in (USER, 1002):
            self.portal.member(self.project, uid)
        self.bank = Bank(
            "http://bank.test/api",
            "key",
            timeout_s=5,
            session=self.portal.session(),
            clock=lambda: self.now,
        )
        self.open()
        deliver_due(self.ledger, self.bank, self.book, CONFIG, self.now)

    def open(self) -> None:
        self.ledger = Ledger(str(self.directory), "c", check_directory=False, busy_timeout_ms=100)
        self.book = DeliveryBook(str(self.directory / FILE_NAME))

    def close(self) -> None:
        self.ledger.close()
        self.book.close()

    def start(self, job_id: int, lien_csu: int = 100, **changes: Any) -> LedgerRun:
        run = a_run(job_id=job_id, state="RUNNING", end_time=None, **changes)
        with self.ledger.transaction() as tx:
            return tx.start_run(run, share_csu=lien_csu, inputs={}, actor="test")[0]

    def end(self, job_id: int, charge_csu: int = 40, **changes: Any) -> None:
        with self.ledger.transaction() as tx:
            tx.end_run(
                a_run(job_id=job_id, **changes), charge_csu=charge_csu, share_csu=100, inputs={}, actor="test"
            )  # fmt: skip

    def deliver(self, **options: Any) -> DeliverReport:
        options.setdefault("workers", self.workers)
        return deliver_due(self.ledger, self.bank, self.book, CONFIG, self.now, **options)

    def sent(self) -> List[str]:
        """What was asked of jobs/ since the last look."""
        found = [f"{m} {p}".rstrip("/") for m, p in self.portal.requests if p.startswith("jobs")]
        self.portal.requests.clear()
        return found

    def waiting(self) -> int:
        with self.ledger.transaction(write=False) as tx:
            return tx.outbox_size()[0]

    def run(self, job_id: int) -> LedgerRun:
        with self.ledger.transaction(write=False) as tx:
            return tx.runs_by_job(job_id)[0]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


def test_deliveries_go_in_the_ledgers_order_and_once(desk: Desk) -> None:
    for job_id in (3, 1, 2):
        desk.start(job_id)
    report = desk.deliver()
    assert (report.starts, report.ends, report.more) == (3, 0, False)
    assert list(desk.portal.jobs) == ["3", "1", "2"]
    assert desk.sent() == ["POST jobs"] * 3
    assert desk.deliver().delivered == 0 and desk.sent() == []
    assert desk.run(3).bank_csu == 100 and desk.run(3).start_acked
    assert desk.waiting() == 0 and desk.book.counts() == {"unresolved": 0}


def test_an_end_supersedes_a_start_that_was_not_delivered(desk: Desk) -> None:
    desk.start(1)
    desk.end(1)
    report = desk.deliver()
    assert (report.starts, report.ends) == (0, 1)
    assert desk.sent() == ["GET jobs/1", "PUT jobs/1"]
    assert desk.project.used_csu == 40 == desk.run(1).bank_csu


def test_everything_waits_while_the_bank_is_away_and_one_tries_whether_it_is_back(
    desk: Desk,
) -> None:
    for job_id in range(1, 6):
        desk.start(job_id)
    desk.portal.faults = ["", "maintenance"] + ["maintenance"] * 3
    report = desk.deliver()
    assert (report.delivered, report.unanswered) == (0, 1)
    assert "503" in report.bank_away
    desk.sent()
    assert "503" in desk.deliver().bank_away
    assert desk.sent() == []
    assert desk.book.away is not None and desk.book.away.since == pytest.approx(desk.now, abs=1)
    for _ in range(3):
        desk.now += 301
        desk.portal.requests.clear()
        desk.deliver()
        assert len(desk.portal.requests) == 1  # a probe, alone
    desk.now += 301
    desk.deliver()
    assert desk.book.away is None and desk.waiting() == 0
    assert len(desk.portal.jobs) == 5


def test_a_clock_that_went_back_makes_nobody_wait_for_it_to_catch_up(desk: Desk) -> None:
    desk.start(1)
    desk.portal.faults = ["", "maintenance"]
    desk.now += 86_400
    assert "503" in desk.deliver().bank_away
    desk.now -= 86_400
    asked = len(desk.portal.requests)
    assert "503" in desk.deliver().bank_away
    assert len(desk.portal.requests) == asked, "as long a pause, by the clock as it is now"
    assert desk.book.away is not None and desk.book.away.since <= desk.now
    desk.now += 301
    desk.deliver()
    assert (desk.waiting(), desk.book.away) == (0, None)


def test_a_delivery_that_the_bank_fails_on_does_not_stop_the_others(desk: Desk) -> None:
    for job_id in range(1, 6):
        desk.start(job_id)
    create = desk.portal._create

    def fails_on_one(body: Any) -> Any:
        return (500, "<h1>error</h1>") if body["jobslurmid"] == "1" else create(body)

    desk.portal._create = fails_on_one  # type: ignore[method-assign]
    for _ in range(4):
        desk.deliver()
        desk.now += 2
    assert sorted(desk.portal.jobs) == ["2", "3", "4", "5"]
    assert desk.waiting() == 1


def test_a_refused_token_pauses_everything_and_alarms(desk: Desk) -> None:
    desk.start(1)
    desk.start(2)
    handle = desk.portal._handle
    desk.portal._handle = lambda *_: (401, {"detail": "Invalid token."})  # type: ignore[method-assign]
    assert desk.book.token_problem is None
    report = desk.deliver()
    assert report.bank_away == desk.book.token_problem and "401" in report.bank_away
    assert desk.book.away is not None and desk.book.away.unauthorized
    desk.sent()
    desk.now += 10
    desk.deliver()
    assert desk.sent() == []
    desk.portal._handle = handle  # type: ignore[method-assign]
    desk.now += 61
    assert desk.deliver().starts == 2
    assert desk.book.token_problem is None


def test_what_may_heal_waits_and_goes_when_it_has(desk: Desk) -> None:
    desk.project.members["1001"].active = False
    for job_id in range(1, 51):
        desk.start(job_id)
    desk.start(60, user_id=1002)
    report = desk.deliver()
    assert (report.starts, report.healing, report.parked) == (1, 1, 0)
    assert desk.sent() == ["POST jobs"] * 2  # one of the member's runs speaks for the rest
    desk.now += HEAL_RETRY_S / 2
    assert desk.deliver().delivered == 0 and desk.sent() == []
    desk.project.members["1001"].active = True
    desk.now += HEAL_RETRY_S
    assert desk.deliver().starts == 50
    assert desk.waiting() == 0


def test_what_the_bank_refuses_for_good_is_parked_and_told(desk: Desk) -> None:
    desk.end(1, charge_csu=10**12)
    desk.end(2)
    report = desk.deliver()
    assert (report.ends, report.parked) == (1, 1)
    assert "job 1" in report.alarms[0]
    with desk.ledger.transaction() as tx:
        (parked,) = tx.parked_runs()
    assert parked.job_id == 1 and "takes at most" in str(parked.parked)
    desk.sent()
    desk.now += 10 * PARKED_LOOK_S
    desk.deliver()
    assert desk.sent() == []
    desk.end(1, charge_csu=50)  # restated: another thing to tell
    desk.now += 2 * PARKED_LOOK_S
    assert desk.deliver().ends == 1
    assert desk.waiting() == 0 and desk.project.used_csu == 90


def test_what_was_parked_is_delivered_when_an_operator_has_it_tried_again(desk: Desk) -> None:
    put = desk.portal._update
    desk.portal._update = lambda *_: (400, {"amount": ["No."]})  # type: ignore[method-assign]
    desk.end(1)
    desk.end(2)
    assert desk.deliver().parked == 2
    desk.portal._update = put  # type: ignore[method-assign]
    desk.sent()
    first, second = desk.run(1), desk.run(2)
    assert [run.job_id for run in try_again(desk.ledger, desk.book, [first.run_id], "ops")] == [1]
    assert desk.deliver().ends == 1
    assert desk.run(1).end_acked and desk.run(1).parked is None
    assert desk.run(2).parked is not None, "nobody asked for it"
    with desk.ledger.transaction() as tx:
        (note,) = [entry for entry in tx.entries_by_job(1) if entry.kind == "note"]
    assert note.actor == "ops" and "No." in note.reason and note.amount_csu == 0
    assert try_again(desk.ledger, desk.book, [first.run_id], "ops") == []
    assert desk.book.refused_runs(10) == [second.run_id]


def test_what_is_refused_again_after_a_retry_is_parked_again(desk: Desk) -> None:
    desk.end(1, charge_csu=10**12)
    desk.deliver()
    try_again(desk.ledger, desk.book, [desk.run(1).run_id], "ops")
    assert desk.deliver().parked == 1
    assert desk.run(1).parked is not None and desk.waiting() == 1


def test_an_operators_retry_outlives_the_relay_and_does_not_wait_for_a_pause(desk: Desk) -> None:
    desk.end(1, charge_csu=10**12)
    desk.start(2)
    desk.deliver()
    desk.book.bank_failed(desk.now, "down", longest_s=300)
    run_id = desk.run(1).run_id
    desk.end(1, charge_csu=50)
    try_again(desk.ledger, desk.book, [run_id], "ops")
    desk.deliver()
    assert desk.waiting() == 0


def test_a_lost_reply_is_looked_after_before_anything_is_sent_again(desk: Desk) -> None:
    desk.start(1)
    desk.deliver()
    desk.end(1)
    desk.portal.faults = ["lose_reply"]
    assert desk.deliver().unanswered == 1
    desk.sent()
    desk.now += 400
    assert desk.deliver().ends == 1
    assert desk.sent() == ["GET jobs/1"]
    assert desk.project.used_csu == 40 == desk.run(1).bank_csu


def test_what_the_bank_holds_is_known_even_when_it_then_refuses(desk: Desk) -> None:
    """An end is applied and its reply lost; it is restated, and by then the member has left."""
    refresh_funds(desk.ledger, desk.bank, desk.book, [("fc_alpha", USER)], desk.now)
    desk.start(1, lien_csu=100)
    desk.deliver()
    desk.end(1, charge_csu=20)
    desk.portal.faults = ["lose_reply"]
    desk.deliver()
    desk.end(1, charge_csu=90)
    desk.project.members["1001"].active = False
    desk.now += 400
    assert desk.deliver().healing == 1
    assert desk.run(1).bank_csu == 20 == desk.project.used_csu
    refresh_funds(desk.ledger, desk.bank, desk.book, [("fc_alpha", 1002)], desk.now)
    with desk.ledger.transaction() as tx:
        view = tx.funds_view("fc_alpha", 1002)
    assert view.account_available_csu == 100_000 - 90


def test_a_process_that_died_in_the_middle_asks_first(desk: Desk) -> None:
    desk.start(1)

    def die(_: Any) -> None:
        desk.close()
        raise KeyboardInterrupt

    desk.portal.meanwhile = die
    with pytest.raises((KeyboardInterrupt, LedgerError)):
        desk.deliver()
    desk.open()
    assert desk.book.counts()["unresolved"] == 1
    assert desk.book.refresh_marker("fc_alpha") is None
    desk.sent()
    assert desk.deliver().starts == 1
    assert desk.sent()[0] == "GET jobs/1"
    assert desk.project.used_csu == 100 == desk.run(1).bank_csu
    assert desk.book.refresh_marker("fc_alpha") is not None


def test_what_another_relay_delivers_meanwhile_keeps_no_funds_from_being_read(desk: Desk) -> None:
    """For a moment there may be two: the lock file was removed with the state directory's other files."""
    run = desk.start(1)
    assert desk.book.begin(run.run_id, 1, "start", "fc_alpha")
    other = DeliveryBook(desk.book.path)
    assert other.refresh_marker("fc_alpha") is None and other.counts()["unresolved"] == 1
    desk.book.done(run.run_id, "fc_alpha", 1)
    assert other.refresh_marker("fc_alpha") is not None and other.counts()["unresolved"] == 0
    other.close()


def test_what_another_relay_had_in_flight_when_it_died_is_looked_for(desk: Desk) -> None:
    run = desk.start(1)
    other = DeliveryBook(desk.book.path)
    assert other.begin(run.run_id, 1, "start", "fc_alpha")
    other.close()
    desk.sent()
    assert desk.deliver().starts == 1
    assert desk.sent()[0] == "GET jobs/1", "it may have reached the bank"


def test_a_lost_book_takes_what_waits_as_possibly_sent(desk: Desk) -> None:
    desk.start(1)
    desk.portal.faults = ["", "lose_reply"]
    desk.deliver()
    desk.close()
    for name in os.listdir(desk.directory):
        if name.startswith(FILE_NAME):
            (desk.directory / name).unlink()
    desk.open()
    assert desk.book.refresh_marker("fc_alpha") is None
    desk.sent()
    assert desk.deliver().starts == 1
    assert desk.sent()[0] == "GET jobs/1"
    assert desk.project.used_csu == 100


def test_a_run_restated_while_it_is_delivered_goes_again(desk: Desk) -> None:
    desk.end(1, charge_csu=40)
    desk.portal.meanwhile = lambda _: desk.end(1, charge_csu=55)
    assert desk.deliver().ends == 2
    assert desk.project.used_csu == 55 == desk.run(1).bank_csu
    assert desk.waiting() == 0


def test_a_run_that_ends_while_its_start_is_delivered_is_ended(desk: Desk) -> None:
    desk.start(1)
    desk.portal.meanwhile = lambda _: desk.end(1)
    desk.deliver()
    desk.deliver()
    assert desk.project.used_csu == 40 == desk.run(1).bank_csu
    assert desk.waiting() == 0


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_end_that_another_worker_passes_while_its_start_is_acknowledged_is_delivered(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    desk.start(1)
    desk.start(2)
    ended = threading.Event()
    start, done, known = desk.bank.start, desk.book.done, desk.book.known
    looked, acknowledged = threading.Event(), threading.Event()

    def slow_start(run: LedgerRun, amount_csu: int) -> Any:
        if run.job_id == 2:
            assert ended.wait(5)
        return start(run, amount_csu)

    def done_between(run_id: int, *rest: Any, **options: Any) -> None:
        if ended.is_set():
            return done(run_id, *rest, **options)
        desk.end(1)
        with desk.ledger.transaction(write=False) as tx:
            delivery = tx.delivery_of(run_id)
        assert delivery is not None
        ended.set()
        if moment == "after":
            until = time.monotonic() + 5
            while desk.book.scanned_seq < delivery.seq and time.monotonic() < until:
                time.sleep(0.001)
        else:
            assert looked.wait(5)
        done(run_id, *rest, **options)
        acknowledged.set()

    def known_then_done(run_ids: Any) -> Any:
        found = known(run_ids)
        if moment == "before" and ended.is_set():
            looked.set()
            acknowledged.wait(5)
        return found

    monkeypatch.setattr(desk.bank, "start", slow_start)
    monkeypatch.setattr(desk.book, "done", done_between)
    monkeypatch.setattr(desk.book, "known", known_then_done)
    desk.deliver(workers=2)
    desk.deliver(workers=1)
    assert desk.run(1).end_acked and desk.waiting() == 0


def test_a_ledger_that_cannot_be_written_loses_nothing(desk: Desk) -> None:
    desk.start(1)
    blocker = sqlite3.connect(desk.ledger.path, isolation_level=None)
    desk.portal.meanwhile = lambda _: blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError):
        desk.deliver()
    blocker.execute("ROLLBACK")
    blocker.close()
    assert desk.book.counts()["unresolved"] == 1
    desk.now += 400
    assert desk.deliver().starts == 1
    assert desk.project.used_csu == 100 == desk.run(1).bank_csu


def test_deliveries_of_an_account_wait_for_a_refresh_of_its_funds(desk: Desk) -> None:
    desk.start(1)
    with desk.book.hold("fc_alpha", 0.1):
        assert desk.deliver(budget_s=0.2).delivered == 0
    desk.now += 1
    assert desk.deliver().starts == 1


def test_a_round_ends_when_its_time_is_up(desk: Desk) -> None:
    for job_id in range(1, 30):
        desk.start(job_id)
    report = desk.deliver(budget_s=0)
    assert report.more and report.delivered == 0
    assert desk.deliver().starts == 29


def test_only_one_delivers_at_a_time(desk: Desk) -> None:
    desk.start(1)
    with desk.book.delivering:
        assert desk.deliver().delivered == 0
    assert desk.deliver().starts == 1


def test_the_book_is_its_owners_alone(desk: Desk) -> None:
    for name in os.listdir(desk.directory):
        if name.startswith(FILE_NAME):
            assert stat.S_IMODE((desk.directory / name).stat().st_mode) == 0o600


def test_what_is_put_off_is_not_looked_at_again_before_its_time(desk: Desk) -> None:
    desk.project.members["1001"].active = False
    for job_id in range(1, 501):
        desk.start(job_id)
    desk.deliver()
    seen: List[int] = []
    due = desk.book.known
    desk.book.known = lambda ids: seen.extend(ids) or due(ids)  # type: ignore[method-assign,func-returns-value]
    desk.deliver()
    assert seen == []
    desk.start(501, user_id=1002)
    assert desk.deliver().starts == 1
    assert len(seen) == 1


def test_four_at_once_and_the_bundled_bank_agrees(tmp_path: Path) -> None:
    with RunningBank() as running:
        account, other = running.account("1000"), running.account("1000")
        tmp_path.chmod(0o700)
        ledger = Ledger(str(tmp_path), "c", check_directory=False)
        book = DeliveryBook(str(tmp_path / FILE_NAME))
        bank = Bank(running.url.rstrip("/"), running.keys["relay"], timeout_s=10)
        submitted = int(time.time()) - 7200
        for job_id in range(1, 41):
            whose = (account, other)[job_id % 2]
            run = a_run(
                job_id=job_id, submit_time=submitted, start_time=submitted + 5, end_time=submitted + 65,
                user_id=int(whose.uid), account=whose.name,
            )  # fmt: skip
            with ledger.transaction() as tx:
                tx.start_run(run, share_csu=100, inputs={}, actor="test")
                if job_id > 20:
                    tx.end_run(run, charge_csu=job_id, share_csu=100, inputs={}, actor="test")
        report = deliver_due(ledger, bank, book, CONFIG, time.time(), budget_s=60)
        assert (report.starts, report.ends, report.alarms) == (20, 20, [])
        for whose, parity in ((account, 0), (other, 1)):
            charged = sum(job_id for job_id in range(21, 41) if job_id % 2 == parity)
            assert running.usage(whose) * 100 == 10 * 100 + charged
        with ledger.transaction() as tx:
            assert tx.check() == [] and tx.outbox_size()[0] == 0
        running.stop()
        with ledger.transaction() as tx:
            tx.end_run(run, charge_csu=1, share_csu=100, inputs={}, actor="test")
        assert "refused" in deliver_due(ledger, bank, book, CONFIG, time.time()).bank_away
        ledger.close()
        book.close()


# -- pauses, poison, order, connections ---------------------------------------------------------------------------------


class Wrapped:
    """The real adapter, with what a test wants before a start or an end, and who was sent when."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.before: Callable[[str, LedgerRun], None] = lambda phase, run: None
        self.log: List[Tuple[str, int, str]] = []  # (begin or end, job, phase)
        self._lock = threading.Lock()

    def _note(self, what: str, run: LedgerRun, phase: str) -> None:
        with self._lock:
            self.log.append((what, run.job_id, phase))

    def _send(self, phase: str, run: LedgerRun, send: Callable[[], Acknowledgement]) -> Any:
        self._note("begin", run, phase)
        try:
            self.before(phase, run)
            return send()
        finally:
            self._note("end", run, phase)

    def start(self, run: LedgerRun, amount_csu: int) -> Acknowledgement:
        return self._send("start", run, lambda: self.bank.start(run, amount_csu))  # type: ignore[no-any-return]

    def end(self, run: LedgerRun) -> Acknowledgement:
        return self._send("end", run, lambda: self.bank.end(run))  # type: ignore[no-any-return]

    def find_run(self, run: LedgerRun) -> Any:
        return self.bank.find_run(run)


def wrap(desk: Desk) -> Wrapped:
    wrapped = Wrapped(desk.bank)
    desk.bank = wrapped  # type: ignore[assignment]
    return wrapped


def another_account(desk: Desk, name: str, user_id: int) -> int:
    desk.portal.member(desk.portal.project(name, 100_000), user_id)
    return user_id


def test_a_bank_that_says_for_how_long_is_not_asked_before(desk: Desk) -> None:
    desk.start(1)
    bank = wrap(desk)

    def throttled(phase: str, run: LedgerRun) -> None:
        raise BankUnavailable("429 slow down", retry_after_s=40)

    bank.before = throttled
    assert desk.deliver().bank_away == "429 slow down"
    bank.log.clear()
    desk.now += 39.9
    assert "429" in desk.deliver().bank_away
    assert bank.log == []
    bank.before = lambda phase, run: None
    desk.now += 5
    assert desk.deliver().starts == 1


def test_what_the_bank_asks_for_is_bounded_by_what_the_site_allows(desk: Desk) -> None:
    desk.start(1)
    bank = wrap(desk)

    def closed(phase: str, run: LedgerRun) -> None:
        raise BankUnavailable("503 until next year", retry_after_s=86_400)

    bank.before = closed
    desk.deliver()
    bank.before = lambda phase, run: None
    desk.now += 301
    assert desk.deliver().starts == 1


def test_an_account_on_which_the_bank_fails_does_not_stop_the_others(desk: Desk) -> None:
    """As when its rows at the bank are broken: a 500 for whatever is sent, hundreds of times before the others' turn."""
    other = another_account(desk, "fc_beta", 1003)
    for job_id in range(1, 301):
        desk.start(job_id)
    for job_id in range(301, 341):
        desk.start(job_id, account="fc_beta", user_id=other)
    create = desk.portal._create

    def broken(body: Any) -> Any:
        return (500, "<h1>error</h1>") if body["accountid"] == "fc_alpha" else create(body)

    desk.portal._create = broken  # type: ignore[method-assign]
    report = desk.deliver()
    assert report.starts == 40 and report.bank_away == "" and desk.book.away is None
    assert desk.sent().count("POST jobs") == 41  # one of the broken account's speaks for the rest
    for _ in range(40):
        desk.now += 30
        desk.deliver()
    tries = [word for word in desk.sent() if word == "POST jobs"]
    assert 3 <= len(tries) <= 15, "seldom and seldom"
    desk.portal._create = create  # type: ignore[method-assign]
    for _ in range(12):
        desk.now += 60
        desk.deliver()
    assert desk.waiting() == 0 and len(desk.portal.jobs) == 340


def test_a_bank_that_fails_on_many_accounts_is_away(desk: Desk) -> None:
    for number in range(6):
        user = another_account(desk, f"fc_{number}", 2000 + number)
        desk.start(number + 1, account=f"fc_{number}", user_id=user)
    desk.portal._create = lambda body: (500, "<h1>error</h1>")  # type: ignore[method-assign]
    report = desk.deliver()
    assert report.unanswered == 3 and "500" in report.bank_away
    assert desk.book.away is not None


POISON = ("", "", "", "500", "refused", "heals", "hangs", "lost", "nonsense")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(st.sampled_from(POISON), min_size=4, max_size=24),
    ended=st.lists(st.booleans(), min_size=24, max_size=24),
    workers=st.sampled_from([1, 4]),
)
def test_poison_blocks_nobody_and_each_run_is_told_in_order(
    kinds: List[str], ended: List[bool], workers: int
) -> None:
    """Runs of six accounts, some of which the bank never takes, in whatever way; the others all arrive, each start
    before its end, nothing of one run twice at a time, and what the bank counts is what the ledger has."""
    with tempfile.TemporaryDirectory(prefix="sbd-") as directory:
        desk = Desk(Path(directory), workers=workers)
        try:
            bank = wrap(desk)
            whose = {}
            for number in range(6):
                user = another_account(desk, f"fc_{number}", 2000 + number)
                whose[number] = dict(account=f"fc_{number}", user_id=user)

            def before(phase: str, run: LedgerRun) -> None:
                kind = kinds[run.job_id - 1]
                if kind == "500":
                    raise BankUnavailable("500", answered=True)
                if kind == "refused":
                    raise BankRefused("400 no")
                if kind == "heals":
                    raise BankRefused("400 not a member", heals=True)
                if kind == "hangs":
                    raise BankUnavailable("no complete answer in time")
                if kind == "nonsense":
                    raise BankUnavailable("200 with HTML", answered=True)
                if kind == "lost" and (phase, run.job_id) not in lost:
                    lost.add((phase, run.job_id))
                    (
                        bank.bank.start(run, run.ledger_csu)
                        if phase == "start"
                        else bank.bank.end(run)
                    )
                    raise BankUnavailable("the reply was lost")

            lost: Set[Tuple[str, int]] = set()
            bank.before = before
            for job_id in range(1, len(kinds) + 1):
                desk.start(job_id, **whose[job_id % 6])
            good = [n for n, kind in enumerate(kinds, 1) if kind in ("", "lost")]
            for minute in range(90):
                desk.deliver()
                if minute == 20:
                    for job_id in range(1, len(kinds) + 1):
                        if ended[job_id - 1]:
                            desk.end(job_id, charge_csu=40 + job_id, **whose[job_id % 6])
                desk.now += 60
            for job_id in good:
                run = desk.run(job_id)
                acked = run.end_acked if ended[job_id - 1] else run.start_acked
                assert acked, (job_id, kinds[job_id - 1])
                assert run.bank_csu == run.ledger_csu
            assert desk.waiting() == len(kinds) - len(good)
            for project in desk.portal.projects.values():
                held = sum(
                    desk.run(job_id).bank_csu
                    for job_id in range(1, len(kinds) + 1)
                    if desk.run(job_id).account == project.name
                )
                assert project.used_csu == held
            open_jobs: Set[int] = set()
            last_phase: Dict[int, str] = {}
            for what, job_id, phase in bank.log:
                if what == "begin":
                    assert job_id not in open_jobs
                    open_jobs.add(job_id)
                    assert (last_phase.get(job_id), phase) != ("end", "start")
                    last_phase[job_id] = phase
                else:
                    open_jobs.discard(job_id)
        finally:
            desk.close()


def test_several_connections_deliver_at_once(desk: Desk) -> None:
    for job_id in range(1, 9):
        desk.start(job_id)
    assert WORKERS > 1
    together = threading.Barrier(WORKERS)
    wrap(desk).before = lambda phase, run: (together.wait(10), None)[1]
    assert desk.deliver(workers=WORKERS, budget_s=30).starts == 8


def test_what_may_heal_waits_on_its_own_schedule(desk: Desk) -> None:
    """Neither an outage's pauses nor a run's own tries make it wait longer or shorter."""
    desk.project.members["1001"].active = False
    desk.start(1)
    asked: List[float] = []
    for _ in range(30):
        desk.deliver()
        if desk.sent():
            asked.append(desk.now)
        desk.now += 20
    pauses = [later - earlier for earlier, later in zip(asked, asked[1:])]
    assert pauses and all(0.8 * HEAL_RETRY_S <= pause <= HEAL_RETRY_S + 20 for pause in pauses)
    (row,) = desk.book.problems()
    assert row.state == "healing"


def test_a_run_that_ended_after_its_allocation_says_what_the_bank_may_hold(desk: Desk) -> None:
    """The portal keeps what the start had there, and no later PUT mends it; whoever has to must hear of it."""
    desk.project.end = datetime.datetime.fromtimestamp(SUBMITTED, datetime.timezone.utc).date()
    desk.start(1, lien_csu=50)
    desk.deliver()
    late = SUBMITTED + 3 * 86400
    desk.end(1, charge_csu=20, end_time=late, elapsed_s=late - SUBMITTED - 10)
    report = desk.deliver()
    assert report.ends == 1 and desk.waiting() == 0
    assert desk.project.used_csu == 50, "as the portal counts"
    assert desk.run(1).bank_csu == 20, "never less than the truth is taken as spent"
    (alarm,) = report.alarms
    assert "job 1" in alarm and "0.50 SU" in alarm and "0.20" in alarm
    with desk.ledger.transaction() as tx:
        told = [entry.reason for entry in tx.entries_by_job(1) if entry.kind == "delivered"]
    assert "after its allocation" in told[-1]


def test_a_token_that_expires_in_the_middle_loses_nothing_alarms_once_and_goes_on_with_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slurm_banking.relay")
    with RunningBank() as running:
        account = running.account("1000")
        tmp_path.chmod(0o755)
        token = tmp_path / "token"

        def put_token(key: str) -> None:
            (tmp_path / "new").write_text(f"Token {key}\n")
            (tmp_path / "new").chmod(0o600)
            os.replace(tmp_path / "new", token)

        put_token(running.keys["relay"])
        path = tmp_path / "bank-config.toml"
        path.write_text(
            f'[API]\nurl = "{running.url.rstrip("/")}"\ntoken_file = "{token}"\n'
            f'[Policy]\nmode = "strict-allocation"\n[Ledger]\nstate_dir = "{tmp_path}/state"\n'
            f'[Relay]\nsocket = "{tmp_path}/run/relay.sock"\n[PartitionPrice]\nmain = 1.0\n'
        )
        (tmp_path / "state").mkdir(mode=0o700)
        (tmp_path / "run").mkdir(mode=0o755)
        service = Service(configuration.Reloader(str(path), in_slurmctld=False), "c")
        try:
            with service.ledger.transaction() as tx:
                tx.set_meta("complete", "1")
            submitted = int(time.time()) - 7200
            for job_id in range(1, 41):
                run = a_run(
                    job_id=job_id, submit_time=submitted, start_time=submitted + 5,
                    end_time=submitted + 65, user_id=int(account.uid), account=account.name,
                )  # fmt: skip
                with service.ledger.transaction() as tx:
                    tx.start_run(run, share_csu=100, inputs={}, actor="test")
                    tx.end_run(run, charge_csu=job_id, share_csu=100, inputs={}, actor="test")
            delivered = []
            done = service.book.done

            def expire(*arguments: Any, **options: Any) -> None:
                done(*arguments, **options)
                delivered.append(1)
                if len(delivered) == 15:
                    running.shell("token", "revoke", "test relay")

            service.book.done = expire  # type: ignore[method-assign]
            service._deliver()
            assert 15 <= len(delivered) < 40
            for _ in range(6):  # tries again and again
                service._keep()
                service._deliver()
                service.book.try_now()
            alarms = [r.getMessage() for r in caplog.records if r.getMessage().startswith("alarm")]
            assert len(alarms) == 1 and "401" in alarms[0], alarms
            assert len([a for a in service.health()["alarms"] if "401" in a]) == 1
            made = json.loads(
                running.shell("token", "create", "--scope", "relay", "--name", "next", "--json")
            )
            put_token(made["token"])
            running.keys["relay"] = made["token"]
            until = time.monotonic() + 20
            while time.monotonic() < until and len(delivered) < 40:
                service._keep()  # as every second; nobody tells it of the file
                service._deliver()
                time.sleep(0.2)
            assert len(delivered) == 40
            service._keep()
            assert service.health()["alarms"] == []
            assert running.usage(account) * 100 == sum(range(1, 41))
            with service.ledger.transaction() as tx:
                assert tx.check() == [] and tx.outbox_size()[0] == 0
        finally:  # it was never started
            service.book.close()
            service.ledger.close()


def test_a_run_that_never_heals_does_not_keep_its_users_others_waiting(desk: Desk) -> None:
    """Refused in words that heal, as when its row at the bank is another user's: it is no reason to try no other."""
    bank = wrap(desk)

    def never(phase: str, run: LedgerRun) -> None:
        if run.job_id <= 3:
            raise BankRefused("400 accountid: Specified accountid does not match", heals=True)

    bank.before = never
    for job_id in range(1, 41):
        desk.start(job_id)
    for _ in range(6):
        desk.deliver()
        desk.now += HEAL_RETRY_S + 15
    assert desk.waiting() == 3 and len(desk.portal.jobs) == 37
    bank.log.clear()
    for _ in range(10):
        desk.deliver()
        desk.now += HEAL_RETRY_S + 15
    tries = [entry for entry in bank.log if entry[0] == "begin"]
    assert 10 <= len(tries) <= 20, "one of them in turn"
    assert {job_id for _, job_id, _ in tries} == {1, 2, 3}


def test_an_account_for_which_the_bank_never_answers_does_not_stop_the_others(desk: Desk) -> None:
    """As when its row is locked there: each try costs a time limit, and says nothing about the bank."""
    other = another_account(desk, "fc_beta", 1003)
    for job_id in range(1, 121):
        desk.start(job_id)
    for job_id in range(121, 141):
        desk.start(job_id, account="fc_beta", user_id=other)
    bank = wrap(desk)

    def hangs(phase: str, run: LedgerRun) -> None:
        if run.account == "fc_alpha":
            raise BankUnavailable("no complete answer in time")

    bank.before = hangs
    for _ in range(30):
        desk.deliver()
        desk.now += 1
    assert len(desk.portal.jobs) == 20
    bank.log.clear()
    for _ in range(300):
        desk.deliver()
        desk.now += 1
    tries = [entry for entry in bank.log if entry[0] == "begin"]
    assert 5 <= len(tries) <= 40
    bank.before = lambda phase, run: None
    for _ in range(10):
        desk.now += 60
        desk.deliver()
    assert desk.waiting() == 0


def test_after_an_outage_nobody_waits_longer_for_having_tried(desk: Desk) -> None:
    for number in range(5):
        user = another_account(desk, f"fc_{number}", 2000 + number)
        for job_id in range(1, 11):
            desk.start(100 * number + job_id, account=f"fc_{number}", user_id=user)
    bank = wrap(desk)

    def gone(phase: str, run: LedgerRun) -> None:
        raise BankUnavailable("connection refused")

    bank.before = gone
    for _ in range(3600):
        desk.deliver()
        desk.now += 1
    assert len([entry for entry in bank.log if entry[0] == "begin"]) < 40
    bank.before = lambda phase, run: None
    for _ in range(302):
        desk.deliver()
        desk.now += 1
        if not desk.waiting():
            break
    assert desk.waiting() == 0


def test_a_long_queue_of_a_failing_account_costs_no_row_each_while_the_bank_is_away(
    desk: Desk,
) -> None:
    for job_id in range(1, 1001):
        desk.start(job_id)
    bank = wrap(desk)

    def gone(phase: str, run: LedgerRun) -> None:
        raise BankUnavailable("connection refused")

    bank.before = gone
    for _ in range(6):
        desk.deliver()
        desk.now += 0.5
    assert sum(desk.book.counts().values()) < 700


def test_a_book_that_fails_while_the_bank_is_tried_again_loses_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.start(1)
    desk.start(2)
    desk.book.bank_failed(desk.now, "down", longest_s=300)
    desk.now += 2
    begin = desk.book.begin

    def full(*arguments: Any) -> Any:
        raise LedgerError("delivery book: disk is full")

    monkeypatch.setattr(desk.book, "begin", full)
    with pytest.raises(LedgerError):
        desk.deliver()
    monkeypatch.setattr(desk.book, "begin", begin)
    assert desk.deliver().starts == 2 and desk.waiting() == 0


def test_many_runs_that_ended_after_their_allocation_are_few_alarms(desk: Desk) -> None:
    desk.project.end = datetime.datetime.fromtimestamp(SUBMITTED, datetime.timezone.utc).date()
    late = SUBMITTED + 3 * 86400
    for job_id in range(1, 41):
        desk.start(job_id, lien_csu=50)
    desk.deliver()
    for job_id in range(1, 41):
        desk.end(job_id, charge_csu=20, end_time=late, elapsed_s=late - SUBMITTED - 10)
    report = desk.deliver()
    assert report.ends == 40 and len(report.alarms) == 11 and "30 more" in report.alarms[-1]
    with desk.ledger.transaction() as tx:
        assert "after its allocation" in tx.entries_by_job(40)[-1].reason
