# SPDX-License-Identifier: BSD-3-Clause
"""slurmdbd, ledger and bank compared: what agrees is not told, and what differs is, once and by its name."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from slurm_banking import settle, tokens
from slurm_banking.bank import BankRun, NoListing
from slurm_banking.errors import BankUnavailable
from slurm_banking.ledger import LedgerRun
from slurm_banking.reconcile import run as reconciling
from slurm_banking.reconcile.compare import RowNames
from slurm_banking.reconcile.run import Report, default_period, recall, remember
from slurm_banking.records import Run
from tests.unit.reconcile_parts import T0, UNTIL, Books, a_slurm_run, found


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    made = Books(tmp_path / "state")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "_BANK_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(reconciling, "_DRIFT_PAUSE_S", 0.0)


# -- injuries -----------------------------------------------------------------------------------------------------------

Injury = Callable[[Books, LedgerRun], tuple[str, str, int | None]]


def _row(books: Books, run: LedgerRun, **changes: Any) -> None:
    assert run.bank_job_id is not None
    books.bank.put(replace(books.bank.rows[run.bank_job_id], **changes))


def lose_in_ledger(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    books.sql("DELETE FROM runs WHERE run_id = ?", run.run_id)
    return "missing", "ledger", run.job_id


def lose_at_bank(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    books.bank.drop(str(run.bank_job_id))
    return "missing", "bank", run.job_id


def lose_in_slurmdbd(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    books.accounting.runs = [one for one in books.accounting.runs if one.job_id != run.job_id]
    return "unknown", "ledger", run.job_id


def book_by_hand(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    other = run.job_id + 50_000
    row = books.bank.rows[str(run.bank_job_id)]
    books.bank.put(replace(row, bank_job_id=str(other)))
    return "unknown", "bank", other


def overcharge(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    books.sql(
        "UPDATE runs SET charge_csu = charge_csu + 7, ledger_csu = ledger_csu + 7 WHERE run_id = ?",
        run.run_id,
    )
    return "mischarged", "ledger", run.job_id


def other_amount(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    _row(books, run, amount_csu=books.bank.rows[str(run.bank_job_id)].amount_csu + 11)
    return "mischarged", "bank", run.job_id


def other_end(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    _row(books, run, end_time=(run.end_time or 0) + 5)
    return "mischarged", "bank", run.job_id


def tell_otherwise(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    books.accounting.runs = [
        replace(one, elapsed_s=one.elapsed_s + 500, end_time=(one.end_time or 0) + 500)
        if one.job_id == run.job_id
        else one
        for one in books.accounting.runs
    ]
    return "restated", "ledger", run.job_id


def charge_by_other_list(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    other = books.configured("7.2").prices
    price = other.price(run.partition, run.qos)
    assert price is not None
    inputs = {**run.inputs, **price.inputs()}
    csu = settle.recomputed_csu(inputs)
    books.sql(
        "UPDATE runs SET inputs = ?, charge_csu = ?, ledger_csu = ? WHERE run_id = ?",
        json.dumps(inputs),
        csu,
        csu,
        run.run_id,
    )
    return "other_prices", "ledger", run.job_id


def run_on_in_ledger(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    books.sql(
        "UPDATE runs SET state = 'running', charge_csu = NULL, end_time = NULL WHERE run_id = ?",
        run.run_id,
    )
    return "still_running", "ledger", run.job_id


def run_on_at_bank(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    _row(books, run, end_time=None)
    return "still_running", "bank", run.job_id


def double_under_key(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    books.insert_copy(run.run_id, restart_count=run.restart_count + 3)
    return "doubled", "ledger", run.job_id


def double_beside_key(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    books.insert_copy(run.run_id, submit_time=run.submit_time + 1)
    return "doubled", "ledger", run.job_id


def double_at_bank(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    row = books.bank.rows[str(run.bank_job_id)]
    books.bank.put(replace(row, bank_job_id=f"{run.bank_job_id}-{run.submit_time}"))
    return "doubled", "bank", run.job_id


def move_at_bank(books: Books, run: LedgerRun) -> tuple[str, str, int | None]:
    _row(books, run, user_id="4242")
    return "wrong_holder", "bank", run.job_id


INJURIES: tuple[Injury, ...] = (
    lose_in_ledger,
    lose_at_bank,
    lose_in_slurmdbd,
    book_by_hand,
    overcharge,
    other_amount,
    other_end,
    tell_otherwise,
    charge_by_other_list,
    run_on_in_ledger,
    run_on_at_bank,
    double_under_key,
    double_beside_key,
    double_at_bank,
    move_at_bank,
)


@pytest.mark.parametrize("injury", INJURIES, ids=lambda injury: injury.__name__)
def test_each_injury_is_found_once_and_named(books: Books, injury: Injury) -> None:
    runs = [books.end(a_slurm_run(job_id)) for job_id in (1, 2, 3)]
    assert books.compare().clean
    expected = injury(books, runs[1])
    report = books.compare()
    assert found(report) == [expected], [one.text for one in report.findings]
    assert not report.clean


def test_a_run_of_another_holder_is_found_at_the_ledger(books: Books) -> None:
    run = books.end(a_slurm_run(1))
    books.sql("UPDATE runs SET account = 'bio' WHERE run_id = ?", run.run_id)
    report = books.compare()
    assert ("wrong_holder", "ledger", 1) in found(report)
    (finding,) = (one for one in report.findings if one.where == "ledger")
    assert (finding.account, finding.slurm and finding.slurm.account) == ("bio", "astro")


_seconds = st.integers(min_value=1, max_value=40_000)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Run, bool]]:
    """Runs that ended, and whether the start was told before the end."""
    made = []
    for job_id in range(1, draw(st.integers(min_value=1, max_value=8)) + 1):
        start = T0 + 600 + draw(st.integers(min_value=0, max_value=3 * 86_400))
        run = a_slurm_run(
            job_id,
            start_time=start,
            elapsed_s=draw(_seconds),
            cpus=draw(st.integers(min_value=1, max_value=64)),
            account=draw(st.sampled_from(["astro", "bio"])),
            state=draw(st.sampled_from(["COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"])),
            time_limit_min=1000,
        )
        made.append((run, draw(st.booleans())))
    return made


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # each example is a file: no time to shrink
)
@given(
    history=histories(),
    chosen=st.lists(st.sampled_from(INJURIES), max_size=4),
    window_rows=st.sampled_from([3, 20_000]),
)
def test_what_was_done_to_agreeing_books_is_found_and_nothing_else(
    history: list[tuple[Run, bool]], chosen: list[Injury], window_rows: int
) -> None:
    with tempfile.TemporaryDirectory(prefix="reconcile-", dir="/tmp") as directory:
        books = Books(Path(directory) / "state")
        try:
            ended = []
            for run, told_start in history:
                if told_start:
                    books.start(run)
                ended.append(books.end(run))
            assert books.compare(window_rows=window_rows).findings == []
            # A charge of nothing by all prices would not differ by another.
            expected = [
                injury(books, run)
                for injury, run in zip(
                    chosen, (one for one in ended if one.charge_csu), strict=False
                )
            ]
            report = books.compare(window_rows=window_rows)
            assert found(report) == sorted(expected, key=lambda one: (one[2] or 0, one)), [
                one.text for one in report.findings
            ]
        finally:
            books.close()


# -- what is no finding -------------------------------------------------------------------------------------------------


def test_an_exempt_run_is_counted_and_not_missed(books: Books) -> None:
    books.accounting.runs.append(a_slurm_run(1, account="exempt"))
    report = books.compare()
    assert report.clean and report.not_compared == {"exempt": 1}


def test_a_run_from_before_the_ledger_is_counted_and_not_missed(books: Books) -> None:
    books.accounting.runs.append(a_slurm_run(1, start_time=T0 - 90_000))
    report = books.compare(since=T0 - 100_000)
    assert report.clean and report.not_compared == {"before_ledger": 1}


def test_a_run_with_our_token_from_just_before_the_ledger_is_missed(books: Books) -> None:
    token = tokens.Token(lien_id="ab" * 16, per_task_csu=40, price_version="v")
    comment = str(token)
    books.accounting.runs.append(a_slurm_run(1, start_time=T0 - 9000, admin_comment=comment))
    assert found(books.compare(since=T0 - 100_000)) == [("missing", "ledger", 1)]


def test_a_run_whose_delivery_waits_is_counted_and_not_missed_at_the_bank(books: Books) -> None:
    books.end(a_slurm_run(1), deliver=False)
    report = books.compare()
    assert report.clean and report.not_compared == {"waiting": 1}


def test_a_run_that_the_bank_refuses_for_good_is_missing_there(books: Books) -> None:
    run = books.end(a_slurm_run(1), deliver=False)
    with books.ledger.transaction() as tx:
        tx.park(run.run_id, "400 partition: too long")
    report = books.compare()
    assert found(report) == [("missing", "bank", 1)]
    assert "too long" in report.findings[0].text


def test_what_never_ran_costs_nothing_and_is_not_missed(books: Books) -> None:
    never = a_slurm_run(1, started=False, state="CANCELLED", elapsed_s=0)
    books.accounting.runs.append(replace(never, start_time=None))
    books.accounting.runs.append(a_slurm_run(2, partition="free"))
    assert books.compare().clean


def test_a_run_lost_by_slurm_and_open_in_slurmdbd_is_no_finding(books: Books) -> None:
    running = books.start(a_slurm_run(1), deliver=False)
    with books.ledger.transaction() as tx:
        tx.lose_run(running, actor="relay")
    report = books.compare()
    assert report.clean
    assert report.not_compared == {"waiting": 1, "open_in_accounting": 1}


def test_a_run_of_which_slurmdbd_has_the_times_alone_is_compared_by_those(books: Books) -> None:
    """slurmctld was killed between its start and the report of it: no partition, no CPUs, and no reason to doubt it."""
    runs = [a_slurm_run(number) for number in (1, 2, 3, 4)]
    for run in runs:
        books.end(run)
    agrees, goes_on, otherwise, _ = (replace(run, partition="", user_id=0) for run in runs)
    assert otherwise.end_time is not None
    books.accounting.runs = []
    books.accounting.parts = [
        agrees,
        replace(goes_on, end_time=None, state="PENDING"),
        replace(otherwise, end_time=otherwise.end_time + 5),
    ]
    report = books.compare()
    assert report.not_compared == {"times_alone": 1, "open_in_accounting": 1}
    assert sorted((one.kind, one.job_id) for one in report.findings) == [
        ("restated", 3),
        ("unknown", 4),
    ]
    assert "never got its start" in next(o.text for o in report.findings if o.job_id == 3)


def test_a_lost_run_that_slurmdbd_has_an_end_of_by_now_is_restated(books: Books) -> None:
    run = a_slurm_run(1)
    running = books.start(run, deliver=False)
    with books.ledger.transaction() as tx:
        tx.lose_run(running, actor="relay")
    books.accounting.runs = [run]
    assert found(books.compare()) == [("restated", "ledger", 1)]


def test_an_end_that_slurm_made_up_after_a_run_was_lost_costs_nothing(books: Books) -> None:
    run = a_slurm_run(1)
    running = books.start(run, deliver=False)
    with books.ledger.transaction() as tx:
        tx.lose_run(running, actor="relay")
        lost_at = tx.now_us // 1_000_000
    made_up = replace(run, state="CANCELLED", end_time=lost_at + 60, elapsed_s=900)
    books.accounting.runs = [made_up]
    assert not [one for one in found(books.compare()) if one[1] == "ledger"]
    books.accounting.runs = [replace(made_up, state="COMPLETED")]
    assert found(books.compare()) == [("restated", "ledger", 1)]


def test_an_end_that_slurm_made_up_charges_nothing(books: Books) -> None:
    made_up = a_slurm_run(1, state="CANCELLED", elapsed_s=3 * 86_400, time_limit_min=60)
    books.accounting.runs.append(made_up)
    assert books.compare().clean


def test_an_end_long_after_the_limit_that_slurmctld_told_too_is_charged(books: Books) -> None:
    run = books.end(a_slurm_run(1, state="CANCELLED", elapsed_s=3 * 86_400, time_limit_min=60))
    assert run.charge_csu and books.compare().clean
    overcharge(books, run)
    assert found(books.compare()) == [("mischarged", "ledger", 1)]


def test_who_cancelled_is_as_the_ledger_knew_it(books: Books) -> None:
    run = a_slurm_run(1, state="CANCELLED", cancelled_by_admin=True)
    ended = books.end(run)
    assert ended.charge_csu == 0
    books.accounting.runs = [replace(run, cancelled_by_admin=False)]
    assert books.compare().clean


def test_a_run_requeued_after_its_end_keeps_its_charge(books: Books) -> None:
    run = a_slurm_run(1)
    books.end(run)
    assert run.end_time is not None
    stretched = replace(
        run, state="REQUEUED", end_time=run.end_time + 700, elapsed_s=run.elapsed_s + 700
    )
    books.accounting.runs = [stretched]
    report = books.compare()
    assert report.clean and report.not_compared == {"requeued_after_end": 1}


def test_a_resized_run_is_charged_by_its_parts(books: Books) -> None:
    run = a_slurm_run(1, elapsed_s=900)
    with books.ledger.transaction() as tx:
        settle.end_run(
            tx,
            replace(run, cpus=16, tres=replace(run.tres, cpus=16), elapsed_s=300, resizing=True, end_time=None),
            books.config,
            actor="slurmctld",
        )  # fmt: skip
    ended = books.end(run)
    assert ended.inputs["segments"] and ended.charge_csu == (16 * 300 + 4 * 600) * 360 // 3600
    assert books.compare().clean


def test_a_charge_that_was_taken_over_from_the_bank_is_no_finding(books: Books) -> None:
    run = books.end(a_slurm_run(1), deliver=False)
    with books.ledger.transaction() as tx:
        tx.adopt_charge(run, 99, actor="relay", reason="as the bank has it")
    books._acknowledge(run.run_id, 99)
    report = books.compare()
    assert report.clean and report.not_compared == {"adopted": 1}


def test_every_run_of_a_requeued_job_is_its_own(books: Books) -> None:
    first = a_slurm_run(1, state="REQUEUED")
    assert first.end_time is not None
    second = a_slurm_run(
        1, restart_count=1, submit_time=first.end_time, start_time=first.end_time + 120
    )
    for run in (first, second):
        books.end(run)
    assert sorted(books.bank.rows) == ["1", "1-r1"]
    assert books.compare().clean


def test_a_reused_job_id_is_another_run(books: Books) -> None:
    books.end(a_slurm_run(1))
    books.end(a_slurm_run(1, start_time=T0 + 200_000, user_id=1002, user_name="bob"))
    assert len(books.bank.rows) == 2
    assert books.compare().clean


def test_a_running_run_is_no_finding(books: Books) -> None:
    books.start(a_slurm_run(1))
    assert books.compare().clean


def test_a_run_that_ended_before_the_period_and_goes_on_in_the_ledger_is_found(
    books: Books,
) -> None:
    run = a_slurm_run(1)
    books.start(run)
    books.accounting.runs = [run]
    assert found(books.compare(since=T0 + 86_400)) == [("still_running", "ledger", 1)]


def test_rows_of_another_cluster_are_counted_with_their_amount(books: Books) -> None:
    books.end(a_slurm_run(1))
    books.bank.put(replace(books.bank.rows["1"], bank_job_id="other:77"))
    report = books.compare()
    assert report.clean and report.not_compared == {"others": 1} and report.others_csu == 36


def test_a_row_that_counts_nothing_is_no_finding(books: Books) -> None:
    books.end(a_slurm_run(1))
    row = books.bank.rows["1"]
    books.bank.put(replace(row, bank_job_id="999", amount_csu=0))
    books.bank.put(replace(row, bank_job_id=f"1-{row.submit_time}", amount_csu=0))
    assert books.compare().clean


def test_a_deleted_row_whose_listing_was_missed_is_asked_for_by_its_id(books: Books) -> None:
    """A run of many days, whose row started long before the window."""
    books.end(a_slurm_run(1, start_time=T0 + 100, elapsed_s=3 * 86_400))
    books.bank.asked.clear()
    assert books.compare(since=T0 + 2 * 86_400).clean
    assert books.bank.asked == ["1"]


# -- sums ---------------------------------------------------------------------------------------------------------------


def test_a_counter_that_is_not_the_sum_of_its_rows_drifts_at_the_bank(books: Books) -> None:
    books.end(a_slurm_run(1))
    books.bank.used["astro"] += 500
    report = books.compare()
    assert found(report) == [("drift", "bank", None)]
    (finding,) = report.findings
    assert (finding.account, finding.period, finding.difference_csu) == ("astro", "1@x", 500)


def test_a_row_that_was_changed_past_the_bank_s_counting_is_found_and_so_is_its_counter(
    books: Books,
) -> None:
    books.end(a_slurm_run(1))
    books.end(a_slurm_run(2))
    del books.bank.rows["1"]
    assert found(books.compare()) == [("drift", "bank", None), ("missing", "bank", 1)]


def test_what_the_ledger_takes_the_bank_to_hold_drifts_at_the_ledger(books: Books) -> None:
    run = books.end(a_slurm_run(1))
    books.sql("UPDATE runs SET bank_csu = bank_csu + 30 WHERE run_id = ?", run.run_id)
    report = books.compare()
    assert found(report) == [("drift", "ledger", None)]
    assert "0.30 SU more" in report.findings[0].text


def test_entries_that_do_not_come_to_what_is_kept_drift_at_the_ledger(books: Books) -> None:
    books.end(a_slurm_run(1))
    with books.ledger.transaction() as tx:
        tx.append("note", account="astro", user_id=1001, amount_csu=5, reason="x", actor="y")
    assert found(books.compare()) == [("drift", "ledger", None)]


# -- periods ------------------------------------------------------------------------------------------------------------


def test_windows_are_short_where_there_is_much(books: Books) -> None:
    for job_id in range(1, 60):
        books.end(a_slurm_run(job_id))
    books.accounting.asked.clear()
    report = books.compare(window_rows=10)
    assert report.clean and report.runs == 59
    asked = books.accounting.asked
    assert asked[0][0] == T0 and asked[-1][1] == UNTIL
    assert all(before[1] == after[0] for before, after in zip(asked, asked[1:], strict=False))
    ends = [run.end_time or 0 for run in books.accounting.runs]
    assert max(sum(low <= end < high for end in ends) for low, high in asked) <= 10


def test_rows_of_runs_that_end_in_a_later_window_are_listed_once(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "LIST_DAY_ROWS", 2)
    for job_id in range(1, 60):
        books.end(a_slurm_run(job_id, start_time=T0 + 600 * job_id, elapsed_s=3 * 3600))
    listed: Counter[str] = Counter()
    ask = books.bank.list_runs

    def counted(**options: Any) -> Iterator[BankRun]:
        for row in ask(**options):
            listed[row.bank_job_id] += options.get("account") is None  # not for an account's sum
            yield row

    books.bank.list_runs = counted  # type: ignore[method-assign]
    books.bank.asked.clear()
    report = books.compare(window_rows=10)
    assert report.clean and report.rows == 59 and report.windows > 5
    assert set(listed.values()) == {1} and not books.bank.asked


def test_one_account_alone(books: Books) -> None:
    books.end(a_slurm_run(1))
    bio = books.end(a_slurm_run(2, account="bio"))
    overcharge(books, bio)
    assert books.compare(account="astro").clean
    assert found(books.compare(account="bio")) == [("mischarged", "ledger", 2)]


def test_a_comparison_that_is_stopped_goes_on_from_the_last_clean_window(books: Books) -> None:
    for job_id in range(1, 40):
        books.end(a_slurm_run(job_id))
    state_dir = str(books.directory)
    now = UNTIL + reconciling.LAG_S
    assert default_period(books.ledger, now) == (T0, UNTIL)

    done: list[Report] = []

    def progress(report: Report) -> None:
        remember(state_dir, report, now)
        done.append(report)

    report = books.compare(window_rows=5, progress=progress, should_stop=lambda: len(done) >= 4)
    assert report.stopped and not report.clean
    until = recall(state_dir).clean_until
    assert until is not None and T0 < until < UNTIL
    since, _ = default_period(books.ledger, now)
    assert since == max(T0, until - reconciling.OVERLAP_S)
    assert books.compare(since=since).clean


def test_a_period_that_differs_is_looked_at_again(books: Books) -> None:
    run = books.end(a_slurm_run(1, start_time=T0 + 2 * 86_400))
    overcharge(books, run)
    report = books.compare(window_rows=1)
    remember(str(books.directory), report, UNTIL)
    clean_until = recall(str(books.directory)).clean_until
    assert clean_until is None or clean_until <= (run.end_time or 0)
    since, _ = default_period(books.ledger, UNTIL + reconciling.LAG_S)
    assert not books.compare(since=since).clean


def test_one_account_s_comparison_is_no_clean_period(books: Books) -> None:
    books.end(a_slurm_run(1))
    remember(str(books.directory), books.compare(account="astro"), UNTIL)
    assert recall(str(books.directory)).clean_until is None


def test_a_bank_that_lists_nothing_is_asked_row_by_row_and_that_is_said(books: Books) -> None:
    class Original(type(books.bank)):  # type: ignore[misc]
        def list_runs(self, **options: Any) -> Iterator[BankRun]:
            raise NoListing("the bank does not list its rows by time")

    bank = Original()
    bank.rows, bank.used = books.bank.rows, books.bank.used
    books.bank = bank
    runs = [books.end(a_slurm_run(job_id)) for job_id in (1, 2)]
    other_amount(books, runs[0])
    report = books.compare()
    assert found(report) == [("mischarged", "bank", 1)]
    assert len(report.not_looked) == 1 and "its counters" in report.not_looked[0]


def test_a_bank_that_is_away_for_good_is_told(books: Books) -> None:
    books.end(a_slurm_run(1))

    def away(**_: Any) -> Iterator[BankRun]:
        raise BankUnavailable("bank: connection refused")

    books.bank.list_runs = away  # type: ignore[method-assign]
    with pytest.raises(BankUnavailable):
        books.compare()


def test_a_bank_that_is_away_for_a_moment_is_asked_again(books: Books) -> None:
    books.end(a_slurm_run(1))
    ask, failures = books.bank.list_runs, [BankUnavailable("no answer")]

    def at_times(**options: Any) -> Iterator[BankRun]:
        if failures:
            raise failures.pop()
        yield from ask(**options)

    books.bank.list_runs = at_times  # type: ignore[method-assign]
    assert books.compare().clean and not failures


def test_more_findings_than_are_kept_are_counted_and_summed(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "MOST_FINDINGS", 2)
    for job_id in range(1, 6):
        overcharge(books, books.end(a_slurm_run(job_id)))
    report = books.compare()
    assert len(report.findings) == 2
    assert report.counts == {("mischarged", "ledger"): 5}
    assert report.sums == {("mischarged", "ledger", "astro"): 35}
    assert report.as_dict()["found"] == 5 and json.dumps(report.as_dict())


@pytest.mark.parametrize(
    ("job_id_format", "bank_job_id", "job_id"),
    [
        ("{job_id}", "123", 123),
        ("{job_id}", "123-r2", 123),
        ("{job_id}", "123-1700000000", 123),
        ("{job_id}", "123-r2-1700000000", 123),
        ("{job_id}", "adjustment", None),
        ("{job_id}", "12x", None),
        ("{cluster}:{job_id}", "c:123", 123),
        ("{cluster}:{job_id}", "d:123", None),
        ("{cluster}:{job_id}", "123", None),
        ("{array_job_id}_{array_task_id}_{job_id}_{restart}", "5_2_77_1", 77),
    ],
)
def test_a_row_s_id_names_its_job(job_id_format: str, bank_job_id: str, job_id: int | None) -> None:
    assert RowNames(job_id_format, "c").job_id(bank_job_id) == job_id


def test_a_row_that_the_bank_is_about_to_be_told_is_no_run_s_waits(books: Books) -> None:
    run = books.end(a_slurm_run(1))
    books.accounting.runs = []
    with books.ledger.transaction() as tx:
        tx.strike_run(run, entered_csu=36, actor="reconcile", reason="it never was")
    report = books.compare()
    assert report.clean and report.not_compared == {"waiting": 1}
    with books.ledger.transaction() as tx:
        tx._run("drop_outbox", (run.run_id, "end"))
    assert found(books.compare()) == [("unknown", "bank", 1)], "if nobody tells it, it is found"


def test_a_run_whose_key_slurmctld_gave_to_another_user_s_is_left_alone(books: Books) -> None:
    first = a_slurm_run(1)
    assert first.start_time is not None and first.end_time is not None
    books.end(first)
    later = replace(
        first, user_id=1002, start_time=first.start_time + 5, end_time=first.end_time + 5
    )
    books.end(later)
    assert [run.user_id for run in books.accounting.runs] == [1002], "as slurmdbd does"
    report = books.compare()
    assert report.clean and (report.runs, report.rows) == (1, 2)
    report = books.compare(window_rows=1)
    assert report.clean
    report = books.compare(until=later.end_time)
    assert report.clean and report.not_compared == {"key_given_again": 1}
    books.accounting.runs = [replace(first, source="sacct")]
    report = books.compare()
    assert report.clean, "slurmdbd does not have the later one yet"


def test_an_exempt_run_under_another_s_key_takes_nothing_from_it(books: Books) -> None:
    first = a_slurm_run(1)
    assert first.start_time is not None and first.end_time is not None
    books.end(first)
    exempt = replace(
        first,
        user_id=1002,
        account="exempt",
        start_time=first.start_time + 5,
        end_time=first.end_time + 5,
        source="sacct",
    )
    books.accounting.runs = [exempt]
    report = books.compare()
    assert report.clean and report.not_compared == {"exempt": 1}


def test_a_row_that_was_listed_before_its_run_s_window_is_not_asked_for_again(
    books: Books,
) -> None:
    books.end(a_slurm_run(1, start_time=T0 + 100, elapsed_s=3 * 86_400))
    books.bank.asked.clear()
    report = books.compare(window_rows=3)
    assert report.windows > 2 and report.clean and report.rows == 1
    assert books.bank.asked == []


def test_a_run_that_goes_on_and_ended_at_the_bank_is_found(books: Books) -> None:
    run = books.start(a_slurm_run(1))
    _row(books, run, end_time=T0 + 9000)
    assert found(books.compare()) == [("mischarged", "bank", 1)]
