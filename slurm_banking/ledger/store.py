# SPDX-License-Identifier: BSD-3-Clause
"""Opening the ledger file and handing out transactions.

One connection per process, one mutex, ``BEGIN IMMEDIATE`` for every transaction that writes. The file is opened by
SQLite and by nothing else in this process (closing another descriptor of it would drop SQLite's locks): stat only.

The file may be put aside and another one put in its place at any time (:func:`install`: the relay, when it is damaged;
``slurm-banking ledger restore``). Whoever has the old one open goes on to write it until the next transaction, which
looks first; whoever opens it holds ``ledger.lock`` for that moment, so that nobody opens one file with the log of another.
Who finds the file damaged leaves word in ``ledger.suspect``: see :mod:`slurm_banking.ledger.health`.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import ContextManager, Iterator, List, Optional, Tuple

from slurm_banking.errors import LedgerBusy, LedgerError
from slurm_banking.ledger.migrations import SCHEMA_VERSION, migrate, statements
from slurm_banking.ledger.transaction import Transaction

FILE_NAME = "ledger.sqlite3"
#: Held shared while the file is opened, alone while it is put aside; nothing is ever written to it.
LOCK_NAME = "ledger.lock"
#: Somebody found the file damaged: one line, "DEVICE:INODE what SQLite said".
SUSPECT_NAME = "ledger.suspect"
_SCHEMA = Path(__file__).with_name("schema.sql")

#: slurmctld may wait this long for another process's transaction (architecture, "the ledger's rules").
BUSY_TIMEOUT_SLURMCTLD_MS = 20
BUSY_TIMEOUT_RELAY_MS = 2000

#: Milliseconds that a thread waits for others of its own process, at least; a submission that asks the relay may, before and
#: after. They have the ledger for a fraction of one each, so that this is for crowds: up to 22.05 slurmctld lets in one at a time.
OWN_THREADS_MS = 150

#: Who may not wait for longer than this looks about every millisecond whether another process has let go. Left alone SQLite
#: looks after 1, 3, 8 and 18 ms, and misses the pauses that other writers leave.
_IMPATIENT_MS = 100

#: Pages. The relay checkpoints; this only bounds the WAL while no relay runs (16,384 pages of 4 KiB: 64 MiB).
_AUTOCHECKPOINT_PAGES = 16384


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return "unknown"


class LedgerBroken(LedgerError):
    """The file is damaged: neither waiting nor trying again mends it. The relay puts another one in its place."""


#: SQLITE_CORRUPT and SQLITE_NOTADB; the same in words, for Python before 3.11.
_DAMAGE_CODES = (11, 26)
_DAMAGE_WORDS = ("malformed", "not a database")
#: What only a damaged file makes SQLite or Python say of our own queries, under a code for everything.
_ALSO_DAMAGE = ("no such table", "Could not decode to UTF-8")


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the error says that the file is damaged (not: busy, full, read-only, unreadable)."""
    text = str(error)
    if any(words in text for words in _ALSO_DAMAGE):
        return True
    code: Optional[int] = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _DAMAGE_CODES
    return any(words in text for words in _DAMAGE_WORDS)


def translate(error: sqlite3.Error, path: str) -> LedgerError:
    """As one of ours, in one line."""
    text = str(error)
    if is_damage(error):
        return LedgerBroken(f"ledger {path}: damaged ({text})")
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
        with _nobody_replaces(self.state_dir, self._busy_timeout_ms / 1000):
            try:
                connection = connect(self.path, self.cluster, self._busy_timeout_ms / 1000)
            except LedgerBroken as error:
                self._leave_word(error, _identity_of(self.path))
                raise
            status = os.stat(self.path)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            connection.close()
            raise LedgerError(
                f"ledger {self.path}: owned by uid {status.st_uid} with mode "
                f"{stat.S_IMODE(status.st_mode):04o}; expected uid {os.geteuid()} and 0600"
            )
        if self._busy_timeout_ms <= _IMPATIENT_MS:
            connection.execute("PRAGMA busy_timeout = 1").fetchone()
        self._connection = connection
        self._identity = (status.st_dev, status.st_ino)

    def _failed(self, error: sqlite3.Error) -> LedgerError:
        translated = translate(error, self.path)
        if isinstance(translated, LedgerBroken):
            self._leave_word(translated, self._identity)
        return translated

    def _leave_word(self, error: LedgerError, identity: Tuple[int, int]) -> None:
        """For the relay, which looks every second: which file (it may have been replaced since), and what SQLite said.

        The first word about a file stays.
        """
        path = os.path.join(self.state_dir, SUSPECT_NAME)
        try:
            descriptor = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                line = f"{identity[0]}:{identity[1]} {error}\n"
                os.write(descriptor, line.encode("utf-8", "replace")[:4096])
            finally:
                os.close(descriptor)
        except OSError:
            pass  # there already, or no room: the relay finds the damage itself at the latest when it starts

    def _current_connection(self) -> sqlite3.Connection:
        """The connection, reopened if the file was deleted or replaced under it."""
        identity = _identity_of(self.path)
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
        if not self._mutex.acquire(timeout=max(self._busy_timeout_ms, OWN_THREADS_MS) / 1000):
            raise LedgerBusy(f"ledger {self.path}: busy (another thread)")
        try:
            try:
                connection = self._current_connection()
                if write:
                    _begin(connection, self._busy_timeout_ms / 1000)
                else:
                    connection.execute("BEGIN")
            except sqlite3.Error as error:
                raise self._failed(error) from error
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
                    raise self._failed(error) from error
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
                raise self._failed(error) from error

    def backup(self, target: str) -> None:
        """A consistent copy through SQLite's own interface, while everything goes on; see :func:`copy`."""
        copy(self.path, target)

    def close(self) -> None:
        with self._mutex:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def _begin(connection: sqlite3.Connection, wait_s: float) -> None:
    """``BEGIN IMMEDIATE``, tried until then; each time SQLite waits as long as its connection says."""
    until = time.monotonic() + wait_s
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if time.monotonic() >= until or not isinstance(translate(error, ""), LedgerBusy):
                raise


def _identity_of(path: str) -> Tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return (status.st_dev, status.st_ino)


# -- the file itself ----------------------------------------------------------------------------------------------------


def connect(path: str, cluster: str, timeout_s: float) -> sqlite3.Connection:
    """Open a ledger file for writing; made if there is none, brought up to this schema if it is older.

    :raises LedgerBroken: it is damaged. :raises LedgerError: it is another cluster's, newer, or cannot be opened.
    """
    old_umask = None
    if not os.path.exists(path):
        # The mode is given at creation; umask is the process's, so only changed when a file is made (once).
        old_umask = os.umask(0o077)
    try:
        connection = sqlite3.connect(
            path,
            timeout=timeout_s,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            _prepare(connection, path, cluster)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise translate(error, path) from error
    except OSError as error:
        raise LedgerError(f"ledger {path}: {error.strerror}") from error
    finally:
        if old_umask is not None:
            os.umask(old_umask)
    return connection


def _prepare(connection: sqlite3.Connection, path: str, cluster: str) -> None:
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_AUTOCHECKPOINT_PAGES}").fetchone()
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("BEGIN IMMEDIATE")
    try:
        _create_or_check(connection, path, cluster)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _create_or_check(connection: sqlite3.Connection, path: str, cluster: str) -> None:
    tables = {
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    if not tables:
        for statement in statements(_SCHEMA.read_text("utf-8")):
            connection.execute(statement)
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [
                ("schema", SCHEMA_VERSION),
                ("cluster", cluster),
                ("created", str(int(time.time()))),
                ("boot_id", _boot_id()),
                ("complete", "0"),
            ],
        )
        return
    if "meta" not in tables:
        raise LedgerBroken(f"ledger {path}: damaged (it has tables, and not the one named meta)")
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    if meta.get("cluster") != cluster:
        raise LedgerError(
            f"ledger {path}: belongs to cluster {meta.get('cluster')!r}, not {cluster!r}"
        )
    migrate(connection, path, meta.get("schema"))
    if meta.get("boot_id") != _boot_id():
        # The host went down since: what was committed last may be gone (synchronous = NORMAL). Compare first.
        connection.execute("UPDATE meta SET value = '0' WHERE key = 'complete'")
        connection.execute("UPDATE meta SET value = ? WHERE key = 'boot_id'", (_boot_id(),))


@contextmanager
def _lock(state_dir: str, how: int, wait_s: float) -> Iterator[None]:
    path = os.path.join(state_dir, LOCK_NAME)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}") from error
    try:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= until:
                    raise LedgerBusy(f"{path}: held by another process") from None
                time.sleep(0.002)
        yield
    finally:
        os.close(descriptor)


def _nobody_replaces(state_dir: str, wait_s: float) -> ContextManager[None]:
    return _lock(state_dir, fcntl.LOCK_SH, wait_s)


def install(state_dir: str, new: str, aside: str, wait_s: float = 5.0) -> None:
    """Put the ledger file ``new`` (closed, nothing beside it, in the same directory) in the place of the present one.

    ``aside``: the path under which the present one, if there is any, is kept with what SQLite has beside it; nothing is
    deleted. Only for the process that holds the relay's lock. slurmctld may go on: its next transaction opens the new file.

    :raises LedgerError: something has that name already, or cannot be renamed; then all is as it was.
    """
    path = os.path.join(state_dir, FILE_NAME)
    done: List[Tuple[str, str]] = []
    if os.path.lexists(new + "-wal"):
        raise LedgerError(f"ledger {new}: its log is beside it: expected a file that is closed")
    with _lock(state_dir, fcntl.LOCK_EX, wait_s):
        try:
            if os.path.lexists(path):
                # The name stays in use until the rename: nobody who looks meanwhile finds none and makes one.
                os.link(path, aside)
                done.append(("", aside))
            for beside in ("-wal", "-shm"):
                if os.path.lexists(path + beside):
                    os.rename(path + beside, aside + beside)
                    done.append((path + beside, aside + beside))
            os.rename(new, path)
        except OSError as error:
            for before, after in reversed(done):
                if before:
                    os.rename(after, before)
                else:
                    os.unlink(after)  # the second name; the file stays under its first
            raise LedgerError(f"ledger {path}: {aside}: {error.strerror}") from error
        _sync(state_dir)


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


#: Pages of a copy between two pauses, and the pause: at most 100 MB a second, since slurmctld writes to that disk, too.
_COPY_PAGES = 128
_COPY_PAUSE_S = 0.005


def copy(source: str, target: str) -> None:
    """A consistent copy in one file, through SQLite's own interface; of ``source`` as it is when this begins.

    On a connection of its own, in one read transaction: that holds up no writer, in this process or another (what they
    write meanwhile waits in the log), and they do not make it begin anew.

    :raises LedgerBroken, LedgerError: as :func:`connect` does; ``target`` may then hold a part.
    """
    try:
        reader = sqlite3.connect(read_only(source), uri=True, timeout=2.0, isolation_level=None)
        try:
            reader.execute("BEGIN")
            reader.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            writer = sqlite3.connect(target, isolation_level=None)
            try:
                # Its own "sleep" is for a locked source alone.
                reader.backup(
                    writer, pages=_COPY_PAGES, progress=lambda *_: time.sleep(_COPY_PAUSE_S)
                )
                writer.execute("PRAGMA journal_mode = DELETE").fetchone()  # one file, all of it
            finally:
                writer.close()
        finally:
            reader.close()
    except sqlite3.Error as error:
        raise translate(error, source) from error


def read_only(path: str) -> str:
    """The URI that makes SQLite open it for reading only."""
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return f"file:{quoted}?mode=ro"


def mark_as_restored(path: str, cluster: str) -> None:
    """Of a file that is nobody's ledger yet: what it says was so once. It is compared with Slurm before it decides.

    It is another ledger than the one that the backup was made of: the delivery book speaks of that one's runs by number.
    And no funds in it are relied on before the bank was asked.
    """
    connection = connect(path, cluster, 1.0)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE meta SET value = '0' WHERE key = 'complete'")
        connection.execute("DELETE FROM meta WHERE key = 'identity'")
        connection.execute("UPDATE funds SET read_at = 0")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise translate(error, path) from error
    finally:
        connection.close()
