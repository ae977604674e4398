# SPDX-License-Identifier: BSD-3-Clause
"""The parser, and one function for each command. Each module is imported when its command runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from slurm_banking import __version__
from slurm_banking.errors import BankingError, ConfigError, RelayUnavailable

OK, NO, USAGE, UNAVAILABLE = 0, 1, 2, 3

#: Seconds that a person waits for the relay.
ASK_S = 12.0

_STATUS_OF: Mapping[str, int] = {
    "bad_request": USAGE,
    "denied": NO,
    "not_found": NO,
    "unavailable": UNAVAILABLE,
    "busy": UNAVAILABLE,
    "internal": UNAVAILABLE,
}


class CommandError(BankingError):
    """One line for stderr, and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def default_config_path() -> str:
    """bank-config.toml beside the slurm.conf in use."""
    slurm_conf = os.environ.get("SLURM_CONF")
    directory = os.path.dirname(slurm_conf) if slurm_conf else "/etc/slurm"
    return os.path.join(directory, "bank-config.toml")


# -- asking the relay -------------------------------------------------------------------------------------------------


def socket_path(args: argparse.Namespace) -> Tuple[str, str]:
    """--socket, or what the configuration says, or the default where it cannot say; and then, why."""
    from slurm_banking.relay import protocol

    if args.socket is not None:
        return str(args.socket), ""
    path = args.config or default_config_path()
    if args.config is None and not os.access(path, os.R_OK):
        what = "may not be read by you" if os.path.exists(path) else "cannot be found"
        return protocol.DEFAULT_SOCKET, f"{path} {what}"
    from slurm_banking import config

    try:
        # Of a token in there nothing is kept: this is a user's process.
        return config.load(path, in_slurmctld=True).relay.socket, ""
    except ConfigError:
        if args.config is not None:
            raise
        # The relay serves on with what it read before; whoever wants to know how it is doing must reach it.
        return protocol.DEFAULT_SOCKET, f"{path} has mistakes (see: slurm-banking check-config)"


def ask_relay(
    args: argparse.Namespace, request: Mapping[str, Any], within_s: float = ASK_S
) -> Dict[str, Any]:
    """:raises CommandError: the relay said no, or nothing."""
    from slurm_banking.relay import client, protocol

    path, assumed = socket_path(args)
    asked = {key: value for key, value in request.items() if value is not None}
    try:
        try:
            # Who owns the directory decides what listens there.
            owner = os.stat(os.path.dirname(path) or ".").st_uid
        except OSError as error:
            raise RelayUnavailable(f"relay {path}: {error.strerror}") from None
        answer = client.ask(
            path,
            asked,
            within_s,
            allowed_owner_uids=(0, owner),
            max_reply_bytes=protocol.MAX_LONG_REPLY_BYTES,
        )
    except RelayUnavailable as error:
        hint = "does the relay run on this host? Only the controller's host has its socket"
        if assumed:
            hint = f"{assumed}, so the default socket was tried; --socket names another. Otherwise: {hint}"
        raise CommandError(f"{error}: {hint}", UNAVAILABLE) from None
    if not answer.get("ok"):
        status = _STATUS_OF.get(str(answer.get("error")), UNAVAILABLE)
        raise CommandError(str(answer.get("message", "the relay refused")), status)
    return answer


def _show(
    args: argparse.Namespace, answer: Mapping[str, Any], lines: Callable[[], List[str]]
) -> None:
    if args.json:
        shown = {key: value for key, value in answer.items() if key != "ok"}
        text = json.dumps(shown, indent=2, sort_keys=True) + "\n"
    else:
        text = "\n".join(lines()) + "\n"
    # A user's name or job in another encoding than the terminal's is no reason to fail.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _time(args: argparse.Namespace, name: str, *, future: bool = False) -> Optional[int]:
    from slurm_banking.cli.text import read_time

    typed = getattr(args, name)
    if typed is None:
        return None
    try:
        return read_time(typed, int(time.time()), future=future)
    except ValueError as error:
        raise CommandError(f"--{name} {error}", USAGE) from None


# -- the commands -----------------------------------------------------------------------------------------------------


def _balance(args: argparse.Namespace) -> int:
    from slurm_banking.cli import render

    answer = ask_relay(args, {"op": "balance", "account": args.account, "user": args.user})
    _show(args, answer, lambda: render.balance(answer))
    return OK if answer["accounts"] else NO


def _statement(args: argparse.Namespace) -> int:
    from slurm_banking.cli import render

    answer = ask_relay(
        args,
        {
            "op": "statement",
            "account": args.account,
            "user": args.user,
            "since": _time(args, "since"),
            "until": _time(args, "until"),
        },
    )
    _show(args, answer, lambda: render.statement(answer))
    return OK


def _jobs(args: argparse.Namespace) -> int:
    from slurm_banking.cli import render

    answer = ask_relay(
        args,
        {
            "op": "jobs",
            "account": args.account,
            "user": args.user,
            "all_users": args.all_users or None,
            "ended_h": args.ended_h,
        },
    )
    _show(args, answer, lambda: render.job_list(answer))
    return OK


def _quote(args: argparse.Namespace) -> int:
    from slurm_banking.cli import render, sbatch

    try:
        options = sbatch.request_options(vars(args), args.script)
    except sbatch.OptionError as error:
        raise CommandError(str(error), USAGE) from None
    answer = ask_relay(args, {"op": "quote", "options": options})
    _show(args, answer, lambda: render.quote(answer))
    return OK if answer["verdict"] == "accepted" else NO


def _why(args: argparse.Namespace) -> int:
    from slurm_banking.cli import render

    answer = ask_relay(args, {"op": "why", "job": args.job})
    _show(args, answer, lambda: render.why(answer))
    return OK


def _explain(args: argparse.Namespace) -> int:
    from slurm_banking.cli import explain

    answer = ask_relay(args, {"op": "explain", "job": args.job})
    _show(args, answer, lambda: explain.explained(answer))
    return OK


def _allow(args: argparse.Namespace) -> int:
    from slurm_banking.cli import render

    subject = args.subject
    request: Dict[str, Any] = {
        "op": "allow",
        "until": _time(args, "until", future=True),
        "reason": args.reason,
    }
    if subject.isascii() and subject.isdigit():
        request["job_id"] = int(subject)
        who = f"job {subject}"
    else:
        request["user"] = subject
        who = f"user {subject}"
    answer = ask_relay(args, request)
    _show(args, answer, lambda: render.allowed(answer, who))
    return OK


def _exceptions(args: argparse.Namespace) -> int:
    from slurm_banking.cli import render

    answer = ask_relay(args, {"op": "exceptions"})
    _show(args, answer, lambda: render.exceptions(answer))
    return OK


def _status(args: argparse.Namespace) -> int:
    from slurm_banking.cli import render

    answer = ask_relay(args, {"op": "status"})
    differs = _differences(args, answer)
    answer["differs"] = differs
    hints = [f"HINT: {render.plain_line(hint)}" for hint in answer.get("hints") or []]
    _show(args, answer, lambda: [*render.status(answer, int(time.time())), *hints])
    needs_somebody = (
        differs
        or not answer["ledger_complete"]
        or answer["parked"]
        or answer.get("bank_away_since") is not None
        or answer.get("alarms")
        or answer.get("failing")
        or answer.get("config_problem")
    )
    return NO if needs_somebody else OK


def _health(args: argparse.Namespace) -> int:
    from slurm_banking.cli import health

    thresholds = {name: getattr(args, name) for name in health.OPTIONS}
    try:
        answer = ask_relay(args, {"op": "status"}, health.ASK_S)
        found = health.judge(answer, thresholds, int(time.time()), _differences(args, answer))
    except CommandError as error:
        known = error.status == UNAVAILABLE
        found = health.failed(str(error), health.CRITICAL if known else health.UNKNOWN)
    except BankingError as error:
        found = health.failed(str(error), health.UNKNOWN)
    _show(args, found.as_dict(), lambda: [found.line()])
    return found.state


def _metrics(args: argparse.Namespace) -> int:
    from slurm_banking.cli import metrics

    text = str(ask_relay(args, {"op": "metrics"})["text"])
    if args.output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return OK
    try:
        metrics.write(args.output, text)
    except OSError as error:
        raise CommandError(f"--output {args.output}: {error.strerror}", NO) from None
    return OK


def _differences(args: argparse.Namespace, answer: Mapping[str, Any]) -> List[str]:
    """Where the relay that answered is not the one that this command is for."""
    found = []
    if answer["version"] != __version__:
        found.append(
            f"the relay runs version {answer['version']}, this command is {__version__}: restart the relay"
        )
    theirs = answer.get("config")  # told to operators
    ours = args.config
    if ours is None and args.socket is None:
        ours = default_config_path()
    if theirs and ours and os.path.exists(ours) and not _same_file(theirs, ours):
        found.append(f"the relay reads {theirs}, this command {os.path.abspath(ours)}")
    return found


def _same_file(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _retry(args: argparse.Namespace) -> int:
    from slurm_banking.cli import render

    if args.all == (args.job is not None):
        raise CommandError("retry: expected a JOB, or --all", USAGE)
    answer = ask_relay(args, {"op": "retry", "job": args.job, "all": args.all or None})
    _show(args, answer, lambda: render.retried(answer))
    return OK if all(run["result"] == "delivered" for run in answer["runs"]) else NO


def _outbox(args: argparse.Namespace) -> int:
    from slurm_banking.cli import outbox

    answer = ask_relay(args, outbox.request(args))
    _show(args, answer, lambda: outbox.listed(answer))
    return NO if answer["parked"] else OK


def _resolve(args: argparse.Namespace) -> int:
    from slurm_banking.cli import outbox

    try:
        has_csu = outbox.bank_has_csu(args.bank_has)
    except ValueError as error:
        raise CommandError(str(error), USAGE) from None
    asked = {"op": "resolve", "job": args.job, "reason": args.reason, "bank_has_csu": has_csu}
    answer = ask_relay(args, asked)
    _show(args, answer, lambda: outbox.resolved(answer))
    return NO if any(row.get("problem") for row in answer["runs"]) else OK


def _sweep(args: argparse.Namespace) -> int:
    from slurm_banking.cli import render

    answer = ask_relay(args, {"op": "sweep", "force": args.force})
    _show(args, answer, lambda: render.swept(answer))
    return OK


def _slurm(args: argparse.Namespace) -> int:
    from slurm_banking.cli import slurm

    return slurm.run(args)


def _limits(args: argparse.Namespace) -> int:
    from slurm_banking.cli import limits

    return limits.run(args, args.config or default_config_path())


def _check_config(args: argparse.Namespace) -> int:
    from slurm_banking import check_config

    path = args.path or args.config or default_config_path()
    return check_config.main(path, as_json=args.json, slurm_user=args.slurm_user)


def _reconcile(args: argparse.Namespace) -> int:
    from slurm_banking.cli import reconcile

    return reconcile.run(args, args.config or default_config_path(), lambda: socket_path(args)[0])


def _ledger(args: argparse.Namespace) -> int:
    from slurm_banking.cli import ledger

    return ledger.run(args, args.config or default_config_path())


def _token(args: argparse.Namespace) -> int:
    from slurm_banking.cli import token

    found = token.run(args, args.config or default_config_path(), args.config is not None)
    _show(args, found.as_dict, lambda: list(found.lines))
    for warning in () if args.json else found.warnings:
        print(f"slurm-banking: warning: {warning}", file=sys.stderr)
    return found.status


def _relay(args: argparse.Namespace) -> int:
    from slurm_banking.relay import daemon

    return daemon.run(args.config or default_config_path(), args.foreground)


def _bank_stub(args: argparse.Namespace) -> int:
    raise CommandError("bank: expected as the first word: slurm-banking bank ...", USAGE)


# -- the parser -------------------------------------------------------------------------------------------------------


FOR_USERS = "for users"
FOR_OPERATORS = "for operators (root, SlurmUser, [Relay] admin_users)"
SERVICES = "services"


def _common(*, suppressed: bool, asks: bool = True) -> argparse.ArgumentParser:
    """Options that may stand before a command and after it. ``asks``: it asks the relay."""
    default = argparse.SUPPRESS if suppressed else None
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--config",
        metavar="PATH",
        default=default,
        help="bank-config.toml (default: beside slurm.conf)",
    )
    if asks:
        parser.add_argument(
            "--socket",
            metavar="PATH",
            default=default,
            help="the relay's socket (default: as configured)",
        )
    return parser


def make_parser(*, with_bank: bool = False) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slurm-banking",
        usage="slurm-banking [--config PATH] [--socket PATH] COMMAND ...",
        description="Service units of a Slurm cluster: balances, quotes, charges, and where each number comes\n"
        "from. It works on the controller's host.",
        parents=[_common(suppressed=False)],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"slurm-banking {__version__}")
    # The epilog lists them, by whom they are for.
    commands = parser.add_subparsers(
        prog="slurm-banking", metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    common = _common(suppressed=True)
    listed: Dict[str, List[str]] = {heading: [] for heading in (FOR_USERS, FOR_OPERATORS, SERVICES)}

    def command(
        name: str,
        run: Callable[[argparse.Namespace], int],
        text: str,
        group: str = FOR_USERS,
        to_json: bool = True,
        asks: bool = True,
    ) -> argparse.ArgumentParser:
        listed[group].append(_listed(name, text))
        made: argparse.ArgumentParser = commands.add_parser(
            name,
            description=text[0].upper() + text[1:] + ".",
            parents=[common if asks else _common(suppressed=True, asks=False)],
            allow_abbrev=False,
        )
        made.set_defaults(run=run, json=False)
        if to_json:
            made.add_argument(
                "--json", action="store_true", help="for scripts: amounts in hundredths of an SU"
            )
        return made

    made = command("balance", _balance, "what your accounts have left, and what is set aside")
    made.add_argument("account", nargs="?", metavar="ACCOUNT", help="default: all of yours")
    made.add_argument(
        "--user", metavar="NAME", help="for coordinators and operators: somebody else's"
    )

    made = command("statement", _statement, "charges of an account, with sums that add up")
    made.add_argument("account", nargs="?", metavar="ACCOUNT", help="default: your default account")
    made.add_argument("--user", metavar="NAME", help="only this user's")
    made.add_argument(
        "--since", metavar="TIME", help="2026-11-21, 2026-11-21T08:30, 7d, ... (default: 30d)"
    )
    made.add_argument("--until", metavar="TIME", help="not included (default: now)")

    made = command(
        "jobs", _jobs, "what is set aside for queued and running jobs, and recent charges"
    )
    made.add_argument("--account", "-A", metavar="ACCOUNT", help="only of this account")
    made.add_argument(
        "--user", "-u", metavar="NAME", help="for coordinators and operators: somebody else's"
    )
    made.add_argument(
        "--all-users", action="store_true", help="for coordinators and operators: everybody's"
    )
    made.add_argument(
        "--ended-h",
        type=int,
        metavar="HOURS",
        default=24,
        help="ended in the last hours (default: 24)",
    )

    made = command("quote", _quote, "what a job could cost, and whether it would be accepted now")
    made.add_argument(
        "script", nargs="?", metavar="SCRIPT", help="a batch script; its #SBATCH lines count"
    )
    from slurm_banking.cli import sbatch

    sbatch.add_options(made)

    made = command("why", _why, "the whole story of a job's cost, from the ledger's entries")
    made.add_argument("job", metavar="JOB", help="a job id, 123, or a task of an array, 123_4")

    made = command("explain", _explain, "each sum of a job again, from what its entries stored")
    made.add_argument("job", metavar="JOB", help="a job id, 123, or a task of an array, 123_4")

    made = command("slurm", _slurm, "everyday Slurm over slurmrestd, with prices")
    from slurm_banking.cli import slurm

    slurm.add_parser(made, common)

    command("exceptions", _exceptions, "exceptions in force for you; for operators, all of them")

    command(
        "status",
        _status,
        "how the relay is doing; exit status 1 if something needs somebody",
        group=FOR_OPERATORS,
    )

    made = command(
        "health",
        _health,
        "the same for monitoring: one line; exit status 0 to 3",
        group=FOR_OPERATORS,
    )
    from slurm_banking.cli import health

    health.add_options(made)

    made = command(
        "metrics",
        _metrics,
        "the relay's metrics, as Prometheus reads them",
        group=FOR_OPERATORS,
        to_json=False,
    )
    made.add_argument(
        "--output", metavar="PATH", help="write this file, for a collector that reads files"
    )

    made = command(
        "allow",
        _allow,
        "accept a user's submissions, or updates of a job, for a while",
        group=FOR_OPERATORS,
    )
    made.add_argument("subject", metavar="USER|JOB", help="a user's name, or a job id")
    made.add_argument(
        "--until", metavar="TIME", required=True, help="2026-11-21T18:00, 4h, 2d, ..."
    )
    made.add_argument("--reason", metavar="TEXT", required=True, help="kept with the exception")

    made = command(
        "retry",
        _retry,
        "send again what the bank refused, once the cause is mended",
        group=FOR_OPERATORS,
    )
    made.add_argument("job", nargs="?", metavar="JOB", help="a job id, 123, or a task, 123_4")
    made.add_argument("--all", action="store_true", help="everything that the bank refused")

    from slurm_banking.cli import outbox

    made = command(
        "outbox",
        _outbox,
        "what waits for the bank, what that means, and what to do",
        group=FOR_OPERATORS,
    )
    outbox.add_options(made, common, {"retry": _retry, "resolve": _resolve})

    made = command("sweep", _sweep, "compare liens with Slurm's queue now", group=FOR_OPERATORS)
    made.add_argument(
        "--force", action="store_true", help="end liens although an unusual number of jobs is gone"
    )

    made = command(
        "limits",
        _limits,
        "balances as limits in Slurm, for a day on which the bank is dead",
        group=FOR_OPERATORS,
    )
    from slurm_banking.cli import limits

    limits.add_parser(made, common)

    made = command(
        "reconcile",
        _reconcile,
        "slurmdbd, ledger and bank held against each other; --fix puts right",
        group=FOR_OPERATORS,
    )
    from slurm_banking.cli import reconcile

    reconcile.add_options(made)

    made = command(
        "ledger",
        _ledger,
        "verify, back up or restore the ledger's file, with or without a relay",
        group=FOR_OPERATORS,
        asks=False,
    )
    from slurm_banking.cli import ledger

    ledger.add_parser(made)

    from slurm_banking.cli import token

    made = command(
        "token",
        _token,
        "tokens for slurmrestd: make, read and check them",
        group=FOR_OPERATORS,
        to_json=False,
        asks=False,
    )
    token.add_token_parser(made)
    made = command(
        "jwks",
        _token,
        "the file with the public keys of such tokens",
        group=FOR_OPERATORS,
        to_json=False,
        asks=False,
    )
    token.add_jwks_parser(made)

    made = command(
        "check-config",
        _check_config,
        "every mistake in bank-config.toml, or what is in force",
        group=FOR_OPERATORS,
        asks=False,
    )
    made.add_argument("path", nargs="?", metavar="PATH", help="default: beside slurm.conf")
    made.add_argument("--slurm-user", metavar="NAME", help="default: as slurm.conf says")

    made = command(
        "relay",
        _relay,
        "run the relay, one for each state directory",
        group=SERVICES,
        to_json=False,
        asks=False,
    )
    made.add_argument(
        "--foreground", action="store_true", help="stay, and log to stderr (for systemd)"
    )

    listed[SERVICES].append(_listed("bank", "set up and serve the bundled bank"))
    if with_bank:
        from slurm_banking.server import cli as bank

        bank.add_parser(commands)
    else:
        made = commands.add_parser("bank")
        made.set_defaults(run=_bank_stub, json=False)
    parser.epilog = "\n\n".join(
        "\n".join([f"{heading}:", *lines]) for heading, lines in listed.items()
    )
    parser.epilog += "\n\nslurm-banking COMMAND --help has the options of each."
    return parser


def _listed(name: str, text: str) -> str:
    return f"  {name:<14}{text}"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["bank"]:
            return _bank(words)
        args = make_parser().parse_args(words)
        return int(args.run(args))
    except SystemExit as stop:  # argparse has said what it had to
        return stop.code if isinstance(stop.code, int) else USAGE
    except CommandError as error:
        return _complain([str(error)], error.status)
    except ConfigError as error:
        return _complain(error.problems, NO)
    except BankingError as error:
        return _complain([str(error)], UNAVAILABLE)
    except BrokenPipeError:
        # Whoever read our output has had enough; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return 130


def _bank(words: Sequence[str]) -> int:
    try:
        parser = make_parser(with_bank=True)
    except ImportError as error:
        missing = getattr(error, "name", None) or str(error)
        return _complain(
            [
                f"bank: {missing} is missing: install the server extra: pip install 'slurm-banking[server]'"
            ],
            UNAVAILABLE,
        )
    args = parser.parse_args(list(words))
    return int(args.main(args))


def _complain(lines: Sequence[str], status: int) -> int:
    for line in lines:
        print(f"slurm-banking: error: {line}", file=sys.stderr)
    return status
