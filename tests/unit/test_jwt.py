# SPDX-License-Identifier: BSD-3-Clause
"""Tokens of Slurm's: made as PyJWT reads them, read as Slurm reads them, keys kept to those they belong to."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from slurm_banking.slurm import jwt

NOW_S = 1_900_000_000
SECRET = jwt.Secret(content=bytes(range(32)))

#: One for all tests: to make one takes a while.
PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Z", "C"], exclude_characters=",:"),
    min_size=1,
    max_size=40,
)


def pem_of(key: Any, *, passphrase: bytes | None = None) -> bytes:
    encryption: Any = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    form = serialization.PrivateFormat.PKCS8
    content: bytes = key.private_bytes(serialization.Encoding.PEM, form, encryption)
    return content


def public_pem_of(key: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    content: bytes = key.public_key().public_bytes(serialization.Encoding.PEM, form)
    return content


def a_file(tmp_path: Path, content: bytes, mode: int = 0o600, name: str = "key") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.fixture
def pair(tmp_path: Path) -> jwt.KeyPair:
    key, _ = jwt.read_key(a_file(tmp_path, pem_of(PRIVATE), name="pair.pem"))
    assert isinstance(key, jwt.KeyPair)
    return key


def token_of(claims: Any, header: Any = None) -> jwt.Token:
    """Unsigned."""
    parts = [header or {"alg": "HS256", "typ": "JWT"}, claims]
    texts = [json.dumps(item).encode() for item in parts]
    return jwt.decode(
        ".".join(base64.urlsafe_b64encode(t).rstrip(b"=").decode() for t in texts) + "."
    )


def claims(**other: Any) -> dict[str, Any]:
    return {"exp": NOW_S + 60, "iat": NOW_S, "sun": "alice", **other}


@given(user=NAMES, secret=st.binary(min_size=32, max_size=80), lifespan_s=st.integers(1, 86400))
def test_an_hs256_token_is_what_an_independent_reader_takes(
    user: str, secret: bytes, lifespan_s: int
) -> None:
    key = jwt.Secret(content=secret)
    text = jwt.mint(key, user=user, lifespan_s=lifespan_s, now_s=NOW_S)
    read = pyjwt.decode(
        text, secret, algorithms=["HS256"], options={"verify_exp": False, "verify_iat": False}
    )
    assert read == {"exp": NOW_S + lifespan_s, "iat": NOW_S, "sun": user}
    token = jwt.decode(text)
    assert jwt.signature_problem(token, secret=key, public=()) is None
    assert jwt.complaints(token, now_s=NOW_S, user=user) == []
    assert jwt.warnings(token, now_s=NOW_S) == []


def test_an_rs256_token_is_what_an_independent_reader_takes_with_the_jwks(
    pair: jwt.KeyPair,
) -> None:
    text = jwt.mint(pair, user="alice", now_s=NOW_S)
    jwks = pyjwt.PyJWKSet.from_json(jwt.make_jwks([pair.public]))
    key = jwks[pyjwt.get_unverified_header(text)["kid"]]
    read = pyjwt.decode(
        text, key, algorithms=["RS256"], options={"verify_exp": False, "verify_iat": False}
    )
    assert read["sun"] == "alice"
    assert jwt.signature_problem(jwt.decode(text), secret=None, public=[pair.public]) is None


def test_signatures_of_an_independent_maker_are_believed(pair: jwt.KeyPair) -> None:
    with_pem = pyjwt.encode(claims(), PRIVATE, algorithm="RS256", headers={"kid": pair.public.kid})
    with_secret = pyjwt.encode(claims(), SECRET.content, algorithm="HS256")
    for text in (with_pem, with_secret):
        token = jwt.decode(text)
        assert jwt.signature_problem(token, secret=SECRET, public=[pair.public]) is None


@given(at=st.integers(0, 10_000), letter=st.sampled_from("abcXYZ019-_"), rsa_signed=st.booleans())
def test_no_letter_of_a_token_can_be_changed(at: int, letter: str, rsa_signed: bool) -> None:
    numbers = PRIVATE.public_key().public_numbers()
    public = jwt.PublicKey(kid="one", modulus=numbers.n, exponent=numbers.e)
    key = jwt.KeyPair(private=PRIVATE, public=public) if rsa_signed else SECRET
    text = jwt.mint(key, user="alice", now_s=NOW_S)
    at %= len(text)
    changed = text[:at] + letter + text[at + 1 :]
    try:
        token = jwt.decode(changed)
    except jwt.TokenError:
        return
    problem = jwt.signature_problem(token, secret=SECRET, public=[public])
    assert (problem is None) is (changed == text)


def test_another_spelling_of_the_same_signature_is_none_as_libjwt_has_it() -> None:
    """32 bytes are 43 letters, and the last one has two bits to spare."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    text = jwt.mint(SECRET, user="alice", now_s=NOW_S)
    other = text[:-1] + letters[letters.index(text[-1]) + 1]
    assert base64.urlsafe_b64decode(other[-43:] + "=") == base64.urlsafe_b64decode(text[-43:] + "=")
    with pytest.raises(jwt.TokenError, match="signature is not base64url"):
        jwt.decode(other)


def test_a_name_twice_is_no_token_as_libjwt_has_it() -> None:
    header, _, signature = jwt.mint(SECRET, user="alice", now_s=NOW_S).split(".")
    body = base64.urlsafe_b64encode(b'{"sun":"alice","sun":"root"}').rstrip(b"=").decode()
    with pytest.raises(jwt.TokenError, match="JSON object in its claims"):
        jwt.decode(f"{header}.{body}.{signature}")


def test_a_signature_with_the_right_digest_and_other_padding_is_not_believed(
    pair: jwt.KeyPair,
) -> None:
    """With an exponent of 3 such signatures can be made without the private half."""
    numbers = PRIVATE.private_numbers()
    token = jwt.decode(jwt.mint(pair, user="alice", now_s=NOW_S))
    right = pow(int.from_bytes(token.signature, "big"), 65537, pair.public.modulus)
    for wrong in (right, right ^ (1 << 1000), right & ((1 << 600) - 1)):
        signature = pow(wrong, numbers.d, pair.public.modulus).to_bytes(256, "big")
        forged = replace(token, signature=signature)
        problem = jwt.signature_problem(forged, secret=None, public=[pair.public])
        assert (problem is None) is (wrong == right)


@given(st.text(max_size=200) | st.from_regex(r"[\w-]{0,40}(\.[\w-]{0,40}){0,4}", fullmatch=True))
def test_any_text_is_a_token_or_one_line_of_error(text: str) -> None:
    try:
        jwt.decode(text)
    except jwt.TokenError as error:
        assert "\n" not in str(error)
        assert str(error).startswith("no token: ")


@pytest.mark.parametrize("form", ["{}", "  {}\n", "SLURM_JWT={}\n", "export SLURM_JWT={}", 'SLURM_JWT="{}"', "Bearer {}"])  # fmt: skip
def test_a_token_is_read_as_it_lies_around(form: str) -> None:
    text = jwt.mint(SECRET, user="alice", now_s=NOW_S)
    assert jwt.bare(form.format(text)) == text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"exp": NOW_S - 1}, "it has ended"),
        ({"exp": NOW_S}, None),
        ({"exp": float(NOW_S + 9)}, "expected a whole number of seconds"),
        ({"exp": True}, "expected a whole number of seconds"),
        ({"exp": 2**63}, "expected a whole number of seconds"),
        ({"sun": None}, "neither sun nor username"),
        ({"sun": None, "username": "alice"}, None),
        ({"sun": "bob"}, "it is for bob, the request for alice"),
        ({"sun": "root"}, None),
    ],
)
def test_what_slurm_refuses_is_said_in_words(changes: Any, expected: str | None) -> None:
    found = jwt.complaints(token_of(claims(**changes)), now_s=NOW_S, user="alice")
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]


def test_a_token_without_exp_has_ended_for_slurm() -> None:
    token = token_of({"iat": NOW_S, "sun": "alice"})
    assert jwt.complaints(token, now_s=NOW_S) == ["it has no exp: for Slurm it has ended"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"exp": (NOW_S + 60) * 1000}, "looks like milliseconds"),
        ({"exp": NOW_S + 2 * 366 * 86400}, "more than a year"),
        ({"iat": None}, "no iat"),
        ({"iat": NOW_S * 1000}, "looks like milliseconds"),
        ({"iat": NOW_S + 600}, "made in the future"),
        ({"username": "bob"}, "another name"),
    ],
)
def test_what_slurm_lets_pass_and_should_not_be_is_warned_about(
    changes: Any, expected: str
) -> None:
    token = token_of(claims(**changes))
    assert jwt.complaints(token, now_s=NOW_S, user="alice") == []
    assert [expected in warning for warning in jwt.warnings(token, now_s=NOW_S)] == [True]


@pytest.mark.parametrize("lifespan_s", [0, -1, jwt.MAX_LIFESPAN_S + 1, 10**12])
def test_no_token_lives_longer_than_a_day(lifespan_s: int) -> None:
    with pytest.raises(jwt.TokenError, match="lifespan"):
        jwt.mint(SECRET, user="alice", lifespan_s=lifespan_s, now_s=NOW_S)


@pytest.mark.parametrize("user", ["", "a b", "a,b", "a\nb", "x" * 256])
def test_a_token_is_for_a_user(user: str) -> None:
    with pytest.raises(jwt.TokenError, match="expected the name of a Slurm user"):
        jwt.mint(SECRET, user=user, now_s=NOW_S)


# -- key files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o620, 0o644, 0o777])
@pytest.mark.parametrize("content", [SECRET.content, pem_of(PRIVATE)], ids=["secret", "pem"])
def test_a_key_that_others_can_read_or_change_makes_no_token(
    tmp_path: Path, content: bytes, mode: int
) -> None:
    path = a_file(tmp_path, content, mode)
    with pytest.raises(jwt.TokenError, match=f"{path}: mode {mode:04o}: .*chmod 600"):
        jwt.read_key(path)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_of_its_owner_alone_is_used_without_a_word(tmp_path: Path, mode: int) -> None:
    assert jwt.read_key(a_file(tmp_path, SECRET.content, mode)) == (SECRET, [])


def test_a_key_that_its_group_reads_is_warned_about(tmp_path: Path) -> None:
    _, notes = jwt.read_key(a_file(tmp_path, SECRET.content, 0o640))
    assert len(notes) == 1 and "its group may read it" in notes[0]


def test_every_byte_of_the_key_file_counts_as_it_does_for_slurm(tmp_path: Path) -> None:
    content = b"k" * 40 + b"\n"
    key, _ = jwt.read_key(a_file(tmp_path, content))
    text = jwt.mint(key, user="alice", now_s=NOW_S)
    pyjwt.decode(
        text, content, algorithms=["HS256"], options={"verify_exp": False, "verify_iat": False}
    )


def test_a_short_key_is_warned_about(tmp_path: Path) -> None:
    _, notes = jwt.read_key(a_file(tmp_path, b"secret"))
    assert len(notes) == 1 and "6 bytes" in notes[0]


def test_a_pem_that_slurm_has_as_jwt_key_makes_hs256_tokens(tmp_path: Path) -> None:
    path = a_file(tmp_path, pem_of(PRIVATE))
    assert jwt.read_key(path, algorithm="HS256")[0] == jwt.Secret(content=pem_of(PRIVATE))


SMALL = rsa.generate_private_key(public_exponent=65537, key_size=1024)
WRONG_KEYS = {
    "empty: expected 32 random bytes": (b"", None),
    "a public key is no secret": (public_pem_of(PRIVATE), "HS256"),
    "no private key in it": (public_pem_of(PRIVATE), None),
    "has a passphrase": (pem_of(PRIVATE, passphrase=b"word"), None),
    "not an RSA key": (pem_of(ec.generate_private_key(ec.SECP256R1())), None),
    "1024 bits: expected 2048": (pem_of(SMALL), None),
    "no PEM of a private key": (
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        None,
    ),
    "expected the PEM of a private RSA key": (SECRET.content, "RS256"),
    "a jwks: expected a jwt_key": (b'{"keys": []}', None),
}


@pytest.mark.parametrize("expected", WRONG_KEYS)
def test_what_is_no_key_is_said_so_in_one_line(tmp_path: Path, expected: str) -> None:
    content, algorithm = WRONG_KEYS[expected]
    path = a_file(tmp_path, content)
    with pytest.raises(jwt.TokenError) as caught:
        jwt.read_key(path, algorithm=algorithm)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_is_never_in_its_text(pair: jwt.KeyPair) -> None:
    assert "content" not in repr(SECRET)
    assert "RSAPrivateKey" not in repr(pair)


# -- jwks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [pem_of(PRIVATE), public_pem_of(PRIVATE)], ids=["private", "public"])  # fmt: skip
def test_a_jwks_has_public_numbers_only_and_the_thumbprint_as_kid(
    tmp_path: Path, content: bytes
) -> None:
    public = jwt.read_public_key(a_file(tmp_path, content))
    document = json.loads(jwt.make_jwks([public]))
    assert set(document) == {"keys"}
    assert set(document["keys"][0]) == {"kty", "use", "alg", "kid", "n", "e"}
    assert document["keys"][0]["alg"] == "RS256"
    path = a_file(tmp_path, json.dumps(document).encode(), 0o644, "jwks.json")
    assert jwt.read_jwks(path) == ((public,), [])


def test_the_thumbprint_is_that_of_the_rfc() -> None:
    """The example of RFC 7638, section 3.1."""
    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs"
        "tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpb"
        "ISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    number = int.from_bytes(base64.urlsafe_b64decode(modulus + "=="), "big")
    assert jwt.thumbprint(number, 65537) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_two_keys_of_one_name_make_no_jwks(pair: jwt.KeyPair) -> None:
    with pytest.raises(jwt.TokenError, match="expected another for each key"):
        jwt.make_jwks([pair.public, pair.public])


def test_a_jwks_with_a_private_key_in_it_is_warned_about(tmp_path: Path) -> None:
    leaked = json.loads(pyjwt.algorithms.RSAAlgorithm.to_jwk(PRIVATE)) | {
        "alg": "RS256",
        "kid": "x",
    }
    path = a_file(tmp_path, json.dumps({"keys": [leaked]}).encode(), 0o644)
    keys, notes = jwt.read_jwks(path)
    assert len(keys) == 1
    assert len(notes) == 1 and "private half" in notes[0] and "make a new key" in notes[0]
    assert "private key in it" in str(jwt.overwrite_problem(path))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", None),
        (b'{"keys": []}', None),
        (pem_of(PRIVATE), "private key in it"),
        (SECRET.content, "is no jwks"),
        (b'{"keys": [{"kty": "oct", "k": "AAAA"}]}', "private key in it"),
    ],
)
def test_a_jwks_is_written_over_a_jwks_only(
    tmp_path: Path, content: bytes, expected: str | None
) -> None:
    path = a_file(tmp_path, content)
    problem = jwt.overwrite_problem(path)
    assert (problem is None) is (expected is None)
    assert expected is None or expected in str(problem)
    assert jwt.overwrite_problem(str(tmp_path / "new")) is None


@pytest.mark.parametrize("at", [-(10**18), 0, NOW_S, 10**12, 2**62])
def test_any_time_has_words(at: int) -> None:
    assert jwt.moment(at, NOW_S).endswith((" ago)", "s)", " h)", "min)"))
    assert jwt.moment(NOW_S, NOW_S).endswith("(0 s ago)")


def test_without_the_package_for_pem_files_one_line_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(jwt.TokenError, match="apt install python3-cryptography"):
        jwt.read_key(a_file(tmp_path, pem_of(PRIVATE)))
    assert jwt.read_key(a_file(tmp_path, SECRET.content))[0] == SECRET


def test_a_key_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(jwt.TokenError, match="empty"):
        jwt.read_secret(str(tmp_path / "pipe"))
    with pytest.raises(jwt.TokenError, match="expected a file|Is a directory"):
        jwt.read_secret(str(tmp_path))
