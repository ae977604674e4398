# SPDX-License-Identifier: BSD-3-Clause
"""What each run should have cost, from sacct's figures and a price list; on its own, with nothing of slurm_banking in it.

::

    sacct -a -X -D -n -P --noconvert -o FIELDS > sacct.txt      (FIELDS below; SLURM_TIME_FORMAT=%s)
    python3 plain_charge.py prices.json sacct.txt               prints JSON: "JOBID SUBMIT" -> hundredths of an SU

prices.json::

    {"partitions": {"gpu": {"cpu": "1", "gpu:a100": "40", "combine": "sum"}},
     "qos": {"high": "2"}, "state_factor": {"NODE_FAIL": "0", "CANCELLED_BY_ADMIN": "0"}, "admin_uids": [0]}

The arithmetic is that of fractions: nothing is rounded before the end, and then half up.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

FIELDS = (
    "JobIDRaw",
    "JobID",
    "Submit",
    "Start",
    "End",
    "UID",
    "Account",
    "Partition",
    "QOS",
    "State",
    "ElapsedRaw",
    "Suspended",
    "TimelimitRaw",
    "AllocTRES",
    "ReqTRES",
    "NodeList",
    "Flags",
)

UNITS = {"K": Fraction(1, 1024), "M": Fraction(1), "G": Fraction(1024), "T": Fraction(1024 * 1024)}

#: States of a run that goes on, or that has not begun.
NOT_ENDED = ("PENDING", "RUNNING", "SUSPENDED")

Row = Mapping[str, str]


def rows_of(text: str, fields: Sequence[str] = FIELDS) -> list[Row]:
    return [dict(zip(fields, line.split("|"), strict=True)) for line in text.splitlines() if line]


def tres_of(text: str) -> dict[str, Fraction]:
    """Amounts by name; memory in MB."""
    found: dict[str, Fraction] = {}
    for part in text.split(","):
        name, equals, amount = part.partition("=")
        if not equals:
            continue
        unit = Fraction(1)
        if amount[-1] in UNITS:
            unit, amount = UNITS[amount[-1]], amount[:-1]
        found[name] = Fraction(amount) * unit
    return found


def per_hour(tres: Mapping[str, Fraction], price: Mapping[str, str]) -> Fraction:
    """SU per hour of what was allocated, at a partition's price."""
    amounts = [
        tres.get("cpu", Fraction(0)) * Fraction(price.get("cpu", "0")),
        tres.get("mem", Fraction(0)) / 1024 * Fraction(price.get("mem_gb", "0")),
        tres.get("node", Fraction(0)) * Fraction(price.get("node", "0")),
        tres.get("billing", Fraction(0)) * Fraction(price.get("billing", "0")),
    ]
    typed = {name.removeprefix("gres/gpu:"): n for name, n in tres.items() if ":" in name}
    for kind, count in typed.items():
        amounts.append(count * Fraction(price.get(f"gpu:{kind}", price.get("gpu", "0"))))
    untyped = tres.get("gres/gpu", Fraction(0)) - sum(typed.values())
    if untyped > 0:
        dearest = max(
            (Fraction(su) for name, su in price.items() if name.startswith("gpu")),
            default=Fraction(0),
        )
        amounts.append(untyped * Fraction(price["gpu"] if "gpu" in price else dearest))
    return max(amounts) if price.get("combine") == "max" else sum(amounts, Fraction(0))


def half_up(number: Fraction) -> int:
    return math.floor(number + Fraction(1, 2))


def seconds_of(text: str) -> int:
    """``[D-]HH:MM:SS`` or ``MM:SS``, with or without a fraction."""
    days, _, rest = text.rpartition("-")
    total = 0
    for part in rest.split(".")[0].split(":"):
        total = total * 60 + int(part)
    return total + 86400 * int(days or 0)


def runs_of(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each run that started and ended, in order: several if it was resized while it ran.

    A row that ends in RESIZING goes on in the row of the same job that was submitted, as slurmdbd has it, when it ended.
    """
    by_job: dict[str, list[Row]] = {}
    for row in rows:
        by_job.setdefault(row["JobIDRaw"], []).append(row)
    runs = []
    for parts in by_job.values():
        parts.sort(key=lambda row: int(row["Submit"]))
        run: list[Row] = []
        for row in parts:
            run.append(row)
            if row["State"] == "RESIZING":
                continue
            whole = row["State"].split()[0] not in NOT_ENDED
            if whole and row["Start"].isdigit() and row["End"].isdigit() and row["AllocTRES"]:
                runs.append(run)
            run = []
    return runs


def state_of(row: Row, prices: Mapping[str, Any]) -> str:
    state = row["State"].split()
    if state[0] == "CANCELLED" and len(state) == 3:
        by = int(state[2])
        if by in prices.get("admin_uids", ()) and by != int(row["UID"]):
            return "CANCELLED_BY_ADMIN"
    return state[0]


def charge(run: Sequence[Row], prices: Mapping[str, Any]) -> int:
    """Hundredths of an SU."""
    last = run[-1]
    qos = Fraction(prices["qos"].get(last["QOS"], "1"))
    price = prices["partitions"].get(last["Partition"])
    if price is None:
        return 0
    su_s, until = Fraction(0), 0
    for number, row in enumerate(run):
        if len(run) == 1:
            seconds = int(row["ElapsedRaw"])
        else:
            # slurmdbd keeps the first start in every part of it, and so counts in each what ran before.
            begun = max(int(row["Start"]), until)
            seconds = max(0, int(row["End"]) - begun)
            if number == len(run) - 1:
                seconds = max(0, seconds - seconds_of(row["Suspended"]))
        until = max(until, int(row["End"]))
        su_s += per_hour(tres_of(row["AllocTRES"]), price) * seconds
    factor = Fraction(prices["state_factor"].get(state_of(last, prices), "1"))
    return half_up(su_s * qos * factor * 100 / 3600)


def charges(rows: Iterable[Row], prices: Mapping[str, Any]) -> dict[tuple[int, int], int]:
    """(job id, submit time) → hundredths of an SU, of every run that started and ended."""
    return {
        (int(run[0]["JobIDRaw"]), int(run[0]["Submit"])): charge(run, prices)
        for run in runs_of(rows)
    }


def main() -> int:
    prices_path, sacct_path = sys.argv[1:3]
    with open(prices_path) as prices_file, open(sacct_path) as sacct_file:
        found = charges(rows_of(sacct_file.read()), json.load(prices_file))
    json.dump(
        {f"{job} {submit}": csu for (job, submit), csu in found.items()}, sys.stdout, indent=1
    )
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
