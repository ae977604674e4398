# SPDX-License-Identifier: BSD-3-Clause
"""A process that has the ledger open opens its files in no other way: closing them would drop SQLite's locks.

opens.c is preloaded into the slurmctld that calls the plugins: each open of ledger.sqlite3, -wal or -shm, by whatever name
and from C, Python or SQLite, is written down with the object that asked for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.plugins.conftest import Built, compile_c
from tests.sanitize.host import HERE, SEED, Host, Site, replace_in

pytestmark = pytest.mark.timeout(300)


@dataclass
class Watched:
    host: Host
    site: Site
    log: Path

    def opens(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def forbidden(self) -> list[str]:
        """By anything but SQLite, or by SQLite while it had the file open."""
        return [
            line
            for line in self.opens()
            if not (line.startswith("libsqlite3.so") and line.split(" ")[1] == "1")
        ]


@pytest.fixture(scope="module")
def opens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("opens") / "opens.so"
    compile_c("-shared", "-fPIC", "-O1", HERE / "opens.c", "-o", library, "-ldl")
    return library


@contextlib.contextmanager
def watched(site: Site, opens: Path, log: Path) -> Iterator[Watched]:
    log.unlink(missing_ok=True)
    environment = {
        "LD_PRELOAD": str(opens),
        "OPENS_LOG": str(log),
        "OPENS_LEDGER": str(site.ledger_path),
    }
    with Host(site, environment=environment) as host:
        host.load()
        yield Watched(host=host, site=site, log=log)


def files(site: Site) -> list[Path]:
    return [Path(f"{site.ledger_path}{suffix}") for suffix in ("", "-wal", "-shm")]


def move(site: Site, to: Path) -> None:
    to.mkdir(exist_ok=True)
    for path in files(site):
        if path.exists():
            path.rename(to / path.name)


def test_nothing_in_slurmctld_opens_the_ledger_but_sqlite_and_that_once(
    shipped: Built, opens: Path, tmp_path: Path
) -> None:
    site = Site(shipped)
    calls = iter(range(0, 1_000_000, 1000))
    with watched(site, opens, tmp_path / "log") as slurmctld:
        host = slurmctld.host
        events: Counter[str] = host.log.events

        def fuzz(count: int = 40) -> None:
            host.ask(f"fuzz {SEED} {next(calls)} {count}")

        fuzz(400)
        assert len(slurmctld.opens()) >= 3, "the files that SQLite opened were not seen"

        # Another process holds the ledger: undecided, and a mark for the relay.
        other = sqlite3.connect(site.ledger_path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        fuzz()
        other.execute("ROLLBACK")
        other.close()
        assert (site.state / "rescan").exists()

        # A configuration with a mistake, and mended again.
        site.configure("nonsense\n")
        time.sleep(1.2)
        fuzz()
        site.configure()
        time.sleep(1.2)
        fuzz()

        # The files moved away, replaced by others, by another cluster's, by rubbish; out of reach; back again.
        elsewhere = tmp_path / "elsewhere"
        move(site, elsewhere)
        fuzz()
        assert site.ledger_path.exists()
        for what in ("cluster", "rubbish", "empty"):
            move(site, tmp_path / what)
            if what == "cluster":
                moved = tmp_path / what / site.ledger_path.name
                with contextlib.closing(sqlite3.connect(moved)) as foreign:
                    foreign.execute("UPDATE meta SET value = 'another' WHERE key = 'cluster'")
                    foreign.commit()
                shutil.copy(moved, site.ledger_path)
            else:
                site.ledger_path.write_bytes(b"rubbish" * 2000 if what == "rubbish" else b"")
            site.ledger_path.chmod(0o600)
            fuzz()
        site.ledger_path.chmod(0o644)
        fuzz()
        site.state.chmod(0o755)
        fuzz()
        site.state.chmod(0o700)
        hidden = site.state.with_name("hidden")
        site.state.rename(hidden)
        fuzz()
        hidden.rename(site.state)
        move(site, tmp_path / "last")
        for path in elsewhere.iterdir():
            path.rename(site.state / path.name)
        fuzz(200)
        before = events["submission_accepted"]

        for plugin in ("job_submit", "jobcomp"):
            host.ask(f"unload {plugin}")
        host.load()
        fuzz(400)
        assert events["submission_accepted"] > before > 0
        assert events["ledger_unavailable"] >= 3, events
        print(f"\nopenings: {Counter(slurmctld.opens())}")
        assert slurmctld.forbidden() == []
        assert descriptors(host, site) == {path.name: 1 for path in files(site)}
    assert site.problems() == []


def descriptors(host: Host, site: Site) -> dict[str, int]:
    """Of the ledger's files, that the process has at the moment."""
    found: Counter[str] = Counter()
    for link in Path(f"/proc/{host.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            if os.path.dirname(target) == str(site.state) and "ledger.sqlite3" in target:
                found[os.path.basename(target).replace(" (deleted)", "")] += 1
    return dict(found)


STAT = "        identity = _identity_of(self.path)\n        if self._connection is None"


@pytest.mark.parametrize(
    "change",
    [
        "open(self.path, 'rb').close()",
        "os.close(os.open(self.path + '-wal', os.O_RDONLY))",
        "Path(self.path + '-shm').read_bytes()",
        "sqlite3.connect(self.path).execute('SELECT 1 FROM meta').fetchone()",
    ],
)
def test_a_second_opening_from_python_would_be_seen(
    change: str, shipped: Built, opens: Path, tmp_path: Path
) -> None:
    site = Site(shipped)
    replace_in(site.layout.package / "ledger" / "store.py", STAT, f"        {change}\n{STAT}")
    with watched(site, opens, tmp_path / "log") as slurmctld:
        slurmctld.host.ask(f"fuzz {SEED} 0 20")
        assert slurmctld.forbidden() != []


@pytest.mark.parametrize("how", ["path", "symbolic link", "hard link", "relative"])
def test_a_second_opening_from_c_would_be_seen(
    how: str, shipped: Built, opens: Path, tmp_path: Path
) -> None:
    site = Site(shipped)
    name = str(site.ledger_path)
    if how == "symbolic link":
        name = str(site.built.scratch / "link")
        os.symlink(site.ledger_path, name)
    elif how == "hard link":
        name = str(site.built.scratch / "link")
        os.link(site.ledger_path, name)
    elif how == "relative":
        name = os.path.relpath(name)
    try:
        with watched(site, opens, tmp_path / "log") as slurmctld:
            slurmctld.host.ask(f"fuzz {SEED} 0 20")
            assert slurmctld.forbidden() == []
            assert slurmctld.host.ask(f"touch {name}") == "touched=1"
            assert slurmctld.forbidden() != []
    finally:
        (site.built.scratch / "link").unlink(missing_ok=True)
