# SPDX-License-Identifier: BSD-3-Clause
"""``bank serve --compat portal``: jobs are counted, and some errors told, as the portal does it, mistakes included.

For tests of what talks to a bank. It is a switch of the running server, nothing in the database remembers it; but what
was counted while it was on is counted, and ``bank verify`` shows where rows and usage parted.

What is different (each observed at the portal):

* a PUT counts the difference to the row's amount, and only with all three dates inside the period of the allocation that
  is active now; otherwise the row changes and the usage does not. The usage never falls below zero;
* a POST counts if submit and start date are there and the start is not before the allocation's; it is stored anyway;
* membership and an active allocation are asked for at every PUT, so at the end of a job, too;
* an allocation is active until somebody says otherwise, whatever its last day;
* the id in a PUT's URL does not matter, the one in the body does; nodes are added, never taken away;
* of two who make the same job at once, one gets a 500;
* what nobody caught is a page of HTML (500); with a file ``maintenance`` in the data directory everything is (503, with
  the file's text as ``Retry-After`` if it has any);
* a path without its last slash is answered with 301.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import Any, Optional

from django.db import IntegrityError
from django.utils import timezone

from slurm_banking.server.models import (
    Account,
    Allocation,
    AllocationUser,
    ClusterUser,
    Entry,
    Job,
    Membership,
)
from slurm_banking.server.operations import (
    JobRefused,
    _append,
    _assign,
    _check_order,
    _check_same_owner,
    _job_refused,
    _midnight,
    _transaction,
)

NAME = "portal"

#: Seconds between the portal's look whether it has a job and its writing it.
_RACE_S = 0.02


class Uncaught(Exception):
    """What the portal does not expect: a page of HTML, status 500."""


def create_job(values: Mapping[str, Any], *, actor: str) -> Job:
    return _store_job(values, actor, update=False)


def upsert_job(values: Mapping[str, Any], *, actor: str) -> Job:
    return _store_job(values, actor, update=True)


def _store_job(values: Mapping[str, Any], actor: str, *, update: bool) -> Job:
    seen = Job.objects.filter(jobslurmid=values["jobslurmid"]).exists()
    if not seen:
        time.sleep(_RACE_S)
    with _transaction():
        account = (
            Account.objects.select_for_update(no_key=True).filter(name=values["accountid"]).first()
        )
        user = ClusterUser.objects.filter(cluster_uid=values["userid"]).first()
        errors: dict[str, list[str]] = {}
        if user is None:
            errors["userid"] = [f"UserProfile for cluster_uid {values['userid']} does not exist."]
        if account is None:
            errors["accountid"] = [f"Object with name={values['accountid']} does not exist."]
        if errors or user is None or account is None:
            raise JobRefused(errors)
        job = (
            Job.objects.select_related("user", "account")
            .filter(jobslurmid=values["jobslurmid"])
            .first()
        )
        if job is not None and not seen:
            raise Uncaught("the job was made by somebody else meanwhile")
        if job is not None and not update:
            raise JobRefused({"jobslurmid": ["job with this jobslurmid already exists."]})
        allocation = _active_allocation(account, user)
        before_csu = 0
        if job is None:
            job = Job(jobslurmid=values["jobslurmid"], user=user, account=account)
        else:
            _check_same_owner(job, account, user)
            before_csu = job.amount_csu
            values = {**values, "nodes": [*dict.fromkeys([*job.nodes, *values.get("nodes", [])])]}
        _assign(job, values)
        _check_order(job)
        difference_csu = 0
        if _is_counted(job, allocation, update=update):
            difference_csu = _floored(allocation, user, job.amount_csu - before_csu)
        if difference_csu:
            job.allocation_id = allocation.pk
            job.counted_csu += difference_csu
        try:
            job.save()
        except IntegrityError as error:
            raise Uncaught("the job was made by somebody else meanwhile") from error
        if difference_csu:
            first = not job.entries.exists() and difference_csu > 0
            _append(
                allocation.pk,
                Entry.CHARGE if first else Entry.ADJUSTMENT,
                -difference_csu,
                reason=f"job {job.jobslurmid}",
                actor=actor,
                user_id=user.pk,
                job_id=job.pk,
            )
        return job


def _active_allocation(account: Account, user: ClusterUser) -> Allocation:
    """:raises JobRefused: the user, or the account, may not have jobs now."""
    membership = Membership.objects.filter(account=account, user=user).first()
    if membership is None:
        raise _job_refused(f"User {user.username} is not a member of account {account.name}.")
    if not membership.active:
        raise _job_refused(
            f"User {user.username} is not an active member of account {account.name}."
        )
    allocation: Optional[Allocation] = None
    if account.active:
        allocation = (
            account.allocations.filter(
                status=Allocation.ACTIVE, start_date__lte=timezone.localdate()
            )
            .order_by("-start_date")
            .first()
        )
    if allocation is None:
        raise _job_refused(f"Account {account.name} has no active compute allocation.")
    return allocation


def _is_counted(job: Job, allocation: Allocation, *, update: bool) -> bool:
    if job.submitdate is None or job.startdate is None:
        return False
    if job.startdate < _midnight(allocation.start_date):
        return False
    if not update:
        return True
    if job.enddate is None:
        return False
    after = allocation.end_date and _midnight(allocation.end_date + datetime.timedelta(days=1))
    return after is None or job.enddate < after


def _floored(allocation: Allocation, user: ClusterUser, difference_csu: int) -> int:
    """No usage falls below zero; here, of account and user alike by the same amount."""
    if difference_csu >= 0:
        return difference_csu
    allocation.refresh_from_db()
    row = AllocationUser.objects.filter(allocation=allocation, user=user).first()
    used_csu = min(allocation.used_csu, 0 if row is None else row.used_csu)
    return max(difference_csu, -max(used_csu, 0))
