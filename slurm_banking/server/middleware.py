# SPDX-License-Identifier: BSD-3-Clause
"""A middleware of our own, and Django's for /admin/ only.

A call of the API has a token and no cookie: sessions, CSRF and messages would cost time and answer with HTML.
The classes stay subclasses of Django's, which is what the admin's own checks ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.common import CommonMiddleware
from django.middleware.csrf import CsrfViewMiddleware
from django.middleware.security import SecurityMiddleware

API_PREFIX = "/api/"


class Api:
    """What the API needs of middleware: no NUL in names (PostgreSQL cannot even compare with one), and the length of
    the answer, without which the server closes the connection after each."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
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
