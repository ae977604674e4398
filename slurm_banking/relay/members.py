# SPDX-License-Identifier: BSD-3-Clause
"""Who belongs where, as slurmdbd has it, remembered for some seconds; older answers serve while slurmdbd is away."""

from __future__ import annotations

import logging
import threading
import time
from typing import (
    Callable,
    Collection,
    Dict,
    FrozenSet,
    Generic,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
)

from slurm_banking.errors import SlurmUnavailable
from slurm_banking.slurm import commands, topology
from slurm_banking.slurm.commands import Runner

log = logging.getLogger("slurm_banking.relay")

FRESH_S = 30.0
STALE_S = 3600.0
MAX_KEPT = 10_000

#: A person waits for it, on a connection that ends after ten seconds.
COMMAND_TIMEOUT_S = 4.0

T = TypeVar("T")


class Kept(Generic[T]):
    """Answers by key; one question at a time for each."""

    def __init__(self, read: Callable[[str], T], fresh_s: float = FRESH_S) -> None:
        self._read = read
        self._fresh_s = fresh_s
        self._lock = threading.Lock()
        self._answers: Dict[str, Tuple[float, T]] = {}
        self._asking: Dict[str, threading.Lock] = {}

    def get(self, key: str) -> T:
        """:raises SlurmUnavailable: it cannot be asked, and was not asked in the last hour."""
        with self._lock:
            known = self._answers.get(key)
            if known is not None and time.monotonic() - known[0] < self._fresh_s:
                return known[1]
            asking = self._asking.setdefault(key, threading.Lock())
        if not asking.acquire(timeout=COMMAND_TIMEOUT_S):
            return self._old(known, SlurmUnavailable("slurmdbd does not answer"))
        try:
            with self._lock:
                known = self._answers.get(key)
                if known is not None and time.monotonic() - known[0] < self._fresh_s:
                    return known[1]
            try:
                answer = self._read(key)
            except SlurmUnavailable as error:
                return self._old(known, error)
            with self._lock:
                if len(self._answers) >= MAX_KEPT:
                    self._answers.clear()
                self._answers[key] = (time.monotonic(), answer)
            return answer
        finally:
            asking.release()
            with self._lock:
                if self._asking.get(key) is asking:
                    del self._asking[key]

    def _old(self, known: Optional[Tuple[float, T]], error: SlurmUnavailable) -> T:
        if known is not None and time.monotonic() - known[0] < STALE_S:
            return known[1]
        raise error


class SlurmMembers:
    """Associations and coordinators of one cluster."""

    def __init__(self, cluster: str, *, run: Runner = commands.run) -> None:
        def quickly(argv: Sequence[str], **options: object) -> str:
            return run(argv, timeout_s=COMMAND_TIMEOUT_S, **options)

        self._accounts: Kept[Tuple[str, ...]] = Kept(
            lambda user: tuple(
                sorted(
                    {found.account for found in topology.associations(user, cluster, run=quickly)}
                )
            )
        )
        self._defaults: Kept[Optional[str]] = Kept(
            lambda user: topology.default_account(user, run=quickly)
        )
        self._coordinators: Kept[Dict[str, FrozenSet[str]]] = Kept(
            lambda _: read_coordinators(run=quickly), 60.0
        )

    def accounts_of(self, user_name: str) -> Sequence[str]:
        return self._accounts.get(user_name)

    def default_account(self, user_name: str) -> Optional[str]:
        return self._defaults.get(user_name)

    def coordinated_by(self, user_name: str) -> Collection[str]:
        """Nothing while it cannot be known: nobody sees more than they may."""
        try:
            return self._coordinators.get("").get(user_name, frozenset())
        except SlurmUnavailable as error:
            log.info("coordinators_unknown problem=%s", error)
            return frozenset()


def read_coordinators(*, run: Runner = commands.run) -> Dict[str, FrozenSet[str]]:
    """Accounts by the name of their coordinator.

    :raises SlurmUnavailable: slurmdbd cannot be asked.
    """
    found: Dict[str, set[str]] = {}
    argv = ["sacctmgr", "--noheader", "--parsable2", "--readonly", "show", "account"]
    for line in run([*argv, "withcoordinator", "format=Account,Coordinators"]).splitlines():
        account, _, names = line.partition("|")
        for name in names.split(","):
            if name:
                found.setdefault(name, set()).add(account)
    return {name: frozenset(accounts) for name, accounts in found.items()}
