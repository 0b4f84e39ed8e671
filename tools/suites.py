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
NO_OPTIONS = ("-o", "addopts=")  # those of the suite name plugins that are not installed

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
        arguments=("-k", "not test_reloader_sys_path"),  # it does not end with watchdog 7
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
                    "the server is a thread of the pytest process, so its log records are not among "
                    "the test's, which is what the test expects"
                ),
            ),
        ),
    ),
    Suite("pytest-xdist", "3.8.0", needs=("filelock",), paths=("testing",), autoload=True),
    Suite("execnet", "2.1.2", needs=("pytest-timeout",), paths=("testing",)),
    Suite(
        "anyio",
        "4.16.0",
        needs=(
            "anyio[trio]",
            "blockbuster",
            "coverage",
            "hypothesis",
            "psutil",
            "pytest-mock",
            "pytest-timeout",
            "trustme",
            "truststore",
            "uvloop",
        ),
        autoload=True,
    ),
    Suite(
        "trio",
        "0.35.0",
        needs=("trustme", "pyopenssl", "async_generator", "astor", "cryptography"),
        paths=("src/trio/_core/_tests", "src/trio/_tests"),
        editable=True,
    ),
    Suite("tornado", "6.6.1", paths=("tornado/test",), editable=True),
    Suite(
        "cheroot",
        "11.1.2",
        needs=(
            "jaraco.context",
            "pyopenssl",
            "pypytools",
            "pytest-mock",
            "pytest-timeout",
            "requests",
            "requests-toolbelt",
            "requests-unixsocket",
            "trustme",
            "portend",
            "jaraco.text",
            "urllib3<2",
        ),
        plugins=("pytest_mock",),
        paths=("cheroot/test",),
        arguments=NO_OPTIONS,
    ),
    Suite(
        "joblib",
        "1.6.0",
        needs=("numpy", "lz4", "threadpoolctl", "pytest-timeout", "psutil", "pytest-asyncio"),
        plugins=("timeout", "asyncio"),
        paths=("joblib/test",),
        arguments=NO_OPTIONS,
        editable=True,
    ),
    Suite(
        "aiohttp",
        "3.14.5",
        needs=(
            "pytest-aiohttp",
            "pytest-mock",
            "pytest-timeout",
            "pytest-cov",
            "freezegun",
            "re-assert",
            "trustme",
            "proxy.py",
            "blockbuster",
            "isal",
            "zlib-ng",
            "setuptools-git",
            "uvloop",
            "Brotli",
            "aiodns",
        ),
        plugins=("pytest_mock",),
        arguments=NO_OPTIONS,
        editable=True,
    ),
    Suite(
        "gunicorn",
        "27.0.1",
        needs=("gevent", "h2", "pytest-asyncio", "httpx[http2]", "uvloop", "inotify"),
        plugins=("asyncio",),
        arguments=("-o", "addopts=--assert=plain"),
    ),
    Suite(
        "pyzmq",
        "27.3.0",
        needs=("pytest-asyncio", "pytest-timeout", "tornado", "gevent", "cython"),
        plugins=("asyncio", "timeout"),
        editable=True,
    ),
    Suite(
        "paramiko",
        "5.1.0",
        needs=("invoke", "pytest-relaxed>=2", "icecream"),
        plugins=("relaxed",),
    ),
    Suite(
        "redis",
        "8.1.0",
        needs=(
            "pytest-asyncio",
            "pytest-timeout",
            "mock",
            "numpy",
            "cachetools",
            "pybreaker",
            "xxhash",
            "PyJWT",
            "cryptography",
            "requests",
        ),
        plugins=("asyncio", "timeout"),
        arguments=("-m", "not redismod and not onlycluster and not ssl and not replica"),
        server=("redis-server", "--port", "6379", "--save", ""),
        sandbox=HOST,
    ),
    Suite(
        "pytest",
        "9.2.0",
        needs=(
            "attrs",
            "hypothesis",
            "mock",
            "numpy",
            "pexpect",
            "pyyaml",
            "requests",
            "xmlschema",
        ),
        paths=("testing",),
    ),
    Suite(
        "coverage",
        "7.17.5",
        needs=("flaky", "hypothesis", "pytest-xdist"),
        plugins=("xdist",),
        arguments=NO_OPTIONS,
        editable=True,
    ),
    Suite(
        "watchdog",
        "7.1.0",
        needs=("pytest-timeout", "flaky", "PyYAML", "eventlet"),
        plugins=("timeout",),
        arguments=NO_OPTIONS,
    ),
    Suite(
        "urllib3",
        "2.8.0",
        needs=(
            "h2",
            "httpx",
            "hypercorn",
            "pysocks",
            "pytest-socket",
            "pytest-timeout",
            "quart",
            "quart-trio",
            "trio",
            "anyio",
            "cryptography",
            "idna",
            "pyopenssl",
            "trustme",
        ),
        plugins=("timeout", "pytest_socket"),
        paths=("test",),
    ),
)
SUITES = {suite.name: suite for suite in ALL}
