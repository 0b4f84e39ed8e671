"""Tests of the names by which dlopen(3) finds loaded libraries."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

PROGRAM = """
import ctypes, os, shutil, sys
from pytest_sandbox.linux import loaded_libraries, native_code

directory = sys.argv[1]
real, other = f"{directory}/real/one.so", f"{directory}/other"
loads = native_code.count_of_loads()
ctypes.CDLL(f"{directory}/link/one.so")
assert loads + 1 == native_code.count_of_loads()
assert f"{directory}/link/one.so" in native_code.names_of_libraries()
if sys.argv[2:] == ["named"]:
    loaded_libraries.add_real_paths()
# As in a container: the file of this path has another inode.
os.replace(other, real)
assert not native_code.find_library(other)
print(native_code.find_library(real))
ctypes.CDLL(real)
print(native_code.count_of_loads() - loads)
"""


@pytest.fixture
def library(tmp_path):
    """Return a directory with a library ``real/one.so``, a copy of it, and a link to ``real``."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("real/one.so", "other"):
        shutil.copy(find_spec("_ctypes").origin, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(("arguments", "found"), [(["named"], "True\n1\n"), ([], "False\n2\n")])
def test_a_library_is_found_by_its_real_path(library, arguments, found):
    """A library that was loaded through a link is found by its real path, and loaded only once,
    although its file is another one now.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, library, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (found, "") == (done.stdout, done.stderr)
