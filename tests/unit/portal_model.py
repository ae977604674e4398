# SPDX-License-Identifier: BSD-3-Clause
"""The portal as its operators observe it, small and in this process: a transport under the real client and adapter.

It counts as the portal does (a POST by its start, a PUT by all three dates and the difference of the amounts, floored
at 0), and it can lose a request or a reply, be in maintenance, or let something happen while it works.
"""

from __future__ import annotations

import datetime
import io
import json
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Tuple
from urllib.parse import parse_qs, unquote, urlsplit

import requests
import urllib3
from requests.adapters import BaseAdapter, HTTPAdapter

UTC = datetime.timezone.utc
HTML = "<html><body><h1>Service Unavailable</h1></body></html>"


def su(csu: int) -> str:
    return f"{'-' if csu < 0 else ''}{abs(csu) // 100}.{abs(csu) % 100:02d}"


def csu(text: str) -> int:
    whole, _, places = text.partition(".")
    return int(whole) * 100 + int((places + "00")[:2])


@dataclass
class Member:
    uid: str
    name: str
    limit_csu: int
    used_csu: int = 0
    active: bool = True


@dataclass
class Project:
    name: str
    allocation_id: int
    start: datetime.date
    end: Optional[datetime.date]
    limit_csu: int
    used_csu: int = 0
    status: str = "Active"
    members: Dict[str, Member] = field(default_factory=dict)


class Portal(BaseAdapter):
    """Mount it on a ``requests.Session``."""

    def __init__(self, *, generation: str = "today") -> None:
        super().__init__()
        self.generation = generation
        self.projects: Dict[str, Project] = {}
        self.jobs: Dict[str, Dict[str, Any]] = {}
        self.requests: List[Tuple[str, str]] = []
        self.faults: List[
            str
        ] = []  #: for the next requests: "", "lose_request", "lose_reply", "maintenance", "500", "other_row"
        #: called once with the job, after one was stored and before that is answered
        self.meanwhile: Optional[Callable[[Dict[str, Any]], None]] = None
        self.allow_all = False

    def project(self, name: str, limit_csu: int, **changes: Any) -> Project:
        values: Dict[str, Any] = dict(
            name=name,
            allocation_id=len(self.projects) + 1,
            start=datetime.date(2026, 6, 1),
            end=None,
            limit_csu=limit_csu,
        )
        made = Project(**{**values, **changes})
        self.projects[name] = made
        return made

    def member(self, project: Project, uid: int, limit_csu: Optional[int] = None) -> Member:
        limit = project.limit_csu if limit_csu is None else limit_csu
        made = Member(uid=str(uid), name=f"user{uid}", limit_csu=limit)
        project.members[str(uid)] = made
        return made

    def session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.mount("http://", self)
        return session

    # -- transport ------------------------------------------------------------------------------------------------------

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:  # type: ignore[override]
        assert request.method is not None and request.url is not None
        parts = urlsplit(request.url)
        path = parts.path.split("/api/", 1)[1]
        self.requests.append((request.method, path))
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "lose_request":
            raise requests.exceptions.ConnectionError("the request was lost")
        if fault == "maintenance":
            return self._answer(request, 503, HTML)
        body = json.loads(request.body) if request.body else None
        if fault == "other_row" and request.method != "GET":
            status = 201 if request.method == "POST" else 200
            return self._answer(request, status, {**body, "jobslurmid": "97"})
        status, answer = self._handle(request.method, path, parse_qs(parts.query), body)
        if self.meanwhile is not None and request.method != "GET":
            happens, self.meanwhile = self.meanwhile, None
            happens(body)
        if fault == "500":
            return self._answer(request, 500, HTML)
        if fault == "lose_reply":
            raise requests.exceptions.ConnectionError("the reply was lost")
        return self._answer(request, status, answer)

    def close(self) -> None:
        pass

    def _answer(
        self, request: requests.PreparedRequest, status: int, answer: Any
    ) -> requests.Response:
        html = isinstance(answer, str)
        content = answer.encode() if html else json.dumps(answer).encode()
        raw = urllib3.HTTPResponse(
            body=io.BytesIO(content),
            headers={
                "Content-Type": "text/html" if html else "application/json",
                "Content-Length": str(len(content)),
            },
            status=status,
            preload_content=False,
        )
        return HTTPAdapter().build_response(request, raw)

    # -- the API --------------------------------------------------------------------------------------------------------

    def _handle(
        self, method: str, path: str, query: Dict[str, List[str]], body: Any
    ) -> Tuple[int, Any]:
        words = [unquote(word) for word in path.strip("/").split("/")]
        if words[0] == "can_submit_job":
            return self._can_submit(words[1], words[2], words[3])
        if words[0] == "jobs":
            if method == "POST":
                return self._create(body)
            if method == "PUT":
                return self._update(body)
            if len(words) == 1:
                state = query.get("jobstatus", [""])[0]
                return _page([job for job in self.jobs.values() if job["jobstatus"] == state])
            job = self.jobs.get(words[1])
            return (404, {"detail": "Not found."}) if job is None else (200, job)
        if self.generation == "original":
            return 404, "<h1>Not Found</h1>"
        project = self.projects.get(query.get("project", [""])[0])
        if words[0] in ("allocations", "allocation_users") and len(words) == 1 and project is None:
            return 400, {
                "project": [
                    "Select a valid choice. That choice is not one of the available choices."
                ]
            }
        if words == ["allocations"]:
            assert project is not None
            return _page([self._allocation(project)])
        if words[0] == "allocations":
            project = next(p for p in self.projects.values() if p.allocation_id == int(words[1]))
            return _page(
                [_attribute(project.allocation_id, {}, project.limit_csu, project.used_csu)]
            )
        if words == ["allocation_users"]:
            assert project is not None
            return _page([
                self._allocation_user(project, member)
                for member in project.members.values()
                if "user" not in query or member.name in query["user"]
            ])  # fmt: skip
        if words[0] == "allocation_users":
            key = int(words[1])
            project = next(p for p in self.projects.values() if p.allocation_id == key // 1_000_000)
            member = project.members[str(key % 1_000_000)]
            owner = {"allocation_user": key}
            return _page(
                [_attribute(project.allocation_id, owner, member.limit_csu, member.used_csu)]
            )
        if words == ["users"]:
            everybody = {m.name: m.uid for p in self.projects.values() for m in p.members.values()}
            return _page([
                {"id": int(uid), "username": name, "profile": {"cluster_uid": uid}}
                for name, uid in everybody.items()
                if "username" not in query or name in query["username"]
            ])  # fmt: skip
        return 404, {"detail": "Not found."}

    def _allocation(self, project: Project) -> Dict[str, Any]:
        return {
            "id": project.allocation_id,
            "project": project.name,
            "resources": [{"name": "Savio Compute"}],
            "status": project.status,
            "start_date": project.start.isoformat(),
            "end_date": project.end.isoformat() if project.end else None,
            "justification": "x",
        }

    def _allocation_user(self, project: Project, member: Member) -> Dict[str, Any]:
        return {
            "id": project.allocation_id * 1_000_000 + int(member.uid),
            "allocation": project.allocation_id,
            "user": member.name,
            "user_id": str(int(member.uid) + 7),
            "project": project.name,
            "status": "Active" if member.active else "Removed",
        }

    def _refusal(self, uid: str, account: str) -> Optional[Tuple[int, Dict[str, List[str]]]]:
        if not any(uid in project.members for project in self.projects.values()):
            return 400, {"userid": [f"UserProfile for cluster_uid {uid} does not exist."]}
        project = self.projects.get(account)
        if project is None:
            return 400, {"accountid": [f"Object with name={account} does not exist."]}
        text = None
        if uid not in project.members or not project.members[uid].active:
            text = f"User user{uid} is not a member of account {account}."
        elif project.status != "Active":
            text = f"Account {account} has no active compute allocation."
        return None if text is None else (400, {"non_field_errors": [text]})

    def _can_submit(self, cost: str, uid: str, account: str) -> Tuple[int, Any]:
        if self.allow_all:
            return 200, {"success": True, "message": "can be submitted"}
        original = self.generation == "original"
        if not any(uid in project.members for project in self.projects.values()):
            return 400, {"success": False, "message": f"No user exists with user_id {uid}."}
        if account not in self.projects:
            return 400, {
                "success": False,
                "message": f"No account exists with account_id {account}.",
            }
        project = self.projects[account]
        refusal = self._refusal(uid, account)
        if refusal is not None:
            text = next(iter(refusal[1].values()))[0]
            return (400 if original else 200), {"success": False, "message": text}
        member = project.members[uid]
        if csu(cost) + project.used_csu > project.limit_csu:
            return 200, {"success": False, "message": "would exceed account allocation"}
        if csu(cost) + member.used_csu > member.limit_csu:
            return 200, {"success": False, "message": "would exceed user allocation"}
        return 200, {"success": True, "message": "can be submitted"}

    def _create(self, body: Dict[str, Any]) -> Tuple[int, Any]:
        if body["jobslurmid"] in self.jobs:
            return 400, {"jobslurmid": ["job with this jobslurmid already exists."]}
        refusal = self._invalid(body)
        if refusal is not None:
            return refusal
        project = self.projects[body["accountid"]]
        if (
            body.get("submitdate")
            and body.get("startdate")
            and _time(body["startdate"]) >= _midnight(project.start)
        ):
            self._use(project, body["userid"], csu(body["amount"]))
        self.jobs[body["jobslurmid"]] = dict(body)
        return 201, body

    def _update(self, body: Dict[str, Any]) -> Tuple[int, Any]:
        old = self.jobs.get(body["jobslurmid"])
        if old is not None:
            for name in ("userid", "accountid"):
                if old[name] != body[name]:
                    return 400, {name: [f"Specified {name} does not match already associated one."]}
        refusal = self._invalid(body)
        if refusal is not None:
            return refusal
        project = self.projects[body["accountid"]]
        dates = [body.get(name) for name in ("submitdate", "startdate", "enddate")]
        if all(dates):
            ends = (
                None if project.end is None else _midnight(project.end + datetime.timedelta(days=1))
            )
            inside = _time(dates[1]) >= _midnight(project.start) and (
                ends is None or _time(dates[2]) < ends
            )
            if inside:
                self._use(
                    project,
                    body["userid"],
                    csu(body["amount"]) - (csu(old["amount"]) if old else 0),
                )
        self.jobs[body["jobslurmid"]] = {**(old or {}), **body}
        return 200, self.jobs[body["jobslurmid"]]

    def _invalid(self, body: Dict[str, Any]) -> Optional[Tuple[int, Any]]:
        for name in ("partition", "jobstatus"):
            if len(body.get(name) or "") > 50:
                return 400, {name: ["Ensure this field has no more than 50 characters."]}
        dates = [_time(body[n]) for n in ("submitdate", "startdate", "enddate") if body.get(n)]
        if dates != sorted(dates):
            return 400, {"non_field_errors": ["Job start date occurs before Job submit date."]}
        return self._refusal(body["userid"], body["accountid"])

    def _use(self, project: Project, uid: str, difference_csu: int) -> None:
        project.used_csu = max(project.used_csu + difference_csu, 0)
        member = project.members[uid]
        member.used_csu = max(member.used_csu + difference_csu, 0)


def _attribute(allocation: int, owner: Dict[str, int], limit: int, used: int) -> Dict[str, Any]:
    return {
        "id": 1,
        "allocation_attribute_type": "Service Units",
        "allocation": allocation,
        **owner,
        "value": su(limit),
        "usage": {"value": su(used)},
    }


def _page(rows: List[Any]) -> Tuple[int, Any]:
    return 200, {"count": len(rows), "next": None, "previous": None, "results": rows}


def _time(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _midnight(day: datetime.date) -> float:
    return datetime.datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
