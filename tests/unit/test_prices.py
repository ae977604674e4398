# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Dict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slurm_banking.prices import CANCELLED_BY_ADMIN, PriceList, Rates
from slurm_banking.tres import UNTYPED, Tres, parse_tres
from tests.prices import GPU_TYPES, MULTIPLIERS, PRICES, RATES, TRES

NAMES = st.text(alphabet="abcxyz_-.19", min_size=1, max_size=4)
NUMBERS = st.decimals(min_value=0, max_value=1000, places=4)
TABLES = st.dictionaries(NAMES, NUMBERS, max_size=5)


def prices() -> PriceList:
    return PriceList.of_cpus(
        {"normal": Decimal("1.20"), "free": Decimal(0)},
        {"LowPrio": Decimal(0), "fast": Decimal("2.5")},
    )


#: A GPU node's: CPUs, memory, GPUs of three kinds.
GPU = Rates(
    cpu=Decimal(1),
    mem_gb=Decimal("0.125"),
    gpu={"a100": Decimal(40), "t4": Decimal(10)},
)


def su_per_hour(qos: str | None, cpus: int = 1) -> Decimal:
    price = prices().price("normal", qos)
    assert price is not None
    return price.su_per_hour(Tres(cpus=cpus))


def test_a_price_is_the_partitions_times_the_qos_multiplier() -> None:
    assert su_per_hour("fast", cpus=3) == Decimal("9.0")


def test_an_unlisted_partition_has_no_price() -> None:
    assert prices().price("other", None) is None
    assert prices().price("Normal", None) is None  # Slurm tells upper from lower case in partitions


@pytest.mark.parametrize("qos", [None, "", "other"])
def test_an_unlisted_qos_changes_nothing(qos: str | None) -> None:
    assert su_per_hour(qos) == Decimal("1.20")


@pytest.mark.parametrize("qos", ["lowprio", "LOWPRIO"])
def test_a_multiplier_of_zero_makes_a_qos_free_however_it_is_written(qos: str) -> None:
    price = prices().price("normal", qos)
    assert price is not None and price.free
    assert su_per_hour(qos, cpus=100) == 0


def test_of_several_qos_the_dearest_counts() -> None:
    assert su_per_hour("lowprio,fast") == Decimal("3.0")


def test_cpus_memory_and_gpus_are_added() -> None:
    tres = parse_tres("cpu=8,mem=16384M,node=1,gres/gpu=2,gres/gpu:a100=2")
    assert GPU.su_per_hour(tres) == 8 + 2 + 80


def test_or_the_dearest_of_them_counts() -> None:
    tres = parse_tres("cpu=8,mem=163840M,node=1")
    assert replace(GPU, combine="max").su_per_hour(tres) == 20
    assert replace(GPU, combine="max").su_per_hour(replace(tres, cpus=21)) == 21


@pytest.mark.parametrize(
    ("gpu", "of", "expected"),
    [
        ({"a100": 40, "t4": 10}, "a100", 40),
        ({"a100": 40, "t4": 10}, "v100", 0),  # not listed
        ({"a100": 40, "t4": 10}, UNTYPED, 40),  # Slurm does not tell: the dearest
        ({"a100": 40, UNTYPED: 5}, "v100", 5),
        ({"a100": 40, UNTYPED: 5}, UNTYPED, 5),
        ({"a100": 0, UNTYPED: 5}, "a100", 0),
        ({}, UNTYPED, 0),
    ],
)
def test_a_gpu_costs_what_its_type_does(gpu: Dict[str, int], of: str, expected: int) -> None:
    rates = Rates(gpu={kind: Decimal(su) for kind, su in gpu.items()})
    assert rates.su_per_hour(Tres(cpus=1, gpus=((of, 1),))) == expected


def test_nodes_and_slurms_own_billing_can_be_priced() -> None:
    tres = parse_tres("cpu=48,mem=1G,node=2,billing=53")
    assert Rates(node=Decimal(48)).su_per_hour(tres) == 96
    assert Rates(billing=Decimal("0.5")).su_per_hour(tres) == Decimal("26.5")


@given(TRES, RATES)
def test_an_hour_is_exactly_the_sum_or_the_dearest_of_its_parts(tres: Tres, rates: Rates) -> None:
    parts = [
        Fraction(rates.cpu) * tres.cpus,
        Fraction(rates.mem_gb) * tres.memory_mb / 1024,
        Fraction(rates.node) * tres.nodes,
        Fraction(rates.billing) * tres.billing,
        *(Fraction(rates.of_gpu(kind)) * count for kind, count in tres.gpus),
    ]
    expected = sum(parts) if rates.combine == "sum" else max(parts)
    assert Fraction(rates.su_per_hour(tres)) == expected


@given(TRES, RATES, st.sampled_from(["cpus", "memory_mb", "nodes", "billing", *GPU_TYPES]))
def test_more_of_a_resource_never_costs_less(tres: Tres, rates: Rates, what: str) -> None:
    if what in GPU_TYPES:
        gpus = dict(tres.gpus)
        gpus[what] = gpus.get(what, 0) + 1
        more = replace(tres, gpus=tuple(sorted(gpus.items())))
    else:
        more = replace(tres, **{what: getattr(tres, what) + 1})
    assert rates.su_per_hour(more) >= rates.su_per_hour(tres)


@given(RATES, MULTIPLIERS)
def test_what_is_called_free_costs_nothing_and_nothing_else_does(
    rates: Rates, multiplier: Decimal
) -> None:
    price = PriceList(partitions={"p": rates}, qos_multiplier={"q": multiplier}).price("p", "q")
    assert price is not None
    kinds = tuple((kind, 1) for kind in GPU_TYPES)
    everything = Tres(cpus=1, memory_mb=1, nodes=1, billing=1, gpus=kinds)
    assert price.free == (price.su_per_hour(everything) == 0) or not rates.free


@given(TABLES, TABLES)
def test_the_version_depends_on_the_numbers_alone(
    partitions: Dict[str, Decimal], qos: Dict[str, Decimal]
) -> None:
    version = PriceList.of_cpus(partitions, qos).version
    backwards = {
        name: number + Decimal("0E-9") for name, number in reversed(list(partitions.items()))
    }
    assert PriceList.of_cpus(backwards, qos).version == version
    assert len(version) == 10 and int(version, 16) >= 0


@given(TABLES.filter(bool), st.data())
def test_the_version_changes_with_any_number(
    partitions: Dict[str, Decimal], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(partitions)))
    changed = {**partitions, name: partitions[name] + Decimal("0.0001")}
    assert PriceList.of_cpus(changed).version != PriceList.of_cpus(partitions).version
    assert PriceList.of_cpus({}, partitions).version != PriceList.of_cpus(partitions).version


@pytest.mark.parametrize(
    "change",
    [
        dict(cpu=Decimal(2)),
        dict(mem_gb=Decimal("0.25")),
        dict(node=Decimal(1)),
        dict(billing=Decimal(1)),
        dict(gpu={"a100": Decimal(41), "t4": Decimal(10)}),
        dict(gpu={"a100": Decimal(40), "t4": Decimal(10), UNTYPED: Decimal(1)}),
        dict(combine="max"),
    ],
)
def test_the_version_changes_with_any_price_of_a_resource(change: Dict[str, object]) -> None:
    changed = replace(GPU, **change)  # type: ignore[arg-type]
    assert PriceList(partitions={"g": changed}).version != PriceList(partitions={"g": GPU}).version


def test_the_version_changes_with_what_a_state_is_charged() -> None:
    base = PriceList(partitions={})
    assert PriceList(partitions={}, state_factor={"NODE_FAIL": Decimal(1)}).version != base.version
    assert PriceList(partitions={}, state_factor={"NODE_FAIL": Decimal(0)}).version == base.version


@given(PRICES)
def test_tables_are_read_back_as_they_were(found: PriceList) -> None:
    back = PriceList.from_tables(json.loads(json.dumps(found.tables())))
    assert back.version == found.version
    assert back.tables() == found.tables()
    assert dict(back.qos_multiplier) == dict(found.qos_multiplier)
    assert dict(back.state_factor) == dict(found.state_factor)


@example(
    PriceList(
        partitions={"g": Rates(node=Decimal(1), gpu={UNTYPED: Decimal(0), "t4": Decimal(9)})}
    ),
    Tres(cpus=1, gpus=((UNTYPED, 1),)),
)
@given(PRICES, TRES)
def test_tables_read_back_price_the_same(found: PriceList, tres: Tres) -> None:
    back = PriceList.from_tables(json.loads(json.dumps(found.tables())))
    for name, rates in found.partitions.items():
        assert back.partitions[name].su_per_hour(tres) == rates.su_per_hour(tres)


def test_the_systems_faults_cost_nothing_unless_the_site_says_so() -> None:
    found = PriceList(partitions={}, state_factor={"PREEMPTED": Decimal("0.5")})
    assert [
        found.factor(state)
        for state in (
            "NODE_FAIL",
            "BOOT_FAIL",
            CANCELLED_BY_ADMIN,
            "PREEMPTED",
            "COMPLETED",
            "FAILED",
        )
    ] == [0, 0, 0, Decimal("0.5"), 1, 1]


def test_the_version_is_the_same_in_every_process() -> None:
    code = (
        "from decimal import Decimal; from slurm_banking.prices import PriceList; "
        "print(PriceList.of_cpus({'normal': Decimal('1.20'), 'free': Decimal(0)}, "
        "{'LowPrio': Decimal(0), 'fast': Decimal('2.5')}).version)"
    )
    for seed in ("1", "2"):
        answer = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            stdout=-1,
            check=True,
        )
        assert answer.stdout.decode().strip() == prices().version == "ad42101ad0"
