# SPDX-License-Identifier: BSD-3-Clause
"""The steps of the proof, each of which says what is wrong in lines of text; none: it holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.reconcile import history, injuries
from tests.reconcile.history import History
from tests.reconcile.injuries import Injury
from tests.reconcile.site import SACCT, ReconcileSite
from tests.rig.cluster import RigError

Tell = Callable[[str], None]

#: Of a report what depends on when and in how many steps it was made.
_OF_THE_MOMENT = ("since", "until", "clean_until", "took_s", "windows")


def content(report: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in _OF_THE_MOMENT}


def looks_clean(
    site: ReconcileSite, history_: History, zones: Sequence[str] = ("UTC",)
) -> list[str]:
    """Through every source, and in every zone: nothing is found, and all reports are equal."""
    problems: list[str] = []
    first: dict[str, Any] | None = None
    looks = [(source, zones[0]) for source in site.sources()]
    looks += [(SACCT, zone) for zone in zones[1:]]
    for source, zone in looks:
        name = f"{source}, TZ={zone}"
        try:
            status, report = site.reconcile(source=source, zone=zone)
        except RigError as error:
            problems.append(f"{name}: {error}")
            continue
        problems += [
            f"{name}: {one['kind']} at the {one['where']}: {one['text']}"
            for one in report["findings"]
        ]
        if status != 0 and not report["findings"]:
            problems.append(f"{name}: status {status}")
        if not 0 <= history_.runs - report["runs"] <= history_.never_were:
            problems.append(
                f"{name}: {report['runs']} runs were compared, of {history_.runs} that slurmdbd has"
            )
        if first is None:
            first = content(report)
        elif content(report) != first:
            problems.append(f"{name}: another report than the first: {_differences(first, report)}")
    return problems


def _differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    there = content(other)
    return ", ".join(
        f"{key}: {str(first[key])[:300]} and {str(there.get(key))[:300]}"
        for key in first
        if first[key] != there.get(key)
    )


def lies_there(site: ReconcileSite, least: int) -> list[str]:
    """Whether the shifted history is where it is meant to be."""
    problems = []
    for name, at in history.instants(int(time.time())).items():
        count = history.lie_over(site, at)
        if count < least:
            problems.append(f"{count} runs lie over {name}: expected at least {least}")
    return problems


def named(site: ReconcileSite, hurt: Sequence[Injury]) -> list[str]:
    """Through every source: all injuries, named rightly, and nothing else."""
    problems = []
    for source in site.sources():
        try:
            status, report = site.reconcile(source=source)
        except RigError as error:
            problems.append(f"{source}: {error}")
            continue
        problems += [f"{source}: {line}" for line in injuries.judge(hurt, report)]
        if status != 1:
            problems.append(f"{source}: exit status {status}: expected 1")
    return problems


def fixed(site: ReconcileSite, tell: Tell = lambda line: None) -> list[str]:
    """``--fix`` with the relay, its deliveries, and then nothing is found any more, in books that add up."""
    problems = []
    _, dry = site.reconcile("--fix", "--dry-run", "--fix-unknown")
    _, again = site.reconcile()
    if content(again)["findings"] != content(dry)["findings"]:
        problems.append("--dry-run changed what is found")
    site.start_relay()
    status, report = site.reconcile("--fix", "--fix-unknown", "--reason", "the rig's injuries")
    problems += [
        f"--fix: {one['result']}: {one['text']}: {one['said']}"
        for one in report["repairs"]
        if one["result"] == "failed"
    ]
    tell(
        f"repairs: {report['done']} done, {report['skipped']} skipped, {report['failed']} failed, status {status}"
    )
    site.drained()
    status, report = site.reconcile()
    problems += [
        f"after --fix: {one['kind']} at the {one['where']}: {one['text']}"
        for one in report["findings"]
    ]
    if status != 0 and not report["findings"]:
        problems.append(f"after --fix: status {status}")
    before = site.ledger_rows("SELECT COUNT(*) AS n FROM entries")
    _, report = site.reconcile("--fix", "--fix-unknown", "--reason", "once more")
    if report["repairs"] or site.ledger_rows("SELECT COUNT(*) AS n FROM entries") != before:
        problems.append(f"--fix once more was not idle: {str(report['repairs'])[:500]}")
    problems += [f"after --fix: {line}" for line in site.check_books()]
    return problems
