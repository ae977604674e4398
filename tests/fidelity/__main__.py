# SPDX-License-Identifier: BSD-3-Clause
"""The money against Slurm itself, as root, on loopback, in a scratch directory that is removed.

Random submissions of a fixed seed go to a real cluster; each estimate is held against what slurmctld then allocated, each
charge against one computed from sacct's figures by a program of its own, and the funds of an account against many submitters.

    python -m tests.fidelity                                    all of it: what `make fidelity` runs
    python -m tests.fidelity --features mem,gres --jobs 100     a quick round of some features, without the races
    python -m tests.fidelity --only 17,230 --seed 7             these submissions of a seed alone
    python -m tests.fidelity --list 20 --features gres          prints submissions, starts nothing
    python -m tests.fidelity --judge build/fidelity             judges the dumps of an earlier run again
    python -m tests.fidelity --races --rounds 4                 the races alone

Every job whose estimate is below its allocation, or above it for no known reason, is printed with its command line, the
estimate's TRES and AllocTRES. Raw dumps: build/fidelity/; the result: build/fidelity.json (--output for another place).
Exit status 1: a bar is not met.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.fidelity import report
from tests.fidelity.submissions import NAMES, draw

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULT_SEED = 20261121
DEFAULT_JOBS = 2000


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fidelity", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--jobs", type=int, default=DEFAULT_JOBS, help="accepted, in all")
    parser.add_argument("--features", help="of these alone, by name, with commas")
    parser.add_argument("--only", help="these numbers of the seed's list alone, with commas")
    parser.add_argument("--list", type=int, metavar="N", help="print the first N and stop")
    parser.add_argument("--races", action="store_true", help="the races alone")
    parser.add_argument("--no-races", action="store_true")
    parser.add_argument("--rounds", type=int, help="of the races (default: 20 at full size)")
    parser.add_argument(
        "--judge", type=Path, metavar="DIR", help="earlier dumps, again; starts nothing"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--minutes", type=float, default=45, help="no more submissions after these")
    parser.add_argument("--output", type=Path, default=CHECKOUT / "build", metavar="DIR")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    names = tuple(options.features.split(",")) if options.features else NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(
            f"fidelity: no such feature: {', '.join(unknown)}; there are: {', '.join(NAMES)}",
            file=sys.stderr,
        )
        return 2
    only = tuple(int(number) for number in options.only.split(",")) if options.only else ()
    if options.list:
        for number in only or range(options.list):
            drawn = draw(options.seed, number, names)
            print(f"{number}: {drawn.fate}: sbatch {' '.join(drawn.arguments())}")
        return 0
    begun = time.monotonic()

    def tell(line: str) -> None:
        if not options.quiet:
            print(f"[{time.monotonic() - begun:6.1f} s] {line}", flush=True)

    some = bool(options.features or only)
    rounds = options.rounds
    if rounds is None:
        rounds = 0 if some else max(2, min(20, options.jobs // 100))
    plan = report.Plan(
        seed=options.seed,
        names=names,
        only=only,
        jobs=0 if options.races else len(only) or options.jobs,
        rounds=0 if options.no_races else rounds,
        full=not some and not options.races and options.jobs >= DEFAULT_JOBS,
        deadline_s=options.minutes * 60,
        output=options.output,
    )
    if options.judge:
        return report.judge_again(plan, options.judge)
    return report.run(plan, tell)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)  # so that everything is ended and removed on the way out


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
