# SPDX-License-Identifier: BSD-3-Clause
"""slurmctld with something missing or broken: it starts or stops as configured, and its log says why."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rig.banked import BankedCluster
from tests.rig.cluster import RigError, wait_until

pytestmark = pytest.mark.timeout(180)


def broken_python(site: BankedCluster) -> str:
    """The package does not compile."""
    path = site.stage_dir / "lib" / "slurm_banking" / "boundary" / "embedded.py"
    path.write_text("def attach(:\n")
    return "SyntaxError"


def missing_package(site: BankedCluster) -> str:
    (site.stage_dir / "lib" / "slurm_banking").rename(site.root / "gone")
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


def restart_broken(site: BankedCluster, how: str, on_error: str) -> str:
    site.stop_daemon("slurmctld")
    site.policy = f'on_plugin_error = "{on_error}"'
    site.write_banking()
    word = BREAKS[how](site)
    (site.log_dir / "slurmctld.log").unlink()
    site.start_slurmctld()
    return word


@pytest.mark.parametrize("how", list(BREAKS))
@pytest.mark.parametrize("on_error", ["accept", "reject", "abort"])
def test_a_broken_plugin_behaves_as_configured_and_says_why(
    make_site: Any, how: str, on_error: str
) -> None:
    site: BankedCluster = make_site(relay='start = "none"', start=False)
    site.prepare()
    Cluster_start(site)
    if on_error == "abort":
        with pytest.raises(RigError, match="slurmctld"):
            restart_broken(site, how, on_error)
        word = {"broken Python": "SyntaxError", "missing package": "slurm_banking"}.get(how, "main")
        assert word in our_lines(site)
        assert "abort" in our_lines(site)
        return
    word = restart_broken(site, how, on_error)
    assert word in our_lines(site), "the reason is in the log"
    answer = site.try_sbatch("sb-alice", "--time=1")
    if on_error == "accept":
        assert answer.returncode == 0
        site.wait_job(int(answer.stdout), timeout_s=30)
    else:
        assert answer.returncode != 0
        assert "sbatch: error:" in answer.stderr
    assert site.pid("slurmctld") is not None


def Cluster_start(site: BankedCluster) -> None:
    """Started without waiting for a relay, which these clusters do not have."""
    from tests.rig.cluster import Cluster

    Cluster.start(site)


def test_a_missing_token_is_the_relays_line_and_jobs_go_on(make_site: Any) -> None:
    site: BankedCluster = make_site(start=False)
    site.prepare()
    token = site.etc_dir / "bank-token"
    Cluster_start(site)
    token.unlink()
    for pid in [site.relay_pid()]:
        if pid is not None:
            import os
            import signal

            os.kill(pid, signal.SIGTERM)
    site.restart_slurmctld()
    relay_log = site.state_dir / "relay.log"
    wait_until(
        lambda: relay_log.exists() and str(token) in relay_log.read_text(), 20, "the relay to name the token"
    )
    answer = site.try_sbatch("sb-alice", "--time=1", script="sleep 1")
    assert answer.returncode == 0
    job = int(answer.stdout)

    def charged() -> list[dict[str, Any]]:
        return site.ledger_rows("SELECT * FROM runs WHERE job_id = ? AND state = 'ended'", [job])

    wait_until(charged, 30, "the run to be charged in the ledger")
    assert site.ledger_rows("SELECT COUNT(*) AS n FROM outbox")[0]["n"] >= 1, "kept until there is one"
    site.make_token_again(token)
    site.settle()
    site.assert_agreement()


def test_a_token_that_others_can_read_is_refused_by_name(make_site: Any) -> None:
    site: BankedCluster = make_site(start=False)
    site.prepare()
    Cluster_start(site)
    token = site.etc_dir / "bank-token"
    token.chmod(0o644)
    result = site.banking("check-config", check=False)
    assert result.returncode != 0
    assert str(token) in result.stdout + result.stderr and "chmod 600" in result.stdout + result.stderr


@pytest.mark.parametrize("what", ["missing", "wrong owner", "open to others"])
def test_a_state_directory_that_cannot_be_used_is_named_and_jobs_go_on(make_site: Any, what: str) -> None:
    site: BankedCluster = make_site(relay='start = "none"', start=False)
    site.prepare()
    Cluster_start(site)
    site.stop_daemon("slurmctld")
    (site.log_dir / "slurmctld.log").unlink()
    state: Path = site.state_dir
    if what == "missing":
        state.rename(site.root / "away")
    elif what == "wrong owner":
        import shutil

        shutil.chown(state, "root", "root")
    else:
        state.chmod(0o755)
    site.start_slurmctld()
    time.sleep(0.5)
    assert "ledger_unavailable" in our_lines(site) and str(state) in our_lines(site)
    answer = site.try_sbatch("sb-alice", "--time=1")
    assert answer.returncode == 0 and "could not be set aside" in answer.stderr
