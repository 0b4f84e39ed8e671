"""The types of the public interface, checked by mypy and pyright."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from pytest_sandbox.settings.kwargs import SettingsKwargs
from pytest_sandbox.settings.settings import KEYS, Settings

PROGRAM = Path(__file__).parent / "typing_programs" / "calls.py"
WRONG = [
    number
    for number, line in enumerate(PROGRAM.read_text().splitlines(), 1)
    if line.endswith("# wrong")
]


def lines_by_mypy(directory: Path) -> dict[int, str]:
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        f"--cache-dir={directory}",
        "--no-error-summary",
        PROGRAM,
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "" == printed.stderr
    found = re.findall(r"calls\.py:(\d+): error: (.*)", printed.stdout)
    return {int(number): text for number, text in found}


def lines_by_pyright(_directory: Path) -> dict[int, str]:
    command = [
        sys.executable,
        "-m",
        "pyright",
        "--pythonpath",
        sys.executable,
        "--outputjson",
        PROGRAM,
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(printed.stdout)["generalDiagnostics"]
    return {
        one["range"]["start"]["line"] + 1: one["message"]
        for one in found
        if one["severity"] == "error"
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "errors_of",
    [
        pytest.param(lines_by_mypy, marks=pytest.mark.needs("mypy"), id="mypy"),
        pytest.param(lines_by_pyright, marks=pytest.mark.needs("pyright"), id="pyright"),
    ],
)
def test_a_type_checker_rejects_only_wrong_calls(errors_of, tmp_path):
    """A type checker reports misspelt keys, wrong values and arguments, and no correct call."""
    found = errors_of(tmp_path)
    assert WRONG == sorted(found), found


def test_the_keywords_are_the_settings():
    """SettingsKwargs has each setting, in the order of Settings."""
    assert list(KEYS) == list(SettingsKwargs.__annotations__)


def test_settings_parse_their_arguments():
    """Settings(memory="512m") has 512 MiB in each form, and `given` has the key."""
    made = Settings(memory="512m")
    assert (512 << 20, frozenset({"memory"})) == (made.memory, made.given)
    assert (
        Settings(memory=512 << 20)
        == made
        == Settings.of(memory="512m")
        == Settings().replace(memory="512m")
    )


def test_unchecked_settings_have_every_field():
    """unchecked() takes canonical values, and every other field has its default."""
    made = Settings.unchecked(memory=1)
    assert 1 == made.memory
    assert {one.name for one in fields(Settings)} == {
        one.name for one in fields(Settings) if hasattr(made, one.name)
    }
