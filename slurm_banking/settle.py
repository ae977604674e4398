# SPDX-License-Identifier: BSD-3-Clause
"""Starts and ends of runs on the ledger: the rules that slurmctld's hook and the relay share."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any, Dict, Mapping, Optional, Tuple

from slurm_banking import charge as charging
from slurm_banking import policy, tokens
from slurm_banking.amounts import lien_csu
from slurm_banking.config import Config
from slurm_banking.estimate import Unpriceable, estimate_queued
from slurm_banking.ledger import EndResult, LedgerRun, Transaction
from slurm_banking.prices import Price, PriceList, plain
from slurm_banking.records import UNLIMITED, Estimate, QueuedJob, Run


def price_tables(prices: PriceList) -> Dict[str, Dict[str, str]]:
    """As stored in the ledger, so that a sum can be shown again years later."""
    return {
        "PartitionPrice": {name: plain(number) for name, number in prices.partition_su.items()},
        "QosMultiplier": {name: plain(number) for name, number in prices.qos_multiplier.items()},
    }


def record_prices(tx: Transaction, config: Config) -> bool:
    """Remember the configured prices as in force from now on; False if they already are."""
    return tx.record_prices(config.prices.version, price_tables(config.prices))


def prices_for(tx: Transaction, config: Config, at: Optional[int]) -> PriceList:
    """The price list in force at a time (unix seconds); the configured one if the ledger has none."""
    if at is None:
        return config.prices
    found = tx.prices_at(at)
    if found is None or found[0] == config.prices.version:
        return config.prices
    _, tables = found
    return PriceList(
        partition_su={k: Decimal(v) for k, v in tables["PartitionPrice"].items()},
        qos_multiplier={k: Decimal(v) for k, v in tables["QosMultiplier"].items()},
    )


def queued_estimate(config: Config, job: QueuedJob) -> Estimate:
    """The estimate of a job as Slurm's queue shows it. Never refuses: Slurm has the job already.

    A partition without a price costs nothing here; unlimited time counts one day beyond any horizon that is configured.
    """
    try:
        return estimate_queued(
            job, config.prices, unlisted="free", horizon_min=config.policy.horizon_min
        )
    except Unpriceable:
        return estimate_queued(job, config.prices, unlisted="free", horizon_min=24 * 60)


def _price(prices: PriceList, run: Run) -> Price:
    found = charging.price_of(run, prices)
    return prices.free(run.partition, run.qos) if found is None else found


def _inputs(run: Run, price: Price) -> Mapping[str, Any]:
    resized = {} if run.cpu_s is None else {"cpu_s": run.cpu_s}
    return {
        **resized,
        "partition": run.partition,
        "qos": run.qos,
        "cpus": run.cpus,
        "nodes": run.node_count,
        "elapsed_s": run.elapsed_s,
        "time_limit_min": run.time_limit_min,
        "price_su": plain(price.su),
        "price_version": price.version,
        "state": run.state,
        "tres_alloc": run.tres_alloc,
        "start_time": run.start_time,
        "end_time": run.end_time,
    }


def _as_queued(run: Run) -> QueuedJob:
    return QueuedJob(
        job_id=run.job_id,
        submit_time=run.submit_time,
        user_id=run.user_id,
        account=run.account,
        partition=run.partition,
        qos=run.qos,
        state=run.state,
        time_limit_min=UNLIMITED if run.time_limit_min is None else run.time_limit_min,
        cpus=run.cpus,
        nodes=run.node_count,
    )


def _token_lien_id(run: Run) -> Optional[str]:
    token = tokens.parse(run.admin_comment)
    return None if token is None else token.lien_id


def _grandfathered(tx: Transaction, run: Run) -> bool:
    """Submitted before this ledger was made, and not by way of our plugin."""
    created = tx.meta("created")
    return (
        created is not None
        and run.submit_time < int(created)
        and tokens.parse(run.admin_comment) is None
    )


def start_run(tx: Transaction, run: Run, config: Config, *, actor: str) -> Tuple[LedgerRun, bool]:
    """A run was seen to have started; idempotent. Its share comes out of its lien, or is the estimate of what is seen."""
    estimate = queued_estimate(config, _as_queued(run))
    return tx.start_run(
        run,
        share_csu=estimate.per_task_csu,
        inputs=estimate.inputs(),
        actor=actor,
        token_lien_id=_token_lien_id(run),
        grandfathered=_grandfathered(tx, run),
    )


def end_run(tx: Transaction, run: Run, config: Config, *, actor: str) -> EndResult:
    """A run ended: charge what was allocated for as long as it ran, at the price in force when it started.

    Of a run that only changes its nodes, the CPUs until now are noted, for its charge.
    """
    if run.resizing:
        return _resized(tx, run, config, actor)
    if run.cpu_s is None and run.started:
        resizes = tx.resizes(run.job_id, run.submit_time)
        if resizes:
            used = charging.cpu_seconds_of(resizes, run.cpus, run.elapsed_s)
            run = replace(run, cpu_s=used)
    price = _price(prices_for(tx, config, run.start_time), run)
    estimate = queued_estimate(config, _as_queued(run))
    return tx.end_run(
        run,
        charge_csu=charging.charge(run, price),
        share_csu=estimate.per_task_csu,
        inputs=_inputs(run, price),
        actor=actor,
        token_lien_id=_token_lien_id(run),
        grandfathered=_grandfathered(tx, run),
        next_counted=policy.counts_while_queued(config.policy.mode),
    )


def _resized(tx: Transaction, run: Run, config: Config, actor: str) -> EndResult:
    if not run.started:
        return EndResult(kind="ignored")
    existing, _ = start_run(tx, run, config, actor=actor)
    if existing.state == "running":
        tx.note_resize(existing, cpus=run.cpus, elapsed_s=run.elapsed_s, actor=actor)
    return EndResult(kind="resized", run=existing)


def given_back_csu(tx: Transaction, run: LedgerRun, cpus: int, price_su: str) -> int:
    """What a running run has used of CPUs that it no longer has, at a price per CPU and hour; rounded up."""
    resizes = tx.resizes(run.job_id, run.submit_time)
    until_s = max((elapsed_s for _, elapsed_s in resizes), default=0)
    more = charging.cpu_seconds_of(resizes, cpus, until_s) - cpus * until_s
    return lien_csu(Decimal(price_su), 1, max(0, more))
