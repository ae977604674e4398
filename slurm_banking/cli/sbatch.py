# SPDX-License-Identifier: BSD-3-Clause
"""Submission options as sbatch reads them: command line, then SBATCH_ variables, then the script's #SBATCH lines.

Only what bears on the cost is read; of a script everything else is passed over, as it may hold any option of any release.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Sequence

MAX_SCRIPT_BYTES = 4 * 1024 * 1024
UNLIMITED_MIN = -1

_TIME = re.compile(
    r"(?:(?P<days>[0-9]{1,6})-(?P<dh>[0-9]{1,6})(?::(?P<dm>[0-9]{1,6})(?::(?P<ds>[0-9]{1,6}))?)?"
    r"|(?P<a>[0-9]{1,9})(?::(?P<b>[0-9]{1,6})(?::(?P<c>[0-9]{1,6}))?)?)"
)
_MEMORY_MB = {"K": 1 / 1024, "M": 1, "": 1, "G": 1024, "T": 1024 * 1024}


class OptionError(Exception):
    """An option that cannot be read; one line."""


def time_limit(text: str) -> int:
    """Minutes, seconds rounded up, of ``M``, ``M:S``, ``H:M:S``, ``D-H``, ``D-H:M``, ``D-H:M:S``; -1: no limit."""
    word = text.strip()
    if word.upper() in ("INFINITE", "UNLIMITED", "-1"):
        return UNLIMITED_MIN
    match = _TIME.fullmatch(word)
    if match is None:
        raise ValueError("expected a time such as 90, 1:30:00 or 2-12:00:00")
    if match["days"] is not None:
        seconds = int(match["days"]) * 86400 + int(match["dh"]) * 3600
        seconds += int(match["dm"] or 0) * 60 + int(match["ds"] or 0)
    elif match["c"] is not None:
        seconds = int(match["a"]) * 3600 + int(match["b"]) * 60 + int(match["c"])
    else:
        seconds = int(match["a"]) * 60 + int(match["b"] or 0)
    return -(-seconds // 60) or UNLIMITED_MIN


def count(text: str) -> int:
    """A number with an optional k or m, as sbatch takes it."""
    match = re.fullmatch(r"([0-9]{1,9})([kKmM]?)", text.strip())
    if match is None:
        raise ValueError("expected a whole number")
    return int(match[1]) * {"": 1, "k": 1024, "m": 1024 * 1024}[match[2].lower()]


def nodes(text: str) -> Dict[str, int]:
    """``2``, ``2-4``, ``2,4,8`` or ``2-16:2``."""
    sizes = [count(part) for part in re.split(r"[,-]", text.split(":")[0])]
    if not sizes or min(sizes) < 1 or sizes != sorted(sizes):
        raise ValueError("expected a number of nodes such as 2 or 2-4")
    return {"min_nodes": sizes[0], "max_nodes": sizes[-1]}


def memory_mb(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,12})([KMGT]?)B?", text.strip().upper())
    if match is None:
        raise ValueError("expected a size such as 4000, 4G or 512M")
    return int(-(-int(match[1]) * _MEMORY_MB[match[2]] // 1))


def _exclusive(text: str) -> bool:
    return text == ""  # =user and =mcs share the node, among some


#: Option, its short form, where it goes, how it is read.
_OPTIONS: Sequence[Any] = (
    ("--partition", "-p", "partition", str, "NAMES"),
    ("--account", "-A", "account", str, "NAME"),
    ("--qos", "-q", "qos", str, "NAME"),
    ("--time", "-t", "time_limit_min", time_limit, "TIME"),
    ("--time-min", None, "time_min_min", time_limit, "TIME"),
    ("--nodes", "-N", "nodes", nodes, "N[-M]"),
    ("--ntasks", "-n", "num_tasks", count, "N"),
    ("--cpus-per-task", "-c", "cpus_per_task", count, "N"),
    ("--ntasks-per-node", None, "ntasks_per_node", count, "N"),
    ("--threads-per-core", None, "threads_per_core", count, "N"),
    ("--core-spec", "-S", "core_spec", count, "N"),
    ("--mem", None, "memory_mb", memory_mb, "SIZE"),
    ("--mem-per-cpu", None, "memory_per_cpu_mb", memory_mb, "SIZE"),
    ("--array", "-a", "array_inx", str, "INDEXES"),
    ("--job-name", "-J", "name", str, "NAME"),
)

_VARIABLES: Mapping[str, str] = {
    "SBATCH_PARTITION": "--partition",
    "SBATCH_ACCOUNT": "--account",
    "SBATCH_QOS": "--qos",
    "SBATCH_TIMELIMIT": "--time",
    "SBATCH_ARRAY_INX": "--array",
    "SBATCH_THREADS_PER_CORE": "--threads-per-core",
    "SBATCH_CORE_SPEC": "--core-spec",
    "SBATCH_MEM_PER_NODE": "--mem",
    "SBATCH_MEM_PER_CPU": "--mem-per-cpu",
}


def _reader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return checked


def add_options(parser: argparse.ArgumentParser) -> None:
    """sbatch's options that bear on the cost, under sbatch's names; None: not given."""
    group = parser.add_argument_group("options of sbatch that bear on the cost")
    for long, short, target, read, shown in _OPTIONS:
        names = [long] if short is None else [short, long]
        group.add_argument(*names, dest=target, type=_reader(read), metavar=shown)
    group.add_argument(
        "--exclusive", nargs="?", const=True, default=None, type=_exclusive, metavar="user|mcs"
    )
    group.add_argument("--overcommit", "-O", action="store_const", const=True, default=None)


class _ScriptParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(message)


def _script_words(text: str, path: str) -> List[str]:
    """The words of the #SBATCH lines; sbatch stops at the first command."""
    words: List[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            break
        if not line.startswith("#SBATCH"):
            continue
        try:
            here = shlex.split(line[len("#SBATCH") :], comments=True)
        except ValueError as error:
            raise OptionError(f"{path}: line {number}: {error}") from None
        if here[:1] in (["hetjob"], ["packjob"]):
            raise OptionError(
                f"{path}: line {number}: a heterogeneous job: quote its components one by one"
            )
        words += here
    return words


def script_options(path: str) -> Dict[str, Any]:
    """:raises OptionError: the script cannot be read, or one of its options cannot."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_SCRIPT_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise OptionError(f"{path}: {error.strerror}") from None
    try:
        return _parse(_script_words(text, path))
    except OptionError as error:
        raise OptionError(
            str(error) if str(error).startswith(path) else f"{path}: {error}"
        ) from None


def environment_options(environment: Mapping[str, str]) -> Dict[str, Any]:
    words = [
        f"{option}={environment[variable]}"
        for variable, option in _VARIABLES.items()
        if environment.get(variable)
    ]
    if "SBATCH_EXCLUSIVE" in environment:
        words.append("--exclusive")
    return _parse(words)


def _parse(words: Sequence[str]) -> Dict[str, Any]:
    parser = _ScriptParser(add_help=False, allow_abbrev=False)
    add_options(parser)
    known, _ = parser.parse_known_args(list(words))
    return {key: value for key, value in vars(known).items() if value is not None}


def request_options(
    command_line: Mapping[str, Any],
    script: Optional[str],
    environment: Mapping[str, str] = os.environ,
) -> Dict[str, Any]:
    """What the relay is asked to price. ``command_line``: attributes of :func:`add_options`.

    :raises OptionError: the script cannot be read.
    """
    merged: Dict[str, Any] = {} if script is None else script_options(script)
    merged.update(environment_options(environment))
    names = {option[2] for option in _OPTIONS} | {"exclusive", "overcommit"}
    merged.update({key: command_line[key] for key in names if command_line.get(key) is not None})
    merged.update(merged.pop("nodes", {}))
    per_cpu = merged.pop("memory_per_cpu_mb", None)
    if per_cpu is not None:
        merged.update(memory_mb=per_cpu, memory_per_cpu=True)
    return merged
