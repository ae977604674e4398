# SPDX-License-Identifier: BSD-3-Clause
"""Django settings, all of them derived from :mod:`slurm_banking.server.options`."""

from __future__ import annotations

from slurm_banking.server.options import load_options, prepare_data_dir, secret_key

BANK = load_options()
prepare_data_dir(BANK.data_dir)

SECRET_KEY = secret_key(BANK.data_dir)
DEBUG = False
ALLOWED_HOSTS = list(BANK.allowed_hosts)
ROOT_URLCONF = "slurm_banking.server.urls"
WSGI_APPLICATION = None

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "slurm_banking.server.apps.BankConfig",
]
#: All but the first steps aside for /api/, which has neither cookies nor sessions.
MIDDLEWARE = [
    "slurm_banking.server.middleware.Api",
    "slurm_banking.server.middleware.AdminSecurity",
    "slurm_banking.server.middleware.AdminSession",
    "slurm_banking.server.middleware.AdminCommon",
    "slurm_banking.server.middleware.AdminCsrf",
    "slurm_banking.server.middleware.AdminAuthentication",
    "slurm_banking.server.middleware.AdminMessages",
    "slurm_banking.server.middleware.AdminFrameOptions",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {"default": dict(BANK.database)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("MinimumLengthValidator", "CommonPasswordValidator", "NumericPasswordValidator")
]

USE_TZ = True
USE_I18N = False
TIME_ZONE = BANK.time_zone
STATIC_URL = "/static/"
CSRF_FAILURE_VIEW = "django.views.csrf.csrf_failure"
SESSION_COOKIE_HTTPONLY = True
SESSION_EXPIRE_AT_BROWSER_CLOSE = True
DATA_UPLOAD_MAX_MEMORY_SIZE = 1 << 20

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["slurm_banking.server.tokens.ScopedTokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["slurm_banking.server.tokens.ScopeAllows"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": [
        "slurm_banking.server.parsers.BoundedJSONParser",
        "rest_framework.parsers.FormParser",
    ],
    "DEFAULT_THROTTLE_RATES": {"login": "20/min"},
    "EXCEPTION_HANDLER": "slurm_banking.server.views.answer_for_exception",
    "NUM_PROXIES": 0,
    "UNAUTHENTICATED_USER": None,
    "UNAUTHENTICATED_TOKEN": None,
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        "django": {"handlers": [], "level": "ERROR", "propagate": True},
        "django.request": {"handlers": [], "level": "ERROR", "propagate": True},
    },
}
