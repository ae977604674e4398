# SPDX-License-Identifier: BSD-3-Clause
"""The relay's deliveries to the bundled bank on this host, and what the bank's own answers cost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from slurm_banking.ledger import Ledger
from tests.bench.intervals import mean, ratio
from tests.bench.results import CannotMeasure, Row, Tell, exact
from tests.server.conftest import POSTGRESQL_BIN, PostgreSQL
from tests.server.running_bank import Account, RunningBank

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = "bench"
FEW = 5000
PROCESSES = 2  #: of the bank, as on a host with cores for it
WARM_UP = 300  #: requests after which each costs the same

CONFIG = """\
[PartitionPrice]
main = 1
[API]
url = "{url}"
token_file = "{directory}/token"
timeout_s = 10
job_id_format = "{name}-{{job_id}}"
[Ledger]
state_dir = "{state_dir}"
[Relay]
start = "none"
socket = "{directory}/relay.sock"
"""

#: Runs that wait for the bank, as after a day without it: by turns one that runs, and one that ended whose start was not
#: delivered either. Written at once instead of one by one; what triggers keep is kept.
FILL = """
WITH RECURSIVE number (n) AS (SELECT :first UNION ALL SELECT n + 1 FROM number WHERE n < :last)
INSERT INTO runs (job_id, submit_time, restart_count, state, counted, account, user_id, user_name, name, partition, qos,
	start_time, end_time, elapsed_s, cpus, nodes, node_count, time_limit_min, slurm_state, lien_csu, charge_csu,
	ledger_csu, period, inputs, source)
SELECT n, :now - 7200, 0, iif(n % 2 OR :running, 'running', 'ended'), 1, :account, :user_id, 'bench', 'bench', 'main', 'normal',
	:now - 3600, iif(n % 2 OR :running, NULL, :now - 1800), iif(n % 2 OR :running, 0, 1800), 1, 'n1', 1, 60,
	iif(n % 2 OR :running, 'RUNNING', 'COMPLETED'), 100, iif(n % 2 OR :running, NULL, 50),
	iif(n % 2 OR :running, 100, 50), '', '{"partition":"main","cpus":1}', 'jobcomp'
FROM number
"""
FILL_OUTBOX = """
INSERT INTO outbox (run_id, phase, created_us)
SELECT run_id, iif(state = 'running', 'start', 'end'), :now * 1000000 FROM runs
WHERE job_id BETWEEN :first AND :last ORDER BY run_id
"""

#: What was delivered as started ends now.
END = """
UPDATE runs SET state = 'ended', slurm_state = 'COMPLETED', end_time = :now - 1800, elapsed_s = 1800, charge_csu = 50,
	ledger_csu = 50
WHERE state = 'running' AND start_acked
"""
END_OUTBOX = """
INSERT INTO outbox (run_id, phase, created_us)
SELECT run_id, 'end', :now * 1000000 FROM runs WHERE state = 'ended' AND NOT end_acked ORDER BY run_id
"""


@dataclass(frozen=True, kw_only=True)
class Size:
    slices: int  #: of deliveries, few waiting and many waiting by turns
    slice_s: float
    waiting: int
    drained: int  #: of these, with the bank on SQLite; with the other as many as the slices allow
    batches: int  #: of questions to the bank
    batch: int


FULL = Size(slices=6, slice_s=2.0, waiting=1_000_000, drained=30_000, batches=20, batch=100)
QUICK = Size(slices=3, slice_s=0.8, waiting=20_000, drained=0, batches=6, batch=50)
#: For a bank that is not on SQLite: a ledger of a million takes a minute to make.
WAITING_ELSEWHERE = 100_000
#: Seconds after which a drain ends, however little was delivered.
DRAIN_S = 200


@contextlib.contextmanager
def databases() -> Iterator[dict[str, Callable[[], str | None]]]:
    """Name → makes a new database and tells its URL (None: SQLite); PostgreSQL if this host has it."""
    found: dict[str, Callable[[], str | None]] = {"SQLite": lambda: None}
    if not (POSTGRESQL_BIN / "initdb").exists():
        yield found
        return
    directory = Path(tempfile.mkdtemp(prefix="slurm-banking-bench-pg-", dir="/tmp"))
    try:
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres", "postgres")
        server = PostgreSQL(directory)
        server.start()
        names = iter(f"bank{number}" for number in range(100))
        found["PostgreSQL"] = lambda: server.create_database(next(names))
        try:
            yield found
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# -- deliveries -----------------------------------------------------------------------------------------------------------


class Backlog:
    """Runs in a ledger that wait for the bank."""

    def __init__(self, ledger: Ledger, account: Account) -> None:
        self.account = account
        self._ledger = ledger
        self._values: dict[str, Any] = {
            "now": int(time.time()),
            "account": account.name,
            "user_id": int(account.uid),
            "first": 1,
            "last": 0,
            "running": 0,
        }

    def fill(self, waiting: int) -> None:
        self._values["last"] = waiting
        with self._ledger.transaction() as tx:
            tx.set_meta("complete", "1")
            if waiting:
                tx._connection.execute(FILL, self._values)
                tx._connection.execute(FILL_OUTBOX, self._values)
        self._ledger.checkpoint()

    def live_on(self, count: int) -> None:
        """What was delivered as started ends, and as many others start."""
        first = self._values["last"] + 1
        values = {**self._values, "first": first, "last": first + count - 1, "running": 1}
        self._values = values
        with self._ledger.transaction() as tx:
            for statement in (END, END_OUTBOX, FILL, FILL_OUTBOX):
                used = {key: value for key, value in values.items() if f":{key}" in statement}
                tx._connection.execute(statement, used)


class Deliverer:
    """A relay's worth of deliveries with a ledger in which `waiting` runs wait; or with one that is there."""

    def __init__(
        self,
        bank: RunningBank,
        account: Account,
        name: str,
        waiting: int,
        *,
        ledger: Ledger | None = None,
    ) -> None:
        self.delivered = self.rss_kb = 0  #: in the last slice, and at its end
        self.directory = Path(tempfile.mkdtemp(prefix="slurm-banking-bench-", dir="/tmp"))
        try:
            (self.directory / "state").mkdir(mode=0o700)
            token = self.directory / "token"
            token.touch(mode=0o600)
            token.write_text(bank.keys["relay"])
            config = self.directory / "bank-config.toml"
            config.write_text(
                CONFIG.format(
                    url=bank.url.rstrip("/"),
                    directory=self.directory,
                    state_dir=ledger.state_dir if ledger else self.directory / "state",
                    name=name,
                )
            )
            self._own = None if ledger else Ledger(str(self.directory / "state"), CLUSTER)
            if self._own is not None:
                self.backlog = Backlog(self._own, account)
                self.backlog.fill(waiting)
            cluster = ledger.cluster if ledger else CLUSTER
            self._process = subprocess.Popen(
                ["/usr/bin/python3", "-m", "tests.bench.deliveries", str(config), cluster],
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=open(self.directory / "log", "w"),
                text=True,
            )
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Deliverer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._own is not None:
            self._own.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        watch = threading.Timer(120, self._process.kill)
        watch.start()
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            log = (self.directory / "log").read_text(errors="replace")
            raise CannotMeasure(f"deliveries ended at {command!r}: {log.strip()[-500:]}")
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            raise CannotMeasure(f"deliveries: {answer['problem']}")
        return answer

    def rate_of_all(self) -> float:
        """Until nothing waits."""
        answer = self.ask("deliver 60")
        if answer["waiting"]:
            raise CannotMeasure(f"{answer['waiting']} deliveries wait after a minute")
        return float(answer["delivered"]) / float(answer["seconds"])

    def rate(self, seconds: float) -> float:
        answer = self.ask(f"deliver {seconds}")
        if not answer["waiting"]:
            raise CannotMeasure("everything was delivered: fewer waited than the slices needed")
        self.delivered, self.rss_kb = int(answer["delivered"]), int(answer["rss_kb"])
        return float(answer["delivered"]) / float(answer["seconds"])


def rich_account(bank: RunningBank) -> Account:
    return bank.account(su="99999999")


def measure_deliveries(size: Size, tell: Tell) -> list[Row]:
    rows: list[Row] = []
    with databases() as known:
        for name, create in known.items():
            for processes in (1, PROCESSES):
                arguments = ("--processes", str(processes))
                with RunningBank(create(), arguments=arguments) as bank:
                    account = rich_account(bank)
                    rows.append(_steady(bank, account, name, processes, size, tell))
                    if processes == PROCESSES:
                        rows += _waiting(bank, account, name, size, tell)
    return rows


def _steady(
    bank: RunningBank, account: Account, name: str, processes: int, size: Size, tell: Tell
) -> Row:
    tell(f"deliveries to the bank on {name} in {processes} processes, as runs start and end")
    assert bank._server is not None
    banks = [bank._server.pid, *children(bank._server.pid)]
    each = int(100 * size.slice_s)
    with Deliverer(bank, account, "steady", 0) as steady:
        rates = []
        for number in range(size.slices + 2):
            steady.backlog.live_on(each)
            if number == 2:  # the first has no ends, the second opens connections
                relay_s, bank_s = process_s(steady.pid), sum(map(process_s, banks))
            rate = steady.rate_of_all()
            if number >= 2:
                rates.append(rate)
        count = 2 * each * size.slices
        relay_ms = (process_s(steady.pid) - relay_s) / count * 1000
        bank_ms = (sum(map(process_s, banks)) - bank_s) / count * 1000
    alone = processes == 1
    return Row(
        what=f"relay to bank on {name}" + (", which is one process" if alone else ""),
        estimate=mean(rates), unit="deliveries/s", least=300,
        note=f"as many starts as ends, the bank in {processes} process{'' if alone else 'es'}; "
        f"CPU of each: relay {relay_ms:.1f} ms, bank {bank_ms:.1f} ms",
    )  # fmt: skip


def _waiting(bank: RunningBank, account: Account, name: str, size: Size, tell: Tell) -> list[Row]:
    waiting = size.waiting if name == "SQLite" else min(size.waiting, WAITING_ELSEWHERE)
    drained = size.drained if name == "SQLite" else 0
    return _backlog(bank, account, name, waiting, drained, size, tell)


def _backlog(
    bank: RunningBank,
    account: Account,
    name: str,
    waiting: int,
    drained: int,
    size: Size,
    tell: Tell,
) -> list[Row]:
    """Many waiting against few, by turns, until so many are drained."""
    few_count = min(max(FEW, int(size.slices * size.slice_s * 1000)), waiting)
    tell(f"deliveries to the bank on {name}, {waiting:,} waiting against {few_count:,}")
    pairs: list[tuple[float, float]] = []
    rates: list[float] = []
    sizes_kb: list[int] = []
    done = 0
    with (
        Deliverer(bank, account, "few", few_count) as few,
        Deliverer(bank, account, "many", waiting) as many,
    ):
        for one in (few, many):
            one.rate(0.5)
        until = time.monotonic() + DRAIN_S
        while len(pairs) < size.slices or (done < drained and time.monotonic() < until):
            # Few against many in as many pairs as it takes; the rest of the drain by itself.
            with_few = len(pairs) < size.slices
            both = (few, many) if len(pairs) % 2 else (many, few)
            rate_of = {}
            for one in both if with_few else (many,):
                rate_of[one] = one.rate(size.slice_s)
            rates.append(rate_of[many])
            if with_few:
                pairs.append((rate_of[many], rate_of[few]))
            done += int(many.delivered)
            sizes_kb.append(many.rss_kb)
        few_kb = few.ask("waiting")["rss_kb"]
    third = max(1, len(rates) // 3)
    rows = [
        Row(what=f"relay to bank on {name}, {waiting:,} waiting / {few_count:,}", estimate=ratio(pairs),
            unit="", least=0.9,
            note=f"rates, of about {statistics.median(rates):.0f}/s: half of what waits are starts, half whole runs, "
            "which are two requests each; flat is taken as at least 0.9"),
        Row(what=f"relay's memory, {waiting:,} waiting minus {few_count:,} ({name})",
            estimate=exact((sizes_kb[-1] - few_kb) / 1024), unit="MiB", most=5,
            note=f"{sizes_kb[-1] / 1024:.0f} MiB in all; flat is taken as at most 5 MiB more"),
    ]  # fmt: skip
    if drained:
        first, last = rates[:third], rates[-third:]
        rows += [
            Row(what=f"relay to bank on {name}, {done:,} drained of {waiting:,}", estimate=mean(rates),
                unit="deliveries/s",
                note="" if done >= drained else f"{drained:,} were wanted, the time was up"),
            Row(what="the same, the last third's rate / the first third's", unit="", least=0.9,
                estimate=exact(statistics.fmean(last) / statistics.fmean(first), third)),
            Row(what="the same, relay's memory from 20 % of it to the end", unit="MiB", most=5,
                estimate=exact((sizes_kb[-1] - sizes_kb[len(sizes_kb) // 5]) / 1024),
                note="MiB by tenths: " + ", ".join(
                    f"{sizes_kb[len(sizes_kb) * tenth // 10] / 1024:.1f}" for tenth in range(10))),
        ]  # fmt: skip
    return rows


# -- the bank's own cost --------------------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """Of all threads of a process, and of its children (PostgreSQL's, one per connection)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
            for child in (task / "children").read_text().split():
                total += int(cpu_s(int(child)) * 1e9)
    return total / 1e9


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def process_s(pid: int) -> float:
    """Of a process and all threads that it ever had, to hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_questions(size: Size, tell: Tell) -> list[Row]:
    rows: list[Row] = []
    with databases() as known:
        for name, create in known.items():
            url = create()
            with RunningBank(url) as bank:
                tell(f"can_submit_job at the bank on {name}")
                rows.append(_questions(bank, name, url, size))
    return rows


def _questions(bank: RunningBank, name: str, url: str | None, size: Size) -> Row:
    account = rich_account(bank)
    assert bank._server is not None
    pids = [bank._server.pid]
    if url is not None:
        data = Path(url.partition("?host=")[2]) / "data"
        pids.append(int((data / "postmaster.pid").read_text().split()[0]))
    path = f"{bank.url}can_submit_job/12.34/{account.uid}/{account.name}/"
    per_request: list[float] = []
    with requests.Session() as session:
        session.headers["Authorization"] = f"Token {bank.keys['relay']}"
        session.trust_env = False
        for number in range(size.batches + 1):
            before = sum(cpu_s(pid) for pid in pids)
            for _ in range(size.batch if number else WARM_UP):
                reply = session.get(path, timeout=10)
                if reply.status_code != 200 or reply.json().get("success") is not True:
                    raise CannotMeasure(f"can_submit_job: {reply.status_code} {reply.text[:200]}")
            if number:
                spent = sum(cpu_s(pid) for pid in pids) - before
                per_request.append(spent / size.batch * 1000)
    return Row(
        what=f"bank on {name}, can_submit_job: CPU",
        estimate=mean(per_request),
        unit="ms",
        most=2,
        note="the bank's process" + (" and PostgreSQL's" if url is not None else ""),
    )
