# SPDX-License-Identifier: BSD-3-Clause
"""The schema, the example file and docs/configuration.md describe the same keys."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from decimal import Decimal
from pathlib import Path
from typing import Dict, Set, Tuple

from slurm_banking.config import DATED, FINAL_STATES, RATES, SECTIONS, TABLES, load, schema
from slurm_banking.prices import DEFAULT_STATE_FACTOR
from slurm_banking.records import Mode
from slurm_banking.tres import parse_tres

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "bank-config.toml.example"
DOCS = ROOT / "docs" / "configuration.md"

#: A key or a section that is commented out has no space after its "#".
COMMENTED = re.compile(r"^#(?=[a-z_]+ = |\[)", re.MULTILINE)

#: A heading of the example; the sections within a section belong to it.
SECTION = r"\[{1,2}(\w+)\]{1,2}$"


def schema_keys() -> Set[Tuple[str, str]]:
    return {(section, key) for section, keys in schema().items() for key in keys}


def keys_of(text: str, heading: str, key: str) -> Set[Tuple[str, str]]:
    """Every key below its section's heading, of the sections whose keys are ours."""
    found: Set[Tuple[str, str]] = set()
    section = ""
    for line in text.splitlines():
        if match := re.match(heading, line):
            section = match[1]
        elif line.startswith("["):
            section = ""
        elif (match := re.match(key, line)) and section in (*SECTIONS, DATED):
            found.add((section, match[1]))
    return found


#: Keys that the file may not have beside another of the same section.
ALTERNATIVES = re.compile(r"^(token_env|key|kid) = .*\n", re.MULTILINE)


def uncommented(tmp_path: Path) -> str:
    path = tmp_path / "bank-config.toml"
    path.write_text(ALTERNATIVES.sub("", COMMENTED.sub("", EXAMPLE.read_text())))
    path.chmod(0o600)
    return str(path)


def test_the_example_loads_without_a_warning() -> None:
    config = load(str(EXAMPLE), in_slurmctld=False)
    assert config.warnings == ()
    assert config.policy.mode is Mode.STRICT_ALLOCATION
    assert config.prices.partitions["htc"].cpu == Decimal("1.20")
    assert config.dated_prices == ()


def test_the_example_shows_a_site_with_cpus_memory_and_two_types_of_gpus() -> None:
    prices = load(str(EXAMPLE), in_slurmctld=False).prices

    def su_per_hour(partition: str, tres: str, qos: str = "normal") -> Decimal:
        price = prices.price(partition, qos)
        assert price is not None
        return price.su_per_hour(parse_tres(tres))

    assert su_per_hour("gpu", "cpu=8,mem=64G,node=1,gres/gpu=2,gres/gpu:a100=2") == 128
    assert su_per_hour("gpu", "cpu=8,mem=64G,node=1,gres/gpu=2,gres/gpu:a40=2") == 58
    assert su_per_hour("gpu", "cpu=8,mem=64G,node=1,gres/gpu=2") == 128
    assert su_per_hour("bigmem", "cpu=4,mem=64G,node=1") == Decimal("6.68")
    assert su_per_hour("bigmem", "cpu=4,mem=1000G,node=1") == 70
    assert su_per_hour("normal", "cpu=4", qos="lowprio") == su_per_hour("free", "cpu=4") == 0


def test_the_dated_list_of_the_example_is_as_complete_as_the_prices_it_replaces(
    tmp_path: Path,
) -> None:
    config = load(uncommented(tmp_path), in_slurmctld=False)
    ((_, dated),) = config.dated_prices
    assert [warning for warning in config.warnings if DATED in warning] == []
    assert list(dated.partitions) == list(config.prices.partitions)
    assert dated.qos_multiplier == config.prices.qos_multiplier
    assert dated.version != config.prices.version


def test_the_state_factors_of_the_example_are_the_default() -> None:
    prices = load(str(EXAMPLE), in_slurmctld=False).prices
    assert prices.state_factor == DEFAULT_STATE_FACTOR
    assert re.search(r"^\[StateFactor\]$", EXAMPLE.read_text(), re.MULTILINE)


def test_the_example_has_every_key_and_no_other() -> None:
    text = COMMENTED.sub("", EXAMPLE.read_text())
    assert keys_of(text, SECTION, r"([a-z_]+) = ") == schema_keys()
    assert set(re.findall(f"^{SECTION}", text, re.MULTILINE)) == set(schema())
    assert set(re.findall(rf"^\[{DATED}\.(\w+)\]$", text, re.MULTILINE)) < set(TABLES)


def test_every_key_of_the_example_has_a_comment() -> None:
    bare = []
    for block in EXAMPLE.read_text().split("\n\n"):
        if re.search(r"^#?[a-z_]+ = ", block, re.MULTILINE) and not re.search(
            r"^# \S", block, re.MULTILINE
        ):
            bare.append(block)
    assert bare == []


def test_the_docs_describe_every_key_and_no_other() -> None:
    text = DOCS.read_text()
    assert keys_of(text, f"## {SECTION}", r"\| `([a-z_]+)` \|") == schema_keys()
    assert set(re.findall(f"^## {SECTION}", text, re.MULTILINE)) == set(schema())


def test_the_docs_describe_every_key_of_a_price_table_and_every_state() -> None:
    text = DOCS.read_text()
    prices = text[text.index("## [PartitionPrice]") : text.index("## [QosMultiplier]")]
    documented = set(re.findall(r"^\| (\S+) \|", prices, re.MULTILINE))
    assert documented == {*RATES, '"gpu:TYPE"'}
    states = text[text.index("## [StateFactor]") : text.index("## [[PriceList]]")]
    assert set(re.findall(r"`([A-Z_]+)`", states)) == set(FINAL_STATES)


def test_the_price_tables_in_the_docs_load(tmp_path: Path) -> None:
    path = tmp_path / "bank-config.toml"
    blocks = re.findall(r"^```toml\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    path.write_text("\n".join(blocks) + '[API]\nurl = "https://bank.example.org"\n[Policy]\n')
    config = load(str(path), in_slurmctld=False)
    assert list(config.prices.partitions) == ["normal", "long.v2", "bigmem", "gpu"]
    assert len(config.dated_prices) == 1


def test_what_the_example_comments_out_is_the_default(tmp_path: Path) -> None:
    config = load(uncommented(tmp_path), in_slurmctld=False)
    active = keys_of(EXAMPLE.read_text(), SECTION, r"([a-z_]+) = ")
    for section, cls in SECTIONS.items():
        for item in fields(cls):
            if (section, item.name) in active or item.default in (MISSING, None):
                continue
            assert getattr(getattr(config, section.lower()), item.name) == item.default, item.name


def test_the_defaults_in_the_docs_are_the_defaults() -> None:
    documented: Dict[Tuple[str, str], str] = {}
    section = ""
    for line in DOCS.read_text().splitlines():
        if match := re.match(f"## {SECTION}", line):
            section = match[1]
        elif line.startswith("| `"):
            columns = [column.strip() for column in line.strip("|").split("|")]
            documented[section, columns[0].strip("`")] = columns[2]
    for section, cls in SECTIONS.items():
        for item in fields(cls):
            shown = documented[section, item.name]
            if item.default in (MISSING, None):
                assert shown.startswith("none"), item.name
            else:
                assert shown == f"`{toml(item.default)}`", item.name


def test_example_and_docs_fit_a_terminal() -> None:
    for path in (EXAMPLE, DOCS):
        assert [line for line in path.read_text().splitlines() if len(line) > 120] == [], path


def toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mode):
        value = value.value
    if isinstance(value, tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return str(value) if isinstance(value, (int, Decimal)) else f'"{value}"'
