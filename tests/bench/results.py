# SPDX-License-Identifier: BSD-3-Clause
"""What was measured, beside its budget: rows for the table and for the file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.intervals import Estimate, within


class CannotMeasure(Exception):
    """A measurement could not be made; one line with why."""


@dataclass(frozen=True, kw_only=True)
class Row:
    what: str
    estimate: Estimate
    unit: str  #: "" for a ratio
    most: float | None = None  #: budget; at most one of the two
    least: float | None = None
    note: str = ""

    @property
    def within(self) -> str:
        """ "": there is no budget for it."""
        if self.most is None and self.least is None:
            return ""
        return within(self.estimate, most=self.most, least=self.least)

    @property
    def measured(self) -> str:
        value, low, high = self.estimate.value, self.estimate.low, self.estimate.high
        text = number(value) + (f" {self.unit}" if self.unit else "")
        return text if low == high else f"{text} [{number(low)}, {number(high)}]"

    @property
    def budget(self) -> str:
        bound = self.most if self.most is not None else self.least
        if bound is None:
            return ""
        sign = "≤" if self.most is not None else "≥"
        return f"{sign} {bound:g}" + (f" {self.unit}" if self.unit else "")

    def as_json(self) -> dict[str, Any]:
        """``met``: whether all of the interval is inside the budget; None if there is no budget."""
        budget = self.most if self.most is not None else self.least
        bound = None if budget is None else "at most" if self.most is not None else "at least"
        return {
            "name": self.what,
            "figure": self.estimate.value,
            "unit": self.unit,
            "bound": bound,
            "budget": budget,
            "met": None if budget is None else self.within == "yes",
            "within": self.within or None,
            "interval": [self.estimate.low, self.estimate.high],
            "count": self.estimate.count,
            "note": self.note,
        }


@dataclass(frozen=True, kw_only=True)
class Sides:
    """A table of its own: the same figures in several states, side by side."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, list[str]], ...]

    def __str__(self) -> str:
        return f"{self.title}\n\n" + _columns(
            [("", *self.columns), *((name, *cells) for name, cells in self.lines)]
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "lines": {
                name: dict(zip(self.columns, cells, strict=True)) for name, cells in self.lines
            },
        }


def exact(value: float, count: int = 1) -> Estimate:
    """A number that is a fact of this run (memory, a maximum), without an interval."""
    return Estimate(value=value, low=value, high=value, count=count)


def number(value: float) -> str:
    """Three significant digits, thousands whole."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(rows: Sequence[Row]) -> str:
    """What, measured with its 95 % interval, budget, within."""
    cells = [("what", "measured [95 % interval]", "budget", "within")]
    cells += [(row.what, row.measured, row.budget, row.within) for row in rows]
    notes = [f"{row.what}: {row.note}" for row in rows if row.note]
    return "\n".join([_columns(cells)] + ([""] + notes if notes else []))


def _columns(cells: Sequence[Sequence[str]]) -> str:
    """Text in columns; the first line is their heading."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


class Progress:
    """One line to stderr for each thing that begins."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"[{time.monotonic() - self._begun:4.0f} s] {line}", file=sys.stderr, flush=True)


Tell = Callable[[str], None]
