"""Tests that change their own process: the result of each is the one that it has outside."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.needs("root")

LIMITS = """
import gc, os, resource, signal, sys, threading, warnings

def limit(name, value):
    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

def test_file_size(): limit("FSIZE", 0)
def test_soft_file_size(): resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
def test_descriptors(): limit("NOFILE", 16)
def test_processes(): limit("NPROC", 1)
def test_cpu_time(): limit("CPU", 1000)
def test_address_space(): limit("AS", 512 << 20)
def test_umask(): os.umask(0o777)
def test_blocked_signals(): signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
def test_no_path(): del os.environ["PATH"]
def test_no_environment(): os.environ.clear()
def test_no_imports():
    sys.path.clear(); sys.meta_path.clear(); sys.path_hooks.clear()
def test_removed_modules():
    for name in ("json", "os", "time", "select", "io"): del sys.modules[name]
def test_tracing():
    settrace = threading.settrace
    sys.settrace(lambda *_: None); settrace(lambda *_: None); sys.setprofile(lambda *_: None)
def test_warnings_are_errors(): warnings.simplefilter("error")
def test_closed_streams():
    for fd in range(3): os.close(fd)
def test_no_streams(): sys.stdout = sys.stderr = None
def test_removed_directory(tmp_path):
    os.chdir(tmp_path); os.rmdir(tmp_path)
def test_other_root(tmp_path): os.chroot(tmp_path)
def test_other_user():
    os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
def test_no_garbage_collection(): gc.disable()
def test_timer(): signal.setitimer(signal.ITIMER_REAL, 1000)
def test_no_hooks(): sys.excepthook = sys.unraisablehook = None
"""


def test_limits_that_a_test_sets_on_itself(run):
    """A passing test that limits its own process passes."""
    run(LIMITS).assert_outcomes(passed=LIMITS.count("def test_"))


def test_a_failure_under_a_file_size_limit(run):
    """A long failure report arrives although its process may not write to files."""
    result = run("""
    import resource
    def test():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        raise AssertionError("this failure" + "x" * (1 << 20))
    def test_after(): pass
    """)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*AssertionError: this failure*"])


#: What pytest itself calls after a test: to end the capture of output, to make the report of a
#: failure, and to serialise it.
PYTEST_CALLS = {
    "os": "PathLike dup2 fspath fstat getcwd putenv stat",
    "builtins": "bytearray bytes callable compile dict enumerate filter getattr hasattr hash id "
    "int isinstance issubclass len list map max min next object range reversed set setattr slice "
    "str super tuple type vars",
}

PATCHED = """
import MODULE
import pytest

EXCEPT = "NAMES".split()

def refuse(*_arguments, **_keywords):
    raise RuntimeError("called")

def is_function(value):
    return callable(value) and not (isinstance(value, type) and issubclass(value, BaseException))

NAMES = [
    name
    for name, value in sorted(vars(MODULE).items())
    if is_function(value) and not name.startswith("__") and name not in EXCEPT
]

@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fails", [False, True])
def test(name, fails, monkeypatch):
    monkeypatch.setattr(MODULE, name, refuse)
    if fails:
        raise ValueError("failed")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    ["os", "io", "json", "time", "socket", "select", "threading", "signal", "builtins"],
)
def test_functions_that_a_test_replaces(run, module):
    """Whatever function of the standard library a test has replaced when it ends, a passing test
    passes and a failing one fails with its own exception.
    """
    source = PATCHED.replace("MODULE", module).replace(
        '"NAMES"', repr(PYTEST_CALLS.get(module, ""))
    )
    result = run(source, "--tb=line", "-rN")
    outcomes = result.parseoutcomes()
    own = [one for one in result.outlines if re.search(r"\.py:\d+: ValueError: failed$", one)]
    assert {"passed": outcomes["passed"], "failed": outcomes["passed"]} == outcomes
    assert outcomes["failed"] == len(own)


#: What pytest itself calls in its own process, between the setup and the teardown of a module.
PARENT_CALLS = {
    "os": "dup2 fspath fstat get_terminal_size getcwd putenv stat unsetenv",
    "builtins": PYTEST_CALLS["builtins"] + " any bool float print repr sorted sum zip",
}

MODULE_SCOPED = """
import MODULE
import pytest

EXCEPT = "NAMES".split()

def refuse(*_arguments, **_keywords):
    raise RuntimeError("called")

def is_function(value):
    return callable(value) and not (isinstance(value, type) and issubclass(value, BaseException))

NAMES = [
    name
    for name, value in sorted(vars(MODULE).items())
    if is_function(value) and not name.startswith("__") and name not in EXCEPT
]

@pytest.fixture(scope="module", params=NAMES)
def replaced(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, request.param, refuse)
        yield

@pytest.mark.parametrize("fails", [False, True])
def test(replaced, fails):
    if fails:
        raise ValueError("failed")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "builtins",
        "io",
        "json",
        "os",
        "select",
        "signal",
        "socket",
        "subprocess",
        "threading",
        "time",
    ],
)
def test_functions_that_a_fixture_of_the_module_replaces(run, module):
    """Whatever function of the standard library is replaced while pytest's own process starts
    containers, a passing test passes and a failing one fails with its own exception.
    """
    source = MODULE_SCOPED.replace("MODULE", module).replace(
        '"NAMES"', repr(PARENT_CALLS.get(module, ""))
    )
    result = run(source, "--tb=line", "-rN")
    outcomes = result.parseoutcomes()
    own = [one for one in result.outlines if re.search(r"\.py:\d+: ValueError: failed$", one)]
    assert {"passed": outcomes["passed"], "failed": outcomes["passed"]} == outcomes
    assert outcomes["failed"] == len(own)


@pytest.mark.parametrize("options", [(), ("--sandbox-jobs=4",), ("--sandbox-scope=module",)])
def test_the_end_of_a_process_cannot_be_replaced(run, options):
    """A process that could not end would send one more message, or run the parent's next tests."""
    result = run(
        """
    import os
    import pytest

    def refuse(status): raise RuntimeError("called")

    @pytest.fixture(scope="module", autouse=True)
    def replaced():
        original, os._exit = os._exit, refuse
        yield
        os._exit = original

    @pytest.mark.parametrize("number", range(12))
    def test(number): os._exit = refuse
    """,
        *options,
    )
    result.assert_outcomes(passed=12)
