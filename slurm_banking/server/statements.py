# SPDX-License-Identifier: BSD-3-Clause
"""SQL for the paths that every submission and every delivery take: Django's query builder costs several times what the
database does. Each statement is for SQLite and PostgreSQL alike.

Days are ``YYYY-MM-DD`` strings, so that both compare them as dates.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from django.db import connection

TOKEN = """
    SELECT name, scope, expires IS NOT NULL AND expires <= %s, revoked IS NOT NULL
      FROM bank_token
     WHERE digest = %s
"""

#: Of one user in one account today: who they are, whether they may, what the period in force has and has used.
FUNDS = """
    SELECT u.id, u.username, a.id, a.unlimited, a.active, m.active, m.limit_csu,
           al.id, al.amount_csu, al.used_csu, au.used_csu
      FROM (SELECT 1 AS one) AS always
      LEFT JOIN bank_clusteruser AS u ON u.cluster_uid = %s
      LEFT JOIN bank_account AS a ON a.name = %s
      LEFT JOIN bank_membership AS m ON m.account_id = a.id AND m.user_id = u.id
      LEFT JOIN bank_allocation AS al
             ON al.account_id = a.id AND al.status = 'Active' AND al.start_date <= %s
            AND (al.end_date IS NULL OR al.end_date >= %s)
      LEFT JOIN bank_allocationuser AS au ON au.allocation_id = al.id AND au.user_id = u.id
     ORDER BY al.start_date DESC
     LIMIT 1
"""

#: First in every transaction that counts; what is read after it is what the last writer left.
LOCK_ACCOUNT = "SELECT id, active FROM bank_account WHERE name = %s"
LOCK_CLAUSE = {"postgresql": " FOR NO KEY UPDATE", "sqlite": ""}

PERIOD = """
    SELECT id
      FROM bank_allocation
     WHERE account_id = %s AND start_date <= %s AND (end_date IS NULL OR end_date >= %s)
     ORDER BY start_date DESC
     LIMIT 1
"""

ACTIVE_PERIOD = """
    SELECT id
      FROM bank_allocation
     WHERE account_id = %s AND status = 'Active' AND start_date <= %s AND (end_date IS NULL OR end_date >= %s)
     LIMIT 1
"""

APPEND_ENTRY = """
    INSERT INTO bank_entry (allocation_id, kind, amount_csu, reason, actor, time, user_id, job_id)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
"""

ADD_AWARD = "UPDATE bank_allocation SET amount_csu = amount_csu + %s WHERE id = %s"
ADD_USAGE = "UPDATE bank_allocation SET used_csu = used_csu - %s WHERE id = %s"
ADD_USER_USAGE = """
    INSERT INTO bank_allocationuser (used_csu, allocation_id, user_id) VALUES (-(%s), %s, %s)
    ON CONFLICT (allocation_id, user_id)
    DO UPDATE SET used_csu = bank_allocationuser.used_csu + excluded.used_csu
"""


def fetch_one(statement: str, parameters: Sequence[Any]) -> Any:
    """The first row, or None."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchone()


def execute(statement: str, parameters: Sequence[Any]) -> int:
    """How many rows it changed."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return int(cursor.rowcount)


def instant(time: datetime.datetime) -> Any:
    """An aware time as this database stores it."""
    return connection.ops.adapt_datetimefield_value(time)
