# SPDX-License-Identifier: BSD-3-Clause
"""A quote: the estimate and the verdict that a submission would get now, by the code that decides submissions.

What slurmctld fills in at submission (default partition, partition limits, node sizes) comes from what Slurm tells about
its partitions; nothing is written.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Dict, Mapping, Optional, Tuple

from slurm_banking import messages
from slurm_banking.config import Config
from slurm_banking.estimate import Hints, Unpriceable, estimate, what_would_fit
from slurm_banking.ledger import Ledger
from slurm_banking.policy import decide, is_exempt
from slurm_banking.records import (
    UNLIMITED,
    Estimate,
    Outcome,
    Partition,
    Reason,
    Submission,
)


@dataclass(frozen=True)
class Facts:
    """What Slurm says about its partitions."""

    cluster: str
    partitions: Mapping[str, Partition]
    default_partition: Optional[str]  #: None: the cluster has none


#: The options of a quote with what each may be; None is always "not given".
NUMBERS: Mapping[str, Tuple[int, int]] = {
    "time_limit_min": (UNLIMITED, 2**31),
    "time_min_min": (1, 2**31),
    "min_nodes": (0, 10_000_000),
    "max_nodes": (0, 10_000_000),
    "num_tasks": (1, 100_000_000),
    "cpus_per_task": (1, 65_000),
    "ntasks_per_node": (1, 65_000),
    "threads_per_core": (1, 1_024),
    "core_spec": (0, 65_000),
    "memory_mb": (0, 2**50),
}
TEXTS = ("account", "partition", "qos", "array_inx", "name")
FLAGS = ("exclusive", "overcommit", "memory_per_cpu")


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
    numbers: Dict[str, Any] = dict.fromkeys(NUMBERS)
    texts: Dict[str, str] = dict.fromkeys(TEXTS, "")
    flags: Dict[str, Any] = dict.fromkeys(FLAGS, False)
    for key, value in options.items():
        if value is None:
            continue
        if key in NUMBERS:
            least, most = NUMBERS[key]
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{key}: expected a whole number from {least} to {most}")
            numbers[key] = value
        elif key in TEXTS:
            if not isinstance(value, str) or len(value) > 10_000 or not value.isprintable():
                raise ValueError(f"{key}: expected printable text")
            texts[key] = value
        elif key in FLAGS:
            if not isinstance(value, bool):
                raise ValueError(f"{key}: expected true or false")
            flags[key] = value
        else:
            raise ValueError(f"{str(key)[:60]!r}: no such option")
    names = [name for name in texts["partition"].split(",") if name]
    if not names:
        if facts.default_partition is None:
            raise ValueError("partition: missing, and this cluster has no default partition")
        names = [facts.default_partition]
    partitions = tuple(
        facts.partitions.get(name, Partition(name=name, found=False)) for name in names[:100]
    )
    min_nodes = numbers["min_nodes"] or None
    num_tasks = numbers["num_tasks"]
    cpus_per_task = numbers["cpus_per_task"] or 1
    if num_tasks is None and numbers["ntasks_per_node"] is not None and min_nodes is not None:
        num_tasks = numbers["ntasks_per_node"] * min_nodes  # as sbatch itself does
    min_cpus = max((num_tasks or min_nodes or 1) * cpus_per_task, min_nodes or 1)
    return Submission(
        cluster=facts.cluster,
        job_user_id=user_id,
        submit_user_id=user_id,
        user_name=user_name,
        partitions=partitions,
        account=account,
        associated=associated,
        qos=texts["qos"] or None,
        time_limit_min=numbers["time_limit_min"],
        time_min_min=numbers["time_min_min"],
        min_cpus=min_cpus,
        min_nodes=min_nodes,
        max_nodes=numbers["max_nodes"] or None,
        num_tasks=num_tasks,
        cpus_per_task=numbers["cpus_per_task"],
        ntasks_per_node=numbers["ntasks_per_node"],
        threads_per_core=numbers["threads_per_core"],
        core_spec=numbers["core_spec"],
        memory_mb=numbers["memory_mb"],
        array_inx=texts["array_inx"],
        name=texts["name"],
        **flags,
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
    reply: Dict[str, Any] = {
        "ok": True,
        "as_of": int(time.time()),
        "account": account,
        "estimate": None,
        "available_csu": None,
        "hints": asdict(Hints()),
        "read_at": 0,
    }
    rules: Dict[str, Any] = {
        "unlisted": config.policy.unlisted_partition,
        "horizon_min": config.policy.horizon_min,
    }
    if is_exempt(config, account=account, user_name=user_name, user_id=user_id, qos=sub.qos):
        return {**reply, **_verdict(Outcome.ACCEPTED, Reason.EXEMPT, "exempt: nothing is charged.")}
    try:
        cost = estimate(sub, config.prices, **rules)
    except Unpriceable as problem:
        message = messages.refused(problem.reason, account, problem.detail)
        return {**reply, **_verdict(Outcome.REFUSED, problem.reason, message)}
    reply["estimate"] = _estimate(cost, config)
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
        allowed = tx.exception_for(user_id, None, int(time.time()))
    decision = decide(cost.cost_csu, view, config.policy.mode)
    available = decision.available_csu
    reply["available_csu"] = available
    reply["read_at"] = view.read_at
    if decision.outcome is Outcome.ACCEPTED:
        left = None if available is None else available - cost.cost_csu
        message = messages.accepted(account, cost, left)
    elif decision.outcome is Outcome.UNDECIDED:
        message = messages.refused(decision.reason, account)
    elif decision.reason in (Reason.INSUFFICIENT_FUNDS, Reason.INSUFFICIENT_USER_FUNDS):
        hints = what_would_fit(sub, config.prices, available or 0, **rules)
        reply["hints"] = asdict(hints)
        message = messages.insufficient(
            account, cost, available or 0, decision.reason, aside, hints
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


def _estimate(cost: Estimate, config: Config) -> Dict[str, Any]:
    price = config.prices.price(cost.partition, cost.qos)
    return {
        "cost_csu": cost.cost_csu,
        "per_task_csu": cost.per_task_csu,
        **cost.inputs(),
        "partition_su": None if price is None else str(price.partition_su),
        "qos_multiplier": None if price is None else str(price.qos_multiplier),
        "warnings": list(cost.warnings),
    }
