# SPDX-License-Identifier: BSD-3-Clause
"""What the hooks did and how long they took, counted by the process in slurmctld in one page of a file of its own.

slurmctld opens no socket for this and writes nothing into the ledger: each hook call adds to an array in memory and writes
its 4 KiB over the file ``counters`` in the state directory, which the relay reads. The page is written, not mapped: a mapped
file that somebody truncates, or a full disk under it, would kill the process that counts (SIGBUS); a write that fails is an
OSError. Whatever fails here is told once and is never a decision's business.

The page is 512 unsigned words of 64 bits in the host's byte order, little-endian where Slurm runs; a page of the other order
has another magic word. :data:`REASONS` and :data:`RESULTS` are positions in the file: append to them, never reorder.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from bisect import bisect_left
from dataclasses import dataclass
from typing import Callable, Dict, Mapping, Optional, Tuple

from slurm_banking import state_dir

FILE_NAME = "counters"
PAGE_BYTES = 4096

_MAGIC = int.from_bytes(b"SLBKCNT1", "big")
_VERSION = 1

#: A count of this size was not counted.
_ABSURD = 2**62

HOOKS = ("submit", "update", "run_ended", "run_started")
#: What :func:`Counters.decided` counts by; "would_refuse": accepted, since ``enforce = "log"``.
DECIDING = ("submit", "update")
OUTCOMES = ("accepted", "refused", "undecided", "would_refuse")
#: The reasons of verdicts, and "other" for one that is not here.
REASONS = (
    "other",
    "fits",
    "unlimited_funds",
    "not_banked",
    "exempt",
    "allowed",
    "free_partition",
    "not_checked",
    "insufficient_funds",
    "insufficient_user_funds",
    "unpriced_partition",
    "unknown_account",
    "unknown_user",
    "no_allocation",
    "no_account",
    "not_associated",
    "unlimited_time",
    "queue_full",
    "malformed",
    "funds_unknown",
    "ledger_unavailable",
    "disabled",
)
#: What became of a run that Slurm told of.
RESULTS = (
    "other",
    "charged",
    "restated",
    "duplicate",
    "voided",
    "resized",
    "returned",
    "ignored",
    "exempt",
    "conflict",
    "to_rescan",
    "started",
    "unrecorded",
)

#: Upper bounds of the histogram's buckets in microseconds, each included; a last bucket has what took longer.
BOUNDS_US = (
    100,
    200,
    300,
    500,
    1_000,
    2_000,
    3_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    250_000,
)

# Where things are in the page, in words.
_CREATED = 2
_DECISIONS = 8
_ROOM_REASONS = 32
_RUNS = _DECISIONS + len(DECIDING) * len(OUTCOMES) * _ROOM_REASONS
_ROOM_RESULTS = 16
_TIMES = _RUNS + 2 * _ROOM_RESULTS
_ROOM_TIMES = 16  #: the buckets, and in the last word the sum in microseconds
_FAILED = _TIMES + len(HOOKS) * _ROOM_TIMES
_QUESTIONS = _FAILED + 8

_DECISION_AT: Mapping[Tuple[str, str, str], int] = {
    (hook, outcome, reason): _DECISIONS
    + (hook_at * len(OUTCOMES) + outcome_at) * _ROOM_REASONS
    + reason_at
    for hook_at, hook in enumerate(DECIDING)
    for outcome_at, outcome in enumerate(OUTCOMES)
    for reason_at, reason in enumerate(REASONS)
}
_RUN_AT: Mapping[Tuple[str, str], int] = {
    (hook, result): _RUNS + hook_at * _ROOM_RESULTS + result_at
    for hook_at, hook in enumerate(HOOKS[2:])
    for result_at, result in enumerate(RESULTS)
}
_TIME_AT: Mapping[str, int] = {
    hook: _TIMES + hook_at * _ROOM_TIMES for hook_at, hook in enumerate(HOOKS)
}
_SUM = _ROOM_TIMES - 1

#: Seconds between two looks whether the file is still there, and between two tries to open one that cannot be used.
LOOK_S = 1.0
RETRY_S = 30.0


class Counters:
    """Nothing here raises. Called on several threads at once.

    :param complain: takes the one line about a file that cannot be used, once for each problem.
    """

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self._page = bytearray(PAGE_BYTES)
        self._words = memoryview(self._page).cast("Q")
        self._counting = threading.Lock()  #: held for memory only
        self._writing = threading.Lock()  #: held over the file; nobody waits for it
        self._unwritten = False
        self._wanted_dir = ""
        self._used_dir = ""
        self._descriptor = -1
        self._look_at = 0.0
        self._problem = ""  #: with the file, until it is written again
        self._mistake = ""  #: of ours

    def use(self, directory: str) -> None:
        """Keep the file there. The first one that is found is gone on with; after that, memory knows better."""
        if directory != self._wanted_dir:
            self._wanted_dir = directory
            self._look_at = 0.0

    def decided(self, hook: str, outcome: str, reason: str) -> None:
        at = _DECISION_AT.get((hook, outcome, reason))
        if at is None:
            at = _DECISION_AT.get((hook, outcome, REASONS[0]))
        self._add(at)

    def settled(self, hook: str, result: str) -> None:
        at = _RUN_AT.get((hook, result))
        self._add(_RUN_AT.get((hook, RESULTS[0])) if at is None else at)

    def asked(self, fresh: bool) -> None:
        """The relay was asked for the bank's word, which it then had or had not."""
        self._add(_QUESTIONS if fresh else _QUESTIONS + 1)

    def took(self, hook: str, elapsed_us: int, *, failed: bool = False) -> None:
        """A call ended; what it counted is written. ``failed``: it raised, C decided."""
        try:
            at = _TIME_AT[hook]
            with self._counting:
                words = self._words
                words[at + bisect_left(BOUNDS_US, elapsed_us)] += 1
                words[at + _SUM] += elapsed_us
                if failed:
                    words[_FAILED + HOOKS.index(hook)] += 1
            self.write()
        except Exception as error:
            if repr(error) != self._mistake:
                self._mistake = repr(error)
                self._complain(f"hook={hook} problem={error!r}")

    def write(self) -> None:
        """Write what was counted; if another thread does just now, it also writes this."""
        self._unwritten = True
        for _ in range(3):
            if not self._unwritten or not self._writing.acquire(blocking=False):
                return
            try:
                self._unwritten = False
                self._write()
            finally:
                self._writing.release()

    def close(self) -> None:
        with self._writing:
            self._close()

    def _add(self, at: Optional[int]) -> None:
        if at is None:
            return
        with self._counting:
            self._words[at] += 1

    # -- the file; with the lock for writing ------------------------------------------------------------------------

    def _write(self) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look(now)
        if self._descriptor < 0:
            return
        try:
            written = os.pwrite(self._descriptor, self._page, 0)
        except OSError as error:
            self._cannot(now, error)
            return
        if written == PAGE_BYTES:
            self._problem = ""
        else:
            self._cannot(now, OSError(0, "written in part"))

    def _look(self, now: float) -> None:
        """Open the file, or see whether it is still in its place: the state directory may have been made anew."""
        self._look_at = now + LOOK_S
        try:
            if self._descriptor >= 0:
                if self._used_dir == self._wanted_dir and os.fstat(self._descriptor).st_nlink:
                    return
                self._close()
            if self._wanted_dir:
                self._open(self._wanted_dir)
        except OSError as error:
            self._cannot(now, error)

    def _open(self, directory: str) -> None:
        """:raises OSError: the directory or the file is not fit."""
        problems = state_dir.check(
            directory, os.geteuid()
        )  # where the ledger may not be: a hung mount
        if problems:
            raise OSError(0, problems[0])
        descriptor = os.open(
            os.path.join(directory, FILE_NAME),
            os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK,
            0o600,
        )
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise OSError(0, "expected a file of SlurmUser")
            if status.st_mode & 0o077:
                os.fchmod(descriptor, 0o600)
            self._adopt(os.pread(descriptor, PAGE_BYTES, 0))
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self._used_dir = directory

    def _adopt(self, page: bytes) -> None:
        """Go on with what the last process counted, if this one has not begun to write; what is no page is written over."""
        with self._counting:
            words = self._words
            if words[0] == _MAGIC:
                return
            if _fit(page):
                for at, count in enumerate(memoryview(page).cast("Q")):
                    if at >= _DECISIONS:
                        words[at] += count
                    else:
                        words[at] = count
            else:
                words[1] = _VERSION
                words[_CREATED] = int(time.time())
            words[0] = _MAGIC

    def _cannot(self, now: float, error: OSError) -> None:
        self._close()
        self._look_at = now + RETRY_S
        path = os.path.join(self._wanted_dir, FILE_NAME)
        problem = f"path={path} problem={error.strerror}"
        if problem != self._problem:
            self._problem = problem
            self._complain(problem)

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def _fit(page: bytes) -> bool:
    if len(page) != PAGE_BYTES:
        return False
    words = memoryview(page).cast("Q")
    return words[0] == _MAGIC and words[1] == _VERSION and max(words[_CREATED:]) < _ABSURD


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """How long the calls of one hook took."""

    buckets: Tuple[
        int, ...
    ]  #: calls up to each of BOUNDS_US and above the one before; last, the longer ones
    sum_us: int

    @property
    def count(self) -> int:
        return sum(self.buckets)


@dataclass(frozen=True)
class Reading:
    """The counters at one moment."""

    created: int  #: since when is counted (unix seconds)
    decisions: Mapping[Tuple[str, str, str], int]  #: by hook, outcome, reason
    runs: Mapping[Tuple[str, str], int]  #: by hook, result
    times: Mapping[str, Times]  #: by hook
    failed: Mapping[str, int]  #: by hook: calls that raised
    asked_fresh: int
    asked_in_vain: int


def read(directory: str) -> Optional[Reading]:
    """None: there is no such file, or it is none of this version."""
    try:
        descriptor = os.open(
            os.path.join(directory, FILE_NAME),
            os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK,
        )
    except OSError:
        return None
    try:
        page = os.pread(descriptor, PAGE_BYTES, 0)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if not _fit(page):
        return None
    words = memoryview(page).cast("Q")
    times: Dict[str, Times] = {}
    for hook, at in _TIME_AT.items():
        buckets = tuple(words[at : at + len(BOUNDS_US) + 1])
        times[hook] = Times(buckets=buckets, sum_us=words[at + _SUM])
    return Reading(
        created=words[_CREATED],
        decisions={key: words[at] for key, at in _DECISION_AT.items()},
        runs={key: words[at] for key, at in _RUN_AT.items()},
        times=times,
        failed={hook: words[_FAILED + at] for at, hook in enumerate(HOOKS)},
        asked_fresh=words[_QUESTIONS],
        asked_in_vain=words[_QUESTIONS + 1],
    )


assert len(BOUNDS_US) < _SUM and _QUESTIONS + 2 <= PAGE_BYTES // 8
assert len(REASONS) <= _ROOM_REASONS and len(RESULTS) <= _ROOM_RESULTS
