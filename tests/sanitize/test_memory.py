# SPDX-License-Identifier: BSD-3-Clause
"""No call leaves memory behind. Three looks, since each misses something:

* the heap in use, to the byte, over many calls: the C library's own figure, of what is shipped;
* LeakSanitizer after some hundred hostile calls: what nobody points to any more, and who allocated it. What CPython and
  SQLite allocate is left out (lsan.supp): pointers to it are in CPython's arenas, where LeakSanitizer does not look;
* valgrind (`make sanitize`): it does look there, and it sees reads of what was never written. The same calls once and twice
  must lose the same, and nothing of it may be ours.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.conftest import Built, lay_out
from tests.sanitize.host import HERE, SEED, THOROUGH, Host, Site, build_host, with_environment

LSAN = {
    # slow, but it finds its way through libraries without frame pointers
    "ASAN_OPTIONS": "detect_leaks=1:leak_check_at_exit=0:fast_unwind_on_malloc=0:abort_on_error=1",
    "LSAN_OPTIONS": f"suppressions={HERE}/lsan.supp:print_suppressions=0",
}
CALLS = 2000 if THOROUGH else 400


def leaks_after(built: Built, *commands: str) -> tuple[list[int], Host]:
    with Host(Site(with_environment(built, **LSAN))) as host:
        host.load()
        found = []
        for command in commands:
            if command == "leaks":
                found.append(host.counts("leaks")["leaks"])
            else:
                host.ask(command)
    return found, host


@pytest.mark.timeout(600)
def test_no_call_loses_memory(sanitized: Built) -> None:
    found, host = leaks_after(sanitized, f"fuzz {SEED} 0 {CALLS}", "leaks", "lose", "leaks")
    assert found == [0, 1], host.told("LeakSanitizer")  # the second: what was lost on purpose


@pytest.mark.skipif(not THOROUGH, reason="builds the plugins anew: make sanitize")
@pytest.mark.timeout(600)
def test_a_leak_in_our_c_would_be_found() -> None:
    scratch = Path(tempfile.mkdtemp(prefix="slurm-banking-leak-"))
    try:
        change = {"decode.c": ("\txfree(owned->account);\n", "")}
        built = build_host(scratch, sanitize=True, change=change)
        found, host = leaks_after(built, f"fuzz {SEED} 0 50", "leaks")
        assert found == [1], host.told("LeakSanitizer")
        assert any("lower_copy" in line or "look_up_user" in line for line in host.log.last)
    finally:
        shutil.rmtree(scratch)


@pytest.fixture
def standin(shipped: Built) -> Iterator[Site]:
    """The stand-in for the policy engine: what is left is ours alone."""
    site = Site(shipped)
    site.layout = lay_out(shipped)
    yield site


JOB = "name=token partition=normal,long,whole account=BIO time_limit=30 tres_per_node=gres/gpu:1"


@pytest.mark.timeout(900)
def test_the_heap_is_the_same_to_the_byte_after_thousands_of_calls(standin: Site) -> None:
    calls = 100_000 if THOROUGH else 5_000
    with Host(standin) as host:
        host.load()
        host.ask("job name=token part=normal nodes=n1 node_cnt=1 tres_alloc_str=1=4,4=1")
        first = host.counts(f"heap 1000 {JOB}")["heap"]
        second = host.counts(f"heap {calls} {JOB}", timeout_s=800)["heap"]
    print(f"\nheap: {first} bytes, after {calls} more submissions, updates and ends {second}")
    assert abs(second - first) < calls / 5  # one lost byte in five calls would be seen


OURS = re.compile(r"(job_submit|jobcomp)_slurm_banking\.so$")
PASSED_THROUGH = re.compile(r"(vgpreload.*|libslurmfull|libc|ld-linux.*)\.so[.\d]*$")


def ours(frames: list[tuple[str, str]]) -> bool:
    """Is the first frame that is neither the C library nor Slurm's one of ours?"""
    for library, _ in frames:
        if not PASSED_THROUGH.search(library.rsplit("/", 1)[-1]):
            return bool(OURS.search(library))
    return False


def under_valgrind(site: Site, output: Path, calls: int) -> tuple[int, list[str]]:
    """Bytes definitely lost; what valgrind says about our own code."""
    before = [
        *("valgrind", "--leak-check=full", "--show-leak-kinds=definite", "--num-callers=40"),
        *("--xml=yes", f"--xml-file={output}", "--child-silent-after-fork=yes"),
    ]
    with Host(site, before=before) as host:
        host.load()
        host.ask(f"fuzz {SEED} 0 {calls}", timeout_s=600)
    lost, findings = 0, []
    for error in ElementTree.parse(output).getroot().iter("error"):
        kind = error.findtext("kind") or ""
        frames = [
            (frame.findtext("obj") or "", frame.findtext("fn") or "?")
            for stack in error.findall("stack")[:1]
            for frame in stack.findall("frame")
        ]
        if kind == "Leak_DefinitelyLost":
            lost += int(error.findtext("xwhat/leakedbytes") or 0)
        if ours(frames):
            findings.append(f"{kind}: {' < '.join(name for _, name in frames[:8])}")
    return lost, findings


@pytest.mark.skipif(not THOROUGH, reason="minutes: make sanitize")
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
@pytest.mark.timeout(1800)
def test_valgrind_finds_nothing_of_ours(shipped: Built, tmp_path: Path) -> None:
    lost, findings = under_valgrind(Site(shipped), tmp_path / "once.xml", 300)
    twice, more = under_valgrind(Site(shipped), tmp_path / "twice.xml", 600)
    print(f"\nvalgrind: {lost} bytes definitely lost after 300 calls, {twice} after 600")
    assert findings == more == []
    assert twice == lost
