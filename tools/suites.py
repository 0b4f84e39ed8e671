"""The suites that ``tools/compare_suites.py`` runs, and the differences that are expected."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """A source distribution, how its tests are run, and which outcomes may differ.

    ``needs`` are requirements of the tests, ``plugins`` the names for ``-p`` (no other plugin is
    loaded), ``paths`` the files with tests, ``arguments`` further arguments of pytest, ``sandbox``
    the options that are added with ``--sandbox``, ``server`` a command that runs during the tests,
    ``port`` the TCP port at which it answers. ``environment`` is that of pip and of the tests.
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
    port: int = 0
    environment: tuple[tuple[str, str], ...] = ()
    autoload: bool = False
    editable: bool = False
    deadline: int = 300
    differs: tuple[tuple[str, str], ...] = ()


HOST = ("--sandbox-network=host",)
SESSION = ("--sandbox-scope=session",)
CLASS = ("--sandbox-scope=class",)
NO_OPTIONS = ("-o", "addopts=")  # those of the suite name plugins that are not installed
#: A new server without a password, which keeps nothing when the machine stops.
POSTGRES = """
set -e
data=/tmp/compared-psycopg2
rm -rf $data
install -d -o postgres $data
user="setpriv --reuid=postgres --regid=postgres --clear-groups"
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
$user $bin/initdb -D $data -A trust
exec $user $bin/postgres -D $data -k $data -p 54399 \\
  -c fsync=off -c max_prepared_transactions=10 -c log_min_messages=fatal
"""

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
        "plumbum",
        "2.0.2",
        needs=("pytest-asyncio", "pytest-mock", "pytest-timeout", "psutil", "pytest<9"),
        plugins=("asyncio", "pytest_mock", "timeout"),
        arguments=NO_OPTIONS,
    ),
    Suite(
        "portalocker",
        "4.4.2",
        needs=(
            "fakeredis>=2.31.0",
            "redis>=5.0",
            "pytest-rerunfailures",
            "pytest-timeout",
            "typing_extensions",
        ),
        plugins=("rerunfailures", "timeout"),
        paths=("portalocker_tests",),
        arguments=(*NO_OPTIONS, "--timeout=60"),
    ),
    Suite(
        "sh",
        "2.4.0",
        # It has no configuration: not that of this project, whose directory may contain it.
        arguments=("--config-file=/dev/null", "--rootdir=.", "--confcutdir=."),
        environment=(("SH_TESTS_RUNNING", "1"),),
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
        paths=("tornado/test",),
        editable=True,
        deadline=900,
        arguments=("--log-disable=tornado.access",),  # as its own runner does
        sandbox=CLASS,
    ),
    Suite(
        "attrs",
        "26.1.0",
        needs=("cloudpickle", "hypothesis", "pympler"),
        plugins=("hypothesispytest",),
    ),
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
        paths=tuple(
            f"tests/test_{name}.py"
            for name in (
                "fileio",
                "from_thread",
                "functools",
                "itertools",
                "lowlevel",
                "signals",
                "synchronization",
                "tempfile",
                "to_thread",
            )
        ),
        autoload=True,
        deadline=900,
        differs=(
            (
                "tests.test_fileio.TestPath::test_is_block_device*",
                (
                    "it looks for a block device of the host in /dev; inside, there is none, as in "
                    "docker, unless devices= passes one in"
                ),
            ),
        ),
    ),
    Suite(
        "execnet",
        "2.1.2",
        needs=("pytest-timeout",),
        plugins=("timeout",),
        paths=("testing",),
        sandbox=SESSION,
    ),
    Suite(
        "paramiko",
        "5.1.0",
        needs=("invoke", "pytest-relaxed>=2", "icecream"),
        plugins=("relaxed",),
        deadline=600,
    ),
    Suite(
        "watchdog",
        "7.1.0",
        needs=("pytest-timeout", "flaky", "PyYAML", "eventlet"),
        plugins=("timeout", "flaky"),
        arguments=NO_OPTIONS,
        sandbox=("--sandbox-fresh", *SESSION),
        deadline=600,
    ),
    Suite(
        "pytest-xdist",
        "3.8.0",
        needs=("filelock",),
        paths=("testing",),
        autoload=True,
        arguments=("-p", "no:xdist.looponfail"),
        deadline=600,
    ),
    Suite(
        "pyzmq",
        "27.3.0",
        needs=("pytest-asyncio", "pytest-timeout", "tornado", "gevent", "cython"),
        plugins=("asyncio", "timeout"),
        environment=(("PYZMQ_NO_BUNDLE", "1"),),  # libzmq3-dev
        editable=True,
        deadline=900,
        differs=(
            (
                "tests.test_log.TestPubLog::*",
                (
                    "outside, these fail after tests/test_ioloop.py in the same process, and pass "
                    "alone; inside, each begins without what other tests have left"
                ),
            ),
        ),
    ),
    Suite(
        "psycopg2",
        "2.9.13",  # libpq-dev, postgresql
        server=("sh", "-c", POSTGRES),
        port=54399,
        environment=(
            ("PSYCOPG2_TESTDB", "postgres"),
            ("PSYCOPG2_TESTDB_HOST", "127.0.0.1"),
            ("PSYCOPG2_TESTDB_PORT", "54399"),
            ("PSYCOPG2_TESTDB_USER", "postgres"),
        ),
        sandbox=HOST,
        deadline=600,
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
        paths=tuple(
            f"tests/test_{name}.py"
            for name in (
                "connection_pool",
                "encoding",
                "helpers",
                "lock",
                "monitor",
                "pipeline",
                "pubsub",
                "retry",
                "scripting",
            )
        ),
        arguments=("-m", "not redismod and not onlycluster and not ssl and not replica"),
        # Some tests connect to the default port, whatever --redis-url says.
        server=("redis-server", "--port", "6379", "--save", ""),
        port=6379,
        sandbox=HOST,
        deadline=600,
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
        plugins=("pytest_mock", "timeout"),
        paths=tuple(
            f"tests/test_{name}.py"
            for name in (
                "client_ws_functional",
                "loop",
                "proxy_functional",
                "pytest_plugin",
                "run_app",
                "test_utils",
                "web_functional",
                "web_runner",
                "web_sendfile_functional",
                "web_server",
                "web_websocket_functional",
                "worker",
            )
        ),
        arguments=NO_OPTIONS,
        editable=True,
        deadline=900,
    ),
    Suite(
        "virtualenv",
        "20.29.3",
        needs=(
            "flaky",
            "packaging",
            "pytest-env",
            "pytest-freezer",
            "pytest-mock",
            "pytest-timeout",
            "setuptools",
            "time-machine",
        ),
        autoload=True,
        sandbox=HOST,
        deadline=900,
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
        deadline=2400,
        differs=(
            (
                "testing.test_helpconfig::test_version_verbose",
                (
                    "outside, it fails after tests that import hypothesis, in the same process, "
                    "and passes alone; inside, each begins without what other tests have left"
                ),
            ),
        ),
    ),
)
SUITES = {suite.name: suite for suite in ALL}
