# SPDX-License-Identifier: BSD-3-Clause
"""The real plugins, built once into a scratch directory, and a fake slurmctld that opens them.

The import path is compiled into the plugins, so the scratch directory is what the tests change: `layout` gives each test a
fresh one. Needs root, since the plugins accept import directories of root's only.

With BANKING_SANITIZE=1 everything is built with AddressSanitizer and UndefinedBehaviorSanitizer (`make sanitize`). What
CPython never frees is not looked at: leaks are looked for call by call, in tests/sanitize.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Tuple

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PYTHON = "/usr/bin/python3"
SANITIZE = bool(os.environ.get("BANKING_SANITIZE"))
SANITIZERS = (
    *("-O1", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
)
#: The process ends at the first finding; CPython's memory at the end of a process is no finding.
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:abort_on_error=1",
}
not_sanitized = pytest.mark.skipif(
    SANITIZE, reason="the sanitizers have memory and symbols of their own"
)
#: How a daemon's line on stderr begins in newer releases; in older ones it is its name.
DAEMONS_TIME = r"^\[[-0-9T:.]+\] "
LIBSLURMFULL = ("/usr/lib/*-linux-gnu/slurm-wlm", "/usr/lib64/slurm", "/usr/lib/slurm")


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if HERE in Path(item.fspath).parents and "built" in getattr(item, "fixturenames", ()):
                item.add_marker(
                    pytest.mark.skip(reason="needs root: import directories must be root's")
                )


@dataclass(frozen=True)
class Built:
    scratch: Path
    objects: Path
    fake_slurmctld: Path
    fake_slurmstepd: Path
    slurm_tree: Path
    #: What everything was compiled with besides.
    flags: Tuple[str, ...] = ()
    #: What processes with these flags need in their environment.
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def slurm(self) -> Tuple[int, int]:
        """The release of Slurm that everything was built for, as (major, minor)."""
        meta = (self.slurm_tree / "META").read_text()
        major, minor = re.findall(r"^\s*(?:Major|Minor):\s*0*(\d+)", meta, re.MULTILINE)
        return int(major), int(minor)

    @property
    def job_submit(self) -> Path:
        return self.objects / "job_submit_slurm_banking.so"

    @property
    def jobcomp(self) -> Path:
        return self.objects / "jobcomp_slurm_banking.so"

    @property
    def spank(self) -> Path:
        return self.objects / "spank_slurm_banking.so"


def make(*arguments: str, csrc: Path = ROOT / "csrc") -> str:
    command = ["make", "--no-print-directory", "-s", "-C", str(csrc), *arguments]
    if os.environ.get("SLURM_SRC"):
        command.append(f"SLURM_SRC={os.environ['SLURM_SRC']}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compile_c(*arguments: object) -> None:
    command = ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def directory_of_libslurmfull() -> Path:
    for pattern in LIBSLURMFULL:
        for found in Path("/").glob(f"{pattern[1:]}/libslurmfull.so"):
            return found.parent
    raise AssertionError(f"no libslurmfull.so in {', '.join(LIBSLURMFULL)}")


def build(
    scratch: Path,
    *,
    sanitize: bool,
    slurmctld: Path = HERE / "fake_slurmctld.c",
    csrc: Path = ROOT / "csrc",
) -> Built:
    """Everything, into `scratch`; `csrc` may be a changed copy, to see what a test finds in it."""
    flags = SANITIZERS if sanitize else ()
    constants = [
        f"BUILD={scratch}/build",
        f"LIBDIR={scratch}/lib/slurm-banking",
        f"PYTHON_STDLIB={scratch}/stdlib",
        f"PYTHON_DYNLOAD={scratch}/dynload",
        f"PYTHON_CFFI={scratch}/cffi",
    ]
    if sanitize:
        constants += [f"CFLAGS=-g {' '.join(flags)}", f"LDFLAGS={' '.join(flags)}"]
    make("plugins", *constants, csrc=csrc)
    tree = Path(make("slurm-tree", *constants, csrc=csrc).strip())
    slurm = directory_of_libslurmfull()
    fake_slurmctld, fake_slurmstepd = scratch / "fake_slurmctld", scratch / "fake_slurmstepd"
    compile_c(
        *(*flags, "-rdynamic", "-pthread", f"-I{ROOT}/csrc", "-isystem", tree, slurmctld),
        *("-o", fake_slurmctld, f"-L{slurm}", "-l:libslurmfull.so", f"-Wl,-rpath,{slurm}", "-ldl"),
    )
    compile_c(
        *(*flags, "-rdynamic", "-isystem", tree, HERE / "fake_slurmstepd.c"),
        *("-o", fake_slurmstepd, "-ldl"),
    )
    return Built(
        scratch=scratch,
        objects=scratch / "build" / "csrc",
        fake_slurmctld=fake_slurmctld,
        fake_slurmstepd=fake_slurmstepd,
        slurm_tree=tree,
        flags=flags,
        environment=SANITIZER_OPTIONS if sanitize else {},
    )


@pytest.fixture(scope="session")
def built() -> Iterator[Built]:
    scratch = Path(tempfile.mkdtemp(prefix="slurm-banking-plugins-"))
    yield build(scratch, sanitize=SANITIZE)
    shutil.rmtree(scratch)


@dataclass(frozen=True)
class Layout:
    """What the plugins find: import directories and configuration. Tests break it in one way each."""

    built: Built
    lib: Path
    package: Path
    stdlib: Path
    dynload: Path
    cffi: Path
    etc: Path
    config: Path

    def run(
        self,
        *commands: str,
        arguments: Tuple[str, ...] = (),
        environment: Optional[Dict[str, str]] = None,
    ) -> "Transcript":
        done = subprocess.run(
            [str(self.built.fake_slurmctld), *arguments],
            input="".join(f"{command}\n" for command in commands),
            env={
                "SLURM_CONF": str(self.etc / "slurm.conf"),
                **self.built.environment,
                **(environment or {}),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        answers = done.stdout.splitlines()
        assert len(answers) == len(commands), (commands, answers)
        log = re.sub(DAEMONS_TIME, "slurmctld: ", done.stderr, flags=re.MULTILINE)
        return Transcript(commands=commands, answers=tuple(answers), log=log)

    @property
    def load_job_submit(self) -> str:
        return f"load job_submit {self.built.job_submit}"

    @property
    def load_jobcomp(self) -> str:
        return f"load jobcomp {self.built.jobcomp}"

    def submit(self, pairs: str = "") -> "Submitted":
        """Load, submit once, and take the answer apart."""
        return Submitted.of(self.run(self.load_job_submit, f"submit {pairs}").answers[1])


@dataclass(frozen=True)
class Transcript:
    commands: Tuple[str, ...]
    answers: Tuple[str, ...]
    log: str


@dataclass(frozen=True)
class Submitted:
    rc: int
    admin_comment: str
    message: str

    @classmethod
    def of(cls, line: str) -> "Submitted":
        match = re.fullmatch(r"rc=(\d+) admin_comment=\[(.*?)\] message=\[(.*)\]", line)
        assert match, line
        return cls(rc=int(match[1]), admin_comment=match[2], message=match[3].replace("\\n", "\n"))


def clear(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def lay_out(built: Built) -> Layout:
    """A fresh one in its scratch directory, with the stand-in for the policy engine."""
    layout = Layout(
        built=built,
        lib=built.scratch / "lib" / "slurm-banking",
        package=built.scratch / "lib" / "slurm-banking" / "slurm_banking",
        stdlib=built.scratch / "stdlib",
        dynload=built.scratch / "dynload",
        cffi=built.scratch / "cffi",
        etc=built.scratch / "etc",
        config=built.scratch / "etc" / "bank-config.toml",
    )
    for path in (built.scratch / "lib", layout.stdlib, layout.dynload, layout.cffi, layout.etc):
        clear(path)
    shutil.copytree(HERE / "standin" / "slurm_banking", layout.package)
    for directory in (built.scratch / "lib", layout.lib, layout.package):
        directory.chmod(0o755)
    facts = subprocess.run(
        [PYTHON, "-I", str(ROOT / "csrc" / "python_facts.py")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    layout.stdlib.symlink_to(facts[0])
    layout.dynload.symlink_to(facts[1])
    layout.cffi.symlink_to(facts[2])
    layout.etc.mkdir()
    (layout.etc / "slurm.conf").touch()
    layout.config.write_text("[Policy]\n")
    return layout


@pytest.fixture
def layout(built: Built) -> Layout:
    return lay_out(built)
