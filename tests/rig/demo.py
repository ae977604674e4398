# SPDX-License-Identifier: BSD-3-Clause
"""A walk through a banked cluster, aloud; or such a cluster to play with.

::

    python3 -m tests.rig.demo             walks through it and takes it away; the exit status says whether all was as told
    python3 -m tests.rig.demo cluster     starts one, leaves it running, says how to use it and how to stop it

Each step of the walk types what a user would type, shows what came back, says in one line what that was, and checks that
it was. At the end stand all runs as ledger, bank and sacct have them.

Exit status: 0 all of it held; 1 something did not, or the cluster did not come up; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from tests.rig.banked import CHECKOUT, BankedCluster, Line
from tests.rig.cluster import RigError, wait_until

WIDTH = 100

#: SU per CPU-hour: a CPU-minute of main is one service unit.
PRICES: Mapping[str, str] = {"main": "60", "debug": "30", "exclusive": "120"}
FUNDS: Mapping[str, str] = {"fc_alpha": "100", "fc_beta": "50", "fc_gamma": "5"}
PRICE_SU = Decimal(PRICES["main"])

USER, ACCOUNT = "sb-alice", "fc_alpha"

#: Seconds of the job that the steps look at while it runs.
LOOKED_AT_S = 15


class StepFailed(Exception):
    """A step did not show what it claims to show; the message says what was missing."""


def must(condition: object, claim: str) -> None:
    if not condition:
        raise StepFailed(f"not so: {claim}")


def su(csu: int) -> str:
    return f"{Decimal(csu).scaleb(-2):.2f}"


class Voice:
    """What the demo says: lines of at most `WIDTH` columns, coloured only on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colours = stream.isatty() and "NO_COLOR" not in os.environ
        self._begun = time.monotonic()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._begun

    def line(self, text: str = "", *, indent: str = "", colour: str = "") -> None:
        """A line, wrapped where it is too long; what continues it stands further in."""
        hanging = indent + " " * (len(text) - len(text.lstrip())) + "    "
        for part in textwrap.wrap(
            text,
            WIDTH,
            initial_indent=indent,
            subsequent_indent=hanging,
            break_on_hyphens=False,
        ) or [""]:
            if colour and self._colours:
                part = f"\033[{colour}m{part}\033[0m"
            print(part, file=self._stream)
        self._stream.flush()

    def heading(self, text: str) -> None:
        self.line()
        self.line(f"== {text} ".ljust(WIDTH, "="), colour="1")

    def typed(self, user: str, argv: Sequence[str]) -> None:
        prompt = "#" if user == "root" else f"{user}$"
        self.line(f"{prompt} {shlex.join(argv)}", colour="36")

    def output(self, text: str) -> None:
        for line in text.rstrip("\n").split("\n") if text else []:
            self.line(line.rstrip(), indent="  ")

    def seen(self, text: str) -> None:
        self.line(f"--> {text}", colour="32")

    def progress(self, text: str) -> None:
        self.line(f"[{self.elapsed_s():5.1f} s] {text}", colour="2")

    def wrong(self, text: str) -> None:
        for line in text.splitlines():
            self.line(line, colour="31")


class Demo:
    """The steps, in order; each raises StepFailed if it does not show what it says."""

    def __init__(self, site: BankedCluster, voice: Voice) -> None:
        self.site = site
        self.voice = voice
        self.first_job = 0
        self.runs = 0  #: how many the books must have at the end

    @property
    def steps(self) -> Sequence[tuple[str, Callable[[], None]]]:
        return (
            ("A quote: what would it cost?", self.quote),
            ("A job that fits is accepted, and its cost is set aside", self.accepted),
            ("A job that does not fit is refused, with numbers", self.refused),
            ("The job runs, ends, and is charged", self.charged),
            ("An array: one lien, as many charges as tasks", self.array),
            ("A job cancelled while pending leaves nothing", self.cancelled),
            ("The bank is stopped; jobs go on; the bank is back", self.bank_away),
            ("Balance and statement: it adds up", self.statement),
        )

    # -- what the steps are made of -------------------------------------------------------------------------------

    def type(self, *argv: str, user: str = USER, status: int | None = 0) -> str:
        """Type a command as `user`, show it with its output, and give that back.

        `status`: the exit status that it must have; None: not 0.
        """
        self.voice.typed(user, argv)
        result = self.site.run_as(user, argv)
        output = result.stderr + result.stdout
        self.voice.output(output)
        if status is None:
            must(result.returncode != 0, f"{argv[0]} ends with a status other than 0")
        else:
            must(
                result.returncode == status,
                f"{argv[0]} ends with status {status} (it is {result.returncode})",
            )
        return output

    def submit(self, *argv: str) -> tuple[int, str]:
        """Type an sbatch command that must be accepted: the job id, and what was said."""
        output = self.type("sbatch", *argv)
        match = re.search(r"Submitted batch job ([0-9]+)", output)
        must(match, "sbatch submitted a job")
        assert match is not None
        return int(match[1]), output

    def ask(self, *words: str) -> dict[str, Any]:
        """What ``slurm-banking … --json`` says to the user, unheard."""
        answer: dict[str, Any] = self.site.banking_json(*words, user=USER)
        return answer

    def balance(self) -> dict[str, Any]:
        row: dict[str, Any] = self.ask("balance", ACCOUNT)["accounts"][0]
        return row

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
        """Until the condition is true; says so, as it may take some seconds."""
        self.voice.progress(f"waiting for {what}")
        try:
            return wait_until(condition, timeout_s, what, 0.2)
        except RigError as error:
            raise StepFailed(str(error)) from None

    def runs_of(self, job: int, kind: str = "ended") -> list[dict[str, Any]]:
        """The runs of a job, or of an array's tasks, that `slurm-banking jobs` shows as `kind`."""
        return [
            row for row in self.ask("jobs")[kind] if job in (row["job_id"], row.get("array_job_id"))
        ]

    def set_aside_csu(self) -> int:
        """Hundredths of SU in liens, of queued and of running jobs, at one moment."""
        (row,) = self.site.ledger_rows(
            "SELECT (SELECT COALESCE(SUM(amount_csu), 0) FROM liens WHERE state != 'ended')"
            " + (SELECT COALESCE(SUM(lien_csu), 0) FROM runs WHERE state = 'running') AS csu"
        )
        return int(row["csu"])

    def delivered(self) -> bool:
        """Nothing waits for the bank."""
        return not self.site.ledger_rows("SELECT * FROM outbox LIMIT 1")

    # -- the steps ------------------------------------------------------------------------------------------------

    def quote(self) -> None:
        options = ("--time=10", "--ntasks=2")
        self.type("slurm-banking", "quote", *options)
        answer = self.ask("quote", *options)
        must(answer["verdict"] == "accepted", "the quote says that it fits")
        must(answer["estimate"]["cost_csu"] == 2000, "2 CPUs x 10 min x 60 SU an hour are 20.00 SU")
        must(self.balance()["queued_csu"] == 0, "a quote sets nothing aside")
        self.voice.seen(
            "A minute of one CPU costs 1 SU here. Asking is free and sets nothing aside."
        )

    def accepted(self) -> None:
        job, said = self.submit(
            "--job-name=first",
            "--time=10",
            "--ntasks=2",
            "--wrap",
            f"sleep {LOOKED_AT_S}",
        )
        self.first_job = job
        self.runs += 1
        must("20.00 SU" in said, "sbatch tells the estimate, 20.00 SU")
        must("80.00 SU left" in said, "sbatch tells what is left beside it, 80.00 SU")
        must(self.set_aside_csu() == 2000, "20.00 SU are set aside")
        self.voice.seen("Accepted at the estimate; that much is set aside until the job has ended.")

    def refused(self) -> None:
        options = ("--time=2:00:00", "--ntasks=4")
        said = self.type("sbatch", *options, "--wrap", "sleep 5", status=None)
        flat = " ".join(said.split())
        must("80.00 SU available" in flat, "the refusal says what is available, 80.00 SU")
        must("480.00 SU" in flat, "the refusal says what was asked, 480.00 SU")
        hint = re.search(r"--time=([0-9:-]+)", flat)
        must(hint, "the refusal says which time limit would fit")
        assert hint is not None
        must("slurm-banking balance" in flat, "the refusal says where to look")
        self.type("slurm-banking", "quote", f"--time={hint[1]}", "--ntasks=4")
        must(len(self.site.squeue()) == 1, "only the first job is in the queue")
        self.voice.seen("Refused: what it asked, what there is, and what would fit (it does).")

    def charged(self) -> None:
        job = self.first_job
        self.wait(
            lambda: self.runs_of(job, "running") and str(job) in self.site.bank_jobs(),
            f"job {job} to be seen running, and the bank to know of it",
            30,
        )
        self.type("slurm-banking", "jobs")
        running = self.runs_of(job, "running")
        must(running and running[0]["lien_csu"] == 2000, "20.00 SU are set aside while it runs")
        self.wait(
            lambda: self.runs_of(job) and self.delivered(),
            f"job {job} to end and the bank to hear of it",
        )
        self.type("slurm-banking", "why", str(job))
        run = self.runs_of(job)[0]
        cost = (PRICE_SU * 2 * run["elapsed_s"] / 36).quantize(Decimal(1), ROUND_HALF_UP)
        must(LOOKED_AT_S <= run["elapsed_s"] < 600, f"it ran for {LOOKED_AT_S} s or a little more")
        must(run["charge_csu"] == cost, "the charge is 2 CPUs x its seconds x the price")
        row = self.balance()
        must(row["running_csu"] == row["queued_csu"] == 0, "nothing is set aside any more")
        must(row["available_csu"] == 10000 - run["charge_csu"], "only the charge is gone")
        self.voice.seen(
            f"Charged for {run['elapsed_s']} s, {su(run['charge_csu'])} SU of the 20.00; the rest is free again."
        )

    def array(self) -> None:
        tasks = 4
        job, said = self.submit(
            "--job-name=four", f"--array=1-{tasks}%2", "--time=2", "--wrap", "sleep 4"
        )
        self.runs += tasks
        must("8.00 SU" in said, "sbatch tells the estimate, 4 x 2.00 SU")

        def half_way() -> bool:
            answer = self.ask("jobs")
            left = [row["tasks_left"] for row in answer["queued"] if row["job_id"] == job]
            running = [row for row in answer["running"] if row["array_job_id"] == job]
            return left == [2] and len(running) == 2

        self.wait(half_way, "two of its tasks to be seen running", 30)
        self.type("slurm-banking", "jobs")
        self.wait(
            lambda: len(self.runs_of(job)) == tasks and self.delivered(),
            "all four to end and the bank to hear of it",
        )
        self.type("slurm-banking", "jobs")
        names = sorted(row["job"] for row in self.runs_of(job))
        must(
            names == [f"{job}_{task}" for task in range(1, tasks + 1)],
            "each task is a run of its own",
        )
        must(all(row["charge_csu"] > 0 for row in self.runs_of(job)), "each task is charged")
        must(not self.site.open_liens(ACCOUNT), "nothing is left of the array's lien")
        self.voice.seen(
            "Each task took its share out of the lien when it started, and has its charge."
        )

    def cancelled(self) -> None:
        before = self.balance()["available_csu"]
        job, _ = self.submit(
            "--job-name=later",
            "--begin=now+1hour",
            "--time=10",
            "--ntasks=4",
            "--wrap",
            "sleep 5",
        )
        self.type("slurm-banking", "balance")
        row = self.balance()
        must(row["queued_csu"] == 4000, "40.00 SU are set aside for it")
        must(row["available_csu"] == before - 4000, "40.00 SU less are available")
        self.type("scancel", str(job))
        self.wait(lambda: not self.site.open_liens(ACCOUNT), "its lien to be voided", 30)
        self.type("slurm-banking", "why", str(job))
        must(self.balance()["available_csu"] == before, "all that was set aside is available again")
        must(not self.runs_of(job), "there is no charge")
        must(str(job) not in self.site.bank_jobs(), "the bank never heard of it")
        self.voice.seen(
            f"Available is {su(before)} SU again, to the hundredth; no charge anywhere."
        )

    def bank_away(self) -> None:
        self.site.stop_bank()
        self.voice.progress("the bank is stopped")
        jobs = []
        for number in (1, 2):
            job, _ = self.submit(f"--job-name=away{number}", "--time=1", "--wrap", "sleep 2")
            jobs.append(job)
        self.type("srun", "--job-name=away3", "--time=1", "echo", "srun runs too")
        self.runs += 3

        def ended() -> bool:
            return len(self.ask("jobs", "--ended-h=1")["ended"]) == self.runs

        self.wait(ended, "the three to end")

        def noticed() -> bool:
            status = self.site.status()
            return status is not None and status["bank_away_since"] is not None

        self.wait(noticed, "the relay to have tried the bank", 30)
        self.type("slurm-banking", "status", user="root", status=1)
        status = self.site.status()
        must(status is not None and status["outbox"] >= 3, "three jobs wait for the bank")
        must(status is not None and status["parked"] == 0, "none of them is given up")
        self.type("slurm-banking", "why", str(jobs[0]))
        self.voice.seen("Nobody had to wait for the bank; what it has to hear is on disk.")
        self.site.start_bank()
        self.voice.progress("the bank is started again")

        def caught_up() -> bool:
            status = self.site.status()
            return (
                status is not None
                and status["outbox"] == 0
                and status["bank_away_since"] is None
                and self.delivered()
            )

        self.wait(caught_up, "everything to be delivered")
        self.type("slurm-banking", "status", user="root")
        bank = self.site.bank_jobs()
        must(all(str(job) in bank for job in jobs), "the bank has the jobs")
        must(len(bank) == self.runs, f"the bank has {self.runs} runs, each once")
        self.voice.seen("Everything was delivered, each run once.")

    def statement(self) -> None:
        self.wait(self.delivered, "everything to be delivered")
        self.type("slurm-banking", "balance")
        self.type("slurm-banking", "statement", "--since=1d")
        answer = self.ask("statement", "--since=1d")
        charges = [row["amount_csu"] for row in answer["rows"]]
        must(len(charges) == self.runs, f"the statement has {self.runs} charges")
        must(sum(charges) == answer["charged_csu"], "the charges are their sum")
        must(answer["opening_csu"] == 10000, "the opening balance is the allocation, 100.00 SU")
        must(
            answer["closing_csu"] == 10000 - sum(charges),
            "opening balance - charges = closing balance",
        )
        row = self.balance()
        must(row["available_csu"] == answer["closing_csu"], "the closing balance is available")
        used = self.site.bank_usage(ACCOUNT)
        must(
            used == Decimal(sum(charges)).scaleb(-2),
            f"the bank counts the same sum as used (it counts {used} SU)",
        )
        self.voice.seen(
            f"100.00 - {su(sum(charges))} = {su(answer['closing_csu'])} SU: of the ledger, and of the bank."
        )

    # -- all of it ------------------------------------------------------------------------------------------------

    def walk(self) -> bool:
        """The steps, up to the first that fails; whether none did."""
        for number, (title, step) in enumerate(self.steps, 1):
            self.voice.heading(f"{number}. {title}")
            try:
                step()
            except (StepFailed, RigError) as error:
                self.voice.wrong(f"FAILED: {error}")
                return False
        return True

    def compare(self, walked: bool) -> bool:
        """The table of all runs, and a last line that says whether the three agree."""
        self.voice.heading("The books")
        self.voice.progress("waiting for ledger, bank and sacct to have heard of everything")
        if self.site.pid("bank") is None:  # the step that stopped it failed
            self.site.start_bank()
        try:
            self.site.settle(40 if walked else 10)
        except RigError as error:
            self.voice.wrong(str(error))
        lines = self.site.books()
        for text in table(lines):
            self.voice.line(text)
        self.voice.line()
        if not walked:
            self.voice.wrong("Not all was as told: a step failed, see above.")
        wrong = [line.run for line in lines if not line.agrees]
        total = sum((line.ledger_su for line in lines if line.ledger_su is not None), Decimal(0))
        used = self.site.bank_usage(ACCOUNT)
        if wrong:
            verdict = f"{len(wrong)} of {len(lines)} runs differ: {', '.join(wrong)}"
        elif used != total:
            verdict = (
                f"the runs do, but {ACCOUNT} has used {used} SU at the bank, {total} in the ledger"
            )
        elif walked and len(lines) != self.runs:
            verdict = f"{len(lines)} runs, expected {self.runs}"
        else:
            self.voice.line(
                f"ledger, bank and sacct agree: {len(lines)} runs, {total} SU", colour="1;32"
            )
            return True
        self.voice.wrong(f"ledger, bank and sacct do not agree: {verdict}")
        return False


def table(lines: Sequence[Line]) -> list[str]:
    """run | ledger SU | bank SU | sacct SU | agrees, and the sums."""

    def cell(amount: Decimal | None) -> str:
        return "none" if amount is None else f"{amount:.2f}"

    rows = [["run", "ledger SU", "bank SU", "sacct SU", "agrees"]]
    in_order = sorted(lines, key=lambda line: [int(n) for n in re.findall("[0-9]+", line.run)])
    rows += [
        [line.run, cell(line.ledger_su), cell(line.bank_su), cell(line.sacct_su)]
        + ["yes" if line.agrees else "NO"]
        for line in in_order
    ]
    sums = [
        sum((amount for amount in column if amount is not None), Decimal(0))
        for column in (
            [line.ledger_su for line in lines],
            [line.bank_su for line in lines],
            [line.sacct_su for line in lines],
        )
    ]
    rows.append(["all", *map(cell, sums), "yes" if len(set(sums)) == 1 else "NO"])
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    texts = [
        " | ".join(
            text.ljust(width) if column in (0, 4) else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-+-".join("-" * width for width in widths)
    return [texts[0], rule, *texts[1:-1], rule, texts[-1]]


def usage_text(site: BankedCluster) -> str:
    """How to use a cluster that stays up, and how to stop it."""
    python = Path(sys.executable)
    if python.is_relative_to(CHECKOUT):
        python = python.relative_to(CHECKOUT)
    members = [
        f"  {account:<10}{site.bank_funds[account]:>5} SU  {', '.join(users)}"
        for account, users in site.accounts.items()
        if account in site.bank_funds
    ]
    prices = [f"  {name:<10}{price:>5} SU per CPU-hour" for name, price in site.prices.items()]
    return "\n".join(
        [
            f"A banked cluster of {len(site.nodes)} nodes is up in {site.root}",
            "",
            "Use it, in a shell of root:",
            f"  source {site.root}/env.sh",
            f"  cd {site.home(USER)}",
            f"  runuser -u {USER} -- slurm-banking quote --time=10 --ntasks=2",
            f"  runuser -u {USER} -- sbatch --time=10 --ntasks=2 --wrap 'sleep 60'",
            f"  runuser -u {USER} -- slurm-banking jobs",
            "  slurm-banking status",
            "",
            "Accounts and partitions:",
            *members,
            *prices,
            "",
            f"Configuration and logs: {site.etc_dir} {site.log_dir}",
            "",
            f"The bank is at http://127.0.0.1:{site.bank_port}/api/; its command line:",
            f"  cd {CHECKOUT}",
            f"  {python} -m slurm_banking.server.cli account list \\",
            f"    --data {site.root}/bank",
            "",
            "Stop it, with every other one that was left running:",
            f"  make -C {CHECKOUT} cluster-stop",
            "This one alone:",
            f"  cd {CHECKOUT}",
            f"  {python} -m tests.rig.cluster down {site.root}",
        ]
    )


def make_site(voice: Voice) -> BankedCluster:
    return BankedCluster(prices=PRICES, funds=FUNDS, node_token=True, tell=voice.progress)


def explain(site: BankedCluster, voice: Voice, logs: Path | None) -> None:
    """After a failure: what the daemons said last."""
    try:
        relay_log = site.state_dir / "relay.log"
        if logs is not None:
            site.collect_logs(logs)
            if relay_log.exists():
                shutil.copyfile(relay_log, logs / relay_log.name)
            voice.line(f"logs and configuration are in {logs}")
            return
        for path in (site.log_dir / "slurmctld.log", relay_log, site.log_dir / "bank.out"):
            if path.exists():
                voice.line(f"the end of {path.name}:")
                voice.output("\n".join(path.read_text(errors="replace").splitlines()[-12:]))
        voice.line("--logs DIR keeps all of them")
    except RigError:
        pass  # it is gone already: the error itself has the log's end


def walk(voice: Voice, logs: Path | None) -> int:
    site = make_site(voice)
    try:
        site.prepare()
        voice.progress(f"all of this is in {site.root}, and gone when the demo ends")
        try:
            site.start()
        except RigError:
            explain(site, voice, logs)
            raise
        voice.progress("the cluster is up")
        demo = Demo(site, voice)
        walked = demo.walk()
        if not walked:
            explain(site, voice, logs)
        agree = demo.compare(walked)
        return 0 if walked and agree else 1
    finally:
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # the second Ctrl-C comes when all is on its way
        site.stop()


def keep_running(voice: Voice) -> int:
    site = make_site(voice)
    try:
        site.start()
        text = usage_text(site)
        site.detach()
    finally:
        site.stop()  # does nothing once it is detached
    print(f"\n{text}", flush=True)
    return 0


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.rig.demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", nargs="?", choices=("walk", "cluster"), default="walk")
    parser.add_argument(
        "--logs", type=Path, metavar="DIR", help="after a failure, copy the logs here"
    )
    options = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    voice = Voice(sys.stdout)
    try:
        return keep_running(voice) if options.what == "cluster" else walk(voice, options.logs)
    except RigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; everything is taken away", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read this has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
