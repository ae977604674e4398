# SPDX-License-Identifier: BSD-3-Clause
"""slurmctld with something missing or broken: it starts or stops as configured, and its log says why."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.rig.banked import BankedCluster
from tests.rig.cluster import Cluster, RigError, wait_until

pytestmark = pytest.mark.timeout(180)


def broken_python(site: BankedCluster) -> str:
    """The package does not compile."""
    path = site.stage_dir / "lib" / "slurm_banking" / "boundary" / "embedded.py"
    path.write_text("def attach(:\n")
    return "SyntaxError"


def missing_package(site: BankedCluster) -> str:
    shutil.rmtree(site.stage_dir / "lib" / "slurm_banking")
    return "slurm_banking"


def broken_configuration(site: BankedCluster) -> str:
    text = site.bank_config.read_text().replace("main = 360", 'main = "much"')
    site.write_bank_config(text)
    return "[PartitionPrice] main"


BREAKS: dict[str, Callable[[BankedCluster], str]] = {
    "broken Python": broken_python,
    "missing package": missing_package,
    "broken configuration": broken_configuration,
}


def our_lines(site: BankedCluster) -> str:
    return "\n".join(line for line in site.log("slurmctld").splitlines() if "slurm_banking" in line)


@pytest.fixture(scope="module")
def breakable() -> Iterator[BankedCluster]:
    """Without a relay: what is looked at is slurmctld alone."""
    site = BankedCluster(relay='start = "none"')
    try:
        Cluster.start(site)
        shutil.copytree(site.stage_dir / "lib", site.root / "pristine")
        yield site
    finally:
        site.stop()


@pytest.fixture
def site(breakable: BankedCluster) -> Iterator[BankedCluster]:
    """slurmctld stopped, everything whole; whatever a test broke is mended after it."""
    site = breakable
    if site.pid("slurmctld") is not None:
        site.stop_daemon("slurmctld")
    (site.log_dir / "slurmctld.log").unlink(missing_ok=True)
    yield site
    shutil.rmtree(site.stage_dir / "lib")
    shutil.copytree(site.root / "pristine", site.stage_dir / "lib")
    away = site.root / "away"
    if away.exists():
        away.rename(site.state_dir)
    shutil.chown(site.state_dir, "slurm", "slurm")
    site.state_dir.chmod(0o700)
    site.policy = ""
    site.write_banking()


@pytest.mark.parametrize("how", list(BREAKS))
@pytest.mark.parametrize("on_error", ["accept", "reject", "abort"])
def test_a_broken_plugin_behaves_as_configured_and_says_why(
    site: BankedCluster, how: str, on_error: str
) -> None:
    site.policy = f'on_plugin_error = "{on_error}"'
    site.write_banking()
    word = BREAKS[how](site)
    if on_error == "abort":
        with pytest.raises(RigError, match="slurmctld"):
            site.start_slurmctld()
        assert word in our_lines(site) and "on_plugin_error=abort" in our_lines(site)
        return
    site.start_slurmctld()
    assert word in our_lines(site), "the reason is in the log"
    answer = site.try_sbatch("sb-alice", "--time=1")
    if on_error == "accept":
        assert answer.returncode == 0
        site.wait_job(int(answer.stdout), timeout_s=30)
        if how == "broken configuration":
            site.write_banking()  # mended: in force without a restart
            time.sleep(1.2)
            assert "could cost up to 6.00 SU" in site.try_sbatch("sb-alice", "--time=1").stderr
    else:
        assert answer.returncode != 0 and "sbatch: error:" in answer.stderr
    assert site.pid("slurmctld") is not None


@pytest.mark.parametrize("what", ["missing", "wrong owner", "open to others"])
def test_a_state_directory_that_cannot_be_used_is_named_and_jobs_go_on(
    site: BankedCluster, what: str
) -> None:
    state = site.state_dir
    if what == "missing":
        state.rename(site.root / "away")
    elif what == "wrong owner":
        shutil.chown(state, "root", "root")
    else:
        state.chmod(0o755)
    site.start_slurmctld()
    assert "ledger_unavailable" in our_lines(site) and str(state) in our_lines(site)
    answer = site.try_sbatch("sb-alice", "--time=1")
    assert answer.returncode == 0 and "could not be set aside" in answer.stderr


@pytest.fixture
def with_relay(make_site: Any) -> BankedCluster:
    site: BankedCluster = make_site(start=False)
    Cluster.start(site)
    return site


def test_a_missing_token_is_the_relays_line_and_jobs_go_on(with_relay: BankedCluster) -> None:
    site = with_relay
    token = site.etc_dir / "bank-token"
    wait_until(lambda: site.relay_pid() is not None, 20, "the relay to start")
    pid = site.relay_pid()
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: site.relay_pid() is None, 10, "the relay to end")
    token.unlink()
    site.restart_slurmctld()
    relay_log = site.state_dir / "relay.log"
    wait_until(lambda: str(token) in relay_log.read_text(), 20, "the relay to name the token")
    job = site.sbatch("sb-alice", "--time=1", script="sleep 1")

    def charged() -> list[dict[str, Any]]:
        return site.ledger_rows("SELECT * FROM runs WHERE job_id = ? AND state = 'ended'", [job])

    wait_until(charged, 30, "the run to be charged in the ledger")
    assert site.ledger_rows("SELECT COUNT(*) AS n FROM outbox")[0]["n"] >= 1, (
        "kept until there is one"
    )
    site.make_token_again(token)
    site.settle()
    site.assert_agreement()

    # and one that others can read: named, with what to do
    token.chmod(0o644)
    result = site.banking("check-config", check=False)
    said = result.stdout + result.stderr
    assert result.returncode != 0 and str(token) in said and "chmod 600" in said
