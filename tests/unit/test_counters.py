# SPDX-License-Identifier: BSD-3-Clause
"""What slurmctld counts: exact, kept over restarts, and no business of a decision's."""

from __future__ import annotations

import os
import re
import resource
import shutil
import threading
import time
from pathlib import Path

import pytest

from slurm_banking import counters, state_dir
from slurm_banking.counters import BOUNDS_US, Counters, read
from slurm_banking.records import Outcome, Reason

ROOT = Path(__file__).resolve().parents[2]


class Counting:
    """Counters over a real directory, and what they complained of."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.path = directory / counters.FILE_NAME
        self.told: list[str] = []
        self.counters = self.started()

    def started(self) -> Counters:
        made = Counters(self.told.append)
        made.use(str(self.directory))
        return made

    def accept(self, times: int = 1) -> None:
        for _ in range(times):
            self.counters.decided("submit", "accepted", "fits")
            self.counters.took("submit", 250)

    @property
    def accepted(self) -> int:
        reading = read(str(self.directory))
        assert reading is not None
        return reading.decisions["submit", "accepted", "fits"]


@pytest.fixture
def counting(tmp_path: Path) -> Counting:
    return Counting(tmp_path / "state")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at in each call, as it is once a second."""
    monkeypatch.setattr(counters, "LOOK_S", 0.0)
    monkeypatch.setattr(counters, "RETRY_S", 0.0)


def test_what_is_counted_is_read(counting: Counting) -> None:
    counting.counters.decided("update", "would_refuse", "insufficient_funds")
    counting.counters.settled("run_ended", "charged")
    counting.counters.asked(True)
    counting.counters.asked(False)
    counting.counters.asked(False)
    counting.counters.took("update", 1_500, failed=True)
    before = int(time.time())
    reading = read(str(counting.directory))
    assert reading is not None and before - 5 <= reading.created <= before
    told = {key for key, count in reading.decisions.items() if count}
    assert told == {("update", "would_refuse", "insufficient_funds")}
    assert {key: count for key, count in reading.runs.items() if count} == {("run_ended", "charged"): 1}  # fmt: skip
    assert (reading.asked_fresh, reading.asked_in_vain) == (1, 2)
    assert reading.failed == {"submit": 0, "update": 1, "run_ended": 0, "run_started": 0}
    assert (reading.times["update"].count, reading.times["update"].sum_us) == (1, 1_500)
    assert reading.times["submit"].count == 0


@pytest.mark.parametrize("elapsed_us", [0, 99, 100, 101, 1_000, 1_001, 250_000, 250_001, 2**31 - 1])
def test_a_call_falls_into_the_bucket_of_its_time(counting: Counting, elapsed_us: int) -> None:
    counting.counters.took("run_ended", elapsed_us)
    reading = read(str(counting.directory))
    assert reading is not None
    buckets = reading.times["run_ended"].buckets
    (at,) = (at for at, count in enumerate(buckets) if count)
    assert len(buckets) == len(BOUNDS_US) + 1 and sum(buckets) == 1
    assert at == len(BOUNDS_US) or elapsed_us <= BOUNDS_US[at]
    assert at == 0 or elapsed_us > BOUNDS_US[at - 1]


def test_counts_go_on_over_a_restart(counting: Counting) -> None:
    counting.accept(3)
    reading = read(str(counting.directory))
    assert reading is not None
    os.utime(counting.path, (0, 0))
    counting.counters = counting.started()
    counting.accept(2)
    after = read(str(counting.directory))
    assert after is not None and counting.accepted == 5
    assert after.created == reading.created and after.times["submit"].sum_us == 5 * 250


def test_the_file_is_slurm_users_alone_and_one_page(counting: Counting) -> None:
    old_umask = os.umask(0)
    try:
        counting.accept()
    finally:
        os.umask(old_umask)
    status = counting.path.stat()
    assert status.st_mode & 0o777 == 0o600 and status.st_size == counters.PAGE_BYTES
    counting.path.chmod(0o644)
    counting.counters = counting.started()
    counting.accept()
    assert counting.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\0" * counters.PAGE_BYTES,
        b"\xff" * counters.PAGE_BYTES,
        os.urandom(counters.PAGE_BYTES),
    ],
)
def test_what_is_no_page_of_counters_is_written_over(counting: Counting, content: bytes) -> None:
    counting.path.write_bytes(content)
    assert read(str(counting.directory)) is None
    counting.accept(2)
    assert counting.accepted == 2 and counting.told == []


def test_a_page_with_an_absurd_count_is_not_gone_on_with(counting: Counting) -> None:
    counting.accept()
    page = bytearray(counting.path.read_bytes())
    page[-8:] = b"\xff" * 8
    counting.path.write_bytes(page)
    counting.counters = counting.started()
    counting.accept()
    assert counting.accepted == 1


def test_a_file_cut_short_under_the_counters_hurts_nobody_and_is_whole_again(
    counting: Counting,
) -> None:
    counting.accept(3)
    os.truncate(counting.path, 0)
    assert read(str(counting.directory)) is None
    counting.accept()
    assert counting.accepted == 4 and counting.told == []


@pytest.mark.usefixtures("impatient")
def test_a_state_directory_made_anew_has_the_counts_again(counting: Counting) -> None:
    counting.accept(3)
    shutil.rmtree(counting.directory)
    counting.accept()
    assert len(counting.told) == 1 and "does not exist" in counting.told[0]
    counting.directory.mkdir(mode=0o700)
    counting.accept()
    assert counting.accepted == 5


def test_another_state_directory_is_counted_in_from_then_on(
    counting: Counting, tmp_path: Path
) -> None:
    counting.accept(3)
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    counting.counters.use(str(other))
    counting.accept()
    reading = read(str(other))
    assert reading is not None and reading.decisions["submit", "accepted", "fits"] == 4
    assert counting.accepted == 3


def _nothing_there(counting: Counting) -> str:
    counting.directory.rmdir()
    return next(iter(state_dir.check(str(counting.directory), os.geteuid())))


def _open_to_others(counting: Counting) -> str:
    counting.directory.chmod(0o777)
    return f"{counting.directory}: mode 0777: expected 0700: chmod 700 {counting.directory}"


def _a_directory(counting: Counting) -> str:
    counting.path.mkdir()
    return "Is a directory"


def _a_link(counting: Counting) -> str:
    (counting.directory / "elsewhere").write_bytes(b"precious")
    counting.path.symlink_to("elsewhere")
    return "Too many levels of symbolic links"


def _a_pipe(counting: Counting) -> str:
    os.mkfifo(counting.path)
    return "expected a file of SlurmUser"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "broken", [_nothing_there, _open_to_others, _a_directory, _a_link, _a_pipe]
)
def test_a_file_that_cannot_be_used_is_told_once_and_counted_nowhere(
    counting: Counting, broken: object
) -> None:
    assert callable(broken)
    problem = broken(counting)
    counting.accept(5)
    assert counting.told == [f"path={counting.path} problem={problem}"]
    assert read(str(counting.directory)) is None
    if counting.path.is_symlink():
        assert (counting.directory / "elsewhere").read_bytes() == b"precious"


@pytest.mark.usefixtures("impatient")
def test_a_write_that_fails_is_told_once_and_counted_when_it_works_again(
    counting: Counting,
) -> None:
    counting.accept()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # as on a full disk
    try:
        counting.accept(3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert counting.told == [f"path={counting.path} problem=File too large"]
    assert counting.accepted == 1
    counting.accept()
    assert counting.accepted == 5 and len(counting.told) == 1


def test_nothing_is_written_on_a_network_file_system_which_could_hang(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_dir, "file_system", lambda *_, **__: "nfs4")
    counting.accept(2)
    assert len(counting.told) == 1 and "on a network file system (nfs4)" in counting.told[0]
    assert not counting.path.exists()


def test_what_is_not_known_is_counted_as_other_and_never_raises(counting: Counting) -> None:
    counting.counters.decided("submit", "refused", "a_reason_of_tomorrow")
    counting.counters.decided("nosuch", "refused", "fits")
    counting.counters.settled("run_ended", "a_result_of_tomorrow")
    counting.counters.took("nosuch", 5)
    counting.counters.took("submit", 5)
    reading = read(str(counting.directory))
    assert reading is not None
    assert reading.decisions["submit", "refused", "other"] == sum(reading.decisions.values()) == 1
    assert reading.runs["run_ended", "other"] == 1
    assert len(counting.told) == 1 and "nosuch" in counting.told[0]


def test_threads_at_once_lose_no_count(counting: Counting) -> None:
    threads = [threading.Thread(target=counting.accept, args=(500,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counting.accepted == 4_000
    reading = read(str(counting.directory))
    assert reading is not None and reading.times["submit"].sum_us == 4_000 * 250


def test_what_one_thread_counts_while_another_writes_is_in_the_file_when_both_are_done(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting.accept()
    pwrite = os.pwrite

    def and_meanwhile(descriptor: int, page: bytes, at: int) -> int:
        written = pwrite(descriptor, page, at)
        monkeypatch.setattr(os, "pwrite", pwrite)
        other = threading.Thread(target=counting.accept)
        other.start()
        other.join(5)
        assert not other.is_alive()  # it waits for nobody's write
        return written

    monkeypatch.setattr(os, "pwrite", and_meanwhile)
    counting.accept()
    assert counting.accepted == 3


def test_everything_that_is_decided_has_a_place_of_its_own() -> None:
    assert {reason.value for reason in Reason} == set(counters.REASONS) - {"other"}
    assert {outcome.value for outcome in Outcome} == set(counters.OUTCOMES) - {"would_refuse"}
    kinds: set[str] = set()
    for name in ("settle.py", "ledger/transaction.py"):
        text = (ROOT / "slurm_banking" / name).read_text()
        kinds |= set(re.findall(r'EndResult\(\s*kind="(\w+)"', text))
    assert {"charged", "returned"} <= kinds <= set(counters.RESULTS)
    text = (ROOT / "slurm_banking" / "boundary" / "engine.py").read_text()
    told = set(re.findall(r'self\._told\("run_\w+", "(\w+)"', text))
    assert {"exempt", "to_rescan"} <= told <= set(counters.RESULTS)


def test_places_in_the_file_never_move(counting: Counting) -> None:
    """A page that an older version wrote is read by this one: append names, and change the version with the layout."""
    assert counters.REASONS[:4] == ("other", "fits", "unlimited_funds", "not_banked")
    assert (counters.REASONS.index("ledger_unavailable"), counters.REASONS.index("disabled")) == (20, 21)  # fmt: skip
    assert (counters.RESULTS.index("charged"), counters.RESULTS.index("unrecorded")) == (1, 12)
    assert len(BOUNDS_US) == 13 and BOUNDS_US[0] == 100 and BOUNDS_US[-1] == 250_000
    counting.counters.decided("update", "undecided", "ledger_unavailable")
    counting.counters.settled("run_started", "started")
    counting.counters.took("run_ended", 300, failed=True)
    words = memoryview(counting.path.read_bytes()).cast("Q")
    places = {at: words[at] for at in range(8, len(words)) if words[at]}
    assert places == {220: 1, 291: 1, 330: 1, 343: 300, 362: 1}


def test_counting_a_call_costs_microseconds(counting: Counting) -> None:
    """Generous by ten times: what waits for a disk, or opens the file each time, is above it."""
    counting.accept(100)
    best_s = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        counting.accept(50)
        best_s = min(best_s, (time.perf_counter() - started) / 50)
    assert best_s < 50e-6
