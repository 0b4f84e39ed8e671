"""Run tests of the plugin on several Pythons and pytests: ``python tools/matrix.py [--python
3.11,3.13] [--pytest 8.3.0,oldest,newest] [ARGUMENTS]``.

Each pair gets a virtual environment of its own below ``--cache``. ``oldest`` is the lower bound in
pyproject.toml of pytest and of every other dependency. What follows the options is passed to pytest
(default: tests/plugin). Interpreters are searched in PATH, then in pyenv. The last line is a
summary; the exit status is 1 if a pair fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = "3.11,3.12,3.13"
PYTESTS = "oldest,8.3.0,8.4.2,9.0.3,newest"
BOUND = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,-]+\])?>=(?P<version>[\d.]+)")


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


def lower_bounds() -> list[str]:
    """Return a pin (``name==version``) of each dependency and test extra to its lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(line for name in ("images", "fast", "cli", "test") for line in extras[name]),
    ]
    bounds = (BOUND.match(line) for line in wanted)
    return [f"{bound['name']}=={bound['version']}" for bound in bounds if bound]


def constraints(pytest: str) -> list[str]:
    """Return the pins of an environment with this pytest: "oldest", "newest" or a version."""
    if pytest == "oldest":
        return lower_bounds()
    return [] if pytest == "newest" else [f"pytest=={pytest}"]


def prepare(python: str, pytest: str, cache: Path) -> Path:
    """Return the interpreter of the pair's environment; create the environment at first use."""
    directory = cache / f"python{python}-pytest{pytest}"
    inner = directory / "bin/python"
    if not (directory / "ready").exists():
        subprocess.run([interpreter(python), "-m", "venv", "--clear", directory], check=True)
        pins = directory / "constraints.txt"
        pins.write_text("".join(f"{pin}\n" for pin in constraints(pytest)))
        pip = [str(inner), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        subprocess.run([*pip, "--constraint", pins, "-e", f"{ROOT}[test]"], check=True)
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
                [inner, "-m", "pytest", *(arguments or ["tests/plugin"])],
                cwd=ROOT,
                check=False,
            )
            if done.returncode:
                failed.append(f"Python {python} with pytest {pytest}")
    print(f"failed: {', '.join(failed)}" if failed else "all pairs passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
