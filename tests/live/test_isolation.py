# SPDX-License-Identifier: BSD-3-Clause
"""slurmctld never waits for the bank, opens no socket but the relay's, and carries nothing that speaks to a network."""

from __future__ import annotations

import os
import re
import signal
import socket
import statistics
import threading
import time
from pathlib import Path

import pytest

from tests.rig.banked import BankedCluster
from tests.rig.cluster import wait_until

pytestmark = pytest.mark.timeout(180)


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def unix_and_inet_peers(pid: int) -> set[str]:
    """Inodes of the process's sockets."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        match = re.fullmatch(r"socket:\[(\d+)\]", target)
        if match:
            found.add(match.group(1))
    return found


def tcp_remote_ports(pid: int) -> set[int]:
    mine = unix_and_inet_peers(pid)
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in mine:
                ports.add(int(fields[2].split(":")[1], 16))
    return ports


def decision_times_us(site: BankedCluster, since: int) -> list[int]:
    """``elapsed_us`` of the submissions that slurmctld logged after that many bytes of its log."""
    text = (site.log_dir / "slurmctld.log").read_text()[since:]
    return [
        int(found)
        for found in re.findall(r"slurm_banking: submission_\w+ .*elapsed_us=(\d+)", text)
    ]


def log_size(site: BankedCluster) -> int:
    return len((site.log_dir / "slurmctld.log").read_text())


@pytest.fixture(scope="module")
def site():  # type: ignore[no-untyped-def]
    with BankedCluster(slurmctld_debug="debug") as running:
        yield running


def test_slurmctld_carries_neither_requests_nor_ssl(site: BankedCluster) -> None:
    site.sbatch("sb-alice", "--time=1", script="true")
    pid = site.pid("slurmctld")
    assert pid is not None
    mapped = maps(pid)
    assert "libpython3" in mapped, "the test looks at the right process"
    assert not re.search(r"libssl|_ssl\.|_hashlib\.", mapped)
    modules = re.findall(r"slurm_banking: modules (\S+)", site.log("slurmctld"))
    assert modules
    names = {name for line in modules for name in line.split(",")}
    assert "slurm_banking.boundary.engine" in names
    for absent in ("requests", "urllib3", "ssl", "_ssl", "hashlib", "http.client", "mybrc_client", "attr", "subprocess"):  # fmt: skip
        assert absent not in names, absent


def test_slurmctld_never_connects_to_the_bank(site: BankedCluster) -> None:
    pid = site.pid("slurmctld")
    assert pid is not None
    seen: set[int] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.005):
            seen.update(tcp_remote_ports(pid))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(10):
            site.try_sbatch("sb-alice", "--time=1", script="true")
            site.try_sbatch("sb-mallory", "--time=30", script="true")
        time.sleep(1)
    finally:
        stop.set()
        watcher.join()
    assert site.bank_port not in seen


def test_neither_srun_nor_slurmstepd_maps_python(site: BankedCluster) -> None:
    process = site.popen_as("sb-alice", ["srun", "--time=1", "-n", "1", "sleep", "6"])
    try:
        steps: dict[int, str] = {}

        def look() -> bool:
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit():
                    continue
                try:
                    # Slurm 25.11 executes slurmstepd by a descriptor, whose number is then its "comm".
                    name = Path(os.readlink(entry / "exe")).name
                    if not name.startswith(("slurmstepd", "srun")):
                        continue
                    text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                    # slurmstepd has no such environment from some newer release on, but our plugin.
                    text += maps(int(entry.name)).encode()
                    if str(site.root).encode() in text:
                        steps[int(entry.name)] = name
                        assert "libpython" not in maps(int(entry.name)), name
                        if name.startswith("slurmstepd"):
                            assert "spank_slurm_banking" in maps(int(entry.name))
                except (OSError, PermissionError):
                    continue
            return any(name.startswith("slurmstepd") for name in steps.values()) and any(
                name.startswith("srun") for name in steps.values()
            )

        wait_until(look, 15, "srun and slurmstepd", 0.2)
    finally:
        process.terminate()
        process.communicate(timeout=20)


def relay_pid(site: BankedCluster) -> int:
    pid = site.relay_pid()
    assert pid is not None
    return pid


def submit_and_time(site: BankedCluster, count: int) -> list[int]:
    since = log_size(site)
    for _ in range(count):
        # would be refused, so the funds are worth a question
        assert site.try_sbatch("sb-mallory", "--time=30", script="true").returncode != 0
        time.sleep(0.02)
    wait_until(lambda: len(decision_times_us(site, since)) >= count, 10, "the decisions in the log")
    return decision_times_us(site, since)


def check_bounded(times_us: list[int], label: str) -> None:
    print(
        f"{label}: max {max(times_us)} us, median of the rest {statistics.median(times_us[3:])} us"
    )
    assert max(times_us) <= 250_000, times_us
    assert max(times_us[3:]) <= 50_000, f"none after the first few: {times_us}"


def wait_stale() -> None:
    """Until the funds that the relay refreshed last are old enough to be asked for again."""
    time.sleep(4)


def test_with_the_relay_hung_a_submission_waits_little_and_soon_not_at_all(
    site: BankedCluster,
) -> None:
    pid = relay_pid(site)
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_stale()
        check_bounded(submit_and_time(site, 12), "hung")
    finally:
        os.kill(pid, signal.SIGCONT)


def test_with_the_relay_stopped_nobody_waits(site: BankedCluster) -> None:
    os.kill(relay_pid(site), signal.SIGTERM)
    wait_until(lambda: site.relay_pid() is None, 10, "the relay to end")
    wait_stale()
    check_bounded(submit_and_time(site, 12), "stopped")


def test_with_a_relay_that_trickles_a_submission_waits_little_and_soon_not_at_all(
    site: BankedCluster,
) -> None:
    assert site.relay_pid() is None, "runs after the relay was stopped"
    path = site.run_dir / "relay.sock"
    path.unlink(missing_ok=True)
    site.restart_slurmctld()  # a plugin that has not yet learnt that nobody answers
    pid = site.relay_pid()
    wait_until(lambda: site.relay_pid() is not None, 10, "slurmctld to start the relay")
    pid = relay_pid(site)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: site.relay_pid() is None, 10, "the relay to end")
    path.unlink(missing_ok=True)
    (site.run_dir / "relay.heartbeat").unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(16)
    path.chmod(0o666)
    stop = threading.Event()

    def trickle(connection: socket.socket) -> None:
        with connection:
            while not stop.wait(1.0):
                try:
                    connection.send(b" ")
                except OSError:
                    return

    def serve() -> None:
        server.settimeout(0.2)
        while not stop.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            threading.Thread(target=trickle, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        wait_stale()
        times = submit_and_time(site, 12)
        assert max(times) >= 100_000, "somebody did wait for it: the test is not empty"
        check_bounded(times, "trickling")
    finally:
        stop.set()
        thread.join()
        server.close()
        path.unlink(missing_ok=True)
