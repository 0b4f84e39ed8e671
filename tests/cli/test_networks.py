"""``network``, and containers of several processes on one network."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from dataclasses import asdict

import pytest
from command_line import output_of, sandbox
from terminals import wait_for

from pytest_sandbox.container import detached, shared_network

pytestmark = [
    pytest.mark.needs("containers", "root", "bridge"),
    pytest.mark.usefixtures("home"),
]


#: Serves one connection at a time, and says which address it has.
SERVER = (
    "import socket; s = socket.create_server(('', 80)); print('listening', flush=True)\n"
    "while True:\n    c, a = s.accept(); c.sendall(a[0].encode()); c.close()"
)


def client(name: str, *flags: str, network: str = "net"):
    """Connect to a server by name, from a new container."""
    script = f"import socket; c = socket.create_connection(({name!r}, 80), 10); print(c.recv(99))"
    return sandbox("run", "--network", network, *flags, "host", "python3", "-c", script)


def server(*flags: str) -> str:
    name = output_of("run", "-d", *flags, "host", "python3", "-c", SERVER).strip()
    wait_for(lambda: "listening" in sandbox("logs", name).stdout)
    return name


class TestNetwork:
    """Containers on a network."""

    def test_containers_of_several_processes_reach_each_other_by_name(self):
        """A detached container is found by its --name; after its end, the name can be reused."""
        output_of("network", "create", "net")
        name = server("--name", "db", "--network", "net")
        assert "b'172.30.0.3'\n" == client("db").stdout
        assert "net\n" == output_of("ps", "--format", "{{.Networks}}", "-f", f"id={name}")
        address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        assert "172.30.0.2\n" == output_of("inspect", "-f", address, name)
        output_of("rm", "-f", "db")
        server("--name", "db", "--network", "net")
        assert 0 == client("db").returncode

    def test_two_networks_are_apart(self):
        """A container of another network, and one without, do not reach it."""
        for name in ("net", "other"):
            output_of("network", "create", name)
        server("--name", "db", "--network", "net")
        for network in ("other", "none"):
            for target in ("db", "172.30.0.2"):
                assert 1 == client(target, network=network).returncode

    def test_connect_and_disconnect(self):
        """A running container is connected under an alias, and disconnected."""
        output_of("network", "create", "net")
        name = server("--name", "db")
        assert 1 == client("db").returncode
        output_of("network", "connect", "--alias", "base", "net", "db")
        assert 0 == client("base").returncode
        again = sandbox("network", "connect", "net", "db")
        assert (125, True) == (again.returncode, "has the network net" in again.stderr)
        assert "true\n" == output_of("inspect", "-f", "{{.State.Running}}", name)
        output_of("network", "disconnect", "net", "db")
        assert 1 == client("base").returncode
        twice = sandbox("network", "disconnect", "net", "db")
        assert (125, True) == (twice.returncode, "is not connected" in twice.stderr)

    def test_rm_is_refused_while_a_container_is_on_it(self):
        """`network rm` fails with docker's words until the containers have ended."""
        output_of("network", "create", "net")
        name = server("--network", "net")
        done = sandbox("network", "rm", "net")
        assert (125, "", True) == (done.returncode, done.stdout, "active endpoints" in done.stderr)
        output_of("rm", "-f", name)
        assert "net\n" == output_of("network", "rm", "net")
        assert [] == shared_network.list_networks()

    def test_a_killed_container_leaves_the_network(self):
        """The holder notices the end of a container whose supervisor was killed."""
        output_of("network", "create", "net")
        server("--name", "db", "--network", "net")
        (one,) = detached.list_detached()
        os.kill(one.supervisor, signal.SIGKILL)
        (network,) = shared_network.list_networks()
        wait_for(lambda: network.containers() == {})
        server("--name", "db", "--network", "net")

    def test_a_killed_holder_leaves_nothing(self, home):
        """The network is gone, its containers go on, and the name can be used again."""
        output_of("network", "create", "net")
        name = server("--network", "net")
        (entry,) = os.listdir(home / "networks")
        os.kill(int(entry.rpartition(".")[2]), signal.SIGKILL)
        wait_for(lambda: shared_network.list_networks() == [])
        assert "true\n" == output_of("inspect", "-f", "{{.State.Running}}", name)
        done = client("x")
        assert (125, True) == (done.returncode, "--network 'net' is not valid" in done.stderr)
        output_of("network", "create", "net")
        assert 1 == len(os.listdir(home / "networks"))


class TestLists:
    """ls, inspect and errors."""

    def test_a_label_with_commas_is_found(self):
        output_of("network", "create", "--label", "a=b,c=d", "net")
        assert "" != output_of("network", "ls", "-q", "--filter", "label=a=b,c=d")
        assert "" == output_of("network", "ls", "-q", "--filter", "label=c=d")

    def test_ls_and_inspect(self):
        """The output is docker's, with the predefined networks."""
        flags = ("--subnet", "10.9.0.0/24", "--label", "a=b")
        identity = output_of("network", "create", *flags, "net").strip()
        assert ["net", "bridge", "host", "none"] == output_of(
            "network", "ls", "--format", "{{.Name}}"
        ).split()
        assert f"{identity[:12]}\n" == output_of("network", "ls", "-q", "--filter", "label=a=b")
        assert f"{identity}\n" == output_of("network", "ls", "-q", "--no-trunc", "-f", "name=net")
        (shown,) = json.loads(output_of("network", "inspect", identity[:12]))
        assert ("net", identity, {"a": "b"}) == (shown["Name"], shown["Id"], shown["Labels"])
        assert [{"Subnet": "10.9.0.0/24"}] == shown["IPAM"]["Config"]
        assert "10.9.0.0/24\n" == output_of(
            "network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "net"
        )
        assert "net\n" == output_of("network", "prune", "-f")
        assert "" == output_of("network", "rm", "-f", "net")

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("rm", "nosuch"), "network nosuch not found"),
            (("rm", "bridge"), "operation is not permitted on predefined bridge network"),
            (("inspect", "nosuch"), "network nosuch not found"),
            (("create", "host"), "network with name host already exists"),
            (("create", "--subnet", "x", "n"), "subnet='x' is not valid"),
            (("create", "a b"), "name='a b' is not valid"),
            (("create", "--driver", "overlay", "n"), "invalid choice: 'overlay'"),
            (("connect", "nosuch", "x"), "network nosuch not found"),
            (("frobnicate",), "invalid choice: 'frobnicate'"),
            ((), "required: ACTION"),
        ],
    )
    def test_errors(self, words, said):
        """Errors are one line and the status 125, and leave nothing."""
        done = sandbox("network", *words)
        assert (125, "", True) == (done.returncode, done.stdout, said in done.stderr), done.stderr
        assert [] == shared_network.list_networks()

    def test_a_used_name(self):
        """Two networks of one name do not exist."""
        output_of("network", "create", "net")
        done = sandbox("network", "create", "net")
        assert (125, True) == (done.returncode, "name net already exists" in done.stderr)


def test_a_network_that_another_user_has_forged_is_unknown(home):
    """Another user who has made the directory first cannot get pidfds of root's containers."""
    directory = home / "networks" / f"forged.{os.getpid()}"
    directory.mkdir(parents=True)
    facts = shared_network.NetworkFacts("1" * 64, "forged", "172.30.0.0/24", 1.0, "/etc/hosts")
    (directory / "network.json").write_text(json.dumps(asdict(facts)))
    os.chown(home / "networks", 1234, 1234)
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert "forged" not in output_of("network", "ls")
        assert 0 != sandbox("network", "inspect", "forged").returncode
        refused = sandbox("network", "create", "own")
        assert 0 != refused.returncode
        assert "UID 1234" in refused.stderr
    finally:
        os.close(fd)
