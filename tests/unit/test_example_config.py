# SPDX-License-Identifier: BSD-3-Clause
"""The schema, the example file and docs/configuration.md describe the same keys."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from decimal import Decimal
from pathlib import Path
from typing import Dict, Set, Tuple

from slurm_banking.config import SECTIONS, load, schema
from slurm_banking.records import Mode

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "bank-config.toml.example"
DOCS = ROOT / "docs" / "configuration.md"

#: A key that is commented out has no space after its "#".
COMMENTED = re.compile(r"^#(?=[a-z_]+ = )", re.MULTILINE)


def schema_keys() -> Set[Tuple[str, str]]:
    return {(section, key) for section, keys in schema().items() for key in keys}


def keys_of(text: str, heading: str, key: str) -> Set[Tuple[str, str]]:
    """Every key below its section's heading, of the sections whose keys are ours."""
    found: Set[Tuple[str, str]] = set()
    section = ""
    for line in text.splitlines():
        if match := re.match(heading, line):
            section = match[1]
        elif (match := re.match(key, line)) and section in SECTIONS:
            found.add((section, match[1]))
    return found


def uncommented(tmp_path: Path) -> str:
    path = tmp_path / "bank-config.toml"
    path.write_text(COMMENTED.sub("", EXAMPLE.read_text()))
    path.chmod(0o600)
    return str(path)


def test_the_example_loads_without_a_warning() -> None:
    config = load(str(EXAMPLE), in_slurmctld=False)
    assert config.warnings == ()
    assert config.policy.mode is Mode.STRICT_ALLOCATION
    assert config.prices.partition_su["htc"] == Decimal("1.20")


def test_the_example_has_every_key_and_no_other() -> None:
    text = COMMENTED.sub("", EXAMPLE.read_text())
    assert keys_of(text, r"\[(\w+)\]$", r"([a-z_]+) = ") == schema_keys()
    assert set(re.findall(r"^\[(\w+)\]$", text, re.MULTILINE)) == set(schema())


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
    assert keys_of(text, r"## \[(\w+)\]$", r"\| `([a-z_]+)` \|") == schema_keys()
    assert set(re.findall(r"^## \[(\w+)\]$", text, re.MULTILINE)) == set(schema())


def test_what_the_example_comments_out_is_the_default(tmp_path: Path) -> None:
    config = load(uncommented(tmp_path), in_slurmctld=False)
    active = keys_of(EXAMPLE.read_text(), r"\[(\w+)\]$", r"([a-z_]+) = ")
    for section, cls in SECTIONS.items():
        for item in fields(cls):
            if (section, item.name) in active or item.default in (MISSING, None):
                continue
            assert getattr(getattr(config, section.lower()), item.name) == item.default, item.name


def test_the_defaults_in_the_docs_are_the_defaults() -> None:
    documented: Dict[Tuple[str, str], str] = {}
    section = ""
    for line in DOCS.read_text().splitlines():
        if match := re.match(r"## \[(\w+)\]$", line):
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
    return str(value) if isinstance(value, int) else f'"{value}"'
