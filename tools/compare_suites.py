"""Run the tests of other projects with and without ``--sandbox``, and compare the outcomes.

``python tools/compare_suites.py [NAME ...]`` downloads each source distribution with pip, installs
it with the requirements of its tests into a virtual environment below ``--cache``, runs its tests
without and with ``--sandbox``, and prints each test whose outcome differs. If any does, the exit
status is 1. The order of the tests is fixed, and only the plugins of the suite are loaded.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Suite:
    """A distribution: its version, the requirements, plugins and arguments of its tests."""

    name: str
    version: str
    needs: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    sandbox: tuple[str, ...] = ()


SUITES = {
    suite.name: suite
    for suite in (
        Suite("pluggy", "1.7.0"),
        Suite("click", "8.5.1"),
        Suite(
            "filelock",
            "3.18.0",
            needs=("pytest-mock", "pytest-asyncio", "pytest-timeout", "virtualenv"),
            plugins=("pytest_mock", "asyncio", "timeout"),
        ),
        Suite(
            "requests",
            "2.34.2",
            needs=("pytest-httpbin==2.1.0", "httpbin~=0.10.0", "trustme", "PySocks", "pytest-mock"),
            plugins=("httpbin", "pytest_mock"),
            sandbox=("--sandbox-network=host",),
        ),
    )
}


def pip(python: Path, *arguments: str) -> None:
    """Run pip of an interpreter."""
    subprocess.run(
        [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True
    )


def prepare(suite: Suite, cache: Path) -> tuple[Path, Path]:
    """Return the interpreter and the unpacked sources of a suite."""
    directory = cache / f"{suite.name}-{suite.version}"
    python, ready = directory / "venv/bin/python", directory / "ready"
    sources = directory / "src" / f"{suite.name}-{suite.version}"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True)
        options = ["--no-deps", "--no-binary", suite.name, "-d", str(directory)]
        pip(python, "download", *options, f"{suite.name}=={suite.version}")
        archive = next(directory.glob("*.tar.gz"))
        with tarfile.open(archive) as file:
            file.extractall(directory / "src", filter="data")
        pip(python, "install", str(archive), *suite.needs)
        ready.touch()
    pip(python, "install", "-e", str(ROOT))
    return python, sources


def run(
    suite: Suite, python: Path, sources: Path, *, sandboxed: bool
) -> tuple[dict[str, str], float]:
    """Return the outcome of each test, and the seconds of the session."""
    report = sources.parent / ("sandboxed.xml" if sandboxed else "plain.xml")
    report.unlink(missing_ok=True)
    plugins = [arg for name in ("sandbox", *suite.plugins) for arg in ("-p", name)]
    options = ["--sandbox", *suite.sandbox] if sandboxed else []
    command = [
        python,
        "-m",
        "pytest",
        *plugins,
        *options,
        *suite.arguments,
        "-q",
        "--tb=short",
        f"--junitxml={report}",
        "tests" if (sources / "tests").exists() else "testing",
    ]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=sources, env=environment, capture_output=True, text=True, check=False
    )
    took = time.monotonic() - start
    (sources.parent / report.with_suffix(".txt").name).write_text(done.stdout + done.stderr)
    if not report.exists():
        sys.exit(f"{suite.name} did not run:\n{done.stdout}{done.stderr}")
    return outcomes(report), took


def outcomes(report: Path) -> dict[str, str]:
    """Return the outcome of each test of a JUnit report."""
    found: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):
        kinds = sorted({child.tag for child in case} & {"failure", "error", "skipped"})
        found[f"{case.get('classname')}::{case.get('name')}"] = " ".join(kinds) or "passed"
    return found


def compare(suite: Suite, cache: Path) -> int:
    """Print the tests whose outcomes differ, and return their number."""
    python, sources = prepare(suite, cache)
    plain, took = run(suite, python, sources, sandboxed=False)
    inside, took_inside = run(suite, python, sources, sandboxed=True)
    differing = sorted(
        name for name in plain.keys() | inside.keys() if plain.get(name) != inside.get(name)
    )
    for name in differing:
        print(f"  {name}: {plain.get(name, 'missing')} -> {inside.get(name, 'missing')}")
    each = (took_inside - took) / max(1, len(plain)) * 1000
    print(
        f"{suite.name} {suite.version}: {len(plain)} tests, {len(differing)} differ; {took:.1f} s "
        f"-> {took_inside:.1f} s, {each:+.1f} ms a test"
    )
    return len(differing)


def main() -> None:
    """Compare the chosen suites; exit with 1 if an outcome differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"among {', '.join(SUITES)} (default: all)"
    )
    parser.add_argument("--cache", type=Path, default=ROOT / "build/suites")
    chosen = parser.parse_args()
    sys.exit(
        1 if sum(compare(SUITES[name], chosen.cache) for name in chosen.names or SUITES) else 0
    )


if __name__ == "__main__":
    main()
