# SPDX-License-Identifier: BSD-3-Clause
"""A slice of ``make fidelity`` of at most four minutes: fewer jobs, the same checks but for the counts."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from tests.fidelity import report
from tests.fidelity.__main__ import DEFAULT_SEED
from tests.fidelity.submissions import NAMES, draw

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("slurmctld") is None,
        reason="needs root and Slurm's daemons",
    ),
    pytest.mark.timeout(420),
]


def test_estimates_charges_and_funds_hold_against_slurm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    plan = report.Plan(
        seed=int(os.environ.get("SEED", DEFAULT_SEED)),
        names=NAMES,
        only=(),
        jobs=250,
        rounds=2,
        full=False,
        deadline_s=60,
        output=tmp_path,
        race_jobs=200,
        max_tres_jobs=20,
    )
    status = report.run(plan, lambda line: print(f"[{time.monotonic() - begun:.0f} s] {line}"))
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "fidelity.json").read_text())
    assert status == 0, said
    assert result["submissions"] >= 150 and result["runs"] >= 150, said
    assert result["charges_compared"] >= 150 and result["oracle"]["compared"] >= 50, said
    assert len(result["races"]) == 2, said
    assert all(cell["accepted"] for cell in result["features"].values()), said


def test_a_seed_draws_the_same_submissions_again() -> None:
    drawn = [draw(7, number) for number in range(200)]
    assert drawn == [draw(7, number) for number in range(200)]
    assert drawn != [draw(8, number) for number in range(200)]
    assert set[str]().union(*(one.features for one in drawn)) == set(NAMES)
