# SPDX-License-Identifier: BSD-3-Clause
"""Several processes that accept from the same sockets: each has an interpreter lock of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

#: One that ends sooner after its start than this is started again only after as long.
_TOO_SOON_S = 1.0

_PR_SET_PDEATHSIG = 1  # prctl(2)
_STOPPING = (signal.SIGTERM, signal.SIGINT)


def serve_in_processes(count: int, work: Callable[[], None]) -> None:
    """``work`` in each of ``count`` children until SystemExit or KeyboardInterrupt here, which ends them too.

    A child that ends by itself is started again, and its end is a line on standard error. Children whose parent is
    killed get SIGTERM. Call it from the main thread of a process that has no other: children are forked.

    :param work: returns after SystemExit, which its SIGTERM has to raise.
    """
    begun: dict[int, float] = {}
    try:
        for _ in range(count):
            _start(work, begun)
        while True:
            pid, status = os.wait()
            lived_s = time.monotonic() - begun.pop(pid)
            print(
                f"slurm-banking bank: process {pid} ended ({_how(status)}); another is started",
                file=sys.stderr,
                flush=True,
            )
            if lived_s < _TOO_SOON_S:
                time.sleep(_TOO_SOON_S)
            _start(work, begun)
    except (SystemExit, KeyboardInterrupt):
        pass
    finally:
        _stop(begun)


def _start(work: Callable[[], None], begun: dict[int, float]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)  # no child that nobody knows of
    try:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _be_child(work, parent)
        begun[pid] = time.monotonic()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def _be_child(work: Callable[[], None], parent: int) -> NoReturn:
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        if os.getppid() == parent:  # or it was killed before it could be watched
            work()
        status = 0
    except (SystemExit, KeyboardInterrupt):
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _stop(begun: dict[int, float]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    for pid in begun:
        os.kill(pid, signal.SIGTERM)
    for pid in begun:
        os.waitpid(pid, 0)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"status {code}" if code >= 0 else signal.Signals(-code).name
