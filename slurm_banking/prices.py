# SPDX-License-Identifier: BSD-3-Clause
"""The price list: what resources cost per hour, by partition and QOS. Submit, quote, charge and reconcile all ask here.

A price is exact: it has at most ten decimal places (config.py), memory is priced per GB of 1024 MB, and nothing is rounded
before the one division in amounts.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from slurm_banking.amounts import EXACT
from slurm_banking.tres import UNTYPED, Tres

_ZERO = Decimal(0)
_ONE = Decimal(1)
_GB_PER_MB = Decimal("0.0009765625")  # 1/1024, exactly

#: How the priced resources of a partition make one price: added, or the dearest of them (Slurm's MAX_TRES).
COMBINE = ("sum", "max")

#: Prices by partition and QOS that a list keeps.
_KNOWN_MAX = 512

#: The state of a run that somebody with authority over Slurm ended, not its user.
CANCELLED_BY_ADMIN = "CANCELLED_BY_ADMIN"

#: Share of the cost that is charged, by final state: nobody pays for the system's faults.
DEFAULT_STATE_FACTOR: Mapping[str, Decimal] = {
    "NODE_FAIL": _ZERO,
    "BOOT_FAIL": _ZERO,
    "PREEMPTED": _ZERO,
    CANCELLED_BY_ADMIN: _ZERO,
}


def plain(number: Decimal) -> str:
    """Plain notation, never an exponent: what is stored with an entry and shown to people."""
    return format(number, "f")


@dataclass(frozen=True)
class Rates:
    """SU per hour of one partition, before the QOS multiplier.

    ``gpu``: per GPU by type; the type "" is any GPU that has no price of its own. Without it, a GPU whose type Slurm does
    not tell costs what the dearest type does, and one of a type that is not listed nothing.
    """

    cpu: Decimal = _ZERO  #: per CPU-hour
    gpu: Mapping[str, Decimal] = field(default_factory=dict)
    mem_gb: Decimal = _ZERO  #: per GB of memory (1024 MB) and hour
    node: Decimal = _ZERO  #: per node-hour
    billing: Decimal = _ZERO  #: per unit of Slurm's billing TRES and hour
    combine: str = "sum"

    @property
    def free(self) -> bool:
        return not any((self.cpu, self.mem_gb, self.node, self.billing, *self.gpu.values()))

    @cached_property
    def cpu_only(self) -> bool:
        """Whether it is the plain table of the original: SU per CPU-hour and nothing else."""
        return not any((self.mem_gb, self.node, self.billing, *self.gpu.values()))

    def of_gpu(self, kind: str) -> Decimal:
        if kind in self.gpu:
            return self.gpu[kind]
        if UNTYPED in self.gpu:
            return self.gpu[UNTYPED]
        return max(self.gpu.values(), default=_ZERO) if kind == UNTYPED else _ZERO

    def parts(self, tres: Tres) -> List[Tuple[str, Decimal, Decimal, Decimal]]:
        """(name, units, SU per unit and hour, SU per hour) of each priced resource of ``tres``."""
        units: List[Tuple[str, Decimal, Decimal]] = [
            ("cpu", Decimal(tres.cpus), self.cpu),
            ("mem_gb", EXACT.multiply(Decimal(tres.memory_mb), _GB_PER_MB), self.mem_gb),
            ("node", Decimal(tres.nodes), self.node),
            ("billing", Decimal(tres.billing), self.billing),
        ]
        units += [
            (f"gpu:{kind}" if kind else "gpu", Decimal(count), self.of_gpu(kind))
            for kind, count in tres.gpus
        ]
        return [
            (name, count, price, EXACT.multiply(count, price))
            for name, count, price in units
            if price and count
        ]

    def su_per_hour(self, tres: Tres) -> Decimal:
        """Of ``tres``; its parts added, or the dearest of them."""
        if self.cpu_only:
            return EXACT.multiply(Decimal(tres.cpus), self.cpu)
        amounts = [amount for _, _, _, amount in self.parts(tres)]
        if self.combine == "max":
            return max(amounts, default=_ZERO)
        total = _ZERO
        for amount in amounts:
            total = EXACT.add(total, amount)
        return total

    def table(self) -> Union[str, Dict[str, str]]:
        """As in the configuration: a number alone where only CPUs cost anything. For storing and showing."""
        if self.cpu_only:
            return plain(self.cpu)
        found = {
            "cpu": self.cpu,
            "mem_gb": self.mem_gb,
            "node": self.node,
            "billing": self.billing,
            **{f"gpu:{kind}" if kind else "gpu": su for kind, su in self.gpu.items()},
        }
        table = {name: plain(su) for name, su in sorted(found.items()) if su or "gpu" in name}
        return {**table, "combine": self.combine}

    @classmethod
    def from_table(cls, table: Union[str, Mapping[str, str]]) -> Rates:
        """The inverse of :meth:`table`."""
        if isinstance(table, str):
            return cls(cpu=Decimal(table))
        gpu = {
            name[len("gpu:") :] if ":" in name else UNTYPED: Decimal(su)
            for name, su in table.items()
            if name == "gpu" or name.startswith("gpu:")
        }
        plain_ones = {
            name: Decimal(table[name])
            for name in ("cpu", "mem_gb", "node", "billing")
            if name in table
        }
        return cls(gpu=gpu, combine=table.get("combine", "sum"), **plain_ones)


@dataclass(frozen=True)
class Price:
    """What resources cost per hour in one partition at one QOS."""

    partition: str
    qos: Optional[str]  #: None: Slurm named none, and the multiplier is 1
    rates: Rates
    qos_multiplier: Decimal
    version: str  #: of the price list it came from

    @property
    def free(self) -> bool:
        return self.qos_multiplier == 0 or self.rates.free

    def su_per_hour(self, tres: Tres) -> Decimal:
        """The QOS multiplier included; exact."""
        return EXACT.multiply(self.rates.su_per_hour(tres), self.qos_multiplier)

    def inputs(self) -> Dict[str, Any]:
        """What of the price is stored with an entry."""
        return {
            "rates": self.rates.table(),
            "qos_multiplier": plain(self.qos_multiplier),
            "price_version": self.version,
        }


@dataclass(frozen=True)
class PriceList:
    """The price tables in force at one time.

    ``partitions``: by partition, names as Slurm spells them. ``qos_multiplier``: by QOS in lower case, as slurmdbd stores
    them; 1 for a QOS that is not in it. ``state_factor``: share of the cost charged by final state, 1 where nothing is
    said; the defaults hold unless replaced. ``version``: ten hex digits that change when a number does.
    """

    partitions: Mapping[str, Rates]
    qos_multiplier: Mapping[str, Decimal] = field(default_factory=dict)
    state_factor: Mapping[str, Decimal] = field(default_factory=dict)
    version: str = field(init=False, default="")
    _known: Dict[Tuple[str, Optional[str]], Price] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "partitions", dict(self.partitions))
        multipliers = {name.lower(): number for name, number in self.qos_multiplier.items()}
        object.__setattr__(self, "qos_multiplier", multipliers)
        factors = {**DEFAULT_STATE_FACTOR, **self.state_factor}
        object.__setattr__(self, "state_factor", factors)
        object.__setattr__(self, "version", _version(self.tables()))

    def multiplier(self, qos: Optional[str]) -> Decimal:
        """Of a QOS, or the largest of a comma list of them (newer Slurm lets a job name several)."""
        if not qos:
            return _ONE
        names = [name.strip().lower() for name in qos.split(",") if name.strip()]
        return max((self.qos_multiplier.get(name, _ONE) for name in names), default=_ONE)

    def factor(self, state: str) -> Decimal:
        """Share of the cost that a run with this final state is charged: 0 to 1."""
        return self.state_factor.get(state, _ONE)

    def price(self, partition: str, qos: Optional[str]) -> Optional[Price]:
        """None: the partition is not in the list. What that means is the caller's policy (``unlisted_partition``)."""
        known = self._known.get((partition, qos))
        if known is not None:
            return known
        rates = self.partitions.get(partition)
        if rates is None:
            return None
        price = self._price(partition, qos, rates)
        if len(self._known) >= _KNOWN_MAX:  # a QOS may be any text
            self._known.clear()
        self._known[partition, qos] = price
        return price

    def free(self, partition: str, qos: Optional[str]) -> Price:
        """The price of an unlisted partition where the configuration says that those are free."""
        return self._price(partition, qos, Rates())

    def _price(self, partition: str, qos: Optional[str], rates: Rates) -> Price:
        return Price(
            partition=partition,
            qos=qos,
            rates=rates,
            qos_multiplier=self.multiplier(qos),
            version=self.version,
        )

    @classmethod
    def of_cpus(
        cls,
        partition_su: Mapping[str, Decimal],
        qos_multiplier: Optional[Mapping[str, Decimal]] = None,
    ) -> PriceList:
        """Where only CPUs cost anything: SU per CPU-hour by partition."""
        return cls(
            partitions={name: Rates(cpu=su) for name, su in partition_su.items()},
            qos_multiplier=qos_multiplier or {},
        )

    def tables(self) -> Dict[str, Dict[str, Any]]:
        """As stored in the ledger, so that a sum can be shown again years later; names as in the configuration."""
        return {
            "PartitionPrice": {name: rates.table() for name, rates in self.partitions.items()},
            "QosMultiplier": {name: plain(number) for name, number in self.qos_multiplier.items()},
            "StateFactor": {name: plain(number) for name, number in self.state_factor.items()},
        }

    @classmethod
    def from_tables(cls, tables: Mapping[str, Mapping[str, Any]]) -> PriceList:
        """The inverse of :meth:`tables`."""
        return cls(
            partitions={
                name: Rates.from_table(table) for name, table in tables["PartitionPrice"].items()
            },
            qos_multiplier={k: Decimal(v) for k, v in tables["QosMultiplier"].items()},
            state_factor={k: Decimal(v) for k, v in tables.get("StateFactor", {}).items()},
        )


def _version(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """FNV-1a over the sorted tables, folded to 40 bits.

    Not a secure hash, and none is needed: hashlib would map OpenSSL into slurmctld.
    """
    lines = []
    for table, rows in tables.items():
        for name in sorted(rows):
            row = rows[name]
            cells = {"": row} if isinstance(row, str) else row
            for key in sorted(cells):
                cell = cells[key]
                number = cell if cell in COMBINE else plain(EXACT.normalize(Decimal(cell)))
                lines.append(f"{table}\0{name}\0{key}\0{number}\n")
    digest = 0xCBF29CE484222325
    for byte in "".join(lines).encode("utf-8", "surrogatepass"):
        digest = ((digest ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{(digest >> 40) ^ (digest & 0xFFFFFFFFFF):010x}"
