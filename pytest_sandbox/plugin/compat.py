"""Every private name of pytest, pluggy, coverage and execnet that this plugin uses.

Each use has the reason why no public name serves. tests/test_structure.py allows private names only
here and in compat_fixtures.py, which is about fixtures and collectors.
"""

from __future__ import annotations

import logging
import os
import pathlib
import re
import subprocess
import warnings
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.logging import caplog_records_key
from _pytest.warnings import catch_warnings_for_item

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from typing import TextIO

__all__ = [
    "RestrictedHook",
    "add_failed_subtests",
    "base_temporary",
    "captured_files",
    "captured_sections",
    "captured_teardown",
    "close_worker_streams",
    "failed_subtests",
    "host_outputs",
    "host_streams",
    "identity",
    "ini_value",
    "interpreter_options",
    "is_at_terminal",
    "is_measured",
    "junit_xml",
    "logging_locks",
    "recorded_warnings",
    "restore_subtest",
    "set_terminal_file",
    "tmp_path_name",
    "upcoming",
    "use_base_temporary",
    "use_streams",
]

# -- the session


def upcoming(
    item: pytest.Item, index: int, nextitem: pytest.Item | None, most: int
) -> list[pytest.Item]:
    """Return the items that follow ``item`` in this process, as far as that is known: at most
    ``most``. ``index`` is that of the item in the session.

    ``WorkerInteractor.torun``: the controller of xdist decides it, a few items in advance.
    """
    items = item.session.items
    if not hasattr(item.config, "workerinput"):
        return items[index + 1 : index + 1 + most] if index >= 0 else []
    queue = getattr(_worker_interactor(item.config), "torun", None)
    known = list(getattr(queue, "_items", ()))
    later = [items[number] for number in known if isinstance(number, int)]
    return (later if nextitem is None else [nextitem, *later])[:most]


def base_temporary(config: Any) -> str:
    """Return the directory that contains every ``tmp_path``, after creating it.

    ``config._tmp_path_factory``: an image's container needs the directory before any test has
    requested the public fixture ``tmp_path_factory``.
    """
    factory = getattr(config, "_tmp_path_factory", None)
    return "" if factory is None else str(factory.getbasetemp())


def use_base_temporary(config: Any, path: str) -> None:
    """Use a directory that exists, for each ``tmp_path``.

    ``_tmp_path_factory._basetemp``: the public option ``--basetemp`` would empty the directory.
    """
    factory = getattr(config, "_tmp_path_factory", None)
    if factory is not None and path:
        factory._basetemp = pathlib.Path(path)


def set_terminal_file(config: Any, file: TextIO) -> None:
    """Have the terminal reporter write into another file, in a session of which another one shows
    the reports.

    ``reporter._tw._file``: the reporter has no public way to change its file.
    """
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None:
        reporter._tw._file = file


def terminal_column(config: Any) -> int:
    """Write what the terminal reporter has written, and return its column, from 0.

    ``reporter._tw``: the reporter has no public name for it.
    """
    writer = getattr(config.pluginmanager.getplugin("terminalreporter"), "_tw", None)
    if writer is None:
        return 0
    writer.flush()
    return int(writer.width_of_current_line)


def interpreter_options() -> list[str]:
    """Return the options of this interpreter, such as ``-O`` and ``-X dev``.

    ``subprocess._args_from_interpreter_flags``: multiprocessing uses it for the same purpose.
    """
    found: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return found


def tmp_path_name(item: pytest.Item) -> str:
    """Return the name of a test's ``tmp_path`` without the number at its end.

    ``_pytest.tmpdir._mk_tmp``: the name is needed after a test process has crashed, and must not
    be taken from the test process. No public function returns it.
    """
    return re.sub(r"[\W]", "_", item.name)[:30]


# -- configuration and hooks


def ini_value(config: Any, name: str) -> object:
    """Return an ini setting as it was written: text, or the value in a TOML file.

    ``config._inicfg``: in ``[tool.pytest]`` a value has its native type, and a setting declared by
    ``addini`` accepts a single type, not both numbers and text.
    """
    try:
        with warnings.catch_warnings():
            # pytest 9 warns of a list for a setting of a single type, and returns it.
            warnings.simplefilter("ignore", DeprecationWarning)
            return config.getini(name)
    except (TypeError, pytest.UsageError):
        found = config._inicfg[name]
        return getattr(found, "value", found)


def ini_names(config: Any) -> tuple[set[str], set[str]]:
    """Return the names of the ini settings that are given, and of those that plugins have declared.

    ``config._inicfg`` (pytest 8: ``inicfg``, without ``-o``) and ``_parser._inidict``: pytest only
    warns of a name that no plugin has declared, and tells nobody else.
    """
    given = config.inicfg if not hasattr(config, "_inicfg") else config._inicfg
    overrides = {one.partition("=")[0] for one in config.getoption("override_ini") or ()}
    return {*given, *overrides}, set(config._parser._inidict)


class RestrictedHook:
    """A hook that only some plugins implement for a while.

    ``HookCaller._hookimpls``: in a test process, reports and warnings go to the parent, not to the
    terminal; in the parent, no debugger is offered an exception a second time.
    pluggy's public ways do not serve: ``subset_hook_caller`` returns another object than the one
    that pytest calls, and unregistering plugins frees objects of the parent (OuterFinalizers).
    """

    def __init__(self, config: pytest.Config, hook: str, plugins: tuple[object, ...]) -> None:
        self._hook = getattr(config.hook, hook)
        self._referenced = self._hook._hookimpls
        self._allowed = [
            one for one in self._referenced if any(one.plugin is plugin for plugin in plugins)
        ]

    def restrict(self) -> None:
        """Call only those plugins from now on."""
        self._hook._hookimpls = self._allowed

    def restore(self) -> None:
        """Call all plugins again."""
        self._hook._hookimpls = self._referenced


def recorded_warnings(item: pytest.Item) -> AbstractContextManager[None]:
    """Record warnings under all filters that pytest applies to a test, and announce them at the
    end; do nothing with ``-p no:warnings``.

    ``catch_warnings_for_item``: pytest itself announces warnings at the end of the protocol, which
    a test process never reaches. The filters have no public reader.
    """
    if not item.config.pluginmanager.has_plugin("warnings"):
        return nullcontext()
    return catch_warnings_for_item(config=item.config, ihook=item.ihook, when="runtest", item=item)


def captured_sections(item: pytest.Item) -> list[tuple[str, str]]:
    """Return the sections of what this process has captured for an item, as its next report has
    them (``item._report_sections``; a report takes a tenth of a millisecond).
    """
    found: list[tuple[str, str, str]] = item._report_sections
    return [(f"Captured {stream} {when}", text) for when, stream, text in found]


@contextmanager
def captured_teardown(item: pytest.Item) -> Iterator[None]:
    """Capture output and log records for sections of the item's teardown phase, each unless its
    plugin is disabled.

    ``item_capture``, ``caplog_records_key``: pytest's hooks do it, but only together with all of
    the phase, and after a setup phase.
    """
    manager = item.config.pluginmanager
    capture, logs = manager.getplugin("capturemanager"), manager.getplugin("logging-plugin")
    with ExitStack() as entered:
        if logs is not None:
            item.stash[caplog_records_key] = {}
            entered.enter_context(contextmanager(logs.pytest_runtest_teardown)(item))
        if capture is not None:
            entered.enter_context(capture.item_capture("teardown", item))
        yield


# -- captured output
# ``capturemanager._global_capturing``: a test process needs capture files of its own, and the
# descriptors that are replaced while output is captured have no public name.


def _captured(config: pytest.Config, attribute: str) -> Any:
    manager = config.pluginmanager.getplugin("capturemanager")
    return getattr(getattr(manager, "_global_capturing", None), attribute, None)


def captured_files(config: pytest.Config) -> list[tuple[str, int, int]]:
    """Return name, file and target descriptor of each stream that is captured by descriptor."""
    found = []
    for name, attribute in (("stdout", "out"), ("stderr", "err")):
        stream = _captured(config, attribute)
        if hasattr(stream, "targetfd_save"):
            found.append((name, stream.tmpfile.fileno(), stream.targetfd))
    return found


def host_outputs(config: pytest.Config) -> list[int]:
    """Return this process's own standard output and error, even while they are captured."""
    return [_original_fd(config, "out", 1), _original_fd(config, "err", 2)]


def host_streams(config: pytest.Config) -> list[int]:
    """Return this process's own standard input, output and error, even while they are captured."""
    return [_original_fd(config, "in_", 0), *host_outputs(config)]


def use_streams(config: pytest.Config, streams: list[int]) -> None:
    """Use other descriptors for standard input, output and error while capturing is suspended, as
    for a debugger; also for what the terminal reporter prints then.
    """
    for attribute, fd, own in zip(("in_", "out", "err"), (0, 1, 2), streams, strict=True):
        os.dup2(own, _original_fd(config, attribute, fd), inheritable=False)


def is_at_terminal(config: pytest.Config) -> bool:
    """Tell whether this process's own standard input and output are terminals, even while they are
    captured.
    """
    fds = (_original_fd(config, "in_", 0), _original_fd(config, "out", 1))
    return all(os.isatty(fd) for fd in fds) and not hasattr(config, "workerinput")


def _original_fd(config: pytest.Config, attribute: str, fd: int) -> int:
    found: int = getattr(_captured(config, attribute), "targetfd_save", fd)
    return found


# -- results


def junit_xml(config: pytest.Config) -> Any:
    """Return the object that writes junit XML in this process, or None.

    ``xml_key``: what ``record_testsuite_property`` and ``record_xml_attribute`` write is stored in
    that object, and in no report.
    """
    from _pytest.junitxml import xml_key

    return config.stash.get(xml_key, None)


def identity(item: Any) -> Any:
    """Return the item's ID as an object, which pytest has from 9.2 on; its name before that.

    A report that is created with it shares it with the item, instead of parsing the name again.
    """
    return item.id if hasattr(pytest.Item, "id") else item.nodeid


def failed_subtests(item: Any) -> int:
    """Return how many subtests of the item pytest has counted as failed.

    ``failed_subtests_key``: pytest fails a test with a count above 0. Always 0 before pytest 9,
    where subtests are a separate plugin.
    """
    counts = _failed_subtests(item)
    return 0 if counts is None else counts[identity(item)]


def add_failed_subtests(item: Any, count: int) -> None:
    """Count subtests of the item that have failed in a test process."""
    counts = _failed_subtests(item)
    if counts is not None and count:
        counts[identity(item)] += count


def _failed_subtests(item: Any) -> Any:
    try:
        from _pytest.subtests import failed_subtests_key
    except ImportError:
        return None
    return item.config.stash.get(failed_subtests_key, None)


def restore_subtest(report: Any, data: dict[str, Any]) -> None:
    """Restore the arguments of a subtest's report.

    ``context.kwargs``, of a frozen class: when pytest reads a serialised report, it takes the
    repr() of arguments that are reprs already.
    """
    context = getattr(report, "context", None)
    arguments = data.get("_subtest.context", {}).get("kwargs")
    if context is not None and arguments:
        object.__setattr__(context, "kwargs", arguments)


def logging_locks() -> list[Any]:
    """Return the locks that a thread may hold while it logs: the module's, then the handlers'.

    ``_lock`` and ``_handlerList`` of :mod:`logging`: handlers that only a fixture refers to have no
    public name, and the order has to be that of logging.config, which takes the module's first.
    """
    module: Any = logging
    handlers = [reference() for reference in list(module._handlerList)]
    locks = [getattr(handler, "lock", None) for handler in handlers]
    return [module._lock, *(lock for lock in locks if lock is not None)]


# -- other plugins


def is_measured(coverage: Any, file: str, module: str) -> bool:
    """Tell whether coverage's configuration includes a file, the source of ``module``.

    ``Coverage._inorout``: no public method tells.
    """
    rules = getattr(coverage, "_inorout", None)
    if rules is None:  # it has not started
        return True
    frame: Any = SimpleNamespace(f_globals={"__name__": module})
    return rules.check_include_omit_etc(file, frame) is None


def close_worker_streams(config: pytest.Config) -> None:
    """In a test process of an xdist worker, close the streams between worker and controller.

    ``gateway._io`` of execnet: a test could write to the stream. The public ``exit()`` would end
    the worker's connection too.
    """
    if not hasattr(config, "workerinput"):
        return
    io = _worker_interactor(config).channel.gateway._io
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in (io.infile, io.outfile):
        os.dup2(null, stream.fileno(), inheritable=False)
    os.close(null)


def _worker_interactor(config: pytest.Config) -> Any:
    """Return the plugin that is a worker of xdist; its class is not importable in the worker."""
    plugins = config.pluginmanager.get_plugins()
    return next(one for one in plugins if type(one).__name__ == "WorkerInteractor")
