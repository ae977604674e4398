# SPDX-License-Identifier: BSD-3-Clause
"""What reconcile has the relay do at the bank, whose only writer the relay is: a run sent again, a row that counts nothing.

Each looks at the bank first, and does nothing if all is well by then. A row of the bank is only ever set to 0.00 if it is no
run's of ours; what it was stays in an entry, which is on disk before the row is changed.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import Any, Dict, Mapping, Optional, Protocol, Tuple, Union

from slurm_banking.amounts import format_su
from slurm_banking.bank import BankRun
from slurm_banking.errors import BankError, BankingError, BankRefused
from slurm_banking.ledger import Ledger, LedgerRun
from slurm_banking.ledger.rows import WHOLE_ACCOUNT

log = logging.getLogger("slurm_banking.relay")

DONE, NOTHING = "done", "nothing"


class NotMended(BankingError):
    """Why it was left as it is, in one line. ``later``: again, in a while."""

    def __init__(self, message: str, *, later: bool = False) -> None:
        super().__init__(message)
        self.later = later


class MendingBank(Protocol):
    """What this needs of :class:`slurm_banking.bank.Bank`."""

    def find_run(self, run: LedgerRun) -> Optional[BankRun]: ...

    def row(self, bank_job_id: str) -> Optional[BankRun]: ...

    def strike_row(self, row: BankRun) -> None: ...


def send_again(
    ledger: Ledger, bank: MendingBank, run_id: int, *, reason: str, actor: str
) -> Dict[str, Any]:
    """The end of a run goes into the outbox again, with what the bank's usage holds for it now.

    :raises NotMended: there is no such run, it runs, or it changed meanwhile; or the bank does not answer.
    """
    with ledger.transaction(write=False) as tx:
        run = tx.run(run_id)
        waits = tx.delivery_of(run_id) is not None
    if run is None:
        raise NotMended("the ledger has no run of that number")
    if run.state != "ended":
        return {
            "result": NOTHING,
            "text": "it runs by the ledger: its end is delivered when it comes",
        }
    try:
        row, taken = _row_of(bank, run)
    except BankError as error:
        raise NotMended(f"the bank cannot be asked: {error}", later=True) from None
    if waits and not taken and run.parked is not None:
        raise NotMended(
            f"the bank refuses it for good ({run.parked}): slurm-banking outbox {run.job_id}"
        )
    if waits and not taken:
        return {"result": NOTHING, "text": "its delivery waits already"}
    if row is not None and not taken and _agrees(row, run):
        return {"result": NOTHING, "text": "the bank has it right by now"}
    with ledger.transaction() as tx:
        if tx.run(run_id) != run or (tx.delivery_of(run_id) is not None) != waits:
            raise NotMended("it changed while the bank was asked", later=True)
        tx.reopen_end(
            run,
            bank_csu=0 if row is None else row.held_csu,
            bank_job_id=None if row is None else row.bank_job_id,
            actor=actor,
            reason=reason,
            inputs={
                "bank_had": None if row is None else _evidence(row),
                "bank_csu_before": run.bank_csu,
                "bank_job_id_before": run.bank_job_id,
            },
        )
    log.info("end_sent_again job=%s account=%s actor=%s", run.job_id, run.account, actor)
    return {"result": DONE, "text": "it is delivered again"}


def _row_of(bank: MendingBank, run: LedgerRun) -> Tuple[Optional[BankRun], bool]:
    """Its row, and whether the row under the id that it had is another's now."""
    try:
        return bank.find_run(run), False
    except BankRefused:
        if run.bank_job_id is None:
            raise
    return bank.find_run(replace(run, bank_job_id=None)), True


def _agrees(row: BankRun, run: LedgerRun) -> bool:
    start = None if run.start_time is None else max(run.start_time, run.submit_time)
    return (
        row.is_final_for(run)
        and row.start_time == start
        and row.held_csu == run.bank_csu
        and row.bank_job_id == run.bank_job_id
    )


def strike_row(
    ledger: Ledger,
    bank: MendingBank,
    *,
    job_id: int,
    bank_job_id: str,
    expected: Mapping[str, Any],
    reason: str,
    actor: str,
) -> Dict[str, Any]:
    """A row of the bank that is no run's counts nothing from now on.

    ``expected``: ``user_id``, ``account``, ``submit_time`` and ``amount_csu`` as whoever wants this saw them.

    :raises NotMended: the row is another by now, it is a run's, or the bank refuses it or does not answer.
    """
    try:
        row = bank.row(bank_job_id)
        if row is None:
            return {"result": NOTHING, "text": "the bank does not have the row any more"}
        for name, value in expected.items():
            if name != "amount_csu" and getattr(row, name) != value:
                raise NotMended(
                    f"the row changed since it was looked at: {name} is {getattr(row, name)!r}"
                )
        if row.amount_csu == 0:
            return {"result": NOTHING, "text": "the row counts nothing by now"}
        if row.amount_csu != expected.get("amount_csu"):
            raise NotMended(
                f"the row changed since it was looked at: its amount is {format_su(row.amount_csu)} SU"
            )
        owner = _owner(ledger, bank, job_id, row)
        if owner is not None:
            raise NotMended(
                f"the row is that of job {owner.job_id} submitted {owner.submit_time}, which the ledger has: "
                "its delivery sets it right"
            )
        with ledger.transaction() as tx:
            tx.append(
                "note",
                job_id=job_id,
                submit_time=row.submit_time,
                account=row.account,
                user_id=int(row.user_id) if _is_uid(row.user_id) else WHOLE_ACCOUNT,
                amount_csu=0,
                reason=f"row {bank_job_id} at the bank is set to nothing: {reason}",
                actor=actor,
                inputs=_evidence(row),
            )
        bank.strike_row(row)
    except BankError as error:
        raise NotMended(f"the bank: {error}", later=True) from None
    log.warning(
        "bank_row_struck bank_job=%s account=%s user=%s amount_csu=%s actor=%s reason=%r",
        bank_job_id,
        row.account,
        row.user_id,
        row.amount_csu,
        actor,
        reason,
    )
    answer: Dict[str, Any] = {
        "result": DONE,
        "text": f"{format_su(row.amount_csu)} SU at the bank are 0.00 now",
    }
    if _is_uid(row.user_id):
        answer["refresh"] = (row.account, int(row.user_id))
    return answer


def _owner(ledger: Ledger, bank: MendingBank, job_id: int, row: BankRun) -> Optional[LedgerRun]:
    """The run that the row is of; it may be one that is delivered, or waits, or was struck and is told so yet."""
    with ledger.transaction(write=False) as tx:
        runs = [run for run in tx.runs_by_job(job_id) if row.is_of(run)]
    for run in runs:
        if run.bank_job_id == row.bank_job_id:
            return run
        if run.bank_job_id is None:
            found = bank.find_run(run)
            if found is not None and found.bank_job_id == row.bank_job_id:
                return run
    return None


def _is_uid(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10


def _evidence(row: BankRun) -> Mapping[str, Any]:
    return {key: value for key, value in asdict(row).items() if key != "doubt"}


# -- the request --------------------------------------------------------------------------------------------------------

_MAX_REASON = 500


def wanted(request: Mapping[str, Any]) -> Union[Dict[str, Any], str]:
    """The request as far as it is understood; or what is wrong with it, in one line."""
    reason = request.get("reason")
    if not isinstance(reason, str) or not reason.strip() or len(reason) > _MAX_REASON:
        return f"reason: expected text of 1 to {_MAX_REASON} characters"
    if not reason.isprintable():
        return "reason: expected printable text"
    do = request.get("do")
    if do == "send_again":
        if not _is_number(request.get("run_id")):
            return "run_id: expected a number"
        return {"do": do, "reason": reason, "run_id": request["run_id"]}
    if do != "strike_row":
        return "do: expected send_again or strike_row"
    for name in ("bank_job_id", "user_id", "account"):
        if not isinstance(request.get(name), str) or not 0 < len(request[name]) <= 255:
            return f"{name}: expected text of 1 to 255 characters"
    for name in ("job_id", "amount_csu"):
        if not _is_number(request.get(name)):
            return f"{name}: expected a number"
    if request.get("submit_time") is not None and not _is_number(request["submit_time"]):
        return "submit_time: expected a number or nothing"
    names = (
        "do",
        "reason",
        "job_id",
        "bank_job_id",
        "user_id",
        "account",
        "submit_time",
        "amount_csu",
    )
    return {name: request.get(name) for name in names}


def actor(request: Mapping[str, Any], caller: str, trusted: bool) -> str:
    """Who is entered: the caller, or whom it says, if it is SlurmUser or root: the command line has become SlurmUser."""
    said = request.get("actor")
    if (
        not trusted
        or not isinstance(said, str)
        or not 0 < len(said) <= 100
        or not said.isprintable()
    ):
        return caller
    return said


def do(ledger: Ledger, bank: MendingBank, what: Mapping[str, Any], by: str) -> Dict[str, Any]:
    """What :func:`wanted` understood.

    :raises NotMended: as the two of them.
    """
    if what["do"] == "send_again":
        return send_again(ledger, bank, what["run_id"], reason=what["reason"], actor=by)
    return strike_row(
        ledger,
        bank,
        job_id=what["job_id"],
        bank_job_id=what["bank_job_id"],
        expected={name: what[name] for name in ("user_id", "account", "submit_time", "amount_csu")},
        reason=what["reason"],
        actor=by,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
