# SPDX-License-Identifier: BSD-3-Clause
"""One line and an exit status for monitoring, from what ``status`` knows."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm_banking.cli import health, main
from slurm_banking.cli.health import CRITICAL, OK, OPTIONS, UNKNOWN, WARNING, Threshold, judge
from tests.unit.relay_parts import Relay, ask_as, run, start_run

NOW = 1_700_000_000

#: As the monitoring plugins' guidelines have it: STATE, words, a bar, and label=value[unit];warn;crit;min.
LINE = re.compile(
    r"(OK|WARNING|CRITICAL|UNKNOWN) - ([^|\n]+)(?: \| ((?:[a-z_]+=\d+s?;\d*;\d*;0 ?)+))?"
)

GOOD: dict[str, Any] = {
    "started": NOW - 5000,
    "ledger_complete": True,
    "bank_away_since": None,
    "outbox": 3,
    "outbox_oldest": NOW - 10,
    "outbox_oldest_due": NOW - 10,
    "parked": 0,
    "last_sweep": NOW - 2,
    "last_sacct": NOW - 50,
    "alarm_count": 0,
    "failing_count": 0,
    "config_rejected": False,
    "accounting_differs": 0,
    "accounting_differs_at": None,
}

DEFAULTS = {name: option.default for name, option in OPTIONS.items()}


def judged(differences: tuple[str, ...] = (), **changes: Any) -> health.Health:
    return judge({**GOOD, **changes}, DEFAULTS, NOW, differences)


def test_all_well_is_one_line_with_every_number() -> None:
    found = judged()
    match = LINE.fullmatch(found.line())
    assert match is not None and found.state == OK
    assert match[1] == "OK"
    assert match[2] == "the bank answers, 3 to deliver, last sweep 2 s ago"
    data = dict(part.split("=", 1) for part in match[3].split())
    assert set(data) == set(OPTIONS)
    assert data["bank_away"] == "0s;300;3600;0"
    assert data["outbox_oldest"] == "10s;3600;86400;0"
    assert data["outbox"] == "3;;;0"
    assert data["parked"] == "0;0;;0"


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        (dict(bank_away_since=NOW - 300), OK, ""),
        (dict(bank_away_since=NOW - 301), WARNING, "the bank has not answered for 301 s"),
        (dict(bank_away_since=NOW - 3600), WARNING, "the bank has not answered for 3600 s"),
        (dict(bank_away_since=NOW - 3601), CRITICAL, "the bank has not answered for 3601 s"),
        (dict(outbox_oldest_due=NOW - 3601), WARNING, "the oldest delivery waits for 3601 s"),
        (dict(outbox_oldest_due=NOW - 86401), CRITICAL, "the oldest delivery waits"),
        (dict(outbox_oldest=NOW - 10**6, outbox_oldest_due=None), OK, ""),
        (dict(parked=2), WARNING, "2 refused by the bank"),
        (dict(last_sweep=NOW - 121), WARNING, "no look at Slurm's queue for 121 s"),
        (dict(last_sweep=NOW - 601), CRITICAL, "no look at Slurm's queue for 601 s"),
        (dict(last_sweep=None), CRITICAL, "no look at Slurm's queue for 5000 s"),
        (dict(last_sweep=None, started=NOW - 5), OK, ""),
        (dict(last_sacct=NOW - 901), WARNING, "no look at slurmdbd for 901 s"),
        (dict(ledger_complete=False, started=NOW), WARNING, "not yet compared with Slurm's queue"),
        (dict(ledger_complete=False), CRITICAL, "not yet compared with Slurm's queue"),
        (dict(alarm_count=1), WARNING, "1 alarm"),
        (dict(alarm_count=2, alarms=["a | b", "c\nd"]), WARNING, "2 alarms: a / b; c d"),
        (
            dict(failing_count=1, failing={"sacct": "no"}),
            WARNING,
            "1 of the relay's steps fails: sacct: no",
        ),
        (dict(config_rejected=True), WARNING, "bank-config.toml has mistakes"),
        (
            dict(accounting_differs=2, accounting_differs_at=NOW - 60),
            WARNING,
            "slurmdbd tells 2 runs otherwise than charged",
        ),
        (dict(accounting_differs=2, accounting_differs_at=NOW - 90_000), OK, ""),
        (dict(parked=1, bank_away_since=0), CRITICAL, "; 1 refused by the bank"),
    ],
)
def test_each_thing_that_needs_somebody_is_told_and_nothing_else(
    changes: dict[str, Any], state: int, words: str
) -> None:
    found = judged(**changes)
    match = LINE.fullmatch(found.line())
    assert match is not None, found.line()
    assert (found.state, match[1]) == (state, health.STATES[state])
    assert words in match[2]
    assert (state == OK) == (not found.findings)


def test_another_version_or_configuration_is_a_warning() -> None:
    found = judged(("the relay runs version 1, this command is 2: restart the relay",))
    assert found.state == WARNING and "runs version 1" in found.line()


def test_the_worst_comes_first() -> None:
    found = judged(parked=1, alarm_count=1, last_sweep=0)
    assert [one.state for one in found.findings] == [CRITICAL, WARNING, WARNING]
    assert found.line().startswith("CRITICAL - no look at Slurm's queue")


def test_a_relay_of_an_older_version_is_judged_by_what_it_tells() -> None:
    told = {key: GOOD[key] for key in ("outbox", "parked", "ledger_complete")}
    found = judge(told, DEFAULTS, NOW)
    assert found.state == OK and "sweep_age" not in found.values


@pytest.mark.parametrize(("text", "warning", "critical"), [("1,2", 1, 2), (",9", None, 9), ("0,", 0, None), (",", None, None)])  # fmt: skip
def test_a_threshold_is_two_numbers_of_which_one_may_be_left_out(
    text: str, warning: int | None, critical: int | None
) -> None:
    assert health.read_threshold(text) == Threshold(warning, critical)


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "a,b", "-1,2", "5,4", "1.5,2", "٣,٤"])
def test_what_is_no_threshold_is_unknown_to_monitoring_and_not_critical(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["health", "--parked", text]) == UNKNOWN
    out = capsys.readouterr().out
    assert out.startswith("UNKNOWN - ") and "--parked" in out and out.count("\n") == 1


# From argv to exit status, against the relay's real socket.


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    for directory in (tmp_path, *tmp_path.parents):
        if directory != Path("/tmp") and directory.is_relative_to("/tmp"):
            directory.chmod(0o755)
    made = Relay(tmp_path)
    now = int(time.time())
    made.health.update(started=now, last_sweep=now, last_sacct=now)
    with made.ledger.transaction() as tx:
        tx.set_meta("complete", "1")
    with made.listening():
        yield made
    made.ledger.close()


def test_the_relays_answer_is_judged(relay: Relay, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--socket", relay.socket, "health"]) == OK
    assert LINE.fullmatch(capsys.readouterr().out.rstrip("\n"))
    with relay.ledger.transaction() as tx:
        tx.set_meta("complete", "0")
    assert main(["--socket", relay.socket, "health"]) == WARNING
    assert capsys.readouterr().out.startswith("WARNING - the ledger is not yet compared")
    relay.health["alarms"] = ["sweep: 40 jobs are gone"]
    assert main(["--socket", relay.socket, "health", "--json", "--alarms", ",0"]) == CRITICAL
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["status"]) == ("CRITICAL", 2)
    assert told["problems"][0] == {
        "check": "alarms",
        "state": "CRITICAL",
        "text": "1 alarm: sweep: 40 jobs are gone",
    }
    assert told["values"]["outbox"] == 0


def test_thresholds_are_options(relay: Relay, capsys: pytest.CaptureFixture[str]) -> None:
    start_run(relay, run(7, state="RUNNING"))
    assert main(["--socket", relay.socket, "health", "--outbox", "0,"]) == WARNING
    assert "1 to deliver" in capsys.readouterr().out
    relay.health["bank_away_since"] = int(time.time()) - 50
    assert main(["--socket", relay.socket, "health", "--bank-away-s", "10,40"]) == CRITICAL


def test_a_relay_that_does_not_answer_is_critical(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--socket", str(tmp_path / "relay.sock"), "health"]) == CRITICAL
    out = capsys.readouterr().out
    assert LINE.fullmatch(out.rstrip("\n")) and out.startswith("CRITICAL - relay ")


def test_a_configuration_that_cannot_be_read_is_unknown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--config", "/nowhere/bank-config.toml", "health"]) == UNKNOWN
    assert "/nowhere/bank-config.toml" in capsys.readouterr().out


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to be another user")
def test_monitoring_may_be_anybody_and_learns_that_there_is_something_but_not_what(
    relay: Relay,
) -> None:
    relay.health.update(
        alarms=["secret"],
        failing={"sacct": "secret"},
        config_problem="secret",
        accounting_differs=1,
    )
    told = ask_as(65534, relay.socket, {"op": "status"})
    assert "secret" not in json.dumps(told)
    found = judge(told, DEFAULTS, int(time.time()))
    assert {one.check for one in found.findings} == {"alarms", "failing", "config"}


def test_every_option_is_told_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--help"]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    for name, option in OPTIONS.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert f"(default: {option.default})" in shown
