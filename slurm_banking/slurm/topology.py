# SPDX-License-Identifier: BSD-3-Clause
"""Partitions, nodes, accounts and associations as Slurm has them: for quotes and for jobs that were there before us.

Of partitions and nodes the same facts as slurmctld's plugin has from memory (csrc/decode.c, boundary/convert.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Dict, Iterable, Mapping, Optional, Sequence, Tuple

from slurm_banking.boundary.convert import billing_weights, gpus
from slurm_banking.errors import SlurmUnavailable
from slurm_banking.records import UNLIMITED, NodeShape, Partition
from slurm_banking.slurm import commands
from slurm_banking.slurm.commands import Runner
from slurm_banking.slurm.control import read_controller
from slurm_banking.tres import gpus_by_type

#: What may be asked for in an sacctmgr query; anything else names nobody.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,63}\Z")


@dataclass(frozen=True)
class Topology:
    partitions: Mapping[str, Partition]
    default_partition: Optional[str]  #: None: Slurm has no default
    spec_allowed: bool = True  #: AllowSpecResourcesUsage: whether --core-spec does anything

    def partition(self, name: str) -> Partition:
        """``found`` is False for one that Slurm does not have."""
        return self.partitions.get(name) or Partition(name=name, found=False)


@dataclass(frozen=True)
class Association:
    """That a user may run in an account."""

    account: str
    user_name: str
    partition: Optional[str]  #: None: any
    qos: Tuple[str, ...]  #: what the user may ask for; empty: not said
    default_qos: Optional[str]


#: As many kinds of nodes in one partition as slurmctld's plugin tells apart; see csrc/banking.h.
MAX_SHAPES = 16

_NO_LIMIT = frozenset({"UNLIMITED", "INFINITE", "NONE", "(null)", ""})
#: The first word of SelectTypeParameters as Slurm prints it: what is handed out, and whether memory is.
_ALLOCATED: Mapping[str, Tuple[str, bool]] = {
    f"CR_{unit.upper()}{memory}": (unit, bool(memory))
    for unit in ("cpu", "core", "socket")
    for memory in ("", "_MEMORY")
}


@dataclass(frozen=True)
class _Node:
    shape: NodeShape
    partitions: Tuple[str, ...]


def read_topology(*, run: Runner = commands.run) -> Topology:
    """:raises SlurmUnavailable: slurmctld does not answer, or not as expected."""
    controller = read_controller(run=run)
    try:
        nodes = [
            _node(line)
            for line in run(["scontrol", "--all", "--oneliner", "show", "node"]).splitlines()
            if line.startswith("NodeName=")
        ]
        partitions: Dict[str, Partition] = {}
        default = None
        answer = run(["scontrol", "--all", "--oneliner", "show", "partition"])
        for line in answer.splitlines():
            if not line.startswith("PartitionName="):
                continue
            values = _values(line)
            partition = _partition(values, nodes, controller.settings)
            partitions[partition.name] = partition
            if values.get("Default") == "YES":
                default = partition.name
    except (KeyError, ValueError) as error:
        raise SlurmUnavailable(f"scontrol show partition: unexpected answer: {error}") from None
    return Topology(
        partitions=partitions,
        default_partition=default,
        spec_allowed=controller.settings.get("AllowSpecResourcesUsage", "Yes") == "Yes",
    )


def _values(line: str) -> Dict[str, str]:
    """key=value pairs; of a key that comes twice the first (free text, an operator's, comes after what is read here)."""
    values: Dict[str, str] = {}
    for word in line.split():
        key, equals, value = word.partition("=")
        if equals:
            values.setdefault(key, value)
    return values


def _node(line: str) -> _Node:
    values = _values(line)
    gres = values.get("Gres", "")
    return _Node(
        shape=NodeShape(
            count=1,
            cpus=int(values["CPUTot"]),
            sockets=int(values.get("Sockets", "1")),
            cores=int(values.get("CoresPerSocket", "1")),
            threads=int(values.get("ThreadsPerCore", "1")),
            memory_mb=int(values.get("RealMemory", "0")),
            memory_spec_mb=int(values.get("MemSpecLimit", "0")),
            core_spec=int(values.get("CoreSpecCount", "0")),
            gpus=gpus("" if gres == "(null)" else gres),
        ),
        partitions=tuple(values.get("Partitions", "").split(",")),
    )


def _shapes(nodes: Iterable[_Node], partition: str) -> Tuple[NodeShape, ...]:
    """Of the partition's nodes, equal ones counted; of more than MAX_SHAPES the rest is one, as large as the largest."""
    counts: Dict[NodeShape, int] = {}
    for node in nodes:
        if partition in node.partitions:
            counts[node.shape] = counts.get(node.shape, 0) + 1
    shapes = [replace(shape, count=count) for shape, count in counts.items()]
    if len(shapes) <= MAX_SHAPES:
        return tuple(shapes)
    rest = shapes[MAX_SHAPES - 1 :]
    most: Dict[str, int] = {}
    for shape in rest:
        for kind, count in shape.gpus:
            most[kind] = max(most.get(kind, 0), count)
    largest = NodeShape(
        count=sum(shape.count for shape in rest),
        cpus=max(shape.cpus for shape in rest),
        sockets=max(shape.sockets for shape in rest),
        cores=max(shape.cores for shape in rest),
        threads=max(shape.threads for shape in rest),
        memory_mb=max(shape.memory_mb for shape in rest),
        memory_spec_mb=min(shape.memory_spec_mb for shape in rest),
        core_spec=min(shape.core_spec for shape in rest),
        gpus=gpus_by_type(most.items()),
    )
    return (*shapes[: MAX_SHAPES - 1], largest)


def _partition(
    values: Mapping[str, str], nodes: Sequence[_Node], settings: Mapping[str, str]
) -> Partition:
    name = values["PartitionName"]
    max_time_min = commands.parse_minutes(values.get("MaxTime", "UNLIMITED"))
    def_mem_mb, def_mem_per_cpu = _memory("DefMemPer", values, settings)
    max_mem_mb, max_mem_per_cpu = _memory("MaxMemPer", values, settings)
    weights = values.get("TRESBillingWeights", "")
    unit, memory_tracked, one_task_per_core = _selection(values, settings)
    return Partition(
        name=name,
        default_time_min=commands.parse_minutes(values.get("DefaultTime", "NONE")),
        max_time_min=UNLIMITED if max_time_min is None else max_time_min,
        exclusive=values.get("OverSubscribe") == "EXCLUSIVE" or unit == "node",
        max_cpus_per_node=_count(values.get("MaxCPUsPerNode", "")),
        total_cpus=int(values.get("TotalCPUs", "0")),
        total_nodes=int(values.get("TotalNodes", "0")),
        max_nodes=_count(values.get("MaxNodes", "")),
        shapes=_shapes(nodes, name),
        unit=unit,
        memory_tracked=memory_tracked,
        one_task_per_core=one_task_per_core,
        def_mem_mb=def_mem_mb,
        def_mem_per_cpu=def_mem_per_cpu,
        max_mem_mb=max_mem_mb,
        max_mem_per_cpu=max_mem_per_cpu,
        def_cpus_per_gpu=_job_default("DefCpuPerGPU", values, settings),
        def_mem_per_gpu_mb=_job_default("DefMemPerGPU", values, settings),
        billing_weights=billing_weights("" if weights == "(null)" else weights),
        billing_max="MAX_TRES" in settings.get("PriorityFlags", "").split(","),
        release=_release(settings.get("SLURM_VERSION", "")),
    )


def _release(version: str) -> Tuple[int, int]:
    """``24.11.5`` as (24, 11). What cannot be read counts as the newest: its rules never estimate less."""
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,2})", version)
    return (int(found[1]), int(found[2])) if found else (9999, 0)


def _count(text: str) -> Optional[int]:
    return None if text in _NO_LIMIT else int(text) or None


def _memory(
    key: str, values: Mapping[str, str], settings: Mapping[str, str]
) -> Tuple[Optional[int], bool]:
    """(MB, per CPU) of DefMemPer... or MaxMemPer...: the partition's, else the cluster's; None: none.

    A partition prints ``...PerNode=UNLIMITED`` where it says nothing, ``...PerCPU=UNLIMITED`` for a zero of its own.
    """
    for source in (values, settings):
        for what in ("CPU", "Node"):
            text = source.get(key + what)
            if text is None:
                continue
            if text not in _NO_LIMIT:
                return int(text), what == "CPU"
            if what == "CPU":
                return None, False
    return None, False


def _job_default(key: str, values: Mapping[str, str], settings: Mapping[str, str]) -> Optional[int]:
    for source in (values, settings):
        for part in source.get("JobDefaults", "").split(","):
            name, _, value = part.partition("=")
            if name.strip().lower() == key.lower():
                return int(value) or None
    return None


def _selection(values: Mapping[str, str], settings: Mapping[str, str]) -> Tuple[str, bool, bool]:
    """(what is handed out, whether memory is, CR_ONE_TASK_PER_CORE).

    As select/cons_tres: a partition's own SelectTypeParameters count only where the cluster hands out sockets or cores.
    """
    words = settings.get("SelectTypeParameters", "").upper().split(",")
    allocation = _ALLOCATED.get(words[0], ("core", "CR_MEMORY" in words))
    one_task_per_core = "CR_ONE_TASK_PER_CORE" in words
    if settings.get("SelectType") == "select/linear":
        return "node", "CR_MEMORY" in words, one_task_per_core
    own = values.get("SelectTypeParameters", "").upper().split(",")[0]
    if own in _ALLOCATED and words[0] in _ALLOCATED and allocation[0] != "cpu":
        allocation = _ALLOCATED[own]
    return (*allocation, one_task_per_core)


def default_account(user_name: str, *, run: Runner = commands.run) -> Optional[str]:
    """The account that Slurm takes when a job names none; None: the user has none, or Slurm does not know the user.

    :raises SlurmUnavailable: slurmdbd cannot be asked.
    """
    if not _NAME.match(user_name):
        return None
    query = ["sacctmgr", "--noheader", "--parsable2", "--readonly", "show", "user"]
    answer = run([*query, "where", f"name={user_name}", "format=User,DefaultAccount"])
    for line in answer.splitlines():
        name, _, account = line.partition("|")
        if name == user_name:
            return account or None
    return None


def associations(
    user_name: str, cluster: str, *, run: Runner = commands.run
) -> Tuple[Association, ...]:
    """Where a user may run; empty for one whom Slurm does not know.

    :raises SlurmUnavailable: slurmdbd cannot be asked.
    """
    if not _NAME.match(user_name) or not _NAME.match(cluster):
        return ()
    query = ["sacctmgr", "--noheader", "--parsable2", "--readonly", "show", "associations"]
    query += ["where", f"user={user_name}", f"cluster={cluster}"]
    found = []
    for line in run([*query, "format=User,Account,Partition,QOS,DefaultQOS"]).splitlines():
        values = line.split("|")
        if len(values) != 5:
            raise SlurmUnavailable(f"sacctmgr: {len(values)} fields in a row, expected 5")
        if values[0] == user_name:
            found.append(
                Association(
                    user_name=values[0],
                    account=values[1],
                    partition=values[2] or None,
                    qos=tuple(name for name in values[3].split(",") if name),
                    default_qos=values[4] or None,
                )
            )
    return tuple(found)


def members(cluster: str, *, run: Runner = commands.run) -> Tuple[Tuple[str, str], ...]:
    """Every (account, user name) that Slurm associates on the cluster.

    :raises SlurmUnavailable: slurmdbd cannot be asked.
    """
    if not _NAME.match(cluster):
        return ()
    query = ["sacctmgr", "--noheader", "--parsable2", "--readonly", "show", "associations"]
    pairs: Dict[Tuple[str, str], None] = {}
    for line in run([*query, "where", f"cluster={cluster}", "format=Account,User"]).splitlines():
        account, _, user_name = line.partition("|")
        if account and user_name:
            pairs[account, user_name] = None
    return tuple(pairs)
