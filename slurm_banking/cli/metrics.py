# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking metrics``: the relay's metrics on stdout, or in a file for a collector that reads files."""

from __future__ import annotations

import os


def write(path: str, text: str) -> None:
    """All or nothing: whoever reads the file meanwhile sees the one before.

    :raises OSError: it cannot be written.
    """
    temporary = f"{path}.{os.getpid()}"
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
    )
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
