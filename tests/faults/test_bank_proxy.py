# SPDX-License-Identifier: BSD-3-Clause
"""The proxy between relay and bank does each thing that it is asked to do, and nothing else."""

from __future__ import annotations

import http.client
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import requests

from mybrc_client.api.jobs import update_job
from mybrc_client.models import Job
from slurm_banking.bank.transport import Transport
from slurm_banking.errors import BankRefused, BankUnauthorized, BankUnavailable
from tests.faults.bank_proxy import ANSWERED_HERE, FAULTS, BankProxy

BODY = json.dumps({"jobslurmid": "5", "userid": "1", "accountid": "fc_a", "amount": "1.00"})


class Upstream(http.server.ThreadingHTTPServer):
    """Answers every request with what it was sent, and keeps what it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[str, str, bytes]] = []
        self.connections = 0


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Upstream

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.seen.append((self.command, self.path, body))
        answer = body or b'{"ok": true}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        if self.path.endswith("/chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (answer[:3], answer[3:]):
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = _any

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def bank() -> Iterator[Upstream]:
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def proxy(bank: Upstream) -> Iterator[BankProxy]:
    with BankProxy(bank.server_address[1], seed=1) as running:
        yield running


def url(proxy: BankProxy, path: str = "/api/jobs/5/") -> str:
    return f"http://127.0.0.1:{proxy.port}{path}"


def put(proxy: BankProxy, timeout_s: float = 2, path: str = "/api/jobs/5/") -> requests.Response:
    return requests.put(url(proxy, path), data=BODY, timeout=timeout_s, allow_redirects=False)


def test_pass_hands_on_what_comes_and_keeps_connections(proxy: BankProxy, bank: Upstream) -> None:
    with requests.Session() as session:
        for number in range(20):
            sent = b"x" * (number * 5000)
            answer = session.post(url(proxy), data=sent, timeout=5)
            assert answer.status_code == 200
            assert answer.content == (sent or b'{"ok": true}')
        assert session.get(url(proxy, "/api/chunked"), timeout=5).json() == {"ok": True}
    assert bank.connections == 1
    assert len(bank.seen) == 21
    assert proxy.counts == {"pass": 21}


def test_each_of_many_requests_on_several_connections_is_answered(proxy: BankProxy) -> None:
    """As many connections as the relay has; whether it is fast enough is no test's business."""
    done = []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        for _ in range(75):
            connection.request("PUT", "/api/jobs/5/", BODY)
            done.append(connection.getresponse().read())
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 300


def test_refuse_ends_connections_and_takes_no_new_ones_until_its_time_is_up(
    proxy: BankProxy, bank: Upstream
) -> None:
    kept = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=2)
    kept.request("GET", "/api/")
    assert kept.getresponse().read()
    proxy.set("refuse", seconds=0.3)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), 1)
    kept.auto_open = 0
    with pytest.raises((OSError, http.client.HTTPException)):
        kept.request("GET", "/api/")
        kept.getresponse()
    time.sleep(0.5)
    assert put(proxy).status_code == 200, "the same port listens again by itself"
    proxy.set("refuse")
    with pytest.raises(requests.ConnectionError):
        put(proxy)
    proxy.clear()
    assert put(proxy).status_code == 200
    assert len(bank.seen) == 3


def test_hang_says_nothing_and_the_bank_sees_nothing(proxy: BankProxy, bank: Upstream) -> None:
    proxy.set("hang")
    began = time.monotonic()
    with pytest.raises(requests.ReadTimeout):
        put(proxy, timeout_s=0.4)
    assert time.monotonic() - began >= 0.4
    assert not bank.seen
    assert proxy.counts == {"hang": 1}


def test_what_hangs_is_dropped_when_the_fault_is_over(proxy: BankProxy) -> None:
    proxy.set("hang", seconds=0.3)
    began = time.monotonic()
    with pytest.raises(requests.ConnectionError):
        put(proxy, timeout_s=10)
    assert 0.2 < time.monotonic() - began < 8


def test_trickle_sends_the_answer_byte_by_byte(proxy: BankProxy, bank: Upstream) -> None:
    proxy.set("trickle")
    with socket.create_connection(("127.0.0.1", proxy.port), 2) as client:
        client.sendall(b"GET /api/ HTTP/1.1\r\nHost: x\r\n\r\n")
        began = time.monotonic()
        got = b""
        while time.monotonic() - began < 1.5:
            client.settimeout(max(0.05, began + 1.5 - time.monotonic()))
            try:
                got += client.recv(1000)
            except TimeoutError:
                break
    assert got == b"HT"
    assert len(bank.seen) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 409, 429, 500])
def test_a_status_is_answered_in_json_and_the_connection_goes_on(
    proxy: BankProxy, bank: Upstream, status: int
) -> None:
    proxy.set(f"status_{status}")
    with requests.Session() as session:
        for _ in range(2):
            answer = session.put(url(proxy), data=BODY, timeout=2)
            assert answer.status_code == status
            assert answer.json()["detail"]
            assert answer.headers.get("Retry-After") == ("1" if status == 429 else None)
        proxy.clear()
        assert session.put(url(proxy), data=BODY, timeout=2).status_code == 200
    assert len(bank.seen) == 1


def test_html_503(proxy: BankProxy) -> None:
    proxy.set("html_503")
    answer = put(proxy)
    assert answer.status_code == 503
    assert answer.headers["Content-Type"].startswith("text/html")


def test_a_redirect_leads_to_a_page_that_would_say_200(proxy: BankProxy, bank: Upstream) -> None:
    proxy.set("redirect")
    assert put(proxy).status_code == 301
    assert proxy.counts["redirect_followed"] == 0
    followed = requests.get(url(proxy), timeout=2)
    assert followed.status_code == 200 and followed.text.startswith("<!DOCTYPE html>")
    assert proxy.counts["redirect_followed"] == 1
    assert not bank.seen


def test_truncated_promises_more_than_it_sends(proxy: BankProxy, bank: Upstream) -> None:
    proxy.set("truncated")
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=2)
    connection.request("PUT", "/api/jobs/5/", BODY)
    with pytest.raises(http.client.IncompleteRead) as caught:
        connection.getresponse().read()
    assert caught.value.partial == BODY.encode()[: len(BODY) // 2]
    assert len(bank.seen) == 1


def test_lies_are_json_with_200_and_never_about_the_job_that_was_asked(
    proxy: BankProxy, bank: Upstream
) -> None:
    proxy.set("lying")
    told = []
    for _ in range(40):
        answer = put(proxy)
        assert answer.status_code == 200
        told.append(answer.json())
    others = [lie for lie in told if isinstance(lie, dict) and "jobslurmid" in lie]
    assert others and len(others) < len(told)
    assert all(lie["jobslurmid"] != "5" and lie["amount"] == "1.00" for lie in others)
    assert 0 < len(bank.seen) < 40, "some were told to the bank all the same"


def test_lose_answer_reaches_the_bank_and_not_the_client(proxy: BankProxy, bank: Upstream) -> None:
    proxy.set("lose_answer")
    with pytest.raises(requests.ConnectionError):
        put(proxy)
    assert bank.seen == [("PUT", "/api/jobs/5/", BODY.encode())]


def test_garbage_is_no_http(proxy: BankProxy, bank: Upstream) -> None:
    proxy.set("garbage")
    with pytest.raises(requests.ConnectionError):
        put(proxy)
    assert not bank.seen


def test_a_bank_that_is_gone_is_no_answer_and_its_return_is_found(bank: Upstream) -> None:
    with BankProxy(1, seed=1) as proxy:
        with pytest.raises(requests.ConnectionError):
            put(proxy)
        proxy.target_port = bank.server_address[1]
        assert put(proxy).status_code == 200


def test_a_share_is_hit_by_chance_that_the_seed_decides(bank: Upstream) -> None:
    found = []
    for seed in (3, 3, 4):
        with BankProxy(bank.server_address[1], seed=seed) as proxy:
            proxy.set("status_500", share=0.4)
            with requests.Session() as session:
                found.append([session.get(url(proxy), timeout=2).status_code for _ in range(60)])
            assert proxy.counts["status_500"] == found[-1].count(500)
            assert proxy.counts["pass"] == found[-1].count(200)
    assert found[0] == found[1] != found[2]
    assert 10 < found[0].count(500) < 40


def test_a_fault_ends_with_its_time(proxy: BankProxy) -> None:
    proxy.set("status_500", seconds=0.2)
    assert (proxy.fault, put(proxy).status_code) == ("status_500", 500)
    time.sleep(0.25)
    assert (proxy.fault, put(proxy).status_code) == ("pass", 200)


def test_what_is_asked_wrongly_is_named(proxy: BankProxy) -> None:
    with pytest.raises(ValueError, match="'hangs'.*expected one of pass, refuse"):
        proxy.set("hangs")
    with pytest.raises(ValueError, match="share 2.*0 to 1"):
        proxy.set("hang", share=2)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "pass"])
def test_no_fault_is_taken_for_an_acknowledgement_by_our_client(
    proxy: BankProxy, fault: str
) -> None:
    """Whatever goes wrong, a call of the relay's transport ends in one of its three errors, in its time."""
    transport = Transport(f"http://127.0.0.1:{proxy.port}/api", "key", timeout_s=1)
    job = Job(jobslurmid="5", userid="1", accountid="fc_a", amount="1.00")
    proxy.set(fault)
    began = time.monotonic()
    for _ in range(3 if fault == "lying" else 1):
        try:
            answer = transport.call(update_job.sync_detailed, Job, "5", body=job)
        except (BankUnavailable, BankUnauthorized, BankRefused):
            continue
        assert fault == "lying" and answer.jobslurmid != "5", "its caller can tell"
    assert time.monotonic() - began < 20
    assert fault not in ANSWERED_HERE or proxy.counts["pass"] == 0
    transport.close()
