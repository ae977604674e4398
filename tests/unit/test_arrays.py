# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import itertools
import time
from typing import List, Set, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_banking.arrays import MAX_EXPRESSION_CHARS, MAX_HINT_CHARS, first_tasks, parse_array


def naive(pieces: List[Tuple[int, int, int]]) -> Set[int]:
    return {task for first, last, step in pieces for task in range(first, last + 1, step)}


def written(first: int, last: int, step: int, form: int) -> str:
    if first == last and form % 2:
        return str(first)
    return f"{first}-{last}" if step == 1 and form % 3 else f"{first}-{last}:{step}"


PIECE = st.tuples(st.integers(0, 120), st.integers(0, 60), st.integers(1, 9)).map(
    lambda p: (p[0], p[0] + p[1], p[2])
)


@given(st.lists(st.tuples(PIECE, st.integers(0, 5)), min_size=1, max_size=12))
def test_an_expression_counts_and_yields_what_its_expansion_does(
    parts: List[Tuple[Tuple[int, int, int], int]],
) -> None:
    spec = parse_array(",".join(written(*piece, form) for piece, form in parts))
    expected = naive([piece for piece, _ in parts])
    assert spec.count == len(expected)
    assert list(spec) == sorted(expected)


@pytest.mark.parametrize(
    ("expression", "ids", "throttle"),
    [
        ("0-15:4%3", [0, 4, 8, 12], 3),
        ("1,3,5-7", [1, 3, 5, 6, 7], None),
        ("5", [5], None),
        ("1-3%0", [1, 2, 3], None),
        ("[1-3]", [1, 2, 3], None),
        ("[1-3]%2", [1, 2, 3], 2),
        ("1%2,3", [1, 3], 2),
        ("1,,2,", [1, 2], None),
        ("0-10:20", [0], None),
        ("3,3,3", [3], None),
        ("007", [7], None),
    ],
)
def test_what_slurm_accepts_is_read_as_slurm_reads_it(
    expression: str, ids: List[int], throttle: int
) -> None:
    spec = parse_array(expression)
    assert list(spec) == ids
    assert spec.count == len(ids)
    assert spec.throttle == throttle


@pytest.mark.parametrize(
    "expression",
    [
        "",
        ",",
        "a",
        "1-",
        "-1",
        "5-3",
        "1-5:0",
        "1-5:",
        "1--5",
        "1-5:2:3",
        "1;2",
        "1%x",
        "0x10",
        "١",
        "²",
        "1.5",
        "4000001",
    ]
    + ["0-4000001", "1-2:4000001", "99999999999", "1" * (MAX_EXPRESSION_CHARS + 1)],
)
def test_nonsense_is_refused(expression: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_array(expression)
    assert len(str(caught.value)) < 200


@given(st.text(alphabet="0123456789-:,%[] x", max_size=30))
def test_any_text_is_read_or_refused(expression: str) -> None:
    try:
        spec = parse_array(expression)
    except ValueError:
        return
    assert spec.count == sum(1 for _ in itertools.islice(spec, 1000)) or spec.count > 1000


def test_the_largest_array_is_counted_without_being_expanded() -> None:
    spec = parse_array("0-4000000,0-4000000:2,0-4000000:3")
    assert spec.count == 4_000_001
    assert list(itertools.islice(spec, 3)) == [0, 1, 2]


@pytest.mark.parametrize(
    "expression",
    [
        ",".join(["0-4000000"] * 20_000),
        ",".join(["0-4000000:2"] * 20_000),
        ",".join(f"{n}-4000000:{n + 2}" for n in range(10_000)),
        ",".join(f"0-{4_000_000 - n}:{n + 2}" for n in range(1000)),
        "1," * 100_000,
    ],
)
def test_a_hostile_expression_costs_little(expression: str) -> None:
    began = time.process_time()
    try:
        parse_array(expression)
    except ValueError:
        pass
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("expression", "count", "text"),
    [
        ("1-100", 31, "1-31"),
        ("1-100%5", 31, "1-31%5"),
        ("0-15:4%3", 2, "0-4:4%3"),
        ("0-15:4", 1, "0"),
        ("5", 1, "5"),
        ("1,3,5-9", 4, "1,3,5-6"),
        ("7-9,1-2", 3, "1-2,7"),
        ("0-3999999", 10, "0-9"),
        ("1-9:2,2", 2, None),
        ("1-2", 3, None),
        ("1-x", 1, None),
        (",".join(str(3 * n) for n in range(1000)), 900, None),
    ],
)
def test_the_first_tasks_are_written_as_an_expression(
    expression: str, count: int, text: str
) -> None:
    assert first_tasks(expression, count) == text


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.integers(1, 30))
def test_the_first_tasks_are_the_first(numbers: List[int], count: int) -> None:
    expression = ",".join(map(str, numbers))
    found = first_tasks(expression, count)
    if found is not None:
        assert list(parse_array(found)) == sorted(set(numbers))[:count]
        assert len(found) <= MAX_HINT_CHARS
    else:
        assert len(set(numbers)) < count or len(expression) > MAX_HINT_CHARS // 3
