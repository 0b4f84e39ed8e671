"""What a report has about the container: sections of a failure, properties of every report."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

pytestmark = pytest.mark.needs("containers", "limits")


def test_a_failure_shows_usage_and_changes(run, reports, failed_report):
    """A failed report has limits, usage and up to 20 changed files with a count of the others; a
    passed one has no section.
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
    report = failed_report()
    assert "memory=256 MiB, cpus=1.5" in report["sections"]["container"]
    assert "memory peak " in report["sections"]["container"]
    lines = report["sections"]["changes"].splitlines()
    assert "D /etc/hostname" in lines
    assert "A /opt/file00" in lines
    assert 21 == len(lines)
    assert lines[-1].startswith("... and ")
    assert all(not one["sections"] for one in found if one["test"] == "test_passes")


def test_a_container_of_the_fixture_is_in_the_report(run, failed_report):
    """A failed test that uses the fixture ``container`` has the sections and properties of its
    container.
    """
    run("""
    def test_holds(container):
        container.run(["touch", "/opt/made"], check=True)
        assert False
    """).assert_outcomes(failed=1)
    report = failed_report()
    assert "A /opt/made" in report["sections"]["changes"].splitlines()
    assert "memory peak " in report["sections"]["container"]
    assert (
        report["properties"]["container.pids_peak"] is None
        or report["properties"]["container.pids_peak"] >= 0
    )


def test_an_oom_kill_of_a_subprocess_is_counted(run, failed_report):
    """The section "container" and the property ``container.oom_killed`` tell that the kernel has
    killed a subprocess of a test.
    """
    run("""
    import pytest, subprocess, sys
    @pytest.mark.container(memory="64m")
    def test_parent():
        subprocess.run([sys.executable, "-c", "x = bytearray(200 << 20)"], check=True)
    """).assert_outcomes(failed=1)
    report = failed_report()
    assert "SIGKILL" in report["text"]
    assert "killed for memory 1" in report["sections"]["container"]
    assert report["properties"]["container.oom_killed"] is True


def test_properties_are_in_junit_xml(run, pytester):
    """``--junitxml`` has the properties of each test, inside or with the fixture; a crash is a
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
