# SPDX-License-Identifier: BSD-3-Clause
"""Real slurmctld with our jobcomp plugin, its own log on, and Slurm's own plugins behind it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.banked import BankedCluster
from tests.rig.cluster import Cluster, wait_until

pytestmark = pytest.mark.timeout(240)


class LoggedCluster(BankedCluster):
    """`jobcomp`: the lines of [JobComp]."""

    jobcomp = ""

    def write_banking(self) -> None:
        super().write_banking()
        text = self.bank_config.read_text()
        self.write_bank_config(f"{text}\n[JobComp]\n{self.jobcomp}\n")

    @property
    def ours(self) -> Path:
        return self.log_dir / "jobcomp.log"

    @property
    def theirs(self) -> Path:
        """What jobcomp/filetxt writes."""
        return self.log_dir / "filetxt.log"

    def use(self, *lines: str) -> None:
        self.jobcomp = "\n".join(lines)
        self.write_banking()

    def logged(self, job: int, path: Path) -> bool:
        return path.exists() and f"JobId={job} " in path.read_text()

    def run_one(self, *seen_in: Path) -> int:
        """One job from submission to its line in these files."""
        job = self.sbatch("sb-alice", "--time=1", script="true")
        wait_until(
            lambda: all(self.logged(job, path) for path in seen_in), 20, f"a line of job {job}"
        )
        return job


@pytest.fixture(scope="module")
def site() -> Iterator[LoggedCluster]:
    """Without a relay and without a bank: what is looked at is slurmctld alone."""
    root = Path(f"/tmp/slurm-banking-rig-jobcomp-{os.getpid()}")
    site = LoggedCluster(
        root=root,
        relay='start = "none"',
        extra_slurm_conf={"JobCompLoc": f"{root}/log/filetxt.log"},
    )
    try:
        site.jobcomp = f'log = "{root}/log/jobcomp.log"\npass_on = "jobcomp/filetxt"'
        site.prepare()
        Cluster.start(site)
        yield site
    finally:
        site.stop()


def our_errors(site: LoggedCluster) -> list[str]:
    return [line for line in site.log("slurmctld").splitlines() if "[JobComp]" in line]


def test_jobs_of_every_kind_leave_the_line_that_jobcomp_filetxt_leaves(site: LoggedCluster) -> None:
    user = "sb-alice"
    plain = site.sbatch(user, "--time=1", "-J", "a name", script="true")
    failed = site.sbatch(user, "--time=1", script="exit 3")
    killed = site.sbatch(user, "--time=1", script="kill -9 $$")
    array = site.sbatch(user, "--time=1", "--array=0-2", script="true")
    het = site.try_sbatch(user, "--time=1", "-n1", ":", "-n1", script="true")
    waiting = site.sbatch(user, "--time=1", "--begin=now+1hour", "-p", "main,debug")
    waiting_array = site.sbatch(user, "--time=1", "--begin=now+1hour", "--array=0-9")
    running = site.sbatch(user, "--time=1", "-n", "2", "--mem=100", script="sleep 60")
    again = site.sbatch("sb-carol", "--time=1", "--requeue", "--comment=x", script="sleep 60")
    whole = site.sbatch("sb-carol", "--time=1", "-p", "exclusive", "-J", "n" * 200, script="true")
    wide = site.sbatch("sb-carol", "--time=1", "-N", "2", script="true")
    assert het.returncode == 0, het.stderr
    for job in (running, again):
        site.wait_job(job, {"RUNNING"})
    site.run_as("root", ["scontrol", "requeue", str(again)], check=True)
    site.wait_job(again, {"PENDING"})
    for job in (waiting, waiting_array, running, again):
        site.scancel(user if job != again else "sb-carol", str(job))
    jobs = [plain, failed, killed, array, waiting, waiting_array, running, again, whole, wide]
    for job in [*jobs, int(het.stdout)]:
        site.wait_job(job)

    def ended() -> list[str]:
        return site.theirs.read_text().splitlines()

    wait_until(lambda: not site.squeue(), 30, "an empty queue")
    assert len(ended()) >= 14
    assert site.ours.read_bytes() == site.theirs.read_bytes()
    states = {
        match[1]: match[2]
        for match in re.finditer(r"JobId=(\d+) .*?JobState=(\w+)", "\n".join(ended()))
    }
    assert states[str(failed)] == "FAILED" and states[str(waiting)] == "CANCELLED"
    text = "\n".join(ended())
    for sign in (
        "ExitCode=3:0",
        "ExitCode=0:9",
        "ArrayTaskId=2",
        "HetJobOffset=1",
        "NodeCnt=2",
        "Name=a name",
    ):
        assert sign in text, sign
    assert f"JobId={again} " in text and "JobState=PENDING" in text  # the requeue
    assert (site.ours.stat().st_mode, site.ours.stat().st_uid) == (
        site.theirs.stat().st_mode,
        site.theirs.stat().st_uid,
    )
    assert our_errors(site) == []


def test_sacct_reads_the_other_plugins_records(site: LoggedCluster) -> None:
    job = site.run_one(site.ours, site.theirs)
    shown = site.run_as("root", ["sacct", "-c", "-n", "-P", "-o", "JobID,State"]).stdout
    assert f"{job}|COMPLETED" in shown.splitlines()


def test_a_rotated_log_goes_on_at_once_and_the_other_plugins_when_it_is_told(
    site: LoggedCluster,
) -> None:
    for path in (site.ours, site.theirs):
        path.rename(path.with_suffix(".1"))
    site.run_one(site.ours, site.theirs.with_suffix(".1"))  # filetxt holds on to the old file
    assert not site.theirs.exists()
    pid = site.pid("slurmctld")
    assert pid is not None
    os.kill(pid, signal.SIGUSR2)
    wait_until(site.theirs.exists, 10, "filetxt's new file")
    site.run_one(site.ours, site.theirs)
    assert site.pid("slurmctld") == pid


@pytest.mark.parametrize("how", ["scontrol", "SIGHUP"])
def test_a_reconfigure_moves_the_log(site: LoggedCluster, how: str) -> None:
    moved = site.log_dir / f"{how}.log"
    site.use(f'log = "{moved}"', 'pass_on = "jobcomp/filetxt"')
    site.run_one(site.ours)
    pid = site.pid("slurmctld")
    assert pid is not None
    if how == "scontrol":
        site.reconfigure()
    else:
        os.kill(pid, signal.SIGHUP)
    wait_until(moved.exists, 20, "the new log")
    before = site.ours.read_bytes()
    site.run_one(moved, site.theirs)
    assert site.ours.read_bytes() == before
    site.use(f'log = "{site.ours}"', 'pass_on = "jobcomp/filetxt"')
    site.reconfigure()
    site.run_one(site.ours)


def test_slurmctld_runs_and_charges_while_log_and_other_plugin_are_unusable(
    site: LoggedCluster,
) -> None:
    site.use('log = "/nonexistent/jobcomp.log"', 'pass_on = "jobcomp/nowhere"')
    site.restart_slurmctld()
    job = site.sbatch("sb-alice", "--time=1", script="true")
    site.wait_job(job)
    wait_until(
        lambda: site.ledger_rows("SELECT * FROM runs WHERE job_id = ? AND state = 'ended'", [job]),
        20,
        "the charge",
    )
    told = our_errors(site)
    assert any("/nonexistent/jobcomp.log" in line and "No such file" in line for line in told)
    assert any("jobcomp/nowhere" in line and "no such plugin" in line for line in told)


def test_the_script_plugin_gets_every_record(site: LoggedCluster) -> None:
    script, seen = site.root / "run" / "script", site.log_dir / "seen"
    site.write_file(script, f'#!/bin/sh\necho "JobId=$JOBID $JOBSTATE" >>{seen}\n', mode=0o755)
    site.use(f'log = "{site.ours}"', 'pass_on = "jobcomp/script"')
    site.extra_slurm_conf["JobCompLoc"] = str(script)
    site.write_slurm_conf()
    site.restart_slurmctld()
    jobs = [site.sbatch("sb-alice", "--time=1", script="true") for _ in range(10)]
    for job in jobs:
        site.wait_job(job)
    wait_until(lambda: seen.exists() and len(seen.read_text().splitlines()) >= 10, 30, "10 records")
    ended = sorted(seen.read_text().splitlines())
    assert ended == sorted(f"JobId={job} COMPLETED" for job in jobs)
    assert all(site.logged(job, site.ours) for job in jobs)
