# SPDX-License-Identifier: BSD-3-Clause
"""What an unprivileged user tries, and what it does to the ledger: nothing that it should not."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig.banked import CHECKOUT, BankedCluster
from tests.rig.cluster import distribution_plugin_dir, wait_until

pytestmark = pytest.mark.timeout(240)

LATER = "--begin=now+1hour"


@pytest.fixture(autouse=True)
def books_agree_after(site: BankedCluster) -> Iterator[None]:
    yield
    site.end_all()


def entries(site: BankedCluster, account: str) -> list[dict[str, Any]]:
    return site.ledger_rows("SELECT * FROM entries WHERE account = ? ORDER BY seq", [account])


def lien_of(site: BankedCluster, job: int) -> dict[str, Any]:
    def rows() -> list[dict[str, Any]]:
        return site.ledger_rows(
            "SELECT * FROM liens WHERE job_id = ? AND state = 'confirmed'", [job]
        )

    wait_until(rows, 20, f"a confirmed lien of job {job}", 0.2)
    return rows()[0]


def pending_job(site: BankedCluster, user: str = "sb-alice", *options: str) -> int:
    job = site.sbatch(user, "--time=2", LATER, *options)
    lien_of(site, job)
    return job


def test_nobody_sets_aside_in_an_account_that_is_not_theirs(site: BankedCluster) -> None:
    before = entries(site, "fc_alpha")
    for command in (
        ["sbatch", "-A", "fc_alpha", "--time=1", "--wrap=true"],
        ["sbatch", "-A", "FC_ALPHA", "--time=1", "--wrap=true"],
        ["srun", "-A", "fc_alpha", "--time=1", "true"],
        ["salloc", "-A", "fc_alpha", "--time=1", "true"],
        ["sbatch", "--test-only", "-A", "fc_alpha", "--time=1", "--wrap=true"],
    ):
        answer = site.run_as("sb-mallory", command)
        assert answer.returncode != 0, command
    mine = pending_job(site, "sb-mallory", "--time=1")
    moved = site.run_as("sb-mallory", ["scontrol", "update", f"job={mine}", "Account=fc_alpha"])
    assert moved.returncode != 0
    assert entries(site, "fc_alpha") == before


def test_nobody_touches_the_lien_of_anothers_job(site: BankedCluster) -> None:
    job = pending_job(site)
    before = entries(site, "fc_alpha"), lien_of(site, job)
    for change in (
        "TimeLimit=1",
        "TimeLimit=600",
        "NumCPUs=8",
        "Partition=debug",
        "Account=fc_gamma",
    ):
        answer = site.run_as("sb-mallory", ["scontrol", "update", f"job={job}", change])
        assert answer.returncode != 0, change
    assert (entries(site, "fc_alpha"), lien_of(site, job)) == before
    assert not site.open_liens("fc_gamma")


def test_an_update_that_slurm_refuses_lowers_nothing(site: BankedCluster) -> None:
    job = site.sbatch("sb-alice", "--time=10", script="sleep 30")
    site.wait_job(job, "RUNNING")

    def run() -> dict[str, Any]:
        return site.ledger_rows("SELECT * FROM runs WHERE job_id = ?", [job])[0]

    wait_until(
        lambda: site.ledger_rows("SELECT 1 FROM runs WHERE job_id = ?", [job]), 20, "the run"
    )
    wait_until(lambda: run()["ledger_csu"] == 6000, 20, "the run's share")
    answer = site.run_as(
        "sb-alice", ["scontrol", "update", f"job={job}", "TimeLimit=1", "QOS=nosuchqos"]
    )
    assert answer.returncode != 0
    assert site.job(job)["TimeLimit"] == "00:10:00"
    until = time.monotonic() + 6
    while time.monotonic() < until:
        assert run()["ledger_csu"] >= 6000
        time.sleep(0.2)
    # and one that asks for more, refused as well, holds more only until the queue was seen
    answer = site.run_as("sb-alice", ["scontrol", "update", f"job={job}", "TimeLimit=20"])
    assert answer.returncode != 0, "only an operator raises a running job's limit"
    wait_until(lambda: run()["ledger_csu"] == 6000, 30, "the share to fall back", 0.2)


def test_a_copied_token_is_worth_nothing(site: BankedCluster) -> None:
    victim = pending_job(site)
    token = site.job(victim)["AdminComment"]
    assert token.startswith("slurm_banking=")
    before = lien_of(site, victim)
    copy = site.sbatch("sb-bob", "--time=2", LATER, f"--comment={token}")
    own = lien_of(site, copy)
    assert own["lien_id"] != before["lien_id"] and own["amount_csu"] == 1200
    assert site.run_as("sb-bob", ["scontrol", "update", f"job={copy}", f"AdminComment={token}"]).returncode != 0  # fmt: skip
    assert site.run_as("sb-alice", ["scontrol", "update", f"job={victim}", "AdminComment=x"]).returncode != 0  # fmt: skip
    site.scancel("sb-bob", str(copy))
    wait_until(lambda: len(site.open_liens("fc_alpha")) == 1, 20, "the copy's own lien to end", 0.2)
    time.sleep(3)
    after = lien_of(site, victim)
    assert (after["lien_id"], after["amount_csu"]) == (before["lien_id"], before["amount_csu"])


@pytest.fixture(scope="module")
def forger(site: BankedCluster) -> Path:
    """The API client, compiled against the headers of Slurm's source."""
    variables = [f"SLURM_SRC={tree}" for tree in [os.environ.get("SLURM_SRC")] if tree]
    tree = subprocess.run(
        ["make", "-s", "-C", str(CHECKOUT / "csrc"), "slurm-tree", *variables],
        capture_output=True, text=True, check=True, timeout=300,
    ).stdout.split()[-1]  # fmt: skip
    library = distribution_plugin_dir() / "libslurmfull.so"
    program = site.root / "forger"
    subprocess.run(
        ["gcc", "-isystem", tree, "-o", program, CHECKOUT / "tests/live/submit_with_comment.c", library,
         f"-Wl,-rpath,{library.parent}"],
        check=True, timeout=60,
    )  # fmt: skip
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("kind", ["copied", "made up", "hidden behind another"])
def test_a_forged_token_in_the_admin_comment_is_worth_nothing(
    site: BankedCluster, forger: Path, kind: str
) -> None:
    victim = pending_job(site)
    real = site.job(victim)["AdminComment"]
    token = {
        "copied": real,
        "made up": f"slurm_banking={'0' * 32}:0:x",
        "hidden behind another": f"note;slurm_banking={'0' * 32}:0:x;{real}",
    }[kind]
    before = lien_of(site, victim)
    answer = site.run_as("sb-bob", [str(forger), token, "2"])
    if answer.returncode == 0:
        job = int(answer.stdout)

        def charged() -> list[dict[str, Any]]:
            return site.ledger_rows(
                "SELECT * FROM runs WHERE job_id = ? AND state = 'ended'", [job]
            )

        wait_until(charged, 30, "the forger's own run to be charged", 0.2)
        (run,) = charged()
        assert run["user_id"] == site.uid("sb-bob") and run["lien_csu"] == 1200
        assert run["lien_id"] != before["lien_id"]
    time.sleep(3)
    after = lien_of(site, victim)
    assert (after["lien_id"], after["amount_csu"]) == (before["lien_id"], before["amount_csu"])


@pytest.mark.parametrize("how", ["argument", "comment", "name", "environment"])
def test_saying_test_only_somewhere_frees_no_job(site: BankedCluster, how: str) -> None:
    script = site.home("sb-alice") / "job.sh"
    script.write_text("#!/bin/sh\nsleep 2\n")
    script.chmod(0o755)
    command = {
        "argument": ["sbatch", "--parsable", "--time=1", str(script), "--test-only"],
        "comment": ["sbatch", "--parsable", "--time=1", "--comment=--test-only", str(script)],
        "name": ["sbatch", "--parsable", "--time=1", "--job-name=--test-only", str(script)],
        "environment": ["env", "X=--test-only", "sbatch", "--parsable", "--time=1", str(script)],
    }[how]
    answer = site.run_as("sb-alice", command, check=True)
    job = int(answer.stdout)

    def charged() -> list[dict[str, Any]]:
        return site.ledger_rows("SELECT * FROM runs WHERE job_id = ? AND state = 'ended'", [job])

    wait_until(charged, 30, "the run to be charged", 0.2)
    (run,) = charged()
    assert run["lien_csu"] == 600 and run["lien_id"] is not None


def test_test_only_itself_leaves_nothing(site: BankedCluster) -> None:
    answer = site.run_as("sb-alice", ["sbatch", "--test-only", "--time=1", "--wrap=true"])
    assert answer.returncode == 0, answer.stderr
    # the fixture waits until the lien that the question opened has expired
