# SPDX-License-Identifier: BSD-3-Clause
"""What imports what: one direction, and little of it inside slurmctld."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "slurm_banking"

#: The pure half: what slurmctld imports, and nothing of it knows the relay, the bank or the command line.
PURE = {"allocation", "amounts", "arrays", "charge", "config", "counters", "errors", "estimate", "ledger", "messages", "policy", "prices",
        "records", "settle", "state_dir", "tokens", "tres"}  # fmt: skip

#: What slurmctld may import of ours beyond the pure half: the boundary, and the question to the relay.
IN_SLURMCTLD = PURE | {"boundary", "relay.client", "relay.protocol", "relay"}

FORBIDDEN_IN_SLURMCTLD = ("requests", "urllib3", "http", "ssl", "_ssl", "hashlib", "_hashlib", "subprocess", "logging",
                          "asyncio", "multiprocessing", "concurrent", "mybrc_client", "attr", "attrs", "dateutil",
                          "random", "secrets", "uuid", "email", "urllib.request")  # fmt: skip

#: Whoever is looked up there may have to be asked for over a network. pathlib imports both from Python 3.13 on, for
#: calls that nothing in slurmctld makes.
NOT_FOR_OURS_IN_SLURMCTLD = {"pwd", "grp"}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules(*parts: str) -> list[Path]:
    paths: list[Path] = []
    for part in parts:
        single = PACKAGE / f"{part}.py"
        paths += [single] if single.exists() else sorted((PACKAGE / part).rglob("*.py"))
    return paths


def test_the_pure_half_imports_only_itself_and_the_standard_library() -> None:
    for path in modules(*sorted(PURE)):
        ours = {name for name in imports_of(path) if name.startswith("slurm_banking.")}
        for name in ours:
            assert name.split(".")[1] in PURE, f"{path.name} imports {name}"
        assert not any(
            name.split(".")[0] in ("requests", "attr", "mybrc_client", "cffi")
            for name in imports_of(path)
        ), path.name


def test_only_the_bank_adapter_and_the_nodes_report_import_the_client() -> None:
    """requests too, but for slurmrestd's transport."""
    for path in PACKAGE.rglob("*.py"):
        where = path.relative_to(PACKAGE).parts
        if where[0] in ("bank", "node_start.py"):
            continue
        kept_out = {"mybrc_client", "requests"}
        if where == ("slurm", "rest", "transport.py"):
            kept_out = {"mybrc_client"}
        wrong = [name for name in imports_of(path) if name.split(".")[0] in kept_out]
        assert not wrong, f"{'/'.join(where)} imports {wrong}"


def test_only_the_server_imports_django() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] != "server":
            assert not any(
                name.split(".")[0] in ("django", "rest_framework") for name in imports_of(path)
            ), path


def test_every_function_level_import_of_the_hot_path_is_done_before_the_first_job() -> None:
    for path in modules(
        "boundary", "policy", "settle", "messages", "estimate", "prices", "charge", "amounts"
    ):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inner = [
                    n for n in ast.walk(function) if isinstance(n, (ast.Import, ast.ImportFrom))
                ]
                assert not inner, f"{path.name}:{function.name} imports at call time"


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """sys.modules as an interpreter started like slurmctld's has it after the engine's import and one decision."""
    script = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
import slurm_banking.boundary.embedded
print(json.dumps(sorted(sys.modules)))
"""
    result = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    return set(json.loads(result.stdout))


def test_slurmctld_imports_nothing_that_speaks_to_a_network(loaded: set[str]) -> None:
    wrong = {name for name in loaded if name in FORBIDDEN_IN_SLURMCTLD or name.split(".")[0] in FORBIDDEN_IN_SLURMCTLD}  # fmt: skip
    assert not wrong


def test_nothing_of_ours_in_slurmctld_looks_anybody_up(loaded: set[str]) -> None:
    for name in loaded:
        if not name.startswith("slurm_banking."):
            continue
        path = PACKAGE.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        tree = ast.parse(path.read_text())
        imports = [node for node in tree.body if isinstance(node, ast.Import)]
        wrong = {a.name for node in imports for a in node.names} & NOT_FOR_OURS_IN_SLURMCTLD
        assert not wrong, f"{name} imports {wrong}"
        calls = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not calls & {"owner", "expanduser", "home"}, name


def test_slurmctld_imports_no_more_of_ours_than_listed(loaded: set[str]) -> None:
    for name in loaded:
        if name.startswith("slurm_banking."):
            rest = name.split(".", 1)[1]
            assert rest in IN_SLURMCTLD or rest.split(".")[0] in IN_SLURMCTLD - {"relay"}, name
