# SPDX-License-Identifier: BSD-3-Clause
"""The policy engine as slurmctld runs it: estimate, decide and set aside; charge; one canonical log line each.

A canonical line is an event and then ``key=value``, ids first, ``reason=`` or ``problem=`` last; a key is left out where there
is nothing to say. Only the last value may have spaces.

One engine per process, whichever plugin comes first. Nothing here raises what it can decide about: a ledger that cannot be
used makes a submission undecided (``[Policy] undecided`` says what that means) and an ended run a rescan mark, which the
relay settles from sacct.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from slurm_banking import messages, settle, tokens
from slurm_banking.amounts import format_su
from slurm_banking.boundary.asker import Asker
from slurm_banking.config import Config, Reloader
from slurm_banking.counters import Counters
from slurm_banking.errors import EntryConflict, LedgerError
from slurm_banking.estimate import Hints, Unpriceable, estimate, what_would_fit
from slurm_banking.ledger import Ledger, LedgerRun, Lien, Transaction, new_lien_id
from slurm_banking.ledger.rows import FundsView
from slurm_banking.ledger.store import BUSY_TIMEOUT_SLURMCTLD_MS
from slurm_banking.policy import (
    FUNDS_REASONS,
    Decision,
    counts_while_queued,
    decide,
    is_exempt,
    low_funds,
)
from slurm_banking.prices import PriceList
from slurm_banking.records import (
    Estimate,
    JobUpdate,
    Outcome,
    Reason,
    Run,
    Submission,
    Verdict,
)
from slurm_banking.tres import Tres

ERROR, INFO, DEBUG = 1, 2, 3

#: The bank's word is not asked for again before a refusal if it is at most this old (seconds).
FRESH_S = 3

#: The relay refreshes the funds of accounts in use; of one that was not in use for long, the bank's word is worth a
#: question before it is relied on (seconds). Without an answer the old word counts.
STALE_S = 900

ACTOR = "slurmctld"
RESCAN_NAME = "rescan"

Log = Callable[[int, str], None]

_PLAIN_WORD = re.compile(r"[\w.,:@/+-]{1,100}", re.ASCII)

#: What decides whether an estimate is the one that something was set aside for.
_PRICED = ("partition", "qos", "tres", "time_limit_min")


class _InForce(NamedTuple):
    """The price list of a configuration, and the times (unix seconds) between which it is in force."""

    config: Config
    from_s: float
    until_s: float
    prices: PriceList


def _in_force(config: Config, now_s: float) -> _InForce:
    dates = [float(from_s) for from_s, _ in config.dated_prices]
    return _InForce(
        config=config,
        from_s=max((date for date in dates if date <= now_s), default=float("-inf")),
        until_s=min((date for date in dates if date > now_s), default=float("inf")),
        prices=config.prices_at(int(now_s)),
    )


class _Check(NamedTuple):
    """What a verdict is made of, as read and decided in one transaction."""

    view: FundsView
    decision: Decision
    lien_csu: int  #: to be set aside
    freed_csu: int  #: of that, set aside for the same job already
    running: Optional[Tres]  #: what a running job has

    @property
    def needed_csu(self) -> int:
        return self.lien_csu - self.freed_csu


class Engine:
    """:param log: takes a level (1 error, 2 info, 3 debug) and one line."""

    def __init__(
        self,
        *,
        config_path: str,
        cluster: str,
        slurm_user_id: int,
        log: Log,
        asker: Optional[Asker] = None,
    ) -> None:
        self.cluster = cluster
        self.log = log
        self.counters = Counters(
            lambda problem: self.log(ERROR, f"counters_unavailable {problem}"),
        )
        self.reloader = Reloader(config_path, True)
        self.asker = asker or Asker(slurm_user_id)
        self._ledger: Optional[Ledger] = None
        self._ledger_lock = threading.Lock()
        self._prices_recorded: str = ""
        self._ledger_problem = ""
        config = self.config()
        self._in_force = _in_force(config, time.time())
        for warning in config.warnings:
            self.log(INFO, f"config_warning {warning}")
        try:
            self.ledger(config)
        except LedgerError as error:
            self._ledger_failed(error)
        self.counters.write()  # who reads them need not wait for the first job

    # -- what it stands on ------------------------------------------------------------------------------------------

    def config(self) -> Config:
        config = self.reloader.current(time.monotonic())
        problem = self.reloader.take_problem()
        if problem is not None:
            self.log(ERROR, f"config_rejected keeping=last_good problem={problem}")
        self.counters.use(config.ledger.state_dir)
        return config

    def prices(self, config: Config) -> PriceList:
        """The price list in force now. Lists with a date come into force by themselves."""
        now_s = time.time()
        known = self._in_force
        if known.config is not config or not known.from_s <= now_s < known.until_s:
            self._in_force = known = _in_force(config, now_s)
        return known.prices

    def ledger(self, config: Config) -> Ledger:
        """The ledger of the configured state directory, opened when it is first needed.

        :raises LedgerError: it cannot be used.
        """
        ledger = self._ledger
        if ledger is not None and ledger.state_dir == config.ledger.state_dir:
            return ledger
        with self._ledger_lock:
            if self._ledger is None or self._ledger.state_dir != config.ledger.state_dir:
                opened = Ledger(
                    config.ledger.state_dir,
                    self.cluster,
                    busy_timeout_ms=BUSY_TIMEOUT_SLURMCTLD_MS,
                )
                if self._ledger is not None:
                    self._ledger.close()
                self._ledger = opened
                self._prices_recorded = ""
                self._ledger_problem = ""
            return self._ledger

    def _ledger_failed(self, error: LedgerError) -> None:
        """One line when it starts to fail, and one for each other problem; not one per job."""
        text = str(error)
        if text != self._ledger_problem:
            self._ledger_problem = text
            self.log(ERROR, f"ledger_unavailable problem={text}")

    @contextmanager
    def _transaction(self, config: Config) -> Iterator[Transaction]:
        """One that is committed ends the problem that there was; on a full disk many begin, and only then fail.

        :raises LedgerError: the ledger cannot be used.
        """
        with self.ledger(config).transaction() as tx:
            yield tx
        self._ledger_problem = ""

    def _ready(self, tx: Transaction, config: Config) -> bool:
        """Prices recorded; whether the ledger was compared with Slurm since it was new, lost or unclean."""
        version = self.prices(config).version
        if self._prices_recorded != version:
            settle.record_prices(tx, config, int(time.time()))
            self._prices_recorded = version
        return tx.complete

    # -- submissions ------------------------------------------------------------------------------------------------

    def submit(self, sub: Submission) -> Verdict:
        started = time.perf_counter()
        config = self.config()
        verdict = self._decide_submission(sub, config)
        verdict = self._enforced(verdict, config, sub.account)
        self._conclude("submit", self._submission_words(sub, verdict), verdict, config, started)
        return verdict

    def _decide_submission(self, sub: Submission, config: Config) -> Verdict:
        early = self._without_funds(sub, config)
        if early is not None:
            return early
        assert sub.account is not None
        try:
            cost = self._estimate(sub, config)
        except Unpriceable as problem:
            return Verdict(
                outcome=Outcome.REFUSED,
                reason=problem.reason,
                message=messages.refused(problem.reason, sub.account, problem.detail),
            )
        if sub.room is not None and cost.tasks > sub.room:
            # Slurm would refuse it after us, and sbatch try again, each time with another lien.
            return Verdict(outcome=Outcome.REFUSED, reason=Reason.QUEUE_FULL, estimate=cost)

        def set_aside(tx: Transaction, reason: Reason) -> str:
            lien_id = new_lien_id()
            tx.open_lien(
                account=sub.account or "",
                user_id=sub.job_user_id,
                per_task_csu=cost.per_task_lien_csu,
                tasks=cost.tasks,
                origin="submit",
                inputs=cost.inputs(),
                reason=reason.value,
                actor=ACTOR,
                lien_id=lien_id,
                counted=counts_while_queued(config.policy.mode),
                user_name=sub.user_name,
                name=sub.name,
            )
            return str(
                tokens.Token(
                    lien_id=lien_id,
                    per_task_csu=cost.per_task_lien_csu,
                    price_version=cost.price_version,
                )
            )

        return self._decide(config, sub, cost, None, set_aside)

    def _without_funds(self, sub: Submission, config: Config) -> Optional[Verdict]:
        """What is decided before anything is estimated."""
        if is_exempt(
            config,
            account=sub.account,
            user_name=sub.user_name,
            user_id=sub.job_user_id,
            qos=sub.qos,
        ):
            return Verdict(outcome=Outcome.ACCEPTED, reason=Reason.EXEMPT)
        reason = None
        if sub.account is None:
            reason = Reason.NO_ACCOUNT
        elif not sub.associated:
            reason = Reason.NOT_ASSOCIATED
        if reason is None:
            return None
        return Verdict(
            outcome=Outcome.REFUSED,
            reason=reason,
            message=messages.refused(reason, sub.account),
        )

    def _estimate(
        self,
        sub: Submission,
        config: Config,
        *,
        tasks: Optional[int] = None,
        running: Optional[Tres] = None,
    ) -> Estimate:
        return estimate(
            sub,
            self.prices(config),
            unlisted=config.policy.unlisted_partition,
            horizon_min=config.policy.horizon_min,
            tasks=tasks,
            running=running,
            lien_share=config.policy.lien_share,
        )

    def _decide(
        self,
        config: Config,
        sub: Submission,
        cost: Estimate,
        job_id: Optional[int],
        set_aside: Callable[[Transaction, Reason], str],
        find: Optional[Callable[[Transaction], Tuple[int, int]]] = None,
        refused: Optional[Callable[[Transaction, Verdict], None]] = None,
        running: Optional[Tres] = None,
    ) -> Verdict:
        """Check and set aside in one transaction; ask the relay once if the bank's word is missing or old.

        ``find`` runs first in the transaction: what is to be set aside for the job, and what of that is already.
        ``refused`` runs last if the verdict is that. ``running``: what a running job has, to say what would fit.
        """
        account = sub.account or ""
        overdraft_csu = config.policy.overdraft_csu
        asked = False
        lien_csu, freed_csu = cost.lien_csu, 0
        verdict: Optional[Verdict] = None
        while True:
            now = int(time.time())
            try:
                with self._transaction(config) as tx:
                    complete = self._ready(tx, config)
                    if find is not None:
                        lien_csu, freed_csu = find(tx)
                    view = tx.funds_view(account, sub.job_user_id)
                    decision = decide(
                        lien_csu,
                        view,
                        config.policy.mode,
                        freed_csu=freed_csu,
                        overdraft_csu=overdraft_csu,
                    )
                    if not complete and decision.reason in FUNDS_REASONS | {Reason.FITS}:
                        # What is set aside for the jobs in Slurm's queue is not all there yet.
                        decision = Decision(Outcome.UNDECIDED, Reason.LEDGER_UNAVAILABLE)
                    age_s = now - view.read_at
                    old = (decision.reason in FUNDS_REASONS and age_s > FRESH_S) or (
                        decision.reason is Reason.FITS and age_s > STALE_S
                    )
                    if old and not asked and self.asker.would_ask(config.relay.socket, account):
                        asked = True
                        ask = True
                    else:
                        ask = False
                        check = _Check(view, decision, lien_csu, freed_csu, running)
                        verdict = self._settled(
                            tx, config, sub, cost, check, job_id, now, set_aside
                        )
                        if refused is not None and verdict.outcome is Outcome.REFUSED:
                            refused(tx, verdict)
                        return verdict
            except LedgerError as error:
                self._ledger_failed(error)
                if verdict is not None and verdict.outcome is Outcome.REFUSED:
                    return verdict  # only the note of it could not be written
                return self._undecided(Reason.LEDGER_UNAVAILABLE, cost, config, account)
            if ask:
                fresh = self.asker.refresh(config.relay.socket, account, sub.job_user_id, FRESH_S)
                self.counters.asked(fresh)

    def _settled(
        self,
        tx: Transaction,
        config: Config,
        sub: Submission,
        cost: Estimate,
        check: _Check,
        job_id: Optional[int],
        now: int,
        set_aside: Callable[[Transaction, Reason], str],
    ) -> Verdict:
        """Within the transaction of the check: set aside what is accepted, or say why not."""
        account = sub.account or ""
        decision = check.decision
        overdraft_csu = config.policy.overdraft_csu
        outcome, reason = decision.outcome, decision.reason
        note = None
        would_be: Optional[Outcome] = None
        if outcome is not Outcome.ACCEPTED:
            allowed = tx.exception_for(sub.job_user_id, job_id, now)
            if allowed is not None:
                outcome, reason = Outcome.ACCEPTED, Reason.ALLOWED
                note = f"accepted by an operator's exception: {allowed}"
            elif outcome is Outcome.UNDECIDED:
                return self._undecided(reason, cost, config, account, tx, set_aside)
            elif config.policy.enforce == "log":
                note = messages.would_be_refused(
                    reason, account, decision.available_csu, overdraft_csu
                )
                outcome, would_be = Outcome.ACCEPTED, outcome
        if outcome is Outcome.ACCEPTED:
            token = set_aside(tx, reason)
            left = decision.available_csu
            if left is not None:
                left -= check.needed_csu
            lines = []
            if config.policy.tell_estimate:
                lines.append(messages.accepted(account, cost, left, note))
            if check.needed_csu > 0:
                warn_below = config.policy.warn_below
                low = low_funds(check.view, check.needed_csu, warn_below)
                lines += [messages.low_funds(funds, warn_below) for funds in low]
            return Verdict(
                outcome=outcome,
                reason=reason,
                estimate=cost,
                token=token,
                message="\n".join(lines),
                available_csu=decision.available_csu,
                would_be=would_be,
            )
        if reason in (Reason.INSUFFICIENT_FUNDS, Reason.INSUFFICIENT_USER_FUNDS):
            available = decision.available_csu or 0
            aside = tx.set_aside(account)
            room_csu = available + overdraft_csu + check.freed_csu
            if job_id is None:
                hints = self._hints(sub, config, room_csu)
            else:  # an update takes no tasks out of an array
                found = self._hints(sub, config, room_csu, cost.tasks, check.running)
                hints = replace(found, tasks=None, array=None)
            message = messages.insufficient(
                account, cost, available, reason, aside, hints, overdraft_csu
            )
            return Verdict(
                outcome=outcome,
                reason=reason,
                estimate=cost,
                message=message,
                available_csu=available,
                set_aside_csu=aside.queued_csu + aside.running_csu,
            )
        return Verdict(
            outcome=outcome,
            reason=reason,
            estimate=cost,
            message=messages.refused(reason, account),
            available_csu=decision.available_csu,
        )

    def _hints(
        self,
        sub: Submission,
        config: Config,
        available_csu: int,
        tasks: Optional[int] = None,
        running: Optional[Tres] = None,
    ) -> Hints:
        try:
            return what_would_fit(
                sub,
                self.prices(config),
                available_csu,
                unlisted=config.policy.unlisted_partition,
                horizon_min=config.policy.horizon_min,
                tasks=tasks,
                running=running,
                lien_share=config.policy.lien_share,
            )
        except Unpriceable:
            return Hints()

    def _undecided(
        self,
        reason: Reason,
        cost: Estimate,
        config: Config,
        account: str,
        tx: Optional[Transaction] = None,
        set_aside: Optional[Callable[[Transaction, Reason], str]] = None,
    ) -> Verdict:
        """By policy: refuse, or accept and set aside all the same where the ledger can be written."""
        rejected = config.policy.undecided == "reject"
        if rejected and config.policy.enforce != "log":
            return Verdict(
                outcome=Outcome.REFUSED,
                reason=reason,
                estimate=cost,
                message=messages.refused(reason, account),
            )
        token = ""
        if tx is not None and set_aside is not None:
            token = set_aside(tx, reason)
        message = ""
        if config.policy.tell_estimate:
            message = messages.accepted(account, cost, None, messages.unchecked(reason))
        return Verdict(
            outcome=Outcome.ACCEPTED if rejected else Outcome.UNDECIDED,
            reason=reason,
            estimate=cost,
            token=token,
            message=message,
            would_be=Outcome.REFUSED if rejected else None,
        )

    def _enforced(self, verdict: Verdict, config: Config, account: Optional[str]) -> Verdict:
        """``enforce = "log"`` turns every refusal into an accepted, unchecked submission; contact under a refusal."""
        if verdict.outcome is not Outcome.REFUSED or verdict.reason is Reason.QUEUE_FULL:
            return verdict
        if config.policy.enforce == "log":
            return Verdict(
                outcome=Outcome.ACCEPTED,
                reason=verdict.reason,
                estimate=verdict.estimate,
                message=messages.would_be(verdict.message) if config.policy.tell_estimate else "",
                would_be=verdict.outcome,
            )
        if not config.policy.contact:
            return verdict
        return Verdict(
            outcome=verdict.outcome,
            reason=verdict.reason,
            estimate=verdict.estimate,
            message=f"{verdict.message}\n{config.policy.contact}",
            available_csu=verdict.available_csu,
            set_aside_csu=verdict.set_aside_csu,
        )

    def _submission_words(self, sub: Submission, verdict: Verdict) -> List[str]:
        words = [f"submission_{verdict.outcome.value}", f"job_user={sub.job_user_id}"]
        if sub.submit_user_id != sub.job_user_id:
            words.append(f"submit_user={sub.submit_user_id}")
        words.append(f"account={_word(sub.account or '-')}")
        words += _numbers(verdict, sub)
        if verdict.token:
            words.append(f"lien={verdict.token.split('=')[1].split(':')[0]}")
        return words

    def _conclude(
        self, hook: str, words: List[str], verdict: Verdict, config: Config, started: float
    ) -> None:
        """Count it, and log its one line."""
        outcome = verdict.outcome.value if verdict.would_be is None else "would_refuse"
        reason = verdict.reason.value
        self.counters.decided(hook, outcome, reason)
        estimated = verdict.estimate
        prices = self.prices(config).version if estimated is None else estimated.price_version
        elapsed_us = int((time.perf_counter() - started) * 1e6)
        words.append(f"prices={prices} hook={hook} elapsed_us={elapsed_us} reason={reason}")
        self.log(INFO, " ".join(words))

    # -- updates ----------------------------------------------------------------------------------------------------

    def update(self, update: JobUpdate) -> Verdict:
        """A change of a job by somebody who may make it: what it would cost more is set aside now, or it is refused.

        Nothing is lowered here: Slurm has not decided yet, and the sweep lowers what Slurm is seen to have done.
        """
        started = time.perf_counter()
        config = self.config()
        found: List[str] = []
        verdict = self._decide_update(update, config, found)
        verdict = self._enforced(verdict, config, update.wanted.account)
        words = [
            f"update_{verdict.outcome.value}",
            f"job_id={update.job_id}",
            f"job_user={update.wanted.job_user_id}",
            f"by_user={update.wanted.submit_user_id}",
            f"account={_word(update.wanted.account or '-')}",
            *_numbers(verdict, update.wanted),
        ]
        if found:
            words.append(f"lien={found[-1]}")
        self._conclude("update", words, verdict, config, started)
        return verdict

    def _decide_update(self, update: JobUpdate, config: Config, found: List[str]) -> Verdict:
        """``found`` is given the lien that the job has, and the one that it is given."""
        sub = update.wanted
        early = self._without_funds(sub, config)
        if early is not None:
            return self._refused_early(early, update, config)
        running = None
        if update.running:
            running = update.tres if update.tres.cpus else Tres(cpus=max(1, update.total_cpus))
        try:
            cost = self._estimate(sub, config, tasks=update.task_count, running=running)
        except Unpriceable as problem:
            verdict = Verdict(
                outcome=Outcome.REFUSED,
                reason=problem.reason,
                message=messages.refused(problem.reason, sub.account, problem.detail),
            )
            return self._refused_early(verdict, update, config)
        inputs = cost.inputs()
        current: Union[LedgerRun, Lien, None] = None
        wanted_csu = cost.per_task_lien_csu  # for one task

        def find(tx: Transaction) -> Tuple[int, int]:
            nonlocal current, wanted_csu
            current = self._set_aside_for(tx, update)
            if current is not None and current.lien_id is not None:
                found.append(current.lien_id)
            wanted_csu = cost.per_task_lien_csu
            if current is None or current.account != sub.account:
                return cost.lien_csu, 0
            if all(current.inputs.get(key) == inputs[key] for key in _PRICED):
                wanted_csu = 0  # as it is: whatever prices are now, it costs no more
            elif isinstance(current, LedgerRun) and running is not None:
                wanted_csu += settle.given_back_csu(tx, current, running, cost.price)
            if isinstance(current, LedgerRun):
                now_csu = max(current.ledger_csu, wanted_csu)
                return now_csu, current.ledger_csu if current.counted else now_csu
            # A lien speaks for all tasks of an array that have not started, whichever record was updated.
            before_csu = max(current.per_task_csu, current.proposed_csu or 0)
            now_csu = current.tasks_left * max(before_csu, wanted_csu)
            if current.origin == "grandfathered":
                return now_csu, now_csu
            if current.counted:
                return now_csu, current.amount_csu
            return now_csu, 0 if wanted_csu > before_csu else now_csu

        def set_aside(tx: Transaction, reason: Reason) -> str:
            why = f"update: {reason.value}"
            if isinstance(current, LedgerRun):
                if wanted_csu > max(current.lien_csu, current.proposed_csu or 0):
                    tx.propose_for_run(
                        current, cost_csu=wanted_csu, inputs=inputs, actor=ACTOR, reason=why
                    )
            elif current is not None and current.account == sub.account:
                if wanted_csu > max(current.per_task_csu, current.proposed_csu or 0):
                    tx.propose(
                        current, per_task_csu=wanted_csu, inputs=inputs, actor=ACTOR, reason=why
                    )
            else:
                opened = tx.open_lien(
                    account=sub.account or "",
                    user_id=sub.job_user_id,
                    per_task_csu=cost.per_task_lien_csu,
                    tasks=cost.tasks,
                    origin="update",
                    inputs=inputs,
                    reason=why,
                    actor=ACTOR,
                    counted=counts_while_queued(config.policy.mode),
                    user_name=sub.user_name,
                    name=sub.name,
                    job_id=update.array_job_id or update.job_id,
                    submit_time=update.submit_time,
                    restart_count=update.restart_count,
                    supersedes=current.lien_id if isinstance(current, Lien) else None,
                )
                found.append(opened)
            return ""

        def refused(tx: Transaction, verdict: Verdict) -> None:
            self._note_refused(tx, update, verdict, current)

        verdict = self._decide(
            config,
            sub,
            cost,
            update.job_id,
            set_aside,
            find=find,
            refused=refused,
            running=running,
        )
        if verdict.outcome is Outcome.REFUSED:
            return verdict
        return Verdict(
            outcome=verdict.outcome,
            reason=verdict.reason,
            estimate=verdict.estimate,
            message=verdict.message,
            available_csu=verdict.available_csu,
            would_be=verdict.would_be,
        )

    def _refused_early(self, verdict: Verdict, update: JobUpdate, config: Config) -> Verdict:
        """What was refused before anything was looked up leaves its note, too."""
        if verdict.outcome is Outcome.REFUSED and config.policy.enforce != "log":
            try:
                with self._transaction(config) as tx:
                    self._note_refused(tx, update, verdict, self._set_aside_for(tx, update))
            except LedgerError as error:
                self._ledger_failed(error)
        return verdict

    def _note_refused(
        self,
        tx: Transaction,
        update: JobUpdate,
        verdict: Verdict,
        current: Union[LedgerRun, Lien, None],
    ) -> None:
        """Up to 22.05 scontrol does not show why: ``slurm-banking why JOB`` does."""
        sub = update.wanted
        inputs: Dict[str, Any] = {
            "message": verdict.message,
            "by_user": sub.submit_user_id,
            "available_csu": verdict.available_csu,
        }
        if verdict.estimate is not None:
            inputs.update(verdict.estimate.inputs(), estimate_csu=verdict.estimate.cost_csu)
        account = sub.account if sub.associated else None
        tx.note_once(
            job_id=update.job_id,
            submit_time=update.submit_time,
            restart_count=update.restart_count,
            lien_id=None if current is None else current.lien_id,
            reason=f"update refused: {verdict.reason.value}",
            account=current.account if current is not None else account or "",
            user_id=sub.job_user_id,
            actor=ACTOR,
            inputs=inputs,
        )

    def _set_aside_for(self, tx: Transaction, update: JobUpdate) -> Union[LedgerRun, Lien, None]:
        """The running run or the open lien of the job, whatever its account; None: nothing is set aside for it."""
        if update.running:
            run = tx.find_run(update.job_id, update.submit_time, update.restart_count)
            if run is not None and run.state == "running":
                return run
        token = tokens.parse(update.wanted.admin_comment)
        candidates = [
            lien
            for job_id in dict.fromkeys((update.job_id, update.array_job_id or update.job_id))
            for lien in tx.liens_by_job(job_id)
            if lien.open
            and lien.user_id == update.wanted.job_user_id
            and lien.speaks_of(update.submit_time)
        ]
        if not candidates and token is not None:
            lien = tx.lien(token.lien_id)
            if (
                lien is not None
                and lien.open
                and lien.job_id is None
                and lien.user_id == update.wanted.job_user_id
            ):
                candidates = [lien]
        same = [lien for lien in candidates if lien.account == update.wanted.account]
        found = same or candidates
        return found[0] if found else None

    # -- runs -------------------------------------------------------------------------------------------------------

    def run_ended(self, run: Run) -> None:
        started = time.perf_counter()
        config = self.config()
        if self._exempt_run(config, run):
            words = self._run_words("run_ignored", run)
            self._told("run_ended", "exempt", words, started, "reason=exempt")
            return
        try:
            with self._transaction(config) as tx:
                self._ready(tx, config)
                result = settle.end_run(tx, run, config, actor=ACTOR)
        except EntryConflict as error:
            words = self._run_words("run_conflict", run)
            self._told("run_ended", "conflict", words, started, f"problem={error}", ERROR)
            return
        except LedgerError as error:
            self._ledger_failed(error)
            problem = self._mark_for_rescan(config, run)
            words = self._run_words("run_to_rescan", run)
            level = INFO if problem is None else ERROR
            why = "reason=ledger_unavailable" if problem is None else problem
            self._told("run_ended", "to_rescan", words, started, why, level)
            return
        words = self._run_words(f"run_{result.kind}", run)
        words += [f"state={run.state}", f"cpus={run.cpus}", f"elapsed_s={run.elapsed_s}"]
        ended = result.run
        if ended is not None and ended.charge_csu is not None:
            words.append(f"charge_su={format_su(ended.charge_csu)}")
        if result.overdrawn_csu:
            words.append(f"above_lien_su={format_su(result.overdrawn_csu)}")
        if result.next_lien_id:
            words.append(f"next_lien={result.next_lien_id}")
        if ended is not None and ended.lien_id is not None:
            words.append(f"lien={ended.lien_id}")
        if ended is not None and "price_version" in ended.inputs:
            words.append(f"prices={ended.inputs['price_version']}")
        self._told("run_ended", result.kind, words, started)

    def run_started(self, run: Run) -> None:
        """From 25.05 on; before, the relay finds starts in the queue."""
        started = time.perf_counter()
        config = self.config()
        if self._exempt_run(config, run):
            words = self._run_words("run_ignored", run)
            self._told("run_started", "exempt", words, started, "reason=exempt")
            return
        try:
            with self._transaction(config) as tx:
                self._ready(tx, config)
                existing, new = settle.start_run(tx, run, config, actor=ACTOR)
        except EntryConflict as error:
            words = self._run_words("run_conflict", run)
            self._told("run_started", "conflict", words, started, f"problem={error}", ERROR)
            return
        except LedgerError as error:
            self._ledger_failed(error)
            words = self._run_words("run_start_unrecorded", run)
            self._told("run_started", "unrecorded", words, started, "reason=ledger_unavailable")
            return
        kind = "started" if new else "duplicate"
        words = self._run_words(f"run_{kind}", run)
        words.append(f"lien_su={format_su(existing.lien_csu)}")
        if existing.lien_id is not None:
            words.append(f"lien={existing.lien_id}")
        self._told("run_started", kind, words, started)

    def _run_words(self, event: str, run: Run) -> List[str]:
        return [
            event,
            f"job_id={run.job_id}",
            f"restart={run.restart_count}",
            f"user={run.user_id}",
            f"account={_word(run.account or '-')}",
            f"partition={_word(run.partition or '-')}",
        ]

    def _told(
        self,
        hook: str,
        result: str,
        words: Sequence[str],
        started: float,
        why: str = "",
        level: int = INFO,
    ) -> None:
        """Count it, and log its one line; ``why`` is the end of it."""
        self.counters.settled(hook, result)
        elapsed_us = int((time.perf_counter() - started) * 1e6)
        line = [*words, f"hook={hook}", f"elapsed_us={elapsed_us}"]
        self.log(level, " ".join([*line, why] if why else line))

    def _exempt_run(self, config: Config, run: Run) -> bool:
        return is_exempt(
            config,
            account=run.account,
            user_name=run.user_name,
            user_id=run.user_id,
            qos=run.qos,
        )

    def _mark_for_rescan(self, config: Config, run: Run) -> Optional[str]:
        """A line in a file beside the ledger: the relay looks in sacct. The sacct window would find it later anyway.

        What to say if that could not be written; None: it was.
        """
        line = json.dumps(
            {"job_id": run.job_id, "submit_time": run.submit_time, "at": int(time.time())}
        )
        path = os.path.join(config.ledger.state_dir, RESCAN_NAME)
        try:
            descriptor = os.open(
                path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                os.write(descriptor, line.encode("ascii") + b"\n")
            finally:
                os.close(descriptor)
        except OSError as error:
            return f"mark={path} problem={error.strerror}; the relay's sacct window will find it"
        return None


def _numbers(verdict: Verdict, sub: Submission) -> Tuple[str, ...]:
    words = []
    if verdict.would_be is not None:
        words.append(f"would={verdict.would_be.value}")
    if verdict.estimate is None:
        asked = ",".join(partition.name for partition in sub.partitions)
        words.append(f"partition={_word(asked)}")
    else:
        words.append(f"partition={_word(verdict.estimate.partition)}")
        words.append(f"estimate_su={format_su(verdict.estimate.cost_csu)}")
    if verdict.available_csu is not None:
        words.append(f"available_su={format_su(verdict.available_csu)}")
    return tuple(words)


def _word(value: str) -> str:
    """One word for a log line, whatever a user wrote."""
    if _PLAIN_WORD.fullmatch(value):
        return value
    return "".join(c if c.isprintable() and c not in ' ="' else "?" for c in value)[:100] or "-"
