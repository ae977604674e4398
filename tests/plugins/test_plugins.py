# SPDX-License-Identifier: BSD-3-Clause
"""The real .so files, opened as slurmctld opens them; the stand-in engine does what the job's name says."""

from __future__ import annotations

import errno
import json
import re
import subprocess
from typing import Any, Dict, List, Optional

import pytest

from .conftest import Built, Layout, Submitted, not_sanitized

ACCOUNTING_POLICY = 2050
PATHNAME_TOO_LONG = 2012
NO_VAL = 0xFFFFFFFE
NO_VAL16 = 0xFFFE
INFINITE16 = 0xFFFF
INFINITE = 0xFFFFFFFF
NO_VAL64 = 0xFFFFFFFFFFFFFFFE
TOKEN = "slurm_banking=" + "ab" * 16 + ":50:v1"


def from_log(log: str, key: str) -> Dict[str, Any]:
    """The struct that the stand-in logged; it must have been told once."""
    told = [line.split("slurm_banking: ", 1)[1] for line in log.splitlines() if f'"{key}"' in line]
    assert len(told) == 1, log
    result: Dict[str, Any] = json.loads(told[0])
    return result


def described(layout: Layout, pairs: str = "") -> Dict[str, Any]:
    """The submission as Python sees it."""
    done = layout.run(layout.load_job_submit, f"submit name=describe {pairs}")
    return from_log(done.log, "partition_count")


def updated(layout: Layout, job: str, update: str) -> Dict[str, Any]:
    done = layout.run(layout.load_job_submit, f"job {job}", f"update {update}")
    return from_log(done.log, "wanted")


def ended(layout: Layout, job: str) -> Dict[str, Any]:
    done = layout.run(layout.load_jobcomp, f"job {job}", "end")
    assert done.answers[2] == "rc=0"
    return from_log(done.log, "pre_suspend_s")


# What crosses at submission.


def test_defaults_are_resolved_before_python_is_asked(layout: Layout) -> None:
    job = described(layout)
    assert (job["account"], job["user_name"], job["qos"]) == ("astro", "alice", "standard")
    assert [part["name"] for part in job["partitions"]] == ["normal"]
    assert job["associated"] == 1


def test_a_default_partition_comes_with_what_slurm_would_allocate(layout: Layout) -> None:
    part = described(layout)["partitions"][0]
    assert (part["found"], part["exclusive"]) == (1, 0)
    assert (part["default_time_min"], part["max_time_min"]) == (60, 2880)
    assert (part["total_cpus"], part["total_nodes"]) == (16, 4)
    assert part["max_nodes"] == INFINITE


def test_each_of_several_partitions_is_described(layout: Layout) -> None:
    parts = described(layout, "partition=long,nowhere,whole")["partitions"]
    assert [part["name"] for part in parts] == ["long", "nowhere", "whole"]
    assert [part["found"] for part in parts] == [1, 0, 1]
    assert [part["exclusive"] for part in parts] == [0, 0, 1]
    assert (parts[0]["default_time_min"], parts[0]["max_time_min"]) == (NO_VAL, INFINITE)
    assert parts[0]["max_cpus_per_node"] == 6


def test_no_partition_of_a_long_list_is_forgotten(layout: Layout) -> None:
    names = [f"p{i}" for i in range(40)]
    parts = described(layout, "partition=" + ",".join(names))["partitions"]
    assert [part["name"] for part in parts] == names


def partitions_after(layout: Layout, *commands: str) -> List[Dict[str, Any]]:
    """The first partition of each submission among the commands, in their order."""
    done = layout.run(layout.load_job_submit, *commands)
    told = [line.split("slurm_banking: ", 1)[1] for line in done.log.splitlines() if "{" in line]
    return [json.loads(line)["partitions"][0] for line in told]


def partition_after(layout: Layout, *changes: str, name: str = "normal") -> Dict[str, Any]:
    (part,) = partitions_after(layout, *changes, f"submit name=describe partition={name}")
    return part


SMALL = {
    **{"cpus": 4, "sockets": 1, "cores": 4, "threads": 1},
    **{"core_spec": 0, "memory_mb": 8000, "memory_spec_mb": 0, "gres": None},
}
LARGE = {
    **{"cpus": 8, "sockets": 2, "cores": 2, "threads": 2, "core_spec": 1},
    **{"memory_mb": 64000, "memory_spec_mb": 1000, "gres": "gpu:a100:4,craynetwork:4"},
}


def test_nodes_that_are_alike_are_one_shape(layout: Layout) -> None:
    parts = described(layout, "partition=normal,long,whole")["partitions"]
    # a node of normal is a hole in the table
    assert parts[0]["shapes"] == [{"count": 3, **SMALL}]
    assert parts[1]["shapes"] == [{"count": 2, **SMALL}, {"count": 2, **LARGE}]
    assert parts[2]["shapes"] == [{"count": 2, **LARGE}]


def test_a_partition_that_is_not_there_has_no_nodes(layout: Layout) -> None:
    part = described(layout, "partition=nowhere")["partitions"][0]
    assert (part["shapes"], part["found"], part["generation"]) == ([], 0, 0)


def test_a_node_shows_the_gres_that_it_registered(layout: Layout) -> None:
    gres = "gpu:a100:3(S:0),gpu:t4:1(S:1)"
    part = partition_after(layout, f"node 4 node_gres={gres}", name="whole")
    assert [shape["gres"] for shape in part["shapes"]] == [gres, LARGE["gres"]]


def test_shapes_beyond_the_last_are_one_with_the_most_of_each(layout: Layout) -> None:
    part = described(layout, "partition=many")["partitions"][0]
    shapes = part["shapes"]
    assert len(shapes) == 16
    assert [shape["count"] for shape in shapes] == [1] * 15 + [5]
    assert (shapes[15]["cpus"], shapes[15]["memory_mb"]) == (50, 25000)
    assert (shapes[15]["gres"], part["max_nodes"]) == ("gpu:a100:4,gpu:t4:2", 5)


CPU, CORE, SOCKET, NODE = range(4)


@pytest.mark.parametrize(
    ("conf", "part", "unit", "memory", "one_task"),
    [
        ("select_type_param=20", "", CORE, 1, 0),  # CR_Core_Memory
        ("select_type_param=4", "", CORE, 0, 0),
        ("select_type_param=1", "", CPU, 0, 0),
        ("select_type_param=17", "", CPU, 1, 0),
        ("select_type_param=18", "", SOCKET, 1, 0),
        ("select_type_param=276", "", CORE, 1, 1),  # CR_ONE_TASK_PER_CORE
        ("select_type_param=20", "cr_type=2", SOCKET, 0, 0),
        ("select_type_param=4", "cr_type=18", SOCKET, 1, 0),
        ("select_type_param=17", "cr_type=2", CPU, 1, 0),  # Slurm ignores it there
        ("select_type=select/linear select_type_param=16", "", NODE, 1, 0),
        ("select_type=select/linear select_type_param=0", "cr_type=2", NODE, 0, 0),
        ("select_type=select/cray_aries select_type_param=2068", "", CORE, 1, 0),
    ],
)
def test_what_is_handed_out_is_what_select_hands_out(
    conf: str, part: str, unit: int, memory: int, one_task: int, layout: Layout
) -> None:
    if "cray" in conf:
        header = (layout.built.slurm_tree / "slurm" / "slurm.h").read_text()
        if "#define CR_OTHER_CONS_TRES" not in header:
            pytest.skip("this release has no select plugin of Cray's")
    changes = [f"conf {conf}"] + ([f"part normal {part}"] if part else [])
    got = partition_after(layout, *changes)
    assert (got["unit"], got["memory_tracked"]) == (unit, memory)
    assert got["one_task_per_core"] == one_task
    assert got["exclusive"] == (unit == NODE)


def test_a_partitions_own_defaults_go_before_the_clusters(layout: Layout) -> None:
    conf = "conf DefCpuPerGPU=3 DefMemPerGPU=1000 def_mem_per_cpu=500"
    mine = partition_after(layout, conf, "part normal DefCpuPerGPU=7 def_mem_per_cpu=900")
    assert (mine["def_cpu_per_gpu"], mine["def_mem_per_gpu"]) == (7, 1000)
    assert mine["def_mem_per_cpu"] == 900
    clusters = partition_after(layout, conf)
    assert (clusters["def_cpu_per_gpu"], clusters["def_mem_per_gpu"]) == (3, 1000)
    assert clusters["def_mem_per_cpu"] == 500
    none = partition_after(layout)
    assert (none["def_cpu_per_gpu"], none["def_mem_per_gpu"]) == (NO_VAL64, NO_VAL64)


def test_billing_weights_cross_as_configured(layout: Layout) -> None:
    weights = "CPU=1.0,Mem=0.25G,GRES/gpu=2.0"
    part = partition_after(
        layout, f"part normal billing_weights_str={weights}", "conf priority_flags=2"
    )
    assert (part["billing_weights"], part["billing_max"]) == (weights, 1)
    plain = partition_after(layout)
    assert (plain["billing_weights"], plain["billing_max"]) == (None, 0)


def test_weights_that_slurm_could_not_read_are_none(layout: Layout) -> None:
    part = partition_after(layout, "part normal unread_weights=CPU=x")
    assert part["billing_weights"] is None


SUBMIT = "submit name=describe partition=normal,whole"


@pytest.mark.parametrize(
    ("change", "fact", "value"),
    [
        ("part normal max_time=77", "max_time_min", 77),
        ("part normal max_nodes=3", "max_nodes", 3),
        ("part normal billing_weights_str=CPU=2", "billing_weights", "CPU=2"),
        ("part normal DefCpuPerGPU=5", "def_cpu_per_gpu", 5),
        ("conf priority_flags=2", "billing_max", 1),
        ("conf select_type_param=18", "unit", SOCKET),
    ],
)
def test_a_change_of_a_partition_is_seen_at_once_and_makes_a_new_generation(
    change: str, fact: str, value: object, layout: Layout
) -> None:
    one, two, three = partitions_after(layout, SUBMIT, SUBMIT, change, SUBMIT)
    assert one == two
    assert three[fact] == value != one[fact]
    assert three["generation"] > one["generation"] > 0


def test_a_change_of_nodes_is_seen_when_the_table_changes_or_the_facts_are_old(
    layout: Layout,
) -> None:
    change = "node 0 cpus=64 gres=gpu:2"
    one, two, three = partitions_after(layout, SUBMIT, change, SUBMIT, "age", SUBMIT)
    assert one == two
    assert [shape["cpus"] for shape in three["shapes"]] == [64, 4]
    assert three["shapes"][0]["gres"] == "gpu:2"
    assert three["generation"] > one["generation"]


def test_generations_of_partitions_differ(layout: Layout) -> None:
    parts = described(layout, "partition=normal,long,whole,many")["partitions"]
    assert len({part["generation"] for part in parts}) == 4


def test_a_reservation_brings_its_partition(layout: Layout) -> None:
    parts = described(layout, "reservation=workshop")["partitions"]
    assert [part["name"] for part in parts] == ["whole"]


def test_an_account_is_lower_case_as_slurm_makes_it(layout: Layout) -> None:
    job = described(layout, "account=BIO")
    assert (job["account"], job["associated"], job["qos"]) == ("bio", 1, "high")


def test_an_account_that_is_not_the_users_is_not_associated(layout: Layout) -> None:
    assert described(layout, "user_id=1002 account=astro")["associated"] == 0


def test_an_association_for_one_partition_counts_there_alone(layout: Layout) -> None:
    assert described(layout, "user_id=1004 partition=long")["associated"] == 1
    assert described(layout, "user_id=1004 partition=normal")["associated"] == 0
    assert described(layout, "user_id=1004 partition=long,normal")["associated"] == 0


def test_a_user_unknown_to_the_database_has_no_name_and_no_account(layout: Layout) -> None:
    job = described(layout, "user_id=7777")
    assert (job["user_name"], job["account"], job["associated"]) == (None, None, 0)


def test_sentinels_cross_as_they_are(layout: Layout) -> None:
    job = described(layout)
    assert (job["time_limit_min"], job["min_cpus"], job["num_tasks"]) == (NO_VAL, NO_VAL, NO_VAL)
    assert (job["shared"], job["cpus_per_task"]) == (NO_VAL16, NO_VAL16)
    assert job["array_inx"] is None


def test_what_was_asked_for_crosses(layout: Layout) -> None:
    job = described(
        layout,
        "uid=0 time_limit=30 min_cpus=4 num_tasks=2 cpus_per_task=2 shared=0 array_inx=0-7%252"
        " tres_per_node=gres/gpu:2 cpus_per_tres=gres/gpu:8 qos=urgent",
    )
    assert (job["submit_user_id"], job["job_user_id"]) == (0, 1001)
    assert (job["time_limit_min"], job["min_cpus"], job["num_tasks"]) == (30, 4, 2)
    assert (job["cpus_per_task"], job["shared"], job["qos"]) == (2, 0, "urgent")
    assert job["array_inx"] == "0-7%2"
    assert (job["tres_per_node"], job["cpus_per_tres"]) == ("gres/gpu:2", "gres/gpu:8")


@pytest.mark.parametrize(
    "field",
    [
        *("ntasks_per_node", "ntasks_per_socket", "ntasks_per_core", "ntasks_per_tres"),
        *("sockets_per_node", "cores_per_socket", "threads_per_core"),
    ],
)
def test_how_tasks_are_laid_out_crosses(field: str, layout: Layout) -> None:
    assert described(layout, f"{field}=3")[field] == 3
    assert described(layout)[field] == NO_VAL16


def test_core_specialisation_crosses_where_slurm_heeds_it(layout: Layout) -> None:
    heeded = layout.run(
        layout.load_job_submit, "conf conf_flags=8", "submit name=describe core_spec=3"
    )
    assert from_log(heeded.log, "partition_count")["core_spec"] == 3
    assert described(layout, "core_spec=3")["core_spec"] == NO_VAL16
    assert described(layout)["core_spec"] == NO_VAL16


@pytest.mark.parametrize(
    ("most", "waiting", "room"), [(100, 7, 91), (9, 7, 0), (8, 7, 0), (10, 7, 1), (100, 0, 97)]
)
def test_the_room_in_slurmctlds_table_counts_array_tasks(
    most: int, waiting: int, room: int, layout: Layout
) -> None:
    done = layout.run(
        layout.load_job_submit,
        f"conf max_job_cnt={most}",
        f"waiting {waiting}",
        "submit name=describe",
    )
    assert from_log(done.log, "partition_count")["room"] == room


def rooms(log: str) -> List[int]:
    return [
        json.loads(line.split("slurm_banking: ", 1)[1])["room"]
        for line in log.splitlines()
        if '"partition_count"' in line
    ]


def test_what_was_just_accepted_takes_its_room_before_the_table_is_walked_again(
    layout: Layout,
) -> None:
    """Whether the second comes from the walk or from what was accepted since: the same."""
    done = layout.run(
        layout.load_job_submit,
        "conf max_job_cnt=100",
        "waiting 7",
        "submit name=describe array_inx=1-20",
        "waiting 27",
        "submit name=describe",
        "waiting 28",
        "submit name=describe array_inx=1-70",
        "waiting 98",
        "submit name=describe",
        "submit name=describe",
    )
    assert rooms(done.log) == [91, 71, 70, 0, 0]


def test_a_table_that_is_emptied_has_room_soon(layout: Layout) -> None:
    done = layout.run(
        layout.load_job_submit,
        "conf max_job_cnt=10",
        "waiting 9",
        "submit name=describe",
        "waiting 2",
        "pause 60",
        "submit name=describe",
    )
    assert rooms(done.log) == [0, 6]


def test_a_table_with_room_for_the_largest_array_is_not_walked_every_second(layout: Layout) -> None:
    """slurmctld's locks are held meanwhile, and a table has a hundred thousand records."""
    done = layout.run(
        layout.load_job_submit,
        "conf max_job_cnt=100 max_array_sz=60",
        "waiting 7",
        "submit name=describe",
        "waiting 2",
        "pause 1050",
        "submit name=describe array_inx=1-40",
        "pause 1050",
        "submit name=describe",
    )
    assert rooms(done.log) == [91, 90, 96]


def test_without_a_table_its_room_is_not_known(layout: Layout) -> None:
    assert described(layout)["room"] == NO_VAL


def test_a_full_table_is_told_as_slurm_tells_it(layout: Layout) -> None:
    told = layout.submit("name=full")
    assert (told.rc, told.admin_comment, told.message) == (errno.EAGAIN, "", "")


def test_required_nodes_are_a_least_number_of_nodes(layout: Layout) -> None:
    assert described(layout, "req_nodes=n[1-3],m7")["min_nodes"] == 4
    assert described(layout, "req_nodes=n1 min_nodes=2")["min_nodes"] == 2


# What the reply does.


def test_a_refusal_reaches_the_user_after_what_earlier_plugins_said(layout: Layout) -> None:
    done = layout.submit("name=refuse comment=earlier%20words")
    assert done == Submitted(
        rc=ACCOUNTING_POLICY, admin_comment="", message="earlier words\ntoo dear\nby far"
    )


def test_an_accepted_job_gets_its_message_and_its_token(layout: Layout) -> None:
    assert layout.submit("name=token") == Submitted(rc=0, admin_comment=TOKEN, message="0.50 SU")


def test_a_token_is_appended_to_what_an_administrator_wrote(layout: Layout) -> None:
    assert (
        layout.submit("name=token admin_comment=keep%20this").admin_comment == "keep this;" + TOKEN
    )


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (TOKEN, ""),
        ("a;" + TOKEN, "a"),
        (TOKEN + ";b", "b"),
        (f"a;{TOKEN};b", "a;b"),
        (f"a {TOKEN} b", "a  b"),
        (f"{TOKEN};{TOKEN}", ""),
        (
            "slurm_slurm_banking=1:2:3 banking=" + "ab" * 16 + ":1:v",
            "slurm_ banking=" + "ab" * 16 + ":1:v",
        ),
        ("slurm_slurm_banking=1:2:3;banking=" + "ab" * 16 + ":1:v", ""),
        ("slurm_banking=", "slurm_banking="),
        ("slurm_banking=see the manual", "slurm_banking=see the manual"),
        ("SLURM_BANKING=ab:1:v", "SLURM_BANKING=ab:1:v"),
        ("", ""),
    ],
)
def test_a_token_that_came_with_the_job_is_taken_out_and_nothing_else(
    given: str, left: str, layout: Layout
) -> None:
    encoded = given.replace("%", "%25").replace(" ", "%20")
    assert layout.submit(f"admin_comment={encoded}").admin_comment == left


def test_python_never_sees_a_token_that_came_with_the_job(layout: Layout) -> None:
    assert described(layout, f"admin_comment=x;{TOKEN}")["admin_comment"] == "x"


def test_an_exception_leaves_the_job_undecided_and_policy_decides(layout: Layout) -> None:
    assert layout.submit("name=raise").rc == 0
    layout.config.write_text('[Policy]\non_plugin_error = "reject"\n')
    refused = layout.submit("name=raise")
    assert refused.rc == ACCOUNTING_POLICY
    assert "contact the cluster's support" in refused.message


def test_an_undecided_reply_is_not_accepted_when_errors_reject(layout: Layout) -> None:
    layout.config.write_text("[Policy]\non_plugin_error = 'reject'\n")
    done = layout.run(layout.load_job_submit, "submit name=undecided")
    assert Submitted.of(done.answers[1]).rc == ACCOUNTING_POLICY
    assert (
        "submission_undecided outcome=refused unlogged_before=0 reason=the ledger is busy"
        in done.log
    )


def test_undecided_jobs_do_not_flood_the_log(layout: Layout) -> None:
    done = layout.run(layout.load_job_submit, *["submit name=undecided"] * 50)
    assert done.log.count("submission_undecided") == 1


def test_a_message_that_fills_its_buffer_ends_there(layout: Layout) -> None:
    assert layout.submit("name=long").message == "x" * 2047


def test_a_line_to_log_is_never_a_format(layout: Layout) -> None:
    done = layout.run(layout.load_job_submit, "submit name=log")
    assert "slurm_banking: %s %n 100% of what a user may type\n" in done.log


# Updates.


@pytest.mark.parametrize(
    "harmless", ["priority=3", "name=x", "comment=x", "array_inx=5", "name=x comment=y"]
)
def test_an_update_that_costs_nothing_does_not_reach_python(harmless: str, layout: Layout) -> None:
    done = layout.run(layout.load_job_submit, "job name=refuse", f"update {harmless}")
    assert Submitted.of(done.answers[2]).rc == 0
    assert "wanted" not in done.log


@pytest.mark.parametrize(
    "change",
    [
        *("time_limit=90", "partition=long", "account=bio", "qos=high", "min_nodes=2"),
        *("num_tasks=8", "min_cpus=8", "cpus_per_task=2", "shared=0", "end_time=99999"),
        *("tres_per_node=gpu:1", "tres_per_job=gpu:1", "cpus_per_tres=gpu:4", "req_nodes=n1"),
        *("ntasks_per_socket=1", "ntasks_per_core=1", "sockets_per_node=2", "cores_per_socket=2"),
    ],
)
def test_an_update_of_what_the_price_depends_on_can_be_refused(change: str, layout: Layout) -> None:
    done = layout.run(layout.load_job_submit, "job name=refuse", f"update {change}")
    assert Submitted.of(done.answers[2]).rc == ACCOUNTING_POLICY


def test_a_refused_update_says_why_where_slurm_passes_it_on(layout: Layout) -> None:
    done = layout.run(layout.load_job_submit, "job name=refuse", "update time_limit=90")
    told = Submitted.of(done.answers[2]).message
    assert bool(told) == (layout.built.slurm >= (23, 2))


def test_an_accepted_update_says_nothing_which_scontrol_would_show_as_an_error(
    layout: Layout,
) -> None:
    done = layout.run(
        layout.load_job_submit, "submit name=token", "job name=token", "update time_limit=90"
    )
    assert Submitted.of(done.answers[1]).message
    assert (Submitted.of(done.answers[3]).rc, Submitted.of(done.answers[3]).message) == (0, "")


@pytest.mark.parametrize(
    ("uid", "may", "operator"),
    [(1001, 1, 0), (0, 1, 1), (64030, 1, 1), (900, 1, 1), (1003, 1, 1), (1002, 0, 0), (7777, 0, 0)],
)
def test_only_owner_operator_and_coordinator_reach_python(
    uid: int, may: int, operator: int, layout: Layout
) -> None:
    done = layout.run(layout.load_job_submit, "job name=x", f"update uid={uid} time_limit=90")
    assert Submitted.of(done.answers[2]).rc == 0
    assert done.log.count('"wanted"') == may
    if may:
        assert from_log(done.log, "wanted")["operator_caller"] == operator


def test_a_coordinator_of_the_old_account_alone_may_not_move_a_job(layout: Layout) -> None:
    done = layout.run(layout.load_job_submit, "job name=x", "update uid=1003 account=bio")
    assert "wanted" not in done.log


def test_an_update_is_what_the_job_would_become(layout: Layout) -> None:
    update = updated(layout, "name=x", "time_limit=90 num_tasks=8")
    wanted = update["wanted"]
    assert (wanted["time_limit_min"], wanted["num_tasks"], wanted["min_cpus"]) == (90, 8, 2)
    assert [part["name"] for part in wanted["partitions"]] == ["normal", "long"]
    assert (wanted["account"], wanted["qos"], wanted["user_name"]) == ("astro", "standard", "alice")
    assert (update["job_id"], update["submit_time"], update["task_count"]) == (42, 1000, 1)


def test_an_update_starts_from_what_was_asked_for_not_from_what_slurm_made_of_it(
    layout: Layout,
) -> None:
    wanted = updated(layout, "part=normal", "time_limit=90")["wanted"]
    assert (wanted["min_cpus"], wanted["cpus_per_task"]) == (2, 1)
    assert wanted["pn_min_memory"] == NO_VAL64, "a default of the partition is made anew"
    given = updated(layout, "memory=900", "partition=long")["wanted"]
    assert given["pn_min_memory"] == 900


def test_more_nodes_bring_the_cpus_of_all_tasks_along(layout: Layout) -> None:
    wanted = updated(layout, "part=normal num_tasks=5", "min_nodes=2")["wanted"]
    assert (wanted["min_nodes"], wanted["min_cpus"]) == (2, 15), "three CPUs for each, by Slurm"
    wanted = updated(layout, "part=normal", "min_nodes=9 max_nodes=2")["wanted"]
    assert (wanted["min_cpus"], wanted["min_nodes"], wanted["max_nodes"]) == (27, 9, 9)


def test_an_update_to_another_account_checks_the_jobs_user(layout: Layout) -> None:
    assert updated(layout, "name=x", "account=bio")["wanted"]["associated"] == 1
    assert (
        updated(layout, "name=x user_id=1002", "uid=0 account=astro")["wanted"]["associated"] == 0
    )


def test_an_update_of_an_array_counts_the_tasks_of_its_record(layout: Layout) -> None:
    assert updated(layout, "name=x tasks=7", "time_limit=90")["task_count"] == 7
    assert updated(layout, "name=x tasks=7 array_task_id=3", "time_limit=90")["task_count"] == 1


def test_a_running_job_is_priced_in_the_partition_it_runs_in(layout: Layout) -> None:
    update = updated(layout, "name=x state=1 part=long total_cpus=4", "time_limit=90")
    assert [part["name"] for part in update["wanted"]["partitions"]] == ["long"]
    assert (update["job_state"], update["total_cpus"]) == (1, 4)


def test_a_zero_in_a_record_is_something_not_given(layout: Layout) -> None:
    wanted = updated(layout, "name=x num_tasks=0", "time_limit=90")["wanted"]
    assert (wanted["num_tasks"], wanted["max_nodes"]) == (NO_VAL, NO_VAL)
    assert (wanted["ntasks_per_node"], wanted["pn_min_cpus"]) == (NO_VAL16, NO_VAL16)


def test_an_end_time_is_a_longer_limit(layout: Layout) -> None:
    update = updated(layout, "name=x state=1 part=long end_time=10000", "end_time=13600")
    assert update["wanted"]["time_limit_min"] == 60 + 60


def test_a_limit_that_slurm_will_refuse_below_the_least_time_stays_as_it_is(layout: Layout) -> None:
    """The rest of the update is done all the same, up to 22.05."""

    def limit(job: str, wanted: str) -> Any:
        return updated(layout, f"name=x {job}", wanted)["wanted"]["time_limit_min"]

    assert limit("time_min=30", "time_limit=5 min_nodes=2") == 60
    assert limit("time_min=30", "time_limit=30 min_nodes=2") == 30
    assert limit("time_min=30", "time_limit=90") == 90
    assert limit("time_min=0", "time_limit=5 min_nodes=2") == 5
    assert limit("time_min=0", "time_limit=5 time_min=10") == 60
    assert limit("time_min=30", "time_limit=5 time_min=5") == 5


def test_a_record_keeps_the_layout_that_an_update_does_not_change(layout: Layout) -> None:
    job = "name=x ntasks_per_socket=4 sockets_per_node=2"
    wanted = updated(layout, job, "sockets_per_node=1")["wanted"]
    assert (wanted["ntasks_per_socket"], wanted["sockets_per_node"]) == (4, 1)
    assert (wanted["ntasks_per_core"], wanted["cores_per_socket"]) == (INFINITE16, NO_VAL16)
    none = updated(layout, "name=x", "time_limit=90")["wanted"]
    assert (none["ntasks_per_socket"], none["sockets_per_node"]) == (NO_VAL16, NO_VAL16)


def test_an_update_of_a_running_job_tells_what_it_has(layout: Layout) -> None:
    job = "name=x part=long nodes=n1 total_cpus=4 tres_alloc_str=1=4,2=8000,4=1,5=4"
    running = updated(layout, f"{job} state=1", "time_limit=90")
    assert running["tres_alloc"] == "cpu=4,mem=8000M,node=1,billing=4"
    assert updated(layout, f"{job} state=0", "time_limit=90")["tres_alloc"] is None


def test_a_finished_job_is_not_updated(layout: Layout) -> None:
    done = layout.run(layout.load_job_submit, "job name=refuse state=3", "update time_limit=90")
    assert Submitted.of(done.answers[2]).rc == 0


def test_a_record_with_nothing_in_it_is_survived(layout: Layout) -> None:
    wanted = updated(layout, "bare=1", "time_limit=90")["wanted"]
    assert (wanted["min_cpus"], wanted["shared"], wanted["qos"]) == (NO_VAL, NO_VAL16, "standard")


def test_an_administrators_comment_keeps_the_jobs_token_and_gets_no_other(layout: Layout) -> None:
    other = TOKEN.replace("ab", "cd")
    done = layout.run(
        layout.load_job_submit,
        f"job name=x admin_comment=old;{TOKEN}",
        f"update uid=0 admin_comment=new;{other}",
    )
    assert Submitted.of(done.answers[2]).admin_comment == f"new;{TOKEN}"


def test_an_undecided_update_is_refused_to_users_and_left_to_operators(layout: Layout) -> None:
    layout.config.write_text('[Policy]\non_plugin_error = "reject"\n')
    done = layout.run(
        layout.load_job_submit,
        "job name=undecided",
        "update time_limit=90",
        "update uid=900 time_limit=90",
    )
    assert [Submitted.of(line).rc for line in done.answers[2:]] == [ACCOUNTING_POLICY, 0]


# What Slurm refuses only after the plugins.


@pytest.mark.parametrize(
    "field",
    [
        *("account", "partition", "qos", "array_inx", "name", "reservation"),
        *("tres_per_job", "tres_per_node", "cpus_per_tres", "mem_per_tres"),
    ],
)
def test_a_text_that_is_longer_than_any_that_slurm_takes_is_not_looked_at(
    field: str, layout: Layout
) -> None:
    done = layout.run(
        *[layout.load_job_submit, f"submit {field}={'x,' * 8192}"],
        *[f"submit {field}={'x,' * 8192}x", "job", f"update {field}={'x,' * 8192}x"],
        f"update uid=1002 {field}={'x,' * 8192}x",  # whom Slurm refuses by itself
    )
    answers = [Submitted.of(done.answers[i]) for i in (1, 2, 4, 5)]
    costs_nothing = field in ("array_inx", "name", "reservation")
    update = 0 if costs_nothing else PATHNAME_TOO_LONG
    assert [answer.rc for answer in answers] == [0, PATHNAME_TOO_LONG, update, 0]
    assert answers[1].message == ""
    told = [line for line in done.log.splitlines() if "reason=text_too_long" in line]
    assert len(told) == (1 if costs_nothing else 2) and all(len(line) < 200 for line in told)


# Ends.


def test_a_run_that_ended_crosses_whole(layout: Layout) -> None:
    run = ended(
        layout,
        "name=x state=3 part=long nodes=n[1-2] node_cnt=2 total_cpus=8 tres_alloc_str=1=8,4=2"
        f" start_time=2000 end_time=5600 suspend_time=3000 pre_sus_time=900 restart_cnt=1"
        f" admin_comment={TOKEN}",
    )
    assert (run["job_id"], run["user_id"], run["account"]) == (42, 1001, "astro")
    assert (run["partition"], run["qos"], run["user_name"]) == ("long", "standard", "alice")
    assert (run["nodes"], run["node_count"], run["total_cpus"]) == ("n[1-2]", 2, 8)
    assert run["tres_alloc"] == "cpu=8,node=2"
    assert (run["submit_time"], run["start_time"], run["end_time"]) == (1000, 2000, 5600)
    assert (run["suspend_time"], run["pre_suspend_s"], run["restart_count"]) == (3000, 900, 1)
    assert (run["requeue"], run["task_count"], run["admin_comment"]) == (0, 1, TOKEN)


def test_a_run_that_started_crosses_whole_where_slurm_tells_it(layout: Layout) -> None:
    if layout.built.slurm < (25, 5):
        pytest.skip("before 25.05 jobcomp is not told of starts")
    done = layout.run(
        layout.load_jobcomp,
        "job name=x state=1 part=long nodes=n[1-2] node_cnt=2 total_cpus=8 tres_alloc_str=1=8,4=2"
        f" start_time=2000 end_time=5600 restart_cnt=1 admin_comment={TOKEN}",
        "start",
    )
    assert done.answers[2] == "rc=0"
    run = from_log(done.log, "pre_suspend_s")
    assert (run["job_id"], run["job_state"], run["tres_alloc"]) == (42, 1, "cpu=8,node=2")
    assert (run["start_time"], run["restart_count"], run["admin_comment"]) == (2000, 1, TOKEN)


def test_a_run_without_nodes_has_none_of_an_earlier_runs_resources(layout: Layout) -> None:
    run = ended(layout, "name=x state=4 total_cpus=8 node_cnt=2 tres_alloc_str=1=8")
    assert (run["nodes"], run["tres_alloc"], run["total_cpus"], run["node_count"]) == (
        None,
        None,
        0,
        0,
    )


@pytest.mark.parametrize(
    ("record", "told"),
    [
        # 1,234,567 MB: Slurm's own readable text would round it
        ("1=4,2=1234567,4=1,5=4", "cpu=4,mem=1234567M,node=1,billing=4"),
        ("1=4,2=8192,4=1,5=4", "cpu=4,mem=8192M,node=1,billing=4"),
        (
            "1=8,2=4000,3=18446744073709551614,4=2,5=10,1001=4,1002=3,1003=1",
            "cpu=8,mem=4000M,node=2,billing=10,gres/gpu=4,gres/gpu:a100=3,license/matlab=1",
        ),
        ("1=4,2=0,4=1", "cpu=4,mem=0,node=1"),
        ("1=4,3=120,4=1,7777=3", "cpu=4,energy=120,node=1"),  # a TRES that is not in the list
        ("", None),
        ("cpu=4", None),
    ],
)
def test_allocated_resources_are_told_exactly(
    record: str, told: Optional[str], layout: Layout
) -> None:
    run = ended(
        layout,
        f"name=x state=3 nodes=n1 tres_fmt_alloc_str=cpu=4,mem=1.18T tres_alloc_str={record}",
    )
    assert run["tres_alloc"] == told


CANCELLED, TIMEOUT = 4, 6
ALICE, BOB, CAROL, OPERATOR, SLURM_USER, ROOT = 1001, 1002, 1003, 900, 64030, 0


@pytest.mark.parametrize(
    ("state", "requid", "by_admin"),
    [
        *[(CANCELLED, who, 1) for who in (ROOT, SLURM_USER, OPERATOR)],
        # the job's own user, another user, a coordinator of the account, nobody
        *[(CANCELLED, who, 0) for who in (ALICE, BOB, CAROL, INFINITE, NO_VAL)],
        *[(state, ROOT, 0) for state in (1, 3, 5, TIMEOUT, 8)],
        (CANCELLED | 1 << 15, ROOT, 1),  # with flags
    ],
)
def test_a_cancellation_by_an_administrator_is_told_as_one(
    state: int, requid: int, by_admin: int, layout: Layout
) -> None:
    run = ended(layout, f"name=x state={state} nodes=n1 part=normal requid={requid}")
    assert run["cancelled_by_admin"] == by_admin


def test_an_administrators_own_job_is_his_to_cancel(layout: Layout) -> None:
    run = ended(layout, f"name=x state=4 nodes=n1 user_id={OPERATOR} requid={OPERATOR}")
    assert run["cancelled_by_admin"] == 0


def test_a_resize_tells_what_the_part_that_ended_had(layout: Layout) -> None:
    run = ended(
        layout,
        f"name=x state={1 | 1 << 13} part=long nodes=n[1-2] node_cnt=2 total_cpus=8"
        " tres_alloc_str=1=8,2=16000,4=2 start_time=2000 end_time=9000 resize_time=3000",
    )
    assert (run["total_cpus"], run["node_count"]) == (8, 2)
    assert (run["tres_alloc"], run["resize_time"]) == ("cpu=8,mem=16000M,node=2", 3000)


@pytest.mark.parametrize("flag", [1 << 10, 1 << 11, 1 << 12])
def test_a_requeue_is_told_as_one(flag: int, layout: Layout) -> None:
    run = ended(layout, f"name=x state={flag} part=normal nodes=n1")
    assert (run["requeue"], run["job_state"]) == (1, flag)


def test_a_pending_array_that_ends_whole_ends_all_its_tasks(layout: Layout) -> None:
    assert ended(layout, "name=x state=4 tasks=12")["task_count"] == 12


def test_an_end_with_nothing_in_its_record_is_survived(layout: Layout) -> None:
    run = ended(layout, "bare=1")
    assert (run["account"], run["partition"], run["qos"]) == (None, None, None)


def test_jobcomp_never_fails_and_says_what_it_left(layout: Layout) -> None:
    done = layout.run(layout.load_jobcomp, "job name=raise", "end")
    assert done.answers[2] == "rc=0"
    assert "run_end_unrecorded outcome=left_to_relay" in done.log


def test_jobcomp_has_no_records_to_show(layout: Layout) -> None:
    assert layout.run(layout.load_jobcomp, "get_jobs").answers[1] == "none"


# The process.


def test_both_plugins_share_one_interpreter(layout: Layout) -> None:
    done = layout.run(
        layout.load_job_submit, layout.load_jobcomp, "submit name=interpreter", "maps libpython"
    )
    facts = json.loads(Submitted.of(done.answers[2]).message)
    assert facts["inits"] == ["job_submit", "jobcomp"]
    assert done.answers[3] == "maps=1"


def test_the_interpreter_is_isolated_and_imports_from_constants_alone(layout: Layout) -> None:
    facts = json.loads(layout.submit("name=interpreter").message)
    assert facts["path"] == [
        str(layout.stdlib),
        str(layout.dynload),
        str(layout.lib),
        str(layout.cffi),
    ]
    assert (facts["isolated"], facts["no_site"], facts["site"]) == (1, 1, False)


def test_the_environment_does_not_steer_the_interpreter(layout: Layout) -> None:
    evil = layout.etc / "evil"
    evil.mkdir()
    (evil / "json.py").write_text("raise SystemExit(99)\n")
    (evil / "slurm_banking").mkdir()
    done = layout.run(
        layout.load_job_submit,
        "submit name=interpreter",
        environment={
            "PYTHONPATH": str(evil),
            "PYTHONHOME": str(evil),
            "PYTHONSTARTUP": str(evil / "json.py"),
            "PYTHONNOUSERSITE": "",
            "PYTHONUTF8": "0",
            "PYTHONINSPECT": "1",
            "PYTHONDONTWRITEBYTECODE": "",
            "LC_ALL": "C",
            "HOME": str(evil),
        },
    )
    facts = json.loads(Submitted.of(done.answers[1]).message)
    assert str(evil) not in facts["path"]
    assert facts["utf8"] == 1


def test_extension_modules_find_libpython(layout: Layout) -> None:
    assert re.fullmatch(r"2 3\.\d+\.\d+", layout.submit("name=extension").message)


def test_loading_opens_no_socket(layout: Layout) -> None:
    done = layout.run(layout.load_job_submit, layout.load_jobcomp, "submit", "sockets")
    assert done.answers[3] == "sockets=0"


def test_unloading_and_loading_again_is_harmless(layout: Layout) -> None:
    done = layout.run(
        *[layout.load_job_submit, layout.load_jobcomp, "submit name=token"],
        *["unload job_submit", "unload jobcomp"] + [layout.load_jobcomp, layout.load_job_submit],
        *[
            "submit name=token",
            "unload job_submit",
            layout.load_job_submit,
            "submit name=interpreter",
        ],
    )
    assert Submitted.of(done.answers[7]).admin_comment == TOKEN
    facts = json.loads(Submitted.of(done.answers[10]).message)
    assert facts["inits"] == ["job_submit", "jobcomp", "jobcomp", "job_submit", "job_submit"]


def test_ten_threads_at_once_each_get_their_answer(layout: Layout) -> None:
    done = layout.run(
        layout.load_job_submit,
        "storm 10 200 name=token partition=normal,long,whole",
        "storm 10 200 name=refuse",
    )
    assert done.answers[1:] == ("accepted=2000 refused=0", "accepted=0 refused=2000")


def test_ten_threads_at_once_start_a_cold_plugin_together(layout: Layout) -> None:
    layout.config.write_text('[Policy]\non_plugin_error = "reject"\n')
    done = layout.run(layout.load_job_submit, "storm 10 20 name=extension")
    assert done.answers[1] == "accepted=200 refused=0"


@not_sanitized
def test_facts_live_as_long_as_any_thread_uses_them(layout: Layout) -> None:
    storm = "storm 10 100 name=facts partition=many,whole,nowhere,many"
    done = layout.run(
        *[layout.load_job_submit, storm, "unsettled", *[storm] * 3, "rss", *[storm] * 3, "rss"],
        environment={"MALLOC_PERTURB_": "165"},  # what is freed is overwritten
    )
    assert {line for line in done.answers if "accepted" in line} == {"accepted=1000 refused=0"}
    before, after = (int(line.split("=")[1]) for line in done.answers if "rss" in line)
    assert after - before < 1024  # kB, over 3,000 submissions that each made new facts


@not_sanitized
def test_memory_stays_flat(layout: Layout) -> None:
    storm = "storm 10 300 name=token partition=normal,long,whole account=BIO"
    # the first storms fill the allocator's arenas, one for each thread that it meets at once
    done = layout.run(layout.load_job_submit, *[storm] * 4, "rss", *[storm] * 6, "rss")
    before, after = (int(done.answers[i].split("=")[1]) for i in (5, 12))
    assert after - before < 1024  # kB, over 18,000 submissions: less than 60 bytes each


def test_in_a_users_process_nothing_is_started(layout: Layout) -> None:
    done = layout.run(layout.load_jobcomp, "end", "get_jobs", arguments=("--as-sacct",))
    assert done.answers == ("loaded", "rc=0", "none")
    assert "ready" not in done.log and "pre_suspend_s" not in done.log


def test_a_plugin_behind_ours_in_the_list_is_pointed_out(layout: Layout) -> None:
    line = "expected slurm_banking as the last of JobSubmitPlugins"
    for plugins, said in (("lua,slurm_banking", False), ("slurm_banking,lua", True)):
        done = layout.run(layout.load_job_submit, environment={"FAKE_JOB_SUBMIT_PLUGINS": plugins})
        assert (line in done.log) is said


def exported(path: object) -> set[str]:
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[2] for line in listing.splitlines()}


@not_sanitized
def test_the_plugins_export_what_slurm_looks_up_and_nothing_else(built: Built) -> None:
    common = {"plugin_name", "plugin_type", "plugin_version"}
    assert exported(built.job_submit) == common | {"init", "fini", "job_submit", "job_modify"}
    record = {"jobcomp_p_log_record"}
    if built.slurm >= (25, 5):
        record = {"jobcomp_p_record_job_start", "jobcomp_p_record_job_end"}
    assert exported(built.jobcomp) == common | record | {
        *("init", "fini", "jobcomp_p_set_location", "jobcomp_p_get_jobs")
    }
    assert exported(built.spank) == common | {"slurm_spank_job_prolog"}


def needed(path: object) -> str:
    return subprocess.run(
        ["readelf", "-d", str(path)], capture_output=True, text=True, check=True
    ).stdout


@not_sanitized
def test_the_plugins_stay_mapped_and_do_nothing_when_the_process_ends(built: Built) -> None:
    for path in (built.job_submit, built.jobcomp, built.spank):
        assert "NODELETE" in needed(path)
        # the compiler's own frame_dummy alone: nothing of ours in constructors
        sizes = re.findall(r"\((?:INIT|FINI)_ARRAYSZ\)\s+(\d+)", needed(path))
        assert sizes == ["8", "8"]


@not_sanitized
def test_everything_the_plugins_want_is_exported_by_slurmctld(built: Built) -> None:
    provided = set()
    slurmctld = "/usr/sbin/slurmctld"
    libraries = subprocess.run(
        ["ldd", slurmctld, str(built.job_submit)], capture_output=True, text=True, check=True
    ).stdout
    for path in {slurmctld, *re.findall(r"=> (/\S+)", libraries)}:
        provided |= {name.split("@")[0] for name in exported(path)}
    for plugin in (built.job_submit, built.jobcomp):
        listing = subprocess.run(
            ["nm", "-D", "--undefined-only", str(plugin)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        wanted = {
            line.split()[-1].split("@")[0]
            for line in listing.splitlines()
            if line.split()[0] != "w"
        }
        assert wanted - provided == set()
