# SPDX-License-Identifier: BSD-3-Clause
"""slurmrestd's calls that are needed here, by hand over requests; see docs/decisions/0017-slurmrestd-by-hand.md.

What a naive client stumbles over, as seen on real daemons of 22.05.8:

* a wrong or expired token is answered with 500 and "Unspecified error (-1)", not with 401 (24.11: 511 and its own number;
  but to a ping 200, as if slurmctld were down; and with 401 where the token is sent under two headers);
* a submission may be answered with 200, a job id *and* errors: the job id decides;
* the database's half answers 200 with errors and an empty list where slurmdbd could not be asked;
* "Nothing found" (9003) comes as an error, and is none;
* of a submission that a plugin refused only the number is told, not the plugin's words.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Tuple, TypeVar, Union
from urllib.parse import quote

from slurm_banking.config import Config
from slurm_banking.errors import BankingError, ConfigError
from slurm_banking.slurm import jwt
from slurm_banking.slurm.rest import flatten
from slurm_banking.slurm.rest.errors import RestError, RestRefused, RestUnauthorized
from slurm_banking.slurm.rest.flatten import Node, PartitionInfo, Ping, Problem, QueueJob, Submitted
from slurm_banking.slurm.rest.transport import Answer, Query, Transport, parse_address
from slurm_banking.slurm.rest_token import TokenSource

#: Versions whose answers are understood: v0.0.36 to v0.0.46.
OLDEST, NEWEST = 36, 46

TIMEOUT_S = 30.0
MAX_BYTES = 64 * 1024 * 1024

#: Slurm's number for what went wrong without saying what: -1, "Unspecified error".
UNSPECIFIED = -1

#: slurmctld's or slurmdbd's number for a token that it does not take; of 22.05 slurmrestd says -1 instead.
PROTOCOL_AUTHENTICATION = 1007

SLURM, SLURMDB = "slurm", "slurmdb"

_VERSION = re.compile(r"v0\.0\.(\d{1,4})\Z")
_VERSIONED = re.compile(r"/(slurm|slurmdb)/v0\.0\.(\d{1,4})(?:/|\Z)")
_STATUS_UNAUTHORIZED = (401, 403)


T = TypeVar("T")


class Tokens(Protocol):
    """Where tokens come from: :class:`slurm_banking.slurm.rest_token.TokenSource`."""

    def token(self) -> str: ...

    def user_name(self) -> str: ...

    def forget(self) -> None: ...


class SlurmrestdClient:
    """One slurmrestd, over TCP or a unix socket. Safe to use from several threads.

    :param url: ``http(s)://host:port`` or ``unix:///path``.
    :param token: a source of tokens, a token, or None: none is sent (a unix socket with rest_auth/local needs none).
    :param user: as whom to ask (X-SLURM-USER-NAME); None: whom the source's token is for. A token of root's or SlurmUser's
        may be sent with any other user's name.
    :param api_version: "v0.0.38", or "auto": the newest that both sides know, asked for once.
    :param timeout_s: for each call as a whole.
    :param verify: for https: True, False, or a file with the certificates to trust.

    Every method raises :class:`RestError` (no answer), :class:`RestUnauthorized` (the token) or :class:`RestRefused`
    (Slurm says no); all are SlurmUnavailable, and ``str()`` of each is one clear line.

    :raises ValueError: an address or a version that cannot be.
    """

    def __init__(
        self,
        url: str,
        token: Union[Tokens, str, None] = None,
        *,
        user: Optional[str] = None,
        api_version: str = "auto",
        timeout_s: float = TIMEOUT_S,
        verify: Union[bool, str] = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.timeout_s = timeout_s
        self._token = token
        self._user = user
        self._clock = clock
        self._transport = Transport(parse_address(url), verify=verify)
        self._minors: Dict[str, int] = {}
        if api_version != "auto":
            match = _VERSION.match(api_version)
            if match is None or not OLDEST <= int(match[1]) <= NEWEST:
                raise ValueError(
                    f"api_version {api_version!r}: expected auto, or v0.0.{OLDEST} to v0.0.{NEWEST}"
                )
            self._minors = {SLURM: int(match[1]), SLURMDB: int(match[1])}

    def __enter__(self) -> SlurmrestdClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    # -- versions ---------------------------------------------------------------------------------

    def version(self, half: str = SLURM) -> str:
        """The version that is spoken, "v0.0.38": of the controller's half ("slurm") or the database's ("slurmdb").

        :raises RestError: the server has none of the versions that are known here, or not this half at all.
        """
        return f"v0.0.{self.minor(half)}"

    def minor(self, half: str = SLURM) -> int:
        """The last part of the version: 38 of v0.0.38."""
        if not self._minors:
            self._minors = self._discover()
        if half not in self._minors:
            plugin = "openapi/v0.0.NN" if half == SLURM else "openapi/dbv0.0.NN"
            raise RestError(
                f"{self.address}: its specification has no /{half}/ paths of v0.0.{OLDEST} to v0.0.{NEWEST}:"
                f" is slurmrestd started with -s and without {plugin}?"
            )
        return self._minors[half]

    @property
    def address(self) -> str:
        """As shown in messages."""
        return str(self._transport.address)

    def _discover(self) -> Dict[str, int]:
        """The newest version of each half that the server and this client know, from the server's own specification."""
        body = self._again(lambda: self._call("GET", "/openapi"))
        found: Dict[str, int] = {}
        paths = body.get("paths")
        for path in paths if isinstance(paths, Mapping) else ():
            match = _VERSIONED.match(str(path))
            if match is not None and OLDEST <= int(match[2]) <= NEWEST:
                found[match[1]] = max(found.get(match[1], 0), int(match[2]))
        if not found:
            raise RestError(
                f"{self.address}: its specification has none of the versions v0.0.{OLDEST} to v0.0.{NEWEST}"
            )
        return found

    # -- the controller ---------------------------------------------------------------------------

    def ping(self) -> Tuple[Ping, ...]:
        """Each slurmctld, primary first, and whether it answers slurmrestd."""

        def ask() -> Tuple[Ping, ...]:
            found = flatten.pings(self._call("GET", self._path("ping")))
            if self._token is not None and not any(ping.up for ping in found):
                self._refuse_bad_token()
            return found

        return self._again(ask)

    def diag(self) -> Mapping[str, Any]:
        """slurmctld's figures by name ("jobs_submitted", "server_thread_count", ...), as ``sdiag`` shows them."""
        return flatten.statistics(self.get("diag"))

    def nodes(self) -> Tuple[Node, ...]:
        return tuple(flatten.node(row) for row in flatten.rows(self.get("nodes"), "nodes"))

    def partitions(self) -> Tuple[PartitionInfo, ...]:
        body = self.get("partitions")
        return tuple(flatten.partition(row) for row in flatten.rows(body, "partitions"))

    def jobs(self) -> Tuple[QueueJob, ...]:
        """Every job that slurmctld has and shows to this user: pending, running, and ended lately."""
        return self._queue_jobs(self.get("jobs"))

    def job(self, job_id: int) -> Tuple[QueueJob, ...]:
        """One job; several records for an array or a het job, none if slurmctld does not know it (any more)."""
        try:
            body = self.get(f"job/{int(job_id)}")
        except RestRefused as error:
            if error.code == _INVALID_JOB_ID:
                return ()
            raise
        return self._queue_jobs(body)

    def _queue_jobs(self, body: Mapping[str, Any]) -> Tuple[QueueJob, ...]:
        try:
            return tuple(flatten.queue_job(row) for row in flatten.rows(body, "jobs"))
        except ValueError as error:
            raise RestError(f"{self.address}: a job that cannot be read: {error}") from None

    def submit(self, body: Mapping[str, Any]) -> Submitted:
        """Submits ``{"job": {...}, "script": "#!/bin/sh..."}``, with the fields that the server's version knows.

        The environment may be an object or a list of ``NAME=value``: the version decides what is sent. Slurm wants one, with
        PATH at least, and ``current_working_directory``. Problems that Slurm reports of a job that it took are in the result.

        :raises RestRefused: no job; ``code`` is Slurm's number, 2050 where accounting or a plugin refused it, -1 where
            a plugin gave none.
        :raises ValueError: there is no job in ``body``.
        """
        request = flatten.job_request(body, self.minor())
        path = self._path("job/submit")
        answer = self._exchange("POST", path, body=request)
        told = self._json(answer)
        result = flatten.submitted(told) if told is not None else None
        if result is not None:
            return result
        try:
            self._check(answer, told)
        except RestUnauthorized:
            if answer.status in _STATUS_UNAUTHORIZED or not self._token_is_good():
                raise
            # The same number, -1, is what becomes of a job_submit plugin's plain SLURM_ERROR.
            raise RestRefused(
                f"{self.address}: {path}: refused without a reason, mostly by a job_submit plugin (-1)",
                code=UNSPECIFIED,
                status=answer.status,
            ) from None
        raise RestError(f"{self.address}: POST {path}: no job id and no error in the answer")

    def _token_is_good(self) -> bool:
        try:
            self._call("GET", self._path("diag"))
        except RestError:
            return False
        return True

    def _refuse_bad_token(self) -> None:
        """:raises RestUnauthorized: nothing is down, the token is not taken."""
        try:
            self._call("GET", self._path("diag"))
        except RestUnauthorized:
            raise
        except RestError:
            return

    def cancel(self, job_id: int, signal: Optional[str] = None) -> None:
        """``signal``: its name, "TERM"; None: SIGKILL, which ends the job. Done before is done.

        :raises RestRefused: not this user's job, or not known.
        """
        query = {"signal": signal} if signal is not None else {}
        path = self._path(f"job/{int(job_id)}")
        body = self._call("DELETE", path, query=query)
        # From v0.0.42 on "errors" stays empty, and this says of each record that was not signalled why.
        for row in flatten.rows(body, "status"):
            problem = flatten.signal_problem(row)
            if problem is not None and problem.code != _ALREADY_DONE:
                raise RestRefused(
                    f"{self.address}: {path}: {problem}", code=problem.code, status=200
                )

    # -- anything ---------------------------------------------------------------------------------

    def get(self, path: str, /, **query: object) -> Mapping[str, Any]:
        """The answer to a GET as it came.

        ``path``: below ``/slurm/<version>/`` ("licenses"), below ``/slurmdb/<version>/`` if it begins with "slurmdb/"
        ("slurmdb/qos"), or from the server's root if it begins with "/". "Nothing found" is an answer.
        """
        return self._again(lambda: self._call("GET", self._path(path), query=_query(query)))

    def get_text(
        self, path: str, *, query: Mapping[str, object], timeout_s: float, max_bytes: int
    ) -> str:
        """The body of a large answer of 200, not yet parsed; bytes that are no UTF-8 replaced. Its errors are the caller's."""

        def ask() -> str:
            answer = self._exchange(
                "GET",
                self._path(path),
                query=_query(query),
                timeout_s=timeout_s,
                max_bytes=max_bytes,
            )
            if answer.status != 200 or "json" not in answer.content_type.lower():
                self._check(answer, self._json(answer))
            return answer.body.decode("utf-8", "replace")

        return self._again(ask)

    def raise_problems(self, found: Tuple[Problem, ...], what: str, status: int = 200) -> None:
        """The error for an answer's errors; returns if there are none but "Nothing found"."""
        serious = [problem for problem in found if problem.code != flatten.EMPTY_RESULT]
        if not serious:
            return
        said = "; ".join(str(problem) for problem in serious)
        if any(_is_of_the_token(problem) for problem in serious):
            raise RestUnauthorized(f"{self.address}: {what}: {status} {said}: {self._suspicion()}")
        code = next((problem.code for problem in serious if problem.code is not None), None)
        raise RestRefused(f"{self.address}: {what}: {said}", code=code, status=status)

    # -- one call ---------------------------------------------------------------------------------

    def _path(self, path: str) -> str:
        if path.startswith("/"):
            return path
        half, rest = SLURM, path
        if path.startswith(SLURMDB + "/"):
            half, rest = SLURMDB, path[len(SLURMDB) + 1 :]
        return f"/{half}/{self.version(half)}/{quote(rest)}"

    def _again(self, ask: Callable[[], T]) -> T:
        """Asks once more if the first was refused for its token and the source by then has another."""
        if self._token is None or isinstance(self._token, str):
            return ask()
        sent = self._token_text()
        try:
            return ask()
        except RestUnauthorized:
            self._token.forget()
            if self._token_text() == sent:
                raise
        return ask()

    def _call(
        self, method: str, path: str, *, query: Optional[Query] = None, body: Any = None
    ) -> Mapping[str, Any]:
        answer = self._exchange(method, path, query=query, body=body)
        told = self._json(answer)
        self._check(answer, told)
        assert told is not None  # else _check() has raised
        return told

    def _exchange(
        self,
        method: str,
        path: str,
        *,
        query: Optional[Query] = None,
        body: Any = None,
        timeout_s: Optional[float] = None,
        max_bytes: int = MAX_BYTES,
    ) -> Answer:
        return self._transport.exchange(
            method,
            path,
            headers=self._headers(),
            query=query,
            body=body,
            timeout_s=self.timeout_s if timeout_s is None else timeout_s,
            max_bytes=max_bytes,
        )

    def _headers(self) -> Dict[str, str]:
        if self._token is None:
            return {"X-SLURM-USER-NAME": self._user} if self._user else {}
        token = self._token_text()
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise RestUnauthorized("the token has characters that no token has")
        user = self._named()
        headers = {"X-SLURM-USER-TOKEN": token}
        if user:
            headers["X-SLURM-USER-NAME"] = user
        return headers  # and no "Authorization: Bearer": newer ones refuse a token that comes under both names

    def _token_text(self) -> str:
        """:raises RestUnauthorized: the source has none."""
        if self._token is None or isinstance(self._token, str):
            return self._token or ""
        try:
            return self._token.token()
        except BankingError as error:
            raise RestUnauthorized(str(error)) from None

    def _named(self) -> Optional[str]:
        if self._user is not None or self._token is None or isinstance(self._token, str):
            return self._user
        try:
            return self._token.user_name()
        except BankingError as error:
            raise RestUnauthorized(str(error)) from None

    def _json(self, answer: Answer) -> Optional[Mapping[str, Any]]:
        if "json" not in answer.content_type.lower():
            return None
        try:
            told = json.loads(answer.body.decode("utf-8", "replace"), strict=False)
        except (ValueError, RecursionError):
            return None
        return told if isinstance(told, dict) else None

    def _check(self, answer: Answer, told: Optional[Mapping[str, Any]]) -> None:
        """Returns if it is an answer to use; every other kind has its error and its line."""
        what = answer.path
        if answer.status in _STATUS_UNAUTHORIZED:
            raise RestUnauthorized(
                f"{self.address}: {answer.status} {_words(answer)}: {self._missing_or_wrong()}"
            )
        if 300 <= answer.status < 400:
            raise RestError(f"{self.address}: {what}: {answer.status} redirect: is the url right?")
        if told is None:
            kind = answer.content_type.split(";")[0].strip()[:60] or "no stated type"
            said = f" ({_words(answer)})" if kind == "text/plain" else ""
            if answer.status == 404:
                hint = "no such path there: is the url right, and api_version one of the server's?"
            else:
                hint = "is the url right?"
            raise RestError(
                f"{self.address}: {what}: {answer.status} with {len(answer.body)} bytes of {kind}{said}: {hint}"
            )
        self.raise_problems(flatten.problems(told.get("errors")), what, answer.status)
        if answer.status >= 400:
            raise RestError(f"{self.address}: {what}: {answer.status} without a reason")

    def _missing_or_wrong(self) -> str:
        if self._token is None:
            return (
                "no token was sent: set token_file, token_env or key in [slurmrestd]; without one only a unix socket with"
                " rest_auth/local answers, and only the users that it is for"
            )
        return "slurmrestd does not take the token" + (
            "" if self._user or not isinstance(self._token, str) else ", sent without a user's name"
        )

    def _suspicion(self) -> str:
        """Slurm does not say what it is; nearly always the token: what can be seen of ours."""
        if self._token is None:
            return "mostly a token that is missing or wrong; none was sent"
        try:
            seen = _token_trouble(self._token_text(), self._named(), self._clock())
        except RestUnauthorized as error:
            seen = str(error)
        return seen or (
            "mostly the token: signed with another key than slurmctld's and slurmdbd's, of a user that they do not know,"
            " or not for the user that was named; `slurm-banking token verify` tells"
        )


def from_config(config: Config, *, user: Optional[str] = None) -> SlurmrestdClient:
    """The client that ``[slurmrestd]`` describes. ``user``: instead of the user there.

    :raises ConfigError: there is no url.
    """
    given = config.slurmrestd
    if given.url is None:
        raise ConfigError(
            [
                f"{config.path}: [slurmrestd] url is not set: expected where slurmrestd listens,"
                ' like "http://127.0.0.1:6820" or "unix:///run/slurmrestd/socket"'
            ]
        )
    return SlurmrestdClient(
        given.url,
        TokenSource.from_config(given),
        user=user or given.user,
        api_version=given.api_version,
        timeout_s=given.timeout_s,
        verify=given.verify,
    )


_INVALID_JOB_ID = 2017
_ALREADY_DONE = 2021
_DB_CONNECTION = 7000

#: Whose tokens may be for others: root's, and SlurmUser's, which is not known here but by its usual name.
_FOR_ALL = ("root", "slurm")


def _query(query: Mapping[str, object]) -> Dict[str, Union[str, List[str]]]:
    """As slurmrestd reads it; None leaves a parameter out, a tuple sends it several times."""
    return {
        key: [str(one) for one in value] if isinstance(value, tuple) else _word(value)
        for key, value in query.items()
        if value is not None
    }


def _is_of_the_token(problem: Problem) -> bool:
    if problem.code in (UNSPECIFIED, PROTOCOL_AUTHENTICATION):
        return True
    # slurmdbd's part, from 24.11: "Failed to open slurmdbd connection, authentication error".
    return problem.code == _DB_CONNECTION and "authentication" in problem.text


def _word(value: object) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _words(answer: Answer) -> str:
    return flatten.one_line(answer.body[:300].decode("utf-8", "replace")) or "without a text"


def _token_trouble(token: str, user: Optional[str], now: float) -> str:
    """What is plainly wrong with a token of ours, read without its key; "": nothing to see."""
    try:
        decoded = jwt.decode(token)
    except jwt.TokenError as error:
        return f"what was sent as token is none: {error}"
    found = jwt.complaints(decoded, now_s=int(now), user=user, for_all=_FOR_ALL)
    return f"the token cannot be taken: {found[0]}" if found else ""
