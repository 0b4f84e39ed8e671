"""Operating systems without containers: the library and the plugin can be loaded, and say one
sentence when they are used.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

# Runs a program as on another system: what only POSIX or only Linux has cannot be imported.
FAKE = """
import io, sys, os, pytest, _pytest.pytester
sys.platform = {platform!r}
io._WindowsConsoleIO = ()  # of which pytest asks on Windows
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
    """Return a function that runs code on a faked system."""
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


def test_a_suite_runs_that_asks_for_nothing(elsewhere, tmp_path):
    """Without --sandbox and without marks a suite has the outcomes that it has without the
    plugin.
    """
    assert "2 passed, 3 deselected" in suite(elsewhere, tmp_path, "-k", "plain or outside")


def test_a_test_that_needs_a_container_fails_with_one_sentence(elsewhere, tmp_path):
    """What is inside, holds a container or makes one says what it takes; all others run."""
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


def test_a_suite_may_skip_what_it_cannot_have(elsewhere, tmp_path):
    """``sandbox_unsupported = skip`` skips tests that need a container, also under --sandbox."""
    assert "1 passed, 4 skipped" in suite(
        elsewhere, tmp_path, "--sandbox", "-o", "sandbox_unsupported=skip"
    )


@pytest.mark.parametrize(
    "use",
    [
        "p.Container(memory='1g')",
        "p.Image.pull('debian')",
        "p.Network()",
        "p.Container.check(p.Settings())",
    ],
)
def test_the_library_can_be_imported_and_refuses(elsewhere, use):
    """Every public name is there; the first use of what needs Linux is an UnsupportedError of one
    sentence.
    """
    done = elsewhere(
        "import pytest_sandbox as p\n[getattr(p, name) for name in "
        "p.__all__]\np.Settings(memory='1g')\n"
        f"try:\n    {use}\nexcept p.UnsupportedError as error:\n    print(error)"
    )
    assert "" == done.stderr
    assert SENTENCE in done.stdout


def test_the_command_line_says_one_sentence(elsewhere):
    """A verb ends with 125 and one line, its help is shown as anywhere."""
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
