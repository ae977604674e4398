# SPDX-License-Identifier: BSD-3-Clause
"""The socket itself: who is let in, and that nobody on it can hurt the others."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from slurm_banking.relay import answer, client, protocol
from slurm_banking.relay.answer import Listener, ListenError, Peer
from tests.unit.relay_parts import NOBODY, Relay, ask_as

AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="needs root to be other users")


@pytest.fixture
def relay() -> Iterator[Relay]:
    path = tempfile.mkdtemp(prefix="sbr-")
    os.chmod(path, 0o755)
    made = Relay(Path(path))
    yield made
    made.ledger.close()
    shutil.rmtree(path)


def ping(relay: Relay, deadline_s: float = 2.0) -> Any:
    return client.ask(relay.socket, {"op": "ping"}, deadline_s, allowed_owner_uids={os.getuid()})


def connect(relay: Relay) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(5)
    connection.connect(relay.socket)
    return connection


def line_of(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\n"):
        part = connection.recv(65536)
        if not part:
            break
        received += part
    return received


def test_a_ping_is_answered_with_pid_and_version(relay: Relay) -> None:
    with relay.listening():
        reply = ping(relay)
    assert reply["ok"] and reply["pid"] == os.getpid() and reply["version"]


def test_everybody_may_connect_to_the_socket(relay: Relay) -> None:
    with relay.listening():
        assert stat.S_IMODE(os.stat(relay.socket).st_mode) == 0o666


def test_a_socket_left_behind_is_replaced(relay: Relay) -> None:
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(relay.socket)
    left.close()
    with relay.listening():
        assert ping(relay)["ok"]


def test_the_socket_is_taken_away_at_the_end(relay: Relay) -> None:
    with relay.listening():
        pass
    assert not os.path.exists(relay.socket)
    assert os.listdir(os.path.dirname(relay.socket)) == []


def test_the_socket_of_a_successor_is_left_alone(relay: Relay) -> None:
    first = Listener(relay.socket, relay.questions, privileged=lambda uid: True)
    first.start()
    with relay.listening():
        first.stop()
        assert ping(relay)["ok"]


def test_another_kind_of_file_in_its_place_is_not_overwritten(relay: Relay) -> None:
    Path(relay.socket).write_text("precious")
    with pytest.raises(ListenError, match="something else is there"):
        Listener(relay.socket, relay.questions, privileged=lambda uid: True)
    assert Path(relay.socket).read_text() == "precious"


def test_a_missing_directory_is_one_line_with_what_to_do(relay: Relay) -> None:
    shutil.rmtree(os.path.dirname(relay.socket))
    with pytest.raises(ListenError, match=r"install -d -m 755 -o \d+ .*/run$"):
        Listener(relay.socket, relay.questions, privileged=lambda uid: True)


def test_a_directory_that_others_may_write_is_refused(relay: Relay) -> None:
    os.chmod(os.path.dirname(relay.socket), 0o777)
    with pytest.raises(ListenError, match="others may write there"):
        Listener(relay.socket, relay.questions, privileged=lambda uid: True)


@AS_ROOT
def test_somebody_elses_directory_is_refused(relay: Relay) -> None:
    os.chown(os.path.dirname(relay.socket), NOBODY, -1)
    with pytest.raises(ListenError, match=f"belongs to uid {NOBODY}"):
        Listener(relay.socket, relay.questions, privileged=lambda uid: True)


@AS_ROOT
def test_a_caller_is_who_the_kernel_says(relay: Relay) -> None:
    seen: List[Peer] = []

    def see(peer: Peer, request: Any) -> Any:
        seen.append(peer)
        return {"ok": True}

    listener = Listener(relay.socket, see, privileged=lambda uid: uid == 0)
    listener.start()
    try:
        ask_as(NOBODY, relay.socket, {"op": "ping", "uid": 0, "user_id": 0})
    finally:
        listener.stop()
    assert [peer.uid for peer in seen] == [NOBODY]


@pytest.mark.parametrize(
    "garbage",
    [b"\n", b"GET / HTTP/1.1\r\n", b"null\n", b"[]\n", b"\xff\xfe\x00\n", b"[" * 60_000 + b"\n"],
    ids=["empty", "http", "null", "list", "bytes", "deep"],
)
def test_garbage_is_a_bad_request(relay: Relay, garbage: bytes) -> None:
    with relay.listening():
        with connect(relay) as connection:
            connection.sendall(garbage)
            reply = protocol.decode(line_of(connection))
        assert reply["error"] == "bad_request"
        assert ping(relay)["ok"]


@pytest.mark.parametrize("op", ["", "none", "__class__", None, 7, ["ping"], {}])
def test_an_unknown_op_is_a_bad_request(relay: Relay, op: Any) -> None:
    with relay.listening():
        reply = client.ask(relay.socket, {"op": op}, 2, allowed_owner_uids={os.getuid()})
    assert reply["error"] == "bad_request"
    assert "expected one of ping" in reply["message"]


def test_a_question_without_end_is_cut_off(relay: Relay) -> None:
    with relay.listening():
        with connect(relay) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(64):
                    connection.sendall(b"x" * 65536)
            with contextlib.suppress(ConnectionResetError):
                line_of(connection)
        assert ping(relay)["ok"]


def test_a_slow_caller_is_hung_up_on(relay: Relay) -> None:
    with relay.listening(deadline_s=0.4) as listener:
        with connect(relay) as connection:
            began = time.monotonic()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                while time.monotonic() - began < 3:
                    connection.sendall(b"{")
                    time.sleep(0.05)
            assert time.monotonic() - began < 2
        time.sleep(0.1)
        assert listener.connections == 0


def test_a_caller_that_does_not_read_is_hung_up_on(relay: Relay) -> None:
    def much(peer: Peer, request: Any) -> Any:
        return {"ok": True, "text": "x" * 8_000_000}

    listener = Listener(relay.socket, much, privileged=lambda uid: True, deadline_s=0.4)
    listener.start()
    try:
        with connect(relay) as connection:
            connection.sendall(b'{"op":"ping"}\n')
            time.sleep(1.0)
            assert listener.connections == 0
    finally:
        listener.stop()


def test_a_mistake_in_an_answer_is_told_as_one_and_ends_nothing(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(peer: Peer, request: Any) -> Any:
        raise KeyError("secret detail")

    listener = Listener(relay.socket, broken, privileged=lambda uid: True)
    listener.start()
    try:
        for _ in range(3):
            reply = ping(relay)
            assert reply["error"] == "internal"
            assert "secret" not in reply["message"]
    finally:
        listener.stop()
    assert "secret detail" in caplog.text


@AS_ROOT
def test_a_user_who_holds_all_his_connections_stops_nobody_else(relay: Relay) -> None:
    with relay.listening() as listener:
        held: List[int] = []
        child = _hold_connections(NOBODY, relay.socket, 80)
        held.append(child)
        try:
            until = time.monotonic() + 5
            while listener.connections < answer.MAX_PER_UID and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.2)
            assert listener.connections == answer.MAX_PER_UID
            assert ask_as(NOBODY, relay.socket, {"op": "ping"})["error"] == "busy"
            assert ask_as(1, relay.socket, {"op": "ping"})["ok"]
            assert ping(relay)["ok"]
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)


@AS_ROOT
def test_many_users_together_leave_room_for_slurmctld(relay: Relay) -> None:
    with relay.listening() as listener:
        children = [_hold_connections(5000 + n, relay.socket, 8) for n in range(10)]
        try:
            until = time.monotonic() + 5
            while listener.connections < answer.MAX_UNPRIVILEGED and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.2)
            assert listener.connections == answer.MAX_UNPRIVILEGED
            began = time.monotonic()
            assert ping(relay)["ok"]
            assert time.monotonic() - began < 0.5
        finally:
            for child in children:
                os.kill(child, 9)
                os.waitpid(child, 0)


def _hold_connections(uid: int, path: str, count: int) -> int:
    """A process of ``uid`` that opens connections and says half a word on each."""
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            held = []
            for _ in range(count):
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                connection.connect(path)
                with contextlib.suppress(OSError):
                    connection.sendall(b'{"op"')
                held.append(connection)
            time.sleep(30)
        finally:
            os._exit(0)
    return child


def test_ten_threads_are_answered_at_once(relay: Relay) -> None:
    replies: List[Any] = []

    def ask() -> None:
        for _ in range(20):
            replies.append(ping(relay, 5))

    with relay.listening():
        threads = [threading.Thread(target=ask) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(replies) == 200
    assert all(reply["ok"] for reply in replies)


def test_nothing_is_left_open_after_many_questions(relay: Relay) -> None:
    with relay.listening() as listener:
        ping(relay)
        time.sleep(0.05)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(100):
            ping(relay)
        time.sleep(0.1)
        assert len(os.listdir("/proc/self/fd")) == before
        assert listener.connections == 0
