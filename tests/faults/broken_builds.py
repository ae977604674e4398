# SPDX-License-Identifier: BSD-3-Clause
"""Deliberately broken copies of the installed package: whoever judges a site has to find each of them.

    site = BankedCluster(...)
    apply(site, "no_void")      # prepares the site; the package in its stage is changed, the source never is
    site.start()

A replacement names text of the source exactly. Text that is not there once, and only once, is an error: the
source has moved on, and the patch has to follow.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tests.rig.cluster import Cluster


class PatchError(Exception):
    """A patch does not fit the source; the message names file and text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replacement:
    path: str  #: under the package's parent: slurm_banking/…
    old: str
    new: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patch:
    """`symptom`: what is wrong on a site that runs it, and what it takes to see it."""

    symptom: str
    replacements: tuple[Replacement, ...]


BROKEN: Mapping[str, Patch] = MappingProxyType(
    {
        "skips_a_commit": Patch(
            symptom=(
                "One job in three: its charge is told as done and rolled back, by whoever tells its end. Its run stays "
                "in the state running for ever, and neither ledger nor bank have what sacct has: lost."
            ),
            replacements=(
                Replacement(
                    path="slurm_banking/ledger/transaction.py",
                    old='        return EndResult(\n            kind="charged",\n',
                    new="        if run.job_id % 3 == 0:\n"
                    "            charged = self.run(existing.run_id)\n"
                    '            self._connection.execute("ROLLBACK")\n'
                    '            self._connection.execute("BEGIN IMMEDIATE")\n'
                    '            return EndResult(kind="charged", run=charged)\n'
                    '        return EndResult(\n            kind="charged",\n',
                ),
            ),
        ),
        "no_idempotency": Patch(
            symptom=(
                "After a start or an end that the bank has and did not say so (lose_answer, trickle, truncated, hang), "
                "the run's own row is taken for another job's: it is told again under <id>-<submit time>, and the bank "
                "counts it twice: doubled."
            ),
            replacements=(
                Replacement(
                    path="slurm_banking/bank/wire.py",
                    old="        return self.submit_time == run.submit_time\n",
                    new="        return False\n",
                ),
            ),
        ),
        "no_void": Patch(
            symptom="A job that is cancelled before it runs keeps its lien, whoever notices: an open lien at the end.",
            replacements=(
                Replacement(
                    path="slurm_banking/ledger/transaction.py",
                    old='        self._run("end_lien", {"lien_id": lien.lien_id, "kind": kind, "now_us": self.now_us})\n',
                    new='        if kind == "lien_voided":\n'
                    "            return 0\n"
                    '        self._run("end_lien", {"lien_id": lien.lien_id, "kind": kind, "now_us": self.now_us})\n',
                ),
            ),
        ),
        "no_confirmation": Patch(
            symptom=(
                "The sweep does not know a lien by its token: a job that waits is never seen to have the lien of its "
                "submission. That stays unconfirmed, expires after lien_grace_s (6 s in the rig) while its job is in "
                "the queue, and no other takes its place: an entry lien_expired for a lien whose token a job of Slurm "
                "carries in its AdminComment, and a run that starts with nothing set aside."
            ),
            replacements=(
                Replacement(
                    path="slurm_banking/relay/sweep.py",
                    old="        lien = None if token is None else self.liens.get(token.lien_id)\n",
                    new="        lien = None\n",
                ),
                Replacement(
                    path="slurm_banking/relay/sweep.py",
                    old="    if found is None and (known is None or known.user_id != job.user_id):\n",
                    new="    if found is None and token is None and (known is None or known.user_id != job.user_id):\n",
                ),
            ),
        ),
    }
)


def patched(text: str, replacement: Replacement) -> str:
    """:raises PatchError: what is to be replaced is not there exactly once, or has been replaced."""
    found = text.count(replacement.old)
    if replacement.old in replacement.new and replacement.new in text:
        raise PatchError(f"{replacement.path}: is broken like that already")
    if found != 1:
        first = replacement.old.strip().splitlines()[0]
        raise PatchError(
            f"{replacement.path}: {first!r}: found {found} times, expected once: bring tests/faults/broken_builds.py "
            "up to the source"
        )
    return text.replace(replacement.old, replacement.new)


def apply_to(packages: Path, patch: Patch) -> None:
    """To the copy of slurm_banking in this directory: all of it, or nothing.

    :raises PatchError: see :func:`patched`; ValueError: that is no copy, but the checkout.
    """
    if (packages / "pyproject.toml").exists():
        raise ValueError(f"{packages}: a checkout; expected the directory of an installed copy")
    texts: dict[Path, str] = {}
    for replacement in patch.replacements:
        path = packages / replacement.path
        text = texts.get(path)
        texts[path] = patched(
            path.read_text(encoding="utf-8") if text is None else text, replacement
        )
    for path, text in texts.items():
        compile(text, str(path), "exec")
        # Beside and renamed: a hard link into somebody's source is not written through.
        scratch = path.with_name(path.name + ".new")
        scratch.write_text(text, encoding="utf-8")
        os.chmod(scratch, stat.S_IMODE(path.stat().st_mode))
        scratch.replace(path)
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()


def apply(site: Cluster, name: str) -> Patch:
    """Prepares the site if that is not done yet, and breaks the package in its stage. Before `start()`."""
    patch = BROKEN[name]
    site.prepare()
    apply_to(site.stage_dir / "lib", patch)
    return patch
