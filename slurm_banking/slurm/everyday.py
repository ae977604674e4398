# SPDX-License-Identifier: BSD-3-Clause
"""Everyday Slurm over slurmrestd, with prices: what ``slurm-banking slurm`` and :func:`slurm_banking.slurm.connect` do.

slurmrestd submits; the relay of the controller's host knows what a job could cost and why one is refused. Without a relay
in reach jobs are submitted all the same, only without a word about costs.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from typing import Any, Callable, Dict, Mapping, Optional, Tuple, Union

from slurm_banking.cli.sbatch import OptionError
from slurm_banking.errors import BankingError, ConfigError, RelayUnavailable
from slurm_banking.slurm import batch
from slurm_banking.slurm.rest import (
    Node,
    PartitionInfo,
    Ping,
    Problem,
    QueueJob,
    RestRefused,
    SlurmrestdClient,
)
from slurm_banking.slurm.rest_token import TokenSource

#: Where Slurm's own commands look for a token.
TOKEN_VARIABLE = "SLURM_JWT"
#: Seconds for the relay's answer.
ASK_S = 12.0

#: What asks the relay: a request to its answer; raises BankingError.
Ask = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Quote:
    """What the relay says of a job before it is submitted; amounts in hundredths of an SU."""

    verdict: str  #: "accepted", "refused" or "undecided"
    message: str  #: for people; several lines
    cost_csu: Optional[int]  #: the most that it could cost; None: it has no price
    account: Optional[str]
    available_csu: Optional[int]
    answer: Mapping[str, Any]  #: the relay's whole answer


@dataclass(frozen=True)
class Submission:
    """A job that Slurm took."""

    job_id: int
    message: str = ""  #: what plugins had to say to the user: the estimate, where the bank tells it
    problems: Tuple[Problem, ...] = ()  #: what Slurm complained of all the same: the job is queued


class JobRefused(RestRefused):
    """No job. ``reason``: why, in the bank's words, which slurmrestd drops; "": the bank has nothing against it."""

    def __init__(self, message: str, *, code: Optional[int], status: int, reason: str) -> None:
        super().__init__(message, code=code, status=status)
        self.reason = reason


class Slurm:
    """One cluster through its slurmrestd.

    Jobs are batch scripts with #SBATCH lines, and sbatch's options by keyword (``nodes=3, time="5", cpus_per_task=2,
    exclusive=True``), which count before the script's; or a mapping as in Slurm's manual, ``{"job": {...}, "script": ...}``.

    Each method that asks slurmrestd raises :class:`~slurm_banking.errors.SlurmUnavailable`: RestError without an answer,
    RestUnauthorized for a token that is not taken, RestRefused where Slurm says no.
    """

    def __init__(
        self,
        client: SlurmrestdClient,
        *,
        ask: Optional[Ask] = None,
        user: Optional[str] = None,
        why_no_quote: str = "no relay was named",
    ) -> None:
        self.client = client
        self._ask = ask
        self._user = user
        self._why_no_quote = why_no_quote

    def __enter__(self) -> Slurm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.client.close()

    # -- looking --------------------------------------------------------------------------------------------------------

    def ping(self) -> Tuple[Ping, ...]:
        """Each slurmctld, primary first, and whether it answers slurmrestd."""
        return self.client.ping()

    def diag(self) -> Mapping[str, Any]:
        """slurmctld's figures, as ``sdiag`` shows them."""
        return self.client.diag()

    def nodes(self) -> Tuple[Node, ...]:
        return self.client.nodes()

    def partitions(self) -> Tuple[PartitionInfo, ...]:
        return self.client.partitions()

    def jobs(self, user: Optional[str] = None) -> Tuple[QueueJob, ...]:
        """Every job that slurmctld has and shows; of one user, if one is named."""
        return tuple(job for job in self.client.jobs() if user is None or job.user_name == user)

    def job(self, job_id: int) -> Optional[QueueJob]:
        """The first record of a job; None: slurmctld does not know it (any more)."""
        found = self.client.job(job_id)
        return found[0] if found else None

    # -- jobs -----------------------------------------------------------------------------------------------------------

    def quote(self, job: Union[str, Mapping[str, Any]], **options: Any) -> Quote:
        """What a job could cost, and whether it would be accepted now.

        :raises OptionError: it cannot be read. :raises BankingError: no relay answers.
        """
        return self.quote_of(self._read(job, options))

    def submit(self, job: Union[str, Mapping[str, Any]], **options: Any) -> Submission:
        """Submit it.

        :raises OptionError: it cannot be read, or not be carried. :raises JobRefused: Slurm, or the bank, says no.
        """
        return self.submit_read(self._read(job, options))

    def cancel(self, job_id: int, signal: Optional[str] = None) -> None:
        """``signal``: its name; None: the job ends."""
        self.client.cancel(job_id, signal)

    @staticmethod
    def _read(
        job: Union[str, Mapping[str, Any]], options: Mapping[str, Any]
    ) -> Union[batch.Batch, Mapping[str, Any]]:
        if isinstance(job, str):
            return batch.read(job, words=batch.words_of(options))
        if options:
            raise OptionError("options go with a script; a mapping has them in its job")
        return batch.complete(job)

    def quote_of(self, job: Union[batch.Batch, Mapping[str, Any]]) -> Quote:
        """As :meth:`quote`, of what was read before."""
        if self._ask is None:
            raise RelayUnavailable(self._why_no_quote)
        if isinstance(job, batch.Batch):
            options = job.quote_options()
        else:
            options = batch.quote_options_of(job)
        answer = self._ask({"op": "quote", "options": options, "user": self._user})
        cost = answer.get("estimate")
        return Quote(
            verdict=str(answer["verdict"]),
            message=str(answer["message"]),
            cost_csu=None if cost is None else int(cost["cost_csu"]),
            account=answer.get("account"),
            available_csu=answer.get("available_csu"),
            answer=answer,
        )

    def submit_read(self, job: Union[batch.Batch, Mapping[str, Any]]) -> Submission:
        """As :meth:`submit`, of what was read before."""
        body = job.job(self.client.minor()) if isinstance(job, batch.Batch) else job
        try:
            taken = self.client.submit(body)
        except ValueError as error:
            raise OptionError(str(error)) from None
        except RestRefused as error:
            reason = self._reason(job)
            told = f"{error}\n{reason}" if reason else str(error)
            raise JobRefused(told, code=error.code, status=error.status, reason=reason) from None
        return Submission(job_id=taken.job_id, message=taken.message, problems=taken.problems)

    def _reason(self, job: Union[batch.Batch, Mapping[str, Any]]) -> str:
        """The bank's words for a refusal; slurmrestd passes on only Slurm's number."""
        try:
            quote = self.quote_of(job)
        except (BankingError, OptionError):
            return ""
        return "" if quote.verdict == "accepted" else quote.message


def connect(
    url: Optional[str] = None,
    *,
    user: Optional[str] = None,
    token: Optional[str] = None,
    token_file: Optional[str] = None,
    token_env: Optional[str] = None,
    key: Optional[str] = None,
    kid: Optional[str] = None,
    api_version: Optional[str] = None,
    timeout_s: Optional[float] = None,
    verify: Union[bool, str, None] = None,
    config: Optional[str] = None,
    relay: Optional[str] = None,
    ask: Optional[Ask] = None,
) -> Slurm:
    """See :func:`slurm_banking.slurm.connect`. ``ask``: another way to ask the relay than its socket ``relay``."""
    from slurm_banking.config import SlurmrestdConfig, load

    section = SlurmrestdConfig()
    socket = relay
    path = config or _config_path()
    if config is not None or os.access(path, os.R_OK):
        try:
            loaded = load(path, in_slurmctld=True)
            section = loaded.slurmrestd
            socket = socket or loaded.relay.socket
        except ConfigError:
            # An admin's mistake is no user's trouble who says where to go.
            if config is not None or url is None:
                raise
    where = url or section.url
    if where is None:
        raise BankingError(
            f"{path}: [slurmrestd] url: missing: expected where slurmrestd is, such as "
            '"http://127.0.0.1:6820" or "unix:///run/slurmrestd/socket"; or name one with the call'
        )
    as_user = user or section.user
    source: Union[TokenSource, str, None] = token
    given: Dict[str, Any] = {"token_file": token_file, "token_env": token_env, "key": key}
    if source is None and any(given.values()):
        source = TokenSource(user=as_user, kid=kid, **given)
    elif source is None and url is None:
        own: Dict[str, Any] = {name: getattr(section, name) for name in given}
        if any(own.values()):
            source = TokenSource(user=as_user, kid=kid or section.kid, **own)
    if source is None and os.environ.get(TOKEN_VARIABLE):
        source = TokenSource(user=as_user, token_env=TOKEN_VARIABLE)
    settings: Dict[str, Any] = {
        "api_version": api_version or section.api_version,
        "timeout_s": section.timeout_s if timeout_s is None else timeout_s,
        "verify": section.verify if verify is None else verify,
    }
    try:
        client = SlurmrestdClient(where, source, user=as_user, **settings)
    except ValueError as error:
        raise BankingError(str(error)) from None
    who = as_user
    if who is None and isinstance(source, TokenSource):
        who = source.user_name()
    if ask is None and socket is not None:
        ask = _relay_at(socket)
    return Slurm(
        client,
        ask=ask,
        user=None if who == _process_user() else who,
        why_no_quote=f"{path} cannot be read, and no relay's socket was named",
    )


def _config_path() -> str:
    """bank-config.toml beside the slurm.conf in use."""
    slurm_conf = os.environ.get("SLURM_CONF")
    directory = os.path.dirname(slurm_conf) if slurm_conf else "/etc/slurm"
    return os.path.join(directory, "bank-config.toml")


def _process_user() -> Optional[str]:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None


def _relay_at(path: str) -> Ask:
    """Believed only if root, or the owner of the socket's directory, listens there."""
    from slurm_banking.relay import client, protocol

    def ask(request: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            owner = os.stat(os.path.dirname(path) or ".").st_uid
        except OSError as error:
            raise RelayUnavailable(f"relay {path}: {error.strerror}") from None
        asked = {key: value for key, value in request.items() if value is not None}
        answer = client.ask(
            path,
            asked,
            ASK_S,
            allowed_owner_uids=(0, owner),
            max_reply_bytes=protocol.MAX_LONG_REPLY_BYTES,
        )
        if not answer.get("ok"):
            raise BankingError(f"relay: {answer.get('message', 'refused')}")
        return answer

    return ask


__all__ = (
    "Ask",
    "JobRefused",
    "OptionError",
    "Quote",
    "Slurm",
    "Submission",
    "connect",
)
