# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking reconcile``: what it prints, and how it says that it could not look."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_banking.cli import program, reconcile_run
from slurm_banking.reconcile import run as reconciling
from slurm_banking.reconcile.run import recall
from tests.unit.reconcile_parts import T0, UNTIL, Books, a_slurm_run
from tests.unit.test_reconcile import overcharge


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    made = Books(tmp_path / "state")
    yield made
    made.close()


def test_agreement_is_one_line_after_what_was_compared(books: Books) -> None:
    books.end(a_slurm_run(1))
    books.accounting.runs.append(a_slurm_run(2, account="exempt"))
    lines = reconcile_run.told(books.compare())
    assert "2 runs in slurmdbd, 1 rows at the bank" in lines[0]
    assert lines[-1] == "All agrees."
    assert "Not compared: 1 exempt by configuration." in lines


def test_a_table_by_kind_then_the_findings_and_how_many_more(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile_run, "SHOWN", 2)
    for job_id in range(1, 5):
        account = "astro" if job_id < 4 else "bio"
        overcharge(books, books.end(a_slurm_run(job_id, account=account)))
    lines = reconcile_run.told(books.compare())
    table = [line.split() for line in lines if line.startswith(("KIND", "misch", "   "))]
    assert table[0] == ["KIND", "WHERE", "FOUND", "ACCOUNT", "SU", "TOO", "MUCH"]
    assert table[1] == ["mischarged", "ledger", "4", "astro", "+0.21"]
    assert table[2] == ["bio", "+0.07"]
    assert sum("by slurmdbd user 1001" in line for line in lines) == 2
    assert "and 2 more; --json has all" in lines


def test_nothing_that_users_wrote_moves_the_cursor(books: Books) -> None:
    run = books.end(a_slurm_run(1, user_name="al\x1b[2Jice", partition="main"))
    row = books.bank.rows[str(run.bank_job_id)]
    books.bank.put(replace(row, bank_job_id="1-r9", account="a\x1b[2Jb", user_id="7"))
    lines = reconcile_run.told(books.compare())
    assert not any("\x1b" in line for line in lines) and any("a?[2Jb" in line for line in lines)


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", said)
    progress = reconcile_run._Progress(str(books.directory), T0, UNTIL, clock=lambda: now[0])

    def tick(report: reconciling.Report) -> None:
        now[0] += 6
        progress(report)

    books.end(a_slurm_run(1))
    report = books.compare(progress=tick)
    progress.end()
    lines = said.getvalue().splitlines()
    assert 1 <= len(lines) < report.windows + 1
    assert all(line.startswith("slurm-banking: reconcile: ") for line in lines)
    assert recall(str(books.directory)).clean_until == UNTIL, "and how far all agrees is kept"


CONFIG = """
[API]
url = "http://127.0.0.1:9/api"
token_file = "{directory}/token"
timeout_s = 1
[Ledger]
state_dir = "{directory}/state"
[PartitionPrice]
main = 1
"""


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir(mode=0o700)
    os.chown(tmp_path / "state", 1, 1)
    path = tmp_path / "bank-config.toml"
    path.write_text(CONFIG.format(directory=tmp_path))
    (tmp_path / "slurm.conf").write_text("ClusterName=c\n")
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--since", "yesterdayish"], "--since "),
        (["--fix"], "--reason"),
        (["--config", "/nonexistent/bank-config.toml"], "/nonexistent/bank-config.toml"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(
    config_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    status = program.main(["reconcile", "--config", str(config_path), *words])
    said = capsys.readouterr()
    assert (status, said.out) == (2, "")
    assert expected in said.err and len(said.err.splitlines()) == 1


def test_without_a_ledger_none_is_made(
    config_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm_banking.relay.daemon.become_slurm_user", lambda config: None)
    monkeypatch.setattr(os, "nice", lambda more: 0)
    status = program.main(["reconcile", "--config", str(config_path)])
    assert status == 2 and "there is none" in capsys.readouterr().err
    assert os.listdir(config_path.parent / "state") == []
