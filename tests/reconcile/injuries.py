# SPDX-License-Identifier: BSD-3-Clause
"""Seeded injuries to ledger and bank, each of a run of its own, and what the comparison must say of it.

They are what a restored backup, a hand in a database, a bug of another tool or a lost message leave behind. Relay and
slurmctld are down meanwhile. Each kind of injury comes in turn, so that any number of them has about as many of each.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from slurm_banking import settle
from tests.reconcile.site import ReconcileSite, change_bank

LEDGER, BANK = "ledger", "bank"

#: (kind, where, job id, the bank's id: of what is found at the bank; of a drift, the account)
Expected = tuple[str, str, int, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Injury:
    name: str
    job_id: int
    expects: frozenset[Expected]
    #: What may be found of it besides. An account whose counter does not fit its rows drifts, unless what is found of the
    #: rows explains it; where several are found, it may not.
    allows: frozenset[Expected] = frozenset()


@dataclasses.dataclass
class _Books:
    """What the injuries are made in; statements are gathered, and done at once."""

    rng: random.Random
    bank_jobs: Mapping[str, dict[str, Any]]
    members: Mapping[str, Sequence[int]]  #: of the bank's accounts: cluster UIDs
    users: Mapping[int, int]  #: the bank's own ids by cluster UID
    accounts: Mapping[str, int]
    names: Mapping[int, str]
    allocations: Mapping[str, int]  #: by account
    next_job: int
    ledger: list[tuple[str, Sequence[Any]]] = dataclasses.field(default_factory=list)
    bank: list[tuple[str, Sequence[Any]]] = dataclasses.field(default_factory=list)

    def row(self, run: Mapping[str, Any]) -> dict[str, Any]:
        return self.bank_jobs[run["bank_job_id"]]

    # -- the bank, as it would count itself ------------------------------------------------------------------------------

    def count(self, account: str, user: int, csu: int) -> None:
        """The counters of an allocation and of a user in it go up. `user`: the bank's own id."""
        allocation = self.allocations[account]
        self.bank += [
            ("UPDATE bank_allocation SET used_csu = used_csu + ? WHERE id = ?", (csu, allocation)),
            (
                "INSERT INTO bank_allocationuser (allocation_id, user_id, used_csu) SELECT ?1, ?2, 0 WHERE NOT EXISTS"
                " (SELECT 1 FROM bank_allocationuser WHERE allocation_id = ?1 AND user_id = ?2)",
                (allocation, user),
            ),
            (
                "UPDATE bank_allocationuser SET used_csu = used_csu + ? WHERE allocation_id = ? AND user_id = ?",
                (csu, allocation, user),
            ),
        ]

    def enter(self, bank_job_id: str, account: str, user: int, csu: int) -> None:
        """An entry of a job, with its counters."""
        self.bank.append(
            (
                "INSERT INTO bank_entry (allocation_id, kind, amount_csu, reason, actor, time, user_id, job_id) SELECT ?, ?, ?,"
                " 'by hand', 'somebody', '2026-01-01 00:00:00', ?, id FROM bank_job WHERE jobslurmid = ?",
                (
                    self.allocations[account],
                    "charge" if csu > 0 else "adjustment",
                    -csu,
                    user,
                    bank_job_id,
                ),
            )
        )
        self.bank.append(
            (
                "UPDATE bank_job SET counted_csu = counted_csu + ? WHERE jobslurmid = ?",
                (csu, bank_job_id),
            )
        )
        self.count(account, user, csu)

    def drop(self, row: Mapping[str, Any]) -> None:
        """A job and all that it counted."""
        self.bank += [
            ("DELETE FROM bank_entry WHERE job_id = ?", (row["id"],)),
            ("DELETE FROM bank_job WHERE id = ?", (row["id"],)),
        ]
        self.count(row["account"], row["user_id"], -row["counted_csu"])

    def copy(self, row: Mapping[str, Any], bank_job_id: str, **other: Any) -> None:
        """Another job like this one, that counts."""
        values = (
            {key: row[key] for key in _JOB_COLUMNS}
            | {"jobslurmid": bank_job_id, "counted_csu": 0}
            | other
        )
        account = next(name for name, key in self.accounts.items() if key == values["account_id"])
        values["allocation_id"] = self.allocations[account]
        marks = ", ".join("?" * len(values))
        self.bank.append(
            (f"INSERT INTO bank_job ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))
        )
        self.enter(bank_job_id, account, values["user_id"], values["amount_csu"])

    def another_holder(self, account: str, uid: int) -> tuple[str, int]:
        """Of the same cluster, and not the same."""
        choices = [
            (other, member)
            for other, members in sorted(self.members.items())
            for member in members
            if (other, member) != (account, uid)
        ]
        return self.rng.choice(choices)


_JOB_COLUMNS = (
    *(
        "jobslurmid",
        "user_id",
        "account_id",
        "submitdate",
        "startdate",
        "enddate",
        "amount_csu",
        "jobstatus",
    ),
    *(
        "partition",
        "qos",
        "nodes",
        "num_cpus",
        "num_req_nodes",
        "num_alloc_nodes",
        "raw_time",
        "cpu_time",
    ),
    *("allocation_id", "counted_csu"),
)

#: Kinds of the entries that come to a run's charge; those of its lien come to nothing, by themselves.
_OF_A_RUN = "('start', 'charge', 'restated', 'delivered')"

Run = Mapping[str, Any]


def _at_ledger(kind: str, run: Run) -> Expected:
    return kind, LEDGER, run["job_id"], ""


def _at_bank(kind: str, run: Run, bank_job_id: str = "") -> Expected:
    return kind, BANK, run["job_id"], bank_job_id or run["bank_job_id"]


# -- at the ledger --------------------------------------------------------------------------------------------------------


def run_deleted(books: _Books, run: Run) -> set[Expected]:
    """Its entries stay."""
    books.ledger.append(("DELETE FROM runs WHERE run_id = ?", (run["run_id"],)))
    return {_at_ledger("missing", run)}


def run_deleted_with_entries(books: _Books, run: Run) -> set[Expected]:
    run_deleted(books, run)
    books.ledger.append(
        (f"DELETE FROM entries WHERE job_id = ? AND kind IN {_OF_A_RUN}", (run["job_id"],))
    )
    return {_at_ledger("missing", run)}


def run_deleted_everywhere(books: _Books, run: Run) -> set[Expected]:
    """As after a backup of both from before it."""
    books.drop(books.row(run))
    return run_deleted_with_entries(books, run)


def _insert_run(books: _Books, run: Run, **other: Any) -> None:
    values = {key: value for key, value in run.items() if key != "run_id"} | other
    marks = ", ".join("?" * len(values))
    books.ledger.append(
        (f"INSERT INTO runs ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))
    )


def run_doubled(books: _Books, run: Run) -> set[Expected]:
    """The bank was never told."""
    _insert_run(
        books,
        run,
        restart_count=run["restart_count"] + 1,
        bank_job_id=None,
        bank_csu=0,
        end_acked=1,
    )
    return {_at_ledger("doubled", run)}


def run_doubled_everywhere(books: _Books, run: Run) -> set[Expected]:
    """And delivered: the bank has both, as the ledger has."""
    name = f"{run['bank_job_id']}-r{run['restart_count'] + 1}"
    _insert_run(books, run, restart_count=run["restart_count"] + 1, bank_job_id=name)
    _copy_entries(books, run, restart_count=run["restart_count"] + 1)
    books.copy(books.row(run), name)
    return {_at_ledger("doubled", run)}


def _copy_entries(books: _Books, run: Run, **other: Any) -> None:
    """Of a run's charge, under another restart count or job id."""
    columns: tuple[str, ...] = (
        "at_us",
        "kind",
        "job_id",
        "submit_time",
        "restart_count",
        "account",
    )
    columns += ("user_id", "amount_csu", "actor", "reason", "inputs")
    values = ", ".join("?" if column in other else column for column in columns)
    books.ledger.append(
        (
            f"INSERT INTO entries ({', '.join(columns)}) SELECT {values} FROM entries WHERE job_id = ? AND submit_time = ?"
            " AND kind IN ('start', 'charge', 'restated')",
            (
                *(other[column] for column in columns if column in other),
                run["job_id"],
                run["submit_time"],
            ),
        )
    )


def charge_altered(books: _Books, run: Run) -> set[Expected]:
    charge = run["charge_csu"] + books.rng.choice((1, 7, 1234))
    books.ledger.append(
        (
            "UPDATE runs SET charge_csu = ?1, ledger_csu = ?1 WHERE run_id = ?2",
            (charge, run["run_id"]),
        )
    )
    return {_at_ledger("mischarged", run)}  # the bank is right, and so not told of


def charge_altered_everywhere(books: _Books, run: Run) -> set[Expected]:
    more = books.rng.choice((1, 9, 2345))
    charge = run["charge_csu"] + more
    books.ledger.append(
        (
            "UPDATE runs SET charge_csu = ?1, ledger_csu = ?1, bank_csu = ?1 WHERE run_id = ?2",
            (charge, run["run_id"]),
        )
    )
    row = books.row(run)
    books.bank.append(("UPDATE bank_job SET amount_csu = ? WHERE id = ?", (charge, row["id"])))
    books.enter(row["jobslurmid"], row["account"], row["user_id"], more)
    return {_at_ledger("mischarged", run)}


def _recharged(books: _Books, run: Run, **inputs: Any) -> None:
    """As if it had been charged from other figures then, and the bank told so."""
    then = json.loads(run["inputs"]) | inputs
    charge = settle.recomputed_csu(then)
    assert charge != run["charge_csu"]
    text = json.dumps(then)
    books.ledger.append(
        (
            "UPDATE runs SET charge_csu = ?1, ledger_csu = ?1, bank_csu = ?1, inputs = ?2 WHERE run_id = ?3",
            (charge, text, run["run_id"]),
        )
    )
    books.ledger.append(
        (
            "UPDATE entries SET inputs = ?1, amount_csu = amount_csu + ?2 WHERE seq ="
            " (SELECT MAX(seq) FROM entries WHERE job_id = ?3 AND submit_time = ?4 AND kind IN ('charge', 'restated'))",
            (text, charge - run["charge_csu"], run["job_id"], run["submit_time"]),
        )
    )
    row = books.row(run)
    books.bank.append(("UPDATE bank_job SET amount_csu = ? WHERE id = ?", (charge, row["id"])))
    books.enter(row["jobslurmid"], row["account"], row["user_id"], charge - run["charge_csu"])


def figures_were_others(books: _Books, run: Run) -> set[Expected]:
    """slurmdbd says another time than the one that was charged."""
    elapsed = json.loads(run["inputs"])["elapsed_s"]
    _recharged(books, run, elapsed_s=elapsed + books.rng.randrange(1, 5000))
    return {_at_ledger("restated", run)}


def prices_were_others(books: _Books, run: Run) -> set[Expected]:
    _recharged(books, run, qos_multiplier="2.5", price_version="another")
    return {_at_ledger("other_prices", run)}


def run_stuck(books: _Books, run: Run) -> set[Expected]:
    """Its end was lost here; the bank has it."""
    books.ledger.append(
        (
            "UPDATE runs SET state = 'running', slurm_state = 'RUNNING', charge_csu = NULL, end_time = NULL, elapsed_s = 0,"
            " lien_csu = ?1, ledger_csu = ?1, end_acked = 0 WHERE run_id = ?2",
            (run["charge_csu"] + 600, run["run_id"]),
        )
    )
    return {_at_ledger("still_running", run)}


def run_stuck_everywhere(books: _Books, run: Run) -> set[Expected]:
    run_stuck(books, run)
    row_stuck(books, run)
    return {_at_ledger("still_running", run)}


def run_moved(books: _Books, run: Run) -> set[Expected]:
    account, uid = books.another_holder(run["account"], run["user_id"])
    books.ledger.append(
        (
            "UPDATE runs SET account = ?, user_id = ?, user_name = ? WHERE run_id = ?",
            (account, uid, books.names[uid], run["run_id"]),
        )
    )
    return {_at_ledger("wrong_holder", run), _at_bank("wrong_holder", run)}


def run_moved_everywhere(books: _Books, run: Run) -> set[Expected]:
    """With its entries, and its row."""
    account, uid = books.another_holder(run["account"], run["user_id"])
    books.ledger += [
        (
            "UPDATE runs SET account = ?, user_id = ?, user_name = ? WHERE run_id = ?",
            (account, uid, books.names[uid], run["run_id"]),
        ),
        (
            "UPDATE entries SET account = ?, user_id = ? WHERE job_id = ? "
            f" AND kind IN {_OF_A_RUN}",
            (account, uid, run["job_id"]),
        ),
    ]
    _move_row(books, run, account, uid)
    return {_at_ledger("wrong_holder", run)}


def run_invented(books: _Books, run: Run) -> set[Expected]:
    """Of a job id that slurmdbd does not have."""
    books.next_job += 1
    other = {**run, "job_id": books.next_job}
    _insert_run(
        books,
        other,
        bank_job_id=None,
        bank_csu=0,
        end_acked=1,
        array_job_id=None,
        array_task_id=None,
        lien_id=None,
    )
    _copy_entries(books, run, job_id=books.next_job)
    return {_at_ledger("unknown", other)}


# -- at the bank ----------------------------------------------------------------------------------------------------------


def row_deleted(books: _Books, run: Run) -> set[Expected]:
    books.drop(books.row(run))
    return {_at_bank("missing", run)}


def row_doubled(books: _Books, run: Run) -> set[Expected]:
    name = f"{run['bank_job_id']}-{run['submit_time']}"
    books.copy(books.row(run), name)
    return {_at_bank("doubled", run, name)}


def amount_altered(books: _Books, run: Run) -> set[Expected]:
    """And counted so."""
    row = books.row(run)
    more = books.rng.choice((3, 500, -1))
    books.bank.append(
        ("UPDATE bank_job SET amount_csu = ? WHERE id = ?", (row["amount_csu"] + more, row["id"]))
    )
    books.enter(row["jobslurmid"], row["account"], row["user_id"], more)
    return {_at_bank("mischarged", run)}


def amount_altered_past_the_counters(books: _Books, run: Run) -> set[Expected]:
    row = books.row(run)
    books.bank.append(
        ("UPDATE bank_job SET amount_csu = ? WHERE id = ?", (row["amount_csu"] + 250, row["id"]))
    )
    return {_at_bank("mischarged", run)}


def end_altered(books: _Books, run: Run) -> set[Expected]:
    books.bank.append(
        (
            "UPDATE bank_job SET enddate = datetime(enddate, '+7 seconds') WHERE jobslurmid = ?",
            (run["bank_job_id"],),
        )
    )
    return {_at_bank("mischarged", run)}


def row_stuck(books: _Books, run: Run) -> set[Expected]:
    books.bank.append(
        (
            "UPDATE bank_job SET enddate = NULL, jobstatus = 'RUNNING' WHERE jobslurmid = ?",
            (run["bank_job_id"],),
        )
    )
    return {_at_bank("still_running", run)}


def _move_row(books: _Books, run: Run, account: str, uid: int) -> None:
    row = books.row(run)
    user = books.users[uid]
    allocation = books.allocations[account]
    books.bank += [
        (
            "UPDATE bank_job SET account_id = ?, user_id = ?, allocation_id = ? WHERE id = ?",
            (books.accounts[account], user, allocation, row["id"]),
        ),
        (
            "UPDATE bank_entry SET user_id = ?, allocation_id = ? WHERE job_id = ?",
            (user, allocation, row["id"]),
        ),
    ]
    books.count(row["account"], row["user_id"], -row["counted_csu"])
    books.count(account, user, row["counted_csu"])


def row_moved(books: _Books, run: Run) -> set[Expected]:
    _move_row(books, run, *books.another_holder(run["account"], run["user_id"]))
    return {_at_bank("wrong_holder", run)}


def row_invented(books: _Books, run: Run) -> set[Expected]:
    books.next_job += 1
    books.copy(books.row(run), str(books.next_job))
    return {_at_bank("unknown", {"job_id": books.next_job}, str(books.next_job))}


KINDS: Sequence[Callable[[_Books, Run], set[Expected]]] = (
    *(
        run_deleted,
        row_deleted,
        run_doubled,
        row_doubled,
        charge_altered,
        amount_altered,
        run_stuck,
        row_stuck,
    ),
    *(
        run_moved,
        row_moved,
        run_invented,
        row_invented,
        figures_were_others,
        end_altered,
        prices_were_others,
    ),
    *(
        run_deleted_with_entries,
        run_deleted_everywhere,
        run_doubled_everywhere,
        charge_altered_everywhere,
    ),
    *(run_stuck_everywhere, run_moved_everywhere, amount_altered_past_the_counters),
)


def injure(site: ReconcileSite, count: int, seed: int) -> list[Injury]:
    """So many, each of a run of its own that was charged, alone of its job id, and that the bank has."""
    rng = random.Random(seed)
    bank_jobs = site.bank_rows()
    alone = "SELECT job_id FROM runs GROUP BY job_id HAVING COUNT(*) = 1"
    runs = [
        run
        for run in site.ledger_rows(
            f"SELECT * FROM runs WHERE state = 'ended' AND charge_csu > 0 AND job_id IN ({alone}) ORDER BY run_id"
        )
        if run["bank_job_id"] in bank_jobs and "segments" not in run["inputs"]
    ]
    if len(runs) < count:
        raise ValueError(
            f"{count} injuries: expected at most {len(runs)}, one for each run that was charged"
        )
    books = _books(site, rng, bank_jobs)
    injuries = []
    for number, run in enumerate(rng.sample(runs, count)):
        kind = KINDS[number % len(KINDS)]
        past = kind is amount_altered_past_the_counters
        injuries.append(
            Injury(
                name=kind.__name__,
                job_id=run["job_id"],
                expects=frozenset(kind(books, run)),
                allows=frozenset({("drift", BANK, 0, run["account"])} if past else ()),
            )
        )
    site.change_ledger(books.ledger)
    change_bank(site, books.bank)
    return injuries


def _books(
    site: ReconcileSite, rng: random.Random, bank_jobs: Mapping[str, dict[str, Any]]
) -> _Books:
    connection = site.bank_file()

    def pairs(query: str) -> list[tuple[Any, Any]]:
        return [(row[0], row[1]) for row in connection.execute(query)]

    members: dict[str, list[int]] = {}
    for account, uid in pairs(
        "SELECT a.name, CAST(u.cluster_uid AS INTEGER) FROM bank_membership m JOIN bank_account a ON a.id = m.account_id"
        " JOIN bank_clusteruser u ON u.id = m.user_id WHERE m.active ORDER BY 1, 2"
    ):
        members.setdefault(account, []).append(uid)
    books = _Books(
        rng=rng,
        bank_jobs=bank_jobs,
        members=members,
        users=dict(pairs("SELECT CAST(cluster_uid AS INTEGER), id FROM bank_clusteruser")),
        names=dict(pairs("SELECT CAST(cluster_uid AS INTEGER), username FROM bank_clusteruser")),
        accounts=dict(pairs("SELECT name, id FROM bank_account")),
        allocations=dict(
            pairs(
                "SELECT a.name, l.id FROM bank_allocation l JOIN bank_account a ON a.id = l.account_id"
            )
        ),
        next_job=900_000,
    )
    connection.close()
    return books


# -- the verdict ----------------------------------------------------------------------------------------------------------


def found(report: Mapping[str, Any]) -> Counter[Expected]:
    """What ``reconcile --json`` found, as injuries expect it."""
    return Counter(
        (
            one["kind"],
            one["where"],
            one["job_id"] or 0,
            one["account"]
            if one["kind"] == "drift"
            else (one["bank_job_id"] or "")
            if one["where"] == BANK
            else "",
        )
        for one in report["findings"]
    )


def judge(injuries: Iterable[Injury], report: Mapping[str, Any]) -> list[str]:
    """One line for each injury that is not named, and for each finding that is of none; empty: all, and nothing else."""
    injuries = list(injuries)
    left = found(report)
    for one in set().union(*(injury.allows for injury in injuries)):
        left[one] = max(0, left[one] - 1)
    texts = {
        (one["kind"], one["where"], one["job_id"] or 0): one["text"] for one in report["findings"]
    }
    by_job: dict[int, list[Expected]] = {}
    for one in left:
        by_job.setdefault(one[2], []).append(one)
    problems = []
    names = {}
    for injury in injuries:
        for expected in sorted(injury.expects):
            names[expected[2]] = injury.name
            if left[expected]:
                left[expected] -= 1
                continue
            instead = by_job.get(expected[2], [])
            problems.append(f"{injury.name}: expected {expected}, found {instead or 'nothing'}")
    for one, count in sorted(left.items()):
        if count:
            of = names.get(one[2], "no injury")
            problems.append(f"{of}: found {count} x {one} too: {texts.get(one[:3])}")
    return problems
