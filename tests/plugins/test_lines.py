# SPDX-License-Identifier: BSD-3-Clause
"""Lines of slurmctld's log that C writes itself, and that docs/operating.md explains."""

from __future__ import annotations

import subprocess

from tests.plugins.conftest import PYTHON, ROOT, Built, Layout

CALLS = ("submit account=astro", "job part=normal", "update time_limit=90", "end")


def ours(log: str) -> list[str]:
    return [
        line.split("slurm_banking: ", 1)[1]
        for line in log.splitlines()
        if "slurm_banking: " in line
    ]


def test_a_plugin_that_runs_says_so_once(layout: Layout) -> None:
    log = ours(layout.run(layout.load_job_submit, layout.load_jobcomp).log)
    for ready in ("job_submit: ready, configuration ", "jobcomp: ready, configuration "):
        assert log.count(f"{ready}{layout.config}") == 1


def test_a_plugin_that_is_switched_off_says_where(layout: Layout) -> None:
    layout.config.write_text("[Enable]\nenable_job_submit_plugin = false\n")
    log = ours(layout.run(layout.load_job_submit).log)
    assert log == [f"job_submit: switched off in {layout.config}"]


def test_what_python_could_not_be_asked_about_is_told_with_what_became_of_it(
    layout: Layout,
) -> None:
    layout.config.write_text("[Policy]\nbroken = 1\n")
    log = ours(layout.run(layout.load_job_submit, layout.load_jobcomp, *CALLS).log)
    assert log[0].endswith("; on_plugin_error=accept: jobs are accepted without a check")
    assert log[1].endswith("; on_plugin_error=accept: ended runs are found later, in slurmdbd")
    told = [line for line in log[2:] if " outcome=" in line]
    assert [line.split()[:2] for line in told] == [
        ["submission_undecided", "outcome=accepted"],
        ["run_end_unrecorded", "outcome=left_to_relay"],
    ], "one line a minute of what is undecided"
    assert all(" reason=" in line for line in told)


def test_an_update_that_nobody_could_decide_is_told_as_a_submission_is(layout: Layout) -> None:
    layout.config.write_text("[Policy]\nbroken = 1\n")
    log = ours(layout.run(layout.load_job_submit, *CALLS[1:3]).log)
    assert [line.split()[0] for line in log if " outcome=" in line] == ["update_undecided"]


def test_the_plugins_name_a_python_by_its_first_two_numbers_alone(built: Built) -> None:
    """So that the last one may change under them; what is compiled in is what the linker and the imports look for."""
    facts = [PYTHON, "-I", str(ROOT / "csrc" / "python_facts.py")]
    said = subprocess.run(facts, capture_output=True, text=True, check=True).stdout.split()
    code = "import sys; print('%d.%d' % sys.version_info[:2], '%d.%d.%d' % sys.version_info[:3])"
    short, full = subprocess.run(
        [PYTHON, "-I", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    library = next(word for word in said if word.startswith("libpython"))
    assert library == f"libpython{short}.so.1.0"
    assert not [word for word in said if full in word]
    assert library.encode() in built.job_submit.read_bytes()
