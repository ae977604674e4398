# SPDX-License-Identifier: BSD-3-Clause
"""Show that ``slurm-banking reconcile`` finds what is wrong, names it, mends it, and finds nothing else; as root, on loopback.

A history of runs of every kind on real daemons is compared through every source, in several time zones, as it was made and
after it was shifted over midnights, ends of months and changes of clocks (tests/reconcile/history.py). Then its books are
injured (tests/reconcile/injuries.py), compared, repaired, and compared again. The status is 1 if anything does not hold.

The million jobs are a measurement: ``python -m tests.bench --only reconcile`` (tests/reconcile/million.py).
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.bench.results import Progress
from tests.reconcile import history, injuries, show
from tests.reconcile.site import ReconcileSite
from tests.rig.cluster import RigError

#: Lines of a step that are shown.
_SHOWN = 40


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reconcile", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", type=int, default=3000, help="at least so many; default 3000")
    parser.add_argument("--injuries", type=int, default=200, help="default 200")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--logs", type=Path, help="copy the daemons' logs there at the end")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _terminate)
    tell = Progress()
    failed = 0

    def step(name: str, problems: Sequence[str]) -> None:
        nonlocal failed
        failed += bool(problems)
        tell(f"{name}: {'holds' if not problems else f'{len(problems)} problems'}")
        for line in problems[:_SHOWN]:
            print(f"    {line}", file=sys.stderr, flush=True)

    with ReconcileSite(tell=tell) as site:
        try:
            made = history.make(site, options.runs, rounds=3, tell=tell)
            tell(f"{made.runs} ended runs in {made.took_s:.0f} s; slurmdbd's rows: {made.states}")
            if made.runs < options.runs:
                step("history", [f"{made.runs} runs: expected at least {options.runs}"])
            step("as it was made, through every source", show.looks_clean(site, made))
            site.rest_alone()
            history.shift(site, made, options.seed)
            tell(f"shifted over: {made.shifted}")
            step("it lies there", show.lies_there(site, options.runs // 100))
            step(
                "shifted, through every source, in every zone",
                show.looks_clean(site, made, history.ZONES),
            )
            hurt = injuries.injure(site, options.injuries, options.seed)
            kinds = Counter(injury.name for injury in hurt)
            tell(f"{len(hurt)} injuries of {len(kinds)} kinds")
            step("all found and named, nothing else", show.named(site, hurt))
            step("repaired, and nothing is found any more", show.fixed(site, tell))
        finally:
            if options.logs is not None:
                site.collect_logs(options.logs)
    print("holds" if not failed else f"{failed} steps do not hold")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RigError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
