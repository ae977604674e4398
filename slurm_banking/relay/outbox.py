# SPDX-License-Identifier: BSD-3-Clause
"""What waits for the bank, for operators: where each delivery stands, what that means, what to do; and one settled by hand.

========== ==============================================================================================
stands as  meaning
========== ==============================================================================================
parked     the bank refused it for good; only an operator, or another end of the run, has it sent again
healing    refused because of a member or an allocation; sent again every few minutes
unresolved sent, and no answer: the bank may have it, and is asked before it is sent again
waiting    tried, and put off
sending    under way
new        not tried yet
========== ==============================================================================================
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Sequence, Tuple

from slurm_banking.amounts import format_su
from slurm_banking.bank import BankRun
from slurm_banking.errors import BankError, BankingError
from slurm_banking.ledger import Delivery, Ledger, LedgerRun
from slurm_banking.records import Funds
from slurm_banking.relay.book import DeliveryBook, Remembered

log = logging.getLogger("slurm_banking.relay")

#: In the order of who needs somebody most.
STATES = ("parked", "unresolved", "healing", "waiting", "sending", "new")

_MEANING: Mapping[str, Tuple[str, str]] = {
    "parked": (
        "the bank refuses it, and it is not sent again by itself; the charge counts here all the same",
        "mend the cause at the bank, then: slurm-banking outbox retry {job}; if its office has booked it by hand: "
        'slurm-banking outbox resolve {job} --reason "..."',
    ),
    "healing": (
        "refused because of a membership or an allocation at the bank; sent again every few minutes",
        "nothing, if the bank's office will mend it; if it never will: "
        'slurm-banking outbox resolve {job} --reason "..."',
    ),
    "unresolved": (
        "sent without an answer; the bank is asked whether it has it before it is sent again",
        "nothing, unless it stays so: then look at the bank, and at slurm-banking status",
    ),
    "waiting": ("put off, and sent again by itself", "nothing"),
    "sending": ("under way", "nothing"),
    "new": ("its turn comes, or the bank is away", "nothing"),
}


class NotByHand(BankingError):
    """A delivery that nobody may declare settled; the text says why. ``later``: again, in a while."""

    def __init__(self, message: str, *, later: bool = False) -> None:
        super().__init__(message)
        self.later = later


@dataclass(frozen=True)
class Standing:
    """One delivery, and where it stands."""

    delivery: Delivery
    state: str
    tries: int
    next_try: Optional[int]  #: unix seconds; None: now, or not by itself
    bank_says: str  #: "": nothing yet

    @property
    def meaning(self) -> str:
        return _MEANING[self.state][0]

    def advice(self, job: str) -> str:
        return _MEANING[self.state][1].format(job=job)


def standings(
    ledger: Ledger, book: DeliveryBook, limit: int, run_ids: Optional[Sequence[int]] = None
) -> List[Standing]:
    """At most ``limit`` of what waits, what needs somebody first, then by age; or what waits of these runs."""
    if run_ids is not None:
        wanted = list(run_ids)[:limit]
    else:
        with ledger.transaction(write=False) as tx:
            parked = [run.run_id for run in tx.parked_runs()]
            oldest = [delivery.run.run_id for delivery in tx.next_deliveries(0, limit)]
        known = [row.run_id for row in book.listed(limit)]
        wanted = list(dict.fromkeys([*parked, *known, *oldest]))
    found: List[Standing] = []
    for at in range(0, len(wanted), 200):
        page = wanted[at : at + 200]
        with ledger.transaction(write=False) as tx:
            deliveries = [tx.delivery_of(run_id) for run_id in page]
        remembered = book.known(page)
        for delivery in deliveries:
            if delivery is not None:
                found.append(_standing(delivery, remembered.get(delivery.run.run_id)))
    found.sort(key=lambda one: (STATES.index(one.state), one.delivery.seq))
    return found[:limit]


def _standing(delivery: Delivery, row: Optional[Remembered]) -> Standing:
    parked = delivery.run.parked
    if row is not None and row.state == "in_flight":
        state = "sending"
    elif parked is not None:
        state = "parked"
    elif row is None:
        state = "new"
    elif row.unresolved:
        state = "unresolved"
    elif row.state == "healing":
        state = "healing"
    else:
        state = "waiting" if row.last_error or row.attempts else "new"
    return Standing(
        delivery=delivery,
        state=state,
        tries=0 if row is None else row.attempts,
        next_try=None if row is None or state == "parked" else int(row.next_try) or None,
        bank_says=parked or ("" if row is None else row.last_error),
    )


class AskedBank(Protocol):
    """What settling by hand needs of :class:`slurm_banking.bank.Bank`."""

    def find_run(self, run: LedgerRun) -> Optional[BankRun]: ...


def resolve(
    ledger: Ledger,
    book: DeliveryBook,
    run_id: int,
    *,
    bank: Callable[[], AskedBank],
    bank_has_csu: Optional[int],
    reason: str,
    actor: str,
) -> Tuple[LedgerRun, int]:
    """A refused delivery is settled by hand: it leaves the outbox, and the ledger takes it that the bank's usage holds
    ``bank_has_csu`` for the run (None: what the bank answers now). The charge stays as it is.

    What remains of the funds never grows by this: the bank's usage was changed by hand at a time that nobody here knows,
    and the next refresh has it.

    :param bank: raises BankError if there is none to ask.
    :returns: the run as it is now, and what the bank held for it before, as far as the ledger knew (hundredths of SU).
    :raises NotByHand: it is not refused, is under way, or the bank cannot be asked.
    """
    found = standings(ledger, book, 1, [run_id])
    if not found:
        raise NotByHand("nothing of it waits for the bank")
    standing = found[0]
    delivery = standing.delivery
    if standing.state not in ("parked", "healing"):
        raise NotByHand(
            f"{standing.meaning} ({standing.state}); only what the bank refused can be settled by hand"
        )
    if not book.take(delivery):
        raise NotByHand("it is under way just now: again, in a moment", later=True)
    run = delivery.run
    state = standing.state
    try:
        row = _ask(bank, run) if bank_has_csu is None else None
        held_csu = bank_has_csu or 0 if row is None else row.held_csu
        bank_job_id = run.bank_job_id if row is None else row.bank_job_id
        with ledger.transaction() as tx:
            before = tx.funds(run.account, run.user_id)
            tx.acknowledge(
                delivery,
                bank_csu=held_csu,
                bank_job_id=bank_job_id,
                actor=actor,
                reason=f"settled by hand: {reason}; the bank had said: {standing.bank_says}",
            )
            for funds in before:
                if funds is not None:
                    _lower(tx.funds(run.account, run.user_id), funds, tx.put_funds)
            now = tx.run(run_id)
            left = tx.delivery_of(run_id)
    except BaseException:
        again_at = time.time()
        book.put_back(run_id, run.account, state, standing.bank_says, again_at)
        raise
    assert now is not None
    book.done(run_id, run.account, delivery.seq, again=left is not None)
    log.warning(
        "delivery_resolved job=%s account=%s phase=%s bank_csu=%s actor=%s reason=%r was=%r",
        run.job_id,
        run.account,
        delivery.phase,
        held_csu,
        actor,
        reason,
        standing.bank_says,
    )
    return now, run.bank_csu


def _ask(bank: Callable[[], AskedBank], run: LedgerRun) -> Optional[BankRun]:
    try:
        return bank().find_run(run)
    except BankError as error:
        raise NotByHand(
            f"the bank cannot be asked what it holds ({error}): say it with --bank-has SU",
            later=True,
        ) from None


def _lower(now: Sequence[Optional[Funds]], before: Funds, put: Callable[[Funds], None]) -> None:
    """Put back what remained before, if it has grown."""
    for funds in now:
        if funds is None or funds.user_id != before.user_id:
            continue
        if (
            funds.remaining_csu is not None
            and before.remaining_csu is not None
            and funds.remaining_csu > before.remaining_csu
        ):
            put(before)


def resolved_row(run: LedgerRun, before_csu: int) -> Dict[str, Any]:
    """What an answer says of a settled run."""
    row: Dict[str, Any] = {
        "account": run.account,
        "charge_csu": run.charge_csu,
        "ledger_csu": run.ledger_csu,
        "bank_csu": run.bank_csu,
        "bank_csu_before": before_csu,
        "bank_job_id": run.bank_job_id,
        "differs": "",
    }
    if run.state == "ended" and run.bank_csu != run.ledger_csu:
        row["differs"] = (
            f"charged {format_su(run.ledger_csu)} SU, the bank holds {format_su(run.bank_csu)}: "
            f"the difference stays with {run.account} until the allocation ends"
        )
    return row


def standing_row(standing: Standing) -> Dict[str, Any]:
    run = standing.delivery.run
    return {
        "account": run.account,
        "user_id": run.user_id,
        "user_name": run.user_name,
        "phase": standing.delivery.phase,
        "state": standing.state,
        "since": standing.delivery.created_us // 1_000_000,
        "tries": standing.tries,
        "next_try": standing.next_try,
        "bank_says": standing.bank_says,
        "meaning": standing.meaning,
        "ledger_csu": run.ledger_csu,
        "bank_csu": run.bank_csu,
        "bank_job_id": run.bank_job_id,
    }
