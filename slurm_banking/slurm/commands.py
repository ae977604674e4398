# SPDX-License-Identifier: BSD-3-Clause
"""Running one of Slurm's commands: bounded in time and output, the same whatever the caller's environment says."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import time
from typing import Callable, Dict, List, Mapping, Optional, Sequence

from slurm_banking.errors import SlurmUnavailable
from slurm_banking.records import UNLIMITED

#: Slurm's commands retry a silent daemon by themselves for about ten seconds.
TIMEOUT_S = 60.0
MAX_OUTPUT_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024

_PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DURATION = re.compile(r"(?:(\d{1,7})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?\Z")

#: What runs a command and gives its output: :func:`run`, or a recording of it.
Runner = Callable[..., str]


def environment(extra: Optional[Mapping[str, str]] = None) -> Dict[str, str]:
    """Nothing of the caller's but PATH, SLURM_CONF and library directory; times in unix seconds; no shortened arrays."""
    env = {
        "PATH": os.environ.get("PATH", _PROGRAM_PATH),
        "LC_ALL": "C",
        "TZ": "UTC",
        "SLURM_TIME_FORMAT": "%s",
        "SLURM_BITSTR_LEN": "0",
    }
    for name in ("SLURM_CONF", "LD_LIBRARY_PATH"):
        if name in os.environ:
            env[name] = os.environ[name]
    env.update(extra or {})
    return env


def run(
    argv: Sequence[str],
    *,
    timeout_s: float = TIMEOUT_S,
    max_bytes: int = MAX_OUTPUT_BYTES,
    extra_env: Optional[Mapping[str, str]] = None,
) -> str:
    """What the command printed.

    :raises SlurmUnavailable: it could not be started, failed, took longer than ``timeout_s`` or printed more than
        ``max_bytes``; its own last words are in the message.
    """
    name = argv[0]
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(extra_env),
            close_fds=True,
        )
    except OSError as error:
        raise SlurmUnavailable(f"{name}: {error.strerror}") from error
    try:
        output, errors = _read(process, name, timeout_s, max_bytes)
        status = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        raise SlurmUnavailable(f"{name}: did not end after closing its output") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if status != 0:
        raise SlurmUnavailable(f"{name}: {_last_words(errors, name) or f'status {status}'}")
    return output.decode("utf-8", "replace")


def _read(
    process: subprocess.Popen[bytes], name: str, timeout_s: float, max_bytes: int
) -> List[bytes]:
    """Both outputs; of what is said on stderr only the last MAX_ERROR_BYTES."""
    deadline = time.monotonic() + timeout_s
    assert process.stdout is not None and process.stderr is not None
    received = [bytearray(), bytearray()]
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, 0)
        selector.register(process.stderr, selectors.EVENT_READ, 1)
        while selector.get_map():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise SlurmUnavailable(f"{name}: no complete answer within {timeout_s:g} s")
            for key, _ in selector.select(left_s):
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fileobj)
                    continue
                kept = received[key.data]
                kept += chunk
                if key.data == 0 and len(kept) > max_bytes:
                    raise SlurmUnavailable(f"{name}: printed more than {max_bytes} bytes")
                if key.data == 1 and len(kept) > MAX_ERROR_BYTES:
                    del kept[:-MAX_ERROR_BYTES]
    return [bytes(kept) for kept in received]


def _last_words(errors: bytes, name: str) -> str:
    lines = [line.strip() for line in errors.decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line]
    return lines[-1].split(f"{name}: ", 1)[-1][:300] if lines else ""


def parse_time(text: str) -> Optional[int]:
    """Unix seconds as printed under SLURM_TIME_FORMAT=%s; None for a time that has not come.

    :raises ValueError: neither.
    """
    if text in ("N/A", "Unknown", "None", "NONE", "n/a", "(null)", ""):
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise ValueError(f"{text[:40]!r} is not a time in unix seconds")
    return int(text) or None


def parse_minutes(text: str) -> Optional[int]:
    """A limit as Slurm prints it, ``[D-][[HH:]MM:]SS``, in minutes, rounded up; UNLIMITED; None: there is none.

    :raises ValueError: it is no limit.
    """
    if text in ("UNLIMITED", "INFINITE"):
        return UNLIMITED
    if text in ("NONE", "N/A", "(null)", ""):
        return None
    match = _DURATION.match(text) if text.isascii() else None
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a time limit")
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, seconds = (parts + [0, 0])[:3]  # D-HH[:MM[:SS]]
    else:
        hours, minutes, seconds = ([0, 0] + parts)[-3:]  # [[HH:]MM:]SS
    total_s = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    return -(-total_s // 60)
