# SPDX-License-Identifier: BSD-3-Clause
"""A real cluster's books: they agree after jobs of every kind, and what is done to them is found and named."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig.banked import FUNDS, BankedCluster
from tests.rig.cluster import OPERATOR, wait_until

pytestmark = pytest.mark.timeout(300)

ONE = "--time=5"
USER = "sb-alice"


def compare(site: BankedCluster, *arguments: str) -> tuple[int, dict[str, Any]]:
    result = site.banking("reconcile", "--until", "now", "--json", *arguments, check=False, timeout=120)  # fmt: skip
    assert result.stdout.startswith("{"), result.stderr
    return result.returncode, json.loads(result.stdout)


def make_history(site: BankedCluster) -> None:
    """Arrays, het jobs, failures, cancellations by whom may, suspensions, resizes, requeues in and after a run."""
    root = lambda *words: site.run_as("root", list(words), check=True)  # noqa: E731
    finished = site.sbatch(USER, ONE, "--requeue", script="true")
    resized = site.sbatch(USER, ONE, "-N2", script="sleep 8")
    again = site.sbatch(USER, ONE, "--requeue", script="sleep 6")
    suspended = site.sbatch("sb-bob", ONE, script="sleep 5")
    gone = [site.sbatch(USER, ONE, script="sleep 60") for _ in range(2)]
    for job in (resized, again, suspended, *gone):
        site.wait_job(job, "RUNNING")
    root("scontrol", "suspend", str(suspended))
    time.sleep(1.5)
    root("scontrol", "update", f"job={resized}", "NumNodes=1")
    site.requeue(USER, again)
    site.scancel(USER, str(gone[0]))
    site.scancel(OPERATOR, str(gone[1]))
    site.wait_job(finished, "COMPLETED")
    site.wait_accounted(finished)
    time.sleep(2)
    root("scontrol", "requeue", str(finished))
    root("scontrol", "resume", str(suspended))
    later = site.sbatch(USER, ONE, "--begin=now+1hour")
    site.scancel(USER, str(later))
    site.sbatch(USER, ONE, "-n2", ":", "-n1", script="sleep 1")
    site.sbatch(USER, ONE, "--array=1-90", script="true")
    site.sbatch("sb-bob", ONE, "--array=1-20", script="exit 3")
    site.sbatch("sb-carol", ONE, "--array=1-15", script="sleep 1")
    for job in range(12):
        site.sbatch(USER, ONE, script=f"sleep {job % 3}")
    time.sleep(1.5)
    root("scontrol", "update", f"job={finished}", "StartTime=now")


@pytest.fixture(scope="module")
def site() -> Iterator[BankedCluster]:
    with BankedCluster(funds=dict.fromkeys(FUNDS, "100000")) as running:
        yield running


@pytest.fixture(scope="module")
def quiet(site: BankedCluster) -> BankedCluster:
    """All has ended, and is delivered; and there is no relay that mends what the tests do."""
    make_history(site)
    wait_until(lambda: not site.squeue(), 120, "the queue to be empty", 0.3)
    wait_until(
        lambda: (
            not site.ledger_rows(
                "SELECT 1 FROM outbox UNION SELECT 1 FROM runs WHERE state = 'running'"
            )
            and not site.open_liens()
        ),
        90,
        "every run to have ended, and to be delivered",
        0.3,
    )
    time.sleep(6)  # slurmdbd is asked every five
    wait_until(lambda: not site.ledger_rows("SELECT 1 FROM outbox"), 30, "the outbox to be empty")
    pid = site.relay_pid()
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: site.relay_pid() is None, 10, "the relay to be gone")
    return site


def test_jobs_of_every_kind_agree(quiet: BankedCluster) -> None:
    status, report = compare(quiet)
    told = [one["text"] for one in report["findings"]]
    assert (status, told) == (0, []), report
    rows = quiet.ledger_rows("SELECT slurm_state, restart_count, inputs FROM runs")
    assert report["runs"] >= len(rows) >= 140
    states = {row["slurm_state"] for row in rows}
    assert {"COMPLETED", "FAILED", "CANCELLED", "REQUEUED"} <= states
    assert any(row["restart_count"] for row in rows)
    assert any("segments" in json.loads(row["inputs"]) for row in rows)
    assert report["not_compared"].get("requeued_after_end", 0) <= 1


def test_each_source_finds_the_same(quiet: BankedCluster) -> None:
    reports = [compare(quiet, "--source", source) for source in ("sacct", "sacct-json")]
    seen = [(status, report["runs"], report["rows"]) for status, report in reports]
    assert seen[0] == seen[1] and seen[0][0] == 0


def test_injuries_of_every_kind_are_found_and_named(quiet: BankedCluster) -> None:
    site = quiet
    runs = site.ledger_rows(
        "SELECT * FROM runs WHERE state = 'ended' AND charge_csu > 0 AND slurm_state = 'FAILED' ORDER BY run_id"
    )
    if len(runs) < 10:
        runs += site.ledger_rows(
            "SELECT * FROM runs WHERE charge_csu > 0 AND slurm_state = 'COMPLETED' ORDER BY run_id DESC LIMIT 20"
        )
    injured = iter(runs)
    expected: list[tuple[str, str, int]] = []

    def next_run(kind: str, where: str) -> dict[str, Any]:
        run = next(injured)
        expected.append((kind, where, run["job_id"]))
        return run

    statements: list[tuple[str, list[Any]]] = [
        ("DROP TRIGGER runs_no_delete", []),
        ("DELETE FROM runs WHERE run_id = ?", [next_run("missing", "ledger")["run_id"]]),
        (
            "UPDATE runs SET charge_csu = charge_csu + 9, ledger_csu = ledger_csu + 9 WHERE run_id = ?",
            [next_run("mischarged", "ledger")["run_id"]],
        ),
        (
            "UPDATE runs SET state = 'running', charge_csu = NULL, end_time = NULL WHERE run_id = ?",
            [next_run("still_running", "ledger")["run_id"]],
        ),
    ]
    for kind, changes in (
        ("doubled", {"restart_count": 7}),
        ("unknown", {"job_id": 900_001, "bank_job_id": None}),
    ):
        run = next_run(kind, "ledger")
        copy = {**run, "run_id": None, **changes}
        if kind == "unknown":
            expected[-1] = (kind, "ledger", 900_001)
        names = ", ".join(copy)
        marks = ", ".join("?" * len(copy))
        statements.append((f"INSERT INTO runs ({names}) VALUES ({marks})", list(copy.values())))
    _in_the_ledger(site, statements)

    jobs = site.bank_jobs()
    row = jobs[next_run("mischarged", "bank")["bank_job_id"]]
    _at_the_bank(site, {**row, "amount": "77.77"})
    run = next_run("doubled", "bank")
    row = jobs[run["bank_job_id"]]
    _at_the_bank(site, {**row, "jobslurmid": f"{run['bank_job_id']}-{run['submit_time']}"})
    row = jobs[next(injured)["bank_job_id"]]
    _at_the_bank(site, {**row, "jobslurmid": "900002"})
    expected.append(("unknown", "bank", 900_002))
    with sqlite3.connect(
        site.root / "bank" / "bank.sqlite3", timeout=20, isolation_level=None
    ) as bank:
        for kind, change in (
            ("still_running", "enddate = NULL"),
            ("wrong_holder", "user_id = (SELECT MAX(id) FROM bank_clusteruser)"),
        ):
            run = next_run(kind, "bank")
            done = bank.execute(
                f"UPDATE bank_job SET {change} WHERE jobslurmid = ?", (run["bank_job_id"],)
            )
            assert done.rowcount == 1
    bank.close()

    status, report = compare(site, "--since", "1d")
    found = sorted((one["kind"], one["where"], one["job_id"]) for one in report["findings"])
    assert (status, found) == (1, sorted(expected)), [one["text"] for one in report["findings"]]
    said = site.banking("reconcile", "--until", "now", "--since", "1d", check=False)
    assert said.returncode == 1
    assert "still_running" in said.stdout and "SU TOO MUCH" in said.stdout


def test_a_bank_that_does_not_answer_is_no_agreement(quiet: BankedCluster) -> None:
    (quiet.etc_dir / "bank-token").rename(quiet.etc_dir / "bank-token.kept")
    try:
        result = quiet.banking("reconcile", check=False)
        assert (result.returncode, result.stdout) == (2, "")
        assert "token_file" in result.stderr
    finally:
        (quiet.etc_dir / "bank-token.kept").rename(quiet.etc_dir / "bank-token")


def _in_the_ledger(site: BankedCluster, statements: list[tuple[str, list[Any]]]) -> None:
    """As its owner, past everything that protects the file."""
    script = (
        "import json,sqlite3,sys\n"
        "q=json.load(sys.stdin)\n"
        "c=sqlite3.connect(q['path'],timeout=10,isolation_level=None)\n"
        "for s,v in q['statements']:\n"
        "    assert c.execute(s,v).rowcount in (-1,1), s\n"
    )
    asked = {"path": str(site.state_dir / "ledger.sqlite3"), "statements": statements}
    subprocess.run(
        ["/usr/bin/python3", "-I", "-c", script],
        input=json.dumps(asked),
        user="slurm",
        group="slurm",
        extra_groups=[],
        text=True,
        timeout=30,
        cwd="/",
        check=True,
    )


def _at_the_bank(site: BankedCluster, row: dict[str, Any]) -> None:
    import requests

    token = (site.etc_dir / "bank-token").read_text().split()[-1]
    answer = requests.put(
        f"http://127.0.0.1:{site.bank_port}/api/jobs/{row['jobslurmid']}/",
        json=row,
        headers={"Authorization": f"Token {token}"},
        timeout=10,
    )
    assert answer.status_code == 200, answer.text
