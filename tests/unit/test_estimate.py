# SPDX-License-Identifier: BSD-3-Clause
"""The cost of a submission, by its partitions, limits and tasks. What Slurm could allocate: test_estimate_allocation.py."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Any, List, Optional

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from slurm_banking.amounts import lien_csu, share_csu
from slurm_banking.arrays import parse_array
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
from slurm_banking.prices import PriceList, Rates
from slurm_banking.records import (
    UNLIMITED,
    Estimate,
    NodeShape,
    Partition,
    QueuedJob,
    Reason,
    Run,
    Submission,
)
from slurm_banking.tres import Tres

PRICES = PriceList(
    partitions={
        "normal": Rates(cpu=Decimal("1.00")),
        "bigmem": Rates(cpu=Decimal("1.67")),
        "gpu": Rates(cpu=Decimal("0.5"), gpu={"a100": Decimal(8), "t4": Decimal(2)}),
        "nodes": Rates(node=Decimal(20), mem_gb=Decimal("0.25")),
        "free": Rates(),
    },
    qos_multiplier={"lowprio": Decimal(0), "fast": Decimal(2)},
)
SHAPE = NodeShape(count=10, cpus=8, cores=8, memory_mb=32000)
GPUS = (
    NodeShape(count=2, cpus=8, cores=8, memory_mb=32000, gpus=(("a100", 4),)),
    NodeShape(count=2, cpus=8, cores=8, memory_mb=32000, gpus=(("t4", 4),)),
)


def partition(name: str = "normal", *shapes: NodeShape, **changes: Any) -> Partition:
    fields: dict[str, Any] = {"default_time_min": 30, "max_time_min": 600, "def_mem_mb": 1000}
    fields |= {"shapes": shapes or (SHAPE,), "def_mem_per_cpu": True}
    fields["total_cpus"] = sum(shape.count * shape.cpus for shape in fields["shapes"])
    fields["total_nodes"] = sum(shape.count for shape in fields["shapes"])
    return Partition(name=name, **{**fields, **changes})


def submission(*partitions: Partition, **changes: Any) -> Submission:
    fields: dict[str, Any] = {"cluster": "c1", "job_user_id": 1001, "submit_user_id": 1001}
    fields |= {"account": "fc_astro", "time_limit_min": 60}
    return Submission(partitions=partitions or (partition(),), **{**fields, **changes})


def estimated(
    sub: Submission, unlisted: str = "refuse", horizon_min: Optional[int] = None, **options: Any
) -> Estimate:
    return estimate(sub, PRICES, unlisted=unlisted, horizon_min=horizon_min, **options)


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
    without = partition(default_time_min=None)
    assert estimated(submission(without, time_limit_min=None)).time_limit_min == 600


def test_the_limit_counts_not_the_least_acceptable_one() -> None:
    assert estimated(submission(time_min_min=10)).time_limit_min == 60


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


# Prices and partitions.


def test_the_dearest_candidate_counts() -> None:
    found = estimated(submission(partition("normal"), partition("bigmem"), partition("free")))
    assert (found.partition, found.cost_csu) == ("bigmem", 167)
    assert found.price["rates"] == "1.67"


def test_the_dearest_is_found_by_cost_not_by_price() -> None:
    long = partition("normal", default_time_min=600)
    short = partition("bigmem", default_time_min=60)
    assert estimated(submission(long, short, time_limit_min=None)).partition == "normal"


@pytest.mark.parametrize(
    ("facts", "asked"),
    [
        ({"max_time_min": 59}, {}),
        ({"max_nodes": 1}, {"min_nodes": 2, "max_nodes": 2}),
        ({"max_mem_mb": 500}, {"memory_mb": 501}),
        ({"shapes": (dataclasses.replace(SHAPE, cpus=4, cores=4),)}, {"cpus_per_task": 5}),
        ({"shapes": (dataclasses.replace(SHAPE, memory_mb=4000),)}, {"memory_mb": 5000}),
        ({"total_nodes": 1}, {"min_nodes": 2, "max_nodes": 2}),
    ],
)
def test_a_partition_that_can_never_run_the_job_does_not_count(
    facts: dict[str, Any], asked: dict[str, Any]
) -> None:
    assert estimated(submission(partition("bigmem", **facts), partition(), **asked)).partition == (
        "normal"
    )
    assert estimated(submission(partition("bigmem"), partition(), **asked)).partition == "bigmem"


def test_whole_nodes_in_one_partition_are_whole_nodes_in_all_that_the_job_names() -> None:
    whole = partition("free", exclusive=True, max_time_min=10)
    found = estimated(submission(partition(), whole))
    assert (found.partition, found.cpus) == ("normal", 8)


def test_a_least_acceptable_time_may_let_the_job_into_a_partition() -> None:
    short = partition("bigmem", max_time_min=40)
    assert estimated(submission(short, partition(), time_min_min=30)).partition == "bigmem"
    assert estimated(submission(short, partition(), time_min_min=50)).partition == "normal"


def test_a_job_that_can_run_nowhere_is_slurms_to_refuse_and_costs_what_it_asks_for() -> None:
    found = estimated(submission(partition("bigmem"), partition(), min_nodes=20, max_nodes=20))
    assert (found.partition, found.nodes, found.cpus) == ("bigmem", 20, 20)


def test_an_unpriced_partition_is_refused_and_named() -> None:
    problem = refused(submission(partition(), partition("secret")))
    assert problem.reason is Reason.UNPRICED_PARTITION
    assert "'secret'" in problem.detail


def test_an_unpriced_partition_may_be_free_with_a_warning() -> None:
    found = estimated(submission(partition("secret")), unlisted="free")
    assert (found.cost_csu, found.price["rates"]) == (0, "0")
    assert "'secret'" in found.warnings[0]
    assert estimated(submission(partition("secret"), partition()), unlisted="free").cost_csu == 100


def test_a_partition_that_slurm_does_not_know_is_left_to_slurm() -> None:
    found = estimated(submission(partition(), partition("typo", found=False)))
    assert found.partition == "normal"


def test_the_qos_multiplier_counts() -> None:
    assert estimated(submission(qos="fast")).cost_csu == 200
    assert estimated(submission(qos="lowprio")).cost_csu == 0


def test_the_price_and_the_inputs_are_kept() -> None:
    found = estimated(submission(qos="fast", array_inx="1-4"), lien_share=Decimal("0.5"))
    assert found.price_version == PRICES.version
    inputs = found.inputs()
    assert (inputs["rates"], inputs["qos_multiplier"], inputs["tasks"]) == ("1.00", "2", 4)
    assert inputs["tres"] == "cpu=1,mem=1000M,node=1,billing=1"
    assert inputs["lien_share"] == "0.5"


def test_gpus_memory_and_nodes_cost_what_they_are_priced() -> None:
    one = {"min_nodes": 1, "max_nodes": 1}
    gpu = partition("gpu", *GPUS)
    two = submission(gpu, tres_per_job="gres:gpu:t4:2", **one)
    assert estimated(two).cost_csu == 450
    either = submission(gpu, tres_per_job="gres:gpu:2", **one)
    assert (estimated(either).cost_csu, estimated(either).tres.gpus) == (1650, (("a100", 2),))
    memory = submission(partition("nodes"), memory_mb=2048, min_nodes=3, max_nodes=3)
    assert estimated(memory).cost_csu == 3 * 2000 + 3 * 50


def test_of_ways_that_cost_the_same_the_likeliest_is_shown() -> None:
    found = estimated(submission(num_tasks=4, min_cpus=4))
    assert (found.cost_csu, found.nodes) == (400, 1)


def test_a_gpu_request_that_makes_no_sense_is_refused() -> None:
    problem = refused(submission(partition("gpu", *GPUS), tres_per_job="gres:gpu:a:b:c"))
    assert problem.reason is Reason.MALFORMED and "gres:gpu:a:b:c" in problem.detail


def test_a_running_job_costs_what_it_has() -> None:
    has = Tres(cpus=12, memory_mb=5, nodes=2)
    found = estimated(submission(min_cpus=3), running=has)
    assert (found.tres, found.cost_csu) == (has, 1200)


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
        ({"min_nodes": 2, "max_nodes": 2, "ntasks_per_node": 2, "cpus_per_task": 2}, 8),
        ({"num_tasks": 4, "ntasks_per_node": 1}, 4),
        ({"exclusive": True}, 80),
    ],
)
def test_of_a_partition_whose_nodes_are_not_known_the_totals_bound_the_job(
    changes: dict[str, Any], cpus: int
) -> None:
    unknown = dataclasses.replace(partition(), shapes=())
    assert estimated(submission(unknown, **changes)).cpus == cpus


# Arrays and shares.


def test_an_array_costs_its_tasks_times_one() -> None:
    found = estimated(submission(array_inx="0-15:4%3", num_tasks=2))
    assert (found.tasks, found.per_task_csu, found.cost_csu) == (4, 200, 800)


def test_each_task_of_an_array_is_rounded_up_by_itself() -> None:
    prices = PriceList.of_cpus({"normal": Decimal("0.0001")})
    found = estimate(submission(array_inx="1-100"), prices, unlisted="refuse", horizon_min=None)
    assert (found.per_task_csu, found.cost_csu) == (1, 100)


def test_a_malformed_array_is_refused() -> None:
    assert refused(submission(array_inx="1-x")).reason is Reason.MALFORMED


def test_the_caller_may_know_the_tasks_better() -> None:
    found = estimated(submission(array_inx="1-100"), tasks=7)
    assert (found.tasks, found.cost_csu) == (7, 700)


def test_a_share_of_the_cost_is_set_aside() -> None:
    found = estimated(submission(array_inx="1-3"), lien_share=Decimal("0.333"))
    assert (found.cost_csu, found.per_task_lien_csu, found.lien_csu) == (300, 34, 102)


# Properties.

SHAPES = st.builds(
    lambda count, sockets, cores, threads, memory_gb, gpus: NodeShape(
        count=count,
        cpus=sockets * cores * threads,
        sockets=sockets,
        cores=cores,
        threads=threads,
        memory_mb=memory_gb * 1000,
        gpus=gpus,
    ),
    count=st.integers(1, 12),
    sockets=st.integers(1, 2),
    cores=st.integers(1, 32),
    threads=st.sampled_from([1, 2, 4]),
    memory_gb=st.integers(1, 256),
    gpus=st.sampled_from([(), (), (("a100", 4),), (("a100", 2), ("t4", 2))]),
)
PARTITIONS = st.builds(
    lambda name, shapes, **facts: partition(name, *shapes, **facts),
    name=st.sampled_from(["normal", "bigmem", "gpu", "nodes"]),
    shapes=st.lists(SHAPES, min_size=1, max_size=3),
    exclusive=st.booleans(),
    max_cpus_per_node=st.one_of(st.none(), st.integers(1, 64)),
    max_time_min=st.one_of(st.just(UNLIMITED), st.integers(1, 10_000)),
    unit=st.sampled_from(["core", "core", "cpu", "socket"]),
    max_mem_mb=st.one_of(st.none(), st.integers(500, 4000)),
    max_mem_per_cpu=st.booleans(),
)
MAYBE = st.one_of(st.none(), st.integers(1, 40))
SUBMISSIONS = st.builds(
    lambda partitions, **others: submission(*partitions, **others),
    partitions=st.lists(PARTITIONS, min_size=1, max_size=3),
    time_limit_min=st.one_of(st.none(), st.integers(1, 10_000)),
    time_min_min=st.one_of(st.none(), st.integers(1, 100)),
    min_cpus=st.integers(1, 300),
    num_tasks=MAYBE,
    cpus_per_task=MAYBE,
    ntasks_per_node=MAYBE,
    min_nodes=MAYBE,
    max_nodes=MAYBE,
    threads_per_core=st.one_of(st.none(), st.sampled_from([1, 2])),
    exclusive=st.booleans(),
    memory_mb=st.one_of(st.none(), st.integers(0, 40_000)),
    memory_per_cpu=st.booleans(),
    tres_per_job=st.sampled_from(["", "", "gres:gpu:2", "gres:gpu:a100:1"]),
    array_inx=st.sampled_from(["", "1-7", "0-15:4%3"]),
)


def priced(sub: Submission, **options: Any) -> Estimate:
    return estimated(sub, horizon_min=5000, **options)


@given(sub=SUBMISSIONS, more=st.integers(1, 500))
def test_more_time_never_costs_less_in_one_partition(sub: Submission, more: int) -> None:
    alone = dataclasses.replace(sub, partitions=sub.partitions[:1])
    assume(alone.time_limit_min is not None)
    longer = dataclasses.replace(alone, time_limit_min=(alone.time_limit_min or 0) + more)
    assert priced(longer).cost_csu >= priced(alone).cost_csu


@given(SUBMISSIONS)
def test_several_partitions_cost_the_most_of_those_that_could_run_the_job(
    sub: Submission,
) -> None:
    if any(one.exclusive for one in sub.partitions):
        sub = dataclasses.replace(sub, exclusive=True)
    alone = [priced(dataclasses.replace(sub, partitions=(one,))).cost_csu for one in sub.partitions]
    assert priced(sub).cost_csu in alone
    assert priced(sub).cost_csu <= max(alone)


@given(SUBMISSIONS)
def test_the_cost_is_that_of_what_is_shown(sub: Submission) -> None:
    found = priced(sub)
    price = PRICES.price(found.partition, found.qos)
    assert price is not None
    assert found.cost_csu == found.per_task_csu * found.tasks
    assert found.per_task_csu == lien_csu(
        price.su_per_hour(found.tres), 1, found.time_limit_min * 60
    )
    assert found.cpus >= 1 and found.nodes >= 1


@given(SUBMISSIONS, st.data())
def test_no_run_within_its_limits_costs_more_than_its_estimate(
    sub: Submission, data: st.DataObject
) -> None:
    found = priced(sub)
    seconds = data.draw(st.integers(0, found.time_limit_min * 60))
    tres = Tres(
        cpus=data.draw(st.integers(1, found.cpus)),
        memory_mb=data.draw(st.integers(0, found.tres.memory_mb)),
        nodes=data.draw(st.integers(1, found.nodes)),
        gpus=tuple((kind, data.draw(st.integers(0, count))) for kind, count in found.tres.gpus),
    )
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
        cpus=tres.cpus,
        tres=tres,
        started=True,
        qos=found.qos,
    )
    price = PRICES.price(run.partition, run.qos)
    assert price is not None
    assert charge(run, price) <= found.per_task_csu


# What would fit.


def hints(sub: Submission, available_csu: int, **options: Any) -> Hints:
    return what_would_fit(
        sub, PRICES, available_csu, unlisted="refuse", horizon_min=5000, **options
    )


def test_a_shorter_limit_is_offered() -> None:
    assert hints(submission(min_cpus=4), 100) == Hints(time_limit_min=15, time_limit="00:15:00")


def test_a_shorter_limit_is_offered_for_gpus_too() -> None:
    four = {"tres_per_node": "gres:gpu:a100:4", "min_cpus": 8, "min_nodes": 1, "max_nodes": 1}
    job = submission(partition("gpu", *GPUS), **four)
    assert estimated(job).cost_csu == 3600
    assert hints(job, 1800).time_limit_min == 30


def test_of_an_array_the_tasks_that_fit_are_counted_and_named() -> None:
    found = hints(submission(array_inx="1-100%5"), 3199)
    assert (found.tasks, found.array, found.time_limit_min) == (31, "1-31%5", 18)


def test_tasks_of_a_record_are_counted_but_not_named() -> None:
    found = hints(submission(array_inx="1-100"), 3199, tasks=50)
    assert (found.tasks, found.array) == (31, None)


def test_a_partition_that_would_fit_is_named() -> None:
    job = submission(partition("bigmem"), partition("normal"))
    assert hints(job, 120).partition == "normal"


def test_a_partition_in_which_the_job_cannot_run_is_not_named() -> None:
    small = partition("normal", max_time_min=59)
    job = submission(partition("bigmem"), small, partition("gpu"))
    assert hints(job, 120).partition == "gpu"
    assert hints(submission(partition("bigmem"), small), 120).partition is None


def test_a_limit_that_lets_a_dearer_partition_in_is_not_offered() -> None:
    short = partition("bigmem", max_time_min=40)
    job = submission(partition(), short, time_limit_min=60)
    assert estimated(job).cost_csu == 100
    assert hints(job, 99).time_limit_min == 59
    assert hints(job, 66).time_limit_min == 23  # 40 minutes would be 112 there


def test_a_share_is_what_must_fit() -> None:
    job = submission(min_cpus=4)
    found = hints(job, 100, lien_share=Decimal("0.5"))
    assert found.time_limit_min == 30


@pytest.mark.parametrize("available_csu", [0, -100, 1])
def test_nothing_is_offered_when_nothing_fits(available_csu: int) -> None:
    assert hints(submission(min_cpus=4), available_csu) == Hints()


def test_a_limit_below_the_least_acceptable_one_is_not_offered() -> None:
    assert hints(submission(min_cpus=4, time_min_min=30), 100).time_limit_min is None


SHARES = st.sampled_from([Decimal(1), Decimal("0.5"), Decimal("0.333")])


@given(SUBMISSIONS, st.integers(1, 10**6), SHARES)
def test_what_is_offered_fits_and_one_more_does_not(
    sub: Submission, available_csu: int, lien_share: Decimal
) -> None:
    needed = priced(sub, lien_share=lien_share)
    assume(needed.lien_csu > available_csu)
    found = hints(sub, available_csu, lien_share=lien_share)
    if found.time_limit_min is not None:
        fits = dataclasses.replace(sub, time_limit_min=found.time_limit_min)
        assert priced(fits, lien_share=lien_share).lien_csu <= available_csu
        longer = dataclasses.replace(sub, time_limit_min=found.time_limit_min + 1)
        assert priced(longer, lien_share=lien_share).lien_csu > available_csu
    if found.tasks is not None:
        per_task = share_csu(needed.per_task_csu, lien_share)
        assert per_task * found.tasks <= available_csu < per_task * (found.tasks + 1)
        assert found.array is not None
        assert list(parse_array(found.array)) == list(parse_array(sub.array_inx))[: found.tasks]
        fewer = dataclasses.replace(sub, array_inx=found.array)
        assert priced(fewer, lien_share=lien_share).lien_csu <= available_csu
    if found.partition is not None:
        if any(one.exclusive for one in sub.partitions):
            sub = dataclasses.replace(sub, exclusive=True)
        there = tuple(one for one in sub.partitions if one.name == found.partition)
        costs = [
            priced(dataclasses.replace(sub, partitions=(one,)), lien_share=lien_share).lien_csu
            for one in there
        ]
        assert min(costs) <= available_csu


@given(st.integers(0, 10**9), st.decimals(0, 10**6, places=4))
def test_the_time_that_fits_is_exact(available_csu: int, su_per_hour: Decimal) -> None:
    minutes = time_that_fits(available_csu, su_per_hour)
    if minutes is None:
        assert su_per_hour == 0
        return
    assert lien_csu(su_per_hour, 1, minutes * 60) <= available_csu
    assert lien_csu(su_per_hour, 1, (minutes + 1) * 60) > available_csu


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
    fields |= {"partition": "normal", "state": "RUNNING", "time_limit_min": 60}
    return QueuedJob(**{**fields, "cpus": 4, "nodes": 1, **changes})


def test_a_queued_job_costs_what_the_queue_shows() -> None:
    found: List[int] = []
    for job in (
        queued(),
        queued(tasks=10),
        queued(partition="normal,bigmem"),
        queued(qos="fast"),
        queued(cpus=0, nodes=2),
        queued(tres=Tres(cpus=6, nodes=1)),
        queued(partition="gpu", tres=Tres(cpus=2, nodes=1, gpus=(("a100", 1),))),
    ):
        found.append(estimate_queued(job, PRICES, unlisted="refuse", horizon_min=None).cost_csu)
    assert found == [400, 4000, 668, 800, 200, 600, 900]


def test_of_a_queued_job_a_share_is_set_aside() -> None:
    found = estimate_queued(
        queued(tasks=2), PRICES, unlisted="refuse", horizon_min=None, lien_share=Decimal("0.25")
    )
    assert (found.cost_csu, found.lien_csu) == (800, 200)


def test_a_queued_job_without_a_limit_needs_the_horizon() -> None:
    endless = queued(time_limit_min=UNLIMITED)
    with pytest.raises(Unpriceable) as caught:
        estimate_queued(endless, PRICES, unlisted="refuse", horizon_min=None)
    assert caught.value.reason is Reason.UNLIMITED_TIME
    assert estimate_queued(endless, PRICES, unlisted="refuse", horizon_min=60).cost_csu == 400


def test_a_queued_job_in_an_unpriced_partition_is_refused_or_free() -> None:
    unpriced = queued(partition="secret")
    with pytest.raises(Unpriceable):
        estimate_queued(unpriced, PRICES, unlisted="refuse", horizon_min=None)
    assert estimate_queued(unpriced, PRICES, unlisted="free", horizon_min=None).cost_csu == 0
