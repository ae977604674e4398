# SPDX-License-Identifier: BSD-3-Clause
"""A quote's options become what sbatch 22.05 itself would send, by the rules of its source."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from slurm_banking.records import Submission
from slurm_banking.relay import as_sbatch
from slurm_banking.relay.quote import Facts, submission
from tests.builders import a_partition

FACTS = Facts(cluster="c", partitions={"main": a_partition()}, default_partition="main")


def sent(**options: Any) -> Submission:
    return submission(
        options, account="fc_alpha", associated=True, user_id=1, user_name="u", facts=FACTS
    )


def numbers(sub: Submission) -> Dict[str, Any]:
    keys = ("min_cpus", "min_nodes", "max_nodes", "num_tasks", "cpus_per_task", "pn_min_cpus")
    return {key: value for key in keys if (value := getattr(sub, key)) is not None}


@pytest.mark.parametrize(
    ("options", "filled"),
    [
        ({}, {"min_cpus": 1}),
        ({"num_tasks": 4}, {"min_cpus": 4, "num_tasks": 4}),
        (
            {"num_tasks": 4, "cpus_per_task": 2},
            {"min_cpus": 8, "num_tasks": 4, "cpus_per_task": 2, "pn_min_cpus": 2},
        ),
        ({"min_nodes": 3, "max_nodes": 3}, {"min_cpus": 3, "min_nodes": 3, "max_nodes": 3}),
        ({"min_nodes": 2, "max_nodes": 4}, {"min_cpus": 1, "min_nodes": 2, "max_nodes": 4}),
        (
            {"min_nodes": 2, "max_nodes": 2, "ntasks_per_node": 3},
            {"min_cpus": 6, "min_nodes": 2, "max_nodes": 2, "num_tasks": 6},
        ),
        ({"ntasks_per_node": 3}, {"min_cpus": 3, "num_tasks": 3}),
        (
            {"min_nodes": 2, "max_nodes": 4, "ntasks_per_node": 3},
            {"min_cpus": 1, "min_nodes": 2, "max_nodes": 4},
        ),
        # More nodes than tasks: the tasks count.
        (
            {"min_nodes": 4, "max_nodes": 4, "num_tasks": 2},
            {"min_cpus": 2, "min_nodes": 2, "max_nodes": 2, "num_tasks": 2},
        ),
        (
            {"min_nodes": 1, "max_nodes": 8, "num_tasks": 2},
            {"min_cpus": 2, "min_nodes": 1, "max_nodes": 2, "num_tasks": 2},
        ),
        (
            {"min_nodes": 2, "max_nodes": 2, "num_tasks": 8, "overcommit": True},
            {"min_cpus": 2, "min_nodes": 2, "max_nodes": 2, "num_tasks": 8},
        ),
        ({"num_tasks": 8, "overcommit": True}, {"min_cpus": 1, "num_tasks": 8}),
        ({"mincpus": 4}, {"min_cpus": 1, "pn_min_cpus": 4}),
        (
            {"mincpus": 4, "cpus_per_task": 6},
            {"min_cpus": 6, "cpus_per_task": 6, "pn_min_cpus": 6},
        ),
        ({"nodelist": "n[1-3],n2"}, {"min_cpus": 3, "min_nodes": 3}),
        # One task for each socket, core and thread that is asked for by name, on each node.
        (
            {"min_nodes": 2, "max_nodes": 2, "sockets_per_node": 2, "cores_per_socket": 4},
            {"min_cpus": 16, "min_nodes": 2, "max_nodes": 2, "num_tasks": 16},
        ),
        (
            {"extra_node_info": True, "sockets_per_node": 2, "threads_per_core": 2},
            {"min_cpus": 4, "num_tasks": 4},
        ),
        ({"sockets_per_node": 2}, {"min_cpus": 1}),
        (
            {"min_nodes": 2, "max_nodes": 2, "hint": "nomultithread"},
            {"min_cpus": 2, "min_nodes": 2, "max_nodes": 2, "num_tasks": 2},
        ),
    ],
)
def test_tasks_nodes_and_cpus_are_what_sbatch_makes_of_them(
    options: Dict[str, Any], filled: Dict[str, Any]
) -> None:
    assert numbers(sent(**options)) == filled


@pytest.mark.parametrize(
    ("hint", "options", "filled"),
    [
        ("nomultithread", {}, (None, None, 1)),
        ("multithread", {}, (None, None, None)),
        ("compute_bound", {"sockets_per_node": 2}, (None, None, 1)),
        ("memory_bound", {"sockets_per_node": 2}, (2, 1, 1)),
        ("memory_bound,multithread", {}, (None, 1, None)),
        ("nomultithread", {"threads_per_core": 2}, (None, None, 2)),
        ("nomultithread", {"ntasks_per_core": 2}, (None, None, None)),
    ],
)
def test_a_hint_is_sockets_cores_and_threads(hint: str, options: Any, filled: Any) -> None:
    sub = sent(hint=hint, **options)
    assert (sub.sockets_per_node, sub.cores_per_socket, sub.threads_per_core) == filled


def test_gpus_are_written_as_sbatch_writes_them() -> None:
    sub = sent(
        gpus="a100:4,t4:2",
        gpus_per_node="2",
        gres="gpu:a100:1,shard:3",
        cpus_per_gpu=8,
        mem_per_gpu_mb=4096,
    )
    assert sub.tres_per_job == "gres:gpu:a100:4,gres:gpu:t4:2"
    assert sub.tres_per_node == "gres:gpu:2,gres:gpu:a100:1,gres:shard:3"
    assert (sub.cpus_per_tres, sub.mem_per_tres) == ("gres:gpu:8", "gres:gpu:4096")
    sub = sent(gpus_per_socket="1", gpus_per_task="a100:2", gres="none")
    assert (sub.tres_per_socket, sub.tres_per_task) == ("gres:gpu:1", "gres:gpu:a100:2")
    assert sub.tres_per_node == sub.tres_per_job == ""
    assert sent(gpus="2", ntasks_per_gpu=3).ntasks_per_tres == 3


def test_specialised_cores_and_threads_are_told_apart_and_do_nothing_where_not_allowed() -> None:
    assert (sent(core_spec=2).core_spec, sent(core_spec=2).thread_spec) == (2, False)
    assert (sent(thread_spec=2).core_spec, sent(thread_spec=2).thread_spec) == (2, True)
    facts = Facts(
        cluster="c", partitions=FACTS.partitions, default_partition="main", spec_allowed=False
    )
    sub = submission(
        {"core_spec": 2}, account=None, associated=True, user_id=1, user_name="u", facts=facts
    )
    assert sub.core_spec is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"min_nodes": 1, "max_nodes": 2, "nodelist": "n[1-3]"}, "nodes: expected no more than 2"),
        ({"nodelist": "n[1"}, "nodelist: brackets do not match"),
        ({"hint": "fast"}, "hint: expected some of compute_bound"),
        ({"core_spec": 1, "thread_spec": 1}, "expected one of them"),
        ({"memory_mb": 1, "mem_per_gpu_mb": 1}, "expected one of them"),
        ({"ntasks_per_gpu": 2, "gpus_per_task": "1"}, "ntasks_per_gpu and gpus_per_task"),
        ({"ntasks_per_gpu": 2, "ntasks_per_node": 1}, "ntasks_per_gpu and ntasks_per_node"),
        ({"mincpus": 0}, "mincpus: expected a whole number"),
    ],
)
def test_what_sbatch_refuses_is_refused(options: Dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        sent(**options)


def test_every_option_reaches_the_submission() -> None:
    values = as_sbatch.read({})
    unread = {"partition", "account", "qos"}
    plain = as_sbatch.fill(values)
    for key in {*as_sbatch.NUMBERS, *as_sbatch.TEXTS, *as_sbatch.FLAGS} - unread:
        value: Any = 7 if key in as_sbatch.NUMBERS else True if key in as_sbatch.FLAGS else "7"
        given: Dict[str, Any] = {"hint": "nomultithread"} if key == "hint" else {key: value}
        if key == "max_nodes":
            given["min_nodes"] = 7
        if key == "extra_node_info":
            given["sockets_per_node"] = 2
        assert as_sbatch.fill(as_sbatch.read(given)) != plain, key
