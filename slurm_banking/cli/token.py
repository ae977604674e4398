# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking token mint|show|verify`` and ``slurm-banking jwks create``: tokens for slurmrestd, and the keys they need.

No token is an argument: arguments are everybody's to read. It comes from a file, from stdin, or from ``$SLURM_JWT``.
"""

from __future__ import annotations

import argparse
import os
import pwd
import re
import stat
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

from slurm_banking.cli.program import NO, OK, UNAVAILABLE, USAGE, CommandError
from slurm_banking.cli.words import second_word
from slurm_banking.errors import SlurmUnavailable

if TYPE_CHECKING:
    from slurm_banking.config import SlurmrestdConfig
    from slurm_banking.slurm import jwt as tokens

TOKEN_VARIABLE = "SLURM_JWT"

_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Outcome:
    """What a command found. Warnings go to stderr, so that ``export $(...)`` takes the rest alone."""

    status: int
    as_dict: Dict[str, Any]
    lines: Tuple[str, ...]
    warnings: Tuple[str, ...] = ()


# -- the words --------------------------------------------------------------------------------------------------------


def add_token_parser(parser: argparse.ArgumentParser) -> None:
    """The words after ``slurm-banking token``."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    made = _action(
        actions,
        "mint",
        "a token, printed as SLURM_JWT=..., as scontrol token does",
        'For a shell: export $(slurm-banking token mint --user "$USER").',
    )
    made.add_argument("--user", metavar="NAME", help="whom it is for (default: you)")
    made.add_argument(
        "--lifespan",
        metavar="TIME",
        default="30m",
        help="how long it is good: 90s, 30m, 8h, or seconds; at most 24h (default: 30m)",
    )
    made.add_argument(
        "--key",
        metavar="FILE",
        help="a jwt_key, or the PEM of a private key (default: [slurmrestd] key, or jwt_key of slurm.conf)",
    )
    made.add_argument(
        "--kid", metavar="ID", help="how the jwks calls the PEM (default: its thumbprint)"
    )
    made.add_argument(
        "--alg",
        choices=("HS256", "RS256"),
        help="default: RS256 for a PEM, HS256 for any other key",
    )
    made.add_argument(
        "--output",
        metavar="FILE",
        help="write the token alone there, mode 0600, and print none; a file that exists keeps its owner",
    )

    made = _action(actions, "show", "what a token says; nothing is checked against a key")
    _token_argument(made)

    made = _action(
        actions,
        "verify",
        "whether slurmctld and slurmdbd would take a token; exit status 0, 1, or 3",
    )
    _token_argument(made)
    made.add_argument(
        "--key", metavar="FILE", help="the jwt_key (default: that of [slurmrestd] or slurm.conf)"
    )
    made.add_argument(
        "--jwks", metavar="FILE", help="the public keys (default: that of slurm.conf)"
    )
    made.add_argument("--user", metavar="NAME", help="whom requests are for (X-SLURM-USER-NAME)")


def add_jwks_parser(parser: argparse.ArgumentParser) -> None:
    """The words after ``slurm-banking jwks``."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    made = _action(
        actions,
        "create",
        "the file for jwks= of slurm.conf and slurmdbd.conf: public halves only",
    )
    made.add_argument(
        "pem", nargs="+", metavar="PEM", help="an RSA key, its private or its public half"
    )
    made.add_argument(
        "--kid",
        metavar="ID",
        action="append",
        help="a name for the key, once for each PEM (default: thumbprints)",
    )
    made.add_argument("--output", metavar="FILE", help="mode 0644 (default: stdout)")


def _action(actions: Any, name: str, text: str, more: str = "") -> argparse.ArgumentParser:
    made = second_word(actions, name, text, more=more)
    made.add_argument(
        "--config",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="bank-config.toml (default: beside slurm.conf)",
    )
    return made


def _token_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help=f"a file with the token, - for stdin (default: ${TOKEN_VARIABLE})",
    )


# -- what they do -----------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace, config_path: str, config_named: bool) -> Outcome:
    """``config_named``: --config was given, so that the file must be there.

    :raises CommandError: with the exit status. :raises ConfigError: the configuration has mistakes.
    """
    settings = _Settings(config_path, config_named)
    if args.action == "mint":
        return mint(args, settings)
    if args.action == "show":
        return show(args)
    if args.action == "verify":
        return verify(args, settings)
    return create_jwks(args)


class _Settings:
    """``[slurmrestd]``, and what slurmctld says of itself; each read when first needed."""

    def __init__(self, config_path: str, config_named: bool) -> None:
        self._path = config_path
        self._named = config_named
        self._config: Optional[SlurmrestdConfig] = None
        self._slurm: Optional[Dict[str, str]] = None

    def slurmrestd(self) -> SlurmrestdConfig:
        """The defaults where there is no file, or none that this user may read."""
        from slurm_banking import config

        if self._config is None:
            if not self._named and not os.access(self._path, os.R_OK):
                self._config = config.SlurmrestdConfig()
            else:
                self._config = config.load(self._path, in_slurmctld=True).slurmrestd
        return self._config

    def slurm(self) -> Dict[str, str]:
        """:raises SlurmUnavailable: slurmctld does not answer."""
        from slurm_banking.slurm.control import read_controller

        if self._slurm is None:
            self._slurm = dict(read_controller().settings)
        return self._slurm

    def jwt_key(self) -> Optional[str]:
        """As auth/jwt finds its key. None: it has none."""
        settings = self.slurm()
        key = self._parameter("jwt_key")
        if key is None and self.knows_tokens() and self._parameter("jwks") is None:
            return os.path.join(settings.get("StateSaveLocation", ""), "jwt_hs256.key")
        return key

    def jwks(self) -> Optional[str]:
        return self._parameter("jwks")

    def knows_tokens(self) -> bool:
        return "auth/jwt" in self.slurm().get("AuthAltTypes", "")

    def _parameter(self, name: str) -> Optional[str]:
        match = re.search(rf"(?:^|,)\s*{name}=([^,]+)", self.slurm().get("AuthAltParameters", ""))
        return match[1].strip() if match else None

    def slurm_user(self) -> Optional[str]:
        """Its name; None: unknown, since slurmctld does not answer."""
        try:
            return self.slurm().get("SlurmUser", "").partition("(")[0] or None
        except SlurmUnavailable:
            return None


def mint(args: argparse.Namespace, settings: _Settings) -> Outcome:
    from slurm_banking.slurm import jwt

    lifespan_s = read_lifespan(args.lifespan)
    path, algorithm, kid = args.key, args.alg, args.kid
    if path is None:
        configured = settings.slurmrestd()
        path = configured.key
        kid = configured.kid if kid is None and path is not None else kid
    if path is None:
        path = _slurms_key(settings)
        algorithm = algorithm or "HS256"  # whatever its bytes look like: that is what jwt_key means
    if algorithm == "HS256" and args.kid is not None:
        raise CommandError("--kid: expected only with RS256: an HS256 token has none", USAGE)
    user = args.user or _user_name(os.geteuid())
    try:
        key, warnings = jwt.read_key(path, algorithm=algorithm)
    except jwt.TokenError as error:
        raise CommandError(str(error), UNAVAILABLE) from None
    now_s = int(time.time())
    try:
        made = jwt.mint(key, user=user, lifespan_s=lifespan_s, now_s=now_s, kid=kid)
    except jwt.TokenError as error:
        raise CommandError(str(error), USAGE) from None
    if not _known(user):
        warnings.append(
            f"{user} is no Unix user of this host: Slurm refuses the token unless it is one of the controller's"
        )
    token = jwt.decode(made)
    told: Dict[str, Any] = {
        "user": user,
        "algorithm": token.algorithm,
        "kid": token.kid,
        "issued": token.issued_s,
        "ends": token.ends_s,
        "key": path,
    }
    if args.output is None:
        told["token"] = made
        lines = [f"{TOKEN_VARIABLE}={made}"]
    else:
        _write(args.output, made + "\n", 0o600)
        told["output"] = args.output
        ends = jwt.moment(now_s + lifespan_s, now_s)
        lines = [f"{args.output}: a token for {user}, good until {ends}"]
    return Outcome(status=OK, as_dict=told, lines=tuple(lines), warnings=tuple(warnings))


def _slurms_key(settings: _Settings) -> str:
    try:
        path = settings.jwt_key()
    except SlurmUnavailable as error:
        raise CommandError(
            f"{error}: --key names a key without asking Slurm", UNAVAILABLE
        ) from None
    if path is None and settings.knows_tokens():
        raise CommandError(
            "slurm.conf has a jwks and no jwt_key: --key names the PEM of a private key in it", NO
        )
    if path is None:
        raise CommandError(
            "slurm.conf has no AuthAltTypes=auth/jwt: Slurm takes no tokens; --key names a key all the same",
            NO,
        )
    return path


def show(args: argparse.Namespace) -> Outcome:
    from slurm_banking.slurm import jwt

    token = _decode(_text_of(args.file))
    now_s = int(time.time())
    notes = [*jwt.complaints(token, now_s=now_s), *jwt.warnings(token, now_s=now_s)]
    told = {
        "header": dict(token.header),
        "claims": dict(token.claims),
        "user": token.user,
        "ended": token.ends_s is None or token.ends_s < now_s,
        "warnings": notes,
    }
    lines = [
        *_described(token, now_s),
        *(f"WARNING: {note}" for note in notes),
        "not checked against a key: slurm-banking token verify",
    ]
    return Outcome(status=OK, as_dict=told, lines=tuple(lines))


def verify(args: argparse.Namespace, settings: _Settings) -> Outcome:
    from slurm_banking.slurm import jwt

    token = _decode(_text_of(args.file))
    now_s = int(time.time())
    for_all = {"root"}
    if args.user is not None and token.user not in (None, args.user, "root"):
        for_all.add(settings.slurm_user() or "root")
    problems = jwt.complaints(token, now_s=now_s, user=args.user, for_all=for_all)
    warnings = jwt.warnings(token, now_s=now_s)
    checked_with: Optional[str] = None
    if token.algorithm in ("HS256", "RS256"):
        secret, public, checked_with, notes = _keys(args, settings, token)
        warnings += notes
        problem = jwt.signature_problem(token, secret=secret, public=public)
        if problem is not None:
            problems.insert(0, problem)
    if token.user is not None and not _known(token.user):
        warnings.append(
            f"{_plain(token.user)} is no Unix user of this host: is it one of the controller's?"
        )
    told = {
        "good": not problems,
        "user": token.user,
        "algorithm": token.algorithm,
        "kid": token.kid,
        "ends": token.ends_s,
        "key": checked_with,
        "problems": problems,
        "warnings": warnings,
    }
    lines = [*_described(token, now_s)]
    lines += [f"checked with  {checked_with}"] if checked_with else []
    lines += [f"WARNING: {note}" for note in warnings]
    if problems:
        lines += [f"NOT GOOD: {problem}" for problem in problems]
    else:
        lines.append("GOOD: slurmctld and slurmdbd with this key take it")
    return Outcome(status=NO if problems else OK, as_dict=told, lines=tuple(lines))


def _keys(
    args: argparse.Namespace, settings: _Settings, token: tokens.Token
) -> Tuple[Optional[tokens.Secret], Tuple[tokens.PublicKey, ...], Optional[str], List[str]]:
    """What Slurm would check the token with: a secret or public keys; where they are from; warnings."""
    from slurm_banking.slurm import jwt

    symmetric = token.algorithm == "HS256"
    path = args.key if symmetric else args.jwks
    if path is None and not (args.key or args.jwks):
        configured = settings.slurmrestd().key
        if configured is not None and _is_pem(configured) != symmetric:
            path = configured
    if path is None and not symmetric and args.key is not None and _is_pem(args.key):
        path = args.key
    if path is None and not (args.key or args.jwks):
        try:
            path = settings.jwt_key() if symmetric else settings.jwks()
        except SlurmUnavailable as error:
            raise CommandError(
                f"{error}: --key or --jwks names the keys without asking Slurm", UNAVAILABLE
            ) from None
    if path is None:
        return None, (), None, []
    try:
        if symmetric:
            secret, notes = jwt.read_secret(path)
            return secret, (), path, notes
        if _is_pem(path):
            # Of a single key there is no doubt which; that Slurm has it under this name is not known.
            return None, (jwt.read_public_key(path, kid=token.kid),), path, []
        public, notes = jwt.read_jwks(path)
        return None, public, path, notes
    except jwt.TokenError as error:
        raise CommandError(str(error), UNAVAILABLE) from None


def _is_pem(path: str) -> bool:
    from slurm_banking.slurm import jwt

    try:
        with open(path, "rb") as file:
            return jwt.is_pem(file.read(4096))
    except OSError:
        return False  # whoever reads it says so


def create_jwks(args: argparse.Namespace) -> Outcome:
    from slurm_banking.slurm import jwt

    kids: List[Optional[str]] = list(args.kid or [None] * len(args.pem))
    if len(kids) != len(args.pem):
        raise CommandError(
            f"--kid: expected one for each PEM: {len(args.pem)}, or none; found {len(kids)}", USAGE
        )
    try:
        keys = [jwt.read_public_key(path, kid) for path, kid in zip(args.pem, kids)]
        text = jwt.make_jwks(keys)
        problem = None if args.output is None else jwt.overwrite_problem(args.output)
    except jwt.TokenError as error:
        raise CommandError(str(error), UNAVAILABLE) from None
    if problem is not None:
        raise CommandError(f"--output {problem}", NO)
    told: Dict[str, Any] = {
        "keys": [{"kid": key.kid, "pem": path} for key, path in zip(keys, args.pem)]
    }
    if args.output is None:
        import json

        told["jwks"] = json.loads(text)
        return Outcome(status=OK, as_dict=told, lines=tuple(text.splitlines()))
    _write(args.output, text, 0o644)
    told["output"] = args.output
    lines = [f"kid {key.kid}  {path}" for key, path in zip(keys, args.pem)]
    lines.append(
        f"{args.output}: slurm.conf and slurmdbd.conf name it with jwks=; then restart both daemons"
    )
    return Outcome(status=OK, as_dict=told, lines=tuple(lines))


# -- parts ------------------------------------------------------------------------------------------------------------


def read_lifespan(typed: str) -> int:
    """Seconds. :raises CommandError: it is none."""
    from slurm_banking.slurm.jwt import MAX_LIFESPAN_S

    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", typed.strip())
    seconds = int(match[1]) * _UNITS_S[match[2]] if match else 0
    if not 0 < seconds <= MAX_LIFESPAN_S:
        raise CommandError(
            f"--lifespan {typed}: expected 90s, 30m, 8h or seconds, at most {MAX_LIFESPAN_S // 3600}h: "
            "a token cannot be called back",
            USAGE,
        )
    return seconds


def _text_of(named: Optional[str]) -> str:
    from slurm_banking.slurm import jwt

    if named is None:
        text = os.environ.get(TOKEN_VARIABLE)
        if not text:
            raise CommandError(
                f"no token: expected a FILE, - for stdin, or one in ${TOKEN_VARIABLE}", USAGE
            )
        return text
    if named == "-":
        return sys.stdin.buffer.read(jwt.MAX_TOKEN_BYTES + 1).decode("utf-8", "replace")
    if re.match(rf"eyJ|{TOKEN_VARIABLE}=", named):
        raise CommandError(
            "a token as an argument can be read by every user of this host (ps): expected a FILE, or - for stdin",
            USAGE,
        )
    try:
        text = jwt.read_token_text(named)
    except jwt.TokenError as error:
        raise CommandError(str(error), UNAVAILABLE) from None
    return text


def _decode(text: str) -> tokens.Token:
    from slurm_banking.slurm import jwt

    try:
        return jwt.decode(text)
    except jwt.TokenError as error:
        raise CommandError(str(error), NO) from None


def _described(token: tokens.Token, now_s: int) -> List[str]:
    from slurm_banking.slurm import jwt

    def at(claim: str) -> str:
        value = token.claims.get(claim)
        if value is None:
            return "not said"
        if isinstance(value, bool) or not isinstance(value, int):
            return str(value)[:60]
        return jwt.moment(value, now_s)

    rows = [("user", token.user or "nobody"), ("algorithm", token.algorithm or "none")]
    rows += [("kid", token.kid)] if token.kid is not None else []
    rows += [("issued", at("iat")), ("ends", at("exp"))]
    for name, value in token.claims.items():
        if name not in ("sun", "iat", "exp"):
            rows.append((name, str(value)))
    return [f"{_plain(label):<12}  {_plain(text)}" for label, text in rows]


def _plain(text: str) -> str:
    shown = text if len(text) <= 100 else text[:97] + "..."
    return "".join(char if char.isprintable() else "?" for char in shown)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise CommandError(f"uid {uid} has no name: --user says whom it is for", USAGE) from None


def _known(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except (KeyError, ValueError):
        return False
    return True


def _write(path: str, text: str, mode: int) -> None:
    """In one step, never readable by more than ``mode`` says; a file that was there keeps its owner.

    :raises CommandError: it cannot be.
    """
    scratch = f"{path}.new-{os.getpid()}"
    try:
        try:
            before: Optional[os.stat_result] = os.lstat(path)
        except FileNotFoundError:
            before = None
        if before is not None and not stat.S_ISREG(before.st_mode):
            raise CommandError(f"--output {path}: expected a file, or none yet", USAGE)
        if before is not None and before.st_uid != os.geteuid():
            # It would be given to whoever put it there.
            if os.stat(os.path.dirname(path) or ".").st_mode & 0o022:
                raise CommandError(
                    f"--output {path}: another user's, where others may put files: expected one of yours, or none yet",
                    NO,
                )
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                if before is not None and os.geteuid() == 0:
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, mode)
            os.replace(scratch, path)
        except BaseException:
            os.unlink(scratch)
            raise
    except OSError as error:
        raise CommandError(f"--output {path}: {error.strerror}", UNAVAILABLE) from None
