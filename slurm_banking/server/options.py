# SPDX-License-Identifier: BSD-3-Clause
"""Where the bank keeps its data, and the few things a site may set, read once at start.

Order: command line, environment (``SLURM_BANK_DATA``, ``SLURM_BANK_DATABASE``), ``<data>/bank.toml``, default.
"""

from __future__ import annotations

import os
import secrets
import stat
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Optional
from urllib.parse import parse_qsl, unquote, urlsplit

import tomllib

from slurm_banking.errors import ConfigError

DEFAULT_DATA_DIR = "/var/lib/slurm-bank"
DATA_VARIABLE = "SLURM_BANK_DATA"
DATABASE_VARIABLE = "SLURM_BANK_DATABASE"
#: Set by ``serve --compat``, for the settings; see :mod:`slurm_banking.server.portal_compat`.
COMPAT_VARIABLE = "SLURM_BANK_COMPAT"
COMPAT = ("", "portal")

#: Seconds that a writer waits for SQLite's one write lock before the caller gets 503.
SQLITE_BUSY_TIMEOUT_S = 20

_SQLITE_ENGINE = "slurm_banking.server.sqlite3_immediate"
_POSTGRESQL_OPTIONS = frozenset(
    "application_name connect_timeout passfile service sslcert sslkey sslmode sslrootcert".split()
)

#: Times that a connection is asked the same, after which PostgreSQL keeps the statement and its plan. Not for a pooler that
#: gives each transaction another server: ``?prepare=no``.
_PREPARED_AFTER = 5


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One row of the old API's ``partitions/``; the prices that count are in bank-config.toml."""

    name: str
    shared: bool
    num_nodes: int
    num_cores: int
    su_per_core_hour: Decimal


@dataclass(frozen=True, kw_only=True)
class Options:
    data_dir: Path
    database: Mapping[str, Any]  #: An entry of Django's DATABASES.
    database_label: str  #: For people: no password in it.
    resource: str  #: The name of the resource that new allocations are of.
    time_zone: str  #: In which an allocation's first and last day begin and end.
    allowed_hosts: tuple[str, ...]
    trusted_proxy: Optional[str]  #: None: nobody's X-Forwarded-* headers count.
    partitions: tuple[Partition, ...]
    compat: str = ""  #: Whose mistakes the server makes: none, or the portal's.


def load_options(
    data: Optional[str] = None,
    database: Optional[str] = None,
    environ: Mapping[str, str] = os.environ,
) -> Options:
    """:raises ConfigError: naming every mistake in ``bank.toml`` and the database URL at once."""
    data_dir = Path(data or environ.get(DATA_VARIABLE) or DEFAULT_DATA_DIR).absolute()
    problems: list[str] = []
    table = _Table(data_dir / "bank.toml", problems)
    url_of_file = table.take("database", str, None)
    url = database or environ.get(DATABASE_VARIABLE) or url_of_file
    resource = table.take("resource", str, "Compute")
    time_zone = table.take("time_zone", str, "UTC")
    hosts = table.take("allowed_hosts", list, ["*"])
    trusted_proxy = table.take("trusted_proxy", str, None)
    rows = table.take("partition", list, [])
    table.refuse_the_rest()

    compat = environ.get(COMPAT_VARIABLE, "")
    if compat not in COMPAT:
        problems.append(f"${COMPAT_VARIABLE}: {compat!r}, expected portal, or nothing")
    if not resource:
        table.problem("resource", resource, "a name")
    try:
        zoneinfo.ZoneInfo(time_zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        table.problem("time_zone", time_zone, "a time zone that this host knows, such as UTC")
    if not hosts or not all(isinstance(host, str) and host for host in hosts):
        table.problem("allowed_hosts", hosts, "a list of host names")
    partitions = tuple(_partition(table, row) for row in rows)
    try:
        settings, label = parse_database_url(url or f"sqlite://{data_dir}/bank.sqlite3")
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return Options(
        data_dir=data_dir,
        database=settings,
        database_label=label,
        resource=resource,
        time_zone=time_zone,
        allowed_hosts=tuple(hosts),
        trusted_proxy=trusted_proxy,
        partitions=tuple(row for row in partitions if row is not None),
        compat=compat,
    )


def parse_database_url(url: str) -> tuple[dict[str, Any], str]:
    """Django's settings for a database URL, and a label without the password.

    ``sqlite:///absolute/path``; ``postgresql://user:password@host:port/name``; for a unix socket
    ``postgresql://user@/name?host=/directory``; ``?prepare=no`` for a pooler in transaction mode.

    :raises ConfigError: saying what was expected; the URL's password is not repeated.
    """
    expected = "expected sqlite:///path or postgresql://user:password@host/name"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError([f"database URL: {expected}"]) from None
    if parts.scheme == "sqlite":
        path = os.path.normpath("/" + unquote(parts.path).lstrip("/"))
        if parts.netloc or path == "/":
            raise ConfigError([f"database URL {url!r}: expected sqlite:///absolute/path"])
        return (
            {
                "ENGINE": _SQLITE_ENGINE,
                "NAME": path,
                "OPTIONS": {"timeout": SQLITE_BUSY_TIMEOUT_S},
                "CONN_MAX_AGE": None,
            },
            f"sqlite://{path}",
        )
    if parts.scheme in ("postgresql", "postgres"):
        return _postgresql(
            parts.hostname, port, parts.username, parts.password, parts.path, parts.query
        )
    raise ConfigError([f"database URL of kind {parts.scheme!r}: {expected}"])


def _postgresql(
    hostname: Optional[str],
    port: Optional[int],
    username: Optional[str],
    password: Optional[str],
    path: str,
    query: str,
) -> tuple[dict[str, Any], str]:
    extra = dict(parse_qsl(query, keep_blank_values=True))
    host = extra.pop("host", None) or unquote(hostname or "")
    port_text = extra.pop("port", None) or (str(port) if port else "")
    user = extra.pop("user", None) or unquote(username or "")
    secret = extra.pop("password", None) or unquote(password or "")
    name = extra.pop("dbname", None) or unquote(path.lstrip("/"))
    prepared = extra.pop("prepare", "yes")
    unknown = sorted(set(extra) - _POSTGRESQL_OPTIONS)
    if unknown:
        known = ", ".join(sorted({*_POSTGRESQL_OPTIONS, "prepare"}))
        raise ConfigError(
            [f"database URL: unknown parameter {unknown[0]!r}, expected one of {known}"]
        )
    if prepared not in ("yes", "no"):
        raise ConfigError([f"database URL: prepare {prepared!r}, expected yes or no"])
    if port_text and not port_text.isdecimal():
        raise ConfigError([f"database URL: port {port_text!r}, expected a number"])
    if not name or "/" in name:
        raise ConfigError(
            ["database URL: no database name, expected postgresql://user:password@host/name"]
        )
    settings = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "HOST": host,
        "PORT": port_text,
        "USER": user,
        "PASSWORD": secret,
        "OPTIONS": {
            "connect_timeout": "5",
            "server_side_binding": prepared == "yes",
            "prepare_threshold": _PREPARED_AFTER if prepared == "yes" else None,
            **extra,
        },
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
    }
    return settings, f"postgresql {name} on {host or 'the local socket'}"


def prepare_data_dir(data_dir: Path) -> None:
    """Make the data directory (0700), or refuse one that others could put files into.

    :raises ConfigError: it cannot be made, is no directory, or is writable by others.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = data_dir.stat().st_mode
    except OSError as error:
        raise ConfigError([f"data directory {data_dir}: {error.strerror}"]) from None
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            [
                f"data directory {data_dir}: mode {stat.S_IMODE(mode):04o}, expected no write for group and others"
            ]
        )


def secret_key(data_dir: Path) -> str:
    """The key that signs admin sessions; made on first use, 0600.

    :raises ConfigError: it cannot be made or read, or others may read it.
    """
    path = data_dir / "secret_key"
    try:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(50) + "\n")
        mode = path.stat().st_mode
        text = path.read_text().strip()
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    if mode & 0o077:
        raise ConfigError([f"{path}: mode {stat.S_IMODE(mode):04o}, expected 0600"])
    if len(text) < 50:
        raise ConfigError([f"{path}: too short; remove it, and a new one is made"])
    return text


class _Table:
    """``bank.toml`` key by key; what is wrong is collected, what is left over is unknown."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        self.path = path
        self._problems = problems
        self._rest: dict[str, Any] = {}
        try:
            with open(path, "rb") as file:
                self._rest = tomllib.load(file)
                if "database" in self._rest and os.fstat(file.fileno()).st_mode & 0o077:
                    self._problems.append(f"{path}: holds the database URL, expected mode 0600")
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            problems.append(f"{path}: {error}")

    def problem(self, key: str, value: object, expected: str) -> None:
        self._problems.append(f"{self.path}: {key} = {value!r}, expected {expected}")

    def take(self, key: str, kind: type[Any], default: Any) -> Any:
        value = self._rest.pop(key, default)
        if value is default or isinstance(value, kind):
            return value
        self.problem(key, value, "a string" if kind is str else "a list")
        return default

    def refuse_the_rest(self) -> None:
        known = "database, resource, time_zone, allowed_hosts, trusted_proxy, partition"
        for key in self._rest:
            self._problems.append(f"{self.path}: unknown key {key!r}, expected one of {known}")


def _partition(table: _Table, row: Any) -> Optional[Partition]:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not row["name"]:
        table.problem("partition", row, "a table with a name")
        return None
    unknown = sorted(set(row) - {"name", "shared", "num_nodes", "num_cores", "su_per_core_hour"})
    if unknown:
        table.problem(
            "partition", unknown[0], "name, shared, num_nodes, num_cores or su_per_core_hour"
        )
        return None
    try:
        price_su = Decimal(str(row.get("su_per_core_hour", "1.00")))
    except InvalidOperation:
        price_su = Decimal("NaN")
    if not price_su.is_finite() or price_su < 0:
        table.problem(
            "su_per_core_hour", row["su_per_core_hour"], 'a decimal number such as "1.00"'
        )
        return None
    for key in ("num_nodes", "num_cores"):
        if type(row.get(key, 0)) is not int:
            table.problem(key, row[key], "an integer")
            return None
    return Partition(
        name=row["name"],
        shared=bool(row.get("shared", False)),
        num_nodes=row.get("num_nodes", 0),
        num_cores=row.get("num_cores", 0),
        su_per_core_hour=price_su,
    )
