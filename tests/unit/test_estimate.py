# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Any, List, Optional

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from slurm_banking.amounts import lien_csu
from slurm_banking.charge import charge
from slurm_banking.estimate import (
    Hints,
    Unpriceable,
    estimate,
    estimate_queued,
    format_time_limit,
    time_that_fits,
    what_would_fit,
)
from slurm_banking.prices import PriceList
from slurm_banking.records import UNLIMITED, Estimate, Partition, QueuedJob, Reason, Run, Submission

PRICES = PriceList(
    partition_su={"normal": Decimal(1), "bigmem": Decimal("1.67"), "free": Decimal(0)},
    qos_multiplier={"lowprio": Decimal(0), "fast": Decimal(2)},
)


def partition(name: str = "normal", **changes: Any) -> Partition:
    fields: dict[str, Any] = {
        "default_time_min": 30,
        "max_time_min": 600,
        "node_cpus_max": 8,
        "node_cpus_min": 8,
    }
    fields |= {"total_cpus": 80, "total_nodes": 10}
    return Partition(name=name, **{**fields, **changes})


def submission(*partitions: Partition, **changes: Any) -> Submission:
    fields: dict[str, Any] = {"cluster": "c1", "job_user_id": 1001, "submit_user_id": 1001}
    fields |= {"account": "fc_astro", "time_limit_min": 60}
    return Submission(partitions=partitions or (partition(),), **{**fields, **changes})


def estimated(
    sub: Submission, unlisted: str = "refuse", horizon_min: Optional[int] = None
) -> Estimate:
    return estimate(sub, PRICES, unlisted=unlisted, horizon_min=horizon_min)


def refused(sub: Submission, **changes: Any) -> Unpriceable:
    with pytest.raises(Unpriceable) as caught:
        estimated(sub, **changes)
    return caught.value


# Time.


def test_the_asked_limit_counts_even_above_the_partitions() -> None:
    assert estimated(submission(time_limit_min=6000)).time_limit_min == 6000


def test_without_a_limit_the_partitions_default_counts() -> None:
    assert estimated(submission(time_limit_min=None)).time_limit_min == 30


def test_without_a_default_the_partitions_largest_counts() -> None:
    assert (
        estimated(submission(partition(default_time_min=None), time_limit_min=None)).time_limit_min
        == 600
    )


@pytest.mark.parametrize("asked", [UNLIMITED, 0])
def test_an_unlimited_job_is_bounded_by_its_partition(asked: int) -> None:
    assert estimated(submission(time_limit_min=asked)).time_limit_min == 600


def test_a_job_without_any_limit_is_refused_or_taken_to_the_horizon() -> None:
    endless = submission(partition(max_time_min=UNLIMITED), time_limit_min=UNLIMITED)
    assert refused(endless).reason is Reason.UNLIMITED_TIME
    assert estimated(endless, horizon_min=1440).cost_csu == 2400
    by_default = submission(
        partition(default_time_min=UNLIMITED, max_time_min=UNLIMITED), time_limit_min=None
    )
    assert refused(by_default).reason is Reason.UNLIMITED_TIME


# Prices.


def test_the_dearest_candidate_counts() -> None:
    found = estimated(submission(partition("normal"), partition("bigmem"), partition("free")))
    assert (found.partition, found.cost_csu, found.price_su) == ("bigmem", 167, "1.67")


def test_the_dearest_is_found_by_cost_not_by_price() -> None:
    long = partition("normal", default_time_min=600)
    short = partition("bigmem", default_time_min=60)
    assert estimated(submission(long, short, time_limit_min=None)).partition == "normal"


def test_an_unpriced_partition_is_refused_and_named() -> None:
    problem = refused(submission(partition(), partition("secret")))
    assert problem.reason is Reason.UNPRICED_PARTITION
    assert "'secret'" in problem.detail


def test_an_unpriced_partition_may_be_free_with_a_warning() -> None:
    found = estimated(submission(partition("secret")), unlisted="free")
    assert (found.cost_csu, found.price_su) == (0, "0")
    assert "'secret'" in found.warnings[0]
    assert estimated(submission(partition("secret"), partition()), unlisted="free").cost_csu == 100


def test_a_partition_that_slurm_does_not_know_is_left_to_slurm() -> None:
    found = estimated(submission(partition(), partition("typo", found=False)))
    assert found.partition == "normal"


def test_the_qos_multiplier_counts() -> None:
    assert estimated(submission(qos="fast")).cost_csu == 200
    assert estimated(submission(qos="lowprio")).cost_csu == 0


def test_the_price_version_and_the_inputs_are_kept() -> None:
    found = estimated(submission(qos="fast", array_inx="1-4"))
    assert found.price_version == PRICES.version
    assert found.inputs()["price_su"] == "2" and found.inputs()["tasks"] == 4


# CPUs.


@pytest.mark.parametrize(
    ("changes", "cpus"),
    [
        ({}, 1),
        ({"min_cpus": 0}, 1),
        ({"min_cpus": 6}, 6),
        ({"num_tasks": 4}, 4),
        ({"num_tasks": 4, "cpus_per_task": 3}, 12),
        ({"min_nodes": 3, "max_nodes": 3}, 3),
        ({"min_nodes": 2, "max_nodes": 4}, 4),
        ({"min_nodes": 2, "max_nodes": 4, "ntasks_per_node": 3}, 12),
        ({"min_nodes": 2, "max_nodes": 2, "ntasks_per_node": 2, "cpus_per_task": 2}, 8),
        ({"num_tasks": 4, "ntasks_per_node": 1}, 4),
    ],
)
def test_cpus_of_a_shared_job(changes: dict[str, Any], cpus: int) -> None:
    assert estimated(submission(**changes)).cpus == cpus


@pytest.mark.parametrize(
    ("changes", "cpus"),
    [
        ({}, 8),
        ({"min_cpus": 9}, 16),
        ({"min_nodes": 2, "max_nodes": 4}, 32),
        ({"num_tasks": 4, "ntasks_per_node": 1}, 32),
        ({"num_tasks": 6, "cpus_per_task": 3}, 24),
        ({"min_nodes": 1, "max_nodes": 999}, 80),
    ],
)
def test_an_exclusive_job_gets_whole_nodes(changes: dict[str, Any], cpus: int) -> None:
    assert estimated(submission(exclusive=True, **changes)).cpus == cpus
    assert estimated(submission(partition(exclusive=True), **changes)).cpus == cpus


def test_core_specialisation_implies_whole_nodes() -> None:
    assert estimated(submission(core_spec=1)).cpus == 8


def test_whole_nodes_of_unknown_size_are_never_one_cpu() -> None:
    unknown = partition(node_cpus_max=0, node_cpus_min=0, exclusive=True)
    assert estimated(submission(unknown)).cpus == 80


def test_of_nodes_of_several_sizes_the_most_small_and_the_largest_count() -> None:
    mixed = partition(
        node_cpus_max=16, node_cpus_min=4, total_cpus=1000, total_nodes=100, exclusive=True
    )
    assert estimated(submission(mixed, min_cpus=16)).cpus == 64


@pytest.mark.parametrize(
    ("changes", "cpus"),
    [
        ({}, 2),
        ({"min_cpus": 3}, 4),
        ({"min_cpus": 4}, 4),
        ({"num_tasks": 2, "cpus_per_task": 3}, 8),
        ({"min_nodes": 2, "max_nodes": 2, "num_tasks": 4}, 6),  # as 3 and 1
        ({"min_nodes": 2, "max_nodes": 2, "ntasks_per_node": 3}, 8),
        ({"num_tasks": 2, "threads_per_core": 1}, 4),
        ({"num_tasks": 2, "threads_per_core": 2}, 2),
    ],
)
def test_cpus_are_raised_to_whole_cores(changes: dict[str, Any], cpus: int) -> None:
    assert estimated(submission(partition(threads_per_core=2), **changes)).cpus == cpus


# Arrays.


def test_an_array_costs_its_tasks_times_one() -> None:
    found = estimated(submission(array_inx="0-15:4%3", num_tasks=2))
    assert (found.tasks, found.per_task_csu, found.cost_csu) == (4, 200, 800)


def test_each_task_of_an_array_is_rounded_up_by_itself() -> None:
    prices = PriceList(partition_su={"normal": Decimal("0.0001")})
    found = estimate(submission(array_inx="1-100"), prices, unlisted="refuse", horizon_min=None)
    assert (found.per_task_csu, found.cost_csu) == (1, 100)


def test_a_malformed_array_is_refused() -> None:
    assert refused(submission(array_inx="1-x")).reason is Reason.MALFORMED


def test_the_caller_may_know_the_tasks_and_cpus_better() -> None:
    found = estimate(
        submission(array_inx="1-100"), PRICES, unlisted="refuse", horizon_min=None, tasks=7, cpus=5
    )
    assert (found.tasks, found.cpus, found.cost_csu) == (7, 5, 3500)


# Properties.

POSITIVE = st.integers(1, 300)
MAYBE = st.one_of(st.none(), POSITIVE)
PARTITIONS = st.builds(
    lambda small, more, nodes, **others: partition(
        node_cpus_min=small,
        node_cpus_max=small + more,
        total_cpus=(small + more) * nodes,
        total_nodes=nodes,
        **others,
    ),
    small=st.integers(0, 64),
    more=st.integers(0, 64),
    nodes=st.integers(0, 50),
    exclusive=st.booleans(),
    threads_per_core=st.sampled_from([1, 2, 4]),
    max_cpus_per_node=st.one_of(st.none(), st.integers(1, 64)),
    name=st.sampled_from(["normal", "bigmem"]),
)
SUBMISSIONS = st.builds(
    lambda partitions, **others: submission(*partitions, **others),
    partitions=st.lists(PARTITIONS, min_size=1, max_size=3),
    time_limit_min=st.one_of(st.none(), st.integers(1, 10_000)),
    min_cpus=POSITIVE,
    num_tasks=MAYBE,
    cpus_per_task=MAYBE,
    ntasks_per_node=MAYBE,
    min_nodes=MAYBE,
    max_nodes=MAYBE,
    threads_per_core=st.one_of(st.none(), st.sampled_from([1, 2])),
    exclusive=st.booleans(),
    array_inx=st.sampled_from(["", "1-7", "0-15:4%3"]),
)


@pytest.mark.parametrize(
    "resource",
    ["time_limit_min", "min_cpus", "num_tasks", "cpus_per_task", "min_nodes", "max_nodes"],
)
@given(sub=SUBMISSIONS, more=st.integers(1, 500))
def test_more_of_anything_never_costs_less(resource: str, sub: Submission, more: int) -> None:
    asked = getattr(sub, resource)
    assume(asked is not None)
    larger = dataclasses.replace(sub, **{resource: asked + more})
    assert estimated(larger).cost_csu >= estimated(sub).cost_csu


@given(sub=SUBMISSIONS, more=st.integers(1, 500))
def test_more_tasks_on_a_node_never_cost_less_on_given_nodes(sub: Submission, more: int) -> None:
    assume(sub.ntasks_per_node is not None and sub.max_nodes is not None)
    larger = dataclasses.replace(sub, ntasks_per_node=(sub.ntasks_per_node or 0) + more)
    assert estimated(larger).cost_csu >= estimated(sub).cost_csu


@given(SUBMISSIONS)
def test_whole_nodes_and_another_candidate_never_cost_less(sub: Submission) -> None:
    cost = estimated(sub).cost_csu
    assert estimated(dataclasses.replace(sub, exclusive=True)).cost_csu >= cost
    assert (
        estimated(
            dataclasses.replace(sub, partitions=(*sub.partitions, partition("bigmem")))
        ).cost_csu
        >= cost
    )


@given(SUBMISSIONS)
def test_what_was_asked_for_is_always_in_the_estimate(sub: Submission) -> None:
    found = estimated(sub)
    assert found.cpus >= max(
        sub.min_cpus, (sub.num_tasks or 0) * (sub.cpus_per_task or 1), sub.min_nodes or 1
    )
    assert found.nodes >= (sub.min_nodes or 1)
    assert found.cost_csu == found.per_task_csu * found.tasks
    assert found.per_task_csu == lien_csu(
        Decimal(found.price_su), found.cpus, found.time_limit_min * 60
    )


@given(SUBMISSIONS, st.data())
def test_no_run_within_its_limits_costs_more_than_its_estimate(
    sub: Submission, data: st.DataObject
) -> None:
    found = estimated(sub)
    seconds = data.draw(st.integers(0, found.time_limit_min * 60))
    run = Run(
        cluster="c1",
        job_id=1,
        submit_time=1,
        restart_count=0,
        user_id=1001,
        account="fc_astro",
        partition=found.partition,
        state="COMPLETED",
        start_time=1,
        end_time=1 + seconds,
        elapsed_s=seconds,
        cpus=data.draw(st.integers(0, found.cpus)),
        started=True,
        qos=found.qos,
    )
    price = PRICES.price(run.partition, run.qos)
    assert price is not None
    assert charge(run, price) <= found.per_task_csu


# What would fit.


def hints(sub: Submission, available_csu: int) -> Hints:
    return what_would_fit(sub, PRICES, available_csu, unlisted="refuse", horizon_min=None)


def test_a_shorter_limit_is_offered() -> None:
    assert hints(submission(min_cpus=4), 100) == Hints(time_limit_min=15, time_limit="00:15:00")


def test_of_an_array_the_tasks_that_fit_are_counted() -> None:
    found = hints(submission(array_inx="1-100"), 3199)
    assert (found.tasks, found.time_limit_min) == (31, 18)


def test_a_partition_that_would_fit_is_named() -> None:
    assert hints(submission(partition("bigmem"), partition("normal")), 120).partition == "normal"


@pytest.mark.parametrize("available_csu", [0, -100, 1])
def test_nothing_is_offered_when_nothing_fits(available_csu: int) -> None:
    assert hints(submission(min_cpus=4), available_csu) == Hints()


def test_a_limit_below_the_least_acceptable_one_is_not_offered() -> None:
    assert hints(submission(min_cpus=4, time_min_min=30), 100).time_limit_min is None


@given(SUBMISSIONS, st.integers(1, 10**7))
def test_an_offered_limit_fits_and_one_minute_more_does_not(
    sub: Submission, available_csu: int
) -> None:
    assume(estimated(sub).cost_csu > available_csu)
    found = hints(sub, available_csu)
    if found.time_limit_min is not None:
        fits = dataclasses.replace(sub, time_limit_min=found.time_limit_min)
        assert estimated(fits).cost_csu <= available_csu
        longer = dataclasses.replace(sub, time_limit_min=found.time_limit_min + 1)
        assert estimated(longer).cost_csu > available_csu
    if found.tasks is not None:
        per_task_csu = estimated(sub).per_task_csu
        assert per_task_csu * found.tasks <= available_csu < per_task_csu * (found.tasks + 1)


@given(st.integers(0, 10**9), st.decimals(0, 1000, places=4), st.integers(1, 10**6))
def test_the_time_that_fits_is_exact(available_csu: int, price_su: Decimal, cpus: int) -> None:
    minutes = time_that_fits(available_csu, price_su, cpus)
    if minutes is None:
        assert price_su == 0
        return
    assert lien_csu(price_su, cpus, minutes * 60) <= available_csu
    assert lien_csu(price_su, cpus, (minutes + 1) * 60) > available_csu


@pytest.mark.parametrize(
    ("minutes", "text"),
    [
        (0, "00:00:00"),
        (65, "01:05:00"),
        (1439, "23:59:00"),
        (1440, "1-00:00:00"),
        (UNLIMITED, "UNLIMITED"),
    ],
)
def test_limits_are_written_as_slurm_reads_them(minutes: int, text: str) -> None:
    assert format_time_limit(minutes) == text


# Jobs in the queue.


def queued(**changes: Any) -> QueuedJob:
    fields: dict[str, Any] = {"job_id": 7, "submit_time": 1, "user_id": 1001, "account": "fc_astro"}
    fields |= {
        "partition": "normal",
        "state": "RUNNING",
        "time_limit_min": 60,
        "cpus": 4,
        "nodes": 1,
    }
    return QueuedJob(**{**fields, **changes})


def test_a_queued_job_costs_what_the_queue_shows() -> None:
    found: List[int] = []
    for job in (
        queued(),
        queued(tasks=10),
        queued(partition="normal,bigmem"),
        queued(qos="fast"),
        queued(cpus=0, nodes=2),
    ):
        found.append(estimate_queued(job, PRICES, unlisted="refuse", horizon_min=None).cost_csu)
    assert found == [400, 4000, 668, 800, 200]


def test_a_queued_job_without_a_limit_needs_the_horizon() -> None:
    endless = queued(time_limit_min=UNLIMITED)
    with pytest.raises(Unpriceable) as caught:
        estimate_queued(endless, PRICES, unlisted="refuse", horizon_min=None)
    assert caught.value.reason is Reason.UNLIMITED_TIME
    assert estimate_queued(endless, PRICES, unlisted="refuse", horizon_min=60).cost_csu == 400


def test_a_queued_job_in_an_unpriced_partition_is_refused_or_free() -> None:
    with pytest.raises(Unpriceable):
        estimate_queued(queued(partition="secret"), PRICES, unlisted="refuse", horizon_min=None)
    assert (
        estimate_queued(
            queued(partition="secret"), PRICES, unlisted="free", horizon_min=None
        ).cost_csu
        == 0
    )
