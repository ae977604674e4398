# SPDX-License-Identifier: BSD-3-Clause
"""The cluster of the fidelity runs: several node shapes, shared and exclusive partitions, and a price list of each kind.

Prices stand here once, and go into bank-config.toml and into the plain JSON of `plain_charge` from here.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from tests.rig.banked import BankedCluster
from tests.rig.cluster import DEFAULT_ACCOUNTS, Node, Partition, RigError, wait_until

#: Minutes that a job without a time limit is priced for.
UNLIMITED_DAYS = 2
UNLIMITED_MIN = UNLIMITED_DAYS * 24 * 60


def _named(prefix: str, count: int, **shape: Any) -> tuple[Node, ...]:
    return tuple(Node(name=f"{prefix}{number}", **shape) for number in range(1, count + 1))


PLAIN = _named("plain", 16, cpus=16, sockets=2, memory_mib=64000)
HT = _named("ht", 14, cpus=32, sockets=2, threads=2, memory_mib=96000)
BRIEF = _named("brief", 6, cpus=32, sockets=2, threads=2, memory_mib=96000)
SMALL = _named("small", 8, cpus=8, memory_mib=16000)
A100 = _named("a100n", 5, cpus=32, sockets=2, memory_mib=128000, gpus=("a100", 4))
T4 = _named("t4n", 4, cpus=32, sockets=2, threads=2, memory_mib=64000, gpus=("t4", 8))
WHOLE = _named("whole", 14, cpus=12, sockets=2, memory_mib=48000)
SPEC = _named(
    "spec", 6, cpus=16, sockets=2, memory_mib=32000, extra="CoreSpecCount=2 MemSpecLimit=1024"
)
#: One partition whose nodes differ in everything, two of each kind.
MIXED = (
    _named("mplain", 2, cpus=16, sockets=2, memory_mib=64000)
    + _named("mht", 2, cpus=32, sockets=2, threads=2, memory_mib=96000)
    + _named("ma100n", 2, cpus=32, sockets=2, memory_mib=128000, gpus=("a100", 4))
    + _named("mt4n", 2, cpus=32, sockets=2, threads=2, memory_mib=64000, gpus=("t4", 8))
)
NODES = PLAIN + HT + BRIEF + SMALL + A100 + T4 + WHOLE + SPEC + MIXED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """A partition, what it costs, and what of it the generator must know to draw sensible options."""

    name: str
    nodes: tuple[Node, ...]
    #: SU per hour of each unit, as in [PartitionPrice]; `combine` beside them.
    price: Mapping[str, str]
    default_time_min: int | None = 10
    max_time: str = "1-00:00:00"
    exclusive: bool = False
    default: bool = False
    extra: str = ""
    #: TRESBillingWeights. With `mirrored`, the price says the same: the oracle.
    weights: str = ""
    mirrored: bool = False
    priority: int = 1  #: PriorityTier: in a job's list of partitions, Slurm tries the highest first

    @property
    def max_min(self) -> int | None:
        """Minutes; None: no limit."""
        if self.max_time == "UNLIMITED":
            return None
        days, _, clock = self.max_time.rpartition("-")
        hours, minutes, _ = clock.split(":")
        return int(days or 0) * 1440 + int(hours) * 60 + int(minutes)

    def partition(self) -> Partition:
        extra = f"{self.extra} PriorityTier={self.priority}"
        if self.weights:
            extra += f" TRESBillingWeights={self.weights}"
        return Partition(
            name=self.name,
            default_time_min=self.default_time_min,
            max_time=self.max_time,
            exclusive=self.exclusive,
            default=self.default,
            nodes=tuple(node.name for node in self.nodes),
            extra=extra.strip(),
        )

    def toml(self) -> str:
        """The value of its line in [PartitionPrice]."""
        if set(self.price) == {"cpu"}:
            return self.price["cpu"]
        cells = [
            f'"{key}" = "{value}"' if key == "combine" else f'"{key}" = {value}'
            for key, value in self.price.items()
        ]
        return "{ " + ", ".join(cells) + " }"


#: In a list of partitions the dearer one stands in the higher tier, as on most sites; also with whole nodes, which Slurm gives in
#: every partition of a list that has an exclusive one in it.
PARTITIONS = (
    Facts(
        name="normal",
        nodes=PLAIN,
        price={"cpu": "361.7"},
        default=True,
        extra="DefMemPerCPU=500",
        priority=4,
    ),
    Facts(
        name="ht",
        nodes=HT,
        price={"cpu": "400.5", "mem_gb": "12.25"},
        default_time_min=None,
        max_time="02:00:00",
        extra="DefMemPerCPU=1000",
        weights="CPU=400.5,Mem=12.25G",
        mirrored=True,
        priority=5,
    ),
    # For jobs with --time-min: where nothing else waits, backfill has no reason to cut their time.
    Facts(
        name="brief",
        nodes=BRIEF,
        price={"cpu": "310.5", "mem_gb": "7.75"},
        default_time_min=None,
        max_time="02:00:00",
        extra="DefMemPerCPU=1000",
        weights="CPU=310.5,Mem=7.75G",
        mirrored=True,
        priority=5,
    ),
    Facts(
        name="small",
        nodes=SMALL,
        price={"cpu": "240.5", "mem_gb": "125.25", "combine": "max"},
        extra="DefMemPerCPU=1000 MaxMemPerCPU=2000",
        priority=2,
    ),
    Facts(
        name="gpu",
        nodes=A100 + T4,
        price={"cpu": "120.125", "gpu:a100": "7200", "gpu:t4": "1800.5"},
        default_time_min=20,
        extra="DefMemPerCPU=1000 DefCpuPerGPU=2",
        weights="CPU=120.125,GRES/gpu:a100=7200,GRES/gpu:t4=1800.5",
        mirrored=True,
        priority=5,
    ),
    Facts(
        name="gpumem",
        nodes=A100,
        price={"cpu": "60", "mem_gb": "30.5", "gpu": "5000"},
        default_time_min=None,
        max_time="12:00:00",
        extra="DefMemPerGPU=4000",
        priority=5,
    ),
    Facts(
        name="whole",
        nodes=WHOLE,
        price={"node": "15000.75"},
        default_time_min=5,
        exclusive=True,
        priority=7,
    ),
    Facts(
        name="wholecpu",
        nodes=WHOLE,
        price={"cpu": "1200.2"},
        default_time_min=None,
        max_time="04:00:00",
        exclusive=True,
        extra="DefMemPerNode=8000",
        weights="CPU=1200.2",
        mirrored=True,
        priority=6,
    ),
    Facts(
        name="long",
        nodes=PLAIN,
        price={"cpu": "90.25"},
        default_time_min=None,
        max_time="UNLIMITED",
        extra="DefMemPerCPU=500",
        priority=1,
    ),
    Facts(
        name="mixed",
        nodes=MIXED,
        price={"billing": "1"},
        extra="DefMemPerCPU=500",
        weights="CPU=240,Mem=16G,GRES/gpu=900.5",
        priority=2,
    ),
    Facts(
        name="light",
        nodes=HT,
        price={"cpu": "1.5", "mem_gb": "0.25"},
        extra="DefMemPerCPU=1000",
        weights="CPU=1.5,Mem=0.25G",
        mirrored=True,
        priority=1,
    ),
    Facts(
        name="spec",
        nodes=SPEC,
        price={"cpu": "250", "mem_gb": "9.75"},
        extra="DefMemPerCPU=500",
        weights="CPU=250,Mem=9.75G",
        mirrored=True,
        priority=3,
    ),
)
BY_NAME: Mapping[str, Facts] = {facts.name: facts for facts in PARTITIONS}

#: SU per CPU-hour are multiplied by these. Users may use each.
QOS: Mapping[str, str] = {"normal": "1", "high": "2.5", "gratis": "0"}

USERS = ("sb-alice", "sb-bob", "sb-carol", "sb-mallory")
FUNDS: Mapping[str, str] = {
    account: "90000000.00" for account in ("fc_alpha", "fc_beta", "fc_gamma")
}


def prices_json(partitions: Mapping[str, Facts] = BY_NAME) -> dict[str, Any]:
    """The price list in the plain form that `plain_charge` reads."""
    return {
        "partitions": {name: dict(facts.price) for name, facts in partitions.items()},
        "qos": dict(QOS),
        "state_factor": {
            "NODE_FAIL": "0",
            "BOOT_FAIL": "0",
            "PREEMPTED": "0",
            "CANCELLED_BY_ADMIN": "0",
        },
    }


def _scheduler(backfill_s: int) -> str:
    """SchedulerParameters."""
    return (
        f"batch_sched_delay=0,sched_interval=1,bf_interval={backfill_s},bf_resolution=60,bf_continue,bf_window=5760,"
        "default_queue_depth=1000,bf_max_job_test=1000,max_rpc_cnt=0,permit_job_expansion,nohold_on_prolog_fail"
    )


#: Seconds between two looks of Slurm's backfill. It gives whatever it starts the least time of --time-min, where the main
#: scheduler, once a second, gives the whole: so it looks seldom, but while het jobs are there, which only it starts.
BACKFILL_S = 30
HET_BACKFILL_S = 2


class FidelityCluster(BankedCluster):
    """`max_tres`: PriorityFlags=MAX_TRES, with which billing is the dearest of a job's resources."""

    def __init__(
        self,
        *,
        plugins: bool = True,
        max_tres: bool = False,
        nodes: tuple[Node, ...] = NODES,
        partitions: tuple[Facts, ...] = PARTITIONS,
        tell: Callable[[str], None] = lambda line: None,
        **options: Any,
    ) -> None:
        self.facts = partitions
        super().__init__(
            plugins=plugins,
            tell=tell,
            nodes=nodes,
            partitions=tuple(facts.partition() for facts in partitions),
            accounts=DEFAULT_ACCOUNTS,
            prices={facts.name: facts.toml() for facts in partitions},
            funds=FUNDS,
            policy=f"unlimited_time = {UNLIMITED_DAYS}",
            slurmctld_debug="info",
            extra_slurm_conf={
                "SelectTypeParameters": "CR_Core_Memory",
                "SchedulerParameters": _scheduler(HET_BACKFILL_S),
                "AllowSpecResourcesUsage": "YES",
                "MaxArraySize": "1001",
                "MaxJobCount": "20000",
                "MinJobAge": "600",
                "MessageTimeout": "60",
                "PriorityType": "priority/multifactor" if max_tres else "priority/basic",
                "PriorityFlags": "MAX_TRES" if max_tres else None,
            },
            **options,
        )

    def start(self) -> None:
        super().start()
        for name in QOS:
            if name != "normal":
                self.sacctmgr("add", "qos", name)
        self.sacctmgr("modify", "account", *self.accounts, "set", f"qos={','.join(QOS)}")
        last = list(QOS)[-1]

        def usable() -> bool:
            line = self.run_as("root", ["scontrol", "show", "assoc_mgr", "flags=qos"]).stdout
            return f"QOS={last}(" in line

        wait_until(usable, 30, "the QOS to reach slurmctld", 0.2)

    def backfill_seldom(self) -> None:
        """From the end of the interval before; a restart would be heeded at once, but slurmdbd then forgets who cancelled."""
        self.extra_slurm_conf["SchedulerParameters"] = _scheduler(BACKFILL_S)
        self.write_slurm_conf()
        self.reconfigure()
        time.sleep(HET_BACKFILL_S)

    def write_banking(self) -> None:
        super().write_banking()
        if not self.bank_config.exists():
            raise RigError("no bank-config.toml was written")
        text = self.bank_config.read_text()
        multipliers = "".join(f"{name} = {value}\n" for name, value in QOS.items())
        self.write_bank_config(f"{text}\n[QosMultiplier]\n{multipliers}")
