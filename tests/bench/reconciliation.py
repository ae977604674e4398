# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking reconcile`` over a month of many jobs in a real MariaDB behind slurmdbd."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.results import CannotMeasure, Row, Tell, exact
from tests.reconcile.million import MillionSite


@dataclass(frozen=True, kw_only=True)
class Size:
    jobs: int


FULL = Size(jobs=1_000_000)
QUICK = Size(jobs=20_000)


def measure_reconcile(size: Size, tell: Tell) -> list[Row]:
    with MillionSite() as site:
        site.fill(size.jobs, tell)
        tell(f"reconcile over {size.jobs:,} jobs")
        measured = site.compare(size.jobs)
    report = measured.report
    if report["found"] or report["not_looked"] or report["runs"] < size.jobs:
        raise CannotMeasure(
            f"reconcile compared {report['runs']:,} of {size.jobs:,} jobs in books that agree, and found "
            f"{report['counts']}; not looked at: {report['not_looked']}"
        )
    what = f"reconcile, {size.jobs:,} jobs"
    return [
        Row(what=what, estimate=exact(measured.took_s), unit="s", most=180,
            note=f"{report['rows']:,} rows at the bank, {report['windows']} windows; CPU seconds meanwhile: " + ", ".join(
                f"{name} {spent:.0f}" for name, spent in measured.cpu_s.items())),
        Row(what=f"{what}: its memory", estimate=exact(measured.peak_mib), unit="MiB", most=300,
            note=f"the process's peak; with sacct, which it starts, {measured.peak_all_mib:.0f} MiB"),
    ]  # fmt: skip
