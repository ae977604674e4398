# SPDX-License-Identifier: BSD-3-Clause
"""From the schema of an older ledger to this one, forward only.

Whoever opens the file first after an upgrade brings it up to date, slurmctld too, within the transaction that opens it:
all of it or nothing. That may be done there because a step is quick by rule: it adds indexes, and changes rows that are
open now, never the entries, nor a row of what has ended. A step that had to rewrite what has ended would not belong here: it would hold slurmctld's locks.

Each step is a file, ``N.sql``, that makes schema N of schema N - 1. What a column holds may change its meaning with the
schema; the readers of entries know the older ones, since entries are never changed.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Iterator, Optional

from slurm_banking.errors import LedgerError

SCHEMA_VERSION = "2"
#: The oldest schema that a release wrote.
OLDEST = 1

_HERE = Path(__file__).parent


def migrate(connection: sqlite3.Connection, path: str, found: Optional[str]) -> bool:
    """Within the caller's transaction; False: it is up to date.

    :raises LedgerError: the ledger is of a newer version, or of none that was ever written.
    """
    if found == SCHEMA_VERSION:
        return False
    wanted = int(SCHEMA_VERSION)
    known = f"a number from {OLDEST} to {wanted}"
    if found is None or not (found.isascii() and found.isdigit() and len(found) <= 9):
        raise LedgerError(f"ledger {path}: schema {found!r}: expected {known}")
    if int(found) > wanted:
        raise LedgerError(
            f"ledger {path}: schema {found!r}, of a newer slurm-banking: expected {known}; install that version again, or "
            "restore a backup from before it (slurm-banking ledger restore)"
        )
    if int(found) < OLDEST:
        raise LedgerError(f"ledger {path}: schema {found!r}: expected {known}")
    for number in range(int(found) + 1, wanted + 1):
        for statement in statements((_HERE / f"{number}.sql").read_text("utf-8")):
            connection.execute(statement)
    connection.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (SCHEMA_VERSION,))
    return True


def statements(script: str) -> Iterator[str]:
    """The script's statements one by one (executescript would commit the open transaction)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            if statement.strip():
                yield statement
            statement = ""
