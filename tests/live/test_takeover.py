# SPDX-License-Identifier: BSD-3-Clause
"""Enabled on a cluster that already has jobs; and what the bank does not know."""

from __future__ import annotations

import time

import pytest

from tests.rig.banked import BankedCluster, stage
from tests.rig.cluster import Cluster, PluginSet, wait_until

pytestmark = pytest.mark.timeout(180)

LATER = "--begin=now+1hour"


def test_jobs_that_were_there_are_grandfathered_and_charged_at_their_end(make_site: object) -> None:
    site: BankedCluster = make_site(plugins=False, funds={"fc_alpha": "30", "fc_beta": "100"})  # type: ignore[operator]
    assert isinstance(site, Cluster)
    before = site.sbatch("sb-alice", "--time=1", script="true")
    site.wait_job(before)
    running = site.sbatch("sb-alice", "--time=30", "-n", "2", script="sleep 40")
    site.wait_job(running, "RUNNING")
    queued = site.sbatch("sb-alice", "--time=60", LATER)
    time.sleep(1.1)  # the ledger is made in a later second than they were submitted

    site.plugins = PluginSet(stage=stage)
    site._stage()
    site.write_slurm_conf()
    site.restart_slurmctld()
    site.wait_ready()

    def grandfathered() -> bool:
        jobs = site.banking_json("jobs", user="sb-alice")
        text = str(jobs)
        return "grandfathered" in text and str(running) in text and str(queued) in text

    wait_until(grandfathered, 30, "both jobs to be shown as grandfathered", 0.3)
    # together they could cost more than the account has, and that is no reason to refuse others at once
    known = (
        "SELECT 1 FROM funds WHERE account = 'fc_alpha' AND user_id IN (-1, ?) AND kind = 'limited'"
    )
    wait_until(lambda: len(site.ledger_rows(known, [site.uid("sb-bob")])) == 2, 20, "funds")
    answer = site.try_sbatch("sb-bob", "--time=1", script="true")
    assert answer.returncode == 0 and "24.00 SU left" in answer.stderr
    site.scancel("sb-alice", str(running))
    site.scancel("sb-alice", str(queued))
    wait_until(lambda: not site.squeue(), 30, "the queue to be empty")
    wait_until(
        lambda: site.ledger_rows("SELECT 1 FROM runs WHERE job_id = ? AND state = 'ended'", [running]), 30, "its charge"
    )  # fmt: skip
    (run,) = site.ledger_rows("SELECT * FROM runs WHERE job_id = ?", [running])
    assert run["charge_csu"] == run["elapsed_s"] * 20 > 0
    assert not site.ledger_rows("SELECT 1 FROM runs WHERE job_id = ?", [before]), "ended before us"
    wait_until(lambda: not site.open_liens(), 45, "every lien to have ended", 0.3)
    wait_until(
        lambda: not site.ledger_rows("SELECT 1 FROM outbox"), 30, "everything to be delivered", 0.3
    )
    assert site.bank_jobs()[str(running)]["amount"] == f"{run['charge_csu'] / 100:.2f}"


@pytest.fixture(scope="module")
def site():  # type: ignore[no-untyped-def]
    accounts = {"fc_alpha": ("sb-alice",), "fc_beta": ("sb-carol",), "fc_unknown": ("sb-bob",)}
    with BankedCluster(accounts=accounts, funds={"fc_alpha": "100", "fc_beta": "100"}) as running:
        yield running


def test_an_account_that_the_bank_does_not_know_is_refused_by_name(site: BankedCluster) -> None:
    answer = site.try_sbatch("sb-bob", "--time=1")
    assert answer.returncode != 0
    assert "the bank does not know account fc_unknown" in answer.stderr
    assert not site.open_liens("fc_unknown")


def test_a_user_who_is_no_member_at_the_bank_is_refused_and_heals(site: BankedCluster) -> None:
    site.bank("user", "remove", "sb-carol", "--account", "fc_beta")

    def refused() -> bool:
        answer = site.try_sbatch("sb-carol", "--time=1", script="true")
        return answer.returncode != 0 and "active member of fc_beta" in answer.stderr

    wait_until(refused, 20, "the refusal", 1)
    site.bank("user", "add", "sb-carol", "--account", "fc_beta")
    wait_until(
        lambda: site.try_sbatch("sb-carol", "--time=1", script="true").returncode == 0,
        20,
        "the acceptance",
        1,
    )


def test_a_charge_for_somebody_removed_at_the_bank_waits_and_heals(site: BankedCluster) -> None:
    site.bank("user", "remove", "sb-carol", "--account", "fc_beta")
    site.banking("allow", "sb-carol", "--until", "+5m", "--reason", "leaves tomorrow")
    job = site.sbatch("sb-carol", "--time=1", script="sleep 1")
    wait_until(
        lambda: site.ledger_rows("SELECT 1 FROM runs WHERE job_id = ? AND state = 'ended'", [job]), 30, "its charge"
    )  # fmt: skip
    time.sleep(3)
    assert str(job) not in site.bank_jobs()
    kept = "SELECT 1 FROM outbox JOIN runs USING (run_id) WHERE job_id = ?"
    assert site.ledger_rows(kept, [job]), "kept, not lost"
    assert str(job) in site.banking("why", str(job)).stdout
    site.bank("user", "add", "sb-carol", "--account", "fc_beta")
    wait_until(lambda: str(job) in site.bank_jobs(), 60, "the charge at the bank", 0.5)
    site.settle()
    site.assert_agreement()
