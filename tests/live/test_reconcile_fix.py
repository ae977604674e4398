# SPDX-License-Identifier: BSD-3-Clause
"""On a real cluster with the bundled bank: one of each injury is found and repaired by the command, and then all agrees."""

from __future__ import annotations

import datetime
import json
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

import pytest

from slurm_banking.ledger.rows import LedgerRun
from slurm_banking.relay import books
from tests.live.test_disaster import end_relay, start_relay
from tests.rig.banked import BankedCluster
from tests.rig.cluster import wait_until
from tests.unit import reconcile_world as injuries

pytestmark = pytest.mark.timeout(240)

#: Each is done to a job of its own.
LEDGER = (
    injuries.ledger_never_had_it,
    injuries.ledger_deleted,
    injuries.ledger_altered,
    injuries.ledger_stuck,
    injuries.ledger_moved,
    injuries.ledger_doubled,
    injuries.ledger_made_up,
)

_SQL = """
import json, sqlite3, sys
asked = json.load(sys.stdin)
c = sqlite3.connect(asked["path"], timeout=20, isolation_level=None)
c.execute("PRAGMA synchronous = NORMAL")
if asked["query"] is not None:
    cursor = c.execute(asked["query"], asked["values"])
    names = [column[0] for column in cursor.description]
    print(json.dumps([dict(zip(names, row)) for row in cursor]))
else:
    c.execute("BEGIN IMMEDIATE")
    triggers = c.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND sql LIKE '%RAISE(ABORT%'").fetchall()
    for name, _ in triggers:
        c.execute(f"DROP TRIGGER {name}")
    for statement, values in asked["statements"]:
        c.execute(statement, values)
    for _, text in triggers:
        c.execute(text)
    c.execute("COMMIT")
c.close()
"""


class Patient(injuries.World):
    """What the injuries take, on a site."""

    def __init__(self, site: BankedCluster) -> None:
        self.site = site

    def _python(self, **request: Any) -> str:
        path = str(self.site.state_dir / "ledger.sqlite3")
        done = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", _SQL],
            input=json.dumps({"path": path, "query": None, **request}),
            user="slurm",
            group="slurm",
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sql(self, *statements: tuple[str, Sequence[Any]]) -> None:
        self._python(statements=statements)

    def copy_run(self, run_id: int, **changes: Any) -> None:
        (row,) = json.loads(
            self._python(query="SELECT * FROM runs WHERE run_id = ?", values=[run_id])
        )
        values = {**row, "run_id": None, **changes}
        marks = ", ".join("?" for _ in values)
        self.sql((f"INSERT INTO runs ({', '.join(values)}) VALUES ({marks})", list(values.values())))  # fmt: skip

    def run(self, job_id: int) -> LedgerRun:
        query = "SELECT * FROM runs WHERE job_id = ? AND slurm_state != 'STRUCK'"
        (row,) = self.site.ledger_rows(query, [job_id])
        return LedgerRun(**{**row, "inputs": json.loads(row["inputs"])})

    # -- the bank, through its API --

    def put(self, row: dict[str, Any], **changes: Any) -> None:
        token = (self.site.etc_dir / "bank-token").read_text().strip()
        body = {name: value for name, value in row.items() if name != "nodes"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.site.bank_port}/api/jobs/{changes.get('jobslurmid', row['jobslurmid'])}/",
            data=json.dumps({**body, **changes}).encode(),
            headers={
                "Authorization": token if token.startswith("Token ") else f"Token {token}",
                "Content-Type": "application/json",
            },
            method="PUT",
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status in (200, 201)


def reconcile(site: BankedCluster, *words: str) -> tuple[int, dict[str, Any]]:
    done = site.banking(
        "reconcile", "--since", "1d", "--until", datetime.datetime.now().isoformat(timespec="seconds"), "--json", *words,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout.startswith("{"), done.stderr
    return done.returncode, json.loads(done.stdout)


def found(answer: dict[str, Any]) -> list[tuple[str, str, int | None]]:
    return sorted((one["kind"], one["where"], one["job_id"]) for one in answer["findings"])


def test_one_of_each_injury_is_repaired_and_the_second_look_finds_nothing(
    site: BankedCluster,
) -> None:
    jobs = [
        site.sbatch(("sb-alice", "sb-bob")[number % 2], "--time=1", script="sleep 1")
        for number in range(len(LEDGER) + 4)
    ]
    wait_until(lambda: not site.squeue(), 60, "the jobs to end", 0.3)
    site.settle()
    status, answer = reconcile(site)
    assert (status, found(answer)) == (0, []), answer

    end_relay(site)  # it would end by itself what is stuck, before anybody has looked
    patient = Patient(site)
    expected = []
    for job, injury in zip(jobs, LEDGER):
        kind, where = injury(patient, job)
        expected.append((kind, where, 900_000 + job if kind == "unknown" else None if kind == "doubled" else job))  # fmt: skip
    rows = site.bank_jobs()
    altered, stuck, doubled, made_up = jobs[len(LEDGER) :]
    patient.put(rows[str(altered)], amount="7.77")
    patient.put(rows[str(stuck)], amount="9.99", enddate=None, jobstatus="RUNNING")
    patient.put(rows[str(doubled)], jobslurmid=f"{doubled}-1")
    patient.put(rows[str(made_up)], jobslurmid=str(800_000 + made_up))
    expected += [
        ("mischarged", "bank", altered), ("still_running", "bank", stuck), ("doubled", "bank", doubled),
        ("unknown", "bank", 800_000 + made_up),
    ]  # fmt: skip

    status, answer = reconcile(site)
    seen = found(answer)
    assert status == 1
    for kind, where, job in expected:
        assert any((kind, where) == one[:2] and job in (None, one[2]) for one in seen), (
            kind, where, job, seen,
        )  # fmt: skip
    assert answer["repairs"] and "result" not in answer["repairs"][0]  # proposed, not done
    assert found(reconcile(site)[1]) == seen

    words = ("--fix", "--fix-unknown", "--reason", "found in the nightly look")
    began = time.monotonic()
    status, answer = reconcile(site, *words)
    assert (status, answer["done"], answer["failed"]) == (1, len(LEDGER), 4), answer["repairs"]
    start_relay(site)  # whatever concerns the bank, it does
    status, answer = reconcile(site, *words)
    print(f"repaired in {time.monotonic() - began:.1f} s")
    assert (status, answer["done"], answer["failed"]) == (0, 4, 0), answer["repairs"]
    wait_until(
        lambda: site.ledger_rows("SELECT COUNT(*) AS n FROM outbox")[0]["n"] == 0, 30, "the bank to be told", 0.3
    )  # fmt: skip
    status, answer = reconcile(site)
    assert (status, found(answer)) == (0, []), answer["findings"]
    status, again = reconcile(site, "--fix", "--reason", "again")
    assert status == 0 and not again["repairs"]
    assert site.banking("ledger", "verify", check=False).returncode == 0

    sacct = site.sacct_costs()
    charged = {
        (row["job_id"], row["submit_time"]): row["charge_csu"]
        for row in site.ledger_rows("SELECT * FROM runs WHERE state = 'ended' AND charge_csu != 0")
    }
    assert charged == {key: int(cost.scaleb(2)) for key, cost in sacct.items() if cost}
    why = site.banking("why", str(jobs[2]), user="root").stdout
    assert "found in the nightly look" in why


def test_the_relays_own_look_runs_as_it_is_installed(site: BankedCluster) -> None:
    library = str(site.stage_dir / "lib")
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", books._START, library, str(site.bank_config), site.cluster_name],
        env=site.env(),
        user="slurm", group="slurm", extra_groups=[], capture_output=True, text=True, timeout=60, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["agrees"] and said["counts"]["missing"] == 0 and said["found"] == 0
