"""Options, ini settings, markers and the report's header line."""

from __future__ import annotations

import pytest

from pytest_sandbox.errors import SettingsError
from pytest_sandbox.settings import KEYS, from_text

__all__ = ["given", "pytest_addoption", "pytest_configure", "pytest_report_header", "wants_sandbox"]

_MARK = "container(**settings): run the test in a container of its own (memory=, cpus=, image=, timeout=, network=, ...)"
_NO_MARK = "no_sandbox: keep the test out of a container also under --sandbox"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--sandbox``, ``--sandbox-KEY``, ``sandbox`` and ``sandbox_KEY``."""
    group = parser.getgroup("sandbox", "each test in a container of its own")
    group.addoption("--sandbox", action="store_true", default=None, help="put every test that does not hold a container inside one")
    parser.addini("sandbox", "as --sandbox", type="bool", default=False)
    for key in KEYS.values():
        parser.addini(f"sandbox_{key.name}", f"{key.meaning}: {key.form} (default: {key.default})", default=None)
        if key.option:
            group.addoption(f"--sandbox-{key.name}", metavar="VALUE", help=f"{key.meaning}: {key.form}".replace("%", "%%"))


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks."""
    for line in (_MARK, _NO_MARK):
        config.addinivalue_line("markers", line)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say that tests run inside, where all of them do."""
    return "sandbox: each test in a container of its own" if wants_sandbox(config) else None


def wants_sandbox(config: pytest.Config) -> bool:
    """Tell whether every test is to be inside."""
    return bool(config.getoption("sandbox") or config.getini("sandbox"))


def given(config: pytest.Config) -> tuple[dict[str, object], dict[str, object]]:
    """Return the settings of the ini file and those of the command line. Raises :class:`pytest.UsageError`."""
    ini, options = {}, {}
    for key in KEYS.values():
        text = config.getini(f"sandbox_{key.name}")
        if text not in (None, "", []):
            ini[key.name] = _read(f"sandbox_{key.name}", key.name, text)
        if key.option and config.getoption(f"sandbox_{key.name}") is not None:
            options[key.name] = _read(f"--sandbox-{key.name}", key.name, config.getoption(f"sandbox_{key.name}"))
    return ini, options


def _read(where: str, key: str, text: object) -> object:
    try:
        return from_text(key, str(text))
    except SettingsError as error:
        raise pytest.UsageError(f"{where}: {error}") from None
