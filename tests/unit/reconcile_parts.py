# SPDX-License-Identifier: BSD-3-Clause
"""Books for the comparison's tests: a real ledger, and slurmdbd and bank as what they hold."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slurm_banking import config as configuration
from slurm_banking import settle
from slurm_banking.bank import BankRun, Total, Usage, wire
from slurm_banking.bank.funds import Period
from slurm_banking.ledger import Ledger, LedgerRun
from slurm_banking.reconcile.run import Report, reconcile
from slurm_banking.records import Run
from slurm_banking.slurm.accounting import Row
from slurm_banking.tres import Tres

T0 = 1_900_000_000
UNTIL = T0 + 5 * 86_400

CONFIG = """
[API]
url = "http://127.0.0.1:9/api"
token_file = "/nonexistent/token"
[Policy]
exempt_accounts = ["exempt"]
[Ledger]
state_dir = "{directory}"
[PartitionPrice]
main = {price}
free = 0
"""


class Accounting:
    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.parts: list[Run] = []  #: of which slurmdbd never got the start
        self.asked: list[tuple[int, int]] = []

    def read_ended_runs(self, since: int, until: int) -> tuple[Run, ...]:
        self.asked.append((since, until))
        found = [
            run for run in self.runs if run.end_time is not None and since <= run.end_time < until
        ]
        # As sacct of 22.05, which does not tell restart counts here.
        unranked = [replace(run, restart_count=-1) for run in found]
        return tuple(sorted(unranked, key=lambda run: (run.end_time or 0, run.job_id)))

    def read_jobs(self, job_ids: Sequence[int]) -> Mapping[int, tuple[Run, ...]]:
        found: dict[int, tuple[Run, ...]] = {}
        for run in self.runs:
            if run.job_id in job_ids:
                found[run.job_id] = (*found.get(run.job_id, ()), run)
        return found

    def rows_by_key(self, job_ids: Sequence[int]) -> Mapping[tuple[int, int], Row]:
        rows = [Row(run=run, whole=True) for run in self.runs]
        rows += [Row(run=run, whole=False) for run in self.parts]
        return {
            (row.run.job_id, row.run.submit_time): row for row in rows if row.run.job_id in job_ids
        }


class Rows:
    """The bank's rows and counters. Rows changed here are changed past its counting."""

    def __init__(self) -> None:
        self.rows: dict[str, BankRun] = {}
        self.used: dict[str, int] = {}
        self.asked: list[str] = []

    def put(self, row: BankRun) -> None:
        before = self.rows.get(row.bank_job_id)
        self.used[row.account] = (
            self.used.get(row.account, 0) + row.amount_csu - (before.amount_csu if before else 0)
        )
        self.rows[row.bank_job_id] = row

    def drop(self, bank_job_id: str) -> None:
        row = self.rows.pop(bank_job_id)
        self.used[row.account] -= row.amount_csu

    def list_runs(self, *, since: int, until: int, account: str | None = None) -> Iterator[BankRun]:
        for row in self.rows.values():
            if row.start_time is not None and since <= row.start_time < until:
                if account is None or row.account == account:
                    yield row

    def row(self, bank_job_id: str) -> BankRun | None:
        self.asked.append(bank_job_id)
        return self.rows.get(bank_job_id)

    def find_run(self, run: LedgerRun) -> BankRun | None:
        for name in (str(run.job_id), f"{run.job_id}-{run.submit_time}"):
            row = self.rows.get(name)
            if row is not None and row.is_of(run):
                return row
        return None

    def usage(self, account: str) -> Usage | None:
        period = Period(
            key="1@x", start_low=T0 - 86_400, start_high=T0, end_low=None, end_high=None
        )
        return Usage(period=period, used_csu=self.used.get(account, 0))

    def total(self, account: str, *, since: int, until: int) -> Total:
        rows = list(self.list_runs(since=since, until=until, account=account))
        return Total(rows=len(rows), amount_csu=sum(row.amount_csu for row in rows))


class Books:
    """slurmdbd, ledger and bank that agree, until something is done to them."""

    def __init__(self, directory: Path, price: str = "3.6") -> None:
        self.directory = directory
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self.config = self.configured(price)
        self.ledger = Ledger(str(directory), "c", check_directory=False)
        self.accounting = Accounting()
        self.bank = Rows()
        with self.ledger.transaction() as tx:
            tx.set_meta("created", str(T0))
            tx.set_meta("complete", "1")
            settle.record_prices(tx, self.config, T0)

    def configured(self, price: str) -> configuration.Config:
        path = self.directory / "bank-config.toml"
        path.write_text(CONFIG.format(directory=self.directory, price=price))
        return configuration.load(str(path), in_slurmctld=True)

    def close(self) -> None:
        self.ledger.close()

    def start(self, run: Run, *, deliver: bool = True) -> LedgerRun:
        """The run goes on, in all three."""
        running = replace(run, end_time=None, elapsed_s=0, state="RUNNING")
        self.accounting.runs.append(running)
        with self.ledger.transaction() as tx:
            made, _ = settle.start_run(tx, running, self.config, actor="relay")
        if deliver:
            self._acknowledge(made.run_id, made.ledger_csu)
        return self.run(made.run_id)

    def end(self, run: Run, *, tell_accounting: bool = True, deliver: bool = True) -> LedgerRun:
        """The run has ended, in all three."""
        if tell_accounting:
            same = (run.job_id, run.submit_time)
            self.accounting.runs = [
                one for one in self.accounting.runs if (one.job_id, one.submit_time) != same
            ]
            self.accounting.runs.append(replace(run, source="sacct"))
        with self.ledger.transaction() as tx:
            result = settle.end_run(tx, run, self.config, actor="slurmctld")
        assert result.run is not None
        if deliver:
            self._acknowledge(result.run.run_id, result.run.charge_csu or 0)
        return self.run(result.run.run_id)

    def _acknowledge(self, run_id: int, csu: int) -> None:
        with self.ledger.transaction() as tx:
            delivery = tx.delivery_of(run_id)
            assert delivery is not None
            run = delivery.run
            name = run.bank_job_id or wire.default_job_id(run, "{job_id}", "c")
            if run.bank_job_id is None and name in self.bank.rows:
                name = wire.other_job_id(name, run)
            if delivery.phase == "end":
                job = wire.end_on_the_wire(run, name)
            else:
                job = wire.start_on_the_wire(run, name, csu)
            self.bank.put(wire.row_from_wire(job))
            tx.acknowledge(delivery, bank_csu=csu, bank_job_id=name)

    def run(self, run_id: int) -> LedgerRun:
        with self.ledger.transaction(write=False) as tx:
            run = tx.run(run_id)
        assert run is not None
        return run

    def sql(self, statement: str, *values: Any) -> None:
        """Past everything that protects the file."""
        with sqlite3.connect(self.ledger.path, isolation_level=None, timeout=5) as connection:
            for trigger in ("runs_fixed", "runs_no_delete"):
                connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
            connection.execute(statement, values)
        connection.close()

    def insert_copy(self, run_id: int, **changes: Any) -> None:
        """Another row in the ledger like a run's."""
        with sqlite3.connect(self.ledger.path, isolation_level=None, timeout=5) as connection:
            connection.row_factory = sqlite3.Row
            row = dict(
                connection.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            )
            row = {**row, "run_id": None, **changes}
            connection.execute(
                f"INSERT INTO runs ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
                tuple(row.values()),
            )
        connection.close()

    def compare(self, since: int = T0, until: int = UNTIL, **options: Any) -> Report:
        return reconcile(
            self.ledger,
            self.config,
            self.accounting,
            self.bank,
            since=since,
            until=until,
            **options,
        )


def a_slurm_run(job_id: int, **changes: Any) -> Run:
    """It started an hour after the ledger was made, by its number some minutes later, and cost 0.36 SU."""
    start = changes.pop("start_time", T0 + 3600 + 97 * job_id)
    elapsed_s = changes.pop("elapsed_s", 90)
    cpus = changes.pop("cpus", 4)
    values: dict[str, Any] = {
        "cluster": "c",
        "job_id": job_id,
        "submit_time": start - 10,
        "restart_count": 0,
        "user_id": 1001,
        "user_name": "alice",
        "account": "astro",
        "partition": "main",
        "qos": "normal",
        "state": "COMPLETED",
        "start_time": start,
        "end_time": start + elapsed_s,
        "elapsed_s": elapsed_s,
        "cpus": cpus,
        "started": True,
        "nodes": "n1",
        "node_count": 1,
        "tres": Tres(cpus=cpus, nodes=1),
        "time_limit_min": 60,
    }
    return Run(**{**values, **changes})


def found(report: Report) -> list[tuple[str, str, int | None]]:
    return sorted(
        ((one.kind, one.where, one.job_id) for one in report.findings),
        key=lambda one: (one[2] or 0, one),
    )
