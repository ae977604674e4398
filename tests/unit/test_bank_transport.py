# SPDX-License-Identifier: BSD-3-Clause
"""Whatever answers at the bank's address: the right kind of error, one line, in a bounded time."""

from __future__ import annotations

import calendar
import http.client
import socket
import threading
import time
from contextlib import contextmanager
from typing import Callable, Iterator, List, Optional

import pytest
import requests

from slurm_banking.bank import Bank, transport
from slurm_banking.bank.transport import MAX_RETRY_AFTER_S
from slurm_banking.errors import BankError, BankRefused, BankUnauthorized, BankUnavailable
from slurm_banking.ledger import LedgerRun
from tests.unit.portal_model import HTML
from tests.unit.runs import a_ledger_run

TIMEOUT_S = 1.5


@contextmanager
def server(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """A peer on loopback that does one thing with every connection; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    stopping = threading.Event()
    threads: List[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(10)
            try:
                behave(connection)
            except OSError:
                pass

    def accept() -> None:
        while not stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                continue
            threads.append(threading.Thread(target=one, args=(connection,), daemon=True))
            threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api"
    finally:
        stopping.set()
        acceptor.join(2)
        listener.close()


def answer(
    status: str, body: str, kind: str = "application/json", *headers: str
) -> Callable[[socket.socket], None]:
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    content = ("\r\n".join(lines) + "\r\nConnection: close\r\n\r\n" + body).encode()

    def behave(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(content)

    return behave


def read_request(connection: socket.socket) -> bytes:
    content = b""
    while b"\r\n\r\n" not in content:
        chunk = connection.recv(65536)
        if not chunk:
            return content
        content += chunk
    head, _, body = content.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            while len(body) < int(line.split(b":")[1]):
                body += connection.recv(65536)
    return content


def bank_at(url: str, timeout_s: float = TIMEOUT_S) -> Bank:
    return Bank(url, "secret-key", timeout_s=timeout_s)


def error_of(url: str, run: LedgerRun) -> BankError:
    began = time.monotonic()
    with pytest.raises(BankError) as caught:
        bank_at(url).end(run)
    assert time.monotonic() - began < TIMEOUT_S + 0.7
    text = str(caught.value)
    assert "\n" not in text and "secret-key" not in text and len(text) < 500
    return caught.value


ENDED = a_ledger_run(bank_job_id="7")


@pytest.mark.parametrize(
    "behave",
    [
        answer("503 Service Unavailable", HTML, "text/html"),
        answer("500 Internal Server Error", HTML, "text/html"),
        answer("500 Internal Server Error", '{"detail": "Unexpected server error."}'),
        answer("502 Bad Gateway", "", "text/html"),
        answer("429 Too Many Requests", '{"detail": "throttled"}'),
        answer("301 Moved Permanently", "", "text/html", "Location: https://elsewhere/api/jobs/7/"),
        answer("302 Found", "", "text/html", "Location: /login"),
        answer("200 OK", HTML, "text/html"),
        answer("200 OK", '{"jobslurmid": 7'),
        answer("200 OK", '{"something": "else"}'),
        answer("200 OK", "[" * 100_000),
        answer("200 OK", '{"jobslurmid": "7", "userid": "1001", "accountid": "fc_alpha", "amount": "99.00"}'),
        answer("204 No Content", "", "text/html"),
        answer("400 Bad Request", HTML, "text/html"),
        answer("404 Not Found", HTML, "text/html"),
    ],
    ids=lambda _: "answer",
)  # fmt: skip
def test_what_is_not_the_banks_word_is_an_outage(behave: Callable[[socket.socket], None]) -> None:
    with server(behave) as url:
        assert isinstance(error_of(url, ENDED), BankUnavailable)


RETRY = "Retry-After: 120"
DATED = "Retry-After: Fri, 20 Nov 2026 12:02:00 GMT"
DATE = "Date: Fri, 20 Nov 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("status", "headers", "retry_after_s"),
    [
        ("429 Too Many Requests", [RETRY], 120),
        ("503 Service Unavailable", [RETRY], 120),
        ("503 Service Unavailable", [DATED, DATE], 120),
        ("503 Service Unavailable", ["Retry-After: Fri, 20 Nov 2026 11:59:00 GMT", DATE], 0),
        ("503 Service Unavailable", ["Retry-After: 99999999999999999999"], MAX_RETRY_AFTER_S),
        ("503 Service Unavailable", ["Retry-After: -5"], None),
        ("503 Service Unavailable", ["Retry-After: soon"], None),
        ("503 Service Unavailable", ["Retry-After: Fri, 99 Nov 999999 12:02:00 GMT"], None),
        ("503 Service Unavailable", [], None),
        ("500 Internal Server Error", [RETRY], None),
        ("502 Bad Gateway", [RETRY], None),
    ],
)
def test_for_how_long_the_bank_asks_to_be_left_alone_is_understood(
    status: str, headers: List[str], retry_after_s: Optional[float]
) -> None:
    with server(answer(status, HTML, "text/html", *headers)) as url:
        error = error_of(url, ENDED)
    assert isinstance(error, BankUnavailable)
    assert error.retry_after_s == retry_after_s


def test_a_date_to_come_back_at_is_read_by_our_clock_if_the_bank_does_not_tell_its_own() -> None:
    at = calendar.timegm((2026, 11, 20, 12, 1, 30))
    with server(answer("429 Too Many Requests", "", "text/html", DATED)) as url:
        bank = Bank(url, "secret-key", timeout_s=TIMEOUT_S, clock=lambda: at)
        with pytest.raises(BankUnavailable) as caught:
            bank.end(ENDED)
    assert caught.value.retry_after_s == 30


@pytest.mark.parametrize(
    ("behave", "answered"),
    [
        (answer("500 Internal Server Error", HTML, "text/html"), True),
        (answer("200 OK", '{"something": "else"}'), True),
        (answer("200 OK", '{"jobslurmid": "7", "userid": "1001", "accountid": "fc_alpha", "amount": "99.00"}'), True),
        (answer("404 Not Found", HTML, "text/html"), True),
        (answer("429 Too Many Requests", HTML, "text/html"), False),
        (answer("502 Bad Gateway", HTML, "text/html"), False),
        (answer("503 Service Unavailable", HTML, "text/html"), False),
        (answer("504 Gateway Timeout", HTML, "text/html"), False),
        (answer("301 Moved Permanently", "", "text/html", "Location: /login"), False),
    ],
    ids=lambda _: "answer",
)  # fmt: skip
def test_an_outage_of_the_whole_bank_is_told_from_an_answer_that_makes_no_sense(
    behave: Callable[[socket.socket], None], answered: bool
) -> None:
    with server(behave) as url:
        error = error_of(url, ENDED)
    assert isinstance(error, BankUnavailable)
    assert error.answered is answered


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
@pytest.mark.parametrize("body", ['{"detail": "Invalid token."}', HTML])
def test_a_refused_token_is_told_apart(status: str, body: str) -> None:
    kind = "application/json" if body.startswith("{") else "text/html"
    with server(answer(status, body, kind)) as url:
        assert isinstance(error_of(url, ENDED), BankUnauthorized)


@pytest.mark.parametrize(
    ("body", "heals"),
    [
        ('{"non_field_errors": ["User alice is not a member of account fc_alpha."]}', True),
        ('{"non_field_errors": ["User alice is not an active member of the compute allocation for account a."]}', True),
        ('{"non_field_errors": ["User alice is not an active member of account fc_alpha."]}', True),
        ('{"non_field_errors": ["Account fc_alpha has no active compute allocation."]}', True),
        ('["Account fc_alpha has no active compute allocation."]', True),
        ('{"userid": ["UserProfile for cluster_uid 1001 does not exist."]}', True),
        ('{"accountid": ["Object with name=fc_alpha does not exist."]}', True),
        ('{"partition": ["Ensure this field has no more than 50 characters."]}', False),
        ('{"userid": ["unknown"], "partition": ["too long"]}', False),
        ('{"nodes": [{}, {"name": ["Ensure this field has no more than 30 characters."]}]}', False),
        ('{"non_field_errors": ["Job end date 1 occurs before Job start date 2."]}', False),
        ('{"non_field_errors": "of a kind that nobody documented"}', False),
        ('"a bare text"', False),
        ("{}", False),
    ],
)  # fmt: skip
def test_a_refusal_heals_when_the_banks_office_may_mend_it(body: str, heals: bool) -> None:
    with server(answer("400 Bad Request", body)) as url:
        error = error_of(url, ENDED)
    assert isinstance(error, BankRefused)
    assert error.heals is heals


@pytest.mark.parametrize("status", ["405 Method Not Allowed", "415 Unsupported Media Type"])
def test_another_refusal_in_json_is_for_good(status: str) -> None:
    with server(answer(status, '{"detail": "no"}')) as url:
        error = error_of(url, ENDED)
    assert isinstance(error, BankRefused) and not error.heals


def trickle_headers(connection: socket.socket) -> None:
    read_request(connection)
    for byte in b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + b"X: y\r\n" * 100:
        connection.sendall(bytes([byte]))
        time.sleep(0.2)


def trickle_body(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    )
    for _ in range(100):
        connection.sendall(b" ")
        time.sleep(0.2)


def say_nothing(connection: socket.socket) -> None:
    read_request(connection)
    time.sleep(5)


def reset(connection: socket.socket) -> None:
    read_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def close_at_once(connection: socket.socket) -> None:
    pass


def half_a_body(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"a"'
    )


def endless_body(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    for _ in range(1000):
        connection.sendall(b"[" * 65536)


def not_http(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


@pytest.mark.parametrize(
    "behave",
    [trickle_headers, trickle_body, say_nothing, reset, close_at_once, half_a_body, endless_body, not_http],
)  # fmt: skip
def test_no_peer_holds_a_caller_beyond_the_time_limit(
    behave: Callable[[socket.socket], None],
) -> None:
    with server(behave) as url:
        assert isinstance(error_of(url, ENDED), BankUnavailable)


def hang_up(connection: socket.socket) -> None:
    read_request(connection)


def test_a_bank_that_hangs_up_is_told_so() -> None:
    """Not what urllib3 tried first, which failed for a reason of its own."""
    with server(hang_up) as url:
        error = error_of(url, ENDED)
    assert "closed connection without response" in str(error), error


def test_what_a_library_tried_first_and_put_aside_is_no_reason() -> None:
    """urllib3 1.26 asks http.client for more than it has, and then anew: the first failure stays behind the second."""
    try:
        try:
            raise TypeError("getresponse() got an unexpected keyword argument")
        except TypeError:
            raise http.client.RemoteDisconnected("Remote end closed connection") from None
    except http.client.RemoteDisconnected as error:
        told = transport._why(requests.ConnectionError(error))
    assert told == "Remote end closed connection"


def test_nobody_there_is_an_outage() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/api"
    error = error_of(url, ENDED)
    assert isinstance(error, BankUnavailable)
    assert "Connection refused" in str(error)


def test_the_token_goes_to_the_bank_alone_and_the_environment_has_no_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: List[bytes] = []

    def behave(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n")

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with server(behave) as url:
        error_of(url, ENDED)
    assert len(seen) == 1
    assert b"Authorization: Token secret-key" in seen[0]


def test_an_account_that_cannot_be_in_a_url_is_refused_not_sent() -> None:
    with server(answer("404 Not Found", HTML, "text/html")) as url:
        with pytest.raises(BankRefused):
            bank_at(url).funds("..", 1001)
