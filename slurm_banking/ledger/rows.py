# SPDX-License-Identifier: BSD-3-Clause
"""What the ledger's tables hold, as immutable records, and the sums that are made of them."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import Any, Mapping, Optional

from slurm_banking.records import UNKNOWN_RESTART, Funds, FundsKind

#: ``user_id`` of the row that speaks of the whole account.
WHOLE_ACCOUNT = -1

#: What Slurm tells as the state of a run whose start failed (a component of a het job): its job waits again.
RETURNED = "PENDING"

#: The state of a run that never was: struck by reconcile, charged nothing, and never found by its key again (queries.sql).
STRUCK = "STRUCK"


def new_lien_id() -> str:
    """32 hexadecimal digits: made by whoever opens the lien, stored before it is sent anywhere.

    Milliseconds, then 80 random bits: liens of the same time lie on the same pages, which saves writes. The order says
    nothing.
    """
    return f"{time.time_ns() // 1_000_000 & 0xFFFFFFFFFFFF:012x}{os.urandom(10).hex()}"


@dataclass(frozen=True)
class Lien:
    """SUs set aside for a queued job (for an array: tasks not yet started x per task)."""

    lien_id: str
    state: str  #: "unconfirmed", "confirmed", "ended"
    end_kind: Optional[str]
    origin: str
    counted: bool
    account: str
    user_id: int
    job_id: Optional[int]  #: None until bound
    submit_time: Optional[int]  #: None until known
    restart_count: int
    tasks_left: int
    per_task_csu: int
    proposed_csu: Optional[int]  #: per task, of an update not yet seen; None: no update is open
    proposed_us: Optional[int]
    proposed_inputs: Optional[Mapping[str, Any]]
    amount_csu: int  #: tasks_left * max(per_task_csu, proposed_csu or 0)
    supersedes: Optional[str]
    user_name: str
    name: str
    inputs: Mapping[str, Any]
    seen_inputs: Optional[Mapping[str, Any]]
    created_us: int
    confirmed_us: Optional[int]
    ended_us: Optional[int]
    missed: int

    @property
    def open(self) -> bool:
        return self.state != "ended"

    def speaks_of(self, submit_time: Optional[int]) -> bool:
        """Whether its job, by id, is the one submitted then: Slurm reuses ids after a crash.

        A requeued job gets a new submit time, and an update's lien is bound to what it was before.
        """
        return (
            self.submit_time is None
            or submit_time is None
            or self.submit_time == submit_time
            or self.origin in ("requeue", "update")
        )


@dataclass(frozen=True)
class LedgerRun:
    """One run as the ledger knows it; see ``runs`` in schema.sql."""

    run_id: int
    job_id: int
    submit_time: int
    restart_count: int
    state: str  #: "running", "ended"
    lien_id: Optional[str]
    counted: bool
    account: str
    user_id: int
    user_name: str
    name: str
    array_job_id: Optional[int]
    array_task_id: Optional[int]
    partition: str
    qos: Optional[str]
    start_time: Optional[int]
    end_time: Optional[int]
    elapsed_s: int
    cpus: int
    nodes: str
    node_count: int
    time_limit_min: Optional[int]
    slurm_state: str
    lien_csu: int
    proposed_csu: Optional[int]
    proposed_us: Optional[int]
    proposed_inputs: Optional[Mapping[str, Any]]
    charge_csu: Optional[int]
    ledger_csu: int
    bank_csu: int
    period: str
    bank_job_id: Optional[str]
    start_acked: bool
    end_acked: bool
    parked: Optional[str]
    inputs: Mapping[str, Any]
    source: str

    @property
    def returned(self) -> bool:
        """Whether its start failed and its job went back into the queue; it may run yet, under the same key."""
        return self.state == "ended" and self.slurm_state == RETURNED

    @property
    def struck(self) -> bool:
        """Whether it was found never to have been; its key is another run's to have."""
        return self.slurm_state == STRUCK

    @property
    def made_way(self) -> bool:
        """Whether its key is another run's: it was struck, or slurmctld gave its job id to another user's job.

        Such a run is never found by its key again (queries.sql), and ``restart_count`` is only a number of its own.
        """
        return self.restart_count < UNKNOWN_RESTART

    @property
    def told_restart_count(self) -> int:
        """The restart count that Slurm told."""
        return (
            int(self.inputs.get("told_restart_count", 0)) if self.made_way else self.restart_count
        )


@dataclass(frozen=True)
class Delivery:
    """One thing that the bank has not acknowledged."""

    seq: int
    phase: str  #: "start", "end"
    created_us: int
    run: LedgerRun


@dataclass(frozen=True)
class Posting:
    """One line of a statement: what an entry did to what an account has spent."""

    seq: int
    at_us: int
    kind: str  #: "charge", "restated"
    amount_csu: int  #: the cost as first charged, or the difference that a later telling made
    reason: str
    actor: str
    inputs: Mapping[str, Any]
    run: LedgerRun


@dataclass(frozen=True)
class LedgerEntry:
    seq: int
    at_us: int
    kind: str
    lien_id: Optional[str]
    job_id: Optional[int]
    submit_time: Optional[int]
    restart_count: Optional[int]
    account: str
    user_id: int
    amount_csu: int
    actor: str
    reason: str
    inputs: Optional[Mapping[str, Any]]


@dataclass(frozen=True)
class FundsView:
    """What counts for one submission: the bank's word and what the ledger set aside, read in one transaction.

    ``available = remaining - sum(ledger_csu - bank_csu)``, for the account and for the user inside it.
    """

    account: Optional[Funds]  #: None: nobody asked the bank yet
    user: Optional[Funds]
    account_exposure_csu: int
    user_exposure_csu: int

    @property
    def account_available_csu(self) -> Optional[int]:
        """None: not limited (or not known; look at ``account``)."""
        if self.account is None or self.account.remaining_csu is None:
            return None
        return self.account.remaining_csu - self.account_exposure_csu

    @property
    def user_available_csu(self) -> Optional[int]:
        if self.user is None or self.user.remaining_csu is None:
            return None
        return self.user.remaining_csu - self.user_exposure_csu

    @property
    def available_csu(self) -> Optional[int]:
        """The smaller of both; None when neither is limited."""
        sides = [
            side
            for side in (self.account_available_csu, self.user_available_csu)
            if side is not None
        ]
        return min(sides) if sides else None

    @property
    def read_at(self) -> int:
        """When the older of both was read at the bank; 0 if something was never read."""
        if self.account is None:
            return 0
        if self.account.kind is FundsKind.LIMITED and self.account.reason is None:
            return min(self.account.read_at, self.user.read_at if self.user else 0)
        return self.account.read_at


@dataclass(frozen=True)
class SetAside:
    """What is set aside in an account for queued and running jobs: for messages and balances."""

    queued_csu: int
    queued_jobs: int
    running_csu: int
    running_jobs: int
    grandfathered_csu: int = 0  #: shown apart, not counted
    grandfathered_jobs: int = 0


@dataclass(frozen=True)
class EndResult:
    """What the end of a run did to the ledger."""

    #: "charged", "restated" (a second end with another cost), "duplicate" (a second end, nothing new),
    #: "voided" (never ran), "resized" (goes on with other nodes), "returned" (its start failed, its job waits again),
    #: "ignored" (nothing was set aside)
    kind: str
    run: Optional[LedgerRun] = None
    next_lien_id: Optional[str] = None  #: opened for the next run of a job that waits again
    overdrawn_csu: int = 0  #: by how much the charge is above its lien; 0: it is not


def load_json(text: Optional[str]) -> Optional[Mapping[str, Any]]:
    return None if text is None else json.loads(text)


_ENCODER = json.JSONEncoder(separators=(",", ":"), sort_keys=True)


def dump_json(value: Optional[Mapping[str, Any]]) -> Optional[str]:
    return None if value is None else _ENCODER.encode(value)
