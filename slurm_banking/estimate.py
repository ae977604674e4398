# SPDX-License-Identifier: BSD-3-Clause
"""The most that a submission could cost: what Slurm could allocate, times its time limit. Pure; nothing is looked up.

Where Slurm's choice is not known at submit time, the estimate takes the larger one: it must never be below what the job
can cost within its limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import List, Optional, Tuple

from slurm_banking.amounts import CSU_PER_SU, SECONDS_PER_HOUR, lien_csu
from slurm_banking.arrays import parse_array
from slurm_banking.errors import BankingError
from slurm_banking.prices import Price, PriceList, plain
from slurm_banking.records import UNLIMITED, Estimate, Partition, QueuedJob, Reason, Submission

SECONDS_PER_MIN = 60
MIN_PER_DAY = 24 * 60


class Unpriceable(BankingError):
    """No estimate can be given, and why; a refusal, not a failure. ``detail`` is one line for the user."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Hints:
    """What of a submission would fit. A field is None when nothing of that kind helps."""

    time_limit_min: Optional[int] = (
        None  #: largest limit with which all of it fits, in every partition that it names
    )
    time_limit: Optional[str] = None  #: the same as sbatch reads it
    tasks: Optional[int] = None  #: how many of an array's tasks fit as they are
    partition: Optional[str] = None  #: a partition, of several named, in which it fits as it is


@dataclass(frozen=True)
class _Candidate:
    """A submission in one of the partitions that it names."""

    price: Price
    cpus: int
    nodes: int
    time_limit_min: int
    per_task_csu: int


def estimate(
    sub: Submission,
    prices: PriceList,
    *,
    unlisted: str,
    horizon_min: Optional[int],
    tasks: Optional[int] = None,
    cpus: Optional[int] = None,
) -> Estimate:
    """The cost in the dearest partition that ``sub`` names.

    ``unlisted``: "refuse" or "free", for partitions without a price. ``horizon_min``: stands for unlimited time; None
    refuses it. ``tasks`` and ``cpus`` replace what ``sub`` says: an update speaks of the tasks left in a record, and a
    running job has the CPUs that it has.

    :raises Unpriceable: UNPRICED_PARTITION, UNLIMITED_TIME or MALFORMED.
    """
    count = _tasks(sub, tasks)
    candidates, warnings = _candidates(
        sub, prices, unlisted=unlisted, horizon_min=horizon_min, cpus=cpus
    )
    dearest = max(candidates, key=lambda candidate: candidate.per_task_csu)
    return _as_estimate(dearest, count, sub.qos, tuple(warnings))


def estimate_queued(
    job: QueuedJob,
    prices: PriceList,
    *,
    unlisted: str,
    horizon_min: Optional[int],
) -> Estimate:
    """The same for a record of Slurm's queue, where Slurm has settled the time limit already.

    ``job.cpus`` is taken as it is: exact for a job that has started, and while it waits Slurm's own figure, which may be
    less than whole nodes would be.

    :raises Unpriceable: UNPRICED_PARTITION or UNLIMITED_TIME.
    """
    candidates: List[_Candidate] = []
    warnings: List[str] = []
    nodes = max(1, job.nodes)
    cpus = max(nodes, job.cpus)
    for name in [name for name in job.partition.split(",") if name] or [job.partition]:
        price = _price(name, job.qos, prices, unlisted, warnings)
        time_limit_min = _horizon(job.time_limit_min, name, horizon_min)
        candidates.append(_candidate(price, cpus, nodes, time_limit_min))
    dearest = max(candidates, key=lambda candidate: candidate.per_task_csu)
    return _as_estimate(dearest, max(1, job.tasks), job.qos, tuple(warnings))


def what_would_fit(
    sub: Submission,
    prices: PriceList,
    available_csu: int,
    *,
    unlisted: str,
    horizon_min: Optional[int],
    tasks: Optional[int] = None,
    cpus: Optional[int] = None,
) -> Hints:
    """For a submission that was estimated and does not fit into ``available_csu``; the other arguments as for estimate.

    :raises Unpriceable: as estimate does.
    """
    if available_csu <= 0:
        return Hints()
    count = _tasks(sub, tasks)
    candidates, _ = _candidates(sub, prices, unlisted=unlisted, horizon_min=horizon_min, cpus=cpus)
    per_task_csu = max(candidate.per_task_csu for candidate in candidates)
    limits = [
        time_that_fits(available_csu // count, candidate.price.su, candidate.cpus)
        for candidate in candidates
    ]
    time_limit_min = min((limit for limit in limits if limit is not None), default=0)
    longest = max(candidate.time_limit_min for candidate in candidates)
    if time_limit_min < max(1, sub.time_min_min or 0) or time_limit_min >= longest:
        time_limit_min = 0
    fitting = 0 if per_task_csu == 0 else available_csu // per_task_csu
    inside = [
        candidate for candidate in candidates if candidate.per_task_csu * count <= available_csu
    ]
    cheapest = min(inside, key=lambda candidate: candidate.per_task_csu, default=None)
    return Hints(
        time_limit_min=time_limit_min or None,
        time_limit=format_time_limit(time_limit_min) if time_limit_min else None,
        tasks=fitting if 0 < fitting < count else None,
        partition=cheapest.price.partition if cheapest and len(inside) < len(candidates) else None,
    )


def time_that_fits(available_csu: int, price_su: Decimal, cpus: int) -> Optional[int]:
    """The most whole minutes whose cost, rounded up, is within ``available_csu``; None: any number, it costs nothing."""
    numerator, denominator = price_su.as_integer_ratio()
    if numerator == 0 or cpus == 0:
        return None
    per_min = numerator * cpus * SECONDS_PER_MIN * CSU_PER_SU
    return max(0, available_csu * SECONDS_PER_HOUR * denominator // per_min)


def format_time_limit(minutes: int) -> str:
    """As Slurm prints and reads a limit: ``[D-]HH:MM:SS``."""
    if minutes == UNLIMITED:
        return "UNLIMITED"
    days, rest = divmod(minutes, MIN_PER_DAY)
    clock = f"{rest // 60:02d}:{rest % 60:02d}:00"
    return f"{days}-{clock}" if days else clock


def _tasks(sub: Submission, tasks: Optional[int]) -> int:
    if tasks is not None:
        return max(1, tasks)
    if not sub.array_inx:
        return 1
    try:
        return parse_array(sub.array_inx).count
    except ValueError as error:
        raise Unpriceable(Reason.MALFORMED, str(error)) from None


def _candidates(
    sub: Submission,
    prices: PriceList,
    *,
    unlisted: str,
    horizon_min: Optional[int],
    cpus: Optional[int],
) -> Tuple[List[_Candidate], List[str]]:
    candidates: List[_Candidate] = []
    warnings: List[str] = []
    # Slurm itself refuses a list with an unknown partition in it, and says so better than a missing price would.
    partitions = [partition for partition in sub.partitions if partition.found] or sub.partitions
    for partition in partitions:
        price = _price(partition.name, sub.qos, prices, unlisted, warnings)
        nodes = most_nodes(sub, partition)
        most = most_cpus(sub, partition, nodes) if cpus is None else max(1, cpus)
        time_limit_min = _time_limit(sub, partition, horizon_min)
        candidates.append(_candidate(price, most, nodes, time_limit_min))
    return candidates, warnings


def _candidate(price: Price, cpus: int, nodes: int, time_limit_min: int) -> _Candidate:
    return _Candidate(
        price=price,
        cpus=cpus,
        nodes=nodes,
        time_limit_min=time_limit_min,
        per_task_csu=lien_csu(price.su, cpus, time_limit_min * SECONDS_PER_MIN),
    )


def _as_estimate(
    candidate: _Candidate, tasks: int, qos: Optional[str], warnings: Tuple[str, ...]
) -> Estimate:
    return Estimate(
        cost_csu=candidate.per_task_csu * tasks,
        per_task_csu=candidate.per_task_csu,
        tasks=tasks,
        partition=candidate.price.partition,
        cpus=candidate.cpus,
        nodes=candidate.nodes,
        time_limit_min=candidate.time_limit_min,
        price_su=plain(candidate.price.su),
        price_version=candidate.price.version,
        qos=qos,
        warnings=warnings,
    )


def _price(
    partition: str, qos: Optional[str], prices: PriceList, unlisted: str, warnings: List[str]
) -> Price:
    price = prices.price(partition, qos)
    if price is not None:
        return price
    if unlisted != "free":
        raise Unpriceable(Reason.UNPRICED_PARTITION, f"partition {partition!r} has no price")
    warnings.append(f"partition {partition!r} has no price: taken as free")
    return prices.free(partition, qos)


def _time_limit(sub: Submission, partition: Partition, horizon_min: Optional[int]) -> int:
    """Asked, else the partition's default, else its largest. A limit above the largest is Slurm's to refuse."""
    limit = sub.time_limit_min
    if limit is None:
        limit = partition.default_time_min
    if limit is None or limit == UNLIMITED or limit == 0:  # --time=0 asks for no limit
        limit = partition.max_time_min
    return _horizon(limit, partition.name, horizon_min)


def _horizon(limit: int, partition: str, horizon_min: Optional[int]) -> int:
    if limit >= 0:
        return limit
    if horizon_min is None:
        raise Unpriceable(
            Reason.UNLIMITED_TIME,
            f"a job without a time limit has no cost in partition {partition!r}",
        )
    return horizon_min


def most_nodes(sub: Submission, partition: Partition) -> int:
    """The most nodes that Slurm could give to the job in ``partition``."""
    least = max(1, sub.min_nodes or 0)
    if sub.max_nodes is not None:
        most = max(least, sub.max_nodes)
    else:
        most = max(least, _nodes_needed(sub, partition))
    if partition.total_nodes > 0:
        most = max(least, min(most, partition.total_nodes))
    return most


def _nodes_needed(sub: Submission, partition: Partition) -> int:
    """Nodes that the tasks fill when the job does not say how many: on the smallest nodes of the partition."""
    size = partition.node_cpus_min or partition.node_cpus_max
    if size and partition.max_cpus_per_node:
        size = min(size, partition.max_cpus_per_node)
    num_tasks = max(1, sub.num_tasks or 0)
    cpus_per_task = max(1, sub.cpus_per_task or 0) * _threads_left_idle(sub, partition)
    needed = 1
    if sub.ntasks_per_node:
        needed = max(needed, _ceil_div(num_tasks, sub.ntasks_per_node))
    if size:
        needed = max(needed, _ceil_div(num_tasks, max(1, size // cpus_per_task)))
        needed = max(needed, _ceil_div(sub.min_cpus * _threads_left_idle(sub, partition), size))
    return needed


def most_cpus(sub: Submission, partition: Partition, nodes: int) -> int:
    """The most CPUs (hardware threads, as Slurm counts them) that it could give to the job on ``nodes`` nodes.

    Overcommitted tasks are counted like others: too much rather than too little. Memory that raises CPUs
    (``--mem-per-cpu`` above MaxMemPerCPU, ``--mem`` on shared nodes) and GPUs that do (``--cpus-per-gpu``, DefCpuPerGPU)
    come in here, as further terms of ``wanted``.
    """
    threads = max(1, partition.threads_per_core)
    idle = _threads_left_idle(sub, partition)
    cpus_per_task = max(1, sub.cpus_per_task or 0) * idle
    num_tasks = sub.num_tasks or 0
    on_a_node = (sub.ntasks_per_node or 0) * cpus_per_task

    wanted = max(sub.min_cpus * idle, num_tasks * cpus_per_task, on_a_node * nodes, nodes)
    if threads > 1:
        # Each node rounds its share up to whole cores; a task of several CPUs may be alone on its cores.
        wanted = _most_rounded_up(wanted, nodes, threads)
        wanted = max(wanted, _round_up(on_a_node, threads) * nodes)
        if cpus_per_task > 1:
            wanted = max(wanted, _round_up(cpus_per_task, threads) * num_tasks)
    if (
        sub.exclusive or partition.exclusive or sub.core_spec is not None
    ):  # --core-spec implies --exclusive
        whole = nodes * partition.node_cpus_max if partition.node_cpus_max else partition.total_cpus
        if partition.total_cpus > 0:
            whole = min(whole, partition.total_cpus)
        wanted = max(wanted, whole)
    return wanted


def _threads_left_idle(sub: Submission, partition: Partition) -> int:
    """Threads of a core that are allocated for each one used: more than 1 with ``--threads-per-core`` below the node's."""
    threads = max(1, partition.threads_per_core)
    if not sub.threads_per_core or sub.threads_per_core >= threads:
        return 1
    return _ceil_div(threads, sub.threads_per_core)


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _round_up(number: int, step: int) -> int:
    return _ceil_div(number, step) * step


def _most_rounded_up(cpus: int, nodes: int, threads: int) -> int:
    """The largest sum of ``nodes`` shares, each at least 1 and raised to whole cores, that ``cpus`` can be split into."""
    return (cpus + nodes * (threads - 1)) // threads * threads
