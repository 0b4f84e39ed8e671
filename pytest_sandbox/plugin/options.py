"""Options, ini settings and marks."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox import supported
from pytest_sandbox.settings.schema import WORDS

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_sandbox.settings.schema import Words

__all__ = [
    "given",
    "pytest_addoption",
    "pytest_configure",
    "pytest_load_initial_conftests",
    "wants_sandbox",
]

_MARKS = (
    (
        "container(**settings): run the test in a container of its own (memory=, cpus=, image=, "
        "timeout=, network=, ...)"
    ),
    "no_sandbox: keep the test out of a container also under --sandbox",
)
_STATS = "--sandbox-stats"
_MOST_EXPENSIVE = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--sandbox``, ``--sandbox-KEY`` and the like, and the ini settings of the same names."""
    group = parser.getgroup("sandbox", "each test in a container of its own")
    group.addoption(
        "--sandbox",
        action="store_true",
        help="put every test that does not hold a container inside one of its own",
    )
    parser.addini("sandbox", "as --sandbox", type="bool", default=False)
    for name, words in WORDS.items():
        _add_key(parser, group, name, words)
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
        type=_count,
        nargs="?",
        const=_MOST_EXPENSIVE,
        help=f"show the N most expensive tests (default: {_MOST_EXPENSIVE}): memory peak, CPU "
        "time, wall time",
    )
    parser.addini(
        "sandbox_unsupported",
        "a limit that this host cannot enforce: error or skip (default: error)",
        default="error",
    )


def _count(text: str) -> int | str:
    """Return a number; other text as it is, for it may be the path that follows
    ``--sandbox-stats``.
    """
    return int(text) if text.isdecimal() else text


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None]:
    """Give the word after ``--sandbox-stats`` back where it is no number.

    argparse takes it for the option's value (nargs="?"), and pytest would not see the path.
    """
    given = args[: args.index("--")] if "--" in args else args
    alone = [
        place
        for place, word in enumerate(given)
        if word == _STATS and not _is_number(given, place + 1)
    ]
    for place in alone:
        args[place] = f"{_STATS}={_MOST_EXPENSIVE}"
    if alone:
        early_config.known_args_namespace = parser.parse_known_args(
            args, copy.copy(early_config.option)
        )
    return (yield)


def _is_number(words: list[str], place: int) -> bool:
    return place < len(words) and words[place].isdecimal()


def _add_key(parser: pytest.Parser, group: pytest.OptionGroup, name: str, words: Words) -> None:
    text = f"{words.meaning}: {words.form} (default: {words.default})"
    parser.addini(f"sandbox_{name}", text, default=None)
    if words.option:
        group.addoption(f"--sandbox-{name}", metavar="VALUE", help=text.replace("%", "%%"))


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks, and the summary where there is something to sum up."""
    for line in _MARKS:
        config.addinivalue_line("markers", line)
    count = config.getoption("sandbox_stats")
    if isinstance(count, str):
        raise pytest.UsageError(
            f"{_STATS}={count}: not a number of tests, such as {_STATS}={_MOST_EXPENSIVE}"
        )
    if supported.lacking():
        return
    if wants_sandbox(config) or count or config.getoption("sandbox_keep") != "none":
        from pytest_sandbox.plugin import summary

        summary.register(config)


def wants_sandbox(config: pytest.Config) -> bool:
    """Tell whether every test is to be inside."""
    return bool(config.getoption("sandbox") or config.getini("sandbox"))


def given(config: pytest.Config) -> tuple[dict[str, object], dict[str, object]]:
    """Return the settings of the ini file and those of the command line.

    Raises :class:`pytest.UsageError`.
    """
    from pytest_sandbox.plugin import compat

    ini, options = {}, {}
    for name, words in WORDS.items():
        value = compat.ini_value(config, f"sandbox_{name}")
        if value not in (None, "", []):
            ini[name] = _read(_place(config, f"sandbox_{name}"), name, value)
        text = config.getoption(f"sandbox_{name}") if words.option else None
        if text is not None:
            options[name] = _read(f"--sandbox-{name}", name, text)
    if config.getini("sandbox_unsupported") not in {"error", "skip"}:
        place = _place(config, "sandbox_unsupported")
        raise pytest.UsageError(
            f"{place}={config.getini('sandbox_unsupported')!r} is neither error nor skip"
        )
    return ini, options


def _place(config: pytest.Config, setting: str) -> str:
    """Return where an ini setting comes from: the command line's ``-o``, else the file."""
    overrides = [one.partition("=")[0] for one in config.getoption("override_ini") or ()]
    return (
        f"-o {setting}"
        if setting in overrides or not config.inipath
        else f"{config.inipath}: {setting}"
    )


def _read(where: str, key: str, value: object) -> object:
    from pytest_sandbox.errors import SettingsError
    from pytest_sandbox.settings import Settings, from_text

    try:
        if isinstance(value, str):
            return from_text(key, value)
        given: dict[str, Any] = {key: value}
        return getattr(Settings(**given), key)
    except SettingsError as error:
        raise pytest.UsageError(f"{where}: {error}") from None
