# SPDX-License-Identifier: BSD-3-Clause
"""Slurm's JSON web tokens: made, read, and judged as auth/jwt of slurmctld and slurmdbd judges them.

HS256 with the bytes of the ``jwt_key`` file, RS256 with an RSA key whose public half is in the ``jwks`` file. Slurm wants
the claims ``sun`` (or ``username``) and ``exp``, a whole number of seconds since 1970; a token without ``exp`` has ended
for it. The ``kid`` in the header of an RS256 token chooses the key.

For the command line and the relay, never inside slurmctld. Signatures are checked with the standard library alone; a PEM
file needs the package ``cryptography``, imported when one is read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Collection, Dict, List, Mapping, Optional, Tuple, Union

from slurm_banking.errors import BankingError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

#: What a token lives when nothing is said: as ``scontrol token`` has it.
DEFAULT_LIFESPAN_S = 30 * 60

#: The longest that is made here. A token cannot be called back, short of replacing the key.
MAX_LIFESPAN_S = 24 * 3600

#: Bytes of an HS256 key that RFC 7518 asks for, and bits of an RSA key.
SECRET_BYTES = 32
RSA_BITS = 2048

MAX_TOKEN_BYTES = 16 * 1024
MAX_FILE_BYTES = 1024 * 1024

#: Above this an ``exp`` is no plausible number of seconds (the year 5138), but one of milliseconds.
_MILLISECONDS_FROM = 10**11

#: DigestInfo of SHA-256 (RFC 8017, section 9.2), ahead of the digest in an RS256 signature.
_SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")

#: The members of a JWK that are nobody's business: RSA's private numbers, and the key itself where it is symmetric.
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class TokenError(BankingError):
    """A token or a key that cannot be used: one line that names it and says why."""


@dataclass(frozen=True)
class Token:
    """What a token says. Nothing is believed yet."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    signed: bytes = field(repr=False)  #: what the signature is over
    signature: bytes = field(repr=False)

    @property
    def algorithm(self) -> str:
        """In capitals, since Slurm does not tell them from small letters; "" if there is none."""
        return _text(self.header.get("alg")).upper()

    @property
    def kid(self) -> Optional[str]:
        kid = self.header.get("kid")
        return kid if isinstance(kid, str) else None

    @property
    def user(self) -> Optional[str]:
        """Whom it is for: ``sun``, or else ``username``. None: nobody, and Slurm refuses it."""
        for claim in ("sun", "username"):
            value = self.claims.get(claim)
            if isinstance(value, str):
                return value
        return None

    @property
    def ends_s(self) -> Optional[int]:
        """``exp`` where it is a whole number; None: for Slurm it has ended."""
        return _whole(self.claims.get("exp"))

    @property
    def issued_s(self) -> Optional[int]:
        return _whole(self.claims.get("iat"))


@dataclass(frozen=True)
class Secret:
    """The bytes of a ``jwt_key`` file, a newline at its end included: that is what Slurm takes."""

    content: bytes = field(repr=False)


@dataclass(frozen=True)
class PublicKey:
    """One key of a jwks."""

    kid: str
    modulus: int
    exponent: int


@dataclass(frozen=True)
class KeyPair:
    """An RSA key; its ``kid`` is the thumbprint."""

    private: RSAPrivateKey = field(repr=False)
    public: PublicKey


# -- reading ----------------------------------------------------------------------------------------------------------


def decode(text: str) -> Token:
    """``text``: the token, with white space around it, or behind ``SLURM_JWT=`` or ``Bearer``.

    :raises TokenError: it is no signed token of three parts.
    """
    bare = re.sub(r"\A(?:(?:export\s+)?SLURM_JWT=|[Bb]earer\s+)", "", text.strip()).strip("\"' ")
    if not bare:
        raise TokenError("no token: expected HEADER.CLAIMS.SIGNATURE, found nothing")
    if len(bare) > MAX_TOKEN_BYTES:
        raise TokenError(f"no token: expected at most {MAX_TOKEN_BYTES} bytes, found {len(bare)}")
    parts = bare.split(".")
    if len(parts) != 3 or not all(re.fullmatch(r"[A-Za-z0-9_-]*", part) for part in parts):
        raise TokenError(
            "no token: expected HEADER.CLAIMS.SIGNATURE, three words of letters, digits, - and _ with dots between"
        )
    return Token(
        header=_object(parts[0], "header"),
        claims=_object(parts[1], "claims"),
        signed=f"{parts[0]}.{parts[1]}".encode("ascii"),
        signature=_base64(parts[2], "signature"),
    )


def bare(text: str) -> str:
    """The token alone, as the header of a request wants it.

    :raises TokenError: it is none.
    """
    token = decode(text)
    return f"{token.signed.decode('ascii')}.{_base64url(token.signature)}"


def read_token_text(path: str) -> str:
    """What a file holds, for `decode`. :raises TokenError: it cannot be read."""
    content, _ = _read(path)
    if len(content) > MAX_TOKEN_BYTES:
        raise TokenError(f"{path}: {len(content)} bytes: expected one token")
    return content.decode("utf-8", "replace")


def _object(part: str, what: str) -> Dict[str, Any]:
    try:
        found = json.loads(
            _base64(part, what), object_pairs_hook=_once, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise TokenError(f"no token: expected a JSON object in its {what}")
    return found


def _once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """libjwt refuses an object with a name twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _base64(part: str, what: str) -> bytes:
    try:
        content = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        content = b""
    # libjwt compares what it would have written itself: a last letter with bits to spare is another signature.
    if _base64url(content) != part:
        raise TokenError(f"no token: its {what} is not base64url")
    return content


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode("ascii")


def _number_base64url(number: int) -> str:
    return _base64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: Any) -> Optional[int]:
    """A JSON integer that fits where Slurm keeps it."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        return None
    return value


# -- judging ----------------------------------------------------------------------------------------------------------


def complaints(
    token: Token, *, now_s: int, user: Optional[str] = None, for_all: Collection[str] = ("root",)
) -> List[str]:
    """Why Slurm would refuse the token whatever its signature; empty: it would not.

    ``user``: whom the request is for (X-SLURM-USER-NAME). ``for_all``: whose tokens are good for every user, which is root
    and SlurmUser.
    """
    found = []
    if token.algorithm not in ("HS256", "RS256"):
        shown = _shown(token.header.get("alg"))
        found.append(f"its algorithm is {shown}: Slurm takes HS256 and RS256")
    elif isinstance(token.header.get("typ"), str) and token.header["typ"].upper() != "JWT":
        found.append(f"its typ is {_shown(token.header['typ'])}: Slurm takes JWT, or none")
    elif token.algorithm == "RS256" and token.kid is None:
        found.append("it has no kid: Slurm cannot tell which key of its jwks it was made with")
    ends_s = token.ends_s
    if "exp" not in token.claims:
        found.append("it has no exp: for Slurm it has ended")
    elif ends_s is None:
        shown = _shown(token.claims["exp"])
        found.append(
            f"its exp is {shown}: expected a whole number of seconds; for Slurm it has ended"
        )
    elif ends_s < now_s:
        found.append(f"it has ended: {moment(ends_s, now_s)}")
    name = token.user
    if name is None:
        found.append("it has neither sun nor username: it is nobody's")
    elif user is not None and name != user and name not in for_all:
        found.append(
            f"it is for {_shown(name)}, the request for {_shown(user)}: "
            "only tokens of root and SlurmUser are good for another user"
        )
    return found


def warnings(token: Token, *, now_s: int) -> List[str]:
    """What Slurm lets pass and should not be."""
    found = []
    ends_s, issued_s = token.ends_s, token.issued_s
    if ends_s is not None and ends_s >= _MILLISECONDS_FROM:
        found.append(
            f"its exp is {ends_s}: this looks like milliseconds; Slurm takes seconds, so it never ends: "
            "replace the key that it was made with"
        )
    elif ends_s is not None and ends_s - now_s > 366 * 24 * 3600:
        found.append("it ends in more than a year: whoever finds it is its user until then")
    if issued_s is None:
        found.append("it has no iat, a whole number of seconds: nobody can tell when it was made")
    elif issued_s >= _MILLISECONDS_FROM:
        found.append(f"its iat is {issued_s}: this looks like milliseconds; expected seconds")
    elif issued_s > now_s + 60:
        found.append("it was made in the future: do the clocks agree?")
    if isinstance(token.claims.get("sun"), str) and isinstance(token.claims.get("username"), str):
        if token.claims["sun"] != token.claims["username"]:
            found.append("it has another name in username than in sun: Slurm takes sun")
    return found


def signature_problem(
    token: Token, *, secret: Optional[Secret], public: Collection[PublicKey]
) -> Optional[str]:
    """Why Slurm, with these keys, would not believe the token; None: it would."""
    if token.algorithm == "HS256":
        if secret is None:
            return "it is signed with HS256, and there is no jwt_key"
        expected = hmac.new(secret.content, token.signed, hashlib.sha256).digest()
        if not hmac.compare_digest(expected, token.signature):
            return "its signature is not of this jwt_key: made with another key, or altered"
        return None
    if token.algorithm == "RS256":
        if not public:
            return "it is signed with RS256, and there is no jwks with a key for that"
        keys = [key for key in public if key.kid == token.kid]
        if not keys:
            known = ", ".join(_shown(key.kid) for key in public)
            return f"its kid is {_shown(token.kid)}: the jwks has {known}"
        if not any(_rsa_signed(token, key) for key in keys):
            return f"its signature is not of the key {_shown(token.kid)} in the jwks: made with another key, or altered"
        return None
    return f"its algorithm is {_shown(token.header.get('alg'))}: Slurm takes HS256 and RS256"


def _rsa_signed(token: Token, key: PublicKey) -> bool:
    """RSASSA-PKCS1-v1_5 with SHA-256. There are no secrets in here: nothing needs constant time."""
    size = (key.modulus.bit_length() + 7) // 8
    number = int.from_bytes(token.signature, "big")
    if len(token.signature) != size or number >= key.modulus:
        return False
    digest = _SHA256_INFO + hashlib.sha256(token.signed).digest()
    filler = size - len(digest) - 3
    if filler < 8:
        return False
    expected = b"\x00\x01" + b"\xff" * filler + b"\x00" + digest
    return pow(number, key.exponent, key.modulus).to_bytes(size, "big") == expected


def moment(at_s: int, now_s: int) -> str:
    """A time in words: "2027-01-31 18:30:00 +0100 (27 min ago)"."""
    try:
        shown = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(at_s))
    except (OverflowError, OSError, ValueError):
        shown = f"second {at_s}"
    return f"{shown} ({_distance(at_s - now_s)})"


def _distance(seconds: int) -> str:
    away = abs(seconds)
    for size, unit in ((365 * 86400, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if away >= 2 * size:
            text = f"{away // size:,} {unit}"
            break
    else:
        text = f"{away} s"
    return f"in {text}" if seconds > 0 else f"{text} ago"


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    text = value if isinstance(value, str) else json.dumps(value)
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= 60 else text[:57] + "..."


# -- making -----------------------------------------------------------------------------------------------------------


def mint(
    key: Union[Secret, KeyPair],
    *,
    user: str,
    lifespan_s: int = DEFAULT_LIFESPAN_S,
    now_s: int,
    kid: Optional[str] = None,
) -> str:
    """A token for ``user`` that ends ``lifespan_s`` from now. ``kid``: of a key pair; None: its thumbprint.

    :raises TokenError: the user's name or the lifespan cannot be.
    """
    if not re.fullmatch(r"[^\s,:\x00-\x1f\x7f]{1,255}", user):
        raise TokenError(f"user {_shown(user)}: expected the name of a Slurm user")
    if not 0 < lifespan_s <= MAX_LIFESPAN_S:
        raise TokenError(
            f"lifespan {lifespan_s} s: expected from 1 s to {MAX_LIFESPAN_S // 3600} h: "
            "a token cannot be called back"
        )
    header: Dict[str, Any] = {"alg": "HS256", "typ": "JWT"}
    if isinstance(key, KeyPair):
        header = {"alg": "RS256", "kid": key.public.kid if kid is None else kid, "typ": "JWT"}
    elif kid is not None:
        raise TokenError("kid: expected only with a PEM key: an HS256 token has none")
    claims = {"exp": now_s + lifespan_s, "iat": now_s, "sun": user}
    parts = [json.dumps(part, separators=(",", ":")).encode("ascii") for part in (header, claims)]
    signed = ".".join(_base64url(part) for part in parts).encode("ascii")
    if isinstance(key, KeyPair):
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        signature = key.private.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    else:
        signature = hmac.new(key.content, signed, hashlib.sha256).digest()
    return f"{signed.decode('ascii')}.{_base64url(signature)}"


def thumbprint(modulus: int, exponent: int) -> str:
    """RFC 7638, of an RSA key."""
    members = {"e": _number_base64url(exponent), "kty": "RSA", "n": _number_base64url(modulus)}
    text = json.dumps(members, separators=(",", ":"), sort_keys=True)
    return _base64url(hashlib.sha256(text.encode("ascii")).digest())


def make_jwks(keys: Collection[PublicKey]) -> str:
    """The file for ``jwks=``. :raises TokenError: two keys of one kid."""
    kids = [key.kid for key in keys]
    for kid in kids:
        if kids.count(kid) > 1:
            raise TokenError(f"kid {_shown(kid)}: expected another for each key")
    return _jwks_text(
        [
            {
                "kty": "RSA",
                "use": "sig",
                "alg": "RS256",
                "kid": key.kid,
                "n": _number_base64url(key.modulus),
                "e": _number_base64url(key.exponent),
            }
            for key in keys
        ]
    )


def _jwks_text(keys: List[Dict[str, str]]) -> str:
    return json.dumps({"keys": keys}, indent=2) + "\n"


# -- key files --------------------------------------------------------------------------------------------------------


def is_pem(content: bytes) -> bool:
    return b"-----BEGIN " in content[:4096]


def read_key(
    path: str, *, algorithm: Optional[str] = None
) -> Tuple[Union[Secret, KeyPair], List[str]]:
    """What tokens are made with, and warnings about the file. ``algorithm``: None: RS256 for a PEM, else HS256.

    Slurm takes any bytes as ``jwt_key``, a PEM also: then the algorithm has to be said.

    :raises TokenError: the file cannot be read or used, or others can read or change it.
    """
    content, status = _read(path)
    _not_a_jwks(path, content)
    notes = _secrecy(path, status)
    if algorithm is None:
        algorithm = "RS256" if is_pem(content) else "HS256"
    if algorithm == "RS256":
        return _key_pair(path, content), notes
    secret, more = _secret(path, content)
    return secret, notes + more


def read_secret(path: str) -> Tuple[Secret, List[str]]:
    """A ``jwt_key``, to check tokens with, and warnings. :raises TokenError: as for `read_key`."""
    content, status = _read(path)
    notes = _secrecy(path, status)
    secret, more = _secret(path, content)
    return secret, notes + more


def _secret(path: str, content: bytes) -> Tuple[Secret, List[str]]:
    if not content:
        raise TokenError(f"{path}: empty: expected {SECRET_BYTES} random bytes")
    if is_pem(content) and b"PRIVATE KEY-----" not in content:
        raise TokenError(f"{path}: a public key is no secret: expected {SECRET_BYTES} random bytes")
    _not_a_jwks(path, content)
    if len(content) < SECRET_BYTES:
        return Secret(content=content), [
            f"{path}: {len(content)} bytes: expected {SECRET_BYTES} random ones or more: a short key can be guessed"
        ]
    return Secret(content=content), []


def _not_a_jwks(path: str, content: bytes) -> None:
    if _json_keys(content) is not None:
        raise TokenError(
            f"{path}: a jwks: expected a jwt_key, or the PEM of a private key, to make tokens with"
        )


def _secrecy(path: str, status: os.stat_result) -> List[str]:
    mode = stat.S_IMODE(status.st_mode)
    mend = f"chmod 600 {path}, and replace the key if somebody may have seen it"
    if mode & 0o027:
        who = "everybody" if mode & 0o007 else "its group"
        may = "read" if mode & 0o004 else "change" if mode & 0o022 else "reach"
        raise TokenError(
            f"{path}: mode {mode:04o}: {who} may {may} it, and who has the key is every user: {mend}"
        )
    if mode & 0o040:
        return [
            f"{path}: mode {mode:04o}: its group may read it, and who has the key is every user"
        ]
    return []


def _cryptography(path: str) -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise TokenError(
            f"{path}: a PEM file needs the Python package cryptography "
            "(apt install python3-cryptography, dnf install python3-cryptography)"
        ) from None


def _key_pair(path: str, content: bytes) -> KeyPair:
    if not is_pem(content):
        raise TokenError(f"{path}: expected the PEM of a private RSA key for RS256")
    if b"PRIVATE KEY-----" not in content:
        raise TokenError(f"{path}: no private key in it: tokens are made with the private half")
    _cryptography(path)
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    try:
        private = serialization.load_pem_private_key(content, password=None)
    except TypeError:
        raise TokenError(f"{path}: the key has a passphrase: expected one without") from None
    except Exception as error:  # its own classes differ from version to version
        raise TokenError(f"{path}: no PEM of a private key: {_first_line(error)}") from None
    if not isinstance(private, rsa.RSAPrivateKey):
        raise TokenError(f"{path}: not an RSA key: Slurm takes RS256 alone")
    numbers = private.public_key().public_numbers()
    return KeyPair(private=private, public=_public_key(path, numbers.n, numbers.e))


def read_public_key(path: str, kid: Optional[str] = None) -> PublicKey:
    """The public half of an RSA key, from the PEM of either half. ``kid``: None: its thumbprint.

    :raises TokenError: there is none in it, or it is a private one that others can read.
    """
    content, status = _read(path)
    if not is_pem(content):
        raise TokenError(f"{path}: expected a PEM file with an RSA key")
    if b"PRIVATE KEY-----" in content:
        _secrecy(path, status)
        public = _key_pair(path, content).public
    else:
        _cryptography(path)
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        try:
            loaded = serialization.load_pem_public_key(content)
        except Exception as error:
            raise TokenError(f"{path}: no PEM of a key: {_first_line(error)}") from None
        if not isinstance(loaded, rsa.RSAPublicKey):
            raise TokenError(f"{path}: not an RSA key: Slurm takes RS256 alone")
        numbers = loaded.public_numbers()
        public = _public_key(path, numbers.n, numbers.e)
    if kid is None:
        return public
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", kid):
        raise TokenError(f"kid {_shown(kid)}: expected a word of at most 255 ASCII characters")
    return PublicKey(kid=kid, modulus=public.modulus, exponent=public.exponent)


def _public_key(path: str, modulus: int, exponent: int) -> PublicKey:
    if modulus.bit_length() < RSA_BITS:
        raise TokenError(f"{path}: {modulus.bit_length()} bits: expected {RSA_BITS} or more")
    return PublicKey(kid=thumbprint(modulus, exponent), modulus=modulus, exponent=exponent)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _json_keys(content: bytes) -> Optional[List[Any]]:
    """The members of ``keys`` in a jwks, or one JWK alone; None: neither."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if isinstance(document, dict) and isinstance(document.get("keys"), list):
        found: List[Any] = document["keys"]
        return found
    return [document] if isinstance(document, dict) and "kty" in document else None


def read_jwks(path: str) -> Tuple[Tuple[PublicKey, ...], List[str]]:
    """The keys of a jwks that Slurm uses, and warnings about the file.

    :raises TokenError: slurmctld and slurmdbd would not start with it.
    """
    content, status = _read(path)
    keys = _json_keys(content)
    if keys is None:
        raise TokenError(f'{path}: no jwks: expected JSON like {{"keys": [...]}}')
    notes = []
    if stat.S_IMODE(status.st_mode) & 0o022:
        notes.append(f"{path}: others may change it: who may put a key in is every user: chmod 644")
    found = []
    for number, item in enumerate(keys, 1):
        if not isinstance(item, dict):
            raise TokenError(f"{path}: key {number}: expected a JSON object")
        if _PRIVATE_MEMBERS & set(item):
            notes.append(f"{path}: key {number} has its private half in it: {_LEAKED}")
        if _text(item.get("alg")).upper() != "RS256":
            shown = _shown(item.get("alg"))
            notes.append(f"{path}: key {number}: alg is {shown}: Slurm passes over it")
            continue
        missing = [name for name in ("kid", "n", "e") if not isinstance(item.get(name), str)]
        if missing:
            raise TokenError(f"{path}: key {number}: {missing[0]} is missing: Slurm does not start")
        try:
            modulus, exponent = (
                int.from_bytes(_base64(item[name].rstrip("="), name), "big") for name in ("n", "e")
            )
        except TokenError:
            raise TokenError(f"{path}: key {number}: n and e: expected base64url") from None
        if modulus < 3 or exponent < 3:
            raise TokenError(f"{path}: key {number}: n and e: expected the numbers of an RSA key")
        found.append(PublicKey(kid=item["kid"], modulus=modulus, exponent=exponent))
    return tuple(found), notes


_LEAKED = "whoever could read it is every user: make a new key"


def overwrite_problem(path: str) -> Optional[str]:
    """Why a jwks must not be written there; None: nothing is there, or a jwks of public keys alone."""
    try:
        content, _ = _read(path)
    except TokenError as error:
        return None if not os.path.lexists(path) else str(error)
    if not content.strip():
        return None
    if b"PRIVATE KEY-----" in content:
        return f"{path}: has a private key in it: not written over"
    keys = _json_keys(content)
    if keys is None:
        return f"{path}: is no jwks: not written over"
    if any(isinstance(item, dict) and _PRIVATE_MEMBERS & set(item) for item in keys):
        return f"{path}: has a private key in it: not written over; {_LEAKED}"
    return None


def _read(path: str) -> Tuple[bytes, os.stat_result]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise TokenError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    try:
        status = os.fstat(descriptor)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            raise TokenError(f"{path}: expected a file")
        if stat.S_ISFIFO(status.st_mode):
            os.set_blocking(descriptor, True)  # <(command)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TokenError(f"{path}: cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(content) > MAX_FILE_BYTES:
        raise TokenError(f"{path}: expected at most {MAX_FILE_BYTES} bytes")
    return content, status
