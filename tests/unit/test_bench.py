# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark's numbers: quantiles, ratios, and what it takes to be within a budget."""

from __future__ import annotations

import random

import pytest

from tests.bench.connections import of_program
from tests.bench.intervals import Estimate, mean, quantile, ratio, t_95, within
from tests.bench.results import Row, Sides, exact, number, table


def estimate(low: float, high: float) -> Estimate:
    return Estimate(value=(low + high) / 2, low=low, high=high, count=9)


def test_a_median_is_between_the_order_statistics_of_the_binomial_law() -> None:
    found = quantile(range(1, 101), 0.5)
    assert found.value == 50.5
    # A binomial(100, 1/2) is from 40 to 60 in more than 95 of 100 cases.
    assert (found.low, found.high) == (40, 61)
    assert found.count == 100


def test_a_quantile_is_a_sample_with_that_share_at_or_below_it() -> None:
    assert quantile(range(1, 1001), 0.99).value == 990
    assert quantile([7.0], 0.99) == Estimate(value=7.0, low=7.0, high=7.0, count=1)


def test_intervals_hold_the_true_value_about_as_often_as_they_say() -> None:
    draw = random.Random(20220508)
    medians = ratios = 0
    rounds = 400
    for _ in range(rounds):
        found = quantile([draw.expovariate(1) for _ in range(101)], 0.5)
        medians += found.low <= 0.693147 <= found.high
        pairs = []
        for _ in range(10):
            slow = draw.lognormvariate(0, 1)  # the machine, alike for both
            pairs.append(
                (1.1 * slow * draw.lognormvariate(0, 0.05), slow * draw.lognormvariate(0, 0.05))
            )
        of_pairs = ratio(pairs)
        ratios += of_pairs.low <= 1.1 <= of_pairs.high
    assert 0.92 * rounds <= medians
    assert 0.92 * rounds <= ratios <= 0.98 * rounds


def test_a_ratio_and_its_inverse_are_one_measurement() -> None:
    pairs = [(2.0, 1.0), (4.0, 2.5), (9.0, 4.0)]
    there, back = ratio(pairs), ratio([(b, a) for a, b in pairs])
    assert there.value == pytest.approx(1 / back.value)
    assert (there.low, there.high) == pytest.approx((1 / back.high, 1 / back.low))


def test_what_slows_both_sides_of_a_pair_does_not_change_the_ratio() -> None:
    calm = [(1.0, 2.0), (1.1, 2.0), (0.9, 2.1)]
    stormy = [(a * slow, b * slow) for (a, b), slow in zip(calm, (1, 5, 20), strict=True)]
    assert ratio(calm).value == pytest.approx(ratio(stormy).value)
    assert ratio(calm).high == pytest.approx(ratio(stormy).high)


def test_t_of_a_number_between_two_of_the_table_is_the_wider_one() -> None:
    assert t_95(11) == t_95(10) > t_95(12)
    assert t_95(1000) == 1.980
    with pytest.raises(ValueError):
        mean([1.0])


def test_within_means_the_whole_interval() -> None:
    assert [within(estimate(low, high), most=2) for low, high in ((1, 2), (1, 3), (3, 4))] == [
        "yes", "open", "no",
    ]  # fmt: skip
    assert [within(estimate(low, high), least=2) for low, high in ((2, 3), (1, 3), (0, 1))] == [
        "yes", "open", "no",
    ]  # fmt: skip


def test_the_table_shows_measured_budget_and_verdict() -> None:
    rows = [
        Row(what="fast", estimate=estimate(0.1, 0.2), unit="ms", most=0.3),
        Row(what="many", estimate=exact(1234567.0), unit="", note="counted"),
    ]
    lines = table(rows).splitlines()
    assert lines[2].split() == "fast 0.15 ms [0.1, 0.2] ≤ 0.3 ms yes".split()
    assert lines[3].split() == ["many", "1,234,567"]
    assert lines[-1] == "many: counted"
    assert (number(0.12345), number(299.6), number(-1.91)) == ("0.123", "300", "-1.91")


def test_a_row_of_the_file_has_figure_budget_and_whether_it_is_met() -> None:
    fast = Row(what="fast", estimate=estimate(0.1, 0.2), unit="ms", most=0.3).as_json()
    assert {key: fast[key] for key in ("name", "figure", "unit", "bound", "budget", "met")} == {
        "name": "fast",
        "figure": pytest.approx(0.15),
        "unit": "ms",
        "bound": "at most",
        "budget": 0.3,
        "met": True,
    }
    assert fast["interval"] == [0.1, 0.2]
    least = Row(what="many", estimate=estimate(280, 290), unit="/s", least=300).as_json()
    assert (least["bound"], least["budget"], least["met"]) == ("at least", 300, False)
    # A budget inside the interval is not shown to be met.
    unsure = Row(what="unsure", estimate=estimate(0.2, 0.4), unit="ms", most=0.35).as_json()
    assert (unsure["met"], unsure["within"]) == (False, "open")
    free = Row(what="free", estimate=exact(7), unit="").as_json()
    assert (free["budget"], free["met"], free["within"]) == (None, None, None)


def test_a_budget_of_nothing_at_all_is_a_budget() -> None:
    none, some = (Row(what="w", estimate=exact(value), unit="", most=0) for value in (0, 1))
    assert (none.within, none.as_json()["met"]) == ("yes", True)
    assert (some.within, some.as_json()["met"]) == ("no", False)


def test_states_stand_side_by_side() -> None:
    sides = Sides(title="The bank", columns=("well", "gone"), lines=(("median", ["0.1", "0.11"]),))
    assert [line.split() for line in str(sides).splitlines()] == [
        ["The", "bank"], [], ["well", "gone"], ["------", "----", "----"], ["median", "0.1", "0.11"],
    ]  # fmt: skip
    assert sides.as_json()["lines"] == {"median": {"well": "0.1", "gone": "0.11"}}


def test_connections_count_from_the_moment_a_process_is_the_program() -> None:
    trace = """\
10 connect(3, {sa_family=AF_UNIX}, 110) = 0
10 clone3({flags=CLONE_VM}, 88 <unfinished ...>
10 <... clone3 resumed>) = 11
11 execve("/usr/sbin/slurmstepd", ["slurmstepd"], 0x7 /* 3 vars */) = 0
11 connect(3, {sa_family=AF_INET}, 16) = 0
11 clone3({flags=CLONE_VM}, 88 <unfinished ...>
10 connect(4, {sa_family=AF_UNIX}, 110) = 0
11 <... clone3 resumed> => {parent_tid=[12]}, 88) = 12
12 connect(5, {sa_family=AF_INET}, 16) = -1 ECONNREFUSED
12 execve("/bin/true", ["true"], 0x7 /* 3 vars */) = 0
"""
    assert of_program(trace, "slurmstepd") == 2
    assert of_program(trace, "srun") == 0
