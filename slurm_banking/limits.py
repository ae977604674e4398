# SPDX-License-Identifier: BSD-3-Clause
"""Balances as Slurm's own limits: GrpTRESMins of billing, for each account. Pure; ``cli/limits.py`` asks and acts.

What slurmctld does with such a limit (22.05, ``_validate_tres_usage_limits`` in acct_policy.c), in billing-minutes::

    a job starts only if   used < limit   and   time limit x billing + running <= limit - used

``used`` is what ended and running jobs have used since usage was last reset, ``running`` what is left of the running jobs'
time limits; a job that does not fit stays pending. So a limit that lets through what the bank would is

    limit = used + running + what the account has left and has set aside for its queue, in billing-minutes

since what is set aside for running jobs is ``running``, part of it used already. One SU is worth more billing-minutes in a
cheap partition than in a dear one. The limit is for the cheapest, so that it never stops what the bank would accept; in the
dearest it lets through more than the balance, by a factor that the plan names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Collection, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from slurm_banking.prices import Rates
from slurm_banking.records import FundsKind
from slurm_banking.tres import UNTYPED

_GPU = "gres/gpu"
#: Used and running are shown in whole minutes, each cut down: together they may be one short of what they are later.
_CUT_MIN = 1
#: A limit that is at most this much wider than the wanted one is left as it is.
_NEAR_MIN = 3


@dataclass(frozen=True)
class Span:
    """What an hour of one unit of Slurm's billing costs at the bank, over all that a job can ask for.

    ``least`` None: nothing is counted there, so that a limit stops nothing. 0: something is counted that costs nothing,
    and no limit can follow the balance. ``most`` None: something costs and is not counted.
    """

    least: Optional[Fraction]
    most: Optional[Fraction]

    def times(self, factor: Fraction) -> Span:
        return Span(
            least=None if self.least is None else self.least * factor,
            most=None if self.most is None else self.most * factor,
        )


def span(
    rates: Rates,
    weights: Optional[Mapping[str, Decimal]],
    *,
    max_tres: bool = False,
    gpu_kinds: Optional[Collection[str]] = None,
) -> Span:
    """Of one partition, before QOS. ``weights``: as :func:`~slurm_banking.boundary.convert.billing_weights` reads them.

    ``gpu_kinds``: the types of GPU that the partition's nodes have; None: those that prices and weights name. Bounds, not
    always the closest: where one side adds resources and the other takes the dearest, they are as far apart as there are
    resources.
    """
    if weights is None:  # _with_billing in allocation.py: billing is the CPUs
        weights = {"cpu": Decimal(1)}
    if any(number < 0 for number in weights.values()):
        return Span(least=Fraction(0), most=None)
    kinds = _kinds(rates, weights) if gpu_kinds is None else set(gpu_kinds)
    price, weight, one_to_one = _by_unit(rates, weights, kinds)
    counted = [unit for unit in weight if weight[unit] > 0]
    costs = [unit for unit in price if price[unit] > 0]
    own = Fraction(rates.billing)  # of the billing itself, exactly
    if not counted:
        return Span(least=None, most=None if costs else Fraction(0))
    least = min(price.get(unit, Fraction(0)) / weight[unit] for unit in counted)
    most: Optional[Fraction] = Fraction(0)
    for unit in costs:
        if most is None or weight.get(unit, Fraction(0)) <= 0:
            most = None
            break
        most = max(most, price[unit] / weight[unit])
    dearest = rates.combine == "max"
    if not (dearest and max_tres and one_to_one):
        if dearest:
            least /= max(1, len(costs))
        if max_tres and most is not None:
            most *= len([number for number in weights.values() if number > 0])
    if most is not None:
        cut = _cut(weights)
        most = None if cut is None else most * cut
    if dearest:
        return Span(least=max(least, own), most=None if most is None else max(most, own))
    return Span(least=least + own, most=None if most is None else most + own)


def _kinds(rates: Rates, weights: Mapping[str, Decimal]) -> Set[str]:
    kinds = set(rates.gpu)
    kinds |= {name[len(_GPU) + 1 :] for name in weights if name.startswith(f"{_GPU}:")}
    return kinds | ({UNTYPED} if _GPU in weights and not kinds else set())


def _by_unit(
    rates: Rates, weights: Mapping[str, Decimal], kinds: Collection[str]
) -> Tuple[Dict[str, Fraction], Dict[str, Fraction], bool]:
    """SU per hour, and billing, of one of each thing that a job can have; and whether each has one weight of its own."""
    price = {
        "cpu": Fraction(rates.cpu),
        "mem": Fraction(rates.mem_gb),
        "node": Fraction(rates.node),
        **{f"{_GPU}:{kind}": Fraction(rates.of_gpu(kind)) for kind in kinds},
    }
    weight: Dict[str, Fraction] = {}
    one_to_one = True
    for name, number in weights.items():
        names = [name]
        if name == _GPU:  # counts every GPU, beside the weight of its own type
            names = [f"{_GPU}:{kind}" for kind in kinds]
            one_to_one = one_to_one and len(names) <= 1
        elif name.startswith(f"{_GPU}:") and name[len(_GPU) + 1 :] not in kinds:
            continue
        for unit in names:
            one_to_one = one_to_one and unit not in weight
            weight[unit] = weight.get(unit, Fraction(0)) + Fraction(number)
    return price, weight, one_to_one


def _cut(weights: Mapping[str, Decimal]) -> Optional[Fraction]:
    """By how much more a job can have than is counted, since a job's billing is cut to a whole number.

    Each job has a CPU and a node. None: a small one counts as nothing.
    """
    whole = all(number == number.to_integral_value() for number in weights.values())
    if whole and weights.get("mem", Decimal(0)) % 1024 == 0:
        return Fraction(1)
    floor = max(weights.get("cpu", Decimal(0)), weights.get("node", Decimal(0)))
    least = int(floor)
    return Fraction(least + 1, least) if least >= 1 else None


# -- what is counted where ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A partition as Slurm has it, and what the bank asks there."""

    partition: str
    rates: Optional[Rates]  #: None: not listed, and the bank refuses jobs there
    weights: Optional[Mapping[str, Decimal]]  #: None: Slurm counts CPUs
    max_tres: bool = False  #: PriorityFlags=MAX_TRES
    gpu_kinds: Optional[Tuple[str, ...]] = None  #: of its nodes; None: not known

    def span(self) -> Span:
        """Only where there are prices."""
        assert self.rates is not None
        return span(self.rates, self.weights, max_tres=self.max_tres, gpu_kinds=self.gpu_kinds)


@dataclass(frozen=True)
class Qos:
    name: str
    multiplier: Decimal  #: at the bank; 0 where the QOS is exempt
    usage_factor: Fraction = Fraction(1)
    flags: Tuple[str, ...] = ()
    grp_tres_mins: str = ""  #: as sacctmgr prints it


@dataclass(frozen=True)
class Rate:
    """The exchange: billing-minutes for an SU, and how far the dearest place is from the cheapest."""

    min_per_su: Fraction
    loose: Optional[Fraction]  #: how many times a balance the limit can let through; None: no bound

    def minutes(self, csu: int) -> int:
        """Of hundredths of an SU, rounded up."""
        return math.ceil(Fraction(csu, 100) * self.min_per_su)


def exchange(places: Sequence[Place], qos: Sequence[Qos]) -> Optional[Rate]:
    """None: nothing counts, or something counts that costs nothing, which :func:`check` names."""
    spans = [found for found, _, _ in spans_of(places, qos)]
    least = [found.least for found in spans if found.least is not None]
    if not least or min(least) <= 0:
        return None
    cheapest = min(least)
    most = [found.most for found in spans]
    loose = None
    if all(one is not None for one in most):
        loose = max((one for one in most if one is not None), default=cheapest) / cheapest
    return Rate(min_per_su=60 / cheapest, loose=None if loose is None else max(loose, Fraction(1)))


def spans_of(places: Sequence[Place], qos: Sequence[Qos]) -> List[Tuple[Span, Place, Qos]]:
    found = []
    for place in places:
        if place.rates is None:
            continue
        base = place.span()
        for one in qos or (Qos(name="", multiplier=Decimal(1)),):
            if one.usage_factor == 0:
                free = one.multiplier == 0 or place.rates.free
                found.append((Span(least=None, most=Fraction(0) if free else None), place, one))
            else:
                found.append((base.times(Fraction(one.multiplier) / one.usage_factor), place, one))
    return found


# -- is it safe? --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    refuse: bool  #: the limits would not hold; False: they hold, with this to know
    what: str
    why: str
    line: str = ""  #: what to change; "": nothing that one line could


def check(
    settings: Mapping[str, str],
    places: Sequence[Place],
    qos: Sequence[Qos],
    *,
    mode_checks: bool = True,
    bank_config: str = "bank-config.toml",
) -> List[Problem]:
    """``settings``: as ``scontrol show config`` prints them. ``mode_checks``: the bank refuses what does not fit."""
    found = [*_settings(settings)]
    if not mode_checks:
        found.append(
            Problem(
                True,
                "[Policy] mode, enforce",
                "the bank refuses nothing in this mode, and limits in Slurm would stop jobs that it accepts",
                f'{bank_config}: [Policy] mode = "strict-allocation", enforce = "on"',
            )
        )
    found += _qos(qos)
    found += _places(places, qos)
    return found


def _settings(settings: Mapping[str, str]) -> List[Problem]:
    found = []

    def refuse(key: str, why: str, line: str) -> None:
        have = settings.get(key)
        found.append(Problem(True, f"{key} = {have}" if have else f"{key} is not set", why, line))

    enforce = _words(settings.get("AccountingStorageEnforce", ""))
    if not {"limits", "safe"} <= enforce:
        wanted = [word for word in enforce if word not in ("none", "")]
        every = sorted({*wanted, "associations", "limits", "safe"})
        why = (
            "limits are not enforced, and usage is not counted against them"
            if "limits" not in enforce
            else "a job starts with one minute left, and is killed when the limit is reached"
        )
        refuse(
            "AccountingStorageEnforce",
            why,
            f"slurm.conf: AccountingStorageEnforce={','.join(every)}",
        )
    kind = settings.get("PriorityType", "")
    if kind != "priority/multifactor":
        refuse(
            "PriorityType",
            "only priority/multifactor counts usage",
            "slurm.conf: PriorityType=priority/multifactor",
        )
    else:
        half_life = settings.get("PriorityDecayHalfLife", "7-00:00:00")
        if half_life.strip("0:-"):
            refuse(
                "PriorityDecayHalfLife",
                "usage fades, and what it fades by can be spent again",
                "slurm.conf: PriorityDecayHalfLife=0 (with PriorityUsageResetPeriod=NONE written out: "
                "without that line slurmctld does not start)",
            )
        if settings.get("PriorityUsageResetPeriod", "NONE").upper() != "NONE":
            refuse(
                "PriorityUsageResetPeriod",
                "usage starts from nothing again, and all of it can be spent again",
                "slurm.conf: PriorityUsageResetPeriod=NONE",
            )
    tracked = _words(settings.get("AccountingStorageTRES", "billing"))
    if "billing" not in tracked:
        refuse(
            "AccountingStorageTRES",
            "billing is not tracked",
            f"slurm.conf: AccountingStorageTRES={settings.get('AccountingStorageTRES', '')},billing",
        )
    return found


def _words(text: str) -> Set[str]:
    return {word.strip().lower() for word in text.split(",") if word.strip()}


def _qos(qos: Sequence[Qos]) -> List[Problem]:
    found = []
    for one in qos:
        flags = {flag.lower() for flag in one.flags}
        if one.usage_factor != 1 and "usagefactorsafe" not in flags:
            found.append(
                Problem(
                    True,
                    f"QOS {one.name}: UsageFactor = {_plain(one.usage_factor)} without the flag UsageFactorSafe",
                    "what a job is let in with is not what it is counted with",
                    f"sacctmgr -i modify qos where name={one.name} set Flags+=UsageFactorSafe",
                )
            )
        if "billing=" in one.grp_tres_mins.lower():
            found.append(
                Problem(
                    True,
                    f"QOS {one.name}: GrpTRESMins = {one.grp_tres_mins}",
                    "a QOS's limit replaces the account's: jobs of this QOS pass it by",
                    f"sacctmgr -i modify qos where name={one.name} set GrpTRESMins=billing=-1",
                )
            )
    return found


def _places(places: Sequence[Place], qos: Sequence[Qos]) -> List[Problem]:
    found: List[Problem] = []
    priced = [place for place in places if place.rates is not None]
    paid = {
        place.partition: place.rates for place in priced if place.rates and not place.rates.free
    }
    if not paid:
        return [
            Problem(True, "the price list", "nothing costs anything: there is nothing to limit")
        ]
    for place in priced:
        assert place.rates is not None
        base = place.span()
        line = f'slurm.conf: PartitionName={place.partition} ... TRESBillingWeights="{weights_for(place.rates, paid.values())}"'
        where = f"partition {place.partition}: " + (
            "no TRESBillingWeights" if place.weights is None else "TRESBillingWeights"
        )
        if base.least == 0:
            why = (
                "it is free at the bank, and counts in Slurm"
                if place.rates.free
                else "what costs nothing at the bank counts in Slurm: no limit can follow the balance"
            )
            found.append(Problem(True, where, why, line))
        elif base.most is None:
            found.append(
                Problem(True, where, "what costs at the bank does not count in Slurm", line)
            )
    for one in qos:
        if one.multiplier == 0 and one.usage_factor != 0:
            found.append(
                Problem(
                    True,
                    f"QOS {one.name}: UsageFactor = {_plain(one.usage_factor)}",
                    "it is free at the bank, and counts in Slurm",
                    f"sacctmgr -i modify qos where name={one.name} set UsageFactor=0 Flags+=UsageFactorSafe",
                )
            )
        elif one.multiplier > 0 and one.usage_factor == 0:
            found.append(
                Problem(
                    True,
                    f"QOS {one.name}: UsageFactor = 0",
                    f"it costs at the bank (multiplier {one.multiplier}), and does not count in Slurm",
                    f"sacctmgr -i modify qos where name={one.name} set UsageFactor={one.multiplier}",
                )
            )
    rate = exchange(places, qos)
    if rate is not None and rate.loose is not None and rate.loose > 1:
        weights = {
            place.partition: weights_for(place.rates, paid.values())
            for place in priced
            if place.rates is not None and not place.rates.billing
        }
        lines = ", ".join(f'{name} "{text}"' for name, text in weights.items())
        found.append(
            Problem(
                False,
                f"the limits are loose: up to {_plain(rate.loose)} times a balance can be used",
                "prices and TRESBillingWeights do not agree in every partition and QOS",
                f"weights that agree with the prices: {lines}; and for a QOS, UsageFactor = its multiplier",
            )
        )
    return found


def weights_for(rates: Rates, among: Collection[Rates]) -> str:
    """TRESBillingWeights in proportion to prices, the same for all partitions, and in whole numbers where that goes.

    One unit of billing costs the least price of ``among``, or a decimal part of it.
    """
    every = [
        price
        for one in among
        for price in (one.cpu, one.mem_gb, one.node, one.billing, *one.gpu.values())
        if price > 0
    ]
    unit = Fraction(min(every, default=Decimal(1)))
    for divisor in (1, 2, 4, 5, 10, 20, 25, 50, 100):
        if all((Fraction(price) / (unit / divisor)).denominator == 1 for price in every):
            unit /= divisor
            break
    parts = [f"CPU={_weight(Fraction(rates.cpu) / unit)}"]
    if rates.mem_gb:
        parts.append(f"Mem={_weight(Fraction(rates.mem_gb) / unit)}G")
    if rates.node:
        parts.append(f"Node={_weight(Fraction(rates.node) / unit)}")
    for kind, price in sorted(rates.gpu.items()):
        name = "GRES/gpu" if kind == UNTYPED else f"GRES/gpu:{kind}"
        number = Fraction(price) - (
            Fraction(rates.gpu.get(UNTYPED, 0)) if kind != UNTYPED else Fraction(0)
        )
        parts.append(f"{name}={_weight(number / unit)}")
    return ",".join(parts)


def _weight(number: Fraction) -> str:
    if number.denominator == 1:
        return f"{number.numerator}.0"
    return f"{float(number):.6g}"


def _plain(number: Fraction) -> str:
    return str(number.numerator) if number.denominator == 1 else f"{float(number):.4g}"


# -- the plan -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    """One account's own association, as slurmctld has it; minutes of billing."""

    name: str
    parent: str  #: "": none
    limit_min: Optional[int]  #: None: there is none
    used_min: int
    running_min: int


@dataclass(frozen=True)
class Balance:
    """What the ledger knows of an account's funds."""

    kind: Optional[FundsKind]  #: None: nobody asked the bank yet
    left_csu: int = 0  #: available, and set aside for queued jobs
    refused: bool = False  #: the bank has no allocation for it
    exempt: bool = False
    read_at: int = 0


#: What is done with an account.
SET, LIFT, KEEP, LEAVE = "set", "lift", "keep", "leave"


@dataclass(frozen=True)
class Step:
    account: str
    action: str
    limit_min: Optional[int]  #: afterwards; None: there is none
    before_min: Optional[int]
    used_min: int
    running_min: int
    left_csu: Optional[int]  #: None: not limited, or not known
    why: str

    def command(self, cluster: str) -> Optional[Tuple[str, ...]]:
        """The sacctmgr command; None: there is nothing to do."""
        if self.action not in (SET, LIFT):
            return None
        number = -1 if self.limit_min is None else self.limit_min
        return (
            *("sacctmgr", "-i", "modify", "account", "where"),
            *(f"name={self.account}", f"cluster={cluster}"),
            *("set", f"GrpTRESMins=billing={number}"),
        )


def plan(
    accounts: Sequence[Account],
    balances: Mapping[str, Balance],
    rate: Rate,
    ours: Mapping[str, Collection[int]],
    *,
    take_over: Collection[str] = (),
    overdraft_csu: int = 0,
    lien_share: Decimal = Decimal(1),
) -> List[Step]:
    """One step for each account but root.

    ``ours``: by account the limits that were set from here; another limit is somebody else's, and left alone unless the
    account is in ``take_over``. ``lien_share``: the bank accepts a job when this share of its estimate is there.
    """
    children: Dict[str, List[str]] = {}
    for account in accounts:
        children.setdefault(account.parent, []).append(account.name)
    steps = []
    for account in accounts:
        if account.name == "root":
            continue
        left_csu, why = _left(account.name, balances, children, overdraft_csu, lien_share)
        unknown = why == _UNKNOWN
        before = account.limit_min
        mine = before is not None and before in ours.get(account.name, ())
        limit: Optional[int] = None
        if left_csu is not None:
            base = account.used_min + account.running_min
            limit = base + (rate.minutes(left_csu) + _CUT_MIN if left_csu > 0 else 0)
        if before is not None and not mine and account.name not in take_over:
            action, limit = LEAVE, before
            why = "a limit that was not set from here (--take-over replaces it)"
        elif unknown:
            action, limit = KEEP, before
        elif limit == before or _near(limit, before):
            action, limit = KEEP, before
        else:
            action = LIFT if limit is None else SET
        steps.append(
            Step(
                account=account.name,
                action=action,
                limit_min=limit,
                before_min=before,
                used_min=account.used_min,
                running_min=account.running_min,
                left_csu=left_csu,
                why=why,
            )
        )
    return steps


def _near(limit: Optional[int], before: Optional[int]) -> bool:
    """The rounding of minutes alone is no reason to write a limit again."""
    return limit is not None and before is not None and 0 <= before - limit <= _NEAR_MIN


_UNKNOWN = "the bank has not said what it has"


def _left(
    name: str,
    balances: Mapping[str, Balance],
    children: Mapping[str, Sequence[str]],
    overdraft_csu: int,
    lien_share: Decimal,
) -> Tuple[Optional[int], str]:
    """What may still be used under this account, its sub-accounts with it: their usage counts in its own."""
    total = 0
    todo, seen = [name], set()
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        todo += children.get(one, ())
        balance = balances.get(one, Balance(kind=None))
        inside = "" if one == name else f"its sub-account {one}: "
        if balance.exempt:
            return None, f"{inside}exempt"
        if balance.refused:
            continue
        if balance.kind is None or balance.kind is FundsKind.UNKNOWN:
            return None, _UNKNOWN
        if balance.kind is not FundsKind.LIMITED:
            return None, inside + balance.kind.value.replace("_", " ")
        whole = Fraction(max(0, balance.left_csu + overdraft_csu)) / Fraction(lien_share)
        total += math.ceil(whole)
    return total, "" if len(seen) == 1 else f"with {len(seen) - 1} sub-accounts"
