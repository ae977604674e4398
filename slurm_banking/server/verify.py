# SPDX-License-Identifier: BSD-3-Clause
"""Prove that every counter is the sum of its entries, and that the schema still refuses to change an entry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from django.db import connection, transaction
from django.db.models import QuerySet, Sum

from slurm_banking.amounts import format_su
from slurm_banking.server.models import Allocation, AllocationUser, Entry, Job

#: The names that migration 0002 gives them.
TRIGGERS = {
    "sqlite": {"bank_entry_no_update", "bank_entry_no_delete", "bank_entry_no_replace"},
    "postgresql": {"bank_entry_no_change", "bank_entry_no_truncate"},
}


@dataclass(frozen=True, kw_only=True)
class Verification:
    entries: int
    allocations: int
    jobs: int
    balance_csu: int  #: Of the whole bank: the sum of all entries.
    mismatches: tuple[str, ...]


def verify() -> Verification:
    """One consistent look, also while the server works."""
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return Verification(
            entries=Entry.objects.count(),
            allocations=Allocation.objects.count(),
            jobs=Job.objects.count(),
            balance_csu=Entry.objects.aggregate(total=Sum("amount_csu"))["total"] or 0,
            mismatches=(*_triggers(), *_allocations(), *_allocation_users(), *_jobs()),
        )


def _triggers() -> Iterator[str]:
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(
                "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'bank_entry'"
            )
        else:
            cursor.execute(
                "SELECT tgname FROM pg_trigger WHERE tgrelid = 'bank_entry'::regclass AND tgenabled <> 'D'"
            )
        present = {name for (name,) in cursor.fetchall()}
    for name in sorted(TRIGGERS[connection.vendor] - present):
        yield f"trigger {name} is missing: entries could be changed"


def _allocations() -> Iterator[str]:
    award = _sums(Entry.objects.filter(kind__in=Entry.AWARD_KINDS), "allocation_id")
    usage = _sums(Entry.objects.filter(kind__in=Entry.USAGE_KINDS), "allocation_id")
    for row in Allocation.objects.select_related("account").iterator():
        yield from _compare(
            f"allocation {row.pk} ({row.account.name}) amount", row.amount_csu, award.get(row.pk, 0)
        )
        yield from _compare(
            f"allocation {row.pk} ({row.account.name}) usage", row.used_csu, -usage.get(row.pk, 0)
        )


def _allocation_users() -> Iterator[str]:
    entries = Entry.objects.filter(kind__in=Entry.USAGE_KINDS, user__isnull=False)
    sums: dict[tuple[int, int], int] = {
        (allocation, user): total
        for allocation, user, total in entries.order_by()
        .values_list("allocation_id", "user_id")
        .annotate(total=Sum("amount_csu"))
    }
    for row in AllocationUser.objects.select_related("allocation__account", "user").iterator():
        key = (row.allocation_id, row.user_id)
        what = f"user {row.user.username} in allocation {row.allocation_id} ({row.allocation.account.name}) usage"
        yield from _compare(what, row.used_csu, -sums.pop(key, 0))
    for allocation, user in sorted(sums):
        yield f"user {user} in allocation {allocation} has entries and no counter"


def _jobs() -> Iterator[str]:
    """A job's entries sum to what is counted in its period, and to nothing in any other."""
    entries = (
        Entry.objects.filter(job__isnull=False).order_by().values_list("job_id", "allocation_id")
    )
    sums: dict[int, dict[int, int]] = {}
    for job_id, allocation_id, total in entries.annotate(total=Sum("amount_csu")).iterator():
        sums.setdefault(job_id, {})[allocation_id] = -total
    rows = Job.objects.values_list("pk", "jobslurmid", "allocation_id", "counted_csu", "amount_csu")
    for pk, jobslurmid, allocation_id, counted_csu, amount_csu in rows.iterator():
        held = sums.get(pk, {})
        yield from _compare(f"job {jobslurmid} counted", counted_csu, held.pop(allocation_id, 0))
        wanted_csu = 0 if allocation_id is None else amount_csu
        if counted_csu != wanted_csu:
            yield f"job {jobslurmid} counts {format_su(counted_csu)} instead of {format_su(wanted_csu)}"
        for other, left_csu in sorted(held.items()):
            if left_csu:
                yield f"job {jobslurmid} has {format_su(left_csu)} left in allocation {other}, where it is not"


def _sums(entries: QuerySet[Entry], key: str) -> dict[int, int]:
    return dict(entries.order_by().values_list(key).annotate(total=Sum("amount_csu")))


def _compare(what: str, counter_csu: int, entries_csu: int) -> Iterator[str]:
    if counter_csu != entries_csu:
        yield f"{what} is {format_su(counter_csu)}, its entries sum to {format_su(entries_csu)}"
