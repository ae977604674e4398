# SPDX-License-Identifier: BSD-3-Clause
"""Commands that are run in this process change it, and the next test is not to notice."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _process_stays_as_it_was() -> Iterator[None]:
    directory = os.getcwd()
    umask = os.umask(0o022)
    os.umask(umask)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    yield
    os.chdir(directory)
    os.umask(umask)
    if os.getpriority(os.PRIO_PROCESS, 0) != nice and os.geteuid() == 0:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
