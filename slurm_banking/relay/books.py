# SPDX-License-Identifier: BSD-3-Clause
"""The relay's own look, every now and then, whether slurmdbd, ledger and bank agree. It tells what differs, and repairs nothing.

The looking is done by a process of its own with little priority: a day of runs and rows is work of seconds or minutes, and
the relay's threads have slurmctld waiting. It prints one line of JSON.

What the last look said is in ``books.json`` beside the ledger, so that a relay that starts again neither forgets nor repeats
it; how far everything agrees is in ``reconcile.json``, which ``slurm-banking reconcile`` writes, too.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from slurm_banking.config import Config
from slurm_banking.errors import BankingError

log = logging.getLogger("slurm_banking.relay")

FILE_NAME = "books.json"

#: Between two thoughts of whether it is time.
POLL_S = 30.0
#: After a look that failed; no look comes sooner.
AGAIN_S = 600.0
#: The longest that a look may take.
LOOK_S = 6 * 3600.0
_NICE = 10
_MAX_BYTES = 1_000_000
_ROOT = Path(__file__).resolve().parents[2]
#: Neither the environment nor the directory that the relay was started in has a say in what is imported.
_START = """\
import sys
sys.path.insert(0, sys.argv[1])
from slurm_banking.relay import books
sys.exit(books.main(*sys.argv[2:]))
"""


class LookFailed(BankingError):
    """Slurm's accounting, the ledger or the bank could not be asked; the text says which."""


class Books:
    """When they were looked at, and what was found.

    :param started: when the relay started, unix seconds: a first look comes one period after that, not at once.
    """

    def __init__(
        self,
        cluster: str,
        config_path: str,
        started: float,
        *,
        clock: Callable[[], float] = time.time,
        command: Optional[Sequence[str]] = None,
    ) -> None:
        self._command = (
            list(command)
            if command is not None
            else [sys.executable, "-I", "-c", _START, str(_ROOT), config_path, cluster]
        )
        self._started = started
        self._clock = clock
        self._failed_at: Optional[float] = None
        self._last: Dict[str, Any] = {}
        self._state_dir = ""

    def look(self, config: Config, stop: threading.Event) -> bool:
        """If it is time; whether one was made. Returns early when ``stop`` is set.

        :raises LookFailed: it could not be made.
        """
        self.recall(config)
        if not self._due(config.reconcile.every_s):
            return False
        began = self._clock()
        try:
            found = self._run(stop)
        except LookFailed:
            self._failed_at = self._clock()
            raise
        if found is None:
            return False
        self._failed_at = None
        found["looked_at"] = int(began)
        found["clean_at"] = int(began) if found.get("agrees") else self._last.get("clean_at")
        self._last = found
        self._keep()
        log.info(
            "books_compared runs=%s rows=%s found=%s took_s=%s",
            found.get("runs"),
            found.get("rows"),
            found.get("found"),
            found.get("took_s"),
        )
        return True

    def _due(self, every_s: int) -> bool:
        now = self._clock()
        if not every_s:
            return False
        if self._failed_at is not None and 0 <= now - self._failed_at < min(AGAIN_S, every_s):
            return False
        last = self._last.get("looked_at")
        since = self._started if last is None else last
        return not 0 <= now - since < every_s

    def recall(self, config: Config) -> None:
        """What a relay before this one found; and whether somebody has looked since, and found that all agrees."""
        if config.ledger.state_dir != self._state_dir:
            self._state_dir = config.ledger.state_dir
            self._last = _read(os.path.join(self._state_dir, FILE_NAME))
        since = _read(os.path.join(self._state_dir, "reconcile.json"))
        looked_at, until = since.get("looked_at"), self._last.get("until")
        clean_until = since.get("clean_until")
        if (
            self._last.get("found")
            and type(looked_at) is int
            and type(clean_until) is int
            and type(until) is int
            and clean_until >= until
        ):
            counts = dict.fromkeys(self._last.get("counts") or {}, 0)
            self._last = {
                **self._last,
                "agrees": True,
                "found": 0,
                "counts": counts,
                "drift_csu": 0,
                "not_looked": [],
                "looked_at": looked_at,
                "clean_at": looked_at,
            }
            self._keep()

    def alarms(self) -> List[str]:
        """One line, as long as the last look found something."""
        counts = {kind: n for kind, n in (self._last.get("counts") or {}).items() if n}
        if counts:
            what = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
            return [f"slurmdbd, ledger and bank differ: {what}: see slurm-banking reconcile"]
        return []

    def as_dict(self) -> Mapping[str, Any]:
        return dict(self._last)

    def _keep(self) -> None:
        path = os.path.join(self._state_dir, FILE_NAME)
        try:
            descriptor = os.open(
                path + ".new",
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW,
                0o600,
            )
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                json.dump(self._last, file)
            os.replace(path + ".new", path)
        except OSError as error:
            log.warning("books_not_kept path=%s problem=%s", path, error.strerror)

    def _run(self, stop: threading.Event) -> Optional[Dict[str, Any]]:
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                close_fds=True,
            )
        except OSError as error:
            raise LookFailed(f"reconcile: {error.strerror}") from error
        until = time.monotonic() + LOOK_S
        try:
            while True:
                try:
                    output, errors = process.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    if stop.is_set():
                        return None
                    if time.monotonic() > until:
                        raise LookFailed(f"reconcile: not done within {LOOK_S:g} s") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        if process.returncode != 0:
            lines = errors.decode("utf-8", "replace").strip().splitlines()
            said = lines[-1][:300] if lines else f"status {process.returncode}"
            raise LookFailed(f"reconcile: {said}")
        try:
            found = json.loads(output[:_MAX_BYTES])
            assert isinstance(found, dict)
        except (ValueError, AssertionError):
            raise LookFailed("reconcile: what it printed is not to be understood") from None
        return found


def _read(path: str) -> Dict[str, Any]:
    try:
        with open(path, encoding="ascii") as file:
            found = json.loads(file.read(_MAX_BYTES))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


# -- the process that looks -----------------------------------------------------------------------------------------------


def summary(report: Any) -> Dict[str, Any]:
    """What the relay wants to know of a :class:`slurm_banking.reconcile.run.Report`."""
    drift_csu = sum(abs(csu) for (kind, _, _), csu in report.sums.items() if kind == "drift")
    return {
        "agrees": report.clean,
        "found": report.found,
        "counts": dict(report.by_kind()),
        "drift_csu": drift_csu,
        "not_looked": list(report.not_looked)[:10],
        "runs": report.runs,
        "rows": report.rows,
        "since": report.since,
        "until": report.until,
        "took_s": round(report.took_s, 1),
    }


def main(config_path: str, cluster: str) -> int:
    """One look; 1 if it could not be made, with one line on stderr."""
    from slurm_banking import config as configuration
    from slurm_banking.bank import Bank
    from slurm_banking.ledger import Ledger
    from slurm_banking.reconcile import run
    from slurm_banking.slurm.control import Operators
    from slurm_banking.slurm.sources import make_source

    os.umask(0o077)
    os.nice(_NICE)
    try:
        config = configuration.load(config_path, in_slurmctld=False)
        source = make_source(config.reconcile.source, config, cluster, operators=Operators())
        bank = Bank(
            config.api.url,
            configuration.read_token(config),
            timeout_s=config.api.timeout_s,
            resource=config.api.resource,
            job_id_format=config.api.job_id_format,
            cluster=cluster,
        )
        ledger = Ledger(config.ledger.state_dir, cluster)
        now = time.time()
        since, until = run.default_period(ledger, now)
        report = run.reconcile(ledger, config, source, bank, since=since, until=until)
        run.remember(ledger.state_dir, report, time.time())
    except BankingError as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 1
    print(json.dumps(summary(report)))
    return 0


__all__ = ["FILE_NAME", "POLL_S", "Books", "LookFailed", "summary"]
