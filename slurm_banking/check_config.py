# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking check-config``: every mistake in bank-config.toml and around it, or what is in force.

Made to be run as root on the controller; anybody else learns what they may see. Changes nothing, asks no bank.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import stat
import sys
from dataclasses import asdict, dataclass
from decimal import Decimal
from enum import Enum
from typing import Any, List, Mapping, Optional, Sequence, TextIO, Tuple

from slurm_banking import state_dir
from slurm_banking.config import (
    DEFAULT_PATH,
    SECTIONS,
    Config,
    load,
    read_token,
    token_file_problem,
)
from slurm_banking.errors import ConfigError
from slurm_banking.prices import plain


@dataclass(frozen=True)
class Report:
    path: str
    problems: Tuple[str, ...]  #: one line each; any: exit status 1
    warnings: Tuple[str, ...]
    slurm_user: str  #: the account that slurmctld and the relay run as, as far as can be told
    config: Optional[Config] = None  #: None: the file itself has mistakes


def check(path: str, *, slurm_user: Optional[str] = None) -> Report:
    """``slurm_user``: a name; None: SlurmUser of the slurm.conf beside ``path``, of /etc/slurm, else "slurm"."""
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
    _check_users(config, warnings)
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
) -> int:
    """Print the report; 0 when there is no mistake (there may be warnings), 1 otherwise."""
    out = out or sys.stdout
    report = check(path, slurm_user=slurm_user)
    if as_json:
        json.dump(_as_json(report), out, indent=2)
        out.write("\n")
    else:
        out.write("\n".join(_as_text(report)) + "\n")
    return 1 if report.problems else 0


def _slurm_user(path: str) -> str:
    for candidate in (
        os.path.join(os.path.dirname(os.path.abspath(path)), "slurm.conf"),
        "/etc/slurm/slurm.conf",
    ):
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


def in_force(config: Config) -> Mapping[str, Any]:
    """Every key with the value in force, the defaults included; never the token."""
    tree: dict[str, Any] = {}
    for section in SECTIONS:
        values = asdict(getattr(config, section.lower()))
        if values.pop("token", None) is not None:
            values["token"] = "(in this file)"
        tree[section] = {key: _plain(value) for key, value in values.items() if value is not None}
    tree["PartitionPrice"] = {
        name: plain(number) for name, number in config.prices.partition_su.items()
    }
    tree["QosMultiplier"] = {
        name: plain(number) for name, number in config.prices.qos_multiplier.items()
    }
    return tree


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Decimal):
        return plain(value)
    return list(value) if isinstance(value, tuple) else value


def _as_json(report: Report) -> Mapping[str, Any]:
    return {
        "file": report.path,
        "ok": not report.problems,
        "problems": list(report.problems),
        "warnings": list(report.warnings),
        "slurm_user": report.slurm_user,
        "price_version": report.config.price_version if report.config else None,
        "in_force": in_force(report.config) if report.config else None,
    }


def _as_text(report: Report) -> Sequence[str]:
    lines = [f"error: {problem}" for problem in report.problems]
    lines += [f"warning: {warning}" for warning in report.warnings]
    if report.problems or report.config is None:
        count = len(report.problems)
        return [*lines, f"{report.path}: {count} mistake{'' if count == 1 else 's'}"]
    for section, values in in_force(report.config).items():
        lines.append(f"[{section}]")
        lines += [f"  {key} = {_shown(value)}" for key, value in values.items()]
    lines.append(
        f"{report.path}: no mistakes; {len(report.config.prices.partition_su)} partitions priced, "
        f"price version {report.config.price_version}, SlurmUser {report.slurm_user}"
    )
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


if __name__ == "__main__":
    arguments = sys.argv[1:]
    names = [argument for argument in arguments if argument != "--json"]
    sys.exit(main(names[0] if names else DEFAULT_PATH, as_json="--json" in arguments))
