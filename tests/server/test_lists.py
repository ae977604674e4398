# SPDX-License-Identifier: BSD-3-Clause
"""What the office set up, as the portal's clients read it."""

from __future__ import annotations

import pytest

from .running_bank import DAY, TODAY, RunningBank, job


def test_allocation_of_an_account_with_its_service_units(bank: RunningBank) -> None:
    account = bank.account(su="1234.5")
    bank.put(job(bank.fresh("j"), account, "0.07"))
    (row,) = bank.get("allocations/", project=account.name, resources="Compute")["results"]
    assert row["project"] == account.name
    assert row["resources"] == [{"name": "Compute"}]
    assert (row["status"], row["start_date"], row["end_date"]) == (
        "Active",
        str(TODAY - 30 * DAY),
        str(TODAY + 30 * DAY),
    )
    attributes = bank.get(f"allocations/{row['id']}/attributes/", type="Service Units")
    (attribute,) = attributes["results"]
    assert attribute == {
        "id": attribute["id"],
        "allocation_attribute_type": "Service Units",
        "allocation": row["id"],
        "value": "1234.50",
        "usage": {"allocation_attribute": attribute["id"], "value": "0.07"},
    }
    assert bank.get(f"allocations/{row['id']}/") == row
    assert bank.get(f"allocations/{row['id']}/attributes/{attribute['id']}/") == attribute


def test_renewed_account_shows_the_old_period_expired_and_the_new_active(bank: RunningBank) -> None:
    account = bank.account(su="")
    bank.shell(
        "allocation",
        "add",
        account.name,
        "1",
        "--start",
        str(TODAY - 9 * DAY),
        "--end",
        str(TODAY - DAY),
    )
    bank.shell("allocation", "renew", account.name, "2", "--end", str(TODAY + DAY))
    bank.shell("allocation", "renew", account.name, "3", "--end", str(TODAY + 9 * DAY))
    rows = bank.get("allocations/", project=account.name)["results"]
    assert [(row["status"], row["start_date"]) for row in rows] == [
        ("Expired", str(TODAY - 9 * DAY)),
        ("Active", str(TODAY)),
        ("New", str(TODAY + 2 * DAY)),
    ]


def test_member_who_has_used_nothing_is_listed_with_their_limit(bank: RunningBank) -> None:
    account = bank.account(su="100", limit="12.50")
    plain = bank.member(account.name)
    (row,) = bank.get("allocation_users/", project=account.name, user=account.user)["results"]
    assert (row["user"], row["project"], row["status"]) == (account.user, account.name, "Active")
    (attribute,) = bank.get(f"allocation_users/{row['id']}/attributes/", type="Service Units")[
        "results"
    ]
    assert (attribute["value"], attribute["usage"]["value"]) == ("12.50", "0.00")
    (row,) = bank.get("allocation_users/", user=plain.user, resources="Compute")["results"]
    (attribute,) = bank.get(f"allocation_users/{row['id']}/attributes/")["results"]
    assert attribute["value"] == "100.00"
    bank.shell("user", "remove", plain.user, "--account", account.name)
    assert bank.get(f"allocation_users/{row['id']}/")["status"] == "Removed"


def test_users_are_found_by_name_with_their_uid(bank: RunningBank) -> None:
    one, other = bank.account(), bank.account()
    found = bank.get("users/", username=[one.user, other.user])
    assert {row["username"]: row["profile"]["cluster_uid"] for row in found["results"]} == {
        one.user: one.uid,
        other.user: other.uid,
    }
    assert bank.get("users/", username="nobody")["count"] == 0


def test_projects_and_their_members(bank: RunningBank) -> None:
    account = bank.account()
    (row,) = bank.get("projects/", name=account.name, status="Active")["results"]
    assert row["name"] == account.name and isinstance(row["status"], int)
    (member,) = bank.get(f"projects/{row['id']}/users/")["results"]
    (user,) = bank.get("users/", username=account.user)["results"]
    assert (member["user"], member["project"], member["status"]) == (
        user["id"],
        row["id"],
        "Active",
    )
    assert bank.get(f"projects/{row['id']}/users/", status="Removed")["count"] == 0


def test_partitions_may_be_none(bank: RunningBank) -> None:
    assert bank.get("partitions/") == {"count": 0, "next": None, "previous": None, "results": []}


@pytest.mark.parametrize(
    "path",
    [
        "allocations/?project=none",
        "allocations/?resources=none",
        "allocation_users/?user=none",
        "allocation_users/?project=none",
        "projects/?status=none",
        "allocations/{id}/attributes/?type=none",
    ],
)
def test_filter_by_what_does_not_exist_is_400_and_named(bank: RunningBank, path: str) -> None:
    account = bank.account()
    (row,) = bank.get("allocations/", project=account.name)["results"]
    answer = bank.request("GET", path.format(id=row["id"]))
    assert answer.status_code == 400
    assert list(answer.json()) == [path.partition("?")[2].partition("=")[0]]


@pytest.mark.parametrize(
    "path",
    [
        "allocations/0/",
        "allocations/x/",
        "allocations/9/attributes/x/",
        "users/99999999999999999999/",
        "projects/0/users/",
    ],
)
def test_row_that_does_not_exist_is_404(bank: RunningBank, path: str) -> None:
    answer = bank.request("GET", path)
    assert (answer.status_code, list(answer.json())) == (404, ["detail"])
