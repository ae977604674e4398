# SPDX-License-Identifier: BSD-3-Clause
"""Where a client of slurmrestd has its token from, and a fresh one while there is one to be had."""

from __future__ import annotations

import os
import pwd
import threading
import time
from typing import Callable, List, Mapping, Optional, Tuple, Union

from slurm_banking.config import FileStamp, SlurmrestdConfig, token_file_problem
from slurm_banking.slurm import jwt
from slurm_banking.slurm.jwt import TokenError

#: What a token that is made here lives; it is replaced when a third of that is left.
LIFESPAN_S = 30 * 60

#: A file, variable or key whose token ends within this is read again, in case it was renewed.
SOON_S = 60


class TokenSource:
    """A token from ``token_file``, ``token_env`` or made with ``key``: exactly one of them.

    ``user``: whom the token is for; None: the one in the token, or with ``key`` the Unix user of this process. ``kid``: how
    the jwks calls a PEM key; None: its thumbprint. May be asked from several threads.
    """

    def __init__(
        self,
        *,
        user: Optional[str] = None,
        token_file: Optional[str] = None,
        token_env: Optional[str] = None,
        key: Optional[str] = None,
        kid: Optional[str] = None,
        clock: Callable[[], float] = time.time,
        environment: Optional[Mapping[str, str]] = None,
    ) -> None:
        if sum(source is not None for source in (token_file, token_env, key)) != 1:
            raise ValueError("expected one of token_file, token_env and key")
        self._user = user
        self._token_file = token_file
        self._token_env = token_env
        self._key = key
        self._kid = kid
        self._clock = clock
        self._environment = os.environ if environment is None else environment
        self._lock = threading.Lock()
        self._stamp: Union[FileStamp, str, None] = None
        self._text: Optional[str] = None
        self._token: Optional[jwt.Token] = None

    @classmethod
    def from_config(cls, config: SlurmrestdConfig) -> Optional[TokenSource]:
        """As ``[slurmrestd]`` says; None: it names no source, and requests carry no token."""
        if config.token_file is None and config.token_env is None and config.key is None:
            return None
        return cls(
            user=config.user,
            token_file=config.token_file,
            token_env=config.token_env,
            key=config.key,
            kid=config.kid,
        )

    def token(self) -> str:
        """A token that has not ended: the one at hand, or where that ends soon, the file, variable or key once more.

        :raises TokenError: there is none: one line that names the source and says what to do.
        """
        with self._lock:
            return self._current()[1]

    def user_name(self) -> str:
        """Whom to ask as (X-SLURM-USER-NAME): ``user``, or whom the token is for.

        :raises TokenError: there is no token.
        """
        if self._user is not None:
            return self._user
        with self._lock:
            return str(self._current()[0].user)

    def doubts(self) -> List[str]:
        """For when the server refused the token: what about it Slurm would refuse, as far as it can be told from here.

        Then the source is asked once more at the next question.
        """
        with self._lock:
            token, self._text = self._token, None
        if token is None:
            return []
        now_s = int(self._clock())
        found = jwt.complaints(token, now_s=now_s, user=self._user)
        return [f"{self._name}: {text}" for text in [*found, *jwt.warnings(token, now_s=now_s)]]

    def forget(self) -> None:
        """The next question reads or makes a new token."""
        with self._lock:
            self._text = None

    @property
    def _name(self) -> str:
        if self._key is not None:
            return f"token made with {self._key}"
        return f"token in {self._token_file or f'${self._token_env}'}"

    def _current(self) -> Tuple[jwt.Token, str]:
        now_s = int(self._clock())
        stamp = self._stamp_now()
        if self._token is None or self._text is None or stamp != self._stamp or self._soon(now_s):
            self._text = None
            text = self._made(now_s) if self._key is not None else self._read()
            try:
                self._token, self._text = jwt.decode(text), jwt.bare(text)
            except TokenError as error:
                raise TokenError(f"{self._name}: {error}") from None
            self._stamp = stamp
        user = self._user or self._token.user or "USER"
        for complaint in jwt.complaints(self._token, now_s=now_s):
            mend = f"slurm-banking token mint --user {user}"
            if self._token_file is not None:
                mend += f" --output {self._token_file}"
            raise TokenError(f"{self._name}: {complaint}: make a new one: {mend}")
        return self._token, self._text

    def _soon(self, now_s: int) -> bool:
        ends_s = None if self._token is None else self._token.ends_s
        left_s = 0 if ends_s is None else ends_s - now_s
        return left_s < (LIFESPAN_S // 3 if self._key is not None else SOON_S)

    def _stamp_now(self) -> Union[FileStamp, str, None]:
        """Another value, another token."""
        if self._token_env is not None:
            return self._environment.get(self._token_env)
        path = self._token_file or self._key
        try:
            return FileStamp.of(os.stat(str(path)))
        except OSError:
            return None  # whoever opens it says why

    def _made(self, now_s: int) -> str:
        assert self._key is not None
        key, _ = jwt.read_key(self._key)
        return jwt.mint(
            key,
            user=self._user or process_user(),
            lifespan_s=LIFESPAN_S,
            now_s=now_s,
            kid=self._kid,
        )

    def _read(self) -> str:
        if self._token_env is not None:
            text = self._environment.get(self._token_env)
            if not text:
                raise TokenError(
                    f"${self._token_env}: not in the environment: expected a token in it: "
                    f"{self._token_env}=$(scontrol token | cut -d= -f2)"
                )
            return text
        assert self._token_file is not None
        try:
            status = os.stat(self._token_file)
        except OSError as error:
            raise TokenError(
                f"token in {self._token_file}: cannot be read: {error.strerror}"
            ) from None
        # Root acts for the owner, who is the relay's user mostly.
        mine = os.geteuid() or status.st_uid
        problem = token_file_problem(status, self._token_file, (0, mine))
        if problem:
            raise TokenError(f"token in {self._token_file}: {problem}")
        return jwt.read_token_text(self._token_file)


def source_problems(config: SlurmrestdConfig, uid: int) -> Tuple[List[str], List[str]]:
    """What is wrong with the file that ``[slurmrestd]`` names, for a relay that is ``uid``; and what may be.

    Each continues "[slurmrestd]". Nothing about ``token_env``: the relay's environment is not this process's.
    """
    key = "key" if config.key is not None else "token_file"
    path = config.key if config.key is not None else config.token_file
    if path is None:
        return [], []
    where = f'{key} = "{path}"'
    try:
        status = os.stat(path)
        if config.key is not None:
            _, notes = jwt.read_key(path)
        else:
            problem = token_file_problem(status, path, (0, uid))
            if problem is not None:
                return [f"{where}: {problem}"], []
            token = jwt.decode(jwt.read_token_text(path))
            now_s = int(time.time())
            notes = jwt.complaints(token, now_s=now_s, user=config.user)
            notes += jwt.warnings(token, now_s=now_s)
    except OSError as error:
        return [f"{where}: cannot be read: {error.strerror}"], []
    except TokenError as error:
        return [f"{where}: {str(error).replace(f'{path}: ', '', 1)}"], []
    if status.st_uid != uid and uid != 0 and not status.st_mode & 0o040:
        name = _name(uid)
        return [
            f"{where}: belongs to {_name(status.st_uid)}: the relay runs as {name}: chown {name} {path}"
        ], []
    return [], [f"{where}: {note.replace(f'{path}: ', '', 1)}" for note in notes]


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def process_user() -> str:
    """The name of the Unix user that this process belongs to."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise TokenError(
            f"uid {os.geteuid()} has no name: [slurmrestd] user says whom the token is for"
        ) from None
