# SPDX-License-Identifier: BSD-3-Clause
"""The named queries of queries.sql."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict


def _load() -> Dict[str, str]:
    text = Path(__file__).with_name("queries.sql").read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return {name: body.strip().rstrip(";") for name, body in zip(parts[1::2], parts[2::2])}


QUERIES: Dict[str, str] = _load()
