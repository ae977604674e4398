# SPDX-License-Identifier: BSD-3-Clause
"""How many connections srun and slurmstepd open for one step, by strace: a connection is what an RPC would need, too."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.results import CannotMeasure
from tests.rig.cluster import Cluster, wait_until

_CALLS = "trace=connect,execve,clone,clone3,fork,vfork"


@contextlib.contextmanager
def _watching(pid: int, trace: Path) -> Iterator[None]:
    watcher = subprocess.Popen(
        ["strace", "-f", "-qq", "-e", _CALLS, "-o", str(trace), "-p", str(pid)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        status = Path(f"/proc/{pid}/status")
        wait_until(
            lambda: f"TracerPid:\t{watcher.pid}\n" in status.read_text(), 10, "strace to attach"
        )
        yield
    finally:
        watcher.send_signal(signal.SIGINT)
        try:
            watcher.wait(10)
        except subprocess.TimeoutExpired:
            watcher.kill()
            watcher.wait()


def of_program(trace: str, program: str) -> int:
    """connect() calls in what strace wrote, of processes that became ``program`` and of what they started since."""
    theirs: set[str] = set()
    count = 0
    for line in trace.splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.startswith("execve(") and f'{program}"' in rest.partition(",")[0]:
            theirs.add(pid)
        started = re.search(r"\b(?:clone3?|v?fork)\b.* = (\d+)$", rest)
        if started and pid in theirs:
            theirs.add(started[1])
        if rest.startswith("connect(") and pid in theirs:
            count += 1
    return count


def of_a_step(site: Cluster, user: str, job: int, times: int = 12) -> tuple[int, int]:
    """The fewest of srun and of slurmstepd: Slurm's own vary by one or two with who is there first, ours would be in each."""
    if not shutil.which("strace"):
        raise CannotMeasure("no strace")
    slurmds = [site.pid(f"slurmd-{node.name}") for node in site.nodes]
    found: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory(prefix="slurm-banking-bench-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o777)
        for number in range(times):
            with contextlib.ExitStack() as stack:
                for index, pid in enumerate(slurmds):
                    if pid is None:
                        raise CannotMeasure("a slurmd does not run")
                    stack.enter_context(_watching(pid, directory / f"d{number}.{index}"))
                step = directory / f"s{number}"
                command = ["srun", "--quiet", f"--jobid={job}", "--overlap", "-n1", "true"]
                done = site.run_as(
                    user, ["strace", "-f", "-qq", "-e", _CALLS, "-o", str(step), *command]
                )
                if done.returncode != 0:
                    raise CannotMeasure(f"srun under strace: {done.stderr.strip()[-300:]}")
            daemons = [
                (directory / f"d{number}.{index}").read_text(errors="replace")
                for index in range(len(slurmds))
            ]
            if not any("slurmstepd" in trace for trace in daemons):
                raise CannotMeasure("strace saw no slurmstepd")
            found.append(
                (
                    of_program(step.read_text(errors="replace"), "srun"),
                    sum(of_program(trace, "slurmstepd") for trace in daemons),
                )
            )
    return min(one for one, _ in found), min(two for _, two in found)
