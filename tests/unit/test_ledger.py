# SPDX-License-Identifier: BSD-3-Clause
"""The ledger: a lien ends once, a run is charged once, and what is available follows from the entries."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from slurm_banking.errors import EntryConflict, LedgerBusy, LedgerError
from slurm_banking.ledger import Ledger, Transaction
from tests.builders import SUBMITTED, a_run, funds_of

LIEN: dict[str, Any] = dict(
    account="fc_alpha", user_id=1001, per_task_csu=100, tasks=1, origin="submit",
    inputs={"cpus": 1}, reason="fits", actor="test",
)  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    tmp_path.chmod(0o700)
    made = Ledger(str(tmp_path), "c", check_directory=False)
    with made.transaction() as tx:
        tx.put_funds(funds_of("fc_alpha", 10_000))
        tx.put_funds(funds_of("fc_alpha", 10_000, user_id=1001))
    return made


def available(tx: Transaction) -> int | None:
    return tx.funds_view("fc_alpha", 1001).available_csu


def end(tx: Transaction, charge_csu: int, **changes: Any) -> Any:
    return tx.end_run(
        a_run(**changes), charge_csu=charge_csu, share_csu=100, inputs={}, actor="test"
    )


def bound(tx: Transaction, job_id: int = 7, tasks: int = 1) -> str:
    lien_id = tx.open_lien(**{**LIEN, "tasks": tasks})
    lien = tx.lien(lien_id)
    assert lien is not None
    tx.confirm(
        lien, job_id=job_id, submit_time=SUBMITTED, restart_count=0, tasks_left=tasks, per_task_csu=100,
        inputs={}, seen_inputs={}, keep_proposal=False, actor="test", reason="seen",
    )  # fmt: skip
    return lien_id


def test_a_lien_lowers_what_is_available_and_its_charge_replaces_it(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        bound(tx)
        assert available(tx) == 9_900
        assert end(tx, 40).kind == "charged"
        assert available(tx) == 9_960
        assert tx.check() == []


def test_a_second_end_with_the_same_cost_changes_nothing(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        bound(tx)
        end(tx, 40)
        assert end(tx, 40).kind == "duplicate"
        assert available(tx) == 9_960


def test_a_second_end_with_another_cost_restates_the_charge(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        bound(tx)
        end(tx, 40)
        assert end(tx, 55, elapsed_s=80, end_time=SUBMITTED + 90).kind == "restated"
        assert available(tx) == 9_945
        kinds = [entry.kind for entry in tx.entries_by_job(7)]
        assert kinds.count("charge") == 1 and kinds.count("restated") == 1


def test_another_user_under_one_run_is_a_conflict_and_leaves_the_ledger_alone(
    ledger: Ledger,
) -> None:
    with ledger.transaction() as tx:
        bound(tx)
        end(tx, 40)
    with pytest.raises(EntryConflict, match="user_id"):
        with ledger.transaction() as tx:
            end(tx, 99, user_id=1002)
    with ledger.transaction() as tx:
        assert available(tx) == 9_960


@pytest.mark.parametrize("running", [False, True])
def test_a_later_run_of_another_user_has_the_key_and_the_earlier_one_keeps_its_charge(
    ledger: Ledger, running: bool
) -> None:
    """slurmctld, killed before it had saved an array's job ids, gave them again, in the same second."""
    later = {"user_id": 1002, "start_time": SUBMITTED + 20, "end_time": SUBMITTED + 30}
    with ledger.transaction() as tx:
        bound(tx)
        if running:
            tx.start_run(
                a_run(state="RUNNING", end_time=None), share_csu=100, inputs={}, actor="test"
            )
        else:
            end(tx, 40)
    with ledger.transaction() as tx:
        assert end(tx, 70, **later).kind == "charged"
    with ledger.transaction() as tx:
        first, second = tx.runs_by_job(7)
        assert (first.user_id, first.state, first.charge_csu) == (
            1001,
            "ended",
            0 if running else 40,
        )
        assert (first.made_way, first.told_restart_count) == (True, 0)
        assert (second.user_id, second.charge_csu, second.made_way) == (1002, 70, False)
        assert tx.find_run(7, SUBMITTED) == tx.find_run(7, SUBMITTED, 0) == second
        assert not tx.check()
        notes = [entry.reason for entry in tx.entries_by_job(7) if entry.kind == "note"]
        assert notes == ["slurmctld gave its job id to another user's job"]
    with ledger.transaction() as tx:
        assert end(tx, 70, **later).kind == "duplicate"
    for told in ({}, {"start_time": SUBMITTED + 99, "end_time": SUBMITTED + 100}):
        with pytest.raises(EntryConflict, match="user_id"):
            with ledger.transaction() as tx:
                end(tx, 40, **told)


def test_tasks_of_an_array_that_made_way_are_no_word_on_the_one_with_the_array_s_id(
    ledger: Ledger,
) -> None:
    later = {"user_id": 1002, "start_time": SUBMITTED + 20, "end_time": SUBMITTED + 30}
    with ledger.transaction() as tx:
        end(tx, 40, job_id=8, array_job_id=7, array_task_id=0)
        end(tx, 70, job_id=8, **later)
        end(tx, 70, job_id=7, **later)
        again = {"start_time": SUBMITTED + 40, "end_time": SUBMITTED + 50}
        assert end(tx, 40, job_id=7, **again).kind == "charged"


def test_a_job_of_another_user_that_never_ran_takes_no_key_and_frees_its_lien(
    ledger: Ledger,
) -> None:
    with ledger.transaction() as tx:
        bound(tx)
        end(tx, 40)
        kept = tx.find_run(7, SUBMITTED)
        assert end(tx, 0, user_id=1002, started=False, start_time=SUBMITTED + 99).kind == "ignored"
        assert tx.find_run(7, SUBMITTED) == kept


def test_requeued_run_is_charged_and_the_next_runs_lien_is_appended_with_it(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        bound(tx)
        result = end(tx, 40, requeue=True, state="REQUEUED")
        assert result.next_lien_id is not None
        assert available(tx) == 10_000 - 40 - 100
        end(tx, 60, restart_count=1, submit_time=SUBMITTED + 200)
        assert available(tx) == 10_000 - 40 - 60
        assert [run.charge_csu for run in tx.runs_by_job(7)] == [40, 60]
        assert not tx.open_liens()


def test_a_requeued_run_that_had_less_than_its_estimate_may_have_all_of_it_the_next_time(
    ledger: Ledger,
) -> None:
    with ledger.transaction() as tx:
        bound(tx)
        run, _ = tx.start_run(a_run(), share_csu=100, inputs={}, actor="t")
        tx.reamount_run(
            run, lien_csu=30, inputs={}, time_limit_min=60, cpus=1, partition="main", qos=None,
            actor="t", reason="fewer nodes than it could have",
        )  # fmt: skip
        result = end(tx, 20, requeue=True, state="REQUEUED")
        (following,) = tx.open_liens()
        assert following.lien_id == result.next_lien_id
        assert following.per_task_csu == 100


def test_a_job_cancelled_while_pending_leaves_nothing(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        bound(tx)
        assert end(tx, 0, started=False, state="CANCELLED", cpus=0, nodes="").kind == "voided"
        assert available(tx) == 10_000
        assert not tx.open_liens() and not tx.runs_by_job(7)


def test_array_tasks_take_their_share_out_of_one_lien(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        lien_id = bound(tx, tasks=3)
        for task in range(3):
            tx.start_run(
                a_run(job_id=7 + task, array_job_id=7, array_task_id=task, end_time=None, state="RUNNING"),
                share_csu=1, inputs={}, actor="test",
            )  # fmt: skip
            assert available(tx) == 9_700
        lien = tx.lien(lien_id)
        assert lien is not None and lien.end_kind == "lien_charged"


def test_a_copied_token_finds_nothing(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        lien_id = bound(tx, job_id=7)
        unbound = tx.open_lien(**LIEN)
        base: dict[str, Any] = dict(job_id=8, array_job_id=None, account="fc_alpha", user_id=1001)
        assert tx.find_lien(**base, token_lien_id=lien_id) is None, "bound to job 7"
        assert tx.find_lien(**{**base, "user_id": 1002}, token_lien_id=unbound) is None
        assert tx.find_lien(**{**base, "account": "fc_beta"}, token_lien_id=unbound) is None
        found = tx.find_lien(**base, token_lien_id=unbound)
        assert found is not None and found.lien_id == unbound


def test_a_proposal_raises_at_once_and_a_lower_one_does_not_lower(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        lien = tx.lien(bound(tx))
        assert lien is not None
        tx.propose(lien, per_task_csu=300, inputs={}, actor="test", reason="update")
        assert available(tx) == 9_700
        lien = tx.lien(lien.lien_id)
        assert lien is not None
        tx.propose(lien, per_task_csu=10, inputs={}, actor="test", reason="update")
        assert available(tx) == 9_700
        lien = tx.lien(lien.lien_id)
        assert lien is not None
        tx.drop_proposal(lien, actor="test", reason="not made")
        assert available(tx) == 9_900


def test_a_lien_ends_only_once(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        lien = tx.lien(bound(tx))
        assert lien is not None
        tx.end_lien(lien, "lien_voided", reason="x", actor="test")
    with pytest.raises(LedgerError, match="UNIQUE"):
        with ledger.transaction() as tx:
            tx.end_lien(lien, "lien_expired", reason="x", actor="test")


@pytest.mark.parametrize(
    "statement",
    ["UPDATE entries SET amount_csu = 0", "DELETE FROM entries", "DELETE FROM runs", "DELETE FROM liens",
     "UPDATE liens SET account = 'other'", "UPDATE runs SET user_id = 1"],
)  # fmt: skip
def test_what_is_written_cannot_be_rewritten(ledger: Ledger, statement: str) -> None:
    with ledger.transaction() as tx:
        bound(tx)
        end(tx, 40)
        bound(tx, job_id=9)
    with pytest.raises(sqlite3.IntegrityError):
        with sqlite3.connect(ledger.path) as connection:
            connection.execute(statement)


def test_an_acknowledgement_does_not_change_what_is_available(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        bound(tx)
        end(tx, 40)
        (delivery,) = tx.next_deliveries()
        before = available(tx)
        tx.acknowledge(delivery, bank_csu=40, bank_job_id="7")
        assert available(tx) == before == 9_960
        assert tx.next_deliveries() == []
        account, _ = tx.funds("fc_alpha", 1001)
        assert account is not None and account.remaining_csu == 9_960


def test_a_restated_run_stays_in_the_outbox_when_the_older_end_is_acknowledged(
    ledger: Ledger,
) -> None:
    with ledger.transaction() as tx:
        bound(tx)
        end(tx, 40)
        (older,) = tx.next_deliveries()
        end(tx, 55, elapsed_s=80, end_time=SUBMITTED + 90)
        tx.acknowledge(older, bank_csu=40, bank_job_id="7")
        assert [delivery.run.charge_csu for delivery in tx.next_deliveries()] == [55]
        assert available(tx) == 9_945


def test_runs_of_an_earlier_allocation_leave_the_sum_when_it_is_renewed(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        bound(tx)
        end(tx, 40)
        tx.put_funds(
            funds_of("fc_alpha", 5_000, allocation="2@2027-01-01", start_time=SUBMITTED + 1_000)
        )
        tx.put_funds(funds_of("fc_alpha", 5_000, user_id=1001, allocation="2@2027-01-01"))
        assert available(tx) == 5_000


def test_grandfathered_liens_are_shown_but_do_not_count(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        tx.open_lien(**{**LIEN, "origin": "grandfathered"}, counted=False, job_id=7, confirmed=True)
        assert available(tx) == 10_000
        assert tx.set_aside("fc_alpha").grandfathered_csu == 100
        tx.start_run(a_run(end_time=None, state="RUNNING"), share_csu=1, inputs={}, actor="test")
        assert available(tx) == 10_000
        end(tx, 40)
        assert available(tx) == 9_960, "charged at its end"


def test_a_ledger_deleted_under_a_process_is_made_anew_and_not_complete(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        tx.set_meta("complete", "1")
    for suffix in ("", "-wal", "-shm"):
        os.unlink(ledger.path + suffix)
    with ledger.transaction() as tx:
        assert not tx.complete


def test_what_was_committed_survives_a_process_that_is_killed(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        made = Ledger(str(tmp_path), "c", check_directory=False)
        with made.transaction() as tx:
            tx.open_lien(**LIEN)
        os.write(write_end, b"x")
        os.kill(os.getpid(), 9)
    os.read(read_end, 1)
    os.waitpid(pid, 0)
    with Ledger(str(tmp_path), "c", check_directory=False).transaction() as tx:
        assert len(tx.open_liens()) == 1


def test_another_host_start_makes_the_ledger_incomplete(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        tx.set_meta("complete", "1")
        tx.set_meta("boot_id", "another")
    reopened = Ledger(ledger.state_dir, "c", check_directory=False)
    with reopened.transaction() as tx:
        assert not tx.complete


def test_a_ledger_of_another_cluster_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="belongs to cluster 'c', not 'other'"):
        Ledger(ledger.state_dir, "other", check_directory=False)


def test_a_long_transaction_of_another_process_makes_it_busy_not_stuck(ledger: Ledger) -> None:
    quick = Ledger(ledger.state_dir, "c", busy_timeout_ms=20, check_directory=False)
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(LedgerBusy, match="busy"):
            with quick.transaction():
                pass
    finally:
        other.execute("ROLLBACK")
    with quick.transaction() as tx:
        tx.open_lien(**LIEN)


def test_who_may_not_wait_for_long_looks_again_and_again(ledger: Ledger) -> None:
    """SQLite itself looks after 1, 3, 8 and 18 ms, and misses the pauses of whoever writes and writes."""
    quick = Ledger(ledger.state_dir, "c", busy_timeout_ms=50, check_directory=False)
    looks: list[str] = []
    assert quick._connection is not None
    quick._connection.set_trace_callback(looks.append)
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(LedgerBusy), quick.transaction():
            pass
    finally:
        other.execute("ROLLBACK")
    assert looks.count("BEGIN IMMEDIATE") >= 3


def test_opening_a_ledger_waits_no_longer_than_using_it(ledger: Ledger) -> None:
    """slurmctld may open it in a hook, when the file was replaced or could not be opened before."""
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    try:
        with pytest.raises(LedgerBusy):
            Ledger(ledger.state_dir, "c", busy_timeout_ms=20, check_directory=False)
    finally:
        other.execute("ROLLBACK")
    assert time.monotonic() - begun < 0.7


def test_ten_threads_cannot_set_aside_more_than_there_is(ledger: Ledger) -> None:
    accepted = []

    def submit() -> None:
        for _ in range(20):
            with ledger.transaction() as tx:
                left = available(tx)
                assert left is not None
                if left >= 100:
                    tx.open_lien(**LIEN)
                    accepted.append(1)

    threads = [threading.Thread(target=submit) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with ledger.transaction() as tx:
        assert len(accepted) == 100 and available(tx) == 0 and tx.check() == []


def test_a_full_disk_is_one_clear_line_and_loses_nothing(tmp_path: Path) -> None:
    made = Ledger(str(tmp_path), "c", check_directory=False)
    with made.transaction() as tx:
        tx.open_lien(**LIEN)
    with made.transaction() as tx:
        pages = tx._connection.execute("PRAGMA page_count").fetchone()[0]
    assert made._connection is not None
    made._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerError, match="full"):
        for _ in range(10_000):
            with made.transaction() as tx:
                tx.open_lien(**LIEN)
    made._connection.execute("PRAGMA max_page_count = 1000000")
    with made.transaction() as tx:
        assert tx.check() == [] and len(tx.open_liens()) >= 1
