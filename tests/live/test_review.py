# SPDX-License-Identifier: BSD-3-Clause
"""Ways in which Slurm's own order of events once made money go wrong, on real daemons.

slurmdbd's rows of these jobs do not add up to what they used (see docs/limits.md), so the three books are not compared here.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from slurm_banking.tres import parse_tres
from tests.rig.banked import BankedCluster
from tests.rig.cluster import wait_until

pytestmark = pytest.mark.timeout(240)


def runs_of(site: BankedCluster, job: int) -> list[dict[str, Any]]:
    return site.ledger_rows("SELECT * FROM runs WHERE job_id = ? ORDER BY run_id", [job])


def wait_ended(site: BankedCluster, job: int, count: int = 1) -> list[dict[str, Any]]:
    wait_until(
        lambda: [row["state"] for row in runs_of(site, job)].count("ended") >= count,
        40, f"{count} ended run(s) of job {job}", 0.2,
    )  # fmt: skip
    return runs_of(site, job)


def test_nodes_given_back_before_the_end_are_charged_until_then(site: BankedCluster) -> None:
    # Not --ntasks-per-node: Slurm 24.11 lets such a job give back no node.
    job = site.sbatch("sb-alice", "--time=5", "-N", "2", "--exclusive", script="sleep 60")
    site.wait_job(job, "RUNNING")
    time.sleep(4)
    site.run_as("sb-alice", ["scontrol", "update", f"job={job}", "NumNodes=1"], check=True)
    time.sleep(2)
    site.scancel("sb-alice", str(job))
    (run,) = wait_ended(site, job)
    (note,) = site.ledger_rows(
        "SELECT inputs FROM entries WHERE job_id = ? AND reason = 'resized'", [job]
    )
    noted = json.loads(note["inputs"])
    assert parse_tres(noted["tres"]).cpus == 16
    until_s = noted["elapsed_s"]
    assert run["cpus"] == 8 and 3 <= until_s <= run["elapsed_s"] - 1
    assert run["charge_csu"] == 10 * (16 * until_s + 8 * (run["elapsed_s"] - until_s))
    wait_until(
        lambda: site.bank_jobs()[str(job)]["jobstatus"] == "CANCELLED", 20, "its end at the bank"
    )
    time.sleep(16)  # the sacct window, which stays ten seconds behind, has come by
    assert runs_of(site, job) == [{**run, **_delivered(site, job)}], "slurmdbd agrees"


def _delivered(site: BankedCluster, job: int) -> dict[str, Any]:
    (row,) = runs_of(site, job)
    return {key: row[key] for key in ("bank_csu", "bank_job_id", "start_acked", "end_acked")}


def test_requeueing_a_finished_job_does_not_charge_for_the_time_since(site: BankedCluster) -> None:
    job = site.sbatch("sb-alice", "--time=1", "--requeue", script="sleep 1")
    (first,) = wait_ended(site, job)
    site.wait_job(job, "COMPLETED")
    time.sleep(3)
    site.run_as("root", ["scontrol", "requeue", str(job)], check=True)
    assert runs_of(site, job)[0]["charge_csu"] == first["charge_csu"] == 10 * first["elapsed_s"]
    (lien,) = site.ledger_rows("SELECT * FROM liens WHERE job_id = ? AND state != 'ended'", [job])
    assert (lien["origin"], lien["restart_count"], lien["amount_csu"]) == ("requeue", 1, 600)
    site.scancel("sb-alice", str(job))
    wait_until(lambda: not site.open_liens("fc_alpha"), 30, "its lien to have ended", 0.3)


def test_one_task_moved_to_another_account_leaves_the_others_set_aside(site: BankedCluster) -> None:
    site.sacctmgr("-i", "add", "user", "sb-alice", "account=fc_beta")
    site.bank("user", "add", "sb-alice", "--uid", str(site.uid("sb-alice")), "--account", "fc_beta")
    job = site.sbatch("sb-alice", "--time=1", "--array=1-4", "--begin=now+1hour")

    def aside() -> list[tuple[str, int]]:
        rows = site.ledger_rows(
            "SELECT account, amount_csu FROM liens WHERE job_id = ? AND state = 'confirmed' ORDER BY account",
            [job],
        )
        return [(row["account"], row["amount_csu"]) for row in rows]

    wait_until(lambda: aside() == [("fc_alpha", 2400)], 20, "the lien to be confirmed", 0.2)
    update = ["scontrol", "update", f"job={job}_3", "Account=fc_beta"]
    site.run_as("sb-alice", update, check=True)
    wait_until(
        lambda: aside() == [("fc_alpha", 1800), ("fc_beta", 600)], 20, "one task to move", 0.2
    )
    (first,) = site.ledger_rows(
        "SELECT state FROM liens WHERE job_id = ? AND origin = 'submit'", [job]
    )
    assert first["state"] == "confirmed", "the array's lien goes on"
    site.scancel("sb-alice", str(job))
    wait_until(lambda: not site.open_liens(), 30, "all liens to have ended", 0.3)
