# SPDX-License-Identifier: BSD-3-Clause
"""A steady stream of what users do, on a cluster that is being broken: short jobs, arrays, requeues, cancels, updates.

Bounded in rate, in what waits, and in time. Clients that fail (slurmctld is dead, or stopped) are counted and forgotten; a user
would try again, and so does the stream. Only users cancel jobs here: after a restart slurmctld may forget who did, and an
operator's cancel changes the charge.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tests.rig.cluster import OPERATOR, Cluster, Node, Partition, RigError

#: Account → its users. What one of them may spend of what is there differs: much, some, and next to nothing.
ACCOUNTS: Mapping[str, Sequence[str]] = {
    "fc_alpha": ("sb-alice", "sb-bob"),
    "fc_beta": ("sb-carol",),
    "fc_gamma": ("sb-mallory",),
    "ops": (OPERATOR,),
}
FUNDS_SU: Mapping[str, str] = {"fc_alpha": "600000", "fc_beta": "200000", "fc_gamma": "250"}
#: What the last one is given again before each schedule, so that some of its jobs fit, and some do not.
ALLOWANCE_SU: Mapping[str, int] = {"fc_gamma": 250}

#: (user, account), as often as it submits.
SUBMITTERS = (
    ("sb-alice", "fc_alpha"),
    ("sb-bob", "fc_alpha"),
    ("sb-carol", "fc_beta"),
    ("sb-carol", "fc_beta"),
    ("sb-mallory", "fc_gamma"),
)

PRICES: Mapping[str, str] = {"main": "360", "debug": "180.5"}
NODES = tuple(Node(name=f"n{number}", cpus=96) for number in range(1, 4))
PARTITIONS = (
    Partition(name="main", default=True),
    Partition(name="debug", default_time_min=2, max_time="00:30:00"),
)

#: Where each job writes when it started and ended, in its user's home.
NOTES = "notes"

SCRIPT = """\
#!/bin/bash
note() {{ printf '%s %s %s %(%s)T\\n' "$1" "$SLURM_JOB_ID" "${{SLURM_RESTART_COUNT:-0}}" -1 >>"$HOME/{notes}"; }}
trap 'note end; exit 0' TERM
note start
sleep {seconds}
note end
"""

WORKERS = 8
#: Seconds that a client command may take; slurmctld may be dead, or stopped.
CLIENT_S = 20.0
#: Things that wait to be done, from which on no new ones are thought of.
MOST_WAITING = 40
#: Seconds that a job must have run before it is requeued: slurmctld tells slurmdbd of starts every five seconds, and of a run
#: that was requeued before that slurmdbd never gets a start.
BEFORE_REQUEUE_S = 7.0

#: What a user does, and how often. `alone` and `array` are most of the jobs.
WEIGHTS: Mapping[str, int] = {
    "alone": 34,
    "array": 22,
    "held_array": 4,
    "cancel_pending": 7,
    "cancel_running": 9,
    "cancel_task": 4,
    "requeue": 5,
    "update_pending": 6,
    "update_running": 5,
    "held": 5,
    "too_dear": 4,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submitted:
    job_id: int
    tasks: int
    user: str
    account: str
    kind: str
    at: float
    cpus: int
    partition: str


class Load:
    """``with Load(site, seed) as load: …``: from then on until the end of the block; `pause()` ends it early.

    `rate`: how many things are begun per second; each is one submission, and what becomes of it.
    """

    def __init__(self, site: Cluster, seed: int | str, *, rate: float = 4.5) -> None:
        self._site = site
        self._rng = random.Random(f"load/{seed}")
        self._interval_s = 1 / rate
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.submitted: list[Submitted] = []
        #: By what was done: "alone", …; "refused" for want of funds; "failed", a client that did not get through; "errors".
        self.counts: Counter[str] = Counter()
        self.last_error = ""

    @property
    def tasks(self) -> int:
        """Accepted jobs, an array by its tasks."""
        with self._lock:
            return sum(one.tasks for one in self.submitted)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._think, name="load", daemon=True)]
        self._threads += [
            threading.Thread(target=self._work, name=f"load-{number}", daemon=True)
            for number in range(WORKERS)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()

    def pause(self) -> None:
        """No more from now on; returns when no client runs."""
        self._stop.set()
        with self._changed:
            self._due.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=2 * CLIENT_S + 10)

    # -- the threads ------------------------------------------------------------------------------------------------

    def _think(self) -> None:
        kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
        first = list(kinds)  # one of each, however short it is
        self._rng.shuffle(first)
        first.remove("held")
        first.append("held")  # it takes the longest, and is drawn from the end
        next_at = time.monotonic()
        while not self._stop.wait(max(0.0, next_at - time.monotonic())):
            next_at = max(next_at + self._interval_s, time.monotonic() - 1)
            with self._changed:
                if len(self._due) >= MOST_WAITING:
                    continue
            kind = first.pop() if first else self._rng.choices(kinds, weights)[0]
            user, account = self._rng.choice(SUBMITTERS)
            begin: Callable[[random.Random, str, str], None] = getattr(self, f"_{kind}")
            own = random.Random(self._rng.random())
            self._later(0, lambda b=begin, r=own, u=user, a=account: b(r, u, a))  # type: ignore[misc]

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        if self._stop.is_set():
            return
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), what))
            self._changed.notify()

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                now = time.monotonic()
                if not self._due or self._due[0][0] > now:
                    self._changed.wait(min(1.0, self._due[0][0] - now) if self._due else 1.0)
                    continue
                what = heapq.heappop(self._due)[2]
            try:
                what()
            except (RigError, subprocess.SubprocessError, OSError, ValueError) as error:
                self._count("errors")
                self.last_error = str(error)

    def _count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    # -- clients ----------------------------------------------------------------------------------------------------

    def _submit(
        self, kind: str, user: str, account: str, *args: str, seconds: float, tasks: int = 1
    ) -> int | None:
        result = self._site.run_as(
            user,
            ["sbatch", "--parsable", "--output=/dev/null", f"--account={account}", *args],
            CLIENT_S,
            input=SCRIPT.format(notes=NOTES, seconds=f"{seconds:.1f}"),
        )
        if result.returncode != 0:
            ours = "SU available" in result.stderr or "SU left" in result.stderr
            undecided = "violates accounting/QOS" in result.stderr
            self._count("refused" if ours else "undecided" if undecided else "failed")
            if not ours and not undecided:
                self.last_error = result.stderr.strip()
            return None
        job_id = int(result.stdout.strip().split(";")[0])
        asked = dict(word.partition("=")[::2] for word in args)
        with self._lock:
            self.counts[kind] += 1
            self.submitted.append(
                Submitted(
                    job_id=job_id,
                    tasks=tasks,
                    user=user,
                    account=account,
                    kind=kind,
                    at=time.time(),
                    cpus=int(asked.get("--cpus-per-task", 1)),
                    partition=asked.get("--partition", "main"),
                )
            )
        return job_id

    def _client(self, what: str, user: str, *argv: str) -> bool:
        result = self._site.run_as(user, list(argv), CLIENT_S)
        self._count(what if result.returncode == 0 else f"{what}_failed")
        return result.returncode == 0

    @staticmethod
    def _shape(rng: random.Random) -> list[str]:
        words = [f"--partition={rng.choice(('main', 'main', 'debug'))}"]
        words.append(f"--cpus-per-task={rng.choice((1, 1, 1, 2, 3))}")
        if rng.random() < 0.8:
            words.append(f"--time={rng.choice((1, 2, 3, 5))}")
        return words

    # -- what users do ------------------------------------------------------------------------------------------------

    def _alone(self, rng: random.Random, user: str, account: str) -> None:
        self._submit(
            "alone", user, account, *self._shape(rng), seconds=rng.choice((0.1, 0.5, 1, 2, 4))
        )

    def _array(self, rng: random.Random, user: str, account: str) -> None:
        tasks = rng.randint(4, 9)
        self._submit(
            "array", user, account, f"--array=0-{tasks - 1}", *self._shape(rng),
            seconds=rng.choice((0.1, 0.5, 1, 2)), tasks=tasks,
        )  # fmt: skip

    def _held_array(self, rng: random.Random, user: str, account: str) -> None:
        """Never runs, or in part."""
        tasks = rng.randint(4, 10)
        job = self._submit(
            "held_array", user, account, "--hold", f"--array=1-{tasks}", *self._shape(rng),
            seconds=0.2, tasks=tasks,
        )  # fmt: skip
        if job is None:
            return
        if rng.random() < 0.5:
            some = rng.randint(1, tasks - 1)
            self._later(1.5, lambda: self._cancelled(user, f"{job}_[1-{some}]"))
            self._later(3.5, lambda: self._released(user, job))
        else:
            self._later(rng.uniform(0.2, 4), lambda: self._cancelled(user, str(job)))

    def _cancelled(self, user: str, name: str) -> None:
        self._client("cancels", user, "scancel", name)

    def _released(self, user: str, job: int) -> None:
        self._client("releases", user, "scontrol", "release", str(job))

    def _cancel_pending(self, rng: random.Random, user: str, account: str) -> None:
        job = self._submit(
            "cancel_pending", user, account, "--hold", *self._shape(rng), seconds=0.2
        )
        if job is not None:
            self._later(rng.uniform(0, 5), lambda: self._cancelled(user, str(job)))

    def _cancel_running(self, rng: random.Random, user: str, account: str) -> None:
        job = self._submit("cancel_running", user, account, *self._shape(rng), seconds=40)
        if job is not None:
            self._later(rng.uniform(1, 8), lambda: self._cancelled(user, str(job)))

    def _cancel_task(self, rng: random.Random, user: str, account: str) -> None:
        job = self._submit(
            "cancel_task", user, account, "--array=0-2", *self._shape(rng), seconds=5, tasks=3
        )
        if job is not None:
            self._later(rng.uniform(0.5, 4), lambda: self._cancelled(user, f"{job}_1"))

    def _requeue(self, rng: random.Random, user: str, account: str) -> None:
        job = self._submit("requeue", user, account, *self._shape(rng), "--requeue", seconds=11)
        if job is None:
            return

        def requeue() -> None:
            if self._client("requeues", user, "scontrol", "requeue", str(job)):
                # Slurm keeps it back for two minutes; a node refuses a credential of the second of the last one.
                self._later(2.5, restart)

        def restart() -> None:
            self._client("restarts", "root", "scontrol", "update", f"job={job}", "StartTime=now")

        self._later(BEFORE_REQUEUE_S + rng.uniform(0, 2), requeue)

    def _update_pending(self, rng: random.Random, user: str, account: str) -> None:
        job = self._submit(
            "update_pending", user, account, "--hold", *self._shape(rng), seconds=0.5
        )
        if job is None:
            return
        for turn in range(rng.randint(1, 3)):
            limit = rng.choice((1, 2, 4, 9, 20))
            self._later(0.4 + 0.8 * turn, lambda m=limit: self._limit(user, job, m))  # type: ignore[misc]
        self._later(3.5, lambda: self._released(user, job))

    def _held(self, rng: random.Random, user: str, account: str) -> None:
        """Waits for longer than a lien may be unconfirmed, and runs."""
        job = self._submit("held", user, account, "--hold", *self._shape(rng), seconds=0.5)
        if job is not None:
            self._later(rng.uniform(11, 12.5), lambda: self._released(user, job))

    def _limit(self, user: str, job: int, minutes: int) -> None:
        self._client("updates", user, "scontrol", "update", f"job={job}", f"TimeLimit={minutes}")

    def _update_running(self, rng: random.Random, user: str, account: str) -> None:
        """Users may shorten a running job's limit, only an operator may prolong it."""
        job = self._submit(
            "update_running", user, account, "--partition=main", "--time=4", seconds=6
        )
        if job is None:
            return
        self._later(2, lambda: self._limit(user, job, 2))
        if rng.random() < 0.5:
            self._later(3.5, lambda: self._limit("root", job, rng.choice((3, 8))))

    def _too_dear(self, rng: random.Random, user: str, account: str) -> None:
        self._submit(
            "too_dear", "sb-mallory", "fc_gamma", "--time=20:00:00", "--cpus-per-task=64",
            seconds=1,
        )  # fmt: skip


def cancel_all(site: Cluster, timeout_s: float = 90) -> list[str]:
    """Let what runs for moments end, then let every user cancel their own; the names of what is there still."""
    deadline = time.monotonic() + timeout_s
    users = sorted({user for user, _ in SUBMITTERS})
    waited = 0
    left: list[str] = []
    while time.monotonic() < deadline:
        try:
            text = site.run_as("root", ["squeue", "-h", "-a", "-o", "%i"], CLIENT_S, check=True)
        except (RigError, subprocess.SubprocessError):
            time.sleep(0.5)
            continue
        left = text.stdout.split()
        if not left:
            break
        if waited >= 3 and waited % 3 == 0:
            for user in users:
                try:
                    site.run_as(user, ["scancel", "-u", user], CLIENT_S)
                except (RigError, subprocess.SubprocessError):
                    continue
        waited += 1
        time.sleep(1)
    return left
