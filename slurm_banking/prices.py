# SPDX-License-Identifier: BSD-3-Clause
"""The price list: what one CPU-hour costs, by partition and QOS. Submit, quote, charge and reconcile all ask here."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Context, Decimal
from typing import Mapping, Optional

#: A price and a multiplier have at most ten decimal places each (config.py), so their product never rounds here.
_EXACT = Context(prec=60)

_ONE = Decimal(1)


def plain(number: Decimal) -> str:
    """Plain notation, never an exponent: what is stored with an entry and shown to people."""
    return format(number, "f")


@dataclass(frozen=True)
class Price:
    """What one CPU-hour costs in one partition at one QOS."""

    partition: str
    qos: Optional[str]  #: None: Slurm named none, and the multiplier is 1
    su: Decimal  #: SU per CPU-hour, the QOS multiplier included
    partition_su: Decimal  #: SU per CPU-hour as configured
    qos_multiplier: Decimal
    version: str  #: of the price list it came from

    @property
    def free(self) -> bool:
        return self.su == 0


@dataclass(frozen=True)
class PriceList:
    """The price tables of one configuration.

    ``partition_su``: SU per CPU-hour by partition, names as Slurm spells them. ``qos_multiplier``: by QOS in lower case,
    as slurmdbd stores them; 1 for a QOS that is not in it. ``version``: ten hex digits that change when a number does.
    """

    partition_su: Mapping[str, Decimal]
    qos_multiplier: Mapping[str, Decimal] = field(default_factory=dict)
    version: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "partition_su", dict(self.partition_su))
        multipliers = {name.lower(): number for name, number in self.qos_multiplier.items()}
        object.__setattr__(self, "qos_multiplier", multipliers)
        object.__setattr__(self, "version", _version(self.partition_su, self.qos_multiplier))

    def multiplier(self, qos: Optional[str]) -> Decimal:
        """Of a QOS, or the largest of a comma list of them (newer Slurm lets a job name several)."""
        if not qos:
            return _ONE
        names = [name.strip().lower() for name in qos.split(",") if name.strip()]
        return max((self.qos_multiplier.get(name, _ONE) for name in names), default=_ONE)

    def price(self, partition: str, qos: Optional[str]) -> Optional[Price]:
        """None: the partition is not in the list. What that means is the caller's policy (``unlisted_partition``)."""
        partition_su = self.partition_su.get(partition)
        if partition_su is None:
            return None
        multiplier = self.multiplier(qos)
        return Price(
            partition=partition,
            qos=qos,
            su=_EXACT.multiply(partition_su, multiplier),
            partition_su=partition_su,
            qos_multiplier=multiplier,
            version=self.version,
        )

    def free(self, partition: str, qos: Optional[str]) -> Price:
        """The price of an unlisted partition where the configuration says that those are free."""
        return Price(
            partition=partition,
            qos=qos,
            su=Decimal(0),
            partition_su=Decimal(0),
            qos_multiplier=self.multiplier(qos),
            version=self.version,
        )


def _version(partition_su: Mapping[str, Decimal], qos_multiplier: Mapping[str, Decimal]) -> str:
    """FNV-1a over the sorted tables, folded to 40 bits.

    Not a secure hash, and none is needed: hashlib would map OpenSSL into slurmctld.
    """
    lines = []
    for table, numbers in (("P", partition_su), ("Q", qos_multiplier)):
        for name in sorted(numbers):
            lines.append(f"{table}\0{name}\0{plain(_EXACT.normalize(numbers[name]))}\n")
    digest = 0xCBF29CE484222325
    for byte in "".join(lines).encode("utf-8", "surrogatepass"):
        digest = ((digest ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{(digest >> 40) ^ (digest & 0xFFFFFFFFFF):010x}"
