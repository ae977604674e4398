# SPDX-License-Identifier: BSD-3-Clause
"""What the relay answers, and to whom.

Root, SlurmUser and the configuration's ``admin_users`` see everything. Everybody else sees the accounts that slurmdbd
associates them with (their totals), their own jobs in them, and, as a coordinator of an account, all jobs in it. What one
may not see does not exist: the answer is the same as for what there is not.
"""

from __future__ import annotations

import os
import pwd
import re
import threading
import time
from dataclasses import asdict, dataclass
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Tuple,
)

from slurm_banking import __version__
from slurm_banking.amounts import MAX_WIRE_CSU
from slurm_banking.config import Config
from slurm_banking.errors import LedgerError, SlurmUnavailable
from slurm_banking.ledger import Ledger, LedgerEntry, LedgerRun, Lien, Posting
from slurm_banking.ledger.transaction import Transaction
from slurm_banking.records import Funds
from slurm_banking.relay import account_funds, explain, mend, outbox
from slurm_banking.relay.answer import Peer
from slurm_banking.relay.metrics import oldest_due_us
from slurm_banking.relay.protocol import failure
from slurm_banking.relay.quote import Facts, price_quote

#: Rows of one kind in one answer.
MAX_ROWS = 20_000
#: Entries of one job in one answer.
MAX_ENTRIES = 1_000
#: Seconds that a person waits for the bank before an older word of it is shown.
_BALANCE_BUDGET_S = 2.0
_SWEEP_BUDGET_S = 8.0
_NAMES_KEPT_S = 300.0
#: Between two looks whether a delivery has come to something.
_LOOK_S = 0.1

_JOB = re.compile(r"(?P<job>[0-9]{1,10})(?:_(?P<task>[0-9]{1,10}))?(?:\+(?P<het>[0-9]{1,4}))?")


class Members(Protocol):
    """Who belongs where, by Slurm's associations. Each may raise SlurmUnavailable."""

    def accounts_of(self, user_name: str) -> Sequence[str]: ...

    def default_account(self, user_name: str) -> Optional[str]: ...

    def coordinated_by(self, user_name: str) -> Collection[str]: ...


class Desk(Protocol):
    def ask(
        self, account: str, user_id: int, *, max_age_s: float, budget_s: float
    ) -> Dict[str, Any]: ...


@dataclass(frozen=True)
class Parts:
    """What questions are answered from; the daemon puts it together."""

    ledger: Ledger
    config: Callable[[], Config]
    members: Members
    desk: Desk
    facts: Callable[[], Facts]  #: partitions and defaults, for quotes; raises SlurmUnavailable
    nudge: Callable[[], None]  #: somebody knows of something new in the queue
    sweep: Callable[[bool, float], Mapping[str, Any]]  #: (force, seconds to wait) -> its report
    health: Callable[[], Mapping[str, Any]]
    delivery_state: Callable[[LedgerRun], Mapping[str, Any]]  #: tries and last error, if any
    refused_runs: Callable[[int], Sequence[int]]  #: (at most so many) runs that the bank refused
    retry: Callable[[Sequence[int], str], Sequence[LedgerRun]]  #: (runs, actor) -> those that wait
    #: (at most so many, of these runs or of all) -> what waits for the bank
    standings: Callable[[int, Optional[Sequence[int]]], Sequence[outbox.Standing]]
    #: (run, what the bank has or None, reason, actor) -> the run, and what it had there; raises NotByHand
    resolve: Callable[[int, Optional[int], str, str], Tuple[LedgerRun, int]]
    metrics: Callable[[], str] = lambda: ""  #: for Prometheus
    #: (what reconcile wants done at the bank, actor) -> what came of it; raises NotMended
    mend: Callable[[Mapping[str, Any], str], Mapping[str, Any]] = lambda wanted, actor: {}


class Refused(Exception):
    """An answer that says no."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Caller:
    uid: int
    name: str  #: "" if the name service does not know the uid
    owner: bool  #: root or SlurmUser
    admin: bool  #: owner, or one of admin_users


class Names:
    """User names by uid and back, remembered for some minutes: the name service may be slow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: Dict[int, Tuple[float, str]] = {}

    def name(self, uid: int) -> str:
        with self._lock:
            kept = self._kept.get(uid)
            if kept is not None and time.monotonic() - kept[0] < _NAMES_KEPT_S:
                return kept[1]
        try:
            name = pwd.getpwuid(uid).pw_name
        except (KeyError, OverflowError):
            name = ""
        with self._lock:
            if len(self._kept) > 10_000:
                self._kept.clear()
            self._kept[uid] = (time.monotonic(), name)
        return name

    @staticmethod
    def uid(name: str) -> Optional[int]:
        if name.isascii() and name.isdigit() and len(name) <= 10:
            return int(name)
        try:
            return pwd.getpwnam(name).pw_uid
        except (KeyError, ValueError):
            return None


class Questions:
    """Called by the listener on several threads at once."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._names = Names()
        self._ops: Dict[str, Callable[[Caller, Mapping[str, Any]], Dict[str, Any]]] = {
            "ping": self._ping,
            "status": self._status,
            "funds": self._funds,
            "nudge": self._nudge,
            "balance": self._balance,
            "statement": self._statement,
            "jobs": self._jobs,
            "quote": self._quote,
            "why": self._why,
            "explain": self._explain,
            "allow": self._allow,
            "exceptions": self._exceptions,
            "sweep": self._sweep,
            "retry": self._retry,
            "outbox": self._outbox,
            "resolve": self._resolve,
            "reconcile_bank": self._reconcile_bank,
            "metrics": self._metrics,
            "account_funds": self._account_funds,
        }

    @property
    def names(self) -> Sequence[str]:
        return tuple(self._ops)

    @staticmethod
    def privileged(uid: int) -> bool:
        return uid == 0 or uid == os.geteuid()

    def __call__(self, peer: Peer, request: Mapping[str, Any]) -> Dict[str, Any]:
        op = request.get("op")
        answer = self._ops.get(op) if isinstance(op, str) else None
        if answer is None:
            return failure("bad_request", f"op: expected one of {', '.join(self._ops)}")
        try:
            return answer(self._caller(peer.uid), request)
        except Refused as refused:
            return failure(refused.code, str(refused))
        except (LedgerError, SlurmUnavailable) as error:
            return failure("unavailable", str(error))

    def _caller(self, uid: int) -> Caller:
        owner = self.privileged(uid)
        if owner:
            return Caller(uid=uid, name=self._names.name(uid), owner=True, admin=True)
        name = self._names.name(uid)
        admins = self._parts.config().relay.admin_users
        return Caller(
            uid=uid,
            name=name,
            owner=False,
            admin=(name != "" and name in admins) or str(uid) in admins,
        )

    # -- who may see what -----------------------------------------------------------------------------------------

    def _coordinates(self, caller: Caller, account: str) -> bool:
        return caller.admin or (
            caller.name != "" and account in self._parts.members.coordinated_by(caller.name)
        )

    def _own_accounts(self, caller: Caller) -> List[str]:
        if caller.name == "":
            return []
        members = self._parts.members
        return sorted({*members.accounts_of(caller.name), *members.coordinated_by(caller.name)})

    def _account(self, caller: Caller, request: Mapping[str, Any]) -> str:
        account = _text(request, "account").lower()
        if not caller.admin and account not in self._own_accounts(caller):
            raise Refused("not_found", f"{account}: not an account of yours")
        return account

    def _user(self, caller: Caller, request: Mapping[str, Any], account: Optional[str]) -> int:
        """The user that is asked about; oneself if none is named."""
        name = _optional_text(request, "user")
        if name is None:
            return caller.uid
        uid = self._names.uid(name)
        if uid == caller.uid:
            return caller.uid
        if not caller.admin and (account is None or not self._coordinates(caller, account)):
            raise Refused("denied", f"{name}: only coordinators and operators may ask about others")
        if uid is None:
            raise Refused("not_found", f"{name}: no such user on this host")
        return uid

    # -- the relay itself -----------------------------------------------------------------------------------------

    def _ping(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        return {"ok": True, "pid": os.getpid(), "version": __version__}

    def _status(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        health = dict(self._parts.health())
        with self._parts.ledger.transaction(write=False) as tx:
            waiting, oldest_us = tx.outbox_size()
            parked = tx.parked_runs()
            due_us = oldest_due_us(tx, oldest_us, len(parked))
            complete = tx.complete
        reply: Dict[str, Any] = {
            "ok": True,
            "pid": os.getpid(),
            "version": __version__,
            "ledger_complete": complete,
            "outbox": waiting,
            "outbox_oldest": None if oldest_us is None else oldest_us // 1_000_000,
            "outbox_oldest_due": None if due_us is None else due_us // 1_000_000,
            "parked": len(parked),
            # What it is, is for operators; that there is something, monitoring may know, whoever it runs as.
            "alarm_count": len(health.get("alarms") or ()),
            "failing_count": len(health.get("failing") or ()),
            "config_rejected": health.get("config_problem") is not None,
        }
        if caller.admin:
            reply["parked_runs"] = [
                {**_run_key(run), "account": run.account, "reason": run.parked}
                for run in parked[:100]
            ]
            return {**health, **reply}
        shown = ("bank_away_since", "last_sweep", "last_sacct", "started", "cluster", "accounting_differs", "accounting_differs_at")  # fmt: skip
        return {**{key: health.get(key) for key in shown if key in health}, **reply}

    def _metrics(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        _operators_only(caller, "metrics")
        return {"ok": True, "text": self._parts.metrics()}

    def _funds(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        if not caller.owner:
            raise Refused("denied", "funds: only slurmctld asks this; see: slurm-banking balance")
        return self._parts.desk.ask(
            _text(request, "account"),
            _number(request, "user_id", 0, 2**32),
            max_age_s=_number(request, "max_age_s", 0, 86400, 3),
            budget_s=_number(request, "budget_ms", 0, 9000, 200) / 1000,
        )

    def _nudge(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        if not caller.owner:
            raise Refused("denied", "nudge: only slurmctld does this")
        self._parts.nudge()
        return {"ok": True}

    def _sweep(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        _operators_only(caller, "sweep")
        force = request.get("force", False)
        if not isinstance(force, bool):
            raise Refused("bad_request", "force: expected true or false")
        return {"ok": True, "report": dict(self._parts.sweep(force, _SWEEP_BUDGET_S))}

    def _retry(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        """What the bank refused is sent again: of one job, or of all."""
        _operators_only(caller, "retry")
        everything = request.get("all", False)
        if not isinstance(everything, bool):
            raise Refused("bad_request", "all: expected true or false")
        if everything == (request.get("job") is not None):
            raise Refused("bad_request", "expected a job, or all")
        with self._parts.ledger.transaction(write=False) as tx:
            if everything:
                run_ids = [run.run_id for run in tx.parked_runs()]
            else:
                text, job_id, task = _job(request)
                run_ids = [run.run_id for run in _runs_of(tx, job_id, task)]
        if everything:
            run_ids = sorted({*run_ids, *self._parts.refused_runs(MAX_ROWS)})[:MAX_ROWS]
        tried = self._parts.retry(run_ids, _actor(caller))
        if not tried and not everything:
            raise Refused("not_found", f"job {text}: nothing of it waits for the bank")
        shown = self._until_delivered(tried[:MAX_ENTRIES], _SWEEP_BUDGET_S)
        return {
            "ok": True,
            "runs": shown,
            "left_out": len(tried) - len(shown),
            "bank_away_since": self._parts.health().get("bank_away_since"),
        }

    def _until_delivered(self, runs: Sequence[LedgerRun], budget_s: float) -> List[Dict[str, Any]]:
        """What became of their deliveries: "delivered", "refused" for good, or still "waiting" when the time is up."""
        until = time.monotonic() + budget_s
        rows = {
            run.run_id: {**_run_key(run), "account": run.account, "result": "waiting", "reason": ""}
            for run in runs
        }
        left = list(rows)
        while left and time.monotonic() < until:
            time.sleep(_LOOK_S)
            for run_id in list(left):
                with self._parts.ledger.transaction(write=False) as tx:
                    delivery = tx.delivery_of(run_id)
                if delivery is None:
                    rows[run_id]["result"] = "delivered"
                elif delivery.run.parked is not None:
                    rows[run_id].update(result="refused", reason=delivery.run.parked)
                else:
                    state = self._parts.delivery_state(delivery.run)
                    rows[run_id]["reason"] = state.get("last_error") or ""
                    if state.get("state") != "healing":
                        continue
                    rows[run_id]["result"] = "refused"
                left.remove(run_id)
        return list(rows.values())

    # -- the outbox -----------------------------------------------------------------------------------------------

    def _outbox(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        _operators_only(caller, "outbox")
        limit = _number(request, "limit", 1, MAX_ROWS, 100)
        run_ids: Optional[List[int]] = None
        if request.get("job") is not None:
            _, job_id, task = _job(request)
            with self._parts.ledger.transaction(write=False) as tx:
                run_ids = [run.run_id for run in _runs_of(tx, job_id, task)]
        found = self._parts.standings(limit, run_ids)
        with self._parts.ledger.transaction(write=False) as tx:
            waiting, oldest_us = tx.outbox_size()
            parked = len(tx.parked_runs())
        health = self._parts.health()
        return {
            "ok": True,
            "as_of": int(time.time()),
            "waiting": waiting,
            "oldest": None if oldest_us is None else oldest_us // 1_000_000,
            "parked": parked,
            "deliveries": dict(health.get("deliveries") or {}),
            "bank_away_since": health.get("bank_away_since"),
            "bank_away_reason": health.get("bank_away_reason"),
            "rows": [
                {
                    **_run_key(one.delivery.run),
                    **outbox.standing_row(one),
                    "advice": one.advice(job_name(one.delivery.run)),
                }
                for one in found
            ],
            "left_out": max(0, waiting - len(found)) if run_ids is None else 0,
        }

    def _resolve(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        """An operator says that a refused delivery is settled at the bank."""
        _operators_only(caller, "resolve")
        text, job_id, task = _job(request)
        reason = _text(request, "reason", most=500).strip()
        if not reason:
            raise Refused("bad_request", "reason: expected one")
        bank_has_csu: Optional[int] = None
        if request.get("bank_has_csu") is not None:
            bank_has_csu = _number(request, "bank_has_csu", 0, MAX_WIRE_CSU)
        with self._parts.ledger.transaction(write=False) as tx:
            run_ids = [run.run_id for run in _runs_of(tx, job_id, task)]
        found = self._parts.standings(MAX_ENTRIES, run_ids)
        refused = [one for one in found if one.state in ("parked", "healing")]
        if not found:
            raise Refused("not_found", f"job {text}: nothing of it waits for the bank")
        if len(refused) > 1 and bank_has_csu is not None:
            raise Refused(
                "bad_request",
                f"bank_has: job {text} has {len(refused)} refused deliveries: name one (123_4), or let the bank be asked",
            )
        rows: List[Dict[str, Any]] = []
        for one in refused or found[:1]:
            run = one.delivery.run
            try:
                settled, before_csu = self._parts.resolve(
                    run.run_id, bank_has_csu, reason, _actor(caller)
                )
            except outbox.NotByHand as error:
                if len(refused) <= 1:
                    code = "unavailable" if error.later else "denied"
                    raise Refused(code, f"job {text}: {error}") from None
                rows.append({**_run_key(run), "account": run.account, "problem": str(error)})
                continue
            rows.append({**_run_key(settled), **outbox.resolved_row(settled, before_csu)})
        return {"ok": True, "runs": rows, "reason": reason}

    # -- reconcile --------------------------------------------------------------------------------------------------

    def _reconcile_bank(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        """What reconcile found at the bank is put right there: a run is sent again, a row that is no run's is set to nothing."""
        _operators_only(caller, "reconcile_bank")
        wanted = mend.wanted(request)
        if isinstance(wanted, str):
            raise Refused("bad_request", wanted)
        try:
            actor = mend.actor(request, _actor(caller), caller.owner)
            return {"ok": True, **self._parts.mend(wanted, actor)}
        except mend.NotMended as error:
            raise Refused("unavailable" if error.later else "denied", str(error)) from None

    # -- balance --------------------------------------------------------------------------------------------------

    def _balance(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        if request.get("account") is not None:
            accounts = [self._account(caller, request)]
        else:
            accounts = self._own_accounts(caller)
        user_id = self._user(caller, request, accounts[0] if len(accounts) == 1 else None)
        if user_id != caller.uid and request.get("account") is None:
            accounts = list(self._parts.members.accounts_of(self._names.name(user_id)))
        until = time.monotonic() + _BALANCE_BUDGET_S
        for account in accounts:
            left = until - time.monotonic()
            if left > 0.05:
                max_age_s = self._parts.config().relay.funds_refresh_s
                self._parts.desk.ask(account, user_id, max_age_s=max_age_s, budget_s=left)
        rows = []
        for account in accounts:
            with self._parts.ledger.transaction(write=False) as tx:
                rows.append(balance_row(tx, account, user_id))
        return {
            "ok": True,
            "as_of": int(time.time()),
            "user_id": user_id,
            "user": self._names.name(user_id) or str(user_id),
            "bank_away_since": self._parts.health().get("bank_away_since"),
            "accounts": rows,
        }

    def _account_funds(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        _operators_only(caller, "account_funds")
        try:
            asked = account_funds.pairs(request.get("accounts"))
        except ValueError as error:
            raise Refused("bad_request", str(error)) from None
        max_age_s = self._parts.config().relay.funds_refresh_s
        rows = account_funds.read(self._parts.ledger, self._parts.desk, asked, max_age_s=max_age_s)
        return {
            "ok": True,
            "as_of": int(time.time()),
            "bank_away_since": self._parts.health().get("bank_away_since"),
            "accounts": rows,
        }

    # -- statement ------------------------------------------------------------------------------------------------

    def _statement(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        if request.get("account") is None:
            accounts = self._own_accounts(caller)
            default = (
                self._parts.members.default_account(caller.name) if caller.name != "" else None
            )
            if default in accounts:
                accounts = [str(default)]
            if len(accounts) != 1:
                raise Refused(
                    "bad_request", f"account: expected one of {', '.join(accounts) or '(none)'}"
                )
            account = accounts[0]
        else:
            account = self._account(caller, request)
        now = int(time.time())
        since = _number(request, "since", 0, 2**40, now - 30 * 86400)
        until = _number(request, "until", 0, 2**40, now + 1)
        sees_all = self._coordinates(caller, account)
        only_user = None
        if request.get("user") is not None:
            only_user = self._user(caller, request, account)
        rows: List[Dict[str, Any]] = []
        sums = dict.fromkeys(
            (
                "charges",
                "charged_csu",
                "adjustments",
                "adjusted_csu",
                "shown",
                "hidden",
                "hidden_csu",
            ),
            0,
        )
        after: Optional[int] = 0
        deadline = time.monotonic() + _SWEEP_BUDGET_S
        while after is not None:
            if time.monotonic() > deadline:
                raise Refused("unavailable", "too many entries for one answer; ask for fewer days")
            with self._parts.ledger.transaction(write=False) as tx:
                postings, after = tx.postings(
                    account,
                    since_us=since * 1_000_000,
                    until_us=until * 1_000_000,
                    user_id=only_user,
                    after_seq=after,
                )
            for posting in postings:
                what = "charg" if posting.kind == "charge" else "adjust"
                sums["charges" if what == "charg" else "adjustments"] += 1
                sums[what + "ed_csu"] += posting.amount_csu
                if not sees_all and posting.run.user_id != caller.uid:
                    sums["hidden"] += 1
                    sums["hidden_csu"] += posting.amount_csu
                elif len(rows) < MAX_ROWS:
                    rows.append(posting_row(posting))
            time.sleep(0.001)  # the ledger's mutex is the whole relay's
        sums["shown"] = len(rows)
        with self._parts.ledger.transaction(write=False) as tx:
            balance = balance_row(tx, account, caller.uid if only_user is None else only_user)
        reply: Dict[str, Any] = {
            "ok": True,
            "account": account,
            "user": None if only_user is None else self._names.name(only_user) or str(only_user),
            "since": since,
            "until": until,
            "as_of": now,
            "rows": rows,
            **sums,
            "balance": balance,
        }
        reply.update(_opening(balance, sums, since, until, now, only_user))
        return reply

    # -- jobs -----------------------------------------------------------------------------------------------------

    def _jobs(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        account = None if request.get("account") is None else self._account(caller, request)
        everybody = request.get("all_users", False) is True
        if everybody:
            if account is None and not caller.admin:
                raise Refused("bad_request", "account: expected with all_users")
            if account is not None and not self._coordinates(caller, account):
                raise Refused("denied", f"{account}: you are not a coordinator of it")
        user_id = None if everybody else self._user(caller, request, account)
        now = int(time.time())
        ended_h = _number(request, "ended_h", 0, 24 * 31, 24)
        with self._parts.ledger.transaction(write=False) as tx:
            liens = tx.open_liens_of(account=account, user_id=user_id, limit=MAX_ROWS)
        with self._parts.ledger.transaction(write=False) as tx:
            running = tx.running_runs_of(account=account, user_id=user_id, limit=MAX_ROWS)
        with self._parts.ledger.transaction(write=False) as tx:
            ended = tx.ended_runs(
                since=now - ended_h * 3600,
                until=now + 86400,
                account=account,
                user_id=user_id,
                limit=MAX_ROWS,
            )
        return {
            "ok": True,
            "as_of": now,
            "queued": [lien_row(lien) for lien in liens],
            "running": [run_row(run) for run in running],
            "ended": [run_row(run) for run in ended],
        }

    # -- why ------------------------------------------------------------------------------------------------------

    def _told(
        self, caller: Caller, request: Mapping[str, Any]
    ) -> Tuple[str, List[Lien], List[LedgerRun], List[LedgerEntry]]:
        """The job as it was typed, and of its liens, runs and entries what the caller may see.

        :raises Refused: nothing.
        """
        text, job_id, task = _job(request)
        with self._parts.ledger.transaction(write=False) as tx:
            liens, runs, entries = _story(tx, job_id, task)
        touched = {(lien.account, lien.user_id) for lien in liens}
        touched |= {(run.account, run.user_id) for run in runs}
        # An update that was refused may be all that there is of a job.
        touched |= {(entry.account, entry.user_id) for entry in entries if entry.kind == "note"}
        visible = {
            (account, user_id)
            for account, user_id in touched
            if user_id == caller.uid or self._coordinates(caller, account)
        }
        if not visible:
            raise Refused(
                "not_found",
                f"job {text}: nothing was set aside or charged for it here (refused, exempt, of another cluster, "
                "or not yours)",
            )
        return (
            text,
            [lien for lien in liens if (lien.account, lien.user_id) in visible],
            [run for run in runs if (run.account, run.user_id) in visible],
            [entry for entry in entries if (entry.account, entry.user_id) in visible],
        )

    def _why(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        text, liens, runs, shown = self._told(caller, request)
        with self._parts.ledger.transaction(write=False) as tx:
            waiting = {run.run_id: tx.outbox_of_run(run.run_id) for run in runs[:MAX_ENTRIES]}
        return {
            "ok": True,
            "job": text,
            "as_of": int(time.time()),
            "bank_away_since": self._parts.health().get("bank_away_since"),
            "liens": [lien_row(lien) for lien in liens[:MAX_ENTRIES]],
            "runs": [
                {
                    **run_row(run),
                    "waiting_since": {
                        phase: at_us // 1_000_000 for phase, at_us in waiting[run.run_id].items()
                    },
                    "delivery": dict(self._parts.delivery_state(run))
                    if waiting[run.run_id]
                    else {},
                }
                for run in runs[:MAX_ENTRIES]
            ],
            "entries": [entry_row(entry) for entry in shown[:MAX_ENTRIES]],
            "entries_left_out": max(0, len(shown) - MAX_ENTRIES),
        }

    def _explain(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        text, liens, runs, entries = self._told(caller, request)
        rows = []
        for run in runs[:MAX_ENTRIES]:
            with self._parts.ledger.transaction(write=False) as tx:
                rows.append({**_run_key(run), **explain.run_sums(tx, run, entries)})
        waiting = [lien for lien in liens if lien.open]
        return {
            "ok": True,
            "job": text,
            "as_of": int(time.time()),
            "runs": rows,
            "runs_left_out": len(runs) - len(rows),
            "liens": [explain.lien_sums(lien) for lien in waiting[:MAX_ENTRIES]],
        }

    # -- quote ----------------------------------------------------------------------------------------------------

    def _quote(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        options = request.get("options")
        if not isinstance(options, dict):
            raise Refused("bad_request", "options: expected an object")
        caller = self._quoted(caller, request)
        members = self._parts.members
        account = options.get("account")
        if account is None:
            account = None if caller.name == "" else members.default_account(caller.name)
        elif not isinstance(account, str) or not 0 < len(account) < 256:
            raise Refused("bad_request", "options: account: expected a name")
        if account is not None:
            account = account.lower()
        own = self._own_accounts(caller)
        associated = account is not None and account in own
        user_id = caller.uid
        config = self._parts.config()
        if account is not None and (associated or caller.admin):
            self._parts.desk.ask(
                account,
                user_id,
                max_age_s=config.relay.funds_refresh_s,
                budget_s=_BALANCE_BUDGET_S,
            )
        try:
            return price_quote(
                options,
                account=account,
                associated=associated or caller.admin,
                user_id=user_id,
                user_name=caller.name,
                config=config,
                facts=self._parts.facts(),
                ledger=self._parts.ledger,
            )
        except ValueError as error:
            raise Refused("bad_request", f"options: {error}") from None

    def _quoted(self, caller: Caller, request: Mapping[str, Any]) -> Caller:
        """Whose job it is: the caller's own, or of whom an operator names."""
        name = _optional_text(request, "user")
        if name is None or name == caller.name:
            return caller
        if not caller.admin:
            raise Refused("denied", f"{name}: only operators may ask what a job of others costs")
        uid = self._names.uid(name)
        if uid is None:
            raise Refused("not_found", f"{name}: no such user on this host")
        return Caller(uid=uid, name=self._names.name(uid), owner=False, admin=False)

    # -- exceptions -----------------------------------------------------------------------------------------------

    def _allow(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        _operators_only(caller, "allow")
        now = int(time.time())
        until = _number(request, "until", 0, 2**40)
        if until <= now:
            raise Refused("bad_request", "until: expected a time that is still to come")
        reason = _text(request, "reason", most=500).strip()
        if not reason:
            raise Refused("bad_request", "reason: expected one")
        job_id: Optional[int] = None
        user_id: Optional[int] = None
        if request.get("job_id") is not None:
            job_id = _number(request, "job_id", 1, 2**32)
        else:
            name = _text(request, "user")
            user_id = self._names.uid(name)
            if user_id is None:
                raise Refused("not_found", f"{name}: no such user on this host")
        with self._parts.ledger.transaction() as tx:
            tx.allow(
                user_id=user_id,
                job_id=job_id,
                until=until,
                reason=reason,
                actor=_actor(caller),
            )
        return {"ok": True, "user_id": user_id, "job_id": job_id, "until": until, "reason": reason}

    def _exceptions(self, caller: Caller, request: Mapping[str, Any]) -> Dict[str, Any]:
        with self._parts.ledger.transaction(write=False) as tx:
            rows = tx.exceptions(int(time.time()))
        return {
            "ok": True,
            "exceptions": [
                {
                    "user_id": row["user_id"],
                    "user": None
                    if row["user_id"] is None
                    else self._names.name(row["user_id"]) or str(row["user_id"]),
                    "job_id": row["job_id"],
                    "until": row["until"],
                    "reason": row["reason"],
                    "actor": row["actor"],
                    "created": row["created_us"] // 1_000_000,
                }
                for row in rows[:MAX_ROWS]
                if caller.admin or row["user_id"] == caller.uid
            ],
        }


# -- arguments ----------------------------------------------------------------------------------------------------


def _optional_text(request: Mapping[str, Any], key: str, most: int = 255) -> Optional[str]:
    value = request.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= most or not value.isprintable():
        raise Refused("bad_request", f"{key}: expected printable text of 1 to {most} characters")
    return value


def _text(request: Mapping[str, Any], key: str, most: int = 255) -> str:
    value = _optional_text(request, key, most)
    if value is None:
        raise Refused("bad_request", f"{key}: missing")
    return value


def _number(
    request: Mapping[str, Any], key: str, least: int, most: int, default: Optional[int] = None
) -> int:
    value = request.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Refused("bad_request", f"{key}: expected a whole number from {least} to {most}")
    return value


def _job(request: Mapping[str, Any]) -> Tuple[str, int, Optional[int]]:
    """The job that is asked about: as it was typed, its id, and the task of an array."""
    text = _text(request, "job")
    match = _JOB.fullmatch(text)
    if match is None or int(match["job"]) == 0:
        raise Refused("bad_request", f"job: expected a job id like 123 or 123_4, not {text!r}")
    task = None if match["task"] is None else int(match["task"])
    return text, int(match["job"]) + int(match["het"] or 0), task


def _actor(caller: Caller) -> str:
    return caller.name or f"uid {caller.uid}"


def _operators_only(caller: Caller, what: str) -> None:
    if not caller.admin:
        raise Refused("denied", f"{what}: only root, SlurmUser and [Relay] admin_users may do this")


# -- rows -----------------------------------------------------------------------------------------------------------


def balance_row(tx: Transaction, account: str, user_id: int) -> Dict[str, Any]:
    """available = remaining - (queued + running - running_at_bank + undelivered), to the hundredth."""
    view = tx.funds_view(account, user_id)
    aside = tx.set_aside(account)
    at_bank = tx.running_at_bank(account)
    undelivered = view.account_exposure_csu - aside.queued_csu - aside.running_csu + at_bank
    return {
        "account": account,
        **_funds_row(view.account),
        "queued_csu": aside.queued_csu,
        "queued_jobs": aside.queued_jobs,
        "running_csu": aside.running_csu,
        "running_jobs": aside.running_jobs,
        "running_at_bank_csu": at_bank,
        "undelivered_csu": undelivered,
        "grandfathered_csu": aside.grandfathered_csu,
        "grandfathered_jobs": aside.grandfathered_jobs,
        "available_csu": view.account_available_csu,
        "user": {
            "user_id": user_id,
            **_funds_row(view.user),
            "exposure_csu": view.user_exposure_csu,
            "available_csu": view.user_available_csu,
        },
        "available_for_user_csu": view.available_csu,
        "read_at": view.read_at,
    }


def _funds_row(funds: Optional[Funds]) -> Dict[str, Any]:
    limit = None if funds is None else funds.limit_csu
    remaining = None if funds is None else funds.remaining_csu
    return {
        "kind": None if funds is None else funds.kind.value,
        "reason": None if funds is None or funds.reason is None else funds.reason.value,
        "limit_csu": limit,
        "used_csu": None if limit is None or remaining is None else limit - remaining,
        "remaining_csu": remaining,
        "allocation": "" if funds is None else funds.allocation,
        "allocation_start": None if funds is None else funds.start_time,
        "allocation_end": None if funds is None else funds.end_time,
    }


def _opening(
    balance: Mapping[str, Any],
    sums: Mapping[str, int],
    since: int,
    until: int,
    now: int,
    only_user: Optional[int],
) -> Dict[str, Any]:
    """Opening and closing balance, where they can be told: up to now, within one allocation period, of the account.

    The closing balance is what the bank says remains, with what it has not heard of yet taken off and what it holds for
    runs that are not charged yet put back.
    """
    if only_user is not None or until < now or balance["remaining_csu"] is None:
        return {"opening_csu": None, "closing_csu": None}
    start = balance["allocation_start"]
    if start is not None and since < start:
        return {"opening_csu": None, "closing_csu": None}
    closing = balance["remaining_csu"] - balance["undelivered_csu"] + balance["running_at_bank_csu"]
    spent = sums["charged_csu"] + sums["adjusted_csu"]
    return {"opening_csu": closing + spent, "closing_csu": closing}


def _run_key(run: LedgerRun) -> Dict[str, Any]:
    return {
        "job_id": run.job_id,
        "job": job_name(run),
        "submit_time": run.submit_time,
        "restart_count": run.told_restart_count,
    }


def job_name(run: LedgerRun) -> str:
    """As squeue writes it."""
    if run.array_job_id is not None and run.array_task_id is not None:
        return f"{run.array_job_id}_{run.array_task_id}"
    return str(run.job_id)


def run_row(run: LedgerRun) -> Dict[str, Any]:
    row = asdict(run)
    for internal in ("run_id", "proposed_us"):
        del row[internal]
    row["job"] = job_name(run)
    row["inputs"] = dict(run.inputs)
    return row


def lien_row(lien: Lien) -> Dict[str, Any]:
    return {
        "lien_id": lien.lien_id,
        "job_id": lien.job_id,
        "state": lien.state,
        "end_kind": lien.end_kind,
        "origin": lien.origin,
        "counted": lien.counted,
        "account": lien.account,
        "user_id": lien.user_id,
        "user_name": lien.user_name,
        "name": lien.name,
        "tasks_left": lien.tasks_left,
        "per_task_csu": lien.per_task_csu,
        "proposed_csu": lien.proposed_csu,
        "amount_csu": lien.amount_csu,
        "shown_csu": lien.tasks_left * max(lien.per_task_csu, lien.proposed_csu or 0),
        "inputs": dict(lien.inputs),
        "created": lien.created_us // 1_000_000,
        "confirmed": None if lien.confirmed_us is None else lien.confirmed_us // 1_000_000,
        "ended": None if lien.ended_us is None else lien.ended_us // 1_000_000,
    }


def entry_row(entry: LedgerEntry) -> Dict[str, Any]:
    row = asdict(entry)
    row["at"] = row.pop("at_us") // 1_000_000
    row["inputs"] = None if entry.inputs is None else dict(entry.inputs)
    return row


def posting_row(posting: Posting) -> Dict[str, Any]:
    run = posting.run
    inputs = posting.inputs
    return {
        "seq": posting.seq,
        "at": posting.at_us // 1_000_000,
        "kind": posting.kind,
        "amount_csu": posting.amount_csu,
        "reason": posting.reason,
        "actor": posting.actor,
        **_run_key(run),
        "user_id": run.user_id,
        "user_name": run.user_name,
        "name": run.name,
        "partition": inputs.get("partition", run.partition),
        "qos": inputs.get("qos", run.qos),
        "cpus": inputs.get("cpus", run.cpus),
        "elapsed_s": inputs.get("elapsed_s", run.elapsed_s),
        "tres": inputs.get("tres"),
        "segments": inputs.get("segments"),
        "rates": inputs.get("rates"),
        "qos_multiplier": inputs.get("qos_multiplier"),
        "state_factor": inputs.get("state_factor"),
        "price_version": inputs.get("price_version"),
        "state": run.slurm_state,
        "start_time": run.start_time,
        "end_time": run.end_time,
        "delivered": run.end_acked,
        "parked": run.parked,
    }


_OF_A_RUN = frozenset({"start", "charge", "restated", "delivered"})


def _runs_of(tx: Transaction, job_id: int, task: Optional[int]) -> List[LedgerRun]:
    """Of a job, of all tasks of an array, or of one."""
    runs = list(tx.runs_by_job(job_id))
    if task is not None:
        runs = [run for run in runs if run.array_job_id == job_id and run.array_task_id == task]
    return runs


def _story(
    tx: Transaction, job_id: int, task: Optional[int]
) -> Tuple[List[Lien], List[LedgerRun], List[LedgerEntry]]:
    """Liens, runs and entries of a job, or of one task of an array with the lien that it shares."""
    runs = _runs_of(tx, job_id, task)
    liens = {lien.lien_id: lien for lien in tx.liens_by_job(job_id)}
    for lien_id in [run.lien_id for run in runs] + [lien.supersedes for lien in liens.values()]:
        if lien_id is not None and lien_id not in liens:
            lien = tx.lien(lien_id)
            if lien is not None:
                liens[lien_id] = lien
    for run_job_id in {run.job_id for run in runs} - {job_id}:
        for lien in tx.liens_by_job(run_job_id):  # a requeued task's own
            liens.setdefault(lien.lien_id, lien)
    entries = {entry.seq: entry for entry in tx.entries_by_job(job_id)}
    for lien_id in liens:
        for entry in tx.entries_by_lien(lien_id, MAX_ENTRIES):
            entries.setdefault(entry.seq, entry)
    told = [entries[seq] for seq in sorted(entries) if entries[seq].kind != "allow"]
    if task is not None:
        own = {run.job_id for run in runs}
        told = [
            entry
            for entry in told
            if entry.job_id in own
            or (entry.kind not in _OF_A_RUN and entry.job_id in (None, job_id))
        ]
        if not runs:
            told = [entry for entry in told if entry.kind not in _OF_A_RUN]
    ordered = sorted(liens.values(), key=lambda lien: lien.created_us)
    return ordered, runs, told
