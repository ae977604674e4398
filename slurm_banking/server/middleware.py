# SPDX-License-Identifier: BSD-3-Clause
"""A middleware of our own, and Django's for /admin/ only.

A call of the API has a token and no cookie: sessions, CSRF and messages would cost time and answer with HTML.
The classes stay subclasses of Django's, which is what the admin's own checks ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect, JsonResponse
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.common import CommonMiddleware
from django.middleware.csrf import CsrfViewMiddleware
from django.middleware.security import SecurityMiddleware

API_PREFIX = "/api/"


def portal_page(status: int, title: str) -> HttpResponse:
    """What the portal shows where a program would like JSON."""
    return HttpResponse(
        f"<!doctype html><html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>",
        status=status,
        content_type="text/html; charset=utf-8",
    )


class Api:
    """What the API needs of middleware: no NUL in names (PostgreSQL cannot even compare with one), and the length of
    the answer, without which the server closes the connection after each."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response
        self._portal = settings.BANK.compat == "portal"
        self._maintenance = settings.BANK.data_dir / "maintenance"

    def _as_the_portal(self, request: HttpRequest) -> Optional[HttpResponse]:
        """What :mod:`slurm_banking.server.portal_compat` answers before any view is asked."""
        if not request.path_info.startswith(API_PREFIX):
            return None
        try:
            seconds = self._maintenance.read_text().strip()
        except OSError:
            pass
        else:
            answer = portal_page(503, "Down for maintenance")
            if seconds:
                answer.headers["Retry-After"] = seconds
            return answer
        if not request.path_info.endswith("/"):
            query = request.META.get("QUERY_STRING", "")
            target = request.path + "/" + (f"?{query}" if query else "")
            return HttpResponsePermanentRedirect(target)
        return None

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if self._portal:
            answer = self._as_the_portal(request)
            if answer is not None:
                answer.headers["Content-Length"] = str(len(answer.content))
                return answer
        query = request.META.get("QUERY_STRING", "")
        if "\0" in request.path_info or "%00" in query or "\0" in query:
            return JsonResponse({"detail": "NUL characters are not allowed."}, status=400)
        response = self._get_response(request)
        if not response.streaming and not response.has_header("Content-Length"):
            response.headers["Content-Length"] = str(len(response.content))
        return response


class _NotForTheApi:
    get_response: Callable[[HttpRequest], HttpResponse]

    def __call__(self, request: HttpRequest) -> Any:
        if request.path_info.startswith(API_PREFIX):
            return self.get_response(request)
        return super().__call__(request)


class AdminSecurity(_NotForTheApi, SecurityMiddleware):
    pass


class AdminSession(_NotForTheApi, SessionMiddleware):
    pass


class AdminCommon(_NotForTheApi, CommonMiddleware):
    pass


class AdminCsrf(_NotForTheApi, CsrfViewMiddleware):
    pass


class AdminAuthentication(_NotForTheApi, AuthenticationMiddleware):
    pass


class AdminMessages(_NotForTheApi, MessageMiddleware):
    pass


class AdminFrameOptions(_NotForTheApi, XFrameOptionsMiddleware):
    pass
