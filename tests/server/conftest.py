# SPDX-License-Identifier: BSD-3-Clause
"""The bank as a process of its own, over SQLite and over a PostgreSQL of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .running_bank import RunningBank

POSTGRESQL_BIN = next(
    iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)),
    Path("/none/initdb"),
).parent


class PostgreSQL:
    """A cluster in a scratch directory, reached through its unix socket only."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        data = directory / "data"
        self._run("initdb", "-D", str(data), "-U", "bank", "-A", "trust", "-E", "UTF8", "--no-sync")
        with open(data / "postgresql.conf", "a") as configuration:
            configuration.write(
                f"listen_addresses = ''\nunix_socket_directories = '{directory}'\nfsync = off\n"
            )

    def start(self) -> None:
        self._run(
            "pg_ctl", "-D", f"{self.directory}/data", "-l", f"{self.directory}/log", "-w", "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", f"{self.directory}/data", "-m", "fast", "-w", "stop")

    def create_database(self, name: str) -> str:
        """The URL of a new database."""
        self._run("createdb", "-h", str(self.directory), "-U", "bank", name)
        return f"postgresql://bank@/{name}?host={self.directory}"

    def _run(self, tool: str, *arguments: str) -> None:
        command = [*self._as_postgres, str(POSTGRESQL_BIN / tool), *arguments]
        subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL, cwd="/")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    if not (POSTGRESQL_BIN / "initdb").exists():
        pytest.skip("no /usr/lib/postgresql/*/bin/initdb on this host")
    directory = Path(tempfile.mkdtemp(prefix="bank-pg-", dir="/tmp"))
    if os.geteuid() == 0:
        shutil.chown(directory, "postgres", "postgres")
    server = PostgreSQL(directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def bank(request: pytest.FixtureRequest, database: str) -> Iterator[RunningBank]:
    """One server per kind of database for all tests; each test makes accounts and users of its own."""
    url = None
    if database == "postgresql":
        # made again when the order of tests changes the kind of database to and fro
        url = request.getfixturevalue("postgresql").create_database(f"bank_{os.urandom(4).hex()}")
    with RunningBank(url) as running:
        yield running
