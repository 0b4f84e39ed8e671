"""pytest-codspeed, pytest-profiling, pytest-monitor and pytest-durations measure pytest's own
process, where a test inside is only replayed: they would report that every test takes no time. They
are refused.
"""

from __future__ import annotations

import pytest

__all__ = ["register"]

#: The option that starts each, its value if the option was not given, and how to go without it.
_OPTIONS = (
    ("pytest-codspeed", "codspeed", False, "leave --codspeed out"),
    ("pytest-profiling", "profile", False, "leave --profile out"),
    ("pytest-profiling", "profile_svg", False, "leave --profile-svg out"),
    ("pytest-durations", "pytest_durations", False, "add --pytest-durations=0"),
    ("pytest-durations", "pytest_durations_json", False, "leave --pytest-durations-json out"),
    ("pytest-monitor", "mtr_none", True, "add --no-monitor"),
)


def register(config: pytest.Config) -> None:
    """Raise :class:`pytest.UsageError` if one of them measures."""
    for name, option, idle, remedy in _OPTIONS:
        value = getattr(config.option, option, idle)
        if bool(value) is not idle:
            raise pytest.UsageError(
                f"{name} measures pytest's own process, and not tests that run in a container. To "
                f"measure, run without --sandbox and the mark container; to run inside, {remedy}."
            )
