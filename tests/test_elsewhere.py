"""Other operating systems: the library and the plugin can be imported, and raise a clear error on
use.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

# Run code as on another system: modules of POSIX and Linux cannot be imported.
FAKE = """
import io, sys, os, pytest, _pytest.pytester
sys.platform = {platform!r}
io._WindowsConsoleIO = ()  # used by pytest on Windows
del os.memfd_create
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "termios", "tty", "pty", "pwd", "grp", "resource", "ctypes"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
for name in ("fcntl", "termios", "tty", "pty", "pwd", "grp", "resource", "ctypes"):
    sys.modules.pop(name, None)
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
{code}
"""
SUITE = """
import pytest
from pytest_sandbox import Container, Image, Network, SandboxError, Settings

def test_plain(): pass

@pytest.mark.container(memory="64m", user="0", cpuset="0", volumes=["/no:/no"])
def test_inside(): pass

def test_holds(container): pass

def test_makes(container_factory): container_factory()

@pytest.mark.no_sandbox
def test_outside(): pass
"""
SENTENCE = "is not supported here. It takes Linux 5.12 or newer"


@pytest.fixture(params=["darwin", "win32", "linux"])
def elsewhere(request, tmp_path, monkeypatch):
    """Return a function that runs code with a faked ``sys.platform``."""
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)

    def run(code: str) -> subprocess.CompletedProcess[str]:
        program = FAKE.format(platform=request.param, code=code)
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def suite(elsewhere, directory: Path, *args: str) -> str:
    (directory / "test_it.py").write_text(SUITE)
    return elsewhere(
        f"sys.exit(pytest.main(['-p', 'pytest_sandbox.plugin', '-rs', *{args!r}]))"
    ).stdout


def test_tests_without_containers_run(elsewhere, tmp_path):
    """Without --sandbox and marks, tests have the same outcomes as without the plugin."""
    assert "2 passed, 3 deselected" in suite(elsewhere, tmp_path, "-k", "plain or outside")


def test_a_test_that_needs_a_container_fails_with_a_clear_error(elsewhere, tmp_path):
    """A test inside, or with a container, fails with one sentence; all others run."""
    printed = suite(elsewhere, tmp_path)
    assert "1 failed, 2 passed, 2 errors" in printed
    assert 3 == len(
        [
            line
            for line in printed.splitlines()
            if SENTENCE in line and line.startswith("a container")
        ]
    )
    assert "Traceback" not in printed


def test_tests_that_need_a_container_can_be_skipped(elsewhere, tmp_path):
    """``sandbox_unsupported = skip`` skips tests that need a container, also with --sandbox."""
    assert "1 passed, 4 skipped" in suite(
        elsewhere, tmp_path, "--sandbox", "-o", "sandbox_unsupported=skip"
    )


@pytest.mark.parametrize(
    "use",
    [
        "p.Container(memory='1g')",
        "p.Image.pull('debian')",
        "p.Network()",
        "p.Container(p.Settings())",
    ],
)
def test_the_library_raises_on_use(elsewhere, use):
    """Every public name can be imported; using one that needs Linux is an UnsupportedError."""
    done = elsewhere(
        "import pytest_sandbox as p\n[getattr(p, name) for name in "
        "p.__all__]\np.Settings(memory='1g')\n"
        f"try:\n    {use}\nexcept p.UnsupportedError as error:\n    print(error)"
    )
    assert "" == done.stderr
    assert SENTENCE in done.stdout


def test_the_command_line_prints_a_clear_error(elsewhere):
    """A verb fails with the status 125 and one line; its help works."""
    done = elsewhere(
        "from pytest_sandbox.cli.main import main\nsys.exit(main(['run', 'host', 'true']))"
    )
    assert (125, 1) == (done.returncode, done.stderr.count("\n"))
    assert SENTENCE in done.stderr
    assert (
        "COMMAND"
        in elsewhere(
            "from pytest_sandbox.cli.main import main\nsys.exit(main(['run', '--help']))"
        ).stdout
    )
