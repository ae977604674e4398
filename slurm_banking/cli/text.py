# SPDX-License-Identifier: BSD-3-Clause
"""Text for people: aligned tables, local times, amounts with two decimals; and the times that people type."""

from __future__ import annotations

import re
import time
from typing import List, Mapping, Optional, Sequence

from slurm_banking.amounts import format_su

_UNITS_S: Mapping[str, int] = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_RELATIVE = re.compile(
    r"(?P<now>now)?(?P<sign>[+-])?(?P<count>[0-9]{1,6})\s*"
    r"(?P<unit>m|h|d|w|minutes?|hours?|days?|weeks?)",
    re.IGNORECASE,
)
_FORMATS = (
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)


def su(csu: Optional[int], missing: str = "-") -> str:
    return missing if csu is None else format_su(csu)


def local(at: Optional[int], missing: str = "-") -> str:
    """A time as ISO 8601 in the time zone of the reader, to the second."""
    return missing if at is None else time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(at))


def day(at: Optional[int], missing: str = "-") -> str:
    return missing if at is None else time.strftime("%Y-%m-%d", time.localtime(at))


def duration(seconds: int) -> str:
    """As Slurm writes it: ``[D-]HH:MM:SS``."""
    days, rest = divmod(max(0, seconds), 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def minutes(limit: Optional[int]) -> str:
    if limit is None:
        return "-"
    return "UNLIMITED" if limit < 0 else duration(limit * 60)


def ago(at: int, now: int) -> str:
    """``12 s ago``, ``3 min ago``, ``5 h ago``, ``2 days ago``."""
    past = max(0, now - at)
    if past < 120:
        return f"{past} s ago"
    if past < 7200:
        return f"{past // 60} min ago"
    if past < 2 * 86400:
        return f"{past // 3600} h ago"
    return f"{past // 86400} days ago"


def jobs(count: int, what: str = "") -> str:
    noun = "job" if count == 1 else "jobs"
    return f"{count} {what} {noun}" if what else f"{count} {noun}"


def cpus(count: int) -> str:
    return f"{count} CPU" if count == 1 else f"{count} CPUs"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> List[str]:
    """Aligned columns, two spaces apart. ``right``: an "r" for each column that is aligned right, else anything."""
    cells = [list(head), *[[_plain(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = []
    for row in cells:
        parts = [
            cell.rjust(width) if right[index : index + 1] == "r" else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(parts).rstrip())
    return lines


def sums(rows: Sequence[Sequence[str]], indent: str = "  ") -> List[str]:
    """``label  amount  note`` under each other, the amounts at one edge."""
    label_width = max(len(row[0]) for row in rows)
    amount_width = max(len(row[1]) for row in rows)
    return [
        f"{indent}{row[0].ljust(label_width)}  {row[1].rjust(amount_width)}"
        + (f"  {row[2]}" if len(row) > 2 and row[2] else "")
        for row in rows
    ]


def _plain(text: str) -> str:
    """What a user may have put into a job's name must not move the reader's cursor."""
    shown = text if len(text) <= 60 else text[:57] + "..."
    return "".join(char if char.isprintable() else "?" for char in shown)


def plain(text: str) -> str:
    return _plain(text)


def read_time(typed: str, now: int, *, future: bool = False) -> int:
    """``2026-11-21``, ``2026-11-21T08:30``, ``now``, ``today``, ``now-7days``, ``7d`` as unix seconds, local time.

    A bare span such as ``7d`` counts back from now, or forward with ``future``.

    :raises ValueError: none of these; the text says what was expected.
    """
    word = typed.strip()
    if word.lower() == "now":
        return now
    if word.lower() == "today":
        return int(time.mktime(time.strptime(day(now), "%Y-%m-%d")))
    match = _RELATIVE.fullmatch(word)
    if match is not None:
        span = int(match["count"]) * _UNITS_S[match["unit"][0].lower()]
        forward = future if match["sign"] is None else match["sign"] == "+"
        return now + span if forward else now - span
    for pattern in _FORMATS:
        try:
            return int(time.mktime(time.strptime(word, pattern)))
        except (ValueError, OverflowError):
            continue
    example = "7d or now+7days" if future else "7d or now-7days"
    raise ValueError(f"{typed!r}: expected a time such as 2026-11-21, 2026-11-21T08:30, {example}")
