# SPDX-License-Identifier: BSD-3-Clause
"""A stand-in for the node's report: it writes down what it was given."""

from __future__ import annotations

import json
import os
import signal
import sys


def main() -> int:
    where = os.path.join(os.path.dirname(os.environ["BANKING_CONFIG"]), "report.json")
    left = signal.alarm(0)
    facts = {
        "environment": dict(os.environ),
        "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1],
        "stdin": os.readlink("/proc/self/fd/0"),
        "own_session": os.getsid(0) != int(os.environ.get("BANKING_TEST_SID", "0")),
        "session": os.getsid(0),
        "deadline_s": left,
        "arguments": sys.argv,
        "path": sys.path[0],
        "directory": os.getcwd(),
    }
    with open(where + ".new", "w", encoding="utf-8") as stream:
        json.dump(facts, stream)
    os.rename(where + ".new", where)
    return 0
