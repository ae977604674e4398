# SPDX-License-Identifier: BSD-3-Clause
"""The real plugins with the real package and a real ledger, in a slurmctld that calls them as nobody should."""

from __future__ import annotations

import collections
import os
import re
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from slurm_banking.ledger import Ledger
from slurm_banking.records import Funds, FundsKind
from tests.plugins.conftest import ROOT, Built, Layout, build, lay_out

HERE = Path(__file__).resolve().parent

#: `make sanitize` sets these; without them the tests are a slice of it.
THOROUGH = bool(os.environ.get("BANKING_THOROUGH"))
CALLS = int(os.environ.get("BANKING_FUZZ_CALLS", "20000"))
SEED = int(os.environ.get("BANKING_FUZZ_SEED", "20261121"))

CLUSTER = "testcluster"  #: of the fake slurmctld
PLENTY_CSU = 4 * 10**18

CONFIG = """\
[PartitionPrice]
normal = 1
long = 1.5
whole = {{ cpu = 1.67, mem_gb = 0.07, gpu = 30, "gpu:a100" = 60, combine = "max" }}
[QosMultiplier]
high = 2
[API]
url = "http://127.0.0.1:9/api"
[Policy]
mode = "{mode}"
contact = "Frag die Hilfe: \u00fc\u20ac"
warn_below = 0.5
unlimited_time = 30
[Ledger]
state_dir = "{state}"
[Relay]
start = "none"
socket = "{state}/relay.sock"
"""


def build_host(
    scratch: Path, *, sanitize: bool, change: Mapping[str, tuple[str, str]] | None = None
) -> Built:
    """The plugins and their host; `change`: of a file of csrc, what to replace by what, to see that it is found."""
    csrc = ROOT / "csrc"
    if change:
        csrc = scratch / "changed" / "csrc"
        shutil.copytree(ROOT / "csrc", csrc)
        (scratch / "changed" / "docker").symlink_to(ROOT / "docker")
        for name, (before, after) in change.items():
            replace_in(csrc / name, before, after)
    return build(scratch, sanitize=sanitize, slurmctld=HERE / "hostile_slurmctld.c", csrc=csrc)


def replace_in(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1, (path, before)
    path.write_text(text.replace(before, after))


class Site:
    """What the plugins find: the package as it is in the tree, a configuration, a ledger whose accounts have funds."""

    def __init__(self, built: Built, *, mode: str = "strict-allocation") -> None:
        self.built = built
        self.mode = mode
        self.layout: Layout = lay_out(built)
        shutil.rmtree(self.layout.package)
        shutil.copytree(
            ROOT / "slurm_banking", self.layout.package, ignore=shutil.ignore_patterns("server")
        )
        self.layout.package.chmod(0o755)
        self.state = built.scratch / "state"
        shutil.rmtree(self.state, ignore_errors=True)
        self.state.mkdir(mode=0o700)
        self.configure()
        self.fund()

    @property
    def ledger_path(self) -> Path:
        return self.state / "ledger.sqlite3"

    def configure(self, extra: str = "") -> None:
        self.layout.config.write_text(CONFIG.format(state=self.state, mode=self.mode) + extra)

    def ledger(self) -> Ledger:
        return Ledger(str(self.state), CLUSTER)

    def fund(self) -> None:
        """What the relay would have written: enough in astro, little in bio, geo without a limit."""
        ledger = self.ledger()
        with ledger.transaction() as tx:
            for account, kind, csu in (
                ("astro", FundsKind.LIMITED, PLENTY_CSU),
                ("bio", FundsKind.LIMITED, 5_000),
                ("geo", FundsKind.UNLIMITED, None),
            ):
                for user_id in (None, 1001, 1002, 1003, 1004):
                    tx.put_funds(
                        Funds(
                            account=account,
                            user_id=user_id,
                            kind=kind,
                            limit_csu=csu,
                            remaining_csu=csu,
                            allocation="1",
                            start_time=0,
                            read_at=int(time.time()),
                        )
                    )
            tx.set_meta("complete", "1")
        ledger.close()

    def problems(self) -> Sequence[str]:
        ledger = self.ledger()
        try:
            with ledger.transaction(write=False) as tx:
                return tx.check()
        finally:
            ledger.close()


#: The clean log's own lines, and Slurm's: time (or name, by release) and level are the log's, not the text's.
_LINE = re.compile(rb"(?:slurmctld:|\[[-0-9T:.]+\]) (?:error: |debug: )?(?:slurm_banking: )?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Log:
    """Looks at each line as it comes; keeps the last ones, the bad ones, and how often which event was logged."""

    def __init__(self) -> None:
        self.last: collections.deque[str] = collections.deque(maxlen=200)
        self.bad: list[bytes] = []
        self.errors: list[str] = []
        self.events: collections.Counter[str] = collections.Counter()
        self.longest = 0

    def take(self, raw: bytes) -> None:
        line = raw.rstrip(b"\n")
        text = line.decode("utf-8", "replace")
        self.last.append(text[:2000])
        self.longest = max(self.longest, len(line))
        ours = b"slurm_banking: " in line
        try:
            line.decode("utf-8")
            broken = bool(_CONTROL.search(text))
        except UnicodeDecodeError:
            broken = True
        if not _LINE.match(line) or (ours and broken):
            if len(self.bad) < 20:
                self.bad.append(line[:300])
        elif ours:
            event = text.partition("slurm_banking: ")[2].partition(" ")[0]
            self.events[event] += 1
            if event == "plugin_error" and len(self.errors) < 50:
                self.errors.append(text[:400])


class Host:
    """One process: one command, one answer. Ends with its context; killed if an answer takes too long."""

    def __init__(
        self,
        site: Site,
        *,
        environment: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> None:
        self.site = site
        self.log = Log()
        self._at = site.built.scratch / "fuzz-at"
        self._at.write_bytes(bytes(16))
        self._process = subprocess.Popen(
            [*before, str(site.built.fake_slurmctld)],
            env={
                "SLURM_CONF": str(site.layout.etc / "slurm.conf"),
                "FUZZ_AT": str(self._at),
                **site.built.environment,
                **(environment or {}),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.take(line)

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            status = self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._reader.join(10)
        if kind is None:
            assert status == 0, self.told(f"ended with {status}")

    def told(self, what: str) -> str:
        seed, number = struct.unpack("QQ", self._at.read_bytes())
        log = "\n".join(list(self.log.last)[-40:])
        return f"{what}; last call of the fuzzer: fuzz {seed} {number} 1; its log ends:\n{log}"

    def ask(self, command: str, *, timeout_s: float = 100) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        watch = threading.Timer(timeout_s, self._process.kill)
        watch.start()
        try:
            self._process.stdin.write(command.encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline().decode("utf-8", "replace").rstrip("\n")
        except BrokenPipeError:
            answer = ""
        finally:
            watch.cancel()
        if not answer:
            self._process.wait(10)
            self._reader.join(10)
            raise AssertionError(self.told(f"no answer to {command[:200]!r}"))
        return answer

    def counts(self, command: str, *, timeout_s: float = 100) -> dict[str, int]:
        """The answer as numbers by name."""
        answer = self.ask(command, timeout_s=timeout_s)
        return {name: int(value) for name, value in re.findall(r"(\w+)=(-?\d+)", answer)}

    def load(self) -> None:
        for command in (self.site.layout.load_job_submit, self.site.layout.load_jobcomp):
            assert self.ask(command) == "loaded", self.told(command)


Make = Callable[[Built], Site]


def with_environment(built: Built, **environment: str) -> Built:
    return replace(built, environment={**built.environment, **environment})
