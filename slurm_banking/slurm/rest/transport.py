# SPDX-License-Identifier: BSD-3-Clause
"""One HTTP exchange with slurmrestd, over TCP or a unix socket, bounded in time and size."""

from __future__ import annotations

import errno
import http.client
import io
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Union
from urllib.parse import unquote, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from slurm_banking.slurm.rest.errors import RestError, RestTooMuch

#: Seconds for a connection, within the time for the whole exchange.
MAX_CONNECT_S = 5.0

_LATE = (requests.exceptions.Timeout, TimeoutError, socket.timeout)

#: Parameters; one with a list is sent once for each of it.
Query = Mapping[str, Union[str, Sequence[str]]]

_CHUNK_BYTES = 1 << 16
_UNIX = "unix"
_ACCEPT_WAIT_S = 0.02


@dataclass(frozen=True)
class Answer:
    """What slurmrestd answered, whole."""

    status: int
    content_type: str
    body: bytes
    path: str


@dataclass(frozen=True)
class Address:
    """Where slurmrestd is: ``http(s)://host:port[/prefix]``, or ``unix:///path/of/socket``."""

    url: str

    @property
    def socket_path(self) -> Optional[str]:
        """None: TCP."""
        parts = urlsplit(self.url)
        return unquote(parts.path) if parts.scheme == _UNIX else None

    @property
    def base(self) -> str:
        """What requests are made of; a unix socket's host name is never looked up."""
        return "http://localhost" if self.socket_path is not None else self.url.rstrip("/")

    def __str__(self) -> str:
        """As shown in messages: without the user part of a URL."""
        if self.socket_path is not None:
            return f"unix://{self.socket_path}"
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def parse_address(url: str) -> Address:
    """:raises ValueError: neither kind of address."""
    parts = urlsplit(url)
    if parts.scheme == _UNIX:
        if parts.netloc or not parts.path.startswith("/"):
            raise ValueError(f"{url[:200]!r}: expected unix:///path/of/the/socket")
        if len(unquote(parts.path).encode()) > 107:
            raise ValueError(f"{url[:200]!r}: the path of a unix socket has at most 107 bytes")
        return Address(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url[:200]!r}: expected http(s)://host:port or unix:///path")
    return Address(url)


class Transport:
    """Exchanges with one slurmrestd. Safe to use from several threads.

    :param verify: True: the system's certificates; a path: those in this file; False: none is checked.
    """

    def __init__(self, address: Address, *, verify: Union[bool, str] = True) -> None:
        self.address = address
        self._limit = threading.local()
        session = requests.Session()
        session.trust_env = False
        session.verify = verify
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(self._limit, address.socket_path))
        self._session = session
        if verify is False:
            # Asked for in the configuration; one warning for each request helps nobody.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    def close(self) -> None:
        self._session.close()

    def exchange(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        query: Optional[Query] = None,
        body: Any = None,
        timeout_s: float,
        max_bytes: int,
    ) -> Answer:
        """``timeout_s`` is for all of it, from the connection to the last byte.

        :raises RestError: no complete answer, and why, in one line.
        """
        deadline = time.monotonic() + timeout_s
        self._limit.deadline = deadline
        connect_s = min(MAX_CONNECT_S, timeout_s)
        try:
            response = self._session.request(
                method,
                self.address.base + path,
                params=query,
                json=body,
                headers={**headers, "Accept": "application/json", "Connection": "close"},
                timeout=(connect_s, timeout_s),
                allow_redirects=False,
                stream=True,
            )
            with response:
                content = self._read(response, deadline, timeout_s, max_bytes)
                kind = str(response.headers.get("Content-Type", ""))
                return Answer(response.status_code, kind, content, path)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            late = any(isinstance(inner, _LATE) for inner in _chain(error))
            failure = RestTooMuch if late else RestError
            raise failure(f"{self.address}: {self._why(error, timeout_s)}") from None
        except (http.client.HTTPException, ValueError) as error:
            raise RestError(f"{self.address}: no HTTP: {type(error).__name__}") from None

    def _read(
        self, response: requests.Response, deadline: float, timeout_s: float, max_bytes: int
    ) -> bytes:
        content = bytearray()
        for chunk in response.iter_content(_CHUNK_BYTES):
            content += chunk
            if len(content) > max_bytes:
                raise RestTooMuch(f"{self.address}: answered with more than {max_bytes} bytes")
            if time.monotonic() > deadline:
                raise RestTooMuch(f"{self.address}: no complete answer within {timeout_s:g} s")
        expected = response.headers.get("Content-Length", "")
        if expected.isdecimal() and len(content) < int(expected):
            raise RestError(
                f"{self.address}: the answer ended after {len(content)} of {expected} bytes"
            )
        return bytes(content)

    def _why(self, error: BaseException, timeout_s: float) -> str:
        """The innermost reason, and what to look at."""
        chain = _chain(error)
        for inner in chain:
            if isinstance(inner, _LATE):
                return f"no complete answer within {timeout_s:g} s"
        path = self.address.socket_path
        for inner in reversed(chain):
            number = inner.errno if isinstance(inner, OSError) else None
            if number == errno.ENOENT and path is not None:
                return "there is no such socket: is slurmrestd running, and is the path right?"
            if number == errno.EACCES and path is not None:
                return "may not be opened by this user: look at the modes of the socket and of the directories above it"
            if number == errno.ECONNREFUSED:
                return "connection refused: is slurmrestd running there?"
            if isinstance(inner, socket.gaierror):
                return "the name of the host is not known"
            if number == errno.EAGAIN:
                return f"accepted no connection within {timeout_s:g} s"
            if number in (errno.ECONNRESET, errno.EPIPE):
                return "slurmrestd closed the connection: http where it speaks https, or it ended; see its log"
        last = chain[-1]
        if isinstance(last, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(last):
            return "no TLS there: http:// rather than https://?"
        if isinstance(last, OSError) and last.strerror:
            return _one_line(last.strerror)
        return _one_line(str(last)) or type(last).__name__


def _chain(error: BaseException) -> Tuple[BaseException, ...]:
    """The error and what caused it, outermost first; requests and urllib3 keep causes in several places."""
    found = [error]
    for _ in range(8):
        seen = found[-1]
        inner: Any = seen.__cause__ or seen.__context__ or getattr(seen, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in seen.args if isinstance(arg, BaseException)), None)
        if not isinstance(inner, BaseException) or inner in found:
            break
        found.append(inner)
    return tuple(found)


def _one_line(text: str, length: int = 200) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:length]


class _Reader(io.RawIOBase):
    """Reads from a socket until the exchange's deadline, however the bytes drip."""

    def __init__(self, raw: Any, sock: socket.socket, deadline: float) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Optional[int]:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise socket.timeout("the answer took too long")
        self._sock.settimeout(left_s)
        count: Optional[int] = self._raw.readinto(buffer)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Adapter(HTTPAdapter):
    """Connections to one address, with the calling thread's deadline on all of an answer."""

    def __init__(self, limit: threading.local, socket_path: Optional[str]) -> None:
        self._limit = limit
        self._socket_path = socket_path
        super().__init__(pool_connections=2, pool_maxsize=16, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pool_classes()

    def _pool_classes(self) -> Dict[str, Any]:
        limit, socket_path = self._limit, self._socket_path

        class Response(http.client.HTTPResponse):
            def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
                super().__init__(sock, *args, **kwargs)
                raw = self.fp.detach()
                self.fp = io.BufferedReader(_Reader(raw, sock, limit.deadline))

            def begin(self) -> None:
                super().begin()
                # slurmrestd of 22.05 closes when asked to, and does not say so: never use a connection twice.
                self.will_close = True

        def connect(connection: Any) -> socket.socket:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(connection.timeout)
                while True:
                    try:
                        sock.connect(socket_path or "")
                        break
                    except BlockingIOError:
                        # Too many wait to be accepted; of a unix socket one is told so at once.
                        if time.monotonic() >= limit.deadline:
                            raise
                        time.sleep(_ACCEPT_WAIT_S)
            except BaseException:
                sock.close()
                raise
            return sock

        def pool(base: Any) -> Any:
            members: Dict[str, Any] = {"response_class": Response}
            if socket_path is not None:
                members["_new_conn"] = connect
            connection = type("Connection", (base.ConnectionCls,), members)
            return type("Pool", (base,), {"ConnectionCls": connection})

        return {
            "http": pool(urllib3.HTTPConnectionPool),
            "https": pool(urllib3.HTTPSConnectionPool),
        }
