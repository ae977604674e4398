# SPDX-License-Identifier: BSD-3-Clause
"""Break a real cluster under load, again and again, and add up the money afterwards; as root, on loopback, in a scratch directory.

    python -m tests.faults                                  fifty schedules: what `make faults` runs
    python -m tests.faults --seed 7 --schedules 5           the first five of a seed
    python -m tests.faults --seed 7 --only 12               one schedule of a seed, alone
    python -m tests.faults --kinds kill9:relay,bank:hang    of these kinds alone
    python -m tests.faults --list 5                         prints schedules, starts nothing
    python -m tests.faults --short                          a schedule of each class
    python -m tests.faults --broken no_void --short         a deliberately broken build: has to fail
    python -m tests.faults --judge build/faults             judges the dumps of an earlier run again

The result: build/faults.json, written after each schedule; raw dumps: build/faults/ (--output for another place). Exit status 1:
something was lost, doubled, left open or does not add up, slurmctld ended by itself, or more than 0.5 % of the runs are known from
the second witness alone.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import FrameType

from tests.faults import judge, report
from tests.faults.broken_builds import BROKEN
from tests.faults.schedule import KINDS, one_of_each_class, schedules

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULT_SEED = 20261121
DEFAULT_SCHEDULES = 50


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--schedules", type=int, default=DEFAULT_SCHEDULES)
    parser.add_argument("--only", help="these schedules of the seed alone, by number, with commas")
    parser.add_argument("--kinds", help="of these kinds of faults alone, with commas")
    parser.add_argument("--seconds", type=float, help="of load in a schedule (default: 50)")
    parser.add_argument("--rate", type=float, default=4.5, help="things that are begun per second")
    parser.add_argument("--short", action="store_true", help="a schedule of each class")
    parser.add_argument("--broken", choices=sorted(BROKEN), default="")
    parser.add_argument("--list", type=int, metavar="N", help="print the first N and stop")
    parser.add_argument("--first", action="store_true", help="stop at the first that is not good")
    parser.add_argument("--judge", type=Path, metavar="DIR", help="earlier dumps, again")
    parser.add_argument("--minutes", type=float, default=120, help="no more schedules after these")
    parser.add_argument("--output", type=Path, default=CHECKOUT / "build", metavar="DIR")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    kinds = tuple(options.kinds.split(",")) if options.kinds else KINDS
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        print(
            f"faults: no such kind: {', '.join(unknown)}; there are: {', '.join(KINDS)}",
            file=sys.stderr,
        )
        return 2
    if options.judge:
        verdict = judge.judge(report.load_books(options.judge))
        print("\n".join([*verdict.lines(), "good" if verdict.good else "not good"]))
        return 0 if verdict.good else 1
    if options.short:
        drawn = list(one_of_each_class(options.seed, seconds=options.seconds or 22))
    else:
        wanted = sorted(int(number) for number in options.only.split(",")) if options.only else []
        count = wanted[-1] if wanted else options.list or options.schedules
        drawn = list(
            islice(schedules(options.seed, seconds=options.seconds or 50, kinds=kinds), count)
        )
        drawn = [one for one in drawn if not wanted or one.number in wanted]
    if options.list:
        for one in drawn:
            print(f"{one.number}: {one.text()}")
        return 0
    begun = time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - begun:6.1f} s] {line}", flush=True)

    plan = report.Plan(
        seed=options.seed,
        schedules=drawn,
        output=options.output,
        rate=options.rate,
        broken=options.broken,
        deadline_s=options.minutes * 60,
        stop_at_first=options.first,
    )
    return report.run(plan, tell)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)  # so that everything is ended and removed on the way out


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
