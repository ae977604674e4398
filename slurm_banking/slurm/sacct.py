# SPDX-License-Identifier: BSD-3-Clause
"""What slurmdbd holds about jobs, through sacct's columns; see :mod:`slurm_banking.slurm.accounting` for what rows mean.

Job names are not asked for: they are the one free text here that users choose. The separator is random nevertheless.

Memory in AllocTRES is a whole number of MB only with --noconvert ("mem=8000M"); else units are changed, and of a
terabyte and more two places are left. "CANCELLED by UID" names whoever ended the job.
"""

from __future__ import annotations

import os
import time
from typing import Collection, List, Mapping, Optional, Sequence, Tuple

from slurm_banking.errors import SlurmUnavailable
from slurm_banking.records import UNKNOWN_RESTART
from slurm_banking.slurm import commands
from slurm_banking.slurm.accounting import (
    Accounting,
    OperatorUids,
    Row,
    Slurmdbd,
    make_row,
    only_root,
)
from slurm_banking.slurm.commands import Runner

__all__ = ("ENDED_STATES", "Accounting", "OperatorUids", "Sacct", "only_root")

MAX_OUTPUT_BYTES = 1024 * 1024 * 1024
TIMEOUT_S = 180.0

#: Slurm's states of a run that is over; "RS" only marks the segments of one that was resized.
ENDED_STATES = "BF,CA,CD,DL,F,NF,OOM,PR,RQ,RV,TO"

_FIELDS = (
    "JobIDRaw",
    "JobID",
    "UID",
    "User",
    "Account",
    "Partition",
    "QOS",
    "State",
    "Submit",
    "Start",
    "End",
    "ElapsedRaw",
    "AllocCPUS",
    "AllocNodes",
    "AllocTRES",
    "NodeList",
    "TimelimitRaw",
)
#: Newer releases have it.
_RESTARTS = "Restarts"
_LAST_FIELD = "AdminComment"

_CANCELLED_BY = "CANCELLED by "


class Sacct(Slurmdbd):
    """sacct of one cluster, its columns. ``operators``: whose cancellations of others' jobs are the system's."""

    def __init__(
        self, cluster: str, *, run: Runner = commands.run, operators: OperatorUids = only_root
    ) -> None:
        super().__init__(cluster, operators=operators)
        self._run = run
        self._fields: Tuple[str, ...] = ()

    def _rows_ended(self, since: int, until: int) -> List[Row]:
        arguments = ["--state", ENDED_STATES, "--starttime", time_text(since)]
        # sacct's end is inclusive and its clock starts where ours may not have got to.
        return self._read([*arguments, "--endtime", time_text(until + 1)])

    def _rows_overlapping(self, since: int, until: int) -> List[Row]:
        return self._read(["--starttime", time_text(since), "--endtime", time_text(until)])

    def _rows_of(self, job_ids: Sequence[int]) -> List[Row]:
        wanted = ",".join(str(job_id) for job_id in job_ids)
        return self._read(["--jobs", wanted, "--starttime", time_text(86400)])

    def _read(self, arguments: Sequence[str]) -> List[Row]:
        fields = self._known_fields()
        separator = f"~{os.urandom(6).hex()}s"
        output = self._run(
            ["sacct", "--allusers", "--allocations", "--duplicates", "--noheader", "--parsable"]
            + ["--noconvert"]
            + [f"--delimiter={separator}", f"--format={','.join(fields)}", *arguments],
            timeout_s=TIMEOUT_S,
            max_bytes=MAX_OUTPUT_BYTES,
        )
        operators = self._operators() if _CANCELLED_BY in output else ()
        return parse_rows(output, self.cluster, fields, separator, operators)

    def _known_fields(self) -> Tuple[str, ...]:
        """What this sacct is asked for; looked up once."""
        if not self._fields:
            known = self._run(["sacct", "--helpformat"]).split()
            restarts = (_RESTARTS,) if _RESTARTS in known else ()
            self._fields = (*_FIELDS, *restarts, _LAST_FIELD)
        return self._fields


def parse_rows(
    output: str,
    cluster: str,
    fields: Sequence[str],
    separator: str,
    operators: Collection[int] = (0,),
) -> List[Row]:
    """:raises SlurmUnavailable: a row is not as expected; nothing of such an answer is used."""
    rows = []
    at = 0
    while True:
        values = []
        for _ in fields:
            end = output.find(separator, at)
            if end < 0:
                break
            values.append(output[at:end])
            at = end + len(separator)
        if len(values) < len(fields):
            if values or output[at:].strip():
                raise SlurmUnavailable("sacct: the answer ends inside a row")
            break
        row = dict(zip(fields, values))
        row[fields[0]] = row[fields[0]].lstrip("\n")
        try:
            rows.append(_row(row, cluster, operators))
        except ValueError as error:
            raise SlurmUnavailable(f"sacct: row {len(rows) + 1}: {error}") from None
    return rows


def _row(row: Mapping[str, str], cluster: str, operators: Collection[int]) -> Row:
    state, _, by = row["State"].partition(" by ")
    array_job_id, array_task_id, het_job_id = _kinship(row["JobID"])
    limit = row["TimelimitRaw"]
    return make_row(
        cluster=cluster,
        operators=operators,
        job_id=_number(row["JobIDRaw"]),
        submit_time=commands.parse_time(row["Submit"]),
        start_time=commands.parse_time(row["Start"]),
        end_time=commands.parse_time(row["End"]),
        elapsed_s=_number(row["ElapsedRaw"]),
        state=state.split(" ")[0],
        ended_by=int(by) if by.isascii() and by.isdigit() and len(by) <= 10 else None,
        user_id=_number(row["UID"]),
        user_name=row["User"],
        account=row["Account"],
        partition=row["Partition"],
        qos=row["QOS"],
        cpus=_number(row["AllocCPUS"]),
        node_count=_number(row["AllocNodes"]),
        nodes=row["NodeList"],
        tres=row["AllocTRES"],
        time_limit_min=None if limit == "Partition_Limit" else _limit(limit),
        array_job_id=array_job_id,
        array_task_id=array_task_id,
        het_job_id=het_job_id,
        restart_count=_number(row.get(_RESTARTS, "") or str(UNKNOWN_RESTART)),
        admin_comment=row[_LAST_FIELD],
    )


def _kinship(job_id: str) -> Tuple[Optional[int], Optional[int], Optional[int]]:
    """(array job, array task, het job) of sacct's ``JobID``: ``12``, ``12_3``, ``12_[4-9]``, ``12+1``."""
    if "_" in job_id:
        job, _, task = job_id.partition("_")
        return _number(job), _number(task) if task.isdigit() else None, None
    if "+" in job_id:
        return None, None, _number(job_id.partition("+")[0])
    return None, None, None


def _number(value: str) -> int:
    digits = value[1:] if value.startswith("-") else value
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise ValueError(f"{value[:40]!r} is not a number")
    return int(value)


def _limit(value: str) -> Optional[int]:
    """TimelimitRaw: minutes."""
    if value.isascii() and value.isdigit() and len(value) <= 10:
        return int(value)
    return commands.parse_minutes(value)


def time_text(unix_s: int) -> str:
    """As sacct reads it, its TZ being UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(max(unix_s, 0)))
