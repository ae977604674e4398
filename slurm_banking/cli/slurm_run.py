# SPDX-License-Identifier: BSD-3-Clause
"""What the verbs of ``slurm-banking slurm`` do."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from slurm_banking.cli import render
from slurm_banking.cli.program import (
    NO,
    OK,
    USAGE,
    CommandError,
    _show,
    ask_relay,
)
from slurm_banking.cli.sbatch import MAX_SCRIPT_BYTES, OptionError
from slurm_banking.cli.text import local, minutes, table
from slurm_banking.errors import BankingError
from slurm_banking.slurm import batch
from slurm_banking.slurm.everyday import JobRefused, Quote, Slurm, Submission, connect
from slurm_banking.slurm.rest import Node, Ping, QueueJob, RestRefused

Job = Union[batch.Batch, Mapping[str, Any]]


def run(args: argparse.Namespace) -> int:
    """One of the verbs; the exit status.

    :raises BankingError: no slurmrestd, no token, or no answer.
    """
    verbs: Mapping[str, Callable[[argparse.Namespace, Slurm], int]] = {
        "ping": _ping,
        "diag": _diag,
        "nodes": _nodes,
        "jobs": _jobs,
        "submit": _submit,
        "cancel": _cancel,
    }
    with connect(
        args.url,
        user=args.as_user,
        token_file=args.token_file,
        config=args.config,
        relay=args.socket,
        ask=lambda request: ask_relay(args, request),
    ) as slurm:
        try:
            return verbs[args.verb](args, slurm)
        except OptionError as error:
            raise CommandError(str(error), USAGE) from None
        except RestRefused as error:
            raise CommandError(str(error), NO) from None


def _ping(args: argparse.Namespace, slurm: Slurm) -> int:
    found = slurm.ping()
    _show(args, {"pings": [asdict(ping) for ping in found]}, lambda: pings(found))
    return OK if any(ping.up for ping in found) else NO


def pings(found: Sequence[Ping]) -> List[str]:
    return [
        f"slurmctld ({ping.mode}) at {ping.host} is {'UP' if ping.up else 'DOWN'}" for ping in found
    ]


def _diag(args: argparse.Namespace, slurm: Slurm) -> int:
    found = slurm.diag()
    plain = [
        [name, str(value)] for name, value in sorted(found.items()) if isinstance(value, (int, str))
    ]
    _show(args, dict(found), lambda: table(["figure", "value"], plain, right="-r"))
    return OK


def _nodes(args: argparse.Namespace, slurm: Slurm) -> int:
    found = slurm.nodes()
    _show(args, {"nodes": [asdict(node) for node in found]}, lambda: nodes(found))
    return OK


def nodes(found: Sequence[Node]) -> List[str]:
    def of(part: Optional[int], whole: int) -> str:
        return str(whole) if part is None else f"{part}/{whole}"

    rows = [
        [
            node.name,
            "+".join(node.states).lower(),
            of(node.cpus_allocated, node.cpus),
            of(node.memory_allocated_mb, node.memory_mb),
            node.gres,
            ",".join(node.partitions),
            node.reason,
        ]
        for node in found
    ]
    return table(
        ["node", "state", "CPUs", "MB", "GRES", "partitions", "reason"], rows, right="--rr"
    )


def _jobs(args: argparse.Namespace, slurm: Slurm) -> int:
    found: Tuple[QueueJob, ...]
    if args.job is not None:
        found = slurm.client.job(args.job)
        found = tuple(job for job in found if args.of_user in (None, job.user_name))
    else:
        found = slurm.jobs(args.of_user)
    shown = [{**asdict(job), "tres": str(job.tres)} for job in found]
    _show(args, {"jobs": shown}, lambda: jobs(found))
    if args.job is not None and not found:
        raise CommandError(f"job {args.job}: slurmctld does not know it, or does not show it", NO)
    return OK


def jobs(found: Sequence[QueueJob]) -> List[str]:
    if not found:
        return ["No jobs."]
    rows = [
        [
            _name(job),
            job.name,
            job.user_name,
            job.account,
            job.partition,
            job.state.lower(),
            local(job.start_time),
            minutes(job.time_limit_min),
            "-" if job.cpus is None else str(job.cpus),
            job.nodes or job.reason,
        ]
        for job in found
    ]
    head = [
        "job",
        "name",
        "user",
        "account",
        "partition",
        "state",
        "start",
        "limit",
        "CPUs",
        "nodes or reason",
    ]
    return table(head, rows, right="-------rr-")


def _name(job: QueueJob) -> str:
    if job.array_job_id is not None and job.array_task_id is not None:
        return f"{job.array_job_id}_{job.array_task_id}"
    if job.array_job_id is not None and job.array_tasks:
        return f"{job.array_job_id}_[{job.array_tasks}]"
    return str(job.job_id)


def _cancel(args: argparse.Namespace, slurm: Slurm) -> int:
    done: List[int] = []
    refused: Dict[str, str] = {}
    for job_id in args.job:
        try:
            slurm.cancel(job_id, args.signal)
            done.append(job_id)
        except RestRefused as error:
            refused[str(job_id)] = str(error)
    what = "cancelled" if args.signal is None else f"signalled with {args.signal}"
    if done or args.json:
        _show(
            args,
            {"done": done, "refused": refused},
            lambda: [f"job {job_id}: {what}" for job_id in done],
        )
    for job, text in refused.items():
        if not args.json:
            print(f"slurm-banking: error: job {job}: {text}", file=sys.stderr)
    return NO if refused else OK


# -- submit -------------------------------------------------------------------------------------------------------------


def read(args: argparse.Namespace) -> Job:
    """The job that is asked for.

    :raises OptionError: it cannot be read.
    """
    text = _contents(args.script)
    words = [
        f"--{long}={value}" if value else f"--{long}"
        for long, value in (
            (name, getattr(args, batch.dest(name)))
            for name in (*(option.long for option in batch.OPTIONS), "export")
        )
        if value is not None
    ]
    path = "stdin" if args.script == "-" else args.script
    if not text.lstrip().startswith("{"):
        return batch.read(text, path=path, words=words)
    if words:
        raise OptionError(f"{words[0]}: options go with a script; a JSON job has them in itself")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(
            f"{path}: neither a script (it begins with #!) nor JSON: {error}"
        ) from None
    try:
        return batch.complete(body)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from None


def _contents(path: str) -> str:
    try:
        if path == "-":
            content = sys.stdin.buffer.read(MAX_SCRIPT_BYTES + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(MAX_SCRIPT_BYTES + 1)
    except OSError as error:
        raise OptionError(f"{path}: {error.strerror}") from None
    if len(content) > MAX_SCRIPT_BYTES:
        raise OptionError(f"{path}: expected at most {MAX_SCRIPT_BYTES} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise OptionError(f"{path}: expected UTF-8: slurmrestd takes nothing else") from None


def _submit(args: argparse.Namespace, slurm: Slurm) -> int:
    job = read(args)
    quote: Optional[Quote] = None
    why_not = ""
    try:
        quote = slurm.quote_of(job)
    except BankingError as error:
        why_not = str(error)
    if not args.json:
        told = render.quote(quote.answer) if quote is not None else [f"No estimate: {why_not}"]
        _show(args, {}, lambda: told)
    answer: Dict[str, Any] = {
        "quote": None if quote is None else dict(quote.answer),
        "no_quote": why_not or None,
        "job_id": None,
    }
    try:
        taken = slurm.submit_read(job)
    except JobRefused as error:
        if args.json:
            refused = {
                "error": str(error).split("\n")[0],
                "code": error.code,
                "reason": error.reason,
            }
            _show(args, {**answer, "refused": refused}, list)
            return NO
        # What the bank has to say against it was shown a moment ago.
        shown = quote is not None and error.reason == quote.message
        raise CommandError(str(error).split("\n")[0] if shown else str(error), NO) from None
    answer.update(
        job_id=taken.job_id,
        message=taken.message,
        problems=[asdict(problem) for problem in taken.problems],
    )
    _show(args, answer, lambda: submitted(taken, quote is None))
    return OK


def submitted(taken: Submission, with_message: bool) -> List[str]:
    lines = taken.message.strip().split("\n") if with_message and taken.message.strip() else []
    lines += [f"note: {problem}" for problem in taken.problems]
    return [*lines, f"Submitted batch job {taken.job_id}"]
