# SPDX-License-Identifier: BSD-3-Clause
"""slurm-banking token and jwks: what they print, what they write, and their exit status."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from slurm_banking.cli import main
from slurm_banking.slurm import jwt
from tests.unit.test_jwt import PRIVATE, SECRET, a_file, pem_of, public_pem_of


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration, no token, and a Slurm that says what `slurm_conf` makes it say."""
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    monkeypatch.delenv("SLURM_JWT", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    slurm_conf(tmp_path, None)


def slurm_conf(tmp_path: Path, parameters: str | None, types: str = "auth/jwt") -> None:
    """scontrol as slurmctld with these AuthAltParameters; None: it does not answer."""
    text = "#!/bin/sh\necho 'scontrol: error: no slurmctld' >&2; exit 1\n"
    if parameters is not None:
        text = (
            "#!/bin/sh\ncat <<END\nAuthAltTypes = "
            f"{types}\nAuthAltParameters = {parameters}\nBOOT_TIME = 1\nClusterName = c\n"
            f"SlurmUser = slurm(64030)\nStateSaveLocation = {tmp_path}/state\nEND\n"
        )
    script = tmp_path / "bin" / "scontrol"
    script.write_text(text)
    script.chmod(0o755)


@pytest.fixture
def key(tmp_path: Path) -> str:
    return a_file(tmp_path, SECRET.content)


@pytest.fixture
def pem(tmp_path: Path) -> str:
    return a_file(tmp_path, pem_of(PRIVATE), name="pair.pem")


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(words) == status
    return capsys.readouterr().out


def complaint(capsys: pytest.CaptureFixture[str], *words: str, status: int) -> str:
    assert main(words) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return captured.err


def stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def timeless(shown: str) -> str:
    """Without how long ago or ahead a time is."""
    return re.sub(r"\(.*\)", "", shown)


def token_of(**other: Any) -> str:
    return jwt.mint(SECRET, user="root", now_s=int(time.time()), **other)


def test_mint_prints_what_a_shell_can_export(key: str, capsys: Any) -> None:
    assert main(["token", "mint", "--key", key, "--user", "root", "--lifespan", "8h"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    name, _, text = captured.out.strip().partition("=")
    assert name == "SLURM_JWT" and " " not in text
    token = jwt.decode(text)
    assert jwt.signature_problem(token, secret=SECRET, public=()) is None
    assert (token.user, token.claims["exp"] - token.claims["iat"]) == ("root", 8 * 3600)


@pytest.mark.parametrize(("typed", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1d", 86400)])  # fmt: skip
def test_a_lifespan_is_typed_with_a_unit_or_in_seconds(
    key: str, capsys: Any, typed: str, seconds: int
) -> None:
    told = json.loads(said(capsys, "token", "mint", "--key", key, "--lifespan", typed, "--json"))
    assert told["ends"] - told["issued"] == seconds


@pytest.mark.parametrize("typed", ["25h", "0", "-1h", "2 weeks", "infinite", ""])
def test_a_lifespan_above_a_day_is_refused(key: str, capsys: Any, typed: str) -> None:
    words = ["token", "mint", "--key", key, f"--lifespan={typed}"]
    assert "at most 24h" in complaint(capsys, *words, status=2)


def test_a_pem_makes_rs256_and_its_name_is_the_thumbprint_or_kid(pem: str, capsys: Any) -> None:
    told = json.loads(said(capsys, "token", "mint", "--key", pem, "--json"))
    assert (told["algorithm"], told["kid"]) == ("RS256", jwt.read_public_key(pem).kid)
    told = json.loads(said(capsys, "token", "mint", "--key", pem, "--kid", "mine", "--json"))
    assert told["kid"] == "mine"


def test_the_key_is_by_default_the_one_that_slurm_has(
    tmp_path: Path, key: str, pem: str, capsys: Any
) -> None:
    slurm_conf(tmp_path, f"disable_token_creation,jwt_key={key}")
    assert json.loads(said(capsys, "token", "mint", "--json"))["key"] == key
    slurm_conf(tmp_path, f"jwks=/nowhere,jwt_key={pem}")
    told = json.loads(said(capsys, "token", "mint", "--json"))
    assert (told["key"], told["algorithm"]) == (pem, "HS256")
    (tmp_path / "state").mkdir()
    default = a_file(tmp_path / "state", SECRET.content, name="jwt_hs256.key")
    slurm_conf(tmp_path, "(null)")
    assert json.loads(said(capsys, "token", "mint", "--json"))["key"] == default


def test_the_key_of_the_configuration_comes_first(tmp_path: Path, pem: str, capsys: Any) -> None:
    config = tmp_path / "bank-config.toml"
    config.write_text(
        f'[API]\nurl = "https://b"\n[Policy]\n[slurmrestd]\nkey = "{pem}"\nkid = "configured"\n'
    )
    told = json.loads(said(capsys, "token", "mint", "--json"))
    assert (told["key"], told["kid"]) == (pem, "configured")
    config.write_text("[slurmrestd]\nkid = 1\n")
    assert main(["token", "mint"]) == 1
    assert main(["token", "mint", "--key", pem]) == 0  # does not need it
    assert main(["token", "mint", "--config", str(tmp_path / "missing.toml")]) == 1


def test_where_slurm_takes_no_token_none_is_made(tmp_path: Path, capsys: Any) -> None:
    words = ["token", "mint"]
    assert "--key names a key without asking" in complaint(capsys, *words, status=3)
    slurm_conf(tmp_path, "(null)", types="(null)")
    assert "no AuthAltTypes=auth/jwt" in complaint(capsys, *words, status=1)
    slurm_conf(tmp_path, "jwks=/etc/jwks.json")
    assert "a jwks and no jwt_key" in complaint(capsys, *words, status=1)


def test_output_is_a_file_of_its_owner_alone_and_nothing_is_printed_of_it(
    tmp_path: Path, key: str, capsys: Any
) -> None:
    path = tmp_path / "token"
    for _ in range(2):
        out = said(capsys, "token", "mint", "--key", key, "--output", str(path))
        assert path.read_text().strip() not in out and "eyJ" not in out
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o644)
    jwt.decode(path.read_text())
    assert sorted(os.listdir(tmp_path)) == ["bin", "key", "token"]
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
        said(capsys, "token", "mint", "--key", key, "--output", str(path))
        assert path.stat().st_uid == 12345


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_no_token_is_given_to_whoever_put_a_file_in_its_place(
    tmp_path: Path, key: str, capsys: Any
) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o1777)
    path = directory / "token"
    path.touch()
    os.chown(path, 12345, 12345)
    words = ["token", "mint", "--key", key, "--output", str(path)]
    assert "another user's" in complaint(capsys, *words, status=1)
    assert path.read_text() == ""
    path.unlink()
    path.symlink_to(key)
    assert "expected a file" in complaint(capsys, *words, status=2)
    assert Path(key).read_bytes() == SECRET.content


def test_a_key_that_everybody_reads_makes_no_token(tmp_path: Path, key: str, capsys: Any) -> None:
    os.chmod(key, 0o644)
    assert "mode 0644" in complaint(capsys, "token", "mint", "--key", key, status=3)


def test_show_reads_a_file_stdin_or_the_environment(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = token_of()
    path = a_file(tmp_path, text.encode(), name="token")
    shown = said(capsys, "token", "show", path)
    assert re.search(r"^user +root$", shown, re.MULTILINE)
    assert re.search(r"^ends .*\(in (29|30) min\)$", shown, re.MULTILINE)
    stdin(monkeypatch, f"SLURM_JWT={text}\n")
    assert timeless(said(capsys, "token", "show", "-")) == timeless(shown)
    monkeypatch.setenv("SLURM_JWT", text)
    assert timeless(said(capsys, "token", "show")) == timeless(shown)
    told = json.loads(said(capsys, "token", "show", "--json"))
    assert told["claims"]["sun"] == "root" and told["warnings"] == [] and not told["ended"]


def test_a_token_is_no_argument(capsys: Any) -> None:
    text = token_of()
    for action in ("show", "verify"):
        for word in (text, f"SLURM_JWT={text}"):
            err = complaint(capsys, "token", action, word, status=2)
            assert "ps" in err and text not in err


def test_nothing_to_read_is_said_so(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    assert "$SLURM_JWT" in complaint(capsys, "token", "show", status=2)
    assert "No such file" in complaint(capsys, "token", "show", str(tmp_path / "no"), status=3)
    stdin(monkeypatch, "hello")
    assert "HEADER.CLAIMS.SIGNATURE" in complaint(capsys, "token", "show", "-", status=1)


def test_a_claim_cannot_move_the_readers_cursor(capsys: Any, monkeypatch: Any) -> None:
    import jwt as pyjwt

    stdin(monkeypatch, pyjwt.encode({"sun": "a\x1b[2J\nGOOD", "exp": 1}, SECRET.content))
    out = said(capsys, "token", "show", "-")
    assert "\x1b" not in out and "\nGOOD" not in out


def test_verify_is_the_verdict_and_the_reason(key: str, capsys: Any, monkeypatch: Any) -> None:
    stdin(monkeypatch, token_of())
    assert "GOOD: " in said(capsys, "token", "verify", "-", "--key", key)
    stdin(monkeypatch, jwt.mint(SECRET, user="root", now_s=int(time.time()) - 86400))
    out = said(capsys, "token", "verify", "-", "--key", key, status=1)
    assert "NOT GOOD: it has ended" in out and "\nGOOD" not in out
    stdin(monkeypatch, jwt.mint(SECRET, user="alice", now_s=int(time.time())))
    out = said(capsys, "token", "verify", "-", "--key", key, "--user", "bob", status=1)
    assert "it is for alice, the request for bob" in out


def test_verify_takes_slurms_own_keys_and_slurmuser_for_all(
    tmp_path: Path, key: str, pem: str, capsys: Any, monkeypatch: Any
) -> None:
    jwks = str(tmp_path / "jwks.json")
    said(capsys, "jwks", "create", pem, "--output", jwks)
    slurm_conf(tmp_path, f"jwks={jwks},jwt_key={key}")
    pair = jwt.read_key(pem)[0]
    for made in (SECRET, pair):
        stdin(monkeypatch, jwt.mint(made, user="slurm", now_s=int(time.time())))
        told = json.loads(said(capsys, "token", "verify", "-", "--user", "bob", "--json"))
        assert told["good"] and told["key"] == (key if made is SECRET else jwks)
    stdin(monkeypatch, jwt.mint(pair, user="root", kid="other", now_s=int(time.time())))
    assert "its kid is other" in said(capsys, "token", "verify", "-", status=1)


def test_verify_that_cannot_look_at_the_keys_is_no_verdict(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    stdin(monkeypatch, token_of())
    assert "no slurmctld" in complaint(capsys, "token", "verify", "-", status=3)
    stdin(monkeypatch, token_of())
    words = ["token", "verify", "-", "--key", str(tmp_path / "missing")]
    assert "cannot be read" in complaint(capsys, *words, status=3)


def test_jwks_has_each_key_and_everybody_may_read_it(tmp_path: Path, pem: str, capsys: Any) -> None:
    path = tmp_path / "jwks.json"
    old_umask = os.umask(0o077)
    try:
        words = ["jwks", "create", pem, "--kid", "one", "--output", str(path), "--json"]
        said(capsys, *words)
    finally:
        os.umask(old_umask)
    assert path.stat().st_mode & 0o777 == 0o644
    assert "PRIVATE" not in path.read_text() and '"d"' not in path.read_text()
    assert [item["kid"] for item in json.loads(path.read_text())["keys"]] == ["one"]
    public = a_file(tmp_path, public_pem_of(PRIVATE), 0o644, "public.pem")
    assert json.loads(said(capsys, "jwks", "create", public))["keys"][0]["alg"] == "RS256"


def test_jwks_is_never_written_over_a_private_key(tmp_path: Path, pem: str, capsys: Any) -> None:
    before = Path(pem).read_bytes()
    words = ["jwks", "create", pem, "--output", pem]
    assert "has a private key in it" in complaint(capsys, *words, status=1)
    assert Path(pem).read_bytes() == before


def test_what_mint_prints_goes_through_export(key: str) -> None:
    command = f'export $({sys.executable} -m slurm_banking token mint --user root --key {key}) && echo "$SLURM_JWT"'
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    jwt.decode(result.stdout)
