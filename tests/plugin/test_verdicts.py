"""How a test that ends before its report is reported: one clear failure of its own, with figures;
the next test passes.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

pytestmark = pytest.mark.needs("containers", "limits")

NEXT = "\n    def test_next(): pass\n"


def section(report, title):
    return "\n".join(text for name, text in report["sections"] if name == title)


def failed(found):
    (report,) = [one for one in found if one["outcome"] == "failed"]
    return report


def test_a_segfault_names_the_signal_and_shows_the_stack_and_the_output(run, reports):
    """A crash is a failed call phase with the signal's name, faulthandler's stack, the output until
    then, and its real duration.
    """
    run(f"""
    import ctypes, time
    def test_crash():
        print("said before")
        time.sleep(0.3)
        ctypes.string_at(0)
    {NEXT}""").assert_outcomes(passed=1, failed=1)
    report = failed(reports())
    assert ("test_crash", "call") == (report["test"], report["when"])
    assert report["text"].startswith("killed by SIGSEGV\n")
    assert "in test_crash" in report["text"]
    assert "_pytest" not in report["text"]
    assert "said before\n" == section(report, "Captured stdout call")
    assert 0.3 <= report["duration"] < 30


def test_a_crash_in_a_fixture_is_an_error_of_the_setup(run, reports):
    """The phase that is blamed is the one that ran."""
    run(f"""
    import os, pytest
    @pytest.fixture
    def crashing(): os.abort()
    def test_crash(crashing): pass
    {NEXT}""").assert_outcomes(passed=1, errors=1)
    report = failed(reports())
    assert "setup" == report["when"]
    assert report["text"].startswith("killed by SIGABRT\n")


def test_a_crash_in_teardown_leaves_the_body_passed(run, reports):
    """A body that passed stays passed; the teardown is an error."""
    run(f"""
    import os, signal, pytest
    @pytest.fixture
    def crashing():
        yield
        os.kill(os.getpid(), signal.SIGBUS)
    def test_crash(crashing): pass
    {NEXT}""").assert_outcomes(passed=2, errors=1)
    assert failed(reports())["text"].startswith("killed by SIGBUS\n")


def test_a_kill_for_memory_gives_limit_peak_and_files(run, reports):
    """Over its memory a test fails with the limit, the peak, and how much of it were files that it
    wrote.
    """
    run(f"""
    import pytest
    @pytest.mark.container(memory="64m")
    def test_hog():
        with open("/tmp/big", "wb") as file:
            file.write(bytes(24 << 20))
        hoard = [bytearray(1 << 20) for _ in range(200)]
    {NEXT}""").assert_outcomes(passed=1, failed=1)
    report = failed(reports())
    first = report["text"].splitlines()[0]
    assert first.startswith("killed for memory: limit 64 MiB, peak 6")
    files = float(first.split("of which ")[1].split(" MiB files")[0])
    assert 23 <= files <= 26
    assert "the test's own process" in first
    assert report["properties"]["container.oom_killed"] is True
    assert 60 << 20 <= report["properties"]["container.memory_peak"] <= 64 << 20


def test_a_subprocess_that_is_killed_for_memory_is_told_beside_the_failure(run, reports):
    """Where the test survives and fails by itself, the section "container" says that the kernel
    killed.
    """
    run("""
    import pytest, subprocess, sys
    @pytest.mark.container(memory="64m")
    def test_parent():
        subprocess.run([sys.executable, "-c", "x = bytearray(200 << 20)"], check=True)
    """).assert_outcomes(failed=1)
    report = failed(reports())
    assert "SIGKILL" in report["text"]
    assert "killed for memory 1" in section(report, "container")
    assert report["properties"]["container.oom_killed"] is True


def test_a_timeout_shows_the_stack_and_what_ran(run, reports):
    """Over its time a test fails with the limit, its own stack, and the processes of its container,
    which are all gone then.
    """
    run(f"""
    import pytest, subprocess, time
    def wait_for_ever():
        time.sleep(1000)
    @pytest.mark.container(timeout=1)
    def test_slow():
        print("so far")
        subprocess.Popen(["sleep", "987654"])
        wait_for_ever()
    def test_all_gone():
        import pathlib
        assert not [p for p in pathlib.Path("/proc").glob("[0-9]*/cmdline") if b"987654" in p.read_bytes()]
    {NEXT}""").assert_outcomes(passed=2, failed=1)
    report = failed(reports())
    assert report["text"].startswith("timeout: still running after 1 s, so it was killed\n")
    assert "in wait_for_ever" in report["text"]
    assert "sleep 987654" in report["text"]
    assert "so far\n" == section(report, "Captured stdout call")
    assert 1 <= report["duration"] < 30


def test_a_timeout_of_a_test_that_ignores_all_signals(run, reports):
    """A test that cannot even say where it is ends all the same."""
    run(f"""
    import pytest, signal
    @pytest.mark.container(timeout=1)
    def test_deaf():
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True: pass
    {NEXT}""").assert_outcomes(passed=1, failed=1)
    assert failed(reports())["text"].startswith("timeout: still running after 1 s")


def test_a_timeout_of_weeks(run):
    """A limit that is longer than poll(2) can wait is no error."""
    run("""
    import pytest
    @pytest.mark.container(timeout=3_000_000)
    def test_quick(): pass
    """).assert_outcomes(passed=1)


def test_a_fork_that_is_refused_leaves_no_descriptors(run, pytester):
    """However many tests cannot be put into their containers, the session has as many open files as
    before.
    """
    # The user is known at collection, and gone when the test is forked.
    pytester.makeconftest("""
    def pytest_sandbox_started(item, container):
        container.write_text("/etc/passwd", "")
    """)
    run("""
    import os, pytest
    counts = []
    @pytest.fixture(scope="class", params=range(30))
    def count(request):
        counts.append(len(os.listdir("/proc/self/fd")))
    @pytest.mark.container(user="nobody")
    class TestRefused:
        def test_it(self, count): pass
    @pytest.mark.no_sandbox
    def test_count():
        assert (30, counts[5]) == (len(counts), counts[-1])
    """).assert_outcomes(passed=1, errors=30)


def test_what_is_wrong_with_the_next_test_is_not_this_ones(run, pytester):
    """Its container is made while this test runs, and its error waits for its turn."""
    pytester.mkdir("volume")
    run("""
    import os, pytest
    @pytest.fixture(scope="session")
    def removed(): os.rmdir("volume")
    @pytest.mark.container
    def test_good(removed): pass
    @pytest.mark.container(volumes=["./volume:/volume"])
    def test_bad(): pass
    """).assert_outcomes(passed=1, errors=1)


def test_an_early_exit_is_never_a_pass(run, reports):
    """``os._exit(0)`` in a body is a failure that says so."""
    run(f"""
    import os
    def test_exit(): os._exit(0)
    {NEXT}""").assert_outcomes(passed=1, failed=1)
    assert failed(reports())["text"].startswith(
        "the test's process ended with status 0 before the test was over"
    )


def test_a_crash_is_never_an_expected_failure(run, reports):
    """A mark that expects a failure, strict or not, does not expect SIGKILL."""
    run("""
    import os, pytest
    @pytest.mark.xfail(strict=True)
    def test_strict(): os.kill(os.getpid(), 9)
    @pytest.mark.xfail
    def test_lax(): os.kill(os.getpid(), 9)
    """).assert_outcomes(failed=2)
    assert ["killed by SIGKILL"] * 2 == [
        one["text"].splitlines()[0][:17] for one in reports() if one["outcome"] == "failed"
    ]


def test_a_full_disk_is_named(run, reports):
    """ENOSPC in the writable layer is a failure whose hint names the limit."""
    run(f"""
    import pytest
    @pytest.mark.container(disk="4m")
    def test_fill():
        with open("/tmp/fill", "wb") as file:
            file.write(bytes(8 << 20))
    {NEXT}""").assert_outcomes(passed=1, failed=1)
    assert "writable layer may hold 4 MiB (disk=)" in section(failed(reports()), "hint")


def test_a_lack_of_processes_is_named(run, reports):
    """EAGAIN from fork is a failure whose hint names the limit."""
    run(f"""
    import pytest, subprocess
    @pytest.mark.container(pids_limit=10)
    def test_many():
        started = [subprocess.Popen(["sleep", "100"]) for _ in range(20)]
    {NEXT}""").assert_outcomes(passed=1, failed=1)
    assert "may have 10 processes and threads (pids_limit=)" in section(failed(reports()), "hint")


def test_a_failure_shows_container_and_changes(run, reports):
    """Limits, usage and what the test wrote are sections of a failed report; at most 20 changes,
    then a count; none for a passed one.
    """
    run("""
    import pathlib, pytest
    @pytest.mark.container(memory="256m", cpus=1.5)
    def test_writes():
        for number in range(30):
            pathlib.Path(f"/opt/file{number:02}").touch()
        pathlib.Path("/etc/hostname").unlink()
        assert False
    def test_passes(): pass
    """).assert_outcomes(passed=1, failed=1)
    found = reports()
    report = failed(found)
    assert "memory=256 MiB, cpus=1.5" in section(report, "container")
    assert "memory peak " in section(report, "container")
    lines = section(report, "changes").splitlines()
    assert "D /etc/hostname" in lines
    assert "A /opt/file00" in lines
    assert 21 == len(lines)
    assert lines[-1].startswith("... and ")
    assert all(not one["sections"] for one in found if one["test"] == "test_passes")


def test_a_held_container_shows_the_same(run, reports):
    """A failed test that holds its container has the sections and figures of that."""
    run("""
    def test_holds(container):
        container.run(["touch", "/opt/made"], check=True)
        assert False
    """).assert_outcomes(failed=1)
    report = failed(reports())
    assert "A /opt/made" in section(report, "changes").splitlines()
    assert "memory peak " in section(report, "container")
    assert (
        report["properties"]["container.pids_peak"] is None
        or report["properties"]["container.pids_peak"] >= 0
    )


def test_figures_reach_junit(run, pytester):
    """``--junitxml`` has the figures of each test, inside or holding, as properties; a crash is a
    failure there, not an error.
    """
    run(
        """
    import os
    def test_passes(record_property): record_property("mine", 7)
    def test_crashes(): os.abort()
    def test_holds(container): container.run(["true"])
    """,
        "--junitxml=out.xml",
    ).assert_outcomes(passed=2, failed=1)
    cases = {
        case.get("name"): case for case in ET.parse(pytester.path / "out.xml").iter("testcase")
    }
    for case in cases.values():
        properties = {one.get("name"): one.get("value") for one in case.iter("property")}
        assert {
            "container.memory_peak",
            "container.cpu_seconds",
            "container.pids_peak",
            "container.oom_killed",
        } <= properties.keys()
        assert int(properties["container.memory_peak"]) > 0
    assert "7" == next(
        one.get("value")
        for one in cases["test_passes"].iter("property")
        if one.get("name") == "mine"
    )
    assert (
        cases["test_crashes"].find("failure").get("message").startswith("Failed: killed by SIGABRT")
    )
    assert cases["test_crashes"].find("error") is None
