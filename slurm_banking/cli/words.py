# SPDX-License-Identifier: BSD-3-Clause
"""Second words of the command line: ``slurm-banking ledger verify``, ``slurm-banking outbox retry``, ..."""

from __future__ import annotations

import argparse
from typing import Any


def second_word(
    words: Any,
    name: str,
    text: str,
    *parents: argparse.ArgumentParser,
    json_help: str = "for scripts",
    more: str = "",
) -> argparse.ArgumentParser:
    """One of ``words``, which add_subparsers made. ``text``: what it does, as the list says; ``more``: after it in its help."""
    made: argparse.ArgumentParser = words.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + "." + (f" {more}" if more else ""),
        parents=list(parents),
        allow_abbrev=False,
    )
    made.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=json_help)
    return made
