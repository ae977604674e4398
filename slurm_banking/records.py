# SPDX-License-Identifier: BSD-3-Clause
"""The nouns: immutable records, built by keyword. Functions elsewhere do the work.

Sentinels of Slurm have ended before these exist: ``None`` means "not given", :data:`UNLIMITED` means no limit.
Times are unix seconds (``int``); money is integer hundredths of a service unit (``_csu``).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Mapping, Optional, Tuple

from slurm_banking.amounts import share_csu
from slurm_banking.tres import Tres

#: A time limit without bound.
UNLIMITED = -1

#: A restart count that Slurm does not tell.
UNKNOWN_RESTART = -1


class Mode(enum.Enum):
    """What is checked and what is set aside (words of Moab Accounting Manager)."""

    STRICT_ALLOCATION = "strict-allocation"
    FAST_ALLOCATION = "fast-allocation"
    NOTIONAL_CHARGING = "notional-charging"
    USAGE_TRACKING = "usage-tracking"


class Outcome(enum.Enum):
    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNDECIDED = "undecided"


class Reason(enum.Enum):
    """Why a verdict is what it is; the word in logs, entries and ``--json``."""

    FITS = "fits"
    UNLIMITED_FUNDS = "unlimited_funds"
    NOT_BANKED = "not_banked"
    EXEMPT = "exempt"
    ALLOWED = "allowed"  #: an operator's exception
    FREE_PARTITION = "free_partition"
    NOT_CHECKED = "not_checked"  #: notional-charging and usage-tracking
    INSUFFICIENT_FUNDS = "insufficient_funds"
    INSUFFICIENT_USER_FUNDS = "insufficient_user_funds"
    UNPRICED_PARTITION = "unpriced_partition"
    UNKNOWN_ACCOUNT = "unknown_account"  #: the bank does not know it
    UNKNOWN_USER = "unknown_user"  #: the bank does not know the user, or not in this account
    NO_ALLOCATION = "no_allocation"  #: no active allocation
    NO_ACCOUNT = "no_account"  #: neither given nor a default
    NOT_ASSOCIATED = "not_associated"
    UNLIMITED_TIME = "unlimited_time"  #: no limit, no partition limit, and no horizon configured
    QUEUE_FULL = "queue_full"  #: slurmctld has no room for it (MaxJobCount); sbatch tries again
    MALFORMED = "malformed"  #: an array expression or a number that Slurm would refuse too
    FUNDS_UNKNOWN = "funds_unknown"  #: nobody could say in time
    LEDGER_UNAVAILABLE = "ledger_unavailable"
    DISABLED = "disabled"


@dataclass(frozen=True)
class NodeShape:
    """Nodes of a partition that are alike, as slurm.conf describes them."""

    count: int  #: nodes of this shape
    cpus: int  #: as Slurm counts them: hardware threads, or fewer where slurm.conf says so
    sockets: int = 1  #: of the whole node, all boards together
    cores: int = 1  #: per socket
    threads: int = 1  #: per core
    memory_mb: int = 0  #: RealMemory
    memory_spec_mb: int = 0  #: MemSpecLimit: never allocated
    core_spec: int = 0  #: CoreSpecCount, cores that jobs do not get
    gpus: Tuple[
        Tuple[str, int], ...
    ] = ()  #: (type, count) on each node; type "" where none is given

    @property
    def gpu_count(self) -> int:
        return sum(count for _, count in self.gpus)


@dataclass(frozen=True)
class Partition:
    """A candidate partition as slurmctld knows it."""

    name: str
    found: bool = True
    default_time_min: Optional[int] = None  #: None: none is set. UNLIMITED possible.
    max_time_min: int = UNLIMITED
    exclusive: bool = False  #: whole nodes always (OverSubscribe=EXCLUSIVE, select/linear)
    max_cpus_per_node: Optional[int] = None
    total_cpus: int = 0
    total_nodes: int = 0
    max_nodes: Optional[int] = None  #: per job
    shapes: Tuple[NodeShape, ...] = ()  #: of its nodes; empty: not known
    #: What select/cons_res and cons_tres hand out: "cpu", "core" or "socket"; "node" with select/linear.
    unit: str = "core"
    memory_tracked: bool = True  #: memory is a consumable resource (CR_..._Memory)
    one_task_per_core: bool = False  #: CR_ONE_TASK_PER_CORE
    #: DefMemPerCPU or DefMemPerNode, MaxMemPerCPU or MaxMemPerNode in MB, of the partition or else the cluster; None: none
    def_mem_mb: Optional[int] = None
    def_mem_per_cpu: bool = False
    max_mem_mb: Optional[int] = None
    max_mem_per_cpu: bool = False
    def_cpus_per_gpu: Optional[int] = None
    def_mem_per_gpu_mb: Optional[int] = None
    #: TRESBillingWeights by TRES name in lower case, memory per GB; None: billing is the number of CPUs
    billing_weights: Optional[Mapping[str, Decimal]] = None
    billing_max: bool = False  #: PriorityFlags=MAX_TRES
    release: Tuple[int, int] = (22, 5)  #: of Slurm: (year, month)


@dataclass(frozen=True)
class Submission:
    """A job as asked for, or as a wanted update would make it."""

    cluster: str
    job_user_id: int
    submit_user_id: int
    partitions: Tuple[Partition, ...]  #: never empty
    account: Optional[str] = None  #: None: not given, and the user has no default
    user_name: str = ""  #: "": slurmctld does not know the name
    qos: Optional[str] = None
    associated: bool = True
    room: Optional[int] = (
        None  #: jobs and tasks that slurmctld's table has room for; None: not known
    )
    time_limit_min: Optional[int] = None  #: None: the partition's default
    time_min_min: Optional[int] = None
    min_cpus: int = 1
    max_cpus: Optional[int] = None
    min_nodes: Optional[int] = None
    max_nodes: Optional[int] = None
    num_tasks: Optional[int] = None
    cpus_per_task: Optional[int] = None
    ntasks_per_node: Optional[int] = None
    ntasks_per_socket: Optional[int] = None
    ntasks_per_core: Optional[int] = None
    ntasks_per_tres: Optional[int] = None  #: tasks per GPU
    sockets_per_node: Optional[int] = None
    cores_per_socket: Optional[int] = None
    threads_per_core: Optional[int] = None
    pn_min_cpus: Optional[int] = None  #: --mincpus, CPUs per node
    core_spec: Optional[int] = None  #: cores per node; with ``thread_spec``, threads
    thread_spec: bool = False
    overcommit: bool = False
    exclusive: bool = False
    memory_mb: Optional[int] = None  #: per node, or per CPU; 0: all of the node's
    memory_per_cpu: bool = False
    tres_per_job: str = ""  #: as Slurm writes it: "gres:gpu:a100:4"
    tres_per_node: str = ""
    tres_per_socket: str = ""
    tres_per_task: str = ""
    cpus_per_tres: str = ""  #: --cpus-per-gpu: "gres:gpu:4"
    mem_per_tres: str = ""  #: --mem-per-gpu, MB: "gres:gpu:4096"
    array_inx: str = ""
    het_job_offset: Optional[int] = None
    name: str = ""
    admin_comment: str = ""


@dataclass(frozen=True)
class Estimate:
    """The most that a submission could cost, and what that number came from."""

    cost_csu: int  #: per_task_csu * tasks
    per_task_csu: int
    tasks: int
    partition: str  #: the dearest candidate
    tres: Tres  #: of one task: the most that Slurm could allocate there
    time_limit_min: int
    price: Mapping[str, Any]  #: "rates", "qos_multiplier", "price_version": Price.inputs()
    qos: Optional[str] = None
    warnings: Tuple[str, ...] = ()
    lien_share: Decimal = Decimal(1)  #: of the cost that is set aside

    @property
    def per_task_lien_csu(self) -> int:
        """What is set aside for one task."""
        return share_csu(self.per_task_csu, self.lien_share)

    @property
    def lien_csu(self) -> int:
        """What is set aside for all of it; also what must fit."""
        return self.per_task_lien_csu * self.tasks

    @property
    def cpus(self) -> int:
        return self.tres.cpus

    @property
    def nodes(self) -> int:
        return self.tres.nodes

    @property
    def price_version(self) -> str:
        return str(self.price["price_version"])

    def inputs(self) -> Mapping[str, Any]:
        """What is stored with an entry, so that the sum can be shown again years later."""
        return {
            "partition": self.partition,
            "qos": self.qos,
            "cpus": self.cpus,
            "nodes": self.nodes,
            "tres": str(self.tres),
            "time_limit_min": self.time_limit_min,
            "tasks": self.tasks,
            **self.price,
            **({} if self.lien_share == 1 else {"lien_share": format(self.lien_share, "f")}),
        }


@dataclass(frozen=True)
class JobUpdate:
    """A wanted change of a job (scontrol update), by somebody who may touch it."""

    wanted: Submission
    job_id: int
    submit_time: int
    array_job_id: Optional[int] = None
    array_task_id: Optional[int] = None
    het_job_id: Optional[int] = None
    restart_count: int = 0
    running: bool = False
    task_count: int = 1
    total_cpus: int = 0
    tres: Tres = Tres()  #: allocated, of a running job
    operator_caller: bool = False
    start_time: Optional[int] = None


@dataclass(frozen=True)
class Segment:
    """Part of a run between two resizes."""

    tres: Tres
    seconds: int  #: that it had these, suspension taken out


@dataclass(frozen=True)
class Run:
    """One execution of a job, as Slurm tells it at its end (or start); also a pending job that was cancelled.

    ``elapsed_s`` is what Slurm's own tools count: suspension taken out. 0 and ``started`` False: it never ran.
    """

    cluster: str
    job_id: int
    submit_time: int
    restart_count: int
    user_id: int
    account: str
    partition: str
    state: str  #: Slurm's base state, "COMPLETED", "CANCELLED", "PENDING", ...
    start_time: Optional[int]
    end_time: Optional[int]  #: None: still running
    elapsed_s: int
    cpus: int
    started: bool
    user_name: str = ""
    qos: Optional[str] = None
    nodes: str = ""  #: Slurm's host list expression
    node_count: int = 0
    tres: Tres = Tres()  #: allocated; empty where only CPUs and nodes are known
    array_job_id: Optional[int] = None
    array_task_id: Optional[int] = None
    het_job_id: Optional[int] = None
    task_count: int = 1  #: tasks that this record speaks for (pending array cancelled whole)
    time_limit_min: Optional[int] = None
    requeue: bool = False  #: Slurm will run it again
    resizing: bool = False  #: a segment, not the end
    segments: Tuple[Segment, ...] = ()  #: if it was resized while it ran; empty: it never was
    cancelled_by_admin: bool = False  #: by root, SlurmUser or an operator, and not their own job
    name: str = ""
    admin_comment: str = ""
    source: str = "jobcomp"  #: "jobcomp", "sacct", "squeue"


@dataclass(frozen=True)
class QueuedJob:
    """One record of Slurm's queue as squeue shows it: a job, an array's tasks not yet started, or one array task."""

    job_id: int
    submit_time: int
    user_id: int
    account: str
    partition: str  #: a comma list while pending
    state: str
    time_limit_min: int  #: UNLIMITED possible
    cpus: int
    nodes: int
    user_name: str = ""
    qos: Optional[str] = None
    array_job_id: Optional[int] = None
    array_task_id: Optional[int] = (
        None  #: None: not an array, or the record of the tasks not yet started
    )
    tasks: int = 1  #: tasks in this record
    het_job_id: Optional[int] = None
    het_job_offset: Optional[int] = None
    restart_count: int = 0
    tres: Tres = Tres()  #: allocated, of a started job; empty where squeue does not tell
    start_time: Optional[int] = None  #: only when it has started
    node_list: str = ""
    name: str = ""
    admin_comment: str = ""


class FundsKind(enum.Enum):
    LIMITED = "limited"
    UNLIMITED = "unlimited"
    NOT_BANKED = "not_banked"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Funds:
    """What the bank says that an account, or a user inside it (``user_id`` set), may still spend."""

    account: str
    kind: FundsKind
    user_id: Optional[int] = None
    limit_csu: Optional[int] = None  #: None unless LIMITED
    remaining_csu: Optional[int] = (
        None  #: limit - usage at the bank; may be negative. None unless LIMITED
    )
    allocation: str = ""  #: the bank's id of the allocation (period) this speaks of
    start_time: Optional[int] = None  #: of the allocation period, unix seconds
    end_time: Optional[int] = None
    reason: Optional[Reason] = (
        None  #: for LIMITED with nothing to spend or refusals: UNKNOWN_ACCOUNT, UNKNOWN_USER, NO_ALLOCATION
    )
    read_at: int = 0  #: unix seconds when the bank said so


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    reason: Reason
    estimate: Optional[Estimate] = None
    message: str = ""  #: for the user; several lines
    token: str = ""  #: for admin_comment
    available_csu: Optional[int] = None  #: None: unlimited or unknown
    set_aside_csu: int = 0  #: liens of queued and running jobs at the time
    would_be: Optional[Outcome] = None  #: with enforce = "log": what it is not, but would have been
