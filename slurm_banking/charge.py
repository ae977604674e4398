# SPDX-License-Identifier: BSD-3-Clause
"""What a run did cost: the resources that were allocated, for the time that Slurm's own tools count."""

from __future__ import annotations

from decimal import Decimal
from typing import Iterable, Optional, Tuple

from slurm_banking.amounts import EXACT, charge_csu
from slurm_banking.prices import CANCELLED_BY_ADMIN, Price, PriceList
from slurm_banking.records import Run, Segment
from slurm_banking.tres import Tres


def price_of(run: Run, prices: PriceList) -> Optional[Price]:
    """The price where the run really ran, at its real QOS. None: that partition is not listed."""
    return prices.price(run.partition, run.qos)


def charge(run: Run, price: Price, factor: Decimal = Decimal(1)) -> int:
    """The final cost in hundredths of an SU; 0 for a run that never started, never negative.

    ``price`` is the one in force when the run started: the caller knows which price list that is. ``factor``: the share
    that its final state is charged. A run that was resized is the sum of its segments, rounded once.
    """
    if not run.started:
        return 0
    su_s = su_seconds((price.su_per_hour(part.tres), part.seconds) for part in segments(run))
    return charge_csu(EXACT.multiply(su_s, factor), 1, 1)


def su_seconds(parts: Iterable[Tuple[Decimal, int]]) -> Decimal:
    """SU per hour, each for some seconds, added up; exact."""
    total = Decimal(0)
    for su_per_hour, seconds in parts:
        total = EXACT.add(total, EXACT.multiply(su_per_hour, Decimal(seconds)))
    return total


def final_state(run: Run) -> str:
    """The state that decides what share is charged: a cancellation by who made it."""
    if run.state == "CANCELLED" and run.cancelled_by_admin:
        return CANCELLED_BY_ADMIN
    return run.state


def allocated(run: Run) -> Tres:
    """What the run had at its end; where only CPUs and nodes are known, those."""
    return run.tres if run.tres.cpus else Tres(cpus=max(0, run.cpus), nodes=max(0, run.node_count))


def segments(run: Run) -> Tuple[Segment, ...]:
    """Its parts between resizes; of a run that never was resized, the whole."""
    if run.segments:
        return tuple(Segment(tres=part.tres, seconds=max(0, part.seconds)) for part in run.segments)
    return (Segment(tres=allocated(run), seconds=max(0, run.elapsed_s)),)


def segments_of(
    resizes: Iterable[Tuple[Tres, int]], tres: Tres, elapsed_s: int
) -> Tuple[Segment, ...]:
    """The same from the resizes of a run, each (what it had until then, seconds that it had run by then), and its end."""
    found, until_s = [], 0
    for had, resized_s in sorted(resizes, key=lambda resize: resize[1]):
        found.append(Segment(tres=had, seconds=max(0, resized_s - until_s)))
        until_s = max(until_s, resized_s)
    found.append(Segment(tres=tres, seconds=max(0, elapsed_s - until_s)))
    return tuple(found)


def elapsed_s(
    start: Optional[int],
    end: Optional[int],
    suspend_time: Optional[int] = None,
    pre_suspend_s: int = 0,
    state: str = "",
) -> int:
    """Seconds that a job record has run until ``end``, as squeue and scontrol count them; at least 0.

    ``suspend_time`` is when the job was last suspended *or resumed*, ``pre_suspend_s`` what it had run before that. A job
    killed while suspended has ``end == suspend_time``, so its last suspension adds nothing. Slurm's ``tot_sus_time`` is of
    no use here: it is increased once more for such a job, and subtracting it would take the suspension out twice.
    For a run that goes on, ``end`` is now.
    """
    if not start or not end or state == "PENDING":
        return 0
    if state == "SUSPENDED":
        return max(0, pre_suspend_s)
    if suspend_time:
        return max(0, end - suspend_time + pre_suspend_s)
    return max(0, end - start)


def sacct_elapsed_s(start: Optional[int], end: Optional[int], suspended_s: int = 0) -> int:
    """The same from slurmdbd's figures, whose rule is ``end - start - suspended``; at least 0."""
    if not start or not end:
        return 0
    return max(0, end - start - max(0, suspended_s))
