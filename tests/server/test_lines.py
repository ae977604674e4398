# SPDX-License-Identifier: BSD-3-Clause
"""What docs/operating.md says of the bundled bank: every line of its log, and how its database is copied."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .running_bank import RunningBank, database_of, job


def log_of(bank: RunningBank) -> str:
    return (bank.data / "server.log").read_text()


def test_a_database_that_is_away_is_a_line_and_503_until_it_is_back(tmp_path: Path) -> None:
    with RunningBank(data=tmp_path / "bank") as bank:
        account = bank.account()
        assert bank.can_submit("1", account).status_code == 200
        with database_of(bank) as database:
            database.execute("ALTER TABLE bank_allocation RENAME TO away")
            answer = bank.can_submit("1", account)
            assert answer.status_code == 503 and answer.headers["Retry-After"]
            database.execute("ALTER TABLE away RENAME TO bank_allocation")
        assert bank.can_submit("1", account).status_code == 200
        assert log_of(bank).count("database_unavailable reason=") == 1


def test_a_mistake_of_ours_is_a_line_with_its_trace_and_tells_the_caller_nothing(
    tmp_path: Path,
) -> None:
    with RunningBank(data=tmp_path / "bank") as bank:
        account = bank.account()
        with database_of(bank) as database:
            database.execute("UPDATE bank_allocation SET start_date = '0 is a secret'")
        answer = bank.request("GET", "allocations/", params={"project": account.name})
        assert (answer.status_code, answer.json()) == (500, {"detail": "Unexpected server error."})
        log = log_of(bank)
        assert "secret" not in answer.text
        assert "request_failed path=/api/allocations/" in log and "Traceback" in log


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs the command sqlite3")
def test_a_copy_made_by_sqlite_while_the_bank_runs_is_whole(tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir(mode=0o700)
    with RunningBank(data=tmp_path / "bank") as bank:
        account = bank.account()
        assert bank.put(job("1", account, "5.00")).status_code == 200
        command = ["sqlite3", f"{bank.data}/bank.sqlite3", f".backup {copied}/bank.sqlite3"]
        subprocess.run(command, check=True, timeout=60)
        keys = bank.keys
    again = RunningBank(data=copied)
    again.keys = keys
    try:
        again.start()
        assert str(again.usage(account)) == "5.00" and again.verified()
    finally:
        again.__exit__(None, None, None)
