# SPDX-License-Identifier: BSD-3-Clause
"""Each way that loading can fail: what slurmctld's log says, and what then happens to jobs, word for word.

The expected transcripts are in golden/. `BANKING_UPDATE_GOLDEN=1` writes them anew; read the difference before committing it.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Callable, Dict

import pytest

from .conftest import HERE, Layout, clear

GOLDEN = HERE / "golden"
EMBEDDED = "boundary/embedded.py"


def on_error(layout: Layout, value: str) -> None:
    layout.config.write_text(f'[Policy]\non_plugin_error = "{value}"  # as the operator chose\n')


def missing_stdlib(layout: Layout) -> None:
    layout.stdlib.unlink()


def empty_stdlib(layout: Layout) -> None:
    layout.stdlib.unlink()
    layout.stdlib.mkdir(0o755)


def missing_cffi_backend(layout: Layout) -> None:
    layout.cffi.unlink()
    layout.cffi.mkdir(0o755)


def missing_package(layout: Layout) -> None:
    shutil.rmtree(layout.package)


def missing_import_directory(layout: Layout) -> None:
    shutil.rmtree(layout.lib)


def syntax_error_in_package(layout: Layout) -> None:
    (layout.package / EMBEDDED).write_text("# a comment\n\ndef attach(:\n")


def exception_at_import(layout: Layout) -> None:
    (layout.package / EMBEDDED).write_text("import json\n\nraise RuntimeError('two\\nlines')\n")


def missing_module(layout: Layout) -> None:
    (layout.package / EMBEDDED).write_text("import json\nimport no_such_module\n")


def exception_in_attach(layout: Layout) -> None:
    (layout.package / EMBEDDED).write_text("def attach(ffi, lib):\n    return 1 / 0\n")


def no_attach(layout: Layout) -> None:
    (layout.package / EMBEDDED).write_text("")


def exception_in_start(layout: Layout) -> None:
    layout.config.write_text("raise = 1\n")


def group_writable_import_directory(layout: Layout) -> None:
    layout.lib.chmod(0o775)


def world_writable_parent(layout: Layout) -> None:
    layout.lib.parent.chmod(0o777)


def foreign_owner(layout: Layout) -> None:
    os.chown(layout.package, 12345, 0)


def symbolic_link_into_a_users_directory(layout: Layout) -> None:
    elsewhere = layout.built.scratch / "etc" / "elsewhere"
    shutil.move(str(layout.lib), elsewhere)
    os.chown(elsewhere, 12345, 12345)
    layout.lib.symlink_to(elsewhere)


def missing_config(layout: Layout) -> None:
    layout.config.unlink()


def broken_config(layout: Layout) -> None:
    layout.config.write_text("[Policy]\nbroken = 1\n")


def on_plugin_error_accept(layout: Layout) -> None:
    missing_package(layout)
    on_error(layout, "accept")


def on_plugin_error_reject(layout: Layout) -> None:
    missing_package(layout)
    on_error(layout, "reject")


def on_plugin_error_abort(layout: Layout) -> None:
    missing_package(layout)
    on_error(layout, "abort")


def on_plugin_error_mistyped(layout: Layout) -> None:
    missing_package(layout)
    on_error(layout, "rejekt")


def broken_config_reject(layout: Layout) -> None:
    layout.config.write_text('[Policy]\nbroken = 1\non_plugin_error = "reject"\n')


def switched_off(layout: Layout) -> None:
    missing_package(layout)
    layout.config.write_text(
        "[Enable]\nenable_job_submit_plugin = false\nenable_job_complete_plugin=false # for now\n"
    )


CASES: Dict[str, Callable[[Layout], None]] = {
    case.__name__: case
    for case in (
        missing_stdlib,
        empty_stdlib,
        missing_cffi_backend,
        missing_package,
        missing_import_directory,
        syntax_error_in_package,
        exception_at_import,
        missing_module,
        exception_in_attach,
        no_attach,
        exception_in_start,
        group_writable_import_directory,
        world_writable_parent,
        foreign_owner,
        symbolic_link_into_a_users_directory,
        missing_config,
        broken_config,
        broken_config_reject,
        on_plugin_error_accept,
        on_plugin_error_reject,
        on_plugin_error_abort,
        on_plugin_error_mistyped,
        switched_off,
    )
}


UNCHECKED = (
    "The cost of this job could not be checked, and this cluster does not accept jobs without that check."
    " Please try again later; if it stays so, contact the cluster's support."
)


def transcript(layout: Layout, aborts: bool) -> str:
    if aborts:
        commands = [layout.load_job_submit, layout.load_jobcomp]
    else:
        commands = [layout.load_job_submit, layout.load_jobcomp, "submit account=astro"]
        commands += ["submit account=astro", "job part=normal", "update time_limit=90"]
        commands += ["update uid=900 time_limit=90", "end", "end"]
    done = layout.run(*commands)
    lines = [f"{command} -> {answer}" for command, answer in zip(commands, done.answers)]
    # what the stand-in says about the structs it gets is not part of the picture
    log = [line for line in done.log.splitlines() if "slurm_banking: {" not in line]
    text = "\n".join([*lines, "", *log, ""])
    # From Slurm 23.02 on an update that is refused is told what a submission is; before, it cannot be told anything.
    text = re.sub(
        rf"(update \S+ -> rc=2050 admin_comment=\[\] message=)\[{re.escape(UNCHECKED)}\]",
        r"\1[]",
        text,
    )
    text = text.replace(str(layout.built.objects), "@PLUGINS@")
    text = text.replace(str(layout.built.scratch), "@SCRATCH@")
    return re.sub(r"Python \d+\.\d+\.\d+", "Python @VERSION@", text)


@pytest.mark.parametrize("case", CASES)
def test_each_way_that_loading_fails_has_its_line_and_its_outcome(
    case: str, layout: Layout
) -> None:
    CASES[case](layout)
    try:
        found = transcript(layout, aborts=case == "on_plugin_error_abort")
    finally:
        clear(layout.built.scratch / "lib")
    golden: Path = GOLDEN / f"{case}.txt"
    if os.environ.get("BANKING_UPDATE_GOLDEN"):
        golden.write_text(found)
    assert found == golden.read_text()


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)
