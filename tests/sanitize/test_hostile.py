# SPDX-License-Identifier: BSD-3-Clause
"""Calls that nobody should make, by the thousand, under AddressSanitizer and UndefinedBehaviorSanitizer.

Submissions, updates and ends are made of a seed and a number alone (hostile_slurmctld.c). A failure names both:
``fuzz SEED NUMBER 1``, and ``BANKING_FUZZ_SEED`` runs another seed. `make sanitize` runs a million calls.
"""

from __future__ import annotations

import collections
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.plugins.conftest import Built
from tests.sanitize.host import CALLS, SEED, THOROUGH, Host, Site, build_host

ROUND = min(50_000, CALLS // 2)  #: calls of one process with a ledger of its own
MODES = ("strict-allocation", "usage-tracking")  #: one round in this, the next in that
SLOWEST_US = 500_000  #: of CPU time, under the sanitizers


@dataclass
class Fuzzed:
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    events: collections.Counter[str] = field(default_factory=collections.Counter)
    bad_lines: list[bytes] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    longest_line: int = 0
    ledger_problems: list[str] = field(default_factory=list)
    #: The slowest call of each round: microseconds, and which one it was.
    slowest_us: list[tuple[int, str]] = field(default_factory=list)


@pytest.fixture(scope="module")
def fuzzed(sanitized: Built) -> Fuzzed:
    """A crash, a finding of a sanitizer or an answer that is not allowed is an error here, with seed and number."""
    result = Fuzzed()
    for first in range(0, CALLS, ROUND):
        site = Site(sanitized, mode=MODES[first // ROUND % 2])
        with Host(site) as host:
            host.load()
            host.ask("conf conf_flags=8 max_job_cnt=10000000")
            host.ask("waiting 7")
            counts = host.counts(f"fuzz {SEED} {first} {min(ROUND, CALLS - first)}", timeout_s=900)
            slowest_at = counts.pop("slowest_at")
            result.slowest_us.append((counts.pop("slowest_us"), f"fuzz {SEED} {slowest_at} 1"))
            result.counts.update(counts)
            if first == 0:
                host.ask("unload jobcomp")
                host.ask("unload job_submit")
                host.load()
                result.counts.update(host.counts(f"fuzz {SEED} {CALLS} 500"))
        result.events.update(host.log.events)
        result.bad_lines += host.log.bad
        result.errors += host.log.errors
        result.longest_line = max(result.longest_line, host.log.longest)
        result.ledger_problems += site.problems()
    print(f"\n{dict(result.counts)}\n{result.events.most_common(20)}")
    print(f"slowest: {sorted(result.slowest_us)[-3:]}")
    print("\n".join(result.errors[:10]))
    return result


pytestmark = pytest.mark.timeout(3600)


def test_no_hostile_call_crashes_slurmctld_and_every_answer_is_one_of_ours(fuzzed: Fuzzed) -> None:
    assert fuzzed.counts["submitted"] + fuzzed.counts["updated"] + fuzzed.counts["ended"] == (
        CALLS + 500
    )


@pytest.mark.skipif(not THOROUGH, reason="builds the plugins anew each time: make sanitize")
@pytest.mark.parametrize(
    ("name", "before", "after", "finding"),
    [
        (
            "token.c",
            "memmove(start, rest, strlen(rest) + 1);",
            "memmove(start, rest, strlen(rest) + 2);",
            "heap-buffer-overflow",
        ),
        (
            "decode.c",
            "\tfor (uint32_t i = 0; i < owned->facts_count; i++)\n\t\trelease_facts(facts[i]);\n",
            "\tfor (uint32_t i = 0; i <= owned->facts_count; i++)\n\t\trelease_facts(facts[i]);\n",
            "AddressSanitizer",
        ),
        (
            "job_submit_slurm_banking.c",
            "\tbanking_clean_message(reply->message);\n",
            "",
            "the message is no printable UTF-8",
        ),
    ],
)
def test_a_mistake_in_our_c_would_be_found_with_its_seed_and_number(
    name: str, before: str, after: str, finding: str
) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="slurm-banking-mistake-"))
    try:
        site = Site(build_host(scratch, sanitize=True, change={name: (before, after)}))
        host = Host(site)
        with pytest.raises(AssertionError, match=rf"fuzz {SEED} \d+ 1"), host:
            host.load()
            host.ask(f"fuzz {SEED} 0 5000")
        assert any(finding in line for line in host.log.last), host.log.last
    finally:
        shutil.rmtree(scratch)


def test_hostile_calls_reach_every_verdict(fuzzed: Fuzzed) -> None:
    counts = fuzzed.counts
    for what in ("accepted", "liens", "refused", "updated", "ended"):
        assert counts[what] > (CALLS + 500) // 100, counts
    for event in ("submission_accepted", "update_refused", "update_accepted", "run_charged"):
        assert fuzzed.events[event] > 0, fuzzed.events


def test_nothing_that_a_user_types_breaks_a_line_of_the_log(fuzzed: Fuzzed) -> None:
    assert fuzzed.bad_lines == []
    assert fuzzed.longest_line < 65536 + 100


def kinds(errors: Sequence[str]) -> set[str]:
    """By place, not by value."""
    return {error.partition(" error=")[0].partition("plugin_error ")[2] for error in errors}


def test_nothing_that_a_user_types_is_an_error_of_ours(fuzzed: Fuzzed) -> None:
    """An error leaves the job undecided: by default accepted, with nothing set aside."""
    assert kinds(fuzzed.errors) == set()
    assert fuzzed.events["submission_undecided"] == 0


def test_no_hostile_call_holds_slurmctld_up(fuzzed: Fuzzed) -> None:
    assert max(fuzzed.slowest_us)[0] < SLOWEST_US, sorted(fuzzed.slowest_us)


def test_the_ledger_adds_up_after_hostile_calls(fuzzed: Fuzzed) -> None:
    assert fuzzed.ledger_problems == []
