# SPDX-License-Identifier: BSD-3-Clause
"""After everything came back: do ledger, bank and slurmdbd have the same runs at the same cost, each once?

Nothing of slurm_banking computes here: what a run should have cost is `plain_charge`'s word, from sacct's figures. Where killed
daemons lost a record, slurmctld's log and the notes that every job writes for itself are the second witness; each such run is
an exception with its reason, and what no witness explains is drift.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.fidelity import plain_charge
from tests.fidelity.judge import start_is_lost
from tests.fidelity.plain_charge import Row

#: Seconds by which a job's own note, or a line of slurmctld's log, may differ from what Slurm wrote down: the time that a start
#: or an end takes on a busy machine, and a daemon that was stopped meanwhile.
NEAR_S = 15

#: Where two ends of one run are weighed against each other.
TIGHT_S = 2

#: Of all runs: those whose record a killed daemon lost.
MOST_EXCEPTIONS_SHARE = 0.005

#: Why a run may differ from slurmdbd's figures. Each is checked on the run, not taken on trust.
NO_START = "slurmdbd has no start of it"
NO_END = "slurmdbd has no end of it"
NO_RECORD = "slurmdbd has no record of it"
LOST_BY_SLURM = "slurmctld lost it, and slurmdbd has no end of it"
ONLY_AT_BANK = (
    "the ledger was lost, and slurmdbd has no record of it, or not its comment, to rebuild it from"
)
OTHER_TIMES = "slurmdbd has other times than slurmctld's log and the job itself"
#: slurmctld took it for waiting when it came back, and told slurmdbd so at the next restart.
NO_CPUS = "slurmdbd has its times, and no longer what was allocated to it"
REQUEUED_LATER = "it was requeued after its end, and slurmdbd has moved the end to then"
REASONS = (
    NO_START, NO_END, NO_RECORD, LOST_BY_SLURM, ONLY_AT_BANK, OTHER_TIMES, NO_CPUS, REQUEUED_LATER,
)  # fmt: skip

#: A restart count below is a number that the ledger gave to a run whose key is another's.
NOT_TOLD = -1

#: The state of a run that slurmctld does not know any more, and of which nobody told the end.
LOST_STATE = "LOST"

Key = tuple[int, int]  #: job id, submit time
Holder = tuple[str, int]  #: account, user id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """What a job wrote of itself."""

    kind: str  #: "start" or "end"
    job_id: int
    restart: int
    at: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Held:
    """The most that counted against an account at one moment: charges, and what was set aside for its jobs."""

    account: str
    most_csu: int
    awarded_csu: int
    of_slurm_csu: int  #: of it, what Slurm itself decided on: the runs of requeued jobs


@dataclasses.dataclass(kw_only=True)
class Books:
    """What was read, when all was quiet."""

    rows: Sequence[Row]
    runs: Sequence[Mapping[str, Any]]
    liens: Sequence[Mapping[str, Any]]  #: of those that are open, and not, what `report.read` keeps
    #: Of each lien's and run's entries: how many charges and starts, by job, submit time and restart count.
    told: Sequence[Mapping[str, Any]]
    #: (account, user_id) → sum of all entries.
    entry_sums: Mapping[Holder, int]
    outbox: Sequence[Mapping[str, Any]]
    checks: Sequence[str]  #: what Transaction.check() says
    bank_jobs: Sequence[Mapping[str, Any]]
    #: (account, user_id) → what the bank's allocations count as used.
    bank_used: Mapping[Holder, int]
    prices: Mapping[str, Any]
    slurmctld_log: str = ""
    notes: Sequence[Note] = ()
    held: Sequence[Held] = ()
    #: Liens that expired, though a job of Slurm carries their token, and no other lien was opened for it.
    expired: Sequence[Mapping[str, Any]] = ()
    live: Sequence[str] = ()  #: what squeue still shows
    #: Of runs that `rows` does not have: slurmdbd never got their start, and has their times alone.
    partial: Sequence[Row] = ()
    #: What was submitted: (job id, unix seconds, CPUs of each task, partition).
    asked: Sequence[Sequence[Any]] = ()
    #: Whether a fault took from slurmctld or slurmdbd what they had not told or written yet.
    daemons_lost: bool = True
    ledger_lost: bool = False  #: whether it was rebuilt from what the others have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    job_id: int
    submit_time: int
    reason: str
    text: str


@dataclasses.dataclass(kw_only=True)
class Verdict:
    runs: int = 0  #: that were charged, by any of the books
    lost: list[str] = dataclasses.field(default_factory=list)
    doubled: list[str] = dataclasses.field(default_factory=list)
    open_liens: list[str] = dataclasses.field(default_factory=list)
    drift: list[str] = dataclasses.field(default_factory=list)
    drift_csu: int = 0
    #: Liens that ended though their jobs were there.
    ended_wrongly: list[str] = dataclasses.field(default_factory=list)
    overdraft_csu: int = 0
    overdrafts: list[str] = dataclasses.field(default_factory=list)
    exceptions: list[Explained] = dataclasses.field(default_factory=list)
    #: Runs, in the ledger or after its loss at the bank alone, of which slurmdbd has the times alone, and which agree to the
    #: hundredth with the CPUs and the partition asked for.
    completed: int = 0
    #: Deliveries that wait, and what the ledger's own check says.
    unsettled: list[str] = dataclasses.field(default_factory=list)

    @property
    def exception_counts(self) -> dict[str, int]:
        return dict(Counter(one.reason for one in self.exceptions))

    @property
    def too_many_exceptions(self) -> bool:
        return len(self.exceptions) > MOST_EXCEPTIONS_SHARE * self.runs

    @property
    def good(self) -> bool:
        """But for the share of exceptions, which counts over many schedules."""
        return not (
            self.lost
            or self.doubled
            or self.open_liens
            or self.drift
            or self.drift_csu
            or self.ended_wrongly
            or self.overdraft_csu
            or self.unsettled
        )

    def lines(self) -> list[str]:
        found = []
        for name in (
            "lost",
            "doubled",
            "open_liens",
            "ended_wrongly",
            "drift",
            "overdrafts",
            "unsettled",
        ):
            found += [f"{name}: {line}" for line in getattr(self, name)]
        return found + [f"exception: {one.reason}: {one.text}" for one in self.exceptions]


def csu(text: int) -> str:
    return f"{text / 100:.2f} SU"


# -- the second witness -------------------------------------------------------------------------------------------------


def notes_of(text: str) -> list[Note]:
    """Lines ``start|end JOBID RESTART SECONDS``; a line that a kill cut short is left out."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"(start|end) (\d+) (\d+) (\d+)", line)
        if match:
            found.append(
                Note(
                    kind=match[1],
                    job_id=int(match[2]),
                    restart=int(match[3]),
                    at=int(match[4]),
                )
            )
    return found


class Witness:
    """When each job was seen to start and to end, by slurmctld's log and by its own notes."""

    def __init__(self, log: str, notes: Iterable[Note]) -> None:
        self.log_starts: dict[int, list[int]] = defaultdict(list)
        self.starts: dict[int, list[int]] = defaultdict(list)
        self.ends: dict[int, list[int]] = defaultdict(list)
        #: job id of a task → job ids of arrays: the id may have been given again
        self.arrays: dict[int, set[int]] = defaultdict(set)
        for told, what, job, task in re.findall(
            r"^\[(\S+?)\] .*?(Allocate |Started |_job_complete: |_slurm_rpc_requeue: |job_signal: |"
            r"_job_requeue[^J]*?|requeue[^J]*?|Requeuing |cleanup_completing: )"
            r"JobId=(\d+)(?:_\d+\((\d+)\))?",
            log,
            re.M,
        ):
            at = int(datetime.datetime.fromisoformat(told).timestamp())
            number = int(task or job)
            if task:
                self.arrays[number].add(int(job))
            if what in ("Allocate ", "Started "):
                self.log_starts[number].append(at)
                self.starts[number].append(at)
            else:
                self.ends[number].append(at)
        self.completions: dict[int, list[int]] = defaultdict(list)
        for told, job, task in re.findall(
            r"^\[(\S+?)\] (?:_job_complete: |Time limit exhausted for )JobId=(\d+)(?:_\d+\((\d+)\))?",
            log,
            re.M,
        ):
            at = int(datetime.datetime.fromisoformat(told).timestamp())
            self.completions[int(task or job)].append(at)
        self.cancels: dict[int, list[int]] = defaultdict(list)
        for told, job in re.findall(
            r"^\[(\S+?)\] _slurm_rpc_kill_job: REQUEST_KILL_JOB JobId=(\d+) ", log, re.M
        ):
            at = int(datetime.datetime.fromisoformat(told).timestamp())
            self.cancels[int(job)].append(at)
        self.flushes = [
            int(datetime.datetime.fromisoformat(told).timestamp())
            for told in re.findall(r"^\[(\S+?)\] Reinitializing job accounting state", log, re.M)
        ]
        for note in notes:
            (self.starts if note.kind == "start" else self.ends)[note.job_id].append(note.at)

    def saw_end(self, job_id: int, end: int) -> bool:
        """Whether somebody saw it end just then."""
        return any(abs(one - end) <= TIGHT_S for one in self.ends.get(job_id, ()))

    def flushed(self, at: int) -> bool:
        """Whether slurmctld, without its state, then had slurmdbd end whatever went on there."""
        return any(abs(one - at) <= TIGHT_S for one in self.flushes)

    def saw(self, job_id: int, start: int | None, end: int | None) -> bool:
        """Whether somebody saw it start then (or was not asked), and end then."""
        return (start is None or _near(self.starts.get(job_id, ()), start)) and (
            end is None or _near(self.ends.get(job_id, ()), end)
        )


def base_id(name: str) -> int:
    """The job id in the bank's name of a run, or in sacct's JobID."""
    return int(re.split(r"[-_+]", name)[0])


def _near(seen: Iterable[int], at: int) -> bool:
    return any(abs(one - at) <= NEAR_S for one in seen)


# -- judging ------------------------------------------------------------------------------------------------------------


class Judge:
    def __init__(self, books: Books) -> None:
        self.books = books
        self.witness = Witness(books.slurmctld_log, books.notes)
        self.verdict = Verdict()
        #: What a run should have cost, once exceptions are settled.
        self._expected: dict[Key, int] = plain_charge.charges(books.rows, books.prices)
        self._rows: dict[Key, Row] = {
            (int(row["JobIDRaw"]), int(row["Submit"])): row for row in books.rows
        }
        self._partial: dict[Key, Row] = {
            (int(row["JobIDRaw"]), int(row["Submit"])): row for row in books.partial
        }
        self._asked: dict[int, list[Sequence[Any]]] = defaultdict(list)
        for asked in books.asked:
            self._asked[asked[0]].append(asked)
        self._ours: dict[Key, Mapping[str, Any]] = {}
        #: Runs whose key slurmctld gave to another user's job: slurmdbd has that one alone.
        self._made_way: list[Mapping[str, Any]] = []
        self._only_at_bank: Counter[Holder] = Counter()

    def judge(self) -> Verdict:
        verdict = self.verdict
        self._index()
        self._pair()
        self._sacct()
        self._keys_given_again()
        self._bank()
        self._sums()
        self._liens()
        self._overdraft()
        verdict.runs = len({key for key, cost in self._expected.items()} | set(self._ours))
        verdict.runs += len(self._made_way)
        verdict.unsettled += [
            f"job {row['job_id']}: its {row['phase']} waits for the bank"
            for row in self.books.outbox
        ]
        verdict.unsettled += list(self.books.checks)
        verdict.unsettled += [f"squeue still shows {job}" for job in self.books.live]
        return verdict

    # -- the ledger by itself ---------------------------------------------------------------------------------------

    def _index(self) -> None:
        by_job: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for run in self.books.runs:
            if run["state"] == "running":
                self.verdict.open_liens.append(
                    f"job {run['job_id']} submitted {run['submit_time']} goes on in the ledger, with {csu(run['ledger_csu'])}"
                )
                continue
            key = run["job_id"], run["submit_time"]
            if run["restart_count"] < NOT_TOLD:
                self._made_way.append(run)
                continue
            before = self._ours.get(key)
            if before is not None and before["charge_csu"] and run["charge_csu"]:
                self.verdict.doubled.append(
                    f"job {key[0]} submitted {key[1]}: two runs, both charged"
                )
            if before is None or run["charge_csu"]:
                self._ours[key] = run
            if run["charge_csu"]:
                by_job[run["job_id"]].append(run)
        for job_id, runs in by_job.items():
            runs.sort(key=lambda run: (run["start_time"] or 0, run["end_time"] or 0))
            for one, other in zip(runs, runs[1:], strict=False):
                if (other["start_time"] or 0) < (one["end_time"] or 0):
                    self.verdict.doubled.append(
                        f"job {job_id}: charged from {one['start_time']} to {one['end_time']} and again from"
                        f" {other['start_time']} to {other['end_time']}"
                    )
        for told in self.books.told:
            if told["charges"] > max(1, told["starts"]):
                self.verdict.doubled.append(
                    f"job {told['job_id']} submitted {told['submit_time']}: {told['charges']} entries charge it"
                )

    # -- against slurmdbd ---------------------------------------------------------------------------------------------

    def _pair(self) -> None:
        """A run whose submit time slurmdbd has otherwise is known by its start."""
        ours, plain = set(self._ours), set(self._expected)
        unpaired: dict[tuple[int, str], Key] = {
            (key[0], self._rows[key]["Start"]): key for key in plain - ours if key in self._rows
        }
        for key in sorted(ours - plain):
            other = unpaired.pop((key[0], str(self._ours[key]["start_time"])), None)
            if other is not None:
                self._expected[key] = self._expected.pop(other)
                self._rows[key] = self._rows.pop(other)

    def _sacct(self) -> None:
        for key in sorted(set(self._expected) | set(self._ours)):
            run = self._ours.get(key)
            mine = None if run is None else int(run["charge_csu"] or 0)
            expected = self._expected.get(key)
            if run is not None and run["slurm_state"] == LOST_STATE and expected is None:
                self._except(key, run, LOST_BY_SLURM)
                continue
            if (
                mine == expected
                or (expected is None and mine == 0)
                or (mine is None and expected == 0)
            ):
                continue
            if (
                run is not None
                and expected is None
                and self._completes(key, run["user_id"], mine or 0)
            ):
                self.verdict.completed += 1
                self._expected[key] = mine or 0
                continue
            reason = self._reason(key, run, expected)
            if reason:
                self._except(key, run, reason)
                self._expected[key] = mine or 0
            elif mine is None and self._bank_has(key, expected or 0):
                continue  # told where the bank is compared
            elif mine is None:
                self.verdict.lost.append(f"not in the ledger: {self._text(key, run)}")
            else:
                self.verdict.drift.append(self._text(key, run))

    def _keys_given_again(self) -> None:
        """A run whose key is another's, which began later: by the other witnesses, like any that slurmdbd has no record of."""
        for run in self._made_way:
            key = run["job_id"], run["submit_time"]
            other = self._ours.get(key)
            later = (
                other is not None
                and other["user_id"] != run["user_id"]
                and other["start_time"] > run["start_time"]
            )
            if later and run["slurm_state"] == LOST_STATE and not run["charge_csu"]:
                self._except(key, run, LOST_BY_SLURM)
            elif (
                later
                and self.books.daemons_lost
                and self.witness.saw(run["job_id"], run["start_time"], run["end_time"])
                and self._recomputed(run) == run["charge_csu"]
            ):
                self._except(key, run, NO_RECORD)
            else:
                self.verdict.drift.append(self._text(key, run))

    def _except(self, key: Key, run: Mapping[str, Any] | None, reason: str) -> None:
        self.verdict.exceptions.append(
            Explained(job_id=key[0], submit_time=key[1], reason=reason, text=self._text(key, run))
        )

    def _text(self, key: Key, run: Mapping[str, Any] | None) -> str:
        row = self._rows.get(key)
        by_sacct = "no record"
        if row is not None:
            cost = self._expected.get(key)
            by_sacct = f"{'no cost' if cost is None else csu(cost)} ({row['State']} {row['Start']}-{row['End']} {row['AllocTRES']})"
        ours = "nothing"
        if run is not None:
            ours = (
                f"{csu(run['charge_csu'] or 0)} ({run['slurm_state']} {run['start_time']}-{run['end_time']}, {run['cpus']} CPUs,"
                f" {run['source']})"
            )
        return f"job {key[0]} submitted {key[1]}: ledger {ours}; sacct {by_sacct}"

    def _reason(self, key: Key, run: Mapping[str, Any] | None, expected: int | None) -> str:
        """Why it differs, if a second witness says so; "" if none does."""
        row = self._rows.get(key)
        if run is None:
            return ""
        if row is not None and self._was_requeued_after_its_end(run, row):
            return REQUEUED_LATER if self._recomputed(run) == run["charge_csu"] else ""
        if not self.books.daemons_lost:
            return ""
        if row is not None and start_is_lost(row):
            seen = self._as_witnessed(run["job_id"], row, run["charge_csu"])
            return NO_START if seen else ""
        if row is not None and "cpu=" not in row["AllocTRES"]:
            if self._costs_as_asked(key, row, run["user_id"], run["charge_csu"]):
                return NO_CPUS
        start, end = run["start_time"], run["end_time"]
        if row is not None and self._was_lost_before(run, row):
            return LOST_BY_SLURM
        if row is not None and self._was_cancelled_while_it_ran(run, row):
            return OTHER_TIMES if self._recomputed(run) == run["charge_csu"] else ""
        if not self.witness.saw(run["job_id"], start, end):
            return ""
        if self._recomputed(run) != run["charge_csu"]:
            return ""
        if row is None:
            return NO_RECORD
        if not row["End"].isdigit() or not row["Start"].isdigit():
            return NO_END
        if (str(start), str(end)) != (row["Start"], row["End"]):
            # Only what nobody else saw either may be slurmdbd's mistake.
            alike = self.witness.saw_end(run["job_id"], int(row["End"]))
            if row["State"] == "CANCELLED" and self.witness.flushed(int(row["End"])):
                alike = False
            return OTHER_TIMES if self.witness.saw_end(run["job_id"], end) and not alike else ""
        return ""

    def _was_requeued_after_its_end(self, run: Mapping[str, Any], row: Row) -> bool:
        """Slurm does that to a job that has ended, and tells its run once more, as if it had gone on until then."""
        completions = self.witness.completions[run["job_id"]]
        return (
            row["State"] == "REQUEUED" != run["slurm_state"]
            and row["Start"] == str(run["start_time"])
            and int(row["End"]) > run["end_time"]
            and any(abs(one - run["end_time"]) <= 1 for one in completions)
            and self.witness.saw_end(run["job_id"], int(row["End"]))
        )

    def _was_cancelled_while_it_ran(self, run: Mapping[str, Any], row: Row) -> bool:
        """slurmctld was killed before it had saved the start, and took it for waiting when its user cancelled it.

        For a moment slurmdbd has it from its start to then, and afterwards as over before it began.
        """
        start, end = run["start_time"], str(run["end_time"])
        return row["Start"] == row["End"] == end and (
            start < run["end_time"]
            and any(abs(one - start) <= TIGHT_S for one in self.witness.log_starts[run["job_id"]])
            and any(abs(one - int(end)) <= TIGHT_S for one in self.witness.cancels[run["job_id"]])
        )

    def _completes(self, key: Key, user_id: int, csu: int) -> bool:
        """By slurmdbd's times and what its user asked for: the same, to the hundredth?"""
        row = self._partial.get(key)
        return row is not None and self._costs_as_asked(key, row, user_id, csu)

    def _costs_as_asked(self, key: Key, row: Row, user_id: int, csu: int) -> bool:
        """By a row's times, and the CPUs and the partition that its user asked for, for its array if it is a task.

        A row that is not whole does not say of which array it is; slurmctld's log does.
        """
        if not (row["Start"].isdigit() and row["End"].isdigit()):
            return False
        for job in {key[0], base_id(row["JobID"]), *self.witness.arrays.get(key[0], ())}:
            for _, at, cpus, partition in self._asked.get(job, ()):
                if abs(at - key[1]) > NEAR_S:
                    continue
                seconds = int(row["End"]) - int(row["Start"])
                whole = {
                    **row,
                    "Partition": partition,
                    "QOS": "normal",
                    "UID": str(user_id),
                    "ElapsedRaw": str(seconds),
                    "AllocTRES": f"cpu={cpus}",
                }
                if plain_charge.charge([whole], self.books.prices) == csu:
                    return True
        return False

    def _was_lost_before(self, run: Mapping[str, Any], row: Row) -> bool:
        """slurmctld, which knew nothing of it, came back without its state, and had slurmdbd end it; nobody saw it end then."""
        return (
            run["slurm_state"] == LOST_STATE
            and not run["charge_csu"]
            and row["State"] == "CANCELLED"
            and row["End"].isdigit()
            and self.witness.flushed(int(row["End"]))
            and not self.witness.saw_end(run["job_id"], int(row["End"]))
        )

    def _as_witnessed(self, job_id: int, row: Row, csu: int | None) -> bool:
        """By the start that slurmctld logged, to the hundredth (or a second beside: the log's clock ticks by itself)."""
        for at in self.witness.log_starts.get(job_id, ()):
            for start in (at - 1, at, at + 1):
                seconds = int(row["End"]) - start
                whole = {**row, "Start": str(start), "ElapsedRaw": str(seconds)}
                if seconds >= 0 and plain_charge.charge([whole], self.books.prices) == csu:
                    return True
        return False

    def _recomputed(self, run: Mapping[str, Any]) -> int:
        """Its cost by its own times and CPUs: of a run that slurmdbd does not have whole."""
        row = {
            "JobIDRaw": str(run["job_id"]),
            "Submit": str(run["submit_time"]),
            "Start": str(run["start_time"]),
            "End": str(run["end_time"]),
            "UID": str(run["user_id"]),
            "Partition": run["partition"],
            "QOS": run["qos"] or "",
            "State": run["slurm_state"],
            "ElapsedRaw": str((run["end_time"] or 0) - (run["start_time"] or 0)),
            "Suspended": "00:00:00",
            "AllocTRES": f"cpu={run['cpus']}",
        }
        return plain_charge.charge([row], self.books.prices)

    # -- against the bank ---------------------------------------------------------------------------------------------

    def _bank(self) -> None:
        at_bank = {row["jobslurmid"]: row for row in self.books.bank_jobs}
        held: Counter[str] = Counter()
        for run in self.books.runs:
            name = run["bank_job_id"]
            if name is not None:
                held[name] += 1
            if run["state"] == "running":
                continue
            row = at_bank.get(name)
            charged = run["charge_csu"] or 0
            what = f"job {run['job_id']} submitted {run['submit_time']}"
            if row is None:
                if charged:
                    why = f" ({run['parked']})" if run["parked"] else ""
                    self.verdict.lost.append(f"not at the bank: {what}, {csu(charged)}{why}")
                continue
            if (row["user_id"], row["account"]) != (run["user_id"], run["account"]):
                self.verdict.drift.append(
                    f"{what}: at the bank it is {row['user_id']}'s in {row['account']}"
                )
            if row["submit_time"] != run["submit_time"]:
                self.verdict.drift.append(
                    f"{what}: the bank's {name} was submitted {row['submit_time']}"
                )
            if row["amount_csu"] != charged or row["counted_csu"] != charged:
                self.verdict.drift.append(
                    f"{what}: charged {csu(charged)}, the bank has {csu(row['amount_csu'])} and counts {csu(row['counted_csu'])}"
                )
        for name, count in held.items():
            if count > 1:
                self.verdict.doubled.append(
                    f"the bank's {name} stands for {count} runs of the ledger"
                )
        keys = {(run["job_id"], run["submit_time"]) for run in self.books.runs}
        for name, row in at_bank.items():
            if name in held:
                continue
            base = base_id(name)
            if (base, row["submit_time"]) in keys:
                if row["counted_csu"]:
                    self.verdict.doubled.append(
                        f"the bank's {name}, {csu(row['counted_csu'])}, is of a run that it has under another name"
                    )
            elif row["counted_csu"] and self._lost_with_the_ledger(base, row):
                self._only_at_bank[row["account"], row["user_id"]] += row["counted_csu"]
                self._expected.pop((base, row["submit_time"]), None)
                if self._completes((base, row["submit_time"]), row["user_id"], row["counted_csu"]):
                    self.verdict.completed += 1
                    continue
                self.verdict.exceptions.append(
                    Explained(
                        job_id=base,
                        submit_time=row["submit_time"],
                        reason=ONLY_AT_BANK,
                        text=f"the bank's {name}, {csu(row['counted_csu'])}",
                    )
                )
            elif row["counted_csu"]:
                self.verdict.lost.append(f"only at the bank: {name}, {csu(row['counted_csu'])}")

    def _bank_has(self, key: Key, cost: int) -> bool:
        return self.books.ledger_lost and any(
            row["submit_time"] == key[1]
            and row["counted_csu"] == cost
            and base_id(row["jobslurmid"]) == key[0]
            for row in self.books.bank_jobs
        )

    def _lost_with_the_ledger(self, job_id: int, row: Mapping[str, Any]) -> bool:
        """Where slurmctld never told slurmdbd its comment, slurmdbd and the bank agree on what it cost.

        A row without an end is no such run: the relay takes those over, and ends them.
        """
        if not self.books.ledger_lost or row["end_time"] is None:
            return False
        key = job_id, row["submit_time"]
        known = self._rows.get(key)
        if known is not None and start_is_lost(known):
            return self._as_witnessed(job_id, known, int(row["counted_csu"]))
        if known is not None:
            return self._expected.get(key, 0) == int(row["counted_csu"])
        if self._completes(key, row["user_id"], row["counted_csu"]):
            return True
        return self.witness.saw(job_id, row["start_time"], row["end_time"])

    def _sums(self) -> None:
        """Per account and user; what the bank's entries come to is its own word on it."""
        ledger: Counter[Holder] = Counter()
        folded: Counter[Holder] = Counter()
        of_sacct: Counter[Holder] = Counter()
        uid_of = {
            (run["job_id"], run["submit_time"]): run
            for run in self.books.runs
            if run["restart_count"] >= NOT_TOLD
        }
        for run in self._made_way:
            of_sacct[run["account"], run["user_id"]] += run["charge_csu"] or 0
        for run in self.books.runs:
            holder = run["account"], run["user_id"]
            folded[holder] += run["ledger_csu"]
            if run["state"] == "ended":
                ledger[holder] += run["charge_csu"] or 0
        for lien in self.books.liens:
            folded[lien["account"], lien["user_id"]] += lien["amount_csu"]
        for key, cost in self._expected.items():
            row, known = self._rows.get(key), uid_of.get(key)
            if known is not None:
                of_sacct[known["account"], known["user_id"]] += cost
            elif row is not None:
                of_sacct[row["Account"], int(row["UID"])] += cost
        counted: Counter[Holder] = Counter()
        for job in self.books.bank_jobs:
            counted[job["account"], job["user_id"]] += job["counted_csu"]
        for name, sums in (
            ("sacct by our price list", of_sacct),
            ("the bank's jobs", counted - self._only_at_bank),
            ("the bank's usage", Counter(self.books.bank_used) - self._only_at_bank),
        ):
            self._compare(name, ledger, sums)
        self._compare("its entries", folded, Counter(self.books.entry_sums))

    def _compare(self, name: str, ours: Counter[Holder], theirs: Counter[Holder]) -> None:
        for holder in sorted(set(ours) | set(theirs)):
            if ours[holder] != theirs[holder]:
                self.verdict.drift_csu += abs(ours[holder] - theirs[holder])
                self.verdict.drift.append(
                    f"{holder[0]}, user {holder[1]}: the ledger has {csu(ours[holder])}, {name} {csu(theirs[holder])}"
                )

    # -- liens and funds ------------------------------------------------------------------------------------------------

    def _liens(self) -> None:
        for lien in self.books.liens:
            if lien["state"] != "ended":
                self.verdict.open_liens.append(
                    f"lien {lien['lien_id']} of job {lien['job_id']} ({lien['origin']}, {lien['state']}): {csu(lien['amount_csu'])}"
                )

        for lien in self.books.expired:
            self.verdict.ended_wrongly.append(
                f"lien {lien['lien_id']} expired, and job {lien['job_id']} of user {lien['user_id']} has its token"
            )

    def _overdraft(self) -> None:
        """Never more held than was awarded, but for what Slurm itself decided on."""
        for held in self.books.held:
            over = held.most_csu - held.awarded_csu - held.of_slurm_csu
            if over > 0:
                self.verdict.overdraft_csu = max(self.verdict.overdraft_csu, over)
                self.verdict.overdrafts.append(
                    f"{held.account}: {csu(held.most_csu)} held at one moment, of {csu(held.awarded_csu)} and"
                    f" {csu(held.of_slurm_csu)} for runs that Slurm decided on"
                )


def judge(books: Books) -> Verdict:
    return Judge(books).judge()
