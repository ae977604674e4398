# SPDX-License-Identifier: BSD-3-Clause
"""Repairs: what was found is put right by entries, once, and what is available never is more than the truth."""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slurm_banking import settle
from slurm_banking.cli import reconcile_fix
from slurm_banking.errors import RelayUnavailable
from slurm_banking.reconcile import fix
from slurm_banking.relay import explain, mend, sums
from slurm_banking.relay.answer import Peer
from slurm_banking.relay.questions import Questions
from tests.unit.portal_model import su
from tests.unit.reconcile_world import (
    ACCOUNTS,
    INJURIES,
    LIMIT_CSU,
    Injury,
    World,
    bank_altered,
    bank_deleted,
    bank_made_up,
    ledger_altered,
    ledger_made_up,
    ledger_moved,
    ledger_never_had_it,
    slurmdbd_changed,
)
from tests.unit.relay_parts import BIN, NOBODY, Relay


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    for number in range(1, 6):
        made.job(number)
    yield made
    made.close()


def settled(world: World) -> None:
    """What the relay does by itself."""
    world.deliver()
    world.refresh()


@pytest.mark.parametrize("injury", INJURIES, ids=lambda injury: injury.__name__)
def test_each_injury_is_found_repaired_and_then_not_found_again(
    world: World, injury: Injury
) -> None:
    assert world.compare().findings == []
    expected = injury(world, 3)
    found = world.compare()
    assert expected in [(one.kind, one.where) for one in found.findings], found.findings
    done = world.fix(found.findings)
    assert "failed" not in [one.result for one in done], done
    assert "done" in [one.result for one in done], done
    settled(world)
    assert world.compare().findings == []
    assert world.sums() == ()
    for account in ACCOUNTS:
        assert world.portal.projects[account].used_csu == world.right_csu(account)
        assert world.available_csu(account) == LIMIT_CSU - world.right_csu(account)
    entries = world.entries()
    again = world.fix(found.findings)
    assert "done" not in [one.result for one in again], again
    assert world.entries() == entries


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    hurt=st.dictionaries(st.integers(1, 8), st.sampled_from(INJURIES), min_size=1, max_size=6),
    refreshed=st.booleans(),
    requeued=st.booleans(),
)
def test_any_injuries_together_are_repaired_once_and_never_make_more_available_than_there_is(
    hurt: dict[int, Injury], refreshed: bool, requeued: bool
) -> None:
    directory = Path(tempfile.mkdtemp(prefix="reconcile-", dir="/tmp"))
    world = World(directory)
    try:
        for number in range(1, 9):
            world.job(number)
        if requeued:
            world.job(20, state="REQUEUED")
            world.job(20, restart=1)
        world.refresh()
        for number, injury in hurt.items():
            injury(world, number)
        if refreshed:
            world.refresh()
        found = world.compare()
        done = world.fix(found.findings)
        assert "failed" not in [one.result for one in done], done
        right = {account: LIMIT_CSU - world.right_csu(account) for account in ACCOUNTS}
        for account in ACCOUNTS:
            assert world.available_csu(account) <= right[account]
        world.deliver()
        for account in ACCOUNTS:
            assert world.available_csu(account) <= right[account]
        world.refresh()
        assert world.compare().findings == []
        assert world.sums() == ()
        assert {account: world.available_csu(account) for account in ACCOUNTS} == right
        entries = world.entries()
        assert "done" not in [one.result for one in world.fix(found.findings)]
        assert world.entries() == entries
    finally:
        world.close()
        shutil.rmtree(directory)


# -- what is not repaired -------------------------------------------------------------------------------------------------


def kinds_of(world: World) -> list[tuple[str, str]]:
    return sorted((one.kind, one.where) for one in world.compare().findings)


@pytest.mark.parametrize("injury", [ledger_made_up, bank_made_up], ids=lambda one: one.__name__)
def test_what_slurmdbd_does_not_know_is_left_alone_unless_that_is_asked_for(
    world: World, injury: Injury
) -> None:
    injury(world, 3)
    found = world.compare().findings
    before, entries = dict(world.portal.jobs), world.entries()
    (done,) = world.fix(found, unknown=False)
    assert done.result == "skipped" and "--fix-unknown" in done.text
    assert world.portal.jobs == before and world.entries() == entries
    assert world.fix(found, unknown=True)[0].result == "done"


def test_when_very_many_are_unknown_slurmdbd_has_purged_them_and_none_is_struck(
    world: World,
) -> None:
    ledger_made_up(world, 3)
    (one,) = world.compare().findings
    few, many = [one] * fix.MANY_UNKNOWN, [one] * (fix.MANY_UNKNOWN + 1)
    assert {repair.what for repair in fix.plan(few, fix_unknown=True)} == {"strike"}
    repairs = fix.plan(many, fix_unknown=True)
    assert not any(repair.does_something for repair in repairs)
    assert "PurgeJobAfter" in repairs[0].text


def test_a_row_of_a_job_that_slurmdbd_has_as_the_same_users_is_left_to_the_banks_office(
    world: World,
) -> None:
    row = world.row(3)
    earlier = row["submitdate"].replace("2026", "2025")
    copy = {**row, "jobslurmid": "3-r1", "submitdate": earlier, "amount": "12.34"}
    world.portal.jobs["3-r1"] = copy
    world.use(copy, 1234)
    (finding,) = world.compare().findings
    assert (finding.kind, finding.where) == ("unknown", "bank")
    (done,) = world.fix([finding])
    assert done.result == "skipped" and "same user and account" in done.text
    assert world.portal.jobs["3-r1"]["amount"] == "12.34"


def test_a_run_that_slurmdbd_says_never_started_is_for_people(world: World) -> None:
    run = world.slurmdbd.runs[2]
    world.slurmdbd.runs[2] = replace(run, started=False, start_time=None, elapsed_s=0, state="CANCELLED")  # fmt: skip
    found = world.compare().findings
    assert [(one.kind, one.expected_csu) for one in found] == [("restated", None)]
    assert [(one.result, one.repair.what) for one in world.fix(found)] == [("skipped", "nothing")]


def test_counters_of_the_bank_are_the_banks_to_mend_and_the_text_says_how(world: World) -> None:
    world.portal.projects["fc_beta"].used_csu += 100
    found = world.compare().findings
    assert [(one.kind, one.where) for one in found] == [("drift", "bank")]
    (repair,) = fix.plan(found)
    assert not repair.does_something
    assert "slurm-banking bank verify" in repair.text and "fc_beta" in repair.text


def test_a_finding_that_is_no_longer_so_is_skipped(world: World) -> None:
    ledger_never_had_it(world, 3)
    bank_altered(world, 4)
    found = world.compare().findings
    run = next(run for run in world.slurmdbd.runs if run.job_id == 3)
    with world.ledger.transaction() as tx:
        settle.end_run(tx, run, world.config, actor="slurmctld")
    world.row(4)["amount"] = su(world.run(4).charge_csu or 0)
    done = world.fix(found)
    assert [(one.result, one.text) for one in done] == [
        ("skipped", "the ledger has it by now"),
        ("skipped", "the bank has it right by now"),
    ]


def test_a_run_that_was_charged_otherwise_meanwhile_is_not_restated_by_an_older_finding(
    world: World,
) -> None:
    slurmdbd_changed(world, 3)
    found = world.compare().findings
    run = next(run for run in world.slurmdbd.runs if run.job_id == 3)
    with world.ledger.transaction() as tx:
        settle.end_run(tx, replace(run, elapsed_s=1), world.config, actor="slurmctld")
    (done,) = world.fix(found)
    assert done.result == "skipped" and "by now" in done.text


def test_prices_that_changed_since_the_look_stop_a_repair(world: World) -> None:
    ledger_never_had_it(world, 3)
    (finding,) = [one for one in world.compare().findings if one.where == "ledger"]
    (done,) = world.fix([replace(finding, expected_csu=(finding.expected_csu or 0) + 1)])
    assert done.result == "skipped" and "look again" in done.text


def test_a_missing_run_of_a_requeued_job_takes_over_the_row_that_the_bank_has_of_it(
    world: World,
) -> None:
    world.job(20, state="REQUEUED")
    world.job(20, restart=1)
    rows = set(world.portal.jobs)
    assert {"20", "20-r1"} <= rows
    with world.ledger.transaction(write=False) as tx:
        (second,) = [run for run in tx.runs_by_job(20) if run.restart_count == 1]
    world.sql(
        ("DELETE FROM runs WHERE run_id = ?", (second.run_id,)),
        ("DELETE FROM liens WHERE lien_id = ?", (second.lien_id,)),
        ("DELETE FROM entries WHERE lien_id = ?", (second.lien_id,)),
    )
    (done,) = world.fix(world.compare().findings)
    assert done.result == "done"
    settled(world)
    assert set(world.portal.jobs) == rows
    assert world.compare().findings == [] and world.sums() == ()


# -- the ledger -----------------------------------------------------------------------------------------------------------


def test_a_struck_run_is_shown_and_never_found_again_and_the_right_one_has_its_key(
    world: World,
) -> None:
    ledger_moved(world, 3)
    wrong, right = world.run(3).account, world.slurmdbd.runs[2].account
    world.fix(world.compare().findings)
    struck, run = world.struck(3), world.run(3)
    assert (struck.account, struck.charge_csu, struck.slurm_state) == (wrong, 0, "STRUCK")
    assert (run.account, run.charge_csu) == (right, world.cost_csu(world.slurmdbd.runs[2]))
    assert struck.told_restart_count == run.restart_count == 0 > struck.restart_count
    with world.ledger.transaction(write=False) as tx:
        assert tx.find_run(3, run.submit_time) == run
        assert tx.find_run(3, run.submit_time, 0) == run
        entries = tx.entries_by_job(3)
        explained = explain.run_sums(tx, struck, entries)
        assert explained["charge"]["agrees"] and "a test" in explained["charged_because"]
    assert sums.of_charge(run.inputs) is not None


def test_a_second_telling_of_a_struck_run_is_charged_as_a_run_of_its_own(world: World) -> None:
    ledger_made_up(world, 3)
    world.fix(world.compare().findings)
    struck = world.struck(900_003)
    told = replace(world.slurmdbd.runs[2], job_id=900_003)
    with world.ledger.transaction() as tx:
        result = settle.end_run(tx, told, world.config, actor="slurmctld")
    assert result.kind == "charged" and result.run is not None
    assert result.run.run_id != struck.run_id and world.struck(900_003) == struck


def test_a_run_can_be_struck_twice_under_one_key(world: World) -> None:
    for _ in range(2):
        standing = world.run(3)
        with world.ledger.transaction() as tx:
            tx.strike_run(standing, entered_csu=0, actor="test", reason="not so")
        with world.ledger.transaction() as tx:
            settle.end_run(tx, world.slurmdbd.runs[2], world.config, actor="slurmctld")
    with world.ledger.transaction(write=False) as tx:
        runs = tx.runs_by_job(3)
    assert [run.struck for run in runs] == [True, True, False]


def test_a_statement_says_what_was_charged_and_what_was_struck(world: World) -> None:
    cost = world.cost_csu(world.slurmdbd.runs[2])
    standing = world.run(3)
    with world.ledger.transaction() as tx:
        tx.strike_run(standing, entered_csu=cost, actor="test", reason="not so")
        postings, _ = tx.postings(standing.account, since_us=0, until_us=2**62)
    assert [one.amount_csu for one in postings if one.run.job_id == 3] == [cost, -cost]


def test_repairs_do_not_need_the_bank_or_the_relay_unless_they_concern_it(world: World) -> None:
    ledger_altered(world, 3)
    bank_deleted(world, 4)
    bank_deleted(world, 5)
    found = world.compare().findings
    asked = []

    def away(request: Mapping[str, Any]) -> Mapping[str, Any]:
        asked.append(request)
        raise RelayUnavailable("relay /run/x: nobody listens")

    done = fix.apply(
        fix.plan(found), world.ledger, world.config, away, reason="a test", sleep=lambda seconds: None
    )  # fmt: skip
    assert [one.result for one in done] == ["done", "failed", "failed"]
    assert len(asked) == 1  # and not for each
    assert fix.counts(done) == {"done": 1, "skipped": 0, "failed": 2}
    settled(world)
    assert kinds_of(world) == [("missing", "bank"), ("missing", "bank")]


def test_every_entry_of_a_repair_says_who_and_why(world: World) -> None:
    for number, injury in enumerate((ledger_altered, ledger_never_had_it, bank_deleted, bank_made_up), 1):  # fmt: skip
        injury(world, number)
    found = world.compare().findings
    done = fix.apply(
        fix.plan(found, fix_unknown=True), world.ledger, world.config, world.ask_relay,
        reason="ticket 4711", actor="reconcile (alice)", sleep=lambda seconds: None,
    )  # fmt: skip
    with world.ledger.transaction(write=False) as tx:
        made = [
            entry
            for account in ACCOUNTS
            for entry in tx.entries_by_account(account)
            if entry.actor == "reconcile (alice)"
        ]
    assert [one.result for one in done] == ["done"] * 4
    reasons = [entry for entry in made if "ticket 4711" in entry.reason]
    assert {entry.job_id for entry in made} == {entry.job_id for entry in reasons}


# -- the bank -------------------------------------------------------------------------------------------------------------


def strike(world: World, bank_job_id: str, job_id: int, **changes: Any) -> Mapping[str, Any]:
    row = world.bank.row(bank_job_id)
    assert row is not None
    request = dict(
        op="reconcile_bank", do="strike_row", reason="a test", actor="test", job_id=job_id, bank_job_id=bank_job_id,
        user_id=row.user_id, account=row.account, submit_time=row.submit_time, amount_csu=row.amount_csu,
    )  # fmt: skip
    return world.ask_relay({**request, **changes})


def test_the_row_of_a_run_is_never_set_to_nothing(world: World) -> None:
    amount = world.row(3)["amount"]
    answer = strike(world, world.row(3)["jobslurmid"], 3)
    assert not answer["ok"] and "which the ledger has" in answer["message"]
    assert world.row(3)["amount"] == amount


def test_a_row_that_changed_since_it_was_looked_at_is_left_alone(world: World) -> None:
    bank_made_up(world, 3)
    for changes in (dict(amount_csu=1), dict(account="other"), dict(user_id="9"), dict(submit_time=None)):  # fmt: skip
        answer = strike(world, "800003", 800_003, **changes)
        assert not answer["ok"] and "changed since it was looked at" in answer["message"]
    assert world.portal.jobs["800003"]["amount"] == "12.34"
    used = world.portal.projects[world.portal.jobs["800003"]["accountid"]].used_csu
    assert strike(world, "800003", 800_003)["result"] == "done"
    row = world.portal.jobs["800003"]
    assert (row["amount"], row["jobstatus"]) == ("0.00", "STRUCK")
    assert world.portal.projects[row["accountid"]].used_csu == used - 1234
    assert strike(world, "800003", 800_003)["result"] == "nothing"


def test_what_a_row_was_is_on_disk_before_it_is_changed(world: World) -> None:
    bank_made_up(world, 3)
    world.portal.faults = ["", "lose_request"]
    answer = strike_with_faults(world)
    assert not answer["ok"] and world.portal.jobs["800003"]["amount"] == "12.34"
    with world.ledger.transaction(write=False) as tx:
        (entry,) = tx.entries_by_job(800_003)
    assert entry.kind == "note" and entry.inputs is not None
    assert (entry.inputs["amount_csu"], entry.inputs["bank_job_id"]) == (1234, "800003")


def strike_with_faults(world: World) -> Mapping[str, Any]:
    row = world.portal.jobs["800003"]
    faults, world.portal.faults = world.portal.faults, []
    seen = world.bank.row("800003")
    assert seen is not None
    world.portal.faults = faults
    return world.ask_relay(
        dict(
            op="reconcile_bank", do="strike_row", reason="a test", actor="test", job_id=800_003, bank_job_id="800003",
            user_id=row["userid"], account=row["accountid"], submit_time=seen.submit_time, amount_csu=1234,
        )
    )  # fmt: skip


def test_what_the_bank_refuses_for_good_is_not_sent_again_and_the_outbox_is_named(
    world: World,
) -> None:
    bank_deleted(world, 3)
    found = world.compare().findings
    run = world.run(3)
    with world.ledger.transaction() as tx:
        tx.reopen_end(run, bank_csu=0, bank_job_id=None, actor="test", reason="x", inputs={})
        tx.park(run.run_id, "no such partition")
    (done,) = world.fix(found)
    assert done.result == "failed" and "slurm-banking outbox 3" in done.text


def test_a_run_that_goes_on_is_not_sent_again(world: World) -> None:
    going = replace(world.slurmdbd.runs[2], job_id=50, end_time=None, state="RUNNING", elapsed_s=0)
    with world.ledger.transaction() as tx:
        run, _ = settle.start_run(tx, going, world.config, actor="slurmctld")
    answer = world.ask_relay(
        {"op": "reconcile_bank", "do": "send_again", "run_id": run.run_id, "reason": "x", "actor": "t"}
    )  # fmt: skip
    assert answer["result"] == "nothing" and "it runs" in answer["text"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"do": "send_again", "run_id": 1}, "reason"),
        ({"do": "send_again", "reason": "x"}, "run_id"),
        ({"do": "send_again", "reason": "x", "run_id": True}, "run_id"),
        ({"do": "erase", "reason": "x"}, "do: expected send_again or strike_row"),
        ({"do": "strike_row", "reason": "x"}, "bank_job_id"),
        ({"do": "strike_row", "reason": "a\nb"}, "reason"),
    ],
)
def test_a_request_that_is_not_understood_is_one_clear_line(
    request_: dict[str, Any], said: str
) -> None:
    wrong = mend.wanted(request_)
    assert isinstance(wrong, str) and said in wrong and "\n" not in wrong


def test_only_slurmuser_and_root_may_name_another_actor() -> None:
    assert mend.actor({"actor": "reconcile (alice)"}, "bin", False) == "bin"
    assert mend.actor({"actor": "reconcile (alice)"}, "root", True) == "reconcile (alice)"
    assert mend.actor({"actor": "a\nb"}, "root", True) == "root"


# -- the command's half ---------------------------------------------------------------------------------------------------


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    reconcile_fix.add_options(parser)
    args = parser.parse_args(words)
    reconcile_fix.check(args)
    return args


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fix"], "--reason"),
        (["--fix", "--reason", " "], "--reason"),
        (["--dry-run"], "--dry-run goes with --fix"),
        (["--fix", "--reason", "x" * 201], "at most 200"),
    ],
)
def test_options_that_do_not_go_together_are_one_clear_line(words: list[str], said: str) -> None:
    with pytest.raises(ValueError) as error:
        options(*words)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("words", [[], ["--fix", "--dry-run"]])
def test_without_fix_and_with_dry_run_it_only_proposes(world: World, words: list[str]) -> None:
    ledger_altered(world, 3)
    found, entries = world.compare().findings, world.entries()
    handled = reconcile_fix.handle(options(*words), found, world.ledger, world.config, "/nowhere")
    assert world.entries() == entries and handled.left == len(found)
    assert any("restate job 3 from" in line for line in handled.lines)
    assert handled.answer["repairs"][0]["repair"] == "restate"


def test_with_fix_it_does_and_says_what_is_left(world: World) -> None:
    ledger_altered(world, 3)
    bank_deleted(world, 4)
    found = world.compare().findings
    args = options("--fix", "--reason", "nightly")
    handled = reconcile_fix.handle(args, found, world.ledger, world.config, "/nowhere.sock")
    assert handled.left == 1  # there is no relay to ask
    assert (handled.answer["done"], handled.answer["failed"]) == (1, 1)
    assert any("1 repaired (restate 1)" in line for line in handled.lines)
    assert world.run(3).charge_csu == world.cost_csu(world.slurmdbd.runs[2])


def test_agreeing_books_need_no_words(world: World) -> None:
    handled = reconcile_fix.handle(options(), [], world.ledger, world.config, "/nowhere")
    assert (handled.lines, handled.left) == ((), 0)


def test_the_relays_log_has_a_line_for_what_it_mends_at_the_bank(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="slurm_banking.relay")
    bank_deleted(world, 3)
    bank_made_up(world, 4)
    world.fix(world.compare().findings)
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("end_sent_again job=3 account=fc_beta") for line in lines)
    assert any(line.startswith("bank_row_struck bank_job=800004 ") for line in lines)


# -- over the relay's socket ----------------------------------------------------------------------------------------------


def test_only_operators_have_the_relay_mend_anything(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    asked = []

    def mended(wanted: Mapping[str, Any], actor: str) -> Mapping[str, Any]:
        asked.append((wanted["run_id"], actor))
        if wanted["run_id"] == 2:
            raise mend.NotMended("the bank is away", later=True)
        return {"result": "done", "text": "it is delivered again"}

    questions = Questions(replace(relay.questions._parts, mend=mended))
    request = {"op": "reconcile_bank", "do": "send_again", "run_id": 1, "reason": "x", "actor": "reconcile (alice)"}  # fmt: skip
    assert questions(Peer(pid=1, uid=NOBODY, gid=NOBODY), request)["error"] == "denied"
    assert asked == []
    answer = questions(Peer(pid=1, uid=0, gid=0), request)
    assert (answer["ok"], answer["result"]) == (True, "done")
    assert questions(Peer(pid=1, uid=BIN, gid=BIN), request)["ok"]
    assert asked == [(1, "reconcile (alice)"), (1, "bin")]
    away = questions(Peer(pid=1, uid=0, gid=0), {**request, "run_id": 2})
    assert (away["error"], away["message"]) == ("unavailable", "the bank is away")
    assert questions(Peer(pid=1, uid=0, gid=0), {**request, "do": "x"})["error"] == "bad_request"
    relay.ledger.close()
