# SPDX-License-Identifier: BSD-3-Clause
"""Each breakage breaks a real site in the way that it says, and `restore` brings it back. One site for all of them."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.faults import breakage
from tests.faults.breakage import (
    BreakableCluster,
    break_ledger,
    fill_disk,
    freeze,
    kill9,
    ledger_problem,
    ledger_read_only,
    libfaketime,
    lock_ledger,
    pids_of,
    restart_relay,
    restart_slurmctld,
    restore,
    step_clock,
    wipe_state_dir,
    wipe_state_save,
)
from tests.rig.cluster import CHECKOUT, RigError, wait_until

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(150),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("slurmctld") is None,
        reason="needs root and Slurm's daemons (make setup)",
    ),
]

LATER = "--begin=now+1hour"

#: Submitted while the ledger could not be written: without a token, and not found again should the ledger be lost later.
undecided: set[int] = set()


@pytest.fixture(scope="module")
def site() -> Iterator[BreakableCluster]:
    with BreakableCluster(proxy_seed=7, state_disk_mib=24, funds={"fc_alpha": "90000"}) as running:
        root = running.root
        yield running
        assert restore(running) == ""
        assert_every_run_charged(running)
    assert str(root) not in mounts()


@pytest.fixture(autouse=True)
def brought_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test begins with a site that is well, whatever the one before did to it."""
    if "site" in request.fixturenames:
        site: BreakableCluster = request.getfixturevalue("site")
        yield
        problem = restore(site)
        assert problem == ""
    else:
        yield


def assert_every_run_charged(site: BreakableCluster) -> None:
    """What sacct has of all these jobs, the ledger has. (A killed slurmdbd may have lost some itself.)"""
    wrong: dict[tuple[int, int], str] = {}

    def agree() -> bool:
        runs = site.ledger_rows("SELECT * FROM runs WHERE state = 'ended'")
        charged_su = {
            (row["job_id"], row["submit_time"]): Decimal(row["charge_csu"]).scaleb(-2)
            for row in runs
        }
        costs_su = site.sacct_costs()
        wrong.clear()
        for key, cost_su in costs_su.items():
            if charged_su.get(key) != cost_su and key[0] not in undecided:
                wrong[key] = f"ledger {charged_su.get(key)}, sacct {cost_su} SU"
        return not wrong

    try:
        wait_until(agree, 30, "every run to be charged", 0.5)
    except RigError as error:
        raise AssertionError(f"{error}: (job, submit time): {wrong}") from None


def charged(site: BreakableCluster) -> int:
    """A job that ran and whose charge the bank has."""
    job = site.sbatch("sb-alice", "--time=1", script="true")
    site.wait_job(job)
    wait_until(
        lambda: site.ledger_rows(
            "SELECT 1 FROM runs WHERE job_id = ? AND end_acked = 1 AND run_id ="
            " (SELECT MAX(run_id) FROM runs WHERE job_id = ?)",
            [job, job],
        ),
        40,
        f"the charge of job {job} at the bank",
        0.2,
    )
    return job


def submit_undecided(site: BreakableCluster) -> None:
    """Whatever is answered."""
    answer = site.try_sbatch("sb-alice", "--time=1", script="true")
    if answer.returncode == 0:
        undecided.add(int(answer.stdout))


def state_of(pid: int) -> str:
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2]


@pytest.mark.parametrize("what", breakage.PROCESSES)
def test_what_is_killed_is_gone_and_comes_back(site: BreakableCluster, what: str) -> None:
    (before,) = pids_of(site, what)
    kill9(site, what)
    assert pids_of(site, what) == []
    # a dead one's entry stays until its parent, the keeper, has asked for its status
    wait_until(lambda: not Path(f"/proc/{before}").exists(), 5, f"{what} to leave /proc", 0.02)
    assert restore(site) == ""
    (after,) = pids_of(site, what)
    assert after != before
    charged(site)


@pytest.mark.parametrize("what", breakage.PROCESSES)
def test_what_is_frozen_stands_still_until_its_time_is_up_or_restore(
    site: BreakableCluster, what: str
) -> None:
    (pid,) = pids_of(site, what)
    freeze(site, what, 0.6)
    wait_until(lambda: state_of(pid) == "T", 0.4, f"{what} to stand still", 0.02)
    wait_until(lambda: state_of(pid) != "T", 3, f"{what} to go on by itself", 0.05)
    freeze(site, what)
    wait_until(lambda: state_of(pid) == "T", 1, f"{what} to stand still", 0.02)
    assert restore(site) == ""
    assert state_of(pid) != "T"
    assert pids_of(site, what) == [pid]


def test_a_frozen_slurmctld_says_nothing(site: BreakableCluster) -> None:
    freeze(site, "slurmctld", 3)
    with pytest.raises(RigError, match="no end within"):
        site.run_as("root", ["squeue"], 1.5)


def test_reconfigure_and_restarts(site: BreakableCluster) -> None:
    (before,) = pids_of(site, "slurmctld")
    breakage.reconfigure(site)
    assert pids_of(site, "slurmctld") == [before]
    restart_slurmctld(site)
    assert pids_of(site, "slurmctld") not in ([], [before])
    # slurmctld may just have started another one, which ends by itself
    wait_until(lambda: len(pids_of(site, "relay")) == 1, 5, "one relay")
    (relay,) = pids_of(site, "relay")
    restart_relay(site)
    wait_until(lambda: pids_of(site, "relay") not in ([], [relay]), 10, "another relay")


@pytest.mark.parametrize("takeover", [False, True])
def test_a_wiped_state_directory_is_rebuilt(site: BreakableCluster, takeover: bool) -> None:
    before_s = time.time()
    waiting = site.sbatch("sb-alice", "--time=1", LATER)
    saved = site.root / "ctld" / "job_state"
    wait_until(lambda: saved.stat().st_mtime > before_s, 20, "slurmctld to save the job", 0.1)
    charged(site)
    identity = "SELECT value FROM meta WHERE key = 'identity'"
    before = site.ledger_rows(identity)
    wipe_state_dir(site, takeover=takeover)
    assert restore(site) == ""
    assert site.ledger_rows(identity) != before, "another ledger"
    assert len(pids_of(site, "relay")) == 1
    liens = "SELECT origin FROM liens WHERE job_id = ? AND state != 'ended'"
    wait_until(lambda: site.ledger_rows(liens, [waiting]), 20, "the lien of the queued job", 0.2)
    site.scancel("sb-alice", str(waiting))
    charged(site)


def test_a_wiped_state_save_location_loses_slurms_jobs(site: BreakableCluster) -> None:
    waiting = site.sbatch("sb-alice", "--time=1", LATER)
    wipe_state_save(site)
    assert pids_of(site, "slurmctld") == []
    assert restore(site) == ""
    assert site.jobs(waiting) == []
    assert site.squeue() == []


def test_a_full_disk_is_full_for_the_ledger_and_free_again_afterwards(
    site: BreakableCluster,
) -> None:
    assert fill_disk(site) > 1 << 20
    with pytest.raises(OSError, match="No space left"):
        (site.state_dir / "more").write_bytes(b"x" * 4096)
    (site.state_dir / "more").unlink(missing_ok=True)
    (before,) = pids_of(site, "slurmctld")
    for _ in range(3):
        submit_undecided(site)
    assert pids_of(site, "slurmctld") == [before]
    assert restore(site) == ""
    (site.state_dir / "more").write_bytes(b"x" * 4096)
    (site.state_dir / "more").unlink()
    charged(site)


def test_a_site_without_a_disk_of_its_own_is_not_filled(tmp_path: Path) -> None:
    site = BreakableCluster(plugins=False)
    site._root = tmp_path
    with pytest.raises(RigError, match="state_disk_mib"):
        fill_disk(site)
    site._root = None


def ledger_write(site: BreakableCluster, wait_s: float) -> str:
    """What SQLite says to SlurmUser who would write."""
    script = (
        "import sqlite3, sys\n"
        "try:\n"
        "    c = sqlite3.connect(sys.argv[1], timeout=float(sys.argv[2]), isolation_level=None)\n"
        "    c.execute('BEGIN IMMEDIATE')\n"
        "    c.execute(\"UPDATE meta SET value = value WHERE key = 'complete'\")\n"
        "    c.execute('ROLLBACK')\n"
        "    print('written')\n"
        "except sqlite3.Error as error:\n"
        "    print(error)\n"
    )
    return breakage._as_slurm_user(
        site, script, str(site.state_dir / breakage.LEDGER_NAME), str(wait_s)
    )


def test_a_read_only_ledger_cannot_be_written_until_restore(site: BreakableCluster) -> None:
    assert ledger_write(site, 2) == "written"
    ledger_read_only(site)
    assert "readonly" in ledger_write(site, 2)
    submit_undecided(site)
    assert len(pids_of(site, "slurmctld")) == 1
    assert restore(site) == ""
    assert ledger_write(site, 2) == "written"
    charged(site)


def test_a_locked_ledger_is_busy_for_that_long(site: BreakableCluster) -> None:
    lock_ledger(site, 1.5)
    assert "locked" in ledger_write(site, 0.2)
    assert ledger_write(site, 5) == "written"
    lock_ledger(site, 60)
    assert restore(site) == ""
    assert ledger_write(site, 2) == "written"


def test_a_broken_ledger_is_malformed_and_sound_again_after_restore(
    site: BreakableCluster,
) -> None:
    charged(site)
    assert ledger_problem(site) == ""
    assert break_ledger(site) >= 3
    assert ledger_problem(site) != ""
    assert restore(site) == ""
    assert site.mended_by_hand == 0, "the relay moved it aside by itself"
    assert list(site.root.glob("ledger.sqlite3.broken-*")), "and kept it"
    assert ledger_problem(site) == ""
    charged(site)


@pytest.mark.skipif(libfaketime() is None, reason="needs libfaketime")
def test_a_relays_clock_is_stepped_while_it_runs(site: BreakableCluster) -> None:
    def off_s() -> float:
        """How far ahead of ours the relay writes its log."""
        (pid,) = pids_of(site, "relay")
        os.kill(pid, signal.SIGHUP)
        time.sleep(0.7)
        lines = [line for line in site.log("relay").splitlines() if "relay_reload" in line]
        at = datetime.datetime.strptime(lines[-1][:19], "%Y-%m-%d %H:%M:%S") if lines else None
        return 0.0 if at is None else (at - datetime.datetime.now()).total_seconds()

    step_clock(site, "relay", 300)
    site.wait_ready()
    (pid,) = pids_of(site, "relay")
    wait_until(lambda: 250 < off_s() < 310, 10, "the relay to be 300 s ahead")
    step_clock(site, "relay", -200)
    wait_until(lambda: -310 < off_s() < -190, 10, "the relay to be 200 s behind")
    assert pids_of(site, "relay") == [pid]
    assert restore(site) == ""
    assert -5 < off_s() < 5


@pytest.mark.skipif(libfaketime() is None, reason="needs libfaketime")
def test_slurmctlds_clock_is_stepped(site: BreakableCluster) -> None:
    def submitted_ahead_s() -> float:
        job = site.sbatch("sb-alice", "--time=1", "--hold")
        at = datetime.datetime.fromisoformat(site.job(job)["SubmitTime"])
        site.scancel("sb-alice", str(job))
        return (at - datetime.datetime.now()).total_seconds()

    step_clock(site, "slurmctld", 60)
    wait_until(lambda: 50 < submitted_ahead_s() < 70, 10, "slurmctld to be 60 s ahead", 0.3)
    assert restore(site) == ""
    assert -5 < submitted_ahead_s() < 5


def test_a_bank_behind_the_proxy_is_away_and_back(site: BreakableCluster) -> None:
    assert site.proxy is not None
    before = site.proxy.counts["pass"]
    assert before > 0, "the relay talks through it"
    site.proxy.set("refuse")
    job = site.sbatch("sb-alice", "--time=1", script="true")
    site.wait_job(job)
    outbox = "SELECT 1 FROM outbox"
    wait_until(lambda: site.ledger_rows(outbox), 20, "the charge to wait for the bank", 0.2)
    time.sleep(2)
    assert site.ledger_rows(outbox)
    run = "SELECT bank_job_id FROM runs WHERE job_id = ? ORDER BY run_id DESC"
    assert not site.ledger_rows(run, [job])[0]["bank_job_id"]
    assert restore(site) == ""
    assert not site.ledger_rows(outbox)
    assert site.ledger_rows(run, [job])[0]["bank_job_id"] in site.bank_jobs()
    assert site.proxy.counts["pass"] > before


def test_restore_says_what_is_not_well(site: BreakableCluster) -> None:
    kill9(site, "slurmd")
    real = site._specs["slurmd-n1"]["argv"]
    site._specs["slurmd-n1"]["argv"] = ["false"]
    try:
        problem = restore(site, 6)
    finally:
        site._specs["slurmd-n1"]["argv"] = real
    assert "slurmd of n1" in problem


def mounts() -> str:
    return Path("/proc/mounts").read_text()


def test_the_disk_is_unmounted_with_the_site() -> None:
    cluster = BreakableCluster(plugins=False, state_disk_mib=8)
    cluster.prepare()
    root = cluster.root
    assert os.path.ismount(root / "state")
    assert fill_disk(cluster) == 8 << 20
    cluster.stop()
    assert str(root) not in mounts()
    assert not root.exists()


def test_the_disk_is_unmounted_when_its_process_is_killed() -> None:
    script = (
        "import sys, time\n"
        "from tests.faults.breakage import BreakableCluster\n"
        "cluster = BreakableCluster(plugins=False, state_disk_mib=8)\n"
        "cluster.prepare()\n"
        "print(cluster.root, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        root = Path(process.stdout.readline().strip())
        assert os.path.ismount(root / "state")
    finally:
        process.kill()
        process.communicate()
    wait_until(lambda: str(root) not in mounts(), 10, "the disk to be unmounted", 0.1)
    wait_until(lambda: not root.exists(), 20, "the rig's directory to be removed", 0.1)
