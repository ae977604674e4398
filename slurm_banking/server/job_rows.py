# SPDX-License-Identifier: BSD-3-Clause
"""A job's row, read and written by SQL that is made once: every delivery does both, and Django's query builder takes
longer for it than the database. The columns are those of the model, whichever it has.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, Optional

from django.db import connection, models

from slurm_banking.server import statements
from slurm_banking.server.models import Job

_FIELDS: tuple[Any, ...] = tuple(Job._meta.concrete_fields)
_NAMES = [field.attname for field in _FIELDS]
_KEY = _NAMES.index("id")
_OTHERS = [field for field in _FIELDS if not field.primary_key]
_COLUMNS = ", ".join(field.column for field in _OTHERS)

#: Of one job to be stored: its user, their membership in the account, and the job as the bank has it.
_CONTEXT = f"""
    SELECT u.id, u.username, m.active, {", ".join(f"j.{field.column}" for field in _FIELDS)}
      FROM (SELECT 1 AS one) AS always
      LEFT JOIN bank_clusteruser AS u ON u.cluster_uid = %s
      LEFT JOIN bank_membership AS m ON m.user_id = u.id AND m.account_id = %s
      LEFT JOIN bank_job AS j ON j.jobslurmid = %s
"""
_INSERT = f"INSERT INTO bank_job ({_COLUMNS}) VALUES ({', '.join(['%s'] * len(_OTHERS))})"
#: SQLite has it since 3.35, and tells the key of a row without it.
_RETURNING = {"postgresql": " RETURNING id", "sqlite": ""}
_UPDATE = (
    f"UPDATE bank_job SET {', '.join(f'{field.column} = %s' for field in _OTHERS)} WHERE id = %s"
)


def _aware(value: Optional[datetime.datetime]) -> Optional[datetime.datetime]:
    """SQLite keeps UTC, and does not say so."""
    if value is None or value.tzinfo is not None:
        return value
    return value.replace(tzinfo=datetime.timezone.utc)


def _from_database(field: Any) -> Optional[Callable[[Any], Any]]:
    if isinstance(field, models.DateTimeField):
        return _aware
    if isinstance(field, models.JSONField):
        return lambda value: field.from_db_value(value, None, connection)
    return None


_CONVERTED = [
    (index, convert)
    for index, convert in enumerate(map(_from_database, _FIELDS))
    if convert is not None
]


def context(
    cluster_uid: str, account_id: Optional[int], jobslurmid: str
) -> tuple[Optional[int], Optional[str], Optional[bool], Optional[Job]]:
    """The user's id (None: there is no such user) and name, whether they are an active member of the account (None: they
    never were), and the job if the bank has it."""
    row = statements.fetch_one(_CONTEXT, [cluster_uid, account_id, jobslurmid])
    user_id, username, member, *values = row
    if values[_KEY] is None:
        return user_id, username, member, None
    for index, convert in _CONVERTED:
        values[index] = convert(values[index])
    return user_id, username, member, Job.from_db(connection.alias, _NAMES, values)


def insert(job: Job) -> None:
    """Gives the job its key.

    :raises django.db.IntegrityError: there is one with its jobslurmid.
    """
    with connection.cursor() as cursor:
        cursor.execute(_INSERT + _RETURNING[connection.vendor], _values(job))
        returned = cursor.fetchone()
        job.pk = cursor.lastrowid if returned is None else returned[0]


def update(job: Job) -> None:
    changed = statements.execute(_UPDATE, [*_values(job), job.pk])
    assert changed == 1


def _values(job: Job) -> list[Any]:
    return [field.get_db_prep_save(getattr(job, field.attname), connection) for field in _OTHERS]
