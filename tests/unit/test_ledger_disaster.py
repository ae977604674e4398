# SPDX-License-Identifier: BSD-3-Clause
"""A damaged ledger decides nothing, is moved aside whole, and another takes its place; backups; jobs that ran away."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slurm_banking.cli import main
from slurm_banking.errors import LedgerBusy, LedgerError, SlurmUnavailable
from slurm_banking.ledger import Ledger, health, store
from slurm_banking.records import Outcome, Reason, Run
from slurm_banking.relay import sweep
from slurm_banking.slurm import runaway
from slurm_banking.slurm.squeue import QueueSnapshot
from tests.builders import a_run, a_submission, funds_of
from tests.unit.relay_parts import Relay
from tests.unit.test_engine import Site as EngineSite
from tests.unit.test_relay_daemon import PYTHON, SLURM, staged
from tests.unit.test_relay_daemon import Site as RelaySite
from tests.unit.test_sweep import BOOT, Site, a_job, an_ended, started

PAGE = 4096


def fill(ledger: Ledger, runs: int = 300) -> None:
    with ledger.transaction() as tx:
        tx.put_funds(funds_of("fc_alpha", 10_000_000))
        for job_id in range(1, runs + 1):
            tx.end_run(
                a_run(job_id=job_id),
                charge_csu=100,
                share_csu=100,
                inputs={"cpus": 1},
                actor="test",
            )


def fill_one(ledger: Ledger, job_id: int) -> None:
    with ledger.transaction() as tx:
        tx.end_run(a_run(job_id=job_id), charge_csu=1, share_csu=1, inputs={}, actor="test")


def damage(path: Path, first_page: int = 3) -> None:
    """Garbage over every page from ``first_page`` on (the first is page 1), as a broken disk may leave it.

    The file is opened past SQLite here, while others have it open: by tests alone.
    """
    pages = path.stat().st_size // PAGE
    assert pages > first_page, "nothing in the file yet: everything is in its log"
    with open(path, "r+b") as file:
        file.seek((first_page - 1) * PAGE)
        file.write(os.urandom((pages - first_page + 1) * PAGE))


def closed_ledger(state_dir: Path) -> Path:
    ledger = Ledger(str(state_dir), "c", check_directory=False)
    fill(ledger)
    ledger.close()
    return state_dir / store.FILE_NAME


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """As the ledger demands it: a directory of nobody else's."""
    made = tmp_path / "state"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def relay_site() -> Iterator[RelaySite]:
    if os.geteuid() != 0:
        pytest.skip("needs root to become SlurmUser")
    with tempfile.TemporaryDirectory(prefix="sbr-") as directory:
        os.chmod(directory, 0o755)
        yield RelaySite(Path(directory), "http://127.0.0.1:9/api")


def asides(state_dir: Path) -> list[str]:
    return [os.path.basename(path) for path in health.kept_aside(str(state_dir))]


def charges(path: str | Path) -> int:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    (count,) = connection.execute("SELECT COUNT(*) FROM runs").fetchone()
    connection.close()
    return int(count)


# -- when the relay starts ----------------------------------------------------------------------------------------------


def test_a_whole_ledger_is_opened_as_it_is(state_dir: Path) -> None:
    closed_ledger(state_dir)
    ledger, notes = health.open_for_relay(str(state_dir), "c")
    assert (list(notes), asides(state_dir)) == ([], [])
    assert charges(ledger.path) == 300
    assert list(health.Guard(ledger, notes).alarms()) == []


@pytest.mark.parametrize("how", ["pages", "header", "text", "trigger", "meta", "half"])
def test_a_damaged_ledger_is_moved_aside_and_another_begun(state_dir: Path, how: str) -> None:
    path = closed_ledger(state_dir)
    if how == "pages":
        damage(path)
    elif how == "header":
        damage(path, 1)
    elif how == "text":
        path.write_text("no database" * 1000)
    elif how == "half":
        os.truncate(path, path.stat().st_size // 2)
    else:
        connection = sqlite3.connect(path)
        connection.execute(
            "DROP TRIGGER entries_no_delete" if how == "trigger" else "DROP TABLE meta"
        )
        connection.commit()
        connection.close()
    content = path.read_bytes()
    ledger, notes = health.open_for_relay(str(state_dir), "c")
    (aside,) = asides(state_dir)
    assert (state_dir / aside).read_bytes() == content, "kept as it was"
    with ledger.transaction() as tx:
        assert not tx.complete, "Slurm is asked before anything is decided"
        assert tx.entries_by_account("fc_alpha") == []
    guard = health.Guard(ledger, notes)
    assert len(guard.alarms()) == 1 and aside in guard.alarms()[0]
    os.rename(state_dir / aside, state_dir.parent / aside)
    assert list(guard.alarms()) == [], "an operator took it away"


def test_a_file_that_is_still_open_is_not_put_in_place(state_dir: Path) -> None:
    """Part of it is in its log, which would stay behind."""
    path = closed_ledger(state_dir)
    inode = path.stat().st_ino
    new = store.connect(str(path) + ".new", "c", 1.0)
    with pytest.raises(LedgerError, match="its log is beside it"):
        store.install(str(state_dir), str(path) + ".new", str(path) + ".aside")
    new.close()
    assert path.stat().st_ino == inode and not (state_dir / (path.name + ".aside")).exists()


def test_a_relay_that_starts_on_a_damaged_ledger_says_so_in_status_and_rebuilds(
    relay_site: RelaySite,
) -> None:
    state_dir = relay_site.directory / "state"
    path = state_dir / store.FILE_NAME
    path.write_text("no database")
    path.chmod(0o600)
    os.chown(path, SLURM, SLURM)
    with relay_site.running():
        relay_site.wait(lambda: relay_site.status().get("ledger_complete"))
        (alarm,) = relay_site.status()["alarms"]
        assert "was damaged and rebuilt" in alarm
        (aside,) = asides(state_dir)
        assert aside in alarm and (state_dir / aside).read_text() == "no database"
        os.rename(state_dir / aside, relay_site.directory / aside)
        relay_site.wait(lambda: not relay_site.status()["alarms"])
    assert "ledger_moved_aside" in relay_site.told()


def test_what_was_in_the_log_alone_is_moved_with_the_file(state_dir: Path) -> None:
    killed = Ledger(str(state_dir), "c", check_directory=False)
    fill(killed)  # never checkpointed, never closed: all of it is in the log
    aside = health.move_aside(str(state_dir), "c", "a test")
    assert charges(aside) == 300, "readable for later"
    assert charges(state_dir / store.FILE_NAME) == 0
    killed.close()


def test_sums_that_do_not_add_up_in_a_whole_file_are_told_and_nothing_is_moved(
    state_dir: Path,
) -> None:
    path = closed_ledger(state_dir)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE exposure SET amount_csu = amount_csu + 1 WHERE user_id = -1")
    connection.commit()
    connection.close()
    ledger, notes = health.open_for_relay(str(state_dir), "c")
    assert asides(state_dir) == [] and charges(ledger.path) == 300
    (alarm,) = health.Guard(ledger, notes).alarms()
    assert "does not add up" in alarm and "fc_alpha" in alarm


def test_the_look_ends_when_its_time_is_up(state_dir: Path) -> None:
    path = closed_ledger(state_dir)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE big (text TEXT)")
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) "
        "INSERT INTO big SELECT 'some text to fill a page with, number ' || i FROM n"
    )
    connection.commit()
    connection.close()
    findings = health.examine(str(path), thorough=True, budget_s=0.0)
    assert not findings.finished and not findings.good and not findings.damage
    assert findings.took_s < 5.0


def test_one_that_breaks_again_and_again_is_left_alone(state_dir: Path) -> None:
    for _ in range(health.FLAPPING):
        damage(closed_ledger(state_dir))
        health.open_for_relay(str(state_dir), "c")[0].close()
    damage(closed_ledger(state_dir))
    with pytest.raises(LedgerError, match="times within an hour"):
        health.open_for_relay(str(state_dir), "c")
    assert len(asides(state_dir)) == health.FLAPPING


def test_a_ledger_of_another_cluster_is_no_damage(state_dir: Path) -> None:
    closed_ledger(state_dir)
    with pytest.raises(LedgerError, match="belongs to cluster"):
        health.open_for_relay(str(state_dir), "d")
    assert asides(state_dir) == []


# -- while everything runs ----------------------------------------------------------------------------------------------


def test_slurmctld_decides_nothing_by_a_damaged_ledger_and_goes_on_with_the_next(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o755)
    site = EngineSite(tmp_path)
    site.give(100_000)
    assert site.engine.submit(a_submission()).outcome is Outcome.ACCEPTED
    fill(site.ledger)
    site.ledger.checkpoint()
    with site.ledger.transaction() as tx:
        tx.set_meta("x", "y")  # whoever has pages in memory reads them again
    damage(Path(site.ledger.path))
    verdict = site.engine.submit(a_submission())
    assert (verdict.outcome, verdict.reason) == (Outcome.UNDECIDED, Reason.LEDGER_UNAVAILABLE)
    site.engine.run_ended(a_run(job_id=999))
    assert "999" in (site.state / "rescan").read_text(), "settled from slurmdbd later"

    guard = health.Guard(site.ledger)
    assert guard.suspected() and guard.mend() and not guard.suspected()
    assert len(asides(site.state)) == 1
    assert site.engine.submit(a_submission()).outcome is Outcome.UNDECIDED, "not rebuilt yet"
    site.give(100_000)  # complete
    assert site.engine.submit(a_submission()).outcome is Outcome.ACCEPTED
    site.engine.run_ended(a_run(job_id=998))
    assert charges(site.ledger.path) == 1


def test_word_about_a_file_that_was_replaced_since_moves_nothing(state_dir: Path) -> None:
    path = closed_ledger(state_dir)
    ledger = Ledger(str(state_dir), "c", check_directory=False)
    (state_dir / store.SUSPECT_NAME).write_text(f"{path.stat().st_dev}:1 damaged\n")
    guard = health.Guard(ledger)
    assert guard.suspected() and not guard.mend() and not guard.suspected()
    assert asides(state_dir) == []


def test_whoever_still_had_the_old_file_open_does_not_harm_the_new_one(state_dir: Path) -> None:
    slurmctld = Ledger(str(state_dir), "c", check_directory=False, busy_timeout_ms=20)
    fill(slurmctld)
    health.move_aside(str(state_dir), "c", "a test")
    relay = Ledger(str(state_dir), "c", check_directory=False)
    fill(relay, 5)  # in the new file's log
    fill(slurmctld, 7)  # closes the old one, the last who has it open, and goes on in the new one
    relay.close()
    slurmctld.close()
    assert charges(state_dir / store.FILE_NAME) == 7, "runs 1 to 5, and 6 and 7"
    (aside,) = asides(state_dir)
    assert charges(state_dir / aside) == 300


def test_nobody_opens_the_file_while_it_is_being_replaced(state_dir: Path) -> None:
    closed_ledger(state_dir)
    with open(state_dir / store.LOCK_NAME, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(LedgerBusy):
            Ledger(str(state_dir), "c", check_directory=False, busy_timeout_ms=20)
        assert time.monotonic() - began < 1.5, "slurmctld does not wait for that"
    Ledger(str(state_dir), "c", check_directory=False).close()


def test_a_file_that_cannot_be_moved_stays_in_place_with_its_log(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_one = Ledger(str(state_dir), "c", check_directory=False)
    fill(open_one)
    before = {file.name: file.stat().st_ino for file in state_dir.glob(store.FILE_NAME + "*")}
    assert len(before) == 3
    real = os.rename

    def fails_at_last(old: str, new: str) -> None:
        if new == open_one.path:
            raise OSError(28, "No space left on device")
        real(old, new)

    with monkeypatch.context() as full:
        full.setattr(os, "rename", fails_at_last)
        with pytest.raises(LedgerError, match="No space left"):
            health.move_aside(str(state_dir), "c", "a test")
    after = {file.name: file.stat().st_ino for file in state_dir.glob(store.FILE_NAME + "*")}
    assert after == before


# -- copies -------------------------------------------------------------------------------------------------------------


def test_a_backup_does_not_begin_anew_whenever_somebody_writes(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would never end on a busy controller: SQLite copies from the beginning after each change by another process."""
    monkeypatch.setattr(store, "_COPY_PAGES", 1)
    ledger = Ledger(str(state_dir), "c", check_directory=False)
    fill(ledger, 100)
    written: list[int] = []

    def write() -> None:
        for number in range(100):
            time.sleep(0.005)
            fill_one(ledger, 1_000_000 + number)
            written.append(number)

    thread = threading.Thread(target=write)
    thread.start()
    store.copy(ledger.path, str(state_dir.parent / "copy"))
    meanwhile = len(written)
    thread.join()
    assert meanwhile > 5, "it took long enough to tell"
    assert charges(state_dir.parent / "copy") <= 101, "as it was when it began"


def test_a_backup_is_whole_and_holds_nobody_up(state_dir: Path) -> None:
    relay = Ledger(str(state_dir), "c", check_directory=False)
    fill(relay, 3000)
    relay.checkpoint()
    slurmctld = Ledger(str(state_dir), "c", check_directory=False, busy_timeout_ms=20)
    stop = threading.Event()
    longest_s: list[float] = []

    def submit() -> None:
        job_id = 1_000_000
        while not stop.is_set():
            began = time.monotonic()
            for ledger in (slurmctld, relay):
                job_id += 1
                fill_one(ledger, job_id)
            longest_s.append(time.monotonic() - began)

    thread = threading.Thread(target=submit)
    thread.start()
    try:
        for number in range(3):
            target = state_dir.parent / f"backup-{number}"
            relay.backup(str(target))
            findings = health.examine(str(target), thorough=True)
            assert findings.good, findings.line()
    finally:
        stop.set()
        thread.join()
    assert len(longest_s) > 20 and max(longest_s) < 0.5
    assert not list(state_dir.parent.glob("backup-0-*")), "one file holds all of it"


class Host:
    """A controller's host: a state directory of SlurmUser's, and `slurm-banking ledger` run there by root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state_dir = root / "state"
        self.state_dir.mkdir(mode=0o700)
        os.chown(self.state_dir, SLURM, SLURM)
        self.backups = root / "backups"
        self.backups.mkdir(mode=0o700)
        os.chown(self.backups, SLURM, SLURM)
        (root / "slurm.conf").write_text("ClusterName=c\n")
        (root / "bank-config.toml").write_text(
            f'[PartitionPrice]\nmain = 1\n[API]\nurl = "http://127.0.0.1:9/api"\n[Ledger]\nstate_dir = "{self.state_dir}"\n'
            f'[Relay]\nsocket = "{root}/run/relay.sock"\n'
        )
        self.ledger = self.state_dir / store.FILE_NAME

    def python(self, script: str) -> None:
        """As SlurmUser."""
        code = (
            f"import sys\nsys.path.insert(0, {str(staged())!r})\n"
            "from slurm_banking.ledger import Ledger\n"
            f"ledger = Ledger({str(self.state_dir)!r}, 'c')\n" + script
        )
        subprocess.run(
            [PYTHON, "-I", "-B", "-c", code], user=SLURM, group=SLURM, extra_groups=[], check=True, cwd="/", timeout=60,
        )  # fmt: skip

    def fill(self) -> None:
        self.python(
            "with ledger.transaction() as tx:\n"
            "    for number in range(300):\n"
            "        tx.append('note', account='fc_alpha', user_id=1, amount_csu=0, reason='a test', actor='test')\n"
            "    tx.set_meta('complete', '1')\n"
            "    tx.set_meta('identity', 'the one')\n"
            "    tx._connection.execute(\"INSERT INTO funds VALUES ('fc_alpha', -1, 'limited', 5, 5, 'a', 0, 9, NULL, 77)\")\n"
            "ledger.checkpoint()\n"
        )

    def banking(self, *words: str) -> "subprocess.CompletedProcess[str]":
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(staged()),
            "PYTHONDONTWRITEBYTECODE": "1",
            "SLURM_CONF": str(self.root / "slurm.conf"),
        }
        return subprocess.run(
            [PYTHON, "-m", "slurm_banking", "ledger", *words, "--config", str(self.root / "bank-config.toml")],
            env=environment, capture_output=True, text=True, cwd="/", timeout=60,
        )  # fmt: skip

    def meta(self) -> dict[str, str]:
        connection = sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)
        found = dict(connection.execute("SELECT key, value FROM meta"))
        connection.close()
        return found


@pytest.fixture
def host() -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.skip("needs root to become SlurmUser")
    with tempfile.TemporaryDirectory(prefix="sbl-") as root:
        os.chmod(root, 0o755)
        made = Host(Path(root))
        made.fill()
        yield made


def test_verify_says_good_damaged_or_that_it_cannot_look(host: Host) -> None:
    good = host.banking("verify", "--json")
    told = json.loads(good.stdout)
    assert (good.returncode, told["good"], told["entries"], told["cluster"]) == (0, True, 300, "c")
    assert host.banking("verify").stdout.startswith(f"{host.ledger}: good; 300 entries")
    damage(host.ledger)
    bad = host.banking("verify", "--json")
    assert bad.returncode == 1 and json.loads(bad.stdout)["damage"]
    assert host.ledger.exists(), "looked at, not moved"
    host.ledger.unlink()
    none = host.banking("verify")
    assert none.returncode == 3 and none.stderr.count("\n") == 1
    assert "No such file" in none.stderr


def test_all_that_a_command_leaves_behind_is_slurmusers_alone(host: Host) -> None:
    assert host.banking("verify").returncode == 0
    assert host.banking("backup", str(host.backups / "one")).returncode == 0
    for file in [*host.state_dir.iterdir(), *host.backups.iterdir()]:
        found = file.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (SLURM, 0o600), file


def test_backup_writes_one_verified_file_and_never_over_another(host: Host) -> None:
    target = host.backups / "one"
    done = host.banking("backup", str(target))
    assert (done.returncode, done.stderr) == (0, "")
    assert charges(target) == 0 and os.listdir(host.backups) == ["one"]
    content = target.read_bytes()
    again = host.banking("backup", str(target))
    assert again.returncode == 3 and "exists" in again.stderr and target.read_bytes() == content
    elsewhere = host.root / "one"
    refused = host.banking("backup", str(elsewhere))
    assert refused.returncode == 3 and "may write" in refused.stderr and not elsewhere.exists()


def test_no_backup_is_made_of_a_damaged_ledger(host: Host) -> None:
    damage(host.ledger)
    assert host.banking("backup", str(host.backups / "one")).returncode == 1
    assert os.listdir(host.backups) == []


def test_restore_puts_the_backup_in_place_and_makes_it_ask_slurm_first(host: Host) -> None:
    target = host.backups / "one"
    host.banking("backup", str(target))
    damage(host.ledger)
    content = host.ledger.read_bytes()
    done = host.banking("restore", str(target), "--json")
    assert done.returncode == 0, done.stderr
    meta = host.meta()
    assert meta["complete"] == "0" and "identity" not in meta
    connection = sqlite3.connect(f"file:{host.ledger}?mode=ro", uri=True)
    assert connection.execute("SELECT read_at FROM funds").fetchall() == [(0,)]
    assert connection.execute("SELECT COUNT(*) FROM entries").fetchone() == (300,)
    connection.close()
    assert Path(json.loads(done.stdout)["kept_as"]).read_bytes() == content, "never deleted"
    assert not list(host.state_dir.glob("*.new-*"))
    assert host.banking("verify").returncode == 0


def test_restore_where_no_ledger_is_left(host: Host) -> None:
    host.banking("backup", str(host.backups / "one"))
    host.ledger.unlink()
    assert host.banking("restore", str(host.backups / "one")).returncode == 0
    assert host.meta()["complete"] == "0"


def test_restore_waits_for_nobody_and_refuses_while_a_relay_runs(host: Host) -> None:
    host.banking("backup", str(host.backups / "one"))
    inode = host.ledger.stat().st_ino
    with open(host.state_dir / "relay.lock", "w") as lock:
        os.chown(host.state_dir / "relay.lock", SLURM, SLURM)
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = host.banking("restore", str(host.backups / "one"))
    assert refused.returncode == 3 and "no relay meanwhile" in refused.stderr
    assert host.ledger.stat().st_ino == inode


@pytest.mark.parametrize("what", ["damaged", "another cluster's", "no ledger", "newer"])
def test_restore_refuses_what_is_no_good_backup(host: Host, what: str) -> None:
    target = host.backups / "one"
    host.banking("backup", str(target))
    inode = host.ledger.stat().st_ino
    if what == "damaged":
        damage(target, 2)
    elif what == "no ledger":
        target.write_text("some notes")
    else:
        connection = sqlite3.connect(target)
        key, value = ("cluster", "d") if what.startswith("another") else ("schema", "99")
        connection.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))
        connection.commit()
        connection.close()
    refused = host.banking("restore", str(target))
    assert refused.returncode in (1, 3), refused
    assert (refused.stderr or refused.stdout).strip()
    assert "Traceback" not in refused.stderr
    assert host.ledger.stat().st_ino == inode and not list(host.state_dir.glob("*.new-*"))


# -- jobs that ran away -------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def a_runaway(**changes: Any) -> Run:
    """Job 7 as slurmdbd has it, for ever."""
    values: dict[str, Any] = dict(state="RUNNING", end_time=None, elapsed_s=86400)
    return an_ended(a_job(), **{**values, **changes})


def test_a_lien_of_a_job_that_ran_away_ends_once_slurmctld_was_restarted(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    site.boot_time = 2_000_000_500  # without its state
    site.now = 2_000_000_600
    site.sacct.rows = [a_runaway()]
    for _ in range(4):
        site.see(after_s=60)
    assert site.lien(token).open and site.counted() == 6000, "slurmdbd may be about to tell its end"
    site.see(after_s=sweep.LOST_S)
    assert not site.lien(token).open and site.counted() == 0
    with site.ledger.transaction() as tx:
        reasons = [entry.reason for entry in tx.entries_by_lien(token.lien_id)]
    assert "runaway" in reasons[-1]


def test_a_lien_of_a_job_that_runs_as_far_as_anybody_knows_is_kept(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    site.now = 2_000_000_600  # within its limit, and slurmctld was not restarted
    site.sacct.rows = [a_runaway()]
    for _ in range(4):
        site.see(after_s=sweep.LOST_S)
    assert site.lien(token).open


def test_a_run_whose_end_got_lost_on_the_way_ends_a_day_after_its_limit(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    site.now = 2_000_000_020
    site.see(started(a_job(token)))
    site.sacct.rows = [a_runaway()]
    site.now = 2_000_000_010 + 3600 + 43200
    site.see()
    site.see(after_s=sweep.LOST_S + 60)
    assert site.runs()[0].state == "running", "half a day: slurmdbd may have been away"
    site.now += 43200
    site.see()
    site.see(after_s=sweep.LOST_S + 60)
    (run,) = site.runs()
    assert (run.state, run.slurm_state, run.charge_csu, site.counted()) == ("ended", "LOST", 0, 0)


def test_a_run_that_slurmdbd_had_as_never_started_is_charged_once_it_knows_better(
    site: Site,
) -> None:
    """slurmctld was killed, came back with an older state, and told slurmdbd for a while that the job had not started."""
    token = site.submit(6000)
    site.see(a_job(token))
    site.now = 2_000_000_020
    site.see(started(a_job(token)))
    never = an_ended(a_job(), started=False, start_time=None, elapsed_s=0)
    site.sacct.rows = [never]
    site.now = 2_000_000_700
    site.window()
    (run,) = site.runs()
    assert (run.state, run.charge_csu) == ("ended", 0)
    site.sacct.rows = [an_ended(a_job())]
    site.now += 60
    site.window()
    (run,) = site.runs()
    assert (run.state, run.charge_csu, run.elapsed_s) == ("ended", 1000, 600)
    before = site.entries()
    site.now += 60
    site.window()
    assert site.entries() == before + 1, "the look at the entries itself"


@pytest.mark.parametrize("known", ["running", "unknown", "lost"])
def test_an_end_made_up_weeks_later_charges_nothing(site: Site, known: str) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    if known != "unknown":
        site.now = 2_000_000_020
        site.see(started(a_job(token)))
    if known == "lost":
        with site.ledger.transaction() as tx:
            (run,) = tx.running_runs_page(None, 10)
            tx.lose_run(run, actor="relay")
    # slurmctld -c: whatever had no end was cancelled, then
    row = a_runaway(state="CANCELLED", end_time=2_000_000_010 + 20 * 86400, elapsed_s=20 * 86400)
    site.sacct.rows = [row]
    site.now = 2_000_000_010 + 20 * 86400 + 60
    site.window()
    site.see()
    site.see()
    (run,) = site.runs()
    assert (run.state, run.charge_csu) == ("ended", 0)
    assert site.counted() == 0


def test_a_job_cancelled_within_its_limit_is_charged(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    site.sacct.rows = [an_ended(a_job(token), state="CANCELLED")]
    site.now = 2_000_000_700
    site.window()
    (run,) = site.runs()
    assert run.charge_csu == 1000


NOW = 2_000_100_000


def snapshot(*jobs: Any, complete: bool = True) -> QueueSnapshot:
    return QueueSnapshot(cluster="c", jobs=jobs, taken_at=NOW, boot_time=BOOT, complete=complete)


class Slurmdbd:
    """What sacct prints."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)
        self.asked: list[Any] = []

    def __call__(self, argv: Any, **options: Any) -> str:
        self.asked.append(list(argv))
        return "".join(line + "\n" for line in self.lines)


def test_a_runaway_job_is_told_after_two_looks_with_the_command_to_run() -> None:
    slurmdbd = Slurmdbd("7|2000000000|2000000010|RUNNING", "8|2000000000|2000000010|RUNNING")
    watch = runaway.Watch(slurmdbd)
    running = snapshot(started(a_job(job_id=8)))
    assert watch.look(running, NOW) == runaway.LOOK_AGAIN_S and watch.found is None
    assert watch.look(running, NOW) == runaway.LOOK_S
    assert watch.found is not None and watch.found.job_ids == (7,)
    assert "sacctmgr show runawayjobs" in watch.found.hint()
    slurmdbd.lines = []
    watch.look(running, NOW)
    assert watch.found is None
    assert all(argv[0] == "sacct" for argv in slurmdbd.asked), "sacctmgr would change slurmdbd"


def test_a_runaway_job_whose_id_is_in_use_again_is_seen() -> None:
    watch = runaway.Watch(
        Slurmdbd("7|1900000000|1900000010|RUNNING", "7|2000000000|2000000010|RUNNING")
    )
    again = snapshot(started(a_job()))
    watch.look(again, NOW)
    watch.look(again, NOW)
    assert watch.found is not None and (watch.found.job_ids, watch.found.oldest) == (
        (7,),
        1900000010,
    )


def test_nothing_is_told_of_young_jobs_hidden_queues_or_answers_that_make_no_sense() -> None:
    young = runaway.Watch(Slurmdbd(f"7|{NOW - 20}|{NOW - 10}|RUNNING"))
    hidden = runaway.Watch(Slurmdbd("7|2000000000|2000000010|RUNNING"))
    for _ in range(3):
        young.look(snapshot(), NOW)
        hidden.look(snapshot(complete=False), NOW)
    assert young.found is None and hidden.found is None
    with pytest.raises(SlurmUnavailable, match="not as expected"):
        runaway.Watch(Slurmdbd("7|yesterday|now")).look(snapshot(), NOW)


def test_what_was_requeued_or_resized_is_no_runaway() -> None:
    watch = runaway.Watch(Slurmdbd("7|2000000500|2000000010|RUNNING"))
    resized = snapshot(replace(started(a_job()), submit_time=2_000_000_000))
    watch.look(resized, NOW)
    watch.look(resized, NOW)
    assert watch.found is None


def test_status_shows_the_hint_and_is_well_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tempfile.TemporaryDirectory(prefix="sbr-") as directory:
        relay = Relay(Path(directory))
        with relay.ledger.transaction() as tx:
            tx.set_meta("complete", "1")
        relay.health = {**relay.health, "hints": ["slurmdbd has 1 job: sacctmgr show runawayjobs"]}
        with relay.listening():
            status = main(["--socket", relay.socket, "status"])
        relay.ledger.close()
    assert status == 0
    assert "HINT: slurmdbd has 1 job: sacctmgr show runawayjobs\n" in capsys.readouterr().out
