# SPDX-License-Identifier: BSD-3-Clause
"""Many submitters on one account with funds for few of their jobs: never is more set aside than there is.

The jobs are held, so nothing runs and nothing is charged; what is set aside at each moment is the running sum of the ledger's
entries, and what Slurm itself holds is read from squeue.
"""

from __future__ import annotations

import dataclasses
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

from tests.rig.banked import BankedCluster
from tests.rig.cluster import OPERATOR, RigError, wait_until

ACCOUNT = "fc_alpha"
USERS = ("sb-alice", "sb-bob", "sb-carol", "sb-mallory")
PRICE_SU = 60  #: per CPU-hour: a CPU-minute is one service unit
JOB_MIN = 10
FUNDS_SU = 10 * JOB_MIN  #: for ten jobs
LIMITS_SU: Mapping[str, int] = {"sb-alice": 40, "sb-bob": 30}

SUBMITTERS = 64
JOBS = 500
UPDATERS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    number: int
    updates: bool
    submitted: int
    accepted: int
    refused: int
    undecided: int  #: refused since the ledger was busy
    broken: int  #: neither: sbatch itself failed
    updated: int  #: time limits changed by their users
    denied: int  #: not changed
    most_su: Decimal  #: set aside at one moment, by the ledger
    most_in_slurm_su: Decimal  #: of the jobs in the queue at one moment, by their limits
    overdraft_su: Decimal  #: over what the account, or a user inside it, has; 0.00 is none
    seconds: float

    def text(self) -> str:
        kind = "with updates" if self.updates else "submissions alone"
        return (
            f"round {self.number} ({kind}): {self.submitted} submitted, {self.accepted} accepted, {self.refused} refused"
            f" ({self.undecided} undecided), {self.updated} updates and {self.denied} denied; at most {self.most_su} of {FUNDS_SU} SU set aside, {self.most_in_slurm_su} SU in"
            f" Slurm's queue; overdraft {self.overdraft_su} SU; {self.seconds:.0f} s"
        )


class RaceCluster(BankedCluster):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(
            accounts={ACCOUNT: USERS, "ops": (OPERATOR,)},
            prices={"main": str(PRICE_SU)},
            funds={ACCOUNT: str(FUNDS_SU)},
            # What could not be set aside in time, since the ledger was busy, is not let in: else it would count as a race lost.
            policy='undecided = "reject"',
            tell=tell,
            extra_slurm_conf={"MessageTimeout": "60", "MaxJobCount": "20000"},
            slurmctld_debug="info",
        )

    def start_bank(self) -> None:
        if "bank" not in self._specs:
            for user, limit in LIMITS_SU.items():
                self.bank("user", "add", user, "--account", ACCOUNT, "--limit", str(limit))
        super().start_bank()

    def last_seq(self) -> int:
        return int(self.ledger_rows("SELECT COALESCE(MAX(seq), 0) AS seq FROM entries")[0]["seq"])


class Sums:
    """What counts against the account and each capped user, and the most that was over."""

    def __init__(self, cluster: RaceCluster) -> None:
        self._limits = {cluster.uid(user): limit * 100 for user, limit in LIMITS_SU.items()}
        self._limits[-1] = FUNDS_SU * 100
        self.most_csu = 0
        self.over_csu = 0

    def walk(self, changes: Iterable[tuple[int, int]]) -> None:
        """(user id, change in csu), one after the other."""
        held = dict.fromkeys(self._limits, 0)
        for user_id, change in changes:
            for key in (user_id, -1):
                if key in held:
                    held[key] += change
                    self.over_csu = max(self.over_csu, held[key] - self._limits[key])
            self.most_csu = max(self.most_csu, held[-1])


def _in_slurm(cluster: RaceCluster) -> list[tuple[int, int]]:
    """(user id, cost in csu by its limit) of each job in the queue."""
    text = cluster.run_as(
        "root", ["squeue", "-h", "-a", "-r", "-O", "UserId:20,NumCPUs:20,TimeLimit:30"]
    ).stdout
    found = []
    for line in text.splitlines():
        words = line.split()
        days, _, clock = words[-1].rpartition("-")
        minutes = 0
        parts = [int(part) for part in clock.split(":")]
        seconds = sum(part * 60**power for power, part in enumerate(reversed(parts)))
        minutes = seconds // 60 + 1440 * int(days or 0)
        found.append((int(words[0]), int(words[1]) * minutes * PRICE_SU * 100 // 60))
    return found


def one_round(cluster: RaceCluster, number: int, updates: bool, seed: int, jobs: int) -> Round:
    begun = time.monotonic()
    first_seq = cluster.last_seq()
    rng = random.Random(f"{seed}/race/{number}")
    work = [(rng.choice(USERS), JOB_MIN // 2 if updates else JOB_MIN) for _ in range(jobs)]
    counts = {"accepted": 0, "refused": 0, "undecided": 0, "broken": 0, "updated": 0, "denied": 0}
    ids: dict[str, list[int]] = {user: [] for user in USERS}
    lock = threading.Lock()
    over = threading.Event()
    gate = threading.Barrier(min(SUBMITTERS, jobs), timeout=60)
    slurm = Sums(cluster)

    def submit(start: int) -> None:
        gate.wait()
        for user, minutes in work[start::SUBMITTERS]:
            result = cluster.try_sbatch(
                user,
                "--hold",
                "--partition=main",
                f"--time={minutes}",
                script="true",
                timeout_s=120,
            )
            with lock:
                if result.returncode == 0:
                    counts["accepted"] += 1
                    ids[user].append(int(result.stdout.strip().split(";")[0]))
                elif "SU available" in result.stderr or "SU left" in result.stderr:
                    counts["refused"] += 1
                elif "violates accounting/QOS" in result.stderr:
                    counts["undecided"] += 1
                else:
                    counts["broken"] += 1

    def update(which: int) -> None:
        mine = random.Random(f"{seed}/update/{number}/{which}")
        while not over.wait(0.02):
            with lock:
                known = [(user, job) for user, found in ids.items() for job in found]
            if not known:
                continue
            user, job = mine.choice(known)
            try:
                result = cluster.run_as(
                    user,
                    [
                        "scontrol",
                        "update",
                        f"JobId={job}",
                        f"TimeLimit={mine.choice((1, 2, 4, 8, 12, 20, 30))}",
                    ],
                )
            except (RigError, subprocess.SubprocessError):
                continue
            with lock:
                counts["updated" if result.returncode == 0 else "denied"] += 1

    def watch() -> None:
        while not over.wait(0.5):
            slurm.walk(_in_slurm(cluster))

    helpers = [threading.Thread(target=watch, daemon=True)]
    if updates:
        helpers += [
            threading.Thread(target=update, args=(n,), daemon=True) for n in range(UPDATERS)
        ]
    for helper in helpers:
        helper.start()
    try:
        with ThreadPoolExecutor(SUBMITTERS) as pool:
            list(pool.map(submit, range(min(SUBMITTERS, jobs))))
        if updates:
            time.sleep(1)
    finally:
        over.set()
        for helper in helpers:
            helper.join(timeout=60)
    slurm.walk(_in_slurm(cluster))
    for user in USERS:
        cluster.run_as("root", ["scancel", "-u", user])
    wait_until(lambda: not cluster.squeue(), 60, "the queue to be empty", 0.1)
    wait_until(lambda: not cluster.open_liens(ACCOUNT), 60, "every lien to have ended", 0.2)

    entries = cluster.ledger_rows(
        "SELECT user_id, amount_csu FROM entries WHERE seq > ? AND account = ? ORDER BY seq",
        [first_seq, ACCOUNT],
    )
    ledger = Sums(cluster)
    ledger.walk((row["user_id"], row["amount_csu"]) for row in entries)
    return Round(
        number=number,
        updates=updates,
        submitted=len(work),
        accepted=counts["accepted"],
        refused=counts["refused"],
        undecided=counts["undecided"],
        broken=counts["broken"],
        updated=counts["updated"],
        denied=counts["denied"],
        most_su=Decimal(ledger.most_csu).scaleb(-2),
        most_in_slurm_su=Decimal(slurm.most_csu).scaleb(-2),
        overdraft_su=Decimal(max(0, ledger.over_csu, slurm.over_csu)).scaleb(-2),
        seconds=time.monotonic() - begun,
    )


def problems(rounds: Iterable[Round]) -> list[str]:
    """What shows that a round did not show what it is for; an overdraft is no business of this."""
    found = []
    for race in rounds:
        if race.accepted == 0 or race.refused == 0:
            found.append(
                f"race round {race.number}: {race.accepted} accepted, {race.refused} refused: no race"
            )
        if race.broken > race.submitted // 20:
            found.append(
                f"race round {race.number}: sbatch failed {race.broken} times for reasons of its own"
            )
        if race.updates and not race.updated:
            found.append(f"race round {race.number}: no job was updated")
    return found


def run(
    rounds: int, seed: int, tell: Callable[[str], None], jobs: int = JOBS, deadline_s: float = 1800
) -> list[Round]:
    """Every second round is one with updates."""
    found: list[Round] = []
    end = time.monotonic() + deadline_s
    with RaceCluster(tell=lambda line: None) as cluster:
        for number in range(1, rounds + 1):
            if time.monotonic() > end:
                tell(f"no time for rounds {number} to {rounds}")
                break
            found.append(one_round(cluster, number, number % 2 == 0, seed, jobs))
            tell(found[-1].text())
    return found


def as_json(rounds: Iterable[Round]) -> list[dict[str, Any]]:
    return [
        {
            key: str(value) if isinstance(value, Decimal) else value
            for key, value in dataclasses.asdict(race).items()
        }
        for race in rounds
    ]
