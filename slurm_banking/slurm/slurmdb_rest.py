# SPDX-License-Identifier: BSD-3-Clause
"""What slurmdbd holds about jobs, through slurmrestd; see :mod:`slurm_banking.slurm.json_rows`.

The token's user must be shown all jobs: with PrivateData=jobs or users that is root, SlurmUser, or an operator. slurmrestd
of 22.05 cannot be asked for requeued rows by their state; so a window is asked for by time alone, which also gives what
only overlaps it. That leaves out what never became eligible (cancelled while held), which is asked for by its states.

Who names one flag (skip_steps), from v0.0.39 on, has to name them all: else slurmdbd leaves out earlier runs of a requeued
job, and cuts times down to the window; and, up to 24.05.3, whatever the scheduler has marked.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from slurm_banking.slurm.accounting import OperatorUids, Row, Slurmdbd, only_root
from slurm_banking.slurm.json_rows import Pieces, Uids, read_rows
from slurm_banking.slurm.rest.client import SLURMDB, SlurmrestdClient
from slurm_banking.slurm.sacct import MAX_OUTPUT_BYTES

_PATH = "slurmdb/jobs"

#: Seconds for one answer, at least: 3,000 rows take some five on a slow machine.
ANSWER_S = 60.0

#: Of jobs that may never have been eligible: each query is by time and, for these, by state.
_NEVER_ELIGIBLE = ("CANCELLED", "DEADLINE", "FAILED")

#: The first version whose queries Slurm's new parser reads. Before, skip_steps takes nothing away, and these are not known.
_NEWER = 39
_FLAGS = ("show_duplicates", "disable_truncate_usage_time", "scheduler_unset")

#: Slurm reads "uts" and unix seconds only from here on.
_FIRST_S = 1_000_000


class SlurmdbRest(Slurmdbd):
    """``GET /slurmdb/vX/jobs`` of one cluster. ``uids``: of users' names; None: this host's."""

    def __init__(
        self,
        cluster: str,
        client: SlurmrestdClient,
        *,
        operators: OperatorUids = only_root,
        uids: Optional[Uids] = None,
    ) -> None:
        super().__init__(cluster, operators=operators)
        self._client = client
        self._uids = uids or Uids()
        self._pieces = Pieces()

    def _rows_ended(self, since: int, until: int) -> Iterator[Row]:
        return self._pieces.read(since, until, self._ended)

    def _ended(self, since: int, until: int) -> List[Row]:
        rows = self._read(_window(since, until))
        told = {_key(row) for row in rows}
        others = self._read({**_window(since, until), "state": self._list(_NEVER_ELIGIBLE)})
        return rows + [row for row in others if _key(row) not in told]

    def _rows_overlapping(self, since: int, until: int) -> List[Row]:
        return self._read(_window(since, until))

    def _rows_of(self, job_ids: Sequence[int]) -> List[Row]:
        return self._read({"step": self._list([str(job_id) for job_id in job_ids])})

    def _list(self, words: Sequence[str]) -> Union[str, Tuple[str, ...]]:
        """Words with commas, as every version describes it; but newer ones take them for one, and read a parameter each."""
        return tuple(words) if self._newer() else ",".join(words)

    def _newer(self) -> bool:
        return self._client.minor(SLURMDB) >= _NEWER

    def _read(self, query: Mapping[str, object]) -> List[Row]:
        flags = _FLAGS if self._newer() else ()
        text = self._client.get_text(
            _PATH,
            query={**query, "skip_steps": True, **dict.fromkeys(flags, True)},
            timeout_s=max(self._client.timeout_s, ANSWER_S),
            max_bytes=MAX_OUTPUT_BYTES,
        )
        rows, problems = read_rows(
            text,
            cluster=self.cluster,
            operators=self._operators,
            uids=self._uids,
            source=self._client.address,
        )
        self._client.raise_problems(problems, _PATH)
        return rows


def _window(since: int, until: int) -> Dict[str, str]:
    return {
        "start_time": f"uts{max(since, _FIRST_S)}",
        "end_time": f"uts{max(until, _FIRST_S + 1)}",
    }


def _key(row: Row) -> Tuple[int, int, Optional[int]]:
    return row.run.job_id, row.run.submit_time, row.run.end_time
