# SPDX-License-Identifier: BSD-3-Clause
"""Balances as limits in Slurm: what they let through, what they leave alone, and when they would not hold."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_banking import limits
from slurm_banking.allocation import _with_billing
from slurm_banking.boundary.convert import billing_weights
from slurm_banking.cli import limits_apply
from slurm_banking.errors import BankingError, SlurmUnavailable
from slurm_banking.limits import Account, Balance, Place, Qos, Rate
from slurm_banking.prices import Rates
from slurm_banking.records import FundsKind
from tests.builders import a_partition

CPU = Rates(cpu=Decimal(1))
NORMAL = Qos(name="normal", multiplier=Decimal(1))

#: The part of ``scontrol show config`` that matters, of a cluster on which limits hold.
SAFE: Mapping[str, str] = {
    "AccountingStorageEnforce": "associations,limits,safe",
    "AccountingStorageTRES": "cpu,mem,energy,node,billing,fs/disk,vmem,pages",
    "PriorityType": "priority/multifactor",
    "PriorityDecayHalfLife": "00:00:00",
    "PriorityUsageResetPeriod": "NONE",
}


def place(
    rates: Rates | None = CPU, weights: str = "", name: str = "main", **options: object
) -> Place:
    return Place(partition=name, rates=rates, weights=billing_weights(weights), **options)  # type: ignore[arg-type]


# -- what an SU is in billing-minutes -----------------------------------------------------------------------------------

prices = st.sampled_from([Decimal(word) for word in ("0", "0.25", "1", "2", "7.5")])
weights = st.sampled_from(["0", "0.25", "1", "2", "3.5", "10"])


@settings(max_examples=400)
@given(
    cpu=prices, mem=prices, node=prices, gpu=prices, a100=prices, billing=st.sampled_from(["0", "0.5", "3"]),
    combine=st.sampled_from(["sum", "max"]), max_tres=st.booleans(),
    words=st.tuples(weights, weights, weights, weights, weights),
    job=st.tuples(st.integers(1, 64), st.integers(0, 200_000), st.integers(1, 4), st.integers(0, 8), st.integers(0, 8)),
)  # fmt: skip
def test_the_span_of_a_partition_holds_for_every_job_in_it(
    cpu: Decimal, mem: Decimal, node: Decimal, gpu: Decimal, a100: Decimal, billing: str, combine: str,
    max_tres: bool, words: tuple[str, ...], job: tuple[int, ...],
) -> None:  # fmt: skip
    rates = Rates(
        cpu=cpu, mem_gb=mem, node=node, gpu={"v100": gpu, "a100": a100}, billing=Decimal(billing), combine=combine
    )  # fmt: skip
    text = "CPU={},Mem={}G,Node={},GRES/gpu={},GRES/gpu:a100={}".format(*words)
    partition = a_partition(billing_weights=billing_weights(text), billing_max=max_tres)
    cpus, memory_mb, nodes, v100s, a100s = job
    gpus = tuple(pair for pair in (("a100", a100s), ("v100", v100s)) if pair[1])
    tres = _with_billing(partition, cpus, memory_mb, nodes, gpus)
    span = limits.span(
        rates, partition.billing_weights, max_tres=max_tres, gpu_kinds=("a100", "v100")
    )
    su = Fraction(rates.su_per_hour(tres))
    if tres.billing:
        assert span.least is not None
        assert su >= span.least * tres.billing
    if span.most is not None:
        assert su <= span.most * tres.billing


def test_cpus_at_one_price_are_exact() -> None:
    rate = limits.exchange([place(), place(name="debug")], [NORMAL])
    assert rate == Rate(min_per_su=Fraction(60), loose=Fraction(1))
    assert (rate.minutes(100), rate.minutes(1)) == (60, 1)


def test_weights_in_proportion_to_prices_are_exact() -> None:
    rates = Rates(cpu=Decimal("0.5"), gpu={"a100": Decimal(30)}, mem_gb=Decimal("0.25"))
    text = limits.weights_for(rates, [rates])
    assert text == "CPU=2.0,Mem=1.0G,GRES/gpu:a100=120.0"
    exact = limits.exchange([place(rates, text, gpu_kinds=("a100",))], [NORMAL])
    # A job's billing is cut to a whole number: memory is counted in MB, so three counts as two at worst.
    assert exact == Rate(min_per_su=Fraction(240), loose=Fraction(3, 2))
    whole = Rates(cpu=Decimal("0.5"), gpu={"a100": Decimal(30)})
    text = limits.weights_for(whole, [whole])
    exact = limits.exchange([place(whole, text, gpu_kinds=("a100",))], [NORMAL])
    assert exact == Rate(min_per_su=Fraction(120), loose=Fraction(1))


def test_the_cheapest_place_decides_and_the_dearest_is_told() -> None:
    places = [place(), place(Rates(cpu=Decimal(4)), name="dear"), place(None, name="unlisted")]
    qos = [NORMAL, Qos(name="high", multiplier=Decimal(2))]
    assert limits.exchange(places, qos) == Rate(min_per_su=Fraction(60), loose=Fraction(8))


def test_a_qos_whose_usage_factor_is_its_multiplier_makes_no_difference() -> None:
    qos = [NORMAL, Qos(name="high", multiplier=Decimal(2), usage_factor=Fraction(2)),
           Qos(name="gratis", multiplier=Decimal(0), usage_factor=Fraction(0))]  # fmt: skip
    assert limits.exchange([place()], qos) == Rate(min_per_su=Fraction(60), loose=Fraction(1))


@given(
    price=st.decimals(min_value="0.01", max_value=1000, places=2),
    used=st.integers(0, 10_000), spare_csu=st.integers(0, 100),
    cpus=st.integers(1, 256), limit_min=st.integers(1, 5000), others=st.integers(0, 3000),
)  # fmt: skip
def test_a_limit_never_stops_what_the_bank_would_accept(
    price: Decimal, used: int, spare_csu: int, cpus: int, limit_min: int, others: int
) -> None:
    rate = limits.exchange([place(Rates(cpu=price))], [NORMAL])
    assert rate is not None
    left_csu = math.ceil(Fraction(price) * cpus * limit_min * 100 / 60) + spare_csu
    account = Account(name="astro", parent="", limit_min=None, used_min=used, running_min=others)
    balances = {"astro": Balance(kind=FundsKind.LIMITED, left_csu=left_csu)}
    (step,) = limits.plan([account], balances, rate, {})
    assert step.limit_min is not None
    # Slurm's rule; used and running may come to one more than was seen.
    assert cpus * limit_min + others + 1 <= step.limit_min - used


@given(
    price=st.decimals(min_value="0.01", max_value=1000, places=2),
    left_csu=st.integers(1, 10_000_000),
)
def test_a_limit_at_one_price_lets_through_the_balance_and_two_minutes_at_most(
    price: Decimal, left_csu: int
) -> None:
    rate = limits.exchange([place(Rates(cpu=price))], [NORMAL])
    assert rate is not None
    account = Account(name="astro", parent="root", limit_min=None, used_min=0, running_min=0)
    (step,) = limits.plan(
        [account], {"astro": Balance(kind=FundsKind.LIMITED, left_csu=left_csu)}, rate, {}
    )
    assert step.limit_min is not None
    assert (step.limit_min - 2) * Fraction(price) / 60 <= Fraction(left_csu, 100)


# -- whether it would hold ----------------------------------------------------------------------------------------------


def unsafe(
    changed: Mapping[str, str | None] | None = None,
    places: list[Place] | None = None,
    qos: list[Qos] | None = None,
) -> list[tuple[str, str]]:
    """What is refused, and the line to change."""
    settings = {
        key: value for key, value in {**SAFE, **(changed or {})}.items() if value is not None
    }
    found = limits.check(settings, places or [place()], qos or [NORMAL])
    return [(problem.what, problem.line) for problem in found if problem.refuse]


def test_a_cluster_on_which_limits_hold_has_no_problem() -> None:
    assert unsafe() == []


@pytest.mark.parametrize(
    ("changed", "what", "line"),
    [
        ({"PriorityDecayHalfLife": "7-00:00:00"}, "PriorityDecayHalfLife = 7-00:00:00", "PriorityDecayHalfLife=0 "),
        ({"PriorityDecayHalfLife": "00:01:00"}, "PriorityDecayHalfLife = 00:01:00", "PriorityDecayHalfLife=0 "),
        ({"PriorityUsageResetPeriod": "MONTHLY"}, "PriorityUsageResetPeriod = MONTHLY", "PriorityUsageResetPeriod=NONE"),
        ({"PriorityType": "priority/basic"}, "PriorityType = priority/basic", "PriorityType=priority/multifactor"),
        ({"AccountingStorageEnforce": "associations,limits,qos"}, "AccountingStorageEnforce = associations,limits,qos",
         "AccountingStorageEnforce=associations,limits,qos,safe"),
        ({"AccountingStorageEnforce": "none"}, "AccountingStorageEnforce = none",
         "AccountingStorageEnforce=associations,limits,safe"),
        ({"AccountingStorageTRES": "cpu,mem"}, "AccountingStorageTRES = cpu,mem", "AccountingStorageTRES=cpu,mem,billing"),
    ],
)  # fmt: skip
def test_each_unsafe_setting_is_refused_with_the_line_to_change(
    changed: Mapping[str, str], what: str, line: str
) -> None:
    ((found, to_change),) = unsafe(changed)
    assert found == what
    assert to_change.startswith(f"slurm.conf: {line}")


@pytest.mark.parametrize(
    ("qos", "what", "line"),
    [
        (Qos(name="q", multiplier=Decimal(2), usage_factor=Fraction(2)), "UsageFactor = 2 without the flag UsageFactorSafe",
         "set Flags+=UsageFactorSafe"),
        (Qos(name="q", multiplier=Decimal(1), grp_tres_mins="cpu=5,billing=100"), "GrpTRESMins = cpu=5,billing=100",
         "set GrpTRESMins=billing=-1"),
        (Qos(name="q", multiplier=Decimal(0)), "UsageFactor = 1", "set UsageFactor=0 Flags+=UsageFactorSafe"),
        (Qos(name="q", multiplier=Decimal(1), usage_factor=Fraction(0), flags=("UsageFactorSafe",)), "UsageFactor = 0",
         "set UsageFactor=1"),
    ],
)  # fmt: skip
def test_each_unsafe_qos_is_refused_with_the_command_that_mends_it(
    qos: Qos, what: str, line: str
) -> None:
    found = unsafe(qos=[NORMAL, qos])
    assert (f"QOS q: {what}", f"sacctmgr -i modify qos where name=q {line}") in found


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (place(Rates(), name="free"), 'TRESBillingWeights="CPU=0.0"'),
        (place(Rates(cpu=Decimal(1), gpu={"": Decimal(20)}), gpu_kinds=("a100",)), 'TRESBillingWeights="CPU=1.0,GRES/gpu=20.0"'),
        (place(CPU, "CPU=1.0,Mem=0.25G"), 'TRESBillingWeights="CPU=1.0"'),
        (place(CPU, "CPU=0.5"), 'TRESBillingWeights="CPU=1.0"'),
    ],
    ids=["free_but_counted", "costs_but_not_counted", "memory_counted_but_free", "one_cpu_counts_as_nothing"],
)  # fmt: skip
def test_each_partition_where_billing_and_price_part_is_refused_with_its_weights(
    bad: Place, line: str
) -> None:
    ((what, to_change),) = unsafe(places=[place(name="main2"), bad])
    assert what.startswith(f"partition {bad.partition}: ")
    assert to_change == f"slurm.conf: PartitionName={bad.partition} ... {line}"


def test_the_weights_that_are_proposed_are_accepted() -> None:
    gpu = Rates(cpu=Decimal("0.1"), gpu={"": Decimal("3.33")})
    proposed = limits.weights_for(gpu, [CPU, gpu])
    places = [
        place(weights=limits.weights_for(CPU, [CPU, gpu])),
        place(gpu, proposed, name="gpu", gpu_kinds=("",)),
    ]
    assert unsafe(places=places) == []
    rate = limits.exchange(places, [NORMAL])
    assert rate is not None and rate.loose == 1


def test_a_bank_that_refuses_nothing_is_not_mirrored() -> None:
    found = limits.check(SAFE, [place()], [NORMAL], mode_checks=False)
    assert [problem.what for problem in found if problem.refuse] == ["[Policy] mode, enforce"]


def test_loose_limits_are_told_and_not_refused() -> None:
    found = limits.check(SAFE, [place(), place(Rates(cpu=Decimal(3)), name="dear")], [NORMAL])
    (note,) = found
    assert not note.refuse
    assert "up to 3 times" in note.what
    assert 'main "CPU=1.0", dear "CPU=3.0"' in note.line


# -- the plan -----------------------------------------------------------------------------------------------------------

RATE = Rate(min_per_su=Fraction(60), loose=Fraction(1))
ASTRO = Account(name="astro", parent="root", limit_min=None, used_min=100, running_min=30)
TEN_SU = Balance(kind=FundsKind.LIMITED, left_csu=1000)


def step(account: Account = ASTRO, balance: Balance = TEN_SU, **options: object) -> limits.Step:
    ours = options.pop("ours", {})
    (found,) = limits.plan([account], {account.name: balance}, RATE, ours, **options)  # type: ignore[arg-type]
    return found


def test_a_limit_is_what_was_used_and_runs_and_is_left() -> None:
    assert step().limit_min == 100 + 30 + 600 + 1
    assert step().command("demo") == (
        "sacctmgr", "-i", "modify", "account", "where", "name=astro", "cluster=demo", "set", "GrpTRESMins=billing=731",
    )  # fmt: skip


def test_an_overdraft_and_a_share_of_the_estimate_widen_the_limit() -> None:
    assert step(overdraft_csu=500).limit_min == 130 + 900 + 1
    assert step(lien_share=Decimal("0.5")).limit_min == 130 + 1200 + 1


def test_an_account_with_nothing_left_may_finish_what_runs_and_start_nothing() -> None:
    assert step(balance=Balance(kind=FundsKind.LIMITED, left_csu=-5)).limit_min == 130
    assert (
        step(balance=Balance(kind=FundsKind.LIMITED, left_csu=500, refused=True)).limit_min == 130
    )


@pytest.mark.parametrize(
    "balance",
    [Balance(kind=FundsKind.UNLIMITED), Balance(kind=FundsKind.NOT_BANKED), Balance(kind=FundsKind.LIMITED, exempt=True)],
)  # fmt: skip
def test_an_account_that_is_not_limited_gets_no_limit_and_ours_is_lifted(balance: Balance) -> None:
    assert step(balance=balance).action == limits.KEEP
    limited = dataclasses.replace(ASTRO, limit_min=500)
    lifted = step(limited, balance, ours={"astro": [500]})
    assert (lifted.action, lifted.limit_min) == (limits.LIFT, None)
    assert (lifted.command("demo") or ())[-1] == "GrpTRESMins=billing=-1"


def test_a_limit_of_somebody_else_is_left_alone_unless_it_is_taken_over() -> None:
    theirs = dataclasses.replace(ASTRO, limit_min=500)
    for ours in ({}, {"astro": [499]}):
        left = step(theirs, ours=ours)
        assert (left.action, left.limit_min, left.command("demo")) == (limits.LEAVE, 500, None)
    assert step(theirs, take_over=["astro"]).limit_min == 731
    assert step(theirs, ours={"astro": [400, 500]}).limit_min == 731


def test_what_the_bank_never_said_changes_nothing() -> None:
    for balance in (Balance(kind=None), Balance(kind=FundsKind.UNKNOWN)):
        limited = dataclasses.replace(ASTRO, limit_min=500)
        kept = step(limited, balance, ours={"astro": [500]})
        assert (kept.action, kept.limit_min) == (limits.KEEP, 500)
        assert step(balance=balance).command("demo") is None


def test_rounding_alone_writes_no_limit() -> None:
    for before, action in (
        (731, limits.KEEP),
        (734, limits.KEEP),
        (735, limits.SET),
        (730, limits.SET),
    ):
        limited = dataclasses.replace(ASTRO, limit_min=before)
        assert step(limited, ours={"astro": [before]}).action == action


def test_an_account_pays_for_its_sub_accounts_in_slurm_so_their_funds_count_in_its_limit() -> None:
    lab = Account(name="lab", parent="astro", limit_min=None, used_min=10, running_min=0)
    steps = limits.plan([ASTRO, lab], {"astro": TEN_SU, "lab": TEN_SU}, RATE, {})
    assert {one.account: one.limit_min for one in steps} == {
        "astro": 130 + 1200 + 1,
        "lab": 10 + 600 + 1,
    }
    free = Balance(kind=FundsKind.UNLIMITED)
    steps = limits.plan([ASTRO, lab], {"astro": TEN_SU, "lab": free}, RATE, {})
    assert [one.limit_min for one in steps] == [None, None]


def test_the_root_account_is_never_touched() -> None:
    assert limits.plan([dataclasses.replace(ASTRO, name="root", parent="")], {}, RATE, {}) == []


# -- what Slurm's commands print ----------------------------------------------------------------------------------------

ASSOC = """\
Current Association Manager state
Association Records
ClusterName=demo Account=root UserName= Partition= Priority=0 ID=1 SharesRaw/Norm/Level/Factor=1/0.00/2/0.00 UsageRaw/Norm/Efctv=40.00/0.00/0.00 ParentAccount= Lft=1 DefAssoc=No GrpJobs=N(0) GrpJobsAccrue=N(0) GrpSubmitJobs=N(0) GrpWall=N(1.00) GrpTRES=cpu=N(0),mem=N(0),billing=N(0) GrpTRESMins=cpu=N(4),mem=N(0),energy=N(0),node=N(0),billing=N(4),fs/disk=N(0) GrpTRESRunMins=cpu=N(0),billing=N(0) MaxJobs= MaxTRESPJ= MinPrioThresh=
ClusterName=demo Account=astro UserName= Partition= Priority=0 ID=2 SharesRaw/Norm/Level/Factor=1/0.00/2/0.00 UsageRaw/Norm/Efctv=40.00/0.00/0.00 ParentAccount=root(1) Lft=2 DefAssoc=No GrpJobs=N(0) GrpJobsAccrue=N(0) GrpSubmitJobs=N(0) GrpWall=N(1.00) GrpTRES=cpu=N(0) GrpTRESMins=cpu=N(4),mem=N(0),billing=731(4) GrpTRESRunMins=cpu=N(30),billing=N(29) MaxJobs=
ClusterName=demo Account=astro UserName=alice(1001) Partition= Priority=0 ID=3 SharesRaw/Norm/Level/Factor=1/0.00/2/0.00 UsageRaw/Norm/Efctv=40.00/0.00/0.00 ParentAccount= Lft=3 DefAssoc=Yes GrpJobs=N(0) GrpTRESMins=cpu=N(4),billing=9(4) GrpTRESRunMins=billing=N(3) MaxJobs=
"""


def test_limits_and_usage_are_read_from_slurmctld_s_own_table() -> None:
    found = limits_apply.read_associations(run=lambda argv: ASSOC)
    assert found.accounts == (
        Account(name="root", parent="", limit_min=None, used_min=4, running_min=0),
        Account(name="astro", parent="root", limit_min=731, used_min=4, running_min=29),
    )
    assert found.users == {"astro": 1001}


def test_a_job_that_starts_or_ends_while_the_bank_is_asked_narrows_no_limit() -> None:
    busy = dataclasses.replace(ASTRO, used_min=100, running_min=50)
    idle = dataclasses.replace(ASTRO, used_min=110, running_min=0)
    for looks in ((busy, idle), (idle, busy)):
        assert limits_apply.widest([looks[0]], [looks[1]]) == (busy,)
    limited = dataclasses.replace(idle, limit_min=5)  # somebody set it meanwhile: theirs is seen
    assert limits_apply.widest([busy], [limited]) == (limited,)
    assert limits_apply.widest([], [idle]) == (idle,)


@pytest.mark.parametrize("answer", ["", "No associations currently cached in Slurm.\n", ASSOC.replace("billing=", "bill=")])  # fmt: skip
def test_an_answer_that_is_none_is_an_error(answer: str) -> None:
    with pytest.raises(SlurmUnavailable):
        limits_apply.read_associations(run=lambda argv: answer)


# -- what is ours -------------------------------------------------------------------------------------------------------


def test_a_limit_is_known_as_ours_whether_or_not_the_command_came_through(tmp_path: Path) -> None:
    path = str(tmp_path / limits_apply.FILE_NAME)
    before = dataclasses.replace(ASTRO, limit_min=500)
    found = step(before, ours={"astro": [500]})

    def fails(argv: list[str]) -> str:
        assert limits_apply.read_ours(path, "demo") == {"astro": [500, 731]}
        raise SlurmUnavailable("sacctmgr: no")

    with pytest.raises(SlurmUnavailable):
        limits_apply.apply([found], "demo", path, {"astro": [500]}, run=fails)
    assert limits_apply.read_ours(path, "demo") == {"astro": [500, 731]}
    ran: list[list[str]] = []
    limits_apply.apply(
        [found], "demo", path, {"astro": [500, 731]}, run=lambda argv: ran.append(argv) or ""
    )  # type: ignore[func-returns-value]
    assert [argv[-1] for argv in ran] == ["GrpTRESMins=billing=731"]
    assert limits_apply.read_ours(path, "demo") == {"astro": [731]}
    assert (tmp_path / limits_apply.FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_a_record_of_another_cluster_or_none_at_all_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / limits_apply.FILE_NAME
    assert limits_apply.read_ours(str(path), "demo") == {}
    limits_apply.write_ours(str(path), "other", {"astro": [1]})
    with pytest.raises(BankingError, match="of cluster other, expected demo"):
        limits_apply.read_ours(str(path), "demo")
    path.write_text(json.dumps([1]))
    with pytest.raises(BankingError, match="cannot be read"):
        limits_apply.read_ours(str(path), "demo")


# -- what is shown ------------------------------------------------------------------------------------------------------


def test_a_plan_shows_its_numbers_and_the_commands() -> None:
    steps = [step(), step(dataclasses.replace(ASTRO, name="bio", limit_min=5), ours={})]
    lines = limits_apply.planned([], RATE, steps, "demo")
    assert lines[0] == "an SU is 60 billing-minutes everywhere"
    assert lines[2].split() == ["account", "left", "used", "running", "limit", "now", "limit"]
    assert lines[3].split() == ["astro", "10.00", "100", "30", "none", "731", "set"]
    assert lines[4].split()[:7] == ["bio", "10.00", "100", "30", "5", "5", "leave"]
    assert lines[-1] == (
        "sacctmgr -i modify account where name=astro cluster=demo set GrpTRESMins=billing=731"
    )
    dear = Rate(min_per_su=Fraction(60), loose=Fraction(4))
    assert "in the dearest up to 4 times" in limits_apply.planned([], dear, [], "demo")[0]
    unbounded = limits_apply.planned([], Rate(min_per_su=Fraction(60), loose=None), [], "demo")
    assert "cannot be said" in unbounded[0]
    assert unbounded[-1] == "Nothing is to be changed."
