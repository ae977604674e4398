# SPDX-License-Identifier: BSD-3-Clause
"""The generated client speaks to the bank, and understands every answer."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import requests

from .running_bank import RunningBank, job

client_module = pytest.importorskip(
    "mybrc_client.client", reason="the client has not been generated"
)


def operation(path: str) -> Any:
    return importlib.import_module(f"mybrc_client.api.{path}")


def test_every_operation_of_the_client_is_answered_and_parsed(bank: RunningBank) -> None:
    from mybrc_client.models.job import Job

    account = bank.account(su="50")
    sent = job(bank.fresh("j"), account, "7.50", nodes=[{"name": "n1"}], num_cpus=4, raw_time=1.0)
    with requests.Session() as session:
        client = client_module.AuthenticatedClient(bank.url, session, token=bank.keys["relay"])
        created = operation("jobs.create_job").sync_detailed(
            client=client, body=Job.from_dict(sent)
        )
        assert created.status_code == 201 and created.parsed.jobslurmid == sent["jobslurmid"]
        again = operation("jobs.create_job").sync_detailed(client=client, body=Job.from_dict(sent))
        assert again.status_code == 400 and "jobslurmid" in again.parsed.to_dict()
        updated = operation("jobs.update_job").sync_detailed(
            sent["jobslurmid"], client=client, body=Job.from_dict({**sent, "amount": "8.00"})
        )
        assert updated.status_code == 200 and str(updated.parsed.amount) == "8.00"
        got = operation("jobs.retrieve_job").sync_detailed(sent["jobslurmid"], client=client)
        assert got.status_code == 200 and got.parsed.to_dict() == updated.parsed.to_dict()
        none = operation("jobs.retrieve_job").sync_detailed("none", client=client)
        assert none.status_code == 404 and none.parsed.detail
        for cost, fits in (("42.00", True), ("42.01", False)):
            asked = operation("jobs.can_submit_job").sync_detailed(
                cost, account.uid, account.name, client=client
            )
            assert asked.status_code == 200 and asked.parsed.success is fits
        unknown = operation("jobs.can_submit_job").sync_detailed("1", "1", "none", client=client)
        assert unknown.status_code == 400 and unknown.parsed.success is False
        jobs = operation("jobs.list_jobs").sync_detailed(client=client, account=account.name)
        assert jobs.status_code == 200 and (jobs.parsed.count, float(jobs.parsed.total_amount)) == (
            1,
            8.0,
        )
        for path in (
            "allocations.list_allocations",
            "allocation_users.list_allocation_users",
            "projects.list_projects",
            "users.list_users",
            "partitions.list_partitions",
        ):
            listed = operation(path).sync_detailed(client=client)
            assert listed.status_code == 200, path
            assert listed.parsed.count == len(bank.get(path.split(".")[0] + "/")["results"]) or (
                listed.parsed.count > 100
            )
        (row,) = (
            operation("allocations.list_allocations")
            .sync_detailed(client=client, project=[account.name])
            .parsed.results
        )
        (units,) = (
            operation("allocations.list_allocation_attributes")
            .sync_detailed(row.id, client=client)
            .parsed.results
        )
        assert (str(units.value), str(units.usage.value)) == ("50.00", "8.00")
        (member,) = (
            operation("allocation_users.list_allocation_users")
            .sync_detailed(client=client, project=[account.name], user=[account.user])
            .parsed.results
        )
        (units,) = (
            operation("allocation_users.list_allocation_user_attributes")
            .sync_detailed(member.id, client=client)
            .parsed.results
        )
        assert (str(units.value), str(units.usage.value)) == ("50.00", "8.00")
        stranger = client_module.AuthenticatedClient(bank.url, session, token="0" * 40)
        refused = operation("users.list_users").sync_detailed(client=stranger)
        assert refused.status_code == 401 and refused.parsed.detail
