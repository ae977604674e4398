# SPDX-License-Identifier: BSD-3-Clause
"""Routes. A trailing slash may be missing: tools of the portal's sites leave it out."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import URLPattern, path, re_path

from slurm_banking.server import views

handler400 = views.bad_request
handler404 = views.not_found
handler500 = views.server_error


def _api(pattern: str, view: Any) -> URLPattern:
    return re_path(f"^api/{pattern}/?$", view.as_view())


urlpatterns = [
    _api("api_token_auth", views.ObtainToken),
    _api(
        "can_submit_job/(?P<job_cost>[^/]+)/(?P<user_id>[^/]+)/(?P<account_id>[^/]+)",
        views.CanSubmitJob,
    ),
    _api("jobs", views.Jobs),
    _api("jobs/(?P<jobslurmid>[^/.]+)", views.OneJob),
    _api("projects", views.Projects),
    _api("projects/(?P<pk>[^/]+)", views.Projects),
    _api("projects/(?P<project_pk>[^/]+)/users", views.ProjectUsers),
    _api("projects/(?P<project_pk>[^/]+)/users/(?P<pk>[^/]+)", views.ProjectUsers),
    _api("users", views.Users),
    _api("users/(?P<pk>[^/]+)", views.Users),
    _api("allocations", views.Allocations),
    _api("allocations/(?P<pk>[^/]+)", views.Allocations),
    _api("allocations/(?P<allocation_pk>[^/]+)/attributes", views.AllocationAttributes),
    _api(
        "allocations/(?P<allocation_pk>[^/]+)/attributes/(?P<pk>[^/]+)", views.AllocationAttributes
    ),
    _api("allocation_users", views.AllocationUsers),
    _api("allocation_users/(?P<pk>[^/]+)", views.AllocationUsers),
    _api(
        "allocation_users/(?P<allocation_user_pk>[^/]+)/attributes", views.AllocationUserAttributes
    ),
    _api(
        "allocation_users/(?P<allocation_user_pk>[^/]+)/attributes/(?P<pk>[^/]+)",
        views.AllocationUserAttributes,
    ),
    _api("partitions", views.Partitions),
    path("admin/", admin.site.urls),
    re_path(r"^static/(?P<path>.*)$", serve, {"insecure": True}),
]
