"""The setting ``fresh``: a test, or its scope, runs in a new interpreter inside the container.

The parent forks into the container as for any test, and the child replaces itself by a new
interpreter (execve(2)), which gets the report channel. fresh_process.py and fresh_plugin.py run
there: a pytest session with the same options, rootdir and plugins, that collects the tests itself
and reports as a fork does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_sandbox.plugin import compat, outside_services, scopes

if TYPE_CHECKING:
    from pytest_sandbox.plugin.captured_output import CapturedOutput
    from pytest_sandbox.plugin.report_channel import ReportChannel
    from pytest_sandbox.settings.settings import Settings

__all__ = ["FreshStart", "check"]


_SCRIPT = "fresh_process.py"


def check(item: pytest.Item, settings: Settings) -> None:
    """Raise :class:`pytest.UsageError` if a new interpreter cannot run an item."""
    if settings.image != "host":
        raise pytest.UsageError(
            f"{item.nodeid}: fresh=True needs image='host'; found image={settings.image!r}. The "
            "new interpreter is this one, and needs the libraries of this host."
        )
    objects = [one for one in item.config.invocation_params.plugins or () if type(one) is not str]
    if objects:
        raise pytest.UsageError(
            f"{item.nodeid}: fresh=True cannot pass the plugin object {objects[0]!r} of "
            "pytest.main() to a new interpreter. Pass the name of a module, or use -p."
        )


class FreshStart:
    """The start of the new interpreter, prepared in the parent before the fork."""

    def __init__(self, item: pytest.Item, channel: ReportChannel, output: CapturedOutput) -> None:
        self._item = item
        self._channel = channel
        self._output = output
        self._basetemp = compat.base_temporary(item.config)

    def execute(self) -> NoReturn:
        """Replace the child by the new interpreter; report the error if that fails."""
        try:
            self._channel.in_child()
            self._output.in_child(self._channel.wake_writer)
            compat.close_worker_streams(self._item.config)
            self._execute()
        except BaseException as error:  # noqa: BLE001 - may not return into the parent's session
            text = f"the new interpreter {sys.executable} cannot be started: {error}"
            self._channel.send("internal", text)
        finally:
            os._exit(1)

    def _execute(self) -> None:
        # Not needed in a session without tests inside, which imports this file.
        from pytest_sandbox.plugin.report_channel import STACK_SIGNAL

        outputs = [os.dup(fd) for fd in (1, 2)]
        # For a debugger, and what a test prints while nothing is captured.
        streams = [os.dup(fd) for fd in compat.host_streams(self._item.config)]
        if not compat.captured_files(self._item.config):  # what pytest prints at its start
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        described = os.memfd_create("fresh", 0)
        ends = self._channel.child_ends()
        for fd in (*outputs, *streams, *filter(None, ends.values())):
            os.set_inheritable(fd, True)
        data = {**self._session(), **self._tests(), "channel": ends, "outputs": outputs}
        data["streams"] = streams
        data["nonce"] = self._channel.nonce.decode()
        os.write(described, json.dumps(data).encode("utf-8", "surrogateescape"))
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), _SCRIPT)
        command = [sys.executable, *compat.interpreter_options(), script, str(described)]
        # Until the new interpreter has its own handler: the default would end it (signal(7)).
        signal.signal(STACK_SIGNAL, signal.SIG_IGN)
        os.execve(sys.executable, command, os.environ)

    def _session(self) -> dict[str, Any]:
        """Return what makes the new session like this one."""
        config = self._item.config
        return {
            "arguments": [*_command_line(config), f"--rootdir={config.rootpath}"],
            "plugins": list(config.invocation_params.plugins or ()),
            "directory": str(config.invocation_params.dir),
            "path": sys.path,
            "argv": sys.argv,
            "basetemp": self._basetemp,
        }

    def _tests(self) -> dict[str, Any]:
        """Return which tests the process may have to run, and the first of them."""
        item = self._item
        number = scopes.index_of(item)
        tests = [(number, item)]
        if scopes.is_shared(item):
            items = enumerate(item.session.items)
            tests = [one for one in items if one[1] is item or scopes.share(item, one[1])] or tests
        # Whole files: an ID as an argument that is not found would be the new session's own error.
        wanted = list(dict.fromkeys(str(one.path) for _number, one in tests))
        return {
            "first": item.nodeid,
            "tests": [[number, one.nodeid] for number, one in tests],
            "wanted": wanted,
            "scope": scopes.scope_of(item),
            "services": outside_services.describe(item),
        }


def _command_line(config: pytest.Config) -> list[str]:
    """Return the arguments of this session, and those that a new one needs to be like it."""
    worker = getattr(config, "workerinput", None)
    found = list(config.invocation_params.args if worker is None else worker["mainargv"][1:])
    found = [os.fspath(one) for one in found]
    if config.pluginmanager.hasplugin("xdist"):
        found.append("-n0")
    seed = getattr(config.option, "randomly_seed", None)
    if isinstance(seed, int):
        found.append(f"--randomly-seed={seed}")
    return found
