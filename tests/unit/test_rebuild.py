# SPDX-License-Identifier: BSD-3-Clause
"""A ledger that is new, lost or unclean is made whole from Slurm's queue, slurmdbd and the bank."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm_banking.bank import BankRun
from slurm_banking.errors import BankUnavailable, SlurmUnavailable
from slurm_banking.ledger import LedgerRun
from slurm_banking.records import QueuedJob
from slurm_banking.relay.rebuild import RebuildReport, RunsAtBank, rebuild
from slurm_banking.slurm.squeue import QueueSnapshot
from slurm_banking.tokens import Token
from tests.builders import funds_of
from tests.unit.test_sweep import Site, a_job, an_ended, started

TOKEN = Token(lien_id="ab" * 16, per_task_csu=6000, price_version="v0")


class Bank:
    """The rows that the bank has, by job id."""

    def __init__(self, *rows: BankRun, away: bool = False) -> None:
        self.rows = {row.bank_job_id: row for row in rows}
        self.away = away

    def find_run(self, run: LedgerRun) -> BankRun | None:
        if self.away:
            raise BankUnavailable("no answer")
        return self.rows.get(str(run.job_id))


def a_row(job_id: int, csu: int, end_time: int | None) -> BankRun:
    return BankRun(
        bank_job_id=str(job_id),
        user_id="1001",
        account="fc_alpha",
        submit_time=2_000_000_000,
        start_time=2_000_000_010,
        end_time=end_time,
        amount_csu=csu,
        state="COMPLETED" if end_time else "RUNNING",
        held_csu=csu,
    )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    with made.ledger.transaction() as tx:
        tx.set_meta("complete", "0")
    made.now = 2_000_000_700
    return made


def build(
    site: Site, *jobs: QueuedJob, bank: RunsAtBank | None = None, complete: bool = True
) -> RebuildReport:
    snapshot = QueueSnapshot(
        cluster="c", jobs=jobs, taken_at=site.now, boot_time=site.boot_time, complete=complete
    )
    return rebuild(site.ledger, site.config, snapshot, site.sacct, bank, site.now)


def is_complete(site: Site) -> bool:
    with site.ledger.transaction() as tx:
        return tx.complete


def test_queue_and_accounting_make_the_ledger_whole(site: Site) -> None:
    site.sacct.rows = [an_ended(a_job(job_id=9))]
    report = build(site, a_job(TOKEN), started(a_job(job_id=8)), bank=Bank())
    assert (report.opened, report.started, report.charged) == ({"rebuilt": 1}, 1, 1)
    assert report.complete and is_complete(site)
    assert site.counted() == 6000 + 6000 + 1000


def test_a_whole_ledger_is_left_alone(site: Site) -> None:
    build(site)
    report = build(site, a_job(TOKEN), bank=Bank(away=True))
    assert (report.needed, report.complete) == (False, True)
    assert site.open_liens() == []


def test_what_the_bank_has_already_is_not_counted_twice(site: Site) -> None:
    site.sacct.rows = [an_ended(a_job(job_id=9))]
    report = build(
        site,
        started(a_job(TOKEN, job_id=8)),
        bank=Bank(a_row(8, 6000, None), a_row(9, 1000, 2_000_000_610)),
    )
    assert (report.at_bank, site.counted()) == (2, 0)
    with site.ledger.transaction() as tx:
        assert tx.outbox_size()[0] == 0
    assert {run.bank_job_id for run in site.runs()} == {"8", "9"}


def test_a_run_of_which_the_bank_has_only_the_start_has_its_end_delivered(site: Site) -> None:
    site.sacct.rows = [an_ended(a_job(job_id=9))]
    build(site, bank=Bank(a_row(9, 6000, None)))
    with site.ledger.transaction() as tx:
        (delivery,) = tx.next_deliveries()
    assert (delivery.phase, delivery.run.bank_job_id, delivery.run.bank_csu) == ("end", "9", 6000)
    assert site.counted() == 1000 - 6000


def test_an_acknowledgement_lost_with_the_power_makes_nothing_available_twice(site: Site) -> None:
    with site.ledger.transaction() as tx:
        tx.put_funds(funds_of("fc_alpha", 10_000))
    site.sacct.rows = [an_ended(a_job(job_id=9))]
    build(site, bank=Bank(a_row(9, 1000, 2_000_000_610)))
    with site.ledger.transaction() as tx:
        assert tx.funds_view("fc_alpha", 1001).account_available_csu == 9_000


def test_the_bank_being_away_does_not_keep_the_ledger_from_being_whole(site: Site) -> None:
    site.sacct.rows = [an_ended(a_job(job_id=9))]
    report = build(site, bank=Bank(away=True))
    assert (report.complete, report.bank_away, site.counted()) == (True, "no answer", 1000)
    with site.ledger.transaction() as tx:
        assert [delivery.phase for delivery in tx.next_deliveries()] == ["end"]


def test_without_accounting_the_ledger_stays_incomplete(site: Site) -> None:
    site.sacct.away = True
    with pytest.raises(SlurmUnavailable):
        build(site, a_job(TOKEN))
    assert not is_complete(site)
    site.sacct.away = False
    assert build(site, a_job(TOKEN)).complete
    assert site.counted() == 6000, "taken over once"


def test_a_queue_that_hides_jobs_makes_nothing_whole(site: Site) -> None:
    report = build(site, complete=False)
    assert not report.complete and "SlurmUser" in report.waiting
    assert not is_complete(site)
