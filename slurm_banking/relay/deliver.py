# SPDX-License-Identifier: BSD-3-Clause
"""What the ledger's outbox holds goes to the bank; what the bank says goes into the ledger.

Each round walks on through the outbox from where the last one stopped (:attr:`DeliveryBook.scanned_seq`), and takes from
the book what was put back and is due again. What cannot be delivered now is in the book, with its time: nothing is looked
at twice for nothing, whether ten wait or a million.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Dict, Iterator, List, Optional, Protocol, Sequence, Tuple

from slurm_banking.bank import Acknowledgement, BankRun
from slurm_banking.config import Config
from slurm_banking.errors import BankRefused, BankUnauthorized, BankUnavailable, LedgerError
from slurm_banking.ledger import Delivery, Ledger, LedgerRun
from slurm_banking.relay.book import (
    PARKED_LOOK_S,
    Attempt,
    DeliveryBook,
    Remembered,
    later_by_tries_s,
)

log = logging.getLogger("slurm_banking.relay")

#: Deliveries at once, each of another run.
WORKERS = 4
#: Seconds after which a round ends although more is waiting: the relay has other things to do.
BUDGET_S = 5.0

_PAGE = 200
#: What is looked at for a delivery of an account that did not just fail, to try whether the bank is back.
_PROBE_LOOKS = 200
_HELD_S = 0.5
#: Alarms of one kind in one round; each is an entry of the ledger all the same.
_DOUBTS_TOLD = 10
#: Runs in one transaction of an operator's retry.
_RETRIED_AT_ONCE = 20
_MAX_WRITE_PAUSE_S = 0.005


class DeliveringBank(Protocol):
    """What deliveries need of :class:`slurm_banking.bank.Bank`."""

    def start(self, run: LedgerRun, amount_csu: int) -> Acknowledgement: ...

    def end(self, run: LedgerRun) -> Acknowledgement: ...

    def find_run(self, run: LedgerRun) -> Optional[BankRun]: ...


@dataclass
class DeliverReport:
    """What one round did."""

    starts: int = 0
    ends: int = 0
    healing: int = 0  #: refused now, may be accepted later
    parked: int = 0  #: refused for good
    unanswered: int = 0
    more: bool = False  #: the round ended before everything that is due was tried
    bank_away: str = ""  #: why the bank was not (or no longer) asked
    alarms: List[str] = field(default_factory=list)  #: lines for an operator

    @property
    def delivered(self) -> int:
        return self.starts + self.ends


def deliver_due(
    ledger: Ledger,
    bank: DeliveringBank,
    book: DeliveryBook,
    config: Config,
    now: float,
    *,
    budget_s: float = BUDGET_S,
    workers: int = WORKERS,
) -> DeliverReport:
    """Deliver what is due; return when nothing is, the time is up, or the bank does not answer.

    ``now``: unix seconds. Runs elsewhere at the same time return at once.

    :raises LedgerError: ledger or book cannot be used; nothing is lost.
    """
    if not book.delivering.acquire(blocking=False):
        return DeliverReport()
    try:
        return _Round(ledger, bank, book, config, now, budget_s).run(workers)
    finally:
        book.delivering.release()


def adopt_outbox(ledger: Ledger, book: DeliveryBook) -> None:
    """If the book is new, or the host went down: whatever waits may have reached the bank."""
    seq = 0
    while book.must_adopt:
        with ledger.transaction(write=False) as tx:
            page = tx.next_deliveries(seq, _PAGE)
        book.adopt(
            (delivery.run.run_id, delivery.seq, delivery.phase, delivery.run.account)
            for delivery in page
            if delivery.run.parked is None
        )
        if page:
            seq = page[-1].seq
        else:
            book.adopted()


def try_again(
    ledger: Ledger, book: DeliveryBook, run_ids: Sequence[int], actor: str
) -> Sequence[LedgerRun]:
    """Make what waits of these runs due at once, what the bank refused for good among it.

    The runs as they were, without those that have nothing to deliver. What was parked gets an entry with the actor's
    name; everything a line in the log.
    """
    found: List[LedgerRun] = []
    for first in range(0, len(run_ids), _RETRIED_AT_ONCE):
        began = time.monotonic()
        waiting: List[Delivery] = []
        with ledger.transaction() as tx:
            for run_id in run_ids[first : first + _RETRIED_AT_ONCE]:
                delivery = tx.delivery_of(run_id)
                if delivery is None:
                    continue
                waiting.append(delivery)
                if delivery.run.parked is not None:
                    tx.unpark(delivery.run, actor=actor)
        took_s = time.monotonic() - began
        for delivery in waiting:
            run = delivery.run
            book.try_again(delivery)
            found.append(run)
            log.info(
                "delivery_retried job=%s account=%s phase=%s actor=%s was=%r",
                run.job_id,
                run.account,
                delivery.phase,
                actor,
                run.parked or "waiting",
            )
        time.sleep(min(took_s, _MAX_WRITE_PAUSE_S))
    return found


class _Round:
    def __init__(
        self,
        ledger: Ledger,
        bank: DeliveringBank,
        book: DeliveryBook,
        config: Config,
        now: float,
        budget_s: float,
    ) -> None:
        self._ledger = ledger
        self._bank = bank
        self._book = book
        self._retry_max_s = float(config.relay.deliver_retry_max_s)
        self._pauses = book.pauses(self._retry_max_s)
        self._now = now
        self._begun = time.monotonic()
        self._budget_s = budget_s
        self._report = DeliverReport()
        self._lock = threading.Lock()  # the source and the report
        self._write = (
            threading.Lock()
        )  # one acknowledgement at a time, and a pause as long after it
        self._stop = threading.Event()
        self._failure: Optional[Exception] = None
        self._doubts = 0  # deliveries of which the bank's usage may not be what the row says
        self._healing: Dict[Tuple[str, int], float] = {}  # (account, user) refused in this round
        self._source = self._due()

    def _clock(self) -> float:
        return self._now + time.monotonic() - self._begun

    def run(self, workers: int) -> DeliverReport:
        book = self._book
        adopt_outbox(self._ledger, book)
        why_not = book.may_deliver(self._now)
        if why_not is not None:
            self._report.bank_away = why_not
            return self._report
        if not self._bank_is_back():
            return self._finished()
        threads = [
            threading.Thread(target=self._work, name=f"deliver-{number}", daemon=True)
            for number in range(1, workers)
        ]
        for thread in threads:
            thread.start()
        self._work()
        for thread in threads:
            thread.join()
        return self._finished()

    def _bank_is_back(self) -> bool:
        """After a failure one is sent alone; better one of an account that did not just fail. False: nothing more now."""
        looks = 0
        try:
            while self._book.away is not None:
                looks += 1
                if not self._next_one(any_account=looks > _PROBE_LOOKS) or self._stop.is_set():
                    return False
        except BaseException:
            self._book.scanned_seq = 0  # what was taken and not begun is found again
            raise
        return True

    def _finished(self) -> DeliverReport:
        if self._failure is not None:
            raise self._failure
        if self._doubts > _DOUBTS_TOLD:
            self._report.alarms.append(
                f"and {self._doubts - _DOUBTS_TOLD} more runs that ended after their allocation"
            )
        return self._report

    def _work(self) -> None:
        try:
            while not self._stop.is_set() and self._next_one():
                pass
        except Exception as error:
            self._book.scanned_seq = 0  # what was taken and not begun is found again
            self._failure = error
            self._stop.set()

    # -- what is due ----------------------------------------------------------------------------------------------------

    def _due(self) -> Iterator[Delivery]:
        """By turns, so that neither waits for a long queue of the other."""
        while True:
            with self._ledger.transaction(write=False) as tx:
                page = tx.next_deliveries(self._book.scanned_seq, _PAGE)
            rows = self._book.due(self._clock(), _PAGE, longest_s=self._retry_max_s)
            yield from self._new(page)
            yield from self._again(rows)
            if not page and not rows:
                return

    def _new(self, page: Sequence[Delivery]) -> Iterator[Delivery]:
        """Further along the outbox."""
        known = self._book.known([delivery.run.run_id for delivery in page])
        for delivery in page:
            self._book.scanned_seq = delivery.seq
            remembered = known.get(delivery.run.run_id)
            if remembered is None:
                yield delivery
            elif remembered.seq != delivery.seq and not self._book.superseded(
                delivery.run.run_id, delivery.seq, delivery.phase
            ):
                yield delivery  # acknowledged since the book was asked

    def _again(self, rows: Sequence[Remembered]) -> Iterator[Delivery]:
        """What was put back."""
        for row in rows:
            with self._ledger.transaction(write=False) as tx:
                delivery = tx.delivery_of(row.run_id)
            if delivery is None:
                self._book.forget(row.run_id)
            elif delivery.run.parked is not None and delivery.seq == row.seq:
                self._book.postpone(row.run_id, self._clock() + PARKED_LOOK_S)
            else:
                yield delivery

    # -- one ------------------------------------------------------------------------------------------------------------

    def _next_one(self, *, any_account: bool = False) -> bool:
        """Take the next one and deliver it; False: there is none, or the time is up.

        ``any_account``: also of one that has just failed, and would wait.
        """
        with self._lock:
            if time.monotonic() - self._begun > self._budget_s:
                self._report.more = True
                return False
            delivery = next(self._source, None)
            if delivery is None:
                return False
            run = delivery.run
            not_before = self._book.account_until(run.account)
            if self._clock() < not_before and not any_account:
                self._book.put_off(
                    run.run_id, delivery.seq, delivery.phase, run.account, not_before
                )
                return True
            gate = self._healing.get((run.account, run.user_id))
            if gate is not None and self._book.stand_by(
                run.run_id, delivery.seq, delivery.phase, run.account, gate
            ):
                return True
            attempt = self._book.begin(run.run_id, delivery.seq, delivery.phase, run.account)
            if attempt is None:  # a refresh of the account's funds is at work
                soon = self._clock() + _HELD_S
                self._book.put_off(run.run_id, delivery.seq, delivery.phase, run.account, soon)
                return True
        self._deliver(delivery, attempt)
        return True

    def _deliver(self, delivery: Delivery, attempt: Attempt) -> None:
        book, run = self._book, delivery.run
        try:
            answer: Optional[Acknowledgement] = None
            if attempt.look_first:
                delivery, answer = self._look(delivery)
            if answer is not None:
                pass
            elif delivery.phase == "start":
                answer = self._bank.start(delivery.run, delivery.run.ledger_csu)
            else:
                answer = self._bank.end(delivery.run)
            self._acknowledge(delivery, answer, "delivered")
        except BankUnavailable as error:
            self._unavailable(delivery, attempt, error)
        except BankUnauthorized as error:
            book.not_sent(run.run_id, run.account, str(error), self._clock())
            self._away(str(error), unauthorized=True)
        except BankRefused as error:
            book.bank_answered(run.account)
            self._refused(delivery, attempt, error)
        except LedgerError:
            # The bank has it and the ledger does not know: asked first next time.
            book.unanswered(
                run.run_id, run.account, "the ledger could not be written", self._clock()
            )
            raise
        except BaseException as error:
            book.unanswered(
                run.run_id, run.account, f"{type(error).__name__}: {error}", self._backoff(attempt)
            )
            raise

    def _look(self, delivery: Delivery) -> Tuple[Delivery, Optional[Acknowledgement]]:
        """After a try without an answer: what the bank holds goes into the ledger before anything is sent.

        The second value is there if nothing needs to be sent.
        """
        found = self._bank.find_run(delivery.run)
        if found is not None and (delivery.phase == "start" or found.is_final_for(delivery.run)):
            note = "was there already"
            return delivery, Acknowledgement(found.held_csu, found.bank_job_id, note, found.doubt)
        if found is not None and (
            found.held_csu != delivery.run.bank_csu or found.bank_job_id != delivery.run.bank_job_id
        ):
            with self._paced(), self._ledger.transaction() as tx:
                tx.acknowledge(
                    replace(delivery, phase="start"),
                    bank_csu=found.held_csu,
                    bank_job_id=found.bank_job_id,
                    reason="found",
                )
                run = tx.run(delivery.run.run_id)
            assert run is not None
            delivery = replace(delivery, run=run)
        self._book.resolved(delivery.run.run_id)
        return delivery, None

    def _acknowledge(self, delivery: Delivery, answer: Acknowledgement, reason: str) -> None:
        run = delivery.run
        if answer.doubt:
            reason += f" ({answer.doubt})"
        with self._paced(), self._ledger.transaction() as tx:
            tx.acknowledge(
                delivery,
                bank_csu=answer.bank_csu,
                bank_job_id=answer.bank_job_id,
                reason=reason,
            )
            waiting = tx.delivery_of(run.run_id)
        # A start whose run ended meanwhile comes by as a row of its own, further along.
        again = waiting is not None and waiting.seq <= self._book.scanned_seq
        self._book.done(run.run_id, run.account, delivery.seq, again=again)
        self._book.bank_answered(run.account)
        with self._lock:
            if delivery.phase == "start":
                self._report.starts += 1
            else:
                self._report.ends += 1
            if answer.doubt:
                self._doubts += 1
                if self._doubts <= _DOUBTS_TOLD:
                    self._report.alarms.append(f"job {run.job_id} at the bank: {answer.doubt}")
        log.info(
            "%s_delivered job=%s account=%s bank_job=%s bank_csu=%s%s",
            delivery.phase,
            run.job_id,
            run.account,
            answer.bank_job_id,
            answer.bank_csu,
            f" note={answer.note!r}" if answer.note else "",
        )

    def _unavailable(self, delivery: Delivery, attempt: Attempt, error: BankUnavailable) -> None:
        book, run, reason = self._book, delivery.run, str(error)
        book.unanswered(run.run_id, run.account, reason, self._backoff(attempt))
        with self._lock:
            self._report.unanswered += 1
        whole_bank = book.account_failed(
            run.account,
            self._clock(),
            longest_s=self._retry_max_s,
            answered=error.answered,
        )
        if error.answered and not whole_bank:
            # It may be about this run or account alone: the others go on.
            if attempt.number == 1:
                log.warning(
                    "%s_unanswered job=%s account=%s reason=%r",
                    delivery.phase,
                    run.job_id,
                    run.account,
                    reason,
                )
            return
        self._away(reason, retry_after_s=error.retry_after_s)

    def _away(
        self, reason: str, *, unauthorized: bool = False, retry_after_s: Optional[float] = None
    ) -> None:
        """Everything waits: this would happen to the next one too."""
        first = self._book.away is None
        self._book.bank_failed(
            self._clock(),
            reason,
            longest_s=self._retry_max_s,
            unauthorized=unauthorized,
            retry_after_s=retry_after_s,
            delivering=True,
        )
        self._stop.set()
        with self._lock:
            self._report.bank_away = reason
        if first:
            log.warning("bank_away reason=%r", reason)

    def _refused(self, delivery: Delivery, attempt: Attempt, error: BankRefused) -> None:
        run = delivery.run
        if error.heals:
            next_try = self._clock() + self._pauses.healing()
            later_s = later_by_tries_s(attempt.number)
            self._book.refused(run.run_id, run.account, "healing", str(error), next_try + later_s)
            with self._lock:
                self._healing[(run.account, run.user_id)] = next_try
                self._report.healing += 1
        else:
            with self._paced(), self._ledger.transaction() as tx:
                waiting = tx.delivery_of(run.run_id)
                newer = waiting is not None and waiting.seq != delivery.seq
                if not newer:
                    tx.park(run.run_id, str(error))
            if newer:  # its end came meanwhile, and is another question
                self._book.refused(run.run_id, run.account, "waiting", str(error), self._clock())
                return
            next_try = self._clock() + PARKED_LOOK_S
            self._book.refused(run.run_id, run.account, "parked", str(error), next_try)
            with self._lock:
                self._report.parked += 1
                self._report.alarms.append(
                    f"the bank refuses the {delivery.phase} of job {run.job_id} ({run.account}): {error}"
                )
        if attempt.number == 1 or not error.heals:
            log.warning(
                "%s_refused job=%s account=%s user=%s heals=%s reason=%r",
                delivery.phase,
                run.job_id,
                run.account,
                run.user_id,
                error.heals,
                str(error),
            )

    def _backoff(self, attempt: Attempt) -> float:
        return self._clock() + self._pauses.delivery(attempt.number)

    def _paced(self) -> "_Paced":
        return _Paced(self._write)


class _Paced:
    """Around a transaction: the ledger stays free for as long afterwards, so that slurmctld gets its turn."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._begun = 0.0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._begun = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        try:
            time.sleep(min(time.monotonic() - self._begun, _MAX_WRITE_PAUSE_S))
        finally:
            self._lock.release()
