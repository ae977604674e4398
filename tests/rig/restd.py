# SPDX-License-Identifier: BSD-3-Clause
"""A real slurmrestd beside a `Cluster`, over TCP and a unix socket, with tokens or without.

::

    cluster = Cluster()
    with Slurmrestd(cluster) as restd:          # before start(): the cluster comes up knowing tokens
        token = restd.scontrol_token("sb-alice")
        restd.url, restd.socket_url             # http://127.0.0.1:PORT, unix:///DIR/socket
        status, answer = restd.ask("GET", restd.path("slurm/ping"), user="sb-alice", token=token)

`Slurmrestd` starts a cluster that does not run, and then also stops it; a running one is left running, but its
slurmdbd and slurmctld are restarted once if they do not know tokens yet.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.rig.cluster import SLURM_USER, Cluster, RigError, wait_until

#: slurmrestd refuses to be root or SlurmUser.
REST_USER = "nobody"


def key_file(cluster: Cluster) -> Path:
    """The key of HS256 tokens, 32 bytes; SlurmUser's, 0400."""
    return cluster.etc_dir / "jwt_hs256.key"


def enable_tokens(cluster: Cluster, jwks: Path | None = None, *, hs256: bool = True) -> None:
    """auth/jwt in slurm.conf and slurmdbd.conf: `hs256` with a new key, and with the public keys in `jwks`.

    Does nothing where the cluster knows tokens already.
    """
    cluster.prepare()
    if cluster.extra_slurm_conf.get("AuthAltTypes"):
        return
    parameters = []
    if jwks is not None:
        parameters.append(f"jwks={jwks}")
    if hs256:
        key = key_file(cluster)
        cluster.write_file(key, "", owner=SLURM_USER, mode=0o400)
        key.write_bytes(os.urandom(32))
        parameters.append(f"jwt_key={key}")
    settings = {"AuthAltTypes": "auth/jwt", "AuthAltParameters": ",".join(parameters)}
    cluster.extra_slurm_conf.update(settings)
    cluster.write_slurm_conf()
    path = cluster.etc_dir / "slurmdbd.conf"
    lines = "".join(f"{name}={value}\n" for name, value in settings.items())
    cluster.write_file(path, path.read_text() + lines, owner=SLURM_USER, mode=0o600)
    if is_running(cluster):
        cluster.stop_daemon("slurmdbd")
        cluster.start_daemon("slurmdbd")
        cluster.restart_slurmctld()


def is_running(cluster: Cluster) -> bool:
    try:
        return cluster.pid("slurmctld") is not None
    except RigError:
        return False


class Slurmrestd:
    """`auth`: "jwt", or "local" (a unix socket for its own Unix user, no token). `user`: whom it runs as.

    `plugins`: its -s, like "openapi/v0.0.38,openapi/dbv0.0.38"; empty: all. `name`: of the daemon, another for a
    second one on the same cluster. `env`: more of its environment.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        auth: str = "jwt",
        user: str = REST_USER,
        plugins: str = "",
        name: str = "slurmrestd",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.cluster = cluster
        self.auth = auth
        self.user = user
        self.plugins = plugins
        self.name = name
        self.daemon_env = dict(env or {})
        self.port = 0
        self._newest = ""
        self._owns_cluster = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def directory(self) -> Path:
        return self.cluster.root / self.name

    @property
    def socket(self) -> Path:
        """Everybody may connect to it: slurmrestd makes it so."""
        return self.directory / "socket"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.socket}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when both the port and the socket answer."""
        enable_tokens(self.cluster)
        if not is_running(self.cluster):
            self._owns_cluster = True
            self.cluster.start()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        subprocess.run(["chown", self.user, str(self.directory)], check=True, timeout=10)
        self.socket.unlink(missing_ok=True)
        self.port = self.port or _free_port()
        argv = ["slurmrestd", "-vvv", "-t", "4", "-a", f"rest_auth/{self.auth}"]
        argv += ["-s", self.plugins] if self.plugins else []
        argv += [f"127.0.0.1:{self.port}", f"unix:{self.socket}"]
        env = {"SLURM_JWT": "daemon"} if self.auth == "jwt" else {}
        self.cluster.spawn(self.name, argv, user=self.user, env={**env, **self.daemon_env})

        def answers() -> bool:
            if self.cluster.pid(self.name) is None:
                raise RigError(f"slurmrestd ended:\n{self.log()[-3000:]}")
            return all(_connects(where) for where in (("127.0.0.1", self.port), str(self.socket)))

        wait_until(answers, 30, "slurmrestd to listen")

    def stop(self) -> None:
        """Ends slurmrestd, and the cluster if `start` started it."""
        if self._owns_cluster:
            self._owns_cluster = False
            self.cluster.stop()
        elif self.cluster.pid(self.name) is not None:
            self.cluster.stop_daemon(self.name)

    def restart(self) -> None:
        self.cluster.stop_daemon(self.name)
        self._start()

    def log(self) -> str:
        return self.cluster.log(self.name)

    def scontrol_token(self, user: str, lifespan_s: int = 1800) -> str:
        """A token that slurmctld made."""
        argv = ["scontrol", "token", f"username={user}", f"lifespan={lifespan_s}"]
        printed = self.cluster.run_as("root", argv, check=True).stdout
        match = re.search(r"SLURM_JWT=(\S+)", printed)
        if match is None:
            raise RigError(f"scontrol token: {printed}")
        return match[1]

    @property
    def newest(self) -> str:
        """Of the versions that this slurmrestd describes: "v0.0.38" of 22.05, "v0.0.42" of 24.11."""
        if not self._newest:
            status, spec = self.ask(
                "GET", "/openapi", user="root", token=self.scontrol_token("root")
            )
            if status != 200:
                raise RigError(f"slurmrestd's specification: {status} {spec}")
            found = re.findall(r"/slurm/v0\.0\.(\d+)/", " ".join(spec["paths"]))
            self._newest = f"v0.0.{max(map(int, found))}"
        return self._newest

    def path(self, text: str) -> str:
        """``slurm/ping`` of the newest version."""
        half, _, rest = text.partition("/")
        return f"/{half}/{self.newest}/{rest}"

    def ask(
        self,
        method: str,
        path: str,
        *,
        user: str | None = None,
        token: str | None = None,
        body: Any = None,
        over: str = "tcp",
        timeout_s: float = 30,
    ) -> tuple[int, Any]:
        """One request, by the standard library alone: status, and the JSON document or the text."""
        connection = (
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
            if over == "tcp"
            else _UnixConnection(str(self.socket), timeout_s)
        )
        headers = {"Accept": "application/json"}
        headers |= {"X-SLURM-USER-NAME": user} if user is not None else {}
        headers |= {"X-SLURM-USER-TOKEN": token} if token is not None else {}
        data = None
        if body is not None:
            data = json.dumps(body)
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body=data, headers=headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connects(where: tuple[str, int] | str) -> bool:
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(2)
        return probe.connect_ex(where) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
