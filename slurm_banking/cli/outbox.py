# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking outbox``: what waits for the bank, what it means, what to do; and its two verbs."""

from __future__ import annotations

import argparse
from typing import Any, Callable, Dict, List, Mapping, Optional

from slurm_banking.amounts import parse_su
from slurm_banking.cli.text import ago, local, su, table
from slurm_banking.cli.words import second_word

Answer = Mapping[str, Any]

#: Of the bank's words and of a name, in a line.
_SHOWN = 400


def add_options(
    parser: argparse.ArgumentParser,
    common: argparse.ArgumentParser,
    commands: Mapping[str, Callable[[argparse.Namespace], int]],
) -> None:
    """``outbox [JOB]``, ``outbox retry``, ``outbox resolve``; ``commands``: what runs for the verbs."""
    parser.add_argument(
        "--limit", type=int, metavar="N", default=100, help="rows at most (default: 100)"
    )
    parser.add_argument("--job", metavar="JOB", dest="of_job", help="only of this job")
    verbs = parser.add_subparsers(metavar="[VERB]", title="verbs")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        amounts = "for scripts: amounts in hundredths of an SU"
        made = second_word(verbs, name, text, common, json_help=amounts)
        made.set_defaults(run=commands[name])
        return made

    made = verb("retry", "send again what the bank refused, once the cause is mended")
    made.add_argument("job", nargs="?", metavar="JOB", help="a job id, 123, or a task, 123_4")
    made.add_argument("--all", action="store_true", help="everything that the bank refused")

    made = verb("resolve", "say that what the bank refused is settled there by hand")
    made.add_argument("job", metavar="JOB", help="a job id, 123, or a task, 123_4")
    made.add_argument("--reason", metavar="TEXT", required=True, help="kept in the ledger")
    made.add_argument(
        "--bank-has",
        metavar="SU",
        help="what the bank's usage holds for the job now (default: what the bank answers)",
    )


def bank_has_csu(typed: Optional[str]) -> Optional[int]:
    """:raises ValueError: not an amount; the text says what was expected."""
    if typed is None:
        return None
    try:
        csu = parse_su(typed)
    except ValueError as error:
        raise ValueError(f"--bank-has: {error}, expected SU such as 12.50") from None
    if csu < 0:
        raise ValueError(f"--bank-has: {typed!r}, expected SU such as 12.50, or 0")
    return csu


def listed(answer: Answer) -> List[str]:
    """The table, and under it what each kind of row means and wants done."""
    now = answer["as_of"]
    rows = answer["rows"]
    if not rows:
        return ["Nothing waits for the bank.", *_bank_away(answer)]
    lines = [f"{answer['waiting']} to be delivered, the oldest from {ago(answer['oldest'], now)}"]
    if not answer["waiting"]:  # delivered while it was asked
        lines = []
    lines += _bank_away(answer)
    lines.append("")
    lines += table(
        ["job", "account", "what", "stands", "since", "tries", "next try", "charge", "at bank"],
        [
            [
                row["job"],
                row["account"],
                row["phase"],
                row["state"],
                local(row["since"]),
                str(row["tries"]),
                _next_try(row, now),
                su(row["ledger_csu"]),
                su(row["bank_csu"]),
            ]
            for row in rows
        ],
        right="-----r-rr",
    )
    if answer["left_out"]:
        lines.append(f"... and {answer['left_out']} more; see --limit and --job")
    for row in rows:
        if row["bank_says"]:
            lines += [
                "",
                f"job {row['job']}: {_line(row['bank_says'])}",
                f"  {row['state']}: {row['meaning']}",
                f"  to do: {row['advice']}",
            ]
    return lines


def resolved(answer: Answer) -> List[str]:
    lines = []
    for row in answer["runs"]:
        name = f"job {_line(row['job'])} ({_line(row['account'])})"
        if row.get("problem"):
            lines.append(f"{name}: not settled: {_line(row['problem'])}")
            continue
        lines.append(
            f"{name}: settled by hand; the bank holds {su(row['bank_csu'])} SU for it "
            f"(before: {su(row['bank_csu_before'])})"
        )
        if row["differs"]:
            lines.append(f"  {_line(row['differs'])}")
    return lines


def request(args: argparse.Namespace) -> Dict[str, Any]:
    return {"op": "outbox", "limit": args.limit, "job": args.of_job}


def _next_try(row: Mapping[str, Any], now: int) -> str:
    if row["state"] == "parked":
        return "never"
    if row["next_try"] is None or row["next_try"] <= now:
        return "next"
    return f"in {row['next_try'] - now} s"


def _bank_away(answer: Answer) -> List[str]:
    since = answer.get("bank_away_since")
    if since is None:
        return []
    reason = answer.get("bank_away_reason")
    return [
        f"The bank has not answered since {local(since)}" + (f": {_line(reason)}" if reason else "")
    ]


def _line(text: object) -> str:
    """What others wrote must not move the reader's cursor."""
    shown = str(text)[:_SHOWN]
    return "".join(character if character.isprintable() else "?" for character in shown)
