# SPDX-License-Identifier: BSD-3-Clause
"""Check constraints for every Django that the bank works with; used by models and migrations."""

from __future__ import annotations

from typing import Any

import django
from django.db import models


def check_constraint(condition: models.Q, name: str) -> models.CheckConstraint:
    """Under the keyword that this Django knows: ``check`` before 5.1."""
    keyword = "condition" if django.VERSION >= (5, 1) else "check"
    arguments: dict[str, Any] = {keyword: condition, "name": name}
    return models.CheckConstraint(**arguments)
