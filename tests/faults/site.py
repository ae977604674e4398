# SPDX-License-Identifier: BSD-3-Clause
"""The cluster of the fault rig: breakable, with finite funds, and whatever a schedule asks for done to it and undone."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.faults import breakage, load
from tests.faults.bank_proxy import BankProxy
from tests.faults.breakage import BreakableCluster
from tests.faults.broken_builds import Patch, Replacement, apply, apply_to
from tests.faults.schedule import Fault
from tests.fidelity import plain_charge
from tests.rig.cluster import OPERATOR, SLURM_USER, RigError

#: For tens of thousands of jobs and what a rebuild leaves beside it.
STATE_DISK_MIB = 400

#: A run that slurmctld forgot when it was killed counts as lost after a quarter of an hour: here, after half a minute, so that
#: each schedule sees it end. Changed in the site's copy, like a deliberately broken build; nothing else is.
SOONER = Patch(
    symptom="",
    replacements=(
        Replacement(
            path="slurm_banking/relay/sweep.py", old="\nLOST_S = 900\n", new="\nLOST_S = 20\n"
        ),
        Replacement(
            path="slurm_banking/relay/sweep.py",
            old="\nASK_AGAIN_S = 60\n",
            new="\nASK_AGAIN_S = 4\n",
        ),
    ),
)

#: The product's own word on its ledger, in a process of its own.
_CHECK = """\
import json, sys
sys.path.insert(0, sys.argv[1])
from slurm_banking.ledger import Ledger
ledger = Ledger(sys.argv[2], sys.argv[3])
with ledger.transaction(write=False) as tx:
    print(json.dumps(list(tx.check())))
"""


class FaultSite(BreakableCluster):
    """`broken`: the name of a deliberately broken build, "" for what ``make install`` installs."""

    def __init__(self, *, seed: int, broken: str = "", **options: Any) -> None:
        # What could not be decided is not let in: else it would count as an overdraft.
        super().__init__(
            proxy_seed=seed,
            state_disk_mib=STATE_DISK_MIB,
            policy='undecided = "reject"',
            accounts=load.ACCOUNTS,
            prices=load.PRICES,
            funds=load.FUNDS_SU,
            nodes=load.NODES,
            partitions=load.PARTITIONS,
            slurmctld_debug="info",
            extra_slurm_conf={
                "MessageTimeout": "15",
                "MaxJobCount": "20000",
                "MinJobAge": "60",
                "LogTimeFormat": "iso8601_ms",
                "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=2,bf_resolution=60,"
                "default_queue_depth=1000",
            },
            **options,
        )
        self.broken = broken
        self.tasks = 0  #: accepted so far
        #: Runs, by job id and submit time, that an earlier verdict took for exceptions; and the lines that it had.
        self.explained: set[tuple[int, int]] = set()
        self.said: set[str] = set()
        #: What was submitted: (job id, unix seconds, CPUs of each task, partition).
        self.asked: list[tuple[int, float, int, str]] = []
        self.ledger_lost = False  #: and rebuilt, by a fault
        #: Lien → the job of Slurm's queue that names it, and when it was last seen there.
        self.queued: dict[str, tuple[int, float]] = {}

    def start(self) -> None:
        self.prepare()
        apply_to(self.stage_dir / "lib", SOONER)
        if self.broken:
            apply(self, self.broken)
        super().start()

    def _write_configuration(self) -> None:
        """slurmdbd commits what it acknowledges: with CommitDelay, kill -9 loses what slurmctld has forgotten by then."""
        super()._write_configuration()
        path = self.etc_dir / "slurmdbd.conf"
        text = path.read_text().replace("CommitDelay=1\n", "")
        self.write_file(path, text, owner=SLURM_USER, mode=0o600)

    def spawn(self, name: str, argv: Sequence[str], **options: Any) -> int:
        if name in self.clock_env:
            _forget_clocks()
        return super().spawn(name, argv, **options)

    @property
    def disturbed(self) -> BankProxy:
        assert self.proxy is not None
        return self.proxy

    # -- breaking -------------------------------------------------------------------------------------------------------

    def break_it(self, fault: Fault) -> None:
        """Returns when a killed daemon is up again; what is frozen, locked, or wrong at the bank ends by itself.

        :raises RigError: it could not be done, or a daemon did not come back: that of `restore` is the next attempt.
        """
        name, _, what = fault.kind.partition(":")
        if name == "bank":
            self.disturbed.set(what, fault.seconds, fault.share)
        elif name == "kill9":
            breakage.kill9(self, what)
            time.sleep(fault.seconds)
            self._again(what)
        elif name == "freeze":
            breakage.freeze(self, what, fault.seconds)
        elif name == "reconfigure":
            breakage.reconfigure(self)
        elif name == "restart_slurmctld":
            breakage.restart_slurmctld(self)
        elif name == "wipe_state_dir":
            breakage.wipe_state_dir(self)
        elif name == "takeover":
            breakage.wipe_state_dir(self, takeover=True)
        elif name == "wipe_state_save":
            breakage.wipe_state_save(self)
            time.sleep(fault.seconds)
            self._again("slurmctld")
        elif name == "break_ledger":
            breakage.break_ledger(self)
        elif name == "fill_disk":
            breakage.fill_disk(self)
            time.sleep(fault.seconds)
            breakage.free_disk(self)
        elif name == "ledger_read_only":
            breakage.ledger_read_only(self)
            time.sleep(fault.seconds)
            self._writable_again()
        elif name == "lock_ledger":
            breakage.lock_ledger(self, fault.seconds)
        elif name == "step_clock":
            breakage.step_clock(self, what, fault.step_s)
        else:
            raise ValueError(f"fault {fault.kind!r}: expected one of tests.faults.schedule.KINDS")

    def _again(self, what: str) -> None:
        """As systemd would, after a while."""
        if what == "relay":
            if not breakage.pids_of(self, "relay"):
                breakage.start_relay(self)
        elif what == "bank":
            self.start_bank()
        else:
            self.start_daemon(f"slurmd-{self.nodes[0].name}" if what == "slurmd" else what)

    def _writable_again(self) -> None:
        for name in breakage.LEDGER_FILES:
            path = self.state_dir / name
            if path.exists():
                path.chmod(0o600)
        breakage.restart_slurmctld(self)
        breakage.restart_relay(self)

    def restore(self, timeout_s: float) -> list[str]:
        """Everything up and well again; what is not. With a lost StateSaveLocation an operator confirms what the sweep found."""
        said = breakage.restore(self, timeout_s)
        status = self.status() or {}
        if "sweep" in str(status.get("alarms", "")):
            self.banking("sweep", "--force", check=False)
        return [said] if said else []

    def slurmctld_end(self) -> tuple[int, int | None]:
        """(process id, exit status; None while it runs), of the last one started."""
        status = self._status("slurmctld")
        return int(status["pid"]), status["exit"]

    # -- funds ----------------------------------------------------------------------------------------------------------

    def top_up(self) -> None:
        """What the poor account may spend, given anew: so that some of its jobs are refused, and not all of them."""
        for account, wanted_su in load.ALLOWANCE_SU.items():
            shown = self.bank_left_csu(account)
            if shown < wanted_su * 100 // 2:
                missing = (wanted_su * 100 - shown) / 100
                self.bank("deposit", account, f"{missing:.2f}", "--reason", "the next schedule")

    def bank_left_csu(self, account: str) -> int:
        _, used, awarded = read_bank(self.root / "bank" / "bank.sqlite3")
        return awarded[account] - sum(csu for holder, csu in used.items() if holder[0] == account)

    # -- reading --------------------------------------------------------------------------------------------------------

    def _sacct(
        self, *fields: str, arguments: Sequence[str] = ("-a", "-S", "now-2days", "-E", "now+2days")
    ) -> str:
        return self.run_as(
            "root",
            ["sacct", "-X", "-D", "-n", "-P", "--noconvert", "-o", ",".join(fields), *arguments],
            60,
            env={"SLURM_TIME_FORMAT": "%s", "TZ": "UTC"},
            check=True,
        ).stdout

    def sacct_text(self) -> str:
        return self._sacct(*plain_charge.FIELDS)

    def sacct_of(self, job_ids: Sequence[int]) -> str:
        """By id also what slurmdbd has of runs whose start it never got: their times alone, which no window of time shows."""
        texts = []
        for first in range(0, len(job_ids), 300):
            some = ",".join(str(job) for job in job_ids[first : first + 300])
            texts.append(
                self._sacct(*plain_charge.FIELDS, arguments=("-S", "1970-01-02", "-j", some))
            )
        return "".join(texts)

    def look(self) -> None:
        """Note which liens the jobs in Slurm's queue name, and when. Of held jobs that never ran slurmdbd keeps no record."""
        text = self.run_as(
            "root", ["squeue", "-h", "-a", "-O", "ArrayJobID:12,admin_comment:120"], 20, check=True
        ).stdout
        now = time.time()
        for job, lien in re.findall(r"^(\d+) +slurm_banking=([0-9a-f]+):", text, re.M):
            self.queued[lien] = int(job), now

    def prices_json(self) -> dict[str, Any]:
        """The price list as `plain_charge` reads it."""
        factors: Mapping[str, str] = dict.fromkeys(
            ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "CANCELLED_BY_ADMIN"), "0"
        )
        return {
            "partitions": {name: {"cpu": price} for name, price in self.prices.items()},
            "qos": {},
            "state_factor": factors,
            "admin_uids": [0, self.uid(SLURM_USER), self.uid(OPERATOR)],
        }

    def check_ledger(self) -> list[str]:
        """What Transaction.check() finds, as the installed package has it."""
        command = ["/usr/bin/python3", "-I", "-c", _CHECK, str(self.stage_dir / "lib")]
        try:
            said = self.run_as(
                SLURM_USER, [*command, str(self.state_dir), self.cluster_name], 60, check=True
            )
        except (RigError, subprocess.SubprocessError) as error:
            return [f"the ledger cannot be checked: {error}"]
        return list(json.loads(said.stdout))

    def notes_text(self) -> str:
        texts = []
        for user in self.users:
            path: Path = self.home(user) / load.NOTES
            if path.exists():
                texts.append(path.read_text(errors="replace"))
        return "\n".join(texts)


def _forget_clocks() -> None:
    """What libfaketime leaves behind of processes that were killed: one with the same id and another user does not start."""
    for pattern in ("sem.faketime_sem_*", "faketime_shm_*"):
        for path in Path("/dev/shm").glob(pattern):
            pid = path.name.rsplit("_", 1)[1]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                path.unlink(missing_ok=True)


def read_bank(
    path: Path,
) -> tuple[list[dict[str, Any]], dict[tuple[str, int], int], dict[str, int]]:
    """Its jobs, what its entries count as used by account and user, and what was awarded to each account."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as connection:
        connection.row_factory = sqlite3.Row
        jobs = [
            dict(row)
            for row in connection.execute(
                "SELECT j.jobslurmid, CAST(u.cluster_uid AS INTEGER) AS user_id, a.name AS account,"
                " CAST(strftime('%s', j.submitdate) AS INTEGER) AS submit_time,"
                " CAST(strftime('%s', j.startdate) AS INTEGER) AS start_time,"
                " CAST(strftime('%s', j.enddate) AS INTEGER) AS end_time, j.amount_csu, j.counted_csu"
                " FROM bank_job j JOIN bank_clusteruser u ON u.id = j.user_id JOIN bank_account a ON a.id = j.account_id"
            )
        ]
        used = {
            (row["account"], int(row["uid"])): int(row["csu"])
            for row in connection.execute(
                "SELECT a.name AS account, u.cluster_uid AS uid, -SUM(e.amount_csu) AS csu FROM bank_entry e"
                " JOIN bank_allocation l ON l.id = e.allocation_id JOIN bank_account a ON a.id = l.account_id"
                " JOIN bank_clusteruser u ON u.id = e.user_id WHERE e.kind IN ('charge', 'adjustment') GROUP BY 1, 2"
            )
        }
        awarded = {
            row["account"]: int(row["csu"])
            for row in connection.execute(
                "SELECT a.name AS account, SUM(e.amount_csu) AS csu FROM bank_entry e JOIN bank_allocation l"
                " ON l.id = e.allocation_id JOIN bank_account a ON a.id = l.account_id"
                " WHERE e.kind IN ('deposit', 'withdrawal') GROUP BY 1"
            )
        }
    connection.close()
    return jobs, used, awarded
