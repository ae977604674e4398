# SPDX-License-Identifier: BSD-3-Clause
"""Prices, starts and ends of runs on the ledger: the rules that slurmctld's hook and the relay share."""

from __future__ import annotations

import time
from dataclasses import replace
from decimal import Decimal
from typing import Any, Dict, Mapping, Optional, Tuple, Union

from slurm_banking import charge as charging
from slurm_banking import policy, tokens
from slurm_banking.amounts import EXACT, charge_csu, lien_csu
from slurm_banking.config import Config
from slurm_banking.estimate import Unpriceable, estimate_queued
from slurm_banking.ledger import EndResult, LedgerRun, Transaction
from slurm_banking.ledger.rows import RETURNED
from slurm_banking.ledger.transaction import LOST
from slurm_banking.prices import Price, PriceList, Rates, plain
from slurm_banking.records import UNLIMITED, Estimate, QueuedJob, Run
from slurm_banking.tres import Tres, parse_tres

_US_PER_S = 1_000_000

#: Price lists that were read back from a ledger, by version: reading one costs more than all else that an end does.
_read_back: Dict[str, PriceList] = {}
_MAX_READ_BACK = 64


# -- prices -------------------------------------------------------------------------------------------------------------


def record_prices(tx: Transaction, config: Config, now_s: int) -> bool:
    """Remember which configured price list is in force now (unix seconds), and since when; False if nothing is new.

    A dated list is in force from its own date, though nobody may have noticed then; one that is not dated, from now. None
    is in force before the one that was recorded last. The first list of a ledger also speaks for all time before it.
    """
    latest = tx.latest_prices()
    dated = [(from_s, prices) for from_s, prices in config.dated_prices if from_s <= now_s]
    recorded = False
    if latest is None:
        tx.put_prices(0, config.prices.version, config.prices.tables())
        latest, recorded = (0, config.prices.version), True
    since_us, version = latest
    noticed_us = since_us
    in_force = dated[-1] if dated else (now_s, config.prices)
    for from_s, prices in [*dated[:-1], in_force]:
        from_us = from_s * _US_PER_S
        passed_by = from_us <= noticed_us and (from_s, prices) != in_force
        if passed_by or prices.version == version:
            continue
        since_us, version = max(from_us, since_us + 1), prices.version
        tx.put_prices(since_us, version, prices.tables())
        recorded = True
    return recorded


def prices_for(tx: Transaction, config: Config, at: Optional[int]) -> PriceList:
    """The price list in force at a time (unix seconds) by the ledger's record; now, by the configuration, if None."""
    current = config.prices_at(tx.now_us // _US_PER_S)
    found = None if at is None else tx.prices_at(at)
    if found is None:
        return current
    version, tables = found
    if version == current.version:
        return current
    prices = _read_back.get(version)
    if prices is None:
        if len(_read_back) >= _MAX_READ_BACK:
            _read_back.clear()
        prices = _read_back[version] = PriceList.from_tables(tables)
    return prices


def queued_estimate(config: Config, job: QueuedJob) -> Estimate:
    """The estimate of a job as Slurm's queue shows it, at the prices in force now. Never refuses: Slurm has the job already.

    A partition without a price costs nothing here; unlimited time counts one day beyond any horizon that is configured.
    """
    prices = config.prices_at(int(time.time())) if config.dated_prices else config.prices
    share = config.policy.lien_share
    try:
        return estimate_queued(
            job,
            prices,
            unlisted="free",
            horizon_min=config.policy.horizon_min,
            lien_share=share,
        )
    except Unpriceable:
        return estimate_queued(job, prices, unlisted="free", horizon_min=24 * 60, lien_share=share)


def _price(prices: PriceList, run: Run) -> Price:
    found = charging.price_of(run, prices)
    return prices.free(run.partition, run.qos) if found is None else found


def _inputs(run: Run, price: Price, factor: Decimal) -> Mapping[str, Any]:
    resized: Dict[str, Any] = {}
    if run.segments:
        resized["segments"] = [[str(part.tres), part.seconds] for part in charging.segments(run)]
    return {
        "partition": run.partition,
        "qos": run.qos,
        "cpus": run.cpus,
        "nodes": run.node_count,
        "tres": str(charging.allocated(run)),
        "elapsed_s": max(0, run.elapsed_s),
        **resized,
        "time_limit_min": run.time_limit_min,
        **price.inputs(),
        "state": charging.final_state(run),
        "state_factor": plain(factor),
        "start_time": run.start_time,
        "end_time": run.end_time,
    }


def recomputed_csu(inputs: Mapping[str, Any]) -> int:
    """A charge once more, from the inputs that were stored with it and nothing else.

    :raises KeyError, ValueError: these are not the inputs of a charge.
    """
    rates = Rates.from_table(inputs["rates"])
    parts = inputs.get("segments") or [[inputs["tres"], inputs["elapsed_s"]]]
    su_s = charging.su_seconds(
        (rates.su_per_hour(parse_tres(tres)), int(seconds)) for tres, seconds in parts
    )
    factor = Decimal(inputs.get("state_factor", "1"))
    share = EXACT.multiply(Decimal(inputs["qos_multiplier"]), factor)
    return charge_csu(EXACT.multiply(su_s, share), 1, 1)


# -- starts and ends ----------------------------------------------------------------------------------------------------


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
        tres=run.tres,
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
        share_csu=estimate.per_task_lien_csu,
        inputs=estimate.inputs(),
        actor=actor,
        token_lien_id=_token_lien_id(run),
        grandfathered=_grandfathered(tx, run),
    )


def end_run(tx: Transaction, run: Run, config: Config, *, actor: str) -> EndResult:
    """A run ended: charge what was allocated for as long as it ran, at the prices in force when it started.

    Of a run that only changes its nodes, what it had until now is noted, for its charge. Of one that failed to start,
    and whose job waits again, nothing is charged.
    """
    if run.resizing:
        return _resized(tx, run, config, actor)
    if run.started and run.state == RETURNED:
        run = replace(run, elapsed_s=0, segments=())
    run = with_resizes(tx, run)
    if config.dated_prices:
        # Whoever tells this may be the first to notice that a dated list is in force.
        now_s = tx.now_us // _US_PER_S
        latest = tx.latest_prices()
        if latest is None or latest[1] != config.prices_at(now_s).version:
            record_prices(tx, config, now_s)
    charge_csu, inputs = cost_of(tx, config, run)
    estimate = queued_estimate(config, _as_queued(run))
    return tx.end_run(
        run,
        charge_csu=charge_csu,
        share_csu=estimate.per_task_lien_csu,
        inputs=inputs,
        actor=actor,
        token_lien_id=_token_lien_id(run),
        grandfathered=_grandfathered(tx, run),
        next_counted=policy.counts_while_queued(config.policy.mode),
    )


def with_resizes(tx: Transaction, run: Run) -> Run:
    """The run with the parts between its resizes, as they were noted while it ran, unless it was told with them."""
    if not run.started or run.state == RETURNED or run.segments:
        return run
    resizes = tx.resizes(run)
    if not resizes:
        return run
    had = charging.segments_of(resizes, charging.allocated(run), run.elapsed_s)
    return replace(run, segments=had)


def cost_of(tx: Transaction, config: Config, run: Run) -> Tuple[int, Mapping[str, Any]]:
    """What a run that has ended costs by its figures, at the prices in force when it started; and what that came from."""
    prices = prices_for(tx, config, run.start_time)
    price = _price(prices, run)
    factor = prices.factor(charging.final_state(run))
    inputs = _inputs(run, price, factor)
    if run.state == LOST:  # the bank knew, where the ledger was lost too
        inputs = {**inputs, "lost_at": tx.now_us // _US_PER_S}
    return charging.charge(run, price, factor), inputs


def entered_csu(tx: Transaction, run: Union[LedgerRun, Run]) -> int:
    """What the entries of a run say that it was charged (of one that runs: that it holds); 0: it has none.

    The run's row says the same, unless somebody wrote into the file past us.
    """
    found: Optional[int] = None
    for entry in tx.charges_of(run):
        if entry.kind == "start":
            holds = isinstance(run, LedgerRun) and run.state == "running"
            found = run.ledger_csu if isinstance(run, LedgerRun) and holds else entry.amount_csu
            continue
        try:
            found = recomputed_csu(entry.inputs or {})
        except (KeyError, ValueError, TypeError, ArithmeticError):
            found = (found or 0) + entry.amount_csu
    return found or 0


def _resized(tx: Transaction, run: Run, config: Config, actor: str) -> EndResult:
    if not run.started:
        return EndResult(kind="ignored")
    existing, _ = start_run(tx, run, config, actor=actor)
    if existing.state == "running":
        had = charging.allocated(run)
        tx.note_resize(existing, tres=had, elapsed_s=run.elapsed_s, actor=actor)
    return EndResult(kind="resized", run=existing)


def given_back_csu(tx: Transaction, run: LedgerRun, tres: Tres, price: Mapping[str, Any]) -> int:
    """What a running run has used of resources that it no longer has, rounded up.

    ``tres``: what it has now. ``price``: :meth:`Price.inputs`, as an estimate carries it. It is added to the estimate of
    what the run has now, which counts that from the start.
    """
    resizes = tx.resizes(run)
    if not resizes:
        return 0
    rates = Rates.from_table(price["rates"])
    until_s = max(elapsed_s for _, elapsed_s in resizes)
    used = charging.segments_of(resizes, tres, until_s)
    su_s = charging.su_seconds((rates.su_per_hour(part.tres), part.seconds) for part in used)
    counted_su_s = EXACT.multiply(rates.su_per_hour(tres), Decimal(until_s))
    more = EXACT.subtract(su_s, counted_su_s)
    if more <= 0:
        return 0
    return lien_csu(EXACT.multiply(more, Decimal(price["qos_multiplier"])), 1, 1)
