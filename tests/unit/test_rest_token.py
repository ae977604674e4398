# SPDX-License-Identifier: BSD-3-Clause
"""A source has a token for as long as there is one to be had, and says in one line why there is none."""

from __future__ import annotations

import concurrent.futures
import os
import pwd
import time
from pathlib import Path

import pytest

from slurm_banking.config import SlurmrestdConfig
from slurm_banking.slurm import jwt
from slurm_banking.slurm.jwt import TokenError
from slurm_banking.slurm.rest_token import LIFESPAN_S, TokenSource, source_problems

START_S = 1_900_000_000
SECRET = jwt.Secret(content=b"s" * 32)
OTHER = jwt.Secret(content=b"o" * 32)


class Clock:
    def __init__(self) -> None:
        self.now_s = float(START_S)

    def __call__(self) -> float:
        return self.now_s


def minted(user: str = "alice", *, lifespan_s: int = 600, now_s: int = START_S) -> str:
    return jwt.mint(SECRET, user=user, lifespan_s=lifespan_s, now_s=now_s)


def write(path: Path, content: bytes | str, mode: int = 0o600) -> Path:
    """In one step, so that its inode is another one each time."""
    scratch = path.with_suffix(".new")
    scratch.write_bytes(content.encode() if isinstance(content, str) else content)
    scratch.chmod(mode)
    scratch.replace(path)
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "token"


def test_the_file_is_read_again_when_it_changes(file: Path, clock: Clock) -> None:
    source = TokenSource(token_file=str(write(file, minted())), clock=clock)
    assert source.token() == minted()
    later = minted(now_s=START_S + 1)
    write(file, f"SLURM_JWT={later}\n")
    assert source.token() == later
    assert source.user_name() == "alice"


def test_a_token_that_has_ended_is_an_error_that_says_when_and_how_to_make_another(
    file: Path, clock: Clock
) -> None:
    source = TokenSource(token_file=str(write(file, minted())), clock=clock)
    source.token()
    clock.now_s += 3600
    expected = rf"{file}: it has ended: .*\(50 min ago\).*token mint --user alice --output {file}"
    with pytest.raises(TokenError, match=expected):
        source.token()
    write(file, minted(now_s=START_S + 3600))
    assert source.token()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_token_file_that_others_can_read_is_refused(file: Path, clock: Clock, mode: int) -> None:
    source = TokenSource(token_file=str(write(file, minted(), mode)), clock=clock)
    with pytest.raises(TokenError, match=f"{file}: mode 0{mode:o}: expected 0600"):
        source.token()
    file.chmod(0o600)
    assert source.token() == minted()


def test_what_is_no_token_is_named_with_its_place(file: Path, clock: Clock) -> None:
    for content in ("", "hello", "a.b.c"):
        source = TokenSource(token_file=str(write(file, content)), clock=clock)
        with pytest.raises(TokenError, match=f"token in {file}: no token: "):
            source.token()
    with pytest.raises(TokenError, match="cannot be read: No such file"):
        TokenSource(token_file=f"{file}-missing", clock=clock).token()


def test_the_variable_is_looked_at_each_time(clock: Clock) -> None:
    environment = {"SLURM_JWT": minted()}
    source = TokenSource(token_env="SLURM_JWT", environment=environment, clock=clock)
    assert source.token() == minted()
    environment["SLURM_JWT"] = minted("bob")
    assert source.user_name() == "bob"
    del environment["SLURM_JWT"]
    with pytest.raises(TokenError, match=r"\$SLURM_JWT: not in the environment"):
        source.token()


def test_a_token_made_with_the_key_is_renewed_long_before_it_ends(file: Path, clock: Clock) -> None:
    source = TokenSource(key=str(write(file, SECRET.content)), user="alice", clock=clock)
    seen = set()
    for _ in range(0, 2 * LIFESPAN_S, 60):
        token = jwt.decode(source.token())
        assert jwt.signature_problem(token, secret=SECRET, public=()) is None
        assert token.ends_s is not None
        assert LIFESPAN_S // 3 <= token.ends_s - clock.now_s <= LIFESPAN_S
        seen.add(token.signature)
        clock.now_s += 60
    assert 2 <= len(seen) <= 4


def test_another_key_in_the_file_makes_another_token(file: Path, clock: Clock) -> None:
    source = TokenSource(key=str(write(file, SECRET.content)), user="alice", clock=clock)
    source.token()
    write(file, OTHER.content)
    token = jwt.decode(source.token())
    assert jwt.signature_problem(token, secret=OTHER, public=()) is None


def test_with_a_key_and_no_user_the_token_is_for_whoever_runs(file: Path, clock: Clock) -> None:
    source = TokenSource(key=str(write(file, SECRET.content)), clock=clock)
    assert source.user_name() == pwd.getpwuid(os.geteuid()).pw_name


def test_a_named_user_is_asked_for_whatever_the_token_says(file: Path, clock: Clock) -> None:
    token = write(file, minted("root"))
    assert TokenSource(token_file=str(token), user="bob", clock=clock).user_name() == "bob"


def test_the_doubts_after_a_refusal_say_what_slurm_does_not(file: Path, clock: Clock) -> None:
    source = TokenSource(token_file=str(write(file, minted())), user="bob", clock=clock)
    source.token()
    clock.now_s += 601
    doubts = source.doubts()
    assert len(doubts) == 2
    assert doubts[0].startswith(f"token in {file}: it has ended")
    assert "it is for alice, the request for bob" in doubts[1]


def test_a_forgotten_token_is_made_anew(file: Path, clock: Clock) -> None:
    source = TokenSource(key=str(write(file, SECRET.content)), user="alice", clock=clock)
    first = source.token()
    clock.now_s += 5
    assert source.token() == first
    source.forget()
    assert source.token() != first


def test_threads_that_ask_at_once_get_one_token(file: Path, clock: Clock) -> None:
    source = TokenSource(key=str(write(file, SECRET.content)), user="alice", clock=clock)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        tokens = {made.result() for made in [pool.submit(source.token) for _ in range(200)]}
    assert len(tokens) == 1


def test_the_configuration_names_one_source_or_none(file: Path) -> None:
    assert TokenSource.from_config(SlurmrestdConfig()) is None
    write(file, SECRET.content)
    source = TokenSource.from_config(SlurmrestdConfig(key=str(file), user="carol"))
    assert source is not None
    assert jwt.decode(source.token()).user == "carol"
    with pytest.raises(ValueError):
        TokenSource(token_file="/a", key="/b")


# -- what check-config says of it -------------------------------------------------------------------------------------

ME = os.geteuid()


def test_a_good_file_needs_no_word(file: Path) -> None:
    now_s = int(time.time())
    write(file, minted(now_s=now_s))
    assert source_problems(SlurmrestdConfig(token_file=str(file)), ME) == ([], [])
    write(file, SECRET.content)
    assert source_problems(SlurmrestdConfig(key=str(file)), ME) == ([], [])
    assert source_problems(SlurmrestdConfig(), ME) == ([], [])


def test_a_file_that_the_relay_cannot_use_is_a_problem_in_one_line(file: Path) -> None:
    for key in ("token_file", "key"):
        config = SlurmrestdConfig(**{key: str(file)})
        where = f'{key} = "{file}": '
        file.unlink(missing_ok=True)
        assert source_problems(config, ME) == (
            [f"{where}cannot be read: No such file or directory"],
            [],
        )
        write(file, minted() if key == "token_file" else SECRET.content, 0o644)
        (problem,), _ = source_problems(config, ME)
        assert problem.startswith(f"{where}mode 0644: ")
    write(file, "hello")
    (problem,), _ = source_problems(SlurmrestdConfig(token_file=str(file)), ME)
    assert "HEADER.CLAIMS.SIGNATURE" in problem


@pytest.mark.skipif(ME != 0, reason="only root looks at another user's files")
def test_a_key_of_root_alone_is_none_for_a_relay_of_another_user(file: Path) -> None:
    write(file, SECRET.content)
    (problem,), _ = source_problems(SlurmrestdConfig(key=str(file)), 65534)
    assert "belongs to root: the relay runs as nobody: chown nobody" in problem


def test_a_token_that_has_ended_is_a_warning_since_it_is_renewed_from_outside(file: Path) -> None:
    write(file, minted(now_s=int(time.time()) - 3600))
    problems, (warning,) = source_problems(SlurmrestdConfig(token_file=str(file)), ME)
    assert problems == []
    assert warning.startswith(f'token_file = "{file}": it has ended: ')
