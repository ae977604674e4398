# SPDX-License-Identifier: BSD-3-Clause
"""Starts, ends and funds at a bank: the portal (both generations) in this process, and the bundled bank as it is served."""

from __future__ import annotations

import datetime
import os
import time
from dataclasses import replace
from typing import Any, Iterator, List

import pytest

from slurm_banking.bank import Bank
from slurm_banking.bank.wire import default_job_id, node_names
from slurm_banking.errors import BankRefused, BankUnauthorized, BankUnavailable
from slurm_banking.ledger import LedgerRun
from slurm_banking.records import FundsKind, Reason
from tests.builders import SUBMITTED
from tests.server.running_bank import DAY, TODAY, Account, RunningBank
from tests.unit.portal_model import Portal
from tests.unit.runs import a_ledger_run

FIRST_DAY = datetime.date(2026, 6, 1)
FIRST_START = int(datetime.datetime(2026, 6, 1, tzinfo=datetime.timezone.utc).timestamp())


@pytest.fixture
def portal() -> Portal:
    made = Portal()
    project = made.project("fc_alpha", 10_000, start=FIRST_DAY)
    made.member(project, 1001)
    made.member(project, 1002, limit_csu=500)
    return made


def bank_of(portal: Portal, **changes: Any) -> Bank:
    return Bank("http://bank.test/api", "key", timeout_s=5, session=portal.session(), **changes)


def asked(portal: Portal) -> List[str]:
    return [f"{method} {path.split('/')[0]}" for method, path in portal.requests]


RUNNING = a_ledger_run(
    state="running", end_time=None, elapsed_s=0, charge_csu=None, ledger_csu=100, slurm_state="RUNNING"
)  # fmt: skip


def ended_as(run: LedgerRun, charge_csu: int = 40, **changes: Any) -> LedgerRun:
    return a_ledger_run(
        job_id=run.job_id, charge_csu=charge_csu, ledger_csu=charge_csu, **{**{"bank_csu": run.bank_csu}, **changes}
    )  # fmt: skip


# -- starts and ends --------------------------------------------------------------------------------------------------


def test_a_start_is_stored_without_an_end_and_counts_its_lien(portal: Portal) -> None:
    told = bank_of(portal).start(RUNNING, 100)
    assert (told.bank_csu, told.bank_job_id, told.note) == (100, "7", "")
    row = portal.jobs["7"]
    assert "enddate" not in row
    assert (row["amount"], row["jobstatus"], row["userid"], row["accountid"]) == (
        "1.00",
        "RUNNING",
        "1001",
        "fc_alpha",
    )
    assert portal.projects["fc_alpha"].used_csu == 100


def test_an_end_replaces_the_lien_by_the_charge(portal: Portal) -> None:
    bank = bank_of(portal)
    bank.start(RUNNING, 100)
    told = bank.end(ended_as(RUNNING, bank_job_id="7", bank_csu=100))
    assert told.bank_csu == 40 == portal.projects["fc_alpha"].used_csu
    row = portal.jobs["7"]
    assert all(row[name] for name in ("submitdate", "startdate", "enddate"))
    assert (row["jobstatus"], row["amount"], row["cpu_time"]) == ("COMPLETED", "0.40", 0.016667)


def test_an_answer_about_another_job_is_no_acknowledgement(portal: Portal) -> None:
    bank = bank_of(portal)
    bank.funds("fc_alpha", 1001)  # the period is known: the next request is the POST
    portal.faults = ["other_row"]
    with pytest.raises(BankUnavailable, match="answered about job 97"):
        bank.start(RUNNING, 100)
    portal.faults = ["other_row"]
    with pytest.raises(BankUnavailable, match="answered about job 97"):
        bank.end(ended_as(RUNNING, bank_job_id="7", bank_csu=100))


def test_a_run_that_ended_before_its_start_was_told_is_one_put(portal: Portal) -> None:
    told = bank_of(portal).end(a_ledger_run())
    assert told.bank_csu == 40 == portal.projects["fc_alpha"].used_csu
    assert asked(portal).count("PUT jobs") == 1
    assert asked(portal).count("POST jobs") == 0


def test_a_lost_reply_to_an_end_adds_nothing_when_it_is_sent_again(portal: Portal) -> None:
    bank = bank_of(portal)
    run = a_ledger_run()
    portal.faults = ["", "lose_reply"]
    with pytest.raises(BankUnavailable):
        bank.end(run)
    assert portal.projects["fc_alpha"].used_csu == 40
    found = bank.find_run(run)
    assert found is not None and found.held_csu == 40 and found.is_final_for(run)
    assert bank.end(run).bank_csu == 40
    assert portal.projects["fc_alpha"].used_csu == 40
    assert asked(portal).count("PUT jobs") == 1


def test_a_start_that_was_told_already_is_told(portal: Portal) -> None:
    bank = bank_of(portal)
    portal.faults = ["", "lose_reply"]
    with pytest.raises(BankUnavailable):
        bank.start(RUNNING, 100)
    told = bank.start(RUNNING, 250)  # the lien grew meanwhile: the row is not changed
    assert (told.bank_csu, told.bank_job_id) == (100, "7")
    assert portal.projects["fc_alpha"].used_csu == 100


@pytest.mark.parametrize(
    "changes", [{"submit_time": SUBMITTED - 5000}, {"user_id": 1002}, {"account": "fc_beta"}]
)
def test_a_reused_job_id_goes_under_an_id_of_its_own(
    portal: Portal, changes: dict[str, Any]
) -> None:
    portal.member(portal.project("fc_beta", 500, start=FIRST_DAY), 1001)
    bank = bank_of(portal)
    bank.end(a_ledger_run(**changes))
    used = portal.projects["fc_alpha"].used_csu
    told = bank.start(RUNNING, 100)
    assert told.bank_job_id == f"7-{SUBMITTED}"
    assert "7 is another job" in told.note
    told = bank.end(ended_as(RUNNING, bank_job_id=told.bank_job_id, bank_csu=100))
    assert portal.projects["fc_alpha"].used_csu == used + 40
    assert len(portal.jobs) == 2
    assert bank.find_run(RUNNING).bank_job_id == told.bank_job_id  # type: ignore[union-attr]


def test_a_restart_that_a_rebuilt_ledger_made_up_is_found_under_the_id_of_a_first_run(
    portal: Portal,
) -> None:
    """slurmdbd has a requeued job, whose end slurmctld forgot, and the next one of that id as runs of one job."""
    before = a_ledger_run(
        submit_time=RUNNING.submit_time - 100, start_time=RUNNING.submit_time - 90
    )
    bank_of(portal).start(before, 50)
    told = bank_of(portal).start(RUNNING, 100)
    assert told.bank_job_id == f"7-{RUNNING.submit_time}"
    rebuilt = replace(RUNNING, restart_count=1)
    assert bank_of(portal).start(rebuilt, 100).bank_job_id == told.bank_job_id
    found = bank_of(portal).find_run(rebuilt)
    assert found is not None and found.bank_job_id == told.bank_job_id
    ended = a_ledger_run(restart_count=1)
    assert bank_of(portal).end(ended).bank_job_id == told.bank_job_id
    assert sorted(portal.jobs) == ["7", told.bank_job_id]


def test_a_run_that_a_rebuilt_ledger_counts_one_restart_higher_is_found_where_it_was_told(
    portal: Portal,
) -> None:
    """slurmdbd has a row more of its job: of a requeue that slurmctld forgot when it was killed."""
    bank_of(portal).end(a_ledger_run(submit_time=SUBMITTED - 100, start_time=SUBMITTED - 90))
    told = bank_of(portal).start(replace(RUNNING, restart_count=1), 100)
    assert told.bank_job_id == "7-r1"
    for rebuilt in (replace(RUNNING, restart_count=2), replace(RUNNING, restart_count=5)):
        assert bank_of(portal).start(rebuilt, 100).bank_job_id == "7-r1"
        found = bank_of(portal).find_run(rebuilt)
        assert found is not None and found.bank_job_id == "7-r1"
        ended = a_ledger_run(restart_count=rebuilt.restart_count)
        assert bank_of(portal).end(ended).bank_job_id == "7-r1"
    assert sorted(portal.jobs) == ["7", "7-r1"]


def test_a_run_requeued_in_the_second_of_its_submission_is_not_taken_for_the_one_after(
    portal: Portal,
) -> None:
    bank = bank_of(portal)
    bank.end(a_ledger_run(start_time=SUBMITTED, end_time=SUBMITTED, charge_csu=30))
    assert bank.start(replace(RUNNING, restart_count=1), 100).bank_job_id == "7-r1"
    assert bank.end(a_ledger_run(restart_count=1, bank_csu=100)).bank_job_id == "7-r1"
    assert portal.projects["fc_alpha"].used_csu == 70


def test_a_restart_is_looked_for_under_a_few_other_counts_and_no_more(portal: Portal) -> None:
    told = bank_of(portal).start(replace(RUNNING, restart_count=1000), 100)
    assert told.bank_job_id == "7-r1000"
    assert asked(portal).count("GET jobs") == 5
    portal.requests.clear()
    later = replace(RUNNING, restart_count=1001, submit_time=SUBMITTED + 50)
    assert bank_of(portal).start(later, 100).bank_job_id == "7-r1001"
    assert asked(portal).count("GET jobs") == 1, "the run before has its own count"


def test_what_a_node_reported_of_an_earlier_run_is_not_this_runs(portal: Portal) -> None:
    portal._create({
        "jobslurmid": "7-r1", "userid": "1001", "accountid": "fc_alpha", "amount": "0.00",
        "startdate": datetime.datetime.fromtimestamp(SUBMITTED + 5, datetime.timezone.utc).isoformat(),
    })  # fmt: skip
    told = bank_of(portal).start(replace(RUNNING, restart_count=2), 100)
    assert told.bank_job_id == "7-r2"


def test_an_end_alone_never_overwrites_another_jobs_row(portal: Portal) -> None:
    bank = bank_of(portal)
    bank.end(a_ledger_run(submit_time=SUBMITTED - 5000, charge_csu=70))
    told = bank.end(a_ledger_run())
    assert told.bank_job_id == f"7-{SUBMITTED}" and "another job" in told.note
    assert portal.projects["fc_alpha"].used_csu == 110


def test_what_a_node_reported_is_this_runs_start(portal: Portal) -> None:
    portal._create({
        "jobslurmid": "7", "userid": "1001", "accountid": "fc_alpha", "amount": "0.00",
        "startdate": datetime.datetime.fromtimestamp(SUBMITTED + 15, datetime.timezone.utc).isoformat(),
    })  # fmt: skip
    bank = bank_of(portal)
    told = bank.start(RUNNING, 100)
    assert (told.bank_csu, told.bank_job_id) == (0, "7")
    assert bank.end(ended_as(RUNNING, bank_job_id="7")).bank_csu == 40
    assert portal.projects["fc_alpha"].used_csu == 40


@pytest.mark.parametrize("seconds", [-700, 700])
def test_what_a_node_reported_long_before_or_after_is_another_run(
    portal: Portal, seconds: int
) -> None:
    at = datetime.datetime.fromtimestamp(SUBMITTED + 10 + seconds, datetime.timezone.utc)
    portal._create({
        "jobslurmid": "7", "userid": "1001", "accountid": "fc_alpha", "amount": "0.00", "startdate": at.isoformat(),
    })  # fmt: skip
    assert bank_of(portal).start(RUNNING, 100).bank_job_id == f"7-{SUBMITTED}"


def test_a_run_of_an_earlier_period_holds_nothing_and_never_lowers_the_usage(
    portal: Portal,
) -> None:
    """The portal stores its start uncounted; had it an amount, a later PUT would take that off the usage."""
    project = portal.projects["fc_alpha"]
    project.used_csu = 500
    start = FIRST_START - 100
    run = replace(RUNNING, submit_time=start - 10, start_time=start)
    bank = bank_of(portal)
    assert bank.start(run, 100).bank_csu == 0
    assert portal.jobs["7"]["amount"] == "0.00"
    end = a_ledger_run(submit_time=start - 10, start_time=start, end_time=FIRST_START + 50, bank_job_id="7")  # fmt: skip
    assert bank.end(end).bank_csu == 0
    assert project.used_csu == 500


def test_a_renewed_allocation_is_noticed_when_a_run_lies_outside_of_the_remembered_one(
    portal: Portal,
) -> None:
    now = [float(SUBMITTED)]
    project = portal.projects["fc_alpha"]
    project.end = FIRST_DAY + datetime.timedelta(days=29)
    bank = bank_of(portal, clock=lambda: now[0])
    bank.funds("fc_alpha", 1001)
    project.start, project.end = FIRST_DAY + datetime.timedelta(days=30), None
    now[0] += 10
    assert bank.start(RUNNING, 100).bank_csu == 100
    assert bank.end(ended_as(RUNNING, bank_job_id="7", bank_csu=100)).bank_csu == 40


def test_a_run_that_ends_after_its_period_is_taken_as_what_leaves_less(portal: Portal) -> None:
    """The portal does not count such an end, and the bundled bank does."""
    project = portal.projects["fc_alpha"]
    project.end = datetime.datetime.fromtimestamp(SUBMITTED, datetime.timezone.utc).date()
    late = SUBMITTED + 3 * 86400
    bank = bank_of(portal)
    bank.start(RUNNING, 100)
    known = ended_as(RUNNING, bank_job_id="7", bank_csu=100)
    assert bank.end(replace(known, end_time=late)).bank_csu == 40
    assert bank.end(replace(known, end_time=late, charge_csu=300)).bank_csu == 100


def test_a_refusal_for_membership_heals_and_one_for_a_field_does_not(portal: Portal) -> None:
    bank = bank_of(portal)
    portal.projects["fc_alpha"].members["1001"].active = False
    with pytest.raises(BankRefused) as caught:
        bank.start(RUNNING, 100)
    assert caught.value.heals
    with pytest.raises(BankRefused) as caught:
        bank.end(a_ledger_run(charge_csu=10**12))
    assert not caught.value.heals


@pytest.mark.parametrize(
    ("job_id_format", "restart", "expected"),
    [
        ("{job_id}", 0, "7"),
        ("{job_id}", 2, "7-r2"),
        ("{job_id}", -1, "7"),
        ("{cluster}-{job_id}", 1, "brc-7-r1"),
        ("{job_id}:{restart}", 1, "7:1"),
        ("{array_job_id}_{array_task_id}-{job_id}", 0, "5_3-7"),
    ],
)
def test_each_run_has_an_id_at_the_bank(job_id_format: str, restart: int, expected: str) -> None:
    run = a_ledger_run(restart_count=restart, array_job_id=5, array_task_id=3)
    assert default_job_id(run, job_id_format, "brc") == expected


def test_fields_are_cut_to_what_the_bank_takes(portal: Portal) -> None:
    run = a_ledger_run(
        partition="p" * 80, qos="q" * 80, slurm_state="S" * 80, nodes="n[001-003],m" + "x" * 40,
        start_time=SUBMITTED - 5, end_time=SUBMITTED - 6,
    )  # fmt: skip
    bank_of(portal).end(run)
    row = portal.jobs["7"]
    assert [len(row[name]) for name in ("partition", "qos", "jobstatus")] == [50, 50, 50]
    assert [node["name"] for node in row["nodes"]] == ["n001", "n002", "n003"]
    assert row["submitdate"] == row["startdate"] == row["enddate"]  # never out of order


def test_a_host_list_costs_a_bounded_amount_and_never_an_error() -> None:
    assert len(node_names("n[0-60000]")) == 2000
    assert node_names("n[0-99999999999]") == []
    assert node_names("None assigned") == []
    assert node_names("") == []


# -- funds ------------------------------------------------------------------------------------------------------------


def test_funds_are_value_less_usage_with_the_period(portal: Portal) -> None:
    portal.projects["fc_alpha"].used_csu = 1234
    portal.projects["fc_alpha"].members["1002"].used_csu = 700
    account, user = bank_of(portal).funds("fc_alpha", 1002)
    assert (account.kind, account.limit_csu, account.remaining_csu) == (
        FundsKind.LIMITED,
        10_000,
        8_766,
    )
    assert (user.limit_csu, user.remaining_csu, user.reason) == (500, -200, None)
    assert account.allocation == user.allocation == "1@2026-06-01"
    assert account.user_id is None and user.user_id == 1002
    assert account.start_time is not None and account.start_time <= FIRST_START


def test_names_are_looked_up_once(portal: Portal) -> None:
    bank = bank_of(portal)
    bank.funds("fc_alpha", 1001)
    assert asked(portal).count("GET users") == 1
    before = len(portal.requests)
    bank.account_funds("fc_alpha", [1001, 1002])
    assert asked(portal).count("GET users") == 1
    assert len(portal.requests) - before == 6  # allocation and its value; two users with theirs


@pytest.mark.parametrize(
    ("change", "of_account", "of_user"),
    [
        (lambda p: p.projects.pop("fc_alpha"), Reason.UNKNOWN_ACCOUNT, Reason.UNKNOWN_ACCOUNT),
        (lambda p: setattr(p.projects["fc_alpha"], "status", "Expired"), Reason.NO_ALLOCATION, Reason.NO_ALLOCATION),
        (lambda p: setattr(p.projects["fc_alpha"].members["1001"], "active", False), None, Reason.UNKNOWN_USER),
        (lambda p: p.projects["fc_alpha"].members.pop("1001"), None, Reason.UNKNOWN_USER),
    ],
)  # fmt: skip
def test_whom_the_bank_would_refuse_has_funds_with_the_reason(
    portal: Portal, change: Any, of_account: Any, of_user: Any
) -> None:
    change(portal)
    account, user = bank_of(portal).funds("fc_alpha", 1001)
    assert (account.reason, user.reason) == (of_account, of_user)
    assert user.remaining_csu == 0


def test_an_account_with_the_largest_value_is_unlimited(portal: Portal) -> None:
    project = portal.project("co_condo", 10_000_000_000)
    portal.member(project, 1003)
    account, user = bank_of(portal).funds("co_condo", 1003)
    assert account.kind is user.kind is FundsKind.UNLIMITED
    assert account.allocation


def test_a_bank_that_accepts_everything_is_unlimited_or_keeps_no_account(portal: Portal) -> None:
    portal.allow_all = True
    bank = bank_of(portal)
    account, user = bank.funds("fc_alpha", 1001)
    assert account.kind is user.kind is FundsKind.UNLIMITED
    account, user = bank.funds("nobody_knows", 1001)
    assert account.kind is user.kind is FundsKind.NOT_BANKED


def test_a_bank_of_the_original_generation_is_asked_by_halving() -> None:
    portal = Portal(generation="original")
    project = portal.project("fc_alpha", 123_457)
    portal.member(project, 1001)
    portal.member(project, 1002, limit_csu=500)
    bank = bank_of(portal)
    account, user = bank.funds("fc_alpha", 1001)
    assert (account.remaining_csu, user.remaining_csu) == (123_457, 123_457)
    assert asked(portal).count("GET can_submit_job") <= 45
    portal.requests.clear()
    account, users = bank.account_funds("fc_alpha", [1001, 1002])
    assert (
        account.remaining_csu == 123_457
    )  # the most that any of them may spend: never more than the account has
    assert {uid: funds.remaining_csu for uid, funds in users.items()} == {1001: 123_457, 1002: 500}
    project.used_csu = 123_457 + 10
    portal.requests.clear()
    account, user = bank.funds("fc_alpha", 1001)
    assert (account.remaining_csu, account.reason) == (0, Reason.INSUFFICIENT_FUNDS)
    assert bank.funds("fc_alpha", 9)[1].reason is Reason.UNKNOWN_USER
    assert bank.funds("fc_beta", 1001)[0].reason is Reason.UNKNOWN_ACCOUNT
    project.status = "Expired"
    assert bank.funds("fc_alpha", 1001)[0].reason is Reason.NO_ALLOCATION


def test_runs_reach_a_bank_of_the_original_generation() -> None:
    portal = Portal(generation="original")
    portal.member(portal.project("fc_alpha", 1000, start=FIRST_DAY), 1001)
    bank = bank_of(portal)
    assert bank.start(RUNNING, 100).bank_csu == 100
    assert bank.end(ended_as(RUNNING, bank_job_id="7", bank_csu=100)).bank_csu == 40
    assert portal.projects["fc_alpha"].used_csu == 40


def test_an_outage_is_not_taken_for_another_generation(portal: Portal) -> None:
    portal.faults = ["maintenance"]
    with pytest.raises(BankUnavailable):
        bank_of(portal).funds("fc_alpha", 1001)


def test_a_day_begins_at_the_earlier_of_local_and_utc_midnight(
    portal: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bank does not tell its time zone: a run is rather taken into the period than left out of the sum."""
    try:
        for zone, hours in (("America/Los_Angeles", 0), ("Asia/Tokyo", -9)):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            account, _ = bank_of(portal).funds("fc_alpha", 1001)
            assert account.start_time == FIRST_START + hours * 3600
    finally:
        monkeypatch.undo()
        os.environ.setdefault("TZ", "")
        if not os.environ["TZ"]:
            del os.environ["TZ"]
        time.tzset()


# -- the bundled bank ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running() -> Iterator[RunningBank]:
    with RunningBank() as running:
        yield running


def bundled(running: RunningBank, scope: str = "relay") -> Bank:
    return Bank(running.url.rstrip("/"), running.keys[scope], timeout_s=10)


def of(account: Account, job_id: str, **changes: Any) -> LedgerRun:
    submitted = int(time.time()) - 7200
    return a_ledger_run(
        job_id=int(job_id), account=account.name, user_id=int(account.uid), submit_time=submitted,
        start_time=submitted + 10, end_time=submitted + 70, **changes,
    )  # fmt: skip


def test_bundled_bank_life_of_a_run(running: RunningBank) -> None:
    account = running.account("100", limit="50")
    bank = bundled(running)
    funds, mine = bank.funds(account.name, int(account.uid))
    assert (funds.remaining_csu, mine.remaining_csu) == (10_000, 5_000)
    ended = of(account, running.fresh(""))
    started = bank.start(replace(ended, end_time=None, charge_csu=None), 100)
    assert started.bank_csu == 100
    funds, mine = bank.funds(account.name, int(account.uid))
    assert (funds.remaining_csu, mine.remaining_csu) == (9_900, 4_900)
    again = bank.start(replace(ended, end_time=None, charge_csu=None), 100)
    assert (again.bank_csu, again.note) == (100, "was there already")
    known = replace(ended, bank_job_id=started.bank_job_id, bank_csu=100)
    assert bank.end(known).bank_csu == 40
    assert bank.end(known).bank_csu == 40
    funds, mine = bank.funds(account.name, int(account.uid))
    assert (funds.remaining_csu, mine.remaining_csu) == (9_960, 4_960)
    found = bank.find_run(ended)
    assert found is not None and found.is_final_for(ended) and found.held_csu == 40
    assert running.verified()


def test_bundled_bank_reused_id_and_refusals(running: RunningBank) -> None:
    account, other = running.account("100"), running.account("100")
    bank = bundled(running)
    job_id = running.fresh("")
    bank.end(of(other, job_id))
    mine = of(account, job_id)
    assert bank.end(mine).bank_job_id == f"{job_id}-{mine.submit_time}"
    stranger = replace(mine, job_id=int(running.fresh("")), user_id=4_000_000)
    with pytest.raises(BankRefused) as caught:
        bank.end(stranger)
    assert caught.value.heals
    running.shell("user", "remove", account.user, "--account", account.name)
    with pytest.raises(BankRefused) as caught:
        bank.end(of(account, running.fresh("")))
    assert caught.value.heals
    assert bank.funds(account.name, int(account.uid))[1].reason is Reason.UNKNOWN_USER
    assert bank.funds("fc_nobody", int(account.uid))[0].reason is Reason.UNKNOWN_ACCOUNT
    empty = running.account(su="")
    assert bank.funds(empty.name, int(empty.uid))[0].reason is Reason.NO_ALLOCATION
    with pytest.raises(BankUnauthorized):
        bundled(running, "read").end(of(other, running.fresh("")))


def test_bundled_bank_unlimited_account_and_renewal(running: RunningBank) -> None:
    name = running.fresh("co_")
    running.shell("account", "add", name, "--unlimited")
    member = running.member(name)
    account, user = bundled(running).funds(name, int(member.uid))
    assert account.kind is user.kind is FundsKind.UNLIMITED
    renewed = running.account("100")
    bank = bundled(running)
    run = of(renewed, running.fresh(""))
    bank.end(run)
    first, _ = bank.funds(renewed.name, int(renewed.uid))
    running.shell("allocation", "renew", renewed.name, "70", "--start", str(TODAY), "--end", str(TODAY + 9 * DAY))  # fmt: skip
    second, _ = bank.funds(renewed.name, int(renewed.uid))
    assert first.allocation != second.allocation and str(TODAY) in second.allocation
    assert running.verified()
