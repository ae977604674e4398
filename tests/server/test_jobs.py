# SPDX-License-Identifier: BSD-3-Clause
"""jobs/: the portal's shapes, and counting that does not drift where the portal's does."""

from __future__ import annotations

import datetime
import threading
from decimal import Decimal
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .running_bank import DAY, TODAY, Account, RunningBank, instant, job

FIELDS = (
    "jobslurmid submitdate startdate enddate userid accountid amount jobstatus partition qos nodes "
    "num_cpus num_req_nodes num_alloc_nodes raw_time cpu_time"
).split()
END = {"enddate": instant(TODAY - DAY, 13), "jobstatus": "COMPLETED"}


# -- storing and counting ---------------------------------------------------------------------------------------------


def test_created_job_is_counted_for_account_and_user(bank: RunningBank) -> None:
    account = bank.account()
    created = bank.post(job(bank.fresh("j"), account, "12.34"))
    assert created.status_code == 201
    assert bank.usage(account) == bank.user_usage(account) == Decimal("12.34")


def test_job_comes_back_with_all_its_fields(bank: RunningBank) -> None:
    account = bank.account()
    sent = job(
        bank.fresh("12_"),
        account,
        "0.10",
        **END,
        nodes=[{"name": "n0001"}, {"name": "n0002"}],
        num_cpus=64,
        num_req_nodes=2,
        num_alloc_nodes=2,
        raw_time=2.5,
        cpu_time=160.25,
    )
    assert bank.post(sent).json() == sent
    got = bank.get(f"jobs/{sent['jobslurmid']}/")
    assert list(got) == FIELDS
    assert got == sent


def test_second_post_of_an_id_is_400_and_counts_nothing(bank: RunningBank) -> None:
    account = bank.account()
    sent = job(bank.fresh("j"), account, "5.00")
    assert bank.post(sent).status_code == 201
    again = bank.post(sent)
    assert again.status_code == 400
    assert again.json() == {"jobslurmid": ["job with this jobslurmid already exists."]}
    assert bank.usage(account) == Decimal("5.00")


def test_put_creates_updates_and_repeats_without_drift(bank: RunningBank) -> None:
    account = bank.account()
    sent = job(bank.fresh("j"), account, "40.00")
    for amount, fields in (
        ("40.00", {}),
        ("10.00", {}),
        ("10.00", {}),
        ("40.00", END),
        ("40.00", END),
    ):
        answer = bank.put({**sent, "amount": amount, **fields})
        assert answer.status_code == 200
        assert bank.usage(account) == bank.user_usage(account) == Decimal(amount)


def test_put_without_an_end_counts_like_any_other(bank: RunningBank) -> None:
    """The portal updates the row but not the usage, and then drifts by the difference."""
    account = bank.account()
    sent = job(bank.fresh("j"), account)
    bank.post({**sent, "amount": "40.00"})
    bank.put({**sent, "amount": "10.00"})
    bank.put({**sent, "amount": "40.00", **END})
    assert bank.usage(account) == Decimal("40.00")


def test_fields_that_a_put_leaves_out_stay(bank: RunningBank) -> None:
    account = bank.account()
    sent = job(bank.fresh("j"), account, "3.00", nodes=[{"name": "n1"}], num_cpus=4)
    bank.post(sent)
    short = {key: sent[key] for key in ("jobslurmid", "userid", "accountid")}
    answer = bank.put({**short, "jobstatus": "COMPLETED"})
    assert answer.json() == {
        **sent,
        "jobstatus": "COMPLETED",
        "enddate": None,
        "raw_time": None,
    } | {key: None for key in ("num_req_nodes", "num_alloc_nodes", "cpu_time")}
    assert bank.usage(account) == Decimal("3.00")


def test_nodes_are_replaced_not_added(bank: RunningBank) -> None:
    account = bank.account()
    sent = job(bank.fresh("j"), account, nodes=[{"name": "n1"}, {"name": "n2"}])
    bank.post(sent)
    assert bank.put({**sent, "nodes": [{"name": "n3"}]}).json()["nodes"] == [{"name": "n3"}]


def test_job_that_has_not_started_is_stored_uncounted_and_counted_once_it_has(
    bank: RunningBank,
) -> None:
    account = bank.account()
    sent = job(bank.fresh("j"), account, "7.00")
    assert bank.post({**sent, "startdate": None}).status_code == 201
    assert bank.usage(account) == 0
    bank.put(sent)
    assert bank.usage(account) == Decimal("7.00")


def test_start_before_every_period_is_stored_uncounted_until_corrected(bank: RunningBank) -> None:
    """The portal never counts the corrected one: its difference is zero."""
    account = bank.account(start=TODAY - 2 * DAY)
    sent = job(bank.fresh("j"), account, "9.00")
    early = {"submitdate": instant(TODAY - 5 * DAY), "startdate": instant(TODAY - 4 * DAY)}
    assert bank.post({**sent, **early}).status_code == 201
    assert bank.usage(account) == 0
    bank.put({**sent, **END})
    assert bank.usage(account) == Decimal("9.00")


def test_run_that_ends_after_its_period_is_counted_where_it_started(bank: RunningBank) -> None:
    account = bank.account(su="")
    bank.shell(
        "allocation",
        "add",
        account.name,
        "100",
        "--start",
        str(TODAY - 9 * DAY),
        "--end",
        str(TODAY - DAY),
    )
    bank.shell("allocation", "renew", account.name, "200", "--end", str(TODAY + 9 * DAY))
    sent = job(bank.fresh("j"), account, "50.00")
    assert bank.post(sent).status_code == 201
    assert bank.usages(account.name) == [Decimal("50.00"), 0]
    bank.put({**sent, "amount": "20.00", "enddate": instant(TODAY, 0)})
    assert bank.usages(account.name) == [Decimal("20.00"), 0]
    bank.put(
        {**sent, "startdate": instant(TODAY, 0), "enddate": instant(TODAY, 1), "amount": "20.00"}
    )
    assert bank.usages(account.name) == [0, Decimal("20.00")]
    assert bank.verified()


def test_renewal_inside_a_period_takes_the_jobs_since_along(bank: RunningBank) -> None:
    account = bank.account()
    older = job(bank.fresh("j"), account, "3.00")
    newer = job(bank.fresh("j"), account, "4.00", startdate=instant(TODAY, 0), submitdate=None)
    newer["submitdate"] = instant(TODAY, 0)
    bank.put(older)
    bank.put(newer)
    bank.shell(
        "allocation",
        "renew",
        account.name,
        "500",
        "--start",
        str(TODAY),
        "--end",
        str(TODAY + 90 * DAY),
    )
    assert bank.usages(account.name) == [Decimal("3.00"), Decimal("4.00")]
    assert bank.can_submit("496.01", account).json()["success"] is False
    assert bank.can_submit("496.00", account).json()["success"] is True
    assert bank.verified()


def test_new_job_of_who_may_have_none_is_400(bank: RunningBank) -> None:
    account = bank.account()
    removed = bank.member(account.name)
    bank.shell("user", "remove", removed.user, "--account", account.name)
    stranger = bank.account()
    closed = bank.account()
    bank.shell("allocation", "expire", closed.name)
    cases = [removed, Account(name=account.name, user=stranger.user, uid=stranger.uid), closed]
    for case in cases:
        for send in (bank.post, bank.put):
            answer = send(job(bank.fresh("j"), case))
            assert answer.status_code == 400
            assert list(answer.json()) == ["non_field_errors"]
    bank.shell("user", "add", removed.user, "--account", account.name)
    assert bank.put(job(bank.fresh("j"), removed)).status_code == 200


def test_job_that_the_bank_has_can_end_though_its_user_or_period_did(bank: RunningBank) -> None:
    """The portal refuses, and the estimate stays charged."""
    account = bank.account()
    sent = job(bank.fresh("j"), account, "100.00")
    bank.post(sent)
    bank.shell("user", "remove", account.user, "--account", account.name)
    bank.shell("allocation", "expire", account.name)
    assert bank.put({**sent, "amount": "10.00", **END}).status_code == 200
    assert bank.usage(account) == Decimal("10.00")


def test_job_does_not_change_hands(bank: RunningBank) -> None:
    account = bank.account()
    other = bank.member(account.name)
    elsewhere = bank.account()
    sent = job(bank.fresh("j"), account, "5.00")
    bank.post(sent)
    answer = bank.put({**sent, "userid": other.uid})
    assert (answer.status_code, list(answer.json())) == (400, ["userid"])
    answer = bank.put({**sent, "accountid": elsewhere.name})
    assert (answer.status_code, list(answer.json())) == (400, ["accountid"])
    assert bank.usage(account) == Decimal("5.00")
    assert bank.usage(elsewhere) == 0


def test_body_of_another_job_is_refused(bank: RunningBank) -> None:
    account = bank.account()
    one, other = bank.fresh("j"), bank.fresh("j")
    answer = bank.request("PUT", f"jobs/{one}/", json=job(other, account))
    assert (answer.status_code, list(answer.json())) == (400, ["jobslurmid"])
    assert bank.request("GET", f"jobs/{other}/").status_code == 404


def test_form_encoded_put_is_taken(bank: RunningBank) -> None:
    account = bank.account()
    sent = job(bank.fresh("j"), account, "2.00", **END)
    answer = bank.request("PUT", f"jobs/{sent['jobslurmid']}/", data=sent)
    assert answer.status_code == 200, answer.text
    assert bank.usage(account) == Decimal("2.00")


def test_slash_at_the_end_may_be_missing(bank: RunningBank) -> None:
    account = bank.account()
    sent = job(bank.fresh("j"), account)
    assert bank.request("POST", "jobs", json=sent).status_code == 201
    assert bank.request("GET", "jobs", params={"account": account.name}).json()["count"] == 1


# -- bad input --------------------------------------------------------------------------------------------------------

BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"jobslurmid": ""}, "jobslurmid"),
    ({"jobslurmid": None}, "jobslurmid"),
    ({"jobslurmid": "1" * 151}, "jobslurmid"),
    ({"jobslurmid": "12.batch"}, "jobslurmid"),
    ({"jobslurmid": "12/1"}, "jobslurmid"),
    ({"jobslurmid": "a\0b"}, "jobslurmid"),
    ({"userid": "999999999"}, "userid"),
    ({"userid": None}, "userid"),
    ({"userid": {"a": 1}}, "userid"),
    ({"accountid": "fc_none"}, "accountid"),
    ({"accountid": ["x"]}, "accountid"),
    ({"amount": None}, "amount"),
    ({"amount": ""}, "amount"),
    ({"amount": "-0.01"}, "amount"),
    ({"amount": "1.001"}, "amount"),
    ({"amount": "100000000.01"}, "amount"),
    ({"amount": "NaN"}, "amount"),
    ({"amount": "Infinity"}, "amount"),
    ({"amount": []}, "amount"),
    ({"amount": "9" * 2000}, "amount"),
    ({"submitdate": 1700000000}, "submitdate"),
    ({"startdate": "yesterday"}, "startdate"),
    ({"startdate": "0001-01-01T00:00:00+14:00"}, "startdate"),
    ({"startdate": "9999-12-31T23:59:59-14:00"}, "startdate"),
    ({"jobstatus": "x" * 51}, "jobstatus"),
    ({"partition": "x" * 51}, "partition"),
    ({"qos": "\ud800"}, "qos"),
    ({"nodes": "n1"}, "nodes"),
    ({"nodes": ["n1"]}, "nodes"),
    ({"nodes": [{"name": "n" * 31}]}, "nodes"),
    ({"num_cpus": "many"}, "num_cpus"),
    ({"num_cpus": 2**63}, "num_cpus"),
    ({"raw_time": "nan"}, "raw_time"),
    ({"cpu_time": "1e999"}, "cpu_time"),
    ({"startdate": instant(TODAY - DAY, 9)}, "non_field_errors"),
    ({"enddate": instant(TODAY - DAY, 9)}, "non_field_errors"),
]


@pytest.mark.parametrize(
    ("fields", "named"), BAD_FIELDS, ids=[str(row[0])[:40] for row in BAD_FIELDS]
)
def test_bad_field_is_400_and_named(bank: RunningBank, fields: dict[str, Any], named: str) -> None:
    sent = {**job(bank.fresh("j"), bank.account()), **fields}
    answer = bank.post(sent)
    assert (answer.status_code, list(answer.json())) == (400, [named]), answer.text
    if "jobslurmid" not in fields:
        answer = bank.put(sent)
        assert (answer.status_code, list(answer.json())) == (400, [named]), answer.text


def test_every_missing_field_is_named_at_once(bank: RunningBank) -> None:
    answer = bank.post({})
    assert answer.status_code == 400
    assert set(answer.json()) == {"jobslurmid", "userid", "accountid"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"x"',
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"jobslurmid": NaN}',
        b"1" * 5000,
    ],
    ids=["empty", "open", "list", "string", "null", "bytes", "deep", "nan", "number"],
)
def test_body_that_is_no_job_is_400(bank: RunningBank, body: bytes) -> None:
    answer = bank.request("POST", "jobs/", data=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert isinstance(answer.json(), dict)


def test_wrong_method_type_and_path_are_answered_in_json(bank: RunningBank) -> None:
    cases = [
        ("DELETE", "jobs/1/", {}, 405),
        ("PATCH", "jobs/1/", {}, 405),
        ("PUT", "jobs/", {}, 405),
        ("POST", "jobs/", {"data": "x", "headers": {"Content-Type": "text/xml"}}, 415),
        ("GET", "jobs/none/", {}, 404),
        ("GET", "jobs/12.batch/", {}, 404),
        ("GET", "nowhere/", {}, 404),
        ("GET", "jobs/a%00b/", {}, 400),
        ("GET", "jobs/?user=%00", {}, 400),
    ]
    for method, path, arguments, status in cases:
        answer = bank.request(method, path, **arguments)
        assert (answer.status_code, list(answer.json())) == (status, ["detail"]), path


# -- listing ----------------------------------------------------------------------------------------------------------


def test_list_has_pages_of_100_and_totals_over_all_of_them(bank: RunningBank) -> None:
    account = bank.account()
    with requests.Session() as session:
        session.headers["Authorization"] = f"Token {bank.keys['relay']}"
        for number in range(103):
            sent = job(bank.fresh("j"), account, "0.03", cpu_time=0.5)
            assert session.post(bank.url + "jobs/", json=sent, timeout=30).status_code == 201
            assert number < 103
    assert len(bank.get("jobs/", account=account.name, page_size=5)["results"]) == 5
    assert len(bank.get("jobs/", account=account.name, page_size=5000)["results"]) == 103
    first = bank.get("jobs/", account=account.name)
    assert (first["count"], len(first["results"]), first["previous"]) == (103, 100, None)
    assert (first["total_amount"], first["total_cpu_time"]) == (3.09, 51.5)
    forged = bank.request("GET", f"jobs/?account={account.name}", headers={"Host": "not a host"})
    assert (forged.status_code, list(forged.json())) == (400, ["detail"])
    second = bank.request("GET", first["next"].removeprefix(bank.url)).json()
    assert (len(second["results"]), second["next"]) == (3, None)
    ids = [row["jobslurmid"] for row in first["results"] + second["results"]]
    assert len(set(ids)) == 103
    for page in ("0", "3", "x", "-1"):
        answer = bank.request("GET", "jobs/", params={"account": account.name, "page": page})
        assert (answer.status_code, answer.json()) == (404, {"detail": "Invalid page."})


def test_list_filters(bank: RunningBank) -> None:
    account = bank.account()
    other = bank.member(account.name)
    early, late = instant(TODAY - 3 * DAY), instant(TODAY - DAY)
    rows = [
        job(
            "a" + bank.fresh("j"),
            account,
            "1.00",
            submitdate=early,
            startdate=early,
            partition="savio2",
        ),
        job(
            "b" + bank.fresh("j"),
            account,
            "2.50",
            submitdate=early,
            startdate=late,
            jobstatus="COMPLETED",
        ),
        job("c" + bank.fresh("j"), other, "9.99", submitdate=early, startdate=late),
    ]
    for row in rows:
        assert bank.post(row).status_code == 201
    middle = str(datetime.datetime.fromisoformat(instant(TODAY - 2 * DAY)).timestamp())
    exactly = str(datetime.datetime.fromisoformat(late).timestamp())
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "abc"),
        ({"user": other.user}, "c"),
        ({"user": "nobody"}, ""),
        ({"jobstatus": "RUNNING"}, "ac"),
        ({"partition": "savio2"}, "a"),
        ({"min_amount": "2.5"}, "bc"),
        ({"max_amount": "2.50"}, "ab"),
        ({"min_amount": "2.501", "max_amount": "9.98"}, ""),
        ({"start_time": middle}, "bc"),
        ({"end_time": middle}, "a"),
        ({"start_time": exactly, "end_time": exactly}, "bc"),
        ({"unknown": "x"}, "abc"),
    ]
    for query, expected in cases:
        found = bank.get("jobs/", account=account.name, **query)
        assert "".join(row["jobslurmid"][0] for row in found["results"]) == expected, query
        assert found["count"] == len(expected)
    assert bank.get("jobs/", account="fc_none")["count"] == 0


@pytest.mark.parametrize(
    "query", ["start_time=1e20", "end_time=x", "min_amount=x", "max_amount=NaN", "min_amount=1e99"]
)
def test_filter_that_cannot_be_read_is_400(bank: RunningBank, query: str) -> None:
    answer = bank.request("GET", f"jobs/?{query}")
    assert (answer.status_code, list(answer.json())) == (400, [query.partition("=")[0]])


# -- no drift, whatever happens ---------------------------------------------------------------------------------------

#: Days from today: outside every period, in the ended one, in the current one.
_STARTS = st.sampled_from([None, -40, -15, -11, -10, -3, 0])
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["POST", "PUT", "PUT", "again"]),
        st.integers(0, 2),  # Which job.
        st.integers(0, 10_000),  # Hundredths.
        _STARTS,
        st.booleans(),  # With an end.
        st.booleans(),  # With an amount.
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=_STEPS)
def test_usage_is_the_sum_of_the_final_amounts_under_any_order(
    bank: RunningBank, steps: list[Any]
) -> None:
    account = bank.account(su="")
    submitted = TODAY - 50 * DAY
    for start, end in ((-30, -11), (-10, 30)):
        period = ("--start", str(TODAY + start * DAY), "--end", str(TODAY + end * DAY))
        bank.shell("allocation", "add", account.name, "10", *period)
    prefix = bank.fresh("p")
    stored: dict[int, dict[str, Any]] = {}
    last: dict[int, dict[str, Any]] = {}
    for method, which, csu, start, with_end, with_amount in steps:
        sent = job(f"{prefix}_{which}", account, submitdate=instant(submitted))
        sent["startdate"] = None if start is None else instant(TODAY + start * DAY, 0)
        sent["enddate"] = instant(TODAY, 0) if with_end else None
        sent["amount"] = f"{csu // 100}.{csu % 100:02d}"
        if not with_amount:
            del sent["amount"]
        if method == "again" and which in last:
            sent, method = last[which], "PUT"
        if method == "POST":
            status = bank.post(sent).status_code
            assert status == (400 if which in stored else 201)
            if status == 400:
                continue
        else:
            assert bank.put(sent).status_code == 200
        last[which] = sent
        stored[which] = {"amount": "0.00", **stored.get(which, {}), **sent}
    expected = [Decimal(0), Decimal(0)]
    boundary = instant(TODAY - 10 * DAY, 0)
    for values in stored.values():
        if values["startdate"] and values["startdate"] >= instant(TODAY - 30 * DAY, 0):
            expected[values["startdate"] >= boundary] += Decimal(values["amount"])
    assert bank.usages(account.name) == expected
    assert bank.verified()


# -- at the same time -------------------------------------------------------------------------------------------------


def _at_once(bank: RunningBank, calls: list[tuple[str, str, dict[str, Any]]]) -> list[int]:
    """The statuses of all calls, let go together."""
    barrier = threading.Barrier(len(calls))
    statuses = [0] * len(calls)

    def call(index: int, method: str, url: str, values: dict[str, Any]) -> None:
        headers = {"Authorization": f"Token {bank.keys['relay']}"}
        barrier.wait(10)
        statuses[index] = requests.request(
            method, url, json=values, headers=headers, timeout=60
        ).status_code

    threads = [threading.Thread(target=call, args=(i, *one)) for i, one in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return statuses


def test_eight_puts_of_a_new_id_at_once_are_counted_once(bank: RunningBank) -> None:
    account = bank.account()
    for _ in range(5):
        before = bank.usage(account)
        sent = job(bank.fresh("j"), account, "3.00")
        calls = [("PUT", f"{bank.url}jobs/{sent['jobslurmid']}/", sent)] * 8
        assert _at_once(bank, calls) == [200] * 8
        assert bank.usage(account) - before == Decimal("3.00")
    assert bank.verified()


def test_eight_posts_of_an_id_at_once_create_one(bank: RunningBank) -> None:
    account = bank.account()
    for _ in range(5):
        before = bank.usage(account)
        calls = [("POST", f"{bank.url}jobs/", job("x" + bank.fresh("j"), account, "3.00"))] * 8
        assert sorted(_at_once(bank, calls)) == [201] + [400] * 7
        assert bank.usage(account) - before == Decimal("3.00")


def test_different_amounts_at_once_leave_the_stored_one_counted(bank: RunningBank) -> None:
    account = bank.account()
    sent = job(bank.fresh("j"), account)
    url = f"{bank.url}jobs/{sent['jobslurmid']}/"
    calls = [("PUT", url, {**sent, "amount": f"{i}.00"}) for i in range(1, 8)]
    calls.append(("POST", f"{bank.url}jobs/", sent))
    statuses = _at_once(bank, calls)
    assert statuses[:7] == [200] * 7 and statuses[7] in (201, 400)
    assert bank.usage(account) == Decimal(bank.get(f"jobs/{sent['jobslurmid']}/")["amount"])
    assert bank.verified()


def test_one_id_for_two_accounts_at_once_is_of_one_of_them(bank: RunningBank) -> None:
    for _ in range(5):
        one, other = bank.account(), bank.account()
        jobslurmid = bank.fresh("j")
        url = f"{bank.url}jobs/{jobslurmid}/"
        calls = [("PUT", url, job(jobslurmid, account, "2.00")) for account in (one, other) * 4]
        assert sorted(_at_once(bank, calls)) == [200] * 4 + [400] * 4
        assert bank.usage(one) + bank.usage(other) == Decimal("2.00")


def test_two_servers_on_one_database_count_once(bank: RunningBank) -> None:
    account = bank.account()
    second, url, _ = bank.start_another()
    try:
        calls: list[tuple[str, str, dict[str, Any]]] = []
        for _ in range(4):
            sent = job(bank.fresh("j"), account, "1.50")
            calls += [
                ("PUT", f"{base}jobs/{sent['jobslurmid']}/", sent) for base in (bank.url, url)
            ] * 2
        assert _at_once(bank, calls) == [200] * 16
    finally:
        second.terminate()
        second.wait(15)
        if second.stdout is not None:
            second.stdout.close()
    assert bank.usage(account) == Decimal("6.00")
