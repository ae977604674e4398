# SPDX-License-Identifier: BSD-3-Clause
"""The time in the plugins while others are at work: a relay whose bank is well or not, and neighbours on the ledger."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import os
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slurm_banking.errors import RelayUnavailable
from slurm_banking.relay import client
from tests.bench.bank import Backlog, Deliverer, rich_account
from tests.bench.controller import ACCOUNT, CLUSTER, NO_BANK, OLD_S, USER_ID, Controller, Installed
from tests.bench.intervals import quantile, ratio
from tests.bench.results import CannotMeasure, Row, Sides, Tell, exact
from tests.server.running_bank import RunningBank

ROOT = Path(__file__).resolve().parents[2]

STATES = ("healthy", "hung", "refusing", "gone")


@dataclass(frozen=True, kw_only=True)
class Size:
    rounds: int  #: of blocks, one for each state of the bank
    block: int
    submits: int  #: beside each neighbour
    ledger: int  #: runs in the ledger that is backed up


FULL = Size(rounds=40, block=100, submits=3000, ledger=200_000)
QUICK = Size(rounds=6, block=60, submits=600, ledger=20_000)

#: Between submissions beside a neighbour: a busy site, not a flood.
PAUSE_US = 2000


# -- the bank, as the relay finds it --------------------------------------------------------------------------------------


@contextlib.contextmanager
def healthy_bank() -> Iterator[tuple[str, str]]:
    """URL and token of the bundled bank, which knows the fake slurmctld's account and user."""
    today = datetime.datetime.now(datetime.timezone.utc).date()
    start, end = today - datetime.timedelta(days=30), today + datetime.timedelta(days=30)
    with RunningBank() as bank:
        bank.shell("account", "add", ACCOUNT)
        bank.shell(
            *("allocation", "add", ACCOUNT, "99999999", "--start", str(start), "--end", str(end))
        )
        bank.shell("user", "add", "alice", "--uid", str(USER_ID), "--account", ACCOUNT)
        yield bank.url.rstrip("/"), bank.keys["relay"]


@contextlib.contextmanager
def hung_bank() -> Iterator[tuple[str, str]]:
    """Takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api", "none"


class _Refusal(http.server.BaseHTTPRequestHandler):
    def refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b"<html><body>503 Service Unavailable</body></html>"
        self.send_response(503)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = refuse

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def refusing_bank() -> Iterator[tuple[str, str]]:
    """Answers everything with 503 and a page of HTML."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusal) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/api", "none"
        finally:
            server.shutdown()


@contextlib.contextmanager
def gone_bank() -> Iterator[tuple[str, str]]:
    yield NO_BANK, "none"


BANKS = {
    "healthy": healthy_bank,
    "hung": hung_bank,
    "refusing": refusing_bank,
    "gone": gone_bank,
}


# -- processes beside -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def beside(log: Path, module: str, *arguments: str) -> Iterator[list[str]]:
    """A process of ours, under the system's Python as on a controller; what it says at its end is in the list then."""
    last: list[str] = []
    with open(log, "w") as errors:
        process = subprocess.Popen(
            ["/usr/bin/python3", "-m", module, *arguments],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdin is not None and process.stdout is not None
    watch = threading.Timer(120, process.kill)
    watch.start()
    try:
        if process.stdout.readline() != "ready\n":
            raise CannotMeasure(f"{module} did not start: {log.read_text().strip()[-500:]}")
        yield last
        process.stdin.close()
        last += process.stdout.read().split()
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        watch.cancel()
        process.stdout.close()


# -- the bank healthy, hung, refusing and gone ----------------------------------------------------------------------------


def measure_banks(built: Installed, size: Size, tell: Tell, sides: list[Sides]) -> list[Row]:
    """Submissions and ends beside a real relay, whose bank is in each of the states; blocks by turns."""
    tell("the bank healthy, hung, refusing and gone behind a real relay")
    submits: dict[str, list[float]] = {state: [] for state in STATES}
    ends: dict[str, list[float]] = {state: [] for state in STATES}
    held: dict[str, list[float]] = {state: [] for state in STATES}
    medians: dict[str, list[tuple[float, float]]] = {state: [] for state in STATES}
    asked: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        controllers: dict[str, Controller] = {}
        for state in STATES:
            url, token = stack.enter_context(BANKS[state]())
            controller = Controller(built, f"bank-{state}", url=url, token=token)
            log = controller.directory / "relay.log"
            path = str(controller.config_path)
            stack.enter_context(beside(log, "tests.bench.relay", path, CLUSTER))
            _await_socket(controller.socket)
            controllers[state] = stack.enter_context(controller)
            controller.load("job_submit", "jobcomp")
            controller.ran_for_a_minute()
        for state, controller in controllers.items():
            # The bank's word is so old that a question is wanted: the first few ask.
            controller.bank_says(read_at=int(time.time()) - OLD_S)
            asked[state] = max(controller.submits(20))
            controller.ends(20, 100)
        for number in range(size.rounds):
            turn = number % len(STATES)
            for state in STATES[turn:] + STATES[:turn]:
                controller = controllers[state]
                controller.bank_says()
                took = controller.submits(size.block)
                held[state] += controller.held_ms
                first = 1000 + number * size.block
                controller.see_starts(first)
                ended = controller.ends(size.block, first)
                submits[state] += took
                ends[state] += ended
                medians[state].append((statistics.median(took), statistics.median(ended)))
    rows = []
    shares: dict[str, list[str]] = {"job_submit": ["1"], "jobcomp": ["1"]}
    for state in STATES[1:]:
        for index, hook in enumerate(("job_submit", "jobcomp")):
            pairs = [
                (ill[index], well[index])
                for ill, well in zip(medians[state], medians["healthy"], strict=True)
            ]
            row = Row(
                what=f"{hook}, bank {state} / healthy", estimate=ratio(pairs), unit="", most=1.2
            )
            rows.append(row)
            shares[hook].append(row.measured)
    rows.append(
        Row(what="job_submit, the bank's word old, bank not healthy: the longest", unit="ms", most=250,
            estimate=exact(max(asked[state] for state in STATES[1:])),
            note="of the first 20, of which one or two ask the relay")
    )  # fmt: skip

    def line(name: str, samples: dict[str, list[float]], share: float) -> tuple[str, list[str]]:
        return name, [f"{quantile(samples[state], share).value:.3g}" for state in STATES]

    sides.append(
        Sides(
            title=f"The bank behind a real relay, {size.rounds} blocks of {size.block} submissions and ends each, by turns; ms",
            columns=STATES,
            lines=(
                line("job_submit: median", submits, 0.5),
                line("job_submit: p99", submits, 0.99),
                ("job_submit: over healthy", shares["job_submit"]),
                line("job_submit, Python's lock held: median", held, 0.5),
                ("job_submit, bank's word old: the longest", [f"{asked[s]:.3g}" for s in STATES]),
                line("jobcomp: median", ends, 0.5),
                line("jobcomp: p99", ends, 0.99),
                ("jobcomp: over healthy", shares["jobcomp"]),
            ),
        )
    )
    return rows


def _await_socket(path: str) -> None:
    for _ in range(100):
        try:
            client.ask(path, {"op": "ping"}, 0.5, allowed_owner_uids=(os.geteuid(),))
            return
        except RelayUnavailable:
            time.sleep(0.1)
    raise CannotMeasure(f"{path}: the relay does not answer")


# -- neighbours on the ledger ---------------------------------------------------------------------------------------------


def measure_busy(built: Installed, size: Size, tell: Tell) -> list[Row]:
    """job_submit while nobody else, a relay with a backlog, a backup, or another writer is at work on the ledger."""
    rows = []
    with RunningBank() as bank, Controller(built, "busy") as controller:
        controller.load("job_submit")
        controller.submits(50)
        state_dir = str(controller.directory / "state")
        backlog = Backlog(controller.ledger, rich_account(bank))
        tell(f"job_submit while others work on the ledger; {size.ledger:,} runs in it")
        backlog.fill(size.ledger)
        log = controller.directory / "neighbour.log"

        def measure(beside_what: str, most: float | None, note: str) -> None:
            times, without = controller.submits_whatever(size.submits, PAUSE_US)
            if without:
                note += (
                    f"; {without} accepted without a look, since the ledger stayed locked for 20 ms"
                )
            rows.append(
                Row(what=f"job_submit, {beside_what}: p99", estimate=quantile(times, 0.99), unit="ms", most=most,
                    note=f"median {quantile(times, 0.5).value:.2g} ms, longest {max(times):.1f} ms; {note}")
            )  # fmt: skip

        measure("nobody else at the ledger", 3, f"one every {PAUSE_US / 1000:g} ms")
        with Deliverer(bank, backlog.account, "busy", 0, ledger=controller.ledger) as deliverer:
            worker = threading.Thread(target=lambda: found.append(deliverer.rate(span_s)))
            found: list[float] = []
            span_s = size.submits * (PAUSE_US / 1e6 + 0.0015) + 1
            worker.start()
            time.sleep(0.5)
            measure("relay delivering a backlog", 3, f"{size.ledger:,} waiting")
            worker.join()
        if not found:
            raise CannotMeasure("nothing was delivered meanwhile")
        copy = str(controller.directory / "copy.sqlite3")
        with beside(log, "tests.bench.neighbour", "backup", state_dir, CLUSTER, copy) as made:
            measure("backup after backup", 3, "")
        rows[-1] = _noted(rows[-1], f"{made[0]} backups made")
        for held_ms in (5, 1):
            work = ("write", state_dir, CLUSTER, str(held_ms))
            with beside(log, "tests.bench.neighbour", *work) as made:
                measure(
                    f"another writer, {held_ms} ms at a time",
                    3,
                    f"and {held_ms} ms of pause between: every second submission finds it there",
                )
    return rows


def _noted(row: Row, more: str) -> Row:
    values = {name: getattr(row, name) for name in ("what", "estimate", "unit", "most", "least")}
    return Row(note=f"{row.note}{more}", **values)
