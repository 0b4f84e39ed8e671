"""What a session says of its containers, beside its tests' reports."""

from __future__ import annotations

import os
import socket

import pytest

pytestmark = pytest.mark.needs("root", "limits")


def test_the_header_says_what_isolation_there_is(run):
    """With ``--sandbox`` the header has a line about it; without there is none."""
    from pytest_sandbox import host

    assert (
        f"sandbox: each test in a container of its own ({host.headline()})"
        in run("def test(): pass").outlines
    )
    assert not [
        line
        for line in run("def test(): pass", sandbox=False).outlines
        if line.startswith("sandbox:")
    ]


def test_stats_show_the_most_expensive_tests(run):
    """``--sandbox-stats=2`` shows two tests, the one that took most memory first; held containers
    count too.
    """
    result = run(
        """
    def test_small(): pass
    def test_large(): assert bytearray(64 << 20)
    def test_held(container):
        container.run(["python3", "-c", "bytearray(32 << 20)"], check=True)
    """,
        "--sandbox-stats=2",
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            "*2 most expensive tests in containers*",
            "*memory peak*CPU*wall*test",
            "*MiB*::test_large",
            "*MiB*::test_held",
        ]
    )
    result.stdout.no_fnmatch_line("*MiB*::test_small")


def test_stats_take_ten_by_default(run):
    """``--sandbox-stats`` needs no number."""
    result = run(
        "import pytest\n@pytest.mark.parametrize('n', range(12))\ndef test(n): pass",
        "--sandbox-stats",
    )
    assert 10 == sum("MiB" in line and "::test" in line for line in result.outlines)


@pytest.fixture
def home(tmp_path_factory, monkeypatch):
    """Return where this test's kept containers are."""
    path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(path))
    return path


KEEPING = """
    import pathlib
    def test_fails():
        pathlib.Path("/opt/proof").write_text("it")
        pathlib.Path("/etc/hostname").unlink()
        assert 0
    def test_passes(): pathlib.Path("/opt/proof").write_text("other")
    def test_holds(container):
        container.write_text("/opt/proof", "held")
        assert 0
"""


@pytest.mark.parametrize(
    ("keep", "kept"), [("none", []), ("failed", ["held", "it"]), ("all", ["held", "it", "other"])]
)
def test_layers_are_kept_as_wanted(run, home, keep, kept):
    """What a failed test or every test wrote can be opened later, by the command that is printed,
    and begins where it ended.
    """
    from pytest_sandbox.container import saved_layers as layers

    result = run(KEEPING, f"--sandbox-keep={keep}")
    result.assert_outcomes(passed=1, failed=2)
    commands = [
        line.split("  #")[0] for line in result.outlines if line.startswith("pytest-sandbox shell ")
    ]
    assert sorted(f"pytest-sandbox shell {one.id}" for one in layers.list_saved()) == sorted(
        commands
    )
    opened = []
    for one in layers.list_saved():
        with layers.start(one.id) as container:
            opened.append(container.read_text("/opt/proof"))
            assert container.exists("/etc/hostname") == (opened[-1] != "it")
    assert kept == sorted(opened)


def test_kept_layers_can_be_listed_and_removed(run, home):
    """A kept layer knows its test, and is gone once it is removed; an unknown name says how to keep
    some.
    """
    from pytest_sandbox.container import saved_layers as layers
    from pytest_sandbox.errors import SandboxError

    run(KEEPING, "--sandbox-keep=failed")
    assert ["test_fails", "test_holds"] == [
        one.label.rpartition("::")[2] for one in layers.list_saved()
    ]
    for one in layers.list_saved():
        one.remove()
    assert [] == layers.list_saved()
    with pytest.raises(SandboxError, match="--sandbox-keep=failed"):
        layers.start("nothing")


def hint(result):
    lines = result.outlines
    start = next((number for number, line in enumerate(lines) if line.strip("- ") == "hint"), None)
    return "" if start is None else lines[start + 1]


def test_a_server_of_a_higher_fixture_is_outside(run):
    """A refused connection to a port on which the pytest process listens says why, and what helps;
    with the host's network it works.
    """
    source = """
    import http.server, threading, urllib.request, pytest
    @pytest.fixture(scope="session")
    def server():
        served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served.server_address[1]
        served.shutdown()
    def test(server):
        assert urllib.request.urlopen(f"http://127.0.0.1:{server}/").status == 200
    """
    result = run(source)
    result.assert_outcomes(failed=1)
    assert "Refused inside, but the pytest process listens outside, on 127.0.0.1:" in hint(result)
    assert 'network="host"' in hint(result)
    run(source, "--sandbox-network=host").assert_outcomes(passed=1)


def test_a_unix_socket_of_the_host_cannot_be_reached(run):
    """A refused connection to a socket file says that it has to be passed in; with ``volumes`` it
    works.
    """
    source = """
    import socket, pytest
    @pytest.fixture(scope="module")
    def path(tmp_path_factory):
        path = {directory!r} + "/socket"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            yield path
    {mark}
    def test(path):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
    """
    directory = f"/tmp/pytest-sandbox-hint-{os.getpid()}"
    os.mkdir(directory)
    try:
        result = run(source.format(directory=directory, mark=""))
        result.assert_outcomes(failed=1)
        assert f"listens outside on the Unix socket {directory}/socket" in result.stdout.str()
        os.unlink(f"{directory}/socket")
        mark = f"@pytest.mark.container(volumes=['{directory}:{directory}'])"
        run(source.format(directory=directory, mark=mark)).assert_outcomes(passed=1)
    finally:
        if os.path.exists(f"{directory}/socket"):
            os.unlink(f"{directory}/socket")
        os.rmdir(directory)


def test_a_file_of_an_earlier_test_is_gone(run):
    """A missing file that an earlier test made says which one, and what helps."""
    result = run("""
    import pathlib
    def test_makes(): pathlib.Path("/opt/left").touch()
    def test_expects(): assert pathlib.Path("/opt/left").read_bytes() == b""
    """)
    result.assert_outcomes(passed=1, failed=1)
    assert hint(result).startswith("/opt/left was made by ")
    assert "::test_makes" in hint(result)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('socket.getaddrinfo("example.org", 80)', "No name can be looked up inside"),
        (
            'socket.create_connection(("192.0.2.1", 80), 5)',
            "The container has no network but its own loopback",
        ),
    ],
)
def test_a_lack_of_network_is_named(run, body, said):
    """No DNS and no route are explained."""
    result = run(f"import socket\ndef test(): {body}")
    result.assert_outcomes(failed=1)
    assert said in hint(result)


def test_no_hint_for_users_where_root_runs(run):
    """As root, what a user cannot have is an ordinary failure."""
    result = run(
        "import errno\ndef test(): raise OSError(errno.EXDEV, 'Invalid cross-device link')"
    )
    result.assert_outcomes(failed=1)
    assert "" == hint(result)


def test_no_hint_where_isolation_explains_nothing(run):
    """An ordinary failure has none."""
    result = run("def test_a(): open('/nowhere')\ndef test_b(): assert 0")
    result.assert_outcomes(failed=2)
    assert "" == hint(result)


def test_listening_sockets_are_found():
    """TCP of both families and named Unix sockets of a process, and no other's."""
    from pytest_sandbox.linux.sockets import Listener, listening

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        found = listening(os.getpid())
        assert Listener("127.0.0.1", server.getsockname()[1]) in found
        assert Listener("::1", six.getsockname()[1]) in found
    assert Listener(
        "127.0.0.1", server.getsockname()[1] if server.fileno() >= 0 else 0
    ) not in listening(os.getpid())
