# SPDX-License-Identifier: BSD-3-Clause
"""Print nine facts of the running Python, for the Makefile: what the plugins embed and import from."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import _cffi_backend


def site_dir() -> str:
    """Where the distribution keeps requests and friends, for the relay and the command (not for slurmctld)."""
    try:
        import requests
    except ImportError:
        return str(Path(_cffi_backend.__file__).resolve().parent)
    return str(Path(requests.__file__).resolve().parent.parent)


def main() -> None:
    facts = (
        sysconfig.get_path("stdlib"),
        sysconfig.get_config_var("DESTSHARED"),
        str(Path(_cffi_backend.__file__).resolve().parent),
        sysconfig.get_config_var("prefix"),
        sysconfig.get_path("include"),
        sysconfig.get_config_var("INSTSONAME"),
        sysconfig.get_config_var("LIBDIR"),
        "python" + sysconfig.get_config_var("LDVERSION"),
        site_dir(),
    )
    print(" ".join(str(fact) for fact in facts))


if __name__ == "__main__":
    main()
