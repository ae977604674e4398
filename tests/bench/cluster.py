# SPDX-License-Identifier: BSD-3-Clause
"""What the plugins cost on real daemons: submissions against a cluster without them, steps with and without spank."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import connections
from tests.bench.intervals import quantile, ratio
from tests.bench.results import CannotMeasure, Row, Tell, exact
from tests.rig.banked import BankedCluster
from tests.rig.cluster import Cluster, RigError, wait_until

USER = "sb-alice"
FUNDS = {"fc_alpha": "99999999"}
#: Held, so that nothing starts: what is measured is the submission.
SBATCH = "sbatch --quiet --hold --time=10 --wrap=true"

_BURST = """\
seq {count} | xargs -P {clients} -I{{}} {sbatch} >/dev/null && echo done
"""
_STEPS = """\
for i in $(seq {count}); do srun --quiet --jobid={job} --overlap -n1 true || exit 1; done && echo done
"""


@dataclass(frozen=True, kw_only=True)
class Size:
    bursts: int  #: pairs of them
    burst: int  #: submissions each
    blocks: int  #: pairs of blocks of steps
    block: int  #: steps each


FULL = Size(bursts=20, burst=200, blocks=30, block=20)
QUICK = Size(bursts=5, burst=80, blocks=8, block=8)
CLIENTS = 4


class DefaultCluster(BankedCluster):
    """With the relay's times as they are by default; the rig's own are for tests in a hurry."""

    def write_banking(self) -> None:
        super().write_banking()
        hurried = r"(?m)^(queue_poll_s|funds_refresh_s|sacct_poll_s|lien_grace_s) = .*\n"
        self.write_bank_config(re.sub(hurried, "", self.bank_config.read_text()))


@contextmanager
def clusters(with_plain: bool, tell: Tell) -> Iterator[tuple[BankedCluster, Cluster | None]]:
    """One with everything of ours, and one with nothing of it."""
    try:
        with ExitStack() as stack:
            tell("starting a cluster with the plugins, bank and relay")
            banked = stack.enter_context(
                DefaultCluster(funds=FUNDS, prices={"main": "1"}, slurmctld_debug="info")
            )
            plain = None
            if with_plain:
                tell("starting a cluster without them")
                plain = stack.enter_context(Cluster(slurmctld_debug="info", cluster_name="plain"))
            yield banked, plain
    except RigError as error:
        raise CannotMeasure(str(error).splitlines()[0]) from error


def _timed(cluster: Cluster, script: str, timeout_s: float = 60) -> float:
    begun = time.monotonic()
    result = cluster.run_as(USER, ["sh", "-c", script], timeout_s)
    took_s = time.monotonic() - begun
    if result.returncode != 0 or "done" not in result.stdout:
        raise CannotMeasure(f"{script.splitlines()[0]}: {result.stderr.strip()[-300:]}")
    return took_s


def measure_sbatch(banked: BankedCluster, plain: Cluster, size: Size, tell: Tell) -> list[Row]:
    """Submissions a second of a few clients at once, in bursts by turns."""

    cpu_ms: dict[str, list[float]] = {"slurmctld off": [], "slurmctld on": [], "relay": []}

    def burst(cluster: Cluster) -> float:
        script = _BURST.format(count=size.burst, clients=CLIENTS, sbatch=SBATCH)
        if cluster is banked:
            pids = {"slurmctld on": banked.pid("slurmctld"), "relay": banked.relay_pid()}
        else:
            pids = {"slurmctld off": plain.pid("slurmctld")}
        before = {name: _cpu_s(pid) for name, pid in pids.items()}
        rate = size.burst / _timed(cluster, script)
        for name, pid in pids.items():
            cpu_ms[name].append((_cpu_s(pid) - before[name]) / size.burst * 1000)
        if cluster is banked:
            _wait_confirmed(banked)
        return rate

    tell(f"sbatch: {size.bursts} pairs of bursts of {size.burst}, {CLIENTS} clients")
    query = "SELECT COUNT(*) AS n FROM liens WHERE origin = 'submit'"
    before = banked.ledger_rows(query)[0]["n"]
    for cluster in (banked, plain):
        burst(cluster)
    pairs = []
    for number in range(size.bursts):
        both: tuple[Cluster, Cluster] = (banked, plain) if number % 2 else (plain, banked)
        rate = {id(cluster): burst(cluster) for cluster in both}
        pairs.append((rate[id(banked)], rate[id(plain)]))
    jobs = size.burst * (size.bursts + 1)
    liens = banked.ledger_rows(query)[0]["n"] - before
    if liens != jobs:
        raise CannotMeasure(f"sbatch: {liens} liens for {jobs} jobs")
    for cluster in (banked, plain):
        cluster.run_as("root", ["scancel", "-u", USER])
    decided = [
        int(found) / 1000
        for found in re.findall(r"submission_accepted .*elapsed_us=(\d+)", banked.log("slurmctld"))
    ]
    shown = statistics.median(rate for _, rate in pairs)
    return [
        Row(what="sbatch throughput, plugins on / off", estimate=ratio(pairs), unit="", least=0.95,
            note=f"off: {shown:.0f}/s, and most of that is the clients' own time on the same cores; CPU for each: "
            + ", ".join(f"{name} {statistics.fmean(spent):.2g} ms" for name, spent in cpu_ms.items())),
        Row(what="decision in slurmctld during that: median", estimate=quantile(decided, 0.5), unit="ms",
            note="by the log's elapsed_us: without decoding, and without the wait for Python's lock"),
        Row(what="decision in slurmctld during that: p99", estimate=quantile(decided, 0.99), unit="ms"),
    ]  # fmt: skip


def _cpu_s(pid: int | None) -> float:
    """Of a process, its threads and the children that it waited for."""
    if pid is None:
        raise CannotMeasure("slurmctld or the relay does not run")
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _wait_confirmed(site: BankedCluster) -> None:
    """Until the relay has seen the jobs: what it does for one burst is not to slow the next one down."""
    wait_until(
        lambda: not site.ledger_rows("SELECT 1 FROM liens WHERE state = 'unconfirmed' LIMIT 1"),
        30,
        "the relay to see the jobs",
        0.3,
    )


def measure_steps(banked: BankedCluster, size: Size, tell: Tell) -> list[Row]:
    """``srun true`` inside an allocation, with the spank plugin in plugstack.conf and without, by turns."""
    plugstack = banked.etc_dir / "plugstack.conf"
    line = plugstack.read_text()
    if "slurm_banking" not in line:
        raise CannotMeasure(f"{plugstack}: no spank plugin of ours in it")

    def use(on: bool) -> None:
        banked.write_file(plugstack, line if on else "")

    job = banked.sbatch(USER, "--time=10", "-n2", script="sleep 600")
    banked.wait_job(job, "RUNNING")
    try:
        for on in (False, True):
            use(on)
            _check_maps(banked, job, on)
        tell(f"steps: {size.blocks} pairs of blocks of {size.block} sruns, spank on and off")
        opened = {}
        for on in (False, True):
            use(on)
            opened[on] = connections.of_a_step(banked, USER, job)
        script = _STEPS.format(count=size.block, job=job)
        _timed(banked, script)
        pairs = []
        for number in range(size.blocks):
            took_s = {}
            for on in (False, True) if number % 2 else (True, False):
                use(on)
                took_s[on] = _timed(banked, script)
            pairs.append((took_s[True], took_s[False]))
    finally:
        use(True)
        banked.scancel(USER, str(job))
    off_ms = statistics.median(off for _, off in pairs) / size.block * 1000
    return [
        Row(what="step launch, spank on / off", estimate=ratio(pairs), unit="", most=1.05,
            note=f"off: {off_ms:.0f} ms for one"),
        Row(what="step launch: of srun and slurmstepd, how many have libpython mapped", estimate=exact(0), unit="",
            most=0, note="looked up in their maps; one that has ends the measurement"),
        Row(what="step launch: connections opened, spank on minus off", unit="", most=0,
            estimate=exact(sum(opened[True]) - sum(opened[False])),
            note=f"the fewest of twelve steps, by strace; off: srun {opened[False][0]}, slurmstepd {opened[False][1]}; an RPC needs one, too"),
    ]  # fmt: skip


def _check_maps(site: Cluster, job: int, on: bool) -> None:
    """The switch works, and with it on neither process of a step has libpython."""
    step = site.popen_as(
        USER, ["srun", "--quiet", f"--jobid={job}", "--overlap", "-n1", "sleep", "20"]
    )
    try:
        found = wait_until(lambda: _processes(site, job), 15, "a step's srun and slurmstepd")
        for process in found:
            maps = (process / "maps").read_text()
            if "libpython" in maps or ("spank_slurm_banking" in maps) is not on:
                name = Path(os.readlink(process / "exe")).name
                raise CannotMeasure(f"{name} with spank {'on' if on else 'off'}: wrong libraries")
    finally:
        site.run_as("root", ["scancel", f"{job}.{_last_step(site, job)}"])
        step.terminate()
        step.communicate(timeout=15)


def _processes(site: Cluster, job: int) -> list[Path]:
    """srun and slurmstepd of a step of the job that sleeps; empty until both are there."""
    found: dict[str, Path] = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if re.match(rf"slurmstepd: \[{job}\.\d+\]", command):
            children = [
                child
                for task in (directory / "task").iterdir()
                for child in (task / "children").read_text().split()
            ]
            if children and str(site.root) in (directory / "environ").read_bytes().decode(
                errors="replace"
            ):
                found["slurmstepd"] = directory
        elif command.startswith("srun ") and f"--jobid={job}" in command:
            environment = (directory / "environ").read_bytes().decode(errors="replace")
            if str(site.root) in environment:
                found["srun"] = directory
    return list(found.values()) if len(found) == 2 else []


def _last_step(site: Cluster, job: int) -> str:
    shown = site.run_as("root", ["squeue", "-h", "-s", "-j", str(job), "-o", "%i"]).stdout.split()
    numbers = [name.split(".")[1] for name in shown if name.split(".")[1].isdigit()]
    return numbers[-1] if numbers else "0"
