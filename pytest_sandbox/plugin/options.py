"""Options, ini settings and marks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.keys import WORDS

if TYPE_CHECKING:
    from pytest_sandbox.keys import Words

__all__ = ["given", "pytest_addoption", "pytest_configure", "wants_sandbox"]

_MARKS = (
    "container(**settings): run the test in a container of its own (memory=, cpus=, image=, timeout=, network=, ...)",
    "no_sandbox: keep the test out of a container also under --sandbox",
)
_MOST_EXPENSIVE = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--sandbox``, ``--sandbox-KEY`` and the like, and the ini settings of the same names."""
    group = parser.getgroup("sandbox", "each test in a container of its own")
    group.addoption("--sandbox", action="store_true", help="put every test that does not hold a container inside one of its own")
    parser.addini("sandbox", "as --sandbox", type="bool", default=False)
    for name, words in WORDS.items():
        _add_key(parser, group, name, words)
    group.addoption(
        "--sandbox-keep",
        choices=("failed", "all", "none"),
        default="none",
        help="keep the writable layers of failed or all tests, for `pytest-sandbox shell` (default: none)",
    )
    group.addoption(
        "--sandbox-stats",
        metavar="N",
        type=int,
        nargs="?",
        const=_MOST_EXPENSIVE,
        help=f"show the N most expensive tests (default: {_MOST_EXPENSIVE}): memory peak, CPU time, wall time",
    )
    parser.addini("sandbox_unsupported", "a limit that this host cannot enforce: error or skip (default: error)", default="error")


def _add_key(parser: pytest.Parser, group: pytest.OptionGroup, name: str, words: Words) -> None:
    text = f"{words.meaning}: {words.form} (default: {words.default})"
    parser.addini(f"sandbox_{name}", text, default=None)
    if words.option:
        group.addoption(f"--sandbox-{name}", metavar="VALUE", help=text.replace("%", "%%"))


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks, and the summary where there is something to sum up."""
    for line in _MARKS:
        config.addinivalue_line("markers", line)
    if wants_sandbox(config) or config.getoption("sandbox_stats") or config.getoption("sandbox_keep") != "none":
        from pytest_sandbox.plugin import summary

        summary.register(config)


def wants_sandbox(config: pytest.Config) -> bool:
    """Tell whether every test is to be inside."""
    return bool(config.getoption("sandbox") or config.getini("sandbox"))


def given(config: pytest.Config) -> tuple[dict[str, object], dict[str, object]]:
    """Return the settings of the ini file and those of the command line. Raises :class:`pytest.UsageError`."""
    from pytest_sandbox.plugin import compat

    ini, options = {}, {}
    for name, words in WORDS.items():
        value = compat.ini_value(config, f"sandbox_{name}")
        if value not in (None, "", []):
            ini[name] = _read(f"{config.inipath}: sandbox_{name}", name, value)
        text = config.getoption(f"sandbox_{name}") if words.option else None
        if text is not None:
            options[name] = _read(f"--sandbox-{name}", name, text)
    if config.getini("sandbox_unsupported") not in {"error", "skip"}:
        raise pytest.UsageError(f"{config.inipath}: sandbox_unsupported={config.getini('sandbox_unsupported')!r} is neither error nor skip")
    return ini, options


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
