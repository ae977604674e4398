# SPDX-License-Identifier: BSD-3-Clause
"""The live tests here give the ledger a small disk of its own: a container that may not mount one skips them, and says so."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def may_mount(tmp_path_factory: pytest.TempPathFactory) -> bool:
    where: Path = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "slurm-banking-rig", str(where)],
        capture_output=True,
    )
    if mounted.returncode != 0:
        return False
    subprocess.run(["umount", str(where)], check=True, capture_output=True)
    return True


@pytest.fixture(autouse=True, scope="module")
def _a_disk_of_its_own(request: pytest.FixtureRequest) -> None:
    module = request.node
    if module.get_closest_marker("live") and not request.getfixturevalue("may_mount"):
        pytest.skip("needs to mount a file system")
