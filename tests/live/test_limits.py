# SPDX-License-Identifier: BSD-3-Clause
"""Balances as Slurm's own limits, on real daemons: they hold when bank, relay and ledger are gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.conftest import _sites
from tests.rig.banked import BankedCluster
from tests.rig.cluster import Node, wait_until

pytestmark = pytest.mark.timeout(240)

#: SU per CPU-hour: an SU is 10 s of a CPU, a billing-minute costs 6 SU.
PRICES = {"main": "360"}
FUNDS = {"fc_alpha": "120", "fc_beta": "6000"}
SAFE = {
    "PriorityType": "priority/multifactor",
    "PriorityDecayHalfLife": "0",
    "PriorityUsageResetPeriod": "NONE",
    "PriorityCalcPeriod": "1",
}


@pytest.fixture(scope="module")
def site() -> Iterator[BankedCluster]:
    cluster = BankedCluster(
        prices=PRICES,
        funds=FUNDS,
        policy='undecided = "accept"\n',
        enforce="associations,limits,safe",
        extra_slurm_conf=SAFE,
        nodes=(Node(name="n1", cpus=32), Node(name="n2", cpus=32)),
    )
    with cluster:
        _sites.append(cluster)
        yield cluster
        _sites.remove(cluster)


def account(answer: Any, name: str) -> Any:
    (row,) = [row for row in answer["accounts"] if row["account"] == name]
    return row


def limit_in_slurm(site: BankedCluster, name: str) -> str:
    """GrpTRESMins of the account's own association, as slurmdbd has it."""
    where = [f"account={name}", "user=", "format=GrpTRESMins"]
    return site.sacctmgr("-nP", "show", "associations", "where", *where).strip()


def test_a_balance_becomes_a_limit_that_holds_without_bank_relay_and_ledger(
    site: BankedCluster,
) -> None:
    assert site.banking_json("limits", "verify") == {"problems": [], "safe": True}

    # Some usage first: 8 CPUs for 15 s are two billing-minutes, and 12 SU.
    job = site.sbatch("sb-alice", "--time=1", "--cpus-per-task=8", script="sleep 15")
    site.wait_job(job, timeout_s=40)
    wait_until(lambda: not site.open_liens("fc_alpha"), 20, "the run to be charged")
    planned = site.banking_json("limits", "plan")
    alpha = account(planned, "fc_alpha")
    assert (planned["min_per_su"], planned["loose"]) == ("1/6", "1")
    assert alpha["action"] == "set" and alpha["used_min"] in (2, 3)
    charged_csu = 120_00 - alpha["left_csu"]
    assert 12_00 <= charged_csu <= 18_00
    wanted = alpha["used_min"] + -(-alpha["left_csu"] // 600) + 1
    assert alpha["limit_min"] == wanted
    assert limit_in_slurm(site, "fc_alpha") == ""  # a plan changes nothing

    assert site.banking_json("limits", "apply", "--yes")["applied"]
    assert limit_in_slurm(site, "fc_alpha") == f"billing={wanted}"
    assert limit_in_slurm(site, "fc_gamma") == "billing=0"  # nothing is left there
    again = site.banking_json("limits", "apply", "--yes")
    assert again["commands"] == []

    # A limit that somebody else set is theirs.
    site.sacctmgr("modify", "account", "where", "name=fc_beta", "set", "GrpTRESMins=billing=77")
    beta = account(site.banking_json("limits", "plan"), "fc_beta")
    assert (beta["action"], beta["limit_min"]) == ("leave", 77)

    lose_everything_of_ours(site)
    jobs = [
        site.sbatch("sb-alice", "--time=1", "--cpus-per-task=4", script="sleep 50")
        for _ in range(7)
    ]

    def settled() -> bool:
        rows = {row["job"]: row for row in site.squeue("-u", "sb-alice")}
        waiting = [row for row in rows.values() if row["state"] == "PENDING"]
        return bool(waiting) and all(row["reason"] == "AssocGrpBillingMinutes" for row in waiting)

    wait_until(settled, 30, "the limit to hold jobs back", 0.2)
    rows = site.squeue("-u", "sb-alice")
    running = [row for row in rows if row["state"] == "RUNNING"]
    # Four CPUs for a minute each: what may start is what the balance pays for, and nothing beyond it.
    assert len(running) == (wanted - alpha["used_min"]) // 4
    assert len(jobs) > len(running)
    refused = site.sbatch("sb-mallory", "--time=1", script="true")
    wait_until(
        lambda: site.job(refused)["Reason"] == "AssocGrpBillingMinutes", 20, "nothing for nothing"
    )

    # Usage survives slurmctld: what has run stays counted, and what waited still waits.
    site.stop_daemon("slurmctld")
    site.start_slurmctld()
    wait_until(settled, 30, "the limit to hold jobs back after a restart", 0.2)
    site.scancel("root", "-u", "sb-alice")


def test_a_cluster_on_which_limits_leak_is_refused_with_the_lines_to_change(
    site: BankedCluster,
) -> None:
    site.extra_slurm_conf["PriorityDecayHalfLife"] = "1-0"
    site.enforce = "associations,limits"
    site.write_slurm_conf()
    site.restart_slurmctld()
    site.sacctmgr("add", "qos", "double")
    site.sacctmgr("modify", "qos", "where", "name=double", "set", "UsageFactor=2")
    site.sacctmgr("modify", "qos", "where", "name=normal", "set", "GrpTRESMins=billing=1000")
    told = site.banking("limits", "verify", check=False)
    assert told.returncode == 1
    for part in (
        "UNSAFE: AccountingStorageEnforce = associations,limits: ",
        "  slurm.conf: AccountingStorageEnforce=associations,limits,safe",
        "UNSAFE: PriorityDecayHalfLife = 1-00:00:00: ",
        "UNSAFE: QOS double: UsageFactor = 2 without the flag UsageFactorSafe: ",
        "  sacctmgr -i modify qos where name=double set Flags+=UsageFactorSafe",
        "UNSAFE: QOS normal: GrpTRESMins = billing=1000: ",
        "  sacctmgr -i modify qos where name=normal set GrpTRESMins=billing=-1",
    ):
        assert part in told.stdout
    # The commands that it prints are commands, and after them nothing is said of QOS any more.
    for line in told.stdout.splitlines():
        if line.startswith("  sacctmgr -i "):
            site.sacctmgr(*line.split()[2:])
    assert "UNSAFE: QOS" not in site.banking("limits", "verify", check=False).stdout

    site.stop_daemon("slurmctld")
    told = site.banking("limits", "verify", check=False)
    assert (told.returncode, told.stdout) == (3, "")
    assert len(told.stderr.splitlines()) == 1
    site.start_slurmctld()


def lose_everything_of_ours(site: BankedCluster) -> None:
    """The bank is dead, the relay is killed, the ledger is deleted: every submission is undecided."""
    site.stop_bank()
    site.stop_daemon("slurmctld")
    pid = site.relay_pid()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: site.relay_pid() is None, 10, "the relay to end")
    for path in site.state_dir.iterdir():
        path.unlink()
    site.start_slurmctld()
