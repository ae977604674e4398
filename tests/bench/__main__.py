# SPDX-License-Identifier: BSD-3-Clause
"""Measure the budgets of docs/architecture.md; as root, on loopback, in scratch directories that are removed.

A budget that is not kept fails nothing: machines differ. The status is 1 if something could not be measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from tests.bench import bank, cluster, company, controller, reconciliation
from tests.bench.results import CannotMeasure, Progress, Row, Sides, table
from tests.rig.cluster import RigError

ROOT = Path(__file__).resolve().parents[2]
JSON = ROOT / "build" / "bench.json"

#: In the order in which they are made.
NAMES = {
    "hooks": "time in job_submit and jobcomp",
    "hung": "job_submit with the relay hung, against healthy",
    "many": "100,000 submissions and as many ends: throughput, p99, and the memory that the plugins add to slurmctld",
    "banks": "both hooks with the bank healthy, hung, refusing and gone behind a real relay",
    "busy": "job_submit while a relay delivers, a backup runs, or another process writes the ledger",
    "sbatch": "sbatch throughput on real clusters, plugins on against off",
    "steps": "step launch, spank on against off",
    "deliveries": "deliveries from the relay to the bundled bank, few and many waiting",
    "bank": "CPU of the bundled bank for can_submit_job",
    "reconcile": "reconcile over a month of a million jobs behind slurmdbd: time and memory",
}


#: A whole run takes less.
MINUTES = 25.0


class TimeUp(CannotMeasure):
    """The time is over, or somebody ends the run: what was measured until then is shown and written."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "names:\n" + "\n".join(f"  {name:12}{what}" for name, what in NAMES.items())
    parser.add_argument(
        "--only", action="append", choices=NAMES, metavar="NAME", help="this one; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: wide intervals")
    parser.add_argument("--json", type=Path, default=JSON, help="default: build/bench.json")
    parser.add_argument(
        "--submissions", type=_number, help=f"for many; default {controller.FULL.lives:,}"
    )
    parser.add_argument(
        "--waiting", type=_number, help=f"deliveries that wait; default {bank.FULL.waiting:,}"
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"after which it is ended; default {MINUTES}"
    )
    return parser.parse_args(argv)


def _number(text: str) -> int:
    value = int(text.replace(",", "").replace("_", ""))
    if not 1000 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 1,000 to 1,000,000")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    tell = Progress()
    wanted = options.only or list(NAMES)
    in_controller = controller.QUICK if options.quick else controller.FULL
    in_bank = bank.QUICK if options.quick else bank.FULL
    on_cluster = cluster.QUICK if options.quick else cluster.FULL
    in_company = company.QUICK if options.quick else company.FULL
    in_books = reconciliation.QUICK if options.quick else reconciliation.FULL
    if options.submissions:
        in_controller = dataclasses.replace(in_controller, lives=options.submissions)
    if options.waiting:
        in_bank = dataclasses.replace(in_bank, waiting=options.waiting)

    rows: list[Row] = []
    sides: list[Sides] = []
    failures: list[str] = []
    until = time.monotonic() + options.minutes * 60

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal until
        until = 0.0
        over = f"{options.minutes:g} minutes are over (--minutes)"
        raise TimeUp(over if number == signal.SIGALRM else signal.Signals(number).name)

    signal.signal(signal.SIGALRM, end)
    signal.signal(signal.SIGTERM, end)
    signal.setitimer(signal.ITIMER_REAL, options.minutes * 60)

    def measure(name: str, work: Callable[[], list[Row]]) -> None:
        if name not in wanted:
            return
        try:
            if time.monotonic() >= until:
                raise TimeUp("not begun, the time was up")
            rows.extend(work())
        except (CannotMeasure, RigError, OSError, AssertionError, subprocess.SubprocessError) as e:
            failures.append(f"{name}: {type(e).__name__}: {e}")
            tell(f"{name} could not be measured")

    def group(names: Sequence[str], make: Callable[[ExitStack], None]) -> None:
        """What several measurements share is made once, and only if one of them is wanted."""
        if not set(names) & set(wanted):
            return
        try:
            if time.monotonic() >= until:
                raise TimeUp("not begun, the time was up")
            with ExitStack() as stack:
                make(stack)
        except (CannotMeasure, RigError, OSError, AssertionError, subprocess.SubprocessError) as e:
            failures.append(f"{', '.join(names)}: {type(e).__name__}: {e}")

    def in_the_controller(stack: ExitStack) -> None:
        built = stack.enter_context(controller.installed(tell))
        measure("hooks", lambda: controller.measure_hooks(built, in_controller, tell))
        measure("hung", lambda: controller.measure_hung(built, in_controller, tell))
        measure("many", lambda: controller.measure_many(built, in_controller, tell))
        measure("banks", lambda: company.measure_banks(built, in_company, tell, sides))
        measure("busy", lambda: company.measure_busy(built, in_company, tell))

    def on_the_cluster(stack: ExitStack) -> None:
        banked, plain = stack.enter_context(cluster.clusters("sbatch" in wanted, tell))
        if plain is not None:
            other = plain
            measure("sbatch", lambda: cluster.measure_sbatch(banked, other, on_cluster, tell))
        measure("steps", lambda: cluster.measure_steps(banked, on_cluster, tell))

    load_before = os.getloadavg()[0]
    group(("hooks", "hung", "many", "banks", "busy"), in_the_controller)
    group(("sbatch", "steps"), on_the_cluster)
    measure("deliveries", lambda: bank.measure_deliveries(in_bank, tell))
    measure("bank", lambda: bank.measure_questions(in_bank, tell))
    measure("reconcile", lambda: reconciliation.measure_reconcile(in_books, tell))
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    machine = (
        f"{os.cpu_count()} CPUs, load {load_before:.1f} at the start, Linux {platform.release()},"
        f" {_slurm()}, Python {platform.python_version()}{', quick' if options.quick else ''}"
    )
    if rows:
        print(f"{machine}\n\n{table(rows)}")
    for one in sides:
        print(f"\n{one}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps(
            {
                "at": int(time.time()),
                "machine": machine,
                "quick": options.quick,
                "rows": [row.as_json() for row in rows],
                "side_by_side": [one.as_json() for one in sides],
                "failures": failures,
            },
            indent=1,
        )
        + "\n"
    )
    for failure in failures:
        print(f"bench: error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _slurm() -> str:
    try:
        done = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, timeout=10)
    except OSError:
        return "no Slurm"
    return done.stdout.strip()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
