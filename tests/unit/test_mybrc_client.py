# SPDX-License-Identifier: BSD-3-Clause
"""The generated client over real HTTP, against a small server that answers what a test says."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
from dateutil.parser import isoparse
from hypothesis import example, given
from hypothesis import strategies as st

import mybrc_client
from mybrc_client import AuthenticatedClient, Client, new_session
from mybrc_client.api.allocation_users import list_allocation_users
from mybrc_client.api.allocations import list_allocation_attributes, list_allocations
from mybrc_client.api.auth import create_token
from mybrc_client.api.jobs import (
    can_submit_job,
    create_job,
    list_jobs,
    retrieve_job,
    update_job,
)
from mybrc_client.api.partitions import list_partitions
from mybrc_client.api.users import list_users, retrieve_user
from mybrc_client.models import (
    AllocationAttributePage,
    AllocationPage,
    AllocationUserPage,
    Credentials,
    ErrorDetail,
    Job,
    JobPage,
    Node,
    PartitionPage,
    SubmitAnswer,
    TokenAnswer,
    User,
    UserPage,
    UserProfile,
    ValidationErrors,
)
from mybrc_client.types import UNSET, Response, parse_datetime

TOKEN = "0123456789abcdef0123456789abcdef01234567"
UTC = datetime.timezone.utc


@dataclass(frozen=True)
class Received:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> list[tuple[str, str]]:
        return parse_qsl(urlsplit(self.target).query)


@dataclass
class Answer:
    status: int = 200
    #: JSON unless it is bytes.
    body: Any = field(default_factory=dict)
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    #: Takes over after the request was read: writes whatever it likes to the connection.
    raw: Callable[[Any], object] | None = None


class Bank:
    """A server whose next answers are given; the last one is repeated."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.received: list[Received] = []
        self.connections = 0
        self.answers: list[Answer] = [Answer()]
        self.stopping = threading.Event()
        bank = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                bank.connections += 1

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                bank.received.append(
                    Received(
                        method=self.command,
                        target=self.path,
                        headers=dict(self.headers),
                        body=self.rfile.read(length),
                    )
                )
                answer = bank.answers[0] if len(bank.answers) == 1 else bank.answers.pop(0)
                if answer.raw is not None:
                    self.close_connection = True
                    with contextlib.suppress(OSError):
                        answer.raw(self.wfile)
                    return
                body = answer.body
                if not isinstance(body, bytes):
                    body = json.dumps(body).encode()
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(body)))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *args: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        scheme = "http"
        if tls is not None:
            scheme = "https"
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}/api/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def trickle(self, *parts: bytes) -> Callable[[Any], None]:
        """The last part byte by byte, ten a second, for half a minute at most."""

        def write(stream: Any) -> None:
            for part in parts[:-1]:
                stream.write(part)
            for _ in range(300):
                if self.stopping.wait(0.1):
                    return
                stream.write(parts[-1][:1])

        return write

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def bank() -> Iterator[Bank]:
    server = Bank()
    yield server
    server.close()


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with new_session() as made:
        yield made


@pytest.fixture
def client(bank: Bank, session: requests.Session) -> AuthenticatedClient:
    return AuthenticatedClient(bank.url, session, token=TOKEN)


def a_job(**changes: Any) -> Job:
    values: dict[str, Any] = {
        "jobslurmid": "123",
        "userid": "50123",
        "accountid": "fc_astro",
        "amount": "12.30",
        "submitdate": datetime.datetime(2024, 6, 1, 10, 0, tzinfo=UTC),
        "startdate": datetime.datetime(2024, 6, 1, 10, 5, tzinfo=UTC),
    }
    values.update(changes)
    return Job(**values)


A_ROW: dict[str, Any] = {
    "jobslurmid": "123",
    "submitdate": "2024-06-01T10:00:00Z",
    "startdate": "2024-06-01T03:05:00-07:00",
    "enddate": None,
    "userid": "50123",
    "accountid": "fc_astro",
    "amount": "12.30",
    "jobstatus": "RUNNING",
    "partition": "savio3",
    "qos": "normal",
    "nodes": [{"name": "n0001"}],
    "num_cpus": 32,
    "num_req_nodes": 1,
    "num_alloc_nodes": 1,
    "raw_time": 0.5,
    "cpu_time": 16,
}


# Credentials


def test_the_token_goes_into_the_authorization_header(
    bank: Bank, client: AuthenticatedClient
) -> None:
    bank.answers = [Answer(body=A_ROW)]
    retrieve_job.sync("123", client=client)
    assert bank.received[0].headers["Authorization"] == f"Token {TOKEN}"


def test_a_netrc_file_does_not_replace_the_token(
    bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with requests.Session() as plain:
        plain.trust_env = True
        retrieve_job.sync("1", client=AuthenticatedClient(bank.url, plain, token=TOKEN))
        create_token.sync(client=Client(bank.url, plain), body=Credentials("u", "p"))
    assert bank.received[0].headers["Authorization"] == f"Token {TOKEN}"
    assert "Authorization" not in bank.received[1].headers


def test_a_token_is_never_printed(session: requests.Session) -> None:
    assert TOKEN not in repr(AuthenticatedClient("http://127.0.0.1/", session, token=TOKEN))
    for token in (TOKEN + "\n", TOKEN + " x", "é" + TOKEN, ""):
        with pytest.raises(ValueError, match="^token: expected") as caught:
            AuthenticatedClient("http://127.0.0.1/", session, token=token)
        assert TOKEN not in str(caught.value)


def test_a_base_url_needs_http_or_https(session: requests.Session) -> None:
    with pytest.raises(ValueError, match="^base_url: expected"):
        Client("bank.example.org/api", session)


def test_a_password_is_exchanged_for_a_token_without_an_authorization_header(
    bank: Bank, session: requests.Session
) -> None:
    bank.answers = [Answer(body={"token": TOKEN}), Answer(body={"error": "No such user."})]
    anonymous = Client(bank.url, session)
    body = Credentials(username="relay", password="secret")
    granted = create_token.sync(client=anonymous, body=body)
    refused = create_token.sync(client=anonymous, body=body)
    assert isinstance(granted, TokenAnswer) and granted.token == TOKEN
    assert isinstance(refused, TokenAnswer) and refused.error == "No such user."
    assert refused.token is UNSET
    assert json.loads(bank.received[0].body) == {"username": "relay", "password": "secret"}
    assert "Authorization" not in bank.received[0].headers


def test_a_session_keeps_no_cookie_and_ignores_proxies_of_the_environment(
    bank: Bank, client: AuthenticatedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    bank.answers = [Answer(body=A_ROW, headers={"Set-Cookie": "sessionid=abc; Path=/"})]
    retrieve_job.sync("123", client=client)
    retrieve_job.sync("123", client=client)
    assert len(bank.received) == 2
    assert all("Cookie" not in request.headers for request in bank.received)


# What is asked, and what comes back


def test_a_list_has_totals_and_is_paged(bank: Bank, client: AuthenticatedClient) -> None:
    first = {
        "count": 101,
        "next": bank.url + "jobs/?page=2",
        "previous": None,
        "results": [A_ROW] * 100,
        "total_amount": 1242.3,
        "total_cpu_time": 1616.0,
    }
    second = {**first, "next": None, "results": [A_ROW]}
    bank.answers = [Answer(body=first), Answer(body=second)]

    page = list_jobs.sync(client=client)
    assert isinstance(page, JobPage)
    assert page.count == 101
    assert len(page.results) == 100
    assert page.next_ == bank.url + "jobs/?page=2"
    assert page.previous is None
    assert Decimal(str(page.total_amount)) == Decimal("1242.30")
    assert page.total_cpu_time == 1616.0
    page = list_jobs.sync(client=client, page=2)
    assert isinstance(page, JobPage)
    assert page.next_ is None
    assert [request.query for request in bank.received] == [[], [("page", "2")]]


def test_the_original_list_without_totals_is_read_too(
    bank: Bank, client: AuthenticatedClient
) -> None:
    bank.answers = [Answer(body={"count": 1, "results": [A_ROW]})]
    page = list_jobs.sync(client=client)
    assert isinstance(page, JobPage)
    assert page.total_amount is UNSET


def test_filters_are_sent_as_plain_text(bank: Bank, client: AuthenticatedClient) -> None:
    list_jobs.sync_detailed(
        client=client,
        user="ada",
        account="fc_astro",
        jobstatus="RUNNING",
        partition="savio3",
        min_amount="0.10",
        max_amount="100000.00",
        start_time=1717236000,
        end_time=1717322400,
    )
    assert bank.received[0].path == "/api/jobs/"
    assert bank.received[0].query == [
        ("user", "ada"),
        ("account", "fc_astro"),
        ("jobstatus", "RUNNING"),
        ("partition", "savio3"),
        ("min_amount", "0.10"),
        ("max_amount", "100000.00"),
        ("start_time", "1717236000"),
        ("end_time", "1717322400"),
    ]


def test_several_names_are_a_repeated_filter(bank: Bank, client: AuthenticatedClient) -> None:
    list_users.sync(client=client, username=["ada", "bob"])
    assert bank.received[0].query == [("username", "ada"), ("username", "bob")]


def test_a_job_is_created_with_exact_amount_and_zoned_dates(
    bank: Bank, client: AuthenticatedClient
) -> None:
    bank.answers = [Answer(status=201, body=A_ROW)]
    response = create_job.sync_detailed(client=client, body=a_job(nodes=[Node("n0001")]))

    request = bank.received[0]
    assert (request.method, request.path) == ("POST", "/api/jobs/")
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.body) == {
        "jobslurmid": "123",
        "userid": "50123",
        "accountid": "fc_astro",
        "amount": "12.30",
        "submitdate": "2024-06-01T10:00:00+00:00",
        "startdate": "2024-06-01T10:05:00+00:00",
        "nodes": [{"name": "n0001"}],
    }
    assert response.status_code == 201
    job = response.parsed
    assert isinstance(job, Job)
    assert job.amount == "12.30" and isinstance(job.amount, str)
    assert job.submitdate == datetime.datetime(2024, 6, 1, 10, 0, tzinfo=UTC)
    assert job.startdate == datetime.datetime(2024, 6, 1, 10, 5, tzinfo=UTC)
    assert job.enddate is None
    assert job.nodes == [Node("n0001")]


def test_a_date_without_a_zone_stays_without(bank: Bank, client: AuthenticatedClient) -> None:
    bank.answers = [Answer(body={**A_ROW, "submitdate": "2024-06-01T10:00:00.250000"})]
    job = retrieve_job.sync("123", client=client)
    assert isinstance(job, Job)
    assert job.submitdate == datetime.datetime(2024, 6, 1, 10, 0, 0, 250000)


def test_a_job_is_sent_as_it_was_read(bank: Bank, client: AuthenticatedClient) -> None:
    row = {**A_ROW, "startdate": "2024-06-01T10:05:00+00:00", "a_later_field": [1, {"x": None}]}
    row["submitdate"] = "2024-06-01T10:00:00+00:00"
    del row["nodes"]
    bank.answers = [Answer(body=row)]
    job = retrieve_job.sync("123", client=client)
    assert isinstance(job, Job)
    update_job.sync("123", client=client, body=job)
    assert json.loads(bank.received[1].body) == row


@pytest.mark.parametrize(
    ("jobslurmid", "target"),
    [
        ("123", "/api/jobs/123/"),
        ("12_3", "/api/jobs/12_3/"),
        ("12+0", "/api/jobs/12%2B0/"),
        ("123-r1", "/api/jobs/123-r1/"),
        ("1/../2?x#y", "/api/jobs/1%2F..%2F2%3Fx%23y/"),
    ],
)
def test_an_update_puts_the_id_into_one_segment_of_the_path(
    bank: Bank, client: AuthenticatedClient, jobslurmid: str, target: str
) -> None:
    bank.answers = [Answer(body={**A_ROW, "jobslurmid": jobslurmid})]
    job = update_job.sync(jobslurmid, client=client, body=a_job(jobslurmid=jobslurmid))
    assert isinstance(job, Job)
    assert job.jobslurmid == jobslurmid
    assert (bank.received[0].method, bank.received[0].target) == ("PUT", target)


@pytest.mark.parametrize("text", ["", ".", ".."])
def test_what_cannot_be_part_of_a_path_is_not_sent(
    bank: Bank, client: AuthenticatedClient, text: str
) -> None:
    with pytest.raises(ValueError, match="^account_id: "):
        can_submit_job.sync("1.00", "50123", text, client=client)
    assert bank.received == []


def test_a_refusal_is_an_answer(bank: Bank, client: AuthenticatedClient) -> None:
    bank.answers = [
        Answer(body={"success": True, "message": None}),
        Answer(body={"success": False, "message": "Not enough."}),
        Answer(status=400, body={"success": False, "message": "No such account."}),
        Answer(status=500, body={"success": False, "message": "Unexpected server error."}),
    ]
    for status, success, message in (
        (200, True, None),
        (200, False, "Not enough."),
        (400, False, "No such account."),
        (500, False, "Unexpected server error."),
    ):
        response = can_submit_job.sync_detailed("12.30", "50123", "fc_astro", client=client)
        assert response.status_code == status
        assert response.parsed == SubmitAnswer(success=success, message=message)
    assert bank.received[0].target == "/api/can_submit_job/12.30/50123/fc_astro/"


def test_allocations_and_what_is_used_of_them_are_read(
    bank: Bank, client: AuthenticatedClient
) -> None:
    allocation = {
        "id": 7,
        "project": "fc_astro",
        "resources": [{"name": "Savio Compute"}],
        "status": "Active",
        "quantity": 1,
        "start_date": "2024-06-01",
        "end_date": None,
        "justification": "x",
        "description": None,
        "is_locked": False,
    }
    attribute = {
        "id": 9,
        "allocation_attribute_type": "Service Units",
        "allocation": 7,
        "value": "300000.00",
        "usage": {"allocation_attribute": 9, "value": "40.10"},
    }
    member = {"id": 3, "allocation": 7, "user": "ada", "user_id": 11}
    member = {**member, "project": "fc_astro", "status": "Active"}
    bank.answers = [
        Answer(body={"count": 1, "results": [allocation]}),
        Answer(body={"count": 1, "results": [attribute]}),
        Answer(body={"count": 2, "results": [member, {**member, "user_id": "11"}]}),
    ]
    allocations = list_allocations.sync(
        client=client, project=["fc_astro"], resources=["Savio Compute"]
    )
    attributes = list_allocation_attributes.sync(7, client=client, type_=["Service Units"])
    members = list_allocation_users.sync(client=client, user=["ada"])
    assert isinstance(allocations, AllocationPage)
    assert allocations.results[0].start_date == datetime.date(2024, 6, 1)
    assert allocations.results[0].end_date is None
    assert isinstance(attributes, AllocationAttributePage)
    assert attributes.results[0].value == "300000.00"
    assert attributes.results[0].usage is not None
    assert attributes.results[0].usage
    assert attributes.results[0].usage.value == "40.10"
    assert isinstance(members, AllocationUserPage)
    assert [one.user_id for one in members.results] == [11, "11"]
    assert bank.received[0].query == [("project", "fc_astro"), ("resources", "Savio Compute")]
    assert bank.received[1].path == "/api/allocations/7/attributes/"
    assert bank.received[1].query == [("type", "Service Units")]


def test_users_of_both_generations_are_read(bank: Bank, client: AuthenticatedClient) -> None:
    old = {"username": None, "email": "ada@example.org"}
    new = {
        "id": 11,
        "username": "ada",
        "first_name": "Ada",
        "last_name": "L",
        "email": "ada@example.org",
        "last_login": None,
        "profile": {"id": 4, "cluster_uid": "50123", "is_pi": False},
    }
    bank.answers = [Answer(body={"count": 2, "results": [old, new]}), Answer(body=new)]
    page = list_users.sync(client=client)
    user = retrieve_user.sync(11, client=client)
    assert isinstance(page, UserPage)
    assert page.results[0].username is None
    assert page.results[0].profile is UNSET
    assert isinstance(user, User) and isinstance(user.profile, UserProfile)
    assert user.profile.cluster_uid == "50123"
    assert user.profile["is_pi"] is False


def test_partition_prices_stay_text(bank: Bank, client: AuthenticatedClient) -> None:
    partition = {"name": "savio", "shared": False, "num_nodes": 4, "num_cores": 96}
    bank.answers = [
        Answer(body={"count": 1, "results": [{**partition, "su_per_core_hour": "0.75"}]})
    ]
    page = list_partitions.sync(client=client)
    assert isinstance(page, PartitionPage)
    assert page.results[0].su_per_core_hour == "0.75"


# Errors


def test_errors_by_field_are_a_map(bank: Bank, client: AuthenticatedClient) -> None:
    bank.answers = [
        Answer(
            status=400,
            body={
                "jobslurmid": ["job with this jobslurmid already exists."],
                "nodes": [{"name": ["Too long."]}],
            },
        )
    ]
    response = create_job.sync_detailed(client=client, body=a_job())
    assert response.status_code == 400
    assert isinstance(response.parsed, ValidationErrors)
    assert response.parsed["jobslurmid"] == ["job with this jobslurmid already exists."]
    assert response.parsed["nodes"] == [{"name": ["Too long."]}]
    assert response.parsed.non_field_errors is UNSET


def test_errors_about_the_whole_are_a_list(bank: Bank, client: AuthenticatedClient) -> None:
    bank.answers = [
        Answer(status=400, body={"non_field_errors": ["Start is after end."]}),
        Answer(status=400, body=["User is not active."]),
        Answer(status=400, body={"detail": "JSON parse error"}),
    ]
    by_key = update_job.sync("123", client=client, body=a_job())
    bare = update_job.sync("123", client=client, body=a_job())
    unread = update_job.sync("123", client=client, body=a_job())
    assert isinstance(by_key, ValidationErrors)
    assert by_key.non_field_errors == ["Start is after end."]
    assert bare == ["User is not active."]
    assert isinstance(unread, ValidationErrors) and unread.detail == "JSON parse error"


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_other_errors_have_a_detail(bank: Bank, client: AuthenticatedClient, status: int) -> None:
    bank.answers = [Answer(status=status, body={"detail": "No."})]
    response = list_jobs.sync_detailed(client=client)
    assert response.status_code == status
    assert response.parsed == ErrorDetail(detail="No.")


@pytest.mark.parametrize("status", [200, 201, 400, 404, 500, 503, 520, 999])
def test_html_is_an_answer_without_a_parsed_part(
    bank: Bank, client: AuthenticatedClient, status: int
) -> None:
    page = b"<html><title>Maintenance</title></html>"
    bank.answers = [Answer(status=status, body=page, content_type="text/html; charset=utf-8")]
    responses: list[Response[Any]] = [
        list_jobs.sync_detailed(client=client),
        create_job.sync_detailed(client=client, body=a_job()),
        update_job.sync_detailed("123", client=client, body=a_job()),
        can_submit_job.sync_detailed("1.00", "50123", "fc_astro", client=client),
    ]
    for response in responses:
        assert response.status_code == status
        assert response.parsed is None
        assert response.content == page
        assert response.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"jobslurmid": "1", "userid": "2"}',
        json.dumps({**A_ROW, "amount": 12.3}).encode(),
        json.dumps({**A_ROW, "amount": None}).encode(),
        json.dumps({**A_ROW, "userid": 50123}).encode(),
        json.dumps({**A_ROW, "enddate": "tomorrow"}).encode(),
        json.dumps({**A_ROW, "enddate": 1717236000}).encode(),
        json.dumps({**A_ROW, "num_cpus": True}).encode(),
        json.dumps({**A_ROW, "nodes": "n0001"}).encode(),
        json.dumps({**A_ROW, "cpu_time": float("nan")}).encode(),
        json.dumps(A_ROW).replace("32", "9" * 100_000).encode(),
    ],
    ids=lambda body: repr(body[-24:]),
)
def test_json_of_another_shape_is_an_answer_without_a_parsed_part(
    bank: Bank, client: AuthenticatedClient, body: bytes
) -> None:
    bank.answers = [Answer(body=body)]
    response = retrieve_job.sync_detailed("123", client=client)
    assert (response.status_code, response.parsed, response.content) == (200, None, body)


@pytest.mark.parametrize(
    "body",
    [
        {"count": True, "results": []},
        {"count": "1", "results": []},
        {"count": 1, "results": {}},
        {"count": 1, "results": None},
        {"count": 1},
        {"count": 1, "results": [{}]},
        {"count": 1, "results": [], "total_amount": "12.30"},
    ],
    ids=json.dumps,
)
def test_a_page_of_another_shape_is_an_answer_without_a_parsed_part(
    bank: Bank, client: AuthenticatedClient, body: dict[str, Any]
) -> None:
    bank.answers = [Answer(body=body)]
    response = list_jobs.sync_detailed(client=client)
    assert (response.status_code, response.parsed) == (200, None)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(bank: Bank, client: AuthenticatedClient, status: int) -> None:
    bank.answers = [Answer(status=status, headers={"Location": bank.url + "elsewhere/"})]
    responses: list[Response[Any]] = [
        list_jobs.sync_detailed(client=client),
        create_job.sync_detailed(client=client, body=a_job()),
        update_job.sync_detailed("123", client=client, body=a_job()),
    ]
    assert [response.status_code for response in responses] == [status] * 3
    assert [response.parsed for response in responses] == [None] * 3
    assert responses[0].headers["Location"] == bank.url + "elsewhere/"
    assert [request.method for request in bank.received] == ["GET", "POST", "PUT"]


# Bounds


def chunked(stream: Any, stop: threading.Event) -> None:
    stream.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for _ in range(2000):
        if stop.is_set():
            return
        stream.write(b"10000\r\n" + b" " * 65536 + b"\r\n")


def test_reading_stops_at_the_bound(bank: Bank, session: requests.Session) -> None:
    sent = threading.Event()

    def endless(stream: Any) -> None:
        try:
            chunked(stream, bank.stopping)
        finally:
            sent.set()

    bank.answers = [Answer(raw=endless)]
    client = AuthenticatedClient(bank.url, session, token=TOKEN, max_response_bytes=1_000_000)
    response = list_jobs.sync_detailed(client=client)
    assert response.status_code == 200
    assert response.truncated
    assert len(response.content) == 1_000_000
    assert response.parsed is None
    # The connection is closed, not kept with the rest still to come.
    assert sent.wait(5)


def test_by_default_the_bound_is_8_mib(session: requests.Session) -> None:
    assert Client("http://127.0.0.1/", session).max_response_bytes == 8 * 2**20


def test_an_answer_at_the_bound_is_whole(bank: Bank, session: requests.Session) -> None:
    size = len(json.dumps(A_ROW))
    bank.answers = [Answer(body=A_ROW)]
    for bound, whole in ((size, True), (size - 1, False)):
        client = AuthenticatedClient(bank.url, session, token=TOKEN, max_response_bytes=bound)
        response = retrieve_job.sync_detailed("123", client=client)
        assert response.truncated is not whole
        assert (response.parsed is not None) is whole


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        (HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
        (HEAD + b"\r\n", b" "),
        (HEAD + b"X-Slow: ", b"x"),
        (b"H",),
    ],
    ids=["body", "body-without-length", "header", "status-line"],
)
def test_a_trickled_answer_ends_with_the_deadline(bank: Bank, parts: tuple[bytes, ...]) -> None:
    bank.answers = [Answer(raw=bank.trickle(*parts))]
    with new_session(response_s=0.5) as session:
        client = AuthenticatedClient(bank.url, session, token=TOKEN)
        began = time.monotonic()
        with pytest.raises(requests.RequestException):
            retrieve_job.sync_detailed("123", client=client)
        assert 0.5 <= time.monotonic() - began < 5.0


def test_a_trickled_answer_over_tls_ends_with_the_deadline(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        + ["-nodes", "-keyout", str(key), "-out", str(certificate), "-days", "2"]
        + ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
        timeout=30,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    bank = Bank(tls=context)
    try:
        with new_session(response_s=1.0, verify=str(certificate)) as session:
            client = AuthenticatedClient(bank.url, session, token=TOKEN)
            bank.answers = [
                Answer(body=A_ROW),
                Answer(raw=bank.trickle(HEAD + b"Content-Length: 100000\r\n\r\n", b" ")),
            ]
            assert isinstance(retrieve_job.sync("123", client=client), Job)
            began = time.monotonic()
            with pytest.raises(requests.RequestException):
                retrieve_job.sync_detailed("123", client=client)
            assert 1.0 <= time.monotonic() - began < 5.0
    finally:
        bank.close()


def test_a_silent_bank_ends_with_the_read_timeout(bank: Bank, session: requests.Session) -> None:
    bank.answers = [Answer(raw=lambda stream: bank.stopping.wait(10))]
    client = AuthenticatedClient(bank.url, session, token=TOKEN, timeout_s=(1.0, 0.2))
    began = time.monotonic()
    with pytest.raises(requests.exceptions.ReadTimeout):
        retrieve_job.sync_detailed("123", client=client)
    assert time.monotonic() - began < 5.0


def test_a_body_cut_short_is_no_answer(bank: Bank, client: AuthenticatedClient) -> None:
    whole = json.dumps(A_ROW).encode()
    head = HEAD.replace(b"200 OK", b"201 Created")
    bank.answers = [
        Answer(raw=lambda stream: stream.write(head + b"Content-Length: 999\r\n\r\n" + whole)),
        Answer(
            raw=lambda stream: stream.write(
                head + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}   \r\n"
            )
        ),
        Answer(raw=lambda stream: stream.write(b"SSH-2.0-OpenSSH\r\n")),
        Answer(raw=lambda stream: None),
    ]
    for _ in range(4):
        with pytest.raises(requests.RequestException):
            create_job.sync_detailed(client=client, body=a_job())
    assert len(bank.received) == 4


def test_a_bank_that_is_not_there_is_a_connection_error(session: requests.Session) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    client = AuthenticatedClient(f"http://127.0.0.1:{port}/api", session, token=TOKEN)
    with pytest.raises(requests.exceptions.ConnectionError):
        retrieve_job.sync_detailed("123", client=client)


def test_a_sessions_connection_is_used_again(bank: Bank, client: AuthenticatedClient) -> None:
    bank.answers = [Answer(body=A_ROW)]
    for _ in range(5):
        retrieve_job.sync("123", client=client)
        create_job.sync_detailed(client=client, body=a_job())
    assert bank.connections == 1


def test_importing_the_client_brings_in_no_other_http_library() -> None:
    root = Path(mybrc_client.__file__).resolve().parent.parent
    script = (
        "import pkgutil, importlib, sys, mybrc_client\n"
        "for module in pkgutil.walk_packages(mybrc_client.__path__, 'mybrc_client.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(*sorted(name for name in sys.modules if '.' not in name))\n"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.split()
    assert "requests" in loaded
    assert not {"httpx", "httpcore", "aiohttp", "anyio"} & set(loaded)


@given(
    st.datetimes(timezones=st.sampled_from([UTC, datetime.timezone(-datetime.timedelta(hours=7))])),
    st.booleans(),
)
@example(datetime.datetime(2024, 2, 29, tzinfo=UTC), True)
def test_a_usual_time_is_read_as_the_library_reads_it(at: datetime.datetime, zulu: bool) -> None:
    text = at.isoformat().replace("+00:00", "Z") if zulu else at.isoformat()
    assert parse_datetime(text) == isoparse(text) == at


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-20",
        "2026-11-20T24:00:00Z",
        "2026-11-20T10:00:00.1Z",
        "2026-11-20T10:00",
        "20261120T100000Z",
        "2026-02-30T10:00:00Z",
        "2026-11-20T10:00:60Z",
        "2026-11-20T10:00:00+25:00",
        "２026-11-20T10:00:00Z",
        "",
        None,
        12,
    ],
)
def test_an_unusual_time_is_read_or_refused_as_by_the_library(text: Any) -> None:
    def read(with_: Any) -> Any:
        try:
            return with_(text)
        except (TypeError, ValueError, AttributeError):
            return "refused"

    assert read(parse_datetime) == read(isoparse)
