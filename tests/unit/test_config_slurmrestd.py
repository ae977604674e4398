# SPDX-License-Identifier: BSD-3-Clause
"""[slurmrestd] of bank-config.toml."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from slurm_banking import check_config
from slurm_banking.config import Config, SlurmrestdConfig, load
from slurm_banking.errors import ConfigError

REST = '[API]\nurl = "https://bank.example.org"\n[Policy]\n[PartitionPrice]\nmain = 1\n'


def loaded(tmp_path: Path, section: str) -> Config:
    path = tmp_path / "bank-config.toml"
    path.write_text(f"{REST}[slurmrestd]\n{section}\n")
    return load(str(path), in_slurmctld=True)


def problems(tmp_path: Path, section: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, section)
    return caught.value.problems


def test_without_the_section_there_is_no_slurmrestd(tmp_path: Path) -> None:
    path = tmp_path / "bank-config.toml"
    path.write_text(REST)
    assert load(str(path), in_slurmctld=True).slurmrestd == SlurmrestdConfig()
    assert SlurmrestdConfig().url is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("http://127.0.0.1:6820", "http://127.0.0.1:6820"),
        ("https://slurm.example.org:6820/", "https://slurm.example.org:6820"),
        ("unix:///run/slurmrestd.socket", "unix:///run/slurmrestd.socket"),
        ("unix:/run/slurmrestd.socket", "unix:///run/slurmrestd.socket"),
    ],
)
def test_it_is_reached_over_tcp_or_a_socket(tmp_path: Path, written: str, expected: str) -> None:
    config = loaded(tmp_path, f'url = "{written}"')
    assert config.slurmrestd.url == expected
    assert config.warnings == ()


def test_every_key_is_taken(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        'url = "https://h:1"\nuser = "slurm"\nkey = "/etc/k.pem"\nkid = "one"\napi_version = "v0.0.38"\n'
        'timeout_s = 30\nverify = "/etc/ca.pem"',
    )
    assert config.slurmrestd == SlurmrestdConfig(
        url="https://h:1",
        user="slurm",
        key="/etc/k.pem",
        kid="one",
        api_version="v0.0.38",
        timeout_s=30,
        verify="/etc/ca.pem",
    )


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ('url = "127.0.0.1:6820"', "expected where slurmrestd listens"),
        ('url = "unix:relative"', "expected where slurmrestd listens"),
        (f'url = "unix:///{"x" * 120}"', "at most 107 bytes"),
        ('token_file = "token"', "expected an absolute path"),
        ('token_env = "SLURM JWT"', "expected the name of an environment variable"),
        ('api_version = "38"', 'expected "auto", or a version'),
        ("timeout_s = 0", "from 1 to 300"),
        ('verify = "no"', "expected true, false, or the absolute path"),
        ('kid = "one"', "expected only beside key"),
        ('key = "/k"\ntoken_env = "X"', "expected one source of tokens; token_env is set too"),
        ('tokenfile = "/k"', "did you mean token_file?"),
    ],
)
def test_a_mistake_is_one_line_with_file_key_and_what_was_expected(
    tmp_path: Path, section: str, expected: str
) -> None:
    (problem,) = problems(tmp_path, section)
    key = section.splitlines()[0].split(" ")[0]
    assert problem.startswith(f"{tmp_path}/bank-config.toml: [slurmrestd] {key} = ")
    assert expected in problem


def test_a_token_in_the_wrong_place_is_not_shown(tmp_path: Path) -> None:
    for key in ("token_file", "token_env", "token", "user"):
        for problem in problems(tmp_path, f'{key} = "eyJhbGciOi.x y"'):
            assert "eyJ" not in problem


def test_what_gives_the_token_away_is_warned_about(tmp_path: Path) -> None:
    (warning,) = loaded(tmp_path, 'url = "http://slurm.example.org:6820"').warnings
    assert "travels unencrypted" in warning
    (warning,) = loaded(tmp_path, 'url = "https://h:1"\nverify = false').warnings
    assert "whoever answers gets the token" in warning


def test_check_config_looks_at_the_token_too(tmp_path: Path) -> None:
    config = loaded(tmp_path, 'token_file = "/nowhere/token"')
    me = pwd.getpwuid(os.geteuid()).pw_name
    problems = check_config.check(config.path, slurm_user=me).problems
    expected = f'{config.path}: [slurmrestd] token_file = "/nowhere/token": cannot be read: '
    assert len([problem for problem in problems if problem.startswith(expected)]) == 1
