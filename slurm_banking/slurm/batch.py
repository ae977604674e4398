# SPDX-License-Identifier: BSD-3-Clause
"""A batch script with its #SBATCH lines as the job that slurmrestd takes, and a job of either kind as what a quote asks for.

Up to v0.0.38 slurmrestd reads the options as sbatch does, each as text under a name of its own; from v0.0.39 it wants the
fields of the job itself, with numbers and lists. One table has both. What a version cannot carry is an error that names the
option: an option that is dropped in silence would give another job than the script's.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Sequence, Tuple, Union

from slurm_banking.cli import sbatch
from slurm_banking.cli.sbatch import OptionError
from slurm_banking.cli.text import read_time

#: The first version that wants the fields of the job.
FIELDS = 39
#: And the first one that does not take cores_per_socket any more: Slurm ignores a field that it does not know.
_WITHOUT_CORES = 41
#: From here on a GPU is written gres/gpu, before it gres:gpu.
_SLASH = 41

#: Of the caller's environment, what a job gets unless --export says more.
_EXPORTED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ")
_PATH = "/usr/local/bin:/usr/bin:/bin"
#: Never sent: whoever may read the job's environment could act as its user.
_SECRET = frozenset({"SLURM_JWT"})

Value = Any
#: (text, minor) -> the field's value; raises ValueError.
Field = Callable[[str, int], Value]


@dataclass(frozen=True)
class Option:
    """One of sbatch's options. ``old``: its name up to v0.0.38; ``new``: its field from v0.0.39. None: not to be had.

    ``gone``: the first version that has no such field any more.
    """

    long: str
    short: Optional[str]
    old: Optional[str]
    new: Optional[str]
    read: Field  #: for ``new``
    flag: bool = False  #: it has no value
    gone: Optional[int] = None

    def key(self, minor: int) -> Optional[str]:
        """What it is called in v0.0.``minor``; None: that version cannot carry it."""
        if self.gone is not None and minor >= self.gone:
            return None
        return self.new if minor >= FIELDS else self.old


def _text(text: str, minor: int) -> Value:
    return text


def _count(text: str, minor: int) -> Value:
    return sbatch.count(text)


def _number(text: str, minor: int) -> Value:
    return int(text)


def _tri(number: int) -> Value:
    return {"set": True, "infinite": False, "number": number}


def _minutes(text: str, minor: int) -> Value:
    minutes = sbatch.time_limit(text)
    if minutes == sbatch.UNLIMITED_MIN:
        return {"set": True, "infinite": True, "number": 0}
    return _tri(minutes)


def _moment(text: str, minor: int) -> Value:
    return _tri(read_time(text, int(time.time()), future=True))


def _memory(text: str, minor: int) -> Value:
    return _tri(sbatch.memory_mb(text))


def _words(text: str, minor: int) -> Value:
    return [word.strip() for word in text.split(",") if word.strip()]


def _upper(text: str, minor: int) -> Value:
    return [word.strip().upper() for word in text.split(",") if word.strip()]


def _gres(text: str, minor: int) -> Value:
    """``gpu:a100:2`` of --gres."""
    slash = "/" if minor >= _SLASH else ":"
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return ",".join(part if part.startswith("gres") else f"gres{slash}{part}" for part in parts)


def _gpus(text: str, minor: int) -> Value:
    """``a100:2`` of --gpus and its kind."""
    return _gres(",".join(f"gpu:{part.strip()}" for part in text.split(",") if part.strip()), minor)


def _per_gpu(text: str, minor: int) -> Value:
    return _gpus(str(sbatch.count(text)), minor)


def _memory_per_gpu(text: str, minor: int) -> Value:
    return _gpus(str(sbatch.memory_mb(text)), minor)


def _shared(text: str, minor: int) -> Value:
    return [{"": "none", "exclusive": "none"}.get(text.lower(), text.lower())]


def _oversubscribe(text: str, minor: int) -> Value:
    return ["oversubscribe"]


def _true(text: str, minor: int) -> Value:
    return True


def _false(text: str, minor: int) -> Value:
    return False


#: sbatch's option, its short form, name up to v0.0.38, field from v0.0.39, how the field is read.
OPTIONS: Sequence[Option] = (
    Option("account", "A", "account", "account", _text),
    Option("array", "a", "array", "array", _text),
    Option("begin", "b", "begin_time", "begin_time", _moment),
    Option("chdir", "D", "current_working_directory", "current_working_directory", _text),
    Option("comment", None, "comment", "comment", _text),
    Option("constraint", "C", "constraints", "constraints", _text),
    Option("core-spec", "S", "core_specification", "core_specification", _count),
    Option(
        *("cores-per-socket", None, "cores_per_socket", "cores_per_socket", _count),
        gone=_WITHOUT_CORES,
    ),
    Option("cpus-per-gpu", None, "cpus_per_gpu", "cpus_per_tres", _per_gpu),
    Option("cpus-per-task", "c", "cpus_per_task", "cpus_per_task", _count),
    Option("dependency", "d", "dependency", "dependency", _text),
    Option("error", "e", "standard_error", "standard_error", _text),
    Option("exclude", "x", "exclude_nodes", "excluded_nodes", _words),
    Option("exclusive", None, "exclusive", "shared", _shared),
    Option("gpus", "G", "gpus", "tres_per_job", _gpus),
    Option("gpus-per-node", None, "gpus_per_node", "tres_per_node", _gpus),
    Option("gpus-per-socket", None, "gpus_per_socket", "tres_per_socket", _gpus),
    Option("gpus-per-task", None, "gpus_per_task", "tres_per_task", _gpus),
    Option("gres", None, "gres", "tres_per_node", _gres),
    Option("hint", None, "cpu_binding_hint", None, _text),
    Option("hold", "H", "hold", "hold", _true, flag=True),
    Option("input", "i", "standard_input", "standard_input", _text),
    Option("job-name", "J", "name", "name", _text),
    Option("licenses", "L", "licenses", "licenses", _text),
    Option("mail-type", None, "mail_type", "mail_type", _upper),
    Option("mail-user", None, "mail_user", "mail_user", _text),
    Option("mem", None, "memory_per_node", "memory_per_node", _memory),
    Option("mem-per-cpu", None, "memory_per_cpu", "memory_per_cpu", _memory),
    Option("mem-per-gpu", None, "memory_per_gpu", "memory_per_tres", _memory_per_gpu),
    Option("mincpus", None, "minimum_cpus_per_node", "minimum_cpus_per_node", _count),
    Option("nice", None, "nice", "nice", _number),
    Option("no-requeue", None, "no_requeue", "requeue", _false, flag=True),
    Option("nodelist", "w", "nodelist", "required_nodes", _words),
    Option("nodes", "N", "nodes", "nodes", _text),
    Option("ntasks", "n", "tasks", "tasks", _count),
    Option("ntasks-per-core", None, "tasks_per_core", "tasks_per_core", _count),
    Option("ntasks-per-gpu", None, "ntasks_per_gpu", "ntasks_per_tres", _count),
    Option("ntasks-per-node", None, "tasks_per_node", "tasks_per_node", _count),
    Option("ntasks-per-socket", None, "tasks_per_socket", "tasks_per_socket", _count),
    Option("open-mode", None, "open_mode", "open_mode", _upper),
    Option("output", "o", "standard_output", "standard_output", _text),
    Option("overcommit", "O", None, "overcommit", _true, flag=True),
    Option("oversubscribe", "s", "oversubscribe", "shared", _oversubscribe, flag=True),
    Option("partition", "p", "partition", "partition", _text),
    Option("prefer", None, "prefer", "prefer", _text),
    Option("qos", "q", "qos", "qos", _text),
    Option("requeue", None, "requeue", "requeue", _true, flag=True),
    Option("reservation", None, "reservation", "reservation", _text),
    Option("signal", None, "signal", None, _text),
    Option("sockets-per-node", None, "sockets_per_node", "sockets_per_node", _count),
    Option("thread-spec", None, "thread_specification", "thread_specification", _count),
    Option("threads-per-core", None, "threads_per_core", "threads_per_core", _count),
    Option("time", "t", "time_limit", "time_limit", _minutes),
    Option("time-min", None, "time_minimum", "time_minimum", _minutes),
    Option("wckey", None, "wckey", "wckey", _text),
)

_BY_NAME: Mapping[str, Option] = {option.long: option for option in OPTIONS}
#: Of sbatch's options those that only steer sbatch itself.
_WITHOUT_EFFECT = ("parsable", "quiet", "verbose")
_ALIASES: Mapping[str, str] = {"tasks-per-node": "ntasks-per-node", "workdir": "chdir"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Under sbatch's names; each lands as text in ``option_NAME``. None: not given."""
    group = parser.add_argument_group("options of sbatch, as in its manual")
    for option in OPTIONS:
        names = [f"--{option.long}"] + ([f"-{option.short}"] if option.short else [])
        names += [f"--{alias}" for alias, long in _ALIASES.items() if long == option.long]
        target = dest(option.long)
        if option.flag:
            group.add_argument(*names, dest=target, action="store_const", const="", default=None)
        elif option.long == "exclusive":
            group.add_argument(*names, dest=target, nargs="?", const="", metavar="user|mcs")
        else:
            group.add_argument(*names, dest=target, metavar="VALUE")
    group.add_argument(
        "--export",
        dest=dest("export"),
        metavar="ALL|NONE|NAMES",
        help="environment of the job beside a few names (PATH, HOME, ...); NAMES: NAME or NAME=VALUE",
    )


def dest(long: str) -> str:
    return "option_" + long.replace("-", "_")


class _Strict(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(message)


def _given(words: Sequence[str]) -> Dict[str, str]:
    """Option to text.

    :raises OptionError: a word that is no option here.
    """
    parser = _Strict(add_help=False, allow_abbrev=False)
    add_options(parser)
    for name in _WITHOUT_EFFECT:
        parser.add_argument(f"--{name}", action="store_true", dest="without_effect")
    found, rest = parser.parse_known_args(list(words))
    if rest:
        raise OptionError(
            f"{rest[0][:60]}: not carried over slurmrestd from here: expected one of "
            + ", ".join(f"--{option.long}" for option in OPTIONS)
        )
    return {
        long: getattr(found, dest(long))
        for long in (*_BY_NAME, "export")
        if getattr(found, dest(long)) is not None
    }


@dataclass(frozen=True)
class Batch:
    """A script and the options in force, as text by sbatch's long names."""

    script: str
    options: Mapping[str, str]
    name: str = "script"  #: of the file: the job's name, if none is given

    def job(
        self, minor: int, *, environment: Mapping[str, str] = os.environ, directory: str = ""
    ) -> Dict[str, Any]:
        """``{"job": {...}, "script": "..."}`` for v0.0.``minor``.

        :raises OptionError: an option that this version cannot carry, or with a value that it cannot have.
        """
        job: Dict[str, Any] = {}
        for long, text in self.options.items():
            if long == "export":
                continue
            option = _BY_NAME[long]
            key = option.key(minor)
            if key is None:
                raise OptionError(
                    f"--{long}: slurmrestd's v0.0.{minor} cannot carry it: use sbatch"
                )
            try:
                value = option.read(
                    text, minor
                )  # up to v0.0.38 only to be sure that it can be read
            except ValueError as error:
                raise OptionError(f"--{long}={text[:60]}: {error}") from None
            if minor < FIELDS:
                value = _old_value(option, text)
            elif key in job and isinstance(value, str) and key.startswith("tres_per"):
                value = f"{job[key]},{value}"
            job[key] = value
        job.setdefault("name", self.name)
        job.setdefault("current_working_directory", directory or os.getcwd())
        job["environment"] = exported(self.options.get("export"), environment)
        return {"job": job, "script": self.script}

    def quote_options(self) -> Dict[str, Any]:
        """What the relay is asked to price.

        :raises OptionError: options that exclude each other, or a value that cannot be.
        """
        words = [f"--{long}={text}" if text else f"--{long}" for long, text in self.options.items()]
        # Positional scripts and sbatch's variables are not asked: over slurmrestd they do not count.
        return sbatch.request_options(sbatch._parse(words), None, {})


def _old_value(option: Option, text: str) -> Union[str, bool, int]:
    if option.long == "exclusive":
        return text or "exclusive"
    if option.flag:
        return True
    if option.read in (_count, _number):
        return int(option.read(text, 0))
    return text


def read(
    script: str,
    *,
    path: str = "script",
    words: Sequence[str] = (),
) -> Batch:
    """A batch script, with options that were typed before its own.

    :raises OptionError: no script, a heterogeneous job, or an option that cannot be carried.
    """
    if not script.startswith("#!"):
        raise OptionError(f"{path}: expected a script that begins with #!, such as #!/bin/bash")
    if "\0" in script:
        raise OptionError(f"{path}: expected text, without NUL")
    try:
        options = {**_given(sbatch._script_words(script, path)), **_given(words)}
        for long, text in options.items():
            if long != "export" and not _BY_NAME[long].flag:
                _check(long, text)
    except OptionError as error:
        raise OptionError(
            str(error) if str(error).startswith(path) else f"{path}: {error}"
        ) from None
    return Batch(script=script, options=options, name=os.path.basename(path) or "script")


def _check(long: str, text: str) -> None:
    if not text.isprintable():
        raise OptionError(f"--{long}: expected printable text")
    try:
        if long not in ("begin",):  # Slurm's own words for times are more than are read here
            _BY_NAME[long].read(text, FIELDS)
    except ValueError as error:
        raise OptionError(f"--{long}={text[:60]}: {error}") from None


def words_of(options: Mapping[str, Any]) -> List[str]:
    """Keyword arguments as words: ``time="5"``, ``cpus_per_task=2``, ``exclusive=True``; None and False are left out."""
    words = []
    for key, value in options.items():
        name = "--" + key.replace("_", "-")
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words.append(f"{name}={value}")
    return words


def exported(export: Optional[str], environment: Mapping[str, str] = os.environ) -> Dict[str, str]:
    """The job's environment: a few names, ALL, NONE, or names and NAME=VALUE beside those few. Never the token."""
    few = {name: environment[name] for name in _EXPORTED if environment.get(name)}
    found: Dict[str, str] = few
    for word in (export or "").split(","):
        name, equals, value = word.strip().partition("=")
        if name.upper() == "ALL" and not equals:
            found = {**environment, **found}
        elif name.upper() in ("NONE", "NIL") and not equals:
            found = {}
        elif equals:
            found[name] = value
        elif name and name in environment:
            found[name] = environment[name]
    found = {name: value for name, value in found.items() if name and name not in _SECRET}
    found.setdefault("PATH", environment.get("PATH") or _PATH)
    return found


# -- a job as in Slurm's manual -----------------------------------------------------------------------------------------


def complete(
    body: Mapping[str, Any],
    *,
    environment: Mapping[str, str] = os.environ,
    directory: str = "",
) -> Dict[str, Any]:
    """A JSON job with what Slurm wants and it does not say: environment, directory and name.

    :raises OptionError: it is no such job.
    """
    job = body.get("job")
    if not isinstance(job, Mapping) or not all(isinstance(key, str) for key in job):
        raise OptionError(
            'expected a job as in Slurm\'s manual: {"job": {...}, "script": "#!/bin/bash ..."}'
        )
    script = body.get("script", job.get("script"))
    if not isinstance(script, str) or not script.startswith("#!"):
        raise OptionError(
            'script: expected text that begins with #!, such as "#!/bin/bash\\nsrun hostname\\n"'
        )
    filled = dict(job)
    if not filled.get("environment"):
        filled["environment"] = exported(None, environment)
    if "cwd" not in filled:
        filled.setdefault("current_working_directory", directory or os.getcwd())
    if "job_name" not in filled:
        filled.setdefault("name", "job")
    return {**body, "job": filled}


def quote_options_of(body: Mapping[str, Any]) -> Dict[str, Any]:
    """What the relay is asked to price for a JSON job, whichever version it is written for.

    :raises OptionError: a value that cannot be.
    """
    job = body["job"]
    words: List[str] = []
    for option in OPTIONS:
        for key in {
            name for name in (option.old, option.new, *_OLD_NAMES.get(option.long, ())) if name
        }:
            if key not in job or job[key] in (None, "", False):
                continue
            text = _typed(option, key, job[key])
            if text is not None:
                words.append(f"--{option.long}={text}" if text else f"--{option.long}")
                break
    for key, option_name in (("minimum_nodes", "nodes"),):
        if key in job and "nodes" not in job and not isinstance(job[key], bool):
            most = _plain(job.get("maximum_nodes")) or _plain(job[key])
            words.append(f"--{option_name}={_plain(job[key])}-{most}")
    return sbatch.request_options(sbatch._parse(words), None, {})


#: Other names that 22.05 takes.
_OLD_NAMES: Mapping[str, Tuple[str, ...]] = {
    "nodelist": ("node_list",),
    "ntasks": ("ntasks",),
    "ntasks-per-node": ("ntasks_per_node",),
    "ntasks-per-socket": ("ntasks_per_socket",),
    "ntasks-per-core": ("ntasks_per_core",),
    "job-name": ("job_name",),
    "constraint": ("constraint",),
}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        if value.get("infinite"):
            return "UNLIMITED"
        return str(value["number"]) if value.get("set", True) and "number" in value else ""
    return str(value)


def _typed(option: Option, key: str, value: Any) -> Optional[str]:
    """A JSON value as it would be typed for sbatch; None: it is another option's."""
    if option.flag:
        if key == "shared":
            return "" if value == ["oversubscribe"] else None
        return ""
    if option.long == "exclusive":
        word = value[0] if isinstance(value, list) and value else str(value)
        return (
            None
            if word == "oversubscribe"
            else ("" if word in ("none", "true", "exclusive") else str(word))
        )
    if option.long == "nodes" and isinstance(value, list):
        return "-".join(str(part) for part in value)
    if key.startswith(("tres_per", "cpus_per_tres", "memory_per_tres")):
        parts = [part.strip() for part in str(value).split(",")]
        if option.long == "gres":
            return None  # as --gpus-per-node
        gpus = [part.replace("/", ":").split(":", 2) for part in parts]
        kept = [part[2] for part in gpus if len(part) == 3 and part[:2] == ["gres", "gpu"]]
        return ",".join(kept) or None
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    text = _plain(value)
    return text or None
