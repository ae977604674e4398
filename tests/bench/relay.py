# SPDX-License-Identifier: BSD-3-Clause
"""The relay in a process of its own, beside a fake slurmctld: as whoever runs the benchmark, and without a Slurm to ask.

    /usr/bin/python3 -m tests.bench.relay CONFIG CLUSTER

Says "ready" once it listens; ends when standard input does.
"""

from __future__ import annotations

import logging
import sys

from slurm_banking.config import Reloader
from slurm_banking.relay.service import Service


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    service = Service(Reloader(sys.argv[1], False), sys.argv[2])
    service.start()
    print("ready", flush=True)
    sys.stdin.read()
    service.stop()


if __name__ == "__main__":
    main()
