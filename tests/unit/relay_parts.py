# SPDX-License-Identifier: BSD-3-Clause
"""Builders for the relay's tests: a real ledger, a real configuration, simple objects for Slurm and the bank."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

from slurm_banking import config as configuration
from slurm_banking import settle
from slurm_banking.bank import BankRun
from slurm_banking.errors import BankUnavailable
from slurm_banking.ledger import Ledger, LedgerRun
from slurm_banking.records import Funds, FundsKind, NodeShape, Partition, Run
from slurm_banking.relay import client, outbox, protocol
from slurm_banking.relay.answer import Listener
from slurm_banking.relay.book import FILE_NAME, DeliveryBook
from slurm_banking.relay.deliver import try_again
from slurm_banking.relay.desk import FundsDesk
from slurm_banking.relay.questions import Parts, Questions
from slurm_banking.relay.quote import Facts

#: Users of the system that may be told apart by uid, whoever runs the tests; root plays SlurmUser.
NOBODY = 65534
DAEMON = 1
BIN = 2

CONFIG = """
[API]
url = "http://127.0.0.1:9/api"
token_file = "{directory}/token"
[Policy]
mode = "strict-allocation"
[Ledger]
state_dir = "{directory}/state"
[Relay]
socket = "{directory}/run/relay.sock"
admin_users = ["bin"]
[PartitionPrice]
main = 1.0
big = 2.5
"""


@dataclass
class Members:
    accounts: Dict[str, Sequence[str]] = field(
        default_factory=lambda: {"nobody": ("astro",), "daemon": ("astro", "bio")}
    )
    coordinators: Dict[str, Collection[str]] = field(default_factory=dict)

    def accounts_of(self, user_name: str) -> Sequence[str]:
        return self.accounts.get(user_name, ())

    def default_account(self, user_name: str) -> Optional[str]:
        return next(iter(self.accounts_of(user_name)), None)

    def coordinated_by(self, user_name: str) -> Collection[str]:
        return self.coordinators.get(user_name, ())


@dataclass
class Bank:
    """What the desk asks: writes the same funds into the ledger, slowly or not at all if told so."""

    ledger: Ledger
    remaining_csu: int = 100_000
    delay_s: float = 0.0
    away: bool = False
    away_until: Optional[float] = None
    asked: List[Tuple[str, int]] = field(default_factory=list)

    def refresh(self, account: str, user_id: int) -> None:
        self.asked.append((account, user_id))
        time.sleep(self.delay_s)
        if self.away:
            self.away_until = time.time() + 30
            raise BankUnavailable("bank: connection refused")
        put_funds(self.ledger, account, user_id, self.remaining_csu)

    def read_at(self, account: str, user_id: int) -> int:
        with self.ledger.transaction(write=False) as tx:
            return tx.funds_view(account, user_id).read_at


class NoBank:
    """A bank that cannot be asked about a run."""

    def find_run(self, run: LedgerRun) -> Optional[BankRun]:
        raise BankUnavailable("bank: connection refused")


class Relay:
    """Everything behind the socket, and what the tests look at."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        os.makedirs(directory / "state", mode=0o700, exist_ok=True)
        os.makedirs(directory / "run", mode=0o755, exist_ok=True)
        path = directory / "bank-config.toml"
        path.write_text(CONFIG.format(directory=directory))
        self.config = configuration.load(str(path), in_slurmctld=False)
        self.ledger = Ledger(self.config.ledger.state_dir, "demo", check_directory=False)
        self.members = Members()
        self.bank = Bank(self.ledger)
        self.nudges: List[float] = []
        self.sweeps: List[bool] = []
        self.book = DeliveryBook(str(directory / "state" / FILE_NAME))
        self.refused_runs: Sequence[int] = ()
        self.delivery: Dict[str, Any] = {}
        self.asked_bank: outbox.AskedBank = NoBank()
        self.on_retry: Callable[[Sequence[LedgerRun]], None] = lambda tried: None
        self.health: Dict[str, Any] = {"cluster": "demo", "bank_away_since": None, "alarms": []}
        self.desk = FundsDesk(
            refresh=self.bank.refresh,
            read_at=self.bank.read_at,
            away_until=lambda: self.bank.away_until,
        )
        self.questions = Questions(
            Parts(
                ledger=self.ledger,
                config=lambda: self.config,
                members=self.members,
                desk=self.desk,
                facts=self.facts,
                nudge=lambda: self.nudges.append(time.time()),
                sweep=self.sweep,
                health=lambda: self.health,
                delivery_state=self.delivery_state,
                refused_runs=lambda limit: self.refused_runs,
                retry=self.retry,
                standings=lambda limit, runs: outbox.standings(self.ledger, self.book, limit, runs),
                resolve=self.resolve,
            )
        )
        with self.ledger.transaction() as tx:
            settle.record_prices(tx, self.config, int(time.time()))
            tx.set_meta("created", "0")  # older than every job of a test

    @property
    def socket(self) -> str:
        return self.config.relay.socket

    def sweep(self, force: bool, wait_s: float) -> Mapping[str, Any]:
        self.sweeps.append(force)
        return {"ended": 0}

    def delivery_state(self, run: LedgerRun) -> Mapping[str, Any]:
        return {"last_error": "bank: connection refused", "tries": 3, **self.delivery}

    def retry(self, run_ids: Sequence[int], actor: str) -> Sequence[LedgerRun]:
        """As the relay does, with a bank that says what the test wants."""
        tried = try_again(self.ledger, self.book, run_ids, actor)
        self.on_retry(tried)
        return tried

    def resolve(
        self, run_id: int, bank_has_csu: Optional[int], reason: str, actor: str
    ) -> Tuple[LedgerRun, int]:
        """As the relay does, with a bank of the test's."""
        return outbox.resolve(
            self.ledger,
            self.book,
            run_id,
            bank=lambda: self.asked_bank,
            bank_has_csu=bank_has_csu,
            reason=reason,
            actor=actor,
        )

    def facts(self) -> Facts:
        main = Partition(
            name="main",
            default_time_min=60,
            max_time_min=1440,
            total_cpus=32,
            total_nodes=4,
            shapes=(NodeShape(count=4, cpus=8, cores=8, memory_mb=16000),),
        )
        big = Partition(
            name="big",
            exclusive=True,
            max_time_min=1440,
            total_cpus=32,
            total_nodes=2,
            shapes=(NodeShape(count=2, cpus=16, cores=16, memory_mb=64000),),
        )
        unpriced = Partition(name="unpriced", total_cpus=8, total_nodes=1)
        partitions = {partition.name: partition for partition in (main, big, unpriced)}
        return Facts(cluster="demo", partitions=partitions, default_partition="main")

    @contextlib.contextmanager
    def listening(self, **options: Any) -> Iterator[Listener]:
        listener = Listener(self.socket, self.questions, privileged=Questions.privileged, **options)
        listener.start()
        try:
            yield listener
        finally:
            listener.stop()


def put_funds(
    ledger: Ledger,
    account: str,
    user_id: int,
    remaining_csu: int,
    *,
    limit_csu: int = 100_000,
    read_at: Optional[int] = None,
) -> None:
    read_at = int(time.time()) if read_at is None else read_at
    with ledger.transaction() as tx:
        for who in (None, user_id):
            tx.put_funds(
                Funds(
                    account=account,
                    user_id=who,
                    kind=FundsKind.LIMITED,
                    limit_csu=limit_csu,
                    remaining_csu=remaining_csu,
                    allocation="7",
                    start_time=1_600_000_000,
                    end_time=None,
                    read_at=read_at,
                )
            )


def run(
    job_id: int,
    *,
    user_id: int = NOBODY,
    user_name: str = "nobody",
    account: str = "astro",
    start: int = 1_700_000_100,
    elapsed_s: int = 3600,
    cpus: int = 4,
    state: str = "COMPLETED",
    **options: Any,
) -> Run:
    """A run that ended, or with ``state="RUNNING"`` one that goes on."""
    running = state == "RUNNING"
    return Run(
        cluster="demo",
        job_id=job_id,
        submit_time=start - 100,
        restart_count=0,
        user_id=user_id,
        user_name=user_name,
        account=account,
        partition="main",
        state=state,
        start_time=start,
        end_time=None if running else start + elapsed_s,
        elapsed_s=0 if running else elapsed_s,
        cpus=cpus,
        started=True,
        node_count=1,
        time_limit_min=120,
        **options,
    )


def open_lien(
    relay: Relay,
    job_id: Optional[int],
    *,
    user_id: int = NOBODY,
    user_name: str = "nobody",
    account: str = "astro",
    csu: int = 800,
    tasks: int = 1,
    **options: Any,
) -> str:
    inputs = {
        "partition": "main",
        "qos": None,
        "cpus": 4,
        "nodes": 1,
        "time_limit_min": 120,
        "tasks": tasks,
        "tres": "cpu=4,node=1",
        "rates": "1.0",
        "qos_multiplier": "1",
        "price_version": relay.config.prices.version,
    }
    with relay.ledger.transaction() as tx:
        return tx.open_lien(
            account=account,
            user_id=user_id,
            user_name=user_name,
            per_task_csu=csu,
            tasks=tasks,
            origin=options.pop("origin", "submit"),
            inputs=inputs,
            reason="fits",
            actor="slurmctld",
            job_id=job_id,
            submit_time=options.pop("submit_time", 1_700_000_000),
            confirmed=job_id is not None,
            **options,
        )


def end_run(relay: Relay, ended: Run) -> None:
    with relay.ledger.transaction() as tx:
        settle.end_run(tx, ended, relay.config, actor="slurmctld")


def start_run(relay: Relay, started: Run) -> None:
    with relay.ledger.transaction() as tx:
        settle.start_run(tx, started, relay.config, actor="relay")


def ask_as(
    uid: int, socket_path: str, request: Mapping[str, Any], *, owner: Optional[int] = None
) -> Dict[str, Any]:
    """The relay's answer to a process of another user (which only root can make)."""
    owner = os.getuid() if owner is None else owner
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        status = 1
        try:
            os.close(read_end)
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            answer = client.ask(
                socket_path,
                request,
                10,
                allowed_owner_uids=(owner,),
                max_reply_bytes=protocol.MAX_LONG_REPLY_BYTES,
            )
            with os.fdopen(write_end, "wb") as pipe:
                pipe.write(protocol.encode(answer, protocol.MAX_LONG_REPLY_BYTES))
            status = 0
        except BaseException as error:
            os.write(2, f"ask_as: {error!r}\n".encode())
        finally:
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        line = pipe.read()
    os.waitpid(child, 0)
    return protocol.decode(line)
