# SPDX-License-Identifier: BSD-3-Clause
"""Slurm's host list expressions: ``n[1-3,07],login``, several brackets in one name included."""

from __future__ import annotations

import re
from typing import Iterator, List, Tuple

MAX_HOSTS = 65536
MAX_EXPRESSION_CHARS = 1024 * 1024

_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?\Z", re.ASCII)
_PLAIN = re.compile(r"[0-9A-Za-z._-]*\Z")


def expand(expression: str, *, max_hosts: int = MAX_HOSTS) -> Tuple[str, ...]:
    """The hosts, in the expression's order.

    :raises ValueError: not a host list, or more than ``max_hosts``.
    """
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ValueError(f"host list of {len(expression)} characters is too long")
    hosts: List[str] = []
    for item in _items(expression):
        for host in _expand_item(item, max_hosts):
            if len(hosts) >= max_hosts:
                raise ValueError(f"host list names more than {max_hosts} hosts")
            hosts.append(host)
    return tuple(hosts)


def _items(expression: str) -> Iterator[str]:
    """Split at the commas outside of brackets."""
    depth = start = 0
    for index, char in enumerate(expression):
        if char == "[":
            depth += 1
        elif char == "]":
            depth -= 1
        elif char == "," and depth == 0:
            if expression[start:index]:
                yield expression[start:index]
            start = index + 1
        if not 0 <= depth <= 1:
            raise ValueError(f"brackets do not match in host list {expression[:60]!r}")
    if depth:
        raise ValueError(f"brackets do not match in host list {expression[:60]!r}")
    if expression[start:]:
        yield expression[start:]


def _expand_item(item: str, max_hosts: int) -> Iterator[str]:
    head, bracket, rest = item.partition("[")
    if not _PLAIN.match(head):
        raise ValueError(f"{head[:60]!r} is not a host name")
    if not bracket:
        yield head
        return
    inside, _, tail = rest.partition("]")
    tails = list(_expand_item(tail, max_hosts))
    for piece in inside.split(","):
        for number in _numbers(piece, max_hosts):
            for end in tails:
                yield head + number + end


def _numbers(piece: str, max_hosts: int) -> Iterator[str]:
    match = _RANGE.match(piece)
    if match is None:
        raise ValueError(f"{piece[:60]!r} is not N or N-M in a host list")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first or last - first >= max_hosts:
        raise ValueError(f"range {piece[:60]!r} in a host list is reversed or too large")
    for number in range(first, last + 1):
        yield str(number).zfill(len(match[1]))
