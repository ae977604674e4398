# SPDX-License-Identifier: BSD-3-Clause
"""Opening the ledger file and handing out transactions.

One connection per process, one mutex, ``BEGIN IMMEDIATE`` for every transaction that writes. The file is opened by
SQLite and by nothing else in this process (closing another descriptor of it would drop SQLite's locks): stat only.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional, Tuple

from slurm_banking.errors import LedgerBusy, LedgerError
from slurm_banking.ledger.transaction import Transaction

FILE_NAME = "ledger.sqlite3"
SCHEMA_VERSION = "2"
_SCHEMA = Path(__file__).with_name("schema.sql")

#: slurmctld may wait this long for another process's transaction (architecture, "the ledger's rules").
BUSY_TIMEOUT_SLURMCTLD_MS = 20
BUSY_TIMEOUT_RELAY_MS = 2000

#: Pages. The relay checkpoints; this only bounds the WAL while no relay runs (16,384 pages of 4 KiB: 64 MiB).
_AUTOCHECKPOINT_PAGES = 16384


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return "unknown"


def _translate(error: sqlite3.Error, path: str) -> LedgerError:
    text = str(error)
    if isinstance(error, sqlite3.OperationalError) and ("locked" in text or "busy" in text):
        return LedgerBusy(f"ledger {path}: busy ({text})")
    return LedgerError(f"ledger {path}: {text}")


class Ledger:
    """The ledger of one cluster.

    :param state_dir: an existing directory on a local file system, owned by the effective user, mode 0700.
    :param cluster: ClusterName; a ledger of another cluster is refused.
    :raises LedgerError: the directory or the file cannot be used; one clear line.
    """

    def __init__(
        self,
        state_dir: str,
        cluster: str,
        *,
        busy_timeout_ms: int = BUSY_TIMEOUT_RELAY_MS,
        check_directory: bool = True,
    ) -> None:
        self.state_dir = state_dir
        self.cluster = cluster
        self.path = os.path.join(state_dir, FILE_NAME)
        self._busy_timeout_ms = busy_timeout_ms
        self._check_directory = check_directory
        self._mutex = threading.Lock()
        self._connection: Optional[sqlite3.Connection] = None
        self._identity: Tuple[int, int] = (0, 0)
        with self._mutex:
            self._open()

    def _open(self) -> None:
        if self._check_directory:
            from slurm_banking import state_dir

            problems = state_dir.check(self.state_dir, os.geteuid())
            if problems:
                raise LedgerError(problems[0])
        old_umask = None
        if not os.path.exists(self.path):
            # The mode is given at creation; umask is the process's, so only changed when a file is made (once).
            old_umask = os.umask(0o077)
        try:
            connection = sqlite3.connect(
                self.path,
                timeout=self._busy_timeout_ms / 1000,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise _translate(error, self.path) from error
        except OSError as error:
            raise LedgerError(f"ledger {self.path}: {error.strerror}") from error
        finally:
            if old_umask is not None:
                os.umask(old_umask)
        status = os.stat(self.path)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            connection.close()
            raise LedgerError(
                f"ledger {self.path}: owned by uid {status.st_uid} with mode "
                f"{stat.S_IMODE(status.st_mode):04o}; expected uid {os.geteuid()} and 0600"
            )
        self._connection = connection
        self._identity = (status.st_dev, status.st_ino)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_AUTOCHECKPOINT_PAGES}").fetchone()
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._create_or_check(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _create_or_check(self, connection: sqlite3.Connection) -> None:
        found = connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'meta'"
        ).fetchone()
        if not found:
            for statement in _statements(_SCHEMA.read_text("utf-8")):
                connection.execute(statement)
            connection.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [
                    ("schema", SCHEMA_VERSION),
                    ("cluster", self.cluster),
                    ("created", str(int(time.time()))),
                    ("boot_id", _boot_id()),
                    ("complete", "0"),
                ],
            )
            return
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        if meta.get("schema") != SCHEMA_VERSION:
            raise LedgerError(
                f"ledger {self.path}: schema {meta.get('schema')!r}; this version expects {SCHEMA_VERSION!r}"
            )
        if meta.get("cluster") != self.cluster:
            raise LedgerError(
                f"ledger {self.path}: belongs to cluster {meta.get('cluster')!r}, not {self.cluster!r}"
            )
        if meta.get("boot_id") != _boot_id():
            # The host went down since: what was committed last may be gone (synchronous = NORMAL). Compare first.
            connection.execute("UPDATE meta SET value = '0' WHERE key = 'complete'")
            connection.execute("UPDATE meta SET value = ? WHERE key = 'boot_id'", (_boot_id(),))

    def _current_connection(self) -> sqlite3.Connection:
        """The connection, reopened if the file was deleted or replaced under it."""
        try:
            status = os.stat(self.path)
            identity = (status.st_dev, status.st_ino)
        except OSError:
            identity = (0, 0)
        if self._connection is None or identity != self._identity:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._open()
        assert self._connection is not None
        return self._connection

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[Transaction]:
        """All or nothing. Committed when the block ends, rolled back when it raises.

        Keep it short (5 ms) and free of network, processes and sleep: slurmctld may be waiting.

        :raises LedgerBusy: another process held it for longer than this process may wait.
        :raises LedgerError: full disk, broken file, ...
        """
        if not self._mutex.acquire(timeout=max(self._busy_timeout_ms, 50) / 1000):
            raise LedgerBusy(f"ledger {self.path}: busy (another thread)")
        try:
            try:
                connection = self._current_connection()
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            except sqlite3.Error as error:
                raise _translate(error, self.path) from error
            try:
                yield Transaction(connection, self.cluster)
                connection.execute("COMMIT")
            except BaseException as error:
                try:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                except sqlite3.Error:
                    connection.close()
                    self._connection = None
                if isinstance(error, sqlite3.Error):
                    raise _translate(error, self.path) from error
                raise
        finally:
            self._mutex.release()

    def checkpoint(self) -> None:
        """Move the WAL into the file (the relay's job); never waits for readers."""
        with self._mutex:
            connection = self._current_connection()
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.Error as error:
                raise _translate(error, self.path) from error

    def backup(self, target: str) -> None:
        """A consistent copy through SQLite's own interface, while everything goes on."""
        with self._mutex:
            connection = self._current_connection()
            try:
                copy = sqlite3.connect(target)
                try:
                    connection.backup(copy, pages=256, sleep=0.005)
                finally:
                    copy.close()
            except sqlite3.Error as error:
                raise _translate(error, target) from error

    def close(self) -> None:
        with self._mutex:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def _statements(script: str) -> Iterator[str]:
    """The script's statements one by one (executescript would commit the open transaction)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            if statement.strip():
                yield statement
            statement = ""
