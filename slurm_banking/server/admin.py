# SPDX-License-Identifier: BSD-3-Clause
"""/admin/: look at everything; change only what is not money. Money is changed with ``slurm-banking bank``."""

from __future__ import annotations

from typing import Any, Optional

from django.contrib import admin
from django.http import HttpRequest

from slurm_banking.amounts import format_su
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
from slurm_banking.server.operations import ensure_allocation_users

admin.site.site_header = admin.site.site_title = "slurm-banking"


class KeptAdmin(admin.ModelAdmin):
    """Nothing is deleted: entries refer to it."""

    def has_delete_permission(self, request: HttpRequest, obj: Optional[Any] = None) -> bool:
        return False


class ReadOnlyAdmin(KeptAdmin):
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Optional[Any] = None) -> bool:
        return False


@admin.register(Account)
class AccountAdmin(KeptAdmin):
    list_display = ("name", "title", "unlimited", "active")
    search_fields = ("name", "title")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def get_readonly_fields(
        self, request: HttpRequest, obj: Optional[Any] = None
    ) -> tuple[str, ...]:
        return ("name", "unlimited")


@admin.register(ClusterUser)
class ClusterUserAdmin(KeptAdmin):
    list_display = ("username", "cluster_uid", "email")
    search_fields = ("username", "cluster_uid")

    def get_readonly_fields(
        self, request: HttpRequest, obj: Optional[Any] = None
    ) -> tuple[str, ...]:
        return () if obj is None else ("username", "cluster_uid")


@admin.register(Membership)
class MembershipAdmin(KeptAdmin):
    list_display = ("account", "user", "active", "limit_csu", "role")
    list_filter = ("active",)
    search_fields = ("account__name", "user__username")
    list_select_related = ("account", "user")

    def get_readonly_fields(
        self, request: HttpRequest, obj: Optional[Any] = None
    ) -> tuple[str, ...]:
        return () if obj is None else ("account", "user")

    def save_model(self, request: HttpRequest, obj: Membership, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        ensure_allocation_users(obj.account)


@admin.register(Allocation)
class AllocationAdmin(ReadOnlyAdmin):
    list_display = ("account", "resource", "start_date", "end_date", "status", "amount", "used")
    search_fields = ("account__name",)
    list_select_related = ("account",)

    @admin.display(description="amount (SU)")
    def amount(self, obj: Allocation) -> str:
        return format_su(obj.amount_csu)

    @admin.display(description="used (SU)")
    def used(self, obj: Allocation) -> str:
        return format_su(obj.used_csu)


@admin.register(AllocationUser)
class AllocationUserAdmin(ReadOnlyAdmin):
    list_display = ("allocation", "user", "used")
    search_fields = ("allocation__account__name", "user__username")
    list_select_related = ("allocation__account", "user")

    @admin.display(description="used (SU)")
    def used(self, obj: AllocationUser) -> str:
        return format_su(obj.used_csu)


@admin.register(Job)
class JobAdmin(ReadOnlyAdmin):
    list_display = (
        "jobslurmid",
        "user",
        "account",
        "startdate",
        "enddate",
        "jobstatus",
        "amount",
        "counted",
    )
    search_fields = ("jobslurmid", "user__username", "account__name")
    list_select_related = ("user", "account")
    show_full_result_count = False

    @admin.display(description="amount (SU)")
    def amount(self, obj: Job) -> str:
        return format_su(obj.amount_csu)

    @admin.display(description="counted (SU)")
    def counted(self, obj: Job) -> str:
        return format_su(obj.counted_csu)


@admin.register(Entry)
class EntryAdmin(ReadOnlyAdmin):
    list_display = ("id", "time", "kind", "amount", "allocation", "user", "job", "actor", "reason")
    list_filter = ("kind",)
    search_fields = ("allocation__account__name", "user__username", "job__jobslurmid", "actor")
    list_select_related = ("allocation__account", "user", "job")
    ordering = ("-id",)
    show_full_result_count = False

    @admin.display(description="amount (SU)")
    def amount(self, obj: Entry) -> str:
        return format_su(obj.amount_csu)


@admin.register(Token)
class TokenAdmin(ReadOnlyAdmin):
    list_display = ("name", "scope", "created", "created_by", "expires", "revoked")
    exclude = ("digest",)
