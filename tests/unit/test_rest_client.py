# SPDX-License-Identifier: BSD-3-Clause
"""The client of slurmrestd against a server that misbehaves, over TCP and a unix socket; the real one is in tests/live."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import socketserver
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm_banking.config import SlurmrestdConfig, load
from slurm_banking.errors import BankingError, ConfigError, SlurmUnavailable
from slurm_banking.slurm import jwt
from slurm_banking.slurm.rest import (
    RestError,
    RestRefused,
    RestUnauthorized,
    SlurmrestdClient,
    from_config,
)
from slurm_banking.slurm.rest.transport import parse_address
from slurm_banking.slurm.slurmdb_rest import SlurmdbRest
from slurm_banking.slurm.sources import SOURCES, make_source

EXAMPLE = Path(__file__).resolve().parents[2] / "bank-config.toml.example"
PING = {"pings": [{"hostname": "ctl", "ping": "UP", "mode": "primary"}], "errors": []}


class Server:
    """Answers each path as told; keeps what it was asked."""

    def __init__(self, server: Any, url: str) -> None:
        self.url = url
        self.answers: dict[str, Callable[[Any], None]] = {}
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self._server = server

    def say(self, path: str, body: Any, status: int = 200, kind: str = "application/json") -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()

        def answer(handler: Any) -> None:
            handler.send_response(status)
            handler.send_header("Content-Type", kind)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)

        self.answers[path] = answer

    def do(self, path: str, raw: Callable[[Any], None]) -> None:
        self.answers[path] = raw

    def headers(self) -> dict[str, str]:
        return self.asked[-1][2]


@pytest.fixture(params=["tcp", "unix"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            headers = {name.lower(): value for name, value in self.headers.items()}
            made.asked.append((self.command, self.path, headers, body))
            try:
                made.answers[self.path.split("?")[0]](self)
            except OSError:
                pass  # the client has gone

        do_GET = do_POST = do_DELETE = answer

        def address_string(self) -> str:
            return "client"

        def log_message(self, *_: object) -> None: ...

    class Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    if request.param == "unix":
        path = str(tmp_path / "socket")
        running: Any = Unix(path, Handler)
        made = Server(running, f"unix://{path}")
    else:
        running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.daemon_threads = True
        made = Server(running, f"http://127.0.0.1:{running.server_address[1]}")
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    running.shutdown()
    running.server_close()
    thread.join(5)


def token(user: str = "sb-alice", ends_in_s: int = 600) -> str:
    now = int(time.time())
    claims = {"sun": user, "iat": now - 1, "exp": now + ends_in_s}
    header = {"alg": "HS256", "typ": "JWT"}

    def encoded(part: bytes) -> str:
        import base64

        return base64.urlsafe_b64encode(part).decode().rstrip("=")

    return ".".join(
        [encoded(json.dumps(header).encode()), encoded(json.dumps(claims).encode()), "c2ln"]
    )


def client(server: Server, **options: Any) -> SlurmrestdClient:
    options.setdefault("token", token())
    options.setdefault("user", "sb-alice")
    options.setdefault("api_version", "v0.0.38")
    options.setdefault("timeout_s", 5.0)
    return SlurmrestdClient(server.url, **options)


def test_a_ping_is_answered_and_the_token_travels_in_its_headers(server: Server) -> None:
    server.say("/slurm/v0.0.38/ping", PING)
    sent = token()
    assert [ping.up for ping in client(server, token=sent).ping()] == [True]
    assert server.headers()["x-slurm-user-name"] == "sb-alice"
    assert server.headers()["x-slurm-user-token"] == sent
    assert "authorization" not in server.headers()


def test_the_token_travels_in_one_header_whatever_the_version(server: Server) -> None:
    """Slurm 24.11 answers 401 to a token that comes as X-SLURM-USER-TOKEN and as a bearer's."""
    server.say("/slurm/v0.0.42/ping", PING)
    sent = token()
    client(server, token=sent, api_version="v0.0.42").ping()
    assert server.headers()["x-slurm-user-token"] == sent
    assert "authorization" not in server.headers()


def test_without_a_token_none_is_sent(server: Server) -> None:
    server.say("/slurm/v0.0.38/ping", PING)
    client(server, token=None, user=None).ping()
    assert not {"x-slurm-user-name", "x-slurm-user-token"} & set(server.headers())


def spec(*paths: str) -> dict[str, Any]:
    return {"openapi": "3.0.3", "paths": {path: {} for path in paths}}


def test_the_newest_version_that_both_know_is_found_for_each_half(server: Server) -> None:
    server.say(
        "/openapi",
        spec(
            *("/slurm/v0.0.36/ping", "/slurm/v0.0.38/ping/", "/slurm/v0.0.99/ping"),
            *("/slurmdb/v0.0.37/jobs", "/slurmdb/v0.0.9/jobs", "/openapi", "/util/v0.0.44/x"),
        ),
    )
    server.say("/slurm/v0.0.38/ping", PING)
    asking = client(server, api_version="auto")
    assert (asking.version(), asking.version("slurmdb")) == ("v0.0.38", "v0.0.37")
    asking.ping()
    assert [asked[1] for asked in server.asked].count("/openapi") == 1


def test_a_half_that_is_not_loaded_is_named(server: Server) -> None:
    server.say("/openapi", spec("/slurm/v0.0.38/ping"))
    with pytest.raises(RestError, match="no /slurmdb/ paths.*openapi/dbv0.0.NN"):
        client(server, api_version="auto").get("slurmdb/jobs")


def test_a_server_of_unknown_versions_alone_is_named(server: Server) -> None:
    server.say("/openapi", spec("/slurm/v0.0.47/ping", "/slurm/v0.0.35/ping"))
    with pytest.raises(RestError, match="none of the versions v0.0.36 to v0.0.46"):
        client(server, api_version="auto").ping()


@pytest.mark.parametrize("version", ["v0.0.35", "v0.0.47", "0.0.38", "newest", ""])
def test_a_version_that_is_not_known_is_refused_at_once(version: str) -> None:
    with pytest.raises(ValueError, match="expected auto, or v0.0.36 to v0.0.46"):
        SlurmrestdClient("http://127.0.0.1:1", api_version=version)


@pytest.mark.parametrize(
    "url",
    ["", "localhost:6820", "ftp://x/", "unix://host/x", "unix:", "http://", "unix:///" + "x" * 200],
)
def test_an_address_that_cannot_be_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="expected|at most 107"):
        parse_address(url)


UNSPECIFIED = {"errors": [{"error_number": -1, "error": "Unspecified error", "source": "x"}]}


def test_an_unspecified_error_names_what_is_wrong_with_the_token(server: Server) -> None:
    server.say("/slurm/v0.0.38/ping", UNSPECIFIED, 500)
    with pytest.raises(RestUnauthorized, match="500 Unspecified error.*it has ended"):
        client(server, token=token(ends_in_s=-60)).ping()
    with pytest.raises(RestUnauthorized, match="sb-bob"):
        client(server, token=token("sb-bob")).ping()
    with pytest.raises(RestUnauthorized, match="signed with another key.*token verify"):
        client(server).ping()
    with pytest.raises(RestUnauthorized, match="none was sent"):
        client(server, token=None, user=None).ping()
    with pytest.raises(RestUnauthorized, match="what was sent as token is none"):
        client(server, token="a.b.c").ping()


AUTHENTICATION = {"errors": [{"error_number": 1007, "error": "Protocol authentication error"}]}


def test_newer_slurms_own_number_for_a_token_is_one(server: Server) -> None:
    server.say("/slurm/v0.0.42/jobs", AUTHENTICATION, 511)
    with pytest.raises(RestUnauthorized, match=r"authentication error \(1007\).*it has ended"):
        client(server, token=token(ends_in_s=-60), api_version="v0.0.42").jobs()
    refused = {"error_number": 7000, "error": "Unable to connect to database", "description": "Failed to open slurmdbd connection, authentication error"}  # fmt: skip
    server.say("/slurmdb/v0.0.42/qos", {"errors": [refused]}, 502)
    with pytest.raises(RestUnauthorized, match="authentication error.*it has ended"):
        client(server, token=token(ends_in_s=-60), api_version="v0.0.42").get("slurmdb/qos")


def test_a_slurmctld_that_takes_no_such_token_is_not_called_down(server: Server) -> None:
    """Slurm 24.11 answers 200 to a ping, with nobody up, whatever the token is."""
    down = {"pings": [{"hostname": "c", "pinged": "DOWN", "responding": False, "mode": "primary"}]}
    server.say("/slurm/v0.0.42/ping", down)
    server.say("/slurm/v0.0.42/diag", AUTHENTICATION, 511)
    with pytest.raises(RestUnauthorized, match="it has ended"):
        client(server, token=token(ends_in_s=-60), api_version="v0.0.42").ping()
    away = {"errors": [{"error_number": 1800, "error": "Unable to contact slurm controller"}]}
    server.say("/slurm/v0.0.42/diag", away, 502)
    assert [ping.up for ping in client(server, api_version="v0.0.42").ping()] == [False]


def test_roots_token_is_not_suspected_for_being_sent_for_another(server: Server) -> None:
    server.say("/slurm/v0.0.38/ping", UNSPECIFIED, 500)
    with pytest.raises(RestUnauthorized, match="signed with another key"):
        client(server, token=token("root"), user="sb-bob").ping()


def test_a_401_says_what_to_configure(server: Server) -> None:
    server.say("/slurm/v0.0.38/ping", b"Authentication failure", 401, "text/plain")
    with pytest.raises(RestUnauthorized, match="401 Authentication failure.*without a user's name"):
        client(server, user=None).ping()
    with pytest.raises(RestUnauthorized, match="no token was sent: set token_file"):
        client(server, token=None).ping()


class Renewed:
    """A source of tokens, whose next one is better."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)
        self.forgotten = 0

    def token(self) -> str:
        if not self.tokens:
            raise jwt.TokenError("token in /x: it has ended")
        return self.tokens[0]

    def user_name(self) -> str:
        return "sb-alice"

    def forget(self) -> None:
        self.forgotten += 1
        if len(self.tokens) > 1:
            self.tokens.pop(0)


def test_a_refused_token_is_asked_for_again_once(server: Server) -> None:
    good = token(ends_in_s=900)

    def answer(handler: Any) -> None:
        body = PING if server.headers()["x-slurm-user-token"] == good else UNSPECIFIED
        server.say("/again", body, 200 if body is PING else 500)
        server.answers["/again"](handler)

    server.do("/slurm/v0.0.38/ping", answer)
    source = Renewed(token(), good)
    assert client(server, token=source, user=None).ping()[0].up
    assert source.forgotten == 1 and len(server.asked) == 2
    with pytest.raises(RestUnauthorized):
        client(server, token=Renewed(token()), user=None).ping()
    assert len(server.asked) == 3, "the same token is not tried twice"


def test_a_submission_is_never_sent_twice(server: Server) -> None:
    server.say("/slurm/v0.0.38/job/submit", UNSPECIFIED, 500)
    body = {"job": {"name": "x", "environment": {"PATH": "/bin"}}, "script": "#!/bin/sh"}
    with pytest.raises(RestUnauthorized):
        client(server, token=Renewed(token(), token(ends_in_s=900)), user=None).submit(body)
    assert [asked[0] for asked in server.asked].count("POST") == 1


def test_a_plugins_refusal_without_a_number_is_told_from_a_bad_token(server: Server) -> None:
    """Both are -1: with a token that is good for a question, it is the former."""
    server.say("/slurm/v0.0.38/job/submit", UNSPECIFIED, 500)
    server.say("/slurm/v0.0.38/diag", {"statistics": {}})
    with pytest.raises(RestRefused, match="mostly by a job_submit plugin") as refusal:
        client(server).submit({"job": {}, "script": "#!/bin/sh"})
    assert refusal.value.code == -1
    server.say("/slurm/v0.0.38/diag", UNSPECIFIED, 500)
    with pytest.raises(RestUnauthorized):
        client(server).submit({"job": {}, "script": "#!/bin/sh"})


def test_a_source_without_a_token_is_told_in_its_own_words(server: Server) -> None:
    with pytest.raises(RestUnauthorized, match="^token in /x: it has ended$"):
        client(server, token=Renewed(), user=None).ping()
    assert not server.asked


def test_a_job_id_makes_a_submission_one_and_its_errors_come_along(server: Server) -> None:
    answer = {"job_id": 7, "errors": [{"error_code": 2068, "error": "Node is down"}]}
    server.say("/slurm/v0.0.38/job/submit", answer)
    told = client(server).submit({"job": {"environment": ["A=b"]}, "script": "#!/bin/sh"})
    assert told.job_id == 7 and str(told.problems[0]) == "Node is down (2068)"
    assert json.loads(server.asked[0][3])["job"]["environment"] == {"A": "b"}


def test_a_refused_submission_has_slurms_number(server: Server) -> None:
    answer = {"errors": [{"error_code": 2050, "error": "Job violates accounting/QOS policy"}]}
    server.say("/slurm/v0.0.38/job/submit", answer, 500)
    with pytest.raises(RestRefused, match="Job violates accounting/QOS policy") as refusal:
        client(server).submit({"job": {}, "script": "#!/bin/sh"})
    assert (refusal.value.code, refusal.value.status) == (2050, 500)


def test_a_cancellation_that_newer_slurms_refuse_beside_no_errors_is_refused(
    server: Server,
) -> None:
    def status(code: int, word: str) -> dict[str, Any]:
        error = {"string": word, "code": code, "message": ""}
        return {"status": [{"error": error, "step_id": "7", "job_id": {"set": True, "number": 7}}], "errors": []}  # fmt: skip

    asked = client(server, api_version="v0.0.42")
    server.say("/slurm/v0.0.42/job/7", status(2002, "Access/permission denied"))
    with pytest.raises(RestRefused, match=r"permission denied \(2002\)") as refusal:
        asked.cancel(7)
    assert refusal.value.code == 2002
    server.say("/slurm/v0.0.42/job/7", status(2021, "Job/step already completing or completed"))
    asked.cancel(7)
    server.say("/slurm/v0.0.42/job/7", {"status": [], "errors": []})
    asked.cancel(7)


def test_a_job_that_is_not_known_is_no_job(server: Server) -> None:
    gone = {"errors": [{"error_number": 2017, "error": "Invalid job id specified"}]}
    server.say("/slurm/v0.0.38/job/7", gone, 500)
    assert client(server).job(7) == ()


def test_nothing_found_is_an_answer_and_an_error_beside_no_jobs_is_none(server: Server) -> None:
    server.say("/slurmdb/v0.0.38/jobs", {"jobs": [], "errors": [{"error_number": 9003}]})
    assert SlurmdbRest("rig", client(server)).read_jobs([1]) == {}
    away = {"jobs": [], "errors": [{"error_number": 7000, "error": "Unable to connect"}]}
    server.say("/slurmdb/v0.0.38/jobs", away)
    with pytest.raises(SlurmUnavailable, match=r"Unable to connect \(7000\)"):
        SlurmdbRest("rig", client(server)).read_jobs([1])


def test_a_window_is_asked_for_by_time_and_what_was_never_eligible_by_state(server: Server) -> None:
    server.say("/slurmdb/v0.0.38/jobs", {"jobs": [], "errors": []})
    SlurmdbRest("rig", client(server)).read_ended_runs(1795261000, 1795261500)
    times = "start_time=uts1795261000&end_time=uts1795261500"
    path = "/slurmdb/v0.0.38/jobs?"
    assert [asked[1] for asked in server.asked] == [
        f"{path}{times}&skip_steps=true",
        f"{path}{times}&state=CANCELLED%2CDEADLINE%2CFAILED&skip_steps=true",
    ]


def test_newer_versions_are_asked_for_all_runs_with_their_own_times(server: Server) -> None:
    """Seen with 24.11: one flag in the query switches off those that are on without any."""
    server.say("/slurmdb/v0.0.42/jobs", {"jobs": [], "errors": []})
    SlurmdbRest("rig", client(server, api_version="v0.0.42")).read_jobs([1, 2])
    flags = (
        "skip_steps=true&show_duplicates=true&disable_truncate_usage_time=true&scheduler_unset=true"
    )
    assert [asked[1] for asked in server.asked] == [f"/slurmdb/v0.0.42/jobs?step=1&step=2&{flags}"]


@pytest.mark.parametrize(
    ("body", "status", "kind", "said"),
    [
        (b"<html>hello</html>", 200, "text/html", "200 with 18 bytes of text/html: is the url"),
        (b"<html>hello</html>", 502, "text/html", "502 with 18 bytes of text/html"),
        (b"{", 200, "application/json", "200 with 1 bytes of application/json"),
        (b"[]", 200, "application/json", "200 with 2 bytes of application/json"),
        (b"", 200, "application/json", "200 with 0 bytes"),
        (b"nothing there", 404, "text/plain", "404 .*nothing there.*api_version"),
        (b"", 302, "text/html", "302 redirect"),
        (b'{"errors": []}', 500, "application/json", "500 without a reason"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    server: Server, body: bytes, status: int, kind: str, said: str
) -> None:
    server.say("/slurm/v0.0.38/ping", body, status, kind)
    with pytest.raises(RestError, match=said) as failure:
        client(server).ping()
    assert "\n" not in str(failure.value) and str(failure.value).startswith(server.url)


def test_an_answer_that_ends_early_is_none(server: Server) -> None:
    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"pings": []}')
        handler.close_connection = True

    server.do("/slurm/v0.0.38/ping", answer)
    with pytest.raises(RestError, match="ended after|IncompleteRead|closed"):
        client(server).ping()


def test_an_answer_that_is_too_large_is_given_up(server: Server) -> None:
    server.say("/slurmdb/v0.0.38/jobs", {"jobs": ["x" * 5000]})
    with pytest.raises(RestError, match="more than 1000 bytes"):
        client(server).get_text("slurmdb/jobs", query={}, timeout_s=5, max_bytes=1000)


@pytest.mark.parametrize("where", ["before the status", "in the headers", "in the body"])
def test_an_answer_that_drips_ends_with_its_time(server: Server, where: str) -> None:
    def drip(handler: Any) -> None:
        if where != "before the status":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        if where == "in the body":
            handler.wfile.write(b"Content-Type: application/json\r\nContent-Length: 999\r\n\r\n")
        for _ in range(100):
            if where != "before the status":
                handler.wfile.write(b"x")
            time.sleep(0.1)

    server.do("/slurm/v0.0.38/ping", drip)
    begun = time.monotonic()
    with pytest.raises(RestError, match="no complete answer within 0.6 s"):
        client(server, timeout_s=0.6).ping()
    assert time.monotonic() - begun < 5


def test_connections_are_not_used_twice(server: Server) -> None:
    """slurmrestd of 22.05 closes one some time after it was asked to, and does not say so: the next question would be lost."""
    connections: list[Any] = []

    def answer(handler: Any) -> None:
        connections.append(handler)  # one for each connection
        handler.protocol_version = "HTTP/1.1"
        server.say("/once", PING)
        server.answers["/once"](handler)
        handler.close_connection = False

    server.do("/slurm/v0.0.38/ping", answer)
    asking = client(server)
    for _ in range(3):
        assert asking.ping()[0].up
    assert server.headers()["connection"] == "close"
    assert len(set(map(id, connections))) == len(connections) == 3


def test_a_redirect_is_not_followed(server: Server) -> None:
    """The token would go along."""

    def answer(handler: Any) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.do("/slurm/v0.0.38/ping", answer)
    server.say("/elsewhere", PING)
    with pytest.raises(RestError, match="302 redirect"):
        client(server).ping()
    assert len(server.asked) == 1


def test_a_unix_socket_with_too_many_waiting_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    content = json.dumps(PING).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listening, contextlib.ExitStack() as others:
        listening.bind(path)
        listening.listen(0)
        listening.settimeout(5)
        with pytest.raises(BlockingIOError):
            for _ in range(20):
                waiting = others.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(path)

        def accept() -> None:
            time.sleep(0.3)
            while not asked:
                connection, _ = listening.accept()
                connection.settimeout(0.5)
                with connection, contextlib.suppress(OSError):
                    request = connection.recv(65536)
                    if request:
                        asked.append(request)
                        connection.sendall(head + b"%d\r\n\r\n" % len(content) + content)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            asking = SlurmrestdClient(f"unix://{path}", api_version="v0.0.38", timeout_s=8)
            assert asking.ping()[0].up
        finally:
            asked.append(b"")
            thread.join(10)


def test_several_threads_ask_at_once(server: Server) -> None:
    server.say("/slurm/v0.0.38/ping", PING)
    asking = client(server)
    told: list[bool] = []
    threads = [threading.Thread(target=lambda: told.append(asking.ping()[0].up)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert told == [True] * 12


def test_nobody_there_is_told_as_such(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cases = {
        f"http://127.0.0.1:{port}": "connection refused: is slurmrestd running",
        f"unix://{tmp_path}/absent": "there is no such socket",
        "http://no-such-host.invalid:1": "the name of the host is not known",
    }
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left"))
    cases[f"unix://{tmp_path}/left"] = "connection refused: is slurmrestd running"
    for url, said in cases.items():
        with pytest.raises(RestError, match=said):
            SlurmrestdClient(url, api_version="v0.0.38", timeout_s=3).ping()


@pytest.mark.skipif(os.geteuid() != 0, reason="root, to be another user for a moment")
def test_a_socket_that_may_not_be_opened_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        bound.listen(1)
        path.chmod(0o600)
        for parent in (tmp_path, *tmp_path.parents):
            if parent != Path("/") and parent != Path("/tmp"):
                parent.chmod(stat.S_IMODE(parent.stat().st_mode) | 0o055)
        os.seteuid(65534)
        try:
            with pytest.raises(RestError, match="may not be opened by this user"):
                SlurmrestdClient(f"unix://{path}", api_version="v0.0.38", timeout_s=3).ping()
        finally:
            os.seteuid(0)


def test_https_to_a_server_without_it_is_told_as_such(server: Server) -> None:
    if server.url.startswith("unix"):
        pytest.skip("no TLS over a unix socket")
    with pytest.raises(RestError, match="http:// rather than https://|closed the connection"):
        SlurmrestdClient(
            server.url.replace("http:", "https:"), api_version="v0.0.38", timeout_s=3
        ).ping()


def test_a_name_in_a_url_is_not_shown(server: Server) -> None:
    if server.url.startswith("unix"):
        pytest.skip("a unix socket's url has no name")
    url = server.url.replace("http://", "http://me:secret@")
    server.say("/slurm/v0.0.38/ping", b"x", 500, "text/plain")
    with pytest.raises(RestError) as failure:
        SlurmrestdClient(url, api_version="v0.0.38", timeout_s=3).ping()
    assert "secret" not in str(failure.value)


def test_a_source_is_made_by_its_name() -> None:
    config = load(str(EXAMPLE), in_slurmctld=True)
    assert SOURCES == ("sacct", "sacct-json", "slurmrestd")
    for name in ("sacct", "sacct-json"):
        assert make_source(name, config, "rig") is not None
    with pytest.raises(
        ConfigError, match=r"bank-config.toml.example: \[slurmrestd\] url is not set"
    ):
        make_source("slurmrestd", config, "rig")
    with pytest.raises(
        ConfigError, match="source 'db': expected one of sacct, sacct-json, slurmrestd"
    ):
        make_source("db", config, "rig")


def test_the_client_is_made_as_configured(server: Server) -> None:
    from dataclasses import replace

    config = load(str(EXAMPLE), in_slurmctld=True)
    given = SlurmrestdConfig(url=server.url, user="sb-bob", token_env="A_TOKEN", timeout_s=7)
    made = from_config(replace(config, slurmrestd=given))
    assert made.timeout_s == 7 and made.address == server.url
    with pytest.raises(BankingError, match="A_TOKEN"):
        made.ping()


def test_every_error_is_one_that_slurms_readers_expect() -> None:
    for kind in (RestError, RestUnauthorized, RestRefused):
        assert issubclass(kind, SlurmUnavailable)


def test_a_servers_certificate_is_checked_as_configured(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ]
        + ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=IP:127.0.0.1"],
        capture_output=True,
    )
    assert made.returncode == 0, made.stderr

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(PING).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.socket = context.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{running.server_address[1]}"

        def ping(verify: bool | str) -> bool:
            asking = SlurmrestdClient(url, api_version="v0.0.38", timeout_s=5, verify=verify)
            return asking.ping()[0].up

        assert ping(False) and ping(str(certificate))
        with pytest.raises(RestError, match="certificate verify failed"):
            ping(True)
        running.shutdown()
        thread.join(5)
