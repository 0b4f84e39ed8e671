"""The pytest session of a new interpreter (``fresh=True``): the side of the container.

:func:`run` starts pytest with the arguments of the parent's session and the plugin
:class:`_FreshPlugin`. That collects the tests which the parent names, and runs them in a
:class:`~pytest_sandbox.plugin.test_process.TestProcess`, which never returns.
"""

from __future__ import annotations

import faulthandler
import io
import os
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.plugin import compat, outside_services, protocol, scopes
from pytest_sandbox.plugin.report_channel import STACK_SIGNAL, ReportChannel
from pytest_sandbox.plugin.stash import FRESH, INSIDE, SETTINGS, SHARING
from pytest_sandbox.plugin.test_process import TestProcess, exit_process
from pytest_sandbox.plugin.test_words import TestWords
from pytest_sandbox.plugin.timeouts import PluginTimeouts
from pytest_sandbox.settings.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import TextIO

__all__ = ["run"]

_MAX_SHOWN = 4000


def run(data: dict[str, Any]) -> None:
    """Run the tests that ``data`` describes, in the form of fresh.py; do not return.

    A session that ends before has failed: its output is the report.
    """
    channel = _Channel(data["nonce"].encode(), **data["channel"])
    # Before anything is collected: without this, the signal of a timeout would end the process.
    faulthandler.register(STACK_SIGNAL, channel.wake_writer)
    os.chdir(data["directory"])
    plugin = _FreshPlugin(data, channel)
    status = "an exception"
    try:
        status = str(int(pytest.main(data["arguments"], [*data["plugins"], plugin])))
    finally:
        text = plugin.problem or f"the session of the new interpreter has ended with {status}"
        _show(plugin.terminal.getvalue())
        channel.send("internal", text)
        exit_process(1)


def _show(text: str) -> None:
    """Write what the session has printed to standard output, with what is buffered there."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    with suppress(OSError), open(1, "wb", closefd=False) as file:
        file.write(text.encode(errors="backslashreplace"))


class _Channel(ReportChannel):
    """The child's ends in a new interpreter.

    ``numbers``: the index of a test in this session by that in the parent's.
    """

    def __init__(self, nonce: bytes, file: int, wake: int, word: int | None) -> None:
        self.nonce, self.file, self.wake_writer = nonce, file, wake
        self.numbers: dict[int, int] = {}
        self.words = None if word is None else TestWords(word, -1)
        for fd in (file, wake, word):
            if fd is not None:
                os.set_inheritable(fd, False)
        self._sender = os.getpid()

    def in_child(self) -> None:
        """Do nothing: the parent's ends were closed before."""

    def next_word(self) -> int | None:
        """Wait for the next word, as in a fork.

        Raises LookupError for a test that this session has not collected.
        """
        number = super().next_word()
        if number is None:
            return None
        index = ~number if number < 0 else number
        if index not in self.numbers:
            raise LookupError("fresh=True: the new interpreter has not collected the test")
        return ~self.numbers[index] if number < 0 else self.numbers[index]


class _FreshPlugin:
    """The plugin that collects and runs the tests."""

    def __init__(self, data: dict[str, Any], channel: _Channel) -> None:
        self._data = data
        self._channel = channel
        self._process: TestProcess | None = None
        self.problem = ""
        #: What the session prints, until the first test begins.
        self.terminal = io.StringIO()

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Collect the named tests only, and use the parent's directory for temporary files."""
        config.stash[FRESH] = True
        config.args[:] = self._data["wanted"]
        compat.use_base_temporary(config, self._data["basetemp"])

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionstart(self, session: pytest.Session) -> Generator[None, None, None]:
        """Print no header: only a session that fails shows what it has printed."""
        compat.set_terminal_file(session.config, self.terminal)
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> Generator[None, None, None]:
        """Keep exactly the tests that the parent has selected, in its order."""
        found: dict[str, pytest.Item] = {}
        for item in items:
            found.setdefault(item.nodeid, item)
        yield
        tests = self._data["tests"]
        items[:] = [found[nodeid] for _number, nodeid in tests if nodeid in found]
        if self._data["first"] not in found:
            self.problem = _not_found(self._data["first"], list(found))
            return
        own = {item.nodeid: number for number, item in enumerate(items)}
        self._channel.numbers = {number: own[name] for number, name in tests if name in own}
        settings = Settings()
        for item in items:
            item.stash[INSIDE], item.stash[SETTINGS] = True, settings
            item.stash[SHARING] = scopes.sharing(item, self._data["scope"], fresh=True)
        self._registered = protocol.register(config)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the first test, and then those that the parent names.

        Errors in the collection of other tests do not matter: the parent has collected them too.
        """
        first = next((one for one in session.items if one.nodeid == self._data["first"]), None)
        if first is None:
            return None
        null = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        compat.set_terminal_file(session.config, null)
        session.config.pluginmanager.register(_Debugger(session.config, null))
        forwarder, originals = self._registered
        output: Any = _Output(session.config, self._data["outputs"], self._data["streams"])
        timeouts = PluginTimeouts(first)
        outside_services.adopt(first, self._data["services"])
        self._process = TestProcess(first, self._channel, output, timeouts, forwarder, originals)
        self._process.begin(ExitStack())
        forwarder.scope = "session"
        first.ihook.pytest_runtest_protocol(item=first, nextitem=None)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Record the warnings of the first test, which may end within its setup phase's hook."""
        if self._process is not None and item.nodeid == self._data["first"]:
            recording = compat.recorded_warnings(item)
            self._process.recorded_warnings.enter_context(recording)


def _not_found(wanted: str, found: list[str]) -> str:
    names = "\n".join(found)[:_MAX_SHOWN] or "(nothing)"
    return (
        f"fresh=True: the new interpreter has not collected {wanted}. It imports the test files "
        "again, so parameters and names must not depend on what this session did before. It has "
        f"collected:\n{names}"
    )


class _Debugger:
    """A plugin that shows what the terminal reporter prints when a debugger starts."""

    def __init__(self, config: pytest.Config, null: TextIO) -> None:
        self._config = config
        self._null = null

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_exception_interact(self) -> Generator[None, None, None]:
        """Print the traceback of ``--pdb`` to standard output, which that has uncaptured."""
        assert sys.__stdout__ is not None
        compat.set_terminal_file(self._config, sys.__stdout__)
        try:
            yield
        finally:
            compat.set_terminal_file(self._config, self._null)


class _Output:
    """The outputs of the process that was forked, for pytest in the new interpreter.

    ``streams``: standard input, output and error of the parent's session itself.
    """

    def __init__(self, config: pytest.Config, outputs: list[int], streams: list[int]) -> None:
        self._config = config
        self._captured = compat.captured_files(config)
        self._outputs = outputs
        self._streams = streams

    def in_child(self, stack_writer: int) -> None:
        """Capture into the files that the parent reads; drop what the start has printed."""
        for name, file, target in self._captured:
            own = self._outputs[0 if name == "stdout" else 1]
            os.ftruncate(own, 0)
            os.lseek(own, 0, os.SEEK_SET)
            os.dup2(own, file, inheritable=False)
            os.dup2(own, target)
        if not self._captured:
            os.dup2(self._outputs[0], 1)
        compat.use_streams(self._config, self._streams)
        for fd in (*self._outputs, *self._streams):
            os.close(fd)
        if isinstance(sys.__stdout__, io.TextIOWrapper):
            sys.__stdout__.reconfigure(line_buffering=True)  # it was no terminal at the start
        faulthandler.enable(stack_writer)
