# SPDX-License-Identifier: BSD-3-Clause
"""``Authorization: Token <key>``, and what each scope may do.

================  ====  ==============  ================================================
scope             GET   POST, PUT jobs  for
================  ====  ==============  ================================================
``admin``         yes   yes             allocation offices, scripts of theirs
``relay``         yes   yes             the relay of a cluster
``start-only``    no    one kind        nodes: POST of a job without end date and amount
``read``          yes   no              dashboards, command lines
================  ====  ==============  ================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from django.utils import timezone
from rest_framework import authentication, exceptions, permissions
from rest_framework.request import Request

from slurm_banking.server import statements
from slurm_banking.server.models import Token
from slurm_banking.server.operations import token_digest

READERS = frozenset({Token.ADMIN, Token.RELAY, Token.READ})
WRITERS = frozenset({Token.ADMIN, Token.RELAY})


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Whoever holds a token; takes the place of Django's user in requests of the API."""

    name: str
    scope: str
    is_authenticated: bool = True

    @property
    def actor(self) -> str:
        """As it is written into entries."""
        return f"token:{self.name}"


class ScopedTokenAuthentication(authentication.BaseAuthentication):
    def authenticate(self, request: Request) -> Optional[tuple[Caller, None]]:
        header = request.META.get("HTTP_AUTHORIZATION", "")
        keyword, _, key = header.strip().partition(" ")
        if keyword.lower() != "token":
            return None
        now = statements.instant(timezone.now())
        row = statements.fetch_one(statements.TOKEN, [now, token_digest(key.strip())])
        if row is None:
            raise exceptions.AuthenticationFailed("Invalid token.")
        name, scope, expired, revoked = row
        if revoked:
            raise exceptions.AuthenticationFailed("Revoked token.")
        if expired:
            raise exceptions.AuthenticationFailed("Expired token.")
        return Caller(name=name, scope=scope), None

    def authenticate_header(self, request: Request) -> str:
        return "Token"


class ScopeAllows(permissions.BasePermission):
    """A view says in ``scopes`` which scopes each method takes; a method it does not have goes on, to its 405."""

    def has_permission(self, request: Request, view: Any) -> bool:
        caller = request.user
        if caller is None:
            return False
        allowed = view.scopes.get("GET" if request.method == "HEAD" else request.method)
        if allowed is None or caller.scope in allowed:
            return True
        self.message = f"A token of scope {caller.scope} may not {request.method} this."
        return False
