# SPDX-License-Identifier: BSD-3-Clause
"""Who may do what."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from .running_bank import SCOPES, RunningBank, database_of, job

LISTS = [
    "jobs/",
    "jobs/none/",
    "projects/",
    "users/",
    "allocations/",
    "allocation_users/",
    "partitions/",
]


def test_scope_matrix(bank: RunningBank) -> None:
    account = bank.account()
    readers, writers = {"admin", "relay", "read"}, {"admin", "relay"}
    for scope in SCOPES:
        for path in [*LISTS, f"can_submit_job/1.00/{account.uid}/{account.name}/"]:
            answer = bank.request("GET", path, scope)
            assert (answer.status_code == 403) == (scope not in readers), (scope, path)
        plain = job(bank.fresh("j"), account, "1.00")
        answer = bank.request("POST", "jobs/", scope, json=plain)
        assert answer.status_code == (201 if scope in writers else 403), scope
        answer = bank.request("PUT", f"jobs/{plain['jobslurmid']}/", scope, json=plain)
        assert answer.status_code == (200 if scope in writers else 403), scope
        if scope not in writers:
            assert list(answer.json()) == ["detail"]


def test_start_only_token_reports_a_start_and_nothing_else(bank: RunningBank) -> None:
    account = bank.account()
    start = job(bank.fresh("j"), account, "0.00")
    assert bank.request("POST", "jobs/", "start-only", json=start).status_code == 201
    omitted = job(bank.fresh("j"), account)
    del omitted["amount"]
    assert bank.request("POST", "jobs/", "start-only", json=omitted).status_code == 201
    forbidden: list[dict[str, Any]] = [{"amount": "0.01"}, {"enddate": start["startdate"]}]
    for fields in forbidden:
        sent = job(bank.fresh("j"), account, "0.00") | fields
        answer = bank.request("POST", "jobs/", "start-only", json=sent)
        assert (answer.status_code, list(answer.json())) == (403, ["detail"])
        assert bank.request("GET", f"jobs/{sent['jobslurmid']}/").status_code == 404
    assert (
        bank.request("PUT", f"jobs/{start['jobslurmid']}/", "start-only", json=start).status_code
        == 403
    )
    assert bank.request("POST", "jobs/", "start-only", json=start).status_code == 400
    assert bank.usage(account) == 0


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Token",
        "Token ",
        "Token x",
        "Basic eDp5",
        "Bearer x",
        "Token \xff\xfe",
        "Token a b",
    ],
)
def test_no_or_bad_token_is_401(bank: RunningBank, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for path in LISTS:
        answer = requests.get(bank.url + path, headers=headers, timeout=30)  # type: ignore[arg-type]
        assert (answer.status_code, list(answer.json())) == (401, ["detail"])
        assert answer.headers["WWW-Authenticate"] == "Token"


def test_revoked_token_is_401_at_once(bank: RunningBank) -> None:
    name = bank.fresh("token")
    key = bank.shell("token", "create", "--scope", "read", "--name", name).strip()
    headers = {"Authorization": f"Token {key}"}
    assert requests.get(bank.url + "users/", headers=headers, timeout=30).status_code == 200
    bank.shell("token", "revoke", name)
    assert requests.get(bank.url + "users/", headers=headers, timeout=30).status_code == 401
    assert bank.try_shell("token", "revoke", name).status == 1


def test_login_token_ends_after_its_day(bank: RunningBank, tmp_path: Path) -> None:
    (tmp_path / "p").write_text("correct horse battery")
    name = bank.fresh("admin")
    bank.shell("admin", "add", name, "--password-file", str(tmp_path / "p"))
    login = {"username": name, "password": "correct horse battery"}
    key = requests.post(bank.url + "api_token_auth/", json=login, timeout=30).json()["token"]
    headers = {"Authorization": f"Token {key}"}
    assert requests.get(bank.url + "jobs/", headers=headers, timeout=30).status_code == 200
    with database_of(bank) as connection:
        connection.execute(
            "UPDATE bank_token SET expires = created WHERE name LIKE 'login %' AND created_by LIKE '%"
            + f"{name}'"
        )
    assert requests.get(bank.url + "jobs/", headers=headers, timeout=30).status_code == 401


def test_token_file_is_0600_and_the_key_is_not_shown(bank: RunningBank, tmp_path: Path) -> None:
    path = tmp_path / "token"
    name = bank.fresh("token")
    shown = bank.shell("token", "create", "--scope", "relay", "--name", name, "--file", str(path))
    key = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key not in shown and len(key) == 40
    answer = requests.get(
        bank.url + "users/", headers={"Authorization": f"Token {key}"}, timeout=30
    )
    assert answer.status_code == 200
    assert [entry.name for entry in tmp_path.iterdir()] == ["token"]


def test_token_that_cannot_be_written_is_not_made(bank: RunningBank, tmp_path: Path) -> None:
    name = bank.fresh("token")
    made = bank.try_shell(
        "token",
        "create",
        "--scope",
        "relay",
        "--name",
        name,
        "--file",
        str(tmp_path / "none" / "token"),
    )
    assert made.status == 1 and "No such file or directory" in made.err
    assert name not in bank.shell("token", "list")


def test_key_is_nowhere_in_the_database_or_the_list(bank: RunningBank, database: str) -> None:
    key = bank.keys["relay"]
    assert key not in bank.shell("token", "list", "--json")
    if database == "sqlite":
        content = b"".join(path.read_bytes() for path in bank.data.glob("bank.sqlite3*"))
        assert b"test relay" in content and key.encode() not in content


def test_administrator_gets_a_token_for_a_password(bank: RunningBank, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("correct horse battery\n")
    name = bank.fresh("admin")
    bank.shell("admin", "add", name, "--password-file", str(password))
    login = {"username": name, "password": "correct horse battery"}
    for arguments in ({"json": login}, {"data": login}):
        answer = requests.post(bank.url + "api_token_auth/", timeout=30, **arguments)  # type: ignore[arg-type]
        assert answer.status_code == 200
        key = answer.json()["token"]
        assert requests.get(
            bank.url + "jobs/", headers={"Authorization": f"Token {key}"}, timeout=30
        ).ok
    (made, *_) = [
        row for row in json.loads(bank.shell("token", "list", "--json")) if name in row["name"]
    ]
    assert made["scope"] == "admin" and made["expires"] is not None


def test_wrong_password_unknown_user_and_missing_field_are_400(bank: RunningBank) -> None:
    for login in ({"username": "nobody", "password": "x"}, {"username": "nobody"}, {}):
        answer = requests.post(bank.url + "api_token_auth/", json=login, timeout=30)
        assert answer.status_code == 400
        assert set(answer.json()) <= {"username", "password", "non_field_errors"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_command_of_root_leaves_the_data_its_owners(tmp_path: Path) -> None:
    readable = [sys.executable, "-c", "import django"]
    if subprocess.run(
        ["runuser", "-u", "nobody", "--", *readable], stderr=subprocess.DEVNULL
    ).returncode:
        pytest.skip("this Python is not readable for others than root")
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    os.chown(data, 65534, 65534)
    for parent in tmp_path.parents:
        if parent != Path("/tmp") and parent.owner() == "root" and parent.is_relative_to("/tmp"):
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    bank = RunningBank(data=data)
    token = tmp_path / "token"
    made = bank.command("token", "create", "--scope", "read", "--name", "t", "--file", str(token))
    assert made.status == 0, made
    assert {
        path.name: path.stat().st_uid for path in data.iterdir() if path.stat().st_uid != 65534
    } == {}
    assert (token.stat().st_uid, stat.S_IMODE(token.stat().st_mode)) == (0, 0o600)
