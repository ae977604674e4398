# SPDX-License-Identifier: BSD-3-Clause
"""A quote: the estimate and the verdict that a submission would get now, by the code that decides submissions.

What slurmctld fills in at submission (default partition, partition limits, node sizes) comes from what Slurm tells about
its partitions; nothing is written.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Dict, Mapping, Optional

from slurm_banking import messages
from slurm_banking.config import Config
from slurm_banking.estimate import Hints, Unpriceable, estimate, what_would_fit
from slurm_banking.ledger import Ledger
from slurm_banking.policy import decide, is_exempt, low_funds
from slurm_banking.records import Estimate, Outcome, Partition, Reason, Submission
from slurm_banking.relay import as_sbatch, sums


@dataclass(frozen=True)
class Facts:
    """What Slurm says about its partitions."""

    cluster: str
    partitions: Mapping[str, Partition]
    default_partition: Optional[str]  #: None: the cluster has none
    spec_allowed: bool = True  #: AllowSpecResourcesUsage: whether --core-spec does anything


def submission(
    options: Mapping[str, Any],
    *,
    account: Optional[str],
    associated: bool,
    user_id: int,
    user_name: str,
    facts: Facts,
) -> Submission:
    """The job that these options ask for.

    :raises ValueError: an option that is none, or has a value that it cannot have.
    """
    values = as_sbatch.read(options)
    names = [name for name in values["partition"].split(",") if name]
    if not names:
        if facts.default_partition is None:
            raise ValueError("partition: missing, and this cluster has no default partition")
        names = [facts.default_partition]
    partitions = tuple(
        facts.partitions.get(name, Partition(name=name, found=False)) for name in names[:100]
    )
    asked = as_sbatch.fill(values)
    if not facts.spec_allowed:
        asked.update(core_spec=None, thread_spec=False)
    return Submission(
        cluster=facts.cluster,
        job_user_id=user_id,
        submit_user_id=user_id,
        user_name=user_name,
        partitions=partitions,
        account=account,
        associated=associated,
        qos=values["qos"] or None,
        **asked,
    )


def price_quote(
    options: Mapping[str, Any],
    *,
    account: Optional[str],
    associated: bool,
    user_id: int,
    user_name: str,
    config: Config,
    facts: Facts,
    ledger: Ledger,
) -> Dict[str, Any]:
    """The answer to a quote; ``verdict`` is what a submission would get now.

    :raises ValueError: an option is not one, or cannot have its value; Slurm would refuse it too.
    """
    sub = submission(
        options,
        account=account,
        associated=associated,
        user_id=user_id,
        user_name=user_name,
        facts=facts,
    )
    unknown = [partition.name for partition in sub.partitions if not partition.found]
    if unknown:
        raise ValueError(f"partition: Slurm has none called {', '.join(unknown)}")
    now = int(time.time())
    prices = config.prices_at(now)
    overdraft_csu = config.policy.overdraft_csu
    reply: Dict[str, Any] = {
        "ok": True,
        "as_of": now,
        "account": account,
        "estimate": None,
        "available_csu": None,
        "hints": asdict(Hints()),
        "read_at": 0,
    }
    rules: Dict[str, Any] = {
        "unlisted": config.policy.unlisted_partition,
        "horizon_min": config.policy.horizon_min,
        "lien_share": config.policy.lien_share,
    }
    if is_exempt(config, account=account, user_name=user_name, user_id=user_id, qos=sub.qos):
        return {**reply, **_verdict(Outcome.ACCEPTED, Reason.EXEMPT, "exempt: nothing is charged.")}
    try:
        cost = estimate(sub, prices, **rules)
    except Unpriceable as problem:
        message = messages.refused(problem.reason, account, problem.detail)
        return {**reply, **_verdict(Outcome.REFUSED, problem.reason, message)}
    reply["estimate"] = _estimate(cost)
    reason = None
    if account is None:
        reason = Reason.NO_ACCOUNT
    elif not associated:
        reason = Reason.NOT_ASSOCIATED
    if account is None or reason is not None:
        reason = reason or Reason.NO_ACCOUNT
        return {
            **reply,
            **_verdict(Outcome.REFUSED, reason, messages.refused(reason, account)),
        }
    with ledger.transaction(write=False) as tx:
        view = tx.funds_view(account, user_id)
        aside = tx.set_aside(account)
        allowed = tx.exception_for(user_id, None, now)
    decision = decide(cost.lien_csu, view, config.policy.mode, overdraft_csu=overdraft_csu)
    available = decision.available_csu
    reply["available_csu"] = available
    reply["read_at"] = view.read_at
    if decision.outcome is Outcome.ACCEPTED:
        left = None if available is None else available - cost.lien_csu
        warn_below = config.policy.warn_below
        low = low_funds(view, cost.lien_csu, warn_below) if cost.lien_csu else ()
        lines = [messages.low_funds(funds, warn_below) for funds in low]
        message = "\n".join([messages.accepted(account, cost, left), *lines])
    elif decision.outcome is Outcome.UNDECIDED:
        message = messages.refused(decision.reason, account)
    elif decision.reason in (Reason.INSUFFICIENT_FUNDS, Reason.INSUFFICIENT_USER_FUNDS):
        hints = what_would_fit(sub, prices, (available or 0) + overdraft_csu, **rules)
        reply["hints"] = asdict(hints)
        message = messages.insufficient(
            account, cost, available or 0, decision.reason, aside, hints, overdraft_csu
        )
    else:
        message = messages.refused(decision.reason, account)
    if decision.outcome is not Outcome.ACCEPTED:
        if allowed is not None:
            return {
                **reply,
                **_verdict(
                    Outcome.ACCEPTED,
                    Reason.ALLOWED,
                    f"{message}\nIt would be accepted all the same, by an operator's exception: {allowed}",
                ),
            }
        if config.policy.enforce == "log":
            message += '\nIt would be accepted all the same: enforce = "log" refuses nothing.'
    return {**reply, **_verdict(decision.outcome, decision.reason, message)}


def _verdict(outcome: Outcome, reason: Reason, message: str) -> Dict[str, Any]:
    return {"verdict": outcome.value, "reason": reason.value, "message": message}


def _estimate(cost: Estimate) -> Dict[str, Any]:
    return {
        "cost_csu": cost.cost_csu,
        "per_task_csu": cost.per_task_csu,
        "lien_csu": cost.lien_csu,
        "per_task_lien_csu": cost.per_task_lien_csu,
        **cost.inputs(),
        "hour": sums.hourly(cost.price, cost.tres),
        "warnings": list(cost.warnings),
    }
