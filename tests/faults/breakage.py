# SPDX-License-Identifier: BSD-3-Clause
"""What an operator's night is made of, done on purpose to a running site, and `restore`, which brings it back.

    with BreakableCluster(proxy_seed=7, state_disk_mib=24) as site:
        kill9(site, "relay")
        fill_disk(site)
        problem = restore(site)     # "" if all is well again

Each function returns when the damage is done, not when it is over. Nobody but `restore` (and `restart_slurmctld`,
`restart_relay`) starts what was ended. Only processes of the site's own are touched, and never the host's clock.
"""

from __future__ import annotations

import dataclasses
import glob
import logging
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tests.faults.bank_proxy import BankProxy
from tests.rig import keeper
from tests.rig.banked import BankedCluster
from tests.rig.cluster import SLURM_USER, RigError, wait_until

logger = logging.getLogger(__name__)

#: What `kill9` and `freeze` take, besides one node's ``slurmd-NAME``. "slurmd" is that of the first node.
PROCESSES: tuple[str, ...] = ("slurmctld", "relay", "bank", "slurmd", "slurmdbd", "mariadb")

#: Whose clock `step_clock` steps.
CLOCKS: tuple[str, ...] = ("relay", "slurmctld")

BALLAST_NAME = "ballast"
LEDGER_NAME = "ledger.sqlite3"
LEDGER_FILES = (LEDGER_NAME, f"{LEDGER_NAME}-wal", f"{LEDGER_NAME}-shm")

RESTORE_S = 90.0

#: A stopped process is continued after this long, whatever its breaker forgot.
LONGEST_FREEZE_S = 300.0

_PAGE_BYTES = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Frozen:
    what: str
    pid: int
    start_time: int  #: with the pid it names one process for good
    timer: threading.Timer


class BreakableCluster(BankedCluster):
    """A banked cluster with places to break it at.

    `proxy_seed`: the relay talks to the bank through `proxy`, a BankProxy with this seed; None: there is none.
    `state_disk_mib`: state_dir is a file system of its own, of this size, as `fill_disk` needs it; None: it is not.
    MariaDB hands every commit to the kernel, so that kill -9 loses nothing that slurmdbd was told to be stored.
    """

    def __init__(
        self, *, proxy_seed: int | None = None, state_disk_mib: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.proxy_seed = proxy_seed
        self.state_disk_mib = state_disk_mib
        self.proxy: BankProxy | None = None
        self.clock_env: dict[str, dict[str, str]] = {}  #: process → what puts it on its own clock
        self.on_own_clock: list[int] = []  #: processes that libfaketime was in
        self.frozen: list[_Frozen] = []
        self.lockers: list[subprocess.Popen[str]] = []
        self.ledger_was_broken = False
        self.mended_by_hand = 0  #: broken ledgers that the product did not move aside by itself
        self.guard = threading.RLock()
        self._unmounter: subprocess.Popen[bytes] | None = None

    # -- coming up --------------------------------------------------------------------------------

    def _make_directories(self) -> None:
        super()._make_directories()
        if self.state_disk_mib is not None:
            self._mount_state_dir()

    def _mount_state_dir(self) -> None:
        """A tmpfs, which a process of its own unmounts when this one ends, however it ends."""
        uid = self.uid(SLURM_USER)
        self._unmounter = subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                'trap "" INT HUP TERM; read -r _; exec umount -l "$1"',
                "sh",
                str(self.state_dir),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        options = f"size={self.state_disk_mib}m,mode=0700,uid={uid},gid={uid},nosuid,nodev,noexec"
        command = ["mount", "-t", "tmpfs", "-o", options, "slurm-banking-rig", str(self.state_dir)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if result.returncode != 0:
            raise RigError(f"{self.state_dir}: no file system of its own: {result.stderr.strip()}")

    def _unmount_state_dir(self) -> None:
        unmounter, self._unmounter = self._unmounter, None
        if unmounter is None:
            return
        assert unmounter.stdin is not None
        unmounter.stdin.close()
        unmounter.wait(timeout=30)

    def write_banking(self) -> None:
        """With the proxy's port in place of the bank's."""
        if self.proxy_seed is None:
            super().write_banking()
            return
        if self.proxy is None:
            self.proxy = BankProxy(self.bank_port, self.proxy_seed)
            self.proxy.start()
        real, self.bank_port = self.bank_port, self.proxy.port
        try:
            super().write_banking()
        finally:
            self.bank_port = real

    def spawn(self, name: str, argv: Sequence[str], **options: Any) -> int:
        clock = self.clock_env.get(name)
        if clock is None:
            return super().spawn(name, argv, **options)
        # By env, which is SlurmUser by then: what libfaketime makes in /dev/shm as root, SlurmUser could not open.
        words = ["env", *(f"{key}={value}" for key, value in clock.items())]
        pid = super().spawn(name, [*words, *argv], **options)
        self.on_own_clock.append(pid)
        return pid

    def _spawn_slurmdbd(self) -> None:
        """On a MariaDB that has been down once, and comes up again after kill -9.

        As the rig starts it, it makes its tables first, and leaves their first pages to memory; and it keeps commits there.
        """
        self.stop_daemon("mariadb")
        flush = "--innodb-flush-log-at-trx-commit="
        spec = self._specs["mariadb"]
        spec["argv"] = [
            f"{flush}2" if part.startswith(flush) else part
            for part in spec["argv"]
            if not part.startswith(("--init-file=", "--innodb-doublewrite="))
        ]
        self.start_daemon("mariadb")
        super()._spawn_slurmdbd()

    def detach(self) -> int:
        if self.state_disk_mib is not None or self.proxy_seed is not None:
            raise RigError("a site with a proxy or a disk of its own ends with its process")
        return super().detach()

    def stop(self, remove: bool = True) -> dict[str, Any]:
        """With the state directory's file system unmounted; kept (``remove=False``), its files stay in state-kept."""
        with self.guard:
            for frozen in self.frozen:
                frozen.timer.cancel()
            self.frozen.clear()
            _end_lockers(self)
        root = self._root
        mounted = self._unmounter is not None
        try:
            answer = super().stop(remove=remove and not mounted)
            if mounted and not remove and root is not None:
                shutil.copytree(root / "state", root / "state-kept", symlinks=True)
        finally:
            self._unmount_state_dir()
            if self.proxy is not None:
                self.proxy.stop()
            _forget_clocks(self)
        if mounted and remove and root is not None:
            shutil.rmtree(root, ignore_errors=True)
        return answer


# -- processes ----------------------------------------------------------------------------------------


def pids_of(site: BreakableCluster, what: str) -> list[int]:
    """The live processes of that name (see PROCESSES); of relays there may be several, or one without its lock.

    :raises RigError: the site has nothing of this name.
    """
    if what == "relay":
        return _relay_pids(site)
    pid = site.pid(_daemon(site, what))
    return [] if pid is None else [pid]


def _daemon(site: BreakableCluster, what: str) -> str:
    return f"slurmd-{site.nodes[0].name}" if what == "slurmd" else what


def _relay_pids(site: BreakableCluster) -> list[int]:
    """By their command lines, among the site's processes: whatever became of the lock file."""
    assert site._keeper is not None, "the site runs"
    config = str(site.bank_config)
    parents: dict[int, int] = {}
    for pid in keeper.descendants(site._keeper.pid):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        if config in words and "relay" in words and "python" in words[0]:
            parents[pid] = int(stat[stat.rindex(")") + 2 :].split()[1])
    # What a relay has just forked, to run squeue, looks like it for a moment.
    return sorted(pid for pid, parent in parents.items() if parent not in parents)


def kill9(site: BreakableCluster, what: str) -> None:
    """SIGKILL; returns when it is gone. Jobs' own processes live on when slurmd is killed."""
    if what == "relay":
        _end_relays(site, signal.SIGKILL)
    else:
        site.kill9(_daemon(site, what))
    _go_on(site, what)  # nothing does, but its timer is not needed any more


def _end_relays(site: BreakableCluster, number: signal.Signals, but: int | None = None) -> None:
    def left() -> list[int]:
        return [pid for pid in _relay_pids(site) if pid != but]

    for pid in left():
        keeper.send_signal(pid, number)
    wait_until(lambda: not left(), 15, f"the relay to end on {number.name}", 0.05)


def freeze(site: BreakableCluster, what: str, seconds: float | None = None) -> None:
    """SIGSTOP now, and SIGCONT after `seconds` (by a timer), at `thaw`, or at `restore`."""
    with site.guard:
        for pid in pids_of(site, what):
            started = keeper.start_time(pid)
            if started is None:
                continue
            timer = threading.Timer(LONGEST_FREEZE_S if seconds is None else seconds, _continue)
            frozen = _Frozen(what=what, pid=pid, start_time=started, timer=timer)
            timer.args = [site, frozen]
            timer.daemon = True
            site.frozen.append(frozen)
            keeper.send_signal(pid, signal.SIGSTOP)
            timer.start()


def _continue(site: BreakableCluster, frozen: _Frozen) -> None:
    with site.guard:
        if frozen in site.frozen:
            site.frozen.remove(frozen)
            frozen.timer.cancel()
            if keeper.start_time(frozen.pid) == frozen.start_time:
                keeper.send_signal(frozen.pid, signal.SIGCONT)


def _go_on(site: BreakableCluster, what: str) -> None:
    with site.guard:
        for frozen in [frozen for frozen in site.frozen if frozen.what == what]:
            _continue(site, frozen)


def thaw(site: BreakableCluster) -> None:
    """Whatever is frozen goes on."""
    with site.guard:
        for frozen in list(site.frozen):
            _continue(site, frozen)


def reconfigure(site: BreakableCluster) -> None:
    """``scontrol reconfigure``. :raises RigError: slurmctld does not do it."""
    site.reconfigure()


def restart_slurmctld(site: BreakableCluster, kill: bool = False) -> None:
    """Ended by SIGTERM (with `kill`, SIGKILL), or down already; up again when this returns."""
    _go_on(site, "slurmctld")
    site.restart_slurmctld(kill=kill)


def restart_relay(site: BreakableCluster, kill: bool = False) -> None:
    """One relay, started by nobody's plugin; it answers soon after this returns."""
    _go_on(site, "relay")
    _end_relays(site, signal.SIGKILL if kill else signal.SIGTERM)
    start_relay(site)


def start_relay(site: BreakableCluster) -> None:
    """As a service would, as SlurmUser; ends at once by itself if another one holds the lock."""
    if "relay" in site._specs:
        wait_until(lambda: site.pid("relay") is None, 5, "the relay before to be reaped", 0.02)
    command = [str(site.stage_dir / "bin" / "slurm-banking"), "--config", str(site.bank_config)]
    site.spawn("relay", [*command, "relay", "--foreground"], user=SLURM_USER)


# -- what lies on disk --------------------------------------------------------------------------------


def wipe_state_dir(site: BreakableCluster, takeover: bool = False) -> None:
    """Everything in the state directory is gone, under slurmctld and relay as they run.

    `takeover`: as if another host had taken over. Both are killed first, and slurmctld is up again at the end.
    """
    if takeover:
        kill9(site, "relay")
        kill9(site, "slurmctld")
    _empty(site.state_dir)
    if takeover:
        site.start_slurmctld()


def wipe_state_save(site: BreakableCluster) -> None:
    """slurmctld killed and StateSaveLocation emptied: its jobs are gone. It stays down until somebody starts it."""
    kill9(site, "slurmctld")
    _empty(site.root / "ctld")


def _empty(directory: Path) -> None:
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def fill_disk(site: BreakableCluster) -> int:
    """Not a byte is left on the state directory's file system; the bytes that it took.

    :raises RigError: it has none of its own (`state_disk_mib`).
    """
    if not os.path.ismount(site.state_dir):
        raise RigError(
            f"{site.state_dir}: not a file system of its own: make the site with state_disk_mib"
        )
    written = 0
    descriptor = os.open(
        site.state_dir / BALLAST_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
    )
    try:
        for size in (1 << 20, _PAGE_BYTES, 1):
            while True:
                try:
                    written += os.write(descriptor, b"\0" * size)
                except OSError:
                    break
    finally:
        os.close(descriptor)
    return written


def free_disk(site: BreakableCluster) -> None:
    (site.state_dir / BALLAST_NAME).unlink(missing_ok=True)


def ledger_read_only(site: BreakableCluster) -> None:
    """Its files lose their write permission. slurmctld and relay, who have them open, are started anew to find it so."""
    for name in LEDGER_FILES:
        path = site.state_dir / name
        if path.exists():
            path.chmod(0o400)
    restart_slurmctld(site)
    restart_relay(site)


def _ledger_writable(site: BreakableCluster) -> bool:
    """True if that made a difference."""
    changed = False
    for name in LEDGER_FILES:
        path = site.state_dir / name
        try:
            if path.stat().st_mode & 0o777 == 0o400:
                path.chmod(0o600)
                changed = True
        except FileNotFoundError:
            pass
    return changed


_LOCKER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=10, isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


def lock_ledger(site: BreakableCluster, seconds: float) -> None:
    """Another process holds a write transaction from here on for `seconds`, or until `restore`."""
    command = ["/usr/bin/python3", "-I", "-c", _LOCKER, str(site.state_dir / LEDGER_NAME)]
    locker = site.popen_as(SLURM_USER, [*command, str(min(seconds, LONGEST_FREEZE_S))])
    assert locker.stdout is not None
    if locker.stdout.readline().strip() != "locked":
        _, problem = locker.communicate(timeout=20)
        raise RigError(f"ledger not locked: {problem.strip().splitlines()[-1:]}")
    site.lockers.append(locker)


def _end_lockers(site: BreakableCluster) -> None:
    while site.lockers:
        locker = site.lockers.pop()
        if locker.poll() is None:
            locker.kill()
        locker.communicate(timeout=10)


_CHECKPOINT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=5, isolation_level=None)
connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
"""

_QUICK_CHECK = """
import sqlite3, sys
try:
    connection = sqlite3.connect("file:" + sys.argv[1] + "?mode=ro", uri=True, timeout=5)
    print("; ".join(str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")))
except sqlite3.DatabaseError as error:
    print(error)
"""


def _as_slurm_user(site: BreakableCluster, script: str, *arguments: str) -> str:
    """In a process of its own: one that closes a ledger's file drops the locks that it holds on it."""
    command = ["/usr/bin/python3", "-I", "-c", script, *arguments]
    return site.run_as(SLURM_USER, command, 30).stdout.strip()


def break_ledger(site: BreakableCluster, seed: int = 1) -> int:
    """Garbage into about half of the pages in the ledger's middle, under slurmctld and relay as they run; how many."""
    path = site.state_dir / LEDGER_NAME
    _as_slurm_user(site, _CHECKPOINT, str(path))  # what is only in the WAL would cover the damage
    chance = random.Random(seed)
    with path.open("r+b", buffering=0) as file:
        pages = os.fstat(file.fileno()).st_size // _PAGE_BYTES
        broken = 0
        for page in range(1, pages):  # the first one stays: it is a database, and malformed
            if page == 1 or chance.random() < 0.5:
                file.seek(page * _PAGE_BYTES)
                file.write(chance.randbytes(_PAGE_BYTES))
                broken += 1
    site.ledger_was_broken = True
    return broken


def ledger_problem(site: BreakableCluster) -> str:
    """What SQLite says against the ledger's file; "" if nothing."""
    said = _as_slurm_user(site, _QUICK_CHECK, str(site.state_dir / LEDGER_NAME))
    return "" if said == "ok" else said or "quick_check said nothing"


# -- clocks -------------------------------------------------------------------------------------------


def libfaketime() -> str | None:
    """The library that sets a process's clock; None if it is not installed."""
    found = sorted(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1"))
    return found[0] if found else None


#: Before libfaketime, which answers EINVAL to a sleep until a monotonic time; Python's time.sleep() is one.
_SLEEP_C = """
#define _GNU_SOURCE
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_nanosleep(clockid_t clock, int flags, const struct timespec *request, struct timespec *left)
{
	return syscall(SYS_clock_nanosleep, clock, flags, request, left) == -1 ? errno : 0;
}
"""


def _clock_libraries(site: BreakableCluster) -> str:
    """What goes into LD_PRELOAD. :raises RigError: libfaketime is not installed, or no C compiler is."""
    library = libfaketime()
    if library is None:
        raise RigError("no libfaketimeMT.so.1 under /usr/lib: is libfaketime installed?")
    ours = site.root / "clock-sleep.so"
    if not ours.exists():
        command = ["cc", "-shared", "-fPIC", "-O2", "-x", "c", "-o", str(ours), "-"]
        result = subprocess.run(command, input=_SLEEP_C, capture_output=True, text=True, timeout=60)
        if result.returncode != 0:
            raise RigError(f"cc: {result.stderr.strip()}")
    return f"{ours} {library}"


def step_clock(site: BreakableCluster, what: str, seconds: float) -> None:
    """That process's wall clock, relay's or slurmctld's, is `seconds` off from here on; time goes on as it did.

    The first step of a process starts it anew, under libfaketime; a later one comes while it runs, within a second.

    :raises RigError: libfaketime is not installed.
    """
    if what not in CLOCKS:
        raise RigError(f"clock of {what!r}: expected one of {', '.join(CLOCKS)}")
    file = site.etc_dir / f"clock-{what}"
    begin = what not in site.clock_env
    if begin:
        site.write_file(file, "+0\n")
        site.clock_env[what] = {
            "LD_PRELOAD": _clock_libraries(site),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            # What they start asks Slurm and munge, who have the host's time.
            "FAKETIME_SKIP_CMDS": "squeue,sacct,sacctmgr,scontrol,sinfo,sh",
        }
        _restart(site, what)
    site.write_file(file, f"{seconds:+.3f}\n")


def _forget_clocks(site: BreakableCluster) -> None:
    """What libfaketime left of processes that were killed."""
    for pid in site.on_own_clock:
        for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
            Path("/dev/shm", name).unlink(missing_ok=True)
    site.on_own_clock.clear()


def _restart(site: BreakableCluster, what: str) -> None:
    if what == "relay":
        restart_relay(site)
    else:
        restart_slurmctld(site)


# -- coming back --------------------------------------------------------------------------------------


def restore(site: BreakableCluster, timeout_s: float = RESTORE_S) -> str:
    """All damage undone, whatever is down started, and the site's own healing waited for; "" or what is not well.

    Well is: slurmctld answers, every node takes jobs, one relay answers, the ledger is sound and complete, nothing waits
    for the bank, and the funds of every account in use are known. What an operator would do is done once: nodes resumed,
    deliveries that were given up tried again.
    """
    until = time.monotonic() + timeout_s
    problems: list[str] = []

    @contextmanager
    def noting(what: str) -> Iterator[None]:
        try:
            yield
        except (RigError, OSError, subprocess.SubprocessError) as error:
            problems.append(f"{what}: {' '.join(str(error).split())[:300]}")

    def wait(condition: Callable[[], Any], what: str) -> None:
        with noting("not well"):
            wait_until(condition, max(1.0, until - time.monotonic()), what, 0.2)

    thaw(site)
    if site.proxy is not None:
        site.proxy.clear()
    free_disk(site)
    _end_lockers(site)
    reopened = _ledger_writable(site)
    for name in ("munged", "mariadb", "slurmdbd"):
        with noting(name):
            if site.pid(name) is None:
                site.start_daemon(name)
    with noting("bank"):
        if site.pid("bank") is None:
            site.start_bank()
    _clocks_back(site, noting)
    with noting("slurmctld"):
        if reopened and site.pid("slurmctld") is not None:
            site.stop_daemon("slurmctld")
        if site.pid("slurmctld") is None:
            site.start_slurmctld()
    for node in site.nodes:
        with noting(f"slurmd of {node.name}"):
            if site.pid(f"slurmd-{node.name}") is None:
                site.start_daemon(f"slurmd-{node.name}")
    with noting("relay"):
        _one_relay(site, anew=reopened)
    wait(site._ping, "slurmctld to answer")
    wait(lambda: _nodes_up(site), "every node to take jobs")
    if site.ledger_was_broken:
        with noting("broken ledger"):
            _mend_ledger(site)
    wait(lambda: _relay_is_well(site), "the relay to answer, with the ledger complete")
    if not problems:
        with noting("not well"):
            deliver_all(_Delivered(site), until)
    if not problems:
        wait(lambda: not _without_funds(site), "the funds of every account to be read")
    return "; ".join(problems)


def _without_funds(site: BreakableCluster) -> list[str]:
    """Accounts in use whose next submission nobody could decide on."""
    rows = site.ledger_rows(
        "SELECT DISTINCT account FROM runs WHERE account NOT IN (SELECT account FROM funds)"
    )
    return [row["account"] for row in rows]


def _clocks_back(site: BreakableCluster, noting: Callable[[str], Any]) -> None:
    for what in [name for name in CLOCKS if name in site.clock_env]:
        site.write_file(site.etc_dir / f"clock-{what}", "+0\n")
        del site.clock_env[what]
        with noting(f"clock of {what}"):
            _restart(site, what)
    _forget_clocks(site)


def _one_relay(site: BreakableCluster, anew: bool) -> None:
    """The one that holds the lock. Its file may have been wiped under an older one, which then is none of ours."""
    holder = site.relay_pid()
    if anew or holder not in _relay_pids(site):
        holder = None
    _end_relays(site, signal.SIGKILL, but=holder)
    if holder is None:
        start_relay(site)


_UP = frozenset(["idle", "mixed", "allocated", "completing", "planned", "reserved"])


def _nodes_up(site: BreakableCluster) -> bool:
    """Whether every node takes jobs; those that slurmctld has given up are resumed."""
    text = site.run_as("root", ["sinfo", "-h", "-N", "-o", "%N %T"]).stdout
    states = dict(line.split(None, 1) for line in text.splitlines() if " " in line)
    for name, state in states.items():
        if state.startswith(("down", "drain")) and not state.endswith("*"):
            site.run_as("root", ["scontrol", "update", f"nodename={name}", "state=resume"])
    return set(states) == {node.name for node in site.nodes} and set(states.values()) <= _UP


def _relay_is_well(site: BreakableCluster) -> bool:
    status = site.status()
    if status is None and not _relay_pids(site):
        start_relay(site)
    return status is not None and bool(status["ledger_complete"])


def _mend_ledger(site: BreakableCluster) -> None:
    """The relay moves a broken file aside when it starts. Where it does not, an operator does, and that is counted."""
    restart_relay(site)
    deadline = time.monotonic() + 15
    while ledger_problem(site) and time.monotonic() < deadline:
        time.sleep(0.5)
    problem = ledger_problem(site)
    if problem:
        logger.warning("the ledger is moved aside by hand: %s", problem.splitlines()[0])
        site.mended_by_hand += 1
        kill9(site, "relay")
        site.stop_daemon("slurmctld")
        aside = site.root / f"broken-{site.mended_by_hand}"
        aside.mkdir()
        for name in LEDGER_FILES:
            if (site.state_dir / name).exists():
                shutil.move(site.state_dir / name, aside / name)
        site.start_slurmctld()
    # Looked at, and out of the way: until then it is an alarm, and it takes room.
    for path in site.state_dir.glob(f"{LEDGER_NAME}.broken-*"):
        shutil.move(path, site.root / path.name)
    site.ledger_was_broken = False


#: Seconds in which an outbox gets shorter if anything is delivered at all; and the most that one is waited for.
SHRINKS_S = 20.0
MOST_DELIVERY_S = 300.0


class Outbox(Protocol):
    left: int  #: deliveries that waited when it was last asked

    def __call__(self) -> bool: ...


def deliver_all(
    outbox: Outbox, until: float, shrinks_s: float = SHRINKS_S, most_s: float = MOST_DELIVERY_S
) -> None:
    """After a rebuild every run is told once more: past `until` it may go on for as long as it gets shorter.

    :raises RigError: it stands still, or takes too long.
    """
    last = time.monotonic() + most_s
    while True:
        before = outbox.left
        try:
            wait_until(outbox, max(1.0, until - time.monotonic()), "the outbox to be empty", 0.2)
            return
        except RigError:
            if outbox.left >= before or time.monotonic() > last:
                raise
            until = time.monotonic() + shrinks_s


class _Delivered:
    """Whether the outbox is empty. What the bank is said to have refused for good is tried again now and then."""

    def __init__(self, site: BreakableCluster) -> None:
        self._site = site
        self.left = 1 << 62
        self._retry_at = time.monotonic() + 3

    def __call__(self) -> bool:
        counted: Sequence[Mapping[str, Any]] = self._site.ledger_rows(
            "SELECT COUNT(*) AS n FROM outbox"
        )
        self.left = counted[0]["n"]
        if not self.left:
            return True
        if time.monotonic() >= self._retry_at:
            self._retry_at = time.monotonic() + 5
            self._site.banking("retry", "--all", check=False)
        return False
