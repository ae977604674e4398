# SPDX-License-Identifier: BSD-3-Clause
"""The price tables of bank-config.toml, and what check-config says about them."""

from __future__ import annotations

import io
import json
import os
import time
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from slurm_banking import check_config
from slurm_banking.config import FINAL_STATES, RATES, TABLES, Config, load
from slurm_banking.errors import ConfigError, SlurmUnavailable
from slurm_banking.prices import DEFAULT_STATE_FACTOR, PriceList, Rates
from slurm_banking.tres import parse_tres
from tests.unit.test_config import Site, me, whole

BEFORE = '[API]\nurl = "https://bank.example.org/api"\n[Policy]\n'

in_scratch = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host five hours behind UTC in winter, four in summer."""
    monkeypatch.setenv("TZ", "EST5EDT,M3.2.0,M11.1.0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp())


# A partition's price.


def rates(site: Site, value: str) -> Rates:
    return site.load(f"{BEFORE}[PartitionPrice]\ngpu = {value}\n").prices.partitions["gpu"]


def test_a_price_is_a_number_or_a_table_inline_or_as_a_section(site: Site) -> None:
    inline = rates(
        site,
        '{ cpu = 1, "gpu" = 20, "gpu:a100" = 60, mem_gb = 0.1, node = 0, billing = "3", combine = "max" }',
    )
    assert inline == Rates(
        cpu=Decimal(1),
        gpu={"": Decimal(20), "a100": Decimal(60)},
        mem_gb=Decimal("0.1"),
        billing=Decimal(3),
        combine="max",
    )
    section = site.load(f'{BEFORE}[PartitionPrice]\nnormal = 2\n[PartitionPrice."a.b"]\ngpu = 20\n')
    assert section.prices.partitions == {
        "normal": Rates(cpu=Decimal(2)),
        "a.b": Rates(gpu={"": Decimal(20)}),
    }


@pytest.mark.parametrize("value", ["{}", "{ cpu = 0 }", '{ "gpu:a100" = 0, mem_gb = 0.0 }', "0"])
def test_a_table_in_which_nothing_costs_anything_is_free(site: Site, value: str) -> None:
    assert rates(site, value).free


def test_types_of_gpus_are_in_lower_case_as_slurms_tres_are_read(site: Site) -> None:
    found = rates(site, '{ "gpu:A100_3g.20gb" = 7, "GPU:T4" = 2 }')
    assert found.su_per_hour(parse_tres("gres/gpu=2,gres/gpu:A100_3g.20gb=1,gres/gpu:t4=1")) == 9


NUMBERS = st.one_of(
    st.sampled_from(
        [Decimal(0), Decimal(1), Decimal("1.20"), Decimal("1e-10"), Decimal(1_000_000)]
    ),
    st.decimals(min_value=0, max_value=1_000_000, places=10),
    st.decimals(min_value=0, max_value=10, places=2),
)
GPU_KEYS = st.from_regex(r"gpu:[a-z0-9][a-z0-9_.+-]{0,20}", fullmatch=True)
NAMES = st.from_regex(r"[^\s,\x00-\x1f\x7f\ud800-\udfff]{1,20}", fullmatch=True)


@st.composite
def price_tables(draw: st.DrawFn) -> Dict[str, Any]:
    keys = st.one_of(st.sampled_from(sorted(set(RATES) - {"combine"})), GPU_KEYS)
    table: Dict[str, Any] = draw(st.dictionaries(keys, NUMBERS, max_size=8))
    combine = draw(st.sampled_from(["sum", "max", None]))
    return {**table, **({"combine": combine} if combine else {})}


def toml(table: Mapping[str, Any], *, quoted: bool = False) -> str:
    def value(of: Any) -> str:
        if isinstance(of, str) or quoted:
            return json.dumps(of if isinstance(of, str) else format(of, "f"))
        # In TOML a number with a point has digits on both sides of it, and one without is 64 bits.
        return format(of, "f")

    return (
        "{ "
        + ", ".join(
            f"{json.dumps(key, ensure_ascii=False)} = {value(of)}" for key, of in table.items()
        )
        + " }"
    )


@given(table=price_tables(), quoted=st.booleans())
@in_scratch
def test_any_valid_table_is_read_as_it_was_written(
    site: Site, table: Dict[str, Any], quoted: bool
) -> None:
    found = rates(site, toml(table, quoted=quoted))
    gpu = {key.partition(":")[2]: number for key, number in table.items() if key.startswith("gpu")}
    plain = {key: number for key, number in table.items() if not key.startswith("gpu")}
    assert found == Rates(gpu=gpu, **plain)


@given(table=price_tables())
@in_scratch
def test_a_table_as_it_is_stored_is_a_table_that_can_be_configured(
    site: Site, table: Dict[str, Any]
) -> None:
    """What ``check-config`` shows and the ledger keeps, put into the file, costs the same."""
    found = rates(site, toml(table))
    stored = found.table()
    again = rates(site, stored if isinstance(stored, str) else toml(stored))
    everything = parse_tres("cpu=3,mem=5000M,node=2,billing=7,gres/gpu=5,gres/gpu:a100=2")
    assert again.su_per_hour(everything) == found.su_per_hour(everything)
    assert again.free == found.free


@given(
    partitions=st.dictionaries(NAMES, price_tables(), max_size=4),
    qos=st.dictionaries(NAMES.map(str.lower), st.decimals(0, 1000, places=3), max_size=3),
    factors=st.dictionaries(
        st.sampled_from(FINAL_STATES), st.decimals(0, 1, places=10), max_size=4
    ),
)
@in_scratch
def test_any_valid_price_list_is_the_same_at_the_top_and_dated(
    site: Site,
    partitions: Dict[str, Dict[str, Any]],
    qos: Dict[str, Decimal],
    factors: Dict[str, Decimal],
) -> None:
    assume(len({name.lower() for name in qos}) == len(qos))

    def sections(prefix: str) -> str:
        lines = [f"[{prefix}PartitionPrice]"]
        lines += [
            f"{json.dumps(name, ensure_ascii=False)} = {toml(table)}"
            for name, table in partitions.items()
        ]
        lines.append(f"[{prefix}QosMultiplier]")
        lines += [
            f"{json.dumps(name, ensure_ascii=False)} = {number:f}" for name, number in qos.items()
        ]
        lines.append(f"[{prefix}StateFactor]")
        lines += [f"{name.lower()} = {number:f}" for name, number in factors.items()]
        return "\n".join(lines) + "\n"

    config = site.load(
        f"{BEFORE}{sections('')}[[PriceList]]\nfrom = 2027-01-01\n{sections('PriceList.')}"
    )
    ((_, dated),) = config.dated_prices
    assert dated == config.prices
    assert dated.qos_multiplier == qos
    assert dated.state_factor == {**DEFAULT_STATE_FACTOR, **factors}
    told = ("is empty", "gpu costs less")
    assert [line for line in config.warnings if not any(word in line for word in told)] == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gpu = { cpus = 1 }", "[PartitionPrice.gpu] cpus = 1: unknown key; did you mean cpu?"),
        ("gpu = { cpu = 1, mem = 1 }", "mem = 1: unknown key; did you mean mem_gb?"),
        ("gpu = { cpu = 1, CPU = 1 }", "CPU = 1: unknown key; did you mean cpu?"),
        ('gpu = { "gres/gpu:a100" = 1 }', 'did you mean "gpu:a100"?'),
        ('gpu = { "GRES/gpu" = 1 }', "did you mean gpu?"),
        ('gpu = { "gpu:" = 1 }', '"gpu:" = 1: unknown key; expected "gpu:TYPE"'),
        ('gpu = { "gpu:a b" = 1 }', 'expected "gpu:TYPE"'),
        ('gpu = { "gpu:a,b" = 1 }', 'expected "gpu:TYPE"'),
        ('gpu = { "gpu:a100" = 1, "gpu:A100" = 1 }', 'Slurm does not tell it from "gpu:a100"'),
        ("gpu = { cpu = 1, foo = 1 }", 'expected cpu, gpu, "gpu:TYPE", mem_gb, node, billing or'),
        ("gpu.v100 = 1", 'a name with a dot needs quotes: "gpu.v100"'),
        ("gpu.v100.x = 1", 'a name with a dot needs quotes: "gpu.v100.x"'),
        ("gpu.gpu2 = 1", 'did you mean gpu?; a name with a dot needs quotes: "gpu.gpu2"'),
        ("gpu = { cpu = -1 }", "[PartitionPrice.gpu] cpu = -1: expected SU per CPU-hour: a number"),
        ('gpu = { "gpu:a100" = 1e7 }', '"gpu:a100" = 1E+7: expected SU per GPU-hour'),
        ("gpu = { gpu = { a100 = 1 } }", 'a key of its own, "gpu:TYPE"'),
        ("gpu = { mem_gb = true }", "expected SU per GB of memory and hour"),
        ("gpu = { node = 0.00000000001 }", "expected SU per node-hour"),
        ("gpu = { billing = [] }", "expected SU per unit of Slurm's billing and hour"),
        ('gpu = { combine = "mx" }', 'combine = "mx": expected "sum" or "max"; did you mean max?'),
        ("gpu = { combine = 1 }", 'combine = 1: expected "sum" or "max"'),
        ("gpu = [1]", "[PartitionPrice] gpu = [1]: expected SU per CPU-hour"),
        ("gpu = 2027-01-01", 'or a table like { cpu = 1, "gpu:a100" = 60 }'),
        ('"a.b" = { cpus = 1 }', '[PartitionPrice."a.b"] cpus = 1: unknown key'),
        ("gpu = { cpu = 1, gpu:a100 = 60 }", 'a key with a colon needs quotes: "gpu:a100"'),
        ("[PartitionPrice.gpu]\ngpu:a100 = 60", 'a key with a colon needs quotes: "gpu:a100"'),
        ("[StateFactor]\nTIMEOUT = 1.1", "[StateFactor] TIMEOUT = 1.1: expected the share"),
        ("[StateFactor]\nTIMEOUT = -0.1", "a number from 0 to 1 with at most ten"),
        ("[StateFactor]\ncanceled = 0", "unknown state; did you mean CANCELLED?"),
        ("[StateFactor]\nNODEFAIL = 0", "unknown state; did you mean NODE_FAIL?"),
        ("[StateFactor]\nRUNNING = 0", "unknown state; expected one of COMPLETED, "),
        ("[StateFactor]\ntimeout = 0\nTIMEOUT = 1", "expected each state once"),
        ("[StateFactor]\nTIMEOUT = {}", "[StateFactor] TIMEOUT = {...}: expected the share"),
        ("[QosMultiplier]\na.b = 1", 'a name with a dot needs quotes: "a.b"'),
        ("[statefactor]\nTIMEOUT = 0", "unknown section; did you mean StateFactor?"),
        ("[[PriceLst]]\nfrom = 2027-01-01", "unknown section; did you mean PriceList?"),
    ],
)
def test_a_mistake_in_a_price_is_one_line_that_says_where_and_what_was_expected(
    site: Site, line: str, expected: str
) -> None:
    (problem,) = site.problems(f"{BEFORE}[PartitionPrice]\n{line}\n")
    assert problem.startswith("FILE: ")
    assert expected in problem
    assert "\n" not in problem and len(problem) < 400


VALUES = st.sampled_from(
    ["1", "-1", "0.5", "1e99", "nan", "true", '"1"', '"x"', "[]", "[1]", "{}", "{ a = 1 }"]
    + ["2027-01-01", "07:00:00", '"sum"', '"max"', "1e-11", "1_000_001"]
)
KEYS = st.one_of(
    st.sampled_from(sorted(RATES)),
    GPU_KEYS,
    st.sampled_from(["cpus", "gres/gpu", "GPU:X", "", "é"]),
)


@given(table=st.dictionaries(KEYS, VALUES, max_size=6))
@in_scratch
def test_each_mistake_in_any_table_is_one_line_and_each_line_one_mistake(
    site: Site, table: Dict[str, str]
) -> None:
    def problems(text: str) -> List[str]:
        try:
            rates(site, text)
        except ConfigError as error:
            return list(error.problems)
        return []

    one_by_one = [
        problem
        for key, value in table.items()
        for problem in problems(f"{{ {json.dumps(key)} = {value} }}")
    ]
    assume(len({key.lower() for key in table}) == len(table))
    together = problems(
        "{ " + ", ".join(f"{json.dumps(key)} = {value}" for key, value in table.items()) + " }"
    )
    assert len(together) == len(one_by_one)
    for problem in together:
        assert problem.startswith(f"{site.path}: [PartitionPrice.gpu] ")
        assert ": expected " in problem or ": unknown key" in problem
        assert "\n" not in problem


# Dated lists.


def dated(from_: str, tables: str = "normal = 2") -> str:
    return f"[[PriceList]]\nfrom = {from_}\n[PriceList.PartitionPrice]\n{tables}\n"


def with_lists(site: Site, *lists: str) -> Config:
    return site.load(f"{BEFORE}[PartitionPrice]\nnormal = 1\n" + "".join(lists))


def cpu_price(config: Config, at_s: int) -> Decimal:
    return config.prices_at(at_s).partitions["normal"].cpu


def test_a_dated_list_is_in_force_from_its_second_until_the_next_one(site: Site) -> None:
    config = with_lists(
        site,
        dated("2028-01-01T00:00:00Z", "normal = 3"),
        dated("2027-01-01T00:00:00Z", "normal = 2"),
    )
    first, second = utc("2027-01-01T00:00:00"), utc("2028-01-01T00:00:00")
    assert [from_s for from_s, _ in config.dated_prices] == [first, second]
    assert [
        cpu_price(config, at_s) for at_s in (0, first - 1, first, second - 1, second, second * 9)
    ] == [1, 1, 2, 2, 3, 3]


def test_one_price_list_can_be_put_in_the_place_of_all(site: Site) -> None:
    config = with_lists(site, dated("2027-01-01T00:00:00Z"))
    other = PriceList.of_cpus({"normal": Decimal(7)})
    assert cpu_price(config.with_prices(other), 2**40) == 7
    assert config.with_prices(other).policy is config.policy


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-01-01", "2027-01-01T05:00:00"),
        ("2027-07-01", "2027-07-01T04:00:00"),
        ("2027-07-01T06:30:00", "2027-07-01T10:30:00"),
        ("2027-07-01 06:30:00", "2027-07-01T10:30:00"),
        ("2027-07-01T06:30:00+02:00", "2027-07-01T04:30:00"),
        ("2027-07-01T06:30:00Z", "2027-07-01T06:30:00"),
    ],
)
def test_what_names_no_offset_is_in_the_time_zone_of_the_host(
    site: Site, zone: None, text: str, moment: str
) -> None:
    ((from_s, _),) = with_lists(site, dated(text)).dated_prices
    assert from_s == utc(moment)


def test_a_dated_list_replaces_the_one_before_as_a_whole(site: Site) -> None:
    config = site.load(
        f"{BEFORE}[PartitionPrice]\nnormal = 1\nold = 1\n[QosMultiplier]\nlowprio = 0\nplain = 1\n"
        "[StateFactor]\nTIMEOUT = 0.5\nFAILED = 1\nNODE_FAIL = 1\n"
        + dated(
            "2027-01-01",
            'normal = 2\nnew = { "gpu:a100" = 3 }\n[PriceList.StateFactor]\nfailed = 0',
        )
    )
    (_, prices) = config.dated_prices[0]
    assert set(prices.partitions) == {"normal", "new"}
    assert prices.multiplier("lowprio") == 1
    factors = {state: prices.factor(state) for state in ("TIMEOUT", "FAILED", "NODE_FAIL")}
    assert factors == {"TIMEOUT": 1, "FAILED": 0, "NODE_FAIL": 0}
    told = [warning.replace(site.path, "FILE") for warning in config.warnings]
    assert told == [
        "FILE: [PriceList.PartitionPrice] (from 2027-01-01): no price for old, listed until then: "
        "jobs there are refused from then on",
        "FILE: [PriceList.QosMultiplier] (from 2027-01-01): no multiplier for lowprio, listed until then: "
        "it is 1 from then on",
        "FILE: [PriceList.StateFactor] (from 2027-01-01): no factor for TIMEOUT, NODE_FAIL, listed until then: "
        "it is the default from then on",
    ]


def test_a_partition_that_loses_its_price_is_warned_about_in_the_order_of_time(site: Site) -> None:
    config = with_lists(
        site,
        dated("2028-01-01", "normal = 1\nlate = 1"),
        dated("2027-01-01", "normal = 1\nearly = 1\nhere = 1"),
    )
    (warning,) = config.warnings
    assert "(from 2028-01-01): no price for early, here, listed until then" in warning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[PriceList]]\nfrom = 2027-01-01", "(from 2027-01-01) PartitionPrice: missing"),
        ("[[PriceList]]\n[PriceList.PartitionPrice]", "[[PriceList]] (number 1) from: missing"),
        (dated('"2027-01-01"'), 'from = "2027-01-01": expected a date like 2030-07-01'),
        (dated("1767225600"), "from = 1767225600: expected a date"),
        (dated("06:00:00"), "from = 06:00:00: expected a date"),
        (dated("2027-01-01T00:00:00.5"), "expected a date"),
        (dated("1969-01-01"), "expected a date"),
        (dated("0001-01-01"), "expected a date"),
        (dated("0001-01-01T00:00:00+23:59"), "expected a date"),
        (
            dated("2027-01-01T00:00:00Z") + dated("2027-01-01T01:00:00+01:00"),
            "[[PriceList]] (number 2) from = 2027-01-01 01:00:00+01:00: expected each list to begin at another",
        ),
        (
            dated("2027-01-01", "normal = -1"),
            "[PriceList.PartitionPrice] (from 2027-01-01) normal = -1: expected SU per CPU-hour",
        ),
        (
            dated("2027-01-01", "gpu.v100 = 1"),
            "[PriceList.PartitionPrice.gpu] (from 2027-01-01) v100 = 1: unknown key",
        ),
        (dated("2027-01-01") + "[PriceList.QosMultiplier]\nA = 1\na = 1", "expected each QOS once"),
        (
            dated("2027-01-01") + "[PriceList.Policy]",
            "Policy = {...}: unknown key; expected from and",
        ),
        (
            "[[PriceList]]\nfrom = 2027-01-01\n[PriceList.partitionprice]",
            "unknown key; did you mean PartitionPrice?",
        ),
        (
            "[[PriceList]]\nfrom = 2027-01-01\nPartitionPrice = 1",
            "PartitionPrice = 1: expected a section, written [PriceList.PartitionPrice]",
        ),
        ("[PriceList]\nfrom = 2027-01-01", "expected lists of prices, each written [[PriceList]]"),
    ],
)
def test_a_mistake_in_a_dated_list_is_one_line_that_names_the_list(
    site: Site, text: str, expected: str
) -> None:
    (problem,) = site.problems(f"{BEFORE}[PartitionPrice]\nnormal = 1\n{text}\n")
    assert problem.startswith("FILE: ") and expected in problem
    assert "\n" not in problem and len(problem) < 400


@pytest.mark.parametrize("value", ["1", "[1]", '["a", {}]', "[[]]"])
def test_price_lists_that_are_no_tables_are_mistakes(site: Site, value: str) -> None:
    problems = site.problems(f"PriceList = {value}\n{BEFORE}[PartitionPrice]\nnormal = 1\n")
    assert "each written [[PriceList]]" in problems[0]


@given(
    froms=st.lists(
        st.one_of(
            st.datetimes().map(lambda moment: moment.isoformat()),
            st.dates().map(lambda day: day.isoformat()),
            st.datetimes(timezones=st.timezones().map(lambda _: timezone.utc)).map(
                lambda moment: moment.isoformat()
            ),
        ),
        max_size=4,
    )
)
@in_scratch
def test_any_dates_are_lists_in_order_or_mistakes(site: Site, froms: List[str]) -> None:
    try:
        config = with_lists(site, *(dated(text) for text in froms))
    except ConfigError as error:
        assert all("from = " in problem for problem in error.problems)
        assert len(error.problems) <= len(froms)
    else:
        moments = [from_s for from_s, _ in config.dated_prices]
        assert (
            len(moments) == len(froms)
            and moments == sorted(set(moments))
            and min(moments, default=0) >= 0
        )


# check-config.


class Slurm:
    """slurm.conf's part of scontrol's answers."""

    def __init__(self, tres: str = "", select: str = "CR_CORE_MEMORY", *partitions: str) -> None:
        self.config = (
            "Configuration data as of 2026-11-21T12:00:00\n"
            f"AccountingStorageTRES   = cpu,mem,energy,node,billing,fs/disk,vmem,pages{tres}\n"
            f"SelectType              = select/cons_tres\nSelectTypeParameters    = {select}\n"
        )
        self.partitions = "\n".join(partitions or (partition("gpu"), partition("normal")))

    def __call__(self, argv: Sequence[str]) -> str:
        answers = {"config": self.config, "partition": self.partitions}
        return answers[argv[-1]]


def partition(name: str, extra: str = "", select: str = "NONE") -> str:
    return f"PartitionName={name} AllowQos=ALL SelectTypeParameters={select} TRES=cpu=8,billing=8 {extra}"


def warned(site: Site, price: str, slurm: Slurm) -> Tuple[str, ...]:
    site.write(f"{BEFORE}[PartitionPrice]\ngpu = {price}\nnormal = 1\n")
    config = load(site.path, in_slurmctld=False)
    warnings: List[str] = []
    check_config._check_slurm(config, slurm, warnings)
    return tuple(
        warning.replace(f"{site.path}: [PartitionPrice] gpu: ", "") for warning in warnings
    )


@pytest.mark.parametrize(
    ("price", "slurm", "expected"),
    [
        ("1", Slurm(), []),
        ("{ cpu = 2, node = 3 }", Slurm(), []),
        ("{ gpu = 20 }", Slurm(), ["GPUs are priced, but AccountingStorageTRES has no gres/gpu"]),
        ("{ gpu = 20 }", Slurm(",gres/gpu:a100"), ["GPUs are priced"]),
        ("{ gpu = 20 }", Slurm(",gres/gpu"), []),
        (
            '{ "gpu:a100" = 60, "gpu:t4" = 1 }',
            Slurm(",gres/gpu,gres/gpu:T4"),
            ['"gpu:a100" is priced, but AccountingStorageTRES has no gres/gpu:a100'],
        ),
        ('{ "gpu:a100" = 60 }', Slurm(",gres/gpu,gres/gpu:a100"), []),
        ('{ "gpu:a100" = 60 }', Slurm(), ["GPUs are priced", '"gpu:a100" is priced']),
        ("{ billing = 1 }", Slurm(), ["billing is priced, but there are no TRESBillingWeights"]),
        (
            "{ billing = 1 }",
            Slurm("", "CR_CPU", partition("gpu", "TRESBillingWeights=CPU=1.0,Mem=0.25G")),
            [],
        ),
        ("{ billing = 1 }", Slurm("", "CR_CPU", partition("another")), []),
        ("{ mem_gb = 1 }", Slurm("", "CR_CORE_MEMORY,CR_PACK_NODES"), []),
        ("{ mem_gb = 1 }", Slurm("", "CR_CORE"), ["mem_gb is priced, but SelectTypeParameters"]),
        ("{ mem_gb = 1 }", Slurm("", "NONE"), ["mem_gb is priced"]),
        (
            "{ mem_gb = 1 }",
            Slurm("", "CR_CORE_MEMORY", partition("gpu", select="CR_SOCKET")),
            ["mem_gb is priced"],
        ),
        ("{ mem_gb = 1 }", Slurm("", "CR_CORE", partition("gpu", select="CR_CORE_MEMORY")), []),
        ("{ mem_gb = 1 }", Slurm("", "CR_CPU_MEMORY", partition("gpu", select="CR_CORE")), []),
    ],
)
def test_what_is_priced_and_not_tracked_by_slurm_is_warned_about(
    site: Site, price: str, slurm: Slurm, expected: List[str]
) -> None:
    warnings = warned(site, price, slurm)
    assert len(warnings) == len(expected)
    for warning, text in zip(warnings, expected):
        assert warning.startswith(text)


def test_a_dated_list_is_held_against_slurm_too(site: Site) -> None:
    config = with_lists(site, dated("2027-01-01", "normal = { gpu = 3 }"))
    warnings: List[str] = []
    check_config._check_slurm(config, Slurm(), warnings)
    assert len(warnings) == 1 and "normal: GPUs are priced" in warnings[0]


def test_slurm_is_asked_only_if_more_than_cpus_is_priced_and_may_be_away(site: Site) -> None:
    asked: List[Sequence[str]] = []

    def away(argv: Sequence[str]) -> str:
        asked.append(argv)
        raise SlurmUnavailable("scontrol: no answer")

    for price, expected in (("1", 0), ("{ gpu = 1 }", 1)):
        config = with_lists(site, dated("2027-01-01", f"normal = {price}"))
        warnings: List[str] = []
        check_config._check_slurm(config, away, warnings)
        check_config._check_slurm(config, None, warnings)
        assert len(asked) == len(warnings) == expected
    assert "was not looked at: scontrol: no answer" in warnings[0]
    warnings = []
    check_config._check_slurm(config, lambda _: "", warnings)
    assert "unexpected answer" in warnings[0]


def test_a_scontrol_that_hangs_is_not_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = site.file("scontrol", "#!/bin/sh\nexec sleep 60\n", 0o755)
    monkeypatch.setenv("PATH", os.path.dirname(command), prepend=":")
    monkeypatch.setattr(check_config, "SLURM_TIMEOUT_S", 0.2)
    whole(site, "[PartitionPrice.gpu]\ngpu = 1\n")
    report = check_config.check(site.path, slurm_user=me())
    assert report.problems == ()
    assert [warning for warning in report.warnings if "no complete answer within 0.2 s" in warning]


def checked(site: Site, now_s: int, **changes: Any) -> str:
    out = io.StringIO()
    assert check_config.main(site.path, slurm_user=me(), out=out, now_s=now_s, **changes) == 0
    return out.getvalue()


def test_every_price_list_is_shown_with_its_date_and_the_one_in_force(
    site: Site, zone: None
) -> None:
    whole(
        site,
        '[PartitionPrice.gpu]\ncpu = 1\n"gpu:a100" = 60\n[StateFactor]\nTIMEOUT = 0.5\n'
        + dated("2027-01-01", 'normal = 2\ngpu = { mem_gb = 0.5, combine = "max" }'),
    )
    before, after = utc("2027-01-01T04:59:59"), utc("2027-01-01T05:00:00")
    slurm = Slurm(",gres/gpu,gres/gpu:a100")
    first, second = (checked(site, at_s, run=slurm) for at_s in (before, after))
    for text in (first, second):
        assert 'gpu = { cpu = "1", "gpu:a100" = "60", combine = "sum" }' in text
        assert 'TIMEOUT = "0.5"' in text and 'NODE_FAIL = "0"' in text
        assert "from = 2027-01-01T00:00:00-05:00" in text
        assert 'gpu = { mem_gb = "0.5", combine = "max" }' in text
    assert "in force now" not in first and "(the list from" not in first
    assert ", in force now" in second and "(the list from 2027-01-01T00:00:00-05:00)" in second


def test_scripts_get_the_lists_and_the_warnings_too(site: Site, zone: None) -> None:
    whole(site, "[PartitionPrice.gpu]\ngpu = 1\n" + dated("2027-01-01", "normal = 2\ngpu = 3"))
    config = load(site.path, in_slurmctld=False)
    after = utc("2027-01-01T05:00:00")
    reports = [
        json.loads(checked(site, at_s, as_json=True, run=Slurm())) for at_s in (after - 1, after)
    ]
    assert [report["price_version"] for report in reports] == [
        config.prices.version,
        config.dated_prices[0][1].version,
    ]
    assert [report["prices_from"] for report in reports] == [None, "2027-01-01T00:00:00-05:00"]
    tree = reports[0]["in_force"]
    assert set(TABLES) < set(tree)
    (listed,) = tree["PriceList"]
    assert listed["from"] == "2027-01-01T00:00:00-05:00"
    assert listed["PartitionPrice"] == {"normal": "2", "gpu": "3"}
    assert [warning for warning in reports[0]["warnings"] if "GPUs are priced" in warning]
