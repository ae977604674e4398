# SPDX-License-Identifier: BSD-3-Clause
"""Real daemons; as root, with Slurm installed."""

from __future__ import annotations

import os
import shutil

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    able = os.geteuid() == 0 and shutil.which("slurmctld") is not None
    for item in items:
        if "tests/reconcile" not in str(item.path):
            continue
        item.add_marker(pytest.mark.live)
        if not able:
            item.add_marker(pytest.mark.skip(reason="needs root and Slurm's daemons (make setup)"))
