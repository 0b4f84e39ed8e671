"""The root file system below a container's writable layer: the host's root, or an image.

The image's configuration sets the environment, user and working directory of commands, as with
docker.
"""

from __future__ import annotations

import os
import re
import signal
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pytest_sandbox.container import gpus, proxies
from pytest_sandbox.errors import ImageError, SetupError
from pytest_sandbox.settings.destinations import is_limited

if TYPE_CHECKING:
    from pytest_sandbox.image.image import Image
    from pytest_sandbox.settings.settings import Settings

__all__ = ["Rootfs"]

#: Docker's PATH for an image without one (moby, ``oci/defaults.go``).
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ROOT_USERS: Final = (None, "0", "root", "0:0")


def _find(image: object) -> Image | None:
    if image == "host":  # the usual case does not import the image package
        return None
    from pytest_sandbox.image.image import find

    return find(image)


def _signal_of(text: str) -> int:
    """Return the number of a signal in one of docker's forms: SIGINT, INT, 2, SIGRTMIN+3
    (signal(7)); 0 for any other text.
    """
    found = re.fullmatch(r"(?:SIG)?([A-Z]+|\d+)([+-]\d+)?", text.upper(), re.ASCII)
    if found is None:
        return 0
    name, distance = found.groups("0")
    return (int(name) if name.isdigit() else int(getattr(signal, f"SIG{name}", 0))) + int(distance)


class Rootfs:
    """The root file system that a container's settings name.

    The image cannot be removed until :meth:`release`. Raises :class:`ImageError` if it does not
    exist.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.image = _find(settings.image)
        #: The descriptor of the lock that keeps the image from being removed; -1 without an image.
        self.held = self.image.hold() if self.image else -1
        self._config = self.image.config if self.image else {}
        #: Whether it is the host's root, with or without committed layers above it.
        self.is_host = self.image is None or self.image.base == "host"

    def release(self) -> None:
        """Allow the image to be removed; a second call does nothing."""
        held, self.held = self.held, -1
        if held >= 0:
            os.close(held)

    @property
    def lower(self) -> tuple[str, ...]:
        """The directories below the writable layer, topmost first."""
        return self.image.lower_directories() if self.image else ("/",)

    @property
    def above(self) -> tuple[tuple[str, str], ...]:
        """Further directories below the writable layer, topmost first: the mount point of the
        overlay, and the directory.
        """
        return self.image.above() if self.image else ()

    @property
    def user(self) -> str | None:
        """The user of commands: ``user``, else the image's USER; None for the invoking user."""
        return self.settings.user or self._config.get("User") or None

    @property
    def workdir(self) -> str:
        """The directory in which commands start: ``workdir``; else the caller's working directory
        on the host's root, and the image's on an image.
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
        """The signal that asks a command to end: the image's STOPSIGNAL, else SIGTERM.

        Raises :class:`ImageError` for one that does not exist.
        """
        text = self._config.get("StopSignal") or "SIGTERM"
        number = _signal_of(text)
        if number not in signal.valid_signals():
            raise ImageError(f"the image's StopSignal is {text!r}, which is not a signal here")
        return number

    def has(self, path: str) -> bool:
        """Return whether the image has a directory at ``path``, without following links: the
        topmost layer that has the path decides.
        """
        for lower in self.lower:
            with suppress(FileNotFoundError, NotADirectoryError):
                return stat.S_ISDIR(os.lstat(lower + path).st_mode)
        return False

    @property
    def scratch(self) -> tuple[tuple[str, ...], ...]:
        """The image's volumes, which docker leaves writable on a read-only root, each followed by
        the directories below it, topmost first.
        """
        if self.is_host or not self.settings.read_only:
            return ()
        paths = sorted(
            {os.path.normpath(f"/{path.lstrip('/')}") for path in self._config.get("Volumes") or ()}
            - {"/"}
        )
        return tuple((path, *self._parts(path)) for path in self.checked_mount_points(tuple(paths)))

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

    def checked_mount_points(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        """Return ``paths``. Raises :class:`ImageError` if the image has a symbolic link on the way
        to one: it would be followed on the host.
        """
        for path in paths:
            parts = path.strip("/").split("/")
            for end in range(1, len(parts) + 1):
                self._check_no_link("/" + "/".join(parts[:end]), path)
        return paths

    def _check_no_link(self, path: str, mount_point: str) -> None:
        for lower in self.lower if not self.is_host else ():
            with suppress(FileNotFoundError, NotADirectoryError):
                if stat.S_ISLNK(os.lstat(lower + path).st_mode):
                    raise ImageError(
                        f"the image has a link at {path}, on the way to the mount point "
                        f"{mount_point}. Use an image that has a directory there."
                    )
                return

    def environment(self, hostname: str) -> dict[str, str]:
        """Return the environment of commands that are not given one."""
        if self.image is None or self.is_host:
            return {**os.environ, **self.additions}
        home = {"HOME": "/root"} if self.user in _ROOT_USERS else {}
        return {"PATH": _PATH, "HOSTNAME": hostname, **home, **self.additions}

    @property
    def additions(self) -> dict[str, str]:
        """Variables that are added to the environment of a test body or of ``call``'s function."""
        env = dict(self.image.environment) if self.image else {}
        if self.settings.gpus and not self.is_host:
            env = gpus.add_library_path(env)
        if is_limited(self.settings.network):
            env.update(proxies.without_proxies(self.settings.env) if self.is_host else {})
        return {**env, **self.settings.env}


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
