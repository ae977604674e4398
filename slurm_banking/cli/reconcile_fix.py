# SPDX-License-Identifier: BSD-3-Clause
"""The repairing half of ``slurm-banking reconcile``: its options, what it proposes, what it did."""

from __future__ import annotations

import argparse
import os
import pwd
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence

from slurm_banking.cli.reconcile import add_fix_options as add_options
from slurm_banking.config import Config
from slurm_banking.ledger import Ledger
from slurm_banking.reconcile import fix
from slurm_banking.reconcile.findings import Finding
from slurm_banking.reconcile.fix import Done, Repair
from slurm_banking.relay import client
from slurm_banking.slurm.sacct import Accounting

#: Seconds for one request: the relay asks the bank a few times.
ASK_S = 45.0

#: Repairs that are shown one by one; --json has all.
SHOWN = 50

_WIDTH = 400


@dataclass(frozen=True)
class Handled:
    """What to print after the report, what to add to ``--json``, and how many findings are not repaired."""

    lines: Sequence[str]
    answer: Mapping[str, Any]
    left: int


def check(args: argparse.Namespace) -> None:
    """Before root becomes SlurmUser: whether the options go together, and who it is.

    :raises ValueError: they do not; one line.
    """
    args.fix_actor = f"{fix.ACTOR} ({_person()})"
    if args.dry_run and not args.fix:
        raise ValueError("--dry-run goes with --fix; without --fix nothing is done anyway")
    if args.fix and not args.dry_run and not (args.reason or "").strip():
        raise ValueError('--fix: expected --reason "TEXT", which is kept in every entry')
    if args.reason is not None and (len(args.reason) > 200 or not args.reason.isprintable()):
        raise ValueError("--reason: expected printable text of at most 200 characters")


def _person() -> str:
    uid = os.getuid()
    name = os.environ.get("SUDO_USER") if uid == 0 else None
    if name and len(name) <= 64 and name.isprintable():
        return name
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def handle(
    args: argparse.Namespace,
    findings: Sequence[Finding],
    ledger: Ledger,
    config: Config,
    socket_path: str,
    accounting: Optional[Accounting] = None,
) -> Handled:
    """Say what would be done about the findings, or do it.

    :raises LedgerError: the ledger cannot be used. :raises SlurmUnavailable: slurmdbd cannot be asked for restart counts.
    """
    repairs = fix.plan(findings, fix_unknown=args.fix_unknown)
    if not repairs:
        return Handled(lines=(), answer={"repairs": []}, left=0)
    if not args.fix or args.dry_run:
        return Handled(
            lines=proposed(repairs, asked=args.fix),
            answer={"repairs": [repair.as_dict() for repair in repairs]},
            left=len(repairs),
        )

    def ask(request: Mapping[str, Any]) -> Dict[str, Any]:
        return client.ask(socket_path, request, ASK_S, allowed_owner_uids=(0, os.geteuid()))

    results = fix.apply(
        repairs,
        ledger,
        config,
        ask,
        reason=args.reason.strip(),
        actor=getattr(args, "fix_actor", fix.ACTOR),
        accounting=accounting,
        progress=_progress,
    )
    return Handled(
        lines=done(results),
        answer={"repairs": [one.as_dict() for one in results], **fix.counts(results)},
        left=sum(1 for one in results if one.result != "done" and not _follows(one)),
    )


def _follows(one: Done) -> bool:
    """Whether nothing was done since another repair does it."""
    return one.repair.follows


def proposed(repairs: Sequence[Repair], *, asked: bool) -> List[str]:
    lines = [_line(repair.text) for repair in repairs]
    can = sum(repair.does_something for repair in repairs)
    head = (
        f"{can} of {len(repairs)} can be repaired:"
        if can
        else "Nothing of this is repaired by --fix:"
    )
    rest = [] if not can else ['Nothing was done. To do it: the same with --fix --reason "TEXT"' if not asked else "Nothing was done (--dry-run)."]  # fmt: skip
    return ["", head, *_capped(lines), *rest]


def done(results: Sequence[Done]) -> List[str]:
    counts = fix.counts(results)
    lines = [
        f"{one.result}: {_line(one.repair.text)}"
        + (f": {_line(one.text)}" if one.text != one.repair.text else "")
        for one in sorted(results, key=lambda one: ("failed", "skipped", "done").index(one.result))
    ]
    what = Counter(one.repair.what for one in results if one.result == "done")
    said = ", ".join(f"{word} {count}" for word, count in sorted(what.items()))
    return [
        "",
        f"{counts['done']} repaired{f' ({said})' if said else ''}, {counts['skipped']} skipped, {counts['failed']} failed.",
        *_capped(lines),
        "What goes to the bank is delivered by the relay within seconds: slurm-banking outbox shows what waits.",
    ]


def _capped(lines: Sequence[str]) -> List[str]:
    shown = [f"  {line}" for line in lines[:SHOWN]]
    if len(lines) > SHOWN:
        shown.append(f"  ... and {len(lines) - SHOWN} more; --json has all")
    return shown


def _progress(number: int, of: int) -> None:
    if of and sys.stderr.isatty():
        end = "\n" if number == of else ""
        sys.stderr.write(f"\rrepairing {number}/{of}{end}")
        sys.stderr.flush()


def _line(text: object) -> str:
    """What others wrote must not move the reader's cursor."""
    shown = str(text)[:_WIDTH]
    return "".join(character if character.isprintable() else "?" for character in shown)


__all__ = ["Handled", "add_options", "check", "handle"]
