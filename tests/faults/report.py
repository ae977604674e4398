# SPDX-License-Identifier: BSD-3-Clause
"""A run of the fault rig from its plan to build/faults.json: a site, schedules of faults under load, a verdict after each."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.faults import judge, load
from tests.faults.judge import Books, Held, Verdict
from tests.faults.schedule import Schedule
from tests.faults.site import FaultSite, read_bank
from tests.fidelity import plain_charge
from tests.fidelity.report import commit
from tests.rig.cluster import RigError

#: Seconds that a schedule's site gets to be quiet again, with nothing in the queue, the outbox and no lien open.
QUIET_S = 120.0

#: Clusters that may fail to come up in one run.
MOST_FAILED_STARTS = 3

#: Lines of a verdict that are printed; all are in the dumps.
MOST_LINES = 30

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    seed: int
    schedules: Sequence[Schedule]
    output: Path
    rate: float = 4.5  #: of the load; see there
    broken: str = ""  #: a deliberately broken build
    deadline_s: float = 5400  #: no more schedules after these
    stop_at_first: bool = False  #: after the first schedule with something wrong
    #: Seconds without a change after which what is left over stays so: longer than a lien may be unconfirmed, and than a look
    #: at slurmdbd may take to come.
    still_s: float = 30.0
    restore_s: float = 90.0


@dataclasses.dataclass(kw_only=True)
class Totals:
    """Over all schedules; what is cumulative in the books (the verdict) is that of the last of them on each site."""

    schedules: int = 0
    jobs: int = 0
    runs: int = 0
    completed: int = 0
    kills: int = 0
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    bank_faults: Counter[str] = dataclasses.field(default_factory=Counter)
    crashes: list[str] = dataclasses.field(default_factory=list)
    trouble: list[str] = dataclasses.field(default_factory=list)  #: of the rig itself
    load: Counter[str] = dataclasses.field(default_factory=Counter)
    verdicts: list[tuple[int, Verdict]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


# -- who ends slurmctld -------------------------------------------------------------------------------------------------


class Watch:
    """Notes each end of slurmctld that is neither a kill nor a stop of ours."""

    OURS = (0, -signal.SIGKILL, -signal.SIGTERM)

    def __init__(self, site: FaultSite) -> None:
        self._site = site
        self._over = threading.Event()
        self._seen: set[int] = set()
        self.crashes: list[str] = []
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._over.wait(0.2):
            try:
                pid, status = self._site.slurmctld_end()
            except RigError:
                continue
            if status is None or pid in self._seen:
                continue
            self._seen.add(pid)
            if status not in self.OURS:
                lines = self._site.log("slurmctld").splitlines()[-4:]
                self.crashes.append(f"slurmctld ended with status {status}: {' / '.join(lines)}")


# -- one schedule -------------------------------------------------------------------------------------------------------


def run_schedule(
    site: FaultSite, schedule: Schedule, plan: Plan, totals: Totals, tell: Tell
) -> Verdict:
    """Load and faults, then quiet, then the verdict."""
    tell(
        f"schedule {schedule.number} (seed {schedule.seed}): {schedule.text() or 'nothing is broken'}"
    )
    site.top_up()
    begun = time.monotonic()
    stream = load.Load(site, f"{schedule.seed}/{schedule.number}", rate=plan.rate)
    with stream, Looks(site):
        for fault in schedule.faults:
            time.sleep(max(0.0, begun + fault.at_s - time.monotonic()))
            totals.faults[fault.kind] += 1
            try:
                site.break_it(fault)
            except (RigError, subprocess.SubprocessError, OSError) as error:
                totals.trouble.append(f"schedule {schedule.number}: {fault.kind}: {error}")
                tell(f"  {fault.kind}: {str(error).splitlines()[0]}")
        time.sleep(max(0.0, begun + schedule.seconds - time.monotonic()))
    loaded_s = time.monotonic() - begun
    totals.load.update(stream.counts)
    site.tasks += stream.tasks
    site.asked += [(one.job_id, one.at, one.cpus, one.partition) for one in stream.submitted]
    wrong = site.restore(plan.restore_s)
    left = load.cancel_all(site)
    # What ended by a clock that was ahead is found in slurmdbd once the others' have got there.
    ahead_s = max(
        0, *(one.step_s for one in schedule.faults if one.kind == "step_clock:slurmctld"), 0
    )
    quiet = settle(site, plan.still_s + ahead_s, QUIET_S + ahead_s)
    books = read(site)
    books.live = left
    site.ledger_lost |= any(
        fault.kind in ("wipe_state_dir", "takeover", "break_ledger") for fault in schedule.faults
    )
    books.ledger_lost = site.ledger_lost
    if any(fault.kind == "step_clock:relay" for fault in schedule.faults):
        books.expired = []  # by a clock that nobody else has
    verdict = judge.judge(books)
    verdict.unsettled += [f"after restore: {line}" for line in wrong]
    if not stream.tasks:
        verdict.unsettled.append(f"no job was accepted in {loaded_s:.0f} s: {stream.last_error}")
    where = plan.output / "faults"
    dump(books, where)
    site.explained |= {(one.job_id, one.submit_time) for one in verdict.exceptions}
    lines = [line for line in verdict.lines() if line not in site.said]
    site.said |= set(lines)
    with (where / "verdicts.txt").open("a") as file:
        file.write(f"schedule {schedule.number} (seed {schedule.seed}): {schedule.text()}\n")
        file.write(
            "".join(f"    {line}\n" for line in [*(f"not quiet: {one}" for one in quiet), *lines])
        )
    spread = ", ".join(f"{name} {count}" for name, count in sorted(stream.counts.items()))
    tell(
        f"  {stream.tasks} jobs in {loaded_s:.0f} s ({spread}); quiet after {time.monotonic() - begun - loaded_s:.0f} s;"
        f" {verdict.runs} runs so far, {len(verdict.exceptions)} exceptions: {'good' if verdict.good else 'NOT GOOD'}"
    )
    if stream.last_error and not stream.tasks:
        tell(f"  {stream.last_error}")
    if not verdict.good:
        for line in lines[:MOST_LINES]:
            tell(f"  {line}")
        keep_logs(site, where / f"schedule-{schedule.number}")
        dump(books, where / f"schedule-{schedule.number}")
    return verdict


def settle(site: FaultSite, still_s: float, timeout_s: float = QUIET_S) -> list[str]:
    """Until the ledger has no lien, no running run and no delivery left, and slurmdbd and it know the same ends: seen twice.

    Once is not enough: what is charged between two questions of one look waits for its delivery.
    """
    deadline = time.monotonic() + timeout_s
    left: list[str] = ["not looked at"]
    changed_at = time.monotonic()
    while time.monotonic() < deadline:
        try:
            now = _left(site)
        except (RigError, subprocess.SubprocessError) as error:
            now = [str(error)]
        if now != left:
            changed_at = time.monotonic()
        elif not now:
            break
        left = now
        if time.monotonic() - changed_at > still_s:
            break
        time.sleep(1)
    return left


def _left(site: FaultSite) -> list[str]:
    found = []
    for what, query in (
        ("runs go on", "SELECT COUNT(*) AS n FROM runs WHERE state = 'running'"),
        ("liens are open", "SELECT COUNT(*) AS n FROM liens WHERE state != 'ended'"),
        ("deliveries wait", "SELECT COUNT(*) AS n FROM outbox"),
    ):
        count = site.ledger_rows(query)[0]["n"]
        if count:
            found.append(f"{count} {what}")
    if found:
        return found
    expected = plain_charge.charges(plain_charge.rows_of(site.sacct_text()), site.prices_json())
    ours = {
        (row["job_id"], row["submit_time"]): row["charge_csu"]
        for row in site.ledger_rows(
            "SELECT job_id, submit_time, charge_csu FROM runs WHERE charge_csu IS NOT NULL"
        )
    }
    differ = [
        key
        for key in set(expected) | set(ours)
        if (expected.get(key) or 0) != (ours.get(key) or 0) and key not in site.explained
    ]
    return [f"{len(differ)} runs differ: {sorted(differ)[:5]}"] if differ else []


# -- reading ------------------------------------------------------------------------------------------------------------


def read(site: FaultSite) -> Books:
    entry_sums = {
        (row["account"], row["user_id"]): row["csu"]
        for row in site.ledger_rows(
            "SELECT account, user_id, SUM(amount_csu) AS csu FROM entries GROUP BY 1, 2"
        )
    }
    told = site.ledger_rows(
        "SELECT job_id, submit_time, restart_count, SUM(kind = 'charge') AS charges, SUM(kind = 'start') AS starts"
        " FROM entries WHERE job_id IS NOT NULL AND kind IN ('charge', 'start') GROUP BY 1, 2, 3 HAVING charges > 1"
    )
    jobs, used, awarded = read_bank(site.root / "bank" / "bank.sqlite3")
    # By transactions (the entries of one have the same time): within one, a run that is rebuilt starts and is charged.
    most = site.ledger_rows(
        "SELECT account, MAX(held) AS csu FROM (SELECT account, SUM(csu) OVER (PARTITION BY account ORDER BY seq) AS held"
        " FROM (SELECT account, MIN(seq) AS seq, SUM(amount_csu) AS csu FROM entries GROUP BY account, at_us))"
        " GROUP BY account"
    )
    of_slurm: Counter[str] = Counter()
    for row in site.ledger_rows(
        "SELECT account, SUM(csu) AS csu FROM ("
        " SELECT account, ledger_csu AS csu FROM runs WHERE restart_count > 0 OR source = 'queue'"
        " UNION ALL SELECT entries.account, entries.amount_csu FROM entries JOIN liens USING (lien_id)"
        " WHERE entries.kind = 'lien' AND liens.origin != 'submit' AND liens.origin != 'update') GROUP BY account"
    ):
        of_slurm[row["account"]] = row["csu"]
    rows = plain_charge.rows_of(site.sacct_text())
    known = {(int(row["JobIDRaw"]), int(row["Submit"])) for row in rows}
    runs = site.ledger_rows(
        "SELECT run_id, job_id, array_job_id, submit_time, restart_count, state, account, user_id, partition, qos, start_time, end_time,"
        " cpus, slurm_state, lien_csu, charge_csu, ledger_csu, bank_csu, bank_job_id, parked, source FROM runs"
    )
    missing = {(run["job_id"], run["submit_time"]) for run in runs if run["charge_csu"]}
    # After a loss of the ledger, what the bank alone has.
    missing |= {(judge.base_id(job["jobslurmid"]), job["submit_time"]) for job in jobs}
    missing -= known
    partial = [
        row
        for row in plain_charge.rows_of(site.sacct_of(sorted({job for job, _ in missing})))
        if (int(row["JobIDRaw"]), int(row["Submit"])) in missing
    ]
    return Books(
        rows=rows,
        partial=partial,
        asked=site.asked,
        runs=runs,
        liens=site.ledger_rows("SELECT * FROM liens WHERE state != 'ended'"),
        told=told,
        entry_sums=entry_sums,
        outbox=site.ledger_rows("SELECT phase, job_id FROM outbox JOIN runs USING (run_id)"),
        checks=site.check_ledger(),
        bank_jobs=jobs,
        bank_used=used,
        prices=site.prices_json(),
        slurmctld_log=site.log("slurmctld"),
        notes=judge.notes_of(site.notes_text()),
        expired=expired(site),
        held=[
            Held(
                account=row["account"],
                most_csu=row["csu"],
                awarded_csu=awarded[row["account"]],
                of_slurm_csu=of_slurm[row["account"]],
            )
            for row in most
            if row["account"] in awarded
        ],
    )


def expired(site: FaultSite) -> list[dict[str, Any]]:
    """Liens that expired as never seen, whose jobs were in Slurm's queue later than that with no other lien: uncovered."""
    found = site.ledger_rows(
        "SELECT lien_id, user_id, account, ended_us FROM liens WHERE end_kind = 'lien_expired'"
    )
    covered = {
        row["job_id"]
        for row in site.ledger_rows(
            "SELECT job_id FROM liens WHERE end_kind IS NOT 'lien_expired' AND job_id IS NOT NULL"
        )
    }
    wrong = []
    for row in found:
        job, seen_at = site.queued.get(row["lien_id"], (0, 0.0))
        if seen_at > row["ended_us"] / 1e6 + 1 and job not in covered:
            wrong.append({**row, "job_id": job})
    return wrong


class Looks:
    """Looks at Slurm's queue every other second; a controller that does not answer is asked again."""

    def __init__(self, site: FaultSite) -> None:
        self._site = site
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="looks", daemon=True)

    def __enter__(self) -> Looks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._over.wait(1.5):
            try:
                self._site.look()
            except (RigError, subprocess.SubprocessError):
                continue


def dump(books: Books, where: Path) -> None:
    """Raw, so that they can be judged again; those of the last schedule replace the ones before."""
    where.mkdir(parents=True, exist_ok=True)
    raw = {
        field.name: getattr(books, field.name)
        for field in dataclasses.fields(books)
        if field.name not in ("slurmctld_log", "notes", "held", "entry_sums", "bank_used")
    }
    raw["notes"] = [dataclasses.asdict(note) for note in books.notes]
    raw["held"] = [dataclasses.asdict(held) for held in books.held]
    for name in ("entry_sums", "bank_used"):
        raw[name] = [[*holder, csu] for holder, csu in getattr(books, name).items()]
    (where / "books.json").write_text(json.dumps(raw))
    (where / "slurmctld.log").write_text(books.slurmctld_log)


def load_books(where: Path) -> Books:
    """What `dump` left."""
    raw = json.loads((where / "books.json").read_text())
    raw["notes"] = [judge.Note(**note) for note in raw["notes"]]
    raw["held"] = [Held(**held) for held in raw["held"]]
    for name in ("entry_sums", "bank_used"):
        raw[name] = {(account, user_id): csu for account, user_id, csu in raw[name]}
    log = (where / "slurmctld.log").read_text(errors="replace")
    return Books(**raw, slurmctld_log=log)


def keep_logs(site: FaultSite, where: Path) -> None:
    try:
        site.collect_logs(where)
        for name in ("relay.log", "ledger.sqlite3"):
            if (site.state_dir / name).exists():
                shutil.copyfile(site.state_dir / name, where / name)
    except OSError:
        return


# -- the whole ----------------------------------------------------------------------------------------------------------


def run(plan: Plan, tell: Tell) -> int:
    """The exit status."""
    where = plan.output / "faults"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    begun = time.monotonic()
    totals = Totals()
    tell(f"seed {plan.seed}; {len(plan.schedules)} schedules")
    left = list(plan.schedules)
    failed_starts = 0
    while left and time.monotonic() - begun < plan.deadline_s:
        try:
            _on_one_site(plan, left, totals, begun, tell)
        except (RigError, subprocess.SubprocessError) as error:
            # Of the rig itself, before anything was broken: a cluster that does not come up on a busy machine.
            failed_starts += 1
            totals.trouble.append(f"a cluster did not come up: {error}")
            tell(f"a cluster did not come up: {str(error).splitlines()[0]}")
            if failed_starts >= MOST_FAILED_STARTS:
                raise
            continue
        if plan.stop_at_first and not totals.verdicts[-1][1].good:
            break
    result = conclude(plan, totals)
    write(plan, result)
    tell(
        f"{result['schedules']} schedules, {result['jobs']} jobs, {result['runs']} runs: lost {result['lost']},"
        f" doubled {result['doubled']}, open_liens {result['open_liens']}, drift {result['drift_su']} SU,"
        f" exceptions {len(result['exceptions'])}, crashes {result['slurmctld_crashes']}"
    )
    for line in result["failed"]:
        tell(f"not met: {line}")
    return 1 if result["failed"] else 0


def _on_one_site(
    plan: Plan, left: list[Schedule], totals: Totals, begun: float, tell: Tell
) -> None:
    """Takes schedules from `left` until one is not good: what it found would be found by all that come after it."""
    runs, jobs, bank_faults = totals.runs, totals.jobs, totals.bank_faults
    completed = totals.completed
    crashes = list(totals.crashes)
    with FaultSite(seed=plan.seed, broken=plan.broken) as site, Watch(site) as watch:
        tell(f"a cluster of {len(site.nodes)} nodes is up in {site.root}")
        while left and time.monotonic() - begun < plan.deadline_s:
            schedule = left.pop(0)
            try:
                verdict = run_schedule(site, schedule, plan, totals, tell)
            except (RigError, subprocess.SubprocessError) as error:
                tell(f"  {error}")
                verdict = Verdict(unsettled=[f"schedule {schedule.number}: {error}"])
            totals.verdicts.append((schedule.number, verdict))
            totals.schedules += 1
            totals.runs = runs + verdict.runs
            totals.completed = completed + verdict.completed
            totals.jobs = jobs + site.tasks
            try:
                totals.jobs += len(site.ledger_rows("SELECT 1 FROM runs WHERE restart_count > 0"))
            except (RigError, subprocess.SubprocessError):
                verdict.unsettled.append(f"schedule {schedule.number}: the ledger cannot be read")
            totals.bank_faults = bank_faults + Counter(
                {name: count for name, count in site.disturbed.counts.items() if name != "pass"}
            )
            totals.kills = sum(
                count for kind, count in totals.faults.items() if kind.startswith("kill9:")
            )
            totals.crashes = crashes + watch.crashes
            totals.seconds = time.monotonic() - begun
            write(plan, conclude(plan, totals))
            if not verdict.good:
                break
        keep_logs(site, plan.output / "faults" / "last")


def conclude(plan: Plan, totals: Totals) -> dict[str, Any]:
    """What goes into faults.json. The books of a site accumulate: each finding is counted once, by its line."""

    def all_of(name: str) -> list[str]:
        found: dict[str, None] = {}
        for _, verdict in totals.verdicts:
            found.update(dict.fromkeys(getattr(verdict, name)))
        return list(found)

    lost, doubled = all_of("lost"), all_of("doubled")
    open_liens, drift = all_of("open_liens"), all_of("drift")
    drift_csu = max((verdict.drift_csu for _, verdict in totals.verdicts), default=0)
    overdraft_csu = max((verdict.overdraft_csu for _, verdict in totals.verdicts), default=0)
    exceptions = {
        (one.job_id, one.submit_time): one
        for _, verdict in totals.verdicts
        for one in verdict.exceptions
    }
    failed = []
    for name, count in (
        ("lost", len(lost)),
        ("doubled", len(doubled)),
        ("open_liens", len(open_liens)),
        ("drift", len(drift)),
        ("ended_wrongly", len(all_of("ended_wrongly"))),
        ("overdrafts", overdraft_csu),
        ("unsettled", len(all_of("unsettled"))),
        ("slurmctld_crashes", len(totals.crashes)),
    ):
        if count:
            failed.append(f"{name}: {count}")
    if len(exceptions) > judge.MOST_EXCEPTIONS_SHARE * max(1, totals.runs):
        failed.append(f"exceptions: {len(exceptions)} of {totals.runs} runs, at most 0.5 %")
    if totals.schedules < len(plan.schedules) and not plan.stop_at_first:
        failed.append(f"schedules: {totals.schedules} of {len(plan.schedules)}")
    return {
        "commit": commit(),
        "seeds": [plan.seed],
        "broken": plan.broken,
        "schedules": totals.schedules,
        "jobs": totals.jobs,
        "runs": totals.runs,
        "seconds": round(totals.seconds),
        "kills": totals.kills,
        "faults": dict(sorted(totals.faults.items())),
        "bank_faults": sum(totals.bank_faults.values()),
        "bank_faults_by_kind": dict(sorted(totals.bank_faults.items())),
        "lost": len(lost),
        "doubled": len(doubled),
        "open_liens": len(open_liens),
        "ended_wrongly": len(all_of("ended_wrongly")),
        "drift_su": str(Decimal(drift_csu).scaleb(-2)),
        "overdraft_su": str(Decimal(overdraft_csu).scaleb(-2)),
        "exceptions": [
            {"job_id": one.job_id, "reason": one.reason, "text": one.text}
            for one in exceptions.values()
        ],
        #: Runs of which slurmdbd has the times alone: compared with the CPUs and the partition that were asked for.
        "completed": totals.completed,
        "exceptions_by_reason": dict(Counter(one.reason for one in exceptions.values())),
        "slurmctld_crashes": len(totals.crashes),
        "load": dict(sorted(totals.load.items())),
        "found": [
            *(
                line
                for name in ("lost", "doubled", "open_liens", "ended_wrongly")
                for line in all_of(name)
            ),
            *(line for name in ("drift", "overdrafts", "unsettled") for line in all_of(name)),
            *totals.crashes,
        ],
        "trouble": totals.trouble,
        "failed": failed,
    }


def write(plan: Plan, result: dict[str, Any]) -> None:
    """Flushed after each schedule: an interrupted run keeps what it has."""
    path = plan.output / "faults.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(result, indent=1) + "\n")
    scratch.replace(path)
