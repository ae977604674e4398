# SPDX-License-Identifier: BSD-3-Clause
"""What estimates keep of one submission for the next: it saves time and changes nothing."""

from __future__ import annotations

import dataclasses
import inspect
import random
import re
import weakref
from decimal import Decimal
from typing import Any, Iterator

import pytest

from slurm_banking import allocation, estimate
from slurm_banking.prices import PriceList, Rates
from slurm_banking.records import Estimate, QueuedJob, Submission
from slurm_banking.tres import Tres
from tests.builders import a_partition, a_submission
from tests.unit.test_estimate_allocation import PARTITIONS, REAL

RATES = Rates(cpu=Decimal(1), gpu={"": Decimal(7)}, mem_gb=Decimal("0.1"), node=Decimal("0.5"))
PRICES = PriceList(
    partitions=dict.fromkeys(PARTITIONS, RATES), qos_multiplier={"high": Decimal("1.5")}
)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    estimate._kept.clear()
    yield
    estimate._kept.clear()


def cost_of(sub: Submission, prices: PriceList = PRICES, **rules: Any) -> Estimate:
    return estimate.estimate(sub, prices, **{"unlisted": "refuse", "horizon_min": None, **rules})


def of_slurm(number: int) -> Submission:
    """A submission of those that Slurm was asked, with a partition, QOS and time limit that go by its number."""
    row = REAL[number]
    names = re.findall(r"-p (\S+)", row["options"])[0].split(",")
    known = tuple(PARTITIONS[name] for name in names if name in PARTITIONS)
    return a_submission(
        partitions=known, qos=("normal", "high")[number % 2], time_limit_min=1 + number % 7, **row["asked"]
    )  # fmt: skip


def test_an_estimate_is_the_same_whatever_was_estimated_before() -> None:
    alone = []
    for number in range(len(REAL)):
        estimate._kept.clear()
        alone.append(cost_of(of_slurm(number)))
    assert len({one.cost_csu for one in alone}) > 50  # they are not all alike
    order = list(range(len(REAL))) * 2
    random.Random(7).shuffle(order)
    for number in order:
        assert cost_of(of_slurm(number)) == alone[number], REAL[number]["options"]


def test_submissions_that_an_allocation_could_tell_apart_are_kept_apart() -> None:
    read = set(re.findall(r"\bsub\.(\w+)", inspect.getsource(allocation)))
    assert len(read) > 20
    key = {*estimate._request_of.__reduce__()[1], *estimate._texts_of.__reduce__()[1]}
    assert read <= key


def test_a_second_submission_of_the_same_is_found() -> None:
    first, second = a_submission(name="one"), a_submission(name="two", time_limit_min=120)
    second = dataclasses.replace(second, partitions=first.partitions)
    prices = PriceList.of_cpus({"main": Decimal(1)})
    assert cost_of(second, prices).cost_csu == 2 * cost_of(first, prices).cost_csu
    assert len(estimate._kept) == 1


def test_new_prices_count_at_once() -> None:
    sub = a_submission(qos=None)
    for su in range(1, 20):
        prices = PriceList.of_cpus({"main": Decimal(su)})
        assert cost_of(sub, prices).cost_csu == 100 * su
        del prices  # the next one may get its place in memory


def test_a_partition_that_changed_counts_at_once() -> None:
    prices = PriceList.of_cpus({"main": Decimal(1)})
    for cpus in (8, 4, 16, 32):
        shape = dataclasses.replace(a_partition().shapes[0], cpus=cpus, cores=cpus)
        partition = a_partition(shapes=(shape,), exclusive=True, total_cpus=2 * cpus)
        sub = a_submission(partitions=(partition,))
        assert cost_of(sub, prices).tres.cpus == cpus
        del sub, partition, shape


def test_what_a_kept_rate_was_made_of_lives_as_long_as_it() -> None:
    """It is found by identity: another object in the same place would be taken for it."""
    prices = PriceList.of_cpus({"main": Decimal(1)})
    sub = a_submission()
    made_of: list[weakref.ref[Any]] = [weakref.ref(prices), weakref.ref(sub.partitions[0])]
    cost_of(sub, prices)
    del sub, prices
    assert all(one() is not None for one in made_of)
    estimate._kept.clear()
    assert all(one() is None for one in made_of)


def test_the_rules_of_unlisted_partitions_count_at_once() -> None:
    sub = a_submission()
    prices = PriceList.of_cpus({"other": Decimal(1)})
    for _ in range(2):
        free = cost_of(sub, prices, unlisted="free")
        assert free.cost_csu == 0 and "no price" in free.warnings[0]
        with pytest.raises(estimate.Unpriceable, match="no price"):
            cost_of(sub, prices, unlisted="refuse")


def test_what_a_running_job_has_counts_and_not_what_was_kept_of_it_waiting() -> None:
    sub = a_submission()
    prices = PriceList.of_cpus({"main": Decimal(1)})
    for cpus in (None, 3, None, 5, 3):
        running = None if cpus is None else Tres(cpus=cpus, nodes=1)
        assert cost_of(sub, prices, running=running).cost_csu == 100 * (cpus or 1)


def test_records_of_the_queue_are_told_apart_by_what_they_have() -> None:
    prices = PriceList.of_cpus({"main": Decimal(1), "big": Decimal(2)}, {"high": Decimal(3)})

    def cost(partition: str, qos: str, cpus: int, limit: int) -> int:
        job = QueuedJob(
            job_id=1, submit_time=1, user_id=1, account="a", partition=partition, state="PENDING", qos=qos,
            time_limit_min=limit, cpus=cpus, nodes=1,
        )  # fmt: skip
        return estimate.estimate_queued(job, prices, unlisted="free", horizon_min=None).cost_csu

    for _ in range(2):
        assert cost("main", "low", 2, 60) == 200
        assert cost("main", "low", 2, 120) == 400
        assert cost("main", "high", 2, 60) == 600
        assert cost("main,big", "low", 2, 60) == 400
        assert cost("main", "low", 3, 60) == 300
        assert cost("elsewhere", "low", 3, 60) == 0


def test_little_is_kept_and_nothing_long() -> None:
    prices = PriceList.of_cpus({"main": Decimal(1)})
    for number in range(3 * estimate.KEPT_MAX):
        cost_of(a_submission(qos=f"q{number}"), prices)
    assert 0 < len(estimate._kept) <= estimate.KEPT_MAX
    assert len(prices._known) <= 512
    estimate._kept.clear()
    cost_of(a_submission(tres_per_job=",".join(["craynetwork:1"] * 100)), prices)
    cost_of(a_submission(qos="q" * 500), prices)
    assert not estimate._kept
