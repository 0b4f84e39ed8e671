"""Run the tests of other projects with and without ``--sandbox``, and compare the outcomes.

``python tools/compare_suites.py [NAME ...]`` downloads each source distribution with pip, installs
it with the requirements of its tests into a virtual environment below ``--cache``, runs its tests
without and with ``--sandbox``, and prints each test whose outcome differs. The order of the tests
is fixed, and only the plugins of the suite are loaded, unless it needs autoloading. ``--mode``
compares further runs with other options, such as ``--mode=--sandbox-jobs=2``. ``--rounds``
repeats all of it, plain runs and modes in turn, and prints the ratios of their times.
``tools/suites.py`` is the table of suites.

If an outcome differs, both runs are repeated: a test whose outcome differs between the plain runs
is unstable, and not compared. The exit status is 1 if the outcome of another test differs for no
reason that the table gives, if a run exceeds its deadline, and if too few tests pass
outside to prove anything.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from suites import SUITES, Suite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
#: Seconds for a server to accept connections.
SERVER_START = 60
Outcomes = dict[str, str]


class NotRun(Exception):
    """A suite that could not be installed or run."""


@dataclass(frozen=True)
class Prepared:
    """A suite with the interpreter it is installed for, and its unpacked sources."""

    suite: Suite
    python: Path
    sources: Path

    @property
    def directory(self) -> Path:
        """The directory for reports and output."""
        return self.sources.parent.parent


def pip(
    python: Path, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Run pip of an interpreter."""
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, check=False, env={**os.environ, **environment}).returncode:
        raise NotRun(f"pip {' '.join(arguments)} failed")


def prepare(suite: Suite, cache: Path) -> Prepared:
    """Install a suite, unless it was, and pytest-sandbox."""
    directory = cache / f"{suite.name}-{suite.version}"
    python, ready = directory / "venv/bin/python", directory / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory / "venv"], check=True)
        options = ["--no-deps", "--no-binary", suite.name, "-d", str(directory)]
        pip(python, "download", *options, f"{suite.name}=={suite.version}")
        archive = next(directory.glob("*.tar.gz"))
        with tarfile.open(archive) as file:
            file.extractall(directory / "src", filter="data")
        sources = next((directory / "src").iterdir())
        what = ("-e", str(sources)) if suite.editable else (str(archive),)
        pip(python, "install", *what, *suite.needs, environment=dict(suite.environment))
        ready.touch()
    pip(python, "install", "-e", str(ROOT))
    return Prepared(suite, python, next((directory / "src").iterdir()))


@contextmanager
def running(command: tuple[str, ...], port: int) -> Iterator[None]:
    """Run a server, if there is one; wait until it answers.

    Another server at its port is refused: tests would change what it stores.
    """
    if not command:
        yield
        return
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        raise NotRun(f"another server answers at port {port}; stop it, or use unshare(1) --net")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd="/tmp") as server:
        try:
            wait_for(port, server)
            yield
        finally:
            server.terminate()


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server accepts connections at a port."""
    end = time.monotonic() + SERVER_START
    while server.poll() is None and time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise NotRun(f"the server does not answer at port {port}")


def finish(
    command: list[str], output: Path, cwd: Path, deadline: float, environment: dict[str, str]
) -> bool:
    """Run a command; return whether it ended by itself within some seconds."""
    with output.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(deadline)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return True


def run(prepared: Prepared, options: tuple[str, ...]) -> tuple[Outcomes, float]:
    """Return the outcome of each test, and the seconds of the session, with some options."""
    suite = prepared.suite
    kind = "_".join(option.strip("-").replace("/", "_") for option in options) or "plain"
    report, output = (prepared.directory / f"{kind}.{suffix}" for suffix in ("xml", "txt"))
    report.unlink(missing_ok=True)
    plugins = [arg for name in ("sandbox", *suite.plugins) for arg in ("-p", name)]
    command = [str(prepared.python), "-m", "pytest", *plugins, *suite.arguments, *options]
    command += ["-v", "--color=no", "--tb=short", f"--junitxml={report}", *suite.paths]
    environment = {} if suite.autoload else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment |= suite.environment
    # Other sessions remove old directories of pytest in /tmp.
    with (
        tempfile.TemporaryDirectory(prefix="s", ignore_cleanup_errors=True) as temporary,
        running(suite.server, suite.port),
    ):
        environment["PYTEST_DEBUG_TEMPROOT"] = temporary
        start = time.monotonic()
        ended = finish(command, output, prepared.sources, suite.deadline, environment)
        took = time.monotonic() - start
    if not ended:
        raise NotRun(f"the {kind} run did not end within {suite.deadline} s, see {output}")
    if not report.exists():
        raise NotRun(f"the {kind} run wrote no report, see {output}")
    return outcomes(report), took


def outcomes(report: Path) -> Outcomes:
    """Return the outcome of each test of a JUnit report; for tests with one name, all of them."""
    found: Outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        kinds = sorted({child.tag for child in case} & {"failure", "error", "skipped"})
        outcome = " ".join(kinds) or "passed"
        found[name] = f"{found[name]}, {outcome}" if name in found else outcome
    return found


def differing(plain: Outcomes, inside: Outcomes) -> set[str]:
    """Return the names of the tests that have another outcome, or none, in one of the runs."""
    return {name for name in plain.keys() | inside.keys() if plain.get(name) != inside.get(name)}


def reason(suite: Suite, name: str) -> str:
    """Return why the outcome of a test is expected to differ, or an empty string."""
    return next((why for pattern, why in suite.differs if fnmatchcase(name, pattern)), "")


def counts(found: Outcomes) -> str:
    """Return how many tests had each outcome, and how many names are those of several tests."""
    each = Counter(outcome for joined in found.values() for outcome in joined.split(", "))
    several = sum(", " in joined for joined in found.values())
    described = ", ".join(f"{number} {outcome}" for outcome, number in sorted(each.items()))
    return f"{described} ({several} names of several tests)" if several else described


def convincing(plain: Outcomes) -> bool:
    """Tell whether a quarter of the tests pass outside, and more than fail."""
    passed = sum(outcome == "passed" for outcome in plain.values())
    failed = sum("failure" in outcome or "error" in outcome for outcome in plain.values())
    return passed > failed and 4 * passed >= len(plain)


def compare(prepared: Prepared, modes: Sequence[tuple[str, ...]], rounds: int = 1) -> bool:
    """Run a suite, print what differs in each mode, and return whether all of it was expected.

    A mode is a number of options that are added to those of the suite for ``--sandbox``.
    """
    results = [compare_once(prepared, modes) for _ in range(rounds)]
    for index, mode in enumerate(modes if rounds > 1 else ()):
        ratios = [each[index] for _, each in results]
        print(
            f"{prepared.suite.name} {' '.join(('--sandbox', *prepared.suite.sandbox, *mode))}: "
            f"{statistics.median(ratios):.2f} x plain in the median of {rounds} rounds, "
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            flush=True,
        )
    return all(expected for expected, _ in results)


def compare_once(prepared: Prepared, modes: Sequence[tuple[str, ...]]) -> tuple[bool, list[float]]:
    """Run a suite plain and in each mode; return whether no outcome differs unexpectedly, and the
    time of each mode, divided by that of the plain run.
    """
    plain, took = run(prepared, ())
    if not convincing(plain):
        raise NotRun(f"too few tests pass without --sandbox: {counts(plain)}")
    print(f"{prepared.suite.name} {prepared.suite.version}: {counts(plain)}; {took:.1f} s")
    compared = [compare_mode(prepared, plain, took, mode) for mode in modes]
    return all(expected for expected, _ in compared), [ratio for _, ratio in compared]


def compare_mode(
    prepared: Prepared, plain: Outcomes, took: float, mode: tuple[str, ...]
) -> tuple[bool, float]:
    """Compare the plain outcomes with those of one mode, and the times of both."""
    suite = prepared.suite
    options = ("--sandbox", *suite.sandbox, *mode)
    inside, took_inside = run(prepared, options)
    different, unstable = differing(plain, inside), set[str]()
    if any(not reason(suite, name) for name in different):
        unstable = differing(plain, run(prepared, ())[0])
        different |= differing(plain, run(prepared, options)[0])
        different -= unstable
    unexpected = {name for name in different if not reason(suite, name)}
    for name in sorted(different):
        why = reason(suite, name) or "UNEXPECTED"
        print(f"  {name}: {plain.get(name, 'missing')} -> {inside.get(name, 'missing')}: {why}")
    for name in sorted(unstable):
        print(f"  {name}: unstable without --sandbox, not compared")
    each = (took_inside - took) / max(1, len(plain)) * 1000
    print(
        f"{suite.name} {' '.join(options)}: {len(different)} differ, of them {len(unexpected)} "
        f"unexpectedly; {took_inside:.1f} s, {each:+.1f} ms a test",
        flush=True,
    )
    return not unexpected, took_inside / took


def succeeds(suite: Suite, cache: Path, modes: Sequence[tuple[str, ...]], rounds: int) -> bool:
    """Install a suite, and compare it in some modes; print why, if it cannot be run."""
    try:
        prepared = prepare(suite, cache)
        return not modes or compare(prepared, modes, rounds)
    except NotRun as error:
        print(f"{suite.name} {suite.version}: NOT RUN: {error}", flush=True)
        return False


def main() -> None:
    """Compare the chosen suites; exit with 1 if an outcome differs unexpectedly."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"among {', '.join(SUITES)} (default: all)"
    )
    parser.add_argument("--cache", type=Path, default=ROOT / "build/suites")
    parser.add_argument("--deadline", type=int, help="the most seconds that a run may take")
    parser.add_argument(
        "--mode",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="compare with these options too, such as --mode=--sandbox-jobs=2 (repeatable)",
    )
    parser.add_argument(
        "--path", action="append", help="instead of the suite's paths of tests (repeatable)"
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often (default: 1)")
    parser.add_argument("--install-only", action="store_true", help="do not run the tests")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by an exception, which ends the run
    cache = chosen.cache.absolute()
    suites = [SUITES[name] for name in chosen.names or SUITES]
    if chosen.path:
        suites = [replace(suite, paths=tuple(chosen.path)) for suite in suites]
    if chosen.deadline:
        suites = [replace(suite, deadline=chosen.deadline) for suite in suites]
    modes = [] if chosen.install_only else [(), *(tuple(shlex.split(one)) for one in chosen.mode)]
    results = [succeeds(suite, cache, modes, chosen.rounds) for suite in suites]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
