# SPDX-License-Identifier: BSD-3-Clause
"""The documents are true to the tree: targets, paths, tests, commands, messages, log lines."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from slurm_banking import messages
from slurm_banking.cli.program import make_parser
from slurm_banking.counters import RESULTS
from slurm_banking.estimate import estimate, what_would_fit
from slurm_banking.ledger.rows import SetAside
from slurm_banking.prices import PriceList
from slurm_banking.records import Outcome, Reason, Submission
from tests.builders import a_partition, a_submission

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
DECISIONS = DOCS / "decisions"
PAGES = sorted([README, ROOT / "CHANGELOG.md", ROOT / "csrc" / "README.md", *DOCS.rglob("*.md")])

#: A path of this tree, as the pages write one.
PATH = re.compile(
    r"`((?:\.ci|csrc|docker|docs|mybrc_client|slurm_banking|spec|tests)/[\w./{},-]*|[\w-]+\.(?:md|toml\.example))`"
)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
TEST_NAME = re.compile(r"`(test_\w+)`")


def ids(path: object) -> str:
    return str(path.relative_to(ROOT)) if isinstance(path, Path) else str(path)


def blocks(text: str) -> str:
    """What stands in fenced blocks."""
    return "\n".join(re.findall(r"^ *```\w*\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE))


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    return {
        name
        for line in re.findall(r"^([a-z][a-z -]*):(?!=)", text, re.MULTILINE)
        for name in line.split()
    }


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"`make ([a-z][a-z-]*)", text))
    named |= set(re.findall(r"^ *make ([a-z][a-z-]*)", blocks(text), re.MULTILINE))
    assert named <= make_targets()


def test_the_first_screen_has_the_two_commands() -> None:
    first_screen = "\n".join(README.read_text().splitlines()[:45])
    assert re.search(r"^make demo\b", first_screen, re.MULTILINE)
    assert re.search(r"^make test\b", first_screen, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_path_and_link_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    missing = [path for path in LINK.findall(text) if not (page.parent / path).exists()]
    for path in PATH.findall(text):
        if "{" not in path and not any((at / path).exists() for at in (ROOT, page.parent)):
            missing.append(path)
    assert not missing


def test_every_test_that_is_named_exists() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for page in PAGES:
        for name in TEST_NAME.findall(page.read_text()):
            assert f"def {name}(" in sources, f"{ids(page)}: {name}"


def test_every_module_of_the_promises_exists() -> None:
    """The table of promises names modules without their common directory."""
    table = (DOCS / "architecture.md").read_text().split("## 4.")[1].split("## 5.")[0]
    named = re.findall(r"`([a-z_/]+(?:\.py|\.c|\.sql|/))`", table)
    assert len(named) > 20
    for name in named:
        assert any((at / name).exists() for at in (ROOT, ROOT / "slurm_banking")), name
    assert re.findall(r"^\| (\d+) \|", table, re.MULTILINE) == [str(n) for n in range(1, 14)]


def test_every_module_is_in_the_layout() -> None:
    layout = (DOCS / "architecture.md").read_text().split("## 8.")[1].split("```")[1]
    package = ROOT / "slurm_banking"
    for path in package.iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert f"  {path.name}/" in layout, path.name
        elif path.suffix == ".py" and not path.name.startswith("__"):
            assert path.name in layout, path.name


def test_decisions_are_numbered_without_gaps_and_listed() -> None:
    listed = (DOCS / "architecture.md").read_text()
    found = sorted(DECISIONS.glob("*.md"))
    assert found
    for number, path in enumerate(found, 1):
        text = path.read_text()
        assert path.name.startswith(f"{number:04d}-")
        assert text.startswith(f"# {number}. ")
        for part in ("**Context.**", "**Decision.**", "**Consequences.**"):
            assert text.count(part) == 1, f"{path.name}: {part}"
        assert f"decisions/{path.name}" in listed


# The samples of the README, made again by what makes them for users.

PRICES = PriceList.of_cpus({"normal": Decimal(1)})


def asked(num_tasks: int) -> Submission:
    return a_submission(
        account="fc_astro",
        partitions=(a_partition(name="normal", total_cpus=4096, total_nodes=128),),
        num_tasks=num_tasks,
        min_cpus=num_tasks,
        time_limit_min=12 * 60,
    )


def test_the_accepted_job_of_the_readme_is_told_so() -> None:
    cost = estimate(asked(4), PRICES, unlisted="refuse", horizon_min=None)
    text = messages.accepted("fc_astro", cost, 120_00 - cost.cost_csu)
    sample = "".join(f"sbatch: {line}\n" for line in text.split("\n"))
    command = "$ sbatch --account=fc_astro --partition=normal --ntasks=4 --time=12:00:00 job.sh\n"
    assert command + sample in README.read_text()


def test_the_refused_job_of_the_readme_is_told_so() -> None:
    sub = asked(32)
    cost = estimate(sub, PRICES, unlisted="refuse", horizon_min=None)
    hints = what_would_fit(sub, PRICES, 120_00, unlisted="refuse", horizon_min=None)
    held = SetAside(queued_csu=64_00, queued_jobs=3, running_csu=32_00, running_jobs=2)
    text = messages.insufficient("fc_astro", cost, 120_00, Reason.INSUFFICIENT_FUNDS, held, hints)
    sample = "".join(f"sbatch: error: {line}\n" for line in text.split("\n"))
    command = "$ sbatch --account=fc_astro --partition=normal --ntasks=32 --time=12:00:00 job.sh\n"
    assert command + sample in README.read_text()


def test_the_job_of_the_first_week_is_told_so() -> None:
    cost = estimate(
        replace(asked(1), time_limit_min=180), PRICES, unlisted="refuse", horizon_min=None
    )
    note = messages.would_be_refused(Reason.INSUFFICIENT_FUNDS, "fc_astro", 2_00)
    assert (
        f"sbatch: {messages.accepted('fc_astro', cost, None, note)}\n"
        in (DOCS / "install.md").read_text()
    )


# Commands.


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_in_a_block_can_be_parsed(page: Path) -> None:
    parser = make_parser(with_bank=True)
    text = page.read_text()
    for line in blocks(text).splitlines():
        match = re.match(r"\s*(?:\$ )?(slurm-banking |\$bank )(.*)", line)
        if match is None:
            continue
        words = shlex.split(match[2], comments=True)
        if words[-1:] == ["&"]:
            del words[-1]
        if match[1] == "$bank ":
            words.insert(0, "bank")
        if any(re.search(r"[|…<>&\[\]]|^[A-Z]{2,}$", word) for word in words):
            continue  # a form, not a command
        try:
            parser.parse_args(words)
        except SystemExit:
            pytest.fail(f"not a command: {line}")


# Log lines.

#: The first word of a line that is logged: an event, and then key=value or a placeholder for one.
EVENT = re.compile(
    r"""(?:\blog(?:\.(?:debug|info|warning|error|exception))?\(|_problem\()\s*(?:[A-Za-z_]+,\s*)*f?["']([a-z]+(?:_[a-z]+)+)\b"""
)


def logged_events() -> set[str]:
    events: set[str] = set()
    for path in (ROOT / "slurm_banking").rglob("*.py"):
        events |= set(EVENT.findall(path.read_text()))
    return events


def test_every_line_that_is_logged_is_explained() -> None:
    text = (DOCS / "operating.md").read_text()
    events = logged_events()
    events |= {
        f"{what}_{outcome.value}" for what in ("submission", "update") for outcome in Outcome
    }
    assert {"config_rejected", "ledger_unavailable", "bank_away"} <= events
    unexplained = {event for event in events if f"`{event}" not in text}
    assert not unexplained


def test_every_reason_of_a_verdict_is_explained() -> None:
    text = (DOCS / "operating.md").read_text()
    assert not [reason.value for reason in Reason if f"`{reason.value}`" not in text]


#: Tests that read the page: a word there says nothing about the code.
READERS_OF_THE_PAGE = ("test_docs.py", "test_operations.py")

#: A row of a table, and what stands in its first cell.
ROW = re.compile(r"^\| (`.*?) \|", re.MULTILINE)

REASONS = "Reasons of refusals:"


def of_operating(section: str) -> str:
    text = (DOCS / "operating.md").read_text()
    return text.split(f"## {section}\n", 1)[1].split("\n## ")[0]


def first_cells(text: str) -> list[str]:
    return [item for cell in ROW.findall(text) for item in re.findall(r"`([^`]+)`", cell)]


def explained_lines() -> set[str]:
    """Of each line that the tables explain, what is always in it: its event, or its words up to what may vary."""
    lines: set[str] = set()
    for part in of_operating("What the lines mean").split("\n### ")[1:]:
        for item in first_cells(part.split(REASONS)[0]):
            event = re.match(r"[a-z]+(?:_[a-z]+)+\b(?!:)", item)
            fixed = max((piece.strip() for piece in item.split("…")), key=len)
            lines.add(event[0] if event else fixed)
    return lines


def explained_reasons() -> set[str]:
    part = of_operating("What the lines mean").split(REASONS)[1].split("\n### ")[0]
    accepted = re.findall(
        r"^\| `submission_accepted` \|.*", of_operating("What the lines mean"), re.M
    )
    (row,) = accepted
    words = re.findall(r"`([a-z_]+)`", row.split("`reason=` why:")[1].split(".")[0])
    return {item for item in first_cells(part) if item != "reason="} | set(words)


def sources_of_tests() -> str:
    return "\n".join(
        path.read_text()
        for path in (ROOT / "tests").rglob("test_*.py")
        if path.name not in READERS_OF_THE_PAGE
    )


def not_in(words: set[str], text: str) -> set[str]:
    def pattern(word: str) -> str:
        """Not as a part of another word."""
        end = r"(?![a-z_])" if word[-1].isalpha() else ""
        return rf"(?<![a-z_]){re.escape(word)}{end}"

    return {word for word in words if not re.search(pattern(word), text)}


def test_every_line_that_the_page_explains_is_in_a_test() -> None:
    lines = explained_lines()
    assert {"submission_refused", "sweep", "alarm source=", "jobcomp: ready", "socket_gone", "database_unavailable"} <= {
        re.sub(r"^sweep .*", "sweep", line) for line in lines
    }  # fmt: skip
    assert len(lines) > 80
    assert not not_in(lines, sources_of_tests())


def test_every_reason_that_the_page_explains_is_in_a_test() -> None:
    reasons = explained_reasons()
    of_c = {"text_too_long"}
    assert reasons <= {reason.value for reason in Reason} | of_c and len(reasons) > 18
    assert not not_in(reasons, sources_of_tests())


def test_every_event_that_the_page_explains_is_logged_somewhere() -> None:
    """The other way round: a line that is gone from the code is gone from the page."""
    code = "\n".join(
        path.read_text()
        for directory in ("slurm_banking", "csrc")
        for path in (ROOT / directory).rglob("*.[pch]*")
        if path.suffix in (".py", ".c", ".h")
    )
    made = {f"{what}_{outcome.value}" for what in ("submission", "update") for outcome in Outcome}
    made |= {f"run_{result}" for result in RESULTS}
    made |= {f"{phase}_{end}" for phase in ("start", "end") for end in re.findall(r'"%s_([a-z]+) ', code)}  # fmt: skip
    events = {line for line in explained_lines() if re.fullmatch(r"[a-z]+(_[a-z]+)+", line)}
    assert not not_in(events - made, code)


def test_every_section_for_whoever_is_woken_up_names_the_tests_that_show_it() -> None:
    sections = {
        heading.split("\n")[0]: heading
        for name in ("What is wrong", "Routine")
        for heading in of_operating(name).split("\n### ")[1:]
    }
    sections["Three looks"] = of_operating("Three looks")
    assert len(sections) > 15
    for heading, text in sections.items():
        last = text.rstrip().splitlines()[-1]
        assert last.startswith("Shown by: ") and TEST_NAME.findall(last), heading
    rows = re.findall(r"^\| .* \|$", of_operating("What happens when something breaks"), re.M)[2:]
    assert len(rows) > 15
    assert not [row for row in rows if not TEST_NAME.search(row.split("|")[-2])]


# How it is written.


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_nothing_of_a_workplace_is_in_the_pages(page: Path) -> None:
    text = page.read_text()
    for word in (
        r"/work/",
        r"\bTODO\b",
        r"\bFIXME\b",
        r"pypi\.org",
        r"registry\.",
        r"files\.pythonhosted",
    ):
        assert not re.search(word, text), word


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_samples_are_not_left_open(page: Path) -> None:
    assert len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) % 2 == 0
