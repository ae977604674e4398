# SPDX-License-Identifier: BSD-3-Clause
"""From the structs of banking.h to records: the one place that knows Slurm's sentinels and state bits.

Values from slurm.h; the same from 20.11 to 26.05.
"""

from __future__ import annotations

from typing import Any, Optional

from slurm_banking.charge import elapsed_s
from slurm_banking.records import UNLIMITED, JobUpdate, Partition, Run, Submission

NO_VAL = 0xFFFFFFFE
INFINITE = 0xFFFFFFFF
NO_VAL16 = 0xFFFE
INFINITE16 = 0xFFFF
NO_VAL64 = 0xFFFFFFFFFFFFFFFE
INFINITE64 = 0xFFFFFFFFFFFFFFFF
NO_VAL8 = 0xFE
MEM_PER_CPU = 0x8000000000000000

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


def text(ffi: Any, pointer: Any) -> str:
    """A C string as text; NULL is "". Bytes that are not UTF-8 survive as surrogates."""
    if pointer == ffi.NULL:
        return ""
    return bytes(ffi.string(pointer)).decode("utf-8", "surrogateescape")


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


def partition(ffi: Any, struct: Any) -> Partition:
    limit = minutes(struct.max_time_min)
    return Partition(
        name=text(ffi, struct.name),
        found=bool(struct.found),
        default_time_min=minutes(struct.default_time_min),
        max_time_min=UNLIMITED if limit is None else limit,
        exclusive=bool(struct.exclusive),
        node_cpus_max=struct.node_cpus_max,
        node_cpus_min=struct.node_cpus_min,
        max_cpus_per_node=number(struct.max_cpus_per_node),
        threads_per_core=max(1, struct.threads_per_core_max),
        total_cpus=struct.total_cpus,
        total_nodes=struct.total_nodes,
    )


def submission(ffi: Any, struct: Any, cluster: str) -> Submission:
    memory = struct.pn_min_memory
    per_cpu = memory < INFINITE64 - 1 and bool(memory & MEM_PER_CPU)
    return Submission(
        cluster=cluster,
        job_user_id=struct.job_user_id,
        submit_user_id=struct.submit_user_id,
        partitions=tuple(
            partition(ffi, struct.partitions[index]) for index in range(struct.partition_count)
        ),
        account=text(ffi, struct.account) or None,
        user_name=text(ffi, struct.user_name),
        qos=text(ffi, struct.qos) or None,
        associated=bool(struct.associated),
        time_limit_min=minutes(struct.time_limit_min),
        time_min_min=minutes(struct.time_min_min),
        min_cpus=number(struct.min_cpus) or 1,
        max_cpus=number(struct.max_cpus),
        min_nodes=number(struct.min_nodes),
        max_nodes=number(struct.max_nodes) or None,
        num_tasks=number(struct.num_tasks),
        cpus_per_task=number16(struct.cpus_per_task),
        ntasks_per_node=number16(struct.ntasks_per_node) or None,
        threads_per_core=number16(struct.threads_per_core) or None,
        core_spec=number16(struct.core_spec),
        overcommit=struct.overcommit not in (0, NO_VAL8),
        exclusive=struct.shared == 0,
        memory_mb=None if memory in (NO_VAL64, INFINITE64) else int(memory & ~MEM_PER_CPU),
        memory_per_cpu=per_cpu,
        tres_per_job=text(ffi, struct.tres_per_job),
        tres_per_node=text(ffi, struct.tres_per_node),
        tres_per_socket=text(ffi, struct.tres_per_socket),
        tres_per_task=text(ffi, struct.tres_per_task),
        array_inx=text(ffi, struct.array_inx),
        het_job_offset=number(struct.het_job_offset),
        name=text(ffi, struct.name),
        admin_comment=text(ffi, struct.admin_comment),
    )


def job_update(ffi: Any, struct: Any, cluster: str) -> JobUpdate:
    return JobUpdate(
        wanted=submission(ffi, struct.wanted, cluster),
        job_id=struct.job_id,
        submit_time=struct.submit_time,
        array_job_id=struct.array_job_id or None,
        array_task_id=number(struct.array_task_id),
        het_job_id=struct.het_job_id or None,
        restart_count=struct.restart_count,
        running=(struct.job_state & JOB_STATE_BASE) in (1, 2),
        task_count=max(1, struct.task_count),
        total_cpus=struct.total_cpus,
        operator_caller=bool(struct.operator_caller),
        start_time=struct.start_time or None,
    )


def run(ffi: Any, struct: Any, cluster: str, *, ended: bool) -> Run:
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
        tres_alloc=text(ffi, struct.tres_alloc) if started else "",
        array_job_id=struct.array_job_id or None,
        array_task_id=number(struct.array_task_id),
        het_job_id=struct.het_job_id or None,
        task_count=max(1, struct.task_count),
        time_limit_min=minutes(struct.time_limit_min),
        requeue=requeue,
        resizing=resizing,
        name=text(ffi, struct.name),
        admin_comment=text(ffi, struct.admin_comment),
        source="jobcomp",
    )
