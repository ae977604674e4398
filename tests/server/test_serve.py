# SPDX-License-Identifier: BSD-3-Clause
"""The server as a process."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from .running_bank import RunningBank, job

if TYPE_CHECKING:
    from .conftest import PostgreSQL


def test_starts_within_seconds_says_so_in_one_line_and_stops_on_sigterm(tmp_path: Path) -> None:
    bank = RunningBank(data=tmp_path / "bank")
    assert bank.command("migrate").status == 0
    began = time.monotonic()
    line = bank.start()
    took_s = time.monotonic() - began
    assert re.fullmatch(
        r"slurm-banking bank: ready on http://127\.0\.0\.1:\d+/api/ \(sqlite://.*\)\n", line
    )
    assert took_s < 5, took_s
    assert bank.stop() == 0
    assert (bank.data / "server.log").read_text() == ""


def test_usage_survives_a_killed_server(tmp_path: Path) -> None:
    with RunningBank(data=tmp_path / "bank") as bank:
        account = bank.account()
        assert bank.put(job("1", account, "5.00")).status_code == 200
        assert bank._server is not None
        bank._server.kill()
        bank._server.wait(10)
        bank.start()
        assert str(bank.usage(account)) == "5.00"
        assert bank.verified()


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def wait_until(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 15
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_several_processes_answer_and_one_that_dies_is_replaced(tmp_path: Path) -> None:
    with RunningBank(data=tmp_path / "bank", arguments=("--processes", "2")) as bank:
        assert bank._server is not None
        parent = bank._server.pid
        wait_until(lambda: len(children(parent)) == 2)
        first = children(parent)
        account = bank.account()
        with ThreadPoolExecutor(8) as pool:
            jobs = [job(str(number), account, "0.10") for number in range(200)]
            assert {answer.status_code for answer in pool.map(bank.put, jobs)} == {200}
        assert str(bank.usage(account)) == "20.00"
        for pid in first:
            assert processor_ticks(pid) > 0
        (victim, *_) = first
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(children(parent) - {victim}) == 2)
        assert bank.put(job("200", account, "0.10")).status_code == 200
        assert f"process {victim} ended (SIGKILL)" in (bank.data / "server.log").read_text()
        assert bank.stop() == 0
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in first))
        bank.start("--processes", "2")
        assert bank.verified()


def processor_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    with RunningBank(data=tmp_path / "bank") as bank:
        process, url, _ = bank.start_another("--processes", "3")
        wait_until(lambda: len(children(process.pid)) == 3)
        alive = children(process.pid)
        process.kill()
        process.wait(10)
        process.stdout.close()  # type: ignore[union-attr]
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in alive))
        with pytest.raises(requests.ConnectionError):
            requests.get(url, timeout=5)


def test_body_over_a_mebibyte_is_refused(bank: RunningBank) -> None:
    answer = bank.request(
        "POST", "jobs/", data=b" " * ((1 << 20) + 1), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    nearly = bank.request(
        "POST", "jobs/", data=b" " * 1_000_000, headers={"Content-Type": "application/json"}
    )
    assert nearly.status_code == 400


def test_connection_is_kept_and_no_cookie_is_set(bank: RunningBank) -> None:
    with requests.Session() as session:
        session.headers["Authorization"] = f"Token {bank.keys['read']}"
        ports = set()
        for _ in range(3):
            answer = session.get(bank.url + "users/", stream=True, timeout=30)
            ports.add(answer.raw.connection.sock.getsockname()[1])
            assert answer.headers["Content-Length"] == str(len(answer.content))
            assert "Set-Cookie" not in answer.headers
    assert len(ports) == 1


def test_administrator_sees_entries_and_cannot_change_them(
    bank: RunningBank, tmp_path: Path
) -> None:
    account = bank.account()
    bank.put(job(bank.fresh("j"), account, "1.23"))
    (tmp_path / "p").write_text("correct horse battery")
    name = bank.fresh("admin")
    bank.shell("admin", "add", name, "--password-file", str(tmp_path / "p"))
    base = bank.url.removesuffix("api/")
    with requests.Session() as session:
        form = session.get(base + "admin/login/", timeout=30)
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form.text)
        assert token
        login = {
            "username": name,
            "password": "correct horse battery",
            "csrfmiddlewaretoken": token[1],
        }
        page = session.post(
            base + "admin/login/?next=/admin/bank/entry/",
            data=login,
            headers={"Referer": base},
            timeout=30,
        )
        assert page.status_code == 200 and "-1.23" in page.text
        number = re.search(r"/admin/bank/entry/(\d+)/change/", page.text)
        assert number
        shown = session.get(f"{base}admin/bank/entry/{number[1]}/change/", timeout=30)
        assert shown.status_code == 200 and 'name="_save"' not in shown.text
        for path in ("add/", f"{number[1]}/delete/"):
            assert session.get(base + "admin/bank/entry/" + path, timeout=30).status_code == 403
        form_token = session.cookies["csrftoken"]
        refused = session.post(
            f"{base}admin/bank/entry/{number[1]}/change/",
            data={"csrfmiddlewaretoken": form_token, "amount_csu": "1"},
            headers={"Referer": base},
            timeout=30,
        )
        assert refused.status_code == 403
        for model in (
            "account",
            "clusteruser",
            "membership",
            "allocation",
            "allocationuser",
            "job",
            "token",
        ):
            assert session.get(f"{base}admin/bank/{model}/", timeout=30).status_code == 200, model
        assert session.get(base + "static/admin/css/base.css", timeout=30).status_code == 200
    assert bank.verified()


def test_stopped_database_is_503_until_it_is_back(postgresql: PostgreSQL, tmp_path: Path) -> None:
    url = postgresql.create_database("outage")
    with RunningBank(url, data=tmp_path / "bank") as bank:
        account = bank.account()
        sent = job("1", account, "5.00")
        assert bank.put(sent).status_code == 200
        postgresql.stop()
        try:
            for _ in range(3):
                answer = bank.put({**sent, "amount": "6.00"})
                assert (answer.status_code, list(answer.json())) == (503, ["detail"])
                assert answer.headers["Retry-After"]
        finally:
            postgresql.start()
        for _ in range(12):
            assert bank.put({**sent, "amount": "6.00"}).status_code == 200
        assert str(bank.usage(account)) == "6.00"


def test_partitions_of_the_file_are_served(tmp_path: Path) -> None:
    data = tmp_path / "bank"
    data.mkdir(mode=0o700)
    (data / "bank.toml").write_text('[[partition]]\nname = "savio3"\nsu_per_core_hour = "1.25"\n')
    with RunningBank(data=data) as bank:
        (row,) = bank.get("partitions/")["results"]
    assert row == {
        "name": "savio3",
        "shared": False,
        "num_nodes": 0,
        "num_cores": 0,
        "su_per_core_hour": "1.25",
    }


@pytest.mark.parametrize("zone", ["America/Los_Angeles"])
def test_day_of_a_start_is_of_the_banks_time_zone(tmp_path: Path, zone: str) -> None:
    data = tmp_path / "bank"
    data.mkdir(mode=0o700)
    (data / "bank.toml").write_text(f'time_zone = "{zone}"\n')
    with RunningBank(data=data) as bank:
        account = bank.account(su="")
        bank.shell(
            "allocation", "add", account.name, "1", "--start", "2026-01-01", "--end", "2026-05-31"
        )
        bank.shell(
            "allocation", "add", account.name, "2", "--start", "2026-06-01", "--end", "2199-12-31"
        )
        for number, instant in (("1", "2026-06-01T06:59:59Z"), ("2", "2026-06-01T07:00:00Z")):
            sent = job(number, account, f"{number}.00", submitdate=instant, startdate=instant)
            assert bank.put(sent).status_code == 200
        assert [str(used) for used in bank.usages(account.name)] == ["1.00", "2.00"]
