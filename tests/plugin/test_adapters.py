"""Plugins that keep state or files of tests, installed from PyPI: their results are those of a run
without containers.
"""

from __future__ import annotations

import importlib
import json
import re
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.needs("root")


def plugin(name):
    """Skip a test unless the module of a plugin is installed."""
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")


def tree(directory):
    """Return the files of a directory by their path."""
    return {
        str(one.relative_to(directory)): one.read_bytes()
        for one in sorted(directory.rglob("*"))
        if one.is_file()
    }


# -- syrupy

SYRUPY = """
import os
def test_a(snapshot):
    assert {"a": 1} == snapshot
def test_b(snapshot):
    assert "text" == snapshot
    if os.environ.get("CRASH"): os.abort()
    assert "more" == snapshot(name="named")
def test_own_file(snapshot):
    from syrupy.extensions.json import JSONSnapshotExtension
    assert {"a": 2} == snapshot.use_extension(JSONSnapshotExtension)
"""


@plugin("syrupy")
@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_syrupy_writes_and_keeps_snapshots(run, pytester, workers):
    """``--snapshot-update`` writes the files of a run outside, and deletes no snapshot in use."""

    def update(**options):
        return run(SYRUPY, "--snapshot-update", *workers, plugins=("syrupy", "xdist"), **options)

    update(sandbox=False).assert_outcomes(passed=3)
    outside = tree(pytester.path / "__snapshots__")
    assert 2 == len(outside)
    for path in outside:
        (pytester.path / "__snapshots__" / path).unlink()
    update().assert_outcomes(passed=3)
    assert outside == tree(pytester.path / "__snapshots__")
    update().stdout.fnmatch_lines(["4 snapshots passed."])
    assert outside == tree(pytester.path / "__snapshots__")


@plugin("syrupy")
def test_syrupy_compares_inside(run, pytester):
    """Without the option, used snapshots are counted, a difference fails, and one that no test uses
    is reported.
    """
    run(SYRUPY, "--snapshot-update", plugins=("syrupy",)).assert_outcomes(passed=3)
    result = run(SYRUPY, plugins=("syrupy",))
    assert 0 == result.ret
    result.stdout.fnmatch_lines(["4 snapshots passed."])
    result = run(SYRUPY.replace('"more"', '"less"'), plugins=("syrupy",))
    result.assert_outcomes(passed=2, failed=1)
    result = run(SYRUPY.partition("def test_own_file")[0], plugins=("syrupy",))
    result.stdout.fnmatch_lines(["3 snapshots passed. 1 snapshot unused."])
    assert 1 == result.ret


@plugin("syrupy")
def test_syrupy_keeps_the_snapshots_of_a_test_that_crashes(run, pytester, monkeypatch):
    """Snapshots of a test that ended before it had used them all are not deleted."""
    run(SYRUPY, "--snapshot-update", plugins=("syrupy",)).assert_outcomes(passed=3)
    before = tree(pytester.path / "__snapshots__")
    monkeypatch.setenv("CRASH", "1")
    result = run(SYRUPY, "--snapshot-update", plugins=("syrupy",))
    result.assert_outcomes(passed=2, failed=1)
    assert before == tree(pytester.path / "__snapshots__")


# -- allure

ALLURE = """
import allure, pytest

@pytest.fixture(scope="module")
def wide():
    with allure.step("prepare all"): pass

@pytest.fixture
def thing(wide):
    with allure.step("prepare"): pass
    yield
    with allure.step("clean up"): pass

@pytest.mark.parametrize("n", [1, 2])
def test_steps(n, thing):
    allure.dynamic.title(f"Title {n}")
    with allure.step("look"):
        allure.attach(f"seen {n}", name="notes", attachment_type=allure.attachment_type.TEXT)

def test_bad():
    print("output")
    allure.dynamic.link("http://example.org")
    assert 1 == 2
"""


def allure_results(directory):
    """Return the results in a directory without what differs in each run: IDs, times, traces."""
    names, found = {}, []
    for path in directory.glob("*-result.json"):
        result = json.loads(path.read_text())
        names[result["uuid"]] = result["name"]
        found.append(_stable(result, directory))
    for path in directory.glob("*-container.json"):
        group = json.loads(path.read_text())
        children = sorted(names[one] for one in group.pop("children", []))
        found.append({"children": children, **_stable(group, directory)})
    return sorted(found, key=json.dumps)


def _stable(value, directory):
    if isinstance(value, list):
        return [_stable(one, directory) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("name") == "thread":
        return {}
    made = {key: _stable(one, directory) for key, one in value.items() if key not in _CHANGING}
    if "source" in value:
        made["source"] = (directory / value["source"]).read_text()
    return made


_CHANGING = {"uuid", "start", "stop", "trace", "source"}


@plugin("allure_pytest")
@pytest.mark.parametrize("jobs", [1, 3])
def test_allure_has_the_results_of_a_run_outside(run, pytester, jobs):
    """Steps, attachments, parameters, titles and fixtures are in allure's results, and each
    attachment is a file.
    """
    for name, sandbox in (("outside", False), ("inside", True)):
        run(
            ALLURE,
            *(f"--alluredir={name}", f"--sandbox-jobs={jobs}"),
            sandbox=sandbox,
            plugins=("allure_pytest",),
        ).assert_outcomes(passed=2, failed=1)
    outside, inside = (allure_results(pytester.path / name) for name in ("outside", "inside"))
    assert "seen 1" in str(outside)
    assert outside == inside


@plugin("allure_pytest")
def test_allure_reports_a_crash(run, pytester):
    """A test that crashes has a result with its status, and its attachments exist."""
    run(
        "import allure, os\ndef test():\n    allure.attach('a', name='b')\n    os.abort()",
        "--alluredir=results",
        plugins=("allure_pytest",),
    ).assert_outcomes(failed=1)
    (path,) = (pytester.path / "results").glob("*-result.json")
    result = json.loads(path.read_text())
    assert "failed" == result["status"]
    assert "killed by SIGABRT" in result["statusDetails"]["message"]
    assert 1 == len(list((pytester.path / "results").glob("*-attachment*")))


# -- pytest-bdd


@plugin("pytest_bdd")
def test_bdd_writes_the_cucumber_report(run, pytester):
    """The cucumber report has the steps and results of a run outside."""
    pytester.makefile(
        ".feature",
        x="Feature: F\n  Scenario: S\n    Given a thing\n    Then it works\n"
        "  Scenario: T\n    Given a thing\n    Then it fails\n",
    )
    source = """
    from pytest_bdd import given, scenarios, then
    scenarios("x.feature")
    @given("a thing")
    def _(): pass
    @then("it works")
    def _(): pass
    @then("it fails")
    def _(): assert 0
    """
    found = []
    for name, sandbox in (("outside", False), ("inside", True)):
        run(
            source, f"--cucumberjson={name}.json", sandbox=sandbox, plugins=("pytest_bdd.plugin",)
        ).assert_outcomes(passed=1, failed=1)
        text = (pytester.path / f"{name}.json").read_text()
        found.append(json.loads(re.sub(r'("duration": )\d+|0x\w+', r"\g<1>0", text)))
    assert 2 == len(found[0][0]["elements"])
    assert found[0] == found[1]


# -- plugins that write files


@plugin("pytest_memray")
def test_memray_reports_allocations(run, pytester):
    """pytest-memray's report shows tests inside, and its limit fails one."""
    result = run(
        """
    import pytest
    def test_some(): [bytearray(5 << 20)]
    @pytest.mark.limit_memory("1 MB")
    def test_limited(): [bytearray(3 << 20)]
    """,
        "--memray",
        plugins=("pytest_memray.plugin",),
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*limited to 1.0MiB but allocated 3.0MiB*", "*::test_some at the high watermark*"]
    )


def test_pytest_snapshot_writes_snapshots(run, pytester, install_apart, monkeypatch):
    """``--snapshot-update`` writes the files, and the next run compares with them."""
    monkeypatch.setenv("PYTHONPATH", install_apart("pytest-snapshot"))
    source = "def test(snapshot): snapshot.assert_match('text', 'name.txt')"
    run(source, "--snapshot-update", plugins=("pytest_snapshot.plugin",))
    (path,) = (pytester.path / "snapshots").rglob("name.txt")
    assert "text" == path.read_text()
    run(source, plugins=("pytest_snapshot.plugin",)).assert_outcomes(passed=1)
    run(source.replace("'text'", "'other'"), plugins=("pytest_snapshot.plugin",)).assert_outcomes(
        failed=1
    )


@plugin("pytest_regressions")
def test_regressions_writes_expected_files(run, pytester):
    """The first run writes the file and fails, the next one passes, and ``--force-regen`` changes
    it.
    """
    plugins = ("pytest_datadir.plugin", "pytest_regressions.plugin")
    source = "def test(data_regression): data_regression.check({'a': %d})"
    run(source % 1, plugins=plugins).assert_outcomes(failed=1)
    run(source % 1, plugins=plugins).assert_outcomes(passed=1)
    run(source % 2, "--force-regen", plugins=plugins).assert_outcomes(failed=1)
    (path,) = pytester.path.glob("test_*/test.yml")
    assert "a: 2\n" == path.read_text()


@plugin("pytest_recording")
def test_recording_writes_cassettes(run, pytester):
    """A cassette that a test has recorded is used by the next run, without a server."""
    source = """
    import http.server, pytest, threading, urllib.request

    @pytest.mark.vcr
    def test():
        server = http.server.HTTPServer(("127.0.0.1", 8765), http.server.BaseHTTPRequestHandler)
        if RECORD:
            threading.Thread(target=server.handle_request, daemon=True).start()
        try:
            urllib.request.urlopen("http://127.0.0.1:8765/path")
        except OSError as error:
            assert 501 == error.code
        server.server_close()
    """
    plugins = ("pytest_recording.plugin",)
    run(source.replace("RECORD", "True"), "--record-mode=once", plugins=plugins).assert_outcomes(
        passed=1
    )
    (path,) = (pytester.path / "cassettes").rglob("test.yaml")
    assert "127.0.0.1:8765/path" in path.read_text()
    run(source.replace("RECORD", "False"), plugins=plugins).assert_outcomes(passed=1)


@plugin("pytest_playwright")
def test_playwright_s_output_is_copied(run, pytester):
    """Files in the directory of ``--output`` are there after the session."""
    run(
        """
    import pathlib
    def test(output_path):
        pathlib.Path(output_path).mkdir(parents=True)
        pathlib.Path(output_path, "trace.zip").write_text("trace")
    """,
        "--output=results",
        plugins=("pytest_playwright.pytest_playwright",),
    ).assert_outcomes(passed=1)
    (path,) = (pytester.path / "results").rglob("trace.zip")
    assert "trace" == path.read_text()


def test_hypothesis_stores_failing_examples(run, pytester):
    """An example that failed inside is in hypothesis' database."""
    run(
        """
    from hypothesis import given, settings, strategies as st
    from hypothesis.database import DirectoryBasedExampleDatabase
    # Both settings have another default where the environment has CI.
    database = DirectoryBasedExampleDatabase(".hypothesis/examples")
    @given(st.integers())
    @settings(print_blob=False, derandomize=False, database=database)
    def test(n): assert n < 100
    """,
        plugins=("hypothesispytest",),
    ).assert_outcomes(failed=1)
    assert {} != tree(pytester.path / ".hypothesis/examples")


def _reads_sources():
    """Tell whether this version of hypothesis looks for constants in the suite's sources."""
    try:
        providers = importlib.import_module("hypothesis.internal.conjecture.providers")
    except ModuleNotFoundError:
        return False
    return hasattr(providers, "_get_local_constants")


@pytest.mark.skipif(not _reads_sources(), reason="this version of hypothesis reads no sources")
def test_hypothesis_reads_the_sources_once(run, pytester):
    """The parent reads modules that were imported after the collection, before the fork for a test
    of hypothesis.
    """
    pytester.makepyfile(mine="value = 123456789")
    run(
        """
    import pytest
    from hypothesis import given, strategies as st
    from hypothesis.internal.conjecture import providers
    @pytest.fixture(scope="module")
    def imported(): import mine
    def test_plain(imported): assert 123456789 not in providers._local_constants.integers
    @given(n=st.just(1))
    def test_first(imported, n): assert 123456789 in providers._local_constants.integers
    """,
        plugins=("hypothesispytest",),
    ).assert_outcomes(passed=2)


def test_basetemp_has_the_directories_of_tests(run, pytester):
    """With ``--basetemp``, what tests write to ``tmp_path`` is there after the session."""
    run(
        "def test_it(tmp_path): (tmp_path / 'file').write_text('text')",
        f"--basetemp={pytester.path}/base",
    ).assert_outcomes(passed=1)
    assert {"test_it0/file": b"text"} == tree(pytester.path / "base")


def test_directories_of_the_cache_are_kept(run, pytester):
    """Files in a directory of ``config.cache.mkdir()`` outlive the session."""
    run(
        "def test(request): (request.config.cache.mkdir('own') / 'file').write_text('text')"
    ).assert_outcomes(passed=1)
    assert "text" == (pytester.path / ".pytest_cache/d/own/file").read_text()


def test_html_has_the_extras_of_the_fixture(run, pytester):
    """What a test adds to pytest-html's fixture ``extras`` is in the page."""
    run(
        "import pytest_html\n"
        "def test(extras): extras.append(pytest_html.extras.url('http://example.org/x'))",
        "--html=out.html",
        plugins=("html", "metadata", "html_fixtures"),
    ).assert_outcomes(passed=1)
    assert "http://example.org/x" in (pytester.path / "out.html").read_text()


# -- plugins that are refused


@pytest.mark.parametrize(
    ("module", "loaded", "option", "name", "fix"),
    [
        (
            "pytest_codspeed",
            "pytest_codspeed.plugin",
            "--codspeed",
            "pytest-codspeed",
            "--codspeed",
        ),
        ("pytest_profiling", "pytest_profiling", "--profile", "pytest-profiling", "--profile"),
    ],
)
def test_a_plugin_that_would_measure_nothing_is_refused(run, module, loaded, option, name, fix):
    """A profiler of pytest's own process is a usage error that names it and the fix, if there are
    tests that run inside.
    """
    pytest.importorskip(module)
    result = run("def test(): pass", option, plugins=(loaded,))
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines([f"*{name} measures pytest's own process*{fix}*"])
    result = run("def test(): pass", option, sandbox=False, plugins=(loaded,))
    assert pytest.ExitCode.USAGE_ERROR != result.ret


def test_pytest_monitor_is_refused_unless_it_does_nothing(run, install_apart, monkeypatch):
    """pytest-monitor, which measures whenever it is installed, is refused without its option to do
    nothing.
    """
    packages = ("pytest-monitor", "memory-profiler", "psutil", "wheel", "requests")
    needed = ("certifi", "charset-normalizer", "idna", "urllib3")
    monkeypatch.setenv("PYTHONPATH", install_apart(*packages, *needed))
    loaded = ("pytest_monitor.pytest_monitor",)
    result = run("def test(): pass", plugins=loaded)
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(["*pytest-monitor measures pytest's own process*--no-monitor*"])
    run("def test(): pass", "--no-monitor", plugins=loaded).assert_outcomes(passed=1)


@plugin("inline_snapshot")
def test_inline_snapshot_compares_and_changes_nothing(run, pytester):
    """Snapshots in the source are compared inside; options that change them are refused."""
    source = """
    from inline_snapshot import snapshot
    UNUSED = snapshot([1, 2])
    def test_equal(): assert 5 == snapshot(5)
    def test_differs(): assert 5 == snapshot(6)
    """
    loaded = ("inline_snapshot.pytest_plugin",)
    outside, inside = (run(source, sandbox=sandbox, plugins=loaded) for sandbox in (False, True))
    assert 1 == inside.parseoutcomes()["passed"]
    assert outside.parseoutcomes() == inside.parseoutcomes()
    (path,) = pytester.path.glob("test_*.py")
    before = path.read_text()
    result = run(source, "--inline-snapshot=fix,trim", plugins=loaded)
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(["*--inline-snapshot=fix,trim changes sources*"])
    assert before == path.read_text()


@plugin("pytest_bdd")
def test_a_forged_scenario_fails_only_its_test(run, pytester):
    """A scenario that pytest-bdd could not read at the end of the session is an error of the test
    that has sent it.
    """
    result = run(
        """
    def test_forges(request):
        forwarder = request.config.pluginmanager.get_plugin("sandbox-inside-forwarder")
        data = {"steps": 1}
        forwarder.channel.send("carry", ["sandbox-pytest_sandbox.plugin.adapters.bdd", data])
    def test_next(): pass
    """,
        "--cucumberjson=out.json",
        plugins=("pytest_bdd.plugin",),
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*steps of a scenario of pytest-bdd is not of the type list*"])


@plugin("allure_pytest")
def test_an_attachment_of_allure_has_no_path(run, pytester):
    """An attachment whose file is elsewhere is an error of the test that has sent it."""
    run(
        """
    def test_forges(request):
        forwarder = request.config.pluginmanager.get_plugin("sandbox-inside-forwarder")
        data = {"attachments": [{"source": "../secret"}]}
        forwarder.channel.send("carry", ["sandbox-pytest_sandbox.plugin.adapters.allure", data])
    """,
        "--alluredir=results",
        plugins=("allure_pytest",),
    ).assert_outcomes(errors=1)
