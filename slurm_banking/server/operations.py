# SPDX-License-Identifier: BSD-3-Clause
"""Every change of what the bank holds; each public function is one transaction.

The rule for jobs, from which everything else follows: a job counts with its amount in the allocation whose period
contains its start, once it has a submit and a start date; otherwise it counts with nothing. :func:`_settle` appends what
is missing between that and what is counted, so a replay appends nothing and no order of updates can drift.

Lock order: the account's row, then counters. SQLite has one write lock, taken at BEGIN.
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Optional, TypeVar

from django.db import IntegrityError, connection, transaction
from django.db.models import Q
from django.utils import timezone

from slurm_banking.amounts import MAX_WIRE_CSU, format_su
from slurm_banking.errors import BankingError
from slurm_banking.server import job_rows, statements
from slurm_banking.server.models import (
    Account,
    Allocation,
    AllocationUser,
    ClusterUser,
    Entry,
    Job,
    Membership,
    Token,
)

#: Seconds for which a token from api_token_auth/ lasts, as in the portal.
LOGIN_TOKEN_S = 24 * 3600

_MAX_ATTEMPTS = 5
_Result = TypeVar("_Result")


class OperationRefused(BankingError):
    """What was asked breaks a rule of the bank; nothing was changed."""


class JobRefused(BankingError):
    """A job that the bank does not take, as the API's map of fields to messages."""

    def __init__(self, errors: Mapping[str, list[str]]) -> None:
        self.errors = dict(errors)
        super().__init__("; ".join(f"{field}: {texts[0]}" for field, texts in self.errors.items()))


class _Raced(Exception):
    """Another writer inserted the same id first: look again."""


# -- accounts, users, memberships -------------------------------------------------------------------------------------


def add_account(
    name: str, *, title: str, unlimited: bool, start: datetime.date, resource: str
) -> Account:
    """An unlimited account gets an open-ended allocation at once, in which its usage is recorded."""
    _check_name("account", name, 255)
    with _transaction():
        if Account.objects.filter(name=name).exists():
            raise OperationRefused(f"account {name} exists already")
        account = Account.objects.create(name=name, title=title or name, unlimited=unlimited)
        if unlimited:
            Allocation.objects.create(
                account=account,
                resource=resource,
                start_date=start,
                description="Unlimited account.",
            )
        return account


def add_user(
    username: str,
    *,
    uid: Optional[int],
    account_name: Optional[str],
    limit_csu: Optional[int],
    role: str = "User",
) -> ClusterUser:
    """Create the user if new, and make them an active member of the account if one is given (again, or with a new limit)."""
    _check_name("user", username, 150)
    with _transaction():
        user = ClusterUser.objects.filter(username=username).first()
        if user is None:
            if uid is None:
                raise OperationRefused(f"user {username} is new: --uid is needed")
            other = ClusterUser.objects.filter(cluster_uid=str(uid)).first()
            if other is not None:
                raise OperationRefused(f"UID {uid} is {other.username}'s")
            user = ClusterUser.objects.create(username=username, cluster_uid=str(uid))
        elif uid is not None and user.cluster_uid != str(uid):
            raise OperationRefused(f"user {username} has UID {user.cluster_uid}, not {uid}")
        elif account_name is None:
            raise OperationRefused(f"user {username} exists already")
        if account_name is not None:
            account = _lock_account(account_name)
            Membership.objects.update_or_create(
                account=account,
                user=user,
                defaults={"active": True, "limit_csu": limit_csu, "role": role},
            )
            ensure_allocation_users(account)
        return user


def remove_user(username: str, *, account_name: str) -> None:
    """End a membership: no new jobs. Jobs that the bank already has can still be brought to their end."""
    with _transaction():
        account = _lock_account(account_name)
        changed = Membership.objects.filter(account=account, user__username=username, active=True)
        if not changed.update(active=False):
            raise OperationRefused(
                f"user {username} is not an active member of account {account_name}"
            )


def ensure_allocation_users(account: Account) -> None:
    """A row per member and allocation, so that the API lists members who have used nothing yet."""
    members = set(account.memberships.values_list("user_id", flat=True))
    for allocation in account.allocations.all():
        present = set(allocation.allocation_users.values_list("user_id", flat=True))
        AllocationUser.objects.bulk_create(
            AllocationUser(allocation=allocation, user_id=user_id)
            for user_id in sorted(members - present)
        )


# -- allocations ------------------------------------------------------------------------------------------------------


def add_allocation(
    account_name: str,
    *,
    amount_csu: int,
    start: datetime.date,
    end: Optional[datetime.date],
    resource: str,
    actor: str,
) -> Allocation:
    with _transaction():
        account = _lock_account(account_name)
        return _open_allocation(account, amount_csu, start, end, resource, actor)


def renew_allocation(
    account_name: str,
    *,
    amount_csu: int,
    start: Optional[datetime.date],
    end: Optional[datetime.date],
    actor: str,
) -> Allocation:
    """The next period. ``start`` defaults to the day after the last one ends, or today if that is past.

    A start inside the last period ends that one the day before; jobs that started since move to the new one.
    """
    with _transaction():
        account = _lock_account(account_name)
        last = account.allocations.order_by("-start_date").first()
        if last is None:
            raise OperationRefused(f"account {account_name} has no allocation to renew")
        today = timezone.localdate()
        if start is None:
            start = (
                today
                if last.end_date is None
                else max(today, last.end_date + datetime.timedelta(days=1))
            )
        if start <= last.start_date:
            raise OperationRefused(
                f"account {account_name}: the last allocation starts on {last.start_date}, the next must start later"
            )
        if last.end_date is None or start <= last.end_date:
            last.end_date = start - datetime.timedelta(days=1)
        if last.end_date < today:
            last.status = Allocation.EXPIRED
        last.save(update_fields=["end_date", "status"])
        return _open_allocation(account, amount_csu, start, end, last.resource, actor)


def set_allocation_status(
    account_name: str, *, allocation_id: Optional[int], status: str
) -> Allocation:
    """Close a period early (no new jobs, refusals), or open one again that was closed so."""
    with _transaction():
        account = _lock_account(account_name)
        allocation = _choose_allocation(account, allocation_id, any_status=True)
        allocation.status = status
        allocation.save(update_fields=["status"])
        return allocation


def deposit(
    account_name: str,
    *,
    amount_csu: int,
    reason: str,
    actor: str,
    allocation_id: Optional[int] = None,
) -> Allocation:
    with _transaction():
        account = _lock_account(account_name)
        allocation = _choose_allocation(account, allocation_id)
        _award(allocation, Entry.DEPOSIT, amount_csu, reason, actor)
        return allocation


def withdraw(
    account_name: str,
    *,
    amount_csu: int,
    reason: str,
    actor: str,
    allocation_id: Optional[int] = None,
) -> Allocation:
    """:raises OperationRefused: more than what the allocation has left."""
    with _transaction():
        account = _lock_account(account_name)
        allocation = _choose_allocation(account, allocation_id)
        left_csu = allocation.amount_csu - allocation.used_csu
        if amount_csu > left_csu:
            raise OperationRefused(
                f"account {account_name} has {format_su(left_csu)} SU left, {format_su(amount_csu)} cannot be withdrawn"
            )
        _award(allocation, Entry.WITHDRAWAL, -amount_csu, reason, actor)
        return allocation


def _open_allocation(
    account: Account,
    amount_csu: int,
    start: datetime.date,
    end: Optional[datetime.date],
    resource: str,
    actor: str,
) -> Allocation:
    if end is not None and end < start:
        raise OperationRefused(f"an allocation cannot end on {end}, before it starts on {start}")
    for other in account.allocations.order_by("start_date"):
        if (end is None or other.start_date <= end) and (
            other.end_date is None or start <= other.end_date
        ):
            raise OperationRefused(
                f"account {account.name} has an allocation from {other.start_date} to "
                f"{other.end_date or 'an open end'}; use renew to replace the rest of it"
            )
    allocation = Allocation.objects.create(
        account=account, resource=resource, start_date=start, end_date=end
    )
    if amount_csu:
        _award(
            allocation, Entry.DEPOSIT, amount_csu, f"allocation {start} to {end or 'open'}", actor
        )
    ensure_allocation_users(account)
    since = Q(startdate__gte=_midnight(start))
    for job in list(account.jobs.filter(since).order_by("id")):
        moves = _settle(job)
        job.save(update_fields=["allocation", "counted_csu"])
        _append_moves(job, moves, "allocation opened", actor)
    return allocation


def _award(allocation: Allocation, kind: str, amount_csu: int, reason: str, actor: str) -> None:
    if not reason.strip():
        raise OperationRefused("a reason is needed")
    if allocation.amount_csu + amount_csu > MAX_WIRE_CSU:
        raise OperationRefused(f"an allocation holds at most {format_su(MAX_WIRE_CSU)} SU")
    _append(allocation.pk, kind, amount_csu, reason=reason, actor=actor)
    allocation.refresh_from_db()


def _choose_allocation(
    account: Account, allocation_id: Optional[int], any_status: bool = False
) -> Allocation:
    if allocation_id is not None:
        allocation = account.allocations.filter(pk=allocation_id).first()
        if allocation is None:
            raise OperationRefused(f"account {account.name} has no allocation {allocation_id}")
        return allocation
    today = timezone.localdate()
    for allocation in account.allocations.order_by("-start_date"):
        if allocation.contains(today) and (any_status or allocation.status == Allocation.ACTIVE):
            return allocation
    raise OperationRefused(
        f"account {account.name} has no active allocation; name one with --allocation"
    )


# -- jobs -------------------------------------------------------------------------------------------------------------


def create_job(values: Mapping[str, Any], *, actor: str) -> Job:
    """Store a new job and count it. ``values`` as :class:`~slurm_banking.server.job_fields.JobFields` validated them.

    :raises JobRefused: also for an id that exists, whatever its content.
    """
    return _again_if_raced(lambda: _store_job(values, actor, update=False))


def upsert_job(values: Mapping[str, Any], *, actor: str) -> Job:
    """Store or update a job, and count the difference; what ``values`` does not mention stays as it is.

    :raises JobRefused: see :func:`create_job`; also when user or account of a stored job would change.
    """
    return _again_if_raced(lambda: _store_job(values, actor, update=True))


def _store_job(values: Mapping[str, Any], actor: str, *, update: bool) -> Job:
    with _transaction():
        name, uid, jobslurmid = values["accountid"], values["userid"], values["jobslurmid"]
        lock = statements.LOCK_ACCOUNT + statements.LOCK_CLAUSE[connection.vendor]
        account_id, account_active = statements.fetch_one(lock, [name]) or (None, None)
        user_id, username, member, job = job_rows.context(uid, account_id, jobslurmid)
        errors: dict[str, list[str]] = {}
        if user_id is None:
            errors["userid"] = [f"No user has cluster_uid {uid}."]
        if account_id is None:
            errors["accountid"] = [f"No account is named {name}."]
        if errors:
            raise JobRefused(errors)
        account = Account(id=account_id, name=name, active=account_active)
        user = ClusterUser(id=user_id, username=username, cluster_uid=uid)
        if job is None:
            _check_may_have_jobs(account, user, member)
            job = Job(jobslurmid=jobslurmid, user=user, account=account)
        elif not update:
            raise JobRefused({"jobslurmid": ["job with this jobslurmid already exists."]})
        else:
            _check_same_owner(job, account, user)
            job.user, job.account = user, account
        changed = _assign(job, values)
        _check_order(job)
        moves = _settle(job)
        if job.pk is None:
            try:
                job_rows.insert(job)
            except IntegrityError as error:
                raise _Raced from error
        elif changed or moves:
            job_rows.update(job)
        _append_moves(job, moves, "job", actor)
        return job


def _assign(job: Job, values: Mapping[str, Any]) -> bool:
    """Whether anything differs from what was there."""
    changed = False
    for name, value in values.items():
        if name not in ("jobslurmid", "userid", "accountid") and getattr(job, name) != value:
            setattr(job, name, value)
            changed = True
    return changed


@dataclass(frozen=True, kw_only=True, order=True)
class _Move:
    """An entry to be appended for a job. Ordered by allocation: counters are locked in that order."""

    allocation_id: int
    kind: str
    amount_csu: int
    remark: str


def _settle(job: Job) -> list[_Move]:
    """What lies between what is counted for the job and what should be; the job is changed to the latter, not saved."""
    target_id = _period_of(job)
    wanted_csu = 0 if target_id is None else job.amount_csu
    held_id, held_csu = job.allocation_id, job.counted_csu
    moves: list[_Move] = []
    if target_id != held_id and held_csu:
        moves.append(
            _Move(
                allocation_id=held_id,
                kind=Entry.ADJUSTMENT,
                amount_csu=held_csu,
                remark=" is of another period",
            )
        )
        held_csu = 0
    if target_id is not None and wanted_csu != held_csu:
        first = held_csu == 0
        moves.append(
            _Move(
                allocation_id=target_id,
                kind=Entry.CHARGE if first else Entry.ADJUSTMENT,
                amount_csu=held_csu - wanted_csu,
                remark="" if first else " restated",
            )
        )
    job.allocation_id = target_id
    job.counted_csu = wanted_csu
    return sorted(moves)


def _append_moves(job: Job, moves: list[_Move], cause: str, actor: str) -> None:
    for move in moves:
        _append(
            move.allocation_id,
            move.kind,
            move.amount_csu,
            reason=f"{cause} {job.jobslurmid}{move.remark}",
            actor=actor,
            user_id=job.user_id,
            job_id=job.pk,
        )


def _period_of(job: Job) -> Optional[int]:
    """The allocation in whose period the job started."""
    if job.submitdate is None or job.startdate is None:
        return None
    day = timezone.localdate(job.startdate).isoformat()
    row = statements.fetch_one(statements.PERIOD, [job.account_id, day, day])
    return None if row is None else int(row[0])


def _append(
    allocation_id: int,
    kind: str,
    amount_csu: int,
    *,
    reason: str,
    actor: str,
    user_id: Optional[int] = None,
    job_id: Optional[int] = None,
) -> None:
    """The one place that writes an entry, and with it the counters that are its sums."""
    assert connection.in_atomic_block
    now = statements.instant(timezone.now())
    statements.execute(
        statements.APPEND_ENTRY,
        [allocation_id, kind, amount_csu, reason, actor, now, user_id, job_id],
    )
    if kind in Entry.AWARD_KINDS:
        changed = statements.execute(statements.ADD_AWARD, [amount_csu, allocation_id])
    else:
        changed = statements.execute(statements.ADD_USAGE, [amount_csu, allocation_id])
        if user_id is not None:
            statements.execute(statements.ADD_USER_USAGE, [amount_csu, allocation_id, user_id])
    assert changed == 1


def _check_may_have_jobs(account: Account, user: ClusterUser, member: Optional[bool]) -> None:
    """For jobs that the bank does not have yet. One that it has was admitted, and its end must be countable."""
    if member is None:
        raise _job_refused(f"User {user.username} is not a member of account {account.name}.")
    if not member:
        raise _job_refused(
            f"User {user.username} is not an active member of account {account.name}."
        )
    today = timezone.localdate().isoformat()
    period = statements.fetch_one(statements.ACTIVE_PERIOD, [account.pk, today, today])
    if not account.active or period is None:
        raise _job_refused(f"Account {account.name} has no active compute allocation.")


def _check_same_owner(job: Job, account: Account, user: ClusterUser) -> None:
    errors: dict[str, list[str]] = {}
    if job.user_id != user.pk:
        errors["userid"] = [
            f"Job {job.jobslurmid} is of user {job.user.username}, not {user.username}."
        ]
    if job.account_id != account.pk:
        errors["accountid"] = [
            f"Job {job.jobslurmid} is of account {job.account.name}, not {account.name}."
        ]
    if errors:
        raise JobRefused(errors)


def _check_order(job: Job) -> None:
    dates = [("submitted", job.submitdate), ("started", job.startdate), ("ended", job.enddate)]
    known = [(what, date) for what, date in dates if date is not None]
    for (earlier, first), (later, second) in zip(known, known[1:]):
        if second < first:
            raise _job_refused(
                f"The job {later} at {second.isoformat()}, before it was {earlier} at {first.isoformat()}."
            )


def _job_refused(text: str) -> JobRefused:
    return JobRefused({"non_field_errors": [text]})


# -- deciding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer of can_submit_job. ``known``: user and account exist (otherwise the API says 400)."""

    known: bool
    success: bool
    message: str


def can_submit_job(cost_csu: int, uid: str, account_name: str) -> Answer:
    """Would the cost fit what account and user have left of the allocation in force? Changes nothing."""
    today = timezone.localdate().isoformat()
    row = statements.fetch_one(statements.FUNDS, [uid, account_name, today, today])
    user_id, username, account_id, unlimited, account_active, member, limit_csu = row[:7]
    allocation_id, amount_csu, used_csu, user_used_csu = row[7:]
    if user_id is None:
        return Answer(known=False, success=False, message=f"No user has user_id {uid}.")
    if account_id is None:
        return Answer(known=False, success=False, message=f"No account is named {account_name}.")
    if member is None:
        return _refusal(f"User {username} is not a member of account {account_name}.")
    if not member:
        return _refusal(f"User {username} is not an active member of account {account_name}.")
    if allocation_id is None or not account_active:
        return _refusal(f"Account {account_name} has no active compute allocation.")
    cost = format_su(cost_csu)
    if not unlimited and cost_csu + used_csu > amount_csu:
        return _refusal(
            f"A job cost of {cost} does not fit: account {account_name} has used {format_su(used_csu)} of its "
            f"allocation of {format_su(amount_csu)}."
        )
    if limit_csu is not None and cost_csu + (user_used_csu or 0) > limit_csu:
        return _refusal(
            f"A job cost of {cost} does not fit: user {username} has used {format_su(user_used_csu or 0)} of a "
            f"limit of {format_su(limit_csu)} in account {account_name}."
        )
    return Answer(
        known=True, success=True, message=f"A job with a cost of {cost} can be submitted."
    )


def _refusal(message: str) -> Answer:
    return Answer(known=True, success=False, message=message)


# -- tokens -----------------------------------------------------------------------------------------------------------


def token_digest(key: str) -> str:
    """What is stored of a key. Keys are 160 random bits, so neither salt nor stretching would add anything."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def create_token(name: str, *, scope: str, actor: str, lasts_s: Optional[int] = None) -> str:
    """The key; it cannot be had again."""
    _check_name("token", name, 190)
    key = secrets.token_hex(20)
    expires = None if lasts_s is None else timezone.now() + datetime.timedelta(seconds=lasts_s)
    with _transaction():
        if Token.objects.filter(name=name).exists():
            raise OperationRefused(f"a token named {name} exists already")
        Token.objects.create(
            name=name, scope=scope, digest=token_digest(key), created_by=actor, expires=expires
        )
    return key


def create_login_token(username: str) -> str:
    return create_token(
        f"login {username} {secrets.token_hex(6)}",
        scope=Token.ADMIN,
        actor=f"login:{username}",
        lasts_s=LOGIN_TOKEN_S,
    )


def revoke_token(name: str) -> None:
    with _transaction():
        if not Token.objects.filter(name=name, revoked=None).update(revoked=timezone.now()):
            raise OperationRefused(f"no token named {name} is in force")


# -- shared -----------------------------------------------------------------------------------------------------------


@contextmanager
def _transaction() -> Iterator[None]:
    with transaction.atomic():
        yield


def _again_if_raced(store: Callable[[], _Result]) -> _Result:
    for _ in range(_MAX_ATTEMPTS - 1):
        try:
            return store()
        except _Raced:
            continue
    return store()


def _lock_account(name: str) -> Account:
    account = Account.objects.select_for_update(no_key=True).filter(name=name).first()
    if account is None:
        raise OperationRefused(f"no account is named {name}")
    return account


def _check_name(what: str, name: str, longest: int) -> None:
    if (
        not name
        or len(name) > longest
        or not name.isprintable()
        or name != name.strip()
        or "/" in name
    ):
        raise OperationRefused(
            f"{what} name {name!r}: expected 1 to {longest} printable characters without / and surrounding blanks"
        )


def _midnight(day: datetime.date) -> datetime.datetime:
    return timezone.make_aware(datetime.datetime.combine(day, datetime.time.min))
