# SPDX-License-Identifier: BSD-3-Clause
"""What an operator sees of a running cluster: each call of a hook logged once, counted once, told to Prometheus."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from slurm_banking import counters
from slurm_banking.cli.health import OK, WARNING
from tests.rig.banked import BankedCluster
from tests.rig.cluster import RigError, wait_until
from tests.unit.test_engine import EVENT, canonical
from tests.unit.test_health import LINE
from tests.unit.test_metrics import Family, free_port, parse, said

pytestmark = pytest.mark.timeout(300)

#: Generous: the machine may have other things to do.
WAIT_S = 60


class Observed(BankedCluster):
    def __init__(self, **options: Any) -> None:
        self.metrics_port = free_port()
        super().__init__(relay=f'metrics = "127.0.0.1:{self.metrics_port}"', **options)

    def canonical_lines(self) -> list[dict[str, str]]:
        """What the engine in slurmctld logged of calls, since the cluster was started."""
        found = []
        for line in self.log("slurmctld").splitlines():
            text = line.partition("slurm_banking: ")[2]
            if EVENT.match(text):
                found.append(canonical(text))
        return found

    def counted(self) -> counters.Reading:
        reading = counters.read(str(self.state_dir))
        assert reading is not None
        return reading

    def metrics(self) -> dict[str, Family]:
        answer = said(self.metrics_port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        return parse(answer.partition(b"\r\n\r\n")[2].decode())

    def differences(self) -> list[str]:
        """Where the counters and the log do not say the same."""
        reading = self.counted()
        lines = self.canonical_lines()
        found = []
        for hook in counters.HOOKS:
            logged = [line for line in lines if line["hook"] == hook]
            if reading.times[hook].count != len(logged):
                found.append(f"{hook}: {reading.times[hook].count} timed, {len(logged)} logged")
            if hook not in counters.DECIDING:
                continue
            for outcome in ("accepted", "refused", "undecided"):
                for reason in counters.REASONS:
                    told = sum(
                        line["event"].endswith(f"_{outcome}") and line["reason"] == reason
                        for line in logged
                    )
                    count = reading.decisions[hook, outcome, reason]
                    if count != told:
                        found.append(f"{hook} {outcome} {reason}: {count} counted, {told} logged")
        return found

    def assert_counted_as_logged(self) -> int:
        """How many calls that were. slurmctld may be in one just now."""
        try:
            wait_until(lambda: not self.differences(), WAIT_S, "counters as logged")
        except RigError:
            pytest.fail("; ".join(self.differences()))
        return len(self.canonical_lines())


@pytest.fixture(scope="module")
def site():  # type: ignore[no-untyped-def]
    with Observed() as running:
        yield running


def test_each_call_of_a_hook_is_one_line_and_one_count(site: Observed) -> None:
    tries = 0
    for _ in range(12):
        for user, options in (
            ("sb-alice", ["--time=1"]),
            ("sb-alice", ["--time=1", "--array=0-3"]),
            ("sb-alice", ["--time=1", "-p", "unpriced"]),
            ("sb-alice", ["--time=1-00:00:00"]),
        ):
            site.try_sbatch(user, *options, script="true")
            tries += 1
    held = site.sbatch("sb-alice", "--time=1", "--hold", script="true")
    site.run_as("sb-alice", ["scontrol", "update", f"jobid={held}", "timelimit=2"])
    site.scancel("sb-alice", str(held))
    wait_until(lambda: not site.squeue(), WAIT_S, "every job to have run", 0.3)
    site.settle()
    calls = site.assert_counted_as_logged()
    submissions = [line for line in site.canonical_lines() if line["hook"] == "submit"]
    assert len(submissions) >= tries + 1
    events = {line["event"] for line in submissions} - {
        "submission_undecided"
    }  # where the ledger was busy
    assert events == {"submission_accepted", "submission_refused"}
    assert calls > 2 * tries


def test_counts_go_on_when_slurmctld_is_killed_reconfigured_and_its_ledger_lost(
    site: Observed,
) -> None:
    site.sbatch("sb-alice", "--time=1", script="true")
    site.settle()
    created = site.counted().created
    before = site.assert_counted_as_logged()
    time.sleep(
        6
    )  # it saves what it knows every five seconds; what a kill makes it forget is for the fault tests
    site.restart_slurmctld(kill=True)
    site.sbatch("sb-alice", "--time=1", script="true")
    site.reconfigure()
    site.sbatch("sb-alice", "--time=1", script="true")
    site.settle()
    # Each of the two was submitted and ended; what was told before the kill is still there.
    wait_until(lambda: len(site.canonical_lines()) >= before + 4, WAIT_S, "the ends of both")
    site.assert_counted_as_logged()
    assert site.counted().created == created
    (site.state_dir / counters.FILE_NAME).unlink()
    wait_until(lambda: _counts_again(site), WAIT_S, "counters in a new file")
    site.settle()
    site.assert_counted_as_logged()


def _counts_again(site: Observed) -> bool:
    site.sbatch("sb-alice", "--time=1", script="true")
    return counters.read(str(site.state_dir)) is not None


def test_slurmctld_listens_nowhere_for_it_and_maps_no_counters(site: Observed) -> None:
    pid = site.pid("slurmctld")
    assert pid is not None
    assert "libpython3" in Path(f"/proc/{pid}/maps").read_text(), "the right process"
    assert str(site.state_dir / counters.FILE_NAME) not in Path(f"/proc/{pid}/maps").read_text()
    descriptors = [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]  # fmt: skip
    assert descriptors.count(site.state_dir / counters.FILE_NAME) == 1
    assert (site.state_dir / counters.FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_prometheus_reads_what_slurmctld_counted_and_the_relay_knows(site: Observed) -> None:
    held = site.sbatch("sb-alice", "--time=10", "--hold", script="true")
    site.wait_job(held, "PENDING")

    def told() -> bool:
        return _value(site, "liens", state="queued") == len(site.open_liens()) > 0

    wait_until(told, WAIT_S, "the liens of the ledger in the metrics", 0.5)
    assert float(_value(site, "liens_su", state="queued")) > 0
    logged = [line for line in site.canonical_lines() if line["event"] == "submission_accepted"]
    assert _value(site, "decisions_total", hook="submit", outcome="accepted", reason="fits") == len(logged)  # fmt: skip
    assert _value(site, "ledger_complete") == 1 and _value(site, "bank_away") == 0
    assert _value(site, "deliveries_total", result="ends") > 0
    printed = parse(site.banking("metrics", user="root").stdout)
    assert printed.keys() == site.metrics().keys()
    assert site.banking("metrics", user="sb-alice", check=False).returncode != 0
    site.scancel("sb-alice", str(held))


def _value(site: Observed, name: str, **labels: str) -> Any:
    name = f"slurm_banking_{name}"
    samples = site.metrics()[name].samples
    return samples.get((name, tuple(sorted(labels.items()))))


def test_health_is_well_for_anybody_and_says_so_when_the_bank_is_away(site: Observed) -> None:
    site.settle()
    well = site.banking("health", user="sb-alice")
    assert well.returncode == OK and LINE.fullmatch(well.stdout.strip()), well.stdout
    site.stop_bank()
    try:
        job = site.sbatch("sb-alice", "--time=1", script="true")
        site.wait_job(job, "COMPLETED")

        def worse() -> bool:
            told = site.banking("health", "--bank-away-s", "1,100000", user="sb-alice", check=False)
            return told.returncode == WARNING and "the bank has not answered for" in told.stdout

        wait_until(worse, WAIT_S, "a warning")
        assert _value(site, "bank_away") == 1
        assert re.search(r"bank_away=\d+s;1;100000;0", site.banking("health", "--bank-away-s", "1,100000", check=False).stdout)  # fmt: skip
    finally:
        site.start_bank()
    site.settle()
    wait_until(lambda: site.banking("health", check=False).returncode == OK, WAIT_S, "well again")


def test_no_port_is_open_where_none_is_configured(make_site: Any) -> None:
    site = make_site()
    pid = site.relay_pid()
    assert pid is not None
    table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    mine = {
        match[1]
        for path in Path(f"/proc/{pid}/fd").iterdir()
        if path.is_symlink() and (match := re.fullmatch(r"socket:\[(\d+)\]", str(path.readlink())))
    }
    listening = [line for line in table if line.split()[3] == "0A" and line.split()[9] in mine]
    assert not listening
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", free_port())) != 0
