# SPDX-License-Identifier: BSD-3-Clause
"""Exact money: the one place where service units are multiplied, divided and rounded.

A price is SU per hour (``Decimal``). A cost is integer hundredths of an SU (``_csu``). Multiply first, divide once,
round once: an estimate (and so a lien) rounds up, a charge rounds half up. No floats anywhere.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_HALF_UP, Context, Decimal, Inexact

SECONDS_PER_HOUR = 3600
CSU_PER_SU = 100

#: Wide enough for any product of prices, counts, factors and seconds that Slurm's integers allow; never rounds on its own.
EXACT = Context(prec=120)

#: The bank's field is at most 100,000,000.00 (reference: MyBRC jobs API).
MAX_WIRE_CSU = 100_000_000 * CSU_PER_SU


def _round_csu(numerator_su_s: Decimal, rounding: str) -> int:
    csu = EXACT.divide(EXACT.multiply(numerator_su_s, Decimal(CSU_PER_SU)), SECONDS_PER_HOUR)
    return int(csu.to_integral_value(rounding=rounding))


def lien_csu(price_su: Decimal, units: int, seconds: int, count: int = 1) -> int:
    """The cost, rounded up, of ``units`` for ``seconds``, ``count`` times over; each of the count is rounded by itself."""
    return _round_csu(EXACT.multiply(price_su, Decimal(units * seconds)), ROUND_CEILING) * count


def charge_csu(price_su: Decimal, units: int, seconds: int) -> int:
    """The cost, rounded half up, of ``units`` (CPUs) for ``seconds`` at ``price_su`` SU per unit and hour."""
    return _round_csu(EXACT.multiply(price_su, Decimal(units * seconds)), ROUND_HALF_UP)


def share_csu(cost_csu: int, share: Decimal) -> int:
    """A share (0 to 1) of a cost, rounded up: what is set aside where not all of an estimate is."""
    return int(EXACT.multiply(Decimal(cost_csu), share).to_integral_value(rounding=ROUND_CEILING))


def to_su(csu: int) -> Decimal:
    """Hundredths as SU, with two places."""
    return Decimal(csu).scaleb(-2, EXACT)


def format_su(csu: int) -> str:
    """Plain notation with two places, no thousands separators: what the bank and a script read."""
    sign = "-" if csu < 0 else ""
    return f"{sign}{abs(csu) // 100}.{abs(csu) % 100:02d}"


def parse_su(text: str) -> int:
    """SU in plain or scientific decimal notation as hundredths.

    :raises ValueError: not a finite decimal number, or finer than a hundredth.
    """
    try:
        value = Decimal(text.strip())
    except ArithmeticError:
        raise ValueError(f"{text!r} is not a decimal number") from None
    if not value.is_finite():
        raise ValueError(f"{text!r} is not a finite number")
    context = EXACT.copy()
    context.prec = 18  # what the ledger can store: 64 bits
    context.traps[Inexact] = True
    try:
        return int(context.quantize(value, Decimal("0.01")).scaleb(2, context))
    except ArithmeticError:
        raise ValueError(f"{text!r} has more than two decimal places or too many digits") from None
