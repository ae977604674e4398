# SPDX-License-Identifier: BSD-3-Clause
"""What a user is told: a refusal says what was asked, what there is, what would fit and where to look."""

from __future__ import annotations

from decimal import Decimal
from typing import List, Optional

from slurm_banking.amounts import EXACT, format_su
from slurm_banking.estimate import Hints, format_time_limit
from slurm_banking.ledger.rows import SetAside
from slurm_banking.prices import plain
from slurm_banking.records import Estimate, Funds, Reason


def _jobs(count: int, what: str) -> str:
    return f"{count} {what} {'job' if count == 1 else 'jobs'}"


def describe(estimate: Estimate) -> str:
    """``gpu, 8 CPUs, 2 GPUs, 01:00:00``; of memory and nodes only what costs something; for an array ``x 100 tasks``."""
    tres = estimate.tres
    priced = estimate.price.get("rates", "")
    words = [estimate.partition, _count(tres.cpus, "CPU")]
    if tres.gpus:
        words.append(_count(tres.gpu_count, "GPU"))
    if "mem_gb" in priced and tres.memory_mb:
        words.append(f"{tres.memory_mb / 1024:.4g} GB of memory")
    if "node" in priced and tres.nodes:
        words.append(_count(tres.nodes, "node"))
    words.append(format_time_limit(estimate.time_limit_min))
    if estimate.tasks > 1:
        words.append(f"x {estimate.tasks} tasks")
    return ", ".join(words)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def accepted(
    account: str, estimate: Estimate, left_csu: Optional[int], note: Optional[str] = None
) -> str:
    """``left_csu``: what is available after this job; None: not limited, or not known."""
    text = f"this job could cost up to {format_su(estimate.cost_csu)} SU ({describe(estimate)})"
    if estimate.lien_share != 1:
        text += f"; {format_su(estimate.lien_csu)} SU of that are set aside"
    if note is not None:
        return f"{text}; {note}"
    if left_csu is None:
        return text + "."
    return f"{text}; {account} has {format_su(left_csu)} SU left beside it."


def low_funds(funds: Funds, warn_below: Decimal) -> str:
    """A line of its own, after whatever else is told on acceptance."""
    who = funds.account if funds.user_id is None else f"your share of {funds.account}"
    percent = plain(EXACT.normalize(EXACT.multiply(warn_below, Decimal(100))))
    return (
        f"Note: {who} has less than {percent} % of its {format_su(funds.limit_csu or 0)} SU left."
    )


def _available(account: str, available_csu: int, reason: Reason, overdraft_csu: int) -> str:
    who = f"your share of {account}" if reason is Reason.INSUFFICIENT_USER_FUNDS else account
    text = f"{who} has {format_su(available_csu)} SU available"
    if overdraft_csu:
        text += f" and may go {format_su(overdraft_csu)} SU below zero"
    return text


def would_be_refused(
    reason: Reason, account: str, available_csu: Optional[int], overdraft_csu: int = 0
) -> str:
    """The note of what ``enforce = "log"`` accepts although it does not fit."""
    if reason in (Reason.INSUFFICIENT_FUNDS, Reason.INSUFFICIENT_USER_FUNDS):
        return would_be(f"{_available(account, available_csu or 0, reason, overdraft_csu)}.")
    return would_be(refused(reason, account))


def would_be(refusal: str) -> str:
    return f"it is accepted for now, and would be refused: {refusal}"


def insufficient(
    account: str,
    estimate: Estimate,
    available_csu: int,
    reason: Reason,
    set_aside: SetAside,
    hints: Hints,
    overdraft_csu: int = 0,
) -> str:
    share = ""
    if estimate.lien_share != 1:
        share = f", of which {format_su(estimate.lien_csu)} SU would be set aside"
    lines = [
        f"{_available(account, available_csu, reason, overdraft_csu)}; "
        f"this job could cost up to {format_su(estimate.cost_csu)} SU ({describe(estimate)}){share}."
    ]
    second: List[str] = []
    if set_aside.queued_csu or set_aside.running_csu:
        counted = ((set_aside.queued_jobs, "queued"), (set_aside.running_jobs, "running"))
        second.append(
            f"{format_su(set_aside.queued_csu + set_aside.running_csu)} SU are set aside in {account} for "
            f"{' and '.join(_jobs(count, what) for count, what in counted if count)}."
        )
    fits: List[str] = []
    if hints.time_limit is not None:
        fits.append(f"with --time={hints.time_limit} or less")
    if hints.partition is not None:
        fits.append(f"with --partition={hints.partition}")
    if fits:
        second.append(f"It would fit {', or '.join(fits)}.")
    if hints.tasks is not None:
        option = "" if hints.array is None else f": --array={hints.array}"
        second.append(f"{hints.tasks} of its {estimate.tasks} tasks would fit{option}.")
    elif not fits:
        second.append(
            "Nothing of it would fit; wait for jobs to end, or ask for more service units."
        )
    lines.append(" ".join(second))
    lines.append(f"See: slurm-banking balance {account}")
    return "\n".join(lines)


def refused(reason: Reason, account: Optional[str], detail: str = "") -> str:
    """A refusal that is not about an amount."""
    texts = {
        Reason.NO_ACCOUNT: "no account was given and you have no default account; use --account=NAME.",
        Reason.NOT_ASSOCIATED: f"you may not use account {account} here; see: sacctmgr show associations user=$USER",
        Reason.UNKNOWN_ACCOUNT: f"the bank does not know account {account}; ask its PI or the support desk.",
        Reason.UNKNOWN_USER: f"the bank does not have you as an active member of {account}; ask its PI to add you.",
        Reason.NO_ALLOCATION: f"account {account} has no active allocation at the bank; its PI can renew it.",
        Reason.UNPRICED_PARTITION: f"{detail}; choose another partition, or ask the support desk to price it.",
        Reason.UNLIMITED_TIME: f"{detail}; give a time limit, --time=HH:MM:SS.",
        Reason.MALFORMED: f"{detail}.",
        Reason.FUNDS_UNKNOWN: f"the bank cannot be asked about {account} right now; try again in some minutes.",
        Reason.LEDGER_UNAVAILABLE: "service units cannot be set aside right now; try again in some minutes.",
    }
    return texts.get(reason, f"refused ({reason.value}).")


def unchecked(reason: Reason) -> str:
    """The note of a submission accepted without a check."""
    if reason is Reason.LEDGER_UNAVAILABLE:
        return "service units could not be set aside right now."
    return "the bank could not be asked, so this was not checked."
