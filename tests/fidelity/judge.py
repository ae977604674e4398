# SPDX-License-Identifier: BSD-3-Clause
"""Compares: each estimate with what slurmctld allocated, each charge with the plain one, mirrored partitions with billing.

The arithmetic here is `plain_charge`'s; of slurm_banking only what it wrote down is used.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from tests.fidelity import plain_charge
from tests.fidelity.cluster import BY_NAME, UNLIMITED_MIN, Facts
from tests.fidelity.driver import Accepted
from tests.fidelity.plain_charge import Row, per_hour, tres_of
from tests.fidelity.submissions import NAMES

UNEXPLAINED = "unexplained"

#: From here on the estimate has other rules beside those of 22.05.
LATER = (23, 2)

#: Why an estimate may be more than what was allocated. Each is checked on the job, not taken on trust.
RULES: Mapping[str, str] = {
    "another partition than the dearest": "a list of partitions; it ran in another than the estimate is for",
    "not whole nodes, which it could have": "a list of partitions, one of them exclusive: it ran in another before"
    " Slurm had tried that one, from when on Slurm gives it whole nodes everywhere",
    "fewer nodes than it could have": "it may have several nodes, and got fewer than the estimate is for",
    "another kind of node than the dearest": "the partition's nodes differ, and it got others than the estimate is for",
    "another type of GPU than the dearest": "no type was asked for, and it got another than the estimate is for",
    "Slurm shortened its time": "--time-min, of it or of another component of its het job",
    "fewer sockets than it could have": "--gpus-per-socket; its cores are on fewer sockets than the estimate is for",
    "its tasks stand otherwise on its nodes": "on several nodes; how its tasks are spread decides a few of its CPUs",
    "Slurm gives added tasks nothing": "scontrol update NumTasks=; the job keeps the CPUs and GPUs that it asked for",
    "fewer GPUs than Slurm may deal": "--gpus-per-task with --cpus-per-gpu: as its CPUs lie, Slurm deals it more GPUs than it"
    " asked for, up to what the estimate is for",
    "less memory beside specialised threads": "--thread-spec, memory per CPU: Slurm counts whole tasks only, on some nodes",
    "Slurm gives added nodes no GPUs": "scontrol update NumNodes=, --gpus; a new job of as many nodes gets one on each",
    "Slurm refused the update": "raised when it was asked for, lowered when Slurm is seen not to have done it",
    "the ledger was busy": "nothing could be set aside in time; of the estimate only the sum is known, from what the user was told",
    "the update asked for less": "lowered only when Slurm is seen to have done it",
    "later releases may give it more": "from Slurm 23.02 on: overcommitted tasks may have a CPU each, the CPUs of a job's GPUs"
    " may be as many on each of its nodes",
    "later releases give added nodes less": "from Slurm 23.02 on: scontrol update NumNodes= of a waiting job",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimated:
    csu: int
    tres: str
    partition: str
    qos: str
    limit_min: int
    entry: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One run: what was set aside for it, and what it could have cost with what it got."""

    job: Accepted
    row: Row
    estimated: Estimated | None  #: None: nothing is in the ledger
    actual_csu: int
    limit_min: int
    kind: str  #: "first", "updated", "again" (a later run of a requeued job)
    rule: str  #: "" if equal

    @property
    def below(self) -> bool:
        return self.estimated is None or self.estimated.csu < self.actual_csu

    @property
    def equal(self) -> bool:
        return self.estimated is not None and self.estimated.csu == self.actual_csu

    def differing(self) -> str:
        """TRES by TRES: estimate against allocation."""
        if self.estimated is None:
            return "no lien in the ledger"
        ours, theirs = tres_of(self.estimated.tres), tres_of(self.row["AllocTRES"])
        names = sorted(set(ours) | set(theirs))
        parts = [
            f"{name} {_plain(ours.get(name))}/{_plain(theirs.get(name))}"
            for name in names
            if ours.get(name) != theirs.get(name)
        ]
        if self.estimated.limit_min != self.limit_min:
            parts.append(f"minutes {self.estimated.limit_min}/{self.limit_min}")
        if self.estimated.partition != self.row["Partition"]:
            parts.append(f"partition {self.estimated.partition}/{self.row['Partition']}")
        if self.estimated.qos != self.row["QOS"]:
            parts.append(f"qos {self.estimated.qos}/{self.row['QOS']}")
        return ", ".join(parts)

    def text(self) -> str:
        verdict = "BELOW" if self.below else "over"
        estimate = "-" if self.estimated is None else f"{self.estimated.csu / 100:.2f}"
        lines = [
            f"{verdict} ({self.rule}) #{self.job.submission.number} job {self.row['JobID']} ({self.kind}): estimate {estimate} SU, allocation"
            f" {self.actual_csu / 100:.2f} SU; differs (ours/Slurm's): {self.differing()}",
            f"    sbatch {shlex.join(self.job.submission.arguments())}",
        ]
        for update in self.job.updates:
            lines.append(
                f"    update {' '.join(update['wanted'])} -> {update['status']} {update['said']}"
            )
        if self.estimated is not None:
            lines.append(f"    estimate  {self.estimated.partition} {self.estimated.tres}")
        lines.append(
            f"    AllocTRES {self.row['Partition']} {self.row['AllocTRES']} on {self.row['NodeList']}"
        )
        return "\n".join(lines)

    @property
    def undecided(self) -> bool:
        """Accepted though nothing could be set aside: the ledger was busy. What was told to the user is its estimate."""
        return self.estimated is not None and self.estimated.entry.get("kind") == "told"


def start_is_lost(row: Row) -> bool:
    """Whether slurmdbd has an end of a run that had nodes, and no start: requeued before slurmctld reported it."""
    ran = row["NodeList"] not in ("", "None assigned") and bool(row["AllocTRES"])
    return ran and row["End"].isdigit() and not row["Start"].isdigit()


def _plain(number: Fraction | None) -> str:
    return "-" if number is None else f"{float(number):g}"


def up(number: Fraction) -> int:
    return math.ceil(number)


def cost_csu(tres: str, price: Mapping[str, str], multiplier: str, minutes: int) -> int:
    """Hundredths of an SU for so long, rounded up as what is set aside is."""
    return up(per_hour(tres_of(tres), price) * Fraction(multiplier) * minutes * 60 * 100 / 3600)


#: What Slurm writes where neither the job nor its partition has a limit, minutes: a year.
YEAR_MIN = 365 * 24 * 60


def limit_of(row: Row, facts: Facts) -> int:
    """Minutes; "Partition_Limit" is what slurmdbd has of a job without a limit whose start was never reported."""
    text = row["TimelimitRaw"]
    if text == "Partition_Limit":
        return facts.max_min or UNLIMITED_MIN
    if text in ("UNLIMITED", "", str(YEAR_MIN)):
        return UNLIMITED_MIN
    return int(text)


@dataclasses.dataclass
class Books:
    """What was read, after everything has ended."""

    rows: Sequence[Row]
    liens: Sequence[Mapping[str, Any]]
    entries: Sequence[Mapping[str, Any]]
    runs: Sequence[Mapping[str, Any]]
    prices: Mapping[str, Any]
    scontrol: str = ""  #: a line for each job
    slurmctld_log: str = ""


def _estimated(entry: Mapping[str, Any]) -> Estimated:
    inputs = json.loads(entry["inputs"])
    rates = inputs["rates"]
    price = {"cpu": rates} if isinstance(rates, str) else rates
    minutes = int(inputs["time_limit_min"])
    return Estimated(
        csu=cost_csu(inputs["tres"], price, inputs["qos_multiplier"], minutes),
        tres=inputs["tres"],
        partition=inputs["partition"],
        qos=inputs["qos"] or "normal",
        limit_min=minutes,
        entry=entry,
    )


def _told_of(partition: str, csu: int) -> Estimated:
    return Estimated(
        csu=csu, tres="", partition=partition, qos="", limit_min=0, entry={"kind": "told"}
    )


class Judge:
    def __init__(self, books: Books, facts: Mapping[str, Facts] = BY_NAME) -> None:
        self.books = books
        self.facts = facts
        version = re.search(r"slurmctld version (\d+)\.(\d+)", books.slurmctld_log)
        self._later = version is not None and (int(version[1]), int(version[2])) >= LATER
        self._liens: dict[int, list[Mapping[str, Any]]] = {}
        for lien in books.liens:
            if lien["job_id"] is not None:
                self._liens.setdefault(lien["job_id"], []).append(lien)
        self._entries: dict[str, list[Mapping[str, Any]]] = {}
        for entry in books.entries:
            if entry["lien_id"] is not None:
                self._entries.setdefault(entry["lien_id"], []).append(entry)
        # A run that began and ended unseen, while the ledger was busy, has its lien by the token alone.
        by_id = {lien["lien_id"]: lien for lien in books.liens}
        tokens = re.findall(
            r"^JobId=(\d+) .*? AdminComment=slurm_banking=([0-9a-f]+):", books.scontrol, re.M
        )
        for job, lien_id in tokens:
            lien = by_id.get(lien_id)
            if lien is not None and lien["job_id"] is None:
                self._liens.setdefault(int(job), []).append(lien)
        #: What an update was estimated at that could not be set aside, since the ledger was busy.
        self._undecided_updates = {
            int(job): (partition, su)
            for job, partition, su in re.findall(
                r"update_undecided job_id=(\d+) .*?partition=(\S+) estimate_su=([\d.]+) .*ledger_unavailable",
                books.slurmctld_log,
            )
        }
        self._rows: dict[str, list[Row]] = {}
        for row in books.rows:
            self._rows.setdefault(row["JobIDRaw"], []).append(row)
        for parts in self._rows.values():
            parts.sort(key=lambda row: int(row["Submit"]))

    # -- estimates ------------------------------------------------------------------------------------------------------

    def compare(self, jobs: Iterable[Accepted]) -> list[Comparison]:
        """Of each run that got resources, in the order of their ids."""
        by_id: dict[int, Accepted] = {}
        for job in jobs:
            for offset in range(len(job.submission.components)):
                by_id[job.job_id + offset] = job
        found = []
        for raw in sorted(self._rows, key=int):
            rows = self._rows[raw]
            base = rows[0]["JobID"].split("_")[0]
            job_id = int(base) if "_" in rows[0]["JobID"] else int(raw)
            job = by_id.get(job_id)
            if job is None:
                continue
            restart, resized = 0, False
            for row in rows:
                known = row["Partition"] in self.books.prices["partitions"]
                if not resized and row["AllocTRES"] and known:
                    found.append(self._compare(job, job_id, row, restart))
                resized = row["State"] == "RESIZING"
                if not resized:
                    restart += 1
        return found

    def _compare(self, job: Accepted, job_id: int, row: Row, restart: int) -> Comparison:
        kind = "again" if restart else "first"
        # Slurm may have made a part of an update that it refused.
        if not restart and job.updates and job.submission.fate != "resize":
            kind = "updated"
        estimated = self._find(job_id, kind, restart, job)
        limit = limit_of(row, self.facts[row["Partition"]])
        price = self.books.prices["partitions"][row["Partition"]]
        actual = cost_csu(
            row["AllocTRES"], price, self.books.prices["qos"].get(row["QOS"], "1"), limit
        )
        rule = ""
        if estimated is None or estimated.csu < actual:
            rule = "below"
        elif estimated.csu > actual:
            rule = self._rule(job, job_id, row, estimated, limit, kind)
        return Comparison(
            job=job,
            row=row,
            estimated=estimated,
            actual_csu=actual,
            limit_min=limit,
            kind=kind,
            rule=rule,
        )

    def _find(self, job_id: int, kind: str, restart: int, job: Accepted) -> Estimated | None:
        liens = self._liens.get(job_id, [])
        if kind == "again":
            liens = [lien for lien in liens if lien["restart_count"] == restart] or liens
        entries = [
            entry
            for lien in liens
            for entry in self._entries.get(lien["lien_id"], ())
            if entry["inputs"] is not None and '"rates"' in entry["inputs"]
        ]
        entries.sort(key=lambda entry: int(entry["seq"]))
        first = [entry for entry in entries if entry["kind"] == "lien"]
        busy = "could not be set aside" in job.said
        if not first or (kind == "first" and busy and len(job.submission.components) == 1):
            return self._told(job, kind, job_id - job.job_id) if busy else None
        if kind != "updated":
            return _estimated(first[0])
        # What Slurm refused may have been cheaper than what stays.
        if job_id in self._undecided_updates and job.updates[-1]["status"] == 0:
            partition, su = self._undecided_updates[job_id]
            return _told_of(partition, up(Fraction(su) * 100))
        changes = [
            entry
            for entry in entries
            if entry["kind"] == "lower"
            or (entry["kind"] == "raise" and entry["reason"].startswith("update"))
        ]
        return _estimated((changes or first)[-1])

    @staticmethod
    def _told(job: Accepted, kind: str, component: int) -> Estimated | None:
        """From sbatch's words, where that is all there is."""
        told = re.findall(
            r"could cost up to ([\d,.]+) SU \((\S+), [^)]*?(?:, x (\d+) tasks)?\)", job.said
        )
        # One line for each component of a het job, in their order.
        if kind != "first" or len(told) != len(job.submission.components):
            return None
        su, partition, tasks = told[component]
        return _told_of(partition, up(Fraction(su.replace(",", "")) * 100 / int(tasks or 1)))

    def _rule(
        self, job: Accepted, job_id: int, row: Row, estimated: Estimated, limit: int, kind: str
    ) -> str:
        submission = job.submission
        words = submission.components[0]
        if len(submission.components) > 1:
            words = submission.components[job_id - job.job_id]
        options = dict(word.partition("=")[::2] for word in words)
        ours, theirs = tres_of(estimated.tres), tres_of(row["AllocTRES"])
        if estimated.entry["kind"] == "told":
            return "the ledger was busy"
        if kind == "updated" and not self._entry_of_update(estimated):
            return "the update asked for less"
        if kind == "updated" and job.updates[-1]["status"] != 0:
            return "Slurm refused the update"
        tasks_asked = any(
            word.startswith("NumTasks=") for update in job.updates for word in update["wanted"]
        )
        fewer = any(theirs.get(what, 0) < ours.get(what, 0) for what in ("cpu", "gres/gpu"))
        if kind == "updated" and tasks_asked and fewer:
            return "Slurm gives added tasks nothing"
        nodes_asked = any(
            word.startswith("NumNodes=") for update in job.updates for word in update["wanted"]
        )
        if (
            kind == "updated"
            and nodes_asked
            and theirs.get("gres/gpu", 0) < ours.get("gres/gpu", 0)
        ):
            return "Slurm gives added nodes no GPUs"
        if self._later and kind == "updated" and nodes_asked and fewer:
            return "later releases give added nodes less"
        if self._later and fewer and {"--overcommit", "-O", "--cpus-per-gpu"} & set(options):
            return "later releases may give it more"
        if "," in options.get("--partition", "") and estimated.partition != row["Partition"]:
            return "another partition than the dearest"
        shortened = any(
            word.startswith("--time-min") for one in submission.components for word in one
        )
        listed = options.get("--partition", "").split(",")
        exclusive = any(self.facts[name].exclusive for name in listed if name)
        shared = not self.facts[row["Partition"]].exclusive
        if len(listed) > 1 and exclusive and shared and theirs.get("cpu", 0) < ours.get("cpu", 0):
            return "not whole nodes, which it could have"
        if shortened and limit < estimated.limit_min:
            return "Slurm shortened its time"
        nodes_differ = theirs.get("node", 0) < ours.get("node", 0)
        if nodes_differ and options.get("--nodes", "1-").count("-"):
            return "fewer nodes than it could have"
        fewer_gpus = theirs.get("gres/gpu", 0) < ours.get("gres/gpu", 0)
        if {"--gpus-per-task", "--cpus-per-gpu"} <= set(options) and fewer_gpus:
            return "fewer GPUs than Slurm may deal"
        if "--gpus-per-socket" in options and fewer_gpus and not nodes_differ:
            return "fewer sockets than it could have"
        facts = self.facts[row["Partition"]]
        asked = [one for one in ("a100", "t4") if any(one in value for value in options.values())]
        gpu = any("gpu" in name or "gres" in name for name in options)
        able = [
            n
            for n in facts.nodes
            if not gpu or (n.gpus is not None and (not asked or n.gpus[0] in asked))
        ]
        shapes = {(n.cpus, n.sockets, n.threads, n.memory_mib, n.gpus, n.extra) for n in able}
        kinds = {name for name in ours if name.startswith("gres/gpu:") and ours[name]}
        got = {name for name in theirs if name.startswith("gres/gpu:") and theirs[name]}
        if kinds != got and not asked:
            return "another type of GPU than the dearest"
        same_but_memory = all(
            ours.get(name, 0) == theirs.get(name, 0) for name in ("cpu", "node", "gres/gpu")
        )
        if "--thread-spec" in options and same_but_memory:
            return "less memory beside specialised threads"
        fewer_cpus = ours.get("cpu", 0) * 3 / 4 <= theirs.get("cpu", 0) < ours.get("cpu", 0)
        if fewer_cpus and not fewer_gpus and not nodes_differ and ours.get("node", 0) > 1:
            return "its tasks stand otherwise on its nodes"
        if len(shapes) > 1:
            return "another kind of node than the dearest"
        return UNEXPLAINED

    @staticmethod
    def _entry_of_update(estimated: Estimated) -> bool:
        return bool(estimated.entry["kind"] != "lien")

    # -- charges --------------------------------------------------------------------------------------------------------

    def charges(self) -> tuple[int, list[str], int]:
        """(runs compared, those that differ, those of which slurmctld's log had to tell the start)."""
        plain = plain_charge.charges(self.books.rows, self.books.prices)
        witnessed = self._witnessed()
        plain.update(witnessed)
        ours = {
            (run["job_id"], run["submit_time"]): run
            for run in self.books.runs
            if run["state"] == "ended" and run["charge_csu"] is not None
        }
        started = {
            (int(run[0]["JobIDRaw"]), int(run[0]["Submit"])): run
            for run in plain_charge.runs_of(self.books.rows)
        }
        wrong = []
        for key in sorted(set(plain) | set(ours)):
            mine = ours[key]["charge_csu"] if key in ours else None
            expected = plain.get(key)
            if mine == expected:
                continue
            if expected is None and mine == 0:
                continue  # it never started, by slurmdbd
            rows = started.get(key, [])
            told = "; ".join(
                f"{row['State']} {row['Partition']} {row['QOS']} {row['ElapsedRaw']} s {row['AllocTRES']}"
                for row in rows
            )
            mine_text = "nothing" if mine is None else f"{mine / 100:.2f}"
            plain_text = "nothing" if expected is None else f"{expected / 100:.2f}"
            inputs = ours[key]["inputs"] if key in ours else ""
            wrong.append(
                f"job {key[0]} submitted {key[1]}: charged {mine_text} SU, by sacct {plain_text} SU ({told}); {inputs}"
            )
        return len(set(plain) | set(ours)), wrong, len(witnessed)

    def _witnessed(self) -> dict[tuple[int, int], int]:
        """Charges of runs whose start slurmdbd never got (requeued within seconds of it), by slurmctld's log."""
        starts: dict[int, list[int]] = {}
        for told, job, task in re.findall(
            r"^\[(\S+?)\] .*?(?:Allocate|Started) JobId=(\d+)(?:_\d+\((\d+)\))?",
            self.books.slurmctld_log,
            re.M,
        ):
            at = int(datetime.datetime.fromisoformat(told).timestamp())
            starts.setdefault(int(task or job), []).append(at)
        found = {}
        for row in self.books.rows:
            end = row["End"]
            if not start_is_lost(row):
                continue
            before = [at for at in starts.get(int(row["JobIDRaw"]), ()) if at <= int(end)]
            if before:
                seconds = int(end) - before[-1]
                whole = {**row, "Start": str(before[-1]), "ElapsedRaw": str(seconds)}
                key = int(row["JobIDRaw"]), int(row["Submit"])
                found[key] = plain_charge.charge([whole], self.books.prices)
        return found

    def oracle(self) -> tuple[int, list[str]]:
        """Runs of partitions whose price says the same as their TRESBillingWeights: (compared, those that differ).

        Slurm truncates its weighted sum to an integer, so ours is at least that and less than one more. Only a job's first
        run: of a requeued job Slurm keeps the billing of the first, whatever the later ones get.
        """
        ours = {
            (run["job_id"], run["submit_time"]): run
            for run in self.books.runs
            if run["state"] == "ended"
        }
        count, wrong = 0, []
        for run in plain_charge.runs_of(self.books.rows):
            row = run[0]
            if row is not self._rows[row["JobIDRaw"]][0]:
                continue
            facts = self.facts.get(row["Partition"])
            key = int(row["JobIDRaw"]), int(row["Submit"])
            if len(run) > 1 or facts is None or not facts.mirrored or key not in ours:
                continue
            state = plain_charge.state_of(row, self.books.prices)
            multiplier = Fraction(self.books.prices["qos"].get(row["QOS"], "1"))
            multiplier *= Fraction(self.books.prices["state_factor"].get(state, "1"))
            count += 1
            billing, seconds = (
                tres_of(row["AllocTRES"]).get("billing", Fraction(0)),
                int(row["ElapsedRaw"]),
            )
            low = plain_charge.half_up(billing * seconds * multiplier * 100 / 3600)
            high = plain_charge.half_up((billing + 1) * seconds * multiplier * 100 / 3600)
            inputs = json.loads(ours[key]["inputs"])
            rates = inputs["rates"]
            hour = per_hour(
                tres_of(inputs["tres"]), {"cpu": rates} if isinstance(rates, str) else rates
            )
            charged = ours[key]["charge_csu"]
            if not low <= charged <= high or not billing <= hour < billing + 1:
                wrong.append(
                    f"job {row['JobID']}: charged {charged / 100:.2f} SU at {float(hour):.4f} SU/h; billing {billing} for"
                    f" {seconds} s is {low / 100:.2f} SU ({row['AllocTRES']})"
                )
        return count, wrong


def features(jobs: Iterable[Accepted], compared: Iterable[Comparison]) -> dict[str, dict[str, Any]]:
    """By name: how many were accepted, ran, were below; share of the runs that are equal (1.0 if none ran)."""
    found: dict[str, dict[str, Any]] = {
        name: {"accepted": 0, "runs": 0, "estimate_below": 0, "equal": 0, "rules": Counter()}
        for name in NAMES
    }
    for job in jobs:
        for name in job.submission.features:
            found[name]["accepted"] += 1
    for comparison in compared:
        if comparison.kind == "updated":
            continue  # it no longer is what was submitted
        for name in comparison.job.submission.features:
            cell = found[name]
            cell["runs"] += 1
            cell["estimate_below"] += comparison.below
            cell["equal"] += comparison.equal
            if comparison.rule:
                cell["rules"][comparison.rule] += 1
    for cell in found.values():
        equal = cell.pop("equal")
        cell["estimate_equal_share"] = round(equal / cell["runs"], 4) if cell["runs"] else 1.0
        cell["rules"] = dict(cell["rules"])
    return found
