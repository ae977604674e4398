# SPDX-License-Identifier: BSD-3-Clause
"""Reading Slurm from outside, through its own commands or slurmrestd; for the relay and the command line, never inside
slurmctld. And :func:`connect`, for programs that submit jobs and want to know what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from slurm_banking.slurm.everyday import Slurm


def connect(url: Optional[str] = None, **options: Any) -> Slurm:
    """A cluster through its slurmrestd: ``ping diag nodes partitions jobs job quote submit cancel``.

    ``url``: ``http(s)://host:port`` or ``unix:///path``; None: as ``[slurmrestd]`` of bank-config.toml says, and its token.
    A token is one of ``token`` (itself), ``token_file``, ``token_env``, or ``key`` (it is made here, with ``kid`` for a PEM);
    none of them: the variable SLURM_JWT, or no token for a unix socket. ``user``: as whom; None: whom the token is for.
    ``api_version``, ``timeout_s``, ``verify`` (of TLS; True, False or a file of certificates): as in ``[slurmrestd]``.
    ``config``: another bank-config.toml; ``relay``: the socket of the relay that quotes, if not the one it names.

    :raises BankingError: nothing says where slurmrestd is, or there is no token. :raises ConfigError: mistakes in the file.
    """
    # Here and not above: slurmctld's side imports modules of this package, and must not get requests with them.
    from slurm_banking.slurm import everyday

    return everyday.connect(url, **options)
