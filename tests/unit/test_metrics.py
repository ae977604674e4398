# SPDX-License-Identifier: BSD-3-Clause
"""What Prometheus is told: by the letter of its text format, bounded, from the ledger and the counters as they are."""

from __future__ import annotations

import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from slurm_banking import __version__, counters
from slurm_banking.cli import main, program
from slurm_banking.config import load
from slurm_banking.counters import Counters
from slurm_banking.errors import ConfigError, LedgerError
from slurm_banking.relay import metrics
from slurm_banking.relay.metrics import Exposition, Metrics, MetricsServer
from tests.unit import test_relay_daemon as daemon
from tests.unit.relay_parts import Relay, ask_as, end_run, open_lien, run, start_run
from tests.unit.test_relay_daemon import Site, site

__all__ = ["site"]  # a fixture

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf"({NAME})(?:\{{(.*)\}})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\["\\n])*)"(?:,|$)')


@dataclass
class Family:
    kind: str
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], Decimal] = field(default_factory=dict)


def parse(text: str) -> dict[str, Family]:
    """The text format, version 0.0.4, read strictly: each family once, with its help and type, and no sample twice."""
    assert text.endswith("\n")
    families: dict[str, Family] = {}
    helped: set[str] = set()
    current = ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name, words = re.fullmatch(rf"# HELP ({NAME}) (.+)", line).groups()  # type: ignore[union-attr]
            assert name not in helped and words.strip() == words
            helped.add(name)
            current = name
            continue
        if line.startswith("# TYPE "):
            name, kind = re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge|histogram)", line).groups()  # type: ignore[union-attr]
            assert name == current and name not in families
            assert (kind == "counter") == name.endswith("_total")
            families[name] = Family(kind)
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        name, inside, value = match.groups()
        family = families[current]
        suffixes = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        assert name in [current + suffix for suffix in suffixes], line
        labels: list[tuple[str, str]] = []
        rest = inside or ""
        while rest:
            label = LABEL.match(rest)
            assert label is not None, line
            labels.append((label[1], re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), label[2])))  # fmt: skip
            rest = rest[label.end() :]
        key = (name, tuple(sorted(labels)))
        assert key not in family.samples and len(dict(labels)) == len(labels), line
        family.samples[key] = Decimal(value)
    assert helped == set(families)
    for name, family in families.items():
        assert family.samples or family.kind == "counter" or name.endswith(("_held", "_bytes", "_failing")), name  # fmt: skip
        if family.kind == "histogram":
            check_histogram(name, family)
    return families


def check_histogram(name: str, family: Family) -> None:
    """Each series' buckets go up to +Inf, which is the count."""
    series: dict[tuple[tuple[str, str], ...], list[tuple[Decimal, Decimal]]] = {}
    for (sample, labels), value in family.samples.items():
        if sample == f"{name}_bucket":
            others = tuple(label for label in labels if label[0] != "le")
            series.setdefault(others, []).append((Decimal(dict(labels)["le"]), value))
    assert series
    for others, buckets in series.items():
        assert buckets == sorted(buckets) and buckets[-1][0] == Decimal("Infinity")
        counts = [count for _, count in buckets]
        assert counts == sorted(counts)
        assert family.samples[f"{name}_count", others] == counts[-1]
        assert family.samples[f"{name}_sum", others] >= 0


@pytest.mark.parametrize(
    "text",
    [
        "# HELP a b\n# TYPE a gauge\na 1",
        "# HELP a b\n# TYPE a gauge\na 1\na 1\n",
        '# HELP a b\n# TYPE a gauge\na{x="1"y="2"} 1\n',
        '# HELP a b\n# TYPE a gauge\na{x="\n"} 1\n',
        "# HELP a b\n# TYPE a counter\na 1\n",
        "# HELP a b\n# TYPE a gauge\nb 1\n",
        "# HELP a b\n# TYPE a gauge\na one\n",
        "# TYPE a gauge\na 1\n",
        '# HELP a b\n# TYPE a histogram\na_bucket{le="1"} 2\na_bucket{le="+Inf"} 1\na_sum 1\na_count 1\n',
        '# HELP a b\n# TYPE a histogram\na_bucket{le="1"} 2\na_sum 1\na_count 2\n',
    ],
)
def test_the_parser_of_these_tests_refuses_what_is_not_the_format(text: str) -> None:
    with pytest.raises((AssertionError, AttributeError, ArithmeticError, KeyError)):
        parse(text)


HEALTH: dict[str, Any] = {
    "started": 1_700_000_000,
    "bank_away_since": None,
    "last_sweep": 1_700_000_100,
    "last_sacct": None,
    "accounting_differs": 3,
    "alarms": ["one", "two"],
    "config_problem": None,
    "failing": {"sacct": "slurmdbd is away"},
    "step_failures": {"queue": 0, "sacct": 7},
    "deliveries": {"healing": 2, "parked": 1, "unresolved": 0},
    "delivered": {"starts": 10, "ends": 9},
    "funds_oldest": 1_700_000_050,
    "funds_never_read": 1,
}


class Told:
    """Metrics over a real ledger and real counters."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.health: dict[str, Any] = dict(HEALTH)
        self.counters = Counters(lambda problem: pytest.fail(problem))
        self.counters.use(relay.config.ledger.state_dir)
        self.metrics = Metrics(
            ledger=relay.ledger, health=lambda: self.health, accounts=lambda: ("astro", "bio")
        )

    def families(self) -> dict[str, Family]:
        self.metrics._kept_until = 0.0
        return parse(self.metrics.text())

    def value(self, name: str, **labels: str) -> Decimal | None:
        family = self.families().get(f"slurm_banking_{name}")
        key = (f"slurm_banking_{name}", tuple(sorted(labels.items())))
        return None if family is None else family.samples.get(key)


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    made = Told(Relay(tmp_path))
    yield made
    made.relay.ledger.close()


def test_everything_is_told_by_the_letter_of_the_format(told: Told) -> None:
    told.counters.decided("submit", "accepted", "fits")
    told.counters.settled("run_ended", "voided")
    for elapsed_us in (50, 250, 250, 999_999):
        told.counters.took("submit", elapsed_us)
    open_lien(told.relay, 7)
    families = told.families()
    assert all(name.startswith("slurm_banking_") for name in families)
    assert told.value("build_info", version=__version__, cluster="demo") == 1
    assert told.value("decisions_total", hook="submit", outcome="accepted", reason="fits") == 1
    assert told.value("decisions_total", hook="update", outcome="undecided", reason="ledger_unavailable") == 0  # fmt: skip
    assert told.value("runs_told_total", hook="run_ended", result="voided") == 1
    seconds = families["slurm_banking_hook_seconds"].samples
    at = "slurm_banking_hook_seconds"
    assert seconds[f"{at}_bucket", (("hook", "submit"), ("le", "0.0001"))] == 1
    assert seconds[f"{at}_bucket", (("hook", "submit"), ("le", "0.0003"))] == 3
    assert seconds[f"{at}_bucket", (("hook", "submit"), ("le", "0.25"))] == 3
    assert seconds[f"{at}_count", (("hook", "submit"),)] == 4
    assert seconds[f"{at}_sum", (("hook", "submit"),)] == Decimal("1.000549")


def test_liens_and_the_outbox_are_those_of_the_ledger(told: Told) -> None:
    open_lien(told.relay, 7, csu=800)
    open_lien(told.relay, 8, csu=150)
    open_lien(told.relay, None, csu=1, account="elsewhere")
    assert told.value("lien_unconfirmed_oldest_timestamp_seconds") is not None
    assert (told.value("liens", state="queued"), told.value("liens_su", state="queued")) == (2, Decimal("9.50"))  # fmt: skip
    assert told.value("outbox_deliveries") == 0
    assert told.value("outbox_oldest_timestamp_seconds") is None
    started = run(7, state="RUNNING")
    before = int(time.time())
    start_run(told.relay, started)
    assert told.value("liens", state="queued") == 1
    assert (told.value("liens", state="running"), told.value("runs_running")) == (1, 1)
    assert told.value("outbox_deliveries") == 1
    assert before <= (told.value("outbox_oldest_timestamp_seconds") or 0) <= time.time()
    end_run(told.relay, run(7))
    assert told.value("runs_running") == 0
    assert told.value("file_bytes", file="ledger") or told.value("file_bytes", file="ledger_wal")


def test_what_is_refused_for_good_is_not_what_waits_longest(told: Told) -> None:
    for job_id in (7, 8):
        start_run(told.relay, run(job_id, state="RUNNING"))
    with told.relay.ledger.transaction() as tx:
        first, second = tx.next_deliveries()
        tx.park(first.run.run_id, "the bank says no")
        due_us = metrics.oldest_due_us(tx, first.created_us, 1)
        assert due_us == second.created_us
        tx.park(second.run.run_id, "the bank says no")
        assert metrics.oldest_due_us(tx, first.created_us, 2) is None
        assert metrics.oldest_due_us(tx, first.created_us, 0) == first.created_us
    assert told.value("outbox_oldest_timestamp_seconds") is None
    assert told.value("outbox_deliveries") == 2


def test_the_bank_and_the_steps_are_told_as_the_relay_knows_them(told: Told) -> None:
    assert told.value("bank_away") == 0
    assert told.value("bank_away_since_timestamp_seconds") is None
    assert told.value("deliveries_held", state="healing") == 2
    assert told.value("deliveries_held", state="in_flight") == 0
    assert told.value("deliveries_total", result="ends") == 9
    assert told.value("step_failures_total", step="sacct") == 7
    assert (told.value("step_failing", step="sacct"), told.value("step_failing", step="queue")) == (1, 0)  # fmt: skip
    assert told.value("accounting_differs_total") == 3
    assert (told.value("alarms"), told.value("config_rejected")) == (2, 0)
    assert told.value("last_sacct_timestamp_seconds") is None
    assert told.value("funds_oldest_timestamp_seconds") == 1_700_000_050
    told.health["bank_away_since"] = 1_700_000_200
    assert told.value("bank_away") == 1
    assert told.value("bank_away_since_timestamp_seconds") == 1_700_000_200


def test_no_label_names_a_user_a_job_or_an_account(told: Told) -> None:
    """The number of series is the code's, and not the site's."""
    open_lien(told.relay, 4711)
    start_run(told.relay, run(4712, state="RUNNING"))
    for hook in counters.DECIDING:
        for outcome in counters.OUTCOMES:
            for reason in counters.REASONS:
                told.counters.decided(hook, outcome, reason)
    for result in counters.RESULTS:
        told.counters.settled("run_ended", result)
        told.counters.settled("run_started", result)
    told.counters.write()
    families = told.families()
    text = told.metrics.text()
    assert not re.search(r"astro|bio|nobody|471[12]", text)
    labels = {label for family in families.values() for _, found in family.samples for label, _ in found}  # fmt: skip
    assert labels == {
        "answer", "cluster", "file", "hook", "le", "outcome", "reason", "result", "state", "step", "version",
    }  # fmt: skip
    assert sum(len(family.samples) for family in families.values()) < 400
    assert len(text) < 64 * 1024


def test_without_counters_the_rest_is_told(told: Told) -> None:
    assert told.value("counters_readable") == 0
    assert told.value("outbox_deliveries") == 0
    assert "slurm_banking_decisions_total" not in told.families()


def test_without_a_ledger_the_counters_are_told(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.counters.took("submit", 5)
    assert told.value("ledger_readable") == 1

    def broken() -> Any:
        raise LedgerError("ledger: disk I/O error")

    monkeypatch.setattr(told.metrics, "_health", broken)
    assert told.value("ledger_readable") == 0
    assert told.value("counters_readable") == 1 and told.value("outbox_deliveries") is None


def test_a_text_is_made_at_most_once_a_second(told: Told) -> None:
    first = told.metrics.text()
    told.health["alarms"] = []
    assert told.metrics.text() == first
    told.metrics._kept_until = 0.0
    assert told.metrics.text() != first


def test_whatever_a_label_holds_it_is_one_label() -> None:
    page = Exposition()
    page.family("odd", "gauge", "back\\slash\nand line").sample(1, x='a"b\\c\nd', y="")
    ((name, labels), value) = next(iter(parse(str(page))["slurm_banking_odd"].samples.items()))
    assert (name, dict(labels), value) == ("slurm_banking_odd", {"x": 'a"b\\c\nd', "y": ""}, 1)


# The server.


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[], str]], MetricsServer]]:
    servers: list[MetricsServer] = []

    def made(text: Callable[[], str]) -> MetricsServer:
        server = MetricsServer(text)
        servers.append(server)
        assert server.serve_on(f"127.0.0.1:{free_port()}") is None
        return server

    yield made
    for server in servers:
        server.stop()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def said(port: int, request: bytes, *, wait_s: float = 5.0) -> bytes:
    """All that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


Serve = Callable[[Callable[[], str]], MetricsServer]


def test_prometheus_gets_the_text_and_its_type(serve: Serve) -> None:
    server = serve(lambda: "# HELP a b\n# TYPE a gauge\na 1\n")
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics?x=1", timeout=5) as got:
        assert got.status == 200
        assert got.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert got.read() == b"# HELP a b\n# TYPE a gauge\na 1\n"
    head = said(server.port, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"GET /metrics/../etc HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"hello", b"400"),
        (b"GET /metrics SPDY/3", b"400"),
        (b"\xff\xfe \xff HTTP/1.1", b"405"),
    ],
)
def test_anything_else_is_refused(serve: Serve, request_line: bytes, status: bytes) -> None:
    server = serve(lambda: "secret\n")
    answer = said(server.port, request_line + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status + b" ") and b"secret" not in answer


def test_who_trickles_or_says_nothing_holds_the_server_for_two_seconds_at_most(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "REQUEST_S", 0.5)
    server = serve(lambda: "a 1\n")
    stop = threading.Event()

    def trickle() -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"G")
                except OSError:
                    return

    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
    trickling = threading.Thread(target=trickle)
    trickling.start()
    try:
        started = time.monotonic()
        assert said(server.port, b"GET /metrics HTTP/1.1\r\n\r\n", wait_s=10).endswith(b"a 1\n")
        assert time.monotonic() - started < 4
    finally:
        stop.set()
        trickling.join()
        for connection in silent:
            connection.close()


def test_a_request_without_end_is_cut_off(serve: Serve) -> None:
    server = serve(lambda: "a 1\n")
    answer = said(server.port, b"GET /" + b"x" * (metrics.MAX_REQUEST_BYTES - 5))
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_text_that_cannot_be_made_costs_one_answer(serve: Serve) -> None:
    texts: list[Any] = [ValueError("no"), "a 1\n"]

    def text() -> str:
        found = texts.pop(0)
        if isinstance(found, Exception):
            raise found
        return str(found)

    server = serve(text)
    assert said(server.port, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
    assert said(server.port, b"GET /metrics HTTP/1.1\r\n\r\n").endswith(b"a 1\n")


def test_the_address_may_change_and_an_occupied_one_is_told_until_it_is_free(serve: Serve) -> None:
    server = serve(lambda: "a 1\n")
    first = server.port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert server.serve_on(address) == f"metrics on {address}: Address already in use"
        with pytest.raises(OSError):
            said(first, b"")
    assert server.serve_on(address) is None
    assert server.serve_on(address) is None
    assert said(server.port, b"GET /metrics HTTP/1.1\r\n\r\n").endswith(b"a 1\n")
    last = server.port
    assert server.serve_on("") is None and server.port == 0
    with pytest.raises(OSError):
        said(last, b"")


@pytest.mark.parametrize("address", ["", "127.0.0.1:9817", "[::1]:9817", "192.0.2.7:1"])
def test_an_address_and_a_port_is_what_may_be_served_on(tmp_path: Path, address: str) -> None:
    assert configured(tmp_path, f'"{address}"') == address


@pytest.mark.parametrize(
    "value",
    [
        '"127.0.0.1"', '":9817"', '"localhost:9817"', '"0.0.0.0:9817"', '"[::]:9817"', '"::1:9817"', '"127.0.0.1:0"',
        '"127.0.0.1:65536"', '"256.1.1.1:80"', '"127.1:9817"', "9817", "true", '"127.0.0.1:9817 "',
    ],
)  # fmt: skip
def test_anything_else_is_a_mistake_that_says_what_was_expected(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r'\[Relay\] metrics = .*: expected "" or an address'):
        configured(tmp_path, value)


def configured(directory: Path, value: str) -> str:
    path = directory / "bank-config.toml"
    path.write_text(f'[API]\nurl = "http://127.0.0.1:9/api"\n[PartitionPrice]\nmain = 1\n[Policy]\n[Relay]\nmetrics = {value}\n')  # fmt: skip
    path.chmod(0o600)
    return load(str(path), in_slurmctld=True).relay.metrics


# The command, and the relay as a process.


def test_the_command_prints_them_or_writes_a_file_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o755)
    relay = Relay(tmp_path)
    text = "# HELP a b\n# TYPE a gauge\na 1\n"
    object.__setattr__(relay.questions._parts, "metrics", lambda: text)
    output = tmp_path / "slurm_banking.prom"
    with relay.listening():
        assert main(["--socket", relay.socket, "metrics"]) == program.OK
        assert capsys.readouterr().out == text
        assert main(["--socket", relay.socket, "metrics", "--output", str(output)]) == program.OK
        assert output.read_text() == text and output.stat().st_mode & 0o777 == 0o644
        nowhere = str(tmp_path / "nowhere" / "x.prom")
        assert main(["--socket", relay.socket, "metrics", "--output", nowhere]) == program.NO
        assert "nowhere/x.prom: No such file or directory" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir() if "prom" in path.name] == [output.name]
    relay.ledger.close()


@pytest.mark.skipif(daemon.os.getuid() != 0, reason="needs root to be another user")
def test_metrics_are_for_operators(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for directory in tmp_path.parents:
        if directory != Path("/tmp") and directory.is_relative_to("/tmp"):
            directory.chmod(0o755)
    relay = Relay(tmp_path)
    with relay.listening():
        assert ask_as(daemon.NOBODY, relay.socket, {"op": "metrics"})["error"] == "denied"
        assert ask_as(2, relay.socket, {"op": "metrics"})["ok"]  # bin is in admin_users
    relay.ledger.close()


@pytest.mark.skipif(daemon.os.getuid() != 0, reason="needs root to become SlurmUser")
def test_a_relay_serves_them_while_it_runs_and_follows_its_configuration(site: Site) -> None:
    port, other = free_port(), free_port()
    key = 'queue_poll_s = 1\nmetrics = "127.0.0.1:{}"'
    site.write_config(**{"queue_poll_s = 1": key.format(port)})

    def fetched(at: int) -> dict[str, Family] | None:
        try:
            return parse(said(at, b"GET /metrics HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")[2].decode())  # fmt: skip
        except OSError:
            return None

    with site.running("--foreground"):
        site.wait(lambda: site.status().get("ledger_complete"))
        site.wait(lambda: fetched(port) is not None)
        families = fetched(port)
        assert families is not None
        steps = families["slurm_banking_step_failures_total"].samples
        names = {dict(labels)["step"] for _, labels in steps}
        assert {"queue", "sacct", "deliver", "funds", "keep", "probe"} <= names
        assert families["slurm_banking_ledger_readable"].samples["slurm_banking_ledger_readable", ()] == 1  # fmt: skip
        swept = families["slurm_banking_last_sweep_timestamp_seconds"].samples
        assert abs(time.time() - float(next(iter(swept.values())))) < 30
        status = site.status()
        assert status["step_failures"].keys() == names and status["accounting_differs"] == 0
        site.write_config(**{"queue_poll_s = 1": key.format(other)})
        site.wait(lambda: fetched(other) is not None)
        assert fetched(port) is None
    assert fetched(other) is None
