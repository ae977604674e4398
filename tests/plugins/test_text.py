# SPDX-License-Identifier: BSD-3-Clause
"""What leaves us for a log or a terminal is printable UTF-8, whatever a user put into a job, and whatever Python made of it."""

from __future__ import annotations

import ctypes
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from .conftest import ROOT, Layout, compile_c


def test_a_log_line_is_one_printable_line_of_bounded_length_whatever_is_in_it(
    layout: Layout,
) -> None:
    done = layout.run(layout.load_job_submit, "submit name=lines")
    lines = done.log.splitlines()
    assert "slurmctld: slurm_banking: one??[2026] error: two?[2J ?? ??? é" in lines
    (long,) = [line for line in lines if "yyy" in line]
    assert len(long.split("slurm_banking: ")[1]) == 65536


def test_a_message_is_printable_text_in_lines_whatever_is_in_it(layout: Layout) -> None:
    message = layout.submit("name=lines").message
    assert message == "one\n\ttwo??[2J? ??? é ?"


@pytest.fixture(scope="module")
def text_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library: Path = tmp_path_factory.mktemp("text") / "text.so"
    compile_c("-shared", "-fPIC", ROOT / "csrc" / "text.c", "-o", library)
    return ctypes.CDLL(str(library))


def is_plain(character: str, kept: str) -> bool:
    return character in kept or not (
        unicodedata.category(character) in ("Cc", "Zl", "Zp") or "\ud800" <= character <= "\udfff"
    )


@given(st.one_of(st.binary(max_size=40), st.text(max_size=20).map(lambda t: t.encode())))
@example(b"\xc0\x80\xe0\x80\x80\xf4\x90\x80\x80\xf8\x88\x80\x80\x80")
@example(b"\xf0\x9f\x98\x80 \xf0\x9f\x98")
@example(b"\xc2\x9b31m")
@settings(
    max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_cleaning_keeps_all_that_is_printable_and_nothing_else(
    text_library: ctypes.CDLL, raw: bytes
) -> None:
    raw = raw.split(b"\0")[0]
    for function, kept in (("banking_clean_line", ""), ("banking_clean_message", "\n\t")):
        buffer = ctypes.create_string_buffer(raw)
        getattr(text_library, function)(buffer)
        cleaned = buffer.value
        assert len(cleaned) == len(raw)
        expected = b"".join(
            c.encode() if is_plain(c, kept) else b"?" * len(c.encode("utf-8", "surrogateescape"))
            for c in raw.decode("utf-8", "surrogateescape")
        )
        assert cleaned == expected
