"""``--sandbox-jobs`` and ``sandbox_jobs``: how many tests run at a time.

A test that starts early does not see the reports of tests that still run. Hooks that act on reports
would notice: those of a suite's conftest.py, and those of plugins that are not known to be
harmless, mean one job.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["add_options", "announce_to_controller", "choose"]

_HOOKS = (
    "pytest_runtest_protocol",
    "pytest_runtest_logstart",
    "pytest_runtest_setup",
    "pytest_runtest_call",
    "pytest_runtest_teardown",
    "pytest_runtest_makereport",
    "pytest_runtest_logreport",
    "pytest_runtest_logfinish",
)
#: Plugins whose hooks do not pass anything from one test to the next, by the first part of their
#: module's name.
_HARMLESS = {
    "_pytest": "pytest itself",
    "pytest_sandbox": "this plugin",
    "xdist": "sends each report on",
    "__channelexec__": "xdist in a worker, whose module execnet names so",
    "anyio": "runs coroutines",
    "pytest_asyncio": "runs coroutines",
    "pytest_trio": "runs coroutines",
    "pytest_twisted": "runs coroutines",
    "_hypothesis_pytestplugin": "adds a section to reports",
    "pytest_cov": "switches the context of each test",
    "pytest_timeout": "starts a timer for each test",
    "pytest_rerunfailures": "repeats one test by its own report",
    "flaky": "repeats one test by its own report",
    "pytest_retry": "repeats one test by its own report",
    "pytest_repeat": "multiplies tests at collection",
    "pytest_randomly": "seeds at each phase",
    "pytest_random_order": "orders at collection",
    "pytest_mock": "stops patches of one test",
    "pytest_html": "writes reports in their order",
    "pytest_metadata": "writes reports in their order",
    "pytest_json_report": "writes reports in their order",
    "pytest_sugar": "prints reports in their order",
    "pytest_subtests": "logs reports of one test",
    "pytest_check": "changes reports of one test",
    "pytest_socket": "replaces socket for one test",
    "pytest_benchmark": "runs one benchmark, with alone=True",
    "pytest_httpbin": "has fixtures only",
    "pytest_django": "blocks the database between tests",
    "pytest_flask": "pushes the context of one test",
    "pytest_snapshot": "has fixtures only",
    "syrupy": "records the snapshots of one test",
    "allure_pytest": "writes the file of one test",
}


def add_options(parser: pytest.Parser, group: pytest.OptionGroup) -> None:
    """Add the option and the ini settings."""
    group.addoption(
        "--sandbox-jobs",
        metavar="N",
        help="run up to N tests inside at a time, each in its own container; auto: as many as "
        "there are CPUs (default: 1)",
    )
    parser.addini("sandbox_jobs", "as --sandbox-jobs", default="1")
    parser.addini(
        "sandbox_jobs_hooks",
        "conftest files and plugins whose hooks of tests do not depend on the reports of earlier "
        "tests, such as conftest.py",
        type="args",
        default=[],
    )


def choose(config: pytest.Config) -> int:
    """Return the number of jobs of a session, and register a plugin that prints it.

    Raises :class:`pytest.UsageError`.
    """
    asked = _read(config)
    if asked == 1:
        return 1
    reason = _reason_for_one(config)
    line = f"1 job instead of {asked}: {reason}" if reason else f"{asked} jobs"
    config.pluginmanager.register(_Line(line), "sandbox-jobs")
    return 1 if reason else asked


def announce_no_effect(config: pytest.Config) -> None:
    """Have a session in which no test runs inside print that ``--sandbox-jobs`` has no effect.

    The ini setting is for all runs of a suite, with and without ``--sandbox``.
    Raises :class:`pytest.UsageError` for an invalid number.
    """
    if config.getoption("sandbox_jobs") and _read(config) > 1:
        line = (
            "--sandbox-jobs has no effect: it is about tests inside a container, and no test is. "
            "--sandbox puts all of them inside, @pytest.mark.container one"
        )
        config.pluginmanager.register(_Line(line), "sandbox-jobs")


def announce_to_controller(config: pytest.Config) -> None:
    """Have a controller of xdist, which runs no tests itself, print the number of jobs."""
    workers = 0 if hasattr(config, "workerinput") else _workers(config)
    if workers and (config.getoption("sandbox_jobs") or _ini(config)[1] != "1"):
        line = f"{_read(config)} jobs in each of {workers} workers"
        config.pluginmanager.register(_ControllerHeader(line), "sandbox-jobs")


def _read(config: pytest.Config) -> int:
    option = config.getoption("sandbox_jobs")
    source, text = ("--sandbox-jobs", option) if option else _ini(config)
    if text == "auto":
        from pytest_sandbox.linux import cpus

        return max(1, cpus.usable() // max(1, _workers(config)))
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise pytest.UsageError(f"{source}={text!r}: neither auto nor a number from 1 to 1000")
    return int(text)


def _workers(config: pytest.Config) -> int:
    """Return the number of xdist's workers, in a worker and in the controller; 0 without xdist."""
    if hasattr(config, "workerinput"):
        return int(config.workerinput["workercount"])
    return len(config.getoption("tx", default=None) or ())


def _ini(config: pytest.Config) -> tuple[str, str]:
    from pytest_sandbox.plugin import compat

    return "sandbox_jobs", str(compat.ini_value(config, "sandbox_jobs"))


def _reason_for_one(config: pytest.Config) -> str:
    """Return why tests must run one at a time, or an empty string."""
    if config.getoption("capture", default="fd") == "no":
        return "-s shows their output as it comes"
    if config.getoption("usepdb", default=False) or config.getoption("trace", default=False):
        return "a debugger needs the terminal"
    declared = config.getini("sandbox_jobs_hooks")
    for hook in _HOOKS:
        for name in _implementations(config, hook):
            if name not in declared and os.path.basename(name) not in declared:
                return (
                    f"{name} implements {hook}; if it does not depend on earlier tests, "
                    f'sandbox_jobs_hooks = ["{name}"] says so'
                )
    return ""


def _implementations(config: pytest.Config, hook: str) -> Iterator[str]:
    """Yield the conftest files, relative to the rootdir, and plugins that implement a hook, except
    the harmless ones.
    """
    for implementation in getattr(config.hook, hook).get_hookimpls():
        module = _module_of(implementation)
        if module.partition(".")[0] not in _HARMLESS:
            path = implementation.plugin_name
            is_file = path.endswith(".py") and os.path.isabs(path)
            yield os.path.relpath(path, config.rootpath) if is_file else module


def _module_of(implementation: Any) -> str:
    module: str = getattr(implementation.function, "__module__", "") or ""
    return module


class _ControllerHeader:
    """The plugin that prints the number of jobs of each worker."""

    def __init__(self, line: str) -> None:
        self._line = line

    def pytest_report_header(self) -> str:
        """Return the line."""
        return f"sandbox: {self._line}"


class _Line:
    """The plugin that prints the number of jobs, or why it is one, below the header."""

    def __init__(self, line: str) -> None:
        self._line = line

    def pytest_report_collectionfinish(self) -> str:
        """Return the line."""
        return f"sandbox: {self._line}"
