# SPDX-License-Identifier: BSD-3-Clause
"""Is the ledger's file whole, do its sums add up; and what is done when they are not. For the relay and the command line.

Damage is what SQLite, or a look at the schema, says of the file: a page that makes no sense, a table or trigger that is
gone. slurmctld, which meets it first as a rule, decides nothing by such a file (``[Policy] undecided`` says what that
means), notes ended runs for later, and leaves word in ``ledger.suspect``. The relay, and nobody else, then moves the file
aside, with what SQLite keeps beside it, and begins another, which the rebuild fills from Slurm's queue, slurmdbd and the
bank. Nothing is deleted: what was moved stays in the state directory, under a name with the time, until an operator has
looked at it and taken it away; so long there is an alarm. It remains a SQLite database, to be read with ``sqlite3 -readonly``.

A sum that does not add up in a file that is whole is nobody's accident, and nothing is done about it but to say so.
"""

from __future__ import annotations

import calendar
import logging
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from slurm_banking.errors import LedgerBusy, LedgerError
from slurm_banking.ledger import store
from slurm_banking.ledger.migrations import SCHEMA_VERSION, statements
from slurm_banking.ledger.queries import QUERIES
from slurm_banking.ledger.store import FILE_NAME, SUSPECT_NAME, Ledger, LedgerBroken

log = logging.getLogger("slurm_banking.relay")

#: Between the ledger's name and the time, in the name of a file that was moved aside.
BROKEN = ".broken-"
REPLACED = ".before-restore-"

#: Seconds that the relay's start may look at the file: 200,000 jobs take a fraction of one, and slurmctld does not wait.
START_CHECK_S = 10.0
#: Files moved aside within FLAPPING_S after which no more are: the disk, not the file, is broken.
FLAPPING = 3
FLAPPING_S = 3600

_MAX_PROBLEMS = 20
#: SQLite asks after this many of its instructions whether it shall go on (about a millisecond).
_STEPS = 100_000


@dataclass(frozen=True)
class Findings:
    """What a look at a ledger file found."""

    path: str
    damage: Tuple[str, ...]  #: empty: as far as was looked, the file is whole
    sums: Tuple[str, ...]  #: what does not add up; not looked for in a damaged file
    finished: bool  #: False: there was no time for all of it
    took_s: float
    entries: Optional[int] = None  #: None: could not be counted
    meta: Optional[Mapping[str, str]] = None  #: schema, cluster, ...; None: cannot be read

    @property
    def good(self) -> bool:
        return self.finished and not self.damage and not self.sums

    def line(self) -> str:
        parts = [f"took_s={self.took_s:.2f}", f"entries={self.entries}"]
        if not self.finished:
            parts.append("unfinished=1")
        if self.damage:
            parts.append(f"damage={len(self.damage)} first={self.damage[0]!r}")
        if self.sums:
            parts.append(f"sums={len(self.sums)} first={self.sums[0]!r}")
        return " ".join(parts)


def examine(path: str, *, thorough: bool, budget_s: Optional[float] = None) -> Findings:
    """Look at a ledger file, or a copy of one, on a read-only connection of its own; no writer waits for that.

    ``thorough``: indexes against their tables, and every stored JSON, too. ``budget_s``: stop after that; None: never.

    :raises LedgerBusy: it is locked. :raises LedgerError: there is no such file, or it may not be read.
    """
    look = _Look(path, budget_s)
    try:
        os.stat(path)
        connection = sqlite3.connect(store.read_only(path), uri=True, timeout=2.0)
    except OSError as error:
        raise LedgerError(f"ledger {path}: {error.strerror}") from error
    except sqlite3.Error as error:
        raise store.translate(error, path) from error
    try:
        connection.isolation_level = None
        connection.set_progress_handler(look.out_of_time, _STEPS)
        look.at(connection, thorough)
    except sqlite3.Error as error:
        if look.stopped:
            return look.findings(finished=False)
        found = store.translate(error, path)
        if not isinstance(found, LedgerBroken):
            raise found from error
        look.damage.append(str(error))
    finally:
        connection.close()
    return look.findings(finished=True)


class _Look:
    def __init__(self, path: str, budget_s: Optional[float]) -> None:
        self.path = path
        self.began = time.monotonic()
        self.until = None if budget_s is None else self.began + budget_s
        self.stopped = False
        self.damage: List[str] = []
        self.sums: List[str] = []
        self.entries: Optional[int] = None
        self.meta: Optional[Dict[str, str]] = None

    def out_of_time(self) -> int:
        self.stopped = self.until is not None and time.monotonic() > self.until
        return int(self.stopped)

    def findings(self, *, finished: bool) -> Findings:
        return Findings(
            path=self.path,
            damage=tuple(self.damage[:_MAX_PROBLEMS]),
            sums=tuple(self.sums[:_MAX_PROBLEMS]),
            finished=finished,
            took_s=time.monotonic() - self.began,
            entries=self.entries,
            meta=self.meta,
        )

    def at(self, connection: sqlite3.Connection, thorough: bool) -> None:
        connection.execute("BEGIN")
        self.damage += _schema_problems(connection)
        if self.damage:
            return
        self.meta = dict(connection.execute("SELECT key, value FROM meta"))
        check = "integrity_check" if thorough else "quick_check"
        rows = connection.execute(f"PRAGMA {check}({_MAX_PROBLEMS})").fetchall()
        said = [line for (text,) in rows for line in str(text).splitlines() if line != "ok"]
        self.damage += [line for line in said if not line.startswith("***")] or said
        if self.damage:
            return
        (self.entries,) = connection.execute("SELECT COUNT(*) FROM entries").fetchone()
        self.sums += [str(problem) for (problem,) in connection.execute(QUERIES["check_exposure"])]
        for name, query in _RULES:
            rows = connection.execute(query + f" LIMIT {_MAX_PROBLEMS}").fetchall()
            self.sums += [f"{name}: {', '.join(map(str, row))}" for row in rows]
        if thorough:
            for table, column in _JSON:
                query = f"SELECT COUNT(*) FROM {table} WHERE {column} IS NOT NULL AND NOT json_valid({column})"
                (wrong,) = connection.execute(query).fetchone()
                if wrong:
                    self.damage.append(f"{wrong} {column} of {table} cannot be read")


#: What must hold beyond what the schema itself refuses: (what it is when it does not, the rows that are so).
_RULES: Tuple[Tuple[str, str], ...] = (
    (
        "account, the sum of its entries, what its liens and runs count",
        "SELECT account, SUM(entered), SUM(kept) FROM ("
        "SELECT account, amount_csu AS entered, 0 AS kept FROM entries "
        "UNION ALL SELECT account, 0, amount_csu FROM liens WHERE counted "
        "UNION ALL SELECT account, 0, ledger_csu FROM runs) GROUP BY account HAVING SUM(entered) != SUM(kept)",
    ),
    (
        "an open lien is not its tasks times its cost: lien",
        "SELECT lien_id FROM liens WHERE state != 'ended' AND amount_csu < tasks_left * per_task_csu",
    ),
    (
        "a running run that counts holds other than its lien: job",
        "SELECT job_id FROM runs WHERE state = 'running' AND ledger_csu != 0 AND ledger_csu < lien_csu",
    ),
    (
        "an ended run counts other than its charge: job",
        "SELECT job_id FROM runs WHERE state = 'ended' AND ledger_csu IS NOT COALESCE(charge_csu, 0)",
    ),
    (
        "what waits for the bank is of no run: number",
        "SELECT seq FROM outbox WHERE run_id NOT IN (SELECT run_id FROM runs)",
    ),
)

_JSON = (("entries", "inputs"), ("liens", "inputs"), ("runs", "inputs"), ("price_lists", "tables"))


def _schema_problems(connection: sqlite3.Connection) -> List[str]:
    """Tables, indexes and triggers that are not as this schema has them; nothing of a file of another schema."""
    present = _schema(connection)
    if "table meta" not in present:
        return ["there is no table named meta"]
    (found,) = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() or ("",)
    if found != SCHEMA_VERSION:
        return []  # whoever opens it for writing brings it up to date, or refuses it
    with_all = sqlite3.connect(":memory:")
    try:
        for statement in statements(
            Path(store.__file__).with_name("schema.sql").read_text("utf-8")
        ):
            with_all.execute(statement)
        expected = _schema(with_all)
    finally:
        with_all.close()
    problems = [f"{name} is missing" for name in expected if name not in present]
    return problems + [
        f"{name} is not as it was made"
        for name, text in expected.items()
        if name in present and present[name] != text
    ]


def _schema(connection: sqlite3.Connection) -> Dict[str, str]:
    rows: List[Any] = connection.execute(
        "SELECT type || ' ' || name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
    ).fetchall()
    return {
        str(name): " ".join(str(text).split()).replace("IF NOT EXISTS ", "") for name, text in rows
    }


# -- what the relay does about it ---------------------------------------------------------------------------------------


def open_for_relay(
    state_dir: str, cluster: str, *, budget_s: float = START_CHECK_S
) -> Tuple[Ledger, Sequence[str]]:
    """The ledger, looked at; a damaged one is moved aside first. And what an operator should know of the look.

    Only for the process that holds the relay's lock.

    :raises LedgerError: it cannot be used, and that is not because it is damaged; or it was damaged too often lately.
    """
    path = os.path.join(state_dir, FILE_NAME)
    try:
        ledger = Ledger(state_dir, cluster)
    except LedgerBroken as error:
        move_aside(state_dir, cluster, str(error))
        return Ledger(state_dir, cluster), ()
    findings = examine(path, thorough=False, budget_s=budget_s)
    if findings.damage:
        ledger.close()
        move_aside(state_dir, cluster, findings.damage[0])
        return Ledger(state_dir, cluster), ()
    _forget_suspicion(state_dir)
    log.info("ledger_checked %s", findings.line())
    notes = [f"ledger {path}: does not add up: {problem}" for problem in findings.sums]
    if not findings.finished:
        log.warning("ledger_check_unfinished path=%s budget_s=%g", path, budget_s)
    return ledger, notes


def move_aside(state_dir: str, cluster: str, why: str) -> str:
    """Put an empty ledger in the place of the damaged one; the path under which that is kept.

    :raises LedgerError: it cannot be done, or was done too often within the last hour.
    """
    path = os.path.join(state_dir, FILE_NAME)
    now = time.time()
    lately = [kept for kept in kept_aside(state_dir) if now - _when(kept) < FLAPPING_S]
    if len(lately) >= FLAPPING:
        raise LedgerError(
            f"ledger {path}: damaged again ({why}), {len(lately)} times within an hour: it is left as it is; expected a disk "
            "that keeps what is written"
        )
    aside = name_for(path + BROKEN, now)
    fresh = path + f".new-{os.getpid()}"
    _discard(fresh)
    store.connect(fresh, cluster, 1.0).close()
    try:
        store.install(state_dir, fresh, aside)
    except LedgerError:
        _discard(fresh)
        raise
    _forget_suspicion(state_dir)
    log.error("ledger_moved_aside path=%s kept_as=%s problem=%r rebuilding=1", path, aside, why)
    return aside


def _discard(path: str) -> None:
    """A file of our own making that never was the ledger."""
    for name in (path, path + "-wal", path + "-shm", path + "-journal"):
        try:
            os.unlink(name)
        except FileNotFoundError:
            pass


def name_for(beginning: str, at: float) -> str:
    """A name that is not in use: with the time in UTC, and a number should that not be enough."""
    name = wanted = beginning + time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
    number = 1
    while os.path.lexists(name) or os.path.lexists(name + "-wal"):
        number += 1
        name = f"{wanted}-{number}"
    return name


def kept_aside(state_dir: str) -> Sequence[str]:
    """The damaged files that an operator has not taken away, oldest first."""
    try:
        names = os.listdir(state_dir)
    except OSError:
        return ()
    return sorted(
        os.path.join(state_dir, name)
        for name in names
        if name.startswith(FILE_NAME + BROKEN) and not name.endswith(("-wal", "-shm"))
    )


def _when(kept: str) -> float:
    written = kept.rpartition(BROKEN)[2].partition("-")[0]
    try:
        return calendar.timegm(time.strptime(written, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        return 0.0


def _forget_suspicion(state_dir: str) -> None:
    try:
        os.unlink(os.path.join(state_dir, SUSPECT_NAME))
    except OSError:
        pass


class Guard:
    """The relay's care for the file while it runs: moves it aside once somebody has found it damaged.

    ``mend`` belongs where nothing holds numbers of runs of the old ledger: no sweep, no delivery under way.
    """

    def __init__(self, ledger: Ledger, notes: Sequence[str] = ()) -> None:
        self._ledger = ledger
        self._notes = tuple(notes)

    def suspected(self) -> bool:
        return os.path.lexists(os.path.join(self._ledger.state_dir, SUSPECT_NAME))

    def mend(self) -> bool:
        """True: there is another ledger now, to be rebuilt.

        What SQLite called damaged is; but the word may be about a file that was replaced since.

        :raises LedgerError: see :func:`move_aside`.
        """
        state_dir = self._ledger.state_dir
        try:
            with open(
                os.path.join(state_dir, SUSPECT_NAME), encoding="utf-8", errors="replace"
            ) as file:
                which, _, why = file.read(4096).strip().partition(" ")
            status = os.stat(self._ledger.path)
        except OSError:
            which, why, status = "", "", None
        if status is None or which != f"{status.st_dev}:{status.st_ino}":
            _forget_suspicion(state_dir)
            return False
        move_aside(state_dir, self._ledger.cluster, why)
        self._notes = ()
        return True

    def alarms(self) -> Sequence[str]:
        """What an operator has to know, until the file is taken out of the state directory."""
        found = list(self._notes)
        for kept in kept_aside(self._ledger.state_dir):
            found.append(
                f"the ledger was damaged and rebuilt: {kept} is what was before; once you have looked at it, take it and "
                "what is beside it (-wal, -shm) out of that directory"
            )
        return found


__all__ = [
    "Findings",
    "Guard",
    "LedgerBusy",
    "examine",
    "kept_aside",
    "move_aside",
    "open_for_relay",
]
