# SPDX-License-Identifier: BSD-3-Clause
"""What is said on the relay's socket: one JSON object on one line each way, one question per connection.

A question is ``{"op": NAME, …}``. An answer is ``{"ok": true, …}``, or ``{"ok": false, "error": CODE, "message": TEXT}``
with a code of :data:`ERRORS`. Amounts are integer hundredths (``_csu``), times are unix seconds.
"""

from __future__ import annotations

import json
from typing import Any, Dict, Mapping

from slurm_banking.errors import BankingError

DEFAULT_SOCKET = "/run/slurm-banking/relay.sock"

#: Touched every second in the socket's directory while questions are answered.
HEARTBEAT_NAME = "relay.heartbeat"

#: Whole lines, the newline included.
MAX_REQUEST_BYTES = 64 * 1024
#: What slurmctld reads at most; the answers to it are far smaller.
MAX_REPLY_BYTES = 64 * 1024
#: What the command line reads at most: a statement of many jobs.
MAX_LONG_REPLY_BYTES = 32 * 1024 * 1024

#: How long the relay keeps a connection, from accept to the last byte of the answer.
CONNECTION_DEADLINE_S = 10.0

ERRORS: Mapping[str, str] = {
    "bad_request": "not a question that this relay knows, or an argument of the wrong kind",
    "denied": "the caller may not ask this, or not about this account, user or job",
    "not_found": "nothing in the ledger about it",
    "unavailable": "the ledger, Slurm or the bank is needed for the answer and cannot be had now",
    "busy": "too many questions at once; again, later",
    "internal": "a mistake in the relay; its log has the details",
}


class ProtocolError(BankingError):
    """A line that is not one of this protocol."""


def encode(message: Mapping[str, Any], limit: int = MAX_REQUEST_BYTES) -> bytes:
    """One line.

    :raises ProtocolError: longer than ``limit`` bytes.
    """
    line = json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    if len(line) > limit:
        raise ProtocolError(f"message of {len(line)} bytes; expected at most {limit}")
    return line


def decode(line: bytes) -> Dict[str, Any]:
    """:raises ProtocolError: not one JSON object."""
    try:
        message = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ProtocolError("expected one JSON object on one line") from None
    if not isinstance(message, dict):
        raise ProtocolError("expected one JSON object on one line")
    return message


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def failure(error: str, message: str) -> Dict[str, Any]:
    """An answer that says no."""
    return {"ok": False, "error": error, "message": message}
