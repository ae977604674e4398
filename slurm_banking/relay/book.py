# SPDX-License-Identifier: BSD-3-Clause
"""What the relay remembers about deliveries, apart from the ledger: tries, what is under way, what nobody answered.

A file of its own, so that this traffic never makes slurmctld wait. One row per run that needs more than a first try::

    (no row) --begin--> in flight --acknowledged--> (no row)
                           |  \\--refused--> waiting, healing or parked --due, or an operator--> in flight
                           \\--no answer, crash--> unresolved: the bank is asked first at the next try

While a delivery of an account is in flight or unresolved, what the bank says of its funds does not replace what the
ledger has (:meth:`DeliveryBook.apply_refresh`).

The file says what waits, and not this process's memory: for a moment another relay may have it open too, if its lock was
removed under it, and may die with a delivery in flight.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

from slurm_banking.errors import LedgerError
from slurm_banking.ledger import Delivery
from slurm_banking.relay.backoff import HEAL_RETRY_S, Pauses

__all__ = ["FILE_NAME", "HEAL_RETRY_S", "PARKED_LOOK_S", "DeliveryBook"]

FILE_NAME = "deliveries.sqlite3"
SCHEMA_VERSION = "1"

#: Seconds after which a parked run is looked at again (not sent).
PARKED_LOOK_S = 600.0
#: Seconds: less is a thread that comes late, more is a clock that was set back.
CLOCK_STEP_S = 60.0
#: So many accounts in a row of which the bank's answers make no sense: it is the bank, not they.
ACCOUNTS_FAILING = 3

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deliveries (
	run_id INTEGER PRIMARY KEY,
	seq INTEGER NOT NULL,		-- of the outbox row it was last seen with
	phase TEXT NOT NULL,
	account TEXT NOT NULL,
	state TEXT NOT NULL CHECK (state IN ('in_flight', 'waiting', 'healing', 'parked')),
	unresolved INTEGER NOT NULL,	-- sent, and no answer: the bank may have it
	attempts INTEGER NOT NULL,
	next_try REAL NOT NULL,		-- unix seconds
	last_error TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS deliveries_due ON deliveries (next_try) WHERE state != 'in_flight';
CREATE INDEX IF NOT EXISTS deliveries_unresolved ON deliveries (account) WHERE unresolved;
CREATE INDEX IF NOT EXISTS deliveries_in_flight ON deliveries (run_id) WHERE state = 'in_flight';
"""


@dataclass(frozen=True)
class Attempt:
    """A delivery that may be sent now."""

    number: int  #: 1: the first
    look_first: bool  #: an earlier try may have reached the bank


@dataclass(frozen=True)
class Remembered:
    """A row of the book."""

    run_id: int
    seq: int
    phase: str
    account: str
    state: str
    unresolved: bool
    attempts: int
    next_try: float
    last_error: str


@dataclass(frozen=True)
class BankAway:
    """The bank does not answer, or refuses the token."""

    since: float  #: unix seconds
    until: float  #: nobody tries before this
    reason: str
    unauthorized: bool = False  #: it refuses the token, until it takes one


@dataclass(frozen=True)
class RefreshMarker:
    """What was under way for an account before its funds were read."""

    account: str
    changes: int


@dataclass(frozen=True)
class _WritesRefused:
    """The token was refused to a delivery. That the bank answers questions does not end it: a token may only read."""

    until: float  #: unix seconds
    reason: str
    failures: int


@dataclass(frozen=True)
class _Failing:
    """An account whose deliveries fail, whoever else's do."""

    failures: int  #: in a row
    until: float  #: unix seconds
    answered: bool  #: what failed was answered, and made no sense


def later_by_tries_s(tries: int) -> float:
    """What orders those that are due together: seconds, few."""
    return 0.01 * min(tries, 1000)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return "unknown"


class DeliveryBook:
    """Safe to use from several threads. Lock order: the book's lock, then the ledger's.

    :param uniform: the jitter of pauses; see :class:`slurm_banking.relay.backoff.Pauses`.
    :raises LedgerError: the file cannot be used.
    """

    def __init__(
        self, path: str, *, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self.path = path
        self._uniform = uniform
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._in_flight: Dict[str, int] = {}  # per account, of this process
        self._flying: Set[int] = set()  # runs, of this process
        self._changes: Dict[str, int] = {}  # per account: begun and finished deliveries
        self._held: Dict[str, int] = {}  # accounts whose deliveries wait for a refresh
        self._away: Optional[BankAway] = None
        self._clock_was = 0.0  #: unix seconds, as last told
        self._failures = 0
        self._writes: Optional[_WritesRefused] = None
        self._failing: Dict[str, _Failing] = {}  # by account
        self._failing_in_a_row: Set[str] = set()  # accounts, since the bank last made sense
        #: Held by whoever delivers: one at a time.
        self.delivering = threading.Lock()
        #: Outbox rows up to here were looked at by this process: delivered, or in the book.
        self.scanned_seq = 0
        #: The file is new, or the host went down since: what was under way then is not known.
        self.must_adopt = False
        self._connection = self._open()
        self._recover()

    def _open(self) -> sqlite3.Connection:
        old_umask = os.umask(0o077) if not os.path.exists(self.path) else None
        try:
            connection = sqlite3.connect(
                self.path, timeout=5, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_SCHEMA)
            return connection
        except sqlite3.Error as error:
            raise LedgerError(f"delivery book {self.path}: {error}") from error
        finally:
            if old_umask is not None:
                os.umask(old_umask)

    def _recover(self) -> None:
        with self._lock:
            meta = dict(self._sql("SELECT key, value FROM meta").fetchall())
            if meta.get("schema", SCHEMA_VERSION) != SCHEMA_VERSION:
                raise LedgerError(
                    f"delivery book {self.path}: schema {meta['schema']!r}; this version expects {SCHEMA_VERSION!r}"
                )
            self.must_adopt = meta.get("adopted_boot") != _boot_id()
            self._sql("INSERT OR REPLACE INTO meta VALUES ('schema', ?)", (SCHEMA_VERSION,))
            self._land_orphans()

    def _land_orphans(self) -> None:
        """What a process that died had in flight: the bank may have it."""
        for (run_id,) in self._sql(
            "SELECT run_id FROM deliveries WHERE state = 'in_flight'"
        ).fetchall():
            if run_id not in self._flying:
                self._sql(
                    "UPDATE deliveries SET state = 'waiting', unresolved = 1, next_try = 0 WHERE run_id = ?",
                    (run_id,),
                )

    def _sql(self, statement: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, parameters)
        except sqlite3.Error as error:
            raise LedgerError(f"delivery book {self.path}: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # -- after a loss ---------------------------------------------------------------------------------------------------

    def adopt(self, waiting: Iterable[Tuple[int, int, str, str]]) -> None:
        """Take deliveries (run, sequence, phase, account) as unresolved: any of them may have reached the bank."""
        with self._lock:
            self._sql("BEGIN")
            try:
                for run_id, seq, phase, account in waiting:
                    known = self._sql(
                        "SELECT unresolved FROM deliveries WHERE run_id = ?", (run_id,)
                    ).fetchone()
                    if known is not None and known[0]:
                        continue
                    self._sql(
                        "INSERT INTO deliveries VALUES (?, ?, ?, ?, 'waiting', 1, 0, 0, 'not known') "
                        "ON CONFLICT (run_id) DO UPDATE SET unresolved = 1, next_try = 0",
                        (run_id, seq, phase, account),
                    )
                self._sql("COMMIT")
            except BaseException:
                self._sql("ROLLBACK")
                raise

    def adopted(self) -> None:
        """Everything that waited is adopted."""
        with self._lock:
            self._sql("INSERT OR REPLACE INTO meta VALUES ('adopted_boot', ?)", (_boot_id(),))
            self.must_adopt = False

    # -- one delivery ---------------------------------------------------------------------------------------------------

    def begin(self, run_id: int, seq: int, phase: str, account: str) -> Optional[Attempt]:
        """Mark it as in flight, on disk. None: not now, a refresh of the account's funds is at work."""
        with self._lock:
            if self._held.get(account):
                return None
            known = self._sql(
                "SELECT attempts, unresolved FROM deliveries WHERE run_id = ?", (run_id,)
            ).fetchone()
            attempts, unresolved = known or (0, 0)
            self._sql(
                "INSERT INTO deliveries VALUES (?, ?, ?, ?, 'in_flight', ?, ?, 0, '') ON CONFLICT (run_id) DO UPDATE "
                "SET state = 'in_flight', seq = excluded.seq, phase = excluded.phase, attempts = excluded.attempts",
                (run_id, seq, phase, account, unresolved, attempts + 1),
            )
            self._count(self._in_flight, account, 1)
            self._flying.add(run_id)
            self._changed(account)
            return Attempt(number=attempts + 1, look_first=bool(unresolved))

    def done(self, run_id: int, account: str, seq: int, *, again: bool = False) -> None:
        """The ledger has the acknowledgement of ``seq``.

        ``again``: the run changed meanwhile, and goes once more; also if something newer was noted since it began
        (:meth:`superseded`).
        """
        with self._lock:
            self._landed(run_id, account, unresolved=False)
            if not again:
                self._sql("DELETE FROM deliveries WHERE run_id = ? AND seq = ?", (run_id, seq))
            self._sql(
                "UPDATE deliveries SET state = 'waiting', attempts = 0, next_try = 0 WHERE run_id = ?",
                (run_id,),
            )

    def unanswered(self, run_id: int, account: str, error: str, next_try: float) -> None:
        """Nobody knows whether the bank has it."""
        self._put_back(run_id, account, "waiting", error, next_try, unresolved=True)

    def refused(self, run_id: int, account: str, state: str, error: str, next_try: float) -> None:
        """The bank said no; ``state``: "waiting", "healing" or "parked"."""
        self._put_back(run_id, account, state, error, next_try, unresolved=False)

    def not_sent(self, run_id: int, account: str, error: str, next_try: float) -> None:
        """It did not get as far as the bank: what was resolved is, what was not is not."""
        self._put_back(run_id, account, "waiting", error, next_try, unresolved=None)

    def _put_back(
        self,
        run_id: int,
        account: str,
        state: str,
        error: str,
        next_try: float,
        *,
        unresolved: Optional[bool],
    ) -> None:
        with self._lock:
            unresolved = self._landed(run_id, account, unresolved=unresolved)
            self._sql(
                "UPDATE deliveries SET state = ?, unresolved = ?, next_try = ?, last_error = ? WHERE run_id = ?",
                (state, int(unresolved), next_try, error[:500], run_id),
            )

    def _landed(self, run_id: int, account: str, *, unresolved: Optional[bool]) -> bool:
        known = self._sql(
            "SELECT unresolved FROM deliveries WHERE run_id = ?", (run_id,)
        ).fetchone()
        before = bool(known and known[0])
        after = before if unresolved is None else unresolved
        self._count(self._in_flight, account, -1)
        self._flying.discard(run_id)
        self._changed(account)
        self._idle.notify_all()
        return after

    def resolved(self, run_id: int) -> None:
        """What the bank holds for it is in the ledger now; it is still in flight."""
        with self._lock:
            self._sql("UPDATE deliveries SET unresolved = 0 WHERE run_id = ?", (run_id,))

    def forget(self, run_id: int) -> None:
        """Nothing of this run waits any longer."""
        with self._lock:
            known = self._sql(
                "SELECT account FROM deliveries WHERE run_id = ? AND state != 'in_flight'",
                (run_id,),
            ).fetchone()
            if known is None:
                return
            self._sql("DELETE FROM deliveries WHERE run_id = ?", (run_id,))
            self._changed(known[0])

    def put_off(self, run_id: int, seq: int, phase: str, account: str, next_try: float) -> None:
        """Not now, and nothing was tried."""
        with self._lock:
            self._sql(
                "INSERT INTO deliveries VALUES (?, ?, ?, ?, 'waiting', 0, 0, ?, '') ON CONFLICT (run_id) DO UPDATE "
                "SET seq = excluded.seq, phase = excluded.phase, next_try = excluded.next_try "
                "WHERE state != 'in_flight'",
                (run_id, seq, phase, account, next_try),
            )

    def stand_by(self, run_id: int, seq: int, phase: str, account: str, next_try: float) -> bool:
        """Another run of the same user was just refused in a way that heals: this one waits for the same, untried.

        The least tried comes first then: one that is refused whatever is mended does not speak for the others twice.
        False: it may have reached the bank before, and goes its own way.
        """
        with self._lock:
            known = self.known([run_id]).get(run_id)
            if known is not None and known.unresolved:
                return False
            later_s = 0.0 if known is None else later_by_tries_s(known.attempts)
            self._sql(
                "INSERT INTO deliveries VALUES (?, ?, ?, ?, 'healing', 0, 0, ?, 'as for another run') "
                "ON CONFLICT (run_id) DO UPDATE SET seq = excluded.seq, phase = excluded.phase, state = 'healing', "
                "next_try = excluded.next_try, last_error = CASE last_error WHEN '' THEN excluded.last_error "
                "ELSE last_error END WHERE state != 'in_flight'",
                (run_id, seq, phase, account, next_try + later_s),
            )
            return True

    def postpone(self, run_id: int, next_try: float) -> None:
        with self._lock:
            self._sql(
                "UPDATE deliveries SET next_try = ? WHERE run_id = ? AND state != 'in_flight'",
                (next_try, run_id),
            )

    def superseded(self, run_id: int, seq: int, phase: str) -> bool:
        """The run has something newer to deliver: what was parked is tried again, what is in flight goes once more.

        False: the book does not have the run (any more); it is to be delivered like any other.
        """
        with self._lock:
            cursor = self._sql(
                "UPDATE deliveries SET seq = ?, phase = ?, next_try = CASE state WHEN 'parked' THEN 0 ELSE next_try END, "
                "state = CASE state WHEN 'parked' THEN 'waiting' ELSE state END WHERE run_id = ?",
                (seq, phase, run_id),
            )
            return cursor.rowcount > 0

    def try_again(self, delivery: Delivery) -> None:
        """An operator wants it tried at once, whatever it waited for. What is in flight stays so."""
        run = delivery.run
        with self._lock:
            self._sql(
                "INSERT INTO deliveries VALUES (?, ?, ?, ?, 'waiting', 0, 0, 0, '') ON CONFLICT (run_id) DO UPDATE "
                "SET seq = excluded.seq, phase = excluded.phase, state = 'waiting', next_try = 0 "
                "WHERE state != 'in_flight'",
                (run.run_id, delivery.seq, delivery.phase, run.account),
            )
            self.try_now(run.account)

    def take(self, delivery: Delivery) -> bool:
        """An operator has it in hand: nobody sends it, and no refresh of the account's funds is applied, until
        :meth:`done` or :meth:`put_back`. False: it is under way, or a refresh is at work.
        """
        run = delivery.run
        with self._lock:
            known = self.known([run.run_id]).get(run.run_id)
            if self._held.get(run.account) or (known is not None and known.state == "in_flight"):
                return False
            self._sql(
                "INSERT INTO deliveries VALUES (?, ?, ?, ?, 'in_flight', 0, 0, 0, '') ON CONFLICT (run_id) DO UPDATE "
                "SET state = 'in_flight'",
                (run.run_id, delivery.seq, delivery.phase, run.account),
            )
            self._count(self._in_flight, run.account, 1)
            self._flying.add(run.run_id)
            self._changed(run.account)
            return True

    def put_back(self, run_id: int, account: str, state: str, error: str, next_try: float) -> None:
        """What was taken is as it was."""
        self._put_back(run_id, account, state, error, next_try, unresolved=None)

    def listed(self, limit: int) -> Sequence[Remembered]:
        """What needs somebody first: refused, without an answer, the rest; each by run."""
        with self._lock:
            rows = self._sql(
                "SELECT * FROM deliveries ORDER BY CASE WHEN state = 'parked' THEN 0 WHEN unresolved THEN 1 "
                "WHEN state = 'healing' THEN 2 WHEN last_error != '' THEN 3 ELSE 4 END, run_id LIMIT ?",
                (limit,),
            ).fetchall()
        return [_remembered(row) for row in rows]

    def refused_runs(self, limit: int) -> Sequence[int]:
        """Runs that the bank refused, for good or for now."""
        with self._lock:
            rows = self._sql(
                "SELECT run_id FROM deliveries WHERE state IN ('healing', 'parked') ORDER BY run_id LIMIT ?",
                (limit,),
            ).fetchall()
        return [int(row[0]) for row in rows]

    def due(self, now: float, limit: int, *, longest_s: float) -> Sequence[Remembered]:
        """What waits and may be tried again, longest due first.

        ``longest_s``: no pause is longer. What should wait for more was put off by a clock that has gone back since.
        """
        longest_s = max(longest_s, PARKED_LOOK_S, HEAL_RETRY_S)
        with self._lock:
            self._land_orphans()
            rows = self._sql(
                "SELECT * FROM deliveries WHERE state != 'in_flight' AND (next_try <= ? OR next_try > ?)"
                " ORDER BY next_try LIMIT ?",
                (now, now + longest_s + 1, limit),
            ).fetchall()
        return [_remembered(row) for row in rows]

    def known(self, run_ids: Sequence[int]) -> Dict[int, Remembered]:
        """The book's rows of these runs (at most some hundred)."""
        marks = ",".join("?" * len(run_ids))
        with self._lock:
            rows = self._sql(
                f"SELECT * FROM deliveries WHERE run_id IN ({marks})", list(run_ids)
            ).fetchall()
        return {row[0]: _remembered(row) for row in rows}

    def remembers(self) -> bool:
        """Whether there is anything in the book."""
        with self._lock:
            return self._sql("SELECT 1 FROM deliveries LIMIT 1").fetchone() is not None

    def counts(self) -> Dict[str, int]:
        """How many rows are in each state; and "unresolved"."""
        with self._lock:
            found = dict(
                self._sql("SELECT state, COUNT(*) FROM deliveries GROUP BY state").fetchall()
            )
            (found["unresolved"],) = self._sql(
                "SELECT COUNT(*) FROM deliveries WHERE unresolved"
            ).fetchone()
        return {str(state): int(count) for state, count in found.items()}

    def problems(self, limit: int = 100) -> List[Remembered]:
        """What was refused or failed, for ``status`` and alarms."""
        with self._lock:
            rows = self._sql(
                "SELECT * FROM deliveries WHERE last_error != '' ORDER BY run_id LIMIT ?", (limit,)
            ).fetchall()
        return [_remembered(row) for row in rows]

    # -- refreshes ------------------------------------------------------------------------------------------------------

    def refresh_marker(self, account: str) -> Optional[RefreshMarker]:
        """Taken before the bank is asked about an account; None while a delivery of it is in flight or unresolved."""
        with self._lock:
            if self.must_adopt or self._in_flight.get(account) or self._is_unresolved(account):
                return None
            return RefreshMarker(account=account, changes=self._changes.get(account, 0))

    def _is_unresolved(self, account: str) -> bool:
        row = self._sql(
            "SELECT 1 FROM deliveries WHERE account = ? AND unresolved LIMIT 1", (account,)
        ).fetchone()
        return row is not None

    def apply_refresh(self, marker: RefreshMarker, write: Callable[[], None]) -> bool:
        """Call ``write`` if no delivery of the account was under way since the marker; False: what was read is stale."""
        with self._lock:
            if self.refresh_marker(marker.account) != marker:
                return False
            write()
            self._changed(marker.account)  # whoever asked the bank before this asks again
            return True

    @contextmanager
    def hold(self, account: str, wait_s: float) -> Iterator[None]:
        """Deliveries of the account wait meanwhile; those in flight are waited for, at most ``wait_s`` seconds."""
        with self._lock:
            self._count(self._held, account, 1)
            deadline = time.monotonic() + wait_s
            while self._in_flight.get(account):
                left = deadline - time.monotonic()
                if left <= 0 or not self._idle.wait(left):
                    break
        try:
            yield
        finally:
            with self._lock:
                self._count(self._held, account, -1)

    def _count(self, counts: Dict[str, int], account: str, by: int) -> None:
        count = counts.get(account, 0) + by
        if count > 0:
            counts[account] = count
        else:
            counts.pop(account, None)

    def _changed(self, account: str) -> None:
        self._changes[account] = self._changes.get(account, 0) + 1

    # -- the bank's whereabouts -----------------------------------------------------------------------------------------

    @property
    def away(self) -> Optional[BankAway]:
        """None: the bank answered last time."""
        with self._lock:
            return self._away

    def may_try(self, now: float) -> bool:
        with self._lock:
            self._heed_clock(now)
            return self._away is None or now >= self._away.until

    def _heed_clock(self, now: float) -> None:
        """When the clock has gone back, pauses end as long after now as they would have."""
        back_s = self._clock_was - now
        self._clock_was = now
        if back_s < CLOCK_STEP_S:
            return
        if self._away is not None:
            away = self._away
            self._away = replace(away, since=away.since - back_s, until=away.until - back_s)
        if self._writes is not None:
            self._writes = replace(self._writes, until=self._writes.until - back_s)
        for account, failing in self._failing.items():
            self._failing[account] = replace(failing, until=failing.until - back_s)

    def pauses(self, longest_s: float) -> Pauses:
        return Pauses(longest_s=longest_s, uniform=self._uniform)

    def bank_failed(
        self,
        now: float,
        reason: str,
        *,
        longest_s: float,
        unauthorized: bool = False,
        retry_after_s: Optional[float] = None,
        delivering: bool = False,
    ) -> BankAway:
        """Nobody tries for a while: longer each time in a row, at most ``longest_s``; see :class:`Pauses`.

        What several threads meet at once is one failure, with the longest of what the bank asked for. A refused token
        stays one, in the words that came with it first, until the bank answers: nothing else would mend it.
        """
        with self._lock:
            self._heed_clock(now)
            before = self._away
            pauses = self.pauses(longest_s)
            if unauthorized and delivering:
                writes = self._writes or _WritesRefused(until=0.0, reason=reason, failures=0)
                if now >= writes.until:
                    failures = writes.failures + 1
                    until = now + pauses.unauthorized(failures)
                    self._writes = replace(writes, until=until, failures=failures)
            token_before = before is not None and before.unauthorized
            if before is None or now >= before.until or (unauthorized and not token_before):
                self._failures += 1
                if unauthorized:
                    until = now + pauses.unauthorized(self._failures)
                else:
                    until = now + pauses.bank_away(self._failures, retry_after_s)
            elif retry_after_s is not None:
                until = max(before.until, now + pauses.bank_away(1, retry_after_s))
            else:
                return before
            self._away = BankAway(
                since=now if before is None else before.since,
                until=until,
                reason=before.reason if before is not None and token_before else reason,
                unauthorized=unauthorized or token_before,
            )
            return self._away

    def bank_answered(self, account: Optional[str] = None) -> None:
        """``account``: of a delivery that it answered in a way that makes sense."""
        with self._lock:
            if len(self._failing_in_a_row) > 1:  # it was the bank, not they
                for failing in self._failing_in_a_row:
                    self._failing.pop(failing, None)
            elif account is None and self._away is not None:
                for failing, known in self._failing.items():
                    if not known.answered:
                        self._failing[failing] = replace(known, until=0.0)
            self._away = None
            self._failures = 0
            self._failing_in_a_row.clear()
            if account is not None:
                self._writes = None
                self._failing.pop(account, None)

    def may_deliver(self, now: float) -> Optional[str]:
        """None: yes; otherwise why not yet."""
        with self._lock:
            self._heed_clock(now)
            if self._writes is not None and now < self._writes.until:
                return self._writes.reason
            if self._away is not None and now < self._away.until:
                return self._away.reason
            return None

    @property
    def token_problem(self) -> Optional[str]:
        """The bank's refusal of the token, in the words that came with it first; None: it takes the token."""
        with self._lock:
            if self._writes is not None:
                return self._writes.reason
            return self._away.reason if self._away is not None and self._away.unauthorized else None

    def try_now(self, account: Optional[str] = None) -> None:
        """Something was mended: the next to come tries whether the bank is back. ``account``: and this one's too."""
        with self._lock:
            if self._away is not None:
                self._away = replace(self._away, until=0)
            if self._writes is not None:
                self._writes = replace(self._writes, until=0)
            if account is not None:
                self._failing.pop(account, None)

    # -- accounts whose deliveries fail, whoever else's do --------------------------------------------------------------

    def account_failed(
        self, account: str, now: float, *, longest_s: float, answered: bool = True
    ) -> bool:
        """This account's deliveries wait for a while: longer each time. True: so many failed that it is the bank.

        ``answered``: with an answer that makes no sense; otherwise without any, as when a row at the bank is locked.
        """
        with self._lock:
            before = self._failing.get(account)
            if before is None or now >= before.until:
                failures = 1 if before is None else before.failures + 1
                until = now + self.pauses(longest_s).account(failures, answered=answered)
                self._failing[account] = _Failing(failures, until, answered)
            self._failing_in_a_row.add(account)
            return len(self._failing_in_a_row) >= ACCOUNTS_FAILING

    def account_until(self, account: str) -> float:
        """Unix seconds before which none of its deliveries is sent; 0: at once."""
        with self._lock:
            failing = self._failing.get(account)
            return 0.0 if failing is None else failing.until


def _remembered(row: Tuple[object, ...]) -> Remembered:
    run_id, seq, phase, account, state, unresolved, attempts, next_try, last_error = row
    return Remembered(
        run_id=int(str(run_id)),
        seq=int(str(seq)),
        phase=str(phase),
        account=str(account),
        state=str(state),
        unresolved=bool(unresolved),
        attempts=int(str(attempts)),
        next_try=float(str(next_try)),
        last_error=str(last_error),
    )
