# SPDX-License-Identifier: BSD-3-Clause
"""The site's own line of each record, and another jobcomp plugin behind ours: the real .so, without and with failures."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Tuple

import pytest

from slurm_banking import state_dir

from .conftest import (
    HERE,
    ROOT,
    Layout,
    Transcript,
    compile_c,
    directory_of_libslurmfull,
    not_sanitized,
)

#: Off in most of them: what is looked at works without a charge, and without Python.
CHARGING_OFF = "[Enable]\nenable_job_complete_plugin = false\n"


@pytest.fixture
def log(layout: Layout) -> Path:
    directory = layout.etc / "log"
    directory.mkdir()
    return directory / "jobcomp.log"


def configure(layout: Layout, *lines: str, start: str = CHARGING_OFF) -> None:
    layout.config.write_text(start + "[JobComp]\n" + "".join(f"{line}\n" for line in lines))


def to_log(layout: Layout, log: Path, *commands: str, start: str = CHARGING_OFF) -> Transcript:
    configure(layout, f'log = "{log}"', start=start)
    return layout.run(layout.load_jobcomp, *commands)


def keys_of(line: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(.*?)(?= \w+=| $)", line))


def errors(done: Transcript) -> list[str]:
    return [line for line in done.log.splitlines() if "error: slurm_banking:" in line]


# The line.

FULL = (
    "job_id=4711 name=relax user_id=0 group_id=0 state=32771 part=normal partition=normal time_limit=90 nodes=n[1-2]"
    " node_cnt=2 total_cpus=8 work_dir=/home/alice resv_name=workshop tres_fmt_req_str=cpu=8,mem=2G,node=2,billing=8"
    " account=astro wckey=w1 cluster=rig submit_time=1700000000 begin_time=1700000010 start_time=1700000100"
    " end_time=1700003700 exit_code=256 derived_ec=15"
)
#: One of each kind that jobcomp/filetxt treats in its own way.
RECORDS = {
    "full": FULL,
    "nothing in it": "bare=1",
    "as slurmctld makes it": "name=x",
    "unlimited": f"{FULL} time_limit=4294967295",
    "the partition's limit": f"{FULL} time_limit=4294967294",
    "the partition's limit, unlimited": f"{FULL} time_limit=4294967294 part=long",
    "no limit, no partition": "name=x time_limit=4294967294",
    "several partitions": f"{FULL} partition=normal,long",
    "cancelled while waiting": f"{FULL} state=4 start_time=1700009999",
    "never started": f"{FULL} state=4 start_time=0 end_time=0",
    "resized before": f"{FULL} resize_time=1700002000",
    "resized before, start behind the end": f"{FULL} resize_time=1700002000 start_time=1700009999",
    "failed by a signal": f"{FULL} state=5 exit_code=9 derived_ec=139",
    "no exit code": f"{FULL} exit_code=4294967294 derived_ec=4294967294",
    "stopped": f"{FULL} exit_code=4991 derived_ec=127",
    "an array's task": f"{FULL} array_job_id=4700 array_task_id=11",
    "a pending array": f"{FULL} state=4 tasks=12",
    "a part of a het job": f"{FULL} het_job_id=4710 het_job_offset=1",
    "the first part of a het job": f"{FULL} het_job_id=4710 het_job_offset=0",
    "both": f"{FULL} het_job_id=4710 het_job_offset=2 array_job_id=4700 array_task_id=0",
    "a user whom nobody knows": f"{FULL} user_id=987654 group_id=876543",
    "a user of a like number": f"{FULL} user_id=256 group_id=512",
    "known users": f"{FULL} user_id=1 group_id=5",
    "texts that are empty": f"{FULL} resv_name= tres_fmt_req_str= account= wckey= name= nodes=",
    "a text with spaces and equals signs": f"{FULL} name=a%20b=c%25s%25n work_dir=/a%20b",
    "not ASCII": f"{FULL} name=%C3%A9t%E9",
    "requeued": f"{FULL} state=1024",
    "requeued while completing": f"{FULL} state=33792",
    "what select adds": f"{FULL} select=1",
    "a state that is no state": f"{FULL} state=77",
    "as long as filetxt's buffer": f"{FULL} name={'n' * 500}",
}


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_each_line_is_what_jobcomp_filetxt_writes(layout: Layout, log: Path, zone: str) -> None:
    theirs = log.with_name("theirs.log")
    configure(layout, f'log = "{log}"', 'pass_on = "jobcomp/filetxt"')
    commands = [command for job in RECORDS.values() for command in (f"job {job}", "end")]
    done = layout.run(
        layout.load_jobcomp,
        *commands,
        environment={
            "FAKE_PLUGIN_DIR": str(directory_of_libslurmfull()),
            "FAKE_JOB_COMP_LOC": str(theirs),
            "TZ": zone,
        },
    )
    assert errors(done) == []
    expected = theirs.read_bytes().splitlines(keepends=True)
    for name, line, ours in zip(RECORDS, expected, log.read_bytes().splitlines(keepends=True)):
        assert ours == line, name
    assert len(expected) == len(RECORDS)
    assert log.read_bytes() == theirs.read_bytes()
    assert (log.stat().st_mode, log.stat().st_uid) == (
        theirs.stat().st_mode,
        theirs.stat().st_uid,
    )


def test_the_part_of_a_resized_job_ends_now_and_its_state_has_the_flag(
    layout: Layout, log: Path
) -> None:
    done = to_log(layout, log, f"job {FULL} state={1 | 1 << 13} end_time=1800000000", "end")
    line = keys_of(log.read_text())
    assert (done.answers[2], line["JobState"]) == ("rc=0", "RESIZING")
    assert not line["EndTime"].startswith("2027")


def test_a_long_line_is_whole_and_ends_with_a_newline(layout: Layout, log: Path) -> None:
    to_log(layout, log, f"job {FULL} work_dir=/{'w' * 3000}", "end", f"job {FULL}", "end")
    first, second = log.read_text().splitlines()
    assert keys_of(first)["WorkDir"] == f"/{'w' * 3000}"
    assert keys_of(first)["ExitCode"] == keys_of(second)["ExitCode"] == "1:0"


def test_what_a_user_types_cannot_begin_a_line_of_its_own(layout: Layout, log: Path) -> None:
    to_log(layout, log, f"job {FULL} name=a%0AJobId=1%20UserId=root(0)%0D%1B[2J", "end")
    (line,) = log.read_bytes().split(b"\n")[:-1]
    assert b"Name=a?JobId=1 UserId=root(0)??[2J JobState=" in line


# When.


def test_off_by_default(layout: Layout, log: Path) -> None:
    layout.config.write_text(CHARGING_OFF)
    done = layout.run(
        layout.load_jobcomp,
        "end",
        "location",
        "get_jobs",
        environment={"FAKE_JOB_COMP_LOC": str(log)},
    )
    assert done.answers == ("loaded", "rc=0", "rc=0", "none")
    assert not log.exists()


def test_the_log_goes_on_beside_charging(layout: Layout, log: Path) -> None:
    done = to_log(layout, log, "job name=x", "end", start="[Policy]\n")
    assert "pre_suspend_s" in done.log  # Python was told
    assert keys_of(log.read_text())["Name"] == "x"


def test_the_log_goes_on_without_python(layout: Layout, log: Path) -> None:
    shutil.rmtree(layout.package)
    done = to_log(layout, log, "job name=x", "end", start="[Policy]\n")
    assert "run_end_unrecorded outcome=left_to_relay" in done.log
    assert keys_of(log.read_text())["Name"] == "x"


def test_in_a_users_process_no_log_is_opened(layout: Layout, log: Path) -> None:
    configure(layout, f'log = "{log}"')
    layout.run(layout.load_jobcomp, "location", "get_jobs", arguments=("--as-sacct",))
    assert not log.exists()


# Rotation.

LINES = ("job name=one", "end", "job name=two", "end")


def names(path: Path) -> list[str]:
    return [keys_of(line)["Name"] for line in path.read_text().splitlines()]


class Host:
    """A fake slurmctld that is asked line by line."""

    def __init__(self, layout: Layout, **environment: str) -> None:
        self.process = subprocess.Popen(
            [str(layout.built.fake_slurmctld)],
            env={
                "SLURM_CONF": str(layout.etc / "slurm.conf"),
                **layout.built.environment,
                **environment,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.ask(layout.load_jobcomp) == "loaded"

    def ask(self, command: str) -> str:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def end(self, name: str) -> None:
        self.ask(f"job name={name}")
        assert self.ask("end") == "rc=0"

    def finish(self) -> Transcript:
        _, log = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, log
        return Transcript(commands=(), answers=(), log=log)


@contextmanager
def running(layout: Layout, **environment: str) -> Iterator[Host]:
    host = Host(layout, **environment)
    try:
        yield host
    finally:
        if host.process.poll() is None:
            host.process.kill()
            host.process.communicate()


@pytest.mark.parametrize("how", ["moved away", "removed", "replaced"])
def test_a_rotated_log_is_made_anew_without_being_told(layout: Layout, log: Path, how: str) -> None:
    configure(layout, f'log = "{log}"')
    with running(layout) as host:
        host.end("one")
        if how == "removed":
            log.unlink()
        else:
            log.rename(log.with_suffix(".1"))
        if how == "replaced":  # as logrotate's "create"
            log.touch(0o600)
        host.end("two")
        host.end("three")
        done = host.finish()
    assert names(log) == ["two", "three"]
    assert log.stat().st_mode & 0o777 == 0o644
    assert errors(done) == []


def test_the_log_of_a_truncating_rotation_goes_on_at_its_start(layout: Layout, log: Path) -> None:
    configure(layout, f'log = "{log}"')
    with running(layout) as host:
        host.end("one")
        os.truncate(log, 0)
        host.end("two")
        host.finish()
    assert names(log) == ["two"]


def test_a_reconfigure_reads_the_key_again(layout: Layout, log: Path) -> None:
    other = log.with_name("other.log")
    configure(layout, f'log = "{log}"')
    with running(layout) as host:
        host.end("one")
        configure(layout, f'log = "{other}"')
        host.end("two")
        host.ask("location")
        host.end("three")
        configure(layout, 'log = ""')
        host.ask("location")
        host.end("four")
        done = host.finish()
    assert (names(log), names(other)) == (["one", "two"], ["three"])
    assert errors(done) == []


def test_an_unloaded_plugin_has_the_log_closed(layout: Layout, log: Path) -> None:
    done = to_log(layout, log, "end", f"open {log}", "unload jobcomp", f"open {log}")
    assert (done.answers[2], done.answers[4]) == ("open=1", "open=0")


def test_the_log_goes_on_after_unloading_and_loading_again(layout: Layout, log: Path) -> None:
    again = ("unload jobcomp", layout.load_jobcomp)
    to_log(layout, log, *LINES, *again, "job name=three", "end")
    assert names(log) == ["one", "two", "three"]


# Failures: slurmctld goes on, one line says why, another one when it is over.


def test_a_directory_that_is_missing_is_told_once_and_used_once_it_is_there(
    layout: Layout, log: Path
) -> None:
    late = log.parent / "late" / "jobcomp.log"
    configure(layout, f'log = "{late}"')
    with running(layout) as host:
        host.end("one")
        host.end("two")
        late.parent.mkdir()
        host.ask("pause 1100")
        host.end("three")
        host.end("four")
        done = host.finish()
    assert names(late) == ["three", "four"]
    (told,) = errors(done)
    assert told.endswith(
        f'jobcomp: {layout.config}: [JobComp] log = "{late}": cannot be opened: No such file or directory: '
        "records are left out of it until it can be written"
    )
    assert "written again; records left out: 2" in done.log


def test_a_failure_that_lasts_is_told_again_at_a_reconfigure(layout: Layout, log: Path) -> None:
    late = log.parent / "late" / "jobcomp.log"
    configure(layout, f'log = "{late}"')
    with running(layout) as host:
        host.end("one")
        host.ask("location")
        host.end("two")
        late.parent.mkdir()
        host.ask("location")
        host.end("three")
        done = host.finish()
    assert len(errors(done)) == 2
    assert names(late) == ["three"]
    assert "written again; records left out: 2" in done.log


def test_a_full_disk_is_told_once_and_no_line_is_glued_to_half_of_another(
    layout: Layout, log: Path
) -> None:
    log.parent.mkdir(exist_ok=True)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(log.parent)],
        capture_output=True,
        check=False,
    )
    if mount.returncode != 0:
        pytest.skip("no file system may be mounted here")
    try:
        configure(layout, f'log = "{log}"')
        with running(layout) as host:
            for _ in range(20):
                host.end("x" * 300)
            full = log.stat().st_size
            subprocess.run(
                ["mount", "-o", "remount,size=64k", str(log.parent)],
                capture_output=True,
                check=True,
            )
            host.end("after")
            done = host.finish()
        assert full == 4096
        lines = log.read_text().splitlines()
        assert keys_of(lines[-1])["Name"] == "after"
        assert [line[:6] for line in lines] == ["JobId="] * len(lines)
        (told,) = errors(done)
        assert "(is the disk full?)" in told or "No space left on device" in told
        left_out = int(re.findall(r"records left out: (\d+)", done.log)[0])
        assert left_out + len(lines) == 20 + 1 + 1  # one line is there in part, and counted
    finally:
        subprocess.run(["umount", str(log.parent)], check=True)


@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
def test_only_a_file_is_written_to_and_nothing_is_waited_for(
    layout: Layout, log: Path, kind: str
) -> None:
    if kind == "pipe":
        os.mkfifo(log)
    elif kind == "directory":
        log.mkdir()
    done = to_log(layout, Path("/dev/null") if kind == "device" else log, *LINES)
    assert done.answers[2] == "rc=0"
    (told,) = errors(done)
    assert re.search("cannot be opened: (No such device|Is a directory)|expected a regular", told)


DRIVER = """
#include <stdio.h>
#include "local_disk.h"
int main(int argc, char **argv)
{
	char why[512] = "";
	(void) argc;
	printf("%d %s\\n", banking_local_disk(argv[1], why, sizeof(why)), why);
	return 0;
}
"""


@pytest.fixture(scope="session")
def local_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("local_disk")
    (directory / "driver.c").write_text(DRIVER)
    compile_c(
        *("-fsanitize=address,undefined", f"-I{ROOT}/csrc", directory / "driver.c"),
        *(ROOT / "csrc" / "local_disk.c", "-o", directory / "driver"),
    )
    return directory / "driver"


def judged(driver: Path, path: object, mounts: str = "") -> Tuple[int, str]:
    """With a table of mounts of the test's own: bound over the kernel's, in a namespace of its own."""
    command = [str(driver), str(path)]
    if mounts:
        table = driver.with_name("mountinfo")
        table.write_text(mounts)
        script = f'mount --bind {table} /proc/$$/mountinfo && exec {driver} "$0"'
        command = ["unshare", "--mount", "sh", "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounts and done.returncode != 0:
        pytest.skip(f"no file may be bound over /proc here: {done.stderr}")
    code, _, why = done.stdout.rstrip("\n").partition(" ")
    return int(code), why


def test_network_file_systems_are_found_behind_links_before_they_are_touched(
    local_disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("dir/../away/logs")
    (tmp_path / "dir").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "home").symlink_to(tmp_path)
    mounts = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        f"2 1 0:9 / {tmp_path}/away rw,relatime shared:1 - nfs4 server:/x rw\n"
        f"3 1 0:9 / {tmp_path}/a\\040space rw - fuse.sshfs x rw\n"
        f"4 1 0:9 / {tmp_path}/both rw - nfs x rw\n"
        f"5 1 0:9 / {tmp_path}/both rw - xfs /dev/b rw\n"
        f"6 1 0:9 / {tmp_path}/auto rw - autofs x rw\n"
        f"7 1 8:2 / {tmp_path} rw - ext4 /dev/c rw\n"  # listed behind what is mounted in it
    )
    away = (-1, f"{tmp_path}/away is on a network file system: nfs4")
    for path in ("away/jobcomp.log", "link/jobcomp.log", "home/link/x", "dir/..//./away", "away"):
        assert judged(local_disk, tmp_path / path, mounts) == away, path
    assert judged(local_disk, f"{tmp_path}/dir/.././away/x", mounts) == away
    for path, kind in (("a space", "fuse.sshfs"), ("auto", "autofs")):
        expected = (-1, f"{tmp_path}/{path} is on a network file system: {kind}")
        assert judged(local_disk, tmp_path / path / "x", mounts) == expected
    for path in ("dir/jobcomp.log", "awayward/x", "both/x", "nowhere/x"):
        assert judged(local_disk, tmp_path / path, mounts) == (0, ""), path
    assert judged(local_disk, tmp_path / "loop" / "x", mounts)[1].endswith(
        "has too many symbolic links"
    )
    assert judged(local_disk, "/" + "x/" * 5000, mounts)[1].endswith("is too long")


def test_the_file_systems_that_are_refused_are_those_of_the_ledger() -> None:
    text = (ROOT / "csrc" / "local_disk.c").read_text()
    lists = [
        frozenset(re.findall(r'"([^"]+)"', body))
        for body in re.findall(r"const char \*const \w+\[\] = \{(.*?)\}", text, re.DOTALL)
    ]
    assert lists == [state_dir.NETWORK_FILE_SYSTEMS | {"autofs"}, state_dir.LOCAL_FUSE]


def test_a_log_on_a_network_file_system_is_refused_with_one_line(layout: Layout, log: Path) -> None:
    (log.parent / "away").mkdir()
    (log.parent / "link").symlink_to("away")
    away = log.parent.resolve() / "away"
    table = layout.etc / "mountinfo"
    table.write_text(f"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:9 / {away} rw - nfs server:/x rw\n")
    configure(layout, f'log = "{log.parent}/link/jobcomp.log"')
    host = f'mount --bind {table} /proc/$$/mountinfo && exec "$0"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", host, str(layout.built.fake_slurmctld)],
        input=f"{layout.load_jobcomp}\njob name=x\nend\n",
        env={
            "PATH": os.environ["PATH"],
            "SLURM_CONF": str(layout.etc / "slurm.conf"),
            **layout.built.environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if not done.stdout:
        pytest.skip(f"no file may be bound over /proc here: {done.stderr}")
    assert done.stdout.splitlines() == ["loaded", "job", "rc=0"]
    (told,) = [line for line in done.stderr.splitlines() if "error: slurm_banking:" in line]
    assert f"{away} is on a network file system: nfs: records are left out of it" in told
    assert list(away.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    ["5", "true", '"jobcomp.log"', "/var/log/x", '"/a', '"/a" x', '"/a\\\\b"', '"/var/log/"']
    + ['["/a"]', f'"/{"a" * 500}"', f'"/{"a" * 600}"', "", '"/a\tb"', "'/a\"b'"],
)
def test_a_wrong_log_is_one_line_and_no_log(layout: Layout, value: str) -> None:
    configure(layout, f"log = {value}")
    done = layout.run(layout.load_jobcomp, "end")
    (told,) = errors(done)
    assert f"jobcomp: {layout.config}: [JobComp] log = " in told
    assert 'expected "" or the absolute path of a file in quotes' in told
    assert told.endswith('; taken as ""')


def test_a_file_that_jobcomp_filetxt_writes_is_not_written_twice(layout: Layout, log: Path) -> None:
    configure(layout, f'log = "{log}"', 'pass_on = "jobcomp/filetxt"')
    done = layout.run(
        *(layout.load_jobcomp, "job name=x", "end"),
        environment={
            "FAKE_PLUGIN_DIR": str(directory_of_libslurmfull()),
            "FAKE_JOB_COMP_LOC": str(log),
        },
    )
    (told,) = errors(done)
    assert "expected another file than JobCompLoc" in told
    assert names(log) == ["x"]


# The other plugin.


def compile_other(layout: Layout, name: str = "other", *defines: str) -> Path:
    directory = layout.etc / "plugins"
    directory.mkdir(exist_ok=True)
    compile_c(
        *("-shared", "-fPIC", f"-I{ROOT}/csrc", "-isystem", layout.built.slurm_tree, *defines),
        *(HERE / "other_jobcomp.c", "-o", directory / f"jobcomp_{name}.so"),
    )
    return directory


def passing_on(
    layout: Layout,
    directory: Path,
    *commands: str,
    other: str = "jobcomp/other",
    arguments: Tuple[str, ...] = (),
    start: str = CHARGING_OFF,
    location: str = "somewhere",
) -> Tuple[Transcript, list[str]]:
    """What the host said, and what the other plugin wrote down."""
    notes = layout.etc / "notes"
    notes.unlink(missing_ok=True)
    configure(layout, f'pass_on = "{other}"', start=start)
    done = layout.run(
        layout.load_jobcomp,
        *commands,
        arguments=arguments,
        environment={
            "FAKE_PLUGIN_DIR": f"/nonexistent:{directory}",
            "FAKE_JOB_COMP_LOC": location,
            "OTHER_JOBCOMP": str(notes),
        },
    )
    return done, notes.read_text().splitlines() if notes.exists() else []


def test_the_other_plugin_gets_every_call_that_ours_gets(layout: Layout) -> None:
    done, notes = passing_on(
        layout,
        compile_other(layout),
        *("job name=one job_id=1", "end", "location", "job name=two job_id=2", "end", "get_jobs"),
        "unload jobcomp",
    )
    assert notes == [
        *("init - 0", "location somewhere 0", "end one 1", "location somewhere 0", "end two 2"),
        *("jobs - 0", "fini - 0"),
    ]
    assert (done.answers[2], done.answers[6]) == ("rc=0", "some")
    assert errors(done) == []


def test_the_other_plugin_is_told_of_starts_as_ours_is(layout: Layout) -> None:
    if layout.built.slurm < (25, 5):
        pytest.skip("before 25.05 jobcomp is not told of starts")
    done, notes = passing_on(layout, compile_other(layout), "job name=one job_id=1", "start", "end")
    assert done.answers[2:] == ("rc=0", "rc=0")
    assert notes[-2:] == ["start one 1", "end one 1"]


def test_the_charge_comes_first_and_the_other_plugin_last(layout: Layout, log: Path) -> None:
    """The other one is handed the log's path as its own place: it finds our line there."""
    directory = compile_other(layout)
    configure(layout, f'log = "{log}"', 'pass_on = "jobcomp/other"', start="[Policy]\n")
    done = layout.run(
        *(layout.load_jobcomp, "job name=raise", "end"),
        environment={"FAKE_PLUGIN_DIR": str(directory), "OTHER_JOBCOMP": str(log)},
    )
    assert "standin raised ValueError" in done.log
    assert [line.split("=")[0].split()[0] for line in log.read_text().splitlines()] == [
        *("init", "location"),
        *("JobId", "end"),
    ]


def test_the_other_plugin_is_served_without_python(layout: Layout) -> None:
    directory = compile_other(layout)
    shutil.rmtree(layout.package)
    done, notes = passing_on(layout, directory, "job name=x job_id=7", "end", start="[Policy]\n")
    assert "run_end_unrecorded" in done.log
    assert notes[-1] == "end x 7"


def test_sacct_asks_the_other_plugin(layout: Layout) -> None:
    done, notes = passing_on(layout, compile_other(layout), "get_jobs", arguments=("--as-sacct",))
    assert done.answers[1] == "some"
    assert notes == ["init - 0", "location somewhere 0", "jobs - 0"]


def test_unloading_and_loading_again_loads_the_other_plugin_again(layout: Layout) -> None:
    _, notes = passing_on(
        layout, compile_other(layout), "unload jobcomp", layout.load_jobcomp, "job name=x", "end"
    )
    assert [note.split()[0] for note in notes] == [
        *("init", "location", "fini"),
        *("init", "location", "end"),
    ]


BROKEN = {
    "missing": ((), "no such plugin in /nonexistent:"),
    "another release": (("-DOTHER_VERSION=0x140b00",), "Incompatible plugin version"),
    "init fails": (("-DOTHER_INIT=-1",), "Plugin init() callback failed"),
    "incomplete": (("-DOTHER_INCOMPLETE",), "it has not all the functions of a jobcomp plugin"),
    "another type": (('-DOTHER_TYPE="jobcomp/elsewhere"',), "the file says jobcomp/elsewhere"),
    "no library": ((), "cannot be loaded: "),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_plugin_that_cannot_be_loaded_is_one_line_and_ours_goes_on(
    layout: Layout, how: str
) -> None:
    defines, why = BROKEN[how]
    directory = layout.etc / "plugins"
    if how == "no library":
        directory.mkdir()
        (directory / "jobcomp_other.so").write_text("not a library\n")
    elif how != "missing":
        compile_other(layout, "other", *defines)
    done, notes = passing_on(layout, directory, "end", "location", "get_jobs", "unload jobcomp")
    assert done.answers == ("loaded", "rc=0", "rc=0", "none", "unloaded")
    (told,) = errors(done)
    assert f'jobcomp: {layout.config}: [JobComp] pass_on = "jobcomp/other": ' in told
    assert why in told
    assert not any(note.startswith(("end", "location", "jobs")) for note in notes)


def test_a_place_that_the_other_plugin_does_not_take_is_told_once(layout: Layout) -> None:
    directory = compile_other(layout, "other", "-DOTHER_LOCATION=-1")
    done, notes = passing_on(layout, directory, "location", "job name=x job_id=3", "end")
    assert done.answers[1] == "rc=0"
    (told,) = errors(done)
    assert "does not take JobCompLoc" in told
    assert notes[-1] == "end x 3"


def test_this_plugin_never_loads_itself_by_whatever_name(layout: Layout) -> None:
    directory = layout.etc / "plugins"
    directory.mkdir()
    shutil.copy(layout.built.jobcomp, directory / "jobcomp_slurm_banking.so")
    (directory / "jobcomp_other.so").symlink_to("jobcomp_slurm_banking.so")
    for other, why in (
        ("jobcomp/slurm_banking", 'expected another plugin than this one; taken as ""'),
        ("jobcomp/other", "the file says jobcomp/slurm_banking"),
    ):
        done, _ = passing_on(layout, directory, "end", other=other)
        (told,) = errors(done)
        assert told.endswith(why)
        assert done.answers == ("loaded", "rc=0")


@pytest.mark.parametrize(
    "value", ["elasticsearch", "jobcomp/", "jobcomp/../x", "jobcomp/a/b", "jobcomp/A", "job/x"]
)
def test_a_wrong_pass_on_is_one_line_and_no_plugin(layout: Layout, value: str) -> None:
    done, _ = passing_on(layout, layout.etc, "end", other=value)
    (told,) = errors(done)
    assert told.endswith(
        'expected "" or another plugin in quotes as JobCompType would name it, like "jobcomp/elasticsearch"; taken as ""'
    )


def test_the_real_script_plugin_gets_every_record(layout: Layout) -> None:
    script, seen = layout.etc / "script", layout.etc / "seen"
    script.write_text(f'#!/bin/sh\necho "$JOBID $JOBNAME $JOBSTATE" >>{seen}\n')
    script.chmod(0o755)
    jobs = [f"job name=j{i} job_id={i} state=3 user_id=0 nodes=n1" for i in range(1, 9)]
    passing_on(
        layout,
        directory_of_libslurmfull(),
        *[command for job in jobs for command in (job, "end")],
        *("pause 1500", "unload jobcomp"),
        other="jobcomp/script",
        location=str(script),
    )
    assert seen.read_text().splitlines() == [f"{i} j{i} COMPLETED" for i in range(1, 9)]


# What it costs.


@not_sanitized
def test_a_line_costs_little_and_none_costs_nothing(layout: Layout, log: Path) -> None:
    """A wide bound, a hang's and not a machine's: a line takes about 5 us."""

    def us(*lines: str) -> float:
        configure(layout, *lines)
        done = layout.run(layout.load_jobcomp, f"job {FULL}", "ends 20000")
        return float(done.answers[2].split("=")[1])

    assert us() < 20
    assert us(f'log = "{log}"') < 200
    assert len(log.read_bytes().splitlines()) == 20000


@not_sanitized
def test_memory_stays_flat_over_many_lines(layout: Layout, log: Path) -> None:
    done = to_log(layout, log, f"job {FULL}", "ends 1000", "rss", "ends 20000", "rss")
    before, after = (int(done.answers[i].split("=")[1]) for i in (3, 5))
    assert after - before < 256  # kB
