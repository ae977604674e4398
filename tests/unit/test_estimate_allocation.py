# SPDX-License-Identifier: BSD-3-Clause
"""What Slurm could allocate, against what Slurm 22.05.8 did allocate, and the rules where it might allocate more.

``test_estimate_slurm.jsonl``: sbatch options, what the submit plugin was given for them, and AllocTRES, one job at a time on
an idle cluster of the partitions below (select/cons_tres, CR_Core_Memory, GPUs spread evenly over the sockets).
"""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from slurm_banking.allocation import allocations, anyway, read_gpus
from slurm_banking.records import NodeShape, Partition, Submission
from slurm_banking.tres import Tres, parse_tres

PLAIN = NodeShape(count=6, cpus=16, sockets=2, cores=8, memory_mb=64000)
HT = NodeShape(count=6, cpus=32, sockets=2, cores=8, threads=2, memory_mb=96000)
SMALL = NodeShape(count=4, cpus=8, cores=8, memory_mb=16000)
A100 = NodeShape(count=3, cpus=32, sockets=2, cores=16, memory_mb=128000, gpus=(("a100", 4),))
T4 = NodeShape(count=3, cpus=32, sockets=2, cores=8, threads=2, memory_mb=64000, gpus=(("t4", 8),))
WHOLE = NodeShape(count=4, cpus=12, sockets=2, cores=6, memory_mb=48000)
SPEC = NodeShape(
    count=2, cpus=16, sockets=2, cores=8, memory_mb=32000, memory_spec_mb=1024, core_spec=2
)


def partition(name: str, *shapes: NodeShape, **facts: Any) -> Partition:
    return Partition(
        name=name,
        total_cpus=sum(shape.count * shape.cpus for shape in shapes),
        total_nodes=sum(shape.count for shape in shapes),
        shapes=shapes,
        **facts,
    )


def per_cpu(memory_mb: int) -> dict[str, Any]:
    return {"def_mem_mb": memory_mb, "def_mem_per_cpu": True}


def at_most(memory_mb: int) -> dict[str, Any]:
    return {"max_mem_mb": memory_mb, "max_mem_per_cpu": True}


PARTITIONS = {
    one.name: one
    for one in (
        partition("normal", PLAIN, **per_cpu(500)),
        partition("ht", HT, **per_cpu(1000)),
        partition("htnomem", HT),
        partition("htmax", HT, **per_cpu(500), **at_most(1000)),
        partition("small", SMALL, **per_cpu(1000), **at_most(2000)),
        partition("gpu", A100, def_cpus_per_gpu=2, **per_cpu(1000)),
        partition("gput", T4, **per_cpu(1000)),
        partition("gputd", T4, def_cpus_per_gpu=3, **per_cpu(1000)),
        partition("gpumem", A100, def_mem_per_gpu_mb=4000),
        partition("whole", WHOLE, exclusive=True),
        partition("wholem", WHOLE, exclusive=True, def_mem_mb=8000),
        partition("spec", SPEC, **per_cpu(500)),
    )
}
REAL = [
    json.loads(line)
    for line in (Path(__file__).parent / "test_estimate_slurm.jsonl").read_text().splitlines()
]


def job(**asked: Any) -> Submission:
    ids = {"cluster": "c1", "job_user_id": 1001, "submit_user_id": 1001}
    return Submission(**ids, partitions=(PARTITIONS["normal"],), **asked)


def most(where: Partition | str, **asked: Any) -> Tres:
    found = allocations(job(**asked), PARTITIONS[where] if isinstance(where, str) else where)
    return found[-1]


def figures(tres: Tres) -> tuple[int, int, int, int]:
    return (tres.cpus, tres.memory_mb, tres.nodes, tres.gpu_count)


def named(options: str) -> Partition:
    return PARTITIONS[options.split()[1]]


# Against Slurm.


@pytest.mark.parametrize("real", REAL, ids=lambda real: real["options"])
def test_the_first_is_what_slurm_gave_on_an_idle_cluster(real: dict[str, Any]) -> None:
    found = allocations(job(**real["asked"]), named(real["options"]))
    assert str(found[0]) == str(parse_tres(real["allocated"]))


@pytest.mark.parametrize("real", REAL, ids=lambda real: real["options"])
def test_no_later_one_is_less(real: dict[str, Any]) -> None:
    found = allocations(job(**real["asked"]), named(real["options"]))
    for other in found[1:]:
        assert all(more >= less for more, less in zip(figures(other), figures(found[0])))


# Where a busy cluster gives more than an idle one.


def test_tasks_of_one_cpu_cost_no_more_cores_on_more_nodes() -> None:
    assert figures(most("ht", min_cpus=5, num_tasks=5)) == (6, 6000, 3, 0)


def test_tasks_of_an_odd_number_of_cpus_may_leave_half_a_core_on_each_node() -> None:
    assert most("ht", min_cpus=6, num_tasks=2, cpus_per_task=3).cpus == 8
    one_node = {"min_nodes": 1, "max_nodes": 1}
    assert most("ht", min_cpus=6, num_tasks=2, cpus_per_task=3, **one_node).cpus == 6


def test_memory_per_node_is_taken_on_each_node_that_the_job_may_be_spread_over() -> None:
    assert most("ht", min_cpus=8, num_tasks=8, memory_mb=4000).memory_mb == 4 * 4000
    assert most("ht", min_cpus=8, num_tasks=8, memory_mb=4000, ntasks_per_node=8).memory_mb == 4000


def test_gpus_per_node_are_taken_on_each_node_that_the_job_may_be_spread_over() -> None:
    asked = {"min_cpus": 2, "num_tasks": 2, "cpus_per_task": 1, "tres_per_node": "gres:gpu:2"}
    assert most("gpu", **asked).gpus == (("a100", 4),)
    assert most("gpu", **asked, min_nodes=1, max_nodes=1).gpus == (("a100", 2),)


def test_cpus_of_a_default_per_gpu_are_all_given_if_the_first_node_has_little_room() -> None:
    """On an idle cluster the first of two nodes is offered 7 of the 8 CPUs, and the second the last one: 7 in whole tasks."""
    two_nodes = {"min_nodes": 2, "max_nodes": 2, "tres_per_task": "gres:gpu:1"}
    assert figures(most("gpu", min_cpus=4, num_tasks=4, **two_nodes)) == (8, 8000, 2, 4)
    one_task_on_each = {**two_nodes, "min_cpus": 2, "num_tasks": 2}
    assert figures(most("gpu", **one_task_on_each)) == (4, 4000, 2, 2)
    odd = dataclasses.replace(PARTITIONS["gputd"], def_cpus_per_gpu=1)
    assert figures(most(odd, **one_task_on_each, cpus_per_tres="gres:gpu:3")) == (8, 8000, 2, 2)


def test_tasks_that_share_few_sockets_on_one_node_may_use_more_of_them_on_several() -> None:
    per_socket = {"tres_per_socket": "gres:gpu:1", "sockets_per_node": 1, "num_tasks": 4}
    assert most("gpu", min_cpus=4, min_nodes=2, max_nodes=2, **per_socket).gpu_count == 4
    assert most("gpu", min_cpus=4, min_nodes=3, max_nodes=3, **per_socket).gpu_count == 6


def test_each_node_has_at_least_one_gpu_of_a_job_that_asks_for_fewer() -> None:
    assert most("gpu", min_cpus=3, num_tasks=3, tres_per_job="gres:gpu:1").gpu_count == 3


def test_gpus_of_the_job_may_come_from_a_node_each() -> None:
    assert figures(most("gput", tres_per_job="gres:gpu:2")) == (4, 4000, 2, 2)


def test_a_job_that_takes_all_memory_of_its_nodes_finds_them_idle() -> None:
    assert figures(most("htnomem", min_cpus=8, num_tasks=8)) == (8, 96000, 1, 0)


def test_partition_and_task_counts_bound_the_spread() -> None:
    two = dataclasses.replace(PARTITIONS["normal"], max_nodes=2)
    assert most(two, min_cpus=5, num_tasks=5).nodes == 2
    assert most("normal", min_cpus=2, num_tasks=2).nodes == 2
    assert most("normal", min_cpus=9, num_tasks=9).nodes == 6


# Seen on a busy cluster, or a busy controller.


def test_threads_kept_for_the_system_are_cores_where_each_is_one_cpu() -> None:
    kept = {"core_spec": 1, "thread_spec": True, "memory_mb": 750, "memory_per_cpu": True}
    assert figures(most("spec", **kept)) == (14, 15 * 750, 1, 0)
    assert figures(most("ht", **kept)) == (32, 31 * 750, 1, 0)


def test_tasks_per_gpu_go_before_the_default_of_cpus_per_gpu() -> None:
    asked = {"num_tasks": 4, "min_cpus": 1, "ntasks_per_tres": 1, "tres_per_job": "gres:gpu:4"}
    assert most("gpu", **asked, min_nodes=1, max_nodes=1).cpus == 4


# Several node shapes.


MIXED = partition(
    "mixed",
    dataclasses.replace(PLAIN, count=2),
    dataclasses.replace(HT, count=3),
    dataclasses.replace(A100, count=1),
    **per_cpu(500),
)


def dearest(where: Partition, of: str, **asked: Any) -> int:
    return max(getattr(tres, of) for tres in allocations(job(**asked), where))


def test_an_exclusive_job_may_get_the_largest_node() -> None:
    assert dearest(MIXED, "cpus", exclusive=True) == 32
    assert dearest(MIXED, "gpu_count", exclusive=True) == 4


def test_an_exclusive_job_may_get_small_nodes_and_then_a_large_one() -> None:
    asked = {"exclusive": True, "num_tasks": 17, "min_cpus": 17}
    assert dearest(MIXED, "cpus", **asked) == 16 + 32
    assert dearest(MIXED, "nodes", **asked) == 2


def test_a_fixed_number_of_whole_nodes_may_be_the_largest_ones() -> None:
    asked = {"exclusive": True, "min_nodes": 4, "max_nodes": 4}
    assert dearest(MIXED, "cpus", **asked) == 4 * 32
    assert dearest(MIXED, "memory_mb", **asked, memory_mb=0) == 128000 + 3 * 96000


def test_shapes_that_cannot_run_the_job_do_not_count() -> None:
    found = allocations(job(tres_per_job="gres:gpu:a100:1"), MIXED)
    assert [figures(tres) for tres in found] == [(1, 500, 1, 1)]
    assert dearest(MIXED, "cpus", memory_mb=100000, exclusive=True) == 32


def test_gpus_of_any_type_may_be_of_each_type() -> None:
    two = partition("two", A100, T4, **per_cpu(1000))
    found = allocations(job(tres_per_job="gres:gpu:2", min_nodes=1, max_nodes=1), two)
    assert {tres.gpus for tres in found} == {(("a100", 2),), (("t4", 2),)}


def test_of_too_many_mixes_the_most_of_each_resource_counts() -> None:
    shapes = [NodeShape(count=50, cpus=8 + size, cores=8 + size) for size in range(12)]
    many = partition("many", *shapes)
    found = allocations(job(exclusive=True, num_tasks=900, min_cpus=900), many)
    assert max(tres.cpus for tres in found) >= 900 + 8


# Where a job can never run.


@pytest.mark.parametrize(
    ("where", "asked"),
    [
        ("normal", {"min_nodes": 7, "max_nodes": 7}),
        ("normal", {"min_cpus": 97, "num_tasks": 97}),
        ("normal", {"cpus_per_task": 17, "min_cpus": 17}),
        ("normal", {"memory_mb": 64001}),
        (
            "normal",
            {"memory_mb": 5000, "memory_per_cpu": True, "cpus_per_task": 13, "min_cpus": 13},
        ),
        ("normal", {"tres_per_job": "gres:gpu:1"}),
        ("normal", {"threads_per_core": 2}),
        ("normal", {"sockets_per_node": 3}),
        ("normal", {"core_spec": 16}),
        ("normal", {"num_tasks": 17, "min_cpus": 17, "min_nodes": 1, "max_nodes": 1}),
        ("gpu", {"tres_per_node": "gres:gpu:5"}),
        ("gpu", {"tres_per_job": "gres:gpu:13"}),
        ("gpu", {"tres_per_job": "gres:gpu:t4:1"}),
        ("htmax", {"memory_mb": 0}),  # all memory would need more CPUs than a node has
        ("spec", {"memory_mb": 31000}),  # MemSpecLimit
    ],
)
def test_by_limits_and_node_shapes(where: str, asked: dict[str, Any]) -> None:
    assert allocations(job(**asked), PARTITIONS[where]) == []
    assert figures(anyway(job(**asked), PARTITIONS[where])[0]) > (0, 0, 0, 0)


def test_by_limits_of_the_partition() -> None:
    two = dataclasses.replace(PARTITIONS["normal"], max_nodes=2)
    assert allocations(job(min_nodes=1, max_nodes=3), two) == []
    few = dataclasses.replace(PARTITIONS["normal"], max_cpus_per_node=4)
    assert allocations(job(exclusive=True), few) == []
    assert most(few, num_tasks=6, min_cpus=6).cpus == 6
    little = dataclasses.replace(PARTITIONS["normal"], max_mem_mb=1000)
    assert allocations(job(memory_mb=1001), little) == []
    assert (
        allocations(job(memory_mb=600, memory_per_cpu=True, num_tasks=2, ntasks_per_node=2), little)
        == []
    )


# Other ways of handing out, and billing.


@pytest.mark.parametrize(("unit", "cpus"), [("cpu", 5), ("core", 6), ("socket", 32), ("node", 32)])
def test_what_is_handed_out_whole(unit: str, cpus: int) -> None:
    where = dataclasses.replace(PARTITIONS["ht"], unit=unit)
    assert most(where, num_tasks=5, min_cpus=5, min_nodes=1, max_nodes=1).cpus == cpus


def test_one_task_per_core_is_never_less() -> None:
    where = dataclasses.replace(PARTITIONS["ht"], one_task_per_core=True)
    assert most(where, num_tasks=5, min_cpus=5).cpus == 10


def test_memory_that_slurm_does_not_hand_out_is_not_counted() -> None:
    where = dataclasses.replace(PARTITIONS["ht"], memory_tracked=False)
    assert most(where, memory_mb=5000).memory_mb == 0
    assert most(where, exclusive=True).memory_mb == 0


def test_billing_is_the_weighted_sum_or_the_dearest_resource_truncated() -> None:
    weights = {
        "cpu": Decimal("1.5"),
        "mem": Decimal("0.25"),
        "gres/gpu:a100": Decimal("10.3"),
        "disk": Decimal(9),
    }
    where = dataclasses.replace(PARTITIONS["gpu"], billing_weights=weights)
    asked = {"tres_per_job": "gres:gpu:3", "min_nodes": 1, "max_nodes": 1}
    assert figures(most(where, **asked)) == (6, 6000, 1, 3)
    assert most(where, **asked).billing == 41  # 9 + 1.46 + 30.9
    dearest_one = dataclasses.replace(where, billing_max=True)
    assert most(dearest_one, **asked).billing == 30


# GPU requests.


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("gres:gpu", [("", 1)]),
        ("gres:gpu:4", [("", 4)]),
        ("gres:gpu:a100", [("a100", 1)]),
        ("gres:gpu:a100:2,gres:gpu:t4:1", [("a100", 2), ("t4", 1)]),
        ("gpu:2", [("", 2)]),
        ("gres/gpu:a100:2", [("a100", 2)]),
        ("gres/gpu:a100=2", [("a100", 2)]),
        ("gres:gpu:3g.20gb:1", [("3g.20gb", 1)]),
        ("gres:gpu:1K", [("", 1024)]),
        ("gres:gpu:0", []),
        ("gres:tmpdisk:100,gres:gpu:1", [("", 1)]),
        ("license:x:1", []),
        ("", []),
    ],
)
def test_gpu_requests_are_read(text: str, gpus: list[tuple[str, int]]) -> None:
    assert list(read_gpus(text)) == gpus


@pytest.mark.parametrize("text", ["gres:gpu:a100:2:3", "gpu:a100:x", "gres:gpu:-1"])
def test_a_gpu_request_that_makes_no_sense_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="gpu"):
        list(read_gpus(text))


def test_untyped_gpus_beside_typed_ones_are_those_beyond_them() -> None:
    asked = {"tres_per_job": "gres:gpu:3,gres:gpu:a100:2", "min_nodes": 1, "max_nodes": 1}
    assert most("gpu", **asked).gpu_count == 3


# Properties.

COUNTS = st.one_of(st.none(), st.integers(1, 40))
ASKED = st.fixed_dictionaries(
    {
        "min_cpus": st.integers(1, 200),
        "num_tasks": COUNTS,
        "cpus_per_task": st.one_of(st.none(), st.integers(1, 12)),
        "min_nodes": st.one_of(st.none(), st.integers(1, 6)),
        "max_nodes": st.one_of(st.none(), st.integers(1, 6)),
        "ntasks_per_node": st.one_of(st.none(), st.integers(1, 8)),
        "ntasks_per_socket": st.one_of(st.none(), st.integers(1, 8)),
        "ntasks_per_core": st.one_of(st.none(), st.integers(1, 2)),
        "threads_per_core": st.one_of(st.none(), st.just(1)),
        "pn_min_cpus": st.one_of(st.none(), st.integers(1, 9)),
        "memory_mb": st.one_of(st.none(), st.integers(0, 9000)),
        "memory_per_cpu": st.booleans(),
        "overcommit": st.booleans(),
        "exclusive": st.booleans(),
        "core_spec": st.one_of(st.none(), st.integers(0, 3)),
        "tres_per_job": st.sampled_from(["", "", "gres:gpu:2", "gres:gpu:a100:3"]),
        "tres_per_node": st.sampled_from(["", "", "gres:gpu:1", "gres:gpu:t4:2"]),
        "tres_per_task": st.sampled_from(["", "", "gres:gpu:1"]),
        "cpus_per_tres": st.sampled_from(["", "", "gres:gpu:3"]),
        "mem_per_tres": st.sampled_from(["", "", "gres:gpu:2000"]),
        "ntasks_per_tres": st.one_of(st.none(), st.integers(1, 3)),
    }
)
WHERE = st.sampled_from([*PARTITIONS.values(), MIXED])


@given(where=WHERE, asked=ASKED)
def test_what_was_asked_for_is_always_there(where: Partition, asked: dict[str, Any]) -> None:
    found = allocations(job(**asked), where)
    for tres in found:
        assert tres.nodes >= (asked["min_nodes"] or 1)
        assert tres.cpus >= 1 and tres.memory_mb >= 0
        assert tres.cpus <= where.total_cpus and tres.nodes <= where.total_nodes
    if found and not asked["overcommit"]:
        least = max(1, asked["num_tasks"] or 0)
        gpus = any(value for name, value in asked.items() if "tres" in name)
        if not gpus and where.name != "mixed":
            assert found[-1].cpus >= least


CONSISTENT = st.fixed_dictionaries(
    {
        "tasks": st.integers(1, 40),
        "cpus": st.integers(1, 12),
        "nodes": st.one_of(st.none(), st.integers(1, 6)),
        "memory_mb": st.one_of(st.none(), st.integers(1, 9000)),
        "memory_per_cpu": st.booleans(),
        "gpus": st.one_of(st.none(), st.integers(1, 4)),
        "exclusive": st.booleans(),
        "threads_per_core": st.one_of(st.none(), st.just(1)),
    }
)


def as_sent(wish: dict[str, Any], how: str) -> dict[str, Any]:
    """The fields that sbatch sends for ``-n -c -N --mem --mem-per-cpu --gpus --exclusive``."""
    tasks, cpus, nodes = wish["tasks"], wish["cpus"], wish["nodes"]
    asked = {
        "num_tasks": tasks,
        "cpus_per_task": cpus,
        "min_cpus": tasks * cpus,
        "pn_min_cpus": cpus,
    }
    asked |= {"min_nodes": nodes, "max_nodes": nodes, "exclusive": wish["exclusive"]}
    asked |= {"memory_mb": wish["memory_mb"], "memory_per_cpu": wish["memory_per_cpu"]}
    asked["threads_per_core"] = wish["threads_per_core"]
    if wish["gpus"]:
        asked[how] = f"gres:gpu:{wish['gpus']}"
    return asked


@pytest.mark.parametrize(
    ("wanted", "figure"),
    [("tasks", 0), ("cpus", 0), ("nodes", 0), ("nodes", 2), ("memory_mb", 1), ("gpus", 3)],
)
@given(
    where=st.sampled_from(["normal", "ht", "small", "gpu", "gput", "gpumem", "whole", "spec"]),
    wish=CONSISTENT,
    how=st.sampled_from(["tres_per_job", "tres_per_node"]),
    more=st.integers(1, 8),
)
def test_more_of_anything_is_never_less(
    wanted: str, figure: int, where: str, wish: dict[str, Any], how: str, more: int
) -> None:
    assume(wish[wanted] is not None)
    larger = {**wish, wanted: wish[wanted] + more}
    assume((larger["nodes"] or 1) <= wish["tasks"])
    before = allocations(job(**as_sent(wish, how)), PARTITIONS[where])
    after = allocations(job(**as_sent(larger, how)), PARTITIONS[where])
    if before and after:
        assert max(figures(t)[figure] for t in after) >= max(figures(t)[figure] for t in before)


@given(where=WHERE, wish=CONSISTENT, nodes=st.integers(1, 6))
def test_whole_nodes_are_never_fewer_cpus(
    where: Partition, wish: dict[str, Any], nodes: int
) -> None:
    wish["nodes"] = nodes
    shared = allocations(job(**as_sent({**wish, "exclusive": False}, "tres_per_job")), where)
    whole = allocations(job(**as_sent({**wish, "exclusive": True}, "tres_per_job")), where)
    if shared and whole:
        assert max(t.cpus for t in whole) >= max(t.cpus for t in shared)


# Later releases: each with what 25.11.2 allocated.


def newest(where: str) -> Partition:
    return dataclasses.replace(PARTITIONS[where], release=(25, 11))


@pytest.mark.parametrize(
    ("where", "asked", "allocated"),
    [
        # --overcommit --ntasks=22 --gres=gpu:t4:2 --nodes=1 --mem-per-gpu=6000
        (
            "gput",
            {
                "overcommit": True, "num_tasks": 22, "min_nodes": 1, "max_nodes": 1, "tres_per_node": "gres:gpu:t4:2",
                "mem_per_tres": "gres:gpu:6000",
            },
            (22, 12000, 1, 2),
        ),
        # --overcommit --ntasks=9 --nodes=1, then scontrol update NumTasks=2
        (
            "normal",
            {"overcommit": True, "num_tasks": 2, "min_nodes": 1, "max_nodes": 1},
            (2, 1000, 1, 0),
        ),
        # --cpus-per-gpu=1 --gpus=5 --nodes=2: 3 CPUs on each node, though one has 2 GPUs
        (
            "gpumem",
            {
                "cpus_per_tres": "gres:gpu:1", "tres_per_job": "gres:gpu:5", "min_nodes": 2, "max_nodes": 2,
                "mem_per_tres": "gres:gpu:6000",
            },
            (6, 30000, 2, 5),
        ),
    ],
)  # fmt: skip
def test_nothing_that_a_later_release_gave_is_above_the_dearest(
    where: str, asked: dict[str, Any], allocated: tuple[int, int, int, int]
) -> None:
    def covered(partition: Partition) -> bool:
        return any(
            all(ours >= theirs for ours, theirs in zip(figures(tres), allocated))
            for tres in allocations(job(**asked), partition)
        )

    assert covered(newest(where))
    assert not covered(PARTITIONS[where]), "22.05 gives less"


def test_overcommitted_tasks_that_have_no_cpus_get_all_of_their_node() -> None:
    found = allocations(
        job(overcommit=True, num_tasks=9000, min_nodes=1, max_nodes=1), newest("normal")
    )
    assert max(tres.cpus for tres in found) == PLAIN.cpus


def test_a_later_release_changes_nothing_else() -> None:
    for real in REAL:
        asked = real["asked"]
        if not asked.get("overcommit") and "cpus_per_tres" not in asked:
            where = named(real["options"])
            later = dataclasses.replace(where, release=(25, 11), def_cpus_per_gpu=None)
            before = dataclasses.replace(where, def_cpus_per_gpu=None)
            assert allocations(job(**asked), later) == allocations(job(**asked), before)
