# SPDX-License-Identifier: BSD-3-Clause
"""The short form of ``python -m tests.reconcile``: a smaller history, a few injuries of each kind, every source there is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.reconcile import history, injuries, show
from tests.reconcile.history import History
from tests.reconcile.injuries import Injury
from tests.reconcile.site import ReconcileSite

pytestmark = pytest.mark.timeout(600)

RUNS = 300
SEED = 5

#: Runs of slurmdbd's states that the history must have, or the comparison is worth less.
LEAST = {"COMPLETED": 100, "CANCELLED": 10, "FAILED": 20, "TIMEOUT": 1}


@pytest.fixture(scope="module")
def site() -> Iterator[ReconcileSite]:
    if shutil.which("slurmrestd") is None:
        pytest.skip("slurmrestd is not installed: of the three sources one would be missing")
    with ReconcileSite() as running:
        yield running


@pytest.fixture(scope="module")
def made(site: ReconcileSite) -> History:
    return history.make(site, RUNS)


@pytest.fixture(scope="module")
def shifted(site: ReconcileSite, made: History) -> History:
    site.rest_alone()
    history.shift(site, made, SEED)
    return made


@pytest.fixture(scope="module")
def hurt(site: ReconcileSite, shifted: History) -> list[Injury]:
    return injuries.injure(site, len(injuries.KINDS), SEED)


def test_a_history_of_every_kind_reconciles_clean_through_every_source(
    site: ReconcileSite, made: History
) -> None:
    assert made.runs >= RUNS
    assert {state: made.states.get(state, 0) >= least for state, least in LEAST.items()} == {
        state: True for state in LEAST
    }
    assert show.looks_clean(site, made) == []


def test_midnight_and_the_ends_of_months_and_clocks_that_change_change_nothing(
    site: ReconcileSite, shifted: History
) -> None:
    assert show.lies_there(site, 5) == []
    assert show.looks_clean(site, shifted, history.ZONES[:3]) == []


def test_each_kind_of_injury_is_found_and_named_and_nothing_else_is(
    site: ReconcileSite, hurt: list[Injury]
) -> None:
    assert len(hurt) >= 20
    assert show.named(site, hurt) == []


def test_what_was_found_is_repaired_once_and_then_nothing_is_found(
    site: ReconcileSite, hurt: list[Injury]
) -> None:
    assert show.fixed(site) == []
