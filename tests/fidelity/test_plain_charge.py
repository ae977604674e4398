# SPDX-License-Identifier: BSD-3-Clause
"""The plain program that charges are held against: what it is trusted for is computed by hand here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.fidelity import plain_charge

PRICES = {
    "partitions": {
        "gpu": {"cpu": "1.5", "gpu:a100": "40", "gpu": "10", "mem_gb": "0.25"},
        "max": {"cpu": "1", "mem_gb": "0.5", "combine": "max"},
    },
    "qos": {"high": "2.5"},
    "state_factor": {"NODE_FAIL": "0", "CANCELLED_BY_ADMIN": "0"},
    "admin_uids": [0],
}


def row(**changes: str) -> dict[str, str]:
    values = dict.fromkeys(plain_charge.FIELDS, "")
    values |= {
        "JobIDRaw": "7",
        "JobID": "7",
        "Submit": "100",
        "Start": "200",
        "End": "3800",
        "UID": "1000",
    }
    values |= {"Partition": "gpu", "QOS": "normal", "State": "COMPLETED", "ElapsedRaw": "3600"}
    values |= {
        "Suspended": "00:00:00",
        "AllocTRES": "cpu=4,mem=8G,node=1,gres/gpu=3,gres/gpu:a100=2",
    }
    return values | changes


def charge(*rows: dict[str, str]) -> dict[tuple[int, int], int]:
    return plain_charge.charges(rows, PRICES)


def test_an_hour_is_the_sum_of_its_parts() -> None:
    assert charge(row()) == {(7, 100): 9800}, "4 x 1.5 + 8 x 0.25 + 2 x 40 + 10"


def test_the_dearest_part_counts_where_the_price_says_so() -> None:
    assert charge(row(Partition="max")) == {(7, 100): 400}
    assert charge(row(Partition="max", AllocTRES="cpu=1,mem=8192M")) == {(7, 100): 400}


def test_a_half_hundredth_is_rounded_up() -> None:
    assert charge(row(Partition="max", AllocTRES="cpu=1", ElapsedRaw="18")) == {(7, 100): 1}
    assert charge(row(Partition="max", AllocTRES="cpu=1", ElapsedRaw="17")) == {(7, 100): 0}


def test_qos_and_final_state_count() -> None:
    assert charge(row(QOS="high")) == {(7, 100): 24500}
    assert charge(row(State="NODE_FAIL")) == {(7, 100): 0}
    assert charge(row(State="CANCELLED by 0")) == {(7, 100): 0}
    assert charge(row(State="CANCELLED by 1000")) == {(7, 100): 9800}
    assert charge(row(State="CANCELLED by 0", UID="0")) == {(7, 100): 9800}, "root's own"


def test_what_never_started_or_goes_on_is_no_run() -> None:
    assert charge(row(Start="Unknown", AllocTRES="", State="CANCELLED by 0")) == {}
    assert charge(row(End="Unknown", State="RUNNING")) == {}


def test_the_parts_of_a_resized_run_add_up_whichever_start_slurmdbd_kept() -> None:
    first = row(Partition="max", State="RESIZING", AllocTRES="cpu=3", End="1100", ElapsedRaw="900")
    for start in ("200", "1100"):
        last = row(Partition="max", Submit="1100", Start=start, End="2000", AllocTRES="cpu=1")
        assert charge(first, last) == {(7, 100): 100}, "900 s of 3 CPUs and 900 s of one"


def test_a_requeued_job_has_a_run_for_each_submission() -> None:
    again = row(
        Submit="3801",
        Start="3900",
        End="4000",
        ElapsedRaw="100",
        Partition="max",
        AllocTRES="cpu=36",
    )
    assert charge(row(State="REQUEUED"), again) == {(7, 100): 9800, (7, 3801): 100}


def test_it_runs_on_its_own(tmp_path: Path) -> None:
    (tmp_path / "prices.json").write_text(json.dumps(PRICES))
    (tmp_path / "sacct.txt").write_text("|".join(row().values()) + "\n")
    done = subprocess.run(
        [sys.executable, "-I", plain_charge.__file__, "prices.json", "sacct.txt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == {"7 100": 9800}
