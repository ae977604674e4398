# SPDX-License-Identifier: BSD-3-Clause
"""The relay's own look at the books: when it comes, what it tells, and that it is nobody else's burden."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from slurm_banking import config as configuration
from slurm_banking.config import Config
from slurm_banking.errors import ConfigError
from slurm_banking.relay import books, metrics
from slurm_banking.relay.books import AGAIN_S, Books, LookFailed
from slurm_banking.relay.metrics import Exposition
from tests.unit.relay_parts import CONFIG

HOUR = 3600.0


class Watch:
    """Books whose looking process is a small one of the test's."""

    def __init__(self, directory: Path, every: str = "1h", says: str = "{}") -> None:
        self.directory = directory
        self.state = directory / "state"
        self.state.mkdir(exist_ok=True)
        self.now = 1_795_000_000.0
        self.config = a_config(directory, f'[Reconcile]\nevery = "{every}"\n')
        self.says(says)
        self.books = self.another()

    def says(self, text: str, status: int = 0, errors: str = "", sleep_s: float = 0) -> None:
        (self.directory / "look.py").write_text(
            f"import sys, time\nopen({str(self.directory / 'looks')!r}, 'a').write('x')\ntime.sleep({sleep_s})\n"
            f"sys.stdout.write({text!r})\nsys.stderr.write({errors!r})\nsys.exit({status})\n"
        )

    def another(self) -> Books:
        return Books(
            "c",
            str(self.config.path),
            self.now,
            clock=lambda: self.now,
            command=[sys.executable, str(self.directory / "look.py")],
        )

    def look(self) -> bool:
        return self.books.look(self.config, threading.Event())

    @property
    def looks(self) -> int:
        path = self.directory / "looks"
        return len(path.read_text()) if path.exists() else 0


def a_config(directory: Path, more: str = "") -> Config:
    path = directory / "bank-config.toml"
    path.write_text(CONFIG.format(directory=directory) + more)
    return configuration.load(str(path), in_slurmctld=False)


def found(**counts: int) -> str:
    return json.dumps(
        {
            "agrees": not counts,
            "found": sum(counts.values()),
            "counts": counts,
            "drift_csu": 250,
            "until": 1_795_000_000,
        }  # fmt: skip
    )


def test_it_looks_once_in_a_period_and_first_one_period_after_the_relay_started(
    tmp_path: Path,
) -> None:
    watch = Watch(tmp_path, says=found())
    assert not watch.look()
    watch.now += HOUR
    assert watch.look() and not watch.look()
    watch.now += HOUR - 1
    assert not watch.look()
    watch.now += 1
    assert watch.look() and watch.looks == 2


def test_a_relay_that_starts_again_looks_when_it_is_time_and_not_at_once(tmp_path: Path) -> None:
    watch = Watch(tmp_path, says=found(missing=2))
    watch.now += HOUR
    watch.look()
    watch.now += 60
    watch.books = watch.another()
    assert not watch.look()
    assert watch.books.alarms() == ["slurmdbd, ledger and bank differ: 2 missing: see slurm-banking reconcile"]  # fmt: skip
    watch.now += HOUR - 60
    assert watch.look()


def test_off_is_never(tmp_path: Path) -> None:
    watch = Watch(tmp_path, every="off")
    watch.now += 1000 * HOUR
    assert not watch.look() and watch.looks == 0


def test_a_look_that_fails_says_why_in_one_line_and_is_not_made_again_at_once(
    tmp_path: Path,
) -> None:
    watch = Watch(tmp_path)
    watch.says("", status=1, errors="a warning\nsacct: slurmdbd does not answer\n")
    watch.now += HOUR
    with pytest.raises(LookFailed, match="^reconcile: sacct: slurmdbd does not answer$"):
        watch.look()
    assert not watch.look() and watch.looks == 1
    watch.now += AGAIN_S
    watch.says("nonsense")
    with pytest.raises(LookFailed, match="not to be understood"):
        watch.look()


def test_an_alarm_stays_until_a_comparison_beyond_its_period_finds_that_all_agrees(
    tmp_path: Path,
) -> None:
    watch = Watch(tmp_path, says=found(missing=1, drift=1))
    watch.now += HOUR
    watch.look()
    remembered = watch.state / "reconcile.json"
    for clean_until in (None, 1_794_999_999):
        remembered.write_text(json.dumps({"clean_until": clean_until, "looked_at": int(watch.now), "found": 0}))  # fmt: skip
        watch.books.recall(watch.config)
        assert len(watch.books.alarms()) == 1
    remembered.write_text(json.dumps({"clean_until": 1_795_000_000, "looked_at": int(watch.now) + 5, "found": 0}))  # fmt: skip
    watch.books.recall(watch.config)
    assert watch.books.alarms() == []
    assert watch.another().as_dict() == {}
    assert watch.books.as_dict()["clean_at"] == int(watch.now) + 5


def test_a_relay_that_ends_does_not_wait_for_a_look(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    watch.says("{}", sleep_s=60)
    watch.now += HOUR
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    assert not watch.books.look(watch.config, stop)
    assert time.monotonic() - began < 20
    assert watch.books.as_dict() == {}


def test_a_look_is_a_line_in_the_log_and_so_is_one_that_could_not_be_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="slurm_banking.relay")
    watch = Watch(tmp_path, says=found(missing=2))
    watch.now += HOUR
    (watch.state / "books.json").mkdir()  # in its place
    assert watch.look()
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("books_compared ") and "found=2" in line for line in lines)
    assert any(line.startswith(f"books_not_kept path={watch.state}/books.json ") for line in lines)
    assert len(watch.books.alarms()) == 1


def exposed(health: dict[str, Any]) -> str:
    page = Exposition()
    metrics.of_books(page, health)
    return str(page)


def test_metrics_have_the_findings_by_kind_and_the_drift() -> None:
    assert exposed({}) == ""
    text = exposed(
        {"looked_at": 100, "clean_at": 50, "counts": {"missing": 3, "drift": 0}, "drift_csu": 1234}
    )
    for line in (
        "slurm_banking_reconcile_last_timestamp_seconds 100",
        "slurm_banking_reconcile_last_clean_timestamp_seconds 50",
        'slurm_banking_reconcile_findings{kind="missing"} 3',
        'slurm_banking_reconcile_findings{kind="drift"} 0',
        "slurm_banking_reconcile_drift_su 12.34",
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize(("typed", "seconds"), [("off", 0), ("30m", 1800), ("6h", 21600), ("1d", 86400)])  # fmt: skip
def test_every_is_a_time(tmp_path: Path, typed: str, seconds: int) -> None:
    config = a_config(tmp_path, f'[Reconcile]\nevery = "{typed}"\n')
    assert config.reconcile.every_s == seconds


@pytest.mark.parametrize("typed", ['"0h"', '"1w"', '"32d"', '""', "3600", "true", '"1 h"'])
def test_another_every_is_one_clear_line(tmp_path: Path, typed: str) -> None:
    with pytest.raises(ConfigError) as error:
        a_config(tmp_path, f"[Reconcile]\nevery = {typed}\n")
    (problem,) = error.value.problems
    assert "[Reconcile] every" in problem and 'expected "off", or a time like "30m"' in problem


def test_it_is_daily_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    assert a_config(tmp_path).reconcile.every_s == 86400


def test_the_process_that_looks_says_in_one_line_why_it_cannot(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books.os, "nice", lambda by: 0)
    a_config(tmp_path)
    assert books.main(str(tmp_path / "bank-config.toml"), "c") == 1
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "token" in err


def test_neither_environment_nor_directory_steers_the_process_that_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "slurm_banking"
    other.mkdir()
    for path in (other / "__init__.py", tmp_path / "json.py"):
        path.write_text('raise SystemExit("steered")\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    looking = books.Books("c", str(tmp_path / "bank-config.toml"), 0.0)
    with pytest.raises(books.LookFailed, match="bank-config.toml: cannot be"):
        looking._run(threading.Event())
