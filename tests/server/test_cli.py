# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking bank``: every mistake is one line, and no traceback."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_banking.server.cli import add_parser, main

from .running_bank import DAY, TODAY, RunningBank

PERIOD = ("--start", str(TODAY), "--end", str(TODAY + DAY))


@pytest.fixture(scope="module")
def shell() -> Iterator[RunningBank]:
    """A bank without a server."""
    bank = RunningBank()
    try:
        yield bank
    finally:
        bank.__exit__(None, None, None)


def test_first_command_makes_the_database(tmp_path: Path) -> None:
    bank = RunningBank(data=tmp_path / "new" / "bank")
    assert bank.command("account", "add", "fc_a").status == 0
    listed = bank.command("account", "list", "--json")
    assert [row["account"] for row in json.loads(listed.out)] == ["fc_a"]
    modes = {path.name: path.stat().st_mode & 0o777 for path in bank.data.iterdir()}
    assert set(modes.values()) == {0o600} and bank.data.stat().st_mode & 0o777 == 0o700


def test_commands_hang_under_another_parser(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser(prog="slurm-banking")
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["bank", "--data", str(tmp_path), "account", "list", "--json"])
    assert args.main is main
    assert (args.data, args.json) == (str(tmp_path), True)
    later = parser.parse_args(["bank", "account", "list", "--data", "/x"])
    assert later.data == "/x"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["account", "show", "none"], "no account is named none"),
        (["account", "add", "a/b"], "account name 'a/b'"),
        (["account", "add", ""], "account name ''"),
        (["user", "add", "new"], "--uid is needed"),
        (["user", "add", "new", "--uid", "1", "--account", "none"], "no account is named none"),
        (["user", "add", "new", "--uid", "1", "--limit", "5"], "--account is needed"),
        (["user", "remove", "nobody", "--account", "none"], "no account is named none"),
        (["allocation", "add", "none", "10", *PERIOD], "no account is named none"),
        (["allocation", "renew", "none", "10", "--end", "2026-01-01"], "no account is named none"),
        (["deposit", "none", "10", "--reason", "x"], "no account is named none"),
        (["entries", "none"], "no account is named none"),
        (["token", "revoke", "none"], "no token named none"),
        (["serve", "--listen", "nowhere"], "expected HOST:PORT"),
        (["serve", "--listen", "192.0.2.1:1"], "--listen 192.0.2.1:1"),
        (["admin", "add", "x", "--password-file", "/none"], "/none: No such file"),
        (["verify", "--database", "mysql://x/y"], "expected sqlite:///path or postgresql://"),
        (
            ["verify", "--database", "postgresql://a:secret@127.0.0.1:1/x"],
            "database postgresql x on 127.0.0.1",
        ),
        (["verify", "--database", "sqlite:////proc/none/x"], "database sqlite:///proc/none/x"),
        (["verify", "--data", "/proc/none"], "data directory /proc/none"),
    ],
)
def test_mistake_is_one_clear_line(shell: RunningBank, arguments: list[str], told: str) -> None:
    done = shell.command(*arguments)
    assert done.status == 1, done
    assert done.err.startswith("slurm-banking bank: error: ") and told in done.err, done.err
    assert done.err.count("\n") == 1 and "secret" not in done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["deposit", "a", "1.001", "--reason", "x"], "more than two decimal places"),
        (["deposit", "a", "nan", "--reason", "x"], "not a finite number"),
        (["deposit", "a", "0", "--reason", "x"], "more than 0"),
        (["deposit", "a", "100000000.01", "--reason", "x"], "100000000.00"),
        (["deposit", "a", "1"], "--reason"),
        (
            ["allocation", "add", "a", "1", "--start", "1.6.2026", "--end", "2027-05-31"],
            "a date such as",
        ),
        (["user", "add", "a", "--uid", "-1"], "a numeric user id"),
        (["token", "create", "--scope", "all", "--name", "x"], "start-only"),
        (["serve", "--threads", "0"], "1 to 256"),
        (["serve", "--processes", "0"], "1 to 64"),
        ([], "required"),
        (["account"], "required"),
    ],
)
def test_argument_that_cannot_be_read_is_a_usage_error(
    shell: RunningBank, arguments: list[str], told: str
) -> None:
    done = shell.try_shell(*arguments)
    assert done.status == 2
    assert told in done.err and "Traceback" not in done.err


def test_conflicts_are_refused(shell: RunningBank) -> None:
    shell.shell("account", "add", "fc_c")
    shell.shell("user", "add", "carol", "--uid", "77")
    shell.shell("allocation", "add", "fc_c", "10", *PERIOD)
    shell.shell("token", "create", "--scope", "read", "--name", "reader")
    cases = [
        (["account", "add", "fc_c"], "exists already"),
        (["user", "add", "carol", "--uid", "77"], "exists already"),
        (["user", "add", "carol", "--uid", "78", "--account", "fc_c"], "has UID 77"),
        (["user", "add", "dave", "--uid", "77"], "UID 77 is carol's"),
        (["allocation", "add", "fc_c", "10", *PERIOD], "has an allocation from"),
        (
            ["allocation", "add", "fc_c", "10", "--start", "2026-02-02", "--end", "2026-02-01"],
            "cannot end",
        ),
        (
            [
                "allocation",
                "renew",
                "fc_c",
                "10",
                "--start",
                str(TODAY - DAY),
                "--end",
                "2199-01-01",
            ],
            "must start later",
        ),
        (["allocation", "expire", "fc_c", "--allocation", "999"], "no allocation 999"),
        (["deposit", "fc_c", "100000000", "--reason", "x"], "at most"),
        (["deposit", "fc_c", "1", "--reason", " "], "a reason is needed"),
        (["token", "create", "--scope", "read", "--name", "reader"], "exists already"),
    ]
    for arguments, told in cases:
        done = shell.try_shell(*arguments)
        assert done.status == 1 and told in done.err, (arguments, done)
        assert done.err.count("\n") == 1
    assert shell.verified()


def test_lists_are_json_when_asked(shell: RunningBank) -> None:
    shell.try_shell("account", "add", "fc_j")
    shell.try_shell("user", "add", "judy", "--uid", "88", "--account", "fc_j", "--limit", "0")
    for arguments in (
        ["account", "list"],
        ["user", "list"],
        ["allocation", "list"],
        ["token", "list"],
        ["entries", "fc_j"],
    ):
        assert isinstance(json.loads(shell.shell(*arguments, "--json")), list)
        assert shell.shell(*arguments)
    shown = json.loads(shell.shell("account", "show", "fc_j", "--json"))
    assert shown["members"] == [{"user": "judy", "uid": "88", "active": True, "limit_su": "0.00"}]


def test_weak_password_is_refused(shell: RunningBank, tmp_path: Path) -> None:
    (tmp_path / "p").write_text("12345678")
    done = shell.try_shell("admin", "add", "root", "--password-file", str(tmp_path / "p"))
    assert done.status == 1 and "password" in done.err
