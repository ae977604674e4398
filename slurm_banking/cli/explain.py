# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking explain`` as text: each amount of a job as the sum that it came from."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Dict, List, Mapping, Optional

from slurm_banking.cli import price
from slurm_banking.cli.text import duration, local, minutes, plain, su

Answer = Mapping[str, Any]


def explained(answer: Answer) -> List[str]:
    subject: Dict[str, Any] = dict(next(iter([*answer["runs"], *answer["liens"]]), {}))
    lines = [f"Job {answer['job']}"]
    if subject:
        name = f" ({plain(subject['name'])})" if subject["name"] else ""
        user = plain(subject["user_name"]) or f"uid {subject['user_id']}"
        lines = [f"Job {answer['job']}{name} of {user}, account {subject['account']}"]
    for lien in answer["liens"]:
        lines += ["", *_waiting(lien)]
    for run in answer["runs"]:
        lines += ["", *_run(run)]
    if answer["runs_left_out"]:
        lines += [
            "",
            f"... and {answer['runs_left_out']} more runs; ask for one task: {answer['job']}_TASK",
        ]
    if not subject:
        lines += ["", "Nothing is set aside for it, and nothing was charged."]
    return [*lines, "", f"The whole story: slurm-banking why {answer['job']}"]


def _waiting(lien: Answer) -> List[str]:
    job = lien["job_id"] or "(new)"
    counted = "" if lien["counted"] else " (shown, not counted)"
    lines = [f"{job} waits: {su(lien['amount_csu'])} SU set aside{counted}"]
    if lien["from_token"]:
        lines.append("  As its submission had it; the ledger of that time was lost.")
    lines += _estimate(lien["lien"], lien["per_task_csu"])
    if lien["tasks_left"] != 1:
        lines.append(f"  {su(lien['per_task_csu'])} SU x {lien['tasks_left']} tasks left")
    if lien["proposed_csu"] is not None:
        each = " each" if lien["tasks_left"] != 1 else ""
        lines.append(
            f"  An update of it, up to {su(lien['proposed_csu'])} SU{each}, is not yet seen in Slurm's queue."
        )
    return lines


def _run(run: Answer) -> List[str]:
    job = run["job"] + (f", restart {run['restart_count']}" if run["restart_count"] > 0 else "")
    when = f"started {local(run['start_time'], 'at a time that is not known')}"
    if run["state"] != "ended":
        lines = [f"Run {job}, {when}", f"  set aside: {su(run['lien_csu'])} SU"]
        return lines + _estimate(run["lien"], run["lien_csu"])
    state = str(run["slurm_state"]).lower()
    lines = [f"Run {job}, {when}, ended {local(run['end_time'])}, {state}"]
    lines.append(f"  set aside before: {su(run['lien_csu'])} SU")
    lines += _estimate(run["lien"], run["lien_csu"])
    lines.append(f"  charged: {su(run['charge_csu'])} SU")
    return lines + _charge(run)


def _estimate(lien: Optional[Answer], amount_csu: int) -> List[str]:
    """``amount_csu``: what the ledger has; an update, or nodes given back, may have moved it."""
    if lien is None:
        return ["    What it was counted from was not kept."]
    lines = [
        f"    estimate: {lien['tres']} in {lien['partition']} for {minutes(lien['time_limit_min'])}",
        f"    an hour: {price.hour(lien['hour'])}",
        f"    {lien['hour']['su_per_hour']} SU x {minutes(lien['time_limit_min'])} = {lien['exact_su']} SU, "
        f"rounded up: {su(lien['per_task_csu'])} SU",
    ]
    if Decimal(lien["lien_share"]) != 1:
        lines.append(
            f"    of that a share of {lien['lien_share']} is set aside: {su(lien['per_task_lien_csu'])} SU"
        )
    if lien["per_task_lien_csu"] != amount_csu:
        lines.append(f"    The ledger has {su(amount_csu)} SU: an update or a resize moved it.")
    lines.append(f"    price list {lien['price_version']}")
    return lines


def _charge(run: Answer) -> List[str]:
    charge = run["charge"]
    reason = run.get("charged_because") or ""
    if charge is None:
        return [f"    What it was counted from was not kept ({plain(reason)})."]
    lines: List[str] = []
    for segment in charge["segments"]:
        hour = segment["hour"]
        lines.append(f"    allocated: {segment['tres']} in {charge['partition']}")
        lines.append(f"    an hour: {price.hour(hour)}")
        lines.append(f"    {hour['su_per_hour']} SU x {duration(segment['seconds'])}")
    if len(charge["segments"]) > 1:
        lines.append("    added, since it was resized")
    if Decimal(charge["state_factor"]) != 1:
        lines.append(f"    x {charge['state_factor']} for {str(charge['state']).lower()}")
    lines.append(
        f"    = {charge['exact_su']} SU, rounded half up: {su(charge['recomputed_csu'])} SU"
    )
    since = charge["in_force_since"]
    if since is None:
        in_force = ""
    elif since == 0:
        in_force = ", in force from the ledger's beginning"
    else:
        in_force = f", in force since {local(since)}"
    lines.append(f"    price list {charge['price_version']}{in_force}")
    if charge["agrees"]:
        lines.append("    Computed again from what the ledger stored: as charged.")
    else:
        lines.append(
            f"    Computed again from what the ledger stored: {su(charge['recomputed_csu'])} SU. "
            f"It was charged {su(run['charge_csu'])} SU ({plain(reason)})."
        )
    return lines
