# SPDX-License-Identifier: BSD-3-Clause
"""Runaway jobs: slurmdbd believes that they run, slurmctld does not know them. Their end was lost, with slurmctld's state
or on the way.

They are Slurm's to mend: ``sacctmgr show runawayjobs`` shows them and asks whether it shall. That command is not called
here: it makes its changes to slurmdbd's tables first, all usage of the month among them, and keeps them locked while it
asks; and without a terminal it asks without end. What slurmdbd has as running is read with sacct, which changes nothing.

None of them costs anybody anything here. Their liens and runs end as lost (relay/sweep.py); and the end that Slurm makes
up for them is no end:

* ``sacctmgr`` writes one that is the start: nothing is charged for no time;
* slurmctld, started without its state (``-c``), has slurmdbd cancel whatever has no end, now, which may be weeks later:
  see :func:`is_made_up`; or minutes later, see :func:`is_made_up_of_lost`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Tuple

from slurm_banking.errors import SlurmUnavailable
from slurm_banking.records import UNLIMITED, Run
from slurm_banking.slurm import commands
from slurm_banking.slurm.commands import Runner
from slurm_banking.slurm.squeue import QueueSnapshot

COMMAND = "sacctmgr show runawayjobs"

#: Seconds between two looks, and to the second look at what a first one found.
LOOK_S = 1800.0
LOOK_AGAIN_S = 120.0
#: Of a job younger than this slurmdbd and the queue may have heard at different times.
YOUNG_S = 300
#: A job that ends is killed at its limit; what was cancelled this many seconds after it was not there any more.
PAST_LIMIT_S = 3600

TIMEOUT_S = 60.0
MAX_OUTPUT_BYTES = 16 * 1024 * 1024

#: The states of an end that is made up.
_MADE_UP = ("CANCELLED", "NODE_FAIL")

_FIELDS = ("JobIDRaw", "Submit", "Start", "State")

Key = Tuple[int, int]  #: job id, submit time


def is_made_up(row: Run) -> bool:
    """Whether the end that slurmdbd has of a run was written by Slurm for want of the real one, long after it.

    By how it was cancelled, and when: later than its limit allows it to have run.
    """
    if row.state not in _MADE_UP or row.time_limit_min in (None, UNLIMITED):
        return False
    assert row.time_limit_min is not None
    return row.elapsed_s > row.time_limit_min * 60 + PAST_LIMIT_S


def is_made_up_of_lost(row: Run, lost_at: Optional[int]) -> bool:
    """The same of a run that was taken for lost here at ``lost_at`` (unix seconds; None: not known, or it was not).

    slurmctld did not have it any more then. If it is cancelled later, that is for want of its end.
    """
    return (
        lost_at is not None
        and row.state in _MADE_UP
        and row.end_time is not None
        and row.end_time > lost_at
    )


def is_overdue(start_time: Optional[int], time_limit_min: Optional[int], now: float) -> bool:
    """Whether a run must have ended a day ago by its limit."""
    if start_time is None or time_limit_min in (None, UNLIMITED):
        return False
    assert time_limit_min is not None
    return start_time + time_limit_min * 60 + 86400 < now


def read_open(run: Runner = commands.run) -> FrozenSet[Tuple[int, int, int]]:
    """(job id, submit time, start time) of what slurmdbd has as running or suspended now.

    :raises SlurmUnavailable: slurmdbd cannot be asked.
    """
    output = run(
        [
            "sacct",
            "--allusers",
            "--allocations",
            "--duplicates",
            "--noheader",
            "--parsable2",
            "--state=R,S",
            "--starttime=now",
            "--endtime=now",
            f"--format={','.join(_FIELDS)}",
        ],
        timeout_s=TIMEOUT_S,
        max_bytes=MAX_OUTPUT_BYTES,
    )
    found = set()
    for line in output.splitlines():
        cells = line.split("|")
        try:
            job_id, submit, start, state = cells
            if state not in ("RUNNING", "SUSPENDED"):
                continue
            found.add(
                (int(job_id), commands.parse_time(submit) or 0, commands.parse_time(start) or 0)
            )
        except ValueError:
            raise SlurmUnavailable(f"sacct: a row is not as expected: {line[:80]!r}") from None
    return frozenset(found)


@dataclass(frozen=True)
class Runaway:
    """Jobs that two looks found so, by job id, and the start of the one that began first (unix seconds)."""

    job_ids: Tuple[int, ...]
    oldest: int

    def hint(self) -> str:
        shown = ", ".join(str(job_id) for job_id in self.job_ids[:5])
        more = "" if len(self.job_ids) <= 5 else f" and {len(self.job_ids) - 5} more"
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.oldest))
        jobs = "1 job" if len(self.job_ids) == 1 else f"{len(self.job_ids)} jobs"
        return (
            f"slurmdbd has {jobs} as running that Slurm does not have ({shown}{more}; since {since}); nobody is charged for "
            f"them, but Slurm's own usage is wrong until an administrator runs: {COMMAND}"
        )

    def as_dict(self) -> Dict[str, Any]:
        return {"jobs": list(self.job_ids[:100]), "count": len(self.job_ids), "oldest": self.oldest}


class Watch:
    """Looks now and then, twice before it says anything."""

    def __init__(self, run: Runner = commands.run) -> None:
        self._run = run
        self._before: FrozenSet[Key] = frozenset()
        self.found: Optional[Runaway] = None

    def look(self, snapshot: QueueSnapshot, now: float) -> float:
        """``snapshot``: of the queue, a moment ago. Seconds until the next look.

        A queue that does not show all jobs tells nothing.

        :raises SlurmUnavailable: slurmdbd cannot be asked; what was found before stays.
        """
        if not snapshot.complete:
            return LOOK_S
        # A job id may have been used before; a resize makes a row that was submitted later.
        shown: Dict[int, int] = {}
        for job in snapshot.jobs:
            shown[job.job_id] = min(job.submit_time, shown.get(job.job_id, job.submit_time))
        candidates: List[Tuple[int, int, int]] = [
            (start, job_id, submit)
            for job_id, submit, start in read_open(self._run)
            if (job_id not in shown or submit < shown[job_id])
            and 0 < start < min(snapshot.taken_at, now) - YOUNG_S
        ]
        seen_twice = sorted(
            (start, job_id)
            for start, job_id, submit in candidates
            if (job_id, submit) in self._before
        )
        self._before = frozenset((job_id, submit) for _, job_id, submit in candidates)
        self.found = _found(seen_twice)
        return LOOK_AGAIN_S if len(self._before) > len(seen_twice) else LOOK_S


def _found(jobs: Sequence[Tuple[int, int]]) -> Optional[Runaway]:
    if not jobs:
        return None
    return Runaway(job_ids=tuple(job_id for _, job_id in jobs), oldest=jobs[0][0])
