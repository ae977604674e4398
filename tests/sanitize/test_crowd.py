# SPDX-License-Identifier: BSD-3-Clause
"""64 threads in all three hooks at once (from Slurm 23.02 on several are): the real package, one ledger.

Also under AddressSanitizer. ThreadSanitizer is left out: CPython is not built for it, and what it says of the interpreter's
own locks drowns what it could say of ours.
"""

from __future__ import annotations

import json
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from slurm_banking.tokens import parse
from tests.plugins.conftest import Built
from tests.sanitize.host import THOROUGH, Host, Site

THREADS = 64
SECONDS = 20 if THOROUGH else 3


@pytest.mark.parametrize("how", ["shipped", "sanitized"])
@pytest.mark.timeout(300)
def test_a_crowd_of_threads_loses_no_lien_and_each_gets_its_own_verdict(
    how: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    built: Built = request.getfixturevalue(how)
    site = Site(built)
    told = tmp_path / "told"
    with Host(site) as host:
        host.load()
        host.ask("conf max_job_cnt=10000000")
        host.ask("waiting 7")
        counts = host.counts(f"crowd {THREADS} {SECONDS} {told}", timeout_s=SECONDS + 60)
    print(f"\n{how}: {counts} {host.log.events.most_common(12)}")
    assert counts["wrong"] == 0, host.told("a verdict for another's job")
    assert host.log.bad == [] and host.log.errors == []
    assert counts["liens"] == counts["ended"] > 200
    # A ledger that is busy for too long leaves a job undecided, and says so: those, and no others, have no lien.
    assert counts["accepted"] - counts["liens"] == host.log.events["submission_undecided"]

    left_to_relay = set()
    rescan = site.state / "rescan"
    if rescan.exists():
        left_to_relay = {json.loads(line)["job_id"] for line in rescan.read_text().splitlines()}
    ledger = site.ledger()
    charged = 0
    with ledger.transaction(write=False) as tx:
        for line in told.read_text().splitlines():
            token, job_id, seconds, cpus = line.split(" ")
            found = parse(token)
            assert found is not None, line
            lien = tx.lien(found.lien_id)
            assert lien is not None, f"lost: {line}"
            run = tx.find_run(int(job_id), 1795000000, 0)
            if run is None:
                assert int(job_id) in left_to_relay, f"an end was lost: {line}"
                continue
            charged += 1
            cost = Decimal(100) * int(cpus) * int(seconds) / 3600
            assert run.lien_id == lien.lien_id and lien.end_kind == "lien_charged", line
            assert run.charge_csu == int(cost.quantize(Decimal(1), ROUND_HALF_UP)), line
    ledger.close()
    assert charged + len(left_to_relay) == counts["ended"]
    assert site.problems() == []
