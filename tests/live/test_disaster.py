# SPDX-License-Identifier: BSD-3-Clause
"""The ledger's file is broken, backed up and restored, and Slurm loses its own state, on a site that goes on working."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from slurm_banking.slurm import runaway
from slurm_banking.slurm.squeue import read_queue
from tests.rig.banked import BankedCluster
from tests.rig.cluster import wait_until

pytestmark = pytest.mark.timeout(180)

LATER = "--begin=now+1hour"
PAGE = 4096

#: Seconds from the damage until submissions are decided again.
MENDED_WITHIN_S = 30.0


def ledger_path(site: BankedCluster) -> Path:
    return site.state_dir / "ledger.sqlite3"


def in_the_file(site: BankedCluster) -> None:
    """Until the relay has moved everything from the log into the file."""
    wait_until(
        lambda: (
            ledger_path(site).stat().st_size > 20 * PAGE
            and time.time() - ledger_path(site).stat().st_mtime < 6
        ),
        20,
        "a checkpoint",
        0.2,
    )


def break_the_middle(path: Path) -> None:
    """As a broken disk may leave it: garbage over all but the first two pages, past SQLite and under everybody's feet."""
    pages = path.stat().st_size // PAGE
    with open(path, "r+b") as file:
        file.seek(2 * PAGE)
        file.write(os.urandom((pages - 2) * PAGE))


def decides(site: BankedCluster) -> bool:
    """Whether a submission is told what is left, and not that funds could not be checked."""
    answer = site.try_sbatch("sb-alice", "--time=1", script="true")
    assert answer.returncode == 0, answer.stderr
    return "SU left" in answer.stderr


def end_relay(site: BankedCluster) -> None:
    pid = site.relay_pid()
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: site.relay_pid() is None, 10, "the relay to be gone")


def start_relay(site: BankedCluster) -> None:
    site.spawn(
        "relay",
        [str(site.stage_dir / "bin" / "slurm-banking"), "--config", str(site.bank_config), "relay", "--foreground"],
        user="slurm",
    )  # fmt: skip
    site.wait_ready()


def test_a_ledger_broken_in_the_middle_is_replaced_rebuilt_and_said_so(site: BankedCluster) -> None:
    for _ in range(5):
        site.sbatch("sb-alice", "--time=1", script="true")
    queued = site.sbatch("sb-alice", "--time=60", LATER)
    running = site.sbatch("sb-alice", "--time=10", script="sleep 600")
    site.wait_job(running, "RUNNING")
    wait_until(
        lambda: site.ledger_rows("SELECT 1 FROM runs WHERE job_id = ? AND state = 'running'", [running])
        and site.ledger_rows("SELECT 1 FROM liens WHERE job_id = ? AND state = 'confirmed'", [queued]),
        20, "both to be in the ledger",
    )  # fmt: skip
    site.settle()
    before = site.ledger_rows(
        "SELECT job_id, amount_csu FROM liens WHERE job_id = ? AND state != 'ended'", [queued]
    )
    charged = site.ledger_rows("SELECT COUNT(*) AS n FROM runs WHERE state = 'ended'")[0]["n"]
    assert decides(site)
    in_the_file(site)

    began = time.monotonic()
    break_the_middle(ledger_path(site))
    wait_until(
        lambda: list(site.state_dir.glob("ledger.sqlite3.broken-*Z")), 15, "it to be noticed"
    )
    wait_until(lambda: decides(site), MENDED_WITHIN_S, "submissions to be decided", 0.2)
    print(f"submissions decided again after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < MENDED_WITHIN_S

    assert site.pid("slurmctld") is not None
    status = site.status()
    assert status is not None and status["ledger_complete"]
    assert any("was damaged and rebuilt" in alarm for alarm in status["alarms"])
    now = site.ledger_rows(
        "SELECT job_id, amount_csu FROM liens WHERE job_id = ? AND state != 'ended'", [queued]
    )
    assert now == before, "what is set aside for the queue is as it was"
    site.settle()
    rebuilt = site.ledger_rows("SELECT COUNT(*) AS n FROM runs WHERE state = 'ended'")[0]["n"]
    assert rebuilt > charged, "with all that had ended"
    assert site.banking("ledger", "verify").returncode == 0
    site.end_all()

    for kept in site.state_dir.glob("ledger.sqlite3.broken-*"):
        shutil.move(kept, site.root / kept.name)
    wait_until(lambda: not (site.status() or {"alarms": [1]})["alarms"], 10, "the alarm to end")


def test_a_backup_taken_under_load_and_restored_is_brought_up_to_date(site: BankedCluster) -> None:
    stop = threading.Event()
    answers: list[str] = []

    def load() -> None:
        while not stop.is_set():
            answer = site.try_sbatch("sb-alice", "--time=1", script="true")
            answers.append(answer.stderr if answer.returncode == 0 else "refused")

    backups = site.root / "backups"
    backups.mkdir(mode=0o700)
    shutil.chown(backups, "slurm", "slurm")
    thread = threading.Thread(target=load)
    thread.start()
    try:
        time.sleep(1)
        for number in range(3):
            site.banking("ledger", "backup", str(backups / f"ledger-{number}"))
        time.sleep(1)
    finally:
        stop.set()
        thread.join()
    undecided = [answer for answer in answers if "SU left" not in answer]
    # On a machine with more to do than cores, a writer may lose its turn for the 20 ms that slurmctld waits.
    assert len(answers) > 10 and len(undecided) <= len(answers) / 10, undecided
    assert "refused" not in answers
    wait_until(lambda: not site.open_liens("fc_alpha"), 90, "what was submitted to have run", 0.3)
    queued = site.sbatch("sb-alice", "--time=60", LATER)
    assert site.banking("ledger", "verify", str(backups / "ledger-1")).returncode == 0
    refused = site.banking("ledger", "restore", str(backups / "ledger-1"), check=False)
    assert refused.returncode == 3 and "no relay meanwhile" in refused.stderr

    end_relay(site)
    site.banking("ledger", "restore", str(backups / "ledger-1"))
    site.sbatch("sb-alice", "--time=1", script="true")  # slurmctld has the restored one open
    start_relay(site)
    wait_until(
        lambda: site.ledger_rows("SELECT 1 FROM liens WHERE job_id = ? AND state != 'ended'", [queued]), 20, "its lien"
    )  # fmt: skip
    wait_until(lambda: decides(site), MENDED_WITHIN_S, "submissions to be decided", 0.2)
    assert list(site.state_dir.glob("ledger.sqlite3.before-restore-*"))
    site.end_all()
    assert site.banking("ledger", "verify").returncode == 0


def test_a_job_that_slurm_forgot_and_slurmdbd_did_not_is_found_without_changing_slurmdbd(
    site: BankedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, kept = site.root / "ctld", site.root / "ctld-of-before"
    site.wait_job(site.sbatch("sb-alice", "--time=1", script="true"))
    site.wait_saved()
    shutil.copytree(saved, kept)
    job = site.sbatch("sb-alice", "--time=10", script="sleep 600")
    site.wait_job(job, "RUNNING")
    wait_until(
        lambda: [row for row in site.sacct(job) if row["State"] == "RUNNING"],
        20,
        "slurmdbd to know",
    )
    wait_until(
        lambda: site.ledger_rows("SELECT 1 FROM runs WHERE job_id = ?", [job]), 20, "its start"
    )
    site.kill9("slurmctld")
    for entry in saved.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for entry in kept.iterdir():
        if entry.is_file():
            shutil.copy2(entry, saved / entry.name)
            shutil.chown(saved / entry.name, "slurm", "slurm")
    site.start_slurmctld()

    shown = site.run_as(
        "root", ["sh", "-c", "echo n | sacctmgr -n -P show runawayjobs format=id,state"]
    )
    assert f"{job}|RUNNING" in shown.stdout, "a runaway job in Slurm's own words"

    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, site.env()[name])
    snapshot = read_queue("rig")
    later = int(time.time()) + 400
    snapshot = dataclasses.replace(snapshot, taken_at=later, complete=True)
    watch = runaway.Watch()
    watch.look(snapshot, later)
    assert watch.found is None, "once is not enough"
    watch.look(snapshot, later)
    assert watch.found is not None and watch.found.job_ids == (job,)
    again = subprocess.run(
        ["sacct", "-n", "-P", "-X", "-j", str(job), "-o", "State"],
        env=site.env(), capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert again.stdout.split() == ["RUNNING"], "slurmdbd is as it was"
    assert not site.ledger_rows("SELECT 1 FROM runs WHERE job_id = ? AND charge_csu > 0", [job])
