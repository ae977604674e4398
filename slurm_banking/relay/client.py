# SPDX-License-Identifier: BSD-3-Clause
"""Ask the relay one question. Loaded inside slurmctld too: standard library, no threads, one deadline over everything.

The relay's socket is open to every user of the host, and whoever can write its directory could put another in its place:
the answer is believed only if the process that listens is one of ``allowed_owner_uids`` (SlurmUser or root).
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from typing import Any, Container, Dict, Mapping

from slurm_banking.errors import RelayUnavailable
from slurm_banking.relay import protocol

_UCRED = struct.Struct("3i")  # pid, uid, gid of unix(7)
_READ_BYTES = 64 * 1024

#: Between two tries to connect while the relay's backlog is full; nothing can be polled for then.
_BACKLOG_PAUSE_S = 0.005


def ask(
    socket_path: str,
    request: Mapping[str, Any],
    deadline_s: float,
    *,
    allowed_owner_uids: Container[int],
    max_reply_bytes: int = protocol.MAX_REPLY_BYTES,
) -> Dict[str, Any]:
    """The relay's answer, also when it is a refusal (``ok`` is False then).

    ``deadline_s`` is for connecting, asking and reading together, however slowly the other side moves.

    :raises RelayUnavailable: nobody there, somebody else there, no whole answer in time, or not an answer; one line.
    """
    until = time.monotonic() + deadline_s
    line = protocol.encode(request)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.setblocking(False)
        try:
            _connect(connection, socket_path, until)
            _check_peer(connection, socket_path, allowed_owner_uids)
            _send(connection, socket_path, line, until)
            reply = _receive(connection, socket_path, max_reply_bytes, until)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise RelayUnavailable(f"relay {socket_path}: {reason}") from None
    try:
        return protocol.decode(reply)
    except protocol.ProtocolError as error:
        raise RelayUnavailable(f"relay {socket_path}: answered nonsense: {error}") from None


def peer_uid(connection: socket.socket) -> int:
    """The user on the other side: of connect() as the server sees it, of listen() as the client does."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(raw)[1])


def _left_ms(socket_path: str, until: float) -> int:
    left = until - time.monotonic()
    if left <= 0:
        raise RelayUnavailable(f"relay {socket_path}: no answer in time")
    return int(left * 1000) + 1


def _wait(connection: socket.socket, socket_path: str, event: int, until: float) -> None:
    poll = select.poll()
    poll.register(connection, event)
    if not poll.poll(_left_ms(socket_path, until)):
        raise RelayUnavailable(f"relay {socket_path}: no answer in time")


def _connect(connection: socket.socket, socket_path: str, until: float) -> None:
    while True:
        try:
            connection.connect(socket_path)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                raise
        _left_ms(socket_path, until)
        time.sleep(_BACKLOG_PAUSE_S)


def _check_peer(
    connection: socket.socket, socket_path: str, allowed_owner_uids: Container[int]
) -> None:
    uid = peer_uid(connection)
    if uid not in allowed_owner_uids:
        raise RelayUnavailable(
            f"relay {socket_path}: uid {uid} listens there; expected SlurmUser or root"
        )


def _send(connection: socket.socket, socket_path: str, line: bytes, until: float) -> None:
    rest = memoryview(line)
    while rest:
        _wait(connection, socket_path, select.POLLOUT, until)
        try:
            rest = rest[connection.send(rest, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            continue
        except BrokenPipeError:
            return  # it may have said why before it hung up


def _receive(
    connection: socket.socket, socket_path: str, max_reply_bytes: int, until: float
) -> bytes:
    reply = bytearray()
    while True:
        _wait(connection, socket_path, select.POLLIN, until)
        try:
            part = connection.recv(_READ_BYTES)
        except BlockingIOError:
            continue
        if not part:
            raise RelayUnavailable(f"relay {socket_path}: closed without an answer")
        reply += part
        end = reply.find(b"\n", max(0, len(reply) - len(part)))
        if end >= 0:
            return bytes(reply[:end])
        if len(reply) >= max_reply_bytes:
            raise RelayUnavailable(
                f"relay {socket_path}: answer longer than {max_reply_bytes} bytes"
            )
