"""Networks in marks, fixtures and factories."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("root", "bridge")

SUITE = """
import socket, subprocess, sys
import pytest
from pytest_sandbox.container.container import start_saved
from pytest_sandbox import Network

net = Network("shared")
pytestmark = pytest.mark.container(network=net)
SERVER = "import socket; s = socket.create_server(('', 5432)); print('up', flush=True)\\n"
SERVER += "while True:\\n with s.accept()[0] as c: c.sendall(b'rows')"

@pytest.fixture(scope="session")
def database(container_factory):
    with container_factory(network=net, hostname="db") as db:
        with db.popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE) as server:
            server.stdout.readline()
            yield db
            server.kill()

@pytest.mark.parametrize("number", range(4))
def test_inside(database, number):
    assert socket.gethostname() != "db"
    with socket.create_connection(("db", 5432), 10) as connection:
        assert connection.recv(10) == b"rows"
        assert connection.getsockname()[0] != database.ip_address

def test_held(database, container):
    assert net.addresses == {"db": database.ip_address, container.hostname: container.ip_address}
    done = container.run(["getent", "hosts", "db"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == database.ip_address

@pytest.mark.container(network="none")
def test_elsewhere(database):
    with pytest.raises(OSError):
        socket.create_connection(("db", 5432), 10)
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_tests_and_containers_share_a_network(run, workers):
    """Tests with a network in their mark, and containers of fixtures on it, reach each other; each
    xdist worker has a network of its own.
    """
    plugins = ("xdist",) if workers else ()
    run(SUITE, "-W", "error", *workers, sandbox=False, plugins=plugins).assert_outcomes(passed=6)


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        (["--sandbox-network=shared"], ""),
        (["-o", "sandbox_network=shared"], ""),
        ([], "@pytest.mark.container(network='shared')"),
    ],
)
def test_the_name_of_a_network_is_rejected(run, arguments, source):
    """Options, ini settings and marks that name a network by text are errors that list the accepted
    values.
    """
    result = run(f"import pytest\n{source}\ndef test(): pass", *arguments)
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    expected = (
        '*network=\'shared\' is not valid; accepted: "none", "host", "outside", a list of *'
        "network=Network()*"
    )
    result.stderr.fnmatch_lines([expected])


def test_the_hint_lists_the_containers_on_the_network(run):
    """The report of a failed name resolution or connection lists the reachable containers."""
    result = run("""
    import socket, pytest
    from pytest_sandbox import Network
    net = Network()

    @pytest.fixture(scope="module")
    def db(container_factory): return container_factory(network=net, hostname="db").start()

    @pytest.mark.container(network=net, hostname="me")
    @pytest.mark.parametrize("do", [
        lambda: socket.getaddrinfo("example.org", 80),
        lambda: socket.create_connection(("192.0.2.1", 80), 5),
    ])
    def test(db, do): do()
    """)
    result.assert_outcomes(failed=2)
    reach = (
        "container reaches only the containers on its network: db (172.30.0.2), me "
        '(172.30.0.*). network="host" uses the host\'s network.'
    )
    result.stdout.fnmatch_lines(
        [f"No name can be looked up inside: the {reach}", f"The {reach}"], consecutive=False
    )


def test_a_kept_layer_is_opened_without_its_network(run, pytester, monkeypatch):
    """A container started from a kept layer is on no network."""
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(pytester.path / "home"))
    source = """
    import pytest
    from pytest_sandbox import Network

    @pytest.mark.container(network=Network())
    def test():
        open("/srv/x", "w").write("x")
        assert 0
    """
    run(source, "--sandbox-keep=failed").assert_outcomes(failed=1)
    from pytest_sandbox.container import saved_layers
    from pytest_sandbox.container.container import start_saved

    (found,) = saved_layers.list_saved()
    with start_saved(found.id) as again:
        assert ("x", "none") == (again.read_text("/srv/x"), again.settings.network)
