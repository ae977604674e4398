# SPDX-License-Identifier: BSD-3-Clause
"""What the relay knows, in the text format that Prometheus reads (version 0.0.4), and a small server for it.

The number of series is bounded by what is written here: no label has a user, a job or an account in it. Times are unix
seconds, so that whoever looks computes the age; amounts are SU. What the hooks in slurmctld counted comes from their file
(:mod:`slurm_banking.counters`) and goes on over restarts; what the relay counts begins when it starts.

The server reads one request at a time on one thread, with one deadline over each, and answers from a text that is made at
most once a second.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from typing import Any, Callable, Collection, Dict, List, Mapping, Optional, Tuple, Union

from slurm_banking import __version__, counters
from slurm_banking.amounts import format_su
from slurm_banking.errors import LedgerError
from slurm_banking.ledger import Ledger, Transaction
from slurm_banking.relay import book

log = logging.getLogger("slurm_banking.relay")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "slurm_banking_"

#: Seconds for which one text is good.
KEPT_S = 1.0
#: Seconds for one request, from accept to the last byte of the answer; bytes of one.
REQUEST_S = 2.0
MAX_REQUEST_BYTES = 8192
_BACKLOG = 16

#: Deliveries at the head of the outbox among which the oldest that is due is looked for.
_LOOK_THROUGH = 100

#: Shown although nothing was counted: what alerts look at begins with 0.
ALWAYS = frozenset(
    {
        ("accepted", "fits"),
        ("refused", "insufficient_funds"),
        ("undecided", "funds_unknown"),
        ("undecided", "ledger_unavailable"),
    }
)

Value = Union[int, float, str]


class Exposition:
    """Families of samples, one after the other."""

    def __init__(self) -> None:
        self._lines: List[str] = []
        self._name = ""

    def family(self, name: str, kind: str, text: str) -> "Exposition":
        """``kind``: counter, gauge or histogram."""
        self._name = PREFIX + name
        self._lines.append(f"# HELP {self._name} {_escaped(text, quotes=False)}")
        self._lines.append(f"# TYPE {self._name} {kind}")
        return self

    def sample(self, value: Value, suffix: str = "", **labels: str) -> "Exposition":
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        self._lines.append(
            f"{self._name}{suffix}{{{inside}}} {value}"
            if inside
            else f"{self._name}{suffix} {value}"
        )
        return self

    def one(self, name: str, kind: str, text: str, value: Optional[Value]) -> None:
        """A family of one sample; none if there is no value."""
        if value is not None:
            self.family(name, kind, text).sample(value)

    def __str__(self) -> str:
        return "\n".join([*self._lines, ""])


def _escaped(text: str, *, quotes: bool = True) -> str:
    text = str(text).replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


class Metrics:
    """
    :param health: what the relay says of itself; may raise LedgerError.
    :param accounts: those that are in use.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        health: Callable[[], Mapping[str, Any]],
        accounts: Callable[[], Collection[str]],
    ) -> None:
        self._ledger = ledger
        self._health = health
        self._accounts = accounts
        self._lock = threading.Lock()
        self._kept = ""
        self._kept_until = 0.0

    def text(self) -> str:
        with self._lock:
            if time.monotonic() >= self._kept_until:
                self._kept = self._made()
                self._kept_until = time.monotonic() + KEPT_S
            return self._kept

    def _made(self) -> str:
        page = Exposition()
        page.family("build_info", "gauge", "Always 1; the version of the relay.")
        page.sample(1, version=__version__, cluster=self._ledger.cluster)
        of_hooks(page, counters.read(self._ledger.state_dir))
        readable = 1
        try:
            health = self._health()
            of_relay(page, health)
            of_bank(page, health)
            self._of_ledger(page, (health.get("deliveries") or {}).get("parked", 0))
        except LedgerError:
            readable = 0
        page.one("ledger_readable", "gauge", "1: the relay can read its ledger.", readable)
        self._of_files(page)
        return str(page)

    def _of_ledger(self, page: Exposition, parked: int) -> None:
        with self._ledger.transaction(write=False) as tx:
            waiting, oldest_us = tx.outbox_size()
            oldest_us = oldest_due_us(tx, oldest_us, parked)
            complete = tx.complete
            unconfirmed_us = tx.unconfirmed_since()
        page.one("ledger_complete", "gauge", "1: compared with Slurm since it was new.", int(complete))  # fmt: skip
        page.one("outbox_deliveries", "gauge", "Deliveries that the bank has not acknowledged.", waiting)  # fmt: skip
        page.one(
            "outbox_oldest_timestamp_seconds",
            "gauge",
            "Since when the oldest of them waits, but for those refused for good; absent if none does.",
            _seconds(oldest_us),
        )
        page.one(
            "lien_unconfirmed_oldest_timestamp_seconds",
            "gauge",
            "Since when a lien waits for Slurm to be seen to have its job; absent if none does.",
            _seconds(unconfirmed_us),
        )
        sums = {"queued": [0, 0], "running": [0, 0], "grandfathered": [0, 0]}
        for account in self._accounts():
            with self._ledger.transaction(write=False) as tx:
                aside = tx.set_aside(account)
            for state, jobs, csu in (
                ("queued", aside.queued_jobs, aside.queued_csu),
                ("running", aside.running_jobs, aside.running_csu),
                ("grandfathered", aside.grandfathered_jobs, aside.grandfathered_csu),
            ):
                sums[state][0] += jobs
                sums[state][1] += csu
        page.family(
            "liens",
            "gauge",
            "Open liens: of queued jobs, of running runs, and of jobs older than the ledger (not counted).",
        )
        for state, (jobs, _) in sums.items():
            page.sample(jobs, state=state)
        page.family("liens_su", "gauge", "What these liens set aside, in SU.")
        for state, (_, csu) in sums.items():
            page.sample(format_su(csu), state=state)
        page.one("runs_running", "gauge", "Runs that the ledger has as running, grandfathered ones not among them.", sums["running"][0])  # fmt: skip

    def _of_files(self, page: Exposition) -> None:
        path = self._ledger.path
        page.family("file_bytes", "gauge", "Sizes of the files in the state directory.")
        for name, file in (
            ("ledger", path),
            ("ledger_wal", path + "-wal"),
            ("book", os.path.join(self._ledger.state_dir, book.FILE_NAME)),
        ):
            try:
                page.sample(os.stat(file).st_size, file=name)
            except OSError:
                continue


def of_hooks(page: Exposition, reading: Optional[counters.Reading]) -> None:
    """What the plugins in slurmctld counted."""
    page.one(
        "counters_readable",
        "gauge",
        "1: slurmctld's counters can be read.",
        0 if reading is None else 1,
    )
    if reading is None:
        return
    page.one("counters_created_timestamp_seconds", "gauge", "Since when the hooks are counted.", reading.created)  # fmt: skip
    page.family(
        "decisions_total",
        "counter",
        'Verdicts of submit and update by outcome and reason; "would_refuse": accepted, since enforce is "log".',
    )
    for (hook, outcome, reason), count in reading.decisions.items():
        if count or (outcome, reason) in ALWAYS:
            page.sample(count, hook=hook, outcome=outcome, reason=reason)
    page.family(
        "runs_told_total", "counter", "Ends and starts that Slurm told of, by what they did."
    )
    for (hook, result), count in reading.runs.items():
        if count or (hook, result) == ("run_ended", "charged"):
            page.sample(count, hook=hook, result=result)
    page.family("hook_errors_total", "counter", "Calls that raised; C decided by on_plugin_error.")
    for hook, count in reading.failed.items():
        page.sample(count, hook=hook)
    page.family(
        "hook_questions_total",
        "counter",
        "Questions of a hook to the relay for the bank's word, and whether it was had.",
    )
    page.sample(reading.asked_fresh, answer="fresh")
    page.sample(reading.asked_in_vain, answer="none")
    page.family("hook_seconds", "histogram", "Time in the plugin, in Python, of one call.")
    for hook, times in reading.times.items():
        total = 0
        for bound_us, count in zip(counters.BOUNDS_US, times.buckets):
            total += count
            page.sample(total, "_bucket", hook=hook, le=_from_us(bound_us))
        page.sample(times.count, "_bucket", hook=hook, le="+Inf")
        page.sample(_from_us(times.sum_us), "_sum", hook=hook)
        page.sample(times.count, "_count", hook=hook)


def of_relay(page: Exposition, health: Mapping[str, Any]) -> None:
    page.one("relay_start_timestamp_seconds", "gauge", "When the relay started.", health.get("started"))  # fmt: skip
    page.one(
        "last_sweep_timestamp_seconds",
        "gauge",
        "When liens were last compared with Slurm's queue; absent until then.",
        health.get("last_sweep"),
    )
    page.one(
        "last_sacct_timestamp_seconds",
        "gauge",
        "When slurmdbd was last asked for ended runs; absent until then.",
        health.get("last_sacct"),
    )
    page.one(
        "accounting_differs_total",
        "counter",
        "Ended runs that slurmdbd tells otherwise than they were charged.",
        health.get("accounting_differs", 0),
    )
    of_books(page, health.get("books") or {})
    page.one("alarms", "gauge", "What needs an operator now.", len(health.get("alarms") or ()))
    page.one(
        "config_rejected",
        "gauge",
        "1: bank-config.toml has mistakes, the last good one serves on.",
        int(health.get("config_problem") is not None),
    )
    failures: Mapping[str, int] = health.get("step_failures") or {}
    failing: Collection[str] = health.get("failing") or ()
    page.family("step_failures_total", "counter", "Tries of the relay's steps that failed.")
    for step, count in sorted(failures.items()):
        page.sample(count, step=step)
    page.family("step_failing", "gauge", "1: the last try of the step failed.")
    for step in sorted(failures):
        page.sample(int(step in failing), step=step)


def of_books(page: Exposition, books: Mapping[str, Any]) -> None:
    """What the last look found that compared slurmdbd, ledger and bank; nothing until there was one."""
    if books.get("looked_at") is None:
        return
    page.one(
        "reconcile_last_timestamp_seconds",
        "gauge",
        "When slurmdbd, ledger and bank were last compared.",
        books["looked_at"],
    )
    page.one(
        "reconcile_last_clean_timestamp_seconds",
        "gauge",
        "When that was, and they agreed, for the last time; absent until then.",
        books.get("clean_at"),
    )
    page.family("reconcile_findings", "gauge", "What differed at the last look, by kind.")
    for kind, count in sorted((books.get("counts") or {}).items()):
        page.sample(count, kind=kind)
    page.one(
        "reconcile_drift_su",
        "gauge",
        "At the last look: by how much the bank's counters were off, all accounts added up, in SU.",
        format_su(int(books.get("drift_csu") or 0)),
    )


def of_bank(page: Exposition, health: Mapping[str, Any]) -> None:
    away_since = health.get("bank_away_since")
    page.one("bank_away", "gauge", "1: the bank did not answer last time.", int(away_since is not None))  # fmt: skip
    page.one("bank_away_since_timestamp_seconds", "gauge", "Since when; absent while it answers.", away_since)  # fmt: skip
    page.family(
        "deliveries_held",
        "gauge",
        "Deliveries that were tried: in_flight, waiting for another try, healing (refused for now), "
        "parked (refused for good), unresolved (the answer was lost).",
    )
    counts: Mapping[str, int] = health.get("deliveries") or {}
    for state in ("in_flight", "waiting", "healing", "parked", "unresolved"):
        page.sample(counts.get(state, 0), state=state)
    page.family("deliveries_total", "counter", "Deliveries by what came of them.")
    for result, count in sorted((health.get("delivered") or {}).items()):
        page.sample(count, result=result)
    page.one(
        "funds_oldest_timestamp_seconds",
        "gauge",
        "When the oldest of the funds in use was read at the bank; absent if none are in use.",
        health.get("funds_oldest"),
    )
    page.one("funds_never_read", "gauge", "Accounts and users in use whose funds were never read.", health.get("funds_never_read"))  # fmt: skip


def oldest_due_us(tx: Transaction, oldest_us: Optional[int], parked: int) -> Optional[int]:
    """Since when the oldest delivery waits that the bank does not refuse for good; None: none does, as far as is looked."""
    if not parked:
        return oldest_us
    first = tx.next_deliveries(0, _LOOK_THROUGH)
    return next((one.created_us for one in first if one.run.parked is None), None)


def _seconds(us: Optional[int]) -> Optional[int]:
    return None if us is None else us // 1_000_000


def _from_us(us: int) -> str:
    """Microseconds as seconds, exactly: "0.0001", "1"."""
    whole, part = divmod(us, 1_000_000)
    return f"{whole}.{part:06}".rstrip("0").rstrip(".")


# -- the server -------------------------------------------------------------------------------------------------------


class MetricsServer:
    """Serves ``GET /metrics`` on an address that may change; not before :meth:`serve_on` names one."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self._address = ""
        self._listener: Optional[socket.socket] = None
        self._stop = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def serve_on(self, address: str) -> Optional[str]:
        """Serve there and nowhere else; "" serves nowhere. What is wrong with the address, or None."""
        if address == self._address and (self._listener is not None or not address):
            return None
        self.stop()
        self._address = address
        if not address:
            return None
        host, port = split_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            return f"metrics on {address}: {error.strerror or error}"
        self._listener = listener
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(listener, self._stop), name="metrics", daemon=True
        )
        self._thread.start()
        return None

    @property
    def port(self) -> int:
        """The one that is listened on; 0: none."""
        return 0 if self._listener is None else int(self._listener.getsockname()[1])

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1)
            self._thread = None
        self._listener = None

    def _serve(self, listener: socket.socket, stop: threading.Event) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        with listener:
            while not stop.is_set():
                if not poll.poll(250):
                    continue
                try:
                    connection, _ = listener.accept()
                except OSError:
                    stop.wait(0.05)  # it hung up again, or there are no descriptors left
                    continue
                with connection:
                    try:
                        self._answer(connection, time.monotonic() + REQUEST_S)
                    except OSError:
                        pass  # the caller hung up, or let the deadline pass
                    except Exception:
                        log.exception("answer_failed metrics=%s", self._address)

    def _answer(self, connection: socket.socket, until: float) -> None:
        request = _read_request(connection, until)
        status, kind, body = self._reply(request)
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\nX-Content-Type-Options: nosniff\r\n\r\n"
        )
        rest = memoryview(head.encode("ascii") + (b"" if request[:5] == b"HEAD " else body))
        while rest:
            connection.settimeout(max(until - time.monotonic(), 0.001))
            rest = rest[connection.send(rest, socket.MSG_NOSIGNAL) :]
            if time.monotonic() >= until:
                return

    def _reply(self, request: bytes) -> Tuple[str, str, bytes]:
        plain = "text/plain; charset=utf-8"
        words = request.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return "400 Bad Request", plain, b"expected: GET /metrics HTTP/1.1\n"
        if words[0] not in (b"GET", b"HEAD"):
            return "405 Method Not Allowed", plain, b"expected GET\n"
        if words[1].split(b"?", 1)[0] != b"/metrics":
            return "404 Not Found", plain, b"expected /metrics\n"
        return "200 OK", CONTENT_TYPE, self._text().encode("utf-8")


def _read_request(connection: socket.socket, until: float) -> bytes:
    """Up to the empty line, or as much as there may be.

    :raises OSError: the time is up.
    """
    request = b""
    while b"\r\n\r\n" not in request and len(request) < MAX_REQUEST_BYTES:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(MAX_REQUEST_BYTES - len(request))
        if not part:
            break
        request += part
    return request


def split_address(address: str) -> Tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[HOST]:PORT``, as the configuration checked it."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def delivered(before: Mapping[str, int], report: Any) -> Dict[str, int]:
    """The sums of what came of deliveries, with those of one more round (a DeliverReport)."""
    results = ("starts", "ends", "healing", "parked", "unanswered")
    return {result: before.get(result, 0) + int(getattr(report, result)) for result in results}
