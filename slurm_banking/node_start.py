# SPDX-License-Identifier: BSD-3-Clause
"""What the first node of a run tells the bank: that the run started. Executed by spank's detached child, as root.

One request, nothing repeated: whatever does not arrive here, the relay finds. The child has 30 seconds in all (an alarm set
before Python started). The node's token may do this and nothing else; it is read here, and never an argument or in the
environment. The row has an amount of 0.00 and no dates but the start: what the run costs, only the relay says.
"""

from __future__ import annotations

import os
import re
import syslog
from datetime import datetime, timezone
from typing import Mapping, Optional

from slurm_banking import config as configuration
from slurm_banking.errors import BankingError, BankRefused, BankUnauthorized, BankUnavailable

#: For the answer as a whole; what connecting and sending take comes on top, and the alarm ends it all.
RESPONSE_S = 20.0
TIMEOUT_S = (5.0, 10.0)


def bank_job_id(job_id_format: str, *, cluster: str, job_id: int, restart: int) -> str:
    """The run's id at the bank; a restart shows in it even if the format does not name it.

    :raises BankingError: the format names what Slurm does not tell a prolog.
    """
    try:
        wire_id = job_id_format.format(cluster=cluster, job_id=job_id, restart=restart)
    except KeyError as error:
        raise BankingError(f"job_id_format has {{{error.args[0]}}}, which no node knows") from None
    return f"{wire_id}-r{restart}" if restart and "{restart}" not in job_id_format else wire_id


def cpus_of(cpus_per_node: str) -> Optional[int]:
    """SLURM_JOB_CPUS_PER_NODE, "4(x2),2" -> 10; None if it is anything else."""
    total = 0
    for part in cpus_per_node.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            return None
        total += int(match[1]) * int(match[2] or 1)
    return total


def start_time_of(environment: Mapping[str, str]) -> datetime:
    """When the run started; where Slurm's prolog is not told (before 23.02), when the prolog ran."""
    seconds = environment.get("SLURM_JOB_START_TIME") or environment["BANKING_NOW"]
    return datetime.fromtimestamp(int(seconds), tz=timezone.utc)


def report(environment: Mapping[str, str]) -> None:
    """:raises BankingError: the start is not at the bank; one line says why."""
    config = configuration.load(environment["BANKING_CONFIG"], in_slurmctld=False)
    token = configuration.read_token(config, node=True)

    # Only now: a node that is not set up to report should not pay for these.
    import requests

    from mybrc_client.api.jobs import create_job
    from mybrc_client.client import AuthenticatedClient, new_session
    from mybrc_client.models.job import Job
    from mybrc_client.types import UNSET

    cpus = cpus_of(environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
    nodes = environment.get("SLURM_JOB_NUM_NODES", "")
    job = Job(
        jobslurmid=bank_job_id(
            config.api.job_id_format,
            cluster=environment.get("SLURM_CLUSTER_NAME", ""),
            job_id=int(environment["SLURM_JOB_ID"]),
            restart=int(environment.get("SLURM_JOB_RESTART_COUNT") or 0),
        ),
        userid=environment["SLURM_JOB_UID"],
        accountid=environment["SLURM_JOB_ACCOUNT"],
        startdate=start_time_of(environment),
        amount="0.00",
        jobstatus="RUNNING",
        partition=environment.get("SLURM_JOB_PARTITION", UNSET),
        qos=environment.get("SLURM_JOB_QOS", UNSET),
        num_cpus=UNSET if cpus is None else cpus,
        num_alloc_nodes=int(nodes) if nodes.isdecimal() else UNSET,
    )
    with new_session(response_s=RESPONSE_S, connections=1) as session:
        client = AuthenticatedClient(
            base_url=config.api.url, session=session, token=token, timeout_s=TIMEOUT_S
        )
        try:
            response = create_job.sync_detailed(client=client, body=job)
        except requests.RequestException as error:
            raise BankUnavailable(f"{config.api.url}: {type(error).__name__}") from error
    if response.status_code == 201 or _is_known(response.status_code, response.content):
        return
    summary = f"{config.api.url}: {response.status_code}: {_one_line(response.content)}"
    if response.status_code in (401, 403):
        raise BankUnauthorized(summary)
    if 400 <= response.status_code < 500:
        raise BankRefused(summary)
    raise BankUnavailable(summary)


def _is_known(status_code: int, content: bytes) -> bool:
    """The relay, or another attempt, was there first."""
    return status_code == 400 and b"jobslurmid" in content and b"already exists" in content


def _one_line(content: bytes) -> str:
    return " ".join(content[:300].decode("utf-8", "replace").split())


def main() -> int:
    """Always 0 to the caller, who is not there any more; one line in the node's syslog if it did not work."""
    try:
        report(os.environ)
    except (BankingError, KeyError, ValueError) as error:
        problem = f"not in the environment: {error}" if isinstance(error, KeyError) else str(error)
        job_id = os.environ.get("SLURM_JOB_ID", "unknown")
        syslog.openlog("slurm_banking", syslog.LOG_PID, syslog.LOG_DAEMON)
        syslog.syslog(
            syslog.LOG_WARNING,
            f"start_unreported job={job_id} problem={problem} (the relay finds it)",
        )
    return 0
