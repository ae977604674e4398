# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_banking.amounts import lien_csu
from slurm_banking.charge import (
    charge,
    elapsed_s,
    final_state,
    price_of,
    sacct_elapsed_s,
    segments_of,
)
from slurm_banking.prices import CANCELLED_BY_ADMIN, Price, PriceList, Rates
from slurm_banking.records import Run, Segment
from slurm_banking.tres import Tres, parse_tres
from tests.prices import FACTORS, MULTIPLIERS, RATES, TRES

PRICES = PriceList.of_cpus(
    {"normal": Decimal("1.5"), "free": Decimal(0)}, {"lowprio": Decimal("0.1")}
)

#: A price of everything at once, and a time that it is had.
ANY_PRICE = st.builds(
    lambda rates, multiplier: Price(
        partition="p", qos="q", rates=rates, qos_multiplier=multiplier, version="v"
    ),
    RATES,
    MULTIPLIERS,
)
SECONDS = st.integers(0, 10**8)
PARTS = st.lists(st.tuples(TRES, SECONDS), min_size=1, max_size=6)


def run(**changes: Any) -> Run:
    fields: dict[str, Any] = {
        "cluster": "c1",
        "job_id": 7,
        "submit_time": 900,
        "restart_count": 0,
        "user_id": 1001,
        "account": "fc_astro",
        "partition": "normal",
        "state": "COMPLETED",
        "start_time": 1000,
        "end_time": 4600,
        "elapsed_s": 3600,
        "cpus": 4,
        "started": True,
    }
    return Run(**{**fields, **changes})


def price(changed: Run) -> Price:
    found = price_of(changed, PRICES)
    assert found is not None
    return found


def test_a_run_costs_its_cpus_times_its_time_at_its_partitions_price() -> None:
    assert charge(run(), price(run())) == 600


def test_the_qos_it_ran_at_changes_the_price() -> None:
    lowprio = run(qos="lowprio")
    assert charge(lowprio, price(lowprio)) == 60


def test_a_run_costs_all_that_it_had() -> None:
    prices = PriceList(
        partitions={"gpu": Rates(cpu=Decimal(1), gpu={"a100": Decimal(40)}, mem_gb=Decimal("0.5"))}
    )
    had = parse_tres("cpu=8,mem=16384M,node=1,billing=9,gres/gpu=2,gres/gpu:a100=2")
    found = prices.price("gpu", None)
    assert found is not None
    assert charge(run(tres=had, cpus=8, elapsed_s=1800), found) == (8 + 80 + 8) * 50


def test_a_run_of_which_only_cpus_and_nodes_are_known_costs_those() -> None:
    prices = PriceList(partitions={"n": Rates(cpu=Decimal(1), node=Decimal(10), combine="max")})
    found = prices.price("n", None)
    assert found is not None
    assert charge(run(cpus=4, node_count=2), found) == 2000


@pytest.mark.parametrize(("factor", "expected"), [("0", 0), ("0.5", 300), ("0.3333", 200)])
def test_a_state_may_be_charged_in_part(factor: str, expected: int) -> None:
    assert charge(run(), price(run()), Decimal(factor)) == expected


def test_a_cancellation_by_an_administrator_is_told_from_the_users_own() -> None:
    assert final_state(run(state="CANCELLED", cancelled_by_admin=True)) == CANCELLED_BY_ADMIN
    assert final_state(run(state="CANCELLED")) == "CANCELLED"
    assert final_state(run(state="TIMEOUT", cancelled_by_admin=True)) == "TIMEOUT"


def test_a_resized_run_is_the_sum_of_its_segments() -> None:
    parts = segments_of([(Tres(cpus=4), 3600), (Tres(cpus=8), 1800)], Tres(cpus=2), 5400)
    assert parts == (
        Segment(tres=Tres(cpus=8), seconds=1800),
        Segment(tres=Tres(cpus=4), seconds=1800),
        Segment(tres=Tres(cpus=2), seconds=1800),
    )
    resized = run(segments=parts, cpus=2, elapsed_s=5400)
    assert charge(resized, price(resized)) == (8 + 4 + 2) * 75


@given(PARTS, TRES, SECONDS)
def test_segments_are_as_long_as_the_run_however_often_a_resize_was_told(
    parts: List[Tuple[Tres, int]], last: Tres, rest_s: int
) -> None:
    total_s, resizes = 0, []
    for tres, seconds in parts:
        total_s += seconds
        resizes += [(tres, total_s)] * 2
    found = segments_of(reversed(resizes), last, total_s + rest_s)
    assert sum(part.seconds for part in found) == total_s + rest_s
    assert found[-1] == Segment(tres=last, seconds=rest_s)


@given(PARTS, ANY_PRICE, FACTORS)
def test_a_charge_is_the_exact_cost_of_its_parts_rounded_once(
    parts: List[Tuple[Tres, int]], of: Price, factor: Decimal
) -> None:
    resized = run(segments=tuple(Segment(tres=tres, seconds=seconds) for tres, seconds in parts))
    exact = sum(Fraction(of.su_per_hour(tres)) * seconds for tres, seconds in parts)
    exact = exact * Fraction(factor) * 100 / 3600
    assert charge(resized, of, factor) == (exact + Fraction(1, 2)).__floor__()


@given(TRES, st.lists(SECONDS, min_size=1, max_size=8), ANY_PRICE, FACTORS)
def test_splitting_a_run_changes_its_charge_by_at_most_a_hundredth_for_each_part(
    tres: Tres, seconds: List[int], of: Price, factor: Decimal
) -> None:
    whole = charge(run(tres=tres, elapsed_s=sum(seconds)), of, factor)
    segments = tuple(Segment(tres=tres, seconds=part) for part in seconds)
    assert charge(run(segments=segments), of, factor) == whole, "as segments of one run"
    runs = sum(charge(run(tres=tres, elapsed_s=part), of, factor) for part in seconds)
    assert abs(runs - whole) <= len(seconds), "as runs"


@given(TRES, SECONDS, st.integers(0, 10**6), ANY_PRICE, FACTORS)
def test_no_run_within_its_limit_costs_more_than_its_estimate(
    tres: Tres, elapsed: int, left_s: int, of: Price, factor: Decimal
) -> None:
    limit_s = elapsed + left_s
    estimate = lien_csu(of.su_per_hour(tres), 1, limit_s)
    assert 0 <= charge(run(tres=tres, elapsed_s=elapsed), of, factor) <= estimate


def test_a_run_that_never_started_costs_nothing() -> None:
    assert charge(run(started=False), price(run())) == 0


@given(st.integers(-(2**40), 2**40), st.integers(-(2**33), 2**33), ANY_PRICE, FACTORS)
def test_a_charge_is_never_negative(seconds: int, cpus: int, of: Price, factor: Decimal) -> None:
    told = run(elapsed_s=seconds, cpus=cpus, node_count=cpus)
    assert charge(told, of, factor) >= 0
    parts = (Segment(tres=Tres(cpus=1), seconds=seconds),)
    assert charge(run(segments=parts), of, factor) >= 0


def test_an_unlisted_partition_has_no_price() -> None:
    assert price_of(run(partition="other"), PRICES) is None


@pytest.mark.parametrize(
    ("start", "end", "suspend_time", "pre_suspend_s", "state", "expected"),
    [
        (1000, 1600, None, 0, "COMPLETED", 600),
        (1000, 1600, 0, 0, "COMPLETED", 600),
        (1000, 1600, 1500, 200, "COMPLETED", 300),  # ran 200, suspended, resumed at 1500
        (
            1000,
            1400,
            1400,
            400,
            "CANCELLED",
            400,
        ),  # killed while suspended: end is the suspend time
        (1000, 9999, 1400, 400, "SUSPENDED", 400),
        (1000, 1000, None, 0, "CANCELLED", 0),  # cancelled while pending
        (1000, 900, None, 0, "COMPLETED", 0),  # the clock went back
        (1000, 900, 1500, 10, "COMPLETED", 0),
        (None, 1600, None, 0, "CANCELLED", 0),
        (0, 1600, None, 0, "CANCELLED", 0),
        (1000, None, None, 0, "RUNNING", 0),
        (1000, 1600, None, 0, "PENDING", 0),
    ],
)
def test_elapsed_is_what_squeue_and_scontrol_count(
    start: Optional[int],
    end: Optional[int],
    suspend_time: Optional[int],
    pre_suspend_s: int,
    state: str,
    expected: int,
) -> None:
    assert elapsed_s(start, end, suspend_time, pre_suspend_s, state) == expected


def test_sacct_takes_the_suspended_time_out() -> None:
    assert sacct_elapsed_s(1000, 1600, 200) == 400
    assert sacct_elapsed_s(1000, 1600, 900) == 0
    assert sacct_elapsed_s(None, 1600) == 0
    assert sacct_elapsed_s(1000, None) == 0
