# SPDX-License-Identifier: BSD-3-Clause
"""What slurmdbd holds about jobs, through ``sacct --json``; see :mod:`slurm_banking.slurm.json_rows`.

The columns (:mod:`slurm_banking.slurm.sacct`) are faster, and tell uids; this is for sites where they are not to be had.
"""

from __future__ import annotations

from typing import Iterator, List, Optional, Sequence

from slurm_banking.errors import SlurmUnavailable
from slurm_banking.slurm import commands
from slurm_banking.slurm.accounting import OperatorUids, Row, Slurmdbd, only_root
from slurm_banking.slurm.commands import Runner
from slurm_banking.slurm.json_rows import Pieces, Uids, read_rows
from slurm_banking.slurm.rest.flatten import EMPTY_RESULT
from slurm_banking.slurm.sacct import ENDED_STATES, MAX_OUTPUT_BYTES, TIMEOUT_S, time_text

#: sacct hands its times on as text, in this form, and reads them again: so that no time zone comes between.
_TIMES = {"SLURM_TIME_FORMAT": "uts%s"}


class SacctJson(Slurmdbd):
    """``sacct --json`` of one cluster. ``uids``: of users' names; None: this host's."""

    def __init__(
        self,
        cluster: str,
        *,
        run: Runner = commands.run,
        operators: OperatorUids = only_root,
        uids: Optional[Uids] = None,
    ) -> None:
        super().__init__(cluster, operators=operators)
        self._run = run
        self._uids = uids or Uids()
        self._pieces = Pieces()

    def _rows_ended(self, since: int, until: int) -> Iterator[Row]:
        return self._pieces.read(since, until, self._ended)

    def _ended(self, since: int, until: int) -> List[Row]:
        arguments = ["--state", ENDED_STATES, "--starttime", time_text(since)]
        return self._read([*arguments, "--endtime", time_text(until + 1)])

    def _rows_overlapping(self, since: int, until: int) -> List[Row]:
        return self._read(["--starttime", time_text(since), "--endtime", time_text(until)])

    def _rows_of(self, job_ids: Sequence[int]) -> List[Row]:
        return self._read(["--jobs", ",".join(str(job_id) for job_id in job_ids)])

    def _read(self, arguments: Sequence[str]) -> List[Row]:
        output = self._run(
            ["sacct", "--json", "--allusers", "--allocations", "--duplicates", *arguments],
            timeout_s=TIMEOUT_S,
            max_bytes=MAX_OUTPUT_BYTES,
            extra_env=_TIMES,
        )
        rows, problems = read_rows(
            output,
            cluster=self.cluster,
            operators=self._operators,
            uids=self._uids,
            source="sacct --json",
        )
        serious = [problem for problem in problems if problem.code != EMPTY_RESULT]
        if serious:
            raise SlurmUnavailable(f"sacct --json: {'; '.join(map(str, serious))}")
        return rows
