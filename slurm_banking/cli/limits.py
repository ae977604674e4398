# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking limits plan|apply|verify``: its words. What they do is in ``limits_apply``, imported when they run."""

from __future__ import annotations

import argparse

from slurm_banking.cli.words import second_word


def add_parser(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """The words after ``slurm-banking limits``."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return second_word(actions, name, text, common)

    verify = action("verify", "whether such limits would hold; exit status 0, 1, or 3")
    plan = action("plan", "the limits that balances come to, and the commands that set them")
    apply = action("apply", "set them, after a look and a question")
    for made in (plan, apply):
        made.add_argument(
            "--take-over",
            metavar="ACCOUNT",
            action="append",
            default=[],
            help="replace a limit that was not set from here; may be given again",
        )
        made.add_argument(
            "--min-per-su",
            metavar="N",
            help="billing-minutes for an SU (default: what the price list comes to)",
        )
    apply.add_argument("--yes", action="store_true", help="do not ask")
    apply.add_argument(
        "--anyway", action="store_true", help="although verify says that they would not hold"
    )
    verify.set_defaults(take_over=[], min_per_su=None)


def run(args: argparse.Namespace, config_path: str) -> int:
    """One of the three; the exit status.

    :raises BankingError: what was needed could not be had.
    """
    from slurm_banking.cli import limits_apply

    return limits_apply.run(args, config_path)
