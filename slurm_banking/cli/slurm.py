# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking slurm ping|diag|nodes|jobs|submit|cancel``: its words. What they do is in ``slurm_run``."""

from __future__ import annotations

import argparse

from slurm_banking.cli.words import second_word


def add_parser(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """The words after ``slurm-banking slurm``."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        made = second_word(verbs, name, text, common)
        made.add_argument(
            "--url",
            metavar="URL",
            help="http(s)://host:port or unix:///path (default: [slurmrestd] url)",
        )
        made.add_argument(
            "--as", dest="as_user", metavar="NAME", help="as whom (default: whom the token is for)"
        )
        made.add_argument(
            "--token-file", metavar="PATH", help="(default: as in [slurmrestd], then $SLURM_JWT)"
        )
        return made

    verb("ping", "whether slurmctld answers; exit status 1 if none does")
    verb("diag", "slurmctld's figures")
    verb("nodes", "nodes, their state and what of them is allocated")
    made = verb("jobs", "jobs that slurmctld has")
    made.add_argument("job", nargs="?", type=int, metavar="JOB", help="only this one")
    made.add_argument("--of", dest="of_user", metavar="NAME", help="only this user's")
    made = verb("submit", "submit a job; what it could cost, and its id")
    made.add_argument(
        "script",
        metavar="SCRIPT",
        help="a batch script with its #SBATCH lines, or a JSON job as in Slurm's manual; -: from stdin",
    )
    from slurm_banking.slurm import batch

    batch.add_options(made)
    made = verb("cancel", "end jobs, or send them a signal")
    made.add_argument("job", nargs="+", type=int, metavar="JOB", help="job ids")
    made.add_argument("--signal", metavar="NAME", help="TERM, USR1, ... (default: the job ends)")


def run(args: argparse.Namespace) -> int:
    """One of the verbs; the exit status.

    :raises BankingError: no slurmrestd, no token, or no answer.
    """
    from slurm_banking.cli import slurm_run

    return slurm_run.run(args)
