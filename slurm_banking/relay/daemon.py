# SPDX-License-Identifier: BSD-3-Clause
"""The relay as a process: one for each state directory, never root, ended cleanly within two seconds.

Who starts it does not matter (slurmctld's plugin, systemd, a shell): what it inherits is put aside first.
"""

from __future__ import annotations

import fcntl
import logging
import logging.handlers
import os
import pwd
import re
import resource
import signal
import socket
import stat
import sys
import threading
import time
from typing import Iterator, Optional, Sequence

from slurm_banking import __version__
from slurm_banking.config import Config, Reloader
from slurm_banking.errors import BankingError, ConfigError, SlurmUnavailable

log = logging.getLogger("slurm_banking.relay")

LOCK_NAME = "relay.lock"
#: Seconds between two looks whether it is still there.
LOCK_LOOK_S = 0.5
LOG_NAME = "relay.log"
LOG_BYTES = 5 * 1024 * 1024
LOG_FILES = 3


class StartError(BankingError):
    """The relay cannot start; one line with what to do."""


class AlreadyRunning(BankingError):
    """Another process is this state directory's relay."""


def run(config_path: str, foreground: bool) -> int:
    """Run until SIGTERM or SIGINT; the exit status.

    ``foreground``: log to stderr, and stay in the caller's session. Otherwise log to ``relay.log`` in the state
    directory, and cut the ties to whoever started it.
    """
    try:
        reloader = Reloader(config_path, False)
        config = reloader.current(time.monotonic())
        if not foreground:
            _cut_ties()
        _settle_signals()
        os.umask(0o077)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the bank's token would be in it
        _load_service()  # what is missing is missed at once, and as root
        become_slurm_user(config)
        lock = StateLock(config.ledger.state_dir)
    except ConfigError as error:
        return _refuse(error.problems)
    except AlreadyRunning as error:
        print(f"slurm-banking relay: {error}", file=sys.stderr)
        return 0
    except BankingError as error:
        return _refuse([str(error)])
    try:
        set_up_logging(config, foreground)
        return _serve(reloader, config, lock)
    except BankingError as error:
        log.error("relay_not_started problem=%s", error)
        return 1 if _logs_to_stderr(foreground) else _refuse([str(error)])
    finally:
        lock.close()
        logging.shutdown()


def _load_service() -> None:
    try:
        import slurm_banking.relay.service  # noqa: F401
    except ImportError as error:
        raise StartError(
            f"{error.name or error} is missing for {sys.executable}: install requests, attrs and python-dateutil"
        ) from None


def _serve(reloader: Reloader, config: Config, lock: StateLock) -> int:
    from slurm_banking.relay.service import Service

    stop = threading.Event()
    hang_up = threading.Event()
    received = []

    def on_stop(number: int, frame: object) -> None:
        received.append(number)
        stop.set()

    def on_hang_up(number: int, frame: object) -> None:
        hang_up.set()

    signal.signal(signal.SIGTERM, on_stop)
    signal.signal(signal.SIGINT, on_stop)
    signal.signal(signal.SIGHUP, on_hang_up)
    service = Service(reloader, cluster_name(config.path, stop))
    service.start()
    log.info(
        "relay_started version=%s pid=%d cluster=%s state_dir=%s socket=%s bank=%s",
        __version__,
        os.getpid(),
        service.cluster,
        config.ledger.state_dir,
        config.relay.socket,
        config.api.url,
    )
    _notify("READY=1")
    why = ""
    while not why and not stop.wait(LOCK_LOOK_S):
        if hang_up.is_set():
            hang_up.clear()
            log.info("relay_reload signal=SIGHUP")
            service.reload()
        try:
            lock.hold()
        except AlreadyRunning as error:
            why = str(error)
    _notify("STOPPING=1")
    if why:
        log.error(
            "relay_stopping reason=%r: the lock file was removed, and another relay has made its own",
            why,
        )
    else:
        log.info("relay_stopping signal=%s", signal.Signals(received[0]).name)
    service.stop()
    log.info("relay_stopped")
    return 0


def _refuse(problems: Sequence[str]) -> int:
    for problem in problems:
        print(f"slurm-banking relay: error: {problem}", file=sys.stderr)
    return 1


# -- the process ------------------------------------------------------------------------------------------------------


def _cut_ties() -> None:
    """No session, directory or descriptor of the one who started us: slurmctld's must not live on in here."""
    try:
        os.setsid()
    except OSError:
        pass  # the leader of its group already
    os.chdir("/")
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:
                pass  # the listing's own


def _settle_signals() -> None:
    """slurmctld blocks what its own thread waits for, and a shell's background jobs ignore SIGINT."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def become_slurm_user(config: Config) -> None:
    """Root becomes the owner of the state directory; anybody else has to be it already.

    :raises StartError: there is no such directory, or it is root's.
    """
    path = config.ledger.state_dir
    try:
        status = os.lstat(path)
    except OSError as error:
        raise StartError(
            f"{config.path}: [Ledger] state_dir: {path}: {error.strerror}: expected a directory of SlurmUser: "
            f"install -d -m 700 -o slurm {path}"
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise StartError(f"{config.path}: [Ledger] state_dir: {path}: expected a directory")
    if os.geteuid() != 0:
        return  # the ledger itself refuses a directory of others
    if status.st_uid == 0:
        raise StartError(
            f"{config.path}: [Ledger] state_dir: {path}: belongs to root; expected SlurmUser, as whom the relay runs: "
            f"chown -R slurm {path}"
        )
    _make_socket_directory(config, status)
    try:
        account = pwd.getpwuid(status.st_uid)
        os.initgroups(account.pw_name, account.pw_gid)
        group = account.pw_gid
    except KeyError:
        os.setgroups([])
        group = status.st_gid
    os.setresgid(group, group, group)
    os.setresuid(status.st_uid, status.st_uid, status.st_uid)


def _make_socket_directory(config: Config, owner: os.stat_result) -> None:
    """/run is empty after a boot: while it is root, the relay makes its directory there."""
    directory = os.path.dirname(config.relay.socket)
    if os.path.lexists(directory):
        return
    try:
        os.mkdir(directory, 0o755)
        os.chmod(directory, 0o755)
        os.chown(directory, owner.st_uid, owner.st_gid)
    except OSError as error:
        raise StartError(
            f"{config.path}: [Relay] socket: {directory}: {error.strerror}: "
            f"install -d -m 755 -o {owner.st_uid} {directory}"
        ) from None


def take_lock(state_dir: str) -> int:
    """The descriptor that holds the lock, to be kept open.

    :raises AlreadyRunning: another process has it. :raises StartError: the file cannot be used.
    """
    path = os.path.join(state_dir, LOCK_NAME)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartError(
            f"{path}: {error.strerror}: expected a file of uid {os.geteuid()}"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise AlreadyRunning(f"already running pid {pid}") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


class StateLock:
    """The lock of a state directory, also after its file was removed with everything else there.

    :raises AlreadyRunning, StartError: as :func:`take_lock`.
    """

    def __init__(self, state_dir: str) -> None:
        self._state_dir = state_dir
        self._descriptor = take_lock(state_dir)

    def hold(self) -> None:
        """Take it again, if the file is gone. Where that cannot be, the state directory being away, later.

        :raises AlreadyRunning: another relay was sooner.
        """
        path = os.path.join(self._state_dir, LOCK_NAME)
        try:
            if os.path.samestat(os.fstat(self._descriptor), os.lstat(path)):
                return
        except FileNotFoundError:
            pass
        except OSError:
            return
        try:
            descriptor = take_lock(self._state_dir)
        except StartError:
            return
        self.close()
        self._descriptor = descriptor
        log.warning("lock_gone path=%s: taken again", path)

    def close(self) -> None:
        os.close(self._descriptor)


def _notify(state: str) -> None:
    """Tell systemd, if it asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.setblocking(False)
            notify.sendto(state.encode(), address)
    except OSError:
        pass


# -- logging ----------------------------------------------------------------------------------------------------------


def _logs_to_stderr(foreground: bool) -> bool:
    return foreground or "JOURNAL_STREAM" in os.environ


def set_up_logging(config: Config, foreground: bool) -> None:
    """To stderr (foreground, systemd), or to a file that is turned over at 5 MiB; then warnings go to syslog, too."""
    logging.raiseExceptions = False  # a full disk is no reason to end
    root = logging.getLogger("slurm_banking")
    root.setLevel(logging.INFO)
    root.propagate = False
    form = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    if _logs_to_stderr(foreground):
        stderr = logging.StreamHandler(sys.stderr)
        stderr.setFormatter(form)
        root.addHandler(stderr)
        return
    path = os.path.join(config.ledger.state_dir, LOG_NAME)
    try:
        file = logging.handlers.RotatingFileHandler(
            path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8", errors="replace"
        )
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None
    file.setFormatter(form)
    root.addHandler(file)
    if os.path.exists("/dev/log"):
        try:
            syslog = logging.handlers.SysLogHandler(
                "/dev/log", facility=logging.handlers.SysLogHandler.LOG_DAEMON
            )
        except OSError:
            return
        syslog.setLevel(logging.WARNING)
        syslog.setFormatter(logging.Formatter("slurm-banking-relay: %(message)s"))
        root.addHandler(syslog)


# -- which cluster ----------------------------------------------------------------------------------------------------

_CLUSTER = re.compile(r"^\s*ClusterName\s*=\s*([^\s#]+)", re.IGNORECASE | re.MULTILINE)
_INCLUDE = re.compile(r"^\s*Include\s+([^\s#]+)", re.IGNORECASE | re.MULTILINE)


def cluster_name(config_path: str, stop: Optional[threading.Event] = None) -> str:
    """ClusterName of the slurm.conf in use, in lower case as Slurm keeps it; asked of slurmctld if no file says it.

    :raises StartError: neither does.
    """
    for path in _slurm_confs(config_path):
        name = _cluster_in(path, depth=3)
        if name is not None:
            return name.lower()
    from slurm_banking.slurm.control import read_controller

    problem = ""
    for _ in range(30):  # slurmctld may just be starting, with us
        try:
            return read_controller().cluster.lower()
        except SlurmUnavailable as error:
            problem = str(error)
        if stop is not None and stop.wait(2.0):
            break
        if stop is None:
            break
    raise StartError(
        f"no slurm.conf with a ClusterName was found, and slurmctld was not reached: {problem}"
    )


def _slurm_confs(config_path: str) -> Iterator[str]:
    if "SLURM_CONF" in os.environ:
        yield os.environ["SLURM_CONF"]
    yield os.path.join(os.path.dirname(os.path.abspath(config_path)), "slurm.conf")
    yield "/etc/slurm/slurm.conf"


def _cluster_in(path: str, depth: int) -> Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(4 * 1024 * 1024)
    except OSError:
        return None
    found = _CLUSTER.search(text)
    if found is not None:
        return found[1].strip('"')
    if depth > 0:
        for included in _INCLUDE.findall(text):
            name = _cluster_in(os.path.join(os.path.dirname(path), included), depth - 1)
            if name is not None:
                return name
    return None
