# SPDX-License-Identifier: BSD-3-Clause
"""Tokens made here, on a real slurmctld, slurmdbd and slurmrestd: taken where they are good, refused where we say so."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import random
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slurm_banking.slurm import jwt
from slurm_banking.slurm.rest_token import TokenSource
from tests.rig.cluster import CHECKOUT, Cluster
from tests.rig.restd import Slurmrestd, enable_tokens, key_file

pytestmark = pytest.mark.live

USER = "sb-alice"
#: Of slurmctld and of slurmdbd. No ping: slurmrestd 24.11 answers 200 to one, and calls slurmctld down.
ASKED = ("slurm/diag", "slurmdb/qos")


@dataclass(frozen=True)
class Site:
    cluster: Cluster
    restd: Slurmrestd
    pem: Path
    other_pem: Path

    def command(
        self, *words: str, user: str = "root", input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """``slurm-banking WORDS`` with the system's Python, as an admin has it."""
        return command(self.cluster, *words, user=user, input=input)

    def taken(self, token: str, *, user: str = USER, over: str = "tcp") -> bool:
        """By slurmctld and by slurmdbd, which are of one mind."""
        answers = {
            self.restd.ask("GET", self.restd.path(path), user=user, token=token, over=over)[0]
            == 200
            for path in ASKED
        }
        assert len(answers) == 1, f"slurmctld and slurmdbd differ on {token}"
        return answers.pop()

    def verified(self, token: str, *options: str) -> tuple[int, dict[str, Any]]:
        result = self.command("token", "verify", "-", "--json", *options, input=token)
        assert result.stdout, result.stderr
        return result.returncode, json.loads(result.stdout)


def command(
    cluster: Cluster, *words: str, user: str = "root", input: str | None = None
) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"}
    argv = ["/usr/bin/python3", "-m", "slurm_banking", *words]
    return cluster.run_as(user, argv, env=env, input=input)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    cluster = Cluster()
    cluster.prepare()
    try:
        pems = [cluster.etc_dir / "rs256.pem", cluster.root / "other.pem"]
        for pem in pems:
            subprocess.run(["openssl", "genrsa", "-out", pem, "2048"], check=True, timeout=60)
        jwks = cluster.etc_dir / "jwks.json"
        made = command(cluster, "jwks", "create", str(pems[0]), "--output", str(jwks))
        assert made.returncode == 0, made.stderr
        assert jwks.stat().st_mode & 0o777 == 0o644
        enable_tokens(cluster, jwks)
        with Slurmrestd(cluster) as restd:
            yield Site(cluster=cluster, restd=restd, pem=pems[0], other_pem=pems[1])
    finally:
        cluster.stop()


def minted(site: Site, *options: str) -> str:
    result = site.command("token", "mint", "--user", USER, *options)
    assert result.returncode == 0, result.stderr
    name, _, token = result.stdout.strip().partition("=")
    assert name == "SLURM_JWT"
    return token


def part(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def signed(site: Site, claims: Mapping[str, Any], header: Mapping[str, Any] | None = None) -> str:
    """With the cluster's own key, whatever it says."""
    text = f"{part(header or {'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}"
    return with_signature(text, key_file(site.cluster).read_bytes())


def with_signature(text: str, key: bytes) -> str:
    digest = hmac.new(key, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def claims(**other: Any) -> dict[str, Any]:
    now = int(time.time())
    return {"exp": now + 600, "iat": now, "sun": USER, **other}


@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_tokens_minted_here_are_taken(site: Site, over: str) -> None:
    for options in ([], ["--key", str(site.pem)]):
        token = minted(site, *options)
        assert site.taken(token, over=over)
        status, told = site.verified(token)
        assert (status, told["good"], told["user"]) == (0, True, USER)


def test_a_token_of_scontrol_is_good_and_like_ours(site: Site) -> None:
    token = site.restd.scontrol_token(USER)
    assert site.verified(token)[0] == 0
    theirs, ours = jwt.decode(token), jwt.decode(minted(site))
    assert theirs.header == ours.header
    assert set(theirs.claims) == set(ours.claims)


def test_wrong_tokens_are_refused_over_tcp_and_socket_and_verify_says_why(site: Site) -> None:
    good = minted(site)
    header, body, signature = good.split(".")
    pem = jwt.read_key(str(site.pem))[0]
    other = jwt.read_key(str(site.other_pem))[0]
    now_s = int(time.time())
    kid = jwt.read_public_key(str(site.pem)).kid
    wrong = {
        "ended": signed(site, claims(exp=now_s - 5)),
        "no exp": signed(site, {"iat": now_s, "sun": USER}),
        "a whole number": signed(site, claims(exp=str(now_s + 600))),
        "neither sun nor username": signed(site, {"exp": now_s + 600, "iat": now_s}),
        "made with another key": jwt.mint(jwt.Secret(content=b"x" * 32), user=USER, now_s=now_s),
        "or altered": f"{header}.{part(claims(sun='root'))}.{signature}",
        "made with another key, or altered": jwt.mint(other, user=USER, now_s=now_s, kid=kid),
        "its kid is nobodys": jwt.mint(pem, user=USER, now_s=now_s, kid="nobodys"),
        "no kid": signed(site, claims(), {"alg": "RS256", "typ": "JWT"}),
        "algorithm is none": f"{part({'alg': 'none'})}.{body}.",
        "algorithm is HS512": signed(site, claims(), {"alg": "HS512", "typ": "JWT"}),
    }
    for reason, token in wrong.items():
        for over in ("tcp", "unix"):
            assert not site.taken(token, over=over), reason
        status, told = site.verified(token)
        assert status == 1
        assert any(reason in problem for problem in told["problems"]), (reason, told["problems"])
    assert not site.taken("garbage")
    answer = site.command("token", "verify", "-", input="garbage")
    assert answer.returncode == 1
    assert "expected HEADER.CLAIMS.SIGNATURE" in answer.stderr


def test_only_tokens_of_root_and_slurmuser_are_good_for_another_user(site: Site) -> None:
    for user, good in ((USER, False), ("root", True), ("slurm", True)):
        token = signed(site, claims(sun=user))
        assert site.taken(token, user="sb-bob") is good
        status, told = site.verified(token, "--user", "sb-bob")
        assert status == (0 if good else 1), told


def test_milliseconds_are_taken_by_slurm_and_warned_about_here(site: Site) -> None:
    token = signed(site, claims(exp=int(time.time()) * 1000))
    assert site.taken(token)
    status, told = site.verified(token)
    assert status == 0
    assert "milliseconds" in told["warnings"][0]


def test_verify_and_slurm_agree_on_tokens_nobody_thought_of(site: Site) -> None:
    """Each change of a good token, at the header, the claims or a letter, is judged alike by both."""
    chance = random.Random(5)
    secret, _ = jwt.read_secret(str(key_file(site.cluster)))
    public, _ = jwt.read_jwks(str(site.cluster.etc_dir / "jwks.json"))
    pair = jwt.read_key(str(site.pem))[0]
    now_s = int(time.time())
    tokens = [
        signed(site, claims(exp=value))
        for value in (True, None, 1e12, -1, 0, now_s + 900, 2**62, [now_s + 60], f"{now_s + 60}")
    ]
    tokens += [signed(site, claims(sun=value)) for value in (None, 7, "", [USER])]
    # libjwt 1.10 (Debian 12) takes any case of the algorithm, and looks at typ; 1.17 (Debian 13) does neither. No maker of
    # tokens writes such headers; verify judges them as 1.10 does.
    by_library = [
        signed(site, claims(), {"alg": "hs256"}),
        signed(site, claims(), {"alg": "HS256", "kid": "any", "typ": "other"}),
        signed(site, claims(), {"alg": "HS256", "typ": ""}),
    ]
    if site.restd.newest == "v0.0.38":
        tokens += by_library
    tokens += [
        signed(site, {"exp": now_s + 600, "username": USER}),
        signed(site, {"exp": now_s + 600, "sun": 7, "username": USER}),
        signed(site, claims(), {"typ": "JWT"}),
        *(signed(site, claims(), {"alg": "HS256", "typ": typ}) for typ in ("jwt", 7, None)),
        signed(site, claims(), {"alg": "HS256", "typ": "JWT", "crit": ["exp"]}),
        signed(site, claims(nbf=now_s + 500, iss="somebody", aud=["a", "b"])),
    ]
    for _ in range(60):
        key = chance.choice([secret, pair])
        token = jwt.mint(key, user=USER, now_s=now_s)
        at = chance.randrange(len(token))
        letter = chance.choice("ABCDxyz019-_.=")
        tokens.append(
            chance.choice([token[:at] + letter + token[at + 1 :], token[:at] + token[at + 1 :]])
        )
    verdicts, differ = set(), []
    for text in tokens:
        try:
            token = jwt.decode(text)
        except jwt.TokenError:
            good = False
        else:
            found = jwt.complaints(token, now_s=int(time.time()), user=USER)
            good = not found and not jwt.signature_problem(token, secret=secret, public=public)
        verdicts.add(good)
        if site.taken(text) is not good:
            differ.append((text, good))
    assert not differ, "\n".join(f"{good} {text}" for text, good in differ)
    assert verdicts == {True, False}


def test_whoever_may_not_read_the_key_makes_no_token(site: Site) -> None:
    key = str(key_file(site.cluster))
    result = site.command("token", "mint", "--key", key, user=USER)
    assert result.returncode == 3
    assert key in result.stderr
    assert "Permission denied" in result.stderr


def test_export_of_what_mint_prints_serves_slurms_own_commands(site: Site) -> None:
    script = (
        'export $(/usr/bin/python3 -m slurm_banking token mint --user "$0") && exec scontrol ping'
    )
    env = {"PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"}
    result = site.cluster.run_as("root", ["sh", "-c", script, USER], env=env)
    assert "is UP" in result.stdout, result.stderr
    key = site.cluster.run_as("root", ["scontrol", "ping"], env={"SLURM_JWT": "nonsense"})
    assert "is UP" not in key.stdout


def test_a_source_renews_its_token_and_the_server_takes_the_new_one(site: Site) -> None:
    file = site.cluster.root / "token"
    source = TokenSource(token_file=str(file))
    with pytest.raises(jwt.TokenError, match="cannot be read"):
        source.token()
    command = ["token", "mint", "--user", USER, "--output", str(file)]
    assert site.command(*command, "--lifespan", "2s").returncode == 0
    first = source.token()
    assert site.taken(first)
    time.sleep(3.2)
    assert not site.taken(first)
    with pytest.raises(jwt.TokenError, match=f"has ended.*token mint --user {USER}"):
        source.token()
    assert site.command(*command).returncode == 0
    assert site.taken(source.token())
    assert source.user_name() == USER
    assert os.stat(file).st_mode & 0o777 == 0o600
    made = TokenSource(key=str(site.pem), user=USER)
    assert site.taken(made.token())
