# SPDX-License-Identifier: BSD-3-Clause
"""What a run did cost: the CPUs that were allocated, for the time that Slurm's own tools count."""

from __future__ import annotations

from typing import Iterable, Optional, Tuple

from slurm_banking.amounts import charge_csu
from slurm_banking.prices import Price, PriceList
from slurm_banking.records import Run


def price_of(run: Run, prices: PriceList) -> Optional[Price]:
    """The price where the run really ran, at its real QOS. None: that partition is not listed."""
    return prices.price(run.partition, run.qos)


def charge(run: Run, price: Price) -> int:
    """The final cost in hundredths of an SU; 0 for a run that never started, never negative.

    ``price`` is the one in force when the run started: the caller knows which price list that is.
    """
    if not run.started:
        return 0
    return charge_csu(price.su, 1, cpu_seconds(run))


def cpu_seconds(run: Run) -> int:
    """CPUs times the seconds that each was allocated; a run that was resized had more or fewer of them for a while."""
    if run.cpu_s is not None:
        return max(0, run.cpu_s)
    return max(0, run.cpus) * max(0, run.elapsed_s)


def cpu_seconds_of(segments: Iterable[Tuple[int, int]], cpus: int, elapsed_s: int) -> int:
    """The same from the resizes of a run, each (CPUs until then, seconds that it had run by then), and from its end."""
    total, until_s = 0, 0
    for segment_cpus, segment_s in sorted(segments, key=lambda segment: segment[1]):
        total += segment_cpus * max(0, segment_s - until_s)
        until_s = max(until_s, segment_s)
    return total + max(0, cpus) * max(0, elapsed_s - until_s)


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
