# SPDX-License-Identifier: BSD-3-Clause
"""Tables, times and amounts as people read and type them."""

from __future__ import annotations

import time

import pytest

from slurm_banking.cli import text

NOW = int(time.mktime((2026, 11, 21, 9, 30, 0, 0, 0, -1)))


def test_columns_are_aligned_and_no_line_ends_in_blanks() -> None:
    lines = text.table(["NAME", "SU", ""], [["a", "1.00", "x"], ["long name", "100.00", ""]], "lr")
    assert lines == ["NAME           SU", "a            1.00  x", "long name  100.00"]


def test_what_moves_the_cursor_is_not_printed() -> None:
    assert text.table(["JOB"], [["a\x1b[2J\nb"]])[1] == "a?[2J?b"


def test_amounts_have_two_decimals() -> None:
    assert [text.su(csu) for csu in (0, 5, -5, 123456, None)] == [
        "0.00",
        "0.05",
        "-0.05",
        "1234.56",
        "-",
    ]


def test_times_are_local_and_iso() -> None:
    assert text.local(NOW) == "2026-11-21T09:30:00"
    assert text.day(NOW) == "2026-11-21"
    assert text.local(None) == "-"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "00:00:00"), (3661, "01:01:01"), (90061, "1-01:01:01"), (-5, "00:00:00")],
)
def test_durations_are_written_as_slurm_does(seconds: int, shown: str) -> None:
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("typed", "means"),
    [
        ("now", NOW),
        ("today", NOW - 9 * 3600 - 1800),
        ("2026-11-21T09:30:00", NOW),
        ("2026-11-21 09:30", NOW),
        ("2026-11-21", NOW - 9 * 3600 - 1800),
        ("7d", NOW - 7 * 86400),
        ("now-7days", NOW - 7 * 86400),
        ("now+2hours", NOW + 7200),
        ("30m", NOW - 1800),
        ("2w", NOW - 14 * 86400),
    ],
)
def test_times_are_read_in_many_forms(typed: str, means: int) -> None:
    assert text.read_time(typed, NOW) == means


def test_a_span_counts_forward_where_the_future_is_meant() -> None:
    assert text.read_time("4h", NOW, future=True) == NOW + 4 * 3600


@pytest.mark.parametrize("typed", ["", "tomorrow", "2026-13-01", "7", "d", "1y", "99999999999d"])
def test_other_times_say_what_was_expected(typed: str) -> None:
    with pytest.raises(ValueError, match="expected a time such as 2026-11-21"):
        text.read_time(typed, NOW)


def test_how_long_ago_is_told_in_a_fitting_unit() -> None:
    shown = [text.ago(NOW - past, NOW) for past in (5, 600, 3 * 3600, 5 * 86400, -10)]
    assert shown == ["5 s ago", "10 min ago", "3 h ago", "5 days ago", "0 s ago"]
