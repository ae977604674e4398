# SPDX-License-Identifier: BSD-3-Clause
"""The bank's rows by the time of their start, and what its counters say: for whoever holds them against other books.

Pages have 100 rows (the bundled bank's 1000), ordered by start alone: rows that started together may change places between two pages. So what a
window's pages gave must be as many different rows as the bank says there are; if not, the window is read again. A bank of
the original generation knows no filter by time, and no totals: :class:`NoListing`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import Decimal
from math import ceil
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from mybrc_client.api.jobs import list_jobs
from mybrc_client.models import JobPage
from slurm_banking.amounts import parse_su
from slurm_banking.bank import wire
from slurm_banking.bank.transport import NotFound, Transport
from slurm_banking.bank.wire import BankRun
from slurm_banking.errors import BankRefused, BankUnavailable

#: Of the bundled bank; the portal gives 100, whatever is asked for.
PAGE_ROWS = 1000
LEAST_PAGE_ROWS = 100
#: A window with more rows than this is cut into parts, unless it is a second already.
MOST_ROWS = 2000
#: The same, where everything started in one second.
_MOST_PAGES = 5000
_TRIES = 4
_AGAIN_S = 0.5


class NoListing(BankRefused):
    """The bank does not list its rows by time."""


@dataclass(frozen=True)
class Total:
    """What the bank says of a set of rows, without telling them."""

    rows: int
    amount_csu: int


def total(transport: Transport, *, account: str, since: int, until: int) -> Total:
    """Of an account's rows that started in [since, until).

    :raises NoListing: no totals.
    """
    page = _page(transport, _filters(since, until, account), 1)
    if not isinstance(page.total_amount, (int, float)):
        raise NoListing("the bank sends no totals")
    try:
        # The decimal that its shortest notation spells; of very large sums the last digit may be wrong: rounded.
        su = round(Decimal(repr(page.total_amount)), 2)
        return Total(rows=page.count, amount_csu=parse_su(str(su)))
    except (ValueError, ArithmeticError):
        raise BankUnavailable(
            f"the bank's total is {page.total_amount!r:.40}", answered=True
        ) from None


def rows(
    transport: Transport,
    *,
    since: int,
    until: int,
    account: Optional[str] = None,
    state: Optional[str] = None,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[BankRun]:
    """Every row that started in [since, until), unix seconds, each once; in about the order of starts.

    :raises NoListing: the bank does not filter by time.
    """
    windows: List[Tuple[int, int]] = [(since, until)]
    page_rows = PAGE_ROWS
    while windows:
        low, high = windows.pop()
        if low >= high:
            continue
        # The bank may have parts of a second: those of the last one are in the window, too.
        filters = _filters(low, high + 1, account)
        if state is not None:
            filters["jobstatus"] = state
        filters["page_size"] = page_rows
        try:
            first = _page(transport, filters, 1)
            _check_filtered(first, low, high)
            if first.count > MOST_ROWS and high - low > 1:
                windows += reversed(_parts(low, high, first.count))
                continue
            found = list(_window(transport, filters, first, pause))
        except BankUnavailable as error:
            if not error.answered or page_rows == LEAST_PAGE_ROWS:
                raise
            page_rows = LEAST_PAGE_ROWS  # jobs of very many nodes: too long an answer, perhaps
            windows.append((low, high))
            continue
        for row in found:
            if row.start_time is not None and row.start_time < high:
                yield row


def _parts(low: int, high: int, count: int) -> List[Tuple[int, int]]:
    """Two or more, in which there are fewer rows than wanted if they started steadily."""
    parts = min(max(2, ceil(count / (0.8 * MOST_ROWS))), high - low)
    cuts = [low + (high - low) * part // parts for part in range(parts + 1)]
    return list(zip(cuts, cuts[1:]))


def _window(
    transport: Transport,
    filters: Dict[str, Any],
    first: JobPage,
    pause: Callable[[float], None],
) -> Iterator[BankRun]:
    found: Dict[str, BankRun] = {}
    for attempt in range(_TRIES):
        if attempt:
            pause(_AGAIN_S)
            first = _page(transport, filters, 1)
        page, number = first, 1
        _add(found, page)
        try:
            while page.next_ and number < _MOST_PAGES:
                number += 1
                page = _page(transport, filters, number)
                _add(found, page)
        except NotFound:
            pass  # there are fewer pages now than there were
        if len(found) == page.count:
            break
    yield from found.values()


def _add(found: Dict[str, BankRun], page: JobPage) -> None:
    for job in page.results:
        row = wire.row_from_wire(job)
        found[row.bank_job_id] = row


def _filters(since: int, until: int, account: Optional[str]) -> Dict[str, Any]:
    # Both ends belong to it at the bank.
    filters: Dict[str, Any] = {"start_time": since, "end_time": until - 1}
    if account is not None:
        filters["account"] = account
    return filters


def _page(transport: Transport, filters: Dict[str, Any], number: int) -> JobPage:
    return transport.call(list_jobs.sync_detailed, JobPage, page=number, **filters)


def _check_filtered(page: JobPage, since: int, until: int) -> None:
    for job in page.results:
        start = wire.row_from_wire(job).start_time
        if start is None or not since - 1 <= start < until + 1:
            raise NoListing("the bank does not list its rows by time")


__all__ = ["NoListing", "Total", "rows", "total"]
