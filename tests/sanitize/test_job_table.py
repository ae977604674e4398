# SPDX-License-Identifier: BSD-3-Clause
"""What it costs to count slurmctld's job table, once a second when it is rather full, with 100,000 records."""

from __future__ import annotations

import re

import pytest

from tests.plugins.conftest import Built, lay_out
from tests.sanitize.host import Host, Site

RECORDS = 100_000
SECONDS = 4


def paced(host: Host) -> tuple[float, list[float]]:
    """Median, and the worst five, of submissions for some seconds; milliseconds of CPU time."""
    answer = host.ask(f"pace {SECONDS} name=x")
    match = re.fullmatch(r"calls=\d+ median_ns=(\d+) worst_ns=([\d,]+)", answer)
    assert match, answer
    return int(match[1]) / 1e6, [int(text) / 1e6 for text in match[2].split(",")]


@pytest.mark.timeout(120)
def test_counting_a_large_job_table_is_short_and_rare(shipped: Built) -> None:
    site = Site(shipped)
    site.layout = lay_out(shipped)
    with Host(site) as host:
        host.load()
        host.ask("conf max_job_cnt=1000000")
        host.ask("waiting 7")
        small_median, small_worst = paced(host)
        assert host.ask(f"table {RECORDS}") == f"table={RECORDS}"
        median, worst = paced(host)
    print(
        f"\njob table of 2: median {small_median:.3f} ms, worst {small_worst}; "
        f"of {RECORDS}: median {median:.3f} ms, worst {worst}"
    )
    # It was walked at least three times in four seconds, and each of those is among the worst.
    assert worst[2] < 50
    assert median < small_median + 0.2
