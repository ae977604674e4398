# SPDX-License-Identifier: BSD-3-Clause
"""How long to wait after which kind of failure. Nothing here reads a clock.

================================  ===========  ========  ==========================  =============
after                             first pause  then      at most                     jitter
================================  ===========  ========  ==========================  =============
the bank does not answer          1 s          doubled   ``deliver_retry_max_s``     0.7 to 1
the bank says for how long        as it says   as said   ``deliver_retry_max_s``     1 to 1.1
(``Retry-After``)
the bank refuses the token        60 s         doubled   ``deliver_retry_max_s``     0.7 to 1
one delivery had no answer        2 s          doubled   ``deliver_retry_max_s``     0.5 to 1
an account's answers make no      1 s          doubled   ``deliver_retry_max_s``     0.7 to 1
sense
an account gets no answers        4 s          doubled   30 s                        0.7 to 1
a refusal that may heal           180 s        the same  ``deliver_retry_max_s``     0.8 to 1
a refusal for good                never sent again by itself
================================  ===========  ========  ==========================  =============

Jitter, so that what failed together does not come back together; never below what the bank asked for, unless that is
above ``deliver_retry_max_s``: the site's word goes before the bank's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Callable, Optional

FIRST_PAUSE_S = 1.0
UNAUTHORIZED_PAUSE_S = 60.0
FIRST_DELIVERY_PAUSE_S = 2.0
HEAL_RETRY_S = 180.0
#: The longest pause of an account whose deliveries get no answer at all, while others' do.
UNANSWERED_ACCOUNT_S = 30.0

_MOST_DOUBLINGS = 30


@dataclass(frozen=True)
class Pauses:
    """Every method: seconds. ``uniform``: a number between two others, each as likely; tests pass their own."""

    longest_s: float  #: ``deliver_retry_max_s``
    uniform: Callable[[float, float], float] = random.uniform

    def bank_away(self, failures: int, asked_s: Optional[float] = None) -> float:
        """``failures``: in a row, this one among them; ``asked_s``: what the bank said, if it did."""
        pause_s = self._doubled(FIRST_PAUSE_S, failures) * self.uniform(0.7, 1)
        if asked_s is None:
            return pause_s
        return max(pause_s, min(asked_s * self.uniform(1, 1.1), self.longest_s))

    def unauthorized(self, failures: int) -> float:
        return self._doubled(UNAUTHORIZED_PAUSE_S, failures) * self.uniform(0.7, 1)

    def delivery(self, tries: int) -> float:
        return self._doubled(FIRST_DELIVERY_PAUSE_S, tries) * self.uniform(0.5, 1)

    def account(self, failures: int, *, answered: bool = True) -> float:
        """``answered``: in a way that makes no sense; otherwise not at all, and the bank's own pause is over before."""
        if answered:
            return self._doubled(FIRST_PAUSE_S, failures) * self.uniform(0.7, 1)
        pause_s = self._doubled(4 * FIRST_PAUSE_S, failures) * self.uniform(0.7, 1)
        return min(pause_s, UNANSWERED_ACCOUNT_S)

    def healing(self) -> float:
        return min(HEAL_RETRY_S, self.longest_s) * self.uniform(0.8, 1)

    def _doubled(self, first_s: float, times: int) -> float:
        return min(first_s * 2.0 ** min(max(times - 1, 0), _MOST_DOUBLINGS), self.longest_s)
