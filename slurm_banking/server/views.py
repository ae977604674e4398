# SPDX-License-Identifier: BSD-3-Clause
"""The endpoints under /api/, in the portal's shapes.

Where the portal drifts or fails the bank does not follow: an unknown user in a filter is an empty page rather than a 500,
the id in the URL and the one in the body must agree, and an amount is counted by :mod:`slurm_banking.server.operations`.
"""

from __future__ import annotations

import datetime
import logging
import re
from collections.abc import Callable, Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation
from typing import Any, Optional

from django.conf import settings
from django.contrib.auth import authenticate
from django.core.exceptions import SuspiciousOperation
from django.core.paginator import Paginator
from django.db import InterfaceError, OperationalError
from django.db.models import Count, F, FloatField, QuerySet, Sum
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from rest_framework import exceptions, serializers, status
from rest_framework.pagination import PageNumberPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import SimpleRateThrottle
from rest_framework.views import APIView, exception_handler

from slurm_banking.amounts import MAX_WIRE_CSU, format_su, parse_su
from slurm_banking.server import operations, portal_compat
from slurm_banking.server.job_fields import (
    ROW_FIELDS,
    job_on_the_wire,
    row_on_the_wire,
    validated_job,
)
from slurm_banking.server.middleware import portal_page
from slurm_banking.server.models import (
    Account,
    Allocation,
    AllocationUser,
    ClusterUser,
    Job,
    Membership,
    Token,
)
from slurm_banking.server.tokens import READERS, WRITERS

SERVICE_UNITS = "Service Units"

#: The portal's: at most 11 digits, at most two of them after the point; no sign, no exponent.
_COST = re.compile(r"(?=[0-9.]*[0-9])[0-9]{0,11}(\.[0-9]{0,2})?", re.ASCII)
_COST_DIGITS = 11

_PROJECT_STATUS = {True: 1, False: 2}
_PROJECT_STATUS_NAME = {True: "Active", False: "Inactive"}

log = logging.getLogger(__name__)

_PORTAL = settings.BANK.compat == portal_compat.NAME
_create_job = portal_compat.create_job if _PORTAL else operations.create_job
_upsert_job = portal_compat.upsert_job if _PORTAL else operations.upsert_job


def answer_for_exception(exc: Exception, context: dict[str, Any]) -> HttpResponse:
    """What a view raised, as JSON: 503 when the database is away or busy (again, later), 500 for a mistake of ours."""
    response: Optional[Response] = exception_handler(exc, context)
    if response is not None:
        return response
    if isinstance(exc, SuspiciousOperation):  # Such as a Host header that cannot be one.
        return Response({"detail": "Bad request."}, 400)
    if isinstance(exc, (OperationalError, InterfaceError)):
        log.error("database_unavailable reason=%s", str(exc).strip().splitlines()[:1])
        return Response(
            {"detail": "The bank's database is not available."}, 503, headers={"Retry-After": "5"}
        )
    if isinstance(exc, portal_compat.Uncaught):
        return portal_page(500, "Server Error (500)")
    log.error("request_failed path=%s", context["request"].path, exc_info=exc)
    return Response({"detail": "Unexpected server error."}, 500)


def not_found(request: HttpRequest, *_: Any, **__: Any) -> HttpResponse:
    return JsonResponse({"detail": "Not found."}, status=404)


def bad_request(request: HttpRequest, *_: Any, **__: Any) -> HttpResponse:
    return JsonResponse({"detail": "Bad request."}, status=400)


def server_error(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"detail": "Unexpected server error."}, status=500)


class BankView(APIView):
    """``scopes`` by method; see :class:`slurm_banking.server.tokens.ScopeAllows`."""

    scopes: dict[str, frozenset[str]] = {"GET": READERS}
    http_method_names = ["get", "head", "post", "put", "patch", "delete"]


class Pages(PageNumberPagination):
    """``page_size`` is ours: the portal ignores it, and gives 100 rows."""

    page_size = 100
    page_size_query_param = None if _PORTAL else "page_size"
    max_page_size = 1000


class _PagesOfKnown(Pages):
    """Of as many rows as were counted already: the paginator would ask again."""

    def __init__(self, count: int) -> None:
        self._count = count

    def django_paginator_class(self, rows: QuerySet[Any], page_size: int) -> Paginator[Any]:
        paginator = Paginator(rows, page_size)
        paginator.count = self._count  # type: ignore[misc]
        return paginator


# -- deciding ---------------------------------------------------------------------------------------------------------


class CanSubmitJob(BankView):
    def get(self, request: Request, job_cost: str, user_id: str, account_id: str) -> Response:
        if _PORTAL and job_cost.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            raise portal_compat.Uncaught
        digits = sum(character.isdigit() for character in job_cost)
        if not _COST.fullmatch(job_cost) or digits > _COST_DIGITS:
            message = (
                f"job_cost {job_cost[:40]} is not a nonnegative decimal number with at most "
                f"{_COST_DIGITS} digits and 2 decimal places."
            )
            return Response({"success": False, "message": message}, status.HTTP_400_BAD_REQUEST)
        answer = operations.can_submit_job(parse_su(job_cost), user_id.strip(), account_id.strip())
        return Response(
            {"success": answer.success, "message": answer.message},
            status.HTTP_200_OK if answer.known else status.HTTP_400_BAD_REQUEST,
        )


# -- jobs -------------------------------------------------------------------------------------------------------------


class Jobs(BankView):
    scopes = {"GET": READERS, "POST": WRITERS | {Token.START_ONLY}}

    def get(self, request: Request) -> Response:
        jobs = _filtered_jobs(request)
        totals = jobs.aggregate(
            count=Count("id"),
            amount_csu=Coalesce(Sum("amount_csu"), 0),
            cpu_time=Coalesce(Sum("cpu_time"), 0.0, output_field=FloatField()),
        )
        ordered = jobs.order_by(F("startdate").asc(nulls_last=True), "id").values(*ROW_FIELDS)
        pages = _PagesOfKnown(totals["count"])
        page = pages.paginate_queryset(ordered, request, view=self)
        body = pages.get_paginated_response([row_on_the_wire(row) for row in page]).data
        body["total_amount"] = float(Decimal(totals["amount_csu"]).scaleb(-2))
        body["total_cpu_time"] = totals["cpu_time"]
        return Response(body)

    def post(self, request: Request) -> Response:
        values = validated_job(request.data)
        if request.user.scope == Token.START_ONLY and (
            values.get("enddate") or values.get("amount_csu")
        ):
            raise exceptions.PermissionDenied(
                "A token of scope start-only reports starts: no enddate, and an amount of 0.00."
            )
        try:
            job = _create_job(values, actor=request.user.actor)
        except operations.JobRefused as error:
            raise serializers.ValidationError(error.errors) from None
        return Response(job_on_the_wire(job), status.HTTP_201_CREATED)


class OneJob(BankView):
    scopes = {"GET": READERS, "PUT": WRITERS}

    def get(self, request: Request, jobslurmid: str) -> Response:
        job = Job.objects.select_related("user", "account").filter(jobslurmid=jobslurmid).first()
        if job is None:
            raise exceptions.NotFound("No Job matches the given query.")
        return Response(job_on_the_wire(job))

    def put(self, request: Request, jobslurmid: str) -> Response:
        values = validated_job(request.data)
        if values["jobslurmid"] != jobslurmid and not _PORTAL:
            raise serializers.ValidationError(
                {
                    "jobslurmid": [
                        f"The body is of job {values['jobslurmid']}, the URL of job {jobslurmid}."
                    ]
                }
            )
        try:
            job = _upsert_job(values, actor=request.user.actor)
        except operations.JobRefused as error:
            raise serializers.ValidationError(error.errors) from None
        return Response(job_on_the_wire(job))


def _filtered_jobs(request: Request) -> QuerySet[Job]:
    query = request.query_params
    jobs = Job.objects.all()
    if _PORTAL:
        jobs = jobs.filter(startdate__isnull=False)
        if query.get("user") and not ClusterUser.objects.filter(username=query["user"]).exists():
            raise portal_compat.Uncaught
    if query.get("user"):
        jobs = jobs.filter(user__username=query["user"])
    if query.get("account"):
        jobs = jobs.filter(account__name=query["account"])
    if query.get("jobstatus"):
        jobs = jobs.filter(jobstatus=query["jobstatus"])
    if query.get("partition"):
        jobs = jobs.filter(partition=query["partition"])
    if query.get("min_amount"):
        lowest_csu = _amount_csu("min_amount", query["min_amount"], ROUND_CEILING)
        jobs = jobs.filter(amount_csu__gte=lowest_csu)
    if query.get("max_amount"):
        highest_csu = _amount_csu("max_amount", query["max_amount"], ROUND_FLOOR)
        jobs = jobs.filter(amount_csu__lte=highest_csu)
    for name, lookup in (("start_time", "startdate__gte"), ("end_time", "startdate__lte")):
        if query.get(name):
            jobs = jobs.filter(**{lookup: _unix_time(name, query[name])})
    return jobs


def _amount_csu(name: str, text: str, rounding: str) -> int:
    """A bound finer than a hundredth is moved inwards, to the next hundredth that it lets through."""
    try:
        value_su = Decimal(text)
    except InvalidOperation:
        value_su = Decimal("NaN")
    if not value_su.is_finite() or abs(value_su) > MAX_WIRE_CSU:
        raise serializers.ValidationError({name: [f"{text[:40]} is not an amount."]})
    return int(value_su.scaleb(2).to_integral_value(rounding))


def _unix_time(name: str, text: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromtimestamp(float(text), tz=datetime.timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise serializers.ValidationError(
            {name: [f"{text[:40]} is not a Unix timestamp."]}
        ) from None


# -- what the office set up -------------------------------------------------------------------------------------------


class ListView(BankView):
    """Subclasses say which rows, and what a row looks like."""

    def rows(self, request: Request, **kwargs: str) -> QuerySet[Any]:
        raise NotImplementedError

    def row_on_the_wire(self, row: Any) -> dict[str, Any]:
        raise NotImplementedError

    def get(self, request: Request, pk: Optional[str] = None, **kwargs: str) -> Response:
        rows = self.rows(request, **kwargs)
        if pk is not None:
            row = rows.filter(pk=_key(pk)).first()
            if row is None:
                raise exceptions.NotFound
            return Response(self.row_on_the_wire(row))
        pages = Pages()
        page = pages.paginate_queryset(rows.order_by("pk"), request, view=self)
        return pages.get_paginated_response([self.row_on_the_wire(row) for row in page])


class Projects(ListView):
    def rows(self, request: Request, **kwargs: str) -> QuerySet[Account]:
        accounts = Account.objects.all()
        if request.query_params.getlist("name"):
            accounts = accounts.filter(name__in=request.query_params.getlist("name"))
        wanted = request.query_params.getlist("status")
        if wanted:
            _check_choices("status", wanted, lambda: _PROJECT_STATUS_NAME.values())
            accounts = accounts.filter(
                active__in=[
                    active for active, name in _PROJECT_STATUS_NAME.items() if name in wanted
                ]
            )
        return accounts

    def row_on_the_wire(self, row: Account) -> dict[str, Any]:
        return {
            "id": row.pk,
            "created": row.created.isoformat(),
            "modified": row.modified.isoformat(),
            "name": row.name,
            "title": row.title,
            "description": row.description,
            "force_review": False,
            "requires_review": False,
            "field_of_science": 1,
            "status": _PROJECT_STATUS[row.active],
        }


class ProjectUsers(ListView):
    def rows(self, request: Request, **kwargs: str) -> QuerySet[Membership]:
        account = Account.objects.filter(pk=_key(kwargs["project_pk"])).first()
        if account is None:
            raise exceptions.NotFound
        members = Membership.objects.filter(account=account)
        wanted = request.query_params.getlist("status")
        if wanted:
            _check_choices("status", wanted, lambda: ("Active", "Removed"))
            members = members.filter(active__in=[name == "Active" for name in wanted])
        if request.query_params.getlist("role"):
            members = members.filter(role__in=request.query_params.getlist("role"))
        return members

    def row_on_the_wire(self, row: Membership) -> dict[str, Any]:
        return {
            "id": row.pk,
            "user": row.user_id,
            "project": row.account_id,
            "role": row.role,
            "status": "Active" if row.active else "Removed",
        }


class Users(ListView):
    def rows(self, request: Request, **kwargs: str) -> QuerySet[ClusterUser]:
        users = ClusterUser.objects.all()
        if request.query_params.getlist("username"):
            users = users.filter(username__in=request.query_params.getlist("username"))
        return users

    def row_on_the_wire(self, row: ClusterUser) -> dict[str, Any]:
        return {
            "id": row.pk,
            "username": row.username,
            "first_name": row.first_name,
            "last_name": row.last_name,
            "email": row.email,
            "last_login": None,
            "profile": {"cluster_uid": row.cluster_uid},
        }


class Allocations(ListView):
    def rows(self, request: Request, **kwargs: str) -> QuerySet[Allocation]:
        return _by_project_and_resource(request, Allocation.objects.select_related("account"), "")

    def row_on_the_wire(self, row: Allocation) -> dict[str, Any]:
        return {
            "id": row.pk,
            "project": row.account.name,
            "resources": [{"name": row.resource}],
            "status": row.status if _PORTAL else row.status_on(timezone.localdate()),
            "quantity": 1,
            "start_date": row.start_date.isoformat(),
            "end_date": None if row.end_date is None else row.end_date.isoformat(),
            "justification": row.description or "Allocation of service units.",
            "description": row.description or None,
            "is_locked": False,
        }


class AllocationAttributes(ListView):
    """One attribute per allocation, with the allocation's own id: its service units."""

    def rows(self, request: Request, **kwargs: str) -> QuerySet[Allocation]:
        _check_attribute_type(request)
        rows = Allocation.objects.select_related("account").filter(pk=_key(kwargs["allocation_pk"]))
        if not rows.exists():
            raise exceptions.NotFound
        return rows

    def row_on_the_wire(self, row: Allocation) -> dict[str, Any]:
        return {
            "id": row.pk,
            "allocation_attribute_type": SERVICE_UNITS,
            "allocation": row.pk,
            "value": format_su(_allocation_value_csu(row)),
            "usage": {"allocation_attribute": row.pk, "value": format_su(row.used_csu)},
        }


class AllocationUsers(ListView):
    def rows(self, request: Request, **kwargs: str) -> QuerySet[AllocationUser]:
        rows = AllocationUser.objects.select_related("allocation__account", "user")
        rows = _by_project_and_resource(request, rows, "allocation__")
        wanted = request.query_params.getlist("user")
        if wanted:
            _check_choices("user", wanted, lambda: _present(ClusterUser, "username", wanted))
            rows = rows.filter(user__username__in=wanted)
        return rows

    def get(self, request: Request, pk: Optional[str] = None, **kwargs: str) -> Response:
        self._memberships: dict[int, dict[int, bool]] = {}
        return super().get(request, pk, **kwargs)

    def row_on_the_wire(self, row: AllocationUser) -> dict[str, Any]:
        account_id = row.allocation.account_id
        if account_id not in self._memberships:
            members = Membership.objects.filter(account_id=account_id)
            self._memberships[account_id] = dict(members.values_list("user_id", "active"))
        active = self._memberships[account_id].get(row.user_id, False)
        return {
            "id": row.pk,
            "allocation": row.allocation_id,
            "user": row.user.username,
            "user_id": row.user_id,
            "project": row.allocation.account.name,
            "status": "Active" if active else "Removed",
        }


class AllocationUserAttributes(ListView):
    """One attribute per allocation user, with its id: the user's limit, or the account's allocation if they have none."""

    def rows(self, request: Request, **kwargs: str) -> QuerySet[AllocationUser]:
        _check_attribute_type(request)
        key = _key(kwargs["allocation_user_pk"])
        rows = AllocationUser.objects.select_related("allocation__account").filter(pk=key)
        if not rows.exists():
            raise exceptions.NotFound
        return rows

    def row_on_the_wire(self, row: AllocationUser) -> dict[str, Any]:
        membership = Membership.objects.filter(
            account_id=row.allocation.account_id, user_id=row.user_id
        ).first()
        value_csu = _allocation_value_csu(row.allocation)
        if membership is not None and membership.limit_csu is not None:
            value_csu = membership.limit_csu
        return {
            "id": row.pk,
            "allocation_attribute_type": SERVICE_UNITS,
            "allocation": row.allocation_id,
            "allocation_user": row.pk,
            "value": format_su(value_csu),
            "usage": {"allocation_user_attribute": row.pk, "value": format_su(row.used_csu)},
        }


class Partitions(BankView):
    """Of the old API; what ``bank.toml`` lists, in one page."""

    def get(self, request: Request) -> Response:
        rows = [
            {
                "name": partition.name,
                "shared": partition.shared,
                "num_nodes": partition.num_nodes,
                "num_cores": partition.num_cores,
                "su_per_core_hour": f"{partition.su_per_core_hour:f}",
            }
            for partition in settings.BANK.partitions
        ]
        return Response({"count": len(rows), "next": None, "previous": None, "results": rows})


def _allocation_value_csu(allocation: Allocation) -> int:
    """An unlimited account shows the most that the API's amounts can say, as the portal's own do."""
    return MAX_WIRE_CSU if allocation.account.unlimited else int(allocation.amount_csu)


def _by_project_and_resource(request: Request, rows: Any, prefix: str) -> Any:
    projects = request.query_params.getlist("project")
    if projects:
        _check_choices("project", projects, lambda: _present(Account, "name", projects))
        rows = rows.filter(**{f"{prefix}account__name__in": projects})
    resources = request.query_params.getlist("resources")
    if resources:
        _check_choices(
            "resources",
            resources,
            lambda: [*_present(Allocation, "resource", resources), settings.BANK.resource],
        )
        rows = rows.filter(**{f"{prefix}resource__in": resources})
    return rows


def _present(model: Any, field: str, wanted: list[str]) -> Iterable[str]:
    return set(model.objects.filter(**{f"{field}__in": wanted}).values_list(field, flat=True))


def _check_choices(name: str, wanted: list[str], known: Callable[[], Iterable[str]]) -> None:
    choices = set(known())
    for value in wanted:
        if value not in choices:
            raise serializers.ValidationError(
                {name: [f"{value[:80]} is not one of the available choices."]}
            )


def _check_attribute_type(request: Request) -> None:
    wanted = request.query_params.getlist("type")
    if wanted:
        _check_choices("type", wanted, lambda: [SERVICE_UNITS])


def _key(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text, re.ASCII):
        raise exceptions.NotFound
    return int(text)


# -- logging in -------------------------------------------------------------------------------------------------------


class LoginThrottle(SimpleRateThrottle):
    """A password costs a third of a second of CPU to check, and must not be guessable."""

    scope = "login"

    def get_cache_key(self, request: Request, view: Any) -> str:
        return f"login-{self.get_ident(request)}"


class _Login(serializers.Serializer):
    username = serializers.CharField(max_length=150)
    password = serializers.CharField(max_length=4096, trim_whitespace=False)


class ObtainToken(APIView):
    """An administrator's password for a token of scope admin that lasts a day."""

    authentication_classes: list[Any] = []
    permission_classes: list[Any] = []
    throttle_classes = [LoginThrottle]
    http_method_names = ["post"]

    def post(self, request: Request) -> Response:
        login = _Login(data=request.data)
        login.is_valid(raise_exception=True)
        user = authenticate(request, **login.validated_data)
        if user is None or not user.is_superuser:
            raise serializers.ValidationError(
                {"non_field_errors": ["Wrong username or password, or not an administrator."]}
            )
        return Response({"token": operations.create_login_token(user.get_username())})
