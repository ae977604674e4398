# SPDX-License-Identifier: BSD-3-Clause
"""Options are read as sbatch reads them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

import pytest

from slurm_banking.cli import sbatch
from slurm_banking.relay import as_sbatch


def options(
    *words: str, script: Optional[str] = None, environment: Optional[Mapping[str, str]] = None
) -> Dict[str, Any]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    sbatch.add_options(parser)
    return sbatch.request_options(vars(parser.parse_args(words)), script, environment or {})


@pytest.mark.parametrize(
    ("typed", "minutes"),
    [
        ("90", 90),
        ("90:30", 91),
        ("1:30:00", 90),
        ("1:30:01", 91),
        ("2-12", 3600),
        ("2-12:30", 3630),
        ("2-12:30:01", 3631),
        ("UNLIMITED", -1),
        ("infinite", -1),
        ("0", -1),
        ("0:01", 1),
    ],
)
def test_time_limits(typed: str, minutes: int) -> None:
    assert sbatch.time_limit(typed) == minutes


@pytest.mark.parametrize("typed", ["", "x", "1:2:3:4", "-5", "1-", "1.5", "1 2"])
def test_what_is_no_time_limit_is_refused(typed: str) -> None:
    with pytest.raises(ValueError, match="expected a time"):
        sbatch.time_limit(typed)


@pytest.mark.parametrize(
    ("typed", "least", "most"),
    [("2", 2, 2), ("2-4", 2, 4), ("1,4", 1, 4), ("2-16:2", 2, 16), ("1k", 1024, 1024)],
)
def test_nodes(typed: str, least: int, most: int) -> None:
    assert sbatch.nodes(typed) == {"min_nodes": least, "max_nodes": most}


@pytest.mark.parametrize("typed", ["", "0", "4-2", "x", "2-"])
def test_what_is_no_number_of_nodes_is_refused(typed: str) -> None:
    with pytest.raises(ValueError):
        sbatch.nodes(typed)


@pytest.mark.parametrize(
    ("typed", "mb"),
    [("4000", 4000), ("4G", 4096), ("1T", 1048576), ("1500K", 2), ("512MB", 512), ("0", 0)],
)
def test_memory(typed: str, mb: int) -> None:
    assert sbatch.memory_mb(typed) == mb


def test_long_and_short_options_are_the_same() -> None:
    short = options(
        "-pmain", "-A", "astro", "-q", "high", "-t", "90", "-N2-4", "-n8", "-c", "2", "-a", "0-9%2"
    )
    long = options(
        "--partition=main",
        "--account=astro",
        "--qos=high",
        "--time=1:30:00",
        "--nodes=2-4",
        "--ntasks=8",
        "--cpus-per-task=2",
        "--array=0-9%2",
    )
    assert (
        short
        == long
        == {
            "partition": "main",
            "account": "astro",
            "qos": "high",
            "time_limit_min": 90,
            "min_nodes": 2,
            "max_nodes": 4,
            "num_tasks": 8,
            "cpus_per_task": 2,
            "array_inx": "0-9%2",
        }
    )


def test_exclusive_is_whole_nodes_unless_shared_among_some() -> None:
    assert options("--exclusive")["exclusive"] is True
    assert options("--exclusive=user")["exclusive"] is False


def test_memory_per_cpu_is_told_from_memory_per_node() -> None:
    assert options("--mem-per-cpu=2G") == {"memory_mb": 2048, "memory_per_cpu": True}
    assert options("--mem=2G") == {"memory_mb": 2048}


def test_command_line_then_environment_then_script(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\n#SBATCH -p one -A one -t 1\n#SBATCH --qos=one\n")
    environment = {"SBATCH_PARTITION": "two", "SBATCH_ACCOUNT": "two", "PATH": "/"}
    found = options("-p", "three", script=str(script), environment=environment)
    assert found == {"partition": "three", "account": "two", "time_limit_min": 1, "qos": "one"}


def test_lines_after_the_first_command_do_not_count(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/sh\n\n# a comment\n#SBATCH -n 2 # two\n ##SBATCH -n 3\n##SBATCH -n 4\nhostname\n#SBATCH -n 5\n"
    )
    assert options(script=str(script)) == {"num_tasks": 2}


def test_options_that_cost_nothing_are_passed_over(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/sh\n#SBATCH --mail-type END --output 'a b.txt' -e err --licenses=a:2 -D /tmp --test-only -n 3\n"
        "#SBATCH --newer-option=1\n#SBATCH -J name\n"
    )
    assert options(script=str(script)) == {"num_tasks": 3, "name": "name"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("-n many", "'many': expected a whole number"),
        ("--time=soon", "'soon': expected a time"),
        ('--job-name="x', "line 2: No closing quotation"),
        ("hetjob", "line 2: a heterogeneous job"),
    ],
)
def test_a_script_that_cannot_be_read_is_one_line_that_names_it(
    tmp_path: Path, line: str, complaint: str
) -> None:
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/sh\n#SBATCH {line}\n")
    with pytest.raises(sbatch.OptionError) as caught:
        options(script=str(script))
    assert str(caught.value).startswith(str(script))
    assert complaint in str(caught.value)


def test_a_missing_script_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(sbatch.OptionError, match="No such file"):
        options(script=str(tmp_path / "none.sh"))


def test_every_option_that_is_sent_is_one_that_the_relay_knows() -> None:
    known = {*as_sbatch.NUMBERS, *as_sbatch.TEXTS, *as_sbatch.FLAGS}
    sent = {option[2] for option in sbatch._OPTIONS} - {"nodes", "memory_per_cpu_mb", "extra"}
    sent |= {"min_nodes", "max_nodes", "exclusive", "overcommit", "memory_per_cpu"}
    sent |= {"extra_node_info"}
    assert sent == known


def test_what_a_job_wants_of_gpus_is_read() -> None:
    found = options(
        "-G", "a100:4", "--gpus-per-node=2", "--gpus-per-socket=1", "--gpus-per-task=a100:1",
        "--gres=gpu:t4:2,shard:1", "--cpus-per-gpu=8", "--mem-per-gpu=4G", "--ntasks-per-gpu=2",
    )  # fmt: skip
    assert found == {
        "gpus": "a100:4",
        "gpus_per_node": "2",
        "gpus_per_socket": "1",
        "gpus_per_task": "a100:1",
        "gres": "gpu:t4:2,shard:1",
        "cpus_per_gpu": 8,
        "mem_per_gpu_mb": 4096,
        "ntasks_per_gpu": 2,
    }


def test_what_a_job_wants_of_nodes_is_read(tmp_path: Path) -> None:
    found = options(
        "--ntasks-per-socket=2", "--ntasks-per-core=1", "--mincpus=4", "--sockets-per-node=2",
        "--cores-per-socket=8", "--hint=nomultithread", "-S", "2", "-O", "-w", "n[1-3]", "--tasks-per-node=4",
    )  # fmt: skip
    assert found == {
        "ntasks_per_socket": 2,
        "ntasks_per_core": 1,
        "ntasks_per_node": 4,
        "mincpus": 4,
        "sockets_per_node": 2,
        "cores_per_socket": 8,
        "core_spec": 2,
        "overcommit": True,
        "nodelist": "n[1-3]",
    }, "a hint does nothing beside --ntasks-per-core"
    assert options("--thread-spec=3") == {"thread_spec": 3}


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("2", {"sockets_per_node": 2}),
        ("2:4", {"sockets_per_node": 2, "cores_per_socket": 4}),
        ("*:4-8:1", {"cores_per_socket": 4, "threads_per_core": 1}),
    ],
)
def test_extra_node_info(typed: str, found: Dict[str, int]) -> None:
    assert options("-B", typed) == {"extra_node_info": True, **found}


def test_exclusive_and_oversubscribe_the_last_word_counts() -> None:
    assert options("--exclusive", "-s")["exclusive"] is False
    assert options("-s", "--exclusive")["exclusive"] is True
    assert options(environment={"SBATCH_EXCLUSIVE": "user"})["exclusive"] is False


def test_of_kinds_of_memory_the_one_outside_the_environment_counts(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\n#SBATCH --mem=4G\n")
    environment = {"SBATCH_MEM_PER_CPU": "2G"}
    assert options(script=str(script), environment=environment) == {"memory_mb": 4096}
    assert options("--mem-per-gpu=1G", environment=environment) == {"mem_per_gpu_mb": 1024}
    with pytest.raises(sbatch.OptionError, match="expected one of them"):
        options("--mem-per-cpu=1G", script=str(script))


def test_a_hint_counts_before_the_environment_and_after_what_is_said_outright() -> None:
    environment = {"SBATCH_THREADS_PER_CORE": "2"}
    assert options("--hint=nomultithread", environment=environment) == {"hint": "nomultithread"}
    assert options("--threads-per-core=1", environment={"SBATCH_HINT": "multithread"}) == {
        "threads_per_core": 1
    }


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("--hint=fast", "expected compute_bound"),
        ("--exclusive=me", "expected user or mcs"),
        ("-B1:2:3:4", "expected SOCKETS"),
        ("--nodelist=./hosts", "a file with hosts"),
    ],
)
def test_what_sbatch_would_refuse_is_refused(
    word: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options(word)
    assert complaint in capsys.readouterr().err
