# SPDX-License-Identifier: BSD-3-Clause
"""Ways in which money could go wrong around prices, factors, shares and resizes: each was tried."""

from __future__ import annotations

import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from slurm_banking import settle
from slurm_banking.config import load
from slurm_banking.prices import PriceList
from slurm_banking.records import FundsKind, NodeShape, Outcome, Run, Segment
from slurm_banking.slurm.sacct import Sacct
from slurm_banking.slurm.squeue import _tres as squeue_tres
from slurm_banking.tres import Tres
from tests.builders import a_partition, a_run, a_submission, funds_of
from tests.unit import test_sweep as sweeping
from tests.unit.test_engine import Site
from tests.unit.test_slurm_sacct import Recorded

LARGEST_IN_SQLITE = 2**63 - 1


@pytest.fixture
def site(tmp_path: Path) -> Site:
    tmp_path.chmod(0o755)
    made = Site(tmp_path)
    made.give(1_000)
    return made


def test_an_absurdly_dear_job_of_an_account_without_limit_is_no_error_of_the_plugin(
    site: Site,
) -> None:
    now = int(time.time())
    with site.ledger.transaction() as tx:
        for user_id in (None, 1001):
            unlimited = dict(kind=FundsKind.UNLIMITED, limit_csu=None, remaining_csu=None)
            tx.put_funds(funds_of("fc_alpha", 0, user_id=user_id, read_at=now, **unlimited))
    forever = a_partition(
        max_time_min=-1, shapes=(NodeShape(count=64, cpus=128, cores=128, memory_mb=16000),)
    )
    for _ in range(3):
        verdict = site.engine.submit(
            a_submission(
                partitions=(forever,),
                time_limit_min=2**32 - 3,
                min_cpus=4096,
                array_inx="0-4000000",
            )
        )
        assert verdict.outcome is Outcome.ACCEPTED
    with site.ledger.transaction() as tx:
        assert tx.check() == []
        assert tx.funds_view("fc_alpha", 1001).account_exposure_csu < LARGEST_IN_SQLITE


# -- resized runs as slurmdbd has them ------------------------------------------------------------------------------------


def slurmdbd(*rows: str) -> Sacct:
    """Rows of "state submit start end elapsed tres nodes", as Slurm 22.05.8 was seen to keep them."""
    text = ""
    for row in rows:
        state, submit, start, end, elapsed, tres, nodes = row.split()
        cpus = tres.partition("cpu=")[2].partition(",")[0] or "0"
        count = "0" if nodes == "None" else "2" if "-" in nodes else "1"
        cells = [
            "4",
            "4",
            "1001",
            "alice",
            "fc_alpha",
            "main",
            "normal",
            state,
            submit,
            start,
            end,
            elapsed,
        ]
        cells += [cpus, count, "" if tres == "-" else tres, nodes, "60", ""]
        text += "".join(f"{cell}~s~" for cell in cells) + "\n"
    return Sacct("c", run=Recorded(text=text))


GROWN = (
    "RESIZING 1000 1001 1017 16 billing=1,cpu=1,mem=500M,node=1 n1",
    "CANCELLED 1017 1017 1020 3 billing=2,cpu=2,mem=1000M,node=2 n[1-2]",
)
GIVEN_AWAY = (
    "RESIZING 1009 1009 1017 8 billing=1,cpu=1,mem=500M,node=1 n2",
    "COMPLETED 1017 1017 Unknown 21 - None",
)


def test_a_grown_run_is_one_run_though_slurmdbd_starts_it_anew() -> None:
    (run,) = slurmdbd(*GROWN).read_jobs([4])[4]
    assert (run.submit_time, run.start_time, run.end_time, run.elapsed_s) == (1000, 1001, 1020, 19)
    assert [(part.tres.cpus, part.seconds) for part in run.segments] == [(1, 16), (2, 3)]


def test_a_run_resized_twice_counts_each_second_once_whichever_start_its_rows_have() -> None:
    for start, elapsed in (("1001", "19"), ("1011", "9")):
        rows = (
            "RESIZING 1000 1001 1005 4 cpu=1,node=1 n1",
            "RESIZING 1005 1005 1011 6 cpu=2,node=2 n[1-2]",
            f"COMPLETED 1011 {start} 1020 {elapsed} cpu=4,node=2 n[1-2]",
        )
        (run,) = slurmdbd(*rows).read_jobs([4])[4]
        assert [(part.tres.cpus, part.seconds) for part in run.segments] == [(1, 4), (2, 6), (4, 9)]
        assert (run.elapsed_s, run.submit_time) == (19, 1000)


def test_a_job_that_gave_all_its_nodes_to_another_ended_then() -> None:
    (run,) = slurmdbd(*GIVEN_AWAY).read_jobs([4])[4]
    assert (run.submit_time, run.start_time, run.end_time) == (1009, 1009, 1017)
    assert (run.state, run.elapsed_s, run.started, run.resizing) == ("COMPLETED", 8, True, False)
    assert str(run.tres) == "cpu=1,mem=500M,node=1,billing=1"


@pytest.mark.parametrize("restarts", [-1, 0])
def test_the_last_part_of_a_grown_run_is_not_charged_as_a_run_of_its_own(
    tmp_path: Path, restarts: int
) -> None:
    relay = sweeping.Site(tmp_path)
    told = replace(
        a_run(), submit_time=relay.created + 10, start_time=relay.created + 11, cpus=2,
        end_time=relay.created + 30, elapsed_s=19, source="sacct",
        segments=(Segment(tres=Tres(cpus=1), seconds=16), Segment(tres=Tres(cpus=2), seconds=3)),
    )  # fmt: skip
    resized = relay.created + 27
    part = replace(
        told, submit_time=resized, start_time=resized, elapsed_s=3, segments=(), restart_count=restarts
    )  # fmt: skip

    class Slurmdbd(sweeping.Accounting):
        def read_ended_runs(self, since: int, until: int) -> tuple[Run, ...]:
            return (part,) if since <= relay.created + 30 < until else ()

    relay.sacct = Slurmdbd()
    relay.sacct.rows = [told]
    relay.now = relay.created + 60
    relay.window()
    relay.now += 60
    relay.window()
    with relay.ledger.transaction() as tx:
        (run,) = tx.runs_by_job(told.job_id)
        assert run.submit_time == told.submit_time
        assert run.charge_csu == round((16 + 2 * 3) * 6000 / 3600)
        assert tx.check() == []


# -- what Slurm rounds, and does not tell ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "memory_mb", [1048576 + 1, 1499465, 1531000, 1536163, 3 * 1048576 - 1, 2**31]
)
def test_no_less_memory_is_set_aside_for_than_squeue_rounded(memory_mb: int) -> None:
    amount, unit = (memory_mb / 2**20, "T") if memory_mb < 2**30 else (memory_mb / 2**30, "P")
    text = f"{amount:.2f}".rstrip("0").rstrip(".") if amount == int(amount) else f"{amount:.2f}"
    shown = squeue_tres(f"cpu=4,mem={text}{unit},node=1,billing=4")
    assert memory_mb <= shown.memory_mb <= memory_mb + 0.0101 * 2**20 * (1024 if unit == "P" else 1)
    assert (shown.cpus, shown.nodes, shown.billing) == (4, 1, 4)


@pytest.mark.parametrize(
    ("gpu", "warned"), [("gpu = 10", True), ("gpu = 40", False), ("gpu = 50", False), ("", False)]
)
def test_a_price_that_lets_users_have_a_dear_gpu_cheaply_is_warned_of(
    tmp_path: Path, gpu: str, warned: bool
) -> None:
    path = tmp_path / "bank-config.toml"
    path.write_text(
        f'[PartitionPrice.mixed]\n{gpu}\n"gpu:a100" = 40\n"gpu:t4" = 10\n'
        '[API]\nurl = "http://127.0.0.1:1/api"\n[Policy]\nmode = "strict-allocation"\n'
    )
    path.chmod(0o600)
    told = [
        line for line in load(str(path), in_slurmctld=True).warnings if "gpu costs less" in line
    ]
    assert bool(told) == warned


@pytest.mark.parametrize(("noted", "charge_csu"), [(True, 110), (False, 400)])
def test_slurmdbd_is_asked_about_a_resized_run_only_for_parts_that_were_missed(
    tmp_path: Path, noted: bool, charge_csu: int
) -> None:
    """Slurm 22.05 writes the end of the next run into the row of one that was requeued after a resize."""
    relay = sweeping.Site(tmp_path)
    start = relay.created + 10
    whole = (Segment(tres=Tres(cpus=2), seconds=4), Segment(tres=Tres(cpus=1), seconds=3))
    wrong = (Segment(tres=Tres(cpus=2), seconds=4), Segment(tres=Tres(cpus=2), seconds=16))
    values: dict[str, Any] = dict(submit_time=start, start_time=start, cpus=1)
    ended = a_run(
        **values, end_time=start + 7, elapsed_s=7, state="REQUEUED", segments=whole if noted else ()
    )
    with relay.ledger.transaction() as tx:
        price = relay.config.with_prices(PriceList.of_cpus({"main": Decimal(360)}))
        relay.config = price
        settle.end_run(tx, ended, price, actor="slurmctld")
    told = a_run(**values, end_time=start + 20, elapsed_s=20, segments=wrong, source="sacct")
    relay.sacct.rows = [told]
    relay.now = start + 60
    relay.window()
    with relay.ledger.transaction() as tx:
        (run,) = tx.runs_by_job(told.job_id)
        assert run.charge_csu == charge_csu
