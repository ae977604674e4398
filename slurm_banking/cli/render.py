# SPDX-License-Identifier: BSD-3-Clause
"""The relay's answers as text. Pure: an answer in, lines out."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

from slurm_banking.cli import price
from slurm_banking.cli.text import (
    ago,
    day,
    duration,
    jobs,
    local,
    minutes,
    plain,
    su,
    sums,
    table,
)

Answer = Mapping[str, Any]

_KINDS: Mapping[Optional[str], str] = {
    "unlimited": "not limited",
    "not_banked": "not banked: its jobs are not checked",
    "unknown": "not known: the bank could not be asked yet",
    None: "not known: the bank has not been asked yet",
}
_REASONS: Mapping[str, str] = {
    "unknown_account": "the bank does not know this account",
    "unknown_user": "the bank does not have you as an active member of it",
    "no_allocation": "it has no active allocation at the bank",
}


# -- balance --------------------------------------------------------------------------------------------------------


def balance(answer: Answer) -> List[str]:
    rows = answer["accounts"]
    if not rows:
        return ["You have no account here; see: sacctmgr show associations user=$USER"]
    lines = _balance_of_one(answer, rows[0]) if len(rows) == 1 else _balance_of_many(answer, rows)
    return lines + _bank_away(answer)


def _bank_away(answer: Answer) -> List[str]:
    since = answer.get("bank_away_since")
    return [] if since is None else [f"The bank has not answered since {local(since)}."]


def _balance_of_many(answer: Answer, rows: Sequence[Answer]) -> List[str]:
    cells = []
    for row in rows:
        running = row["running_csu"] - row["running_at_bank_csu"]
        cells.append(
            [
                row["account"],
                su(row["limit_csu"]),
                su(row["used_csu"]),
                su(row["queued_csu"]),
                su(running),
                su(row["undelivered_csu"]),
                su(row["available_csu"]),
                su(row["available_for_user_csu"]),
                "never" if not row["read_at"] else local(row["read_at"]),
                _kind_note(row),
            ]
        )
    head = ["ACCOUNT", "ALLOCATED", "USED", "QUEUED", "RUNNING", "ON ITS WAY", "AVAILABLE"]
    head += ["FOR " + str(answer["user"]).upper(), "AS OF", ""]
    lines = table(head, cells, "lrrrrrrr")
    hidden = [row for row in rows if row["grandfathered_jobs"]]
    for row in hidden:
        lines.append(f"{row['account']}: {_grandfathered(row)}")
    return lines


def _kind_note(row: Answer) -> str:
    if row["reason"] is not None:
        return _REASONS.get(row["reason"], str(row["reason"]))
    if row["kind"] != "limited":
        return _KINDS.get(row["kind"], str(row["kind"]))
    user = row["user"]
    return "" if user["reason"] is None else _REASONS.get(user["reason"], str(user["reason"]))


def _grandfathered(row: Answer) -> str:
    return (
        f"{jobs(row['grandfathered_jobs'])} from before the ledger, up to {su(row['grandfathered_csu'])} SU, "
        "not counted until charged"
    )


def _balance_of_one(answer: Answer, row: Answer) -> List[str]:
    asked = "the bank was never asked"
    if row["read_at"]:
        asked = f"the bank was asked {ago(row['read_at'], answer['as_of'])}"
    lines = [f"{row['account']} at {local(answer['as_of'])} ({asked})", ""]
    amounts: List[List[str]] = []
    note = _kind_note(row)
    if row["kind"] == "limited":
        amounts.append(["allocated", su(row["limit_csu"]), _allocation(row)])
        amounts.append(["used at the bank", su(-row["used_csu"])])
    else:
        lines.append(f"  {note}")
    amounts.append([f"set aside: {jobs(row['queued_jobs'], 'queued')}", su(-row["queued_csu"])])
    amounts.append([f"set aside: {jobs(row['running_jobs'], 'running')}", su(-row["running_csu"])])
    if row["running_at_bank_csu"]:
        amounts.append(["  of which used at the bank", su(row["running_at_bank_csu"])])
    if row["undelivered_csu"]:
        amounts.append(["charged, on its way to the bank", su(-row["undelivered_csu"])])
    if row["kind"] == "limited":
        amounts.append(["available", su(row["available_csu"])])
    user = row["user"]
    if user["kind"] == "limited":
        share = f"allocated {su(user['limit_csu'])}, used {su(user['used_csu'])}"
        share += f", set aside or on its way {su(user['exposure_csu'])}"
        amounts.append([f"available to {answer['user']}", su(row["available_for_user_csu"]), share])
    elif row["kind"] == "limited":
        amounts.append(
            [
                f"available to {answer['user']}",
                su(row["available_for_user_csu"]),
                "no limit of one's own",
            ]
        )
    lines += sums(amounts)
    if row["kind"] == "limited" and note:
        lines += ["", f"  {note}"]
    if row["grandfathered_jobs"]:
        lines += ["", f"  {_grandfathered(row)}"]
    return lines


def _allocation(row: Answer) -> str:
    if not row["allocation"]:
        return ""
    text = f"allocation {plain(row['allocation'])}"
    if row["allocation_start"] is not None:
        text += f", {day(row['allocation_start'])} to {day(row['allocation_end'], 'open end')}"
    return text


# -- statement ------------------------------------------------------------------------------------------------------


def statement(answer: Answer) -> List[str]:
    whose = "" if answer["user"] is None else f", user {answer['user']}"
    lines = [
        f"Statement of {answer['account']}{whose}, {local(answer['since'])} to {local(min(answer['until'], answer['as_of']))}",
        "",
    ]
    cells = [
        [
            local(row["at"]),
            row["job"],
            plain(row["user_name"]) or str(row["user_id"]),
            row["partition"],
            row["state"].lower() if row["kind"] == "charge" else "restated",
            price.charge(row, brief=True),
            su(row["amount_csu"]),
            "" if row["delivered"] else ("parked" if row["parked"] else "waiting"),
        ]
        for row in answer["rows"]
    ]
    if cells:
        head = ["CHARGED AT", "JOB", "USER", "PARTITION", "STATE", "FOR", "SU", "BANK"]
        lines += table(head, cells, "llllllr")
    else:
        lines.append("No charges.")
    lines.append("")
    amounts: List[List[str]] = []
    if answer["opening_csu"] is not None:
        amounts.append(["opening balance", su(answer["opening_csu"])])
    amounts.append(["charges", su(-answer["charged_csu"]), jobs(answer["charges"])])
    if answer["adjustments"]:
        amounts.append(
            ["adjustments", su(-answer["adjusted_csu"]), f"{answer['adjustments']} restated"]
        )
    if answer["closing_csu"] is not None:
        amounts.append(["closing balance", su(answer["closing_csu"])])
    else:
        amounts.append(["sum", su(-answer["charged_csu"] - answer["adjusted_csu"])])
    lines += sums(amounts)
    if answer["hidden"]:
        lines.append(
            f"  Of these, {answer['hidden']} of other members ({su(answer['hidden_csu'])} SU) are not listed."
        )
    left_out = answer["charges"] + answer["adjustments"] - answer["hidden"] - answer["shown"]
    if left_out > 0:
        lines.append(f"  {left_out} more are not listed; ask for fewer days.")
    return lines


# -- jobs -----------------------------------------------------------------------------------------------------------


def job_list(answer: Answer) -> List[str]:
    cells: List[List[str]] = []
    for lien in answer["queued"]:
        inputs = lien["inputs"]
        tasks = f" x {lien['tasks_left']}" if lien["tasks_left"] != 1 else ""
        cells.append(
            [
                str(lien["job_id"] or "(new)") + ("_[...]" if tasks else ""),
                plain(lien["name"]) or "-",
                plain(lien["user_name"]) or str(lien["user_id"]),
                lien["account"],
                str(inputs.get("partition", "-")),
                _queued_state(lien),
                price.computing(inputs),
                minutes(inputs.get("time_limit_min")) + tasks,
                su(lien["shown_csu"]),
            ]
        )
    for run in answer["running"]:
        cells.append(
            _run_cells(
                run,
                "running" if run["counted"] else "grandfathered",
                minutes(run["time_limit_min"]),
                run["lien_csu"],
            )
        )
    for run in answer["ended"]:
        cells.append(
            _run_cells(
                run, run["slurm_state"].lower(), duration(run["elapsed_s"]), run["charge_csu"]
            )
        )
    if not cells:
        return ["No jobs."]
    head = [
        "JOB",
        "NAME",
        "USER",
        "ACCOUNT",
        "PARTITION",
        "STATE",
        "RESOURCES",
        "LIMIT OR ELAPSED",
        "SU",
    ]
    return table(head, cells, "llllllllr")


def _queued_state(lien: Answer) -> str:
    if lien["origin"] == "grandfathered":
        return "grandfathered"
    if not lien["counted"]:
        return "queued (not counted)"
    return "queued" if lien["state"] == "confirmed" else "submitted"


def _run_cells(run: Answer, state: str, time: str, csu: Optional[int]) -> List[str]:
    return [
        run["job"],
        plain(run["name"]) or "-",
        plain(run["user_name"]) or str(run["user_id"]),
        run["account"],
        run["partition"],
        state,
        price.computing({"cpus": run["cpus"], **run["inputs"]}),
        time,
        su(csu),
    ]


# -- quote ----------------------------------------------------------------------------------------------------------


def quote(answer: Answer) -> List[str]:
    lines: List[str] = []
    cost = answer["estimate"]
    if cost is not None:
        lines.append(
            f"{cost['partition']}: {_estimate_sum(cost)} = up to {su(cost['per_task_csu'])} SU"
        )
        if cost["tasks"] != 1:
            lines.append(
                f"{su(cost['per_task_csu'])} SU x {cost['tasks']} tasks = up to {su(cost['cost_csu'])} SU"
            )
        if not price.is_of_cpus(cost):
            lines.append(f"an hour: {price.hour(cost['hour'])}")
        if cost["lien_csu"] != cost["cost_csu"]:
            lines.append(
                f"set aside: a share of {cost['lien_share']} of that, {su(cost['lien_csu'])} SU"
            )
        where = f"{cost['nodes']} node" + ("" if cost["nodes"] == 1 else "s")
        if not price.is_of_cpus(cost):
            where += f" ({cost['tres']})"
        qos = "" if cost["qos"] is None else f", QOS {cost['qos']}"
        if price.is_of_cpus(cost) and cost["qos_multiplier"] not in (None, "1"):
            qos += f" (price {cost['rates']} x {cost['qos_multiplier']})"
        lines.append(
            f"account {answer['account']}, {where}{qos}, price list {cost['price_version']}"
        )
        lines += [f"note: {warning}" for warning in cost["warnings"]]
    words = {
        "accepted": "It fits",
        "refused": "It would be refused",
        "undecided": "It cannot be decided",
    }
    first, *rest = str(answer["message"]).split("\n")
    lines.append(f"{words.get(answer['verdict'], answer['verdict'])}: {first}")
    return lines + rest


def _estimate_sum(inputs: Answer) -> str:
    return price.product(inputs, minutes(inputs.get("time_limit_min")))


# -- why ------------------------------------------------------------------------------------------------------------


def why(answer: Answer) -> List[str]:
    subject: Dict[str, Any] = dict((answer["runs"] or answer["liens"] or answer["entries"])[0])
    name = f" ({plain(subject['name'])})" if subject.get("name") else ""
    user = plain(subject.get("user_name") or "") or f"uid {subject['user_id']}"
    lines = [f"Job {answer['job']}{name} of {user}, account {subject['account']}", ""]
    for entry in answer["entries"]:
        lines.append(f"{local(entry['at'])}  {_told(entry)}")
    if answer["entries_left_out"]:
        lines.append(
            f"... and {answer['entries_left_out']} more entries; ask for one task: {answer['job']}_TASK"
        )
    lines += ["", *_now(answer)]
    if answer["runs"] or answer["liens"]:
        lines.append(f"Each sum in full: slurm-banking explain {answer['job']}")
    return lines


def _told(entry: Answer) -> str:
    kind, reason = entry["kind"], plain_line(entry["reason"])
    inputs: Mapping[str, Any] = entry["inputs"] or {}
    moved = entry["amount_csu"]
    job = "" if entry["job_id"] is None else f"job {entry['job_id']} "
    if kind == "lien":
        tasks = inputs.get("tasks", 1)
        each = f", x {tasks} tasks" if tasks not in (None, 1) else ""
        counted = "" if moved else " (shown, not counted)"
        return (
            f"set aside {su(moved)} SU{counted}: {inputs.get('partition')}, {_estimate_sum(inputs)}{each}, "
            f"price list {inputs.get('price_version')} ({reason})"
        )
    if kind == "confirm":
        return f"confirmed: {reason}{_moved(moved)}"
    if kind in ("raise", "lower", "move"):
        verb = {"raise": "raised", "lower": "lowered", "move": "moved"}[kind]
        return f"{verb} by {su(abs(moved))} SU: {reason}"
    if kind == "lien_charged":
        return f"{su(-moved)} SU no longer set aside for the queued job: {reason}"
    if kind in ("lien_voided", "lien_expired"):
        return f"{su(-moved)} SU freed ({kind[5:]}): {reason}"
    if kind == "start":
        return f"{job}started: {su(moved)} SU set aside while it runs ({reason})"
    if kind == "charge":
        return f"{job}charged ({reason}): {_charge_sum(inputs)}{_moved(moved)}"
    if kind == "restated":
        return f"{job}charged anew: {_charge_sum(inputs)}{_moved(moved)} ({reason})"
    if kind == "delivered":
        if entry.get("actor", "relay") != "relay":
            return f"{job}{reason} ({plain(entry['actor'])})"
        return f"{job}delivered to the bank: {reason}"
    if kind == "note":
        told = str(inputs.get("message") or "").splitlines()
        return "\n    ".join(
            [f"{job}{reason} ({plain(entry['actor'])})", *(plain_line(line) for line in told)]
        )
    return f"{kind}: {reason}{_moved(moved)}"


def _moved(csu: int) -> str:
    return (
        ""
        if csu == 0
        else f"; what counts against funds changed by {'+' if csu > 0 else ''}{su(csu)} SU"
    )


def _charge_sum(inputs: Answer) -> str:
    return (
        f"{price.charge(inputs)} in {inputs.get('partition')}, "
        f"price list {inputs.get('price_version')}"
    )


def _now(answer: Answer) -> List[str]:
    lines: List[str] = []
    for lien in answer["liens"]:
        if lien["state"] == "ended":
            continue
        counted = "" if lien["counted"] else " (shown, not counted)"
        what = "" if lien["state"] == "confirmed" else ", not yet seen in Slurm's queue"
        lines.append(f"Now: queued, {su(lien['shown_csu'])} SU set aside{counted}{what}.")
        if lien["proposed_csu"] is not None:
            lines.append("     An update of it is not yet seen in Slurm's queue.")
    for run in answer["runs"][:20]:
        job = run["job"] + (f", restart {run['restart_count']}" if run["restart_count"] > 0 else "")
        if run["state"] == "running":
            counted = "" if run["counted"] else ", grandfathered: not counted until charged"
            aside_csu = max(run["lien_csu"], run["proposed_csu"] or 0)
            lines.append(f"Now: {job} runs, {su(aside_csu)} SU set aside{counted}.")
            if run["proposed_csu"] is not None:
                lines.append("     An update of it is not yet seen in Slurm's queue.")
        else:
            lines.append(
                f"Charge of {job}: {price.charge(_as_charged(run))} = {su(run['charge_csu'])} SU."
            )
        lines.append("     " + _delivery(run, answer))
    if len(answer["runs"]) > 20:
        lines.append(f"... and {len(answer['runs']) - 20} more runs.")
    if not lines:
        lines.append("Now: nothing is set aside for it, and nothing was charged.")
    return lines


def _as_charged(run: Answer) -> Answer:
    return {"cpus": run["cpus"], "elapsed_s": run["elapsed_s"], **run["inputs"]}


def _delivery(run: Answer, answer: Answer) -> str:
    if run["parked"]:
        return (
            f"The bank refuses it, and an operator has to look: {plain_line(run['parked'])}; "
            f"once that is mended: slurm-banking retry {run['job']}"
        )
    waiting = run["waiting_since"]
    if not waiting:
        return (
            f"The bank has it as {run['bank_job_id']}."
            if run["bank_job_id"]
            else "Nothing to deliver."
        )
    phase = "end" if "end" in waiting else "start"
    text = f"Its {phase} waits for the bank since {local(min(waiting.values()))}"
    detail = run.get("delivery") or {}
    if detail.get("last_error"):
        text += f": {plain_line(detail['last_error'])}"
    elif answer.get("bank_away_since") is not None:
        text += f": the bank has not answered since {local(answer['bank_away_since'])}"
    if (detail.get("next_try") or 0) > answer["as_of"]:
        text += f"; next try {local(int(detail['next_try']))}"
    return text + "."


# -- the rest -------------------------------------------------------------------------------------------------------


def exceptions(answer: Answer) -> List[str]:
    rows = answer["exceptions"]
    if not rows:
        return ["No exceptions are in force."]
    cells = [
        [
            f"user {row['user']}" if row["job_id"] is None else f"job {row['job_id']}",
            local(row["until"]),
            plain(row["actor"]),
            local(row["created"]),
            plain(row["reason"]),
        ]
        for row in rows
    ]
    return table(["FOR", "UNTIL", "BY", "SINCE", "REASON"], cells)


def allowed(answer: Answer, who: str) -> List[str]:
    return [
        f"{who} is accepted until {local(answer['until'])} although it may not fit: {answer['reason']}"
    ]


def status(answer: Answer, now: int) -> List[str]:
    rows = [["relay", f"version {answer['version']}, pid {answer['pid']}"]]
    if answer.get("cluster"):
        rows.append(["cluster", str(answer["cluster"])])
    if answer.get("started") is not None:
        rows.append(["running since", local(answer["started"])])
    away = answer.get("bank_away_since")
    rows.append(["bank", "answers" if away is None else f"has not answered since {local(away)}"])
    waiting = answer["outbox"]
    oldest = answer["outbox_oldest"]
    rows.append(
        [
            "to be delivered",
            "nothing" if not waiting else f"{waiting}, the oldest from {ago(oldest, now)}",
        ]
    )
    rows.append(["refused by the bank", str(answer["parked"]) if answer["parked"] else "nothing"])
    healing = (answer.get("deliveries") or {}).get("healing")
    if healing:
        rows.append(["refused for now", f"{healing}, tried again every few minutes"])
    complete = answer["ledger_complete"]
    rows.append(["ledger", "complete" if complete else "not yet compared with Slurm's queue"])
    sweep = answer.get("last_sweep")
    rows.append(["last sweep", "never" if sweep is None else ago(sweep, now)])
    for key, label in (
        ("open_liens", "open liens"),
        ("config", "configuration"),
        ("config_problem", "configuration problem"),
        ("state_dir", "ledger in"),
    ):
        if answer.get(key) is not None:
            rows.append([label, str(answer[key])])
    width = max(len(row[0]) for row in rows)
    lines = [f"{label.ljust(width)}  {value}" for label, value in rows]
    for step, problem in sorted((answer.get("failing") or {}).items()):
        lines.append(f"{step.ljust(width)}  failing: {plain_line(problem)}")
    for run in answer.get("parked_runs", [])[:20]:
        lines.append(
            f"job {run['job']} ({run['account']}): refused by the bank: {plain_line(run['reason'])}"
        )
    if answer.get("parked_runs"):
        lines.append("Once the cause is mended: slurm-banking retry JOB, or retry --all")
    lines += [f"DIFFERS: {plain_line(text)}" for text in answer.get("differs") or []]
    lines += [f"ALARM: {plain_line(alarm)}" for alarm in answer.get("alarms") or []]
    return lines


def plain_line(text: Any) -> str:
    """A whole line, without anything that moves the cursor."""
    return "".join(char if char.isprintable() else " " for char in str(text))[:400]


def retried(answer: Answer) -> List[str]:
    if not answer["runs"]:
        return ["There is nothing that the bank refused."]
    words = {
        "delivered": "delivered",
        "refused": "refused again",
        "waiting": "waits; see: slurm-banking status",
    }
    lines = []
    for run in answer["runs"]:
        text = f"job {run['job']} ({run['account']}): {words.get(run['result'], run['result'])}"
        lines.append(text + (f": {plain_line(run['reason'])}" if run["reason"] else ""))
    if answer["left_out"]:
        lines.append(f"... and {answer['left_out']} more.")
    return lines + _bank_away(answer)


def swept(answer: Answer) -> List[str]:
    report = answer["report"]
    if not report:
        return ["The sweep goes on; see: slurm-banking status"]
    return [f"{str(key).replace('_', ' ')}: {plain_line(value)}" for key, value in report.items()]
