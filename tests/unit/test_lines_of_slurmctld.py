# SPDX-License-Identifier: BSD-3-Clause
"""Every line of ours in slurmctld's log that docs/operating.md explains, made by the code that logs it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from slurm_banking import counters, state_dir
from slurm_banking.boundary import embedded, engine, starter
from slurm_banking.boundary.engine import Engine
from slurm_banking.config import load
from slurm_banking.records import UNLIMITED, FundsKind, JobUpdate, Reason
from tests.builders import SUBMITTED, a_partition, a_run, a_submission, funds_of
from tests.unit.test_engine import Module, Site, canonical, confirm
from tests.unit.test_ledger_disaster import damage, fill

RUNNING = a_run(state="RUNNING", end_time=None, elapsed_s=0)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Site]:
    def make(mode: str = "strict-allocation", policy: str = "") -> Site:
        tmp_path.chmod(0o755)
        return Site(tmp_path, mode=mode, policy=policy)

    return make


def bank_says(site: Site, user_id: int | None = None, **changes: Any) -> None:
    site.give(1_000)
    who = [None, 1001] if "kind" in changes else [user_id]
    with site.ledger.transaction() as tx:
        for one in who:
            tx.put_funds(funds_of("fc_alpha", 0, user_id=one, read_at=int(time.time()), **changes))


def nothing(site: Site) -> None:
    with site.ledger.transaction() as tx:
        tx.set_meta("complete", "1")


NO_LIMIT = (a_partition(default_time_min=None, max_time_min=UNLIMITED),)

# -- why a submission is refused, and why it is accepted ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "prepare", "asked", "policy"),
    [
        ("insufficient_funds", lambda site: site.give(10), {}, ""),
        ("insufficient_user_funds", lambda site: site.give(1_000, user_csu=10), {}, ""),
        ("unknown_account", lambda site: bank_says(site, reason=Reason.UNKNOWN_ACCOUNT), {}, ""),
        ("unknown_user", lambda site: bank_says(site, 1001, reason=Reason.UNKNOWN_USER), {}, ""),
        ("no_allocation", lambda site: bank_says(site, reason=Reason.NO_ALLOCATION), {}, ""),
        ("no_account", nothing, dict(account=None), ""),
        ("not_associated", nothing, dict(associated=False), ""),
        ("unpriced_partition", nothing, dict(partitions=(a_partition(name="other"),)), 'unlisted_partition = "refuse"'),
        ("unlimited_time", nothing, dict(time_limit_min=None, partitions=NO_LIMIT), 'unlimited_time = "refuse"'),
        ("queue_full", nothing, dict(array_inx="0-9", room=9), ""),
        ("malformed", nothing, dict(array_inx="1-x"), ""),
        ("funds_unknown", nothing, {}, 'undecided = "reject"'),
        ("ledger_unavailable", lambda site: site.give(1_000, complete=False), {}, 'undecided = "reject"'),
    ],
)  # fmt: skip
def test_each_reason_of_a_refusal_is_in_its_line(
    made: Callable[..., Site],
    reason: str,
    prepare: Callable[[Site], None],
    asked: dict[str, Any],
    policy: str,
) -> None:
    site = made(policy=policy)
    prepare(site)
    site.engine.submit(a_submission(**asked))
    line = canonical(site.lines[-1])
    assert (line["event"], line["reason"]) == ("submission_refused", reason)
    assert "lien" not in line and not site.liens()


@pytest.mark.parametrize(
    ("reason", "prepare", "mode", "policy"),
    [
        ("fits", lambda site: site.give(1_000), "strict-allocation", ""),
        ("unlimited_funds", lambda site: bank_says(site, kind=FundsKind.UNLIMITED, limit_csu=None, remaining_csu=None), "strict-allocation", ""),
        ("not_banked", lambda site: bank_says(site, kind=FundsKind.NOT_BANKED, limit_csu=None, remaining_csu=None), "strict-allocation", ""),
        ("exempt", nothing, "strict-allocation", 'exempt_users = ["alice"]'),
        ("free_partition", lambda site: site.give(0), "strict-allocation", 'unlisted_partition = "free"'),
        ("not_checked", lambda site: site.give(0), "notional-charging", ""),
    ],
)  # fmt: skip
def test_each_reason_of_an_acceptance_is_in_its_line(
    made: Callable[..., Site],
    reason: str,
    prepare: Callable[[Site], None],
    mode: str,
    policy: str,
) -> None:
    site = made(mode=mode, policy=policy)
    prepare(site)
    name = "not_listed" if reason == "free_partition" else "main"
    site.engine.submit(a_submission(partitions=(a_partition(name=name),)))
    line = canonical(site.lines[-1])
    assert (line["event"], line["reason"]) == ("submission_accepted", reason)
    assert ("lien" in line) is (reason != "exempt")


def test_an_exception_is_the_reason_allowed(made: Callable[..., Site]) -> None:
    site = made()
    site.give(10)
    until = int(time.time()) + 60
    with site.ledger.transaction() as tx:
        tx.allow(user_id=1001, job_id=None, until=until, reason="deadline", actor="root")
    site.engine.submit(a_submission())
    assert canonical(site.lines[-1])["reason"] == "allowed"


def test_what_would_be_refused_and_is_only_logged_says_so(made: Callable[..., Site]) -> None:
    site = made(policy='enforce = "log"')
    site.give(10)
    site.engine.submit(a_submission())
    line = canonical(site.lines[-1])
    assert line["event"] == "submission_accepted"
    assert (line["would"], line["reason"]) == ("refused", "insufficient_funds")


# -- runs ---------------------------------------------------------------------------------------------------------------


def queued(site: Site) -> None:
    site.give(1_000)
    site.engine.submit(a_submission())
    confirm(site)


RUNS: dict[str, tuple[list[tuple[str, Any]], dict[str, str]]] = {
    "run_started": ([("run_started", RUNNING)], {"lien_su": "1.00"}),
    "run_charged": ([("run_ended", a_run(elapsed_s=1800))], {"charge_su": "0.50"}),
    "run_restated": (
        [("run_ended", a_run(elapsed_s=1800)), ("run_ended", a_run(elapsed_s=3600))],
        {"charge_su": "1.00"},
    ),
    "run_duplicate": ([("run_ended", a_run()), ("run_ended", a_run())], {}),
    "run_voided": (
        [("run_ended", a_run(started=False, state="CANCELLED", nodes="", elapsed_s=0))],
        {},
    ),
    "run_ignored": ([("run_ended", a_run(job_id=8, started=False, state="CANCELLED", nodes="", elapsed_s=0))], {}),
    "run_resized": (
        [("run_started", RUNNING), ("run_ended", a_run(resizing=True, state="RESIZING"))],
        {},
    ),
    "run_conflict": ([("run_ended", a_run()), ("run_ended", a_run(account="fc_beta"))], {}),
}  # fmt: skip


@pytest.mark.parametrize("event", RUNS)
def test_each_thing_that_becomes_of_a_run_is_its_line(
    made: Callable[..., Site], event: str
) -> None:
    site = made()
    queued(site)
    told, values = RUNS[event]
    for hook, run in told:
        getattr(site.engine, hook)(run)
    line = canonical(site.lines[-1])
    assert line["event"] == event and line["job_id"] and line["hook"] == told[-1][0]
    assert {key: line[key] for key in values} == values


def test_a_charge_above_its_lien_and_a_lien_for_the_next_run_are_told(
    made: Callable[..., Site],
) -> None:
    site = made()
    queued(site)
    site.engine.run_ended(a_run(elapsed_s=7200, end_time=SUBMITTED + 7210, requeue=True))
    line = canonical(site.lines[-1])
    assert (line["event"], line["charge_su"], line["above_lien_su"]) == ("run_charged", "2.00", "1.00")  # fmt: skip
    assert line["next_lien"] in {lien.lien_id for lien in site.liens()}


def test_a_run_of_an_exempt_user_is_ignored_for_that_reason(made: Callable[..., Site]) -> None:
    site = made(policy='exempt_users = ["alice"]')
    site.engine.run_ended(a_run())
    line = canonical(site.lines[-1])
    assert (line["event"], line["reason"]) == ("run_ignored", "exempt")


def test_what_cannot_be_written_is_left_to_the_relay_and_told(made: Callable[..., Site]) -> None:
    site = made()
    queued(site)
    with site.ledger.transaction():
        site.engine.run_started(RUNNING)
        assert canonical(site.lines[-1])["event"] == "run_start_unrecorded"
        site.engine.run_ended(a_run())
    line = canonical(site.lines[-1])
    assert (line["event"], line["reason"]) == ("run_to_rescan", "ledger_unavailable")
    assert (site.state / engine.RESCAN_NAME).exists()


# -- what it stands on --------------------------------------------------------------------------------------------------


def another_engine(site: Site) -> tuple[Engine, list[str]]:
    lines: list[str] = []
    made = Engine(
        config_path=str(site.path), cluster="c", slurm_user_id=os.geteuid(), asker=site.engine.asker,
        log=lambda level, line: lines.append(line),
    )  # fmt: skip
    return made, lines


def said_once(engine: Engine, lines: list[str], words: str) -> None:
    """Three jobs, one update and one end: one word about the ledger, and each of them as nobody could decide it."""
    for _ in range(3):
        engine.submit(a_submission())
        found = canonical(lines[-1])
        assert (found["event"], found["reason"]) == ("submission_undecided", "ledger_unavailable")
    engine.update(update_of(7))
    assert canonical(lines[-1])["event"] == "update_undecided"
    engine.run_ended(a_run())
    assert canonical(lines[-1])["event"] == "run_to_rescan"
    told = [line for line in lines if line.startswith("ledger_unavailable problem=")]
    assert len(told) == 1 and words in told[0]


def anothers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(site.state, 12345, 12345)


def for_others(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.state.chmod(0o755)


def on_the_network(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_dir, "file_system", lambda *_, **__: "nfs4")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a directory away")
@pytest.mark.parametrize(
    ("spoil", "words"),
    [(anothers, "uid 12345"), (for_others, "0755"), (on_the_network, "network file system (nfs4)")],
)
def test_a_ledger_that_may_not_be_opened_is_named_once(
    made: Callable[..., Site],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Site, pytest.MonkeyPatch], None],
    words: str,
) -> None:
    site = made()
    site.give(1_000)
    spoil(site, monkeypatch)
    said_once(*another_engine(site), words)


def busy(site: Site, engine: Engine) -> Any:
    return site.ledger.transaction()


@contextmanager
def full(site: Site, engine: Engine) -> Iterator[None]:
    """As a full disk does it: SQLite may add no page. Then until none of those that it has is free."""
    connection = engine.ledger(engine.config())._connection
    assert connection is not None
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(200):
        verdict = engine.submit(a_submission(job_user_id=2000 + number))
        if verdict.reason is Reason.LEDGER_UNAVAILABLE:
            break
    yield
    connection.execute("PRAGMA max_page_count = 1000000")


@contextmanager
def damaged(site: Site, engine: Engine) -> Iterator[None]:
    fill(site.ledger)
    site.ledger.checkpoint()
    with site.ledger.transaction() as tx:
        tx.set_meta("x", "y")  # whoever has pages in memory reads them again
    damage(Path(site.ledger.path))
    yield


@pytest.mark.parametrize(
    ("spoil", "words"), [(busy, "lock"), (full, "full"), (damaged, "malformed")]
)
def test_a_ledger_that_fails_while_it_is_open_is_named_once(
    made: Callable[..., Site], spoil: Callable[[Site, Engine], Any], words: str
) -> None:
    site = made()
    site.give(1_000_000)
    engine, lines = another_engine(site)
    with spoil(site, engine):
        said_once(engine, lines, words)


def update_of(job_id: int, **changes: Any) -> JobUpdate:
    return JobUpdate(job_id=job_id, submit_time=SUBMITTED, wanted=a_submission(**changes))


def test_updates_are_told_as_submissions_are(made: Callable[..., Site]) -> None:
    site = made()
    queued(site)
    site.engine.update(update_of(7, time_limit_min=90))
    assert canonical(site.lines[-1])["event"] == "update_accepted"
    site.engine.update(update_of(7, time_limit_min=9_000))
    line = canonical(site.lines[-1])
    assert (line["event"], line["reason"]) == ("update_refused", "insufficient_funds")


def test_a_mistake_in_the_configuration_and_something_to_mend_are_lines_of_their_own(
    made: Callable[..., Site],
) -> None:
    site = made()
    text = site.path.read_text()
    site.path.write_text(text[: text.index("[Policy]")] + text[text.index("[Ledger]") :])
    again, lines = another_engine(site)
    assert lines[0].startswith("config_warning ") and "[Policy] is missing" in lines[0]
    site.path.write_text("[Policy\n")
    again.reloader._checked_at = None
    again.submit(a_submission())
    told = [line for line in lines if line.startswith("config_rejected keeping=last_good problem=")]
    assert len(told) == 1 and str(site.path) in told[0]


def test_counters_that_cannot_be_written_are_told(made: Callable[..., Site]) -> None:
    site = made()
    (site.state / counters.FILE_NAME).unlink(missing_ok=True)
    (site.state / counters.FILE_NAME).mkdir()
    _, lines = another_engine(site)
    assert [line.split()[0] for line in lines] == ["counters_unavailable"]
    assert counters.FILE_NAME in lines[0]


# -- the start ----------------------------------------------------------------------------------------------------------


def started(site: Site, monkeypatch: pytest.MonkeyPatch) -> Module:
    """As C starts it: the plugin's name, the configuration's path, the cluster."""
    monkeypatch.setattr(embedded, "_engine", None)
    monkeypatch.setattr(embedded, "_make_engine", None)
    module = Module(site)
    texts = [module.ffi.new("char[]", word) for word in (b"jobcomp", str(site.path).encode(), b"c")]
    host = module.ffi.new("banking_host *")
    host.plugin, host.config_path, host.cluster = texts
    host.slurm_user_id = os.geteuid()
    reply = module.ffi.new("banking_reply *")
    site.lines.clear()
    module.entries["banking_py_start"](host, reply)
    assert reply.verdict == module.lib.BANKING_ACCEPTED
    return module


def test_a_start_says_with_what_it_is_ready_and_what_is_loaded(
    made: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = made()
    started(site, monkeypatch)
    modules, ready = site.lines[-2:]
    assert modules.startswith("modules ") and "slurm_banking.boundary.engine" in modules
    prices = site.engine.config().prices.version
    assert ready == (
        f"ready plugin=jobcomp mode=strict-allocation enforce=on prices={prices} state_dir={site.state}"
    )


def test_a_relay_that_cannot_be_started_is_a_line_and_the_start_goes_on(
    made: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = made()
    text = site.path.read_text()
    site.path.write_text(
        text.replace('start = "none"', f'start = "with-slurmctld"\ncommand = "{site.state}/none"')
    )
    started(site, monkeypatch)
    (line,) = [line for line in site.lines if "no such program" in line]
    assert line == (
        f"{site.path}: [Relay] command = '{site.state}/none': no such program; expected the path of slurm-banking"
    )
    site.path.write_text(
        text.replace('start = "none"', 'start = "with-slurmctld"\ncommand = "/bin/true"')
    )
    monkeypatch.setattr(starter, "_SCRIPT", "x" * 10_000_000)  # more than the kernel takes
    problem = starter.start_relay(load(str(site.path), in_slurmctld=True))
    assert problem == "relay not started: Argument list too long"


def test_an_exception_of_ours_is_told_with_its_place(
    made: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = made()
    monkeypatch.setattr(embedded, "_engine", site.engine)
    module = Module(site)
    reply = module.submit(partitions=module.ffi.NULL)
    assert reply.verdict == module.lib.BANKING_UNDECIDED
    assert site.lines[-1].startswith("plugin_error in=banking_py_submit where=")
    monkeypatch.setattr(embedded, "_engine", None)
