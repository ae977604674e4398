# SPDX-License-Identifier: BSD-3-Clause
"""``available = remaining - sum(ledger_csu - bank_csu)``: never above the truth, and equal to it once all is told.

The real ledger, book, deliveries, refresh, adapter and client, over a portal that counts as the real one does and whose
requests and replies get lost. The truth is kept beside them, from what happened alone: the limit of the allocation
period that the funds speak of, less every queued job's lien, every running job's lien and every ended run's charge.
"""

from __future__ import annotations

import datetime
import os
import random
import shutil
import tempfile
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from slurm_banking.bank import Bank
from slurm_banking.errors import BankError, LedgerError
from slurm_banking.ledger import Ledger
from slurm_banking.records import Funds
from slurm_banking.relay.book import FILE_NAME, DeliveryBook, RefreshMarker
from slurm_banking.relay.deliver import deliver_due
from slurm_banking.relay.funds import refresh_funds, write_funds
from tests.builders import a_run
from tests.unit.portal_model import Portal

ACCOUNT = "fc_alpha"
USERS = (1001, 1002)
DAY_S = 86400
FIRST_DAY = datetime.date(2026, 6, 1)
FIRST_START = int(datetime.datetime(2026, 6, 1, tzinfo=datetime.timezone.utc).timestamp())
LIMITS = {1001: 1000, 1002: 300}
CONFIG: Any = SimpleNamespace(relay=SimpleNamespace(deliver_retry_max_s=300))

KINDS = ["", "lose_request", "lose_reply", "lose_reply", "maintenance", "500"]
FAULTS = st.just([]) | st.lists(st.sampled_from(KINDS), max_size=3)
MEANWHILE = ["", "", "", "end", "end_again", "reamount", "submit", "refresh"]
COSTS = st.integers(1, 400)


@pytest.fixture(autouse=True, scope="module")
def in_utc() -> Iterator[None]:
    """The portal's days begin in UTC; elsewhere the adapter rather leaves too little than too much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Truth:
    """A job: queued, running or ended."""

    job_id: int
    user_id: int
    submit_time: int
    restart: int
    amount_csu: int
    state: str  # queued, running, ended
    start_time: Optional[int] = None
    end_time: Optional[int] = None
    grandfathered: bool = False
    asked_csu: int = 0  # its lien, before anything was seen of its run
    failed: bool = False  # its start did, once

    @property
    def counts_csu(self) -> int:
        return 0 if self.grandfathered and self.state != "ended" else self.amount_csu


class FundsFormula(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="formula-", dir="/tmp")
        self.now = FIRST_START + 12 * 3600
        self.portal = Portal()
        project = self.portal.project(ACCOUNT, LIMITS[1001], start=FIRST_DAY)
        for user_id, limit in LIMITS.items():
            self.portal.member(project, user_id, limit)
        #: (start, allocation key), in order; the limits are the same in each
        self.periods: List[Tuple[int, str]] = [(FIRST_START, f"1@{FIRST_DAY}")]
        self.jobs: List[Truth] = []
        self.next_job = 1
        self.preferred: Optional[int] = None
        self.refresh: Optional[Tuple[RefreshMarker, Funds, Dict[int, Funds]]] = None
        self.bank = Bank(
            "http://bank.test/api",
            "key",
            timeout_s=5,
            session=self.portal.session(),
            clock=lambda: self.now,
        )
        self.open()

    def open(self) -> None:
        self.ledger = Ledger(self.directory, "c", check_directory=False)
        self.book = DeliveryBook(os.path.join(self.directory, FILE_NAME))

    def teardown(self) -> None:
        self.ledger.close()
        self.book.close()
        shutil.rmtree(self.directory)

    # -- Slurm ----------------------------------------------------------------------------------------------------------

    @initialize(asked=st.booleans())
    def first_question(self, asked: bool) -> None:
        if asked:
            self.refresh_all()

    def run_of(self, job: Truth, **changes: Any) -> Any:
        values: Dict[str, Any] = dict(
            job_id=job.job_id, submit_time=job.submit_time, restart_count=job.restart, user_id=job.user_id,
            account=ACCOUNT, start_time=job.start_time, end_time=job.end_time, state="RUNNING",
        )  # fmt: skip
        return a_run(**{**values, **changes})

    def job(self, index: int, *states: str) -> Optional[Truth]:
        found = [job for job in self.jobs if job.state in states]
        found = [job for job in found if job.job_id == self.preferred] or found
        return found[index % len(found)] if found else None

    @rule(user=st.sampled_from(USERS), cost=COSTS)
    def submit(self, user: int, cost: int) -> None:
        with self.ledger.transaction() as tx:
            view = tx.funds_view(ACCOUNT, user)
            available = view.available_csu
            if available is not None and cost > available:
                return
            job = Truth(self.next_job, user, self.now, 0, cost, "queued", asked_csu=cost)
            tx.open_lien(
                account=ACCOUNT, user_id=user, per_task_csu=cost, tasks=1, origin="submit", inputs={}, reason="fits",
                actor="test", job_id=job.job_id, submit_time=job.submit_time, confirmed=True,
            )  # fmt: skip
        self.next_job += 1
        self.jobs.append(job)

    @rule(index=st.integers(0, 9), after=st.integers(0, 50))
    def start(self, index: int, after: int) -> None:
        job = self.job(index, "queued")
        if job is None:
            return
        self.now += after + (1201 if job.failed else 0)  # Slurm makes it wait
        if job.restart:
            job.submit_time = self.now  # a requeued job is submitted anew
        job.state, job.start_time = "running", self.now
        with self.ledger.transaction() as tx:
            tx.start_run(self.run_of(job), share_csu=job.amount_csu, inputs={}, actor="test")

    @rule(user=st.sampled_from(USERS), cost=COSTS)
    def take_over_a_running_job(self, user: int, cost: int) -> None:
        job = Truth(self.next_job, user, self.now - 100, 0, cost, "running", self.now - 50)
        job.grandfathered, job.asked_csu = True, cost
        self.next_job += 1
        self.jobs.append(job)
        with self.ledger.transaction() as tx:
            tx.start_run(
                self.run_of(job), share_csu=cost, inputs={}, actor="test", grandfathered=True
            )

    @rule(index=st.integers(0, 9), cost=COSTS)
    def reamount(self, index: int, cost: int) -> None:
        job = self.job(index, "running")
        if job is None:
            return
        job.amount_csu = cost
        with self.ledger.transaction() as tx:
            run = tx.find_run(job.job_id, job.submit_time, job.restart)
            assert run is not None
            tx.reamount_run(
                run, lien_csu=cost, inputs={}, time_limit_min=60, cpus=1, partition="main", qos="normal", actor="test",
                reason="seen",
            )  # fmt: skip

    @rule(index=st.integers(0, 9), submitted_anew=st.booleans(), told=st.integers(1, 2))
    def start_fails(self, index: int, submitted_anew: bool, told: int) -> None:
        """A component of a het job, when another one could not start."""
        job = self.job(index, "running")
        if job is None:
            return
        with self.ledger.transaction() as tx:
            for _ in range(told):
                tx.end_run(
                    self.run_of(job, state="PENDING", end_time=self.now),
                    charge_csu=0, share_csu=0, inputs={}, actor="test",
                )  # fmt: skip
        job.state, job.start_time, job.amount_csu, job.failed = "queued", None, job.asked_csu, True
        if submitted_anew:
            job.submit_time = self.now

    @rule(index=st.integers(0, 9), cost=st.integers(0, 500), requeue=st.booleans())
    def end(self, index: int, cost: int, requeue: bool) -> None:
        job = self.job(index, "running", "queued")
        if job is None:
            return
        if job.state == "queued":  # the end is the first that is heard of it
            self.now += 1201 if job.failed else 0
            if job.restart:
                job.submit_time = self.now
            job.start_time = self.now
        share = job.amount_csu
        self.now += 5
        job.state, job.end_time, job.amount_csu = "ended", self.now, cost
        with self.ledger.transaction() as tx:
            tx.end_run(
                self.run_of(job, state="NODE_FAIL" if requeue else "COMPLETED", requeue=requeue),
                charge_csu=cost,
                share_csu=share,
                inputs={},
                actor="test",
            )
        if requeue:  # it may get all that its lien was for
            following = share if job.grandfathered else max(share, job.asked_csu)
            self.jobs.append(
                Truth(
                    job.job_id,
                    job.user_id,
                    self.now,
                    job.restart + 1,
                    following,
                    "queued",
                    asked_csu=following,  # fmt: skip
                )
            )

    @rule(index=st.integers(0, 9), cost=st.integers(0, 500), later=st.integers(0, 3))
    def end_again(self, index: int, cost: int, later: int) -> None:
        job = self.job(index, "ended")
        if job is None:
            return
        assert job.end_time is not None
        job.amount_csu, job.end_time = cost, min(job.end_time + later, self.now)
        with self.ledger.transaction() as tx:
            tx.end_run(
                self.run_of(job, state="COMPLETED"),
                charge_csu=cost,
                share_csu=0,
                inputs={},
                actor="test",
            )

    @rule(index=st.integers(0, 9))
    def cancel(self, index: int) -> None:
        job = self.job(index, "queued")
        if job is None:
            return
        with self.ledger.transaction() as tx:
            tx.end_run(
                self.run_of(job, state="CANCELLED", started=False, start_time=None),
                charge_csu=0, share_csu=0, inputs={}, actor="test",
            )  # fmt: skip
        self.jobs.remove(job)

    @rule(seconds=st.sampled_from([1, 30, 400]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    # -- the bank -------------------------------------------------------------------------------------------------------

    @rule(
        faults=FAULTS,
        meanwhile=st.sampled_from(MEANWHILE),
        index=st.integers(0, 9),
        cost=COSTS,
        later=st.sampled_from([400, 1]),
    )
    def deliver(self, faults: List[str], meanwhile: str, index: int, cost: int, later: int) -> None:
        self.now += later
        self.portal.faults = list(faults)

        def happens(body: Dict[str, Any]) -> None:
            """To the very job that is being delivered, if it can happen to it."""
            told = int(body["jobslurmid"].split("-")[0])
            self.preferred = told
            if meanwhile == "end":
                self.end(index, cost, False)
            elif meanwhile == "end_again":
                self.end_again(index, cost, 1)
            elif meanwhile == "reamount":
                self.reamount(index, cost)
            elif meanwhile == "submit":
                self.submit(USERS[index % 2], cost)
            elif meanwhile == "refresh":
                self.refresh_apply()
            self.preferred = None

        self.portal.meanwhile = happens if meanwhile else None
        self.deliver_now()
        self.portal.meanwhile, self.portal.faults = None, []

    def deliver_now(self) -> None:
        deliver_due(self.ledger, self.bank, self.book, CONFIG, self.now, workers=1)

    @rule(nth=st.integers(1, 3), book_lost=st.booleans(), ask=st.booleans())
    def killed_while_delivering(self, nth: int, book_lost: bool, ask: bool) -> None:
        """After the bank did what it was asked, and before it was heard."""
        self.now += 400

        left = nth

        def count(_: Dict[str, Any]) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.ledger.close()
                self.book.close()
                raise Killed
            self.portal.meanwhile = count

        self.portal.meanwhile = count
        try:
            self.deliver_now()
        except (Killed, LedgerError):
            pass
        self.portal.meanwhile = None
        self.reopen(book_lost)
        if ask:
            self.refresh_all()

    @rule(book_lost=st.booleans())
    def reopen(self, book_lost: bool) -> None:
        self.ledger.close()
        self.book.close()
        if book_lost:
            for name in os.listdir(self.directory):
                if name.startswith(FILE_NAME):
                    os.unlink(os.path.join(self.directory, name))
        self.refresh = None
        self.open()

    @rule(user=st.sampled_from(USERS))
    def member_leaves_or_returns(self, user: int) -> None:
        member = self.portal.projects[ACCOUNT].members[str(user)]
        member.active = not member.active

    @rule(faults=FAULTS)
    def refresh_ask(self, faults: List[str]) -> None:
        self.refresh = None
        marker = self.book.refresh_marker(ACCOUNT)
        if marker is None:
            return
        self.portal.faults = list(faults)
        try:
            of_account, users = self.bank.account_funds(ACCOUNT, USERS)
            self.refresh = marker, of_account, dict(users)
        except BankError:
            pass
        self.portal.faults = []

    @precondition(lambda self: self.refresh is not None)
    @rule()
    def refresh_apply(self) -> None:
        if self.refresh is not None:
            marker, of_account, users = self.refresh
            self.refresh = None
            self.book.apply_refresh(marker, lambda: write_funds(self.ledger, of_account, users))

    @rule(user=st.sampled_from(USERS))
    def refresh_one(self, user: int) -> None:
        refresh_funds(self.ledger, self.bank, self.book, [(ACCOUNT, user)], self.now)

    @rule()
    def refresh_all(self) -> None:
        users = [(ACCOUNT, user) for user in USERS]
        refresh_funds(self.ledger, self.bank, self.book, users, self.now)

    @precondition(lambda self: len(self.periods) < 3)
    @rule()
    def renew(self) -> None:
        """At midnight the portal gives the same allocation a new start and value, and its usage starts again."""
        self.now += DAY_S - (self.now - FIRST_START) % DAY_S
        day = datetime.datetime.fromtimestamp(self.now, tz=datetime.timezone.utc).date()
        project = self.portal.projects[ACCOUNT]
        project.start, project.used_csu = day, 0
        for member in project.members.values():
            member.used_csu = 0
        self.periods.append((self.now, f"1@{day}"))

    # -- what must hold -------------------------------------------------------------------------------------------------

    def truth(self, key: str, user_id: Optional[int]) -> int:
        at = next(i for i, period in enumerate(self.periods) if period[1] == key)
        begins = self.periods[at][0]
        ends = self.periods[at + 1][0] if at + 1 < len(self.periods) else None
        spent = sum(
            job.counts_csu
            for job in self.jobs
            if user_id in (None, job.user_id)
            and (
                job.state == "queued"
                or (job.start_time or 0) >= begins
                and (ends is None or (job.start_time or 0) < ends)
            )
        )
        return LIMITS[1001 if user_id is None else user_id] - spent

    @invariant()
    def never_above_the_truth(self) -> None:
        with self.ledger.transaction(write=False) as tx:
            assert tx.check() == []
            views = {user: tx.funds_view(ACCOUNT, user) for user in USERS}
        for user, view in views.items():
            if view.account is None or view.account.reason is not None:
                continue  # nobody asked the bank yet, or nothing is accepted
            available = view.account_available_csu
            assert available is not None
            assert available <= self.truth(view.account.allocation, None)
            if view.user is not None and view.user.reason is None:
                assert view.user.allocation == view.account.allocation
                available = view.user_available_csu
                assert available is not None
                assert available <= self.truth(view.user.allocation, user)

    @rule()
    def all_is_told(self) -> None:
        for member in self.portal.projects[ACCOUNT].members.values():
            member.active = True
        for _ in range(8):
            self.now += 400
            self.deliver_now()
            with self.ledger.transaction(write=False) as tx:
                if tx.outbox_size()[0] == 0:
                    break
        with self.ledger.transaction(write=False) as tx:
            assert tx.outbox_size()[0] == 0, self.book.problems()
            assert tx.parked_runs() == []
        assert self.book.counts() == {"unresolved": 0}
        self.refresh_all()
        with self.ledger.transaction(write=False) as tx:
            views = {user: tx.funds_view(ACCOUNT, user) for user in USERS}
        for user, view in views.items():
            assert view.account is not None and view.user is not None
            assert view.account.allocation == view.user.allocation == self.periods[-1][1]
            assert view.account_available_csu == self.truth(view.account.allocation, None)
            assert view.user_available_csu == self.truth(view.user.allocation, user)


def step(machine: FundsFormula, choose: random.Random) -> None:
    """One of the rules, by its weight in the life of a cluster."""
    user, index = choose.choice(USERS), choose.randrange(10)
    cost = choose.randint(1, 150)
    faults = [choose.choice(KINDS) for _ in range(choose.choice([0, 0, 1, 2, 3]))]
    rules: List[Tuple[int, Callable[[], Any]]] = [
        (10, lambda: machine.submit(user, cost)),
        (10, lambda: machine.start(index, choose.randrange(50))),
        (1, lambda: machine.take_over_a_running_job(user, cost)),
        (2, lambda: machine.reamount(index, cost)),
        (8, lambda: machine.end(index, cost, choose.random() < 0.2)),
        (2, lambda: machine.start_fails(index, choose.random() < 0.5, choose.randint(1, 2))),
        (3, lambda: machine.end_again(index, cost, choose.randrange(3))),
        (2, lambda: machine.cancel(index)),
        (12, lambda: machine.deliver(faults, choose.choice(MEANWHILE), index, cost, choose.choice([1, 400]))),
        (3, lambda: machine.killed_while_delivering(choose.randint(1, 3), choose.random() < 0.3, choose.random() < 0.5)),
        (1, lambda: machine.reopen(choose.random() < 0.5)),
        (1, lambda: machine.member_leaves_or_returns(user)),
        (4, lambda: machine.refresh_ask(faults[:1])),
        (4, lambda: machine.refresh_apply()),
        (2, lambda: machine.refresh_all()),
        (2, lambda: machine.refresh_one(user)),
        (1, lambda: machine.renew() if len(machine.periods) < 6 else None),
        (1, lambda: machine.all_is_told()),
    ]  # fmt: skip
    choose.choices([do for _, do in rules], [weight for weight, _ in rules])[0]()


@pytest.mark.parametrize("seed", range(20))
def test_long_lives_keep_what_is_available_at_or_below_the_truth(seed: int) -> None:
    choose = random.Random(seed)
    machine = FundsFormula()
    try:
        machine.refresh_all()
        for _ in range(200):
            step(machine, choose)
            machine.never_above_the_truth()
        machine.all_is_told()
    finally:
        machine.teardown()


FundsFormula.TestCase.settings = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestFundsFormula = pytest.mark.timeout(120)(FundsFormula.TestCase)
