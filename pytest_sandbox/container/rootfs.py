"""What a container lies on: the host's own root, or an image, with what its configuration says
about commands, as docker reads it.
"""

from __future__ import annotations

import os
import re
import signal
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import ImageError, SetupError

if TYPE_CHECKING:
    from pytest_sandbox.image.image import Image
    from pytest_sandbox.settings import Settings

__all__ = ["Rootfs"]

#: What docker gives an image that names no PATH (moby, ``oci/defaults.go``).
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ROOT_USERS: Final = (None, "0", "root", "0:0")


def _find(image: object) -> Image | None:
    if image == "host":  # most containers lie on it, and need nothing of images
        return None
    from pytest_sandbox.image.image import find

    return find(image)


def _signal_of(text: str) -> int:
    """Return the number of a signal, as docker takes it: SIGINT, INT, 2, SIGRTMIN+3 (signal(7)); 0
    for anything else.
    """
    found = re.fullmatch(r"(?:SIG)?([A-Z]+|\d+)([+-]\d+)?", text.upper(), re.ASCII)
    if found is None:
        return 0
    name, distance = found.groups("0")
    return (int(name) if name.isdigit() else int(getattr(signal, f"SIG{name}", 0))) + int(distance)


class Rootfs:
    """Found by a container's settings; while it is held, the image is not removed. Raises
    :class:`ImageError` where there is no such image.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.image = _find(settings.image)
        #: The descriptor that holds the image; -1 where there is none.
        self.held = self.image.hold() if self.image else -1
        self._config = self.image.config if self.image else {}
        #: Whether it is the host's own root, with or without layers of a commit above it.
        self.is_host = self.image is None or self.image.base == "host"

    def release(self) -> None:
        """Let the image go; twice is fine."""
        held, self.held = self.held, -1
        if held >= 0:
            os.close(held)

    @property
    def lower(self) -> tuple[str, ...]:
        """The directories below the writable layer, topmost first."""
        return self.image.lower_directories() if self.image else ("/",)

    @property
    def above(self) -> tuple[tuple[str, str], ...]:
        """More directories below the writable layer, topmost first, with the points that they
        belong to.
        """
        return self.image.above() if self.image else ()

    @property
    def user(self) -> str | None:
        """Who commands run as, where they do not say it themselves."""
        return self.settings.user or self._config.get("User") or None

    @property
    def workdir(self) -> str:
        """Where commands start: ``workdir``; on the host's root the caller's directory, else the
        image's.
        """
        if self.settings.workdir:
            return self.settings.workdir
        return (
            os.path.join("/", self._config.get("WorkingDir") or "")
            if not self.is_host
            else _getcwd()
        )

    @property
    def stop_signal(self) -> int:
        """What asks a command to end: the image's STOPSIGNAL, else SIGTERM. Raises
        :class:`ImageError` for one that does not exist.
        """
        text = self._config.get("StopSignal") or "SIGTERM"
        number = _signal_of(text)
        if number not in signal.valid_signals():
            raise ImageError(f"the image's StopSignal is {text!r}, which is no signal of this host")
        return number

    def has(self, path: str) -> bool:
        """Whether an image's topmost layer that knows ``path`` has a directory there, reached
        through directories alone.
        """
        for lower in self.lower:
            with suppress(FileNotFoundError, NotADirectoryError):
                return stat.S_ISDIR(os.lstat(lower + path).st_mode)
        return False

    @property
    def scratch(self) -> tuple[tuple[str, ...], ...]:
        """The image's volumes, which docker leaves writable on a read-only root, with what lies
        below each, topmost first.
        """
        if self.is_host or not self.settings.read_only:
            return ()
        paths = sorted(
            {os.path.normpath(f"/{path.lstrip('/')}") for path in self._config.get("Volumes") or ()}
            - {"/"}
        )
        return tuple((path, *self._parts(path)) for path in self.with_way(tuple(paths)))

    def _parts(self, path: str) -> list[str]:
        from pytest_sandbox.image.flatten import is_opaque

        parts = []
        for lower in self.lower:
            with suppress(FileNotFoundError, NotADirectoryError):
                if not stat.S_ISDIR(os.lstat(lower + path).st_mode):
                    break
                parts.append(lower + path)
                if is_opaque(os.fsencode(lower + path)):
                    break
        return parts

    def with_way(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        """Return ``paths``; ImageError where a link of the image lies on the way to one: it would
        be followed on the host.
        """
        for path in paths:
            parts = path.strip("/").split("/")
            for end in range(1, len(parts) + 1):
                self._check_way("/" + "/".join(parts[:end]), path)
        return paths

    def _check_way(self, path: str, whole: str) -> None:
        for lower in self.lower if not self.is_host else ():
            with suppress(FileNotFoundError, NotADirectoryError):
                if stat.S_ISLNK(os.lstat(lower + path).st_mode):
                    raise ImageError(
                        f"the image has a link at {path}, where {whole} is to be laid over it. "
                        "Use an image that has a directory there."
                    )
                return

    def environment(self, hostname: str) -> dict[str, str]:
        """What commands find in their environment, where they do not say it themselves."""
        if self.image is None or self.is_host:
            return {**os.environ, **self.settings.env}
        home = {"HOME": "/root"} if self.user in _ROOT_USERS else {}
        return {
            "PATH": _PATH,
            "HOSTNAME": hostname,
            **home,
            **self.image.environment,
            **self.settings.env,
        }

    @property
    def additions(self) -> dict[str, str]:
        """What a function or a test's body finds in its environment beside what it inherits."""
        return {**(self.image.environment if self.image else {}), **self.settings.env}


def _getcwd() -> str:
    """Return the working directory. Raises :class:`SetupError` if it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise SetupError(
            "find the working directory",
            "it was deleted",
            "Start in a directory that exists, or set workdir=.",
        ) from error
