# SPDX-License-Identifier: BSD-3-Clause
"""Facts of the running Python, for the Makefile.

::

    python_facts.py                  nine facts: what the plugins embed and import from
    python_facts.py tomli DIR...     what slurmctld's Python needs besides, which imports from these directories

Below 3.11 there is no tomllib, and where a distribution keeps pure packages apart from compiled ones, tomli is not in
the directory of cffi's backend. The second form prints nothing if nothing is needed, the package's directory if it has
to be copied, or "missing".
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from typing import Optional, Sequence, Tuple


def site_dir() -> str:
    """Where the distribution keeps requests and friends, for the relay and the command (not for slurmctld)."""
    import _cffi_backend

    try:
        import requests
    except ImportError:
        return str(Path(_cffi_backend.__file__).resolve().parent)
    return str(Path(requests.__file__).resolve().parent.parent)


def tomli_to_copy(
    version: Tuple[int, ...], found: Optional[str], import_dirs: Sequence[str]
) -> str:
    """:param found: tomli's ``__init__`` file; None: there is none."""
    if version >= (3, 11):
        return ""
    if found is None:
        return "missing"
    package = Path(found).resolve().parent
    if package.parent in [Path(directory).resolve() for directory in import_dirs]:
        return ""
    return str(package)


def main() -> None:
    if sys.argv[1:2] == ["tomli"]:
        spec = importlib.util.find_spec("tomli")
        print(tomli_to_copy(sys.version_info[:2], spec.origin if spec else None, sys.argv[2:]))
        return
    import _cffi_backend

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
