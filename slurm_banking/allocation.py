# SPDX-License-Identifier: BSD-3-Clause
"""What Slurm could allocate to a submission in one partition, at most. Pure; nothing is looked up.

The rules are those of Slurm 22.05 (slurmctld, select/cons_tres), one function each, told in its docstring. Where Slurm's
choice depends on what else runs then, the dearer possibility counts: a job whose nodes are not fixed may be spread over
more of them than an idle cluster would take (:func:`_node_counts`), and in a partition of several node shapes it may get
any of those that can run it. Later releases differ in few things (:func:`_by_later_rules`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from slurm_banking.amounts import EXACT
from slurm_banking.records import NodeShape, Partition, Submission
from slurm_banking.tres import UNTYPED, Tres, gpus_by_type

#: Of an exclusive job in a partition of several shapes: ways of making up its nodes that are looked at one by one.
MIXES_MAX = 200

#: From here on the rules of later releases count beside those of 22.05. Differences were seen with 24.11 and 25.11; 23.02
#: and 23.11 were not tried.
LATER_RULES = (23, 2)

_COUNT = re.compile(r"(\d{1,18})([KkMmGgTtPp]?)[Bb]?")
_SEPARATOR = re.compile("[:=]")
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4, "p": 1024**5}


@dataclass(frozen=True)
class GpuRequest:
    """GPUs of one type as asked for; 0: not in this way."""

    kind: str  #: type, "" is any
    per_job: int = 0
    per_node: int = 0
    per_socket: int = 0
    per_task: int = 0


class _Job:
    """A submission as slurmctld sees it in one partition, once defaults and limits are applied."""

    __slots__ = (
        "core_spec", "cores_per_socket", "cpus_beside_tasks_per_gpu", "cpus_per_gpu", "cpus_per_gpu_asked", "cpus_per_task", "gpus", "max_nodes", "memory_mb", "memory_per_cpu",
        "memory_per_gpu_mb", "min_cpus", "min_nodes", "ntasks_per_core", "ntasks_per_gpu", "ntasks_per_node",
        "ntasks_per_socket", "num_tasks", "one_task_per_core", "overcommit", "partition", "pn_min_cpus", "sockets_per_node",
        "thread_spec", "threads_per_core", "whole",
    )  # fmt: skip

    core_spec: Optional[int]
    cores_per_socket: int
    cpus_beside_tasks_per_gpu: int  #: DefCpuPerGPU of a job with --ntasks-per-gpu
    cpus_per_gpu: int
    cpus_per_gpu_asked: bool  #: not the partition's default
    cpus_per_task: int
    gpus: Sequence[GpuRequest]
    max_nodes: Optional[int]
    memory_mb: int
    memory_per_cpu: bool
    memory_per_gpu_mb: int
    min_cpus: int
    min_nodes: int
    ntasks_per_core: int
    ntasks_per_gpu: int
    ntasks_per_node: int
    ntasks_per_socket: int
    num_tasks: int
    one_task_per_core: bool
    overcommit: bool
    partition: Partition
    pn_min_cpus: int
    sockets_per_node: int
    thread_spec: bool
    threads_per_core: int
    whole: bool


class _Node:
    """What a node of one shape means to a job."""

    __slots__ = (
        "avail", "cores", "cpus", "gpus", "memory_mb", "near", "nearest", "shape", "tpc", "usable", "vpus",
    )  # fmt: skip

    shape: NodeShape
    tpc: int  #: CPUs of a core
    vpus: int  #: of these, those that the job uses
    cores: int  #: that jobs get
    cpus: int  #: of a whole node
    usable: int  #: CPUs that Slurm counts of an idle node when it adds up what the job needs
    avail: int  #: CPUs of the idle node's cores that the job uses
    memory_mb: int
    gpus: int  #: of those that the job could use
    near: int  #: CPUs of the sockets next to the GPUs that it uses, if GPUs are spread over all sockets evenly
    nearest: int  #: the same, if all of them are next to one socket


def allocations(sub: Submission, partition: Partition) -> List[Tres]:
    """Of one task of an array: nothing that Slurm could allocate in ``partition`` costs more than the dearest of these.

    Empty: by its limits or node shapes, the partition can never run the job. The first is what an idle cluster gives.

    :raises ValueError: a GPU request that cannot be read.
    """
    job = _prepared(sub, partition)
    if job is None or not _within_limits(job, partition):
        return []
    if not partition.shapes:
        return _of_unknown_shapes(job, partition)
    nodes = [
        node
        for shape in partition.shapes
        if shape.count > 0
        for node in (_node(job, shape),)
        if node
    ]
    if not nodes:
        return []
    if job.whole:
        return _whole_nodes(job, nodes)
    found = _shared_nodes(job, nodes)
    if partition.release >= LATER_RULES:
        found = found + _by_later_rules(sub, partition, job, nodes, found)
    return found


def _by_later_rules(
    sub: Submission, partition: Partition, job: _Job, nodes: Sequence[_Node], found: Sequence[Tres]
) -> List[Tres]:
    """What later releases may allocate beside that.

    Overcommitted tasks may have a CPU each (with GPUs, or after an update of their number); if there are not as many,
    the nodes have no more. Of the CPUs of a job's GPUs each of its nodes may give as many as the one with most of them,
    in whole cores.
    """
    more: List[Tres] = []
    if job.overcommit:
        more += allocations(replace(sub, overcommit=False), partition)
        more = more or allocations(replace(sub, exclusive=True), partition)
    of_the_job = [gpu.per_job for gpu in job.gpus if gpu.per_job]
    if job.cpus_per_gpu and of_the_job:
        threads = max(node.tpc for node in nodes)
        for tres in found:
            on_a_node = sum(_ceil_div(gpus, tres.nodes) for gpus in of_the_job) * job.cpus_per_gpu
            cpus = max(
                tres.nodes * _round_up(on_a_node, threads),
                _round_up(tres.cpus + (tres.nodes - 1) * (threads - 1), threads),
            )
            added_mb = (cpus - tres.cpus) * job.memory_mb if job.memory_per_cpu else 0
            more.append(
                _with_billing(partition, cpus, tres.memory_mb + added_mb, tres.nodes, tres.gpus)
            )
    return more


def anyway(sub: Submission, partition: Partition) -> List[Tres]:
    """The same for a job that can never run as it is: something sane, from the totals of the partition alone.

    :raises ValueError: a GPU request that cannot be read.
    """
    job = _prepared(sub, partition, enforce=False)
    assert job is not None
    return _of_unknown_shapes(job, partition)


# What slurmctld makes of a request.


def _prepared(sub: Submission, partition: Partition, enforce: bool = True) -> Optional[_Job]:
    """Derives what the user left open, as slurmctld does when it takes the job and before each try to start it.

    ``--ntasks-per-node`` with a number of nodes is a number of tasks; unless overcommitted, tasks times CPUs per task are the
    least CPUs of the job, and those of a node's tasks the least CPUs of each node. None: its memory is above a limit.
    """
    job = _Job()
    job.partition = partition
    job.overcommit = sub.overcommit
    job.whole = (
        sub.exclusive
        or partition.exclusive
        or sub.core_spec is not None  # implies --exclusive
        or partition.unit == "node"
    )
    job.core_spec = sub.core_spec
    job.thread_spec = sub.thread_spec
    job.ntasks_per_node = ntasks_per_node = sub.ntasks_per_node or 0
    job.ntasks_per_socket = sub.ntasks_per_socket or 0
    job.ntasks_per_core = sub.ntasks_per_core or 0
    job.ntasks_per_gpu = 0
    job.sockets_per_node = sub.sockets_per_node or 0
    job.cores_per_socket = sub.cores_per_socket or 0
    job.threads_per_core = sub.threads_per_core or 0
    job.one_task_per_core = partition.one_task_per_core
    job.num_tasks = num_tasks = sub.num_tasks or 0
    job.min_nodes = min_nodes = max(1, sub.min_nodes or 0)
    job.max_nodes = sub.max_nodes
    job.cpus_per_task = max(1, sub.cpus_per_task or 0)
    job.gpus = ()
    job.cpus_per_gpu = job.memory_per_gpu_mb = 0
    job.cpus_beside_tasks_per_gpu = 0
    job.cpus_per_gpu_asked = False
    if not num_tasks and ntasks_per_node and sub.min_nodes:
        job.num_tasks = ntasks_per_node * min_nodes
    if (
        sub.tres_per_job
        or sub.tres_per_node
        or sub.tres_per_task
        or sub.tres_per_socket
        or sub.ntasks_per_tres
    ):
        _prepare_gpus(job, sub, partition)
    job.min_cpus = max(1, sub.min_cpus)
    if not job.overcommit and job.num_tasks > job.min_cpus:
        job.min_cpus = job.num_tasks * job.cpus_per_task
    pn_min_cpus = max(1, sub.pn_min_cpus or 0, job.cpus_per_task)
    if job.ntasks_per_node and not job.overcommit and job.num_tasks > 1:
        pn_min_cpus = max(pn_min_cpus, job.cpus_per_task * job.ntasks_per_node)
    job.pn_min_cpus = pn_min_cpus
    if sub.memory_mb is None:
        job.memory_mb, job.memory_per_cpu = partition.def_mem_mb or 0, partition.def_mem_per_cpu
    else:
        job.memory_mb, job.memory_per_cpu = sub.memory_mb, sub.memory_per_cpu
    if not job.memory_mb:  # --mem=0, --mem-per-cpu=0 and no default at all: all of the node's
        job.memory_per_cpu = False
    if partition.max_mem_mb and not _raise_for_memory(job, partition) and enforce:
        return None
    if job.gpus:
        _apply_gpu_defaults(job, sub, partition)
    return job


def _raise_for_memory(job: _Job, partition: Partition) -> bool:
    """MaxMemPerCPU gives a job more CPUs instead of more memory for each: with ``--mem-per-cpu`` above it, more CPUs per task
    (memory is divided among them), with ``--mem``, more CPUs on each node. Memory of whole nodes (0) counts as that of the
    partition's first node. MaxMemPerNode is a limit. False: above it, the job waits for ever.
    """
    limit = partition.max_mem_mb or 0
    wanted = job.memory_mb
    if job.memory_per_cpu and partition.max_mem_per_cpu:
        if wanted <= limit:
            return True
        ratio = _ceil_div(wanted, limit)
        job.cpus_per_task *= ratio
        job.memory_mb = _ceil_div(wanted, ratio)
        if job.num_tasks:
            job.min_cpus = job.num_tasks * job.cpus_per_task
        elif job.ntasks_per_node:
            job.min_cpus = job.min_nodes * job.ntasks_per_node * job.cpus_per_task
        else:
            job.pn_min_cpus = job.cpus_per_task
        return True
    if not wanted and not job.memory_per_cpu:
        wanted = max(
            (shape.memory_mb - shape.memory_spec_mb for shape in partition.shapes), default=0
        )
    if not job.memory_per_cpu and not partition.max_mem_per_cpu:
        return wanted <= limit
    if job.memory_per_cpu:
        on_a_node = max(1, job.ntasks_per_node)
        if job.num_tasks and job.max_nodes:
            on_a_node = max(on_a_node, _ceil_div(job.num_tasks, job.max_nodes))
        if job.whole and partition.shapes:
            on_a_node = min(shape.cpus for shape in partition.shapes)
        else:
            on_a_node = max(on_a_node * job.cpus_per_task, job.pn_min_cpus)
        return wanted * on_a_node <= limit
    cpus = _ceil_div(wanted, limit)
    if job.pn_min_cpus < cpus:
        job.pn_min_cpus = cpus
        if job.ntasks_per_node:
            job.cpus_per_task = _ceil_div(cpus, job.ntasks_per_node)
    return True


def _within_limits(job: _Job, partition: Partition) -> bool:
    """Limits of a partition that hold a job back for ever: its nodes and CPUs, and MaxNodes for both ends of a range."""
    most = partition.total_nodes
    if partition.max_nodes is not None:
        if job.max_nodes is not None and job.max_nodes > partition.max_nodes:
            return False
        most = min(most, partition.max_nodes) if most else partition.max_nodes
    if most and job.min_nodes > most:
        return False
    if partition.total_cpus and job.min_cpus > partition.total_cpus:
        return False
    return not (
        partition.max_cpus_per_node
        and partition.total_nodes
        and job.min_cpus > partition.max_cpus_per_node * partition.total_nodes
    )


# GPUs.


def read_gpus(text: str) -> Iterator[Tuple[str, int]]:
    """(type, count) of the GPUs in a list like ``gres:gpu:a100:4,gres:gpu:2``; without a count it is 1. Other GRES are left out.

    :raises ValueError: not of that form.
    """
    for part in text.split(","):
        found = part.strip()
        name, *rest = _SEPARATOR.split(found[5:] if found[:5] in ("gres:", "gres/") else found)
        if name != "gpu":
            continue
        count = 1
        if rest:
            match = _COUNT.fullmatch(rest[-1])
            if match is not None:
                count = int(match[1]) * _UNITS[match[2].lower()]
                rest.pop()
            if len(rest) > 1 or (rest and (not rest[0] or rest[0].startswith("-"))):
                raise ValueError(f"{found[:60]!r} is not gpu[:TYPE][:COUNT]")
        if count:
            yield rest[0] if rest else UNTYPED, count


def _prepare_gpus(job: _Job, sub: Submission, partition: Partition) -> None:
    """GPU options settle one another: ``--gpus`` with ``--gpus-per-node`` is a number of nodes, with ``--gpus-per-task`` a number
    of tasks; ``--ntasks-per-gpu`` with GPUs is a number of tasks, without them a number of GPUs; ``--gpus-per-task`` with
    ``--cpus-per-gpu`` is a number of CPUs per task, but not for GPUs of a named type: there the CPUs become tasks, and these
    get GPUs.
    """
    if (
        (sub.tres_per_task or sub.ntasks_per_tres)
        and not job.num_tasks
        and job.min_nodes == job.max_nodes
    ):
        if sub.ntasks_per_tres:
            job.num_tasks = job.min_nodes * sub.ntasks_per_tres
        elif job.ntasks_per_node:
            job.num_tasks = job.min_nodes * job.ntasks_per_node
        elif sub.cpus_per_task is None:
            job.num_tasks = job.min_nodes
    wanted: Dict[str, Dict[str, int]] = {}
    for name, text in (
        ("per_job", sub.tres_per_job),
        ("per_node", sub.tres_per_node),
        ("per_socket", sub.tres_per_socket),
        ("per_task", sub.tres_per_task),
    ):
        for kind, count in read_gpus(text) if text else ():
            wanted.setdefault(kind, {})[name] = count
    if UNTYPED in wanted and len(wanted) > 1:
        _merge_untyped(wanted)
    gpus = [GpuRequest(kind=kind, **counts) for kind, counts in wanted.items()]
    if sub.ntasks_per_tres and gpus:
        job.ntasks_per_gpu = sub.ntasks_per_tres
        job.num_tasks = sub.ntasks_per_tres * sum(_requested(job, gpu) for gpu in gpus)
    elif sub.ntasks_per_tres and job.num_tasks:
        job.ntasks_per_gpu = sub.ntasks_per_tres
        count = job.num_tasks // sub.ntasks_per_tres
        gpus = [GpuRequest(kind=UNTYPED, per_job=count)] if count else []
    cpus_per_gpu = _amount_per_gpu(sub.cpus_per_tres)
    for gpu in gpus:
        if gpu.per_job and gpu.per_node and gpu.per_job % gpu.per_node == 0:
            job.min_nodes = job.max_nodes = gpu.per_job // gpu.per_node
        if gpu.per_task and gpu.per_job and not job.num_tasks:
            job.num_tasks = gpu.per_job // gpu.per_task
        if gpu.per_task and gpu.per_node and not job.ntasks_per_node:
            job.ntasks_per_node = gpu.per_node // gpu.per_task
        if gpu.per_task and cpus_per_gpu and sub.cpus_per_task is None and not gpu.kind:
            job.cpus_per_task = max(job.cpus_per_task, cpus_per_gpu * gpu.per_task)
        if gpu.per_job and job.max_nodes is not None:
            job.max_nodes = max(job.min_nodes, min(job.max_nodes, gpu.per_job))
    job.gpus = tuple(
        GpuRequest(
            kind=gpu.kind,
            per_job=gpu.per_job or gpu.per_task * max(1, job.num_tasks),
            per_node=gpu.per_node,
            per_socket=gpu.per_socket,
            per_task=gpu.per_task,
        )
        for gpu in gpus
    )


def _merge_untyped(wanted: Dict[str, Dict[str, int]]) -> None:
    """GPUs of any type beside some of a given type: what is beyond these may be of any; a request of each kind of its own."""
    untyped = wanted[UNTYPED]
    for name in list(untyped):
        typed = sum(counts.get(name, 0) for kind, counts in wanted.items() if kind != UNTYPED)
        if untyped[name] <= typed:
            del untyped[name]
        else:
            untyped[name] -= typed
    if not untyped:
        del wanted[UNTYPED]


def _requested(job: _Job, gpu: GpuRequest) -> int:
    """GPUs of the job as far as the request alone tells."""
    return max(
        gpu.per_job,
        gpu.per_node * job.min_nodes,
        gpu.per_socket * job.min_nodes * max(1, job.sockets_per_node),
        gpu.per_task * max(1, job.num_tasks),
    )


def _apply_gpu_defaults(job: _Job, sub: Submission, partition: Partition) -> None:
    """DefCpuPerGPU counts unless CPUs per task or per GPU are given; DefMemPerGPU unless any memory is.

    With ``--ntasks-per-gpu`` it counts as far as tasks of all GPUs that a node could give have CPUs (:func:`_tasks_on`).

    Memory per GPU goes before DefMemPerCPU and DefMemPerNode, not before what the user asks for.
    """
    job.cpus_per_gpu = _amount_per_gpu(sub.cpus_per_tres)
    job.cpus_per_gpu_asked = bool(job.cpus_per_gpu)
    if sub.cpus_per_task is None and not (
        job.cpus_per_gpu and any(gpu.per_task and not gpu.kind for gpu in job.gpus)
    ):
        default = partition.def_cpus_per_gpu or 0
        if not job.ntasks_per_gpu:
            job.cpus_per_gpu = job.cpus_per_gpu or default
        elif not job.cpus_per_gpu:
            job.cpus_beside_tasks_per_gpu = default
        for gpu in job.gpus:
            job.cpus_per_task = max(job.cpus_per_task, gpu.per_task * default)
    if not sub.memory_mb:
        per_gpu = _amount_per_gpu(sub.mem_per_tres)
        if sub.memory_mb is None:
            per_gpu = per_gpu or (partition.def_mem_per_gpu_mb or 0)
        job.memory_per_gpu_mb = per_gpu


def _amount_per_gpu(text: str) -> int:
    return max((count for _, count in read_gpus(text)), default=0) if text else 0


def _gpus_on(job: _Job, gpu: GpuRequest, count: int, tasks: int, node: _Node) -> int:
    """GPUs of one request on ``count`` nodes: by node, else by socket, else by task, else for the job, one on each node at least.

    By socket it is each socket of which the job has a core, and those of ``--sockets-per-node``: no more of them than it has
    cores, beside one on each node. By task, ``--ntasks-per-node`` limits a node's tasks, whatever its CPUs would allow;
    overcommitted, it is the tasks asked for.
    """
    if gpu.per_node:
        total = gpu.per_node * count
    elif gpu.per_socket:
        sockets = max(1, node.shape.sockets)
        cores = _shared_cpus(job, node, count, tasks, True)
        if job.partition.unit != "cpu":
            cores //= node.tpc
        cores = max(count, cores)
        total = gpu.per_socket * max(
            min(sockets, job.sockets_per_node) * count, min(sockets * count, cores)
        )
    elif gpu.per_task:
        if job.overcommit:
            tasks = max(job.num_tasks, count * max(1, job.ntasks_per_node))
        elif job.ntasks_per_node:
            tasks = min(tasks, job.ntasks_per_node * count)
        total = gpu.per_task * tasks
    else:
        total = max(gpu.per_job, count)
    return min(total, _of_kind(node.shape, gpu.kind) * count)


def _of_kind(shape: NodeShape, kind: str) -> int:
    return sum(count for name, count in shape.gpus if not kind or name == kind)


# Nodes.


def _node(job: _Job, shape: NodeShape) -> Optional[_Node]:
    """None: the job can never run on nodes of this shape.

    The job gets a node's cores but those specialised by slurm.conf (``--core-spec`` replaces that number, and so does
    ``--thread-spec`` where each core is one CPU). Of a core it uses all threads, or as many as ``--threads-per-core`` (and so ``--hint``) or ``--ntasks-per-core`` leave it.
    """
    sockets, cores_each = max(1, shape.sockets), max(1, shape.cores)
    tpc = 1 if sockets * cores_each >= shape.cpus else max(1, shape.threads)
    node = _Node()
    node.shape = shape
    node.tpc = tpc
    node.cpus = shape.cpus - shape.core_spec * tpc
    spec = shape.core_spec
    if job.core_spec is not None and (not job.thread_spec or (tpc == 1 and job.core_spec)):
        spec = job.core_spec
    if sockets * cores_each * tpc < shape.cpus:  # no more than the number of CPUs is known
        cores_each = shape.cpus // tpc // sockets
    node.cores = cores = sockets * cores_each - spec
    if cores < 1 or node.cpus < 1:
        return None
    vpus = tpc
    if job.ntasks_per_core:
        vpus = min(vpus, job.ntasks_per_core * job.cpus_per_task)
    if job.threads_per_core:
        vpus = min(vpus, job.threads_per_core)
    node.vpus = vpus
    avail = cores * vpus
    if avail < job.pn_min_cpus:
        return None
    if job.ntasks_per_socket:
        on_socket = min(cores_each, _ceil_div(job.ntasks_per_socket * job.cpus_per_task, vpus))
        avail = min(avail, sockets * on_socket * vpus)
    node.avail = avail
    limit = job.partition.max_cpus_per_node
    if limit and cores * tpc > limit:
        if job.whole:
            return None
        node.avail = avail = min(avail, limit)
    node.memory_mb = shape.memory_mb - shape.memory_spec_mb if job.partition.memory_tracked else 0
    node.gpus = 0
    if (
        job.sockets_per_node > sockets
        or job.cores_per_socket > cores_each
        or job.threads_per_core > max(1, shape.threads)
        or (limit and avail < job.pn_min_cpus and not job.ntasks_per_socket)
    ):
        return None
    usable = _usable_cpus(job, node)
    on_a_node = job.ntasks_per_node or (
        job.num_tasks if job.max_nodes == 1 and not job.overcommit else 0
    )
    if usable < max(1, on_a_node) * job.cpus_per_task:
        return None
    node.usable = node.near = node.nearest = usable
    if job.gpus and not _gpus_fit(job, node):
        return None
    return node


def _usable_cpus(job: _Job, node: _Node) -> int:
    """CPUs of an idle node that memory allows, in whole tasks: memory per CPU is counted for what the job uses of a core.

    0: it does not run there. Tasks that each have their cores to themselves leave CPUs of these unused.
    """
    avail, cpus_per_task = node.avail, job.cpus_per_task
    if job.ntasks_per_core == 1 and cpus_per_task > node.vpus:
        tasks, cores = divmod(node.cores, _ceil_div(cpus_per_task, node.vpus))
        avail = min(avail, tasks * cpus_per_task + cores * node.vpus)
    if (
        not (job.partition.memory_tracked and job.memory_mb and node.memory_mb)
        or job.memory_per_gpu_mb
    ):
        return avail
    if not job.memory_per_cpu:
        return avail if job.memory_mb <= node.memory_mb else 0
    each = job.memory_mb
    if job.ntasks_per_core == 1 and cpus_per_task == 1 and job.partition.unit != "cpu":
        each *= node.tpc
    fit = node.memory_mb // each
    if fit >= avail:
        fit = avail
    elif job.whole:
        return 0
    else:
        fit -= (fit - avail) % (1 if job.partition.unit == "cpu" else node.vpus)
    return max(0, fit // cpus_per_task * cpus_per_task)


def _gpus_fit(job: _Job, node: _Node) -> bool:
    """Whether the node has what each node must give; keeps how many of a job's GPUs it can give."""
    shape = node.shape
    node.gpus = -1
    for gpu in job.gpus:
        there = _of_kind(shape, gpu.kind)
        least = max(
            1,
            gpu.per_node,
            gpu.per_socket * max(1, job.sockets_per_node),
            gpu.per_task * max(1, job.ntasks_per_node),
        )
        cpus = job.cpus_per_gpu or job.ntasks_per_gpu * job.cpus_per_task
        if cpus:
            # CPUs that the job leaves unused (--ntasks-per-core, --hint) count for the GPUs of all sockets together.
            if max(gpu.per_node, gpu.per_socket, gpu.per_task) > node.usable // cpus:
                return False
            there = min(there, max(node.usable, node.cores * node.tpc) // cpus)
        if job.memory_per_gpu_mb and job.partition.memory_tracked and node.memory_mb:
            there = min(there, node.memory_mb // job.memory_per_gpu_mb)
        if there < least:
            return False
        if cpus:
            there = max(1, min(there, node.usable // cpus))
        node.gpus = there if node.gpus < 0 else min(node.gpus, there)
        node.near, node.nearest = _near_gpus(job, gpu, node)
    return True


def _near_gpus(job: _Job, gpu: GpuRequest, node: _Node) -> Tuple[int, int]:
    """CPUs that Slurm counts of a node at first: those of the sockets next to GPUs, as many of these as the GPUs need.

    So a job with more tasks than fit there gets more nodes instead, if there are. How GPUs are spread over sockets is not
    known: evenly, or all at one.
    """
    sockets = max(1, node.shape.sockets)
    wanted = gpu.per_node
    if not wanted and (not job.whole or job.memory_per_gpu_mb or job.cpus_per_gpu):
        wanted = gpu.per_job
    if sockets == 1 or not wanted or gpu.per_socket:
        return node.near, node.nearest
    on_socket = node.cores * node.vpus // sockets
    each = _ceil_div(_of_kind(node.shape, gpu.kind), sockets)
    cpus = job.cpus_per_gpu or job.ntasks_per_gpu * job.cpus_per_task
    if cpus:
        each = max(1, min(each, on_socket // cpus))
    used = min(sockets, _ceil_div(min(wanted, node.gpus), each))
    return min(node.near, used * on_socket), min(node.nearest, on_socket)


# How many nodes.


def _node_counts(job: _Job, nodes: Sequence[_Node]) -> Optional[Tuple[int, int]]:
    """How many nodes an idle cluster gives, and how many the job could get at most. None: there are not as many.

    Of a range, Slurm takes the largest number that it can have, but no more nodes than tasks. Without ``--nodes`` it adds
    nodes until the job's CPUs (and GPUs) are together: few on an idle cluster, but on a busy one each may give as little as
    one task, or one GPU, needs. A job that takes all of its nodes' memory finds them idle.
    """
    least = _least_nodes(job)
    there = sum(node.shape.count for node in nodes)
    if job.partition.max_nodes is not None:
        there = min(there, job.partition.max_nodes)
    if least > there:
        return None
    most = min(there, max(job.num_tasks, least)) if job.num_tasks else there
    usable = max(node.usable for node in nodes)
    needed = _needed_cpus(job)
    fewest = max(least, _ceil_div(needed, usable))
    if job.gpus and _ceil_div(needed, max(node.near for node in nodes)) <= min(
        most, job.max_nodes or most
    ):
        fewest = max(fewest, _ceil_div(needed, max(node.near for node in nodes)))
    per_job = max((gpu.per_job for gpu in job.gpus if not gpu.per_node), default=0)
    if per_job:
        fewest = max(fewest, _ceil_div(per_job, max(node.gpus for node in nodes)))
    if fewest > there or (job.max_nodes is not None and fewest > job.max_nodes):
        return None
    most = max(most, fewest)
    if job.max_nodes is not None:
        most = max(fewest, min(most, job.max_nodes))
        return most, most
    if job.whole or (
        job.partition.memory_tracked and not job.memory_mb and not job.memory_per_gpu_mb
    ):
        spread = _ceil_div(needed, min(node.nearest for node in nodes))
        if per_job:
            spread = max(spread, _ceil_div(per_job, min(node.gpus for node in nodes)))
    else:
        spread = _ceil_div(needed, min(_smallest_share(job, node) for node in nodes))
        spread = max(spread, per_job)
    return fewest, max(fewest, min(most, spread))


def _least_nodes(job: _Job) -> int:
    if job.ntasks_per_node and job.num_tasks:
        return max(job.min_nodes, _ceil_div(job.num_tasks, job.ntasks_per_node))
    return job.min_nodes


def _needed_cpus(job: _Job) -> int:
    """CPUs that Slurm adds nodes for. Overcommitted, one per node, times the sockets, cores and threads asked for."""
    needed = job.min_cpus
    if job.overcommit and needed == job.min_nodes:
        for factor in (job.threads_per_core, job.cores_per_socket, job.sockets_per_node):
            needed *= max(1, factor)
    return needed


def _smallest_share(job: _Job, node: _Node) -> int:
    """The fewest CPUs of a busy node with which Slurm still takes it for the job: whole cores, and the CPUs of one task.

    With ``--ntasks-per-node``, ``-socket`` or ``-core`` it is that many tasks; with ``--ntasks-per-gpu``, a node's share of all.
    """
    least = job.pn_min_cpus
    if job.ntasks_per_node:
        least = max(least, job.cpus_per_task * job.ntasks_per_node)
    elif not job.overcommit:
        tasks = job.ntasks_per_socket or job.ntasks_per_core
        if not tasks and job.ntasks_per_gpu:
            tasks = job.num_tasks // job.min_nodes
        least = max(least, job.cpus_per_task * max(1, tasks))
    unit = 1 if job.partition.unit == "cpu" else node.vpus
    if job.partition.max_cpus_per_node and job.partition.max_cpus_per_node % unit:
        return max(1, least)
    return max(1, _round_up(least, unit))


# What they come to.


def _tasks_on(job: _Job, count: int) -> int:
    """Tasks that Slurm deals CPUs to on ``count`` nodes.

    It starts from CPUs: those of the job, at least those of each node (``--mincpus``, ``--ntasks-per-node``, what memory raised)
    and those of its GPUs; and each task takes its CPUs of them. ``--ntasks-per-node`` goes to every node in full.
    """
    each, gpu_tasks, gpu_cpus = job.cpus_per_task, 0, 0
    for gpu in job.gpus:
        wanted = gpu.per_job or gpu.per_node * count
        wanted = wanted or gpu.per_socket * count * max(1, job.sockets_per_node)
        gpu_tasks = max(gpu_tasks, job.ntasks_per_gpu * wanted)
        gpu_cpus += job.cpus_per_gpu * wanted
        if job.cpus_beside_tasks_per_gpu:
            on_a_node = gpu.per_node or gpu.per_job or wanted
            seen = max(on_a_node * job.ntasks_per_gpu, job.num_tasks // job.min_nodes) * each
            seen = _round_up(
                seen, max((shape.threads for shape in job.partition.shapes), default=1)
            )
            gpu_cpus += min(job.cpus_beside_tasks_per_gpu * wanted, count * seen)
    cpus = max(gpu_tasks, job.min_cpus, count * job.pn_min_cpus, gpu_cpus)
    if job.ntasks_per_node and job.num_tasks == 1 == count:
        return max(1, cpus // each)
    cpus = max(cpus, count * job.ntasks_per_node)
    if each == 1:
        return cpus
    if job.ntasks_per_node:
        return job.ntasks_per_node * count
    return max(1, cpus // each)


def _shared_cpus(job: _Job, node: _Node, count: int, tasks: int, mixed: bool) -> int:
    """CPUs of ``tasks`` tasks on ``count`` nodes of one shape, in whole cores (sockets, where those are handed out).

    Tasks of one CPU are packed: a core is filled before the next is taken, so that more nodes cost no more cores, as long as
    there are tasks for them. Tasks of several CPUs may leave a core half used on each node. Overcommitted, each node gets the
    CPUs of one task.
    """
    each, vpus = job.cpus_per_task, node.vpus
    if job.partition.unit == "cpu":
        return tasks * each
    if job.overcommit:
        cores = _overcommitted_cores(job, node, count)
    elif vpus == 1 or (job.ntasks_per_core == 1 and each > vpus):
        cores = tasks * _ceil_div(each, vpus)
    elif job.ntasks_per_node and tasks == job.ntasks_per_node * count:
        cores = count * _ceil_div(job.ntasks_per_node * each, vpus)
    elif each == 1 and vpus == 2 and node.tpc == 2 and not mixed:
        cores = max(min(count, tasks), (tasks + _half_used(job, node, count)) // 2)
    else:
        waste = vpus - _gcd(each, vpus)
        cores = max(
            _ceil_div(tasks * each, vpus), (tasks * each + min(count, tasks) * waste) // vpus
        )
    if job.one_task_per_core:
        cores = max(cores, tasks * _ceil_div(each, node.tpc))
    if job.partition.unit == "socket":
        sockets = max(1, node.shape.sockets)
        cores = min(cores, sockets * count) * (node.cores // sockets)
    return min(cores, count * node.cores) * node.tpc


def _half_used(job: _Job, node: _Node, count: int) -> int:
    """On how many nodes tasks of one CPU may leave half a core unused: the last one, where Slurm adds nodes for their CPUs.

    Where it adds more of them, for a range of nodes or for GPUs, each of these may be left with one CPU. The least CPUs of a node
    (``--mincpus``, what memory raised, those of its GPUs) are left to each, if they are an odd number.
    """
    least = max(job.pn_min_cpus, _gpu_cpus_of_a_node(job))
    if least > 1:
        return count if least % 2 else 1
    if job.max_nodes is not None:
        return max(1, count - job.min_nodes + 1)
    if any(gpu.per_job and not gpu.per_node for gpu in job.gpus):
        return max(1, count - _ceil_div(_needed_cpus(job), node.usable) + 1)
    return 1


def _gpu_cpus_of_a_node(job: _Job) -> int:
    """CPUs of its GPUs that Slurm sees on each of a job's nodes, however few the job needs; of GPUs for the job, those of one."""
    on_a_node = 0
    for gpu in job.gpus:
        on_a_node += (
            gpu.per_node
            or gpu.per_socket * max(1, job.sockets_per_node)
            or (gpu.per_task * job.ntasks_per_node if gpu.per_task else 1)
        )
    return job.cpus_per_gpu * on_a_node


def _overcommitted_cores(job: _Job, node: _Node, count: int) -> int:
    """One task on each node; and a second one, if there are more, where the first uses half of a core and CPUs are left."""
    if any(gpu.per_task for gpu in job.gpus):
        tasks = max(job.num_tasks, count)
        wanted, waste = tasks * job.cpus_per_task, node.vpus - _gcd(job.cpus_per_task, node.vpus)
        return max(_ceil_div(wanted, node.vpus), (wanted + min(count, tasks) * waste) // node.vpus)
    each = job.cpus_per_task
    alone = _ceil_div(each, node.vpus)
    tasks = job.num_tasks or _tasks_on(job, count)
    second = 0
    seen = max(_needed_cpus(job), job.cpus_per_gpu * sum(_requested(job, gpu) for gpu in job.gpus))
    seen = max(job.pn_min_cpus, _gpu_cpus_of_a_node(job), seen - count + 1)
    if each < node.tpc and seen >= 2 * each:
        second = min(count, max(0, tasks - count))
    return (count - second) * alone + second * _ceil_div(2 * each, node.vpus)


@dataclass(frozen=True)
class _Dealt:
    """What a job gets of its nodes, where nothing that runs there can change it."""

    cpus: int
    gpus: Optional[int]  #: None: no more is known of them than is asked for


def _dealt(job: _Job, nodes: Sequence[_Node], count: int) -> Optional[_Dealt]:
    """Of a job with GPUs whose number of tasks on each node is fixed: one node, one task on each, or ``--ntasks-per-node``.

    Of each node Slurm sees then the cores of these tasks, or of their GPUs, and no others. From node to node it sets aside
    what the job needs in all, leaving one core for each node that is to follow: the last ones get what is left, be it
    less than one task. DefCpuPerGPU makes tasks larger, not what the job needs. None: it also depends on what else runs.
    """
    if (
        len(job.gpus) != 1
        or job.partition.unit != "core"
        or job.partition.one_task_per_core
        or job.partition.max_cpus_per_node
        or job.ntasks_per_gpu
        or job.ntasks_per_core
        or job.ntasks_per_socket
        or any(node.vpus != node.tpc for node in nodes)
    ):
        return None
    if count > 1 and (
        job.overcommit
        or job.min_nodes != count
        or job.max_nodes != count
        or len({node.vpus for node in nodes}) > 1
    ):
        return None
    tasks = job.ntasks_per_node
    if not tasks and count == 1 and (job.max_nodes == 1 or job.num_tasks == 1):
        tasks = job.num_tasks
    if not tasks and job.num_tasks == count:
        tasks = 1
    gpu = job.gpus[0]
    on_a_node = gpu.per_node or gpu.per_task * tasks
    if not tasks or gpu.per_socket or (job.cpus_per_gpu and not on_a_node):
        return None
    choices = [_dealt_on(job, gpu, node, count, tasks, on_a_node) for node in nodes]
    found = [choice for choice in choices if choice is not None]
    if len(found) < len(choices):
        return None
    gpus = [choice.gpus for choice in found if choice.gpus is not None]
    return _Dealt(max(choice.cpus for choice in found), max(gpus) if gpus else None)


def _dealt_on(
    job: _Job, gpu: GpuRequest, node: _Node, count: int, tasks: int, on_a_node: int
) -> Optional[_Dealt]:
    each, vpus = job.cpus_per_task, node.vpus
    least = max(tasks * each, on_a_node * job.cpus_per_gpu)
    seen = min(_round_up(least, vpus), node.cores * node.tpc)
    if count > 1 and seen != least:
        # On a node with little memory left it may be one CPU less, which another node has instead.
        return None
    by_node = _gpu_cpus_of_a_node(job)
    by_gpus = job.cpus_per_gpu * (gpu.per_job or gpu.per_node * count)
    left = max(job.min_cpus, by_node * job.min_nodes, by_gpus)
    offered = seen if job.cpus_per_gpu else tasks * each
    there: List[int] = []
    for after in reversed(range(count)):
        most = left - after * vpus
        if offered > most:
            taken = max(most, job.pn_min_cpus, by_node)
            there.append(min(seen, taken))
        else:
            taken = offered
            there.append(seen)
        if job.cpus_per_gpu_asked and gpu.per_job and taken >= job.cpus_per_gpu:
            taken = taken // job.cpus_per_gpu * job.cpus_per_gpu
        left -= taken
    if job.overcommit and job.num_tasks:
        wanted = min(sum(there), job.num_tasks)
    else:
        wanted = max(
            count * max(1, job.ntasks_per_node), job.min_cpus, count * job.pn_min_cpus, by_gpus
        )
        if each > 1:
            wanted = job.ntasks_per_node * count or wanted // each
    # More tasks than these a node takes if it has GPUs for them.
    found = [
        _counted(job, gpu, node, _deal(job, there, max(1, wanted), limit, vpus))
        for limit in ((tasks, None) if gpu.per_task else (None,))
    ]
    gpus = max(one for _, one in found)
    if job.overcommit:  # tasks without a CPU of their own get theirs
        gpus = max(gpus, min(_of_kind(node.shape, gpu.kind) * count, gpu.per_task * job.num_tasks))
    return _Dealt(max(cpus for cpus, _ in found), gpus if gpu.per_task else None)


def _counted(
    job: _Job, gpu: GpuRequest, node: _Node, dealt: Sequence[Tuple[int, int]]
) -> Tuple[int, int]:
    """(CPUs in whole cores, GPUs by task): no more of these than a node has, or than tasks could stand on its cores."""
    cpus = gpus = 0
    for placed, there in dealt:
        whole = _round_up(there, node.tpc)
        cpus += whole
        placed = min(job.ntasks_per_node or placed, whole)
        gpus += min(_of_kind(node.shape, gpu.kind), gpu.per_task * placed)
    return cpus, gpus


def _deal(
    job: _Job, there: Sequence[int], tasks: int, limit: Optional[int], vpus: int
) -> List[Tuple[int, int]]:
    """(tasks, CPUs) on each node that has ``there`` CPUs: one task on each, then more of them in turn, a core at a time.

    ``limit``: tasks that a node's GPUs allow. Once no node has room, limits count no more, and tasks share the CPUs there are.
    """
    each = job.cpus_per_task
    placed, cpus, left = [0] * len(there), [0] * len(there), tasks

    def add(node: int) -> None:
        placed[node] += 1
        cpus[node] = min(there[node], cpus[node] + each)

    def room(node: int) -> bool:
        return not (
            there[node] - cpus[node] < each
            or (limit is not None and placed[node] >= limit)
            or (job.ntasks_per_node and placed[node] >= job.ntasks_per_node)
        )

    for node in range(min(left, len(there))):
        add(node)
        left -= 1
    for node in range(len(there)):
        for _ in range(cpus[node] % vpus // each):
            if left and room(node):
                add(node)
                left -= 1
    if job.overcommit and not any(gpu.per_task for gpu in job.gpus):
        return list(zip(placed, cpus))
    limited = any(cpus[node] < there[node] for node in range(len(there)))
    while left and not (not limited and cpus == list(there)):
        more = False
        for node in range(len(there)):
            for _ in range(max(1, vpus // each)):
                if not left or (limited and not room(node)):
                    break
                add(node)
                left -= 1
                more = more or there[node] - cpus[node] >= each
        limited = limited and more
    for node in range(len(there)):  # those that find no CPU are dealt on all the same
        placed[node] += _ceil_div(left, len(there))
    return list(zip(placed, cpus))


def _shared_nodes(job: _Job, nodes: Sequence[_Node]) -> List[Tres]:
    """Of a job that shares its nodes; see :func:`_node_counts`.

    In a partition of several shapes each resource counts as on the shape where it is most.
    """
    counts = _node_counts(job, nodes)
    if counts is None:
        return []
    fewest, most = counts
    found = _shared_at(job, nodes, fewest)
    if most != fewest:
        found += _shared_at(job, nodes, most)
    return found


def _shared_at(job: _Job, nodes: Sequence[_Node], count: int) -> List[Tres]:
    tasks = _tasks_on(job, count)
    mixed = len(nodes) > 1 and count > 1 and len({node.vpus for node in nodes}) > 1
    cpus = memory_mb = 0
    there = sum(
        node.cores * node.tpc * taken
        for node, taken in _most(nodes, count, {id(node): node.cores * node.tpc for node in nodes})
    )
    for node in nodes:
        on_this = min(there, _shared_cpus(job, node, count, tasks, mixed))
        cpus = max(cpus, on_this)
        if job.memory_per_cpu and not job.memory_per_gpu_mb and job.partition.memory_tracked:
            memory_mb = max(memory_mb, _counted_cpus(job, node, on_this) * job.memory_mb)
    if not job.gpus:
        if not job.memory_per_cpu and job.partition.memory_tracked:
            memory_mb = job.memory_mb * count if job.memory_mb else _all_memory(nodes, count)
        return [_with_billing(job.partition, cpus, memory_mb, count, ())]
    dealt = _dealt(job, nodes, count)
    if dealt is not None:
        cpus = dealt.cpus
        if job.memory_per_cpu and not job.memory_per_gpu_mb and job.partition.memory_tracked:
            memory_mb = cpus * job.memory_mb
    found = []
    for gpus in _gpu_choices(job, nodes, count, tasks, dealt):
        if job.memory_per_gpu_mb and job.partition.memory_tracked:
            memory_mb = job.memory_per_gpu_mb * sum(each for _, each in gpus)
        elif not job.memory_per_cpu and job.partition.memory_tracked:
            memory_mb = job.memory_mb * count if job.memory_mb else _all_memory(nodes, count)
        found.append(_with_billing(job.partition, cpus, memory_mb, count, gpus))
    return found


def _counted_cpus(job: _Job, node: _Node, cpus: int) -> int:
    """CPUs that memory per CPU is counted for: with ``--threads-per-core`` only the threads used."""
    if job.partition.unit != "cpu" and 0 < job.threads_per_core < node.tpc:
        return cpus // node.tpc * job.threads_per_core
    return cpus


def _all_memory(nodes: Sequence[_Node], count: int) -> int:
    """Memory of the ``count`` nodes that have most: all but MemSpecLimit."""
    return sum(
        node.memory_mb * taken
        for node, taken in _most(nodes, count, {id(node): node.memory_mb for node in nodes})
    )


def _most(nodes: Sequence[_Node], count: int, worth: Dict[int, int]) -> Iterator[Tuple[_Node, int]]:
    """(node, how many of it), together ``count``, those worth most first."""
    for node in sorted(nodes, key=lambda one: worth[id(one)], reverse=True):
        taken = min(count, node.shape.count)
        if taken <= 0:
            break
        count -= taken
        yield node, taken


def _gpu_choices(
    job: _Job, nodes: Sequence[_Node], count: int, tasks: int, dealt: Optional[_Dealt]
) -> List[Tuple[Tuple[str, int], ...]]:
    """The GPUs that the job could get, by type. Those of any type: as many as there are of one, for each type in turn."""
    kinds = sorted({kind for node in nodes for kind, _ in node.shape.gpus})
    found: List[Tuple[Tuple[str, int], ...]] = []
    for first in kinds:
        chosen: List[Tuple[str, int]] = []
        for gpu in job.gpus:
            wanted = max(_gpus_on(job, gpu, count, tasks, node) for node in nodes)
            if dealt is not None and dealt.gpus is not None:
                wanted = dealt.gpus
            if gpu.kind:
                chosen.append((gpu.kind, wanted))
                continue
            for kind in (first, *(kind for kind in kinds if kind != first)):
                there = count * max(
                    _of_kind(node.shape, kind) if kind else node.shape.gpu_count for node in nodes
                )
                taken = min(wanted, there)
                chosen.append((kind, taken))
                wanted -= taken
        gpus = gpus_by_type(chosen)
        if gpus not in found:
            found.append(gpus)
    return found or [()]


def _whole_nodes(job: _Job, nodes: Sequence[_Node]) -> List[Tres]:
    """Of a job that has its nodes to itself: all CPUs and GPUs of each, whatever it asked for."""
    counts = _node_counts(job, nodes)
    if counts is None:
        return []
    fewest, most = counts
    if len(nodes) == 1:
        numbers = (fewest,) if fewest == most else (fewest, most)
        return [_sum_of_whole(job, [(nodes[0], count)]) for count in numbers]
    if job.max_nodes is not None or most == _least_nodes(job):
        return _dearest_mixes(job, nodes, most)
    return _mixes(job, nodes, most)


def _dearest_mixes(job: _Job, nodes: Sequence[_Node], count: int) -> List[Tres]:
    """For a fixed number of nodes: the most of each resource, and the most in sum."""
    kinds = sorted({kind for node in nodes for kind, _ in node.shape.gpus})
    worths: List[Dict[int, int]] = [
        {id(node): node.cpus for node in nodes},
        {id(node): _whole_memory(job, node) for node in nodes},
        {
            id(node): _with_billing(
                job.partition, node.cpus, _whole_memory(job, node), 1, node.shape.gpus
            ).billing
            for node in nodes
        },
        *({id(node): _of_kind(node.shape, kind) for node in nodes} for kind in kinds),
    ]
    # Lexicographic by two resources at once, so that of nodes alike in one the dearer in the other counts.
    scale = 1 + max(max(worth.values()) for worth in worths)
    both = [
        {id(node): first[id(node)] * scale + second[id(node)] for node in nodes}
        for first in worths
        for second in worths
        if first is not second
    ]
    found: List[Tres] = []
    for worth in both:
        tres = _sum_of_whole(job, list(_most(nodes, count, worth)))
        if tres not in found:
            found.append(tres)
    return found


def _mixes(job: _Job, nodes: Sequence[_Node], most: int) -> List[Tres]:
    """Without ``--nodes``: nodes that together are too few, and one more of any shape. Too many ways: as for a fixed number."""
    needed, least = _needed_cpus(job), _least_nodes(job)
    found: List[Tres] = []
    for counts in _too_few(job, nodes, most, needed):
        for index, node in enumerate(nodes):
            if counts[index] >= node.shape.count:
                continue
            mix = [(one, count + (one is node)) for one, count in zip(nodes, counts)]
            enough = sum(one.usable * count for one, count in mix) >= needed
            if enough and sum(count for _, count in mix) >= least:
                found.append(_sum_of_whole(job, [part for part in mix if part[1]]))
        if len(found) > MIXES_MAX:
            return _dearest_mixes(job, nodes, most)
    return found or _dearest_mixes(job, nodes, most)


def _too_few(
    job: _Job, nodes: Sequence[_Node], most: int, needed: int
) -> Iterator[Tuple[int, ...]]:
    """Numbers of nodes of each shape that are not enough for the job, by nodes, CPUs or GPUs."""
    least = _least_nodes(job)
    per_job = max((gpu.per_job for gpu in job.gpus if not gpu.per_node), default=0)
    pending: List[Tuple[int, ...]] = [(0,) * len(nodes)]
    seen = set(pending)
    for _ in range(4 * MIXES_MAX):
        if not pending:
            return
        counts = pending.pop()
        yield counts
        for index, node in enumerate(nodes):
            more = (*counts[:index], counts[index] + 1, *counts[index + 1 :])
            if more in seen or more[index] > node.shape.count or sum(more) >= most:
                continue
            seen.add(more)
            cpus = sum(one.nearest * count for one, count in zip(nodes, more))
            gpus = sum(one.gpus * count for one, count in zip(nodes, more))
            if cpus < needed or sum(more) < least or gpus < per_job:
                pending.append(more)


def _sum_of_whole(job: _Job, mix: Iterable[Tuple[_Node, int]]) -> Tres:
    cpus = memory_mb = count = 0
    gpus: List[Tuple[str, int]] = []
    for node, taken in mix:
        cpus += node.cpus * taken
        memory_mb += _whole_memory(job, node) * taken
        count += taken
        gpus += [(kind, there * taken) for kind, there in node.shape.gpus]
    return _with_billing(job.partition, cpus, memory_mb, count, gpus_by_type(gpus) if gpus else ())


def _whole_memory(job: _Job, node: _Node) -> int:
    """Memory on a node that the job has to itself: by its GPUs, per CPU that it uses, per node, or all.

    Of specialised cores and threads no memory per CPU is counted, though the CPUs themselves are allocated.
    """
    if not job.partition.memory_tracked:
        return 0
    if job.memory_per_gpu_mb:
        return job.memory_per_gpu_mb * sum(_of_kind(node.shape, "") for _ in job.gpus)
    if not job.memory_mb:
        return node.memory_mb
    if not job.memory_per_cpu:
        return job.memory_mb
    cpus = node.cores * node.tpc
    if job.core_spec is not None:
        cpus = node.usable
        if job.thread_spec and cpus + job.core_spec > node.shape.cpus:
            cpus -= min(cpus, job.core_spec)
        return cpus * job.memory_mb
    return _counted_cpus(job, node, cpus) * job.memory_mb


# A partition whose nodes are not known.


def _of_unknown_shapes(job: _Job, partition: Partition) -> List[Tres]:
    """From the totals: whole nodes are at most all of the partition's CPUs, and nodes as many as the job has tasks."""
    least = _least_nodes(job)
    count = job.max_nodes or 0
    if job.max_nodes is None:
        count = max((gpu.per_job for gpu in job.gpus if not gpu.per_node), default=0)
        if job.num_tasks > 1 or job.min_cpus > job.pn_min_cpus:
            count = max(count, job.num_tasks or job.min_cpus)
    count = max(least, count)
    if partition.total_nodes:
        count = max(least, min(count, partition.total_nodes))
    tasks = _tasks_on(job, count)
    cpus = max(job.min_cpus, count, tasks * job.cpus_per_task)
    if job.whole:
        each = max((shape.cpus for shape in partition.shapes), default=partition.total_cpus)
        cpus = max(cpus, min(partition.total_cpus, each * count))
    memory_mb = 0
    if partition.memory_tracked:
        if job.memory_per_gpu_mb:
            memory_mb = job.memory_per_gpu_mb * sum(_requested(job, gpu) for gpu in job.gpus)
        else:
            memory_mb = job.memory_mb * (cpus if job.memory_per_cpu else count)
    gpus = gpus_by_type(
        (gpu.kind, max(_requested(job, gpu), gpu.per_node * count)) for gpu in job.gpus
    )
    return [_with_billing(partition, cpus, memory_mb, count, gpus)]


# Billing.


def _with_billing(
    partition: Partition, cpus: int, memory_mb: int, nodes: int, gpus: Tuple[Tuple[str, int], ...]
) -> Tres:
    """With Slurm's billing of it: CPUs, or the weighted sum (with MAX_TRES the dearest) of the resources, truncated."""
    weights = partition.billing_weights
    if weights is None:
        return Tres(cpus=cpus, memory_mb=memory_mb, nodes=nodes, gpus=gpus, billing=cpus)
    parts = []
    for name, weight in weights.items():
        if name == "cpu":
            parts.append(EXACT.multiply(weight, Decimal(cpus)))
        elif name == "mem":
            parts.append(EXACT.divide(EXACT.multiply(weight, Decimal(memory_mb)), Decimal(1024)))
        elif name == "node":
            parts.append(EXACT.multiply(weight, Decimal(nodes)))
        elif name == "gres/gpu":
            parts.append(EXACT.multiply(weight, Decimal(sum(count for _, count in gpus))))
        elif name.startswith("gres/gpu:"):
            kind = name[len("gres/gpu:") :]
            parts.append(
                EXACT.multiply(weight, Decimal(sum(count for one, count in gpus if one == kind)))
            )
    total = Decimal(0)
    for part in parts:
        total = max(total, part) if partition.billing_max else EXACT.add(total, part)
    return Tres(cpus=cpus, memory_mb=memory_mb, nodes=nodes, gpus=gpus, billing=int(total))


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _gcd(one: int, other: int) -> int:
    while other:
        one, other = other, one % other
    return one
