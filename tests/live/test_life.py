# SPDX-License-Identifier: BSD-3-Clause
"""The life of a job on real daemons, as its user sees it; after each, ledger, bank and sacct agree to the hundredth."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from tests.rig.banked import BankedCluster
from tests.rig.cluster import CommandFailed, wait_until

pytestmark = pytest.mark.timeout(240)

SECONDS = "--time=1"

#: Keeps a job pending without an operator.
LATER = "--begin=now+1hour"


@pytest.fixture(autouse=True)
def books_agree_after(site: BankedCluster) -> Iterator[None]:
    yield
    site.end_all()


def runs_of(site: BankedCluster, job: int) -> list[dict[str, Any]]:
    return site.ledger_rows(
        "SELECT * FROM runs WHERE job_id = ?1 OR array_job_id = ?1 ORDER BY run_id", [job]
    )


def wait_runs(
    site: BankedCluster, job: int, count: int, state: str, timeout_s: float = 30
) -> list[Any]:
    wait_until(
        lambda: len([row for row in runs_of(site, job) if row["state"] == state]) >= count,
        timeout_s,
        f"{count} {state} run(s) of job {job} in the ledger",
        0.2,
    )
    return runs_of(site, job)


def lien_of(site: BankedCluster, job: int, timeout_s: float = 20) -> dict[str, Any]:
    """The job's lien once it is confirmed."""

    def confirmed() -> list[dict[str, Any]]:
        return site.ledger_rows(
            "SELECT * FROM liens WHERE job_id = ? AND state = 'confirmed'", [job]
        )

    wait_until(confirmed, timeout_s, f"a confirmed lien of job {job}", 0.2)
    return confirmed()[0]


def test_accepted_tells_the_estimate_runs_and_is_charged(site: BankedCluster) -> None:
    answer = site.try_sbatch("sb-alice", SECONDS, "-n", "2", script="sleep 3")
    assert answer.returncode == 0
    assert re.search(
        r"this job could cost up to 12\.00 SU \(main, 2 CPUs, 00:01:00\); fc_alpha has \d+\.\d\d SU left",
        answer.stderr,
    )
    job = int(answer.stdout)
    (run,) = wait_runs(site, job, 1, "running")
    assert run["lien_csu"] == 1200
    (run,) = wait_runs(site, job, 1, "ended")
    assert run["charge_csu"] == run["elapsed_s"] * 20
    site.settle()
    assert site.bank_jobs()[str(job)]["jobstatus"] == "COMPLETED"


def test_the_start_is_reported_once_while_it_runs(site: BankedCluster) -> None:
    job = site.sbatch("sb-alice", SECONDS, script="sleep 8")
    wait_until(lambda: str(job) in site.bank_jobs(), 20, "the start at the bank", 0.2)
    row = site.bank_jobs()[str(job)]
    assert row["jobstatus"] == "RUNNING" and row["enddate"] is None
    assert Decimal(row["amount"]) == Decimal("6.00")
    wait_runs(site, job, 1, "ended")


def test_refused_with_numbers_and_what_would_fit_and_nothing_is_left(site: BankedCluster) -> None:
    before = site.ledger_rows("SELECT COUNT(*) AS n FROM liens")[0]["n"]
    answer = site.try_sbatch("sb-mallory", "--time=10")
    assert answer.returncode != 0
    assert "fc_gamma has 10.00 SU available" in answer.stderr
    assert "this job could cost up to 60.00 SU (main, 1 CPU, 00:10:00)" in answer.stderr
    assert "It would fit with --time=00:01:00 or less." in answer.stderr
    assert "slurm-banking balance fc_gamma" in answer.stderr
    assert site.ledger_rows("SELECT COUNT(*) AS n FROM liens")[0]["n"] == before


def test_an_array_is_refused_with_how_many_tasks_would_fit(site: BankedCluster) -> None:
    answer = site.try_sbatch("sb-carol", SECONDS, "--array=1-30")
    assert answer.returncode != 0 and "16 of its 30 tasks" in answer.stderr


def test_default_partition_account_and_time_are_resolved(site: BankedCluster) -> None:
    job = site.sbatch("sb-bob", LATER)
    lien = lien_of(site, job)
    assert lien["account"] == "fc_alpha"
    assert lien["amount_csu"] == 6000, "one CPU in main for its DefaultTime of ten minutes"


def test_an_exclusive_partition_sets_whole_nodes_aside_and_charges_them(
    site: BankedCluster,
) -> None:
    job = site.sbatch("sb-alice", "-p", "exclusive", SECONDS, script="sleep 1")
    (run,) = wait_runs(site, job, 1, "ended")
    assert run["cpus"] == 8 and run["lien_csu"] == 8 * 1200
    assert run["charge_csu"] == run["elapsed_s"] * 8 * 20


@pytest.mark.parametrize("command", ["srun", "salloc"])
def test_srun_and_salloc_are_banked_as_well(site: BankedCluster, command: str) -> None:
    before = {row["job_id"] for row in site.ledger_rows("SELECT job_id FROM runs")}
    answer = site.run_as("sb-alice", [command, SECONDS, "-n", "1", "sleep", "2"], 60)
    assert answer.returncode == 0, answer.stderr
    assert "this job could cost up to 6.00 SU" in answer.stderr

    def ended() -> bool:
        rows = site.ledger_rows("SELECT job_id, state FROM runs")
        return any(row["job_id"] not in before and row["state"] == "ended" for row in rows)

    wait_until(ended, 30, f"the {command} job to be charged", 0.2)
    refused = site.run_as("sb-mallory", [command, "--time=10", "-n", "1", "true"], 60)
    assert refused.returncode != 0 and "fc_gamma has" in refused.stderr


def test_cancel_while_pending_leaves_nothing(site: BankedCluster) -> None:
    job = site.sbatch("sb-alice", LATER)
    lien_of(site, job)
    site.scancel("sb-alice", str(job))
    wait_until(
        lambda: not site.ledger_rows("SELECT 1 FROM liens WHERE job_id = ? AND state != 'ended'", [job]),
        10, "the lien to be voided", 0.1,
    )  # fmt: skip
    assert runs_of(site, job) == []
    assert str(job) not in site.bank_jobs()


def test_cancel_while_running_charges_what_ran(site: BankedCluster) -> None:
    job = site.sbatch("sb-alice", "--time=5", script="sleep 60")
    site.wait_job(job, "RUNNING")
    time.sleep(3)
    site.scancel("sb-alice", str(job))
    (run,) = wait_runs(site, job, 1, "ended")
    assert run["slurm_state"] == "CANCELLED" and 2 <= run["elapsed_s"] < 40
    assert run["charge_csu"] == run["elapsed_s"] * 10


def test_requeued_runs_are_charged_separately(site: BankedCluster) -> None:
    job = site.sbatch("sb-alice", SECONDS, "--requeue", script="sleep 6")
    site.wait_job(job, "RUNNING")
    time.sleep(2)
    site.requeue("sb-alice", job)
    first, second = wait_runs(site, job, 2, "ended", 60)
    assert (first["restart_count"], second["restart_count"]) == (0, 1)
    assert first["charge_csu"] == first["elapsed_s"] * 10
    assert second["charge_csu"] == second["elapsed_s"] * 10
    site.settle()
    assert {str(job), f"{job}-r1"} <= set(site.bank_jobs())


def test_an_array_cancelled_in_part_frees_what_will_not_run(site: BankedCluster) -> None:
    job = site.sbatch("sb-alice", "--time=1", "--array=1-6", LATER)
    assert lien_of(site, job)["amount_csu"] == 3600
    site.scancel("sb-alice", f"{job}_[3-5]")
    wait_until(lambda: lien_of(site, job)["amount_csu"] == 1800, 20, "three tasks to be freed", 0.2)
    site.run_as("root", ["scontrol", "update", f"job={job}", "StartTime=now"], check=True)
    runs = wait_runs(site, job, 3, "ended", 60)
    assert {run["array_task_id"] for run in runs} == {1, 2, 6}


def test_an_array_charges_each_task(site: BankedCluster) -> None:
    job = site.sbatch("sb-alice", SECONDS, "--array=1-4%2", script="sleep 2")
    runs = wait_runs(site, job, 4, "ended", 60)
    assert len({run["job_id"] for run in runs}) == 4
    assert all(run["charge_csu"] == run["elapsed_s"] * 10 for run in runs)


def test_scontrol_update_up_is_set_aside_at_once_and_down_when_slurm_did_it(
    site: BankedCluster,
) -> None:
    job = site.sbatch("sb-alice", "--time=1", LATER)
    assert lien_of(site, job)["amount_csu"] == 600
    site.run_as("sb-alice", ["scontrol", "update", f"job={job}", "TimeLimit=5"], check=True)
    assert lien_of(site, job)["amount_csu"] == 3000, "at once, before anything was seen"
    wait_until(lambda: lien_of(site, job)["proposed_csu"] is None, 30, "the update to be seen", 0.2)
    assert lien_of(site, job)["amount_csu"] == 3000
    site.run_as("sb-alice", ["scontrol", "update", f"job={job}", "TimeLimit=2"], check=True)
    wait_until(lambda: lien_of(site, job)["amount_csu"] == 1200, 30, "the lien to be lowered", 0.2)


def test_scontrol_update_beyond_the_funds_is_refused(site: BankedCluster) -> None:
    job = site.sbatch("sb-mallory", "--time=1", LATER)
    lien_of(site, job)
    answer = site.run_as("sb-mallory", ["scontrol", "update", f"job={job}", "TimeLimit=30"])
    assert answer.returncode != 0
    assert site.job(job)["TimeLimit"] == "00:01:00"
    assert lien_of(site, job)["amount_csu"] == 600


def test_bank_down_jobs_go_on_and_everything_is_delivered_when_it_is_back(
    site: BankedCluster,
) -> None:
    site.stop_bank()
    try:
        jobs = [site.sbatch("sb-alice", SECONDS, script="sleep 1") for _ in range(3)]
        for job in jobs:
            wait_runs(site, job, 1, "ended")
        assert site.ledger_rows("SELECT COUNT(*) AS n FROM outbox")[0]["n"] >= 3
        refused = site.try_sbatch("sb-mallory", "--time=10")
        assert refused.returncode != 0 and "fc_gamma has" in refused.stderr
    finally:
        site.start_bank()
    site.settle()
    assert {str(job) for job in jobs} <= set(site.bank_jobs())


def test_relay_down_jobs_go_on_and_it_catches_up_when_it_is_back(site: BankedCluster) -> None:
    pid = site.relay_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: site.relay_pid() is None, 10, "the relay to be gone")
    jobs = [site.sbatch("sb-alice", SECONDS, script="sleep 1") for _ in range(2)]
    for job in jobs:
        (run,) = wait_runs(site, job, 1, "ended")
        assert run["bank_job_id"] is None
    site.spawn("relay", [site.stage_dir / "bin" / "slurm-banking", "--config", site.bank_config, "relay", "--foreground"], user="slurm")  # type: ignore[list-item]  # fmt: skip
    site.wait_ready()
    site.settle()


def test_slurmctld_killed_with_liens_open_keeps_them_and_charges_once(site: BankedCluster) -> None:
    waiting = site.sbatch("sb-alice", "--time=3", LATER)
    running = site.sbatch("sb-alice", SECONDS, script="sleep 10")
    site.wait_job(running, "RUNNING")
    lien_of(site, waiting)
    wait_runs(site, running, 1, "running")
    site.wait_saved()
    site.restart_slurmctld(kill=True)
    assert lien_of(site, waiting)["amount_csu"] == 1800
    (run,) = wait_runs(site, running, 1, "ended", 60)
    assert run["charge_csu"] == run["elapsed_s"] * 10
    time.sleep(8)
    assert lien_of(site, waiting)["amount_csu"] == 1800, "no sweep ended it"


def test_ledger_deleted_is_rebuilt_from_queue_accounting_and_bank(site: BankedCluster) -> None:
    done = site.sbatch("sb-alice", SECONDS, script="sleep 2")
    wait_runs(site, done, 1, "ended")
    site.settle()
    charged = {row["job_id"]: row["charge_csu"] for row in site.ledger_rows("SELECT * FROM runs WHERE state = 'ended'")}  # fmt: skip
    waiting = site.sbatch("sb-alice", "--time=3", LATER)
    running = site.sbatch("sb-alice", SECONDS, script="sleep 15")
    wait_runs(site, running, 1, "running")
    lien_id = lien_of(site, waiting)["lien_id"]
    for path in site.state_dir.glob("ledger.sqlite3*"):
        path.unlink()
    site.sbatch("sb-alice", SECONDS, script="true")  # slurmctld meets the missing file

    def rebuilt() -> bool:
        rows = site.ledger_rows("SELECT value FROM meta WHERE key = 'complete'")
        return bool(rows) and rows[0]["value"] == "1"

    wait_until(rebuilt, 60, "the ledger to be rebuilt", 0.3)
    lien = lien_of(site, waiting)
    assert (lien["lien_id"], lien["amount_csu"]) == (lien_id, 1800)
    wait_runs(site, running, 1, "ended", 60)
    site.settle(90)
    again = {row["job_id"]: row["charge_csu"] for row in site.ledger_rows("SELECT * FROM runs WHERE state = 'ended'")}  # fmt: skip
    assert {job: again.get(job) for job in charged} == charged


def test_an_unpriced_partition_is_refused_by_name(site: BankedCluster) -> None:
    answer = site.try_sbatch("sb-alice", "-p", "unpriced")
    assert answer.returncode != 0 and "partition 'unpriced' has no price" in answer.stderr


def test_what_slurm_refuses_after_us_leaves_no_lien(site: BankedCluster) -> None:
    with pytest.raises(CommandFailed):
        site.sbatch("sb-alice", "--time=2-00:00:00", "-p", "debug", "--mem=999999999")
    # the fixture waits for every lien to have ended


def test_an_operators_exception_lets_a_user_submit(site: BankedCluster) -> None:
    assert site.try_sbatch("sb-mallory", "--time=10", LATER).returncode != 0
    site.banking("allow", "sb-mallory", "--until", "+5m", "--reason", "paper deadline")
    answer = site.try_sbatch("sb-mallory", "--time=10", LATER)
    assert answer.returncode == 0 and "paper deadline" in answer.stderr
    denied = site.banking("allow", "sb-mallory", "--until", "+5m", "--reason", "x", user="sb-mallory", check=False)  # fmt: skip
    assert denied.returncode != 0


def shown_jobs(site: BankedCluster, user: str) -> set[int]:
    answer = site.banking_json("jobs", user=user)
    return {job["job_id"] for state in ("queued", "running", "ended") for job in answer[state]}


def test_balance_statement_jobs_quote_and_why_tell_the_same(site: BankedCluster) -> None:
    job = site.sbatch("sb-alice", SECONDS, script="sleep 2")
    (run,) = wait_runs(site, job, 1, "ended")
    site.settle()
    cost = f"{run['charge_csu'] // 100}.{run['charge_csu'] % 100:02d}"
    assert cost in site.banking("why", str(job), user="sb-alice").stdout
    assert str(job) in site.banking("statement", user="sb-alice").stdout
    assert "fc_alpha" in site.banking("balance", user="sb-alice").stdout
    assert "6.00" in site.banking("quote", "-n", "1", "-t", "1", user="sb-alice").stdout
    assert job in shown_jobs(site, "sb-alice")
    assert job not in shown_jobs(site, "sb-carol")
    for command in (["balance"], ["statement"], ["jobs"], ["quote", "-n", "1", "-t", "1"], ["why", str(job)]):  # fmt: skip
        assert site.banking_json(*command, user="sb-alice")
