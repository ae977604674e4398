# SPDX-License-Identifier: BSD-3-Clause
"""Starting the relay from ``init()``: the one process that anything in slurmctld ever starts, and never in a hook."""

from __future__ import annotations

import os
import signal
import time
from typing import List, Optional

from slurm_banking.config import Config

_WAIT_S = 2.0

#: The shell puts the relay into the background and ends, so that slurmctld has no child to reap.
_SCRIPT = '"$@" </dev/null >/dev/null 2>&1 &'


def start_relay(config: Config) -> Optional[str]:
    """Start the relay, which ends by itself if another one holds the state directory's lock; the problem, or None."""
    command = config.relay.command
    if not os.access(command, os.X_OK):
        return f"{config.path}: [Relay] command = {command!r}: no such program; expected the path of slurm-banking"
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    if "TZ" in os.environ:  # dates in the configuration mean the same there
        environment["TZ"] = os.environ["TZ"]
    slurm_conf = os.path.join(os.path.dirname(config.path), "slurm.conf")
    if os.path.exists(slurm_conf):
        environment["SLURM_CONF"] = slurm_conf
    argv: List[str] = ["sh", "-c", _SCRIPT, "sh", command, "--config", config.path, "relay"]
    try:
        # slurmctld blocks the signals that its own thread waits for; the relay wants them.
        pid = os.posix_spawn(
            "/bin/sh",
            argv,
            environment,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
        )
    except OSError as error:
        return f"relay not started: {error.strerror}"
    until = time.monotonic() + _WAIT_S
    while time.monotonic() < until:
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            return None
        time.sleep(0.002)
    return None
