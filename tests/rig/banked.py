# SPDX-License-Identifier: BSD-3-Clause
"""A rig with everything of ours in it: the installed plugins and package, the bundled bank, the relay.

    with BankedCluster() as site:
        job = site.sbatch("sb-alice", "--time=1", script="sleep 1")
        ...
        site.settle()
        site.assert_agreement()

What runs is what ``make install`` puts on a controller, staged into the scratch directory. The bank is a process of its own
on a free port of loopback, with users whose cluster UIDs are those of the rig's users.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from tests.rig.cluster import OPERATOR, SLURM_USER, Cluster, PluginSet, RigError, wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
BUILD = CHECKOUT / "build"

#: SU per CPU-hour of the rig's partitions, high so that seconds cost something; `unpriced` has none.
PRICES: Mapping[str, str] = {"main": "360", "debug": "180.5", "exclusive": "720"}

#: SU at the start.
FUNDS: Mapping[str, str] = {"fc_alpha": "1000", "fc_beta": "100", "fc_gamma": "10"}

CONFIG = """\
[PartitionPrice]
{prices}

[API]
url = "http://127.0.0.1:{port}/api"
token_file = "{root}/etc/bank-token"
timeout_s = 3
{api}

[Policy]
mode = "strict-allocation"
tell_estimate = true
{policy}

[Ledger]
state_dir = "{root}/state"

[Relay]
socket = "{root}/run/relay.sock"
command = "{root}/stage/bin/slurm-banking"
queue_poll_s = 1
funds_refresh_s = 5
sacct_poll_s = 5
lien_grace_s = 6
deliver_retry_max_s = 2
admin_users = ["sb-oper"]
{relay}
"""


def stage(destination: Path) -> None:
    """What ``make install`` installs, with the paths of the scratch directory compiled in."""
    variables = [
        f"LIBDIR={destination}/lib",
        f"PLUGINDIR={destination}/plugins",
        f"SPANKDIR={destination}/spank",
        f"BINDIR={destination}/bin",
        f"DOCDIR={destination}/doc",
        f"UNITDIR={destination}/unit",
        f"TMPFILESDIR={destination}/tmpfiles",
        f"SYSCONFDIR={destination.parent}/etc",
        f"BUILD={destination.parent}/build",
        f"SLURM_CACHE={BUILD}/slurm-src",
    ]
    source = os.environ.get("SLURM_SRC")
    if source:
        variables.append(f"SLURM_SRC={source}")
    result = subprocess.run(
        ["make", "-s", "-C", str(CHECKOUT / "csrc"), "install", *variables],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if result.returncode != 0:
        raise RigError(f"make install: status {result.returncode}:\n{result.stdout}{result.stderr}")
    shutil.rmtree(destination.parent / "build", ignore_errors=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One run as the three books have it; SU."""

    run: str
    ledger_su: Decimal | None
    bank_su: Decimal | None
    sacct_su: Decimal | None

    @property
    def agrees(self) -> bool:
        return self.ledger_su == self.bank_su == self.sacct_su


class BankedCluster(Cluster):
    """`policy`, `api`, `relay`: lines added to those sections of bank-config.toml.

    `tell`: called with one line for each thing that coming up begins.
    """

    def __init__(
        self,
        *,
        policy: str = "",
        api: str = "",
        relay: str = "",
        prices: Mapping[str, str] = PRICES,
        funds: Mapping[str, str] = FUNDS,
        plugins: bool = True,
        node_token: bool = False,
        tell: Callable[[str], None] = lambda line: None,
        **options: Any,
    ) -> None:
        super().__init__(plugins=PluginSet(stage=self._install) if plugins else None, **options)
        self.tell = tell
        self._with_plugins = plugins
        self.policy, self.api, self.relay_lines = policy, api, relay
        self.prices, self.bank_funds = dict(prices), dict(funds)
        self.node_token = node_token
        self.bank_port = 0

    # -- coming up --------------------------------------------------------------------------------------------------

    def _install(self, destination: Path) -> None:
        there = "SLURM_SRC" in os.environ or (BUILD / "slurm-src").exists()
        self.tell(
            "building the plugins and installing them"
            + ("" if there else ", after fetching Slurm's source (this once)")
        )
        stage(destination)

    def env(self) -> dict[str, str]:
        """With `slurm-banking` in PATH; it finds bank-config.toml beside slurm.conf."""
        env = super().env()
        return {**env, "PATH": f"{self.root}/stage/bin:{env['PATH']}"}

    def spawn(self, name: str, argv: Sequence[str], **options: Any) -> int:
        self.tell(f"starting {name}")
        return super().spawn(name, argv, **options)

    def sacctmgr(self, *args: str, timeout_s: float = 60) -> str:
        if args[:1] == ("load",):
            self.tell("loading accounts and users into slurmdbd")
        return super().sacctmgr(*args, timeout_s=timeout_s)

    def _write_configuration(self) -> None:
        super()._write_configuration()
        lines = [
            f"export {key}={shlex.quote(value)}\n"
            for key, value in self.env().items()
            if key in ("PATH", "SLURM_CONF")
        ]
        self.write_file(self.root / "env.sh", "".join(lines))
        self.bank_port = _free_port()
        self.write_banking()

    def write_banking(self) -> None:
        """bank-config.toml from the object as it is now."""
        api = self.api
        if self.node_token:
            api += f'\nnode_token_file = "{self.root}/etc/node-token"'
        self.write_bank_config(
            CONFIG.format(
                prices="\n".join(f"{name} = {price}" for name, price in self.prices.items()),
                port=self.bank_port,
                root=self.root,
                api=api,
                policy=self.policy,
                relay=self.relay_lines,
            )
        )

    def _start_all(self) -> None:
        self.set_up_bank()
        super()._start_all()

    def bank(self, *arguments: str) -> str:
        """``slurm-banking bank …`` on the rig's bank."""
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                "slurm_banking.server.cli",
                arguments[0],
                *arguments[1:],
                "--data",
                str(self.root / "bank"),
            ],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if result.returncode != 0:
            raise RigError(f"bank {' '.join(arguments)}: {result.stderr.strip() or result.stdout}")
        return result.stdout

    def set_up_bank(self) -> None:
        """Accounts, members, allocations and tokens; then the bank itself."""
        self.tell("setting up the bank: accounts, members, allocations, tokens")
        (self.root / "bank").mkdir(mode=0o700)
        self.bank("migrate")
        today = datetime.date.today()
        for account, users in self.accounts.items():
            if account not in self.bank_funds:
                continue
            self.bank("account", "add", account)
            for user in users:
                self.bank("user", "add", user, "--uid", str(self.uid(user)), "--account", account)
            self.bank(
                "allocation",
                "add",
                account,
                self.bank_funds[account],
                "--start",
                str(today - datetime.timedelta(days=30)),
                "--end",
                str(today + datetime.timedelta(days=335)),
            )
        self.make_token("relay", self.etc_dir / "bank-token", "slurm")
        if self.node_token:
            self.make_token("start-only", self.etc_dir / "node-token", "root")
        self.start_bank()

    def make_token(self, scope: str, path: Path, owner: str) -> None:
        path.unlink(missing_ok=True)
        self.bank("token", "create", "--scope", scope, "--name", path.name, "--file", str(path))
        shutil.chown(path, owner, owner)

    def make_token_again(self, path: Path) -> None:
        """Another relay token in place of one that was removed."""
        name = f"{path.name}-{len(os.listdir(self.root))}-{os.urandom(4).hex()}"
        self.bank("token", "create", "--scope", "relay", "--name", name, "--file", str(path))
        shutil.chown(path, "slurm", "slurm")

    def start_bank(self) -> None:
        if "bank" in self._specs:
            self.start_daemon("bank")
        else:
            self.spawn(
                "bank",
                [
                    sys.executable,
                    "-m",
                    "slurm_banking.server.cli",
                    "serve",
                    "--data",
                    str(self.root / "bank"),
                    "--listen",
                    f"127.0.0.1:{self.bank_port}",
                ],
                env={"PYTHONPATH": str(CHECKOUT)},
            )
        wait_until(lambda: _connects(self.bank_port), 30, "the bank to listen")

    def stop_bank(self) -> None:
        self.stop_daemon("bank")

    # -- the command line and the relay -----------------------------------------------------------------------------

    def banking(
        self, *arguments: str, user: str = "root", check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """``slurm-banking …`` as a user of the controller host."""
        result = self.run_as(user, ["slurm-banking", *arguments], timeout)
        if check and result.returncode != 0:
            raise RigError(
                f"slurm-banking {' '.join(arguments)}: status {result.returncode}: {result.stderr.strip()}"
            )
        return result

    def banking_json(self, *arguments: str, user: str = "root") -> Any:
        return json.loads(self.banking(*arguments, "--json", user=user).stdout)

    def relay_pid(self) -> int | None:
        """The pid that holds the relay's lock."""
        try:
            text = (self.state_dir / "relay.lock").read_text()
            pid = int(text.split()[0])
            os.kill(pid, 0)
        except (OSError, ValueError, IndexError):
            return None
        return pid

    def status(self) -> dict[str, Any] | None:
        """What the relay says of itself, well or not; None while it does not answer."""
        result = self.banking("status", "--json", check=False)
        if not result.stdout.startswith("{"):
            return None
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def wait_ready(self, timeout_s: float = 30) -> None:
        """The relay answers and the ledger was compared with Slurm."""

        def ready() -> bool:
            status = self.status()
            return status is not None and bool(status["ledger_complete"])

        try:
            wait_until(ready, timeout_s, "the relay to be ready", 0.2)
        except RigError as error:
            said = self.banking("status", check=False)
            raise RigError(f"{error}: {(said.stderr or said.stdout).strip()}") from None

    def start(self) -> None:
        super().start()
        if self._with_plugins:
            self.tell("waiting for the relay to be ready")
            self.wait_ready()
            wanted = sum(
                len(users) for account, users in self.accounts.items() if account in self.bank_funds
            )
            wait_until(
                lambda: self.ledger_rows("SELECT COUNT(*) AS n FROM funds WHERE user_id != -1")[0]["n"] >= wanted,
                30, "the relay to have asked for everybody's funds", 0.2,
            )  # fmt: skip

    # -- the books --------------------------------------------------------------------------------------------------

    def ledger_rows(self, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Read the ledger as SlurmUser does, in a process of its own."""
        script = (
            "import json,sqlite3,sys\n"
            "q=json.load(sys.stdin)\n"
            "c=sqlite3.connect('file:'+q['path']+'?mode=ro',uri=True,timeout=5)\n"
            "c.row_factory=sqlite3.Row\n"
            "print(json.dumps([dict(r) for r in c.execute(q['query'],q['parameters'])]))\n"
        )
        result = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", script],
            input=json.dumps(
                {
                    "path": str(self.state_dir / "ledger.sqlite3"),
                    "query": query,
                    "parameters": list(parameters),
                }
            ),
            user="slurm",
            group="slurm",
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=30,
            cwd="/",
        )
        if result.returncode != 0:
            raise RigError(f"ledger: {result.stderr.strip().splitlines()[-1:]}")
        rows: list[dict[str, Any]] = json.loads(result.stdout)
        return rows

    def open_liens(self, account: str | None = None) -> list[dict[str, Any]]:
        return self.ledger_rows(
            "SELECT * FROM liens WHERE state != 'ended' AND (?1 IS NULL OR account = ?1)", [account]
        )

    def bank_jobs(self) -> dict[str, dict[str, Any]]:
        """The bank's rows by its job id, through its API."""
        token = (self.etc_dir / "bank-token").read_text().strip()
        if not token.startswith("Token "):
            token = f"Token {token}"
        rows: dict[str, dict[str, Any]] = {}
        url: str | None = (
            f"http://127.0.0.1:{self.bank_port}/api/jobs/?page=1&start_time=0&end_time=4102444800"
        )
        for _ in range(1000):
            if url is None:
                break
            request = urllib.request.Request(url, headers={"Authorization": token})
            with urllib.request.urlopen(request, timeout=10) as reply:
                page = json.load(reply)
            for row in page["results"]:
                rows[row["jobslurmid"]] = row
            url = page["next"]
        return rows

    def bank_usage(self, account: str) -> Decimal:
        """What the bank counts against the account's allocation, SU."""
        shown = json.loads(self.bank("account", "show", account, "--json"))
        return Decimal(str(_find(shown, "usage", "usage_su", "used", "used_su")))

    def sacct_costs(self) -> dict[tuple[int, int], Decimal]:
        """(job id, submit time) → price x AllocCPUS x ElapsedRaw of every run that started and ended, SU.

        Without a charge are the system's faults, by default, and what root, SlurmUser or an operator cancelled.
        """
        admins = {"0", str(self.uid(SLURM_USER))}
        admins |= {str(self.uid(user)) for user in self.users if user == OPERATOR}
        result = subprocess.run(
            [
                "sacct", "-a", "-X", "-D", "-n", "-P", "-S", "now-2days", "-E", "now+1day",
                "-o", "JobIDRaw,Submit,Start,End,UID,Partition,AllocCPUS,ElapsedRaw,State,NodeList",
            ],
            env={**self.env(), "SLURM_TIME_FORMAT": "%s", "TZ": "UTC"},
            capture_output=True,
            text=True,
            timeout=60,
        )  # fmt: skip
        if result.returncode != 0:
            raise RigError(f"sacct: {result.stderr.strip()}")
        costs: dict[tuple[int, int], Decimal] = {}
        for line in result.stdout.splitlines():
            job, submit, start, end, uid, partition, cpus, elapsed, state, nodes = line.split("|")
            if nodes == "None assigned" or not start.isdigit() or not end.isdigit():
                continue  # never started
            if int(cpus) == 0 or not partition:
                continue  # its start has not reached slurmdbd yet
            if state.split()[0] in ("RUNNING", "PENDING", "SUSPENDED"):
                continue
            price = Decimal(self.prices.get(partition, "0"))
            if state in ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED") or (
                state.startswith("CANCELLED by ") and state.split()[2] in admins - {uid}
            ):
                price = Decimal(0)
            cost = (price * int(cpus) * int(elapsed) / 3600).quantize(
                Decimal("0.01"), ROUND_HALF_UP
            )
            costs[int(job), int(submit)] = cost
        return costs

    def settle(self, timeout_s: float = 60) -> None:
        """Until every ended run is charged and everything is delivered."""

        def settled() -> bool:
            if self.ledger_rows("SELECT COUNT(*) AS n FROM outbox")[0]["n"]:
                return False
            charged = self.ledger_rows(
                "SELECT job_id, submit_time FROM runs WHERE state = 'ended' AND charge_csu IS NOT NULL"
            )
            return set(self.sacct_costs()) == {
                (row["job_id"], row["submit_time"]) for row in charged
            }

        wait_until(settled, timeout_s, "the outbox to be empty and every ended run charged", 0.3)

    def books(self) -> list[Line]:
        """Every ended run in ledger, bank and sacct."""
        ledger = {
            (row["job_id"], row["submit_time"]): row
            for row in self.ledger_rows("SELECT * FROM runs WHERE state = 'ended'")
            if row["charge_csu"] is not None
        }
        bank = self.bank_jobs()
        sacct = self.sacct_costs()
        lines = []
        for key in sorted(set(ledger) | set(sacct)):
            row = ledger.get(key)
            at_bank = bank.pop(row["bank_job_id"], None) if row and row["bank_job_id"] else None
            lines.append(
                Line(
                    run=_run_name(key[0], row),
                    ledger_su=None if row is None else Decimal(row["charge_csu"]).scaleb(-2),
                    bank_su=None if at_bank is None else Decimal(at_bank["amount"]),
                    sacct_su=sacct.get(key),
                )
            )
        running = {
            row["bank_job_id"]
            for row in self.ledger_rows("SELECT bank_job_id FROM runs WHERE state = 'running'")
        }
        for job, row in bank.items():
            if job not in running:
                lines.append(
                    Line(
                        run=f"{job} (bank)",
                        ledger_su=None,
                        bank_su=Decimal(row["amount"]),
                        sacct_su=None,
                    )
                )
        return lines

    def end_all(self) -> None:
        """Cancel every job; until queue, outbox and liens are empty and the three books agree."""
        for user in self.users:
            self.run_as("root", ["scancel", "-u", user])
        wait_until(lambda: not self.squeue(), 60, "the queue to be empty", 0.2)
        self.settle()
        wait_until(lambda: not self.open_liens(), 45, "every lien to have ended", 0.3)
        self.assert_agreement()

    def assert_agreement(self) -> list[Line]:
        """Ledger, bank and sacct agree to the hundredth, run by run and in their sums."""
        lines = self.books()
        wrong = [line for line in lines if not line.agrees]
        assert not wrong, f"do not agree: {wrong}"
        for account in self.bank_funds:
            charged = sum(
                row["charge_csu"]
                for row in self.ledger_rows(
                    "SELECT charge_csu FROM runs WHERE state = 'ended' AND account = ?", [account]
                )
            )
            running = sum(
                row["bank_csu"]
                for row in self.ledger_rows(
                    "SELECT bank_csu FROM runs WHERE state = 'running' AND account = ?", [account]
                )
            )
            usage = self.bank_usage(account)
            expected = Decimal(charged + running).scaleb(-2)
            assert usage == expected, (
                f"{account}: the bank counts {usage} SU, the ledger {expected} SU"
            )
        return lines


def _run_name(job_id: int, row: Mapping[str, Any] | None) -> str:
    """As squeue writes it, with the restart if it is not the first run."""
    if row is None:
        return str(job_id)
    name = str(job_id)
    if row["array_job_id"] is not None and row["array_task_id"] is not None:
        name = f"{row['array_job_id']}_{row['array_task_id']}"
    return name + (f"-r{row['restart_count']}" if row["restart_count"] else "")


def _find(shown: Any, *names: str) -> Any:
    """The first of these keys, anywhere in a JSON answer."""
    if isinstance(shown, dict):
        for name in names:
            if name in shown and not isinstance(shown[name], (dict, list)):
                return shown[name]
        children = list(shown.values())
    elif isinstance(shown, list):
        children = shown
    else:
        children = []
    for child in children:
        try:
            return _find(child, *names)
        except KeyError:
            continue
    raise KeyError(names[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _connects(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
