# SPDX-License-Identifier: BSD-3-Clause
"""The most that a submission could cost: what Slurm could allocate, times its time limit. Pure; nothing is looked up.

Where Slurm's choice is not known at submit time, the estimate takes the dearer one: it must never be below what the job
can cost within its limit. What could be allocated is in allocation.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from operator import attrgetter
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from slurm_banking.allocation import allocations, anyway
from slurm_banking.amounts import CSU_PER_SU, SECONDS_PER_HOUR, lien_csu, share_csu
from slurm_banking.arrays import first_tasks, parse_array
from slurm_banking.errors import BankingError
from slurm_banking.prices import Price, PriceList
from slurm_banking.records import UNLIMITED, Estimate, Partition, QueuedJob, Reason, Submission
from slurm_banking.tres import Tres

SECONDS_PER_MIN = 60
MIN_PER_DAY = 24 * 60

_ALL = Decimal(1)


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
        None  #: largest limit with which all of it fits, in every partition that it could run in
    )
    time_limit: Optional[str] = None  #: the same as sbatch reads it
    tasks: Optional[int] = None  #: how many of an array's tasks fit as they are
    array: Optional[str] = (
        None  #: an --array= expression of these: the first ones, the throttle kept
    )
    partition: Optional[str] = None  #: a partition, of several named, in which it fits as it is


class _Rate(NamedTuple):
    """The dearest that a submission could be given in one partition, whatever its time limit."""

    price: Price
    inputs: Mapping[str, Any]  #: of the price
    tres: Tres
    su_per_hour: Decimal
    could_run: bool  #: by what it asks for; the time limit is another matter


class _Candidate(NamedTuple):
    """A submission in one of the partitions that it names."""

    rate: _Rate
    max_time_min: int
    time_limit_min: int
    per_task_csu: int


class _Kept(NamedTuple):
    """Rates of a submission that may come again, with what they were made from, so that it lives as long as they do."""

    partitions: Tuple[Partition, ...]
    prices: PriceList
    rates: Tuple[_Rate, ...]  #: of ``partitions``, in their order
    warnings: Tuple[str, ...]


#: Users submit the same thing again and again. What it could be given, at what price, is found here, by everything that
#: allocations() reads of a submission; a price list or a partition that changed is another object. It holds no more than
#: KEPT_MAX, and nothing long that a user wrote.
_kept: Dict[Tuple[Any, ...], _Kept] = {}
KEPT_MAX = 512
KEPT_TEXT_MAX = 400

_texts_of = attrgetter(
    "tres_per_job", "tres_per_node", "tres_per_socket", "tres_per_task", "cpus_per_tres", "mem_per_tres",
)  # fmt: skip
_request_of = attrgetter(
    "qos", "min_cpus", "min_nodes", "max_nodes", "num_tasks", "cpus_per_task", "ntasks_per_node",
    "ntasks_per_socket", "ntasks_per_core", "ntasks_per_tres", "sockets_per_node", "cores_per_socket",
    "threads_per_core", "pn_min_cpus", "core_spec", "thread_spec", "overcommit", "exclusive", "memory_mb",
    "memory_per_cpu",
)  # fmt: skip


def estimate(
    sub: Submission,
    prices: PriceList,
    *,
    unlisted: str,
    horizon_min: Optional[int],
    tasks: Optional[int] = None,
    running: Optional[Tres] = None,
    lien_share: Decimal = _ALL,
) -> Estimate:
    """The cost in the dearest partition that ``sub`` names and could run in.

    ``unlisted``: "refuse" or "free", for partitions without a price. ``horizon_min``: stands for unlimited time; None
    refuses it. ``tasks`` and ``running`` replace what ``sub`` says: an update speaks of the tasks left in a record, and a
    running job has the resources that it has. ``lien_share``: of the cost, how much is set aside.

    :raises Unpriceable: UNPRICED_PARTITION, UNLIMITED_TIME or MALFORMED.
    """
    count = _tasks(sub, tasks)
    candidates, warnings = _candidates(
        sub, prices, unlisted=unlisted, horizon_min=horizon_min, running=running
    )
    return _as_estimate(_dearest(candidates, sub), count, sub.qos, tuple(warnings), lien_share)


def estimate_queued(
    job: QueuedJob,
    prices: PriceList,
    *,
    unlisted: str,
    horizon_min: Optional[int],
    lien_share: Decimal = _ALL,
) -> Estimate:
    """The same for a record of Slurm's queue, where Slurm has settled the time limit already.

    ``job.tres`` (where squeue does not tell it, CPUs and nodes) is taken as it is: exact for a job that has started, and
    while it waits Slurm's own figure, which may be less than whole nodes would be.

    :raises Unpriceable: UNPRICED_PARTITION or UNLIMITED_TIME.
    """
    candidates: List[_Candidate] = []
    warnings: List[str] = []
    nodes = max(1, job.nodes)
    tres = job.tres if job.tres.cpus else Tres(cpus=max(nodes, job.cpus), nodes=nodes)
    for name in [name for name in job.partition.split(",") if name] or [job.partition]:
        rate = _rate_of_queued(name, job.qos, tres, prices, unlisted, warnings)
        candidates.append(_candidate(rate, _horizon(job.time_limit_min, name, horizon_min)))
    dearest = candidates[0] if len(candidates) == 1 else max(candidates, key=_cost)
    return _as_estimate(dearest, max(1, job.tasks), job.qos, tuple(warnings), lien_share)


def what_would_fit(
    sub: Submission,
    prices: PriceList,
    available_csu: int,
    *,
    unlisted: str,
    horizon_min: Optional[int],
    tasks: Optional[int] = None,
    running: Optional[Tres] = None,
    lien_share: Decimal = _ALL,
) -> Hints:
    """For a submission that was estimated and does not fit into ``available_csu``; the other arguments as for estimate.

    :raises Unpriceable: as estimate does.
    """
    if available_csu <= 0:
        return Hints()
    count = _tasks(sub, tasks)
    candidates, _ = _candidates(
        sub, prices, unlisted=unlisted, horizon_min=horizon_min, running=running
    )
    counting = _that_count(candidates, sub)
    per_task_csu = share_csu(_dearest(candidates, sub).per_task_csu, lien_share)
    time_limit_min = _longest_that_fits(
        candidates, sub, _before_share(available_csu // count, lien_share)
    )
    fitting = 0 if per_task_csu == 0 else available_csu // per_task_csu
    some = fitting if 0 < fitting < count else None
    inside = [
        candidate
        for candidate in counting
        if share_csu(candidate.per_task_csu, lien_share) * count <= available_csu
    ]
    cheapest = min(inside, key=_cost, default=None)
    return Hints(
        time_limit_min=time_limit_min,
        time_limit=None if time_limit_min is None else format_time_limit(time_limit_min),
        tasks=some,
        array=first_tasks(sub.array_inx, some) if some and tasks is None else None,
        partition=cheapest.rate.price.partition
        if cheapest and len(inside) < len(counting)
        else None,
    )


def _longest_that_fits(
    candidates: Sequence[_Candidate], sub: Submission, available_csu: int
) -> Optional[int]:
    """The largest ``--time`` below the present one whose cost for one task is within ``available_csu``.

    Below the largest limit of a dearer partition, that one counts too; so each range of limits is looked at by itself.
    """
    least = max(1, sub.time_min_min or 0)
    longest = max(candidate.time_limit_min for candidate in _that_count(candidates, sub))
    edges = {candidate.max_time_min for candidate in candidates if candidate.max_time_min > 0}
    for high in sorted(
        {longest - 1, *(edge for edge in edges if edge < longest - 1)}, reverse=True
    ):
        if high < least:
            return None
        limits = (
            time_that_fits(available_csu, candidate.rate.su_per_hour)
            for candidate in _that_count(candidates, sub, high)
        )
        fits = min((limit for limit in limits if limit is not None), default=high)
        low = max((edge for edge in edges if edge < high), default=0)
        found = min(high, fits)
        if found > low:
            return found if found >= least else None
    return None


def time_that_fits(available_csu: int, su_per_hour: Decimal) -> Optional[int]:
    """The most whole minutes whose cost, rounded up, is within ``available_csu``; None: any number, it costs nothing."""
    numerator, denominator = su_per_hour.as_integer_ratio()
    if numerator == 0:
        return None
    per_min = numerator * SECONDS_PER_MIN * CSU_PER_SU
    return max(0, available_csu * SECONDS_PER_HOUR * denominator // per_min)


def format_time_limit(minutes: int) -> str:
    """As Slurm prints and reads a limit: ``[D-]HH:MM:SS``."""
    if minutes == UNLIMITED:
        return "UNLIMITED"
    days, rest = divmod(minutes, MIN_PER_DAY)
    clock = f"{rest // 60:02d}:{rest % 60:02d}:00"
    return f"{days}-{clock}" if days else clock


def _before_share(lien: int, lien_share: Decimal) -> int:
    """The largest cost of which no more than ``lien`` is set aside; both in hundredths."""
    if lien_share == _ALL:
        return lien
    numerator, denominator = lien_share.as_integer_ratio()
    return lien * denominator // numerator


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
    running: Optional[Tres],
) -> Tuple[List[_Candidate], List[str]]:
    """Of every partition that ``sub`` names and that Slurm knows, whether it could run there or not.

    Once Slurm has tried a job in a partition of whole nodes, it gives it whole nodes in the others that it names, too.
    """
    # Slurm itself refuses a list with an unknown partition in it, and says so better than a missing price would.
    partitions = (
        tuple([partition for partition in sub.partitions if partition.found]) or sub.partitions
    )
    key = _key(sub, partitions, prices, unlisted, running)
    kept = None if key is None else _kept.get(key)
    if kept is None:
        made: List[Tuple[_Rate, int]] = []
        warnings: List[str] = []
        whole = sub
        if len(partitions) > 1 and not sub.exclusive:
            if any(partition.exclusive for partition in partitions):
                whole = replace(sub, exclusive=True)
        for partition in partitions:
            price = _price(partition.name, sub.qos, prices, unlisted, warnings)
            time_limit_min = _time_limit(sub, partition, horizon_min)
            made.append((_rate_in(whole, partition, price, running), time_limit_min))
        kept = _Kept(partitions, prices, tuple([rate for rate, _ in made]), tuple(warnings))
        if key is not None:
            _keep(key, kept)
        limits = [time_limit_min for _, time_limit_min in made]
    else:
        limits = [_time_limit(sub, partition, horizon_min) for partition in partitions]
    candidates = [
        _candidate(rate, time_limit_min, partition.max_time_min)
        for rate, time_limit_min, partition in zip(kept.rates, limits, partitions)
    ]
    return candidates, list(kept.warnings)


def _key(
    sub: Submission,
    partitions: Tuple[Partition, ...],
    prices: PriceList,
    unlisted: str,
    running: Optional[Tres],
) -> Optional[Tuple[Any, ...]]:
    """Under which the rates of ``sub`` are kept; None: they are not."""
    texts = _texts_of(sub)
    if any(texts) and len("".join(texts)) > KEPT_TEXT_MAX:
        return None
    if sub.qos is not None and len(sub.qos) > KEPT_TEXT_MAX:
        return None
    # By identity: records with tables in them have no hash, and a _Kept keeps its own alive.
    return (
        *map(id, partitions), id(prices), unlisted, running, _request_of(sub), texts,
    )  # fmt: skip


def _keep(key: Tuple[Any, ...], kept: _Kept) -> None:
    if len(_kept) >= KEPT_MAX:
        _kept.clear()
    _kept[key] = kept


def _rate_of_queued(
    partition: str,
    qos: Optional[str],
    tres: Tres,
    prices: PriceList,
    unlisted: str,
    warnings: List[str],
) -> _Rate:
    """Of a record of Slurm's queue: what it has, or what Slurm says that it would get."""
    key = (id(prices), unlisted, partition, qos, tres)
    kept = _kept.get(key)
    if kept is not None:
        return kept.rates[0]
    told = len(warnings)
    rate = _rate(_price(partition, qos, prices, unlisted, warnings), (tres,), True)
    if len(warnings) == told and len(partition) + len(qos or "") <= KEPT_TEXT_MAX:
        _keep(key, _Kept((), prices, (rate,), ()))
    return rate


def _rate_in(sub: Submission, partition: Partition, price: Price, running: Optional[Tres]) -> _Rate:
    if running is not None:
        return _rate(price, (running,), True)
    try:
        choices = allocations(sub, partition)
        if choices:
            return _rate(price, choices, True)
        return _rate(price, anyway(sub, partition), False)
    except ValueError as error:
        raise Unpriceable(Reason.MALFORMED, str(error)) from None


def _rate(price: Price, choices: Sequence[Tres], could_run: bool) -> _Rate:
    """The dearest of ``choices``; of equal ones the first."""
    tres = choices[0]
    su_per_hour = price.su_per_hour(tres)
    for choice in choices[1:]:
        dearer = price.su_per_hour(choice)
        if dearer > su_per_hour:
            tres, su_per_hour = choice, dearer
    return _Rate(price, price.inputs(), tres, su_per_hour, could_run)


def _candidate(rate: _Rate, time_limit_min: int, max_time_min: int = UNLIMITED) -> _Candidate:
    per_task_csu = lien_csu(rate.su_per_hour, 1, time_limit_min * SECONDS_PER_MIN)
    return _Candidate(rate, max_time_min, time_limit_min, per_task_csu)


def _cost(candidate: _Candidate) -> int:
    return candidate.per_task_csu


def _that_count(
    candidates: Sequence[_Candidate], sub: Submission, time_limit_min: Optional[int] = None
) -> Sequence[_Candidate]:
    """Those in which the job could run, with ``time_limit_min`` in place of its own; all, if it could in none.

    A limit above a partition's keeps the job out of it, unless ``--time-min`` lets it in.
    """
    if len(candidates) == 1:
        return candidates
    least = sub.time_min_min
    found = []
    for candidate in candidates:
        limit = candidate.time_limit_min if time_limit_min is None else time_limit_min
        longest = candidate.max_time_min
        if candidate.rate.could_run and (
            longest < 0 or limit <= longest or (least is not None and 0 < least <= longest)
        ):
            found.append(candidate)
    return found or candidates


def _dearest(candidates: Sequence[_Candidate], sub: Submission) -> _Candidate:
    if len(candidates) == 1:
        return candidates[0]
    return max(_that_count(candidates, sub), key=_cost)


def _as_estimate(
    candidate: _Candidate,
    tasks: int,
    qos: Optional[str],
    warnings: Tuple[str, ...],
    lien_share: Decimal,
) -> Estimate:
    return Estimate(
        cost_csu=candidate.per_task_csu * tasks,
        per_task_csu=candidate.per_task_csu,
        tasks=tasks,
        partition=candidate.rate.price.partition,
        tres=candidate.rate.tres,
        time_limit_min=candidate.time_limit_min,
        price=candidate.rate.inputs,
        qos=qos,
        warnings=warnings,
        lien_share=lien_share,
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
