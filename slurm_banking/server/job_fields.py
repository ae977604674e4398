# SPDX-License-Identifier: BSD-3-Clause
"""The 16 fields of a job on the wire: validation of what comes in, and the form of what goes out."""

from __future__ import annotations

import datetime
import math
import threading
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Optional

from rest_framework import serializers

from slurm_banking.amounts import CSU_PER_SU, MAX_WIRE_CSU, format_su
from slurm_banking.server.models import Job

_LARGEST_INT64 = 2**63 - 1
_MAX_NODES = 100_000
_EARLIEST = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_LATEST = datetime.datetime(2200, 1, 1, tzinfo=datetime.timezone.utc)


class _Date(serializers.DateTimeField):
    """ISO 8601; without an offset it is UTC."""

    def __init__(self) -> None:
        super().__init__(required=False, allow_null=True, default_timezone=datetime.timezone.utc)

    def to_internal_value(self, value: Any) -> datetime.datetime:
        date: datetime.datetime = super().to_internal_value(value)
        if not _EARLIEST <= date < _LATEST:
            raise serializers.ValidationError("Ensure this date is from the years 1970 to 2199.")
        return date


class _Amount(serializers.DecimalField):
    """SU with at most two places, as integer hundredths."""

    def __init__(self) -> None:
        super().__init__(
            max_digits=11,
            decimal_places=2,
            min_value=Decimal(0),
            max_value=Decimal(MAX_WIRE_CSU // CSU_PER_SU),
            required=False,
        )

    def run_validation(self, data: Any = serializers.empty) -> Any:
        value = super().run_validation(data)
        return int(value.scaleb(2))


class _Float(serializers.FloatField):
    def to_internal_value(self, data: Any) -> float:
        value: float = super().to_internal_value(data)
        if not math.isfinite(value):
            self.fail("invalid")
        return value


def _text(longest: int) -> serializers.CharField:
    return serializers.CharField(
        required=False, allow_null=True, allow_blank=True, max_length=longest
    )


def _integer() -> serializers.IntegerField:
    return serializers.IntegerField(
        required=False, allow_null=True, min_value=-_LARGEST_INT64 - 1, max_value=_LARGEST_INT64
    )


class _Node(serializers.Serializer):
    name = serializers.CharField(max_length=30)


class JobFields(serializers.Serializer):
    """``validated_data`` has the names of :class:`~slurm_banking.server.models.Job`, and nothing that was not sent.

    Whether user and account exist is asked in the transaction that stores the job.
    """

    jobslurmid = serializers.CharField(max_length=150)
    submitdate = _Date()
    startdate = _Date()
    enddate = _Date()
    userid = serializers.CharField(max_length=20)
    accountid = serializers.CharField(max_length=255)
    amount = _Amount()
    jobstatus = _text(50)
    partition = _text(50)
    qos = _text(50)
    nodes = _Node(many=True, required=False, max_length=_MAX_NODES)
    num_cpus = _integer()
    num_req_nodes = _integer()
    num_alloc_nodes = _integer()
    raw_time = _Float(required=False, allow_null=True)
    cpu_time = _Float(required=False, allow_null=True)

    def validate_jobslurmid(self, value: str) -> str:
        if "/" in value or "." in value:
            raise serializers.ValidationError("A job id with / or . could not be addressed.")
        return value

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        values = dict(attrs)
        if "amount" in values:
            values["amount_csu"] = values.pop("amount")
        if "nodes" in values:
            values["nodes"] = list(dict.fromkeys(node["name"] for node in values["nodes"]))
        return values


_of_thread = threading.local()


def validated_job(data: Any) -> dict[str, Any]:
    """What a :class:`JobFields` made anew would say; to make one, with all its fields, takes as long as to use it.

    :raises serializers.ValidationError: by field.
    """
    fields = getattr(_of_thread, "fields", None)
    if fields is None:
        fields = _of_thread.fields = JobFields()
    try:
        return dict(fields.run_validation(data))
    except serializers.ValidationError as error:
        if isinstance(error.detail, dict):
            raise
        raise serializers.ValidationError({"non_field_errors": error.detail}) from None


#: What a row on the wire is made from.
ROW_FIELDS = (
    "jobslurmid",
    "submitdate",
    "startdate",
    "enddate",
    "user__cluster_uid",
    "account__name",
    "amount_csu",
    "jobstatus",
    "partition",
    "qos",
    "nodes",
    "num_cpus",
    "num_req_nodes",
    "num_alloc_nodes",
    "raw_time",
    "cpu_time",
)


def row_on_the_wire(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row``: the values of :data:`ROW_FIELDS`, by their names."""
    return {
        "jobslurmid": row["jobslurmid"],
        "submitdate": _iso(row["submitdate"]),
        "startdate": _iso(row["startdate"]),
        "enddate": _iso(row["enddate"]),
        "userid": row["user__cluster_uid"],
        "accountid": row["account__name"],
        "amount": format_su(row["amount_csu"]),
        "jobstatus": row["jobstatus"],
        "partition": row["partition"],
        "qos": row["qos"],
        "nodes": [{"name": name} for name in row["nodes"]],
        "num_cpus": row["num_cpus"],
        "num_req_nodes": row["num_req_nodes"],
        "num_alloc_nodes": row["num_alloc_nodes"],
        "raw_time": row["raw_time"],
        "cpu_time": row["cpu_time"],
    }


def job_on_the_wire(job: Job) -> dict[str, Any]:
    """``job.user`` and ``job.account`` are read: select them along."""
    row = {name: getattr(job, name) for name in ROW_FIELDS if "__" not in name}
    row["user__cluster_uid"], row["account__name"] = job.user.cluster_uid, job.account.name
    return row_on_the_wire(row)


def _iso(date: Optional[datetime.datetime]) -> Optional[str]:
    if date is None:
        return None
    return date.astimezone(datetime.timezone.utc).isoformat().replace("+00:00", "Z")
