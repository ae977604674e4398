# SPDX-License-Identifier: BSD-3-Clause
"""What a node reports, over HTTP to a bank of a few lines."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from slurm_banking import node_start
from slurm_banking.errors import BankingError, BankRefused, BankUnauthorized, BankUnavailable

ENVIRONMENT = {
    "BANKING_NOW": "1700000000",
    "SLURM_CLUSTER_NAME": "testcluster",
    "SLURM_JOB_ACCOUNT": "astro",
    "SLURM_JOB_CPUS_PER_NODE": "4(x2),2",
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_JOB_PARTITION": "normal",
    "SLURM_JOB_UID": "1001",
}


@dataclass
class TinyBank:
    url: str
    answer: Tuple[int, str, bytes] = (201, "application/json", b"")
    seen: List[Tuple[str, str, Dict[str, Any]]] = field(default_factory=list)


@pytest.fixture
def bank() -> Iterator[TinyBank]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            tiny.seen.append((self.path, self.headers["Authorization"], json.loads(body)))
            status, kind, content = tiny.answer
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content or body)))
            self.end_headers()
            self.wfile.write(content or body)

        def log_message(self, *ignored: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tiny = TinyBank(url=f"http://127.0.0.1:{server.server_port}/api")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tiny
    server.shutdown()
    server.server_close()
    thread.join()


def environment_for(tmp_path: Path, url: str, more: str = "") -> Dict[str, str]:
    token = tmp_path / "bank-node.token"
    token.write_text("Token " + "0123456789" * 4 + "\n")
    token.chmod(0o600)
    path = tmp_path / "bank-config.toml"
    path.write_text(f'[API]\nurl = "{url}"\nnode_token_file = "{token}"\n{more}')
    return {**ENVIRONMENT, "BANKING_CONFIG": str(path)}


def test_a_start_is_reported_with_its_date_and_without_a_cost(
    tmp_path: Path, bank: TinyBank
) -> None:
    node_start.report(environment_for(tmp_path, bank.url))
    [(path, authorization, body)] = bank.seen
    assert path == "/api/jobs/"
    assert authorization == "Token " + "0123456789" * 4
    assert body == {
        "jobslurmid": "77",
        "userid": "1001",
        "accountid": "astro",
        "startdate": "2023-11-14T22:13:20+00:00",
        "amount": "0.00",
        "jobstatus": "RUNNING",
        "partition": "normal",
        "num_cpus": 10,
        "num_alloc_nodes": 3,
    }


def test_a_start_time_that_slurm_tells_goes_before_the_prologs(
    tmp_path: Path, bank: TinyBank
) -> None:
    node_start.report({**environment_for(tmp_path, bank.url), "SLURM_JOB_START_TIME": "1699999990"})
    assert bank.seen[0][2]["startdate"] == "2023-11-14T22:13:10+00:00"


def test_a_restarted_run_has_an_id_of_its_own(tmp_path: Path, bank: TinyBank) -> None:
    node_start.report({**environment_for(tmp_path, bank.url), "SLURM_JOB_RESTART_COUNT": "2"})
    assert bank.seen[0][2]["jobslurmid"] == "77-r2"


def test_the_configured_id_is_used(tmp_path: Path, bank: TinyBank) -> None:
    more = 'job_id_format = "{cluster}-{job_id}-{restart}"\n'
    node_start.report(environment_for(tmp_path, bank.url, more))
    assert bank.seen[0][2]["jobslurmid"] == "testcluster-77-0"


def test_an_id_that_a_node_cannot_make_is_not_guessed(tmp_path: Path, bank: TinyBank) -> None:
    more = 'job_id_format = "{array_job_id}-{job_id}"\n'
    with pytest.raises(BankingError, match="array_job_id"):
        node_start.report(environment_for(tmp_path, bank.url, more))
    assert bank.seen == []


def test_a_start_that_the_bank_has_already_is_fine(tmp_path: Path, bank: TinyBank) -> None:
    body = b'{"jobslurmid":["job with this jobslurmid already exists."]}'
    bank.answer = (400, "application/json", body)
    node_start.report(environment_for(tmp_path, bank.url))


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (400, "application/json", BankRefused),
        (401, "application/json", BankUnauthorized),
        (403, "application/json", BankUnauthorized),
        (500, "text/html", BankUnavailable),
        (503, "text/html", BankUnavailable),
        (302, "text/html", BankUnavailable),
        (200, "text/html", BankUnavailable),
    ],
)
def test_any_other_answer_is_told_and_never_repeated(
    status: int, kind: str, error: type, tmp_path: Path, bank: TinyBank
) -> None:
    bank.answer = (status, kind, b"<h1>\nno </h1>")
    with pytest.raises(error, match=f"{status}: <h1> no </h1>"):
        node_start.report(environment_for(tmp_path, bank.url))
    assert len(bank.seen) == 1


def test_a_bank_that_is_away_is_one_line_and_the_child_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = environment_for(tmp_path, "http://127.0.0.1:1/api")
    with pytest.raises(BankUnavailable) as raised:
        node_start.report(environment)
    assert "\n" not in str(raised.value) and "0123456789" not in str(raised.value)
    for name in list(os.environ):
        if name.startswith(("SLURM_", "BANKING_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert node_start.main() == 0


def test_an_incomplete_environment_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BANKING_CONFIG", raising=False)
    assert node_start.main() == 0


@pytest.mark.parametrize(
    ("text", "cpus"), [("4", 4), ("4(x2),2", 10), ("", None), ("4x2", None), ("4(x2", None)]
)
def test_cpus_of_all_nodes(text: str, cpus: object) -> None:
    assert node_start.cpus_of(text) == cpus
