# SPDX-License-Identifier: BSD-3-Clause
"""A history of runs of every kind, made by real daemons; then put where calendars and clocks are difficult.

**Shifting.** slurmdbd's rows, the ledger's and the bank's are shifted together, each job by a number of seconds of its own. The
alternative, to shift slurmdbd alone and have the relay rebuild ledger and bank from it, would compare slurmdbd with itself:
the ledger is to stay what the hooks wrote while the jobs ran.
"""

from __future__ import annotations

import dataclasses
import datetime
import random
import time
import zoneinfo
from collections.abc import Callable, Sequence
from typing import Any

from tests.reconcile.site import ReconcileSite
from tests.rig.cluster import OPERATOR, wait_until

ALICE, BOB, CAROL, MALLORY = "sb-alice", "sb-bob", "sb-carol", "sb-mallory"
LATER = "--begin=now+1hour"

#: Zones whose clocks changed lately; and further ones in which the command is run.
DST_ZONES = ("Europe/Berlin", "America/New_York", "America/Los_Angeles")
ZONES = ("UTC", "Europe/Berlin", "America/Los_Angeles", "Asia/Kathmandu", "Pacific/Apia")

#: Tasks in one array at most.
MOST_TASKS = 1000

#: One second of anything, a second and a half, failures.
TASK = """\
case $((SLURM_ARRAY_TASK_ID % 10)) in
3) sleep 1; exit 3 ;;
5) sleep 1; kill -9 $$ ;;
7) sleep 2 ;;
9) ;;
*) sleep 1 ;;
esac
"""


#: Of jobs that something is to be done to while they run.
UNTIL_TOLD = 'until [ -e "go-$SLURM_JOB_ID" ]; do sleep 0.5; done; sleep 1'


@dataclasses.dataclass
class History:
    """What was made."""

    kinds: dict[str, int] = dataclasses.field(
        default_factory=dict
    )  #: one job of each kind, by name
    states: dict[str, int] = dataclasses.field(
        default_factory=dict
    )  #: rows of slurmdbd's that ended
    runs: int = 0  #: ended, in slurmdbd
    #: Of them, those that started before they were submitted: of a job that was requeued, and cancelled before it ran again,
    #: slurmdbd may show the start of the run before. Nobody ran then, and they are not to be compared.
    never_were: int = 0
    took_s: float = 0.0
    shifted: dict[str, int] = dataclasses.field(default_factory=dict)  #: jobs that lie over what


def make(
    site: ReconcileSite,
    wanted: int,
    rounds: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> History:
    """At least so many ended runs in slurmdbd; returns when all have ended, are charged and delivered."""
    began = time.monotonic()
    history = History()
    timed_out = site.sbatch(ALICE, "--time=1", "--job-name=timed-out", script="sleep 600")
    history.kinds["timed out"] = timed_out
    for number in range(rounds):
        tell(f"jobs of every kind, round {number + 1} of {rounds}")
        _arrays(site, wanted // (3 * rounds), number)
        _every_kind(site, history)
    _arrays(site, max(0, wanted - (wanted // (3 * rounds)) * rounds - 10), rounds)
    tell("waiting for all to end")

    def ended() -> bool:
        return not site.squeue()

    wait_until(ended, 600, "all jobs to have ended", 1.0)
    tell("waiting for all to be charged and delivered")
    site.quiet()
    table = f"{site.cluster_name}_job_table WHERE time_end > 0 AND NOT deleted"
    # Flags 10 and 13: requeued, resized.
    state = "IF(state & 1024, 1024, IF(state & 8192, 8192, state & 255))"
    for line in site.slurmdbd_sql(f"SELECT {state}, COUNT(*) FROM {table} GROUP BY 1").splitlines():
        code, count = line.split("\t")
        history.states[_STATES.get(int(code), code)] = int(count)
    # A resized run has several rows, and only the last one's end is its own.
    history.runs = int(
        site.slurmdbd_sql(
            f"SELECT COUNT(DISTINCT id_job, time_submit) FROM {table} AND NOT state & 8192"
        )
    )
    history.never_were = int(
        site.slurmdbd_sql(
            f"SELECT COUNT(*) FROM {table} AND time_start > 0 AND time_start < time_submit"
        )
    )
    history.took_s = time.monotonic() - began
    return history


_STATES = {
    3: "COMPLETED",
    4: "CANCELLED",
    5: "FAILED",
    6: "TIMEOUT",
    7: "NODE_FAIL",
    8: "PREEMPTED",
    10: "DEADLINE",
    11: "OUT_OF_MEMORY",
    1024: "REQUEUED",
    8192: "RESIZING",
}


def _arrays(site: ReconcileSite, tasks: int, number: int) -> None:
    """Of several users, accounts, partitions and sizes."""
    shapes = (
        (ALICE, "fc_alpha", "main", "-n1"),
        (BOB, "fc_alpha", "debug", "-n2"),
        (CAROL, "fc_beta", "main", "-n1"),
        (ALICE, "fc_beta", "main", "-n3"),
        (MALLORY, "fc_gamma", "debug", "-n1"),
    )
    while tasks > 0:
        user, account, partition, size = shapes[number % len(shapes)]
        some = min(MOST_TASKS, tasks, 350)
        site.sbatch(
            user, f"-A{account}", f"-p{partition}", size, f"--array=0-{some - 1}", "--time=3",
            script=TASK,
        )  # fmt: skip
        tasks -= some
        number += 1


def _every_kind(site: ReconcileSite, history: History) -> None:
    kinds = history.kinds
    root = "root"

    def scontrol(*words: str, user: str = root) -> None:
        site.run_as(user, ["scontrol", *words], check=True)

    def submit(name: str, user: str, *args: str, script: str = "sleep 1") -> int:
        kinds[name] = site.sbatch(user, *args, script=script)
        return kinds[name]

    running: list[str] = []

    def start(name: str, user: str, *args: str, script: str = "sleep 600") -> int:
        running.append(name)
        return submit(name, user, *args, script=script)

    start("resized", ALICE, "-N2", "-n2", "--time=5")
    start("requeued, to run again", ALICE, "--requeue", "--time=5", script=UNTIL_TOLD)
    start("requeued, then cancelled", BOB, "--requeue", "--time=5")
    start("suspended", BOB, "--time=5", script=UNTIL_TOLD)
    start("suspended, then cancelled", BOB, "--time=5")
    start("cancelled running", ALICE, "--time=5")
    start("cancelled running by an operator", ALICE, "--time=5")
    start("cancelled running by root", ALICE, "--time=5")
    scontrol(
        "update", "job=" + ",".join(str(kinds[name]) for name in running), "Priority=4000000000"
    )
    for name in running:
        site.wait_job(kinds[name], "RUNNING", 120)
    scontrol("suspend", f"{kinds['suspended']},{kinds['suspended, then cancelled']}")
    time.sleep(1.1)
    scontrol("update", f"job={kinds['resized']}", "NumNodes=1", user=ALICE)
    site.scancel(ALICE, str(kinds["cancelled running"]))
    site.scancel(OPERATOR, str(kinds["cancelled running by an operator"]))
    site.scancel(root, str(kinds["cancelled running by root"]))
    site.requeue(BOB, kinds["requeued, then cancelled"], at_once=False)
    site.scancel(BOB, str(kinds["requeued, then cancelled"]))
    site.requeue(ALICE, kinds["requeued, to run again"])
    for user, name in ((ALICE, "requeued, to run again"), (BOB, "suspended")):
        (site.home(user) / f"go-{kinds[name]}").touch()
    scontrol("resume", str(kinds["suspended"]))
    site.scancel(BOB, str(kinds["suspended, then cancelled"]))

    submit("cancelled pending", ALICE, LATER)
    submit("cancelled pending by an operator", ALICE, LATER)
    submit("cancelled while held", ALICE, "--hold")
    submit(
        "dependent",
        BOB,
        f"--dependency=afternotok:{kinds['suspended']}",
        "--kill-on-invalid-dep=yes",
    )
    submit("array cancelled whole", BOB, LATER, "--array=0-9")
    submit("array of which some were cancelled", CAROL, "--array=1-6%2", script="sleep 1")
    for name in ("cancelled pending", "cancelled while held"):
        site.scancel(ALICE, str(kinds[name]))
    site.scancel(OPERATOR, str(kinds["cancelled pending by an operator"]))
    site.scancel(BOB, str(kinds["array cancelled whole"]))
    site.scancel(CAROL, f"{kinds['array of which some were cancelled']}_[4-5]")

    submit("het", ALICE, "-n1", "--time=2", ":", "-n2", "--time=2", script="sleep 2")
    submit("het, cancelled", ALICE, LATER, "-n1", ":", "-n2")
    site.scancel(ALICE, str(kinds["het, cancelled"]))
    submit("exclusive", BOB, "-pexclusive")
    submit("failed", BOB, script="sleep 1; exit 3")
    submit("of another account", BOB, "-Afc_beta", "-n2", script="sleep 2")
    site.scancel(ALICE, str(kinds["resized"]))


# -- shifting -------------------------------------------------------------------------------------------------------------


def instants(now: int) -> dict[str, list[int]]:
    """Unix seconds of what a run may lie over, the latest before `now`, by name."""
    found: dict[str, list[int]] = {"midnight": [], "month": [], "clocks": []}
    for name in ("UTC", *DST_ZONES):
        zone = zoneinfo.ZoneInfo(name)
        day = datetime.datetime.fromtimestamp(now - 2 * 86400, zone).date()
        found["midnight"].append(_local_midnight(day, zone))
        first = day.replace(day=1)
        found["month"].append(_local_midnight(first, zone))
        found["month"].append(
            _local_midnight((first - datetime.timedelta(days=1)).replace(day=1), zone)
        )
    for name in DST_ZONES:
        found["clocks"] += changes_of_clocks(name, now - 86400, 1)
    return found


def _local_midnight(day: datetime.date, zone: zoneinfo.ZoneInfo) -> int:
    return int(datetime.datetime.combine(day, datetime.time(), zone).timestamp())


def changes_of_clocks(name: str, before: int, count: int) -> list[int]:
    """The last changes of a zone's offset from UTC, to the second."""
    zone = zoneinfo.ZoneInfo(name)

    def offset(at: int) -> Any:
        return datetime.datetime.fromtimestamp(at, zone).utcoffset()

    found = []
    high = before
    for _ in range(370):
        low = high - 86400
        if offset(low) != offset(high):
            first, last = low, high
            while last - first > 1:
                middle = (first + last) // 2
                first, last = (middle, last) if offset(middle) == offset(low) else (first, middle)
            found.append(last)
            if len(found) == count:
                break
        high = low
    return found


def shift(site: ReconcileSite, history: History, seed: int = 5) -> dict[int, int]:
    """Every job lies elsewhere afterwards, in all three books; slurmctld and relay must be down. Seconds by job id.

    Of ten jobs nine lie over an instant that is difficult, or in the hour after a change of clocks, which has two names;
    some end or begin exactly then. The others are a few days back.
    """
    rng = random.Random(seed)
    table = f"{site.cluster_name}_job_table"
    jobs: dict[int, list[tuple[int, int]]] = {}
    lines = site.slurmdbd_sql(
        f"SELECT id_job, time_submit, time_start, time_end FROM {table} WHERE time_end > 0 ORDER BY id_job, time_start"
    ).splitlines()
    for line in lines:
        job, submit, start, end = (int(value) for value in line.split("\t"))
        jobs.setdefault(job, []).append((start or submit, end))
    by_name = instants(int(time.time()))
    deltas: dict[int, int] = {}
    for job, times in jobs.items():
        start, end = rng.choice(times)
        name = rng.choice(("midnight", "month", "clocks", "clocks", "hour", "back"))
        if name == "back":
            deltas[job] = -rng.randrange(86400, 20 * 86400)
        else:
            at = rng.choice(by_name["clocks" if name == "hour" else name])
            if name == "hour":
                at += rng.randrange(-3600, 3600)
            of_run = rng.choice((start, end, (start + end) // 2, (start + end + 1) // 2))
            deltas[job] = at - of_run
        history.shifted[name] = history.shifted.get(name, 0) + 1
    oldest = min(job_times[0][0] + deltas[job] for job, job_times in jobs.items())
    site.since = f"{(int(time.time()) - oldest) // 86400 + 2}d"
    _shift_slurmdbd(site, deltas)
    _shift_ledger(site, deltas)
    _shift_bank(site, deltas)
    return deltas


def _shift_slurmdbd(site: ReconcileSite, deltas: dict[int, int]) -> None:
    name = site.cluster_name
    # Signed: what is unsigned cannot be less than nothing in between.
    values = ",".join(f"({job},{delta})" for job, delta in deltas.items())
    site.slurmdbd_sql(
        "SET SESSION sql_mode = 'NO_UNSIGNED_SUBTRACTION';"
        "CREATE TEMPORARY TABLE moved (id_job INT UNSIGNED PRIMARY KEY, by_s BIGINT);"
        f"INSERT INTO moved VALUES {values};"
        f"UPDATE {name}_step_table s JOIN {name}_job_table j USING (job_db_inx) JOIN moved m USING (id_job)"
        " SET s.time_start = s.time_start + m.by_s, s.time_end = IF(s.time_end, s.time_end + m.by_s, 0);"
        f"UPDATE {name}_suspend_table s JOIN {name}_job_table j USING (job_db_inx) JOIN moved m USING (id_job)"
        " SET s.time_start = s.time_start + m.by_s, s.time_end = IF(s.time_end, s.time_end + m.by_s, 0);"
        f"UPDATE {name}_job_table j JOIN moved m USING (id_job) SET time_submit = time_submit + m.by_s,"
        " time_eligible = IF(time_eligible, time_eligible + m.by_s, 0),"
        " time_start = IF(time_start, time_start + m.by_s, 0),"
        " time_end = IF(time_end, time_end + m.by_s, 0);"
    )


def _shift_ledger(site: ReconcileSite, deltas: dict[int, int]) -> None:
    by_job = list(deltas.items())
    of_json = ", ".join(
        f"'$.{key}', json_extract(inputs, '$.{key}') + m.by_s" for key in ("start_time", "end_time")
    )
    shifted = f"CASE WHEN json_type(inputs, '$.start_time') = 'integer' AND json_type(inputs, '$.end_time') = 'integer' THEN json_replace(inputs, {of_json}) ELSE inputs END"  # fmt: skip
    site.change_ledger(
        [("CREATE TABLE moved (job_id INTEGER PRIMARY KEY, by_s INTEGER)", [[]])], many=True
    )
    site.change_ledger([("INSERT INTO moved VALUES (?, ?)", by_job)], many=True)
    site.change_ledger(
        [
            (
                "UPDATE runs SET submit_time = submit_time + m.by_s, start_time = start_time + m.by_s,"
                f" end_time = end_time + m.by_s, inputs = {shifted} FROM moved AS m WHERE m.job_id = runs.job_id",
                (),
            ),
            (
                f"UPDATE entries SET submit_time = submit_time + m.by_s, inputs = {shifted} FROM moved AS m"
                " WHERE m.job_id = entries.job_id",
                (),
            ),
            (
                "UPDATE liens SET submit_time = submit_time + m.by_s FROM moved AS m WHERE m.job_id = liens.job_id",
                (),
            ),
            # The ledger was there already.
            (
                "UPDATE meta SET value = CAST(value - 400 * 86400 AS TEXT) WHERE key = 'created'",
                (),
            ),
            ("DROP TABLE moved", ()),
        ]
    )


def _shift_bank(site: ReconcileSite, deltas: dict[int, int]) -> None:
    connection = site.bank_file()
    connection.create_function("moved", 2, _moved, deterministic=True)
    connection.execute("BEGIN IMMEDIATE")
    for row in site.ledger_rows(
        "SELECT job_id, bank_job_id FROM runs WHERE bank_job_id IS NOT NULL"
    ):
        delta = deltas.get(row["job_id"], 0)
        connection.execute(
            "UPDATE bank_job SET submitdate = moved(submitdate, ?1), startdate = moved(startdate, ?1),"
            " enddate = moved(enddate, ?1) WHERE jobslurmid = ?2",
            (delta, row["bank_job_id"]),
        )
    connection.execute("COMMIT")
    connection.close()


def _moved(date: str | None, by_s: int) -> str | None:
    """As Django writes it: without an offset."""
    if date is None:
        return None
    when = datetime.datetime.fromisoformat(date) + datetime.timedelta(seconds=by_s)
    return when.isoformat(sep=" ")


def lie_over(site: ReconcileSite, at: Sequence[int]) -> int:
    """Runs of slurmdbd that started before one of these instants, or at it, and ended after it, or at it."""
    tests = " OR ".join(f"(time_start <= {one} AND time_end >= {one})" for one in at)
    return int(
        site.slurmdbd_sql(
            f"SELECT COUNT(*) FROM {site.cluster_name}_job_table WHERE time_start > 0 AND ({tests})"
        )
    )
