# SPDX-License-Identifier: BSD-3-Clause
"""The scratch cluster itself: what the live tests of the product take for granted."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import keeper
from tests.rig.cluster import (
    DEFAULT_ACCOUNTS,
    FINISHED_STATES,
    SCRATCH_PREFIX,
    Cluster,
    CommandFailed,
    Node,
    PluginSet,
    RigError,
    distribution_plugin_dir,
    down,
    left_running,
    remove_stale,
    stale_rigs,
    wait_until,
)

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("slurmctld") is None,
        reason="needs root and Slurm's daemons",
    ),
]

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as running:
        yield running


def rig_processes(root: Path) -> list[int]:
    """Processes that name the rig's directory in their arguments, environment or working directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            text += os.fsencode(os.readlink(entry / "cwd"))
        except OSError:
            continue
        if os.fsencode(root) in text:
            found.append(int(entry.name))
    return found


def test_it_is_up_within_15_seconds(cluster: Cluster) -> None:
    assert cluster.timings_s["prepare"] + cluster.timings_s["start"] < 15


def test_batch_job_runs_as_its_user_and_is_accounted(cluster: Cluster) -> None:
    job = cluster.sbatch("sb-alice", "--time=2", "--output=out", script="id -un; pwd")
    assert cluster.wait_job(job) == {"COMPLETED"}
    home = cluster.home("sb-alice")
    assert (home / "out").read_text().split() == ["sb-alice", str(home)]
    cluster.wait_accounted(job)
    (run,) = cluster.sacct(job)
    assert (run["User"], run["Account"], run["Partition"]) == (
        "sb-alice",
        "fc_alpha",
        "main",
    )
    assert (run["State"], run["AllocCPUS"], run["Timelimit"]) == (
        "COMPLETED",
        "1",
        "00:02:00",
    )


def test_job_starts_within_3_seconds(cluster: Cluster) -> None:
    begun = time.monotonic()
    job = cluster.sbatch("sb-alice", script="sleep 20")
    cluster.wait_job(job, "RUNNING", timeout_s=10)
    assert time.monotonic() - begun < 3
    cluster.scancel("sb-alice", str(job))
    assert cluster.wait_job(job) == {"CANCELLED"}


def test_partition_default_time_applies(cluster: Cluster) -> None:
    job = cluster.sbatch("sb-alice", "--hold", "--partition=debug")
    assert cluster.job(job)["TimeLimit"] == "00:05:00"
    cluster.scancel("sb-alice", str(job))


def test_exclusive_partition_allocates_the_whole_node(cluster: Cluster) -> None:
    job = cluster.sbatch("sb-alice", "--partition=exclusive", script="sleep 20")
    cluster.wait_job(job, "RUNNING")
    assert cluster.job(job)["NumCPUs"] == "8"
    cluster.scancel("sb-alice", str(job))
    cluster.wait_job(job)


def test_srun_runs_on_both_nodes(cluster: Cluster) -> None:
    argv = [
        "srun",
        "--nodes=2",
        "--ntasks=2",
        "sh",
        "-c",
        "echo $SLURMD_NODENAME $(id -un)",
    ]
    result = cluster.run_as("sb-bob", argv, check=True)
    assert sorted(result.stdout.splitlines()) == ["n1 sb-bob", "n2 sb-bob"]


def test_salloc_runs_a_step_inside_its_allocation(cluster: Cluster) -> None:
    argv = ["salloc", "--ntasks=2", "srun", "sh", "-c", "echo $SLURM_JOB_ACCOUNT"]
    result = cluster.run_as("sb-carol", argv, check=True)
    assert result.stdout.split() == ["fc_beta", "fc_beta"]


def test_every_array_task_runs(cluster: Cluster) -> None:
    job = cluster.sbatch("sb-alice", "--array=0-3", script="sleep 0")
    assert cluster.wait_job(job, timeout_s=60) == {"COMPLETED"}
    cluster.wait_accounted(job, count=4)
    assert {run["JobID"] for run in cluster.sacct(job)} == {f"{job}_{task}" for task in range(4)}


def test_requeued_job_is_accounted_as_two_runs(cluster: Cluster) -> None:
    job = cluster.sbatch("sb-alice", script="sleep 60")
    cluster.wait_job(job, "RUNNING")
    cluster.requeue("sb-alice", job)
    cluster.wait_job(job, "RUNNING", timeout_s=30)
    cluster.scancel("sb-alice", str(job))
    assert cluster.wait_job(job) == {"CANCELLED"}
    cluster.wait_accounted(job, count=2)
    states = [run["State"].split()[0] for run in cluster.sacct(job)]
    assert states == ["REQUEUED", "CANCELLED"]


def test_owner_lowers_a_time_limit_and_a_stranger_does_not(cluster: Cluster) -> None:
    job = cluster.sbatch("sb-alice", "--hold", "--time=10")
    update = ["scontrol", "update", f"job={job}", "TimeLimit=3"]
    refused = cluster.run_as("sb-mallory", update)
    assert refused.returncode != 0
    assert cluster.job(job)["TimeLimit"] == "00:10:00"
    cluster.run_as("sb-alice", update, check=True)
    assert cluster.job(job)["TimeLimit"] == "00:03:00"
    cluster.scancel("sb-alice", str(job))


def test_operator_touches_the_jobs_of_others(cluster: Cluster) -> None:
    job = cluster.sbatch("sb-alice", "--hold")
    update = ["scontrol", "update", f"job={job}", "TimeLimit=40"]
    cluster.run_as("sb-oper", update, check=True)
    assert cluster.job(job)["TimeLimit"] == "00:40:00"
    cluster.scancel("sb-oper", str(job))


def test_account_of_others_is_refused_with_slurms_words(cluster: Cluster) -> None:
    with pytest.raises(CommandFailed) as refused:
        cluster.sbatch("sb-mallory", "--account=fc_alpha")
    assert "Invalid account" in refused.value.stderr


def test_running_job_survives_kill_9_of_slurmctld(cluster: Cluster) -> None:
    job = cluster.sbatch("sb-alice", script="sleep 8")
    cluster.wait_job(job, "RUNNING")
    cluster.wait_saved()
    before = cluster.pid("slurmctld")
    cluster.kill9("slurmctld")
    assert cluster.exit_status("slurmctld") == -signal.SIGKILL
    after = cluster.start_daemon("slurmctld")
    assert after != before
    assert cluster.wait_job(job, timeout_s=60) == {"COMPLETED"}
    cluster.wait_accounted(job)


def test_slurmctld_ends_and_restarts_cleanly(cluster: Cluster) -> None:
    assert cluster.stop_daemon("slurmctld") == 0
    assert cluster.pid("slurmctld") is None
    cluster.start_slurmctld()
    assert cluster.run_as("sb-alice", ["sinfo", "-h"]).returncode == 0


def test_slurmdbd_stopped_and_started_keeps_the_runs(cluster: Cluster) -> None:
    assert cluster.stop_daemon("slurmdbd") == 0
    job = cluster.sbatch("sb-alice", script="sleep 0")
    assert cluster.wait_job(job) == {"COMPLETED"}
    cluster.start_daemon("slurmdbd")
    cluster.wait_accounted(job, timeout_s=60)


def test_daemon_that_cannot_start_is_told_with_its_log(cluster: Cluster) -> None:
    good = cluster.slurm_conf.read_text()
    cluster.stop_daemon("slurmctld")
    cluster.write_file(cluster.slurm_conf, good + "JobSubmitPlugins=does_not_exist\n")
    with pytest.raises(RigError, match="does_not_exist"):
        cluster.start_slurmctld()
    cluster.write_file(cluster.slurm_conf, good)
    cluster.start_slurmctld()


def test_added_daemon_runs_as_its_user(cluster: Cluster) -> None:
    pid = cluster.spawn("echo", ["sh", "-c", "id -un; exec sleep 1000"], user="slurm")
    wait_until(lambda: cluster.log("echo"), 5, "its output")
    assert cluster.log("echo") == "slurm\n"
    assert os.stat(f"/proc/{pid}").st_uid == cluster.uid("slurm")
    assert cluster.stop_daemon("echo") == -signal.SIGTERM


def test_command_that_does_not_end_is_killed(cluster: Cluster) -> None:
    with pytest.raises(RigError, match="no end within"):
        cluster.run_as("sb-alice", ["sh", "-c", "sleep 1000 & echo $! >pid; wait"], timeout_s=0.5)
    child = int((cluster.home("sb-alice") / "pid").read_text())
    wait_until(lambda: keeper.start_time(child) is None, 5, "the child to be gone")


def test_ports_listen_on_loopback_only_where_the_host_name_is_loopback(
    cluster: Cluster,
) -> None:
    if "NoInAddrAny" not in cluster.slurm_conf.read_text():
        pytest.skip("the host's name is not a loopback address")
    ports = {f"{port:04X}" for port in cluster._ports.values()}
    addresses = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        address, port = line.split()[1].split(":")
        if line.split()[3] == "0A" and port in ports:
            addresses.add(address)
    # slurmdbd has no such switch (it answers nobody without the rig's munge key).
    assert addresses <= {"0100007F", "0101007F", "00000000"}
    assert any(address != "00000000" for address in addresses)


def test_stop_leaves_no_process_and_no_directory() -> None:
    accounts = {"fc_own": ("sb-only-here",)}
    with Cluster(nodes=(Node(name="solo", cpus=2),), accounts=accounts) as own:
        root = own.root
        # A job that leaves something behind in a session of its own, as jobs do.
        script = "setsid -f sleep 1000; sleep 1000"
        job = own.sbatch("sb-only-here", "--output=/dev/null", script=script)
        own.wait_job(job, "RUNNING")
        wait_until(lambda: len(rig_processes(root)) > 6, 10, "the job's processes")
        pids = rig_processes(root)
        begun = time.monotonic()
        report = own.stop()
        assert time.monotonic() - begun < 15
    assert report["killed"] == []
    assert report["exits"]["slurmctld"] == 0
    assert not root.exists()
    assert [pid for pid in pids if keeper.start_time(pid) is not None] == []
    assert rig_processes(root) == []


def test_staged_plugins_are_loaded_from_the_scratch_directory() -> None:
    def stage(directory: Path) -> None:
        (directory / "plugins").mkdir()
        source = distribution_plugin_dir() / "job_submit_all_partitions.so"
        shutil.copy(source, directory / "plugins" / "job_submit_all_partitions.so")

    plugins = PluginSet(stage=stage, job_submit="all_partitions", jobcomp="", spank="")
    with Cluster(plugins=plugins) as own:
        maps = Path(f"/proc/{own.pid('slurmctld')}/maps").read_text()
        assert f"{own.stage_dir}/plugins/job_submit_all_partitions.so" in maps
        job = own.sbatch("sb-alice", "--hold")
        assert set(own.job(job)["Partition"].split(",")) == {part.name for part in own.partitions}


def test_configuration_written_before_the_start_is_beside_slurm_conf() -> None:
    own = Cluster()
    own.prepare()
    try:
        path = own.write_bank_config("[Policy]\n", owner="slurm", mode=0o600)
        assert path.parent == own.slurm_conf.parent
        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (
            own.uid("slurm"),
            0o600,
        )
        assert own.state_dir.stat().st_mode & 0o777 == 0o700
        assert own.state_dir.stat().st_uid == own.uid("slurm")
    finally:
        own.stop()


def test_users_outlive_a_rig_while_another_uses_them(cluster: Cluster) -> None:
    with Cluster(nodes=(Node(name="solo", cpus=2),)) as other:
        assert other.root != cluster.root
    assert pwd.getpwnam("sb-alice").pw_gecos == keeper.USER_COMMENT
    assert cluster.wait_job(cluster.sbatch("sb-alice", script="sleep 0")) == {"COMPLETED"}


def start_in_another_process(end: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that starts a small rig and says where, then does `end`."""
    program = f"""
        import signal, sys
        from tests.rig.cluster import Cluster, Node
        cluster = Cluster(nodes=(Node(name="solo", cpus=2),))
        cluster.start()
        cluster.sbatch("sb-alice", script="sleep 1000")
        print(cluster.root, flush=True)
        {end}
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    root = Path(process.stdout.readline().strip())
    assert root.name.startswith("slurm-banking-rig-")
    return process, root


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_runner_ended_by_a_signal_leaves_nothing(number: signal.Signals) -> None:
    process, root = start_in_another_process("signal.pause()")
    process.send_signal(number)
    process.wait(timeout=30)
    wait_until(lambda: not root.exists() and not rig_processes(root), 30, f"{root} to be gone")


def test_runner_that_forgets_to_stop_leaves_nothing() -> None:
    process, root = start_in_another_process("sys.exit(0)")
    assert process.wait(timeout=30) == 0
    wait_until(lambda: not root.exists() and not rig_processes(root), 30, f"{root} to be gone")


def test_detached_rig_stays_until_it_is_taken_down() -> None:
    process, root = start_in_another_process("cluster.detach()")
    assert process.wait(timeout=30) == 0
    time.sleep(1)
    assert root not in stale_rigs()
    assert root in left_running()
    env = {"PATH": os.environ["PATH"], "SLURM_CONF": str(root / "etc" / "slurm.conf")}
    assert subprocess.run(["sinfo"], env=env, capture_output=True, check=False).returncode == 0
    down(root)
    wait_until(lambda: not root.exists() and not rig_processes(root), 30, f"{root} to be gone")
    assert root not in left_running()


def test_only_rigs_that_this_checkout_left_running_count_as_left() -> None:
    with (
        Cluster() as attached,
        tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir="/tmp") as name,
    ):
        other = Path(name)
        assert attached.root not in left_running()
        (other / "detached").write_text("/another/checkout\n")
        assert other not in left_running()
        (other / "detached").write_text(f"{CHECKOUT}\n")
        assert other in left_running()
        os.chown(other, 65534, 65534)
        assert other not in left_running()


def test_rig_whose_keeper_was_killed_too_is_stale_and_can_be_removed() -> None:
    process, root = start_in_another_process("signal.pause()")
    for pid in rig_processes(root):
        if b"keeper.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait(timeout=30)
    wait_until(lambda: root in stale_rigs(), 10, "it to be seen as stale")
    left = rig_processes(root)
    remove_stale(root)
    assert not root.exists()
    for pid in left:  # a slurmstepd and its job: nobody was left to end them
        if keeper.start_time(pid) is not None:
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not rig_processes(root), 30, "its processes to be gone")


def test_works_from_a_checkout_that_others_cannot_enter() -> None:
    work = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    try:
        assert work.stat().st_mode & 0o777 == 0o700
        shutil.copytree(CHECKOUT / "tests" / "rig", work / "tests" / "rig")
        program = (
            "from tests.rig.cluster import Cluster\n"
            "with Cluster() as c:\n"
            "    print(c.wait_job(c.sbatch('sb-alice', script='true')))\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", program],
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.stdout == "{'COMPLETED'}\n", result.stderr
    finally:
        shutil.rmtree(work)


def test_every_account_has_its_users(cluster: Cluster) -> None:
    rows = cluster.sacctmgr("-n", "-P", "show", "assoc", "format=account,user").splitlines()
    for account, users in DEFAULT_ACCOUNTS.items():
        for user in users:
            assert f"{account}|{user}" in rows
    assert "FAILED" in FINISHED_STATES
