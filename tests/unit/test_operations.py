# SPDX-License-Identifier: BSD-3-Clause
"""What docs/operating.md promises beyond the tests of each part: alerts, limits, and what an administrator may rely on."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from slurm_banking import counters
from slurm_banking.boundary import starter
from slurm_banking.boundary.asker import Asker
from slurm_banking.boundary.engine import Engine
from slurm_banking.config import load
from slurm_banking.errors import RelayUnavailable, SlurmUnavailable
from slurm_banking.ledger import Ledger, health
from slurm_banking.records import JobUpdate, Outcome, Reason
from slurm_banking.relay import client, sweep
from slurm_banking.relay import service as service_module
from slurm_banking.relay.deliver import deliver_due
from slurm_banking.relay.rebuild import rebuild
from slurm_banking.slurm.squeue import QueueSnapshot
from tests.builders import SUBMITTED, a_run, a_submission, funds_of
from tests.unit.relay_parts import NOBODY, run
from tests.unit.test_engine import Site as EngineSite
from tests.unit.test_lines_of_the_relay import Inside, inside
from tests.unit.test_metrics import parse
from tests.unit.test_sweep import BOOT, Accounting, Site, a_job, an_ended

__all__ = ["inside"]  # a fixture

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operating.md"


def in_block(section: str) -> list[str]:
    text = PAGE.read_text().split(f"### {section}\n")[1].split("\n### ")[0]
    return re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[0].splitlines()


# -- alerts -------------------------------------------------------------------------------------------------------------

PREFIX = "slurm_banking_"


class Watched:
    """What Prometheus reads from the relay's own text; an alert is looked at before and after something happened."""

    def __init__(self, made: Inside) -> None:
        self.inside = made
        self.engine = Engine(
            config_path=str(made.directory / "bank-config.toml"), cluster="demo", slurm_user_id=os.geteuid(),
            log=lambda level, line: None, asker=Asker(os.geteuid(), ask_relay=self.nobody),
        )  # fmt: skip

    def nobody(self, *_: Any, **__: Any) -> Any:
        raise RelayUnavailable("nobody")

    def value(self, name: str, **labels: str) -> Decimal | None:
        """The sum over the samples with these labels; None: there is none."""
        self.engine.counters.write()
        metrics = self.inside.service.metrics
        metrics._kept_until = 0.0
        found = [
            value
            for family in parse(metrics.text()).values()
            for (sample, held), value in family.samples.items()
            if sample == PREFIX + name and set(labels.items()) <= set(held)
        ]
        return sum(found, Decimal(0)) if found else None


def undecided(watched: Watched) -> None:
    watched.engine.submit(a_submission(account="astro", job_user_id=NOBODY))


def bank_goes_away(watched: Watched) -> None:
    watched.inside.portal.faults = ["maintenance"] * 5
    with pytest.raises(Exception, match="503"):
        watched.inside.service._refresh_one("astro", NOBODY)


def alarm(watched: Watched) -> None:
    watched.inside.configure(**{"relay.sock": "other.sock"})
    watched.inside.look_again()
    watched.inside.service._keep()


def slow_hook(watched: Watched) -> None:
    for _ in range(100):
        watched.engine.counters.took("submit", 4_000)


def slurmdbd_differs(watched: Watched) -> None:
    service = watched.inside.service
    ended = run(7, start=int(time.time()) - 4000, elapsed_s=3600)
    sacct = Accounting()
    service._sacct = sacct  # type: ignore[assignment]
    with service.ledger.transaction() as tx:
        tx.set_meta("complete", "1")
        tx.set_meta("created", "0")
        tx.set_meta("sacct_watermark", str(int(time.time()) - 600))
        tx.end_run(ended, charge_csu=400, share_csu=400, inputs={"cpus": 4}, actor="test")
    sacct.rows = [replace(ended, elapsed_s=3000)]
    service._charge_unrecorded()


def no_counters(watched: Watched) -> None:
    os.unlink(Path(watched.inside.service.ledger.state_dir) / counters.FILE_NAME)
    watched.engine.counters.write = lambda: None  # type: ignore[method-assign]


#: Each alert of the page: what it looks at, when it is raised, and what raises it here.
ALERTS: dict[str, tuple[Callable[[Watched], Any], Callable[[Any, Any], bool], Callable[[Watched], None]]] = {
    'increase(slurm_banking_decisions_total{outcome="undecided"}[10m]) > 0': (
        lambda watched: watched.value("decisions_total", outcome="undecided"), lambda before, now: now > before, undecided,
    ),
    "slurm_banking_bank_away == 1": (
        lambda watched: watched.value("bank_away"), lambda before, now: (before, now) == (0, 1), bank_goes_away,
    ),
    "slurm_banking_ledger_complete == 0": (
        lambda watched: watched.value("ledger_complete"), lambda before, now: now == 0, lambda watched: None,
    ),
    "slurm_banking_alarms > 0": (
        lambda watched: watched.value("alarms"), lambda before, now: before == 0 < now, alarm,
    ),
    'histogram_quantile(0.99, rate(slurm_banking_hook_seconds_bucket{hook="submit"}[15m])) > 0.003': (
        lambda watched: [
            watched.value("hook_seconds_bucket", hook="submit", le=le) for le in ("0.003", "+Inf")
        ],
        lambda before, now: now[1] - before[1] == 100 and None is not now[0] == before[0],
        slow_hook,
    ),
    "increase(slurm_banking_accounting_differs_total[1d]) > 0": (
        lambda watched: watched.value("accounting_differs_total"), lambda before, now: now > before, slurmdbd_differs,
    ),
    "slurm_banking_counters_readable == 0": (
        lambda watched: watched.value("counters_readable"), lambda before, now: (before, now) == (1, 0), no_counters,
    ),
}  # fmt: skip

#: Raised by a value that stands still, or is not there: tests of their own, below.
OTHERS = {
    "time() - slurm_banking_last_sweep_timestamp_seconds > 120",
    "absent(slurm_banking_build_info)",
}


def test_each_alert_of_the_page_has_its_test() -> None:
    assert set(in_block("Monitoring")) == set(ALERTS) | OTHERS


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_is_raised_by_what_it_is_for(inside: Inside, alert: str) -> None:
    looks_at, raised, happens = ALERTS[alert]
    watched = Watched(inside)
    before = looks_at(watched)
    happens(watched)
    assert raised(before, looks_at(watched)), alert


def test_the_time_of_the_last_sweep_stands_still_while_slurm_cannot_be_asked(
    inside: Inside,
) -> None:
    watched = Watched(inside)
    inside.service._queue()
    first = watched.value("last_sweep_timestamp_seconds")
    assert first is not None and time.time() - float(first) < 60
    inside.slurm('{"down": true}')
    inside.service._force.set()
    with pytest.raises(SlurmUnavailable):
        inside.service._queue()
    assert watched.value("last_sweep_timestamp_seconds") == first
    assert watched.value("build_info") == 1, "of a relay that runs it is there"


# -- while something is away --------------------------------------------------------------------------------------------


def status(made: Inside) -> dict[str, Any]:
    path = str(made.directory / "run" / "relay.sock")
    return client.ask(path, {"op": "status"}, 5, allowed_owner_uids=(os.geteuid(),))


def test_while_the_bank_is_away_charges_wait_and_status_says_how_many_and_since_when(
    inside: Inside,
) -> None:
    service = inside.service
    assert not status(inside)["ledger_complete"]
    service._queue()
    assert status(inside)["ledger_complete"]
    began = int(time.time())
    with service.ledger.transaction() as tx:
        tx.end_run(
            run(7, start=began - 100), charge_csu=400, share_csu=400, inputs={}, actor="test"
        )
    inside.portal.faults = ["maintenance"] * 20
    service._deliver()
    told = status(inside)
    assert told["outbox"] == 1 and began <= told["outbox_oldest"] <= time.time()
    assert began <= told["bank_away_since"] <= time.time()
    with service.ledger.transaction(write=False) as tx:
        assert tx.runs_by_job(7)[0].charge_csu == 400
    inside.portal.faults = []
    later = time.time() + service.config().relay.deliver_retry_max_s
    deliver_due(service.ledger, service.bank.parts().bank, service.book, service.config(), later)
    told = status(inside)
    assert (told["outbox"], told["bank_away_since"]) == (0, None)


def ancestors(pid: int) -> list[int]:
    found: list[int] = []
    while pid > 1:
        (pid,) = map(
            int, re.findall(r"^PPid:\t(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
        )
        found.append(pid)
    return found


def test_a_start_of_slurmctld_starts_the_relay_and_leaves_no_child(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    site = EngineSite(tmp_path)
    program = tmp_path / "slurm-banking"
    asked = tmp_path / "asked"
    program.write_text(
        f'#!/bin/sh\necho $$ "$@" > {asked}.new; mv {asked}.new {asked}; exec sleep 20\n'
    )
    program.chmod(0o755)
    site.path.write_text(
        site.path.read_text().replace(
            'start = "none"', f'start = "with-slurmctld"\ncommand = "{program}"'
        )  # fmt: skip
    )
    assert starter.start_relay(load(str(site.path), in_slurmctld=True)) is None
    until = time.monotonic() + 20
    while not asked.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    pid, _, arguments = asked.read_text().partition(" ")
    try:
        assert arguments == f"--config {site.path} relay\n"
        assert os.getpid() not in ancestors(int(pid))
    finally:
        os.kill(int(pid), signal.SIGKILL)


# -- the ledger ---------------------------------------------------------------------------------------------------------


def test_a_ledger_made_anew_has_no_exceptions_and_no_older_entries(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    site = EngineSite(tmp_path)
    site.give(10)
    with site.ledger.transaction() as tx:
        tx.allow(user_id=1001, job_id=None, until=2**40, reason="deadline", actor="root")
    assert site.engine.submit(a_submission()).reason is Reason.ALLOWED
    for name in os.listdir(site.state):
        if name.startswith("ledger."):
            os.unlink(site.state / name)
    verdict = site.engine.submit(a_submission())
    assert (verdict.outcome, verdict.reason) == (Outcome.UNDECIDED, Reason.LEDGER_UNAVAILABLE)
    site.give(10)  # as the relay does, when it has rebuilt it
    assert site.engine.submit(a_submission()).reason is Reason.INSUFFICIENT_FUNDS
    with site.ledger.transaction() as tx:
        assert not tx.exceptions(int(time.time()))


@pytest.mark.parametrize("known_until", [None, 0])
def test_a_rebuild_reads_slurmdbd_as_far_back_as_is_configured(
    tmp_path: Path, known_until: int | None
) -> None:
    """Of a new ledger from when it was made, of one that was whole before from now."""
    site = Site(tmp_path)
    with site.ledger.transaction() as tx:
        tx.set_meta("complete", "0")
        if known_until is not None:
            tx.set_meta("sacct_watermark", str(site.created + 6 * 86400))
    site.now = site.created + 6 * 86400
    snapshot = QueueSnapshot(cluster="c", jobs=(), taken_at=site.now, boot_time=BOOT, complete=True)
    rebuild(site.ledger, site.config, snapshot, site.sacct, None, site.now)
    first = min(since for since, _ in site.sacct.asked)
    since = site.created - sweep.WINDOW_OVERLAP_S if known_until is None else site.now
    assert first == since - site.config.relay.sacct_lookback_h * 3600


def test_the_look_at_the_start_and_how_often_a_file_is_moved_aside_are_as_the_page_says() -> None:
    page = PAGE.read_text()
    assert f"at most {_word(health.START_CHECK_S)} seconds long" in page
    assert (health.FLAPPING, health.FLAPPING_S) == (3, 3600)
    assert "After three times within an hour" in page


def _word(number: float) -> str:
    return {10.0: "ten"}[number]


def test_the_state_directory_holds_little_and_its_log_is_bounded_without_a_relay(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o755)
    site = EngineSite(tmp_path)
    with site.ledger.transaction() as tx:
        for user_id in (None, 1001):
            tx.put_funds(funds_of("fc_alpha", 10**9, user_id=user_id, read_at=int(time.time())))
        tx.set_meta("complete", "1")
    connection = site.ledger._connection
    assert connection is not None
    (pages,) = connection.execute("PRAGMA wal_autocheckpoint").fetchone()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    assert pages * page_bytes == 64 * 1024 * 1024
    site.ledger.checkpoint()
    before = os.stat(site.ledger.path).st_size
    for job_id in range(1, 201):
        token = site.engine.submit(a_submission(time_limit_min=1)).token
        site.engine.run_ended(a_run(job_id=job_id, admin_comment=token))
    site.ledger.checkpoint()
    a_job_bytes = (os.stat(site.ledger.path).st_size - before) / 200
    assert 0 < a_job_bytes < 8192


def test_a_damaged_file_that_was_taken_away_is_no_alarm_any_more(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    ledger = Ledger(str(tmp_path / "state"), "c", check_directory=False)
    with ledger.transaction() as tx:
        tx.set_meta("x", "kept")
    ledger.close()
    kept = health.move_aside(str(tmp_path / "state"), "c", "damaged")
    again = Ledger(str(tmp_path / "state"), "c", check_directory=False)
    (told,) = health.Guard(again).alarms()
    assert kept in told
    with sqlite3.connect(f"file:{kept}?mode=ro", uri=True) as connection:  # as sqlite3 -readonly
        assert connection.execute("SELECT value FROM meta WHERE key = 'x'").fetchone() == ("kept",)
    for name in os.listdir(tmp_path / "state"):
        if health.BROKEN in name:
            os.rename(tmp_path / "state" / name, tmp_path / name)
    assert not health.Guard(again).alarms()
    again.close()


# -- the sweep and exceptions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kept", "stopped"), [(398, True), (399, False)])
def test_more_than_twenty_liens_are_stopped_at_only_if_they_are_more_than_five_percent(
    tmp_path: Path, kept: int, stopped: bool
) -> None:
    site = Site(tmp_path)
    gone = [a_job(site.submit(1), job_id=1000 + n) for n in range(21)]
    stay = [a_job(site.submit(1), job_id=2000 + n) for n in range(kept)]
    site.see(*gone, *stay)
    site.see(*stay, after_s=40)
    report = site.see(*stay)
    assert (report.alarm is not None) is stopped
    assert report.voided == (0 if stopped else 21)


def test_an_exception_for_a_job_lets_its_updates_pass_until_then_and_no_submission(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o755)
    site = EngineSite(tmp_path)
    site.give(100)
    update = JobUpdate(job_id=7, submit_time=SUBMITTED, wanted=a_submission(time_limit_min=6000))
    assert site.engine.update(update).outcome is Outcome.REFUSED
    now = int(time.time())
    with site.ledger.transaction() as tx:
        tx.allow(user_id=1001, job_id=None, until=now - 1, reason="it was", actor="root")
        tx.allow(user_id=None, job_id=7, until=now + 60, reason="node failure", actor="root")
    assert site.engine.submit(a_submission(time_limit_min=6000)).outcome is Outcome.REFUSED
    assert site.engine.update(update).reason is Reason.ALLOWED
    other = replace(update, job_id=8)
    assert site.engine.update(other).outcome is Outcome.REFUSED


def test_a_token_is_looked_at_again_within_half_a_minute() -> None:
    assert service_module._TOKEN_LOOK_S == 30.0
    assert "within half a minute" in PAGE.read_text()


def test_an_end_of_before_the_plugins_were_taken_out_and_after_is_charged_all_the_same(
    tmp_path: Path,
) -> None:
    """Slurm told nobody: slurmdbd alone has them."""
    site = Site(tmp_path)
    site.now = 2_000_000_700
    site.sacct.rows = [an_ended(a_job()), an_ended(a_job(job_id=8))]
    assert site.window().charged == 2
    site.now += 3600
    late = an_ended(a_job(job_id=9), end_time=2_000_003_000, start_time=2_000_002_400)
    site.sacct.rows.append(late)
    assert site.window().charged == 1
    assert [entry.charge_csu for entry in site.runs()] == [1000, 1000, 1000]
