# SPDX-License-Identifier: BSD-3-Clause
"""Emit the C file of a cffi embedding module: `build_plugins.py NAME OUTPUT.c`.

What cffi would do at the first call (start Python, create the module, run init code, print a traceback to a stderr that a
daemon does not have) is done explicitly in python_start.c instead, where each step that fails has its own line; cffi's
first-call path also spins on a word of a libpython type object, which has no place in slurmctld. The few lines appended to
the generated file switch the module over to direct calls once that succeeded.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent

ENTRY_POINTS = {
    "_banking_job_submit": (
        "void banking_py_start(const banking_host *, banking_reply *);",
        "void banking_py_submit(const banking_submission *, banking_reply *);",
        "void banking_py_update(const banking_update *, banking_reply *);",
    ),
    "_banking_jobcomp": (
        "void banking_py_start(const banking_host *, banking_reply *);",
        "void banking_py_run_ended(const banking_run *, banking_reply *);",
        "void banking_py_run_started(const banking_run *, banking_reply *);",
    ),
}

#: Appended to the generated file: it uses three names of cffi's embedding code, unchanged since cffi 1.5.
ATTACH = """
#include "python_start.h"

static void *create_module(void)
{
\treturn _CFFI_PYTHON_STARTUP_FUNC();
}

int banking_attach(char *why, size_t size)
{
\tif (_cffi_call_python != &_cffi_start_and_call_python)
\t\treturn 0;
\tif (banking_python_attach(create_module, why, size))
\t\treturn -1;
\t_cffi_call_python = (_cffi_call_python_fnptr) _cffi_call_python_org;
\treturn 0;
}
"""


def declarations() -> str:
    """banking.h without its preprocessor lines, but with the #define lines of plain integers."""
    lines = (HERE / "banking.h").read_text(encoding="utf-8").splitlines()
    kept = [
        line
        for line in lines
        if not line.startswith("#") or re.match(r"#define \w+ +\d+\s*$", line)
    ]
    return "\n".join(kept)


def emit(name: str, output: Path) -> None:
    ffi = cffi.FFI()
    ffi.cdef(declarations())
    ffi.cdef("void banking_log(int level, const char *line);")
    ffi.embedding_api("\n".join(ENTRY_POINTS[name]))
    ffi.embedding_init_code("")
    ffi.set_source(
        name, '#include "banking.h"\nextern void banking_log(int level, const char *line);'
    )
    ffi.emit_c_code(str(output))
    with output.open("a", encoding="utf-8") as stream:
        stream.write(ATTACH)


if __name__ == "__main__":
    emit(sys.argv[1], Path(sys.argv[2]))
