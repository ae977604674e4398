# SPDX-License-Identifier: BSD-3-Clause
"""The Django application; its label, and so the prefix of its tables, is ``bank``."""

from __future__ import annotations

from django.apps import AppConfig


class BankConfig(AppConfig):
    name = "slurm_banking.server"
    label = "bank"
    verbose_name = "Bank"
    default_auto_field = "django.db.models.BigAutoField"
