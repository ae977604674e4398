# SPDX-License-Identifier: BSD-3-Clause
"""From the structs of banking.h to records: the one place that knows Slurm's sentinels and state bits.

Values from slurm.h; the same from 20.11 to 26.05. A text of Slurm's that cannot be read never stops a job: what stands in
for it is chosen to err on the high side, and ``complain`` is told.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from slurm_banking.amounts import EXACT
from slurm_banking.charge import elapsed_s
from slurm_banking.records import UNLIMITED, JobUpdate, NodeShape, Partition, Run, Submission
from slurm_banking.tres import UNTYPED, Tres, gpus_by_type, parse_tres

NO_VAL = 0xFFFFFFFE
INFINITE = 0xFFFFFFFF
NO_VAL16 = 0xFFFE
INFINITE16 = 0xFFFF
NO_VAL64 = 0xFFFFFFFFFFFFFFFE
INFINITE64 = 0xFFFFFFFFFFFFFFFF
NO_VAL8 = 0xFE
MEM_PER_CPU = 0x8000000000000000

CORE_SPEC_THREAD = 0x8000

JOB_STATE_BASE = 0xFF
JOB_REQUEUE = 0x400
JOB_REQUEUE_HOLD = 0x800
JOB_SPECIAL_EXIT = 0x1000
JOB_RESIZING = 0x2000

STATES = (
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
)


#: Told one line about a text that could not be read.
Complain = Callable[[str], None]

#: banking_partition.unit
UNITS = ("cpu", "core", "socket", "node")


def nobody(line: str) -> None:
    """Hears no complaints."""


def text(ffi: Any, pointer: Any) -> str:
    """A C string as text; NULL is "". What is not UTF-8 is replaced, as where squeue is read: SQLite takes no surrogates."""
    if not pointer:
        return ""
    found: bytes = ffi.string(pointer)
    return found.decode("utf-8", "replace")


def number(value: int) -> Optional[int]:
    """A 32-bit count; None: not given (INFINITE is not given either: no bound of the user's)."""
    return None if value in (NO_VAL, INFINITE) else int(value)


def number16(value: int) -> Optional[int]:
    return None if value in (NO_VAL16, INFINITE16) else int(value)


def minutes(value: int) -> Optional[int]:
    """A time limit; None: not given, UNLIMITED: without bound."""
    if value == NO_VAL:
        return None
    return UNLIMITED if value == INFINITE else int(value)


def state_name(raw: int) -> str:
    base = raw & JOB_STATE_BASE
    return STATES[base] if base < len(STATES) else f"STATE_{base}"


def number64(value: int) -> Optional[int]:
    return None if value in (NO_VAL64, INFINITE64) else int(value)


def memory(value: int) -> Tuple[Optional[int], bool]:
    """(MB, per CPU) of what Slurm keeps in one number; None: not given."""
    if value in (NO_VAL64, INFINITE64):
        return None, False
    return int(value & ~MEM_PER_CPU), bool(value & MEM_PER_CPU)


def default_memory(value: int) -> Tuple[Optional[int], bool]:
    """Likewise of DefMem and MaxMem, where 0 is no default and no bound."""
    amount, per_cpu = memory(value)
    return amount or None, per_cpu


#: What brackets hold tells on which sockets a GRES is, with commas of its own.
_SOCKETS = re.compile(r"\([^)]*\)")
_COUNT = re.compile(r"(\d{1,15})(?:([kmgtp])(ib|b)?)?", re.IGNORECASE)
_POWERS = "kmgtp"


def gpus(gres: str, complain: Complain = nobody) -> Tuple[Tuple[str, int], ...]:
    """The GPUs of a node's GRES text, "gpu:a100:4(S:0-1),gpu:t4:2,craynetwork:4" (as Slurm's gres.c reads it).

    A name without a count is one. What cannot be read is left out, as Slurm leaves it out.
    """
    found: List[Tuple[str, int]] = []
    for item in _SOCKETS.sub("", gres).lower().split(","):
        name, *words = item.strip().split(":")
        if name != "gpu":
            continue
        count = 1
        if words and words[-1][:1].isdigit():
            match = _COUNT.fullmatch(words.pop())
            if match is None:
                complain(f"gres_unread text={item[:80]!r}")
                continue
            step = 1000 if match[3] == "b" else 1024
            power = _POWERS.index(match[2]) + 1 if match[2] else 0
            count = int(match[1]) * step**power
        kind = ":".join(word for word in words if word not in ("", "no_consume"))
        found.append((kind or UNTYPED, count))
    return gpus_by_type(found)


_WEIGHT = re.compile(
    r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?)\s*([A-Za-z]?).*", re.DOTALL
)
_UNIT_STEPS = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_IN_MB = frozenset(("mem", "bb"))
_UP, _DOWN = Decimal(1024), Decimal("0.0009765625")  # 1/1024, exactly


def billing_weights(weights: str, complain: Complain = nobody) -> Optional[Mapping[str, Decimal]]:
    """TRESBillingWeights by TRES name in lower case: of memory per GB (1024 MB), of all else per unit.

    As Slurm reads it: a weight stands for the base unit (a MB of memory), or for the larger unit that its suffix names;
    steps are 1024, and a smaller unit than the base changes nothing. "Mem=0.25G" is 0.25, "Mem=0.25" is 256 per GB.
    One weight that cannot be read and there are none at all: None, billing is then the number of CPUs.
    """
    found: Dict[str, Decimal] = {}
    for item in weights.split(","):
        name, _, value = item.partition("=")
        if not item.strip():
            continue
        name = name.strip().lower()
        match = _WEIGHT.fullmatch(value)
        unit = match[2].lower() if match else ""
        if not name or match is None or (unit and unit not in _UNIT_STEPS):
            complain(f"billing_weights_unread text={weights[:200]!r}")
            return None
        base = _UNIT_STEPS["m"] if name.partition("/")[0] in _IN_MB else 0
        steps = max(0, _UNIT_STEPS.get(unit, 0) - base) - (1 if name == "mem" else 0)
        weight = Decimal(match[1])
        for _ in range(abs(steps)):
            weight = EXACT.multiply(weight, _UP if steps < 0 else _DOWN)
        found[name] = weight
    return found or None


#: Most runs have what another one had before.
_parse_tres = lru_cache(maxsize=512)(parse_tres)


def allocated(tres: str, *, cpus: int, nodes: int, complain: Complain = nobody) -> Tres:
    """What Slurm says it allocated; without its word, the CPUs and nodes that the record has."""
    try:
        told = _parse_tres(tres)
    except ValueError as error:
        complain(f"tres_unread charged_by=cpus_and_nodes problem={error}")
        told = Tres()
    return told if told.cpus else Tres(cpus=cpus, nodes=nodes)


#: Partitions by generation (banking.h): a partition is converted once, not at each submission.
_partitions: Dict[int, Partition] = {}
_PARTITIONS_MAX = 1024


def partition(ffi: Any, struct: Any, complain: Complain = nobody) -> Partition:
    generation = struct.generation
    known = _partitions.get(generation)
    if known is None:
        known = _new_partition(ffi, struct, complain)
        if generation:
            if len(_partitions) >= _PARTITIONS_MAX:
                _partitions.clear()
            _partitions[generation] = known
    return known


def _new_partition(ffi: Any, struct: Any, complain: Complain) -> Partition:
    name = text(ffi, struct.name)
    if not struct.found:
        return Partition(name=name, found=False)
    limit = minutes(struct.max_time_min)
    def_mem_mb, def_mem_per_cpu = default_memory(struct.def_mem_per_cpu)
    max_mem_mb, max_mem_per_cpu = default_memory(struct.max_mem_per_cpu)
    weights = text(ffi, struct.billing_weights)
    return Partition(
        name=name,
        found=True,
        default_time_min=minutes(struct.default_time_min),
        max_time_min=UNLIMITED if limit is None else limit,
        exclusive=bool(struct.exclusive),
        max_cpus_per_node=number(struct.max_cpus_per_node) or None,
        total_cpus=struct.total_cpus,
        total_nodes=struct.total_nodes,
        max_nodes=number(struct.max_nodes) or None,
        shapes=tuple(
            _shape(ffi, struct.shapes[index], complain) for index in range(struct.shape_count)
        ),
        unit=UNITS[struct.unit],
        memory_tracked=bool(struct.memory_tracked),
        one_task_per_core=bool(struct.one_task_per_core),
        def_mem_mb=def_mem_mb,
        def_mem_per_cpu=def_mem_per_cpu,
        max_mem_mb=max_mem_mb,
        max_mem_per_cpu=max_mem_per_cpu,
        def_cpus_per_gpu=number64(struct.def_cpu_per_gpu) or None,
        def_mem_per_gpu_mb=number64(struct.def_mem_per_gpu) or None,
        billing_weights=billing_weights(weights, complain) if weights else None,
        billing_max=bool(struct.billing_max),
        release=(struct.slurm_version >> 16, struct.slurm_version >> 8 & 0xFF),
    )


def _shape(ffi: Any, struct: Any, complain: Complain) -> NodeShape:
    return NodeShape(
        count=struct.count,
        cpus=struct.cpus,
        sockets=max(1, struct.sockets),
        cores=max(1, struct.cores),
        threads=max(1, struct.threads),
        memory_mb=struct.memory_mb,
        memory_spec_mb=struct.memory_spec_mb,
        core_spec=struct.core_spec,
        gpus=gpus(text(ffi, struct.gres), complain),
    )


def submission(ffi: Any, struct: Any, cluster: str, complain: Complain = nobody) -> Submission:
    memory_mb, memory_per_cpu = memory(struct.pn_min_memory)
    core_spec = number16(struct.core_spec)
    return Submission(
        cluster=cluster,
        job_user_id=struct.job_user_id,
        submit_user_id=struct.submit_user_id,
        partitions=tuple(
            partition(ffi, struct.partitions[index], complain)
            for index in range(struct.partition_count)
        ),
        account=text(ffi, struct.account) or None,
        user_name=text(ffi, struct.user_name),
        qos=text(ffi, struct.qos) or None,
        associated=bool(struct.associated),
        room=number(struct.room),
        time_limit_min=minutes(struct.time_limit_min),
        time_min_min=minutes(struct.time_min_min),
        min_cpus=number(struct.min_cpus) or 1,
        max_cpus=number(struct.max_cpus),
        min_nodes=number(struct.min_nodes),
        max_nodes=number(struct.max_nodes) or None,
        num_tasks=number(struct.num_tasks),
        cpus_per_task=number16(struct.cpus_per_task),
        ntasks_per_node=number16(struct.ntasks_per_node) or None,
        ntasks_per_socket=number16(struct.ntasks_per_socket) or None,
        ntasks_per_core=number16(struct.ntasks_per_core) or None,
        ntasks_per_tres=number16(struct.ntasks_per_tres) or None,
        sockets_per_node=number16(struct.sockets_per_node) or None,
        cores_per_socket=number16(struct.cores_per_socket) or None,
        threads_per_core=number16(struct.threads_per_core) or None,
        pn_min_cpus=number16(struct.pn_min_cpus) or None,
        core_spec=None if core_spec is None else core_spec & ~CORE_SPEC_THREAD,
        thread_spec=core_spec is not None and bool(core_spec & CORE_SPEC_THREAD),
        overcommit=struct.overcommit not in (0, NO_VAL8),
        exclusive=struct.shared == 0,
        memory_mb=memory_mb,
        memory_per_cpu=memory_per_cpu,
        tres_per_job=text(ffi, struct.tres_per_job),
        tres_per_node=text(ffi, struct.tres_per_node),
        tres_per_socket=text(ffi, struct.tres_per_socket),
        tres_per_task=text(ffi, struct.tres_per_task),
        cpus_per_tres=text(ffi, struct.cpus_per_tres),
        mem_per_tres=text(ffi, struct.mem_per_tres),
        array_inx=text(ffi, struct.array_inx),
        het_job_offset=number(struct.het_job_offset),
        name=text(ffi, struct.name),
        admin_comment=text(ffi, struct.admin_comment),
    )


def job_update(ffi: Any, struct: Any, cluster: str, complain: Complain = nobody) -> JobUpdate:
    wanted = submission(ffi, struct.wanted, cluster, complain)
    running = (struct.job_state & JOB_STATE_BASE) in (1, 2)
    tres = Tres()
    if running:
        tres = allocated(
            text(ffi, struct.tres_alloc),
            cpus=struct.total_cpus,
            nodes=wanted.min_nodes or 1,
            complain=complain,
        )
    return JobUpdate(
        wanted=wanted,
        job_id=struct.job_id,
        submit_time=struct.submit_time,
        array_job_id=struct.array_job_id or None,
        array_task_id=number(struct.array_task_id),
        het_job_id=struct.het_job_id or None,
        restart_count=struct.restart_count,
        running=running,
        task_count=max(1, struct.task_count),
        total_cpus=struct.total_cpus,
        tres=tres,
        operator_caller=bool(struct.operator_caller),
        start_time=struct.start_time or None,
    )


def run(ffi: Any, struct: Any, cluster: str, *, ended: bool, complain: Complain = nobody) -> Run:
    """A run at its end (or start). A job that is put back into the queue has a base state of PENDING: it ends REQUEUED."""
    requeue = bool(struct.requeue)
    state = state_name(struct.job_state)
    if requeue and state == "PENDING":
        state = "REQUEUED"
    nodes = text(ffi, struct.nodes)
    started = bool(nodes) and struct.total_cpus > 0 and struct.start_time > 0
    resizing = bool(struct.job_state & JOB_RESIZING)
    # While it goes on, the end is that of its limit.
    end_time = struct.resize_time if resizing and struct.resize_time else struct.end_time
    tres = Tres()
    if started:
        tres = allocated(
            text(ffi, struct.tres_alloc),
            cpus=struct.total_cpus,
            nodes=struct.node_count,
            complain=complain,
        )
    elapsed = 0
    if ended and started:
        elapsed = elapsed_s(
            struct.start_time,
            end_time,
            struct.suspend_time or None,
            struct.pre_suspend_s,
            state,
        )
    return Run(
        cluster=cluster,
        job_id=struct.job_id,
        submit_time=struct.submit_time,
        restart_count=struct.restart_count,
        user_id=struct.user_id,
        user_name=text(ffi, struct.user_name),
        account=text(ffi, struct.account),
        partition=text(ffi, struct.partition),
        qos=text(ffi, struct.qos) or None,
        state=state,
        start_time=struct.start_time or None,
        end_time=(end_time or None) if ended else None,
        elapsed_s=elapsed,
        cpus=struct.total_cpus if started else 0,
        started=started,
        nodes=nodes,
        node_count=struct.node_count if started else 0,
        tres=tres,
        array_job_id=struct.array_job_id or None,
        array_task_id=number(struct.array_task_id),
        het_job_id=struct.het_job_id or None,
        task_count=max(1, struct.task_count),
        time_limit_min=minutes(struct.time_limit_min),
        requeue=requeue,
        resizing=resizing,
        cancelled_by_admin=bool(struct.cancelled_by_admin),
        name=text(ffi, struct.name),
        admin_comment=text(ffi, struct.admin_comment),
        source="jobcomp",
    )
