# SPDX-License-Identifier: BSD-3-Clause
"""Resources and prices in words, from the inputs that an entry stored."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, List, Mapping, Sequence

from slurm_banking.amounts import EXACT
from slurm_banking.cli.text import cpus, duration
from slurm_banking.prices import Rates, plain
from slurm_banking.tres import Tres, parse_tres

Inputs = Mapping[str, Any]


def tres_of(inputs: Inputs) -> Tres:
    text = inputs.get("tres")
    if text:
        return parse_tres(str(text))
    return Tres(cpus=int(inputs.get("cpus") or 0), nodes=int(inputs.get("nodes") or 0))


def resource(name: str, units: str) -> str:
    """``4 CPUs``, ``2 a100 GPUs``, ``31.25 GB``, ``1 node``, ``5 units of billing``."""
    one = units == "1"
    if name == "cpu":
        return f"{units} CPU" if one else f"{units} CPUs"
    if name == "mem_gb":
        return f"{units} GB"
    if name == "node":
        return f"{units} node" if one else f"{units} nodes"
    if name == "billing":
        return f"{units} unit of billing" if one else f"{units} units of billing"
    kind = name.partition(":")[2]
    noun = f"{kind} GPU" if kind else "GPU"
    return f"{units} {noun}" if one else f"{units} {noun}s"


def computing(inputs: Inputs) -> str:
    """What computes: CPUs, and GPUs where there are any."""
    tres = tres_of(inputs)
    words = [cpus(tres.cpus)]
    words += [resource(f"gpu:{kind}" if kind else "gpu", str(count)) for kind, count in tres.gpus]
    return ", ".join(words)


def is_of_cpus(inputs: Inputs) -> bool:
    """Whether CPUs alone are priced there."""
    return isinstance(inputs.get("rates"), str)


def _tidy(number: Decimal) -> str:
    return plain(EXACT.normalize(number)) if number else "0"


def _priced(inputs: Inputs, tres: Tres) -> str:
    rates = Rates.from_table(inputs["rates"])
    words = [resource(name, _tidy(units)) for name, units, _, _ in rates.parts(tres)]
    return ", ".join(words) or cpus(tres.cpus)


def _price(inputs: Inputs, tres: Tres, *, brief: bool) -> str:
    """SU per CPU-hour where CPUs alone are priced, else per hour of ``tres``; the QOS multiplier in it."""
    multiplier = Decimal(str(inputs.get("qos_multiplier", "1")))
    if is_of_cpus(inputs):
        number, unit = str(inputs["rates"]), "CPU-hour"
        if multiplier != 1:
            number = _tidy(EXACT.multiply(Decimal(number), multiplier))
    else:
        rates = Rates.from_table(inputs["rates"])
        number, unit = _tidy(EXACT.multiply(rates.su_per_hour(tres), multiplier)), "hour"
    return number if brief else f"{number} SU per {unit}"


def product(inputs: Inputs, how_long: str, *, brief: bool = False) -> str:
    """The multiplication of one piece: ``4 CPUs x 01:30:00 x 1.0 SU per CPU-hour``; ``brief``: without the unit."""
    tres = tres_of(inputs)
    if inputs.get("rates") is None:
        return f"{cpus(tres.cpus)} x {how_long}"
    what = cpus(tres.cpus) if is_of_cpus(inputs) else _priced(inputs, tres)
    return f"{what} x {how_long} x {_price(inputs, tres, brief=brief)}"


def charge(inputs: Inputs, *, brief: bool = False) -> str:
    """The same of a charge: its segments, and the share that its final state is charged."""
    segments: Sequence[Sequence[Any]] = inputs.get("segments") or ()
    several = False
    if not segments or inputs.get("rates") is None:
        how_long = duration(int(inputs.get("elapsed_s") or 0))
        text = product(inputs, how_long, brief=brief)
    elif is_of_cpus(inputs):
        parts = [f"{cpus(parse_tres(tres).cpus)} x {duration(int(s))}" for tres, s in segments]
        text = f"({' + '.join(parts)}) x {_price(inputs, Tres(), brief=brief)}"
    elif brief:
        text = f"{len(segments)} segments"
    else:
        pieces = [product({**inputs, "tres": tres}, duration(int(s))) for tres, s in segments]
        text, several = " + ".join(pieces), len(pieces) > 1
    factor = str(inputs.get("state_factor") or "1")
    if Decimal(factor) == 1:
        return text
    return f"{f'({text})' if several else text} x {factor}{_state(inputs)}"


def _state(inputs: Inputs) -> str:
    state = inputs.get("state")
    return f" ({str(state).lower()})" if state else ""


def hour(told: Mapping[str, Any]) -> str:
    """An hour in full: ``8 CPUs x 1 + 2 a100 GPUs x 40 = 88 SU``."""
    parts: List[str] = []
    for part in told["parts"]:
        words = f"{resource(part['resource'], part['units'])} x {part['su']}"
        if told["combine"] == "max" and len(told["parts"]) > 1:
            words += f" = {part['su_per_hour']}"
        parts.append(words)
    if not parts:
        return "nothing of it has a price: 0 SU"
    if told["combine"] == "max" and len(parts) > 1:
        text = f"the most of {', '.join(parts)}"
    else:
        text = " + ".join(parts)
    multiplier = told["qos_multiplier"]
    if Decimal(multiplier) != 1:
        text = (
            f"({text}) x {multiplier} for the QOS"
            if len(parts) > 1
            else f"{text} x {multiplier} for the QOS"
        )
    return f"{text} = {told['su_per_hour']} SU"
