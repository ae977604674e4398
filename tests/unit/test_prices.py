# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from typing import Dict

from hypothesis import given
from hypothesis import strategies as st

from slurm_banking.prices import PriceList

NUMBERS = st.decimals(min_value=0, max_value=1000, places=4)
TABLES = st.dictionaries(
    st.text(alphabet="abcxyz_-.19", min_size=1, max_size=4), NUMBERS, max_size=5
)


def prices() -> PriceList:
    return PriceList(
        partition_su={"normal": Decimal("1.20"), "free": Decimal(0)},
        qos_multiplier={"LowPrio": Decimal(0), "fast": Decimal("2.5")},
    )


def test_a_price_is_the_partitions_times_the_qos_multiplier() -> None:
    price = prices().price("normal", "fast")
    assert price is not None
    assert price.su == Decimal("3.0")
    assert (price.partition_su, price.qos_multiplier) == (Decimal("1.20"), Decimal("2.5"))


def test_an_unlisted_partition_has_no_price() -> None:
    assert prices().price("other", None) is None
    assert prices().price("Normal", None) is None  # Slurm tells upper from lower case in partitions


def test_an_unlisted_qos_changes_nothing() -> None:
    for qos in (None, "", "other"):
        price = prices().price("normal", qos)
        assert price is not None and price.su == Decimal("1.20")


def test_a_multiplier_of_zero_makes_a_qos_free_however_it_is_written() -> None:
    for qos in ("lowprio", "LOWPRIO"):
        price = prices().price("normal", qos)
        assert price is not None and price.free


def test_of_several_qos_the_dearest_counts() -> None:
    price = prices().price("normal", "lowprio,fast")
    assert price is not None and price.su == Decimal("3.0")


@given(TABLES, TABLES)
def test_the_version_depends_on_the_numbers_alone(
    partitions: Dict[str, Decimal], qos: Dict[str, Decimal]
) -> None:
    version = PriceList(partition_su=partitions, qos_multiplier=qos).version
    backwards = {
        name: number + Decimal("0E-9") for name, number in reversed(list(partitions.items()))
    }
    assert PriceList(partition_su=backwards, qos_multiplier=qos).version == version
    assert len(version) == 10 and int(version, 16) >= 0


@given(TABLES.filter(bool), st.data())
def test_the_version_changes_with_any_number(
    partitions: Dict[str, Decimal], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(partitions)))
    changed = {**partitions, name: partitions[name] + Decimal("0.0001")}
    assert PriceList(partition_su=changed).version != PriceList(partition_su=partitions).version
    assert (
        PriceList(partition_su={}, qos_multiplier=partitions).version
        != PriceList(partition_su=partitions).version
    )


def test_the_version_is_the_same_in_every_process() -> None:
    code = (
        "from decimal import Decimal; from slurm_banking.prices import PriceList; "
        "print(PriceList({'normal': Decimal('1.20'), 'free': Decimal(0)}, "
        "{'LowPrio': Decimal(0), 'fast': Decimal('2.5')}).version)"
    )
    for seed in ("1", "2"):
        answer = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            stdout=-1,
            check=True,
        )
        assert answer.stdout.decode().strip() == prices().version == "529a0ff2e0"
