# SPDX-License-Identifier: BSD-3-Clause
"""docs/pricing.md says what the code does: every example in it is run here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import pytest

from slurm_banking import charge as charging
from slurm_banking.amounts import format_su
from slurm_banking.cli import sbatch
from slurm_banking.config import Config, load
from slurm_banking.estimate import estimate, format_time_limit
from slurm_banking.records import UNLIMITED, NodeShape, Partition, Run, Segment
from slurm_banking.relay.quote import Facts, submission
from slurm_banking.tres import UNTYPED, parse_tres

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pricing.md"
BLOCKS = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)


def _minutes(text: str) -> int:
    return UNLIMITED if text == "UNLIMITED" else sbatch.time_limit(text)


def _seconds(text: str) -> int:
    hours, minutes, seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds)


def _weights(text: str | None) -> Mapping[str, Decimal] | None:
    if text is None:
        return None
    pairs = (part.split("=") for part in text.split(","))
    return {name.lower(): Decimal(weight.rstrip("G")) for name, weight in pairs}


def _partition(line: str) -> tuple[Partition, bool]:
    values = dict(word.split("=", 1) for word in line.split())
    number = {key: int(value) for key, value in values.items() if value.isdigit()}
    cpus = number["Sockets"] * number["CoresPerSocket"] * number["ThreadsPerCore"]
    gpus = ()
    if "Gres" in values:
        _, kind, count = values["Gres"].split(":")
        gpus = ((kind or UNTYPED, int(count)),)
    shape = NodeShape(
        count=number["Nodes"],
        cpus=cpus,
        sockets=number["Sockets"],
        cores=number["CoresPerSocket"],
        threads=number["ThreadsPerCore"],
        memory_mb=number["RealMemory"],
        gpus=gpus,
    )
    partition = Partition(
        name=values["PartitionName"],
        default_time_min=_minutes(values["DefaultTime"]) if "DefaultTime" in values else None,
        max_time_min=_minutes(values["MaxTime"]),
        exclusive=values.get("OverSubscribe") == "EXCLUSIVE",
        total_cpus=cpus * shape.count,
        total_nodes=shape.count,
        shapes=(shape,),
        def_mem_mb=number.get("DefMemPerCPU"),
        def_mem_per_cpu="DefMemPerCPU" in values,
        max_mem_mb=number.get("MaxMemPerCPU"),
        max_mem_per_cpu="MaxMemPerCPU" in values,
        def_cpus_per_gpu=number.get("DefCpuPerGPU"),
        billing_weights=_weights(values.get("TRESBillingWeights")),
    )
    return partition, "Default" in values


def _facts() -> Facts:
    partitions, default = {}, None
    for kind, _, text in BLOCKS:
        if kind == "nodes":
            for line in text.splitlines():
                partition, is_default = _partition(line)
                partitions[partition.name] = partition
                default = partition.name if is_default else default
    return Facts(cluster="c", partitions=partitions, default_partition=default)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    text = "".join(body for kind, word, body in BLOCKS if (kind, word) == ("toml", " prices"))
    path = tmp_path_factory.mktemp("pricing") / "bank-config.toml"
    path.write_text(text + '[API]\nurl = "https://bank.example.org/api"\n[Policy]\n')
    return load(str(path), in_slurmctld=False)


def _examples() -> list[tuple[str, str]]:
    found = []
    for kind, _, text in BLOCKS:
        if kind == "example":
            lines = text.splitlines()
            assert len(lines) % 2 == 0, text
            found += [(lines[i], lines[i + 1].removeprefix("= ")) for i in range(0, len(lines), 2)]
    return found


def _estimated(config: Config, words: list[str]) -> str:
    # "sbatch OPTIONS" as the command line reads them; "[Policy] KEY=VALUE" words set what the example is about.
    policy = {}
    while words and re.fullmatch(r"\w+=\S+", words[0]):
        key, value = words.pop(0).split("=")
        policy[key] = value
    assert words.pop(0) == "sbatch"
    options = sbatch.request_options(sbatch._parse(words), None, {})
    sub = submission(
        options, account="fc_alpha", associated=True, user_id=1, user_name="u", facts=_facts()
    )
    days = policy.get("unlimited_time")
    cost = estimate(
        sub,
        config.prices,
        unlisted="refuse",
        horizon_min=None if days is None else int(days) * 24 * 60,
        lien_share=Decimal(policy.get("lien_share", "1")),
    )
    said = f"{cost.tres} x {format_time_limit(cost.time_limit_min)}"
    if cost.tasks > 1:
        said += f" x {cost.tasks} tasks"
    if "," in (options.get("partition") or ""):
        said = f"{cost.partition}: {said}"
    said += f": {format_su(cost.cost_csu)} SU"
    if cost.lien_share != 1:
        said += f", {format_su(cost.lien_csu)} SU set aside"
    return said


def _charged(config: Config, words: list[str]) -> str:
    qos = None
    if words[-1].startswith("--qos="):
        qos = words.pop().removeprefix("--qos=")
    state = words.pop()
    partition = words.pop(0)
    parts = " ".join(words).split(" + ")
    segments = tuple(
        Segment(tres=parse_tres(part.split()[0]), seconds=_seconds(part.split()[1]))
        for part in parts
    )
    admin = state == "CANCELLED_BY_ADMIN"
    run = Run(
        cluster="c",
        job_id=1,
        submit_time=1,
        restart_count=0,
        user_id=1,
        account="fc_alpha",
        partition=partition,
        qos=qos,
        state="CANCELLED" if admin else state,
        cancelled_by_admin=admin,
        start_time=1,
        end_time=2,
        elapsed_s=segments[-1].seconds,
        cpus=segments[-1].tres.cpus,
        tres=segments[-1].tres,
        segments=segments if len(segments) > 1 else (),
        started=True,
    )
    price = charging.price_of(run, config.prices)
    assert price is not None
    factor = config.prices.factor(charging.final_state(run))
    return f"{format_su(charging.charge(run, price, factor))} SU"


@pytest.mark.parametrize(("asked", "said"), _examples())
def test_each_example_is_what_the_code_says(config: Config, asked: str, said: str) -> None:
    words = shlex.split(asked)
    if words[0] == "run":
        assert _charged(config, words[1:]) == said
    else:
        assert _estimated(config, words) == said
