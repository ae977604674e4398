# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

from decimal import Decimal
from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_banking.charge import charge, elapsed_s, price_of, sacct_elapsed_s
from slurm_banking.prices import Price, PriceList
from slurm_banking.records import Run

PRICES = PriceList(
    partition_su={"normal": Decimal("1.5"), "free": Decimal(0)},
    qos_multiplier={"lowprio": Decimal("0.1")},
)


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


def test_a_run_that_never_started_costs_nothing() -> None:
    assert charge(run(started=False), price(run())) == 0


@given(st.integers(-(2**40), 2**40), st.integers(-(2**33), 2**33))
def test_a_charge_is_never_negative(seconds: int, cpus: int) -> None:
    assert charge(run(elapsed_s=seconds, cpus=cpus), price(run())) >= 0


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
