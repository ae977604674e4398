# SPDX-License-Identifier: BSD-3-Clause
"""The one place where slurmrestd's many dialects become plain values.

What differs between v0.0.36 and v0.0.46, and between the controller's and the database's half of one version:

* numbers: plain, or ``{"set": bool, "infinite": bool, "number": n}`` (v0.0.39 and later); "not set" is also null, and
  some fields have Slurm's own markers (2^32-2, 2^64-2) or -1 for "no limit";
* states: one word, or a list of words;
* errors: the number is ``error_number``, ``error_code``, ``errno`` or ``error``; the text ``description`` or ``error``;
* names: ``job_state``/``state.current``, ``user_name``/``user``, partitions in groups from v0.0.39, the result of a
  submission at the top or below ``result``.

Nothing here reads a network or raises over a field that is not there: what a version does not tell is None, or empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from slurm_banking.records import UNLIMITED
from slurm_banking.tres import Tres, parse_tres

#: Slurm's "Nothing found": not a failure.
EMPTY_RESULT = 9003

_NO_VALUES = frozenset([2**32 - 2, 2**64 - 2, -2])
_INFINITES = frozenset([2**32 - 1, 2**64 - 1, -1])

_SHOWN = 200


@dataclass(frozen=True)
class Problem:
    """One of the errors or warnings in an answer. ``code`` None: without a number."""

    code: Optional[int]
    text: str

    def __str__(self) -> str:
        return self.text if self.code is None else f"{self.text} ({self.code})"


@dataclass(frozen=True)
class Ping:
    """How a slurmctld answered slurmrestd."""

    host: str
    mode: str  #: "primary", "backup", "backup2", ...
    up: bool


@dataclass(frozen=True)
class Submitted:
    """What became of a submission that Slurm took."""

    job_id: int
    message: str = ""  #: what job_submit plugins had to say to the user
    #: Errors and warnings that came along with the job id: the job is queued all the same.
    problems: Tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Node:
    """A node as slurmctld has it."""

    name: str
    states: Tuple[str, ...]  #: base state first, in upper case: ("IDLE", "DRAIN")
    cpus: int
    cpus_allocated: Optional[int]
    memory_mb: int
    memory_allocated_mb: Optional[int]
    partitions: Tuple[str, ...] = ()
    gres: str = ""
    reason: str = ""


@dataclass(frozen=True)
class PartitionInfo:
    """A partition as slurmctld has it. UNLIMITED is possible for both times; None: not set, or not told."""

    name: str
    states: Tuple[str, ...]
    nodes: str  #: Slurm's host list expression
    total_nodes: Optional[int]
    total_cpus: Optional[int]
    default_time_min: Optional[int]
    max_time_min: Optional[int]
    default: Optional[bool]  #: None: this version does not tell


@dataclass(frozen=True)
class QueueJob:
    """A job as slurmctld has it: pending, running or ended lately. Times are unix seconds."""

    job_id: int
    name: str
    user_name: str
    user_id: Optional[int]
    account: str
    partition: str
    qos: str
    states: Tuple[str, ...]  #: base state first
    reason: str
    submit_time: Optional[int]
    start_time: Optional[int]  #: of a pending job when it is expected to start
    end_time: Optional[int]  #: of a running job when it will be at its limit
    time_limit_min: Optional[int]  #: UNLIMITED possible; None: the partition's
    cpus: Optional[int]
    node_count: Optional[int]
    nodes: str
    restart_count: Optional[int]
    array_job_id: Optional[int]
    array_task_id: Optional[int]
    array_tasks: str  #: of a record that stands for tasks not yet started: "3-9%2"
    het_job_id: Optional[int]
    het_job_offset: Optional[int]
    tres: Tres  #: allocated; empty: not started
    comment: str
    admin_comment: str

    @property
    def state(self) -> str:
        return self.states[0] if self.states else ""


def number(value: Any) -> Optional[int]:
    """None: not set. UNLIMITED: infinite, or -1.

    :raises ValueError: it is no number.
    """
    if isinstance(value, Mapping):
        if value.get("infinite"):
            return UNLIMITED
        if "number" not in value or value.get("set") is False:
            return None
        value = value["number"]
    if value is None or value == "":
        return None
    if isinstance(value, str):
        digits = value[1:] if value.startswith("-") else value
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
            raise ValueError(f"{value[:40]!r} is not a number")
        value = int(value)
    if isinstance(value, float):
        value = int(value) if abs(value) < 2**63 else None
    if not isinstance(value, int):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    if value in _NO_VALUES:
        return None
    return UNLIMITED if value in _INFINITES else int(value)


def count(value: Any) -> int:
    """A number that is 0 where it is not set."""
    return max(number(value) or 0, 0)


def time_of(value: Any) -> Optional[int]:
    """Unix seconds; None: not come yet (0), or not set.

    :raises ValueError: it is no time.
    """
    seconds = number(value)
    return seconds if seconds is not None and seconds > 0 else None


def text(value: Any) -> str:
    """A string; "" for null and for anything that is none."""
    return value if isinstance(value, str) else ""


#: Flags of a state, in the order in which Slurm's commands show them in place of the base state.
_STATE_FLAGS = (
    "COMPLETING",
    "STAGE_OUT",
    "CONFIGURING",
    "RESIZING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
    "STOPPED",
    "REVOKED",
    "RESV_DEL_HOLD",
    "SIGNALING",
)


def shown_state(value: Any) -> str:
    """The one word that Slurm's commands show for a state: "REQUEUED" of ``["PENDING", "REQUEUED"]``."""
    found = states(value)
    return next((flag for flag in _STATE_FLAGS if flag in found), found[0] if found else "")


def words(value: Any) -> Tuple[str, ...]:
    """States, flags or names: a list of words, or one string of them; in upper case nothing is changed."""
    if isinstance(value, str):
        value = value.replace("+", ",").split(",")
    if not isinstance(value, (list, tuple)):
        return ()
    return tuple(word.strip() for word in value if isinstance(word, str) and word.strip())


def states(value: Any) -> Tuple[str, ...]:
    """In upper case."""
    return tuple(word.upper() for word in words(value))


def part(value: Any, *names: str) -> Any:
    """What lies at ``names`` inside groups; None: a group or the field is not there."""
    for name in names:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def problems(rows: Any) -> Tuple[Problem, ...]:
    """An answer's ``errors`` or ``warnings``, in one form."""
    found = []
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, Mapping):
            found.append(Problem(None, one_line(str(row))))
            continue
        code = None
        for key in ("error_number", "error_code", "errno", "error"):
            if isinstance(row.get(key), int) and not isinstance(row[key], bool):
                code = row[key]
                break
        said = [one_line(text(row.get(key))) for key in ("description", "error")]
        if (
            said[1] in said[0]
        ):  # "unable to kill JobId=1: Invalid job id specified", and the same again
            said.pop()
        found.append(Problem(code, ": ".join(filter(None, said)) or "error without a text"))
    return tuple(found)


def signal_problem(row: Mapping[str, Any]) -> Optional[Problem]:
    """Why a record was not signalled, of v0.0.42's "status"; None: it was."""
    code = count(part(row, "error", "code"))
    said = text(part(row, "error", "message")) or text(part(row, "error", "string"))
    return Problem(code, one_line(said) or "not signalled") if code else None


def one_line(value: str) -> str:
    return "".join(c if c.isprintable() else " " for c in value).strip()[:_SHOWN]


def rows(body: Mapping[str, Any], name: str) -> List[Mapping[str, Any]]:
    """The answer's list of that name, without what is not an object."""
    found = body.get(name)
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []


def tres_text(value: Any) -> str:
    """What was allocated, as AllocTRES says it: from that, or from the database's list of ``{type, name, id, count}``.

    :raises ValueError: a part is neither.
    """
    if isinstance(value, str):
        return value
    parts = []
    for row in value if isinstance(value, list) else ():
        kind, name = text(part(row, "type")).lower(), text(part(row, "name")).lower()
        if not kind:
            raise ValueError(f"{str(row)[:60]!r}: a resource without a type")
        # Names that sites choose (licences, disks) may have any characters; they are not needed.
        if kind in ("cpu", "mem", "node", "billing"):
            parts.append(f"{kind}={count(part(row, 'count'))}")
        elif kind == "gres" and (name == "gpu" or name.startswith("gpu:")):
            parts.append(f"gres/{name}={count(part(row, 'count'))}")
    return ",".join(parts)


def pings(body: Mapping[str, Any]) -> Tuple[Ping, ...]:
    found = []
    for row in rows(body, "pings"):
        word = text(row.get("ping")) or text(row.get("pinged"))
        up = word.upper() == "UP" if word else bool(row.get("responding"))
        found.append(Ping(host=text(row.get("hostname")), mode=text(row.get("mode")), up=up))
    return tuple(found)


def statistics(body: Mapping[str, Any]) -> Dict[str, Any]:
    """slurmctld's figures by name, numbers plain; lists (of calls by kind and by user) as lists of such mappings."""
    found = body.get("statistics")
    return (
        {str(key): _plain(value) for key, value in found.items()}
        if isinstance(found, Mapping)
        else {}
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "number" in value and ("set" in value or "infinite" in value):
            return number(value)
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value


def submitted(body: Mapping[str, Any]) -> Optional[Submitted]:
    """None: no job id in the answer, so no job."""
    result = body.get("result")
    for place in (body, result if isinstance(result, Mapping) else {}):
        job_id = number(place.get("job_id"))
        if job_id is not None and job_id > 0:
            return Submitted(
                job_id=job_id,
                message=text(place.get("job_submit_user_msg")),
                problems=problems(body.get("errors")) + problems(body.get("warnings")),
            )
    return None


def node(row: Mapping[str, Any]) -> Node:
    allocated_cpus = number(row.get("alloc_cpus"))
    return Node(
        name=text(row.get("name")),
        states=states(row.get("state")) + states(row.get("state_flags")),
        cpus=count(row.get("cpus")),
        cpus_allocated=allocated_cpus,
        memory_mb=count(row.get("real_memory")),
        memory_allocated_mb=number(row.get("alloc_memory")),
        partitions=words(row.get("partitions")),
        gres=text(row.get("gres")),
        reason=text(row.get("reason")),
    )


def partition(row: Mapping[str, Any]) -> PartitionInfo:
    """Flat up to v0.0.38, in groups from v0.0.39."""
    grouped = isinstance(row.get("nodes"), Mapping)
    flags = row.get("flags")
    return PartitionInfo(
        name=text(row.get("name")),
        states=states(part(row, "partition", "state") if grouped else row.get("state")),
        nodes=text(part(row, "nodes", "configured") if grouped else row.get("nodes")),
        total_nodes=number(part(row, "nodes", "total") if grouped else row.get("total_nodes")),
        total_cpus=number(part(row, "cpus", "total") if grouped else row.get("total_cpus")),
        default_time_min=number(
            part(row, "defaults", "time") if grouped else row.get("default_time_limit")
        ),
        max_time_min=number(
            part(row, "maximums", "time") if grouped else row.get("max_time_limit")
        ),
        default="DEFAULT" in states(flags) if isinstance(flags, list) else None,
    )


def queue_job(row: Mapping[str, Any]) -> QueueJob:
    """:raises ValueError: a field is of no known kind, or the job has no id."""
    job_id = count(row.get("job_id"))
    if not job_id:
        raise ValueError("a job without a job_id")
    limit = number(row.get("time_limit"))
    return QueueJob(
        job_id=job_id,
        name=text(row.get("name")),
        user_name=text(row.get("user_name")),
        user_id=number(row.get("user_id")),
        account=text(row.get("account")),
        partition=text(row.get("partition")),
        qos=text(row.get("qos")),
        states=states(row.get("job_state")),
        reason=text(row.get("state_reason")),
        submit_time=time_of(row.get("submit_time")),
        start_time=time_of(row.get("start_time")),
        end_time=time_of(row.get("end_time")),
        time_limit_min=limit,
        cpus=number(row.get("cpus")),
        node_count=number(row.get("node_count")),
        nodes=text(row.get("nodes")),
        restart_count=number(row.get("restart_cnt")),
        array_job_id=count(row.get("array_job_id")) or None,
        array_task_id=number(row.get("array_task_id")),
        array_tasks=text(row.get("array_task_string")),
        het_job_id=count(row.get("het_job_id")) or None,
        het_job_offset=number(row.get("het_job_offset")) if count(row.get("het_job_id")) else None,
        tres=parse_tres(text(row.get("tres_alloc_str"))),
        comment=text(row.get("comment")),
        admin_comment=text(row.get("admin_comment")),
    )


def environment(variables: Mapping[str, str], minor: int) -> Union[Dict[str, str], List[str]]:
    """A job's environment as v0.0.``minor`` wants it: an object up to v0.0.38, ``NAME=value`` strings from v0.0.39."""
    if minor < 39:
        return dict(variables)
    return [f"{name}={value}" for name, value in variables.items()]


def job_request(body: Mapping[str, Any], minor: int) -> Dict[str, Any]:
    """A submission, ``{"job": {...}, "script": "..."}``, with the environment in this version's form, given in either.

    :raises ValueError: there is no job in it, or the environment is of no known form.
    """
    job = body.get("job")
    if not isinstance(job, Mapping):
        raise ValueError('a submission is {"job": {...}, "script": "..."}: no "job" in it')
    job = dict(job)
    given = job.get("environment")
    if isinstance(given, Mapping):
        job["environment"] = environment({str(k): str(v) for k, v in given.items()}, minor)
    elif isinstance(given, Sequence) and not isinstance(given, str):
        pairs = [str(entry).partition("=") for entry in given]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("the job's environment: expected NAME=value in each entry")
        job["environment"] = environment({name: value for name, _, value in pairs}, minor)
    elif given is not None:
        raise ValueError("the job's environment: expected an object, or a list of NAME=value")
    return {**body, "job": job}
