# SPDX-License-Identifier: BSD-3-Clause
"""What ``slurm-banking reconcile`` does: compares as the ledger's owner, tells, and hands what it found to the repairs.

A process of its own beside slurmctld and the relay: it opens the ledger itself, in short transactions that only read, and
leaves the processor to them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections import defaultdict
from typing import Any, Callable, Dict, List, Optional, Tuple

from slurm_banking import config as configuration
from slurm_banking.bank import Bank
from slurm_banking.cli import reconcile_fix, text
from slurm_banking.config import Config
from slurm_banking.errors import BankingError, ConfigError
from slurm_banking.ledger import Ledger
from slurm_banking.ledger.store import FILE_NAME
from slurm_banking.reconcile import compare
from slurm_banking.reconcile.findings import KINDS, Finding
from slurm_banking.reconcile.run import (
    Report,
    default_period,
    reconcile,
    remember,
)
from slurm_banking.slurm.control import Operators
from slurm_banking.slurm.sources import make_source

AGREES, DIFFERS, CANNOT_LOOK = 0, 1, 2

#: Findings that are shown one by one; --json has more.
SHOWN = 40
_WIDTH = 400

_NICE = 10
#: Seconds between two lines of progress where there is no terminal.
_TELL_S = 10.0
_BAR = 30


def run(args: argparse.Namespace, config_path: str, socket_path: Callable[[], str]) -> int:
    """The exit status."""
    try:
        return _run(args, config_path, socket_path())
    except ConfigError as error:
        return _complain(list(error.problems))
    except (BankingError, ValueError, OSError) as error:
        return _complain([str(error)])


def _collect_seldom() -> None:
    """Its rows are no cycles: Python would look through all that are held again and again, a fifth of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _complain(lines: List[str]) -> int:
    for line in lines:
        print(f"slurm-banking: error: {line}", file=sys.stderr)
    return CANNOT_LOOK


def _run(args: argparse.Namespace, config_path: str, socket_path: str) -> int:
    from slurm_banking.relay.daemon import become_slurm_user, cluster_name

    now = int(time.time())
    since, until = _time(args, "since", now), _time(args, "until", now)
    reconcile_fix.check(args)
    config = configuration.load(config_path, in_slurmctld=False)
    cluster = cluster_name(config.path)
    become_slurm_user(config)
    os.chdir("/")  # Slurm's commands fail where their user may not be
    os.umask(0o077)
    os.nice(_NICE)
    state_dir = config.ledger.state_dir
    if not os.path.exists(os.path.join(state_dir, FILE_NAME)):
        raise BankingError(f"ledger {os.path.join(state_dir, FILE_NAME)}: there is none")
    accounting = make_source(args.source, config, cluster, operators=Operators())
    bank = _bank(config, cluster)
    ledger = Ledger(state_dir, cluster)
    try:
        by_default = default_period(ledger, now)
        since = by_default[0] if since is None else since
        until = by_default[1] if until is None else min(until, now)
        if args.since is None and args.until is None:
            until = max(since, until)  # a ledger of some minutes has nothing to compare yet
        elif since >= until:
            raise ValueError(
                f"--since {text.local(since)}: expected a time before --until, {text.local(until)}"
            )
        progress = _Progress(state_dir, since, until)
        _collect_seldom()
        report = reconcile(
            ledger,
            config,
            accounting,
            bank,
            since=since,
            until=until,
            account=args.account,
            progress=progress,
        )
        progress.end()
        remember(state_dir, report, time.time())
        handled = reconcile_fix.handle(
            args, report.findings, ledger, config, socket_path, accounting
        )
    finally:
        ledger.close()
        bank.close()
    if args.json:
        answer: Dict[str, Any] = {**report.as_dict(), **handled.answer}
        shown = json.dumps(answer, indent=2, sort_keys=True)
    else:
        shown = "\n".join([*told(report), *handled.lines])
    _write(shown + "\n")
    if args.fix and not args.dry_run:
        return DIFFERS if handled.left or report.found > len(report.findings) else AGREES
    return AGREES if report.clean else DIFFERS


def _time(args: argparse.Namespace, name: str, now: int) -> Optional[int]:
    typed = getattr(args, name)
    if typed is None:
        return None
    try:
        return text.read_time(typed, now)
    except ValueError as error:
        raise ValueError(f"--{name} {error}") from None


def _bank(config: Config, cluster: str) -> Bank:
    return Bank(
        config.api.url,
        configuration.read_token(config),
        timeout_s=config.api.timeout_s,
        resource=config.api.resource,
        job_id_format=config.api.job_id_format,
        cluster=cluster,
    )


def _write(shown: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(shown.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


# -- progress -----------------------------------------------------------------------------------------------------------


class _Progress:
    """A bar on a terminal, else a line now and then; and how far all agrees is written down, to go on from there."""

    def __init__(
        self,
        state_dir: str,
        since: int,
        until: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state_dir = state_dir
        self._since, self._until = since, until
        self._clock = clock
        self._terminal = sys.stderr.isatty()
        self._began = self._told = clock()
        self._shown = False

    def __call__(self, report: Report) -> None:
        remember(self._state_dir, report, time.time())
        now = self._clock()
        if now - self._told < (0.5 if self._terminal else _TELL_S):
            return
        self._told = now
        share = (report.position - self._since) / max(1, self._until - self._since)
        line = (
            f"{share * 100:3.0f} % until {text.local(report.position)}, {report.runs} runs, {report.rows} rows at the bank, "
            f"{report.found} found"
        )
        if self._terminal:
            done = int(share * _BAR)
            sys.stderr.write(f"\r[{'#' * done}{' ' * (_BAR - done)}] {line}\x1b[K")
            self._shown = True
        else:
            sys.stderr.write(f"slurm-banking: reconcile: {line}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


# -- the report ---------------------------------------------------------------------------------------------------------


def told(report: Report) -> List[str]:
    """The report for people."""
    of = "" if report.account is None else f", account {_plain(report.account)}"
    lines = [
        f"{text.local(report.since)} to {text.local(report.until)}{of}: {report.runs} runs in slurmdbd, {report.rows} rows "
        f"at the bank, {report.took_s:.1f} s."
    ]
    lines += _table(report)
    if report.findings:
        lines += ["", *(_line(one) for one in report.findings[:SHOWN])]
        more = report.found - min(SHOWN, len(report.findings))
        if more:
            lines.append(f"and {more} more; --json has {'all' if report.found == len(report.findings) else 'the first ' + str(len(report.findings))}")  # fmt: skip
    aside = [
        f"{count} {compare.WHY_NOT[word]}"
        + (
            f" ({text.su(report.others_csu)} SU)"
            if word == compare.OTHERS and report.others_csu
            else ""
        )
        for word, count in sorted(report.not_compared.items())
    ]
    if aside:
        lines += ["", f"Not compared: {'; '.join(aside)}."]
    lines += [f"Not looked at: {_plain(line)}." for line in report.not_looked]
    if not report.found:
        lines.append("All agrees.")
    return lines


def _table(report: Report) -> List[str]:
    if not report.found:
        return []
    by_account: Dict[Tuple[str, str], List[Tuple[str, int]]] = defaultdict(list)
    for (kind, where, account), csu in report.sums.items():
        by_account[kind, where].append((account, csu))
    rows = []
    for kind, where in sorted(
        report.counts, key=lambda key: (KINDS.index(key[0]), key[1] != "ledger")
    ):
        for number, (account, csu) in enumerate(sorted(by_account[kind, where])):
            count = str(report.counts[kind, where]) if number == 0 else ""
            head = (kind, where) if number == 0 else ("", "")
            rows.append([*head, count, account, _signed(csu)])
    return ["", *text.table(["KIND", "WHERE", "FOUND", "ACCOUNT", "SU TOO MUCH"], rows, "llrlr")]


def _signed(csu: int) -> str:
    return ("+" if csu > 0 else "") + text.su(csu)


def _line(finding: Finding) -> str:
    return f"{finding.kind} at the {finding.where}: {_plain(finding.text)}"


def _plain(shown: str) -> str:
    """What others wrote must not move the reader's cursor."""
    return "".join(char if char.isprintable() else "?" for char in shown[:_WIDTH])


__all__ = ["run", "told"]
