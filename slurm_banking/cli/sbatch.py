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
    """=user and =mcs share the node, among some."""
    word = text.strip().lower()
    if word not in ("", "exclusive", "user", "mcs", "oversubscribe"):
        raise ValueError("expected user or mcs, or nothing")
    return word in ("", "exclusive")


def extra_node_info(text: str) -> Dict[str, Any]:
    """``S[:C[:T]]``: sockets per node, cores per socket, threads per core, each a number, the least of a range, or *."""
    found: Dict[str, Any] = {"extra_node_info": True}
    parts = text.strip().split(":")
    if len(parts) > 3:
        raise ValueError("expected SOCKETS[:CORES[:THREADS]]")
    for key, part in zip(("sockets_per_node", "cores_per_socket", "threads_per_core"), parts):
        if part not in ("", "*"):
            found[key] = count(part.partition("-")[0])
    return found


def hint(text: str) -> str:
    words = text.strip().lower().split(",")
    known = ("compute_bound", "memory_bound", "multithread", "nomultithread")
    if not all(word in known for word in words):
        raise ValueError(f"expected {', '.join(known)}")
    return ",".join(words)


def nodelist(text: str) -> str:
    if "/" in text:
        raise ValueError("a file with hosts is not read here; give their number, --nodes")
    return text


#: Option, its short form, where it goes, how it is read.
_OPTIONS: Sequence[Any] = (
    ("--partition", "-p", "partition", str, "NAMES"),
    ("--account", "-A", "account", str, "NAME"),
    ("--qos", "-q", "qos", str, "NAME"),
    ("--time", "-t", "time_limit_min", time_limit, "TIME"),
    ("--time-min", None, "time_min_min", time_limit, "TIME"),
    ("--nodes", "-N", "nodes", nodes, "N[-M]"),
    ("--nodelist", "-w", "nodelist", nodelist, "HOSTS"),
    ("--ntasks", "-n", "num_tasks", count, "N"),
    ("--cpus-per-task", "-c", "cpus_per_task", count, "N"),
    ("--ntasks-per-node", None, "ntasks_per_node", count, "N"),
    ("--ntasks-per-socket", None, "ntasks_per_socket", count, "N"),
    ("--ntasks-per-core", None, "ntasks_per_core", count, "N"),
    ("--ntasks-per-gpu", None, "ntasks_per_gpu", count, "N"),
    ("--mincpus", None, "mincpus", count, "N"),
    ("--sockets-per-node", None, "sockets_per_node", count, "N"),
    ("--cores-per-socket", None, "cores_per_socket", count, "N"),
    ("--threads-per-core", None, "threads_per_core", count, "N"),
    ("--extra-node-info", "-B", "extra", extra_node_info, "S[:C[:T]]"),
    ("--hint", None, "hint", hint, "HINT"),
    ("--core-spec", "-S", "core_spec", count, "N"),
    ("--thread-spec", None, "thread_spec", count, "N"),
    ("--mem", None, "memory_mb", memory_mb, "SIZE"),
    ("--mem-per-cpu", None, "memory_per_cpu_mb", memory_mb, "SIZE"),
    ("--mem-per-gpu", None, "mem_per_gpu_mb", memory_mb, "SIZE"),
    ("--gpus", "-G", "gpus", str, "[TYPE:]N"),
    ("--gpus-per-node", None, "gpus_per_node", str, "[TYPE:]N"),
    ("--gpus-per-socket", None, "gpus_per_socket", str, "[TYPE:]N"),
    ("--gpus-per-task", None, "gpus_per_task", str, "[TYPE:]N"),
    ("--cpus-per-gpu", None, "cpus_per_gpu", count, "N"),
    ("--gres", None, "gres", str, "NAME[[:TYPE]:N]"),
    ("--array", "-a", "array_inx", str, "INDEXES"),
    ("--job-name", "-J", "name", str, "NAME"),
)

#: In sbatch's order.
_VARIABLES: Mapping[str, str] = {
    "SBATCH_ACCOUNT": "--account",
    "SBATCH_ARRAY_INX": "--array",
    "SBATCH_CORE_SPEC": "--core-spec",
    "SBATCH_CPUS_PER_GPU": "--cpus-per-gpu",
    "SBATCH_GRES": "--gres",
    "SBATCH_GPUS": "--gpus",
    "SBATCH_GPUS_PER_NODE": "--gpus-per-node",
    "SBATCH_GPUS_PER_SOCKET": "--gpus-per-socket",
    "SBATCH_GPUS_PER_TASK": "--gpus-per-task",
    "SLURM_HINT": "--hint",
    "SBATCH_HINT": "--hint",
    "SBATCH_MEM_PER_CPU": "--mem-per-cpu",
    "SBATCH_MEM_PER_GPU": "--mem-per-gpu",
    "SBATCH_MEM_PER_NODE": "--mem",
    "SBATCH_PARTITION": "--partition",
    "SBATCH_QOS": "--qos",
    "SBATCH_THREAD_SPEC": "--thread-spec",
    "SBATCH_THREADS_PER_CORE": "--threads-per-core",
    "SBATCH_TIMELIMIT": "--time",
}

#: Options of which only one counts: of those that are typed or in the script, more than one is an error.
_MEMORY = ("memory_mb", "memory_per_cpu_mb", "mem_per_gpu_mb")
_SPEC = ("core_spec", "thread_spec")
#: Beside one of these --hint does nothing.
_AGAINST_HINT = ("ntasks_per_core", "threads_per_core", "extra")


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
        if long == "--ntasks-per-node":
            names.append("--tasks-per-node")
        group.add_argument(*names, dest=target, type=_reader(read), metavar=shown)
    group.add_argument(
        "--exclusive",
        nargs="?",
        const=True,
        default=None,
        type=_reader(_exclusive),
        metavar="user|mcs",
    )
    group.add_argument(
        "--oversubscribe", "-s", dest="exclusive", action="store_const", const=False, default=None
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
        how = environment["SBATCH_EXCLUSIVE"]
        words.append(f"--exclusive={how}" if how else "--exclusive")
    if "SBATCH_OVERCOMMIT" in environment:
        words.append("--overcommit")
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
    names = {option[2] for option in _OPTIONS} | {"exclusive", "overcommit"}
    typed: Dict[str, Any] = {} if script is None else script_options(script)
    written = {key: command_line[key] for key in names if command_line.get(key) is not None}
    variables = environment_options(environment)
    merged = _settled(typed, variables, written)
    merged.update(merged.pop("nodes", {}))
    merged.update(merged.pop("extra", {}))
    per_cpu = merged.pop("memory_per_cpu_mb", None)
    if per_cpu is not None:
        merged.update(memory_mb=per_cpu, memory_per_cpu=True)
    return merged


def _settled(
    script: Mapping[str, Any], variables: Mapping[str, Any], typed: Mapping[str, Any]
) -> Dict[str, Any]:
    """The last word on each option, and on those that exclude each other, as sbatch has it.

    For the latter, what is typed or in the script counts before the environment, and the two together are one.
    """
    merged = {**script, **variables, **typed}
    # An option of the script is one of the environment where a variable replaced it.
    outright = {key for key in script if key not in variables} | set(typed)
    for group, option in (
        (_MEMORY, "--mem, --mem-per-cpu, --mem-per-gpu"),
        (_SPEC, "--core-spec, --thread-spec"),
    ):
        first = [key for key in group if key in outright]
        given = first or [key for key in group if key in merged]
        if len(given) > 1:
            raise OptionError(f"{option}: expected one of them")
        for key in group:
            if first and key not in first:
                merged.pop(key, None)
    if "hint" in merged:
        against = [key for key in _AGAINST_HINT if key in merged]
        if "hint" in outright and not any(key in outright for key in against):
            for key in against:
                del merged[key]
        elif against:
            del merged["hint"]
    return merged
