# SPDX-License-Identifier: BSD-3-Clause
"""What jobs cost when Slurm, an operator or a price list changes its mind, on real daemons.

One cluster, with an account for each test that needs to know what is left in it. Each run's charge is compared with the
one that `plain_charge` makes of sacct's figures, and at the end of all with what the bank counts.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

import pytest

from tests.fidelity import plain_charge
from tests.live.conftest import _sites
from tests.rig.banked import BankedCluster
from tests.rig.cluster import OPERATOR, Node, Partition, wait_until

pytestmark = pytest.mark.timeout(240)

Rates = Mapping[str, str]

ONE = "--time=1"  #: one CPU for a minute: 6.00 SU in `main`, 0.10 SU a second
LATER = "--begin=now+1hour"

PRICES: Mapping[str, Rates] = {
    "main": {"cpu": "360"},
    "dear": {"cpu": "720"},
    "mem": {"cpu": "360", "mem_gb": "360", "combine": "max"},
    "node": {"node": "360"},
    "gpu": {"cpu": "36", "mem_gb": "7.2", "gpu:a100": "3600"},
    "fail": {"cpu": "360"},
    "low": {"cpu": "360"},
    "lowest": {"cpu": "360"},
    "urgent": {"cpu": "720"},
}
QOS: Mapping[str, str] = {"high": "2", "gratis": "0"}
#: NODE_FAIL and CANCELLED_BY_ADMIN have their default, 0.
STATE_FACTOR: Mapping[str, str] = {"PREEMPTED": "0.25", "FAILED": "0.5"}
DEFAULT_STATE_FACTOR: Mapping[str, str] = {
    "NODE_FAIL": "0",
    "BOOT_FAIL": "0",
    "CANCELLED_BY_ADMIN": "0",
}

#: SU of each account; sb-alice is in all of them.
FUNDS: Mapping[str, str] = {
    "fc_alpha": "100000",
    "fc_moved": "100",
    "fc_poor": "10",
    "fc_spent": "12",
    "fc_grow": "20",
    "fc_array": "190",
    "fc_half": "10",
    "fc_below": "10",
    "fc_caps": "100",
    "fc_low": "100",
    "fc_log": "10",
    "fc_fast": "10",
    "fc_free": "1",
}
ACCOUNTS: Mapping[str, tuple[str, ...]] = {
    **{account: ("sb-alice",) for account in FUNDS},
    "fc_alpha": ("sb-alice", "sb-bob", OPERATOR),
    "fc_caps": ("sb-alice", "sb-carol"),
}

NODES = (
    Node(name="n1", cpus=32, memory_mib=64000),
    Node(name="n2", cpus=32, memory_mib=64000),
    Node(name="g1", cpus=8, memory_mib=32000, gpus=("a100", 2)),
    Node(name="f1", cpus=2, memory_mib=4000),
    Node(name="p1", cpus=2, memory_mib=4000),
)
MEMORY = "DefMemPerCPU=500"
PARTITIONS = (
    Partition(name="main", default=True, nodes=("n1", "n2"), extra=MEMORY),
    Partition(name="dear", nodes=("n1", "n2"), extra=MEMORY),
    Partition(name="mem", nodes=("n1", "n2"), extra=MEMORY),
    Partition(name="node", nodes=("n1", "n2"), extra=MEMORY),
    Partition(name="gpu", nodes=("g1",), extra=MEMORY),
    Partition(name="fail", nodes=("f1",), extra=MEMORY),
    Partition(name="low", nodes=("p1",), extra=f"{MEMORY} PreemptMode=REQUEUE"),
    Partition(name="lowest", nodes=("p1",), extra=f"{MEMORY} PreemptMode=CANCEL"),
    Partition(name="urgent", nodes=("p1",), extra=f"{MEMORY} PriorityTier=9 PreemptMode=OFF"),
)


def price_toml(rates: Rates) -> str:
    if set(rates) == {"cpu"}:
        return rates["cpu"]
    cells = [
        f'"{key}" = "{value}"' if key == "combine" else f'"{key}" = {value}'
        for key, value in rates.items()
    ]
    return "{ " + ", ".join(cells) + " }"


@dataclasses.dataclass
class Dated:
    """A price list that comes into force by itself."""

    from_s: int
    prices: Mapping[str, Rates]


class MoneyCluster(BankedCluster):
    """With several price lists in its life, and the oracle for runs of each."""

    def __init__(self, **options: Any) -> None:
        self.price_list: Mapping[str, Rates] = PRICES
        self.dated: tuple[Dated, ...] = ()
        self.mode = "strict-allocation"
        #: What was in force, and from when (unix seconds).
        self.history: list[tuple[int, Mapping[str, Rates]]] = [(0, PRICES)]
        super().__init__(**options)

    def write_banking(self) -> None:
        self.prices = {name: price_toml(rates) for name, rates in self.price_list.items()}
        super().write_banking()
        text = self.bank_config.read_text()
        text = text.replace('mode = "strict-allocation"', f'mode = "{self.mode}"')
        text += "\n[QosMultiplier]\n" + "".join(f"{k} = {v}\n" for k, v in QOS.items())
        text += "\n[StateFactor]\n" + "".join(f"{k} = {v}\n" for k, v in STATE_FACTOR.items())
        for dated in self.dated:
            at = datetime.datetime.fromtimestamp(dated.from_s).isoformat()
            text += f"\n[[PriceList]]\nfrom = {at}\n[PriceList.PartitionPrice]\n"
            text += "".join(f"{k} = {price_toml(v)}\n" for k, v in dated.prices.items())
            text += "[PriceList.QosMultiplier]\n"
            text += "".join(f"{k} = {v}\n" for k, v in QOS.items())
            text += "[PriceList.StateFactor]\n"
            text += "".join(f"{k} = {v}\n" for k, v in STATE_FACTOR.items())
        self.write_bank_config(text)

    def set_up_bank(self) -> None:
        super().set_up_bank()
        self.bank("user", "add", "sb-alice", "--account", "fc_caps", "--limit", "12")

    def start(self) -> None:
        super().start()
        for name in QOS:
            self.sacctmgr("add", "qos", name)
        self.sacctmgr("modify", "account", *self.accounts, "set", f"qos=normal,{','.join(QOS)}")
        last = list(QOS)[-1]

        def usable() -> bool:
            return (
                f"QOS={last}("
                in self.run_as("root", ["scontrol", "show", "assoc_mgr", "flags=qos"]).stdout
            )

        wait_until(usable, 30, "the QOS to reach slurmctld", 0.2)

    def use_policy(self, policy: str = "", mode: str = "strict-allocation") -> None:
        """These lines in [Policy], in force when it returns."""
        self.policy, self.mode = policy, mode
        self.write_banking()
        time.sleep(1.1)

    def use_prices(self, prices: Mapping[str, Rates], *dated: Dated) -> None:
        """In force when it returns, the dated ones from their time on."""
        changed = prices != self.price_list
        known = len(self.price_lists())
        self.price_list, self.dated = prices, dated
        self.write_banking()
        time.sleep(1.1)
        if changed:
            self.sbatch("sb-alice", "-A", "fc_alpha", ONE, script="true")  # slurmctld notices
            wait_until(lambda: len(self.price_lists()) > known, 15, "the price list", 0.2)
            self.history.append((self.price_lists()[-1]["in_force_us"] // 1_000_000, prices))
        self.history += [(one.from_s, one.prices) for one in dated]

    def price_lists(self) -> list[dict[str, Any]]:
        return self.ledger_rows("SELECT * FROM price_lists ORDER BY in_force_us")

    def sacct_costs(self) -> dict[tuple[int, int], Decimal]:
        """By the plain program, each at the price list that was in force when it started."""
        result = subprocess.run(
            ["sacct", "-a", "-X", "-D", "-n", "-P", "--noconvert", "-S", "now-2days", "-E", "now+1day"]
            + ["-o", ",".join(plain_charge.FIELDS)],
            env={**self.env(), "SLURM_TIME_FORMAT": "%s", "TZ": "UTC"},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        costs = {}
        for run in plain_charge.runs_of(plain_charge.rows_of(result.stdout)):
            row = run[0]
            if not row["Partition"]:
                continue  # its start has not reached slurmdbd yet
            prices = [prices for since, prices in self.history if since <= int(row["Start"])][-1]
            listed = {
                "partitions": prices,
                "qos": QOS,
                "state_factor": {**DEFAULT_STATE_FACTOR, **STATE_FACTOR},
                "admin_uids": [0, self.uid("slurm"), self.uid(OPERATOR)],
            }
            csu = plain_charge.charge(run, listed)
            costs[int(row["JobIDRaw"]), int(row["Submit"])] = Decimal(csu).scaleb(-2)
        return costs

    # -- what the tests ask ---------------------------------------------------------------------------------------

    def submit(self, account: str, *args: str, script: str = "sleep 60") -> int:
        return self.sbatch("sb-alice", "-A", account, *args, script=script)

    def attempt(
        self, account: str, *args: str, user: str = "sb-alice", script: str = "sleep 60"
    ) -> subprocess.CompletedProcess[str]:
        return self.try_sbatch(user, "-A", account, *args, script=script)

    def update(
        self, job: int, *changes: str, user: str = "sb-alice"
    ) -> subprocess.CompletedProcess[str]:
        return self.run_as(user, ["scontrol", "update", f"job={job}", *changes])

    def runs(self, job: int, state: str | None = None) -> list[dict[str, Any]]:
        return self.ledger_rows(
            "SELECT * FROM runs WHERE (job_id = ?1 OR array_job_id = ?1) AND (?2 IS NULL OR state = ?2)"
            " ORDER BY run_id",
            [job, state],
        )

    def wait_runs(self, job: int, state: str, count: int = 1, timeout_s: float = 30) -> list[Any]:
        wait_until(
            lambda: len(self.runs(job, state)) >= count,
            timeout_s,
            f"{count} {state} run(s) of job {job}",
            0.2,
        )
        return self.runs(job, state)

    def running(self, job: int) -> dict[str, Any]:
        (run,) = self.wait_runs(job, "running")
        return dict(run)

    def ended(self, job: int, timeout_s: float = 30) -> dict[str, Any]:
        """The one run of a job, ended."""
        (run,) = self.wait_runs(job, "ended", timeout_s=timeout_s)
        return dict(run)

    def liens(self, job: int) -> list[dict[str, Any]]:
        return self.ledger_rows(
            "SELECT * FROM liens WHERE job_id = ? AND state != 'ended' ORDER BY created_us", [job]
        )

    def lien(self, job: int) -> dict[str, Any]:
        """The one open lien, once it is confirmed."""
        wait_until(
            lambda: [row["state"] for row in self.liens(job)] == ["confirmed"],
            20,
            f"a confirmed lien of job {job}",
            0.2,
        )
        return self.liens(job)[0]

    def entries(self, job: int) -> list[dict[str, Any]]:
        return self.ledger_rows("SELECT * FROM entries WHERE job_id = ? ORDER BY seq", [job])

    def available(self, account: str) -> Decimal:
        """What the ledger has for the whole account, SU."""
        (row,) = self.ledger_rows(
            "SELECT remaining_csu - (SELECT COALESCE(SUM(amount_csu), 0) FROM exposure"
            " WHERE account = ?1 AND user_id = -1) AS csu FROM funds WHERE account = ?1 AND user_id = -1",
            [account],
        )
        return Decimal(row["csu"]).scaleb(-2)

    def explained(self, job: int) -> list[dict[str, Any]]:
        """The sums of a job's ended runs; each must come out as charged when it is computed again."""
        runs: list[dict[str, Any]] = [
            run for run in self.banking_json("explain", str(job))["runs"] if run["state"] == "ended"
        ]
        for run in runs:
            assert run["charge"]["agrees"], run
            assert run["charge"]["recomputed_csu"] == run["charge_csu"]
        return runs

    def lines_of(self, event: str, job: int) -> list[dict[str, str]]:
        """The canonical lines of one event about one job, from slurmctld.log."""
        found = []
        for line in self.log("slurmctld").splitlines():
            if f"slurm_banking: {event} " in line:
                words = dict(re.findall(r"(\w+)=(\S+)", line))
                if words.get("job_id") == str(job):
                    found.append(words)
        return found

    def cancel(self, *jobs: int, user: str = "sb-alice") -> None:
        self.scancel(user, *(str(job) for job in jobs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slow:
    """Jobs whose end takes Slurm a minute: begun first, looked at last."""

    over_its_limit: int
    on_dead_node: int
    requeued_from_dead_node: int


@pytest.fixture(scope="module")
def site() -> Iterator[MoneyCluster]:
    cluster = MoneyCluster(
        nodes=NODES,
        partitions=PARTITIONS,
        accounts=ACCOUNTS,
        funds=FUNDS,
        extra_slurm_conf={
            "SelectTypeParameters": "CR_Core_Memory",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "SlurmdTimeout": "20",
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1,bf_resolution=60,enable_user_top",
        },
    )
    with cluster as running:
        _sites.append(running)
        yield running
        _sites.remove(running)


@pytest.fixture(scope="module", autouse=True)
def slow(site: MoneyCluster) -> Slow:
    stubborn = "trap '' TERM\nfor i in $(seq 120); do sleep 1; done"
    jobs = Slow(
        over_its_limit=site.submit("fc_alpha", ONE, script=stubborn),
        on_dead_node=site.submit("fc_alpha", "-p", "fail", "--no-requeue", ONE),
        requeued_from_dead_node=site.submit("fc_alpha", "-p", "fail", "--requeue", ONE),
    )
    for job in (jobs.on_dead_node, jobs.requeued_from_dead_node):
        site.running(job)
    site.kill9("slurmd-f1")
    return jobs


@pytest.fixture
def policy(site: MoneyCluster) -> Iterator[Callable[..., None]]:
    """[Policy] for one test."""
    yield site.use_policy
    site.use_policy()


# -- scontrol update ----------------------------------------------------------------------------------------------------


#: Of one CPU for a minute: options, an update, the one that takes it back, and what is set aside in between.
UPDATES = (
    ("-n1", "TimeLimit=3", "TimeLimit=1", 1800),
    ("-n1", "Partition=dear", "Partition=main", 1200),
    ("-n1", "QOS=high", "QOS=normal", 1200),
    ("-n1", "NumTasks=4 NumCPUs=4", "NumTasks=1 NumCPUs=1", 2400),
    ("-pnode", "NumNodes=2", "NumNodes=1", 1200),
    ("-pmem --mem=1G", "MinMemoryNode=3072", "MinMemoryNode=1024", 1800),
    (
        "-pgpu --mem=1G --gres=gpu:1",
        "TresPerNode=gres:gpu:2",
        "TresPerNode=gres:gpu:1",
        2 * 6000 + 60 + 12,
    ),
)


def raised(site: MoneyCluster) -> list[int]:
    """A waiting job for each of `UPDATES`, updated, and what that sets aside seen to be set aside at once."""
    jobs = [site.submit("fc_alpha", *options.split(), ONE, LATER) for options, *_ in UPDATES]
    for job, (_, change, _, cost_csu) in zip(jobs, UPDATES, strict=True):
        before_csu = site.lien(job)["amount_csu"]
        answer = site.update(job, *change.split())
        # Slurm 25.11 refuses a user's change of QOS after it has made it.
        made = change == "QOS=high" and site.job(job)["QOS"] == "high"
        assert (answer.returncode, answer.stderr) == (0, "") or made, (change, answer.stderr)
        (lien,) = site.liens(job)
        assert before_csu < lien["amount_csu"] == cost_csu, change
    return jobs


def test_an_update_of_a_waiting_job_is_set_aside_at_once_and_is_what_slurm_then_allocates(
    site: MoneyCluster,
) -> None:
    jobs = raised(site)
    for job in jobs:
        assert site.update(job, "StartTime=now").returncode == 0
    for job, (_, change, _, cost_csu) in zip(jobs, UPDATES, strict=True):
        assert site.running(job)["lien_csu"] == cost_csu, change
        record = site.job(job)
        minutes = int(record["TimeLimit"].split(":")[1])
        tres, prices = (
            plain_charge.tres_of(record.get("AllocTRES") or record["TRES"]),
            PRICES[record["Partition"]],
        )
        factor = 2 if record["QOS"] == "high" else 1
        assert plain_charge.per_hour(tres, prices) * factor * 100 * minutes / 60 == cost_csu
    site.cancel(*jobs)


def test_an_update_that_lowers_the_cost_frees_it_when_slurm_is_seen_to_have_done_it(
    site: MoneyCluster,
) -> None:
    def seen(job: int) -> bool:
        return site.lien(job)["proposed_csu"] is None

    def freed(job: int) -> bool:
        return site.lien(job)["amount_csu"] in (600, 6072)

    jobs = raised(site)
    for job in jobs:
        wait_until(functools.partial(seen, job), 15, "the update to be seen", 0.2)
    for job, (_, _, back, _) in zip(jobs, UPDATES, strict=True):
        answer = site.update(job, *back.split())
        made = back == "QOS=normal" and site.job(job)["QOS"] == "normal"
        assert answer.returncode == 0 or made, back
    for job, (_, _, back, cost_csu) in zip(jobs, UPDATES, strict=True):
        wait_until(functools.partial(freed, job), 15, f"{back} to be seen", 0.2)
        lowered = [entry for entry in site.entries(job) if entry["kind"] == "lower"]
        assert [entry["actor"] for entry in lowered] == ["relay"], back
        assert lowered[0]["amount_csu"] in (600 - cost_csu, 6072 - cost_csu), back
        assert lowered[0]["reason"].startswith("changed in the queue"), back
    site.cancel(*jobs)


def test_an_update_to_another_account_is_set_aside_there_before_it_is_freed_here(
    site: MoneyCluster,
) -> None:
    job = site.submit("fc_alpha", ONE, LATER)
    site.lien(job)
    assert site.update(job, "Account=fc_moved").returncode == 0
    at_once = {row["account"]: row["amount_csu"] for row in site.liens(job)}
    assert at_once == {"fc_alpha": 600, "fc_moved": 600}
    assert site.lien(job)["account"] == "fc_moved"
    assert site.available("fc_moved") == 94
    site.cancel(job)
    wait_until(lambda: site.available("fc_moved") == 100, 10, "its lien to be freed", 0.2)


def test_an_update_that_does_not_fit_is_refused_whatever_it_changes_and_why_says_so(
    site: MoneyCluster,
) -> None:
    job, rich = site.submit("fc_poor", ONE, LATER), site.submit("fc_alpha", ONE, LATER)
    before, of_rich = site.lien(job), site.lien(rich)
    record = site.job(job)
    changes = [
        "TimeLimit=2",
        "Partition=dear",
        "QOS=high",
        "NumTasks=2 NumCPUs=2",
        "NumNodes=2",
        "MinMemoryNode=2048 Partition=mem",
    ]
    for change in changes:
        answer = site.update(job, *change.split())
        assert answer.returncode != 0, change
    moved = site.update(rich, "Account=fc_poor")
    assert moved.returncode != 0
    assert site.job(job) == record
    assert site.liens(job) == [before] and site.liens(rich) == [of_rich]
    refused = site.lines_of("update_refused", job)
    assert [line["reason"] for line in refused] == ["insufficient_funds"] * len(changes)
    assert {line["available_su"] for line in refused} == {"4.00"}
    assert site.lines_of("update_refused", rich)[0]["account"] == "fc_poor"
    why = site.banking("why", str(job), user="sb-alice").stdout
    assert "fc_poor has 4.00 SU available; this job could cost up to 12.00 SU" in why
    assert "fc_poor has 4.00 SU" in site.banking("why", str(rich), user="sb-alice").stdout
    site.cancel(job, rich)


def test_what_slurm_refuses_after_us_is_set_aside_for_some_seconds_only(site: MoneyCluster) -> None:
    waiting = site.submit("fc_alpha", ONE, LATER)
    running = site.submit("fc_alpha", "--time=5")
    site.lien(waiting)
    site.running(running)
    assert site.update(waiting, "TimeLimit=4", "ReservationName=none").returncode != 0
    assert site.update(running, "Partition=dear").returncode != 0
    assert site.update(running, "QOS=high", user="root").returncode != 0
    assert site.update(running, "TimeLimit=9").returncode != 0, "only operators raise that"
    assert site.liens(waiting)[0]["amount_csu"] == 2400
    assert site.running(running)["ledger_csu"] == 6000, "the dearest of the three"
    wait_until(lambda: site.lien(waiting)["amount_csu"] == 600, 25, "the lien to be as before", 0.3)
    wait_until(lambda: site.running(running)["ledger_csu"] == 3000, 25, "the run as before", 0.3)
    site.cancel(waiting, running)


def test_an_update_of_a_running_job_is_raised_at_once_and_lowered_when_slurm_has_done_it(
    site: MoneyCluster,
) -> None:
    job = site.submit("fc_grow", ONE)
    assert site.running(job)["ledger_csu"] == 600
    assert site.update(job, "TimeLimit=3", user="root").returncode == 0
    assert site.running(job)["ledger_csu"] == 1800 and site.available("fc_grow") == 2
    refused = site.update(job, "TimeLimit=4", user="root")
    assert refused.returncode != 0 and site.job(job)["TimeLimit"] == "00:03:00"
    (line,) = site.lines_of("update_refused", job)
    assert (line["estimate_su"], line["available_su"]) == ("24.00", "2.00")
    why = site.banking("why", str(job)).stdout
    assert "fc_grow has 2.00 SU available; this job could cost up to 24.00 SU" in why
    assert f"Now: {job} runs, 18.00 SU set aside." in why
    refused = site.update(job, "EndTime=2037-01-01T00:00:00", user="root")
    assert refused.returncode != 0 and len(site.lines_of("update_refused", job)) == 2
    wait_until(lambda: site.running(job)["proposed_csu"] is None, 20, "it to be seen", 0.2)
    assert site.running(job)["ledger_csu"] == 1800
    assert site.update(job, "TimeLimit=2").returncode == 0
    wait_until(lambda: site.running(job)["ledger_csu"] == 1200, 20, "the run to be lowered", 0.2)
    site.cancel(job)


def test_an_update_of_one_task_sets_aside_for_all_until_each_is_seen_to_run(
    site: MoneyCluster,
) -> None:
    job = site.submit("fc_alpha", ONE, "--array=1-3", LATER)
    site.lien(job)
    answer = site.run_as("sb-alice", ["scontrol", "update", f"job={job}_2", "TimeLimit=3"])
    assert answer.returncode == 0
    assert site.liens(job)[0]["amount_csu"] == 5400
    time.sleep(1.5)
    assert site.liens(job)[0]["amount_csu"] == 5400
    assert site.update(job, "StartTime=now").returncode == 0
    wait_until(
        lambda: sorted(run["ledger_csu"] for run in site.runs(job, "running")) == [600, 600, 1800],
        15, "each task to have its own", 0.2,
    )  # fmt: skip
    assert not site.liens(job)
    site.cancel(job)


def test_what_costs_nothing_leaves_no_entry_and_is_not_refused_with_no_funds_left(
    site: MoneyCluster,
) -> None:
    waiting = site.submit("fc_spent", ONE, "--array=1-1", LATER)
    running = site.submit("fc_spent", "--requeue", ONE)
    site.lien(waiting)
    site.running(running)
    wait_until(lambda: site.running(running)["start_acked"], 20, "its start at the bank", 0.2)
    assert site.available("fc_spent") == 0
    site.bank("withdraw", "fc_spent", "6", "--reason", "test")
    wait_until(lambda: site.available("fc_spent") == -6, 20, "the withdrawal to be seen", 0.3)
    before = site.entries(waiting) + site.entries(running)
    begun = len(site.log("slurmctld"))
    for command in (
        "hold {waiting}",
        "release {waiting}",
        "uhold {waiting}",
        "release {waiting}",
        "top {waiting}",
        "update job={waiting} Nice=10",
        "update job={waiting} Comment=hello",
        "update job={waiting} JobName=other",
        "update job={waiting} Priority=0",
        "release {waiting}",
        "update job={waiting} ArrayTaskThrottle=1",
        "update job={waiting} Dependency=afterany:{running}",
        "update job={waiting} StartTime=now+2hours",
        "update job={running} Comment=hello",
        "update job={running} Requeue=1",
    ):
        argv = command.format(waiting=waiting, running=running).split()
        answer = site.run_as("sb-alice", ["scontrol", *argv])
        assert answer.returncode == 0, (command, answer.stderr)
    time.sleep(1.5)  # the queue has been looked at
    assert site.entries(waiting) + site.entries(running) == before
    assert "slurm_banking: update_" not in site.log("slurmctld")[begun:]
    # The first run is charged, and what the next could cost is set aside, though there is nothing left.
    assert site.run_as("sb-alice", ["scontrol", "requeue", str(running)]).returncode == 0
    site.ended(running)
    assert site.available("fc_spent") < -6
    site.cancel(waiting, running)


def test_fewer_tasks_of_an_array_at_a_time_cost_what_all_cost(site: MoneyCluster) -> None:
    job = site.submit("fc_alpha", ONE, "--array=1-5%5", LATER)
    assert site.lien(job)["amount_csu"] == 3000
    assert site.update(job, "ArrayTaskThrottle=1").returncode == 0
    time.sleep(1.5)
    assert site.lien(job)["amount_csu"] == 3000
    site.cancel(job)


# -- how a run ended ----------------------------------------------------------------------------------------------------


def test_a_run_that_an_operator_cancels_is_free_and_one_that_its_user_cancels_is_not(
    site: MoneyCluster,
) -> None:
    jobs = {user: site.submit("fc_alpha", ONE) for user in ("sb-alice", OPERATOR, "root")}
    for job in jobs.values():
        site.running(job)
    time.sleep(1)
    for user, job in jobs.items():
        site.cancel(job, user=user)
        run, charged = site.ended(job), user == "sb-alice"
        assert run["slurm_state"] == "CANCELLED" and run["elapsed_s"] >= 1
        assert run["charge_csu"] == (run["elapsed_s"] * 10 if charged else 0)
        (told,) = site.explained(job)
        assert told["charge"]["state"] == ("CANCELLED" if charged else "CANCELLED_BY_ADMIN")
        assert told["charge"]["state_factor"] == ("1" if charged else "0")


def test_an_operator_who_cancels_their_own_run_pays_for_it(site: MoneyCluster) -> None:
    job = site.sbatch(OPERATOR, "-A", "fc_alpha", ONE, script="sleep 60")
    site.running(job)
    time.sleep(1)
    site.cancel(job, user=OPERATOR)
    run = site.ended(job)
    assert run["charge_csu"] == run["elapsed_s"] * 10 > 0


def test_a_final_state_is_charged_the_share_that_is_configured_for_it(site: MoneyCluster) -> None:
    job = site.submit("fc_alpha", ONE, script="sleep 3; exit 1")
    run = site.ended(job)
    assert (run["slurm_state"], run["charge_csu"]) == ("FAILED", run["elapsed_s"] * 5)
    (told,) = site.explained(job)
    assert told["charge"]["state_factor"] == "0.5"
    assert "x 0.5 for failed" in site.banking("explain", str(job), user="sb-alice").stdout


def test_preempted_runs_are_charged_their_share_and_the_run_after_it_in_full(
    site: MoneyCluster,
) -> None:
    again = site.submit("fc_alpha", "-p", "low", "--requeue", ONE)
    gone = site.submit("fc_alpha", "-p", "lowest", ONE)
    site.running(again)
    site.running(gone)
    time.sleep(2)
    urgent = site.submit("fc_alpha", "-p", "urgent", "-n2", ONE, script="sleep 1")
    first, over = site.ended(again), site.ended(gone)
    for run in (first, over):
        assert run["slurm_state"] == "PREEMPTED" and run["elapsed_s"] >= 2
        assert run["charge_csu"] == (run["elapsed_s"] * 10 + 2) // 4, "a quarter, half up"
    assert site.ended(urgent)["charge_csu"] == site.ended(urgent)["elapsed_s"] * 40
    assert site.lien(again)["amount_csu"] == 600, "what its next run could cost"
    assert site.update(again, "StartTime=now", user="root").returncode == 0
    site.running(again)
    time.sleep(1)
    site.cancel(again)
    _, second = site.wait_runs(again, "ended", 2)
    assert second["charge_csu"] == second["elapsed_s"] * 10 > 0
    factors = [run["charge"]["state_factor"] for run in site.explained(again)]
    assert factors == ["0.25", "1"]


# -- how long it ran ----------------------------------------------------------------------------------------------------


def test_time_suspended_is_not_charged_whether_the_job_goes_on_is_killed_or_requeued(
    site: MoneyCluster,
) -> None:
    resumed, killed, again = jobs = [site.submit("fc_alpha", "--requeue", ONE) for _ in range(3)]

    def suspend(*jobs: int, verb: str = "suspend") -> None:
        for job in jobs:
            site.run_as("root", ["scontrol", verb, str(job)], check=True)

    for job in jobs:
        site.running(job)
    suspend(*jobs)
    time.sleep(3)
    suspend(resumed, verb="resume")
    time.sleep(1)
    suspend(resumed)
    time.sleep(2)
    suspend(resumed, verb="resume")
    time.sleep(1)
    site.cancel(resumed, killed)
    assert site.run_as("sb-alice", ["scontrol", "requeue", str(again)]).returncode == 0
    for job in jobs:
        run = site.ended(job)
        assert run["elapsed_s"] <= time.time() - run["start_time"] - 4
        assert run["charge_csu"] == run["elapsed_s"] * 10
    assert site.ended(resumed)["elapsed_s"] >= 2
    site.cancel(again)


def test_tasks_of_an_array_cancelled_while_they_run_are_charged_until_then(
    site: MoneyCluster,
) -> None:
    job = site.submit("fc_alpha", ONE, "--array=1-3", script="sleep 6")
    site.wait_runs(job, "running", 3)
    time.sleep(1)
    site.scancel("sb-alice", f"{job}_[1,3]")
    site.wait_runs(job, "ended", 3)
    ended = {run["array_task_id"]: run for run in site.runs(job)}
    assert all(run["charge_csu"] == run["elapsed_s"] * 10 for run in ended.values())
    assert ended[2]["slurm_state"] == "COMPLETED" and ended[2]["elapsed_s"] >= 6
    assert max(ended[1]["elapsed_s"], ended[3]["elapsed_s"]) < 6
    (told,) = [run for run in site.explained(job) if run["job"] == f"{job}_3"]
    assert told["charge_csu"] == ended[3]["charge_csu"]


def test_a_job_that_never_started_is_not_charged(site: MoneyCluster) -> None:
    failing = site.submit("fc_alpha", ONE, script="exit 1")
    job = site.submit(
        "fc_alpha", ONE, f"--dependency=afterok:{failing}", "--kill-on-invalid-dep=yes"
    )
    held = site.submit("fc_alpha", ONE, "--hold")
    site.cancel(held, user="root")
    wait_until(lambda: not site.liens(job) + site.liens(held), 20, "their liens to be voided", 0.2)
    assert site.runs(job) == site.runs(held) == []
    assert not {str(job), str(held)} & set(site.bank_jobs())


def test_runs_that_ended_before_their_start_was_reported_are_delivered_whole(
    site: MoneyCluster,
) -> None:
    pid = site.relay_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        job = site.submit("fc_alpha", ONE, "--requeue", script="sleep 2")
        site.wait_job(job, "RUNNING")
        site.requeue("sb-alice", job)
        first, second = site.wait_runs(job, "ended", 2)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert second["restart_count"] == 1
    for run in (first, second):
        assert run["charge_csu"] == run["elapsed_s"] * 10 and run["bank_job_id"] is None
    wait_until(lambda: all(run["end_acked"] for run in site.runs(job)), 20, "their ends", 0.2)
    delivered = [entry["reason"] for entry in site.entries(job) if entry["kind"] == "delivered"]
    assert len(delivered) == 2 and all(reason.startswith("end ") for reason in delivered)
    rows = site.bank_jobs()
    for name, run in ((str(job), first), (f"{job}-r1", second)):
        assert Decimal(rows[name]["amount"]) == Decimal(run["charge_csu"]).scaleb(-2)
        assert rows[name]["startdate"] and rows[name]["enddate"]


# -- what it had --------------------------------------------------------------------------------------------------------


def test_gpus_and_memory_are_charged_as_they_were_allocated(site: MoneyCluster) -> None:
    gpu = site.submit("fc_alpha", "-pgpu", "-n2", "--gpus=a100:1", "--mem=3G", ONE, script="sleep 2")  # fmt: skip
    memory = site.submit("fc_alpha", "-pmem", "-n2", "--mem=5G", ONE, script="sleep 2")
    run = site.ended(gpu)
    assert run["lien_csu"] == 2 * 60 + 3 * 12 + 6000
    su_per_hour = 2 * 36 + 3 * Decimal("7.2") + 3600
    assert run["charge_csu"] == int(su_per_hour * run["elapsed_s"] * 100 / 3600 + Decimal("0.5"))
    (told,) = site.explained(gpu)
    (segment,) = told["charge"]["segments"]
    units = {part["resource"]: part["units"] for part in segment["hour"]["parts"]}
    assert units == {"cpu": "2", "mem_gb": "3", "gpu:a100": "1"}
    run = site.ended(memory)
    assert run["charge_csu"] == run["elapsed_s"] * 50, "the dearer of 2 CPUs and 5 GB"
    site.explained(memory)


def test_a_run_is_charged_in_the_partition_and_qos_that_it_ran_in(site: MoneyCluster) -> None:
    job = site.submit("fc_alpha", "-p", "main,dear", "--qos=high", ONE)
    waiting = site.submit("fc_alpha", "-p", "main,dear", "--qos=high", ONE, LATER)
    assert site.lien(waiting)["amount_csu"] == 2400, "the dearest in which it could run"
    run = site.running(job)
    assert (run["partition"], run["qos"], run["lien_csu"]) == ("main", "high", 1200)
    free = site.submit("fc_alpha", "--qos=gratis", ONE)
    site.running(free)
    time.sleep(1)
    site.cancel(job, waiting, free)
    run = site.ended(job)
    assert run["charge_csu"] == run["elapsed_s"] * 20 > 0
    assert site.ended(free)["charge_csu"] == 0


# -- policy -------------------------------------------------------------------------------------------------------------


def test_a_share_of_the_estimate_is_set_aside_and_the_charge_is_made_in_full(
    site: MoneyCluster, policy: Callable[..., None]
) -> None:
    policy("lien_share = 0.5")
    answer = site.attempt("fc_half", "--time=3", "--hold", script="sleep 60")
    assert answer.returncode == 0, answer.stderr
    assert "could cost up to 18.00 SU" in answer.stderr
    assert "9.00 SU of that are set aside" in answer.stderr
    job = int(answer.stdout)
    assert site.lien(job)["amount_csu"] == 900 and site.available("fc_half") == 1
    refused = site.attempt("fc_half", ONE)
    assert refused.returncode != 0
    assert "of which 3.00 SU would be set aside" in refused.stderr
    assert site.run_as("sb-alice", ["scontrol", "release", str(job)]).returncode == 0
    assert site.running(job)["lien_csu"] == 900
    time.sleep(2)
    site.cancel(job)
    run = site.ended(job)
    assert run["charge_csu"] == run["elapsed_s"] * 10 > 0
    (told,) = site.explained(job)
    assert (told["lien"]["per_task_csu"], told["lien"]["per_task_lien_csu"]) == (1800, 900)


def test_an_account_may_go_below_zero_as_far_as_is_configured_and_no_further(
    site: MoneyCluster, policy: Callable[..., None]
) -> None:
    policy("overdraft_su = 8.00")
    first = site.submit("fc_below", "--time=2", LATER)
    assert site.available("fc_below") == -2
    second = site.submit("fc_below", ONE, LATER)
    assert site.available("fc_below") == -8
    refused = site.attempt("fc_below", ONE, LATER)
    assert refused.returncode != 0
    assert "fc_below has -8.00 SU available and may go 8.00 SU below zero" in refused.stderr
    site.lien(first)
    assert site.update(first, "TimeLimit=3").returncode != 0
    site.cancel(first, second)


def test_a_user_may_use_no_more_of_an_account_than_their_cap(site: MoneyCluster) -> None:
    fits = site.submit("fc_caps", "--time=2", LATER)
    refused = site.attempt("fc_caps", ONE, LATER)
    assert refused.returncode != 0
    assert "your share of fc_caps has 0.00 SU available" in refused.stderr
    site.lien(fits)
    assert site.update(fits, "TimeLimit=3").returncode != 0
    other = site.attempt("fc_caps", "--time=10", LATER, user="sb-carol")
    assert other.returncode == 0, other.stderr
    site.cancel(fits)
    site.cancel(int(other.stdout), user="sb-carol")


def test_sbatch_warns_when_less_is_left_than_the_configured_share(
    site: MoneyCluster, policy: Callable[..., None]
) -> None:
    policy("warn_below = 0.25")
    enough = site.attempt("fc_low", "--time=12", LATER)
    low = site.attempt("fc_low", ONE, LATER)
    assert enough.returncode == low.returncode == 0
    assert "28.00 SU left" in enough.stderr and "Note:" not in enough.stderr
    assert "Note: fc_low has less than 25 % of its 100.00 SU left." in low.stderr
    site.cancel(int(enough.stdout), int(low.stdout))


def test_enforce_log_accepts_what_it_would_refuse_and_says_so_to_user_and_log(
    site: MoneyCluster, policy: Callable[..., None]
) -> None:
    policy('enforce = "log"')
    answer = site.attempt("fc_log", "--time=2", script="sleep 2")
    assert answer.returncode == 0
    assert "it is accepted for now, and would be refused: fc_log has 10.00 SU" in answer.stderr
    job = int(answer.stdout)
    line = site.log("slurmctld").rsplit("submission_accepted", 1)[1]
    assert "account=fc_log would=refused" in line and "reason=insufficient_funds" in line
    run = site.ended(job)
    assert run["lien_csu"] == 1200 and run["charge_csu"] == run["elapsed_s"] * 10 > 0
    waiting = site.submit("fc_log", ONE, LATER)
    site.lien(waiting)
    assert site.update(waiting, "TimeLimit=9").returncode == 0
    assert site.lines_of("update_accepted", waiting)[0]["would"] == "refused"
    site.cancel(waiting)


def test_fast_allocation_checks_and_counts_what_runs_but_not_what_waits(
    site: MoneyCluster, policy: Callable[..., None]
) -> None:
    policy(mode="fast-allocation")
    jobs = [site.submit("fc_fast", ONE, LATER) for _ in range(3)]
    assert site.available("fc_fast") == 10
    refused = site.attempt("fc_fast", "--time=2")
    assert refused.returncode != 0 and "fc_fast has 10.00 SU available" in refused.stderr
    assert site.update(jobs[0], "StartTime=now").returncode == 0
    assert site.running(jobs[0])["counted"] and site.available("fc_fast") == 4
    assert site.attempt("fc_fast", ONE).returncode != 0
    site.cancel(*jobs)
    run = site.ended(jobs[0])
    assert run["charge_csu"] == run["elapsed_s"] * 10


@pytest.mark.parametrize("mode", ["notional-charging", "usage-tracking"])
def test_modes_without_a_check_accept_whatever_it_costs_and_charge_it(
    site: MoneyCluster, policy: Callable[..., None], mode: str
) -> None:
    policy(mode=mode)
    job = site.submit("fc_free", "--time=5", script="sleep 2")
    assert site.update(site.submit("fc_free", ONE, LATER), "TimeLimit=60").returncode == 0
    run = site.ended(job)
    assert run["charge_csu"] == run["elapsed_s"] * 10 > 0
    site.run_as("root", ["scancel", "-A", "fc_free"])


# -- refusals and retries -----------------------------------------------------------------------------------------------


def test_the_tasks_that_a_refusal_says_would_fit_are_accepted_and_one_more_is_not(
    site: MoneyCluster,
) -> None:
    answer = site.attempt("fc_array", ONE, LATER, "--array=1-99,200%7")
    assert answer.returncode != 0
    found = re.search(r"(\d+) of its 100 tasks would fit: --array=(\S+)\.", answer.stderr)
    assert found is not None and found.groups() == ("31", "1-31%7")
    more = site.attempt("fc_array", ONE, LATER, "--array=1-32%7")
    assert more.returncode != 0 and "31 of its 32 tasks would fit" in more.stderr
    job = site.submit("fc_array", ONE, LATER, f"--array={found[2]}")
    assert site.lien(job)["amount_csu"] == 18600
    site.cancel(job)


# -- price lists --------------------------------------------------------------------------------------------------------


def test_a_run_is_charged_at_the_prices_in_force_when_it_started_whatever_comes_while_it_runs(
    site: MoneyCluster,
) -> None:
    first = site.submit("fc_alpha", "--time=5")
    site.running(first)
    waiting = site.submit("fc_alpha", ONE, LATER)
    assert site.lien(waiting)["amount_csu"] == 600
    dated = Dated(int(time.time()) + 10, {**PRICES, "main": {"cpu": "1800"}})
    site.use_prices({**PRICES, "main": {"cpu": "900"}}, dated)
    second = site.submit("fc_alpha", ONE)
    assert site.running(second)["lien_csu"] == 1500
    assert site.lien(waiting)["amount_csu"] == 600, "at the price when it was submitted"
    assert time.time() < dated.from_s, "too slow to see what comes into force"
    time.sleep(max(0.0, dated.from_s + 1 - time.time()))
    after = site.submit("fc_alpha", ONE)
    assert site.update(waiting, "StartTime=now").returncode == 0
    assert site.running(after)["lien_csu"] == 3000
    site.running(waiting)
    time.sleep(1)
    jobs = {first: 10, second: 25, after: 50, waiting: 50}
    site.cancel(*jobs)
    versions = []
    for job, csu_per_s in jobs.items():
        run = site.ended(job)
        assert run["charge_csu"] == run["elapsed_s"] * csu_per_s > 0
        (told,) = site.explained(job)
        versions.append(told["charge"]["price_version"])
        in_force = told["charge"]["in_force_since"]
        assert (in_force == dated.from_s) == (csu_per_s == 50)
    assert versions[2] == versions[3] and len(set(versions)) == 3
    text = site.banking("explain", str(waiting), user="sb-alice").stdout
    assert f"price list {versions[0]}\n" in text, "of what was set aside"
    assert f"price list {versions[3]}, in force since" in text, "of the charge"


# -- what takes Slurm a minute ------------------------------------------------------------------------------------------


def test_a_run_that_its_node_took_down_is_free(site: MoneyCluster, slow: Slow) -> None:
    for job in (slow.on_dead_node, slow.requeued_from_dead_node):
        run = site.ended(job, 90)
        assert run["slurm_state"] == "NODE_FAIL" and run["elapsed_s"] > 1
        assert run["charge_csu"] == 0 and run["lien_csu"] == 600
        (told,) = site.explained(job)
        assert told["charge"]["state_factor"] == "0"
        assert "x 0 for node_fail" in site.banking("explain", str(job), user="sb-alice").stdout
    assert site.lien(slow.requeued_from_dead_node)["amount_csu"] == 600, "it waits again"
    assert site.liens(slow.on_dead_node) == []
    site.cancel(slow.requeued_from_dead_node)


def test_a_run_beyond_its_limit_is_charged_beyond_its_lien_and_logged_as_such(
    site: MoneyCluster, slow: Slow
) -> None:
    run = site.ended(slow.over_its_limit, 120)
    assert run["slurm_state"] == "TIMEOUT" and run["elapsed_s"] > 60
    assert run["charge_csu"] == run["elapsed_s"] * 10 > run["lien_csu"] == 600
    (line,) = site.lines_of("run_charged", slow.over_its_limit)
    assert Decimal(line["above_lien_su"]) == Decimal(run["charge_csu"] - 600).scaleb(-2)
    site.explained(slow.over_its_limit)


# -- a full job table ---------------------------------------------------------------------------------------------------


def test_sbatch_retries_while_the_job_table_is_full_and_gets_in_with_one_lien(
    site: MoneyCluster,
) -> None:
    site.extra_slurm_conf.update({"MaxJobCount": "4", "MinJobAge": "2"})
    site.write_slurm_conf()
    site.reconfigure()
    show = ["scontrol", "-o", "show", "job"]
    wait_until(
        lambda: "JobId=" not in site.run_as("root", show).stdout, 90, "all to be forgotten", 0.3
    )  # slurmctld forgets jobs once a minute; one of 23.11 and later begins anew at a reconfigure
    site.restart_slurmctld()
    held = [site.submit("fc_alpha", ONE, "--hold") for _ in range(3)]
    for job in held:
        site.lien(job)
    known = len(site.ledger_rows("SELECT 1 FROM liens"))
    begun = len(site.log("slurmctld"))
    late = site.popen_as("sb-alice", ["sbatch", "--parsable", "-A", "fc_alpha", ONE, "--wrap", "sleep 2"])  # fmt: skip
    wait_until(
        lambda: site.log("slurmctld")[begun:].count("reason=queue_full") >= 3,
        20,
        "three tries",
        0.2,
    )
    assert len(site.ledger_rows("SELECT 1 FROM liens")) == known, "the tries leave nothing"
    site.cancel(held[0])
    out, err = late.communicate(timeout=60)
    assert late.returncode == 0, err
    assert site.ended(int(out))["charge_csu"] > 0
    assert len(site.ledger_rows("SELECT 1 FROM liens")) == known + 1
    site.cancel(*held[1:])


# -- the books ----------------------------------------------------------------------------------------------------------


def test_after_all_of_it_ledger_bank_and_slurmdbd_agree_to_the_hundredth(
    site: MoneyCluster,
) -> None:
    site.end_all()
    assert site.books()
    assert site.run_as("root", ["slurm-banking", "status"]).returncode == 0
