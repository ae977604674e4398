# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking bank …``: set the bank up from a shell, and serve it.

Django is imported when a command runs, not when the parser is built. A command that root gives acts as the owner of the
data directory, so that no file there becomes root's by accident.
"""

from __future__ import annotations

import argparse
import datetime
import getpass
import json
import os
import pwd
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from slurm_banking.amounts import MAX_WIRE_CSU, format_su, parse_su
from slurm_banking.errors import BankingError
from slurm_banking.server.options import (
    COMPAT,
    COMPAT_VARIABLE,
    DATA_VARIABLE,
    DATABASE_VARIABLE,
    DEFAULT_DATA_DIR,
    Options,
    load_options,
    prepare_data_dir,
)

DEFAULT_LISTEN = "127.0.0.1:8642"
TOKEN_SCOPES = ("admin", "relay", "start-only", "read")

_Command = Callable[[argparse.Namespace, Options], int]


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``bank`` under a parser's subparsers; ``args.main`` of a parsed command is :func:`main`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bank", help="set up and serve the bundled bank", parents=[_common_options(None)]
    )
    _add_commands(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Run a parsed command; the exit status."""
    os.umask(0o077)
    try:
        return _run(args)
    except BankingError as error:
        problems = getattr(error, "problems", (str(error),))
        for problem in problems:
            print(f"slurm-banking bank: error: {problem}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _run(args: argparse.Namespace) -> int:
    data = getattr(args, "data", None)
    database = getattr(args, "database", None)
    options = load_options(data, database)
    prepare_data_dir(options.data_dir)
    command: _Command = args.command
    with _as_owner(options.data_dir, for_good=command is _serve):
        os.environ[DATA_VARIABLE] = str(options.data_dir)
        if database:
            os.environ[DATABASE_VARIABLE] = database
        if getattr(args, "compat", None):
            os.environ[COMPAT_VARIABLE] = args.compat
        os.environ["DJANGO_SETTINGS_MODULE"] = "slurm_banking.server.settings"
        try:
            import django
            from django.core.exceptions import ImproperlyConfigured
            from django.db import DatabaseError, InterfaceError
        except ImportError as error:
            raise _cannot_import(error) from None
        try:
            django.setup()
            if command not in (_serve, _migrate):
                from slurm_banking.server.serve import migrate_if_needed

                migrate_if_needed(options.data_dir)
            return command(args, options)
        except (ImproperlyConfigured, ImportError) as error:
            raise _cannot_import(error) from None
        except (DatabaseError, InterfaceError) as error:
            raise BankingError(f"database {options.database_label}: {_first_line(error)}") from None


def _cannot_import(error: Exception) -> BankingError:
    uid = os.geteuid()
    if uid != 0 and not os.access(os.__file__, os.R_OK, effective_ids=True):
        return BankingError(
            f"{_first_line(error)}; UID {uid}, who owns the data directory, cannot read {os.__file__}"
        )
    return BankingError(
        f"{_first_line(error)}; the bank needs the packages of slurm-banking[server]"
    )


# -- the parser -------------------------------------------------------------------------------------------------------


def _common_options(default: Any) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data",
        metavar="DIR",
        default=default,
        help=f"data directory (default: ${DATA_VARIABLE}, or {DEFAULT_DATA_DIR})",
    )
    common.add_argument(
        "--database",
        metavar="URL",
        default=default,
        help="sqlite:///path or postgresql://user:password@host/name "
        f"(default: ${DATABASE_VARIABLE}, bank.toml, or DIR/bank.sqlite3)",
    )
    return common


class _Commands:
    """Leaves of the command tree, each with the common options; what was given before the command stays."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def leaf(
        self, name: str, command: _Command, text: str, listing: bool = False
    ) -> argparse.ArgumentParser:
        parser = self._subparsers.add_parser(
            name, help=text, description=text, parents=[_common_options(argparse.SUPPRESS)]
        )
        if listing:
            parser.add_argument("--json", action="store_true", help="as JSON")
        parser.set_defaults(command=command, main=main)
        return parser

    def group(self, name: str, text: str) -> _Commands:
        return _Commands(self._subparsers.add_parser(name, help=text, description=text))


def _add_commands(parser: argparse.ArgumentParser) -> None:
    bank = _Commands(parser)

    serve = bank.leaf("serve", _serve, "serve the API and /admin/ until SIGTERM")
    serve.add_argument(
        "--listen", metavar="HOST:PORT", default=DEFAULT_LISTEN, help=f"(default: {DEFAULT_LISTEN})"
    )
    serve.add_argument(
        "--processes",
        metavar="N",
        type=_processes,
        default=1,
        help="that answer side by side; more than one where it has cores of its own (default: 1)",
    )
    serve.add_argument(
        "--threads", metavar="N", type=_threads, default=8, help="of each process (default: 8)"
    )
    serve.add_argument(
        "--compat",
        choices=COMPAT[1:],
        help="for tests: count, and fail, as the portal does, mistakes included",
    )
    bank.leaf("migrate", _migrate, "bring the database to this version's tables")

    account = bank.group("account", "Slurm accounts")
    add = account.leaf("add", _account_add, "add an account")
    add.add_argument("name", metavar="NAME")
    add.add_argument("--title", default="")
    add.add_argument("--unlimited", action="store_true", help="record usage, refuse nothing")
    add.add_argument(
        "--start",
        type=_date,
        metavar="DATE",
        help="with --unlimited: count from (default: 1 January of this year)",
    )
    account.leaf("list", _account_list, "all accounts with what they have left", listing=True)
    show = account.leaf(
        "show", _account_show, "one account, its allocations and members", listing=True
    )
    show.add_argument("name", metavar="NAME")

    user = bank.group("user", "users and their membership in accounts")
    add = user.leaf(
        "add",
        _user_add,
        "add a user, or make one a member of an account (again, or with another limit)",
    )
    add.add_argument("name", metavar="NAME")
    add.add_argument("--uid", type=_uid, help="UID on the cluster; needed for a new user")
    add.add_argument("--account", metavar="A")
    add.add_argument(
        "--limit", metavar="SU", type=_su_or_zero, help="of the account, at most this much"
    )
    remove = user.leaf("remove", _user_remove, "end a user's membership in an account")
    remove.add_argument("name", metavar="NAME")
    remove.add_argument("--account", metavar="A", required=True)
    user.leaf("list", _user_list, "all users", listing=True)

    allocation = bank.group("allocation", "awards of service units for a period")
    add = allocation.leaf("add", _allocation_add, "award service units to an account")
    add.add_argument("account", metavar="ACCOUNT")
    add.add_argument("amount_csu", metavar="SU", type=_su)
    add.add_argument(
        "--start", type=_date, metavar="DATE", required=True, help="first day, YYYY-MM-DD"
    )
    add.add_argument("--end", type=_date, metavar="DATE", required=True, help="last day")
    add.add_argument("--resource", metavar="NAME", help="(default: of bank.toml, or Compute)")
    renew = allocation.leaf("renew", _allocation_renew, "award the next period")
    renew.add_argument("account", metavar="ACCOUNT")
    renew.add_argument("amount_csu", metavar="SU", type=_su)
    renew.add_argument(
        "--start", type=_date, metavar="DATE", help="(default: after the last period, or today)"
    )
    renew.add_argument("--end", type=_date, metavar="DATE", required=True, help="last day")
    for name, text in (
        ("expire", "close the current period early"),
        ("activate", "open a period again that was closed early"),
    ):
        change = allocation.leaf(name, _allocation_status, text)
        change.add_argument("account", metavar="ACCOUNT")
        change.add_argument(
            "--allocation", type=int, metavar="ID", help="(default: the current one)"
        )
        change.set_defaults(status={"expire": "Expired", "activate": "Active"}[name])
    listing = allocation.leaf("list", _allocation_list, "all allocations", listing=True)
    listing.add_argument("--account", metavar="A")

    for name, text in (
        ("deposit", "add to an allocation"),
        ("withdraw", "take from an allocation"),
    ):
        award = bank.leaf(name, _award, text)
        award.add_argument("account", metavar="ACCOUNT")
        award.add_argument("amount_csu", metavar="SU", type=_su)
        award.add_argument("--reason", required=True)
        award.add_argument("--allocation", type=int, metavar="ID", help="(default: the active one)")
        award.set_defaults(award=name)
    entries = bank.leaf("entries", _entries, "the ledger of an account, oldest first", listing=True)
    entries.add_argument("account", metavar="ACCOUNT")

    token = bank.group("token", "keys to the API")
    create = token.leaf("create", _token_create, "make a token; it is shown once", listing=True)
    create.add_argument("--scope", choices=TOKEN_SCOPES, required=True)
    create.add_argument("--name", required=True)
    create.add_argument(
        "--file", metavar="PATH", type=Path, help="write it there (0600) instead of showing it"
    )
    token.leaf("list", _token_list, "all tokens", listing=True)
    revoke = token.leaf("revoke", _token_revoke, "end a token at once")
    revoke.add_argument("name", metavar="NAME")

    admin = bank.group("admin", "who may log in to /admin/ and api_token_auth/")
    add = admin.leaf("add", _admin_add, "add an administrator, or set their password")
    add.add_argument("name", metavar="NAME")
    add.add_argument("--password-file", metavar="PATH", type=Path, help="(default: asked for)")

    bank.leaf("verify", _verify, "prove that every counter is the sum of its entries", listing=True)


def _su(text: str) -> int:
    csu = _su_or_zero(text)
    if not csu:
        raise argparse.ArgumentTypeError("expected more than 0 SU")
    return csu


def _su_or_zero(text: str) -> int:
    try:
        csu = parse_su(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, expected SU such as 1000 or 12.50") from None
    if not 0 <= csu <= MAX_WIRE_CSU:
        raise argparse.ArgumentTypeError(f"{text!r}, expected 0.00 to {format_su(MAX_WIRE_CSU)} SU")
    return csu


def _date(text: str) -> datetime.date:
    try:
        date = datetime.datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a date such as 2026-06-01") from None
    if not 1970 <= date.year < 2200:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a year from 1970 to 2199")
    return date


def _uid(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) >= 2**32 - 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a numeric user id")
    return int(text)


def _threads(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r}, expected 1 to 256")
    return int(text)


def _processes(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r}, expected 1 to 64")
    return int(text)


# -- the commands -----------------------------------------------------------------------------------------------------


def _serve(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.serve import serve

    if args.compat:
        print(
            f"slurm-banking bank: --compat {args.compat}: usage drifts as it does there; for tests only",
            file=sys.stderr,
        )
    return serve(options, args.listen, args.threads, args.processes)


def _migrate(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.serve import migrate_if_needed

    done = migrate_if_needed(options.data_dir)
    print(f"{options.database_label}: {'migrated' if done else 'nothing to do'}")
    return 0


def _account_add(args: argparse.Namespace, options: Options) -> int:
    from django.utils import timezone

    from slurm_banking.server.operations import add_account

    if args.start is not None and not args.unlimited:
        raise BankingError(
            "--start is for --unlimited; other accounts get their period with allocation add"
        )
    start = args.start or timezone.localdate().replace(month=1, day=1)
    add_account(
        args.name,
        title=args.title,
        unlimited=args.unlimited,
        start=start,
        resource=options.resource,
    )
    print(f"account {args.name} added{', unlimited' if args.unlimited else ''}")
    return 0


def _account_list(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.models import Account

    rows = [_account_row(account) for account in Account.objects.order_by("name")]
    _show(args, rows)
    return 0


def _account_show(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.models import Account

    account = Account.objects.filter(name=args.name).first()
    if account is None:
        raise BankingError(f"no account is named {args.name}")
    row = _account_row(account)
    allocations = [
        _allocation_row(allocation) for allocation in account.allocations.order_by("start_date")
    ]
    members = [
        {
            "user": member.user.username,
            "uid": member.user.cluster_uid,
            "active": member.active,
            "limit_su": None if member.limit_csu is None else format_su(member.limit_csu),
        }
        for member in account.memberships.select_related("user").order_by("user__username")
    ]
    if args.json:
        _print_json({**row, "allocations": allocations, "members": members})
        return 0
    _print_table([row])
    for rows in (allocations, members):
        print()
        _print_table(rows)
    return 0


def _account_row(account: Any) -> dict[str, Any]:
    """Amounts are of the allocation in force."""
    from django.utils import timezone

    today = timezone.localdate()
    current = next(
        (row for row in account.allocations.all() if row.status_on(today) == "Active"), None
    )
    amount_csu = used_csu = None
    if current is not None:
        used_csu = current.used_csu
        amount_csu = None if account.unlimited else current.amount_csu
    return {
        "account": account.name,
        "active": account.active,
        "unlimited": account.unlimited,
        "allocated_su": None if amount_csu is None else format_su(amount_csu),
        "used_su": None if used_csu is None else format_su(used_csu),
        "left_su": None if amount_csu is None else format_su(amount_csu - used_csu),
        "members": account.memberships.filter(active=True).count(),
    }


def _user_add(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.operations import add_user

    if args.limit is not None and args.account is None:
        raise BankingError("--limit is within an account: --account is needed")
    user = add_user(args.name, uid=args.uid, account_name=args.account, limit_csu=args.limit)
    where = f", member of {args.account}" if args.account else ""
    limit = f", limit {format_su(args.limit)} SU" if args.limit is not None else ""
    print(f"user {user.username} (UID {user.cluster_uid}){where}{limit}")
    return 0


def _user_remove(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.operations import remove_user

    remove_user(args.name, account_name=args.account)
    print(f"user {args.name} is no longer a member of {args.account}")
    return 0


def _user_list(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.models import ClusterUser

    users = ClusterUser.objects.order_by("username").prefetch_related("memberships__account")
    rows = [
        {
            "user": user.username,
            "uid": user.cluster_uid,
            "accounts": sorted(
                member.account.name for member in user.memberships.all() if member.active
            ),
        }
        for user in users
    ]
    _show(args, rows)
    return 0


def _allocation_add(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.operations import add_allocation

    allocation = add_allocation(
        args.account,
        amount_csu=args.amount_csu,
        start=args.start,
        end=args.end,
        resource=args.resource or options.resource,
        actor=_actor(),
    )
    return _tell_allocation(allocation)


def _allocation_renew(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.operations import renew_allocation

    allocation = renew_allocation(
        args.account, amount_csu=args.amount_csu, start=args.start, end=args.end, actor=_actor()
    )
    return _tell_allocation(allocation)


def _allocation_status(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.operations import set_allocation_status

    allocation = set_allocation_status(
        args.account, allocation_id=args.allocation, status=args.status
    )
    return _tell_allocation(allocation)


def _allocation_list(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.models import Allocation

    allocations = Allocation.objects.select_related("account").order_by(
        "account__name", "start_date"
    )
    if args.account:
        allocations = allocations.filter(account__name=args.account)
    _show(args, [_allocation_row(allocation) for allocation in allocations])
    return 0


def _tell_allocation(allocation: Any) -> int:
    row = _allocation_row(allocation)
    print(
        f"allocation {row['id']} of {row['account']}: {row['start']} to {row['end'] or 'open'}, {row['status']}, "
        f"{row['allocated_su']} SU, {row['used_su']} SU used"
    )
    return 0


def _allocation_row(allocation: Any) -> dict[str, Any]:
    from django.utils import timezone

    return {
        "id": allocation.pk,
        "account": allocation.account.name,
        "resource": allocation.resource,
        "start": allocation.start_date.isoformat(),
        "end": None if allocation.end_date is None else allocation.end_date.isoformat(),
        "status": allocation.status_on(timezone.localdate()),
        "allocated_su": format_su(allocation.amount_csu),
        "used_su": format_su(allocation.used_csu),
    }


def _award(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server import operations

    operation = {"deposit": operations.deposit, "withdraw": operations.withdraw}[args.award]
    allocation = operation(
        args.account,
        amount_csu=args.amount_csu,
        reason=args.reason,
        actor=_actor(),
        allocation_id=args.allocation,
    )
    return _tell_allocation(allocation)


def _entries(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.models import Account, Entry

    if not Account.objects.filter(name=args.account).exists():
        raise BankingError(f"no account is named {args.account}")
    entries = Entry.objects.filter(allocation__account__name=args.account).select_related(
        "user", "job"
    )
    balance_csu = 0
    rows = []
    for entry in entries.order_by("id").iterator():
        balance_csu += entry.amount_csu
        rows.append(
            {
                "id": entry.pk,
                "time": entry.time.isoformat(timespec="seconds"),
                "kind": entry.kind,
                "amount_su": format_su(entry.amount_csu),
                "balance_su": format_su(balance_csu),
                "allocation": entry.allocation_id,
                "user": None if entry.user is None else entry.user.username,
                "job": None if entry.job is None else entry.job.jobslurmid,
                "actor": entry.actor,
                "reason": entry.reason,
            }
        )
    _show(args, rows)
    return 0


def _token_create(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.operations import create_token, revoke_token

    if args.file is None:
        key = create_token(args.name, scope=args.scope, actor=_actor())
        if args.json:
            _print_json({"name": args.name, "scope": args.scope, "token": key})
        else:
            print(key)
        return 0
    with _written_by_the_caller(args.file) as write:
        key = create_token(args.name, scope=args.scope, actor=_actor())
        try:
            write(key + "\n")
        except BaseException:
            revoke_token(args.name)
            raise
    if args.json:
        _print_json({"name": args.name, "scope": args.scope, "file": str(args.file)})
    else:
        print(f"token {args.name} of scope {args.scope} written to {args.file}")
    return 0


def _token_list(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.models import Token

    rows = [
        {
            "name": token.name,
            "scope": token.scope,
            "created": token.created.isoformat(timespec="seconds"),
            "created_by": token.created_by,
            "expires": None
            if token.expires is None
            else token.expires.isoformat(timespec="seconds"),
            "revoked": None
            if token.revoked is None
            else token.revoked.isoformat(timespec="seconds"),
        }
        for token in Token.objects.order_by("id")
    ]
    _show(args, rows)
    return 0


def _token_revoke(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.operations import revoke_token

    revoke_token(args.name)
    print(f"token {args.name} revoked")
    return 0


def _admin_add(args: argparse.Namespace, options: Options) -> int:
    from django.contrib.auth import get_user_model
    from django.contrib.auth.password_validation import validate_password
    from django.core.exceptions import ValidationError

    if args.password_file is not None:
        with _real_user():
            try:
                password = args.password_file.read_text().rstrip("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise BankingError(
                    f"{args.password_file}: {getattr(error, 'strerror', error)}"
                ) from None
    else:
        password = getpass.getpass(f"Password for {args.name}: ")
        if password != getpass.getpass("Again: "):
            raise BankingError("the passwords differ")
    users = get_user_model().objects
    user = users.filter(username=args.name).first() or users.model(username=args.name)
    user.is_staff = user.is_superuser = user.is_active = True
    user.set_password(password)
    try:
        validate_password(password)
        user.full_clean()
    except ValidationError as error:
        raise BankingError(" ".join(error.messages)) from None
    user.save()
    print(f"administrator {args.name} set")
    return 0


def _verify(args: argparse.Namespace, options: Options) -> int:
    from slurm_banking.server.verify import verify

    result = verify()
    if args.json:
        _print_json(
            {
                "ok": not result.mismatches,
                "entries": result.entries,
                "allocations": result.allocations,
                "jobs": result.jobs,
                "balance_su": format_su(result.balance_csu),
                "mismatches": list(result.mismatches),
            }
        )
    else:
        for mismatch in result.mismatches:
            print(f"MISMATCH {mismatch}")
        verdict = (
            f"{len(result.mismatches)} mismatches" if result.mismatches else "all counters agree"
        )
        print(
            f"{result.entries} entries, {result.allocations} allocations, {result.jobs} jobs, "
            f"balance {format_su(result.balance_csu)} SU: {verdict}"
        )
    return 1 if result.mismatches else 0


# -- shared -----------------------------------------------------------------------------------------------------------


def _actor() -> str:
    """Who gave the command, for the ledger; under sudo, who called it."""
    name = os.environ.get("SUDO_USER") if os.getuid() == 0 else None
    if not name:
        try:
            name = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            name = str(os.getuid())
    return f"shell:{name}"


@contextmanager
def _as_owner(data_dir: Path, for_good: bool) -> Iterator[None]:
    """As root, take the identity of whose data this is: for one command, or for the life of the server."""
    status = data_dir.stat()
    if os.geteuid() != 0 or status.st_uid == 0:
        yield
        return
    uid, gid = status.st_uid, status.st_gid
    try:
        owner = pwd.getpwuid(uid)
    except KeyError:
        groups = [gid]
    else:
        gid = owner.pw_gid
        groups = os.getgrouplist(owner.pw_name, gid)
    if for_good:
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)
        yield
        return
    root_groups = os.getgroups()
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(root_groups)


@contextmanager
def _real_user() -> Iterator[None]:
    """For a file that the caller named: it is theirs to read or write, not the bank's."""
    uid, gid = os.geteuid(), os.getegid()
    if os.getuid() == uid:
        yield
        return
    os.seteuid(os.getuid())
    os.setegid(os.getgid())
    try:
        yield
    finally:
        os.setegid(gid)
        os.seteuid(uid)


@contextmanager
def _written_by_the_caller(path: Path) -> Iterator[Callable[[str], None]]:
    """A new file of mode 0600 that takes the place of ``path`` when what is written is complete.

    :raises BankingError: before anything else is done, if the directory cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _real_user():
        try:
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise BankingError(f"{path}: {error.strerror}") from None

    def write(text: str) -> None:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
        with _real_user():
            os.rename(temporary, path)

    try:
        yield write
    except OSError as error:
        raise BankingError(f"{path}: {error.strerror}") from None
    finally:
        os.close(descriptor)
        with _real_user():
            temporary.unlink(missing_ok=True)


def _show(args: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    if args.json:
        _print_json(rows)
    else:
        _print_table(rows)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        print("none")
        return
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    for line in [names, *cells]:
        padded = (
            text.rjust(width) if name.endswith("_su") else text.ljust(width)
            for name, text, width in zip(names, line, widths)
        )
        print("  ".join(padded).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(value) or "-"
    return str(value)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _standalone(argv: Optional[Sequence[str]] = None) -> int:
    """``python -m slurm_banking.server.cli …``, without the word ``bank``."""
    parser = argparse.ArgumentParser(prog="slurm-banking bank", parents=[_common_options(None)])
    _add_commands(parser)
    return main(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(_standalone())
