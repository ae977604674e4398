# SPDX-License-Identifier: BSD-3-Clause
"""Everything that may happen to the ledger, each within one transaction that the caller commits.

Nothing here decides, prices or asks anybody: callers bring verdicts, costs and sightings; this module appends the
entries and keeps the tables that follow from them.
"""

from __future__ import annotations

import json
import sqlite3
import time
from functools import lru_cache
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from slurm_banking.errors import EntryConflict
from slurm_banking.ledger.glance import RunGlance, RunKey
from slurm_banking.ledger.queries import QUERIES
from slurm_banking.ledger.rows import (
    RETURNED,
    STRUCK,
    WHOLE_ACCOUNT,
    Delivery,
    EndResult,
    FundsView,
    LedgerEntry,
    LedgerRun,
    Lien,
    Posting,
    SetAside,
    dump_json,
    load_json,
    new_lien_id,
)
from slurm_banking.records import Funds, FundsKind, Reason, Run
from slurm_banking.tres import Tres, parse_tres

#: The state of a run that Slurm forgot.
LOST = "LOST"

#: Of a run that started before the allocation period that the funds speak of; queries.sql says the same.
_BEFORE = "before "

#: Of a run whose lien had no open update when it started.
_NO_PROPOSAL: Mapping[str, Any] = {
    "proposed_csu": None,
    "proposed_us": None,
    "proposed_inputs": None,
}

#: How many open updates, liens or deliveries one call hands out at most.
MAX_ROWS = 100_000

#: How many notes about one job for one reason are kept of a minute: whoever tries again and again fills no disk.
MAX_LIKE_NOTES = 5

#: The most that one lien or run sets aside, 10,000 times the bank's largest number: sums stay within SQLite's 64 bits,
#: whatever time limit and array somebody asks for.
MAX_LIEN_CSU = 10**14


def _bounded(per_task_csu: int, tasks: int = 1) -> int:
    return min(per_task_csu, MAX_LIEN_CSU // max(1, tasks))


class Transaction:
    """Made by :meth:`Ledger.transaction`; of no use after that block."""

    def __init__(self, connection: sqlite3.Connection, cluster: str) -> None:
        self._connection = connection
        self.cluster = cluster
        self.now_us = time.time_ns() // 1000

    # -- plumbing ---------------------------------------------------------------------------------------------------

    def _run(self, query: str, parameters: Any = ()) -> sqlite3.Cursor:
        return self._connection.execute(QUERIES[query], parameters)

    def _rows(self, query: str, parameters: Any = ()) -> Iterator[Dict[str, Any]]:
        cursor = self._run(query, parameters)
        names = [column[0] for column in cursor.description]
        for row in cursor:
            yield dict(zip(names, row))

    def _row(self, query: str, parameters: Any = ()) -> Optional[Dict[str, Any]]:
        return next(self._rows(query, parameters), None)

    def append(
        self,
        kind: str,
        *,
        account: str,
        user_id: int,
        amount_csu: int,
        reason: str,
        actor: str,
        lien_id: Optional[str] = None,
        job_id: Optional[int] = None,
        submit_time: Optional[int] = None,
        restart_count: Optional[int] = None,
        inputs: Optional[Mapping[str, Any]] = None,
    ) -> int:
        """Append one entry; its sequence number. ``amount_csu``: the change of what counts against funds."""
        return self._append_entry(
            kind,
            lien_id,
            job_id,
            submit_time,
            restart_count,
            account,
            user_id,
            amount_csu,
            actor,
            reason,
            dump_json(inputs),
        )

    def _append_entry(self, *values: Any) -> int:
        """The columns of an entry in their order, from its kind on."""
        cursor = self._run("append_entry", (self.now_us, *values))
        return int(cursor.lastrowid or 0)

    def _append_of(
        self,
        subject: Union[Lien, LedgerRun, Run],
        kind: str,
        *,
        lien_id: Optional[str],
        amount_csu: int,
        reason: str,
        actor: str,
        inputs: Optional[Mapping[str, Any]] = None,
    ) -> int:
        """:meth:`append` for a lien or a run: its job, account and user."""
        return self.append(
            kind,
            lien_id=lien_id,
            job_id=subject.job_id,
            submit_time=subject.submit_time,
            restart_count=subject.told_restart_count
            if isinstance(subject, LedgerRun)
            else subject.restart_count,
            account=subject.account,
            user_id=subject.user_id,
            amount_csu=amount_csu,
            reason=reason,
            actor=actor,
            inputs=inputs,
        )

    # -- meta -------------------------------------------------------------------------------------------------------

    def meta(self, key: str) -> Optional[str]:
        row = self._run("get_meta", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        self._run("put_meta", (key, value))

    @property
    def complete(self) -> bool:
        """False while the ledger is new, lost or unclean, and the relay has not yet compared it with Slurm."""
        return self.meta("complete") == "1"

    # -- funds ------------------------------------------------------------------------------------------------------

    def funds(self, account: str, user_id: int) -> Tuple[Optional[Funds], Optional[Funds]]:
        """The account's row and the user's row inside it; None where the bank was never asked."""
        of_account = of_user = None
        for row in self._run("get_funds", (account, user_id)):
            funds = _funds(*row)
            if funds.user_id is None:
                of_account = funds
            else:
                of_user = funds
        return of_account, of_account if user_id == WHOLE_ACCOUNT else of_user

    def put_funds(self, funds: Funds) -> None:
        """Replace what the bank says. Only while no delivery for the account is in flight or unresolved.

        When an account's allocation period changes, runs that started in the new one move to it, and what was said of
        users in the old one is forgotten.
        """
        before = self.funds(funds.account, WHOLE_ACCOUNT)[0] if funds.user_id is None else None
        self._run(
            "put_funds",
            (
                funds.account,
                WHOLE_ACCOUNT if funds.user_id is None else funds.user_id,
                funds.kind.value,
                funds.limit_csu,
                funds.remaining_csu,
                funds.allocation,
                funds.start_time,
                funds.end_time,
                None if funds.reason is None else funds.reason.value,
                funds.read_at,
            ),
        )
        if funds.user_id is None and funds.allocation and funds.start_time is not None:
            period = {
                "account": funds.account,
                "allocation": funds.allocation,
                "start_time": funds.start_time,
            }
            self._run("settle_period", period)
            if before is not None and before.allocation != funds.allocation:
                self._run("renew_period", period)
                self._run("forget_other_periods", period)

    def funds_view(self, account: str, user_id: int) -> FundsView:
        """What a verdict is based on."""
        of_account, of_user = self.funds(account, user_id)
        period = of_account.allocation if of_account is not None else ""
        sums = dict(self._run("get_exposure", (account, user_id, period)).fetchall())
        return FundsView(
            account=of_account,
            user=of_user,
            account_exposure_csu=int(sums.get(WHOLE_ACCOUNT, 0)),
            user_exposure_csu=int(sums.get(user_id, 0)),
        )

    def set_aside(self, account: str) -> SetAside:
        """What is open, added up, from the index alone: a refusal waits for it."""
        queued = self._run("set_aside_queued", (account,)).fetchone()
        running = self._run("set_aside_running", (account,)).fetchone()
        return SetAside(
            queued_jobs=int(queued[0]),
            queued_csu=int(queued[1]),
            running_jobs=int(running[0]),
            running_csu=int(running[1]),
            grandfathered_jobs=int(queued[2] + running[2]),
            grandfathered_csu=int(queued[3] + running[3]),
        )

    def accounts_in_use(self) -> Sequence[Tuple[str, int]]:
        """(account, user) pairs with open liens, running runs or deliveries."""
        return list(self._run("accounts_in_use").fetchall())

    def period_of(self, account: str, start_time: Optional[int]) -> str:
        """The allocation period that a run belongs to which started then; "" if the bank was not asked yet."""
        of_account, _ = self.funds(account, WHOLE_ACCOUNT)
        if of_account is None or not of_account.allocation or of_account.start_time is None:
            return ""
        if start_time is None or start_time >= of_account.start_time:
            return of_account.allocation
        return _BEFORE + of_account.allocation

    # -- liens ------------------------------------------------------------------------------------------------------

    def open_lien(
        self,
        *,
        account: str,
        user_id: int,
        per_task_csu: int,
        tasks: int,
        origin: str,
        inputs: Mapping[str, Any],
        reason: str,
        actor: str,
        lien_id: Optional[str] = None,
        counted: bool = True,
        user_name: str = "",
        name: str = "",
        job_id: Optional[int] = None,
        submit_time: Optional[int] = None,
        restart_count: int = 0,
        confirmed: bool = False,
        supersedes: Optional[str] = None,
    ) -> str:
        """Set SUs aside; the lien's id. Unconfirmed unless ``confirmed``.

        :raises EntryConflict: the id exists.
        """
        lien_id = lien_id or new_lien_id()
        per_task_csu = _bounded(per_task_csu, tasks)
        stored_inputs = dump_json(inputs)
        self._insert_lien(
            {
                "lien_id": lien_id,
                "state": "confirmed" if confirmed else "unconfirmed",
                "origin": origin,
                "counted": int(counted),
                "account": account,
                "user_id": user_id,
                "job_id": job_id,
                "submit_time": submit_time,
                "restart_count": restart_count,
                "tasks_left": tasks,
                "per_task_csu": per_task_csu,
                "amount_csu": per_task_csu * tasks,
                "supersedes": supersedes,
                "user_name": user_name,
                "name": name,
                "inputs": stored_inputs,
                "created_us": self.now_us,
            }
        )
        self._append_entry(
            "lien",
            lien_id,
            job_id,
            submit_time,
            restart_count,
            account,
            user_id,
            per_task_csu * tasks if counted else 0,
            actor,
            reason,
            stored_inputs,
        )
        return lien_id

    def _insert_lien(self, values: Mapping[str, Any]) -> None:
        try:
            self._run("insert_lien", values)
        except sqlite3.IntegrityError as error:
            if "liens.lien_id" in str(error):
                raise EntryConflict(f"lien {values['lien_id']} exists") from None
            raise

    def lien(self, lien_id: str) -> Optional[Lien]:
        row = self._row("get_lien", (lien_id,))
        return None if row is None else _lien(row)

    def open_liens(self) -> Sequence[Lien]:
        return [_lien(row) for row in self._rows("open_liens")]

    def open_liens_page(self, after: Optional[Lien], limit: int) -> Sequence[Lien]:
        """Open liens bound to a job, by job id, from behind ``after``: for a look at all that holds nobody up."""
        key = (-1, "") if after is None else (after.job_id, after.lien_id)
        return [_lien(row) for row in self._rows("open_liens_page", (*key, limit))]

    def open_liens_unbound(self, limit: int = MAX_ROWS) -> Sequence[Lien]:
        """Open liens whose job is not known yet."""
        return [_lien(row) for row in self._rows("open_liens_unbound", (limit,))]

    def liens_by_job(self, job_id: int) -> Sequence[Lien]:
        """Every lien that was ever bound to this job id, newest first."""
        return [_lien(row) for row in self._rows("liens_by_job", (job_id, job_id))]

    def find_lien(
        self,
        *,
        job_id: int,
        array_job_id: Optional[int],
        account: str,
        user_id: int,
        submit_time: Optional[int] = None,
        token_lien_id: Optional[str] = None,
    ) -> Optional[Lien]:
        """The open lien of a job that Slurm shows: bound to it, or named by its token and not bound to another.

        A token counts only if user and account match and it is unbound: a copied or forged one finds nothing.
        """
        candidates: List[Lien] = [
            lien
            for lien in map(
                _lien, self._rows("open_liens_by_job", (job_id, array_job_id or job_id))
            )
            if lien.account == account and lien.user_id == user_id and lien.speaks_of(submit_time)
        ]
        if candidates:
            return max(candidates, key=lambda lien: (lien.job_id == job_id, lien.created_us))
        if token_lien_id is not None:
            lien = self.lien(token_lien_id)
            if (
                lien is not None
                and lien.open
                and lien.job_id is None
                and lien.account == account
                and lien.user_id == user_id
            ):
                return lien
        return None

    def _bound(self, lien: Lien, run: Run) -> Lien:
        """The lien, bound to the run's job (the array's, for a task of an array) if its token was all it had."""
        if lien.job_id is not None:
            return lien
        self._run(
            "bind_lien_to_job",
            {
                "lien_id": lien.lien_id,
                "job_id": run.array_job_id or run.job_id,
                "submit_time": run.submit_time,
                "now_us": self.now_us,
            },
        )
        bound = self.lien(lien.lien_id)
        assert bound is not None
        return bound

    def propose(
        self, lien: Lien, *, per_task_csu: int, inputs: Mapping[str, Any], actor: str, reason: str
    ) -> None:
        """An update of a queued job that Slurm has not been seen to make: raises what is set aside, never lowers it."""
        proposed = max(_bounded(per_task_csu, lien.tasks_left), lien.proposed_csu or 0)
        amount = lien.tasks_left * max(lien.per_task_csu, proposed)
        self._run(
            "set_lien_proposal",
            {
                "lien_id": lien.lien_id,
                "proposed_csu": proposed,
                "proposed_us": self.now_us,
                "proposed_inputs": dump_json(inputs),
                "amount_csu": amount,
            },
        )
        self._lien_changed(lien, "raise", amount, actor, reason, inputs)

    def drop_proposal(self, lien: Lien, *, actor: str, reason: str) -> None:
        """Slurm did not make the update: back to what was set aside before."""
        amount = lien.tasks_left * lien.per_task_csu
        self._run(
            "set_lien_proposal",
            {
                "lien_id": lien.lien_id,
                "proposed_csu": None,
                "proposed_us": None,
                "proposed_inputs": None,
                "amount_csu": amount,
            },
        )
        self._lien_changed(lien, "lower", amount, actor, reason, None)

    def confirm(
        self,
        lien: Lien,
        *,
        job_id: int,
        submit_time: Optional[int],
        restart_count: int,
        tasks_left: int,
        per_task_csu: int,
        inputs: Mapping[str, Any],
        seen_inputs: Mapping[str, Any],
        keep_proposal: bool,
        actor: str,
        reason: str,
    ) -> None:
        """Slurm was seen to have the job like this: bind it, and move the amount to what is so, up or down.

        ``keep_proposal``: an update that is younger than the sighting stays open.
        """
        proposed = lien.proposed_csu if keep_proposal else None
        per_task_csu = _bounded(per_task_csu, tasks_left)
        amount = tasks_left * max(per_task_csu, proposed or 0)
        self._run(
            "bind_lien",
            {
                "lien_id": lien.lien_id,
                "job_id": job_id,
                "submit_time": submit_time,
                "restart_count": restart_count,
                "tasks_left": tasks_left,
                "per_task_csu": per_task_csu,
                "inputs": dump_json(inputs),
                "seen_inputs": dump_json(seen_inputs),
                "proposed_csu": proposed,
                "proposed_us": lien.proposed_us if proposed is not None else None,
                "proposed_inputs": dump_json(lien.proposed_inputs)
                if proposed is not None
                else None,
                "amount_csu": amount,
                "now_us": self.now_us,
            },
        )
        if lien.state == "unconfirmed" or amount != lien.amount_csu:
            kind = "confirm"
            if lien.state == "confirmed":
                kind = "raise" if amount > lien.amount_csu else "lower"
            self.append(
                kind,
                lien_id=lien.lien_id,
                job_id=job_id,
                submit_time=submit_time,
                restart_count=restart_count,
                account=lien.account,
                user_id=lien.user_id,
                amount_csu=amount - lien.amount_csu if lien.counted else 0,
                reason=reason,
                actor=actor,
                inputs=seen_inputs,
            )
        self._take_from_old(lien, tasks_left, actor)

    def _take_from_old(self, lien: Lien, tasks: int, actor: str) -> None:
        """Slurm was seen to have moved these tasks to the lien's account: the lien that they were in loses as many.

        Once: later sightings of the lien find it confirmed. Of an array some tasks may move and others stay.
        """
        if lien.supersedes is None or lien.state != "unconfirmed":
            return
        old = self.lien(lien.supersedes)
        if old is not None and old.open:
            reason = f"moved to account {lien.account}"
            self.take_tasks(old, tasks, kind="lien_voided", reason=reason, actor=actor)

    def take_tasks(self, lien: Lien, tasks: int, *, kind: str, reason: str, actor: str) -> int:
        """Take tasks out of a lien (they run, or will not); ends it with ``kind`` when none is left. What it freed."""
        left = max(lien.tasks_left - tasks, 0)
        if left == 0:
            return self.end_lien(lien, kind, reason=reason, actor=actor)
        amount = left * max(lien.per_task_csu, lien.proposed_csu or 0)
        self._run(
            "take_lien_tasks",
            {"lien_id": lien.lien_id, "tasks_left": left, "amount_csu": amount},
        )
        self._lien_changed(lien, "lower", amount, actor, reason, None)
        return lien.amount_csu - amount

    def end_lien(self, lien: Lien, kind: str, *, reason: str, actor: str) -> int:
        """End a lien: ``lien_charged``, ``lien_voided`` or ``lien_expired``. Once; what it freed."""
        self._run("end_lien", {"lien_id": lien.lien_id, "kind": kind, "now_us": self.now_us})
        self._append_of(
            lien,
            kind,
            lien_id=lien.lien_id,
            amount_csu=-lien.amount_csu if lien.counted else 0,
            reason=reason,
            actor=actor,
        )
        return lien.amount_csu

    def set_missed(self, lien: Lien, missed: int) -> None:
        """Count a complete snapshot in which the lien's job was absent (0: it was there)."""
        self._run("set_lien_missed", (missed, lien.lien_id))

    def _lien_changed(
        self,
        lien: Lien,
        kind: str,
        amount_csu: int,
        actor: str,
        reason: str,
        inputs: Optional[Mapping[str, Any]],
    ) -> None:
        self._append_of(
            lien,
            kind,
            lien_id=lien.lien_id,
            amount_csu=amount_csu - lien.amount_csu if lien.counted else 0,
            reason=reason,
            actor=actor,
            inputs=inputs,
        )

    # -- runs -------------------------------------------------------------------------------------------------------

    def run(self, run_id: int) -> Optional[LedgerRun]:
        row = self._row("get_run", (run_id,))
        return None if row is None else _ledger_run(row)

    def find_run(
        self, job_id: int, submit_time: int, restart_count: Optional[int] = None
    ) -> Optional[LedgerRun]:
        """By the run's key; a ``restart_count`` of None or below 0 (sacct before 24.11) matches by the other two.

        Slurm gives a requeued job a new submit time, so job id and submit time name one run.
        """
        found = [_ledger_run(row) for row in self._rows("find_run", (job_id, submit_time))]
        if restart_count is not None and restart_count >= 0:
            found = [run for run in found if run.restart_count == restart_count] or [
                run for run in found if run.restart_count < 0
            ]
        return found[0] if found else None

    def running_runs(self) -> Sequence[LedgerRun]:
        return [_ledger_run(row) for row in self._rows("running_runs")]

    def running_runs_page(self, after: Optional[LedgerRun], limit: int) -> Sequence[LedgerRun]:
        """Running runs by job id, from behind ``after``."""
        key = (-1, 0) if after is None else (after.job_id, after.run_id)
        return [_ledger_run(row) for row in self._rows("running_runs_page", (*key, limit))]

    def runs_by_job(self, job_id: int) -> Sequence[LedgerRun]:
        """Of an array's id: of all its tasks."""
        return [_ledger_run(row) for row in self._rows("runs_by_job", {"job_id": job_id})]

    def ended_runs(
        self,
        *,
        since: int,
        until: int,
        account: Optional[str] = None,
        user_id: Optional[int] = None,
        limit: int = MAX_ROWS,
    ) -> Sequence[LedgerRun]:
        """Charged runs that ended in [since, until), oldest first."""
        return [
            _ledger_run(row)
            for row in self._rows(
                "ended_runs",
                {
                    "account": account,
                    "user_id": user_id,
                    "since": since,
                    "until": until,
                    "limit": limit,
                },
            )
        ]

    def start_run(
        self,
        run: Run,
        *,
        share_csu: int,
        inputs: Mapping[str, Any],
        actor: str,
        token_lien_id: Optional[str] = None,
        grandfathered: bool = False,
        deliver: bool = True,
    ) -> Tuple[LedgerRun, bool]:
        """A run was seen to have started: its share leaves the lien and stays set aside under the run.

        ``share_csu`` is set aside if no lien is found (Slurm's own decision cannot be refused; it may overdraw).
        Idempotent by the run's key; the second value says whether it is new. A run whose start had failed is new again
        when it starts after that.

        :raises EntryConflict: the key belongs to another user or account.
        """
        existing = self._under_key(run, actor)
        if existing is not None and not _starts_again(existing, run):
            return existing, False
        lien = self.find_lien(
            job_id=run.job_id,
            array_job_id=run.array_job_id,
            account=run.account,
            user_id=run.user_id,
            submit_time=run.submit_time,
            token_lien_id=token_lien_id,
        )
        counted = not grandfathered
        share_csu = _bounded(share_csu)
        proposal: Dict[str, Any] = dict(_NO_PROPOSAL)
        if lien is not None:
            lien = self._bound(lien, run)
            if lien.proposed_csu is not None:
                # Made while the job was taken for a queued one; what was seen may be older.
                proposal = {
                    "proposed_csu": lien.proposed_csu,
                    "proposed_us": lien.proposed_us,
                    "proposed_inputs": dump_json(lien.proposed_inputs),
                }
            share_csu = max(lien.per_task_csu, lien.proposed_csu or 0)
            inputs = lien.inputs
            counted = lien.origin != "grandfathered"
            self.take_tasks(
                lien, 1, kind="lien_charged", reason=f"job {run.job_id} started", actor=actor
            )
            self._take_from_old(lien, 1, actor)
        ledger_csu = share_csu if counted else 0
        values = {
            "lien_id": None if lien is None else lien.lien_id,
            "counted": int(counted),
            "partition": run.partition,
            "qos": run.qos,
            "start_time": run.start_time,
            "cpus": run.cpus,
            "nodes": run.nodes,
            "node_count": run.node_count,
            "time_limit_min": run.time_limit_min,
            "slurm_state": run.state,
            "lien_csu": share_csu,
            "ledger_csu": ledger_csu,
            "period": self.period_of(run.account, run.start_time),
            "inputs": dump_json(inputs),
            "source": run.source,
            **proposal,
        }
        if existing is not None:
            run_id = existing.run_id
            # What the bank counted for its first start may have been in an allocation period that is over: until it is
            # told anew, none of it is taken for counted.
            self._run("revive_run", {**values, "run_id": run_id})
            self._run("drop_outbox", (run_id, "end"))
        else:
            run_id = self._insert_run(run, values)
        self._append_of(
            run,
            "start",
            lien_id=None if lien is None else lien.lien_id,
            amount_csu=ledger_csu,
            reason="grandfathered" if not counted else "started",
            actor=actor,
            inputs=inputs,
        )
        if deliver:
            self._run("put_outbox", (run_id, "start", self.now_us))
        started = self.run(run_id)
        assert started is not None
        return started, True

    def _under_key(self, run: Run, actor: str) -> Optional[LedgerRun]:
        """The same run, if it is there. Another user's that began earlier makes way: it is over, and keeps its charge.

        slurmctld, killed before it had saved the job ids of an array's tasks, gives them again; if to a job that was
        submitted in the same second, two runs have one key. The later one has it from then on, as in slurmdbd.

        :raises EntryConflict: it is another account's of this user, or nothing says that it began earlier, or this one is
            what made way.
        """
        existing = self.find_run(run.job_id, run.submit_time, run.restart_count)
        if existing is None:
            return None
        if existing.user_id != run.user_id and not run.started:
            return None  # it has no run, and needs no key
        if existing.user_id != run.user_id and self._is_later(run, existing):
            self._make_way(existing, actor)
            return None
        _check_same(existing, run)
        return existing

    def _is_later(self, run: Run, existing: LedgerRun) -> bool:
        if run.start_time is None or existing.start_time is None:
            return False
        return run.start_time > existing.start_time and not any(
            other.made_way
            and (other.job_id, other.submit_time, other.user_id)
            == (run.job_id, run.submit_time, run.user_id)
            and not other.struck
            for other in self.runs_by_job(run.job_id)
        )

    def _make_way(self, existing: LedgerRun, actor: str) -> None:
        """Its key is another's from now on. A run that goes on is lost: slurmctld does not know it any more."""
        if existing.state == "running":
            self.lose_run(existing, actor=actor)
        seq = self._append_of(
            existing,
            "note",
            lien_id=existing.lien_id,
            amount_csu=0,
            reason="slurmctld gave its job id to another user's job",
            actor=actor,
        )
        over = self.run(existing.run_id)
        assert over is not None
        inputs = {**over.inputs, "told_restart_count": over.told_restart_count}
        moved = {"run_id": over.run_id, "restart_count": -1 - seq, "inputs": dump_json(inputs)}
        self._run("make_way", moved)

    def _insert_run(self, run: Run, values: Mapping[str, Any]) -> int:
        cursor = self._run(
            "insert_run",
            {
                **_NO_PROPOSAL,
                **values,
                "job_id": run.job_id,
                "submit_time": run.submit_time,
                "restart_count": run.restart_count,
                "state": "running",
                "account": run.account,
                "user_id": run.user_id,
                "user_name": run.user_name,
                "name": run.name,
                "array_job_id": run.array_job_id,
                "array_task_id": run.array_task_id,
                "end_time": None,
                "elapsed_s": 0,
                "charge_csu": None,
            },
        )
        return int(cursor.lastrowid or 0)

    def propose_for_run(
        self, run: LedgerRun, *, cost_csu: int, inputs: Mapping[str, Any], actor: str, reason: str
    ) -> None:
        """An update of a running job that Slurm has not been seen to make: raises, never lowers."""
        proposed = max(_bounded(cost_csu), run.proposed_csu or 0)
        ledger_csu = max(run.lien_csu, proposed) if run.counted else 0
        self._run(
            "set_run_proposal",
            {
                "run_id": run.run_id,
                "proposed_csu": proposed,
                "proposed_us": self.now_us,
                "proposed_inputs": dump_json(inputs),
                "ledger_csu": ledger_csu,
            },
        )
        self._run_changed(run, "raise", ledger_csu, actor, reason, inputs)

    def reamount_run(
        self,
        run: LedgerRun,
        *,
        lien_csu: int,
        inputs: Mapping[str, Any],
        time_limit_min: Optional[int],
        cpus: int,
        partition: str,
        qos: Optional[str],
        actor: str,
        reason: str,
    ) -> None:
        """A running job was seen to be like this: its share moves to what is so, and an open update is settled."""
        lien_csu = _bounded(lien_csu)
        ledger_csu = lien_csu if run.counted else 0
        self._run(
            "reamount_run",
            {
                "run_id": run.run_id,
                "lien_csu": lien_csu,
                "inputs": dump_json(inputs),
                "time_limit_min": time_limit_min,
                "cpus": cpus,
                "partition": partition,
                "qos": qos,
                "ledger_csu": ledger_csu,
            },
        )
        if ledger_csu != run.ledger_csu or run.proposed_csu is not None:
            kind = "raise" if ledger_csu > run.ledger_csu else "lower"
            self._run_changed(run, kind, ledger_csu, actor, reason, inputs)

    def _run_changed(
        self,
        run: LedgerRun,
        kind: str,
        ledger_csu: int,
        actor: str,
        reason: str,
        inputs: Optional[Mapping[str, Any]],
    ) -> None:
        self._append_of(
            run,
            kind,
            lien_id=run.lien_id,
            amount_csu=ledger_csu - run.ledger_csu,
            reason=reason,
            actor=actor,
            inputs=inputs,
        )

    def end_run(
        self,
        run: Run,
        *,
        charge_csu: int,
        share_csu: int,
        inputs: Mapping[str, Any],
        actor: str,
        token_lien_id: Optional[str] = None,
        grandfathered: bool = False,
        next_counted: bool = True,
    ) -> EndResult:
        """A run ended, or a job that never ran was cancelled. Charges once; a second end with another cost restates.

        In the same transaction the next run's lien is appended if Slurm will run the job again. ``share_csu`` counts as
        the run's lien if none is found; ``next_counted``: whether a lien counts against funds while its job waits.

        :raises EntryConflict: the key belongs to another user or account.
        """
        existing = self._under_key(run, actor)
        if run.resizing:
            return EndResult(kind="ignored", run=existing)  # not an end
        if not run.started:
            return self._never_ran(run, existing, actor=actor, token_lien_id=token_lien_id)
        if run.state == RETURNED:
            return self._return_to_queue(
                run,
                existing,
                inputs=inputs,
                actor=actor,
                token_lien_id=token_lien_id,
                next_counted=next_counted,
            )
        again = existing is not None and _starts_again(existing, run)
        if existing is not None and existing.returned and not again:
            return EndResult(kind="duplicate", run=existing)
        if existing is not None and existing.state == "ended" and not again:
            if run.requeue and existing.slurm_state != "REQUEUED":
                # A finished job that is put back into the queue: Slurm tells its run again, as if it had gone on until
                # now. It had not.
                next_lien = None
                if not self._has_open_lien(run):
                    next_lien = self._open_next(existing, run, actor, next_counted)
                return EndResult(kind="duplicate", run=existing, next_lien_id=next_lien)
            if existing.charge_csu == charge_csu and existing.end_time == run.end_time:
                return EndResult(kind="duplicate", run=existing)
            return self._restate(existing, run, charge_csu, inputs, actor)
        if existing is None or again:
            existing, _ = self.start_run(
                run,
                share_csu=share_csu,
                inputs=inputs,
                actor=actor,
                token_lien_id=token_lien_id,
                grandfathered=grandfathered,
                deliver=False,
            )
        self._write_end(existing, run, charge_csu, inputs)
        self._append_of(
            run,
            "charge",
            lien_id=existing.lien_id,
            amount_csu=charge_csu - existing.ledger_csu,
            reason=run.state.lower(),
            actor=actor,
            inputs=inputs,
        )
        next_lien = None
        if run.requeue:
            next_lien = self._open_next(existing, run, actor, next_counted)
        return EndResult(
            kind="charged",
            run=self.run(existing.run_id),
            next_lien_id=next_lien,
            overdrawn_csu=max(charge_csu - existing.lien_csu, 0),
        )

    def _open_next(self, ended: LedgerRun, run: Run, actor: str, counted: bool) -> str:
        """The lien of the run to come of a requeued job: Slurm may allocate more to it than to the one that ended."""
        per_task_csu, inputs = ended.lien_csu, ended.inputs
        before = None if ended.lien_id is None else self.lien(ended.lien_id)
        if before is not None and before.per_task_csu > per_task_csu:
            per_task_csu, inputs = before.per_task_csu, before.inputs
        return self.open_lien(
            account=run.account,
            user_id=run.user_id,
            per_task_csu=per_task_csu,
            tasks=1,
            origin="requeue",
            inputs=inputs,
            reason=f"requeued after {run.state.lower()}",
            actor=actor,
            counted=counted,
            user_name=run.user_name or ended.user_name,
            name=run.name or ended.name,
            job_id=run.job_id,
            restart_count=run.restart_count + 1,
            confirmed=True,
        )

    def _has_open_lien(self, run: Run) -> bool:
        found = self.find_lien(
            job_id=run.job_id, array_job_id=None, account=run.account, user_id=run.user_id
        )
        return found is not None

    def _return_to_queue(
        self,
        run: Run,
        existing: Optional[LedgerRun],
        *,
        inputs: Mapping[str, Any],
        actor: str,
        token_lien_id: Optional[str],
        next_counted: bool,
    ) -> EndResult:
        """A start that failed: the job waits again, with what was set aside for it, and nothing is charged.

        Slurm starts the components of a het job one by one; should one not start, it takes the others' nodes back and
        tells each as a run with the state PENDING. Their restart count stays; of the one with the batch script the
        submit time changes, of the others not even that.
        """
        reason = "its start failed: back in the queue"
        if existing is None:
            lien = self.find_lien(
                job_id=run.job_id,
                array_job_id=run.array_job_id,
                account=run.account,
                user_id=run.user_id,
                submit_time=run.submit_time,
                token_lien_id=token_lien_id,
            )
            if lien is None:
                return EndResult(kind="ignored")
            if lien.submit_time == run.submit_time:
                self._run("unsettle_lien", (lien.lien_id,))
                self._append_of(
                    lien, "note", lien_id=lien.lien_id, amount_csu=0, reason=reason, actor=actor
                )
            return EndResult(kind="returned")
        if existing.state == "ended" or (
            run.end_time is not None
            and existing.start_time is not None
            and run.end_time < existing.start_time
        ):
            return EndResult(kind="duplicate", run=existing)
        self._write_end(existing, run, 0, inputs)
        self._run_changed(existing, "lower", 0, actor, reason, inputs)
        next_lien = None
        if not self._has_open_lien(run):
            before = None if existing.lien_id is None else self.lien(existing.lien_id)
            next_lien = self.open_lien(
                account=run.account,
                user_id=run.user_id,
                per_task_csu=existing.lien_csu if before is None else before.per_task_csu,
                tasks=1,
                origin="requeue" if existing.counted else "grandfathered",
                inputs=existing.inputs if before is None else before.inputs,
                reason=reason,
                actor=actor,
                counted=existing.counted and next_counted,
                user_name=existing.user_name,
                name=existing.name,
                job_id=run.job_id,
                restart_count=run.restart_count,
                confirmed=True,
            )
        return EndResult(kind="returned", run=self.run(existing.run_id), next_lien_id=next_lien)

    def note_resize(self, run: LedgerRun, *, tres: Tres, elapsed_s: int, actor: str) -> None:
        """A run goes on with other nodes: it had ``tres`` until it had run for ``elapsed_s``."""
        self._append_of(
            run,
            "note",
            lien_id=run.lien_id,
            amount_csu=0,
            reason="resized",
            actor=actor,
            inputs={"tres": str(tres), "elapsed_s": elapsed_s},
        )

    def resizes(self, run: Union[LedgerRun, Run]) -> Sequence[Tuple[Tres, int]]:
        """Of each resize of a run: what it had until then, and the seconds that it had run by then."""
        key = (run.job_id, run.submit_time, run.account, run.user_id)
        noted = [load_json(row["inputs"]) or {} for row in self._rows("resizes", key)]
        # Schema 1 noted the CPUs alone.
        return [
            (
                parse_tres(inputs["tres"]) if "tres" in inputs else Tres(cpus=int(inputs["cpus"])),
                int(inputs["elapsed_s"]),
            )
            for inputs in noted
        ]

    def note_once(
        self,
        *,
        job_id: int,
        reason: str,
        account: str,
        user_id: int,
        actor: str,
        submit_time: Optional[int] = None,
        restart_count: Optional[int] = None,
        lien_id: Optional[str] = None,
        inputs: Optional[Mapping[str, Any]] = None,
        within_s: int = 60,
    ) -> bool:
        """Append a note about a job, unless it was made within ``within_s``, or :data:`MAX_LIKE_NOTES` for this reason."""
        wanted = {
            "job_id": job_id,
            "reason": reason,
            "inputs": dump_json(inputs),
            "since_us": self.now_us - within_s * 1_000_000,
        }
        like, same = self._run("like_notes", wanted).fetchone()
        if same or like >= MAX_LIKE_NOTES:
            return False
        self.append(
            "note",
            lien_id=lien_id,
            job_id=job_id,
            submit_time=submit_time,
            restart_count=restart_count,
            account=account,
            user_id=user_id,
            amount_csu=0,
            reason=reason,
            actor=actor,
            inputs=inputs,
        )
        return True

    def adopt_charge(
        self, run: LedgerRun, charge_csu: int, *, actor: str, reason: str
    ) -> LedgerRun:
        """What a run was charged by a ledger that was lost, as the bank still has it."""
        self._run("recharge_run", {"run_id": run.run_id, "charge_csu": charge_csu})
        self._append_of(
            run,
            "restated",
            lien_id=run.lien_id,
            amount_csu=charge_csu - run.ledger_csu,
            reason=reason,
            actor=actor,
        )
        adopted = self.run(run.run_id)
        assert adopted is not None
        return adopted

    # -- repairs ----------------------------------------------------------------------------------------------------

    def charges_of(self, run: Union[LedgerRun, Run]) -> Sequence[LedgerEntry]:
        """The start, charge and restated entries under a run's key, account and user, in their order."""
        restart = run.told_restart_count if isinstance(run, LedgerRun) else run.restart_count
        wanted = {
            "job_id": run.job_id,
            "submit_time": run.submit_time,
            "restart_count": restart,
            "account": run.account,
            "user_id": run.user_id,
        }
        return [_entry(row) for row in self._rows("charges_of_run", wanted)]

    def restate_run(
        self,
        existing: LedgerRun,
        run: Run,
        *,
        charge_csu: int,
        entered_csu: int,
        inputs: Mapping[str, Any],
        actor: str,
        reason: str,
    ) -> LedgerRun:
        """An ended run is charged by the figures of ``run``, and its end is delivered again.

        ``entered_csu``: what its entries amount to; the new one makes up what is between that and the charge.

        :raises EntryConflict: it is of another user or account.
        """
        _check_same(existing, run)
        self._write_end(existing, run, charge_csu, inputs)
        self._append_of(
            existing,
            "restated",
            lien_id=existing.lien_id,
            amount_csu=charge_csu - entered_csu,
            reason=reason,
            actor=actor,
            inputs=inputs,
        )
        restated = self.run(existing.run_id)
        assert restated is not None
        return restated

    def restore_run(
        self,
        run: Run,
        *,
        charge_csu: int,
        entered_csu: int,
        inputs: Mapping[str, Any],
        actor: str,
        reason: str,
    ) -> LedgerRun:
        """A run that has entries and no row any more: the row is made again, and what differs is entered."""
        first = next(iter(self.charges_of(run)), None)
        run_id = self._insert_run(
            run,
            {
                "lien_id": None if first is None else first.lien_id,
                "counted": 1,
                "partition": run.partition,
                "qos": run.qos,
                "start_time": run.start_time,
                "cpus": run.cpus,
                "nodes": run.nodes,
                "node_count": run.node_count,
                "time_limit_min": run.time_limit_min,
                "slurm_state": run.state,
                "lien_csu": charge_csu,
                "ledger_csu": charge_csu,
                "period": self.period_of(run.account, run.start_time),
                "inputs": dump_json(inputs),
                "source": run.source,
            },
        )
        made = self.run(run_id)
        assert made is not None
        return self.restate_run(
            made,
            run,
            charge_csu=charge_csu,
            entered_csu=entered_csu,
            inputs=inputs,
            actor=actor,
            reason=reason,
        )

    def strike_run(
        self,
        run: LedgerRun,
        *,
        entered_csu: int,
        actor: str,
        reason: str,
        leaves_row: bool = False,
    ) -> LedgerRun:
        """A run that never was, or was somebody else's: charged nothing, and its key is free for the one that was.

        A run keeps its account, user, job and submit time for ever, so its restart count makes way: minus the number of
        the entry that struck it, which no other run can have. If the bank may have it, the bank is told that it costs nothing;
        but a row of the bank that another run has, too, or is to have (``leaves_row``), is left to that one.
        """
        shares_row = (
            leaves_row
            or run.bank_job_id is not None
            and bool(
                self._run("others_row", (run.job_id, run.bank_job_id, run.run_id)).fetchone()[0]
            )
        )
        waits = run.parked is None and self.delivery_of(run.run_id) is not None
        at_bank = run.bank_job_id is not None or run.start_acked or waits
        inputs = {
            **{key: value for key, value in run.inputs.items() if key != "segments"},
            "elapsed_s": 0,
            "state": STRUCK,
            "told_restart_count": run.told_restart_count,
        }
        seq = self._append_of(
            run,
            "restated" if run.state == "ended" else "charge",
            lien_id=run.lien_id,
            amount_csu=-entered_csu,
            reason=reason,
            actor=actor,
            inputs=inputs,
        )
        self._run(
            "strike_run",
            {
                "run_id": run.run_id,
                "slurm_state": STRUCK,
                "restart_count": -1 - seq,
                "shares_row": int(shares_row),
                "inputs": dump_json(inputs),
            },
        )
        self._run("drop_outbox", (run.run_id, "start"))
        if at_bank and not shares_row:
            self._run("put_outbox", (run.run_id, "end", self.now_us))
        else:
            self._run("drop_outbox", (run.run_id, "end"))
        struck = self.run(run.run_id)
        assert struck is not None
        return struck

    def reopen_end(
        self,
        run: LedgerRun,
        *,
        bank_csu: int,
        bank_job_id: Optional[str],
        actor: str,
        reason: str,
        inputs: Mapping[str, Any],
    ) -> None:
        """The bank has the end of an ended run otherwise, or not at all: it is delivered again.

        ``bank_csu``: what the bank's usage holds for it now. Where that is more than was known, what remains shrinks too,
        as if an acknowledgement had been lost; where it is less, what remains stays, for the bank may have been asked
        since. Either way nothing becomes available by this that is not there. ``bank_job_id`` None: looked for anew.
        """
        self._run(
            "reopen_end",
            {"run_id": run.run_id, "bank_csu": bank_csu, "bank_job_id": bank_job_id},
        )
        more = bank_csu - run.bank_csu
        if more > 0:
            of_account, _ = self.funds(run.account, WHOLE_ACCOUNT)
            if of_account is not None and run.period in ("", of_account.allocation):
                self._run(
                    "spend_funds",
                    {"spent_csu": more, "account": run.account, "user_id": run.user_id},
                )
        self._run("drop_outbox", (run.run_id, "start"))
        self._run("drop_outbox", (run.run_id, "end"))  # a new number: tried at once
        self._run("put_outbox", (run.run_id, "end", self.now_us))
        self._append_of(
            run,
            "note",
            lien_id=run.lien_id,
            amount_csu=0,
            reason=reason,
            actor=actor,
            inputs=inputs,
        )

    def lose_run(self, run: LedgerRun, *, lost_at: Optional[int] = None, actor: str) -> None:
        """Slurm does not know the run any more, and nobody will tell its end: it is over, and costs nothing.

        ``lost_at``: when that was seen, unix seconds; None: now.
        """
        if lost_at is None:
            lost_at = self.now_us // 1_000_000
        inputs = {**run.inputs, "elapsed_s": 0, "state": LOST, "lost_at": lost_at}
        self._run(
            "lose_run", {"run_id": run.run_id, "slurm_state": LOST, "inputs": dump_json(inputs)}
        )
        self._append_of(
            run,
            "charge",
            lien_id=run.lien_id,
            amount_csu=-run.ledger_csu,
            reason="lost: slurmctld was restarted and does not know it, and slurmdbd no end of it",
            actor=actor,
            inputs=inputs,
        )
        self._run("drop_outbox", (run.run_id, "start"))
        self._run("put_outbox", (run.run_id, "end", self.now_us))

    def _never_ran(
        self, run: Run, existing: Optional[LedgerRun], *, actor: str, token_lien_id: Optional[str]
    ) -> EndResult:
        if existing is not None and not existing.returned:
            return EndResult(kind="duplicate", run=existing)
        lien = self.find_lien(
            job_id=run.job_id,
            array_job_id=run.array_job_id,
            account=run.account,
            user_id=run.user_id,
            submit_time=run.submit_time,
            token_lien_id=token_lien_id,
        )
        if lien is None:
            return EndResult(kind="ignored")
        lien = self._bound(lien, run)
        reason = f"job {run.job_id} never ran ({run.state.lower()})"
        if run.array_task_id is not None and lien.tasks_left > 1:
            # One task of an array, told by itself: leave the count of queued tasks to the sweep, which sees it whole
            # (Slurm tells some of these cancellations, and others not at all).
            return EndResult(kind="ignored")
        if run.array_task_id is None:
            self.end_lien(lien, "lien_voided", reason=reason, actor=actor)
        else:
            self.take_tasks(lien, 1, kind="lien_voided", reason=reason, actor=actor)
        self._take_from_old(lien, lien.tasks_left, actor)
        return EndResult(kind="voided")

    def _write_end(
        self, existing: LedgerRun, run: Run, charge_csu: int, inputs: Mapping[str, Any]
    ) -> None:
        period = existing.period
        if not period or run.start_time != existing.start_time:
            # Slurm sets the start anew once the nodes of the run have booted. In a later period the bank has not counted
            # it yet, whatever it did in the one before.
            of_now = self.period_of(run.account, run.start_time)
            period = existing.period if of_now.startswith(_BEFORE) and existing.period else of_now
        self._run(
            "end_run",
            {
                "run_id": existing.run_id,
                "slurm_state": run.state,
                "start_time": run.start_time,
                "end_time": run.end_time,
                "elapsed_s": max(0, run.elapsed_s),
                "cpus": run.cpus,
                "nodes": run.nodes or existing.nodes,
                "node_count": run.node_count or existing.node_count,
                "partition": run.partition,
                "qos": run.qos,
                "time_limit_min": run.time_limit_min
                if run.time_limit_min is not None
                else existing.time_limit_min,
                "charge_csu": charge_csu,
                "period": period,
                "inputs": dump_json(inputs),
                "source": run.source,
            },
        )
        self._run("drop_outbox", (existing.run_id, "start"))
        self._run("put_outbox", (existing.run_id, "end", self.now_us))

    def _restate(
        self,
        existing: LedgerRun,
        run: Run,
        charge_csu: int,
        inputs: Mapping[str, Any],
        actor: str,
    ) -> EndResult:
        self._write_end(existing, run, charge_csu, inputs)
        self._append_of(
            run,
            "restated",
            lien_id=existing.lien_id,
            amount_csu=charge_csu - existing.ledger_csu,
            reason=f"told again by {run.source}: {run.state.lower()}",
            actor=actor,
            inputs=inputs,
        )
        return EndResult(kind="restated", run=self.run(existing.run_id))

    # -- the outbox -------------------------------------------------------------------------------------------------

    def next_deliveries(self, after_seq: int = 0, limit: int = 100) -> Sequence[Delivery]:
        """What the bank has not acknowledged, oldest first."""
        return [_delivery(row) for row in self._rows("next_deliveries", (after_seq, limit))]

    def delivery_of(self, run_id: int) -> Optional[Delivery]:
        """What waits for one run: its start, or its end (which supersedes the start)."""
        row = self._row("delivery_of", (run_id,))
        return None if row is None else _delivery(row)

    def outbox_size(self) -> Tuple[int, Optional[int]]:
        """How many deliveries wait, and since when the oldest does (unix microseconds)."""
        waiting, oldest_us = self._run("count_outbox").fetchone()
        return int(waiting), oldest_us

    def acknowledge(
        self,
        delivery: Delivery,
        *,
        bank_csu: int,
        bank_job_id: Optional[str],
        actor: str = "relay",
        reason: str = "delivered",
    ) -> None:
        """The bank has it, and its usage holds ``bank_csu`` for this run. ``bank_job_id`` None: under no id.

        ``bank_csu`` and what remains at the bank move in one transaction, so that what is available does not jump. If
        the run changed since the delivery was read (its end came, or it was restated), what changed stays in the outbox.
        """
        run = self.run(delivery.run.run_id)
        assert run is not None
        ended = delivery.phase == "end"
        unchanged = not ended or (
            run.charge_csu == delivery.run.charge_csu and run.end_time == delivery.run.end_time
        )
        self._run(
            "acknowledge",
            {
                "run_id": run.run_id,
                "bank_csu": bank_csu,
                "bank_job_id": bank_job_id,
                "start_acked": 1,
                "end_acked": int((ended and unchanged) or (not ended and run.end_acked)),
            },
        )
        delta = bank_csu - run.bank_csu
        if delta:
            of_account, _ = self.funds(run.account, WHOLE_ACCOUNT)
            if of_account is not None and run.period in ("", of_account.allocation):
                self._run(
                    "spend_funds",
                    {"spent_csu": delta, "account": run.account, "user_id": run.user_id},
                )
        if unchanged:
            self._run("drop_outbox", (run.run_id, delivery.phase))
        self._append_of(
            run,
            "delivered",
            lien_id=run.lien_id,
            amount_csu=0,
            reason=f"{delivery.phase} {reason}" + (f" as {bank_job_id}" if bank_job_id else ""),
            actor=actor,
            inputs={"bank_csu": bank_csu},
        )

    def park(self, run_id: int, reason: str) -> None:
        """The bank refuses it and will not think better of it: kept, told, out of the way."""
        self._run("park_run", (reason, run_id))

    def unpark(self, run: LedgerRun, *, actor: str) -> None:
        """An operator has it tried again."""
        self._run("park_run", (None, run.run_id))
        self._append_of(
            run,
            "note",
            lien_id=run.lien_id,
            amount_csu=0,
            reason=f"delivery tried again; the bank had refused it: {run.parked}",
            actor=actor,
        )

    def parked_runs(self) -> Sequence[LedgerRun]:
        return [_ledger_run(row) for row in self._rows("parked_runs")]

    # -- exceptions and prices --------------------------------------------------------------------------------------

    def allow(
        self, *, user_id: Optional[int], job_id: Optional[int], until: int, reason: str, actor: str
    ) -> None:
        """An operator's exception: submissions of this user, or updates of this job, are accepted until then."""
        self._run("insert_exception", (user_id, job_id, until, reason, actor, self.now_us))
        self.append(
            "allow",
            job_id=job_id,
            account="",
            user_id=WHOLE_ACCOUNT if user_id is None else user_id,
            amount_csu=0,
            reason=reason,
            actor=actor,
            inputs={"until": until},
        )

    def exception_for(self, user_id: int, job_id: Optional[int], now: int) -> Optional[str]:
        """The reason of an exception in force, or None."""
        row = self._row("find_exception", {"now": now, "user_id": user_id, "job_id": job_id})
        return None if row is None else str(row["reason"])

    def exceptions(self, now: int) -> Sequence[Mapping[str, Any]]:
        return list(self._rows("exceptions_in_force", (now,)))

    def latest_prices(self) -> Optional[Tuple[int, str]]:
        """Since when (unix microseconds) the price list recorded last is in force, and its version."""
        row = self._row("latest_prices")
        return None if row is None else (row["in_force_us"], row["version"])

    def put_prices(self, since_us: int, version: str, tables: Mapping[str, Any]) -> None:
        """Remember a price list as in force from ``since_us`` (after the one recorded last) until the next one."""
        self._run("insert_prices", (since_us, version, json.dumps(tables, sort_keys=True)))

    def prices_at(self, at: int) -> Optional[Tuple[str, Mapping[str, Any]]]:
        """Version and tables in force at a time (unix seconds)."""
        row = self._row("prices_at", (at * 1_000_000 + 999_999,))
        return None if row is None else (row["version"], json.loads(row["tables"]))

    # -- looking back -----------------------------------------------------------------------------------------------

    def entries_by_job(self, job_id: int) -> Sequence[LedgerEntry]:
        return [_entry(row) for row in self._rows("entries_by_job", {"job_id": job_id})]

    def entries_by_account(
        self, account: str, since_us: int = 0, until_us: int = 2**62
    ) -> Sequence[LedgerEntry]:
        return [
            _entry(row) for row in self._rows("entries_by_account", (account, since_us, until_us))
        ]

    def entries_by_lien(self, lien_id: str, limit: int = MAX_ROWS) -> Sequence[LedgerEntry]:
        return [_entry(row) for row in self._rows("entries_by_lien", (lien_id, limit))]

    def open_liens_of(
        self, *, account: Optional[str], user_id: Optional[int], limit: int = MAX_ROWS
    ) -> Sequence[Lien]:
        """Open liens, oldest first; None: of every account, of every user."""
        wanted = {"account": account, "user_id": user_id, "limit": limit}
        return [_lien(row) for row in self._rows("open_liens_of", wanted)]

    def running_runs_of(
        self, *, account: Optional[str], user_id: Optional[int], limit: int = MAX_ROWS
    ) -> Sequence[LedgerRun]:
        wanted = {"account": account, "user_id": user_id, "limit": limit}
        return [_ledger_run(row) for row in self._rows("running_runs_of", wanted)]

    def unconfirmed_since(self) -> Optional[int]:
        """When the oldest lien was opened that Slurm was not yet seen to have the job of (unix microseconds)."""
        row = self._run("unconfirmed_since").fetchone()
        return None if row[0] is None else int(row[0])

    def count_open_liens(self) -> int:
        return int(self._run("count_open_liens").fetchone()[0])

    def running_at_bank(self, account: str) -> int:
        """What the bank's usage holds already for runs that still run."""
        return int(self._run("running_at_bank", (account,)).fetchone()[0])

    def outbox_of_run(self, run_id: int) -> Mapping[str, int]:
        """The phases of a run that wait for the bank, and since when (unix microseconds)."""
        return {row["phase"]: row["created_us"] for row in self._rows("outbox_of_run", (run_id,))}

    def postings(
        self,
        account: str,
        *,
        since_us: int,
        until_us: int,
        user_id: Optional[int] = None,
        after_seq: int = 0,
        scan: int = 2000,
    ) -> Tuple[Sequence[Posting], Optional[int]]:
        """Charges and restatements in [since, until), in the ledger's order, from at most ``scan`` of its entries.

        The second value is where to go on (``after_seq``); None: that was all. For statements, which may be long: a
        transaction each, so that nobody waits for all of it.
        """
        row = self._run("account_entries_end", (account, after_seq, scan - 1)).fetchone()
        last_seq = 2**62 if row is None else int(row[0])
        wanted = {
            "account": account,
            "user_id": user_id,
            "since_us": since_us,
            "until_us": until_us,
            "after_seq": after_seq,
            "last_seq": last_seq,
        }
        found = [_posting(row) for row in self._rows("postings", wanted)]
        return found, None if row is None else last_seq

    def glance(self, job_id: int) -> Sequence[RunGlance]:
        """Every run of a job id that stands, for a look at very many; a task of an array has a job id of its own."""
        return [RunGlance(*row) for row in self._run("glance_of_job", (job_id,))]

    def accounts_of_runs(self) -> Sequence[str]:
        """Every account that ever had a run."""
        return [row[0] for row in self._run("accounts_of_runs")]

    def keys_of_ended(self, account: str, since: int, until: int) -> Sequence[RunKey]:
        """Of an account's runs that ended in [since, until)."""
        return [RunKey(*row) for row in self._run("keys_of_ended", (account, since, until))]

    def count_ended(self, account: str, since: int, until: int, most: int) -> int:
        """How many of an account's runs ended in [since, until); no further than ``most``."""
        return int(self._run("count_ended", (account, since, until, most)).fetchone()[0])

    def price_history(self) -> Sequence[Tuple[int, str, Mapping[str, Any]]]:
        """Since when (unix microseconds) each price list was in force, its version and its tables; oldest first."""
        return [(row[0], row[1], json.loads(row[2])) for row in self._run("price_history")]

    def fold(self, account: str) -> Tuple[int, int]:
        """What an account's entries come to, and what its liens and runs amount to: the same, or something is wrong."""
        entered_csu, kept_csu = self._run("fold_of_account", {"account": account}).fetchone()
        return int(entered_csu), int(kept_csu)

    def check(self) -> Sequence[str]:
        """What does not add up: one line each; empty when all does."""
        problems = [row["problem"] for row in self._rows("check_exposure")]
        problems += [
            str(row[0]) for row in self._connection.execute("PRAGMA quick_check") if row[0] != "ok"
        ]
        return problems


@lru_cache(maxsize=1024)
def _funds(
    account: str,
    user_id: int,
    kind: str,
    limit_csu: Optional[int],
    remaining_csu: Optional[int],
    allocation: str,
    start_time: Optional[int],
    end_time: Optional[int],
    reason: Optional[str],
    read_at: int,
) -> Funds:
    """A row of ``get_funds``; the same row is the same record, which most submissions of an account find made already."""
    return Funds(
        account=account,
        user_id=None if user_id == WHOLE_ACCOUNT else user_id,
        kind=FundsKind(kind),
        limit_csu=limit_csu,
        remaining_csu=remaining_csu,
        allocation=allocation,
        start_time=start_time,
        end_time=end_time,
        reason=None if reason is None else Reason(reason),
        read_at=read_at,
    )


def _check_same(existing: LedgerRun, run: Run) -> None:
    for field in ("user_id", "account"):
        if getattr(existing, field) != getattr(run, field):
            raise EntryConflict(
                f"job {run.job_id} submitted {run.submit_time} restart {run.restart_count}: the ledger has "
                f"{field} {getattr(existing, field)!r}, {run.source} says {getattr(run, field)!r}"
            )


def _starts_again(existing: LedgerRun, run: Run) -> bool:
    """Whether this is a start after the one that failed."""
    return existing.returned and (
        run.start_time is None or existing.end_time is None or run.start_time > existing.end_time
    )


def _lien(values: Dict[str, Any]) -> Lien:
    """From a row that nobody else needs."""
    values["counted"] = bool(values["counted"])
    values["inputs"] = load_json(values["inputs"]) or {}
    values["proposed_inputs"] = load_json(values["proposed_inputs"])
    values["seen_inputs"] = load_json(values["seen_inputs"])
    return Lien(**values)


def _delivery(row: Dict[str, Any]) -> Delivery:
    """Takes what is the outbox's out of ``row``."""
    return Delivery(
        seq=row.pop("outbox_seq"),
        phase=row.pop("outbox_phase"),
        created_us=row.pop("outbox_created_us"),
        run=_ledger_run(row),
    )


def _ledger_run(values: Dict[str, Any]) -> LedgerRun:
    """From a row that nobody else needs."""
    for flag in ("counted", "start_acked", "end_acked"):
        values[flag] = bool(values[flag])
    values["inputs"] = load_json(values["inputs"]) or {}
    values["proposed_inputs"] = load_json(values["proposed_inputs"])
    return LedgerRun(**values)


def _posting(row: Mapping[str, Any]) -> Posting:
    run = _ledger_run({key: value for key, value in row.items() if not key.startswith("posting_")})
    amount = int(row["posting_amount_csu"])
    if row["posting_kind"] == "charge":
        # The entry says how far the charge was from the lien; the run, what it was, and what was restated since.
        amount = (run.charge_csu or 0) - int(row["posting_restated_csu"])
    return Posting(
        seq=row["posting_seq"],
        at_us=row["posting_at_us"],
        kind=row["posting_kind"],
        amount_csu=amount,
        reason=row["posting_reason"],
        actor=row["posting_actor"],
        inputs=load_json(row["posting_inputs"]) or {},
        run=run,
    )


def _entry(row: Mapping[str, Any]) -> LedgerEntry:
    values = dict(row)
    values["inputs"] = load_json(values["inputs"])
    return LedgerEntry(**values)
