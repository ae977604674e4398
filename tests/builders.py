# SPDX-License-Identifier: BSD-3-Clause
"""Builders of records for tests: everything has a value; a test says what matters to it."""

from __future__ import annotations

from typing import Any

from slurm_banking.records import Funds, FundsKind, NodeShape, Partition, Run, Submission

SUBMITTED = 1_795_000_000


def a_partition(**changes: Any) -> Partition:
    values: dict[str, Any] = dict(
        name="main", default_time_min=60, max_time_min=1440, total_cpus=16, total_nodes=2,
        shapes=(NodeShape(count=2, cpus=8, cores=8, memory_mb=16000),),
    )  # fmt: skip
    return Partition(**{**values, **changes})


def a_submission(**changes: Any) -> Submission:
    values: dict[str, Any] = dict(
        cluster="c", job_user_id=1001, submit_user_id=1001, partitions=(a_partition(),),
        account="fc_alpha", user_name="alice", qos="normal", time_limit_min=60, min_cpus=1,
    )  # fmt: skip
    return Submission(**{**values, **changes})


def a_run(**changes: Any) -> Run:
    values: dict[str, Any] = dict(
        cluster="c", job_id=7, submit_time=SUBMITTED, restart_count=0, user_id=1001, user_name="alice",
        account="fc_alpha", partition="main", qos="normal", state="COMPLETED", start_time=SUBMITTED + 10,
        end_time=SUBMITTED + 70, elapsed_s=60, cpus=1, started=True, nodes="n1", node_count=1, time_limit_min=60,
    )  # fmt: skip
    return Run(**{**values, **changes})


def funds_of(
    account: str, csu: int, *, user_id: int | None = None, read_at: int = 0, **changes: Any
) -> Funds:
    values: dict[str, Any] = dict(
        account=account, user_id=user_id, kind=FundsKind.LIMITED, limit_csu=csu,
        remaining_csu=csu, allocation="1@2026-01-01", start_time=SUBMITTED - 86400, read_at=read_at,
    )  # fmt: skip
    return Funds(**{**values, **changes})
