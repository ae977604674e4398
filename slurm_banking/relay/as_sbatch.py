# SPDX-License-Identifier: BSD-3-Clause
"""Options of sbatch as sbatch itself sends them to slurmctld, so that a quote prices what a submission would be.

The rules are those of Slurm 22.05: ``_opt_verify()`` of src/sbatch/opt.c, ``slurm_opt_create_job_desc()`` of
src/common/slurm_opt.c. What slurmctld makes of the request afterwards is the estimate's to know.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Tuple

from slurm_banking.slurm.hostlist import expand

#: The options that are whole numbers, with what each may be; None is always "not given".
NUMBERS: Mapping[str, Tuple[int, int]] = {
    "time_limit_min": (-1, 2**31),
    "time_min_min": (1, 2**31),
    "min_nodes": (0, 10_000_000),
    "max_nodes": (0, 10_000_000),
    "num_tasks": (1, 100_000_000),
    "cpus_per_task": (1, 65_000),
    "ntasks_per_node": (1, 65_000),
    "ntasks_per_socket": (1, 65_000),
    "ntasks_per_core": (1, 65_000),
    "ntasks_per_gpu": (1, 65_000),
    "sockets_per_node": (1, 65_000),
    "cores_per_socket": (1, 65_000),
    "threads_per_core": (1, 1_024),
    "mincpus": (1, 65_000),
    "core_spec": (0, 32_767),
    "thread_spec": (1, 32_767),
    "memory_mb": (0, 2**50),
    "mem_per_gpu_mb": (0, 2**50),
    "cpus_per_gpu": (1, 65_000),
}
TEXTS = (
    "account",
    "partition",
    "qos",
    "array_inx",
    "name",
    "nodelist",
    "hint",
    "gres",
    "gpus",
    "gpus_per_node",
    "gpus_per_socket",
    "gpus_per_task",
)
FLAGS = ("exclusive", "overcommit", "memory_per_cpu", "extra_node_info")

#: --hint: (sockets per node, cores per socket, threads per core); a "-" leaves what was given.
_HINTS: Mapping[str, Tuple[Any, Any, Any]] = {
    "compute_bound": (None, None, 1),
    "memory_bound": ("-", 1, 1),
    "multithread": ("-", "-", None),
    "nomultithread": ("-", "-", 1),
}


def read(options: Mapping[str, Any]) -> Dict[str, Any]:
    """Each option with its value; of those that are not given None, "" or False.

    :raises ValueError: an option that is none, or has a value that it cannot have.
    """
    values: Dict[str, Any] = {
        **dict.fromkeys(NUMBERS),
        **dict.fromkeys(TEXTS, ""),
        **dict.fromkeys(FLAGS, False),
    }
    for key, value in options.items():
        if key not in values:
            raise ValueError(f"{str(key)[:60]!r}: no such option")
        if value is None:
            continue
        if key in NUMBERS:
            least, most = NUMBERS[key]
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{key}: expected a whole number from {least} to {most}")
        elif key in TEXTS:
            if not isinstance(value, str) or len(value) > 10_000 or not value.isprintable():
                raise ValueError(f"{key}: expected printable text")
        elif not isinstance(value, bool):
            raise ValueError(f"{key}: expected true or false")
        values[key] = value
    return values


def fill(values: Mapping[str, Any]) -> Dict[str, Any]:
    """The fields of a Submission that follow from the options alone.

    :raises ValueError: options that sbatch refuses together.
    """
    _check(values)
    sockets, cores, threads = _topology(values)
    min_nodes, max_nodes = _nodes(values)
    nodes_set = min_nodes is not None
    least, most = (1 if min_nodes is None else min_nodes), max_nodes or 0
    if most and least > most:
        raise ValueError(f"nodes: expected no more than {most} of them, not {least}")
    fixed = most in (0, least)
    tasks: int = values["num_tasks"] or 1
    tasks_set = values["num_tasks"] is not None
    if values["ntasks_per_node"] is not None and not tasks_set and fixed:
        tasks, tasks_set = least * values["ntasks_per_node"], True
    if (nodes_set or values["extra_node_info"]) and fixed and not tasks_set:
        tasks = max(least, 1)
        for count in (sockets, cores, threads):
            if count is not None:
                tasks, tasks_set = tasks * count, True
    elif nodes_set and tasks_set:
        most = min(most, tasks)
        if tasks < least:
            least = most = tasks
    cpus_per_task: Optional[int] = values["cpus_per_task"]
    mincpus: Optional[int] = values["mincpus"]
    if cpus_per_task is not None:
        mincpus = max(mincpus or 0, cpus_per_task)
    if values["overcommit"]:
        min_cpus = max(least, 1)
    else:
        min_cpus = tasks * (cpus_per_task or 1)
    thread_spec = values["thread_spec"] is not None
    return {
        "time_limit_min": values["time_limit_min"],
        "time_min_min": values["time_min_min"],
        "min_cpus": min_cpus,
        "min_nodes": least if nodes_set else None,
        "max_nodes": (most or None) if nodes_set else None,
        "num_tasks": tasks if tasks_set else None,
        "cpus_per_task": cpus_per_task,
        "ntasks_per_node": values["ntasks_per_node"],
        "ntasks_per_socket": values["ntasks_per_socket"],
        "ntasks_per_core": values["ntasks_per_core"],
        "ntasks_per_tres": values["ntasks_per_gpu"],
        "sockets_per_node": sockets,
        "cores_per_socket": cores,
        "threads_per_core": threads,
        "pn_min_cpus": mincpus,
        "core_spec": values["thread_spec"] if thread_spec else values["core_spec"],
        "thread_spec": thread_spec,
        "overcommit": values["overcommit"],
        "exclusive": values["exclusive"],
        "memory_mb": values["memory_mb"],
        "memory_per_cpu": values["memory_per_cpu"],
        "array_inx": values["array_inx"],
        "name": values["name"],
        **_tres(values),
    }


def _check(values: Mapping[str, Any]) -> None:
    """What sbatch ends with an error for."""
    if values["memory_mb"] is not None and values["mem_per_gpu_mb"] is not None:
        raise ValueError("memory per node, per CPU and per GPU: expected one of them")
    if values["core_spec"] is not None and values["thread_spec"] is not None:
        raise ValueError("core_spec and thread_spec: expected one of them")
    if values["ntasks_per_gpu"] is not None:
        for other in ("gpus_per_task", "gpus_per_socket", "ntasks_per_node"):
            if values[other]:
                raise ValueError(f"ntasks_per_gpu and {other}: expected one of them")
    for hint in filter(None, values["hint"].lower().split(",")):
        if hint not in _HINTS:
            raise ValueError(f"hint: expected some of {', '.join(_HINTS)}, not {hint[:60]!r}")


def _topology(values: Mapping[str, Any]) -> Tuple[Optional[int], Optional[int], Optional[int]]:
    """Sockets per node, cores per socket, threads per core; a hint counts where nothing of the kind is said outright."""
    found: List[Optional[int]] = [
        values["sockets_per_node"],
        values["cores_per_socket"],
        values["threads_per_core"],
    ]
    outright = values["ntasks_per_core"], values["threads_per_core"]
    if values["extra_node_info"] or any(value is not None for value in outright):
        return found[0], found[1], found[2]
    for hint in filter(None, values["hint"].lower().split(",")):
        for place, count in enumerate(_HINTS[hint]):
            if count != "-":
                found[place] = count
    return found[0], found[1], found[2]


def _nodes(values: Mapping[str, Any]) -> Tuple[Optional[int], Optional[int]]:
    """Least and most; (None, None): nothing is said. Hosts by name are that many at least."""
    least, most = values["min_nodes"] or None, values["max_nodes"] or None
    if values["nodelist"]:
        try:
            hosts = len(set(expand(values["nodelist"])))
        except ValueError as error:
            raise ValueError(f"nodelist: {error}") from None
        least = max(hosts, least or 1)
    return least, most


def _tres(values: Mapping[str, Any]) -> Dict[str, str]:
    """GRES as sbatch writes them: ``gres:gpu:a100:4``."""
    gres = values["gres"]
    per_node = _gpus(values["gpus_per_node"])
    if gres and gres.lower() != "none":
        prefixed = f"gres:{gres}".replace(",", ",gres:").replace("gres:gres:", "gres:")
        per_node = f"{per_node},{prefixed}" if per_node else prefixed
    cpus, mem_mb = values["cpus_per_gpu"], values["mem_per_gpu_mb"]
    return {
        "tres_per_job": _gpus(values["gpus"]),
        "tres_per_node": per_node,
        "tres_per_socket": _gpus(values["gpus_per_socket"]),
        "tres_per_task": _gpus(values["gpus_per_task"]),
        "cpus_per_tres": "" if cpus is None else f"gres:gpu:{cpus}",
        "mem_per_tres": "" if mem_mb is None else f"gres:gpu:{mem_mb}",
    }


def _gpus(text: str) -> str:
    return ",".join(f"gres:gpu:{part}" for part in text.split(",") if part)
