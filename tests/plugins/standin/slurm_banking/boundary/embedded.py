# SPDX-License-Identifier: BSD-3-Clause
# mypy: ignore-errors
"""A stand-in for the policy engine, for the tests of the C side: it does what the job's name says."""

from __future__ import annotations

import json
import os
import sys

INITS = []
NOT_READY = []


def text(ffi, pointer):
    return None if pointer == ffi.NULL else ffi.string(pointer).decode()


def plain(ffi, struct):
    """Every field of a cffi struct, strings decoded, nested structs as dicts."""
    result = {}
    for name, field in ffi.typeof(struct[0]).fields:
        value = getattr(struct[0], name)
        kind = field.type
        if kind.kind == "pointer" and kind.item.cname == "char":
            result[name] = text(ffi, value)
        elif kind.kind == "struct":
            result[name] = plain(ffi, ffi.addressof(struct[0], name))
        elif kind.kind == "pointer":
            count = struct[0].partition_count if name == "partitions" else struct[0].shape_count
            result[name] = [plain(ffi, value + i) for i in range(count)]
        else:
            result[name] = value
    return result


def attach(ffi, lib):
    def answer(reply, verdict, message="", token=""):
        reply.message = message.encode()
        reply.token = token.encode()
        reply.verdict = verdict

    def failed(kind, value, traceback):
        lib.banking_log(lib.BANKING_LOG_ERROR, f"standin raised {kind.__name__}: {value}".encode())

    def start(host, reply):
        INITS.append(text(ffi, host.plugin))
        path = text(ffi, host.config_path)
        NOT_READY[:] = [f"{path}: not usable"]
        if not os.path.exists(path):
            answer(reply, lib.BANKING_UNDECIDED, f"{path}: no such file")
        elif "broken" in open(path).read():
            answer(
                reply,
                lib.BANKING_UNDECIDED,
                f"{path}: [Policy] broken: expected nothing of the kind",
            )
        elif "raise" in open(path).read():
            raise RuntimeError("as the configuration says")
        else:
            NOT_READY.clear()
            answer(reply, lib.BANKING_ACCEPTED)

    def act(what, struct, reply):
        name = what or ""
        if NOT_READY:
            answer(reply, lib.BANKING_UNDECIDED, NOT_READY[0])
        elif name == "raise":
            raise ValueError("as the job's name says")
        elif name == "undecided":
            answer(reply, lib.BANKING_UNDECIDED, "the ledger is busy")
        elif name == "full":
            answer(reply, lib.BANKING_NO_ROOM, "nobody is told")
        elif name == "refuse":
            answer(reply, lib.BANKING_REFUSED, "too dear\nby far", "slurm_banking=00:1:v1")
        elif name == "describe":
            facts = plain(ffi, struct)
            lib.banking_log(lib.BANKING_LOG_INFO, json.dumps(facts).encode())
            answer(reply, lib.BANKING_ACCEPTED)
            if (facts.get("array_inx") or "").startswith("1-"):
                reply.tasks = int(facts["array_inx"][2:])
        elif name == "facts":
            parts = plain(ffi, struct)["partitions"]
            gres = {shape["gres"] for part in parts for shape in part["shapes"]}
            right = [part["name"] for part in parts] == ["many", "whole", "nowhere", "many"] and (
                gres == {"gpu:a100:4", "gpu:a100:4,gpu:t4:2", "gpu:a100:4,craynetwork:4"}
            )
            answer(reply, lib.BANKING_ACCEPTED if right else lib.BANKING_REFUSED)
        elif name == "interpreter":
            facts = {
                "path": sys.path,
                "inits": INITS,
                "isolated": sys.flags.isolated,
                "no_site": sys.flags.no_site,
                "site": "site" in sys.modules,
                "prefix": sys.prefix,
                "dont_write_bytecode": sys.flags.dont_write_bytecode,
                "utf8": sys.flags.utf8_mode,
                "hash": getattr(sys, "pythonstartup", None),
            }
            answer(reply, lib.BANKING_ACCEPTED, json.dumps(facts, sort_keys=True))
        elif name == "extension":
            import socket  # _socket is not linked to libpython: needs its symbols global
            import sqlite3

            answer(reply, lib.BANKING_ACCEPTED, f"{socket.AF_INET:d} {sqlite3.sqlite_version}")
        elif name == "log":
            line = b"%s %n 100% of what a user may type"
            lib.banking_log(lib.BANKING_LOG_INFO, line)
            answer(reply, lib.BANKING_ACCEPTED)
        elif name == "lines":
            lib.banking_log(
                lib.BANKING_LOG_INFO,
                b"one\r\n[2026] error: two\x1b[2J \xff\xc3 \xe2\x80\xa8 \xc3\xa9",
            )
            lib.banking_log(lib.BANKING_LOG_INFO, b"y" * 1000000)
            reply.message = b"one\n\ttwo\r\x1b[2J\x7f \xed\xa0\x80 \xc3\xa9 \xc3"
            reply.verdict = lib.BANKING_REFUSED
        elif name == "long":
            reply.message[0 : lib.BANKING_MESSAGE_SIZE] = b"x" * lib.BANKING_MESSAGE_SIZE
            reply.verdict = lib.BANKING_ACCEPTED
        elif name == "token":
            answer(reply, lib.BANKING_ACCEPTED, "0.50 SU", "slurm_banking=" + "ab" * 16 + ":50:v1")
        else:
            answer(reply, lib.BANKING_ACCEPTED)

    ffi.def_extern(name="banking_py_start", onerror=failed)(start)
    if hasattr(lib, "banking_py_submit"):
        ffi.def_extern(name="banking_py_submit", onerror=failed)(
            lambda submission, reply: act(text(ffi, submission.name), submission, reply)
        )

        def update(wanted, reply):
            lib.banking_log(lib.BANKING_LOG_INFO, json.dumps(plain(ffi, wanted)).encode())
            act(text(ffi, wanted.wanted.name), wanted, reply)

        ffi.def_extern(name="banking_py_update", onerror=failed)(update)
    if hasattr(lib, "banking_py_run_ended"):

        def ended(run, reply):
            lib.banking_log(lib.BANKING_LOG_INFO, json.dumps(plain(ffi, run)).encode())
            act(text(ffi, run.name), run, reply)

        ffi.def_extern(name="banking_py_run_ended", onerror=failed)(ended)
        ffi.def_extern(name="banking_py_run_started", onerror=failed)(ended)
