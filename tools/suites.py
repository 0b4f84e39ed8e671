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
CLASS = ("--sandbox-scope=class",)
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
    Suite(
        "trio",
        "0.35.0",
        needs=(
            "trustme",
            "pyopenssl",
            "async_generator",
            "astor",
            "cryptography",
            "isort",
            "pyyaml",
        ),
        paths=tuple(
            f"src/trio/_tests/test_{name}.py"
            for name in (
                "abc",
                "channel",
                "file_io",
                "highlevel_open_tcp_stream",
                "highlevel_serve_listeners",
                "path",
                "signals",
                "socket",
                "subprocess",
                "sync",
                "threads",
                "unix_pipes",
            )
        ),
        editable=True,
    ),
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
        paths=(
            "cheroot/test/test_core.py",
            "cheroot/test/test_dispatch.py",
            "cheroot/test/test_errors.py",
            "cheroot/test/test_makefile.py",
            "cheroot/test/test_server.py",
            "cheroot/test/test_wsgi.py",
            "cheroot/test/test_cli.py",
        ),
        arguments=(*NO_OPTIONS, "-W", "ignore::pytest.PytestUnknownMarkWarning"),
    ),
    Suite(
        "gunicorn",
        "27.0.1",
        needs=("gevent", "h2", "pytest-asyncio", "httpx[http2]", "uvloop", "inotify"),
        plugins=("asyncio",),
        paths=tuple(
            f"tests/test_{name}.py"
            for name in (
                "arbiter",
                "config",
                "debug",
                "gthread",
                "logger",
                "pidfile",
                "reload",
                "signal_integration",
                "sock",
                "ssl",
                "statsd",
                "systemd",
                "util",
            )
        ),
        arguments=("-o", "addopts=--assert=plain"),
        differs=(
            (
                "tests.test_arbiter::test_arbiter_stop_parent_does_not_unlink_listeners",
                "os.getppid() is 0, since the parent is in another PID namespace",
            ),
        ),
    ),
    Suite(
        "joblib",
        "1.6.0",
        needs=("numpy", "lz4", "threadpoolctl", "pytest-timeout", "psutil", "pytest-asyncio"),
        plugins=("timeout", "asyncio"),
        paths=tuple(
            f"joblib/test/test_{name}.py"
            for name in (
                "config",
                "disk",
                "func_inspect",
                "hashing",
                "logger",
                "memory",
                "memory_async",
                "numpy_pickle",
            )
        ),
        arguments=NO_OPTIONS,
        editable=True,
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
        paths=tuple(
            f"test/test_{name}.py"
            for name in (
                "connection",
                "connectionpool",
                "poolmanager",
                "response",
                "ssl",
                "ssltransport",
                "util",
                "wait",
            )
        ),
        sandbox=CLASS,
    ),
    Suite(
        "coverage",
        "7.17.5",
        needs=("flaky", "hypothesis", "pytest-xdist"),
        plugins=("flaky",),
        paths=("tests/test_data.py", "tests/test_files.py", "tests/test_oddball.py"),
        arguments=NO_OPTIONS,
        editable=True,
    ),
    Suite(
        "tornado",
        "6.6.1",
        paths=tuple(
            f"tornado/test/{name}_test.py"
            for name in (
                "autoreload",
                "ioloop",
                "iostream",
                "netutil",
                "process",
                "tcpclient",
                "tcpserver",
            )
        ),
        editable=True,
        arguments=("--log-disable=tornado.access",),  # as its own runner does
        sandbox=CLASS,
    ),
)
SUITES = {suite.name: suite for suite in ALL}
