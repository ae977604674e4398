# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_banking.amounts import charge_csu, format_su, lien_csu, parse_su, share_csu, to_su

PRICES = st.decimals(min_value=0, max_value=1_000_000, places=10)
UNITS = st.integers(min_value=0, max_value=2**32)
SECONDS = st.integers(min_value=0, max_value=2**32 * 60)


def exact_csu(price_su: Decimal, units: int, seconds: int) -> Fraction:
    return Fraction(price_su) * units * seconds * 100 / 3600


@given(PRICES, UNITS, SECONDS)
def test_a_lien_is_the_exact_cost_rounded_up(price_su: Decimal, units: int, seconds: int) -> None:
    exact = exact_csu(price_su, units, seconds)
    assert lien_csu(price_su, units, seconds) == -(-exact.numerator // exact.denominator)


@given(PRICES, UNITS, SECONDS)
def test_a_charge_is_the_exact_cost_rounded_half_up(
    price_su: Decimal, units: int, seconds: int
) -> None:
    exact = exact_csu(price_su, units, seconds)
    assert charge_csu(price_su, units, seconds) == (exact + Fraction(1, 2)).__floor__()


@given(PRICES, UNITS, SECONDS, st.integers(min_value=1, max_value=4_000_001))
def test_a_lien_of_an_array_is_the_sum_of_its_tasks(
    price_su: Decimal, units: int, seconds: int, count: int
) -> None:
    assert lien_csu(price_su, units, seconds, count) == count * lien_csu(price_su, units, seconds)


@given(PRICES, UNITS, SECONDS, st.integers(min_value=2, max_value=9))
def test_splitting_a_run_changes_the_charge_by_at_most_a_hundredth_per_part(
    price_su: Decimal, units: int, seconds: int, parts: int
) -> None:
    share, rest = divmod(seconds, parts)
    split = sum(charge_csu(price_su, units, share + (part < rest)) for part in range(parts))
    assert abs(split - charge_csu(price_su, units, seconds)) <= parts


@given(st.integers(0, 2**60), st.decimals(min_value=0, max_value=1, places=10))
def test_a_share_is_rounded_up_and_never_more_than_the_whole(cost: int, share: Decimal) -> None:
    exact = Fraction(share) * cost
    assert share_csu(cost, share) == -(-exact.numerator // exact.denominator) <= cost


def test_half_a_hundredth_is_charged_as_one() -> None:
    assert charge_csu(Decimal(1), 1, 18) == 1  # 18 s of 1 SU/h are 0.005 SU
    assert charge_csu(Decimal(1), 1, 17) == 0
    assert lien_csu(Decimal(1), 1, 1) == 1


@given(st.integers(min_value=-(10**12), max_value=10**12))
def test_what_is_written_is_read_back(csu: int) -> None:
    assert parse_su(format_su(csu)) == csu
    assert parse_su(str(to_su(csu))) == csu


@pytest.mark.parametrize(
    ("text", "csu"),
    [("1", 100), (" 1.5 ", 150), ("1e3", 100_000), ("10.000", 1000), ("-0.01", -1), ("0", 0)],
)
def test_plain_and_scientific_notation_are_read(text: str, csu: int) -> None:
    assert parse_su(text) == csu


@pytest.mark.parametrize(
    "text", ["", "abc", "NaN", "Infinity", "-inf", "0.001", "1e-3", "1e60", "1,5"]
)
def test_what_is_not_hundredths_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_su(text)
