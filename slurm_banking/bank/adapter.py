# SPDX-License-Identifier: BSD-3-Clause
"""Starts and ends at the bank, and what its usage holds for each run afterwards.

How a bank counts (reference: the MyBRC jobs API): a POST adds its amount if submit and start are given and the start is
not before the allocation's; a PUT adds the difference to the row's amount if, besides, the end is given and not after
the allocation's. Otherwise the row changes and the usage does not. So that row and usage never part:

* a run that starts before the allocation (or may, by the time zone) is stored with 0.00 at its start;
* a row is changed once, by a PUT with all three dates, and sending the same PUT again adds nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Callable, Iterator, List, Mapping, Optional, Sequence, Tuple

import requests

from mybrc_client.api.jobs import create_job, retrieve_job, update_job
from mybrc_client.models import Job
from slurm_banking.amounts import format_su, parse_su
from slurm_banking.bank import listing, wire
from slurm_banking.bank.funds import FundsReader, Period, Usage
from slurm_banking.bank.transport import FieldErrors, NotFound, Transport
from slurm_banking.bank.wire import BankRun
from slurm_banking.errors import BankRefused, BankUnavailable
from slurm_banking.ledger import LedgerRun
from slurm_banking.records import Funds

#: Seconds for which an account's period is remembered, and when a run lies outside of it.
PERIOD_S = 300.0
PERIOD_DOUBTED_S = 5.0

#: How many restart counts below a run's own its row is looked for, besides 0.
RESTARTS_LOOKED_UNDER = 4


@dataclass(frozen=True)
class Acknowledgement:
    """The bank has it."""

    bank_csu: int  #: what the bank's usage holds for the run now
    bank_job_id: str
    note: str = ""  #: what an operator may want to know; "": nothing
    doubt: str = (
        ""  #: why the bank's usage may not be what the row says, for an operator; "": it is
    )


class Bank:
    """The bank behind a URL. Every method raises BankUnavailable, BankUnauthorized or BankRefused, and nothing else.

    :param token: the bare key.
    :param timeout_s: for one call as a whole.
    :param resource: the bank's resources whose allocations count; empty: any.
    :param job_id_format: see :data:`slurm_banking.config.JOB_ID_FIELDS`.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_s: float,
        resource: Sequence[str] = (),
        job_id_format: str = "{job_id}",
        cluster: str = "",
        session: Optional[requests.Session] = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._transport = Transport(url, token, timeout_s=timeout_s, session=session, clock=clock)
        self._funds = FundsReader(self._transport, resource=resource, clock=clock)
        self._job_id_format = job_id_format
        self._cluster = cluster

    def close(self) -> None:
        self._transport.close()

    # -- funds ------------------------------------------------------------------------------------------------------

    def funds(self, account: str, user_id: int) -> Tuple[Funds, Funds]:
        """What the account, and the user inside it, may still spend. Unknown ones are funds with a reason, not errors."""
        of_account, users = self._funds.read(account, [user_id])
        return of_account, users[user_id]

    def account_funds(
        self, account: str, user_ids: Sequence[int]
    ) -> Tuple[Funds, Mapping[int, Funds]]:
        """The same for several users, with fewer questions."""
        return self._funds.read(account, user_ids)

    # -- runs -------------------------------------------------------------------------------------------------------

    def start(self, run: LedgerRun, amount_csu: int) -> Acknowledgement:
        """Record the start, without an end date. "Already exists" is a result: it is this run's row, or another's."""
        known = self._told_as_earlier(run)
        if known is not None:
            return Acknowledgement(known.held_csu, known.bank_job_id, "was there already")
        counted_csu = amount_csu if self._start_counts(run.account, run.start_time) else 0
        note = ""
        for bank_job_id in self._ids(run):
            body = wire.start_on_the_wire(run, bank_job_id, counted_csu)
            try:
                answer = self._transport.call(create_job.sync_detailed, Job, body=body)
            except FieldErrors as error:
                if "jobslurmid" not in error.errors:
                    raise
                row = self._get(bank_job_id, run)
                if row is None:
                    raise  # not "exists": the id itself is refused
                if row.is_of(run):
                    return Acknowledgement(row.held_csu, bank_job_id, "was there already")
                note = _taken(row)
                continue
            _check_answer(answer, bank_job_id, counted_csu)
            return Acknowledgement(counted_csu, bank_job_id, note)
        raise BankRefused(
            f"job {run.job_id} submitted {run.submit_time}: {note}, and so does the other id"
        )

    def end(self, run: LedgerRun) -> Acknowledgement:
        """Record the end, all at once if the start was never delivered. Sending it again adds nothing."""
        row: Optional[BankRun] = None
        note = ""
        bank_job_id = run.bank_job_id
        if bank_job_id is None:
            bank_job_id, row, note = self._locate(run)
        body = wire.end_on_the_wire(run, bank_job_id)
        assert run.charge_csu is not None
        held_csu = run.bank_csu if row is None else row.held_csu
        if row is None or not row.is_final_for(run):
            answer = self._transport.call(update_job.sync_detailed, Job, bank_job_id, body=body)
            _check_answer(answer, bank_job_id, run.charge_csu)
        bank_csu, doubt = self._held_after_end(run, held_csu, run.charge_csu)
        return Acknowledgement(bank_csu, bank_job_id, note, doubt)

    def find_run(self, run: LedgerRun) -> Optional[BankRun]:
        """The bank's row of this run, with what its usage holds for it; None: it has none."""
        return self._locate(run)[1]

    def row(self, bank_job_id: str) -> Optional[BankRun]:
        """The row of this id, whoever's it is; None: there is none. What its usage holds for it is not looked at."""
        try:
            job = self._transport.call(retrieve_job.sync_detailed, Job, bank_job_id)
        except NotFound:
            return None
        row = wire.row_from_wire(job)
        if row.bank_job_id != bank_job_id:
            raise BankUnavailable(
                f"asked for job {bank_job_id}, the bank answered about another", answered=True
            )
        return row

    def strike_row(self, row: BankRun) -> None:
        """A row that is no run's: it counts nothing from now on. It keeps its user and account, which no bank changes."""
        body = wire.nothing_on_the_wire(row)
        answer = self._transport.call(update_job.sync_detailed, Job, row.bank_job_id, body=body)
        _check_answer(answer, row.bank_job_id, 0)

    # -- looking through --------------------------------------------------------------------------------------------

    def list_runs(
        self, *, since: int, until: int, account: Optional[str] = None
    ) -> Iterator[BankRun]:
        """Every row that started in [since, until), each once; ``held_csu`` is not looked up.

        :raises NoListing: a bank of the original generation.
        """
        return listing.rows(self._transport, since=since, until=until, account=account)

    def open_runs(self, *, since: int, until: int) -> Iterator[BankRun]:
        """Rows that started in [since, until) and have no end, with what the usage holds for each.

        :raises NoListing: as above.
        """
        for row in listing.rows(self._transport, since=since, until=until, state=wire.RUNNING):
            if row.end_time is None:
                counts = self._start_counts(row.account, row.start_time)
                yield replace(row, held_csu=row.amount_csu if counts else 0)

    def usage(self, account: str) -> Optional[Usage]:
        """What the counter of the account's allocation in force says is used. None: there is none, or no counter.

        Also of an account without a limit, if its usage is counted.
        """
        return self._funds.usage(account)

    def total(self, account: str, *, since: int, until: int) -> listing.Total:
        """What the bank says that an account's rows add up to that started in [since, until).

        :raises NoListing: a bank of the original generation.
        """
        return listing.total(self._transport, account=account, since=since, until=until)

    # -- rows -------------------------------------------------------------------------------------------------------

    def _ids(self, run: LedgerRun) -> List[str]:
        """Where the run's row may be, in the order of trying."""
        if run.bank_job_id is not None:
            return [run.bank_job_id]
        first = wire.default_job_id(run, self._job_id_format, self._cluster)
        return [first, wire.other_job_id(first, run)]

    def _told_as_earlier(self, run: LedgerRun) -> Optional[BankRun]:
        """Its row under the id of a smaller restart count, by which another ledger told it.

        slurmdbd may have a row more of a job than slurmctld remembers: of a run whose end or requeue slurmctld forgot, or
        of an earlier job of that id. A ledger made anew counts restarts by slurmdbd's rows. Each run has a submit time of
        its own; what a node reported has none, and may be an earlier run's.
        """
        if run.bank_job_id is not None or run.restart_count <= 0:
            return None
        lower = range(run.restart_count - 1, -1, -1)
        for restart_count in dict.fromkeys([*lower[:RESTARTS_LOOKED_UNDER], 0]):
            earlier = replace(run, restart_count=restart_count)
            own = wire.default_job_id(earlier, self._job_id_format, self._cluster)
            row = self._get(own, run)
            if row is None or row.told_by_node:
                continue
            if _is_told(row, run):
                return row
            if restart_count and (row.user_id, row.account) == (str(run.user_id), run.account):
                return None  # the run before this one: the counts are the same at the bank
            row = self._get(wire.other_job_id(own, run), run)
            if row is not None and _is_told(row, run):
                return row
        return None

    def _locate(self, run: LedgerRun) -> Tuple[str, Optional[BankRun], str]:
        """The run's id at the bank, its row if it has one, and a note if its own id is another's."""
        known = self._told_as_earlier(run)
        if known is not None:
            return known.bank_job_id, known, ""
        note = ""
        for bank_job_id in self._ids(run):
            row = self._get(bank_job_id, run)
            if row is None or row.is_of(run):
                return bank_job_id, row, note
            note = _taken(row)
        raise BankRefused(
            f"job {run.job_id} submitted {run.submit_time}: {note}, and so does the other id"
        )

    def _get(self, bank_job_id: str, run: LedgerRun) -> Optional[BankRun]:
        row = self.row(bank_job_id)
        if row is None:
            return None
        held_csu, doubt = self._held(row, run)
        return replace(row, held_csu=held_csu, doubt=doubt)

    # -- what counts ------------------------------------------------------------------------------------------------

    def _start_counts(self, account: str, start_time: Optional[int]) -> bool:
        if start_time is None:
            return False
        period = self._funds.period(account, max_age_s=PERIOD_S)
        if period is not None and start_time < period.start_high:
            period = self._funds.period(account, max_age_s=PERIOD_DOUBTED_S)
        return period is None or start_time >= period.start_high

    def _held(self, row: BankRun, run: LedgerRun) -> Tuple[int, str]:
        if row.submit_time is None or row.start_time is None:
            return 0, ""
        if row.end_time is None:
            return row.amount_csu if self._start_counts(row.account, row.start_time) else 0, ""
        return self._held_after_end(run, run.bank_csu, row.amount_csu, row)

    def _held_after_end(
        self, run: LedgerRun, before_csu: int, amount_csu: int, row: Optional[BankRun] = None
    ) -> Tuple[int, str]:
        """What the usage holds after a PUT with all dates, when it held ``before_csu``; and why it may hold something else.

        A run that ends after its period is counted by the bundled bank and not by the portal: the smaller of both, so
        that what is available is never more than the truth. Which it is cannot be asked, and no later PUT would mend it.
        """
        start = run.start_time if row is None else row.start_time
        end = run.end_time if row is None else row.end_time
        assert start is not None and end is not None
        period = self._funds.period(run.account, max_age_s=PERIOD_S)
        if period is not None and not _inside(period, start, end):
            period = self._funds.period(run.account, max_age_s=PERIOD_DOUBTED_S)
        if period is None or _inside(period, start, end):
            return amount_csu, ""
        if start < period.start_low:
            return before_csu, ""
        if before_csu == amount_csu:
            return amount_csu, ""
        doubt = (
            f"it ended after its allocation, when the portal counts nothing any more: usage at the bank may hold "
            f"{format_su(before_csu)} SU for {run.account} where {format_su(amount_csu)} are right"
        )
        return min(before_csu, amount_csu), doubt


def _inside(period: Period, start: int, end: int) -> bool:
    return start >= period.start_low and (period.end_low is None or end <= period.end_low)


def _is_told(row: BankRun, run: LedgerRun) -> bool:
    starts = {row.start_time, run.start_time} - {None}
    return row.is_of(run) and len(starts) < 2


def _taken(row: BankRun) -> str:
    return (
        f"{row.bank_job_id} is another job at the bank (user {row.user_id}, account {row.account}, "
        f"submitted {row.submit_time})"
    )


def _check_answer(answer: Job, sent_id: str, sent_csu: int) -> None:
    """An answer about something else is no acknowledgement."""
    if answer.jobslurmid != sent_id:
        raise BankUnavailable(
            f"job {sent_id}: the bank answered about job {answer.jobslurmid[:40]}", answered=True
        )
    if isinstance(answer.amount, str):
        try:
            stored_csu = parse_su(answer.amount)
        except ValueError:
            stored_csu = -1
        if stored_csu != sent_csu:
            raise BankUnavailable(
                f"job {answer.jobslurmid[:40]}: sent {sent_csu} csu, the bank answered {answer.amount[:40]}",
                answered=True,
            )
