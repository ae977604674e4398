# SPDX-License-Identifier: BSD-3-Clause
"""After the ledger was lost: what the bank has as running, and neither queue nor slurmdbd explains, ends at the bank, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_banking.bank import BankRun, NoListing
from slurm_banking.errors import BankError, BankUnavailable
from slurm_banking.ledger import LedgerRun
from slurm_banking.records import QueuedJob
from slurm_banking.relay import sweep
from slurm_banking.relay.rebuild import rebuild
from slurm_banking.relay.take_over import META, take_over
from slurm_banking.slurm.squeue import QueueSnapshot
from tests.unit.test_sweep import Site, a_job, started

SUBMIT, START = 2_000_000_000, 2_000_000_010

ROW = BankRun(
    bank_job_id="7",
    user_id="1001",
    account="fc_alpha",
    submit_time=SUBMIT,
    start_time=START,
    end_time=None,
    amount_csu=12_000,
    state="RUNNING",
    held_csu=12_000,
    partition="main",
    qos="normal",
    cpus=2,
)


class Bank:
    def __init__(self, *rows: BankRun, problem: BankError | None = None) -> None:
        self.rows, self.problem, self.asked = rows, problem, 0

    def open_runs(self, *, since: int, until: int) -> Iterator[BankRun]:
        self.asked += 1
        if self.problem is not None:
            raise self.problem
        yield from (row for row in self.rows if since <= (row.start_time or 0) < until)


class Slurmdbd:
    """What it has of jobs, however little."""

    def __init__(self, *rows: tuple[int, int]) -> None:
        self.rows = frozenset(rows)

    def submitted(self, job_ids: Sequence[int]) -> frozenset[tuple[int, int]]:
        return frozenset(row for row in self.rows if row[0] in job_ids)


HAS_IT = Slurmdbd((7, SUBMIT))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Its ledger was lost, and is whole again; slurmctld was restarted since the run began."""
    made = Site(tmp_path)
    made.now, made.boot_time = 2_000_000_700, 2_000_000_600
    with made.ledger.transaction() as tx:
        tx.set_meta("complete", "0")
    rebuild(made.ledger, made.config, queue(made), made.sacct, None, made.now)
    return made


def queue(site: Site, *jobs: QueuedJob) -> QueueSnapshot:
    return QueueSnapshot(
        cluster="c", jobs=jobs, taken_at=site.now, boot_time=site.boot_time, complete=True
    )


def take(site: Site, bank: Bank, slurmdbd: Slurmdbd = HAS_IT, *jobs: QueuedJob) -> int | None:
    return take_over(site.ledger, site.config, queue(site, *jobs), slurmdbd, lambda: bank)


def the_run(site: Site) -> LedgerRun:
    (run,) = site.runs()
    return run


def test_what_runs_on_at_the_bank_alone_is_ended_there_like_any_run_that_slurmctld_forgot(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert take(site, Bank(ROW)) == 1
    assert "bank_rows_looked_at rows=1 taken_over=1" in caplog.text
    run = the_run(site)
    assert (run.state, run.account, run.user_id, run.cpus) == ("running", "fc_alpha", 1001, 2)
    assert (run.ledger_csu, run.bank_csu, run.bank_job_id) == (12_000, 12_000, "7")
    assert site.counted() == 0
    for _ in range(4):
        site.see(after_s=sweep.LOST_S)
    run = the_run(site)
    assert (run.state, run.charge_csu, run.bank_job_id) == ("ended", 0, "7")
    with site.ledger.transaction() as tx:
        (waiting,) = tx.next_deliveries()
    assert waiting.phase == "end" and waiting.run.run_id == run.run_id


def test_a_later_run_of_a_requeued_job_keeps_its_count(site: Site) -> None:
    assert take(site, Bank(replace(ROW, bank_job_id="7-r2"))) == 1
    assert the_run(site).restart_count == 2


def test_what_slurmdbd_has_no_trace_of_is_left_alone_and_told(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Another cluster may have it."""
    other = Slurmdbd((7, SUBMIT - 1), (8, SUBMIT))
    assert take(site, Bank(ROW), other) == 0
    assert not site.runs()
    assert "bank_row_of_nobody bank_job=7" in caplog.text


@pytest.mark.parametrize(
    "row",
    [
        replace(ROW, end_time=START + 5),
        replace(ROW, bank_job_id="other-7"),
        replace(ROW, user_id="alice"),
        replace(ROW, submit_time=None, amount_csu=0),
        replace(ROW, start_time=2_000_000_701),
    ],
    ids=["ended", "not_our_id", "no_number", "told_by_a_node", "began_since"],
)
def test_what_is_no_open_run_of_ours_is_left_alone(row: BankRun, site: Site) -> None:
    assert take(site, Bank(row), Slurmdbd((7, SUBMIT), (7, 0))) == 0
    assert not site.runs()


def test_what_the_queue_has_is_not_taken_from_the_bank(site: Site) -> None:
    job = started(a_job(submit_time=SUBMIT))
    assert take(site, Bank(ROW), HAS_IT, job) == 0
    assert not site.runs()


def test_of_a_job_that_waits_by_the_queue_the_bank_may_have_a_run(site: Site) -> None:
    """slurmctld forgot its start; cancelled before it starts again, it would be held at the bank for ever."""
    waiting = a_job(submit_time=SUBMIT)
    assert take(site, Bank(ROW), HAS_IT, waiting) == 1
    assert (the_run(site).state, the_run(site).bank_csu) == ("running", 12_000)
    for _ in range(4):
        site.see(after_s=sweep.LOST_S)
    assert (the_run(site).state, the_run(site).charge_csu) == ("ended", 0)


def test_it_is_taken_once(site: Site) -> None:
    assert take(site, Bank(ROW)) == 1
    assert take(site, Bank(ROW)) is None
    with site.ledger.transaction() as tx:
        tx.set_meta(META, f"0:{site.now}")
    assert take(site, Bank(ROW)) == 0
    assert len(site.runs()) == 1


def test_the_bank_is_asked_again_until_it_answers_and_then_no_more(site: Site) -> None:
    away = Bank(ROW, problem=BankUnavailable("no answer"))
    for _ in range(2):
        with pytest.raises(BankUnavailable):
            take(site, away)
    there = Bank()
    assert take(site, there) == 0
    assert take(site, there) is None
    assert (away.asked, there.asked) == (2, 1)


def test_a_bank_that_lists_nothing_is_asked_once(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    bank = Bank(problem=NoListing("the bank does not list its rows by time"))
    assert take(site, bank) == 0
    assert "bank_rows_not_listed" in caplog.text
    assert take(site, bank) is None


def test_without_a_rebuild_the_bank_is_not_asked(tmp_path: Path) -> None:
    bank = Bank(ROW)
    assert take(Site(tmp_path), bank) is None
    assert bank.asked == 0
