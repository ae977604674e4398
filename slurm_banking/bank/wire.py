# SPDX-License-Identifier: BSD-3-Clause
"""A run in the bank's words, and the bank's row in ours. Field sizes: the MyBRC jobs API."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import List, Optional

from mybrc_client.models import Job, Node
from slurm_banking.amounts import MAX_WIRE_CSU, format_su, parse_su
from slurm_banking.errors import BankRefused, BankUnavailable
from slurm_banking.ledger import LedgerRun
from slurm_banking.ledger.rows import STRUCK
from slurm_banking.slurm import hostlist

MAX_ID = 150
MAX_TEXT = 50
MAX_NODE_NAME = 30
#: Of a larger job the first ones are told. The portal looks each up by itself.
MAX_NODES = 2000

#: What a run is called there until its end is told.
RUNNING = "RUNNING"

#: Seconds between a start as a node tells it and as the ledger has it, for both to be the same.
NODE_REPORT_TOLERANCE_S = 600


@dataclass(frozen=True)
class BankRun:
    """A row of the bank."""

    bank_job_id: str
    user_id: str  #: as on the wire: digits
    account: str
    submit_time: Optional[int]
    start_time: Optional[int]
    end_time: Optional[int]  #: None: not ended, as far as the bank knows
    amount_csu: int
    state: str
    held_csu: int = 0  #: what the bank's usage holds for it, by the bank's rules
    doubt: str = ""  #: why that may be otherwise; "": it is so
    partition: str = ""
    qos: Optional[str] = None
    cpus: int = 0

    @property
    def told_by_node(self) -> bool:
        """A node reports a start and nothing else."""
        return self.submit_time is None and self.end_time is None and self.amount_csu == 0

    def is_of(self, run: LedgerRun) -> bool:
        """Whether the row is this run's: user, account and submit date agree, or it is a node's report of its start."""
        if self.user_id != str(run.user_id) or self.account != run.account:
            return False
        if self.told_by_node:
            return (
                self.start_time is not None
                and run.start_time is not None
                and abs(self.start_time - run.start_time) <= NODE_REPORT_TOLERANCE_S
            )
        return self.submit_time == run.submit_time

    def has_the_end_of(self, run: LedgerRun) -> bool:
        """Whether the row has the end of the run already, at whatever cost."""
        return self.end_time is not None and self.end_time == _end(run)

    def is_final_for(self, run: LedgerRun) -> bool:
        """Whether the row has the end of the run, and its charge, already."""
        return self.has_the_end_of(run) and self.amount_csu == run.charge_csu


def default_job_id(run: LedgerRun, job_id_format: str, cluster: str) -> str:
    """The id on the wire; a requeued job's later runs have ids of their own."""
    bank_job_id = job_id_format.format(
        job_id=run.job_id,
        restart=max(run.told_restart_count, 0),
        cluster=cluster,
        array_job_id=run.array_job_id if run.array_job_id is not None else run.job_id,
        array_task_id=run.array_task_id if run.array_task_id is not None else 0,
    )
    if run.told_restart_count > 0 and "{restart}" not in job_id_format:
        bank_job_id += f"-r{run.told_restart_count}"
    return bank_job_id


def other_job_id(bank_job_id: str, run: LedgerRun) -> str:
    """Where a run goes whose id is taken by another job (ids are reused, and by other clusters)."""
    return f"{bank_job_id}-{run.submit_time}"


def start_on_the_wire(run: LedgerRun, bank_job_id: str, amount_csu: int) -> Job:
    job = _common(run, bank_job_id, amount_csu)
    job.jobstatus = RUNNING
    return job


def end_on_the_wire(run: LedgerRun, bank_job_id: str) -> Job:
    """:raises BankRefused: the run has no charge or no end."""
    end = _end(run)
    if run.charge_csu is None or end is None or run.start_time is None:
        raise BankRefused(f"job {run.job_id}: it has not ended")
    job = _common(run, bank_job_id, run.charge_csu)
    job.enddate = _date(end)
    job.jobstatus = run.slurm_state[:MAX_TEXT]
    job.raw_time = round(run.elapsed_s / 3600, 6)
    job.cpu_time = round(run.elapsed_s * run.cpus / 3600, 6)
    return job


def nothing_on_the_wire(row: BankRun) -> Job:
    """A row once more, at 0.00. A bank counts the difference only if all three dates are given."""
    known = [when for when in (row.submit_time, row.start_time, row.end_time) if when is not None]
    submit = row.submit_time if row.submit_time is not None else min(known, default=0)
    start = max(submit, row.start_time if row.start_time is not None else submit)
    end = max(start, row.end_time if row.end_time is not None else start)
    return Job(
        jobslurmid=row.bank_job_id,
        userid=row.user_id,
        accountid=row.account,
        amount=format_su(0),
        submitdate=_date(submit),
        startdate=_date(start),
        enddate=_date(end),
        jobstatus=STRUCK,
    )


def row_from_wire(job: Job) -> BankRun:
    """:raises BankUnavailable: a row that cannot be understood."""
    try:
        amount_csu = parse_su(job.amount) if isinstance(job.amount, str) else 0
    except ValueError as error:
        raise BankUnavailable(
            f"job {job.jobslurmid[:40]} at the bank: amount: {error}", answered=True
        ) from None
    return BankRun(
        bank_job_id=job.jobslurmid,
        user_id=job.userid,
        account=job.accountid,
        submit_time=_seconds(job.submitdate),
        start_time=_seconds(job.startdate),
        end_time=_seconds(job.enddate),
        amount_csu=amount_csu,
        state=job.jobstatus if isinstance(job.jobstatus, str) else "",
        partition=job.partition if isinstance(job.partition, str) else "",
        qos=job.qos if isinstance(job.qos, str) else None,
        cpus=job.num_cpus if isinstance(job.num_cpus, int) else 0,
    )


def _common(run: LedgerRun, bank_job_id: str, amount_csu: int) -> Job:
    if not 0 <= amount_csu <= MAX_WIRE_CSU:
        raise BankRefused(
            f"job {run.job_id}: {format_su(amount_csu)} SU: the bank takes at most {format_su(MAX_WIRE_CSU)}"
        )
    if len(bank_job_id) > MAX_ID:
        raise BankRefused(f"job {run.job_id}: its id at the bank has {len(bank_job_id)} characters")
    start = _start(run)
    job = Job(
        jobslurmid=bank_job_id,
        userid=str(run.user_id),
        accountid=run.account,
        submitdate=_date(run.submit_time),
        startdate=None if start is None else _date(start),
        amount=format_su(amount_csu),
        partition=run.partition[:MAX_TEXT],
        qos=None if run.qos is None else run.qos[:MAX_TEXT],
        num_cpus=run.cpus,
        num_alloc_nodes=run.node_count,
    )
    names = node_names(run.nodes)
    if names:
        job.nodes = [Node(name=name) for name in names]
    return job


def _start(run: LedgerRun) -> Optional[int]:
    """The bank refuses a start before the submission; Slurm may say so after a clock was set."""
    return None if run.start_time is None else max(run.start_time, run.submit_time)


def _end(run: LedgerRun) -> Optional[int]:
    start = _start(run)
    return None if run.end_time is None or start is None else max(run.end_time, start)


def _date(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.timezone.utc)


def _seconds(date: object) -> Optional[int]:
    """Without an offset it is UTC."""
    if not isinstance(date, datetime.datetime):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.timezone.utc)
    try:
        return int(date.timestamp())
    except (OverflowError, ValueError):
        return None


def node_names(expression: str) -> List[str]:
    """The names in Slurm's host list, as far as the bank takes them; never an error, the charge matters more."""
    try:
        names = hostlist.expand(expression)
    except ValueError:
        return []
    return [name for name in names[:MAX_NODES] if len(name) <= MAX_NODE_NAME]
