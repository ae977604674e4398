# SPDX-License-Identifier: BSD-3-Clause
"""Drive a real bank: its server process, its shell commands, its API."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import queue
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

import psycopg
import requests

ROOT = Path(__file__).resolve().parents[2]
TODAY = datetime.datetime.now(datetime.timezone.utc).date()
DAY = datetime.timedelta(days=1)
SCOPES = ("admin", "relay", "start-only", "read")
READY_S = 20

_COMMANDS = """
import contextlib, io, json, sys
from slurm_banking.server.cli import _standalone
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = _standalone(json.loads(line))
        except SystemExit as stop:
            status = stop.code
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


def instant(day: datetime.date, hour: int = 12, minute: int = 0) -> str:
    return f"{day.isoformat()}T{hour:02d}:{minute:02d}:00Z"


def job(jobslurmid: str, account: Account, amount: str = "1.00", **fields: Any) -> dict[str, Any]:
    """A job that was submitted and started yesterday."""
    values: dict[str, Any] = {
        "jobslurmid": jobslurmid,
        "userid": account.uid,
        "accountid": account.name,
        "amount": amount,
        "submitdate": instant(TODAY - DAY, 10),
        "startdate": instant(TODAY - DAY, 11),
        "jobstatus": "RUNNING",
        "partition": "savio3",
        "qos": "normal",
    }
    values.update(fields)
    return values


@dataclass(frozen=True, kw_only=True)
class Account:
    name: str
    user: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    status: int
    out: str
    err: str


class RunningBank:
    def __init__(
        self,
        database_url: Optional[str] = None,
        data: Optional[Path] = None,
        *,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.database_url = database_url
        self._arguments = arguments  #: of ``serve``, when it is started first
        self.data = data or Path(tempfile.mkdtemp(prefix="bank-", dir="/tmp"))
        self._owns_data = data is None
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "SLURM_BANK_DATA": str(self.data),
            **({"SLURM_BANK_DATABASE": database_url} if database_url else {}),
        }
        self._shell: Optional[subprocess.Popen[str]] = None
        self._server: Optional[subprocess.Popen[str]] = None
        self._numbers = itertools.count(1)
        self.url = ""
        self.keys: dict[str, str] = {}

    def __enter__(self) -> RunningBank:
        try:
            self.start(*self._arguments)
            for scope in SCOPES:
                made = self.shell(
                    "token", "create", "--scope", scope, "--name", f"test {scope}", "--json"
                )
                self.keys[scope] = json.loads(made)["token"]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if self._shell is not None:
            assert self._shell.stdin is not None
            self._shell.stdin.close()
            self._shell.wait(10)
        if self._server is not None:
            self.stop()
        if self._owns_data:
            shutil.rmtree(self.data, ignore_errors=True)

    # -- processes --

    def start(self, *arguments: str) -> str:
        """Start the server; the line with which it says that it is ready."""
        process, self.url, line = self.start_another(*arguments)
        self._server = process
        return line

    def start_another(self, *arguments: str) -> tuple[subprocess.Popen[str], str, str]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "slurm_banking.server.cli",
                "serve",
                "--listen",
                "127.0.0.1:0",
                *arguments,
            ],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=open(self.data / "server.log", "a"),
            text=True,
        )
        lines: queue.Queue[str] = queue.Queue()
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
        reader.start()
        try:
            line = lines.get(timeout=READY_S)
            url = re.search(r"http://\S+/api/", line)
            assert url, f"{line!r}\n{(self.data / 'server.log').read_text()}"
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process, url[0], line

    def stop(self) -> int:
        assert self._server is not None
        process, self._server = self._server, None
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(15)
        finally:
            process.kill()
            if process.stdout is not None:
                process.stdout.close()

    def command(self, *arguments: str, **environment: str) -> Finished:
        """One command as a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "slurm_banking.server.cli", *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Finished(status=done.returncode, out=done.stdout, err=done.stderr)

    def try_shell(self, *arguments: str) -> Finished:
        """The same command line in a process that is kept, since most of a command's time is Django's start."""
        if self._shell is None:
            self._shell = subprocess.Popen(
                [sys.executable, "-c", _COMMANDS],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._shell.stdin is not None and self._shell.stdout is not None
        self._shell.stdin.write(json.dumps(arguments) + "\n")
        self._shell.stdin.flush()
        status, out, err = json.loads(self._shell.stdout.readline())
        return Finished(status=status, out=out, err=err)

    def shell(self, *arguments: str) -> str:
        done = self.try_shell(*arguments)
        assert done.status == 0, done
        return done.out

    # -- what tests set up --

    def fresh(self, what: str) -> str:
        return f"{what}{next(self._numbers)}"

    def account(
        self,
        su: str = "1000",
        limit: Optional[str] = None,
        start: datetime.date = TODAY - 30 * DAY,
        end: datetime.date = TODAY + 30 * DAY,
    ) -> Account:
        """An account with one active member and, unless ``su`` is empty, one allocation."""
        name = self.fresh("fc_")
        self.shell("account", "add", name)
        if su:
            self.shell("allocation", "add", name, su, "--start", str(start), "--end", str(end))
        return self.member(name, limit)

    def member(self, account: str, limit: Optional[str] = None) -> Account:
        number = next(self._numbers)
        user, uid = f"user{number}", str(10000 + number)
        limits = ["--limit", limit] if limit is not None else []
        self.shell("user", "add", user, "--uid", uid, "--account", account, *limits)
        return Account(name=account, user=user, uid=uid)

    # -- the API --

    def request(
        self, method: str, path: str, scope: str = "relay", **arguments: Any
    ) -> requests.Response:
        headers = {"Authorization": f"Token {self.keys[scope]}", **arguments.pop("headers", {})}
        return requests.request(method, self.url + path, headers=headers, timeout=30, **arguments)

    def get(self, path: str, **query: Any) -> Any:
        response = self.request("GET", path, params=query)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, values: Any) -> requests.Response:
        return self.request("POST", "jobs/", json=values)

    def put(self, values: dict[str, Any]) -> requests.Response:
        return self.request("PUT", f"jobs/{values['jobslurmid']}/", json=values)

    def can_submit(self, cost: str, account: Account) -> requests.Response:
        return self.request("GET", f"can_submit_job/{cost}/{account.uid}/{account.name}/")

    def usages(self, account: str) -> list[Decimal]:
        """By the start of the period, what the API says is used of each allocation."""
        found = self.get("allocations/", project=account)["results"]
        rows = sorted(found, key=lambda row: str(row["start_date"]))
        return [
            Decimal(
                self.get(f"allocations/{row['id']}/attributes/")["results"][0]["usage"]["value"]
            )
            for row in rows
        ]

    def usage(self, account: Account) -> Decimal:
        """Of the account's one allocation, which the user's own usage must agree with when they are its one member."""
        (used,) = self.usages(account.name)
        return used

    def user_usage(self, account: Account) -> Decimal:
        (row,) = self.get("allocation_users/", project=account.name, user=account.user)["results"]
        (attribute,) = self.get(f"allocation_users/{row['id']}/attributes/")["results"]
        return Decimal(attribute["usage"]["value"])

    def verified(self) -> bool:
        return self.try_shell("verify").status == 0


@contextmanager
def database_of(bank: RunningBank) -> Iterator[Any]:
    """A connection past the bank's code, in autocommit."""
    if bank.database_url is None:
        connection: Any = sqlite3.connect(
            bank.data / "bank.sqlite3", timeout=20, isolation_level=None
        )
    else:
        connection = psycopg.connect(bank.database_url, autocommit=True)
    try:
        yield connection
    finally:
        connection.close()
