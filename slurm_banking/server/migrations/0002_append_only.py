# SPDX-License-Identifier: BSD-3-Clause
"""The schema refuses to change, delete or replace an entry, whoever asks."""

from __future__ import annotations

from typing import Any

from django.db import migrations

SQLITE = (
    """
    CREATE TRIGGER bank_entry_no_update BEFORE UPDATE ON bank_entry
    BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END
    """,
    """
    CREATE TRIGGER bank_entry_no_delete BEFORE DELETE ON bank_entry
    BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END
    """,
    # INSERT OR REPLACE deletes without firing the trigger above.
    """
    CREATE TRIGGER bank_entry_no_replace BEFORE INSERT ON bank_entry
    WHEN EXISTS (SELECT 1 FROM bank_entry WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END
    """,
)

POSTGRESQL = (
    """
    CREATE FUNCTION bank_entry_refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'entries are append-only' USING ERRCODE = 'restrict_violation'; END $$
    """,
    """
    CREATE TRIGGER bank_entry_no_change BEFORE UPDATE OR DELETE ON bank_entry
    FOR EACH STATEMENT EXECUTE FUNCTION bank_entry_refuse()
    """,
    """
    CREATE TRIGGER bank_entry_no_truncate BEFORE TRUNCATE ON bank_entry
    FOR EACH STATEMENT EXECUTE FUNCTION bank_entry_refuse()
    """,
)


def create_triggers(apps: Any, schema_editor: Any) -> None:
    vendor = schema_editor.connection.vendor
    statements = {"sqlite": SQLITE, "postgresql": POSTGRESQL}.get(vendor)
    if statements is None:
        raise NotImplementedError(f"no append-only triggers for {vendor}")
    with schema_editor.connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


class Migration(migrations.Migration):
    dependencies = [("bank", "0001_initial")]

    operations = [migrations.RunPython(create_triggers)]
