# SPDX-License-Identifier: BSD-3-Clause
"""The process that owns every daemon of one scratch cluster, and leaves nothing behind.

Run as ``python3 -I keeper.py ROOT`` with one end of a socket pair as standard input. Daemons are its
children, and as a child subreaper it inherits whatever they orphan (slurmstepd, batch scripts, what
a user's job left in the background), so everything the cluster ever started is its descendant.

When the other end of the socket closes (the test runner ended, was killed with -9, …), or on SIGTERM,
it ends the daemons, kills the rest by process id, removes the rig's Unix users if no other rig uses
them, and removes ROOT. It runs in its own session, so a terminal's Ctrl-C does not reach it.

Requests are one JSON object per line, answered by one line each:

``{"op": "spawn", "name", "argv", "env", "log", "user", "group", "stage"}`` → ``{"pid"}``
    ``stage``: daemons of a lower stage are ended first.
``{"op": "status"}`` → ``{"processes": {NAME: {"pid", "exit"}}}``
    ``exit``: None while it runs, its status when it ended, minus the signal's number when it was killed.
``{"op": "detach", "checkout"}`` → ``{}``
    The closing of the socket no longer ends the cluster; SIGTERM does. ROOT/detached says whose it is.
``{"op": "end", "grace_s", "remove"}`` → ``{"exits", "killed"}``
    ``killed``: the daemons that did not end on SIGTERM within ``grace_s``.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

PR_SET_CHILD_SUBREAPER = 36

#: The users that a rig makes carry this as their comment: only such users are removed.
USER_COMMENT = "slurm-banking test rig"

#: Holds the two locks below; root's.
LOCK_DIR = Path("/run/slurm-banking-rig")

DEFAULT_GRACE_S = 10.0

#: In a rig's directory, once it was left running: the checkout that it came from.
DETACHED_NAME = "detached"


class UserLocks:
    """Who uses the rig's Unix users: every keeper holds `in_use` shared; `mutex` guards any change."""

    def __init__(self) -> None:
        LOCK_DIR.mkdir(mode=0o700, exist_ok=True)
        self._in_use = (LOCK_DIR / "users-in-use.lock").open("a")

    def hold(self) -> None:
        with UserMutex():
            fcntl.flock(self._in_use, fcntl.LOCK_SH)

    def remove_users_if_last(self) -> None:
        with UserMutex():
            fcntl.flock(self._in_use, fcntl.LOCK_UN)
            try:
                fcntl.flock(self._in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            for user in pwd.getpwall():
                if user.pw_gecos == USER_COMMENT:
                    subprocess.run(
                        ["userdel", user.pw_name],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        timeout=30,
                        check=False,
                    )


class UserMutex:
    """Held while Unix users are added or removed by any rig on this machine."""

    def __enter__(self) -> None:
        LOCK_DIR.mkdir(mode=0o700, exist_ok=True)
        self._file: TextIO = (LOCK_DIR / "users.lock").open("a")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which the process started; None if it is gone or a zombie.

    With the process id it names one process for good, ids being reused.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def descendants(ancestor: int) -> list[int]:
    """Process ids of every live descendant."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            text = Path(f"/proc/{entry}/stat").read_text()
        except OSError:
            continue
        fields = text[text.rindex(")") + 2 :].split()
        if fields[0] not in "ZX":
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    pending = [ancestor]
    while pending:
        for child in children.get(pending.pop(), []):
            found.append(child)
            pending.append(child)
    return found


def send_signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


class Keeper:
    def __init__(self, root: Path, control: socket.socket) -> None:
        self.root = root
        self.control = control
        self.pids: dict[str, int] = {}
        self.exits: dict[str, int | None] = {}
        self.stages: dict[str, int] = {}
        self.detached = False
        self.locks = UserLocks()
        self.locks.hold()
        self.write_record()

    def write_record(self) -> None:
        """What a later run needs to tell a live rig from a stale one, and to end it by process id."""
        pids = {"keeper": os.getpid(), **self.pids}
        record = {name: {"pid": pid, "start_time": start_time(pid)} for name, pid in pids.items()}
        scratch = self.root / "rig.json.new"
        scratch.write_text(json.dumps(record, indent=1) + "\n")
        scratch.replace(self.root / "rig.json")

    def reap(self) -> None:
        names = {pid: name for name, pid in self.pids.items()}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in names:
                self.exits[names[pid]] = os.waitstatus_to_exitcode(status)

    def spawn(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["name"]
        self.reap()
        if name in self.pids and self.exits[name] is None:
            return {"error": f"{name} is already running as process {self.pids[name]}"}
        # setpriv: the change of user in a new process, and SIGKILL for it should this process be killed.
        argv = [
            "setpriv",
            f"--reuid={request['user']}",
            f"--regid={request['group']}",
            "--init-groups",
            "--pdeathsig=KILL",
            "--",
            *request["argv"],
        ]
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            pid = os.posix_spawnp(
                "setpriv",
                argv,
                request["env"],
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[
                    signal.SIGINT,
                    signal.SIGPIPE,
                    signal.SIGHUP,
                    signal.SIGXFSZ,
                ],
            )
        except OSError as error:
            return {"error": f"{name}: {error}"}
        finally:
            os.close(log)
        self.pids[name] = pid
        self.exits[name] = None
        self.stages[name] = request["stage"]
        self.write_record()
        return {"pid": pid}

    def end(self, grace_s: float, remove: bool) -> dict[str, Any]:
        killed: list[str] = []
        self._kill_steps()
        for stage in sorted(set(self.stages.values())):
            names = [name for name, at in self.stages.items() if at == stage]
            killed += self._end_daemons(names, grace_s)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            left = descendants(os.getpid())
            if not left:
                break
            for pid in left:
                send_signal(pid, signal.SIGKILL)
            time.sleep(0.01)
            self.reap()
        self.locks.remove_users_if_last()
        if remove:
            os.chdir("/")
            shutil.rmtree(self.root, ignore_errors=True)
        return {"exits": self.exits, "killed": killed}

    def _kill_steps(self) -> None:
        """The jobs first: slurmstepd outlives slurmd by design."""
        for pid in descendants(os.getpid()):
            try:
                command = Path(f"/proc/{pid}/comm").read_text().strip()
            except OSError:
                continue
            if command == "slurmstepd":
                for child in descendants(pid):
                    send_signal(child, signal.SIGKILL)
                send_signal(pid, signal.SIGKILL)

    def _end_daemons(self, names: list[str], grace_s: float) -> list[str]:
        for name in names:
            if self.exits[name] is None:
                send_signal(self.pids[name], signal.SIGTERM)
                send_signal(self.pids[name], signal.SIGCONT)  # a test may have stopped it
        deadline = time.monotonic() + grace_s
        while True:
            self.reap()
            left = [name for name in names if self.exits[name] is None]
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        for name in left:
            send_signal(self.pids[name], signal.SIGKILL)
        return left

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request["op"]
        if operation == "spawn":
            return self.spawn(request)
        if operation == "status":
            self.reap()
            return {
                "processes": {
                    name: {"pid": pid, "exit": self.exits[name]} for name, pid in self.pids.items()
                }
            }
        if operation == "detach":
            (self.root / DETACHED_NAME).write_text(request["checkout"] + "\n")
            self.detached = True
            return {}
        return {"error": f"unknown operation {operation!r}"}

    def run(self) -> None:
        """Serves until it has ended the cluster."""
        wake_in, wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
        terminated: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _frame: terminated.append(number))
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)

        watched: list[Any] = [wake_in, self.control]
        buffered = b""
        while True:
            ready, _, _ = select.select(watched, [], [], 60)
            if wake_in in ready:
                try:
                    os.read(wake_in, 4096)
                except BlockingIOError:
                    pass
                self.reap()
            if terminated:
                self.end(DEFAULT_GRACE_S, remove=True)
                return
            if self.control not in ready:
                continue
            try:
                chunk = self.control.recv(65536)
            except ConnectionError:
                chunk = b""
            if not chunk:
                if self.detached:
                    watched.remove(self.control)
                    continue
                self.end(DEFAULT_GRACE_S, remove=True)
                return
            buffered += chunk
            while b"\n" in buffered:
                line, buffered = buffered.split(b"\n", 1)
                request = json.loads(line)
                if request["op"] == "end":
                    self._answer(self.end(request["grace_s"], request["remove"]))
                    return
                self._answer(self.handle(request))

    def _answer(self, answer: dict[str, Any]) -> None:
        try:
            self.control.sendall(json.dumps(answer).encode() + b"\n")
        except ConnectionError:
            pass  # its reader is gone: select() reports that next


def main() -> None:
    root = Path(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    os.chdir("/")
    os.umask(0o022)
    control = socket.socket(fileno=os.dup(0))
    Keeper(root, control).run()


if __name__ == "__main__":
    main()
