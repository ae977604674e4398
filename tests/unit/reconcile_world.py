# SPDX-License-Identifier: BSD-3-Clause
"""slurmdbd, ledger and bank with like books, and what can happen to them behind everybody's back.

The ledger, its delivery and the comparison are the real ones; the bank is the portal as its operators observe it, and
slurmdbd a list of runs.
"""

from __future__ import annotations

import datetime
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from slurm_banking import config as configuration
from slurm_banking import settle
from slurm_banking.bank import Bank
from slurm_banking.ledger import Ledger, LedgerRun, health
from slurm_banking.reconcile import fix
from slurm_banking.reconcile.findings import Finding
from slurm_banking.reconcile.run import Report, reconcile
from slurm_banking.records import UNKNOWN_RESTART, Run
from slurm_banking.relay import mend
from slurm_banking.relay.book import FILE_NAME, DeliveryBook
from slurm_banking.relay.deliver import deliver_due
from slurm_banking.relay.funds import refresh_funds
from slurm_banking.slurm.accounting import Row
from tests.builders import SUBMITTED, a_run
from tests.unit.portal_model import Portal, csu, su
from tests.unit.relay_parts import CONFIG

ACCOUNTS = ("fc_alpha", "fc_beta")
USERS = (1001, 1002)
LIMIT_CSU = 10_000_000
DAY = 86_400


class ListingPortal(Portal):
    """The portal's list of jobs, too."""

    def _handle(
        self, method: str, path: str, query: Dict[str, List[str]], body: Any
    ) -> Tuple[int, Any]:
        if method == "GET" and path.strip("/") == "jobs":
            return self._list(query)
        return super()._handle(method, path, query, body)

    def _list(self, query: Dict[str, List[str]]) -> Tuple[int, Any]:
        def value(name: str) -> Optional[str]:
            return query[name][0] if name in query else None

        low, high = float(value("start_time") or 0), float(value("end_time") or 1e12)
        rows = [
            row
            for row in self.jobs.values()
            if row.get("startdate")
            and low <= _seconds(row["startdate"]) <= high
            and value("account") in (None, row["accountid"])
        ]
        rows.sort(key=lambda row: _seconds(row["startdate"]))
        page = int(value("page") or 1)
        shown = rows[(page - 1) * 100 : page * 100]
        return 200, {
            "count": len(rows),
            "next": "more" if len(rows) > page * 100 else None,
            "previous": None,
            "results": shown,
            "total_amount": sum(csu(row["amount"]) for row in rows) / 100,
            "total_cpu_time": 0.0,
        }


class Slurmdbd:
    """Accounting from a list."""

    def __init__(self) -> None:
        self.runs: List[Run] = []

    def read_ended_runs(self, since: int, until: int) -> Tuple[Run, ...]:
        return tuple(
            replace(run, restart_count=UNKNOWN_RESTART)
            for run in sorted(self.runs, key=lambda run: run.end_time or 0)
            if run.end_time is not None and since <= run.end_time < until
        )

    def read_jobs(self, job_ids: Sequence[int]) -> Mapping[int, Tuple[Run, ...]]:
        found: Dict[int, Tuple[Run, ...]] = {}
        for run in self.runs:
            if run.job_id in job_ids:
                found[run.job_id] = (*found.get(run.job_id, ()), run)
        return found

    def rows_by_key(self, job_ids: Sequence[int]) -> Mapping[Tuple[int, int], Row]:
        return {
            (run.job_id, run.submit_time): Row(run=run, whole=True)
            for run in self.runs
            if run.job_id in job_ids
        }


class World:
    def __init__(self, directory: Path) -> None:
        directory.chmod(0o700)
        (directory / "state").mkdir(mode=0o700)
        path = directory / "bank-config.toml"
        path.write_text(CONFIG.format(directory=directory))
        self.config = configuration.load(str(path), in_slurmctld=False)
        self.now = float(SUBMITTED + DAY)
        self.portal = ListingPortal()
        for name in ACCOUNTS:
            project = self.portal.project(name, LIMIT_CSU)
            for uid in USERS:
                self.portal.member(project, uid)
        self.bank = Bank(
            "http://bank.test/api",
            "key",
            timeout_s=5,
            session=self.portal.session(),
            clock=lambda: self.now,
        )
        self.state_dir = directory / "state"
        self.ledger = Ledger(str(self.state_dir), "c", check_directory=False)
        self.book = DeliveryBook(str(self.state_dir / FILE_NAME))
        self.slurmdbd = Slurmdbd()
        with self.ledger.transaction() as tx:
            settle.record_prices(tx, self.config, SUBMITTED)
            tx.set_meta("created", str(SUBMITTED - 1000))
            tx.set_meta("complete", "1")
        self.refresh()

    def close(self) -> None:
        self.ledger.close()
        self.book.close()

    # -- what goes its way ----------------------------------------------------------------------------------------------

    def job(self, number: int, *, restart: int = 0, **changes: Any) -> Run:
        """A run that went through all three books."""
        start = SUBMITTED + 60 * number + 7 * restart
        values: Dict[str, Any] = dict(
            job_id=number,
            submit_time=start,
            restart_count=restart,
            start_time=start + 10,
            end_time=start + 10 + 360 * (1 + number % 5),
            elapsed_s=360 * (1 + number % 5),
            account=ACCOUNTS[number % 2],
            user_id=USERS[number // 2 % 2],
            cpus=1 + number % 3,
        )
        run = a_run(**{**values, **changes})
        self.slurmdbd.runs.append(run)
        with self.ledger.transaction() as tx:
            going = replace(run, end_time=None, state="RUNNING", elapsed_s=0)
            settle.start_run(tx, going, self.config, actor="slurmctld")
        self.deliver()
        with self.ledger.transaction() as tx:
            settle.end_run(tx, run, self.config, actor="slurmctld")
        self.deliver()
        return run

    def deliver(self) -> None:
        for _ in range(5):
            self.now += 1
            deliver_due(self.ledger, self.bank, self.book, self.config, self.now, workers=1)

    def refresh(self) -> None:
        pairs = [(account, uid) for account in ACCOUNTS for uid in USERS]
        report = refresh_funds(self.ledger, self.bank, self.book, pairs, self.now)
        assert report.refreshed == len(ACCOUNTS), report

    # -- looks ----------------------------------------------------------------------------------------------------------

    def compare(self) -> Report:
        return reconcile(
            self.ledger, self.config, self.slurmdbd, self.bank, since=SUBMITTED - 1000, until=int(self.now)
        )  # fmt: skip

    def cost_csu(self, run: Run) -> int:
        with self.ledger.transaction(write=False) as tx:
            return settle.cost_of(tx, self.config, run)[0]

    def right_csu(self, account: str) -> int:
        """What an account has really used."""
        return sum(self.cost_csu(run) for run in self.slurmdbd.runs if run.account == account)

    def available_csu(self, account: str) -> int:
        with self.ledger.transaction(write=False) as tx:
            found = tx.funds_view(account, USERS[0]).account_available_csu
        assert found is not None
        return found

    def entries(self) -> int:
        with sqlite3.connect(self.ledger.path) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM entries").fetchone()[0])

    def sums(self) -> Sequence[str]:
        """What of the ledger does not add up."""
        return health.examine(self.ledger.path, thorough=False).sums

    def run(self, job_id: int) -> LedgerRun:
        with self.ledger.transaction(write=False) as tx:
            (found,) = [run for run in tx.runs_by_job(job_id) if not run.struck]
        return found

    def struck(self, job_id: int) -> LedgerRun:
        with self.ledger.transaction(write=False) as tx:
            (found,) = [run for run in tx.runs_by_job(job_id) if run.struck]
        return found

    # -- repairs --------------------------------------------------------------------------------------------------------

    def ask_relay(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """As the relay's socket answers."""
        wanted = mend.wanted(request)
        assert not isinstance(wanted, str), wanted
        try:
            return {"ok": True, **mend.do(self.ledger, self.bank, wanted, str(request["actor"]))}
        except mend.NotMended as error:
            return {"ok": False, "error": "denied", "message": str(error)}

    def fix(self, findings: Sequence[Finding], *, unknown: bool = True) -> Sequence[fix.Done]:
        return fix.apply(
            fix.plan(findings, fix_unknown=unknown),
            self.ledger,
            self.config,
            self.ask_relay,
            reason="a test",
            accounting=self.slurmdbd,
            sleep=lambda seconds: None,
        )

    # -- injuries -------------------------------------------------------------------------------------------------------

    def sql(self, *statements: Tuple[str, Sequence[Any]]) -> None:
        """Past everything that keeps the ledger from being written so."""
        connection = sqlite3.connect(self.ledger.path, isolation_level=None)
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND sql LIKE '%RAISE(ABORT%'"
        ).fetchall()
        connection.execute("BEGIN IMMEDIATE")
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement, values in statements:
            connection.execute(statement, values)
        for _, text in triggers:
            connection.execute(text)
        connection.execute("COMMIT")
        connection.close()

    def copy_run(self, run_id: int, **changes: Any) -> None:
        """Another row of the ledger like one that is there."""
        connection = sqlite3.connect(self.ledger.path)
        cursor = connection.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,))
        names = [column[0] for column in cursor.description]
        values = {**dict(zip(names, cursor.fetchone())), "run_id": None, **changes}
        connection.close()
        marks = ", ".join("?" for _ in names)
        self.sql(
            (f"INSERT INTO runs ({', '.join(names)}) VALUES ({marks})", [values[n] for n in names])
        )

    def row(self, job_id: int) -> Dict[str, Any]:
        bank_job_id = self.run(job_id).bank_job_id
        assert bank_job_id is not None
        return self.portal.jobs[bank_job_id]

    def use(self, row: Mapping[str, Any], difference_csu: int) -> None:
        """The bank's counters, as if it had done it itself."""
        project = self.portal.projects[row["accountid"]]
        self.portal._use(project, row["userid"], difference_csu)


def other_account(account: str) -> str:
    return ACCOUNTS[1 - ACCOUNTS.index(account)]


# Each takes the world and a job that is in order, and says what kind of finding it makes, and where.


def ledger_deleted(world: World, job: int) -> Tuple[str, str]:
    world.sql(("DELETE FROM runs WHERE run_id = ?", (world.run(job).run_id,)))
    return "missing", "ledger"


def ledger_never_had_it(world: World, job: int) -> Tuple[str, str]:
    run = world.run(job)
    world.sql(
        ("DELETE FROM runs WHERE run_id = ?", (run.run_id,)),
        ("DELETE FROM liens WHERE lien_id = ?", (run.lien_id,)),
        ("DELETE FROM entries WHERE job_id = ? OR lien_id = ?", (job, run.lien_id)),
    )
    return "missing", "ledger"


def ledger_altered(world: World, job: int) -> Tuple[str, str]:
    run = world.run(job)
    wrong = (run.charge_csu or 0) + 1234
    world.sql(("UPDATE runs SET charge_csu = ?, ledger_csu = ? WHERE run_id = ?", (wrong, wrong, run.run_id)))  # fmt: skip
    return "mischarged", "ledger"


def ledger_stuck(world: World, job: int) -> Tuple[str, str]:
    run = world.run(job)
    world.sql(
        (
            "UPDATE runs SET state = 'running', slurm_state = 'RUNNING', charge_csu = NULL, ledger_csu = lien_csu, "
            "end_time = NULL, elapsed_s = 0, end_acked = 0 WHERE run_id = ?",
            (run.run_id,),
        )
    )
    return "still_running", "ledger"


def ledger_moved(world: World, job: int) -> Tuple[str, str]:
    run = world.run(job)
    world.sql(("UPDATE runs SET account = ? WHERE run_id = ?", (other_account(run.account), run.run_id)))  # fmt: skip
    return "wrong_holder", "ledger"


def ledger_doubled(world: World, job: int) -> Tuple[str, str]:
    run = world.run(job)
    world.copy_run(run.run_id, submit_time=run.submit_time + 1)
    return "doubled", "ledger"


def ledger_doubled_by_restart(world: World, job: int) -> Tuple[str, str]:
    run = world.run(job)
    world.copy_run(run.run_id, restart_count=run.restart_count + 1, bank_job_id=None, bank_csu=0)
    return "doubled", "ledger"


def ledger_made_up(world: World, job: int) -> Tuple[str, str]:
    run = world.run(job)
    world.copy_run(run.run_id, job_id=900_000 + job, bank_job_id=None, bank_csu=0)
    return "unknown", "ledger"


def ledger_other_prices(world: World, job: int) -> Tuple[str, str]:
    run = world.run(job)
    inputs = json.loads(json.dumps(dict(run.inputs)))
    inputs["price_version"] = "another"
    inputs["qos_multiplier"] = "3"
    wrong = settle.recomputed_csu(inputs)
    world.sql(
        (
            "UPDATE runs SET charge_csu = ?, ledger_csu = ?, inputs = ? WHERE run_id = ?",
            (wrong, wrong, json.dumps(inputs), run.run_id),
        )
    )
    return "other_prices", "ledger"


def slurmdbd_changed(world: World, job: int) -> Tuple[str, str]:
    (at,) = [n for n, run in enumerate(world.slurmdbd.runs) if run.job_id == job]
    run = world.slurmdbd.runs[at]
    world.slurmdbd.runs[at] = replace(run, elapsed_s=run.elapsed_s - 180)
    return "restated", "ledger"


def bank_deleted(world: World, job: int) -> Tuple[str, str]:
    row = world.row(job)
    world.use(row, -csu(row["amount"]))
    del world.portal.jobs[row["jobslurmid"]]
    return "missing", "bank"


def bank_altered(world: World, job: int) -> Tuple[str, str]:
    row = world.row(job)
    world.use(row, 777)
    row["amount"] = su(csu(row["amount"]) + 777)
    return "mischarged", "bank"


def bank_altered_down(world: World, job: int) -> Tuple[str, str]:
    row = world.row(job)
    world.use(row, -csu(row["amount"]))
    row["amount"] = "0.00"
    return "mischarged", "bank"


def bank_stuck(world: World, job: int) -> Tuple[str, str]:
    row = world.row(job)
    world.use(row, 5000)
    row.update(amount=su(csu(row["amount"]) + 5000), enddate=None, jobstatus="RUNNING")
    return "still_running", "bank"


def bank_moved(world: World, job: int) -> Tuple[str, str]:
    row = world.row(job)
    amount = csu(row["amount"])
    world.use(row, -amount)
    row["accountid"] = other_account(row["accountid"])
    world.use(row, amount)
    return "wrong_holder", "bank"


def bank_doubled(world: World, job: int) -> Tuple[str, str]:
    row = world.row(job)
    copy = {**row, "jobslurmid": f"{row['jobslurmid']}-{SUBMITTED}"}
    world.portal.jobs[copy["jobslurmid"]] = copy
    world.use(copy, csu(copy["amount"]))
    return "doubled", "bank"


def bank_made_up(world: World, job: int) -> Tuple[str, str]:
    row = world.row(job)
    copy = {**row, "jobslurmid": str(800_000 + job), "amount": "12.34"}
    world.portal.jobs[copy["jobslurmid"]] = copy
    world.use(copy, 1234)
    return "unknown", "bank"


Injury = Callable[[World, int], Tuple[str, str]]

INJURIES: Tuple[Injury, ...] = (
    ledger_deleted,
    ledger_never_had_it,
    ledger_altered,
    ledger_stuck,
    ledger_moved,
    ledger_doubled,
    ledger_doubled_by_restart,
    ledger_made_up,
    ledger_other_prices,
    slurmdbd_changed,
    bank_deleted,
    bank_altered,
    bank_altered_down,
    bank_stuck,
    bank_moved,
    bank_doubled,
    bank_made_up,
)


def _seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
