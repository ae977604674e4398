# SPDX-License-Identifier: BSD-3-Clause
"""What users are told, word for word."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from slurm_banking import messages
from slurm_banking.estimate import Hints
from slurm_banking.ledger import SetAside
from slurm_banking.records import Estimate, Reason
from slurm_banking.tres import Tres
from tests.builders import funds_of

NOTHING = SetAside(queued_csu=0, queued_jobs=0, running_csu=0, running_jobs=0)


def an_estimate(**changes: Any) -> Estimate:
    values: dict[str, Any] = dict(
        cost_csu=10_000, per_task_csu=100, tasks=100, partition="main", tres=Tres(cpus=4, nodes=1),
        time_limit_min=15, price={"price_version": "x"},
    )  # fmt: skip
    return Estimate(**{**values, **changes})


def refusal(hints: Hints, **changes: Any) -> list[str]:
    text = messages.insufficient(
        "fc_alpha", an_estimate(**changes), 3_100, Reason.INSUFFICIENT_FUNDS, NOTHING, hints
    )
    return text.split("\n")


def test_a_refused_array_is_told_which_of_its_tasks_would_fit() -> None:
    lines = refusal(Hints(tasks=31, array="0-30"))
    assert lines[1] == "31 of its 100 tasks would fit: --array=0-30."


def test_an_estimate_is_told_with_what_it_costs_and_no_more() -> None:
    tres = Tres(cpus=8, memory_mb=6400, nodes=2, gpus=(("a100", 1), ("t4", 2)))
    prices: list[Any] = [
        "1",
        {"gpu": "20", "combine": "sum"},
        {"mem_gb": "1", "node": "2", "combine": "sum"},
    ]
    told = [
        messages.describe(an_estimate(tasks=1, tres=tres, price={"rates": rates}))
        for rates in prices
    ]
    assert told == [
        "main, 8 CPUs, 3 GPUs, 00:15:00",
        "main, 8 CPUs, 3 GPUs, 00:15:00",
        "main, 8 CPUs, 3 GPUs, 6.25 GB of memory, 2 nodes, 00:15:00",
    ]


def test_or_how_many_where_an_expression_cannot_be_given() -> None:
    assert refusal(Hints(tasks=31))[1] == "31 of its 100 tasks would fit."


def test_each_way_in_which_it_would_fit_is_told() -> None:
    hints = Hints(time_limit_min=4, time_limit="00:04:00", tasks=31, array="1-31%4", partition="c")
    assert refusal(hints)[1] == (
        "It would fit with --time=00:04:00 or less, or with --partition=c. "
        "31 of its 100 tasks would fit: --array=1-31%4."
    )


def test_where_nothing_would_fit_that_is_told() -> None:
    assert refusal(Hints())[1].startswith("Nothing of it would fit; ")


def test_a_share_that_is_set_aside_is_told_and_the_whole_is_not_without_one() -> None:
    shared = messages.accepted("fc_alpha", an_estimate(lien_share=Decimal("0.5")), None)
    assert shared.endswith(
        "up to 100.00 SU (main, 4 CPUs, 00:15:00, x 100 tasks); 50.00 SU of that are set aside."
    )
    assert "set aside" not in messages.accepted("fc_alpha", an_estimate(), None)


@pytest.mark.parametrize(
    ("share", "percent"), [("0.1", "10"), ("0.100", "10"), ("0.125", "12.5"), ("1", "100")]
)
def test_a_warning_names_the_share_and_the_limit(share: str, percent: str) -> None:
    told = messages.low_funds(funds_of("fc_alpha", 100_000), Decimal(share))
    assert told == f"Note: fc_alpha has less than {percent} % of its 1000.00 SU left."
