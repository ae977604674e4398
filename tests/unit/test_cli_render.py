# SPDX-License-Identifier: BSD-3-Clause
"""The relay's answers as people read them, letter by letter."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Dict, List

from slurm_banking.cli import render
from slurm_banking.cli.explain import explained

COMMANDS = Path(__file__).resolve().parents[2] / "docs" / "commands.md"


def at(text: str) -> int:
    return int(time.mktime(time.strptime(text, "%Y-%m-%d %H:%M:%S")))


NOW = at("2026-11-21 09:30:00")


def balance_row(**changes: Any) -> Dict[str, Any]:
    row = {
        "account": "fc_astro",
        "kind": "limited",
        "reason": None,
        "limit_csu": 100000,
        "used_csu": 50000,
        "remaining_csu": 50000,
        "allocation": "7",
        "allocation_start": at("2026-06-01 00:00:00"),
        "allocation_end": at("2027-05-31 00:00:00"),
        "queued_csu": 12000,
        "queued_jobs": 3,
        "running_csu": 4000,
        "running_jobs": 1,
        "running_at_bank_csu": 0,
        "undelivered_csu": 450,
        "grandfathered_csu": 0,
        "grandfathered_jobs": 0,
        "available_csu": 33550,
        "user": {
            "user_id": 1000,
            "kind": "limited",
            "reason": None,
            "limit_csu": 20000,
            "used_csu": 9000,
            "remaining_csu": 11000,
            "exposure_csu": 1000,
            "available_csu": 10000,
        },
        "available_for_user_csu": 10000,
        "read_at": NOW - 12,
    }
    return {**row, **changes}


def balance(*rows: Dict[str, Any], **changes: Any) -> List[str]:
    answer = {"as_of": NOW, "user": "alice", "bank_away_since": None, "accounts": list(rows)}
    return render.balance({**answer, **changes})


def example(command: str) -> str:
    """What docs/commands.md shows for a command."""
    match = re.search(rf"```\n\$ {re.escape(command)}\n(.*?)\n```", COMMANDS.read_text(), re.DOTALL)
    assert match, command
    return match[1]


def test_a_balance_is_as_the_documentation_shows_it() -> None:
    assert "\n".join(balance(balance_row())) == example("slurm-banking balance fc_astro")


def test_the_lines_of_a_balance_add_up_to_what_is_available() -> None:
    lines = balance(balance_row(running_at_bank_csu=1000, available_csu=34550))
    amounts = [
        int(float(match[1]) * 100)
        for line in lines
        if (match := re.search(r"\s(-?\d+\.\d\d)\b", line))
    ]
    *parts, available, _ = amounts
    assert sum(parts) == available == 34550


def test_what_stands_in_a_balance_besides_numbers() -> None:
    lines = balance(
        balance_row(grandfathered_csu=700, grandfathered_jobs=2), bank_away_since=NOW - 600
    )
    assert "  2 jobs from before the ledger, up to 7.00 SU, not counted until charged" in lines
    assert lines[-1] == "The bank has not answered since 2026-11-21T09:20:00."


def test_an_account_without_a_limit_shows_what_is_set_aside() -> None:
    nothing = {"limit_csu": None, "used_csu": None, "remaining_csu": None, "available_csu": None}
    user = {**balance_row()["user"], **nothing, "kind": "unlimited"}
    lines = balance(
        balance_row(
            **nothing, kind="unlimited", user=user, available_for_user_csu=None, undelivered_csu=0
        )
    )
    assert lines[2:] == [
        "  not limited",
        "  set aside: 3 queued jobs  -120.00",
        "  set aside: 1 running job   -40.00",
    ]


def test_an_account_that_the_bank_does_not_know_says_so() -> None:
    row = balance_row(reason="unknown_account", limit_csu=0, used_csu=0, remaining_csu=0)
    assert "  the bank does not know this account" in balance(row)


def test_several_accounts_are_a_table() -> None:
    other = balance_row(
        account="co_bio",
        kind=None,
        limit_csu=None,
        used_csu=None,
        available_csu=None,
        available_for_user_csu=None,
        read_at=0,
        user={**balance_row()["user"], "kind": None},
    )
    assert balance(balance_row(), other) == [
        "ACCOUNT   ALLOCATED    USED  QUEUED  RUNNING  ON ITS WAY  AVAILABLE  FOR ALICE  AS OF",
        "fc_astro    1000.00  500.00  120.00    40.00        4.50     335.50     100.00  2026-11-21T09:29:48",
        "co_bio            -       -  120.00    40.00        4.50          -          -  never"
        "                not known: the bank has not been asked yet",
    ]


def test_somebody_without_an_account_is_told_where_to_look() -> None:
    assert balance() == ["You have no account here; see: sacctmgr show associations user=$USER"]


def statement_row(**changes: Any) -> Dict[str, Any]:
    row = {
        "at": NOW - 3600,
        "kind": "charge",
        "amount_csu": 400,
        "job": "20",
        "user_name": "alice",
        "user_id": 1000,
        "partition": "main",
        "state": "COMPLETED",
        "cpus": 4,
        "elapsed_s": 3600,
        "tres": None,
        "segments": None,
        "rates": "1.0",
        "qos_multiplier": "1",
        "state_factor": "1",
        "delivered": True,
        "parked": None,
    }
    return {**row, **changes}


def statement(**changes: Any) -> List[str]:
    answer = {
        "account": "fc_astro",
        "user": None,
        "since": NOW - 86400,
        "until": NOW + 1,
        "as_of": NOW,
        "rows": [
            statement_row(),
            statement_row(job="21_3", cpus=1, amount_csu=100, delivered=False),
            statement_row(
                job="20",
                kind="restated",
                elapsed_s=1800,
                amount_csu=-200,
                delivered=False,
                parked="no",
            ),
        ],
        "charges": 3,
        "charged_csu": 800,
        "adjustments": 1,
        "adjusted_csu": -200,
        "shown": 3,
        "hidden": 1,
        "hidden_csu": 300,
        "opening_csu": 90000,
        "closing_csu": 89400,
    }
    return render.statement({**answer, **changes})


def test_a_statement_lists_charges_and_adds_them_up() -> None:
    assert statement() == [
        "Statement of fc_astro, 2026-11-20T09:30:00 to 2026-11-21T09:30:00",
        "",
        "CHARGED AT           JOB   USER   PARTITION  STATE      FOR                         SU  BANK",
        "2026-11-21T08:30:00  20    alice  main       completed  4 CPUs x 01:00:00 x 1.0   4.00",
        "2026-11-21T08:30:00  21_3  alice  main       completed  1 CPU x 01:00:00 x 1.0    1.00  waiting",
        "2026-11-21T08:30:00  20    alice  main       restated   4 CPUs x 00:30:00 x 1.0  -2.00  parked",
        "",
        "  opening balance  900.00",
        "  charges           -8.00  3 jobs",
        "  adjustments        2.00  1 restated",
        "  closing balance  894.00",
        "  Of these, 1 of other members (3.00 SU) are not listed.",
    ]


def test_a_statement_without_balances_shows_the_sum() -> None:
    lines = statement(opening_csu=None, closing_csu=None)
    assert "  sum          -6.00" in lines
    assert not any("balance" in line for line in lines)


def test_an_empty_statement_says_so() -> None:
    empty = {
        "rows": [],
        "charges": 0,
        "charged_csu": 0,
        "adjustments": 0,
        "adjusted_csu": 0,
        "shown": 0,
        "hidden": 0,
    }
    assert "No charges." in statement(**empty)


def lien(**changes: Any) -> Dict[str, Any]:
    row = {
        "lien_id": "ab" * 16,
        "job_id": 30,
        "state": "confirmed",
        "end_kind": None,
        "origin": "submit",
        "counted": True,
        "account": "fc_astro",
        "user_id": 1000,
        "user_name": "alice",
        "name": "fit",
        "tasks_left": 1,
        "per_task_csu": 800,
        "proposed_csu": None,
        "amount_csu": 800,
        "shown_csu": 800,
        "inputs": {
            "partition": "main",
            "cpus": 4,
            "time_limit_min": 120,
            "rates": "1.0",
            "qos_multiplier": "1",
            "price_version": "abc",
        },
        "created": NOW,
        "confirmed": NOW,
        "ended": None,
    }
    return {**row, **changes}


def run(**changes: Any) -> Dict[str, Any]:
    row = {
        "job": "40",
        "job_id": 40,
        "restart_count": 0,
        "state": "ended",
        "counted": True,
        "name": "fit",
        "user_name": "alice",
        "user_id": 1000,
        "account": "fc_astro",
        "partition": "main",
        "cpus": 4,
        "elapsed_s": 3600,
        "time_limit_min": 120,
        "slurm_state": "COMPLETED",
        "lien_csu": 800,
        "charge_csu": 400,
        "bank_job_id": "40",
        "parked": None,
        "inputs": {"rates": "1.0", "qos_multiplier": "1"},
        "waiting_since": {},
        "delivery": {},
    }
    return {**row, **changes}


def test_jobs_are_a_table_of_queued_running_and_ended_ones() -> None:
    answer = {
        "queued": [
            lien(),
            lien(job_id=31, tasks_left=9, shown_csu=7200),
            lien(job_id=None, state="unconfirmed"),
        ],
        "running": [run(state="running", charge_csu=None), run(job="41", counted=False)],
        "ended": [run(job="42_1", slurm_state="TIMEOUT")],
    }
    assert render.job_list(answer) == [
        "JOB       NAME  USER   ACCOUNT   PARTITION  STATE          RESOURCES  LIMIT OR ELAPSED     SU",
        "30        fit   alice  fc_astro  main       queued         4 CPUs     02:00:00           8.00",
        "31_[...]  fit   alice  fc_astro  main       queued         4 CPUs     02:00:00 x 9      72.00",
        "(new)     fit   alice  fc_astro  main       submitted      4 CPUs     02:00:00           8.00",
        "40        fit   alice  fc_astro  main       running        4 CPUs     02:00:00           8.00",
        "41        fit   alice  fc_astro  main       grandfathered  4 CPUs     02:00:00           8.00",
        "42_1      fit   alice  fc_astro  main       timeout        4 CPUs     01:00:00           4.00",
    ]
    assert render.job_list({"queued": [], "running": [], "ended": []}) == ["No jobs."]


def quote(**changes: Any) -> List[str]:
    answer = {
        "account": "fc_astro",
        "estimate": {
            "cost_csu": 600,
            "per_task_csu": 600,
            "partition": "main",
            "qos": None,
            "cpus": 4,
            "nodes": 1,
            "time_limit_min": 90,
            "tasks": 1,
            "lien_csu": 600,
            "tres": "cpu=4,mem=8000M,node=1,billing=4",
            "rates": "1.0",
            "price_version": "7bbfe105e9",
            "qos_multiplier": "1",
            "warnings": [],
        },
        "verdict": "accepted",
        "reason": "fits",
        "message": "this job could cost up to 6.00 SU (main, 4 CPUs, 01:30:00); fc_astro has 329.50 SU left beside it.",
    }
    return render.quote({**answer, **changes})


def test_a_quote_is_as_the_documentation_shows_it() -> None:
    assert "\n".join(quote()) == example("slurm-banking quote -A fc_astro -n 4 -t 90")


GPUS = {
    "partition": "gpu",
    "tres": "cpu=8,mem=32000M,node=1,gres/gpu=2,gres/gpu:a100=2",
    "rates": {"cpu": "1", "gpu:a100": "40", "combine": "sum"},
    "qos_multiplier": "1",
}


HOUR = {
    "parts": [
        {"resource": "cpu", "units": "8", "su": "1", "su_per_hour": "8"},
        {"resource": "gpu:a100", "units": "2", "su": "40", "su_per_hour": "80"},
    ],
    "combine": "sum",
    "qos_multiplier": "1",
    "su_per_hour": "88",
}


def of_gpus(**changes: Any) -> Dict[str, Any]:
    cost = {**GPUS, "cost_csu": 13200, "per_task_csu": 13200, "tasks": 1, "nodes": 1, "hour": HOUR}
    cost |= {"lien_csu": 13200, "time_limit_min": 90, "qos": None, "price_version": "1c3b6c1f2a"}
    return {**cost, "warnings": [], **changes}


def test_a_quote_of_gpus_is_as_the_documentation_shows_it() -> None:
    message = (
        "this job could cost up to 132.00 SU (gpu, 8 CPUs, 01:30:00); "
        "fc_astro has 203.50 SU left beside it."
    )
    command = "slurm-banking quote -p gpu --gpus=a100:2 --cpus-per-gpu=4 --nodes=1 -t 90"
    assert "\n".join(quote(estimate=of_gpus(), message=message)) == example(command)


def test_an_explanation_is_as_the_documentation_shows_it() -> None:
    lien = {
        **of_gpus(time_limit_min=120, exact_su="176", lien_share="1"),
        "per_task_csu": 17600,
        "per_task_lien_csu": 17600,
    }
    segment = {"tres": GPUS["tres"], "seconds": 5400, "hour": HOUR}
    charge = {
        "partition": "gpu",
        "segments": [segment],
        "state": "COMPLETED",
        "state_factor": "1",
        "exact_su": "132",
        "recomputed_csu": 13200,
        "agrees": True,
        "price_version": "1c3b6c1f2a",
        "in_force_since": 1782864000,
    }
    ended = run(
        name="train",
        start_time=NOW - 604800 + 45900,
        end_time=NOW - 604800 + 51300,
        lien_csu=17600,
        charge_csu=13200,
        lien=lien,
        charge=charge,
        charged_because="completed",
    )
    answer = {"job": "40", "runs": [ended], "runs_left_out": 0, "liens": []}
    assert "\n".join(explained(answer)) == example("slurm-banking explain 40")


def test_a_quote_of_more_than_cpus_shows_what_an_hour_is_made_of() -> None:
    cost = of_gpus(lien_csu=6600, lien_share="0.5", qos="high", price_version="v")
    assert quote(estimate=cost, message="yes") == [
        "gpu: 8 CPUs, 2 a100 GPUs x 01:30:00 x 88 SU per hour = up to 132.00 SU",
        "an hour: 8 CPUs x 1 + 2 a100 GPUs x 40 = 88 SU",
        "set aside: a share of 0.5 of that, 66.00 SU",
        "account fc_astro, 1 node (cpu=8,mem=32000M,node=1,gres/gpu=2,gres/gpu:a100=2), QOS high, price list v",
        "It fits: yes",
    ]


def test_gpus_are_in_the_list_of_jobs_and_in_the_statement() -> None:
    row = lien(inputs={**GPUS, "time_limit_min": 90})
    listed = render.job_list({"queued": [row], "running": [], "ended": []})
    assert "8 CPUs, 2 a100 GPUs  01:30:00" in listed[1]
    rows = [
        statement_row(**GPUS, elapsed_s=5400),
        statement_row(**{**GPUS, "qos_multiplier": "0.5"}, elapsed_s=5400, state_factor="0"),
        statement_row(segments=[["cpu=8,node=2", 7200], ["cpu=4,node=1", 3600]]),
        statement_row(**GPUS, segments=[[GPUS["tres"], 60], ["cpu=1,node=1", 60]]),
    ]
    told = [re.split(r"  +", line)[5] for line in statement(rows=rows)[3:7]]
    assert told == [
        "8 CPUs, 2 a100 GPUs x 01:30:00 x 88",
        "8 CPUs, 2 a100 GPUs x 01:30:00 x 44 x 0 (completed)",
        "(8 CPUs x 02:00:00 + 4 CPUs x 01:00:00) x 1.0",
        "2 segments",
    ]


def test_a_story_tells_each_segment_and_the_share_of_its_state() -> None:
    segments = [[GPUS["tres"], 3600], ["cpu=4,mem=16000M,node=1", 1800]]
    ended = run(inputs={**GPUS, "segments": segments, "state": "NODE_FAIL", "state_factor": "0.5"})
    assert (
        "Charge of 40: (8 CPUs, 2 a100 GPUs x 01:00:00 x 88 SU per hour + 4 CPUs x 00:30:00 x "
        "4 SU per hour) x 0.5 (node_fail) = 4.00 SU." in why(runs=[ended])
    )


def test_a_refused_update_is_a_note_of_the_story_even_without_lien_or_run() -> None:
    note = {**entry("note", 0, "update refused: astro has 1.00 SU available"), "actor": "slurmctld"}
    lines = why(
        entries=[{**note, "account": "fc_astro", "user_id": 7}], runs=[], liens=[], job="40"
    )
    assert lines[0] == "Job 40 of uid 7, account fc_astro"
    assert lines[2].endswith("job 40 update refused: astro has 1.00 SU available (slurmctld)")


def test_a_quote_of_an_array_shows_both_multiplications() -> None:
    cost = {
        "cost_csu": 6000,
        "per_task_csu": 600,
        "tasks": 10,
        "partition": "main",
        "cpus": 4,
        "nodes": 2,
    }
    cost |= {"time_limit_min": 90, "rates": "1.0", "price_version": "v", "qos": "high"}
    cost |= {"lien_csu": 6000, "qos_multiplier": "1.5", "warnings": ["unlisted"]}
    assert quote(estimate=cost, verdict="refused", message="too much\nSee: there") == [
        "main: 4 CPUs x 01:30:00 x 1.5 SU per CPU-hour = up to 6.00 SU",
        "6.00 SU x 10 tasks = up to 60.00 SU",
        "account fc_astro, 2 nodes, QOS high (price 1.0 x 1.5), price list v",
        "note: unlisted",
        "It would be refused: too much",
        "See: there",
    ]


def entry(kind: str, csu: int, reason: str, **inputs: Any) -> Dict[str, Any]:
    return {
        "at": NOW,
        "kind": kind,
        "amount_csu": csu,
        "reason": reason,
        "job_id": 40,
        "inputs": inputs or None,
    }


def why(**changes: Any) -> List[str]:
    cost = {
        "partition": "main",
        "cpus": 4,
        "time_limit_min": 120,
        "rates": "1.0",
        "qos_multiplier": "1",
        "price_version": "abc",
    }
    answer = {
        "job": "40",
        "as_of": NOW,
        "bank_away_since": None,
        "liens": [lien(job_id=40, state="ended")],
        "runs": [run()],
        "entries": [
            entry("lien", 800, "fits", tasks=1, **cost),
            entry("confirm", 0, "seen in Slurm's queue"),
            entry("raise", 400, "update wanted"),
            entry("lower", -400, "as the queue shows it"),
            entry("lien_charged", -800, "job 40 started"),
            entry("start", 800, "started", **cost),
            entry("charge", -400, "completed", elapsed_s=3600, **cost),
            entry("delivered", 0, "end delivered as 40", bank_csu=400),
        ],
        "entries_left_out": 0,
    }
    return render.why({**answer, **changes})


def test_why_tells_every_entry_and_how_it_stands_now() -> None:
    stamp = "2026-11-21T09:30:00  "
    assert why() == [
        "Job 40 (fit) of alice, account fc_astro",
        "",
        stamp
        + "set aside 8.00 SU: main, 4 CPUs x 02:00:00 x 1.0 SU per CPU-hour, price list abc (fits)",
        stamp + "confirmed: seen in Slurm's queue",
        stamp + "raised by 4.00 SU: update wanted",
        stamp + "lowered by 4.00 SU: as the queue shows it",
        stamp + "8.00 SU no longer set aside for the queued job: job 40 started",
        stamp + "job 40 started: 8.00 SU set aside while it runs (started)",
        stamp
        + "job 40 charged (completed): 4 CPUs x 01:00:00 x 1.0 SU per CPU-hour in main, price list abc; "
        "what counts against funds changed by -4.00 SU",
        stamp + "job 40 delivered to the bank: end delivered as 40",
        "",
        "Charge of 40: 4 CPUs x 01:00:00 x 1.0 SU per CPU-hour = 4.00 SU.",
        "     The bank has it as 40.",
        "Each sum in full: slurm-banking explain 40",
    ]


def test_why_says_since_when_and_why_a_delivery_waits() -> None:
    waiting = run(
        waiting_since={"end": NOW - 60}, delivery={"last_error": "bank: 503", "next_try": NOW + 30}
    )
    assert why(runs=[waiting])[-2].strip() == (
        "Its end waits for the bank since 2026-11-21T09:29:00: bank: 503; next try 2026-11-21T09:30:30."
    )
    away = why(runs=[run(waiting_since={"end": NOW - 60})], bank_away_since=NOW - 90)[-2]
    assert "the bank has not answered since 2026-11-21T09:28:30" in away
    parked = why(runs=[run(parked="not a member", waiting_since={"end": NOW})])[-2]
    assert parked.strip() == (
        "The bank refuses it, and an operator has to look: not a member; "
        "once that is mended: slurm-banking retry 40"
    )


def test_why_of_a_queued_job_says_what_is_set_aside() -> None:
    queued = lien(state="unconfirmed", proposed_csu=900, shown_csu=900)
    assert why(runs=[], liens=[queued])[-3:-1] == [
        "Now: queued, 9.00 SU set aside, not yet seen in Slurm's queue.",
        "     An update of it is not yet seen in Slurm's queue.",
    ]


def test_a_job_that_left_nothing_says_so() -> None:
    assert why(runs=[])[-2] == "Now: nothing is set aside for it, and nothing was charged."


def test_status_of_a_healthy_relay() -> None:
    answer = {
        "version": "0.1.0",
        "pid": 7,
        "cluster": "demo",
        "started": NOW - 60,
        "bank_away_since": None,
        "outbox": 0,
        "outbox_oldest": None,
        "parked": 0,
        "ledger_complete": True,
        "last_sweep": NOW - 3,
    }
    assert render.status(answer, NOW) == [
        "relay                version 0.1.0, pid 7",
        "cluster              demo",
        "running since        2026-11-21T09:29:00",
        "bank                 answers",
        "to be delivered      nothing",
        "refused by the bank  nothing",
        "ledger               complete",
        "last sweep           3 s ago",
    ]


def test_status_of_a_relay_that_needs_somebody() -> None:
    answer = {
        "version": "0.1.0",
        "pid": 7,
        "bank_away_since": NOW - 600,
        "outbox": 12,
        "outbox_oldest": NOW - 500,
        "parked": 1,
        "parked_runs": [{"job": "40", "account": "fc_astro", "reason": "not a member"}],
        "deliveries": {"healing": 3, "parked": 1},
        "differs": ["the relay runs version 0.0.9, this command is 0.1.0: restart the relay"],
        "ledger_complete": False,
        "last_sweep": None,
        "failing": {"queue": "SlurmUnavailable: squeue: down"},
        "alarms": ["30 liens would end"],
    }
    assert render.status(answer, NOW)[1:] == [
        "bank                 has not answered since 2026-11-21T09:20:00",
        "to be delivered      12, the oldest from 8 min ago",
        "refused by the bank  1",
        "refused for now      3, tried again every few minutes",
        "ledger               not yet compared with Slurm's queue",
        "last sweep           never",
        "queue                failing: SlurmUnavailable: squeue: down",
        "job 40 (fc_astro): refused by the bank: not a member",
        "Once the cause is mended: slurm-banking retry JOB, or retry --all",
        "DIFFERS: the relay runs version 0.0.9, this command is 0.1.0: restart the relay",
        "ALARM: 30 liens would end",
    ]


def test_a_retry_says_of_each_run_what_came_of_it() -> None:
    def row(job: str, result: str, reason: str = "") -> Dict[str, Any]:
        return {"job": job, "account": "fc_astro", "result": result, "reason": reason}

    answer = {
        "runs": [
            row("40", "delivered"),
            row("41", "refused", "not a\nmember"),
            row("42", "waiting", "bank: 503"),
        ],
        "left_out": 7,
        "bank_away_since": NOW - 60,
    }
    assert render.retried(answer) == [
        "job 40 (fc_astro): delivered",
        "job 41 (fc_astro): refused again: not a member",
        "job 42 (fc_astro): waits; see: slurm-banking status: bank: 503",
        "... and 7 more.",
        "The bank has not answered since 2026-11-21T09:29:00.",
    ]
    assert render.retried({"runs": [], "left_out": 0}) == [
        "There is nothing that the bank refused."
    ]


def test_a_note_in_a_story_has_its_author() -> None:
    note = {**entry("note", 0, "delivery tried again"), "actor": "ops"}
    assert why(entries=[note])[2].endswith("job 40 delivery tried again (ops)")


def test_exceptions_are_a_table() -> None:
    row = {
        "user": "alice",
        "job_id": None,
        "until": NOW,
        "actor": "root",
        "created": NOW,
        "reason": "deadline",
    }
    assert render.exceptions({"exceptions": [row, {**row, "user": None, "job_id": 7}]}) == [
        "FOR         UNTIL                BY    SINCE                REASON",
        "user alice  2026-11-21T09:30:00  root  2026-11-21T09:30:00  deadline",
        "job 7       2026-11-21T09:30:00  root  2026-11-21T09:30:00  deadline",
    ]
    assert render.exceptions({"exceptions": []}) == ["No exceptions are in force."]
