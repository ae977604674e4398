# SPDX-License-Identifier: BSD-3-Clause
"""docs/tutorial-slurmrestd.md does what it says, against a real slurmrestd; and what the page does not show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import _sites
from tests.rig.banked import BankedCluster
from tests.rig.cluster import Node, wait_until
from tests.rig.restd import Slurmrestd

pytestmark = pytest.mark.timeout(240)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial-slurmrestd.md"
USER = "sb-alice"
NODES = tuple(Node(name=f"n{number}", cpus=4) for number in (1, 2, 3))


@pytest.fixture(scope="module")
def restd() -> Iterator[Slurmrestd]:
    cluster = BankedCluster(nodes=NODES)
    with Slurmrestd(cluster) as running:
        _sites.append(cluster)
        yield running
        _sites.remove(cluster)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def shell(restd: Slurmrestd, text: str, user: str = USER, **env: str) -> str:
    """As a user of the controller's host, with the system's Python and what is installed there."""
    path = f"{restd.cluster.stage_dir}/lib"
    prelude = f"export PYTHONPATH={path}; unset SLURM_BANKING; set -e\n"
    text = text.replace("http://127.0.0.1:6820", restd.url)
    text = re.sub(r"(?<!/)\bpython3\b", "/usr/bin/python3", text)
    result = restd.cluster.run_as(user, ["bash"], 120, input=prelude + text, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def banking(
    restd: Slurmrestd, *words: str, status: int = 0, user: str = USER, token: str | None = None
) -> Any:
    """``slurm-banking slurm ... --json``; the text on stderr where it fails without any."""
    env = {"SLURM_JWT": token or restd.scontrol_token(user)}
    argv = ["slurm-banking", "slurm", *words, "--url", restd.url, "--json"]
    result = restd.cluster.run_as(user, argv, 60, env=env)
    assert result.returncode == status, result.stdout + result.stderr
    return json.loads(result.stdout) if result.stdout else result.stderr


def test_the_python_of_the_tutorial_runs_from_top_to_bottom(restd: Slurmrestd) -> None:
    found = blocks("python")
    assert len(found) >= 6
    (token,) = [text for text in blocks("sh") if "scontrol token" in text]
    program = "\n".join(found)
    said = shell(restd, f"{token}\n/usr/bin/python3 - <<'PROGRAM'\n{program}\nPROGRAM\n")
    assert "primary slurmctld on" in said and "is up" in said
    assert "jobs submitted since" in said
    for node in NODES:
        assert f"{node.name} IDLE 0 of 4 CPUs in use" in said
    # Three CPUs for two minutes at 360 SU an hour.
    assert re.search(r"^accepted\n.*36\.00 SU", said, re.MULTILINE)
    assert re.search(r"^job \d+ is queued; .*36\.00 SU", said, re.MULTILINE)
    assert re.search(r"^\d+ hello-json (RUNNING|PENDING) ", said, re.MULTILINE)
    assert "hello is COMPLETED" in said
    assert "Slurm's number: " in said
    assert re.search(r"fc_alpha has [0-9.]+ SU available; this job could cost up to", said)


def test_the_command_line_of_the_tutorial_runs_from_top_to_bottom(restd: Slurmrestd) -> None:
    said = shell(restd, "\n".join(blocks("sh")))
    assert "is UP" in said and "jobs_submitted" in said
    assert re.search(r"^n3 +idle", said, re.MULTILINE)
    assert re.search(r"up to 36\.00 SU", said)
    (first,) = re.findall(r"^Submitted batch job (\d+)$", said, re.MULTILINE)
    assert re.search(rf"^{first} +hello +{USER} +fc_alpha +main ", said, re.MULTILINE)
    (cancelled,) = re.findall(r"^job (\d+): cancelled$", said, re.MULTILINE)
    restd.cluster.wait_job(int(cancelled), "CANCELLED")
    restd.cluster.scancel("root", "-u", USER)


def test_a_script_s_options_reach_slurm_and_cost_what_was_quoted(
    restd: Slurmrestd, tmp_path: Path
) -> None:
    cluster = restd.cluster
    assert isinstance(cluster, BankedCluster)
    script = cluster.home(USER) / "options.sh"
    lines = ["-A fc_alpha -p debug", "--time=3 --nodes=2-2 --ntasks=4 --cpus-per-task=2", "--comment='a b' -J opts",
             "--exclude=n1 --mem=100M --hold --requeue"]  # fmt: skip
    text = (
        "#!/bin/bash\n"
        + "".join(f"#SBATCH {line}\n" for line in lines)
        + 'echo "$PATH $GREETING" > seen\n'
    )
    cluster.write_file(script, text, owner=USER)
    taken = banking(restd, "submit", "options.sh", "--time=2", "--export=GREETING=hello")
    (job,) = cluster.jobs(taken["job_id"])
    assert (job["Partition"], job["JobName"], job["TimeLimit"]) == ("debug", "opts", "00:02:00")
    assert (job["NumNodes"], job["NumTasks"], job["CPUs/Task"]) == ("2-2", "4", "2")
    assert (job["Comment"], job["ExcNodeList"], job["Priority"]) == ("a b", "n1", "0")
    assert job["WorkDir"] == str(cluster.home(USER))
    liens: list[dict[str, Any]] = []

    def bound() -> bool:
        found = cluster.open_liens("fc_alpha")
        liens[:] = [one for one in found if one["job_id"] == taken["job_id"]]
        return bool(liens)

    wait_until(bound, 20, "the job's lien to be confirmed", 0.2)
    (lien,) = liens
    # Eight CPUs for two minutes at 180.5 SU an hour.
    assert taken["quote"]["estimate"]["cost_csu"] == lien["per_task_csu"] == 4814
    cluster.run_as("root", ["scontrol", "release", str(taken["job_id"])], check=True)
    cluster.wait_job(taken["job_id"], "COMPLETED")
    assert (cluster.home(USER) / "seen").read_text().endswith("bin hello\n")


def test_a_refusal_tells_the_reason_that_slurmrestd_drops(restd: Slurmrestd) -> None:
    cluster = restd.cluster
    script = cluster.home(USER) / "dear.sh"
    cluster.write_file(
        script, "#!/bin/bash\n#SBATCH --time=10:00:00 --nodes=3 --exclusive\ntrue\n", owner=USER
    )
    refused = banking(restd, "submit", "dear.sh", status=1)
    assert refused["job_id"] is None
    assert refused["refused"]["code"] == 2050
    assert "fc_alpha has" in refused["refused"]["reason"]
    env = {"SLURM_JWT": restd.scontrol_token(USER)}
    argv = ["slurm-banking", "slurm", "submit", "--url", restd.socket_url, str(script)]
    said = cluster.run_as(USER, argv, 60, env=env)
    assert said.returncode == 1
    assert said.stdout.count("fc_alpha has") == 1  # told once, with the quote
    assert said.stderr.startswith("slurm-banking: error: ") and len(said.stderr.splitlines()) == 1


def test_root_is_quoted_what_the_user_pays_for_whom_it_submits(
    restd: Slurmrestd, tmp_path: Path
) -> None:
    cluster = restd.cluster
    script = cluster.root / "root.sh"
    cluster.write_file(
        script, "#!/bin/bash\n#SBATCH --time=1 --chdir=/tmp --output=/dev/null\ntrue\n"
    )
    taken = banking(restd, "submit", str(script), "--as", "sb-carol", user="root")
    assert taken["quote"]["account"] == "fc_beta"
    assert cluster.job(taken["job_id"])["UserId"].startswith("sb-carol(")


def test_without_a_relay_jobs_are_submitted_without_an_estimate(restd: Slurmrestd) -> None:
    cluster = restd.cluster
    cluster.write_file(
        cluster.home(USER) / "small.sh", "#!/bin/bash\n#SBATCH --time=1\ntrue\n", owner=USER
    )
    argv = [
        "slurm-banking",
        "slurm",
        "submit",
        "--url",
        restd.url,
        "--socket",
        "/nonexistent/relay.sock",
        "small.sh",
    ]
    said = cluster.run_as(USER, argv, 60, env={"SLURM_JWT": restd.scontrol_token(USER)})
    assert said.returncode == 0, said.stderr
    first, *rest = said.stdout.splitlines()
    assert first.startswith("No estimate: relay /nonexistent/relay.sock: ")
    assert any("6.00 SU" in line for line in rest)  # the plugin's own message comes with the job id
    assert re.fullmatch(r"Submitted batch job \d+", rest[-1])


def test_a_job_that_slurm_takes_with_a_complaint_is_taken(restd: Slurmrestd) -> None:
    """slurmrestd 22.05 answers 200 with a job id and an error where nodes are down."""
    cluster = restd.cluster
    cluster.write_file(
        cluster.home(USER) / "down.sh", "#!/bin/bash\n#SBATCH -N3 -t1\ntrue\n", owner=USER
    )
    node = ["scontrol", "update", "nodename=n3"]
    cluster.run_as("root", [*node, "state=down", "reason=test"], check=True)
    try:
        taken = banking(restd, "submit", "down.sh")
    finally:
        cluster.run_as("root", [*node, "state=resume"], check=True)
    assert cluster.job(taken["job_id"])["JobState"] == "PENDING"
    assert taken["problems"]
    cluster.scancel("root", str(taken["job_id"]))


def test_each_thing_that_cannot_be_is_one_clear_line_and_its_status(restd: Slurmrestd) -> None:
    cluster = restd.cluster
    home = cluster.home(USER)
    # What the old versions cannot carry, and the newer ones.
    option = "--overcommit" if restd.newest == "v0.0.38" else "--hint=nomultithread"
    cluster.write_file(home / "other.sh", f"#!/bin/bash\n#SBATCH {option}\n", owner=USER)
    cluster.write_file(home / "unknown.sh", "#!/bin/bash\n#SBATCH --switches=1\n", owner=USER)
    cluster.write_file(home / "no.json", '{"script": "#!/bin/bash"}', owner=USER)
    for words, status, line in (
        (
            ["submit", "other.sh"],
            2,
            f"{option.split('=')[0]}: slurmrestd's {restd.newest} cannot carry it",
        ),
        (["submit", "unknown.sh"], 2, "unknown.sh: --switches=1: not carried"),
        (["submit", "no.json"], 2, "no.json: expected a job as in Slurm's manual"),
        (["submit", "missing.sh"], 2, "missing.sh: No such file or directory"),
        (["jobs", "999999"], 1, "job 999999: slurmctld does not know it"),
    ):
        argv = ["slurm-banking", "slurm", *words, "--url", restd.url]
        said = cluster.run_as(USER, argv, 60, env={"SLURM_JWT": restd.scontrol_token(USER)})
        assert said.returncode == status, (words, said)
        assert line in said.stderr and len(said.stderr.splitlines()) == 1, said.stderr
    # A job that waits: what has ended is ended, whoever asks (24.11; 22.05 asks whose it is first).
    waiting = str(cluster.sbatch(USER, "--time=1", "--begin=now+1hour"))
    others = banking(restd, "cancel", waiting, status=1, user="sb-mallory")
    assert list(others["refused"]) == [waiting]
    assert cluster.job(waiting)["JobState"] == "PENDING"
    cluster.scancel(USER, waiting)
