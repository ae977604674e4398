# SPDX-License-Identifier: BSD-3-Clause
"""Partitions, nodes, accounts and associations as Slurm has them: for quotes and for jobs that were there before us."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Tuple

from slurm_banking.errors import SlurmUnavailable
from slurm_banking.records import UNLIMITED, Partition
from slurm_banking.slurm import commands
from slurm_banking.slurm.commands import Runner
from slurm_banking.slurm.control import read_controller

#: What may be asked for in an sacctmgr query; anything else names nobody.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,63}\Z")


@dataclass(frozen=True)
class Topology:
    partitions: Mapping[str, Partition]
    default_partition: Optional[str]  #: None: Slurm has no default

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


@dataclass(frozen=True)
class _Node:
    cpus: int
    threads_per_core: int
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
            partition = _partition(values, nodes, controller.select_type)
            partitions[partition.name] = partition
            if values.get("Default") == "YES":
                default = partition.name
    except (KeyError, ValueError) as error:
        raise SlurmUnavailable(f"scontrol show partition: unexpected answer: {error}") from None
    return Topology(partitions=partitions, default_partition=default)


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
    return _Node(
        cpus=int(values["CPUTot"]),
        threads_per_core=int(values.get("ThreadsPerCore", "1")),
        partitions=tuple(values.get("Partitions", "").split(",")),
    )


def _partition(values: Mapping[str, str], nodes: List[_Node], select_type: str) -> Partition:
    name = values["PartitionName"]
    own = [node for node in nodes if name in node.partitions]
    most = values.get("MaxCPUsPerNode", "UNLIMITED")
    max_time_min = commands.parse_minutes(values.get("MaxTime", "UNLIMITED"))
    return Partition(
        name=name,
        default_time_min=commands.parse_minutes(values.get("DefaultTime", "NONE")),
        max_time_min=UNLIMITED if max_time_min is None else max_time_min,
        exclusive=values.get("OverSubscribe") == "EXCLUSIVE"
        or values.get("ExclusiveUser") == "YES"
        or select_type == "select/linear",
        node_cpus_max=max((node.cpus for node in own), default=0),
        node_cpus_min=min((node.cpus for node in own), default=0),
        max_cpus_per_node=int(most) if most.isdigit() else None,
        threads_per_core=max((node.threads_per_core for node in own), default=1),
        total_cpus=int(values.get("TotalCPUs", "0")),
        total_nodes=int(values.get("TotalNodes", "0")),
    )


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
