# SPDX-License-Identifier: BSD-3-Clause
"""The judge of the injuries says what is missing and what is too much; without daemons."""

from __future__ import annotations

import datetime
from typing import Any

from tests.reconcile.history import changes_of_clocks, instants
from tests.reconcile.injuries import Injury, judge

HURT = [
    Injury(name="row_moved", job_id=7, expects=frozenset({("wrong_holder", "bank", 7, "7")})),
    Injury(
        name="past_the_counters",
        job_id=8,
        expects=frozenset({("mischarged", "bank", 8, "8")}),
        allows=frozenset({("drift", "bank", 0, "fc_alpha")}),
    ),
]


def finding(kind: str, where: str, job_id: int | None, bank_job_id: str | None) -> dict[str, Any]:
    return {
        "kind": kind,
        "where": where,
        "job_id": job_id,
        "bank_job_id": bank_job_id,
        "account": "fc_alpha",
        "text": "a text",
    }


MOVED = finding("wrong_holder", "bank", 7, "7")
ALTERED = finding("mischarged", "bank", 8, "8")
DRIFT = finding("drift", "bank", None, None)


def judged(*findings: dict[str, Any]) -> list[str]:
    return judge(HURT, {"findings": list(findings)})


def test_all_injuries_named_and_nothing_else_is_right() -> None:
    assert judged(MOVED, ALTERED) == []


def test_what_an_injury_may_bring_with_it_is_right_once() -> None:
    assert judged(MOVED, ALTERED, DRIFT) == []
    (problem,) = judged(MOVED, ALTERED, DRIFT, DRIFT)
    assert "drift" in problem


def test_an_injury_that_is_not_found_is_told() -> None:
    (problem,) = judged(ALTERED)
    assert problem.startswith("row_moved: ") and problem.endswith("found nothing")


def test_an_injury_by_another_name_is_told_twice() -> None:
    wrong, too_much = judged(finding("mischarged", "bank", 7, "7"), ALTERED)
    assert "found [('mischarged', 'bank', 7, '7')]" in wrong
    assert too_much.startswith("row_moved: found 1 x ('mischarged', 'bank', 7, '7') too")


def test_a_finding_at_another_row_is_told() -> None:
    assert len(judged(finding("wrong_holder", "bank", 7, "7-123"), ALTERED)) == 2


def test_a_finding_of_no_injury_is_told() -> None:
    (problem,) = judged(MOVED, ALTERED, finding("missing", "ledger", 9, None))
    assert problem.startswith("no injury: ")


def test_the_last_changes_of_clocks_are_found_to_the_second() -> None:
    before = int(datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC).timestamp())

    def utc(*when: int) -> int:
        return int(datetime.datetime(*when, tzinfo=datetime.UTC).timestamp())  # type: ignore[misc,arg-type]

    assert changes_of_clocks("Europe/Berlin", before, 2) == [
        utc(2026, 10, 25, 1),
        utc(2026, 3, 29, 1),
    ]
    assert changes_of_clocks("America/New_York", before, 1) == [utc(2026, 11, 1, 6)]
    assert changes_of_clocks("UTC", before, 1) == []


def test_what_a_run_may_lie_over_is_past() -> None:
    now = int(datetime.datetime(2026, 11, 2, 12, tzinfo=datetime.UTC).timestamp())
    found = instants(now)
    assert set(found) == {"midnight", "month", "clocks"}
    assert all(now - 399 * 86400 < at < now - 3600 for some in found.values() for at in some)
