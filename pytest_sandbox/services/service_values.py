"""What the arguments of a service and its image say: the command, the ports, what is waited for."""

from __future__ import annotations

import inspect
import os
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from pytest_sandbox.container.conditions import AllOf, AnyOf, Condition
from pytest_sandbox.errors import ServiceError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_sandbox.image.image import Image
    from pytest_sandbox.settings.settings import Settings

__all__ = ["command_of", "exposed", "is_one", "keywords_only", "parts", "words"]

P = ParamSpec("P")
T = TypeVar("T")

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all


def keywords_only(recipe: Callable[P, T]) -> Callable[P, T]:
    """Return the recipe with a TypeError for positional arguments that has the right form."""

    @wraps(recipe)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        if args:
            raise TypeError(_with_keyword(recipe, args[0]))
        return recipe(*args, **kwargs)

    return checked


def _with_keyword(recipe: Callable[..., object], given: object) -> str:
    name = getattr(recipe, "__name__", "")
    known = inspect.signature(recipe).parameters
    if isinstance(given, int) and not isinstance(given, bool):
        form = f"{name}(port={given})"
    elif callable(given) and "setup" in known:
        form = f"{name}(setup={getattr(given, '__name__', 'migrate')})"
    elif isinstance(given, str | os.PathLike):
        form = f"{name}(image={os.fspath(given)!r}), or {name}() for the program of this host"
    else:
        form = f"{name}(image=...)"
    return f"{name}() takes keyword arguments only: {form}"


def is_one(ahead: object) -> bool:
    """Return whether the next service is to be started in advance: 1 of 0 or 1.

    Raises :class:`SettingsError`.
    """
    if ahead not in (0, 1):
        raise SettingsError("ahead", ahead, "0 or 1")
    return bool(ahead)


def words(command: Iterable[str]) -> tuple[str, ...]:
    """Return the words of a command. Raises :class:`SettingsError`."""
    found = () if isinstance(command, str) else tuple(command)
    if not found or not all(isinstance(one, str) for one in found):
        form = 'a list of words, such as ["redis-server"]'
        if isinstance(command, str):
            form += f"; for what an image starts: image={command!r}"
        raise SettingsError("command", command, form)
    return found


def parts(condition: Condition | None) -> list[Condition]:
    """Return the conditions that a condition consists of."""
    if isinstance(condition, AllOf | AnyOf):
        return [part for one in condition.conditions for part in parts(one)]
    return [] if condition is None else [condition]


def exposed(settings: Settings) -> list[int]:
    """Return the TCP ports of the image's EXPOSE."""
    if settings.image == "host":
        return []
    from pytest_sandbox.image.image import find

    image = find(settings.image)
    keys = (image.config.get("ExposedPorts") or {}) if image else {}
    found = [key.partition("/") for key in keys]
    return [int(port) for port, _, kind in found if kind in {"", "tcp"} and port.isdecimal()]


def command_of(image: Image | None, name: str) -> tuple[str, ...]:
    """Return what the image of a service starts. Raises :class:`ServiceError`."""
    command = image.command() if image else ()
    if not command:
        raise ServiceError(name, "its image has neither ENTRYPOINT nor CMD: give a command")
    return command
