# SPDX-License-Identifier: BSD-3-Clause
"""A subclass rather than settings, since ``transaction_mode`` and ``init_command`` are newer than Django 4.2.

``BEGIN IMMEDIATE``: a transaction that read first and then wants to write would fail at once, whatever the busy
timeout, if another wrote in between. ``synchronous=FULL``: what the bank has acknowledged is on disk.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any

from django.db.backends.sqlite3 import base


class DatabaseWrapper(base.DatabaseWrapper):
    def get_new_connection(self, conn_params: Any) -> Any:
        # 0600, and SQLite gives its side files the same. Not by opening it: to close a descriptor of the file would
        # drop the locks of this process's other connections.
        with contextlib.suppress(OSError):  # If it cannot be made, SQLite says so.
            os.mknod(conn_params["database"], 0o600 | stat.S_IFREG)
        connection = super().get_new_connection(conn_params)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _start_transaction_under_autocommit(self) -> None:
        self.cursor().execute("BEGIN IMMEDIATE")
