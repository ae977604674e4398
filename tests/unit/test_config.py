# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any, List, Tuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slurm_banking import check_config, state_dir
from slurm_banking.config import DATED, TABLES, Config, Reloader, load, read_token, schema
from slurm_banking.errors import ConfigError
from slurm_banking.prices import Rates
from slurm_banking.records import Mode

FIRST_GENERATION = """
[Enable]
enable_job_submit_plugin = true     # a comment
enable_spank_plugin = true
enable_job_complete_plugin = false

[PartitionPrice]
normal = 1
debug = 0.5
knl = 0.40
big = "2.67"

[QosMultiplier]
normal = 1
lowprio = 0

[API]
url = "https://bank.example.org/mybrc-rest/"
token = "Token 31415926535897932384"
"""

SMALL = '[API]\nurl = "https://bank.example.org/api"\n[PartitionPrice]\nnormal = 1\n[Policy]\n'

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes the owner of a file")


class Site:
    """A configuration file in a scratch directory, and files beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = str(directory / "bank-config.toml")

    def write(self, text: str, mode: int = 0o600) -> None:
        self.file("bank-config.toml", text, mode)

    def file(self, name: str, text: str, mode: int = 0o600) -> str:
        path = self.directory / name
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    def load(self, text: str, *, in_slurmctld: bool = False, mode: int = 0o600) -> Config:
        self.write(text, mode)
        return load(self.path, in_slurmctld=in_slurmctld)

    def problems(self, text: str) -> Tuple[str, ...]:
        with pytest.raises(ConfigError) as caught:
            self.load(text)
        return tuple(problem.replace(self.path, "FILE") for problem in caught.value.problems)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# The file of the first generation.


def test_a_file_of_the_first_generation_works_unchanged(site: Site) -> None:
    config = site.load(FIRST_GENERATION)
    assert config.enable.enable_job_submit_plugin and not config.enable.enable_job_complete_plugin
    assert config.prices.partitions == {
        "normal": Rates(cpu=Decimal(1)),
        "debug": Rates(cpu=Decimal("0.5")),
        "knl": Rates(cpu=Decimal("0.40")),
        "big": Rates(cpu=Decimal("2.67")),
    }
    assert config.dated_prices == ()
    assert config.prices.multiplier("lowprio") == 0
    assert config.api.url == "https://bank.example.org/mybrc-rest"
    assert read_token(config) == "31415926535897932384"


def test_without_policy_it_gets_what_it_had_and_a_warning(site: Site) -> None:
    config = site.load(FIRST_GENERATION)
    assert config.policy.mode is Mode.FAST_ALLOCATION
    assert config.policy.unlisted_partition == "free"
    assert [warning for warning in config.warnings if "[Policy] is missing" in warning]


def test_with_policy_the_default_is_strict(site: Site) -> None:
    config = site.load(SMALL)
    assert config.policy.mode is Mode.STRICT_ALLOCATION
    assert config.policy.unlisted_partition == "refuse"
    assert config.warnings == ()


def test_a_section_that_is_missing_has_its_defaults(site: Site) -> None:
    config = site.load(SMALL)
    assert config.enable.enable_job_submit_plugin
    assert config.ledger.state_dir == "/var/lib/slurm-banking"
    assert (config.relay.queue_poll_s, config.relay.sacct_lookback_h) == (5, 48)
    assert config.policy.horizon_min is None


def test_unlimited_time_in_days_is_a_horizon_in_minutes(site: Site) -> None:
    assert site.load(SMALL + "unlimited_time = 3").policy.horizon_min == 3 * 24 * 60


def test_overdraft_is_exact_in_hundredths(site: Site) -> None:
    assert site.load(SMALL).policy.overdraft_csu == 0
    policy = site.load(SMALL + "overdraft_su = 99_999_999.99\nlien_share = 0.25").policy
    assert policy.overdraft_csu == 9_999_999_999
    assert policy.lien_share == Decimal("0.25")


def test_accounts_and_qos_are_compared_as_slurm_stores_them(site: Site) -> None:
    config = site.load(
        SMALL + 'exempt_accounts = ["FC_Astro"]\nexempt_qos = ["High"]\nexempt_users = ["Bob"]'
    )
    assert (config.policy.exempt_accounts, config.policy.exempt_qos) == (("fc_astro",), ("high",))
    assert config.policy.exempt_users == ("Bob",)


def test_prices_are_exact_and_in_plain_notation(site: Site) -> None:
    config = site.load(SMALL.replace("normal = 1", "normal = 0.1\nmany = 1e3\nfew = 1.5e-3"))
    numbers = {name: rates.table() for name, rates in config.prices.partitions.items()}
    assert numbers == {"normal": "0.1", "many": "1000", "few": "0.0015"}


# Mistakes.


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[Policy]\nmode = 3", '[Policy] mode = 3: expected "strict-allocation"'),
        ('[Policy]\nmode = "strict"', "did you mean strict-allocation?"),
        ('[Policy]\nmod = "x"', '[Policy] mod = "x": unknown key; did you mean mode?'),
        ('[Policy]\nenforce = "off"', '[Policy] enforce = "off": expected "on" or "log"'),
        ("[Policy]\ntell_estimate = 1", "[Policy] tell_estimate = 1: expected true or false"),
        ('[Policy]\nunlimited_time = "3 days"', 'expected "refuse" or a whole number of days'),
        ("[Policy]\nunlimited_time = true", 'expected "refuse" or a whole number of days'),
        ('[Policy]\nexempt_users = "bob"', "expected a list of names"),
        ('[Policy]\nexempt_users = ["bob", 3]', "expected a list of names"),
        ('[Policy]\ncontact = "a\\u0007b"', "expected text"),
        ("[Policy]\nlien_share = 0", "[Policy] lien_share = 0: expected a share of the estimate"),
        ("[Policy]\nlien_share = 1.01", "a number above 0 and at most 1"),
        ("[Policy]\nlien_share = 50", "a number above 0 and at most 1"),
        ("[Policy]\nlien_shar = 1", "did you mean lien_share?"),
        ("[Policy]\noverdraft_su = -1", "[Policy] overdraft_su = -1: expected SU"),
        ("[Policy]\noverdraft_su = 0.005", "at most two decimal places"),
        ("[Policy]\noverdraft_su = 100_000_001", "from 0 to 100,000,000"),
        ("[Policy]\nwarn_below = 10", "[Policy] warn_below = 10: expected a share"),
        (
            '[Enable]\nenable_spank_plugin = "yes"',
            '[Enable] enable_spank_plugin = "yes": expected true or false',
        ),
        ("[Enable]\nenable_jobsubmit_plugin = true", "did you mean enable_job_submit_plugin?"),
        ("[Enabled]\nx = 1", "[Enabled]: unknown section; did you mean Enable?"),
        (
            "[partitionprice]\nx = 1",
            "[partitionprice]: unknown section; did you mean PartitionPrice?",
        ),
        ("[PartitionPrice]\na.b = 1", 'a name with a dot needs quotes: "a.b"'),
        ("[PartitionPrice]\na = -1", "[PartitionPrice] a = -1: expected SU per CPU-hour"),
        ("[PartitionPrice]\na = nan", "[PartitionPrice] a = NaN: expected SU per CPU-hour"),
        ("[PartitionPrice]\na = inf", "expected SU per CPU-hour"),
        ("[PartitionPrice]\na = 1e99999999999999999999", "expected SU per CPU-hour"),
        ("[PartitionPrice]\na = 1e-99999999", "expected SU per CPU-hour"),
        ("[PartitionPrice]\na = 0.00000000001", "expected SU per CPU-hour"),
        ("[PartitionPrice]\na = true", "[PartitionPrice] a = true: expected SU per CPU-hour"),
        ('[PartitionPrice]\na = "cheap"', '[PartitionPrice] a = "cheap": expected SU per CPU-hour'),
        ('[PartitionPrice]\n"a b" = 1', '[PartitionPrice] "a b" = 1: expected a name'),
        ("[QosMultiplier]\na = 1001", "[QosMultiplier] a = 1001: expected a factor"),
        ("[QosMultiplier]\na = 1\nA = 2", "expected each QOS once"),
        ("[Relay]\nqueue_poll = 5", "did you mean queue_poll_s?"),
        (
            "[Relay]\nqueue_poll_s = 0",
            "[Relay] queue_poll_s = 0: expected a whole number of seconds from 1 to 300",
        ),
        ("[Relay]\nqueue_poll_s = 1.5", "[Relay] queue_poll_s = 1.5: expected a whole number"),
        ("[Relay]\nqueue_poll_s = true", "expected a whole number"),
        (
            '[Relay]\nsocket = "relay.sock"',
            '[Relay] socket = "relay.sock": expected an absolute path',
        ),
        (f'[Relay]\nsocket = "/{"x" * 107}"', "expected at most 107 bytes"),
        (
            '[Relay]\nstart = "systemd"',
            '[Relay] start = "systemd": expected "with-slurmctld", "service" or "none"',
        ),
        (
            "[Ledger]\nstate_dir = 1979-05-27",
            "[Ledger] state_dir = 1979-05-27: expected an absolute path",
        ),
        ("[[Ledger]]\nstate_dir = 1", "expected a section, written [Ledger]"),
    ],
)
def test_a_mistake_is_one_line_with_file_key_value_and_what_was_expected(
    site: Site, line: str, expected: str
) -> None:
    text = f'[API]\nurl = "https://bank.example.org"\n{line}\n'
    (problem,) = site.problems(text)
    assert problem.startswith("FILE: ")
    assert expected in problem
    assert "\n" not in problem and len(problem) < 400


@pytest.mark.parametrize(
    "url",
    [
        "",
        "bank",
        "ftp://bank",
        "https://",
        "https://user:hush@bank/",
        "https://bank/?token=hush",
        "https://bank:99999/",
    ]
    + ["https://bank/a b", "https://bank/#x", "https://ba\\nnk/", "https://[::1", "https://-bank"],
)
def test_a_wrong_url_is_refused_without_showing_a_password(site: Site, url: str) -> None:
    (problem,) = site.problems(f'[API]\nurl = "{url}"\n')
    assert "expected the base of the bank's API" in problem
    assert "hush" not in problem


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "https://bank.example.org/a/b-c/", "http://[::1]:80/api"]
)
def test_a_right_url_is_taken_without_its_last_slash(site: Site, url: str) -> None:
    config = site.load(f'[API]\nurl = "{url}"\n[Policy]\n[PartitionPrice]\na = 1')
    assert config.api.url == url.rstrip("/")
    assert config.warnings == ()


def test_a_token_over_plain_http_to_another_host_is_warned_about(site: Site) -> None:
    (warning,) = site.load(SMALL.replace("https:", "http:")).warnings
    assert "unencrypted" in warning


@pytest.mark.parametrize(
    "text", ["{job_id}", "{cluster}-{job_id}", "{job_id}-r{restart}", "c1:{job_id}_{array_task_id}"]
)
def test_a_job_id_format_may_use_its_fields(site: Site, text: str) -> None:
    config = site.load(
        SMALL.replace("[Policy]", "").replace(
            "[PartitionPrice]", f'job_id_format = "{text}"\n[PartitionPrice]'
        )
    )
    assert config.api.job_id_format == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{jobid}",
        "fixed",
        "{restart}",
        "{job_id",
        "{job_id}/{cluster}",
        "{job_id}.0",
        "{job_id!r}",
        "{job_id:>5}",
    ]
    + ["{}", "{0}", "{job_id.__class__}", "{job_id} x", "{{job_id}}"],
)
def test_a_wrong_job_id_format_is_refused(site: Site, text: str) -> None:
    (problem,) = site.problems(f'[API]\nurl = "https://bank"\njob_id_format = "{text}"\n')
    assert "[API] job_id_format" in problem and "{job_id}" in problem


def test_all_mistakes_are_told_at_once(site: Site) -> None:
    problems = site.problems(
        'stray = 1\n[Enabel]\n[API]\nulr = "x"\n[Policy]\nmode = 1\n[Relay]\nqueue_poll_s = "5"\n'
    )
    told = "\n".join(problems)
    for expected in (
        "stray: key outside",
        "[Enabel]",
        "[API] ulr",
        "[API] url: missing",
        "mode = 1",
        'queue_poll_s = "5"',
    ):
        assert expected in told
    assert len(problems) == 6


def test_a_key_in_no_section_is_told_where_it_belongs(site: Site) -> None:
    (problem,) = site.problems('mode = "strict-allocation"\n[API]\nurl = "https://bank"\n')
    assert problem == "FILE: mode: key outside of all sections; it belongs under [Policy]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[API]\nurl = "https://a"\nurl = "https://b"\n', "FILE: line 3, column 18: url: "),
        ("[API]\nurl = https://a\n", "FILE: line 2, column 7: "),
        ('[API]\nurl = "https://a"\n[API]\n', "FILE: line 3, column 5: "),
        ("[API\n", "FILE: line 1, column 5: "),
        ("[API]\nurl = 'a", "FILE: "),
    ],
)
def test_a_syntax_error_is_told_with_its_place(site: Site, text: str, expected: str) -> None:
    (problem,) = site.problems(text)
    assert problem.startswith(expected)


def test_a_file_that_cannot_be_read_is_told(site: Site) -> None:
    for path, expected in (
        (site.path, "No such file"),
        (str(site.directory), "not a regular file"),
        (site.path + "\0", "cannot be read"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(path, in_slurmctld=True)
        assert expected in str(caught.value)


def test_a_fifo_in_its_place_does_not_block(site: Site) -> None:
    os.mkfifo(site.path)
    with pytest.raises(ConfigError, match="not a regular file"):
        load(site.path, in_slurmctld=True)


def test_bytes_that_are_not_utf8_are_told_with_their_line(site: Site) -> None:
    Path(site.path).write_bytes(b"[API]\nurl = '\xff'\n")
    with pytest.raises(ConfigError, match="line 2: expected UTF-8"):
        load(site.path, in_slurmctld=True)


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 5000, "x = 1" + "0" * 5000, "a" * (1024 * 1024 + 1), "\0", "\ufeff"]
)
def test_a_monstrous_file_is_a_mistake_like_any_other(site: Site, text: str) -> None:
    assert site.problems(text)


VALUES = st.recursive(
    st.one_of(
        st.booleans().map(lambda value: "true" if value else "false"),
        st.integers().map(str),
        st.floats().map(lambda value: repr(value).replace("inf", "inf")),
        st.from_regex(r"[0-9]{1,5}\.[0-9]{1,5}e[+-]?[0-9]{1,12}", fullmatch=True),
        st.text(max_size=20).map(json.dumps),
        st.sampled_from(
            [
                "1979-05-27",
                "07:32:00",
                "1979-05-27T07:32:00Z",
                '"Token x"',
                '"/x"',
                '"on"',
                '"log"',
                "0x7f",
            ]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]"),
        inner.map(lambda item: "{a = " + item + "}"),
    ),
    max_leaves=5,
)
NAMES = {
    section: keys or ("normal", "debug", "TIMEOUT", "gpu.cpu", 'gpu."gpu:a100"', "gpu.combine")
    for section, keys in schema().items()
}
for _table in TABLES:
    NAMES[f"{DATED}.{_table}"] = NAMES[_table]


@given(
    st.dictionaries(
        st.sampled_from(sorted((section, key) for section, keys in NAMES.items() for key in keys)),
        VALUES,
        max_size=12,
    ),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_values_are_a_configuration_or_a_configuration_error(
    site: Site, values: dict[Tuple[str, str], str], in_slurmctld: bool
) -> None:
    values.setdefault(("API", "url"), '"https://bank.example.org"')
    lines: List[str] = []
    for section in NAMES:
        lines.append("[[PriceList]]" if section == DATED else f"[{section}]")
        lines += [f"{key} = {value}" for (home, key), value in values.items() if home == section]
    try:
        config = site.load("\n".join(lines), in_slurmctld=in_slurmctld)
    except ConfigError as error:
        assert error.problems and all("\n" not in problem for problem in error.problems)
    else:
        for prices in (config.prices, *(prices for _, prices in config.dated_prices)):
            for rates in prices.partitions.values():
                numbers = (rates.cpu, rates.mem_gb, rates.node, rates.billing, *rates.gpu.values())
                assert all(0 <= number <= 1_000_000 for number in numbers)
            assert all(0 <= factor <= 1 for factor in prices.state_factor.values())
        assert 0 < config.policy.lien_share <= 1


@given(st.text(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_is_a_configuration_or_a_configuration_error(site: Site, text: str) -> None:
    Path(site.path).write_bytes(text.encode("utf-8", "replace"))
    with pytest.raises(ConfigError):
        load(site.path, in_slurmctld=True)


# The token.


def test_in_slurmctld_no_token_is_kept_and_no_token_file_opened(site: Site) -> None:
    config = site.load(FIRST_GENERATION, in_slurmctld=True)
    assert config.api.token is None
    assert "31415926535897932384" not in repr(dataclasses.asdict(config))
    missing = SMALL.replace(
        "[PartitionPrice]", 'token_file = "/nonexistent/token"\n[PartitionPrice]'
    )
    assert site.load(missing, in_slurmctld=True).api.token_file == "/nonexistent/token"
    assert site.load(SMALL, in_slurmctld=True).api.token is None


def test_the_token_is_in_no_text_made_from_a_configuration(site: Site) -> None:
    config = site.load(FIRST_GENERATION)
    assert "31415926535897932384" not in repr(config) + str(config.warnings) + json.dumps(
        check_config.in_force(config)
    )


@pytest.mark.parametrize(
    "line",
    [
        'token = "Token hush hush"',
        "token = 12345",
        'tokn = "hush"',
        'token_file = "Token hush"',
        "token = ['hush']",
    ]
    + ['key = "hush"', 'url = "Token hush"', "tokens = {a = 'hush'}", "token = 12345.5"],
)
def test_a_mistake_near_the_token_does_not_show_it(site: Site, line: str) -> None:
    url = "" if line.startswith("url") else 'url = "https://bank"\n'
    (problem,) = site.problems(f"[API]\n{url}{line}\n")
    assert "hush" not in problem and "12345" not in problem


def test_an_inline_token_that_others_can_read_is_refused_with_the_way_out(site: Site) -> None:
    config = site.load(FIRST_GENERATION, mode=0o644)
    assert [warning for warning in config.warnings if "token_file" in warning]
    with pytest.raises(ConfigError) as caught:
        read_token(config)
    assert "0644" in str(caught.value) and "token_file" in str(caught.value)


def with_token_file(
    site: Site, content: str = "Token abc\n", mode: int = 0o600, key: str = "token_file"
) -> Config:
    path = site.file("token", content, mode)
    text = SMALL.replace("[PartitionPrice]", f'{key} = "{path}"\n[PartitionPrice]')
    return site.load(text.replace("/var/lib/slurm-banking", str(site.directory)), mode=0o644)


@pytest.mark.parametrize("content", ["Token abc\n", "abc", "token  abc\r\n", "\nabc\n"])
def test_a_token_file_holds_a_token_with_or_without_the_word(site: Site, content: str) -> None:
    assert read_token(with_token_file(site, content)) == "abc"


def test_the_node_token_is_another_file(site: Site) -> None:
    config = with_token_file(site, key="node_token_file")
    assert read_token(config, node=True) == "abc"
    with pytest.raises(ConfigError, match="token_file: missing"):
        read_token(config)


@pytest.mark.parametrize(
    "content", ["", "Token", "Token ", "a b", "Token a b", "a\nb", "\xff", "x" * 5000, "a\0b"]
)
def test_a_token_file_with_anything_else_is_refused_without_showing_it(
    site: Site, content: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_token(with_token_file(site, content))
    assert "expected one line in it" in str(caught.value)
    assert "xxxxx" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o610])
def test_a_token_file_for_others_is_refused_with_the_fix(site: Site, mode: int) -> None:
    with pytest.raises(ConfigError) as caught:
        read_token(with_token_file(site, mode=mode))
    assert f"{mode:04o}" in str(caught.value) and "chmod 600" in str(caught.value)


@needs_root
def test_a_token_file_of_another_user_is_refused(site: Site) -> None:
    config = with_token_file(site)
    os.chown(site.directory / "token", 12345, 0)
    with pytest.raises(ConfigError, match="belongs to uid 12345: expected root"):
        read_token(config)


@needs_root
def test_root_may_read_the_token_of_the_state_directorys_owner(site: Site) -> None:
    config = with_token_file(site)
    state = site.directory / "state"
    state.mkdir()
    for path in (state, site.directory / "token"):
        os.chown(path, 12345, 0)
    ledger = dataclasses.replace(config.ledger, state_dir=str(state))
    assert read_token(dataclasses.replace(config, ledger=ledger)) == "abc"


def test_a_token_file_that_is_no_file_is_refused(site: Site) -> None:
    config = with_token_file(site)
    os.unlink(site.directory / "token")
    with pytest.raises(ConfigError, match="No such file"):
        read_token(config)
    os.mkfifo(site.directory / "token")
    with pytest.raises(ConfigError, match="expected a regular file"):
        read_token(config)


# Reloading.


def test_a_change_is_in_force_within_a_second(site: Site) -> None:
    site.write(SMALL)
    reloader = Reloader(site.path, in_slurmctld=True)
    first = reloader.current(100.0)
    assert reloader.current(100.0) is first
    site.write(SMALL + 'enforce = "log"')
    assert reloader.current(100.5) is first
    assert reloader.current(101.0).policy.enforce == "log"


def test_the_last_good_configuration_serves_on_and_the_problem_is_told_once(site: Site) -> None:
    site.write(SMALL)
    reloader = Reloader(site.path, in_slurmctld=True)
    first = reloader.current(0.0)
    assert reloader.problem is None and reloader.take_problem() is None
    site.write(SMALL + "mode = 1")
    assert reloader.current(1.0) is first
    assert "mode = 1" in (reloader.problem or "")
    assert "mode = 1" in (reloader.take_problem() or "")
    assert reloader.take_problem() is None
    assert reloader.current(2.0) is first and reloader.take_problem() is None
    os.unlink(site.path)
    assert reloader.current(3.0) is first
    assert "No such file" in (reloader.take_problem() or "")
    assert reloader.current(4.0) is first and reloader.take_problem() is None
    site.write(SMALL + 'enforce = "log"')
    assert reloader.current(5.0).policy.enforce == "log"
    assert reloader.problem is None


def test_without_any_good_configuration_there_is_an_error_until_there_is_one(site: Site) -> None:
    reloader = Reloader(site.path, in_slurmctld=True)
    for now in (0.0, 0.5, 1.0):
        with pytest.raises(ConfigError, match="No such file"):
            reloader.current(now)
    site.write(SMALL)
    assert reloader.current(2.0).prices.partitions["normal"].cpu == 1


def test_a_change_of_the_files_mode_is_seen(site: Site) -> None:
    site.write(FIRST_GENERATION)
    reloader = Reloader(site.path, in_slurmctld=False)
    before = reloader.current(0.0)
    os.chmod(site.path, 0o644)
    assert len(reloader.current(1.0).warnings) == len(before.warnings) + 1


# What slurmctld ends up with.


def test_the_pure_half_maps_no_openssl_and_opens_no_socket(site: Site) -> None:
    site.write(SMALL)
    code = (
        "import sys; from slurm_banking import config, estimate, charge, arrays, prices, state_dir; "
        f"config.load({site.path!r}, in_slurmctld=True); state_dir.check('/tmp', 0); print(*sys.modules)"
    )
    root = Path(check_config.__file__).parents[1]
    answer = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        stdout=subprocess.PIPE,
        check=True,
    )
    loaded = set(answer.stdout.decode().split())
    assert "slurm_banking.config" in loaded
    assert not loaded & {
        "ssl",
        "_ssl",
        "hashlib",
        "_hashlib",
        "socket",
        "_socket",
        "logging",
        "subprocess",
        "requests",
    }


# The state directory.


def local(tmp_path: Path, kind: str = "ext4") -> str:
    """A mountinfo in which ``tmp_path`` is a file system of its own."""
    path = tmp_path / "mountinfo"
    mount_point = str(tmp_path / "disk").replace(" ", r"\040")
    path.write_text(
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        f"40 27 0:50 / {mount_point} rw,relatime shared:7 - {kind} server:/x rw\n"
    )
    return str(path)


def test_a_state_directory_as_it_should_be_has_no_problem(tmp_path: Path) -> None:
    directory = tmp_path / "disk" / "state"
    directory.mkdir(parents=True, mode=0o755)
    directory.chmod(0o700)
    assert state_dir.check(str(directory), os.geteuid(), mountinfo=local(tmp_path)) == []


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "fuse.sshfs", "fuse", "9p"]
)
def test_a_state_directory_on_a_network_file_system_is_refused(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "disk" / "state"
    directory.mkdir(parents=True)
    directory.chmod(0o700)
    (problem,) = state_dir.check(str(directory), os.geteuid(), mountinfo=local(tmp_path, kind))
    assert kind in problem and "network file system" in problem
    assert state_dir.file_system(str(tmp_path), mountinfo=local(tmp_path, kind)) == "ext4"


def test_a_file_system_is_found_below_a_mount_point_with_a_space(tmp_path: Path) -> None:
    inside = tmp_path / "a b"
    (inside / "disk" / "state").mkdir(parents=True)
    assert (
        state_dir.file_system(str(inside / "disk" / "state"), mountinfo=local(inside, "nfs4"))
        == "nfs4"
    )


def test_the_kernel_names_the_file_system_of_this_directory() -> None:
    assert state_dir.file_system("/proc/self") == "proc"


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o770, 0o500])
def test_a_state_directory_with_another_mode_is_refused_with_the_fix(
    tmp_path: Path, mode: int
) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    directory.chmod(mode)
    (problem,) = state_dir.check(str(directory), os.geteuid(), mountinfo=local(tmp_path))
    assert f"mode {mode:04o}: expected 0700: chmod 700" in problem


def test_a_state_directory_of_another_user_is_refused_with_the_fix(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    problems = state_dir.check(str(directory), os.geteuid() + 12345, mountinfo=local(tmp_path))
    assert "chown" in problems[0]


def test_a_state_directory_that_is_not_there_or_not_one_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(target)
    for name, expected in (
        ("none", "does not exist"),
        ("file", "not a directory"),
        ("link", "symbolic link"),
    ):
        (problem,) = state_dir.check(str(tmp_path / name), os.geteuid(), mountinfo=local(tmp_path))
        assert expected in problem


def test_a_directory_above_that_anybody_can_write_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "open" / "state"
    directory.mkdir(parents=True)
    directory.chmod(0o700)
    directory.parent.chmod(0o777)
    (problem,) = state_dir.check(str(directory), os.geteuid(), mountinfo=local(tmp_path))
    assert "chmod go-w" in problem
    directory.parent.chmod(0o1777)
    assert state_dir.check(str(directory), os.geteuid(), mountinfo=local(tmp_path)) == []


# check-config.


def whole(site: Site, extra: str = "") -> None:
    """A site where nothing is wrong."""
    state = site.directory / "state"
    state.mkdir()
    state.chmod(0o700)
    (site.directory / "run").mkdir()
    token = site.file("token", "Token abc\n")
    command = site.file("slurm-banking", "#!/bin/sh\n", 0o755)
    site.write(
        f'[API]\nurl = "https://bank.example.org"\ntoken_file = "{token}"\n[PartitionPrice]\nnormal = 1.20\n'
        f'[Policy]\n[Ledger]\nstate_dir = "{state}"\n'
        f'[Relay]\nsocket = "{site.directory}/run/relay.sock"\ncommand = "{command}"\n{extra}',
        0o644,
    )


def me() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def checked(site: Site, **changes: Any) -> Tuple[int, str]:
    out = io.StringIO()
    status = check_config.main(site.path, slurm_user=me(), out=out, **changes)
    return status, out.getvalue()


def test_a_site_without_mistakes_is_shown_what_is_in_force(site: Site) -> None:
    whole(site)
    status, text = checked(site)
    assert status == 0
    assert 'mode = "strict-allocation"' in text and 'normal = "1.20"' in text
    assert "no mistakes; 1 partitions priced" in text
    assert "abc" not in text


def test_the_report_is_there_for_scripts_too(site: Site) -> None:
    whole(site)
    status, text = checked(site, as_json=True)
    report = json.loads(text)
    assert status == 0 and report["ok"] is True and report["problems"] == []
    assert report["in_force"]["Relay"]["queue_poll_s"] == 5
    assert set(report["in_force"]) == set(schema())


def test_mistakes_in_the_file_are_all_shown(site: Site) -> None:
    site.write("[Policy]\nmode = 1\nenforce = 2\n")
    status, text = checked(site)
    assert status == 1
    assert text.count("error: ") == 3 and "3 mistakes" in text


def test_mistakes_around_the_file_are_all_shown(site: Site) -> None:
    whole(site)
    (site.directory / "state").chmod(0o755)
    (site.directory / "token").chmod(0o644)
    (site.directory / "slurm-banking").chmod(0o777)
    (site.directory / "run").chmod(0o777)
    (site.directory / "bank-config.toml").chmod(0o666)
    status, text = checked(site)
    assert status == 1
    for expected in (
        "expected 0700",
        "chmod 600",
        "command",
        "chmod 755",
        "expected a file that only root",
    ):
        assert expected in text
    assert text.count("error: ") == 5


def test_a_missing_token_is_shown(site: Site) -> None:
    whole(site)
    os.unlink(site.directory / "token")
    status, text = checked(site)
    assert status == 1 and text.count("error: ") == 1 and "token_file" in text


def test_users_without_an_account_are_warned_about(site: Site) -> None:
    whole(site, 'admin_users = ["no-such-user"]\n')
    status, text = checked(site)
    assert status == 0 and "warning: " in text and "no-such-user" in text


def test_the_slurm_user_is_read_from_the_slurm_conf_beside_it(site: Site) -> None:
    whole(site)
    site.file("slurm.conf", "ClusterName=c1\n slurmuser = no-such-user # comment\n")
    report = check_config.check(site.path)
    assert report.slurm_user == "no-such-user"
    assert '"no-such-user" has no account' in report.problems[0]
