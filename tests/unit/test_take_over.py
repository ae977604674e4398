# SPDX-License-Identifier: BSD-3-Clause
"""After the ledger was lost: what the bank has, and neither queue nor slurmdbd explains, is in the ledger again, and ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slurm_banking import settle
from slurm_banking.bank import BankRun, NoListing
from slurm_banking.errors import BankError, BankUnavailable
from slurm_banking.ledger import LedgerRun
from slurm_banking.ledger.rows import new_lien_id
from slurm_banking.records import QueuedJob
from slurm_banking.relay import sweep
from slurm_banking.relay.rebuild import rebuild
from slurm_banking.relay.take_over import META, WINDOW_S, take_over
from slurm_banking.slurm.accounting import Row
from slurm_banking.slurm.squeue import QueueSnapshot
from slurm_banking.tokens import Token
from slurm_banking.tres import Tres
from tests.unit.test_sweep import Site, a_job, an_ended, started

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
        self.windows: set[tuple[int, int]] = set()

    def open_runs(self, *, since: int, until: int) -> Iterator[BankRun]:
        self.asked += 1
        if self.problem is not None:
            raise self.problem
        yield from (row for row in self._of(since, until) if row.end_time is None)

    def list_runs(self, *, since: int, until: int) -> Iterator[BankRun]:
        yield from self._of(since, until)

    def _of(self, since: int, until: int) -> Iterator[BankRun]:
        self.windows.add((since, until))
        yield from (row for row in self.rows if since <= (row.start_time or 0) < until)


class Slurmdbd:
    """What it has of jobs, however little."""

    def __init__(self, *rows: tuple[int, int]) -> None:
        self.rows = frozenset(rows)

    def rows_by_key(self, job_ids: Sequence[int]) -> dict[tuple[int, int], Row]:
        return {row: A_PART for row in self.rows if row[0] in job_ids}


A_PART = Row(run=an_ended(a_job(submit_time=SUBMIT)), whole=False)
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
    asked = there.asked
    assert take(site, there) is None
    assert (away.asked, there.asked) == (2, asked)


def test_an_answer_that_stops_is_gone_on_with_where_it_stopped(site: Site) -> None:
    """What was read before is written, and not asked for again."""

    class Stops(Bank):
        def _of(self, since: int, until: int) -> Iterator[BankRun]:
            if since > START and not self.problem:
                self.problem = BankUnavailable("no answer")
                raise self.problem
            return super()._of(since, until)

    later = replace(ROW, bank_job_id="8", start_time=START + WINDOW_S)
    bank = Stops(ROW, later)
    with site.ledger.transaction() as tx:
        tx.set_meta(META, f"{START}:{START + 2 * WINDOW_S}")
    slurmdbd = Slurmdbd((7, SUBMIT), (8, SUBMIT))
    with pytest.raises(BankUnavailable):
        take(site, bank, slurmdbd)
    assert [run.job_id for run in site.runs()] == [7]
    bank = Bank(*bank.rows)
    assert take(site, bank, slurmdbd) == 1
    assert bank.windows == {(START + WINDOW_S, START + 2 * WINDOW_S)}
    assert [run.job_id for run in site.runs()] == [7, 8]


@pytest.fixture
def lost(site: Site) -> Site:
    """There had been a ledger: the rebuilding saw its tokens."""
    with site.ledger.transaction() as tx:
        tx.set_meta(META, f"0:{site.now}:ended")
    return site


def ended_row(**changes: Any) -> BankRun:
    values: dict[str, Any] = dict(
        end_time=START + 60, amount_csu=200, held_csu=200, state="COMPLETED"
    )
    return replace(ROW, **{**values, **changes})


def test_what_ended_at_the_bank_is_charged_as_the_bank_has_it(lost: Site) -> None:
    odd = ended_row(bank_job_id="8", amount_csu=777, held_csu=777)  # at a price that was
    assert take(lost, Bank(ended_row(), odd), Slurmdbd((7, SUBMIT), (8, SUBMIT))) == 2
    as_priced, otherwise = lost.runs()
    assert (as_priced.state, as_priced.slurm_state, as_priced.charge_csu) == (
        "ended",
        "COMPLETED",
        200,
    )
    assert (as_priced.start_time, as_priced.end_time, as_priced.elapsed_s) == (
        START,
        START + 60,
        60,
    )
    assert (otherwise.charge_csu, otherwise.ledger_csu) == (777, 777)
    with lost.ledger.transaction() as tx:
        assert [d.phase for d in tx.next_deliveries()] == ["end", "end"]
        assert not tx.check()


@pytest.mark.parametrize("row", [ended_row(), ROW], ids=["ended", "runs on"])
def test_the_task_that_has_its_array_s_id_is_taken_over_beside_the_others(
    lost: Site, row: BankRun
) -> None:
    with lost.ledger.transaction() as tx:
        other = an_ended(a_job(job_id=8, array_job_id=7, array_task_id=0))
        settle.end_run(tx, other, lost.config, actor="relay")
    assert take(lost, Bank(row)) == 1
    assert sorted(run.job_id for run in lost.runs()) == [7, 8]


@pytest.mark.parametrize("row", [ended_row(), ROW], ids=["ended", "runs on"])
def test_a_run_whose_key_another_user_s_later_one_has_stays_at_the_bank(
    lost: Site, caplog: pytest.LogCaptureFixture, row: BankRun
) -> None:
    """slurmctld had given its job id again, and slurmdbd has the later one alone."""
    with lost.ledger.transaction() as tx:
        later = an_ended(a_job(user_id=1002), user_id=1002, start_time=START + 5)
        settle.end_run(tx, later, lost.config, actor="relay")
    assert take(lost, Bank(row)) == 0
    assert the_run(lost).user_id == 1002
    assert ("bank_row_of_nobody bank_job=7" in caplog.text) == (row.end_time is None)


def test_a_first_ledger_does_not_take_what_the_bank_has_from_before_it(site: Site) -> None:
    assert take(site, Bank(ended_row())) == 0
    assert not site.runs()


@pytest.mark.parametrize("token", [True, False], ids=["a_ledger_was_lost", "the_first_ledger"])
def test_tokens_say_whether_a_ledger_was_lost(tmp_path: Path, token: bool) -> None:
    site = Site(tmp_path)
    site.now = site.created + 100
    before = an_ended(
        a_job(job_id=9, submit_time=site.created - 900),
        start_time=site.created - 800,
        end_time=site.created - 200,
        admin_comment=str(Token(lien_id=new_lien_id(), per_task_csu=1, price_version="v1"))
        if token
        else "",
    )
    site.sacct.rows = [before]
    with site.ledger.transaction() as tx:
        tx.set_meta("complete", "0")
    rebuild(site.ledger, site.config, queue(site), site.sacct, None, site.now)
    with site.ledger.transaction() as tx:
        assert str(tx.meta(META)).endswith(":ended") == token


def test_an_ended_run_of_a_job_that_the_queue_has_is_left_to_it(lost: Site) -> None:
    job = a_job(submit_time=SUBMIT)
    assert take(lost, Bank(ended_row()), HAS_IT, job) == 0


@pytest.mark.parametrize("state", ["PENDING", "STRUCK"])
def test_what_never_ran_or_never_was_is_not_taken(lost: Site, state: str) -> None:
    assert take(lost, Bank(ended_row(state=state, amount_csu=0, held_csu=0))) == 0
    assert not lost.runs()


def test_an_ended_run_that_slurmdbd_has_no_trace_of_is_another_clusters(
    lost: Site, caplog: pytest.LogCaptureFixture
) -> None:
    assert take(lost, Bank(ended_row()), Slurmdbd()) == 0
    assert "bank_row_of_nobody" not in caplog.text and not lost.runs()


def test_of_a_run_that_is_taken_over_slurmdbd_may_have_the_times(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """It never got the start, and so knows no partition: charged by its times, in the bank's partition."""
    assert take(site, Bank(ROW)) == 1
    part = an_ended(a_job(submit_time=SUBMIT, partition=""), user_id=0, cpus=2, tres=Tres(cpus=2))
    site.sacct.parts = [part]
    for _ in range(4):
        site.see(after_s=sweep.LOST_S)
    run = the_run(site)
    assert (run.state, run.slurm_state, run.charge_csu) == ("ended", "COMPLETED", 2_000)
    assert (run.user_id, run.account, run.partition) == (1001, "fc_alpha", "main")
    assert f"run_ended_by_times job_id=7 submit_time={SUBMIT} elapsed_s=600" in caplog.text


def test_times_of_another_accounts_job_are_not_this_ones(site: Site) -> None:
    assert take(site, Bank(ROW)) == 1
    site.sacct.parts = [an_ended(a_job(submit_time=SUBMIT), user_id=0, account="fc_beta")]
    for _ in range(4):
        site.see(after_s=sweep.LOST_S)
    assert (the_run(site).slurm_state, the_run(site).charge_csu) == ("LOST", 0)


def test_what_began_in_the_second_in_which_slurmctld_was_started_again_is_lost_like_what_began_before(
    site: Site,
) -> None:
    site.boot_time = START
    assert take(site, Bank(ROW)) == 1
    for _ in range(4):
        site.see(after_s=sweep.LOST_S)
    assert (the_run(site).slurm_state, the_run(site).charge_csu) == ("LOST", 0)


def test_the_end_of_another_users_job_is_not_this_ones(site: Site) -> None:
    """slurmctld was killed before it had saved the id that it gave to a task, and gave it again in the same second."""
    assert take(site, Bank(ROW)) == 1
    site.sacct.rows = [an_ended(a_job(submit_time=SUBMIT), user_id=1002, account="fc_beta")]
    for _ in range(4):
        site.see(after_s=sweep.LOST_S)
    assert (the_run(site).slurm_state, the_run(site).charge_csu) == ("LOST", 0)


def test_times_without_an_end_are_no_times_and_an_absent_slurmdbd_ends_nothing(site: Site) -> None:
    assert take(site, Bank(ROW)) == 1
    site.sacct.parts = [
        an_ended(a_job(submit_time=SUBMIT), state="RUNNING", end_time=None, elapsed_s=9)
    ]
    site.see(after_s=sweep.LOST_S)
    site.see(after_s=60)
    site.sacct.away = True
    site.see(after_s=sweep.LOST_S)
    assert the_run(site).state == "running"
    site.sacct.away = False
    for _ in range(3):
        site.see(after_s=sweep.LOST_S)
    assert (the_run(site).slurm_state, the_run(site).charge_csu) == ("LOST", 0)


def test_a_bank_that_lists_nothing_is_asked_once(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    bank = Bank(problem=NoListing("the bank does not list its rows by time"))
    assert take(site, bank) == 0
    assert caplog.text.count("bank_rows_not_listed") == bank.asked == 1
    assert take(site, bank) is None


def test_without_a_rebuild_the_bank_is_not_asked(tmp_path: Path) -> None:
    bank = Bank(ROW)
    assert take(Site(tmp_path), bank) is None
    assert bank.asked == 0
