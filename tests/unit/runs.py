# SPDX-License-Identifier: BSD-3-Clause
"""A run as the ledger has it; a test says what matters to it."""

from __future__ import annotations

from typing import Any, Dict

from slurm_banking.ledger import LedgerRun
from tests.builders import SUBMITTED


def a_ledger_run(**changes: Any) -> LedgerRun:
    """Ended, charged 0.40 SU, not yet told to the bank."""
    values: Dict[str, Any] = dict(
        run_id=1, job_id=7, submit_time=SUBMITTED, restart_count=0, state="ended", lien_id=None, counted=True,
        account="fc_alpha", user_id=1001, user_name="alice", name="", array_job_id=None, array_task_id=None,
        partition="main", qos="normal", start_time=SUBMITTED + 10, end_time=SUBMITTED + 70, elapsed_s=60, cpus=1,
        nodes="n1", node_count=1, time_limit_min=60, slurm_state="COMPLETED", lien_csu=100, proposed_csu=None,
        proposed_us=None, proposed_inputs=None, charge_csu=40, ledger_csu=40, bank_csu=0, period="", bank_job_id=None,
        start_acked=False, end_acked=False, parked=None, inputs={}, source="jobcomp",
    )  # fmt: skip
    return LedgerRun(**{**values, **changes})
