# SPDX-License-Identifier: BSD-3-Clause
"""The relay's deliveries in a process of their own, so that its memory and its pace are its alone.

    /usr/bin/python3 -m tests.bench.deliveries CONFIG CLUSTER

Ledger, delivery book, bank adapter and the round are the relay's; the system's Python runs it, as on a controller. On
standard input, one line each, answered by one line of JSON:

    deliver SECONDS     rounds for that long: {"delivered", "seconds", "rss_kb", "waiting"}
    waiting             {"waiting", "rss_kb"}
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Dict

from slurm_banking import config as configuration
from slurm_banking.bank import Bank
from slurm_banking.ledger import Ledger
from slurm_banking.relay.deliver import deliver_due
from slurm_banking.relay.service import open_book


def main() -> None:
    config = configuration.load(sys.argv[1], in_slurmctld=False)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr
    )  # a line for each delivery, as always
    cluster = sys.argv[2]
    ledger = Ledger(config.ledger.state_dir, cluster)
    book, _ = open_book(config.ledger.state_dir, ledger)
    book.adopted()  # nothing was under way before
    bank = Bank(
        config.api.url,
        configuration.read_token(config),
        timeout_s=config.api.timeout_s,
        job_id_format=config.api.job_id_format,
        cluster=cluster,
    )

    def waiting() -> int:
        with ledger.transaction(write=False) as tx:
            return tx.outbox_size()[0]

    for line in sys.stdin:
        command, *arguments = line.split()
        answer: Dict[str, Any] = {}
        if command == "deliver":
            begun = time.monotonic()
            until = begun + float(arguments[0])
            delivered = 0
            while time.monotonic() < until:
                report = deliver_due(
                    ledger, bank, book, config, time.time(), budget_s=until - time.monotonic()
                )
                problems = [*report.alarms, *([report.bank_away] if report.bank_away else [])]
                if problems or report.healing or report.unanswered:
                    answer["problem"] = str(problems or report)
                    break
                delivered += report.delivered
                if not report.more:
                    break
            answer.update(delivered=delivered, seconds=time.monotonic() - begun)
            ledger.checkpoint()
        print(json.dumps({**answer, "waiting": waiting(), "rss_kb": resident_kb()}), flush=True)


def resident_kb() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))


if __name__ == "__main__":
    main()
