# SPDX-License-Identifier: BSD-3-Clause
"""The sums behind amounts, from the inputs that the ledger stored with them and nothing else.

For quotes, and for ``slurm-banking explain`` years later. Numbers are text here, exact where a decimal can be.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from slurm_banking import settle
from slurm_banking.amounts import EXACT, SECONDS_PER_HOUR, lien_csu, share_csu
from slurm_banking.prices import Rates, plain
from slurm_banking.tres import Tres, parse_tres

#: Of a division that does not come out even, this many decimal places are shown.
_SHOWN = Decimal("1e-10")
_ROUNDED = Context(prec=120, rounding=ROUND_HALF_EVEN)


def tidy(number: Decimal) -> str:
    """Without zeros that say nothing."""
    return plain(EXACT.normalize(number)) if number else "0"


def hourly(inputs: Mapping[str, Any], tres: Tres) -> Dict[str, Any]:
    """What an hour of ``tres`` costs at an entry's price: its priced parts, how they are combined, and the result."""
    rates = Rates.from_table(inputs["rates"])
    return {
        "parts": [
            {
                "resource": name,
                "units": tidy(units),
                "su": plain(su),
                "su_per_hour": tidy(su_per_hour),
            }
            for name, units, su, su_per_hour in rates.parts(tres)
        ],
        "combine": rates.combine,
        "qos_multiplier": str(inputs["qos_multiplier"]),
        "su_per_hour": tidy(_su_per_hour(inputs, tres)),
    }


def of_charge(inputs: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    """The sum of a charge; None: these are not the inputs of one."""
    try:
        written: Sequence[Sequence[Any]] = inputs.get("segments") or [
            [inputs["tres"], inputs["elapsed_s"]]
        ]
        parts = [(parse_tres(str(tres)), int(seconds)) for tres, seconds in written]
        factor = Decimal(str(inputs.get("state_factor", "1")))
        return {
            **_price(inputs),
            "segments": [
                {"tres": str(tres), "seconds": seconds, "hour": hourly(inputs, tres)}
                for tres, seconds in parts
            ],
            "state": inputs.get("state"),
            "state_factor": plain(factor),
            "start_time": inputs.get("start_time"),
            "end_time": inputs.get("end_time"),
            "exact_su": _shown(_su(inputs, parts), factor),
            "recomputed_csu": settle.recomputed_csu(inputs),
        }
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None


def of_estimate(inputs: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    """The sum of what was set aside for one run; None: these are not the inputs of an estimate."""
    try:
        tres = parse_tres(str(inputs["tres"]))
        seconds = int(inputs["time_limit_min"]) * 60
        share = Decimal(str(inputs.get("lien_share", "1")))
        cost_csu = lien_csu(_su_per_hour(inputs, tres), 1, seconds)
        return {
            **_price(inputs),
            "tres": str(tres),
            "time_limit_min": int(inputs["time_limit_min"]),
            "hour": hourly(inputs, tres),
            "exact_su": _shown(_su(inputs, [(tres, seconds)]), Decimal(1)),
            "per_task_csu": cost_csu,
            "lien_share": plain(share),
            "per_task_lien_csu": share_csu(cost_csu, share),
        }
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None


def _price(inputs: Mapping[str, Any]) -> Dict[str, Any]:
    keys = ("partition", "qos", "rates", "price_version")
    return {key: inputs.get(key) for key in keys}


def _su_per_hour(inputs: Mapping[str, Any], tres: Tres) -> Decimal:
    rates = Rates.from_table(inputs["rates"])
    return EXACT.multiply(rates.su_per_hour(tres), Decimal(str(inputs["qos_multiplier"])))


def _su(inputs: Mapping[str, Any], parts: Sequence[Tuple[Tres, int]]) -> Decimal:
    """SU-seconds, exact."""
    total = Decimal(0)
    for tres, seconds in parts:
        total = EXACT.add(total, EXACT.multiply(_su_per_hour(inputs, tres), Decimal(seconds)))
    return total


def _shown(su_s: Decimal, factor: Decimal) -> str:
    su = _ROUNDED.divide(EXACT.multiply(su_s, factor), Decimal(SECONDS_PER_HOUR))
    return tidy(_ROUNDED.quantize(su, _SHOWN))
