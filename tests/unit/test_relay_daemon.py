# SPDX-License-Identifier: BSD-3-Clause
"""The relay as a process, started as root, with stand-ins for Slurm's commands on its PATH and for the bank on a port."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest

from slurm_banking.errors import RelayUnavailable
from slurm_banking.ledger import store
from slurm_banking.relay import client, protocol
from tests.unit.relay_parts import DAEMON, NOBODY, ask_as

ROOT = Path(__file__).resolve().parents[2]

#: Plays SlurmUser: no process of ours runs as it.
SLURM = 64999


#: The relay runs under the system's Python, which SlurmUser can reach wherever the checkout is.
PYTHON = "/usr/bin/python3"

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="needs root to become SlurmUser"),
]


@functools.lru_cache(maxsize=None)
def staged() -> Path:
    """The packages where SlurmUser can read them."""
    directory = Path(tempfile.mkdtemp(prefix="slurm-banking-staged-", dir="/tmp"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    directory.chmod(0o755)
    for package in ("slurm_banking", "mybrc_client"):
        shutil.copytree(
            ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return directory


CONFIG = """
[API]
url = "{url}"
token_file = "{directory}/token"
timeout_s = 30
[Policy]
mode = "strict-allocation"
[Ledger]
state_dir = "{directory}/state"
[Relay]
socket = "{directory}/run/relay.sock"
queue_poll_s = 1
[PartitionPrice]
main = 1.0
"""

#: squeue, scontrol, sacct and sacctmgr in one: what they say is in slurm.json beside them.
FAKE_SLURM = """#!{python} -I
import json, os, re, sys
here = os.path.dirname(os.path.abspath(__file__))
name = os.path.basename(sys.argv[0])
with open(os.path.join(here, "slurm.json")) as file:
    world = json.load(file)
with open(os.path.join(here, "calls"), "a") as file:
    file.write(name + "\\n")
if world.get("down"):
    sys.exit(name + ": error: Unable to contact slurm controller")
if name == "scontrol" and "config" in sys.argv:
    print("BOOT_TIME = 1700000000\\nClusterName = demo\\nSlurmUser = slurm({uid})")
    print("SLURM_VERSION = 22.05.8\\nPrivateData = none\\nSelectType = select/cons_tres")
elif name == "scontrol" and "node" in sys.argv:
    print("NodeName=n1 CPUTot=8 ThreadsPerCore=1 Partitions=main")
elif name == "scontrol":
    print("PartitionName=main Default=YES DefaultTime=01:00:00 MaxTime=1-00:00:00 TotalCPUs=8 TotalNodes=1 "
          "MaxCPUsPerNode=UNLIMITED OverSubscribe=NO")
elif name == "squeue":
    for job in world.get("queue", []):
        for field, mark in re.findall(r"([A-Za-z_]+):([^,]*)", os.environ["SQUEUE_FORMAT2"]):
            sys.stdout.write(str(job.get(field, "N/A")) + mark)
        print()
elif name == "sacct" and "--helpformat" in sys.argv:
    print("JobID JobIDRaw")
elif name == "sacctmgr" and "user" in sys.argv:
    print("nobody|astro")
elif name == "sacctmgr" and "associations" in sys.argv:
    if "user=nobody" in sys.argv:
        print("nobody|astro||normal|normal")
"""


def job(job_id: int, **fields: Any) -> Dict[str, Any]:
    """A record of squeue's."""
    now = int(time.time())
    record = {
        "JobID": job_id,
        "JobArrayID": job_id,
        "ArrayJobID": job_id,
        "ArrayTaskID": "N/A",
        "HetJobID": 0,
        "HetJobOffset": 0,
        "UserID": NOBODY,
        "UserName": "nobody",
        "Account": "astro",
        "Partition": "main",
        "State": "PENDING",
        "TimeLimit": "1:00:00",
        "NumCPUs": 4,
        "NumNodes": 1,
        "QOS": "normal",
        "SubmitTime": now - 60,
        "StartTime": "N/A",
        "RestartCnt": 0,
        "NodeList": "",
        "admin_comment": "",
        "Name": "sleep",
    }
    return {**record, **fields}


class Site:
    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.log: List[Path] = []
        (directory / "state").mkdir(mode=0o700)
        os.chown(directory / "state", SLURM, SLURM)
        (directory / "token").write_text("Token 123456\n")
        os.chmod(directory / "token", 0o600)
        os.chown(directory / "token", SLURM, SLURM)
        self.config = directory / "bank-config.toml"
        self.write_config()
        (directory / "slurm.conf").write_text("ClusterName=Demo\n")
        bin_dir = directory / "bin"
        bin_dir.mkdir()
        os.chown(bin_dir, SLURM, SLURM)
        script = bin_dir / "fake"
        script.write_text(FAKE_SLURM.format(python="/usr/bin/python3", uid=SLURM))
        script.chmod(0o755)
        for name in ("squeue", "scontrol", "sacct", "sacctmgr"):
            shutil.copy(script, bin_dir / name)
        self.slurm()

    def write_config(self, **changes: str) -> None:
        text = CONFIG.format(directory=self.directory, url=self.url)
        for old, new in changes.items():
            text = text.replace(old, new)
        self.config.write_text(text)

    def slurm(self, **world: Any) -> None:
        """What Slurm's commands say from now on."""
        new = self.directory / "bin" / "slurm.json.new"
        new.write_text(json.dumps(world))
        new.replace(self.directory / "bin" / "slurm.json")

    def calls(self, name: str) -> int:
        try:
            return (self.directory / "bin" / "calls").read_text().split().count(name)
        except FileNotFoundError:
            return 0

    @property
    def socket(self) -> str:
        return str(self.directory / "run" / "relay.sock")

    def start(self, *options: str) -> "subprocess.Popen[str]":
        environment = {
            "PATH": f"{self.directory}/bin:/usr/bin:/bin",
            "PYTHONPATH": str(staged()),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.Popen(
            [
                PYTHON,
                "-m",
                "slurm_banking",
                "--config",
                str(self.config),
                "relay",
                *options,
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    @contextlib.contextmanager
    def running(self, *options: str) -> "Iterator[subprocess.Popen[str]]":
        process = self.start(*options)
        try:
            self.wait(lambda: self.ask("ping") is not None)
            yield process
        finally:
            process.kill()
            process.communicate()

    def ask(self, op: str, **arguments: Any) -> Optional[Dict[str, Any]]:
        try:
            return client.ask(self.socket, {"op": op, **arguments}, 10, allowed_owner_uids=(SLURM,))
        except RelayUnavailable:
            return None

    def status(self) -> Dict[str, Any]:
        return self.ask("status") or {}

    def wait(self, is_so: Any, within_s: float = 15.0) -> None:
        until = time.monotonic() + within_s
        while not is_so():
            if time.monotonic() > until:
                pytest.fail(
                    f"not so within {within_s} s; status: {self.status()}; log: {self.told()}"
                )
            time.sleep(0.05)

    def told(self) -> str:
        try:
            return (self.directory / "state" / "relay.log").read_text()
        except FileNotFoundError:
            return ""


@contextlib.contextmanager
def hung_bank() -> Iterator[str]:
    """Takes connections and never answers."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    listener.settimeout(0.1)
    held: List[socket.socket] = []
    stop = threading.Event()

    def accept() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                held.append(listener.accept()[0])

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api"
    finally:
        stop.set()
        thread.join()
        for connection in [listener, *held]:
            connection.close()


@pytest.fixture
def site() -> Iterator[Site]:
    path = tempfile.mkdtemp(prefix="sbr-")
    os.chmod(path, 0o755)
    yield Site(Path(path), "http://127.0.0.1:9/api")
    shutil.rmtree(path)


def test_the_relay_is_never_root(site: Site) -> None:
    with site.running("--foreground") as process:
        status = Path(f"/proc/{process.pid}/status").read_text()
        for line in ("Uid", "Gid"):
            ids = status.split(f"{line}:")[1].splitlines()[0].split()
            assert ids == [str(SLURM)] * 4
        assert status.split("Groups:")[1].splitlines()[0].split() == []


def test_root_makes_the_sockets_directory_for_it(site: Site) -> None:
    with site.running("--foreground"):
        found = os.stat(site.directory / "run")
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (SLURM, 0o755)


def test_everything_it_writes_is_its_own_alone(site: Site) -> None:
    with site.running() as _:
        site.wait(lambda: (site.directory / "run" / protocol.HEARTBEAT_NAME).exists())
        for name in os.listdir(site.directory / "state"):
            found = os.stat(site.directory / "state" / name)
            assert (found.st_uid, stat.S_IMODE(found.st_mode) & 0o077) == (SLURM, 0), name


def test_a_second_relay_says_so_and_is_no_failure(site: Site) -> None:
    with site.running("--foreground") as first:
        second = site.start("--foreground")
        _, complaint = second.communicate(timeout=20)
        assert second.returncode == 0
        assert complaint == f"slurm-banking relay: already running pid {first.pid}\n"
        assert site.ask("ping") == {
            "ok": True,
            "pid": first.pid,
            "version": site.status()["version"],
        }


def test_the_lock_and_not_a_file_left_behind_says_that_one_runs(site: Site) -> None:
    lock = site.directory / "state" / "relay.lock"
    lock.write_text("1\n")
    os.chown(lock, SLURM, SLURM)
    with site.running("--foreground") as process:
        assert lock.read_text() == f"{process.pid}\n"
        with open(lock) as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_file_that_is_removed_is_made_again(site: Site) -> None:
    lock = site.directory / "state" / "relay.lock"
    with site.running("--foreground") as process:
        lock.unlink()
        ours = f"{process.pid}\n"
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if lock.exists() and lock.read_text() == ours:
                break
            time.sleep(0.05)
        assert lock.read_text() == ours
        with open(lock) as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.send_signal(signal.SIGTERM)
        assert "lock_gone" in process.communicate(timeout=20)[1]


def test_of_two_relays_the_one_without_the_lock_ends(site: Site) -> None:
    """The state directory was emptied under the first, and the second was sooner."""
    lock = site.directory / "state" / "relay.lock"
    with site.running("--foreground") as process:
        fresh = lock.with_name("fresh")
        with open(fresh, "w") as held:
            held.write("4711\n")
            held.flush()
            os.chown(fresh, SLURM, SLURM)
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fresh.rename(lock)
            _, told = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "relay_stopping reason='already running pid 4711'" in told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_soon(site: Site, number: signal.Signals) -> None:
    with site.running("--foreground") as process:
        began = time.monotonic()
        process.send_signal(number)
        _, told = process.communicate(timeout=20)
        assert time.monotonic() - began < 8.0
        assert process.returncode == 0
        assert f"relay_stopping signal={number.name}" in told
        assert not os.path.exists(site.socket)


def test_it_ends_within_two_seconds_although_the_bank_hangs(site: Site) -> None:
    with hung_bank() as url:
        site.url = url
        site.write_config()
        site.slurm(queue=[job(5)])
        with site.running("--foreground") as process:
            site.wait(lambda: site.status().get("open_liens") == 1)
            ask_as(NOBODY, site.socket, {"op": "balance"}, owner=SLURM)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=10)
            assert time.monotonic() - began < 2.5
            assert process.returncode == 0


def test_a_new_ledger_is_compared_with_the_queue_before_anything_else(site: Site) -> None:
    site.slurm(queue=[job(5), job(6, State="RUNNING", StartTime=int(time.time()) - 30)])
    with site.running():
        site.wait(lambda: site.status().get("ledger_complete"))
        jobs = site.ask("jobs", all_users=True) or {}
        assert [(lien["job_id"], lien["origin"]) for lien in jobs["queued"]] == [
            (5, "grandfathered")
        ]
        assert [(run["job_id"], run["counted"]) for run in jobs["running"]] == [(6, False)]
        assert "ledger_rebuilt" in site.told()


def test_a_deleted_ledger_is_rebuilt_and_delivered_from(site: Site) -> None:
    site.slurm(queue=[job(6, State="RUNNING", StartTime=int(time.time()) - 30)])
    with site.running():
        site.wait(lambda: site.status().get("deliveries", {}).get("waiting") == 1)
        for name in os.listdir(site.directory / "state"):
            if name.startswith("ledger."):
                os.unlink(site.directory / "state" / name)
        site.wait(lambda: site.told().count("ledger_rebuilt") == 2)
        site.wait(lambda: site.status().get("deliveries", {}).get("waiting") == 1)
        site.wait(lambda: "ledger_replaced" in site.told())
        site.wait(lambda: site.status().get("deliveries", {}).get("waiting") == 1)
        assert site.status()["outbox"] == 1


def test_a_hung_bank_stalls_neither_sweeps_nor_answers(site: Site) -> None:
    with hung_bank() as url:
        site.url = url
        site.write_config()
        site.slurm(queue=[job(6, State="RUNNING", StartTime=int(time.time()) - 30)])
        with site.running():
            site.wait(lambda: site.status().get("outbox") == 1)
            time.sleep(1.5)  # deliveries and funds are with the bank now
            swept = site.calls("squeue")
            site.slurm(queue=[job(7)])
            began = time.monotonic()
            site.wait(lambda: site.status().get("open_liens") == 1, 5)
            assert time.monotonic() - began < 5
            assert site.calls("squeue") > swept
            began = time.monotonic()
            assert (site.ask("ping") or {})["ok"]
            assert time.monotonic() - began < 0.5


def test_slurmctld_away_is_told_and_ends_nothing(site: Site) -> None:
    site.slurm(down=True)
    with site.running():
        site.wait(lambda: "queue" in site.status().get("failing", {}))
        assert "Unable to contact" in site.status()["failing"]["queue"]
        assert site.told().count("step_failed step=queue") == 1
        site.slurm()
        site.wait(lambda: site.status().get("ledger_complete"), 25)
        site.wait(lambda: site.status().get("failing") == {})


def test_an_unconfirmed_lien_is_looked_for_at_once(site: Site) -> None:
    site.write_config(**{"queue_poll_s = 1": "queue_poll_s = 300"})
    site.slurm(queue=[])
    with site.running():
        site.wait(lambda: site.status().get("ledger_complete"))
        _write_as_slurm(site, "submit")
        site.slurm(queue=[job(8, SubmitTime=int(time.time()), admin_comment=_token(site))])
        began = time.monotonic()
        site.wait(lambda: _states(site) == ["confirmed"])
        assert time.monotonic() - began < 4


def _write_as_slurm(site: Site, what: str) -> None:
    """As slurmctld does it: a lien, in the same file, by another process."""
    program = f"""
import os
os.setresgid({SLURM}, {SLURM}, {SLURM}); os.setresuid({SLURM}, {SLURM}, {SLURM})
from slurm_banking.ledger import Ledger
with Ledger({str(site.directory / "state")!r}, "demo").transaction() as tx:
    tx.open_lien(account="astro", user_id={NOBODY}, per_task_csu=400, tasks=1, origin={what!r},
        inputs={{"partition": "main", "cpus": 4, "nodes": 1, "time_limit_min": 60, "tasks": 1, "qos": "normal",
            "price_su": "1.0", "price_version": "x"}}, reason="fits", actor="slurmctld", lien_id="{"ab" * 16}")
"""
    subprocess.run([PYTHON, "-c", program], check=True, cwd=staged(), timeout=30)


def _token(site: Site) -> str:
    return f"slurm_banking={'ab' * 16}:400:x"


def _states(site: Site) -> List[str]:
    return [lien["state"] for lien in (site.ask("jobs", all_users=True) or {}).get("queued", [])]


def test_the_heartbeat_moves_while_questions_are_answered(site: Site) -> None:
    beat = site.directory / "run" / protocol.HEARTBEAT_NAME
    with site.running() as process:
        site.wait(beat.exists)
        assert stat.S_IMODE(beat.stat().st_mode) == 0o644
        first = beat.stat().st_mtime_ns
        site.wait(lambda: beat.stat().st_mtime_ns > first, 5)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        stopped = beat.stat().st_mtime_ns
        time.sleep(1.5)
        assert beat.stat().st_mtime_ns == stopped
        process.send_signal(signal.SIGCONT)
        site.wait(lambda: beat.stat().st_mtime_ns > stopped, 5)


def test_a_socket_that_was_cleaned_away_comes_back(site: Site) -> None:
    with site.running():
        os.unlink(site.socket)
        site.wait(lambda: site.ask("ping") is not None, 5)


def test_prices_are_in_the_ledger_and_follow_the_file(site: Site) -> None:
    with site.running():
        site.wait(lambda: "prices_in_force" in site.told())
        site.write_config(**{"main = 1.0": "main = 2.0"})
        site.wait(lambda: site.told().count("prices_in_force") == 2)


def test_a_broken_file_is_told_once_and_the_last_good_one_serves_on(site: Site) -> None:
    with site.running() as process:
        site.write_config(**{"main = 1.0": 'main = "cheap"'})
        process.send_signal(signal.SIGHUP)
        site.wait(lambda: site.status().get("config_problem"))
        assert "main" in site.status()["config_problem"]
        time.sleep(2.5)
        assert site.told().count("config_rejected") == 1
        assert process.poll() is None
        site.write_config()
        site.wait(lambda: site.status().get("config_problem") is None)


def test_a_token_that_others_may_read_is_told_and_nothing_is_sent(site: Site) -> None:
    os.chmod(site.directory / "token", 0o644)
    site.slurm(queue=[job(6, State="RUNNING", StartTime=int(time.time()) - 30)])
    with site.running():
        site.wait(lambda: any("chmod 600" in alarm for alarm in site.status().get("alarms", [])))
        assert "123456" not in site.told()
        os.chmod(site.directory / "token", 0o600)
        site.wait(lambda: not site.status().get("alarms"), 25)


def test_after_a_kill_the_next_one_takes_over(site: Site) -> None:
    with site.running() as first:
        first.send_signal(signal.SIGKILL)
        first.communicate()
        with site.running() as second:
            assert (site.ask("ping") or {})["pid"] == second.pid


def start_fails(site: Site) -> str:
    process = site.start("--foreground")
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Traceback" not in complaint
    return complaint


def test_a_configuration_with_mistakes_is_one_line_for_each(site: Site) -> None:
    site.write_config(**{"queue_poll_s = 1": "queue_poll_s = -1\nfoo = 2"})
    complaint = start_fails(site)
    assert len(complaint.splitlines()) == 2
    assert "queue_poll_s = -1" in complaint and "foo" in complaint


def test_a_missing_state_directory_is_one_line_with_what_to_do(site: Site) -> None:
    (site.directory / "state").rmdir()
    complaint = start_fails(site)
    assert "install -d -m 700" in complaint
    assert len(complaint.splitlines()) == 1


def test_a_state_directory_of_roots_is_refused(site: Site) -> None:
    os.chown(site.directory / "state", 0, 0)
    assert "belongs to root; expected SlurmUser" in start_fails(site)


def test_another_clusters_ledger_is_refused(site: Site) -> None:
    with site.running():
        pass
    (site.directory / "slurm.conf").write_text("ClusterName=other\n")
    assert "belongs to cluster 'demo', not 'other'" in start_fails(site)


def test_an_occupied_socket_path_is_one_line(site: Site) -> None:
    (site.directory / "run").mkdir()
    os.chown(site.directory / "run", SLURM, SLURM)
    Path(site.socket).write_text("")
    assert "something else is there" in start_fails(site)


def test_what_it_inherits_is_put_aside(site: Site) -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    try:
        with site.running() as process:
            links = [
                os.readlink(f"/proc/{process.pid}/fd/{name}")
                for name in os.listdir(f"/proc/{process.pid}/fd")
            ]
            assert os.readlink(f"/proc/self/fd/{write_end}") not in links
            assert os.getsid(process.pid) == process.pid
            assert os.readlink(f"/proc/{process.pid}/cwd") == "/"
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_user_asks_it_from_the_command_line(site: Site) -> None:
    with site.running():
        site.wait(lambda: site.status().get("ledger_complete"))
        reply = ask_as(
            NOBODY, site.socket, {"op": "quote", "options": {"num_tasks": 2}}, owner=SLURM
        )
        assert reply["estimate"]["cost_csu"] == 200
        assert reply["account"] == "astro"
        reply = ask_as(DAEMON, site.socket, {"op": "balance"}, owner=SLURM)
        assert reply["accounts"] == []


def test_the_ledger_of_the_tests_is_the_one_of_the_relay(site: Site) -> None:
    with site.running():
        site.wait(lambda: site.status().get("ledger_complete"))
        assert site.status()["state_dir"] == str(site.directory / "state")
        assert (site.directory / "state" / store.FILE_NAME).exists()
