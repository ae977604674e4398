# SPDX-License-Identifier: BSD-3-Clause
"""The entry points that the C shims call. What they raise ends here: the reply stays undecided, and one line is logged.

``attach`` is called once for each cffi module (job_submit's and jobcomp's); both share one engine.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, Callable, Optional

from slurm_banking.boundary import convert
from slurm_banking.boundary.engine import DEBUG, ERROR, INFO, Engine
from slurm_banking.boundary.starter import start_relay
from slurm_banking.config import Config
from slurm_banking.counters import HOOKS
from slurm_banking.errors import BankingError
from slurm_banking.records import Outcome, Reason, Verdict

_engine: Optional[Engine] = None
_engine_lock = threading.Lock()

#: Makes the engine as the host described it; None: banking_py_start was not called.
_make_engine: Optional[Callable[[], Engine]] = None
_why_not = "banking_py_start was not called"
_tried_at = 0.0

#: Seconds between two tries to start after a start that failed.
RETRY_S = 1.0


class NotReady(BankingError):
    """There is no engine; ``str()`` says why. The shim logs it, at most once a minute."""


def _current_engine() -> Engine:
    """The engine; one whose configuration was mended since slurmctld started is made now.

    :raises NotReady: it cannot be made.
    """
    global _engine, _why_not, _tried_at
    if _engine is not None:
        return _engine
    with _engine_lock:
        if _engine is None:
            now = time.monotonic()
            if _make_engine is None or (_tried_at and now - _tried_at < RETRY_S):
                raise NotReady(_why_not)
            _tried_at = now
            try:
                _engine = _make_engine()
            except BankingError as error:
                _why_not = str(error)
                raise NotReady(_why_not) from None
        return _engine


def attach(ffi: Any, lib: Any) -> None:
    """Define the entry points that this cffi module declares."""

    def log(level: int, line: str) -> None:
        lib.banking_log(level, line.encode("utf-8", "backslashreplace").replace(b"\n", b" | "))

    def guarded(name: str, work: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        hook = name[len("banking_py_") :]
        counted = hook in HOOKS

        def entry(struct: Any, reply: Any) -> None:
            started = time.perf_counter()
            failed = False
            try:
                work(struct, reply)
            except NotReady as error:
                put(reply.message, str(error), lib.BANKING_MESSAGE_SIZE)
            except Exception as error:  # the last frame before C: nothing may pass
                failed = True
                if not isinstance(error, BankingError):
                    log(ERROR, f"plugin_error in={name} where={_where(error)} error={error!r}")
                else:
                    log(ERROR, f"plugin_error in={name} problem={error}")
                reply.verdict = lib.BANKING_UNDECIDED
            elapsed_us = min(int((time.perf_counter() - started) * 1e6), 2**31 - 1)
            reply.elapsed_us = elapsed_us
            if counted and _engine is not None:
                _engine.counters.took(hook, elapsed_us, failed=failed)

        return entry

    def put(field: Any, value: str, size: int) -> None:
        encoded = value.encode("utf-8", "surrogateescape").replace(b"\0", b"?")[: size - 1]
        ffi.memmove(field, encoded + b"\0", len(encoded) + 1)

    def answer(reply: Any, verdict: Verdict) -> None:
        put(reply.message, verdict.message, lib.BANKING_MESSAGE_SIZE)
        put(reply.token, verdict.token, lib.BANKING_TOKEN_SIZE)
        # Undecided was settled by [Policy] undecided: what is not refused here is accepted.
        if verdict.outcome is not Outcome.REFUSED:
            reply.verdict = lib.BANKING_ACCEPTED
            reply.tasks = 0 if verdict.estimate is None else min(verdict.estimate.tasks, 2**31 - 1)
        elif verdict.reason is Reason.QUEUE_FULL:
            reply.verdict = lib.BANKING_NO_ROOM
        else:
            reply.verdict = lib.BANKING_REFUSED

    def complain(line: str) -> None:
        log(ERROR, line)

    def start(host: Any, reply: Any) -> None:
        global _make_engine, _tried_at
        plugin = convert.text(ffi, host.plugin)
        config_path = convert.text(ffi, host.config_path)
        cluster = convert.text(ffi, host.cluster)
        slurm_user_id = int(host.slurm_user_id)

        def make() -> Engine:
            return Engine(
                config_path=config_path, cluster=cluster, slurm_user_id=slurm_user_id, log=log
            )

        _make_engine = make
        _tried_at = 0.0
        config = _current_engine().config()
        if _starts_relay(config, plugin):
            problem = start_relay(config)
            if problem is not None:
                log(ERROR, problem)
        # For whoever audits what slurmctld carries: its log at debug level names it.
        log(DEBUG, f"modules {','.join(sorted(sys.modules))}")
        log(
            INFO,
            f"ready plugin={plugin} mode={config.policy.mode.value} enforce={config.policy.enforce} "
            f"prices={_current_engine().prices(config).version} state_dir={config.ledger.state_dir}",
        )
        reply.verdict = lib.BANKING_ACCEPTED

    def submit(struct: Any, reply: Any) -> None:
        current = _current_engine()
        submission = convert.submission(ffi, struct, current.cluster, complain=complain)
        answer(reply, current.submit(submission))

    def update(struct: Any, reply: Any) -> None:
        current = _current_engine()
        wanted = convert.job_update(ffi, struct, current.cluster, complain=complain)
        answer(reply, current.update(wanted))

    def run_ended(struct: Any, reply: Any) -> None:
        current = _current_engine()
        run = convert.run(ffi, struct, current.cluster, ended=True, complain=complain)
        current.run_ended(run)
        reply.verdict = lib.BANKING_ACCEPTED

    def run_started(struct: Any, reply: Any) -> None:
        current = _current_engine()
        run = convert.run(ffi, struct, current.cluster, ended=False, complain=complain)
        current.run_started(run)
        reply.verdict = lib.BANKING_ACCEPTED

    entries = {
        "banking_py_start": start,
        "banking_py_submit": submit,
        "banking_py_update": update,
        "banking_py_run_ended": run_ended,
        "banking_py_run_started": run_started,
    }
    for name, work in entries.items():
        if hasattr(lib, name):
            ffi.def_extern(name=name)(guarded(name, work))


def _starts_relay(config: Config, plugin: str) -> bool:
    """jobcomp is loaded in the acting controller only, job_submit in a backup too, where no relay may run yet."""
    if config.relay.start != "with-slurmctld":
        return False
    return plugin == "jobcomp" or not config.enable.enable_job_complete_plugin


def _where(error: BaseException) -> str:
    """File and line of the innermost frame, as one word."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "?"
    return f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
