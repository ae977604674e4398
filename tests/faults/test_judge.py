# SPDX-License-Identifier: BSD-3-Clause
"""The judge of the fault rig, on books made by hand: it finds what is wrong, and lets pass only what a witness explains."""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import Any

import pytest

from tests.faults import breakage
from tests.faults.judge import (
    LOST_BY_SLURM,
    NO_CPUS,
    NO_END,
    NO_RECORD,
    NO_START,
    ONLY_AT_BANK,
    OTHER_TIMES,
    REQUEUED_LATER,
    Books,
    Held,
    Note,
    Verdict,
    judge,
    notes_of,
)
from tests.faults.schedule import CLASSES, DISASTERS, KINDS, one_of_each_class, schedules
from tests.rig.cluster import RigError

PRICES: dict[str, Any] = {
    "partitions": {"main": {"cpu": "360"}},
    "qos": {},
    "state_factor": {"NODE_FAIL": "0"},
    "admin_uids": [0],
}
SUBMIT, START = 1_800_000_000, 1_800_000_002
USER = 1001


def row(job: int, seconds: int | None = 10, **changes: str) -> dict[str, str]:
    """Of sacct; `seconds`: None, it goes on by slurmdbd."""
    base = {
        "JobIDRaw": str(job),
        "JobID": str(job),
        "Submit": str(SUBMIT),
        "Start": str(START),
        "End": "Unknown" if seconds is None else str(START + seconds),
        "UID": str(USER),
        "Account": "fc_alpha",
        "Partition": "main",
        "QOS": "normal",
        "State": "RUNNING" if seconds is None else "COMPLETED",
        "ElapsedRaw": str(seconds or 0),
        "Suspended": "00:00:00",
        "TimelimitRaw": "1",
        "AllocTRES": "billing=1,cpu=1,node=1",
        "ReqTRES": "cpu=1",
        "NodeList": "n1",
        "Flags": "",
    }
    return base | changes


def run(job: int, seconds: int = 10, **changes: Any) -> dict[str, Any]:
    """Of the ledger: a CPU at 0.10 SU a second."""
    base = {
        "run_id": job,
        "job_id": job,
        "array_job_id": None,
        "submit_time": SUBMIT,
        "restart_count": 0,
        "state": "ended",
        "account": "fc_alpha",
        "user_id": USER,
        "partition": "main",
        "qos": "normal",
        "start_time": START,
        "end_time": START + seconds,
        "cpus": 1,
        "slurm_state": "COMPLETED",
        "lien_csu": 600,
        "charge_csu": 10 * seconds,
        "ledger_csu": 10 * seconds,
        "bank_csu": 10 * seconds,
        "bank_job_id": str(job),
        "parked": None,
        "source": "jobcomp",
    }
    return base | changes


def at_bank(job: int | str, csu: int = 100, **changes: Any) -> dict[str, Any]:
    base = {
        "jobslurmid": str(job),
        "user_id": USER,
        "account": "fc_alpha",
        "submit_time": SUBMIT,
        "start_time": START,
        "end_time": START + csu // 10,
        "amount_csu": csu,
        "counted_csu": csu,
    }
    return base | changes


def books(
    rows: list[dict[str, str]],
    runs: list[dict[str, Any]],
    jobs: list[dict[str, Any]],
    **changes: Any,
) -> Books:
    """Whose sums are what their lines come to."""
    held = sum(one["ledger_csu"] for one in runs)
    used = sum(one["counted_csu"] for one in jobs)
    whole = Books(
        rows=rows,
        runs=runs,
        liens=[],
        told=[],
        entry_sums={("fc_alpha", USER): held},
        outbox=[],
        checks=[],
        bank_jobs=jobs,
        bank_used={("fc_alpha", USER): used},
        prices=PRICES,
    )
    return dataclasses.replace(whole, **changes)


def good_books(**changes: Any) -> Books:
    return books(
        [row(1), row(2, 20)],
        [run(1), run(2, 20)],
        [at_bank(1), at_bank(2, 200)],
        **changes,
    )


def found(verdict: Verdict) -> set[str]:
    names = ("lost", "doubled", "open_liens", "ended_wrongly", "drift", "overdrafts", "unsettled")
    return {name for name in names if getattr(verdict, name)}


def test_books_that_agree_are_good() -> None:
    verdict = judge(good_books())
    assert verdict.good and not verdict.lines() and verdict.runs == 2
    assert verdict.drift_csu == 0


def test_a_run_of_slurmdbd_that_the_ledger_does_not_have_is_lost() -> None:
    verdict = judge(books([row(1), row(2)], [run(1)], [at_bank(1)]))
    assert "lost" in found(verdict) and "job 2" in verdict.lost[0]
    assert not verdict.good and verdict.drift_csu == 100


def test_a_run_whose_key_another_user_s_has_is_judged_by_the_other_witnesses() -> None:
    """slurmdbd has the later one alone."""
    other = {"user_id": USER + 1, "start_time": START + 20, "end_time": START + 50}
    later = run(1, 30, run_id=9, bank_job_id=f"1-{SUBMIT}", **other)
    later_at_bank = at_bank(f"1-{SUBMIT}", 300, **other)
    of_slurmdbd = row(1, 30, UID=str(USER + 1), Start=str(START + 20), End=str(START + 50))
    holders = {("fc_alpha", USER): 100, ("fc_alpha", USER + 1): 300}

    def judged(first: dict[str, Any], notes: list[Note]) -> Verdict:
        kept = {**holders, ("fc_alpha", USER): first["charge_csu"]}
        mine = at_bank(1, first["charge_csu"])
        return judge(
            books([of_slurmdbd], [first, later], [mine, later_at_bank], notes=notes, entry_sums=kept, bank_used=kept)
        )  # fmt: skip

    seen = [Note(kind="start", job_id=1, restart=0, at=START), Note(kind="end", job_id=1, restart=0, at=START + 10)]  # fmt: skip
    first = run(1, restart_count=-7)
    verdict = judged(first, seen)
    assert verdict.good and reasons(verdict) == [NO_RECORD] and verdict.runs == 2
    assert not judged(first, []).good, "nobody saw it"
    assert not judged({**first, "user_id": USER + 1}, seen).good, "nobody had its key"
    lost = run(1, 0, restart_count=-7, slurm_state="LOST")
    verdict = judged(lost, [])
    assert verdict.good and reasons(verdict) == [LOST_BY_SLURM]


def test_a_charge_that_never_reached_the_bank_is_lost() -> None:
    verdict = judge(books([row(1)], [run(1, bank_job_id=None)], []))
    assert "not at the bank" in verdict.lost[0] and not verdict.good


def test_a_charge_that_only_the_bank_has_is_lost() -> None:
    verdict = judge(books([row(1)], [run(1)], [at_bank(1), at_bank(7, submit_time=SUBMIT + 60)]))
    assert "only at the bank" in verdict.lost[0]


def test_a_run_under_two_names_at_the_bank_is_doubled() -> None:
    twice = at_bank(f"1-{SUBMIT}")
    verdict = judge(books([row(1)], [run(1)], [at_bank(1), twice]))
    assert "under another name" in verdict.doubled[0] and not verdict.good


def test_a_start_alone_under_a_second_name_costs_nobody_anything() -> None:
    verdict = judge(books([row(1)], [run(1)], [at_bank(1), at_bank(f"1-{SUBMIT}", 0)]))
    assert verdict.good


def test_two_runs_of_one_submission_that_were_both_charged_are_doubled() -> None:
    again = run(1, run_id=9, restart_count=1, bank_job_id="1-r1")
    verdict = judge(books([row(1)], [run(1), again], [at_bank(1), at_bank("1-r1")]))
    assert "two runs, both charged" in verdict.doubled[0]


def test_charges_of_one_job_over_the_same_seconds_are_doubled() -> None:
    again = run(
        1,
        run_id=9,
        restart_count=1,
        bank_job_id="1-r1",
        submit_time=SUBMIT + 5,
        start_time=START + 5,
    )
    verdict = judge(
        books(
            [row(1), row(1, 10, Submit=str(SUBMIT + 5), Start=str(START + 5))],
            [run(1), again],
            [at_bank(1), at_bank("1-r1", submit_time=SUBMIT + 5)],
        )
    )
    assert "and again from" in verdict.doubled[0]


def test_entries_that_charge_a_run_twice_are_doubled() -> None:
    told = {"job_id": 1, "submit_time": SUBMIT, "restart_count": 0, "charges": 2, "starts": 1}
    verdict = judge(good_books(told=[told]))
    assert "2 entries charge it" in verdict.doubled[0]


def test_what_is_set_aside_after_everything_has_ended_is_an_open_lien() -> None:
    lien = {
        "lien_id": "ab", "job_id": 3, "origin": "submit", "state": "confirmed", "amount_csu": 0,
        "account": "fc_alpha", "user_id": USER,
    }  # fmt: skip
    assert found(judge(good_books(liens=[lien]))) == {"open_liens"}
    going = run(3, state="running", charge_csu=None, ledger_csu=0, bank_csu=0)
    left = books([row(1)], [run(1), going], [at_bank(1)])
    assert found(judge(left)) == {"open_liens"}


def test_a_lien_that_expired_while_its_job_waited_ended_wrongly() -> None:
    expired = {"lien_id": "ab", "job_id": 3, "user_id": USER}
    assert found(judge(good_books(expired=[expired]))) == {"ended_wrongly"}


@pytest.mark.parametrize("csu", [99, 101, 0])
def test_another_charge_than_by_sacct_is_drift_to_the_hundredth(csu: int) -> None:
    verdict = judge(books([row(1)], [run(1, charge_csu=csu, ledger_csu=csu)], [at_bank(1, csu)]))
    assert "drift" in found(verdict) and verdict.drift_csu == abs(100 - csu)


@pytest.mark.parametrize("field", ["amount_csu", "counted_csu"])
def test_another_charge_at_the_bank_than_in_the_ledger_is_drift(field: str) -> None:
    verdict = judge(books([row(1)], [run(1)], [at_bank(1, **{field: 99})]))
    assert "drift" in found(verdict)


def test_a_row_of_another_user_or_submission_at_the_bank_is_drift() -> None:
    assert "drift" in found(judge(books([row(1)], [run(1)], [at_bank(1, user_id=7)])))
    assert "drift" in found(judge(books([row(1)], [run(1)], [at_bank(1, submit_time=SUBMIT + 1)])))


def test_a_usage_of_the_bank_that_its_jobs_do_not_explain_is_drift() -> None:
    verdict = judge(good_books(bank_used={("fc_alpha", USER): 301}))
    assert found(verdict) == {"drift"} and verdict.drift_csu == 1


def test_entries_that_do_not_fold_to_what_is_charged_are_drift() -> None:
    verdict = judge(good_books(entry_sums={("fc_alpha", USER): 305}))
    assert found(verdict) == {"drift"} and verdict.drift_csu == 5


def test_what_waits_for_the_bank_and_what_the_ledger_says_of_itself_is_unsettled() -> None:
    waiting = [{"job_id": 1, "phase": "end"}]
    for wrong in ({"outbox": waiting}, {"checks": ["exposure of …"]}, {"live": ["5"]}):
        assert found(judge(good_books(**wrong))) == {"unsettled"}


def test_more_held_than_awarded_is_an_overdraft_but_for_what_slurm_requeued() -> None:
    def held(of_slurm_csu: int) -> Verdict:
        one = Held(account="fc_alpha", most_csu=1200, awarded_csu=1000, of_slurm_csu=of_slurm_csu)
        return judge(good_books(held=[one]))

    assert held(200).good
    assert held(150).overdraft_csu == 50 and not held(150).good


# -- exceptions: only with a witness ------------------------------------------------------------------------------------


def log(job: int | str, start: int, end: int) -> str:
    import datetime

    def stamp(at: int) -> str:
        return datetime.datetime.fromtimestamp(at).isoformat(timespec="milliseconds")

    return (
        f"[{stamp(start)}] sched: Allocate JobId={job} NodeList=n1 #CPUs=1 Partition=main\n"
        f"[{stamp(end)}] _job_complete: JobId={job} done\n"
    )


def reasons(verdict: Verdict) -> list[str]:
    return [one.reason for one in verdict.exceptions]


def test_a_start_that_slurmdbd_lost_is_known_from_slurmctlds_log() -> None:
    lost = row(1, Start="Unknown", State="REQUEUED")
    seen = books([lost], [run(1)], [at_bank(1)], slurmctld_log=log(1, START, START + 10))
    verdict = judge(seen)
    assert reasons(verdict) == [NO_START] and verdict.good and verdict.drift_csu == 0
    later = books([lost], [run(1)], [at_bank(1)], slurmctld_log=log(1, START + 5, START + 10))
    assert not judge(later).good
    assert not judge(books([lost], [run(1)], [at_bank(1)])).good


def test_an_end_that_slurmdbd_lost_is_known_from_the_jobs_own_note() -> None:
    notes = notes_of(f"start 1 0 {START}\nend 1 0 {START + 11}\n")
    verdict = judge(books([row(1, None)], [run(1)], [at_bank(1)], notes=notes))
    assert reasons(verdict) == [NO_END] and verdict.good
    assert not judge(books([row(1, None)], [run(1)], [at_bank(1)])).good
    too_much = run(1, charge_csu=130, ledger_csu=130)
    verdict = judge(books([row(1, None)], [too_much], [at_bank(1, 130)], notes=notes))
    assert not verdict.good and not verdict.exceptions


def test_a_run_that_slurmdbd_never_heard_of_needs_a_witness() -> None:
    seen = books([], [run(1)], [at_bank(1)], slurmctld_log=log(1, START, START + 10))
    assert reasons(judge(seen)) == [NO_RECORD] and judge(seen).good
    assert found(judge(books([], [run(1)], [at_bank(1)]))) == {"drift"}


def test_times_without_a_start_record_are_completed_by_what_was_asked_for() -> None:
    partial = row(1, Partition="", AllocTRES="", UID="0", QOS="Unknown")

    def verdict(cpus: int, at: int = SUBMIT, **changes: str) -> Verdict:
        asked = [(1, float(at), cpus, "main")]
        whole = books([], [run(1)], [at_bank(1)], partial=[partial | changes], asked=asked)
        return judge(whole)

    assert verdict(1).good and verdict(1).completed == 1 and not verdict(1).exceptions
    assert not verdict(2).good and not verdict(1, SUBMIT - 60).good
    assert not verdict(1, End=str(START + 11)).good


def test_a_task_was_asked_for_with_its_array_which_slurmctlds_log_names() -> None:
    partial = row(1, Partition="", AllocTRES="", UID="0", QOS="Unknown")
    asked = [(90, float(SUBMIT), 1, "main")]
    values: dict[str, Any] = {"partial": [partial], "asked": asked}
    told = log("90_4(1)", START, START + 10)
    verdict = judge(books([], [run(1)], [at_bank(1)], slurmctld_log=told, **values))
    assert verdict.good and verdict.completed == 1 and not verdict.exceptions
    other = log("91_4(1)", START, START + 10)
    verdict = judge(books([], [run(1)], [at_bank(1)], slurmctld_log=other, **values))
    assert verdict.completed == 0


def test_other_times_at_slurmdbd_are_its_mistake_only_if_nobody_saw_those() -> None:
    far = row(1, 10, End=str(START + 500), ElapsedRaw="500")
    seen = books([far], [run(1)], [at_bank(1)], slurmctld_log=log(1, START, START + 10))
    assert reasons(judge(seen)) == [OTHER_TIMES]
    both = log(1, START, START + 10) + log(1, START, START + 500)
    assert not judge(books([far], [run(1)], [at_bank(1)], slurmctld_log=both)).good


def test_an_end_made_up_when_slurmctld_came_back_without_its_state_is_slurmdbds_mistake() -> None:
    made_up = row(1, State="CANCELLED", End=str(START + 12), ElapsedRaw="12")
    seen = log(1, START, START + 10)
    flush = (
        log(99, 0, START + 12).splitlines()[1].split("]")[0]
        + "] Reinitializing job accounting state\n"
    )

    def verdict(text: str) -> Verdict:
        return judge(books([made_up], [run(1)], [at_bank(1)], slurmctld_log=text))

    assert reasons(verdict(seen + flush)) == [OTHER_TIMES] and verdict(seen + flush).good
    assert not verdict(seen).good and not verdict(flush).good


def test_an_end_made_up_of_what_slurmctld_had_lost_before_costs_nothing() -> None:
    made_up = row(1, State="CANCELLED", End=str(START + 500), ElapsedRaw="500")
    when = log(99, 0, START + 500).splitlines()[1].split("]")[0]
    flush = f"{when}] Reinitializing job accounting state\n"
    nothing = {"charge_csu": 0, "ledger_csu": 0, "bank_csu": 0, "end_time": START}
    lost = run(1, slurm_state="LOST", **nothing)

    def verdict(text: str, **changes: Any) -> Verdict:
        mine = {**lost, **changes}
        return judge(books([made_up], [mine], [at_bank(1, 0, end_time=START)], slurmctld_log=text))

    assert reasons(verdict(flush)) == [LOST_BY_SLURM] and verdict(flush).good
    assert not reasons(verdict(""))
    assert not reasons(verdict(flush + log(1, START, START + 500))), "it did end then"
    assert not reasons(verdict(flush, slurm_state="COMPLETED"))


def test_a_run_that_was_requeued_after_its_end_has_its_own_end() -> None:
    moved = row(1, 14, State="REQUEUED")
    ended = log(1, START, START + 10)
    when = log(99, 0, START + 14).splitlines()[1].split("]")[0]
    requeued = f"{when}] Requeuing JobId=1\n"

    def verdict(text: str) -> Verdict:
        return judge(books([moved], [run(1)], [at_bank(1)], slurmctld_log=text))

    assert reasons(verdict(ended + requeued)) == [REQUEUED_LATER]
    assert verdict(ended + requeued).good
    assert reasons(verdict(ended)) == [OTHER_TIMES] and not verdict(requeued).good


def test_what_was_cancelled_as_waiting_while_it_ran_may_have_been_charged_for_the_time() -> None:
    over = row(1, 0, State=f"CANCELLED by {USER}", Start=str(START + 10), End=str(START + 10))
    started = log(1, START, START + 10).splitlines()[0] + "\n"
    when = log(99, 0, START + 10).splitlines()[1].split("]")[0]
    cancelled = f"{when}] _slurm_rpc_kill_job: REQUEST_KILL_JOB JobId=1 uid {USER}\n"

    def verdict(text: str) -> Verdict:
        return judge(books([over], [run(1, source="sacct")], [at_bank(1)], slurmctld_log=text))

    assert verdict(started + cancelled).good
    assert reasons(verdict(started + cancelled)) == [OTHER_TIMES]
    assert not verdict(started).good and not verdict(cancelled).good


def test_an_end_that_slurmdbd_overwrote_with_one_without_cpus_needs_a_witness() -> None:
    other = row(1, 40, State="CANCELLED", AllocTRES="")
    asked = [[1, float(SUBMIT), 1, "main"]]

    def verdict(text: str) -> Verdict:
        return judge(books([other], [run(1)], [at_bank(1)], slurmctld_log=text, asked=asked))

    assert reasons(verdict(log(1, START, START + 10))) == [OTHER_TIMES]
    assert not verdict("").good


def test_a_run_that_slurmctld_lost_costs_nothing_until_slurmdbd_tells_its_end() -> None:
    lost = run(1, charge_csu=0, ledger_csu=0, bank_csu=0, slurm_state="LOST", end_time=START)
    nothing = at_bank(1, 0)
    verdict = judge(books([row(1, None)], [lost], [nothing]))
    assert verdict.good and reasons(verdict) == [LOST_BY_SLURM]
    told = judge(books([row(1)], [lost], [nothing]))
    assert not told.good and LOST_BY_SLURM not in reasons(told)


def test_what_only_the_bank_has_of_a_lost_ledger_needs_a_witness() -> None:
    rows, runs, jobs = [row(1)], [run(1)], [at_bank(1), at_bank(7)]
    seen = log(7, START, START + 10)
    verdict = judge(books(rows, runs, jobs, slurmctld_log=seen, ledger_lost=True))
    assert reasons(verdict) == [ONLY_AT_BANK] and verdict.good
    assert "lost" in found(judge(books(rows, runs, jobs, slurmctld_log=seen)))
    assert "lost" in found(judge(books(rows, runs, jobs, ledger_lost=True)))


def test_a_run_that_bank_and_slurmdbd_agree_on_may_miss_in_a_rebuilt_ledger() -> None:
    rows, runs = [row(1), row(7)], [run(1)]
    whole = judge(books(rows, runs, [at_bank(1), at_bank(7)], ledger_lost=True))
    assert reasons(whole) == [ONLY_AT_BANK] and whole.good
    other = judge(books(rows, runs, [at_bank(1), at_bank(7, 90)], ledger_lost=True))
    assert "lost" in found(other)
    assert "lost" in found(judge(books(rows, runs, [at_bank(1), at_bank(7)])))
    assert "lost" in found(judge(books(rows, runs, [at_bank(1)], ledger_lost=True)))


def test_what_never_ends_at_the_bank_is_not_explained_by_a_lost_ledger() -> None:
    """Its estimate is counted there for ever."""
    seen = log(7, START, START + 10)
    open_row = at_bank(7, end_time=None)
    verdict = judge(
        books([row(1)], [run(1)], [at_bank(1), open_row], slurmctld_log=seen, ledger_lost=True)
    )
    assert "lost" in found(verdict)


def test_a_run_whose_cpus_slurmdbd_lost_costs_what_was_asked_for() -> None:
    without = row(1, AllocTRES="billing=1", State="CANCELLED")
    asked = [[1, float(SUBMIT), 1, "main"]]
    verdict = judge(books([without], [run(1)], [at_bank(1)], asked=asked))
    assert reasons(verdict) == [NO_CPUS] and verdict.good
    assert "drift" in found(judge(books([without], [run(1)], [at_bank(1)])))
    other = [[1, float(SUBMIT), 2, "main"]]
    assert "drift" in found(judge(books([without], [run(1)], [at_bank(1)], asked=other)))


def test_what_only_the_bank_has_may_be_a_run_whose_start_slurmdbd_never_got() -> None:
    startless = row(7, Start="None", State="REQUEUED", End=str(START + 10))
    seen = log(7, START, START + 10)

    def verdict(cost: int, text: str = seen) -> Verdict:
        lost = {"ledger_lost": True, "slurmctld_log": text}
        return judge(books([row(1), startless], [run(1)], [at_bank(1), at_bank(7, cost)], **lost))

    assert reasons(verdict(100)) == [ONLY_AT_BANK] and verdict(100).good
    assert "lost" in found(verdict(80))
    assert "lost" in found(verdict(100, ""))


def test_what_only_the_bank_has_agrees_with_slurmdbds_times_and_what_was_asked_for() -> None:
    times = row(7, Partition="", QOS="", UID="0", AllocTRES="", ElapsedRaw="0")
    asked = [[7, float(SUBMIT), 1, "main"]]

    def verdict(cost: int, **changes: Any) -> Verdict:
        lost = {"ledger_lost": True, "partial": [times], "asked": asked, **changes}
        return judge(books([row(1)], [run(1)], [at_bank(1), at_bank(7, cost)], **lost))

    assert verdict(100).good and verdict(100).completed == 1 and not verdict(100).exceptions
    assert "lost" in found(verdict(90))
    assert "lost" in found(verdict(100, asked=[]))
    assert "lost" in found(verdict(100, ledger_lost=False))


def test_without_a_fault_that_loses_records_there_are_no_exceptions() -> None:
    seen = books([], [run(1)], [at_bank(1)], slurmctld_log=log(1, START, START + 10))
    seen.daemons_lost = False
    assert found(judge(seen)) == {"drift"}


def test_exceptions_are_few() -> None:
    verdict = judge(good_books())
    assert not verdict.too_many_exceptions
    seen = books([], [run(1)], [at_bank(1)], slurmctld_log=log(1, START, START + 10))
    assert judge(seen).too_many_exceptions


def test_a_note_that_a_kill_cut_short_is_left_out() -> None:
    assert notes_of("start 1 0 18\nend 1 0 20\nstart 2 0") == [
        Note(kind="start", job_id=1, restart=0, at=18),
        Note(kind="end", job_id=1, restart=0, at=20),
    ]


# -- schedules ----------------------------------------------------------------------------------------------------------


def test_a_seed_draws_the_same_schedules_again() -> None:
    assert list(islice(schedules(7), 60)) == list(islice(schedules(7), 60))
    assert list(islice(schedules(7), 10)) == list(islice(schedules(7), 60))[:10]
    assert list(islice(schedules(7), 10)) != list(islice(schedules(8), 10))


@pytest.mark.parametrize("seed", range(1, 30))
def test_every_kind_comes_up_twice_within_fifty_schedules(seed: int) -> None:
    drawn = list(islice(schedules(seed), 50))
    kinds = [fault.kind for one in drawn for fault in one.faults]
    assert min(kinds.count(kind) for kind in KINDS) >= 2
    assert all(2 <= len(one.faults) <= 5 for one in drawn)
    assert all(len(DISASTERS & {fault.kind for fault in one.faults}) <= 1 for one in drawn)


def test_the_short_form_has_a_schedule_of_each_class() -> None:
    drawn = list(one_of_each_class(1))
    assert len(drawn) == len(CLASSES)
    for schedule, kinds in zip(drawn, CLASSES.values(), strict=True):
        assert schedule.faults and {fault.kind for fault in schedule.faults} <= set(kinds)


class _Shrinks:
    def __init__(self, stops_at: int) -> None:
        self.left, self._stops_at = 10, stops_at

    def __call__(self) -> bool:
        self.left = max(self.left - 1, self._stops_at)
        return not self.left


def test_an_outbox_is_waited_for_as_long_as_it_gets_shorter() -> None:
    """1 s at first, and then as often as it takes; each look is 0.2 s."""
    breakage.deliver_all(_Shrinks(0), 0.0, shrinks_s=0.5)
    with pytest.raises(RigError, match="the outbox to be empty"):
        breakage.deliver_all(_Shrinks(3), 0.0, shrinks_s=0.5)
