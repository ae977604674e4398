# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking ledger verify|backup|restore``: its words. What they do is in ``ledger_file``, imported when they run."""

from __future__ import annotations

import argparse

from slurm_banking.cli.words import second_word


def add_parser(parser: argparse.ArgumentParser) -> None:
    """The words after ``slurm-banking ledger``."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        made = second_word(actions, name, text)
        made.add_argument(
            "--config",
            metavar="PATH",
            default=argparse.SUPPRESS,
            help="bank-config.toml (default: beside slurm.conf)",
        )
        return made

    made = action("verify", "whether the file is whole and its sums add up; exit status 0, 1, or 3")
    made.add_argument(
        "path",
        nargs="?",
        metavar="FILE",
        help="a backup, or what was moved aside (default: the ledger)",
    )
    made = action("backup", "a copy in one file, while everything goes on; verified")
    made.add_argument("target", metavar="TARGET", help="a file that does not exist yet")
    made = action(
        "restore", "put a backup in the ledger's place; Slurm and bank bring it up to date"
    )
    made.add_argument("source", metavar="SOURCE", help="what slurm-banking ledger backup wrote")


def run(args: argparse.Namespace, config_path: str) -> int:
    """One of the three; the exit status.

    :raises ConfigError: the configuration cannot be read. :raises BankingError: root cannot become the owner.
    """
    from slurm_banking.cli import ledger_file

    return ledger_file.run(args, config_path)
