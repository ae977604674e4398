# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking reconcile``: its words. What it does is in ``reconcile_run``, imported when it runs."""

from __future__ import annotations

import argparse
from typing import Callable, Tuple

#: As slurm_banking.slurm.sources has them, which is more than a parser should import.
SOURCES: Tuple[str, ...] = ("sacct", "sacct-json", "slurmrestd")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The words after ``slurm-banking reconcile``."""
    parser.add_argument(
        "--since",
        metavar="TIME",
        help="of what ended from then on: 2026-11-21, 2026-11-21T08:30, 7d, ... (default: an hour before the end of the last "
        "clean comparison, or the ledger's creation)",
    )
    parser.add_argument(
        "--until",
        metavar="TIME",
        help="not included (default: ten minutes ago; what ended just now may be on its way)",
    )
    parser.add_argument("--account", "-A", metavar="ACCOUNT", help="only of this account")
    parser.add_argument(
        "--source",
        choices=SOURCES,
        default=SOURCES[0],
        help="how slurmdbd is asked (default: sacct)",
    )
    add_fix_options(parser)
    parser.epilog = "exit status: 0 all agrees, 1 something differs (with --fix: is left), 2 it could not be looked at"


def add_fix_options(parser: argparse.ArgumentParser) -> None:
    """Those of its repairing half."""
    parser.add_argument(
        "--fix",
        action="store_true",
        help="append what sets the books right; without it, only said what would be",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="with --fix: say what would be done, and do nothing"
    )
    parser.add_argument(
        "--reason", metavar="TEXT", help="kept in every entry that --fix appends; needed with it"
    )
    parser.add_argument(
        "--fix-unknown",
        action="store_true",
        help="also set to nothing what slurmdbd does not know: nobody booked it by hand, and slurmdbd lost nothing",
    )


def run(args: argparse.Namespace, config_path: str, socket_path: Callable[[], str]) -> int:
    """The exit status. ``socket_path``: where the relay listens; may raise what the configuration's mistakes raise."""
    from slurm_banking.cli import reconcile_run

    return reconcile_run.run(args, config_path, socket_path)
