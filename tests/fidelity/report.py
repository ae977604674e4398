# SPDX-License-Identifier: BSD-3-Clause
"""One fidelity run from its plan to build/fidelity.json: starts, submits, reads, judges, writes, tells."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.fidelity import judge, plain_charge, races
from tests.fidelity.cluster import A100, BY_NAME, HT, PLAIN, Facts, FidelityCluster, prices_json
from tests.fidelity.driver import Accepted, Driver
from tests.fidelity.judge import Books, Comparison, Judge
from tests.fidelity.submissions import NAMES, Submission, draw, submissions
from tests.rig.cluster import OPERATOR, RigError, wait_until

CHECKOUT = Path(__file__).resolve().parents[2]

#: The bars, and of the full size how many.
EQUAL_SHARE = 0.95
FEW_EQUAL_SHARE = 0.8  #: of a feature, below the full size
EACH = 60
COMBINED = 300

#: How many lines about jobs that differ are printed; all are in the dumps.
MOST_LINES = 40

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    seed: int
    names: tuple[str, ...]
    only: tuple[int, ...]  #: numbers of the seed's list; empty: from the first
    jobs: int  #: 0: none
    rounds: int  #: of the races; 0: none
    full: bool  #: whether the counts are bars too
    deadline_s: float
    output: Path
    race_jobs: int = races.JOBS
    max_tres_jobs: int | None = None  #: None: a twentieth

    def quotas(self) -> dict[str, int]:
        """Accepted, by feature."""
        share = min(1.0, self.jobs / 2000)
        if self.only:
            return dict.fromkeys(NAMES, 0)
        quotas = {name: round(EACH * share) if name in self.names else 0 for name in NAMES}
        if "combined" in self.names:
            quotas["combined"] = round(COMBINED * share)
        return quotas

    def drawn(self) -> Iterator[Submission]:
        if not self.only:
            return submissions(self.seed, self.names)
        return (draw(self.seed, number, self.names) for number in self.only)


#: Where billing is the dearest of a job's resources, so is the price.
MAX_TRES = (
    Facts(
        name="normal",
        nodes=PLAIN[:3],
        price={"cpu": "361.7", "mem_gb": "150.25", "combine": "max"},
        default=True,
        extra="DefMemPerCPU=500",
        weights="CPU=361.7,Mem=150.25G",
        mirrored=True,
    ),
    Facts(
        name="ht",
        nodes=HT[:2],
        price={"cpu": "400.5", "mem_gb": "312.5", "node": "900", "combine": "max"},
        default_time_min=None,
        max_time="02:00:00",
        extra="DefMemPerCPU=1000",
        weights="CPU=400.5,Mem=312.5G,Node=900",
        mirrored=True,
    ),
    Facts(
        name="gpu",
        nodes=A100[:2],
        price={"cpu": "1200", "gpu:a100": "2222.5", "combine": "max"},
        extra="DefMemPerCPU=1000 DefCpuPerGPU=2",
        weights="CPU=1200,GRES/gpu:a100=2222.5",
        mirrored=True,
    ),
)
MAX_TRES_NAMES = (
    "default_partition",
    "partition_limited_time",
    "tasks_cpus",
    "mem",
    "mem_per_cpu",
    "gpus",
    "gres",
)


#: Of all runs: those whose start slurmdbd may not have.
LOST_SHARE = 0.005


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """Of one cluster's submissions."""

    accepted: list[Accepted]
    compared: list[Comparison]
    charges: int
    charge_mismatch: list[str]
    starts_lost: int  #: by slurmdbd; the charges of these runs are compared by slurmctld's log
    oracle: int
    oracle_mismatch: list[str]
    problems: list[str]


def commit() -> str:
    def git(*words: str) -> str:
        try:
            done = subprocess.run(
                ["git", *words], cwd=CHECKOUT, capture_output=True, text=True, timeout=20
            )
        except OSError:
            return ""
        return done.stdout.strip()

    found = git("rev-parse", "HEAD")
    if not found:
        return "unknown"
    return found + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")


# -- reading ------------------------------------------------------------------------------------------------------------


def sacct_text(cluster: FidelityCluster) -> str:
    return cluster.run_as(
        "root",
        ["sacct", "-a", "-X", "-D", "-n", "-P", "--noconvert", "-S", "now-2days", "-E", "now+1day"]
        + ["-o", ",".join(plain_charge.FIELDS)],
        120,
        env={"SLURM_TIME_FORMAT": "%s", "TZ": "UTC"},
        check=True,
    ).stdout


#: Seconds without a change after which what is left over stays so: longer than a lien may be unconfirmed.
_STILL_S = 45.0


def settle(cluster: FidelityCluster, tell: Tell, timeout_s: float = 180) -> list[str]:
    """Until every run that slurmdbd has ended is charged, nothing is set aside and all is delivered; what is left over."""
    problems: list[str] = []

    def left() -> list[str]:
        found = []
        rows = plain_charge.rows_of(sacct_text(cluster))
        ended = {
            (int(run[0]["JobIDRaw"]), int(run[0]["Submit"])) for run in plain_charge.runs_of(rows)
        }
        lost = {
            (int(row["JobIDRaw"]), int(row["Submit"])) for row in rows if judge.start_is_lost(row)
        }
        runs = cluster.ledger_rows(
            "SELECT job_id, submit_time, charge_csu FROM runs WHERE charge_csu IS NOT NULL"
        )
        charged = {(row["job_id"], row["submit_time"]) for row in runs}
        # slurmctld tells slurmdbd of starts every five seconds only.
        paid = {(row["job_id"], row["submit_time"]) for row in runs if row["charge_csu"]}
        if paid - ended - lost:
            found.append(
                f"{len(paid - ended - lost)} charged runs are not in slurmdbd: "
                f"{sorted(paid - ended - lost)[:5]}"
            )
        if ended - charged:
            found.append(
                f"{len(ended - charged)} runs are not charged: {sorted(ended - charged)[:5]}"
            )
        for what, query in (
            ("runs go on", "SELECT COUNT(*) AS n FROM runs WHERE state = 'running'"),
            ("liens are open", "SELECT COUNT(*) AS n FROM liens WHERE state != 'ended'"),
            ("deliveries wait", "SELECT COUNT(*) AS n FROM outbox"),
        ):
            count = cluster.ledger_rows(query)[0]["n"]
            if count:
                found.append(f"{count} {what}")
        return found

    changed_at = time.monotonic()

    def settled() -> bool:
        nonlocal changed_at
        now = left()
        if now != problems:
            changed_at = time.monotonic()
        problems[:] = now
        return not problems or time.monotonic() - changed_at > _STILL_S

    try:
        wait_until(settled, timeout_s, "the ledger to settle", 1.5)
    except RigError:
        pass
    if problems:
        tell(f"the ledger did not settle: {'; '.join(problems)}")
    return problems


def read(
    cluster: FidelityCluster, prices: Mapping[str, Any], records: Mapping[int, str], where: Path
) -> Books:
    """Everything that is judged; raw, it stays in `where`."""
    text = sacct_text(cluster)
    (where / "sacct.txt").write_text(text)
    (where / "prices.json").write_text(json.dumps(prices, indent=1) + "\n")
    tables = {
        table: cluster.ledger_rows(f"SELECT * FROM {table} ORDER BY 1")
        for table in ("liens", "entries", "runs", "outbox")
    }
    for table, rows in tables.items():
        (where / f"ledger_{table}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    return Books(
        rows=plain_charge.rows_of(text),
        liens=tables["liens"],
        entries=tables["entries"],
        runs=tables["runs"],
        prices=prices,
        scontrol="".join(f"{records[job]}\n" for job in sorted(records)),
        slurmctld_log=cluster.log("slurmctld"),
    )


def dump_submissions(driver: Driver, where: Path) -> None:
    with (where / "submissions.jsonl").open("w") as file:
        for job in sorted(driver.accepted, key=lambda job: job.submission.number):
            drawn = job.submission
            line = {
                "number": drawn.number,
                "job_id": job.job_id,
                "at": job.at,
                "user": drawn.user,
                "sbatch": shlex.join(drawn.arguments()),
                "components": drawn.components,
                "script": drawn.script,
                "features": sorted(drawn.features),
                "fate": drawn.fate,
                "updates": job.updates,
                "said": job.said,
                "trouble": job.trouble,
            }
            file.write(json.dumps(line) + "\n")
        for refused in sorted(driver.refused, key=lambda refused: refused.submission.number):
            drawn = refused.submission
            line = {
                "number": drawn.number,
                "job_id": None,
                "user": drawn.user,
                "sbatch": shlex.join(drawn.arguments()),
                "features": sorted(drawn.features),
                "said": refused.said,
            }
            file.write(json.dumps(line) + "\n")
    records = [driver.records[job] for job in sorted(driver.records)]
    (where / "scontrol.txt").write_text("".join(f"{record}\n" for record in records))


def load(where: Path) -> tuple[list[Accepted], Books]:
    """What `read` and `dump_submissions` left, to be judged again."""
    accepted = []
    for line in (where / "submissions.jsonl").read_text().splitlines():
        raw = json.loads(line)
        if raw["job_id"] is None:
            continue
        drawn = Submission(
            number=raw["number"],
            user=raw["user"],
            components=tuple(tuple(words) for words in raw["components"]),
            script=raw["script"],
            features=frozenset(raw["features"]),
            fate=raw["fate"],
        )
        accepted.append(
            Accepted(
                submission=drawn,
                job_id=raw["job_id"],
                at=raw["at"],
                said=raw["said"],
                updates=raw["updates"],
                trouble=raw["trouble"],
            )
        )
    tables = {
        table: [
            json.loads(line) for line in (where / f"ledger_{table}.jsonl").read_text().splitlines()
        ]
        for table in ("liens", "entries", "runs")
    }
    rows = plain_charge.rows_of((where / "sacct.txt").read_text())
    prices = json.loads((where / "prices.json").read_text())
    return accepted, Books(
        rows=rows,
        prices=prices,
        scontrol=(where / "scontrol.txt").read_text(),
        slurmctld_log=(where / "log" / "slurmctld.log").read_text(errors="replace"),
        **tables,
    )


def judged(
    accepted: list[Accepted], books: Books, facts: Mapping[str, Facts], problems: list[str]
) -> Outcome:
    of = Judge(books, facts)
    charges, charge_mismatch, starts_lost = of.charges()
    oracle, oracle_mismatch = of.oracle()
    return Outcome(
        accepted=accepted,
        compared=of.compare(accepted),
        charges=charges,
        charge_mismatch=charge_mismatch,
        starts_lost=starts_lost,
        oracle=oracle,
        oracle_mismatch=oracle_mismatch,
        problems=problems,
    )


def judge_again(plan: Plan, dumps: Path) -> int:
    """What earlier dumps come to, by today's rules; no cluster is started."""
    outcomes = []
    for where, partitions in ((dumps, tuple(BY_NAME.values())), (dumps / "max_tres", MAX_TRES)):
        accepted, books = load(where) if (where / "sacct.txt").exists() else ([], _NO_BOOKS)
        outcomes.append(judged(accepted, books, {facts.name: facts for facts in partitions}, []))
    return _conclude(plan, outcomes[0], outcomes[1], [], 0)


_NO_BOOKS = Books(rows=[], liens=[], entries=[], runs=[], prices={})


# -- one cluster --------------------------------------------------------------------------------------------------------


def submit_and_judge(
    cluster: FidelityCluster, submit: Callable[[Driver], None], plan: Plan, tell: Tell, where: Path
) -> Outcome:
    facts = {one.name: one for one in cluster.facts}
    where.mkdir(parents=True, exist_ok=True)
    prices = prices_json(facts)
    prices["admin_uids"] = [0, cluster.uid("slurm"), cluster.uid(OPERATOR)]
    driver = Driver(cluster, tell=tell, deadline_s=plan.deadline_s)
    submit(driver)
    tell("waiting for every run to be charged and delivered")
    problems = settle(cluster, tell)
    books = read(cluster, prices, driver.records, where)
    dump_submissions(driver, where)
    try:
        cluster.collect_logs(where / "log")
        shutil.copyfile(cluster.state_dir / "relay.log", where / "log" / "relay.log")
    except OSError as error:
        problems.append(f"logs: {error}")
    unsold = [one for one in driver.refused if "violates accounting/QOS" in one.said]
    problems += [
        f"refused by us: sbatch {shlex.join(one.submission.arguments())}: {one.said}"
        for one in unsold
    ]
    return judged(driver.accepted, books, facts, problems)


# -- the whole ----------------------------------------------------------------------------------------------------------


def run(plan: Plan, tell: Tell) -> int:
    """The exit status."""
    tell(f"seed {plan.seed}; {plan.jobs} submissions to be accepted, {plan.rounds} rounds of races")
    dumps = plan.output / "fidelity"
    shutil.rmtree(dumps, ignore_errors=True)
    dumps.mkdir(parents=True)
    begun = time.monotonic()
    main = judged([], _NO_BOOKS, {}, [])
    largest = main
    if plan.jobs:
        with FidelityCluster(tell=lambda line: None) as cluster:
            tell(
                f"a cluster of {len(cluster.nodes)} nodes and {len(cluster.partitions)} partitions is up"
            )
            main = submit_and_judge(
                cluster, lambda driver: _submit_all(driver, cluster, plan), plan, tell, dumps
            )
        count = plan.max_tres_jobs
        if count is None:
            count = 0 if plan.only or plan.names != NAMES else max(10, plan.jobs // 20)
        if count:
            nodes = tuple(node for one in MAX_TRES for node in one.nodes)
            with FidelityCluster(
                tell=lambda line: None, max_tres=True, nodes=nodes, partitions=MAX_TRES
            ) as cluster:
                tell("a second cluster is up, with PriorityFlags=MAX_TRES")
                drawn = (
                    one
                    for one in submissions(plan.seed, MAX_TRES_NAMES)
                    if _in(one, {facts.name for facts in MAX_TRES})
                )
                largest = submit_and_judge(
                    cluster,
                    lambda driver: driver.run(drawn, jobs=count, quotas={}),
                    plan,
                    tell,
                    dumps / "max_tres",
                )
    found_races: list[races.Round] = []
    if plan.rounds:
        tell(f"races: {races.SUBMITTERS} submitters, {plan.race_jobs} jobs a round, funds for 10")
        found_races = races.run(plan.rounds, plan.seed, tell, jobs=plan.race_jobs)
    return _conclude(plan, main, largest, found_races, time.monotonic() - begun)


def _submit_all(driver: Driver, cluster: FidelityCluster, plan: Plan) -> None:
    """Het jobs first, while Slurm's backfill looks often: nothing else starts them."""
    if plan.only:
        driver.run(_ending(plan.drawn()), jobs=plan.jobs, quotas={})
        return
    quotas = plan.quotas()
    het_quota = quotas.pop("het", 0)
    het_jobs = round(plan.jobs / len(plan.names)) if "het" in plan.names else 0
    if het_jobs:
        drawn = (one for one in plan.drawn() if len(one.components) > 1)
        driver.run(drawn, jobs=het_jobs, quotas={"het": het_quota})
    if plan.jobs > het_jobs:
        cluster.backfill_seldom()
        drawn = (one for one in plan.drawn() if len(one.components) == 1)
        driver.run(drawn, jobs=plan.jobs - het_jobs, quotas=quotas)


def _ending(drawn: Iterator[Submission]) -> Iterator[Submission]:
    """A list of a few is gone through once, then its last job stays a plain one."""
    last: Submission | None = None
    for one in drawn:
        last = one
        yield one
    while last is not None:
        yield dataclasses.replace(last, fate="run", script="true")


def _in(submission: Submission, partitions: set[str]) -> bool:
    for component in submission.components:
        for word in component:
            if (
                word.startswith("--partition=")
                and not set(word.partition("=")[2].split(",")) <= partitions
            ):
                return False
            if "t4" in word:
                return False
    return True


def _conclude(
    plan: Plan, main: Outcome, largest: Outcome, found_races: list[races.Round], seconds: float
) -> int:
    features = judge.features(main.accepted, main.compared)
    compared = main.compared + largest.compared
    below = [one for one in compared if one.below]
    unexplained = [one for one in compared if one.rule == judge.UNEXPLAINED]
    charge_mismatch = main.charge_mismatch + largest.charge_mismatch
    oracle_mismatch = main.oracle_mismatch + largest.oracle_mismatch
    overdraft_su = max((race.overdraft_su for race in found_races), default=Decimal("0.00"))
    updated = [one for one in compared if one.kind == "updated"]
    again = [one for one in compared if one.kind == "again"]

    failed: list[str] = []
    if below:
        failed.append(f"{len(below)} estimates are below what was allocated")
    if unexplained:
        failed.append(
            f"{len(unexplained)} estimates are above what was allocated, for no known reason"
        )
    if charge_mismatch:
        failed.append(f"{len(charge_mismatch)} charges are not what sacct's figures come to")
    starts_lost = main.starts_lost + largest.starts_lost
    if starts_lost > max(2, (main.charges + largest.charges) * LOST_SHARE):
        failed.append(f"of {starts_lost} runs slurmdbd has no start")
    if oracle_mismatch:
        failed.append(f"{len(oracle_mismatch)} charges are not what TRESBillingWeights come to")
    if overdraft_su > 0:
        failed.append(f"{overdraft_su} SU more than the funds were set aside")
    failed += main.problems + largest.problems + races.problems(found_races)
    for name, cell in features.items():
        # Of a few runs, some may differ by chance.
        differing = round(cell["runs"] * (1 - cell["estimate_equal_share"]))
        bar, chance = (EQUAL_SHARE, 0) if plan.full else (FEW_EQUAL_SHARE, 4)
        if differing > chance and cell["estimate_equal_share"] < bar:
            failed.append(f"{name}: {cell['estimate_equal_share']:.1%} of the estimates are equal")
        if plan.full and cell["accepted"] < (COMBINED if name == "combined" else EACH):
            failed.append(f"{name}: {cell['accepted']} accepted")
    first_runs = [one for one in compared if one.kind == "first"]
    equal = sum(one.equal for one in first_runs)
    if equal < EQUAL_SHARE * len(first_runs) - 2:
        failed.append(f"{equal} of {len(first_runs)} estimates are equal")
    if plan.full and len(main.accepted) < plan.jobs:
        failed.append(f"{len(main.accepted)} accepted of {plan.jobs}")
    if plan.full and len(found_races) < 20:
        failed.append(f"{len(found_races)} rounds of races of 20")

    lines = [one.text() for one in compared if one.rule]
    (plan.output / "fidelity").mkdir(parents=True, exist_ok=True)
    (plan.output / "fidelity" / "differences.txt").write_text(
        "".join(f"{line}\n" for line in lines)
    )
    wrong = [one.text() for one in below + unexplained] + charge_mismatch + oracle_mismatch
    for line in wrong[:MOST_LINES]:
        print(line)
    if len(wrong) > MOST_LINES:
        print(f"... and {len(wrong) - MOST_LINES} more: {plan.output}/fidelity/differences.txt")

    def share(of: list[Comparison]) -> dict[str, Any]:
        return {
            "runs": len(of),
            "estimate_below": sum(one.below for one in of),
            "estimate_equal": sum(one.equal for one in of),
            "rules": dict(Counter(one.rule for one in of if one.rule)),
        }

    fates = Counter(job.submission.fate for job in main.accepted)
    result = {
        "commit": commit(),
        "seed": plan.seed,
        "submissions": len(main.accepted) + len(largest.accepted),
        "charge_mismatch": len(charge_mismatch),
        "overdraft_su": f"{overdraft_su:.2f}",
        "features": features,
        "runs": len(compared),
        "charges_compared": main.charges + largest.charges,
        "starts_lost_by_slurmdbd": starts_lost,
        "oracle": {
            "compared": main.oracle + largest.oracle,
            "mismatch": len(oracle_mismatch),
            "max_tres_compared": largest.oracle,
        },
        "all": share(compared),
        "updated": share(updated),
        "later_runs": share(again),
        "max_tres": share(largest.compared),
        "rules": dict(judge.RULES),
        "fates": dict(fates),
        "undecided": sum(one.undecided for one in compared),
        "states": dict(Counter(one.row["State"].split()[0] for one in compared)),
        "races": races.as_json(found_races),
        "seconds": round(seconds),
        "failed": failed,
    }
    (plan.output / "fidelity.json").write_text(json.dumps(result, indent=1) + "\n")
    _table(result, found_races)
    for problem in failed:
        print(f"fidelity: NOT MET: {problem}")
    return 1 if failed else 0


def _table(result: Mapping[str, Any], found_races: list[races.Round]) -> None:
    print(f"\n{'feature':24}{'accepted':>9}{'runs':>7}{'below':>7}{'equal':>9}  rest")
    for name, cell in result["features"].items():
        if not cell["accepted"]:
            continue
        rest = ", ".join(
            f"{count} {rule}" for rule, count in cell["rules"].items() if rule != "below"
        )
        print(
            f"{name:24}{cell['accepted']:>9}{cell['runs']:>7}{cell['estimate_below']:>7}"
            f"{cell['estimate_equal_share']:>9.1%}  {rest}"
        )
    every, updated, again = result["all"], result["updated"], result["later_runs"]
    for name, cell in (
        ("all runs", every),
        ("updated", updated),
        ("later runs", again),
        ("MAX_TRES", result["max_tres"]),
    ):
        if cell["runs"]:
            rest = ", ".join(
                f"{count} {rule}" for rule, count in cell["rules"].items() if rule != "below"
            )
            equal = cell["estimate_equal"] / cell["runs"]
            print(
                f"{name:24}{'':>9}{cell['runs']:>7}{cell['estimate_below']:>7}{equal:>9.1%}  {rest}"
            )
    print(
        f"\nseed {result['seed']}, commit {result['commit']}: {result['submissions']} accepted;"
        f" {result['charges_compared']} charges compared, {result['charge_mismatch']} differ;"
        f" {result['oracle']['compared']} compared with billing, {result['oracle']['mismatch']} differ;"
        f" {len(found_races)} rounds of races, overdraft {result['overdraft_su']} SU; {result['seconds']} s"
    )
