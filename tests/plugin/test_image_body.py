"""Tests with an image as their root: they see its files and programs, and Python, the suite and the
temporary directory of the host.
"""

from __future__ import annotations

import os
import shutil

import pytest

pytestmark = pytest.mark.needs("root", "busybox")


@pytest.fixture
def root(tmp_path_factory):
    """Return the directory of a small root file system: busybox under several names, and some files
    in /etc.
    """
    path = tmp_path_factory.mktemp("image") / "root"
    (path / "bin").mkdir(parents=True)
    (path / "etc").mkdir()
    (path / "etc/os-release").write_text("ID=tiny\n")
    (path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    shutil.copy(shutil.which("busybox", path=os.defpath + ":/usr/bin:/bin"), path / "bin/busybox")
    for name in ("sh", "cat", "ls", "uname"):
        (path / "bin" / name).symlink_to("busybox")
    return path


SUITE = """
    import os, pathlib, subprocess, sys, pytest

    @pytest.fixture(scope="session")
    def shared(tmp_path_factory):
        path = tmp_path_factory.mktemp("shared") / "file"
        path.write_text("from outside")
        return path

    def test_the_programs_of_the_image_are_used():
        assert "ID=tiny\\n" == pathlib.Path("/etc/os-release").read_text()
        assert b"ID=tiny\\n" == subprocess.check_output(["cat", "/etc/os-release"])
        assert not pathlib.Path("/usr/bin/env").exists()

    def test_modules_can_be_imported_inside():
        import csv, decimal, ssl, sqlite3, xml.etree.ElementTree
        import helper
        assert "helped" == helper.help()
        assert 1 == sqlite3.connect(":memory:").execute("select 1").fetchone()[0]

    def test_files_of_the_suite_are_there(tmp_path, shared, request):
        (tmp_path / "x").write_text("1")
        assert "from outside" == shared.read_text()
        assert pathlib.Path.cwd() == request.config.rootpath
        pathlib.Path("helper.py").write_text("gone")
        shared.write_text("gone")

    def test_changes_are_discarded(shared):
        assert "from outside" == shared.read_text()
        assert "gone" != pathlib.Path("helper.py").read_text()

    def test_fails(): assert 0
    def test_crashes(): os.abort()
    def test_the_fixture_has_the_image(container):
        assert "tiny" in container.read_text("/etc/os-release")
"""


def test_a_test_runs_in_the_directory_of_an_image(run, pytester, root):
    """With ``image=DIRECTORY`` fixtures, imports, temporary files, failures and the fixture
    ``container`` work; the directory is unchanged.
    """
    pytester.makepyfile(helper="def help(): return 'helped'")
    before = sorted(str(path) for path in root.rglob("*"))
    result = run(SUITE, f"--sandbox-image={root}")
    result.assert_outcomes(passed=5, failed=2)
    result.stdout.fnmatch_lines(["*killed by SIGABRT*"])
    assert before == sorted(str(path) for path in root.rglob("*"))


def test_a_mark_chooses_the_image_of_one_test(run, root):
    """A mark sets the image of one test; the test beside it is on the host's root."""
    run(f"""
    import pathlib, pytest
    @pytest.mark.container(image={str(root)!r})
    def test_image(): assert "tiny" in pathlib.Path("/etc/os-release").read_text()
    def test_host(): assert "tiny" not in pathlib.Path("/etc/os-release").read_text()
    """).assert_outcomes(passed=2)
