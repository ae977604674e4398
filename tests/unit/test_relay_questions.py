# SPDX-License-Identifier: BSD-3-Clause
"""What the relay answers to whom, over the real socket, from a real ledger, to processes of real users."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any, Dict, Iterator, Sequence

import pytest

from slurm_banking.ledger import LedgerRun
from slurm_banking.prices import PriceList, Rates
from slurm_banking.records import Run
from slurm_banking.relay import client
from tests.unit.relay_parts import (
    BIN,
    DAEMON,
    NOBODY,
    Relay,
    ask_as,
    end_run,
    open_lien,
    put_funds,
    run,
    start_run,
)

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root to be other users")

NOW = int(time.time())


@pytest.fixture
def relay() -> Iterator[Relay]:
    path = tempfile.mkdtemp(prefix="sbr-")
    os.chmod(path, 0o755)
    made = Relay(Path(path))
    with made.listening():
        yield made
    made.ledger.close()
    shutil.rmtree(path)


def ask(relay: Relay, uid: int, op: str, **arguments: Any) -> Dict[str, Any]:
    return ask_as(uid, relay.socket, {"op": op, **arguments})


def recent(job_id: int, **options: Any) -> Run:
    return run(job_id, start=NOW - 7200, **options)


# -- balance ----------------------------------------------------------------------------------------------------------


def test_a_user_sees_the_balance_of_every_account_of_theirs(relay: Relay) -> None:
    reply = ask(relay, DAEMON, "balance")
    assert [row["account"] for row in reply["accounts"]] == ["astro", "bio"]
    assert reply["user"] == "daemon"


def test_the_balance_of_an_account_of_others_does_not_exist(relay: Relay) -> None:
    of_others = ask(relay, NOBODY, "balance", account="bio")
    of_nobody = ask(relay, NOBODY, "balance", account="nosuch")
    assert of_others["error"] == of_nobody["error"] == "not_found"
    assert of_others["message"].replace("bio", "") == of_nobody["message"].replace("nosuch", "")


def test_a_balance_adds_up(relay: Relay) -> None:
    relay.bank.remaining_csu = 90_000
    open_lien(relay, 10, csu=800, tasks=2)
    start_run(relay, recent(11, state="RUNNING"))
    end_run(relay, recent(12))
    open_lien(relay, 13, csu=700, origin="grandfathered", counted=False)
    row = ask(relay, NOBODY, "balance", account="astro")["accounts"][0]
    assert row["limit_csu"] - row["used_csu"] == row["remaining_csu"] == 90_000
    assert (row["queued_csu"], row["queued_jobs"]) == (1600, 1)
    assert (row["running_csu"], row["running_jobs"]) == (800, 1)
    assert row["undelivered_csu"] == 400
    assert (row["grandfathered_csu"], row["grandfathered_jobs"]) == (700, 1)
    assert row["available_csu"] == 90_000 - 1600 - 800 - 400


def test_a_balance_asks_the_bank_when_its_word_is_old(relay: Relay) -> None:
    put_funds(relay.ledger, "astro", NOBODY, 5, read_at=NOW - 3600)
    row = ask(relay, NOBODY, "balance")["accounts"][0]
    assert row["remaining_csu"] == relay.bank.remaining_csu
    assert relay.bank.asked == [("astro", NOBODY)]
    ask(relay, NOBODY, "balance")
    assert relay.bank.asked == [("astro", NOBODY)]


def test_a_balance_is_answered_with_what_there_is_while_the_bank_hangs(relay: Relay) -> None:
    put_funds(relay.ledger, "astro", NOBODY, 77, read_at=NOW - 3600)
    relay.bank.delay_s = 20
    began = time.monotonic()
    row = ask(relay, NOBODY, "balance")["accounts"][0]
    assert time.monotonic() - began < 5
    assert row["remaining_csu"] == 77
    assert row["read_at"] == NOW - 3600


def test_only_coordinators_and_operators_see_the_balance_of_another_user(relay: Relay) -> None:
    assert ask(relay, NOBODY, "balance", account="astro", user="daemon")["error"] == "denied"
    relay.members.coordinators["nobody"] = {"astro"}
    assert ask(relay, NOBODY, "balance", account="astro", user="daemon")["user_id"] == DAEMON
    assert ask(relay, NOBODY, "balance", account="bio", user="daemon")["error"] == "not_found"
    assert ask(relay, 0, "balance", account="astro", user="nobody")["user_id"] == NOBODY


# -- statement --------------------------------------------------------------------------------------------------------


def test_a_statement_adds_up_from_opening_to_closing(relay: Relay) -> None:
    put_funds(relay.ledger, "astro", NOBODY, 90_000)
    for job_id in (20, 21, 22):
        end_run(relay, recent(job_id))
    end_run(relay, recent(22, elapsed_s=1800))  # told again, shorter
    reply = ask(relay, NOBODY, "statement", account="astro")
    assert [row["amount_csu"] for row in reply["rows"]] == [400, 400, 400, -200]
    assert [row["kind"] for row in reply["rows"]] == ["charge", "charge", "charge", "restated"]
    assert (reply["charged_csu"], reply["adjusted_csu"]) == (1200, -200)
    assert reply["closing_csu"] == 90_000 - 1000
    assert (
        reply["opening_csu"] - reply["charged_csu"] - reply["adjusted_csu"] == reply["closing_csu"]
    )
    assert reply["opening_csu"] == 90_000


def test_each_row_of_a_statement_shows_what_its_amount_came_from(relay: Relay) -> None:
    end_run(relay, recent(20))
    row = ask(relay, NOBODY, "statement", account="astro")["rows"][0]
    assert (row["cpus"], row["elapsed_s"], row["rates"]) == (4, 3600, "1.0")
    assert (row["tres"], row["qos_multiplier"], row["state_factor"]) == ("cpu=4,node=1", "1", "1")
    assert row["price_version"] == relay.config.prices.version


def test_a_member_sees_the_sums_of_the_account_and_the_rows_of_their_own(relay: Relay) -> None:
    end_run(relay, recent(20))
    end_run(relay, recent(21, user_id=DAEMON, user_name="daemon", elapsed_s=7200))
    reply = ask(relay, NOBODY, "statement", account="astro")
    assert [row["job_id"] for row in reply["rows"]] == [20]
    assert (reply["charged_csu"], reply["hidden"], reply["hidden_csu"]) == (1200, 1, 800)


def test_a_coordinator_sees_every_row_of_the_account(relay: Relay) -> None:
    relay.members.coordinators["nobody"] = {"astro"}
    end_run(relay, recent(20))
    end_run(relay, recent(21, user_id=DAEMON, user_name="daemon"))
    reply = ask(relay, NOBODY, "statement", account="astro")
    assert [row["job_id"] for row in reply["rows"]] == [20, 21]
    only = ask(relay, NOBODY, "statement", account="astro", user="daemon")
    assert [row["job_id"] for row in only["rows"]] == [21]
    assert only["charged_csu"] == 400


def test_a_statement_without_an_account_is_of_the_default_one(relay: Relay) -> None:
    assert ask(relay, DAEMON, "statement")["account"] == "astro"


def test_a_statement_of_a_past_period_does_not_guess_its_balances(relay: Relay) -> None:
    put_funds(relay.ledger, "astro", NOBODY, 90_000)
    end_run(relay, recent(20))
    reply = ask(relay, NOBODY, "statement", account="astro", until=NOW - 86400)
    assert reply["rows"] == []
    assert reply["opening_csu"] is None


def test_a_statement_reads_long_ledgers_in_pieces(relay: Relay) -> None:
    with relay.ledger.transaction() as tx:
        for _ in range(4500):
            tx.append(
                "note", account="astro", user_id=NOBODY, amount_csu=0, reason="x", actor="test"
            )
    end_run(relay, recent(20))
    reply = ask(relay, NOBODY, "statement", account="astro")
    assert [row["job_id"] for row in reply["rows"]] == [20]


# -- jobs ---------------------------------------------------------------------------------------------------------------


def test_jobs_are_ones_own(relay: Relay) -> None:
    open_lien(relay, 30)
    open_lien(relay, 31, user_id=DAEMON, user_name="daemon")
    start_run(relay, recent(32, state="RUNNING"))
    end_run(relay, recent(33))
    reply = ask(relay, NOBODY, "jobs")
    assert [lien["job_id"] for lien in reply["queued"]] == [30]
    assert [row["job"] for row in reply["running"]] == ["32"]
    assert [row["job"] for row in reply["ended"]] == ["33"]


def test_everybodys_jobs_are_for_operators_and_coordinators(relay: Relay) -> None:
    open_lien(relay, 30)
    open_lien(relay, 31, user_id=DAEMON, user_name="daemon")
    assert ask(relay, NOBODY, "jobs", all_users=True, account="astro")["error"] == "denied"
    assert ask(relay, NOBODY, "jobs", all_users=True)["error"] == "bad_request"
    assert len(ask(relay, 0, "jobs", all_users=True)["queued"]) == 2
    relay.members.coordinators["nobody"] = {"astro"}
    assert len(ask(relay, NOBODY, "jobs", all_users=True, account="astro")["queued"]) == 2


# -- why ----------------------------------------------------------------------------------------------------------------


def test_why_tells_the_story_of_a_job_from_its_entries(relay: Relay) -> None:
    open_lien(relay, 40, submit_time=NOW - 7300)
    start_run(relay, recent(40, state="RUNNING"))
    end_run(relay, recent(40))
    reply = ask(relay, NOBODY, "why", job="40")
    assert [entry["kind"] for entry in reply["entries"]] == [
        "lien",
        "lien_charged",
        "start",
        "charge",
    ]
    told = reply["runs"][0]
    assert told["charge_csu"] == 400
    assert list(told["waiting_since"]) == ["end"]
    assert told["delivery"]["last_error"] == "bank: connection refused"


def test_why_of_one_task_leaves_its_siblings_out(relay: Relay) -> None:
    open_lien(relay, 50, tasks=3, submit_time=NOW - 7300)
    for task, job_id in enumerate((51, 52)):
        end_run(relay, recent(job_id, array_job_id=50, array_task_id=task))
    reply = ask(relay, NOBODY, "why", job="50_1")
    assert [told["job"] for told in reply["runs"]] == ["50_1"]
    assert {entry["job_id"] for entry in reply["entries"] if entry["kind"] == "charge"} == {52}
    assert [lien["tasks_left"] for lien in reply["liens"]] == [1]
    whole = ask(relay, NOBODY, "why", job="50")
    assert [told["job"] for told in whole["runs"]] == ["50_0", "50_1"]


def test_why_of_another_users_job_is_as_if_it_were_none(relay: Relay) -> None:
    open_lien(relay, 40)
    of_others = ask(relay, DAEMON, "why", job="40")
    of_none = ask(relay, DAEMON, "why", job="41")
    assert of_others["error"] == of_none["error"] == "not_found"
    assert of_others["message"].replace("40", "") == of_none["message"].replace("41", "")
    assert ask(relay, 0, "why", job="40")["ok"]
    relay.members.coordinators["daemon"] = {"astro"}
    assert ask(relay, DAEMON, "why", job="40")["ok"]


def test_an_update_that_was_refused_is_told_to_the_jobs_user_alone(relay: Relay) -> None:
    with relay.ledger.transaction() as tx:
        tx.append(
            "note",
            job_id=42,
            account="astro",
            user_id=NOBODY,
            amount_csu=0,
            reason="update refused: astro has 1.00 SU available",
            actor="slurmctld",
        )
    (entry,) = ask(relay, NOBODY, "why", job="42")["entries"]
    assert entry["reason"].startswith("update refused: ")
    assert ask(relay, DAEMON, "why", job="42")["error"] == "not_found"


@pytest.mark.parametrize("job", ["", "0", "x", "1_", "1.batch", "1;2", "9" * 30])
def test_why_of_no_job_id_says_what_was_expected(relay: Relay, job: str) -> None:
    assert ask(relay, NOBODY, "why", job=job)["error"] == "bad_request"


# -- retry --------------------------------------------------------------------------------------------------------------


def parked(relay: Relay, job_id: int, **options: Any) -> LedgerRun:
    end_run(relay, recent(job_id, **options))
    with relay.ledger.transaction() as tx:
        made = tx.runs_by_job(job_id)[-1]
        tx.park(made.run_id, "not a member")
    return made


def acknowledge(relay: Relay, runs: Sequence[LedgerRun]) -> None:
    """What the delivery does when the bank takes it."""
    with relay.ledger.transaction() as tx:
        for tried in runs:
            delivery = tx.delivery_of(tried.run_id)
            assert delivery is not None
            tx.acknowledge(delivery, bank_csu=400, bank_job_id=str(tried.job_id))


@pytest.mark.parametrize("uid", [NOBODY, DAEMON])
def test_only_operators_have_a_delivery_tried_again(relay: Relay, uid: int) -> None:
    parked(relay, 60)
    assert ask(relay, uid, "retry", job="60")["error"] == "denied"
    assert ask(relay, uid, "retry", all=True)["error"] == "denied"
    with relay.ledger.transaction(write=False) as tx:
        assert len(tx.parked_runs()) == 1
    assert ask(relay, BIN, "retry", job="60")["ok"]  # one of admin_users


def test_a_retry_says_what_came_of_it_and_who_wanted_it_is_kept(relay: Relay) -> None:
    parked(relay, 60)
    parked(relay, 61)
    relay.on_retry = lambda runs: acknowledge(relay, runs)
    (told,) = ask(relay, BIN, "retry", job="60")["runs"]
    assert (told["job"], told["account"], told["result"]) == ("60", "astro", "delivered")
    with relay.ledger.transaction(write=False) as tx:
        assert [run.job_id for run in tx.parked_runs()] == [61]
        (note,) = [entry for entry in tx.entries_by_job(60) if entry.kind == "note"]
    assert note.actor == "bin" and "not a member" in note.reason
    assert "note" in [entry["kind"] for entry in ask(relay, NOBODY, "why", job="60")["entries"]]


def test_a_retry_that_the_bank_refuses_again_says_so(relay: Relay) -> None:
    parked(relay, 60)

    def refuse(runs: Sequence[LedgerRun]) -> None:
        with relay.ledger.transaction() as tx:
            tx.park(runs[0].run_id, "still not a member")

    relay.on_retry = refuse
    (told,) = ask(relay, 0, "retry", job="60")["runs"]
    assert (told["result"], told["reason"]) == ("refused", "still not a member")


def test_a_retry_of_all_takes_what_is_parked_and_what_heals(relay: Relay) -> None:
    first, second = parked(relay, 60), parked(relay, 61)
    end_run(relay, recent(62))
    end_run(relay, recent(63))
    with relay.ledger.transaction(write=False) as tx:
        healing = tx.runs_by_job(62)[0].run_id
    relay.refused_runs = (first.run_id, second.run_id, healing)
    relay.on_retry = lambda runs: acknowledge(relay, runs)
    reply = ask(relay, 0, "retry", all=True)
    assert [told["job"] for told in reply["runs"]] == ["60", "61", "62"]
    assert {told["result"] for told in reply["runs"]} == {"delivered"}
    relay.refused_runs = ()
    assert ask(relay, 0, "retry", all=True)["runs"] == []


def test_a_retry_of_one_task_leaves_its_siblings(relay: Relay) -> None:
    for task, job_id in enumerate((71, 72)):
        parked(relay, job_id, array_job_id=70, array_task_id=task)
    relay.on_retry = lambda runs: acknowledge(relay, runs)
    assert [told["job"] for told in ask(relay, 0, "retry", job="70_1")["runs"]] == ["70_1"]
    assert [told["job"] for told in ask(relay, 0, "retry", job="70")["runs"]] == ["70_0"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, "bad_request"),
        ({"job": "60", "all": True}, "bad_request"),
        ({"job": "x"}, "bad_request"),
        ({"all": "yes"}, "bad_request"),
        ({"job": "60"}, "not_found"),
    ],
)
def test_a_retry_of_nothing_says_what_was_expected(
    relay: Relay, arguments: Dict[str, Any], error: str
) -> None:
    assert ask(relay, 0, "retry", **arguments)["error"] == error


# -- quote ----------------------------------------------------------------------------------------------------------------


def test_a_quote_is_what_a_submission_would_get(relay: Relay) -> None:
    reply = ask(relay, NOBODY, "quote", options={"num_tasks": 4, "time_limit_min": 90})
    assert reply["account"] == "astro"
    assert reply["estimate"]["cost_csu"] == 600
    assert (reply["estimate"]["partition"], reply["estimate"]["cpus"]) == ("main", 4)
    assert reply["verdict"] == "accepted"
    assert reply["available_csu"] == relay.bank.remaining_csu


def test_a_quote_of_too_much_says_what_would_fit(relay: Relay) -> None:
    relay.bank.remaining_csu = 300
    reply = ask(relay, NOBODY, "quote", options={"num_tasks": 4, "time_limit_min": 90})
    assert (reply["verdict"], reply["reason"]) == ("refused", "insufficient_funds")
    assert reply["hints"]["time_limit_min"] == 45
    assert "3.00 SU available" in reply["message"]


def test_a_quote_shows_what_an_hour_costs_and_what_is_set_aside(relay: Relay) -> None:
    relay.config = dataclasses.replace(
        relay.config,
        prices=PriceList(
            partitions={"main": Rates(cpu=Decimal(1), mem_gb=Decimal("0.5"))},
            qos_multiplier={"high": Decimal(2)},
        ),
        policy=dataclasses.replace(relay.config.policy, lien_share=Decimal("0.5")),
    )
    asked = {"num_tasks": 4, "time_limit_min": 90, "memory_mb": 4096, "qos": "high"}
    asked.update(min_nodes=1, max_nodes=1)
    cost = ask(relay, NOBODY, "quote", options=asked)["estimate"]
    assert (cost["tres"].split(",")[:2], cost["cost_csu"]) == (["cpu=4", "mem=4096M"], 1800)
    assert (cost["lien_csu"], cost["lien_share"]) == (900, "0.5")
    assert cost["hour"] == {
        "combine": "sum",
        "parts": [
            {"resource": "cpu", "units": "4", "su": "1", "su_per_hour": "4"},
            {"resource": "mem_gb", "units": "4", "su": "0.5", "su_per_hour": "2"},
        ],
        "qos_multiplier": "2",
        "su_per_hour": "12",
    }


def test_a_quote_is_at_the_prices_of_now(relay: Relay) -> None:
    dearer = PriceList.of_cpus({"main": Decimal(3)})
    relay.config = dataclasses.replace(
        relay.config, dated_prices=((NOW - 60, dearer), (NOW + 3600, relay.config.prices))
    )
    asked = {"num_tasks": 1, "time_limit_min": 60}
    assert ask(relay, NOBODY, "quote", options=asked)["estimate"]["cost_csu"] == 300


def test_a_quote_within_the_overdraft_is_accepted(relay: Relay) -> None:
    relay.bank.remaining_csu = 300
    policy = dataclasses.replace(relay.config.policy, overdraft_su=Decimal(3))
    relay.config = dataclasses.replace(relay.config, policy=policy)
    asked = {"num_tasks": 4, "time_limit_min": 90}
    assert ask(relay, NOBODY, "quote", options=asked)["verdict"] == "accepted"


def test_a_quote_sets_nothing_aside(relay: Relay) -> None:
    ask(relay, NOBODY, "quote", options={"num_tasks": 4})
    with relay.ledger.transaction(write=False) as tx:
        assert tx.open_liens() == []


def test_a_quote_in_an_account_of_others_is_refused_without_its_numbers(relay: Relay) -> None:
    put_funds(relay.ledger, "bio", NOBODY, 123_456)
    reply = ask(relay, NOBODY, "quote", options={"account": "bio"})
    assert (reply["verdict"], reply["reason"]) == ("refused", "not_associated")
    assert reply["available_csu"] is None
    assert "1234" not in str(reply)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"partition": "nosuch"}, "Slurm has none called nosuch"),
        ({"num_tasks": 0}, "num_tasks: expected a whole number"),
        ({"num_tasks": True}, "num_tasks: expected a whole number"),
        ({"num_tasks": "4"}, "num_tasks: expected a whole number"),
        ({"exclusive": 1}, "exclusive: expected true or false"),
        ({"price": 0}, "'price': no such option"),
        ({"partition": ["main"]}, "partition: expected printable text"),
    ],
)
def test_a_quote_of_nonsense_is_a_bad_request(
    relay: Relay, options: Dict[str, Any], complaint: str
) -> None:
    reply = ask(relay, NOBODY, "quote", options=options)
    assert reply["error"] == "bad_request"
    assert complaint in reply["message"]


def test_a_quote_for_an_unpriced_partition_is_refused(relay: Relay) -> None:
    reply = ask(relay, NOBODY, "quote", options={"partition": "unpriced", "time_limit_min": 10})
    assert (reply["verdict"], reply["reason"]) == ("refused", "unpriced_partition")


# -- slurmctld's own --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", [NOBODY, BIN])
def test_funds_and_nudges_are_for_slurmctld_alone(relay: Relay, uid: int) -> None:
    assert ask(relay, uid, "funds", account="astro", user_id=NOBODY)["error"] == "denied"
    assert ask(relay, uid, "nudge")["error"] == "denied"
    assert relay.bank.asked == [] and relay.nudges == []


def test_funds_are_refreshed_for_slurmctld(relay: Relay) -> None:
    reply = ask(relay, 0, "funds", account="astro", user_id=NOBODY, max_age_s=3, budget_ms=2000)
    assert (reply["ok"], reply["away"], reply["fresh"]) == (True, False, True)
    assert relay.bank.read_at("astro", NOBODY) == reply["read_at"]


def test_a_nudge_reaches_the_sweep(relay: Relay) -> None:
    assert ask(relay, 0, "nudge")["ok"]
    assert len(relay.nudges) == 1


def test_a_hung_bank_costs_slurmctld_no_more_than_its_budget(relay: Relay) -> None:
    relay.bank.delay_s = 20
    for account in ("a", "b", "c"):
        began = time.monotonic()
        reply = client.ask(
            relay.socket,
            {"op": "funds", "account": account, "user_id": 1, "max_age_s": 3, "budget_ms": 200},
            2.0,
            allowed_owner_uids={0},
        )
        assert time.monotonic() - began < 0.5
        assert reply["ok"] and not reply["fresh"]


# -- operators ---------------------------------------------------------------------------------------------------------------


def test_exceptions_are_made_by_operators_alone(relay: Relay) -> None:
    until = NOW + 3600
    arguments: Dict[str, Any] = {"user": "nobody", "until": until, "reason": "deadline"}
    assert ask(relay, NOBODY, "allow", **arguments)["error"] == "denied"
    reply = ask(relay, BIN, "allow", **arguments)  # one of admin_users
    assert (reply["user_id"], reply["until"]) == (NOBODY, until)
    with relay.ledger.transaction(write=False) as tx:
        assert tx.exception_for(NOBODY, None, NOW) == "deadline"
        assert tx.exception_for(DAEMON, None, NOW) is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"user": "nobody", "reason": "x"},
        {"user": "nobody", "until": NOW + 3600},
        {"user": "nobody", "until": NOW + 3600, "reason": "  "},
        {"user": "nobody", "until": NOW - 10, "reason": "x"},
        {"until": NOW + 3600, "reason": "x"},
        {"job_id": 0, "until": NOW + 3600, "reason": "x"},
    ],
)
def test_an_exception_needs_somebody_a_time_and_a_reason(
    relay: Relay, arguments: Dict[str, Any]
) -> None:
    assert ask(relay, 0, "allow", **arguments)["error"] == "bad_request"
    assert ask(relay, 0, "exceptions")["exceptions"] == []


def test_users_see_the_exceptions_for_them(relay: Relay) -> None:
    ask(relay, 0, "allow", user="nobody", until=NOW + 3600, reason="deadline")
    ask(relay, 0, "allow", job_id=7, until=NOW + 3600, reason="restart")
    own = ask(relay, NOBODY, "exceptions")["exceptions"]
    assert [(row["user"], row["reason"], row["actor"]) for row in own] == [
        ("nobody", "deadline", "root")
    ]
    assert ask(relay, DAEMON, "exceptions")["exceptions"] == []
    assert len(ask(relay, BIN, "exceptions")["exceptions"]) == 2


def test_a_sweep_is_forced_by_operators_alone(relay: Relay) -> None:
    assert ask(relay, NOBODY, "sweep", force=True)["error"] == "denied"
    assert relay.sweeps == []
    assert ask(relay, BIN, "sweep", force=True)["report"] == {"ended": 0}
    assert relay.sweeps == [True]


def test_alarms_and_refused_deliveries_are_told_to_operators(relay: Relay) -> None:
    relay.health["alarms"] = ["too many liens"]
    end_run(relay, recent(60))
    with relay.ledger.transaction() as tx:
        tx.park(tx.runs_by_job(60)[0].run_id, "not a member")
    of_operator = ask(relay, BIN, "status")
    assert of_operator["alarms"] == ["too many liens"]
    assert of_operator["parked_runs"][0]["reason"] == "not a member"
    of_user = ask(relay, NOBODY, "status")
    assert "alarms" not in of_user and "parked_runs" not in of_user
    assert (of_user["outbox"], of_user["parked"]) == (1, 1)


# -- whole accounts ---------------------------------------------------------------------------------------------------


def test_the_funds_of_whole_accounts_are_told_to_operators_alone(relay: Relay) -> None:
    put_funds(relay.ledger, "astro", NOBODY, 90_000)
    open_lien(relay, 10, csu=800, tasks=2)
    reply = ask(relay, 0, "account_funds", accounts=[["astro", NOBODY], ["nosuch", -1]])
    astro, nosuch = reply["accounts"]
    assert (astro["kind"], astro["available_csu"], astro["queued_csu"]) == ("limited", 88_400, 1600)
    assert (nosuch["kind"], nosuch["available_csu"], nosuch["read_at"]) == (None, None, 0)
    assert ask(relay, BIN, "account_funds", accounts=[["astro", -1]])["ok"]
    assert ask(relay, NOBODY, "account_funds", accounts=[["astro", -1]])["error"] == "denied"
    for wrong in (None, [], ["astro"], [["astro"]], [["astro", "1"]], [["", 1]], [["a", -2]]):
        assert ask(relay, 0, "account_funds", accounts=wrong)["error"] == "bad_request"


def test_a_bank_that_is_away_is_asked_once_for_all_accounts(relay: Relay) -> None:
    put_funds(relay.ledger, "astro", NOBODY, 77, read_at=NOW - 3600)
    put_funds(relay.ledger, "bio", DAEMON, 78, read_at=NOW - 3600)
    relay.bank.away = True
    asked = [["astro", NOBODY], ["bio", DAEMON]]
    reply = ask(relay, 0, "account_funds", accounts=asked)
    assert [row["available_csu"] for row in reply["accounts"]] == [77, 78]
    assert relay.bank.asked == [("astro", NOBODY)]


def test_an_operator_asks_what_a_job_of_a_user_would_cost_them(relay: Relay) -> None:
    put_funds(relay.ledger, "astro", NOBODY, 400)
    asked = {"partition": "main", "num_tasks": 8, "time_limit_min": 60}
    own = ask(relay, NOBODY, "quote", options=asked)
    of_user = ask(relay, 0, "quote", options=asked, user="nobody")
    assert of_user["account"] == "astro"
    assert (of_user["verdict"], of_user["message"]) == (own["verdict"], own["message"])
    assert of_user["verdict"] == "refused"
    assert ask(relay, DAEMON, "quote", options=asked, user="nobody")["error"] == "denied"
    assert ask(relay, DAEMON, "quote", options=asked, user="daemon")["ok"]
    assert ask(relay, 0, "quote", options=asked, user="no-such-user")["error"] == "not_found"
