# SPDX-License-Identifier: BSD-3-Clause
"""Seeded random submissions: sbatch command lines such as users write, and what becomes of each job.

The list of a seed is fixed: submission number `i` is the same whatever happened to those before it. Each is drawn around one
feature, with others added at random; options that do not go together are left for sbatch to refuse.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from tests.fidelity.cluster import BY_NAME, QOS, USERS

#: How many of a job's features make it a combination.
COMBINED = 3

#: In every job without another partition or time: they make no combination.
DEFAULTS = frozenset({"default_partition", "default_time"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    number: int
    user: str
    #: One command line of options per component; several are a het job.
    components: tuple[tuple[str, ...], ...]
    script: str
    features: frozenset[str]
    fate: str
    fate_arguments: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Of sbatch."""
        words: list[str] = []
        for component in self.components:
            words += [":", *component] if words else component
        return words


class Component:
    """One component while it is drawn: options by name (None: a flag alone) and the features that they make."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.options: dict[str, str | None] = {}
        self.features: set[str] = set()
        self.partition: str | None = None
        self.het = False

    def put(self, name: str, value: object = None) -> None:
        """Keeps what an earlier aspect said."""
        self.options.setdefault(name, None if value is None else str(value))

    def need(self, *names: str) -> None:
        """Be in one of these partitions, unless one is chosen already."""
        if self.partition is None:
            self.partition = self.rng.choice(names)

    def words(self) -> tuple[str, ...]:
        return tuple(
            name if value is None else f"{name}={value}" for name, value in self.options.items()
        )


_GPU_NAMES = (*("gpu",) * 14, *("gpumem",) * 14, "mixed")
_KINDS: Mapping[str, tuple[str, ...]] = {
    "gpu": ("a100", "t4"),
    "gpumem": ("a100",),
    "mixed": ("a100", "t4"),
}


def _gpu(c: Component, most: int) -> str:
    """``[TYPE:]COUNT`` of what the partition has."""
    c.need(*_GPU_NAMES)
    kinds = _KINDS.get(c.partition or "", ("a100", "t4"))
    # Where there are several types, people say which; where there is one, some do.
    kind = c.rng.choice(kinds) if len(kinds) == 1 or c.rng.random() < 0.995 else ""
    if len(kinds) == 1 and c.rng.random() < 0.5:
        kind = ""
    count = c.rng.randint(1, most)
    return f"{kind}:{count}" if kind else str(count)


def _on_nodes(c: Component, choice: Sequence[int] = (1, 1, 1, 2)) -> None:
    """What is asked for by node or by GPU is mostly asked for on so many nodes, often one."""
    if c.rng.random() < 0.93:
        c.put("--nodes", c.rng.choice(choice))


def _minutes(rng: random.Random, most: int) -> int:
    """Round numbers, as people write them, and others."""
    round_ones = [
        m for m in (1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 480, 720) if m <= most
    ]
    return rng.choice(round_ones) if rng.random() < 0.6 else rng.randint(1, most)


def _limit(c: Component) -> int:
    """The longest time in minutes that the partition gives."""
    return {"ht": 120, "brief": 120, "gpumem": 720, "wholecpu": 240}.get(
        c.partition or "normal", 1440
    )


def _time_text(rng: random.Random, minutes: int) -> str:
    """One of the ways to write it."""
    days, rest = divmod(minutes, 1440)
    hours, left = divmod(rest, 60)
    forms = [
        str(minutes),
        f"{minutes // 60}:{left:02d}:00",
        f"{minutes}:00",
        f"{days}-{hours}:{left:02d}",
    ]
    if rng.random() < 0.1:
        return f"{max(0, minutes - 1)}:{rng.randint(1, 59):02d}"
    return rng.choice(forms)


# -- one function per feature -------------------------------------------------------------------------------------------


def default_partition(c: Component) -> None:
    c.partition = c.partition or ""


def several_partitions(c: Component) -> None:
    if c.partition or c.het:  # the components of a het job have one each
        return
    names = [c.rng.choice(("ht", "whole", "wholecpu"))]
    others = [
        name for name in ("normal", "ht", "small", "wholecpu", "whole", "spec") if name not in names
    ]
    names += c.rng.sample(others, c.rng.randint(1, 2))
    c.rng.shuffle(names)
    c.partition = ",".join(names)


def default_time(c: Component) -> None:
    c.need("normal", "small", "whole", "light", "spec", "")
    c.put("no-time")


def partition_limited_time(c: Component) -> None:
    c.need("ht", "gpumem", "wholecpu")
    c.put("no-time")


def time_min(c: Component) -> None:
    c.need(*("brief",) * 9, "normal")
    minutes = _minutes(c.rng, _limit(c))
    c.put("--time", _time_text(c.rng, minutes))
    c.put("--time-min", max(1, minutes // c.rng.choice((1, 2, 4, 10))))


def unlimited_time(c: Component) -> None:
    c.need("long")
    c.put(*c.rng.choice((("no-time", None), ("--time", "UNLIMITED"), ("--time", "0"))))


def tasks_cpus(c: Component) -> None:
    c.put("--ntasks", c.rng.randint(1, 8))
    c.put("--cpus-per-task", c.rng.choice((1, 1, 2, 2, 2, 3, 4, 4)))


def nodes(c: Component) -> None:
    c.put("--nodes", c.rng.randint(1, 3))


def node_range(c: Component) -> None:
    c.need("normal", "normal", "ht", "light", "long", "")
    low = c.rng.randint(1, 2)
    c.put("--nodes", f"{low}-{low + c.rng.randint(1, 2)}")


def exclusive(c: Component) -> None:
    c.put("--exclusive")


def exclusive_partition(c: Component) -> None:
    c.need("whole", "wholecpu")


def mem(c: Component) -> None:
    c.put("--mem", c.rng.choice(("500", "1000M", "2G", "3500", "4G", "7500M", "10G", "12000")))
    _on_nodes(c)


def mem_zero(c: Component) -> None:
    c.put("--mem", "0")
    _on_nodes(c)


def mem_per_cpu(c: Component) -> None:
    c.put("--mem-per-cpu", c.rng.choice(("300", "500M", "750", "1G", "1500", "1900M")))


def mem_per_cpu_raised(c: Component) -> None:
    c.need("small")
    if c.rng.random() < 0.7:
        c.put("--mem-per-cpu", c.rng.choice(("2500", "3G", "4000M", "4001", "5G")))
    else:
        c.put("--mem", c.rng.choice(("5000", "6G", "9000M", "11111")))


def gpus(c: Component) -> None:
    c.put("--gpus", _gpu(c, 5))
    _on_nodes(c)


def gpus_per_node(c: Component) -> None:
    c.put("--gpus-per-node", _gpu(c, 4))
    _on_nodes(c)


def gpus_per_task(c: Component) -> None:
    c.put("--gpus-per-task", _gpu(c, 2))
    c.put("--ntasks", c.rng.randint(1, 4))
    _on_nodes(c, (1,) * 9 + (2,))


def gpus_per_socket(c: Component) -> None:
    """Mostly with so many tasks on each socket, which tells Slurm how many sockets it takes."""
    c.put("--gpus-per-socket", _gpu(c, 2))
    if c.rng.random() < 0.97:
        each, on = c.rng.randint(1, 3), c.rng.choice((1, 1, 2))
        c.put("--sockets-per-node", 2)
        c.put("--ntasks-per-socket", each)
        c.put("--ntasks", 2 * each * on)
        c.put("--nodes", on)
    else:
        c.put("--sockets-per-node", c.rng.randint(1, 2))
        c.put("--ntasks", c.rng.randint(1, 4))
        _on_nodes(c)


def gres(c: Component) -> None:
    c.put("--gres", f"gpu:{_gpu(c, 4)}")
    _on_nodes(c)


def cpus_per_gpu(c: Component) -> None:
    c.put("--cpus-per-gpu", c.rng.randint(1, 5))
    _some_gpus(c)


def mem_per_gpu(c: Component) -> None:
    c.put("--mem-per-gpu", c.rng.choice(("1000", "2G", "3500M", "6000")))
    _some_gpus(c)


def _some_gpus(c: Component) -> None:
    if not any(name.startswith(("--gpus", "--gres")) for name in c.options):
        c.rng.choice((gpus, gpus_per_node, gres, gpus_per_task))(c)


def threads_per_core(c: Component) -> None:
    c.need("ht", "light", "normal")
    c.put("--threads-per-core", 1 if c.rng.random() < 0.6 else 2)
    c.put("--ntasks", c.rng.randint(1, 8))


def hint(c: Component) -> None:
    c.need("ht", "light", "normal")
    c.put(
        "--hint",
        c.rng.choice(
            ("nomultithread", "nomultithread", "multithread", "compute_bound", "memory_bound")
        ),
    )
    c.put("--ntasks", c.rng.randint(1, 8))


def ntasks_per_node(c: Component) -> None:
    each = c.rng.randint(1, 4)
    c.put("--ntasks-per-node", each)
    if c.rng.random() < 0.7:
        c.put("--nodes", c.rng.randint(1, 3))
    else:
        c.put("--ntasks", c.rng.randint(1, 8))


def ntasks_per_socket(c: Component) -> None:
    c.put("--ntasks-per-socket", c.rng.randint(1, 3))
    c.put("--ntasks", c.rng.randint(1, 6))


def ntasks_per_core(c: Component) -> None:
    c.need("ht", "light", "normal", "spec")
    c.put("--ntasks-per-core", c.rng.randint(1, 2))
    c.put("--ntasks", c.rng.randint(1, 8))


def ntasks_per_gpu(c: Component) -> None:
    c.put("--ntasks-per-gpu", c.rng.randint(1, 3))
    if c.rng.random() < 0.5:
        c.put("--gpus", _gpu(c, 4))
    else:
        c.need("gpumem")  # of one type: none can be named
        c.put("--ntasks", c.rng.randint(1, 6))
    _on_nodes(c)


def overcommit(c: Component) -> None:
    c.put("--overcommit")
    c.put("--ntasks", c.rng.randint(2, 24))


def core_spec(c: Component) -> None:
    c.need("spec", "normal", "ht", "whole")
    if c.rng.random() < 0.7:
        c.put("--core-spec", c.rng.randint(1, 3))
    else:
        c.put("--thread-spec", c.rng.randint(1, 4))


def array(c: Component) -> None:
    first = c.rng.randint(0, 5)
    if c.rng.random() < 0.7:
        c.put("--array", f"{first}-{first + c.rng.randint(1, 3)}")
    else:
        picked = sorted(c.rng.sample(range(20), c.rng.randint(2, 4)))
        c.put("--array", ",".join(str(number) for number in picked))


def array_step(c: Component) -> None:
    first, step, count = c.rng.randint(0, 3), c.rng.randint(2, 5), c.rng.randint(2, 4)
    c.put("--array", f"{first}-{first + step * (count - 1) + c.rng.randint(0, step - 1)}:{step}")


def array_throttle(c: Component) -> None:
    c.put("--array", f"1-{c.rng.randint(2, 5)}%{c.rng.randint(1, 3)}")


FEATURES: Mapping[str, Callable[[Component], None]] = {
    made.__name__: made
    for made in (
        default_partition,
        several_partitions,
        default_time,
        partition_limited_time,
        time_min,
        unlimited_time,
        tasks_cpus,
        nodes,
        node_range,
        exclusive,
        exclusive_partition,
        mem,
        mem_zero,
        mem_per_cpu,
        mem_per_cpu_raised,
        gpus,
        gpus_per_node,
        gpus_per_task,
        gpus_per_socket,
        gres,
        cpus_per_gpu,
        mem_per_gpu,
        threads_per_core,
        hint,
        ntasks_per_node,
        ntasks_per_socket,
        ntasks_per_core,
        ntasks_per_gpu,
        overcommit,
        core_spec,
        array,
        array_step,
        array_throttle,
    )
}

#: With "het", jobs of several components, and "combined", which any job may become.
NAMES = (*FEATURES, "het", "combined")

_GPU = frozenset(
    "gpus gpus_per_node gpus_per_task gpus_per_socket gres cpus_per_gpu mem_per_gpu ntasks_per_gpu".split()
)
_MEM = frozenset("mem mem_zero mem_per_cpu mem_per_cpu_raised mem_per_gpu".split())
_ARRAYS = frozenset("array array_step array_throttle".split())
_PARTITION = frozenset("default_partition several_partitions exclusive_partition".split())
_TIME = frozenset("default_time partition_limited_time time_min unlimited_time".split())
_NODES = frozenset("nodes node_range".split())
_THREADS = frozenset("threads_per_core hint ntasks_per_core".split())

#: A component of a het job is no array, stays out of the partitions that others need at once (_HET), and has no --time-min,
#: which would shorten all the others.
_NOT_HET = _ARRAYS | _PARTITION | {"time_min"}

#: Of each, a job has one at most.
_GROUPS = (_MEM, _ARRAYS, _PARTITION, _TIME, _NODES, _THREADS)

#: What may be added to anything, and how often: what people combine.
_ADDED: Sequence[tuple[str, float]] = (
    ("tasks_cpus", 0.30),
    ("mem", 0.10),
    ("mem_per_cpu", 0.12),
    ("mem_zero", 0.03),
    ("nodes", 0.12),
    ("node_range", 0.04),
    ("ntasks_per_node", 0.08),
    ("ntasks_per_socket", 0.02),
    ("exclusive", 0.04),
    ("time_min", 0.03),
    ("threads_per_core", 0.03),
    ("hint", 0.03),
    ("ntasks_per_core", 0.02),
    ("overcommit", 0.03),
    ("array", 0.04),
    ("several_partitions", 0.03),
    ("exclusive_partition", 0.03),
)
_ADDED_GPU: Sequence[tuple[str, float]] = (
    ("cpus_per_gpu", 0.2),
    ("mem_per_gpu", 0.15),
    ("gpus", 0.06),
    ("gpus_per_node", 0.06),
    ("ntasks_per_gpu", 0.04),
)


#: Where a job goes that needs no partition of its own; "" is the default.
_GENERAL = (
    *("",) * 14,
    *("normal",) * 10,
    *("ht",) * 10,
    *("small",) * 8,
    *("gpumem",) * 4,
    *("wholecpu",) * 8,
    *("long",) * 6,
    *("light",) * 8,
    *("spec",) * 8,
    "mixed",
)


#: Of het jobs. Only Slurm's backfill starts them, and until then nothing else of their partitions starts at once, which
#: would let backfill cut the time of others short and send them to cheaper partitions.
_HET = ("small", "small", "spec", "spec", "gpumem")


def _fits(name: str, chosen: set[str]) -> bool:
    return name not in chosen and not any(name in group and group & chosen for group in _GROUPS)


def _component(rng: random.Random, focus: Sequence[str], added: float, het: bool) -> Component:
    """`added`: how often others are added, 1 as in the table."""
    c = Component(rng)
    c.het = het
    chosen = set(focus)
    for name in focus:
        FEATURES[name](c)
    table = [*_ADDED, *(_ADDED_GPU if chosen & _GPU else ())]
    rng.shuffle(table)
    for name, share in table:
        if rng.random() < share * added and _fits(name, chosen) and not (het and name in _NOT_HET):
            if name == "several_partitions" and (c.partition is not None or chosen & _GPU):
                continue
            if name == "exclusive_partition" and c.partition is not None:
                continue
            if name == "time_min" and c.partition is not None:
                continue  # where others wait, backfill would cut its time
            if name == "cpus_per_gpu" and "gpus_per_task" in chosen and rng.random() < 0.7:
                continue  # rare among users: Slurm then deals out more GPUs than were asked for
            chosen.add(name)
            FEATURES[name](c)
    if c.partition is None:
        c.partition = rng.choice(_HET if het else _GENERAL)
    if c.partition == "" and "--time" not in c.options and rng.random() < 0.3:
        c.put("no-time")
    if "no-time" not in c.options:
        c.put("--time", _time_text(rng, _minutes(rng, _limit(c))))
    if c.partition:
        c.put("--partition", c.partition)
    if rng.random() < 0.12:
        c.put("--qos", rng.choice(list(QOS)))
    c.features = _features(c)
    c.options.pop("no-time", None)
    return c


def _features(c: Component) -> set[str]:
    """From the options as they stand, whatever drew them."""
    has, found = c.options, set[str]()
    names = c.partition.split(",") if c.partition else ["normal"]
    facts = BY_NAME[names[0]]
    if not c.partition:
        found.add("default_partition")
    if len(names) > 1:
        found.add("several_partitions")
    if any(BY_NAME[name].exclusive for name in names):
        found.add("exclusive_partition")
    if "no-time" in has or has.get("--time") in ("0", "UNLIMITED"):
        if facts.max_time == "UNLIMITED":
            found.add("unlimited_time")
        elif facts.default_time_min is None:
            found.add("partition_limited_time")
        else:
            found.add("default_time")
    for option, feature in (
        ("--time-min", "time_min"),
        ("--exclusive", "exclusive"),
        ("--gpus", "gpus"),
        ("--gpus-per-node", "gpus_per_node"),
        ("--gpus-per-task", "gpus_per_task"),
        ("--gpus-per-socket", "gpus_per_socket"),
        ("--gres", "gres"),
        ("--cpus-per-gpu", "cpus_per_gpu"),
        ("--mem-per-gpu", "mem_per_gpu"),
        ("--threads-per-core", "threads_per_core"),
        ("--hint", "hint"),
        ("--ntasks-per-node", "ntasks_per_node"),
        ("--ntasks-per-socket", "ntasks_per_socket"),
        ("--ntasks-per-core", "ntasks_per_core"),
        ("--ntasks-per-gpu", "ntasks_per_gpu"),
        ("--overcommit", "overcommit"),
        ("--core-spec", "core_spec"),
        ("--thread-spec", "core_spec"),
    ):
        if option in has:
            found.add(feature)
    if "--ntasks" in has and "--cpus-per-task" in has:
        found.add("tasks_cpus")
    if "--nodes" in has:
        found.add("node_range" if "-" in (has["--nodes"] or "") else "nodes")
    memory = has.get("--mem") or has.get("--mem-per-cpu")
    if has.get("--mem") == "0":
        found.add("mem_zero")
    elif memory is not None:
        megabytes = int(memory.rstrip("MG")) * (1024 if memory.endswith("G") else 1)
        found.add("mem" if "--mem" in has else "mem_per_cpu")
        if "small" in names and megabytes > (2000 if "--mem" not in has else 4500):
            found.discard("mem_per_cpu")
            found.add("mem_per_cpu_raised")
    tasks = has.get("--array")
    if tasks:
        found.add("array_throttle" if "%" in tasks else "array_step" if ":" in tasks else "array")
    return found


#: What becomes of a job, and how often: most just run.
_FATES: Sequence[tuple[str, int]] = (
    ("run", 72),
    ("cancel_user", 3),
    ("cancel_admin", 2),
    ("never", 3),
    ("requeue", 3),
    ("suspend", 3),
    ("update_pending", 9),
    ("update_running", 3),
    ("resize", 1),
    ("node_fail", 1),
)


def _update(rng: random.Random, c: Component) -> tuple[str, ...]:
    """What a user writes after ``scontrol update JobId=N``."""
    found: list[str] = []
    gpu = any("gpu" in name or "gres" in name for name in c.options) or c.partition in (
        "gpu",
        "gpumem",
    )
    what = rng.sample(
        ["time", "partition", "qos", "nodes", "tasks"], 2 if rng.random() < 0.2 else 1
    )
    if "time" in what:
        found.append(f"TimeLimit={_minutes(rng, 120)}")
    if "partition" in what:
        found.append(
            f"Partition={rng.choice(('gpu', 'gpumem') if gpu else ('normal', 'ht', 'long', 'light', 'wholecpu'))}"
        )
        found.append(f"TimeLimit={_minutes(rng, 120)}")
    if "qos" in what:
        found.append(f"QOS={rng.choice(list(QOS))}")
    if "nodes" in what:
        found.append(f"NumNodes={rng.randint(1, 3)}")
    if "tasks" in what:
        found.append(f"NumTasks={rng.randint(1, 8)}")
    return tuple(dict.fromkeys(found))


def draw(seed: int, number: int, names: Sequence[str] = NAMES) -> Submission:
    """Number `number` of the seed's list; `names` are the features that it goes through."""
    rng = random.Random(f"{seed}/{number}/{','.join(names)}")
    focus = names[number % len(names)]
    user = rng.choice(USERS)
    if focus == "combined":
        plain = [name for name in FEATURES if name not in DEFAULTS]
        picked: list[str] = []
        while len(picked) < rng.randint(3, 4):
            name = rng.choice(plain)
            if _fits(name, set(picked)):
                picked.append(name)
        # Options that name a partition of their own come first: what a user who needs it would do.
        picked.sort(
            key=lambda name: (
                name not in ("unlimited_time", "mem_per_cpu_raised", "partition_limited_time")
            )
        )
        components = [_component(rng, picked, 0.3, False)]
    elif focus == "het":
        components = [_component(rng, [], 1.0, True) for _ in range(rng.choice((2, 2, 2, 3)))]
    else:
        components = [_component(rng, [focus], 1.0 if rng.random() < 0.6 else 0.0, False)]
    features = set[str]().union(*(c.features for c in components))
    is_array = any("--array" in c.options for c in components)
    het = len(components) > 1
    if het:
        features.add("het")
    if len(features - DEFAULTS) >= COMBINED:
        features.add("combined")

    fates = dict(_FATES)
    if het or is_array:
        fates = {"run": 80, "cancel_user": 8, "cancel_admin": 4, "never": 5}
        if is_array:
            fates["cancel_task"] = 6
    else:
        if not features & {"nodes", "node_range"}:
            del fates["resize"]
        if components[0].partition not in ("whole", "wholecpu"):
            del fates["node_fail"]
        else:
            fates["node_fail"] = 8
        if features & {"nodes"}:
            fates["resize"] = 5
    fate = rng.choices(list(fates), list(fates.values()))[0]
    first, arguments = components[0], tuple[str, ...]()
    seconds = rng.choice((0, 0, 0.5, 1, 1, 1.5, 2))
    script = f"sleep {seconds}" if seconds else "true"
    if fate in ("cancel_user", "cancel_admin", "cancel_task", "node_fail"):
        script = "sleep 60"
        if fate == "node_fail":
            first.put("--no-requeue")
    elif fate == "requeue":
        script = f'[ "$SLURM_RESTART_COUNT" ] || sleep 60\n{script}'
    elif fate in ("suspend", "resize"):
        script = "sleep 5"
    elif fate == "never":
        for c in components:
            c.put("--hold")
    elif fate == "update_pending":
        first.put("--hold")
        arguments = _update(rng, first)
    elif fate == "update_running":
        script = "sleep 4"
        arguments = (f"TimeLimit={_minutes(rng, 240)}",)
    return Submission(
        number=number,
        user=user,
        components=tuple(c.words() for c in components),
        script=script,
        features=frozenset(features),
        fate=fate,
        fate_arguments=arguments,
    )


def submissions(seed: int, names: Sequence[str] = NAMES) -> Iterator[Submission]:
    """The seed's list, without end."""
    number = 0
    while True:
        yield draw(seed, number, names)
        number += 1
