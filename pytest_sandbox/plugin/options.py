"""Options, ini settings and marks.

pytest calls this module at its start. selection.py asks it for the settings that all tests have.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox import supported
from pytest_sandbox.plugin import item_attributes, jobs_option, network_report, pcap, slow_tests
from pytest_sandbox.settings.schema import WORDS

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_sandbox.settings.schema import Words

__all__ = [
    "SCOPES",
    "check_scope",
    "pytest_addoption",
    "pytest_configure",
    "pytest_load_initial_conftests",
    "read_scope",
    "read_settings",
    "wants_fresh",
    "wants_sandbox",
]

_MARKS = (
    (
        "container(**settings): run the test in a container of its own (memory=, cpus=, image=, "
        "timeout=, network=, ...)"
    ),
    "no_sandbox: do not run the test in a container, even with --sandbox",
)
#: The values of the setting ``scope``, narrowest first.
SCOPES = ("function", "class", "module", "package", "session")
_STATS = "--sandbox-stats"
_DEFAULT_STATS = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--sandbox``, ``--sandbox-KEY`` and the like, and the ini settings of the same names."""
    group = parser.getgroup("sandbox", "each test in a container of its own")
    group.addoption(
        "--sandbox",
        action="store_true",
        help="run every test that does not use the fixture container in a container of its own",
    )
    parser.addini("sandbox", "as --sandbox", type="bool", default=False)
    text = f"the tests of one {', '.join(SCOPES[1:])} share a container (default: {SCOPES[0]})"
    group.addoption("--sandbox-scope", metavar="SCOPE", help=text)
    parser.addini("sandbox_scope", text, default=None)
    text = "each test, or the scope that it shares, runs in a new interpreter inside"
    group.addoption("--sandbox-fresh", action="store_true", help=text)
    parser.addini("sandbox_fresh", text, type="bool", default=False)
    for name, words in WORDS.items():
        _add_setting(parser, group, name, words)
    group.addoption(
        "--sandbox-keep",
        choices=("failed", "all", "none"),
        default="none",
        help="keep the writable layers of failed or all tests, for `pytest-sandbox shell` "
        "(default: none)",
    )
    group.addoption(
        _STATS,
        metavar="N",
        type=_number_or_text,
        nargs="?",
        const=_DEFAULT_STATS,
        help=f"show the N most expensive tests (default: {_DEFAULT_STATS}): memory peak, CPU "
        "time, wall time",
    )
    jobs_option.add_options(parser, group)
    slow_tests.add_options(parser, group)
    network_report.add_option(group)
    pcap.add_options(group)
    parser.addini(
        "sandbox_unsupported",
        "the result of a test with a limit that this host cannot enforce: error or skip "
        "(default: error)",
        default="error",
    )


def _number_or_text(text: str) -> int | str:
    """Return a number; other text unchanged: it may be the path that follows ``--sandbox-stats``,
    and argparse would reject it too early.
    """
    return int(text) if text.isdecimal() else text


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None]:
    """Have an argument after ``--sandbox-stats`` that is not a number be a path.

    argparse takes it for the option's value (nargs="?"), and pytest would not see the path.
    """
    options = args[: args.index("--")] if "--" in args else args
    without_number = [
        index
        for index, arg in enumerate(options)
        if arg == _STATS and not _is_number(options, index + 1)
    ]
    for index in without_number:
        args[index] = f"{_STATS}={_DEFAULT_STATS}"
    namespace = early_config.known_args_namespace
    if (namespace.sandbox or early_config.getini("sandbox")) and not supported.lacking():
        # Before conftest files and tests import libraries that have fork handlers.
        from pytest_sandbox.linux import fork_hooks

        fork_hooks.install()
    if without_number:
        early_config.known_args_namespace = parser.parse_known_args(
            args, copy.copy(early_config.option)
        )
    return (yield)


def _is_number(args: list[str], index: int) -> bool:
    return index < len(args) and args[index].isdecimal()


def _add_setting(parser: pytest.Parser, group: pytest.OptionGroup, name: str, words: Words) -> None:
    text = f"{words.meaning}: {words.form} (default: {words.default})"
    parser.addini(f"sandbox_{name}", text, default=None)
    if words.option:
        group.addoption(f"--sandbox-{name}", metavar="VALUE", help=text.replace("%", "%%"))


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks, and the summary if it has anything to show."""
    for line in _MARKS:
        config.addinivalue_line("markers", line)
    count = config.getoption("sandbox_stats")
    if isinstance(count, str):
        raise pytest.UsageError(
            f"{_STATS}={count}: not a number of tests, such as {_STATS}={_DEFAULT_STATS}"
        )
    if supported.lacking():
        return
    jobs_option.announce_to_controller(config)
    slow_tests.check(config)
    network_report.register(config)
    pcap.register(config)
    all_inside = wants_sandbox(config)
    if all_inside:
        item_attributes.reserve()
    if all_inside or count or config.getoption("sandbox_keep") != "none":
        from pytest_sandbox.plugin import summary

        ini, option = read_scope(config)
        summary.register(config, all_inside=all_inside, scope=option or ini or "function")


def wants_sandbox(config: pytest.Config) -> bool:
    """Tell whether all tests should run inside."""
    return bool(config.getoption("sandbox") or config.getini("sandbox"))


def wants_fresh(config: pytest.Config) -> bool:
    """Tell whether tests without a mark about it run in a new interpreter."""
    return bool(config.getoption("sandbox_fresh") or config.getini("sandbox_fresh"))


def read_scope(config: pytest.Config) -> tuple[str | None, str | None]:
    """Return the scope of the ini setting and that of the command line, each None if not given.

    Raises :class:`pytest.UsageError`.
    """
    ini, option = config.getini("sandbox_scope") or None, config.getoption("sandbox_scope")
    for source, value in (
        (_source(config, "sandbox_scope"), ini),
        ("--sandbox-scope", option),
    ):
        if value is not None:
            check_scope(source, value)
    return ini, option


def check_scope(source: str, value: object) -> str:
    """Return the value of a setting ``scope``. Raises :class:`pytest.UsageError`."""
    if value not in SCOPES:
        raise pytest.UsageError(f"{source}: scope={value!r}: expected one of {', '.join(SCOPES)}")
    return str(value)


def read_settings(config: pytest.Config) -> tuple[dict[str, object], dict[str, object]]:
    """Return the ini settings and those of the command line.

    Raises :class:`pytest.UsageError`.
    """
    from pytest_sandbox.plugin import compat

    _check_names(config)
    ini, options = {}, {}
    for name, words in WORDS.items():
        value = compat.ini_value(config, f"sandbox_{name}")
        if value not in (None, "", []):
            ini[name] = _read(_source(config, f"sandbox_{name}"), name, value)
        text = config.getoption(f"sandbox_{name}") if words.option else None
        if text is not None:
            options[name] = _read(f"--sandbox-{name}", name, text)
    unsupported = config.getini("sandbox_unsupported")
    if unsupported not in {"error", "skip"}:
        source = _source(config, "sandbox_unsupported")
        raise pytest.UsageError(f"{source}={unsupported!r} is neither error nor skip")
    return ini, options


def _check_names(config: pytest.Config) -> None:
    """Raise :class:`pytest.UsageError` for an ini setting ``sandbox_...`` that does not exist: a
    limit with a misspelled name would not be enforced.
    """
    from pytest_sandbox.plugin import compat
    from pytest_sandbox.settings import parsers

    prefix = "sandbox_"
    given, declared = compat.ini_names(config)
    names = [one.removeprefix(prefix) for one in declared if one.startswith(prefix)]
    for wrong in sorted(one for one in given - declared if one.startswith(prefix)):
        name = wrong.removeprefix(prefix)
        near = parsers.suggestion(name, names)
        raise pytest.UsageError(f"{_source(config, wrong)}: there is no setting {name}{near}")


def _source(config: pytest.Config, setting: str) -> str:
    """Return where an ini setting was given: on the command line with ``-o``, or in the file."""
    overrides = [one.partition("=")[0] for one in config.getoption("override_ini") or ()]
    if setting in overrides or not config.inipath:
        return f"-o {setting}"
    return f"{config.inipath}: {setting}"


def _read(source: str, key: str, value: object) -> object:
    from pytest_sandbox.errors import SettingsError
    from pytest_sandbox.settings.settings import Settings, from_text

    try:
        if isinstance(value, str):
            return from_text(key, value)
        keywords: dict[str, Any] = {key: value}
        return getattr(Settings(**keywords), key)
    except SettingsError as error:
        raise pytest.UsageError(f"{source}: {error}") from None
