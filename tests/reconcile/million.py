# SPDX-License-Identifier: BSD-3-Clause
"""A month of synthetic jobs in a real MariaDB behind slurmdbd, a ledger and a bank that agree with it, and what it takes to compare.

The rows are written by SQL, in sets; no slurmctld runs. What a job is follows from its number alone, in the same words
in MariaDB and SQLite, so that nobody has to carry a million rows from one to the other.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm_banking.ledger import Ledger
from tests.reconcile.site import ReconcileSite, change_bank
from tests.rig.cluster import CHECKOUT, SLURM_USER, RigError, _connects

DAYS = 30
#: Each number stands for the holder of that rest: (account, user).
HOLDERS: Sequence[tuple[str, str]] = (
    ("fc_alpha", "sb-alice"),
    ("fc_alpha", "sb-bob"),
    ("fc_beta", "sb-carol"),
    ("fc_beta", "sb-alice"),
    ("fc_gamma", "sb-mallory"),
)
#: Hundredths of an SU per CPU and second: whole, so that a product needs no rounding.
PRICE_CSU: Mapping[str, int] = {"main": 10, "debug": 5}
PRICES: Mapping[str, str] = {"main": "360", "debug": "180", "exclusive": "720"}

# What job `n` is: in both dialects. `began`: unix seconds of the month's start; `step`: milliseconds between two jobs.
PARTITION = "CASE WHEN n % 7 = 3 THEN 'debug' ELSE 'main' END"
PRICE = f"CASE WHEN n % 7 = 3 THEN {PRICE_CSU['debug']} ELSE {PRICE_CSU['main']} END"
CPUS = "(1 + n % 4)"
SUBMIT = "({began} + n * {step} {div} 1000 - 30 - n % 600)"
START = "({began} + n * {step} {div} 1000)"
ELAPSED = "(20 + (n * 7919) % 7200)"
#: One in a hundred was cancelled before it started, one in a thousand lost its node and costs nothing.
NEVER_RAN = "(n % 100 = 50)"
NODE_FAIL = "(n % 1000 = 777)"
COST = f"CASE WHEN {NODE_FAIL} THEN 0 ELSE ({PRICE}) * {CPUS} * {ELAPSED} END"
STATE = (
    f"CASE WHEN {NODE_FAIL} THEN {{node_fail}} WHEN n % 20 = 7 THEN {{failed}} WHEN n % 50 = 11 THEN {{timeout}}"
    " ELSE {completed} END"
)
_NUMBERS = {"node_fail": "7", "failed": "5", "timeout": "6", "completed": "3"}
_WORDS = {
    "node_fail": "'NODE_FAIL'",
    "failed": "'FAILED'",
    "timeout": "'TIMEOUT'",
    "completed": "'COMPLETED'",
}

_SLURMDBD = f"""
INSERT INTO {{name}}_job_table (mod_time, account, admin_comment, cpus_req, job_name, id_assoc, id_array_job, id_array_task,
	id_job, id_qos, id_resv, id_wckey, id_user, id_group, het_job_id, het_job_offset, kill_requid, state_reason_prev, nodelist,
	nodes_alloc, node_inx, `partition`, priority, state, timelimit, time_submit, time_eligible, time_start, time_end, tres_alloc,
	tres_req)
SELECT {SUBMIT}, h.account, NULL, {CPUS}, 'bench', h.id_assoc, 0, 4294967294, n, 1, 0, 0, h.uid, h.uid, 0, 4294967294,
	IF({NEVER_RAN}, h.uid, NULL), 0, IF({NEVER_RAN}, 'None assigned', CONCAT('n', 1 + n % 2)), IF({NEVER_RAN}, 0, 1),
	IF({NEVER_RAN}, NULL, n % 2), {PARTITION}, 1, IF({NEVER_RAN}, 4, {STATE}), 600, {SUBMIT}, {SUBMIT},
	IF({NEVER_RAN}, 0, {START}), {START} + IF({NEVER_RAN}, 0, {ELAPSED}),
	IF({NEVER_RAN}, '', CONCAT('1=', {CPUS}, ',2=', 1000 * {CPUS}, ',4=1,5=', {CPUS})),
	CONCAT('1=', {CPUS}, ',2=', 1000 * {CPUS}, ',4=1,5=', {CPUS})
FROM (SELECT seq AS n FROM seq_{{first}}_to_{{last}}) AS numbers JOIN holders AS h ON h.rest = n % {len(HOLDERS)}
"""

_NUMBER = "WITH RECURSIVE number (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM number WHERE n < {last})"

_RUNS = f"""
INSERT INTO runs (job_id, submit_time, restart_count, state, counted, account, user_id, user_name, name, partition, qos,
	start_time, end_time, elapsed_s, cpus, nodes, node_count, time_limit_min, slurm_state, lien_csu, charge_csu, ledger_csu,
	bank_csu, period, bank_job_id, start_acked, end_acked, inputs, source)
{_NUMBER}
SELECT n, {SUBMIT}, 0, 'ended', 1, h.account, h.user_id, h.user_name, 'bench', {PARTITION}, 'normal', {START},
	{START} + {ELAPSED}, {ELAPSED}, {CPUS}, 'n1', 1, 600, {STATE}, 0, {COST}, {COST}, {COST}, h.period, CAST(n AS TEXT), 1, 1,
	'{{{{"elapsed_s":0}}}}', 'jobcomp'
FROM number JOIN holders AS h ON h.rest = n % {len(HOLDERS)} WHERE NOT {NEVER_RAN}
"""
_ENTRIES = f"""
INSERT INTO entries (at_us, kind, job_id, submit_time, restart_count, account, user_id, amount_csu, actor, reason, inputs)
{_NUMBER}
SELECT ({START} + {ELAPSED}) * 1000000, 'charge', n, {SUBMIT}, 0, h.account, h.user_id, {COST}, 'jobcomp', 'it ended', NULL
FROM number JOIN holders AS h ON h.rest = n % {len(HOLDERS)} WHERE NOT {NEVER_RAN}
"""
_JOBS = f"""
INSERT INTO bank_job (jobslurmid, user_id, account_id, submitdate, startdate, enddate, amount_csu, jobstatus, partition, qos,
	nodes, num_cpus, num_req_nodes, num_alloc_nodes, raw_time, cpu_time, allocation_id, counted_csu)
{_NUMBER}
SELECT CAST(n AS TEXT), h.bank_user, h.bank_account, datetime({SUBMIT}, 'unixepoch'), datetime({START}, 'unixepoch'),
	datetime({START} + {ELAPSED}, 'unixepoch'), {COST}, {STATE}, {PARTITION}, 'normal', '["n1"]', {CPUS}, NULL, 1,
	{ELAPSED} / 3600.0, {ELAPSED} * {CPUS} / 3600.0, h.allocation, {COST}
FROM number JOIN holders AS h ON h.rest = n % {len(HOLDERS)} WHERE NOT {NEVER_RAN}
"""
_BANK_ENTRIES = """
INSERT INTO bank_entry (allocation_id, kind, amount_csu, reason, actor, time, user_id, job_id)
SELECT allocation_id, 'charge', -amount_csu, 'charge', 'relay', enddate, user_id, id FROM bank_job WHERE amount_csu
"""
_COUNTERS = (
    "UPDATE bank_allocation SET used_csu = (SELECT COALESCE(SUM(counted_csu), 0) FROM bank_job"
    " WHERE allocation_id = bank_allocation.id)",
    "UPDATE bank_allocationuser SET used_csu = (SELECT COALESCE(SUM(counted_csu), 0) FROM bank_job"
    " WHERE allocation_id = bank_allocationuser.allocation_id AND user_id = bank_allocationuser.user_id)",
)

#: Pages for MariaDB's rows, MiB: a site's server has more; the rig's has the least that starts quickly.
_BUFFER_MIB = 512

_MAIN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from slurm_banking.cli import main; sys.exit(main())"


@dataclass(frozen=True, kw_only=True)
class Measured:
    jobs: int
    status: int  #: of the command
    report: dict[str, Any]
    took_s: float  #: the command's whole life
    peak_mib: float  #: of the command's own process
    peak_all_mib: float  #: of it and what it started (sacct), together
    cpu_s: Mapping[
        str, float
    ]  #: seconds of processor time that each took meanwhile; "own": with sacct


class MillionSite(ReconcileSite):
    """munge, MariaDB, slurmdbd and the bank; the package beside them, and no plugin."""

    def __init__(self, **options: Any) -> None:
        super().__init__(rest=False, plugins=False, prices=PRICES, **options)
        self.extra_slurm_conf["MessageTimeout"] = "2"  # there is no slurmctld to wait for

    def spawn(self, name: str, argv: Sequence[str], **options: Any) -> int:
        if name == "mariadb":
            argv = [
                f"--innodb-buffer-pool-size={_BUFFER_MIB}M" if "buffer-pool" in word else word
                for word in argv
            ]
        return super().spawn(name, argv, **options)

    def _start_all(self) -> None:
        for package in ("slurm_banking", "mybrc_client"):
            shutil.copytree(
                CHECKOUT / package,
                self.stage_dir / "lib" / package,
                ignore=shutil.ignore_patterns("__pycache__", "server"),
            )
        self.set_up_bank()
        self._spawn_munged()
        munge = self.root / "munge" / "socket"
        self._wait_ready("munged", lambda: _connects(munge))
        self._start_database()
        self.sacctmgr("load", f"file={self.etc_dir}/associations")

    # -- the books --------------------------------------------------------------------------------------------------------

    def fill(self, jobs: int, tell: Callable[[str], None]) -> None:
        """The month ends yesterday. Everything agrees."""
        began = int(time.time()) // 86400 * 86400 - (DAYS + 1) * 86400
        words: dict[str, Any] = {
            "began": began,
            "step": DAYS * 86400 * 1000 // jobs,
            "first": 1,
            "last": jobs,
        }
        tell(f"{jobs:,} jobs into slurmdbd's database")
        self._fill_slurmdbd(words)
        tell(f"{jobs:,} runs into a ledger")
        holders = self._holders()
        self._fill_ledger(words, holders, began)
        tell(f"{jobs:,} rows into the bank")
        words = {**words, **_WORDS, "div": "/"}
        change_bank(
            self,
            [
                *_holders_table(holders),
                (_JOBS.format(**words), ()),
                (_BANK_ENTRIES, ()),
                *((text, ()) for text in _COUNTERS),
                ("DROP TABLE holders", ()),
            ],
        )
        # No bank got a million rows in one transaction: its file would be a log of half a GiB, looked through for each row.
        connection = self.bank_file()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.close()

    def _fill_slurmdbd(self, words: Mapping[str, Any]) -> None:
        name = self.cluster_name
        values = ",".join(
            f"({rest}, '{account}', {self.uid(user)}, (SELECT id_assoc FROM {name}_assoc_table WHERE acct = '{account}'"
            f" AND user = '{user}' AND NOT deleted))"
            for rest, (account, user) in enumerate(HOLDERS)
        )
        filled = _SLURMDBD.format(**{**words, **_NUMBERS, "div": "DIV", "name": name})
        self.slurmdbd_sql(
            "CREATE TEMPORARY TABLE holders (rest INT, account TINYTEXT, uid INT, id_assoc INT);"
            f"INSERT INTO holders VALUES {values};{filled};"
        )

    def _holders(self) -> list[dict[str, Any]]:
        connection = self.bank_file()
        found = []
        for rest, (account, user) in enumerate(HOLDERS):
            row = connection.execute(
                "SELECT a.id AS bank_account, u.id AS bank_user, l.id AS allocation FROM bank_account a, bank_clusteruser u,"
                " bank_allocation l WHERE a.name = ? AND u.username = ? AND l.account_id = a.id",
                (account, user),
            ).fetchone()
            found.append(
                {"rest": rest, "account": account, "user_id": self.uid(user), "user_name": user}
                | dict(row)
                | {"period": str(row["allocation"])}
            )
        connection.close()
        return found

    def _fill_ledger(
        self, words: Mapping[str, Any], holders: Sequence[dict[str, Any]], began: int
    ) -> None:
        """As root, and then given to SlurmUser: nobody has it open."""
        shutil.chown(self.state_dir, "root", "root")
        ledger = Ledger(str(self.state_dir), self.cluster_name)
        try:
            with ledger.transaction() as tx:
                tx.set_meta("complete", "1")
                tx.set_meta("created", str(began - 86400))
                execute = tx._connection.execute
                for statement, parameters in _holders_table(holders):
                    execute(statement, parameters)
                for text in (_RUNS, _ENTRIES):
                    execute(text.format(**{**words, **_WORDS, "div": "/"}))
                execute("DROP TABLE holders")
            ledger.checkpoint()
        finally:
            ledger.close()
        for path in (self.state_dir, *self.state_dir.iterdir()):
            shutil.chown(path, SLURM_USER, SLURM_USER)

    # -- the measurement --------------------------------------------------------------------------------------------------

    def compare(self, jobs: int, *arguments: str, timeout_s: float = 1200) -> Measured:
        """``slurm-banking reconcile --json`` over all of it, in a process that is watched."""
        before = self._cpu_s()
        began = time.monotonic()
        process = subprocess.Popen(
            ["/usr/bin/python3", "-I", "-c", _MAIN, str(self.stage_dir / "lib"), "--config"]
            + [str(self.bank_config), "reconcile", "--json", "--since", f"{DAYS + 3}d", *arguments],
            env={**self.env(), "TZ": "UTC"},
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        watch = _Watch(process.pid)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise RigError(f"reconcile: no end within {timeout_s:g} s") from None
        finally:
            watch.end()
        took_s = time.monotonic() - began
        if process.returncode not in (0, 1) or not stdout.startswith("{"):
            raise RigError(f"reconcile: status {process.returncode}: {stderr.strip()[-1000:]}")
        return Measured(
            jobs=jobs,
            status=process.returncode,
            report=json.loads(stdout),
            took_s=took_s,
            peak_mib=watch.own_kb / 1024,
            peak_all_mib=watch.all_kb / 1024,
            cpu_s={name: spent - before[name] for name, spent in self._cpu_s().items()},
        )

    def _cpu_s(self) -> dict[str, float]:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = {"own": ended.ru_utime + ended.ru_stime}
        for name in ("slurmdbd", "mariadb", "bank"):
            pid = self.pid(name)
            assert pid is not None
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            spent[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return spent


def _holders_table(holders: Sequence[dict[str, Any]]) -> list[tuple[str, Sequence[Any]]]:
    columns = list(holders[0])
    marks = ", ".join("?" * len(columns))
    return [
        (f"CREATE TABLE holders ({', '.join(columns)})", ()),
        *(
            (f"INSERT INTO holders VALUES ({marks})", tuple(one[column] for column in columns))
            for one in holders
        ),
    ]


class _Watch:
    """Resident memory of a process: its own peak as the kernel keeps it, and the most of it and its children together."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.own_kb = self.all_kb = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._over.wait(0.1):
            self.own_kb = max(self.own_kb, _field_kb(self._pid, "VmHWM"))
            total = _field_kb(self._pid, "VmRSS")
            total += sum(_field_kb(child, "VmRSS") for child in _children(self._pid))
            self.all_kb = max(self.all_kb, total)

    def end(self) -> None:
        self._over.set()
        self._thread.join()


def _field_kb(pid: int, name: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{task}/children").read_text()
            found += [int(word) for word in text.split()]
    except OSError:
        pass
    return found
