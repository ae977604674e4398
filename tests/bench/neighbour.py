# SPDX-License-Identifier: BSD-3-Clause
"""Another process at work on a ledger, while submissions are measured.

    /usr/bin/python3 -m tests.bench.neighbour backup STATE_DIR CLUSTER TARGET
    /usr/bin/python3 -m tests.bench.neighbour write STATE_DIR CLUSTER MILLISECONDS

``backup``: one backup after the other. ``write``: transactions that take so long, and a pause as long between them, which
is the most that the ledger's rules allow. Says "ready"; ends when standard input does, with how many it made.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from slurm_banking.ledger import Ledger


def main() -> None:
    work, state_dir, cluster, argument = sys.argv[1:]
    ledger = Ledger(state_dir, cluster)
    stop = threading.Event()

    def read() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=read, daemon=True).start()
    print("ready", flush=True)
    made = 0
    while not stop.is_set():
        if work == "backup":
            ledger.backup(argument)
            os.unlink(argument)
        else:
            write(ledger, float(argument) / 1000)
        made += 1
    print(made, flush=True)
    os._exit(0)  # the reader of standard input is not waited for


def write(ledger: Ledger, seconds: float) -> None:
    with ledger.transaction() as tx:
        until = time.monotonic() + seconds
        number = 0
        while time.monotonic() < until:
            tx.set_meta("bench", str(number))
            number += 1
    time.sleep(seconds)


if __name__ == "__main__":
    main()
