# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking health``: what ``status`` knows, as one line and an exit status that monitoring understands.

The form is that of the monitoring plugins: ``STATE - words | performance data``, exit status 0 OK, 1 WARNING, 2 CRITICAL,
3 UNKNOWN. A threshold is exceeded by a value above it. Anybody may ask; what the alarms are, is told to operators.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, NoReturn, Optional, Sequence, Tuple

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3
STATES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")

#: Seconds that monitoring waits for the relay; below the 10 s after which it gives up itself.
ASK_S = 8.0

_WORST = {OK: 0, WARNING: 1, UNKNOWN: 2, CRITICAL: 3}


@dataclass(frozen=True)
class Threshold:
    """Above which a value is a warning, and critical; None: never."""

    warning: Optional[int]
    critical: Optional[int]

    def state(self, value: int) -> int:
        if self.critical is not None and value > self.critical:
            return CRITICAL
        if self.warning is not None and value > self.warning:
            return WARNING
        return OK

    def __str__(self) -> str:
        parts = ["" if part is None else str(part) for part in (self.warning, self.critical)]
        return ",".join(parts)


@dataclass(frozen=True)
class Option:
    """One value that is looked at, and its threshold's default."""

    default: Threshold
    unit: str  #: "s", or "" for a count
    help: str

    @property
    def text(self) -> str:
        return f"{self.help} (default: {self.default})"


OPTIONS: Mapping[str, Option] = {
    "bank_away": Option(Threshold(300, 3600), "s", "seconds that the bank has not answered"),
    "outbox_oldest": Option(
        Threshold(3600, 86400),
        "s",
        "seconds that the oldest delivery waits, but for those refused for good",
    ),
    "outbox": Option(Threshold(None, None), "", "deliveries that wait"),
    "parked": Option(Threshold(0, None), "", "deliveries that the bank refuses for good"),
    "sweep_age": Option(Threshold(120, 600), "s", "seconds since the last look at Slurm's queue"),
    "sacct_age": Option(Threshold(900, 14400), "s", "seconds since slurmdbd last answered"),
    "incomplete": Option(
        Threshold(0, 300),
        "s",
        "seconds that the relay runs and has not compared the ledger with Slurm",
    ),
    "alarms": Option(Threshold(0, None), "", "alarms; see: slurm-banking status"),
    "failing": Option(Threshold(0, None), "", "steps of the relay that fail"),
    "differs": Option(
        Threshold(0, None),
        "",
        "runs that slurmdbd told otherwise than charged, if the last was seen within a day",
    ),
}

#: A difference that was found longer ago was looked at, or never will be.
DIFFERS_S = 86400


def read_threshold(text: str) -> Threshold:
    """``WARN,CRIT``, each a whole number or nothing.

    :raises ValueError: it is not that.
    """
    parts = text.split(",")
    if len(parts) != 2 or any(
        part and not (part.isascii() and part.isdigit() and len(part) <= 12) for part in parts
    ):
        raise ValueError(
            f"{text!r}: expected WARN,CRIT: whole numbers, one of which may be left out"
        )
    warning, critical = (int(part) if part else None for part in parts)
    if warning is not None and critical is not None and warning > critical:
        raise ValueError(f"{text!r}: expected WARN not above CRIT")
    return Threshold(warning, critical)


@dataclass(frozen=True)
class Finding:
    check: str
    state: int
    text: str


@dataclass(frozen=True)
class Health:
    findings: Tuple[Finding, ...]  #: what is not OK, worst first
    good: Tuple[str, ...]  #: what to say if there is none
    values: Mapping[str, int]
    thresholds: Mapping[str, Threshold]

    @property
    def state(self) -> int:
        return self.findings[0].state if self.findings else OK

    def line(self) -> str:
        from slurm_banking.cli.render import plain_line

        words = "; ".join(found.text for found in self.findings) or ", ".join(self.good)
        # A bar would begin the performance data.
        line = f"{STATES[self.state]} - {plain_line(words).replace('|', '/')}"
        data = []
        for name, value in self.values.items():
            threshold = self.thresholds[name]
            limits = ";".join(
                "" if part is None else str(part)
                for part in (threshold.warning, threshold.critical, 0)
            )
            data.append(f"{name}={value}{OPTIONS[name].unit};{limits}")
        return f"{line} | {' '.join(data)}" if data else line

    def as_dict(self) -> Dict[str, Any]:
        return {
            "state": STATES[self.state],
            "status": self.state,
            "problems": [
                {"check": found.check, "state": STATES[found.state], "text": found.text}
                for found in self.findings
            ],
            "values": dict(self.values),
        }


def failed(text: str, state: int) -> Health:
    """There was no answer to judge by."""
    return Health(findings=(Finding("relay", state, text),), good=(), values={}, thresholds={})


def values_of(status: Mapping[str, Any], now: int) -> Dict[str, int]:
    """The numbers that thresholds are for; none for what is not known."""
    values: Dict[str, int] = {}

    def age(name: str, since: Optional[int]) -> None:
        if since is not None:
            values[name] = max(0, now - int(since))

    started = status.get("started")
    away = status.get("bank_away_since")
    age("bank_away", now if away is None else away)
    oldest = status.get("outbox_oldest_due")
    age("outbox_oldest", now if oldest is None else oldest)
    values["outbox"] = int(status["outbox"])
    values["parked"] = int(status["parked"])
    # What did not happen yet is as old as the relay.
    for name, key in (("sweep_age", "last_sweep"), ("sacct_age", "last_sacct")):
        age(name, started if status.get(key) is None else status[key])
    age("incomplete", now if status["ledger_complete"] else started)
    values["alarms"] = int(status.get("alarm_count", 0))
    values["failing"] = int(status.get("failing_count", 0))
    seen = status.get("accounting_differs_at")
    recent = seen is not None and now - int(seen) <= DIFFERS_S
    values["differs"] = int(status.get("accounting_differs", 0)) if recent else 0
    return values


def judge(
    status: Mapping[str, Any],
    thresholds: Mapping[str, Threshold],
    now: int,
    differences: Sequence[str] = (),
) -> Health:
    """``status``: the relay's answer; ``differences``: where it is not the one that was meant."""
    values = values_of(status, now)
    found: List[Finding] = []
    for name, value in values.items():
        state = thresholds[name].state(value)
        if name == "incomplete" and not status["ledger_complete"]:
            state = max(state, WARNING)  # even in the relay's first second
        if state != OK:
            found.append(Finding(name, state, _words(name, value, status)))
    if status.get("config_rejected"):
        found.append(
            Finding("config", WARNING, "bank-config.toml has mistakes, the last good one serves on")
        )
    found += [Finding("differs_from_command", WARNING, text) for text in differences]
    found.sort(key=lambda one: -_WORST[one.state])
    waiting = values["outbox"]
    good = [
        "the bank answers" if status.get("bank_away_since") is None else "the bank is away",
        f"{waiting} to deliver" if waiting else "nothing to deliver",
    ]
    if "sweep_age" in values:
        good.append(f"last sweep {values['sweep_age']} s ago")
    return Health(
        findings=tuple(found), good=tuple(good), values=values, thresholds=dict(thresholds)
    )


def _words(name: str, value: int, status: Mapping[str, Any]) -> str:
    told: Sequence[Any] = ()
    if name == "alarms":
        told = status.get("alarms") or ()
    elif name == "failing":
        told = [
            f"{step}: {problem}" for step, problem in sorted((status.get("failing") or {}).items())
        ]
    text = {
        "bank_away": f"the bank has not answered for {value} s",
        "outbox_oldest": f"the oldest delivery waits for {value} s",
        "outbox": f"{value} to deliver",
        "parked": f"{value} refused by the bank",
        "sweep_age": f"no look at Slurm's queue for {value} s",
        "sacct_age": f"no look at slurmdbd for {value} s",
        "incomplete": "the ledger is not yet compared with Slurm's queue",
        "alarms": f"{value} alarm{'' if value == 1 else 's'}",
        "failing": f"{value} of the relay's steps fail{'s' if value == 1 else ''}",
        "differs": f"slurmdbd tells {value} run{'' if value == 1 else 's'} otherwise than charged",
    }[name]
    return f"{text}: {'; '.join(str(one)[:200] for one in told[:3])}" if told else text


def add_options(parser: argparse.ArgumentParser) -> None:
    """One for each threshold; what cannot be parsed ends as UNKNOWN."""

    def threshold(text: str) -> Threshold:
        try:
            return read_threshold(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    for name, option in OPTIONS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}{'-s' if option.unit else ''}",
            dest=name,
            type=threshold,
            default=option.default,
            metavar="WARN,CRIT",
            help=option.text,
        )
    parser.error = usage_error  # type: ignore[method-assign]


def usage_error(message: str) -> NoReturn:
    """For argparse: monitoring takes its exit status 2 for CRITICAL."""
    print(f"UNKNOWN - {' '.join(message.split())}")
    raise SystemExit(UNKNOWN)
