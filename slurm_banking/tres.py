# SPDX-License-Identifier: BSD-3-Clause
"""Trackable resources as Slurm writes them: ``cpu=4,mem=8000M,node=1,billing=4,gres/gpu=2,gres/gpu:a100=2``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Dict, Iterable, Tuple

#: Of memory and of counts (Slurm's ``convert_num_unit``: each step is 1024), in MB.
_MB_PER_UNIT = {
    "K": Decimal(1) / 1024,
    "": Decimal(1),
    "M": Decimal(1),
    "G": Decimal(1024),
    "T": Decimal(1024**2),
    "P": Decimal(1024**3),
}
_AMOUNT = re.compile(r"(\d{1,20}(?:\.\d{1,10})?)([KMGTP]?)")

#: A GPU whose type Slurm does not tell.
UNTYPED = ""


@dataclass(frozen=True)
class Tres:
    """What a job, or one task of an array, has or may get: all of its nodes together."""

    cpus: int = 0  #: hardware threads, as Slurm counts CPUs
    memory_mb: int = 0
    nodes: int = 0
    gpus: Tuple[Tuple[str, int], ...] = ()  #: (type, count), by type; type "" where it is not known
    billing: int = 0  #: Slurm's own weighted sum, truncated

    @property
    def gpu_count(self) -> int:
        return sum(count for _, count in self.gpus)

    def __str__(self) -> str:
        """As Slurm writes it; :func:`parse_tres` reads it back."""
        parts = [f"cpu={self.cpus}"]
        if self.memory_mb:
            parts.append(f"mem={self.memory_mb}M")
        if self.nodes:
            parts.append(f"node={self.nodes}")
        if self.billing:
            parts.append(f"billing={self.billing}")
        if self.gpus:
            parts.append(f"gres/gpu={self.gpu_count}")
            parts += [f"gres/gpu:{kind}={count}" for kind, count in self.gpus if kind]
        return ",".join(parts)


def gpus_by_type(counts: Iterable[Tuple[str, int]]) -> Tuple[Tuple[str, int], ...]:
    """Summed by type and in order, without those of which there are none."""
    summed: Dict[str, int] = {}
    for kind, count in counts:
        summed[kind] = summed.get(kind, 0) + count
    return tuple(sorted((kind, count) for kind, count in summed.items() if count > 0))


def parse_tres(text: str) -> Tres:
    """What is not known here (licences, disks, other GRES) is left out; "" is nothing at all.

    :raises ValueError: a part is not ``NAME=COUNT``.
    """
    counts: Dict[str, int] = {}
    for part in text.split(","):
        name, found, amount = part.partition("=")
        if not found:
            if part.strip():
                raise ValueError(f"{part[:60]!r}: expected NAME=COUNT")
            continue
        match = _AMOUNT.fullmatch(amount.strip())
        if match is None:
            raise ValueError(f"{part[:60]!r}: expected NAME=COUNT")
        counts[name.strip().lower()] = int(Decimal(match[1]) * _MB_PER_UNIT[match[2]])
    typed = [
        (name[len("gres/gpu:") :], count)
        for name, count in counts.items()
        if name.startswith("gres/gpu:")
    ]
    untyped = max(0, counts.get("gres/gpu", 0) - sum(count for _, count in typed))
    return Tres(
        cpus=counts.get("cpu", 0),
        memory_mb=counts.get("mem", 0),
        nodes=counts.get("node", 0),
        gpus=gpus_by_type([*typed, (UNTYPED, untyped)]),
        billing=counts.get("billing", 0),
    )
