"""The suites that ``tools/compare_suites.py`` runs, and the differences that are expected."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """A source distribution, how its tests are run, and which outcomes may differ.

    ``needs`` are requirements of the tests, ``plugins`` the names for ``-p`` (no other plugin is
    loaded), ``paths`` the files with tests, ``arguments`` further arguments of pytest, ``sandbox``
    the options that are added with ``--sandbox``, ``server`` a command that runs during the tests.
    ``autoload`` loads all installed plugins, for tests that start pytest and expect theirs.
    ``editable`` installs the unpacked sources themselves, for tests that import from there.
    ``deadline`` is the most seconds that a run may take. ``differs`` maps patterns of test names
    (`fnmatch`) to the reason why their outcome inside is different.
    """

    name: str
    version: str
    needs: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    paths: tuple[str, ...] = ("tests",)
    arguments: tuple[str, ...] = ()
    sandbox: tuple[str, ...] = ()
    server: tuple[str, ...] = ()
    autoload: bool = False
    editable: bool = False
    deadline: int = 300
    differs: tuple[tuple[str, str], ...] = ()


HOST = ("--sandbox-network=host",)

ALL = (
    Suite("pluggy", "1.7.0", paths=("testing",)),
    Suite("click", "8.5.1"),
    Suite(
        "filelock",
        "3.18.0",
        needs=("pytest-mock", "pytest-asyncio", "pytest-timeout", "virtualenv"),
        plugins=("pytest_mock", "asyncio", "timeout"),
    ),
    Suite(
        "requests",
        "2.34.2",
        needs=("pytest-httpbin==2.1.0", "httpbin~=0.10.0", "trustme", "PySocks", "pytest-mock"),
        plugins=("httpbin", "pytest_mock"),
        sandbox=HOST,
    ),
    Suite("flask", "3.1.3", needs=("asgiref", "greenlet", "python-dotenv", "pytest<9")),
    Suite(
        "werkzeug",
        "3.1.9",
        needs=("cffi", "cryptography", "ephemeral-port-reserve", "pytest-timeout", "watchdog"),
        plugins=("timeout",),
        arguments=("-k", "not test_reloader_sys_path"),  # it did not end in 110 s
    ),
    Suite(
        "httpx",
        "0.28.1",
        needs=(
            "httpx[brotli,cli,http2,socks,zstd]",
            "chardet",
            "cryptography",
            "trio",
            "trustme",
            "uvicorn",
            "anyio",
        ),
        plugins=("anyio",),
        sandbox=HOST,
        differs=(
            (
                "tests.test_utils::test_logging_re*",
                (
                    "the server is a thread of the pytest process, so its log records are not "
                    "those of the test, which is what the test expects"
                ),
            ),
        ),
    ),
)
SUITES = {suite.name: suite for suite in ALL}
