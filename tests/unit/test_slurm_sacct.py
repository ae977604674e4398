# SPDX-License-Identifier: BSD-3-Clause
"""sacct, read from what Slurm 22.05.8 printed (data/slurm-22.05/sacct.txt)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Sequence

import pytest

from slurm_banking import tokens
from slurm_banking.errors import SlurmUnavailable
from slurm_banking.records import UNKNOWN_RESTART
from slurm_banking.slurm.sacct import Sacct
from slurm_banking.tres import Tres

TEXT = (Path(__file__).parent / "data" / "slurm-22.05" / "sacct.txt").read_text("utf-8")
ALL = (1795261000, 1795262000)


class Recorded:
    """sacct as it answered, with this call's separator; ``fields`` are those that it knows."""

    def __init__(self, text: str = TEXT, fields: str = "JobID State") -> None:
        self.text = text
        self.fields = fields
        self.calls: List[Sequence[str]] = []

    def __call__(self, argv: Sequence[str], **_: Any) -> str:
        self.calls.append(argv)
        if "--helpformat" in argv:
            return self.fields
        (separator,) = (word[12:] for word in argv if word.startswith("--delimiter="))
        return self.text.replace("~s~", separator)


def sacct(**arguments: Any) -> Sacct:
    return Sacct("rig", run=Recorded(**arguments))


def test_a_run_has_what_was_allocated_and_how_long() -> None:
    (run,) = (run for run in sacct().read_ended_runs(*ALL) if run.job_id == 20)
    assert (run.state, run.started, run.elapsed_s, run.cpus) == ("COMPLETED", True, 3, 1)
    assert (run.start_time, run.end_time, run.submit_time) == (1795261706, 1795261709, 1795261706)
    assert (run.user_id, run.account, run.partition, run.qos) == (
        1002,
        "fc_alpha",
        "main",
        "normal",
    )
    assert (run.nodes, run.node_count, run.time_limit_min, run.source) == ("n2", 1, 3, "sacct")
    assert run.tres == Tres(cpus=1, nodes=1, billing=1)


def test_an_admin_comment_with_a_line_end_keeps_its_token() -> None:
    (run,) = (run for run in sacct().read_ended_runs(*ALL) if run.job_id == 20)
    token = tokens.parse(run.admin_comment)
    assert token is not None and token.lien_id == "00112233445566778899aabbccddeeff"


def test_each_requeue_is_a_run_of_its_own() -> None:
    first, second = sacct().read_jobs([16])[16]
    assert (first.state, first.submit_time, first.restart_count) == ("REQUEUED", 1795261419, 0)
    assert (second.state, second.submit_time, second.restart_count) == ("COMPLETED", 1795261425, 1)


def record(shown: str, state: str, at: int) -> str:
    """A row of job id 13, one of ten seconds."""
    return (
        f"13~s~{shown}~s~1001~s~sb-alice~s~fc_alpha~s~main~s~normal~s~{state}~s~{at}~s~{at + 1}~s~{at + 11}~s~10~s~"
        "1~s~1~s~billing=1,cpu=1,node=1~s~n1~s~5~s~~s~\n"
    )


@pytest.mark.parametrize(
    "before", ["COMPLETED", "FAILED", "TIMEOUT", "CANCELLED by 1001", "CANCELLED"]
)
def test_an_id_given_again_after_its_job_ended_is_no_restart(before: str) -> None:
    """StateSaveLocation was lost: Slurm counts job ids from the beginning, for the same user as well."""
    text = record("13", before, 1795261100) + record("13", "REQUEUED", 1795261200)
    text += record("13", "COMPLETED", 1795261300)
    assert [run.restart_count for run in sacct(text=text).read_jobs([13])[13]] == [0, 0, 1]


def test_an_id_given_again_to_a_task_of_an_array_is_no_restart() -> None:
    text = record("13", "NODE_FAIL", 1795261100) + record("8_2", "COMPLETED", 1795261200)
    assert [run.restart_count for run in sacct(text=text).read_jobs([13])[13]] == [0, 0]


def test_a_row_whose_start_slurmdbd_never_got_has_its_times_and_is_no_run() -> None:
    """As 22.05.8 shows it where slurmctld was killed between a start and its report, and the end was told."""
    part = (
        "585~s~585~s~0~s~root~s~fc_alpha~s~~s~Unknown~s~COMPLETED~s~1795297858~s~1795297858~s~1795297868~s~10~s~"
        "1~s~1~s~billing=1,cpu=1,node=1~s~n1~s~~s~~s~\n"
    )
    source = sacct(text=part + record("13", "COMPLETED", 1795261100))
    assert 585 not in source.read_jobs([13, 585])
    rows = source.rows_by_key([13, 585])
    assert sorted(rows) == [(13, 1795261100), (585, 1795297858)]
    assert rows[13, 1795261100].whole
    row = rows[585, 1795297858]
    assert not row.whole
    assert (row.run.start_time, row.run.end_time, row.run.tres.cpus) == (1795297858, 1795297868, 1)


@pytest.mark.parametrize("before", ["REQUEUED", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL"])
def test_what_slurm_ran_again_by_itself_is_a_restart(before: str) -> None:
    text = record("13", before, 1795261100) + record("13", "COMPLETED", 1795261200)
    assert [run.restart_count for run in sacct(text=text).read_jobs([13])[13]] == [0, 1]


def test_a_restart_count_that_sacct_does_not_tell_is_not_made_up_from_part_of_the_rows() -> None:
    counts = {run.restart_count for run in sacct().read_ended_runs(*ALL) if run.job_id != 19}
    assert counts == {UNKNOWN_RESTART}


def test_a_job_cancelled_while_pending_never_started() -> None:
    runs = {run.job_id: run for run in sacct().read_ended_runs(*ALL)}
    for job_id in (5, 11, 21):  # the last one has a start time, its cancellation
        run = runs[job_id]
        assert (run.state, run.started, run.start_time) == ("CANCELLED", False, None)
        assert (run.elapsed_s, run.nodes, run.node_count) == (0, "", 0)


def test_a_resized_run_stays_one_run_under_its_submit_time() -> None:
    (told,) = sacct().read_jobs([19])[19]
    (listed,) = (run for run in sacct().read_ended_runs(*ALL) if run.job_id == 19)
    assert told == listed
    assert (told.submit_time, told.start_time, told.end_time) == (
        1795261595,
        1795261596,
        1795261600,
    )
    assert (told.state, told.elapsed_s, told.cpus) == ("CANCELLED", 4, 3)
    assert [part.tres.cpus for part in told.segments][-1] == 3
    assert sum(part.seconds for part in told.segments) == 4 and len(told.segments) > 1


#: As 22.05.8 printed it with --noconvert, on a cluster with GPUs: by an operator, by root, by its own user.
CANCELLED = """\
1~s~1~s~1001~s~sb-alice~s~fc_alpha~s~main~s~normal~s~CANCELLED by 1005~s~1795261164~s~1795261165~s~1795261169~s~4~s~\
2~s~1~s~billing=2,cpu=2,mem=2600M,node=1~s~n1~s~5~s~~s~
2~s~2~s~1001~s~sb-alice~s~fc_alpha~s~main~s~normal~s~CANCELLED by 0~s~1795261164~s~1795261165~s~1795261169~s~4~s~\
4~s~1~s~billing=8,cpu=4,gres/gpu:a100=2,gres/gpu=2,mem=2000M,node=1~s~n2~s~5~s~~s~
3~s~3~s~1002~s~sb-bob~s~fc_alpha~s~exclusive~s~normal~s~CANCELLED by 1002~s~1795261164~s~1795261165~s~1795261169~s~4~s~\
8~s~1~s~billing=8,cpu=8,mem=15500M,node=1~s~n1~s~5~s~~s~
"""


def cancelled(*operators: int) -> Dict[int, bool]:
    slurm = Sacct("rig", run=Recorded(text=CANCELLED), operators=lambda: operators)
    return {run.job_id: run.cancelled_by_admin for run in slurm.read_ended_runs(*ALL)}


def test_what_was_allocated_is_read_with_memory_and_types_of_gpus() -> None:
    runs = {run.job_id: run.tres for run in sacct(text=CANCELLED).read_ended_runs(*ALL)}
    assert runs[1] == Tres(cpus=2, memory_mb=2600, nodes=1, billing=2)
    assert runs[2] == Tres(cpus=4, memory_mb=2000, nodes=1, billing=8, gpus=(("a100", 2),))


def test_units_are_not_converted() -> None:
    slurm = Recorded()
    Sacct("rig", run=slurm).read_ended_runs(*ALL)
    assert all("--noconvert" in call for call in slurm.calls if "--helpformat" not in call)


def test_a_job_that_root_or_an_operator_cancelled_is_told_from_its_users_own() -> None:
    assert cancelled(0, 64030, 1005) == {1: True, 2: True, 3: False}
    assert cancelled(0, 1002) == {1: False, 2: True, 3: False}, "an operator's own job is theirs"


def test_a_job_that_nobody_is_known_to_have_cancelled_is_its_users() -> None:
    for uid in (2**32 - 2, 2**32 - 1):
        text = CANCELLED.replace("CANCELLED by 1005", f"CANCELLED by {uid}")
        (run, *_) = sacct(text=text).read_ended_runs(*ALL)
        assert (run.state, run.cancelled_by_admin) == ("CANCELLED", False)


def test_arrays_and_het_jobs_name_their_kin() -> None:
    runs = {(run.job_id, run.submit_time): run for run in sacct().read_ended_runs(*ALL)}
    task, component = runs[10, 1795261164], runs[4, 1795261165]
    assert (task.array_job_id, task.array_task_id, task.het_job_id) == (2, 4, None)
    assert (component.array_job_id, component.het_job_id) == (None, 3)


def test_only_ends_inside_the_window_are_given_oldest_first() -> None:
    runs = sacct().read_ended_runs(1795261302, 1795261422)
    ends = [run.end_time for run in runs]
    assert ends == sorted(ends) and ends[0] == 1795261302 and ends[-1] == 1795261421


def test_a_row_of_which_slurmdbd_knows_only_the_end_waits() -> None:
    text = TEXT.replace(
        "~s~main~s~normal~s~COMPLETED~s~1795261706", "~s~~s~normal~s~COMPLETED~s~1795261706"
    )
    assert text != TEXT
    assert 20 not in {run.job_id for run in sacct(text=text).read_ended_runs(*ALL)}


def test_a_run_is_found_by_its_key() -> None:
    found = sacct().read_run(16, 1795261425)
    assert found is not None and found.state == "COMPLETED"
    assert sacct().read_run(16, 1795261426) is None
    assert sacct().read_run(4711, 1795261425) is None


def test_a_job_that_has_not_ended_has_no_end() -> None:
    text = TEXT.replace(
        "COMPLETED~s~1795261706~s~1795261706~s~1795261709",
        "RUNNING~s~1795261706~s~1795261706~s~Unknown",
    )
    (run,) = sacct(text=text).read_jobs([20])[20]
    assert run.started and run.end_time is None
    assert 20 not in {run.job_id for run in sacct(text=text).read_ended_runs(*ALL)}


def test_restarts_are_read_where_sacct_has_them() -> None:
    rows = TEXT.split("~s~")
    width = 18
    text = ""
    for first in range(0, len(rows) - 1, width):
        text += "~s~".join([*rows[first : first + 17], "3", rows[first + 17]]) + "~s~"
    slurm = Recorded(text=text + "\n", fields="JobID Restarts State")
    runs = Sacct("rig", run=slurm).read_jobs([16])[16]
    assert [run.restart_count for run in runs] == [3, 3]


def test_names_that_users_choose_are_not_asked_for() -> None:
    slurm = Recorded()
    Sacct("rig", run=slurm).read_ended_runs(*ALL)
    (fields,) = {word for call in slurm.calls for word in call if word.startswith("--format=")}
    for name in ("JobName", "Comment,", "SubmitLine", "WorkDir"):
        assert name not in fields.replace("AdminComment", "")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("~s~1001~s~", "~s~alice~s~", 1),
        lambda text: text.replace("~s~137~s~", "~s~2:17~s~", 1),
        lambda text: text.replace("billing=1,cpu=1", "billing=1,cpu=many", 1),
    ],
)
def test_an_answer_that_cannot_be_read_whole_is_not_used(damage: Any) -> None:
    with pytest.raises(SlurmUnavailable, match="^sacct: "):
        sacct(text=damage(TEXT)).read_ended_runs(*ALL)


def test_no_rows_are_an_answer() -> None:
    assert sacct(text="").read_ended_runs(*ALL) == ()
    assert sacct(text="").read_jobs([1]) == {}


class Resized(Recorded):
    """A run that was resized at second 6, in a window that has only the part from then on; and one that was not."""

    def __call__(self, argv: Sequence[str], **options: Any) -> str:
        def row(job_id: int, state: str, submit: int, end: int, nodes: int) -> str:
            begun = f"{job_id}~s~{job_id}~s~1001~s~sb-alice~s~fc_alpha~s~main~s~normal~s~{state}~s~{submit}~s~{submit}"
            used = f"{end}~s~{end - submit}~s~{nodes}~s~{nodes}~s~billing={nodes},cpu={nodes},node={nodes}~s~n1"
            return f"{begun}~s~{used}~s~5~s~~s~\n"

        at = ALL[0]
        self.text = row(7, "COMPLETED", at + 6, at + 12, 1) + row(
            8, "COMPLETED", at + 5, at + 11, 1
        )
        if "--jobs" in argv:
            self.text = row(7, "RESIZING", at + 4, at + 6, 2) + self.text
        return super().__call__(argv, **options)


def test_a_resized_run_is_one_run_also_where_its_second_part_looks_like_a_job_of_its_own() -> None:
    """As Slurm 24.11 writes it: submitted and started when it was resized."""
    slurm = Resized()
    other, run = Sacct("rig", run=slurm).read_ended_runs(ALL[0] + 10, ALL[0] + 20)
    assert (other.job_id, other.submit_time, other.restart_count) == (
        8,
        ALL[0] + 5,
        UNKNOWN_RESTART,
    )
    assert (run.job_id, run.submit_time, run.start_time) == (7, ALL[0] + 4, ALL[0] + 4)
    assert (run.elapsed_s, [part.seconds for part in run.segments]) == (8, [2, 6])
