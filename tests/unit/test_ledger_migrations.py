# SPDX-License-Identifier: BSD-3-Clause
"""A ledger of each schema that a release wrote is brought up to this one, with nothing lost; a newer one is refused.

``data/ledger/schema-1.sql`` is the schema as the first release had it, ``rows-1.sql`` what its code wrote.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_banking import settle
from slurm_banking.errors import LedgerError
from slurm_banking.ledger import Ledger, health, migrations, store
from slurm_banking.tres import Tres
from tests.unit.test_sweep import Site, a_job, an_ended, started

DATA = Path(__file__).parent / "data" / "ledger"

#: What the old code counted: liens of jobs 7, 10 (three tasks) and 11, and the share of job 8, which runs.
COUNTED_CSU = 6000 + 3 * 6000 + 6000 + 12000


WHOLE_NODE = """
UPDATE liens SET inputs = '{"cpus":8,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}', per_task_csu = 48000,
	amount_csu = 48000 WHERE job_id = 7
"""


def make_old(path: Path, *, index: bool = False, schema: str = "1", also: str = "") -> None:
    """``index``: the one that later files of schema 1 have."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript((DATA / "schema-1.sql").read_text())
    if index:
        connection.execute("CREATE INDEX runs_of_no_period ON runs (account) WHERE period = ''")
    connection.executescript((DATA / "rows-1.sql").read_text())
    connection.executescript(also)
    connection.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (schema,))
    connection.commit()
    connection.close()
    path.chmod(0o600)


def rows(path: Path, table: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    found = connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
    connection.close()
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path / store.FILE_NAME


@pytest.mark.parametrize("index", [False, True])
def test_a_ledger_of_schema_1_becomes_what_a_new_one_is(path: Path, index: bool) -> None:
    make_old(path, index=index)
    Ledger(str(path.parent), "c", check_directory=False).close()
    findings = health.examine(str(path), thorough=True)
    assert findings.good, findings.line()  # every table, index and trigger as the schema has them
    assert findings.meta is not None and findings.meta["schema"] == migrations.SCHEMA_VERSION


def test_entries_runs_and_what_counts_are_as_they_were(path: Path) -> None:
    make_old(path)
    tables = ("entries", "runs", "funds", "outbox", "exceptions", "price_lists", "exposure")
    before = {table: rows(path, table) for table in tables}
    ledger = Ledger(str(path.parent), "c", check_directory=False)
    assert {table: rows(path, table) for table in tables} == before
    with ledger.transaction() as tx:
        assert tx.check() == []
        counted = sum(lien.amount_csu for lien in tx.open_liens())
        counted += sum(run.ledger_csu for run in tx.running_runs_page(None, 10))
        assert counted == COUNTED_CSU


def test_it_happens_once_and_a_failure_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(path)
    with monkeypatch.context() as broken:
        broken.setattr(
            migrations, "statements", lambda script: iter(["UPDATE liens SET missed = 9", "NO SQL"])
        )
        with pytest.raises(LedgerError, match="NO"):
            Ledger(str(path.parent), "c", check_directory=False)
    assert dict(rows(path, "meta"))["schema"] == "1"
    assert all(row[-1] == 0 for row in rows(path, "liens"))
    Ledger(str(path.parent), "c", check_directory=False).close()
    again = sqlite3.connect(path)
    assert migrations.migrate(again, str(path), dict(rows(path, "meta"))["schema"]) is False


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("3", "schema '3', of a newer slurm-banking: expected a number from 1 to 2"),
        ("0", "schema '0': expected a number from 1 to 2"),
        ("two", "schema 'two': expected a number from 1 to 2"),
    ],
)
def test_another_schema_is_refused_in_one_line_and_left_alone(
    path: Path, schema: str, said: str
) -> None:
    make_old(path, schema=schema)
    before = path.read_bytes()
    with pytest.raises(LedgerError) as error:
        Ledger(str(path.parent), "c", check_directory=False)
    assert said in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value) and not isinstance(error.value, store.LedgerBroken)
    assert path.read_bytes() == before and not list(path.parent.glob("*.broken-*"))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """The relay and slurmctld after the upgrade, on the ledger of before."""
    made = Site(tmp_path)
    made.ledger.close()
    path = made.state_dir / store.FILE_NAME
    for file in made.state_dir.glob(store.FILE_NAME + "*"):
        file.unlink()
    make_old(path, also=WHOLE_NODE)
    made.ledger = Ledger(str(made.state_dir), "c")
    made.now = 2_000_000_100
    return made


def test_the_next_look_at_the_queue_changes_nothing_that_is_set_aside(site: Site) -> None:
    """Job 7 gets a node of eight CPUs for itself, which the queue does not show of it while it waits."""
    queued = [a_job(), a_job(job_id=10, array_job_id=10, tasks=3)]
    running = replace(started(a_job(job_id=8, cpus=2)), tres=Tres(cpus=2, nodes=1))
    site.see(*(replace(job, tres=Tres(cpus=1, nodes=1)) for job in queued), running)
    assert site.counted() == COUNTED_CSU - 6000 + 48000
    with site.ledger.transaction() as tx:
        assert tx.check() == []


def test_a_run_that_was_resized_before_the_upgrade_is_charged_after_it(site: Site) -> None:
    row = an_ended(a_job(job_id=8, cpus=1))
    with site.ledger.transaction() as tx:
        result = settle.end_run(tx, row, site.config, actor="slurmctld")
    assert result.run is not None
    # two CPUs for the first 100 s, one for the other 500, at 60 SU an hour
    assert result.run.charge_csu == round((2 * 100 + 500) * 6000 / 3600)


def test_a_run_that_started_before_the_upgrade_costs_what_it_did_then(site: Site) -> None:
    with site.ledger.transaction() as tx:
        (version, tables) = tx.prices_at(2_000_000_010) or ("", {})
        prices = settle.prices_for(tx, site.config, 2_000_000_010)
    assert version and tables["PartitionPrice"] == {"dear": "120", "main": "60"}
    price = prices.price("main", None)
    assert price is not None and price.su_per_hour(Tres(cpus=1)) == 60
