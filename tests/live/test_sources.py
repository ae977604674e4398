# SPDX-License-Identifier: BSD-3-Clause
"""One history on real daemons, read through every source: sacct's columns, its JSON, and slurmrestd over TCP and a unix socket."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from slurm_banking.config import SlurmrestdConfig, load
from slurm_banking.records import UNLIMITED, Run
from slurm_banking.slurm.accounting import Slurmdbd
from slurm_banking.slurm.control import Operators
from slurm_banking.slurm.rest import RestRefused, RestUnauthorized, SlurmrestdClient
from slurm_banking.slurm.rest_token import TokenSource
from slurm_banking.slurm.sources import make_source
from tests.rig.cluster import (
    CHECKOUT,
    DEFAULT_PARTITIONS,
    OPERATOR,
    Cluster,
    Node,
    Partition,
    wait_until,
)
from tests.rig.restd import Slurmrestd, key_file

pytestmark = pytest.mark.timeout(300)

ALICE, BOB, CAROL = "sb-alice", "sb-bob", "sb-carol"
LATER = "--begin=now+1hour"
#: Where one would take it for the end of a field, a row, a string or a document.
ANY_BYTES = 'x|y~"\\}],\n"jobs": [\t€\x7f'

NODES = (Node(name="n1", gpus=("a100", 2)), Node(name="n2"))
LONG = Partition(name="long", default_time_min=None, max_time="UNLIMITED")


@dataclass(frozen=True)
class History:
    cluster: Cluster
    restd: Slurmrestd
    sources: dict[str, Slurmdbd]
    since: int
    until: int
    kinds: dict[str, int]  #: what became of some jobs, by name

    def key(self) -> str:
        return str(key_file(self.cluster))


def make_history(cluster: Cluster) -> dict[str, int]:
    """Some eighty jobs; returns when Slurm has ended all that will end."""
    kinds: dict[str, int] = {}
    root = "root"

    def scontrol(*words: str, user: str = root) -> None:
        cluster.run_as(user, ["scontrol", *words], check=True)

    def submit(name: str, user: str, *args: str, script: str = "sleep 1") -> int:
        kinds[name] = cluster.sbatch(user, *args, script=script)
        return kinds[name]

    running: list[str] = []

    def start(name: str, user: str, *args: str, script: str = "sleep 600") -> int:
        running.append(name)
        return submit(name, user, *args, script=script)

    start("timed out", ALICE, "--time=1")
    start("resized", ALICE, "-N2", "-n2", "--time=5")
    start("resized, open", ALICE, "-N2", "-n2", "--time=5")
    start("requeued, to run again", ALICE, "--requeue", "--time=5", script="sleep 4")
    start("requeued, then cancelled", BOB, "--requeue", "--time=5")
    start("suspended", BOB, "--time=5", script="sleep 5")
    start("left suspended", BOB, "--time=5")
    start("left running", CAROL, "--time=5")
    start("without limit of time", CAROL, "-plong", "--time=UNLIMITED", script="sleep 3")
    start("cancelled running", ALICE, "--time=5")
    start("cancelled running by an operator", ALICE, "--time=5")
    start("cancelled running by root", ALICE, "--time=5")
    for name in running:
        cluster.wait_job(kinds[name], "RUNNING")
    scontrol("update", f"job={kinds['timed out']}", "EndTime=now")  # seen within half a minute
    scontrol("suspend", f"{kinds['suspended']},{kinds['left suspended']}")
    time.sleep(1.1)
    for name in ("resized", "resized, open"):
        scontrol("update", f"job={kinds[name]}", "NumNodes=1", user=ALICE)
    cluster.scancel(ALICE, str(kinds["cancelled running"]))
    cluster.scancel(OPERATOR, str(kinds["cancelled running by an operator"]))
    cluster.scancel(root, str(kinds["cancelled running by root"]))
    cluster.requeue(BOB, kinds["requeued, then cancelled"], at_once=False)
    cluster.scancel(BOB, str(kinds["requeued, then cancelled"]))
    cluster.requeue(ALICE, kinds["requeued, to run again"])
    scontrol("resume", str(kinds["suspended"]))

    submit("cancelled pending", ALICE, LATER)
    submit("cancelled pending by an operator", ALICE, LATER)
    submit("cancelled while held", ALICE, "--hold")
    submit("dependent", BOB, f"--dependency=afterok:{kinds['left running']}")
    submit("array cancelled whole", BOB, LATER, "--array=0-9")
    submit("array of which some were cancelled", CAROL, LATER, "--array=1-6%2")
    submit("left pending", CAROL, LATER)
    submit("left pending, an array", CAROL, LATER, "--array=0-3")
    for name in ("cancelled pending", "cancelled while held"):
        cluster.scancel(ALICE, str(kinds[name]))
    cluster.scancel(OPERATOR, str(kinds["cancelled pending by an operator"]))
    cluster.scancel(BOB, str(kinds["dependent"]))
    cluster.scancel(BOB, str(kinds["array cancelled whole"]))
    cluster.scancel(CAROL, f"{kinds['array of which some were cancelled']}_[2-4]")

    named = (f"--job-name={ANY_BYTES}", f"--comment={ANY_BYTES}")
    submit("of any name", ALICE, *named)
    scontrol("update", f"job={kinds['of any name']}", f"AdminComment={ANY_BYTES}")
    submit("with GPUs", ALICE, "--gres=gpu:a100:1", "--mem=300M", "-n2")
    submit("exclusive", BOB, "-pexclusive")
    submit("failed", BOB, script="sleep 1; exit 3")
    submit("killed by itself", BOB, script="kill -9 $$")
    submit("array", CAROL, "--array=0-11%6", "--time=2")
    submit("het", ALICE, "-n1", "--time=2", ":", "-n2", "--time=2")
    submit("het, cancelled", ALICE, LATER, "-n1", ":", "-n2")
    cluster.scancel(ALICE, str(kinds["het, cancelled"]))
    for number in range(20):
        user = (ALICE, BOB, CAROL)[number % 3]
        submit(f"short {number}", user, "-n1", f"--mem={100 + number}M", script="true")

    cluster.scancel(ALICE, str(kinds["resized"]))
    stay = ("left", "array of which", "resized, open")
    left = {str(job_id) for name, job_id in kinds.items() if name.startswith(stay)}

    def only_those_left() -> bool:
        queue = cluster.run_as(root, ["squeue", "-h", "-o", "%F"], check=True).stdout.split()
        return set(queue) <= left

    wait_until(only_those_left, 120, "all jobs that end to have ended", 0.5)
    return kinds


@pytest.fixture(scope="module")
def history() -> Iterator[History]:
    partitions = (*DEFAULT_PARTITIONS, LONG)
    cluster = Cluster(nodes=NODES, partitions=partitions, cluster_name="rig")
    with Slurmrestd(cluster) as restd, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(cluster.slurm_conf))
        since = int(time.time()) - 1
        kinds = make_history(cluster)
        operators = Operators()
        config = load(str(CHECKOUT / "bank-config.toml.example"), in_slurmctld=True)
        key = str(key_file(cluster))

        def source(name: str, url: str | None = None) -> Slurmdbd:
            given = SlurmrestdConfig(url=url, user="root", key=key)
            made = make_source(name, replace(config, slurmrestd=given), "rig", operators=operators)
            assert isinstance(made, Slurmdbd)
            return made

        sources = {
            "sacct": source("sacct"),
            "sacct-json": source("sacct-json"),
            "slurmrestd over TCP": source("slurmrestd", restd.url),
            "slurmrestd over a unix socket": source("slurmrestd", restd.socket_url),
        }
        time.sleep(6)  # slurmctld tells starts every five seconds
        until = int(time.time()) + 1
        yield History(cluster, restd, sources, since, until, kinds)


def settled(run: Run) -> Run:
    """Without what time alone changes: how long an open run has run."""
    return run if run.end_time is not None else replace(run, elapsed_s=0, segments=())


def without_unlimited(run: Run) -> Run:
    """Slurm's JSON has null for a limit of UNLIMITED as for none (22.05; 24.11 tells it)."""
    return replace(run, time_limit_min=None) if run.time_limit_min == UNLIMITED else run


OTHERS = ("sacct-json", "slurmrestd over TCP", "slurmrestd over a unix socket")


def test_the_history_has_runs_of_every_kind(history: History) -> None:
    """What makes the comparisons below worth something."""
    runs = history.sources["sacct"].read_jobs(sorted(history.kinds.values()))
    by_kind = {name: runs.get(job_id, ()) for name, job_id in history.kinds.items()}
    states = {run.state for told in runs.values() for run in told}
    assert states >= {
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "REQUEUED"),
        *("RUNNING", "SUSPENDED", "PENDING"),
    }
    assert sum(len(told) for told in runs.values()) >= 60
    assert [run.state for run in by_kind["requeued, to run again"]] == ["REQUEUED", "COMPLETED"]
    assert by_kind["resized"][0].segments and by_kind["resized, open"][0].end_time is None
    assert by_kind["with GPUs"][0].tres.gpus == (("a100", 1),)
    assert by_kind["without limit of time"][0].time_limit_min == UNLIMITED
    assert by_kind["cancelled running by an operator"][0].cancelled_by_admin
    assert by_kind["cancelled pending by an operator"][0].cancelled_by_admin
    assert by_kind["cancelled running by root"][0].cancelled_by_admin
    assert not by_kind["cancelled running"][0].cancelled_by_admin
    assert by_kind["cancelled while held"] and by_kind["dependent"]
    assert "jobs" in by_kind["of any name"][0].admin_comment
    (suspended,) = by_kind["suspended"]
    assert suspended.start_time is not None and suspended.end_time is not None
    assert suspended.elapsed_s < suspended.end_time - suspended.start_time


@pytest.mark.parametrize("name", OTHERS)
def test_ended_runs_are_equal_through_every_source(history: History, name: str) -> None:
    columns = history.sources["sacct"].read_ended_runs(history.since, history.until)
    other = history.sources[name].read_ended_runs(history.since, history.until)
    assert len(columns) >= 55
    assert list(map(without_unlimited, columns)) == list(map(without_unlimited, other))
    unlimited = {run.job_id for run in columns if run.time_limit_min == UNLIMITED}
    assert unlimited == {history.kinds["without limit of time"]}


@pytest.mark.parametrize("name", OTHERS)
def test_jobs_by_id_are_equal_through_every_source(history: History, name: str) -> None:
    wanted = [*sorted(history.kinds.values()), 999_999]
    columns = history.sources["sacct"].read_jobs(wanted)
    other = history.sources[name].read_jobs(wanted)
    assert set(columns) == set(other) and 999_999 not in columns
    for job_id, runs in columns.items():
        expected = [settled(without_unlimited(run)) for run in runs]
        assert expected == [settled(without_unlimited(run)) for run in other[job_id]]


@pytest.mark.parametrize("name", ("sacct", *OTHERS))
def test_windows_side_by_side_give_each_ended_run_once_and_the_last_the_open_ones(
    history: History, name: str
) -> None:
    source = history.sources[name]
    whole = [settled(run) for run in source.read_window(history.since, history.until)]
    told = []
    step = 11
    for low in range(history.since, history.until, step):
        high = min(low + step, history.until)
        told += source.read_window(low, high, open_runs=high == history.until)
    assert [settled(run) for run in told] == whole
    open_ids = {run.job_id for run in whole if run.end_time is None}
    left = ("left running", "left suspended", "resized, open")
    assert open_ids == {history.kinds[kind] for kind in left}


@pytest.mark.parametrize("name", ("sacct", *OTHERS))
def test_a_resized_run_is_one_run_in_a_window_after_its_resize(history: History, name: str) -> None:
    source = history.sources[name]
    runs = source.read_ended_runs(history.since, history.until)
    resized = [run for run in runs if run.job_id == history.kinds["resized"]]
    assert len(resized) == 1
    ended_at = resized[0].end_time or 0
    late = [run for run in source.read_ended_runs(ended_at, ended_at + 1)]
    assert resized[0] in late


def test_a_plain_user_without_private_data_sees_the_same_rows(history: History) -> None:
    client = SlurmrestdClient(history.restd.url, TokenSource(user=CAROL, key=history.key()))
    columns = history.sources["sacct"].read_jobs([history.kinds["failed"]])
    rows = client.get("slurmdb/jobs", step=history.kinds["failed"], skip_steps=True)["jobs"]
    assert [row["job_id"] for row in rows] == [
        run.job_id for runs in columns.values() for run in runs
    ]


@pytest.mark.parametrize("over", ["url", "socket_url"])
def test_the_controllers_half_is_understood(history: History, over: str) -> None:
    client = SlurmrestdClient(
        getattr(history.restd, over), TokenSource(user=ALICE, key=history.key())
    )
    assert client.version() == client.version("slurmdb") == history.restd.newest
    assert [(ping.mode, ping.up) for ping in client.ping()] == [("primary", True)]
    assert client.diag()["jobs_submitted"] >= 40
    nodes = {node.name: node for node in client.nodes()}
    assert set(nodes) == {"n1", "n2"} and nodes["n1"].cpus == 8 and "a100" in nodes["n1"].gres
    limits = {part.name: (part.default_time_min, part.max_time_min) for part in client.partitions()}
    assert limits["main"] == (10, 1440) and limits["long"] == (None, UNLIMITED)
    queue = {job.job_id: job for job in client.jobs()}
    left = queue[history.kinds["left running"]]
    assert (left.state, left.user_name, left.account, left.time_limit_min) == (
        "RUNNING",
        CAROL,
        "fc_beta",
        5,
    )
    assert left.tres.cpus == 1 and left.nodes in ("n1", "n2")
    array = client.job(history.kinds["left pending, an array"])
    assert [(job.array_job_id, job.array_tasks) for job in array] == [
        (history.kinds["left pending, an array"], "0-3")
    ]
    assert client.job(999_999) == ()


@pytest.mark.parametrize("environment", [{"PATH": "/bin:/usr/bin"}, ["PATH=/bin:/usr/bin"]])
def test_a_job_is_submitted_and_cancelled(history: History, environment: object) -> None:
    client = SlurmrestdClient(history.restd.url, TokenSource(user=BOB, key=history.key()))
    job = {
        "name": "over REST",
        "partition": "main",
        "time_limit": 3,
        "current_working_directory": str(history.cluster.home(BOB)),
        "environment": environment,
    }
    submitted = client.submit({"job": job, "script": "#!/bin/sh\nsleep 600\n"})
    (queued,) = client.job(submitted.job_id)
    assert (queued.name, queued.user_name, queued.time_limit_min) == ("over REST", BOB, 3)
    other = SlurmrestdClient(history.restd.url, TokenSource(user=CAROL, key=history.key()))
    with pytest.raises(RestRefused, match="permission"):
        other.cancel(submitted.job_id)
    client.cancel(submitted.job_id)
    history.cluster.wait_job(submitted.job_id, "CANCELLED")
    client.cancel(submitted.job_id)  # done is done


def test_what_slurm_refuses_is_told_with_its_number(history: History) -> None:
    client = SlurmrestdClient(history.restd.url, TokenSource(user=BOB, key=history.key()))
    job = {"name": "x", "partition": "nowhere", "environment": {"PATH": "/bin"}}
    with pytest.raises(RestRefused) as refusal:
        client.submit({"job": {**job, "current_working_directory": "/tmp"}, "script": "#!/bin/sh"})
    assert refusal.value.code == 2000 and "nvalid partition" in str(refusal.value)
    # 22.05; newer ones say what came of it (2019).
    with pytest.raises(RestRefused, match="environment must be set|writing script/environment"):
        client.submit(
            {"job": {"name": "x", "current_working_directory": "/tmp"}, "script": "#!/bin/sh"}
        )


def test_a_slurmdbd_that_is_away_is_no_empty_answer(history: History) -> None:
    """slurmrestd then answers 200, and sacct --json ends with 0: with an error, and no jobs."""
    history.cluster.stop_daemon("slurmdbd")
    try:
        for name in OTHERS:
            with pytest.raises(Exception) as failure:
                history.sources[name].read_ended_runs(history.since, history.until)
            assert "SlurmUnavailable" in {kind.__name__ for kind in type(failure.value).__mro__}
            assert "\n" not in str(failure.value)
    finally:
        history.cluster.start_daemon("slurmdbd")
    wait_until(
        lambda: history.cluster.run_as("root", ["sacctmgr", "-n", "show", "cluster"]).stdout,
        30,
        "slurmdbd to be back",
    )


def test_a_token_renewed_in_its_file_is_used_after_a_refusal(
    history: History, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(history.restd.scontrol_token(ALICE)[:-6] + "AAAAAA")
    file.chmod(0o600)
    client = SlurmrestdClient(history.restd.url, TokenSource(user=ALICE, token_file=str(file)))
    with pytest.raises(RestUnauthorized, match="token"):
        client.ping()
    file.write_text(history.restd.scontrol_token(ALICE))
    assert client.ping()[0].up
