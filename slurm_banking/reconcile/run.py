# SPDX-License-Identifier: BSD-3-Clause
"""A period of slurmdbd, ledger and bank, in windows of bounded rows: what each has is compared, nothing is changed.

Of a window, slurmdbd's runs and the ledger's that ended in it are compared by their key, wherever the other has its end.
The bank lists by start: its rows that started in the window are compared with the ledger's runs, and of runs that ended in
the window and whose rows were not among them the row is asked for by its id. What neither slurmdbd nor the ledger explains
is then asked of slurmdbd by job id. Memory is that of one window, whatever the period.

A window in which all agrees and nothing was left out moves ``clean_until`` on, which is written down (:func:`remember`):
what was ended in between goes on from there.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import (
    Any,
    Callable,
    Dict,
    Generic,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Set,
    Tuple,
    TypeVar,
)

from slurm_banking import settle
from slurm_banking.amounts import format_su
from slurm_banking.bank import BankRun, NoListing, Total, Usage
from slurm_banking.config import Config
from slurm_banking.errors import BankError, BankRefused, BankUnavailable
from slurm_banking.ledger import Ledger, LedgerRun, Transaction
from slurm_banking.ledger.glance import RunGlance
from slurm_banking.reconcile import compare
from slurm_banking.reconcile.compare import Prices, RowNames, Rules
from slurm_banking.reconcile.findings import (
    BANK,
    DOUBLED,
    DRIFT,
    KINDS,
    LEDGER,
    MISCHARGED,
    MISSING,
    UNKNOWN,
    WRONG_HOLDER,
    Finding,
)
from slurm_banking.records import Run
from slurm_banking.slurm.sacct import Accounting

#: Rows that a window should have.
WINDOW_ROWS = 10_000
FIRST_WINDOW_S = 86_400
SHORTEST_WINDOW_S = 60
LONGEST_WINDOW_S = 31 * 86_400
#: Runs looked up in one transaction of the ledger.
ROWS_AT_ONCE = 200
#: Job ids that slurmdbd is asked about at once.
JOBS_AT_ONCE = 200
#: Findings kept of one comparison; what is more is counted and summed.
MOST_FINDINGS = 10_000
#: Days before a window of which the bank's rows are listed rather than asked for one by one, if as many are wanted.
LIST_DAY_ROWS = 50
_DAY_S = 86_400
#: What ended less than this ago may be on its way from one to the other.
LAG_S = 600
#: A default period begins this long before the last clean one ended.
OVERLAP_S = 3600
#: Tries of one question to the bank, and the pause before each further one.
_BANK_PAUSES_S = (1.0, 4.0, 10.0)
_MOST_RESTARTS = 8
#: Further tries of a sum that deliveries may be changing.
_DRIFT_TRIES = 2
_DRIFT_PAUSE_S = 0.5

#: What is found in the ledger of a run that should not be there: the bank has it because the ledger does.
_BANK_FOLLOWS = (DOUBLED, UNKNOWN)

FILE_NAME = "reconcile.json"

T = TypeVar("T")


class ComparedBank(Protocol):
    """What a comparison asks; :class:`slurm_banking.bank.Bank`."""

    def list_runs(
        self, *, since: int, until: int, account: Optional[str] = None
    ) -> Iterator[BankRun]: ...

    def row(self, bank_job_id: str) -> Optional[BankRun]: ...

    def find_run(self, run: LedgerRun) -> Optional[BankRun]: ...

    def usage(self, account: str) -> Optional[Usage]: ...

    def total(self, account: str, *, since: int, until: int) -> Total: ...


@dataclass
class Report:
    """What a comparison found, or as far as it got."""

    since: int
    until: int
    account: Optional[str] = None
    findings: List[Finding] = field(default_factory=list)  #: the first :data:`MOST_FINDINGS`
    #: (kind, where) → findings; and (kind, where, account) → hundredths of an SU too much (negative: too little) there
    counts: Dict[Tuple[str, str], int] = field(default_factory=dict)
    sums: Dict[Tuple[str, str, str], int] = field(default_factory=dict)
    runs: int = 0  #: of slurmdbd
    rows: int = 0  #: of the bank
    windows: int = 0
    not_compared: Dict[str, int] = field(default_factory=dict)  #: by compare.WHY_NOT
    not_looked: List[str] = field(default_factory=list)  #: what could not be compared at all
    others_csu: int = 0  #: amounts of the bank's rows under ids that are not this cluster's
    position: int = 0  #: until where everything was compared
    clean_until: int = 0  #: until where everything agrees; ``since`` if nothing does
    stopped: bool = False
    took_s: float = 0.0

    @property
    def found(self) -> int:
        return sum(self.counts.values())

    @property
    def clean(self) -> bool:
        """Whether it was compared to its end, and agrees."""
        return not self.counts and not self.stopped

    def by_kind(self) -> Mapping[str, int]:
        """How many of each kind, at both places; all kinds are there."""
        counts = {kind: 0 for kind in KINDS}
        for (kind, _), count in self.counts.items():
            counts[kind] += count
        return counts

    def add(self, finding: Finding) -> None:
        key = (finding.kind, finding.where)
        self.counts[key] = self.counts.get(key, 0) + 1
        of_account = (*key, finding.account)
        self.sums[of_account] = self.sums.get(of_account, 0) + finding.difference_csu
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(finding)

    def pass_over(self, word: str, count: int = 1) -> None:
        if word in compare.WHY_NOT:
            self.not_compared[word] = self.not_compared.get(word, 0) + count

    def as_dict(self) -> Dict[str, Any]:
        """For ``--json``; money in hundredths of an SU, times in unix seconds."""
        return {
            "since": self.since,
            "until": self.until,
            "account": self.account,
            "agrees": self.clean,
            "found": self.found,
            "counts": [
                {"kind": kind, "where": where, "count": count}
                for (kind, where), count in sorted(self.counts.items())
            ],
            "sums": [
                {"kind": kind, "where": where, "account": account, "difference_csu": csu}
                for (kind, where, account), csu in sorted(self.sums.items())
            ],
            "findings": [finding.as_dict() for finding in self.findings],
            "runs": self.runs,
            "rows": self.rows,
            "windows": self.windows,
            "not_compared": dict(sorted(self.not_compared.items())),
            "not_looked": list(self.not_looked),
            "other_rows_csu": self.others_csu,
            "clean_until": self.clean_until,
            "stopped": self.stopped,
            "took_s": round(self.took_s, 3),
        }


Progress = Callable[[Report], None]


def reconcile(
    ledger: Ledger,
    config: Config,
    accounting: Accounting,
    bank: ComparedBank,
    *,
    since: int,
    until: int,
    account: Optional[str] = None,
    progress: Progress = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
    window_rows: int = WINDOW_ROWS,
) -> Report:
    """Compare what ended in [since, until), unix seconds; ``account``: only its runs and rows.

    ``progress`` is called after each window. ``should_stop``: asked between questions; what was compared until then is in
    the report.

    :raises SlurmUnavailable: slurmdbd cannot be asked. :raises LedgerError: the ledger cannot be read.
    :raises BankError: the bank does not answer, or not to us. Nothing is known then; the next call may begin again.
    """
    began = time.monotonic()
    report = Report(since=since, until=until, account=account)
    report.position = report.clean_until = since
    try:
        _Comparison(
            ledger, config, accounting, bank, report, should_stop, progress, window_rows
        ).run()
    except _Stopped:
        report.stopped = True
    report.took_s = time.monotonic() - began
    return report


#: Runs of the ledger as they were looked up, by job id.
_Known = Mapping[int, Sequence[RunGlance]]


class _Stopped(Exception):
    """Somebody wants it to end."""


class _Comparison:
    def __init__(
        self,
        ledger: Ledger,
        config: Config,
        accounting: Accounting,
        bank: ComparedBank,
        report: Report,
        should_stop: Callable[[], bool],
        progress: Progress,
        window_rows: int,
    ) -> None:
        self._ledger = ledger
        self._accounting = accounting
        self._bank = bank
        self._report = report
        self._should_stop = should_stop
        self._progress = progress
        self._window_rows = window_rows
        self._account = report.account
        with ledger.transaction(write=False) as tx:
            created = int(tx.meta("created") or 0)
            prices = Prices.read(tx, config)
        self._rules = Rules(config=config, prices=prices, created=created, cluster=ledger.cluster)
        self._names = RowNames(config.api.job_id_format, ledger.cluster)
        self._asking = threading.Lock()  #: one question to slurmdbd at a time
        self._lists = True  #: whether the bank lists by time
        self._told: Set[Tuple[str, str, int]] = set()  #: what was found of a run, each once
        #: What was found of runs in the ledger: by number, the kind and what they should be charged.
        self._wrong: Dict[int, Tuple[str, Optional[int]]] = {}
        #: By account, how far the runs that were found to differ are above their entries.
        self._above: Dict[str, int] = defaultdict(int)
        self._ahead: Dict[int, BankRun] = {}  #: rows of runs that end in a later window, or not yet
        #: By account: (start, end, what the ledger believes the bank to hold less what the row says).
        self._beliefs: Dict[str, List[Tuple[int, int, int]]] = defaultdict(list)

    def run(self) -> None:
        report = self._report
        step_s = FIRST_WINDOW_S
        clean = True
        read: Optional[_Window] = None
        while report.position < report.until:
            if read is None:
                high, step_s = self._end_of_window(report.position, step_s)
                read = self._begin(report.position, high)
            self._check_stop()
            window, runs, read = read, read.runs(), None
            if len(runs) < self._window_rows // 2:
                step_s = min(step_s * 2, LONGEST_WINDOW_S)
            elif len(runs) > self._window_rows * 2:
                step_s = max(step_s // 2, SHORTEST_WINDOW_S)
            if window.high < report.until:
                # Others work at the next one meanwhile.
                high, step_s = self._end_of_window(window.high, step_s)
                read = self._begin(window.high, high)
            self._window(window, runs)
            report.windows += 1
            report.position = window.high
            clean = clean and not report.counts
            if clean:
                report.clean_until = window.high
            self._progress(report)
        self._running()
        self._rows_ahead()
        self._drifts()
        self._progress(report)

    def _begin(self, low: int, high: int) -> _Window:
        """Have slurmdbd and the bank asked about a window."""
        return _Window(
            low=low,
            high=high,
            asked=_Asked(lambda: self._ended(low, high)),
            listing=_Asked(lambda: self._list(low, high)) if self._lists else None,
        )

    def _ended(self, low: int, high: int) -> Sequence[Run]:
        with self._asking:
            return self._accounting.read_ended_runs(low, high)

    def _jobs(self, job_ids: Iterable[int]) -> Mapping[int, Tuple[Run, ...]]:
        with self._asking:
            return self._accounting.read_jobs(sorted(set(job_ids)))

    def _parts(self, runs: Iterable[LedgerRun]) -> Mapping[Tuple[int, int], Run]:
        """What slurmdbd has of runs that it does not have whole, by job id and submit time."""
        job_ids = sorted({one.job_id for one in runs})
        if not job_ids:
            return {}
        with self._asking:
            rows = self._accounting.rows_by_key(job_ids)
        return {key: row.run for key, row in rows.items() if not row.whole}

    def _check_stop(self) -> None:
        if self._should_stop():
            raise _Stopped

    def _end_of_window(self, low: int, step_s: int) -> Tuple[int, int]:
        """By what the ledger has; what slurmdbd has may be more, and the next window is then shorter."""
        accounts = self._accounts()
        most = self._window_rows
        while step_s > SHORTEST_WINDOW_S:
            high = min(low + step_s, self._report.until)
            count = 0
            for first in range(0, len(accounts), ROWS_AT_ONCE):
                with self._ledger.transaction(write=False) as tx:
                    for account in accounts[first : first + ROWS_AT_ONCE]:
                        count += tx.count_ended(account, low, high, most + 1 - min(count, most))
                if count > most:
                    break
            if count <= most:
                break
            step_s = max(step_s // 2, SHORTEST_WINDOW_S)
        return min(low + step_s, self._report.until), step_s

    def _accounts(self) -> Sequence[str]:
        if self._account is not None:
            return [self._account]
        with self._ledger.transaction(write=False) as tx:
            return tx.accounts_of_runs()

    def _add(self, finding: Finding) -> None:
        key = (
            finding.where,
            finding.bank_job_id or "" if finding.where == BANK else str(finding.job_id),
            finding.run_id or finding.submit_time or 0,
        )
        if key in self._told:
            return
        if self._is_being_struck(finding):
            self._report.pass_over(compare.WAITING)
            return
        self._told.add(key)
        self._report.add(finding)
        if finding.where == LEDGER and finding.kind != DRIFT:
            self._weigh(finding)

    def _is_being_struck(self, finding: Finding) -> bool:
        """Whether the bank is about to be told that the row is no run's."""
        if finding.where != BANK or finding.row is None or finding.job_id is None:
            return False
        with self._ledger.transaction(write=False) as tx:
            return any(
                run.struck
                and run.bank_job_id == finding.row.bank_job_id
                and run.parked is None
                and tx.outbox_of_run(run.run_id)
                for run in tx.runs_by_job(finding.job_id)
            )

    def _weigh(self, finding: Finding) -> None:
        """By how much the runs are above their entries."""
        run = finding.slurm
        with self._ledger.transaction(write=False) as tx:
            one = None if finding.run_id is None else tx.run(finding.run_id)
            if one is not None:
                self._wrong[one.run_id] = (finding.kind, finding.expected_csu)
                self._above[one.account] += one.ledger_csu - settle.entered_csu(tx, one)
            if run is None or finding.kind not in (MISSING, WRONG_HOLDER):
                return
            self._above[run.account] -= _entered_csu(tx, run)

    # -- one window -----------------------------------------------------------------------------------------------------

    def _window(self, window: _Window, runs: Sequence[Run]) -> None:
        wanted, known = self._compare_with_ledger(runs, window.low, window.high)
        rows: Sequence[BankRun] = ()
        if window.listing is not None and self._lists:
            try:
                rows = window.listing.answer()
            except NoListing as error:
                self._lists = False
                self._report.not_looked.append(
                    f"the bank's rows of no run, and its counters: {error}"
                )
        self._compare_with_bank(rows, wanted, known, window.low)

    def _of_account(self, *accounts: str) -> bool:
        return self._account is None or self._account in accounts

    def _compare_with_ledger(
        self, runs: Sequence[Run], low: int, high: int
    ) -> Tuple[Dict[int, RunGlance], _Known]:
        """The runs of the ledger whose rows the bank should have, by their number; and all that was looked up, by job."""
        keys = {(run.job_id, run.submit_time) for run in runs}
        wanted: Dict[int, RunGlance] = {}
        of_jobs: Dict[int, Sequence[RunGlance]] = {}
        unsure: List[Run] = []
        for first in range(0, len(runs), ROWS_AT_ONCE):
            self._check_stop()
            page = runs[first : first + ROWS_AT_ONCE]
            with self._ledger.transaction(write=False) as tx:
                glances = [tx.glance(run.job_id) for run in page]
            for run, known in zip(page, glances):
                of_jobs[run.job_id] = known
                if not self._of_account(run.account, *(one.account for one in known)):
                    continue
                self._report.runs += 1
                for one in known:
                    if one.submit_time == run.submit_time:
                        wanted[one.run_id] = one
                if not compare.agrees_at_a_glance(run, known, self._rules):
                    unsure.append(run)
        self._look_closer(unsure)
        unseen: List[int] = []
        for account in self._accounts():
            with self._ledger.transaction(write=False) as tx:
                unseen += [
                    key.run_id
                    for key in tx.keys_of_ended(account, low, high)
                    if (key.job_id, key.submit_time) not in keys
                ]
        self._compare_unseen(unseen, wanted)
        return wanted, of_jobs

    def _look_closer(self, runs: Sequence[Run]) -> None:
        missing: List[Finding] = []
        for first in range(0, len(runs), ROWS_AT_ONCE):
            for run in runs[first : first + ROWS_AT_ONCE]:
                with self._ledger.transaction(write=False) as tx:
                    known = _standing(tx, run.job_id)
                    run = _with_resizes(tx, run, known)
                    adopted = _adopted_csu(tx, known, run.submit_time)
                findings, word = compare.compare_run(run, known, self._rules, adopted_csu=adopted)
                self._report.pass_over(word)
                for finding in findings:
                    if finding.run_id is None:
                        missing.append(finding)
                    else:
                        self._add(finding)
        self._pair(missing)

    def _pair(self, missing: Sequence[Finding]) -> None:
        """Runs that the ledger does not have under their key, with their restart counts, which only the whole job tells.

        slurmdbd may have another submit time of a run, after a crash: then its start and holder are the same.
        """
        for first in range(0, len(missing), JOBS_AT_ONCE):
            self._check_stop()
            page = missing[first : first + JOBS_AT_ONCE]
            told = self._jobs(one.job_id or 0 for one in page)
            for finding in page:
                run = finding.slurm
                assert run is not None
                of_job = told.get(run.job_id, ())
                submits = {one.submit_time for one in of_job}
                with self._ledger.transaction(write=False) as tx:
                    known = _standing(tx, run.job_id)
                same = [
                    one
                    for one in known
                    if one.start_time == run.start_time
                    and one.end_time == run.end_time
                    and (one.account, one.user_id) == (run.account, run.user_id)
                    and one.submit_time not in submits
                    and one.charge_csu == finding.expected_csu
                ]
                if same:
                    self._told.add((LEDGER, str(run.job_id), same[0].run_id))
                    continue
                whole = next((one for one in of_job if one.submit_time == run.submit_time), run)
                self._add(replace(finding, slurm=whole))

    def _compare_unseen(self, run_ids: Sequence[int], wanted: Dict[int, RunGlance]) -> None:
        """Runs that ended in the window by the ledger, and not by slurmdbd."""
        for first in range(0, len(run_ids), JOBS_AT_ONCE):
            self._check_stop()
            page: List[LedgerRun] = []
            with self._ledger.transaction(write=False) as tx:
                for run_id in run_ids[first : first + JOBS_AT_ONCE]:
                    one = tx.run(run_id)
                    if one is not None and one.state == "ended":
                        page.append(one)
                        glance = next(g for g in tx.glance(one.job_id) if g.run_id == run_id)
                        wanted[run_id] = glance
            told = self._jobs(one.job_id for one in page)
            parts = self._parts(one for one in page if _is_unknown(one, told))
            for one in page:
                part = parts.get((one.job_id, one.submit_time))
                if part is not None:
                    findings, word = compare.compare_part(one, part)
                    self._report.pass_over(word)
                    for finding in findings:
                        self._add(finding)
                    continue
                with self._ledger.transaction(write=False) as tx:
                    known = _standing(tx, one.job_id)
                    adopted = _adopted_csu(tx, known, one.submit_time)
                    runs = [_with_resizes(tx, run, known) for run in told.get(one.job_id, ())]
                findings, word = compare.compare_unseen(
                    one, runs, known, self._rules, adopted_csu=adopted
                )
                self._report.pass_over(word)
                for finding in findings:
                    self._add(finding)

    # -- the bank -------------------------------------------------------------------------------------------------------

    def _list(self, low: int, high: int) -> Sequence[BankRun]:
        """In two halves at once: the bank works at one while the other's rows are read."""
        middle = low + (high - low) // 2
        later = _Asked(lambda: self._list_part(middle, high))
        try:
            rows = self._list_part(low, middle)
        finally:
            later.wait()
        return [*rows, *later.answer()]

    def _list_part(self, low: int, high: int) -> Sequence[BankRun]:
        return self._patiently(
            lambda: list(self._bank.list_runs(since=low, until=high, account=self._account))
        )

    def _patiently(self, ask: Callable[[], T]) -> T:
        for pause_s in _BANK_PAUSES_S:
            try:
                return ask()
            except BankUnavailable:
                self._check_stop()
                time.sleep(pause_s)
        return ask()

    def _compare_with_bank(
        self, rows: Sequence[BankRun], wanted: Dict[int, RunGlance], known: _Known, low: int
    ) -> None:
        self._rows(rows, wanted, known)
        for one in [one for one in wanted.values() if one.run_id in self._ahead]:
            row = self._ahead.pop(one.run_id)
            if row.bank_job_id == one.bank_job_id:
                del wanted[one.run_id]
                self._compare_row(one, row)
        if self._lists:
            days = Counter(
                (one.start_time or 0) // _DAY_S
                for one in wanted.values()
                if (one.start_time or 0) < low and not one.waiting
            )
            for day in sorted(day for day, count in days.items() if count >= LIST_DAY_ROWS):
                until = min((day + 1) * _DAY_S, low)
                self._rows(self._list(day * _DAY_S, until), wanted, known, only_wanted=True)
        for one in list(wanted.values()):
            self._check_stop()
            self._compare_row(one, self._row_of(one))

    def _row_of(self, one: RunGlance) -> Optional[BankRun]:
        if one.waiting and one.parked is None:
            return None  # is not asked for
        if one.bank_job_id is not None:
            bank_job_id = one.bank_job_id
            return self._patiently(lambda: self._bank.row(bank_job_id))
        if one.parked is None:
            return None
        with self._ledger.transaction(write=False) as tx:
            run = tx.run(one.run_id)
        assert run is not None
        found = run
        try:
            return self._patiently(lambda: self._bank.find_run(found))
        except BankRefused:
            return None  # its ids are others'

    def _rows(
        self,
        rows: Sequence[BankRun],
        wanted: Dict[int, RunGlance],
        of_jobs: _Known,
        *,
        only_wanted: bool = False,
    ) -> None:
        """Compare rows, taking their runs out of ``wanted``. ``of_jobs``: what was looked up already."""
        strays: Dict[int, List[BankRun]] = defaultdict(list)
        for first in range(0, len(rows), ROWS_AT_ONCE):
            self._check_stop()
            page = [
                (row, job_id)
                for row, job_id in (
                    (row, self._names.job_id(row.bank_job_id))
                    for row in rows[first : first + ROWS_AT_ONCE]
                )
                if self._is_cluster_s(row, job_id)
            ]
            owners: List[Optional[RunGlance]] = []
            with self._ledger.transaction(write=False) as tx:
                for row, job_id in page:
                    owner = compare.owner_of(row, of_jobs.get(job_id or 0, ()))
                    owners.append(owner or compare.owner_of(row, tx.glance(job_id or 0)))
            for (row, job_id), one in zip(page, owners):
                if not only_wanted:
                    self._report.rows += 1
                if one is None:
                    if not only_wanted and row.amount_csu:
                        strays[job_id or 0].append(row)
                    continue
                if only_wanted and one.run_id not in wanted:
                    continue
                if row.bank_job_id == one.bank_job_id and wanted.pop(one.run_id, None) is None:
                    self._ahead[one.run_id] = row
                else:
                    self._compare_row(one, row)
        self._strays(strays)

    def _is_cluster_s(self, row: BankRun, job_id: Optional[int]) -> bool:
        if job_id is not None:
            return True
        self._report.pass_over(compare.OTHERS)
        self._report.others_csu += row.amount_csu
        return False

    def _compare_row(self, one: RunGlance, row: Optional[BankRun]) -> None:
        wrong = self._wrong.get(one.run_id)
        if wrong is not None and wrong[0] in _BANK_FOLLOWS:
            return
        finding, word = compare.compare_row(one, row)
        if wrong is not None and row is not None and row.amount_csu == wrong[1]:
            if finding is not None and finding.kind == MISCHARGED:
                return  # the bank is right, and the ledger not
        if finding is not None:
            # What is told of a moment may be over: deliveries go on.
            with self._ledger.transaction(write=False) as tx:
                now = next((g for g in tx.glance(one.job_id) if g.run_id == one.run_id), None)
            if now is not None and now != one:
                if row is not None:
                    bank_job_id = row.bank_job_id
                    row = self._patiently(lambda: self._bank.row(bank_job_id))
                elif now.bank_job_id is not None:
                    row = self._row_of(now)
                finding, word = compare.compare_row(now, row)
        if finding is not None:
            self._add(finding)
            return
        self._report.pass_over(word)
        if word == compare.AGREES and row is not None and row.bank_job_id == one.bank_job_id:
            believed = one.bank_csu - row.amount_csu
            if believed and one.start_time is not None:
                self._beliefs[one.account].append(
                    (one.start_time, one.end_time or 1 << 40, believed)
                )

    def _strays(self, strays: Mapping[int, Sequence[BankRun]]) -> None:
        """Rows of no run of the ledger."""
        job_ids = sorted(strays)
        for first in range(0, len(job_ids), JOBS_AT_ONCE):
            self._check_stop()
            page = job_ids[first : first + JOBS_AT_ONCE]
            told = self._jobs(page)
            for job_id in page:
                for row in strays[job_id]:
                    finding, word = compare.compare_stray(
                        row, job_id, told.get(job_id, ()), self._rules
                    )
                    self._report.pass_over(word)
                    if finding is not None:
                        self._add(finding)

    # -- what goes on in the ledger -------------------------------------------------------------------------------------

    def _running(self) -> None:
        """Runs of the ledger that go on, and that slurmdbd has the end of, before the period or in it."""
        after: Optional[LedgerRun] = None
        while True:
            self._check_stop()
            with self._ledger.transaction(write=False) as tx:
                page = tx.running_runs_page(after, JOBS_AT_ONCE)
            if not page:
                return
            after = page[-1]
            mine = [
                one
                for one in page
                if self._of_account(one.account)
                and (one.start_time or 0) < self._report.until
                and (LEDGER, str(one.job_id), one.run_id) not in self._told
            ]
            if not mine:
                continue
            told = self._jobs(one.job_id for one in mine)
            for one in mine:
                for run in told.get(one.job_id, ()):
                    if run.submit_time != one.submit_time or run.end_time is None:
                        continue
                    if run.end_time >= self._report.until or run.resizing:
                        continue
                    with self._ledger.transaction(write=False) as tx:
                        now = tx.run(one.run_id)
                        known = _standing(tx, one.job_id)
                    if now is None or now.state != "running":
                        continue
                    for finding in compare.compare_run(run, known, self._rules)[0]:
                        if finding.run_id == one.run_id:
                            self._add(finding)

    def _rows_ahead(self) -> None:
        """Rows of runs that started in the period and end after it, or go on."""
        ahead, self._ahead = self._ahead, {}
        for run_id, row in ahead.items():
            with self._ledger.transaction(write=False) as tx:
                run = tx.run(run_id)
                known = () if run is None else tx.glance(run.job_id)
            for one in known:
                if one.run_id == run_id:
                    self._compare_row(one, row)

    # -- sums -----------------------------------------------------------------------------------------------------------

    def _drifts(self) -> None:
        for account in self._accounts():
            self._check_stop()
            self._fold(account)
            if self._lists:
                self._counter(account)

    def _fold(self, account: str) -> None:
        with self._ledger.transaction(write=False) as tx:
            entered_csu, kept_csu = tx.fold(account)
        if entered_csu == kept_csu:
            return
        if kept_csu - entered_csu == self._above[account]:
            return  # as was found of its runs
        text = f"{account}: its entries come to {format_su(entered_csu)} SU, its liens and runs to {format_su(kept_csu)}"
        self._add(_drift(LEDGER, account, "", entered_csu, kept_csu, kept_csu, text))

    def _counter(self, account: str) -> None:
        """The bank's counter of the allocation in force against its rows, and the ledger's belief against both."""
        try:
            usage = self._patiently(lambda: self._bank.usage(account))
            if usage is None:
                return
            problem, rows_csu = self._rows_of(account, usage)
            for _ in range(_DRIFT_TRIES):
                if not problem:
                    break
                time.sleep(_DRIFT_PAUSE_S)
                usage = self._patiently(lambda: self._bank.usage(account)) or usage
                problem, rows_csu = self._rows_of(account, usage)
        except NoListing as error:
            self._lists = False
            self._report.not_looked.append(f"the bank's counters: {error}")
            return
        period = usage.period
        if problem:
            self._add(_drift(BANK, account, period.key, rows_csu, None, usage.used_csu, problem))
        believed = sum(
            csu
            for start, end, csu in self._beliefs.pop(account, ())
            if start >= period.start_high and (period.end_low is None or end <= period.end_low)
        )
        if believed:
            text = (
                f"{account}: the ledger takes the bank's usage to hold {format_su(abs(believed))} SU "
                f"{'more' if believed > 0 else 'less'} for its runs than the bank's rows say; so much too much "
                f"{'is' if believed > 0 else 'is not'} available"
            )
            self._add(
                _drift(
                    LEDGER,
                    account,
                    period.key,
                    usage.used_csu,
                    usage.used_csu + believed,
                    usage.used_csu,
                    text,
                )
            )

    def _rows_of(self, account: str, usage: Usage) -> Tuple[str, int]:
        """What is wrong with the counter ("": nothing), and what the rows add up to."""
        period = usage.period
        ends = [1 << 32] if period.end_high is None else [period.end_high + 1]
        if period.end_low is not None and period.end_low + 1 not in ends:
            ends.append(period.end_low + 1)
        rows_csu = 0
        for start in dict.fromkeys((period.start_high, period.start_low)):
            for end in ends:
                low, high = start, end
                total = self._patiently(
                    lambda low=low, high=high: self._bank.total(account, since=low, until=high)  # type: ignore[misc]
                )
                rows_csu = total.amount_csu
                if rows_csu == usage.used_csu:
                    return "", rows_csu
        return (
            f"{account}: the bank counts {format_su(usage.used_csu)} SU as used in {period.key}, its "
            f"rows add up to {format_su(rows_csu)}"
        ), rows_csu


def _drift(
    where: str,
    account: str,
    period: str,
    expected_csu: int,
    ledger_csu: Optional[int],
    bank_csu: int,
    text: str,
) -> Finding:
    return Finding(
        kind=DRIFT,
        where=where,
        job_id=None,
        submit_time=None,
        account=account,
        user_id=None,
        run_id=None,
        bank_job_id=None,
        expected_csu=expected_csu,
        ledger_csu=ledger_csu,
        bank_csu=bank_csu,
        slurm=None,
        text=text,
        period=period,
    )


class _Asked(Generic[T]):
    """A question that is asked on a thread of its own, while others are compared."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._found: List[T] = []
        self._error: Optional[Exception] = None

        def work() -> None:
            try:
                self._found.append(ask())
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="reconcile", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join()

    def answer(self) -> T:
        """Once; raises what the question did."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._found.pop()


@dataclass(frozen=True)
class _Window:
    """What is being read of a time, unix seconds."""

    low: int
    high: int
    asked: _Asked[Sequence[Run]]
    listing: Optional[_Asked[Sequence[BankRun]]]  #: None: the bank does not list

    def runs(self) -> Sequence[Run]:
        return self.asked.answer()


def _is_unknown(one: LedgerRun, told: Mapping[int, Sequence[Run]]) -> bool:
    """Whether it is charged, and slurmdbd does not have it whole."""
    submits = {run.submit_time for run in told.get(one.job_id, ())}
    return bool(one.charge_csu) and one.submit_time not in submits


def _standing(tx: Transaction, job_id: int) -> Sequence[LedgerRun]:
    found = []
    for glance in tx.glance(job_id):
        run = tx.run(glance.run_id)
        if run is not None:
            found.append(run)
    return found


def _entered_csu(tx: Transaction, run: Run) -> int:
    """What the ledger's entries charge for a run of slurmdbd, which may not say its restart count."""
    for restart_count in range(_MOST_RESTARTS):
        entered_csu = settle.entered_csu(tx, replace(run, restart_count=restart_count))
        if entered_csu:
            return entered_csu
    return 0


def _with_resizes(tx: Transaction, run: Run, known: Sequence[LedgerRun]) -> Run:
    return settle.with_resizes(tx, run) if known else run


def _adopted_csu(tx: Transaction, known: Sequence[LedgerRun], submit_time: int) -> Optional[int]:
    """What the bank had been told before the ledger was lost, if the charge was taken from there; see relay/rebuild.py."""
    adopted = None
    for one in known:
        if one.submit_time != submit_time or one.charge_csu is None:
            continue
        for entry in tx.charges_of(one):
            if entry.kind in ("charge", "restated"):
                adopted = one.charge_csu if entry.reason == ADOPTED_REASON else None
    return adopted


#: The reason of an entry by which a charge was taken over from the bank.
ADOPTED_REASON = "as the bank has it"


# -- what is remembered --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remembered:
    """The last comparison of all accounts, as the next one begins from it; unix seconds."""

    clean_until: Optional[int] = None  #: until then everything agreed; None: not known
    looked_at: Optional[int] = None  #: when the last one ended
    found: int = 0  #: how many differences it found


def recall(state_dir: str) -> Remembered:
    """What :func:`remember` wrote; nothing, if that cannot be read."""
    try:
        with open(os.path.join(state_dir, FILE_NAME), encoding="ascii") as file:
            kept = json.loads(file.read(10_000))
        values = {name: kept.get(name) for name in ("clean_until", "looked_at", "found")}
        if all(value is None or type(value) is int for value in values.values()):
            return Remembered(
                clean_until=values["clean_until"],
                looked_at=values["looked_at"],
                found=values["found"] or 0,
            )
    except (OSError, ValueError, AttributeError):
        pass
    return Remembered()


def remember(state_dir: str, report: Report, now: float) -> None:
    """Write down how far everything agrees. Only of a comparison of all accounts that begins no later than that.

    :raises OSError: it cannot be written.
    """
    if report.account is not None:
        return
    before = recall(state_dir)
    clean_until = before.clean_until
    if report.clean_until > report.since and (clean_until is None or report.since <= clean_until):
        clean_until = max(report.clean_until, clean_until or 0)
    if report.counts and clean_until is not None:
        clean_until = min(clean_until, max(report.clean_until, report.since))
    kept = {"clean_until": clean_until, "looked_at": int(now), "found": report.found}
    path = os.path.join(state_dir, FILE_NAME)
    new = f"{path}.new-{os.getpid()}"
    descriptor = os.open(
        new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        json.dump(kept, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def default_period(ledger: Ledger, now: float) -> Tuple[int, int]:
    """From the last clean comparison (or the ledger's creation) until what may still be on its way."""
    with ledger.transaction(write=False) as tx:
        created = int(tx.meta("created") or 0)
    remembered = recall(ledger.state_dir)
    until = int(now) - LAG_S
    since = created
    if remembered.clean_until is not None:
        since = max(created, remembered.clean_until - OVERLAP_S)
    return min(since, until), until


__all__ = [
    "BankError",
    "ComparedBank",
    "Remembered",
    "Report",
    "default_period",
    "recall",
    "reconcile",
    "remember",
]
