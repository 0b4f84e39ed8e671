"""Run tests of the plugin on several Pythons and pytests: ``python tools/matrix.py [--python
3.11,3.13] [--pytest 8.3.0,newest] [ARGUMENTS]``.

Each pair gets a virtual environment of its own, kept below ``--cache``; what follows the options
goes to pytest (default: tests/plugin). The interpreters are looked for in PATH, then among pyenv's.
The last line sums up; the exit status is 1 where a pair fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = "3.11,3.12,3.13"
PYTESTS = "8.3.0,8.4.2,9.0.3,newest"
PLUGINS = (
    "anyio[trio]",
    "django",
    "hypothesis",
    "pytest-asyncio",
    "pytest-benchmark",
    "pytest-cov",
    "pytest-django",
    "pytest-html",
)
MORE_PLUGINS = (
    "pytest-mock",
    "pytest-randomly",
    "pytest-rerunfailures",
    "pytest-timeout",
    "pytest-xdist",
    "trustme",
)


def interpreter(version: str) -> str:
    """Return the path of a Python of this version."""
    found = shutil.which(f"python{version}")
    if found and "shims" not in found:
        return found
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    here = sorted(versions.glob(f"{version}.*/bin/python"))
    if not here:
        sys.exit(f"Python {version} is neither in PATH nor in {versions}")
    return str(here[-1])


def prepare(python: str, pytest: str, cache: Path) -> Path:
    """Return the interpreter of the pair's environment, made at first need."""
    directory = cache / f"python{python}-pytest{pytest}"
    inner = directory / "bin/python"
    if not (directory / "ready").exists():
        subprocess.run([interpreter(python), "-m", "venv", "--clear", directory], check=True)
        wanted = "pytest" if pytest == "newest" else f"pytest=={pytest}"
        pip = [str(inner), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        subprocess.run([*pip, wanted, *PLUGINS, *MORE_PLUGINS, "-e", str(ROOT)], check=True)
        (directory / "ready").touch()
    return inner


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=PYTHONS, metavar="VERSIONS", help=f"default: {PYTHONS}")
    parser.add_argument("--pytest", default=PYTESTS, metavar="VERSIONS", help=f"default: {PYTESTS}")
    parser.add_argument("--cache", type=Path, default=ROOT / "build/matrix")
    options, arguments = parser.parse_known_args()
    failed = []
    for python in options.python.split(","):
        for pytest in options.pytest.split(","):
            inner = prepare(python, pytest, options.cache)
            print(f"-- Python {python}, pytest {pytest}", flush=True)
            done = subprocess.run(
                [inner, "-m", "pytest", "-q", *(arguments or ["tests/plugin"])],
                cwd=ROOT,
                check=False,
            )
            if done.returncode:
                failed.append(f"Python {python} with pytest {pytest}")
    print(f"failed: {', '.join(failed)}" if failed else "all pairs passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
