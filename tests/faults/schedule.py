# SPDX-License-Identifier: BSD-3-Clause
"""What is done to the cluster, and when: drawn from a seed, the same for the same seed.

Kinds are dealt from a shuffled deck, so that each comes up as often as any other, but for those of SELDOM, which are in every
other deck: with some forty kinds and two to five of them in a schedule, each at least twice within fifty schedules.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence

from tests.faults.bank_proxy import FAULTS

DAEMONS = ("slurmctld", "relay", "bank", "slurmd", "slurmdbd", "mariadb")
BANK_FAULTS = tuple(fault for fault in FAULTS if fault != "pass")

#: What the kinds are of; the short form takes one schedule of each.
CLASSES: Mapping[str, tuple[str, ...]] = {
    "kill": tuple(f"kill9:{what}" for what in DAEMONS),
    "freeze": tuple(f"freeze:{what}" for what in DAEMONS),
    "restart": ("reconfigure", "restart_slurmctld"),
    "disaster": (
        "wipe_state_dir",
        "takeover",
        "wipe_state_save",
        "break_ledger",
    ),
    "ledger": (
        "fill_disk",
        "ledger_read_only",
        "lock_ledger",
        "step_clock:relay",
        "step_clock:slurmctld",
    ),
    "bank": tuple(f"bank:{fault}" for fault in BANK_FAULTS),
}
KINDS: tuple[str, ...] = tuple(kind for kinds in CLASSES.values() for kind in kinds)

#: Of these at most one in a schedule: each takes away one of the places that another is rebuilt from.
DISASTERS = frozenset(CLASSES["disaster"])
#: What slurmctld and slurmdbd may lose of their own.
LOSING = frozenset(
    ["kill9:slurmctld", "kill9:slurmdbd", "kill9:mariadb", "kill9:slurmd", "wipe_state_save"]
)

#: With slurmctld's whole state goes what it had not told slurmdbd yet: of the last five seconds, no start and no end. Every such
#: run is one that only a second witness knows, and of these there may be few.
SELDOM = frozenset(["wipe_state_save"])

FEWEST, MOST = 2, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    at_s: float  #: after the load began, or when the one before has been done, if that is later
    kind: str
    seconds: float  #: how long it lasts; of a killed daemon, until it is started again
    share: float = 1.0  #: of the requests that a fault of the bank hits
    step_s: int = 0  #: of a clock

    def text(self) -> str:
        more = f" for {self.seconds:.1f} s"
        if self.kind.startswith("bank:") and self.share < 1:
            more += f", {self.share:.0%} of requests"
        if self.step_s:
            more += f", by {self.step_s:+d} s"
        return f"{self.at_s:4.1f} s {self.kind}{more}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    seed: int
    number: int
    faults: Sequence[Fault]
    seconds: float  #: of load

    def text(self) -> str:
        return "; ".join(fault.text() for fault in self.faults)


def _deck(seed: int, kinds: Sequence[str]) -> Iterator[str]:
    """For ever; each kind once in every round, those of SELDOM in every other."""
    number = 0
    while True:
        cards = [kind for kind in kinds if number % 2 == 0 or kind not in SELDOM]
        if not cards:
            cards = list(kinds)
        random.Random(f"deck/{seed}/{number}").shuffle(cards)
        yield from cards
        number += 1


def schedules(
    seed: int, *, seconds: float = 30, kinds: Sequence[str] = KINDS
) -> Iterator[Schedule]:
    """For ever: the first ones are the same, however many are taken."""
    deck, kept = _deck(seed, kinds), list[str]()
    number = 0
    while True:
        number += 1
        rng = random.Random(f"schedule/{seed}/{number}")
        drawn: list[str] = []
        wanted = min(rng.randint(FEWEST, MOST), len(kinds))
        waiting, kept = kept, []
        for _ in range(len(kinds) * 2):
            if len(drawn) == wanted:
                break
            kind = waiting.pop(0) if waiting else next(deck)
            if kind in drawn or (kind in DISASTERS and DISASTERS & set(drawn)):
                kept.append(kind)
            else:
                drawn.append(kind)
        kept += waiting
        yield Schedule(
            seed=seed,
            number=number,
            faults=tuple(_faults(rng, drawn, seconds)),
            seconds=seconds,
        )


def one_of_each_class(seed: int, *, seconds: float = 22) -> Iterator[Schedule]:
    """A schedule for each class, of two or three of its kinds."""
    for number, (name, kinds) in enumerate(CLASSES.items(), start=1):
        rng = random.Random(f"class/{seed}/{name}")
        drawn = rng.sample(kinds, min(len(kinds), 1 if name == "disaster" else 3))
        yield Schedule(
            seed=seed,
            number=number,
            faults=tuple(_faults(rng, drawn, seconds)),
            seconds=seconds,
        )


def _faults(rng: random.Random, kinds: Sequence[str], seconds: float) -> Iterator[Fault]:
    last = max(4.0, seconds - 5)
    times = sorted(rng.uniform(2, last) for _ in kinds)
    for at_s, kind in zip(times, kinds, strict=True):
        name = kind.split(":")[0]
        lasts = {
            "kill9": (0.5, 5.0),
            "freeze": (2.0, 7.0),
            "bank": (4.0, 14.0),
            "lock_ledger": (1.0, 5.0),
            "fill_disk": (3.0, 7.0),
            "ledger_read_only": (2.0, 6.0),
            "step_clock": (4.0, 8.0),
        }.get(name, (0.0, 2.0))
        step_s = 0
        if name == "step_clock":
            # A node refuses what a slurmctld hours behind would have it start; of the relay's nobody depends.
            most = 90 if kind.endswith("slurmctld") else 3600
            step_s = rng.choice((-most, -7, 7, most))
        yield Fault(
            at_s=round(at_s, 1),
            kind=kind,
            seconds=round(rng.uniform(*lasts), 1),
            share=rng.choice((1.0, 1.0, 0.5, 0.3)) if name == "bank" else 1.0,
            step_s=step_s,
        )
