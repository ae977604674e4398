# SPDX-License-Identifier: BSD-3-Clause
"""The broken builds fit today's source, do what they say on a ledger, and never touch the source."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.broken_builds import BROKEN, Patch, PatchError, Replacement, apply_to

CHECKOUT = Path(__file__).resolve().parents[2]

#: Runs in a copy of the package, and prints what became of a queued job's lien and of two runs that ended.
LEDGER_STORY = """
import os, sys, tempfile
sys.path.insert(0, {packages!r})
from slurm_banking.ledger import Ledger
from slurm_banking.records import Run
assert __import__("slurm_banking").__file__.startswith({packages!r})

def run(job, started, **more):
    return Run(cluster="c", job_id=job, submit_time=100, restart_count=0, user_id=1, user_name="u", account="a",
               partition="p", qos=None, state="COMPLETED" if started else "CANCELLED", start_time=101, end_time=102,
               elapsed_s=1, cpus=1, started=started, source="test", **more)

with tempfile.TemporaryDirectory() as state:
    os.chmod(state, 0o700)
    ledger = Ledger(state, "c", check_directory=False)
    for job, started in ((3, True), (4, True), (5, False)):
        with ledger.transaction() as tx:
            tx.open_lien(account="a", user_id=1, per_task_csu=7, tasks=1, origin="submit", inputs={{}}, reason="r",
                         actor="t", job_id=job, submit_time=100, confirmed=True)
        with ledger.transaction() as tx:
            tx.end_run(run(job, started), charge_csu=5, share_csu=7, inputs={{}}, actor="t")
    with ledger.transaction() as tx:
        ended = [r.job_id for r in tx.ended_runs(since=0, until=1000)]
        print(ended, [lien.job_id for lien in tx.open_liens()])
"""

WIRE_STORY = """
import sys
sys.path.insert(0, {packages!r})
from types import SimpleNamespace
from slurm_banking.bank.wire import BankRun
row = BankRun(bank_job_id="5", user_id="1", account="a", submit_time=100, start_time=101, end_time=None, amount_csu=7,
              state="RUNNING")
print(row.is_of(SimpleNamespace(user_id=1, account="a", submit_time=100, start_time=101)))
"""

SWEEP_STORY = """
import sys
sys.path.insert(0, {packages!r})
from types import SimpleNamespace
from slurm_banking import tokens
from slurm_banking.relay.sweep import _View
lien = SimpleNamespace(lien_id=tokens_id, job_id=None, account="a", user_id=1, created_us=1, open=True)
comment = str(tokens.Token(lien_id=tokens_id, per_task_csu=7, price_version="0" * 8))
job = SimpleNamespace(job_id=5, array_job_id=None, account="a", user_id=1, submit_time=100, admin_comment=comment)
assert tokens.parse(comment) is not None
print(_View([lien], []).lien_of(job) is lien)
"""


def copy_of_the_package(destination: Path) -> Path:
    shutil.copytree(
        CHECKOUT / "slurm_banking",
        destination / "slurm_banking",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return destination


def digest_of_the_source() -> str:
    digest = hashlib.sha256()
    for path in sorted((CHECKOUT / "slurm_banking").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def told_by(packages: Path, story: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", story.format(packages=str(packages))],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        env={"PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_each_patch_applies_to_todays_source_and_compiles(tmp_path: Path, name: str) -> None:
    before = digest_of_the_source()
    packages = copy_of_the_package(tmp_path)
    patch = BROKEN[name]
    apply_to(packages, patch)
    for replacement in patch.replacements:
        changed = (packages / replacement.path).read_text()
        assert replacement.new in changed
        assert changed != (CHECKOUT / replacement.path).read_text()
        compile(changed, replacement.path, "exec")
    assert digest_of_the_source() == before
    with pytest.raises(PatchError, match="already|expected once"):
        apply_to(packages, patch)


def test_text_that_is_not_there_once_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    (tmp_path / "slurm_banking").mkdir()
    path = tmp_path / "slurm_banking" / "a.py"
    path.write_text("x = 1\nx = 1\ny = 2\n")

    def patch(*olds: str) -> Patch:
        return Patch(
            symptom="",
            replacements=tuple(
                Replacement(path="slurm_banking/a.py", old=old, new="z = 3\n") for old in olds
            ),
        )

    for old, times in (("x = 1\n", 2), ("q = 1\n", 0)):
        with pytest.raises(PatchError, match=f"a.py: '{old.strip()}': found {times} times"):
            apply_to(tmp_path, patch("y = 2\n", old))
    assert path.read_text() == "x = 1\nx = 1\ny = 2\n"
    with pytest.raises(ValueError, match="a checkout"):
        apply_to(CHECKOUT, patch("y = 2\n"))


def test_skips_a_commit_and_no_void_do_so_on_a_ledger(tmp_path: Path) -> None:
    said = {}
    for name in ("", "skips_a_commit", "no_void"):
        packages = copy_of_the_package(tmp_path / (name or "whole"))
        if name:
            apply_to(packages, BROKEN[name])
        said[name] = told_by(packages, LEDGER_STORY)
    assert said == {"": "[3, 4] []", "skips_a_commit": "[4] [3]", "no_void": "[3, 4] [5]"}


def test_no_idempotency_takes_a_runs_own_row_for_anothers(tmp_path: Path) -> None:
    packages = copy_of_the_package(tmp_path)
    assert told_by(packages, WIRE_STORY) == "True"
    apply_to(packages, BROKEN["no_idempotency"])
    assert told_by(packages, WIRE_STORY) == "False"


def test_no_confirmation_does_not_know_a_lien_by_its_token(tmp_path: Path) -> None:
    story = SWEEP_STORY.replace("tokens_id", repr("ab" * 16))
    packages = copy_of_the_package(tmp_path)
    assert told_by(packages, story) == "True"
    apply_to(packages, BROKEN["no_confirmation"])
    assert told_by(packages, story) == "False"
