# SPDX-License-Identifier: BSD-3-Clause
"""``make demo``: it holds what it says, finds what does not agree, and takes everything away with it.

``make cluster``: what it prints to use it and to stop it works as printed.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.rig.banked import CHECKOUT
from tests.rig.demo import WIDTH

TIMEOUT_S = 300


class RunningDemo:
    """A demo in a process of its own, read line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def read_until(self, found: Callable[[str], Any]) -> None:
        """Up to the first line that is `found`, or to the end."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if found(line):
                return

    @property
    def root(self) -> Path:
        match = re.search(r"/tmp/slurm-banking-rig-\w+", "\n".join(self.lines))
        assert match is not None, self.lines
        return Path(match[0])

    def end(self) -> int:
        """Read the rest; the exit status."""
        self.read_until(lambda line: False)
        return self.process.wait(TIMEOUT_S)


@contextmanager
def running_demo() -> Iterator[RunningDemo]:
    process = subprocess.Popen(
        ["timeout", "--foreground", "--kill-after=30", str(TIMEOUT_S)]
        + [sys.executable, "-m", "tests.rig.demo"],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        with process:
            yield RunningDemo(process)
    finally:
        if process.poll() is None:
            process.terminate()


def falsify(root: Path, bank_job_id: str) -> None:
    """Give a delivered run another amount at the bank, behind the relay's back."""
    token_file = root / "falsifier"
    make = [sys.executable, "-m", "slurm_banking.server.cli", "token", "create"]
    make += ["--scope=admin", "--name=falsifier", f"--file={token_file}", f"--data={root}/bank"]
    subprocess.run(make, cwd=CHECKOUT, check=True, capture_output=True, timeout=60)
    token = token_file.read_text().split()[-1]
    config = (root / "etc" / "bank-config.toml").read_text()
    base = re.search(r'^url = "(.*)"$', config, re.MULTILINE)
    assert base is not None

    def call(method: str, body: dict[str, Any] | None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{base[1]}/jobs/{bank_job_id}/",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Token {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            answer: dict[str, Any] = json.load(reply)
        return answer

    row = call("GET", None)
    row["amount"] = f"{float(row['amount']) + 1:.2f}"
    assert call("PUT", row)["amount"] == row["amount"]


def test_demo_ends_with_books_that_agree_and_leaves_nothing() -> None:
    with running_demo() as demo:
        status = demo.end()
        text = "\n".join(demo.lines)
    assert status == 0, text
    assert re.fullmatch(
        r"ledger, bank and sacct agree: 8 runs, [0-9]+\.[0-9]{2} SU", demo.lines[-1]
    ), text
    assert [line for line in demo.lines if len(line) > WIDTH] == []
    assert "\033" not in text  # no colours: not a terminal
    assert not demo.root.exists()


def test_demo_fails_if_the_bank_has_another_amount_than_the_ledger() -> None:
    with running_demo() as demo:
        demo.read_until(lambda line: line.startswith("== 5."))  # job 1 is charged and delivered
        falsify(demo.root, "1")
        status = demo.end()
        text = "\n".join(demo.lines)
    assert status == 1, text
    assert re.match(
        "ledger, bank and sacct do not agree: 1 of [0-9]+ runs differ: 1$", demo.lines[-1]
    )
    assert not demo.root.exists()


def test_interrupted_demo_takes_everything_away() -> None:
    with running_demo() as demo:
        demo.read_until(lambda line: line.startswith("== 2."))
        (relay,) = re.findall(r"^[0-9]+", (demo.root / "state" / "relay.lock").read_text())
        demo.process.send_signal(signal.SIGINT)
        status = demo.end()
    assert status == 130
    assert not demo.root.exists()
    assert not Path("/proc", relay).exists()


def test_cluster_stays_up_and_works_and_stops_as_it_says() -> None:
    started = subprocess.run(
        [sys.executable, "-m", "tests.rig.demo", "cluster"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert started.returncode == 0, started.stdout + started.stderr
    (root,) = re.findall(r"is up in (\S+)", started.stdout)
    try:
        used = shell(lines_under(started.stdout, "Use it"))
        assert "up to 20.00 SU" in used
        assert "Submitted batch job 1" in used
        assert re.search(r"^to be delivered +\w+", used, re.MULTILINE)
        assert "fc_alpha" in shell(lines_under(started.stdout, "The bank is at"))
    finally:
        shell(lines_under(started.stdout, "Stop it"))
    assert not Path(root).exists()
    assert [line for line in started.stdout.splitlines() if len(line) > WIDTH] == []


def lines_under(text: str, heading: str) -> str:
    """The commands that the cluster prints under a heading."""
    (block,) = re.findall(rf"^{heading}.*\n((?:  .*\n)+)", text, re.MULTILINE)
    return str(block)


def shell(commands: str) -> str:
    """What the commands, typed by root, say."""
    done = subprocess.run(
        ["bash", "-c", f"set -e\n{commands}"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, commands + done.stdout + done.stderr
    return done.stdout + done.stderr
