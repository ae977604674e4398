# SPDX-License-Identifier: BSD-3-Clause
"""Slurm's queue, as one snapshot.

A job's name is its user's to choose and may hold anything, line ends and the look of other records included. So the
fields are separated by random characters that are made for each call and that reach squeue through its environment,
which other users cannot read: nobody can name a job so that it reads as another record.

``--array-unique``: otherwise squeue shows requeued tasks of an array inside the record of the tasks not yet started. Since
Slurm 23.02 there is only ``--array``, which prints that record once for each of these tasks; they are one again here.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace
from typing import Callable, List, Mapping, Optional, Tuple

from slurm_banking.arrays import parse_array
from slurm_banking.errors import SlurmUnavailable
from slurm_banking.records import UNLIMITED, QueuedJob
from slurm_banking.slurm import commands
from slurm_banking.slurm.commands import Runner
from slurm_banking.slurm.control import own_uid, read_controller
from slurm_banking.tres import Tres, parse_tres

#: The options that squeue may have, the better one first; what it does not have is taken out.
_arrays = ["--array-unique", "--array"]
MAX_OUTPUT_BYTES = 1024 * 1024 * 1024

#: Waiting to run; a job requeued and not yet pending among them.
PENDING_STATES = frozenset(
    {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
#: Nodes are allocated and the run goes on.
STARTED_STATES = frozenset(
    {
        "RUNNING",
        "SUSPENDED",
        "CONFIGURING",
        "POWER_UP_NODE",
        "RESIZING",
        "STOPPED",
        "SIGNALING",
        "EXPEDITING",
    }
)
# Any other state, COMPLETING above all, speaks of a run that is over. Of a requeued job that still completes, squeue
# shows the restart count and a start time of the run to come, and the submit time of the one before: no run at all.

_FIELDS = (
    "JobID",
    "JobArrayID",
    "ArrayJobID",
    "ArrayTaskID",
    "HetJobID",
    "HetJobOffset",
    "UserID",
    "UserName",
    "Account",
    "Partition",
    "State",
    "TimeLimit",
    "NumCPUs",
    "NumNodes",
    "QOS",
    "SubmitTime",
    "StartTime",
    "RestartCnt",
    "NodeList",
    "tres-alloc",  # allocated; of a waiting job, requested
    "admin_comment",
    "Name",
)


@dataclass(frozen=True)
class QueueSnapshot:
    """Every job that waits, runs or completes, at one moment not before ``taken_at``."""

    cluster: str
    jobs: Tuple[QueuedJob, ...]
    taken_at: int  #: unix seconds, before squeue was started
    boot_time: int  #: of the slurmctld that answered (or of its successor); another value: it was restarted
    complete: bool  #: False: Slurm may have left out jobs of others (PrivateData)


def is_pending(job: QueuedJob) -> bool:
    return job.state in PENDING_STATES


def is_started(job: QueuedJob) -> bool:
    return job.state in STARTED_STATES


def read_queue(
    cluster: str, *, run: Runner = commands.run, now: Callable[[], float] = time.time
) -> QueueSnapshot:
    """One snapshot of the whole queue: all users, all partitions, arrays as Slurm holds them.

    :raises SlurmUnavailable: a command failed, the answer could not be read whole, or it is another cluster's.
    """
    taken_at = int(now())
    separator, end = (f"~{os.urandom(6).hex()}{letter}" for letter in "sz")
    jobs = parse_queue(_ask(run, output_format(separator, end)), cluster, separator, end)
    # Asked after the queue: should slurmctld be restarted in between, the snapshot counts as the younger one's.
    controller = read_controller(run=run)
    if controller.cluster.lower() != cluster.lower():
        raise SlurmUnavailable(
            f"squeue: slurm.conf speaks of cluster {controller.cluster!r}, expected {cluster!r}"
        )
    return QueueSnapshot(
        cluster=cluster,
        jobs=jobs,
        taken_at=taken_at,
        boot_time=controller.boot_time,
        complete=controller.shows_all_jobs(own_uid()),
    )


def _ask(run: Runner, fields: str) -> str:
    while True:
        try:
            return run(
                ["squeue", "--noheader", "--all", "--local", "--noconvert", _arrays[0]],
                max_bytes=MAX_OUTPUT_BYTES,
                extra_env={"SQUEUE_FORMAT2": fields},
            )
        except SlurmUnavailable as error:
            # With this, and nothing else, it ends when it does not know an option.
            if len(_arrays) == 1 or "squeue --help" not in str(error):
                raise
            del _arrays[0]


def output_format(separator: str, end: str) -> str:
    """For ``SQUEUE_FORMAT2``; ":" without a number gives a field its full length."""
    return ",".join(f"{field}:{end if field == _FIELDS[-1] else separator}" for field in _FIELDS)


def parse_queue(output: str, cluster: str, separator: str, end: str) -> Tuple[QueuedJob, ...]:
    """:raises SlurmUnavailable: a record is not as expected; nothing of such an answer is used."""
    records = output.split(end)
    if records.pop().strip():
        raise SlurmUnavailable("squeue: the answer ends inside a record")
    jobs: List[QueuedJob] = []
    last, printed = "", 0  # the job id of the last record, and how often it was printed
    for number, record in enumerate(records, 1):
        values = record.split(separator)
        if len(values) != len(_FIELDS):
            raise SlurmUnavailable(
                f"squeue: record {number} has {len(values)} fields, expected {len(_FIELDS)}"
            )
        values[0] = values[0].lstrip("\n")
        if printed and values[0] == last:
            printed += 1
            continue
        try:
            _count_tasks(jobs, printed)
            jobs.append(_job(dict(zip(_FIELDS, values))))
        except ValueError as error:
            raise SlurmUnavailable(f"squeue: record {number}: {error}") from None
        last, printed = values[0], 1
    _count_tasks(jobs, printed)
    return tuple(jobs)


def _count_tasks(jobs: List[QueuedJob], printed: int) -> None:
    """The last record was printed so often, once for each task of it."""
    if printed > 1:
        jobs[-1] = replace(jobs[-1], tasks=printed, array_task_id=None)


def _job(row: Mapping[str, str]) -> QueuedJob:
    state = row["State"]
    in_array = row["ArrayTaskID"] not in ("N/A", "")
    # Where the tasks not yet started are one record, it shows brackets; a task by itself shows its number alone.
    many = in_array and ("[" in row["JobArrayID"] or not row["ArrayTaskID"].isdigit())
    time_limit_min = UNLIMITED if row["TimeLimit"] == "NOT_SET" else _limit(row["TimeLimit"])
    submit_time = commands.parse_time(row["SubmitTime"])
    if submit_time is None:
        raise ValueError(f"job {row['JobID']}: no submit time")
    return QueuedJob(
        job_id=_number(row["JobID"]),
        submit_time=submit_time,
        user_id=_number(row["UserID"]),
        user_name=_text(row["UserName"]),
        account=_text(row["Account"]),
        partition=_text(row["Partition"]),
        state=state,
        time_limit_min=time_limit_min,
        cpus=_number(row["NumCPUs"]),
        nodes=_number(row["NumNodes"]),
        qos=_text(row["QOS"]) or None,
        array_job_id=_number(row["ArrayJobID"]) if in_array else None,
        array_task_id=_number(row["ArrayTaskID"]) if in_array and not many else None,
        tasks=parse_array(row["ArrayTaskID"]).count if many else 1,
        het_job_id=_number_or_none(row["HetJobID"]),
        het_job_offset=_number_or_none(row["HetJobOffset"]),
        restart_count=_number(row["RestartCnt"]),
        # Of a pending job squeue shows when it may start.
        start_time=commands.parse_time(row["StartTime"]) if state in STARTED_STATES else None,
        node_list=_text(row["NodeList"]),
        tres=_tres(row["tres-alloc"]),
        name=row["Name"],
        admin_comment=_text(row["admin_comment"]),
    )


def _text(value: str) -> str:
    return "" if value in ("(null)", "N/A") else value


#: "1.46T": anything between 1.455 and 1.465.
_ROUNDED = re.compile(r"(mem=\d+\.\d\d)(?=[TP](?:,|\Z))")


def _tres(value: str) -> Tres:
    """squeue rounds memory of a terabyte and more to two places, whatever --noconvert says; sacct does not.

    The most that it can be is taken: what is set aside for it must not be less than it costs.
    """
    return parse_tres(_ROUNDED.sub(r"\g<1>5", _text(value)))


def _number(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 10):
        raise ValueError(f"{value[:40]!r} is not a number")
    return int(value)


def _number_or_none(value: str) -> Optional[int]:
    return None if value in ("N/A", "") else _number(value)


def _limit(value: str) -> int:
    limit = commands.parse_minutes(value)
    if limit is None:
        raise ValueError(f"{value[:40]!r} is not a time limit")
    return limit
