# SPDX-License-Identifier: BSD-3-Clause
"""Every line of the relay's log, and of the nodes', that docs/operating.md explains, made by the code that logs it."""

from __future__ import annotations

import logging
import logging.handlers
import os
import shutil
import signal
import socket
import sqlite3
import stat
import sys
import syslog
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm_banking import config as configuration
from slurm_banking import node_start
from slurm_banking.bank import Bank
from slurm_banking.config import Config
from slurm_banking.ledger import Ledger, health, store
from slurm_banking.relay import client, outbox
from slurm_banking.relay import daemon as daemon_module
from slurm_banking.relay import service as service_module
from slurm_banking.relay.deliver import try_again
from slurm_banking.relay.desk import FundsDesk
from slurm_banking.relay.funds import refresh_account
from slurm_banking.relay.metrics import MetricsServer
from slurm_banking.relay.rebuild import rebuild
from slurm_banking.relay.service import BankHolder, Service, Step
from slurm_banking.slurm import runaway
from slurm_banking.slurm.squeue import QueueSnapshot
from tests.plugins.test_node_start import environment_for
from tests.unit.portal_model import Portal
from tests.unit.relay_parts import NOBODY, Relay
from tests.unit.test_deliver import USER, Desk
from tests.unit.test_ledger_disaster import closed_ledger, damage
from tests.unit.test_outbox import Asked, refused
from tests.unit.test_relay_daemon import FAKE_SLURM, SLURM
from tests.unit.test_relay_daemon import Site as Daemon
from tests.unit.test_sweep import BOOT, Site, a_job, an_ended, mark, started

CONFIG = """
[API]
url = "http://127.0.0.1:9/api"
token_file = "{directory}/token"
{policy}
[Ledger]
state_dir = "{directory}/state"
[Relay]
socket = "{directory}/run/relay.sock"
queue_poll_s = 1
[PartitionPrice]
main = 1.0
"""

POLICY = '[Policy]\nmode = "strict-allocation"'


class Said:
    """What was logged since the last look."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "slurm_banking")
        self._caplog = caplog

    def __call__(self) -> list[str]:
        lines = [record.getMessage() for record in self._caplog.records]
        self._caplog.clear()
        return lines

    def events(self) -> list[str]:
        return [line.split()[0] for line in self()]

    def one(self, event: str, *words: str) -> str:
        """The one line of this event among what was logged since, which has these words in it."""
        lines = self()
        found = [line for line in lines if line.split()[0] == event]
        assert len(found) == 1, lines
        assert all(word in found[0] for word in words), found[0]
        return found[0]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    return Said(caplog)


# -- the relay's own parts, on Slurm's commands as a stand-in has them, and on a portal ---------------------------------


class Inside:
    """The relay in this process, with no thread of it running."""

    def __init__(self, directory: Path, portal: Portal) -> None:
        self.directory = directory
        self.portal = portal
        for name, mode in (("state", 0o700), ("run", 0o755), ("bin", 0o755)):
            (directory / name).mkdir(mode=mode)
        self.configure()
        self.token("Token 1234567890")
        for name in ("squeue", "scontrol", "sacctmgr"):
            self._program(name, FAKE_SLURM.format(python=sys.executable, uid=SLURM))
        self._program("sacct", '#!/bin/sh\ncase "$*" in *state=R,S*) cat "${0%/*}/open";; esac\n')
        self.slurm()
        self.slurmdbd_has_open()
        self.service = Service(
            configuration.Reloader(str(directory / "bank-config.toml"), in_slurmctld=False), "demo"
        )
        self.service._listener.start()

    def _program(self, name: str, text: str) -> None:
        path = self.directory / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def configure(self, policy: str = POLICY, **changes: str) -> None:
        text = CONFIG.format(directory=self.directory, policy=policy)
        for old, new in changes.items():
            text = text.replace(old, new)
        (self.directory / "bank-config.toml").write_text(text)

    def token(self, text: str, mode: int = 0o600) -> None:
        new = self.directory / "new"
        new.write_text(f"{text}\n")
        new.chmod(mode)
        new.replace(self.directory / "token")

    def slurm(self, text: str = "{}") -> None:
        (self.directory / "bin" / "slurm.json").write_text(text)

    def slurmdbd_has_open(self, *rows: str) -> None:
        (self.directory / "bin" / "open").write_text("".join(f"{row}\n" for row in rows))

    def look_again(self) -> None:
        """At file and token at once, not within a second."""
        self.service._reloader._checked_at = None
        self.service.bank.forget()


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inside]:
    path = tempfile.mkdtemp(prefix="sbr-")
    os.chmod(path, 0o755)
    monkeypatch.setenv("PATH", f"{path}/bin:/usr/bin:/bin")
    portal = Portal()
    portal.member(portal.project("astro", 100_000), NOBODY)

    def make(holder: BankHolder, config: Config, token: str) -> service_module._BankParts:
        """The real adapter, with the portal's transport under it."""
        bank = Bank(config.api.url, token, timeout_s=5, session=portal.session())
        return service_module._BankParts(bank=bank, token=token, config=config)

    monkeypatch.setattr(BankHolder, "_make", make)
    made = Inside(Path(path), portal)
    try:
        yield made
    finally:
        made.service._listener.stop()
        made.service._metrics_server.stop()
        made.service.book.close()
        made.service.ledger.close()
        shutil.rmtree(path)


def test_a_ledger_is_looked_at_when_the_relay_starts_and_rebuilt_if_it_is_new(
    inside: Inside, said: Said, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    closed_ledger(tmp_path / "state")
    health.open_for_relay(str(tmp_path / "state"), "c")[0].close()
    said.one("ledger_checked", "entries=", "took_s=")
    inside.service._queue()
    said.one("ledger_rebuilt", "opened=0", "at_bank=0", "bank_away=")


def test_after_a_rebuild_the_banks_open_rows_wait_for_the_bank_and_no_step_fails(
    inside: Inside, said: Said
) -> None:
    inside.service._queue()
    inside.portal.faults = ["maintenance"]
    inside.service._take_over()
    said.one("bank_rows_wait", "problem=", "503")
    inside.service._take_over()
    said.one("bank_rows_looked_at", "rows=0", "taken_over=0")


def test_a_look_that_has_no_time_for_all_of_it_says_so(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_STEPS", 1)
    (tmp_path / "state").mkdir(mode=0o700)
    closed_ledger(tmp_path / "state")
    health.open_for_relay(str(tmp_path / "state"), "c", budget_s=0.0)[0].close()
    assert said.events() == ["ledger_checked", "ledger_check_unfinished"]


def test_a_damaged_ledger_is_moved_aside_with_a_line_and_an_alarm(
    inside: Inside, said: Said
) -> None:
    with inside.service.ledger.transaction() as tx:
        for number in range(3000):
            tx.append(
                "note", account="a", user_id=-1, amount_csu=0, reason=f"{number}", actor="test"
            )
    inside.service.ledger.checkpoint()
    inside.service.ledger._failed(_damage_found(Path(inside.service.ledger.path)))
    inside.service._mend_ledger()
    lines = said()
    (moved,) = [line for line in lines if line.startswith("ledger_moved_aside ")]
    assert "kept_as=" in moved and "rebuilding=1" in moved
    (alarm,) = [line for line in lines if line.startswith("alarm source=ledger ")]
    assert "was damaged and rebuilt" in alarm
    assert alarm.partition("alarm source=ledger ")[2] in inside.service.health()["alarms"]


def _damage_found(path: Path) -> Any:
    damage(path)
    try:
        with sqlite3.connect(path) as connection:
            connection.execute("SELECT COUNT(reason) FROM entries").fetchone()
    except sqlite3.DatabaseError as error:
        return error
    raise AssertionError("not damaged")


def test_a_ledger_that_is_another_one_is_noticed_by_the_deliveries(
    inside: Inside, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no funds: those of accounts that are not in use are read again too, and not in an hour."""
    woken: list[bool] = []
    monkeypatch.setattr(inside.service._steps["members"], "wake", lambda: woken.append(True))
    state = inside.directory / "state"
    for name in os.listdir(state):
        if name.startswith(store.FILE_NAME):
            os.unlink(state / name)
    inside.service._deliver()
    said.one("ledger_replaced", f"path={inside.service.ledger.path}")
    assert woken


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda inside: os.unlink(inside.directory / "token"), "No such file"),
        (lambda inside: inside.token("Token 1234567890", 0o644), "0644"),
        (lambda inside: inside.token("not a token at all"), "token"),
        (lambda inside: os.chown(inside.directory / "token", 12345, 12345), "12345"),
    ],
    ids=["missing", "others may read it", "not a token", "of another user"],
)
@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a file away")
def test_a_token_that_cannot_be_used_is_told_once(
    inside: Inside, said: Said, spoil: Callable[[Inside], None], words: str
) -> None:
    inside.service._keep()
    spoil(inside)
    for _ in range(3):
        inside.look_again()
        inside.service._keep()
    said.one("bank_token_unusable", f"{inside.directory}/token", words)
    assert any(str(inside.directory / "token") in one for one in inside.service.health()["alarms"])


def test_a_new_token_is_told_and_taken_at_once(inside: Inside, said: Said) -> None:
    inside.service._keep()
    said()
    inside.token("Token abcdefghij")
    inside.service.reload()  # as SIGHUP does
    inside.service._keep()
    said.one("bank_token_or_address_changed", "url=http://127.0.0.1:9/api")
    assert inside.service.bank.parts().token == "abcdefghij"


def test_a_mistake_in_the_configuration_and_something_to_mend_are_told_once(
    inside: Inside, said: Said
) -> None:
    for text, event, words in (
        ("", "config_warning", "[Policy] is missing"),
        ("[Policy\n", "config_rejected", "keeping=last_good"),
    ):
        inside.configure(text)
        for _ in range(3):
            inside.look_again()
            inside.service._keep()
        said.one(event, words, str(inside.directory / "bank-config.toml"))


def test_a_changed_price_is_in_force_with_a_line(inside: Inside, said: Said) -> None:
    inside.configure(**{"main = 1.0": "main = 2.0"})
    inside.look_again()
    inside.service._keep()
    said.one("prices_in_force", f"version={inside.service.config().prices.version}")


def test_what_needs_a_restart_is_an_alarm_as_long_as_it_is_so(inside: Inside, said: Said) -> None:
    inside.configure(**{"relay.sock": "other.sock"})
    for _ in range(2):
        inside.look_again()
        inside.service._keep()
    assert said.one("alarm") == "alarm source=config " + inside.service.health()["alarms"][0]
    inside.configure()
    inside.look_again()
    inside.service._keep()
    assert inside.service.health()["alarms"] == []


def test_a_step_that_fails_waits_longer_each_time_and_says_when_it_is_well(
    inside: Inside, said: Said
) -> None:
    step = inside.service._steps["queue"]
    inside.slurm('{"down": true}')
    pauses = []
    for _ in range(3):
        inside.service._force.set()
        pauses.append(step._try())
    said.one("step_failed", "step=queue", "Unable to contact slurm controller")
    assert pauses[0] < pauses[1] < pauses[2]
    assert "queue" in inside.service.health()["failing"]
    inside.slurm()
    step._try()
    assert "step_recovered" in said.events()
    assert inside.service.health()["failing"] == {}


def test_a_busy_ledger_is_tried_again_soon_and_is_no_failure(inside: Inside, said: Said) -> None:
    other = Ledger(inside.service.ledger.state_dir, "demo", check_directory=False)
    inside.service.ledger._busy_timeout_ms = 20
    inside.configure(**{"main = 1.0": "main = 3.0"})  # to be written into the ledger
    inside.look_again()
    step = Step("keep", inside.service._keep, lambda: 1.0, inside.service._stop)
    with other.transaction():
        assert step._try() < 1.0
    other.close()
    said.one("step_busy", "step=keep")
    assert step.problem is None and step.failures == 0


def test_a_socket_that_was_taken_away_is_made_again(inside: Inside, said: Said) -> None:
    os.unlink(inside.directory / "run" / "relay.sock")
    inside.service._probe()  # asks over the new one
    said.one("socket_gone", f"path={inside.directory}/run/relay.sock")
    assert stat.S_ISSOCK(os.stat(inside.directory / "run" / "relay.sock").st_mode)


def test_coordinators_that_slurm_does_not_tell_are_a_line_and_see_less(
    inside: Inside, said: Said
) -> None:
    inside.slurm('{"down": true}')
    assert not inside.service._members.coordinated_by("nobody")
    said.one("coordinators_unknown", "problem=sacctmgr: ")


def test_funds_of_those_who_never_submitted_are_read_and_said_so(
    inside: Inside, said: Said
) -> None:
    inside._program("sacctmgr", "#!/bin/sh\necho 'astro|nobody'\n")
    inside.service._introduce()
    said.one("funds_introduced", "accounts=1 of=1")
    with inside.service.ledger.transaction(write=False) as tx:
        assert all(funds is not None for funds in tx.funds("astro", NOBODY))


def test_funds_that_a_delivery_kept_from_being_read_are_read_soon(
    inside: Inside, said: Said
) -> None:
    """After a rebuild there are many deliveries; an hour without funds would refuse every submission."""
    inside._program("sacctmgr", "#!/bin/sh\necho 'astro|nobody'\n")
    inside.service.book.adopt([(1, 1, "end", "astro")])
    assert inside.service._introduce() == service_module._MEMBERS_AGAIN_S
    said.one("funds_introduced", "accounts=0 of=1")


def test_what_waits_no_more_is_forgotten_also_when_nothing_else_waits(inside: Inside) -> None:
    """A rebuild finds at the bank what the book took for unresolved: it kept the funds of its account from being read."""
    inside.service._queue()
    inside.service.book.adopt([(1, 1, "end", "astro")])
    inside.service._deliver()
    assert inside.service.book.counts() == {"unresolved": 0}
    assert not inside.service.book.must_adopt
    assert inside.service.book.refresh_marker("astro") is not None


def test_funds_that_the_bank_does_not_tell_are_an_alarm_and_the_older_numbers_stay(
    inside: Inside, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside.service._refresh_one("astro", NOBODY)
    no = 400, {"page": ["No."]}
    monkeypatch.setattr(inside.portal, "_handle", lambda *_: no)
    monkeypatch.setattr(inside.service, "_read_at", lambda *_: 0)  # read long ago
    inside.service._refresh_in_use()
    said.one("alarm", "source=funds funds of account astro: 400 page: No.")
    with inside.service.ledger.transaction(write=False) as tx:
        assert tx.funds_view("astro", NOBODY).available_csu == 100_000


def test_jobs_that_slurmdbd_alone_takes_for_running_are_told_after_two_looks(
    inside: Inside, said: Said
) -> None:
    inside.service._queue()
    said()
    inside.slurmdbd_has_open("77|1700000000|1700000100|RUNNING")
    for _ in range(2):
        inside.service._runaway_due = 0.0
        inside.service._look_for_runaway()
    said.one("runaway_jobs", "slurmdbd has 1 job as running", runaway.COMMAND)
    assert any(runaway.COMMAND in hint for hint in inside.service.health()["hints"])
    inside._program("sacct", "#!/bin/sh\necho 'sacct: error: slurmdbd is away' >&2; exit 1\n")
    inside.service._runaway_due = 0.0
    inside.service._look_for_runaway()
    said.one("runaway_look_failed", "problem=sacct: ", "slurmdbd is away")


def test_a_mistake_in_an_answer_is_a_line_with_its_trace(
    said: Said, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o755)
    path = tempfile.mkdtemp(prefix="sbr-")
    os.chmod(path, 0o755)
    relay = Relay(Path(path))
    relay.health = {"alarms": object()}  # what an answer cannot be made of
    with relay.listening():
        client.ask(relay.socket, {"op": "status"}, 5, allowed_owner_uids=(os.geteuid(),))
    assert caplog.records[-1].exc_info is not None
    said.one("answer_failed", "uid=")
    relay.ledger.close()
    shutil.rmtree(path)

    def unmade() -> str:
        raise ValueError("no")

    server = MetricsServer(unmade)
    assert server.serve_on("127.0.0.1:0") is None
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert connection.recv(100) == b""
    server.stop()
    said.one("answer_failed", "metrics=127.0.0.1:0")


# -- deliveries and funds -----------------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


def test_what_the_bank_has_is_told_with_its_id_there(desk: Desk, said: Said) -> None:
    desk.start(1)
    desk.deliver()
    said.one("start_delivered", "job=1 account=fc_alpha bank_job=1 bank_csu=100")
    desk.end(1)
    desk.deliver()
    assert "note=" not in said.one("end_delivered", "job=1 account=fc_alpha bank_job=1 bank_csu=40")


def test_an_id_that_another_job_has_is_told_in_a_note(desk: Desk, said: Said) -> None:
    desk.end(1, user_id=1002)
    desk.deliver()
    desk.portal.jobs["2"] = {**desk.portal.jobs["1"], "jobslurmid": "2"}
    said()
    desk.end(2)
    desk.deliver()
    said.one("end_delivered", f"bank_job=2-{desk.run(2).submit_time}", "note=")


def test_an_id_that_others_have_twice_is_refused_for_good(desk: Desk, said: Said) -> None:
    desk.end(1, user_id=1002)
    desk.deliver()
    desk.end(2)
    for name in ("2", f"2-{desk.run(2).submit_time}"):
        desk.portal.jobs[name] = {**desk.portal.jobs["1"], "jobslurmid": name}
    said()
    desk.deliver()
    said.one("end_refused", "job=2", "heals=False", "and so does the other id")
    assert desk.run(2).parked and desk.run(2).charge_csu == 40, "it counts here all the same"


@pytest.mark.parametrize(
    ("phase", "event"), [("start", "start_unanswered"), ("end", "end_unanswered")]
)
def test_an_answer_that_makes_no_sense_is_about_this_run_alone(
    desk: Desk, said: Said, phase: str, event: str
) -> None:
    other = desk.portal.project("fc_beta", 1000)
    desk.portal.member(other, USER)
    getattr(desk, phase)(1)
    getattr(desk, phase)(2, account="fc_beta")
    desk.bank.funds("fc_alpha", USER)
    desk.portal.faults = ["other_row"] if phase == "start" else ["", "other_row"]
    desk.deliver()
    lines = said()
    (line,) = [line for line in lines if line.startswith(f"{event} ")]
    assert "job=1 account=fc_alpha" in line and "answered about job 97" in line
    assert [line for line in lines if line.startswith(f"{phase}_delivered job=2 ")]


@pytest.mark.parametrize(("phase", "event"), [("start", "start_refused"), ("end", "end_refused")])
@pytest.mark.parametrize("heals", [True, False])
def test_a_refusal_says_whether_it_may_heal(
    desk: Desk, said: Said, monkeypatch: pytest.MonkeyPatch, phase: str, event: str, heals: bool
) -> None:
    if heals:
        desk.project.members[str(USER)].active = False
        getattr(desk, phase)(1)
    else:
        getattr(desk, phase)(1)
        no = 400, {"partition": ["Ensure this field has no more than 50 characters."]}
        monkeypatch.setattr(desk.portal, "_invalid", lambda body: no)
    desk.deliver()
    said.one(event, "job=1 account=fc_alpha user=1001", f"heals={heals}", "reason=")


def test_who_had_it_sent_again_is_told(desk: Desk, said: Said) -> None:
    desk.start(1)
    run_id = desk.run(1).run_id
    with desk.ledger.transaction() as tx:
        tx.park(run_id, "400 no")
    said()
    try_again(desk.ledger, desk.book, [run_id], "root")
    said.one("delivery_retried", "job=1 account=fc_alpha phase=start actor=root was='400 no'")


def test_what_was_settled_by_hand_is_told_with_who_and_why(said: Said) -> None:
    path = tempfile.mkdtemp(prefix="sbr-")
    relay = Relay(Path(path))
    settled = refused(relay, 60)
    outbox.resolve(
        relay.ledger, relay.book, settled.run_id, bank=lambda: Asked(None), bank_has_csu=None,
        reason="booked by hand", actor="root",
    )  # fmt: skip
    said.one("delivery_resolved", "job=60", "bank_csu=0", "actor=root", "reason='booked by hand'")
    relay.book.close()
    relay.ledger.close()
    shutil.rmtree(path)


def test_a_bank_that_is_away_is_told_once_each_time_it_begins(desk: Desk, said: Said) -> None:
    desk.start(1)
    for _ in range(2):
        desk.portal.faults = ["", "maintenance"]
        desk.deliver()
        desk.now += 1000
    said.one("bank_away", "reason=", "503")
    desk.portal.faults = []
    desk.deliver()
    desk.start(2)
    desk.portal.faults = ["maintenance"]
    desk.deliver()
    said.one("start_delivered")
    assert desk.book.away is not None


def test_funds_that_cannot_be_written_are_told_and_the_older_numbers_stay(
    desk: Desk, said: Said
) -> None:
    other = Ledger(str(desk.directory), "c", check_directory=False)

    def refresh(account: str, user_id: int) -> None:
        refresh_account(desk.ledger, desk.bank, desk.book, account, user_id, desk.now)

    asked = FundsDesk(refresh=refresh, read_at=lambda *_: 0, away_until=lambda: None)
    with other.transaction():
        answer = asked.ask("fc_alpha", USER, max_age_s=3, budget_s=5)
    other.close()
    assert not answer["fresh"]
    said.one("funds_refresh_failed", f"account=fc_alpha user={USER}", "problem=")


class Portals(Portal):
    """With two awards for one account, or without a user that it still had a moment ago."""

    awards = 1
    gone = False

    def _handle(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        status, answer = super()._handle(method, path, query, body)
        if path.startswith("allocations") and "project" in query and self.awards > 1:
            more = {**answer["results"][0], "id": self.projects["another"].allocation_id}
            answer = {**answer, "results": [*answer["results"], more], "count": 2}
        if path.startswith("allocation_users") and "user" in query and self.gone:
            return 400, {"user": ["Select a valid choice. user1001 is not one of them."]}
        return status, answer


def bank_of(portal: Portal) -> Bank:
    return Bank("http://bank.test/api", "key", timeout_s=5, session=portal.session())


def test_several_awards_a_bank_of_the_first_generation_and_a_user_who_is_gone_are_told(
    said: Said,
) -> None:
    portal = Portals()
    portal.member(portal.project("fc_alpha", 1_000), USER)
    portal.project("another", 500)
    bank = bank_of(portal)
    portal.awards = 2
    account, _ = bank.funds("fc_alpha", USER)
    assert account.remaining_csu == 500, "the one with least left counts"
    said.one("several_allocations", "account=fc_alpha ids=1,2: set [API] resource")
    portal.awards, portal.gone = 1, True
    bank.funds("fc_alpha", USER)
    said.one("bank_user_gone", f"user={USER}")
    original = Portal(generation="original")
    original.member(original.project("fc_alpha", 1_000), USER)
    bank_of(original).funds("fc_alpha", USER)
    said.one("bank_generation", "generation=original")


# -- the queue and slurmdbd ---------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """slurmdbd was read until shortly before the jobs of these tests."""
    made = Site(tmp_path)
    with made.ledger.transaction() as tx:
        tx.set_meta("sacct_watermark", "1999990000")
    return made


def test_a_sweep_that_changed_something_is_one_line_with_its_counts(site: Site, said: Said) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    said.one("sweep", "sweep jobs=1 confirmed=1 opened=0 started=0", "waiting=0")
    site.see(a_job(token))
    assert said() == []


def test_a_sweep_that_would_end_too_much_is_stopped_and_says_so(site: Site, said: Said) -> None:
    jobs = [a_job(site.submit(100), job_id=100 + n) for n in range(21)]
    site.see(*jobs)
    site.see(after_s=40)
    said()
    site.see()
    said.one("sweep_stopped", "21 of 21 open liens would end", "slurm-banking sweep --force")
    assert len(site.open_liens()) == 21


def test_slurmdbd_away_is_told_once_and_liens_wait(site: Site, said: Said) -> None:
    site.see(a_job(site.submit(100)))
    site.see(after_s=40)
    site.sacct.away = True
    said()
    for _ in range(3):
        assert site.see().waiting == 1
    said.one("accounting_unavailable", "Connection refused")
    assert len(site.open_liens()) == 1


def test_ends_that_nobody_had_told_are_counted_and_what_differs_is_told(
    site: Site, said: Said
) -> None:
    site.now = 2_000_000_700
    site.sacct.rows = [an_ended(a_job())]
    site.window()
    said.one("sacct_window", "charged=1 voided=0 rescanned=0")
    site.sacct.rows = [an_ended(a_job(), elapsed_s=500)]
    site.now += 20
    site.window()
    said.one("accounting_differs", "job_id=7", "ledger_elapsed_s=600 sacct_elapsed_s=500")
    assert site.runs()[0].charge_csu == 1000, "nothing is changed by itself"


def test_another_user_under_one_run_and_a_copied_token_are_told(site: Site, said: Said) -> None:
    token = site.submit(6000)
    site.see(a_job(token))
    site.see(a_job(token), a_job(token, job_id=8, user_id=1002, account="fc_beta"))
    said.one("token_ignored", "job_id=8 job_user=1002 account=fc_beta", "lien_user=1001")
    site.see(started(a_job(token)))
    said()
    site.see(started(a_job(user_id=1002, account="fc_beta")))
    said.one("run_conflict", "job_id=7")


def test_a_run_that_slurm_forgot_is_told_when_it_is_given_up(site: Site, said: Said) -> None:
    site.now = 2_000_000_020
    site.see(started(a_job(site.submit(6000))))
    site.boot_time = site.now + 5
    said()
    for _ in range(16):
        site.see(after_s=70)
    said.one("run_lost", "job_id=7 submit_time=2000000000")
    (run,) = site.runs()
    assert (run.state, run.charge_csu) == ("ended", 0)


def test_an_end_that_slurm_made_up_is_told_and_charges_nothing(site: Site, said: Said) -> None:
    days = 20 * 86400
    site.sacct.rows = [
        an_ended(a_job(), state="CANCELLED", end_time=2_000_000_010 + days, elapsed_s=days)
    ]
    site.now = 2_000_000_010 + days + 60
    site.window()
    site.window()
    said.one("run_end_made_up", "job_id=7", f"elapsed_s={days}", "charged=0")
    assert site.runs()[0].charge_csu == 0


def test_a_mark_that_is_cut_short_and_one_that_nobody_can_explain_are_told(
    site: Site, said: Said
) -> None:
    site.now = 2_000_000_700
    (site.state_dir / "rescan").write_bytes(b'{"job_id": 1\n')
    site.window()
    said.one("rescan_mark_unreadable", "line=")
    mark(site, a_job())
    site.window()
    assert said() == []
    site.now += 8 * 86400
    site.window()
    said.one("rescan_given_up", "job_id=7 submit_time=2000000000")


def test_a_queue_that_hides_jobs_keeps_the_ledger_incomplete_and_says_so(
    site: Site, said: Said
) -> None:
    with site.ledger.transaction() as tx:
        tx.set_meta("complete", "0")
    hidden = QueueSnapshot(cluster="c", jobs=(), taken_at=site.now, boot_time=BOOT, complete=False)
    rebuild(site.ledger, site.config, hidden, site.sacct, None, site.now)
    said.one("ledger_incomplete", "SlurmUser")


# -- its own life, as a process -----------------------------------------------------------------------------------------


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    if os.getuid() != 0:
        pytest.skip("needs root to become SlurmUser")
    path = tempfile.mkdtemp(prefix="sbr-")
    os.chmod(path, 0o755)
    yield Daemon(Path(path), "http://127.0.0.1:9/api")
    shutil.rmtree(path)


def test_its_own_life_is_in_its_log(daemon: Daemon) -> None:
    with daemon.running() as process:
        process.send_signal(signal.SIGHUP)
        daemon.wait(lambda: "relay_reload signal=SIGHUP" in daemon.told())
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    words = [line.split()[3] for line in daemon.told().splitlines() if " relay_" in line]
    assert words == ["relay_started", "relay_reload", "relay_stopping", "relay_stopped"]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Ours, as it was before."""
    made = logging.getLogger("slurm_banking")
    before = (made.handlers[:], made.level, made.propagate, logging.raiseExceptions)
    yield made
    for handler in set(made.handlers) - set(before[0]):
        handler.close()
    made.handlers[:], made.level, made.propagate, logging.raiseExceptions = before


def test_its_log_is_a_file_that_is_turned_over_and_warnings_go_to_syslog_too(
    logger: logging.Logger, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:  # fmt: skip
        log.bind(f"{short}/log")
        log.settimeout(5)

        class Local(logging.handlers.SysLogHandler):
            def __init__(self, address: str, facility: int) -> None:
                assert address == "/dev/log"
                super().__init__(f"{short}/log", facility)

        exists = os.path.exists
        monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/log" or exists(path))
        monkeypatch.setattr(logging.handlers, "SysLogHandler", Local)
        daemon_module.set_up_logging(site.config, False)
        log_of_relay = logging.getLogger("slurm_banking.relay")
        log_of_relay.info("sweep jobs=1")
        log_of_relay.warning("bank_away reason='x'")
        assert log.recv(1000).endswith(b"slurm-banking-relay: bank_away reason='x'\0")
    lines = (site.state_dir / daemon_module.LOG_NAME).read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "INFO sweep jobs=1",
        "WARNING bank_away reason='x'",
    ]
    (file,) = [h for h in logger.handlers if isinstance(h, logging.handlers.RotatingFileHandler)]
    assert file.maxBytes == 5 * 1024 * 1024 and file.backupCount > 0


def test_under_systemd_its_log_is_the_journals(
    logger: logging.Logger,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    daemon_module.set_up_logging(site.config, False)
    logging.getLogger("slurm_banking.relay").info("relay_started")
    assert capsys.readouterr().err.endswith(" INFO relay_started\n")
    assert not (site.state_dir / daemon_module.LOG_NAME).exists()


def test_a_relay_that_cannot_start_says_why_in_its_log(daemon: Daemon) -> None:
    (daemon.directory / "run").mkdir()
    os.chown(daemon.directory / "run", SLURM, SLURM)
    Path(daemon.socket).write_text("")
    process = daemon.start()
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == 1 and "something else is there" in complaint
    (line,) = [line for line in daemon.told().splitlines() if " ERROR " in line]
    assert " relay_not_started problem=" in line and "something else is there" in line


# -- nodes --------------------------------------------------------------------------------------------------------------


def test_a_start_that_the_bank_did_not_take_is_one_line_in_the_nodes_syslog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment_for(tmp_path, "http://127.0.0.1:1/api").items():
        monkeypatch.setenv(name, value)
    lines: list[str] = []
    monkeypatch.setattr(syslog, "syslog", lambda level, line: lines.append(line))
    assert node_start.main() == 0
    (line,) = lines
    assert line.startswith("start_unreported job=77 problem=http://127.0.0.1:1/api: ")
