# SPDX-License-Identifier: BSD-3-Clause
"""One run as slurmdbd, the ledger and the bank have it: what differs, or why it may. Pure; nothing is asked here.

Not findings, though the books are not the same (each is counted under its word in :data:`WHY_NOT`): what nobody is charged
for; what was over before there was a ledger; what Slurm tells otherwise later without its having been so.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, replace
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Union

from slurm_banking import charge as charging
from slurm_banking import policy, settle, tokens
from slurm_banking.amounts import format_su
from slurm_banking.bank import BankRun
from slurm_banking.config import Config
from slurm_banking.ledger import LedgerRun, Transaction
from slurm_banking.ledger.glance import RunGlance
from slurm_banking.ledger.transaction import LOST
from slurm_banking.prices import CANCELLED_BY_ADMIN, PriceList
from slurm_banking.reconcile.findings import (
    BANK,
    DOUBLED,
    LEDGER,
    MISCHARGED,
    MISSING,
    OTHER_PRICES,
    RESTATED,
    STILL_RUNNING,
    UNKNOWN,
    WRONG_HOLDER,
    Finding,
)
from slurm_banking.records import Run
from slurm_banking.slurm.runaway import is_made_up, is_made_up_of_lost

AGREES = "agrees"
NEVER_RAN = "never_ran"
EXEMPT = "exempt"
BEFORE_LEDGER = "before_ledger"
COSTS_NOTHING = "costs_nothing"
REQUEUED_AFTER_END = "requeued_after_end"
ADOPTED = "adopted"
OPEN_IN_ACCOUNTING = "open_in_accounting"
TIMES_ALONE = "times_alone"
WAITING = "waiting"
NOT_DELIVERED = "not_delivered"
KEY_GIVEN_AGAIN = "key_given_again"
OTHERS = "others"

#: What is counted and not reported, in words.
WHY_NOT: Mapping[str, str] = {
    WAITING: "wait for the bank",
    EXEMPT: "exempt by configuration",
    BEFORE_LEDGER: "over before there was this ledger",
    COSTS_NOTHING: "cost nothing and left no charge",
    REQUEUED_AFTER_END: "requeued after their end, which slurmdbd has moved to the requeue",
    ADOPTED: "charged as the bank had them when the ledger was rebuilt",
    OPEN_IN_ACCOUNTING: "ended here, and slurmdbd has no end of them",
    TIMES_ALONE: "slurmdbd never got their start, and has their times alone, which agree",
    NOT_DELIVERED: "resolved by an operator without the bank",
    KEY_GIVEN_AGAIN: "whose job id slurmctld gave to another user's job of the same second, which slurmdbd has alone",
    OTHERS: "rows at the bank under ids that are not this cluster's",
}

#: States in which a run is over for good, so that what slurmdbd says of it after a requeue is not its end.
_FINAL_STATES = frozenset(
    {
        "COMPLETED",
        "CANCELLED",
        "FAILED",
        "TIMEOUT",
        "DEADLINE",
        "OUT_OF_MEMORY",
        "NODE_FAIL",
        "BOOT_FAIL",
        "PREEMPTED",
    }
)

_US_PER_S = 1_000_000


class Prices:
    """Every price list that was in force, and what runs cost by them; quick to ask again."""

    _MOST_REMEMBERED = 100_000

    def __init__(self, config: Config, history: Sequence[Tuple[int, PriceList]]) -> None:
        """``history``: since when (unix microseconds) each was in force, ascending."""
        self._config = config
        self._since = [since_us for since_us, _ in history]
        self._lists = [prices for _, prices in history]
        self._costs: Dict[Any, int] = {}

    @classmethod
    def read(cls, tx: Transaction, config: Config) -> Prices:
        history = [
            (since_us, PriceList.from_tables(tables)) for since_us, _, tables in tx.price_history()
        ]
        return cls(config, history)

    def at(self, start_time: Optional[int]) -> PriceList:
        """As :func:`settle.prices_for`."""
        if start_time is not None:
            index = bisect.bisect_right(self._since, start_time * _US_PER_S + _US_PER_S - 1)
            if index:
                return self._lists[index - 1]
        return self._config.prices

    def cost_csu(self, run: Run) -> int:
        """As :func:`settle.cost_of`."""
        if not run.started:
            return 0
        prices = self.at(run.start_time)
        state = charging.final_state(run)
        key = None
        if not run.segments:
            tres = charging.allocated(run)
            key = (prices.version, run.partition, run.qos, state, str(tres), run.elapsed_s)
            known = self._costs.get(key)
            if known is not None:
                return known
        price = charging.price_of(run, prices) or prices.free(run.partition, run.qos)
        cost_csu = charging.charge(run, price, prices.factor(state))
        if key is not None:
            if len(self._costs) >= self._MOST_REMEMBERED:
                self._costs.clear()
            self._costs[key] = cost_csu
        return cost_csu


@dataclass(frozen=True)
class Rules:
    """What a comparison goes by."""

    config: Config
    prices: Prices
    created: int  #: when the ledger was made, unix seconds
    cluster: str

    def is_exempt(self, run: Run) -> bool:
        return policy.is_exempt(
            self.config,
            account=run.account,
            user_name=run.user_name,
            user_id=run.user_id,
            qos=run.qos,
        )

    def is_ours(self, run: Run) -> bool:
        """Whether the ledger should have an ended run: it was not over before, or went by way of our plugin."""
        assert run.end_time is not None
        if run.end_time >= self.created:
            return True
        back_s = self.config.relay.sacct_lookback_h * 3600
        return tokens.parse(run.admin_comment) is not None and run.end_time >= self.created - back_s


# -- slurmdbd and the ledger --------------------------------------------------------------------------------------------


def agrees_at_a_glance(run: Run, known: Sequence[RunGlance], rules: Rules) -> bool:
    """Whether nothing needs a closer look: one run under this key, ended, of the same holder, at the right cost."""
    found: Optional[RunGlance] = None
    for one in known:
        if one.submit_time == run.submit_time:
            if found is not None:
                return False
            found = one
    return (
        found is not None
        and found.state == "ended"
        and found.user_id == run.user_id
        and found.account == run.account
        and run.started
        and found.charge_csu == found.ledger_csu == rules.prices.cost_csu(run)
    )


def compare_run(
    run: Run, known: Sequence[LedgerRun], rules: Rules, *, adopted_csu: Optional[int] = None
) -> Tuple[Sequence[Finding], str]:
    """An ended run of slurmdbd against the runs that the ledger has of that job id.

    ``adopted_csu``: the charge that was taken over from the bank when the ledger was rebuilt, if it was. The second value
    is :data:`AGREES` or one of :data:`WHY_NOT` where nothing is found.
    """
    same = [one for one in known if one.submit_time == run.submit_time]
    if any(one.made_way and _holder(one) == _holder(run) for one in same):
        return (), KEY_GIVEN_AGAIN  # slurmdbd does not have the later one yet
    same = [one for one in same if not one.made_way]
    if not same:
        return _not_there(run, rules)
    chosen = min(same, key=lambda one: _distance(one, run, rules))
    if _holder(chosen) != _holder(run) and rules.is_exempt(run):
        return (), EXEMPT  # another's run, whose key it would have
    findings = [
        _doubled(one, run, f"run {chosen.run_id} is the same run of slurmdbd")
        for one in same
        if one is not chosen and _counts(one)
    ]
    finding, word = _compare(run, chosen, rules, adopted_csu)
    if finding is not None:
        findings.insert(0, finding)
    return findings, word


def _not_there(run: Run, rules: Rules) -> Tuple[Sequence[Finding], str]:
    if not run.started:
        return (), NEVER_RAN
    if rules.is_exempt(run):
        return (), EXEMPT
    if not rules.is_ours(run):
        return (), BEFORE_LEDGER
    if is_made_up(run):
        return (), COSTS_NOTHING
    expected_csu = rules.prices.cost_csu(run)
    if not expected_csu:
        return (), COSTS_NOTHING
    text = f"{_told(run)}, {_su(expected_csu)}; the ledger does not have it"
    return (
        Finding(
            kind=MISSING,
            where=LEDGER,
            job_id=run.job_id,
            submit_time=run.submit_time,
            account=run.account,
            user_id=run.user_id,
            run_id=None,
            bank_job_id=None,
            expected_csu=expected_csu,
            ledger_csu=None,
            bank_csu=None,
            slurm=run,
            text=text,
        ),
    ), MISSING


def _distance(one: LedgerRun, run: Run, rules: Rules) -> Tuple[int, int, int, int]:
    """How far a run of the ledger is from slurmdbd's: the nearest is taken for it."""
    return (
        int(_holder(one) != _holder(run)),
        int(not _counts(one) and run.started),
        abs((one.charge_csu or 0) - rules.prices.cost_csu(run)),
        one.run_id,
    )


def _holder(one: Union[Run, LedgerRun]) -> Tuple[str, int]:
    return one.account, one.user_id


def _counts(one: LedgerRun) -> bool:
    return bool(one.charge_csu) or one.state == "running"


def _compare(
    run: Run, one: LedgerRun, rules: Rules, adopted_csu: Optional[int]
) -> Tuple[Optional[Finding], str]:
    run = _as_it_was_cancelled(run, one)
    expected_csu: Optional[int] = rules.prices.cost_csu(run)
    lost_at = one.inputs.get("lost_at") if one.slurm_state == LOST else None
    told_alike = one.inputs.get("elapsed_s") == run.elapsed_s  # it did run on after its limit
    if is_made_up_of_lost(run, lost_at) or (is_made_up(run) and not told_alike):
        run = replace(run, elapsed_s=0, segments=())
        expected_csu = rules.prices.cost_csu(run)
    if _holder(one) != _holder(run):
        text = f"{_told(run)}; the ledger has it as user {one.user_id}'s in {one.account}"
        return _of_run(WRONG_HOLDER, one, run, 0, text), WRONG_HOLDER
    if one.state == "running":
        text = f"{_told(run)}; it goes on in the ledger, with {_su(one.ledger_csu)}"
        return _of_run(STILL_RUNNING, one, run, expected_csu, text), STILL_RUNNING
    if one.charge_csu == expected_csu and one.ledger_csu == one.charge_csu:
        return None, AGREES
    if one.charge_csu == adopted_csu and one.ledger_csu == one.charge_csu:
        return None, ADOPTED
    if _requeued_after_end(run, one) and _explained(one):
        return None, REQUEUED_AFTER_END
    has = f"the ledger charged {_su(one.charge_csu or 0)}"
    if one.ledger_csu != one.charge_csu:
        text = f"{_told(run)}, {_su(expected_csu or 0)}; {has} and counts {_su(one.ledger_csu)}"
        return _of_run(MISCHARGED, one, run, expected_csu, text), MISCHARGED
    if not run.started:
        # slurmctld told that it ran, and slurmdbd that it never did: who is right, only people can find out.
        text = f"{_told(run)}, and never started by slurmdbd; {has} for {one.elapsed_s} s"
        return _of_run(RESTATED, one, run, None, text), RESTATED
    text = f"{_told(run)}, {_su(expected_csu or 0)}; {has}"
    if one.slurm_state == LOST or one.returned:
        text += f", its state being {one.slurm_state}"
        return _of_run(RESTATED, one, run, expected_csu, text), RESTATED
    if not _explained(one):
        return _of_run(MISCHARGED, one, run, expected_csu, text), MISCHARGED
    changed = _changed(run, one)
    if changed:
        text += f", when it was told {changed}"
        return _of_run(RESTATED, one, run, expected_csu, text), RESTATED
    then, in_force = one.inputs.get("price_version"), rules.prices.at(run.start_time).version
    if then != in_force:
        text += f" by price list {then}; in force at its start was {in_force}"
        return _of_run(OTHER_PRICES, one, run, expected_csu, text), OTHER_PRICES
    return _of_run(MISCHARGED, one, run, expected_csu, text), MISCHARGED


def _as_it_was_cancelled(run: Run, one: LedgerRun) -> Run:
    """slurmdbd may forget who cancelled a job when slurmctld starts again: by whom is as the ledger knew it."""
    knew = one.inputs.get("state")
    if run.state == "CANCELLED" and knew in ("CANCELLED", CANCELLED_BY_ADMIN):
        return replace(run, cancelled_by_admin=knew == CANCELLED_BY_ADMIN)
    return run


def _requeued_after_end(run: Run, one: LedgerRun) -> bool:
    return (
        run.state == "REQUEUED"
        and one.slurm_state in _FINAL_STATES
        and run.start_time == one.start_time
        and run.end_time is not None
        and one.end_time is not None
        and run.end_time > one.end_time
    )


def _explained(one: LedgerRun) -> bool:
    """Whether the charge is what the stored figures and prices come to."""
    try:
        return settle.recomputed_csu(one.inputs) == one.charge_csu
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return False


def _changed(run: Run, one: LedgerRun) -> str:
    """What of the figures that the charge was made from is otherwise in slurmdbd, as it was told then; "": nothing."""
    then = one.inputs
    parts = []
    if run.segments or then.get("segments"):
        now = [[str(part.tres), part.seconds] for part in charging.segments(run)]
        if then.get("segments") != now:
            parts.append(f"segments {then.get('segments')}")
    else:
        if then.get("elapsed_s") != max(0, run.elapsed_s):
            parts.append(f"elapsed {then.get('elapsed_s')} s")
        if then.get("tres") != str(charging.allocated(run)):
            parts.append(f"resources {then.get('tres')}")
    if then.get("partition") != run.partition:
        parts.append(f"partition {then.get('partition')}")
    if then.get("qos") != run.qos:
        parts.append(f"QOS {then.get('qos')}")
    if then.get("state") != charging.final_state(run):
        parts.append(f"state {then.get('state')}")
    if not parts and then.get("start_time") != run.start_time:
        parts.append(f"start {then.get('start_time')}")
    return ", ".join(parts)


def compare_unseen(
    one: LedgerRun,
    told: Sequence[Run],
    known: Sequence[LedgerRun],
    rules: Rules,
    *,
    adopted_csu: Optional[int] = None,
) -> Tuple[Sequence[Finding], str]:
    """A run that ended in the ledger, and of which slurmdbd has no end in that time. ``told``: all that it has of the job id."""
    if one.made_way:
        return (), KEY_GIVEN_AGAIN
    for run in told:
        if run.submit_time == one.submit_time:
            if run.end_time is None:
                return (), OPEN_IN_ACCOUNTING
            finding, word = _compare(run, one, rules, adopted_csu)
            return (() if finding is None else (finding,)), word
    if not one.charge_csu:
        return (), COSTS_NOTHING
    ours = {run.submit_time: run for run in known}
    for run in told:
        if _same_time(run, one) and run.submit_time in ours:
            return (
                _doubled(one, run, "slurmdbd has one run then, and so has the ledger"),
            ), DOUBLED
    text = f"{_at_ledger(one)}; slurmdbd does not have it"
    if told:
        text += f" (of that job id it has {len(told)} other run{'s' if len(told) > 1 else ''})"
    return (_of_run(UNKNOWN, one, next(iter(told), None), 0, text),), UNKNOWN


def compare_part(one: LedgerRun, part: Run) -> Tuple[Sequence[Finding], str]:
    """A run that ended in the ledger, and of which slurmdbd never got the start: it has no more than account and times."""
    if part.end_time is None:
        return (), OPEN_IN_ACCOUNTING
    if (part.start_time, part.end_time) == (one.start_time, one.end_time):
        return (), TIMES_ALONE
    text = (
        f"{_at_ledger(one)} from {one.start_time} to {one.end_time}; slurmdbd never got its start, and has it from "
        f"{part.start_time} to {part.end_time}"
    )
    return (_of_run(RESTATED, one, part, None, text),), RESTATED


def _same_time(run: Run, one: LedgerRun) -> bool:
    if not run.started or run.start_time is None or one.start_time is None:
        return False
    end = run.end_time if run.end_time is not None else 1 << 40
    return run.start_time < (one.end_time or one.start_time) + 1 and one.start_time < end + 1


def _doubled(one: LedgerRun, run: Run, why: str) -> Finding:
    return _of_run(DOUBLED, one, run, 0, f"{_at_ledger(one)}; {why}")


def _of_run(
    kind: str, one: LedgerRun, run: Optional[Run], expected_csu: Optional[int], text: str
) -> Finding:
    return Finding(
        kind=kind,
        where=LEDGER,
        job_id=one.job_id,
        submit_time=one.submit_time,
        account=one.account,
        user_id=one.user_id,
        run_id=one.run_id,
        bank_job_id=one.bank_job_id,
        expected_csu=expected_csu,
        ledger_csu=one.ledger_csu,
        bank_csu=None,
        slurm=run,
        text=text,
    )


def _told(run: Run) -> str:
    return (
        f"job {run.job_id} submitted {run.submit_time}: by slurmdbd user {run.user_id}'s in {run.account}, "
        f"{run.state.lower()}, {run.elapsed_s} s"
    )


def _at_ledger(one: LedgerRun) -> str:
    return (
        f"job {one.job_id} submitted {one.submit_time}: in the ledger user {one.user_id}'s in {one.account}, "
        f"{_su(one.charge_csu or 0)}"
    )


def _su(csu: int) -> str:
    return f"{format_su(csu)} SU"


# -- the ledger and the bank ----------------------------------------------------------------------------------------------


class RowNames:
    """Which job a row of the bank is of, by its id: the inverse of ``job_id_format``."""

    _FIELDS: Mapping[str, str] = {
        "restart": r"\d+",
        "array_job_id": r"\d+",
        "array_task_id": r"\d+",
    }

    def __init__(self, job_id_format: str, cluster: str) -> None:
        pattern = ""
        for literal, name in re.findall(r"([^{}]*)(?:\{(\w+)\})?", job_id_format):
            pattern += re.escape(literal)
            if name == "job_id":
                pattern += r"(?P<job>\d+)" if "?P<job>" not in pattern else r"(?P=job)"
            elif name == "cluster":
                pattern += re.escape(cluster)
            elif name:
                pattern += self._FIELDS[name]
        # A later run of a requeued job; a run whose own id was taken.
        self._pattern = re.compile(rf"{pattern}(?:-r(?P<restart>\d{{1,9}}))?(?:-\d+)?", re.ASCII)

    def job_id(self, bank_job_id: str) -> Optional[int]:
        """None: not an id that this cluster gives."""
        match = self._pattern.fullmatch(bank_job_id)
        return int(match["job"]) if match and len(match["job"]) <= 18 else None

    def restart_count(self, bank_job_id: str) -> int:
        """Where the id says it behind a format without ``{restart}``; else 0."""
        match = self._pattern.fullmatch(bank_job_id)
        return int(match["restart"] or 0) if match else 0


def owner_of(row: BankRun, known: Sequence[RunGlance]) -> Optional[RunGlance]:
    """The run that a row is of: the one that was delivered under its id, or else the one that it says it is."""
    for one in known:
        if one.bank_job_id == row.bank_job_id:
            return one
    same = [one for one in known if one.submit_time == row.submit_time and is_holder(row, one)]
    return same[0] if same else None


def is_holder(row: BankRun, one: RunGlance) -> bool:
    return row.user_id == str(one.user_id) and row.account == one.account


def compare_row(one: RunGlance, row: Optional[BankRun]) -> Tuple[Optional[Finding], str]:
    """A run of the ledger against the bank's row of it; None: the bank has none."""
    if one.waiting and one.parked is None:
        return None, WAITING
    refused = "" if one.parked is None else f"; the bank refuses it: {one.parked}"
    what = f"job {one.job_id} submitted {one.submit_time}"
    charged = f"the ledger charged {_su(one.charge_csu or 0)}"
    if row is None:
        if one.bank_job_id is None and one.parked is None:
            return None, NOT_DELIVERED
        text = f"{what}: {charged}; the bank does not have it{refused}"
        return _at_bank(MISSING, one, None, text), MISSING
    if not is_holder(row, one):
        text = (
            f"{what}: the bank's {row.bank_job_id} is user {row.user_id}'s in {row.account}, {_su(row.amount_csu)}; by the "
            f"ledger user {one.user_id}'s in {one.account}"
        )
        return _at_bank(WRONG_HOLDER, one, row, text), WRONG_HOLDER
    if row.bank_job_id != one.bank_job_id and one.bank_job_id is not None:
        if not row.amount_csu:
            return None, AGREES  # it counts nothing
        text = f"{what}: the bank has it as {one.bank_job_id}, and as {row.bank_job_id} with {_su(row.amount_csu)} too"
        return _at_bank(DOUBLED, one, row, text, expected_csu=0), DOUBLED
    if one.state != "ended":
        if row.end_time is None:
            return None, AGREES
        text = (
            f"{what}: it ended at the bank, with {_su(row.amount_csu)}, and goes on in the ledger"
        )
        return _at_bank(MISCHARGED, one, row, text, expected_csu=row.held_csu), MISCHARGED
    if row.end_time is None:
        text = f"{what}: {charged}; it goes on at the bank, with {_su(row.amount_csu)}{refused}"
        return _at_bank(STILL_RUNNING, one, row, text), STILL_RUNNING
    if row.amount_csu != one.charge_csu:
        text = f"{what}: {charged}; the bank has {_su(row.amount_csu)}{refused}"
        return _at_bank(MISCHARGED, one, row, text), MISCHARGED
    dates = (row.submit_time, row.start_time, row.end_time)
    if dates != dates_on_the_wire(one):
        text = f"{what}: at the bank it is of {dates}, by the ledger of {dates_on_the_wire(one)}{refused}"
        return _at_bank(MISCHARGED, one, row, text), MISCHARGED
    return None, AGREES


def dates_on_the_wire(one: RunGlance) -> Tuple[int, Optional[int], Optional[int]]:
    """Submit, start and end as they are delivered (see ``bank/wire.py``)."""
    start = None if one.start_time is None else max(one.start_time, one.submit_time)
    end = None if one.end_time is None or start is None else max(one.end_time, start)
    return one.submit_time, start, end


def _at_bank(
    kind: str,
    one: RunGlance,
    row: Optional[BankRun],
    text: str,
    *,
    expected_csu: Optional[int] = None,
) -> Finding:
    return Finding(
        kind=kind,
        where=BANK,
        job_id=one.job_id,
        submit_time=one.submit_time,
        account=one.account if row is None else row.account,
        user_id=one.user_id if row is None else _uid(row),
        run_id=one.run_id,
        bank_job_id=one.bank_job_id if row is None else row.bank_job_id,
        expected_csu=(one.charge_csu or 0) if expected_csu is None else expected_csu,
        ledger_csu=one.ledger_csu,
        bank_csu=None if row is None else row.amount_csu,
        slurm=None,
        text=text,
        row=row,
    )


def compare_stray(
    row: BankRun, job_id: int, told: Sequence[Run], rules: Rules
) -> Tuple[Optional[Finding], str]:
    """A row of no run of the ledger. ``told``: all that slurmdbd has of its job id."""
    if not row.amount_csu:
        return None, COSTS_NOTHING
    for run in told:
        if run.submit_time != row.submit_time:
            continue
        if (row.user_id, row.account) != (str(run.user_id), run.account):
            break
        # The ledger does not have the run either: that is found there, if it should.
        return None, BEFORE_LEDGER if run.end_time and run.end_time < rules.created else AGREES
    other = next(iter(told), None)
    text = (
        f"the bank's {row.bank_job_id}: user {row.user_id}'s in {row.account}, submitted {row.submit_time}, "
        f"{_su(row.amount_csu)}; neither the ledger nor slurmdbd has it"
    )
    if other is not None:
        text += (
            f" (slurmdbd's job {job_id} is user {other.user_id}'s in {other.account}, submitted "
            f"{other.submit_time})"
        )
    return Finding(
        kind=UNKNOWN,
        where=BANK,
        job_id=job_id,
        submit_time=row.submit_time,
        account=row.account,
        user_id=_uid(row),
        run_id=None,
        bank_job_id=row.bank_job_id,
        expected_csu=0,
        ledger_csu=None,
        bank_csu=row.amount_csu,
        slurm=other,
        text=text,
        row=row,
    ), UNKNOWN


def _uid(row: BankRun) -> Optional[int]:
    text = row.user_id
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None
