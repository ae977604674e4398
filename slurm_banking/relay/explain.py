# SPDX-License-Identifier: BSD-3-Clause
"""Each amount of a job as the sum that it came from, computed again from what its entries stored."""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence

from slurm_banking.ledger import LedgerEntry, LedgerRun, Lien
from slurm_banking.ledger.transaction import Transaction
from slurm_banking.relay import sums


def run_sums(tx: Transaction, run: LedgerRun, entries: Sequence[LedgerEntry]) -> Dict[str, Any]:
    """What was set aside for a run and what it was charged. ``entries``: of its job, in the ledger's order."""
    own = [
        entry
        for entry in entries
        if (entry.job_id, entry.submit_time, entry.restart_count)
        == (run.job_id, run.submit_time, run.told_restart_count)
        and (entry.account, entry.user_id) == (run.account, run.user_id)
    ]
    explained: Dict[str, Any] = {
        "state": run.state,
        "slurm_state": run.slurm_state,
        "account": run.account,
        "user_id": run.user_id,
        "user_name": run.user_name,
        "name": run.name,
        "counted": run.counted,
        "start_time": run.start_time,
        "end_time": run.end_time,
        "elapsed_s": run.elapsed_s,
        "lien_csu": run.lien_csu,
        "charge_csu": run.charge_csu,
        "lien": _lien_of(run, own),
        "charge": None,
    }
    if run.state != "ended":
        return explained
    charge = sums.of_charge(run.inputs)
    last = next((entry for entry in reversed(own) if entry.kind in ("charge", "restated")), None)
    explained["charged_because"] = "" if last is None else last.reason
    if charge is not None:
        charge["in_force_since"] = in_force_since(tx, run.start_time, charge["price_version"])
        charge["agrees"] = charge["recomputed_csu"] == run.charge_csu
    explained["charge"] = charge
    return explained


def _lien_of(run: LedgerRun, own: Sequence[LedgerEntry]) -> Optional[Dict[str, Any]]:
    """The last estimate that the run's share was counted with."""
    if run.state != "ended":
        return sums.of_estimate(run.inputs)
    for entry in reversed(own):
        if entry.kind in ("start", "raise", "lower") and entry.inputs:
            found = sums.of_estimate(entry.inputs)
            if found is not None:
                return found
    return None


def lien_sums(lien: Lien) -> Dict[str, Any]:
    """What is set aside for a job that waits."""
    return {
        "job_id": lien.job_id,
        "account": lien.account,
        "user_id": lien.user_id,
        "user_name": lien.user_name,
        "name": lien.name,
        "origin": lien.origin,
        "counted": lien.counted,
        "tasks_left": lien.tasks_left,
        "per_task_csu": lien.per_task_csu,
        "proposed_csu": lien.proposed_csu,
        "amount_csu": lien.tasks_left * max(lien.per_task_csu, lien.proposed_csu or 0),
        "from_token": bool(lien.inputs.get("from_token")),
        "lien": sums.of_estimate(lien.inputs),
    }


def in_force_since(tx: Transaction, at: Optional[int], version: Optional[str]) -> Optional[int]:
    """Since when (unix seconds) the price list of a charge was in force; 0: since before the ledger; None: not known."""
    if at is None or version is None:
        return None
    latest = tx.latest_prices()
    if latest is not None and latest[1] == version and latest[0] <= at * 1_000_000 + 999_999:
        return latest[0] // 1_000_000

    def in_force(then: int) -> bool:
        found = tx.prices_at(then)
        return found is not None and found[0] == version

    if not in_force(at):
        return None
    before, since = -1, at  # in force at ``since``, and not at ``before``
    while since - before > 1:
        middle = (before + since) // 2
        if in_force(middle):
            since = middle
        else:
            before = middle
    return since
