# SPDX-License-Identifier: BSD-3-Clause
"""One question to the relay, when the ledger cannot decide: 250 ms in total, and never for long if nobody answers.

* one question in flight per account: who comes meanwhile decides with what the ledger has;
* none while the relay says that the bank is away;
* after a few questions without an answer none at all, until the relay's heartbeat moves again.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Callable, Dict, Mapping, Optional, Set

from slurm_banking.errors import RelayUnavailable
from slurm_banking.relay import protocol
from slurm_banking.relay.client import ask

#: Seconds for one question; with what the decision itself takes it stays below the promised 250 ms.
BUDGET_S = 0.2

#: Questions without an answer, one after the other, after which no more are asked.
TRIES = 2

#: Seconds to leave the relay alone after it did not answer, doubled each time up to the longest.
FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 600.0

Ask = Callable[..., Dict[str, Any]]


class Asker:
    def __init__(self, slurm_user_id: int, *, ask_relay: Ask = ask) -> None:
        self._allowed = (0, slurm_user_id)
        self._ask_relay = ask_relay
        self._lock = threading.Lock()
        self._in_flight: Set[str] = set()
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._silent_until = 0.0
        self._heartbeat_at_failure: Optional[int] = None
        self._away_until = 0.0
        self.last_problem = ""

    def refresh(self, socket_path: str, account: str, user_id: int, max_age_s: int) -> bool:
        """Have the bank's word on an account and user written into the ledger; whether that happened."""
        with self._lock:
            if not self._may_ask(socket_path, account):
                return False
            self._in_flight.add(account)
        try:
            reply = self._ask_relay(
                socket_path,
                {
                    "op": "funds",
                    "account": account,
                    "user_id": user_id,
                    "max_age_s": max_age_s,
                    "budget_ms": int(BUDGET_S * 1000),
                },
                BUDGET_S,
                allowed_owner_uids=self._allowed,
            )
        except RelayUnavailable as error:
            with self._lock:
                self._failed(socket_path, str(error))
            return False
        finally:
            with self._lock:
                self._in_flight.discard(account)
        with self._lock:
            return self._answered(reply)

    def would_ask(self, socket_path: str, account: str) -> bool:
        """Whether :meth:`refresh` would ask now: if not, what the ledger has is all there is to decide on."""
        with self._lock:
            return self._may_ask(socket_path, account)

    def _may_ask(self, socket_path: str, account: str) -> bool:
        now = time.monotonic()
        if account in self._in_flight or now < self._away_until:
            return False
        return self._failures < TRIES or self._worth_a_try(socket_path, now)

    def _answered(self, reply: Mapping[str, Any]) -> bool:
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        if reply.get("away"):
            until = reply.get("until")
            wait_s = (float(until) - time.time()) if isinstance(until, (int, float)) else 5.0
            self._away_until = time.monotonic() + min(max(wait_s, 1.0), 60.0)
            self.last_problem = "the bank is away"
            return False
        if not reply.get("ok"):
            self.last_problem = str(reply.get("message", ""))[:200]
            return False
        return bool(reply.get("fresh", True))

    def _failed(self, socket_path: str, problem: str) -> None:
        self.last_problem = problem
        self._failures += 1
        if self._failures >= TRIES:
            self._silent_until = time.monotonic() + self._pause_s
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
            self._heartbeat_at_failure = _heartbeat(socket_path)

    def _worth_a_try(self, socket_path: str, now: float) -> bool:
        """A relay that was restarted, or came to life again, shows it by its heartbeat; without that, no question."""
        if now < self._silent_until:
            return False
        beat = _heartbeat(socket_path)
        return beat is not None and beat != self._heartbeat_at_failure


def _heartbeat(socket_path: str) -> Optional[int]:
    try:
        return os.stat(
            os.path.join(os.path.dirname(socket_path), protocol.HEARTBEAT_NAME)
        ).st_mtime_ns
    except OSError:
        return None
