# SPDX-License-Identifier: BSD-3-Clause
"""Between relay and bank, and not to be relied on: what a network, a proxy or a portal in trouble does to a request.

    with BankProxy(site_bank_port, seed=7) as proxy:
        ...                                 # the relay talks to 127.0.0.1:{proxy.port}
        proxy.set("lose_answer", share=0.3)
        proxy.set("hang", seconds=5)        # instead of the one before; "pass" again after that time
        proxy.clear()

One fault at a time; a request is counted under what was done to it. Loopback only.
"""

from __future__ import annotations

import dataclasses
import json
import random
import select
import socket
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

#: What the bank never sees.
ANSWERED_HERE = (
    "status_401",
    "status_403",
    "status_404",
    "status_409",
    "status_429",
    "status_500",
    "html_503",
    "redirect",
    "garbage",
)

FAULTS: tuple[str, ...] = (
    "pass",
    "refuse",  # no connection: those that there are end, new ones are refused; `share` does not matter
    "hang",  # the request is read, and nothing is said
    "trickle",  # forwarded; the answer comes at a byte a second
    *ANSWERED_HERE,
    "truncated",  # forwarded; half of the answer, and the end
    "lying",  # 200 with JSON of another shape, or of another job; of writes, half are forwarded
    "lose_answer",  # forwarded; what the bank answered is not
)

#: Where a redirect leads: a page that says 200 in HTML, counted as "redirect_followed".
ELSEWHERE = "/elsewhere"

#: A request may not be answered for longer than this, whatever the fault: nobody waits for ever.
LONGEST_S = 60.0

_MAX_HEAD_BYTES = 64 << 10
_LOOK_S = 0.05
_NO_BODY = (204, 304)

_STATUS: dict[int, tuple[str, dict[str, str]]] = {
    401: ("Unauthorized", {"detail": "Invalid token."}),
    403: ("Forbidden", {"detail": "You do not have permission to perform this action."}),
    404: ("Not Found", {"detail": "Not found."}),
    409: ("Conflict", {"detail": "Another request is at work on this."}),
    429: (
        "Too Many Requests",
        {"detail": "Request was throttled. Expected available in 1 second."},
    ),
    500: ("Internal Server Error", {"detail": "Unexpected server error."}),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _InForce:
    fault: str
    until: float | None  #: time.monotonic(); None: until another one is set
    share: float
    over: threading.Event = dataclasses.field(default_factory=threading.Event)

    def ended(self) -> bool:
        return self.over.is_set() or (self.until is not None and time.monotonic() >= self.until)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Request:
    method: str
    path: str
    body: bytes
    raw: bytes  #: all of it, as it came
    keep_alive: bool


class _Gone(Exception):
    """One of the two has closed its connection."""


class BankProxy:
    """See the module. `target_port`: the bank's. `seed`: which requests of a share are hit, and what garbage looks like."""

    def __init__(self, target_port: int, seed: int) -> None:
        self.target_port = target_port
        self.counts: Counter[str] = Counter()
        self.port = 0
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._in_force = _InForce(fault="pass", until=None, share=1.0)
        self._holder: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self._acceptor: threading.Thread | None = None
        self._stopping = threading.Event()

    # -- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """The port is ours from here to the end, also while nobody listens on it."""
        if self._acceptor is not None:
            return
        self._holder = _bound(0)
        self.port = int(self._holder.getsockname()[1])
        self._stopping.clear()
        self._open()
        self._acceptor = threading.Thread(target=self._accept, name="bank-proxy", daemon=True)
        self._acceptor.start()

    def stop(self) -> None:
        self._stopping.set()
        with self._lock:
            self._in_force.over.set()
            self._close()
            self._cut()
            if self._holder is not None:
                self._holder.close()
                self._holder = None
        if self._acceptor is not None:
            self._acceptor.join(5)
            self._acceptor = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # -- what is wrong ----------------------------------------------------------------------------

    def set(self, fault: str, seconds: float | None = None, share: float = 1.0) -> None:
        """From now on, instead of the fault before; for `seconds`, or until the next `set` or `clear`.

        `share`: of the requests, at random; the others pass.
        """
        if fault not in FAULTS:
            raise ValueError(f"fault {fault!r}: expected one of {', '.join(FAULTS)}")
        if not 0 <= share <= 1:
            raise ValueError(f"share {share!r}: expected a number from 0 to 1")
        until = None if seconds is None else time.monotonic() + seconds
        with self._lock:
            before = self._in_force
            self._in_force = _InForce(fault=fault, until=until, share=share)
            before.over.set()
            if fault == "refuse":
                self._close()
                self._cut()
            else:
                self._open()

    def clear(self) -> None:
        """All is well again; what hangs, or comes byte by byte, ends without a (whole) answer."""
        self.set("pass")

    @property
    def fault(self) -> str:
        """What is in force now."""
        in_force = self._in_force
        return "pass" if in_force.ended() else in_force.fault

    def _fault_for_request(self) -> tuple[str, _InForce]:
        with self._lock:
            in_force = self._in_force
            fault = "pass" if in_force.ended() else in_force.fault
            if fault not in ("pass", "refuse") and self._random.random() >= in_force.share:
                fault = "pass"
            self.counts[fault] += 1
            return fault, in_force

    # -- sockets ----------------------------------------------------------------------------------

    def _open(self) -> None:
        with self._lock:
            if self._listener is None and not self._stopping.is_set():
                listener = _bound(self.port)
                listener.listen(128)
                self._listener = listener

    def _close(self) -> None:
        with self._lock:
            if self._listener is not None:
                # Closing alone would leave it open for as long as the other thread selects on it.
                self._listener.shutdown(socket.SHUT_RDWR)
                self._listener.close()
                self._listener = None

    def _cut(self) -> None:
        """Ends every connection; the threads that serve them notice."""
        with self._lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def _accept(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                if self._listener is None and self._in_force.ended():
                    self._open()
                listener = self._listener
            if listener is None:
                time.sleep(_LOOK_S / 2)
                continue
            try:
                if not select.select([listener], [], [], _LOOK_S)[0]:
                    continue
                connection, _ = listener.accept()
            except (OSError, ValueError):  # closed meanwhile
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                if self._stopping.is_set() or self._listener is None:
                    connection.close()
                    continue
                self._connections.add(connection)
            threading.Thread(
                target=self._serve, args=(connection,), name="bank-proxy-connection", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        upstream = _Upstream(self.target_port, connection)
        buffered = bytearray()
        try:
            while not self._stopping.is_set():
                request = _read_request(connection, buffered)
                if request is None or not self._answer(connection, upstream, request):
                    return
        except (_Gone, OSError, ValueError):
            pass
        finally:
            upstream.close()
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    # -- one request ------------------------------------------------------------------------------

    def _answer(self, connection: socket.socket, upstream: _Upstream, request: _Request) -> bool:
        """Whether the connection may be used again."""
        if request.path.startswith(ELSEWHERE):
            with self._lock:
                self.counts["redirect_followed"] += 1
            page = b"<!DOCTYPE html><title>Log in</title><p>Please log in."
            connection.sendall(_message(200, "OK", page, "text/html; charset=utf-8"))
            return request.keep_alive
        fault, in_force = self._fault_for_request()
        if fault == "pass":
            answer, reusable = upstream.ask(request)
            connection.sendall(answer)
            return reusable and request.keep_alive
        if fault == "refuse":  # came on a connection from before
            return False
        if fault == "hang":
            self._wait(connection, in_force, LONGEST_S)
            return False
        if fault == "trickle":
            answer, _ = upstream.ask(request)
            until = time.monotonic() + LONGEST_S
            for byte in answer:
                connection.sendall(bytes([byte]))
                if time.monotonic() > until or not self._wait(connection, in_force, 1.0):
                    break
            return False
        if fault == "lose_answer":
            upstream.ask(request)
            return False
        if fault == "truncated":
            answer, _ = upstream.ask(request)
            head, _, body = answer.partition(b"\r\n\r\n")
            connection.sendall(head + b"\r\n\r\n" + body[: len(body) // 2] if body else head)
            return False
        if fault == "garbage":
            with self._lock:
                noise = self._random.randbytes(self._random.randrange(20, 400))
            connection.sendall(noise)
            return False
        if fault == "lying":
            with self._lock:
                lie = _lie(self._random, request)
                forwarded = request.method != "GET" and self._random.random() < 0.5
            if forwarded:
                upstream.ask(request)
            connection.sendall(_message(200, "OK", lie, "application/json"))
            return request.keep_alive
        connection.sendall(_refusal(fault, self.port))
        return request.keep_alive

    def _wait(self, connection: socket.socket, in_force: _InForce, seconds: float) -> bool:
        """False if the client has left, the fault is over, or the proxy ends, before the time is up."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stopping.is_set() or in_force.ended():
                return False
            if _has_left(connection, min(_LOOK_S, left)):
                return False
        return True


class _Upstream:
    """One connection to the bank for one connection of a client; given up as soon as the client leaves."""

    def __init__(self, port: int, client: socket.socket) -> None:
        self._port = port
        self._client = client
        self._socket: socket.socket | None = None
        self._buffered = bytearray()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._buffered.clear()

    def ask(self, request: _Request) -> tuple[bytes, bool]:
        """The bank's whole answer, and whether the connection goes on after it.

        :raises _Gone: no bank, no answer, or nobody to tell it to.
        """
        if self._socket is not None and (self._buffered or _has_left(self._socket, 0)):
            self.close()  # the bank ended it while it was idle
        try:
            if self._socket is None:
                self._socket = socket.create_connection(("127.0.0.1", self._port), LONGEST_S)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(request.raw)
            answer, reusable = self._read(request.method)
        except BaseException:
            self.close()
            raise
        if not reusable:
            self.close()
        return answer, reusable

    def _read(self, method: str) -> tuple[bytes, bool]:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head = self._until(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if 100 <= status < 200:
                head = b""
        headers = _headers(head)
        reusable = headers.get("connection", "").lower() != "close"
        if method == "HEAD" or status in _NO_BODY:
            return head, reusable
        if "content-length" in headers:
            return head + self._take(int(headers["content-length"])), reusable
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while True:
                line = self._until(b"\r\n")
                size = int(line.split(b";")[0], 16)
                body += line + self._take(size + 2)
                if size == 0:
                    return head + body, reusable
        while True:
            try:
                self._more()
            except _Gone:
                return head + self._take(len(self._buffered)), False

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffered:
            self._more()
        return self._take(self._buffered.index(mark) + len(mark))

    def _take(self, size: int) -> bytes:
        while len(self._buffered) < size:
            self._more()
        taken = bytes(self._buffered[:size])
        del self._buffered[:size]
        return taken

    def _more(self) -> None:
        assert self._socket is not None
        until = time.monotonic() + LONGEST_S
        while time.monotonic() < until:
            ready = select.select([self._socket, self._client], [], [], 1.0)[0]
            if self._socket in ready:
                chunk = self._socket.recv(65536)
                if not chunk:
                    raise _Gone
                self._buffered += chunk
                return
            if self._client in ready and _has_left(self._client, 0):
                raise _Gone
        raise _Gone


def _bound(port: int) -> socket.socket:
    """Bound, and not listening: such a port refuses connections, and nobody else gets it."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    return made


def _has_left(connection: socket.socket, wait_s: float) -> bool:
    """Whether the other side has closed its end; waits for a sign of it."""
    try:
        if not select.select([connection], [], [], wait_s)[0]:
            return False
        if connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            time.sleep(wait_s)  # it sent more: not now
            return False
        return True
    except BlockingIOError:
        return False
    except (OSError, ValueError):
        return True


def _headers(head: bytes) -> dict[str, str]:
    found = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip().lower()] = value.strip()
    return found


def _read_request(connection: socket.socket, buffered: bytearray) -> _Request | None:
    """The next request on a connection; None when the client is done."""

    def more() -> bool:
        chunk = connection.recv(65536)
        buffered.extend(chunk)
        return bool(chunk)

    while b"\r\n\r\n" not in buffered:
        if len(buffered) > _MAX_HEAD_BYTES or not more():
            return None
    end = buffered.index(b"\r\n\r\n") + 4
    head = bytes(buffered[:end])
    headers = _headers(head)
    if "transfer-encoding" in headers:
        raise ValueError("a request in chunks: the relay sends none")
    size = int(headers.get("content-length", "0"))
    while len(buffered) < end + size:
        if not more():
            return None
    raw = bytes(buffered[: end + size])
    del buffered[: end + size]
    method, path, version = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    wanted = headers.get("connection", "").lower()
    return _Request(
        method=method,
        path=path,
        body=raw[end:],
        raw=raw,
        keep_alive=wanted != "close" and (version == "HTTP/1.1" or wanted == "keep-alive"),
    )


def _message(status: int, words: str, body: bytes, kind: str, *more: str) -> bytes:
    head = [f"HTTP/1.1 {status} {words}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, *more, "", ""]).encode("latin-1") + body


def _refusal(fault: str, port: int) -> bytes:
    if fault == "html_503":
        page = b"<!DOCTYPE html><html><title>Maintenance</title><h1>Back soon</h1></html>"
        return _message(503, "Service Unavailable", page, "text/html; charset=utf-8")
    if fault == "redirect":
        to = f"Location: http://127.0.0.1:{port}{ELSEWHERE}/login"
        return _message(301, "Moved Permanently", b"", "text/html; charset=utf-8", to)
    status = int(fault.removeprefix("status_"))
    words, body = _STATUS[status]
    more = ["Retry-After: 1"] if status == 429 else []
    return _message(status, words, json.dumps(body).encode(), "application/json", *more)


def _lie(chance: random.Random, request: _Request) -> bytes:
    """JSON that answers another question: of a shape that nobody asked for or, about jobs, of another job."""
    shapes: list[Any] = [[], {}, None, "ok", 17, {"count": "many", "results": {"no": "rows"}}]
    try:
        asked: Any = json.loads(request.body)
    except ValueError:
        asked = None
    about_jobs = "/jobs/" in request.path
    if about_jobs and isinstance(asked, dict) and "jobslurmid" in asked and chance.random() < 0.6:
        # All of it true, but of another job: only the id tells.
        return json.dumps({**asked, "jobslurmid": f"9{asked['jobslurmid']}"}).encode()
    if about_jobs and request.method == "GET" and chance.random() < 0.6:
        shapes = [
            {
                "jobslurmid": "999999999",
                "userid": "1",
                "accountid": "fc_elsewhere",
                "submitdate": "2001-01-01T00:00:00Z",
                "startdate": "2001-01-01T00:00:01Z",
                "enddate": "2001-01-01T00:00:02Z",
                "amount": "1.00",
                "jobstatus": "COMPLETED",
            }
        ]
    return json.dumps(chance.choice(shapes)).encode()
