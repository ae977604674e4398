# SPDX-License-Identifier: BSD-3-Clause
"""bank-config.toml: read, checked as a whole, and handed out as one frozen tree.

Every mistake in the file is reported at once, each as one line that names file, section, key, value and what was
expected; of a file with a mistake nothing is used. The sections below are the schema: a field is a key, its default is
the default, its reader says what it may be. ``docs/configuration.md`` and ``bank-config.toml.example`` describe the same
keys, and a test holds the three together.

Imported inside slurmctld: standard library only, nothing is logged here, and the token never stays in memory there.
"""

from __future__ import annotations

import os
import re
import stat
import string
import sys
import threading
from dataclasses import MISSING, dataclass, field, fields
from decimal import Decimal
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Type, TypeVar, Union

from slurm_banking.errors import ConfigError
from slurm_banking.prices import PriceList
from slurm_banking.records import Mode

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    try:
        import tomli as tomllib
    except ImportError:
        tomllib = None  # type: ignore[assignment]

#: Where the plugins look when nothing else is said: beside slurm.conf.
DEFAULT_PATH = "/etc/slurm/bank-config.toml"

MAX_FILE_BYTES = 1024 * 1024
MAX_TOKEN_BYTES = 4096
#: What fits into sockaddr_un.
MAX_SOCKET_PATH_BYTES = 107

T = TypeVar("T")
Reader = Callable[[Any], Any]


class _Wrong(Exception):
    """A value that its key cannot have; the text continues "FILE: [Section] key = value: "."""


# Readers: one TOML value in, the field's value out, or _Wrong.


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("expected true or false, without quotes")
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong("expected a string in quotes")
    return value


def _word(value: Any, what: str = "a name") -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[^\s,\x00-\x1f\x7f]{1,255}", value):
        raise _Wrong(f"expected {what} in quotes, without spaces or commas")
    return value


def _words(value: Any) -> Tuple[str, ...]:
    if not isinstance(value, list):
        raise _Wrong('expected a list of names, like ["one", "two"]')
    try:
        return tuple(_word(item) for item in value)
    except _Wrong:
        raise _Wrong("expected a list of names in quotes, each without spaces or commas") from None


def _lower_words(value: Any) -> Tuple[str, ...]:
    """Slurm stores accounts and QOS in lower case."""
    return tuple(word.lower() for word in _words(value))


def _one_of(*words: str) -> Reader:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise _Wrong("expected " + _either(words) + _did_you_mean(value, words))
        return value

    return read


def _seconds(least: int, most: int, unit: str = "seconds") -> Reader:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _Wrong(f"expected a whole number of {unit} from {least} to {most}")
        return value

    return read


def _mode(value: Any) -> Mode:
    words = [mode.value for mode in Mode]
    if not isinstance(value, str) or value not in words:
        raise _Wrong("expected " + _either(words) + _did_you_mean(value, words))
    return Mode(value)


def _unlimited_time(value: Any) -> Union[str, int]:
    if value == "refuse":
        return "refuse"
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 3660:
        raise _Wrong('expected "refuse" or a whole number of days from 1 to 3660')
    return value


def _absolute_path(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"/[^\x00-\x1f\x7f]{0,4094}", value):
        raise _Wrong("expected an absolute path in quotes")
    return value


def _socket_path(value: Any) -> str:
    path = _absolute_path(value)
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise _Wrong(
            f"expected at most {MAX_SOCKET_PATH_BYTES} bytes, the most that a unix socket's path may have"
        )
    return path


_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>(?:/[A-Za-z0-9._~%!$&'()*+,;=:@-]*)*)"
)


def _url(value: Any) -> str:
    match = _URL.fullmatch(value) if isinstance(value, str) and len(value) <= 2000 else None
    if match is None or not 0 < int(match["port"] or 443) < 65536:
        raise _Wrong(
            'expected the base of the bank\'s API, like "https://bank.example.org/api", without user, query or fragment'
        )
    return str(value).rstrip("/")


def _token(value: Any) -> str:
    """The bare key of ``Token KEY`` or ``KEY``."""
    match = (
        re.fullmatch(r"\s*(?:[Tt]oken\s+)?([\x21-\x7e]{1,1000})\s*", value)
        if isinstance(value, str)
        else None
    )
    if match is None or match[1].lower() == "token":
        raise _Wrong('expected "Token " followed by the key')
    return match[1]


def _resource(value: Any) -> Tuple[str, ...]:
    names = value if isinstance(value, list) else [value]
    if not all(
        isinstance(name, str) and re.fullmatch(r"[^\x00-\x1f\x7f]{1,255}", name) for name in names
    ):
        raise _Wrong(
            'expected a name in quotes, or a list of them, like ["Savio Compute", "Vector Compute"]'
        )
    return tuple(names)


#: What ``job_id_format`` may contain.
JOB_ID_FIELDS = ("job_id", "restart", "cluster", "array_job_id", "array_task_id")


def _job_id_format(value: Any) -> str:
    expected = (
        "expected text of letters, digits, - _ + : and the fields "
        + ", ".join("{%s}" % name for name in JOB_ID_FIELDS)
        + ", with {job_id} among them"
    )
    if not isinstance(value, str) or not 0 < len(value) <= 100:
        raise _Wrong(expected)
    try:
        parts = list(string.Formatter().parse(value))
    except ValueError:
        raise _Wrong(expected) from None
    names = [name for _, name, _, _ in parts if name is not None]
    for literal, name, spec, conversion in parts:
        # The bank's ids end at a slash or a dot (its URL pattern), and braces would only confuse.
        if not re.fullmatch(r"[A-Za-z0-9_+:-]*", literal) or spec or conversion:
            raise _Wrong(expected)
        if name is not None and name not in JOB_ID_FIELDS:
            raise _Wrong(expected + _did_you_mean(name, JOB_ID_FIELDS))
    if "job_id" not in names:
        raise _Wrong(expected)
    return value


def _contact(value: Any) -> str:
    if (
        not isinstance(value, str)
        or len(value) > 500
        or re.search(r"[\x00-\x09\x0b-\x1f\x7f]", value)
    ):
        raise _Wrong("expected text of at most 500 characters, without control characters")
    return value.strip()


#: Ten places and seven digits: products of a price and a multiplier stay exact, and no exponent can blow up.
_PLACES = Decimal("1e-10")


def _number(most: int, unit: str) -> Reader:
    expected = f"expected {unit}: a number from 0 to {most:,} with at most ten decimal places"

    def read(value: Any) -> Decimal:
        if isinstance(value, str) and re.fullmatch(r"\s*\+?[0-9]{1,20}(\.[0-9]{1,20})?\s*", value):
            value = Decimal(value.strip())
        if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
            raise _Wrong(expected)
        number = Decimal(value)
        if not number.is_finite() or not 0 <= number <= most or number != number.quantize(_PLACES):
            raise _Wrong(expected)
        number = abs(number)
        exponent = number.as_tuple().exponent
        if isinstance(exponent, int) and (exponent > 0 or exponent < -10):
            number = number.quantize(_PLACES).normalize()
            number = number if number != number.to_integral_value() else Decimal(int(number))
        return number

    return read


_price = _number(1_000_000, "SU per CPU-hour")
_multiplier = _number(1_000, "a factor on the price")


def _key(read: Reader, default: Any = MISSING) -> Any:
    """A key of the file: how its value is read, and what it is when it is not there. Without a default it must be."""
    if default is MISSING:
        return field(metadata={"read": read})
    return field(default=default, metadata={"read": read})


@dataclass(frozen=True)
class Enable:
    """Which plugins do anything. A plugin that is off leaves jobs alone."""

    enable_job_submit_plugin: bool = _key(_boolean, True)  #: estimate and decide at submission
    enable_spank_plugin: bool = _key(_boolean, True)  #: report starts from the node
    enable_job_complete_plugin: bool = _key(_boolean, True)  #: charge at the end


@dataclass(frozen=True)
class Api:
    """The bank. The token is read with :func:`read_token`, by the relay and on nodes, never in slurmctld."""

    url: str = _key(_url)  #: base of the API, without a slash at its end
    token: Optional[str] = field(
        default=None, repr=False, metadata={"read": _token}
    )  #: always None in slurmctld
    token_file: Optional[str] = _key(_absolute_path, None)
    node_token_file: Optional[str] = _key(_absolute_path, None)  #: None: nodes report nothing
    timeout_s: int = _key(_seconds(1, 300), 10)  #: seconds, for one request as a whole
    resource: Tuple[str, ...] = _key(
        _resource, ()
    )  #: the bank's resources whose allocations count; empty: any
    job_id_format: str = _key(_job_id_format, "{job_id}")


@dataclass(frozen=True)
class Policy:
    """What is decided, and what happens when nothing can be."""

    mode: Mode = _key(_mode, Mode.STRICT_ALLOCATION)
    enforce: str = _key(_one_of("on", "log"), "on")  #: "log": decide and log, refuse nothing
    undecided: str = _key(_one_of("accept", "reject"), "accept")
    on_plugin_error: str = _key(
        _one_of("accept", "reject", "abort"), "accept"
    )  #: C reads this one too
    unlisted_partition: str = _key(_one_of("free", "refuse"), "refuse")
    unlimited_time: Union[str, int] = _key(_unlimited_time, "refuse")  #: "refuse", or days
    tell_estimate: bool = _key(_boolean, True)
    exempt_accounts: Tuple[str, ...] = _key(_lower_words, ())  #: lower case, as Slurm stores them
    exempt_users: Tuple[str, ...] = _key(_words, ())
    exempt_qos: Tuple[str, ...] = _key(_lower_words, ())  #: lower case
    contact: str = _key(_contact, "")

    @property
    def horizon_min(self) -> Optional[int]:
        """Minutes that stand for unlimited time in an estimate; None: such a job is refused."""
        return None if isinstance(self.unlimited_time, str) else self.unlimited_time * 24 * 60


@dataclass(frozen=True)
class Ledger:
    state_dir: str = _key(
        _absolute_path, "/var/lib/slurm-banking"
    )  #: local disk, SlurmUser's, 0700


@dataclass(frozen=True)
class Relay:
    """The process that talks to the bank."""

    start: str = _key(_one_of("with-slurmctld", "service", "none"), "with-slurmctld")
    socket: str = _key(_socket_path, "/run/slurm-banking/relay.sock")
    command: str = _key(_absolute_path, "/usr/bin/slurm-banking")
    queue_poll_s: int = _key(_seconds(1, 300), 5)
    funds_refresh_s: int = _key(_seconds(5, 3600), 60)
    sacct_poll_s: int = _key(_seconds(5, 3600), 60)
    sacct_lookback_h: int = _key(_seconds(1, 24 * 90, "hours"), 48)
    lien_grace_s: int = _key(_seconds(5, 3600), 30)
    deliver_retry_max_s: int = _key(_seconds(1, 3600), 300)
    admin_users: Tuple[str, ...] = _key(_words, ())  #: besides root and SlurmUser


#: Sections with keys of their own, by the name in the file. Each is the attribute of the same name in lower case.
SECTIONS: Mapping[str, Type[Any]] = {
    "Enable": Enable,
    "API": Api,
    "Policy": Policy,
    "Ledger": Ledger,
    "Relay": Relay,
}

#: Sections whose keys are names of the site: how a value is read.
TABLES: Mapping[str, Reader] = {"PartitionPrice": _price, "QosMultiplier": _multiplier}


def schema() -> Mapping[str, Tuple[str, ...]]:
    """Every section of the file and its keys; none for the sections whose keys are the site's own names."""
    keys = {name: tuple(item.name for item in fields(cls)) for name, cls in SECTIONS.items()}
    return {**keys, **{name: () for name in TABLES}}


@dataclass(frozen=True)
class FileStamp:
    """What a file was when it was read; another stamp, another file."""

    mtime_ns: int
    size: int
    inode: int
    uid: int
    mode: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        return cls(
            mtime_ns=status.st_mtime_ns,
            size=status.st_size,
            inode=status.st_ino,
            uid=status.st_uid,
            mode=stat.S_IMODE(status.st_mode),
        )


@dataclass(frozen=True)
class Config:
    """A configuration without mistakes."""

    path: str
    stamp: FileStamp
    enable: Enable
    prices: PriceList
    api: Api
    policy: Policy
    ledger: Ledger
    relay: Relay
    warnings: Tuple[
        str, ...
    ] = ()  #: whole lines, as in ConfigError, about what works and should not stay

    @property
    def price_version(self) -> str:
        """Ten hex digits that change when a price or a multiplier does."""
        return self.prices.version


def load(path: str, *, in_slurmctld: bool) -> Config:
    """Read and check the file at ``path``.

    ``in_slurmctld``: an inline token is checked and forgotten. A token file is opened in neither case, and a missing
    token is no mistake here: :func:`read_token` is for those who need one.

    :raises ConfigError: with every mistake.
    """
    text, stamp = _read(path)
    document = _parse(path, text)
    return _Checker(path, stamp, in_slurmctld).config(document)


def _read(path: str) -> Tuple[str, FileStamp]:
    try:
        # O_NONBLOCK: a FIFO in this place must not stop slurmctld.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: cannot be read: {_os_error(error)}"]) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError([f"{path}: cannot be read: not a regular file"])
        if status.st_size > MAX_FILE_BYTES:
            raise ConfigError(
                [f"{path}: {status.st_size} bytes: expected at most {MAX_FILE_BYTES}"]
            )
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {_os_error(error)}"]) from None
    finally:
        os.close(descriptor)
    try:
        return content.decode("utf-8-sig"), FileStamp.of(status)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}: line {line}: expected UTF-8 text"]) from None


def _parse_float(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError:
        return Decimal("NaN")  # no reader takes it, so that the key is named


def _parse(path: str, text: str) -> Dict[str, Any]:
    if tomllib is None:  # pragma: no cover
        raise ConfigError([f"{path}: cannot be read: Python below 3.11 needs the package tomli"])
    try:
        return tomllib.loads(text, parse_float=_parse_float)
    except RecursionError:
        raise ConfigError(
            [f"{path}: nested too deeply: expected sections of keys and values"]
        ) from None
    except (ValueError, ArithmeticError) as error:
        return _syntax_error(path, text, str(error))


def _syntax_error(path: str, text: str, message: str) -> Dict[str, Any]:
    """The parser's complaint with its place in front, and for a key or section given twice, its name."""
    match = re.search(r"\s*\(at (line \d+, column \d+|end of document)\)$", message)
    place = match[1] if match else "TOML"
    what = message[: match.start()] if match else message
    key = ""
    if what.startswith(("Cannot overwrite a value", "Cannot declare")):
        line = int(re.findall(r"\d+", place)[0]) if place.startswith("line") else 0
        lines = text.split("\n")
        found = (
            re.match(r"\s*([A-Za-z0-9_-]+)\s*=", lines[line - 1])
            if 0 < line <= len(lines)
            else None
        )
        key = f"{found[1]}: " if found else ""
        what = re.sub(r"\('(.+)',\)", r"[\1]", what) + ": expected each key and each section once"
    raise ConfigError([f"{path}: {place}: {key}{_one_line(what)}"])


class _Checker:
    """Collects the mistakes of one document."""

    def __init__(self, path: str, stamp: FileStamp, in_slurmctld: bool) -> None:
        self.path = path
        self.stamp = stamp
        self.in_slurmctld = in_slurmctld
        self.problems: List[str] = []
        self.warnings: List[str] = []

    def config(self, document: Dict[str, Any]) -> Config:
        known = (*SECTIONS, *TABLES)
        tables: Dict[str, Dict[str, Any]] = {}
        for name, value in document.items():
            if name not in known:
                self.problems.append(self._unknown(name, value, known))
            elif not isinstance(value, dict):
                self.problems.append(
                    f"{self.path}: {name} = {_shown(value)}: expected a section, written [{name}]"
                )
            else:
                tables[name] = value
        if "Policy" not in document:
            tables["Policy"] = {"mode": Mode.FAST_ALLOCATION.value, "unlisted_partition": "free"}
            self.warnings.append(
                f'{self.path}: [Policy] is missing: taken as mode = "fast-allocation", unlisted_partition = "free", '
                "as the first generation of these plugins had it"
            )
        sections: Dict[str, Any] = {
            name: self._section(name, cls, tables.get(name, {})) for name, cls in SECTIONS.items()
        }
        prices = self._table("PartitionPrice", tables.get("PartitionPrice", {}))
        multipliers = self._table("QosMultiplier", tables.get("QosMultiplier", {}))
        self._qos_once(multipliers)
        if self.problems:
            raise ConfigError(self.problems)
        self._warn(sections, prices)
        return Config(
            path=self.path,
            stamp=self.stamp,
            enable=sections["Enable"],
            prices=PriceList(partition_su=prices, qos_multiplier=multipliers),
            api=sections["API"],
            policy=sections["Policy"],
            ledger=sections["Ledger"],
            relay=sections["Relay"],
            warnings=tuple(self.warnings),
        )

    def _unknown(self, name: str, value: Any, known: Tuple[str, ...]) -> str:
        if isinstance(value, dict):
            hint = _did_you_mean(name, known) or f"; expected {_either(known)}"
            return f"{self.path}: [{_name(name)}]: unknown section{hint}"
        homes = [section for section, keys in schema().items() if name in keys]
        hint = f"; it belongs under [{homes[0]}]" if homes else "; expected only sections"
        return f"{self.path}: {_name(name)}: key outside of all sections{hint}"

    def _section(self, section: str, cls: Type[T], table: Dict[str, Any]) -> Optional[T]:
        """None only when a mistake was found."""
        readers = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
        values: Dict[str, Any] = {}
        for key, value in table.items():
            if key not in readers:
                hint = (
                    _did_you_mean(key, tuple(readers)) or f"; expected one of {', '.join(readers)}"
                )
                self.problems.append(f"{self._at(section, key, value)}: unknown key{hint}")
                continue
            try:
                values[key] = readers[key].metadata["read"](value)
            except _Wrong as wrong:
                self.problems.append(f"{self._at(section, key, value)}: {wrong}")
        for key, item in readers.items():
            if key not in table and item.default is MISSING:
                self.problems.append(
                    f"{self.path}: [{section}] {key}: missing: {_expected(item.metadata['read'])}"
                )
        if section == "API":
            self._token_rules(values)
        try:
            return cls(**values)
        except TypeError:
            return None  # a key without a default is missing or wrong, and reported

    def _token_rules(self, values: Dict[str, Any]) -> None:
        inline = "token" in values
        if inline and values.get("token_file"):
            self.warnings.append(
                f"{self.path}: [API] token: not used, since token_file is set; take it out of this file"
            )
        elif inline and self.stamp.mode & 0o044:
            self.warnings.append(
                f"{self.path}: [API] token: {_readable_by_others(self.stamp.mode)}: {_MOVE_TOKEN}"
            )
        if self.in_slurmctld or values.get("token_file"):
            values.pop("token", None)

    def _table(self, section: str, table: Dict[str, Any]) -> Dict[str, Decimal]:
        numbers: Dict[str, Decimal] = {}
        for key, value in table.items():
            if not re.fullmatch(r"[^\s,\x00-\x1f\x7f]{1,255}", key):
                self.problems.append(
                    f"{self._at(section, key, value)}: expected a name without spaces or commas"
                )
            elif isinstance(value, dict):
                inner = f'"{key}.{next(iter(value), "")}"'
                self.problems.append(
                    f"{self._at(section, key, value)}: expected a number; a name with a dot needs quotes: {_one_line(inner)}"
                )
            else:
                try:
                    numbers[key] = TABLES[section](value)
                except _Wrong as wrong:
                    self.problems.append(f"{self._at(section, key, value)}: {wrong}")
        return numbers

    def _qos_once(self, multipliers: Dict[str, Decimal]) -> None:
        seen: Dict[str, str] = {}
        for name in multipliers:
            other = seen.setdefault(name.lower(), name)
            if other != name:
                self.problems.append(
                    f"{self._at('QosMultiplier', name, multipliers[name])}: expected each QOS once; "
                    f"Slurm does not tell it from {_name(other)}"
                )

    def _warn(self, sections: Mapping[str, Any], prices: Mapping[str, Decimal]) -> None:
        url = sections["API"].url
        match = _URL.fullmatch(url)
        if match and match["scheme"] == "http" and not _loopback(match["host"]):
            self.warnings.append(
                f"{self.path}: [API] url = {_shown(url)}: the token travels unencrypted; use https"
            )
        if not prices:
            what = "is free" if sections["Policy"].unlisted_partition == "free" else "is refused"
            self.warnings.append(f"{self.path}: [PartitionPrice] is empty: every job {what}")

    def _at(self, section: str, key: str, value: Any) -> str:
        shown = "..." if section == "API" and _secret(key, value) else _shown(value)
        return f"{self.path}: [{section}] {_name(key)} = {shown}"


def _secret(key: str, value: Any) -> bool:
    """May this value of [API] hold a key or a password? Then it is not shown."""
    if key in ("timeout_s", "resource", "job_id_format"):
        return False
    if not isinstance(value, str):
        return key not in ("url", "token_file", "node_token_file") or not isinstance(
            value, (int, Decimal)
        )
    if key == "url":
        return "@" in value or "?" in value or value.lower().startswith("token")
    return not (key in ("token_file", "node_token_file") and re.fullmatch(r"[/.~][^\s]*", value))


def _loopback(host: str) -> bool:
    return host in ("localhost", "[::1]") or host.startswith("127.")


def _expected(read: Reader) -> str:
    try:
        read(None)
    except _Wrong as wrong:
        return str(wrong)
    return "expected a value"


def _either(words: Any) -> str:
    shown = [f'"{word}"' for word in words]
    return ", ".join(shown[:-1]) + " or " + shown[-1]


def _did_you_mean(value: Any, words: Any) -> str:
    if not isinstance(value, str):
        return ""
    import difflib  # only a mistake needs it

    by_folded = {word.casefold().replace("-", "_"): word for word in words}
    folded = value[:100].casefold().replace("-", "_")
    close = [word for word in by_folded if len(folded) > 2 and word.startswith(folded)]
    if len(close) != 1:
        close = difflib.get_close_matches(folded, list(by_folded), n=1, cutoff=0.6)
    return f"; did you mean {by_folded[close[0]]}?" if close else ""


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)[:200]


def _name(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{_one_line(key)[:60]}"'


def _shown(value: Any) -> str:
    """A TOML value on one line, not too long."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = f'"{_one_line(value)}"'
    elif isinstance(value, int):
        text = str(value) if abs(value) < 10**30 else "a very large number"
    elif isinstance(value, list):
        text = (
            "["
            + ", ".join(_shown(item) for item in value[:5])
            + (", ...]" if len(value) > 5 else "]")
        )
    elif isinstance(value, dict):
        text = "{...}"
    else:
        text = _one_line(str(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _os_error(error: Exception) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)


# The token.

_MOVE_TOKEN = 'move it to a file of its own, token_file = "/etc/slurm/bank-token" (chmod 600, owned by SlurmUser)'


def _readable_by_others(mode: int) -> str:
    return f"this file's mode is {mode:04o}, so others than its owner can read it"


def read_token(config: Config, *, node: bool = False) -> str:
    """The bare key, without the word "Token": for the relay and the command line, never in slurmctld.

    ``node``: the start-only token of ``node_token_file`` instead. The file must be a regular one, its reader's or root's
    (read by root, also the state directory's owner's), and nobody else's to read.

    :raises ConfigError: one line with what is wrong and how to mend it.
    """
    key = "node_token_file" if node else "token_file"
    path = config.api.node_token_file if node else config.api.token_file
    if path is not None:
        return _read_token_file(config, key, path)
    if node or config.api.token is None:
        raise ConfigError(
            [
                f'{config.path}: [API] {key}: missing: expected the path of a file that holds "Token KEY"'
            ]
        )
    if config.stamp.mode & 0o044:
        raise ConfigError(
            [f"{config.path}: [API] token: {_readable_by_others(config.stamp.mode)}: {_MOVE_TOKEN}"]
        )
    if config.stamp.uid not in _trusted_owners(config):
        raise ConfigError(
            [
                f"{config.path}: [API] token: the file belongs to {_user(config.stamp.uid)}: expected {_user(os.geteuid())} or root"
            ]
        )
    return config.api.token


def _trusted_owners(config: Config) -> Tuple[int, ...]:
    owners = [0, os.geteuid()]
    if os.geteuid() == 0:
        try:
            owners.append(os.stat(config.ledger.state_dir).st_uid)
        except OSError:
            pass  # no state directory yet: root's own files only
    return tuple(owners)


def _read_token_file(config: Config, key: str, path: str) -> str:
    where = f'{config.path}: [API] {key} = "{path}"'
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ConfigError(
            [f"{where}: cannot be read by {_user(os.geteuid())}: {_os_error(error)}"]
        ) from None
    try:
        status = os.fstat(descriptor)
        problem = token_file_problem(status, path, _trusted_owners(config))
        if problem:
            raise ConfigError([f"{where}: {problem}"])
        content = os.read(descriptor, MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{where}: cannot be read: {_os_error(error)}"]) from None
    finally:
        os.close(descriptor)
    try:
        return _token(content.decode("ascii") if len(content) <= MAX_TOKEN_BYTES else None)
    except (UnicodeDecodeError, _Wrong):
        raise ConfigError(
            [f'{where}: expected one line in it, "Token KEY" or the key alone']
        ) from None


def token_file_problem(status: os.stat_result, path: str, owners: Tuple[int, ...]) -> Optional[str]:
    """What is wrong with a token file's kind, owner or mode, with the command that mends it; None: nothing."""
    if not stat.S_ISREG(status.st_mode):
        return "expected a regular file"
    mend = f"chmod 600 {path}; chown {_user(owners[-1])} {path}"
    if status.st_uid not in owners:
        expected = " or ".join(dict.fromkeys(_user(uid) for uid in reversed(owners)))
        return f"belongs to {_user(status.st_uid)}: expected {expected}: {mend}"
    if stat.S_IMODE(status.st_mode) & 0o077:
        return f"mode {stat.S_IMODE(status.st_mode):04o}: expected 0600, nobody else may read it: {mend}"
    return None


def _user(uid: int) -> str:
    import pwd  # asks the name service: never reached inside slurmctld

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


class Reloader:
    """The configuration in force: looks at the file at most once a second, and keeps the last good one.

    ``problem`` says why the file as it is now is not in force; None: it is. May be called from several threads.
    """

    CHECK_EVERY_S = 1.0

    def __init__(self, path: str, in_slurmctld: bool) -> None:
        self.path = path
        self.problem: Optional[str] = None
        self.problem_reported = False
        self._in_slurmctld = in_slurmctld
        self._config: Optional[Config] = None
        self._error: Optional[ConfigError] = None
        self._stamp: Optional[FileStamp] = None
        self._checked_at: Optional[float] = None
        self._lock = threading.Lock()

    def current(self, now_monotonic: float) -> Config:
        """:raises ConfigError: there has never been a good one."""
        if self._config is None:
            with self._lock:
                self._check(now_monotonic)
        elif self._lock.acquire(
            blocking=False
        ):  # somebody else is looking: the one in force will do
            try:
                self._check(now_monotonic)
            finally:
                self._lock.release()
        if self._config is None:
            raise ConfigError(self._error.problems if self._error else [f"{self.path}: not read"])
        return self._config

    def take_problem(self) -> Optional[str]:
        """The problem, if nobody has taken it yet: one log line per change of the file."""
        if self.problem is None or self.problem_reported:
            return None
        self.problem_reported = True
        return self.problem

    def _check(self, now_monotonic: float) -> None:
        if (
            self._checked_at is not None
            and 0 <= now_monotonic - self._checked_at < self.CHECK_EVERY_S
        ):
            return
        self._checked_at = now_monotonic
        try:
            stamp = FileStamp.of(os.stat(self.path))
        except (OSError, ValueError):
            stamp = None
        if stamp is not None and stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            config = load(self.path, in_slurmctld=self._in_slurmctld)
        except ConfigError as error:
            self._error = error
            if str(error) != self.problem:
                self.problem = str(error)
                self.problem_reported = False
            return
        self._stamp = config.stamp
        self._config = config
        self._error = None
        self.problem = None
        self.problem_reported = False
