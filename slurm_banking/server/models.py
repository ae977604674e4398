# SPDX-License-Identifier: BSD-3-Clause
"""The bank's tables.

Money is integer hundredths of a service unit (``_csu``). Entries are the truth: the schema refuses to change or delete
one (migration 0002), and every ``amount_csu``, ``used_csu`` and ``counted_csu`` elsewhere is a counter that the
transaction that appends the entry moves with it (:mod:`slurm_banking.server.operations`, proved by
:mod:`slurm_banking.server.verify`).
"""

from __future__ import annotations

import datetime

from django.db import models
from django.utils import timezone

from slurm_banking.server.constraints import check_constraint


class Account(models.Model):
    """A Slurm account; the portal says project."""

    name = models.CharField(max_length=255, unique=True)
    title = models.CharField(max_length=255, blank=True)
    description = models.TextField(blank=True)
    unlimited = models.BooleanField(
        default=False, help_text="Usage is recorded, nothing is refused for it."
    )
    active = models.BooleanField(default=True)
    created = models.DateTimeField(auto_now_add=True)
    modified = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return str(self.name)


class ClusterUser(models.Model):
    """A person on the cluster. Who may log in to /admin/ is another table (Django's auth)."""

    username = models.CharField(max_length=150, unique=True)
    cluster_uid = models.CharField(max_length=20, unique=True, verbose_name="cluster UID")
    first_name = models.CharField(max_length=150, blank=True)
    last_name = models.CharField(max_length=150, blank=True)
    email = models.EmailField(blank=True)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["username"]
        verbose_name = "user"

    def __str__(self) -> str:
        return str(self.username)


class Membership(models.Model):
    """A user of an account. Never deleted: jobs and entries refer to what was."""

    account = models.ForeignKey(Account, models.PROTECT, related_name="memberships")
    user = models.ForeignKey(ClusterUser, models.PROTECT, related_name="memberships")
    active = models.BooleanField(default=True)
    limit_csu = models.BigIntegerField(
        null=True,
        blank=True,
        verbose_name="limit (hundredths of an SU)",
        help_text="Empty: the account's own.",
    )
    role = models.CharField(max_length=50, default="User")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["account", "user"], name="bank_membership_once"),
            check_constraint(
                models.Q(limit_csu__isnull=True) | models.Q(limit_csu__gte=0),
                "bank_membership_limit",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.account}"


class Allocation(models.Model):
    """An award to an account for a period; both days belong to it. Periods of one account do not overlap."""

    ACTIVE = "Active"
    EXPIRED = "Expired"
    NEW = "New"  #: Never stored: the period has yet to begin.

    account = models.ForeignKey(Account, models.PROTECT, related_name="allocations")
    resource = models.CharField(max_length=128)
    start_date = models.DateField()
    end_date = models.DateField(null=True, blank=True)
    status = models.CharField(
        max_length=20, choices=[(ACTIVE, ACTIVE), (EXPIRED, EXPIRED)], default=ACTIVE
    )
    description = models.CharField(max_length=512, blank=True)
    amount_csu = models.BigIntegerField(default=0)  #: Counter: deposits and withdrawals.
    used_csu = models.BigIntegerField(default=0)  #: Counter: charges and adjustments, negated.

    class Meta:
        constraints = [
            check_constraint(
                models.Q(end_date__isnull=True) | models.Q(end_date__gte=models.F("start_date")),
                "bank_allocation_period",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.account} {self.start_date} to {self.end_date or 'open'}"

    def contains(self, day: datetime.date) -> bool:
        return bool(self.start_date <= day and (self.end_date is None or day <= self.end_date))

    def status_on(self, day: datetime.date) -> str:
        """``Active`` only inside the period; a period that is over is ``Expired`` without anybody's doing."""
        if self.status == self.EXPIRED or (self.end_date is not None and self.end_date < day):
            return self.EXPIRED
        return self.NEW if day < self.start_date else self.ACTIVE


class AllocationUser(models.Model):
    """What one user has used of one allocation."""

    allocation = models.ForeignKey(Allocation, models.PROTECT, related_name="allocation_users")
    user = models.ForeignKey(ClusterUser, models.PROTECT, related_name="allocation_users")
    used_csu = models.BigIntegerField(
        default=0
    )  #: Counter: charges and adjustments of this user, negated.

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["allocation", "user"], name="bank_allocation_user_once")
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.allocation}"


class Job(models.Model):
    """A job as the API stores it, and what the ledger holds for it."""

    jobslurmid = models.CharField(max_length=150, unique=True)
    user = models.ForeignKey(ClusterUser, models.PROTECT, related_name="jobs")
    account = models.ForeignKey(Account, models.PROTECT, related_name="jobs")
    submitdate = models.DateTimeField(null=True)
    startdate = models.DateTimeField(null=True)
    enddate = models.DateTimeField(null=True)
    amount_csu = models.BigIntegerField(default=0)
    jobstatus = models.CharField(max_length=50, null=True)
    partition = models.CharField(max_length=50, null=True)
    qos = models.CharField(max_length=50, null=True)
    nodes = models.JSONField(default=list)  #: Names.
    num_cpus = models.BigIntegerField(null=True)
    num_req_nodes = models.BigIntegerField(null=True)
    num_alloc_nodes = models.BigIntegerField(null=True)
    raw_time = models.FloatField(null=True)
    cpu_time = models.FloatField(null=True)
    #: The period that the job's start falls into. None: it has none, and nothing is counted.
    allocation = models.ForeignKey(Allocation, models.PROTECT, null=True, related_name="jobs")
    counted_csu = models.BigIntegerField(default=0)  #: Counter: this job's entries, negated.

    class Meta:
        indexes = [
            models.Index(fields=["startdate", "id"], name="bank_job_start"),
            models.Index(fields=["account", "startdate"], name="bank_job_account_start"),
            models.Index(fields=["user", "startdate"], name="bank_job_user_start"),
        ]

    def __str__(self) -> str:
        return str(self.jobslurmid)


class Entry(models.Model):
    """One immutable line of the ledger, signed as the account sees it: its balance is the sum."""

    DEPOSIT = "deposit"
    WITHDRAWAL = "withdrawal"
    CHARGE = "charge"
    ADJUSTMENT = "adjustment"
    AWARD_KINDS = (DEPOSIT, WITHDRAWAL)
    USAGE_KINDS = (CHARGE, ADJUSTMENT)

    allocation = models.ForeignKey(Allocation, models.PROTECT, related_name="entries")
    kind = models.CharField(
        max_length=20, choices=[(kind, kind) for kind in (DEPOSIT, WITHDRAWAL, CHARGE, ADJUSTMENT)]
    )
    amount_csu = models.BigIntegerField(verbose_name="amount (hundredths of an SU)")
    reason = models.TextField()
    actor = models.CharField(max_length=200)
    time = models.DateTimeField(default=timezone.now)
    user = models.ForeignKey(ClusterUser, models.PROTECT, null=True, related_name="entries")
    job = models.ForeignKey(Job, models.PROTECT, null=True, related_name="entries")

    class Meta:
        verbose_name_plural = "entries"
        indexes = [models.Index(fields=["allocation", "user"], name="bank_entry_allocation_user")]
        constraints = [
            check_constraint(
                models.Q(kind="deposit", amount_csu__gt=0)
                | models.Q(kind__in=["withdrawal", "charge"], amount_csu__lt=0)
                | (models.Q(kind="adjustment") & ~models.Q(amount_csu=0)),
                "bank_entry_sign",
            ),
            check_constraint(
                models.Q(kind__in=["deposit", "withdrawal"], job__isnull=True)
                | models.Q(kind="adjustment")
                | models.Q(kind="charge", job__isnull=False, user__isnull=False),
                "bank_entry_subject",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"


class Token(models.Model):
    """A key to the API; only its SHA-256 is kept. Revoked ones stay, so that an entry's actor can be looked up."""

    ADMIN = "admin"
    RELAY = "relay"
    START_ONLY = "start-only"
    READ = "read"
    SCOPES = (ADMIN, RELAY, START_ONLY, READ)

    name = models.CharField(max_length=190, unique=True)
    scope = models.CharField(max_length=20, choices=[(scope, scope) for scope in SCOPES])
    digest = models.CharField(max_length=64, unique=True)
    created = models.DateTimeField(default=timezone.now)
    created_by = models.CharField(max_length=200)
    expires = models.DateTimeField(null=True)
    revoked = models.DateTimeField(null=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return str(self.name)
