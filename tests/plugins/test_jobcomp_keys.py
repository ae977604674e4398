# SPDX-License-Identifier: BSD-3-Clause
"""[JobComp] is read twice, in C without Python and by check-config: both say the same of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slurm_banking.config import load
from slurm_banking.errors import ConfigError

from .conftest import HERE, ROOT, SANITIZERS, compile_c

START = '[API]\nurl = "https://bank.example.org/api"\n[Policy]\n'
Scan = Callable[[Path], dict[str, tuple[str, str]]]


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """Key → ("right", value) or ("wrong", what was expected), as C reads a file."""
    program = tmp_path_factory.mktemp("scan") / "print_policy"
    sources = (HERE / "print_policy.c", ROOT / "csrc" / "policy_scan.c")
    compile_c(*SANITIZERS, f"-I{ROOT}/csrc", *sources, "-o", program)

    def run(path: Path) -> dict[str, tuple[str, str]]:
        done = subprocess.run([str(program), str(path)], capture_output=True, check=True)
        words = [line.split(" ", 2) for line in done.stdout.decode().split("\n")[:-1]]
        return {key: (verdict, rest) for key, verdict, rest in words}

    return run


def python_reads(path: Path) -> dict[str, str]:
    """:raises ConfigError: as check-config would print it."""
    config = load(str(path), in_slurmctld=False)
    return {"log": config.jobcomp.log, "pass_on": config.jobcomp.pass_on}


RIGHT = {
    "nothing": "",
    "an empty section": "[JobComp]",
    "both": '[JobComp]\nlog = "/var/log/slurm/jobcomp.log"\npass_on = "jobcomp/elasticsearch"',
    "off": '[JobComp]\nlog = ""\npass_on = ""',
    "single quotes": "[JobComp]\nlog = '/var/log/x'",
    "spaces, tabs and comments": '  [ JobComp ] # x\n\t log\t=  "/var/log/a b # c"\t# "d"',
    "no spaces": '[JobComp]\nlog="/x"#y',
    "Windows' line ends": '[JobComp]\r\nlog = "/x"\r\n',
    "a path of 500 bytes": f'[JobComp]\nlog = "/{"é" * 249}a"',
    "keys of the same name elsewhere": "[JobComp]\n[PartitionPrice]\nlog = 1\npass_on = 2",
    "no newline at the end": '[JobComp]\npass_on = "jobcomp/kafka_2"',
}


@pytest.mark.parametrize("how", RIGHT)
@pytest.mark.parametrize("first", [False, True])
def test_what_is_right_is_read_alike(how: str, first: bool, scan: Scan, tmp_path: Path) -> None:
    path = tmp_path / "bank-config.toml"
    text = RIGHT[how] + "\n" + START if first else START + RIGHT[how]
    path.write_text(("\ufeff" if first else "") + text, newline="")
    expected = python_reads(path)
    assert scan(path) == {key: ("right", value) for key, value in expected.items()}
    assert ("log" in RIGHT[how].split("[P")[0]) == bool(expected["log"]) or how == "off"


WRONG: dict[str, list[str]] = {
    "log": [
        *("5", "true", '["/x"]', '"x"', '"./x"', '"/x/"', '"/"', '"a/b"', "'/a\"b'", '"/a\'b"'),
        *(f'"/{"a" * 500}"', f'"/{"a" * 5000}"', f'"/{"é" * 250}"', '"/a\tb"', '{ file = "/x" }'),
    ],
    "pass_on": [
        *("5", "false", '"elasticsearch"', '"jobcomp/"', '"jobcomp/a-b"', '"jobcomp/A"'),
        *('"jobcomp/../x"', '" jobcomp/x"', f'"jobcomp/{"a" * 65}"', '"jobcomp/slurm_banking"'),
    ],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_what_is_wrong_is_wrong_to_both_with_the_same_words(
    key: str, value: str, scan: Scan, tmp_path: Path
) -> None:
    path = tmp_path / "bank-config.toml"
    path.write_text(f"{START}[JobComp]\n{key} = {value}\n")
    verdict, expected = scan(path)[key]
    assert verdict == "wrong"
    with pytest.raises(ConfigError) as caught:
        python_reads(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: ")
    if "\t" not in value:  # no TOML at all
        assert problem.startswith(f"{path}: [JobComp] {key} = ")
        assert problem.endswith(f": {expected}")


#: TOML that C does not understand: Python would read it, and so must not take it.
ELSEWHERE = {
    "an escape": '[JobComp]\nlog = "/var\\u002flog"',
    "a quoted section": '["JobComp"]\nlog = "/x"',
    "a quoted key": '[JobComp]\n"log" = "/x"',
    "an inline table": 'JobComp = { log = "/x" }\n' + START,
    "a dotted key": 'JobComp.pass_on = "jobcomp/x"\n' + START,
    "a string of several lines": '[JobComp]\nlog = """/x"""',
    "a section inside a string": START + 'contact = """\n[JobComp]\nlog = "/x"\n"""',
    "behind a long line": f'[JobComp]\npass_on = "" # {"c" * 4100}\nlog = """\n/x"""',
    "in the rest of a long line": f'[JobComp]\n#{"c" * 4094}log = "/x"',
}


@pytest.mark.parametrize("how", ELSEWHERE)
def test_what_c_would_read_otherwise_is_a_mistake(how: str, scan: Scan, tmp_path: Path) -> None:
    path = tmp_path / "bank-config.toml"
    text = ELSEWHERE[how]
    path.write_text(text if START in text or "contact" in text else START + text)
    with pytest.raises(ConfigError) as caught:
        python_reads(path)
    assert all("[JobComp] " in problem for problem in caught.value.problems)


piece = st.one_of(
    st.sampled_from(
        ["[JobComp]", "[Ledger]", "log", "pass_on", " = ", "=", '"', "'", "#", " ", "\t", "\\", "]"]
        + [
            "/var/log/x",
            "jobcomp/",
            "x",
            '"""',
            "\n",
            "\r\n",
            "é",
            '"/x"',
            '"jobcomp/y"',
            "contact",
        ]
    ),
    st.text(alphabet=st.characters(codec="utf-8"), max_size=3),
)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pieces=st.lists(piece, max_size=25))
def test_a_file_that_is_taken_means_the_same_to_both(
    pieces: list[Any], scan: Scan, tmp_path: Path
) -> None:
    path = tmp_path / "bank-config.toml"
    path.write_bytes((START + "[JobComp]\n" + "".join(pieces)).encode("utf-8", "replace"))
    try:
        expected = python_reads(path)
    except ConfigError:
        return
    assert scan(path) == {key: ("right", value) for key, value in expected.items()}
