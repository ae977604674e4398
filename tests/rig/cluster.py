# SPDX-License-Identifier: BSD-3-Clause
"""A real Slurm cluster in a scratch directory: munge, MariaDB, slurmdbd, slurmctld and two slurmd.

As root, on Debian's packages, on loopback::

    with Cluster() as cluster:
        job = cluster.sbatch("sb-alice", "--time=1", script="sleep 1")
        cluster.wait_job(job, {"COMPLETED"})

It neither needs nor touches systemd, /etc/slurm, /run/munge or a cluster of the host's own. Several rigs
may run at once. Every process is a descendant of a keeper (keeper.py), which ends and removes everything
when the rig stops, is interrupted, or is killed. Nothing that SlurmUser or a job needs is read from the
checkout: what plugins need is staged into the scratch directory by the caller (`PluginSet.stage`).

From a shell, in the checkout's root::

    python3 -m tests.rig.cluster up       starts one and leaves it running; says how to use and stop it
    python3 -m tests.rig.cluster down DIR | --left
    python3 -m tests.rig.cluster stale [--remove]
"""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import functools
import glob
import json
import logging
import os
import pwd
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from tests.rig import keeper

logger = logging.getLogger(__name__)

CHECKOUT = Path(__file__).resolve().parents[2]
SCRATCH_PREFIX = "slurm-banking-rig-"
SLURM_USER = "slurm"
OPERATOR = "sb-oper"

#: Account → its users. The first account that names a user is the user's default account.
DEFAULT_ACCOUNTS: Mapping[str, Sequence[str]] = {
    "fc_alpha": ("sb-alice", "sb-bob"),
    "fc_beta": ("sb-carol",),
    "fc_gamma": ("sb-mallory",),
    "ops": (OPERATOR,),
}

PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Of each rig, one after the other.
PORTS_IN_BLOCK = 200

#: The keeper ends daemons of a lower stage first.
STAGE_ADDED = 10
STAGE_SLURM = 20
STAGE_SLURMDBD = 30
STAGE_INFRASTRUCTURE = 40

FINISHED_STATES = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "TIMEOUT",
    ]
)


class RigError(Exception):
    """The cluster could not do what was asked; the message says what, and shows the log's end."""


class CommandFailed(RigError):
    """A client command ended with a status other than 0; `stderr` is what it said."""

    def __init__(self, result: subprocess.CompletedProcess[str]) -> None:
        self.result = result
        self.returncode: int = result.returncode
        self.stdout: str = result.stdout
        self.stderr: str = result.stderr
        command = shlex.join(str(part) for part in result.args)
        super().__init__(f"{command}: status {result.returncode}: {result.stderr.strip()}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    name: str
    cpus: int = 8  #: hardware threads
    memory_mib: int = 16000
    sockets: int = 1
    threads: int = 1  #: per core
    gpus: tuple[str, int] | None = (
        None  #: (type, count), of made-up device files, spread over the sockets
    )
    extra: str = ""  #: appended to the NodeName line

    @property
    def cores(self) -> int:
        """Per socket."""
        return self.cpus // self.sockets // self.threads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partition:
    name: str
    default_time_min: int | None = 10  #: None: the partition has no DefaultTime.
    max_time: str = "1-00:00:00"
    exclusive: bool = False
    default: bool = False
    nodes: tuple[str, ...] | None = None  #: None: all of them
    extra: str = ""  #: appended to the PartitionName line


DEFAULT_NODES = (Node(name="n1"), Node(name="n2"))
DEFAULT_PARTITIONS = (
    Partition(name="main", default=True),
    Partition(name="debug", default_time_min=5, max_time="00:30:00"),
    Partition(name="exclusive", exclusive=True),
    Partition(name="unpriced"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PluginSet:
    """The plugins under test. An empty name leaves that kind out."""

    #: Fills the directory it is given: the .so files for slurmctld in ``plugins/``, the spank one in
    #: ``spank/``, and whatever else they read (the Python package) where they expect it. Afterwards all of
    #: it belongs to root and is readable, and not writable, by everyone.
    stage: Callable[[Path], None]
    job_submit: str = "slurm_banking"
    jobcomp: str = "slurm_banking"
    spank: str = "spank_slurm_banking.so"
    spank_arguments: str = ""
    #: Other plugins of JobSubmitPlugins, ahead of `job_submit`.
    job_submit_before: tuple[str, ...] = ()


def wait_until(
    condition: Callable[[], Any], timeout_s: float, what: str, interval_s: float = 0.05
) -> Any:
    """The first true value of `condition()`; RigError naming `what` if there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise RigError(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(interval_s)


@functools.lru_cache(maxsize=None)
def slurm_release() -> tuple[int, int]:
    """(22, 5) of "slurm-wlm 22.05.8"."""
    told = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, timeout=10).stdout
    match = re.search(r"(\d+)\.(\d+)", told)
    if match is None:
        raise RigError(f"slurmctld -V: {told!r}")
    return int(match[1]), int(match[2])


class Cluster:
    """One scratch cluster; see the module. Not started before `start()` or ``with``.

    `root`: the scratch directory, made by the rig and removed at the end; by default a new name in /tmp.
    `extra_slurm_conf`: keys of slurm.conf that replace the rig's own; a value of None drops the key.
    `enforce`: AccountingStorageEnforce.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        plugins: PluginSet | None = None,
        extra_slurm_conf: Mapping[str, str | None] | None = None,
        nodes: Sequence[Node] = DEFAULT_NODES,
        partitions: Sequence[Partition] = DEFAULT_PARTITIONS,
        accounts: Mapping[str, Sequence[str]] = DEFAULT_ACCOUNTS,
        cluster_name: str = "rig",
        enforce: str = "associations,limits,qos",
        slurmctld_debug: str = "verbose",
        daemon_env: Mapping[str, str] | None = None,
        grace_s: float = keeper.DEFAULT_GRACE_S,
    ) -> None:
        self._wanted_root = root
        self._root: Path | None = None
        self.plugins = plugins
        self.extra_slurm_conf = dict(extra_slurm_conf or {})
        self.nodes = tuple(nodes)
        self.partitions = tuple(partitions)
        self.accounts = {account: tuple(users) for account, users in accounts.items()}
        self.users = tuple(dict.fromkeys(user for users in accounts.values() for user in users))
        self.cluster_name = cluster_name
        self.enforce = enforce
        self.slurmctld_debug = slurmctld_debug
        self.daemon_env = dict(daemon_env or {})
        self.grace_s = grace_s
        self.timings_s: dict[str, float] = {}  #: how long each phase of start() took
        self._keeper: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._control_lock = threading.Lock()
        self._ports: dict[str, int] = {}
        self._port_guard: socket.socket | None = None
        self._specs: dict[str, dict[str, Any]] = {}

    # -- places -----------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        if self._root is None:
            raise RigError("the cluster has no directory yet: call prepare() or start()")
        return self._root

    @property
    def etc_dir(self) -> Path:
        """slurm.conf and what lies beside it; root's, readable by all."""
        return self.root / "etc"

    @property
    def slurm_conf(self) -> Path:
        return self.etc_dir / "slurm.conf"

    @property
    def bank_config(self) -> Path:
        return self.etc_dir / "bank-config.toml"

    @property
    def state_dir(self) -> Path:
        """For the product's ledger: SlurmUser's, 0700."""
        return self.root / "state"

    @property
    def run_dir(self) -> Path:
        """For the product's sockets: SlurmUser's, 0755."""
        return self.root / "run"

    @property
    def log_dir(self) -> Path:
        return self.root / "log"

    @property
    def stage_dir(self) -> Path:
        """What `PluginSet.stage` filled."""
        return self.root / "stage"

    def home(self, user: str) -> Path:
        """Where commands of `user` start, and HOME; their own, 0700."""
        return self.root / "home" / user

    def uid(self, user: str) -> int:
        return pwd.getpwnam(user).pw_uid

    def env(self) -> dict[str, str]:
        """The environment of client commands: nothing of the caller's, and SLURM_CONF."""
        return {
            "PATH": PROGRAM_PATH,
            "LANG": "C.UTF-8",
            "SLURM_CONF": str(self.slurm_conf),
        }

    # -- life -------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def prepare(self) -> None:
        """Makes the directory, its keeper, the Unix users and the configuration; starts no daemon.

        Between this and `start()` a caller may write the product's configuration.
        """
        if self._root is not None:
            return
        if os.geteuid() != 0:
            raise RigError("the rig must run as root: it starts daemons as several users")
        for stale in stale_rigs():
            logger.warning("left over from an earlier run: %s (stale --remove)", stale)
        begun = time.monotonic()
        if self._wanted_root is None:
            self._root = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir="/tmp"))
        else:
            self._wanted_root.mkdir(parents=True)
            self._root = self._wanted_root
        self._root.chmod(0o755)
        try:
            self._start_keeper()
            atexit.register(self.stop)
            self._make_users()
            self._make_directories()
            self._stage()
            self._choose_ports()
            self._write_configuration()
        except BaseException:
            self.stop()
            raise
        self.timings_s["prepare"] = time.monotonic() - begun

    def start(self) -> None:
        """Returns when both nodes are idle."""
        self.prepare()
        begun = time.monotonic()
        try:
            self._start_all()
        except BaseException:
            self.stop()
            raise
        self.timings_s["start"] = time.monotonic() - begun

    def stop(self, remove: bool = True) -> dict[str, Any]:
        """Ends every process and removes the directory (kept for a look with ``remove=False``).

        Answers ``{"exits": {daemon: status}, "killed": [daemons that SIGTERM did not end in time]}``.
        Does nothing the second time.
        """
        atexit.unregister(self.stop)
        root, self._root = self._root, None
        if root is None:
            return {"exits": {}, "killed": []}
        answer: dict[str, Any] = {"exits": {}, "killed": []}
        if self._keeper is not None:
            try:
                answer = self._ask({"op": "end", "grace_s": self.grace_s, "remove": remove})
                self._keeper.wait(timeout=30)
            except (RigError, OSError, subprocess.TimeoutExpired) as error:
                logger.error("the keeper of %s did not finish: %s", root, error)
                self._keeper.terminate()
            finally:
                self._forget_keeper()
        elif remove:
            shutil.rmtree(root, ignore_errors=True)
        return answer

    def detach(self) -> int:
        """Leaves the cluster running when this process ends; SIGTERM to the returned pid ends it."""
        self._ask({"op": "detach", "checkout": str(CHECKOUT)})
        assert self._keeper is not None
        pid = self._keeper.pid
        self._keeper.returncode = 0  # no longer ours: no warning that it still runs
        self._forget_keeper()
        self._root = None
        atexit.unregister(self.stop)
        return pid

    def _forget_keeper(self) -> None:
        if self._port_guard is not None:
            self._port_guard.close()
            self._port_guard = None
        if self._control is not None:
            self._control.close()
        self._control = None
        self._keeper = None

    def _start_keeper(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs, (self.root / "keeper.log").open("ab") as log:
            self._keeper = subprocess.Popen(
                [
                    "/usr/bin/python3",
                    "-I",
                    str(Path(keeper.__file__).resolve()),
                    str(self.root),
                ],
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": PROGRAM_PATH, "LANG": "C.UTF-8"},
            )
        self._control = ours
        self._ask({"op": "status"})  # it holds its lock on the users from here on

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._control_lock:
            if self._control is None:
                raise RigError("the cluster is not running")
            self._control.sendall(json.dumps(request).encode() + b"\n")
            buffered = b""
            while not buffered.endswith(b"\n"):
                chunk = self._control.recv(65536)
                if not chunk:
                    log = self.root / "keeper.log" if self._root else None
                    text = log.read_text() if log and log.exists() else ""
                    raise RigError(f"the rig's keeper ended: {text}")
                buffered += chunk
        answer: dict[str, Any] = json.loads(buffered)
        if "error" in answer:
            raise RigError(answer["error"])
        return answer

    # -- what start() does ------------------------------------------------------------------------

    def _make_users(self) -> None:
        """Adds the Unix users that are missing; the last rig to end removes those that a rig added."""
        with keeper.UserMutex():
            known = {user.pw_name for user in pwd.getpwall()}
            for user in self.users:
                if user in known:
                    continue
                subprocess.run(
                    ["useradd", "--no-create-home", "--user-group", "--shell=/bin/sh"]
                    + [
                        "--home-dir=/nonexistent",
                        f"--comment={keeper.USER_COMMENT}",
                        user,
                    ],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=True,
                    timeout=30,
                )

    def _make_directories(self) -> None:
        for name, owner, mode in (
            ("etc", "root", 0o755),
            ("log", SLURM_USER, 0o755),
            ("state", SLURM_USER, 0o700),
            ("run", SLURM_USER, 0o755),
            ("ctld", SLURM_USER, 0o700),
            ("spool", "root", 0o755),
            ("home", "root", 0o755),
            ("stage", "root", 0o755),
            ("munge", "munge", 0o711),
            ("mariadb", "mysql", 0o755),
            ("mariadb/data", "mysql", 0o700),
            *((f"spool/{node.name}", "root", 0o755) for node in self.nodes),
            *((f"home/{user}", user, 0o700) for user in ("root", SLURM_USER, *self.users)),
        ):
            path = self.root / name
            path.mkdir()
            path.chmod(mode)
            shutil.chown(path, owner, pwd.getpwnam(owner).pw_gid)

    def _stage(self) -> None:
        if self.plugins is None:
            return
        self.plugins.stage(self.stage_dir)
        subprocess.run(["chown", "-R", "root:root", str(self.stage_dir)], check=True, timeout=60)
        subprocess.run(
            ["chmod", "-R", "u+rwX,go+rX,go-w", str(self.stage_dir)],
            check=True,
            timeout=60,
        )

    def _choose_ports(self) -> None:
        """A block of free ports below the kernel's range for outgoing connections, which could take them again.

        The block is this rig's by an abstract socket, since another rig may choose before ours listens.
        """
        names = ["slurmctld", "slurmdbd", *(node.name for node in self.nodes)]
        if len(names) > PORTS_IN_BLOCK:
            raise RigError(f"{len(names)} daemons: expected at most {PORTS_IN_BLOCK}")
        for _ in range(1000):
            first = random.randrange(10000, 32000, PORTS_IN_BLOCK)
            guard = socket.socket(socket.AF_UNIX)
            try:
                guard.bind(f"\0{SCRATCH_PREFIX}ports-{first}")
                for port in range(first, first + len(names)):
                    with socket.socket() as probe:
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        probe.bind(("0.0.0.0", port))
            except OSError:
                guard.close()
                continue
            self._port_guard = guard
            self._ports = dict(zip(names, range(first, first + len(names)), strict=True))
            return
        raise RigError("found no free ports")

    def write_file(self, path: Path, text: str, owner: str = "root", mode: int = 0o644) -> None:
        """Replaces a file in one step, with this owner and mode from its first moment."""
        scratch = path.with_name(path.name + ".new")
        scratch.unlink(missing_ok=True)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            record = pwd.getpwnam(owner)
            os.fchown(descriptor, record.pw_uid, record.pw_gid)
            os.fchmod(descriptor, mode)
        scratch.replace(path)

    def write_bank_config(self, text: str, owner: str = "root", mode: int = 0o644) -> Path:
        """Writes bank-config.toml beside slurm.conf."""
        self.write_file(self.bank_config, text, owner, mode)
        return self.bank_config

    def _write_configuration(self) -> None:
        self.write_slurm_conf()
        self.write_file(
            self.etc_dir / "slurmdbd.conf",
            _conf_text(
                {
                    "AuthType": "auth/munge",
                    "AuthInfo": f"socket={self.root}/munge/socket",
                    "DbdHost": "localhost",
                    "DbdAddr": "127.0.0.1",
                    "DbdPort": str(self._ports["slurmdbd"]),
                    "SlurmUser": SLURM_USER,
                    "StorageType": "accounting_storage/mysql",
                    "StorageHost": "localhost",
                    "StorageUser": SLURM_USER,
                    "StorageLoc": "slurm_acct_db",
                    "PidFile": f"{self.run_dir}/slurmdbd.pid",
                    "LogFile": f"{self.log_dir}/slurmdbd.log",
                    "DebugLevel": "info",
                    "CommitDelay": "1",
                }
            ),
            owner=SLURM_USER,
            mode=0o600,
        )
        # slurmd wants a cgroup plugin even if nothing uses it. This one touches no cgroup when loaded, so
        # it also loads where no cgroup is mounted; the automatic choice does not.
        self.write_file(self.etc_dir / "cgroup.conf", "CgroupPlugin=cgroup/v1\n")
        spank = ""
        if self.plugins is not None and self.plugins.spank:
            path = self.stage_dir / "spank" / self.plugins.spank
            spank = f"optional {path} {self.plugins.spank_arguments}".rstrip() + "\n"
        self.write_file(self.etc_dir / "plugstack.conf", spank)
        self._write_gres_conf()
        associations = [
            f"Cluster - '{self.cluster_name}':Fairshare=1:QOS='normal'",
            "Parent - 'root'",
            "User - 'root':DefaultAccount='root':AdminLevel='Administrator':Fairshare=1",
            *(
                f"Account - '{name}':Description='{name}':Organization='rig'"
                for name in self.accounts
            ),
        ]
        for account, users in self.accounts.items():
            associations.append(f"Parent - '{account}'")
            for user in users:
                level = ":AdminLevel='Operator'" if user == OPERATOR else ""
                associations.append(f"User - '{user}':DefaultAccount='{self._first(user)}'{level}")
        self.write_file(self.etc_dir / "associations", "\n".join(associations) + "\n")
        self.write_file(
            self.root / "env.sh",
            f"export SLURM_CONF={shlex.quote(str(self.slurm_conf))}\n",
        )

    def _write_gres_conf(self) -> None:
        """Without a cgroup plugin that constrains devices, slurmd takes any file for a GPU."""
        lines = []
        for node in self.nodes:
            if node.gpus is None:
                continue
            kind, count = node.gpus
            if count % node.sockets:
                raise RigError(f"{node.name}: {count} GPUs do not spread over its sockets")
            (self.root / "dev").mkdir(exist_ok=True)
            for number in range(count):
                self.write_file(self.root / "dev" / f"{node.name}-gpu{number}", "")
            each = count // node.sockets
            for socket_number in range(node.sockets):
                first, core = socket_number * each, socket_number * node.cores
                lines.append(
                    f"NodeName={node.name} Name=gpu Type={kind}"
                    f" File={self.root}/dev/{node.name}-gpu[{first}-{first + each - 1}]"
                    f" Cores={core}-{core + node.cores - 1}\n"
                )
        if lines:
            self.write_file(self.etc_dir / "gres.conf", "".join(["AutoDetect=off\n", *lines]))

    def _first(self, user: str) -> str:
        return next(account for account, users in self.accounts.items() if user in users)

    def write_slurm_conf(self) -> None:
        """Writes slurm.conf from the object as it is now; `reconfigure()` or a restart makes it count."""
        hostname = socket.gethostname()
        communication = ""
        if _is_loopback(hostname):
            # Slurm binds to what the host's name stands for: better than every address, if it is loopback.
            address = socket.gethostbyname(hostname)
            communication = "NoCtldInAddrAny,NoInAddrAny"
        else:
            address = "127.0.0.1"
        plugin_dirs = [str(distribution_plugin_dir())]
        conf: dict[str, str | None] = {
            "ClusterName": self.cluster_name,
            "SlurmctldHost": f"{hostname.split('.')[0]}({address})",
            "SlurmctldPort": str(self._ports["slurmctld"]),
            "SlurmUser": SLURM_USER,
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.root}/munge/socket",
            "CommunicationParameters": communication or None,
            "StateSaveLocation": f"{self.root}/ctld",
            "SlurmdSpoolDir": f"{self.root}/spool/%n",
            "SlurmctldPidFile": f"{self.run_dir}/slurmctld.pid",
            "SlurmdPidFile": f"{self.root}/spool/%n/slurmd.pid",
            "SlurmctldLogFile": f"{self.log_dir}/slurmctld.log",
            "SlurmdLogFile": f"{self.log_dir}/slurmd-%n.log",
            "SlurmctldDebug": self.slurmctld_debug,
            "SlurmdDebug": "info",
            "PlugStackConfig": f"{self.etc_dir}/plugstack.conf",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "MpiDefault": "none",
            "SwitchType": "switch/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "PriorityType": "priority/basic",
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1,bf_resolution=60",
            "SlurmdParameters": "config_overrides",
            "ReturnToService": "2",
            "JobRequeue": "1",
            "MinJobAge": "300",
            "KillWait": "2",
            "CompleteWait": "0",
            "SlurmdTimeout": "300",
            "SlurmctldTimeout": "120",
            "InactiveLimit": "0",
            "Waittime": "0",
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "127.0.0.1",
            "AccountingStoragePort": str(self._ports["slurmdbd"]),
            "AccountingStoragePass": f"{self.root}/munge/socket",
            "AccountingStorageEnforce": self.enforce,
            "AccountingStoreFlags": "job_comment",
        }
        if self.plugins is not None:
            plugin_dirs.insert(0, str(self.stage_dir / "plugins"))
            submit = [*self.plugins.job_submit_before]
            submit += [self.plugins.job_submit] if self.plugins.job_submit else []
            if submit:
                conf["JobSubmitPlugins"] = ",".join(submit)
            if self.plugins.jobcomp:
                conf["JobCompType"] = f"jobcomp/{self.plugins.jobcomp}"
        conf["PluginDir"] = ":".join(plugin_dirs)
        if any(node.gpus for node in self.nodes):
            kinds = sorted({node.gpus[0] for node in self.nodes if node.gpus})
            conf["GresTypes"] = "gpu"
            conf["AccountingStorageTRES"] = ",".join(
                ["gres/gpu", *(f"gres/gpu:{k}" for k in kinds)]
            )
        conf.update(self.extra_slurm_conf)
        names = ",".join(node.name for node in self.nodes)
        lines = [
            f"NodeName={node.name} NodeAddr={address} NodeHostname={hostname.split('.')[0]}"
            f" Port={self._ports[node.name]} Boards=1 SocketsPerBoard={node.sockets}"
            f" CoresPerSocket={node.cores} ThreadsPerCore={node.threads}"
            f" RealMemory={node.memory_mib} State=UNKNOWN"
            + (f" Gres=gpu:{node.gpus[0]}:{node.gpus[1]}" if node.gpus else "")
            + f" {node.extra}".rstrip()
            for node in self.nodes
        ]
        for part in self.partitions:
            own = names if part.nodes is None else ",".join(part.nodes)
            line = f"PartitionName={part.name} Nodes={own} MaxTime={part.max_time} State=UP"
            line += f" Default={'YES' if part.default else 'NO'}"
            if part.default_time_min is not None:
                line += f" DefaultTime={part.default_time_min}"
            if part.exclusive:
                line += " OverSubscribe=EXCLUSIVE"
            lines.append(f"{line} {part.extra}".rstrip())
        self.write_file(self.slurm_conf, _conf_text(conf) + "\n".join(lines) + "\n")

    def _start_all(self) -> None:
        mark = time.monotonic()

        def lap(what: str) -> None:
            nonlocal mark
            self.timings_s[what] = time.monotonic() - mark
            mark = time.monotonic()

        self._spawn_munged()
        munge_socket = self.root / "munge" / "socket"
        self._wait_ready("munged", lambda: _connects(munge_socket))
        lap("munge")
        self._start_database()
        lap("mariadb_slurmdbd")
        self.sacctmgr("load", f"file={self.etc_dir}/associations", timeout_s=60)
        lap("accounts")
        self.start_slurmctld()
        lap("slurmctld")
        for node in self.nodes:
            self._spawn_slurmd(node.name)
        self.wait_idle()
        lap("nodes_idle")

    def _start_database(self, attempts: int = 3) -> None:
        """MariaDB and slurmdbd on it.

        On a busy machine about one in a hundred of MariaDB's bootstraps ends in a crash of its own, or in a server that
        gives slurmdbd no result: then again, from an empty directory.
        """
        for attempt in range(1, attempts + 1):
            try:
                self._spawn_mariadb()
                self._wait_ready("mariadb", lambda: _connects(self.root / "mariadb" / "socket"))
                self._spawn_slurmdbd()
                self._wait_ready("slurmdbd", self._slurmdbd_ready)
                return
            except RigError as error:
                if attempt == attempts:
                    raise
                logger.warning("the database did not come up, again: %s", str(error).split("\n")[0])
            for name in {"slurmdbd", "mariadb"} & set(self._specs):
                self.kill9(name)
            data = self.root / "mariadb" / "data"
            shutil.rmtree(data)
            data.mkdir(mode=0o700)
            shutil.chown(data, "mysql", pwd.getpwnam("mysql").pw_gid)

    def _slurmdbd_ready(self) -> bool:
        if self.pid("mariadb") is None:  # slurmdbd would wait for it
            raise RigError(f"mariadb has ended:\n{self._log_end('mariadb')}")
        return self._listening("slurmdbd")

    def _spawn_munged(self) -> None:
        directory = self.root / "munge"
        key = directory / "key"
        descriptor = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(128))
        shutil.chown(key, "munge", "munge")
        self.spawn(
            "munged",
            [
                "munged",
                "--foreground",
                f"--key-file={key}",
                f"--socket={directory}/socket",
            ]
            + [
                f"--pid-file={directory}/pid",
                f"--seed-file={directory}/seed",
                "--num-threads=4",
            ]
            + [f"--log-file={directory}/log"],
            user="munge",
            stage=STAGE_INFRASTRUCTURE,
        )

    def _spawn_mariadb(self) -> None:
        """Bootstraps an empty data directory while starting: no help tables, no accounts, no network.

        Without grant tables anybody who reaches the socket may do anything; its directory is for mysql
        and SlurmUser alone.
        """
        directory = self.root / "mariadb"
        directory.chmod(0o750)
        shutil.chown(directory, "mysql", pwd.getpwnam(SLURM_USER).pw_gid)
        tables = next(
            (
                path
                for path in ("/usr/share/mysql/mysql_system_tables.sql",)
                + ("/usr/share/mariadb/mysql_system_tables.sql",)
                + ("/usr/share/mariadb/mariadb_system_tables.sql",)
                if os.path.exists(path)
            ),
            None,
        )
        if tables is None:
            raise RigError("no mysql_system_tables.sql: is mariadb-server installed?")
        bootstrap = "CREATE DATABASE mysql;\nUSE mysql;\n" + Path(tables).read_text()
        self.write_file(directory / "bootstrap.sql", bootstrap, owner="mysql")
        self.spawn(
            "mariadb",
            ["mariadbd", "--no-defaults", f"--datadir={directory}/data"]
            + [f"--socket={directory}/socket", f"--pid-file={directory}/pid"]
            + [
                f"--init-file={directory}/bootstrap.sql",
                "--skip-networking",
                "--skip-grant-tables",
            ]
            + ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=32M"]
            + ["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0"]
            + ["--innodb-use-native-aio=0", "--innodb-lock-wait-timeout=900"]
            + ["--performance-schema=0", "--max-connections=50"],
            user="mysql",
            stage=STAGE_INFRASTRUCTURE,
        )

    def _spawn_slurmdbd(self) -> None:
        self.spawn(
            "slurmdbd",
            ["slurmdbd", "-D"],
            user=SLURM_USER,
            # libmariadb's default for "localhost": Slurm has no key for the socket's path.
            env={"MYSQL_UNIX_PORT": f"{self.root}/mariadb/socket"},
            stage=STAGE_SLURMDBD,
        )

    def _spawn_slurmctld(self) -> None:
        argv = ["slurmctld", "-D"]
        saved = self.root / "ctld"
        if (
            slurm_release() >= (25, 5)
            and (saved / "clustername").exists()
            and not (saved / "assoc_usage").exists()
        ):
            # killed before it saved that for the first time, after five minutes: newer ones would not start again
            argv.append("-i")
        self.spawn("slurmctld", argv, user=SLURM_USER, stage=STAGE_SLURM)

    def _spawn_slurmd(self, node: str) -> None:
        self.spawn(f"slurmd-{node}", ["slurmd", "-D", "-N", node], stage=STAGE_SLURM)

    def _wait_ready(self, name: str, ready: Callable[[], bool], timeout_s: float = 60) -> None:
        """Until `ready()`; RigError with the log's end as soon as the daemon is found dead."""

        def alive_and_ready() -> bool:
            if ready():
                return True
            if self.pid(name) is None:
                status = self.exit_status(name)
                raise RigError(f"{name} ended with status {status}:\n{self._log_end(name)}")
            return False

        try:
            wait_until(alive_and_ready, timeout_s, f"{name} to be ready", 0.02)
        except RigError as error:
            if "waited" in str(error):
                raise RigError(f"{error}\n{self._log_end(name)}") from None
            raise

    def _listening(self, name: str) -> bool:
        """Whether the port listens, without connecting: Slurm logs a connection that says nothing."""
        port = f"{self._ports[name]:04X}"
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[1].endswith(f":{port}"):
                return True
        return False

    def _log_end(self, name: str, lines: int = 25) -> str:
        return "\n".join(self.log(name).splitlines()[-lines:])

    # -- daemons ----------------------------------------------------------------------------------

    def spawn(
        self,
        name: str,
        argv: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        stage: int = STAGE_ADDED,
    ) -> int:
        """Starts a daemon in the foreground under the keeper and returns its process id.

        Its environment is `env()`, `daemon_env` and `env`; its output goes to ``log/NAME.out``. The name
        works with `pid`, `log`, `kill9`, `stop_daemon` and `start_daemon`. Added daemons (a bank, a relay)
        are ended before Slurm.
        """
        record = pwd.getpwnam(user)
        home = {"HOME": str(self.home(user)), "USER": user, "LOGNAME": user}
        spec = {
            "op": "spawn",
            "name": name,
            "argv": [str(part) for part in argv],
            "env": {**self.env(), **home, **self.daemon_env, **(env or {})},
            "log": str(self.log_dir / f"{name}.out"),
            "user": record.pw_uid,
            "group": record.pw_gid,
            "stage": stage,
        }
        self._specs[name] = spec
        return int(self._ask(spec)["pid"])

    def _status(self, name: str) -> dict[str, Any]:
        processes = self._ask({"op": "status"})["processes"]
        if name not in processes:
            known = ", ".join(sorted(processes))
            raise RigError(f"no daemon called {name} was started; there are: {known}")
        status: dict[str, Any] = processes[name]
        return status

    def pid(self, name: str) -> int | None:
        """The daemon's process id; None if it has ended."""
        status = self._status(name)
        return None if status["exit"] is not None else int(status["pid"])

    def exit_status(self, name: str) -> int | None:
        """None while it runs; minus the signal's number if one killed it."""
        status: int | None = self._status(name)["exit"]
        return status

    def log(self, name: str) -> str:
        """What the daemon logged since the cluster's start (names: slurmctld, slurmdbd, slurmd-n1, …)."""
        text = ""
        for suffix in ("log", "out"):
            path = self.log_dir / f"{name}.{suffix}"
            if path.exists():
                text = path.read_text(errors="replace")
            if text:
                break
        return text

    def collect_logs(self, destination: Path) -> None:
        """Copies logs and configuration, for a look after the directory is gone."""
        destination.mkdir(parents=True, exist_ok=True)
        for path in (*self.log_dir.iterdir(), *self.etc_dir.iterdir()):
            if path.is_file():
                shutil.copyfile(path, destination / path.name)

    def kill9(self, name: str) -> None:
        """SIGKILL; returns when the process is gone."""
        self._end_daemon(name, signal.SIGKILL, 10)

    def stop_daemon(self, name: str, timeout_s: float = 30) -> int:
        """SIGTERM; the exit status. RigError if it does not end in time (it is then killed)."""
        try:
            self._end_daemon(name, signal.SIGTERM, timeout_s)
        except RigError:
            self.kill9(name)
            raise
        status = self.exit_status(name)
        assert status is not None
        return status

    def _end_daemon(self, name: str, number: signal.Signals, timeout_s: float) -> None:
        pid = self.pid(name)
        if pid is None:
            return
        os.kill(pid, number)
        wait_until(
            lambda: self.pid(name) is None,
            timeout_s,
            f"{name} to end on {number.name}",
            0.02,
        )

    def start_daemon(self, name: str) -> int:
        """Starts a daemon that has ended, as it was started before, and waits until it answers.

        Daemons of `spawn()` are not waited for.
        """
        if name == "slurmctld":
            return self.start_slurmctld()
        pid = int(self._ask(self._specs[name])["pid"])
        if name == "slurmdbd":
            self._wait_ready(name, lambda: self._listening("slurmdbd"))
        elif name == "munged":
            self._wait_ready(name, lambda: _connects(self.root / "munge" / "socket"))
        elif name == "mariadb":
            self._wait_ready(name, lambda: _connects(self.root / "mariadb" / "socket"))
        elif name.startswith("slurmd-"):
            self._wait_ready(name, lambda: self._listening(name.removeprefix("slurmd-")))
        return pid

    def start_slurmctld(self, wait: bool = True) -> int:
        """Waits until it answers clients; RigError with its log's end if it does not come up."""
        self._spawn_slurmctld()
        if wait:
            self._wait_ready("slurmctld", lambda: self._listening("slurmctld") and self._ping())
        pid = self.pid("slurmctld")
        if pid is None:
            raise RigError(f"slurmctld ended at once:\n{self._log_end('slurmctld')}")
        return pid

    def restart_slurmctld(self, kill: bool = False) -> int:
        """By SIGTERM or, with `kill`, SIGKILL; returns the new process id when it answers."""
        if kill:
            self.kill9("slurmctld")
        else:
            self.stop_daemon("slurmctld")
        return self.start_slurmctld()

    def reconfigure(self) -> None:
        self.run_as("root", ["scontrol", "reconfigure"], check=True)

    def _ping(self) -> bool:
        return "is UP" in self.run_as("root", ["scontrol", "ping"]).stdout

    def wait_idle(self, timeout_s: float = 60) -> None:
        """Until every node is up and nothing runs on it."""

        def all_idle() -> bool:
            for name in (f"slurmd-{node.name}" for node in self.nodes):
                if self.pid(name) is None:
                    raise RigError(f"{name} has ended:\n{self._log_end(name)}")
            states = self.run_as("root", ["sinfo", "-h", "-N", "-o", "%N %T"]).stdout.split("\n")
            idle = {line.split()[0] for line in states if line.endswith(" idle")}
            return idle == {node.name for node in self.nodes}

        wait_until(all_idle, timeout_s, "every node to be idle")

    # -- commands ---------------------------------------------------------------------------------

    def _prefix(self, user: str) -> list[str]:
        """setpriv: the user's ids and groups, and SIGKILL should the rig's own process be killed."""
        record = pwd.getpwnam(user)
        ids = [f"--reuid={record.pw_uid}", f"--regid={record.pw_gid}"]
        return ["setpriv", *ids, "--init-groups", "--pdeathsig=KILL", "--"]

    def popen_as(
        self,
        user: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: Any = subprocess.DEVNULL,
    ) -> subprocess.Popen[str]:
        """A command of `user` that the caller waits for; it dies with the thread that started it."""
        return subprocess.Popen(
            [*self._prefix(user), *(str(part) for part in argv)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=self.home(user),
            env={
                **self.env(),
                "HOME": str(self.home(user)),
                "USER": user,
                "LOGNAME": user,
            }
            | dict(env or {}),
            start_new_session=True,
        )

    def run_as(
        self,
        user: str,
        argv: Sequence[str],
        timeout_s: float = 60,
        *,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command as `user`, in their home, without a terminal.

        With `check`, a status other than 0 raises CommandFailed. RigError after `timeout_s`; the command
        and its children are then killed.
        """
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        process = self.popen_as(user, argv, env=env, stdin=stdin)
        try:
            stdout, stderr = process.communicate(input, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            command = shlex.join(str(part) for part in argv)
            raise RigError(f"{user}: {command}: no end within {timeout_s:g} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        result = subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)
        if check and result.returncode != 0:
            raise CommandFailed(result)
        return result

    def try_sbatch(
        self, user: str, *args: str, script: str = "sleep 1", timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """What ``sbatch --parsable`` answers, whatever that is. `script` gets a first line if it has none."""
        text = script if script.startswith("#!") else f"#!/bin/sh\n{script}\n"
        wrapped = any(arg.startswith("--wrap") for arg in args)
        return self.run_as(
            user,
            ["sbatch", "--parsable", *args],
            timeout_s,
            input=None if wrapped else text,
        )

    def sbatch(self, user: str, *args: str, script: str = "sleep 1") -> int:
        """Submits and returns the job id; CommandFailed, with sbatch's words in `stderr`, if refused."""
        result = self.try_sbatch(user, *args, script=script)
        if result.returncode != 0:
            raise CommandFailed(result)
        return int(result.stdout.strip().split(";")[0])

    def scancel(self, user: str, *args: str) -> None:
        self.run_as(user, ["scancel", *args], check=True)

    def requeue(self, user: str, job: int | str, at_once: bool = True) -> None:
        """Requeues a running job and waits until it is pending again.

        Slurm then holds it back for as long as a credential lives, two minutes; with `at_once`, root sets
        its start time to now, which goes through job_modify.
        """
        self.run_as(user, ["scontrol", "requeue", str(job)], check=True)
        self.wait_job(job, "PENDING")
        if at_once:
            # A node refuses a credential made in the second in which it saw the last one revoked.
            time.sleep(1.1)
            update = ["scontrol", "update", f"job={job}", "StartTime=now"]
            self.run_as("root", update, check=True)

    def wait_saved(self, timeout_s: float = 20) -> None:
        """Until slurmctld has saved its jobs once more: what changed before this call survives kill -9.

        To be called soon after a change; without one slurmctld has nothing to save.
        """
        begun = time.time()
        path = self.root / "ctld" / "job_state"
        wait_until(
            lambda: path.exists() and path.stat().st_mtime > begun,
            timeout_s,
            "slurmctld to save its jobs",
        )

    def jobs(self, job: int | str) -> list[dict[str, str]]:
        """``scontrol show job``, one record per array task; empty if slurmctld does not know the id."""
        result = self.run_as("root", ["scontrol", "-o", "show", "job", str(job)])
        if result.returncode != 0:
            if "Invalid job id" in result.stderr:
                return []
            raise CommandFailed(result)
        lines = [line for line in result.stdout.splitlines() if line.startswith("JobId=")]
        return [
            dict(re.findall(r"([A-Za-z][\w/:]*)=(.*?)(?=\s+[A-Za-z][\w/:]*=|\s*$)", line))
            for line in lines
        ]

    def job(self, job: int | str) -> dict[str, str]:
        """The one record of a job that is no array; RigError if there is none or there are several."""
        records = self.jobs(job)
        if len(records) != 1:
            raise RigError(f"job {job}: {len(records)} records in slurmctld, expected one")
        return records[0]

    def job_states(self, job: int | str) -> set[str]:
        """The states of all tasks, from slurmctld or, when that has forgotten the job, from slurmdbd."""
        records = self.jobs(job)
        if records:
            return {record["JobState"] for record in records}
        rows = self.sacct(job, fields=("State",), duplicates=False)
        return {row["State"].split()[0] for row in rows}

    def wait_job(
        self,
        job: int | str,
        states: Collection[str] | str = FINISHED_STATES,
        timeout_s: float = 30,
    ) -> set[str]:
        """Until every task of the job is in one of `states`; the states that there are then.

        RigError, naming the states it has, if that does not come.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        seen: set[str] = set()

        def reached() -> bool:
            nonlocal seen
            seen = self.job_states(job)
            return bool(seen) and seen <= wanted

        try:
            wait_until(reached, timeout_s, "job", 0.1)
        except RigError:
            have = ", ".join(sorted(seen)) or "unknown to Slurm"
            raise RigError(
                f"job {job} is {have} after {timeout_s:g} s, expected {', '.join(sorted(wanted))}"
            ) from None
        return seen

    def squeue(self, *args: str) -> list[dict[str, str]]:
        """Live jobs (``-t all`` for more), one row per array task."""
        fields = {
            "job": "%i",
            "state": "%T",
            "user": "%u",
            "account": "%a",
            "partition": "%P",
            "name": "%j",
            "time_limit": "%l",
            "reason": "%r",
        }
        command = ["squeue", "-h", "-r", "-o", "|".join(fields.values()), *args]
        rows = self.run_as("root", command, check=True).stdout.splitlines()
        return [dict(zip(fields, row.split("|"), strict=True)) for row in rows]

    def sacct(
        self,
        job: int | str | None = None,
        *args: str,
        fields: Sequence[str] = (
            *(
                "JobID",
                "JobIDRaw",
                "User",
                "Account",
                "Partition",
                "State",
                "ExitCode",
                "AllocCPUS",
            ),
            *("ElapsedRaw", "Submit", "Start", "End", "Timelimit", "AdminComment"),
        ),
        duplicates: bool = True,
    ) -> list[dict[str, str]]:
        """Allocations (no steps) known to slurmdbd, the oldest first; `duplicates`: requeued runs too.

        Without `job`, all of the last day.
        """
        command = ["sacct", "-a", "-X", "-n", "-P", "-o", ",".join(fields)]
        command += ["--duplicates"] if duplicates else []
        command += ["-j", str(job)] if job is not None else ["-S", "now-1days"]
        rows = self.run_as("root", [*command, *args], check=True).stdout.splitlines()
        return [dict(zip(fields, row.split("|"), strict=True)) for row in rows]

    def sacctmgr(self, *args: str, timeout_s: float = 60) -> str:
        """As root, without questions; its output."""
        return self.run_as("root", ["sacctmgr", "-i", *args], timeout_s, check=True).stdout

    def wait_accounted(self, job: int | str, count: int = 1, timeout_s: float = 20) -> None:
        """Until slurmdbd has at least `count` ended runs of the job, whole.

        slurmctld reports starts every five seconds only; of a run that ended earlier slurmdbd knows the
        end alone until then, without partition and time limit.
        """

        def ended() -> bool:
            rows = self.sacct(job, fields=("Partition", "End"))
            whole = [row for row in rows if row["Partition"]]
            return len([row for row in whole if row["End"] not in ("Unknown", "None")]) >= count

        wait_until(ended, timeout_s, f"{count} ended run(s) of job {job} in slurmdbd", 0.1)


def distribution_plugin_dir() -> Path:
    """Where the installed Slurm keeps its own plugins."""
    for pattern in (
        "/usr/lib/*/slurm-wlm",
        "/usr/lib/*/slurm",
        "/usr/lib64/slurm",
        "/usr/lib/slurm",
    ):
        for name in sorted(glob.glob(pattern)):
            if os.path.exists(os.path.join(name, "auth_munge.so")):
                return Path(name)
    raise RigError("found no Slurm plugins under /usr/lib: is slurmctld installed?")


def _is_loopback(hostname: str) -> bool:
    try:
        return socket.gethostbyname(hostname).startswith("127.")
    except OSError:
        return False


def _connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _conf_text(conf: Mapping[str, str | None]) -> str:
    return "".join(f"{key}={value}\n" for key, value in conf.items() if value is not None)


# -- what earlier runs left ---------------------------------------------------------------------------


def _record(root: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((root / "rig.json").read_text())
    except (OSError, ValueError):
        return {}
    return record


def _alive(process: Mapping[str, Any]) -> bool:
    started = keeper.start_time(process["pid"])
    return started is not None and started == process["start_time"]


def stale_rigs() -> list[Path]:
    """Scratch directories whose keeper is gone."""
    stale = []
    for name in sorted(glob.glob(f"/tmp/{SCRATCH_PREFIX}*")):
        root = Path(name)
        record = _record(root)
        try:
            age_s = time.time() - root.stat().st_mtime
        except OSError:
            continue
        if record and _alive(record["keeper"]):
            continue
        if not record and age_s < 60:
            continue  # being made
        stale.append(root)
    return stale


def remove_stale(root: Path) -> None:
    """Ends what is left of a rig whose keeper is gone, by process id and start time, and its directory."""
    for process in _record(root).values():
        if _alive(process):
            os.kill(process["pid"], signal.SIGKILL)
    shutil.rmtree(root, ignore_errors=True)


def left_running() -> list[Path]:
    """Directories of the rigs in /tmp that this checkout left running on purpose."""
    found = []
    for name in sorted(glob.glob(f"/tmp/{SCRATCH_PREFIX}*")):
        root = Path(name)
        try:
            # Anybody can make such a directory, and what it says decides who is sent a signal.
            if root.is_symlink() or root.stat().st_uid != os.geteuid():
                continue
            checkout = (root / keeper.DETACHED_NAME).read_text().strip()
        except OSError:
            continue
        if checkout == str(CHECKOUT):
            found.append(root)
    return found


def down(root: Path, timeout_s: float = 60) -> None:
    """Ends a running or stale rig by its directory; returns when the directory is gone."""
    if not root.name.startswith(SCRATCH_PREFIX) and not (root / "rig.json").exists():
        raise RigError(f"{root}: no rig's directory (rig.json expected)")
    record = _record(root)
    if record and _alive(record["keeper"]):
        os.kill(record["keeper"]["pid"], signal.SIGTERM)
        wait_until(lambda: not root.exists(), timeout_s, f"{root} to be removed", 0.1)
    else:
        remove_stale(root)


# -- from a shell -------------------------------------------------------------------------------------


def usage_text(cluster: Cluster) -> str:
    """How to use a running cluster from a shell, and how to end it."""
    example = shlex.join(["sbatch", "--time=2", "--wrap", "sleep 30"])
    users = ", ".join(f"{user} ({cluster._first(user)})" for user in cluster.users)
    return (
        f"a cluster of {len(cluster.nodes)} nodes is up in {cluster.root}\n"
        f"  use it    . {cluster.root}/env.sh; sinfo\n"
        f"  as a user (cd {cluster.home('sb-alice')} && runuser -u sb-alice -- {example})\n"
        f"  users     {users}\n"
        f"  logs      {cluster.log_dir}\n"
        f"  stop it   python3 -m tests.rig.cluster down {cluster.root}\n"
    )


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def main(argv: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.rig.cluster", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a cluster without plugins")
    up.add_argument("--foreground", action="store_true", help="stop it on Ctrl-C")
    ends = commands.add_parser("down", help="stop one, or all that this checkout left running")
    which = ends.add_mutually_exclusive_group(required=True)
    which.add_argument("root", type=Path, nargs="?", metavar="DIR")
    which.add_argument("--left", action="store_true", help="all that this checkout left running")
    stale = commands.add_parser("stale", help="list what killed runs left")
    stale.add_argument("--remove", action="store_true")
    options = parser.parse_args(None if argv is None else list(argv))

    if options.command == "down":
        roots = left_running() if options.left else [options.root]
        for root in roots:
            down(root)
            print(f"stopped and removed: {root}", flush=True)
        if not roots:
            print("no cluster of this checkout is running")
        return 0
    if options.command == "stale":
        for root in stale_rigs():
            print(root)
            if options.remove:
                remove_stale(root)
        return 0

    signal.signal(signal.SIGTERM, _terminate)
    cluster = Cluster()
    try:
        cluster.start()
        text = usage_text(cluster)
        if not options.foreground:
            cluster.detach()
            print(text, end="", flush=True)
            return 0
        print(text, end="", flush=True)
        while True:
            signal.pause()
    except KeyboardInterrupt:
        return 130
    finally:
        cluster.stop()


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        sys.exit(main())
    except RigError as error:
        sys.exit(f"error: {error}")
