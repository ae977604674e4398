# SPDX-License-Identifier: BSD-3-Clause
"""The cluster that the comparison is shown on: many short jobs, an allocation that began long ago, and slurmrestd beside it.

Its three databases can be written past everything that guards them: slurmdbd's MariaDB, the ledger's file, the bank's file.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tests.rig.banked import BankedCluster
from tests.rig.cluster import DEFAULT_ACCOUNTS, SLURM_USER, Node, RigError, wait_until
from tests.rig.restd import Slurmrestd, enable_tokens, key_file

#: How slurmdbd is asked; the last two are slurmrestd's, over its port and its socket.
SACCT, SACCT_JSON, REST_TCP, REST_UNIX = ("sacct", "sacct-json", "slurmrestd", "slurmrestd-unix")

FUNDS: Mapping[str, str] = {
    account: "90000000.00" for account in ("fc_alpha", "fc_beta", "fc_gamma")
}

#: Members of two accounts, so that what is moved from one to the other is somebody's there.
ACCOUNTS: Mapping[str, Sequence[str]] = {
    **DEFAULT_ACCOUNTS,
    "fc_alpha": ("sb-alice", "sb-bob"),
    "fc_beta": ("sb-carol", "sb-alice", "sb-bob"),
    "fc_gamma": ("sb-mallory", "sb-carol"),
}

#: Days before today on which the allocations began: what is shifted goes back to the last changes of clocks.
ALLOCATION_DAYS = 400

#: What guards the ledger's rows; those that keep its sums stay.
_GUARDS = (
    *("entries_no_update", "entries_no_delete", "liens_fixed", "liens_no_delete"),
    *("runs_fixed", "runs_no_delete"),
)

Statements = Sequence[tuple[str, Sequence[Any]]]

_CHANGE = """\
import json, sqlite3, sys
asked = json.load(sys.stdin)
c = sqlite3.connect(asked["path"], timeout=10, isolation_level=None)
c.execute("BEGIN IMMEDIATE")
marks = ",".join("?" * len(asked["guards"]))
kept = c.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name IN (%s)" % marks, asked["guards"])
kept = kept.fetchall()
for name, _ in kept:
    c.execute("DROP TRIGGER " + name)
for statement, parameters in asked["statements"]:
    if asked["many"]:
        c.executemany(statement, parameters)
    else:
        c.execute(statement, parameters)
for _, sql in kept:
    c.execute(sql)
c.execute("COMMIT")
c.close()
"""

_CHECK = """\
import json, sys
sys.path.insert(0, sys.argv[1])
from slurm_banking.ledger import Ledger
ledger = Ledger(sys.argv[2], sys.argv[3])
with ledger.transaction(write=False) as tx:
    print(json.dumps(list(tx.check())))
"""


class ReconcileSite(BankedCluster):
    """`rest`: with slurmrestd. `cpus`: of each of its two nodes; so many jobs run at once."""

    def __init__(self, *, rest: bool = True, cpus: int = 32, **options: Any) -> None:
        super().__init__(
            accounts=ACCOUNTS,
            funds=FUNDS,
            nodes=(Node(name="n1", cpus=cpus), Node(name="n2", cpus=cpus)),
            slurmctld_debug="info",
            extra_slurm_conf={
                "MaxArraySize": "1001",
                "MaxJobCount": "20000",
                "MinJobAge": "300",
                "MessageTimeout": "60",
                "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=2,bf_resolution=60,"
                "default_queue_depth=1000,permit_job_expansion",
            },
            **options,
        )
        self.rest = rest
        self.restd: Slurmrestd | None = None
        self.since = "2d"  #: of the comparisons: everything that there is

    # -- coming up ------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        if self._root is not None:
            return
        super().prepare()
        if self.rest:
            self.restd = Slurmrestd(self)
            self.restd.port = _free_port()
            enable_tokens(self)
            self.write_banking()

    def start(self) -> None:
        super().start()
        if self.restd is not None:
            self.restd.start()

    def write_banking(self) -> None:
        super().write_banking()
        if self.restd is not None:
            text = self.bank_config.read_text()
            self.write_bank_config(text + self._restd_lines(self.restd.url))
            # The same, over the socket: the command alone is told of it.
            path = self.etc_dir / "bank-config-unix.toml"
            self.write_file(path, text + self._restd_lines(self.restd.socket_url))

    def _restd_lines(self, url: str) -> str:
        return (
            f'\n[slurmrestd]\nurl = "{url}"\nuser = "root"\nkey = "{key_file(self)}"\n'
            "timeout_s = 120\n"
        )

    def bank(self, *arguments: str) -> str:
        words = list(arguments)
        if words[:2] == ["allocation", "add"]:
            began = datetime.date.today() - datetime.timedelta(days=ALLOCATION_DAYS)
            words[words.index("--start") + 1] = str(began)
        return super().bank(*words)

    def sources(self) -> tuple[str, ...]:
        return (SACCT, SACCT_JSON, REST_TCP, REST_UNIX) if self.rest else (SACCT, SACCT_JSON)

    # -- daemons --------------------------------------------------------------------------------------------------------

    def stop_relay(self) -> None:
        """For good, if slurmctld, which would start another, is down."""

        def gone() -> bool:
            pid = self.relay_pid()
            if pid is not None:
                os.kill(pid, signal.SIGTERM)
            return pid is None

        wait_until(gone, 30, "the relay to end", 0.5)

    def start_relay(self) -> None:
        """As a service would. Nobody else starts one: slurmctld is down."""
        if "relay" in self._specs:
            self.start_daemon("relay")
        else:
            command = [
                str(self.stage_dir / "bin" / "slurm-banking"),
                "--config",
                str(self.bank_config),
            ]
            self.spawn("relay", [*command, "relay", "--foreground"], user=SLURM_USER)
        wait_until(lambda: self.status() is not None, 30, "the relay to answer", 0.2)

    def rest_alone(self) -> None:
        """slurmctld and relay end: what is in the books from here on is what is put there."""
        self.stop_daemon("slurmctld", 60)
        # Whoever asks slurmctld something waits that long for it.
        self.extra_slurm_conf["MessageTimeout"] = "2"
        self.write_slurm_conf()
        self.stop_relay()

    # -- the databases --------------------------------------------------------------------------------------------------

    def slurmdbd_sql(self, text: str, timeout_s: float = 600) -> str:
        """Rows as tab separated lines."""
        result = subprocess.run(
            ["mysql", "--no-defaults", "--batch", "--skip-column-names", "--raw"]
            + [f"--socket={self.root}/mariadb/socket", "slurm_acct_db"],
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if result.returncode != 0:
            raise RigError(f"mysql: {result.stderr.strip()}")
        return result.stdout

    def change_ledger(self, statements: Statements, *, many: bool = False) -> None:
        """As SlurmUser, in one transaction, without what refuses it. `many`: parameters are a list of them."""
        asked = {
            "path": str(self.state_dir / "ledger.sqlite3"),
            "guards": _GUARDS,
            "statements": statements,
            "many": many,
        }
        result = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", _CHANGE],
            input=json.dumps(asked),
            user=SLURM_USER,
            group=SLURM_USER,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=120,
            cwd="/",
        )
        if result.returncode != 0:
            raise RigError(f"ledger: {result.stderr.strip().splitlines()[-1:]}")

    def bank_file(self) -> sqlite3.Connection:
        """In autocommit; the bank serves on beside it."""
        connection = sqlite3.connect(
            self.root / "bank" / "bank.sqlite3", timeout=20, isolation_level=None
        )
        connection.row_factory = sqlite3.Row
        return connection

    def bank_rows(self) -> dict[str, dict[str, Any]]:
        """Its jobs, by their id there; times in unix seconds."""
        with self.bank_file() as connection:
            rows = connection.execute(
                "SELECT j.*, CAST(u.cluster_uid AS INTEGER) AS uid, a.name AS account,"
                " CAST(strftime('%s', j.submitdate) AS INTEGER) AS submit_time,"
                " CAST(strftime('%s', j.startdate) AS INTEGER) AS start_time,"
                " CAST(strftime('%s', j.enddate) AS INTEGER) AS end_time"
                " FROM bank_job j JOIN bank_clusteruser u ON u.id = j.user_id JOIN bank_account a ON a.id = j.account_id"
            ).fetchall()
        connection.close()
        return {row["jobslurmid"]: dict(row) for row in rows}

    def check_books(self) -> list[str]:
        """What the ledger's own check and the bank's own proof find."""
        command = ["/usr/bin/python3", "-I", "-c", _CHECK, str(self.stage_dir / "lib")]
        said = self.run_as(
            SLURM_USER, [*command, str(self.state_dir), self.cluster_name], 60, check=True
        )
        problems = list(json.loads(said.stdout))
        try:
            self.bank("verify")
        except RigError as error:
            problems.append(str(error))
        return problems

    # -- the command ----------------------------------------------------------------------------------------------------

    def reconcile(
        self,
        *arguments: str,
        source: str = SACCT,
        until: str = "now",
        zone: str = "UTC",
        timeout_s: float = 300,
    ) -> tuple[int, dict[str, Any]]:
        """Exit status and ``--json``. :raises RigError: it could not look."""
        words = ["slurm-banking"]
        if source == REST_UNIX:
            words += ["--config", str(self.etc_dir / "bank-config-unix.toml")]
        words += ["reconcile", "--source", source.removesuffix("-unix"), "--json"]
        words += ["--since", self.since, "--until", until, *arguments]
        result = self.run_as("root", words, timeout_s, env={"TZ": zone})
        if result.returncode not in (0, 1) or not result.stdout.startswith("{"):
            raise RigError(
                f"{' '.join(words)}: status {result.returncode}: {result.stderr.strip()}"
            )
        answer: dict[str, Any] = json.loads(result.stdout)
        return result.returncode, answer

    def quiet(self, timeout_s: float = 180, for_s: float = 8) -> None:
        """Until nothing runs or waits in the ledger, and for a while nothing more has been entered.

        `settle` asks for more than there may be: of a job that was requeued, and cancelled before it ran again, slurmdbd may
        show a run with the start of the one before.
        """
        until = time.monotonic() + timeout_s
        last: Any = None
        since = time.monotonic()
        while True:
            (now,) = self.ledger_rows(
                "SELECT (SELECT COUNT(*) FROM outbox) + (SELECT COUNT(*) FROM runs WHERE state = 'running') AS open,"
                " (SELECT MAX(seq) FROM entries WHERE kind IN ('start', 'charge', 'delivered')) AS seq"
            )
            if now != last or now["open"]:
                last, since = now, time.monotonic()
            if time.monotonic() - since >= for_s:
                return
            if time.monotonic() > until:
                raise RigError(f"the ledger is not quiet after {timeout_s:g} s: {now}")
            time.sleep(0.5)

    def drained(self, timeout_s: float = 120) -> None:
        """Until nothing waits for the bank."""
        until = time.monotonic() + timeout_s
        while self.ledger_rows("SELECT COUNT(*) AS n FROM outbox")[0]["n"]:
            if time.monotonic() > until:
                raise RigError(f"deliveries wait after {timeout_s:g} s")
            time.sleep(0.3)


def change_bank(site: ReconcileSite, statements: Statements) -> None:
    """In one transaction, past what refuses it."""
    connection = site.bank_file()
    connection.execute("BEGIN IMMEDIATE")
    kept = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'bank_entry'"
    ).fetchall()
    for name, _ in kept:
        connection.execute(f"DROP TRIGGER {name}")
    for statement, parameters in statements:
        connection.execute(statement, parameters)
    for _, sql in kept:
        connection.execute(sql)
    connection.execute("COMMIT")
    connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
