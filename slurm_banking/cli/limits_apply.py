# SPDX-License-Identifier: BSD-3-Clause
"""What ``slurm-banking limits plan|apply|verify`` do: balances as GrpTRESMins in Slurm, for the day on which the bank is dead.

What is written and why is in :mod:`slurm_banking.limits`; here Slurm and the relay are asked, and sacctmgr is run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from slurm_banking import limits
from slurm_banking.amounts import format_su
from slurm_banking.cli.text import table
from slurm_banking.config import Config
from slurm_banking.errors import BankingError, ConfigError, SlurmUnavailable
from slurm_banking.policy import CHECKED_MODES
from slurm_banking.prices import Rates
from slurm_banking.records import FundsKind
from slurm_banking.slurm import commands
from slurm_banking.slurm.commands import Runner
from slurm_banking.slurm.control import Controller, read_controller
from slurm_banking.slurm.topology import read_topology

#: In the state directory: by account the limits that were set from here.
FILE_NAME = "limits.json"

#: Of the relay, in one question.
_AT_ONCE = 100

#: What asks the relay: a request to its answer.
Ask = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_RECORD = re.compile(
    r"ClusterName=\S* Account=(?P<account>\S+) UserName=(?:(?P<user>\S+)\((?P<uid>\d+)\))? Partition=(?P<part>\S*) "
)
_PARENT = re.compile(r" ParentAccount=(?:(\S+)\(\d+\))? ")
_BILLING = re.compile(r"(?:^|,)billing=(N|\d+)(?:\((\d+)\))?(?:,|$)")


# -- what Slurm says ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Associations:
    accounts: Tuple[limits.Account, ...]
    users: Mapping[str, int]  #: by account, the uid of one user of it


def read_associations(*, run: Runner = commands.run) -> Associations:
    """As slurmctld has them: limit, usage and what runs, in minutes of billing.

    :raises SlurmUnavailable: it does not answer, or not as expected.
    """
    answer = run(["scontrol", "--oneliner", "show", "assoc_mgr", "flags=assoc"])
    accounts: List[limits.Account] = []
    users: Dict[str, int] = {}
    for line in answer.splitlines():
        match = _RECORD.match(line)
        if match is None:
            continue
        if match["uid"] is not None:
            if int(match["uid"]) not in (0, 2**32 - 2):  # NO_VAL: this host does not know the user
                users.setdefault(match["account"], int(match["uid"]))
            continue
        if match["user"] is not None or match["part"]:
            continue
        limit, used = _billing(line, "GrpTRESMins")
        _, running = _billing(line, "GrpTRESRunMins")
        parent = _PARENT.search(line)
        accounts.append(
            limits.Account(
                name=match["account"],
                parent=(parent[1] or "") if parent else "",
                limit_min=limit,
                used_min=used,
                running_min=running,
            )
        )
    if not accounts:
        raise SlurmUnavailable("scontrol show assoc_mgr: no account in its answer")
    return Associations(accounts=tuple(accounts), users=users)


def widest(
    before: Sequence[limits.Account], after: Sequence[limits.Account]
) -> Tuple[limits.Account, ...]:
    """Of each account the look at which it had more used and running: a limit that is too narrow would stop a job."""
    earlier = {account.name: account for account in before}
    return tuple(
        max(
            (earlier.get(account.name, account), account),
            key=lambda one: one.used_min + one.running_min,
        )
        if earlier.get(account.name, account).limit_min == account.limit_min
        else account
        for account in after
    )


def _billing(line: str, key: str) -> Tuple[Optional[int], int]:
    """(limit, used) of ``KEY=cpu=N(0),billing=100(5)``."""
    words = [word for word in line.split() if word.startswith(f"{key}=")]
    match = _BILLING.search(words[0][len(key) + 1 :]) if words else None
    if match is None:
        raise SlurmUnavailable(f"scontrol show assoc_mgr: {key} without billing")
    return (None if match[1] == "N" else int(match[1])), int(match[2] or 0)


def read_qos(config: Config, at_s: int, *, run: Runner = commands.run) -> Tuple[limits.Qos, ...]:
    """:raises SlurmUnavailable: slurmdbd cannot be asked."""
    prices = config.prices_at(at_s)
    query = ["sacctmgr", "--noheader", "--parsable2", "--readonly", "show", "qos"]
    found = []
    for line in run([*query, "format=Name,UsageFactor,Flags,GrpTRESMins"]).splitlines():
        values = line.split("|")
        if len(values) != 4:
            raise SlurmUnavailable(f"sacctmgr show qos: {len(values)} fields in a row, expected 4")
        name, factor, flags, mins = values
        exempt = name.lower() in config.policy.exempt_qos
        found.append(
            limits.Qos(
                name=name,
                multiplier=Decimal(0) if exempt else prices.multiplier(name),
                usage_factor=Fraction(factor or "1"),
                flags=tuple(flag for flag in flags.split(",") if flag),
                grp_tres_mins=mins,
            )
        )
    return tuple(found)


def read_places(
    config: Config, at_s: int, *, run: Runner = commands.run
) -> Tuple[limits.Place, ...]:
    """:raises SlurmUnavailable: slurmctld does not answer, or not as expected."""
    prices = config.prices_at(at_s)
    free = Rates() if config.policy.unlisted_partition == "free" else None
    return tuple(
        limits.Place(
            partition=name,
            rates=prices.partitions.get(name, free),
            weights=part.billing_weights,
            max_tres=part.billing_max,
            gpu_kinds=tuple(sorted({kind for shape in part.shapes for kind, _ in shape.gpus})),
        )
        for name, part in sorted(read_topology(run=run).partitions.items())
    )


# -- what the bank says -------------------------------------------------------------------------------------------------


def read_balances(
    ask: Ask, associations: Associations, config: Config
) -> Tuple[Dict[str, limits.Balance], Optional[int]]:
    """By account; and since when the bank has not answered."""
    names = [account.name for account in associations.accounts if account.name != "root"]
    found: Dict[str, limits.Balance] = {}
    away: Optional[int] = None
    for at in range(0, len(names), _AT_ONCE):
        asked = [[name, associations.users.get(name, -1)] for name in names[at : at + _AT_ONCE]]
        answer = ask({"op": "account_funds", "accounts": asked})
        away = answer.get("bank_away_since")
        for row in answer["accounts"]:
            found[row["account"]] = _balance(row, config)
    return found, away


def _balance(row: Mapping[str, Any], config: Config) -> limits.Balance:
    return limits.Balance(
        kind=None if row["kind"] is None else FundsKind(row["kind"]),
        left_csu=(row["available_csu"] or 0) + row["queued_csu"] + row["grandfathered_csu"],
        refused=row["reason"] is not None,
        exempt=row["account"] in config.policy.exempt_accounts,
        read_at=row["read_at"],
    )


# -- what was set from here ---------------------------------------------------------------------------------------------


def read_ours(path: str, cluster: str) -> Dict[str, List[int]]:
    """:raises BankingError: the file cannot be read, or is not what was written."""
    try:
        with open(path, encoding="ascii") as file:
            kept = json.load(file)
        if kept["cluster"] != cluster:
            raise ValueError(f"of cluster {kept['cluster']}, expected {cluster}")
        return {str(name): [int(one) for one in found] for name, found in kept["accounts"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BankingError(
            f"{path}: {error.strerror}: expected to run as root or SlurmUser"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BankingError(f"{path}: cannot be read: {error}") from None


def write_ours(path: str, cluster: str, accounts: Mapping[str, Sequence[int]]) -> None:
    """:raises BankingError: it cannot be written."""
    kept = {"cluster": cluster, "accounts": {name: list(found) for name, found in accounts.items()}}
    scratch = f"{path}.new"
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            json.dump(kept, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(descriptor)
        os.replace(scratch, path)
    except OSError as error:
        raise BankingError(f"{path}: {error.strerror}") from None


# -- the commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Everything that was looked up."""

    config: Config
    controller: Controller
    places: Tuple[limits.Place, ...]
    problems: Tuple[limits.Problem, ...]
    qos: Tuple[limits.Qos, ...]

    @property
    def safe(self) -> bool:
        return not any(problem.refuse for problem in self.problems)


def look(config: Config, *, run: Runner = commands.run) -> Found:
    """:raises SlurmUnavailable: Slurm cannot be asked."""
    now = int(time.time())
    controller = read_controller(run=run)
    places = read_places(config, now, run=run)
    qos = read_qos(config, now, run=run)
    policy = config.policy
    problems = limits.check(
        controller.settings,
        places,
        qos,
        mode_checks=policy.mode in CHECKED_MODES and policy.enforce == "on",
        bank_config=config.path,
    )
    return Found(
        config=config, controller=controller, places=places, problems=tuple(problems), qos=qos
    )


def run(args: argparse.Namespace, config_path: str) -> int:
    """One of the three; the exit status.

    :raises BankingError: what was needed could not be had.
    """
    from slurm_banking import config as configuration
    from slurm_banking.cli.program import NO, OK, UNAVAILABLE, USAGE, CommandError, ask_relay
    from slurm_banking.relay.daemon import become_slurm_user

    try:
        config = configuration.load(config_path, in_slurmctld=True)
    except ConfigError as error:
        raise CommandError(str(error), UNAVAILABLE) from None
    given = _typed_rate(args.min_per_su)
    if args.min_per_su is not None and given is None:
        raise CommandError(
            f"--min-per-su {args.min_per_su!r}: expected a number above 0, such as 60", USAGE
        )
    if args.action == "verify":
        found = look(config)
        _print(args, _verified(found), lambda: verified(found.problems))
        return OK if found.safe else NO
    if os.geteuid() == 0:
        become_slurm_user(config)
    found = look(config)
    rate = limits.exchange(found.places, found.qos)
    if given is not None:
        rate = limits.Rate(min_per_su=given, loose=None)
    if rate is None:
        _print(args, _verified(found), lambda: verified(found.problems))
        raise CommandError("no limit can follow these prices; see: slurm-banking limits verify", NO)
    cluster = found.controller.cluster
    path = os.path.join(config.ledger.state_dir, FILE_NAME)
    ours = read_ours(path, cluster)
    associations = read_associations()
    balances, away = read_balances(lambda asked: ask_relay(args, asked), associations, config)
    # What started or ended while the relay was asked is in one of the two looks.
    accounts = widest(associations.accounts, read_associations().accounts)
    steps = limits.plan(
        accounts,
        balances,
        rate,
        ours,
        take_over=args.take_over,
        overdraft_csu=config.policy.overdraft_csu,
        lien_share=config.policy.lien_share,
    )
    unknown = sorted(set(args.take_over) - {step.account for step in steps})
    if unknown:
        raise CommandError(f"--take-over {unknown[0]}: Slurm has no such account", USAGE)
    todo = [step for step in steps if step.command(cluster) is not None]
    shown = {
        **_verified(found),
        "min_per_su": str(rate.min_per_su),
        "loose": None if rate.loose is None else f"{float(rate.loose):.6g}",
        "bank_away_since": away,
        "accounts": [asdict(step) for step in steps],
        "commands": [list(step.command(cluster) or ()) for step in todo],
        "applied": False,
    }
    if args.action == "plan":
        _print(args, shown, lambda: planned(found.problems, rate, steps, cluster))
        return OK
    if not args.json:
        _print(args, shown, lambda: planned(found.problems, rate, steps, cluster))
    if not found.safe and not args.anyway:
        if args.json:
            _print(args, shown, list)
        raise CommandError("nothing is set: these limits would not hold (--anyway sets them)", NO)
    if todo and not args.yes and not _agreed(len(todo)):
        raise CommandError("nothing is set", NO)
    apply(steps, cluster, path, ours)
    if args.json:
        _print(args, {**shown, "applied": True}, list)
    elif todo:
        print(f"{len(todo)} limit(s) set")
    return OK


def apply(
    steps: Sequence[limits.Step],
    cluster: str,
    path: str,
    ours: Mapping[str, Sequence[int]],
    *,
    run: Runner = commands.run,
) -> None:
    """Run the commands. What is ours is written before, old and new, so that no crash leaves a limit without owner.

    :raises BankingError: one of them failed; those before it stay.
    """
    kept = {step.account: list(ours.get(step.account, ())) for step in steps}
    todo = [(step, step.command(cluster)) for step in steps]
    for step, command in todo:
        if command is not None and step.limit_min is not None:
            kept[step.account] = sorted({*kept[step.account], step.limit_min})
    write_ours(path, cluster, {name: found for name, found in kept.items() if found})
    for _, command in todo:
        if command is not None:
            run(list(command))
    for step, command in todo:
        if command is not None or step.limit_min is None:
            kept[step.account] = [] if step.limit_min is None else [step.limit_min]
    write_ours(path, cluster, {name: found for name, found in kept.items() if found})


def _typed_rate(typed: Optional[str]) -> Optional[Fraction]:
    if typed is None or re.fullmatch(r"\d{1,9}(\.\d{1,9})?", typed) is None:
        return None
    return Fraction(typed) or None


def _agreed(count: int) -> bool:
    from slurm_banking.cli.program import USAGE, CommandError

    if not sys.stdin.isatty():
        raise CommandError("apply: expected --yes where nobody can be asked", USAGE)
    answer = input(f"Set {count} limit(s) in Slurm? [y/N] ")
    return answer.strip().lower() in ("y", "yes")


# -- what is shown ------------------------------------------------------------------------------------------------------


def _print(
    args: argparse.Namespace, answer: Mapping[str, Any], lines: Callable[[], List[str]]
) -> None:
    if args.json:
        print(json.dumps(answer, indent=2, sort_keys=True))
    else:
        print("\n".join(plain_line(line) for line in lines()), flush=True)


def plain_line(line: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in line)


def _verified(found: Found) -> Dict[str, Any]:
    return {"safe": found.safe, "problems": [asdict(problem) for problem in found.problems]}


def verified(problems: Sequence[limits.Problem]) -> List[str]:
    lines = []
    for problem in problems:
        lines.append(f"{'UNSAFE' if problem.refuse else 'note'}: {problem.what}: {problem.why}")
        if problem.line:
            lines.append(f"  {problem.line}")
    if not any(problem.refuse for problem in problems):
        lines.append("safe: limits of billing-minutes hold on this cluster")
    return lines


def planned(
    problems: Sequence[limits.Problem],
    rate: limits.Rate,
    steps: Sequence[limits.Step],
    cluster: str,
) -> List[str]:
    loose = "; how far a limit is from the balance where jobs are dearer cannot be said"
    if rate.loose is not None:
        loose = (
            " everywhere"
            if rate.loose == 1
            else f" in the cheapest place; in the dearest up to {float(rate.loose):.4g} times a balance can be used"
        )
    lines = [f"an SU is {float(rate.min_per_su):.6g} billing-minutes{loose}", ""]
    lines += table(
        ["account", "left", "used", "running", "limit now", "limit", "", ""],
        [
            [
                step.account,
                "-" if step.left_csu is None else format_su(step.left_csu),
                str(step.used_min),
                str(step.running_min),
                _limit(step.before_min),
                _limit(step.limit_min),
                step.action,
                step.why,
            ]
            for step in steps
        ],
        right="-rrrrr--",
    )
    told = [problem for problem in problems if problem.refuse]
    if told:
        lines += ["", *verified(told)]
    commands_ = [step.command(cluster) for step in steps]
    todo = [shlex.join(command) for command in commands_ if command is not None]
    return lines + ["", *(todo or ["Nothing is to be changed."])]


def _limit(minutes: Optional[int]) -> str:
    return "none" if minutes is None else str(minutes)
