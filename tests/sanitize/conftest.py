# SPDX-License-Identifier: BSD-3-Clause
"""The plugins and their hostile host, as they are shipped and with the sanitizers; built once each, when first needed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.conftest import Built
from tests.sanitize.host import HERE, build_host


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if HERE in Path(item.path).parents:
                item.add_marker(
                    pytest.mark.skip(reason="needs root: import directories must be root's")
                )


def _built(*, sanitize: bool) -> Iterator[Built]:
    scratch = Path(tempfile.mkdtemp(prefix="slurm-banking-hostile-"))
    try:
        yield build_host(scratch, sanitize=sanitize)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="session")
def shipped() -> Iterator[Built]:
    yield from _built(sanitize=False)


@pytest.fixture(scope="session")
def sanitized() -> Iterator[Built]:
    yield from _built(sanitize=True)
