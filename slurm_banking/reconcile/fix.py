# SPDX-License-Identifier: BSD-3-Clause
"""What is done about findings: a plan that says each repair in one line, and its doing.

Every repair appends; no entry is changed. The ledger's are made here, one short transaction each; whatever concerns the bank
is the relay's to do, which looks there first. Each is checked again in the transaction that makes it, so that a finding that
is no longer so is skipped, and doing all of it twice does it once.

============= =========================================== ==========================================================
finding       in the ledger                               at the bank
============= =========================================== ==========================================================
missing       charged from slurmdbd's figures             delivered again
still_running ended from slurmdbd's figures               delivered again
restated,     restated by slurmdbd's figures, at the      delivered again
mischarged,   price in force at the start
other_prices
doubled       the one too many is struck                  the row too many is set to 0.00
wrong_holder  struck, and charged to whom slurmdbd says   the row is set to 0.00, the run delivered under another id
unknown       struck, if that is asked for                the row is set to 0.00, if that is asked for, and slurmdbd has
                                                          the job as somebody else's, or not at all
drift         nothing: the text says what helps           nothing: the text says what helps
============= =========================================== ==========================================================

``unknown`` has to be asked for: the bank's office books by hand, and slurmctld may have told us of a run that slurmdbd lost.
Where more than :data:`MANY_UNKNOWN` are, slurmdbd has rather purged them, and none is touched.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from slurm_banking import settle
from slurm_banking.amounts import format_su
from slurm_banking.config import Config
from slurm_banking.errors import EntryConflict, LedgerBusy, LedgerError, RelayUnavailable
from slurm_banking.ledger import Ledger, LedgerRun, Transaction
from slurm_banking.reconcile import findings as kinds
from slurm_banking.reconcile.findings import BANK, LEDGER, Finding
from slurm_banking.records import UNKNOWN_RESTART, Run
from slurm_banking.slurm.sacct import Accounting

ACTOR = "reconcile"

#: What a repair does.
CHARGE, RESTATE, END, STRIKE, REPLACE = "charge", "restate", "end", "strike", "replace"
SEND_AGAIN, STRIKE_ROW, MOVE_ROW = "send_again", "strike_row", "move_row"
NOTHING = "nothing"
AT_THE_BANK = (SEND_AGAIN, STRIKE_ROW, MOVE_ROW)

#: The ledger's first: what they deliver anew, the bank needs no repair for.
_ORDER = (STRIKE, REPLACE, RESTATE, END, CHARGE, STRIKE_ROW, MOVE_ROW, SEND_AGAIN, NOTHING)

#: So many at one place are not unknown one by one.
MANY_UNKNOWN = 100

#: Seconds; after each transaction the ledger is left alone for as long as it took, and no longer than this.
_MAX_PAUSE_S = 0.005
_BUSY_TRIES = 20
_JOBS_AT_ONCE = 200
#: Characters of a reason that the relay takes.
MAX_REASON = 500
_BUSY_PAUSE_S = 0.1


@dataclass(frozen=True)
class Repair:
    """One thing to do about one finding."""

    what: str
    finding: Finding
    text: str  #: one line: what would be done, or why nothing is
    appends: Tuple[str, ...] = ()  #: kinds of the entries that it makes
    follows: bool = False  #: nothing need be done: the repair of another finding does it
    leaves_row: bool = (
        False  #: of what is struck: its row at the bank is of the right holder, whose run gets it
    )

    @property
    def does_something(self) -> bool:
        return self.what != NOTHING

    def as_dict(self) -> Dict[str, Any]:
        return {
            "repair": self.what,
            "text": self.text,
            "appends": list(self.appends),
            "finding": self.finding.as_dict(),
        }


@dataclass(frozen=True)
class Done:
    """What became of a repair."""

    repair: Repair
    result: str  #: "done", "skipped" (it is not so any more, or not to be done), "failed"
    text: str = ""

    def as_dict(self) -> Dict[str, Any]:
        return {**self.repair.as_dict(), "result": self.result, "said": self.text}


class _Stale(Exception):
    """It is not as the finding says any more."""


# -- the plan -----------------------------------------------------------------------------------------------------------


def plan(findings: Iterable[Finding], *, fix_unknown: bool = False) -> Sequence[Repair]:
    """What can be done, in the order of doing; for each finding one repair, be it that nothing is done."""
    found = list(findings)
    unknown = Counter(finding.where for finding in found if finding.kind == kinds.UNKNOWN)
    many = {where for where, count in unknown.items() if count > MANY_UNKNOWN}
    at_ledger: Set[int] = set()
    charged: Set[Tuple[Optional[int], Optional[int]]] = set()
    for finding in found:
        if finding.where == LEDGER and finding.kind != kinds.DRIFT:
            if finding.kind == kinds.UNKNOWN and LEDGER in many:
                continue
            if finding.run_id is not None and (finding.kind != kinds.UNKNOWN or fix_unknown):
                at_ledger.add(finding.run_id)
            if finding.kind in (kinds.MISSING, kinds.WRONG_HOLDER) and finding.slurm is not None:
                charged.add((finding.slurm.job_id, finding.slurm.submit_time))
    right = _right_rows(found)
    repairs = [
        _of_many(finding, unknown[finding.where])
        if finding.kind == kinds.UNKNOWN and finding.where in many
        else replace(_in_ledger(finding, fix_unknown), leaves_row=finding.run_id in right)
        if finding.where == LEDGER
        else _at_bank(finding, fix_unknown, at_ledger, charged, right)
        for finding in found
    ]
    return sorted(repairs, key=lambda repair: _ORDER.index(repair.what))


def _of_many(finding: Finding, count: int) -> Repair:
    return Repair(
        what=NOTHING,
        finding=finding,
        text=(
            f"nothing for {_job(finding)}: {count} are unknown to slurmdbd, which may have purged them (PurgeJobAfter); "
            f"if not, repair them in parts of at most {MANY_UNKNOWN}: --since, --until, --account"
        ),
    )


def _right_rows(found: Sequence[Finding]) -> Set[Optional[int]]:
    """Runs of the ledger that have the wrong holder, where the bank's row has the right one."""
    holders = {
        finding.run_id: (finding.slurm.account, str(finding.slurm.user_id))
        for finding in found
        if (finding.kind, finding.where) == (kinds.WRONG_HOLDER, LEDGER)
        and finding.slurm is not None
    }
    return {
        finding.run_id
        for finding in found
        if (finding.kind, finding.where) == (kinds.WRONG_HOLDER, BANK)
        and finding.row is not None
        and holders.get(finding.run_id) == (finding.row.account, finding.row.user_id)
    }


def _in_ledger(finding: Finding, fix_unknown: bool) -> Repair:
    job, should = _job(finding), _su(finding.expected_csu)
    what, text, appends = NOTHING, "", ()  # type: str, str, Tuple[str, ...]
    kind = finding.kind
    if kind == kinds.MISSING:
        what, appends = CHARGE, ("start", "charge", "note")
        text = f"charge {job} {should} SU by slurmdbd's figures"
    elif kind == kinds.STILL_RUNNING:
        what, appends = END, ("charge", "note")
        text = f"end {job} by slurmdbd's figures: {should} SU"
    elif kind == kinds.RESTATED and finding.expected_csu is None:
        text = f"nothing for {job}: who is right, slurmctld or slurmdbd, only people can find out"
    elif kind in (kinds.MISCHARGED, kinds.RESTATED, kinds.OTHER_PRICES):
        what, appends = RESTATE, ("restated",)
        text = f"restate {job} from {_su(finding.ledger_csu)} to {should} SU"
    elif kind == kinds.DOUBLED:
        what, appends = STRIKE, ("restated",)
        text = f"strike {job}, one too many: {_su(finding.ledger_csu)} SU to 0.00"
    elif kind == kinds.WRONG_HOLDER:
        what, appends = REPLACE, ("restated", "start", "charge", "note")
        run = finding.slurm
        holder = "" if run is None else f" to {run.account}, user {run.user_id}"
        text = f"strike {job} of {finding.account}, user {finding.user_id}, and charge it{holder}"
    elif kind == kinds.UNKNOWN and fix_unknown:
        what, appends = STRIKE, ("restated",)
        text = f"strike {job}, which slurmdbd does not know: {_su(finding.ledger_csu)} SU to 0.00"
    elif kind == kinds.UNKNOWN:
        text = f"nothing for {job}: slurmctld told of it, and slurmdbd may have lost it; if it never ran: --fix-unknown"
    else:
        text = _of_drift(finding)
    if what != NOTHING and kind != kinds.MISSING and finding.run_id is None:
        return Repair(
            what=NOTHING, finding=finding, text=f"nothing for {job}: it has no number in the ledger"
        )
    if what in (CHARGE, RESTATE, END, REPLACE) and finding.slurm is None:
        return Repair(
            what=NOTHING,
            finding=finding,
            text=f"nothing for {job}: slurmdbd's figures are not known",
        )
    return Repair(what=what, finding=finding, text=text, appends=appends)


def _at_bank(
    finding: Finding,
    fix_unknown: bool,
    at_ledger: Set[int],
    charged: Set[Tuple[Optional[int], Optional[int]]],
    right: Set[Optional[int]],
) -> Repair:
    job, row = _job(finding), f"row {finding.bank_job_id}"
    kind = finding.kind

    def nothing(text: str) -> Repair:
        return Repair(what=NOTHING, finding=finding, text=text)

    if kind == kinds.DRIFT:
        return nothing(_of_drift(finding))
    if kind == kinds.WRONG_HOLDER and finding.run_id in right:
        text = (
            f"nothing for {row}: it is of the right holder, to whom the ledger's repair charges it"
        )
        return replace(nothing(text), follows=True)
    if kind in (kinds.DOUBLED, kinds.UNKNOWN, kinds.WRONG_HOLDER):
        if finding.row is None or finding.job_id is None or finding.bank_job_id is None:
            return nothing(
                f"nothing for {row}: it says no job of this cluster; the bank's office can mend it"
            )
        if kind == kinds.UNKNOWN:
            run = finding.slurm
            if run is not None and (run.account, str(run.user_id)) == (
                finding.row.account,
                finding.row.user_id,
            ):
                return nothing(
                    f"nothing for {row}: slurmdbd has job {finding.job_id} of the same user and account, submitted at "
                    "another time; the bank's office can say what it is"
                )
            if not fix_unknown:
                return nothing(
                    f"nothing for {row}: somebody may have booked it by hand; if nobody did: --fix-unknown"
                )
        text = f"set {row} at the bank from {_su(finding.bank_csu)} to 0.00 SU"
        if kind != kinds.WRONG_HOLDER:
            return Repair(what=STRIKE_ROW, finding=finding, text=text, appends=("note",))
        if finding.run_id is None or finding.run_id in at_ledger:
            return Repair(what=STRIKE_ROW, finding=finding, text=text, appends=("note",))
        return Repair(
            what=MOVE_ROW,
            finding=finding,
            text=f"{text}, and deliver {job} again",
            appends=("note", "note", "delivered"),
        )
    if finding.run_id in at_ledger or (finding.job_id, finding.submit_time) in charged:
        return replace(
            nothing(f"nothing for {job} at the bank: the repair in the ledger delivers it again"),
            follows=True,
        )
    if finding.run_id is None:
        return nothing(f"nothing for {job} at the bank: the ledger has no such run")
    return Repair(
        what=SEND_AGAIN,
        finding=finding,
        text=f"deliver {job} again: {_su(finding.expected_csu)} SU at the bank, where it has {_su(finding.bank_csu)}",
        appends=("note", "delivered"),
    )


def _of_drift(finding: Finding) -> str:
    if finding.where == BANK:
        return (
            f"nothing for {finding.account}: its rows and its counter are the bank's to mend, not through the API: "
            "slurm-banking bank verify (the bundled bank), manage.py set_service_unit_usages_from_jobs (the MyBRC portal)"
        )
    return (
        f"nothing for {finding.account}: its runs are repaired one by one; if this alone is left, somebody wrote into the "
        "ledger's file past us: slurm-banking ledger verify"
    )


def _job(finding: Finding) -> str:
    return "the run" if finding.job_id is None else f"job {finding.job_id}"


def _su(csu: Optional[int]) -> str:
    return "nothing" if csu is None else format_su(csu)


# -- the doing ----------------------------------------------------------------------------------------------------------

#: Asks the relay: the request's fields -> its answer; raises RelayUnavailable.
AskRelay = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def apply(
    repairs: Sequence[Repair],
    ledger: Ledger,
    config: Config,
    ask_relay: AskRelay,
    *,
    reason: str,
    actor: str = ACTOR,
    accounting: Optional[Accounting] = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Sequence[Done]:
    """Do them, in their order; what became of each. ``reason``: kept in every entry.

    ``accounting``: asked for the restart counts of runs that are charged, where the findings do not have them; the bank may
    have the run under an id with it.

    :raises LedgerError: the ledger cannot be used; what was done stays done.
    :raises SlurmUnavailable: the restart counts cannot be asked for; nothing was done.
    """
    repairs = _with_restart_counts(repairs, accounting)
    results: List[Done] = []
    relay_away = ""
    for number, repair in enumerate(repairs):
        progress(number, len(repairs))
        if repair.what == NOTHING:
            results.append(Done(repair=repair, result="skipped", text=repair.text))
        elif repair.what in AT_THE_BANK:
            if not relay_away:
                result, relay_away = _ask(repair, ask_relay, reason, actor)
                results.append(result)
            else:
                results.append(Done(repair=repair, result="failed", text=relay_away))
        else:
            results.append(_in_transaction(repair, ledger, config, reason, actor, sleep))
    progress(len(repairs), len(repairs))
    return results


def _with_restart_counts(
    repairs: Sequence[Repair], accounting: Optional[Accounting]
) -> Sequence[Repair]:
    unknown = {
        repair.finding.slurm.job_id
        for repair in repairs
        if repair.what in (CHARGE, REPLACE)
        and repair.finding.slurm is not None
        and repair.finding.slurm.restart_count == UNKNOWN_RESTART
    }
    if accounting is None or not unknown:
        return repairs
    counted: Dict[Tuple[int, int], int] = {}
    wanted = sorted(unknown)
    for first in range(0, len(wanted), _JOBS_AT_ONCE):
        for runs in accounting.read_jobs(wanted[first : first + _JOBS_AT_ONCE]).values():
            counted.update({(run.job_id, run.submit_time): run.restart_count for run in runs})
    done: List[Repair] = []
    for repair in repairs:
        run = repair.finding.slurm
        if run is not None and (run.job_id, run.submit_time) in counted:
            run = replace(run, restart_count=counted[run.job_id, run.submit_time])
            repair = replace(repair, finding=replace(repair.finding, slurm=run))
        done.append(repair)
    return done


def _in_transaction(
    repair: Repair,
    ledger: Ledger,
    config: Config,
    reason: str,
    actor: str,
    sleep: Callable[[float], None],
) -> Done:
    for left in range(_BUSY_TRIES, -1, -1):
        try:
            with ledger.transaction() as tx:
                began = time.monotonic()
                said = _DO[repair.what](
                    tx, config, repair, f"{reason}: {repair.finding.text}", actor
                )
            took_s = time.monotonic() - began
            sleep(min(took_s, _MAX_PAUSE_S))
            return Done(repair=repair, result="done", text=said)
        except _Stale as stale:
            return Done(repair=repair, result="skipped", text=str(stale))
        except EntryConflict as conflict:
            return Done(repair=repair, result="failed", text=str(conflict))
        except LedgerBusy:
            if not left:
                raise
            sleep(_BUSY_PAUSE_S)
    raise AssertionError


def _slurm(repair: Repair) -> Run:
    run = repair.finding.slurm
    assert run is not None  # plan() sees to it
    return replace(run, requeue=False, resizing=False)


def _standing(tx: Transaction, repair: Repair) -> LedgerRun:
    """The ledger's run of the finding, as it was then as far as money goes."""
    finding = repair.finding
    assert finding.run_id is not None  # plan() sees to it
    run = tx.run(finding.run_id)
    if run is None or run.job_id != finding.job_id:
        raise _Stale("the ledger has no such run any more")
    if run.struck:
        raise _Stale("it was struck meanwhile")
    if (
        finding.ledger_csu is not None
        and run.state == "ended"
        and run.ledger_csu != finding.ledger_csu
    ):
        raise _Stale(f"it counts {_su(run.ledger_csu)} SU by now")
    return run


def _charge(tx: Transaction, config: Config, repair: Repair, reason: str, actor: str) -> str:
    run = _slurm(repair)
    if tx.find_run(run.job_id, run.submit_time) is not None:
        raise _Stale("the ledger has it by now")
    return _as_told(tx, config, repair, run, reason, actor)


def _as_told(
    tx: Transaction, config: Config, repair: Repair, run: Run, reason: str, actor: str
) -> str:
    """A run that the ledger does not have, from slurmdbd's figures."""
    if run.end_time is None:
        started, _ = settle.start_run(tx, run, config, actor=actor)
        _note(tx, started, reason, actor)
        return f"it runs: {_su(started.ledger_csu)} SU are set aside for it"
    run = settle.with_resizes(tx, run)
    charge_csu, inputs = settle.cost_of(tx, config, run)
    _check_cost(repair, charge_csu)
    if tx.charges_of(run):
        made = tx.restore_run(
            run,
            charge_csu=charge_csu,
            entered_csu=settle.entered_csu(tx, run),
            inputs=inputs,
            actor=actor,
            reason=reason,
        )
    else:
        result = settle.end_run(tx, run, config, actor=actor)
        if result.kind not in ("charged", "restated") or result.run is None:
            raise _Stale(f"the ledger takes nothing of it: {result.kind}")
        made = result.run
        _note(tx, made, reason, actor)
    return f"charged {_su(made.charge_csu)} SU"


def _end(tx: Transaction, config: Config, repair: Repair, reason: str, actor: str) -> str:
    current, run = _standing(tx, repair), _slurm(repair)
    if current.state != "running":
        raise _Stale("it has ended meanwhile")
    run = replace(run, restart_count=current.restart_count)
    if not run.started:
        run = replace(run, started=True, start_time=current.start_time, elapsed_s=0)
    entries = tx.charges_of(current)
    if entries and entries[-1].kind != "start":
        # Its entries have an end already: somebody wrote into the file past us.
        run = settle.with_resizes(tx, run)
        charge_csu, inputs = settle.cost_of(tx, config, run)
        tx.restate_run(
            current,
            run,
            charge_csu=charge_csu,
            entered_csu=settle.entered_csu(tx, current),
            inputs=inputs,
            actor=actor,
            reason=reason,
        )
        return f"charged {_su(charge_csu)} SU"
    result = settle.end_run(tx, run, config, actor=actor)
    if result.kind != "charged" or result.run is None:
        raise _Stale(f"the ledger takes no end of it: {result.kind}")
    _note(tx, result.run, reason, actor)
    return f"charged {_su(result.run.charge_csu)} SU"


def _restate(tx: Transaction, config: Config, repair: Repair, reason: str, actor: str) -> str:
    current, run = _standing(tx, repair), _slurm(repair)
    if current.state != "ended":
        raise _Stale("it runs again")
    run = settle.with_resizes(tx, replace(run, restart_count=current.restart_count))
    charge_csu, inputs = settle.cost_of(tx, config, run)
    _check_cost(repair, charge_csu)
    if charge_csu == current.charge_csu == current.ledger_csu and inputs == current.inputs:
        raise _Stale("it is charged so by now")
    tx.restate_run(
        current,
        run,
        charge_csu=charge_csu,
        entered_csu=settle.entered_csu(tx, current),
        inputs=inputs,
        actor=actor,
        reason=reason,
    )
    return f"charged {_su(charge_csu)} SU instead of {_su(current.charge_csu)}"


def _strike(tx: Transaction, config: Config, repair: Repair, reason: str, actor: str) -> str:
    current = _standing(tx, repair)
    run = repair.finding.slurm
    if repair.finding.kind == kinds.DOUBLED and run is not None:
        kept = [
            other
            for other in tx.runs_by_job(run.job_id)
            if other.run_id != current.run_id
            and not other.made_way
            and (other.job_id, other.submit_time) == (run.job_id, run.submit_time)
        ]
        if not kept:
            raise _Stale("it is the only one by now")
    tx.strike_run(current, entered_csu=settle.entered_csu(tx, current), actor=actor, reason=reason)
    return f"struck: it was charged {_su(current.charge_csu)} SU"


def _replace(tx: Transaction, config: Config, repair: Repair, reason: str, actor: str) -> str:
    current, run = _standing(tx, repair), _slurm(repair)
    if (current.account, current.user_id) == (run.account, run.user_id):
        raise _Stale("it is of that user and account")
    tx.strike_run(
        current,
        entered_csu=settle.entered_csu(tx, current),
        actor=actor,
        reason=reason,
        leaves_row=repair.leaves_row,
    )
    right = tx.find_run(run.job_id, run.submit_time)
    if right is not None:
        return "struck; the ledger has the run of the right one already"
    return "struck, and " + _as_told(tx, config, repair, run, reason, actor)


def _check_cost(repair: Repair, charge_csu: int) -> None:
    expected_csu = repair.finding.expected_csu
    if repair.finding.kind == kinds.WRONG_HOLDER:
        return  # nothing is what it should cost there
    if expected_csu is not None and charge_csu != expected_csu:
        raise _Stale(f"it would cost {_su(charge_csu)} SU by now: look again")


def _note(tx: Transaction, run: LedgerRun, reason: str, actor: str) -> None:
    """Why, beside entries that say what."""
    tx.append(
        "note",
        lien_id=run.lien_id,
        job_id=run.job_id,
        submit_time=run.submit_time,
        restart_count=run.restart_count,
        account=run.account,
        user_id=run.user_id,
        amount_csu=0,
        reason=reason,
        actor=actor,
    )


_DO: Mapping[str, Callable[[Transaction, Config, Repair, str, str], str]] = {
    CHARGE: _charge,
    END: _end,
    RESTATE: _restate,
    STRIKE: _strike,
    REPLACE: _replace,
}


# -- at the bank ----------------------------------------------------------------------------------------------------------


def _requests(repair: Repair, reason: str, actor: str) -> Sequence[Mapping[str, Any]]:
    finding = repair.finding
    said = "".join(char if char.isprintable() else "?" for char in f"{reason}: {finding.text}")
    common = {"op": "reconcile_bank", "reason": said[:MAX_REASON], "actor": actor}
    wanted: List[Mapping[str, Any]] = []
    if repair.what in (STRIKE_ROW, MOVE_ROW):
        row = finding.row
        assert row is not None
        wanted.append(
            {
                **common,
                "do": STRIKE_ROW,
                "job_id": finding.job_id,
                "bank_job_id": finding.bank_job_id,
                "user_id": row.user_id,
                "account": row.account,
                "submit_time": row.submit_time,
                "amount_csu": row.amount_csu,
            }
        )
    if repair.what in (SEND_AGAIN, MOVE_ROW):
        wanted.append({**common, "do": SEND_AGAIN, "run_id": finding.run_id})
    return wanted


def _ask(repair: Repair, ask_relay: AskRelay, reason: str, actor: str) -> Tuple[Done, str]:
    """What became of it, and why nobody need be asked any more ("": go on)."""
    said: List[str] = []
    result = "skipped"
    for request in _requests(repair, reason, actor):
        try:
            answer = ask_relay(request)
        except RelayUnavailable as error:
            return Done(repair=repair, result="failed", text=str(error)), str(error)
        said.append(str(answer.get("text") or answer.get("message") or ""))
        if not answer.get("ok"):
            return Done(repair=repair, result="failed", text="; ".join(said)), ""
        if answer.get("result") == "done":
            result = "done"
    return Done(repair=repair, result=result, text="; ".join(said)), ""


def counts(results: Sequence[Done]) -> Mapping[str, int]:
    """How many were done, skipped and failed."""
    found = {"done": 0, "skipped": 0, "failed": 0}
    for one in results:
        found[one.result] += 1
    return found


__all__ = [
    "ACTOR",
    "Done",
    "LedgerError",
    "Repair",
    "apply",
    "counts",
    "plan",
]
