# SPDX-License-Identifier: BSD-3-Clause
"""Where the bank's settings come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm_banking.errors import ConfigError
from slurm_banking.server.options import (
    load_options,
    parse_database_url,
    prepare_data_dir,
    secret_key,
)

GOOD = """
resource = "Savio Compute"
time_zone = "UTC"
allowed_hosts = ["bank.example.org"]
[[partition]]
name = "savio3"
num_nodes = 4
num_cores = 128
su_per_core_hour = "1.25"
"""


def problems_of(directory: Path, text: str) -> tuple[str, ...]:
    (directory / "bank.toml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_options(str(directory), environ={})
    return raised.value.problems


def test_defaults_need_no_file(tmp_path: Path) -> None:
    options = load_options(str(tmp_path), environ={})
    assert options.database["NAME"] == f"{tmp_path}/bank.sqlite3"
    assert (options.resource, options.time_zone, options.partitions) == ("Compute", "UTC", ())


def test_file_sets_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "bank.toml").write_text(GOOD)
    options = load_options(str(tmp_path), environ={})
    assert options.resource == "Savio Compute"
    assert str(options.partitions[0].su_per_core_hour) == "1.25"


def test_command_line_goes_before_environment_before_file(tmp_path: Path) -> None:
    path = tmp_path / "bank.toml"
    path.write_text('database = "sqlite:///of/file"\n')
    path.chmod(0o600)
    environ = {"SLURM_BANK_DATA": str(tmp_path), "SLURM_BANK_DATABASE": "sqlite:///of/environment"}
    assert (
        load_options(environ=environ, database="sqlite:///of/line").database["NAME"] == "/of/line"
    )
    assert load_options(environ=environ).database["NAME"] == "/of/environment"
    del environ["SLURM_BANK_DATABASE"]
    assert load_options(environ=environ).database["NAME"] == "/of/file"


def test_every_mistake_is_named_at_once_with_file_key_and_value(tmp_path: Path) -> None:
    text = 'resorce = "x"\nresource = 5\ntime_zone = "Mars/Olympus"\nallowed_hosts = []\n[[partition]]\nname = ""\n'
    found = problems_of(tmp_path, text)
    assert len(found) == 5
    assert all(str(tmp_path / "bank.toml") in problem for problem in found)
    for key in (
        "'resorce'",
        "resource = 5",
        "time_zone = 'Mars/Olympus'",
        "allowed_hosts = []",
        "partition = ",
    ):
        assert any(key in problem for problem in found), key


@pytest.mark.parametrize("text", ["= 1", 'resource = "', "\xff"])
def test_file_that_is_no_toml_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "bank.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as raised:
        load_options(str(tmp_path), environ={})
    (problem,) = raised.value.problems
    assert str(tmp_path / "bank.toml") in problem and "\n" not in problem


def test_database_url_in_a_file_that_others_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bank.toml"
    path.write_text('database = "postgresql://u:secret@h/d"\n')
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="expected mode 0600"):
        load_options(str(tmp_path), environ={})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgresql://u:p%40ss@db.example.org:5433/bank",
            ("db.example.org", "5433", "u", "p@ss", "bank"),
        ),
        ("postgres://u@h/bank", ("h", "", "u", "", "bank")),
        ("postgresql:///bank?host=/run/postgresql", ("/run/postgresql", "", "", "", "bank")),
        ("postgresql://u@%2Frun%2Fpg/bank", ("/run/pg", "", "u", "", "bank")),
        ("postgresql:///?host=/s&dbname=b&user=u&port=1", ("/s", "1", "u", "", "b")),
    ],
)
def test_postgresql_urls(url: str, expected: tuple[str, ...]) -> None:
    settings, label = parse_database_url(url)
    assert tuple(settings[key] for key in ("HOST", "PORT", "USER", "PASSWORD", "NAME")) == expected
    assert "p@ss" not in label


@pytest.mark.parametrize(
    ("query", "expected"),
    [("", (True, 5)), ("?prepare=yes", (True, 5)), ("?prepare=no", (False, None))],
)
def test_statements_are_prepared_unless_the_url_says_no(
    query: str, expected: tuple[bool, int | None]
) -> None:
    options = parse_database_url("postgresql://h/d" + query)[0]["OPTIONS"]
    assert (options["server_side_binding"], options["prepare_threshold"]) == expected
    assert "prepare" not in options


@pytest.mark.parametrize("url", ["sqlite:///var/x", "sqlite:////var/x", "sqlite:///var//y/../x"])
def test_sqlite_paths_are_absolute(url: str) -> None:
    assert parse_database_url(url)[0]["NAME"] == "/var/x"


@pytest.mark.parametrize(
    "url",
    ["", "x", "mysql://a/b", "sqlite://", "sqlite:///", "sqlite://host/x", "postgresql://h", "postgresql://h:x/d",
     "postgresql://h/d?nonsense=1", "postgresql://h/d?prepare=maybe", "postgresql://h/a/b"],
)  # fmt: skip
def test_url_that_names_no_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="database URL"):
        parse_database_url(url)


def test_secret_key_is_made_once_and_refused_when_others_read_it(tmp_path: Path) -> None:
    key = secret_key(tmp_path)
    path = tmp_path / "secret_key"
    assert len(key) >= 50 and secret_key(tmp_path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="expected 0600"):
        secret_key(tmp_path)


def test_data_directory_that_others_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="no write for group and others"):
        prepare_data_dir(tmp_path)
