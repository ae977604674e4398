# SPDX-License-Identifier: BSD-3-Clause
"""ask() keeps its one deadline against every way in which a relay can misbehave."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Callable, Dict, Iterator, List

import pytest

from slurm_banking.errors import RelayUnavailable
from slurm_banking.relay import client, protocol

#: What slurmctld grants, and what a loaded machine may add to it.
DEADLINE_S = 0.25
TOLERANCE_S = 0.35

Serve = Callable[[socket.socket, threading.Event], None]


@pytest.fixture
def directory() -> Iterator[str]:
    """A short path: a unix socket's may have 107 bytes."""
    path = tempfile.mkdtemp(prefix="sbr-")
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def server(directory: str, serve: Serve, *, backlog: int = 8) -> Iterator[str]:
    path = os.path.join(directory, "relay.sock")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(backlog)
    listener.settimeout(0.05)
    stop = threading.Event()

    def accept() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                continue
            with connection, contextlib.suppress(OSError):
                serve(connection, stop)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield path
    finally:
        stop.set()
        thread.join(5)
        listener.close()


def ask(path: str, deadline_s: float = DEADLINE_S, **options: Any) -> Dict[str, Any]:
    options.setdefault("allowed_owner_uids", {os.getuid()})
    return client.ask(path, {"op": "ping"}, deadline_s, **options)


def refused(path: str, **options: Any) -> str:
    """What ask() complains of; it has to do so in time."""
    began = time.monotonic()
    with pytest.raises(RelayUnavailable) as caught:
        ask(path, **options)
    assert time.monotonic() - began < DEADLINE_S + TOLERANCE_S
    return str(caught.value)


def test_an_answer_comes_back_as_it_was_given(directory: str) -> None:
    def serve(connection: socket.socket, stop: threading.Event) -> None:
        asked = json.loads(connection.recv(65536))
        connection.sendall(protocol.encode({"ok": True, "asked": asked}))

    with server(directory, serve) as path:
        assert ask(path) == {"ok": True, "asked": {"op": "ping"}}


def test_an_answer_in_many_pieces_is_put_together(directory: str) -> None:
    text = "x" * 40_000

    def serve(connection: socket.socket, stop: threading.Event) -> None:
        line = protocol.encode({"ok": True, "text": text})
        for start in range(0, len(line), 4096):
            connection.sendall(line[start : start + 4096])
            time.sleep(0.001)

    with server(directory, serve) as path:
        assert ask(path, deadline_s=5)["text"] == text


def test_nobody_there_is_known_at_once(directory: str) -> None:
    began = time.monotonic()
    message = refused(os.path.join(directory, "relay.sock"))
    assert "No such file" in message
    assert time.monotonic() - began < 0.1


def test_a_socket_left_behind_is_known_at_once(directory: str) -> None:
    path = os.path.join(directory, "relay.sock")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.close()
    assert "refused" in refused(path)


def test_a_hung_relay_costs_no_more_than_the_deadline(directory: str) -> None:
    with server(directory, lambda connection, stop: stop.wait(5) and None) as path:
        assert "in time" in refused(path)


def test_a_relay_whose_backlog_is_full_costs_no_more_than_the_deadline(directory: str) -> None:
    path = os.path.join(directory, "relay.sock")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(0)
    waiting: List[socket.socket] = []
    try:
        for _ in range(4):
            filler = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            filler.setblocking(False)
            waiting.append(filler)
            with contextlib.suppress(BlockingIOError):
                filler.connect(path)
        assert "in time" in refused(path)
    finally:
        for filler in waiting:
            filler.close()
        listener.close()


def test_a_trickling_relay_costs_no_more_than_the_deadline(directory: str) -> None:
    def serve(connection: socket.socket, stop: threading.Event) -> None:
        for byte in b'{"ok": true, "text": "' + b"x" * 1000:
            if stop.is_set():
                return
            connection.sendall(bytes([byte]))
            time.sleep(0.02)

    with server(directory, serve) as path:
        assert "in time" in refused(path)


def test_a_relay_that_reads_nothing_costs_no_more_than_the_deadline(directory: str) -> None:
    def serve(connection: socket.socket, stop: threading.Event) -> None:
        stop.wait(5)

    with server(directory, serve) as path:
        began = time.monotonic()
        with pytest.raises(RelayUnavailable):
            client.ask(path, {"op": "x" * 60_000}, DEADLINE_S, allowed_owner_uids={os.getuid()})
        assert time.monotonic() - began < DEADLINE_S + TOLERANCE_S


def test_an_endless_answer_is_cut_off(directory: str) -> None:
    def serve(connection: socket.socket, stop: threading.Event) -> None:
        while not stop.is_set():
            connection.sendall(b"x" * 65536)

    with server(directory, serve) as path:
        assert "longer than" in refused(path)


@pytest.mark.parametrize("answer", [b"<html>\n", b"[1]\n", b'{"a": NaN}\n', b"[" * 60_000 + b"\n"])
def test_an_answer_that_is_none_is_said_to_be_nonsense(directory: str, answer: bytes) -> None:
    with server(directory, lambda connection, stop: connection.sendall(answer)) as path:
        assert "nonsense" in refused(path)


def test_a_relay_that_hangs_up_is_known_at_once(directory: str) -> None:
    def serve(connection: socket.socket, stop: threading.Event) -> None:
        connection.recv(65536)

    with server(directory, serve) as path:
        assert "without an answer" in refused(path)


def test_somebody_else_on_the_socket_is_told_nothing(directory: str) -> None:
    heard: List[bytes] = []

    def serve(connection: socket.socket, stop: threading.Event) -> None:
        heard.append(connection.recv(65536))

    with server(directory, serve) as path:
        message = refused(path, allowed_owner_uids={os.getuid() + 1})
        assert f"uid {os.getuid()} listens there" in message
        time.sleep(0.1)
    assert heard in ([], [b""])


def test_a_question_that_is_too_long_is_not_sent(directory: str) -> None:
    with pytest.raises(protocol.ProtocolError):
        client.ask("/nowhere", {"op": "x" * 70_000}, 1, allowed_owner_uids={0})


def test_a_failed_question_leaves_no_descriptor_open(directory: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        refused(os.path.join(directory, "relay.sock"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_slurmctld_loads_to_ask_is_small() -> None:
    program = (
        "import sys; before = set(sys.modules); import slurm_banking.relay.client; "
        "print(*sorted(m for m in set(sys.modules) - before if m.split('.')[0] in "
        "('ssl', '_ssl', 'requests', 'asyncio', 'hashlib', '_hashlib', 'subprocess', 'logging', 'mybrc_client', "
        "'urllib', 'http', 'threading')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""
