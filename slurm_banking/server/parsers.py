# SPDX-License-Identifier: BSD-3-Clause
"""Reading request bodies; their size is bounded by the server (:mod:`slurm_banking.server.serve`)."""

from __future__ import annotations

from typing import Any, Optional

from rest_framework import exceptions, parsers


class BoundedJSONParser(parsers.JSONParser):
    """DRF's, for which nesting beyond Python's stack is a bad request too."""

    def parse(
        self, stream: Any, media_type: Optional[str] = None, parser_context: Any = None
    ) -> Any:
        try:
            return super().parse(stream, media_type, parser_context)
        except RecursionError:
            raise exceptions.ParseError("JSON parse error - nested too deeply") from None
