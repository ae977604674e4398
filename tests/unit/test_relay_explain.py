# SPDX-License-Identifier: BSD-3-Clause
"""Every amount of a job can be shown again as the sum that it came from, from a real ledger."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from slurm_banking import settle
from slurm_banking.cli.explain import explained
from slurm_banking.prices import PriceList, Rates
from slurm_banking.records import Segment
from slurm_banking.relay.answer import Peer
from slurm_banking.tres import parse_tres
from tests.unit.relay_parts import NOBODY, Relay, end_run, open_lien, run, start_run

START = 1_700_000_100
GPUS = "cpu=8,mem=32000M,node=1,gres/gpu=2,gres/gpu:a100=2"


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    path = tempfile.mkdtemp(prefix="sbr-")
    made = Relay(Path(path))
    yield made
    made.ledger.close()
    shutil.rmtree(path)
    monkeypatch.undo()
    time.tzset()


def use(relay: Relay, prices: PriceList, **policy: Any) -> None:
    relay.config = dataclasses.replace(
        relay.config.with_prices(prices),
        policy=dataclasses.replace(relay.config.policy, **policy),
    )
    time.sleep(0.01)
    with relay.ledger.transaction() as tx:
        settle.record_prices(tx, relay.config, int(time.time()))


def gpu_prices(**changes: Any) -> PriceList:
    rates = Rates(cpu=Decimal(1), gpu={"a100": Decimal(40)})
    values: Dict[str, Any] = dict(partitions={"main": rates}, qos_multiplier={"high": Decimal(2)})
    return PriceList(**{**values, **changes})


def fresh(relay: Relay, prices: PriceList, **policy: Any) -> None:
    """As if the ledger had begun with these prices."""
    with relay.ledger.transaction() as tx:
        tx._connection.execute("DELETE FROM price_lists")
    use(relay, prices, **policy)


def explain(relay: Relay, job: str = "40", uid: int = NOBODY) -> Dict[str, Any]:
    return relay.questions(Peer(pid=1, uid=uid, gid=uid), {"op": "explain", "job": job})


def text(relay: Relay, job: str = "40") -> List[str]:
    return explained(explain(relay, job, os.getuid()))


def a_gpu_run(**changes: Any) -> Any:
    values: Dict[str, Any] = dict(tres=parse_tres(GPUS), cpus=8, elapsed_s=5400, start=START)
    return run(40, **{**values, **changes})


def test_a_charge_is_shown_with_its_parts_its_price_list_and_its_lien(relay: Relay) -> None:
    fresh(relay, gpu_prices())
    started = a_gpu_run(state="RUNNING", qos="high")
    start_run(relay, started)
    end_run(relay, a_gpu_run(qos="high"))
    version = relay.config.prices.version
    assert text(relay) == [
        "Job 40 of nobody, account astro",
        "",
        "Run 40, started 2023-11-14T22:15:00, ended 2023-11-14T23:45:00, completed",
        "  set aside before: 352.00 SU",
        f"    estimate: {GPUS} in main for 02:00:00",
        "    an hour: (8 CPUs x 1 + 2 a100 GPUs x 40) x 2 for the QOS = 176 SU",
        "    176 SU x 02:00:00 = 352 SU, rounded up: 352.00 SU",
        f"    price list {version}",
        "  charged: 264.00 SU",
        f"    allocated: {GPUS} in main",
        "    an hour: (8 CPUs x 1 + 2 a100 GPUs x 40) x 2 for the QOS = 176 SU",
        "    176 SU x 01:30:00",
        "    = 264 SU, rounded half up: 264.00 SU",
        f"    price list {version}, in force from the ledger's beginning",
        "    Computed again from what the ledger stored: as charged.",
        "",
        "The whole story: slurm-banking why 40",
    ]


def test_the_dearest_part_is_shown_as_such(relay: Relay) -> None:
    rates = Rates(cpu=Decimal(1), mem_gb=Decimal("0.125"), combine="max")
    fresh(relay, PriceList(partitions={"main": rates}))
    end_run(relay, run(40, cpus=4, tres=parse_tres("cpu=4,mem=128000M,node=1"), start=START))
    assert "    an hour: the most of 4 CPUs x 1 = 4, 125 GB x 0.125 = 15.625 = 15.625 SU" in text(
        relay
    )
    assert "    = 15.625 SU, rounded half up: 15.63 SU" in text(relay)


def test_a_run_that_was_resized_is_shown_by_segments(relay: Relay) -> None:
    segments = (
        Segment(tres=parse_tres("cpu=8,node=2"), seconds=7200),
        Segment(tres=parse_tres("cpu=4,node=1"), seconds=3600),
    )
    end_run(relay, run(40, cpus=4, elapsed_s=10800, segments=segments, start=START))
    (shown,) = explain(relay)["runs"]
    assert [part["seconds"] for part in shown["charge"]["segments"]] == [7200, 3600]
    assert (shown["charge_csu"], shown["charge"]["agrees"]) == (2000, True)
    assert "    added, since it was resized" in text(relay)


def test_the_share_of_a_final_state_is_shown(relay: Relay) -> None:
    end_run(relay, run(40, state="NODE_FAIL", start=START))
    lines = text(relay)
    assert "    x 0 for node_fail" in lines
    assert "    = 0 SU, rounded half up: 0.00 SU" in lines


def test_a_share_that_was_set_aside_is_shown(relay: Relay) -> None:
    fresh(relay, gpu_prices(), lien_share=Decimal("0.5"))
    start_run(relay, a_gpu_run(state="RUNNING"))
    lines = text(relay)
    assert "  set aside: 88.00 SU" in lines
    assert "    of that a share of 0.5 is set aside: 88.00 SU" in lines


def test_prices_that_changed_are_shown_with_the_day_from_which_on(relay: Relay) -> None:
    end_run(relay, run(40, start=START))
    now = int(time.time())
    relay.config = dataclasses.replace(
        relay.config, dated_prices=((now - 7200, PriceList.of_cpus({"main": Decimal(3)})),)
    )
    with relay.ledger.transaction() as tx:
        settle.record_prices(tx, relay.config, now)
    end_run(relay, run(41, start=now - 3600, elapsed_s=60))
    (old,) = explain(relay, "40")["runs"]
    (new,) = explain(relay, "41")["runs"]
    assert (old["charge"]["in_force_since"], old["charge"]["rates"]) == (0, "1.0")
    assert (new["charge"]["in_force_since"], new["charge"]["rates"]) == (now - 7200, "3")
    relay.config = dataclasses.replace(
        relay.config,
        dated_prices=(
            *relay.config.dated_prices,
            (now, PriceList.of_cpus({"main": Decimal(4)})),
        ),
    )
    with relay.ledger.transaction() as tx:
        settle.record_prices(tx, relay.config, now)
    (new,) = explain(relay, "41")["runs"]
    assert new["charge"]["in_force_since"] == now - 7200, "though another list came after it"


def test_a_charge_that_was_made_otherwise_says_that_it_differs(relay: Relay) -> None:
    end_run(relay, run(40, start=START))
    with relay.ledger.transaction() as tx:
        tx.adopt_charge(tx.runs_by_job(40)[0], 390, actor="relay", reason="as the bank has it")
    (shown,) = explain(relay)["runs"]
    assert (shown["charge"]["recomputed_csu"], shown["charge"]["agrees"]) == (400, False)
    assert (
        "    Computed again from what the ledger stored: 4.00 SU. "
        "It was charged 3.90 SU (as the bank has it)." in text(relay)
    )


def test_a_waiting_job_is_shown_with_what_is_set_aside(relay: Relay) -> None:
    open_lien(relay, 40, tasks=3)
    (lien,) = explain(relay)["liens"]
    assert (lien["amount_csu"], lien["lien"]["per_task_csu"]) == (2400, 800)
    lines = text(relay)
    assert "40 waits: 24.00 SU set aside" in lines
    assert "    4 SU x 02:00:00 = 8 SU, rounded up: 8.00 SU" in lines
    assert "  8.00 SU x 3 tasks left" in lines


def test_what_an_amount_came_from_that_was_not_kept_is_said_to_be_missing(relay: Relay) -> None:
    with relay.ledger.transaction() as tx:
        tx.open_lien(
            account="astro", user_id=NOBODY, per_task_csu=5, tasks=1, origin="submit",
            inputs={"partition": "main"}, reason="x", actor="test", job_id=40, submit_time=1,
        )  # fmt: skip
    assert "    What it was counted from was not kept." in text(relay)


def test_sums_of_anothers_job_are_as_if_there_were_none(relay: Relay) -> None:
    end_run(relay, run(40, start=START))
    assert explain(relay, "40", uid=1)["error"] == explain(relay, "41", uid=1)["error"]
    relay.members.coordinators["daemon"] = {"astro"}
    assert explain(relay, "40", uid=1)["ok"]


def test_of_one_task_of_an_array_only_its_runs_are_shown(relay: Relay) -> None:
    for task, job_id in enumerate((51, 52)):
        end_run(relay, run(job_id, array_job_id=50, array_task_id=task, start=START))
    assert [shown["job"] for shown in explain(relay, "50")["runs"]] == ["50_0", "50_1"]
    assert [shown["job"] for shown in explain(relay, "50_1")["runs"]] == ["50_1"]
