# SPDX-License-Identifier: BSD-3-Clause
"""Live tests: real daemons. A failure shows what slurmctld and the relay said of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig.banked import BankedCluster

_sites: list[BankedCluster] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    able = os.geteuid() == 0 and shutil.which("slurmctld") is not None
    for item in items:
        if "tests/live" not in str(item.path):
            continue
        item.add_marker(pytest.mark.live)
        if not able:
            item.add_marker(pytest.mark.skip(reason="needs root and Slurm's daemons (make setup)"))


@pytest.fixture(scope="module")
def site() -> Iterator[BankedCluster]:
    """A banked cluster that the tests of one module share."""
    with BankedCluster() as running:
        _sites.append(running)
        yield running
        _sites.remove(running)


@pytest.fixture
def make_site() -> Iterator[Any]:
    """Clusters of a test's own: ``make_site(**options)`` is started, ended with the test."""
    made: list[BankedCluster] = []

    def make(start: bool = True, **options: Any) -> BankedCluster:
        cluster = BankedCluster(**options)
        made.append(cluster)
        _sites.append(cluster)
        if start:
            cluster.start()
        return cluster

    yield make
    for cluster in made:
        _sites.remove(cluster)
        cluster.stop()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if not report.failed:
        return
    for cluster in list(_sites):
        try:
            lines = [
                line for line in cluster.log("slurmctld").splitlines() if "slurm_banking" in line
            ]
            report.sections.append(("slurm_banking in slurmctld.log", "\n".join(lines[-60:])))
            relay = (cluster.state_dir / "relay.log").read_text(errors="replace").splitlines()
            report.sections.append(("relay.log", "\n".join(relay[-60:])))
        except Exception as error:
            report.sections.append(("logs", f"none: {error!r}"))
