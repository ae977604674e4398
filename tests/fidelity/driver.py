# SPDX-License-Identifier: BSD-3-Clause
"""Submits what `submissions` draws, in parallel but bounded, and sees each job to its end. Keeps what was said and seen."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from tests.fidelity.submissions import Submission
from tests.rig.cluster import Cluster, RigError

#: Threads that call sbatch, and threads that see jobs with a fate of their own through it.
SUBMITTERS = 6
ATTENDANTS = 24

#: Records (array tasks) in the queue from which on no more are submitted.
MOST_LIVE = 28

#: Seconds after which a job that waits will not start any more, and by Slurm's reason one that cannot.
PATIENCE_S = 20.0
HOPELESS_S = 4.0
HOPELESS = (
    "BadConstraints",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "PartitionConfig",
    "NodeDown",
)

Tell = Callable[[str], None]


@dataclasses.dataclass(kw_only=True)
class Accepted:
    submission: Submission
    job_id: int
    at: float  #: unix seconds
    said: str  #: sbatch's words to the user
    updates: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)
    #: What went wrong with its fate: "" nothing. The job counts all the same.
    trouble: str = ""


@dataclasses.dataclass(kw_only=True)
class Refused:
    submission: Submission
    said: str


class Queue:
    """What squeue shows, read in one place a few times a second."""

    def __init__(self, cluster: Cluster, interval_s: float = 0.4) -> None:
        self._cluster = cluster
        self._interval_s = interval_s
        self._states: dict[int, list[tuple[str, str, str]]] = {}
        self._read_at = 0.0
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="queue", daemon=True)
        self._hopeless: set[str] = set()
        self.pending_since: dict[str, float] = {}

    def __enter__(self) -> Queue:
        self._read()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._read()
            except (RigError, subprocess.SubprocessError):
                continue  # a busy controller; the next look will do

    def _read(self) -> None:
        begun = time.monotonic()
        # Not -r: the tasks of an array that did not start yet are one record.
        command = ["squeue", "-h", "-a", "-o", "%A|%F|%i|%T|%r|%C"]
        lines = self._cluster.run_as("root", command, check=True).stdout.splitlines()
        states: dict[int, list[tuple[str, str, str]]] = {}
        waiting, hopeless = set[str](), set[str]()
        for line in lines:
            job, base, shown, state, reason, _ = line.split("|", 5)
            for number in {int(job), int(base)}:
                states.setdefault(number, []).append((shown, state, reason))
            if state == "PENDING":
                waiting.add(job)
                if reason in HOPELESS:
                    hopeless.add(job)
        with self._changed:
            self._states, self._read_at, self._hopeless = states, begun, hopeless
            for job in waiting:
                self.pending_since.setdefault(job, begun)
            for job in set(self.pending_since) - waiting:
                del self.pending_since[job]
            self._changed.notify_all()

    def live(self) -> int:
        with self._changed:
            return len({record for records in self._states.values() for record in records})

    def stuck(self) -> list[str]:
        """What has waited for too long."""
        with self._changed:
            now = time.monotonic()
            return [
                job
                for job, since in self.pending_since.items()
                if now - since > (HOPELESS_S if job in self._hopeless else PATIENCE_S)
            ]

    def wait(self, job: int, wanted: Callable[[set[str]], bool], timeout_s: float) -> bool:
        """Until the job's states, as seen after this call, are as wanted; an ended job has none."""
        begun = time.monotonic()
        with self._changed:
            while True:
                if self._read_at > begun:
                    states = {state for _, state, _ in self._states.get(job, [])}
                    if wanted(states):
                        return True
                left = begun + timeout_s - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 1.0))


class Driver:
    """One cluster's submissions, of one :meth:`run` or several one after the other."""

    def __init__(self, cluster: Cluster, *, tell: Tell, deadline_s: float) -> None:
        self.cluster = cluster
        self.accepted: list[Accepted] = []
        self.refused: list[Refused] = []
        self.counts: Counter[str] = Counter()  #: accepted, by feature
        self._tell = tell
        self._deadline_s = deadline_s  #: of each run
        self._lock = threading.Lock()
        self.records: dict[int, str] = {}  #: what `scontrol show job` said of each, the last time

    # -- the whole ------------------------------------------------------------------------------------------------------

    def run(self, drawn: Iterator[Submission], *, jobs: int, quotas: Mapping[str, int]) -> None:
        """`jobs`: how many more must be accepted; `quotas`: how many in all, by feature."""
        begun = told = time.monotonic()
        before, deadline = len(self.accepted), begun + self._deadline_s
        most = 3 * jobs + 400  # sbatch refuses some; not endlessly many

        def enough() -> bool:
            return len(self.accepted) >= before + jobs and all(
                self.counts[name] >= quota for name, quota in quotas.items()
            )

        number = 0
        with (
            Queue(self.cluster) as queue,
            ThreadPoolExecutor(SUBMITTERS) as submitters,
            ThreadPoolExecutor(ATTENDANTS) as attendants,
        ):
            self.queue = queue
            pending: set[Future[Any]] = set()
            attended: set[Future[Any]] = set()
            looked = 0.0
            while True:
                now = time.monotonic()
                stop = enough() or number >= most or now > deadline
                done, pending = wait(pending, timeout=0.02, return_when=FIRST_COMPLETED)
                for future in done:
                    job = future.result()
                    if job is not None and job.submission.fate != "run":
                        attended.add(attendants.submit(self._attend, job))
                for future in [f for f in attended if f.done()]:
                    attended.discard(future)
                    future.result()
                if stop and not pending and not attended and not queue.live():
                    break
                if now > deadline + 240:
                    self._tell("the queue does not get empty; cancelling what is left")
                    break
                if (
                    not stop
                    and len(pending) < SUBMITTERS
                    and queue.live() + len(pending) < MOST_LIVE
                ):
                    for _ in range(SUBMITTERS - len(pending)):
                        pending.add(submitters.submit(self._submit, next(drawn)))
                        number += 1
                elif not pending:
                    time.sleep(0.1)
                if now - looked > 2:
                    looked = now
                    for stuck in queue.stuck():
                        self.cluster.run_as("root", ["scancel", stuck])
                if now - told > 15:
                    told = now
                    self._look()
                    wanted = [name for name in quotas if quotas[name]]
                    least = min(
                        wanted, key=lambda name: self.counts[name] / quotas[name], default=""
                    )
                    fewest = f"; fewest: {least} {self.counts[least]}" if least else ""
                    self._tell(
                        f"{len(self.accepted)} accepted, {len(self.refused)} refused by sbatch, {queue.live()} in the"
                        f" queue, {len(self.accepted) / (now - begun):.1f}/s{fewest}"
                    )
        for user in ("sb-alice", "sb-bob", "sb-carol", "sb-mallory"):
            self.cluster.run_as("root", ["scancel", "-u", user])
        self._look()
        self._tell(
            f"{len(self.accepted)} accepted and {len(self.refused)} refused in {time.monotonic() - begun:.0f} s"
        )

    def _look(self) -> None:
        """slurmctld forgets jobs some minutes after their end."""
        text = self.cluster.run_as("root", ["scontrol", "-o", "-d", "show", "job"]).stdout
        for line in text.splitlines():
            match = re.match(r"JobId=(\d+)", line)
            if match:
                self.records[int(match[1])] = line

    def _submit(self, submission: Submission) -> Accepted | None:
        at = time.time()
        result = self.cluster.try_sbatch(
            submission.user, *submission.arguments(), script=submission.script, timeout_s=120
        )
        with self._lock:
            if result.returncode != 0:
                self.refused.append(Refused(submission=submission, said=result.stderr.strip()))
                return None
            job = Accepted(
                submission=submission,
                job_id=int(result.stdout.strip().split(";")[0]),
                at=at,
                said=result.stderr.strip(),
            )
            self.accepted.append(job)
            self.counts.update(submission.features)
            return job

    # -- fates ----------------------------------------------------------------------------------------------------------

    def _do(self, user: str, *argv: str) -> subprocess.CompletedProcess[str]:
        return self.cluster.run_as(user, list(argv))

    def _attend(self, job: Accepted) -> None:
        try:
            trouble = getattr(self, f"_{job.submission.fate}")(
                job, str(job.job_id), job.submission.user
            )
        except (RigError, subprocess.SubprocessError) as error:
            trouble = str(error)
        job.trouble = trouble or ""

    def _started(self, job: Accepted, timeout_s: float = PATIENCE_S + 10) -> bool:
        """Whether it, or a task of it, runs; not, if it ended or never starts."""
        seen: set[str] = set()

        def reached(states: set[str]) -> bool:
            seen.clear()
            seen.update(states)
            return "RUNNING" in states or not states

        self.queue.wait(job.job_id, reached, timeout_s)
        return "RUNNING" in seen

    def _cancel_user(self, job: Accepted, name: str, user: str) -> str:
        if not self._started(job):
            self._do(user, "scancel", name)
            return "never ran"
        time.sleep(0.5)
        self._do(user, "scancel", name)
        return ""

    def _cancel_admin(self, job: Accepted, name: str, user: str) -> str:
        return self._cancel_user(job, name, "root")

    def _cancel_task(self, job: Accepted, name: str, user: str) -> str:
        if not self._started(job):
            self._do(user, "scancel", name)
            return "never ran"
        tasks = [
            record["ArrayTaskId"]
            for record in self.cluster.jobs(name)
            if record.get("JobState") == "RUNNING"
        ]
        if tasks:
            self._do(user, "scancel", f"{name}_{tasks[0]}")
        time.sleep(2)
        self._do(user, "scancel", name)
        return ""

    def _never(self, job: Accepted, name: str, user: str) -> str:
        time.sleep(1)
        self._do(user, "scancel", name)
        return ""

    def _requeue(self, job: Accepted, name: str, user: str) -> str:
        if not self._started(job):
            return "never ran"
        # slurmctld reports starts every five seconds; of a run that is requeued before, slurmdbd may get no start at all, and
        # the partitions that the job asked for, not the one that it ran in.
        time.sleep(6)
        result = self._do(user, "scontrol", "requeue", name)
        if result.returncode != 0:
            self._do(user, "scancel", name)
            return result.stderr.strip()
        self.queue.wait(job.job_id, lambda states: states <= {"PENDING"}, 20)
        time.sleep(1.2)
        self._do("root", "scontrol", "update", f"job={name}", "StartTime=now")
        return ""

    def _suspend(self, job: Accepted, name: str, user: str) -> str:
        if not self._started(job):
            return "never ran"
        result = self._do("root", "scontrol", "suspend", name)
        time.sleep(2)
        self._do("root", "scontrol", "resume", name)
        return result.stderr.strip()

    def _resize(self, job: Accepted, name: str, user: str) -> str:
        if not self._started(job):
            return "never ran"
        time.sleep(1)
        return self._update(job, user, ("NumNodes=1",))

    def _node_fail(self, job: Accepted, name: str, user: str) -> str:
        if not self._started(job):
            return "never ran"
        node = self.cluster.job(name).get("BatchHost", "")
        if not node:
            return "no batch host"
        time.sleep(0.5)
        self._do("root", "scontrol", "update", f"nodename={node}", "state=down", "reason=fidelity")
        time.sleep(0.5)
        self._do("root", "scontrol", "update", f"nodename={node}", "state=idle")
        return ""

    def _update_pending(self, job: Accepted, name: str, user: str) -> str:
        time.sleep(0.3)
        trouble = self._update(job, user, job.submission.fate_arguments)
        time.sleep(0.3)
        self._do(user, "scontrol", "release", name)
        return trouble

    def _update_running(self, job: Accepted, name: str, user: str) -> str:
        if not self._started(job):
            return "never ran"
        return self._update(job, "root", job.submission.fate_arguments)

    def _update(self, job: Accepted, user: str, wanted: Sequence[str]) -> str:
        at = time.time()
        result = self._do(user, "scontrol", "update", f"JobId={job.job_id}", *wanted)
        job.updates.append(
            {
                "at": at,
                "user": user,
                "wanted": list(wanted),
                "status": result.returncode,
                "said": (result.stdout + result.stderr).strip(),
            }
        )
        return (result.stdout + result.stderr).strip() if result.returncode else ""
