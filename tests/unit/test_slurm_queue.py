# SPDX-License-Identifier: BSD-3-Clause
"""squeue and scontrol, read from what Slurm 22.05.8 printed (data/slurm-22.05)."""

from __future__ import annotations

import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_banking.errors import SlurmUnavailable
from slurm_banking.records import UNLIMITED, NodeShape, QueuedJob
from slurm_banking.slurm import control, squeue, topology
from slurm_banking.tres import Tres

DATA = Path(__file__).parent / "data" / "slurm-22.05"


class Recorded:
    """Answers like Slurm's commands did, with the separators of this call; keeps what it was asked."""

    def __init__(self, kind: str = "", **replaced: str) -> None:
        self.kind = kind  #: "gpu-": a cluster with GPUs, memory and weights
        self.replaced = replaced
        self.calls: List[Sequence[str]] = []
        self.environments: List[Mapping[str, str]] = []

    def __call__(
        self, argv: Sequence[str], *, extra_env: Optional[Mapping[str, str]] = None, **_: Any
    ) -> str:
        self.calls.append(argv)
        self.environments.append(extra_env or {})
        name = "squeue" if argv[0] == "squeue" else argv[-1]
        kind = "" if name == "squeue" else self.kind
        text = self.replaced.get(name) or (DATA / f"{kind}{name}.txt").read_text("utf-8")
        if name == "squeue":
            fields = (extra_env or {})["SQUEUE_FORMAT2"].split(",")
            separator, end = (fields[i].partition(":")[2] for i in (0, -1))
            text = text.replace("~s~", separator).replace("~z~", end)
        return text


def by_id() -> Dict[int, QueuedJob]:
    return {job.job_id: job for job in squeue.read_queue("rig", run=Recorded()).jobs}


def test_a_snapshot_has_every_record_and_says_when_it_was_taken() -> None:
    snapshot = squeue.read_queue("rig", run=Recorded(), now=lambda: 1795261947.9)
    assert len(snapshot.jobs) == 10
    assert (snapshot.taken_at, snapshot.boot_time) == (1795261947, 1795261150)


def test_a_pending_array_is_one_record_with_the_tasks_left() -> None:
    job = by_id()[27]
    assert (job.array_job_id, job.array_task_id, job.tasks) == (27, None, 4)
    assert job.partition == "main,debug" and job.start_time is None


@pytest.mark.parametrize("left", [["4", "5", "9", "13"], ["13"]])
def test_a_pending_array_that_is_printed_task_by_task_is_one_record(left: List[str]) -> None:
    """As squeue --array does; the requeued task 1 of the same array stays a record of its own."""
    text = (DATA / "squeue.txt").read_text("utf-8")
    records = text.split("~z~")
    (at,) = [number for number, record in enumerate(records) if "27_[" in record]
    (whole,) = re.findall(r"~s~27_(\[[^~]*\])~s~", records[at])
    tasks = whole.strip("[]")
    each = [records[at].replace(f"27_{whole}", f"27_{task}").replace(f"~s~{tasks}~s~", f"~s~{task}~s~")
            for task in left]  # fmt: skip
    records[at : at + 1] = each
    slurm = Recorded(squeue="~z~".join(records))
    queue = squeue.read_queue("rig", run=slurm)
    assert len(queue.jobs) == 10
    jobs = {job.job_id: job for job in queue.jobs}
    assert (jobs[27].array_job_id, jobs[27].tasks) == (27, len(left))
    assert (jobs[28].array_job_id, jobs[28].array_task_id, jobs[28].tasks) == (27, 1, 1)


@pytest.mark.parametrize("known", [True, False])
def test_an_option_that_this_squeue_does_not_have_is_asked_with_once(
    monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr(squeue, "_arrays", ["--array-unique", "--array"])

    class Newer(Recorded):
        def __call__(self, argv: Sequence[str], **options: Any) -> str:
            if not known and "--array-unique" in argv:
                self.calls.append(argv)
                raise SlurmUnavailable('squeue: Try "squeue --help" for more information')
            return super().__call__(argv, **options)

    slurm = Newer()
    for _ in range(2):
        assert len(squeue.read_queue("rig", run=slurm).jobs) == 10
    asked = [argv[-1] for argv in slurm.calls if argv[0] == "squeue"]
    assert asked == (["--array-unique"] * 2 if known else ["--array-unique", "--array", "--array"])


def test_a_squeue_that_fails_otherwise_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squeue, "_arrays", ["--array-unique", "--array"])
    asked: List[Sequence[str]] = []

    def away(argv: Sequence[str], **_: Any) -> str:
        asked.append(argv)
        raise SlurmUnavailable(
            "squeue: error: Unable to contact slurm controller (connect failure)"
        )

    with pytest.raises(SlurmUnavailable):
        squeue.read_queue("rig", run=away)
    assert len(asked) == 1


def test_a_requeued_array_task_is_a_record_of_its_own() -> None:
    job = by_id()[28]
    assert (job.array_job_id, job.array_task_id, job.tasks) == (27, 1, 1)
    assert (job.state, job.restart_count, job.submit_time) == ("PENDING", 1, 1795261947)
    assert job.start_time is None, "when it may start is not when it started"


def test_a_started_array_task_has_its_own_job_id() -> None:
    job = by_id()[34]
    assert (job.array_job_id, job.array_task_id) == (27, 3)
    assert (job.start_time, job.node_list, job.cpus) == (1795261947, "n2", 3)


def test_het_components_are_records_of_their_own() -> None:
    jobs = by_id()
    assert (jobs[30].het_job_id, jobs[30].het_job_offset, jobs[30].cpus) == (30, 0, 2)
    assert (jobs[31].het_job_id, jobs[31].het_job_offset, jobs[31].time_limit_min) == (30, 1, 4)
    assert jobs[30].array_job_id is None


def test_a_job_name_with_line_ends_and_other_records_looks_stays_a_name() -> None:
    job = by_id()[26]
    assert job.name == "evil|a=b\nJobId=999 UserId=root(0)\x1f%A"
    assert (job.user_id, job.user_name, job.account) == (1001, "sb-alice", "fc_alpha")


def test_an_admin_comment_is_read_whole() -> None:
    assert by_id()[33].admin_comment == (
        "keep\nthis;slurm_banking=00112233445566778899aabbccddeeff:17:v1"
    )


def test_unlimited_time_is_unlimited() -> None:
    assert by_id()[13].time_limit_min == UNLIMITED


def test_a_requeued_job_that_still_completes_is_neither_pending_nor_started() -> None:
    """squeue shows the next restart count with the last submit time then: a run that never is."""
    job = by_id()[33]
    assert job.state == "COMPLETING"
    assert not squeue.is_pending(job) and not squeue.is_started(job)
    assert job.start_time is None


def test_the_separators_differ_in_each_call_and_are_in_no_argument() -> None:
    slurm = Recorded()
    squeue.read_queue("rig", run=slurm)
    squeue.read_queue("rig", run=slurm)
    formats = [env["SQUEUE_FORMAT2"] for env in slurm.environments if env]
    assert len(set(formats)) == 2
    separators = {text.split(",")[0].partition(":")[2] for text in formats}
    assert not any(
        separator in word for call in slurm.calls for word in call for separator in separators
    )


def test_a_job_named_like_the_recorded_separators_cannot_make_a_record() -> None:
    text = (DATA / "squeue.txt").read_text("utf-8")
    forged = squeue.parse_queue(
        text.replace("~s~", "\x01s").replace("~z~", "\x01z").replace("evil", "x~s~1~z~"),
        "rig",
        "\x01s",
        "\x01z",
    )
    assert len(forged) == 10


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("~s~1001~s~", "~s~alice~s~", 1),
        lambda text: text.replace("~s~normal", "", 1),
        lambda text: text.replace("4-5,9,13%2~s~N/A", "4-5,9,...~s~N/A", 1),
        lambda text: text.replace("cpu=3,", "cpu=some,", 1),
    ],
)
def test_an_answer_that_cannot_be_read_whole_is_not_used(damage: Any) -> None:
    text = (DATA / "squeue.txt").read_text("utf-8")
    with pytest.raises(SlurmUnavailable, match="^squeue: "):
        squeue.read_queue("rig", run=Recorded(squeue=damage(text)))


def test_a_started_job_comes_with_what_was_allocated_and_a_waiting_one_with_what_it_asks_for() -> (
    None
):
    jobs = by_id()
    assert jobs[34].tres == Tres(cpus=3, nodes=1, billing=3)
    assert jobs[32].tres == Tres(cpus=2, memory_mb=32000, nodes=2, billing=2)


@pytest.mark.parametrize(
    ("shown", "tres"),
    [
        ("N/A", Tres()),
        ("", Tres()),
        (
            "cpu=4,mem=2000M,node=1,billing=8,gres/gpu=2,gres/gpu:a100=2",
            Tres(cpus=4, memory_mb=2000, nodes=1, billing=8, gpus=(("a100", 2),)),
        ),
        ("cpu=1,mem=2.50G,node=1,billing=1", Tres(cpus=1, memory_mb=2560, nodes=1, billing=1)),
    ],
)
def test_resources_as_squeue_shows_them(shown: str, tres: Tres) -> None:
    text = (DATA / "squeue.txt").read_text("utf-8")
    text = text.replace("cpu=3,node=1,billing=3", shown)
    jobs = {job.job_id: job for job in squeue.read_queue("rig", run=Recorded(squeue=text)).jobs}
    assert jobs[34].tres == tres


def test_a_queue_without_jobs_is_a_complete_answer() -> None:
    assert squeue.read_queue("rig", run=Recorded(squeue="\n")).jobs == ()


def test_the_queue_of_another_cluster_is_refused() -> None:
    with pytest.raises(SlurmUnavailable, match="cluster 'rig', expected 'other'"):
        squeue.read_queue("other", run=Recorded())


def test_a_snapshot_with_private_jobs_is_complete_only_for_those_who_see_all() -> None:
    config = (DATA / "config.txt").read_text("utf-8").replace("= none", "= jobs,usage")
    snapshot = squeue.read_queue("rig", run=Recorded(config=config))
    assert snapshot.complete == (os.geteuid() in (0, 64030))
    from slurm_banking.slurm.control import read_controller

    controller = read_controller(run=Recorded(config=config))
    assert controller.shows_all_jobs(0) and controller.shows_all_jobs(64030)
    assert not controller.shows_all_jobs(1001)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.integers(0, 3))
def test_no_text_in_name_or_comment_changes_another_field(text: str, where: int) -> None:
    separator, end = "~3fb1c0d7a9e2s", "~3fb1c0d7a9e2z"
    if separator in text or end in text:
        return
    raw = (DATA / "squeue.txt").read_text("utf-8").replace("~s~", separator)
    raw = raw.replace("~z~", end)
    raw = raw.replace(f"(null){separator}h0", f"{text}{separator}{text}")
    jobs = squeue.parse_queue(raw, "rig", separator, end)
    job = next(job for job in jobs if job.job_id == 30)
    assert len(jobs) == 10 and job.name == text and job.user_id == 1002


def test_partitions_come_with_limits_and_node_sizes() -> None:
    found = topology.read_topology(run=Recorded())
    main, exclusive = found.partition("main"), found.partition("exclusive")
    assert found.default_partition == "main"
    assert (main.default_time_min, main.max_time_min) == (10, 1440)
    assert (main.total_cpus, main.total_nodes, main.max_nodes) == (16, 2, None)
    assert main.shapes == (NodeShape(count=2, cpus=8, cores=8, memory_mb=16000),)
    assert exclusive.exclusive and not main.exclusive
    assert main.max_cpus_per_node is None
    assert not found.partition("nosuch").found


def test_a_partition_without_limits_is_unlimited_and_without_default() -> None:
    text = (DATA / "partition.txt").read_text("utf-8")
    text = text.replace("DefaultTime=00:10:00", "DefaultTime=NONE")
    text = text.replace("MaxTime=1-00:00:00", "MaxTime=UNLIMITED")
    text = text.replace("MaxCPUsPerNode=UNLIMITED", "MaxCPUsPerNode=4")
    main = topology.read_topology(run=Recorded(partition=text)).partition("main")
    assert (main.default_time_min, main.max_time_min, main.max_cpus_per_node) == (None, -1, 4)


def test_every_partition_is_exclusive_where_slurm_selects_whole_nodes() -> None:
    config = (DATA / "config.txt").read_text("utf-8").replace("cons_tres", "linear")
    assert topology.read_topology(run=Recorded(config=config)).partition("main").exclusive


def test_nodes_that_are_not_alike_are_told_apart() -> None:
    main = topology.read_topology(run=Recorded("gpu-")).partition("main")
    assert main.shapes == (
        NodeShape(
            count=1, cpus=8, sockets=2, cores=2, threads=2, memory_mb=16000, memory_spec_mb=500
        ),
        NodeShape(count=1, cpus=8, sockets=2, cores=4, memory_mb=32000, gpus=(("a100", 4),)),
    )


def test_memory_weights_and_defaults_for_gpus_are_the_partitions_or_else_the_clusters() -> None:
    found = topology.read_topology(run=Recorded("gpu-"))
    main, exclusive = found.partition("main"), found.partition("exclusive")
    assert (main.def_mem_mb, main.def_mem_per_cpu) == (500, True)
    assert (main.max_mem_mb, main.max_mem_per_cpu) == (20000, False)
    assert (exclusive.def_mem_mb, exclusive.max_mem_mb) == (None, 20000)
    assert (main.def_cpus_per_gpu, main.def_mem_per_gpu_mb) == (2, None)
    weights = {"cpu": Decimal(1), "mem": Decimal("0.25"), "gres/gpu": Decimal(2)}
    assert main.billing_weights == weights and not main.billing_max
    assert main.release == (22, 5)
    assert exclusive.billing_weights is None
    assert not found.spec_allowed
    config = (DATA / "gpu-config.txt").read_text("utf-8")
    config = config.replace("(null)", "DefCpuPerGPU=4,DefMemPerGPU=1000")
    config = config.replace("DefMemPerNode           = UNLIMITED", "DefMemPerCPU = 700")
    config = config.replace("22.05.8", "24.11.0-0rc1")
    config += "PriorityFlags           = NO_FAIR_TREE,MAX_TRES\nAllowSpecResourcesUsage = Yes\n"
    found = topology.read_topology(run=Recorded("gpu-", config=config))
    main, exclusive = found.partition("main"), found.partition("exclusive")
    assert (exclusive.def_mem_mb, exclusive.def_mem_per_cpu) == (700, True)
    assert (main.def_cpus_per_gpu, main.def_mem_per_gpu_mb) == (2, 1000)
    assert exclusive.def_cpus_per_gpu == 4 and main.billing_max
    assert main.release == (24, 11)
    config = config.replace("SLURM_VERSION", "VERSION")
    unknown = topology.read_topology(run=Recorded("gpu-", config=config)).partition("main")
    assert unknown.release > (99, 0), "the newest, whose rules never estimate less"


@pytest.mark.parametrize(
    ("cluster", "partition", "unit", "memory_tracked", "one_task_per_core"),
    [
        ("CR_CORE_MEMORY", "NONE", "core", True, False),
        ("CR_CORE", "NONE", "core", False, False),
        ("CR_CPU_MEMORY", "CR_SOCKET", "cpu", True, False),  # as Slurm: only under cores or sockets
        ("CR_CORE_MEMORY", "CR_SOCKET", "socket", False, False),
        ("CR_SOCKET", "CR_CORE_MEMORY", "core", True, False),
        ("CR_CPU,CR_ONE_TASK_PER_CORE,CR_LLN", "NONE", "cpu", False, True),
    ],
)
def test_what_slurm_hands_out_is_the_partitions_or_else_the_clusters(
    cluster: str, partition: str, unit: str, memory_tracked: bool, one_task_per_core: bool
) -> None:
    config = (DATA / "gpu-config.txt").read_text("utf-8").replace("CR_CORE_MEMORY", cluster)
    text = (DATA / "gpu-partition.txt").read_text("utf-8")
    text = text.replace("SelectTypeParameters=NONE", f"SelectTypeParameters={partition}")
    recorded = Recorded("gpu-", config=config, partition=text)
    main = topology.read_topology(run=recorded).partition("main")
    assert (main.unit, main.memory_tracked) == (unit, memory_tracked)
    assert main.one_task_per_core == one_task_per_core


def test_equal_nodes_are_counted_and_the_rest_of_many_kinds_is_as_large_as_the_largest() -> None:
    line = (DATA / "node.txt").read_text("utf-8").splitlines()[0]
    nodes = [line.replace("RealMemory=16000", f"RealMemory={1000 + n // 2}") for n in range(50)]
    nodes[-1] = nodes[-1].replace("Gres=(null)", "Gres=gpu:A100:4(S:0,1),gpu:2(S:0),shard:8")
    main = topology.read_topology(run=Recorded(node="\n".join(nodes))).partition("main")
    assert len(main.shapes) == topology.MAX_SHAPES
    assert sum(shape.count for shape in main.shapes) == 50
    assert {shape.count for shape in main.shapes[:-1]} == {2}
    assert main.shapes[-1].memory_mb == 1024
    assert main.shapes[-1].gpus == (("", 2), ("a100", 4))


def test_operators_are_root_slurmuser_and_those_of_slurmdbd() -> None:
    answers = {"config": (DATA / "config.txt").read_text("utf-8")}
    users = (
        "root|Administrator\nnobody|None\ndaemon|Operator\nbin|Administrator\nsb-none|Operator\n"
    )
    asked: List[str] = []
    now = [0.0]

    def answer(argv: Sequence[str], **_: Any) -> str:
        asked.append(argv[0])
        if argv[0] == "sacctmgr" and users:
            return users
        if argv[0] == "sacctmgr":
            raise SlurmUnavailable("sacctmgr: Connection refused")
        return answers[argv[-1]]

    operators = control.Operators(run=answer, clock=lambda: now[0])
    assert operators() == operators() == {0, 64030, 1, 2}
    assert asked.count("sacctmgr") == 1
    users, now[0] = "", 400.0
    assert operators() == {0, 64030}, "while slurmdbd cannot be asked"


def test_associations_are_those_of_the_user_named() -> None:
    def answer(argv: Sequence[str], **_: Any) -> str:
        if "user" in argv:
            return "sb-alice|fc_alpha\n"
        return "sb-alice|fc_alpha||normal,long|normal\nsb-alice|fc_beta|main|normal|\n"

    found = topology.associations("sb-alice", "rig", run=answer)
    assert [(item.account, item.partition) for item in found] == [
        ("fc_alpha", None),
        ("fc_beta", "main"),
    ]
    assert found[0].qos == ("normal", "long") and found[1].default_qos is None
    assert topology.default_account("sb-alice", run=answer) == "fc_alpha"
    assert topology.default_account("sb-bob", run=answer) is None


def test_a_name_that_is_no_name_reaches_no_command() -> None:
    def never(*_: Any, **__: Any) -> str:
        raise AssertionError("a command was run")

    for name in ("-i", "a b", "x,y", "name=z", ""):
        assert topology.default_account(name, run=never) is None
        assert topology.associations(name, "rig", run=never) == ()
