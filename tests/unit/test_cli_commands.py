# SPDX-License-Identifier: BSD-3-Clause
"""The commands, from argv to exit status, against the relay's real socket."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import pytest

from slurm_banking.cli import main, program
from slurm_banking.relay import protocol
from tests.unit.relay_parts import NOBODY, Relay, end_run, open_lien, put_funds, run, start_run

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (ROOT / "docs" / "commands.md").read_text()
NOW = int(time.time())


@pytest.fixture
def relay() -> Iterator[Relay]:
    path = tempfile.mkdtemp(prefix="sbr-")
    os.chmod(path, 0o755)
    made = Relay(Path(path))
    # Whoever runs the tests asks for themselves.
    made.members.accounts[made.questions._names.name(os.getuid())] = ("astro",)
    put_funds(made.ledger, "astro", os.getuid(), 90_000)
    with made.listening():
        yield made
    made.ledger.close()
    shutil.rmtree(path)


class Shell:
    def __init__(self, relay: Relay, capsys: pytest.CaptureFixture[str]) -> None:
        self.relay = relay
        self.capsys = capsys

    def __call__(self, *words: str, status: int = 0) -> str:
        """What a command prints, on stderr when it fails."""
        got = main(["--socket", self.relay.socket, *words])
        out, err = self.capsys.readouterr()
        assert got == status, (got, out, err)
        if status in (program.OK, program.NO) and not err:
            return str(out)
        assert out == ""
        return str(err)

    def json(self, *words: str, status: int = 0) -> Any:
        return json.loads(self(*words, "--json", status=status))


@pytest.fixture
def shell(relay: Relay, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(relay, capsys)


def mine(job_id: int, **options: Any) -> Any:
    return run(job_id, start=NOW - 7200, user_id=os.getuid(), user_name="me", **options)


def test_balance(relay: Relay, shell: Shell) -> None:
    open_lien(relay, 10, user_id=os.getuid(), csu=800)
    shown = shell("balance", "astro")
    assert re.search(r"^  available +892\.00$", shown, re.MULTILINE)
    assert shell.json("balance")["accounts"][0]["available_csu"] == 89_200
    assert "astro" in shell("balance")


def test_balance_of_no_account_of_ones_own_is_a_no(relay: Relay, shell: Shell) -> None:
    relay.members.accounts.clear()
    assert "You have no account here" in shell("balance", status=1)


def test_statement(relay: Relay, shell: Shell) -> None:
    end_run(relay, mine(20))
    shown = shell("statement")
    assert re.search(r"charges +-4\.00  1 job$", shown, re.MULTILINE)
    assert re.search(r"closing balance +896\.00$", shown, re.MULTILINE)
    assert shell.json("statement", "astro", "--since", "1h")["charged_csu"] == 400
    assert shell.json("statement", "astro", "--until", "1d")["charged_csu"] == 0
    assert "--since 'soon': expected a time" in shell("statement", "--since", "soon", status=2)


def test_jobs(relay: Relay, shell: Shell) -> None:
    open_lien(relay, 30, user_id=os.getuid())
    start_run(relay, mine(31, state="RUNNING"))
    end_run(relay, mine(32))
    shown = shell("jobs")
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["30", "31", "32"]
    assert len(shell.json("jobs", "--ended-h", "0")["ended"]) == 0


def test_quote(relay: Relay, shell: Shell, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\n#SBATCH -n 4\n#SBATCH --mail-user me\nsleep 1\n")
    shown = shell("quote", "-t", "90", str(script))
    assert "main: 4 CPUs x 01:30:00 x 1.0 SU per CPU-hour = up to 6.00 SU\n" in shown
    assert "It fits: " in shown
    assert shell.json("quote", "-t", "90", str(script))["estimate"]["cost_csu"] == 600


def test_quote_of_what_would_be_refused_is_a_no(relay: Relay, shell: Shell) -> None:
    relay.bank.remaining_csu = 100
    put_funds(relay.ledger, "astro", os.getuid(), 100)
    shown = shell("quote", "-n", "8", "-t", "10:00:00", status=1)
    assert "It would be refused: astro has 1.00 SU available" in shown
    assert "--time=" in shown


def test_quote_of_nonsense_is_one_line(relay: Relay, shell: Shell) -> None:
    assert shell("quote", "-p", "nosuch", status=2).splitlines() == [
        "slurm-banking: error: options: partition: Slurm has none called nosuch"
    ]
    assert "No such file" in shell("quote", "/nowhere/job.sh", status=2)
    assert "expected a whole number" in shell("quote", "-n", "x", status=2)


def test_why(relay: Relay, shell: Shell) -> None:
    open_lien(relay, 40, user_id=os.getuid(), submit_time=NOW - 7300)
    start_run(relay, mine(40, state="RUNNING"))
    end_run(relay, mine(40))
    shown = shell("why", "40")
    assert "Charge of 40: 4 CPUs x 01:00:00 x 1.0 SU per CPU-hour = 4.00 SU." in shown
    assert "waits for the bank since" in shown
    assert shown.splitlines()[-1] == "Each sum in full: slurm-banking explain 40"
    assert len(shell.json("why", "40")["entries"]) == 4


def test_explain(relay: Relay, shell: Shell) -> None:
    open_lien(relay, 40, user_id=os.getuid(), submit_time=NOW - 7300)
    start_run(relay, mine(40, state="RUNNING"))
    end_run(relay, mine(40))
    shown = shell("explain", "40")
    assert "    1 SU x 01:00:00\n" not in shown
    assert "    an hour: 4 CPUs x 1.0 = 4 SU\n    4 SU x 01:00:00\n" in shown
    assert "    = 4 SU, rounded half up: 4.00 SU\n" in shown
    assert "Computed again from what the ledger stored: as charged.\n" in shown
    (run,) = shell.json("explain", "40")["runs"]
    assert (run["charge"]["recomputed_csu"], run["charge"]["agrees"]) == (400, True)
    assert "nothing was set aside or charged" in shell("explain", "41", status=1)


def test_why_of_an_unknown_job_is_a_no_in_one_line(relay: Relay, shell: Shell) -> None:
    shown = shell("why", "41", status=1)
    assert shown.startswith("slurm-banking: error: job 41: nothing was set aside or charged")
    assert len(shown.splitlines()) == 1
    assert "expected a job id" in shell("why", "x", status=2)


def test_allow_and_exceptions(relay: Relay, shell: Shell) -> None:
    shown = shell("allow", "nobody", "--until", "4h", "--reason", "a deadline")
    assert shown.startswith("user nobody is accepted until ") and "a deadline" in shown
    shell("allow", "77", "--until", "now+2days", "--reason", "a restart")
    listed = shell.json("exceptions")["exceptions"]
    assert [(row["user"], row["job_id"]) for row in listed] == [("nobody", None), (None, 77)]
    assert listed[0]["until"] - listed[0]["created"] in range(4 * 3600 - 2, 4 * 3600 + 3)
    assert "job 77" in shell("exceptions")


@pytest.mark.parametrize(
    "words", [["--until", "4h"], ["--reason", "x"], [], ["--until", "yesterday", "--reason", "x"]]
)
def test_an_exception_without_time_or_reason_is_none(
    relay: Relay, shell: Shell, words: List[str]
) -> None:
    shell("allow", "nobody", *words, status=2)
    assert shell.json("exceptions")["exceptions"] == []


def test_status_says_by_its_exit_whether_somebody_is_needed(relay: Relay, shell: Shell) -> None:
    assert "not yet compared" in shell("status", status=1)
    with relay.ledger.transaction() as tx:
        tx.set_meta("complete", "1")
    assert "complete" in shell("status")
    relay.health["bank_away_since"] = NOW - 60
    assert "has not answered since" in shell("status", status=1)
    relay.health["bank_away_since"] = None
    relay.health["alarms"] = ["too many"]
    assert "ALARM: too many" in shell("status", status=1)


def test_retry(relay: Relay, shell: Shell) -> None:
    end_run(relay, mine(40))
    with relay.ledger.transaction() as tx:
        tx.set_meta("complete", "1")
        run_id = tx.runs_by_job(40)[0].run_id
        tx.park(run_id, "not a member")
    assert "slurm-banking retry" in shell("status", status=1)
    assert "slurm-banking retry 40" in shell("why", "40")

    def refuse(runs: Any) -> None:
        with relay.ledger.transaction() as tx:
            tx.park(run_id, "still not")

    relay.on_retry = refuse
    assert shell("retry", "40", status=1) == "job 40 (astro): refused again: still not\n"

    def take(runs: Any) -> None:
        with relay.ledger.transaction() as tx:
            for run in runs:
                delivery = tx.delivery_of(run.run_id)
                assert delivery is not None
                tx.acknowledge(delivery, bank_csu=400, bank_job_id="40")

    relay.on_retry = take
    assert shell("retry", "--all") == "job 40 (astro): delivered\n"
    assert shell("retry", "--all") == "There is nothing that the bank refused.\n"
    assert "nothing of it waits" in shell("retry", "40", status=1)
    assert "tried again; the bank had refused it: still not (root)" in shell("why", "40")
    assert shell("status")


@pytest.mark.parametrize("words", [[], ["40", "--all"]])
def test_retry_wants_a_job_or_all(relay: Relay, shell: Shell, words: List[str]) -> None:
    assert "expected a JOB, or --all" in shell("retry", *words, status=2)


def test_status_shows_a_relay_of_another_version(
    relay: Relay, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    with relay.ledger.transaction() as tx:
        tx.set_meta("complete", "1")
    monkeypatch.setattr(program, "__version__", "9.9")
    shown = shell("status", status=1)
    assert re.search(
        r"^DIFFERS: the relay runs version [0-9.]+, this command is 9\.9: restart", shown, re.M
    )
    assert len(shell.json("status", status=1)["differs"]) == 1


def test_status_shows_a_relay_with_another_configuration(
    relay: Relay, shell: Shell, tmp_path: Path
) -> None:
    with relay.ledger.transaction() as tx:
        tx.set_meta("complete", "1")
    config = relay.directory / "bank-config.toml"
    relay.health["config"] = str(config)
    (tmp_path / "link.toml").symlink_to(config)
    assert "DIFFERS" not in shell("--config", str(config), "status")
    assert "DIFFERS" not in shell("--config", str(tmp_path / "link.toml"), "status")
    other = tmp_path / "bank-config.toml"
    other.write_text(config.read_text())
    shown = shell("--config", str(other), "status", status=1)
    assert f"DIFFERS: the relay reads {config}, this command {other}\n" in shown


def test_sweep(relay: Relay, shell: Shell) -> None:
    assert shell("sweep", "--force") == "ended: 0\n"
    assert relay.sweeps == [True]


def test_check_config(relay: Relay, shell: Shell) -> None:
    path = relay.directory / "bank-config.toml"
    path.write_text(path.read_text().replace("main = 1.0", "main = -1"))
    shown = shell("check-config", str(path), status=1)
    assert "[PartitionPrice] main = -1" in shown


def test_without_a_relay_it_is_one_line_and_its_own_status(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "relay.sock")
    assert main(["balance", "--socket", path]) == program.UNAVAILABLE
    assert capsys.readouterr().err == (
        f"slurm-banking: error: relay {path}: No such file or directory: "
        "does the relay run on this host? Only the controller's host has its socket\n"
    )


def test_the_socket_comes_from_the_configuration(
    relay: Relay, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(relay.directory / "bank-config.toml")
    assert main(["--config", config, "exceptions"]) == 0
    assert main(["exceptions", "--config", config]) == 0
    monkeypatch.setenv("SLURM_CONF", str(relay.directory / "slurm.conf"))
    assert main(["exceptions"]) == 0
    monkeypatch.setenv("SLURM_CONF", str(relay.directory / "none" / "slurm.conf"))
    assert main(["exceptions"]) == program.UNAVAILABLE
    assert "/run/slurm-banking/relay.sock" in capsys.readouterr().err


def test_a_default_configuration_with_mistakes_does_not_keep_one_from_the_relay(
    relay: Relay, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = relay.directory / "bank-config.toml"
    config.write_text(config.read_text() + "\n[Polcy]\n")
    monkeypatch.setenv("SLURM_CONF", str(relay.directory / "slurm.conf"))
    assert main(["exceptions"]) == program.UNAVAILABLE
    assert (
        f"{config} has mistakes (see: slurm-banking check-config), so the default socket was tried"
        in (capsys.readouterr().err)
    )
    monkeypatch.setattr(protocol, "DEFAULT_SOCKET", relay.socket)
    assert main(["exceptions"]) == program.OK


def test_a_named_configuration_that_cannot_be_read_is_not_passed_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--config", "/nowhere/bank-config.toml", "balance"]) == program.NO
    assert "/nowhere/bank-config.toml" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["nosuch"], ["balance", "a", "b"], ["--socket"], ["why"]])
def test_what_is_no_command_is_usage(words: List[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == program.USAGE
    assert "usage: slurm-banking" in capsys.readouterr().err


def test_help_lists_every_command_by_whom_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    parts = dict(re.findall(r"^([a-z][^\n]*):\n((?:  \S.*\n)+)", shown, re.MULTILINE))
    listed = {
        heading: re.findall(r"^  ([a-z-]+) ", lines, re.M) for heading, lines in parts.items()
    }
    assert listed[program.FOR_USERS] == [
        "balance", "statement", "jobs", "quote", "why", "explain", "slurm", "exceptions"
    ]  # fmt: skip
    assert listed[program.FOR_OPERATORS] == [
        "status", "health", "metrics", "allow", "retry", "outbox", "sweep", "limits", "reconcile", "ledger",
        "token", "jwks", "check-config"
    ]  # fmt: skip
    assert listed[program.SERVICES] == ["relay", "bank"]
    names = [name for group in (program.FOR_USERS, program.FOR_OPERATORS, program.SERVICES) for name in listed[group]]  # fmt: skip
    assert set(_commands()) == set(names)
    assert main(["bank", "--help"]) == 0


@pytest.mark.parametrize("command", ["balance", "statement", "jobs", "quote", "why", "explain", "slurm", "exceptions", "status", "health", "metrics", "allow", "retry", "outbox", "sweep", "limits", "reconcile", "ledger", "token", "jwks", "check-config", "relay", "bank"])  # fmt: skip
def test_each_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: slurm-banking {command} ")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main(["balance", "--help"]) == 0
    assert main(["--version"]) == 0
    assert "slurm-banking 0." in capsys.readouterr().out


def test_the_bank_without_its_extra_is_one_line() -> None:
    program_text = (
        "import sys; sys.modules['django'] = None; "
        "from slurm_banking.cli import main; sys.exit(main(['bank', 'account', 'list']))"
    )
    with tempfile.TemporaryDirectory() as data:
        done = _python(program_text, {"SLURM_BANK_DATA": data})
    assert "Traceback" not in done[1]
    assert done[0] != 0
    assert "server" in done[1]


def test_a_reader_that_has_had_enough_is_no_error(relay: Relay) -> None:
    for job_id in range(100, 400):
        open_lien(relay, job_id, user_id=os.getuid())
    command = f"{sys.executable} -m slurm_banking --socket {relay.socket} jobs | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("JOB ")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to be another user")
def test_an_ordinary_user_uses_it_without_the_configuration(relay: Relay) -> None:
    config = relay.directory / "bank-config.toml"
    config.chmod(0o600)
    open_lien(relay, 50, user_id=NOBODY)
    told = relay.directory / "told"
    told.touch()
    told.chmod(0o666)
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.environ["SLURM_CONF"] = str(relay.directory / "slurm.conf")
            answered = main(["--socket", relay.socket, "why", "50"])
            with open(told, "w", encoding="utf-8") as sys.stderr:
                status = main(["status"])
            os._exit(answered * 10 + status)
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    # status: no configuration to read, and nothing at the default socket
    assert os.waitstatus_to_exitcode(status) == program.OK * 10 + program.UNAVAILABLE
    (line,) = told.read_text().splitlines()
    assert (
        f"{config} may not be read by you, so the default socket was tried; --socket names another"
        in line
    )


def _python(text: str, environment: Any = None) -> Tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(environment or {})},
    )
    return done.returncode, done.stderr, done.stdout


def test_starting_up_loads_little() -> None:
    status, complaint, loaded = _python(
        "import sys; before = set(sys.modules); from slurm_banking.cli import main; main(['--version']); "
        "print(*[m for m in ('requests', 'ssl', 'sqlite3', 'django', 'mybrc_client', 'asyncio', 'logging', "
        "'attr', 'slurm_banking.ledger', 'slurm_banking.config') if m in set(sys.modules) - before])"
    )
    assert status == 0, complaint
    assert loaded.splitlines()[-1] == ""


def test_importing_takes_well_below_a_tenth_of_a_second() -> None:
    best = min(_seconds_to_import() for _ in range(5))
    assert best < 0.06


def _seconds_to_import() -> float:
    _, _, told = _python(
        "import time; began = time.perf_counter(); from slurm_banking.cli import main; "
        "print(time.perf_counter() - began)"
    )
    return float(told)


# -- the documentation --------------------------------------------------------------------------------------------------


def _commands() -> List[str]:
    parser = program.make_parser()
    action = next(a for a in parser._actions if hasattr(a, "choices") and a.choices)
    return list(action.choices or ())


@pytest.mark.parametrize("command", _commands())
def test_every_command_is_documented(command: str) -> None:
    assert re.search(rf"^### .*\b{command}\b", COMMANDS, re.MULTILINE)


def test_every_option_is_documented() -> None:
    parser = program.make_parser()
    action = next(a for a in parser._actions if hasattr(a, "choices") and a.choices)
    parsers: Any = action.choices
    for name, made in parsers.items():
        for option in made._actions:
            for word in option.option_strings:
                if word.startswith("--"):
                    assert word in COMMANDS, f"{name} {word}"


def test_every_command_that_is_documented_exists() -> None:
    for heading in re.findall(r"^### `slurm-banking ([a-z-]+)", COMMANDS, re.MULTILINE):
        assert heading in _commands()


def test_exit_statuses_are_documented() -> None:
    numbers = re.findall(r"^\| (\d) \|", COMMANDS, re.MULTILINE)
    assert numbers == [str(n) for n in (program.OK, program.NO, program.USAGE, program.UNAVAILABLE)]
