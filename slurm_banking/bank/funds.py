# SPDX-License-Identifier: BSD-3-Clause
"""What an account, and a user inside it, may still spend, as far as the bank can be made to say so.

Today's generation lists allocations with their Service Units and usage. The original one only answers whether a job of
some cost may be submitted: the number is found by halving, and is the smaller of the account's and the user's. There,
the account's row gets the largest number that any of the users asked about got: never more than the account has, so
nothing is overdrawn; a job may be refused for another user's sake until that user is asked about again.
"""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from mybrc_client.api.allocation_users import (
    list_allocation_user_attributes,
    list_allocation_users,
)
from mybrc_client.api.allocations import list_allocation_attributes, list_allocations
from mybrc_client.api.jobs import can_submit_job
from mybrc_client.api.users import list_users
from mybrc_client.models import (
    Allocation,
    AllocationAttributePage,
    AllocationPage,
    AllocationUserAttributePage,
    AllocationUserPage,
    SubmitAnswer,
    UserPage,
)
from slurm_banking.amounts import MAX_WIRE_CSU, format_su
from slurm_banking.bank.transport import FieldErrors, NoSuchAddress, NotFound, Transport
from slurm_banking.errors import BankRefused, BankUnavailable
from slurm_banking.records import Funds, FundsKind, Reason

log = logging.getLogger("slurm_banking.bank")

SERVICE_UNITS = "Service Units"
ACTIVE = "Active"

#: For how long a bank without allocations/ is taken to be of the original generation.
GENERATION_S = 3600.0
#: For how long an account that the bank does limit is not asked about again.
LIMITED_S = 600.0
#: How many names, accounts and users are remembered.
MAX_REMEMBERED = 100_000
#: User names in one question: a URL of less than 8,000 characters.
_NAMES_AT_ONCE = 40
#: Questions for one user at a bank of the original generation.
MAX_QUESTIONS = 45

#: The original generation tells why in words alone (400, or 200 with success false).
_REASONS: Tuple[Tuple[str, Reason], ...] = (
    ("No user exists with user_id", Reason.UNKNOWN_USER),
    ("No user has user_id", Reason.UNKNOWN_USER),
    ("No account exists with account_id", Reason.UNKNOWN_ACCOUNT),
    ("No account is named", Reason.UNKNOWN_ACCOUNT),
    ("is not a member of account", Reason.UNKNOWN_USER),
    ("is not an active member of", Reason.UNKNOWN_USER),
    ("has no active compute allocation", Reason.NO_ALLOCATION),
)


@dataclass(frozen=True)
class Period:
    """An allocation period. The bank has days, in a time zone that it does not tell: local or UTC, so both are kept."""

    key: str  #: names allocation and start date; the portal renews an allocation in place
    start_low: int  #: in no zone does the period start earlier
    start_high: int
    end_low: Optional[int]  #: in no zone does it end earlier; None: open
    end_high: Optional[int]


@dataclass(frozen=True)
class Usage:
    """What the bank's own counter says of an allocation period."""

    period: Period
    used_csu: int


@dataclass(frozen=True)
class _Numbers:
    """Value and usage of Service Units. ``limit_csu`` None: no limit."""

    limit_csu: Optional[int]
    used_csu: int


class FundsReader:
    """Reads funds and remembers what rarely changes; safe to use from several threads."""

    def __init__(
        self,
        transport: Transport,
        *,
        resource: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._transport = transport
        self._resource = list(resource)
        self._clock = clock
        self._lock = threading.Lock()
        self._names: "OrderedDict[int, str]" = OrderedDict()  # user id -> user name at the bank
        self._periods: "OrderedDict[str, Tuple[float, Optional[Period]]]" = OrderedDict()
        self._limited_at: "OrderedDict[str, float]" = OrderedDict()
        self._last_csu: "OrderedDict[Tuple[str, int], int]" = OrderedDict()
        self._original_at: Optional[float] = None

    # -- what others ask ------------------------------------------------------------------------------------------------

    def read(self, account: str, user_ids: Sequence[int]) -> Tuple[Funds, Mapping[int, Funds]]:
        """The account's funds, and each user's inside it; at least one user."""
        if self._original_at is not None and self._clock() - self._original_at < GENERATION_S:
            return self._read_by_asking(account, user_ids)
        try:
            return self._read_allocation(account, user_ids)
        except _NoAllocations:
            funds = self._read_by_asking(account, user_ids)
            if self._original_at is None:
                log.info("bank_generation generation=original reason=no_allocations_endpoint")
            self._original_at = self._clock()
            return funds

    def period(self, account: str, *, max_age_s: float) -> Optional[Period]:
        """The account's current period, remembered for ``max_age_s`` seconds. None: not known, or none is active."""
        with self._lock:
            found = self._periods.get(account)
        if found is not None and self._clock() - found[0] < max_age_s:
            return found[1]
        try:
            allocation = self._active(account)[:1]
        except (_NoAllocations, BankRefused):
            allocation = []
        period = _period(allocation[0]) if allocation else None
        self._remember(self._periods, account, (self._clock(), period))
        return period

    def usage(self, account: str) -> Optional[Usage]:
        """None: no allocation is active, or the bank has no counter of it that it tells."""
        try:
            chosen = self._choose(account, self._active(account))
        except (_NoAllocations, _UnknownAccount):
            return None
        if chosen is None:
            return None
        allocation, numbers = chosen
        return Usage(period=_period(allocation), used_csu=numbers.used_csu)

    # -- today's generation ---------------------------------------------------------------------------------------------

    def _read_allocation(
        self, account: str, user_ids: Sequence[int]
    ) -> Tuple[Funds, Mapping[int, Funds]]:
        now = int(self._clock())
        try:
            active = self._active(account)
        except _UnknownAccount:
            return self._nothing(account, user_ids, Reason.UNKNOWN_ACCOUNT, now)
        chosen = self._choose(account, active)
        if chosen is None:
            return self._nothing(account, user_ids, Reason.NO_ALLOCATION, now)
        allocation, numbers = chosen
        period = _period(allocation)
        self._remember(self._periods, account, (self._clock(), period))
        of_account = _funds(account, None, numbers, period, now)
        users = {
            user_id: self._user(account, user_id, allocation.id, period, now)
            for user_id in dict.fromkeys(user_ids)
        }
        if of_account.kind is FundsKind.LIMITED and self._affirms_all(account, users):
            unlimited = _Numbers(limit_csu=None, used_csu=0)
            of_account = _funds(account, None, unlimited, period, now)
            users = {
                user_id: funds
                if funds.reason is not None
                else _funds(account, user_id, unlimited, period, now)
                for user_id, funds in users.items()
            }
        return of_account, users

    def _active(self, account: str) -> List[Allocation]:
        filters: Dict[str, Any] = {"project": [account]}
        if self._resource:
            filters["resources"] = self._resource
        try:
            rows = list(
                self._transport.pages(list_allocations.sync_detailed, AllocationPage, **filters)
            )
        except FieldErrors as error:
            if "project" in error.errors:
                raise _UnknownAccount(str(error)) from None
            if "resources" in error.errors:
                raise BankRefused(
                    f"[API] resource = {self._resource}: the bank does not know it: {error}"
                ) from None
            raise
        except (NotFound, NoSuchAddress):
            raise _NoAllocations from None
        return [row for row in rows if row.status == ACTIVE and row.project == account]

    def _choose(
        self, account: str, active: Sequence[Allocation]
    ) -> Optional[Tuple[Allocation, _Numbers]]:
        """The allocation of Service Units. Of several, the one with least left: nothing may be overdrawn."""
        found: List[Tuple[Allocation, _Numbers]] = []
        for allocation in active:
            page = self._transport.call(
                list_allocation_attributes.sync_detailed,
                AllocationAttributePage,
                allocation.id,
                type_=[SERVICE_UNITS],
            )
            for attribute in page.results:
                if attribute.allocation_attribute_type == SERVICE_UNITS:
                    found.append((allocation, _numbers(attribute)))
        if len(found) > 1:
            log.warning(
                "several_allocations account=%s ids=%s: set [API] resource",
                account,
                ",".join(str(allocation.id) for allocation, _ in found),
            )
        return min(found, key=lambda pair: _left(pair[1]), default=None)

    def _user(
        self, account: str, user_id: int, allocation_id: int, period: Period, now: int
    ) -> Funds:
        name = self._name(account, user_id)
        row = None
        if name is not None:
            filters: Dict[str, Any] = {"project": [account], "user": [name]}
            try:
                rows = self._transport.pages(
                    list_allocation_users.sync_detailed, AllocationUserPage, **filters
                )
                row = next(
                    (r for r in rows if r.allocation == allocation_id and r.user == name), None
                )
            except FieldErrors as error:  # the user is no longer there
                with self._lock:
                    self._names.pop(user_id, None)
                log.info("bank_user_gone user=%s reason=%s", user_id, error)
        if row is None or row.status != ACTIVE:
            return _refused(account, user_id, Reason.UNKNOWN_USER, now, period)
        page = self._transport.call(
            list_allocation_user_attributes.sync_detailed,
            AllocationUserAttributePage,
            row.id,
            type_=[SERVICE_UNITS],
        )
        for attribute in page.results:
            if attribute.allocation_attribute_type == SERVICE_UNITS:
                return _funds(account, user_id, _numbers(attribute), period, now)
        return _funds(account, user_id, _Numbers(limit_csu=None, used_csu=0), period, now)

    def _name(self, account: str, user_id: int) -> Optional[str]:
        """The bank's name of a cluster UID. The bank cannot be asked by UID: the account's members are looked through."""
        with self._lock:
            known = self._names.get(user_id)
            named = set(self._names.values())
        if known is not None:
            return known
        members = self._transport.pages(
            list_allocation_users.sync_detailed, AllocationUserPage, project=[account]
        )
        names = [
            name for name in dict.fromkeys(member.user for member in members) if name not in named
        ]
        for at in range(0, len(names), _NAMES_AT_ONCE):
            users = self._transport.pages(
                list_users.sync_detailed, UserPage, username=names[at : at + _NAMES_AT_ONCE]
            )
            for user in users:
                uid = getattr(user.profile, "cluster_uid", None) if user.profile else None
                if isinstance(uid, str) and uid.isascii() and uid.isdigit() and len(uid) <= 10:
                    self._remember(self._names, int(uid), user.username)
        with self._lock:
            return self._names.get(user_id)

    def _affirms_all(self, account: str, users: Mapping[int, Funds]) -> bool:
        """Whether the bank says yes to any cost in this account, whatever its allocation's value is."""
        with self._lock:
            limited_at = self._limited_at.get(account)
        if limited_at is not None and self._clock() - limited_at < LIMITED_S:
            return False
        member = next((uid for uid, funds in users.items() if funds.reason is None), None)
        if member is None:
            return False
        if self._ask(account, member, MAX_WIRE_CSU).success:
            return True
        self._remember(self._limited_at, account, self._clock())
        return False

    def _nothing(
        self, account: str, user_ids: Sequence[int], reason: Reason, now: int
    ) -> Tuple[Funds, Mapping[int, Funds]]:
        """Nothing to spend, unless the bank accepts jobs there all the same: then it keeps no account of it."""
        users = list(dict.fromkeys(user_ids))
        self._remember(self._periods, account, (self._clock(), None))
        if users and self._ask(account, users[0], MAX_WIRE_CSU).success:
            return _not_banked(account, None, now), {u: _not_banked(account, u, now) for u in users}
        return (
            _refused(account, None, reason, now),
            {user_id: _refused(account, user_id, reason, now) for user_id in users},
        )

    # -- the original generation ----------------------------------------------------------------------------------------

    def _read_by_asking(
        self, account: str, user_ids: Sequence[int]
    ) -> Tuple[Funds, Mapping[int, Funds]]:
        users = {user_id: self._halve(account, user_id) for user_id in dict.fromkeys(user_ids)}
        widest = max(users.values(), key=_spendable)
        of_account = replace(widest, user_id=None)
        if widest.reason is Reason.UNKNOWN_USER:  # says nothing about the account
            of_account = replace(of_account, reason=Reason.INSUFFICIENT_FUNDS)
        return of_account, users

    def _halve(self, account: str, user_id: int) -> Funds:
        """The largest cost that the bank would accept; a bank that accepts its own largest has no limit."""
        now = int(self._clock())
        asked = 0

        def accepts(cost_csu: int) -> bool:
            nonlocal asked
            asked += 1
            if asked > MAX_QUESTIONS:
                raise BankUnavailable(
                    f"account {account}: the bank's answers do not settle", answered=True
                )
            return self._ask(account, user_id, cost_csu).success

        key = (account, user_id)
        with self._lock:
            last = self._last_csu.get(key)
        low, high = (
            -1,
            MAX_WIRE_CSU + 1,
        )  # low is accepted (-1: not known that anything is), high is not
        if last is not None:  # most often nothing has changed
            if not accepts(last):
                high = last
            elif accepts(last + 1):
                low = last + 1
            else:
                low, high = last, last + 1
        if low < 0:
            answer = self._ask(account, user_id, 0)
            if not answer.success:
                with self._lock:
                    self._last_csu.pop(key, None)
                reason = _reason(answer) or Reason.INSUFFICIENT_FUNDS
                return _refused(account, user_id, reason, now)
            low = 0
        if high > MAX_WIRE_CSU:
            if accepts(MAX_WIRE_CSU):
                return Funds(
                    account=account, user_id=user_id, kind=FundsKind.UNLIMITED, read_at=now
                )
            high = MAX_WIRE_CSU
        while high - low > 1:
            middle = (low + high) // 2
            if accepts(middle):
                low = middle
            else:
                high = middle
        self._remember(self._last_csu, key, low)
        return Funds(
            account=account,
            user_id=user_id,
            kind=FundsKind.LIMITED,
            remaining_csu=low,
            read_at=now,
        )

    def _ask(self, account: str, user_id: int, cost_csu: int) -> SubmitAnswer:
        return self._transport.call(
            can_submit_job.sync_detailed,
            SubmitAnswer,
            format_su(cost_csu),
            str(user_id),
            account,
            also=(400,),
        )

    def _remember(self, memory: "OrderedDict[Any, Any]", key: Any, value: Any) -> None:
        with self._lock:
            memory[key] = value
            memory.move_to_end(key)
            while len(memory) > MAX_REMEMBERED:
                memory.popitem(last=False)


class _NoAllocations(Exception):
    """The bank has no list of allocations."""


class _UnknownAccount(BankRefused):
    """The bank has no project of that name."""


def _reason(answer: SubmitAnswer) -> Optional[Reason]:
    text = answer.message if isinstance(answer.message, str) else ""
    return next((reason for fragment, reason in _REASONS if fragment in text), None)


def _spendable(funds: Funds) -> int:
    if funds.kind is FundsKind.UNLIMITED:
        return MAX_WIRE_CSU + 1
    return -1 if funds.reason is not None else funds.remaining_csu or 0


def _refused(
    account: str, user_id: Optional[int], reason: Reason, now: int, period: Optional[Period] = None
) -> Funds:
    return Funds(
        account=account,
        user_id=user_id,
        kind=FundsKind.LIMITED,
        limit_csu=0,
        remaining_csu=0,
        allocation="" if period is None else period.key,
        start_time=None if period is None else period.start_low,
        end_time=None if period is None else period.end_high,
        reason=reason,
        read_at=now,
    )


def _not_banked(account: str, user_id: Optional[int], now: int) -> Funds:
    return Funds(account=account, user_id=user_id, kind=FundsKind.NOT_BANKED, read_at=now)


def _funds(
    account: str, user_id: Optional[int], numbers: _Numbers, period: Period, now: int
) -> Funds:
    limit_csu = numbers.limit_csu
    return Funds(
        account=account,
        user_id=user_id,
        kind=FundsKind.UNLIMITED if limit_csu is None else FundsKind.LIMITED,
        limit_csu=limit_csu,
        remaining_csu=None if limit_csu is None else limit_csu - numbers.used_csu,
        allocation=period.key,
        start_time=period.start_low,
        end_time=period.end_high,
        read_at=now,
    )


def _left(numbers: _Numbers) -> int:
    return MAX_WIRE_CSU if numbers.limit_csu is None else numbers.limit_csu - numbers.used_csu


def _numbers(attribute: Any) -> _Numbers:
    """A value that is absent, infinite or the largest that the API has: no limit. Rounded so that less is left."""
    limit_csu = _csu(attribute.value, ROUND_FLOOR)
    usage = getattr(attribute.usage, "value", None) if attribute.usage else None
    used_csu = _csu(usage, ROUND_CEILING) if isinstance(usage, str) else 0
    if used_csu is None:
        raise BankUnavailable(
            f"usage of allocation {attribute.allocation} is {usage!r:.40}", answered=True
        )
    if limit_csu is not None and limit_csu >= MAX_WIRE_CSU:
        limit_csu = None
    return _Numbers(limit_csu=limit_csu, used_csu=used_csu)


def _csu(text: str, rounding: str) -> Optional[int]:
    """None: infinite or nothing."""
    if not text.strip():
        return None
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        raise BankUnavailable(f"{text[:40]!r} at the bank is not a number", answered=True) from None
    if value.is_infinite() and value > 0:
        return None
    if not value.is_finite() or abs(value) > Decimal(10) ** 15:
        raise BankUnavailable(f"{text[:40]!r} at the bank is not an amount", answered=True)
    return int((value * 100).to_integral_value(rounding=rounding))


def _period(allocation: Allocation) -> Period:
    start = allocation.start_date if isinstance(allocation.start_date, datetime.date) else None
    end = allocation.end_date if isinstance(allocation.end_date, datetime.date) else None
    starts = _midnights(start) if start is not None else (0, 0)
    ends = (
        _midnights(end + datetime.timedelta(days=1))
        if end is not None and end.year < 9999
        else None
    )
    return Period(
        key=f"{allocation.id}@{start.isoformat() if start else ''}",
        start_low=min(starts),
        start_high=max(starts),
        end_low=None if ends is None else min(ends) - 1,
        end_high=None if ends is None else max(ends) - 1,
    )


def _midnights(day: datetime.date) -> Tuple[int, int]:
    """When the day begins here, and in UTC."""
    naive = datetime.datetime(day.year, day.month, day.day)
    utc = int(naive.replace(tzinfo=datetime.timezone.utc).timestamp())
    try:
        return int(naive.timestamp()), utc
    except (OverflowError, OSError, ValueError):
        return utc, utc
