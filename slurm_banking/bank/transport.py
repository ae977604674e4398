# SPDX-License-Identifier: BSD-3-Clause
"""One call to the bank, in a bounded time, ending in an answer of the expected kind or in one of three errors.

============================================================  ==========================
no connection, no complete answer in time, 3xx, 408, 429,     BankUnavailable
5xx, HTML where JSON was expected, JSON of another shape
401, 403                                                      BankUnauthorized
any other refusal in the bank's language                      BankRefused (or a subclass)
============================================================  ==========================

An outage of which the bank itself speaks (429, 502 to 504) is one for every question; a 500, or an answer that makes no
sense, may be about the one that was asked (``BankUnavailable.answered``). With 429 and 503 the bank may say how long to
leave it alone (``Retry-After``).
"""

from __future__ import annotations

import email.utils
import json
import time
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
)
from urllib.parse import urlsplit

import requests

from mybrc_client import AuthenticatedClient, new_session
from mybrc_client.types import Response
from slurm_banking.errors import BankRefused, BankUnauthorized, BankUnavailable

#: Threads of the relay that may talk to the bank at once: deliveries, the refresh, questions.
CONNECTIONS = 16

#: Seconds for a connection, within the time for the whole call.
_MAX_CONNECT_S = 3.05

#: The portal's pages have 100 rows.
MAX_PAGES = 50

_SHOWN = 200

#: Longer than this no ``Retry-After`` is believed; how long is really waited, ``deliver_retry_max_s`` bounds further.
MAX_RETRY_AFTER_S = 86_400.0
#: Statuses that speak of the whole bank, or of all that one caller asks.
_WHOLE_BANK = frozenset([408, 429, 502, 503, 504])

T = TypeVar("T")


class NotFound(BankRefused):
    """404 in the bank's language: there is no such thing (and not: there is no bank at this address)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=404)


class NoSuchAddress(BankUnavailable):
    """404, and not in the bank's language: a wrong URL, or a bank of another generation."""


class FieldErrors(BankRefused):
    """400 with messages by field; ``""`` and ``non_field_errors`` are about the whole."""

    def __init__(self, message: str, errors: Mapping[str, Sequence[str]], *, heals: bool) -> None:
        super().__init__(message, heals=heals, status=400)
        self.errors = errors


#: Fields whose refusal says that the bank does not know user or account, which its office may mend.
_HEALING_FIELDS = frozenset(["userid", "accountid"])

#: Membership and allocation are only told apart from a mistake in the dates by the text: all come as non_field_errors.
#: The bundled bank and both generations of the portal.
_HEALING_TEXTS = (
    "is not a member of account",
    "is not an active member of",
    "has no active compute allocation",
    "Unexpected server error",
)


class Transport:
    """Calls operations of ``mybrc_client``; safe to use from several threads.

    :param timeout_s: for one call as a whole, from the connection to the last byte (name resolution excepted, which
        the system bounds).
    :param session: given by tests; otherwise one that keeps connections, ignores the environment and trusts the
        system's certificates.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_s: float,
        session: Optional[requests.Session] = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        connect_s = min(_MAX_CONNECT_S, timeout_s / 3)
        answer_s = timeout_s - connect_s
        self._session = session or new_session(response_s=answer_s, connections=CONNECTIONS)
        self._client = AuthenticatedClient(
            base_url=url, session=self._session, timeout_s=(connect_s, answer_s), token=token
        )
        self._host = urlsplit(url).netloc

    def close(self) -> None:
        self._session.close()

    def call(
        self,
        operation: Callable[..., Response[Any]],
        kind: Type[T],
        *arguments: Any,
        also: Tuple[int, ...] = (),
        **keywords: Any,
    ) -> T:
        """The answer, of class ``kind``. ``also``: statuses besides 2xx whose answer is of that class.

        :raises NotFound: 404, in JSON.
        :raises FieldErrors: 400, in JSON.
        """
        try:
            response = operation(*arguments, client=self._client, **keywords)
        except requests.RequestException as error:
            raise BankUnavailable(f"{self._host}: {_why(error)}") from None
        except ValueError as error:  # cannot be asked: an empty name in a path, for example
            raise BankRefused(f"cannot be sent: {error}") from None
        if response.status_code // 100 == 2 or response.status_code in also:
            if isinstance(response.parsed, kind):
                return response.parsed
            if response.status_code // 100 == 2:
                raise BankUnavailable(
                    f"{self._host}: answered {response.status_code} with {_what(response)}, not what the API promises",
                    answered=True,
                )
        raise self._failure(response)

    def pages(
        self,
        operation: Callable[..., Response[Any]],
        kind: Type[Any],
        *arguments: Any,
        **keywords: Any,
    ) -> Iterator[Any]:
        """The rows of all pages, at most :data:`MAX_PAGES` of them."""
        for number in range(1, MAX_PAGES + 1):
            if number > 1:
                keywords["page"] = number
            page = self.call(operation, kind, *arguments, **keywords)
            yield from page.results
            if not page.next_:
                return

    def _failure(self, response: Response[Any]) -> Exception:
        status = response.status_code
        if status in (401, 403):
            return BankUnauthorized(
                f"{self._host}: {status} {_detail(response)}: the token is wrong, expired or not allowed to do this"
            )
        if 300 <= status < 400:
            target = str(response.headers.get("Location", ""))[:_SHOWN]
            return BankUnavailable(
                f"{self._host}: {status} redirect to {target or 'nowhere'}: is [API] url right?"
            )
        if status >= 500 or status in (408, 429) or status < 200:
            return BankUnavailable(
                f"{self._host}: {status} {_detail(response)}",
                retry_after_s=self._retry_after(response) if status in (429, 503) else None,
                answered=status not in _WHOLE_BANK and status >= 200,
            )
        body = _json(response)
        if body is None:
            if status in (413, 414, 431):
                return BankRefused(f"{status}: too large for the bank", status=status)
            problem = NoSuchAddress if status == 404 else BankUnavailable
            text = f"{self._host}: {status} with {_what(response)}: is [API] url right?"
            return problem(text, answered=True)
        if status == 404:
            return NotFound(f"404 {_detail(response)}")
        if status == 400:
            errors = _by_field(body)
            return FieldErrors(f"400 {_shown(errors)}", errors, heals=_heals(errors))
        return BankRefused(f"{status} {_detail(response)}", status=status)

    def _retry_after(self, response: Response[Any]) -> Optional[float]:
        """Seconds, from either form of the header; a date is read by the bank's own clock if it tells that too."""
        text = str(response.headers.get("Retry-After", "")).strip()
        if text.isascii() and text.isdecimal():
            return min(float(text[:12]), MAX_RETRY_AFTER_S)
        until = _http_date(text)
        if until is None:
            return None
        now = _http_date(str(response.headers.get("Date", "")))
        wait_s = until - (self._clock() if now is None else now)
        return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S)


def _http_date(text: str) -> Optional[float]:
    """Unix seconds; None: it is no date."""
    parts = email.utils.parsedate_tz(text[:100])
    if parts is None:
        return None
    try:
        return float(email.utils.mktime_tz(parts))
    except (ValueError, OverflowError):
        return None


def _heals(errors: Mapping[str, Sequence[str]]) -> bool:
    """Whether every complaint is about what the bank's office may change: membership, allocation, a user not yet known."""
    return bool(errors) and all(
        field in _HEALING_FIELDS
        or (
            field in ("non_field_errors", "")
            and any(fragment in text for text in texts for fragment in _HEALING_TEXTS)
        )
        for field, texts in errors.items()
    )


def _by_field(body: Any) -> Dict[str, List[str]]:
    if not isinstance(body, dict):
        return {"": _texts(body)}
    return {str(field): _texts(texts) for field, texts in body.items()}


def _texts(value: Any) -> List[str]:
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    return [str(value)]


def _shown(errors: Mapping[str, Sequence[str]]) -> str:
    parts = [f"{field or 'answer'}: {' '.join(texts)}" for field, texts in errors.items()]
    return _one_line("; ".join(parts))


def _detail(response: Response[Any]) -> str:
    body = _json(response)
    if body is None:
        return f"with {_what(response)}"
    return _shown(_by_field(body))


def _what(response: Response[Any]) -> str:
    kind = str(response.headers.get("Content-Type", "")).split(";")[0].strip()[:60]
    return f"{len(response.content)} bytes of {kind or 'no stated type'}"


def _json(response: Response[Any]) -> Any:
    if response.truncated or "json" not in str(response.headers.get("Content-Type", "")).lower():
        return None
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:_SHOWN]


def _why(error: BaseException) -> str:
    """The innermost reason, without addresses of objects."""
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, requests.exceptions.Timeout):
        return "no complete answer in time"
    seen: BaseException = error
    for _ in range(8):
        if isinstance(seen, TimeoutError):
            return "no complete answer in time"
        if isinstance(seen, OSError) and seen.strerror:
            return _one_line(seen.strerror)
        inner = seen.__cause__ or getattr(seen, "reason", None)
        if inner is None and not seen.__suppress_context__:
            inner = seen.__context__
        if inner is None and seen.args:
            inner = seen.args[-1]
        if not isinstance(inner, BaseException):
            break
        seen = inner
    return _one_line(str(seen)) or type(error).__name__
