# SPDX-License-Identifier: BSD-3-Clause
"""``make faults`` in six minutes: a schedule of each class on a real cluster; and that deliberately broken builds are caught."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults import report
from tests.faults.__main__ import DEFAULT_SEED
from tests.faults.broken_builds import BROKEN
from tests.faults.schedule import Fault, Schedule, one_of_each_class

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("slurmctld") is None,
        reason="needs root and Slurm's daemons (make setup)",
    ),
]

SEED = int(os.environ.get("SEED", DEFAULT_SEED))

#: What each broken build does wrong, as the verdict calls it; and the fault it takes to see it.
CAUGHT_AS: dict[str, tuple[tuple[str, ...], tuple[Fault, ...]]] = {
    "skips_a_commit": (("lost", "open_liens"), ()),
    "no_idempotency": (
        ("doubled",),
        (Fault(at_s=1, kind="bank:lose_answer", seconds=10, share=0.4),),
    ),
    "no_void": (("open_liens",), ()),
    "no_confirmation": (("ended_wrongly",), ()),
}


def run(plan: report.Plan, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    begun = time.monotonic()
    status = report.run(plan, lambda line: print(f"[{time.monotonic() - begun:.0f} s] {line}"))
    said = capsys.readouterr().out
    return status, json.loads((plan.output / "faults.json").read_text()), said


@pytest.mark.timeout(600)
def test_nothing_is_lost_doubled_or_left_open_whatever_breaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = report.Plan(seed=SEED, schedules=list(one_of_each_class(SEED)), output=tmp_path)
    status, result, said = run(plan, capsys)
    assert status == 0, said
    assert result["schedules"] == len(plan.schedules) and result["jobs"] >= 300, said
    assert result["kills"] >= 1 and result["bank_faults"] >= 1, said
    assert not result["trouble"], said


@pytest.mark.parametrize("name", sorted(BROKEN))
@pytest.mark.timeout(150)
def test_a_broken_build_is_caught(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caught_as, faults = CAUGHT_AS[name]
    # The sweep ends nothing before slurmctld has been up for half a minute.
    seconds = 28 if name == "no_confirmation" else 13
    schedule = Schedule(seed=SEED, number=1, faults=faults, seconds=seconds)
    plan = report.Plan(
        seed=SEED, schedules=[schedule], output=tmp_path, broken=name, still_s=8, restore_s=12
    )
    status, result, said = run(plan, capsys)
    assert status == 1, said
    assert any(result[what] for what in caught_as), said
