"""The hooks ``pytest_sandbox_carry`` and ``pytest_sandbox_carried``."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("root")

CONFTEST = """
import os

class Plugin:
    def __init__(self, key): self.key = key
    def pytest_sandbox_carry(self, item):
        return {self.key: [item.name, os.getppid()]}
    def pytest_sandbox_carried(self, item, data):
        print("\\nsent to", self.key, data, os.getppid() != 0)

def pytest_configure(config):
    for key in ("one", "two"):
        config.pluginmanager.register(Plugin(key), f"plugin-{key}")
"""


def test_each_plugin_gets_its_own_data(run, pytester):
    """What a plugin returns inside is passed to the same plugin outside, for every test that has
    ended by itself.
    """
    pytester.makeconftest(CONFTEST)
    result = run(
        "import os\ndef test_a(): pass\ndef test_b(): assert 0\ndef test_c(): os.abort()", "-s"
    )
    result.assert_outcomes(passed=1, failed=2)
    sent = [line for line in result.outlines if line.startswith("sent")]
    assert [
        f"sent to {key} {{'{key}': ['{name}', 0]}} True"
        for name in ("test_a", "test_b")
        for key in ("two", "one")
    ] == sent


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            "{1, 2}",
            "*pytest_sandbox_carry of *conftest.py returned what JSON cannot represent*set*",
        ),
        ("float('nan')", "*returned what JSON cannot represent*"),
        ("'x' * (3 << 20)", "*returned 3145730 bytes of JSON; at most 2097152 are allowed*"),
    ],
)
def test_data_that_cannot_be_sent_fail_the_test(run, pytester, returned, message):
    """A plugin's data that are no JSON or too large are an error of the test, which names the
    plugin.
    """
    pytester.makeconftest(f"def pytest_sandbox_carry(item): return {returned}")
    result = run("def test(): pass")
    assert 1 == result.ret
    result.stdout.fnmatch_lines([message])


def test_forged_data_reach_no_other_plugin(run, pytester):
    """Data for a name that no plugin with the hook has are ignored."""
    pytester.makeconftest(CONFTEST)
    result = run(
        """
    def test(request):
        forwarder = request.config.pluginmanager.get_plugin("sandbox-inside-forwarder")
        forwarder.channel.send("carry", ["terminalreporter", {}])
    """
    )
    result.assert_outcomes(passed=1)
