# SPDX-License-Identifier: BSD-3-Clause
"""The bench's own slurmctld, which is the fake one with a clock around the shims: it is built, and measures something."""

from __future__ import annotations

import os

import pytest

from tests.bench.controller import Controller, installed


@pytest.mark.skipif(
    os.geteuid() != 0, reason="the plugins accept import directories of root's only"
)
def test_the_benchs_slurmctld_times_submissions_and_ends() -> None:
    with installed(lambda _: None) as host, Controller(host, "few") as controller:
        controller.load("job_submit", "jobcomp")
        assert len(controller.submits(3)) == 3
        controller.ran_for_a_minute()
        assert all(took_ms > 0 for took_ms in controller.ends(3, 1))
