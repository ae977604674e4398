# SPDX-License-Identifier: BSD-3-Clause
"""What waits for the bank is visible and explained; what the bank refused is sent again or settled by hand, by operators,
with a reason, and without a charge ever changing."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Iterator, Optional, Tuple

import pytest

from slurm_banking import config as configuration
from slurm_banking.bank import BankRun
from slurm_banking.cli import main
from slurm_banking.cli import outbox as shown_outbox
from slurm_banking.ledger import LedgerRun
from slurm_banking.relay.book import FILE_NAME
from slurm_banking.relay.outbox import NotByHand, resolve, standings
from slurm_banking.relay.service import Service
from tests.server.running_bank import RunningBank
from tests.unit.relay_parts import BIN, DAEMON, NOBODY, Relay, ask_as, end_run, put_funds, run
from tests.unit.test_cli_commands import Shell
from tests.unit.test_deliver import Desk

NOW = int(time.time())


@pytest.fixture
def relay() -> Iterator[Relay]:
    path = tempfile.mkdtemp(prefix="sbr-")
    os.chmod(path, 0o755)
    made = Relay(Path(path))
    put_funds(made.ledger, "astro", NOBODY, 90_000)
    with made.listening():
        yield made
    made.ledger.close()
    shutil.rmtree(path)


@pytest.fixture
def shell(relay: Relay, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(relay, capsys)


def ask(relay: Relay, uid: int, op: str, **arguments: Any) -> dict[str, Any]:
    return ask_as(uid, relay.socket, {"op": op, **arguments})


def refused(
    relay: Relay, job_id: int, says: str = "400 partition: too long", **options: Any
) -> LedgerRun:
    """A run of 4 SU that the bank refuses for good."""
    end_run(relay, run(job_id, start=NOW - 7200, **options))
    with relay.ledger.transaction() as tx:
        made = tx.runs_by_job(job_id)[-1]
        tx.park(made.run_id, says)
        delivery = tx.delivery_of(made.run_id)
    assert delivery is not None
    relay.book.begin(made.run_id, delivery.seq, delivery.phase, made.account)
    relay.book.refused(made.run_id, made.account, "parked", says, NOW + 600)
    return made


def put(relay: Relay, job_id: int, state: str, says: str, next_try: float) -> LedgerRun:
    end_run(relay, run(job_id, start=NOW - 7200))
    with relay.ledger.transaction(write=False) as tx:
        made = tx.runs_by_job(job_id)[-1]
        delivery = tx.delivery_of(made.run_id)
    assert delivery is not None
    relay.book.begin(made.run_id, delivery.seq, delivery.phase, made.account)
    if state == "unresolved":
        relay.book.unanswered(made.run_id, made.account, says, next_try)
    elif state != "sending":
        relay.book.refused(made.run_id, made.account, state, says, next_try)
    return made


class Asked:
    """A bank that holds something for a run."""

    def __init__(self, held_csu: Optional[int], bank_job_id: str = "60") -> None:
        self.held_csu = held_csu
        self.bank_job_id = bank_job_id

    def find_run(self, run: LedgerRun) -> Optional[BankRun]:
        if self.held_csu is None:
            return None
        return BankRun(
            bank_job_id=self.bank_job_id, user_id=str(run.user_id), account=run.account,
            submit_time=run.submit_time, start_time=run.start_time, end_time=run.end_time,
            amount_csu=self.held_csu, state="COMPLETED", held_csu=self.held_csu,
        )  # fmt: skip


def funds_of(relay: Relay) -> Tuple[Optional[int], Optional[int]]:
    """What remains at the bank, and what is available, of the account."""
    with relay.ledger.transaction(write=False) as tx:
        view = tx.funds_view("astro", NOBODY)
    assert view.account is not None
    return view.account.remaining_csu, view.account_available_csu


# -- what waits ---------------------------------------------------------------------------------------------------------


def test_what_needs_somebody_comes_first_and_each_says_what_it_means(relay: Relay) -> None:
    end_run(relay, run(50, start=NOW - 7200))
    put(relay, 51, "waiting", "503 with HTML", NOW + 60)
    put(relay, 52, "healing", "400 not a member", NOW + 60)
    put(relay, 53, "unresolved", "no complete answer in time", NOW + 60)
    put(relay, 54, "sending", "", 0)
    refused(relay, 60)
    answer = ask(relay, 0, "outbox")
    rows = answer["rows"]
    assert [(row["job"], row["state"]) for row in rows] == [
        ("60", "parked"), ("53", "unresolved"), ("52", "healing"), ("51", "waiting"), ("54", "sending"), ("50", "new"),
    ]  # fmt: skip
    assert (answer["waiting"], answer["parked"], answer["left_out"]) == (6, 1, 0)
    parked, unresolved = rows[0], rows[1]
    assert parked["bank_says"] == "400 partition: too long" and parked["tries"] == 1
    assert "slurm-banking outbox retry 60" in parked["advice"] and parked["next_try"] is None
    assert (parked["account"], parked["phase"], parked["ledger_csu"]) == ("astro", "end", 400)
    assert unresolved["next_try"] == NOW + 60 and "asked" in unresolved["meaning"]
    assert len({row["meaning"] for row in rows}) == 6 and all(row["advice"] for row in rows)


def test_a_long_outbox_is_cut_and_says_so(relay: Relay) -> None:
    for job_id in range(1, 8):
        end_run(relay, run(job_id, start=NOW - 7200))
    refused(relay, 60)
    answer = ask(relay, 0, "outbox", limit=3)
    assert [row["job"] for row in answer["rows"]] == ["60", "1", "2"]
    assert answer["left_out"] == 5
    assert [row["job"] for row in ask(relay, 0, "outbox", job="5")["rows"]] == ["5"]
    assert ask(relay, 0, "outbox", job="99")["rows"] == []
    assert ask(relay, 0, "outbox", limit=0)["error"] == "bad_request"


def test_what_is_parked_shows_although_the_book_was_lost(relay: Relay) -> None:
    end_run(relay, run(60, start=NOW - 7200))
    with relay.ledger.transaction() as tx:
        tx.park(tx.runs_by_job(60)[0].run_id, "400 no")
    (standing,) = standings(relay.ledger, relay.book, 10)
    assert (standing.state, standing.bank_says) == ("parked", "400 no")


@pytest.mark.parametrize("uid", [NOBODY, DAEMON])
def test_only_operators_see_the_outbox_and_settle_anything(relay: Relay, uid: int) -> None:
    refused(relay, 60)
    for op, arguments in (("outbox", {}), ("resolve", {"job": "60", "reason": "mine", "bank_has_csu": 0})):  # fmt: skip
        reply = ask(relay, uid, op, **arguments)
        assert reply["error"] == "denied" and "60" not in str(reply)
    with relay.ledger.transaction(write=False) as tx:
        assert len(tx.parked_runs()) == 1
    assert ask(relay, BIN, "outbox")["ok"]  # one of admin_users


# -- settled by hand ----------------------------------------------------------------------------------------------------


def test_what_is_settled_by_hand_leaves_the_outbox_with_actor_and_reason(relay: Relay) -> None:
    before = refused(relay, 60)
    relay.asked_bank = Asked(400)
    (row,) = ask(relay, BIN, "resolve", job="60", reason="booked by the office, ticket 12")["runs"]
    assert (row["job"], row["bank_csu"], row["bank_csu_before"]) == ("60", 400, 0)
    assert row["differs"] == ""
    with relay.ledger.transaction(write=False) as tx:
        now = tx.runs_by_job(60)[0]
        assert tx.outbox_size()[0] == 0 and tx.parked_runs() == [] and tx.check() == []
        entry = tx.entries_by_job(60)[-1]
    assert (now.charge_csu, now.ledger_csu) == (before.charge_csu, before.ledger_csu) == (400, 400)
    assert (now.bank_csu, now.bank_job_id, now.end_acked) == (400, "60", True)
    assert entry.kind == "delivered" and entry.actor == "bin" and entry.amount_csu == 0
    assert "booked by the office, ticket 12" in entry.reason and "too long" in entry.reason
    assert relay.book.counts() == {"unresolved": 0}
    assert ask(relay, 0, "resolve", job="60", reason="again")["error"] == "not_found"


def test_what_the_operator_says_that_the_bank_holds_counts(relay: Relay) -> None:
    """The bank is not asked: it may be away."""
    refused(relay, 60)
    answer = ask(relay, 0, "resolve", job="60", reason="half was waived", bank_has_csu=150)
    (row,) = answer["runs"]
    assert row["bank_csu"] == 150 and "2.50" not in row["differs"] and "1.50" in row["differs"]
    with relay.ledger.transaction(write=False) as tx:
        assert tx.runs_by_job(60)[0].charge_csu == 400 and tx.check() == []


def test_without_the_banks_word_the_operators_is_required(relay: Relay) -> None:
    relay.book.adopted()
    refused(relay, 60)
    reply = ask(relay, 0, "resolve", job="60", reason="mended")
    assert reply["error"] == "unavailable" and "--bank-has" in reply["message"]
    (standing,) = standings(relay.ledger, relay.book, 10)
    assert standing.state == "parked" and standing.bank_says == "400 partition: too long"
    assert relay.book.refresh_marker("astro") is not None, "nothing is left under way"


def test_a_run_that_the_bank_has_no_row_of_is_held_at_nothing(relay: Relay) -> None:
    refused(relay, 60)
    relay.asked_bank = Asked(None)
    (row,) = ask(relay, 0, "resolve", job="60", reason="waived")["runs"]
    assert row["bank_csu"] == 0 and "4.00" in row["differs"]
    with relay.ledger.transaction(write=False) as tx:
        made = tx.runs_by_job(60)[0]
    assert made.bank_job_id is None, "where another job's row may be, nothing is claimed"


@pytest.mark.parametrize("read_after_the_mending", [False, True])
@pytest.mark.parametrize("mended_csu", [400, 250])
def test_what_is_available_is_never_above_the_truth_by_it(
    relay: Relay, read_after_the_mending: bool, mended_csu: int
) -> None:
    """A start had put 8 SU into the bank's usage; its office corrects them by hand, at a time that nobody here knows."""
    begun = run(60, start=NOW - 7200, state="RUNNING")
    with relay.ledger.transaction() as tx:
        tx.start_run(begun, share_csu=800, inputs={}, actor="t")
        delivery = tx.delivery_of(tx.runs_by_job(60)[0].run_id)
        assert delivery is not None
        tx.acknowledge(delivery, bank_csu=800, bank_job_id="60")
    refused(relay, 60)
    used_csu = 800  # at the bank
    put_funds(relay.ledger, "astro", NOBODY, 100_000 - used_csu)
    used_csu = mended_csu
    if read_after_the_mending:
        put_funds(relay.ledger, "astro", NOBODY, 100_000 - used_csu)
    ask(relay, 0, "resolve", job="60", reason="corrected", bank_has_csu=mended_csu)
    truth_csu = 100_000 - used_csu - (400 - mended_csu)
    available_csu = funds_of(relay)[1]
    assert available_csu is not None and available_csu <= truth_csu
    put_funds(relay.ledger, "astro", NOBODY, 100_000 - used_csu)
    assert funds_of(relay)[1] == truth_csu


@pytest.mark.parametrize(
    ("state", "word"),
    [("waiting", "waiting"), ("unresolved", "unresolved"), ("sending", "sending")],
)
def test_only_what_the_bank_refused_is_settled_by_hand(relay: Relay, state: str, word: str) -> None:
    put(relay, 60, state, "503", NOW + 60)
    reply = ask(relay, 0, "resolve", job="60", reason="x", bank_has_csu=0)
    assert reply["error"] == "denied" and word in reply["message"]
    with relay.ledger.transaction(write=False) as tx:
        assert tx.outbox_size()[0] == 1


def test_what_heals_no_more_is_settled_by_hand_too(relay: Relay) -> None:
    put(relay, 60, "healing", "400 not a member", NOW + 60)
    assert ask(relay, 0, "resolve", job="60", reason="left for good", bank_has_csu=0)["ok"]
    with relay.ledger.transaction(write=False) as tx:
        assert tx.outbox_size()[0] == 0


def test_what_the_bank_has_is_said_of_one_run_only(relay: Relay) -> None:
    for task, job_id in enumerate((71, 72)):
        refused(relay, job_id, array_job_id=70, array_task_id=task)
    reply = ask(relay, 0, "resolve", job="70", reason="x", bank_has_csu=400)
    assert reply["error"] == "bad_request" and "2 refused" in reply["message"]
    assert ask(relay, 0, "resolve", job="70_1", reason="x", bank_has_csu=400)["ok"]
    relay.asked_bank = Asked(400, "71")
    (row,) = ask(relay, 0, "resolve", job="70", reason="x")["runs"]
    assert row["job"] == "70_0"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"job": "60"}, "reason"),
        ({"job": "60", "reason": " "}, "reason"),
        ({"job": "60", "reason": "x", "bank_has_csu": -1}, "bank_has_csu"),
        ({"job": "60", "reason": "x", "bank_has_csu": "4.00"}, "bank_has_csu"),
        ({"reason": "x"}, "job"),
        ({"job": "all", "reason": "x"}, "job"),
    ],
)  # fmt: skip
def test_a_settling_that_lacks_something_says_what(
    relay: Relay, arguments: dict[str, Any], names: str
) -> None:
    refused(relay, 60)
    reply = ask(relay, 0, "resolve", **arguments)
    assert reply["error"] == "bad_request" and names in reply["message"]


def test_while_it_is_in_hand_nobody_sends_it_and_no_refresh_is_applied(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    try:
        desk.end(1, charge_csu=10**12)
        desk.deliver()
        asked, go_on = threading.Event(), threading.Event()

        class Slow:
            def find_run(self, run: LedgerRun) -> Optional[BankRun]:
                asked.set()
                assert go_on.wait(10)
                return None

        def settle() -> None:
            resolve(
                desk.ledger, desk.book, desk.run(1).run_id, bank=Slow,
                bank_has_csu=None, reason="waived", actor="ops",
            )  # fmt: skip

        marker = desk.book.refresh_marker("fc_alpha")
        settling = threading.Thread(target=settle)
        settling.start()
        assert asked.wait(10)
        desk.sent()
        assert desk.book.refresh_marker("fc_alpha") is None
        with pytest.raises(NotByHand):
            settle()
        desk.now += 10_000
        assert desk.deliver().delivered == 0 and desk.sent() == []
        go_on.set()
        settling.join(10)
        assert desk.waiting() == 0
        assert marker is not None and not desk.book.apply_refresh(marker, lambda: None)
    finally:
        desk.close()


def test_a_relay_that_dies_while_one_is_in_hand_asks_the_bank_first(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    try:
        desk.end(1, charge_csu=10**12)
        desk.deliver()
        run_id = desk.run(1).run_id
        with desk.ledger.transaction(write=False) as tx:
            delivery = tx.delivery_of(run_id)
        assert delivery is not None and desk.book.take(delivery)
        desk.close()
        desk.open()
        assert (tmp_path / FILE_NAME).exists()
        (standing,) = standings(desk.ledger, desk.book, 10)
        assert standing.state == "parked"
        assert desk.book.refresh_marker("fc_alpha") is None
    finally:
        desk.close()


def test_a_restated_end_of_a_settled_run_is_delivered_like_any_other(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    try:
        desk.end(1, charge_csu=10**12)
        desk.deliver()
        resolve(
            desk.ledger, desk.book, desk.run(1).run_id, bank=lambda: desk.bank,
            bank_has_csu=None, reason="waived", actor="ops",
        )  # fmt: skip
        assert desk.waiting() == 0
        desk.end(1, charge_csu=55)
        assert desk.deliver().ends == 1
        assert desk.project.used_csu == 55 == desk.run(1).bank_csu
    finally:
        desk.close()


def test_the_relay_itself_asks_its_bank_what_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ledger, book, socket, command and bundled bank, as they are."""
    with RunningBank() as running:
        account = running.account("1000")
        tmp_path.chmod(0o755)
        (tmp_path / "token").write_text(f"Token {running.keys['relay']}\n")
        (tmp_path / "token").chmod(0o600)
        path = tmp_path / "bank-config.toml"
        path.write_text(
            f'[API]\nurl = "{running.url.rstrip("/")}"\ntoken_file = "{tmp_path}/token"\n'
            f'[Ledger]\nstate_dir = "{tmp_path}/state"\n'
            f'[Relay]\nsocket = "{tmp_path}/run/relay.sock"\n[PartitionPrice]\nmain = 1.0\n'
        )
        (tmp_path / "state").mkdir(mode=0o700)
        (tmp_path / "run").mkdir(mode=0o755)
        service = Service(configuration.Reloader(str(path), in_slurmctld=False), "demo")
        service._listener.start()
        try:
            ended = run(60, start=NOW - 7200, user_id=int(account.uid), account=account.name)
            with service.ledger.transaction() as tx:
                tx.set_meta("complete", "1")
                tx.start_run(ended, share_csu=800, inputs={}, actor="t")
            service._deliver()
            assert running.usage(account) == 8
            with service.ledger.transaction() as tx:
                tx.end_run(ended, charge_csu=10**12, share_csu=800, inputs={}, actor="t")
            service._deliver()
            words = ["--socket", f"{tmp_path}/run/relay.sock"]
            assert main([*words, "outbox"]) == 1
            assert "takes at most" in capsys.readouterr().out
            assert main([*words, "outbox", "resolve", "60", "--reason", "a bug, waived"]) == 0
            text = capsys.readouterr().out
            assert "the bank holds 8.00 SU for it (before: 8.00)" in text and "charged" in text
            with service.ledger.transaction(write=False) as tx:
                assert tx.outbox_size()[0] == 0 and tx.parked_runs() == [] and tx.check() == []
                assert tx.runs_by_job(60)[0].charge_csu == 10**12
        finally:
            service._listener.stop()
            service.book.close()
            service.ledger.close()


# -- the command --------------------------------------------------------------------------------------------------------


def test_the_command_lists_explains_and_settles(relay: Relay, shell: Shell) -> None:
    assert shell("outbox") == "Nothing waits for the bank.\n"
    refused(relay, 60)
    text = shell("outbox", status=1)
    assert "1 to be delivered" in text and "400 partition: too long" in text
    assert "to do: mend the cause at the bank" in text
    assert shell.json("outbox", status=1)["rows"][0]["state"] == "parked"
    assert shell.json("outbox", "--job", "60", status=1)["rows"][0]["job"] == "60"
    assert "--bank-has SU" in shell("outbox", "resolve", "60", "--reason", "r", status=3)
    assert "expected SU" in shell(
        "outbox", "resolve", "60", "--reason", "r", "--bank-has", "much", status=2
    )
    text = shell("outbox", "resolve", "60", "--reason", "by hand", "--bank-has", "4.00")
    assert text == "job 60 (astro): settled by hand; the bank holds 4.00 SU for it (before: 0.00)\n"
    assert "end settled by hand: by hand; the bank had said: 400" in shell("why", "60")
    assert "too long (root)" in shell("why", "60"), "by whom"
    assert shell("outbox") == "Nothing waits for the bank.\n"


def test_the_verb_retry_is_the_command_retry(relay: Relay, shell: Shell) -> None:
    refused(relay, 60)
    assert "expected a JOB, or --all" in shell("outbox", "retry", status=2)

    def take(runs: Any) -> None:
        with relay.ledger.transaction() as tx:
            for tried in runs:
                delivery = tx.delivery_of(tried.run_id)
                assert delivery is not None
                tx.acknowledge(delivery, bank_csu=400, bank_job_id="60")

    relay.on_retry = take
    assert shell("outbox", "retry", "60") == "job 60 (astro): delivered\n"
    assert shell.json("outbox", "retry", "--all")["runs"] == []


def test_a_settling_needs_a_reason(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--reason" in shell("outbox", "resolve", "60", status=2)


def test_what_others_wrote_does_not_move_the_readers_cursor() -> None:
    row = dict(
        job="60", account="astro", phase="end", state="parked", since=NOW, tries=1, next_try=None, ledger_csu=1,
        bank_csu=0, bank_says="bad\x1b[2Jwords\nand more", meaning="m", advice="a",
    )  # fmt: skip
    answer = dict(as_of=NOW, waiting=1, oldest=NOW - 5, rows=[row], left_out=0)
    for line in shown_outbox.listed(answer):
        assert line.isprintable(), repr(line)
