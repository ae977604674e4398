# SPDX-License-Identifier: BSD-3-Clause
"""The relay's socket: who asks, one line in, one line out, and no caller can hurt another.

Every user of the host may connect. A caller is known by the kernel's word (SO_PEERCRED), never by its own. What a
connection may cost is bounded: bytes, seconds, and how many at once, for all and for each user; some places are kept for
SlurmUser and root, whatever the others do.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import stat
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional

from slurm_banking.errors import BankingError
from slurm_banking.relay import protocol

log = logging.getLogger("slurm_banking.relay")

MAX_CONNECTIONS = 64
#: Of those, by everybody but SlurmUser and root; the rest stays free for slurmctld.
MAX_UNPRIVILEGED = 40
MAX_PER_UID = 8

_BACKLOG = 128
_UCRED = struct.Struct("3i")


class ListenError(BankingError):
    """The socket cannot be made; one line with what to do."""


@dataclass(frozen=True)
class Peer:
    """Who asks, as the kernel says."""

    pid: int
    uid: int
    gid: int


Answerer = Callable[[Peer, Dict[str, Any]], Dict[str, Any]]


def directory_problem(path: str, uid: int) -> Optional[str]:
    """What is wrong with the directory of a socket to be made by ``uid``; None: nothing."""
    directory = os.path.dirname(path) or "."
    make = f"install -d -m 755 -o {uid} {directory}"
    try:
        status = os.stat(directory)
    except OSError as error:
        return f"{directory}: {error.strerror}: expected a directory of uid {uid}: {make}"
    if not stat.S_ISDIR(status.st_mode):
        return f"{directory}: expected a directory: {make}"
    if status.st_uid not in (0, uid):
        return f"{directory}: belongs to uid {status.st_uid}: expected uid {uid} or root"
    if status.st_mode & 0o022:
        return f"{directory}: others may write there: expected mode 0755: chmod 755 {directory}"
    return None


class Listener:
    """Accepts, reads, hands to ``answer``, writes; each connection on a thread of its own.

    :param answer: called on several threads at once; its exceptions become the answer "internal".
    :param privileged: for whom places are kept.
    :raises ListenError: the directory or the path is not fit.
    """

    def __init__(
        self,
        path: str,
        answer: Answerer,
        *,
        privileged: Callable[[int], bool],
        deadline_s: float = protocol.CONNECTION_DEADLINE_S,
    ) -> None:
        self.path = path
        self._answer = answer
        self._privileged = privileged
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._by_uid: Dict[int, int] = {}
        self._stopping = threading.Event()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._listener = self._listen()
        self._inode = os.lstat(path).st_ino
        self._thread = threading.Thread(target=self._accept_all, name="answer", daemon=True)

    def _listen(self) -> socket.socket:
        problem = directory_problem(self.path, os.geteuid())
        if problem is not None:
            raise ListenError(f"socket {self.path}: {problem}")
        try:
            if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                raise ListenError(f"socket {self.path}: something else is there; expected a socket")
        except FileNotFoundError:
            pass
        # Short: it has to fit into sockaddr_un where the path itself only just does.
        temporary = os.path.join(os.path.dirname(self.path), f".{os.getpid():x}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            try:
                os.unlink(temporary)
            except FileNotFoundError:
                pass
            listener.bind(temporary)
            os.chmod(temporary, 0o666)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
            os.rename(temporary, self.path)  # nobody finds it before it listens; a stale one goes
        except OSError as error:
            listener.close()
            raise ListenError(f"socket {self.path}: {error.strerror or error}") from None
        return listener

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No more questions; the socket is taken away if it is still this one."""
        self._stopping.set()
        os.write(self._wake_write, b"x")
        self._thread.join(1)
        try:
            if os.lstat(self.path).st_ino == self._inode:
                os.unlink(self.path)
        except OSError:
            pass
        self._listener.close()

    @property
    def connections(self) -> int:
        with self._lock:
            return sum(self._by_uid.values())

    @property
    def in_place(self) -> bool:
        """Whether the path still leads here (a cleaner of /run may have taken it away)."""
        try:
            return os.lstat(self.path).st_ino == self._inode
        except OSError:
            return False

    # -- accepting ------------------------------------------------------------------------------------------------

    def _accept_all(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while not self._stopping.is_set():
            poll.poll()
            if self._stopping.is_set():
                return
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._stopping.wait(0.1)  # others have to hang up first
                continue
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        try:
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            peer = Peer(*_UCRED.unpack(raw))
        except OSError:
            connection.close()
            return
        if not self._enter(peer.uid):
            _say_quickly(connection, protocol.failure("busy", "too many questions at once"))
            connection.close()
            return
        try:
            threading.Thread(
                target=self._serve, args=(connection, peer), name="connection", daemon=True
            ).start()
        except RuntimeError:  # no more threads
            self._leave(peer.uid)
            connection.close()

    def _enter(self, uid: int) -> bool:
        privileged = self._privileged(uid)
        with self._lock:
            total = sum(self._by_uid.values())
            mine = self._by_uid.get(uid, 0)
            if total >= MAX_CONNECTIONS:
                return False
            if not privileged:
                others = sum(
                    count for other, count in self._by_uid.items() if not self._privileged(other)
                )
                if mine >= MAX_PER_UID or others >= MAX_UNPRIVILEGED:
                    return False
            self._by_uid[uid] = mine + 1
            return True

    def _leave(self, uid: int) -> None:
        with self._lock:
            left = self._by_uid[uid] - 1
            if left:
                self._by_uid[uid] = left
            else:
                del self._by_uid[uid]

    # -- one connection -------------------------------------------------------------------------------------------

    def _serve(self, connection: socket.socket, peer: Peer) -> None:
        until = time.monotonic() + self._deadline_s
        try:
            with connection:
                line = _read_line(connection, until)
                if line is not None:
                    _write(connection, self._reply(peer, line), until)
        except OSError:
            pass  # the caller hung up, or let the deadline pass
        finally:
            self._leave(peer.uid)

    def _reply(self, peer: Peer, line: bytes) -> bytes:
        try:
            request = protocol.decode(line)
            reply = self._answer(peer, request)
            return protocol.encode(reply, protocol.MAX_LONG_REPLY_BYTES)
        except protocol.ProtocolError as error:
            return protocol.encode(protocol.failure("bad_request", str(error)))
        except Exception:
            log.exception("answer_failed uid=%d pid=%d", peer.uid, peer.pid)
            return protocol.encode(
                protocol.failure("internal", "the relay could not answer; its log says why")
            )


def _read_line(connection: socket.socket, until: float) -> Optional[bytes]:
    """None: the caller hung up without a word."""
    parts: List[bytes] = []
    size = 0
    while True:
        connection.settimeout(max(until - time.monotonic(), 0.001))
        part = connection.recv(16 * 1024)
        if not part:
            return None
        head, newline, _ = part.partition(b"\n")
        parts.append(head)
        size += len(head)
        if newline:
            return b"".join(parts)
        if size >= protocol.MAX_REQUEST_BYTES or time.monotonic() >= until:
            _say_quickly(
                connection,
                protocol.failure(
                    "bad_request",
                    f"expected one line of at most {protocol.MAX_REQUEST_BYTES} bytes",
                ),
            )
            return None


def _write(connection: socket.socket, line: bytes, until: float) -> None:
    rest = memoryview(line)
    while rest:
        left = until - time.monotonic()
        if left <= 0:
            return
        connection.settimeout(left)
        rest = rest[connection.send(rest, socket.MSG_NOSIGNAL) :]


def _say_quickly(connection: socket.socket, message: Dict[str, Any]) -> None:
    try:
        connection.setblocking(False)
        connection.send(protocol.encode(message), socket.MSG_NOSIGNAL)
    except OSError:
        pass
