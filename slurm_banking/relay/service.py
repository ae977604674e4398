# SPDX-License-Identifier: BSD-3-Clause
"""The relay's work, each kind on a thread of its own, so that nothing that stalls can stall another.

======== ================================================== ============================================
step     when                                               what
======== ================================================== ============================================
queue    every queue_poll_s; within two seconds of a nudge, rebuild if the ledger is not complete, then
         or while a lien is unconfirmed                     confirm and sweep
sacct    every sacct_poll_s; at once for a rescan mark      charge ended runs that left no record
deliver  every second                                       the outbox to the bank
funds    every few seconds                                  what was not read for funds_refresh_s
members  at the start, then every hour                      the funds of accounts that nobody used yet
keep     every second                                       configuration, prices, checkpoint
open_    after a rebuild                                    runs that only the bank has, and as running
rows
books    every [Reconcile] every                            whether slurmdbd, ledger and bank agree (a process of its own)
probe    every second                                       ask the own socket; if it answers, the heartbeat
======== ================================================== ============================================
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from slurm_banking import settle
from slurm_banking.bank import Bank, BankRun
from slurm_banking.config import Config, Reloader, read_token
from slurm_banking.errors import (
    BankError,
    BankingError,
    BankUnavailable,
    ConfigError,
    LedgerBusy,
    SlurmUnavailable,
)
from slurm_banking.ledger import Ledger, LedgerRun
from slurm_banking.ledger import health as ledger_health
from slurm_banking.relay import book, books, client, mend, metrics, outbox, protocol, sweep
from slurm_banking.relay.answer import Listener
from slurm_banking.relay.book import DeliveryBook
from slurm_banking.relay.books import Books
from slurm_banking.relay.deliver import deliver_due, try_again
from slurm_banking.relay.desk import FundsDesk
from slurm_banking.relay.funds import refresh_account, refresh_funds
from slurm_banking.relay.introduce import unknown_pairs
from slurm_banking.relay.members import Kept, SlurmMembers
from slurm_banking.relay.questions import Parts, Questions
from slurm_banking.relay.quote import Facts
from slurm_banking.relay.rebuild import RunsAtBank, rebuild
from slurm_banking.relay.sweep import SweepState
from slurm_banking.relay.take_over import take_over
from slurm_banking.slurm import runaway
from slurm_banking.slurm.control import Operators
from slurm_banking.slurm.sacct import Sacct
from slurm_banking.slurm.squeue import QueueSnapshot, read_queue
from slurm_banking.slurm.topology import read_topology

log = logging.getLogger("slurm_banking.relay")

CHECKPOINT_S = 5.0
PROBE_S = 1.0

#: Seconds between two looks at the queue for something new, and how many times as long as squeue took.
SOONEST_S = 1.0
REST = 4.0

#: An account is in use while it has jobs or deliveries, or its funds were asked for within this time.
IN_USE_S = 3600
_MAX_ASKED = 10_000

#: Between two looks for accounts whose funds were never read; sooner while some are left.
MEMBERS_S = 3600.0
_MEMBERS_AGAIN_S = 5.0
#: After a failure: soon enough to notice that Slurm, or a token, is back.
LONGEST_BACKOFF_S = 10.0
_TOKEN_LOOK_S = 30.0
#: Seconds that the bank is asked about runs of a ledger that is made whole again; the delivery asks about the rest.
REBUILD_BANK_S = 20.0
REBUILD_PATIENCE_S = 2.0
#: Seconds between two looks whether rows at the bank are to be taken over.
TAKE_OVER_S = 2.0
#: Seconds that an operator who settles a delivery by hand waits for the bank's word.
RESOLVE_PATIENCE_S = 8.0


class Step:
    """Does one thing again and again; what goes wrong is logged once per kind, and tried again later."""

    def __init__(
        self,
        name: str,
        once: Callable[[], Optional[float]],
        period_s: Callable[[], float],
        stop: threading.Event,
    ) -> None:
        self.name = name
        self.problem: Optional[str] = None
        self.failures = 0  #: all of them
        self._once = once
        self._period_s = period_s
        self._stop = stop
        self._wake = threading.Event()
        self._failures = 0
        self.thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def wake(self) -> None:
        self._wake.set()

    def _loop(self) -> None:
        while True:
            self._wake.clear()
            if self._stop.is_set():
                return
            self._wake.wait(self._try())

    def _try(self) -> float:
        try:
            wanted = self._once()
        except LedgerBusy as error:
            log.debug("step_busy step=%s problem=%s", self.name, error)
            return 0.2
        except Exception as error:
            self._failures += 1
            self.failures += 1
            self._failed(error)
            pause_s = max(1.0, self._period_s()) * float(2 ** min(self._failures - 1, 6))
            return min(pause_s, LONGEST_BACKOFF_S)
        if self.problem is not None:
            log.info("step_recovered step=%s", self.name)
        self.problem = None
        self._failures = 0
        return float(self._period_s() if wanted is None else wanted)

    def _failed(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if text == self.problem:
            return
        self.problem = text
        if isinstance(error, BankingError):
            log.warning("step_failed step=%s problem=%s", self.name, error)
        else:
            log.error("step_failed step=%s problem=%s", self.name, text, exc_info=error)


@dataclass(frozen=True)
class _BankParts:
    bank: Bank
    token: str
    config: Config


class BankHolder:
    """The bank adapter for the configuration and token in force; made anew when one of them changes."""

    def __init__(self, service: "Service") -> None:
        self._service = service
        self._lock = threading.Lock()
        self._parts: Optional[_BankParts] = None
        self._looked_at = 0.0
        self.problem: Optional[str] = None  #: why there is no bank to talk to

    def parts(self) -> _BankParts:
        """:raises BankUnavailable: there is no token that may be used."""
        config = self._service.config()
        with self._lock:
            parts = self._parts
            now = time.monotonic()
            same = parts is not None and parts.config.api == config.api
            look_s = _TOKEN_LOOK_S if self._service.book.token_problem is None else 1.0
            if parts is not None and same and now - self._looked_at < look_s:
                return parts
            if self.problem is not None and now - self._looked_at < 1.0:
                raise BankUnavailable(self.problem)
            self._looked_at = now
            try:
                token = read_token(config)
            except ConfigError as error:
                self._note(str(error))
                if parts is not None and same:
                    return parts  # the one that worked a moment ago
                raise BankUnavailable(str(error)) from None
            self._note(None)
            if parts is None or not same or parts.token != token:
                if parts is not None:
                    log.info("bank_token_or_address_changed url=%s", config.api.url)
                    self._service.book.try_now()
                parts = self._make(config, token)
                self._parts = parts
            return parts

    def forget(self) -> None:
        """Look at the token again at the next use."""
        with self._lock:
            self._looked_at = 0.0

    def _note(self, problem: Optional[str]) -> None:
        if problem != self.problem and problem is not None:
            log.error("bank_token_unusable problem=%s", problem)
        self.problem = problem

    def _make(self, config: Config, token: str) -> _BankParts:
        bank = Bank(
            config.api.url,
            token,
            timeout_s=config.api.timeout_s,
            resource=config.api.resource,
            job_id_format=config.api.job_id_format,
            cluster=self._service.cluster,
        )
        # The one before may be in use on another thread: it goes when nobody holds it any more.
        return _BankParts(bank=bank, token=token, config=config)


class Impatient:
    """Asks the bank about runs on a thread that nobody waits for longer than ``patience_s`` at a time."""

    def __init__(self, bank: RunsAtBank, patience_s: float) -> None:
        self._bank = bank
        self._patience_s = patience_s

    def find_run(self, run: LedgerRun) -> Optional[BankRun]:
        """:raises BankError: as the bank does; BankUnavailable when patience ends."""
        found: List[Optional[BankRun]] = []
        failed: List[Exception] = []

        def ask() -> None:
            try:
                found.append(self._bank.find_run(run))
            except Exception as error:
                failed.append(error)

        asking = threading.Thread(target=ask, name="rebuild", daemon=True)
        asking.start()
        asking.join(self._patience_s)
        if failed:
            raise failed[0]
        if not found:
            raise BankUnavailable(f"bank: no answer within {self._patience_s:g} s")
        return found[0]


def open_book(state_dir: str, ledger: Ledger) -> Tuple[DeliveryBook, str]:
    """The delivery book that belongs to this ledger, and the ledger's identity.

    The book speaks of runs by their number in the ledger: one that belongs to a ledger that was lost is of no use, and
    without one the deliveries look at the bank first.
    """
    identity = ledger_identity(ledger)
    path = os.path.join(state_dir, book.FILE_NAME)
    mark = path + ".of"
    try:
        with open(mark, encoding="ascii", errors="replace") as file:
            known = file.read(200)
    except FileNotFoundError:
        known = ""
    if known != identity:
        for name in (path, path + "-wal", path + "-shm"):
            try:
                os.unlink(name)
            except FileNotFoundError:
                pass
        with open(mark + ".new", "w", encoding="ascii") as file:
            file.write(identity)
        os.replace(mark + ".new", mark)
    return DeliveryBook(path), identity


def ledger_identity(ledger: Ledger) -> str:
    """Another one for another ledger; given to it when it is first seen."""
    with ledger.transaction(write=False) as tx:
        identity = tx.meta("identity")
    if identity is not None:
        return identity
    with ledger.transaction() as tx:
        identity = os.urandom(16).hex()
        tx.set_meta("identity", identity)
    return identity


class Service:
    """
    :param config: never raises once it has been read.
    :raises LedgerError: ledger or delivery book cannot be used.
    :raises ListenError: the socket cannot be made.
    """

    def __init__(self, reloader: Reloader, cluster: str) -> None:
        self._reloader = reloader
        self.cluster = cluster
        self.started = int(time.time())
        config = self.config()
        self._warned: Sequence[str] = ()
        self._state_dir = config.ledger.state_dir
        self._socket = config.relay.socket
        self.ledger, notes = ledger_health.open_for_relay(self._state_dir, cluster)
        self._guard = ledger_health.Guard(self.ledger, notes)
        self._snapshot: Optional[QueueSnapshot] = None  # the last one that was swept
        self._runaway = runaway.Watch()
        self._runaway_due = time.monotonic() + runaway.LOOK_AGAIN_S
        self.book, self._book_of = open_book(self._state_dir, self.ledger)
        self.bank = BankHolder(self)
        self._sacct = Sacct(cluster, operators=Operators())
        self._sweep_state = SweepState()
        self._members = SlurmMembers(cluster)
        self._asked: Dict[
            Tuple[str, int], float
        ] = {}  # when slurmctld or a user asked for these funds
        self._facts: Kept[Facts] = Kept(lambda _: _read_facts(cluster), 60.0)
        self._stop = threading.Event()
        self._force = threading.Event()
        self._nudged = threading.Event()
        self._alarms: Dict[str, Tuple[str, ...]] = {}
        self._swept = threading.Condition()
        self._sweeps = 0
        self._sweeping = False
        self._swept_at: Optional[int] = None
        self._charged_at: Optional[int] = None
        self._sweep_report: Mapping[str, Any] = {}
        self._read_took_s = 0.0  # squeue
        self._sweep_began = 0.0
        self._sacct_began = 0.0
        self._checkpointed = 0.0
        self._steps: Dict[str, Step] = {}
        self._differs = 0  # runs that slurmdbd tells otherwise
        self._differs_at: Optional[int] = None
        self._delivered: Mapping[str, int] = {}
        self._funds_in_use: Mapping[Tuple[str, int], int] = {}  # when they were read
        self.metrics = metrics.Metrics(
            ledger=self.ledger,
            health=self.health,
            accounts=lambda: {account for account, _ in self._funds_in_use},
        )
        self._metrics_server = metrics.MetricsServer(self.metrics.text)
        self.desk = FundsDesk(
            refresh=self._refresh_one, read_at=self._read_at, away_until=self._away_until
        )
        self.questions = Questions(
            Parts(
                ledger=self.ledger,
                config=self.config,
                members=self._members,
                desk=self.desk,
                facts=lambda: self._facts.get(""),
                nudge=self.nudge,
                sweep=self.sweep_now,
                health=self.health,
                delivery_state=self._delivery_state,
                refused_runs=lambda limit: self.book.refused_runs(limit),
                retry=self._retry,
                standings=lambda limit, runs: outbox.standings(self.ledger, self.book, limit, runs),
                resolve=self._resolve,
                mend=self._mend,
                metrics=self.metrics.text,
            )
        )
        self._books = Books(cluster, reloader.path, self.started)
        self._listener = self._listen()
        self._keep()  # prices are in the ledger before the first question
        relay = self._relay_config
        self._steps = {
            step.name: step
            for step in (
                Step("queue", self._queue, lambda: SOONEST_S, self._stop),
                Step("sacct", self._charge_unrecorded, lambda: 1.0, self._stop),
                Step("deliver", self._deliver, lambda: 1.0, self._stop),
                Step(
                    "funds",
                    self._refresh_in_use,
                    lambda: min(5.0, relay().funds_refresh_s),
                    self._stop,
                ),
                Step("members", self._introduce, lambda: MEMBERS_S, self._stop),
                Step("keep", self._keep, lambda: 1.0, self._stop),
                Step("open_rows", self._take_over, lambda: TAKE_OVER_S, self._stop),
                Step("books", self._look_at_books, lambda: books.POLL_S, self._stop),
                Step("probe", self._probe, lambda: PROBE_S, self._stop),
            )
        }

    def config(self) -> Config:
        return self._reloader.current(time.monotonic())

    def _relay_config(self) -> Any:
        return self.config().relay

    def _listen(self) -> Listener:
        return Listener(self._socket, self.questions, privileged=Questions.privileged)

    def start(self) -> None:
        self._listener.start()
        for step in self._steps.values():
            step.thread.start()

    def stop(self, within_s: float = 1.5) -> None:
        """No new work; what is under way is waited for a moment, and resumed after the next start if it takes longer."""
        until = time.monotonic() + within_s
        self._stop.set()
        for step in self._steps.values():
            step.wake()
        self._listener.stop()
        self._metrics_server.stop()
        for step in self._steps.values():
            step.thread.join(max(0.0, until - time.monotonic()))
        if not any(step.thread.is_alive() for step in self._steps.values()):
            self.book.close()
            self.ledger.close()

    def reload(self) -> None:
        """Look at configuration and token again (SIGHUP); a change of the file is seen without this, too."""
        self.bank.forget()
        for step in self._steps.values():
            step.wake()

    # -- configuration ----------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        config = self.config()
        problem = self._reloader.take_problem()
        if problem is not None:
            log.error("config_rejected keeping=last_good problem=%s", problem)
        if config.warnings != self._warned:
            self._warned = config.warnings
            for warning in config.warnings:
                log.warning("config_warning %s", warning)
        if config.ledger.state_dir != self._state_dir or config.relay.socket != self._socket:
            self._alarm("config", ["state_dir and socket change when the relay is restarted"])
        else:
            self._alarm("config", [])
        unserved = self._metrics_server.serve_on(config.relay.metrics)
        self._alarm("metrics", [] if unserved is None else [unserved])
        try:
            self.bank.parts()  # a token that cannot be used is told at once, not when there is something to deliver
        except BankUnavailable:
            pass
        refused = self.book.token_problem
        self._alarm("token", [] if refused is None else [f"bank: {refused}"])
        now_s = int(time.time())
        with self.ledger.transaction(write=False) as tx:
            recorded = tx.latest_prices()
        in_force = config.prices_at(now_s).version
        if recorded is None or recorded[1] != in_force:
            with self.ledger.transaction() as tx:
                if settle.record_prices(tx, config, now_s):
                    log.info("prices_in_force version=%s", in_force)
        if time.monotonic() - self._checkpointed >= CHECKPOINT_S:
            self._checkpointed = time.monotonic()
            self.ledger.checkpoint()

    def _alarm(self, source: str, alarms: Sequence[str]) -> None:
        """What an operator has to know, as long as it is so; logged when it comes."""
        fresh = tuple(alarms)
        for alarm in fresh:
            if alarm not in self._alarms.get(source, ()):
                log.error("alarm source=%s %s", source, alarm)
        self._alarms[source] = fresh

    # -- Slurm ------------------------------------------------------------------------------------------------------

    def nudge(self) -> None:
        """There is something new in the queue."""
        self._nudged.set()
        self._steps["queue"].wake()

    def _queue_due(self) -> bool:
        since = time.monotonic() - self._sweep_began
        poll_s = self._relay_config().queue_poll_s
        if since >= poll_s or self._force.is_set():
            return True
        if since < max(SOONEST_S, REST * self._read_took_s):
            return False
        if self._nudged.is_set():
            return True
        with self.ledger.transaction(write=False) as tx:
            return tx.unconfirmed_since() is not None or not tx.complete

    def _mend_ledger(self) -> None:
        """Move a file that somebody found damaged aside: where no sweep and no delivery has hold of its numbers.

        Whether the delivery book is of this ledger, the delivery looks for itself.
        """
        if self._guard.suspected():
            with self.book.delivering:
                mended = self._guard.mend()
            if mended:
                self._sweep_state = SweepState()
        self._alarm("ledger", self._guard.alarms())

    def _look_for_runaway(self) -> None:
        """Now and then; what slurmdbd cannot say now is asked again the next time."""
        snapshot = self._snapshot
        if snapshot is None or time.monotonic() < self._runaway_due:
            return
        self._runaway_due = time.monotonic() + runaway.LOOK_S
        known = self._runaway.found
        try:
            pause_s = self._runaway.look(snapshot, time.time())
        except SlurmUnavailable as error:
            log.debug("runaway_look_failed problem=%s", error)
            return
        self._runaway_due = time.monotonic() + pause_s
        if self._runaway.found is not None and self._runaway.found != known:
            log.warning("runaway_jobs %s", self._runaway.found.hint())

    def _queue(self) -> Optional[float]:
        self._mend_ledger()
        if self._sweeps and not self._queue_due():
            return 0.5
        with self._swept:
            self._sweeping = True
            self._sweep_began = began = time.monotonic()
        force = self._force.is_set()
        self._nudged.clear()
        try:
            snapshot = read_queue(self.cluster)
            self._read_took_s = time.monotonic() - began
            config = self.config()
            now = int(time.time())
            with self.ledger.transaction(write=False) as tx:
                complete = tx.complete
            not_rebuilt = None if complete else self._rebuild(config, snapshot, now)
            report = sweep.confirm_and_sweep(
                self.ledger, config, snapshot, self._sacct, self._sweep_state, now, force=force
            )
        finally:
            self._sweeping = False
        if force:
            self._force.clear()
        self._snapshot = snapshot
        self._alarm("sweep", [report.alarm] if report.alarm else [])
        with self._swept:
            self._sweeps += 1
            self._swept_at = snapshot.taken_at
            self._sweep_report = report.as_dict()
            self._swept.notify_all()
        if not_rebuilt is not None:
            raise not_rebuilt
        return 0.5

    def _rebuild(
        self, config: Config, snapshot: QueueSnapshot, now: int
    ) -> Optional[SlurmUnavailable]:
        """What kept the ledger from being complete; the queue is swept all the same."""
        try:
            bank = (
                Impatient(self.bank.parts().bank, REBUILD_PATIENCE_S)
                if self.book.may_try(now)
                else None
            )
        except BankUnavailable:
            bank = None
        try:
            report = rebuild(
                self.ledger,
                config,
                snapshot,
                self._sacct,
                bank,
                now,
                self._sweep_state,
                bank_budget_s=REBUILD_BANK_S,
            )
        except SlurmUnavailable as error:
            return error
        self._alarm("rebuild", [report.waiting] if report.waiting else [])
        return None

    def sweep_now(self, force: bool, wait_s: float) -> Mapping[str, Any]:
        """Sweep at once; its report, or nothing if it takes longer."""
        with self._swept:
            # One that is under way may have looked before now: the one after it counts.
            wanted = self._sweeps + (2 if self._sweeping else 1)
            if force:
                self._force.set()
            self._sweep_began = float("-inf")
            self._steps["queue"].wake()
            done = self._swept.wait_for(lambda: self._sweeps >= wanted, wait_s)
        problem = self._steps["queue"].problem
        if done:
            return self._sweep_report
        return {} if problem is None else {"problem": problem}

    def _charge_unrecorded(self) -> None:
        with self.ledger.transaction(write=False) as tx:
            if not tx.complete:
                return
        self._look_for_runaway()
        due = time.monotonic() - self._sacct_began >= self._relay_config().sacct_poll_s
        marked = sweep.rescan_wanted(self._state_dir)
        if self._sacct_began and not due and not marked:
            return
        self._sacct_began = time.monotonic()
        report = sweep.charge_unrecorded(
            self.ledger, self.config(), self._sacct, self._sweep_state, int(time.time())
        )
        if report.drift:
            self._differs += len(report.drift)
            self._differs_at = int(time.time())
        self._charged_at = int(time.time())

    def _take_over(self) -> None:
        """After a rebuild, as soon as the bank answers: what runs on there and nowhere else."""
        snapshot = self._snapshot
        if snapshot is None or not snapshot.complete or not self.book.may_try(time.time()):
            return
        try:
            take_over(
                self.ledger, self.config(), snapshot, self._sacct, lambda: self.bank.parts().bank
            )
        except (BankError, SlurmUnavailable) as error:  # which others tell, too
            log.debug("bank_rows_wait problem=%s", error)

    # -- the bank ---------------------------------------------------------------------------------------------------

    def _check_book(self) -> None:
        """The ledger's file may have been deleted or put back from a copy under us."""
        if ledger_identity(self.ledger) == self._book_of:
            return
        log.warning("ledger_replaced path=%s: deliveries look at the bank first", self.ledger.path)
        old = self.book
        with old.delivering:
            old.close()
            self.book, self._book_of = open_book(self._state_dir, self.ledger)
        self._steps["members"].wake()  # it has nobody's funds

    def _deliver(self) -> Optional[float]:
        self._check_book()
        with self.ledger.transaction(write=False) as tx:
            waiting, _ = tx.outbox_size()
            complete = tx.complete
        # What the book remembers of runs that have nothing to deliver any more is forgotten in a round, too.
        if not complete or not (waiting or self.book.remembers()):
            return None
        report = deliver_due(
            self.ledger, self.bank.parts().bank, self.book, self.config(), time.time()
        )
        self._delivered = metrics.delivered(self._delivered, report)
        self._alarm("deliver", report.alarms)
        return 0.0 if report.more and not report.bank_away else None

    def _refresh_in_use(self) -> None:
        now = int(time.time())
        with self.ledger.transaction(write=False) as tx:
            pairs = dict.fromkeys(tx.accounts_in_use())
        for pair, asked_at in list(self._asked.items()):
            if now - asked_at < IN_USE_S:
                pairs[pair] = None
            else:
                self._asked.pop(pair, None)
        in_use: Dict[Tuple[str, int], int] = {}
        old: List[Tuple[int, str, int]] = []
        refresh_s = self._relay_config().funds_refresh_s
        for account, user_id in pairs:
            read_at = in_use[account, user_id] = self._read_at(account, user_id)
            if now - read_at >= refresh_s:
                old.append((read_at, account, user_id))
        self._funds_in_use = in_use
        if not old:
            return
        report = refresh_funds(
            self.ledger,
            self.bank.parts().bank,
            self.book,
            [(account, user_id) for _, account, user_id in sorted(old)],
            time.time(),
            budget_s=10.0,
            longest_pause_s=float(self._relay_config().deliver_retry_max_s),
        )
        self._alarm("funds", report.alarms)

    def _introduce(self) -> Optional[float]:
        """Funds of those who never submitted, so that the first submission finds them in the ledger."""
        pairs = unknown_pairs(self.ledger, self.config(), self.cluster)
        if not pairs:
            return None
        report = refresh_funds(
            self.ledger,
            self.bank.parts().bank,
            self.book,
            pairs,
            time.time(),
            budget_s=30.0,
            longest_pause_s=float(self._relay_config().deliver_retry_max_s),
        )
        log.info("funds_introduced accounts=%d of=%d", report.refreshed, len({p[0] for p in pairs}))
        return _MEMBERS_AGAIN_S if report.refreshed or report.stale or report.bank_away else None

    def _refresh_one(self, account: str, user_id: int) -> None:
        if len(self._asked) < _MAX_ASKED:
            self._asked[account, user_id] = time.time()
        refresh_account(
            self.ledger,
            self.bank.parts().bank,
            self.book,
            account,
            user_id,
            time.time(),
            longest_pause_s=float(self._relay_config().deliver_retry_max_s),
        )

    def _read_at(self, account: str, user_id: int) -> int:
        with self.ledger.transaction(write=False) as tx:
            return tx.funds_view(account, user_id).read_at

    def _away_until(self) -> Optional[float]:
        away = self.book.away
        return None if away is None else away.until

    def _delivery_state(self, run: LedgerRun) -> Mapping[str, Any]:
        found = self.book.known([run.run_id]).get(run.run_id)
        if found is None:
            return {}
        return {
            "state": found.state,
            "tries": found.attempts,
            "last_error": found.last_error,
            "next_try": int(found.next_try) or None,
        }

    def _retry(self, run_ids: Sequence[int], actor: str) -> Sequence[LedgerRun]:
        self.bank.forget()  # the token may be what was mended
        runs = try_again(self.ledger, self.book, run_ids, actor)
        self._steps["deliver"].wake()
        return runs

    def _resolve(
        self, run_id: int, bank_has_csu: Optional[int], reason: str, actor: str
    ) -> Tuple[LedgerRun, int]:
        """:raises NotByHand: see :func:`slurm_banking.relay.outbox.resolve`."""
        settled = outbox.resolve(
            self.ledger,
            self.book,
            run_id,
            bank=lambda: Impatient(self.bank.parts().bank, RESOLVE_PATIENCE_S),
            bank_has_csu=bank_has_csu,
            reason=reason,
            actor=actor,
        )
        # The bank's usage was changed by hand: what remains there is read again.
        self.desk.ask(settled[0].account, settled[0].user_id, max_age_s=-1, budget_s=1.0)
        return settled

    def _mend(self, wanted: Mapping[str, Any], actor: str) -> Mapping[str, Any]:
        """:raises NotMended: see :mod:`slurm_banking.relay.mend`."""
        try:
            bank = self.bank.parts().bank
        except BankUnavailable as error:
            raise mend.NotMended(str(error), later=True) from None
        result = mend.do(self.ledger, bank, wanted, actor)
        self._steps["deliver"].wake()
        account, user_id = result.pop("refresh", (None, None))
        if account is not None:
            self.desk.ask(account, user_id, max_age_s=-1, budget_s=0.5)
        return result

    # -- the books ------------------------------------------------------------------------------------------------------

    def _look_at_books(self) -> None:
        config = self.config()
        with self.ledger.transaction(write=False) as tx:
            complete = tx.complete
        if complete and self.book.away is None:
            self._books.look(config, self._stop)
        else:
            self._books.recall(config)
        self._alarm("books", self._books.alarms())

    # -- how it is doing --------------------------------------------------------------------------------------------

    def health(self) -> Mapping[str, Any]:
        away = self.book.away
        alarms = [alarm for source in sorted(self._alarms) for alarm in self._alarms[source]]
        if self.bank.problem is not None:
            alarms.append(f"bank: {self.bank.problem}")
        with self.ledger.transaction(write=False) as tx:
            open_liens = tx.count_open_liens()
        read = [read_at for read_at in self._funds_in_use.values() if read_at]
        return {
            "cluster": self.cluster,
            "started": self.started,
            "state_dir": self._state_dir,
            "config": self._reloader.path,
            "config_problem": self._reloader.problem,
            "bank_away_since": None if away is None else int(away.since),
            "bank_away_reason": None if away is None else away.reason,
            "last_sweep": self._swept_at,
            "last_sacct": self._charged_at,
            "sweep": dict(self._sweep_report),
            "deliveries": self.book.counts(),
            "delivered": self._delivered,
            "accounting_differs": self._differs,
            "accounting_differs_at": self._differs_at,
            "books": self._books.as_dict(),
            "funds_oldest": min(read, default=None),
            "funds_never_read": len(self._funds_in_use) - len(read),
            "step_failures": {step.name: step.failures for step in self._steps.values()},
            "open_liens": open_liens,
            "alarms": alarms,
            "hints": [] if self._runaway.found is None else [self._runaway.found.hint()],
            "runaway": None if self._runaway.found is None else self._runaway.found.as_dict(),
            "failing": {
                step.name: step.problem for step in self._steps.values() if step.problem is not None
            },
        }

    def _probe(self) -> None:
        """The heartbeat says that questions are answered, so it asks one."""
        if not self._listener.in_place:
            log.warning("socket_gone path=%s: made again", self._socket)
            old = self._listener
            self._listener = self._listen()
            self._listener.start()
            old.stop()
        client.ask(self._socket, {"op": "ping"}, PROBE_S, allowed_owner_uids=(os.geteuid(),))
        path = os.path.join(os.path.dirname(self._socket), protocol.HEARTBEAT_NAME)
        try:
            os.utime(path)
        except FileNotFoundError:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
            os.chmod(path, 0o644)


def _read_facts(cluster: str) -> Facts:
    topology = read_topology()
    return Facts(
        cluster=cluster,
        partitions=topology.partitions,
        default_partition=topology.default_partition,
        spec_allowed=topology.spec_allowed,
    )
