# SPDX-License-Identifier: BSD-3-Clause
"""Everyday Slurm against a small slurmrestd of the test's: where it is looked for, as whom, and what a refusal says."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from slurm_banking.cli.sbatch import OptionError
from slurm_banking.errors import BankingError, ConfigError, RelayUnavailable
from slurm_banking.slurm import connect
from slurm_banking.slurm.everyday import JobRefused, Slurm

SCRIPT = "#!/bin/bash\n#SBATCH --time=5\nsrun hostname\n"
TAKEN = {
    "meta": {},
    "errors": [],
    "job_id": 7,
    "step_id": "BATCH",
    "job_submit_user_msg": "up to 1.00 SU",
}
COMPLAINT = {"error_code": 2068, "error": "Requested nodes are down"}
REFUSED = {
    "meta": {},
    "errors": [{"error_code": 2050, "error": "Job violates accounting/QOS policy"}],
}
ACCEPTED = {
    "ok": True,
    "verdict": "accepted",
    "message": "fits",
    "estimate": {"cost_csu": 100},
    "account": "astro",
}
SHORT = {
    "ok": True,
    "verdict": "refused",
    "message": "astro has 1.00 SU available",
    "estimate": None,
}


class Restd:
    """``answer``: what a submission gets."""

    def __init__(self) -> None:
        self.answer: tuple[int, Mapping[str, Any]] = (200, TAKEN)
        self.asked: list[tuple[str, Mapping[str, str], Any]] = []
        restd = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                restd.asked.append((self.path, dict(self.headers), body))
                status, answer = restd.answer
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def restd() -> Iterator[Restd]:
    made = Restd()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join(5)


def slurm_at(
    restd: Restd, answer: Any = None, asked: list[Any] | None = None, **options: Any
) -> Slurm:
    """``answer``: the relay's; None: there is none."""

    def ask(request: Mapping[str, Any]) -> Mapping[str, Any]:
        if asked is not None:
            asked.append(request)
        if answer is None:
            raise RelayUnavailable("relay /run/relay.sock: No such file or directory")
        found: Mapping[str, Any] = answer
        return found

    return connect(
        restd.url, api_version="v0.0.38", ask=ask, **{"user": "alice", "token": "a.b.c", **options}
    )


def test_a_job_is_submitted_with_its_options_and_what_slurm_wants(restd: Restd) -> None:
    taken = slurm_at(restd).submit(SCRIPT, nodes=3, ntasks=3)
    assert (taken.job_id, taken.message, taken.problems) == (7, "up to 1.00 SU", ())
    ((path, headers, body),) = restd.asked
    assert path == "/slurm/v0.0.38/job/submit"
    assert (headers["X-SLURM-USER-NAME"], headers["X-SLURM-USER-TOKEN"]) == ("alice", "a.b.c")
    assert body["script"] == SCRIPT
    sent = {key: body["job"][key] for key in ("nodes", "tasks", "time_limit", "name")}
    assert sent == {"nodes": "3", "tasks": 3, "time_limit": "5", "name": "script"}
    assert body["job"]["environment"]["PATH"] and body["job"]["current_working_directory"]


def test_a_job_id_with_errors_is_a_job(restd: Restd) -> None:
    restd.answer = (200, {**TAKEN, "errors": [COMPLAINT]})
    taken = slurm_at(restd).submit({"job": {"tasks": 1}, "script": SCRIPT})
    assert taken.job_id == 7
    assert [(one.code, one.text) for one in taken.problems] == [(2068, "Requested nodes are down")]


def test_a_refusal_has_the_bank_s_reason_if_it_has_one(restd: Restd) -> None:
    restd.answer = (500, REFUSED)
    for answer, reason in ((SHORT, "astro has 1.00 SU available"), (ACCEPTED, ""), (None, "")):
        with pytest.raises(JobRefused) as error:
            slurm_at(restd, answer).submit(SCRIPT)
        assert (error.value.code, error.value.reason) == (2050, reason)
        assert ("astro has" in str(error.value)) == bool(reason)


def test_a_quote_is_asked_for_whom_the_job_is(restd: Restd) -> None:
    asked: list[Any] = []
    quote = slurm_at(restd, ACCEPTED, asked).quote(SCRIPT, ntasks=2)
    assert (quote.verdict, quote.cost_csu, quote.account) == ("accepted", 100, "astro")
    assert asked == [
        {"op": "quote", "options": {"time_limit_min": 5, "num_tasks": 2}, "user": "alice"}
    ]
    assert not restd.asked  # nothing was submitted


def test_options_beside_a_job_in_json_are_an_error(restd: Restd) -> None:
    with pytest.raises(OptionError):
        slurm_at(restd).submit({"job": {}, "script": SCRIPT}, nodes=3)
    assert not restd.asked


def test_where_slurmrestd_is_has_to_be_said_somewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(
        BankingError, match=r"\[slurmrestd\] url: missing: expected where slurmrestd is"
    ):
        connect()
    with pytest.raises(BankingError, match="no-such-scheme"):
        connect("no-such-scheme://x")


def test_the_token_of_the_variable_is_for_who_has_no_other(
    restd: Restd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    monkeypatch.setenv("SLURM_JWT", "not a token")
    with pytest.raises(BankingError, match="SLURM_JWT"):
        slurm_at(restd, token=None).submit(SCRIPT)
    assert slurm_at(restd).submit(SCRIPT).job_id == 7


def test_a_broken_configuration_is_no_trouble_of_who_says_where_to_go(
    restd: Restd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    (tmp_path / "bank-config.toml").write_text("[API\n")
    assert slurm_at(restd).submit(SCRIPT).job_id == 7
    with pytest.raises(ConfigError):
        connect()
