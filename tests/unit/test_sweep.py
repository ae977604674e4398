# SPDX-License-Identifier: BSD-3-Clause
"""Confirm, sweep and the sacct window, on a real ledger and a real configuration; Slurm's answers are given."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from slurm_banking import config as configuration
from slurm_banking import settle
from slurm_banking.config import Config
from slurm_banking.errors import SlurmUnavailable
from slurm_banking.ledger import Ledger, LedgerRun, Lien
from slurm_banking.prices import PriceList, Rates
from slurm_banking.records import UNLIMITED, QueuedJob, Run
from slurm_banking.relay import sweep
from slurm_banking.slurm.accounting import Row
from slurm_banking.slurm.squeue import QueueSnapshot
from slurm_banking.tokens import Token
from slurm_banking.tres import Tres, parse_tres
from tests.builders import a_run

CONFIG = """
[PartitionPrice]
main = 60
dear = 120
[API]
url = "http://127.0.0.1:1/api"
[Policy]
mode = "{mode}"
{policy}
[Ledger]
state_dir = "{state}"
[Relay]
lien_grace_s = 30
"""

BOOT = 1_000_000


class Accounting:
    """slurmdbd with the rows that a test gives it; ``away`` makes it fail."""

    def __init__(self) -> None:
        self.rows: list[Run] = []
        self.parts: list[Run] = []  #: of which slurmdbd never got the start
        self.away = False
        self.asked: list[Any] = []

    def _answer(self, question: Any) -> None:
        self.asked.append(question)
        if self.away:
            raise SlurmUnavailable("sacct: Problem talking to the database: Connection refused")

    def read_ended_runs(self, since: int, until: int) -> tuple[Run, ...]:
        self._answer((since, until))
        return tuple(
            replace(row, restart_count=-1)
            for row in self.rows
            if row.end_time is not None and since <= row.end_time < until
        )

    def read_jobs(self, job_ids: Sequence[int]) -> dict[int, tuple[Run, ...]]:
        self._answer(tuple(job_ids))
        found: dict[int, tuple[Run, ...]] = {}
        for row in self.rows:
            if row.job_id in job_ids or row.array_job_id in job_ids:
                found[row.job_id] = (*found.get(row.job_id, ()), row)
        return found

    def rows_by_key(self, job_ids: Sequence[int]) -> dict[tuple[int, int], Row]:
        self._answer(tuple(job_ids))
        rows = [Row(run=run, whole=True) for run in self.rows]
        rows += [Row(run=run, whole=False) for run in self.parts]
        return {
            (row.run.job_id, row.run.submit_time): row for row in rows if row.run.job_id in job_ids
        }


class Site:
    """A ledger and the relay's sweep; time is whatever a test says, and begins well after the ledger was made."""

    def __init__(self, directory: Path, mode: str = "strict-allocation", policy: str = "") -> None:
        self.state_dir = directory / "state"
        self.state_dir.mkdir(mode=0o700)
        path = directory / "bank-config.toml"
        path.write_text(CONFIG.format(mode=mode, policy=policy, state=self.state_dir))
        path.chmod(0o600)
        self.config: Config = configuration.load(str(path), in_slurmctld=False)
        self.ledger = Ledger(str(self.state_dir), "c")
        self.sacct = Accounting()
        self.state = sweep.SweepState(boot_time=BOOT)
        with self.ledger.transaction() as tx:
            self.created = int(tx.meta("created") or 0)
            tx.set_meta("complete", "1")
        self.now = self.created + 1
        self.boot_time = BOOT

    def see(self, *jobs: QueuedJob, after_s: int = 5, **arguments: Any) -> sweep.SweepReport:
        """The next snapshot shows these jobs."""
        self.now += after_s
        force = arguments.pop("force", False)
        values: dict[str, Any] = dict(
            cluster="c", jobs=jobs, taken_at=self.now, boot_time=self.boot_time, complete=True
        )
        return sweep.confirm_and_sweep(
            self.ledger,
            self.config,
            QueueSnapshot(**{**values, **arguments}),
            self.sacct,
            self.state,
            self.now,
            force=force,
        )

    def window(self, **arguments: Any) -> sweep.WindowReport:
        return sweep.charge_unrecorded(
            self.ledger, self.config, self.sacct, self.state, self.now, **arguments
        )

    def submit(self, csu: int, tasks: int = 1, **changes: Any) -> Token:
        """What the plugin writes at a submission."""
        values: dict[str, Any] = dict(
            account="fc_alpha",
            user_id=1001,
            per_task_csu=csu,
            tasks=tasks,
            origin="submit",
            inputs={
                "partition": "main",
                "qos": "normal",
                "cpus": 1,
                "nodes": 1,
                "time_limit_min": 60,
            },
            reason="accepted",
            actor="slurmctld",
        )
        with self.ledger.transaction() as tx:
            lien_id = tx.open_lien(**{**values, **changes})
        return Token(lien_id=lien_id, per_task_csu=csu, price_version="v1")

    def lien(self, token: Token) -> Lien:
        with self.ledger.transaction() as tx:
            found = tx.lien(token.lien_id)
        assert found is not None
        return found

    def open_liens(self) -> list[Lien]:
        with self.ledger.transaction() as tx:
            return list(tx.open_liens())

    def runs(self) -> list[LedgerRun]:
        with self.ledger.transaction() as tx:
            return [
                run
                for job_id in range(1, 40)
                for run in tx.runs_by_job(job_id)
                if run.job_id == job_id
            ]

    def counted(self) -> int:
        with self.ledger.transaction() as tx:
            view = tx.funds_view("fc_alpha", 1001)
        assert view.account_exposure_csu == view.user_exposure_csu
        return view.account_exposure_csu

    def entries(self) -> int:
        with self.ledger.transaction() as tx:
            return tx.append(
                "note", account="", user_id=-1, amount_csu=0, reason="count", actor="test"
            )

    def propose(self, token: Token, csu: int, at: int, **inputs: Any) -> None:
        """What the plugin writes at an update of a queued job, `at` seconds from now."""
        with self.ledger.transaction() as tx:
            lien = tx.lien(token.lien_id)
            assert lien is not None
            tx.now_us = (self.now + at) * 1_000_000
            values = {"partition": "main", "qos": "normal", "cpus": 1, "time_limit_min": 60}
            tx.propose(
                lien,
                per_task_csu=csu,
                inputs={**values, **inputs},
                actor="slurmctld",
                reason="update",
            )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    with made.ledger.transaction() as tx:
        assert tx.check() == []


def a_job(token: Token | None = None, **changes: Any) -> QueuedJob:
    """Job 7 of user 1001, one CPU of "main" for an hour: 60.00 SU; submitted after the ledger was made."""
    values: dict[str, Any] = dict(
        job_id=7, submit_time=2_000_000_000, user_id=1001, account="fc_alpha", partition="main",
        state="PENDING", time_limit_min=60, cpus=1, nodes=1, user_name="alice", qos="normal", name="job",
        admin_comment="" if token is None else str(token),
    )  # fmt: skip
    return QueuedJob(**{**values, **changes})


def started(job: QueuedJob, **changes: Any) -> QueuedJob:
    values: dict[str, Any] = dict(
        state="RUNNING", start_time=2_000_000_010, node_list="n1", tasks=1
    )
    return replace(job, **{**values, **changes})


def a_task(job: QueuedJob, job_id: int, task: int, **changes: Any) -> QueuedJob:
    return started(job, job_id=job_id, array_task_id=task, **changes)


def an_ended(job: QueuedJob, **changes: Any) -> Run:
    """The same job as slurmdbd tells its end: ten minutes, 10.00 SU."""
    values: dict[str, Any] = dict(
        job_id=job.job_id, submit_time=job.submit_time, restart_count=job.restart_count,
        array_job_id=job.array_job_id, array_task_id=job.array_task_id, cpus=job.cpus,
        start_time=2_000_000_010, end_time=2_000_000_610, elapsed_s=600, source="sacct",
    )  # fmt: skip
    return a_run(**{**values, **changes})


# -- confirmation -------------------------------------------------------------------------------------------------------


def test_a_lien_is_confirmed_and_bound_when_the_queue_shows_its_job(site: Site) -> None:
    token = site.submit(6000)
    assert site.see(a_job(token)).confirmed == 1
    lien = site.lien(token)
    assert (lien.state, lien.job_id, lien.submit_time) == ("confirmed", 7, 2_000_000_000)
    assert (lien.amount_csu, site.counted()) == (6000, 6000)


def test_what_the_queue_shows_again_writes_nothing(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    before = site.entries()
    assert not site.see(a_job(token)).changed
    assert site.entries() == before + 1


def test_at_first_sight_a_lien_is_raised_to_what_the_queue_shows_and_never_lowered(
    site: Site,
) -> None:
    low, high = site.submit(100), site.submit(9000)
    site.see(a_job(low), a_job(high, job_id=8))
    assert site.lien(low).amount_csu == 6000
    assert site.lien(high).amount_csu == 9000


def test_an_array_is_one_lien_of_the_tasks_that_the_queue_has_left(site: Site) -> None:
    token = site.submit(6000, tasks=10)
    array = a_job(token, array_job_id=7, tasks=10)
    site.see(array)
    assert (site.lien(token).tasks_left, site.counted()) == (10, 60000)
    site.see(replace(array, tasks=4))  # six were cancelled; no plugin hears of it
    assert (site.lien(token).tasks_left, site.counted()) == (4, 24000)


def test_tasks_split_off_an_array_stay_in_its_lien_until_they_start(site: Site) -> None:
    token = site.submit(6000, tasks=5)
    array = a_job(token, array_job_id=7, tasks=4)
    split = a_job(token, job_id=9, array_job_id=7, array_task_id=3)
    site.see(array, split)
    assert (site.lien(token).tasks_left, site.lien(token).job_id) == (5, 7)
    site.see(replace(array, tasks=4), a_task(split, 9, 3))
    assert site.lien(token).tasks_left == 4
    assert site.counted() == 5 * 6000


def test_more_tasks_than_before_need_two_snapshots(site: Site) -> None:
    """In one snapshot they may be tasks that have started and ended since it was taken."""
    token = site.submit(6000, tasks=3)
    array = a_job(token, array_job_id=7, tasks=3)
    site.see(array)
    lien = site.lien(token)
    with site.ledger.transaction() as tx:
        tx.take_tasks(lien, 1, kind="lien_charged", reason="ended", actor="slurmctld")
    site.see(array)
    assert site.lien(token).tasks_left == 2
    site.see(array)
    assert site.lien(token).tasks_left == 3


def test_a_copied_token_binds_nothing_and_is_told_once(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    thief = a_job(token, job_id=8, user_id=1002, account="fc_beta")
    report = site.see(a_job(token), thief)
    assert [line.split()[0] for line in report.problems] == ["token_ignored"]
    assert site.lien(token).job_id == 7
    (found,) = (lien for lien in site.open_liens() if lien.job_id == 8)
    assert (found.origin, found.account, found.amount_csu) == ("found", "fc_beta", 6000)
    assert site.see(a_job(token), thief).problems == []


def test_the_same_token_on_a_second_job_of_the_same_user_gets_a_lien_of_its_own(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    site.see(a_job(token), a_job(token, job_id=8))
    assert {lien.job_id for lien in site.open_liens()} == {7, 8}
    assert site.counted() == 12000


# -- updates ------------------------------------------------------------------------------------------------------------


def test_an_update_that_slurm_made_settles_the_lien_up_and_down(site: Site) -> None:
    token = site.submit(6000)
    job = a_job(token)
    site.see(job)
    for minutes, csu in ((120, 12000), (30, 3000)):
        site.propose(token, csu, at=0, time_limit_min=minutes)
        assert site.lien(token).amount_csu >= csu
        site.see(replace(job, time_limit_min=minutes), after_s=10)
        lien = site.lien(token)
        assert (lien.amount_csu, lien.proposed_csu) == (csu, None)


def test_an_update_that_slurm_refused_falls_back_after_five_seconds(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    site.propose(token, 12000, at=3)
    site.see(a_job(token), after_s=5)
    assert site.lien(token).amount_csu == 12000, "the snapshot may be older than Slurm's decision"
    site.see(a_job(token), after_s=5)
    assert (site.lien(token).amount_csu, site.lien(token).proposed_csu) == (6000, None)


def test_a_refused_lowering_leaves_the_lien_as_it_was(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    site.propose(token, 100, at=0, time_limit_min=1)
    site.see(a_job(token), after_s=10)
    assert site.lien(token).amount_csu == 6000


def test_a_change_that_nobody_proposed_is_priced_anew(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    site.see(a_job(token, partition="dear"))
    assert site.lien(token).amount_csu == 12000


def test_a_change_of_time_keeps_the_cpus_of_the_estimate(site: Site) -> None:
    """The queue shows one CPU of a job that gets whole nodes; only what changed is taken from it."""
    inputs = {"partition": "main", "qos": "normal", "cpus": 8, "nodes": 1, "time_limit_min": 60}
    token = site.submit(48000, inputs=inputs)
    site.see(a_job(token))
    assert site.lien(token).amount_csu == 48000
    site.see(a_job(token, time_limit_min=30))
    assert site.lien(token).amount_csu == 24000


def test_a_lien_keeps_the_price_in_force_at_submission(site: Site) -> None:
    with site.ledger.transaction() as tx:
        settle.record_prices(tx, site.config, int(time.time()))
    token = site.submit(6000)
    site.see(a_job(token))
    site.config = site.config.with_prices(PriceList.of_cpus({"main": Decimal(120)}))
    time.sleep(1.1)
    with site.ledger.transaction() as tx:
        assert settle.record_prices(tx, site.config, int(time.time()))
    site.see(a_job(token, time_limit_min=30))
    assert site.lien(token).amount_csu == 3000


def test_moving_to_another_account_ends_the_old_lien_only_when_seen(site: Site) -> None:
    old = site.submit(6000)
    site.see(a_job(old))
    new = site.submit(6000, account="fc_beta", origin="update", job_id=7, supersedes=old.lien_id)
    site.see(a_job(old))
    assert site.lien(old).open and site.lien(new).state == "unconfirmed"
    site.see(a_job(old, account="fc_beta"))
    assert (site.lien(old).end_kind, site.lien(new).state) == ("lien_voided", "confirmed")


# -- more than CPUs -----------------------------------------------------------------------------------------------------


def with_gpus(site: Site, **policy: Any) -> None:
    """60 SU for a CPU-hour, 600 for one of an a100, 6 for a GB-hour."""
    rates = Rates(cpu=Decimal(60), gpu={"a100": Decimal(600)}, mem_gb=Decimal(6))
    site.config = replace(
        site.config.with_prices(PriceList(partitions={"main": rates})),
        policy=replace(site.config.policy, **policy),
    )
    with site.ledger.transaction() as tx:
        settle.record_prices(tx, site.config, int(time.time()))


def asking(text: str, token: Token | None = None, **changes: Any) -> QueuedJob:
    tres = parse_tres(text)
    return a_job(token, tres=tres, cpus=tres.cpus, nodes=tres.nodes, **changes)


def of_gpus(tres: str) -> dict[str, Any]:
    """The inputs of an estimate."""
    values = {"partition": "main", "qos": "normal", "cpus": parse_tres(tres).cpus, "nodes": 1}
    return {**values, "tres": tres, "time_limit_min": 60}


WANTED = "cpu=2,mem=1024M,node=1,gres/gpu=1,gres/gpu:a100=1"


def test_a_job_that_starts_is_counted_with_all_that_slurm_allocated(site: Site) -> None:
    with_gpus(site)
    token = site.submit(100000)
    job = asking(WANTED, token)
    site.see(job)
    site.see(started(job, tres=parse_tres("cpu=8,mem=4096M,node=1,gres/gpu=2,gres/gpu:a100=2")))
    (run,) = site.runs()
    assert run.lien_csu == 8 * 6000 + 2 * 60000 + 4 * 600 == site.counted()
    assert run.inputs["tres"] == "cpu=8,mem=4096M,node=1,gres/gpu=2,gres/gpu:a100=2"


def test_an_allocation_that_the_queue_shows_again_writes_nothing(site: Site) -> None:
    with_gpus(site)
    job = started(asking(WANTED + ",billing=7", site.submit(100000)))
    site.see(job)
    before = site.entries()
    assert not site.see(job).changed
    assert site.entries() == before + 1


def test_memory_that_changes_while_a_job_runs_moves_its_share(site: Site) -> None:
    with_gpus(site)
    job = started(asking(WANTED, site.submit(100000)))
    site.see(job)
    site.see(replace(job, tres=replace(job.tres, memory_mb=2048)))
    assert site.counted() == 2 * 6000 + 60000 + 2 * 600


def test_gpus_given_back_stay_set_aside_as_far_as_they_were_used(site: Site) -> None:
    with_gpus(site)
    job = started(asking(WANTED, site.submit(100000)))
    site.see(job)
    with site.ledger.transaction() as tx:
        tx.note_resize(tx.running_runs()[0], tres=job.tres, elapsed_s=600, actor="slurmctld")
    site.see(replace(job, cpus=1, tres=parse_tres("cpu=1,node=1")))
    assert site.counted() == 6000 + (6000 + 60000 + 600) // 6


def test_what_a_waiting_job_asks_for_does_not_lower_what_it_may_get(site: Site) -> None:
    """Its estimate has the whole node, the queue what was asked for; a change of time keeps the estimate's."""
    with_gpus(site)
    whole = "cpu=8,mem=8192M,node=1,gres/gpu=4,gres/gpu:a100=4"
    csu = 8 * 6000 + 4 * 60000 + 8 * 600
    token = site.submit(csu, inputs=of_gpus(whole))
    site.see(asking(WANTED, token))
    assert site.lien(token).amount_csu == csu
    site.see(asking(WANTED, token, time_limit_min=30))
    assert site.lien(token).amount_csu == csu // 2
    assert site.lien(token).inputs["tres"] == whole


def test_what_changed_in_the_queue_is_taken_from_it_and_the_rest_is_the_estimates(
    site: Site,
) -> None:
    with_gpus(site)
    token = site.submit(108600, inputs=of_gpus("cpu=8,mem=1024M,node=1,gres/gpu:a100=1"))
    site.see(asking(WANTED, token))
    site.see(asking(WANTED.replace("gpu=1", "gpu=2").replace("a100=1", "a100=2"), token))
    assert site.lien(token).inputs["tres"] == "cpu=8,mem=1024M,node=1,gres/gpu=2,gres/gpu:a100=2"
    assert site.lien(token).amount_csu == 8 * 6000 + 2 * 60000 + 600


def test_memory_that_slurm_does_not_hand_out_is_not_taken_from_the_queue(site: Site) -> None:
    """Where memory is no consumable resource, squeue shows a waiting job with all of a node's, and a running one none."""
    with_gpus(site)
    token = site.submit(12000, inputs=of_gpus("cpu=2,node=1"))
    job = asking("cpu=2,mem=16000M,node=1", token)
    site.see(job)
    assert site.lien(token).amount_csu == 12000
    site.see(replace(job, cpus=3, tres=parse_tres("cpu=3,mem=32000M,node=1")))
    assert site.lien(token).amount_csu == 18000


def test_memory_by_gpu_is_the_estimates_not_all_that_squeue_shows_of_a_waiting_job(
    site: Site,
) -> None:
    with_gpus(site)
    token = site.submit(80000, inputs=of_gpus(WANTED))
    site.see(asking(WANTED.replace("1024M", "128000M"), token))
    assert site.lien(token).state == "confirmed" and site.lien(token).amount_csu == 80000
    site.see(asking(WANTED.replace("1024M", "128000M"), token))
    assert site.lien(token).inputs["tres"] == WANTED


def test_an_update_of_memory_that_slurm_made_is_the_one_proposed(site: Site) -> None:
    with_gpus(site)
    token = site.submit(80000, inputs=of_gpus(WANTED))
    site.see(asking(WANTED, token))
    more = WANTED.replace("1024M", "4096M")
    site.propose(token, 90000, at=0, cpus=2, tres=more)
    site.see(asking(more, token), after_s=10)
    assert (site.lien(token).amount_csu, site.lien(token).proposed_csu) == (90000, None)


def test_a_new_billing_weight_is_no_change_of_a_waiting_job(site: Site) -> None:
    token = site.submit(6000)
    site.see(asking("cpu=1,node=1,billing=1", token))
    before = site.entries()
    assert not site.see(asking("cpu=1,node=1,billing=9", token)).changed
    assert site.entries() == before + 1


def test_a_lien_is_the_share_of_the_cost_that_is_set_aside(site: Site) -> None:
    with_gpus(site, lien_share=Decimal("0.25"))
    site.see(asking(WANTED))
    (lien,) = site.open_liens()
    cost_csu = 2 * 6000 + 60000 + 600
    assert (lien.per_task_csu, lien.inputs["lien_share"]) == (cost_csu // 4, "0.25")
    site.see(started(asking(WANTED)))
    assert site.counted() == cost_csu // 4


def test_resources_that_accounting_tells_otherwise_are_told_once(site: Site) -> None:
    with_gpus(site)
    job = asking(WANTED)
    with site.ledger.transaction() as tx:
        settle.end_run(tx, an_ended(job, tres=job.tres), site.config, actor="slurmctld")
    site.sacct.rows = [an_ended(job, tres=replace(job.tres, memory_mb=2048))]
    at_end(site)
    (line,) = site.window().drift
    assert "mem=1024M" in line and "mem=2048M" in line
    assert site.window().drift == []
    site.sacct.rows = [an_ended(job, tres=Tres())]
    assert site.window().drift == [], "no word about it is no other word"


def test_a_run_that_an_operator_cancelled_is_charged_nothing_from_accounting_too(
    site: Site,
) -> None:
    site.sacct.rows = [an_ended(a_job(), state="CANCELLED", cancelled_by_admin=True)]
    at_end(site)
    site.window()
    (run,) = site.runs()
    assert (run.charge_csu, run.inputs["state"]) == (0, "CANCELLED_BY_ADMIN")


# -- jobs without a lien ------------------------------------------------------------------------------------------------


def test_jobs_from_before_the_ledger_are_grandfathered_and_do_not_count(site: Site) -> None:
    site.see(a_job(submit_time=site.created - 100))
    (lien,) = site.open_liens()
    assert (lien.origin, lien.counted, lien.amount_csu, site.counted()) == (
        "grandfathered",
        False,
        6000,
        0,
    )


def test_a_grandfathered_job_is_charged_at_its_end(site: Site) -> None:
    job = a_job(submit_time=site.created - 100)
    site.see(job)
    site.see(started(job))
    assert site.counted() == 0
    with site.ledger.transaction() as tx:
        settle.end_run(tx, an_ended(job), site.config, actor="slurmctld")
    assert site.counted() == 1000


def test_a_token_of_a_lost_ledger_brings_its_lien_back(site: Site) -> None:
    token = Token(lien_id="ab" * 16, per_task_csu=8000, price_version="v0")
    job = a_job(token, submit_time=site.created - 100, array_job_id=7, tasks=3)
    site.see(job)
    (lien,) = site.open_liens()
    assert (lien.lien_id, lien.origin, lien.counted) == (token.lien_id, "rebuilt", True)
    assert site.counted() == 3 * 8000


def test_a_token_never_makes_a_lien_cheaper_than_the_job(site: Site) -> None:
    site.see(a_job(Token(lien_id="ab" * 16, per_task_csu=0, price_version="v0")))
    assert site.counted() == 6000


def test_a_job_that_came_past_the_plugin_is_found(site: Site) -> None:
    site.see(a_job())
    (lien,) = site.open_liens()
    assert (lien.origin, lien.state, lien.amount_csu) == ("found", "confirmed", 6000)
    assert lien.seen_inputs is not None
    before = site.entries()
    site.see(a_job())
    assert site.entries() == before + 1


def test_a_job_cancelled_after_the_look_at_the_queue_is_not_found_again(site: Site) -> None:
    token = site.submit(6000)
    job = a_job(token)
    site.see(job)
    with site.ledger.transaction() as tx:
        tx.now_us = (site.now + 5) * 1_000_000 + 300_000
        lien = tx.lien(token.lien_id)
        assert lien is not None
        tx.end_lien(lien, "lien_voided", reason="cancelled", actor="slurmctld")
    before = site.entries()
    assert not site.see(job).changed, "the look is older than the end of its lien"
    assert site.entries() == before + 1
    assert site.see(job).opened == {"found": 1}, "a later look has it: it waits after all"


def test_a_lien_ended_by_a_clock_that_was_far_ahead_keeps_no_job_from_having_one(
    site: Site,
) -> None:
    token = site.submit(6000)
    with site.ledger.transaction() as tx:
        tx.now_us = (site.now + 7200) * 1_000_000
        lien = tx.lien(token.lien_id)
        assert lien is not None
        tx.end_lien(lien, "lien_voided", reason="cancelled", actor="slurmctld")
    assert site.see(a_job(token)).opened == {"found": 1}


@pytest.mark.parametrize(
    "mode, liens, counted",
    [("fast-allocation", 1, 0), ("notional-charging", 0, 0), ("usage-tracking", 0, 0)],
)
def test_only_strict_allocation_counts_what_is_queued(
    tmp_path: Path, mode: str, liens: int, counted: int
) -> None:
    site = Site(tmp_path, mode)
    site.see(a_job())
    assert (len(site.open_liens()), site.counted()) == (liens, counted)


def test_exempt_jobs_leave_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path, policy='exempt_users = ["alice"]')
    site.see(a_job(), started(a_job(job_id=8)))
    site.sacct.rows = [an_ended(a_job(job_id=9))]
    site.now = 2_000_001_000
    site.window()
    assert (site.open_liens(), site.runs()) == ([], [])


# -- starts -------------------------------------------------------------------------------------------------------------


def test_a_start_takes_its_share_from_the_lien_and_is_moved_to_what_was_allocated(
    site: Site,
) -> None:
    token = site.submit(6000)
    job = a_job(token)
    site.see(job)
    report = site.see(started(job, cpus=2))
    assert (report.started, report.reamounted) == (1, 1)
    (run,) = site.runs()
    assert (run.lien_csu, run.cpus, run.lien_id) == (12000, 2, token.lien_id)
    assert not site.lien(token).open and site.counted() == 12000
    assert not site.see(started(job, cpus=2)).changed


def test_a_start_that_was_never_seen_queued_is_bound_by_its_token(site: Site) -> None:
    token = site.submit(6000)
    site.see(started(a_job(token)))
    assert site.lien(token).end_kind == "lien_charged"
    assert (site.counted(), site.runs()[0].lien_csu) == (6000, 6000)


def test_started_tasks_leave_the_lien_of_their_array(site: Site) -> None:
    token = site.submit(6000, tasks=3)
    array = a_job(token, array_job_id=7, tasks=3)
    site.see(array)
    site.see(a_task(array, 8, 1), a_task(array, 9, 2), replace(array, array_task_id=3, tasks=1))
    assert (site.lien(token).tasks_left, site.counted()) == (1, 18000)
    assert len(site.runs()) == 2


def test_a_requeued_job_that_still_completes_starts_no_run(site: Site) -> None:
    """squeue shows the next restart count with the old submit time then."""
    token = site.submit(6000)
    site.see(started(a_job(token)))
    site.see(a_job(token, state="COMPLETING", restart_count=1))
    (run,) = site.runs()
    assert (run.restart_count, run.state) == (0, "running")


def test_a_running_jobs_update_moves_its_share_when_slurm_has_made_it(site: Site) -> None:
    job = started(a_job(site.submit(6000)))
    site.see(job)
    with site.ledger.transaction() as tx:
        tx.now_us = site.now * 1_000_000
        run = tx.running_runs()[0]
        tx.propose_for_run(run, cost_csu=3000, inputs={}, actor="slurmctld", reason="update")
    assert site.counted() == 6000, "an update never lowers"
    site.see(replace(job, time_limit_min=30), after_s=10)
    assert site.counted() == 3000


def test_a_refused_update_of_a_running_job_falls_back(site: Site) -> None:
    job = started(a_job(site.submit(6000)))
    site.see(job)
    with site.ledger.transaction() as tx:
        tx.now_us = (site.now + 1) * 1_000_000
        run = tx.running_runs()[0]
        tx.propose_for_run(run, cost_csu=9000, inputs={}, actor="slurmctld", reason="update")
    site.see(job, after_s=3)
    assert site.counted() == 9000
    site.see(job, after_s=10)
    assert site.counted() == 6000


def test_an_update_of_a_job_that_starts_unseen_is_not_undone_by_an_older_look_at_the_queue(
    site: Site,
) -> None:
    """The plugin knew the job as queued; the snapshot was taken after its start and before the update."""
    token = site.submit(6000)
    job = a_job(token)
    site.propose(token, 12000, at=3, time_limit_min=120)
    site.see(started(job), after_s=2)
    assert site.counted() == 12000
    site.see(started(job, time_limit_min=120), after_s=10)
    (run,) = site.runs()
    assert (site.counted(), run.proposed_csu, run.time_limit_min) == (12000, None, 120)


def test_an_update_refused_while_a_job_started_unseen_falls_back(site: Site) -> None:
    token = site.submit(6000)
    job = a_job(token)
    site.propose(token, 12000, at=3, time_limit_min=120)
    site.see(started(job), after_s=2)
    site.see(started(job), after_s=10)
    assert site.counted() == 6000


def test_a_run_without_time_limit_is_counted_with_the_horizon_once(tmp_path: Path) -> None:
    site = Site(tmp_path, policy="unlimited_time = 2")
    job = started(a_job(time_limit_min=UNLIMITED))
    site.see(job)
    assert site.counted() == 48 * 6000
    assert not site.see(job).changed


def test_a_job_id_used_again_by_another_user_is_a_run_of_its_own(site: Site) -> None:
    site.see(started(a_job(submit_time=2_000_000_000)))
    site.see(started(a_job(submit_time=2_000_000_500, user_id=1002)))
    assert {(run.user_id, run.submit_time) for run in site.runs()} == {
        (1001, 2_000_000_000),
        (1002, 2_000_000_500),
    }


def test_another_user_under_the_same_run_is_told_and_changes_nothing(site: Site) -> None:
    site.see(started(a_job()))
    report = site.see(started(a_job(user_id=1002)))
    assert len(report.problems) == 1 and report.problems[0].startswith("run_conflict job_id=7 ")
    assert [run.user_id for run in site.runs()] == [1001]


def test_a_job_id_given_again_in_the_same_second_is_the_later_run_s(site: Site) -> None:
    """slurmctld, killed before it had saved the ids of an array's tasks, gave them to another user's job."""
    site.see(started(a_job()))
    report = site.see(started(a_job(user_id=1002), start_time=2_000_000_013))
    assert (report.started, report.problems) == (1, [])
    first, second = site.runs()
    assert (first.user_id, first.slurm_state, first.charge_csu) == (1001, "LOST", 0)
    assert (second.user_id, second.state) == (1002, "running")
    times = {"start_time": 2_000_000_013, "end_time": 2_000_000_073, "elapsed_s": 60}
    site.sacct.rows = [an_ended(a_job(), user_id=1002, **times)]
    at_end(site)
    site.window()
    assert [run.charge_csu for run in site.runs()] == [0, 100]


def test_what_slurmdbd_alone_has_of_a_job_id_given_again_is_charged(site: Site) -> None:
    times = {"start_time": 2_000_000_613, "end_time": 2_000_000_673, "elapsed_s": 60}
    site.sacct.rows = [an_ended(a_job())]
    at_end(site)
    site.window()
    site.sacct.rows = [an_ended(a_job(), user_id=1002, **times)]
    for _ in range(2):
        site.now += 20
        assert not site.window().problems
        assert [(run.user_id, run.charge_csu) for run in site.runs()] == [(1001, 1000), (1002, 100)]


def test_an_exempt_job_that_was_given_another_s_id_is_charged_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path, policy='exempt_users = ["1002"]')
    times = {"start_time": 2_000_000_613, "end_time": 2_000_000_673, "elapsed_s": 60}
    site.sacct.rows = [an_ended(a_job())]
    at_end(site)
    site.window()
    site.sacct.rows = [an_ended(a_job(), user_id=1002, user_name="bob", **times)]
    site.now += 20
    site.window()
    assert [(run.user_id, run.charge_csu) for run in site.runs()] == [(1001, 1000)]


def test_a_row_with_the_start_of_one_run_and_the_end_of_another_ends_neither(site: Site) -> None:
    """slurmdbd writes the later one's start over the earlier one, whose end it keeps until the later one ends."""
    site.sacct.rows = [an_ended(a_job())]
    at_end(site)
    site.window()
    site.see(started(a_job(user_id=1002), start_time=2_000_000_613))
    half = {"start_time": 2_000_000_613, "end_time": 2_000_000_610, "elapsed_s": 0}
    site.sacct.rows = [an_ended(a_job(), user_id=1002, **half)]
    site.now += 20
    site.window()
    assert [(run.user_id, run.state) for run in site.runs()] == [(1001, "ended"), (1002, "running")]


def test_a_waiting_job_that_was_given_another_s_id_has_a_lien_until_it_is_cancelled(
    site: Site,
) -> None:
    site.sacct.rows = [an_ended(a_job())]
    at_end(site)
    site.window()
    waiting = a_job(user_id=1002)
    site.see(waiting)
    site.see(waiting)
    assert len(site.open_liens()) == 1
    never = {"started": False, "start_time": None, "state": "CANCELLED", "elapsed_s": 0}
    site.sacct.rows = [an_ended(a_job(), user_id=1002, **never, end_time=2_000_000_690)]
    site.now += 20
    report = site.window()
    assert not report.problems and not site.open_liens()
    assert [(run.user_id, run.charge_csu) for run in site.runs()] == [(1001, 1000)]


# -- liens whose job is gone --------------------------------------------------------------------------------------------


def test_an_unconfirmed_lien_expires_after_the_grace(site: Site) -> None:
    token = site.submit(6000)
    for _ in range(5):
        site.see()
        assert site.lien(token).open
    site.see()
    site.see(after_s=30)
    assert (site.lien(token).end_kind, site.counted()) == ("lien_expired", 0)


def gone(site: Site, job: QueuedJob) -> sweep.SweepReport:
    """Seen, and then absent from enough snapshots for long enough."""
    site.see(job)
    site.see(after_s=40)
    return site.see(after_s=5)


def test_a_confirmed_lien_without_a_job_anywhere_is_voided(site: Site) -> None:
    token = site.submit(6000)
    report = gone(site, a_job(token))
    assert (report.voided, site.lien(token).end_kind) == (1, "lien_voided")
    with site.ledger.transaction() as tx:
        assert tx.entries_by_lien(token.lien_id)[-1].reason == "not in queue nor accounting"


def test_once_absent_is_not_gone(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    site.see(after_s=1000)
    assert site.lien(token).open
    site.see(a_job(token))
    assert site.lien(token).missed == 0
    site.see(after_s=1000)
    assert site.lien(token).open


def test_a_lien_of_a_clock_that_was_ahead_ends_like_any_other(site: Site) -> None:
    """Its job was cancelled while the relay's clock was an hour ahead, which was set right since."""
    site.see(a_job())
    assert len(site.open_liens()) == 1
    site.now -= 3600
    for _ in range(3):
        site.see(after_s=40)
    assert not site.open_liens()


def test_a_job_that_ran_unseen_is_charged_from_accounting(site: Site) -> None:
    token = site.submit(6000)
    job = a_job(token)
    site.sacct.rows = [an_ended(job)]
    report = gone(site, job)
    (run,) = site.runs()
    assert (report.ended, run.charge_csu, run.source, run.lien_csu) == (1, 1000, "sacct", 6000)
    assert site.lien(token).end_kind == "lien_charged" and site.counted() == 1000


def test_a_job_cancelled_while_pending_is_voided(site: Site) -> None:
    token = site.submit(6000)
    job = a_job(token)
    site.sacct.rows = [
        an_ended(job, state="CANCELLED", started=False, start_time=None, elapsed_s=0, nodes="")
    ]
    assert gone(site, job).voided == 1
    assert (site.lien(token).end_kind, site.runs(), site.counted()) == ("lien_voided", [], 0)


def test_what_is_left_of_an_array_is_voided_and_its_unrecorded_task_charged(site: Site) -> None:
    token = site.submit(6000, tasks=3)
    array = a_job(token, array_job_id=7, tasks=3)
    site.sacct.rows = [an_ended(replace(array, job_id=8, array_task_id=1))]
    gone(site, array)
    assert [run.charge_csu for run in site.runs() if run.job_id == 8][:1] == [1000]
    assert (site.lien(token).end_kind, site.counted()) == ("lien_voided", 1000)


def test_a_started_task_does_not_keep_the_lien_of_cancelled_ones(site: Site) -> None:
    token = site.submit(6000, tasks=3)
    array = a_job(token, array_job_id=7, tasks=2)
    task = a_task(array, 8, 1)
    site.see(array, task)
    site.see(task, after_s=40)
    site.see(task)
    assert not site.lien(token).open and site.counted() == 6000


def test_nothing_ends_while_accounting_cannot_be_asked(site: Site) -> None:
    token = site.submit(6000)
    site.sacct.away = True
    report = gone(site, a_job(token))
    assert site.lien(token).open and report.waiting == 1
    assert "Connection refused" in report.problems[0]
    site.sacct.away = False
    site.see()
    assert not site.lien(token).open


def test_an_incomplete_snapshot_ends_nothing(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    for _ in range(5):
        site.see(after_s=100, complete=False)
    assert site.lien(token).open and site.lien(token).missed == 0


def test_a_controller_that_was_just_restarted_ends_nothing(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    for _ in range(4):
        site.now += 100
        site.boot_time = site.now
        site.see()
    assert site.lien(token).open and site.lien(token).missed == 0
    site.see()
    assert site.lien(token).missed == 0, "up for ten seconds"
    site.see(after_s=20)
    assert site.lien(token).missed == 1


def test_a_lien_younger_than_the_snapshot_is_not_missed(site: Site) -> None:
    site.now = site.created - 30
    token = site.submit(6000)
    site.see()
    site.see()
    assert site.lien(token).missed == 0


def test_a_run_that_accounting_believes_in_keeps_its_lien(site: Site) -> None:
    token = site.submit(6000)
    job = a_job(token)
    site.sacct.rows = [an_ended(job, state="RUNNING", end_time=None, elapsed_s=0)]
    assert gone(site, job).waiting == 1
    assert site.lien(token).open


def test_the_run_of_another_user_under_the_same_id_explains_nothing(site: Site) -> None:
    token = site.submit(6000)
    job = a_job(token)
    site.sacct.rows = [an_ended(job, user_id=1002, account="fc_beta")]
    gone(site, job)
    assert site.lien(token).end_kind == "lien_voided" and site.runs() == []


def test_many_liens_without_a_trace_are_not_ended_without_an_operators_word(site: Site) -> None:
    jobs = [a_job(site.submit(100), job_id=100 + n) for n in range(30)]
    kept = [a_job(site.submit(100), job_id=200 + n) for n in range(30)]
    site.see(*jobs, *kept)
    site.see(*kept, after_s=40)
    report = site.see(*kept)
    assert report.voided == 0 and len(site.open_liens()) == 60
    assert report.alarm is not None and report.alarm.startswith("30 of 60 open liens would end")
    assert "slurm-banking sweep --force" in report.alarm
    assert site.see(*kept).alarm is not None
    assert site.see(*kept, force=True).voided == 30
    assert len(site.open_liens()) == 30


def test_twenty_liens_may_end_at_once(site: Site) -> None:
    jobs = [a_job(site.submit(100), job_id=100 + n) for n in range(20)]
    site.see(*jobs)
    site.see(after_s=40)
    assert site.see().voided == 20


def test_many_cancellations_that_accounting_confirms_raise_no_alarm(site: Site) -> None:
    jobs = [a_job(site.submit(100), job_id=100 + n) for n in range(30)]
    site.sacct.rows = [
        an_ended(job, state="CANCELLED", started=False, start_time=None, elapsed_s=0)
        for job in jobs
    ]
    site.see(*jobs)
    site.see(after_s=40)
    report = site.see()
    assert (report.voided, report.alarm) == (30, None)


def test_expired_submissions_cannot_stop_the_sweep(site: Site) -> None:
    """Anybody can make unconfirmed liens by the hundred (sbatch --test-only): they must go by themselves."""
    for _ in range(50):
        site.submit(100)
    site.see(after_s=40)
    report = site.see()
    assert (report.expired, report.alarm, site.open_liens()) == (50, None, [])


def test_an_older_snapshot_than_the_last_one_is_not_used(site: Site) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    report = site.see(taken_at=site.now - 100)
    assert report.skipped and site.lien(token).missed == 0


# -- runs whose job is gone ---------------------------------------------------------------------------------------------


def test_a_run_that_left_no_record_is_ended_from_accounting(site: Site) -> None:
    job = started(a_job(site.submit(6000)))
    site.now = 2_000_000_100
    site.see(job)
    site.sacct.rows = [an_ended(job)]
    assert site.see().ended == 1
    assert (site.runs()[0].charge_csu, site.counted()) == (1000, 1000)


def test_a_run_that_accounting_does_not_know_waits_and_is_not_asked_about_at_once(
    site: Site,
) -> None:
    site.now = 2_000_000_100
    site.see(started(a_job(site.submit(6000))))
    assert site.see().waiting == 1
    asked = len(site.sacct.asked)
    site.see()
    assert len(site.sacct.asked) == asked
    site.see(after_s=60)
    assert len(site.sacct.asked) == asked + 1
    assert site.runs()[0].state == "running"


def test_a_run_that_slurm_forgot_in_a_crash_and_was_then_cancelled_costs_nothing(
    site: Site,
) -> None:
    job = started(a_job(site.submit(6000)))
    site.now = 2_000_000_100
    site.see(job)
    site.sacct.rows = [
        an_ended(job, state="CANCELLED", started=False, start_time=None, elapsed_s=0)
    ]
    site.see()
    (run,) = site.runs()
    assert (run.state, run.charge_csu, site.counted()) == ("ended", 0, 0)


# -- the sacct window ---------------------------------------------------------------------------------------------------


def at_end(site: Site) -> None:
    site.now = 2_000_000_700


def test_an_ended_run_without_a_record_is_charged_once(site: Site) -> None:
    site.sacct.rows = [an_ended(a_job())]
    at_end(site)
    assert site.window().charged == 1
    assert (site.runs()[0].charge_csu, site.counted()) == (1000, 1000)
    again = site.window()
    assert (again.charged, again.drift) == (0, [])
    assert len(site.runs()) == 1


def test_a_recorded_run_is_never_changed_by_accounting_and_the_difference_is_told_once(
    site: Site,
) -> None:
    with site.ledger.transaction() as tx:
        settle.end_run(tx, an_ended(a_job(), elapsed_s=540), site.config, actor="slurmctld")
    site.sacct.rows = [an_ended(a_job())]
    at_end(site)
    (line,) = site.window().drift
    assert "ledger_elapsed_s=540 sacct_elapsed_s=600" in line
    assert site.window().drift == []
    assert site.runs()[0].charge_csu == 900


def test_requeued_runs_get_the_restart_counts_that_all_rows_tell(site: Site) -> None:
    first = an_ended(a_job(), state="REQUEUED")
    second = an_ended(a_job(submit_time=2_000_000_300, restart_count=1), end_time=2_000_000_650)
    site.sacct.rows = [first, second]
    at_end(site)
    assert site.window().charged == 2
    assert [run.restart_count for run in site.runs()] == [0, 1]


def test_runs_that_ended_before_the_ledger_was_made_are_not_ours_unless_they_say_so(
    site: Site,
) -> None:
    before = {"submit_time": site.created - 700, "start_time": site.created - 690}
    ended = {"end_time": site.created - 90, **before}
    token = Token(lien_id="ab" * 16, per_task_csu=6000, price_version="v0")
    site.sacct.rows = [
        an_ended(a_job(), **ended),
        an_ended(a_job(job_id=8), **ended, admin_comment=f"x;{token}"),
    ]
    site.window()
    assert [run.job_id for run in site.runs()] == [8]


def test_the_window_goes_on_from_where_it_was_with_some_overlap(site: Site) -> None:
    at_end(site)
    site.window()
    site.sacct.asked.clear()
    site.now += 60
    report = site.window()
    assert site.sacct.asked == [(2_000_000_700 - 10 - 600, 2_000_000_760 - 10)]
    assert report.until == 2_000_000_750


def test_a_window_that_failed_is_read_again(site: Site) -> None:
    at_end(site)
    site.sacct.away = True
    with pytest.raises(SlurmUnavailable):
        site.window()
    site.sacct.away = False
    site.sacct.rows = [an_ended(a_job())]
    assert site.window().charged == 1


def test_a_cancelled_job_frees_its_lien_through_the_window_too(site: Site) -> None:
    token = site.submit(6000)
    job = a_job(token)
    site.see(job)
    site.sacct.rows = [
        an_ended(job, state="CANCELLED", started=False, start_time=None, elapsed_s=0)
    ]
    at_end(site)
    assert site.window().voided == 1
    assert (site.lien(token).end_kind, site.counted()) == ("lien_voided", 0)


# -- marks --------------------------------------------------------------------------------------------------------------


def mark(site: Site, job: QueuedJob) -> None:
    with open(site.state_dir / "rescan", "a", encoding="ascii") as file:
        line = {"job_id": job.job_id, "submit_time": job.submit_time, "at": site.now}
        file.write(json.dumps(line) + "\n")


def test_a_run_that_slurmctld_could_not_write_is_charged_from_accounting(site: Site) -> None:
    site.sacct.rows = [an_ended(a_job())]
    site.now = 2_000_000_612  # the window does not reach that far yet
    mark(site, a_job())
    assert sweep.rescan_wanted(str(site.state_dir))
    report = site.window()
    assert (report.rescanned, site.runs()[0].charge_csu) == (1, 1000)
    assert [name for name in os.listdir(site.state_dir) if name.startswith("rescan")] == []


def test_a_mark_waits_until_accounting_knows_its_run(site: Site) -> None:
    at_end(site)
    mark(site, a_job())
    assert site.window().rescanned == 0
    assert not sweep.rescan_wanted(str(site.state_dir)), "slurmctld's file is out of the way"
    mark(site, a_job(job_id=8))
    site.sacct.rows = [an_ended(a_job()), an_ended(a_job(job_id=8))]
    assert site.window().rescanned == 2
    assert sorted(run.job_id for run in site.runs()) == [7, 8]


def test_an_unreadable_mark_costs_no_other(site: Site) -> None:
    at_end(site)
    (site.state_dir / "rescan").write_bytes(b'\xff{}\n[1]\n{"job_id": 1\n')
    mark(site, a_job())
    site.sacct.rows = [an_ended(a_job())]
    assert site.window().rescanned == 1


def test_marks_survive_an_interruption_between_the_steps(site: Site) -> None:
    at_end(site)
    mark(site, a_job())
    os.replace(site.state_dir / "rescan", site.state_dir / "rescan.moved")
    mark(site, a_job(job_id=8))
    site.sacct.rows = [an_ended(a_job()), an_ended(a_job(job_id=8))]
    assert site.window().rescanned + site.window().rescanned == 2
