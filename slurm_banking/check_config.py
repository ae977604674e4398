# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking check-config``: every mistake in bank-config.toml and around it, or what is in force.

Made to be run as root on the controller; anybody else learns what they may see. Changes nothing and asks no bank; Slurm
is asked only whether it tracks what is priced, and only if more than CPUs is.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import stat
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set, TextIO, Tuple

from slurm_banking import state_dir
from slurm_banking.config import (
    DATED,
    DATED_FROM,
    DEFAULT_PATH,
    SECTIONS,
    Config,
    load,
    read_token,
    token_file_problem,
)
from slurm_banking.errors import ConfigError, SlurmUnavailable
from slurm_banking.prices import PriceList, plain
from slurm_banking.slurm import commands
from slurm_banking.slurm.commands import Runner
from slurm_banking.tres import UNTYPED

#: A slurmctld that is there answers at once; this is no reason to wait for one that is not.
SLURM_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Report:
    path: str
    problems: Tuple[str, ...]  #: one line each; any: exit status 1
    warnings: Tuple[str, ...]
    slurm_user: str  #: the account that slurmctld and the relay run as, as far as can be told
    config: Optional[Config] = None  #: None: the file itself has mistakes


def check(path: str, *, slurm_user: Optional[str] = None, run: Optional[Runner] = None) -> Report:
    """``slurm_user``: a name; None: SlurmUser of the slurm.conf beside ``path``, of /etc/slurm, else "slurm".

    ``run``: what runs Slurm's commands; None: this host's, if it has them.
    """
    name = slurm_user or _slurm_user(path)
    try:
        config = load(path, in_slurmctld=False)
    except ConfigError as error:
        return Report(path=path, problems=error.problems, warnings=(), slurm_user=name)
    problems: List[str] = []
    warnings = list(config.warnings)
    try:
        uid = pwd.getpwuid(int(name)).pw_uid if name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError:
        problems.append(f'{path}: SlurmUser "{name}" has no account on this host: expected one')
    else:
        _check_readable(config, uid, problems)
        _check_token(config, uid, problems, warnings)
        _check_state_dir(config, uid, problems, warnings)
        _check_relay(config, uid, problems, warnings)
        _check_slurmrestd(config, uid, problems, warnings)
    _check_users(config, warnings)
    _check_slurm(config, run or _scontrol(path), warnings)
    return Report(
        path=path,
        problems=tuple(problems),
        warnings=tuple(warning for warning in warnings if warning not in problems),
        slurm_user=name,
        config=config,
    )


def main(
    path: str = DEFAULT_PATH,
    *,
    as_json: bool = False,
    slurm_user: Optional[str] = None,
    out: Optional[TextIO] = None,
    run: Optional[Runner] = None,
    now_s: Optional[int] = None,
) -> int:
    """Print the report; 0 when there is no mistake (there may be warnings), 1 otherwise."""
    out = out or sys.stdout
    now_s = int(time.time()) if now_s is None else now_s
    report = check(path, slurm_user=slurm_user, run=run)
    if as_json:
        json.dump(_as_json(report, now_s), out, indent=2)
        out.write("\n")
    else:
        out.write("\n".join(_as_text(report, now_s)) + "\n")
    return 1 if report.problems else 0


def _slurm_conf(path: str) -> str:
    """Where slurm.conf would be beside ``path``."""
    return os.path.join(os.path.dirname(os.path.abspath(path)), "slurm.conf")


def _slurm_user(path: str) -> str:
    for candidate in (_slurm_conf(path), "/etc/slurm/slurm.conf"):
        try:
            with open(candidate, encoding="utf-8", errors="replace") as file:
                found = re.search(
                    r"^\s*SlurmUser\s*=\s*([^\s#(]+)", file.read(), re.IGNORECASE | re.MULTILINE
                )
        except OSError:
            continue
        return found[1] if found else "root"  # Slurm's own default
    return "slurm"


def _check_readable(config: Config, uid: int, problems: List[str]) -> None:
    """slurmctld and the relay read the file as SlurmUser."""
    status = os.stat(config.path)
    name = _name(uid)
    if uid == 0 or status.st_uid == uid:
        readable = uid == 0 or bool(status.st_mode & 0o400)
    elif status.st_gid in os.getgrouplist(name, pwd.getpwuid(uid).pw_gid):
        readable = bool(status.st_mode & 0o040)
    else:
        readable = bool(status.st_mode & 0o004)
    mode = stat.S_IMODE(status.st_mode)
    if not readable:
        problems.append(
            f"{config.path}: mode {mode:04o} of {_name(status.st_uid)}: {name} must be able to read it"
        )
    if status.st_uid not in (0, uid) or mode & 0o022:
        owner = _name(status.st_uid)
        problems.append(
            f"{config.path}: belongs to {owner}, mode {mode:04o}: expected a file that only root or {name} can write"
        )


def _check_token(config: Config, uid: int, problems: List[str], warnings: List[str]) -> None:
    if os.geteuid() not in (0, uid):
        warnings.append(
            f"{config.path}: [API] the token was not looked at: run this as root or SlurmUser"
        )
        return
    for key, path, owners in (
        ("token_file", config.api.token_file, (0, uid)),
        ("node_token_file", config.api.node_token_file, (0,)),
    ):
        if path is None:
            continue
        where = f'{config.path}: [API] {key} = "{path}"'
        try:
            status = os.stat(path)
        except OSError as error:
            if key == "node_token_file":  # it lives on the nodes
                warnings.append(
                    f"{where}: not on this host ({error.strerror}): expected on the nodes"
                )
            else:
                problems.append(f"{where}: cannot be read: {error.strerror}")
            continue
        problem = token_file_problem(status, path, owners)
        if problem is None and key == "token_file" and status.st_uid != uid:
            name = _name(uid)
            problem = f"belongs to {_name(status.st_uid)}, mode 0600: the relay runs as {name}: chown {name} {path}"
        if problem is not None:
            problems.append(f"{where}: {problem}")
    try:
        read_token(config)
    except ConfigError as error:
        known = f"{config.path}: [API] token_file"
        if not any(problem.startswith(known) for problem in problems):
            problems += error.problems


def _check_state_dir(config: Config, uid: int, problems: List[str], warnings: List[str]) -> None:
    path = config.ledger.state_dir
    prefix = f"{config.path}: [Ledger] state_dir = "
    problems += [f"{prefix}{problem}" for problem in state_dir.check(path, uid)]
    kind = state_dir.file_system(path)
    if kind in ("tmpfs", "ramfs"):
        warnings.append(
            f"{prefix}{path}: in memory ({kind}): the ledger is lost, and rebuilt, at every boot"
        )


def _check_relay(config: Config, uid: int, problems: List[str], warnings: List[str]) -> None:
    relay = config.relay
    directory = os.path.dirname(relay.socket)
    where = f"{config.path}: [Relay] socket = {relay.socket}"
    try:
        status = os.stat(directory)
    except OSError as error:
        mend = f"install -d -m 755 -o {_name(uid)} {directory}"
        line = f"{where}: {directory}: {error.strerror}: {mend}"
        # The systemd units make it (RuntimeDirectory=) at their start.
        (warnings if isinstance(error, FileNotFoundError) else problems).append(line)
    else:
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISDIR(status.st_mode):
            problems.append(f"{where}: {directory}: expected a directory")
        elif status.st_uid not in (0, uid):
            mend = f"chown {_name(uid)} {directory}"
            problems.append(
                f"{where}: {directory} belongs to {_name(status.st_uid)}: expected {_name(uid)}: {mend}"
            )
        elif status.st_uid != uid and uid != 0:
            warnings.append(
                f"{where}: {directory} belongs to root: {_name(uid)} must be able to write there"
            )
        elif mode & 0o022:
            problems.append(
                f"{where}: {directory} has mode {mode:04o}: expected 0755: chmod 755 {directory}"
            )
        elif not mode & 0o001:
            warnings.append(
                f"{where}: {directory} has mode {mode:04o}: users cannot ask the relay; 0755 lets them"
            )
    if relay.start != "with-slurmctld":
        return
    where = f"{config.path}: [Relay] command = {relay.command}"
    try:
        status = os.stat(relay.command)
    except OSError as error:
        problems.append(f"{where}: {error.strerror}: expected the slurm-banking command")
        return
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
        problems.append(f"{where}: expected an executable file")
    elif status.st_uid not in (0, uid) or status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        owner = _name(status.st_uid)
        problems.append(
            f"{where}: belongs to {owner}, mode {mode:04o}: expected root's, writable by root alone"
        )


def _check_slurmrestd(config: Config, uid: int, problems: List[str], warnings: List[str]) -> None:
    from slurm_banking.slurm.rest_token import source_problems

    if os.geteuid() not in (0, uid):
        return  # as with the bank's token, which has said so
    wrong, doubtful = source_problems(config.slurmrestd, uid)
    problems += [f"{config.path}: [slurmrestd] {text}" for text in wrong]
    warnings += [f"{config.path}: [slurmrestd] {text}" for text in doubtful]


def _check_users(config: Config, warnings: List[str]) -> None:
    for section, key, names in (
        ("Relay", "admin_users", config.relay.admin_users),
        ("Policy", "exempt_users", config.policy.exempt_users),
    ):
        for name in names:
            try:
                pwd.getpwnam(name)
            except KeyError:
                warnings.append(
                    f'{config.path}: [{section}] {key}: "{name}" has no account on this host'
                )


def _scontrol(path: str) -> Optional[Runner]:
    """None: this host has no scontrol."""
    if shutil.which("scontrol") is None:
        return None
    beside = _slurm_conf(path)
    extra = {"SLURM_CONF": beside} if os.path.exists(beside) else None
    return partial(commands.run, timeout_s=SLURM_TIMEOUT_S, extra_env=extra)


def _check_slurm(config: Config, run: Optional[Runner], warnings: List[str]) -> None:
    """Does Slurm track what is priced, now or later? What it does not tell of a run cannot be charged."""
    priced = [
        (name, rates)
        for prices in (config.prices, *(prices for _, prices in config.dated_prices))
        for name, rates in prices.partitions.items()
        if not rates.cpu_only
    ]
    if run is None or not priced:
        return
    where = f"{config.path}: [PartitionPrice]"
    try:
        slurm = _Tracked.ask(run)
    except SlurmUnavailable as error:
        warnings.append(f"{where} whether Slurm tracks what is priced was not looked at: {error}")
        return

    def told(names: Iterable[str], text: str) -> None:
        found = ", ".join(dict.fromkeys(names))
        if found:
            warnings.append(f"{where} {found}: {text}")

    if "gres/gpu" not in slurm.tres:
        told(
            (name for name, rates in priced if any(rates.gpu.values())),
            "GPUs are priced, but AccountingStorageTRES has no gres/gpu: Slurm does not count them all, and what it "
            "does not count costs nothing",
        )
    for kind in sorted({kind for _, rates in priced for kind in rates.gpu} - {UNTYPED}):
        if f"gres/gpu:{kind}" not in slurm.tres:
            told(
                (name for name, rates in priced if kind in rates.gpu),
                f'"gpu:{kind}" is priced, but AccountingStorageTRES has no gres/gpu:{kind}: Slurm does not tell this '
                "type, and such GPUs cost the price of gpu, or without one that of the dearest type",
            )
    told(
        (name for name, rates in priced if rates.billing and slurm.without_weights(name)),
        "billing is priced, but there are no TRESBillingWeights: Slurm's billing is the number of CPUs there",
    )
    told(
        (name for name, rates in priced if rates.mem_gb and slurm.without_memory(name)),
        "mem_gb is priced, but SelectTypeParameters does not track memory (CR_Core_Memory and the like do): Slurm "
        "allocates none, and it costs nothing",
    )


@dataclass(frozen=True)
class _Tracked:
    """What of slurm.conf decides what Slurm can tell of a run."""

    tres: Set[str]  #: AccountingStorageTRES, in lower case
    select: str  #: the cluster's SelectTypeParameters, in lower case
    partition_select: Mapping[str, str]  #: the partition's own; "none"
    weighted: Mapping[str, bool]  #: has TRESBillingWeights

    @classmethod
    def ask(cls, run: Runner) -> _Tracked:
        """:raises SlurmUnavailable: slurmctld does not answer, or not as expected."""
        found = dict(
            re.findall(
                r"^(AccountingStorageTRES|SelectTypeParameters)\s*=\s*(\S+)",
                run(["scontrol", "show", "config"]),
                re.MULTILINE,
            )
        )
        select: Dict[str, str] = {}
        weighted: Dict[str, bool] = {}
        for line in run(["scontrol", "--all", "--oneliner", "show", "partition"]).splitlines():
            cells = dict(cell.partition("=")[::2] for cell in line.split())
            if "PartitionName" in cells:
                select[cells["PartitionName"]] = cells.get("SelectTypeParameters", "NONE").lower()
                weighted[cells["PartitionName"]] = "TRESBillingWeights" in cells
        if "AccountingStorageTRES" not in found:
            raise SlurmUnavailable("scontrol show config: unexpected answer")
        return cls(
            tres=set(found["AccountingStorageTRES"].lower().split(",")),
            select=found.get("SelectTypeParameters", "NONE").lower(),
            partition_select=select,
            weighted=weighted,
        )

    def without_weights(self, partition: str) -> bool:
        return not self.weighted.get(partition, True)

    def without_memory(self, partition: str) -> bool:
        """A partition's own parameters replace the cluster's, memory included, where those name cores or sockets."""
        own = self.partition_select.get(partition, "none")
        takes_own = "cr_core" in self.select or "cr_socket" in self.select
        return "memory" not in (own if own != "none" and takes_own else self.select)


def in_force(config: Config) -> Mapping[str, Any]:
    """Every key with the value in force, the defaults included; never the token."""
    tree: dict[str, Any] = {}
    for section in SECTIONS:
        values = asdict(getattr(config, section.lower()))
        if values.pop("token", None) is not None:
            values["token"] = "(in this file)"
        tree[section] = {key: _plain(value) for key, value in values.items() if value is not None}
    tree.update(config.prices.tables())
    tree[DATED] = [
        {DATED_FROM: _moment(from_s), "price_version": prices.version, **prices.tables()}
        for from_s, prices in config.dated_prices
    ]
    return tree


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Decimal):
        return plain(value)
    return list(value) if isinstance(value, tuple) else value


def _moment(at_s: int) -> str:
    """In the time zone of this host, as the file has it where it names no other."""
    return datetime.fromtimestamp(at_s).astimezone().isoformat()


def _prices_since(config: Config, now_s: int) -> Optional[int]:
    """Since when the price list that is in force now is; None: it is the one at the top of the file."""
    return max((from_s for from_s, _ in config.dated_prices if from_s <= now_s), default=None)


def _as_json(report: Report, now_s: int) -> Mapping[str, Any]:
    config = report.config
    since = _prices_since(config, now_s) if config else None
    return {
        "file": report.path,
        "ok": not report.problems,
        "problems": list(report.problems),
        "warnings": list(report.warnings),
        "slurm_user": report.slurm_user,
        "price_version": config.prices_at(now_s).version if config else None,
        "prices_from": None if since is None else _moment(since),
        "in_force": in_force(config) if config else None,
    }


def _as_text(report: Report, now_s: int) -> Sequence[str]:
    config = report.config
    lines = [f"error: {problem}" for problem in report.problems]
    lines += [f"warning: {warning}" for warning in report.warnings]
    if report.problems or config is None:
        count = len(report.problems)
        return [*lines, f"{report.path}: {count} mistake{'' if count == 1 else 's'}"]
    for section, values in in_force(config).items():
        if section == DATED:
            continue
        lines.append(f"[{section}]")
        lines += [f"  {_key(key)} = {_shown(value)}" for key, value in values.items()]
    prices = config.prices_at(now_s)
    for from_s, dated in config.dated_prices:
        lines += _list_as_text(from_s, dated, in_force_now=dated is prices)
    since = _prices_since(config, now_s)
    lines.append(
        f"{report.path}: no mistakes; {len(prices.partitions)} partitions priced, "
        f"price version {prices.version}{f' (the list from {_moment(since)})' if since is not None else ''}, "
        f"SlurmUser {report.slurm_user}"
    )
    return lines


def _list_as_text(from_s: int, prices: PriceList, *, in_force_now: bool) -> Sequence[str]:
    now = ", in force now" if in_force_now else ""
    lines = [
        f"[[{DATED}]]",
        f"  {DATED_FROM} = {_moment(from_s)}  # price version {prices.version}{now}",
    ]
    for section, values in prices.tables().items():
        lines.append(f"  [{DATED}.{section}]")
        lines += [f"    {_key(key)} = {_shown(value)}" for key, value in values.items()]
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        cells = (f"{_key(key)} = {_shown(cell)}" for key, cell in value.items())
        return "{ " + ", ".join(cells) + " }"
    return json.dumps(value, ensure_ascii=False)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


if __name__ == "__main__":
    arguments = sys.argv[1:]
    names = [argument for argument in arguments if argument != "--json"]
    sys.exit(main(names[0] if names else DEFAULT_PATH, as_json="--json" in arguments))
