# SPDX-License-Identifier: BSD-3-Clause
"""The time and memory that the plugins take inside slurmctld: the installed .so files and package, in a fake slurmctld.

No cluster is needed: the fake slurmctld of tests/plugins opens the plugins as slurmctld does, links Slurm's own library,
and gives each call a thread of its own. The ledger is a real one, on /tmp's disk.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import socketserver
import sqlite3
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm_banking import config as configuration
from slurm_banking import settle
from slurm_banking.ledger import Ledger
from slurm_banking.records import Funds, FundsKind, Reason, Run
from slurm_banking.relay import protocol
from tests.bench.intervals import quantile, ratio
from tests.bench.results import CannotMeasure, Row, Tell, exact
from tests.plugins.conftest import compile_c, directory_of_libslurmfull, make
from tests.rig.banked import BUILD, stage

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"

CLUSTER = "testcluster"
ACCOUNT, USER_ID = "astro", 1001  #: of the fake slurmctld's tables
JOB = "num_tasks=1 min_cpus=1 time_limit=60"
REMAINING_CSU = 10**13
CHECKPOINT_S = 5.0

#: The bank's word is good without a question for 15 minutes; one that is older than this is worth one.
OLD_S = 3600

#: Where nobody listens.
NO_BANK = "http://127.0.0.1:9/api"

CONFIG = """\
[PartitionPrice]
normal = 1
long = 1.5
whole = 2

[API]
url = "{url}"
token_file = "{directory}/token"
timeout_s = 5

[Policy]
mode = "strict-allocation"

[Ledger]
state_dir = "{directory}/state"

[Relay]
start = "none"
socket = "{directory}/run/relay.sock"
"""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What ``make install`` puts on a controller, under a scratch directory, and the fake slurmctld."""

    scratch: Path
    slurmctld: Path

    @property
    def plugins(self) -> Path:
        return self.scratch / "stage" / "plugins"


@contextlib.contextmanager
def installed(tell: Tell) -> Iterator[Installed]:
    if os.geteuid() != 0:
        raise CannotMeasure("needs root: the plugins accept import directories of root's only")
    tell("building the plugins, installing them into a scratch directory")
    scratch = Path(tempfile.mkdtemp(prefix="slurm-banking-bench-", dir="/tmp"))
    try:
        scratch.chmod(0o755)
        stage(scratch / "stage")
        tree = make("slurm-tree", f"BUILD={scratch}/build", f"SLURM_CACHE={BUILD}/slurm-src")
        slurm = directory_of_libslurmfull()
        program = scratch / "timed_slurmctld"
        compile_c(
            *("-O2", "-rdynamic", "-pthread", f"-I{CSRC}", "-isystem", tree.strip()),
            *(HERE / "timed_slurmctld.c", "-o", program),
            *(f"-L{slurm}", "-l:libslurmfull.so", f"-Wl,-rpath,{slurm}", "-ldl"),
        )
        yield Installed(scratch=scratch, slurmctld=program)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class Controller:
    """One fake slurmctld with a ledger of its own, whose account has funds."""

    def __init__(
        self, built: Installed, name: str, *, url: str = NO_BANK, token: str = "none"
    ) -> None:
        self.built = built
        self.held_ms: list[float] = []  #: of each call of the last command: Python's lock held
        self.directory = built.scratch / name
        for directory, mode in (("", 0o755), ("state", 0o700), ("run", 0o755)):
            (self.directory / directory).mkdir(mode=mode)
        (self.directory / "slurm.conf").touch()
        token_file = self.directory / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(token)
        self.config_path = self.directory / "bank-config.toml"
        self.config_path.write_text(CONFIG.format(directory=self.directory, url=url))
        self.config = configuration.load(str(self.config_path), in_slurmctld=False)
        self.ledger = Ledger(str(self.directory / "state"), CLUSTER)
        with self.ledger.transaction() as tx:
            tx.set_meta("complete", "1")
        self.bank_says()
        self._process: subprocess.Popen[str] | None = None
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._checkpoint, daemon=True)

    @property
    def socket(self) -> str:
        return self.config.relay.socket

    def bank_says(self, *, read_at: int | None = None, reason: Reason | None = None) -> None:
        """What the relay would have written after asking the bank."""
        with self.ledger.transaction() as tx:
            for user_id in (None, USER_ID):
                tx.put_funds(
                    Funds(
                        account=ACCOUNT,
                        user_id=user_id,
                        kind=FundsKind.LIMITED,
                        limit_csu=REMAINING_CSU,
                        remaining_csu=0 if reason else REMAINING_CSU,
                        allocation="1",
                        start_time=0,
                        reason=reason if user_id is None else None,
                        read_at=int(time.time()) if read_at is None else read_at,
                    )
                )

    def __enter__(self) -> Controller:
        self._process = subprocess.Popen(
            [str(self.built.slurmctld)],
            env={"SLURM_CONF": str(self.directory / "slurm.conf")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(self.directory / "slurmctld.log", "w"),
            text=True,
        )
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._stop.set()
        self._keeper.join()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.ledger.close()

    def _checkpoint(self) -> None:
        """The relay's part: slurmctld does not move the WAL itself."""
        while not self._stop.wait(CHECKPOINT_S):
            self.ledger.checkpoint()

    def ask(self, command: str) -> str:
        """One command, one answer. Bounded: the fake slurmctld is ended if it takes a minute."""
        assert self._process is not None
        assert self._process.stdin is not None and self._process.stdout is not None
        watch = threading.Timer(120, self._process.kill)
        watch.start()
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline().rstrip("\n")
        except BrokenPipeError:
            answer = ""
        finally:
            watch.cancel()
        if not answer:
            log = (self.directory / "slurmctld.log").read_text(errors="replace")
            raise CannotMeasure(f"the fake slurmctld ended at {command!r}: {log[-500:]}")
        return answer

    def load(self, *types: str) -> None:
        for kind in types:
            answer = self.ask(f"load {kind} {self.built.plugins}/{kind}_slurm_banking.so")
            if answer != "loaded":
                raise CannotMeasure(f"{kind}: {answer}")

    def number(self, command: str) -> int:
        return int(re.findall(r"=(\d+)", self.ask(command))[-1])

    def submits(
        self, count: int, *, accepted: bool = True, pause_us: int = 0, unlike: bool = False
    ) -> list[float]:
        """Milliseconds in job_submit of each; all of them must have been accepted with a lien, or refused."""
        answer = self.ask(f"{'unlike' if unlike else 'submits'} {count} {pause_us} {JOB}")
        wanted = (count, 0, count) if accepted else (0, count, 0)
        return self._times(answer, r"accepted=(\d+) refused=(\d+) tokens=(\d+)", wanted)

    def submits_whatever(self, count: int, pause_us: int = 0) -> tuple[list[float], int]:
        """The same while others hold the ledger up; and how many were accepted without a lien, since nobody could look."""
        answer = self.ask(f"submits {count} {pause_us} {JOB}")
        tokens = int(answer.partition(" tokens=")[2].partition(" ")[0] or 0)
        times = self._times(
            answer, r"accepted=(\d+) refused=(\d+) tokens=(\d+)", (count, 0, tokens)
        )
        return times, count - tokens

    def ends(self, count: int, first_job_id: int) -> list[float]:
        """Milliseconds in jobcomp of each, of the jobs submitted last."""
        answer = self.ask(f"ends {count} {first_job_id}")
        return self._times(answer, r"ended=(\d+)", (count,))

    def _times(self, answer: str, pattern: str, wanted: tuple[int, ...]) -> list[float]:
        match = re.fullmatch(pattern + " ns=([0-9,]+) held=([0-9,]+)", answer)
        got = tuple(int(text) for text in match.groups()[:-2]) if match else ()
        if match is None or got != wanted:
            log = (self.directory / "slurmctld.log").read_text(errors="replace").splitlines()
            raise CannotMeasure(f"{answer[:80]!r}, expected {wanted}: {log[-3:]}")
        took, held = match.groups()[-2:]
        self.held_ms = [int(text) / 1e6 for text in held.split(",")]
        return [int(text) / 1e6 for text in took.split(",")]

    def ran_for_a_minute(self) -> str:
        """Makes the job record one that ran and completed."""
        now = int(time.time())
        self.ask(
            f"job state=3 part=normal nodes=n1 node_cnt=1 total_cpus=1 tres_fmt_alloc_str=cpu=1,node=1"
            f" start_time={now - 60} end_time={now} name=bench"
        )
        return f"{now - 60}"

    def see_starts(self, first_job_id: int) -> int:
        """What the relay does when it sees the queued jobs running: their liens, oldest first, become runs."""
        now = int(time.time())
        with self.ledger.transaction() as tx:
            liens = sorted(tx.open_liens(), key=lambda lien: lien.created_us)
            for number, lien in enumerate(liens):
                settle.start_run(
                    tx,
                    Run(
                        cluster=CLUSTER,
                        job_id=first_job_id + number,
                        submit_time=1000,
                        restart_count=0,
                        user_id=USER_ID,
                        account=ACCOUNT,
                        partition="normal",
                        state="RUNNING",
                        start_time=now - 60,
                        end_time=None,
                        elapsed_s=60,
                        cpus=1,
                        started=True,
                        time_limit_min=60,
                        nodes="n1",
                        node_count=1,
                        admin_comment=f"slurm_banking={lien.lien_id}:{lien.per_task_csu}:v1",
                        source="squeue",
                    ),
                    self.config,
                    actor="relay",
                )
        return len(liens)


# -- relays ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def prompt_relay(controller: Controller) -> Iterator[None]:
    """A relay whose bank answers: the word is in the ledger before the answer is given."""

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            protocol.decode(self.rfile.readline())
            controller.bank_says()
            reply: dict[str, Any] = {"ok": True, "away": False, "fresh": True}
            self.wfile.write(protocol.encode({**reply, "read_at": int(time.time())}))

    with socketserver.ThreadingUnixStreamServer(controller.socket, Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


@contextlib.contextmanager
def hung_relay(controller: Controller) -> Iterator[None]:
    """Takes every connection, says nothing, and its heart has stopped."""
    beat = Path(controller.socket).with_name(protocol.HEARTBEAT_NAME)
    beat.touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(controller.socket)
        listener.listen(128)
        yield


def bare_commits(built: Installed, count: int) -> list[float]:
    """Milliseconds of SQLite transactions of two small rows, for scale: what the ledger's disk and this Python can do."""
    times = []
    connection = sqlite3.connect(built.scratch / "scale.sqlite3", isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("CREATE TABLE rows (n INTEGER PRIMARY KEY, text TEXT)")
        for _ in range(count):
            begun = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO rows (text) VALUES ('lien')")
            connection.execute("INSERT INTO rows (text) VALUES ('entry')")
            connection.execute("COMMIT")
            times.append((time.perf_counter() - begun) * 1000)
    finally:
        connection.close()
    return times


# -- measurements ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Size:
    submits: int
    pairs: int  #: of blocks with the relay hung and healthy
    block: int
    ends: int
    lives: int  #: submissions, and as many ends


FULL = Size(submits=5000, pairs=20, block=100, ends=3000, lives=100_000)
QUICK = Size(submits=1500, pairs=8, block=60, ends=800, lives=3000)


def measure_hooks(built: Installed, size: Size, tell: Tell) -> list[Row]:
    with Controller(built, "hooks") as controller:
        controller.load("job_submit", "jobcomp")
        controller.submits(50)
        tell(f"job_submit: {size.submits} submissions, each with its lien on disk")
        submits = controller.submits(size.submits)
        held = controller.held_ms
        unlike = controller.submits(size.submits // 2, unlike=True)
        rows = [
            Row(what="job_submit, lien on disk: median", estimate=quantile(submits, 0.5),
                unit="ms", most=0.3),
            Row(what="job_submit, lien on disk: p99", estimate=quantile(submits, 0.99),
                unit="ms", most=3),
            Row(what="job_submit, Python's lock held: median", estimate=quantile(held, 0.5), unit="ms",
                note=f"{statistics.fmean(held) / statistics.fmean(submits):.0%} of the time; without it: decoding in C, "
                "the log, and SQLite's work"),
            Row(what="job_submit, lien on disk, no two alike: median", estimate=quantile(unlike, 0.5), unit="ms",
                note="each asks for other memory: nothing kept of earlier estimates is of use"),
        ]  # fmt: skip
        spaced = controller.submits(min(size.submits // 5, 1000), pause_us=5000)
        rows.append(
            Row(what="job_submit, lien on disk, one every 5 ms: median", estimate=quantile(spaced, 0.5),
                unit="ms", note="the processor's caches and clock are cold by then")
        )  # fmt: skip
        tell("job_submit without a write: refusals on funds that were just read")
        ahead = int(time.time()) + 3600  # of no age all along
        controller.bank_says(read_at=ahead, reason=Reason.NO_ALLOCATION)
        refusals = controller.submits(size.submits // 2, accepted=False)
        rows.append(
            Row(what="job_submit, nothing written: median", estimate=quantile(refusals, 0.5),
                unit="ms", most=0.15,
                note="the same job refused: decoded, estimated, funds read in the ledger's transaction, told"),
        )  # fmt: skip
    rows.append(
        Row(what="for scale: a bare SQLite commit of two rows", unit="ms",
            estimate=quantile(bare_commits(built, 2000), 0.5))
    )  # fmt: skip
    with Controller(built, "ends") as controller:
        controller.load("job_submit", "jobcomp")
        controller.ran_for_a_minute()
        first = 1000
        seen: list[float] = []
        unseen: list[float] = []
        held = []
        tell(f"jobcomp: {size.ends} ends whose start was seen, and as many whose was not")
        block = 200
        for _ in range(size.ends // block):
            controller.submits(block)
            assert controller.see_starts(first) == block
            seen += controller.ends(block, first)
            held += controller.held_ms
            controller.submits(block)
            unseen += controller.ends(block, first + block)
            first += 2 * block
        rows += [
            Row(what="jobcomp, charge on disk: median", estimate=quantile(seen, 0.5), unit="ms", most=0.4),
            Row(what="jobcomp, charge on disk: p99", estimate=quantile(seen, 0.99), unit="ms"),
            Row(what="jobcomp, Python's lock held: median", estimate=quantile(held, 0.5), unit="ms",
                note=f"{statistics.fmean(held) / statistics.fmean(seen):.0%} of the time"),
            Row(what="jobcomp, start and charge on disk: median", estimate=quantile(unseen, 0.5), unit="ms",
                note="the run ended before the relay saw it start"),
        ]  # fmt: skip
    return rows


def measure_hung(built: Installed, size: Size, tell: Tell) -> list[Row]:
    """The relay hung against healthy; the bank's word in date, and so old that a question is wanted."""
    rows = []
    longest = 0.0
    for name, words, age_s in (
        ("fresh", "bank's word in date", 0),
        ("old", "bank's word over 15 min old", OLD_S),
    ):
        tell(f"job_submit with the relay hung against healthy, {words}")
        with Controller(built, f"healthy-{name}") as well, Controller(built, f"hung-{name}") as ill:
            with prompt_relay(well), hung_relay(ill):
                for controller in (well, ill):
                    controller.bank_says(read_at=int(time.time()) - age_s)
                    controller.load("job_submit")
                    first = controller.submits(20)  # the few questions that are asked in vain
                    longest = max(longest, *first)
                pairs = []
                for number in range(size.pairs):
                    both = (ill, well) if number % 2 else (well, ill)
                    took = {one: statistics.median(one.submits(size.block)) for one in both}
                    pairs.append((took[ill], took[well]))
        rows.append(
            Row(what=f"job_submit, relay hung / healthy, {words}", estimate=ratio(pairs),
                unit="", most=1.2)
        )  # fmt: skip
    rows.append(
        Row(what="job_submit, relay hung: the longest", estimate=exact(longest), unit="ms", most=250,
            note="of the first few, which ask; after two questions in vain none is asked")
    )  # fmt: skip
    return rows


def measure_many(built: Installed, size: Size, tell: Tell) -> list[Row]:
    """Submissions, and ends of what was submitted, in tenths by turns; the memory of it all."""
    parts = 10
    each = size.lives // parts
    total = f"{each * parts:,}"
    submits: list[float] = []
    ends: list[float] = []
    medians = []
    submits_s = ends_s = 0.0
    with Controller(built, "many") as controller:
        controller.ran_for_a_minute()
        before = controller.number("rss")
        controller.load("job_submit", "jobcomp")
        tell(f"{total} submissions and as many ends, and the memory of slurmctld")
        sizes = []
        for number in range(parts):
            first = 10_000 + number * each
            begun = time.monotonic()
            part = controller.submits(each)
            submits_s += time.monotonic() - begun
            submits += part
            controller.see_starts(first)
            begun = time.monotonic()
            ended = controller.ends(each, first)
            ends_s += time.monotonic() - begun
            ends += ended
            medians.append((statistics.median(part), statistics.median(ended)))
            sizes.append(controller.number("rss"))
        answers = controller.ask("sockets")
        if answers != "sockets=0":
            raise CannotMeasure(f"the fake slurmctld has {answers}, expected none")
    return [
        Row(what=f"{total} submissions: throughput", estimate=exact(len(submits) / submits_s, len(submits)), unit="/s",
            note="one after the other, a thread made for each"),
        Row(what=f"{total} submissions: median", estimate=quantile(submits, 0.5), unit="ms",
            note="by tenths " + ", ".join(f"{median:.3f}" for median, _ in medians)),
        Row(what=f"{total} submissions: p99", estimate=quantile(submits, 0.99), unit="ms", most=3),
        Row(what=f"{total} completions: throughput", estimate=exact(len(ends) / ends_s, len(ends)), unit="/s"),
        Row(what=f"{total} completions: median", estimate=quantile(ends, 0.5), unit="ms",
            note="by tenths " + ", ".join(f"{median:.3f}" for _, median in medians)),
        Row(what=f"{total} completions: p99", estimate=quantile(ends, 0.99), unit="ms"),
        Row(what="slurmctld, memory added", estimate=exact((sizes[-1] - before) / 1024), unit="MiB", most=40),
        Row(what="slurmctld, memory from 20 % of the jobs to the end", estimate=exact((sizes[-1] - sizes[1]) / 1024),
            unit="MiB", most=1, note=f"{total} submissions and ends; flat is taken as at most 1 MiB"),
    ]  # fmt: skip
