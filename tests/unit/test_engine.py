# SPDX-License-Identifier: BSD-3-Clause
"""The engine as slurmctld runs it, without Slurm: verdicts, messages, liens, ends, and what happens when things are missing."""

from __future__ import annotations

import datetime
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cffi
import pytest

from csrc.build_plugins import declarations
from slurm_banking import counters, messages, settle
from slurm_banking.boundary import convert, embedded
from slurm_banking.boundary import engine as engine_module
from slurm_banking.boundary.asker import Asker
from slurm_banking.boundary.engine import Engine
from slurm_banking.errors import ConfigError, RelayUnavailable
from slurm_banking.estimate import Hints
from slurm_banking.ledger import Ledger, Transaction
from slurm_banking.ledger.rows import SetAside
from slurm_banking.records import (
    UNLIMITED,
    Estimate,
    FundsKind,
    JobUpdate,
    Outcome,
    Reason,
)
from slurm_banking.tres import Tres, parse_tres
from tests.builders import SUBMITTED, a_partition, a_run, a_submission, funds_of

CONFIG = """
[PartitionPrice]
main = 1
dear = 3
[API]
url = "http://127.0.0.1:1/api"
[Policy]
mode = "{mode}"
contact = "Ask help@example.org."
{policy}
[Ledger]
state_dir = "{state}"
[Relay]
start = "none"
socket = "{state}/relay.sock"
"""


class Site:
    """An engine over a real configuration file and a real ledger; what the relay would do is done by `relay`."""

    def __init__(self, directory: Path, mode: str = "strict-allocation", policy: str = "") -> None:
        self.state = directory / "state"
        self.state.mkdir(mode=0o700, exist_ok=True)
        self.path = directory / "bank-config.toml"
        self.configure(mode, policy)
        self.lines: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.relay: Callable[[dict[str, Any]], dict[str, Any]] = self.nobody
        self.engine = Engine(
            config_path=str(self.path),
            cluster="c",
            slurm_user_id=os.geteuid(),
            log=lambda level, line: self.lines.append(line),
            asker=Asker(os.geteuid(), ask_relay=self.ask),
        )
        self.ledger = Ledger(str(self.state), "c")

    def configure(self, mode: str = "strict-allocation", policy: str = "") -> None:
        self.path.write_text(CONFIG.format(mode=mode, policy=policy, state=self.state))

    def nobody(self, request: dict[str, Any]) -> dict[str, Any]:
        raise RelayUnavailable("nobody")

    def ask(self, path: str, request: dict[str, Any], deadline_s: float, **rest: Any) -> Any:
        self.asked.append(request)
        return self.relay(request)

    def give(self, csu: int, *, user_csu: int | None = None, complete: bool = True) -> None:
        now = int(time.time())
        with self.ledger.transaction() as tx:
            tx.put_funds(funds_of("fc_alpha", csu, read_at=now))
            tx.put_funds(
                funds_of(
                    "fc_alpha", csu if user_csu is None else user_csu, user_id=1001, read_at=now
                )
            )
            tx.set_meta("complete", "1" if complete else "0")

    def liens(self) -> list[Any]:
        with self.ledger.transaction() as tx:
            return list(tx.open_liens())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    tmp_path.chmod(0o755)
    made = Site(tmp_path)
    made.give(1_000)
    return made


def test_accepted_tells_the_estimate_and_what_is_left(site: Site) -> None:
    verdict = site.engine.submit(a_submission(time_limit_min=90))
    assert verdict.outcome is Outcome.ACCEPTED
    assert verdict.message == (
        "this job could cost up to 1.50 SU (main, 1 CPU, 01:30:00); fc_alpha has 8.50 SU left beside it."
    )
    (lien,) = site.liens()
    assert (lien.state, lien.amount_csu) == ("unconfirmed", 150)
    assert f"slurm_banking={lien.lien_id}:150:" in verdict.token


def test_refused_with_numbers_what_would_fit_and_where_to_look(site: Site) -> None:
    site.engine.submit(a_submission(time_limit_min=480))
    verdict = site.engine.submit(a_submission(time_limit_min=180))
    assert verdict.outcome is Outcome.REFUSED and verdict.reason is Reason.INSUFFICIENT_FUNDS
    assert verdict.message == (
        "fc_alpha has 2.00 SU available; this job could cost up to 3.00 SU (main, 1 CPU, 03:00:00).\n"
        "8.00 SU are set aside in fc_alpha for 1 queued job. "
        "It would fit with --time=02:00:00 or less.\n"
        "See: slurm-banking balance fc_alpha\n"
        "Ask help@example.org."
    )
    assert len(site.liens()) == 1


def test_an_array_is_refused_with_how_many_tasks_would_fit(site: Site) -> None:
    verdict = site.engine.submit(a_submission(array_inx="1-100", time_limit_min=20))
    assert verdict.outcome is Outcome.REFUSED
    assert "\nIt would fit with --time=00:06:00 or less. 29 of its 100 tasks would fit: --array=1-29.\n" in (
        verdict.message
    )  # fmt: skip


def test_a_full_queue_sets_nothing_aside_however_often_sbatch_tries_again(site: Site) -> None:
    asked = a_submission(array_inx="0-9", room=9, time_limit_min=1)
    for _ in range(3):
        verdict = site.engine.submit(asked)
        assert (verdict.outcome, verdict.reason) == (Outcome.REFUSED, Reason.QUEUE_FULL)
    assert site.liens() == []
    assert site.engine.submit(replace(asked, room=10)).outcome is Outcome.ACCEPTED


def test_the_users_share_is_checked_inside_the_account(site: Site) -> None:
    site.give(1_000, user_csu=50)
    verdict = site.engine.submit(a_submission())
    assert verdict.reason is Reason.INSUFFICIENT_USER_FUNDS
    assert "your share of fc_alpha has 0.50 SU available" in verdict.message


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        (dict(account=None), Reason.NO_ACCOUNT, "use --account"),
        (dict(associated=False), Reason.NOT_ASSOCIATED, "may not use account fc_alpha"),
        (dict(partitions=(a_partition(name="other"),)), Reason.UNPRICED_PARTITION, "'other' has no price"),
        (dict(array_inx="1-x"), Reason.MALFORMED, ""),
        (
            dict(time_limit_min=None, partitions=(a_partition(default_time_min=None, max_time_min=UNLIMITED),)),
            Reason.UNLIMITED_TIME,
            "--time=",
        ),
    ],
)  # fmt: skip
def test_each_refusal_has_its_own_reason_and_writes_nothing(
    site: Site, changes: dict[str, Any], reason: Reason, words: str
) -> None:
    verdict = site.engine.submit(a_submission(**changes))
    assert verdict.outcome is Outcome.REFUSED and verdict.reason is reason
    assert words in verdict.message and not site.liens()


@pytest.mark.parametrize(
    "reason", [Reason.UNKNOWN_ACCOUNT, Reason.UNKNOWN_USER, Reason.NO_ALLOCATION]
)
def test_what_the_bank_does_not_know_is_a_refusal_of_its_own(site: Site, reason: Reason) -> None:
    now = int(time.time())
    user_id = 1001 if reason is Reason.UNKNOWN_USER else None
    with site.ledger.transaction() as tx:
        tx.put_funds(funds_of("fc_alpha", 0, user_id=user_id, reason=reason, read_at=now))
    verdict = site.engine.submit(a_submission())
    assert verdict.outcome is Outcome.REFUSED and verdict.reason is reason and not site.liens()


def test_log_mode_decides_and_refuses_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    site = Site(tmp_path, policy='enforce = "log"')
    site.give(10)
    verdict = site.engine.submit(a_submission())
    assert verdict.outcome is Outcome.ACCEPTED
    assert verdict.message == (
        "this job could cost up to 1.00 SU (main, 1 CPU, 01:00:00); "
        "it is accepted for now, and would be refused: fc_alpha has 0.10 SU available."
    )
    assert len(site.liens()) == 1


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        (dict(), "insufficient_funds", "fc_alpha has 0.10 SU available"),
        (dict(associated=False), "not_associated", "you may not use account fc_alpha"),
        (dict(partitions=(a_partition(name="other"),)), "unpriced_partition", "has no price"),
    ],
)  # fmt: skip
def test_log_mode_logs_every_refusal_in_one_form_and_tells_it_in_words(
    tmp_path: Path, changes: dict[str, Any], reason: str, words: str
) -> None:
    tmp_path.chmod(0o755)
    site = Site(tmp_path, policy='enforce = "log"')
    site.give(10)
    verdict = site.engine.submit(a_submission(**changes))
    assert verdict.outcome is Outcome.ACCEPTED
    assert "accepted for now, and would be refused: " in verdict.message
    assert words in verdict.message and reason not in verdict.message
    line = site.lines[-1]
    assert line.startswith("submission_accepted ") and line.endswith(f" reason={reason}")
    assert " would=refused " in line


@pytest.mark.parametrize(("undecided", "event", "would"), [("accept", "submission_undecided", False), ("reject", "submission_accepted", True)])  # fmt: skip
def test_log_mode_says_of_what_nobody_could_decide_what_would_have_become_of_it(
    tmp_path: Path, undecided: str, event: str, would: bool
) -> None:
    tmp_path.chmod(0o755)
    site = Site(tmp_path, policy=f'enforce = "log"\nundecided = "{undecided}"')
    site.give(10, complete=False)
    assert site.engine.submit(a_submission()).outcome is not Outcome.REFUSED
    assert site.lines[-1].startswith(f"{event} ")
    assert (" would=refused " in site.lines[-1]) is would
    assert len(site.liens()) == 1


def test_log_mode_lets_an_update_pass_and_says_what_would_have_become_of_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    site = Site(tmp_path, policy='enforce = "log"')
    site.give(10)
    update = JobUpdate(job_id=7, submit_time=SUBMITTED, wanted=a_submission())
    assert site.engine.update(update).outcome is Outcome.ACCEPTED
    assert site.lines[-1].startswith("update_accepted ") and " would=refused " in site.lines[-1]


@pytest.mark.parametrize("changes", [dict(), dict(associated=False)])
def test_a_refused_submission_leaves_a_line_in_the_log_and_nothing_in_the_ledger(
    site: Site, changes: dict[str, Any]
) -> None:
    site.give(10)
    with site.ledger.transaction() as tx:
        before = tx.append(
            "note", account="fc_alpha", user_id=1001, amount_csu=0, reason="x", actor="test"
        )
    assert site.engine.submit(a_submission(**changes)).outcome is Outcome.REFUSED
    assert site.lines[-1].startswith("submission_refused job_user=1001 account=fc_alpha ")
    with site.ledger.transaction() as tx:
        after = tx.append(
            "note", account="fc_alpha", user_id=1001, amount_csu=0, reason="x", actor="test"
        )
    assert after == before + 1


@pytest.mark.parametrize(
    ("queued", "running", "words"),
    [(1, 0, "for 1 queued job."), (0, 2, "for 2 running jobs."), (3, 1, "for 3 queued jobs and 1 running job.")],
)  # fmt: skip
def test_a_refusal_counts_no_jobs_that_are_not_there(queued: int, running: int, words: str) -> None:
    held = SetAside(queued_csu=queued, queued_jobs=queued, running_csu=running, running_jobs=running)  # fmt: skip
    cost = Estimate(
        partition="main", tres=Tres(cpus=1, nodes=1), time_limit_min=60, tasks=1, price={"price_version": "x"},
        cost_csu=100, per_task_csu=100,
    )  # fmt: skip
    text = messages.insufficient("a", cost, 0, Reason.INSUFFICIENT_FUNDS, held, Hints())
    assert words in text and " 0 " not in text


@pytest.mark.parametrize("policy", ['exempt_users = ["alice"]', 'exempt_users = ["1001"]', 'exempt_accounts = ["fc_alpha"]', 'exempt_qos = ["normal"]'])  # fmt: skip
def test_exempt_is_accepted_and_not_banked(tmp_path: Path, policy: str) -> None:
    tmp_path.chmod(0o755)
    site = Site(tmp_path, policy=policy)
    site.give(0)
    assert site.engine.submit(a_submission()).reason is Reason.EXEMPT
    site.engine.run_ended(a_run())
    with site.ledger.transaction() as tx:
        assert not tx.open_liens() and not tx.runs_by_job(7)


def test_an_exception_accepts_what_does_not_fit_and_says_why(site: Site) -> None:
    site.give(10)
    with site.ledger.transaction() as tx:
        tx.allow(
            user_id=1001, job_id=None, until=int(time.time()) + 60, reason="deadline", actor="root"
        )
    verdict = site.engine.submit(a_submission())
    assert verdict.reason is Reason.ALLOWED and "deadline" in verdict.message
    assert len(site.liens()) == 1


@pytest.mark.parametrize(("undecided", "outcome"), [("accept", Outcome.UNDECIDED), ("reject", Outcome.REFUSED)])  # fmt: skip
def test_unknown_funds_and_no_relay_is_what_undecided_says(
    tmp_path: Path, undecided: str, outcome: Outcome
) -> None:
    tmp_path.chmod(0o755)
    site = Site(tmp_path, policy=f'undecided = "{undecided}"')
    with site.ledger.transaction() as tx:
        tx.set_meta("complete", "1")
    verdict = site.engine.submit(a_submission())
    assert verdict.outcome is outcome and verdict.reason is Reason.FUNDS_UNKNOWN
    assert len(site.liens()) == (1 if undecided == "accept" else 0)


def test_the_relay_is_asked_before_a_refusal_on_old_funds(site: Site) -> None:
    with site.ledger.transaction() as tx:
        tx.put_funds(funds_of("fc_alpha", 10, read_at=1))

    def relay(request: dict[str, Any]) -> dict[str, Any]:
        assert request["op"] == "funds" and request["account"] == "fc_alpha"
        site.give(1_000)
        return {"ok": True}

    site.relay = relay
    assert site.engine.submit(a_submission()).outcome is Outcome.ACCEPTED
    assert len(site.asked) == 1


def test_the_relay_is_asked_before_a_very_old_word_of_the_bank_is_relied_on(site: Site) -> None:
    with site.ledger.transaction() as tx:
        for user_id in (None, 1001):
            tx.put_funds(
                funds_of("fc_alpha", 1_000, user_id=user_id, read_at=int(time.time()) - 3_600)
            )
    assert site.engine.submit(a_submission()).outcome is Outcome.ACCEPTED, (
        "nobody answers: it counts"
    )
    assert len(site.asked) == 1


def test_nobody_is_asked_when_the_funds_are_fresh(site: Site) -> None:
    site.give(10)
    assert site.engine.submit(a_submission()).outcome is Outcome.REFUSED
    assert site.asked == []


def test_after_the_first_few_unanswered_questions_no_more_are_asked(site: Site) -> None:
    with site.ledger.transaction() as tx:
        tx.put_funds(funds_of("fc_alpha", 10, read_at=1))
    for _ in range(20):
        assert site.engine.submit(a_submission()).outcome is Outcome.REFUSED
    assert len(site.asked) <= 3


def test_nothing_is_asked_while_the_relay_says_that_the_bank_is_away(site: Site) -> None:
    with site.ledger.transaction() as tx:
        tx.put_funds(funds_of("fc_alpha", 10, read_at=1))
    site.relay = lambda request: {"ok": True, "away": True, "until": time.time() + 30}
    for _ in range(5):
        site.engine.submit(a_submission())
    assert len(site.asked) == 1


def test_an_incomplete_ledger_does_not_refuse_or_accept_by_accident(site: Site) -> None:
    site.give(10, complete=False)
    verdict = site.engine.submit(a_submission())
    assert verdict.outcome is Outcome.UNDECIDED and verdict.reason is Reason.LEDGER_UNAVAILABLE
    assert len(site.liens()) == 1


@pytest.mark.parametrize(("mode", "counted"), [("strict-allocation", 100), ("fast-allocation", 0), ("notional-charging", 0), ("usage-tracking", 0)])  # fmt: skip
def test_only_strict_allocation_sets_aside_for_queued_jobs(
    tmp_path: Path, mode: str, counted: int
) -> None:
    tmp_path.chmod(0o755)
    site = Site(tmp_path, mode=mode)
    site.give(1_000)
    site.engine.submit(a_submission())
    with site.ledger.transaction() as tx:
        assert tx.funds_view("fc_alpha", 1001).available_csu == 1_000 - counted


@pytest.mark.parametrize(("mode", "outcome"), [("fast-allocation", Outcome.REFUSED), ("notional-charging", Outcome.ACCEPTED), ("usage-tracking", Outcome.ACCEPTED)])  # fmt: skip
def test_the_other_modes_refuse_or_not(tmp_path: Path, mode: str, outcome: Outcome) -> None:
    tmp_path.chmod(0o755)
    site = Site(tmp_path, mode=mode)
    site.give(10)
    assert site.engine.submit(a_submission()).outcome is outcome


@pytest.mark.parametrize("mode", ["notional-charging", "usage-tracking"])
def test_the_modes_that_do_not_check_charge_and_refuse_only_what_has_no_price_or_place(
    tmp_path: Path, mode: str
) -> None:
    tmp_path.chmod(0o755)
    site = Site(tmp_path, mode=mode)
    with site.ledger.transaction() as tx:
        tx.put_funds(funds_of("fc_alpha", 0, reason=Reason.UNKNOWN_ACCOUNT))
        tx.set_meta("complete", "1")
    assert site.engine.submit(a_submission()).reason is Reason.NOT_CHECKED
    for changes, reason in (
        (dict(partitions=(a_partition(name="other"),)), Reason.UNPRICED_PARTITION),
        (dict(associated=False), Reason.NOT_ASSOCIATED),
    ):
        verdict = site.engine.submit(a_submission(**changes))
        assert (verdict.outcome, verdict.reason) == (Outcome.REFUSED, reason)
    site.engine.run_ended(a_run())
    with site.ledger.transaction() as tx:
        (run,) = tx.runs_by_job(7)
        assert run.charge_csu and tx.delivery_of(run.run_id) is not None


def test_unlimited_and_not_banked_accounts_are_accepted(site: Site) -> None:
    for kind, reason in ((FundsKind.UNLIMITED, Reason.UNLIMITED_FUNDS), (FundsKind.NOT_BANKED, Reason.NOT_BANKED)):  # fmt: skip
        with site.ledger.transaction() as tx:
            for user_id in (None, 1001):
                tx.put_funds(funds_of("fc_alpha", 0, user_id=user_id, kind=kind, remaining_csu=None, limit_csu=None))  # fmt: skip
        assert site.engine.submit(a_submission()).reason is reason


def test_a_ledger_that_cannot_be_opened_is_undecided_and_told_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    site = Site(tmp_path)
    site.state.chmod(0o755)
    other = tmp_path / "elsewhere"
    site.path.write_text(site.path.read_text().replace(f'state_dir = "{site.state}"', f'state_dir = "{other}"'))  # fmt: skip
    site.engine.reloader._checked_at = None
    for _ in range(3):
        verdict = site.engine.submit(a_submission())
        assert verdict.outcome is Outcome.UNDECIDED
        assert verdict.reason is Reason.LEDGER_UNAVAILABLE
    told = [line for line in site.lines if "ledger_unavailable problem=" in line]
    assert len(told) == 1 and str(other) in told[0]


def test_an_end_that_cannot_be_written_leaves_a_rescan_mark(site: Site) -> None:
    with site.ledger.transaction():
        site.engine.run_ended(a_run())
    (line,) = (site.state / "rescan").read_text().splitlines()
    assert json.loads(line)["job_id"] == 7
    assert (site.state / "rescan").stat().st_mode & 0o077 == 0


def test_a_broken_configuration_keeps_the_last_good_one_and_is_told_once(site: Site) -> None:
    site.path.write_text("[Policy\n")
    for _ in range(3):
        site.engine.reloader._checked_at = None
        assert site.engine.submit(a_submission()).outcome is Outcome.ACCEPTED
    told = [line for line in site.lines if line.startswith("config_rejected")]
    assert len(told) == 1 and str(site.path) in told[0]


def test_a_configuration_that_was_never_good_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bank-config.toml"):
        Engine(config_path=str(tmp_path / "bank-config.toml"), cluster="c", slurm_user_id=0, log=lambda level, line: None)  # fmt: skip


def an_update(lien_job: int = 7, **changes: Any) -> JobUpdate:
    running = changes.pop("running", False)
    return JobUpdate(
        wanted=a_submission(**changes),
        job_id=lien_job,
        submit_time=SUBMITTED,
        running=running,
        total_cpus=1,
    )


def confirm(site: Site, job_id: int = 7) -> None:
    with site.ledger.transaction() as tx:
        lien = tx.open_liens()[0]
        tx.confirm(
            lien, job_id=job_id, submit_time=SUBMITTED, restart_count=0, tasks_left=1, per_task_csu=lien.per_task_csu,
            inputs=lien.inputs, seen_inputs={}, keep_proposal=False, actor="test", reason="seen",
        )  # fmt: skip


def test_an_update_that_costs_more_is_set_aside_at_once_and_a_cheaper_one_changes_nothing(
    site: Site,
) -> None:
    site.engine.submit(a_submission(time_limit_min=60))
    confirm(site)
    assert site.engine.update(an_update(time_limit_min=300)).outcome is Outcome.ACCEPTED
    assert site.liens()[0].amount_csu == 500
    assert site.engine.update(an_update(time_limit_min=1)).outcome is Outcome.ACCEPTED
    assert site.liens()[0].amount_csu == 500


def test_an_update_that_does_not_fit_is_refused_and_changes_nothing(site: Site) -> None:
    site.engine.submit(a_submission(time_limit_min=60))
    confirm(site)
    verdict = site.engine.update(an_update(time_limit_min=1_000))
    assert verdict.outcome is Outcome.REFUSED
    assert site.liens()[0].amount_csu == 100


def test_an_update_to_another_account_opens_a_lien_there_and_keeps_the_old_one(site: Site) -> None:
    now = int(time.time())
    with site.ledger.transaction() as tx:
        tx.put_funds(funds_of("fc_beta", 1_000, read_at=now))
        tx.put_funds(funds_of("fc_beta", 1_000, user_id=1001, read_at=now))
    site.engine.submit(a_submission())
    confirm(site)
    assert site.engine.update(an_update(account="fc_beta")).outcome is Outcome.ACCEPTED
    assert sorted((lien.account, lien.amount_csu) for lien in site.liens()) == [("fc_alpha", 100), ("fc_beta", 100)]  # fmt: skip
    # the job runs in the new account: the old lien ends with it
    site.engine.run_ended(a_run(account="fc_beta", elapsed_s=1800))
    assert site.liens() == []


def test_an_update_of_a_running_job_raises_its_share(site: Site) -> None:
    site.engine.submit(a_submission())
    confirm(site)
    with site.ledger.transaction() as tx:
        tx.start_run(a_run(state="RUNNING", end_time=None), share_csu=1, inputs={}, actor="test")
    assert (
        site.engine.update(an_update(time_limit_min=300, running=True)).outcome is Outcome.ACCEPTED
    )
    with site.ledger.transaction() as tx:
        assert tx.running_runs()[0].ledger_csu == 500
        assert tx.funds_view("fc_alpha", 1001).available_csu == 500


def test_the_life_of_a_job_charges_what_was_used(site: Site) -> None:
    verdict = site.engine.submit(a_submission())
    site.engine.run_ended(a_run(elapsed_s=1800, admin_comment=verdict.token))
    with site.ledger.transaction() as tx:
        assert tx.funds_view("fc_alpha", 1001).available_csu == 950
        (run,) = tx.runs_by_job(7)
        assert run.charge_csu == 50 and run.inputs["rates"] == "1"
    assert "charge_su=0.50" in site.lines[-1]


def test_the_charge_is_at_the_price_in_force_when_the_run_started(site: Site) -> None:
    site.engine.submit(a_submission())
    before = int(time.time()) - 10
    time.sleep(0.01)
    site.path.write_text(site.path.read_text().replace("main = 1", "main = 2"))
    site.engine.reloader._checked_at = None
    site.engine.run_ended(a_run(elapsed_s=3600, start_time=before))
    site.engine.run_ended(a_run(job_id=8, elapsed_s=3600, start_time=int(time.time()) + 5))
    with site.ledger.transaction() as tx:
        assert [run.charge_csu for run in (*tx.runs_by_job(7), *tx.runs_by_job(8))] == [100, 200]


# -- what an update asks for --------------------------------------------------------------------------------------------


def started(site: Site, **changes: Any) -> None:
    with site.ledger.transaction() as tx:
        run = a_run(state="RUNNING", end_time=None, elapsed_s=0, **changes)
        settle.start_run(tx, run, site.engine.config(), actor="test")


def test_an_update_of_a_running_job_prices_what_it_has(site: Site) -> None:
    site.engine.submit(a_submission())
    confirm(site)
    started(site)
    update = replace(
        an_update(time_limit_min=120, running=True), tres=parse_tres("cpu=4,mem=8000M,node=1")
    )
    assert site.engine.update(update).outcome is Outcome.ACCEPTED
    with site.ledger.transaction() as tx:
        assert tx.running_runs()[0].ledger_csu == 800, "4 CPUs for two hours"


def test_an_update_of_a_resized_run_counts_what_it_gave_back(site: Site) -> None:
    site.engine.submit(a_submission())
    confirm(site)
    started(site)
    config = site.engine.config()
    with site.ledger.transaction() as tx:
        shrunk = a_run(state="RUNNING", end_time=None, resizing=True, cpus=4, elapsed_s=1800)
        settle.end_run(tx, shrunk, config, actor="test")
    update = replace(an_update(time_limit_min=120, running=True), tres=Tres(cpus=1, nodes=1))
    assert site.engine.update(update).outcome is Outcome.ACCEPTED
    with site.ledger.transaction() as tx:
        assert tx.running_runs()[0].ledger_csu == 200 + 3 * 50


def test_an_update_that_changes_nothing_of_the_cost_is_not_refused(site: Site) -> None:
    """Prices rose since, and nothing is left: an array's throttle changes all the same."""
    site.engine.submit(a_submission(array_inx="0-4"))
    lien = site.liens()[0]
    with site.ledger.transaction() as tx:
        tx.confirm(
            lien, job_id=7, submit_time=SUBMITTED, restart_count=0, tasks_left=5, per_task_csu=lien.per_task_csu,
            inputs=lien.inputs, seen_inputs={}, keep_proposal=False, actor="test", reason="seen",
        )  # fmt: skip
    site.path.write_text(site.path.read_text().replace("main = 1", "main = 2"))
    site.engine.reloader._checked_at = None
    site.give(500)
    same = replace(an_update(array_inx="0-4%1"), task_count=5)
    assert site.engine.update(same).outcome is Outcome.ACCEPTED
    assert site.liens()[0].amount_csu == 500
    longer = replace(an_update(array_inx="0-4%1", time_limit_min=61), task_count=5)
    assert site.engine.update(longer).outcome is Outcome.REFUSED


def notes(site: Site, job_id: int = 7) -> list[Any]:
    with site.ledger.transaction() as tx:
        return [entry for entry in tx.entries_by_job(job_id) if entry.kind == "note"]


def test_why_an_update_was_refused_is_in_the_ledger_once_and_a_few_times_a_minute(
    site: Site,
) -> None:
    verdict = site.engine.submit(a_submission())
    confirm(site)
    for minutes in (1_000, 1_000, 2_000, 2_000, 1_000, 3_000, 4_000, 5_000, 6_000, 7_000):
        update = an_update(time_limit_min=minutes, submit_user_id=0)
        verdict = site.engine.update(update)
        assert verdict.outcome is Outcome.REFUSED
    note, *others = notes(site)
    asked = [other.inputs["time_limit_min"] for other in others]
    assert asked == [2_000, 3_000, 4_000, 5_000]
    assert (note.reason, note.amount_csu, note.account) == ("update refused: insufficient_funds", 0, "fc_alpha")  # fmt: skip
    assert (note.inputs["estimate_csu"], note.inputs["available_csu"]) == (1_667, 900)
    assert note.inputs["time_limit_min"] == 1_000 and note.inputs["by_user"] == 0
    assert note.inputs["message"].startswith("fc_alpha has 9.00 SU available; ")
    assert note.lien_id == site.liens()[0].lien_id
    site.engine.update(an_update(partitions=(a_partition(name="other"),)))
    assert [note.reason for note in notes(site)][5:] == ["update refused: unpriced_partition"]
    assert notes(site, 8) == []


def test_a_refused_update_leaves_nothing_in_an_account_that_the_user_is_not_in(site: Site) -> None:
    update = an_update(account="fc_other", associated=False)
    assert site.engine.update(update).reason is Reason.NOT_ASSOCIATED
    with site.ledger.transaction() as tx:
        assert tx.entries_by_account("fc_other") == []
    assert [note.reason for note in notes(site)] == ["update refused: not_associated"]


def test_a_refused_update_says_nothing_of_tasks_that_it_cannot_take_out(site: Site) -> None:
    update = replace(an_update(array_inx="0-99", time_limit_min=60), task_count=100)
    verdict = site.engine.update(update)
    assert verdict.outcome is Outcome.REFUSED
    assert "--array" not in verdict.message and "would fit" in verdict.message


def test_a_refusal_stands_though_its_note_cannot_be_written(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **values: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Transaction, "note_once", full)
    assert site.engine.update(an_update(time_limit_min=1_000)).outcome is Outcome.REFUSED
    assert any("ledger_unavailable" in line and "full" in line for line in site.lines)


# -- a share of the estimate, overdraft, warnings -----------------------------------------------------------------------


def at(tmp_path: Path, policy: str, mode: str = "strict-allocation") -> Site:
    tmp_path.chmod(0o755)
    made = Site(tmp_path, mode=mode, policy=policy)
    made.give(1_000)
    return made


def test_a_share_of_the_estimate_is_set_aside_and_the_rest_told(tmp_path: Path) -> None:
    site = at(tmp_path, "lien_share = 0.25")
    verdict = site.engine.submit(a_submission(time_limit_min=90))
    assert verdict.message == (
        "this job could cost up to 1.50 SU (main, 1 CPU, 01:30:00); 0.38 SU of that are set aside; "
        "fc_alpha has 9.62 SU left beside it."
    )
    (lien,) = site.liens()
    assert (lien.amount_csu, lien.inputs["lien_share"]) == (38, "0.25")
    assert f"={lien.lien_id}:38:" in verdict.token
    confirm(site)
    started(site)
    with site.ledger.transaction() as tx:
        assert tx.running_runs()[0].ledger_csu == 38
    site.engine.run_ended(a_run(elapsed_s=5400))
    with site.ledger.transaction() as tx:
        assert tx.runs_by_job(7)[0].charge_csu == 150
    assert "charge_su=1.50 above_lien_su=1.12" in site.lines[-1]


def test_the_share_is_what_must_fit(tmp_path: Path) -> None:
    site = at(tmp_path, "lien_share = 0.1")
    assert site.engine.submit(a_submission(array_inx="1-99")).outcome is Outcome.ACCEPTED
    verdict = site.engine.submit(a_submission(array_inx="1-99"))
    assert verdict.message.startswith(
        "fc_alpha has 0.10 SU available; this job could cost up to 99.00 SU (main, 1 CPU, 01:00:00, x 99 tasks), "
        "of which 9.90 SU would be set aside.\n"
    )
    assert "1 of its 99 tasks would fit: --array=1." in verdict.message


def test_an_update_raises_by_the_share(tmp_path: Path) -> None:
    site = at(tmp_path, "lien_share = 0.5")
    site.engine.submit(a_submission())
    confirm(site)
    assert site.engine.update(an_update(time_limit_min=1_000)).outcome is Outcome.ACCEPTED
    assert site.liens()[0].amount_csu == 834
    assert site.engine.update(an_update(time_limit_min=1_300)).outcome is Outcome.REFUSED


def test_an_account_may_be_overdrawn_as_far_as_configured(tmp_path: Path) -> None:
    site = at(tmp_path, "overdraft_su = 5")
    assert site.engine.submit(a_submission(time_limit_min=720)).outcome is Outcome.ACCEPTED
    verdict = site.engine.submit(a_submission(time_limit_min=240))
    assert verdict.outcome is Outcome.REFUSED and verdict.available_csu == -200
    assert verdict.message.startswith(
        "fc_alpha has -2.00 SU available and may go 5.00 SU below zero; this job could cost up to 4.00 SU"
    )
    assert "--time=03:00:00 or less" in verdict.message
    assert site.engine.submit(a_submission(time_limit_min=180)).outcome is Outcome.ACCEPTED
    with site.ledger.transaction() as tx:
        assert tx.funds_view("fc_alpha", 1001).available_csu == -500


def test_a_user_may_overdraw_a_share_of_the_account_no_further(tmp_path: Path) -> None:
    site = at(tmp_path, "overdraft_su = 5")
    site.give(10_000, user_csu=100)
    assert site.engine.submit(a_submission(time_limit_min=360)).outcome is Outcome.ACCEPTED
    verdict = site.engine.submit(a_submission(time_limit_min=1))
    assert verdict.reason is Reason.INSUFFICIENT_USER_FUNDS
    assert "your share of fc_alpha has -5.00 SU available and may go 5.00 SU below zero" in verdict.message  # fmt: skip


@pytest.mark.parametrize("tell", ["true", "false"])
def test_a_warning_ends_the_message_when_little_is_left_of_the_limit(
    tmp_path: Path, tell: str
) -> None:
    site = at(tmp_path, f"warn_below = 0.1\ntell_estimate = {tell}")
    site.give(1_000, user_csu=2_000)
    assert "Note" not in site.engine.submit(a_submission(time_limit_min=540)).message, (
        "10 % are left"
    )
    lines = site.engine.submit(a_submission(time_limit_min=1)).message.split("\n")
    assert lines[-1] == "Note: fc_alpha has less than 10 % of its 10.00 SU left."
    assert len(lines) == (2 if tell == "true" else 1)


def test_a_warning_speaks_of_the_users_own_limit_too(tmp_path: Path) -> None:
    site = at(tmp_path, "warn_below = 0.255")
    site.give(1_000, user_csu=200)
    message = site.engine.submit(a_submission(time_limit_min=90)).message
    assert message.endswith(
        "\nNote: your share of fc_alpha has less than 25.5 % of its 2.00 SU left."
    )
    assert message.count("Note") == 1


def test_no_warning_where_nothing_is_limited_or_nothing_costs(tmp_path: Path) -> None:
    site = at(tmp_path, "warn_below = 1")
    site.path.write_text(site.path.read_text().replace("dear = 3", "dear = 0"))
    site.engine.reloader._checked_at = None
    free = a_submission(partitions=(a_partition(name="dear"),))
    assert "Note" not in site.engine.submit(free).message
    with site.ledger.transaction() as tx:
        for user_id in (None, 1001):
            tx.put_funds(funds_of("fc_alpha", 0, user_id=user_id, kind=FundsKind.UNLIMITED, remaining_csu=None, limit_csu=None))  # fmt: skip
    assert "Note" not in site.engine.submit(a_submission()).message


# -- dated prices -------------------------------------------------------------------------------------------------------


def test_a_dated_list_comes_into_force_by_itself(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(time.time())
    dated = datetime.datetime.fromtimestamp(now + 100, tz=datetime.timezone.utc)
    text = f"[[PriceList]]\nfrom = {dated.isoformat()}\n[PriceList.PartitionPrice]\nmain = 2\n"
    site.path.write_text(site.path.read_text() + text)
    site.engine.reloader._checked_at = None
    assert site.engine.submit(a_submission(time_limit_min=6)).estimate.cost_csu == 10  # type: ignore[union-attr]
    clock = now + 150.0
    monkeypatch.setattr(time, "time", lambda: clock)
    assert site.engine.submit(a_submission(time_limit_min=6)).estimate.cost_csu == 20  # type: ignore[union-attr]
    with site.ledger.transaction() as tx:
        found = [tx.prices_at(at) for at in (now + 99, now + 100)]
        assert [tables["PartitionPrice"]["main"] for _, tables in found if found] == ["1", "2"]  # type: ignore[misc]
    clock = now + 50.0  # the clock is set back
    assert site.engine.submit(a_submission(time_limit_min=6)).estimate.cost_csu == 10  # type: ignore[union-attr]


def test_a_price_list_in_force_costs_a_submission_no_further_look(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.engine.submit(a_submission())

    def looked(*args: Any) -> None:
        raise AssertionError("looked again")

    monkeypatch.setattr(settle, "record_prices", looked)
    monkeypatch.setattr(engine_module, "_in_force", looked)
    assert site.engine.submit(a_submission()).outcome is Outcome.ACCEPTED


def test_log_lines_are_one_line_whatever_a_user_wrote(site: Site) -> None:
    site.engine.submit(a_submission(account='x y="\n=z'))
    assert "\n" not in site.lines[-1] and "account=x?y?" in site.lines[-1]


# One line for each call, and each call counted.

EVENT = re.compile(r"(submission|update|run)_[a-z_]+(?= )")


def canonical(line: str) -> dict[str, str]:
    """The keys of a canonical line, by the rule: single words, but for the last value, which may be any text."""
    event, _, rest = line.partition(" ")
    assert EVENT.match(line), line
    found = {"event": event}
    while rest:
        key, equals, value = rest.partition("=")
        assert equals and re.fullmatch(r"[a-z_]+", key) and key not in found, line
        if key in ("reason", "problem"):
            found[key] = value
            break
        found[key], _, rest = value.partition(" ")
        assert found[key] and "=" not in found[key], line
    return found


class Spoken:
    """Calls of hooks, each with the lines that it logged."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.calls: list[tuple[str, dict[str, str]]] = []

    def __call__(self, hook: str, what: Any) -> dict[str, str]:
        before = len(self.site.lines)
        getattr(self.site.engine, hook)(what)
        logged = self.site.lines[before:]
        told = [line for line in logged if EVENT.match(line)]
        assert len(told) == 1, logged
        words = canonical(told[0])
        self.calls.append((hook, words))
        return words


def spoken_by(site: Site) -> Spoken:
    """Many calls of each hook, of every kind."""
    say = Spoken(site)
    site.give(1_000)
    for index in range(40):
        changes: list[dict[str, Any]] = [
            dict(time_limit_min=1 + index),
            dict(time_limit_min=100_000),
            dict(partitions=(a_partition(name="other"), a_partition(name="un known"))),
            dict(account=None),
            dict(account="fc_nobody_knows"),
            dict(associated=False, account='a "b"=c\n'),
            dict(array_inx="0-9", room=9, time_limit_min=1),
            dict(submit_user_id=0, time_limit_min=1),
            dict(qos="free", time_limit_min=1),
        ]
        for change in changes:
            say("submit", a_submission(**change))
    for run in [a_run(job_id=job_id) for job_id in range(20, 30)]:
        say("run_started", replace(run, state="RUNNING", end_time=None, elapsed_s=0))
        say("run_started", replace(run, state="RUNNING", end_time=None, elapsed_s=0))
        say("update", replace(an_update(lien_job=run.job_id, running=True), submit_time=SUBMITTED))
        say("update", an_update(lien_job=900 + run.job_id, time_limit_min=100_000))
        say("run_ended", run)
        say("run_ended", run)
        say("run_ended", replace(run, elapsed_s=90, end_time=SUBMITTED + 100))
        say("run_ended", replace(run, account="fc_beta"))
        say("run_started", replace(run, account="fc_beta", state="RUNNING"))
        say("run_ended", replace(run, qos="free"))
        say("run_started", replace(run, qos="free"))
    say("run_ended", a_run(job_id=31, started=False, state="CANCELLED", nodes="", elapsed_s=0))
    with site.ledger.transaction():
        say("submit", a_submission())
        say("update", an_update())
        say("run_ended", a_run(job_id=32))
        say("run_started", a_run(job_id=33))
    return say


@pytest.fixture
def spoken(tmp_path: Path) -> Spoken:
    tmp_path.chmod(0o755)
    return spoken_by(Site(tmp_path, policy='exempt_qos = ["free"]\nunlisted_partition = "refuse"'))


def test_every_call_of_a_hook_logs_exactly_one_line_that_can_be_parsed(spoken: Spoken) -> None:
    events = {words["event"] for _, words in spoken.calls}
    assert events >= {
        "submission_accepted", "submission_refused", "submission_undecided", "update_accepted", "update_refused",
        "update_undecided", "run_charged", "run_duplicate", "run_restated", "run_conflict", "run_ignored",
        "run_to_rescan", "run_started", "run_start_unrecorded",
    }  # fmt: skip
    told = [line for line in spoken.site.lines if EVENT.match(line)]
    assert len(told) == len(spoken.calls) > 400
    for hook, words in spoken.calls:
        assert words["hook"] == hook and int(words["elapsed_us"]) > 0
        assert words["account"] and words["partition"]
        if hook in ("submit", "update"):
            assert words["job_user"] and words["prices"] and words["reason"]
        else:
            assert words["user"] and words["job_id"] and words["restart"]


def test_a_line_has_the_numbers_that_the_decision_was_made_of(site: Site) -> None:
    say = Spoken(site)
    taken = say("submit", a_submission(time_limit_min=90))
    (lien,) = site.liens()
    assert taken["lien"] == lien.lien_id
    assert (taken["estimate_su"], taken["available_su"]) == ("1.50", "10.00")
    assert taken["prices"] == site.engine.config().prices.version
    refused = say("submit", a_submission(time_limit_min=900))
    assert (refused["estimate_su"], refused["available_su"]) == ("15.00", "8.50")
    assert "lien" not in refused
    unpriced = say("submit", a_submission(partitions=(a_partition(name="o"), a_partition(name="p"))))  # fmt: skip
    assert unpriced["partition"] == "o,p" and "estimate_su" not in unpriced
    confirm(site)
    assert say("update", an_update(time_limit_min=120))["lien"] == lien.lien_id
    moved = say("update", an_update(account="fc_beta"))
    opened = {lien.lien_id for lien in site.liens() if lien.account == "fc_beta"}
    assert {moved["lien"]} == opened and moved["event"] == "update_undecided"
    ended = say("run_ended", a_run(elapsed_s=1800))
    assert ended["charge_su"] == "0.50" and ended["lien"] and ended["prices"] == taken["prices"]


def test_every_call_is_counted_as_it_was_told(spoken: Spoken) -> None:
    site = spoken.site
    site.engine.counters.write()
    reading = counters.read(str(site.state))
    assert reading is not None
    decided: dict[tuple[str, str, str], int] = {}
    settled: dict[tuple[str, str], int] = {}
    for hook, words in spoken.calls:
        what = words["event"].partition("_")[2]
        if hook in ("submit", "update"):
            key = (hook, what, words["reason"])
            decided[key] = decided.get(key, 0) + 1
            continue
        result = {"start_unrecorded": "unrecorded"}.get(what, what)
        result = "exempt" if words.get("reason") == "exempt" else result
        settled[hook, result] = settled.get((hook, result), 0) + 1
    assert {key: count for key, count in reading.decisions.items() if count} == decided
    assert {key: count for key, count in reading.runs.items() if count} == settled
    assert len(decided) > 8 and len(settled) > 8


def test_what_log_mode_would_have_refused_is_counted_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    site = Site(tmp_path, policy='enforce = "log"')
    site.give(10)
    site.engine.submit(a_submission())
    site.engine.counters.write()
    reading = counters.read(str(site.state))
    assert reading is not None
    assert {key for key, count in reading.decisions.items() if count} == {("submit", "would_refuse", "insufficient_funds")}  # fmt: skip


def test_counters_are_there_before_the_first_call(site: Site) -> None:
    reading = counters.read(str(site.state))
    assert reading is not None and not any(reading.decisions.values())


def test_counters_that_cannot_be_written_change_no_decision(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "state" / counters.FILE_NAME).mkdir(parents=True, mode=0o700)
    (tmp_path / "state").chmod(0o700)
    site = Site(tmp_path)
    site.give(1_000)
    for _ in range(3):
        assert site.engine.submit(a_submission()).outcome is Outcome.ACCEPTED
        site.engine.counters.took("submit", 5)
    assert sum(line.startswith("counters_unavailable ") for line in site.lines) == 1


class Module:
    """A module as cffi generates it: its structs are banking.h's, what C would call is in ``entries``."""

    def __init__(self, site: Site) -> None:
        self.ffi = cffi.FFI()
        self.ffi.cdef(declarations())
        self.entries: dict[str, Any] = {}
        constants = self.ffi.dlopen(None)
        names = [name for name in dir(constants) if name.startswith("BANKING_")]
        self.lib = SimpleNamespace(**{name: getattr(constants, name) for name in names})
        self.lib.banking_log = lambda level, line: site.lines.append(line.decode())
        for name in ("start", "submit", "update", "run_ended"):
            setattr(self.lib, f"banking_py_{name}", None)
        embedded.attach(self, self.lib)

    def def_extern(self, name: str) -> Callable[[Any], None]:
        return lambda function: self.entries.__setitem__(name, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ffi, name)

    def submit(self, **fields: Any) -> Any:
        partition = self.ffi.new("banking_partition[1]")
        main = self.ffi.new("char[]", b"main")
        partition[0].name, partition[0].found = main, 1
        partition[0].default_time_min = partition[0].max_time_min = 60
        partition[0].total_cpus = partition[0].total_nodes = 1
        asked = self.ffi.new("banking_submission *")
        account = self.ffi.new("char[]", b"fc_alpha")
        asked.account, asked.associated, asked.partitions = account, 1, partition
        asked.job_user_id = asked.submit_user_id = 1001
        asked.partition_count, asked.min_cpus, asked.time_limit_min = 1, 1, 1
        asked.room = asked.max_cpus = asked.num_tasks = asked.het_job_offset = convert.NO_VAL
        asked.pn_min_memory = convert.NO_VAL64
        for name, value in fields.items():
            setattr(asked, name, value)
        reply = self.ffi.new("banking_reply *")
        self.entries["banking_py_submit"](asked, reply)
        return reply


def test_the_time_of_each_call_is_counted_and_of_one_that_raised_that_it_did(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_engine", site.engine)
    module = Module(site)
    reply = module.submit()
    assert reply.verdict == module.lib.BANKING_ACCEPTED
    raised = module.submit(partitions=module.ffi.NULL)
    assert raised.verdict == module.lib.BANKING_UNDECIDED
    assert site.lines[-1].startswith("plugin_error in=banking_py_submit ")
    reading = counters.read(str(site.state))
    assert reading is not None
    assert reading.times["submit"].count == 2
    assert reading.times["submit"].sum_us == reply.elapsed_us + raised.elapsed_us > 0
    assert reading.failed == {"submit": 1, "update": 0, "run_ended": 0, "run_started": 0}
    assert reading.decisions["submit", "accepted", "fits"] == sum(reading.decisions.values()) == 1


def test_what_c_logs_of_a_call_that_python_could_not_answer_has_the_same_form() -> None:
    source = (Path(__file__).resolve().parents[2] / "csrc" / "shim.c").read_text()
    (form,) = re.findall(r'snprintf\(line, sizeof\(line\), "(%s outcome=[^"]*)"', source)
    line = form.replace("%llu", "%s") % ("update_undecided", "accepted", 3, "no verdict: a = b")
    assert canonical(line) == {
        "event": "update_undecided",
        "outcome": "accepted",
        "unlogged_before": "3",
        "reason": "no verdict: a = b",
    }
