# SPDX-License-Identifier: BSD-3-Clause
"""What can go wrong, as classes that answer "again?".

::

    BankingError
     ├── ConfigError          one or more mistakes in bank-config.toml; nothing of it is used
     ├── LedgerError          the ledger cannot be used (busy, full, broken, wrong owner, network file system)
     │    ├── LedgerBusy      again, at once or later
     │    └── EntryConflict   the same id with other content; names the field
     ├── BankError            the bank did not do what was asked
     │    ├── BankUnavailable   outage: again, later
     │    ├── BankUnauthorized  everything would fail: pause and alert
     │    └── BankRefused       a refusal: not again as it is; ``heals`` when membership or allocation may come back
     ├── SlurmUnavailable     a Slurm command failed or its answer was incomplete: again, later
     └── RelayUnavailable     nobody answers on the relay's socket
"""

from __future__ import annotations

from typing import Optional, Sequence, Tuple


class BankingError(Exception):
    """Base of all errors that this package raises on purpose; ``str()`` is one line fit for a log."""


class ConfigError(BankingError):
    """Mistakes in a configuration file, all of them at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems: Tuple[str, ...] = tuple(problems)
        super().__init__("; ".join(self.problems))


class LedgerError(BankingError):
    """The ledger cannot be used."""


class LedgerBusy(LedgerError):
    """Another process holds the ledger for longer than the caller may wait."""


class EntryConflict(LedgerError):
    """An id that the ledger has, with other content."""


class BankError(BankingError):
    """The bank did not do what was asked."""


class BankUnavailable(BankError):
    """No answer, a 5xx, or not the bank's language (HTML): try again later.

    ``retry_after_s``: for how long the bank asks to be left alone; None: it does not say. ``answered``: a complete answer
    came that is of no use, so that the trouble may lie with this question, and another be answered.
    """

    def __init__(
        self, message: str, *, retry_after_s: Optional[float] = None, answered: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.answered = answered


class BankUnauthorized(BankError):
    """401 or 403: the token is wrong or its scope too small; every call would fail."""


class BankRefused(BankError):
    """A well-formed refusal. ``heals``: may be accepted later without a change of ours (member or allocation not active)."""

    def __init__(self, message: str, *, heals: bool = False, status: int = 400) -> None:
        super().__init__(message)
        self.heals = heals
        self.status = status


class SlurmUnavailable(BankingError):
    """A Slurm command failed, timed out or answered incompletely."""


class RelayUnavailable(BankingError):
    """No relay, or none that answers in time."""
