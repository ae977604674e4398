# SPDX-License-Identifier: BSD-3-Clause
"""The few columns of a run that tell whether it agrees with what others have of it: for a look at very many."""

from __future__ import annotations

from typing import NamedTuple, Optional


class RunGlance(NamedTuple):
    """In the order of the columns of the query ``glance_of_job``."""

    run_id: int
    job_id: int
    submit_time: int
    state: str
    slurm_state: str
    account: str
    user_id: int
    start_time: Optional[int]
    end_time: Optional[int]
    charge_csu: Optional[int]
    ledger_csu: int
    bank_csu: int
    period: str
    bank_job_id: Optional[str]
    end_acked: int
    parked: Optional[str]
    waiting: int  #: deliveries in the outbox


class RunKey(NamedTuple):
    """In the order of the columns of the query ``keys_of_ended``."""

    run_id: int
    job_id: int
    submit_time: int
