# SPDX-License-Identifier: BSD-3-Clause
"""One process with a few threads, or several, behind a reverse proxy when others than this host are to reach it."""

from __future__ import annotations

import fcntl
import ipaddress
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Optional

import waitress.server
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from slurm_banking.errors import BankingError
from slurm_banking.server.options import Options
from slurm_banking.server.workers import serve_in_processes

MAX_BODY_BYTES = 1 << 20
MAX_HEADER_BYTES = 64 << 10
IDLE_TIMEOUT_S = 60
_BACKLOG = 1024


def migrate_if_needed(data_dir: Path) -> bool:
    """Bring the database to this version's tables; only one process at a time. True if there was something to do."""
    if not _pending():
        return False
    with open(data_dir / "migrate.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _pending():
            return False
        call_command("migrate", interactive=False, verbosity=0)
    return True


def _pending() -> bool:
    executor = MigrationExecutor(connection)
    return bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))


def parse_listen(text: str) -> tuple[str, int]:
    """:raises BankingError: not ``HOST:PORT`` or ``[IPV6]:PORT``."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise BankingError(f"--listen {text!r}, expected HOST:PORT such as 127.0.0.1:8642")
    return host, int(port)


def serve(options: Options, listen: str, threads: int, processes: int = 1) -> int:
    """Until SIGTERM or SIGINT, which end it after the requests under way.

    :param threads: of each process.
    """
    host, port = parse_listen(listen)
    migrate_if_needed(options.data_dir)
    application = get_wsgi_application()
    connection.close()  # a child's is its own
    try:
        sockets = _listening(host, port)
    except OSError as error:
        raise BankingError(f"--listen {listen}: {error}") from None
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    if not _is_loopback(host) and options.trusted_proxy is None:
        print(
            f"slurm-banking bank: {listen} is not loopback, and tokens travel in clear; use a TLS proxy",
            file=sys.stderr,
        )
    shown = f"[{host}]" if ":" in host else host
    bound = sockets[0].getsockname()[1]
    print(
        f"slurm-banking bank: ready on http://{shown}:{bound}/api/ ({options.database_label})",
        flush=True,
    )
    if processes == 1:
        _answer(application, sockets, options, threads)
    else:
        serve_in_processes(processes, lambda: _answer(application, sockets, options, threads))
    return 0


def _listening(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host; port 0 is one port for all of them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        if sockets and port == 0:
            address = (address[0], sockets[0].getsockname()[1], *address[2:])
        sockets.append(socket.create_server(address, family=family, backlog=_BACKLOG))
    return sockets


def _answer(application: Any, sockets: list[socket.socket], options: Options, threads: int) -> None:
    """Until SystemExit."""
    proxy: dict[str, Any] = {}
    if options.trusted_proxy is not None:
        headers = {"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"}
        proxy = {"trusted_proxy": options.trusted_proxy, "trusted_proxy_headers": headers}
    server = waitress.server.create_server(
        application,
        sockets=sockets,
        threads=threads,
        ident=None,
        max_request_body_size=MAX_BODY_BYTES,
        max_request_header_size=MAX_HEADER_BYTES,
        channel_timeout=IDLE_TIMEOUT_S,
        connection_limit=1000,
        backlog=_BACKLOG,
        asyncore_use_poll=True,
        clear_untrusted_proxy_headers=True,
        **proxy,
    )
    server.run()
    server.close()


def _stop(signum: int, frame: Optional[FrameType]) -> None:
    raise SystemExit(0)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
