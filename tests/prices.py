# SPDX-License-Identifier: BSD-3-Clause
"""Any prices and any resources, for property tests: as far as the configuration and Slurm's integers go."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import strategies as st

from slurm_banking.prices import CANCELLED_BY_ADMIN, PriceList, Rates
from slurm_banking.tres import UNTYPED, Tres, gpus_by_type

GPU_TYPES = (UNTYPED, "a100", "t4")
STATES = (
    "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "OUT_OF_MEMORY", "DEADLINE", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED",
    "REQUEUED", CANCELLED_BY_ADMIN,
)  # fmt: skip

#: Most are small and round, as those of a site; some are as long as a configuration may have them.
NUMBERS = (
    st.sampled_from([Decimal(0), Decimal(1), Decimal("0.125"), Decimal("1.20"), Decimal(40)])
    | st.decimals(min_value=0, max_value=100, places=2)
    | st.decimals(min_value=0, max_value=1_000_000, places=10)
)
MULTIPLIERS = st.sampled_from([Decimal(0), Decimal("0.1"), Decimal(1)]) | st.decimals(
    min_value=0, max_value=1_000, places=10
)
FACTORS = st.sampled_from([Decimal(0), Decimal("0.5"), Decimal(1)]) | st.decimals(
    min_value=0, max_value=1, places=10
)

RATES = st.builds(
    Rates,
    cpu=NUMBERS,
    gpu=st.dictionaries(st.sampled_from(GPU_TYPES), NUMBERS),
    mem_gb=NUMBERS,
    node=NUMBERS,
    billing=NUMBERS,
    combine=st.sampled_from(["sum", "max"]),
)
PRICES = st.builds(
    PriceList,
    partitions=st.dictionaries(st.sampled_from(["main", "gpu", "x"]), RATES),
    qos_multiplier=st.dictionaries(st.sampled_from(["normal", "high", "low"]), MULTIPLIERS),
    state_factor=st.dictionaries(st.sampled_from(STATES), FACTORS),
)

TRES = st.builds(
    Tres,
    cpus=st.integers(1, 200_000),
    memory_mb=st.integers(0, 2**40),
    nodes=st.integers(1, 10_000),
    gpus=st.lists(st.tuples(st.sampled_from(GPU_TYPES), st.integers(0, 40_000)), max_size=3).map(
        gpus_by_type
    ),
    billing=st.integers(0, 2**40),
)
