"""The setting ``artifacts``: files that tests leave on the host."""

from __future__ import annotations

import os
import sys

import pytest

pytestmark = pytest.mark.needs("root")


def files(root):
    return sorted(str(one.relative_to(root)) for one in root.rglob("*") if not one.is_dir())


def test_matching_files_are_copied_whatever_the_result(run, pytester):
    """Files that match a pattern are copied when a test passes, fails, crashes or times out; others
    are discarded.
    """
    run(
        """
    import os, pathlib, pytest, time
    @pytest.mark.parametrize("how", ["passes", "fails", "crashes", "hangs"])
    @pytest.mark.container(timeout=4)
    def test(how):
        directory = pathlib.Path("reports", how)
        directory.mkdir(parents=True)
        (directory / "shot.png").write_text(how)
        (directory / "notes.txt").write_text("")
        open(os.fsencode(directory) + b"/\\xff\\n.png", "x").close()
        if how == "fails": assert 0
        if how == "crashes": os.abort()
        if how == "hangs": time.sleep(100)
    """,
        "-o",
        "sandbox_artifacts=reports/**/*.png",
    ).assert_outcomes(passed=1, failed=3)
    names = ["crashes", "fails", "hangs", "passes"]
    copies = [f"{name}/{file}.png" for name in names for file in ("shot", "\udcff\n")]
    assert sorted(copies) == files(pytester.path / "reports")
    assert "fails" == (pytester.path / "reports/fails/shot.png").read_text()


@pytest.mark.needs("memory")
def test_files_of_a_test_that_was_killed_for_memory_are_copied(run, pytester):
    """The layer of a test that the kernel has killed for memory can still be read."""
    run(
        """
    import pathlib, pytest
    @pytest.mark.container(memory="64m", artifacts=["left"])
    def test():
        pathlib.Path("left").write_text("left")
        bytearray(200 << 20)
    """
    ).assert_outcomes(failed=1)
    assert "left" == (pytester.path / "left").read_text()


def test_tmp_path_is_copied(pytester, monkeypatch, failed_report):
    """``{tmp_path}`` stands for the directory of each test; a failed report lists the copies."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_DEBUG_TEMPROOT", str(pytester.path))  # --basetemp copies everything
    source = """
    def test_x(tmp_path):
        (tmp_path / "log").write_text(__name__)
        (tmp_path / "other").touch()
        assert __name__ != "test_b"
    """
    pytester.makepyfile(test_a=source, test_b=source)
    result = pytester.run(
        *(sys.executable, "-m", "pytest", "-p", "sandbox", "--sandbox"),
        *("-o", "sandbox_artifacts={tmp_path}/l*"),
    )
    result.assert_outcomes(passed=1, failed=1)
    (base,) = pytester.path.glob("pytest-of-*/pytest-0")
    assert ["test_x0/log", "test_x1/log"] == files(base)
    assert ["test_a", "test_b"] == [(base / name).read_text() for name in files(base)]
    assert f"{base}/test_x1/log" == failed_report()["sections"]["artifacts"]


def test_no_copy_of_tmp_path_overwrites_another(run, pytester):
    """A directory whose name another test has used gets the next number."""
    base = pytester.path / "base"
    run(
        """
    import pytest
    @pytest.fixture(scope="session")
    def earlier(tmp_path_factory):
        (tmp_path_factory.getbasetemp() / "test_it7").mkdir()
        (tmp_path_factory.getbasetemp() / "test_it7/log").write_text("earlier")
    def test_it(earlier, tmp_path):
        (tmp_path.parent / "test_it7/log").write_text("later")
        (tmp_path / "log").write_text("own")
    """,
        f"--basetemp={base}",
    ).assert_outcomes(passed=1)
    assert "earlier" == (base / "test_it7/log").read_text()
    assert ["earlier", "later", "own"] == sorted((base / one).read_text() for one in files(base))


def test_links_lead_nowhere(run, pytester):
    """No symbolic link is copied or followed: neither one inside, nor one of the host."""
    (pytester.path / "secret").mkdir()
    (pytester.path / "secret/file").write_text("secret")
    (pytester.path / "out").mkdir()
    (pytester.path / "out/elsewhere").symlink_to(pytester.path / "secret")
    (pytester.path / "out/file").symlink_to(pytester.path / "secret/file")
    result = run(
        """
    import os, pathlib
    def test():
        os.symlink("/etc/passwd", "out/link")
        os.symlink("../secret", "out/directory")
        os.mkfifo("out/fifo")
        for name in ("elsewhere", "file"):
            os.unlink(f"out/{name}")
        pathlib.Path("out/elsewhere").mkdir()
        pathlib.Path("out/elsewhere/file").write_text("overwritten")
        pathlib.Path("out/file").write_text("own")
    """,
        "-o",
        "sandbox_artifacts=out",
    )
    result.assert_outcomes(passed=1, warnings=1)
    assert "secret" == (pytester.path / "secret/file").read_text()
    assert "own" == (pytester.path / "out/file").read_text()
    assert not (pytester.path / "out/file").is_symlink()
    assert ["elsewhere", "file"] == sorted(os.listdir(pytester.path / "out"))
    result.stdout.fnmatch_lines(["*not all artifacts of the test were copied*symbolic link*"])


def test_the_root_of_a_pattern_is_not_left(run, pytester):
    """A test that replaces the directory of a pattern by a link gets nothing copied."""
    (pytester.path / "out").mkdir()
    (pytester.path / "secret").mkdir()
    run(
        """
    import os, pathlib
    def test():
        os.rmdir("out")
        os.symlink("secret", "out")
        pathlib.Path("out/file").write_text("x")
    """,
        "-o",
        "sandbox_artifacts=out/**",
    ).assert_outcomes(passed=1)
    assert [] == files(pytester.path / "out") + files(pytester.path / "secret")


def test_the_size_is_limited_with_a_clear_message(run, pytester):
    """Files beyond ``artifacts_limit`` are left out, and a warning names them and the setting."""
    result = run(
        """
    import os, pathlib
    def test():
        pathlib.Path("a").write_bytes(bytes(1000))
        with open("b", "wb") as file: os.truncate(file.fileno(), 1 << 40)
        pathlib.Path("c").write_bytes(bytes(1000))
    """,
        *("-o", "sandbox_artifacts=[abc]", "-o", "sandbox_artifacts_limit=1m", "-W", "error"),
    )
    result.assert_outcomes(passed=1, warnings=1)
    assert [True, False, True] == [(pytester.path / name).exists() for name in "abc"]
    result.stdout.fnmatch_lines(
        ["*not all artifacts*/b (1048576 MiB exceed the limit)*leave 1 MiB (artifacts_limit=)*"]
    )


def test_copies_belong_to_the_user_of_pytest(run, pytester):
    """A copy belongs to the user that runs pytest, can be read, and has no set-user-ID bit."""
    run(
        """
    import os
    def test():
        with open("own", "w") as file: pass
        os.chown("own", 1234, 1234)
        os.chmod("own", 0o4111)
    """,
        *("-o", "sandbox_artifacts=own"),
    ).assert_outcomes(passed=1)
    status = os.stat(pytester.path / "own")
    assert (os.getuid(), 0o100711) == (status.st_uid, status.st_mode)


def test_the_container_of_the_fixture_leaves_files_too(run, pytester):
    """The files that a test creates in the container it holds are copied before it is discarded."""
    run(
        f"""
    import pytest
    @pytest.mark.container(artifacts=["left"])
    def test(container): container.run(["touch", "{pytester.path}/left"], check=True)
    """
    ).assert_outcomes(passed=1)
    assert (pytester.path / "left").exists()


@pytest.mark.parametrize("pattern", ["../x", "a/{tmp_path}", "/", "."])
def test_a_wrong_pattern_is_a_usage_error(run, pattern):
    """A pattern that leaves its directory, or with a placeholder in the middle, is refused."""
    result = run("def test(): pass", "-o", f"sandbox_artifacts={pattern}")
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert "accepted: patterns of paths" in result.stderr.str()


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_the_end_of_the_session_tells_of_discarded_files(run, workers):
    """Files that passing tests wrote below the rootdir are counted once, at the end."""
    result = run(
        """
    import pathlib, pytest
    @pytest.mark.parametrize("number", range(4))
    def test(number, tmp_path):
        (tmp_path / "x").touch()
        pathlib.Path("reports").mkdir()
        for name in "ab": pathlib.Path(f"reports/{number}{name}").touch()
        assert number
    """,
        *workers,
        plugins=("xdist",),
    )
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "3 tests that passed wrote 6 files below the rootdir, *: reports/*, reports/*, *...",
            'sandbox_artifacts = ["reports"] copies such files to the host.',
        ]
    )


def test_copied_files_are_not_called_discarded(run, pytester):
    """Nothing is said if all files were copied, or are caches of Python and pytest."""
    pytester.makepyfile(module="")
    result = run(
        """
    import pathlib
    def test(request):
        import module
        request.config.cache.set("a/b", 1)
        pathlib.Path("left").touch()
    """,
        *("-o", "sandbox_artifacts=left"),
    )
    result.assert_outcomes(passed=1)
    assert "below the rootdir" not in result.stdout.str()
