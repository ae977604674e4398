# SPDX-License-Identifier: BSD-3-Clause
"""Slurm's array expressions: ``0-15:4%3``, ``1,3,5-7``.

slurmctld expands them only after the submit plugins, so the tasks are counted here, without expanding: a hostile
expression costs no more than a long one. The grammar is slurmctld's own, brackets and stray commas included.
"""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Tuple

#: Slurm's largest MaxArraySize; task ids are below it.
MAX_ARRAY_SIZE = 4_000_001

#: Longer than any command line argument may be on Linux (128 KiB).
MAX_EXPRESSION_CHARS = 256 * 1024

_TOKEN = re.compile(
    r"\[?\s*\+?(?P<first>[0-9]{1,10})\]?"
    r"(?:-\s*\+?(?P<last>[0-9]{1,10})\]?(?::\s*\+?(?P<step>[0-9]{1,10})\]?)?)?"
    r"(?:%\s*(?P<throttle>[0-9]{1,10})\]?)?\s*"
)


@dataclass(frozen=True)
class ArraySpec:
    """A parsed expression. Iterating yields each task id once, in rising order, lazily."""

    count: int
    throttle: Optional[int]  #: most tasks at once; None: no limit. Costs do not depend on it.
    ranges: Tuple[range, ...]  #: may overlap

    def __iter__(self) -> Iterator[int]:
        last = -1
        for task_id in heapq.merge(*self.ranges):
            if task_id != last:
                yield task_id
            last = task_id


def parse_array(expression: str) -> ArraySpec:
    """:raises ValueError: what slurmctld would refuse too; the text says why."""
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ValueError(f"array expression of {len(expression)} characters is too long")
    intervals: List[Tuple[int, int]] = []
    stepped: Dict[Tuple[int, int], List[Tuple[int, int]]] = {}
    throttle: Optional[int] = None
    for token in expression.split(","):
        if not token:
            continue  # strtok skips empty pieces
        if len(token) <= 10 and token.isascii() and token.isdigit():
            first = last = int(token)
            step = 1
        else:
            first, last, step, limit = _token(token, expression)
            throttle = limit if throttle is None else throttle
        if last >= MAX_ARRAY_SIZE or step >= MAX_ARRAY_SIZE:
            raise ValueError(f"array index or step {max(last, step)} is above Slurm's limit")
        if step == 1 or first == last:
            intervals.append((first, last))
        else:
            end = last - (last - first) % step
            stepped.setdefault((step, first % step), []).append((first, end))
    if not intervals and not stepped:
        raise ValueError("array expression is empty")
    ranges = [range(first, last + 1) for first, last in _joined(intervals, 1)]
    for (step, _), pieces in stepped.items():
        ranges += [range(first, last + 1, step) for first, last in _joined(pieces, step)]
    ranges.sort(key=lambda piece: piece.start)
    return ArraySpec(count=_count(ranges), throttle=throttle or None, ranges=tuple(ranges))


def _token(token: str, expression: str) -> Tuple[int, int, int, Optional[int]]:
    match = _TOKEN.fullmatch(token)
    if match is None:
        shown = expression if len(expression) <= 60 else expression[:57] + "..."
        raise ValueError(f"{token[:60]!r} in array expression {shown!r} is not N, N-M or N-M:STEP")
    first = int(match["first"])
    last = first if match["last"] is None else int(match["last"])
    step = 1 if match["step"] is None else int(match["step"])
    if last < first:
        raise ValueError(f"array range {token[:60]!r} ends before it begins")
    if step < 1:
        raise ValueError(f"array step in {token[:60]!r} must be at least 1")
    return first, last, step, None if match["throttle"] is None else int(match["throttle"])


def _joined(pieces: List[Tuple[int, int]], step: int) -> List[Tuple[int, int]]:
    """Progressions of one step and one residue, with those that touch or overlap made one."""
    joined: List[Tuple[int, int]] = []
    for first, last in sorted(pieces):
        if joined and first <= joined[-1][1] + step:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def _count(ranges: List[range]) -> int:
    """How many different ids there are in ``ranges`` (sorted by start): pieces that share no span are only added up."""
    total = 0
    budget = 2 * MAX_ARRAY_SIZE
    index = 0
    while index < len(ranges):
        span_end = ranges[index][-1]
        after = index + 1
        while after < len(ranges) and ranges[after].start <= span_end:
            span_end = max(span_end, ranges[after][-1])
            after += 1
        if after == index + 1:
            total += len(ranges[index])
        else:
            cluster = ranges[index:after]
            budget -= sum(map(len, cluster))
            if budget < 0:
                raise ValueError("array expression overlaps itself too often")
            start = cluster[0].start
            seen = bytearray(span_end - start + 1)
            for piece in cluster:
                seen[piece.start - start : piece[-1] - start + 1 : piece.step] = b"\1" * len(piece)
            total += seen.count(1)
        index = after
    return total


#: A longer expression helps nobody.
MAX_HINT_CHARS = 200


def first_tasks(expression: str, count: int) -> Optional[str]:
    """An expression of the first ``count`` tasks of ``expression``, its throttle kept; None: there is no short one."""
    try:
        spec = parse_array(expression)
    except ValueError:
        return None
    ranges, left, last = [], count, -1
    for piece in spec.ranges:
        if piece.start <= last:
            return None  # they overlap: not worth untangling
        if not left:
            break
        taken = piece[:left]
        left -= len(taken)
        last = taken[-1]
        ranges.append(_range_text(taken))
        if len(ranges) * 2 > MAX_HINT_CHARS:
            return None
    text = ",".join(ranges)
    if spec.throttle is not None:
        text += f"%{spec.throttle}"
    return text if text and not left and len(text) <= MAX_HINT_CHARS else None


def _range_text(piece: range) -> str:
    if len(piece) == 1:
        return str(piece[0])
    return f"{piece[0]}-{piece[-1]}" + (f":{piece.step}" if piece.step != 1 else "")
