"""A test process that ends before its last report fails its own test; the next test passes."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("containers", "limits")

NEXT = "\n    def test_next(): pass\n"


def test_a_segmentation_fault_shows_signal_stack_and_output(run, failed_report):
    """The failure names the signal, and has faulthandler's stack, the output until then, and the
    real duration.
    """
    run(f"""
    import ctypes, time
    def test_crash():
        print("said before")
        time.sleep(0.3)
        ctypes.string_at(0)
    {NEXT}""").assert_outcomes(passed=1, failed=1)
    report = failed_report()
    assert ("test_crash", "call") == (report["test"], report["when"])
    assert report["text"].startswith("killed by SIGSEGV\n")
    assert "in test_crash" in report["text"]
    assert "_pytest" not in report["text"]
    assert "said before\n" == report["sections"]["Captured stdout call"]
    assert 0.3 <= report["duration"] < 30


def test_a_crash_in_a_fixture_is_an_error_of_the_setup(run, failed_report):
    """A process that ends in the setup phase fails the setup phase."""
    run(f"""
    import os, pytest
    @pytest.fixture
    def crashing(): os.abort()
    def test_crash(crashing): pass
    {NEXT}""").assert_outcomes(passed=1, errors=1)
    report = failed_report()
    assert "setup" == report["when"]
    assert report["text"].startswith("killed by SIGABRT\n")


def test_a_crash_in_the_teardown_is_an_error_of_the_teardown(run, failed_report):
    """A process that ends in the teardown phase fails the teardown phase; the call phase has
    passed.
    """
    run(f"""
    import os, signal, pytest
    @pytest.fixture
    def crashing():
        yield
        os.kill(os.getpid(), signal.SIGBUS)
    def test_crash(crashing): pass
    {NEXT}""").assert_outcomes(passed=2, errors=1)
    assert failed_report()["text"].startswith("killed by SIGBUS\n")


def test_an_oom_kill_shows_limit_peak_and_files(run, failed_report):
    """A test over its memory limit fails with the limit, the peak, and the memory of the files that
    it wrote.
    """
    run(f"""
    import pytest
    @pytest.mark.container(memory="64m")
    def test_hog():
        with open("/tmp/big", "wb") as file:
            file.write(bytes(24 << 20))
        hoard = [bytearray(1 << 20) for _ in range(200)]
    {NEXT}""").assert_outcomes(passed=1, failed=1)
    report = failed_report()
    first = report["text"].splitlines()[0]
    assert first.startswith("killed for memory: limit 64 MiB, peak 6")
    files = float(first.split("of which ")[1].split(" MiB files")[0])
    assert 23 <= files <= 26
    assert "the test's own process" in first
    assert report["properties"]["container.oom_killed"] is True
    assert 60 << 20 <= report["properties"]["container.memory_peak"] <= 64 << 20


def test_a_timeout_shows_stack_and_processes(run, failed_report):
    """A test over its time limit fails with the limit, its stack, and the processes in its
    container, which are killed.
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
        found = [path.read_bytes() for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")]
        assert not [line for line in found if b"987654" in line]
    {NEXT}""").assert_outcomes(passed=2, failed=1)
    report = failed_report()
    assert report["text"].startswith("timeout: still running after 1 s, so it was killed\n")
    assert "in wait_for_ever" in report["text"]
    assert "sleep 987654" in report["text"]
    assert "so far\n" == report["sections"]["Captured stdout call"]
    assert 1 <= report["duration"] < 30


def test_a_timeout_of_a_test_that_ignores_all_signals(run, failed_report):
    """A test that blocks all signals is killed at its timeout."""
    run(f"""
    import pytest, signal
    @pytest.mark.container(timeout=1)
    def test_deaf():
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True: pass
    {NEXT}""").assert_outcomes(passed=1, failed=1)
    assert failed_report()["text"].startswith("timeout: still running after 1 s")


def test_a_timeout_of_a_test_that_removes_the_handler_for_stacks(run, failed_report):
    """The report is that of a timeout, not of the signal that requests the stack."""
    run(
        """
        import signal, time
        def test():
            signal.signal(signal.SIGRTMAX - 1, signal.SIG_DFL)
            time.sleep(60)
        """,
        "--sandbox-timeout=1",
    ).assert_outcomes(failed=1)
    assert failed_report()["text"].startswith("timeout: still running after 1 s")


def test_a_timeout_of_weeks(run):
    """A timeout longer than poll(2) can wait is accepted."""
    run("""
    import pytest
    @pytest.mark.container(timeout=3_000_000)
    def test_quick(): pass
    """).assert_outcomes(passed=1)


def test_a_failed_fork_leaves_no_open_descriptors(run, pytester):
    """Tests that cannot enter their containers leave no descriptors open in the session."""
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


def test_an_error_of_the_next_container_is_not_reported_early(run, pytester):
    """The next test's container is created while a test runs; its error is reported for the next
    test.
    """
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


def test_os_exit_is_a_failure(run, failed_report):
    """A test that calls ``os._exit(0)`` fails."""
    run(f"""
    import os
    def test_exit(): os._exit(0)
    {NEXT}""").assert_outcomes(passed=1, failed=1)
    assert failed_report()["text"].startswith(
        "the test's process ended with status 0 before the test was over"
    )


def test_a_crash_is_never_an_expected_failure(run, reports):
    """A test with the mark ``xfail``, strict or not, that is killed by a signal fails."""
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
