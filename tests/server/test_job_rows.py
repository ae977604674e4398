# SPDX-License-Identifier: BSD-3-Clause
"""A job's row by our own SQL is what Django's models say it is, on either database."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from .conftest import PostgreSQL
from .running_bank import RunningBank, job

_SCRIPT = """
import json, sys
import django

django.setup()
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from slurm_banking.server import job_rows
from slurm_banking.server.models import Job

token, body = sys.argv[1:]
values = json.loads(body)
kept = Job.objects.get(jobslurmid=values["jobslurmid"])
*_, read = job_rows.context(values["userid"], kept.account_id, values["jobslurmid"])
fields = [field.attname for field in Job._meta.concrete_fields]
differ = [name for name in fields if getattr(read, name) != getattr(kept, name)]
with CaptureQueriesContext(connection) as asked:
    answer = Client().put(
        f"/api/jobs/{values['jobslurmid']}/", body, content_type="application/json",
        HTTP_HOST="127.0.0.1", HTTP_AUTHORIZATION=f"Token {token}",
    )
written = [one["sql"] for one in asked if one["sql"].lstrip().startswith(("UPDATE", "INSERT"))]
nobody = job_rows.context("none", None, values["jobslurmid"])[0], job_rows.context("none", None, "none")[3]
print(json.dumps([differ, answer.status_code, written, nobody]))
"""

FIELDS: dict[str, Any] = {
    "submitdate": "2026-11-01T10:00:00.123456Z",
    "startdate": "2026-11-01T12:00:00+01:00",
    "enddate": "2026-11-01T12:00:00Z",
    "qos": None,
    "jobstatus": 'of "many" %s words; ümläut',
    "nodes": [{"name": "n0001.ü"}, {"name": "n0002"}],
    "num_cpus": 2**40,
    "num_req_nodes": 0,
    "raw_time": 1.5,
    "cpu_time": -0.1,
}


def ask(bank: RunningBank, values: dict[str, Any]) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, bank.keys["relay"], json.dumps(values)],
        env={**bank.environment, "DJANGO_SETTINGS_MODULE": "slurm_banking.server.settings"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_row_reads_as_the_model_has_it_and_the_same_again_writes_nothing(
    bank: RunningBank,
) -> None:
    account = bank.account()
    for values in (
        job(f"{account.name}:1", account, "12.34", **FIELDS),
        {"jobslurmid": f"{account.name}:2", "userid": account.uid, "accountid": account.name},
    ):
        assert bank.put(values).status_code == 200
        assert ask(bank, values) == [[], 200, [], [None, None]]


def test_a_row_is_updated_as_the_model_would_have_it(bank: RunningBank) -> None:
    account = bank.account()
    begun = job(f"{account.name}:1", account, "0.00")
    ended = job(f"{account.name}:1", account, "12.34", **FIELDS)
    assert bank.post(begun).status_code == 201
    assert bank.put(ended).status_code == 200
    shown = bank.get(f"jobs/{account.name}:1/")
    assert {key: shown[key] for key in ("qos", "jobstatus", "nodes", "num_cpus", "cpu_time")} == {
        key: FIELDS[key] for key in ("qos", "jobstatus", "nodes", "num_cpus", "cpu_time")
    }
    assert (
        shown["submitdate"] == FIELDS["submitdate"] and shown["startdate"] == "2026-11-01T11:00:00Z"
    )
    assert ask(bank, ended) == [[], 200, [], [None, None]]
    written = " ".join(ask(bank, {**ended, "amount": "12.35"})[2])
    assert "UPDATE bank_job" in written and "INSERT INTO bank_entry" in written


def test_a_bank_that_prepares_no_statements_takes_jobs_as_well(postgresql: PostgreSQL) -> None:
    url = postgresql.create_database("unprepared") + "&prepare=no"
    with RunningBank(url) as bank:
        account = bank.account()
        for number in range(8):
            assert bank.put(job(f"{account.name}:{number}", account, "1.00")).status_code == 200
            assert bank.can_submit("1", account).json()["success"]
        assert str(bank.usage(account)) == "8.00" and bank.verified()
