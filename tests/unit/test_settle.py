# SPDX-License-Identifier: BSD-3-Clause
"""Starts, ends and price lists on a real ledger: what a run is charged, by which prices, and where its lien goes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_banking import charge as charging
from slurm_banking import settle
from slurm_banking.config import Config, load
from slurm_banking.estimate import estimate_queued
from slurm_banking.ledger import Ledger, Transaction
from slurm_banking.prices import PriceList, Rates
from slurm_banking.records import QueuedJob, Run
from slurm_banking.tres import Tres, parse_tres
from tests.builders import SUBMITTED, a_run, funds_of
from tests.prices import FACTORS, MULTIPLIERS, RATES, STATES, TRES

CONFIG = """
[PartitionPrice]
main = 1
[PartitionPrice.gpu]
cpu = 1
mem_gb = 0.5
"gpu:a100" = 40
[StateFactor]
TIMEOUT = 0.5
[API]
url = "http://127.0.0.1:1/api"
[Policy]
mode = "strict-allocation"
"""

#: Times in the tests of dated prices.
T1, T2, T3 = SUBMITTED + 1_000, SUBMITTED + 2_000, SUBMITTED + 3_000


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "bank-config.toml"
    path.write_text(CONFIG)
    return load(str(path), in_slurmctld=False)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(str(tmp_path), "c", check_directory=False)
    with made.transaction() as tx:
        tx.set_meta("created", str(SUBMITTED - 1_000))
        for user_id in (None, 1001):
            tx.put_funds(funds_of("fc_alpha", 100_000, user_id=user_id))
    return made


def main_at(su: str) -> PriceList:
    return PriceList.of_cpus({"main": Decimal(su)})


def dated(config: Config, *lists: tuple[int, PriceList]) -> Config:
    return replace(config, dated_prices=lists)


def available(tx: Transaction) -> int:
    found = tx.funds_view("fc_alpha", 1001).available_csu
    assert found is not None and tx.check() == []
    return found


def set_aside(tx: Transaction, csu: int = 300, **changes: Any) -> str:
    values: dict[str, Any] = dict(
        account="fc_alpha", user_id=1001, per_task_csu=csu, tasks=1, origin="submit", inputs={"cpus": 3}, reason="fits",
        actor="test", job_id=7, submit_time=SUBMITTED, confirmed=True,
    )  # fmt: skip
    return tx.open_lien(**{**values, **changes})


def end(tx: Transaction, config: Config, **changes: Any) -> Any:
    return settle.end_run(tx, a_run(**changes), config, actor="test")


def in_force(tx: Transaction, at: int) -> str | None:
    found = tx.prices_at(at)
    return None if found is None else found[1]["PartitionPrice"]["main"]


# -- price lists --------------------------------------------------------------------------------------------------------


def test_the_first_list_of_a_ledger_speaks_for_all_time_before_it(
    ledger: Ledger, config: Config
) -> None:
    with ledger.transaction() as tx:
        assert settle.record_prices(tx, config, T1)
        assert not settle.record_prices(tx, config, T2)
        assert in_force(tx, 1) == in_force(tx, T3) == "1"


def test_a_list_without_a_date_is_in_force_from_when_it_was_noticed(
    ledger: Ledger, config: Config
) -> None:
    with ledger.transaction() as tx:
        settle.record_prices(tx, config, T1)
        assert settle.record_prices(tx, replace(config, prices=main_at("2")), T2)
        assert (in_force(tx, T2 - 1), in_force(tx, T2)) == ("1", "2")


def test_a_dated_list_is_in_force_from_its_date_though_it_was_noticed_later(
    ledger: Ledger, config: Config
) -> None:
    config = dated(config, (T2, main_at("2")))
    with ledger.transaction() as tx:
        assert settle.record_prices(tx, config, T1)
        assert not settle.record_prices(tx, config, T2 - 1)
        assert in_force(tx, T2) == "1", "not yet"
        assert settle.record_prices(tx, config, T2 + 500)
        assert (in_force(tx, T2 - 1), in_force(tx, T2)) == ("1", "2")


def test_several_lists_that_came_into_force_unnoticed_are_each_in_force_from_their_dates(
    ledger: Ledger, config: Config
) -> None:
    with ledger.transaction() as tx:
        settle.record_prices(tx, config, SUBMITTED)
        lists = (T1, main_at("2")), (T2, main_at("3")), (T3, main_at("4"))
        assert settle.record_prices(tx, dated(config, *lists), T3 - 1)
        assert [in_force(tx, at) for at in (T1 - 1, T1, T2 - 1, T2, T3)] == list("12233")


def test_lists_that_had_their_time_before_a_ledger_was_made_are_in_it(
    ledger: Ledger, config: Config
) -> None:
    with ledger.transaction() as tx:
        settle.record_prices(tx, dated(config, (T1, main_at("2")), (T2, main_at("3"))), T3)
        assert [in_force(tx, at) for at in (1, T1, T2)] == list("123")


def test_a_list_that_came_and_went_unnoticed_was_in_force_all_the_same(
    ledger: Ledger, config: Config
) -> None:
    with ledger.transaction() as tx:
        settle.record_prices(tx, config, SUBMITTED)
        assert settle.record_prices(tx, dated(config, (T1, main_at("2")), (T2, config.prices)), T3)
        assert [in_force(tx, at) for at in (T1 - 1, T1, T2)] == list("121")


def test_no_list_is_in_force_before_the_one_recorded_last(ledger: Ledger, config: Config) -> None:
    with ledger.transaction() as tx:
        settle.record_prices(tx, config, SUBMITTED)
        settle.record_prices(tx, replace(config, prices=main_at("2")), T2)
        assert settle.record_prices(tx, dated(config, (T1, main_at("3"))), T3)
        assert [in_force(tx, at) for at in (T2 - 1, T2, T3)] == list("133")


def test_a_clock_that_went_back_loses_no_list(ledger: Ledger, config: Config) -> None:
    with ledger.transaction() as tx:
        settle.record_prices(tx, config, SUBMITTED)
        settle.record_prices(tx, replace(config, prices=main_at("2")), T3)
        changed = replace(config, prices=main_at("4"))
        assert settle.record_prices(tx, changed, T1)
        assert not settle.record_prices(tx, changed, T2)
        assert in_force(tx, T3) == "4"


def test_prices_of_then_are_read_back_from_the_ledger(ledger: Ledger, config: Config) -> None:
    with ledger.transaction() as tx:
        settle.record_prices(tx, config, SUBMITTED)
        changed = replace(config, prices=main_at("2"))
        settle.record_prices(tx, changed, T2)
        then = settle.prices_for(tx, changed, T1)
        assert then.tables() == config.prices.tables()
        assert settle.prices_for(tx, changed, T1) is then
        assert settle.prices_for(tx, changed, T2) is changed.prices
        assert settle.prices_for(tx, changed, None) is changed.prices


def test_a_run_is_charged_by_the_dated_list_in_force_when_it_started_whoever_notices_first(
    ledger: Ledger, config: Config
) -> None:
    now = int(time.time())
    config = dated(config, (now - 100, main_at("2")))
    with ledger.transaction() as tx:
        tx.put_prices(0, config.prices.version, config.prices.tables())
        runs = [
            end(tx, config, job_id=job, start_time=start, end_time=now, elapsed_s=3600).run
            for job, start in ((1, now - 101), (2, now - 100))
        ]
        assert [run.charge_csu for run in runs] == [100, 200]
        assert runs[1].inputs["price_version"] == main_at("2").version


def test_an_estimate_of_a_queued_job_is_at_the_prices_of_now(config: Config) -> None:
    now = int(time.time())
    job = QueuedJob(
        job_id=7, submit_time=SUBMITTED, user_id=1001, account="fc_alpha", partition="main", state="PENDING",
        time_limit_min=60, cpus=1, nodes=1,
    )  # fmt: skip
    for from_s, expected in ((now - 10, 200), (now + 1_000, 100)):
        assert (
            settle.queued_estimate(dated(config, (from_s, main_at("2"))), job).cost_csu == expected
        )


# -- charges ------------------------------------------------------------------------------------------------------------

A100S = parse_tres("cpu=8,mem=16384M,node=1,billing=8,gres/gpu=2,gres/gpu:a100=2")


def test_a_charge_keeps_what_it_came_from(ledger: Ledger, config: Config) -> None:
    with ledger.transaction() as tx:
        result = end(tx, config, partition="gpu", tres=A100S, cpus=8, elapsed_s=1800, qos="normal")
        assert result.run.charge_csu == (8 + 80 + 8) * 50
        assert result.run.inputs == {
            "partition": "gpu", "qos": "normal", "cpus": 8, "nodes": 1, "tres": str(A100S), "elapsed_s": 1800,
            "time_limit_min": 60, "rates": {"cpu": "1", "mem_gb": "0.5", "gpu:a100": "40", "combine": "sum"},
            "qos_multiplier": "1", "price_version": config.prices.version, "state": "COMPLETED", "state_factor": "1",
            "start_time": SUBMITTED + 10, "end_time": SUBMITTED + 70,
        }  # fmt: skip
        (entry,) = [entry for entry in tx.entries_by_job(7) if entry.kind == "charge"]
        assert entry.inputs == result.run.inputs


@pytest.mark.parametrize(
    ("state", "by_admin", "expected", "told"),
    [
        ("COMPLETED", False, 100, "COMPLETED"),
        ("TIMEOUT", False, 50, "TIMEOUT"),
        ("NODE_FAIL", False, 0, "NODE_FAIL"),
        ("PREEMPTED", False, 0, "PREEMPTED"),
        ("CANCELLED", False, 100, "CANCELLED"),
        ("CANCELLED", True, 0, "CANCELLED_BY_ADMIN"),
    ],
)
def test_the_final_state_decides_what_share_is_charged_and_the_entry_says_so(
    ledger: Ledger, config: Config, state: str, by_admin: bool, expected: int, told: str
) -> None:
    with ledger.transaction() as tx:
        set_aside(tx)
        result = end(tx, config, state=state, cancelled_by_admin=by_admin, elapsed_s=3600)
        assert (result.kind, result.run.charge_csu, available(tx)) == ("charged", expected, 100_000 - expected)  # fmt: skip
        (entry,) = [entry for entry in tx.entries_by_job(7) if entry.kind == "charge"]
        assert entry.inputs is not None and entry.inputs["state"] == told
        assert settle.recomputed_csu(entry.inputs) == expected
        assert tx.delivery_of(result.run.run_id) is not None, "the bank is told of it, too"


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED"])
def test_a_run_that_the_system_ended_is_not_charged_and_its_next_one_has_a_lien(
    ledger: Ledger, config: Config, state: str
) -> None:
    with ledger.transaction() as tx:
        set_aside(tx)
        result = end(tx, config, state=state, requeue=True, elapsed_s=3600)
        assert result.run.charge_csu == 0 and result.next_lien_id is not None
        assert available(tx) == 100_000 - 300
        end(tx, config, restart_count=1, submit_time=SUBMITTED + 90, elapsed_s=3600)
        assert available(tx) == 100_000 - 100 and not tx.open_liens()


def test_a_charge_above_its_lien_is_charged_and_told(ledger: Ledger, config: Config) -> None:
    with ledger.transaction() as tx:
        set_aside(tx, 60)
        result = end(tx, config, elapsed_s=3600)
        assert (result.run.charge_csu, result.overdrawn_csu) == (100, 40)
        assert available(tx) == 100_000 - 100


SMALL = parse_tres("cpu=4,mem=8192M,node=1,gres/gpu=1,gres/gpu:a100=1")


def resized(tx: Transaction, config: Config) -> None:
    """Half an hour with two GPUs; then it has one."""
    end(tx, config, state="RUNNING", resizing=True, partition="gpu", tres=A100S, cpus=8, elapsed_s=1800, end_time=None)  # fmt: skip


def test_a_resized_run_is_charged_for_all_that_it_had_and_as_long_as_it_had_it(
    ledger: Ledger, config: Config
) -> None:
    with ledger.transaction() as tx:
        for _ in range(2):
            resized(tx, config)
        result = end(tx, config, partition="gpu", tres=SMALL, cpus=4, elapsed_s=3600)
        assert result.run.charge_csu == (96 + 48) * 50
        parts = result.run.inputs["segments"]
        assert [part for part in parts if part[1]] == [[str(A100S), 1800], [str(SMALL), 1800]]
        assert settle.recomputed_csu(json.loads(json.dumps(result.run.inputs))) == 7200


def test_another_user_s_run_under_the_same_key_was_not_resized(
    ledger: Ledger, config: Config
) -> None:
    with ledger.transaction() as tx:
        resized(tx, config)
        later = {"user_id": 1002, "start_time": a_run().start_time + 5}
        result = end(tx, config, partition="gpu", tres=SMALL, cpus=4, elapsed_s=3600, **later)
        assert result.run.charge_csu == 96 * 50 and "segments" not in result.run.inputs


def test_what_a_run_gave_back_is_counted_as_far_as_it_was_used(
    ledger: Ledger, config: Config
) -> None:
    price = config.prices.price("gpu", None)
    assert price is not None
    with ledger.transaction() as tx:
        resized(tx, config)
        (run,) = tx.running_runs()
        assert settle.given_back_csu(tx, run, SMALL, price.inputs()) == (96 - 48) * 50
        assert settle.given_back_csu(tx, run, A100S, price.inputs()) == 0
        larger = replace(A100S, cpus=100)
        assert settle.given_back_csu(tx, run, larger, price.inputs()) == 0, (
            "it costs more than before"
        )


@given(st.lists(st.tuples(TRES, st.integers(0, 100_000)), min_size=1, max_size=4), TRES, st.integers(0, 10**6), RATES, MULTIPLIERS)  # fmt: skip
def test_what_is_given_back_and_the_estimate_of_the_rest_cover_the_charge(
    resizes: list[tuple[Tres, int]], last: Tres, rest_s: int, rates: Rates, multiplier: Decimal
) -> None:
    """Whatever a run gave back and took: with its limit reached to the second."""
    prices = PriceList(partitions={"main": rates}, qos_multiplier={"normal": multiplier})
    price = prices.price("main", "normal")
    assert price is not None
    limit_min = -(-(max(until_s for _, until_s in resizes) + rest_s) // 60)

    class Resized:
        def resizes(self, run: Any) -> list[tuple[Tres, int]]:
            return resizes

    given_back = settle.given_back_csu(
        Resized(), a_run(), last, price.inputs()  # type: ignore[arg-type]
    )  # fmt: skip
    job = QueuedJob(
        job_id=7, submit_time=SUBMITTED, user_id=1001, account="fc_alpha", partition="main", qos="normal",
        state="RUNNING", time_limit_min=limit_min, cpus=last.cpus, nodes=last.nodes, tres=last,
    )  # fmt: skip
    rest = estimate_queued(job, prices, unlisted="refuse", horizon_min=None)
    parts = charging.segments_of(resizes, last, limit_min * 60)
    assert charging.charge(a_run(segments=parts), price) <= rest.cost_csu + given_back


@given(TRES, st.integers(0, 10**6), RATES, MULTIPLIERS, FACTORS, st.sampled_from(STATES), st.integers(0, 60 * 10**4))  # fmt: skip
def test_no_run_within_its_limit_is_charged_more_than_the_estimate_of_what_it_had(
    tres: Tres, limit_min: int, rates: Rates, multiplier: Decimal, factor: Decimal, state: str, over_s: int
) -> None:  # fmt: skip
    prices = PriceList(
        partitions={"main": rates},
        qos_multiplier={"normal": multiplier},
        state_factor={state: factor},
    )
    run = a_run(tres=tres, cpus=tres.cpus, elapsed_s=max(0, limit_min * 60 - over_s), state=state)
    price = prices.price(run.partition, run.qos)
    assert price is not None
    job = QueuedJob(
        job_id=7, submit_time=SUBMITTED, user_id=1001, account="fc_alpha", partition="main", qos="normal",
        state="PENDING", time_limit_min=limit_min, cpus=tres.cpus, nodes=tres.nodes, tres=tres,
    )  # fmt: skip
    estimate = estimate_queued(job, prices, unlisted="refuse", horizon_min=None)
    charged = charging.charge(run, price, prices.factor(charging.final_state(run)))
    assert 0 <= charged <= estimate.cost_csu


@given(
    st.lists(st.tuples(TRES, st.integers(0, 10**7)), max_size=3), TRES, st.integers(-10, 10**7),
    RATES, MULTIPLIERS, st.dictionaries(st.sampled_from(STATES), FACTORS), st.sampled_from(STATES[:-1]), st.booleans(),
)  # fmt: skip
def test_the_stored_inputs_alone_give_the_same_charge_again(
    resizes: list[tuple[Tres, int]], tres: Tres, elapsed_s: int, rates: Rates, multiplier: Decimal,
    factors: dict[str, Decimal], state: str, by_admin: bool,
) -> None:  # fmt: skip
    prices = PriceList(
        partitions={"main": rates}, qos_multiplier={"normal": multiplier}, state_factor=factors
    )
    segments = charging.segments_of(resizes, tres, elapsed_s) if resizes else ()
    run = a_run(tres=tres, elapsed_s=elapsed_s, segments=segments, state=state, cancelled_by_admin=by_admin)  # fmt: skip
    price = prices.price("main", "normal")
    assert price is not None
    factor = prices.factor(charging.final_state(run))
    stored: Mapping[str, Any] = json.loads(json.dumps(settle._inputs(run, price, factor)))
    assert settle.recomputed_csu(stored) == charging.charge(run, price, factor)


# -- ends that are not what they seem -----------------------------------------------------------------------------------


def test_a_start_that_a_cloud_node_reset_is_the_one_that_counts(
    ledger: Ledger, config: Config
) -> None:
    with ledger.transaction() as tx:
        set_aside(tx)
        started = a_run(state="RUNNING", end_time=None, elapsed_s=0)
        settle.start_run(tx, started, config, actor="test")
        result = end(tx, config, start_time=SUBMITTED + 310, end_time=SUBMITTED + 3910, elapsed_s=3600)  # fmt: skip
        assert (result.run.start_time, result.run.charge_csu) == (SUBMITTED + 310, 100)
        assert available(tx) == 100_000 - 100


def test_a_start_that_was_reset_into_the_next_allocation_counts_there(
    ledger: Ledger, config: Config
) -> None:
    with ledger.transaction() as tx:
        set_aside(tx)
        started = a_run(state="RUNNING", end_time=None, elapsed_s=0)
        settle.start_run(tx, started, config, actor="test")
        renewed: dict[str, Any] = dict(allocation="2@x", start_time=SUBMITTED + 100)
        for user_id in (None, 1001):
            tx.put_funds(funds_of("fc_alpha", 100_000, user_id=user_id, **renewed))
        end(tx, config, start_time=SUBMITTED + 310, end_time=SUBMITTED + 3910, elapsed_s=3600)
        assert available(tx) == 100_000 - 100


def test_a_clock_that_went_back_makes_a_run_cost_nothing(ledger: Ledger, config: Config) -> None:
    with ledger.transaction() as tx:
        set_aside(tx)
        result = end(tx, config, end_time=SUBMITTED, elapsed_s=-10)
        assert (result.run.charge_csu, result.run.elapsed_s, available(tx)) == (0, 0, 100_000)
        assert settle.recomputed_csu(result.run.inputs) == 0


def test_a_job_that_ended_before_its_start_was_reported_is_charged_once(
    ledger: Ledger, config: Config
) -> None:
    with ledger.transaction() as tx:
        set_aside(tx)
        end(tx, config, elapsed_s=3600)
        _, new = settle.start_run(tx, a_run(state="RUNNING", end_time=None), config, actor="test")
        assert not new and not tx.running_runs() and available(tx) == 100_000 - 100
        assert [delivery.phase for delivery in tx.next_deliveries()] == ["end"]


@pytest.mark.parametrize(("again", "kind", "expected"), [(3600, "duplicate", 100), (5400, "restated", 150)])  # fmt: skip
def test_a_second_end_is_charged_once_or_restated(
    ledger: Ledger, config: Config, again: int, kind: str, expected: int
) -> None:
    with ledger.transaction() as tx:
        set_aside(tx)
        end(tx, config, elapsed_s=3600)
        assert end(tx, config, elapsed_s=again).kind == kind
        assert available(tx) == 100_000 - expected


#: What Slurm tells of a component of a het job that it had started when another could not start.
FAILED_START: dict[str, Any] = dict(
    state="PENDING", end_time=SUBMITTED + 10, elapsed_s=0, het_job_id=7
)


def start(tx: Transaction, config: Config, **changes: Any) -> Any:
    values: dict[str, Any] = dict(state="RUNNING", end_time=None, elapsed_s=0, het_job_id=7)
    return settle.start_run(tx, a_run(**{**values, **changes}), config, actor="test")


@pytest.mark.parametrize("seen_running", [False, True])
@pytest.mark.parametrize("delivered", [False, True])
def test_a_het_component_whose_start_failed_is_back_at_its_lien_and_leaks_nothing(
    ledger: Ledger, config: Config, seen_running: bool, delivered: bool
) -> None:
    with ledger.transaction() as tx:
        set_aside(tx)
        if seen_running:
            start(tx, config)
            if delivered:
                tx.acknowledge(tx.next_deliveries()[0], bank_csu=0, bank_job_id="7")
        for _ in range(2):  # told again by slurmdbd
            end(tx, config, **FAILED_START)
            assert available(tx) == 100_000 - 300
            assert not tx.running_runs()
        (lien,) = tx.open_liens()
        assert (lien.per_task_csu, lien.inputs, lien.state) == (300, {"cpus": 3}, "confirmed")
        # The one with the batch script has a new submit time.
        for submit_time in (SUBMITTED, SUBMITTED + 11):
            found = tx.find_lien(
                job_id=7,
                array_job_id=None,
                account="fc_alpha",
                user_id=1001,
                submit_time=submit_time,  # fmt: skip
            )
            assert found == lien


@pytest.mark.parametrize("seen_running", [False, True])
@pytest.mark.parametrize("seen_again", [False, True])
@pytest.mark.parametrize("submit_time", [SUBMITTED, SUBMITTED + 11])
def test_a_het_component_that_starts_after_all_is_charged_for_that_run_alone(
    ledger: Ledger, config: Config, seen_running: bool, seen_again: bool, submit_time: int
) -> None:
    """Of the components without the batch script, Slurm changes not even the submit time: one key, two starts."""
    again: dict[str, Any] = dict(submit_time=submit_time, start_time=SUBMITTED + 1300)
    with ledger.transaction() as tx:
        set_aside(tx)
        if seen_running:
            start(tx, config)
        end(tx, config, **FAILED_START)
        if seen_again:
            _, new = start(tx, config, **again)
            assert new and available(tx) == 100_000 - 300 and not tx.open_liens()
            assert end(tx, config, **FAILED_START).kind in ("duplicate", "ignored"), "told late"
            assert len(tx.running_runs()) == 1
        result = end(tx, config, **again, end_time=SUBMITTED + 4900, elapsed_s=3600, het_job_id=7)
        assert (result.kind, result.run.charge_csu) == ("charged", 100)
        assert available(tx) == 100_000 - 100 and not tx.open_liens()
        postings, _ = tx.postings("fc_alpha", since_us=0, until_us=2**62)
        assert sum(posting.amount_csu for posting in postings) == 100
        assert tx.delivery_of(result.run.run_id).phase == "end"  # type: ignore[union-attr]


def test_a_start_that_failed_and_was_seen_again_as_it_was_does_not_run(
    ledger: Ledger, config: Config
) -> None:
    """A snapshot of the queue that was taken before."""
    with ledger.transaction() as tx:
        set_aside(tx)
        start(tx, config)
        end(tx, config, **FAILED_START)
        _, new = start(tx, config)
        assert not new and not tx.running_runs() and available(tx) == 100_000 - 300


def test_a_het_job_cancelled_after_its_start_failed_leaves_nothing(
    ledger: Ledger, config: Config
) -> None:
    with ledger.transaction() as tx:
        set_aside(tx)
        start(tx, config)
        end(tx, config, **FAILED_START)
        end(tx, config, submit_time=SUBMITTED + 11, started=False, state="CANCELLED", cpus=0, nodes="")  # fmt: skip
        assert available(tx) == 100_000 and not tx.open_liens()


def test_a_grandfathered_component_whose_start_failed_still_does_not_count(
    ledger: Ledger, config: Config
) -> None:
    with ledger.transaction() as tx:
        set_aside(tx, origin="grandfathered", counted=False)
        start(tx, config)
        end(tx, config, **FAILED_START)
        assert available(tx) == 100_000
        assert tx.set_aside("fc_alpha").grandfathered_csu == 300


# -- sums ---------------------------------------------------------------------------------------------------------------


def told_anything(choose: random.Random, step: int) -> Run:
    """Whatever Slurm might tell of one of three jobs."""
    tres = Tres(
        cpus=choose.randint(1, 64), memory_mb=choose.randint(0, 10**6), nodes=choose.randint(1, 4),
        gpus=(("a100", choose.randint(1, 4)),) if choose.random() < 0.5 else (),
    )  # fmt: skip
    started = choose.random() < 0.9
    return a_run(
        job_id=choose.randint(1, 3), restart_count=choose.choice([0, 0, 1]),
        submit_time=SUBMITTED + choose.choice([0, 0, 11]), start_time=SUBMITTED + choose.choice([10, 400, step * 100]),
        end_time=SUBMITTED + choose.choice([5, 70, step * 100 + 50]), elapsed_s=choose.randint(-5, 10_000),
        cpus=tres.cpus, node_count=tres.nodes, tres=tres if choose.random() < 0.8 else Tres(), started=started,
        state=choose.choice(["COMPLETED", "NODE_FAIL", "CANCELLED", "TIMEOUT", "PENDING"]),
        requeue=choose.random() < 0.2, resizing=choose.random() < 0.2, partition=choose.choice(["main", "gpu", "free"]),
        cancelled_by_admin=choose.random() < 0.2,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_told_the_entries_add_up_to_the_balance(
    ledger: Ledger, config: Config, seed: int
) -> None:
    choose = random.Random(seed)
    with ledger.transaction() as tx:
        for step in range(60):
            run = told_anything(choose, step)
            what = choose.random()
            if what < 0.2:
                set_aside(tx, choose.randint(0, 500), job_id=run.job_id, submit_time=run.submit_time)  # fmt: skip
            elif what < 0.5:
                settle.start_run(tx, replace(run, started=True), config, actor="test")
            else:
                result = settle.end_run(tx, run, config, actor="test")
                if result.kind in ("charged", "restated"):
                    assert result.run is not None and result.run.charge_csu is not None
                    assert settle.recomputed_csu(result.run.inputs) == result.run.charge_csu >= 0
            entries = tx.entries_by_account("fc_alpha")
            assert 100_000 - sum(entry.amount_csu for entry in entries) == available(tx)
