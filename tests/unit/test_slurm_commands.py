# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import stat
import time
from pathlib import Path
from typing import Optional

import pytest

from slurm_banking.errors import SlurmUnavailable
from slurm_banking.records import UNLIMITED
from slurm_banking.slurm import commands, hostlist


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Puts a shell script in the way of a Slurm command."""

    def make(body: str, name: str = "squeue") -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return name

    return make


def test_commands_speak_unix_seconds_and_plain_c_whatever_the_caller_says(
    program, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SLURM_CLUSTERS", "other")
    monkeypatch.setenv("SLURM_CONF", "/somewhere/slurm.conf")
    env = dict(line.partition("=")[::2] for line in commands.run([program("env")]).splitlines())
    assert env["LC_ALL"] == "C" and env["TZ"] == "UTC" and env["SLURM_TIME_FORMAT"] == "%s"
    assert env["SLURM_BITSTR_LEN"] == "0" and env["SLURM_CONF"] == "/somewhere/slurm.conf"
    assert "SQUEUE_STATES" not in env and "SLURM_CLUSTERS" not in env


def test_a_failing_command_is_one_line_with_its_last_words(program) -> None:  # type: ignore[no-untyped-def]
    name = program(
        "echo 'squeue: error: first' >&2; echo 'squeue: fatal: no controller' >&2; exit 1"
    )
    with pytest.raises(SlurmUnavailable) as caught:
        commands.run([name])
    assert str(caught.value) == "squeue: fatal: no controller"


def test_a_command_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(SlurmUnavailable, match="^no-such-command: No such file"):
        commands.run(["no-such-command"])


def test_a_command_that_hangs_is_ended_in_time(program) -> None:  # type: ignore[no-untyped-def]
    begun = time.monotonic()
    with pytest.raises(SlurmUnavailable, match="no complete answer within 0.3 s"):
        commands.run([program("echo begun; exec sleep 30")], timeout_s=0.3)
    assert time.monotonic() - begun < 3


def test_a_command_that_prints_without_end_is_ended(program) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SlurmUnavailable, match="printed more than 100000 bytes"):
        commands.run([program("exec yes")], max_bytes=100_000, timeout_s=20)


@pytest.mark.parametrize(
    "text, minutes",
    [
        ("2:00", 2),
        ("0:30", 1),
        ("10:00", 10),
        ("1:00:00", 60),
        ("1-00:00:00", 1440),
        ("7-12:30:00", 7 * 1440 + 750),
        ("UNLIMITED", UNLIMITED),
        ("NONE", None),
        ("N/A", None),
    ],
)
def test_time_limits_are_read_as_slurm_prints_them(text: str, minutes: Optional[int]) -> None:
    assert commands.parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["soon", "1:2:3:4", "-5", "1-", "٣:00"])
def test_what_is_no_time_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time limit"):
        commands.parse_minutes(text)


@pytest.mark.parametrize(
    "text, hosts",
    [
        ("n1", ("n1",)),
        ("n[1-3,7]", ("n1", "n2", "n3", "n7")),
        ("n[08-11],login", ("n08", "n09", "n10", "n11", "login")),
        ("r[1-2]n[1-2]", ("r1n1", "r1n2", "r2n1", "r2n2")),
        ("gpu[1]-ib", ("gpu1-ib",)),
        ("", ()),
    ],
)
def test_host_lists_are_expanded(text: str, hosts: tuple[str, ...]) -> None:
    assert hostlist.expand(text) == hosts


@pytest.mark.parametrize(
    "text", ["n[1-", "n]1[", "n[[1]]", "n[3-1]", "n[a]", "n[1-99999999]", "n[1-300]m[1-300]", "a;b"]
)
def test_what_is_no_host_list_or_names_too_many_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        hostlist.expand(text)
