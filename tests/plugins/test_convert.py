# SPDX-License-Identifier: BSD-3-Clause
"""From C structs to records: real cffi structs of banking.h, filled as the C side fills them."""

from __future__ import annotations

import importlib.util
from decimal import Decimal
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import cffi
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_banking.boundary import convert
from slurm_banking.records import UNLIMITED, NodeShape, Partition
from slurm_banking.tres import Tres

CSRC = Path(__file__).resolve().parents[2] / "csrc"
NO_VAL, INFINITE = 0xFFFFFFFE, 0xFFFFFFFF
NO_VAL16, INFINITE16 = 0xFFFE, 0xFFFF
NO_VAL64, INFINITE64 = 0xFFFFFFFFFFFFFFFE, 0xFFFFFFFFFFFFFFFF
MEM_PER_CPU = 1 << 63


def of_banking_h() -> cffi.FFI:
    spec = importlib.util.spec_from_file_location("build_plugins", CSRC / "build_plugins.py")
    assert spec is not None and spec.loader is not None
    build_plugins = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build_plugins)
    ffi = cffi.FFI()
    ffi.cdef(build_plugins.declarations())
    return ffi


FFI = of_banking_h()

#: What a job description that asks for nothing has.
UNSET: Dict[str, Any] = {
    **{name: NO_VAL for name in ("time_limit_min", "time_min_min", "min_cpus", "max_cpus")},
    **{name: NO_VAL for name in ("min_nodes", "max_nodes", "num_tasks", "het_job_offset")},
    **{name: NO_VAL16 for name in ("cpus_per_task", "ntasks_per_node", "ntasks_per_socket")},
    **{name: NO_VAL16 for name in ("ntasks_per_core", "ntasks_per_tres", "sockets_per_node")},
    **{name: NO_VAL16 for name in ("cores_per_socket", "pn_min_cpus", "shared")},
    **{"threads_per_core": NO_VAL16, "core_spec": NO_VAL16, "overcommit": 0xFE},
    "pn_min_memory": NO_VAL64,
}
PLAIN_PARTITION: Dict[str, Any] = {
    **{"found": 1, "default_time_min": NO_VAL, "max_time_min": INFINITE, "unit": 1},
    **{"max_cpus_per_node": INFINITE, "max_nodes": INFINITE, "memory_tracked": 1},
    **{"def_cpu_per_gpu": NO_VAL64, "def_mem_per_gpu": NO_VAL64},
}


class Structs:
    """Makes structs and keeps what they point to."""

    def __init__(self) -> None:
        self.kept: List[Any] = []

    def make(self, kind: str, **fields: Any) -> Any:
        pointer = FFI.new(f"{kind} *")
        self.kept.append(pointer)
        self.fill(pointer[0], fields)
        return pointer

    def fill(self, struct: Any, fields: Dict[str, Any]) -> None:
        for name, value in fields.items():
            if isinstance(value, str):
                value = FFI.new("char[]", value.encode("utf-8", "surrogateescape"))
                self.kept.append(value)
            setattr(struct, name, value)

    def partition(self, shapes: Tuple[Dict[str, Any], ...] = (), **fields: Any) -> Any:
        array = FFI.new("banking_node_shape[]", max(1, len(shapes)))
        self.kept.append(array)
        for index, shape in enumerate(shapes):
            self.fill(array[index], shape)
        return self.make(
            "banking_partition",
            **{**PLAIN_PARTITION, "shapes": array, "shape_count": len(shapes), **fields},
        )

    def submission(self, **fields: Any) -> Any:
        return self.make("banking_submission", **{**UNSET, **fields})

    def update(self, **fields: Any) -> Any:
        update = self.make("banking_update", **fields)
        self.fill(update.wanted, UNSET)
        return update


def partition(
    shapes: Tuple[Dict[str, Any], ...] = (), complaints: Optional[List[str]] = None, **fields: Any
) -> Partition:
    heard: List[str] = [] if complaints is None else complaints
    return convert.partition(FFI, Structs().partition(shapes, name="p", **fields), heard.append)


def submission(**fields: Any) -> Any:
    structs = Structs()
    return convert.submission(FFI, structs.submission(**fields), "c")


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("", ()),
        ("gpu", (("", 1),)),
        ("gpu:4", (("", 4),)),
        ("gpu:a100", (("a100", 1),)),
        ("gpu:a100:4", (("a100", 4),)),
        ("gpu:A100:4(S:0-1)", (("a100", 4),)),
        ("gpu:a100:4(S:0,2),gpu:t4:2(S:1,3)", (("a100", 4), ("t4", 2))),
        ("gpu:a100:4(S:0-1),gpu:t4:2,craynetwork:4", (("a100", 4), ("t4", 2))),
        ("craynetwork:4,gpu:2", (("", 2),)),
        ("gpu:a100:2,gpu:a100:1,gpu:3", (("", 3), ("a100", 3))),
        ("gpu:1g.10gb:7", (("1g.10gb", 7),)),
        ("gpu:2K", (("", 2048),)),
        ("gpu:t4:1k", (("t4", 1024),)),
        ("gpu:0", ()),
        ("gpu:tesla:no_consume:2", (("tesla", 2),)),
        ("shard:gpu:8,mps:400,gpux:3,nic", ()),
        ("gpu(S:0)", (("", 1),)),
    ],
)
def test_gpus_are_read_as_slurm_reads_them(gres: str, gpus: Tuple[Tuple[str, int], ...]) -> None:
    complaints: List[str] = []
    assert convert.gpus(gres, complaints.append) == gpus
    assert complaints == []


def test_a_count_that_cannot_be_read_is_left_out_and_told() -> None:
    complaints: List[str] = []
    assert convert.gpus("gpu:a100:4x,gpu:t4:2", complaints.append) == (("t4", 2),)
    assert complaints == ["gres_unread text='gpu:a100:4x'"]


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("CPU=1.0", {"cpu": "1"}),
        ("CPU=1.0,Mem=0.25G,GRES/gpu=2.0", {"cpu": "1", "mem": "0.25", "gres/gpu": "2"}),
        ("mem=0.25", {"mem": "256"}),  # no suffix: per MB
        ("Mem=0.25M", {"mem": "256"}),
        ("Mem=1K", {"mem": "1024"}),  # a unit below the base changes nothing
        ("Mem=1T", {"mem": "0.0009765625"}),
        ("Mem=2g", {"mem": "2"}),
        ("CPU=1K", {"cpu": "0.0009765625"}),
        ("gres/gpu:A100=2.5,node=.5", {"gres/gpu:a100": "2.5", "node": "0.5"}),
        ("license/matlab=1e1", {"license/matlab": "10"}),
        ("CPU=1,CPU=3", {"cpu": "3"}),
        ("bb/x=1G", {"bb/x": "0.0009765625"}),
    ],
)
def test_billing_weights_are_read_as_slurm_reads_them(text: str, weights: Dict[str, str]) -> None:
    expected = {name: Decimal(weight) for name, weight in weights.items()}
    assert convert.billing_weights(text) == expected


@pytest.mark.parametrize("text", ["CPU", "CPU=", "CPU=x", "=1", "CPU=1,Mem=1Z", "CPU=nan"])
def test_weights_that_cannot_be_read_are_none_at_all_and_told(text: str) -> None:
    complaints: List[str] = []
    assert convert.billing_weights(text, complaints.append) is None
    assert complaints == [f"billing_weights_unread text={text!r}"]


@given(st.text(alphabet="gpu:,()SK0123456789x.=/em ", max_size=60))
def test_no_text_of_slurms_ever_raises(text: str) -> None:
    convert.gpus(text)
    convert.billing_weights(text)
    convert.allocated(text, cpus=1, nodes=1)


def test_a_partition_is_converted_whole() -> None:
    shape: Dict[str, Any] = {
        **{"count": 3, "cpus": 64, "sockets": 2, "cores": 16, "threads": 2, "core_spec": 1},
        **{"memory_mb": 256000, "memory_spec_mb": 4000, "gres": "gpu:a100:4(S:0-1)"},
    }
    facts: Dict[str, Any] = {
        **{"default_time_min": 60, "max_time_min": 2880, "exclusive": 1, "unit": 2},
        **{"max_cpus_per_node": 32, "max_nodes": 8, "total_cpus": 192, "total_nodes": 3},
        **{"one_task_per_core": 1, "def_mem_per_cpu": 2000 | MEM_PER_CPU, "max_mem_per_cpu": 9000},
        **{"def_cpu_per_gpu": 8, "def_mem_per_gpu": 16000},
        **{"billing_weights": "CPU=2", "billing_max": 1, "slurm_version": 24 << 16 | 11 << 8 | 5},
    }
    assert partition((shape,), **facts) == Partition(
        name="p",
        default_time_min=60,
        max_time_min=2880,
        exclusive=True,
        max_cpus_per_node=32,
        total_cpus=192,
        total_nodes=3,
        max_nodes=8,
        shapes=(
            NodeShape(
                count=3,
                cpus=64,
                sockets=2,
                cores=16,
                threads=2,
                core_spec=1,
                memory_mb=256000,
                memory_spec_mb=4000,
                gpus=(("a100", 4),),
            ),
        ),
        unit="socket",
        memory_tracked=True,
        one_task_per_core=True,
        def_mem_mb=2000,
        def_mem_per_cpu=True,
        max_mem_mb=9000,
        max_mem_per_cpu=False,
        def_cpus_per_gpu=8,
        def_mem_per_gpu_mb=16000,
        billing_weights={"cpu": Decimal(2)},
        billing_max=True,
        release=(24, 11),
    )


def test_what_a_partition_does_not_set_is_none() -> None:
    plain = partition()
    assert (plain.max_cpus_per_node, plain.max_nodes, plain.max_time_min) == (None, None, UNLIMITED)
    assert (plain.def_mem_mb, plain.max_mem_mb, plain.shapes) == (None, None, ())
    assert (plain.def_cpus_per_gpu, plain.def_mem_per_gpu_mb) == (None, None)
    assert (plain.billing_weights, plain.billing_max, plain.unit) == (None, False, "core")
    unlimited = partition(def_mem_per_cpu=INFINITE64, max_mem_per_cpu=NO_VAL64)
    assert (unlimited.def_mem_mb, unlimited.max_mem_mb) == (None, None)


@pytest.mark.parametrize(("unit", "name"), list(enumerate(("cpu", "core", "socket", "node"))))
def test_units_have_the_names_that_the_header_gives_them(unit: int, name: str) -> None:
    lines = (CSRC / "banking.h").read_text(encoding="utf-8").splitlines()
    assert f"#define BANKING_UNIT_{name.upper()} {unit}" in lines
    assert partition(unit=unit).unit == name


def test_a_partition_that_is_not_there_is_a_name() -> None:
    assert partition(found=0) == Partition(name="p", found=False)


def test_a_generation_is_converted_once() -> None:
    first = partition(generation=71, max_time_min=10)
    assert partition(generation=71, max_time_min=20) is first
    assert partition(generation=72, max_time_min=20).max_time_min == 20
    assert partition(max_time_min=30).max_time_min == 30  # 0 is no generation


def test_old_generations_are_forgotten() -> None:
    for generation in range(10_000, 13_000):
        partition(generation=generation)
    assert len(convert._partitions) <= 1024


def test_how_tasks_are_laid_out_is_converted() -> None:
    sub = submission(
        **{"ntasks_per_node": 4, "ntasks_per_socket": 2, "ntasks_per_core": 1, "pn_min_cpus": 6},
        **{"ntasks_per_tres": 3, "sockets_per_node": 2, "cores_per_socket": 8},
        **{"threads_per_core": 1, "cpus_per_tres": "gres/gpu:4", "mem_per_tres": "gres/gpu:4096"},
    )
    assert (sub.ntasks_per_node, sub.ntasks_per_socket, sub.ntasks_per_core) == (4, 2, 1)
    assert (sub.ntasks_per_tres, sub.sockets_per_node, sub.cores_per_socket) == (3, 2, 8)
    assert (sub.threads_per_core, sub.pn_min_cpus) == (1, 6)
    assert (sub.cpus_per_tres, sub.mem_per_tres) == ("gres/gpu:4", "gres/gpu:4096")


@pytest.mark.parametrize("unset", [NO_VAL16, INFINITE16, 0])
def test_a_layout_that_is_not_given_is_none(unset: int) -> None:
    names = [
        *("ntasks_per_node", "ntasks_per_socket", "ntasks_per_core", "ntasks_per_tres"),
        *("sockets_per_node", "cores_per_socket", "threads_per_core", "pn_min_cpus"),
    ]
    sub = submission(**{name: unset for name in names})
    assert {getattr(sub, name) for name in names} == {None}


@pytest.mark.parametrize(
    ("raw", "core_spec", "thread_spec"),
    [(NO_VAL16, None, False), (INFINITE16, None, False), (0, 0, False), (2, 2, False)]
    + [(0x8000 | 3, 3, True)],
)
def test_specialised_cores_and_threads_are_told_apart(
    raw: int, core_spec: Optional[int], thread_spec: bool
) -> None:
    sub = submission(core_spec=raw)
    assert (sub.core_spec, sub.thread_spec) == (core_spec, thread_spec)


@pytest.mark.parametrize(
    ("raw", "memory_mb", "per_cpu"),
    [(NO_VAL64, None, False), (0, 0, False), (4000, 4000, False)]
    + [(500 | MEM_PER_CPU, 500, True), (MEM_PER_CPU, 0, True)],
)
def test_memory_is_per_node_or_per_cpu(raw: int, memory_mb: Optional[int], per_cpu: bool) -> None:
    sub = submission(pn_min_memory=raw)
    assert (sub.memory_mb, sub.memory_per_cpu) == (memory_mb, per_cpu)


HAS = "cpu=8,mem=4000M,node=2,billing=10,gres/gpu=4,gres/gpu:a100=3,license/matlab=1,energy=5"
TRES = Tres(cpus=8, memory_mb=4000, nodes=2, gpus=(("", 1), ("a100", 3)), billing=10)


def run(complaints: Optional[List[str]] = None, **fields: Any) -> Any:
    fields = {
        **{"nodes": "n[1-2]", "tres_alloc": HAS, "total_cpus": 8, "node_count": 2},
        **{"start_time": 1000, "end_time": 2000, "job_state": 3, "array_task_id": NO_VAL},
        **fields,
    }
    heard: List[str] = [] if complaints is None else complaints
    structs = Structs()
    struct = structs.make("banking_run", **fields)
    return convert.run(FFI, struct, "c", ended=True, complain=heard.append)


def test_what_a_run_had_is_read_exactly() -> None:
    assert run().tres == TRES
    assert (run().cpus, run().node_count, run().cancelled_by_admin) == (8, 2, False)
    assert run(job_state=4, cancelled_by_admin=1).cancelled_by_admin is True


@pytest.mark.parametrize("tres", ["", "nonsense", "cpu=NONE,node=2", "node=2,mem=4000M"])
def test_a_run_whose_resources_are_not_told_has_its_cpus_and_nodes(tres: str) -> None:
    complaints: List[str] = []
    assert run(complaints, tres_alloc=tres).tres == Tres(cpus=8, nodes=2)
    unread = tres in ("nonsense", "cpu=NONE,node=2")
    assert [line.split()[0] for line in complaints] == ["tres_unread"] * unread


def test_a_run_that_never_started_had_nothing() -> None:
    assert run(nodes=FFI.NULL, tres_alloc=FFI.NULL).tres == Tres()


def update(**fields: Any) -> Any:
    structs = Structs()
    return convert.job_update(FFI, structs.update(**fields), "c")


@pytest.mark.parametrize("state", [1, 2])
def test_an_update_of_a_started_job_has_what_it_has(state: int) -> None:
    started = update(job_state=state, total_cpus=8, tres_alloc=HAS)
    assert (started.running, started.tres) == (True, TRES)
    untold = update(job_state=state, total_cpus=8)
    assert untold.tres == Tres(cpus=8, nodes=1)


def test_an_update_of_a_waiting_job_has_nothing() -> None:
    waiting = update(job_state=0)
    assert (waiting.running, waiting.tres) == (False, Tres())
