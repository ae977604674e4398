# SPDX-License-Identifier: BSD-3-Clause
"""What ``slurm-banking ledger`` does with the ledger's file.

These open the file themselves, as its owner: root becomes SlurmUser first, anybody else has to be it. Always through
SQLite, which locks it: a copy made by ``cp`` while slurmctld writes is no backup.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
import time
from typing import Any, Dict, List, Optional

from slurm_banking import config as configuration
from slurm_banking.config import Config
from slurm_banking.errors import LedgerBusy, LedgerError
from slurm_banking.ledger import health, store
from slurm_banking.ledger.health import Findings
from slurm_banking.ledger.store import FILE_NAME, LedgerBroken

GOOD, NOT_GOOD, CANNOT_LOOK = 0, 1, 3

#: A look at a large file is no reason for slurmctld to wait for a core.
_NICE = 10

_NO_RELAY = (
    "expected no relay meanwhile: end it (systemctl stop slurm-banking-relay, or kill -TERM its pid), restore, and start it "
    "again; slurmctld may go on"
)


def run(args: argparse.Namespace, config_path: str) -> int:
    """One of the three; the exit status.

    :raises ConfigError: the configuration cannot be read. :raises BankingError: root cannot become the owner.
    """
    from slurm_banking.relay.daemon import become_slurm_user

    config = configuration.load(config_path, in_slurmctld=True)
    paths = {
        name: os.path.abspath(getattr(args, name))
        for name in ("path", "target", "source")
        if getattr(args, name, None) is not None
    }
    become_slurm_user(config)
    os.umask(0o077)
    os.nice(_NICE)
    try:
        if args.action == "verify":
            return _verify(args, config, paths.get("path"))
        if args.action == "backup":
            return _backup(args, config, paths["target"])
        return _restore(args, config, paths["source"])
    except LedgerBroken as error:
        return _complain(error, NOT_GOOD)
    except LedgerError as error:
        return _complain(error, CANNOT_LOOK)


def _complain(error: Exception, status: int) -> int:
    print(f"slurm-banking: error: {error}", file=sys.stderr)
    return status


def _say(args: argparse.Namespace, answer: Dict[str, Any], lines: List[str]) -> None:
    print(json.dumps(answer, indent=2, sort_keys=True) if args.json else "\n".join(lines))


# -- verify -------------------------------------------------------------------------------------------------------------


def _verify(args: argparse.Namespace, config: Config, path: Optional[str]) -> int:
    state_dir = config.ledger.state_dir
    looked_at = path or os.path.join(state_dir, FILE_NAME)
    findings = health.examine(looked_at, thorough=True)
    answer = _as_dict(findings)
    lines = _shown(findings)
    if path is None:
        answer["moved_aside"] = list(health.kept_aside(state_dir))
        for kept in answer["moved_aside"]:
            lines.append(f"moved aside because it was damaged: {kept}")
    _say(args, answer, lines)
    return GOOD if findings.good else NOT_GOOD


def _as_dict(findings: Findings) -> Dict[str, Any]:
    return {
        "path": findings.path,
        "good": findings.good,
        "damage": list(findings.damage),
        "sums": list(findings.sums),
        "entries": findings.entries,
        "schema": (findings.meta or {}).get("schema"),
        "cluster": (findings.meta or {}).get("cluster"),
        "took_s": round(findings.took_s, 3),
    }


def _shown(findings: Findings) -> List[str]:
    lines = [f"damaged: {problem}" for problem in findings.damage]
    lines += [f"does not add up: {problem}" for problem in findings.sums]
    if findings.damage:
        lines.append(
            f"{findings.path}: damaged. Of the ledger in use: start the relay again, which moves it aside and rebuilds "
            "it, or restore a backup (slurm-banking ledger restore)."
        )
    elif findings.sums:
        lines.append(f"{findings.path}: whole, and its sums do not add up.")
    else:
        meta = findings.meta or {}
        lines.append(
            f"{findings.path}: good; {findings.entries} entries, cluster {meta.get('cluster')}, schema {meta.get('schema')}, "
            f"looked at for {findings.took_s:.1f} s."
        )
    return lines


# -- backup -------------------------------------------------------------------------------------------------------------


def _backup(args: argparse.Namespace, config: Config, target: str) -> int:
    source = os.path.join(config.ledger.state_dir, FILE_NAME)
    if not os.path.exists(source):
        raise LedgerError(f"ledger {source}: there is none")
    _refuse_existing(target)
    partial = f"{target}.partial-{os.getpid()}"
    findings = None
    try:
        store.copy(source, partial)
        os.chmod(partial, 0o600)
        findings = health.examine(partial, thorough=True)
        if findings.good:
            _settle_on_disk(partial)
            try:
                os.link(partial, target)  # unlike a rename, it replaces nothing
            except OSError as error:
                raise LedgerError(f"{target}: {error.strerror}") from error
    finally:
        _remove(partial)
    answer = {**_as_dict(findings), "path": target, "bytes": 0}
    if not findings.good:
        _say(args, answer, [*_shown(findings), f"{target}: not written: its source is not good"])
        return NOT_GOOD
    size = answer["bytes"] = os.stat(target).st_size
    _say(args, answer, [f"{target}: {findings.entries} entries, {size} bytes, verified."])
    return GOOD


def _refuse_existing(target: str) -> None:
    directory = os.path.dirname(target)
    if os.path.lexists(target):
        raise LedgerError(f"{target}: exists: expected the name of a file that is not there yet")
    if not os.path.isdir(directory) or not os.access(directory, os.W_OK | os.X_OK):
        raise LedgerError(
            f"{target}: expected a directory that uid {os.geteuid()} (the ledger's owner) may write: {directory}"
        )


def _settle_on_disk(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(partial: str) -> None:
    for name in (partial, partial + "-journal", partial + "-wal", partial + "-shm"):
        try:
            os.unlink(name)
        except FileNotFoundError:
            pass


# -- restore ------------------------------------------------------------------------------------------------------------


def _restore(args: argparse.Namespace, config: Config, source: str) -> int:
    from slurm_banking.relay.daemon import AlreadyRunning, cluster_name, take_lock

    state_dir = config.ledger.state_dir
    try:
        status = os.stat(source)
    except OSError as error:
        raise LedgerError(f"{source}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or not os.access(source, os.R_OK):
        raise LedgerError(
            f"{source}: expected a file that uid {os.geteuid()} (the ledger's owner) may read"
        )
    try:
        lock = take_lock(state_dir)
    except AlreadyRunning as error:
        raise LedgerBusy(f"ledger {state_dir}: the relay is {error}: {_NO_RELAY}") from None
    try:
        cluster = cluster_name(config.path)
        fresh = os.path.join(state_dir, f"{FILE_NAME}.new-{os.getpid()}")
        try:
            findings = _prepare(source, fresh, cluster)
            if findings.good:
                aside = health.name_for(
                    os.path.join(state_dir, FILE_NAME) + health.REPLACED, time.time()
                )
                had_one = os.path.lexists(os.path.join(state_dir, FILE_NAME))
                store.install(state_dir, fresh, aside)
        finally:
            _remove(fresh)
    finally:
        os.close(lock)
    answer: Dict[str, Any] = {**_as_dict(findings), "path": source, "kept_as": None}
    if not findings.good:
        _say(args, answer, [*_shown(findings), f"{source}: not restored"])
        return NOT_GOOD
    lines = [f"{source}: restored, {findings.entries} entries."]
    if had_one:
        answer["kept_as"] = aside
        lines.append(f"What was there before: {aside}")
    lines.append(
        "Until the relay has compared it with Slurm and the bank, submissions are undecided: start the relay."
    )
    _say(args, answer, lines)
    return GOOD


def _prepare(source: str, fresh: str, cluster: str) -> Findings:
    """A copy that is ready to be put in place: of this schema and cluster, not yet compared with Slurm."""
    store.copy(source, fresh)
    os.chmod(fresh, 0o600)
    store.connect(fresh, cluster, 1.0).close()  # brings an older schema up to date
    findings = health.examine(fresh, thorough=True)
    if findings.good:
        store.mark_as_restored(fresh, cluster)
    return findings


__all__ = ["run"]
