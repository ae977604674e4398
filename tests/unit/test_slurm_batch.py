# SPDX-License-Identifier: BSD-3-Clause
"""Batch scripts and JSON jobs on their way to slurmrestd: nothing is lost on it, and the quote is of the same job."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_banking.cli.sbatch import OptionError
from slurm_banking.slurm import batch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "#!/bin/bash\n{}srun hostname\n"


def read(*lines: str, words: tuple[str, ...] = ()) -> batch.Batch:
    text = SCRIPT.format("".join(f"#SBATCH {line}\n" for line in lines))
    return batch.read(text, path="/home/alice/job.sh", words=words)


def job(made: batch.Batch, minor: int) -> Mapping[str, Any]:
    body = made.job(
        minor, environment={"PATH": "/bin", "SLURM_JWT": "secret"}, directory="/home/alice"
    )
    assert body["script"] == made.script
    found: Mapping[str, Any] = body["job"]
    return found


def test_a_script_gets_the_name_directory_and_environment_that_slurm_wants() -> None:
    assert job(read(), 38) == {
        "name": "job.sh",
        "current_working_directory": "/home/alice",
        "environment": {"PATH": "/bin"},
    }


def tri(number: int) -> dict[str, Any]:
    return {"set": True, "infinite": False, "number": number}


@pytest.mark.parametrize(
    ("line", "old", "new"),
    [
        ("-A astro", {"account": "astro"}, {"account": "astro"}),
        ("--time=1:30", {"time_limit": "1:30"}, {"time_limit": tri(2)}),
        ("-t UNLIMITED", {"time_limit": "UNLIMITED"}, {"time_limit": {"set": True, "infinite": True, "number": 0}}),
        ("--nodes=2-4", {"nodes": "2-4"}, {"nodes": "2-4"}),
        ("-n 12 -c 2", {"tasks": 12, "cpus_per_task": 2}, {"tasks": 12, "cpus_per_task": 2}),
        ("--tasks-per-node 3", {"tasks_per_node": 3}, {"tasks_per_node": 3}),
        ("--mem=2G", {"memory_per_node": "2G"}, {"memory_per_node": tri(2048)}),
        ("--mem-per-cpu=500", {"memory_per_cpu": "500"}, {"memory_per_cpu": tri(500)}),
        ("--gres=gpu:a100:2", {"gres": "gpu:a100:2"}, {"tres_per_node": "gres/gpu:a100:2"}),
        ("-G a100:2", {"gpus": "a100:2"}, {"tres_per_job": "gres/gpu:a100:2"}),
        ("--cpus-per-gpu=4", {"cpus_per_gpu": "4"}, {"cpus_per_tres": "gres/gpu:4"}),
        ("-x n1,n2", {"exclude_nodes": "n1,n2"}, {"excluded_nodes": ["n1", "n2"]}),
        ("-w n3", {"nodelist": "n3"}, {"required_nodes": ["n3"]}),
        ("--exclusive", {"exclusive": "exclusive"}, {"shared": ["none"]}),
        ("--exclusive=user", {"exclusive": "user"}, {"shared": ["user"]}),
        ("-s", {"oversubscribe": True}, {"shared": ["oversubscribe"]}),
        ("--no-requeue", {"no_requeue": True}, {"requeue": False}),
        ("--mail-type=end,fail", {"mail_type": "end,fail"}, {"mail_type": ["END", "FAIL"]}),
        ("--open-mode=append", {"open_mode": "append"}, {"open_mode": ["APPEND"]}),
        ("--output=out.%j -H", {"standard_output": "out.%j", "hold": True}, {"standard_output": "out.%j", "hold": True}),
        ("--array=1-10%2", {"array": "1-10%2"}, {"array": "1-10%2"}),
        ("--chdir=/scratch", {"current_working_directory": "/scratch"}, {"current_working_directory": "/scratch"}),
    ],
)  # fmt: skip
def test_each_option_has_its_field_in_either_kind_of_version(
    line: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    plain = {
        "name": "job.sh",
        "current_working_directory": "/home/alice",
        "environment": {"PATH": "/bin"},
    }
    assert job(read(line), 38) == {**plain, **old}
    assert job(read(line), 42) == {**plain, **new}


def test_gpus_are_written_as_the_version_has_them() -> None:
    assert job(read("--gpus=2"), 40)["tres_per_job"] == "gres:gpu:2"
    assert job(read("--gpus=2"), 41)["tres_per_job"] == "gres/gpu:2"


def test_what_is_typed_counts_before_the_script() -> None:
    made = read("--time=60 --ntasks=4", words=("--time=5",))
    assert job(made, 38)["time_limit"] == "5"
    assert made.quote_options() == {"time_limit_min": 5, "num_tasks": 4}


@pytest.mark.parametrize(
    ("line", "minor", "told"),
    [
        ("--overcommit", 38, "--overcommit: slurmrestd's v0.0.38 cannot carry it"),
        ("--cores-per-socket=4", 41, "--cores-per-socket: slurmrestd's v0.0.41 cannot carry it"),
        ("--signal=USR1@60", 42, "--signal: slurmrestd's v0.0.42 cannot carry it"),
        ("--switches=1", 38, "/home/alice/job.sh: --switches=1: not carried"),
        ("--time=soon", 38, "/home/alice/job.sh: --time=soon: expected a time"),
        ("--mem=much", 38, "/home/alice/job.sh: --mem=much: expected a size"),
        ("--ntasks=none", 38, "/home/alice/job.sh: --ntasks=none: expected a whole number"),
        ("hetjob", 38, "line 2: a heterogeneous job"),
    ],
)  # fmt: skip
def test_an_option_is_carried_or_named_but_never_dropped(line: str, minor: int, told: str) -> None:
    with pytest.raises(OptionError) as error:
        job(read(line), minor)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("script", ["", "srun hostname\n", "\n#!/bin/sh\n", "#!/bin/sh\n\0"])
def test_what_is_no_script_is_refused(script: str) -> None:
    with pytest.raises(OptionError):
        batch.read(script)


def test_options_of_sbatch_itself_do_nothing() -> None:
    assert job(read("--parsable --quiet"), 38) == job(read(), 38)


options = st.fixed_dictionaries(
    {},
    optional={
        "partition": st.sampled_from(["main", "a,b"]),
        "account": st.just("astro"),
        "qos": st.just("high"),
        "time": st.sampled_from(["5", "1:30:00", "2-0", "UNLIMITED"]),
        "nodes": st.sampled_from(["2", "2-4"]),
        "ntasks": st.integers(1, 100),
        "cpus_per_task": st.integers(1, 64),
        "ntasks_per_node": st.integers(1, 8),
        "mem": st.sampled_from(["500", "4G"]),
        "exclusive": st.just(True),
        "array": st.just("0-9"),
        "gpus_per_node": st.sampled_from(["2", "a100:2"]),
        "threads_per_core": st.integers(1, 2),
        "hold": st.just(True),
    },
)


@given(options, st.sampled_from([36, 38, 39, 40, 42, 46]))
def test_a_job_in_json_is_quoted_as_the_script_that_it_was(
    given: dict[str, Any], minor: int
) -> None:
    made = batch.read(SCRIPT.format(""), words=batch.words_of(given))
    body = batch.complete(made.job(minor, environment={"PATH": "/bin"}, directory="/"))
    wanted = {key: value for key, value in made.quote_options().items() if key != "name"}
    found = {key: value for key, value in batch.quote_options_of(body).items() if key != "name"}
    assert found == wanted


def test_a_job_of_slurm_s_manual_is_completed_and_quoted() -> None:
    body = {"job": {"tasks": 2, "nodes": [2, 4], "cpus_per_task": 3, "time_limit": 10, "name": "test"},
            "script": "#!/bin/bash\nsrun hostname\n"}  # fmt: skip
    made = batch.complete(
        body, environment={"PATH": "/bin", "HOME": "/home/alice"}, directory="/tmp"
    )
    assert made["job"]["environment"] == {"PATH": "/bin", "HOME": "/home/alice"}
    assert (made["job"]["current_working_directory"], made["job"]["name"]) == ("/tmp", "test")
    assert batch.quote_options_of(made) == {
        "num_tasks": 2, "min_nodes": 2, "max_nodes": 4, "cpus_per_task": 3, "time_limit_min": 10, "name": "test",
    }  # fmt: skip
    own = {"environment": {"A": "b"}, "cwd": "/x", "job_name": "y"}
    assert batch.complete({**body, "job": own})["job"] == own


@pytest.mark.parametrize(
    "body", [{}, {"job": []}, {"jobs": [{}], "script": "#!/bin/sh"}, {"job": {}}, {"job": {}, "script": "true"}]
)  # fmt: skip
def test_what_is_no_job_is_one_line_that_says_what_was_expected(body: Mapping[str, Any]) -> None:
    with pytest.raises(OptionError, match="expected (a job as in|text that begins)"):
        batch.complete(body)


def test_the_environment_is_small_unless_more_is_asked_for_and_never_has_the_token() -> None:
    mine = {"PATH": "/bin", "HOME": "/home/alice", "EDITOR": "vi", "SLURM_JWT": "secret"}
    few = {"PATH": "/bin", "HOME": "/home/alice"}
    assert batch.exported(None, mine) == few
    assert batch.exported("ALL", mine) == {**few, "EDITOR": "vi"}
    assert batch.exported("NONE", mine) == {"PATH": "/bin"}
    assert batch.exported("EDITOR,A=b", mine) == {**few, "EDITOR": "vi", "A": "b"}
    assert batch.exported("SLURM_JWT", mine) == few
    assert batch.exported(None, {}) == {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def test_the_names_up_to_v38_are_those_that_slurmrestd_22_05_takes() -> None:
    """From Slurm's own table of parameters (job_params in its v0.0.38 plugin), those that are not disabled."""
    taken = set(
        "account array begin_time comment constraints core_specification cores_per_socket cpu_binding_hint cpus_per_gpu "
        "cpus_per_task current_working_directory dependency exclude_nodes exclusive gpus gpus_per_node gpus_per_socket "
        "gpus_per_task gres hold licenses mail_type mail_user memory_per_cpu memory_per_gpu memory_per_node "
        "minimum_cpus_per_node name nice no_requeue nodelist nodes ntasks_per_gpu open_mode oversubscribe partition prefer qos "
        "requeue reservation signal sockets_per_node standard_error standard_input standard_output tasks tasks_per_core "
        "tasks_per_node tasks_per_socket thread_specification threads_per_core time_limit time_minimum wckey".split()
    )
    assert {option.old for option in batch.OPTIONS if option.old is not None} == taken


def test_the_names_of_v42_are_those_that_slurmrestd_24_11_describes() -> None:
    """From its own specification (slurmrestd --generate-openapi-spec): the fields of a job that an option here stands for."""
    described = set(
        "account array begin_time comment constraints core_specification cpus_per_task cpus_per_tres "
        "current_working_directory dependency excluded_nodes hold licenses mail_type mail_user memory_per_cpu memory_per_node "
        "memory_per_tres minimum_cpus_per_node name nice nodes ntasks_per_tres open_mode overcommit partition prefer qos requeue "
        "required_nodes reservation shared sockets_per_node standard_error standard_input standard_output tasks tasks_per_core "
        "tasks_per_node tasks_per_socket thread_specification threads_per_core time_limit time_minimum tres_per_job "
        "tres_per_node tres_per_socket tres_per_task wckey".split()
    )
    assert {option.key(42) for option in batch.OPTIONS} - {None} == described
    assert {option.key(40) for option in batch.OPTIONS} - {None} == described | {"cores_per_socket"}


def test_connect_costs_nothing_until_it_is_called() -> None:
    script = "import sys, json, slurm_banking.slurm as s; s.connect; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        ["/usr/bin/python3", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(result.stdout))
    assert (
        not {"requests", "argparse", "slurm_banking.config", "slurm_banking.slurm.everyday"}
        & loaded
    )
