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
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import date, datetime
from decimal import Decimal
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    List,
    Mapping,
    Optional,
    Tuple,
    Type,
    TypeVar,
    Union,
)

from slurm_banking.errors import ConfigError
from slurm_banking.prices import CANCELLED_BY_ADMIN, COMBINE, PriceList, Rates
from slurm_banking.records import Mode
from slurm_banking.tres import UNTYPED

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


_UNITS_S = {"m": 60, "h": 3600, "d": 86400}
_LONGEST_D = 31


def _every(value: Any) -> str:
    if isinstance(value, str) and (value == "off" or 0 < _duration_s(value) <= _LONGEST_D * 86400):
        return value
    raise _Wrong(f'expected "off", or a time like "30m", "6h" or "1d", at most "{_LONGEST_D}d"')


def _duration_s(text: str) -> int:
    """Seconds; 0: it is none."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)
    return int(match[1]) * _UNITS_S[match[2]] if match else 0


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


def _metrics_address(value: Any) -> str:
    """Nothing, or HOST:PORT with an address: a name would have to be looked up, and may have several."""
    if value == "":
        return ""
    octet = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    pattern = rf"({octet}(?:\.{octet}){{3}}|\[[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*\]):([0-9]{{1,5}})"
    match = re.fullmatch(pattern, value) if isinstance(value, str) else None
    every_address = match is not None and not re.search("[1-9a-fA-F]", match[1])
    if match is None or every_address or not 0 < int(match[2]) < 65536:
        raise _Wrong(
            'expected "" or an address of this host and a port, like "127.0.0.1:9817" or "[::1]:9817"; not all addresses'
        )
    return str(value)


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


def _slurmrestd_url(value: Any) -> str:
    """As for the bank; or a unix socket, which comes back as ``unix:///path`` however it was written."""
    socket = r"unix:(?://)?(/[^\x00-\x1f\x7f]+)"
    match = re.fullmatch(socket, value) if isinstance(value, str) else None
    if match is not None:
        return "unix://" + _socket_path(match[1])
    try:
        return _url(value)
    except _Wrong:
        raise _Wrong(
            'expected where slurmrestd listens, like "http://127.0.0.1:6820" or "unix:///run/slurmrestd/socket", '
            "without user, query or fragment"
        ) from None


def _environment_name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", value):
        raise _Wrong('expected the name of an environment variable in quotes, like "SLURM_JWT"')
    return value


def _api_version(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"auto|v0\.0\.[0-9]{1,3}", value):
        raise _Wrong('expected "auto", or a version that slurmrestd has, like "v0.0.38"')
    return value


def _verify(value: Any) -> Union[bool, str]:
    if isinstance(value, bool):
        return value
    try:
        return _absolute_path(value)
    except _Wrong:
        raise _Wrong(
            "expected true, false, or the absolute path of a file of CA certificates in quotes"
        ) from None


def _log_file(value: Any) -> str:
    """As csrc/policy_scan.c has it."""
    pattern = r"""(?:/[^\x00-\x1f\x7f"'\\]*[^\x00-\x1f\x7f"'\\/])?"""
    if (
        not isinstance(value, str)
        or len(value.encode("utf-8", "replace")) > 500
        or not re.fullmatch(pattern, value)
    ):
        raise _Wrong(
            'expected "" or the absolute path of a file in quotes, at most 500 bytes, without quotes or backslashes'
        )
    return value


def _jobcomp_plugin(value: Any) -> str:
    """As csrc/policy_scan.c has it."""
    if value == "jobcomp/slurm_banking":
        raise _Wrong("expected another plugin than this one")
    if not isinstance(value, str) or not re.fullmatch(r"(?:jobcomp/[a-z0-9_]{1,64})?", value):
        raise _Wrong(
            'expected "" or another plugin in quotes as JobCompType would name it, like "jobcomp/elasticsearch"'
        )
    return value


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


def _number(most: int, unit: str, *, places: int = 10) -> Reader:
    """Few places and few digits: products of prices, factors and counts stay exact, and no exponent can blow up."""
    word = {2: "two", 10: "ten"}[places]
    expected = f"expected {unit}: a number from 0 to {most:,} with at most {word} decimal places"
    finest = Decimal(1).scaleb(-places)

    def read(value: Any) -> Decimal:
        if isinstance(value, str) and re.fullmatch(r"\s*\+?[0-9]{1,20}(\.[0-9]{1,20})?\s*", value):
            value = Decimal(value.strip())
        if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
            raise _Wrong(expected)
        number = Decimal(value)
        if not number.is_finite() or not 0 <= number <= most or number != number.quantize(finest):
            raise _Wrong(expected)
        number = abs(number)
        exponent = number.as_tuple().exponent
        if isinstance(exponent, int) and (exponent > 0 or exponent < -10):
            number = number.quantize(finest).normalize()
            number = number if number != number.to_integral_value() else Decimal(int(number))
        return number

    return read


def _price(unit: str) -> Reader:
    return _number(1_000_000, f"SU per {unit}")


_cpu_price = _price("CPU-hour")
_any_gpu_price = _price("GPU-hour")


def _gpu_price(value: Any) -> Decimal:
    if isinstance(value, dict):
        raise _Wrong('expected a number; the price of one type is a key of its own, "gpu:TYPE"')
    number: Decimal = _any_gpu_price(value)
    return number


_multiplier = _number(1_000, "a factor on the price")
_factor = _number(1, "the share of the cost that is charged")
_overdraft = _number(100_000_000, "SU", places=2)
_warn_share = _number(1, "a share of what the account was given")


def _lien_share(value: Any) -> Decimal:
    try:
        number: Decimal = _number(1, "")(value)
    except _Wrong:
        number = Decimal(0)
    if not number:
        raise _Wrong(
            "expected a share of the estimate: a number above 0 and at most 1 with at most ten decimal places"
        )
    return number


def _from(value: Any) -> int:
    """Unix seconds; a date is its midnight, and what names no offset is in the time zone of this host."""
    try:
        if isinstance(value, datetime):
            moment = value
        elif isinstance(value, date):
            moment = datetime(value.year, value.month, value.day)
        else:
            raise ValueError
        since_1970 = moment.timestamp()
        if since_1970 < 0 or moment.microsecond:
            raise ValueError
    except (ValueError, OverflowError, OSError):
        raise _Wrong(
            "expected a date like 2030-07-01, or a date and time to the second like 2030-07-01T06:00:00+02:00, "
            "without quotes and not before 1970"
        ) from None
    return int(since_1970)


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
    lien_share: Decimal = _key(_lien_share, Decimal(1))  #: of the estimate, what is set aside
    overdraft_su: Decimal = _key(_overdraft, Decimal(0))  #: that an account may go below zero
    warn_below: Decimal = _key(_warn_share, Decimal(0))  #: 0: never

    @property
    def overdraft_csu(self) -> int:
        return int(self.overdraft_su.scaleb(2))

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
    metrics: str = _key(_metrics_address, "")  #: where Prometheus may ask; "": nowhere
    admin_users: Tuple[str, ...] = _key(_words, ())  #: besides root and SlurmUser


@dataclass(frozen=True)
class Reconcile:
    """The relay's own look whether slurmdbd, ledger and bank agree. It repairs nothing."""

    every: str = _key(_every, "1d")  #: "off", or a time
    source: str = _key(_one_of("sacct", "sacct-json", "slurmrestd"), "sacct")

    @property
    def every_s(self) -> int:
        """0: never."""
        return _duration_s(self.every)


@dataclass(frozen=True)
class JobComp:
    """What else becomes of a record. C reads both, without Python; nothing else does."""

    log: str = _key(_log_file, "")  #: lines as jobcomp/filetxt's; "": none
    pass_on: str = _key(_jobcomp_plugin, "")  #: another plugin that gets each record; "": none


@dataclass(frozen=True)
class SlurmrestdConfig:
    """Where slurmrestd is and what it is shown. At most one of ``token_file``, ``token_env`` and ``key``."""

    url: Optional[str] = _key(_slurmrestd_url, None)  #: None: there is none
    user: Optional[str] = _key(_word, None)  #: None: the token's own, or whoever runs the process
    token_file: Optional[str] = _key(_absolute_path, None)
    token_env: Optional[str] = _key(_environment_name, None)
    key: Optional[str] = _key(_absolute_path, None)  #: what tokens are made with here
    kid: Optional[str] = _key(_word, None)  #: of a PEM key; None: its thumbprint
    api_version: str = _key(_api_version, "auto")
    timeout_s: int = _key(_seconds(1, 300), 10)  #: seconds, for one request as a whole
    verify: Union[bool, str] = _key(_verify, True)  #: of TLS; a string: file of CA certificates


#: Sections with keys of their own, by the name in the file. Each is the attribute of the same name in lower case.
SECTIONS: Mapping[str, Type[Any]] = {
    "Enable": Enable,
    "API": Api,
    "Policy": Policy,
    "Ledger": Ledger,
    "Relay": Relay,
    "JobComp": JobComp,
    "Reconcile": Reconcile,
    "slurmrestd": SlurmrestdConfig,
}

#: Sections whose keys are names of the site, or of states: how a value is read. Each dated price list has its own.
TABLES: Mapping[str, Reader] = {
    "PartitionPrice": _cpu_price,
    "QosMultiplier": _multiplier,
    "StateFactor": _factor,
}

#: The array of tables that holds the dated price lists, and the one key of its own.
DATED = "PriceList"
DATED_FROM = "from"

#: The keys of a partition's price where it is a table; beside them ``"gpu:TYPE"``, which is read like ``gpu``.
RATES: Mapping[str, Reader] = {
    "cpu": _cpu_price,
    "gpu": _gpu_price,
    "mem_gb": _price("GB of memory and hour"),
    "node": _price("node-hour"),
    "billing": _price("unit of Slurm's billing and hour"),
    "combine": _one_of(*COMBINE),
}

#: The states in which Slurm leaves a run, and the one that is ours.
FINAL_STATES = (
    "COMPLETED",
    "FAILED",
    "TIMEOUT",
    "CANCELLED",
    "OUT_OF_MEMORY",
    "DEADLINE",
    "NODE_FAIL",
    "BOOT_FAIL",
    "PREEMPTED",
    "REQUEUED",
    CANCELLED_BY_ADMIN,
)

#: Partitions, QOS.
_SITE_NAME = re.compile(r"[^\s,\x00-\x1f\x7f]{1,255}")

#: Slurm's names of TRES do not tell upper from lower case; here they are lower.
_GPU_TYPE = re.compile(r"gpu:([a-z0-9][a-z0-9_.+-]{0,62})")


def schema() -> Mapping[str, Tuple[str, ...]]:
    """Every section of the file and its keys; none for the sections whose keys are the site's own names."""
    keys = {name: tuple(item.name for item in fields(cls)) for name, cls in SECTIONS.items()}
    return {**keys, **{name: () for name in TABLES}, DATED: (DATED_FROM,)}


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
    prices: PriceList  #: the list that stands at the top of the file
    api: Api
    policy: Policy
    ledger: Ledger
    relay: Relay
    warnings: Tuple[
        str, ...
    ] = ()  #: whole lines, as in ConfigError, about what works and should not stay
    #: Price lists that replace ``prices`` and each other, with the unix second from which on; ascending.
    dated_prices: Tuple[Tuple[int, PriceList], ...] = ()
    slurmrestd: SlurmrestdConfig = SlurmrestdConfig()
    jobcomp: JobComp = JobComp()
    reconcile: Reconcile = Reconcile()

    def prices_at(self, at_s: int) -> PriceList:
        """The price list in force at a time (unix seconds)."""
        found = self.prices
        for from_s, prices in self.dated_prices:
            if at_s < from_s:
                break
            found = prices
        return found

    def with_prices(self, prices: PriceList) -> Config:
        """The same with this one price list, whatever the time."""
        return replace(self, prices=prices, dated_prices=())


def load(path: str, *, in_slurmctld: bool) -> Config:
    """Read and check the file at ``path``.

    ``in_slurmctld``: an inline token is checked and forgotten. A token file is opened in neither case, and a missing
    token is no mistake here: :func:`read_token` is for those who need one.

    :raises ConfigError: with every mistake.
    """
    text, stamp = _read(path)
    document = _parse(path, text)
    return _Checker(path, stamp, in_slurmctld, text).config(document)


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
    line, column = [int(number) for number in re.findall(r"\d+", place)] or [0, 0]
    lines = text.split("\n")
    written = lines[line - 1] if 0 < line <= len(lines) else ""
    key = ""
    if what.startswith(("Cannot overwrite a value", "Cannot declare")):
        found = re.match(r"\s*([A-Za-z0-9_-]+)\s*=", written)
        key = f"{found[1]}: " if found else ""
        what = re.sub(r"\('(.+)',\)", r"[\1]", what) + ": expected each key and each section once"
    else:
        # Where the quotes are missing the parser stops within the key: "gpu" is one of its own.
        for found in re.finditer(r"gpu:[\w.+-]{0,63}", written):
            if found.start() < column <= found.end():
                what += f'; a key with a colon needs quotes: "{found[0]}"'
    raise ConfigError([f"{path}: {place}: {key}{_one_line(what)}"])


#: A string as csrc/policy_scan.c takes it: in quotes, on one line, without an escape, and only a comment behind it.
_PLAIN_STRING = re.compile(rb"""(?:"([^"\\]*)"|'([^'\\]*)')[ \t\v\f\r]*(?:#.*)?""", re.DOTALL)


def _as_c_reads(text: str, wanted: str) -> Dict[str, Optional[str]]:
    """The keys of a section as csrc/policy_scan.c finds them, line by line; None: not a plain string."""
    found: Dict[str, Optional[str]] = {}
    section, blank = b"", b" \t\v\f\r\n"
    for whole in text.encode("utf-8").split(b"\n"):
        for start in range(0, len(whole) or 1, 4095):
            line = whole[start : start + 4095].strip(blank)
            key, equals, value = line.partition(b"=")
            if line.startswith(b"["):
                section = line[1:].partition(b"]")[0].strip(blank)
            elif equals and line[:1].isalpha() and section == wanted.encode():
                match = _PLAIN_STRING.fullmatch(value.strip(blank))
                plain = None if match is None else match[1] or match[2] or b""
                found[key.strip(blank).decode("utf-8", "replace")] = (
                    None if plain is None else plain.decode("utf-8", "replace")
                )
    return found


class _Checker:
    """Collects the mistakes of one document."""

    def __init__(self, path: str, stamp: FileStamp, in_slurmctld: bool, text: str) -> None:
        self.path = path
        self.text = text
        self.stamp = stamp
        self.in_slurmctld = in_slurmctld
        self.problems: List[str] = []
        self.warnings: List[str] = []

    def config(self, document: Dict[str, Any]) -> Config:
        known = (*SECTIONS, *TABLES, DATED)
        tables: Dict[str, Dict[str, Any]] = {}
        for name, value in document.items():
            if name not in known:
                self.problems.append(self._unknown(name, value, known))
            elif name == DATED:
                continue
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
        lists = [self._listed(0, "", tables), *self._dated(document.get(DATED, []))]
        if self.problems:
            raise ConfigError(self.problems)
        self._warn(sections, lists)
        lists_at = [(listed.from_s, listed.prices()) for listed in lists]
        return Config(
            path=self.path,
            stamp=self.stamp,
            enable=sections["Enable"],
            prices=lists_at[0][1],
            dated_prices=tuple(lists_at[1:]),
            api=sections["API"],
            policy=sections["Policy"],
            ledger=sections["Ledger"],
            relay=sections["Relay"],
            slurmrestd=sections["slurmrestd"],
            jobcomp=sections["JobComp"],
            reconcile=sections["Reconcile"],
            warnings=tuple(self.warnings),
        )

    def _unknown(self, name: str, value: Any, known: Tuple[str, ...]) -> str:
        if isinstance(value, dict) or (
            isinstance(value, list) and value and isinstance(value[0], dict)
        ):
            hint = _did_you_mean(name, known) or f"; expected {_either(known)}"
            return f"{self.path}: [{_name(name)}]: unknown section{hint}"
        homes = [section for section, keys in schema().items() if name in keys]
        home = f"[[{DATED}]]" if homes == [DATED] else f"[{homes[0]}]" if homes else ""
        hint = f"; it belongs under {home}" if home else "; expected only sections"
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
                self.problems.append(f"{self._at(f'[{section}]', key, value)}: unknown key{hint}")
                continue
            try:
                values[key] = readers[key].metadata["read"](value)
            except _Wrong as wrong:
                self.problems.append(f"{self._at(f'[{section}]', key, value)}: {wrong}")
        for key, item in readers.items():
            if key not in table and item.default is MISSING:
                self.problems.append(
                    f"{self.path}: [{section}] {key}: missing: {_expected(item.metadata['read'])}"
                )
        if section == "API":
            self._token_rules(values)
        if section == "slurmrestd":
            self._slurmrestd_rules(values)
        if section == "JobComp":
            self._plain_rules(section, table, values)
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

    def _plain_rules(
        self, section: str, table: Mapping[str, Any], values: Mapping[str, str]
    ) -> None:
        """What C reads of these keys must be what they are."""
        read = _as_c_reads(self.text, section)
        for key in schema()[section]:
            value = values.get(key, "")
            if (key in values or key not in table) and read.get(key, "") != value:
                self.problems.append(
                    f"{self._at(f'[{section}]', key, value)}: "
                    f'expected on a line of its own below [{section}], written {key} = "{value}": C reads it too'
                )

    def _slurmrestd_rules(self, values: Dict[str, Any]) -> None:
        sources = [key for key in ("token_file", "token_env", "key") if key in values]
        for key in sources[1:]:
            self.problems.append(
                f"{self._at('[slurmrestd]', key, values[key])}: expected one source of tokens; {sources[0]} is set too"
            )
        if "kid" in values and "key" not in values:
            self.problems.append(
                f"{self._at('[slurmrestd]', 'kid', values['kid'])}: expected only beside key, whose tokens it names"
            )
        url = values.get("url", "")
        match = _URL.fullmatch(url)
        if match and match["scheme"] == "http" and not _loopback(match["host"]):
            self.warnings.append(
                f"{self.path}: [slurmrestd] url = {_shown(url)}: the token travels unencrypted; use https"
            )
        if match and match["scheme"] == "https" and values.get("verify") is False:
            self.warnings.append(
                f"{self.path}: [slurmrestd] verify = false: whoever answers gets the token; "
                "name the file of the CA's certificate instead"
            )

    def _listed(self, from_s: int, since: str, tables: Mapping[str, Dict[str, Any]]) -> _Listed:
        """One price list. ``since``: what a reader finds a dated one by, "(from 2030-07-01)"; "" at the top."""
        listed = _Listed(from_s=from_s, since=since)
        heading = listed.heading("PartitionPrice")
        for partition, value in tables.get("PartitionPrice", {}).items():
            if not _SITE_NAME.fullmatch(partition):
                self._not_a_name(heading, partition, value)
            elif isinstance(value, dict):
                listed.partitions[partition] = self._rates(listed, partition, value)
            else:
                found = self._read(heading, partition, value, _partition_price)
                listed.partitions[partition] = Rates(cpu=found or Decimal(0))
        listed.multipliers = self._factors(listed, "QosMultiplier", tables, str.lower)
        listed.factors = self._factors(listed, "StateFactor", tables, str.upper)
        return listed

    def _rates(self, listed: _Listed, partition: str, table: Dict[str, Any]) -> Rates:
        heading = listed.heading(f"PartitionPrice.{_name(partition)}")
        values: Dict[str, Any] = {}
        gpu: Dict[str, Decimal] = {}
        written: Dict[str, str] = {}
        for key, value in table.items():
            folded = key.lower() if key.lower().startswith("gpu:") else key
            typed = _GPU_TYPE.fullmatch(folded)
            if key not in RATES and not typed:
                hint = _unknown_rate(partition, key, table)
                self.problems.append(f"{self._at(heading, key, value)}: unknown key{hint}")
                continue
            other = written.setdefault(folded, key)
            if other != key:
                self.problems.append(
                    f"{self._at(heading, key, value)}: expected each type once; "
                    f"Slurm does not tell it from {_name(other)}"
                )
                continue
            number = self._read(heading, key, value, RATES["gpu" if typed else key])
            if typed:
                gpu[typed[1]] = number
            elif key == "gpu":
                gpu[UNTYPED] = number
            else:
                values[key] = number
        return Rates(gpu=gpu, **values)

    def _factors(
        self,
        listed: _Listed,
        section: str,
        tables: Mapping[str, Dict[str, Any]],
        fold: Callable[[str], str],
    ) -> Dict[str, Decimal]:
        """Of a section whose names Slurm does not tell apart by case."""
        heading = listed.heading(section)
        numbers: Dict[str, Decimal] = {}
        written: Dict[str, str] = {}
        for key, value in tables.get(section, {}).items():
            if not _SITE_NAME.fullmatch(key):
                self._not_a_name(heading, key, value)
                continue
            name = fold(key)
            if section == "StateFactor" and name not in FINAL_STATES:
                hint = (
                    _did_you_mean(key, FINAL_STATES)
                    or f"; expected one of {', '.join(FINAL_STATES)}"
                )
                self.problems.append(f"{self._at(heading, key, value)}: unknown state{hint}")
                continue
            if isinstance(value, dict) and section == "QosMultiplier":
                self.problems.append(
                    f"{self._at(heading, key, value)}: expected a number; {_needs_quotes(key, value)}"
                )
                continue
            other = written.setdefault(name, key)
            if other != key:
                what = "state" if section == "StateFactor" else "QOS"
                self.problems.append(
                    f"{self._at(heading, key, value)}: expected each {what} once; "
                    f"Slurm does not tell it from {_name(other)}"
                )
                continue
            numbers[name] = self._read(heading, key, value, TABLES[section])
        return numbers

    def _read(self, heading: str, key: str, value: Any, read: Reader) -> Any:
        """None when it is wrong, and reported."""
        try:
            return read(value)
        except _Wrong as wrong:
            self.problems.append(f"{self._at(heading, key, value)}: {wrong}")
            return None

    def _not_a_name(self, heading: str, key: str, value: Any) -> None:
        self.problems.append(
            f"{self._at(heading, key, value)}: expected a name without spaces or commas"
        )

    def _dated(self, lists: Any) -> List[_Listed]:
        if not isinstance(lists, list):
            self.problems.append(
                f"{self.path}: {DATED} = {_shown(lists)}: expected lists of prices, each written [[{DATED}]]"
            )
            return []
        found: Dict[int, _Listed] = {}
        for number, table in enumerate(lists, 1):
            if not isinstance(table, dict):
                self.problems.append(
                    f"{self.path}: {DATED} = [{_shown(table)}]: expected lists of prices, each written [[{DATED}]]"
                )
                continue
            from_s: Optional[int] = None
            heading = f"[[{DATED}]] (number {number})"
            if DATED_FROM in table:
                from_s = self._read(heading, DATED_FROM, table[DATED_FROM], _from)
            else:
                self.problems.append(
                    f"{self.path}: {heading} {DATED_FROM}: missing: {_expected(_from)}"
                )
            since = f"(number {number})"
            if from_s is not None:
                since = f"({DATED_FROM} {_shown(table[DATED_FROM])})"
                if from_s in found:
                    self.problems.append(
                        f"{self._at(heading, DATED_FROM, table[DATED_FROM])}: expected each list to begin at "
                        "another time; there is one from then on already"
                    )
            listed = self._listed(from_s or 0, since, self._dated_tables(since, table))
            if from_s is not None:
                found[from_s] = listed
        return [listed for _, listed in sorted(found.items())]

    def _dated_tables(self, since: str, list_table: Dict[str, Any]) -> Dict[str, Dict[str, Any]]:
        heading = f"[[{DATED}]] {since}"
        tables: Dict[str, Dict[str, Any]] = {}
        missing = "PartitionPrice" not in list_table
        for key, value in list_table.items():
            if key in TABLES and isinstance(value, dict):
                tables[key] = value
            elif key in TABLES:
                self.problems.append(
                    f"{self._at(heading, key, value)}: expected a section, written [{DATED}.{key}]"
                )
            elif key != DATED_FROM:
                hint = _did_you_mean(key, (DATED_FROM, *TABLES)) or (
                    f"; expected {DATED_FROM} and the sections "
                    + ", ".join(f"[{DATED}.{name}]" for name in TABLES)
                )
                self.problems.append(f"{self._at(heading, key, value)}: unknown key{hint}")
                missing = missing and "mean PartitionPrice?" not in hint
        if missing:
            self.problems.append(
                f"{self.path}: {heading} PartitionPrice: missing: expected [{DATED}.PartitionPrice] with "
                "every price from then on"
            )
        return tables

    def _warn(self, sections: Mapping[str, Any], lists: List[_Listed]) -> None:
        url = sections["API"].url
        match = _URL.fullmatch(url)
        if match and match["scheme"] == "http" and not _loopback(match["host"]):
            self.warnings.append(
                f"{self.path}: [API] url = {_shown(url)}: the token travels unencrypted; use https"
            )
        unlisted = "free" if sections["Policy"].unlisted_partition == "free" else "refused"
        for listed in lists:
            if not listed.partitions:
                self.warnings.append(
                    f"{self.path}: {listed.heading('PartitionPrice')} is empty: every job is {unlisted}"
                )
            self._warn_cheap_gpus(listed)
        for before, after in zip(lists, lists[1:]):
            self._warn_left_out(before, after, unlisted)

    def _warn_cheap_gpus(self, listed: _Listed) -> None:
        """Slurm does not tell the type of a GPU that was not asked for by type: it might be the dearest."""
        cheap = [
            name
            for name, rates in listed.partitions.items()
            if UNTYPED in rates.gpu and rates.gpu[UNTYPED] < max(rates.gpu.values())
        ]
        if cheap:
            self.warnings.append(
                f"{self.path}: {listed.heading('PartitionPrice')}: gpu costs less than a type of GPU in {_some(cheap)}: "
                "any GPU that a job does not ask for by type costs that"
            )

    def _warn_left_out(self, before: _Listed, after: _Listed, unlisted: str) -> None:
        """A dated list is a whole one: what only the list before it has, and that makes a difference, may be forgotten."""
        then = after.prices()
        partitions = [name for name in before.partitions if name not in after.partitions]
        multipliers = [
            name
            for name, factor in before.multipliers.items()
            if name not in after.multipliers and factor != 1
        ]
        factors = [
            name
            for name, share in before.factors.items()
            if name not in after.factors and share != then.factor(name)
        ]
        for section, what, gone, result in (
            ("PartitionPrice", "price", partitions, f"jobs there are {unlisted}"),
            ("QosMultiplier", "multiplier", multipliers, "it is 1"),
            ("StateFactor", "factor", factors, "it is the default"),
        ):
            if gone and after.partitions:
                self.warnings.append(
                    f"{self.path}: {after.heading(section)}: no {what} for {_some(gone)}, listed until then: "
                    f"{result} from then on"
                )

    def _at(self, heading: str, key: str, value: Any) -> str:
        hidden = heading == "[API]" and _secret(key, value)
        # A token of Slurm's begins with "eyJ", wherever somebody put it.
        hidden = hidden or heading == "[slurmrestd]" and bool(re.search("eyJ|@", str(value)))
        shown = "..." if hidden else _shown(value)
        return f"{self.path}: {heading} {_name(key)} = {shown}"


@dataclass
class _Listed:
    """A price list while it is read."""

    from_s: int
    since: str
    partitions: Dict[str, Rates] = field(default_factory=dict)
    multipliers: Dict[str, Decimal] = field(default_factory=dict)
    factors: Dict[str, Decimal] = field(default_factory=dict)

    def heading(self, section: str) -> str:
        return f"[{DATED}.{section}] {self.since}" if self.since else f"[{section}]"

    def prices(self) -> PriceList:
        return PriceList(
            partitions=self.partitions,
            qos_multiplier=self.multipliers,
            state_factor=self.factors,
        )


def _partition_price(value: Any) -> Any:
    try:
        return _cpu_price(value)
    except _Wrong as wrong:
        raise _Wrong(f'{wrong}, or a table like {{ cpu = 1, "gpu:a100" = 60 }}') from None


def _needs_quotes(key: str, table: Mapping[str, Any]) -> str:
    parts = [key]
    inner: Any = table
    while isinstance(inner, dict) and inner and len(parts) < 5:
        parts.append(next(iter(inner)))
        inner = inner[parts[-1]]
    return f'a name with a dot needs quotes: "{_one_line(".".join(parts))}"'


def _unknown_rate(partition: str, key: str, table: Mapping[str, Any]) -> str:
    """What may have been meant by a key in a partition's table; a name with a dot and no quotes looks the same."""
    plain = key.lower()[len("gres/") :] if key.lower().startswith("gres/") else key
    if plain != key and (plain.lower() in RATES or _GPU_TYPE.fullmatch(plain.lower())):
        hint = (
            f'; did you mean "{_one_line(plain)}"?' if ":" in plain else f"; did you mean {plain}?"
        )
    elif plain.lower().startswith("gpu:"):
        hint = '; expected "gpu:TYPE" with a type of letters, digits, _ . + -'
    else:
        hint = _did_you_mean(key, RATES)
    if not hint:
        hint = '; expected cpu, gpu, "gpu:TYPE", mem_gb, node, billing or combine'
    if not any(name in RATES or name.lower().startswith("gpu:") for name in table):
        hint += "; " + _needs_quotes(partition, {key: table[key]})
    return hint


def _some(names: Collection[str]) -> str:
    shown = ", ".join(_name(name) for name in list(names)[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
