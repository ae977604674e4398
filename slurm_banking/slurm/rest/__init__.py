# SPDX-License-Identifier: BSD-3-Clause
"""Slurm through slurmrestd: the client, and what its answers become."""

from __future__ import annotations

from slurm_banking.slurm.rest.client import NEWEST, OLDEST, SlurmrestdClient, from_config
from slurm_banking.slurm.rest.errors import RestError, RestRefused, RestTooMuch, RestUnauthorized
from slurm_banking.slurm.rest.flatten import (
    Node,
    PartitionInfo,
    Ping,
    Problem,
    QueueJob,
    Submitted,
)

__all__ = (
    "NEWEST",
    "OLDEST",
    "Node",
    "PartitionInfo",
    "Ping",
    "Problem",
    "QueueJob",
    "RestError",
    "RestRefused",
    "RestTooMuch",
    "RestUnauthorized",
    "SlurmrestdClient",
    "Submitted",
    "from_config",
)
