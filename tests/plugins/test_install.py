# SPDX-License-Identifier: BSD-3-Clause
"""`make install` into an empty root, and `make uninstall` out of it."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
from pathlib import Path
from typing import Set

import pytest

from .conftest import ROOT, Built, make


def files_below(root: Path) -> Set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


@pytest.fixture(scope="module")
def arguments(built: Built, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("root")
    return [
        f"DESTDIR={root}",
        f"BUILD={built.scratch}/install-build",
        "PLUGINDIR=/usr/lib64/slurm",
        "LIBDIR=/usr/lib/slurm-banking",
    ]


@pytest.fixture(scope="module")
def root(arguments: list[str]) -> Path:
    root = Path(arguments[0].split("=")[1])
    (root / "etc/slurm").mkdir(parents=True)
    (root / "etc/slurm/bank-config.toml").write_text("the operator's\n")
    (root / "usr/lib64/slurm").mkdir(parents=True)
    (root / "usr/lib64/slurm/job_submit_lua.so").write_text("somebody else's\n")
    os.umask(0o002)  # an administrator's habit must not open the packages to a group
    try:
        make("install", *arguments)
    finally:
        os.umask(0o022)
    return root


def test_install_puts_everything_where_slurm_and_the_shell_look(root: Path) -> None:
    installed = files_below(root)
    for path in (
        "usr/lib64/slurm/job_submit_slurm_banking.so",
        "usr/lib64/slurm/jobcomp_slurm_banking.so",
        "etc/slurm/spank/spank_slurm_banking.so",
        "usr/bin/slurm-banking",
        "usr/lib/slurm-banking/slurm_banking/boundary/embedded.py",
        "usr/lib/slurm-banking/slurm_banking/ledger/schema.sql",
        "usr/lib/slurm-banking/mybrc_client/client.py",
        "usr/lib/systemd/system/slurm-banking-relay.service",
        "usr/lib/tmpfiles.d/slurm-banking.conf",
        "usr/share/doc/slurm-banking/bank-config.toml.example",
        "usr/share/doc/slurm-banking/README.md",
        "usr/share/doc/slurm-banking/docs/operating.md",
    ):
        assert path in installed


def test_the_unit_names_documents_that_are_installed(root: Path) -> None:
    unit = (root / "usr/lib/systemd/system/slurm-banking-relay.service").read_text()
    (line,) = re.findall(r"^Documentation=(.+)$", unit, re.MULTILINE)
    for uri in line.split():
        assert (root / uri.removeprefix("file:/")).is_file(), uri
    assert "@" not in unit


def test_the_links_of_the_installed_documents_lead_somewhere(root: Path) -> None:
    documents = root / "usr/share/doc/slurm-banking"
    followed = 0
    for page in documents.rglob("*.md"):
        for path in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / path).exists(), f"{page}: {path}"
            followed += 1
    assert followed > 20


def test_tomli_is_copied_where_slurmctld_looks_and_taken_away_again(
    arguments: list[str], tmp_path: Path
) -> None:
    tomli = tmp_path / "site/tomli"
    tomli.mkdir(parents=True)
    (tomli / "__init__.py").write_text("__version__ = '2'\n")
    (tomli / "_parser.cpython-39.so").write_text("compiled for somebody else\n")
    own = [*arguments, f"DESTDIR={tmp_path}/root", f"TOMLI={tomli}"]
    make("install", *own)
    copy = tmp_path / "root/usr/lib/slurm-banking/tomli"
    assert sorted(path.name for path in copy.iterdir()) == ["__init__.py", "__pycache__"]
    make("install", *own[:-1])  # a newer Python: no longer needed
    assert not copy.exists()
    make("install", *own)
    make("uninstall", *own)
    assert files_below(tmp_path / "root") == set()


def test_a_python_without_tomli_that_needs_it_is_told_before_anything_is_installed(
    arguments: list[str], tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="needs the package tomli"):
        make("install", *arguments, f"DESTDIR={tmp_path}/root", "TOMLI=missing")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("version", "found", "answer"),
    [
        ((3, 11), None, ""),
        ((3, 10), None, "missing"),
        ((3, 9), "/usr/lib64/python3.9/site-packages/tomli/__init__.py", ""),
        (
            (3, 9),
            "/usr/lib/python3.9/site-packages/tomli/__init__.py",
            "/usr/lib/python3.9/site-packages/tomli",
        ),
    ],
)
def test_what_has_to_be_copied_is_what_slurmctld_would_not_find(
    version: tuple[int, ...], found: str | None, answer: str
) -> None:
    facts = runpy.run_path(str(ROOT / "csrc" / "python_facts.py"))
    import_dirs = ["/usr/lib64/python3.9", "/usr/lib64/python3.9/site-packages"]
    assert facts["tomli_to_copy"](version, found, import_dirs) == answer


def test_install_leaves_the_configuration_alone(root: Path) -> None:
    assert (root / "etc/slurm/bank-config.toml").read_text() == "the operator's\n"


def test_what_is_installed_passes_the_plugins_own_check(root: Path) -> None:
    library = root / "usr/lib/slurm-banking"
    for path in (library, *library.rglob("*")):
        status = path.stat()
        assert status.st_uid == 0 and not status.st_mode & 0o022, path


def test_modules_are_compiled_ahead_for_the_embedded_python(root: Path) -> None:
    cache = root / "usr/lib/slurm-banking/slurm_banking/boundary/__pycache__"
    assert list(cache.glob("embedded.*.pyc"))


def test_the_command_runs_from_the_installed_package(root: Path) -> None:
    text = (root / "usr/bin/slurm-banking").read_text()
    assert text.startswith("#!/usr/bin/python3 -I\n")
    done = subprocess.run(
        [
            "/usr/bin/python3",
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, '{root}/usr/lib/slurm-banking'); "
            "import slurm_banking.node_start, slurm_banking.config as c; print(c.__file__)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(root) in done.stdout


def test_uninstall_takes_away_exactly_what_install_brought(
    root: Path, arguments: list[str]
) -> None:
    make("install", *arguments)  # again: nothing stands in its way
    make("uninstall", *arguments)
    assert files_below(root) == {
        "etc/slurm/bank-config.toml",
        "usr/lib64/slurm/job_submit_lua.so",
    }
    assert not (root / "usr/lib/slurm-banking").exists()
    make("uninstall", *arguments)  # and again: nothing to do
