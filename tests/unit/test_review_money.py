# SPDX-License-Identifier: BSD-3-Clause
"""Ways in which money went wrong once: each on a real ledger, with Slurm's own order of events."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slurm_banking import settle
from slurm_banking.config import Config
from slurm_banking.ledger import LedgerRun
from slurm_banking.records import JobUpdate, Mode, Outcome, Run, Segment
from slurm_banking.relay import sweep
from slurm_banking.tres import Tres
from tests.builders import SUBMITTED, a_run, a_submission
from tests.unit.test_engine import Site as Controller
from tests.unit.test_rebuild import Bank, a_row, build
from tests.unit.test_sweep import Site, a_job, a_task, an_ended, started


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    with made.ledger.transaction() as tx:
        assert tx.check() == []


def told(site: Site, run: Run, config: Config | None = None) -> Any:
    """The completion plugin tells an end."""
    with site.ledger.transaction() as tx:
        return settle.end_run(tx, run, config or site.config, actor="slurmctld")


def run_of(site: Site, job_id: int = 7) -> LedgerRun:
    return next(run for run in site.runs() if run.job_id == job_id)


# -- a run that is made smaller while it runs ---------------------------------------------------------------------------

#: Eight CPUs for ten minutes, then one for the last one: 60.00 SU per CPU and hour.
SHRUNK_CSU = 8 * 1000 + 100


def a_segment(**changes: Any) -> Run:
    """What the completion plugin is told when nodes leave a run: the CPUs until then."""
    values: dict[str, Any] = dict(
        state="RUNNING", resizing=True, cpus=8, elapsed_s=600, submit_time=2_000_000_000,
        start_time=2_000_000_010, end_time=2_000_000_610,
    )  # fmt: skip
    return a_run(**{**values, **changes})


def its_end(**changes: Any) -> Run:
    values: dict[str, Any] = dict(
        cpus=1, elapsed_s=660, submit_time=2_000_000_000, start_time=2_000_000_010,
        end_time=2_000_000_670,
    )  # fmt: skip
    return a_run(**{**values, **changes})


def test_a_run_that_gave_nodes_back_is_charged_for_them_until_then(site: Site) -> None:
    site.see(started(a_job(cpus=8)))
    told(site, a_segment())
    assert told(site, its_end()).run.charge_csu == SHRUNK_CSU


def test_nodes_given_back_stay_set_aside_as_far_as_they_were_used(site: Site) -> None:
    site.see(started(a_job(cpus=8)))
    told(site, a_segment())
    site.see(started(a_job(cpus=1)))
    assert site.counted() == 6000 + 7 * 1000, "one CPU for an hour, seven for the ten minutes"


def test_a_resize_told_again_counts_once(site: Site) -> None:
    for _ in range(2):
        told(site, a_segment())
    told(site, a_segment(cpus=4, elapsed_s=630))
    assert told(site, its_end()).run.charge_csu == 8 * 1000 + 4 * 50 + 50


def test_a_resize_that_slurmctld_could_not_write_is_settled_from_accounting(site: Site) -> None:
    told(site, its_end())
    assert run_of(site).charge_csu == 1100
    parts = Segment(tres=Tres(cpus=8), seconds=600), Segment(tres=Tres(cpus=1), seconds=60)
    site.sacct.rows = [its_end(source="sacct", segments=parts)]
    site.now = 2_000_000_700
    for _ in range(2):
        site.window(since=2_000_000_000)
    assert run_of(site).charge_csu == SHRUNK_CSU


# -- a finished job that is put back into the queue ---------------------------------------------------------------------


def test_requeueing_a_finished_job_charges_nothing_for_the_time_after_its_end(site: Site) -> None:
    """Slurm 22.05 tells the finished run once more then, as if it had gone on until now."""
    told(site, an_ended(a_job()))
    again = replace(
        an_ended(a_job()), state="REQUEUED", requeue=True, end_time=2_000_004_210, elapsed_s=4200
    )
    for _ in range(2):
        result = told(site, again)
        assert run_of(site).charge_csu == 1000
    assert result.kind == "duplicate"
    (lien,) = site.open_liens()
    assert (lien.origin, lien.job_id, lien.restart_count, lien.amount_csu) == (
        "requeue",
        7,
        1,
        6000,
    )


# -- exempt -------------------------------------------------------------------------------------------------------------


def test_a_job_moved_to_an_exempt_qos_costs_nothing_and_its_lien_ends(tmp_path: Path) -> None:
    site = Site(tmp_path, policy='exempt_qos = ["free"]')
    token = site.submit(6000)
    site.see(a_job(token))
    moved = started(a_job(token, qos="free"))
    site.sacct.rows = [replace(an_ended(moved, qos="free"), end_time=None, state="RUNNING")]
    for _ in range(8):
        site.see(moved)
    assert site.lien(token).end_kind == "lien_voided"
    site.sacct.rows = [an_ended(moved, qos="free")]
    for _ in range(3):
        site.see()
    assert site.runs() == []


def test_a_short_job_of_an_exempt_qos_is_not_charged_when_its_lien_ends(tmp_path: Path) -> None:
    site = Site(tmp_path, policy='exempt_qos = ["free"]')
    token = site.submit(6000)
    site.see(a_job(token))
    site.sacct.rows = [an_ended(a_job(token), qos="free")]
    for _ in range(8):
        site.see()
    assert (site.runs(), site.lien(token).end_kind) == ([], "lien_voided")


# -- moves to another account -------------------------------------------------------------------------------------------


def move_one_task(site: Site) -> tuple[Any, str]:
    """Task 3 of four is asked to move; what the plugin writes."""
    token = site.submit(6000, tasks=4)
    site.see(a_job(token, array_job_id=7, tasks=4))
    lien = site.lien(token)
    with site.ledger.transaction() as tx:
        moved = tx.open_lien(
            account="fc_beta", user_id=1001, per_task_csu=6000, tasks=1, origin="update",
            inputs=lien.inputs, reason="update", actor="slurmctld", job_id=7, submit_time=2_000_000_000,
            supersedes=lien.lien_id,
        )  # fmt: skip
    return token, moved


def test_one_task_moved_to_another_account_leaves_the_others_set_aside(site: Site) -> None:
    token, _ = move_one_task(site)
    rest = a_job(token, array_job_id=7, tasks=3)
    split = a_job(token, job_id=9, array_job_id=7, array_task_id=3, account="fc_beta")
    for _ in range(3):
        site.see(rest, split)
        assert site.lien(token).amount_csu == 3 * 6000
        assert [lien.account for lien in site.open_liens()] == ["fc_alpha", "fc_beta"]


def test_a_moved_task_that_starts_at_once_leaves_the_others_set_aside(site: Site) -> None:
    token, _ = move_one_task(site)
    rest = a_job(token, array_job_id=7, tasks=3)
    for _ in range(2):
        site.see(rest, a_task(a_job(token, array_job_id=7, account="fc_beta"), 9, 3))
        assert site.lien(token).amount_csu == 3 * 6000


def test_a_whole_array_moved_whose_tasks_start_at_once_leaves_nothing_behind(site: Site) -> None:
    token = site.submit(6000, tasks=2)
    site.see(a_job(token, array_job_id=7, tasks=2))
    with site.ledger.transaction() as tx:
        tx.open_lien(
            account="fc_beta", user_id=1001, per_task_csu=6000, tasks=2, origin="update",
            inputs={}, reason="update", actor="slurmctld", job_id=7,
            submit_time=2_000_000_000, supersedes=token.lien_id,
        )  # fmt: skip
    moved = a_job(token, array_job_id=7, account="fc_beta")
    site.see(a_task(moved, 8, 1), a_task(moved, 7, 2))
    assert site.open_liens() == [] and site.counted() == 0


def test_an_update_of_a_job_finds_its_lien_and_not_one_of_an_id_used_before(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    controller = Controller(tmp_path)
    controller.give(1_000)
    verdict = controller.engine.submit(a_submission())
    with controller.ledger.transaction() as tx:
        lost = tx.open_lien(
            account="fc_alpha", user_id=1001, per_task_csu=100, tasks=1, origin="submit", inputs={},
            reason="fits", actor="test", job_id=7, submit_time=SUBMITTED - 50, confirmed=True,
        )  # fmt: skip
    wanted = a_submission(time_limit_min=120, admin_comment=verdict.token)
    controller.engine.update(JobUpdate(wanted=wanted, job_id=7, submit_time=SUBMITTED))
    amounts = {lien.lien_id == lost: lien.amount_csu for lien in controller.liens()}
    assert amounts == {True: 100, False: 200}


# -- modes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "counted"), [(Mode.STRICT_ALLOCATION, 6000), (Mode.FAST_ALLOCATION, 0), (Mode.NOTIONAL_CHARGING, 0)])  # fmt: skip
def test_a_requeued_job_counts_while_it_waits_as_any_queued_job_does(
    site: Site, mode: Mode, counted: int
) -> None:
    config = replace(site.config, policy=replace(site.config.policy, mode=mode))
    told(site, replace(an_ended(a_job()), state="REQUEUED", requeue=True), config)
    assert site.counted() == 1000 + counted


def test_an_update_that_costs_no_more_is_accepted_whatever_the_funds_are(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    controller = Controller(tmp_path, mode="fast-allocation")
    controller.give(1_000)
    token = controller.engine.submit(a_submission(time_limit_min=120)).token
    controller.give(10)
    for minutes, outcome in ((60, Outcome.ACCEPTED), (180, Outcome.REFUSED)):
        wanted = a_submission(time_limit_min=minutes, admin_comment=token)
        update = JobUpdate(wanted=wanted, job_id=7, submit_time=SUBMITTED)
        assert controller.engine.update(update).outcome is outcome


# -- what slurmctld could not write, and a ledger that was lost ---------------------------------------------------------


def test_a_mark_outlives_a_day_without_accounting(site: Site) -> None:
    path = os.path.join(site.state_dir, sweep.RESCAN_NAME)
    Path(path).write_text('{"job_id": 7, "submit_time": 2000000000, "at": %d}\n' % site.now)
    site.now += 86_400
    site.window()
    site.sacct.rows = [an_ended(a_job(), end_time=site.created + 60)]
    site.window()
    assert run_of(site).charge_csu == 1000


def test_a_mark_of_a_job_that_never_ran_is_settled_when_accounting_says_so(site: Site) -> None:
    path = os.path.join(site.state_dir, sweep.RESCAN_NAME)
    Path(path).write_text('{"job_id": 7, "submit_time": 2000000000, "at": %d}\n' % site.now)
    never = an_ended(a_job(), started=False, state="CANCELLED", elapsed_s=0, nodes="", cpus=0)
    site.sacct.rows = [never]
    site.window()
    assert not os.path.exists(path) and not os.path.exists(path + ".taken")


def test_a_rebuilt_ledger_keeps_the_charge_that_the_bank_has(site: Site) -> None:
    """Prices may have changed since; those of then were lost with the ledger."""
    with site.ledger.transaction() as tx:
        tx.set_meta("complete", "0")
    site.now = 2_000_000_700
    site.sacct.rows = [an_ended(a_job(job_id=9))]
    build(site, bank=Bank(a_row(9, 250, 2_000_000_610)))
    assert run_of(site, 9).charge_csu == 250 and site.counted() == 0
    with site.ledger.transaction() as tx:
        assert tx.outbox_size()[0] == 0


# -- runs that slurmctld forgot when it was killed ----------------------------------------------------------------------


def forgotten(site: Site) -> None:
    """A run that was seen, and after slurmctld was killed is in neither queue nor accounting."""
    site.now = 2_000_000_100
    site.see(started(a_job()))
    site.boot_time = site.now + 20


def test_a_run_that_slurm_forgot_when_it_was_killed_does_not_stay_set_aside(site: Site) -> None:
    forgotten(site)
    for _ in range(13):
        site.see(after_s=70)
        assert site.counted() == 6000
    for _ in range(3):
        site.see(after_s=70)
    run = run_of(site)
    assert (run.state, run.slurm_state, run.charge_csu, site.counted()) == ("ended", "LOST", 0, 0)
    with site.ledger.transaction() as tx:
        (delivery,) = tx.next_deliveries()
    assert delivery.phase == "end" and delivery.run.end_time == delivery.run.start_time


def test_a_forgotten_run_waits_while_accounting_cannot_be_asked(site: Site) -> None:
    forgotten(site)
    site.sacct.away = True
    for _ in range(30):
        site.see(after_s=70)
    assert run_of(site).state == "running"
    site.sacct.away = False
    site.see(after_s=70)
    site.sacct.away = True
    site.see(after_s=1000)
    assert run_of(site).state == "running", "it answered once, and not for long"


def test_a_run_of_a_controller_that_was_not_restarted_is_not_lost(site: Site) -> None:
    forgotten(site)
    site.boot_time = site.state.boot_time
    for _ in range(30):
        site.see(after_s=70)
    assert run_of(site).state == "running"


def test_many_forgotten_runs_are_not_ended_without_an_operators_word(site: Site) -> None:
    site.now = 2_000_000_100
    site.see(*(started(a_job(job_id=job_id)) for job_id in range(1, 23)))
    site.boot_time = site.now + 20
    reports = [site.see(after_s=70) for _ in range(16)]
    assert any(report.alarm for report in reports)
    assert {run.state for run in site.runs()} == {"running"}
    site.see(after_s=70, force=True)
    assert {run.state for run in site.runs()} == {"ended"}


@pytest.mark.parametrize("source", ["squeue", "sacct"])
def test_an_end_that_slurm_made_up_after_a_run_was_lost_charges_nothing(
    site: Site, source: str
) -> None:
    """slurmctld, once more without its state, had slurmdbd cancel what it knew nothing of for minutes."""
    forgotten(site)
    for _ in range(16):
        site.see(after_s=70)
    assert run_of(site).slurm_state == "LOST"
    with site.ledger.transaction() as tx:  # who told of it first
        tx._connection.execute("UPDATE runs SET source = ?", (source,))
    lost_at = run_of(site).inputs.get("lost_at", int(site.now))
    site.now += 300
    made_up = replace(an_ended(a_job()), state="CANCELLED", end_time=lost_at + 60, elapsed_s=1200)
    site.sacct.rows = [made_up]
    site.window(since=2_000_000_000)
    assert (run_of(site).slurm_state, run_of(site).charge_csu) == ("LOST", 0)
    site.sacct.rows = [replace(made_up, end_time=lost_at - 60, elapsed_s=1080)]
    site.window(since=2_000_000_000)
    assert run_of(site).charge_csu, "ended before it was missed, it did run"


def test_accounting_has_the_last_word_about_a_run_taken_for_lost(site: Site) -> None:
    forgotten(site)
    site.sacct.rows = [replace(an_ended(a_job()), end_time=None, state="RUNNING")]  # a runaway
    for _ in range(16):
        site.see(after_s=70)
    assert run_of(site).slurm_state == "LOST"
    site.sacct.rows = [an_ended(a_job())]
    site.window(since=2_000_000_000)
    assert run_of(site).charge_csu == 1000


def test_a_clock_that_was_set_back_does_not_stop_the_sweep(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    site.now -= 3600
    assert site.see(a_job(token)).skipped
    site.see(started(a_job(token)))
    assert site.runs() != []
