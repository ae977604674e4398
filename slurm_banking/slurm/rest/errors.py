# SPDX-License-Identifier: BSD-3-Clause
"""What can go wrong with slurmrestd; all are SlurmUnavailable for who only wants to know whether there was an answer.

::

    SlurmUnavailable
     └── RestError            no answer, or none that makes sense: again, later
          ├── RestTooMuch       too long or too large an answer: less may be answered
          ├── RestUnauthorized  the token is wrong, has ended or is missing: not again with this one
          └── RestRefused       Slurm's own refusal, with its number: not again as it is
"""

from __future__ import annotations

from typing import Optional

from slurm_banking.errors import SlurmUnavailable


class RestError(SlurmUnavailable):
    """No answer from slurmrestd, or none that makes sense."""


class RestTooMuch(RestError):
    """An answer that was not complete in time, or larger than is read: half of it may come."""


class RestUnauthorized(RestError):
    """slurmrestd, or Slurm behind it, does not take the token."""


class RestRefused(RestError):
    """A refusal in Slurm's own words. ``code``: its error number, 2017 for a job id that is not known; None: none given."""

    def __init__(self, message: str, *, code: Optional[int] = None, status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
