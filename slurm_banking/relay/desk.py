# SPDX-License-Identifier: BSD-3-Clause
"""Funds on request: one question to the bank per account and user at a time, and nobody waits longer than they said.

slurmctld asks here with a budget of some 200 ms. Whoever comes while the bank is away, or is taking seconds over the
questions it has, is told so at once.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Optional, Tuple

from slurm_banking.errors import BankError, BankingError

log = logging.getLogger("slurm_banking.relay")

#: Questions to the bank at once.
MAX_FLIGHTS = 4

#: A question that the bank has had for this long says that it is away for the others.
SLOW_S = 1.0

#: Seconds that a caller is told to leave the relay alone when the bank is slow.
PAUSE_S = 2.0

#: What is kept of a budget for the way back.
_RESERVE_S = 0.03


@dataclass
class _Flight:
    began: float
    done: threading.Event = field(default_factory=threading.Event)
    problem: Optional[str] = None


class FundsDesk:
    """
    :param refresh: asks the bank and writes the ledger; may take as long as the bank does.
    :param read_at: when the bank's word on an account and user was read (unix seconds; 0: never).
    :param away_until: until when the bank is not asked (unix seconds); None: it may be.
    """

    def __init__(
        self,
        *,
        refresh: Callable[[str, int], Any],
        read_at: Callable[[str, int], int],
        away_until: Callable[[], Optional[float]],
    ) -> None:
        self._refresh = refresh
        self._read_at = read_at
        self._away_until = away_until
        self._lock = threading.Lock()
        self._flights: Dict[Tuple[str, int], _Flight] = {}

    def ask(
        self, account: str, user_id: int, *, max_age_s: float, budget_s: float
    ) -> Dict[str, Any]:
        """``fresh``: the ledger has the bank's word, at most ``max_age_s`` old. ``away``: do not ask before ``until``."""
        began = time.monotonic()
        now = time.time()
        read_at = self._read_at(account, user_id)
        if now - read_at <= max_age_s:
            return {"ok": True, "away": False, "fresh": True, "read_at": read_at}
        away_until = self._away_until()
        if away_until is not None and away_until > now:
            return _away(away_until)
        with self._lock:
            flight = self._flights.get((account, user_id))
            if flight is None:
                if len(self._flights) >= MAX_FLIGHTS:
                    return _away(now + PAUSE_S)
                flight = _Flight(began=began)
                self._flights[account, user_id] = flight
                threading.Thread(
                    target=self._fly, args=(account, user_id, flight), name="funds", daemon=True
                ).start()
        if not flight.done.wait(max(0.0, budget_s - _RESERVE_S)):
            if time.monotonic() - flight.began > SLOW_S:
                return _away(time.time() + PAUSE_S)
            return {"ok": True, "away": False, "fresh": False}
        away_until = self._away_until()
        if away_until is not None and away_until > time.time():
            return _away(away_until)
        read_at = self._read_at(account, user_id)
        reply: Dict[str, Any] = {
            "ok": True,
            "away": False,
            "fresh": flight.problem is None and time.time() - read_at <= max(max_age_s, 1) + 1,
            "read_at": read_at,
        }
        if flight.problem is not None:
            reply["problem"] = flight.problem
        return reply

    def _fly(self, account: str, user_id: int, flight: _Flight) -> None:
        try:
            self._refresh(account, user_id)
        except BankError as error:
            flight.problem = str(error)
        except BankingError as error:
            flight.problem = str(error)
            log.warning(
                "funds_refresh_failed account=%s user=%d problem=%s", account, user_id, error
            )
        except Exception:
            flight.problem = "internal error"
            log.exception("funds_refresh_failed account=%s user=%d", account, user_id)
        finally:
            with self._lock:
                self._flights.pop((account, user_id), None)
            flight.done.set()


def _away(until: float) -> Dict[str, Any]:
    return {"ok": True, "away": True, "fresh": False, "until": int(until + 1)}
